"""How weights are declared: a shape, and an initializer that draws the first value when an adapter asks for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

from flowppl._arrays.namespace import Array


class Draws(Protocol):
    """Where initial values come from: the adapter's own random numbers, dtype and device."""

    def full(self, shape: tuple[int, ...], value: float) -> Array: ...
    def normal(self, shape: tuple[int, ...]) -> Array: ...
    def uniform(self, shape: tuple[int, ...]) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """Initializer: every entry is ``value``."""

    value: float = 0.0

    def __call__(self, draws: Draws, shape: tuple[int, ...]) -> Array:
        return draws.full(shape, self.value)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Initializer: independent normal entries of mean 0 and standard deviation ``scale``."""

    scale: float

    def __call__(self, draws: Draws, shape: tuple[int, ...]) -> Array:
        return self.scale * draws.normal(shape)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Initializer: independent uniform entries between ``-bound`` and ``bound``."""

    bound: float

    def __call__(self, draws: Draws, shape: tuple[int, ...]) -> Array:
        return self.bound * (2 * draws.uniform(shape) - 1)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The declaration of one trained array: its shape, and how its first value is drawn."""

    shape: tuple[int, ...]
    initializer: Callable[[Draws, tuple[int, ...]], Array] = Constant(0.0)
