"""Importance weights with a Pareto-smoothed tail; :mod:`flowppl.diagnostics` judges a guide by them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np

from flowppl.checks import level_of_caller

NUM_BATCHES = 4  # over which a guide's k-hat is the median, in the rounds of a fit as in diagnose
MIN_BATCH = 25  # fewer draws have no tail to speak of
MIN_MARGINAL = 100  # fewer are too few for the tail of a marginal
LEAST_SHARE = 1e-12  # in the place of zero, of which there is no logarithm
LOG_TINY = math.log(np.finfo(np.float64).tiny)  # of weights that are zero beside the largest


def k_hat(log_weights, num_batches: int = 1) -> float:
    r"""The shape :math:`\hat k` of the Pareto tail of importance weights; the median over batches.

    Weights :math:`w = p(x, z) / q(z)` of draws from the guide q have a heavy tail where q misses mass of the posterior.
    Up to :func:`k_hat_threshold` estimates corrected by the weights are reliable; above they are not to be trusted. The
    value for one batch is noisy (by 0.1 to 0.2 for a funnel), and small batches do not see far into a tail: ``fit`` and
    ``diagnose`` take the median of 4.

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z), one for each draw.
        num_batches: the number of equal batches to cut it into.

    Returns:
        The median; ``inf`` if half of the batches or more have a weight that is not finite. It is 0 if the largest
        weights are all equal, as those of an exact guide.

    Raises:
        ValueError: if a batch has fewer than 25 draws, too few for a tail, or there is not one number for each draw.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry: Pareto Smoothed Importance Sampling, 2015, arXiv 1507.02646. Yao, Vehtari,
        Simpson, Gelman: Yes, but Did It Work?, 2018, arXiv 1802.02538.

    Example:
        >>> import numpy as np
        >>> from flowppl.diagnostics import k_hat
        >>> z = np.random.default_rng(0).normal(size=20_000)
        >>> bool(k_hat(-0.1 * z**2, num_batches=20) < 0.5)  # a guide that is wider than its target
        True
    """
    log_weights = as_weights(log_weights)
    size = batch_size("k_hat", log_weights, num_batches)
    batches = log_weights[: size * num_batches].reshape(num_batches, size)
    return float(np.median([smooth(batch)[1] if np.isfinite(batch).all() else np.inf for batch in batches]))


def k_hat_threshold(num_draws: int) -> float:
    r"""The largest :math:`\hat k` with which S draws give reliable estimates: min(1 - 1 / log10(S), 0.7).

    It is the one limit for :math:`\hat k` in this package: in the checks of a fit, in ``diagnose`` and in ``resample``.

    Args:
        num_draws: the number S of all draws that the estimates rest on, at least 2; not that of a batch.

    Raises:
        ValueError: for fewer.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry: Pareto Smoothed Importance Sampling, 2015, arXiv 1507.02646.

    Example:
        >>> from flowppl.diagnostics import k_hat_threshold
        >>> k_hat_threshold(100), k_hat_threshold(10_000)
        (0.5, 0.7)
    """
    if num_draws < 2:
        raise ValueError(f"k_hat_threshold needs at least 2 draws, got {num_draws}")
    return min(1 - 1 / math.log10(num_draws), 0.7)


def marginal_k_hat(log_weights, draws: Mapping) -> dict[str, float]:
    r"""For each coordinate the shape k of the tail of its marginal's importance ratio, from 0 to 1.

    The ratio of the marginals of a coordinate :math:`z_i` under the posterior p and the guide q is the mean weight of
    the draws that share its value: :math:`r_i(x) = p(z_i = x) / q(z_i = x) = E_q[w \mid z_i = x]`, with the weights w
    normalised to a mean of 1. Its shape is never above that of w, and often below: many small errors add up in w, and
    one wrong coordinate spoils w for all.

    The draws are put in the order of :math:`z_i` and cut into blocks of 40 neighbours. The mean weights of three
    quarters of the draws, evenly spread, rank the blocks; those of the fourth measure what mass of the posterior each
    has. With G(j) the mass of the first j blocks, a Pareto tail of shape k has :math:`G(j) \propto j^{1 - k}`; k is the
    slope that the first fifth of the blocks shows, the median over the four quarters. So a single large weight, which
    says nothing of this coordinate, does not make its block look heavy.

    A coordinate above :func:`k_hat_threshold` is one that the guide has wrong. One below it is right as far as these
    draws show, and they show less than the ratio itself would: nothing beyond the outermost blocks (a posterior with
    the tails of Student's t for 3 degrees of freedom under a normal guide: 0.4, where 10,000 ratios of the marginals
    give 0.7), and, where :math:`\hat k` of w is above its threshold, little of errors that need several coordinates at
    once (a normal posterior of correlation 0.95 under independent normals of its conditional sds: 0.5, and 0.8).

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z), one for each draw.
        draws: the draws that they belong to: for each site an array ``(n, ...)``.

    Returns:
        A number for each coordinate, under names such as ``z`` and ``z[0,1]``; ``inf`` if no weight is finite. Draws
        with a value that is not finite are left out.

    Raises:
        ValueError: for fewer than 100 draws, or draws that are not as many as the weights.

    References:
        Yao, Vehtari, Simpson, Gelman: Yes, but Did It Work?, 2018, arXiv 1802.02538, on shapes of marginals and of all.

    Example:
        >>> import numpy as np
        >>> from flowppl.diagnostics import marginal_k_hat
        >>> z = np.random.default_rng(0).normal(size=(10_000, 2))
        >>> found = marginal_k_hat(0.45 * z[:, 0] ** 2 + 0.05 * z[:, 1] ** 2, {"z": z})  # the first is too narrow
        >>> found["z[0]"] > 0.7, found["z[1]"] < 0.3
        (True, True)
    """
    weights = weigh(log_weights)[0]
    if len(weights) < MIN_MARGINAL:
        raise ValueError(f"marginal_k_hat needs at least {MIN_MARGINAL} draws, got {len(weights)} log weights")
    for name, value in draws.items():
        if np.shape(value)[:1] != weights.shape:
            raise ValueError(
                f"marginal_k_hat: site {name!r} must be ({len(weights)}, ...), as there are so many log weights, got "
                f"{np.shape(value)}"
            )
    return {name: _marginal_shape(weights, values) for name, values in coordinates(draws).items()}


def _marginal_shape(weights: np.ndarray, values: np.ndarray) -> float:
    """The shape of the tail of the ratio of one coordinate's marginals."""
    weights, values = weights[np.isfinite(values)], values[np.isfinite(values)]
    length = 4 * min(max(len(values) // 200, 1), 10)
    num_blocks = len(values) // length
    if num_blocks < 10:
        return math.inf
    # Equal values stay in the order in which they were drawn, so their blocks tell nothing, as it should be.
    ordered = weights[np.argsort(values, kind="stable")]
    middle, rest = len(ordered) // 2, len(ordered) % length  # what is left over is not taken from a tail
    quarters = np.delete(ordered, slice(middle, middle + rest)).reshape(num_blocks, -1, 4).mean(axis=1)
    ranking = np.argsort(quarters - quarters.sum(axis=1, keepdims=True), axis=0, kind="stable")
    mass = np.cumsum(np.take_along_axis(quarters, ranking, axis=0), axis=0)[: num_blocks // 5]
    mass = mass[:, mass[-1] > 0]
    if not mass.size:
        return math.inf
    share = np.maximum(mass / mass[-1], LEAST_SHARE)
    uniform = np.arange(1, len(mass) + 1) / len(mass)
    return max(1 - float(np.median(np.log(share).mean(axis=0))) / float(np.log(uniform).mean()), 0.0)


def coordinates(draws: Mapping) -> dict[str, np.ndarray]:
    """The coordinates of all sites, as vectors over the draws, under names such as ``z`` and ``z[0,1]``."""
    result = {}
    for name, value in draws.items():
        value = np.asarray(value, dtype=np.float64)
        columns = value.reshape(len(value), math.prod(value.shape[1:])).T
        for index, column in zip(np.ndindex(value.shape[1:]), columns, strict=True):
            result[f"{name}[{','.join(map(str, index))}]" if index else name] = column
    return result


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    r"""Log weights with their largest replaced by quantiles of the Pareto tail fitted to them, and its shape.

    The tail is the :func:`tail_length` largest weights. What they exceed the next one by is taken to follow a
    generalised Pareto distribution; its quantiles at (i - 1/2) / m take the places of the m weights of the tail, in
    their order, and none becomes larger than the largest weight was.

    Args:
        log_weights: a vector of log weights, not normalised, of which none is NaN or plus infinity, and one is finite.

    Returns:
        The smoothed log weights in the same order and scale, and :math:`\hat k`. It is infinite, and the weights are
        as they were, if four or fewer are in the tail.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry: Pareto Smoothed Importance Sampling, 2015, arXiv 1507.02646.
    """
    size = len(log_weights)
    if size < MIN_BATCH:
        return log_weights, math.inf
    highest = log_weights.max()
    cut = max(np.partition(log_weights, -tail_length(size) - 1)[-tail_length(size) - 1], highest + LOG_TINY)
    if highest - cut <= 1e-6:  # equal but for rounding, where the fit has nothing to see
        return log_weights, 0.0
    tail = np.flatnonzero(log_weights > cut)
    if len(tail) <= 4:
        return log_weights, math.inf
    tail = tail[np.argsort(log_weights[tail], kind="stable")]
    # What the weights exceed the cut by, in units of the largest weight; as a product, it loses no digits.
    excess = np.exp(log_weights[tail] - highest) * -np.expm1(cut - log_weights[tail])
    shape, scale = fit_pareto(excess)
    exponential = -np.log1p(-(np.arange(len(tail)) + 0.5) / len(tail))  # quantiles for shape 0
    # What overflows would be cut down to the largest weight all the same.
    fitted = scale * (np.expm1(np.minimum(shape * exponential, 700.0)) / shape if shape else exponential)
    smoothed = log_weights.copy()
    smoothed[tail] = highest + np.minimum(np.log(fitted + np.exp(cut - highest)), 0.0)
    return smoothed, shape


def fit_pareto(excess: np.ndarray) -> tuple[float, float]:
    r"""The shape k and the scale :math:`\sigma` of a generalised Pareto distribution, by an empirical Bayes estimate.

    The density is :math:`p(x) = (1 + k x / \sigma)^{-1/k - 1} / \sigma`. With :math:`\theta = -k / \sigma` the
    likelihood is largest, for a given :math:`\theta`, at :math:`k = \frac1n \sum_i \log(1 - \theta x_i)`. The estimate
    of :math:`\theta` is the mean of a grid of values, weighted by this likelihood; the shape is drawn towards 1/2 as if
    by ten further numbers.

    Args:
        excess: positive numbers in ascending order, five or more.

    References:
        Zhang, Stephens: A New and Efficient Estimation Method for the Generalized Pareto Distribution, 2009. The pull
        towards 1/2 is that of Vehtari, Simpson, Gelman, Yao, Gabry: Pareto Smoothed Importance Sampling, 2015,
        arXiv 1507.02646.
    """
    size = len(excess)
    num_values = 30 + math.isqrt(size)
    quartile = excess[int(size / 4 + 0.5) - 1]
    grid = 1 / excess[-1] + (1 - np.sqrt(num_values / (np.arange(num_values) + 0.5))) / (3 * quartile)
    grid[grid == 0] = 1e-12 / excess[-1]  # at zero itself the likelihood is a limit
    shapes = np.log1p(-grid[:, None] * excess).mean(axis=1)
    log_likelihood = size * (np.log(-grid / shapes) - shapes - 1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    theta = float(grid @ weights / weights.sum())
    shape = float(np.log1p(-theta * excess).mean())
    return (size * shape + 10 * 0.5) / (size + 10), -shape / theta


def tail_length(num_draws: int) -> int:
    """How many of the largest weights are smoothed: min(n / 5, 3 sqrt(n))."""
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def effective_sample_size(log_weights) -> float:
    r"""How many independent draws of the posterior the weighted draws are worth.

    With Pareto-smoothed, normalised weights this is :math:`1 / \sum_i \bar w_i^2`; a weight that is not finite counts
    as zero.

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z), one for each draw.


    Example:
        >>> import numpy as np
        >>> from flowppl.diagnostics import effective_sample_size
        >>> round(effective_sample_size(np.full(1000, -3.0)))
        1000
    """
    return effective(weigh(log_weights)[0])


def as_weights(log_weights) -> np.ndarray:
    """Log weights in float64; raise ValueError unless there is one number for each draw."""
    log_weights = np.asarray(log_weights, dtype=np.float64)
    if log_weights.ndim != 1:
        raise ValueError(
            f"log weights must be one number for each draw, got an array of shape {log_weights.shape}; if each datum "
            "has its own, sum those of a draw"
        )
    return log_weights


def batch_size(owner: str, log_weights: np.ndarray, num_batches: int) -> int:
    """The draws in each batch; raise ValueError unless they are enough for a tail."""
    size = len(log_weights) // max(num_batches, 1)
    if num_batches < 1 or size < MIN_BATCH:
        raise ValueError(
            f"{owner} needs at least {MIN_BATCH} draws in each batch, got {len(log_weights)} in {num_batches} batches"
        )
    return size


def weigh(log_weights) -> tuple[np.ndarray, float, float]:
    """Smoothed weights that sum to one, zero where not finite; their k-hat; the log of the mean smoothed weight.

    If none is finite the weights are all zero, k-hat is infinite and the mean zero.
    """
    log_weights = as_weights(log_weights)
    finite = np.isfinite(log_weights)
    weights = np.zeros(len(log_weights))
    if not finite.any():
        return weights, math.inf, -math.inf
    smoothed, shape = smooth(log_weights[finite])
    weights[finite] = np.exp(smoothed - smoothed.max())
    total = weights.sum()
    return weights / total, shape, float(smoothed.max() + math.log(total / len(weights)))


def effective(weights) -> float:
    """The effective sample size of weights that sum to one, or of none."""
    return float(1 / np.sum(weights**2)) if weights.any() else 0.0


def resample_indices(log_weights, num_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Which draws to keep so that they follow the posterior: Pareto-smoothed importance resampling.

    Draw i is kept :math:`N \\bar w_i` times, rounded up or down at random (systematic resampling): for each draw on
    average exactly its share, with less variance than independent choices, and without a duplicate unless a weight
    is larger than 1/N. Choosing without replacement would bias the result towards the guide. The order is random.

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z), one for each draw.
        num_samples: how many to keep, N; a tenth of the draws or fewer for few duplicates.
        rng: a NumPy generator.

    Returns:
        An array of ``num_samples`` indices.

    Raises:
        ValueError: if no weight is finite, there is not one number for each draw, or ``num_samples`` is not positive.

    Warns:
        RuntimeWarning: if k-hat is above its threshold, so that the correction cannot be trusted.

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry: Pareto Smoothed Importance Sampling, 2015, arXiv 1507.02646. Kitagawa:
        Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models, 1996.

    Example:
        >>> import numpy as np
        >>> from flowppl.diagnostics import resample_indices
        >>> rng = np.random.default_rng(0)
        >>> z = rng.normal(size=10_000)  # from N(0, 1), to be corrected to N(0.5, 1)
        >>> bool(abs(z[resample_indices(0.5 * z, 1000, rng)].mean() - 0.5) < 0.15)
        True
    """
    weights, shape, _ = weigh(log_weights)
    if num_samples < 1:
        raise ValueError(f"resample_indices: num_samples must be at least 1, got {num_samples!r}")
    if not weights.any():
        raise ValueError(f"none of the {len(weights)} log weights is finite, so there is nothing to resample from")
    limit = k_hat_threshold(max(len(weights), 2))
    if shape > limit:
        warnings.warn(
            f"the resampled draws are not to be trusted: k-hat is {shape:.2f}, above {limit:.2f}; see diagnose",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )
    steps = (np.arange(num_samples) + rng.uniform()) / num_samples
    # Rounding can leave the last sum below 1; no index may then point past the last draw that has a weight.
    indices = np.minimum(np.searchsorted(np.cumsum(weights), steps, side="right"), np.flatnonzero(weights)[-1])
    return rng.permutation(indices)
