"""flowjax."""

import equinox
import flowjax.bijections
import flowjax.flows
import jax
import jax.numpy as jnp
import paramax
from flowjax.distributions import Normal


def scored(flow):
    weights, rest = divided(flow)
    return weights, lambda weights, x: equinox.combine(weights, rest).log_prob(x)


def divided(flow):
    """What is trained, and the rest."""
    return equinox.partition(
        flow, equinox.is_inexact_array, is_leaf=lambda leaf: isinstance(leaf, paramax.NonTrainable)
    )


def stack(make, dim, layers, hidden, **options):
    normal = paramax.non_trainable(Normal(jnp.zeros(dim)))
    sizes = {"flow_layers": layers, "nn_width": hidden[0], "nn_depth": len(hidden)}
    return make(jax.random.key(0), base_dist=normal, **sizes, **options)


def coupling(dim, layers, hidden):
    return scored(stack(flowjax.flows.coupling_flow, dim, layers, hidden))


def maf(dim, layers, hidden):
    return scored(stack(flowjax.flows.masked_autoregressive_flow, dim, layers, hidden))


def maf_both_ways(dim, layers, hidden):
    weights, rest = divided(stack(flowjax.flows.masked_autoregressive_flow, dim, layers, hidden).bijection)

    def mapped(direction):
        return lambda weights, x: jax.vmap(getattr(paramax.unwrap(equinox.combine(weights, rest)), direction))(x)

    return weights, mapped("inverse"), mapped("transform")


def spline(dim, layers, hidden, bins, bound):
    """It learns the slopes at both ends, too."""
    univariate = flowjax.bijections.RationalQuadraticSpline(knots=bins - 1, interval=bound)
    return scored(stack(flowjax.flows.coupling_flow, dim, layers, hidden, transformer=univariate))


def planar(dim, layers):
    """Permutations between the layers are part of it."""
    normal = Normal(jnp.zeros(dim))
    flow = flowjax.flows.planar_flow(jax.random.key(0), base_dist=normal, flow_layers=layers, invert=False)
    weights, rest = divided(flow.bijection)

    def score(weights, x):
        bijection = paramax.unwrap(equinox.combine(weights, rest))
        y, log_det = jax.vmap(bijection.transform_and_log_det)(x)
        return log_det - 0.5 * (y * y).sum(-1)

    return weights, score
