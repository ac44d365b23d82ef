r"""Where a guide starts: the best Gaussian that is met on several paths of an optimiser.

A mode alone is no safe start: that of a funnel is degenerate, the Hessian there says nothing about the bulk, and a
path may end in the lesser of two modes. So points all along the paths propose Gaussians, and the one with the highest
ELBO is taken. With the gradient g and the Hessian :math:`H = V \Lambda V'` of minus the log density,

.. math::
    u_{k+1} = u_k - V\,(|\Lambda| + \lambda)^{-1} V' g, \qquad q_k = N\big(u_k,\; V \max(|\Lambda|, c)^{-1} V'\big)

on a Newton path. A quasi-Newton path, for many dimensions, takes the steps of L-BFGS, and of the Hessian only the
diagonal, estimated by products with random signs.

For hundreds of dimensions a few Newton steps follow the best point of the quasi-Newton paths. The Gaussian of a Hessian
at one point loses up to 20 nats there, and where many latents share a scale no mode is of use. So the mean m and the
precision P then follow the natural gradient of the ELBO, by draws z of the Gaussian,

.. math::
    m \leftarrow m + \rho\, P^{-1}\, \mathrm{E}\, r, \quad r = \nabla \log p(z) + P (z - m), \qquad
    P \leftarrow P + \rho\, (-\nabla^2 \log p(z) - P) .

A Hessian says more than the scores of a thousand draws, which leave noise in each entry of the matrix. In the last
steps only the diagonal of P moves on, along its own natural gradient, which scores give:

.. math::
    P \leftarrow P - \rho\, \mathrm{diag}(\delta), \qquad
    (P^{-1} \circ P^{-1})\, \delta = \mathrm{E}\,\big[(P^{-1} r) \circ (z - m)\big].
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import itertools
import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import scipy.optimize

NUM_TRIALS = 32  # points in each call of the log density: the trial steps of an iteration, or the draws of a score
MAX_NEWTON_STEPS = 60
SLIGHT = 1.0  # nats that a Newton step gains where it does not get on, though a slope leads much further
LONG = 400  # steps of a second path, if the best start is the end of one
MAX_QUASI_NEWTON_STEPS = 500
DENSE_STEPS = 10  # Newton steps with a Hessian of hundreds of dimensions
BATCH = 256  # draws in each step of the natural gradient
CHUNK = 4  # steps between two estimates of the ELBO, which end them
MAX_CHUNKS = 30
NEAR = 10.0  # nats in one chunk: from then on the steps get smaller
NUM_HESSIANS = 28  # of the smaller steps, that use one
NUM_SMALL = 36  # of them all, at the least
RIDGE = 1e-3  # of that metric: keeps small what the ELBO hardly depends on
LEAST_GAIN = 0.25  # nats in one chunk
# Of the curvature: the first is that of scales of 1e31, the last keeps what the data leave open at the unit scale.
FLOORS = (1e-62, 1e-10, 1e-2, 1.0)
WIDE = 1e4  # scale of a start above which a quasi-Newton path needs another unit
NARROWEST = 1e-60  # scale of a posterior that is not degenerate: the fourth power of its inverse is still a number
FAR = 1e9  # widths, and units, from where a density that rises has no mode
STRETCH = 1e6  # of a start along an axis, at the least, over which a density must fall
NUM_AXES = 4  # the widest ones, of coordinates and of the ellipsoid, along which a density must fall
MAX_PRINCIPAL = 256  # dimensions up to which its axes are found, and a Hessian in one piece
MAX_BATCHES = 64  # over which a density that is drawn anew each time is averaged
LOWEST = -1e300  # in place of densities that are not finite; the sum of several is


_end = contextvars.ContextVar("end", default=math.inf)


@contextlib.contextmanager
def search_until(end: float) -> Iterator[None]:
    """Searches in here take what they have found by then, on the monotonic clock."""
    token = _end.set(end)
    try:
        yield
    finally:
        _end.reset(token)


def seconds_left() -> float:
    """How long searches may still take: infinite outside of :func:`search_until`."""
    return max(_end.get() - time.monotonic(), 0.0)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """A start: the location, a lower-triangular scale or a vector of scales, and the ELBO but for a constant."""

    loc: np.ndarray
    scale: np.ndarray
    elbo: float


class Target(Protocol):
    """A log density, as the adapters make it of a model: NumPy in, NumPy out."""

    def log_probs(self, points: np.ndarray) -> np.ndarray: ...
    def value_and_gradient(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def derivatives(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def hessian_products(self, point: np.ndarray, vectors: np.ndarray) -> np.ndarray: ...
    def values_and_gradients(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...


class Averaged:
    """A log density that a model draws anew each time, from a batch of its data, averaged over several batches.

    Args:
        target: the density; all that a search calls takes a seed, too.
        num: the number of batches.
    """

    def __init__(self, target: Any, num: int) -> None:
        self._target, self._num, self.eps = target, num, target.eps

    def log_probs(self, points: np.ndarray) -> np.ndarray:
        return self._mean(self._target.log_probs, points)[0]

    def value_and_gradient(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._mean(self._target.value_and_gradient, point)

    def derivatives(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._mean(self._target.derivatives, point)

    def hessian_products(self, point: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return self._mean(self._target.hessian_products, point, vectors)[0]

    def values_and_gradients(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._mean(self._target.values_and_gradients, points)

    def _mean(self, function, *inputs) -> Any:
        found = [function(*inputs, seed) for seed in range(self._num)]
        rows = [each if isinstance(each, tuple) else (each,) for each in found]
        return tuple(np.mean(each, axis=0) for each in zip(*rows, strict=True))


def newton_start(points: list[np.ndarray], target: Target, rng: np.random.Generator) -> Gaussian | None:
    """The best Gaussian with a full covariance on Newton paths; ``None`` if the density is finite at no point."""
    late = []  # the last points of paths that did not end

    def proposals(points, num_steps):
        for start in points:
            for step, (point, curvatures, vectors) in enumerate(_newton_path(start, target, num_steps)):
                if step >= num_steps - 10:
                    late.append(point)
                yield from ((point, vectors / np.sqrt(curvature)) for curvature in curvatures)

    best = _best(proposals(points, MAX_NEWTON_STEPS), len(points[0]), target, rng)
    if best is None:
        return None
    if any(np.array_equal(best.loc, point) for point in late):  # the path may go on without end: that shows there
        _best(proposals([best.loc], LONG), len(points[0]), target, rng)
    return dataclasses.replace(best, scale=_triangular(best.scale))


def dense_start(points: list[np.ndarray], target: Target, rng: np.random.Generator) -> Gaussian | None:
    """The best Gaussian with a full covariance in hundreds of dimensions; ``None`` if there is no start."""
    first = quasi_newton_start(points, target, rng)
    if first is None:
        return None
    proposals = (
        (point, vectors / np.sqrt(curvature))
        for point, curvatures, vectors in _newton_path(first.loc, target, DENSE_STEPS)
        for curvature in curvatures
    )
    best = _best(itertools.chain([(first.loc, np.diag(first.scale))], proposals), len(first.loc), target, rng)
    best = _improved(first if best is None else best, target, rng)
    return dataclasses.replace(best, scale=_triangular(best.scale))


def quasi_newton_start(points: list[np.ndarray], target: Target, rng: np.random.Generator) -> Gaussian | None:
    """The best Gaussian with independent coordinates on quasi-Newton paths, without a Hessian; else as above."""
    proposals = (
        (point, 1 / np.sqrt(curvature))
        for start in points
        for point in _quasi_newton_path(start, target, rng)
        for curvature in _floored(_curvature(point, target, rng))
    )
    return _best(proposals, len(points[0]), target, rng)


def _triangular(root):
    """The lower-triangular root of the same covariance, with a positive diagonal."""
    upper = np.asarray(np.linalg.qr(root.T, mode="r"))  # F F' = R' R
    return (upper * np.sign(upper.diagonal())[:, None]).T


def _improved(start, target, rng):
    """The start after steps of the natural gradient, as long as these gain."""
    inverse = np.linalg.inv(start.scale)
    loc, precision, is_near, num_small = start.loc, inverse.T @ inverse, False, 0
    factor = np.linalg.cholesky(precision)
    best, kept = dataclasses.replace(start, elbo=-np.inf), (loc, precision, factor)
    for _ in range(MAX_CHUNKS):
        found = []
        for _ in range(CHUNK):
            half = rng.standard_normal((BATCH // 2, len(loc)))
            noise = np.concatenate([half, -half])
            moved = _solve(factor, noise, transposed=True)
            batches = [target.values_and_gradients(loc + each) for each in np.split(moved, BATCH // (2 * NUM_TRIALS))]
            log_p, slopes = (np.concatenate(each) for each in zip(*batches, strict=True))
            finite = np.isfinite(log_p) & np.isfinite(slopes).all(axis=1)
            if not finite.any():
                break
            log_det = -np.sum(np.log(factor.diagonal()))
            found.append((log_p + 0.5 * np.sum(noise**2, axis=1))[finite] + log_det)
            residual = _solve(factor, np.where(finite[:, None], slopes, 0.0)) + finite[:, None] * noise
            size = np.maximum(np.sqrt(np.sum(residual**2, axis=1)), np.finfo(float).tiny)
            residual *= np.minimum(1.0, 2 * np.median(size[finite]) / size)[:, None]  # no draw of a far tail leads
            steps = _solve(factor, residual, transposed=True)
            if num_small < NUM_HESSIANS:
                rate = 1 / (5 + num_small / 2)
                hessian = _derivatives(loc + moved[0], target)[1]
                change = -hessian - precision if np.isfinite(hessian).all() else np.zeros_like(precision)
            else:
                rate = 1 / (2 + (num_small - NUM_HESSIANS) / 2)
                covariance = np.linalg.inv(precision)
                metric = covariance**2 + np.diag(RIDGE * covariance.diagonal() ** 2)
                change = -np.diag(np.linalg.solve(metric, np.mean(steps * moved, axis=0)))
            loc, num_small = loc + rate * steps.mean(axis=0), num_small + is_near
            precision, factor = _changed(precision, factor, rate * change)
            if time.monotonic() >= _end.get():
                break
        now = np.mean(np.concatenate(found)) if found else -np.inf
        gain = now - best.elbo
        if gain > 0:
            best = Gaussian(loc, _solve(factor, np.eye(len(loc))), now)
            kept = loc, precision, factor
        elif gain < -NEAR or not is_near:  # too far
            loc, precision, factor = kept
            num_small += CHUNK
        is_near = is_near or gain < NEAR
        if (num_small >= NUM_SMALL and gain < LEAST_GAIN) or time.monotonic() >= _end.get():
            break
    return best if best.elbo > start.elbo - 1 else start


def _solve(factor, rows, transposed=False):
    """The inverse of a lower-triangular matrix, or of its transpose, times each of the rows."""
    return scipy.linalg.solve_triangular(factor, rows.T, trans=int(transposed), lower=True).T


def _changed(precision, factor, change):
    """The precision after a change, and its factor; after a part of it where less than a half would be left."""
    for _ in range(20):
        try:
            np.linalg.cholesky(precision + 2 * change)
        except np.linalg.LinAlgError:
            change = change / 2
        else:
            return precision + change, np.linalg.cholesky(precision + change)
    return precision, factor


def _floored(curvature):
    """The size of the curvature above each of the floors, where that changes it."""
    last = None
    for floor in FLOORS:
        floored = np.fmax(np.abs(curvature), floor)  # where a second derivative is no number, the floor alone
        if last is None or not np.array_equal(floored, last):
            yield floored
        last = floored


def _curvature(point, target, rng):
    """The size of the Hessian's diagonal. Its noise comes from the rest, which a scale from the last estimate evens."""
    scale = np.ones_like(point)
    for _ in range(3):
        probes = scale * rng.choice((-1.0, 1.0), (NUM_TRIALS, len(point)))
        diagonal = np.abs(np.mean(probes * target.hessian_products(point, probes), axis=0)) / scale**2
        scale = 1 / np.sqrt(np.maximum(diagonal, FLOORS[0]))
    return diagonal


