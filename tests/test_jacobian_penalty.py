"""The penalty on the Jacobian of a continuous flow: what its gradient is, that no value has it, what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyro
import pytest
import torch
from catalogue import NAMESPACES, draw, numpy
from scipy.integrate import solve_ivp

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree
from flowppl.bijections.estimated import estimated
from flowppl.bijections.penalised import PENALISED, penalised
from flowppl.inference.density_objectives import layers_for

WEIGHT = 0.3
LINEAR = fp.Continuous(2, num_steps=3, network=fp.MLP(2, 2, (), context_dim=1))
CURVED = fp.Continuous(2, num_steps=3, network=fp.MLP(2, 2, 3, context_dim=2, activation="tanh"), context_dim=1)
BOUNDED = fp.Continuous(2, 3, num_steps=2, lipschitz=2.0)


def penalty_gradient(flow, params, x, context=None, library="torch", layers=None, noise=None):
    """The gradient of what the layers pay, in NumPy: of the plain log determinant less that of theirs."""
    layers = layers or penalised(flow, WEIGHT)
    to = NAMESPACES[library]
    given = _tree.map_tree(to, _tree.merge(flow.constants(), noise or {}))
    x, context = to(x), None if context is None else to(context)
    plain = estimated(flow) if noise else flow

    def pays(params):
        first, second = (each.inverse(_tree.merge(params, given), x, context)[1] for each in (plain, layers))
        return (first - second).sum()

    trained = _tree.map_tree(to, params)
    if library == "jax":
        value, gradient = jax.jit(jax.value_and_grad(pays))(trained)
    else:
        gradient, value = torch.func.grad_and_value(pays)(trained)
    assert value == 0  # exactly: no loss shows it
    return {".".join(path): numpy(leaf) for path, leaf in _tree.leaves(gradient)}


def test_a_linear_velocity_pays_for_the_squares_of_its_matrix(rng):
    """Wherever the layer is, whatever the events, and with its matrix only."""
    stack = fp.Stack([fp.Repeat(LINEAR, 2), fp.Invert(LINEAR)])
    flow = fp.Chain([fp.LU(4), stack, fp.Subspace(4, LINEAR)])
    params, x = _tree.map_tree(lambda leaf: leaf / 4, draw(flow, rng)), rng.normal(size=(5, 4))
    found = penalty_gradient(flow, params, x)
    for path, leaf in _tree.leaves(params):
        expected = 2 * WEIGHT * len(x) * leaf if path[-3:] == ("network", "0", "weight") else np.zeros_like(leaf)
        np.testing.assert_allclose(found[".".join(path)], expected, rtol=1e-10, atol=1e-12)


def plain(params, x, time, context):
    """The velocity of CURVED and the squared norm of its Jacobian, in plain NumPy."""
    first, last = params["network"]["0"], params["network"]["1"]
    hidden = np.tanh(x @ first["weight"] + np.append(time, context) @ first["context_weight"] + first["bias"])
    jacobian = first["weight"] * (1 - hidden**2) @ last["weight"]
    return hidden @ last["weight"] + last["bias"], np.sum(jacobian**2)


def summed(params, x, context, num_steps):
    """What the docstring says: the sum over the steps, found by plain iterations from the data to the noise."""
    total, h = 0.0, 1 / num_steps
    for k in reversed(range(num_steps)):
        middle, time = x, (k + 0.5) * h
        for _ in range(60):
            middle = x - h / 2 * plain(params, middle, time, context)[0]
        total, x = total + h * plain(params, middle, time, context)[1], 2 * middle - x
    return total


def integral(params, x, context):
    def slope(time, state):
        velocity, square = plain(params, state[:2], time, context)
        return np.append(velocity, square)

    return -solve_ivp(slope, (1, 0), np.append(x, 0), method="DOP853", rtol=1e-12, atol=1e-12).y[2, -1]


def slope_along(function, params, direction, step=1e-3):
    """By differences of fourth order."""

    def at(share):
        return function(_tree.map_tree(lambda leaf, d: leaf + share * step * d, params, direction))

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * step)


def test_the_penalty_is_the_sum_over_the_steps_in_both_languages_and_near_the_integral(rng):
    params = draw(CURVED, rng)
    x, context = rng.normal(size=(2, 2)), rng.normal(size=(2, 1))
    direction = draw(CURVED, rng)
    names = {".".join(path): leaf for path, leaf in _tree.leaves(direction)}

    def along(gradient):
        return sum(np.sum(gradient[name] * leaf) for name, leaf in names.items())

    def total(of_row):
        return lambda params: WEIGHT * sum(of_row(params, *row) for row in zip(x, context, strict=True))

    expected = slope_along(total(lambda *row: summed(*row, CURVED.num_steps)), params, direction)
    ours, theirs = (penalty_gradient(CURVED, params, x, context, library) for library in ("torch", "jax"))
    np.testing.assert_allclose(along(ours), expected, rtol=1e-6, atol=1e-9)
    for name, leaf in ours.items():
        np.testing.assert_allclose(leaf, theirs[name], rtol=1e-9, atol=1e-12)
    coarse, fine = (
        along(
            penalty_gradient(fp.Continuous(2, num_steps=n, network=CURVED.network, context_dim=1), params, x, context)
        )
        for n in (16, 32)
    )
    # What is left of the error once that of order h^2 is taken off.
    assert abs((4 * fine - coarse) / 3 - slope_along(total(integral), params, direction)) < 1e-4


def test_the_mean_of_the_estimate_over_all_signs_is_exact(rng):
    params, x = _tree.map_tree(lambda leaf: 2 * leaf, draw(BOUNDED, rng)), rng.normal(size=2)
    signs = np.reshape(list(itertools.product([0.25, 0.75], repeat=4)), (-1, 2, 2))
    rows = np.broadcast_to(x, (len(signs), 2))
    noise = {"coins": signs, "length": np.array(0.5)}
    layers = layers_for("estimated_likelihood", WEIGHT, BOUNDED)
    found = penalty_gradient(BOUNDED, params, rows, None, "jax", layers, noise)
    expected = penalty_gradient(BOUNDED, params, x)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name] / len(signs), leaf, atol=1e-5 * largest)
    ours = penalty_gradient(BOUNDED, params, rows, None, "torch", layers, noise)
    for name, leaf in ours.items():
        np.testing.assert_allclose(leaf, found[name], rtol=1e-9, atol=1e-12)


def test_layers_that_do_not_pay_stay_as_they_are():
    flow = fp.Chain([fp.LU(2), fp.Frozen(BOUNDED), fp.ContractiveResidual(2, 4), LINEAR])
    assert layers_for("likelihood", 0.0, flow) is None
    assert layers_for("estimated_likelihood", 0, flow) == estimated(flow)
    layers = layers_for("estimated_likelihood", 0.1, flow).bijections
    assert [type(layer) for layer in (layers[1].bijection, layers[3])] == [*PENALISED.values()][::-1]
    assert layers[:3:2] == estimated(flow).bijections[:3:2]
    inner = penalised(fp.Conditional(fp.Damped(BOUNDED), 1), 0.1).bijection.bijection
    assert (type(inner), inner.jacobian_penalty) == (PENALISED[fp.Continuous], 0.1)
    without = fp.glow(4, num_flows=2)
    assert penalised(without, 0.1) is without


ONE_STEP = {"num_epochs": 1, "clip_norm": None, "validation": None, "progress": False, "init": False}


def fit_both(x, params, **options):
    """The losses and the weights of both languages after one step of plain descent, of length 1, on all rows."""
    options = ONE_STEP | {"batch_size": len(x)} | options
    theirs = fnp.fit_density(
        jax.random.key(0), fnp.Flow(BOUNDED, jax.tree.map(jnp.asarray, params)), x, optimizer=optax.sgd(1.0), **options
    )
    flow = fpp.Flow(BOUNDED)
    flow.transform.weights.assign(_tree.map_tree(torch.tensor, params))
    pyro.set_rng_seed(0)
    ours = fpp.fit_density(flow, x, optimizer=lambda given: torch.optim.SGD(given, 1.0), **options)
    weights = _tree.map_tree(lambda leaf: leaf.detach().numpy(), ours.flow.transform.weights.tree())
    return (ours.losses, weights), (theirs.losses, theirs.flow.params)


def test_fits_of_both_languages_descend_the_penalised_loss_and_tell_the_likelihood(rng):
    params, x = draw(BOUNDED, rng), rng.normal(size=(6, 2))
    found = {weight: fit_both(x, params, jacobian_penalty=weight) for weight in (0.0, WEIGHT)}
    expected = penalty_gradient(BOUNDED, params, x)
    for (plain_losses, plain_weights), (losses, weights) in zip(*found.values(), strict=True):
        np.testing.assert_allclose(losses, plain_losses, rtol=1e-12)  # of the first step, before it
        for path, leaf in _tree.leaves(params):
            before, after = (dict(_tree.leaves(tree))[path] for tree in (plain_weights, weights))
            np.testing.assert_allclose(before - after, expected[".".join(path)] / len(x), rtol=1e-7, atol=1e-10)
            assert leaf.shape == after.shape


def test_fits_of_both_languages_by_the_estimate(rng, tmp_path):
    """The noise of the same fit is the same, so that only the penalty makes a difference."""
    params, x = draw(BOUNDED, rng), rng.normal(size=(6, 2))
    options = {"objective": "estimated_likelihood", "validation": x[:2]}
    first, second = (fit_both(x, params, jacobian_penalty=weight, **options) for weight in (0.0, WEIGHT))
    for (plain_losses, plain_weights), (losses, weights) in zip(first, second, strict=True):
        np.testing.assert_allclose(losses, plain_losses, rtol=1e-12)
        weight, before = (tree["network"]["0"]["weight"] for tree in (weights, plain_weights))
        assert np.abs(weight - before).max() > 1e-3
    path = tmp_path / "fit"
    fpp.fit_density(BOUNDED, x, checkpoint=path, **ONE_STEP)
    with pytest.raises(ValueError, match="with other jacobian_penalty"):
        fpp.fit_density(BOUNDED, x, checkpoint=path, jacobian_penalty=0.1, **ONE_STEP)


@pytest.mark.parametrize("language", ["pyro", "numpyro"])
def test_what_cannot_be_penalised_is_refused(language):
    x, key = np.random.default_rng(0).normal(size=(20, 2)), jax.random.key(0)

    def fit(flow, **options):
        return fpp.fit_density(flow, x, **options) if language == "pyro" else fnp.fit_density(key, flow, x, **options)

    for bad in (-0.1, np.inf, np.nan, "much", None):
        with pytest.raises(ValueError, match=f"jacobian_penalty must be at least 0 and finite, got {bad!r}"):
            fit(BOUNDED, jacobian_penalty=bad)
    with pytest.raises(ValueError, match=r"jacobian_penalty=0.1 is summed along the way .*, which flow matching does"):
        fit(BOUNDED, jacobian_penalty=0.1, objective="flow_matching")
    for flow, objective in ((fp.LU(2), "likelihood"), (fp.residual_flow(2), "estimated_likelihood")):
        with pytest.raises(ValueError, match=r"only for a flow with flowppl.Continuous layers, .* with none; leave"):
            fit(flow, jacobian_penalty=0.1, objective=objective)
    mixture = fpp.Mixture([BOUNDED] * 2) if language == "pyro" else fnp.Mixture.init(key, [BOUNDED] * 2)
    with pytest.raises(ValueError, match="got one of Mixture with none"):
        fit(mixture, jacobian_penalty=0.1)
