"""Importance weights of Pyro guides."""

from __future__ import annotations

import torch
from pyro import poutine
from pyro.infer.importance import vectorized_importance_weights


@torch.no_grad()
def log_weights(model, guide, *args, num_samples: int = 1000, batch_size: int = 1000, **kwargs) -> torch.Tensor:
    """The log importance weights log p(x, z) - log q(z) of draws from a guide; their mean estimates the ELBO.

    Args:
        model: the model; its plates must allow an outer one, over the draws.
        guide: any guide for it.
        args: the arguments of both; so are further keyword arguments.
        num_samples: the number of draws.
        batch_size: how many are computed at a time.

    Returns:
        A tensor of shape ``(num_samples,)``, for :func:`flowppl.diagnostics.k_hat` and others.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from flowppl.pyro import AutoFlow, log_weights
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoFlow(model, init_scale=1.0)
        >>> log_weights(model, guide).shape
        torch.Size([1000])
    """
    trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
    frames = [frame for site in trace.nodes.values() for frame in site.get("cond_indep_stack", ())]
    nesting = max((-frame.dim for frame in frames if frame.vectorized), default=0)
    batches = []
    for start in range(0, num_samples, batch_size):
        size = min(batch_size, num_samples - start)
        # A plate of one would be squeezed away: draw two, keep one.
        weights, _, _ = vectorized_importance_weights(
            model, guide, *args, num_samples=max(size, 2), max_plate_nesting=nesting, **kwargs
        )
        batches.append(weights[:size])
    return torch.cat(batches)
