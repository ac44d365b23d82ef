"""The two languages agree: the same weights and the same noise give the same numbers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from catalogue import BIJECTIONS, IMAGE_RECIPES, RECIPES, context_for, draw
from numpyro import handlers
from numpyro.infer.util import log_density
from pyro import poutine

import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def numpyro_schools():
    mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", ndist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", ndist.Normal(mu, tau))
        numpyro.sample("y", ndist.Normal(theta, SIGMA), obs=Y)


def pyro_schools():
    mu = pyro.sample("mu", pdist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", pdist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", pdist.Normal(mu, tau))
        pyro.sample("y", pdist.Normal(theta, torch.tensor(SIGMA)), obs=torch.tensor(Y))


# What differs between the adapters: weights of one row and of many, constants, a context, other shapes, inverses that
# are searched. The bijections of the recipes are the same in both.
KINDS = ["chain", "repeat-scan", "damped", "amortized-iaf", "subspace-conditional", "nsf", "glow_image"]
ALL_KINDS = [
    *KINDS,
    *(pytest.param(name, marks=pytest.mark.stress) for name in RECIPES | IMAGE_RECIPES if name not in KINDS),
]


@pytest.mark.parametrize("name", ALL_KINDS)
def test_flows_agree(name, rng):
    bijection = (BIJECTIONS | RECIPES | IMAGE_RECIPES)[name]
    # Deep stacks of steep layers would amplify the rounding of each.
    params = draw(bijection, rng, 1.0 if name in BIJECTIONS else 0.3)
    context = context_for(bijection, rng, (20,))
    noise = rng.normal(size=(20, *bijection.x_shape))
    flow = fpp.Flow(bijection)
    flow.transform.weights.assign(_tree.map_tree(torch.tensor, params))
    ours = flow(None if context is None else torch.tensor(context))
    theirs = fnp.Flow(bijection, _tree.map_tree(jnp.asarray, params))(context)
    y = ours.transforms[0](torch.tensor(noise)).detach().numpy()
    np.testing.assert_allclose(y, jax.jit(lambda x: theirs.transforms[0](x))(noise), rtol=1e-10, atol=1e-10)
    found = ours.log_prob(torch.tensor(y)).detach()
    np.testing.assert_allclose(found, jax.jit(lambda y: theirs.log_prob(y))(y), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("flow", ["auto", "planar", "realnvp"])
def test_guides_agree_in_every_log_weight(flow, rng):
    ours, theirs = (a.AutoFlow(model, flow, init="point") for a, model in ((fpp, pyro_schools), (fnp, numpyro_schools)))
    ours.setup()
    start = theirs.setup()["auto_flow"]
    params = _tree.map_tree(lambda leaf: np.asarray(leaf) + 0.1 * rng.normal(size=leaf.shape), start)
    ours.flow.transform.weights.assign(_tree.map_tree(torch.tensor, params))
    assert ours.flow.bijection == theirs.bijection
    theirs_params = {"auto_flow": _tree.map_tree(jnp.asarray, params)}

    @jax.jit
    def log_weight(z):
        fixed = handlers.substitute(handlers.seed(theirs, 0), {"_auto_latent": z})
        log_q, trace = log_density(fixed, (), {}, theirs_params)
        return log_density(handlers.replay(numpyro_schools, trace), (), {}, theirs_params)[0] - log_q

    transform = jax.jit(lambda x: theirs.get_transform(theirs_params)(x))
    for noise in rng.normal(size=(5, theirs.latent_dim)):
        z = ours.get_transform()(torch.tensor(noise)).detach()
        np.testing.assert_allclose(z, transform(noise), rtol=1e-10, atol=1e-10)
        guide = poutine.trace(poutine.condition(ours, {"_AutoFlow_latent": z})).get_trace()
        model = poutine.trace(poutine.replay(pyro_schools, guide)).get_trace()
        found = model.log_prob_sum() - guide.log_prob_sum()

        np.testing.assert_allclose(found.item(), log_weight(jnp.asarray(z)), rtol=1e-10, atol=1e-10)


DRAW_NOTHING = {"annealed", "linear_annealing", "interpolate", "interpolate_four"}
DRAW_NOTHING |= {"attribute_direction", "edit", "anomaly_scores"}


def test_both_adapters_have_the_same_names_and_arguments():
    assert set(fnp.__all__) - set(fpp.__all__) == {"flow"}  # in Pyro a module is registered by pyro.module
    assert set(fpp.__all__) <= set(fnp.__all__)
    for name in fpp.__all__:
        if name[0].islower():
            ours, theirs = (list(inspect.signature(getattr(m, name)).parameters.values()) for m in (fpp, fnp))
            needed = [p for p in theirs if p.name not in ("key", "rng_key", "params")]  # torch has both at hand
            assert [(p.name, p.default) for p in needed] == [(p.name, p.default) for p in ours], name
            assert (len(theirs) > len(ours)) == (name not in DRAW_NOTHING), name
    ours, theirs = (inspect.signature(m.AutoFlow.__init__).parameters for m in (fpp, fnp))
    assert [name for name in theirs if name != "prefix"] == list(ours)
