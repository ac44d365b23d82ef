"""Ten tasks, each written from a host user's habits alone, in at most 15 lines, in both languages."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import optax
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro.infer.reparam import NeuTraReparam as NumpyroNeuTra
from pyro.infer.reparam import NeuTraReparam as PyroNeuTra

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl import plotting

X = np.linspace(-1.0, 1.0, 12)
Y = 2.0 * X + 0.1 * np.cos(40 * X)
BLOBS = np.random.default_rng(0).normal(size=(300, 2)) * [1.0, 0.3] + [2.0, -1.0]
LABELS = np.repeat([[0.0], [1.0]], 150, axis=0)
IMAGES = (np.random.default_rng(1).uniform(size=(60, 6)) < 0.3).astype(np.float64)


def pyro_model(x, y=None):
    slope = pyro.sample("slope", pdist.Normal(0.0, 3.0))
    noise = pyro.sample("noise", pdist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", pdist.Normal(slope * x, noise), obs=y)


def numpyro_model(x, y=None):
    slope = numpyro.sample("slope", ndist.Normal(0.0, 3.0))
    noise = numpyro.sample("noise", ndist.HalfNormal(1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", ndist.Normal(slope * x, noise), obs=y)


@pytest.fixture(scope="module")
def pyro_result():
    pyro.set_rng_seed(0)
    return fpp.fit(pyro_model, torch.tensor(X), torch.tensor(Y), num_steps=100)


@pytest.fixture(scope="module")
def numpyro_result():
    return fnp.fit(jax.random.key(0), numpyro_model, jnp.array(X), jnp.array(Y), num_steps=100)


# 1. A guide in SVI, with Predictive.


def test_a_guide_in_svi_with_predictive_in_pyro():
    x, y = torch.tensor(X), torch.tensor(Y)
    guide = fpp.AutoFlow(pyro_model)
    svi = pyro.infer.SVI(pyro_model, guide, pyro.optim.ClippedAdam({"lr": 5e-3}), pyro.infer.Trace_ELBO())
    for _ in range(5):
        svi.step(x, y)
    draws = pyro.infer.Predictive(pyro_model, guide=guide, num_samples=50)(torch.linspace(-1.0, 1.0, 5))
    assert draws["y"].shape == (50, 5)
    assert draws["slope"].mean() == pytest.approx(2.0, abs=0.2)


def test_a_guide_in_svi_with_predictive_in_numpyro():
    x, y = jnp.array(X), jnp.array(Y)
    guide = fnp.AutoFlow(numpyro_model)
    svi = numpyro.infer.SVI(numpyro_model, guide, numpyro.optim.ClippedAdam(5e-3), numpyro.infer.Trace_ELBO())
    result = svi.run(jax.random.key(0), 5, x, y, progress_bar=False)
    predictive = numpyro.infer.Predictive(numpyro_model, guide=guide, params=result.params, num_samples=50)
    draws = predictive(jax.random.key(1), jnp.linspace(-1.0, 1.0, 5))
    assert draws["y"].shape == (50, 5)
    posterior = numpyro.infer.Predictive(guide, params=result.params, num_samples=50)(jax.random.key(1), x)
    assert posterior["slope"].mean() == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(("AutoFlow", "model"), [(fpp.AutoFlow, pyro_model), (fnp.AutoFlow, numpyro_model)])
def test_a_guide_takes_the_options_of_its_recipe_as_the_hosts_do(AutoFlow, model):
    for flow in ("iaf", fp.iaf):
        assert AutoFlow(model, flow, num_flows=2, hidden_dims=(3,)).flow_choice(4) == fp.iaf(4, 2, hidden_dims=(3,))
    with pytest.raises(
        TypeError, match=r"unexpected keyword argument 'num_flow'; the options of iaf are num_flows, hid"
    ):
        AutoFlow(model, "iaf", num_flow=2)
    with pytest.raises(
        TypeError, match=r"no option 'init_loc'; it takes those of a recipe .* did you mean 'init_loc_fn'"
    ):
        AutoFlow(model, init_loc=2)
    with pytest.raises(TypeError, match="no option 'num_flows'; it takes those of a recipe where flow is one"):
        AutoFlow(model, fp.iaf(2), num_flows=2)
    with pytest.raises(ValueError, match="unknown flow 'iav'"):
        AutoFlow(model, "iav", num_flows=2)


# 2. An optimiser of one's own.


def test_an_optimizer_of_ones_own_in_pyro():
    optimizer = pyro.optim.ClippedAdam({"lr": 1e-3})
    result = fpp.fit(pyro_model, torch.tensor(X), torch.tensor(Y), flow="iaf", optimizer=optimizer, num_steps=100)
    assert result.sample(100)["slope"].mean() == pytest.approx(2.0, abs=0.2)


def test_an_optimizer_of_ones_own_in_numpyro():
    optimizer = optax.adamw(optax.cosine_decay_schedule(1e-3, 100))
    known = (jax.random.key(0), numpyro_model, jnp.array(X), jnp.array(Y))
    result = fnp.fit(*known, flow="iaf", optimizer=optimizer, num_steps=100)
    assert result.sample(100)["slope"].mean() == pytest.approx(2.0, abs=0.2)


# 3. New data for the guide that is there.


def test_new_data_in_pyro(pyro_result):
    again = fpp.fit(pyro_model, torch.tensor(X), torch.tensor(Y) + 1.0, guide=pyro_result.guide, num_steps=100)
    assert again.sample(100)["slope"].shape == (100,)


def test_new_data_in_numpyro(numpyro_result):
    known = (jax.random.key(0), numpyro_model, jnp.array(X), jnp.array(Y) + 1.0)
    again = fnp.fit(*known, guide=numpyro_result.guide, num_steps=100)
    assert again.sample(100)["slope"].shape == (100,)


# 4. The posterior predictive.


def test_the_posterior_predictive_in_pyro(pyro_result):
    draws = pyro_result.predict(torch.tensor([0.5, 1.0]), num_samples=200)
    np.testing.assert_allclose(draws["y"].mean(0), [1.0, 2.0], atol=0.2)
    assert pyro_result.predict(num_samples=10)["y"].shape == (10, 12)


def test_the_posterior_predictive_in_numpyro(numpyro_result):
    draws = numpyro_result.predict(jnp.array([0.5, 1.0]), num_samples=200)
    np.testing.assert_allclose(draws["y"].mean(0), [1.0, 2.0], atol=0.2)
    assert numpyro_result.predict(num_samples=10)["y"].shape == (10, 12)


# 5. A flow as a prior, trained with the model.


def test_a_flow_as_a_prior_in_pyro():
    prior = fpp.Flow(fp.realnvp(2, num_flows=2, hidden_dims=8))

    def model(x):
        pyro.module("prior", prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", prior(), obs=x)

    svi = pyro.infer.SVI(model, lambda x: None, pyro.optim.Adam({"lr": 1e-2}), pyro.infer.Trace_ELBO())
    losses = [svi.step(torch.tensor(BLOBS)) for _ in range(50)]
    assert losses[-1] < losses[0]


def test_a_flow_as_a_prior_in_numpyro():
    def model(x):
        prior = fnp.flow("prior", fp.realnvp(2, num_flows=2, hidden_dims=8))
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", prior(), obs=x)

    svi = numpyro.infer.SVI(model, lambda x: None, numpyro.optim.Adam(1e-2), numpyro.infer.Trace_ELBO())
    result = svi.run(jax.random.key(0), 50, jnp.array(BLOBS), progress_bar=False)
    assert result.losses[-1] < result.losses[0]


# 6. A conditional density.


def test_a_conditional_density_in_pyro():
    fit = fpp.fit_density(fp.maf(2, num_flows=2, hidden_dims=8, context_dim=1), BLOBS, LABELS, num_epochs=3)
    assert fit.flow(torch.ones(1)).sample((5,)).shape == (5, 2)
    assert fit.flow(torch.tensor(LABELS)).log_prob(torch.tensor(BLOBS)).shape == (300,)


def test_a_conditional_density_in_numpyro():
    flow = fp.maf(2, num_flows=2, hidden_dims=8, context_dim=1)
    fit = fnp.fit_density(jax.random.key(0), flow, BLOBS, LABELS, num_epochs=3)
    assert fit.flow(jnp.ones(1)).sample(jax.random.key(1), (5,)).shape == (5, 2)
    assert fit.flow(jnp.array(LABELS)).log_prob(jnp.array(BLOBS)).shape == (300,)


# 7. Save and load.


def test_save_and_load_in_pyro(pyro_result, tmp_path):
    pyro_result.save(tmp_path / "fit.safetensors")
    same = fp.load(tmp_path / "fit.safetensors")
    assert same.sample(100)["slope"].mean() == pytest.approx(2.0, abs=0.2)


def test_save_and_load_in_numpyro(numpyro_result, tmp_path):
    numpyro_result.save(tmp_path / "fit.safetensors")
    same = fp.load(tmp_path / "fit.safetensors")
    assert same.sample(100)["slope"].mean() == pytest.approx(2.0, abs=0.2)


# 8. A plot of pairs, and ArviZ.


@pytest.mark.parametrize("language", ["pyro", "numpyro"])
def test_a_plot_of_pairs(language, request):
    import arviz
    import matplotlib.pyplot as plt

    result = request.getfixturevalue(f"{language}_result")
    plotting.pairs(result, var_names=["slope", "noise"])
    plotting.losses(result)
    plt.close("all")
    data = result.to_arviz()
    assert arviz.summary(data).loc["slope", "mean"] == pytest.approx(2.0, abs=0.2)
    for group in ("posterior", "log_likelihood", "observed_data", "posterior_predictive"):
        assert hasattr(data, group)


# 9. NeuTra: NUTS in the flow's space.


def test_neutra_in_pyro(pyro_result):
    x, y = torch.tensor(X), torch.tensor(Y)
    neutra = PyroNeuTra(pyro_result.guide.requires_grad_(False))
    kernel = pyro.infer.NUTS(neutra.reparam(pyro_model))
    mcmc = pyro.infer.MCMC(kernel, num_samples=10, warmup_steps=5, disable_progbar=True)
    mcmc.run(x, y)
    (latent,) = mcmc.get_samples().values()
    assert neutra.transform_sample(latent)["slope"].mean() == pytest.approx(2.0, abs=0.3)


def test_neutra_in_numpyro(numpyro_result):
    neutra = NumpyroNeuTra(numpyro_result.guide, numpyro_result.params)
    kernel = numpyro.infer.NUTS(neutra.reparam(numpyro_model))
    mcmc = numpyro.infer.MCMC(kernel, num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.array(X), jnp.array(Y))
    latent = mcmc.get_samples()["auto_shared_latent"]
    assert neutra.transform_sample(latent)["slope"].mean() == pytest.approx(2.0, abs=0.3)


# 10. An autoencoder with flows.


def test_a_flow_autoencoder_in_pyro():
    encoder, decoder = torch.nn.Linear(6, 4), torch.nn.Linear(2, 6)
    posterior = fp.amortized_posterior(2, 4, "planar", num_flows=2)
    vae = fpp.FlowVAE(encoder, decoder, posterior, likelihood="bernoulli")
    fit = fpp.fit_vae(vae, IMAGES, num_epochs=2, callback=lambda epoch, loss: False)
    assert len(fit.losses) == 2
    assert vae.sample(3).shape == (3, 6)


def test_a_flow_autoencoder_in_numpyro():
    from flax import nnx

    encoder, decoder = nnx.Linear(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(2, 6, rngs=nnx.Rngs(1))
    posterior = fp.amortized_posterior(2, 4, "planar", num_flows=2)
    vae = fnp.FlowVAE(encoder, decoder, posterior, likelihood="bernoulli")
    fit = fnp.fit_vae(jax.random.key(0), vae, IMAGES, num_epochs=2, callback=lambda epoch, loss: False)
    assert len(fit.losses) == 2
    assert vae.sample(jax.random.key(1), fit.params, 3).shape == (3, 6)
