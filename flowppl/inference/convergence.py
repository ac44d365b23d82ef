r"""Whether Markov chains agree, and how many independent draws theirs are worth.

Both numbers are those of Vehtari et al.: of chains cut in halves, for ranks in the place of values, so that they exist
for any distribution. The R-hat of m half chains of n draws each is

.. math:: \hat R = \sqrt{\frac{n - 1}{n} + \frac{B}{W}},

where W is the mean of the variances within the half chains and B the variance of their means; it is 1 for chains that
agree. The effective sample size is :math:`m n / \tau` with :math:`\tau = 1 + 2 \sum_t \rho_t`; the autocorrelations
:math:`\rho_t` at lag t are estimated from all half chains together, and summed in pairs as long as these are positive
and go down (Geyer).

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner: Rank-Normalization, Folding, and Localization, 2021, arXiv 1903.08008.
    Geyer: Practical Markov Chain Monte Carlo, 1992.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
from scipy.special import ndtri
from scipy.stats import rankdata


def r_hat(chains: np.ndarray) -> np.ndarray:
    """The larger of the R-hats of the values and of their distances from the median.

    Args:
        chains: an array ``(chains, draws, coordinates)``, of 4 draws or more.

    Returns:
        An array ``(coordinates,)``: very large where chains stand still at different values, ``inf`` where they are not
        finite, NaN where all have one value.
    """
    halves = _halves(chains)
    with np.errstate(invalid="ignore"):
        distances = np.abs(halves - np.median(halves, axis=(0, 1)))
    result = np.maximum(_split_r_hat(_normal_ranks(halves)), _split_r_hat(_normal_ranks(distances)))
    return _checked(halves, result, np.inf)


def effective_draws(chains: np.ndarray) -> np.ndarray:
    """The least of the effective sample sizes for the bulk and for the tails (5% on either side).

    Args:
        chains: an array ``(chains, draws, coordinates)``, of 4 draws or more.

    Returns:
        An array ``(coordinates,)``: 0 where draws are not finite, NaN where all have one value.
    """
    halves = _halves(chains)
    tails = [(halves <= np.quantile(chains, level, axis=(0, 1))).astype(float) for level in (0.05, 0.95)]
    return _checked(halves, np.min([_effective(each) for each in (_normal_ranks(halves), *tails)], axis=0), 0.0)


def _halves(chains):
    """Both halves of each chain as chains of their own; a middle draw is left out."""
    half = chains.shape[1] // 2
    return np.concatenate([chains[:, :half], chains[:, chains.shape[1] - half :]])


def _checked(halves, result, if_not_finite):
    finite = np.isfinite(halves).all(axis=(0, 1))
    varies = (halves != halves[:1, :1]).any(axis=(0, 1))
    return np.where(finite, np.where(varies, result, np.nan), if_not_finite)


def _normal_ranks(halves):
    """Normal quantiles of the ranks among all draws."""
    ranks = rankdata(halves.reshape(-1, halves.shape[-1]), axis=0).reshape(halves.shape)
    return ndtri((ranks - 0.375) / (halves.shape[0] * halves.shape[1] + 0.25))


def _split_r_hat(halves):
    size = halves.shape[1]
    within, between = halves.var(axis=1, ddof=1).mean(axis=0), halves.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(between > 0, np.sqrt((size - 1) / size + between / within), 1.0)


def _effective(halves):
    num, size, _ = halves.shape
    centred = halves - halves.mean(axis=1, keepdims=True)
    spectrum = scipy.fft.rfft(centred, scipy.fft.next_fast_len(2 * size), axis=1)
    covariances = scipy.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, :size].mean(axis=0) / size
    within = covariances[0] * size / (size - 1)
    variance = covariances[0] + halves.mean(axis=1).var(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlations = np.where(variance > 0, 1 - (within - covariances) / variance, 0.0)
    correlations[0] = 1.0
    # Sums of pairs of neighbours; none counts after the first that is not positive, none is above one before it.
    pairs = correlations[: size - size % 2].reshape(size // 2, 2, -1).sum(axis=1)
    pairs = np.where(np.logical_and.accumulate(pairs > 0), pairs, 0.0)
    time = 2 * np.minimum.accumulate(pairs).sum(axis=0) - 1
    total = num * size
    return total / np.maximum(time, 1 / np.log10(total))
