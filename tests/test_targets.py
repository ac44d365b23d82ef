"""The log density of a model for many draws at once, whatever the model does, and fits that it takes part in."""

import gc
import math
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as pdist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy.stats import norm

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.inference.arguments import takes
from flowppl.pyro.diagnostics import draw_weighted
from flowppl.pyro.target import Target

X = torch.linspace(-2.0, 2.0, 15)
GRADES = torch.tensor([0, 1, 0, 2, 1, 1, 2, 1, 2, 3, 2, 3, 3, 2, 3])


def pyro_ordered():
    slope = pyro.sample("slope", pdist.Normal(0.0, 1.0))
    cuts = pdist.Normal(0.0, 2.0).expand([3]).to_event(1)
    cuts = pyro.sample("cuts", pdist.TransformedDistribution(cuts, pdist.transforms.OrderedTransform()))
    with pyro.plate("data", len(X)):
        pyro.sample("y", pdist.OrderedLogistic(slope * X, cuts), obs=GRADES)


def pyro_branch():
    slope = pyro.sample("slope", pdist.Normal(0.0, 1.0))
    mean = slope * X if slope > 0 else 0.5 * slope * X
    with pyro.plate("data", len(X)):
        pyro.sample("y", pdist.Normal(mean, 1.0), obs=1.0 * GRADES)


