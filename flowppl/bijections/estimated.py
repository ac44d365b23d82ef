r"""Layers whose log determinant is an estimate, for training where the exact one costs too much.

With a matrix A of spectral norm at most c < 1, and the signs e of D coins, whose mean of :math:`e e^\top` is the
identity,

.. math::
    \log\det(I + A) = \sum_{k=1}^\infty \frac{(-1)^{k+1}}{k} \operatorname{tr} A^k
    = \operatorname{E} \sum_{k=1}^K \frac{(-1)^{k+1}}{k\, p_k}\, e^\top A^k e , \qquad p_k = \Pr(K \ge k),

where the number K of terms is drawn, too: it is at least F, and p falls by a factor of c with each term beyond, no
faster than the terms may, so that the variance is finite. The mean is exact, whatever the number of terms. The
derivatives are estimated by a series of their own, those of :math:`\operatorname{tr}\big((I + A)^{-1} dA\big)`,

.. math::
    d \log\det(I + A) = \operatorname{E}\; e^\top (dA) \sum_{k=1}^K \frac{(-1)^{k-1}}{p_k} A^{k-1} e ,

so that one product alone is differentiated and memory does not grow with K. Of a log determinant that is a difference,
:math:`\log\det(I + A) - \log\det(I - A)`, odd terms count twice and even ones not at all.

An estimating layer declares its noise among its parameters, uniform between 0 and 1, so that it arrives through
every layer around. None of this is ever a flow's density: see :mod:`flowppl.inference.density_objectives`.

References:
    Chen, Behrmann, Duvenaud, Jacobsen: Residual Flows for Invertible Generative Modeling, 2019, arXiv 1906.02735.
    Hutchinson: A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, 1990.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, leaves, nested
from flowppl.bijections.combine import Chain, Invert
from flowppl.bijections.continuous import Continuous
from flowppl.bijections.contract import Bijection, held
from flowppl.bijections.contractive import ContractiveResidual
from flowppl.bijections.frozen import Damped, Frozen
from flowppl.bijections.repeat import Repeat
from flowppl.bijections.stack import Stack
from flowppl.bijections.subspace import Subspace
from flowppl.checks import given_fields
from flowppl.declare import Parameter
from flowppl.networks.lipschitz import along, dense_slopes

FIRST = 4  # the number F of terms that are always taken
CLOSE = 1e-3  # the bound of the relative error of derivatives through the middle of a step
AROUND = (Damped, Frozen, Invert, Repeat, Subspace)  # what hands its weights on to a layer inside, as they are


def log_det_estimate(
    push: Callable[[Array], Array],
    held_push: Callable[[Array], Array],
    signs: Array,
    length: Array,
    ratio: float,
    difference: bool = False,
) -> Array:
    r"""An estimate of :math:`\log\det(I + A)`, or of the difference to that of :math:`I - A`, and of its derivatives.

    Args:
        push: the product of A with an array of the shape of ``signs``.
        held_push: the same, held constant.
        signs: ones with the signs of coins, of shape ``(..., D)``.
        length: a number between 0 and 1, of shape ``()``, that says how many terms there are. In torch it lies on
            the host, which runs the loop.
        ratio: the bound c.
        difference: whether it is the difference.

    Returns:
        An array of shape ``(...)``.
    """
    xp = namespace(signs)

    def terms(scale, before):
        def term(i, carry):
            power, reached, total, factor = carry
            power = scale * power
            reached = reached + factor * power
            power = -held_push(power)
            total = total - factor * xp.sum(signs * power, axis=-1) / (before + i + 1)
            return power, reached, total, 2 - factor

        return term

    factor = xp.full_like(length, 2.0 if difference else 1.0)
    carry = signs, xp.zeros_like(signs), xp.zeros_like(signs[..., 0]), factor
    carry = xp.fori_loop(FIRST, terms(1.0, 0), carry)
    more = xp.astype(xp.floor(xp.log(1 - length) / math.log(ratio)), xp.int32)
    _, reached, total, _ = xp.fori_loop(more, terms(1 / ratio, FIRST), carry)
    slope = xp.sum(signs * push(reached), axis=-1)
    return total + (slope - xp.stop_gradient(slope))


def _pushes(weights, x, activation, scale=1.0):
    """The product with the Jacobian of a network, and the same held constant."""

    def product(weights, slopes):
        return lambda direction: scale * along(weights, slopes, direction[..., None, :])[..., 0, :]

    stop = namespace(x).stop_gradient
    parts = dense_slopes(weights, x, activation)
    return product(*parts), product(*([stop(array) for array in part] for part in parts))


def _signs(uniform, like):
    """Coins, of the shape of ``like``."""
    xp = namespace(like)
    one = xp.ones_like(like)
    return xp.where(uniform < 0.5, -one, one)


class EstimatedResidual(ContractiveResidual):
    """A contractive residual layer whose log determinant is an estimate, with noise among its parameters."""

    def parameters(self) -> Tree:
        noise = {"coins": Parameter((self.dim,)), "length": Parameter(())}
        return super().parameters() | noise

    def _log_det(self, params, weights, x):
        push, held_push = _pushes(weights, x, self.activation)
        return log_det_estimate(push, held_push, _signs(params["coins"], x), params["length"], self.lipschitz)


class EstimatedContinuous(Continuous):
    """A continuous flow whose log determinant is an estimate, with noise among its parameters.

    The middle of a step is found by plain iterations alone, and its derivatives are the first of a series.
    """

    def parameters(self) -> Tree:
        noise = {"coins": Parameter((self.num_steps, self.dim)), "length": Parameter(())}
        return super().parameters() | noise

    @property
    def _ratio(self):
        return self.lipschitz / (2 * self.num_steps)

    def _middle(self, at, start, half):
        xp, fixed = namespace(start), (held(at[0]), None)
        begin = xp.stop_gradient(start)
        limit = float(xp.finfo(start.dtype).eps) ** (2 / 3)
        num = math.ceil(math.log(limit * (1 - self._ratio)) / math.log(self._ratio))
        middle = self._nearly(fixed, begin, half, num)
        _, push = _pushes(fixed[0], middle, self.activation, half)
        power = self._image(at, start, middle, half) - middle

        def term(_, carry):
            power, total = carry
            power = push(power)
            return power, total + power

        num = math.ceil(math.log(CLOSE) / math.log(self._ratio))
        return middle + xp.fori_loop(num, term, (power, power))[1]

    def _log_dets(self, params, at, middles, half):
        push, held_push, signs = self._noisy_pushes(params, at, middles, half)
        return log_det_estimate(push, held_push, signs, params["length"], self._ratio, True)

    def _noisy_pushes(self, params, at, middles, half):
        """The products with half a step of the Jacobian, one of them held constant, and the signs for them."""
        signs = _signs(namespace(middles).moveaxis(params["coins"], -2, 0), middles)
        return *_pushes(at[0], middles, self.activation, half), signs


ESTIMATES: dict[type, type] = {ContractiveResidual: EstimatedResidual, Continuous: EstimatedContinuous}


@functools.cache
def estimated(bijection: Bijection) -> Bijection:
    """The bijection with estimating layers in the place of those that have an estimate; others stay as they are."""
    layer: Any = bijection
    if type(layer) in ESTIMATES and getattr(layer, "network", None) is None:
        return ESTIMATES[type(layer)](**given_fields(layer))
    if isinstance(layer, Chain | Stack):
        return dataclasses.replace(layer, bijections=tuple(map(estimated, layer.bijections)))
    if isinstance(layer, AROUND):
        return dataclasses.replace(layer, bijection=estimated(layer.bijection))
    return layer


def has_estimate(bijection: Bijection) -> bool:
    """Whether a layer of it estimates its log determinant once it is ``estimated``."""
    return estimated(bijection) != bijection


def noise_for(bijection: Bijection, num_rows: int, draw: Callable[[tuple[int, ...], bool], Array]) -> Tree:
    """Noise for all estimating layers, to be merged with the weights and constants.

    Args:
        bijection: what :func:`estimated` gave.
        num_rows: the number of events, each of which has coins of its own.
        draw: ``draw(shape, counts)`` gives uniform numbers between 0 and 1; if ``counts``, they say how many terms
            there are, and lie where the library runs its loops from.
    """
    flat = {}
    for path, declared in leaves(bijection.parameters()):
        if path[-1] in ("coins", "length"):
            counts = path[-1] == "length"
            flat[".".join(path)] = draw(declared.shape if counts else (num_rows, *declared.shape), counts)
    return nested(flat)
