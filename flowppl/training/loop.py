"""How trainings go on from a checkpoint, and what their trainers do."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from flowppl.checks import check_positive, check_sizes, is_number
from flowppl.inference.batches import ALONE, Workers
from flowppl.inference.epochs import Callback, Progress, run_epochs, scheduled_rate
from flowppl.serialization import check_entries, check_target, write_file
from flowppl.training.checkpoints import (
    LOSS,
    PROGRESS,
    check_same,
    digest,
    is_near,
    other_training,
    read_checkpoint,
)


class Trainer(Protocol):
    """What an adapter does for :func:`train`: the arrays and the steps. States are dicts of NumPy arrays."""

    def weights(self) -> dict[str, np.ndarray]:
        """A copy of the present weights."""

    def averages(self) -> dict[str, np.ndarray]:
        """A copy of their averages, whose loss is the validation loss; without ``ema_decay`` of the weights."""

    def state(self) -> dict[str, np.ndarray]:
        """What is needed beside the weights to go on: the averages and the optimiser's memory."""

    def restore(self, weights: dict[str, np.ndarray], state: dict[str, np.ndarray] | None) -> None:
        """Go back to weights, and to such a state."""


SomeTrainer = TypeVar("SomeTrainer", bound=Trainer)


def train(
    owner: str,
    make_trainer: Callable[[int], tuple[SomeTrainer, int, dict[str, Any]]],
    run_epoch: Callable[[SomeTrainer, int, np.ndarray], tuple[Sequence[float], float | None]],
    seed: int,
    *,
    learning_rate: float | Callable[[int], float] | None,
    batch_size: int,
    num_epochs: int,
    patience: int | None,
    judged_from: int = 0,
    checkpoint: Any,
    probe: Callable[[SomeTrainer], list[float]] | None = None,
    fixed: dict[str, Any],
    row_counts: Callable[[], Sequence[int]] | None = None,
    callback: Callback | None,
    progress: bool | None,
    advice: str,
    workers: Workers = ALONE,
) -> tuple[SomeTrainer, dict[str, Any]]:
    """Train from the start or from the checkpoint.

    Args:
        owner: who trains, for messages.
        make_trainer: makes of a seed a trainer, and gives the number of its rows, and the arrays by which other data
            are told, by name; ``None`` for what is not there.
        run_epoch: trains one epoch on the rows in this order; gives the loss of each step, NaN where skipped, and the
            validation loss.
        seed: determines the held-out rows, the orders and the noise, unless a checkpoint does; the first
            process's counts.
        learning_rate: what a checkpoint is to tell of it; of a function, which gives the same at each call, its values
            of the epochs that are done.
        fixed: what must be the same when a training goes on, in plain values.
        probe: numbers that the present weights give, by which another model is told; all processes call it.
        batch_size, num_epochs, patience, judged_from, row_counts, callback, progress, advice: as for
            :func:`flowppl.inference.epochs.run_epochs`.
        workers: the processes that train together.

    Returns:
        The trainer, with the best weights, and the arguments of :class:`flowppl.inference.epochs.Epochs`.
    """
    if checkpoint is not None:
        check_target(checkpoint)
    path = None if checkpoint is None else pathlib.Path(checkpoint)
    saved = None if path is None or not path.exists() else read_checkpoint(owner, path)
    seed = int(workers.gather([seed if saved is None else saved[0]["seed"]])[0, 0])
    trainer, num_rows, data = make_trainer(seed)
    first = best = trainer.weights()
    done = Progress()
    fixed = fixed | {"batch_size": batch_size}
    fixed = {name: value.item() if isinstance(value, np.generic) else value for name, value in fixed.items()}
    if path is not None:
        fixed |= {name: None if array is None else digest(array) for name, array in data.items()}

    def told_rate():
        if learning_rate is None or not callable(learning_rate):
            return {"learning_rate": None if learning_rate is None else float(learning_rate)}
        rates = [float(scheduled_rate(owner, learning_rate, epoch)) for epoch in range(len(done.losses))]
        return {"learning_rate": [digest(np.array(rates))]}

    if saved is not None:
        config, now, best, state = saved
        check_entries(f"{path}: its progress", config["progress"], PROGRESS)
        done = Progress(**config["progress"])
        check_same(path, fixed | told_rate(), config["fixed"], first, now)
        try:
            trainer.restore(now, state)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} does not hold the state of this training ({error}); name another file") from error
        if probe is not None and LOSS in config["fixed"]:
            is_same = False
            try:
                is_same = is_near(probe(trainer), config["fixed"][LOSS])
            finally:
                if not is_same:
                    trainer.restore(first, None)
            if not is_same:
                raise other_training(path, [LOSS])

    if workers.size > 1:
        _check_together(owner, workers, len(done.losses), num_rows, data)

    def run(epoch):
        return run_epoch(trainer, epoch, np.random.default_rng([seed, epoch]).permutation(num_rows))

    def keep():
        nonlocal best
        best = trainer.averages()

    def save():
        if path is None:
            return
        told = fixed | told_rate() | ({} if probe is None else {LOSS: probe(trainer)})
        if workers.rank == 0:
            parts = {"now": trainer.weights(), "best": best, "state": trainer.state()}
            arrays = {f"{part}/{name}": array for part, tree in parts.items() for name, array in tree.items()}
            config = {"kind": "checkpoint", "seed": seed, "fixed": told, "progress": dataclasses.asdict(done)}
            write_file(path, config, arrays)

    def stop(epoch, loss):
        return bool(workers.gather([bool(callback(epoch, loss))])[0, 0])  # type: ignore[misc]

    try:
        run_epochs(
            owner,
            run,
            keep,
            done,
            num_rows=num_rows,
            batch_size=batch_size,
            num_epochs=num_epochs,
            patience=patience,
            judged_from=judged_from,
            after_epoch=save,
            callback=stop if workers.size > 1 and callable(callback) else callback,
            row_counts=row_counts,
            bar=progress if workers.rank == 0 else False,
            advice=advice,
        )
    finally:
        trainer.restore(best, None)
    return trainer, done.record()


