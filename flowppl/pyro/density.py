"""Maximum likelihood of Pyro flows."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch

from flowppl.inference.density import FIT_DENSITY_DOC, INIT_ROWS, DensityFit, check_options, split_rows, train
from flowppl.pyro.flow import Flow
from flowppl.pyro.steps import take_step


def fit_density(
    flow: Flow,
    x,
    context=None,
    *,
    learning_rate: float = 3e-3,
    batch_size: int = 128,
    num_epochs: int = 200,
    validation=0.1,
    patience: int | None = 30,
    clip_norm: float | None = 5.0,
    init: bool = True,
    progress: bool | None = None,
) -> DensityFit:
    if not isinstance(flow, Flow):
        raise TypeError(f"fit_density: flow must be a flowppl.pyro.Flow, got {type(flow).__name__}")
    check_options(
        learning_rate=learning_rate,
        clip_norm=clip_norm,
        patience=patience,
        batch_size=batch_size,
        num_epochs=num_epochs,
    )
    trained = [parameter for parameter in flow.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError("fit_density: the flow has no parameters that require a gradient; nothing can be trained")
    zeros: Any = flow._zeros  # has the dtype and the device of the flow

    def convert(values):
        tensor = values.detach() if isinstance(values, torch.Tensor) else torch.tensor(np.asarray(values))
        return tensor.to(zeros)

    rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
    data, held_out = split_rows(flow.bijection, x, context, validation, convert, rng)
    if init:
        flow.init_from(*(None if values is None else values[:INIT_ROWS] for values in data))
    optimizer = torch.optim.Adam(trained, fused=True)
    optimizer.zero_grad()

    def step(rows):
        loss = -_log_prob(flow, data, rows).mean()
        loss.backward()
        return take_step(optimizer, trained, loss.item(), math.inf if clip_norm is None else clip_norm)

    def run_epoch(rate, order):
        optimizer.param_groups[0]["lr"] = rate
        losses = [step(rows) for rows in torch.as_tensor(order, device=zeros.device).split(batch_size)]
        return losses, None if held_out is None else _mean_loss(flow, held_out, batch_size)

    def flow_with(state):
        flow.load_state_dict(state)
        optimizer.zero_grad()
        return flow

    return train(
        run_epoch,
        lambda: copy.deepcopy(flow.state_dict()),
        flow_with,
        rng,
        num_rows=len(data[0]),
        batch_size=batch_size,
        learning_rate=learning_rate,
        num_epochs=num_epochs,
        patience=patience,
        progress=progress,
    )


def _log_prob(flow, data, rows):
    x, context = data
    return flow(None if context is None else context[rows]).log_prob(x[rows])


@torch.no_grad()
def _mean_loss(flow, data, batch_size):
    num_rows = len(data[0])
    parts = [slice(start, start + batch_size) for start in range(0, num_rows, batch_size)]
    return -sum(_log_prob(flow, data, part).sum() for part in parts) / num_rows


fit_density.__doc__ = FIT_DENSITY_DOC.format(
    returns="""The module is
    trained in place, and ends with the weights of the epoch of the best validation loss; without validation, of the
    last epoch. ``pyro.set_rng_seed`` determines the batches.""",
    key="",
    base="""What requires no gradient stays as it is, and so does the base distribution unless it is
            a module.""",
    example="""
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow, fit_density
        >>> x = 3.0 + 2.0 * torch.randn(500, 2)
        >>> fit = fit_density(Flow(fp.ElementwiseAffine(2)), x, learning_rate=0.1, num_epochs=50, progress=False)
        >>> fit.flow().sample((10,)).shape, bool(fit.losses[-1] < fit.losses[0])
        (torch.Size([10, 2]), True)
""",
)
