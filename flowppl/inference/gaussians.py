"""Densities of Gaussians with a lower-triangular scale, or a vector of scales, and noise that goes far beyond them."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg
from scipy.special import logsumexp

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


def widened(shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noise of heavy tails, and the logarithm of its density over that of a standard normal.

    Of standard normal noise, all coordinates of a row or one of them, by a coin, are multiplied by a scale of 1 to 100.

    Args:
        shape: the number of rows and of coordinates.
        rng: a NumPy generator.
    """
    num, dim = shape
    scales = np.geomspace(1.0, WIDEST_SCALE, NUM_SCALES)
    noise = rng.standard_normal(shape)
    chosen, one = rng.choice(scales, num), rng.integers(dim, size=num)
    is_all = rng.random(num) < 0.5
    noise *= np.where(is_all[:, None] | (np.arange(dim) == one[:, None]), chosen[:, None], 1.0)
    narrower = (1 - scales**-2) / 2
    squares = noise**2
    whole = squares.sum(axis=1)[:, None] * narrower - dim * np.log(scales)
    # The largest power is taken out, so that none overflows.
    rest = sum(np.exp(squares * (each - narrower[-1])) / scale for each, scale in zip(narrower, scales, strict=True))
    single = squares * narrower[-1] + np.log(rest / dim)
    return noise, np.logaddexp(logsumexp(whole, axis=1), logsumexp(single, axis=1)) - math.log(2 * NUM_SCALES)
