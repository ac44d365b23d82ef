"""Checkpoints of ``fit``: what its searches found, and where its training is.

The file has the format of :mod:`flowppl.serialization`, with other entries: ``fixed``, what must be the same in a later
call; ``log_density``, the model's at a few points, by which another model is told; ``searches``, what the
searches for a start and for modes found, so that they need not be made again; and ``progress``, all plain numbers of a
:class:`flowppl.inference.resuming.Training`. Of the arrays those under ``now/`` are the parameters, ``best/`` the best
ones so far, ``state/`` what else the steps need, and ``start/`` what the searches found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from flowppl.inference.diagnostics import Diagnosis, Search
from flowppl.inference.fitting import MAX_AFFINE_ROUNDS, History
from flowppl.inference.modes import Modes, single
from flowppl.inference.resuming import CHUNK, Checkpoint, Searches, Training
from flowppl.inference.starts import Gaussian
from flowppl.serialization import check_entries, check_target, write_file
from flowppl.training.checkpoints import changes, digest, other_training, read_checkpoint, shapes_of
from flowppl.version import __version__

KIND = "checkpoint of fit"
MAX_ROUNDS = 100  # more than there ever are
EVERY = 10.0  # seconds between two writings,
SHARE = 0.05  # or more, so that they take no more than this of the time
FAULTS = (LookupError, TypeError, ValueError, OverflowError, RuntimeError)  # of what a file holds, when it is used
ENTRIES = {
    "format": (int,),
    "flowppl": (str,),
    "kind": (str,),
    "fixed": (dict,),
    "log_density": (list,),
    "searches": (list,),
    "progress": (dict,),
}
PROGRESS = {
    "seconds_in_all": (float,),
    "num_restarts": (int,),
    "check": (dict,),
    "checks": (list,),
    "num_affine": (int,),
    "num_rounds": (int,),
    "done": (int,),
    "seconds": (float,),
    "is_first": (bool,),
    "stopped": (str,),
    "is_whole": (bool,),
}


class Trainer(Protocol):
    """What a checkpoint asks of a trainer beside what :func:`flowppl.inference.fitting.train` does."""

    num_restarts: int

    def get(self) -> Any: ...
    def select(self, index: int, kept: Any) -> Any: ...

    def arrays_of(self, params: Any) -> dict[str, np.ndarray]:
        """Such parameters as ``get`` gives, as arrays by name."""

    def params_of(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """The parameters of such arrays."""

    def memory(self, in_round: bool) -> dict[str, np.ndarray]:
        """What is needed beside the parameters to go on: where random numbers are and, in a round, the optimiser's."""

    def recall(self, params: Any, memory: Mapping[str, np.ndarray], affine: bool | None) -> None:
        """Go back to parameters and a memory, in a round of such layers; ``None`` between two rounds."""

    def log_density(self, params: Any) -> list[float]:
        """The model's at a few points, with such parameters as ``get`` gives, by which another model is told."""


