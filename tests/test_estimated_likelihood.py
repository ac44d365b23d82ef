"""The estimated likelihood: its mean is the exact one, its gradient's too, in both languages; what it is for."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch
from catalogue import NAMESPACES, draw, merged, numpy

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree
from flowppl.bijections.estimated import FIRST, estimated, log_det_estimate, noise_for

RESIDUAL = fp.ContractiveResidual(2, 6, context_dim=1, lipschitz=0.5)
CONTINUOUS = fp.Continuous(2, 6, context_dim=1, num_steps=2, lipschitz=2.0)


def halves(count):
    """Numbers that give 0, 1, ... further terms at a ratio of one half."""
    return 1 - 0.75 * 0.5 ** np.arange(count)


@pytest.mark.parametrize("difference", [False, True])
def test_the_estimate_is_the_series_of_the_paper(difference, rng):
    matrix = rng.normal(size=(4, 4))
    matrix *= 0.8 / np.linalg.norm(matrix, 2)
    signs = np.sign(rng.normal(size=4))

    def push(x):
        return x @ matrix.T

    for length, ratio in ((0.3, 0.8), (0.99, 0.8)):
        num = FIRST + int(math.log(1 - length) / math.log(ratio))
        expected = 0.0
        for k in range(1, num + 1):
            probability = ratio ** max(0, k - FIRST)
            coefficient = (-1) ** (k + 1) / k + (1 / k if difference else 0)
            expected += coefficient / probability * signs @ np.linalg.matrix_power(matrix, k) @ signs
        found = log_det_estimate(push, push, signs, np.array(length), ratio, difference)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("flow", [RESIDUAL, CONTINUOUS], ids=["residual", "continuous"])
def test_the_mean_over_all_noise_is_exact_and_so_are_its_derivatives(flow, rng):
    """Over all signs of the coins, and all lengths with their probabilities: no draws, so no tolerance for them."""
    layer = estimated(flow)
    params = _tree.map_tree(lambda leaf: 2 * leaf, draw(flow, rng))
    x, context, count = rng.normal(size=2), jnp.asarray(rng.normal(size=1)), 50
    shape = layer.parameters()["coins"].shape
    coins = np.reshape(list(itertools.product([0.25, 0.75], repeat=math.prod(shape))), (-1, *shape))
    weights = jnp.asarray(0.5 ** np.arange(1, count + 1))  # of which the last is 1e-15

    def mean(params, x):
        def at(length):
            noise = {"coins": jnp.asarray(coins), "length": length}
            y, log_dets = layer.forward(_tree.merge(params, noise), jnp.broadcast_to(x, (len(coins), 2)), context)
            return log_dets.mean() + y[0] @ jnp.array([1.0, -2.0])  # the event, too, has exact derivatives

        return weights @ jax.vmap(at)(jnp.asarray(halves(count)))

    def exact(params, x):
        y, log_det = flow.forward(params, x, context)
        return log_det + y @ jnp.array([1.0, -2.0])

    given = merged(flow, params, "jax")
    trained = {"network": given.pop("network")}
    results = [
        jax.jit(jax.value_and_grad(lambda p, x, f=f: f(p | given, x), (0, 1)))(trained, jnp.asarray(x))
        for f in (mean, exact)
    ]
    (found, found_gradients), (expected, gradients) = results
    assert abs(float(exact(trained | given, jnp.zeros(2)) - expected)) > 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for one, other in zip(jax.tree.leaves(found_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_layers_inside_of_others_are_estimated_and_the_languages_agree(rng):
    part = fp.Continuous(2, 4, num_steps=2, lipschitz=2.0)
    residual = fp.ContractiveResidual(2, 4)
    stack = fp.Stack([fp.Frozen(residual), fp.Invert(fp.Repeat(residual, 2))])
    flow = fp.Chain([fp.LU(4), fp.Damped(stack), fp.Subspace(4, part)])
    layers = estimated(flow)
    assert layers.bijections[0] == flow.bijections[0]
    params, x = draw(flow, rng), rng.normal(size=(3, 4))
    noise = noise_for(layers, 3, lambda shape, counts: rng.uniform(size=shape))
    shapes = {".".join(path): leaf.shape for path, leaf in _tree.leaves(noise)}
    assert shapes == {
        "1.0.coins": (3, 2),
        "1.0.length": (),
        "1.1.coins": (3, 2, 2),
        "1.1.length": (2,),
        "2.bijection.coins": (3, 2, 2),
        "2.bijection.length": (),
    }
    found = {}
    for name, to in NAMESPACES.items():
        if name != "array_api_strict":
            inverse = jax.jit(layers.inverse) if name == "jax" else layers.inverse
            z, log_det = inverse(_tree.merge(merged(flow, params, name), _tree.map_tree(to, noise)), to(x))
            np.testing.assert_allclose(numpy(z), flow.inverse(merged(flow, params), x)[0], rtol=1e-9)
            found[name] = numpy(log_det)
    np.testing.assert_allclose(found["torch"], found["numpy"], rtol=1e-10)
    np.testing.assert_allclose(found["jax"], found["numpy"], rtol=1e-10)
    assert abs(found["numpy"] - flow.inverse(merged(flow, params), x)[1]).max() > 1e-3


OPTIONS = {"num_epochs": 12, "batch_size": 64, "learning_rate": 0.03, "progress": False, "validation": 0.2}


@pytest.mark.parametrize("language", ["pyro", "numpyro"])
def test_it_trains_as_the_exact_likelihood_does(language, rng):
    turn = np.array([[0.8, 0.6], [-0.6, 0.8]])
    x = (rng.normal(size=(1500, 2)) * [1.0, 0.4]) @ turn  # whose entropy is known
    truth = -1 - math.log(2 * math.pi) - math.log(0.4)
    flow, found = fp.Invert(fp.Chain([fp.ContractiveResidual(2, 8), fp.LU(2)])), {}
    for objective in ("estimated_likelihood", "likelihood"):
        if language == "pyro":
            pyro.set_rng_seed(0)
            fit = fpp.fit_density(fpp.Flow(flow).double(), x[:600], objective=objective, **OPTIONS)
            found[objective] = fit.flow.log_prob(torch.tensor(x[600:])).mean().item()
        else:
            fit = fnp.fit_density(jax.random.key(0), flow, x[:600], objective=objective, **OPTIONS)
            found[objective] = float(fit.flow.log_prob(x[600:]).mean())
        assert fit.losses[-1] < fit.losses[0]
    assert abs(found["estimated_likelihood"] - found["likelihood"]) < 0.1
    assert abs(found["estimated_likelihood"] - truth) < 0.15


def test_what_has_no_estimate_is_refused():
    x, key = np.random.default_rng(0).normal(size=(50, 2)), jax.random.key(0)
    mixture = [fp.residual_flow(2)] * 2
    for fit, kind in (
        (lambda f, **o: fpp.fit_density(f, x, **o), fpp.Mixture(mixture)),
        (lambda f, **o: fnp.fit_density(key, f, x, **o), fnp.Mixture.init(key, mixture)),
    ):
        for flow in (fp.LU(2), fp.Continuous(2, network=fp.MLP(2, 2, context_dim=1)), kind):
            name = type(flow).__name__
            with pytest.raises(ValueError, match=f"only .*ContractiveResidual .* got one of {name} with none; take"):
                fit(flow, objective="estimated_likelihood")
