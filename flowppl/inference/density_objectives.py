"""What ``fit_density`` trains by beside the likelihood: flow matching, and a likelihood that is estimated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, merge
from flowppl.bijections.continuous import Continuous
from flowppl.bijections.contract import Bijection
from flowppl.bijections.estimated import estimated, has_estimate, noise_for
from flowppl.checks import did_you_mean

OBJECTIVES = ("likelihood", "estimated_likelihood", "flow_matching")
# Of noise and time for each row: on two moons, in as many epochs, eight end 0.1 nat above one, and take twice as long.
NUM_DRAWS = 8


def check_objective(objective: Any, bijection: Any) -> None:
    """Raise ValueError unless ``objective`` is one that a flow of this bijection can be trained by."""
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


def estimated_inverse(
    bijection: Bijection,
    params: Tree,
    x: Array,
    context: Array | None,
    draw: Callable[[tuple[int, ...], bool], Array],
) -> tuple[Array, Array]:
    """The noise of data, as the flow has it, and an estimate of the log determinant.

    Args:
        bijection: that of the flow.
        params: its weights and constants.
        x: data, of shape ``(n, *y_shape)``.
        context: the contexts, of shape ``(n, context_dim)``.
        draw: as for :func:`flowppl.bijections.estimated.noise_for`.
    """
    layers = estimated(bijection)
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
