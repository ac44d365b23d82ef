r"""Mixtures of flows: what holds several modes.

With K flows of one kind, the parts :math:`q_k`, each the distribution of :math:`f_k(\varepsilon)` for a standard
normal :math:`\varepsilon`, and with weights :math:`w_k` that sum to one, the density is

.. math::
    q(z) = \sum_k w_k\, q_k(z).

It is exact, as every part scores a draw of any other. The weights of the parts are stacked along a first axis, so that
one program serves all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from scipy.special import logsumexp

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, map_tree
from flowppl.bijections.contract import Bijection
from flowppl.bijections.frozen import held
from flowppl.inference import losses
from flowppl.inference.fitting import BLOCK, NUM_CHECKS

BATCH = 128  # draws of one part at a time
MIN_DRAWS = 4096  # by which a mixture of very many parts is judged
MAX_REDRAWS = 3  # if its weights have changed so much that the draws are not in proportion
NUM_CORRECTIONS = 50
MAX_NEAR = 4  # parts by which the density is taken in training: all others would cost more than they tell


def is_mixture(params: Tree) -> bool:
    """Whether these are the parameters of a mixture, and not of one flow."""
    return "log_weights" in params


def stack_parts(parts: list[Tree], log_weights: Array) -> Tree:
    """The parameters of a mixture of flows with these weights: those of the flows, stacked, and the logarithms."""
    stacked = map_tree(lambda *leaves: namespace(leaves[0]).stack(leaves), *parts)
    return stacked | {"log_weights": log_weights}


def stacked_part(params: Tree) -> Tree:
    """The stacked parameters of the flows alone."""
    return {key: tree for key, tree in params.items() if key != "log_weights"}


Staged = Callable[[Tree], tuple[Bijection, Tree]]  # of the weights of a part, its bijection and all that this takes


def log_probs(staged: Staged, parts: Tree, z: Array) -> Array:
    """The log density of each part at z, along a first axis."""
    return namespace(z).vmap(lambda part: losses.log_prob(*staged(part), z), parts)


def log_prob(staged: Staged, parts: Tree, log_weights: Array, z: Array) -> Array:
    """The log density of a mixture at z."""
    each = log_probs(staged, parts, z)
    return namespace(z).logsumexp(each + log_weights.reshape(-1, *(1,) * (z.ndim - 1)))


def log_prob_near(staged: Staged, parts: Tree, log_weights: Array, z: Array, near: np.ndarray) -> Array:
    """The log density of a mixture at draws of each part, by the parts that are ``near`` it alone.

    Args:
        staged: as in :func:`mixture_loss`; so are ``parts`` and ``log_weights``.
        z: the draws of each part, of shape ``(K, n, D)``.
        near: the indices of the parts that count for each, ``(K, m)``.
    """
    xp = namespace(z)
    gathered = map_tree(lambda leaf: leaf[near], parts)
    each = xp.vmap(lambda own, z: log_probs(staged, own, z), gathered, z)  # (K, m, n)
    return xp.logsumexp(xp.moveaxis(each + log_weights[near][..., None], 1, 0))


def forward(staged: Staged, parts: Tree, noise: Array) -> Array:
    """The draws of each part for its own noise, of shape ``(K, n, D)``."""

    def one(part, noise):
        bijection, params = staged(part)
        return bijection.forward(params, noise)[0]

    return namespace(noise).vmap(one, parts, noise)


def mixture_loss(
    staged: Staged,
    parts: Tree,
    log_weights: Array,
    noise: Array,
    num_stretched: int,
    near: np.ndarray,
    log_density: Callable[[Array], tuple[Array, Array]],
    power: float | Array,
) -> tuple[Array, Array]:
    r"""A number with the path gradient by which all parts are trained, and the estimate of minus the ELBO.

    As :func:`flowppl.inference.losses.path_loss`, with the slope of the log density of the whole mixture:

    .. math::
        -\sum_k \mathrm{mean}\Big(w^{a}\; \nabla_z \big(\log p(z) - \log q(z)\big)^\top \partial_\theta
        f_k(\varepsilon)\Big), \qquad z = f_k(\varepsilon).

    Each part has as many draws, and its gradient is not scaled by its weight: so the light ones are trained as fast.
    The weights themselves have no gradient here; :func:`fit_weights` sets them.

    Args:
        staged: gives of the weights of a part its bijection and its weights with the constants.
        parts: the stacked weights.
        log_weights: the logarithms of the weights of the parts.
        noise: draws of the normal, of shape ``(K, n, D)``; some of them stretched.
        num_stretched: how many of the n, the first ones, may be stretched: the ELBO is estimated from the others.
        near: the parts by which the density of the mixture is taken at draws of each, ``(K, m)``.
        log_density: gives the log density to be fitted at each row, and its gradient.
        power: the power a of the importance weights.
    """
    xp, (num, each, dim) = namespace(noise), noise.shape
    z = forward(staged, parts, noise)
    fixed = xp.stop_gradient(z)
    (log_q,), pull = xp.vjp(lambda y: (log_prob_near(staged, held(parts), log_weights, y, near),), fixed)
    (slope_q,) = pull(xp.ones_like(log_q))
    log_p, slope_p = log_density(fixed.reshape(num * each, dim))
    log_w = log_p - xp.stop_gradient(log_q).reshape(num * each)
    slope = slope_p - slope_q.reshape(num * each, dim)
    finite = xp.isfinite(log_w) & xp.all(xp.isfinite(slope), axis=-1)
    log_w = xp.where(finite, log_w, xp.full_like(log_w, -math.inf))
    slope = xp.where(finite[:, None], slope, xp.zeros_like(slope))
    shares = (log_weights[:, None] + xp.zeros_like(noise[..., 0])).reshape(num * each) - math.log(each)
    relative = log_w - xp.logsumexp(log_w + shares)
    weight = xp.exp(power * xp.clip(relative, -10.0, math.log(5.0)))
    along = xp.sum(xp.stop_gradient(slope) * z.reshape(num * each, dim), axis=-1)
    loss = -xp.sum(xp.stop_gradient(weight) * along) / each
    return loss, -_mean(log_w.reshape(num, each)[:, num_stretched:], log_weights)


def _mean(log_w: Array, log_weights: Array) -> Array:
    """The mean over the mixture of what is finite, of draws in a row for each part."""
    xp = namespace(log_w)
    finite = xp.isfinite(log_w)
    share = xp.where(finite, xp.exp(log_weights)[:, None] + xp.zeros_like(log_w), xp.zeros_like(log_w))
    return xp.sum(xp.where(finite, share * log_w, xp.zeros_like(log_w))) / xp.sum(share)


def particles_of_part(num: int) -> int:
    """The draws of each of ``num`` parts in a gradient."""
    return max(16, BLOCK // num)


def nearest_parts(log_parts: np.ndarray, log_weights: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The parts that weigh most at draws of each part, itself first, of shape ``(K, m)``.

    Args:
        log_parts: the log densities of the K parts at the draws, ``(K, n)``.
        log_weights: the logarithms of their weights.
        source: the part that each draw is of.
    """
    shares = log_parts + log_weights[:, None]
    shares = np.exp(shares - logsumexp(shares, axis=0))
    overlap = np.stack([shares[:, source == k].mean(axis=1) for k in range(len(log_weights))])
    np.fill_diagonal(overlap, 2.0)
    return np.argsort(-overlap, axis=1)[:, :MAX_NEAR]


