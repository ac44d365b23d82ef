"""Whether data are the integers that a distribution of levels is of."""

from __future__ import annotations

from typing import Any

from flowppl._arrays.namespace import Array, namespace


def are_levels(x: Array, levels: int, num_axes: int) -> Array:
    """Whether each event, of so many last axes, has none but the integers ``0 .. levels - 1``."""
    xp = namespace(x)
    each = (x >= 0) & (x <= levels - 1) & (x == xp.floor(x))
    return xp.all(xp.reshape(each, (*x.shape[: x.ndim - num_axes], -1)), axis=-1)


def check_levels(owner: str, name: str, x: Any, levels: int) -> None:
    """Raise ValueError unless all numbers of an array are integers ``0 .. levels - 1``, in any dtype.

    Args:
        owner: who asks, for messages.
        name: what the array is called.
        x: the array, which must have values.
        levels: the number of integers.
    """
    xp = namespace(x)
    num = x.size if isinstance(x.size, int) else x.numel()
    if not num:
        return
    num_wrong = num - int(xp.sum(xp.astype(are_levels(x, levels, 0), xp.int32)))
    if not num_wrong:
        return
    low, high = float(xp.min(x)), float(xp.max(x))
    if low >= 0 and high <= 1:
        advice = f"numbers between 0 and 1 become levels by round(x * {levels - 1})"
    elif low >= 0 and high > levels - 1:
        advice = f"let levels be {int(high) + 1}, or take fewer by x * {levels} // {int(high) + 1}"
    else:
        advice = f"shift, scale and round them to 0 .. {levels - 1}"
    raise ValueError(
        f"{owner}: {name} must hold integers from 0 to {levels - 1}, since levels={levels}, but {num_wrong} of its "
        f"{num} numbers are none of them, and they range from {low:g} to {high:g}; {advice}"
    )
