"""What guides are fitted by, for a density on the real space of a flow."""

from __future__ import annotations

import math
from collections.abc import Callable

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection


def log_prob(bijection: Bijection, params: Tree, y: Array) -> Array:
    """The log density at y of the flow from the standard normal."""
    x, log_det = bijection.inverse(params, y)
    return standard_log_prob(x) + log_det


def standard_log_prob(x: Array) -> Array:
    """The log density of the standard normal, summed over the last axis."""
    return -0.5 * namespace(x).sum(x * x, axis=-1) - 0.5 * x.shape[-1] * math.log(2 * math.pi)


def stretched(noise: Array, directions: Array, factor: float | Array) -> Array:
    """``noise`` whose first rows have their part along the directions (any normal vectors) scaled by ``factor``."""
    xp, num = namespace(noise), directions.shape[-2]
    first = noise[..., :num, :]
    along = xp.sum(first * directions, axis=-1, keepdims=True) / xp.sum(directions**2, axis=-1, keepdims=True)
    return xp.concat([first + (factor - 1) * along * directions, noise[..., num:, :]], axis=-2)


def path_loss(
    bijection: Bijection,
    params: Tree,
    noise: Array,
    log_density: Callable[[Array], tuple[Array, Array]],
    power: float | Array = 0.0,
) -> tuple[Array, Array]:
    r"""A number whose gradient is the path gradient of a divergence between a flow q and a density p.

    With :math:`z = f(\varepsilon)` and the weights :math:`w = p(z) / q(z)`, divided by their mean, the gradient is

    .. math::
        -\mathrm{mean}\Big(w^{a}\; \nabla_z \big(\log p(z) - \log q(z)\big)^\top \partial_\theta f(\varepsilon)\Big).

    For the power a = 0 that is the ELBO's without the score term, which has mean zero; between 0 and 1 it is that of an
    f-divergence between KL(q | p) and KL(p | q), which cares more for the tails of p. It vanishes draw by draw where q
    is p. A weight counts as 5 at most; draws that are not finite count nothing.

    Args:
        bijection: the flow, from the standard normal.
        params: its weights and constants.
        noise: draws of the normal, one in each row.
        log_density: gives log p at each row, and its gradient.
        power: the power a.

    Returns:
        The number, and the log weights.

    References:
        Roeder, Wu, Duvenaud: Sticking the Landing, 2017, arXiv 1703.09194. Vaitl, Nicoli, Nakajima, Kessel: Gradients
        Should Stay on Path, 2022, arXiv 2207.08219.
    """
    xp = namespace(noise)
    z, log_det, slope_q = bijection.push_score(params, noise, -noise)
    log_p, slope_p = log_density(xp.stop_gradient(z))
    log_q = standard_log_prob(noise) - xp.stop_gradient(log_det)
    log_w, slope = log_p - log_q, slope_p - slope_q
    finite, slope = _finite_rows(log_w, slope)
    known = xp.where(finite, log_w, xp.full_like(log_w, -math.inf))
    relative = known - xp.logsumexp(known) + math.log(len(noise))
    weight = xp.where(finite, xp.exp(power * xp.clip(relative, -10.0, math.log(5.0))), xp.zeros_like(log_w))
    return -xp.mean(xp.stop_gradient(weight) * xp.sum(xp.stop_gradient(slope) * z, axis=-1)), log_w


def elbo_loss(
    bijection: Bijection, params: Tree, noise: Array, log_density: Callable[[Array], tuple[Array, Array]]
) -> tuple[Array, Array]:
    """A number whose gradient is that of minus the ELBO; arguments and results as for :func:`path_loss`.

    It needs no inverse, and so costs less than the path gradient where the inverse is sequential.
    """
    xp = namespace(noise)
    z, log_det = bijection.forward(params, noise)
    log_p, slope = log_density(xp.stop_gradient(z))
    log_w = log_p - standard_log_prob(noise) + xp.stop_gradient(log_det)
    finite, slope = _finite_rows(log_w, slope)
    gain = xp.sum(xp.stop_gradient(slope) * z, axis=-1) + log_det
    return -xp.mean(xp.where(finite, gain, xp.zeros_like(gain))), log_w


def guide_loss(
    bijection: Bijection,
    params: Tree,
    noise: Array,
    num_stretched: int,
    log_density: Callable[[Array], tuple[Array, Array]],
    power: float | Array,
) -> tuple[Array, Array]:
    """A number with the gradient by which a guide is trained, and the estimate of minus its ELBO from finite draws.

    That is the path gradient; where the inverse is not one parallel pass, it is the ELBO's own, which needs noise that
    is not stretched: see :func:`practises`.

    Args:
        bijection: the flow, from the standard normal.
        params: its weights and constants.
        noise: draws of the normal, one in each row; some of them :func:`stretched`.
        num_stretched: how many rows, the first ones, may be stretched: the ELBO is estimated from the others.
        log_density: gives the log density to be fitted at each row, and its gradient.
        power: the power of the weights.
    """
    if not practises(bijection):
        loss, log_w = elbo_loss(bijection, params, noise, log_density)
        return loss, -_finite_mean(log_w)
    loss, log_w = path_loss(bijection, params, noise, log_density, power)
    return loss, -_finite_mean(log_w[num_stretched:, ...])


def practises(bijection: Bijection) -> bool:
    """Whether :func:`guide_loss` of this bijection takes stretched noise: whether it is that of the path gradient."""
    return bijection.inverse_cost == "parallel"


def _finite_rows(log_w: Array, slope: Array) -> tuple[Array, Array]:
    """Which draws have a finite weight and slope, and the slopes with zeros in the place of the others."""
    xp = namespace(log_w)
    finite = xp.isfinite(log_w) & xp.all(xp.isfinite(slope), axis=-1)
    return finite, xp.where(finite[..., None], slope, xp.zeros_like(slope))


def _finite_mean(log_w: Array) -> Array:
    """The mean of what is finite; NaN if nothing is."""
    xp = namespace(log_w)
    finite = xp.isfinite(log_w)
    count = xp.sum(xp.where(finite, xp.ones_like(log_w), xp.zeros_like(log_w)))
    return xp.sum(xp.where(finite, log_w, xp.zeros_like(log_w))) / count
