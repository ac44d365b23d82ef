r"""How ``fit`` trains a guide: rounds of stochastic gradient steps, each followed by a judgement, and the result.

An ``AutoFlow`` guide of few latents begins as the best Gaussian, for draws that stay the same; others begin with rounds
for their affine layers alone, each ending with the trained layer being taken into the fixed one. So the flow is trained
where the posterior looks like a standard normal, and one learning rate suits all models. The rounds of the flow follow,
each longer than the one before. The training ends at the start or after any of these rounds if the importance weights
say, in two sets of draws, that the guide is good, or when the rounds or the time end.

The gradient is that of :func:`flowppl.inference.losses.path_loss`. Within a round the power of its weights goes up
from 0 to 1/2, and half of the noise is stretched by up to 1.5 in random directions: the guide practises its tails,
which it would see too rarely otherwise. Where the guide is the posterior the gradient is zero for any noise and any
power.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from flowppl.checks import check_positive, check_sizes, is_rising, level_of_caller
from flowppl.inference.diagnostics import Diagnosis, diagnose
from flowppl.inference.resuming import CHUNK, NO_CHECKPOINT, Checkpoint, Training
from flowppl.progress import progress_bar, set_total

logger = logging.getLogger("flowppl")

BLOCK = 64  # particles at a time: a compiler then needs one program for rounds of any number of particles
NUM_CHECKS = 16_384  # draws by which a round is judged
MAX_POWER = 0.5
MAX_STRETCH = 1.5
WARM_UP = 50
MAX_SECONDS = 240.0
# For models that are run for one draw after the other, and for slow ones:
FEW = 16  # draws for each step
JUDGE_SECONDS = 1.5  # after which no more draws are judged,
MIN_CHECKS = 256  # if these are
MAX_AFFINE_ROUNDS = 10  # those of a start that was far off; most take one or two


@dataclasses.dataclass(frozen=True)
class Round:
    """So many steps with so many particles each, from this learning rate down to a hundredth of it."""

    num_steps: int
    num_particles: int
    learning_rate: float
    affine: bool = False
    least_gain: float = 0.0  # it is left out if the round before raised the ELBO by less
    good_gap: float = 0.01  # the training may end after it if the ELBO seems to be so near to the evidence


SOON = 0.0075  # nats: where the next round is short
AFFINE_ROUND = Round(400, BLOCK, 0.05, affine=True, good_gap=SOON)
# Where the start is the best Gaussian of hundreds of latents: larger steps, of so many at once, first lose 80 nats.
DENSE_ROUND = Round(200, BLOCK, 0.01, affine=True, good_gap=SOON)
# Many steps of few particles: as many particles in larger steps came less far.
FLOW_ROUNDS: tuple[Round, ...] = (
    Round(500, BLOCK, 3e-3, good_gap=SOON),
    Round(1000, BLOCK, 3e-3, good_gap=SOON),
    Round(4000, BLOCK, 2e-3),
    Round(6000, BLOCK, 1e-3),
    Round(12_000, BLOCK, 1e-3, least_gain=0.1),
)
# The narrow networks of a default flow for few latents take larger steps: a third of the gap after 500 of them.
NARROW_ROUNDS: tuple[Round, ...] = tuple(
    dataclasses.replace(each, learning_rate=rate)
    for each, rate in zip(FLOW_ROUNDS, (1e-2, 1e-2, 5e-3, 2e-3, 1e-3), strict=True)
)
OTHER_ROUNDS: tuple[Round, ...] = (Round(2000, 16, 1e-2), Round(2000, 16, 3e-3), Round(4000, 16, 1e-3))


@dataclasses.dataclass(frozen=True)
class Chunk:
    """``CHUNK`` steps: for each its learning rate, the power of its weights and the stretch of its noise."""

    rates: np.ndarray
    powers: np.ndarray
    stretches: np.ndarray
    num_particles: int
    affine: bool
    end: float = math.inf  # when to stop before the last step, by the monotonic clock


class Trainer(Protocol):
    """What an adapter does for :func:`train`: the arrays, the steps and the draws, for one or more restarts."""

    has_affine: bool  # whether there are affine layers, with rounds of their own
    is_dense: bool  # whether these start as the best Gaussian of hundreds of latents
    is_subsampled: bool  # whether the model sees a part of its data only
    num_restarts: int

    def begin(self, affine: bool) -> None:
        """Start a round: forget what the optimiser remembers, unless it is the user's, which runs through them all."""

    def run(self, chunk: Chunk) -> np.ndarray:
        """Take the steps, or those for which there is time. Return their losses, a row for each restart: NaN for a
        step that was skipped, not finite."""

    def settle(self, end: float) -> bool:
        """Go to the best Gaussian, without steps, if that is found by then. Return whether it was."""

    def fold(self) -> float:
        """Take the trained affine layer into the fixed one. Return how far it was from the identity."""

    def log_weights(self) -> Sequence[np.ndarray]:
        """``NUM_CHECKS`` log weights of the guide, or as many as there is time for; a row for each restart."""

    def select(self, index: int, kept: Any) -> Any:
        """Go on with one of the restarts. Return its part of such parameters as ``get`` gave."""

    def get(self) -> Any:
        """The parameters, as they will stay."""

    def set(self, params: Any) -> None:
        """Go back to such parameters."""


