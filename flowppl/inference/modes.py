r"""Which modes a posterior has: searches from many points, which tell when there is little left to find.

A guide that starts in one mode never sees another, and neither do its importance weights. So ``fit`` looks for others
first, by descents of minus the log density from many points at once: draws of the prior, points at all distances
around the start, and, once there are several modes, points of a box around them. The last quarter of them are chosen
out of thousands, drawn with heavy tails around the modes that are known, as those where the density is more than twenty
times what these explain: so a narrow mode is met that hardly any descent leads to. Each end is compared with the modes
that are known, in the metric of their own Gaussians; a new one is given a Gaussian like that of a start, and a mass
:math:`m_k = \mathrm{mean}(p(z) / g_k(z))` over draws z of that Gaussian :math:`g_k`, p being the density of the model.
A mode of less than a thousandth of the largest mass is left out of all that follows.

The searches go on in batches until the modes that were met *once only* are fewer than 0.5% of all searches: by Good and
Turing that is the chance that a further search meets a mode not seen so far. Where there are several modes, there are
256 searches or more, and at least 16 for each. They end after 1,024, and after 128 if more than a fifth of these met a
mode that no other met: there are too many to list. At last the Gaussians are weighted together, which corrects for
their overlap, by

.. math::
    w_k \leftarrow w_k\; \mathrm{mean}\Big(\frac{p(z)}{\sum_j w_j\, g_j(z)}\Big), \qquad z \sim g_k .

References:
    Good: The Population Frequencies of Species and the Estimation of Population Parameters, 1953. Nocedal, Wright:
    Numerical Optimization, 2006, chapter 7 (the descents are limited-memory quasi-Newton paths). Yao, Vehtari, Gelman:
    Stacking for Non-mixing Bayesian Computations, 2022, arXiv 2006.12335.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy.special import logsumexp

from flowppl.inference import starts
from flowppl.inference.descents import descend
from flowppl.inference.gaussians import log_density, log_det, log_normal, whitened, widened
from flowppl.inference.mixture import fit_weights
from flowppl.inference.resuming import remembered
from flowppl.inference.starts import NUM_TRIALS, Gaussian, scaled, widths

NUM_SEARCHES = 64  # in each batch
MAX_SEARCHES = 1024
ENOUGH = 0.005  # share of searches that met a mode alone, at which they end
MIN_SEVERAL, PER_MODE = 256, 16  # searches, in all and for each, where there are several modes: there may be more
MIN_MANY, MANY = 128, 0.2  # after so many searches, and with a larger share of modes met once, the search is given up
NUM_SCREENED = 8192  # points, out of which to choose
ABSENT = 20.0  # times denser than in the guide, or than known modes explain, is the posterior that counts as missing
MAX_MODES = 64  # that a guide holds,
MAX_OF_MANY = 16  # and where there are more than can be found, so that it cannot be right
LIGHT = math.log(1e-3)  # of a mode that does not count, beside the largest
NUM_DRAWS = 256  # by which a mode is weighed
MAX_SECONDS, SHARE = 60.0, 0.2  # of the time that is left
WIDEST = 1000.0  # of the points in the place of draws of a prior that has none
MAX_FULL = 256  # latents up to which the Gaussian at a mode has a full covariance
MAX_DISTANCE = 4.0  # squared, in sds of a mode, of what ends in it
MAX_VALLEY = 0.5  # nats between two ends of the same mode


class Target(starts.Target, Protocol):
    """The log density of a model, as an adapter makes it."""

    def prior_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """Draws of the prior in unconstrained space; rows of what has none are not finite."""


@dataclasses.dataclass(frozen=True)
class Modes:
    """The modes that were found, the heaviest first.

    Args:
        gaussians: a Gaussian at each.
        log_weights: the logarithms of their shares of the mass, which sum to one.
        num_found: how many were found; there may be too many to list.
        left_out: the share of the mass of all that were found that is in those not listed.
        num_searches: how many searches there were.
        num_ended: how many of them ended in a mode; others went on for ever, or were cut short.
        unseen: the share of searches that a further one, by an estimate, has of meeting a mode not seen so far.
    """

    gaussians: tuple[Gaussian, ...]
    log_weights: np.ndarray
    num_found: int
    left_out: float
    num_searches: int
    num_ended: int
    unseen: float

    def at_most(self, num: int | str) -> Modes:
        """The ``num`` heaviest alone; all if it is "auto"."""
        if isinstance(num, str):
            return self
        kept = self.log_weights[:num]
        return dataclasses.replace(self, gaussians=self.gaussians[:num], log_weights=kept - logsumexp(kept))


def single(start: Gaussian) -> Modes:
    """The mode of a start alone, with no search for others."""
    return Modes((start,), np.zeros(1), 1, 0.0, 0, 0, 1.0)


@dataclasses.dataclass
class _Mode:
    """A mode while the search goes on: where descents end, the Gaussian there, the one to use, and its mass."""

    centre: np.ndarray
    local: Gaussian
    gaussian: Gaussian
    log_mass: float
    hits: int = 0


def find_modes(target: Target, start: Gaussian, rng: np.random.Generator) -> Modes:
    """The modes of a density, as far as there is time: a fifth of what is left, a minute at the most.

    Args:
        target: the density.
        start: the Gaussian of a start, see :func:`flowppl.inference.starts.newton_start`. It stands for the mode that
            it leads to.
        rng: draws the points to search from.

    Returns:
        What was found; the mode of the start, with no searches, if the model cannot be run far from it.
    """

    def search():
        try:
            return _find_modes(target, start, rng)
        except RuntimeError:
            return single(start)

    return remembered(len(start.loc), search)


def _find_modes(target, start, rng):
    end = time.monotonic() + min(MAX_SECONDS, SHARE * starts.seconds_left())
    found = [_Mode(start.loc, start, start, _log_mass(start, target, rng))]
    prior = target.prior_draws(MAX_SEARCHES // 2, rng)
    num_searches, num_ended, unseen = 0, 0, 1.0
    while num_searches < MAX_SEARCHES:
        num = len(_heavy(found))
        if unseen < ENOUGH and (num == 1 or num_searches >= max(MIN_SEVERAL, PER_MODE * num)):
            break
        if num_searches >= MIN_MANY and unseen > MANY:
            break
        points = _points(prior[num_searches // 2 :], start, _heavy(found), rng)
        if not num_searches:
            points[0] = start.loc
        screened = _screened(_heavy(found), target, rng, end)
        points[NUM_SEARCHES - len(screened) :] = screened
        ends, converged = descend(target, points, start, end)
        if not num_searches:
            _adopt(found[0], ends[0], converged[0], target, rng)
        for point, has_end in zip(ends, converged, strict=True):
            mode = _mode_of(point, found, target)
            if mode is None and has_end:
                mode = _new_mode(point, found, target, rng)
            if mode is not None:
                mode.hits += 1
                num_ended += 1
                found += [] if any(mode is each for each in found) else [mode]
            if time.monotonic() >= end:
                break
        num_searches += len(points)
        unseen = sum(mode.hits == 1 for mode in _heavy(found)) / max(num_ended, 1)
        if time.monotonic() >= end:
            break
    heavy = _heavy(found)
    most = MAX_MODES if unseen <= MANY else MAX_OF_MANY
    gaussians = [mode.gaussian for mode in heavy[:most]]
    if len(gaussians) == 1:
        return Modes(tuple(gaussians), np.zeros(1), 1, 0.0, num_searches, num_ended, unseen)
    log_weights = weigh_together(gaussians, target, rng)
    kept = [k for k in np.argsort(-log_weights) if log_weights[k] > LIGHT]
    log_weights = log_weights[kept] - logsumexp(log_weights[kept])
    masses = np.exp(np.array([mode.log_mass for mode in heavy]) - heavy[0].log_mass)
    left_out = float(masses[most:].sum() / masses.sum())
    num_found = len(kept) if left_out == 0 else len(heavy)
    kept_gaussians = tuple(gaussians[k] for k in kept)
    return Modes(kept_gaussians, log_weights, num_found, left_out, num_searches, num_ended, unseen)


def _heavy(found):
    """The modes that count, the heaviest first."""
    top = max(mode.log_mass for mode in found)
    return sorted((mode for mode in found if mode.log_mass >= top + LIGHT), key=lambda mode: -mode.log_mass)


def _points(prior, start, modes, rng):
    """Where a batch of searches begins."""
    dim = len(start.loc)
    # At all distances, by the scale of unconstrained space and by that of the start.
    unit = rng.uniform(-1, 1, (NUM_SEARCHES, dim))
    radius = np.exp(rng.uniform(0, math.log(20), (NUM_SEARCHES, 1)))
    points = unit * radius
    points[::2] = start.loc + scaled(start.scale, 3 * points[::2])
    half = prior[: NUM_SEARCHES // 2]
    wide = unit[: len(half)] * np.exp(rng.uniform(0, math.log(WIDEST), (len(half), 1)))  # in the place of a flat prior
    points[: len(half)] = np.where(np.isfinite(half).all(axis=1)[:, None], half, wide)
    if len(modes) > 1:
        locs, margins = np.stack([m.gaussian.loc for m in modes]), 3 * np.stack([widths(m.gaussian) for m in modes])
        low, high = (locs - margins).min(axis=0), (locs + margins).max(axis=0)
        box = (low + high) / 2 + 1.5 * (high - low) / 2 * unit
        points[NUM_SEARCHES // 4 : 3 * NUM_SEARCHES // 4] = box[: NUM_SEARCHES // 2]
    return points


@np.errstate(over="ignore", invalid="ignore")
def _screened(modes, target, rng, end):
    """Points of far more mass than the Gaussians at the known modes explain, chosen by their importance weights."""
    stop = time.monotonic() + max(end - time.monotonic(), 0.0) / 10
    drawn = []
    for mode in modes:
        noise, ratio = widened((NUM_SCREENED // len(modes), len(mode.gaussian.loc)), rng)
        points = mode.gaussian.loc + scaled(mode.gaussian.scale, noise)
        log_r = log_normal(noise) - log_det(mode.gaussian) + ratio
        drawn.append((points, log_probs_of(target, points, stop), log_r))
    z, log_p, log_r = map(np.concatenate, zip(*drawn, strict=True))
    log_q = logsumexp([mode.log_mass + log_density(mode.gaussian, z) for mode in modes], axis=0)
    unexplained = np.flatnonzero(log_p > log_q + math.log(ABSENT))
    order = np.argsort(log_r[unexplained] - log_p[unexplained] - rng.gumbel(size=len(unexplained)))
    return z[unexplained[order[: NUM_SEARCHES // 4]]]


def _adopt(first, point, has_end, target, rng):
    """Let the mode of the start be known by the end of the descent from there."""
    local = _gaussian_at(point, first.gaussian.scale.ndim == 2, target, rng) if has_end else None
    if local is not None:
        first.centre, first.local = point, local
        if local.elbo > first.gaussian.elbo:
            first.gaussian, first.log_mass = local, _log_mass(local, target, rng)


def _new_mode(point, found, target, rng):
    """The mode at the end of a descent; one of those known if it is that after all; ``None`` if it is none."""
    gaussian = _gaussian_at(point, found[0].gaussian.scale.ndim == 2, target, rng)
    if gaussian is None:
        return None
    known = _mode_of(gaussian.loc, found, target)
    if known is not None:
        return known
    return _Mode(gaussian.loc, gaussian, gaussian, _log_mass(gaussian, target, rng))


def _gaussian_at(point, dense, target, rng):
    """The best Gaussian on a path from the end of a descent; ``None`` if there is none of a width."""
    # Of hundreds of latents a full Hessian for each would take too long.
    search = starts.newton_start if dense and len(point) <= MAX_FULL else starts.quasi_newton_start
    try:
        return search([point], target, rng)
    except RuntimeError:  # narrower than neighbouring numbers
        return None


def _mode_of(point, found, target):
    """The known mode that a point belongs to: near it in the metric of the mode, or with no valley in between."""
    distances = [np.sum(whitened(mode.local, point[None] - mode.centre + mode.local.loc) ** 2) for mode in found]
    nearest = found[int(np.argmin(distances))]
    if min(distances) < MAX_DISTANCE:
        return nearest
    way = np.linspace(0, 1, NUM_TRIALS)[:, None]
    values = target.log_probs(point + way * (nearest.centre - point))
    if not np.isfinite(values[0]):  # a descent that never began
        return None
    return nearest if values.min() >= min(values[0], values[-1]) - MAX_VALLEY else None


def _log_mass(gaussian, target, rng):
    noise = rng.standard_normal((NUM_DRAWS, len(gaussian.loc)))
    log_p = log_probs_of(target, gaussian.loc + scaled(gaussian.scale, noise))
    return float(logsumexp(log_p - log_normal(noise) + log_det(gaussian)) - math.log(NUM_DRAWS))


def weigh_together(gaussians: Sequence[Gaussian], target: Target, rng: np.random.Generator) -> np.ndarray:
    """The logarithms of the weights with which Gaussians fit the density together."""
    _, log_p, log_parts = drawn(gaussians, target, rng)
    first = np.full(len(gaussians), -math.log(len(gaussians)))
    return fit_weights(first, log_p, log_parts, np.repeat(np.arange(len(gaussians)), NUM_DRAWS))


def drawn(gaussians, target, rng):
    """Draws of each Gaussian, their log densities under the target, and under all Gaussians."""
    noise = rng.standard_normal((len(gaussians), NUM_DRAWS, len(gaussians[0].loc)))
    draws = np.concatenate([g.loc + scaled(g.scale, e) for g, e in zip(gaussians, noise, strict=True)])
    return draws, log_probs_of(target, draws), np.stack([log_density(g, draws) for g in gaussians])


def log_probs_of(target, points, end=math.inf):
    """The log densities of many points, by as many at once as the target has a program for; minus infinity for what is
    not a number, and after the time ``end``."""
    size = getattr(target, "num_rows", NUM_TRIALS)
    padded = np.concatenate([points, np.tile(points[-1:], (-len(points) % min(size, len(points)), 1))])
    values = [
        target.log_probs(rows) if time.monotonic() < end else np.full(len(rows), -np.inf)
        for rows in padded.reshape(-1, min(size, len(points)), points.shape[1])
    ]
    return np.nan_to_num(np.concatenate(values)[: len(points)], nan=-np.inf, posinf=-np.inf, neginf=-np.inf)
