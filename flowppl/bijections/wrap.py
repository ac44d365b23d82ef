"""What the wrappers of both adapters share: the checks and the errors."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Iterable
from typing import Any

from flowppl._arrays.namespace import Array
from flowppl.bijections.contract import REAL_LINE
from flowppl.checks import check_sizes


@dataclasses.dataclass(frozen=True, eq=False)
class Present:
    """Initializer: the value that the host transform has when the weights are drawn, as ``copy`` takes it."""

    value: Array
    copy: Callable[[Array], Array]

    def __call__(self, draws: Any, shape: tuple[int, ...]) -> Array:
        return self.copy(self.value)


def check_host(transform: Any, kind: type, name: str) -> None:
    """Raise TypeError unless ``transform`` is one of the host's."""
    if not isinstance(transform, kind):
        what = f"the class {transform.__name__}" if isinstance(transform, type) else type(transform).__name__
        raise TypeError(f"Wrap: expected {name}, got {what}")


def as_event_shape(transform: Any, shape: Any) -> tuple[int, ...]:
    """``shape`` as a tuple, checked against the number of axes of the transform's events."""
    shape = (shape,) if isinstance(shape, numbers.Integral) else tuple(shape)
    for size in shape:
        check_sizes("Wrap", shape=size)
    name, axes = type(transform).__name__, transform.domain.event_dim
    if axes > len(shape):
        raise ValueError(f"Wrap: {name} maps events of {axes} axes, but shape={shape} has {len(shape)}")
    return shape


def interval(constraint: Any) -> tuple[float, float]:
    """The bounds that a host's constraint sets to every entry, as far as they are numbers."""
    constraint = getattr(constraint, "base_constraint", constraint)  # of an independent one
    low, high = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    return (
        float(low) if isinstance(low, numbers.Real) else REAL_LINE[0],
        float(high) if isinstance(high, numbers.Real) else REAL_LINE[1],
    )


def check_single(name: str, leaf: Array, shape: tuple[int, ...]) -> None:
    """Raise ValueError if a weight has batch axes in front of its shape."""
    if leaf.ndim > len(shape):
        raise ValueError(
            f"Wrap: the weight {name} came with batch axes, the shape {tuple(leaf.shape)}, but a wrapped transform "
            "takes one set of weights; use a bijection of flowppl here (as inside Conditional), or map over the sets "
            "with the host's vmap"
        )


def one_way(transforms: Iterable[Any], inverse: type, both_ways: Iterable[type]) -> NotImplementedError:
    """The error for a host transform, made of these transforms, that does not have the direction asked for.

    Args:
        transforms: the transforms.
        inverse: the class of the host's inverted transforms.
        both_ways: flowppl's own bijections.
    """
    names = [type(part).__name__ for part in transforms if not isinstance(part, inverse)]
    ours = [kind.__name__ for kind in both_ways if kind.__name__ in names]
    remedy = f"use flowppl.{ours[0]}, which has both" if ours else "use a bijection of flowppl: all have both"
    return NotImplementedError(f"Wrap: {names[0]} does not map in this direction; {remedy}")
