"""Importance weights with a Pareto-smoothed tail; :mod:`flowppl.diagnostics` judges a guide by them."""

from __future__ import annotations

import math
import warnings

import numpy as np

MIN_BATCH = 25  # fewer draws have no tail to speak of


def k_hat(log_weights, num_batches: int = 1) -> float:
    r"""The shape :math:`\hat k` of the Pareto tail of importance weights; the median over batches.

    Weights :math:`w = p(x, z) / q(z)` of draws from the guide q have a heavy tail where q misses mass of the posterior.
    Below 0.5 the guide is good, up to 0.7 it serves as a proposal; above, estimates from it are not to be trusted. The
    value for one batch is noisy (by 0.1 to 0.2 for a funnel), so judge by the median of many.

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z), one for each draw.
        num_batches: the number of equal batches to cut it into.

    Returns:
        The median; ``inf`` if half of the batches or more have a weight that is not finite. It is 0 if the largest
        weights are all equal, as those of an exact guide.

    Raises:
        ValueError: if a batch has fewer than 25 draws, too few for a tail, or there is not one number for each draw.
        ImportError: without arviz; install ``flowppl[diagnostics]``.

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
    r"""The largest :math:`\hat k` with which so many draws give reliable estimates: min(1 - 1 / log10(n), 0.7).

    Args:
        num_draws: the number n of draws in a batch, at least 2.

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


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    r"""Finite log weights with their largest replaced by quantiles of the Pareto tail fitted to them, and its shape.

    Args:
        log_weights: a vector of finite log weights, not normalised.

    Returns:
        The smoothed log weights in the same order and scale, and :math:`\hat k`.

    Raises:
        ImportError: without arviz; install ``flowppl[diagnostics]``.
    """
    size = len(log_weights)
    if size < MIN_BATCH:
        return log_weights, math.inf
    tail = np.sort(log_weights)[-tail_length(size) - 1 :]
    if tail[-1] - tail[0] <= 1e-6:  # equal but for rounding, where the fit has nothing to see
        return log_weights, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arviz announces its own future on import
        try:
            import arviz
        except ImportError as error:
            raise ImportError("Pareto smoothing needs arviz: pip install 'flowppl[diagnostics]'") from error
        smoothed, shape = arviz.psislw(log_weights - tail[-1], normalize=False)
    if not np.isfinite(shape):
        return log_weights, math.inf
    return smoothed + tail[-1], float(shape)


def tail_length(num_draws: int) -> int:
    """How many of the largest weights are smoothed: min(n / 5, 3 sqrt(n))."""
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def effective_sample_size(log_weights) -> float:
    r"""How many independent draws of the posterior the weighted draws are worth.

    With Pareto-smoothed, normalised weights this is :math:`1 / \sum_i \bar w_i^2`; a weight that is not finite counts
    as zero.

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z), one for each draw.

    Raises:
        ImportError: without arviz; install ``flowppl[diagnostics]``.

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
        ImportError: without arviz; install ``flowppl[diagnostics]``.

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
            stacklevel=2,
        )
    steps = (np.arange(num_samples) + rng.uniform()) / num_samples
    # Rounding can leave the last sum below 1; no index may then point past the last draw that has a weight.
    indices = np.minimum(np.searchsorted(np.cumsum(weights), steps, side="right"), np.flatnonzero(weights)[-1])
    return rng.permutation(indices)