def _best(proposals, dim, target, rng):
    half = rng.standard_normal((NUM_TRIALS // 2, dim))
    noise = np.concatenate([half, -half])
    best = last = None
    for loc, scale in proposals:
        if best is not None and loc is not last and time.monotonic() >= _end.get():
            break  # after all proposals of a point, of which the first may be far too wide
        elbo, last = _elbo(loc, scale, noise, target), loc
        if np.isfinite(elbo) and (best is None or elbo > best.elbo):
            best = Gaussian(loc, scale, elbo)
    if best is not None:
        _check_width(best, target)
    return best


def check_start(start: Gaussian, target: Target, rng: np.random.Generator) -> float:
    """Whether there is a posterior at all, seen from a start. Return the share of its draws with a finite density.

    The ELBO of any Gaussian is at most the log of the posterior's total mass. Where it goes on growing as the start is
    stretched along one of its widest axes, by a million in the end, the mass is infinite. It falls even in the tails
    of a Cauchy distribution, by one for each factor e. Where the curvature along a coordinate is that of a posterior
    wider still, the start is stretched beyond that width.

    Raises:
        RuntimeError: if the posterior cannot be normalised.
    """
    half = rng.standard_normal((NUM_TRIALS // 2, len(start.loc)))
    noise = np.concatenate([half, -half])
    full = start.scale.ndim == 2
    moved = scaled(start.scale, noise)
    log_p = target.log_probs(start.loc + moved)
    finite = np.isfinite(log_p)
    if not finite.any():
        return 0.0
    width = widths(start)
    axes = np.eye(len(width))[np.argsort(-width)[:NUM_AXES]]
    if full and len(width) <= MAX_PRINCIPAL:
        principal = np.linalg.svd(start.scale)[0].T[:NUM_AXES]
        is_coordinate = np.abs(principal).max(axis=1, keepdims=True) > 1 - 1e-9
        axes = np.concatenate([axes, np.where(is_coordinate, np.round(principal), principal)])

    def elbo(axis, shift, stretch):
        along = moved @ axis
        added = stretch * (along + shift * along.std()) - along
        stretched = target.log_probs(start.loc + moved + added[:, None] * axis)[finite]
        return np.mean(stretched) + math.log(stretch) if np.isfinite(stretched).all() else -np.inf

    def rises(axis, shift, stretches, last=-np.inf):
        for stretch in stretches:
            now = elbo(axis, shift, stretch)
            if not now > last + math.log(10):
                return False
            last = now
        return True

    for axis in axes:
        for shift in (0.0, 5.0, -5.0):  # on both sides, and on either
            if rises(axis, shift, (1e2, 1e4, STRETCH), np.mean(log_p[finite])) and not _climbs(start, axis, target):
                bend = _slope_and_bend(start, axis, target)[1]
                # Of a direction that several coordinates make, a bend as slight as this would be one of rounding.
                is_told = bend < 0 and np.count_nonzero(axis) == 1
                end = 1 / (math.sqrt(-bend) * np.std(moved @ axis)) if is_told else 0.0
                if end < STRETCH or rises(axis, shift, (10 * end, 1000 * end)):
                    _refuse_improper(start, width, axis)
    return float(np.mean(finite))


def _slope_and_bend(start, axis, target):
    """The first and the second derivative of the log density along an axis."""
    slope = target.value_and_gradient(start.loc)[1] @ axis
    bend = target.hessian_products(start.loc, np.tile(axis, (NUM_TRIALS, 1)))[0] @ axis
    return slope, bend


def _climbs(start, axis, target):
    """Whether a start lies on a concave slope, far from its top: a search that did not come there proves nothing."""
    slope, bend = _slope_and_bend(start, axis, target)
    return bend < 0 and abs(slope) > 30 * math.sqrt(-bend)


def _refuse_improper(start, width, axis):
    i = int(np.argmax(np.abs(axis)))
    others = np.flatnonzero(np.abs(axis) > 0.1 * np.abs(axis[i]))
    where = f"coordinate {i}" if len(others) == 1 else f"a direction of the coordinates {_listed(others)}"
    raise RuntimeError(
        f"the posterior is improper: its log density does not fall, however far one goes along {where} of "
        f"unconstrained space (from {start.loc[i]:.3g} +- {width[i]:.2g} to a million times as far), so that its mass "
        "is infinite. Where no data bear on a latent, or none bound it, a flat prior stays flat: give it a proper one"
    )


def _listed(numbers):
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def widths(gaussian: Gaussian) -> np.ndarray:
    """The standard deviation of each coordinate."""
    return np.abs(gaussian.scale) if gaussian.scale.ndim == 1 else np.sqrt(np.sum(gaussian.scale**2, axis=1))


def scaled(scale: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Rows of noise by a scale that is a matrix or a vector."""
    return noise * scale if scale.ndim == 1 else noise @ scale.T


def _check_width(best, target):
    """Raise RuntimeError if the posterior is too narrow for numbers of this precision, or has no end."""
    eps = getattr(target, "eps", np.finfo(float).eps)
    width = widths(best)
    far = np.flatnonzero(np.abs(best.loc) > np.maximum(FAR, FAR * width))
    if len(far):
        i = int(far[0])
        further = best.loc * np.where(np.arange(len(width)) == i, 10.0, 1.0)
        here, there = target.log_probs(np.tile([best.loc, further], (NUM_TRIALS // 2, 1)))[:2]
        if there > here:
            raise RuntimeError(
                f"the posterior has no mode: the search for a start went to {best.loc[i]:.3g} in the unconstrained "
                f"coordinate {i}, and the log density rises on. Its mass is infinite: no data bound this latent and "
                "its prior is flat, or a factor rewards large values. Give it a proper prior"
            )
    i = int(np.argmin(width / np.maximum(np.abs(best.loc), NARROWEST)))
    is_narrow = (width < np.maximum(eps * np.abs(best.loc), NARROWEST)).any()
    if is_narrow and not _climbs(best, np.eye(len(width))[i], target):
        raise RuntimeError(
            f"the posterior is degenerate: the search for a start ended at {best.loc[i]:.6g} +- {width[i]:.2g} in the "
            f"unconstrained coordinate {i}, which is narrower than neighbouring numbers of this precision. The log "
            "density rises without end where a scale goes to zero, as data that are all the same make it do, or a "
            "component of a mixture that holds one datum alone: give that scale a prior which keeps it from zero, such "
            "as LogNormal; else use float64, or data less their mean"
        )


def _elbo(loc, scale, noise, target):
    """The ELBO but for a constant. What one draw deep in a tail can take away is bounded."""
    full = scale.ndim == 2
    log_p = target.log_probs(loc + scaled(scale, noise))
    if not np.isfinite(log_p).any():
        return -np.inf
    log_p = np.maximum(np.where(np.isfinite(log_p), log_p, -np.inf), LOWEST)
    log_w = log_p + 0.5 * np.sum(noise**2, axis=1)
    log_w = np.maximum(log_w, np.median(log_w) - 10 - 2 * len(loc))
    return np.mean(log_w) + (np.linalg.slogdet(scale)[1] if full else np.sum(np.log(scale)))


def _newton_path(point, target, num_steps):
    """Yield each point of the path with what may be the curvature there, and its axes, the Hessian's eigenvectors."""
    value = -target.log_probs(np.tile(point, (NUM_TRIALS, 1)))[0]
    for _ in range(num_steps):
        gradient, hessian = _derivatives(point, target)
        if not (np.isfinite(value) and np.isfinite(gradient).all() and np.isfinite(hessian).all()):
            return
        values, vectors = np.linalg.eigh(-hessian)
        sizes, slopes = np.maximum(np.abs(values), FLOORS[0]), -gradient @ vectors
        curvatures, shift = list(_floored(values)), np.zeros_like(point)
        num_floors = len(curvatures)
        for i in np.flatnonzero(sizes <= FLOORS[0]):
            found = _tip(point, -value, vectors[:, i] * np.copysign(1.0, -slopes[i]), target)
            if found is not None:
                shift, slopes[i], sizes[i] = shift + found[0], 0.0, max(found[1], sizes[i])
                curvatures = [*curvatures[:num_floors], sizes]
        yield point, curvatures, vectors
        if values[0] > 0 and 0.5 * np.sum(slopes**2 / sizes) < 1e-7:
            return
        # Newton steps that go down along every eigenvector, cut back in two ways; and longer ones, for a density that
        # falls as exp(-exp(u)), along which Newton's own go by 1/2.
        powers = 2.0 ** np.array([3, 1.5, *range(0, -12, -1), -13, -15])[:, None]
        ridges = 10.0 ** -np.arange(NUM_TRIALS // 2)[:, None]
        steps = np.concatenate([powers / sizes, 1 / (sizes + sizes.max() * ridges)])
        trials = point + shift - (steps * slopes) @ vectors.T
        trial_values = -target.log_probs(trials)
        trial_values = np.where(np.isfinite(trial_values), trial_values, np.inf)
        best = np.argmin(trial_values)
        steep = np.flatnonzero(np.abs(slopes) > 1e3 * np.sqrt(sizes))
        if value - trial_values[best] > SLIGHT or not len(steep):
            if not trial_values[best] < value:
                return
            point, value = trials[best], trial_values[best]
            continue
        # Such a slope is far from a top, at a distance that its curvature does not tell: each such axis for itself.
        before = value
        for i in steep:
            _, steps, gains, furthest = _along(point, -value, vectors[:, i] * np.copysign(1.0, -slopes[i]), target)
            if gains[furthest] > 0:
                point, value = point + steps[furthest], value - gains[furthest]
        if not value < before:
            return


def _along(point, log_p, axis, target):
    """Lengths, the steps along an axis that have them, what the log density gains by each, and which gains most."""
    lengths = 4 * max(1.0, np.abs(point).max()) * 4.0 ** -np.arange(NUM_TRIALS)
    steps = lengths[:, None] * axis
    gains = target.log_probs(point + steps) - log_p
    return lengths, steps, gains, int(np.argmax(np.where(np.isfinite(gains), gains, -np.inf)))


def _tip(point, log_p, axis, target):
    """The step to the tip of a density without curvature along an axis, and one over its squared width.

    Such is a Laplace distribution, of which the logarithm changes by 1 over the width. ``None`` if there is no tip, as
    where a log density rises without end.
    """
    lengths, steps, gains, best = _along(point, log_p, axis, target)
    if best == 0 or not np.isfinite(gains[best - 1]):
        return None
    seen = np.isfinite(gains) & (np.abs(gains) > 1e-8 * (1 + abs(log_p)))  # by more than rounding
    return steps[best] * (gains[best] > 0), min(np.max(np.where(seen, np.abs(gains) / lengths, 0.0)), 1e100) ** 2


def _derivatives(point, target):
    """The gradient and the Hessian; a large one in blocks of rows, as a model may need much memory for each."""
    dim = len(point)
    if dim <= MAX_PRINCIPAL:
        return target.derivatives(point)
    rows = np.eye(-(-dim // NUM_TRIALS) * NUM_TRIALS, dim).reshape(-1, NUM_TRIALS, dim)
    hessian = np.concatenate([target.hessian_products(point, block) for block in rows])[:dim]
    return target.value_and_gradient(point)[1], hessian


def _quasi_newton_path(point, target, rng):
    """The points of an L-BFGS path, more and more thinly."""
    unit = 1.0

    def loss(u):
        value, gradient = target.value_and_gradient(u * unit)
        finite = np.isfinite(value) and np.isfinite(gradient).all()
        return (-value, -gradient * unit) if finite else (np.inf, np.zeros_like(u))

    if not np.isfinite(loss(point)[0]):
        return []
    scale = 1 / np.sqrt(np.maximum(np.median(_curvature(point, target, rng)), FLOORS[0]))
    unit = scale if scale > WIDE else 1.0  # as its tolerance of the gradient is not free of a scale
    point = point / unit
    path = [point]
    options = {"maxiter": MAX_QUASI_NEWTON_STEPS}
    result = scipy.optimize.minimize(
        loss, point, jac=True, method="L-BFGS-B", callback=lambda u: path.append(u.copy()), options=options
    )
    spread = {0, len(path) // 8, len(path) // 4, len(path) // 2, 3 * len(path) // 4}
    return [path[i] * unit for i in sorted(spread)] + [result.x * unit]
