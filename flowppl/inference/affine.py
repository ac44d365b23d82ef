r"""Steps of the affine layers of a guide alone, in NumPy, around one program of the adapter: nothing else is compiled.

As long as the flow does nothing, the guide is a Gaussian, or a mixture of K of them, and the path gradient has a closed
form. With standard normals :math:`\varepsilon`, for each part the fixed layer :math:`\mu, L`, the trained one
:math:`m, \sigma, T`, and the density p of the model,

.. math::
    z = \mu + L\,\big(m + \sigma \odot (I + T)\, \varepsilon\big), \qquad
    r = L^\top \nabla_z \big(\log p(z) - \log q(z)\big),

.. math::
    \nabla_m = \mathrm{E}\, r, \qquad \nabla_{\log \sigma} = \mathrm{E}\, r \odot \sigma \odot (I + T)\, \varepsilon,
    \qquad \nabla_T = \mathrm{tril}\; \mathrm{E}\, (r \odot \sigma)\, \varepsilon^\top .

The gradient is that of :func:`flowppl.inference.losses.path_loss`, for the power 0, by Adam.

Of few latents the best Gaussian is found without steps and rates: for draws that stay the same the ELBO is a function
like any other, whose top a quasi-Newton method finds in some twenty evaluations. The draws have the mean 0, the
covariance I and no third moments, so that the top is exact where the posterior is a Gaussian.

References:
    Giordano, Ingram, Broderick: Black Box Variational Inference with a Deterministic Objective, 2023, arXiv 2304.05527.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize
from scipy.special import logsumexp

from flowppl.inference.draws import place_of, set_place
from flowppl.inference.fitting import BLOCK, CHUNK, Chunk
from flowppl.inference.resuming import alike, under
from flowppl.inference.starts import NUM_TRIALS

DECAYS, EPS = (0.9, 0.999), 1e-4  # of Adam
NUM_FIXED, MAX_FIXED = 1024, 16  # draws that stay the same, and latents up to which so many are enough
MAX_EVALUATIONS, FLAT = 100, 0.03  # nats: the largest slope at a top

Affine = tuple[np.ndarray, np.ndarray]  # a location and a lower-triangular scale


class AffineSteps:
    """The affine layers of the K parts of a guide, while they are trained.

    Args:
        trained: the trained layer of each part: its location and its lower-triangular scale.
        fixed: the fixed layer of each.
        log_weights: the logarithms of the weights of the parts.
        near: for each part the parts that count at its draws, ``(K, m)``, itself first.
        density: gives the log density of the model and its gradient at rows of points.
        num: the number of draws of each part in a step.
        rng: draws them.
    """

    def __init__(
        self,
        trained: Sequence[Sequence[np.ndarray]],
        fixed: Sequence[Sequence[np.ndarray]],
        log_weights: np.ndarray,
        near: np.ndarray,
        density: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        num: int,
        rng: np.random.Generator,
    ) -> None:
        self.outer_loc, self.outer_scale = (np.stack(each).astype(np.float64) for each in zip(*fixed, strict=True))
        loc, scale = (np.stack(each).astype(np.float64) for each in zip(*trained, strict=True))
        width = np.diagonal(scale, axis1=1, axis2=2)
        self.values = [loc, np.log(width), np.tril(scale / width[..., None], -1)]
        self.moments = [[np.zeros_like(value) for value in self.values] for _ in DECAYS]
        self.log_weights, self.near, self.density, self.num, self.rng = log_weights, near, density, num, rng
        self.count = 0

    def memory(self) -> dict[str, np.ndarray]:
        """What there is to know of them, to go on."""
        arrays = [*self.values, *self.moments[0], *self.moments[1]]
        return {str(i): array for i, array in enumerate(arrays)} | {
            "count": np.array(self.count),
            "random": place_of(self.rng),
        }

    def recall(self, memory: Mapping[str, np.ndarray]) -> None:
        """Go back to such a memory."""
        self.values, *self.moments = (
            [alike(memory[str(3 * j + i)], self.values[i], "an affine layer") for i in range(3)] for j in range(3)
        )
        self.count = int(memory["count"])
        set_place(self.rng, memory["random"])

    def trained(self) -> list[Affine]:
        """The trained layer of each part."""
        loc, log_width, lower = self.values
        scale = np.exp(log_width)[..., None] * (lower + np.eye(loc.shape[1]))
        return list(zip(loc, scale, strict=True))

    def run(self, chunk: Chunk) -> np.ndarray:
        """Take the steps, or those for which there is time; return their losses, NaN for those left out."""
        losses = []
        for rate in chunk.rates[:CHUNK]:
            losses.append(self._step(rate))
            if time.monotonic() >= chunk.end:
                break
        return np.array(losses)

    def settle(self, end: float) -> bool:
        """Go to the top of the ELBO for draws that stay the same. Return whether it was found before the time ``end``.

        If not, nothing is moved. There is no search for many latents, several parts, or a slow model.
        """
        num, dim = self.outer_loc.shape
        if num > 1 or dim > MAX_FIXED or self.num < BLOCK:
            return False
        noise = matched_noise(NUM_FIXED, dim, self.rng)
        below = np.tril_indices(dim, -1)

        def unpack(vector):
            lower = np.zeros((dim, dim))
            lower[below] = vector[2 * dim :]
            return [vector[:dim], vector[dim : 2 * dim], lower]

        @np.errstate(over="ignore", invalid="ignore")
        def gradient(vector):
            """The ELBO and its gradient, but for constants; NaN where a draw has no finite density."""
            loc, log_width, lower = unpack(vector)
            width = np.exp(log_width)
            moved = width * (noise + noise @ lower.T)
            log_p, slope = in_blocks(self.density, self.outer_loc + (loc + moved) @ self.outer_scale[0].T)
            slope = slope @ self.outer_scale[0]
            below_diagonal = ((slope * width).T @ noise / len(noise))[below]
            parts = slope.mean(axis=0), (slope * moved).mean(axis=0) + 1, below_diagonal
            return np.mean(log_p) + np.sum(log_width), np.concatenate(parts)

        first = np.concatenate([self.values[0][0], self.values[1][0], self.values[2][0][below]])
        level = gradient(first)[0]

        def loss(vector):
            value, slopes = gradient(vector)
            if not (np.isfinite(value) and np.isfinite(slopes).all()) or time.monotonic() >= end:
                return math.inf, np.zeros_like(vector)
            return level - value, -slopes

        if not np.isfinite(level):
            return False
        options = {"maxfun": MAX_EVALUATIONS, "maxcor": MAX_EVALUATIONS, "ftol": 1e-7}
        found = scipy.optimize.minimize(loss, first, jac=True, method="L-BFGS-B", options=options).x
        values, slopes = unpack(found), gradient(found)[1]
        slopes[:dim] *= np.exp(values[1])  # what a shift by the width would gain
        if not np.abs(slopes).max() < FLAT:
            return False
        self.values = [value[None] for value in values]
        return True

    @np.errstate(over="ignore", invalid="ignore")
    def _step(self, rate):
        num, dim = self.outer_loc.shape
        loc, log_width, lower = self.values
        noise, width = self.rng.standard_normal((num, self.num, dim)), np.exp(log_width)[:, None]
        moved = width * (noise + noise @ np.swapaxes(lower, 1, 2))
        z = self.outer_loc[:, None] + (loc[:, None] + moved) @ np.swapaxes(self.outer_scale, 1, 2)
        log_p, slope = in_blocks(self.density, z.reshape(-1, dim))
        log_p, slope = log_p.reshape(num, self.num), slope.reshape(z.shape) @ self.outer_scale
        log_q, own = self._of_guide(noise, z)
        residual = slope - own
        finite = np.isfinite(log_p) & np.isfinite(residual).all(axis=2)
        if not finite.any():
            return math.nan
        residual = np.where(finite[..., None], residual, 0.0)
        scaled = residual * width
        gradients = [
            residual.mean(axis=1),
            (residual * moved).mean(axis=1),
            np.tril(np.swapaxes(scaled, 1, 2) @ noise / self.num, -1),
        ]
        if not all(np.isfinite(gradient).all() for gradient in gradients):
            return math.nan
        self._adam(gradients, rate)
        share = finite * np.exp(self.log_weights)[:, None]
        return float(np.sum(share * np.where(finite, log_q - log_p, 0.0)) / np.sum(share))

    def _of_guide(self, noise, z):
        """The log density of the guide at its draws, and the gradient in the coordinates of the trained layers."""
        num, _, dim = noise.shape
        _, log_width, lower = self.values
        log_det = log_width.sum(axis=1) + np.log(np.diagonal(self.outer_scale, axis1=1, axis2=2)).sum(axis=1)
        norm = 0.5 * dim * math.log(2 * math.pi)
        if num == 1:
            turned = scipy.linalg.solve_triangular(lower[0], noise[0].T, trans=1, lower=True, unit_diagonal=True).T
            log_q = -0.5 * np.sum(noise**2, axis=2) - norm - log_det[:, None]
            return log_q, -turned[None] / np.exp(log_width)[:, None]
        scale = self.outer_scale @ np.stack([scale for _, scale in self.trained()])
        centre = self.outer_loc + (self.outer_scale @ self.values[0][..., None])[..., 0]
        inverse = np.linalg.inv(scale)[self.near]
        u = (z[:, None] - centre[self.near][:, :, None]) @ np.swapaxes(inverse, 2, 3)
        logs = (self.log_weights - log_det)[self.near][..., None] - 0.5 * np.sum(u**2, axis=3) - norm
        log_q = logsumexp(logs, axis=1)
        slopes = np.sum(np.exp(logs - log_q[:, None])[..., None] * -(u @ inverse), axis=1)
        return log_q, slopes @ self.outer_scale

    def _adam(self, gradients, rate):
        self.count += 1
        for i, gradient in enumerate(gradients):
            parts = []
            for moments, decay, power in zip(self.moments, DECAYS, (1, 2), strict=True):
                moments[i] = decay * moments[i] + (1 - decay) * gradient**power
                parts.append(moments[i] / (1 - decay**self.count))
            self.values[i] = self.values[i] + rate * parts[0] / (np.sqrt(parts[1]) + EPS)


class KeepsAffine:
    """What a checkpoint keeps of a trainer whose affine layers may step alone: see :mod:`flowppl.training.fits`."""

    _steps_alone: list[AffineSteps]  # for each restart, in a round of such steps
    _near: np.ndarray
    num_parts: int
    target: Any
    bijection: Any

    def settle(self, end: float) -> bool:
        """Take the best Gaussian for the start, if that is soon found: see :meth:`AffineSteps.settle`."""
        self.begin(True)  # type: ignore[attr-defined]
        if not self._steps_alone or not all(steps.settle(end) for steps in self._steps_alone):
            return False
        self._follow_steps()  # type: ignore[attr-defined]
        self.fold()  # type: ignore[attr-defined]
        return True

    def memory(self, in_round: bool) -> dict[str, np.ndarray]:
        alone = self._steps_alone if in_round else []
        memory = super().memory(in_round and not alone)  # type: ignore[misc]
        for i, steps in enumerate(alone):
            memory |= {f"alone.{i}.{name}": array for name, array in steps.memory().items()}
        return memory | {"near": self._near}

    def recall(self, params: Any, memory: Mapping[str, np.ndarray], affine: bool | None) -> None:
        near = memory["near"]
        if near.dtype.kind != "i" or near.ndim != 2 or not ((near >= 0) & (near < self.num_parts)).all():
            raise ValueError(f"there are {self.num_parts} modes, and it names others")
        self._near = near
        super().recall(params, memory, affine)  # type: ignore[misc]
        for i, steps in enumerate(self._steps_alone):
            steps.recall(under(f"alone.{i}.", memory))

    def log_density(self, params: Any) -> list[float]:
        points = np.random.default_rng(0).uniform(-2, 2, (NUM_TRIALS, *self.bijection.x_shape))
        return self.target.log_probs(points)[:4].tolist()  # of so many as in a search, for which there is a program


def matched_noise(num: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Draws of a standard normal, changed so that their mean is 0 and their covariance I, and each has its negative."""
    half = rng.standard_normal((num // 2, dim))
    factor = np.linalg.cholesky(half.T @ half / len(half))
    half = scipy.linalg.solve_triangular(factor, half.T, lower=True).T
    return np.concatenate([half, -half])


def in_blocks(density: Callable, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and gradients at many points, ``BLOCK`` at a time: one program."""
    if len(points) <= BLOCK:
        return density(points)
    padded = np.concatenate([points, np.tile(points[-1:], (-len(points) % BLOCK, 1))])
    found = [density(rows) for rows in padded.reshape(-1, BLOCK, points.shape[1])]
    values, slopes = (np.concatenate(each)[: len(points)] for each in zip(*found, strict=True))
    return values, slopes
