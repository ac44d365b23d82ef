"""A guide of a model that sees a batch of its data at a time starts where all of them lead."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch

import flowppl.numpyro as fpn
import flowppl.pyro as fpp

NUM, BATCH, SD = 400, 40, 2.0
Y = np.random.default_rng(0).normal(3.0, SD, NUM)
# With a prior of N(0, 10) on the mean:
PRECISION = NUM / SD**2 + 0.01
MEAN = Y.sum() / SD**2 / PRECISION


def start_in_numpyro(seed):
    def model(y):
        mu = numpyro.sample("mu", ndist.Normal(0.0, 10.0))
        with numpyro.plate("data", NUM, subsample_size=BATCH):
            numpyro.sample("y", ndist.Normal(mu, SD), obs=numpyro.subsample(y, 0))

    guide = fpn.AutoFlow(model)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(1e-3), numpyro.infer.Trace_ELBO())
    params = svi.get_params(svi.init(jax.random.key(seed), jnp.asarray(Y)))
    return guide.sample_posterior(jax.random.key(1), params, sample_shape=(2000,))["mu"]


def start_in_pyro(seed):
    def model(y):
        mu = pyro.sample("mu", pdist.Normal(0.0, 10.0))
        with pyro.plate("data", NUM, subsample_size=BATCH) as indices:
            pyro.sample("y", pdist.Normal(mu, SD), obs=y[indices])

    pyro.set_rng_seed(seed)
    guide = fpp.AutoFlow(model)
    guide.setup(torch.as_tensor(Y))
    return guide.sample_posterior(sample_shape=(2000,))["mu"]


@pytest.mark.parametrize("start", [start_in_numpyro, start_in_pyro])
def test_a_guide_of_batches_has_a_searched_start(start):
    for seed in (0, 1):
        draws = np.asarray(start(seed))
        # Ten batches are as many data as there are, with some of them twice.
        assert abs(draws.mean() - MEAN) < 4 * PRECISION**-0.5
        assert abs(draws.std() * PRECISION**0.5 - 1) < 0.1
