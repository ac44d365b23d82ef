"""How the variational autoencoders of both adapters are trained: the options, the loop and its record."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from flowppl.autoencoders.data import is_share
from flowppl.checks import is_number
from flowppl.inference.batches import Batches, Mapped, Workers
from flowppl.inference.epochs import Epochs, asked_once, hold_out, scheduled_rate
from flowppl.training import loop

NUM_PROBED = 16  # rows by whose loss another model is told

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


class Trainer(loop.Trainer, Protocol):
    """What an adapter does for :func:`train`."""

    def run_epoch(
        self, epoch: int, order: np.ndarray, rate: float | None, beta: float
    ) -> tuple[list[float], float | None]:
        """Train on the rows in this order; give the loss of each step, NaN where skipped, and the validation loss."""

    def probe(self) -> list[float]:
        """The mean log likelihood, and KL term, of a few rows with the same noise in all calls, as in evaluation."""


SomeTrainer = TypeVar("SomeTrainer", bound=Trainer)


def train(
    make_trainer: Callable[[Any, Any, int], SomeTrainer],
    x: Any,
    validation: Any,
    seed: int,
    *,
    learning_rate: float | Callable[[int], float] | None,
    warm_up: int,
    fixed: dict[str, Any],
    workers: Workers,
    **options: Any,
) -> tuple[SomeTrainer, dict[str, Any]]:
    """Train from the start or from the checkpoint.

    Args:
        make_trainer: makes a trainer of the data or :class:`Batches`, the held-out data or ``None``, and a seed.
        seed: determines the held-out rows, the orders and the noise, unless a checkpoint does.
        learning_rate: as for ``fit_vae``; ``None`` for an optimiser that has its own.
        warm_up: as for ``fit_vae``.
        fixed: what must be the same when a training goes on, in plain values.
        workers: the processes that train together.
        options: the others of :func:`flowppl.training.loop.train`.

    Returns:
        The trainer, with the best weights, and the arguments of :class:`Epochs`.
    """
    batches = x if isinstance(x, Batches) else None
    if batches is not None and options["checkpoint"] is not None:
        raise ValueError("fit_vae: a checkpoint cannot tell where an iterable of batches is; give x as an array")

    learning_rate = asked_once(learning_rate)

    def make(seed):
        if batches is not None:
            held_out = None if is_share(validation) else validation
            return make_trainer(batches, held_out, seed), 0, {"validation": held_out}
        data, held_out = x, validation
        if is_share(validation):
            rows, held_rows = hold_out("fit_vae", validation, len(x), np.random.default_rng(seed))
            held_out = x[held_rows] if len(held_rows) else None
            if isinstance(x, Mapped):
                data = x.take(rows)
            elif len(held_rows):
                data = x[rows]
        told = data.array if isinstance(data, Mapped) else data
        return make_trainer(data, held_out, seed), len(data), {"data": told, "validation": held_out}

    def run(trainer, epoch, order):
        rate = scheduled_rate("fit_vae", learning_rate, epoch) if callable(learning_rate) else learning_rate
        return trainer.run_epoch(epoch, order, rate, min(1.0, (epoch + 1) / warm_up) if warm_up else 1.0)

    return loop.train(
        "fit_vae",
        make,
        run,
        seed,
        learning_rate=learning_rate,
        probe=lambda trainer: trainer.probe(),
        judged_from=max(warm_up - 1, 0),  # in that epoch the weight of the KL term is 1
        fixed=fixed | {"warm_up": warm_up},
        row_counts=None if batches is None else lambda: batches.counts,
        workers=workers,
        advice="use a smaller learning_rate, a clip_norm, or a longer warm_up",
        **options,
    )


def check_options(free_bits: float, **options: Any) -> None:
    """Raise ValueError for an option of ``fit_vae`` that cannot be meant."""
    loop.check_options("fit_vae", **options)
    if not is_number(free_bits) or not 0 <= free_bits < math.inf:
        raise ValueError(f"fit_vae: free_bits must be at least 0 and finite, got {free_bits!r}")
