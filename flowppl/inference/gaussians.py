"""Densities of Gaussians with a lower-triangular scale, or a vector of scales, and noise that goes far beyond them."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

from flowppl._arrays.namespace import Array, namespace
from flowppl.inference.starts import Gaussian

WIDEST_SCALE, NUM_SCALES = 100.0, 13


def log_density(gaussian: Gaussian, points: np.ndarray) -> np.ndarray:
    """The log density of a Gaussian at points."""
    return log_normal(whitened(gaussian, points)) - log_det(gaussian)


def log_normal(noise: np.ndarray) -> np.ndarray:
    """The log density of a standard normal at each row."""
    return -0.5 * np.sum(noise**2, axis=1) - 0.5 * noise.shape[1] * math.log(2 * math.pi)


def log_det(gaussian: Gaussian) -> float:
    """The logarithm of the determinant of the scale."""
    return float(np.sum(np.log(gaussian.scale if gaussian.scale.ndim == 1 else gaussian.scale.diagonal())))


def whitened(gaussian: Gaussian, points: np.ndarray) -> np.ndarray:
    """Points in the coordinates in which a Gaussian is a standard normal."""
    centred = points - gaussian.loc
    if gaussian.scale.ndim == 1:
        return centred / gaussian.scale
    return scipy.linalg.solve_triangular(gaussian.scale, centred.T, lower=True).T


def widened(
    shape: tuple[int, int], rng: np.random.Generator, widest: float = WIDEST_SCALE
) -> tuple[np.ndarray, np.ndarray]:
    """Noise of heavy tails, and the logarithm of its density over that of a standard normal.

    Of standard normal noise, all coordinates of a row or one of them, by a coin, are multiplied by a scale.

    Args:
        shape: the number of rows and of coordinates.
        rng: a NumPy generator.
        widest: the scales go from 1 to this, evenly spread in their logarithms.
    """
    num, dim = shape
    noise = rng.standard_normal(shape)
    chosen, one = rng.choice(_scales(widest), num), rng.integers(dim, size=num)
    is_all = rng.random(num) < 0.5
    noise *= np.where(is_all[:, None] | (np.arange(dim) == one[:, None]), chosen[:, None], 1.0)
    return noise, wide_ratio(noise, widest)


def wide_ratio(noise: Array, widest: float) -> Array:
    """The logarithm of the density of such noise over that of a standard normal, at each row of an array."""
    xp, dim, scales = namespace(noise), noise.shape[-1], _scales(widest).tolist()
    narrower = [(1 - scale**-2) / 2 for scale in scales]
    squares = noise * noise
    total = xp.sum(squares, axis=-1)
    whole = xp.stack([total * each - dim * math.log(scale) for each, scale in zip(narrower, scales, strict=True)])
    # The largest power is taken out, so that none overflows.
    rest = sum(xp.exp(squares * (each - narrower[-1])) / scale for each, scale in zip(narrower, scales, strict=True))
    single = xp.moveaxis(squares * narrower[-1] + xp.log(rest / dim), -1, 0)
    return xp.logsumexp(xp.stack([xp.logsumexp(whole), xp.logsumexp(single)])) - math.log(2 * len(scales))


def _scales(widest):
    return np.geomspace(1.0, widest, NUM_SCALES)