@dataclasses.dataclass(frozen=True)
class History:
    """What happened in a training: the losses, the judgements after its rounds, that of the result, why it ended."""

    losses: np.ndarray
    checks: tuple[Diagnosis, ...]
    check: Diagnosis
    stopped: str

    def told(self, check: Diagnosis) -> History:
        """With this judgement of the result, and in all others what it says of the search for modes."""
        checks = tuple(dataclasses.replace(each, search=check.search) for each in self.checks)
        return dataclasses.replace(self, check=check, checks=checks)


def train(
    trainer: Trainer,
    rounds: tuple[Round, ...],
    max_seconds: float,
    progress: bool | None,
    callback: Callable[[int, float], object] | None = None,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> History:
    """Train until the guide is good, or the rounds or the time end. The trainer keeps the parameters to be used."""
    end = time.monotonic() + max_seconds
    affine_round = DENSE_ROUND if trainer.is_dense else AFFINE_ROUND
    here = checkpoint.resume(trainer)
    if here is None:
        here = _begin(trainer, rounds, end)
        checkpoint.keep(trainer, here)
    losses, checks = here.losses, here.checks

    def todo() -> list[Round]:
        return [affine_round] * here.num_affine + list(rounds[len(rounds) - here.num_rounds :])

    def num_steps() -> int:
        """Those taken and those to take."""
        return CHUNK * len(losses) + _num_steps(todo()) - here.done

    with progress_bar("fit", num_steps(), "step", progress, CHUNK * len(losses)) as bar:

        def after_chunk(rows: np.ndarray) -> str:
            """Why to stop now, if there is a reason."""
            losses.append(rows)
            bar.update(CHUNK)
            checkpoint.keep(trainer, here)
            if callback is not None and callback(CHUNK * len(losses), _mean_loss(rows)):
                checkpoint.keep(trainer, here, now=True)
                return "callback"
            return "max_seconds" if time.monotonic() >= end else ""

        try:
            while todo() and not here.stopped:
                this = todo()[0]
                if not here.done and time.monotonic() >= end:
                    here.stopped = "max_seconds"
                    break
                if not here.done and this.least_gain and checks[-1].elbo - checks[-2].elbo < this.least_gain:
                    break
                stopped = _run_round(trainer, this, end, after_chunk, here)
                moved = trainer.fold() if this.affine else 0.0
                now, index = _judge(trainer)
                here.next_round()
                if this.affine and (moved < 0.5 or now.elbo - checks[-1].elbo < 1):
                    here.num_affine = 0
                if not this.affine and trainer.num_restarts > 1:
                    here.kept = trainer.select(index, here.kept)
                    losses[:] = [rows[index : index + 1] for rows in losses]
                # A model of such a trainer has no parameters, which take longer than the guide.
                may_end = trainer.has_affine or not here.is_first
                if may_end and _is_good(now, this.good_gap):
                    now = _judge(trainer)[0]  # what looks good in some draws may look otherwise in others
                checks.append(now)
                bar.set_postfix({"ELBO": f"{now.elbo:.2f}", "k-hat": f"{now.k_hat:.2f}"})
                logger.info("fit: %d steps, ELBO %.3f, k-hat %.2f", CHUNK * len(losses), now.elbo, now.k_hat)
                if not _is_worse(now, here.check):
                    here.kept, here.check = trainer.get(), now
                if stopped != "callback" and may_end and _is_good(now, this.good_gap):
                    stopped = "converged"
                elif time.monotonic() >= end:
                    stopped = stopped or "max_seconds"
                here.stopped = stopped
                here.is_first = here.is_first and this.affine
                set_total(bar, num_steps())
                if stopped != "callback":  # a later call goes on from where that was
                    checkpoint.keep(trainer, here)
        except KeyboardInterrupt:
            here.stopped = "interrupted"
        set_total(bar, CHUNK * len(losses))
    trainer.set(here.kept)
    index = 0
    if trainer.num_restarts > 1:
        index = _judge(trainer)[1]
        trainer.select(index, here.kept)
    all_losses = np.concatenate(losses, axis=1)[index] if losses else np.zeros(0)
    _check_losses(all_losses)
    logger.info("fit: ended by %s after %d steps", here.stopped or "rounds", len(all_losses))
    return History(all_losses, tuple(checks), here.check, here.stopped or "rounds")


def _begin(trainer, rounds, end) -> Training:
    """The beginning of a training."""
    kept, check = trainer.get(), _judge(trainer)[0]
    if trainer.has_affine and _is_exact(check):  # otherwise the model may have parameters to train
        return Training(kept, check, 0, 0, checks=[check], stopped="converged")
    start = Training(kept, check, MAX_AFFINE_ROUNDS * trainer.has_affine, len(rounds), checks=[check])
    if trainer.settle(end):
        now = _judge(trainer)[0]
        if _is_good(now, AFFINE_ROUND.good_gap):
            now = _judge(trainer)[0]  # as after a round
        if _is_worse(now, check):
            trainer.set(kept)
        else:
            stopped = "converged" if _is_good(now, AFFINE_ROUND.good_gap) else ""
            return Training(trainer.get(), now, 0, len(rounds), checks=[check, now], stopped=stopped)
    return start


def _num_steps(rounds) -> int:
    """How many steps these rounds take: each is rounded up to whole chunks."""
    return sum(CHUNK * math.ceil(each.num_steps / CHUNK) for each in rounds)


def _mean_loss(rows) -> float:
    """The mean loss of a chunk, that of the best of the restarts; NaN if all steps were skipped."""
    means = [row[~np.isnan(row)].mean() for row in rows if not np.isnan(row).all()]
    return float(min(means, default=math.nan))


def _judge(trainer) -> tuple[Diagnosis, int]:
    """The judgement on the best of the restarts, and its index."""
    checks = [diagnose(row) for row in trainer.log_weights()]
    if trainer.is_subsampled:  # the weights carry the noise of the batches, and tell no more than the ELBO
        nan = math.nan
        checks = [
            dataclasses.replace(check, k_hat=nan, ess=nan, log_evidence=nan, log_evidence_se=nan) for check in checks
        ]
    index = max(range(len(checks)), key=lambda i: _score(checks[i]))
    return checks[index], index


def _score(check: Diagnosis) -> float:
    """What a guide is kept for: its ELBO, which is that of the finite draws, if nearly all are."""
    return check.elbo if check.nonfinite < 0.1 else -math.inf


def _is_worse(now: Diagnosis, before: Diagnosis) -> bool:
    # Later rounds have the better tails: a small loss of ELBO may be noise, and does not count.
    return _score(now) < _score(before) - max(0.01, 2 * now.elbo_se)


def _is_good(check: Diagnosis, gap: float) -> bool:
    # Where nothing is left to gain, the tail of weights that are all but equal is not worth thousands of steps.
    return check.kl_gap < gap and check.k_hat < (0.6 if check.kl_gap < 1e-3 else 0.5)


def _is_exact(check: Diagnosis) -> bool:
    return check.k_hat < 0.5 and check.kl_gap < 1e-3 and not check.nonfinite


def _check_losses(losses):
    skipped = np.isnan(losses).mean() if len(losses) else 0.0
    if skipped == 1:
        raise RuntimeError(
            "fit: no step had a finite gradient; look at the model's log density where the guide starts "
            "(log_weights of the untrained guide), or use float64"
        )
    if skipped > 0.05:
        warnings.warn(
            f"fit: {skipped:.0%} of the steps were skipped, as their gradients were not finite; a smaller "
            "learning_rate or float64 may help",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )


def _run_round(trainer, this, end, after_chunk, here) -> str:
    """Run a round, or what is left of it, ``after_chunk`` after each of its chunks. Return why it was cut short, if it
    was."""
    if not here.done:
        trainer.begin(this.affine)
    begin, stopped = time.monotonic() - here.seconds, ""
    while here.done < this.num_steps and not stopped:
        # The budget that ends first sets the pace, so that the learning rate has come down when it does.
        spent = (time.monotonic() - begin) / max(end - begin, 1e-9) if here.done else 0.0
        steps = here.done + np.arange(CHUNK)
        position = np.minimum(steps * max(1 / this.num_steps, spent / max(here.done, 1)), 1.0)
        ramp = np.clip((position - 0.2) / 0.3, 0.0, 1.0) * (not this.affine)
        decay = 0.01 + 0.99 * (1 + np.cos(np.pi * position)) / 2
        chunk = Chunk(
            rates=this.learning_rate * decay * np.minimum(1.0, (steps + 1) / WARM_UP),
            powers=MAX_POWER * ramp,
            stretches=1 + (MAX_STRETCH - 1) * ramp,
            num_particles=this.num_particles,
            affine=this.affine,
            end=end,
        )
        losses = trainer.run(chunk)
        here.done += losses.shape[1]
        here.seconds = time.monotonic() - begin
        stopped = after_chunk(losses)
    return stopped


def warn_of_slowness(obstacle: str) -> None:
    """Warn that the model is run for one draw after the other, and why."""
    warnings.warn(
        "fit: the model cannot be run for many draws at once, so it is run for one after the other, which is slow, and "
        f"with fewer draws to train by and to judge. In its way stands {obstacle}. Write that without branches on "
        "values of latents, and with plates around what is independent",
        RuntimeWarning,
        stacklevel=level_of_caller(),
    )


def warn_of_no_search(num_modes: int | str | None) -> None:
    """Warn that no modes were searched for, if a number of them was asked for."""
    if num_modes is not None:
        warnings.warn(
            "fit: no modes were searched for, as the log density of this model is random, such as by a subsample of "
            f"its data. num_modes={num_modes!r} has no effect: the guide has one mode, and others would not show",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )


def choose_rounds(
    default: tuple[Round, ...], num_steps: int | None, num_particles: int | None, learning_rate: float | None
) -> tuple[Round, ...]:
    """The default rounds, or one of ``num_steps``; with so many particles and this learning rate, if given."""
    rounds = default if num_steps is None else (dataclasses.replace(default[len(default) // 2], num_steps=num_steps),)
    changes: dict[str, Any] = {"num_particles": num_particles, "learning_rate": learning_rate}
    return tuple(dataclasses.replace(each, **{k: v for k, v in changes.items() if v is not None}) for each in rounds)


def time_limit(max_seconds: float | None, num_steps: int | None) -> float:
    """The seconds of a training, by default so many that a large model is not trained for hours unasked."""
    if max_seconds is not None:
        return max_seconds
    return MAX_SECONDS if num_steps is None else math.inf


def check_options(num_steps, num_particles, learning_rate, clip_norm, num_restarts, max_seconds, callback) -> None:
    """Raise ValueError, or TypeError, for an option of ``fit`` that cannot be meant."""
    if callback is not None and not callable(callback):
        raise TypeError(f"fit: callback must be a function of the step and the loss, got {callback!r}")
    sizes = {"num_steps": num_steps, "num_particles": num_particles, "num_restarts": num_restarts}
    check_sizes("fit", **{name: size for name, size in sizes.items() if size is not None})
    if max_seconds is not None and not is_rising(0, max_seconds):
        raise ValueError(f"fit: max_seconds must be positive, got {max_seconds!r}")
    positive = {"learning_rate": learning_rate, "clip_norm": clip_norm}
    check_positive("fit", **{name: value for name, value in positive.items() if value is not None})
