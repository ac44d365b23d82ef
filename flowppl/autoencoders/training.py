"""How the variational autoencoders of both adapters are trained: the options, the loop and its record."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from flowppl.autoencoders.checkpoints import PROGRESS, check_same, digest, read_checkpoint
from flowppl.autoencoders.data import is_share
from flowppl.checks import check_positive, check_sizes
from flowppl.inference.epochs import Callback, Epochs, Progress, hold_out, run_epochs
from flowppl.serialization import check_entries, check_target, write_file

VAE = TypeVar("VAE")
Params = TypeVar("Params")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class VAEFit(Epochs, Generic[VAE, Params]):
    """The autoencoder that ``fit_vae`` trained, and the record of its training.

    Beside the two below it has the fields of :class:`flowppl.inference.epochs.Epochs`: ``losses``,
    ``validation_losses``, ``best_epoch``, ``stopped`` and ``num_skipped``. A loss is minus the ELBO of a datum, in
    nats, its KL term weighted as ``warm_up`` and ``free_bits`` say; a validation loss is minus the ELBO itself.

    Args:
        vae: the autoencoder.
        params: its weights of ``best_epoch``, by name; in Pyro the autoencoder has them too.
    """

    vae: VAE
    params: Params


class Trainer(Protocol):
    """What an adapter does for :func:`train`: the arrays and the steps. States are dicts of NumPy arrays."""

    def run_epoch(
        self, epoch: int, order: np.ndarray, rate: float | None, beta: float
    ) -> tuple[list[float], float | None]:
        """Train on the rows in this order; give the loss of each step, NaN where skipped, and the validation loss."""

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
    make_trainer: Callable[[Any, Any, int], SomeTrainer],
    x: Any,
    validation: Any,
    seed: int,
    *,
    batch_size: int,
    num_epochs: int,
    learning_rate: float | Callable[[int], float] | None,
    warm_up: int,
    patience: int | None,
    checkpoint: Any,
    fixed: dict[str, Any],
    callback: Callback | None,
    progress: bool | None,
) -> tuple[SomeTrainer, dict[str, Any]]:
    """Train from the start or from the checkpoint.

    Args:
        make_trainer: makes a trainer of the data, the held-out data or ``None``, and a seed.
        seed: determines the held-out rows, the orders and the noise, unless a checkpoint does.
        learning_rate: as for ``fit_vae``; ``None`` for an optimiser that has its own.
        fixed: what must be the same when a training goes on, in plain values.

    Returns:
        The trainer, with the best weights, and the arguments of :class:`Epochs`.
    """
    path = None if checkpoint is None else pathlib.Path(checkpoint)
    if path is not None:
        check_target(path)
    saved = None if path is None or not path.exists() else read_checkpoint(path)
    seed = seed if saved is None else saved[0]["seed"]
    data, held_out = x, validation
    if is_share(validation):
        rows, held_rows = hold_out("fit_vae", validation, len(x), np.random.default_rng(seed))
        data, held_out = (x[rows], x[held_rows]) if len(held_rows) else (x, None)
    trainer = make_trainer(data, held_out, seed)
    first = best = trainer.weights()
    done = Progress()
    fixed = fixed | {"batch_size": batch_size, "warm_up": warm_up}
    fixed = {name: value.item() if isinstance(value, np.generic) else value for name, value in fixed.items()}
    if path is not None:
        fixed |= {"data": digest(data), "validation": None if held_out is None else digest(held_out)}
    if saved is not None:
        config, now, best, state = saved
        check_same(path, fixed, config["fixed"], first, now)
        check_entries(f"{path}: its progress", config["progress"], PROGRESS)
        done = Progress(**config["progress"])
        try:
            trainer.restore(now, state)
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{path} does not hold the state of this training ({error}); name another file") from error

    def run(epoch):
        order = np.random.default_rng([seed, epoch]).permutation(len(data))
        rate = learning_rate(epoch) if callable(learning_rate) else learning_rate
        return trainer.run_epoch(epoch, order, rate, min(1.0, (epoch + 1) / warm_up) if warm_up else 1.0)

    def keep():
        nonlocal best
        best = trainer.averages()

    def save():
        if path is not None:
            parts = {"now": trainer.weights(), "best": best, "state": trainer.state()}
            arrays = {f"{part}/{name}": array for part, tree in parts.items() for name, array in tree.items()}
            config = {"kind": "checkpoint", "seed": seed, "fixed": fixed, "progress": dataclasses.asdict(done)}
            write_file(path, config, arrays)

    try:
        run_epochs(
            "fit_vae",
            run,
            keep,
            done,
            num_rows=len(data),
            batch_size=batch_size,
            num_epochs=num_epochs,
            patience=patience,
            judged_from=max(warm_up - 1, 0),  # in that epoch the weight of the KL term is 1
            after_epoch=save,
            callback=callback,
            bar=progress,
            advice="use a smaller learning_rate, a clip_norm, or a longer warm_up",
        )
    finally:
        trainer.restore(best, None)
    return trainer, done.record()


def average_share(ema_decay: float, num_steps: int) -> float:
    """The share of the last of so many steps in the average of their weights."""
    return (1 - ema_decay) / (1 - ema_decay**num_steps)


def check_options(
    learning_rate, warm_up, patience, checkpoint, *, optimizer, free_bits, clip_norm, ema_decay, **sizes
) -> None:
    """Raise ValueError for an option of ``fit_vae`` that cannot be meant."""
    check_sizes("fit_vae", **sizes, **({} if patience is None else {"patience": patience}))
    check_sizes("fit_vae", at_least=0, warm_up=warm_up)
    check_positive("fit_vae", learning_rate=1 if learning_rate is None or callable(learning_rate) else learning_rate)
    check_positive("fit_vae", clip_norm=1 if clip_norm is None else clip_norm)
    if not 0 <= free_bits < math.inf:
        raise ValueError(f"fit_vae: free_bits must be at least 0 and finite, got {free_bits!r}")
    if not 0 <= ema_decay < 1:
        raise ValueError(f"fit_vae: ema_decay must be at least 0 and below 1, such as 0.999, got {ema_decay!r}")
    if checkpoint is not None and not isinstance(optimizer, str):
        raise ValueError(
            "fit_vae: a checkpoint cannot tell an optimizer of the host, nor where its schedule is, so that the "
            "training would not go on as it was; give optimizer='adam' or 'adamax', or no checkpoint"
        )
