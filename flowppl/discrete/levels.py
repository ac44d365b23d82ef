"""Whether data are the integers that a distribution of levels is of."""

from __future__ import annotations

from typing import Any

from flowppl._arrays.namespace import Array, namespace


def are_levels(x: Array, levels: int, num_axes: int) -> Array:
    """Whether each event, of so many last axes, has none but the integers ``0 .. levels - 1``."""
    xp = namespace(x)
    x = x if x.dtype == xp.float64 else xp.astype(x, xp.float32)  # others may not hold the number of levels
    each = (x >= 0) & (x <= levels - 1) & (x == xp.floor(x))
    return xp.all(each, axis=tuple(range(x.ndim - num_axes, x.ndim))) if num_axes else each


def check_precision(owner: str, array: Array, levels: int, parts: int) -> None:
    """Raise ValueError unless the dtype of an array can part the range of the levels into ``parts`` for each."""
    if levels * parts * float(namespace(array).finfo(array.dtype).eps) > 2:
        raise ValueError(
            f"{owner}: {array.dtype} has too few numbers for levels={levels}; let the weights be of float32 or float64"
        )


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


def check_images(owner: str, found: Any, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless an array of this shape holds images of the shape ``shape``."""
    if tuple(found[len(found) - len(shape) :]) != shape:
        one = "; one channel is an axis too: x[:, None]" if tuple(found[1:]) == shape[1:] and shape[0] == 1 else ""
        raise ValueError(
            f"{owner}: the data must have the shape (..., {', '.join(map(str, shape))}), got {tuple(found)}{one}"
        )


def check_context(owner: str, size: int, context: Any) -> None:
    """Raise ValueError unless a context is there if one of this size is needed, and only then."""
    if context is not None and not hasattr(context, "shape"):
        raise TypeError(f"{owner}: the context must be an array, got {type(context).__name__}")
    found = None if context is None else tuple(context.shape)
    if size and (found is None or found[-1:] != (size,)):
        raise ValueError(f"{owner}: it needs a context whose last axis has size {size}, got {found or 'none'}")
    if not size and found is not None:
        raise ValueError(f"{owner}: it takes no context, but was given one of shape {found}; build it with context_dim")
