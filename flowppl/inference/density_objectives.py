"""What ``fit_density`` trains by beside the likelihood: flow matching, an estimated likelihood, and a penalty."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, merge
from flowppl.bijections.continuous import Continuous
from flowppl.bijections.contract import Bijection
from flowppl.bijections.estimated import estimated, has_estimate, noise_for
from flowppl.bijections.penalised import penalised
from flowppl.checks import did_you_mean, is_number

OBJECTIVES = ("likelihood", "estimated_likelihood", "flow_matching")
# Of noise and time for each row: on two moons, in as many epochs, eight end 0.1 nat above one, and take twice as long.
NUM_DRAWS = 8


def layers_for(objective: Any, jacobian_penalty: Any, bijection: Any) -> Bijection | None:
    """The layers through which losses are computed, with the weights of the flow's own; ``None`` for its own.

    Args:
        objective, jacobian_penalty: as for ``fit_density``.
        bijection: that of the flow, or what else is trained.

    Raises:
        ValueError: unless such a flow can be trained so.
    """
    if objective not in OBJECTIVES:
        raise ValueError(
            f"fit_density: objective must be one of {', '.join(map(repr, OBJECTIVES))}, got {objective!r}"
            f"{did_you_mean(str(objective), OBJECTIVES)}"
        )
    if objective == "flow_matching" and not isinstance(bijection, Continuous):
        raise ValueError(
            'fit_density: objective="flow_matching" trains a velocity, which only a flow of one flowppl.Continuous '
            f"has, such as flowppl.cnf(2), got one of {type(bijection).__name__}; take objective='likelihood'"
        )
    if objective == "estimated_likelihood" and not (isinstance(bijection, Bijection) and has_estimate(bijection)):
        raise ValueError(
            'fit_density: objective="estimated_likelihood" is only for a flow with flowppl.ContractiveResidual or '
            "flowppl.Continuous layers, whose exact one is dear, such as flowppl.residual_flow(64) (and without a "
            f"network of their own), got one of {type(bijection).__name__} with none; take objective='likelihood', "
            "which is exact"
        )
    if not is_number(jacobian_penalty) or not 0 <= jacobian_penalty < math.inf:
        raise ValueError(f"fit_density: jacobian_penalty must be at least 0 and finite, got {jacobian_penalty!r}")
    layers = estimated(bijection) if objective == "estimated_likelihood" else bijection
    if not jacobian_penalty:
        return None if layers is bijection else layers
    if objective == "flow_matching":
        raise ValueError(
            f"fit_density: jacobian_penalty={jacobian_penalty!r} is summed along the way of each row, which flow "
            "matching does not go; leave it out, or take objective='likelihood'"
        )
    paying = penalised(layers, float(jacobian_penalty)) if isinstance(layers, Bijection) else layers
    if paying is layers:
        raise ValueError(
            f"fit_density: jacobian_penalty={jacobian_penalty!r} is only for a flow with flowppl.Continuous layers, "
            f"whose velocity it makes smoother, such as flowppl.cnf(2), got one of {type(bijection).__name__} with "
            "none; leave it out"
        )
    return paying


def inverse_through(
    layers: Bijection,
    params: Tree,
    x: Array,
    context: Array | None,
    draw: Callable[[tuple[int, ...], bool], Array],
) -> tuple[Array, Array]:
    """The noise of data, as the flow has it, and the log determinant that the loss takes.

    Args:
        layers: what :func:`layers_for` gave.
        params: the weights and constants of the flow.
        x: data, of shape ``(n, *y_shape)``.
        context: the contexts, of shape ``(n, context_dim)``.
        draw: as for :func:`flowppl.bijections.estimated.noise_for`.
    """
    return layers.inverse(merge(params, noise_for(layers, x.shape[0], draw)), x, context)


def matching_losses(
    bijection: Continuous, params: Tree, x: Array, noise: Array, shift: Array, context: Array | None
) -> Array:
    r"""How far the velocity is from the straight way of noise z to data x: :math:`|v(x_t, t, c) - (x - z)|^2`.

    Args:
        bijection: the continuous flow.
        params: its weights and constants.
        x: data, of shape ``(n, dim)``.
        noise: the noise of each, of shape ``(num_draws, n, dim)``.
        shift: a number between 0 and 1, of shape ``()``, from which on the times are evenly spread: together, and those
            of each row.
        context: the contexts, of shape ``(n, context_dim)``.

    Returns:
        The mean over the draws, of shape ``(n,)``.
    """
    xp, (num_draws, size) = namespace(x), noise.shape[:2]
    count = xp.cumulative_sum(xp.ones_like(xp.reshape(noise[..., 0], (-1,))), axis=0)
    time = xp.reshape(xp.remainder(shift + count / (num_draws * size), 1.0), (num_draws, size))
    share = time[..., None]
    off = bijection.velocity(params, (1 - share) * noise + share * x, time, context) - (x - noise)
    return xp.mean(xp.sum(off * off, axis=-1), axis=0)
