"""Flows as priors: trained with a model, or fitted to data and held, among the constructs of both languages."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro.infer.util import log_density
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scipy import stats

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import map_tree, select

MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, 1.2], [1.2, 1.0]])
X = np.array([[0.5, 0.3], [2.0, -1.0], [-0.5, -2.5]])
NOISE = 0.8


def gaussian_flows():
    """The same normal as a flow in both languages, as ``fit_density`` would find it."""
    layer = fp.TriangularAffine(2)
    params = layer.parameters_for(MEAN, np.linalg.cholesky(COVARIANCE))
    flow = fpp.Flow(layer)
    flow.transform.weights.assign(map_tree(torch.tensor, params))
    return flow.freeze(), fnp.Flow(layer, map_tree(jnp.asarray, params))


def posterior():
    """The mean and covariance of z given the rows of X, z + noise each."""
    precision = np.linalg.inv(COVARIANCE) + len(X) / NOISE**2 * np.eye(2)
    return np.linalg.solve(precision, np.linalg.solve(COVARIANCE, MEAN) + X.sum(0) / NOISE**2), np.linalg.inv(precision)


def pyro_model(prior):
    def model(x):
        z = pyro.sample("z", prior())
        with pyro.plate("data", len(x)):
            pyro.sample("x", pdist.Normal(z, NOISE).to_event(1), obs=x)

    return model


def numpyro_model(prior):
    def model(x):
        z = numpyro.sample("z", prior())
        with numpyro.plate("data", len(x)):
            numpyro.sample("x", ndist.Normal(z, NOISE).to_event(1), obs=x)

    return model


def test_a_prior_fitted_to_data_and_held_serves_nuts():
    rng = np.random.default_rng(0)
    draws = rng.multivariate_normal(MEAN, COVARIANCE, 4000)
    mean, covariance = posterior()

    def check(z):
        np.testing.assert_allclose(z.mean(0), mean, atol=0.12)
        np.testing.assert_allclose(np.cov(z.T), covariance, atol=0.12)

    pyro.set_rng_seed(0)
    options = {"num_epochs": 20, "learning_rate": 0.05, "progress": False}
    fitted = fpp.fit_density(fpp.Flow(fp.TriangularAffine(2)), draws, **options).flow.freeze()
    kernel = pyro.infer.NUTS(pyro_model(fitted))
    mcmc = pyro.infer.MCMC(kernel, num_samples=500, warmup_steps=200, disable_progbar=True)
    mcmc.run(torch.tensor(X))
    check(mcmc.get_samples()["z"].numpy())
    start = fnp.Flow.init(jax.random.key(0), fp.TriangularAffine(2))
    fitted = fnp.fit_density(jax.random.key(1), start, draws, **options).flow
    kernel = numpyro.infer.NUTS(numpyro_model(fitted))
    mcmc = numpyro.infer.MCMC(kernel, num_samples=1000, num_warmup=500, progress_bar=False)
    mcmc.run(jax.random.key(2), jnp.asarray(X))
    check(np.asarray(mcmc.get_samples()["z"]))


def test_a_held_prior_is_not_trained_and_its_guide_finds_the_posterior():
    ours, theirs = gaussian_flows()
    mean, covariance = posterior()
    kept = {name: value.clone() for name, value in ours.state_dict().items()}
    guide = fpp.AutoFlow(pyro_model(ours))
    svi = pyro.infer.SVI(pyro_model(ours), guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    svi.step(torch.tensor(X))
    assert all(torch.equal(value, kept[name]) for name, value in ours.state_dict().items())
    draws = guide.sample_posterior(torch.tensor(X), sample_shape=(4000,))["z"].numpy()
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.1)
    assert not [name for name in pyro.get_param_store() if "prior" in name]
    params = fnp.AutoFlow(numpyro_model(theirs)).setup(jnp.asarray(X))
    assert set(params) == {"auto_flow"}


@pytest.mark.parametrize("language", ["pyro", "numpyro"])
def test_a_prior_is_learned_with_the_rest(language):
    """Latents on a ring: the trained prior has draws on it, where the normal that it starts from has few."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 512)
    x = 2 * np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.normal(size=(512, 2))
    bijection = fp.realnvp(2, 6, hidden_dims=32)
    if language == "pyro":
        pyro.set_rng_seed(0)
        prior = fpp.Flow(bijection)
        data = torch.tensor(x)

        def model():
            pyro.module("prior", prior)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", prior())
                pyro.sample("x", pdist.Normal(z, 0.1).to_event(1), obs=data)

        def guide():
            scale = pyro.param("scale", torch.tensor(0.1), constraint=pdist.constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", pdist.Normal(data, scale).to_event(1))

        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 5e-3}), pyro.infer.Trace_ELBO())
        for _ in range(400):
            svi.step()
        draws = prior().sample((2000,)).detach().numpy()
    else:

        def model():
            prior = fnp.flow("prior", bijection)
            with numpyro.plate("data", len(x)):
                z = numpyro.sample("z", prior())
                numpyro.sample("x", ndist.Normal(z, 0.1).to_event(1), obs=jnp.asarray(x))

        def guide():
            scale = numpyro.param("scale", 0.1, constraint=ndist.constraints.positive)
            with numpyro.plate("data", len(x)):
                numpyro.sample("z", ndist.Normal(jnp.asarray(x), scale).to_event(1))

        svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(5e-3), numpyro.infer.Trace_ELBO())
        params = svi.run(jax.random.key(0), 400, progress_bar=False).params
        draws = np.asarray(fnp.Flow(bijection, params["prior"])().sample(jax.random.key(1), (2000,)))
    radius = np.linalg.norm(draws, axis=1)
    assert np.mean(abs(radius - 2) < 0.5) > 0.55  # of the normal 0.3


