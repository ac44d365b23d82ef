"""What every floor uses of its arguments: checks of numbers, and fields of frozen dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any


def check_sizes(owner: str, *, at_least: int = 1, **sizes: int) -> None:
    """Raise ValueError unless all ``sizes`` are integers of at least ``at_least``."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < at_least:
            raise ValueError(f"{owner}: {name} must be an integer of at least {at_least}, got {value!r}")


def check_positive(owner: str, **values: float) -> None:
    """Raise ValueError unless all ``values`` are positive and finite."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{owner}: {name} must be positive and finite, got {value!r}")


def derived() -> Any:
    """A field of a bijection that follows from the others: no argument, not compared, not printed."""
    return dataclasses.field(init=False, repr=False, compare=False)


def assign(bijection: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, within its ``__post_init__`` only."""
    for name, value in values.items():
        object.__setattr__(bijection, name, value)


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
