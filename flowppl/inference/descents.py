"""Where minus a log density leads from many points at once, by limited-memory quasi-Newton paths side by side.

References:
    Nocedal, Wright: Numerical Optimization, 2006, chapter 7.
"""

from __future__ import annotations

import math
import time

import numpy as np

from flowppl.inference.gaussians import whitened
from flowppl.inference.starts import Gaussian, Target, scaled

MAX_STEPS = 200
MEMORY = 10
DONE = 1e-3  # nats that a descent would still gain


@np.errstate(over="ignore", invalid="ignore")  # far out, where a step is not taken
def descend(
    target: Target, points: np.ndarray, metric: Gaussian, end: float = math.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Where minus the log density leads from each of the points, and whether that is an end.

    All descents go side by side, each with its own limited-memory quasi-Newton steps in the coordinates of ``metric``.
    In each round every one has one point evaluated: it is taken if the density has risen enough, else the step is cut.
    At the time ``end`` of the monotonic clock they stop where they are.
    """

    def evaluate(u):
        values, slopes = target.values_and_gradients(metric.loc + scaled(metric.scale, u))
        finite = np.isfinite(values) & np.isfinite(slopes).all(axis=1)
        slopes = np.where(finite[:, None], slopes, 0.0)
        slopes = slopes @ metric.scale if metric.scale.ndim == 2 else slopes * metric.scale
        return np.where(finite, -values, np.inf), -slopes

    u = whitened(metric, points)
    value, slope = evaluate(u)
    num, dim = u.shape
    steps: np.ndarray = np.zeros((MEMORY, num, dim))
    changes: np.ndarray = np.zeros((MEMORY, num, dim))
    inverses: np.ndarray = np.zeros((MEMORY, num))  # 1 / (step . change), 0 where there is none
    active, converged = np.isfinite(value), np.zeros(num, dtype=bool)
    length, cuts, calm = np.ones(num), np.zeros(num), np.zeros(num)
    direction = _direction(slope, steps, changes, inverses)
    for _ in range(MAX_STEPS):
        if not active.any() or time.monotonic() >= end:
            break
        descent = np.sum(direction * slope, axis=1)
        trial = u + np.where(active, length, 0.0)[:, None] * direction
        trial_value, trial_slope = evaluate(trial)
        taken = active & (trial_value <= value + 1e-4 * length * descent)
        step, change = trial - u, trial_slope - slope
        product = np.sum(step * change, axis=1)
        useful = taken & (product > 1e-12 * np.sum(change**2, axis=1))
        steps, changes, inverses = (np.roll(a, 1, axis=0) for a in (steps, changes, inverses))
        # Rows that have nothing new keep their memory in order: their entries are rolled back.
        for array in (steps, changes, inverses):
            array[:, ~useful] = np.roll(array[:, ~useful], -1, axis=0)
        steps[0, useful], changes[0, useful] = step[useful], change[useful]
        inverses[0, useful] = 1 / product[useful]
        u, slope = np.where(taken[:, None], trial, u), np.where(taken[:, None], trial_slope, slope)
        gained, value = value - np.where(taken, trial_value, value), np.where(taken, trial_value, value)
        cuts = np.where(taken, 0, cuts + 1)
        length = np.where(taken, 1.0, 0.3 * length)
        direction = np.where(taken[:, None], _direction(slope, steps, changes, inverses), direction)
        # One small gain may be that of a bend in a valley.
        is_small = taken & (gained < DONE) & (-np.sum(direction * slope, axis=1) / 2 < DONE)
        calm = np.where(taken, np.where(is_small, calm + 1, 0), calm)
        converged |= (active & (calm == 3)) | (active & (cuts > 20) & (-descent / 2 < 10 * DONE))
        active &= ~converged & (cuts <= 20)
    return metric.loc + scaled(metric.scale, u), converged


def _direction(slope, steps, changes, inverses):
    """The quasi-Newton directions of all rows, by the two-loop recursion; a short step down where nothing is known."""
    q, alphas = slope.copy(), []
    for step, change, inverse in zip(steps, changes, inverses, strict=True):
        alphas.append(inverse * np.sum(step * q, axis=1))
        q -= alphas[-1][:, None] * change
    known = inverses[0] > 0
    curvature = np.where(known, inverses[0] * np.sum(changes[0] ** 2, axis=1), np.linalg.norm(slope, axis=1) + 1e-300)
    q /= curvature[:, None]
    for step, change, inverse, alpha in zip(steps[::-1], changes[::-1], inverses[::-1], alphas[::-1], strict=True):
        q += (alpha - inverse * np.sum(change * q, axis=1))[:, None] * step
    return -q
