"""Importance weights of NumPyro guides."""

from __future__ import annotations

import jax
from numpyro import handlers
from numpyro.infer.util import log_density


def log_weights(rng_key, model, guide, params, *args, num_samples: int = 1000, batch_size: int = 1000, **kwargs):
    """The log importance weights log p(x, z) - log q(z) of draws from a guide; their mean estimates the ELBO.

    Args:
        rng_key: the key of the draws.
        model: the model.
        guide: any guide for it.
        params: the parameters of both.
        args: the arguments of both; so are further keyword arguments.
        num_samples: the number of draws.
        batch_size: how many are computed at a time.

    Returns:
        An array of shape ``(num_samples,)``, for :func:`flowppl.diagnostics.k_hat` and others.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from flowppl.numpyro import AutoFlow, log_weights
        >>> def model():
        ...     numpyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoFlow(model, init_scale=1.0)
        >>> log_weights(jax.random.key(0), model, guide, guide.setup()).shape
        (1000,)
    """

    def one(key):
        guide_key, model_key = jax.random.split(key)
        log_q, trace = log_density(handlers.seed(guide, guide_key), args, kwargs, params)
        replayed = handlers.replay(handlers.seed(model, model_key), trace)
        return log_density(replayed, args, kwargs, params)[0] - log_q

    keys = jax.random.split(rng_key, num_samples)
    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=min(batch_size, num_samples)))(keys)
