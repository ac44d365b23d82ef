"""NumPyro on a GPU: the numbers of the CPU, with data and keys on the device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from catalogue import BIJECTIONS, ENDS, RECIPES, context_for, draw
from numpyro.infer import SVI, Predictive, Trace_ELBO

import flowppl as fp
import flowppl.numpyro as fnp
from flowppl._arrays import tree as _tree

FLOWS = BIJECTIONS | ENDS | RECIPES
X = np.linspace(-1.0, 1.0, 12)


@pytest.fixture(autouse=True)
def _on_the_device(jax_device):
    with jax.default_device(jax_device):
        yield


def model(x, y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 3.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, noise), obs=y)


def data(device):
    return tuple(jax.device_put(array, device) for array in (X, 2.0 * X + 0.1 * np.cos(40 * X)))


def key(device, seed=0):
    return jax.device_put(jax.random.key(seed), device)


def is_on(device, tree):
    return all(leaf.devices() == {device} for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", FLOWS)
def test_every_layer_has_the_numbers_of_the_cpu(name, jax_device, rng):
    bijection = FLOWS[name]
    weights = draw(bijection, rng, 0.5)
    event, context = rng.uniform(0.1, 0.9, size=(4, *bijection.x_shape)), context_for(bijection, rng, (4,))

    def total(inputs, direction):
        weights, event, context = inputs
        event = event.reshape(4, *(bijection.y_shape if direction.startswith("inverse") else bijection.x_shape))
        mapped, log_det = getattr(fnp.FlowTransform(bijection, weights, context), direction)(event)
        return (mapped * jnp.arange(1.0, 1 + mapped.shape[-1])).sum() + log_det.sum(), (mapped, log_det)

    def on(device):
        with jax.default_device(device):
            inputs = jax.tree.map(lambda leaf: jax.device_put(leaf, device), (weights, event, context))
            run = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=1)
            results = [run(inputs, direction) for direction in ("forward_and_log_det", "inverse_and_log_det")]
            assert is_on(device, results)
            return [np.asarray(leaf) for leaf in jax.tree.leaves(results)]

    for found, expected in zip(on(jax_device), on(jax.devices("cpu")[0]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_a_guide_trains_in_svi(jax_device):
    guide = fnp.AutoFlow(model)
    svi = SVI(model, guide, numpyro.optim.ClippedAdam(5e-3), Trace_ELBO())
    result = svi.run(key(jax_device), 5, *data(jax_device), progress_bar=False)
    assert is_on(jax_device, result.params)
    assert np.isfinite(result.losses).all()
    predictive = Predictive(model, guide=guide, params=result.params, num_samples=20)
    draws = predictive(key(jax_device, 1), data(jax_device)[0])
    assert is_on(jax_device, draws)
    assert draws["y"].shape == (20, len(X))
    draws = guide.sample_posterior(key(jax_device, 2), result.params, sample_shape=(20,))
    assert is_on(jax_device, draws)
    assert draws["slope"].mean() == pytest.approx(2.0, abs=0.3)


def test_fit_diagnose_save_and_load(jax_device, tmp_path):
    result = fnp.fit(key(jax_device), model, *data(jax_device), num_steps=200)
    assert is_on(jax_device, result.sample(10))
    assert result.sample(1000)["slope"].mean() == pytest.approx(2.0, abs=0.1)
    assert result.diagnose().verdict == "good"
    assert is_on(jax_device, result.resample(10))
    result.save(tmp_path / "fit.safetensors")
    z = np.linspace(-1.0, 1.0, 4).reshape(2, 2)
    expected = result.guide.get_posterior(result.params).log_prob(jax.device_put(z, jax_device))
    with jax.default_device(jax.devices("cpu")[0]):
        loaded = fp.load(tmp_path / "fit.safetensors")
        found = loaded.guide.get_posterior(loaded.params).log_prob(z)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_a_local_guide_trains(jax_device):
    def groups(y, batch_size=4):
        loc = numpyro.sample("loc", dist.Normal(0.0, 5.0))
        with numpyro.plate("groups", len(y), subsample_size=batch_size) as index:
            theta = numpyro.sample("theta", dist.Normal(loc, 1.0))
            numpyro.sample("y", dist.Normal(theta, 1.0), obs=y[index])

    y = jax.device_put(np.linspace(-1.0, 1.0, 8), jax_device)
    guide = fnp.AutoLocalFlow(groups, lambda y, batch_size=4: y[:, None])
    svi = SVI(groups, guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    assert np.isfinite(svi.run(key(jax_device), 3, y, progress_bar=False).losses).all()


def test_a_density_is_fitted(jax_device, rng):
    flow = fnp.Flow.init(key(jax_device), fp.Chain([fp.realnvp(2, num_flows=2, hidden_dims=8), fp.ActNorm(2)]))
    fit = fnp.fit_density(key(jax_device, 1), flow, rng.normal(3.0, 2.0, size=(500, 2)), num_epochs=3)
    assert fit.losses[-1] < 5
    assert is_on(jax_device, fit.flow.params)


def test_an_autoencoder_goes_on_from_its_checkpoint(jax_device, tmp_path):
    from flax import nnx

    images = (np.random.default_rng(1).uniform(size=(60, 6)) < 0.3).astype(np.float64)
    networks = nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(2, 6, rngs=nnx.Rngs(1))
    posterior = fp.amortized_posterior(2, 4, "planar", num_flows=2)
    vae = fnp.FlowVAE(*networks, posterior, prior=fp.realnvp(2, num_flows=2, hidden_dims=4))

    def train(num_epochs, path):
        return fnp.fit_vae(key(jax_device), vae, images, num_epochs=num_epochs, batch_size=20, checkpoint=path)

    whole = train(4, tmp_path / "whole")
    train(2, tmp_path / "parts")
    again = train(4, tmp_path / "parts")
    np.testing.assert_allclose(again.losses, whole.losses, rtol=1e-6)
    for one, other in zip(*(_tree.leaves(fit.params) for fit in (again, whole)), strict=True):
        np.testing.assert_allclose(one[1], other[1], rtol=1e-6, atol=1e-9)
    assert is_on(jax_device, vae.sample(key(jax_device), whole.params, 3))
    assert math.isfinite(fnp.evaluate_vae(key(jax_device), vae, whole.params, images, num_samples=10).elbo)