class FitCheckpoint(Checkpoint):
    """The file of a fit.

    Args:
        path: where it is.
        fixed: what of the fit must be the same when it goes on, in plain values.
    """

    def __init__(self, path: str | os.PathLike[str], fixed: Mapping[str, Any]) -> None:
        check_target(path)
        self.path, self.fixed = pathlib.Path(path), dict(fixed)
        self._begin, self._next = time.monotonic(), -math.inf
        self._saved: Any = None
        self.searches = self._searches = Searches([], [], lambda: other_training(path, ["latents"]))
        if self.path.exists():
            config, *parts = read_checkpoint("fit", path, KIND, ENTRIES, ("now", "best", "state", "start"))
            check_entries(f"{path}: its progress", config["progress"], PROGRESS)
            changed = changes(fixed, config["fixed"])
            if changed:
                raise other_training(path, changed)
            self._saved = config, *parts
            with _told(self.path):
                self.seconds = config["progress"]["seconds_in_all"]
                _check_that(0 <= self.seconds < math.inf, "its time")
                self._searches.found, self._searches.dims = _read_searches(config["searches"], parts[-1])

    def describe(self, trainer: Any, told: Mapping[str, Any]) -> None:
        self.fixed |= told
        if self._saved is not None:
            config, now, best, *_ = self._saved
            changed = changes(self.fixed, config["fixed"])
            if changed:
                raise other_training(self.path, changed)
            if config["progress"]["num_restarts"] == 1 < trainer.num_restarts:
                trainer.select(0, trainer.get())
            ours = shapes_of(trainer.arrays_of(trainer.get()))
            if not ours == shapes_of(now) == shapes_of(best):
                raise other_training(self.path, ["networks and flows"])
            with _told(self.path):
                params = trainer.params_of(best)
            log_density = trainer.log_density(params)  # an error of the model is told as its own
            with _told(self.path):
                is_same = np.allclose(log_density, config["log_density"], rtol=1e-3, atol=1e-3, equal_nan=True)
            if not is_same:
                raise other_training(self.path, ["log density of the model"])

    def resume(self, trainer: Any) -> Training | None:
        if self._saved is None:
            return None
        config, now, best, state, _ = self._saved
        with _told(self.path):
            training = _read_training(config["progress"], state, trainer.params_of(best))
            affine = training.num_affine > 0 if training.done else None
            memory = {name: array for name, array in state.items() if name != "losses"}
            trainer.recall(trainer.params_of(now), memory, affine)
        self._next = math.inf if config["progress"]["is_whole"] else time.monotonic() + EVERY
        return training

    def keep(self, trainer: Any, training: Training, *, now: bool = False) -> None:
        if now or time.monotonic() >= self._next:
            self._write(trainer, training, is_whole=False)

    def finish(self, trainer: Any, history: History) -> None:
        is_there = self._saved is not None and self._saved[0]["progress"]["is_whole"]
        if not is_there and history.stopped not in ("callback", "interrupted"):
            losses, checks = [history.losses[None]], list(history.checks)
            result = Training(trainer.get(), history.check, 0, 0, losses, checks, stopped=history.stopped)
            self._write(trainer, result, is_whole=True)

    def _write(self, trainer: Any, training: Training, *, is_whole: bool) -> None:
        begin = time.monotonic()
        parts = {
            "now": trainer.arrays_of(trainer.get()),
            "best": trainer.arrays_of(training.kept),
            "state": {"losses": _joined(training.losses, trainer.num_restarts)} | trainer.memory(training.done > 0),
            "start": {},
        }
        pairs = zip(self._searches.found, self._searches.dims, strict=True)
        searches = [_describe(found, dim, i, parts["start"]) for i, (found, dim) in enumerate(pairs)]
        progress = {name: getattr(training, name) for name in PROGRESS if hasattr(training, name)}
        progress |= {
            "seconds_in_all": self.seconds + begin - self._begin,
            "num_restarts": trainer.num_restarts,
            "is_whole": is_whole,
            "check": dataclasses.asdict(training.check),
            "checks": [dataclasses.asdict(check) for check in training.checks],
        }
        config = {
            "kind": KIND,
            "fixed": self.fixed,
            "log_density": trainer.log_density(training.kept),
            "searches": searches,
            "progress": progress,
        }
        arrays = {f"{part}/{name}": array for part, tree in parts.items() for name, array in tree.items()}
        write_file(self.path, config, arrays)
        end = time.monotonic()
        self._next = end + max(EVERY, (end - begin) / SHARE)


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    """In here an error of what a file holds is told as one of the file."""
    try:
        yield
    except FAULTS as error:
        raise ValueError(
            f"{path} does not hold the state of this fit ({type(error).__name__}: {error}); name another file"
        ) from error


def describe_arguments(args: Iterable[Any], kwargs: Mapping[str, Any], leaves: Any) -> dict[str, Any]:
    """The arguments of a model as a checkpoint tells them, by digests of their arrays; ``leaves`` takes trees apart."""
    named = {f"argument {i + 1} of the model": arg for i, arg in enumerate(args)}
    named |= {f"argument {name!r} of the model": arg for name, arg in kwargs.items()}
    return {name: [_in_words(leaf) for leaf in leaves(arg)] for name, arg in named.items()} | {
        "arguments of the model": len(named)
    }


