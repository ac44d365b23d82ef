"""Pyro on a GPU: the numbers of the CPU, and nothing that waits for the device within a training step."""

import contextlib
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import BIJECTIONS, ENDS, RECIPES, context_for, draw
from pyro.infer import SVI, JitTrace_ELBO, Predictive, Trace_ELBO
from torch.utils._python_dispatch import TorchDispatchMode

import flowppl as fp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree
from flowppl.pyro.steps import take_step

FLOWS = BIJECTIONS | ENDS | RECIPES
X, Y = np.linspace(-1.0, 1.0, 12), 2.0 * np.linspace(-1.0, 1.0, 12)


def model(x, y=None):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(()), 3.0))
    noise = pyro.sample("noise", dist.HalfNormal(x.new_ones(())))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def data(device):
    return torch.tensor(X, device=device), torch.tensor(Y + 0.1 * np.cos(40 * X), device=device)


def transform_on(device, bijection, weights):
    transform = fpp.FlowTransform(bijection)
    transform.weights.assign(_tree.map_tree(torch.tensor, weights))
    return transform.to(device)


def both_directions(transform, event, context):
    """Both directions, and the gradients with respect to the event, the context and the weights."""
    if context is not None:
        transform = transform.condition(context)
    results = []
    bijection = transform.bijection
    for shape, direction in (
        (bijection.x_shape, transform.forward_and_log_det),
        (bijection.y_shape, transform.inverse_and_log_det),
    ):
        mapped, log_det = direction(event.reshape(-1, *shape))
        inputs = [event, *([] if context is None else [context]), *transform.parameters()]
        total = (mapped * torch.arange(1.0, 1 + mapped.shape[-1], device=mapped.device)).sum() + log_det.sum()
        results += [mapped, log_det, *torch.autograd.grad(total, inputs, materialize_grads=True)]
    return [result.detach().cpu().numpy() for result in results]


@pytest.mark.parametrize("name", FLOWS)
def test_every_layer_has_the_numbers_of_the_cpu(name, device, rng):
    bijection = FLOWS[name]
    weights = draw(bijection, rng, 0.5)
    event, context = rng.uniform(0.1, 0.9, size=(4, *bijection.x_shape)), context_for(bijection, rng, (4,))

    def on(where):
        inputs = [None if array is None else torch.tensor(array, device=where) for array in (event, context)]
        for array in inputs:
            if array is not None:
                array.requires_grad_()
        return both_directions(transform_on(where, bijection, weights), *inputs)

    for found, expected in zip(on(device), on("cpu"), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("moved_first", [True, False])
def test_a_flow_moves_before_and_after_its_first_use(moved_first, device):
    flow = fpp.Flow(fp.realnvp(3, num_flows=2, hidden_dims=8), dist.StudentT(5.0, torch.zeros(3), 1.0).to_event(1))
    expected = flow().log_prob(torch.ones(2, 3))
    if not moved_first:
        flow()
    flow.to(device)
    found = flow().log_prob(torch.ones(2, 3, device=device))
    assert found.device.type == device.type
    np.testing.assert_allclose(found.detach().cpu(), expected.detach())
    assert flow().rsample((2,)).device.type == device.type
    back = flow.to("cpu")().log_prob(torch.ones(2, 3))
    assert torch.equal(back, expected)


@pytest.mark.parametrize("loss", [Trace_ELBO, JitTrace_ELBO])
def test_a_guide_trains_in_svi(loss, device):
    guide = fpp.AutoFlow(model)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 5e-3}), loss())
    for _ in range(5):
        assert math.isfinite(svi.step(*data(device)))
    assert all(parameter.device.type == device.type for parameter in guide.parameters())
    draws = Predictive(model, guide=guide, num_samples=20)(data(device)[0])
    assert draws["y"].device.type == device.type
    assert draws["slope"].mean().item() == pytest.approx(2.0, abs=0.3)


def test_fit_diagnose_save_and_load(device, tmp_path):
    result = fpp.fit(model, *data(device), num_steps=200)
    assert result.sample(10)["slope"].device.type == device.type
    assert result.sample(1000)["slope"].mean().item() == pytest.approx(2.0, abs=0.1)
    assert result.diagnose().verdict == "good"
    assert result.resample(10)["slope"].device.type == device.type
    result.save(tmp_path / "fit.safetensors")
    with torch.device("cpu"):
        loaded = fp.load(tmp_path / "fit.safetensors")
    z = torch.linspace(-1.0, 1.0, 4).reshape(2, 2)
    expected = result.guide.get_posterior().log_prob(z.to(device)).detach().cpu()
    np.testing.assert_allclose(loaded.guide.get_posterior().log_prob(z).detach(), expected, rtol=1e-8)
    fp.save(tmp_path / "flow.safetensors", loaded.guide.flow)
    moved = fp.load(tmp_path / "flow.safetensors").to(device)
    np.testing.assert_allclose(moved().log_prob(z.to(device)).detach().cpu(), expected, rtol=1e-8)