def weigh_parts(
    log_weights: np.ndarray, draw: Callable[[np.ndarray], Iterable[np.ndarray]], num_draws: int = NUM_CHECKS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The weights of a mixture as its own draws say, the log importance weights of draws from it, and what is near.

    Args:
        log_weights: the logarithms of the weights so far.
        draw: gives of the indices of parts, one for each batch of ``BATCH`` draws, log p of shape ``(batches, BATCH)``
            and the log densities of all parts, ``(batches, K, BATCH)``.
        num_draws: how many draws to judge by; fewer if there are very many parts.
    """
    num = len(log_weights)
    total = min(num_draws, max(num_draws * 8 // num, MIN_DRAWS))
    for _ in range(MAX_REDRAWS):
        # Each part has its share of the batches, and one at least; always as many, for one program.
        quota = np.ceil(np.exp(log_weights) * total / BATCH - 1e-9).astype(int).clip(1)
        batches = np.repeat(np.arange(num), quota)
        spare = np.zeros(total // BATCH + num - len(batches), dtype=int)
        batches = np.sort(np.concatenate([batches, spare]))
        log_p, log_parts = draw(batches)
        log_p, log_parts = log_p.ravel(), np.moveaxis(log_parts, 1, 0).reshape(num, -1)
        source = np.repeat(batches, BATCH)
        log_weights = fit_weights(log_weights, log_p, log_parts, source)
        # Draws in proportion to the new weights, as many as there are.
        counts = np.bincount(source, minlength=num)
        size = min(total, np.min(counts / np.exp(log_weights)))
        if size >= total / 2:
            break
    kept = np.concatenate([np.flatnonzero(source == k)[: round(size * np.exp(log_weights[k]))] for k in range(num)])
    log_q = logsumexp(log_parts[:, kept] + log_weights[:, None], axis=0)
    near = nearest_parts(log_parts, log_weights, source)
    return log_weights, np.random.default_rng(0).permutation(log_p[kept] - log_q), near


def fit_weights(log_weights: np.ndarray, log_p: np.ndarray, log_parts: np.ndarray, source: np.ndarray) -> np.ndarray:
    r"""The logarithms of the weights with which the parts of a mixture fit a density together.

    .. math::
        w_k \leftarrow w_k\; \mathrm{mean}\Big(\frac{p(z)}{\sum_j w_j\, q_j(z)}\Big), \qquad z \sim q_k ,

    which raises the mean of :math:`\log q` under p with each step.

    Args:
        log_weights: those to begin with, of shape ``(K,)``.
        log_p: the log density at each draw, of shape ``(n,)``.
        log_parts: those of the K parts, of shape ``(K, n)``.
        source: the part that each draw is of.
    """
    highest = np.maximum(log_parts.max(axis=0), -1e300)
    parts, density = np.exp(log_parts - highest), np.exp(np.minimum(log_p - highest, 700.0))
    counts = np.bincount(source, minlength=len(parts))
    weights = np.exp(log_weights)
    for _ in range(NUM_CORRECTIONS):
        ratios = density / np.maximum(weights @ parts, 1e-300)
        weights = weights * np.bincount(source, ratios, len(parts)) / counts
        weights = np.maximum(weights / weights.sum(), 1e-20)
    return np.log(weights / weights.sum())
