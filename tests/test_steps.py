"""Optimisers of the hosts in all trainings: each is compared with its own loop."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pyro
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flowppl.numpyro import steps as nsteps
from flowppl.pyro import steps as psteps

SLOPE = np.array([3.0, -0.5])


def by_hand(optimizer, scheduler, num_steps=5):
    """The parameters of the torch loop that its documentation shows, on a parabola."""
    (weight,) = optimizer.param_groups[0]["params"]
    for _ in range(num_steps):
        optimizer.zero_grad()
        (0.5 * (weight - torch.tensor(SLOPE)) ** 2).sum().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return weight.detach().numpy()


def weights():
    return torch.zeros(2, requires_grad=True)


def taken(optimizer, rate=None, num_steps=5, clip_norm=math.inf):
    weight = weights()
    made = psteps.make_optimizer(optimizer, {"weight": weight})
    for _ in range(num_steps):
        (0.5 * (weight - torch.tensor(SLOPE)) ** 2).sum().backward()
        psteps.take_step(made, [weight], torch.ones(()), clip_norm, rate)
    return weight.detach().numpy()


def decaying(parameters):
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.optim.Adam, lambda p: (torch.optim.Adam(p), None)),
        (functools.partial(torch.optim.AdamW, lr=0.1), lambda p: (torch.optim.AdamW(p, lr=0.1), None)),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), lambda p: (torch.optim.SGD(p, 0.1, 0.9), None)),
        (decaying, decaying),
        (lambda p: [*decaying(p)], decaying),
        (pyro.optim.Adam({"lr": 0.1}), lambda p: (torch.optim.Adam(p, lr=0.1), None)),
        (pyro.optim.Adam(lambda name: {"lr": len(name) / 60}), lambda p: (torch.optim.Adam(p, lr=0.1), None)),
        (
            pyro.optim.CosineAnnealingLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "T_max": 4}),
            decaying,
        ),
    ],
)
def test_torch_optimisers_step_as_in_a_loop_of_their_own(given, expected):
    psteps.check_optimizer("fit", given)
    assert psteps.has_rate(given)
    np.testing.assert_allclose(taken(given), by_hand(*expected([weights()])), rtol=1e-12)


def test_pyro_optimisers_step_as_in_the_host():
    for make in (
        lambda: pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.9, "clip_norm": 1.0}),
        lambda: pyro.optim.SGD({"lr": 0.1}, {"clip_norm": 1.0}),
        lambda: pyro.optim.SGD({"lr": 0.1}, {"clip_value": 0.2}),
    ):
        weight, optimizer = pyro.param("weight", torch.zeros(2)), make()
        for _ in range(5):
            (0.5 * (weight - torch.tensor(SLOPE)) ** 2).sum().backward()
            optimizer([weight])
            weight.grad = None
        np.testing.assert_allclose(taken(make()), weight.detach().numpy(), rtol=1e-12)
        pyro.clear_param_store()


def loop(init, update, num_steps=5):
    """The parameters of a loop, on the same parabola."""
    params = jnp.zeros(2)
    state = init(params)
    for _ in range(num_steps):
        params, state = update(params - SLOPE, state, params)
    return params


def with_optax(optimizer):
    def update(gradient, state, params):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return loop(optimizer.init, update)


def with_numpyro(optimizer):
    def update(gradient, state, params):
        state = optimizer.update(gradient, state, value=1.0)
        return optimizer.get_params(state), state

    return loop(optimizer.init, update)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (optax.adamw(optax.cosine_decay_schedule(0.1, 4)), with_optax),
        (optax.chain(optax.clip(0.2), optax.sgd(0.1, momentum=0.9)), with_optax),
        (numpyro.optim.ClippedAdam(0.1), with_numpyro),
        (numpyro.optim.SGD(lambda step: 0.1 / (1 + step)), with_numpyro),
        (numpyro.optim.optax_to_numpyro(optax.adam(0.1)), with_numpyro),
    ],
)
def test_optimisers_of_optax_and_numpyro_step_as_in_a_loop_of_their_own(given, expected):
    nsteps.check_optimizer("fit", given)
    assert nsteps.has_rate(given)
    optimizer = nsteps.make_optimizer(given)

    @jax.jit
    def run(params, rates):
        def step(carry, rate):
            return nsteps.take_step(optimizer, carry, carry[0] - SLOPE, 1.0, rate)

        return jax.lax.scan(step, (params, optimizer.init(params)), rates, length=5)

    (params, _), losses = run(jnp.zeros(2), None)
    np.testing.assert_allclose(params, expected(given), rtol=1e-12)
    assert (losses == 1).all()


def test_an_optimiser_that_goes_by_the_loss_gets_it():
    given = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    optimizer = nsteps.make_optimizer(given)
    carry, places = (jnp.zeros(1), optimizer.init(jnp.zeros(1))), []
    for _ in range(6):
        carry, _ = nsteps.take_step(optimizer, carry, jnp.ones(1), 1.0)
        places.append(float(carry[0][0]))
    assert min(-np.diff(places)) < 0.6


@pytest.mark.parametrize("name", ["adam", "adamax"])
def test_named_optimisers_take_the_rate_of_each_step(name):
    assert not psteps.has_rate(name)
    assert not nsteps.has_rate(name)
    optimizer = nsteps.make_optimizer(name)
    carry = (jnp.zeros(2), optimizer.init(jnp.zeros(2)))
    for _ in range(5):
        carry, _ = nsteps.take_step(optimizer, carry, carry[0] - SLOPE, 1.0, 0.1)
    np.testing.assert_allclose(taken(name, 0.1), carry[0], rtol=1e-6)


def test_gradients_are_clipped_before_an_optimiser_of_the_host():
    unclipped = SLOPE / np.linalg.norm(SLOPE)
    np.testing.assert_allclose(taken(functools.partial(torch.optim.SGD, lr=1.0), None, 1, 1.0), unclipped, rtol=1e-6)
    optimizer = nsteps.make_optimizer(optax.sgd(1.0), 1.0)
    carry = (jnp.zeros(2), optimizer.init(jnp.zeros(2)))
    carry, _ = nsteps.take_step(optimizer, carry, -SLOPE, 1.0)
    np.testing.assert_allclose(carry[0], unclipped, rtol=1e-6)


@pytest.mark.parametrize("steps", [nsteps, psteps])
def test_what_is_not_finite_takes_no_step(steps):
    if steps is nsteps:
        optimizer = steps.make_optimizer(numpyro.optim.Momentum(0.1, 0.9))
        carry = (jnp.ones(1), optimizer.init(jnp.ones(1)))
        for gradient, loss in ((math.nan, 1.0), (1.0, math.inf)):
            new, found = steps.take_step(optimizer, carry, jnp.array([gradient]), loss)
            assert np.isnan(found)
            for one, other in zip(jax.tree.leaves(new), jax.tree.leaves(carry), strict=True):
                np.testing.assert_array_equal(one, other)
    else:
        weight = torch.ones(1, requires_grad=True)
        optimizer = steps.make_optimizer(decaying, {"weight": weight})
        for gradient, loss in ((math.nan, 1.0), (1.0, math.inf)):
            weight.grad = torch.tensor([gradient])
            assert steps.take_step(optimizer, [weight], torch.tensor(loss)).isnan()
        assert (weight.item(), optimizer.param_groups[0]["lr"]) == (1.0, 0.1)


def test_what_is_no_optimiser_is_told():
    for steps in (nsteps, psteps):
        for wrong in (None, 0.1, {"lr": 1e-3}):
            with pytest.raises(TypeError, match=r"fit: optimizer is no optimiser of .*; pass"):
                steps.check_optimizer("fit", wrong)
        with pytest.raises(ValueError, match="fit: there is no optimizer 'sgd'; pass \"adam\""):
            steps.check_optimizer("fit", "sgd")
    with pytest.raises(TypeError, match="optimizer is no optimiser of optax"):
        nsteps.check_optimizer("fit", torch.optim.Adam)
    with pytest.raises(TypeError, match="Minimize needs more than"):
        nsteps.check_optimizer("fit", numpyro.optim.Minimize())
    with pytest.raises(TypeError, match="Adam that has its parameters already"):
        psteps.check_optimizer("fit", torch.optim.Adam([weights()]))
    for steps, given in ((nsteps, optax.adam(0.1)), (psteps, torch.optim.Adam)):
        steps.check_optimizer("fit", "adam", 0.1)
        with pytest.raises(ValueError, match=r"learning_rate=0\.1 beside an optimizer"):
            steps.check_optimizer("fit", given, 0.1)
    for wrong, message in [
        (torch.optim.LBFGS, "needs gradients only"),
        (lambda p: 3, "must give a torch optimiser"),
        (lambda p: (torch.optim.Adam(p), torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.Adam(p))), "number of"),
        (pyro.optim.Adam({"lr": 0.1}, lambda module, name: {}), "clip_args of pyro.optim must be a dict"),
    ]:
        psteps.check_optimizer("fit", wrong)
        with pytest.raises(TypeError, match=message):
            psteps.make_optimizer(wrong, {"weight": weights()})


class NoReading(TorchDispatchMode):
    """Fails where a value is read from a tensor, for which a program would wait for its GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), "a training step reads a value"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("slope", [1.0, math.nan])
def test_a_step_of_the_fused_adam_reads_no_value(slope):
    weight = weights()
    made = psteps.make_optimizer("adam", {"weight": weight}, fused=True)
    for gradient in (1.0, slope):
        weight.grad = torch.full((2,), gradient)
        with NoReading():
            loss = psteps.take_step(made, [weight], torch.ones(()), clip_norm=10.0, rate=0.1)
    assert loss.isnan() == math.isnan(slope)
    np.testing.assert_allclose(weight.detach(), -0.2 if slope == 1 else -0.1, rtol=1e-6)
