"""Simulation-based calibration: what ``sbc`` of both languages share, from the sites of a model to the ranks."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from flowppl.checks import check_sizes, describe, did_you_mean
from flowppl.inference.calibration import MIN_RANKED, Calibration
from flowppl.inference.importance import coordinates
from flowppl.progress import progress_bar

NUM_FAILED = 5  # if all of the first fits fail, the others would


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A draw of all sites of a model: what a guide has to find, what else it may know, and the data."""

    latents: Mapping[str, Any]
    deterministic: Mapping[str, Any]
    data: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Sites:
    """The names of sites of a model, each list in the order of the model."""

    latents: list[str]
    deterministic: list[str]
    observed: list[str]
    params: list[str]
    factors: list[str]


def choose_data(sites: Sites, observed: Iterable[str] | None) -> list[str]:
    """The names of the sites that are data; raise ValueError if the model cannot make data at them.

    Args:
        sites: those of the model.
        observed: the user's choice; ``None`` means those that the model observes.
    """
    if sites.params:
        raise ValueError(
            f"sbc: the model has parameters of its own, {', '.join(map(repr, sites.params))}, which no prior draws; "
            "fix them by handlers of the host: block(substitute(model, data=params), hide=list(params))"
        )
    if sites.factors:
        raise ValueError(
            f"sbc: at {', '.join(map(repr, sites.factors))} the model has factors, from which no data can be drawn; "
            "write them as distributions"
        )
    chosen = sites.observed if observed is None else [observed] if isinstance(observed, str) else list(observed)
    known = [*sites.observed, *sites.latents]
    for name in chosen:
        if name not in known:
            raise ValueError(f"sbc: observed must name sites of the model, got {name!r}{did_you_mean(name, known)}")
    if missing := [name for name in sites.observed if name not in chosen]:
        raise ValueError(
            f"sbc: the model observes {missing} too; all data are drawn anew, so observed= must name them, or leave "
            "them out of the model's arguments"
        )
    if not chosen:
        raise ValueError("sbc: the model observes nothing with these arguments; pass its data, or observed=[names]")
    if not set(sites.latents) - set(chosen):
        raise ValueError("sbc: the model has no latents")
    return chosen


@contextlib.contextmanager
def draws_or_says_so() -> Iterator[None]:
    """Raise ValueError where a host says that a distribution has no draws."""
    try:
        yield
    except NotImplementedError as error:
        what = str(error) or "the prior or the likelihood of one of its sites has no draws, as an improper one"
        raise ValueError(f"sbc: the model cannot make its parameters and data: {what}") from error


def check_options(num_simulations: int, num_draws: int, fit: Any, resample: bool) -> None:
    """Raise ValueError or TypeError for options of ``sbc`` that cannot be meant."""
    check_sizes("sbc", num_simulations=num_simulations)
    check_sizes("sbc", at_least=MIN_RANKED, num_draws=num_draws)
    if fit is not None and not callable(fit):
        raise TypeError(
            f"sbc: fit must be a function such as functools.partial(fit, num_steps=500), got {describe(fit)}"
        )
    if not isinstance(resample, bool):
        raise TypeError(f"sbc: resample must be True or False, got {resample!r}")


def calibrate(
    simulate: Callable[[int], Simulation],
    fit: Callable[[int, Simulation], Any],
    as_numpy: Callable[[Any], np.ndarray],
    rng: np.random.Generator,
    *,
    num_simulations: int,
    num_draws: int,
    resample: bool,
    progress: bool | None,
) -> Calibration:
    """Simulate, fit and rank.

    Args:
        simulate: draws all sites of the model; its argument is the number of the simulation.
        fit: fits a guide to the data of a simulation. An error counts as a failure, but for a TypeError, which no data
            cause.
        as_numpy: makes an array of the host one of NumPy.
        rng: draws ranks where there is a choice.

    Raises:
        RuntimeError: if all of the first fits fail.
    """
    rows: list[dict[str, int]] = []
    failures: dict[int, str] = {}
    with progress_bar("sbc", num_simulations, "fit", progress) as bar:
        for index in range(num_simulations):
            true = simulate(index)
            try:
                _check_finite("data", {name: as_numpy(value) for name, value in true.data.items()})
                drawn = take_draws(fit(index, true), num_draws, resample)
                draws = {name: as_numpy(value) for name, value in drawn.items()}
                _check_finite("draws of the guide", {name: draws[name] for name in true.latents if name in draws})
            except KeyboardInterrupt:
                if not rows:
                    raise
                break
            except TypeError:
                raise
            except Exception as error:
                failures[index] = f"{type(error).__name__}: {error}"
                if not rows and len(failures) == min(NUM_FAILED, num_simulations):
                    raise RuntimeError(f"sbc: all of the first {len(failures)} fits failed: {error}") from error
            else:
                values = {name: as_numpy(value) for name, value in {**true.latents, **true.deterministic}.items()}
                rows.append(_ranks(values, draws, list(true.latents), num_draws, rng))
            bar.update(1)
    return Calibration({name: np.array([row[name] for row in rows]) for name in rows[0]}, num_draws, failures)


def take_draws(found: Any, num_draws: int, resample: bool) -> Mapping[str, Any]:
    """The draws of what a ``fit`` returned."""
    if getattr(found, "stopped", None) == "interrupted":
        raise KeyboardInterrupt
    if hasattr(found, "resample" if resample else "sample"):
        return found.resample(num_draws) if resample else found.sample(num_draws)
    if not isinstance(found, Mapping) or resample:
        needs = "a resample method" if resample else "a sample method, or be a dict of draws"
        raise TypeError(f"sbc: what fit returns must have {needs}, got {describe(found)}")
    return found


def _check_finite(what, values):
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise ArithmeticError(f"the {what} are not finite at {name!r}")


def _ranks(true, draws, latents, num_draws, rng) -> dict[str, int]:
    """The rank of each coordinate among the draws."""
    if missing := [name for name in latents if name not in draws]:
        raise ValueError(f"sbc: the draws of fit lack the latents {missing}, and have {list(draws)}")
    names = [name for name in true if name in draws]
    for name in names:
        shape, expected = draws[name].shape, true[name].shape
        if shape[1:] != expected or shape[:1] < (num_draws,):
            raise ValueError(
                f"sbc: draws of {name!r} must have the shape ({num_draws} or more, {', '.join(map(str, expected))}), "
                f"got {shape}"
            )
    # Evenly spread, so that draws of a Markov chain become nearly independent.
    kept = {name: draws[name][np.linspace(0, len(draws[name]) - 1, num_draws).astype(int)] for name in names}
    values = coordinates({name: true[name][None] for name in names})
    result = {}
    for name, drawn in coordinates(kept).items():
        below, equal = np.sum(drawn < values[name]), np.sum(drawn == values[name])
        result[name] = int(below + rng.integers(equal + 1))
    return result
