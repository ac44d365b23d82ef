"""NUTS in the space of a guide (NeuTra), through the reparameterisations of both host libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import numpyro.infer
import pyro
import pyro.distributions as pdist
import pyro.infer
import pytest
import torch
from numpyro import handlers
from numpyro.infer.reparam import NeuTraReparam
from numpyro.infer.util import log_density
from pyro import poutine
from pyro.infer.reparam import NeuTraReparam as PyroNeuTraReparam

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

Y = np.array([1.0, 2.0, 0.0, 3.0])
FLOWS = {
    "sequential inverse": lambda dim: fp.iaf(dim, num_flows=1, hidden_dims=8),
    "sequential forward": lambda dim: fp.maf(dim, num_flows=1, hidden_dims=8),
}
all_flows = pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
SITES = ("mu", "tau", "theta")


def numpyro_schools():
    mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", ndist.LogNormal(0.0, 1.0))
    with numpyro.plate("schools", 4):
        theta = numpyro.sample("theta", ndist.Normal(mu, tau))
        numpyro.sample("y", ndist.Normal(theta, 1.0), obs=Y)


def pyro_schools():
    mu = pyro.sample("mu", pdist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", pdist.LogNormal(0.0, 1.0))
    with pyro.plate("schools", 4):
        theta = pyro.sample("theta", pdist.Normal(mu, tau))
        pyro.sample("y", pdist.Normal(theta, 1.0), obs=torch.as_tensor(Y))


def numpyro_conjugate():
    z = numpyro.sample("z", ndist.Normal(jnp.zeros(2), 1.0).to_event(1))
    numpyro.sample("y", ndist.Normal(z, 1.0).to_event(1), obs=jnp.array([2.0, -1.0]))


def pyro_conjugate():
    z = pyro.sample("z", pdist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", pdist.Normal(z, 1.0).to_event(1), obs=torch.tensor([2.0, -1.0]))


def numpyro_guide(model, flow, rng):
    """A guide, and weights away from its start."""
    guide = fnp.AutoFlow(model, flow, init="point")
    return guide, jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), guide.setup())


@torch.no_grad()
def shaken(guide):
    """A Pyro guide with its weights moved away from where they were."""
    for parameter in guide.parameters():
        parameter += 0.3 * torch.randn_like(parameter)
    return guide


@all_flows
def test_numpyro_density_is_that_of_the_model_on_the_warped_space(flow, rng):
    guide, params = numpyro_guide(numpyro_schools, flow, rng)
    neutra = NeuTraReparam(guide, params)
    z = rng.normal(size=guide.latent_dim)

    @jax.jit
    def to_sites(z):
        return jnp.concatenate([jnp.ravel(neutra.transform_sample(z)[name]) for name in SITES])

    warped = jax.jit(lambda z: log_density(neutra.reparam(numpyro_schools), (), {}, {"auto_shared_latent": z})[0])
    mu, tau, *theta = to_sites(z)
    joint = log_density(numpyro_schools, (), {}, {"mu": mu, "tau": tau, "theta": jnp.stack(theta)})[0]
    log_det = np.linalg.slogdet(jax.jit(jax.jacfwd(to_sites))(z))[1]
    np.testing.assert_allclose(warped(z), joint + log_det, rtol=1e-8)


@all_flows
def test_pyro_density_is_that_of_the_model_on_the_warped_space(flow):
    guide = fpp.AutoFlow(pyro_schools, flow, init="point")
    guide.setup()
    shaken(guide)
    neutra = PyroNeuTraReparam(guide)
    trace = poutine.trace(neutra.reparam(pyro_schools)).get_trace()
    z = trace.nodes["mu_shared_latent"]["value"]
    to_sites = lambda z: torch.cat([neutra.transform_sample(z)[name].reshape(-1) for name in SITES])  # noqa: E731
    log_det = torch.linalg.slogdet(torch.autograd.functional.jacobian(to_sites, z))[1]
    joint = poutine.trace(poutine.condition(pyro_schools, neutra.transform_sample(z))).get_trace().log_prob_sum()
    torch.testing.assert_close(trace.log_prob_sum(), joint + log_det, rtol=1e-8, atol=0.0)


def test_numpyro_draws_are_of_the_posterior_whatever_the_guide(rng):
    guide, params = numpyro_guide(numpyro_conjugate, fp.TriangularAffine, rng)
    neutra = NeuTraReparam(guide, params)
    model = neutra.reparam(numpyro_conjugate)
    trace = handlers.trace(handlers.seed(model, 0)).get_trace()
    assert not any(site["type"] == "param" for site in trace.values())
    mcmc = numpyro.infer.MCMC(numpyro.infer.NUTS(model), num_warmup=500, num_samples=4000, progress_bar=False)
    mcmc.run(jax.random.key(0))
    check_conjugate(neutra.transform_sample(mcmc.get_samples()["auto_shared_latent"]))


def test_pyro_draws_are_of_the_posterior_whatever_the_guide():
    fit = fpp.fit(pyro_conjugate, guide=fpp.AutoFlow(pyro_conjugate, fp.TriangularAffine), progress=False)
    guide = shaken(fit.guide)
    before = {name: parameter.detach().clone() for name, parameter in guide.named_parameters()}
    neutra = PyroNeuTraReparam(guide)
    kernel = pyro.infer.NUTS(neutra.reparam(pyro_conjugate))
    mcmc = pyro.infer.MCMC(kernel, num_samples=200, warmup_steps=50, disable_progbar=True)
    mcmc.run()
    assert not list(pyro.get_param_store())
    for name, parameter in guide.named_parameters():
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    with torch.no_grad():
        check_conjugate(neutra.transform_sample(mcmc.get_samples()["z_shared_latent"]))


def check_conjugate(draws):
    assert set(draws) == {"z"}
    z = np.asarray(draws["z"])
    margin = 8 * np.sqrt(0.5 / len(z))  # four standard errors with a quarter of the draws effective
    np.testing.assert_allclose(z.mean(axis=0), [1.0, -0.5], atol=margin)
    np.testing.assert_allclose(z.std(axis=0), np.sqrt(0.5), atol=margin)
