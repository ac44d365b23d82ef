"""flowppl in JAX: the recipes that a user would call."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

import flowppl as fp
import flowppl.numpyro as fnp
from suite.peers.numpyro import MODELS, ways


def scored(recipe):
    return fnp.Flow.init(jax.random.key(0), recipe), lambda flow, x: flow().log_prob(x)


def mapped(recipe):
    def score(transform, x):
        y, log_det = transform.forward_and_log_det(x)
        return log_det - 0.5 * (y * y).sum(-1)

    return fnp.FlowTransform.init(jax.random.key(0), recipe), score


def coupling(dim, layers, hidden, reversible=False):
    recipe = fp.realnvp(dim, layers, hidden_dims=hidden, activation="relu")
    return scored(fp.reversible(recipe) if reversible else recipe)


def maf(dim, layers, hidden):
    return scored(fp.maf(dim, layers, hidden_dims=hidden, activation="relu"))


def maf_both_ways(dim, layers, hidden):
    recipe = fp.maf(dim, layers, hidden_dims=hidden, activation="relu")
    transform = fnp.FlowTransform.init(jax.random.key(0), recipe)
    return transform, lambda transform, x: transform.inverse_and_log_det(x), lambda transform, x: transform(x)


def spline(dim, layers, hidden, bins, bound):
    return scored(fp.nsf(dim, layers, num_bins=bins, bound=bound, hidden_dims=hidden, activation="relu"))


def planar(dim, layers):
    return mapped(fp.planar(dim, layers))


def householder(dim, reflections):
    return mapped(fp.householder(dim, reflections))


def sylvester(dim, layers, reflections):
    return mapped(fp.householder_sylvester(dim, layers, num_reflections=reflections))


def new_guide(model, default=False):
    def small_iaf(dim):
        return fp.iaf(dim, 3, hidden_dims=(dim, dim), activation="relu")

    return fnp.AutoFlow(model) if default else fnp.AutoFlow(model, small_iaf, init="point")


def guides(name, default=False):
    """``default``: the default guide in place of an inverse autoregressive flow."""
    model = MODELS[name]()
    return ways(model, lambda: new_guide(model, default))


def first_step(kind):
    """A function: from a new guide of 50 latents to the end of its first step."""
    model = MODELS["regression50"]()
    return lambda: jax.block_until_ready(ways(model, lambda: new_guide(model, kind == "default"))["1 step"]()[0]())


def draw(num):
    """A function: so many draws of ten latents from a fitted guide."""

    def model():
        numpyro.sample("z", dist.Normal(jnp.zeros(10), 1.0).to_event(1))

    result = fnp.fit(jax.random.key(0), model, num_steps=100)
    result.sample(10)
    return lambda: jax.block_until_ready(result.sample(int(num)))
