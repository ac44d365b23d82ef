"""flowppl in torch: the recipes that a user would call."""

import itertools

import numpy as np
import pyro
import pyro.infer
import torch

import flowppl as fp
import flowppl.pyro as fpp
from flowppl.inference.fitting import CHUNK, Chunk
from flowppl.pyro.trainers import PathTrainer
from suite.peers.pyro import MODELS

COUNT = itertools.count()


def scored(recipe):
    flow = fpp.Flow(recipe)
    return list(flow.parameters()), lambda x: flow().log_prob(x)


def mapped(recipe):
    transform = fpp.FlowTransform(recipe)

    def score(x):
        y, log_det = transform.forward_and_log_det(x)
        return log_det - 0.5 * y.square().sum(-1)

    return list(transform.parameters()), score


def coupling(dim, layers, hidden, reversible=False):
    recipe = fp.realnvp(dim, layers, hidden_dims=hidden, activation="relu")
    return scored(fp.reversible(recipe) if reversible else recipe)


def maf(dim, layers, hidden):
    return scored(fp.maf(dim, layers, hidden_dims=hidden, activation="relu"))


def maf_both_ways(dim, layers, hidden):
    transform = fpp.FlowTransform(fp.maf(dim, layers, hidden_dims=hidden, activation="relu"))
    return list(transform.parameters()), transform.inverse_and_log_det, transform


def spline(dim, layers, hidden, bins, bound):
    return scored(fp.nsf(dim, layers, num_bins=bins, bound=bound, hidden_dims=hidden, activation="relu"))


def planar(dim, layers):
    return mapped(fp.planar(dim, layers))


def householder(dim, reflections):
    return mapped(fp.householder(dim, reflections))


def sylvester(dim, layers, reflections):
    return mapped(fp.householder_sylvester(dim, layers, num_reflections=reflections))


def small_iaf(dim):
    return fp.iaf(dim, 3, hidden_dims=(dim, dim), activation="relu")


def new_guide(model, default=False):
    """Pyro keeps weights by the names of classes: each guide has one of its own."""
    guide = type(f"AutoFlow{next(COUNT)}", (fpp.AutoFlow,), {})
    return guide(model) if default else guide(model, small_iaf, init="point")


def guides(name, default=False):
    """``default``: the default guide in place of an inverse autoregressive flow."""
    model = MODELS[name]()

    def svi(elbo):
        guide = new_guide(model, default)
        guide()
        return pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo).step, 1

    def fit():
        guide = new_guide(model, default)
        guide.setup()
        trainer = PathTrainer(guide, model, (), {}, 1, "adam", np.inf)
        trainer.begin(False)
        chunk = Chunk(np.full(CHUNK, 1e-3), np.zeros(CHUNK), np.ones(CHUNK), 1, False)
        return lambda: trainer.run(chunk), CHUNK

    return {
        "SVI.step": lambda: svi(pyro.infer.Trace_ELBO()),
        "JitTrace_ELBO": lambda: svi(pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True)),
        "fit": fit,
    }


def first_step(kind):
    """A function: from a new guide of 50 latents to the end of its first step."""
    model = MODELS["regression50"]()

    def step():
        guide = new_guide(model, kind == "default")
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()).step()

    return step


def draw(num):
    """A function: so many draws of ten latents from a fitted guide."""

    def model():
        pyro.sample("z", pyro.distributions.Normal(torch.zeros(10), 1.0).to_event(1))
        pyro.factor("nothing", torch.zeros(()))

    result = fpp.fit(model, num_steps=100)
    result.sample(10)
    return lambda: result.sample(int(num))
