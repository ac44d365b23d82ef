"""Data that need not fit in memory: iterables of batches, memory-mapped arrays, and the share of each process."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from flowppl._arrays.namespace import Array, namespace

INIT_ROWS = 4096  # of the training data, for layers that start from data

Rows = tuple[Array, Array | None]  # x and its context
Step = tuple[Rows, np.ndarray]  # rows of a step that one process has, and how many count in each of the processes


class Workers:
    """The processes that take the steps of a training together; here one alone, and in the adapters several.

    Args:
        rank: the number of this one, from 0. The first writes checkpoints and shows the progress.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def gather(self, numbers: list[int]) -> np.ndarray:
        """The whole numbers of all processes, a row for each; all of them must call this."""
        return np.array([numbers])

    def share(self, num_rows: int) -> tuple[slice, np.ndarray]:
        """Which of the rows of a batch are this process's, and how many each process has.

        Where there are not enough for all, a process without any computes one of another's, which counts for nothing.
        """
        ends = num_rows * np.arange(self.size + 1) // self.size
        own = slice(*ends[self.rank : self.rank + 2].tolist())
        return own if own.start < own.stop else slice(0, 1), np.diff(ends)

    def place(self, counts: np.ndarray, num_rows: int) -> slice:
        """Where the rows of this process, as many as that, stand in the batch of all."""
        start = int(counts[: self.rank].sum()) if counts[self.rank] else 0
        return slice(start, start + num_rows)


ALONE = Workers()


def is_batches(owner: str, x: Any) -> bool:
    """Whether ``x`` is an iterable of batches, such as a ``DataLoader``, or a function that gives one.

    Raises:
        TypeError: for an iterator, which can be read once only.
    """
    if isinstance(x, list | tuple | dict | str | type) or not (hasattr(x, "__iter__") or callable(x)):
        return False
    if any(hasattr(x, name) for name in ("shape", "__array__", "__dataframe__")):
        return False
    if hasattr(x, "__next__"):
        raise TypeError(
            f"{owner}: x is a {type(x).__name__}, which can be read once, but each epoch reads all batches; give an "
            "array, an object that starts anew each time, such as a DataLoader, or the function that makes the "
            f"{type(x).__name__}"
        )
    return True


class Batches:
    """Rows to train on from an iterable of batches, read and checked as they come.

    Args:
        owner: who trains, for messages.
        source: the iterable, which starts anew in each epoch, or a function that gives one.
        read: makes checked rows of a batch.
    """

    def __init__(
        self, owner: str, source: Iterable[Any] | Callable[[], Iterable[Any]], read: Callable[[Any], Rows]
    ) -> None:
        self.owner, self.source, self.read = owner, source, read
        self.counts: list[int] = []  # the rows of each step of the last pass, those of all processes

    def __iter__(self) -> Iterator[Rows]:
        source: Any = self.source
        source, is_empty = source if hasattr(source, "__iter__") else source(), True
        if not hasattr(source, "__iter__"):
            raise TypeError(f"{self.owner}: x must be a function that gives batches, but gave {type(source).__name__}")
        for batch in source:
            is_empty = False
            yield self.read(batch)
        if is_empty:
            raise ValueError(f"{self.owner}: x gave no batch; each epoch needs all of them anew")

    def first(self, num_rows: int = INIT_ROWS) -> Rows:
        """The first rows, about so many if there are."""
        rows, count = [], 0
        for batch in self:
            rows.append(batch)
            count += len(batch[0])
            if count >= num_rows:
                break
        return concat(rows)

    def steps(self, workers: Workers = ALONE) -> Iterator[Step]:
        """The batches of this process, until no process has any more; then its last one, which counts for nothing."""
        self.counts, last = [], None
        for batch in itertools.chain(self, itertools.repeat(None)):
            counts = workers.gather([0 if batch is None else len(batch[0])])[:, 0]
            if not counts.any():
                return
            last = last if batch is None else batch
            self.counts.append(int(counts.sum()))
            yield last, counts  # type: ignore[misc]


def steps(take: Callable[[slice], Rows], num_rows: int, batch_size: int, workers: Workers = ALONE) -> Iterator[Step]:
    """The steps of a pass over rows of which this process takes its share.

    Args:
        take: gives the rows at some places of this pass.
        num_rows: the number of rows.
        batch_size: the number of rows of a step of all processes; the last takes what is left.
    """
    for start in range(0, num_rows, batch_size):
        own, counts = workers.share(min(batch_size, num_rows - start))
        yield take(slice(start + own.start, start + own.stop)), counts


class Mapped:
    """Rows of a memory-mapped array, or the contexts of such, in an order of their own, read when they are asked for.

    Args:
        array: the array.
        order: the indices of the rows.
        read: makes checked rows of those of the array.
    """

    def __init__(self, array: Any, order: np.ndarray, read: Callable[[Any], Any] = lambda rows: rows) -> None:
        self.array, self.order, self.read = array, order, read

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, rows: Any) -> Any:
        found = self.array[self.order[rows]]
        return self.read(np.array(found) if isinstance(found, np.ndarray) else found)

    def take(self, rows: np.ndarray) -> Mapped:
        """Some of these rows, as a view."""
        return Mapped(self.array, self.order[rows], self.read)


def concat(rows: list[Rows]) -> Rows:
    """Rows of several batches as one."""
    xp = namespace(rows[0][0])
    contexts = [context for _, context in rows if context is not None]
    return xp.concat([x for x, _ in rows], axis=0), xp.concat(contexts, axis=0) if contexts else None