def _check_together(owner, workers, done, num_rows, data):
    """Raise ValueError unless all processes have the same rows and go on from the same epoch."""
    rows = [digest(array[:64]) >> 1 for array in data.values() if array is not None]  # 31 bits, as all integers have
    facts = workers.gather([done, num_rows, len(rows), *rows])
    if (facts[:, 0] != done).any():
        raise ValueError(
            f"{owner}: the processes go on from different epochs, {facts[:, 0].tolist()}; the checkpoint must lie "
            "where all of them can read it"
        )
    if (facts != facts[0]).any():
        raise ValueError(
            f"{owner}: the processes were given different data. Give all of them the same arrays, of which each takes "
            "its share, or each one batches of its own, such as a DataLoader with a DistributedSampler"
        )


def average_share(ema_decay: Any, num_steps: Any) -> Any:
    """The share of the last of so many steps in the average of their weights."""
    return (1 - ema_decay) / (1 - ema_decay**num_steps)


def check_options(
    owner: str, *, learning_rate, warm_up, patience, checkpoint, optimizer, clip_norm, ema_decay, **sizes
) -> None:
    """Raise ValueError for an option of a training that cannot be meant."""
    check_sizes(owner, **sizes, **({} if patience is None else {"patience": patience}))
    check_sizes(owner, at_least=0, warm_up=warm_up)
    check_positive(owner, learning_rate=1 if learning_rate is None or callable(learning_rate) else learning_rate)
    check_positive(owner, clip_norm=1 if clip_norm is None else clip_norm)
    if not is_number(ema_decay) or not 0 <= ema_decay < 1:
        raise ValueError(f"{owner}: ema_decay must be at least 0 and below 1, such as 0.999, got {ema_decay!r}")
    check_goes_on(owner, checkpoint, optimizer)


def check_goes_on(owner: str, checkpoint: Any, optimizer: Any) -> None:
    """Raise ValueError for a checkpoint of a training by an optimiser of the host."""
    if checkpoint is not None and not isinstance(optimizer, str):
        raise ValueError(
            f"{owner}: a checkpoint cannot tell an optimizer of the host, nor where its schedule is, so that the "
            "training would not go on as it was; give optimizer='adam' or 'adamax', or no checkpoint"
        )
