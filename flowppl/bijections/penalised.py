r"""Continuous flows in training, which pay for the slopes of their velocity.

The log determinant that such a layer gives has the value of the plain one, and the derivatives of the log determinant
less a penalty,

.. math::
    w\, h \sum_k \big\| J_k \big\|_F^2 , \qquad h = 1 / N,

where w is its ``jacobian_penalty``, :math:`J_k` is the Jacobian of the velocity in the middle of step k of N, and the
norm of Frobenius squared is the sum of the squares of all entries. So what a loss shows stays the likelihood, and its
gradient has the penalty's. Where the log determinant is an estimate the squared norm is one too,
:math:`\operatorname{E} |J_k e|^2`, with the signs e that the log determinant has.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from flowppl._arrays.namespace import namespace
from flowppl.bijections.continuous import Continuous
from flowppl.bijections.contract import Bijection
from flowppl.bijections.estimated import EstimatedContinuous, log_det_estimate
from flowppl.checks import given_fields


@dataclasses.dataclass(frozen=True)
class PenalisedContinuous(Continuous):
    """A continuous flow that pays for the squared norm of its Jacobians."""

    jacobian_penalty: float = 0.0

    def _log_dets(self, params, at, middles, half):
        jacobian = self._jacobian(at, middles)
        squares = namespace(middles).sum(jacobian * jacobian, axis=(-2, -1))
        return _less(self._log_dets_of(half * jacobian), self.jacobian_penalty / self.num_steps * squares)


@dataclasses.dataclass(frozen=True)
class PenalisedEstimatedContinuous(EstimatedContinuous):
    """The same whose log determinant is an estimate, and its penalty too."""

    jacobian_penalty: float = 0.0

    def _log_dets(self, params, at, middles, half):
        push, held_push, signs = self._noisy_pushes(params, at, middles, half)
        moved = push(signs) / half
        squares = namespace(middles).sum(moved * moved, axis=-1)
        log_dets = log_det_estimate(push, held_push, signs, params["length"], self._ratio, True)
        return _less(log_dets, self.jacobian_penalty / self.num_steps * squares)


def _less(log_dets, penalties):
    """The value of the one, with the derivatives of the difference."""
    return log_dets - (penalties - namespace(penalties).stop_gradient(penalties))


PENALISED: dict[type, type] = {
    Continuous: PenalisedContinuous,
    EstimatedContinuous: PenalisedEstimatedContinuous,
}


def penalised(bijection: Bijection, jacobian_penalty: float) -> Bijection:
    """The bijection with paying layers in the place of continuous ones; itself if there are none."""
    layer: Any = bijection
    given = given_fields(layer)
    if type(layer) in PENALISED:
        return PENALISED[type(layer)](**given, jacobian_penalty=jacobian_penalty)

    def changed(value):
        if isinstance(value, Bijection):
            return penalised(value, jacobian_penalty)
        if isinstance(value, tuple):
            new = tuple(map(changed, value))
            return new if any(a is not b for a, b in zip(new, value, strict=True)) else value
        return value

    new = {name: changed(value) for name, value in given.items()}
    return dataclasses.replace(layer, **new) if any(new[name] is not given[name] for name in given) else layer
