"""What every floor uses of its arguments: checks of numbers, and fields of frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import itertools
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def check_sizes(owner: str, *, at_least: int = 1, **sizes: int) -> None:
    """Raise ValueError unless all ``sizes`` are integers of at least ``at_least``."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
            raise ValueError(f"{owner}: {name} must be an integer of at least {at_least}, got {value!r}")


def as_shape(owner: str, **shape: Sequence[int]) -> tuple[int, ...]:
    """The one ``shape`` as a tuple; raise unless it has positive integers, and at least one."""
    ((name, value),) = shape.items()
    if isinstance(value, str) or not isinstance(value, Iterable) or not tuple(value):
        raise ValueError(f"{owner}: {name} must be a tuple of sizes, such as (3, 32, 32), got {value!r}")
    for size in value:
        check_sizes(owner, **{f"each size in {name}": size})
    return tuple(int(size) for size in value)


def as_image_shape(owner: str, shape: Sequence[int]) -> tuple[int, int, int]:
    """``shape`` as a tuple; raise ValueError unless it is (channels, height, width)."""
    sizes = shape if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if len(sizes) != 3:
        raise ValueError(
            f"{owner}: shape must be (channels, height, width), such as (1, 28, 28) or (3, 32, 32), got {shape!r}"
        )
    channels, height, width = as_shape(owner, shape=sizes)
    return channels, height, width


def is_number(value: Any) -> bool:
    """Whether a value is a real number, or an array of one without axes."""
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()


def is_rising(*values: Any) -> bool:
    """Whether all are numbers, each above the one before."""
    return all(map(is_number, values)) and all(a < b for a, b in itertools.pairwise(values))


def check_positive(owner: str, **values: float) -> None:
    """Raise ValueError unless all ``values`` are positive and finite."""
    for name, value in values.items():
        if not is_rising(0, value, math.inf):
            raise ValueError(f"{owner}: {name} must be positive and finite, got {value!r}")


def without_key(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` of Pyro, which says that it takes no key if the first argument looks like one."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0] if args else None
        is_old_key = getattr(first, "shape", None) == (2,) and str(getattr(first, "dtype", "")) == "uint32"
        if is_number(first) or is_old_key:
            name = next(iter(inspect.signature(function).parameters))
            raise TypeError(
                f"{function.__name__}: the first argument is {name}, got {describe(first)}; Pyro takes no key, but "
                "pyro.set_rng_seed(0)"
            )
        return function(*args, **kwargs)

    return call


def derived() -> Any:
    """A field of a bijection that follows from the others: no argument, not compared, not printed."""
    return dataclasses.field(init=False, repr=False, compare=False)


def assign(bijection: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, within its ``__post_init__`` only."""
    for name, value in values.items():
        object.__setattr__(bijection, name, value)


def given_fields(bijection: Any) -> dict[str, Any]:
    """What a frozen dataclass was made with, by name: all fields but those that follow from others."""
    return {field.name: getattr(bijection, field.name) for field in dataclasses.fields(bijection) if field.init}


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is most like it, or nothing.

    Example:
        >>> did_you_mean("num_step", ["num_steps", "guide"])
        "; did you mean 'num_steps'?"
    """
    nearest = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def describe(value: Any) -> str:
    """A value in a message: short ones as they are, others by their type."""
    is_short = value is None or isinstance(value, str | int | float | bool)
    return repr(value) if is_short else f"{_article(type(value).__name__)} {type(value).__name__}"


def _article(word: str) -> str:
    return "an" if word[0] in "AEIOUaeiou" else "a"


def level_of_caller() -> int:
    """The ``stacklevel`` of a warning that is to point at the line of the user, who may have called it by the host."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        level, frame = level + 1, frame.f_back
    return level


_LIBRARIES = {"flowppl", "contextlib", "functools", "jax", "numpyro", "pyro", "torch"}
