"""Flow matching: its loss, that it learns, in both languages, and what is refused."""

from functools import partial

import jax
import numpy as np
import pyro
import pyro.distributions as pdist
import pytest
import torch
from catalogue import NAMESPACES, draw, merged, numpy

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree
from flowppl.inference.density_objectives import matching_losses


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_the_loss_is_the_distance_from_the_straight_way(namespace, rng):
    flow = fp.Continuous(2, hidden_dims=4, context_dim=1, num_steps=2, lipschitz=3.0)
    params = draw(flow, rng)
    x, noise, context = rng.normal(size=(3, 2)), rng.normal(size=(2, 3, 2)), rng.normal(size=(3, 1))
    to = NAMESPACES[namespace]
    arrays = (to(array) for array in (x, noise, np.array(0.7), context))
    loss = partial(matching_losses, flow, merged(flow, params, namespace))
    found = numpy((jax.jit(loss) if namespace == "jax" else loss)(*arrays))
    times = np.array([[0.7 + 1 / 6, 0.7 + 2 / 6, 0.7 + 3 / 6], [0.7 + 4 / 6, 0.7 + 5 / 6, 0.7 + 6 / 6]]) % 1
    for i in range(3):
        each = []
        for z, t in zip(noise[:, i], times[:, i], strict=True):
            velocity = flow.velocity(merged(flow, params), t * x[i] + (1 - t) * z, np.array(t), context[i])
            each.append(((velocity - (x[i] - z)) ** 2).sum())
        np.testing.assert_allclose(found[i], np.mean(each), rtol=1e-12)


def data(rng, size):
    """Of one number, of mean 2c and standard deviation 0.5 for contexts c."""
    context = rng.normal(size=(size, 1))
    return 2 * context + 0.5 * rng.normal(size=(size, 1)), context


FLOW = fp.cnf(1, hidden_dims=16, context_dim=1, num_steps=8, lipschitz=12.0)
OPTIONS = {"objective": "flow_matching", "num_epochs": 30, "progress": False, "learning_rate": 0.02}


@pytest.mark.parametrize("language", ["pyro", "numpyro"])
def test_it_learns_a_density_given_a_context(language, rng):
    x, context = data(rng, 1000)
    others, others_context = data(rng, 500)
    if language == "pyro":
        pyro.set_rng_seed(0)
        fit = fpp.fit_density(fpp.Flow(FLOW).double(), x, context, **OPTIONS)
        params = fit.flow.transform.weights.tree()
    else:
        fit = fnp.fit_density(jax.random.key(0), FLOW, x, context, **OPTIONS)
        params = fit.flow.params | {"step": np.arange(8)}
    params = _tree.map_tree(numpy, params)
    noise, log_det = FLOW.inverse(params, others, others_context)
    found = (log_det - 0.5 * noise[:, 0] ** 2 - 0.5 * np.log(2 * np.pi)).mean()
    truth = -0.5 * np.log(2 * np.pi) - np.log(0.5) - 0.5
    assert truth - 0.15 < found < truth + 0.1
    assert len(fit.validation_losses) == len(fit.losses)
    assert fit.losses[-1] < fit.losses[0]


def test_the_noise_is_that_of_the_base(rng):
    """A flow whose base is the distribution of the data has no far way to go."""
    x = 3 + 0.1 * rng.normal(size=(400, 2))
    pyro.set_rng_seed(1)
    base = pdist.Normal(3.0 * torch.ones(2), 0.1).to_event(1)
    flow = fpp.Flow(fp.cnf(2, hidden_dims=4, num_steps=2, lipschitz=3.0), base).double()
    fit = fpp.fit_density(flow, x, objective="flow_matching", num_epochs=2, progress=False)
    assert fit.losses.max() < 0.2  # it is 18 with noise around 0


def test_what_has_no_velocity_is_refused():
    x, key = np.random.default_rng(0).normal(size=(50, 2)), jax.random.key(0)
    for flow in (fp.nsf(2), fp.Chain([fp.cnf(2), fp.LU(2)]), fp.Invert(fp.cnf(2))):
        name = type(flow).__name__
        for fit in (lambda f, **o: fpp.fit_density(f, x, **o), lambda f, **o: fnp.fit_density(key, f, x, **o)):
            with pytest.raises(ValueError, match=f"only a flow of one flowppl.Continuous .* got one of {name}; take"):
                fit(flow, objective="flow_matching")
            with pytest.raises(ValueError, match=r"objective must be one of .*'flow_match'; did you mean 'flow_match"):
                fit(flow, objective="flow_match")

    class Base(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(2))

        def forward(self):
            return pdist.Normal(self.loc, 1.0).to_event(1)

    with pytest.raises(ValueError, match="flow matching trains no base distribution; freeze it"):
        fpp.fit_density(fpp.Flow(fp.cnf(2), Base()), x, objective="flow_matching")


def test_a_checkpoint_is_of_one_objective(tmp_path):
    x, flow = np.random.default_rng(0).normal(size=(50, 1)), fp.cnf(1, hidden_dims=())
    options = {"num_epochs": 1, "progress": False, "checkpoint": tmp_path / "there"}
    for _ in range(2):
        fpp.fit_density(flow, x, objective="flow_matching", **options)
    with pytest.raises(ValueError, match="of another training, with other objective; name another"):
        fpp.fit_density(flow, x, **options)