def describe_options(**options: Any) -> dict[str, Any]:
    """Options as a checkpoint tells them."""
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in options.items()} | {
        "version of flowppl": __version__
    }


def _in_words(leaf: Any) -> Any:
    if leaf is None or isinstance(leaf, bool | int | float | str):
        return repr(leaf)
    if hasattr(leaf, "dtype") and hasattr(leaf, "shape") and str(leaf.dtype) != "object":
        return digest(leaf)
    return type(leaf).__name__


def _joined(losses: list[np.ndarray], num_restarts: int) -> np.ndarray:
    return np.concatenate([np.zeros((num_restarts, 0)), *losses], axis=1)


def _read_training(progress, state, kept) -> Training:
    losses = state["losses"]
    parts = np.split(losses, range(CHUNK, losses.shape[1], CHUNK), axis=1) if losses.shape[1] else []
    check, *checks = (_read_check(check) for check in (progress["check"], *progress["checks"]))
    rest = {name: progress[name] for name in ("num_affine", "num_rounds", "done", "seconds", "is_first", "stopped")}
    _check_that(0 <= rest["num_affine"] <= MAX_AFFINE_ROUNDS and 0 <= rest["num_rounds"] <= MAX_ROUNDS, "its rounds")
    _check_that(rest["done"] >= 0 and rest["seconds"] >= 0 and len(losses) == progress["num_restarts"], "its steps")
    _check_that(losses.dtype == np.float64 and len(checks) > 0, "its judgements")
    return Training(kept, check, losses=parts, checks=checks, **rest)


def _check_that(is_so: bool, what: str) -> None:
    if not is_so:
        raise ValueError(f"what it says of {what} cannot be")


def _read_check(check) -> Diagnosis:
    numbers = [check[name] for name in ("k_hat", "ess", "elbo", "elbo_se", "log_evidence", "nonfinite")]
    _check_that(all(type(number) in (int, float) for number in numbers), "its judgements")
    search = check.get("search")
    return Diagnosis(**check if search is None else {**check, "search": Search(**search)})


def _describe(found: Gaussian | Modes | None, dim: int, index: int, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What a search found in plain values; its arrays are put with the others."""
    modes = single(found) if isinstance(found, Gaussian) else found
    facts: dict[str, Any] = {"dim": dim, "kind": type(found).__name__}
    if modes is None:
        return facts
    arrays[f"{index}.loc"] = np.stack([each.loc for each in modes.gaussians])
    arrays[f"{index}.scale"] = np.stack([each.scale for each in modes.gaussians])
    arrays[f"{index}.log_weights"] = modes.log_weights
    numbers = dataclasses.asdict(dataclasses.replace(modes, gaussians=()))
    del numbers["gaussians"], numbers["log_weights"]
    return facts | {"elbos": [float(each.elbo) for each in modes.gaussians], "numbers": numbers}


def _read_searches(described, arrays) -> tuple[list[Any], list[int]]:
    found: list[Any] = []
    for i, facts in enumerate(described):
        if facts["kind"] == "NoneType":
            found.append(None)
            continue
        loc, scale, log_weights = (arrays[f"{i}.{name}"] for name in ("loc", "scale", "log_weights"))
        shape = len(facts["elbos"]), int(facts["dim"])
        is_right = loc.shape == shape and scale.shape in (shape, (*shape, shape[1])) and log_weights.shape == shape[:1]
        _check_that(is_right and shape[0] > 0 and all(type(elbo) is float for elbo in facts["elbos"]), "its searches")
        gaussians = tuple(Gaussian(*each) for each in zip(loc, scale, facts["elbos"], strict=True))
        is_modes = facts["kind"] == "Modes"
        found.append(Modes(gaussians, log_weights, **facts["numbers"]) if is_modes else gaussians[0])
    return found, [int(facts["dim"]) for facts in described]
