r"""What a guide lacks, by points that it did not draw: near the modes that a search found, and far out in its tails.

The guide's own draws say nothing of places where it has no mass. So draws of a *wider* guide go there: those of the
same flow f for noise of heavy tails. Of standard normal noise, all coordinates in one half of the draws, and one of
them in the other half, are multiplied by a scale s between 1 and 100, evenly spread in log s. With the density n of the
normal and r of this noise, both known, the wider guide has the density
:math:`q(z)\, r(\varepsilon) / n(\varepsilon)` at :math:`z = f(\varepsilon)`, q being that of the guide. So with the
weights :math:`w = p(x, z) / q(z)` and the evidence Z the share of the posterior in places where the guide has less than
a twentieth of its density is, whatever the posterior,

.. math::
    \frac1Z \int 1[w > 20 Z]\, p(x, z)\, dz
    = \frac1Z\, \mathrm{E}_{\varepsilon \sim r}\Big[1[w > 20 Z]\, w\, \frac{n(\varepsilon)}{r(\varepsilon)}\Big].

For a guide of several parts it is the mean over them, by their weights, of this with the weights w of the whole guide.
The estimate is never negative and right on average, so it is hardly ever large where the share is small; it may be
small where the share is large, if the mass is in a place that few of these draws meet.

References:
    Owen, Zhou: Safe and Effective Importance Sampling, 2000 (a proposal with heavy tails beside one that fits).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
from scipy.special import logsumexp

from flowppl.inference.diagnostics import Diagnosis, Search
from flowppl.inference.gaussians import widened
from flowppl.inference.modes import ABSENT, NUM_DRAWS, Modes, Target, drawn

NUM_WIDE = 16_384  # draws of the wider guide
WIDE_SECONDS = 3.0  # after which there are no more of them
SEARCH_SECONDS = 30.0  # of a search outside of a fit: for a start, and a fifth of what it leaves for modes


@dataclasses.dataclass(frozen=True)
class GuideDensity:
    """A guide as :func:`look_outside` sees it, of one part or several.

    Args:
        log_prob: the log density at points.
        log_weights: the logarithms of the weights of the parts.
        dim: the number of latents.
        weigh: gives, of the part that each row belongs to and of the noise, log p - log q at the draws of these parts.
        rows: so many rows it takes,
        block: of which so many, one after the other, are of the same part.
    """

    log_prob: Callable[[np.ndarray], np.ndarray]
    log_weights: np.ndarray
    dim: int
    weigh: Callable[[np.ndarray, np.ndarray], np.ndarray]
    rows: int
    block: int


def look_outside(
    check: Diagnosis, modes: Modes, guide: GuideDensity, target: Target, end: float = math.inf
) -> Diagnosis:
    """A judgement of a guide with what is known of places that it does not draw.

    Args:
        check: what its own draws say.
        modes: the modes that were found.
        guide: the guide.
        target: the density.
        end: by the monotonic clock, from when no draws are made that the verdict can do without.
    """
    missing = 0.0
    if len(modes.gaussians) > 1:
        missing = missing_share(modes, guide.log_prob, check.log_evidence, target)
        missing = 1 - (1 - missing) * (1 - modes.left_out)
    is_possible = math.isfinite(check.log_evidence) and time.monotonic() < end
    outside = lost_share(guide, check.log_evidence) if is_possible else 0.0
    counts = modes.num_searches, modes.num_ended, modes.num_found, len(guide.log_weights)
    return dataclasses.replace(check, search=Search(*counts, missing, modes.unseen, outside))


def lost_share(guide: GuideDensity, log_evidence: float) -> float:
    """The share of the posterior in places where the guide has less than a twentieth of its density.

    Args:
        guide: the guide.
        log_evidence: its estimate of the log evidence.
    """
    rng, num = np.random.default_rng(0), len(guide.log_weights)
    log_w, ratios, parts = [], [], []
    begin, done = time.monotonic(), 0
    while done < max(NUM_WIDE, num * guide.block):
        part = (done // guide.block + np.arange(guide.rows) // guide.block) % num
        noise, ratio = widened((guide.rows, guide.dim), rng)
        log_w.append(guide.weigh(part, noise))
        ratios.append(ratio)
        parts.append(part)
        done += guide.rows
        if done >= num * guide.block and time.monotonic() - begin > WIDE_SECONDS:
            break
    weights, ratio, part = map(np.concatenate, (log_w, ratios, parts))
    is_lost = np.isfinite(weights) & (weights > log_evidence + math.log(ABSENT))
    if not is_lost.any():
        return 0.0
    shares = guide.log_weights - logsumexp(guide.log_weights) - np.log(np.bincount(part, minlength=num))
    lost = logsumexp((weights - ratio + shares[part])[is_lost])
    return float(np.exp(lost - np.logaddexp(lost, log_evidence)))


def missing_share(
    modes: Modes, log_prob: Callable[[np.ndarray], np.ndarray], log_evidence: float, target: Target
) -> float:
    """The share of the posterior in places where a guide has less than a twentieth of its density.

    It is estimated from draws of the Gaussians at the modes, which are not the guide's own.

    Args:
        modes: the modes.
        log_prob: the log density of the guide at points.
        log_evidence: the guide's estimate of the log evidence.
        target: the density.
    """
    rng = np.random.default_rng(0)
    draws, log_p, parts = drawn(modes.gaussians, target, rng)
    log_q = log_prob(draws)
    weights = log_p - logsumexp(parts + modes.log_weights[:, None], axis=0)
    weights += np.repeat(modes.log_weights, NUM_DRAWS) - math.log(NUM_DRAWS)  # they sum to the evidence
    outside = log_p - log_q > log_evidence + math.log(ABSENT)
    if not outside.any():
        return 0.0
    missing = logsumexp(weights[outside])
    return float(np.exp(missing - np.logaddexp(missing, log_evidence)))
