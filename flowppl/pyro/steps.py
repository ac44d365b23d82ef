"""Steps of torch's optimisers that leave out what is not finite."""

from __future__ import annotations

import math

import torch


def take_step(optimizer: torch.optim.Optimizer, parameters, loss: float, clip_norm: float) -> float:
    """Step along the gradients that the parameters hold, and forget these.

    Returns:
        The loss; NaN, and no step was taken, if it or a gradient is not finite.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    taken = math.isfinite(loss) and bool(norm.isfinite())
    if taken:
        optimizer.step()
    optimizer.zero_grad()
    return loss if taken else math.nan
