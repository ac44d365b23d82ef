"""Small autoencoders, and the same few calls in either language."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch
from flax import nnx

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import leaves


class Pyro:
    """The same few calls in either language."""

    name, adapter = "pyro", fpp

    @staticmethod
    def networks(num_inputs, features, dim, num_outputs, seed=0):
        torch.manual_seed(seed)
        encoder = torch.nn.Sequential(torch.nn.Linear(num_inputs, features), torch.nn.Tanh())
        return encoder, torch.nn.Linear(dim, num_outputs)

    @staticmethod
    def function(of_arrays):
        return FunctionModule(lambda z: of_arrays(torch, z))

    @staticmethod
    def fit(seed, vae, x, **options):
        pyro.set_rng_seed(seed)
        return fpp.fit_vae(vae, x, progress=False, **options)

    @staticmethod
    def params(vae, x):
        return dict(vae.state_dict())

    @staticmethod
    def evaluate(seed, vae, params, x, **options):
        pyro.set_rng_seed(seed)
        vae.load_state_dict(params)
        return fpp.evaluate_vae(vae, x, **options)

    @staticmethod
    def call(method, vae, params, *args, **options):
        vae.load_state_dict(params)
        return getattr(vae, method)(*args, **options).numpy()


class NumPyro:
    name, adapter = "numpyro", fnp

    @staticmethod
    def networks(num_inputs, features, dim, num_outputs, seed=0):
        rngs = nnx.Rngs(seed)
        encoder = nnx.Sequential(nnx.Linear(num_inputs, features, rngs=rngs, param_dtype=float), nnx.tanh)
        return encoder, nnx.Linear(dim, num_outputs, rngs=rngs, param_dtype=float)

    @staticmethod
    def function(of_arrays):
        return lambda z: of_arrays(jnp, z)

    @staticmethod
    def fit(seed, vae, x, **options):
        return fnp.fit_vae(jax.random.key(seed), vae, x, progress=False, **options)

    @staticmethod
    def params(vae, x):
        return vae.init(jax.random.key(0), x)

    @staticmethod
    def evaluate(seed, vae, params, x, **options):
        return fnp.evaluate_vae(jax.random.key(seed), vae, params, x, **options)

    @staticmethod
    def call(method, vae, params, *args, **options):
        return np.asarray(getattr(vae, method)(jax.random.key(0), params, *args, **options))


class FunctionModule(torch.nn.Module):
    """A function as a module without weights."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


both = pytest.mark.parametrize("lang", [Pyro, NumPyro], ids=["pyro", "numpyro"])


def small(lang, flow="planar", **options):
    """In NumPyro, whose autoencoders hold no weights, one for all tests: what it is compiled to is then theirs, too."""
    shared = lang is NumPyro and all(isinstance(value, str | int | fp.Bijection) for value in options.values())
    return (_shared if shared else _small)(lang, flow, **options)


def _small(lang, flow, *, dim=2, prior=None, likelihood="bernoulli", num_outputs=9):
    posterior = fp.amortized_posterior(dim, 6, flow, None if flow in (None, "householder") else 2)
    return lang.adapter.FlowVAE(*lang.networks(9, 6, dim, num_outputs), posterior, prior, likelihood)


_shared = functools.cache(_small)


def stripes(num=60):
    """Images of nine pixels, with one of three columns set."""
    return np.eye(3)[np.random.default_rng(0).integers(0, 3, num)].repeat(3, axis=1)


def assert_same(first, second):
    for (path, one), (_, other) in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=str(path))
