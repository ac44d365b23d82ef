"""What of a fit is kept so that it can go on where it was: the state of its training, and what its searches found."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from flowppl.inference.diagnostics import Diagnosis

CHUNK = 100  # steps between two looks at the clock


@dataclasses.dataclass
class Training:
    """Where a training is: all that :func:`flowppl.inference.fitting.train` knows beside what the trainer does.

    Args:
        kept: the best parameters so far.
        check: the judgement on them.
        num_affine: the affine rounds to do, with the one under way.
        num_rounds: the other rounds to do.
        losses: the losses of each ``CHUNK`` steps, a row for each restart.
        checks: the judgements at the start, for the best Gaussian if it took no rounds, and after each round.
        done: the steps of the round under way.
        seconds: how long that has taken.
        is_first: whether no round of the flow is over.
        stopped: why it ended; empty while it goes on.
    """

    kept: Any
    check: Diagnosis
    num_affine: int
    num_rounds: int
    losses: list[np.ndarray] = dataclasses.field(default_factory=list)
    checks: list[Diagnosis] = dataclasses.field(default_factory=list)
    done: int = 0
    seconds: float = 0.0
    is_first: bool = True
    stopped: str = ""

    def next_round(self) -> None:
        """The round under way is over."""
        self.num_rounds -= not self.num_affine
        self.num_affine -= self.num_affine > 0
        self.done, self.seconds = 0, 0.0


@dataclasses.dataclass
class Searches:
    """What the searches of a fit found, one after the other.

    Args:
        found: what was found before, then what is found now.
        dims: in how many dimensions each search was.
        other: makes the error for a search of a model with another number of latents.
        num_used: how many of those from before were asked for.
    """

    found: list[Any]
    dims: list[int]
    other: Callable[[], Exception]
    num_used: int = 0


_searches: contextvars.ContextVar[Searches | None] = contextvars.ContextVar("searches", default=None)


@contextlib.contextmanager
def remembering(searches: Searches | None) -> Iterator[None]:
    """In here searches that were made before are not made again."""
    token = _searches.set(searches)
    try:
        yield
    finally:
        _searches.reset(token)


def remembered(dim: int, search: Callable[[], Any]) -> Any:
    """What a search in ``dim`` dimensions finds, or found when it was made before. Those inside it are part of it."""
    searches = _searches.get()
    if searches is None:
        return search()
    if searches.num_used == len(searches.found):
        token = _searches.set(None)
        try:
            found = search()
        finally:
            _searches.reset(token)
        searches.found.append(found)
        searches.dims.append(dim)
    if searches.dims[searches.num_used] != dim:
        raise searches.other()
    searches.num_used += 1
    return searches.found[searches.num_used - 1]


class Checkpoint:
    """Where a fit is kept, to go on from there; this one keeps nothing."""

    seconds = 0.0  # of the runs before
    searches: Searches | None = None

    def describe(self, trainer: Any, told: Mapping[str, Any]) -> None:
        """Add what is known of the fit only once it has started; raise ValueError if what was kept is of another."""

    def resume(self, trainer: Any) -> Training | None:
        """Put the trainer where it was; ``None`` if it is new."""
        return None

    def keep(self, trainer: Any, training: Training, *, now: bool = False) -> None:
        """Write down where the training is: ``now``, or if that is due."""

    def finish(self, trainer: Any, history: Any) -> None:
        """Write down the result, unless a later call is to go on from where this one was stopped."""


NO_CHECKPOINT = Checkpoint()


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def alike(array: np.ndarray, expected: Any, name: str) -> np.ndarray:
    """The array; raise ValueError unless it has the shape and the dtype of another one."""
    if array.shape != tuple(expected.shape) or array.dtype != expected.dtype:
        raise ValueError(
            f"{name} has the shape {array.shape} and {array.dtype}, not {expected.shape}, {expected.dtype}"
        )
    return array
