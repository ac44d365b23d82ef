"""Draws of a guide beside reference draws, such as those of NUTS."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from flowppl.inference.importance import coordinates

MAX_MOMENT_ERROR = 0.3  # in reference sds, for means; in logs, for sds
MAX_MISSED = 0.08


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The largest differences between draws of a guide and reference draws, coordinate by coordinate.

    Means and sds are those of draws clipped to the central 99% of the reference, so that heavy tails do not drown them.

    Args:
        mean_error: the largest error of a mean, in sds of the reference.
        log_sd_ratio: the logarithm of sd / reference sd that is farthest from 0.
        missed: the largest share of reference draws in places where the guide has less than a tenth of that mass. The
            places are 20 intervals between quantiles of the reference, fewer if there are fewer than 1000 draws.
        worst: the coordinate that differs most.
        nonfinite: the share of reference draws with a value that is not finite; they are left out.
    """

    mean_error: float
    log_sd_ratio: float
    missed: float
    worst: str
    nonfinite: float


def compare(draws: Mapping, reference: Mapping) -> Comparison:
    """Compare draws of a guide with reference draws, such as those of NUTS, in all sites that both have.

    Args:
        draws: for each site an array ``(n, ...)``.
        reference: the same, of any number of draws; a few hundred are enough.

    Raises:
        ValueError: if they have no site in common, or one of different shapes.

    Example:
        >>> import numpy as np
        >>> from flowppl.diagnostics import compare
        >>> rng = np.random.default_rng(0)
        >>> two_modes = rng.normal(size=(1000, 2)) + [0, 5] * rng.choice([-1, 1], size=(1000, 1))
        >>> result = compare({"z": rng.normal(size=(1000, 2)) - [0, 5]}, {"z": two_modes})
        >>> result.worst, round(result.missed, 1)
        ('z[1]', 0.5)
    """
    sites = [name for name in draws if name in reference and np.size(reference[name])]
    if not sites:
        raise ValueError(f"draws and reference have no site in common: {list(draws)} and {list(reference)}")
    for name in sites:
        ours, theirs = np.shape(draws[name]), np.shape(reference[name])
        if ours[1:] != theirs[1:] or not ours or not theirs:
            raise ValueError(
                f"site {name!r} must be (n, ...) with equal ..., got {ours} in draws, {theirs} in reference"
            )
    found, known = (coordinates({name: group[name] for name in sites}) for group in (draws, reference))
    errors = np.array([_errors(found[name], known[name]) for name in known])
    mean_error, log_sd_ratio, missed = errors.T
    scores = np.abs(errors) / [MAX_MOMENT_ERROR, MAX_MOMENT_ERROR, MAX_MISSED]
    return Comparison(
        mean_error=float(mean_error.max()),
        log_sd_ratio=float(log_sd_ratio[np.argmax(np.abs(log_sd_ratio))]),
        missed=float(missed.max()),
        worst=list(known)[int(np.argmax(scores.max(axis=1)))],
        nonfinite=max(float(np.mean(~np.isfinite(values))) for values in known.values()),
    )


def _errors(draws, reference) -> tuple[float, float, float]:
    """Error of the mean, log ratio of sds and missed share of one coordinate."""
    draws, reference = draws[np.isfinite(draws)], reference[np.isfinite(reference)]
    if not len(draws) or not len(reference):
        return math.inf, math.inf, 1.0
    lower, upper = np.quantile(reference, [0.005, 0.995])
    if lower == upper:  # a constant, as above the diagonal of a Cholesky factor
        return (0.0, 0.0, 0.0) if np.allclose(draws, lower) else (math.inf, math.inf, 1.0)
    ours, theirs = np.clip(draws, lower, upper), np.clip(reference, lower, upper)
    ratio = ours.std() / theirs.std()
    edges = np.quantile(reference, np.linspace(0, 1, 1 + int(np.clip(min(len(draws), len(reference)) // 50, 2, 20))))
    edges[0], edges[-1] = -np.inf, np.inf
    share, known = (np.diff(np.searchsorted(np.sort(x), edges)) / len(x) for x in (draws, reference))
    return (
        float(abs(ours.mean() - theirs.mean()) / theirs.std()),
        math.log(ratio) if ratio > 0 else -math.inf,
        float(known[share < known / 10].sum()),
    )