class Doubled(torch.autograd.Function):
    """An operation without a rule for ``torch.func``."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope


def pyro_custom():
    scale = pyro.sample("scale", pdist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", 2, dim=-2):
        slope = pyro.sample("slope", pdist.Normal(0.0, 1.0))
        with pyro.plate("data", len(X), dim=-1):
            pyro.sample("y", pdist.Normal(Doubled.apply(slope) * X, scale), obs=1.0 * GRADES)


def target_of(model, *args):
    guide = fpp.AutoFlow(model, init="point")
    guide.setup(*args)
    return Target(guide, args, {}, torch.zeros(guide.latent_dim))


@pytest.mark.parametrize(
    ("model", "is_mapped", "is_slow"),
    [(pyro_ordered, True, False), (pyro_custom, False, False), (pyro_branch, False, True)],
)
def test_many_draws_have_the_log_densities_of_each_alone(model, is_mapped, is_slow, rng):
    target = target_of(model)
    assert (target.can_be_mapped, target.is_slow) == (is_mapped, is_slow)
    z = torch.tensor(rng.normal(size=(15, target._guide.latent_dim)))
    values, slopes = target.values_and_slopes(z)
    for row, value, slope in zip(z.requires_grad_(), values, slopes, strict=True):
        alone = target.log_prob(row)
        assert abs(value - alone) < 1e-12 * abs(value)
        np.testing.assert_allclose(slope, torch.autograd.grad(alone, z)[0].sum(0), rtol=1e-10, atol=1e-12)
    point = z[0].detach().numpy()
    gradient, hessian = target.derivatives(point)
    np.testing.assert_allclose(gradient, slopes[0], rtol=1e-10)
    if model is not pyro_branch:
        step = 1e-5 * np.eye(len(point))
        differences = [target.value_and_gradient(point + s)[1] - target.value_and_gradient(point - s)[1] for s in step]
        np.testing.assert_allclose(hessian, np.array(differences) / 2e-5, rtol=1e-6, atol=1e-6)


def test_the_operation_that_cannot_be_vectorised_is_named_once(few_draws):
    with pytest.warns(RuntimeWarning) as told:
        result = fpp.fit(pyro_branch, num_steps=100, progress=False)
    (only,) = told
    assert "mean = slope * X if slope > 0 else" in str(only.message)
    assert "test_targets.py" in str(only.message)
    assert only.filename == __file__
    slopes = np.linspace(-9.0, 9.0, 2001)
    means = np.where(slopes > 0, slopes, 0.5 * slopes)[:, None] * np.asarray(X)
    log_joint = norm.logpdf(slopes) + norm.logpdf(np.asarray(GRADES), means).sum(axis=1)
    log_evidence = np.logaddexp.reduce(log_joint) + np.log(slopes[1] - slopes[0])
    assert log_evidence - 0.01 < result.elbo < log_evidence + 0.005


def test_a_slow_model_keeps_the_time_limit(monkeypatch):
    """By a clock that only the model moves."""
    calls = []
    monkeypatch.setattr(time, "monotonic", lambda: 0.005 * len(calls))

    def model():
        calls.append(1)
        z = pyro.sample("z", pdist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", pdist.Normal(z[0] ** 2 + z[1] if z[0] > 0 else z[1], 0.1), obs=torch.tensor(1.0))

    with pytest.warns(RuntimeWarning, match="one after the other"):
        result = fpp.fit(model, max_seconds=1.0, progress=False)
    assert result.stopped == "max_seconds"
    assert len(calls) < 3000  # of five milliseconds; 16,384 draws would take more


def test_the_arguments_of_a_decorated_method_are_known():
    class Models(pyro.nn.PyroModule):
        @pyro.nn.module.pyro_method
        def model(self, x):
            z = pyro.sample("z", pdist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", pdist.Normal(z, 1.0), obs=x)

    model = Models().model
    assert takes(model, (1.0,), {})
    assert not takes(model, (), {})


# Discrete sites that are summed out.

DATA = torch.tensor([-1.0, 0.5, 2.0])


def pyro_mixture(data=DATA):
    weight = pyro.sample("weight", pdist.Beta(2.0, 2.0))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", pdist.Normal(0.0, 3.0))
    with pyro.plate("data", len(data)):
        kind = pyro.sample("kind", pdist.Bernoulli(weight), infer={"enumerate": "parallel"})
        pyro.sample("x", pdist.Normal(loc[kind.long()], 1.0), obs=data)


def by_hand(weight, loc, data=DATA):
    parts = [torch.log(w) + pdist.Normal(m, 1.0).log_prob(data) for w, m in ((1 - weight, loc[0]), (weight, loc[1]))]
    prior = pdist.Beta(2.0, 2.0).log_prob(weight) + pdist.Normal(0.0, 3.0).log_prob(loc).sum()
    return prior + torch.logaddexp(*parts).sum()


def test_marked_sites_are_summed_out(rng):
    target = target_of(pyro_mixture)
    assert not target.is_random()
    assert target.can_be_mapped
    z = torch.tensor(rng.normal(size=(5, 3)))
    weight = torch.sigmoid(z[:, 0])
    expected = [by_hand(w, row[1:]) + torch.log(w * (1 - w)) for w, row in zip(weight, z, strict=True)]
    np.testing.assert_allclose(target.batched(z), torch.stack(expected), rtol=1e-12)


def test_a_subsample_is_scaled_outside_of_the_sum(rng):
    def model():
        loc = pyro.sample("loc", pdist.Normal(0.0, 1.0))
        with pyro.plate("data", 6, subsample=torch.tensor([0, 1, 2])):
            kind = pyro.sample("kind", pdist.Categorical(torch.tensor([0.2, 0.8])), infer={"enumerate": "parallel"})
            pyro.sample("x", pdist.Normal(loc * kind, 1.0), obs=DATA)

    z = torch.tensor(rng.normal(size=(4, 1)))
    terms = torch.log(
        0.2 * pdist.Normal(0.0, 1.0).log_prob(DATA).exp() + 0.8 * pdist.Normal(z, 1.0).log_prob(DATA).exp()
    )
    expected = pdist.Normal(0.0, 1.0).log_prob(z)[:, 0] + 2 * terms.sum(1)
    np.testing.assert_allclose(target_of(model).batched(z), expected, rtol=1e-12)


def chain():
    p = pyro.sample("p", pdist.Beta(1.0, 1.0))
    state = 0
    for i in pyro.markov(range(3)):
        state = pyro.sample(
            f"s{i}", pdist.Bernoulli(p if i == 0 else 0.8 * state + 0.1), infer={"enumerate": "parallel"}
        )
        pyro.sample(f"x{i}", pdist.Normal(state, 0.5), obs=DATA[i])


def test_a_hidden_markov_chain_is_summed_out():
    z = torch.linspace(-1.0, 1.0, 4)[:, None]
    totals = []
    for p in torch.sigmoid(z[:, 0]):
        total = torch.tensor(0.0)
        for states in np.ndindex(2, 2, 2):
            term = torch.tensor(1.0)
            for i, state in enumerate(states):
                on = p if i == 0 else 0.8 * states[i - 1] + 0.1
                term = term * (on if state else 1 - on) * pdist.Normal(float(state), 0.5).log_prob(DATA[i]).exp()
            total = total + term
        totals.append(torch.log(total) + torch.log(p * (1 - p)))
    np.testing.assert_allclose(target_of(chain).batched(z), torch.stack(totals), rtol=1e-12)


def evidence():
    """The log evidence of the mixture on a grid."""
    grid = torch.linspace(-14.0, 14.0, 141)
    weights = (torch.arange(60) + 0.5) / 60
    parts = pdist.Normal(grid[:, None], 1.0).log_prob(DATA)
    first, second, w = parts[:, None, None], parts[None, :, None], weights[None, None, :, None]
    likelihood = torch.logaddexp(torch.log(1 - w) + first, torch.log(w) + second).sum(-1)
    prior = pdist.Normal(0.0, 3.0).log_prob(grid)
    prior = prior[:, None, None] + prior[None, :, None] + pdist.Beta(2.0, 2.0).log_prob(weights)
    return torch.logsumexp((likelihood + prior).ravel(), 0) + 2 * np.log(0.2) - np.log(60)


def test_fit_and_diagnose_sum_out_what_is_marked():
    result = fpp.fit(pyro_mixture, DATA, num_steps=100, num_particles=16, progress=False)
    assert set(result.sample(5)) == {"weight", "loc"}
    said = result.diagnose(num_samples=2000)
    assert abs(said.log_evidence - evidence()) < 0.15
    # As after NUTS: the host draws the discrete sites, given the others.
    sample = {name: value[0] for name, value in result.sample(1).items()}
    decoder = pyro.infer.infer_discrete(pyro.poutine.condition(pyro_mixture, data=sample), first_available_dim=-2)
    assert pyro.poutine.trace(decoder).get_trace(DATA).nodes["kind"]["value"].shape == DATA.shape


def test_other_guides_sum_out_what_is_marked():
    def guide(data):
        pyro.sample("weight", pdist.Beta(3.0, 2.0))
        with pyro.plate("components", 2):
            pyro.sample("loc", pdist.Normal(0.0, 2.0))

    weights, draws = draw_weighted(pyro_mixture, guide, (DATA,), {}, 9, 9, keep=True)
    for found, weight, loc in zip(weights, draws["weight"], draws["loc"], strict=True):
        log_q = pdist.Beta(3.0, 2.0).log_prob(weight) + pdist.Normal(0.0, 2.0).log_prob(loc).sum()
        assert abs(found - (by_hand(weight, loc) - log_q)) < 1e-12
    guide = AutoNormal(pyro.poutine.block(pyro_mixture, hide=["kind"]))
    result = fpp.fit(pyro_mixture, DATA, guide=guide, num_steps=100, num_particles=1, progress=False)
    assert np.isfinite(result.elbo)


def test_a_model_with_parameters_that_does_not_vectorise_is_run_draw_by_draw(few_draws):
    x = torch.linspace(0.0, 1.0, 4)  # as many as there are draws in a step
    kernel = gp.kernels.RBF(1)
    kernel.lengthscale = pyro.nn.PyroSample(pdist.LogNormal(0.0, 1.0))
    model = gp.models.GPRegression(x, torch.sin(6 * x), kernel, noise=torch.tensor(0.01)).model
    with pytest.warns(RuntimeWarning, match="one after the other"):
        result = fpp.fit(model, flow=fp.ElementwiseAffine, num_modes=1, num_steps=10, num_particles=4, progress=False)
    assert {"noise", "kernel.variance"} <= {name.split("$$$")[-1] for name in result.params}
    assert np.isfinite(result.diagnose(num_samples=300).elbo)


# Memory, and where gradients are off.


def resident():
    """The megabytes that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(not __import__("pathlib").Path("/proc/self/statm").exists(), reason="needs /proc")