def test_a_local_guide_trains(device):
    def groups(y, batch_size=4):
        loc = pyro.sample("loc", dist.Normal(y.new_zeros(()), 5.0))
        with pyro.plate("groups", len(y), subsample_size=batch_size, device=y.device) as index:
            theta = pyro.sample("theta", dist.Normal(loc, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y[index])

    y = torch.linspace(-1.0, 1.0, 8, device=device)
    guide = fpp.AutoLocalFlow(groups, lambda y, batch_size=4: y[:, None])
    svi = SVI(groups, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert all(math.isfinite(svi.step(y)) for _ in range(3))


def test_a_density_is_fitted(device):
    x = torch.randn(500, 2, device=device) * 2.0 + 3.0
    flow = fpp.Flow(fp.Chain([fp.realnvp(2, num_flows=2, hidden_dims=8), fp.ActNorm(2)])).to(device)
    fit = fpp.fit_density(flow, x.cpu().numpy(), num_epochs=3)
    assert fit.losses[-1] < 5
    assert fit.flow().sample((3,)).device.type == device.type


def test_an_autoencoder_goes_on_from_its_checkpoint(device, tmp_path):
    images = (np.random.default_rng(1).uniform(size=(60, 6)) < 0.3).astype(np.float64)

    def vae():
        torch.manual_seed(0)
        posterior = fp.amortized_posterior(2, 4, "planar", num_flows=2)
        networks = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
        return fpp.FlowVAE(*networks, posterior, prior=fp.realnvp(2, num_flows=2, hidden_dims=4)).to(device)

    def train(num_epochs, path):
        pyro.set_rng_seed(0)
        model = vae()
        return model, fpp.fit_vae(model, images, num_epochs=num_epochs, batch_size=20, checkpoint=path)

    whole, whole_fit = train(4, tmp_path / "whole")
    train(2, tmp_path / "parts")
    again, again_fit = train(4, tmp_path / "parts")
    np.testing.assert_allclose(again_fit.losses, whole_fit.losses, rtol=1e-6)
    for one, other in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        np.testing.assert_allclose(one.cpu(), other.cpu(), rtol=1e-6, atol=1e-9)
    assert whole.sample(3).device.type == device.type
    assert math.isfinite(fpp.evaluate_vae(whole, images, num_samples=10).elbo)


def test_autocast_keeps_densities_of_single_precision(device):
    flow = fpp.Flow(fp.realnvp(4, num_flows=2, hidden_dims=8)).float().to(device)
    x = torch.linspace(-1.0, 1.0, 8, device=device, dtype=torch.float32).reshape(2, 4)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = flow().log_prob(x)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.detach().cpu(), flow().log_prob(x).detach().cpu(), atol=0.1)


def test_the_default_device_is_used(device):
    torch.set_default_device(device)
    try:
        assert fpp.planar(2)(torch.ones(3, 2)).device.type == device.type
        result = fpp.fit(model, *data(device), num_steps=100)
        assert result.sample(10)["slope"].device.type == device.type
    finally:
        torch.set_default_device(None)


class _NoReading(TorchDispatchMode):
    """Fails where a value is read from a tensor, for which the host would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert "_local_scalar_dense" not in str(func), "a training step reads a value from the device"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_synchronisation(device):
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _NoReading():
            yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def test_a_training_step_of_a_density_waits_for_nothing(device):
    flow = fpp.Flow(fp.nsf(3, num_flows=2, hidden_dims=8)).to(device)
    optimizer = torch.optim.Adam(flow.parameters(), fused=True)
    x = torch.randn(20, 3, device=device)
    flow().log_prob(x).mean().backward()
    take_step(optimizer, flow.parameters(), torch.ones((), device=device))  # the first one allocates
    with pyro.validation_enabled(False), no_synchronisation(device):
        loss = -flow().log_prob(x).mean()
        loss.backward()
        take_step(optimizer, flow.parameters(), loss, clip_norm=5.0, rate=1e-3)


def test_a_training_step_of_a_guide_waits_for_nothing(device):
    from flowppl.inference.fitting import FLOW_ROUNDS, Chunk
    from flowppl.pyro.trainers import PathTrainer

    guide = fpp.AutoFlow(model, fp.realnvp)
    guide.setup(*data(device))
    trainer = PathTrainer(guide, model, data(device), {}, 1, "adam", math.inf)
    trainer.is_subsampled = False
    steps = np.zeros(100)
    chunk = Chunk(steps + 1e-3, steps, steps + 1, FLOW_ROUNDS[0].num_particles, affine=False, end=math.inf)
    trainer.begin(affine=False)
    trainer.run(chunk)  # records the program
    with no_synchronisation(device):
        trainer._step(0, chunk, 0)
