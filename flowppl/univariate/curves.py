"""What maps share that are curves on a box: bins, positive slopes, straight tails, and the way back by a root."""

from __future__ import annotations

import math
from typing import Any

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.roots import Equation, bracketed_root
from flowppl.checks import check_positive, check_sizes

MIN_BIN = 1e-3  # of the width and the height of the whole box
MIN_SLOPE = 1e-3
MAX_SLOPE = 1e8  # its square is still a number in float32
UNIT_SLOPE = math.log(math.expm1(1 - MIN_SLOPE))  # softplus(UNIT_SLOPE) + MIN_SLOPE = 1


def check_box(owner: str, bound: float) -> None:
    """Raise ValueError unless the half-width of a box is positive and finite."""
    check_positive(owner, bound=bound)


def check_bins(spline: Any) -> None:
    """Raise ValueError unless a spline's number of bins and bound make a box."""
    name = type(spline).__name__
    check_sizes(name, num_bins=spline.num_bins)
    if spline.num_bins > 500:
        raise ValueError(f"{name}: num_bins must be at most 500, since every bin keeps {MIN_BIN} of the box")
    check_box(name, spline.bound)


def knots(raw: Array, bound: float) -> tuple[Array, Array]:
    """The sizes of the bins from -bound to bound, for any raw numbers, and where each ends."""
    xp, num_bins, size = namespace(raw), raw.shape[0], 2 * bound
    sizes = MIN_BIN * size + (1 - MIN_BIN * num_bins) * size * xp.softmax(raw)
    return sizes, xp.cumulative_sum(sizes, axis=0) - bound


def bin_of(start: Array, ends: Array) -> Array:
    """The number of the bin that each entry lies in."""
    xp = namespace(start)
    return xp.sum(xp.astype(start >= ends[:-1, ...], xp.int32), axis=0)


def positive_slope(raw: Array) -> Array:
    """A slope for any raw number, 1 for 0."""
    xp = namespace(raw)
    slope = xp.softplus(raw + UNIT_SLOPE) + MIN_SLOPE
    return xp.minimum(slope, xp.full_like(slope, MAX_SLOPE))


def put_back(x: Array, low: float, high: float) -> Array:
    """``x`` between the bounds that only rounding can have crossed; its derivative stays 1."""
    xp = namespace(x)
    return x + xp.stop_gradient(xp.clip(x, low, high) - x)


def clipped(x: Array, low: Array | float, high: Array | float) -> Array:
    """``x``, or the end of the interval that it lies beyond; at the end itself it has the derivative of x."""
    xp = namespace(x)
    zero = xp.zeros_like(x)
    return xp.where(x < low, zero + low, xp.where(x > high, zero + high, x))


End = tuple[Array | float, Array | float, Array]


def with_tails(start: Array, inside: tuple[Array, Array], low: End, high: End) -> tuple[Array, Array]:
    """What a map gives between two points, ``(start, end, log_slope)`` each, and straight lines beyond them."""
    xp = namespace(start)
    end, log_slope = inside
    for is_beyond, (start_there, end_there, line) in ((start < low[0], low), (start > high[0], high)):
        end = xp.where(is_beyond, end_there + xp.exp(line) * (start - start_there), end)
        log_slope = xp.where(is_beyond, line, log_slope)
    return end, log_slope


def up(curve: Equation, args: tuple[Array, ...], x: Array, bound: float) -> tuple[Array, Array]:
    """Along a curve, which gives its value and its slope, between the ends of the box, and straight on beyond them."""
    inner = clipped(x, -bound, bound)
    y, slope = curve(inner, *args)
    return y + slope * (x - inner), namespace(y).log(slope)


def down(curve: Equation, args: tuple[Array, ...], y: Array, bound: float) -> tuple[Array, Array]:
    """The way back from :func:`up`, by a search for the root between the ends of the box."""
    xp = namespace(y)

    def end_at(x):
        value, slope = curve(xp.full_like(y, x), *args)
        return value, x, -xp.log(slope)

    def equation(x, y, *args):
        value, slope = curve(x, *args)
        return value - y, slope

    low, high = end_at(-bound), end_at(bound)
    inner = clipped(y + xp.zeros_like(low[0]), low[0], high[0])
    lower, upper = 0 * inner - bound, 0 * inner + bound  # no numbers where y is none
    x = put_back(bracketed_root(equation, (inner, *args), lower, upper, num_steps=24), -bound, bound)
    return with_tails(y, (x, -xp.log(curve(x, *args)[1])), low, high)
