"""Continuous flows: the differential equation by another solver, networks of one's own, and what is refused."""

import flax.nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import torch
from catalogue import context_for, draw, merged
from scipy.integrate import solve_ivp

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree
from flowppl.networks.lipschitz import shrunk, spectral_bound


def plain_velocity(params, lipschitz, x, time, context):
    """A perceptron of one hidden layer of tanh, in plain NumPy, with its Jacobian; singular values from the SVD."""
    first, last = params["network"]["0"], params["network"]["1"]
    bound = np.prod([np.linalg.norm(layer["weight"], 2) for layer in (first, last)]) / lipschitz
    weight = last["weight"] / (1 + bound**4) ** 0.25
    hidden = np.tanh(x @ first["weight"] + np.append(time, context) @ first["context_weight"] + first["bias"])
    return hidden @ weight + last["bias"], first["weight"] * (1 - hidden**2) @ weight


def test_more_steps_come_closer_to_the_differential_equation(rng):
    """With an error of order h^2, which goes by extrapolation; event and density, in both directions."""
    options = {"hidden_dims": 8, "context_dim": 1, "lipschitz": 40.0}  # of which b is a tenth or so
    flow = fp.Continuous(2, num_steps=64, **options)
    params = draw(flow, rng)
    x, context = rng.normal(size=2), context_for(flow, rng)

    def slope(time, state):
        velocity, jacobian = plain_velocity(params, flow.lipschitz, state[:2], time, context)
        return np.append(velocity, np.trace(jacobian))

    for direction, span in (("forward", (0, 1)), ("inverse", (1, 0))):
        expected = solve_ivp(slope, span, np.append(x, 0), method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
        found = []
        for num_steps in (32, 64):
            each = fp.Continuous(2, num_steps=num_steps, **options)
            image, log_det = getattr(each, direction)(merged(each, params), x, context)
            found.append(np.append(image, log_det))
        coarse, fine = (np.abs(each - expected).max() for each in found)
        assert 3.8 < coarse / fine < 4.2
        assert fine < 1e-2
        # The bound that the flow uses is a little above that of the SVD, so that its velocity is a little smaller.
        np.testing.assert_allclose((4 * found[1] - found[0]) / 3, expected, rtol=1e-5, atol=1e-5)


def test_the_velocity_is_that_of_the_network_and_bounded(rng):
    flow = fp.Continuous(3, hidden_dims=(8, 8), context_dim=2, lipschitz=5.0)
    params = merged(flow, _tree.map_tree(lambda leaf: 4 * leaf, draw(flow, rng)))
    x, others, context = rng.normal(size=(2, 200, 3)), 0.01 * rng.normal(size=(2, 200, 3)), rng.normal(size=2)
    time = rng.uniform(size=(2, 200))
    velocity, other = (flow.velocity(params, each, time, context) for each in (x, x + others))
    assert velocity.shape == (2, 200, 3)
    assert (np.linalg.norm(velocity - other, axis=-1) <= 5 * np.linalg.norm(others, axis=-1)).all()
    assert np.prod([np.linalg.norm(layer["weight"], 2) for layer in params["network"].values()]) > 50
    given = np.append(time[0, 0], context)
    expected = flow._network(shrunk(params["network"], 5.0, "tanh"), x[0, 0], given)
    np.testing.assert_allclose(velocity[0, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (7, 2), (64, 64)])
def test_the_spectral_bound_is_above_the_largest_singular_value(shape, rng):
    for scale in (1e-100, 1.0, 1e100):
        matrix = scale * rng.normal(size=(3, *shape))
        ratio = spectral_bound(matrix) / np.linalg.norm(matrix, 2, axis=(-2, -1))
        assert (ratio > 1 - 1e-12).all()
        assert (ratio <= min(shape) ** (1 / 64) * (1 + 1e-12)).all()
    zeros = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    assert spectral_bound(zeros) == 0
    spectral_bound(zeros).backward()
    assert (zeros.grad == 0).all()


@pytest.mark.parametrize("activation", ["elu", "relu", "silu", "softplus", "tanh"])
def test_every_activation_has_its_slope(activation, rng):
    flow = fp.Continuous(2, hidden_dims=(4, 4), activation=activation, num_steps=2, lipschitz=3.0)
    params = merged(flow, draw(flow, rng), "torch")
    x = torch.tensor(rng.normal(size=2))
    matrix = torch.func.jacfwd(lambda x: flow.forward(params, x)[0])(x)
    assert abs(flow.forward(params, x)[1] - torch.linalg.slogdet(matrix)[1]) < 1e-12


def test_a_linear_velocity_is_a_linear_map(rng):
    """Whose logarithm the matrix nearly is."""
    flow = fp.Continuous(2, hidden_dims=(), num_steps=50)
    matrix = rng.normal(size=(2, 2))
    layer = {"weight": matrix, "bias": np.zeros(2), "context_weight": np.zeros((1, 2))}
    x = rng.normal(size=(3, 2))
    y, log_det = flow.forward({"network": {"0": layer}, "step": np.arange(50)}, x)
    np.testing.assert_allclose(y, x @ scipy.linalg.expm(matrix), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(log_det, np.full(3, np.trace(matrix)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("lipschitz", [0.5, 3.0])
def test_derivatives_are_exact_to_second_order(lipschitz, rng):
    """What undoes itself has none but 1, in the event, and none in the weights; curved velocities, for few steps."""
    flow = fp.Continuous(2, hidden_dims=3, context_dim=1, lipschitz=lipschitz, num_steps=2)
    params = _tree.map_tree(lambda leaf: 3 * leaf, draw(flow, rng))
    params = merged(flow, params, "torch")
    y, context = torch.tensor(rng.normal(size=2)), torch.tensor(rng.normal(size=1))
    bias = params["network"]["0"]["bias"]

    def again(y, bias):
        tree = {**params, "network": {**params["network"], "0": {**params["network"]["0"], "bias": bias}}}
        x, log_det = flow.inverse(tree, y, context)
        y, log_det_back = flow.forward(tree, x, context)
        return torch.cat([y, (log_det + log_det_back)[None]])

    first = torch.func.jacrev(again, argnums=(0, 1))(y, bias)
    np.testing.assert_allclose(first[0], np.eye(3, 2), atol=1e-10)
    np.testing.assert_allclose(first[1], 0, atol=1e-10)
    for row in torch.func.hessian(lambda y, bias: again(y, bias), argnums=(0, 1))(y, bias):
        for block in row:
            np.testing.assert_allclose(block, 0, atol=1e-8)


def test_modules_of_both_hosts_are_velocities(rng):
    """The time comes first in their context; the same weights give the same numbers, and the right determinants."""
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()
    ours = fp.Continuous(2, context_dim=1, num_steps=3, network=fpp.ModuleNetwork(net))

    def make(rngs):
        return flax.nnx.Sequential(flax.nnx.Linear(4, 5, rngs=rngs), flax.nnx.tanh, flax.nnx.Linear(5, 2, rngs=rngs))

    theirs = fp.Continuous(2, context_dim=1, num_steps=3, network=fnp.ModuleNetwork(make))
    flow = fpp.Flow(ours).double()
    x, context = torch.tensor(rng.normal(size=(6, 2))), torch.tensor(rng.normal(size=(6, 1)))
    assert torch.allclose(flow(context).transforms[0](x), x)  # at the start
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(torch.tensor(0.4 * rng.normal(size=parameter.shape)))
    transform = flow(context).transforms[0]
    y = transform(x)
    log_det = transform.log_abs_det_jacobian(x, y)
    assert torch.allclose(transform.inv(y), x, rtol=1e-10, atol=1e-10)
    matrix = torch.autograd.functional.jacobian(lambda x: flow(context[0]).transforms[0](x), x[0])
    assert abs(torch.linalg.slogdet(matrix)[1] - log_det[0]) < 1e-10
    log_det.sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for name, parameter in flow.named_parameters() if "2.bias" not in name)

    weights = {name.split("network.")[-1]: p.detach().numpy() for name, p in flow.named_parameters()}
    shapes = {".".join(path): p.shape for path, p in _tree.leaves(theirs.parameters())}
    named = {}
    for name, shape in shapes.items():
        which = "0" if ".0." in name else "2"
        kind = "weight" if name.endswith("kernel") else "bias"
        named[tuple(name.split("."))] = weights[f"module.{which}.{kind}"].T.reshape(shape)
    params = _tree.nested({".".join(path): jnp.asarray(leaf) for path, leaf in named.items()})
    params = _tree.merge(params, theirs.constants())
    found = jax.jit(theirs.forward)(params, jnp.asarray(x), jnp.asarray(context))
    np.testing.assert_allclose(found[0], y.detach(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found[1], log_det.detach(), rtol=1e-12, atol=1e-12)


def test_a_module_that_is_too_steep_gives_no_number():
    """Not a wrong one: 2 * num_steps is as steep as a step can invert."""
    for steepness, is_number in ((5.0, True), (-5.0, True), (7.0, False), (-7.0, False)):
        flow = fpp.Flow(fp.Continuous(1, num_steps=3, network=torch.nn.Linear(2, 1))).double()
        with torch.no_grad():
            for name, parameter in flow.named_parameters():
                parameter.copy_(torch.zeros_like(parameter) if "bias" in name else torch.tensor([[steepness, 0.0]]))
        log_prob = flow().log_prob(torch.tensor([[0.5]], dtype=torch.float64))
        assert bool(torch.isfinite(log_prob).all()) is is_number
        if is_number:
            stretch = ((1 + steepness / 6) / (1 - steepness / 6)) ** 3
            expected = -0.5 * (0.5 / stretch) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(stretch)
            assert abs(log_prob.item() / expected - 1) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_far_events_whose_coordinates_differ_have_their_numbers(dtype, rng):
    """Where one coordinate comes out small it carries the rounding of the others, and is solved all the same."""
    flow = fp.Continuous(5, hidden_dims=(), lipschitz=3.0, num_steps=2)
    params = _tree.map_tree(lambda leaf: leaf.to(dtype), merged(flow, draw(flow, rng), "torch"))
    events = torch.tensor(1e30 * rng.normal(size=(1000, 5)), dtype=dtype)
    for direction in ("forward", "inverse"):
        image, log_det = getattr(flow, direction)(params, events)
        assert torch.isfinite(image).all()
        assert torch.isfinite(log_det).all()


def test_steps_that_may_have_no_inverse_are_refused():
    with pytest.raises(ValueError, match=r"lipschitz must be at most 1.5 \* num_steps = 6, so that .*got 7.0; take"):
        fp.Continuous(2, num_steps=4, lipschitz=7.0)
    with pytest.raises(ValueError, match="lipschitz must be positive"):
        fp.Continuous(2, lipschitz=-1.0)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1"):
        fp.Continuous(2, num_steps=0)
    with pytest.raises(ValueError, match="activation must be one of"):
        fp.cnf(2, activation="sine")
