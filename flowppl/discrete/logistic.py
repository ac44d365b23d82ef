"""A mixture of logistics, rounded to integers."""

from __future__ import annotations

import math

from flowppl._arrays.namespace import Array, namespace
from flowppl.checks import check_sizes
from flowppl.discrete.levels import are_levels, check_precision
from flowppl.univariate.base import align, bounded

LOG_SCALE_BOUND = 7.0  # of components that a network makes: from a hundredth of a level to the whole range, and beyond


def log_prob(x: Array, log_weights: Array, loc: Array, scale: Array, levels: int) -> Array:
    r"""The log probability of integers; minus infinity for what is none of ``0 .. levels - 1``.

    With the logistic distribution function :math:`\sigma`, and a and b the ends of the interval that is rounded to x,
    each less the location and divided by the scale, a component has

    .. math::
        \sigma(b) - \sigma(a) = \sigma(b)\, \sigma(-a)\, \big(1 - e^{a - b}\big),

    whose logarithm is exact in both tails. At the ends of the range a or b is infinite.

    Args:
        x: integers, in any dtype.
        log_weights: the logarithms of the weights of the components, with these along the first axis; so for the next
            two.
        loc: the locations.
        scale: the scales.
        levels: the number of integers.
    """
    xp = namespace(loc)
    inside = are_levels(x, levels, 0)
    log_weights, loc, scale = (align(part, x) for part in (log_weights, loc, scale))
    rate = 1 / scale
    check_precision("DiscretizedLogisticMixture", rate, levels, 1)
    x = xp.astype(x, rate.dtype)
    x = xp.where(inside, x, xp.zeros_like(x))
    none = xp.zeros_like((x - loc) * rate)
    from_below = xp.where(x > 0, -xp.softplus((x - loc - 0.5) * rate), none)  # log sigmoid(-a)
    from_above = xp.where(x < levels - 1, -xp.softplus((loc - x - 0.5) * rate), none)  # log sigmoid(b)
    between = xp.where((x > 0) & (x < levels - 1), xp.log(-xp.expm1(-rate)), none)
    total = xp.logsumexp(log_weights + from_below + from_above + between)
    return xp.where(inside, total, xp.full_like(total, -math.inf))


def moments(weights: Array, loc: Array, scale: Array, levels: int) -> tuple[Array, Array]:
    """The mean and the variance, from the probabilities of being beyond each number, seen from a centre."""
    xp = namespace(loc)
    centre = xp.round(xp.sum(weights * xp.clip(loc, 0, levels - 1), axis=0))

    def add(i, sums):
        side = xp.where(i < centre, -xp.ones_like(centre), xp.ones_like(centre))
        beyond = xp.sum(weights * xp.sigmoid(side * (loc - 0.5 - i) / scale), axis=0)  # at most i, or at least i + 1
        return sums[0] + side * beyond, sums[1] + side * (2 * (i - centre) + 1) * beyond

    none = xp.zeros_like(xp.sum(weights * loc * scale, axis=0))
    mean, square = xp.fori_loop(levels - 1, add, (none, none))
    return centre + mean, square - mean**2


def rounded(x: Array, levels: int) -> Array:
    """Numbers rounded to the nearest of the integers ``0 .. levels - 1``, in their dtype."""
    return namespace(x).clip(namespace(x).round(x), 0, levels - 1)


def from_raw(raw: Array, levels: int) -> tuple[Array, Array, Array]:
    r"""Logits, locations and scales of K components from any 3 K real numbers along the first axis.

    At zero the components lie side by side over the whole range, so that they do not all learn the same.
    """
    xp = namespace(raw)
    check_sizes("DiscretizedLogisticMixture", at_least=2, levels=levels)
    num = raw.shape[0] // 3
    if raw.ndim == 0 or num == 0 or raw.shape[0] != 3 * num:
        raise ValueError(
            "DiscretizedLogisticMixture: raw needs 3 numbers for each component along its last axis, got a length of "
            f"{raw.shape[0]}; let the network give 3 * num_components"
        )
    logits, loc, log_scale = xp.split(raw, (num, num, num))
    count = xp.cumulative_sum(xp.ones_like(loc), axis=0)
    loc = (levels - 1) * ((count - 0.5) / num + loc / 2)
    return logits, loc, (levels - 1) / (2 * num) * xp.exp(bounded(log_scale, LOG_SCALE_BOUND))
