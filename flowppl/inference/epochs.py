"""Training in passes over data: the loop, when it stops, and the record of what happened."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowppl.checks import is_number
from flowppl.progress import progress_bar

Callback = Callable[[int, float], bool | None]  # of an epoch and its loss; True stops


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Epochs:
    """What happened in a training.

    Args:
        losses: the mean loss of the training rows in each epoch, under the weights of each step; NaN where all steps
            were left out.
        validation_losses: that of the held-out rows at the end of each epoch; empty without validation.
        best_epoch: the epoch, counted from 0, whose weights were kept: that of the smallest validation loss, without
            validation the last. It is -1 if none was completed.
        stopped: why training ended: ``"num_epochs"``, ``"patience"``, ``"callback"`` or ``"interrupted"``.
        num_skipped: the number of steps left out because their loss or gradient was not finite.
    """

    losses: np.ndarray
    validation_losses: np.ndarray
    best_epoch: int
    stopped: str
    num_skipped: int

    def __repr__(self):
        facts = [f"{len(self.losses)} epochs", f"stopped by {self.stopped!r}", f"best_epoch={self.best_epoch}"]
        if self.best_epoch >= 0:
            facts.append(f"loss={self.losses[self.best_epoch]:.4f}")
            if len(self.validation_losses):
                facts.append(f"validation_loss={self.validation_losses[self.best_epoch]:.4f}")
        return f"{type(self).__name__}({', '.join(facts)}, num_skipped={self.num_skipped})"


@dataclasses.dataclass
class Progress:
    """A training so far, in plain numbers."""

    losses: list[float] = dataclasses.field(default_factory=list)
    validation_losses: list[float] = dataclasses.field(default_factory=list)
    best_epoch: int = -1
    num_skipped: int = 0
    stopped: str = ""

    def record(self) -> dict:
        """The arguments of :class:`Epochs`."""
        series = {name: np.array(getattr(self, name), dtype=np.float64) for name in ("losses", "validation_losses")}
        rest = {name: getattr(self, name) for name in ("best_epoch", "stopped", "num_skipped")}
        return series | rest


def hold_out(owner: str, validation: Any, num_rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on and those to hold out, at random.

    Args:
        owner: who trains, for messages.
        validation: the fraction to hold out; ``None`` is 0. A positive one is at least one row, and never all.

    Raises:
        ValueError: if the fraction is not in [0, 1), or there is only one row of which to hold out some.
    """
    fraction = 0.0 if validation is None else float(validation)
    if not 0 <= fraction < 1:
        raise ValueError(
            f"{owner}: validation must be a fraction, at least 0 and below 1, or held-out data, got {validation}"
        )
    if fraction and num_rows < 2:
        raise ValueError(f"{owner}: of {num_rows} row none can be held out; give validation=None, or more data")
    order = rng.permutation(num_rows)
    size = min(max(round(fraction * num_rows), 1), num_rows - 1) if fraction else 0
    return order[size:], order[:size]


def run_epochs(
    owner: str,
    run_epoch: Callable[[int], tuple[Sequence[float], float | None]],
    keep: Callable[[], None],
    progress: Progress,
    *,
    num_rows: int,
    batch_size: int,
    num_epochs: int,
    patience: int | None,
    judged_from: int = 0,
    after_epoch: Callable[[], None] = lambda: None,
    callback: Callback | None = None,
    row_counts: Callable[[], Sequence[int]] | None = None,
    bar: bool | None,
    advice: str,
) -> None:
    """Run epochs, the first after those in ``progress``, until one of the reasons to stop.

    Args:
        owner: who trains, for messages.
        run_epoch: trains one epoch; gives the loss of each step, NaN where it was skipped, and the validation loss.
        keep: keeps the present weights: they are the best so far.
        progress: is brought up to date.
        num_rows: the rows of an epoch.
        batch_size: the rows of a step; the last one takes what is left.
        num_epochs: the number of epochs.
        patience: the number of epochs without a better validation loss after which to stop; ``None`` never does.
        judged_from: ``patience`` counts the epochs after this one.
        after_epoch: called after each complete epoch.
        callback: called as ``callback(epoch, loss)`` after each complete epoch, counted from 0, with the mean loss of
            its rows; if it returns True, training stops.
        row_counts: gives the rows of each step of the last epoch, where they are not what ``num_rows`` and
            ``batch_size`` say.
        bar: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.
        advice: what to try if no loss is finite.

    Raises:
        TypeError: if ``callback`` cannot be called.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite.
    """
    if callback is not None and not callable(callback):
        raise TypeError(
            f"{owner}: callback must be a function of the epoch and its loss, got {type(callback).__name__}; write "
            "def callback(epoch, loss), which returns True to stop"
        )
    done = len(progress.losses)
    batch_sizes = np.minimum(batch_size, num_rows - np.arange(0, num_rows, batch_size))
    progress.stopped = "num_epochs"
    with progress_bar(owner, num_epochs, "epoch", bar, done) as shown:
        try:
            for epoch in range(done, num_epochs):
                if patience is not None and epoch - 1 - max(progress.best_epoch, judged_from) >= patience:
                    progress.stopped = "patience"
                    break
                losses, score = run_epoch(epoch)
                steps = np.asarray(losses, dtype=np.float64)
                taken = ~np.isnan(steps)
                counts = batch_sizes if row_counts is None else np.asarray(row_counts())
                loss = float(np.average(steps[taken], weights=counts[taken])) if taken.any() else math.nan
                if np.isnan([*progress.losses, loss]).all():
                    raise RuntimeError(f"{owner}: the loss of every step was not finite; {advice}")
                is_judged = progress.validation_losses and progress.best_epoch >= 0
                best = progress.validation_losses[progress.best_epoch] if is_judged else math.inf
                is_best = score is None or (math.isfinite(score) and score < best)
                if is_best:
                    keep()
                # After what takes time, so that an interruption finds no epoch half recorded.
                progress.losses.append(loss)
                progress.num_skipped += int(np.sum(~taken))
                if score is not None:
                    progress.validation_losses.append(float(score))
                if is_best:
                    progress.best_epoch = epoch
                after_epoch()
                shown.update()
                shown.set_postfix({"loss": loss} if score is None else {"loss": loss, "validation": float(score)})
                if callback is not None and callback(epoch, loss):
                    progress.stopped = "callback"
                    break
        except KeyboardInterrupt:
            progress.stopped = "interrupted"
    if progress.losses and progress.best_epoch < 0:
        raise RuntimeError(f"{owner}: the validation loss of every epoch was not finite; {advice}")


def asked_once(rate: Any) -> Any:
    """The learning rate; one that is a function is called once for each epoch, though a checkpoint asks it, too."""
    return functools.cache(rate) if callable(rate) else rate


def scheduled_rate(owner: str, schedule: Callable[[int], float], epoch: int) -> float:
    """What a function gives as the learning rate of an epoch; raise ValueError unless it is one."""
    rate: Any = schedule(epoch)
    if not is_number(rate) or not 0 <= rate < math.inf:
        raise ValueError(
            f"{owner}: learning_rate must give a finite number of at least 0 for each epoch, got {rate!r} for epoch "
            f"{epoch}"
        )
    return rate
