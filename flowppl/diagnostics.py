"""How far a fitted guide can be trusted, from its importance weights."""

from __future__ import annotations

import warnings

import numpy as np


def k_hat(log_weights, num_batches: int = 1) -> float:
    r"""The shape :math:`\hat k` of the Pareto tail of importance weights; the median over batches.

    Weights :math:`w = p(x, z) / q(z)` of draws from the guide q have a heavy tail where q misses mass of the posterior.
    Below 0.5 the guide is good, up to 0.7 it serves as a proposal; above, estimates from it are not to be trusted. The
    value for one batch is noisy (by 0.1 to 0.2 for a funnel), so judge by the median of many.

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z), one for each draw.
        num_batches: the number of equal batches to cut it into.

    Returns:
        The median; ``inf`` if more than half of the batches have a weight that is not finite.

    Raises:
        ValueError: if a batch has fewer than 25 draws, too few for a tail.
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # arviz announces its own future on import
        try:
            import arviz
        except ImportError as error:
            raise ImportError("k_hat needs arviz: pip install 'flowppl[diagnostics]'") from error

    log_weights = np.asarray(log_weights, dtype=np.float64).ravel()
    size = len(log_weights) // num_batches
    if size < 25:
        raise ValueError(
            f"k_hat needs at least 25 draws in each batch, got {len(log_weights)} in {num_batches} batches"
        )

    def shape(batch):
        if not np.isfinite(batch).all():
            return np.inf
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(arviz.psislw(batch - batch.max())[1])

    return float(np.median([shape(batch) for batch in log_weights[: size * num_batches].reshape(num_batches, size)]))