def test_programs_are_freed():
    from flowppl.pyro.steps import record

    def function(x):
        for _ in range(150):
            x = torch.sin(x) + 1
        return (x,)

    def use():
        program = record(function, (torch.zeros(3),))
        assert program is not function
        for _ in range(3):
            program(torch.zeros(3))
        gc.collect()

    use()
    before = resident()
    for _ in range(4):
        use()
    assert resident() - before < 3  # each program of torch.jit.trace takes 1 and more


def test_a_recorded_program_may_hold_what_asks_for_a_gradient():
    from flowppl.pyro.steps import record

    weight = torch.tensor([2.0], requires_grad=True)
    program = record(lambda x: (weight.detach() * x + weight,), (torch.ones(1),))
    assert float(program(torch.tensor([3.0]))[0]) == 8.0
    assert weight.requires_grad


def test_where_gradients_are_off_fit_works_or_says_so():
    def model(x):
        z = pyro.sample("z", pdist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", pdist.Normal(z, 1.0), obs=x)

    with torch.no_grad():
        assert fpp.fit(model, torch.tensor(1.0), num_steps=100, progress=False).k_hat < 0.5
        guide = AutoNormal(model)
        assert np.isfinite(fpp.fit(model, torch.tensor(1.0), guide=guide, num_steps=100, progress=False).elbo)
    with torch.inference_mode():
        data = torch.tensor(1.0)
        with pytest.raises(RuntimeError, match="inference_mode"):
            fpp.fit(model, data, progress=False)
    with pytest.raises(RuntimeError, match="made under torch"):
        fpp.fit(model, data, progress=False)


@pytest.mark.parametrize("language", ["pyro", "numpyro"])
def test_two_threads_fit_one_after_the_other(language):
    host, dist = (pyro, pdist) if language == "pyro" else (numpyro, ndist)
    results = {}

    def model(x):
        z = host.sample("z", dist.Normal(0.0, 1.0))
        host.sample("x", dist.Normal(z, 1.0), obs=x)

    def work(value):
        if language == "pyro":
            results[value] = fpp.fit(model, torch.tensor(value), num_steps=100, progress=False).elbo
        else:
            results[value] = fnp.fit(jax.random.key(0), model, jnp.array(value), num_steps=100, progress=False).elbo

    threads = [threading.Thread(target=work, args=(value,)) for value in (0.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value in (0.0, 2.0):
        assert results[value] == pytest.approx(-(value**2) / 4 - math.log(4 * math.pi) / 2, abs=0.01)


# The same in NumPyro.


def numpyro_mixture(data):
    weight = numpyro.sample("weight", ndist.Beta(2.0, 2.0))
    with numpyro.plate("components", 2):
        loc = numpyro.sample("loc", ndist.Normal(0.0, 3.0))
    with numpyro.plate("data", len(data)):
        kind = numpyro.sample("kind", ndist.Bernoulli(weight), infer={"enumerate": "parallel"})
        numpyro.sample("x", ndist.Normal(loc[kind], 1.0), obs=data)


def test_numpyro_sums_out_what_is_marked(rng):
    data = DATA.numpy()
    guide = fnp.AutoFlow(numpyro_mixture, init="point")
    params = guide.setup(data)
    z = rng.normal(size=(5, 3))
    found = fnp.target.Target(guide, (data,), {}).log_probs(z)
    for row, value in zip(z, found, strict=True):
        sites = {name: torch.tensor(np.asarray(v)) for name, v in guide._constrain(guide._unpack_latent(row)).items()}
        weight = sites["weight"]
        assert abs(value - by_hand(weight, sites["loc"]) - torch.log(weight * (1 - weight))) < 1e-12
    key = jax.random.key(0)
    weights, draws = fnp.diagnostics.draw_weighted(key, numpyro_mixture, guide, params, (data,), {}, 7, 7, keep=True)
    assert set(draws) == {"weight", "loc"}
    inside = jnp.concatenate([draws["loc"], jax.scipy.special.logit(draws["weight"])[:, None]], axis=1)
    places = guide._unpack_latent(np.arange(3.0))
    order = np.argsort([*np.asarray(places["loc"]), float(places["weight"])])
    log_q = guide.get_posterior(params).log_prob(inside[:, order])
    for found, w, loc, q in zip(weights, draws["weight"], draws["loc"], log_q, strict=True):
        weight, loc = torch.tensor(float(w)), torch.tensor(np.asarray(loc))
        expected = by_hand(weight, loc) + torch.log(weight * (1 - weight)) - float(q)
        assert abs(float(found) - expected) < 1e-9


def test_a_start_in_numpyro_is_searched_with_sums():
    guide = fnp.AutoFlow(numpyro_mixture)
    params = guide.setup(DATA.numpy())
    said = fnp.diagnose(jax.random.key(0), numpyro_mixture, guide, params, DATA.numpy(), num_samples=2000)
    assert abs(said.log_evidence - evidence()) < 0.5
    # As after NUTS: the host draws the discrete sites, given the others.
    predict = numpyro.infer.Predictive(
        numpyro_mixture, guide.sample_posterior(jax.random.key(2), params, sample_shape=(5,)), infer_discrete=True
    )
    assert predict(jax.random.key(1), DATA.numpy())["kind"].shape == (5, 3)


def test_numpyro_refuses_sums_in_a_subsample():
    def model():
        loc = numpyro.sample("loc", ndist.Normal(0.0, 1.0))
        with numpyro.plate("data", 6, subsample_size=3):
            kind = numpyro.sample("kind", ndist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            numpyro.sample("x", ndist.Normal(loc * kind, 1.0), obs=DATA.numpy())

    with pytest.raises(ValueError, match="'kind' is to be summed out, but stands in a subsample"):
        fnp.AutoFlow(model).setup()


PAIRS = np.array([-2.1, -1.9, 2.0, 2.2, 1.8, 2.1])


@pytest.mark.filterwarnings("ignore:the resampled draws")
def test_what_depends_on_a_site_summed_out_has_its_posterior():
    """Members below zero belong to kind 0, the others to kind 1: the modes are 8 apart."""

    def ours(y):
        weight = pyro.sample("weight", pdist.Beta(2.0, 2.0))
        with pyro.plate("data", 6):
            kind = pyro.sample("kind", pdist.Bernoulli(weight), infer={"enumerate": "parallel"})
            pyro.deterministic("sign", 2 * kind - 1)
            pyro.sample("y", pdist.Normal(4.0 * (2 * kind - 1), 1.0), obs=y)

    def theirs(y):
        weight = numpyro.sample("weight", ndist.Beta(2.0, 2.0))
        with numpyro.plate("data", 6):
            kind = numpyro.sample("kind", ndist.Bernoulli(weight), infer={"enumerate": "parallel"})
            numpyro.deterministic("sign", 2 * kind - 1)
            numpyro.sample("y", ndist.Normal(4.0 * (2 * kind - 1), 1.0), obs=y)

    guide, y = fpp.AutoFlow(ours), torch.tensor(PAIRS)
    guide.setup(y)
    results = (
        fpp.Fit(guide, {}, None, ours, ((y,), {})),
        fnp.fit(jax.random.key(0), theirs, PAIRS, flow=fp.TriangularAffine, num_steps=100),
    )
    for result in results:
        for draws in (result.sample(20), result.resample(20)):
            np.testing.assert_array_equal(np.asarray(draws["sign"]), np.broadcast_to(np.sign(PAIRS), (20, 6)))


def test_members_that_are_masked_out_have_no_likelihood_in_pyro():
    y, mask = torch.tensor([1.0, 2.0, -777.0]), torch.tensor([True, True, False])

    def model():
        loc = pyro.sample("loc", pdist.Normal(0.0, 1.0))
        with pyro.plate("data", 3), pyro.poutine.mask(mask=mask):
            pyro.sample("y", pdist.Normal(loc, 1.0), obs=y)

    terms = fpp.fit(model, num_steps=100).to_arviz(num_samples=5).log_likelihood["y"].values
    assert (terms[..., 2] == 0).all()
    assert (terms[..., :2] < 0).all()