def conditional_flows(rng):
    """A prior conditional on a label and a number, the same in both languages, away from its first weights."""
    bijection = fp.realnvp(2, 2, hidden_dims=4, context_dim=4)
    flow = fpp.Flow(bijection)
    with torch.no_grad():
        for weight in flow.parameters():
            weight += 0.3 * torch.tensor(rng.normal(size=weight.shape))
    tree = select(bijection.parameters(), flow.transform.weights.tree())
    return flow, fnp.Flow(bijection, map_tree(lambda leaf: jnp.asarray(leaf.detach().numpy()), tree))


def test_a_discrete_label_of_a_conditional_prior_is_enumerated(rng):
    """A label in a plate and a parent latent are the context; what is summed out is compared with a sum by hand."""
    ours, theirs = conditional_flows(rng)
    probs, parent = np.array([0.2, 0.5, 0.3]), 0.7
    z = rng.normal(size=(5, 2))

    @config_enumerate
    def pyro_one():
        a = pyro.sample("parent", pdist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            label = pyro.sample("label", pdist.Categorical(torch.tensor(probs)))
            hot = torch.nn.functional.one_hot(label, 3).double()
            context = torch.cat([hot, a.expand(*label.shape, 1)], -1)
            pyro.sample("z", ours(context), obs=torch.tensor(z))

    def numpyro_one():
        a = numpyro.sample("parent", ndist.Normal(0.0, 1.0))
        with numpyro.plate("data", 5):
            label = numpyro.sample("label", ndist.Categorical(jnp.asarray(probs)), infer={"enumerate": "parallel"})
            hot = jax.nn.one_hot(label, 3)
            context = jnp.concatenate([hot, jnp.broadcast_to(a, (*label.shape, 1))], -1)
            numpyro.sample("z", theirs(context), obs=jnp.asarray(z))

    contexts = np.concatenate([np.eye(3), np.full((3, 1), parent)], 1)
    each = [
        np.log(p) + np.asarray(theirs(jnp.asarray(c)).log_prob(jnp.asarray(z)))
        for p, c in zip(probs, contexts, strict=True)
    ]
    expected = stats.norm.logpdf(parent) + np.logaddexp.reduce(each, axis=0).sum()
    given = {"parent": jnp.asarray(parent)}
    conditioned = poutine.condition(pyro_one, {"parent": torch.tensor(parent)})
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(conditioned, lambda: None)
    np.testing.assert_allclose(-loss, expected, rtol=1e-9)
    pytest.importorskip("funsor")  # NumPyro needs it to enumerate
    loss = numpyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(
        jax.random.key(0), {}, numpyro.handlers.condition(numpyro_one, given), lambda: None
    )
    np.testing.assert_allclose(-loss, expected, rtol=1e-9)


def test_scales_masks_plates_and_predictions():
    ours, theirs = gaussian_flows()
    mask = np.array([True, False, True])
    dense = stats.multivariate_normal(MEAN, COVARIANCE).logpdf(X)

    def pyro_sites():
        with pyro.plate("data", 3), poutine.scale(scale=10.0), poutine.mask(mask=torch.tensor(mask)):
            return pyro.sample("z", ours())

    def numpyro_sites():
        with (
            numpyro.plate("data", 3),
            numpyro.handlers.scale(scale=10.0),
            numpyro.handlers.mask(mask=jnp.asarray(mask)),
        ):
            return numpyro.sample("z", theirs())

    conditioned = poutine.condition(pyro_sites, {"z": torch.tensor(X)})
    total = poutine.trace(conditioned).get_trace().log_prob_sum()
    np.testing.assert_allclose(total.item(), 10 * dense[mask].sum(), rtol=1e-9)
    total, _ = log_density(numpyro_sites, (), {}, {"z": jnp.asarray(X)})
    np.testing.assert_allclose(total, 10 * dense[mask].sum(), rtol=1e-9)
    drawn = pyro.infer.Predictive(pyro_sites, num_samples=2000)()["z"].numpy()
    assert drawn.shape == (2000, 3, 2)
    np.testing.assert_allclose(drawn.mean((0, 1)), MEAN, atol=0.1)
    drawn = np.asarray(numpyro.infer.Predictive(numpyro_sites, num_samples=2000)(jax.random.key(0))["z"])
    assert drawn.shape == (2000, 3, 2)
    np.testing.assert_allclose(drawn.mean((0, 1)), MEAN, atol=0.1)
