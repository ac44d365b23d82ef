"""What the objectives of both adapters share: what is the same in any array library."""

from __future__ import annotations

import math

from flowppl._arrays.namespace import Array, namespace
from flowppl.bijections.contract import Bijection
from flowppl.checks import is_rising


def renyi_loss(log_p: Array, log_w: Array, path: Array, scale: float, alpha: float) -> Array:
    """The bound of K draws, or minus a lower one, with doubly reparameterised gradients; particles are the first axis.

    Args:
        log_p: the log density of the model, whose gradient reaches the model's parameters alone.
        log_w: the log weights, of any gradient.
        path: anything that has the gradient of the log weights along the paths of the draws.
        scale: the factor by which all three were scaled for subsampling.
        alpha: the order; below 0 the bound is an upper one, by which no model is trained.
    """
    xp, power = namespace(log_w), 1 - alpha
    held = xp.stop_gradient(log_w) / scale
    top = xp.max(held, axis=0) if power > 0 else xp.min(held, axis=0)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    off = power * (held - top)
    # Of the differences, so that no digits are lost where the order is near 1, and the powers near 1 too.
    bound = scale * xp.sum(top + xp.log1p(xp.mean(xp.expm1(off), axis=0)) / power)
    weight = xp.softmax(off)
    # What has no weight may be infinitely far, where the model has no density.
    zeros, has_weight = xp.zeros_like(log_w), weight > 0
    weight, log_p, path = (xp.where(has_weight, array, zeros) for array in (weight, log_p, path))
    # The path holds for the draws of which the weight consists, too: hence its square.
    slopes = xp.sum((alpha * weight + power * weight**2) * path)
    if alpha >= 0:
        slopes = slopes + xp.sum(weight * log_p)
    sign = 1 if alpha < 0 else -1
    return sign * (bound + (slopes - xp.stop_gradient(slopes)))


def check_order(alpha: float) -> None:
    """Raise ValueError unless there is a bound of this order."""
    if not is_rising(-math.inf, alpha, math.inf) or alpha == 1:
        raise ValueError(
            f"RenyiELBO: alpha must be a finite number other than 1, got {alpha!r}; that of order 1 is the ELBO: "
            "PathELBO"
        )


def particles_of(alpha: float) -> int:
    """How many draws a bound of this order takes unless told; of few, one from above may let the guide collapse."""
    return 16 if alpha >= 0 else 128


def common_plates(objective: str, stacks, sizes) -> tuple[set[int], float]:
    """The axes of the plates that enclose all sites, and the factor by which these are subsampled.

    Args:
        objective: whose weights they are, for messages.
        stacks: for each site its plates as (name, axis, size); the axis of one that is a loop is ``None``.
        sizes: the full size of each plate by its name.

    Raises:
        ValueError: if a plate that does not enclose all sites is subsampled.
    """
    stacks = [set(stack) for stack in stacks]
    common = {plate for plate in (set.intersection(*stacks) if stacks else set()) if plate[1] is not None}
    for name, _, size in set.union(*stacks, set()) - common:
        if sizes[name] > size:
            raise ValueError(
                f"{objective}: plate {name!r} is subsampled but does not enclose all sites as one array: the weights "
                "of global latents need all data. Do not subsample, or use PathELBO"
            )
    return {axis for _, axis, _ in common}, math.prod(sizes[name] / size for name, _, size in common)


def sum_outside(log_prob: Array, axes: set[int]) -> Array:
    """Sum over all axes but these, counted from the right; the summed ones stay, with size 1."""
    others = tuple(axis for axis in range(-log_prob.ndim, 0) if axis not in axes)
    return namespace(log_prob).sum(log_prob, axis=others, keepdims=True) if others else log_prob


def solves(bijection: Bijection) -> bool:
    """Whether the inverse near a known point is better solved for with the Jacobian than run: it is sequential."""
    return bijection.inverse_cost == "sequential" and len(bijection.x_shape) == len(bijection.y_shape) == 1


def check_reparameterised(objective: str, site: str, fn) -> None:
    """Raise ValueError unless the draws of ``fn`` carry gradients to its parameters."""
    if not getattr(fn, "has_rsample", False):
        raise ValueError(
            f"{objective} needs reparameterised guides, but site {site!r} draws from {type(fn).__name__}, whose draws "
            "carry no gradient; sum discrete latents out, or use an ELBO with score-function gradients"
        )


def check_simulated(data: dict[str, str], guide_sites, model_sites) -> None:
    """Raise ValueError unless the model draws all that the guide scores and is given."""
    for what, names in (("the data", data.values()), ("the guide", guide_sites)):
        missing = sorted(set(names) - set(model_sites))
        if missing:
            raise ValueError(
                f"ForwardKL: {what} has the site {missing[0]!r}, which the model does not draw; it draws "
                f"{', '.join(model_sites) or 'nothing'}. Name the model's sites, with no auxiliary ones"
            )
