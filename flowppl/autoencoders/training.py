r"""How the variational autoencoders of both adapters are trained: the loop, its record and its checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from flowppl.bijections.contract import Bijection
from flowppl.checks import check_positive, check_sizes
from flowppl.inference.epochs import Epochs, Progress, hold_out, run_epochs
from flowppl.serialization import check_entries, check_target, read_file, write_file

FIT_VAE_DOC = r"""Train a :class:`FlowVAE` on data.

    In epoch t, with :math:`\beta = \min(1, (t+1) / \mathrm{{warm\_up}})`, it minimises the batch mean of

    .. math::
        -\log p(x \mid z) + \beta\, \big(\log q(z \mid x) - \log p(z)\big), \qquad z \sim q(z \mid x),

    where ``free_bits``, if there are any, stand in for the batch mean of the second term when that is less. {returns}

    With ``ema_decay`` the weights that are validated, and kept, are an average over all steps, the last steps most: of
    step s of t it has the weight :math:`\mathrm{{ema\_decay}}^{{t-s}}`, divided by the sum of all. Averages are better
    than the weights of any one step where steps are noisy, as those of small batches are.

    A step whose loss or gradient is not finite is left out and counted. An interruption (Ctrl-C) ends the training; the
    result is what the complete epochs reached.

    Args:{key}
        vae: the autoencoder.
        x: the data, one row for each datum.{start}
        validation: the fraction of rows to hold out at random, or held-out data; ``None`` for no validation. Its loss
            is minus the ELBO, with one draw for each datum, the same in all epochs.
        batch_size: the number of rows in one step; the last batch of an epoch may be smaller.
        num_epochs: the number of passes over the data, unless ``patience`` ends them.
        learning_rate: the learning rate, or a function from the epoch, counted from 0, to it.
        optimizer: ``"adam"`` or ``"adamax"``.
        warm_up: the number of epochs in which the weight of the KL term rises to 1; 0 for none.
        free_bits: the nats of KL for each datum that cost nothing: latents are then not given up early.
        patience: stop after so many epochs, from the end of the warm-up on, without a better validation loss; ``None``
            never does.
        clip_norm: the largest norm of a gradient; ``None`` for no limit.
        ema_decay: the decay of the exponential moving average of the weights, such as 0.999, which averages about
            1,000 steps: few of all that there are. 0 takes the weights as they are.
        checkpoint: a file that is written after each epoch. If it is there already, the training goes on from it, to
            the result that it would have had without an interruption.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.

    Returns:
        A :class:`flowppl.autoencoders.training.VAEFit`.

    Raises:
        ValueError: if the data do not fit the likelihood (the message names the range) or the networks, for an option
            that cannot be meant, or a checkpoint that is not whole or of another training; it is then as it was.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite.

    References:
        Warm-up: Bowman et al.: Generating Sentences from a Continuous Space, 2015, arXiv 1511.06349; Sonderby et al.:
        Ladder Variational Autoencoders, 2016, arXiv 1602.02282. Free bits: Kingma et al.: Improving Variational
        Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934. Averages: Kingma, Ba: Adam, 2014, arXiv
        1412.6980, section 7.2; Izmailov et al.: Averaging Weights Leads to Wider Optima, 2018, arXiv 1803.05407.

    Example:{example}"""

OPTIMIZERS = ("adam", "adamax")

# Of the metadata of a checkpoint, and of the progress in it: the entries, and the types of their values.
ENTRIES = {"format": (int,), "flowppl": (str,), "kind": (str,), "seed": (int,), "fixed": (dict,), "progress": (dict,)}
PROGRESS = {
    "losses": (list,),
    "validation_losses": (list,),
    "best_epoch": (int,),
    "num_skipped": (int,),
    "stopped": (str,),
}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class VAEFit(Epochs):
    """The autoencoder that ``fit_vae`` trained, and the record of its training.

    Args:
        vae: the autoencoder.
        params: its weights of ``best_epoch``, by name; in Pyro the autoencoder has them too.
    """

    vae: Any
    params: Any


class Trainer(Protocol):
    """What an adapter does for :func:`train`: the arrays and the steps. States are dicts of NumPy arrays."""

    def run_epoch(self, epoch: int, order: np.ndarray, rate: float, beta: float) -> tuple[list[float], float | None]:
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
    learning_rate: float | Callable[[int], float],
    warm_up: int,
    patience: int | None,
    checkpoint: Any,
    fixed: dict[str, Any],
    progress: bool | None,
) -> tuple[SomeTrainer, dict[str, Any]]:
    """Train from the start or from the checkpoint.

    Args:
        make_trainer: makes a trainer of the data, the held-out data or ``None``, and a seed.
        seed: determines the held-out rows, the orders and the noise, unless a checkpoint does.
        fixed: what must be the same when a training goes on, in plain values.

    Returns:
        The trainer, with the best weights, and the arguments of :class:`Epochs`.
    """
    path = None if checkpoint is None else pathlib.Path(checkpoint)
    if path is not None:
        check_target(path)
    saved = None if path is None or not path.exists() else _read_checkpoint(path)
    seed = seed if saved is None else saved[0]["seed"]
    data, held_out = x, validation
    if validation is None or isinstance(validation, numbers.Real):
        rows, held_rows = hold_out("fit_vae", validation, len(x), np.random.default_rng(seed))
        data, held_out = (x[rows], x[held_rows]) if len(held_rows) else (x, None)
    trainer = make_trainer(data, held_out, seed)
    first = best = trainer.weights()
    done = Progress()
    fixed = fixed | {"batch_size": batch_size, "warm_up": warm_up}
    fixed = {name: value.item() if isinstance(value, np.generic) else value for name, value in fixed.items()}
    if path is not None:
        fixed |= {"data": _digest(data), "validation": None if held_out is None else _digest(held_out)}
    if saved is not None:
        config, now, best, state = saved
        _check_same(path, fixed, config["fixed"], first, now)
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
            bar=progress,
            advice="use a smaller learning_rate, a clip_norm, or a longer warm_up",
        )
    finally:
        trainer.restore(best, None)
    return trainer, done.record()


def _digest(data):
    """A number by which other data are told from these."""
    array = np.ascontiguousarray(data.cpu() if hasattr(data, "cpu") else data)
    return zlib.crc32(array.reshape(-1).view(np.uint8).data, zlib.crc32(repr((array.shape, str(array.dtype))).encode()))


def describe(posterior: Bijection, prior: Any, likelihood: Any, held: Callable | None) -> dict[str, Any]:
    """What of an autoencoder a checkpoint tells, in plain values; networks are told by the shapes of their weights.

    Args:
        held: the log density of a prior that is not trained, of which two are told by their values at three points.
    """
    kind = likelihood if isinstance(likelihood, str) else "own"
    described = {"posterior": repr(posterior), "prior": repr(getattr(prior, "bijection", prior)), "likelihood": kind}
    if held is not None:
        points = np.random.default_rng(0).normal(size=(3, *posterior.y_shape))
        described["density of the prior"] = " ".join(f"{value:.5g}" for value in held(points))
    return described


def _read_checkpoint(path):
    """What a checkpoint holds: its configuration, the weights, the best weights, the optimiser's state."""
    config, arrays = read_file(path)
    if config["kind"] != "checkpoint":
        raise ValueError(f"{path} holds a {config['kind']}, not a checkpoint of fit_vae; name another file")
    check_entries(f"{path}: its metadata", config, ENTRIES)
    parts: dict[str, dict[str, np.ndarray]] = {"now": {}, "best": {}, "state": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        if part not in parts:
            raise ValueError(f"{path} holds the array {name!r}, which is none of a checkpoint; name another file")
        parts[part][rest] = array
    return config, *parts.values()


def _check_same(path, fixed, found, weights, saved_weights):
    """Raise ValueError if the checkpoint is of another training."""
    changed = [name for name, value in json.loads(json.dumps(fixed)).items() if found.get(name) != value]
    ours, saved = (
        {name: (array.shape, array.dtype) for name, array in tree.items()} for tree in (weights, saved_weights)
    )
    changed += ["networks and flows"] * (ours != saved)
    if changed:
        raise ValueError(
            f"{path} is a checkpoint of another training, with other {', '.join(changed)}; name another file, or "
            "delete it to start anew"
        )


def average_share(ema_decay: float, num_steps: int) -> float:
    """The share of the last of so many steps in the average of their weights."""
    return (1 - ema_decay) / (1 - ema_decay**num_steps)


def check_options(learning_rate, warm_up, patience, *, optimizer, free_bits, clip_norm, ema_decay, **sizes) -> None:
    """Raise ValueError for an option of ``fit_vae`` that cannot be meant."""
    check_sizes("fit_vae", **sizes, **({} if patience is None else {"patience": patience}))
    check_sizes("fit_vae", at_least=0, warm_up=warm_up)
    check_positive("fit_vae", learning_rate=1 if callable(learning_rate) else learning_rate)
    check_positive("fit_vae", clip_norm=1 if clip_norm is None else clip_norm)
    if not 0 <= free_bits < math.inf:
        raise ValueError(f"fit_vae: free_bits must be at least 0 and finite, got {free_bits!r}")
    if not 0 <= ema_decay < 1:
        raise ValueError(f"fit_vae: ema_decay must be at least 0 and below 1, such as 0.999, got {ema_decay!r}")
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"fit_vae: optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
