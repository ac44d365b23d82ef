"""Posteriors with several modes: found, weighed, held by a guide, and told of where they are not."""

import copy
import math
import pickle
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro.infer.reparam import NeuTraReparam as NumPyroNeuTra
from pyro.infer.reparam import NeuTraReparam as PyroNeuTra
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import map_tree, merge
from flowppl.bijections.contract import initialize
from flowppl.inference import mixture
from flowppl.inference.descents import descend
from flowppl.inference.guides import path_flow
from flowppl.inference.losses import path_loss, stretched
from flowppl.inference.modes import MAX_SEARCHES, NUM_SEARCHES, find_modes
from flowppl.inference.starts import Gaussian, newton_start, search_until

DATA = np.array([-5.3, -4.6, -5.1, 4.7, 5.2, 4.9, 5.5])
LOC = np.array([0.0, 8.0])  # of two normals, with weights .7 and .3


class Density:
    """A density of NumPy as a target of searches: values and derivatives by hand."""

    def __init__(self, log_prob, gradient, hessian, prior=None):
        self.log_prob, self.gradient, self.hessian, self.prior = log_prob, gradient, hessian, prior

    def log_probs(self, points):
        return np.asarray(self.log_prob(points.T))

    def derivatives(self, point):
        return self.gradient(point), self.hessian(point)

    def values_and_gradients(self, points):
        return self.log_probs(points), np.array([self.gradient(point) for point in points])

    def prior_draws(self, num, rng):
        return np.full((num, len(self.prior)), np.nan) if self.prior is None else rng.normal(0, self.prior, (num, 2))


def mixture_of_normals(locs, weights, sd):
    """The density of equal normals, with derivatives by the shares of each at a point."""
    locs = np.asarray(locs, dtype=float)
    dim = locs.shape[1]

    def shares(z):
        logs = np.log(weights) - 0.5 * ((z.T[..., None, :] - locs) ** 2).sum(axis=-1) / sd**2
        total = logsumexp(logs, axis=-1)
        return np.exp(logs - total[..., None]), total - dim * math.log(sd * math.sqrt(2 * math.pi))

    def gradient(z):
        return shares(z)[0] @ (locs - z) / sd**2

    def hessian(z):
        share, _ = shares(z)
        centred = (locs - z) - share @ (locs - z)
        return (centred.T * share) @ centred / sd**4 - np.eye(dim) / sd**2

    return Density(lambda z: shares(z)[1], gradient, hessian, prior=10.0 * np.ones(dim))


def search(target, seed, dim=2):
    rng = np.random.default_rng(seed)
    start = newton_start([rng.uniform(-1, 1, dim)], target, rng)
    return find_modes(target, start, rng)


@pytest.mark.parametrize("seed", range(3))
def test_all_modes_are_found_and_weighed(seed):
    locs = [[i, j] for i in (-5, 0, 5) for j in (-5, 0, 5)]
    weights = np.arange(1, 10) / 45
    modes = search(mixture_of_normals(locs, weights, 0.548), seed)
    assert len(modes.gaussians) == 9
    assert modes.unseen < 0.01
    order = [np.argmin(np.sum((np.array(locs) - each.loc) ** 2, axis=1)) for each in modes.gaussians]
    assert sorted(order) == list(range(9))
    np.testing.assert_allclose(np.exp(modes.log_weights), weights[order], rtol=1e-2)
    two = modes.at_most(2)
    np.testing.assert_allclose(np.exp(two.log_weights), [9 / 17, 8 / 17], rtol=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_one_mode_is_one_mode(seed):
    modes = search(mixture_of_normals([[1.0, -2.0]], [1.0], 0.1), seed)
    assert len(modes.gaussians) == 1
    assert modes.num_searches == NUM_SEARCHES
    assert modes.unseen == 0


def test_descents_end_at_the_bottom_of_a_curved_valley():
    def log_prob(z):
        return -100 * (z[1] - z[0] ** 2) ** 2 - (1 - z[0]) ** 2

    def gradient(z):
        inner = z[1] - z[0] ** 2
        return np.array([400 * inner * z[0] + 2 * (1 - z[0]), -200 * inner])

    target = Density(log_prob, gradient, None)
    points = np.random.default_rng(0).uniform(-2, 2, (NUM_SEARCHES, 2))
    ends, converged = descend(target, points, Gaussian(np.zeros(2), np.eye(2), 0.0))
    assert converged.mean() > 0.9
    assert target.log_probs(ends[converged]).min() > -0.3
    assert np.median(target.log_probs(ends)) > -0.05


def test_what_has_no_end_is_no_mode():
    """A ridge that rises for ever: descents do not end, and the start is all that there is."""
    target = Density(lambda z: z[0] - 0.5 * z[1] ** 2, lambda z: np.array([1.0, -z[1]]), lambda z: np.diag([0.0, -1.0]))
    start = Gaussian(np.zeros(2), np.eye(2), 0.0)
    ends, converged = descend(target, np.random.default_rng(0).normal(size=(NUM_SEARCHES, 2)), start)
    assert not converged.any()
    assert (ends[:, 0] > 10).all()


# A mixture of flows, the same in both languages.

BIJECTION = fp.realnvp(2, num_flows=2, hidden_dims=(8,))
NOISE = np.random.default_rng(1).normal(size=(3, 16, 2))
DIRECTIONS = np.random.default_rng(2).normal(size=(3, 8, 2))
LOG_WEIGHTS = np.log([0.5, 0.3, 0.2])


class _Draws:
    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def full(self, shape, value):
        return value + 0.1 * self.rng.normal(size=shape)

    def normal(self, shape):
        return self.rng.normal(size=shape)

    uniform = normal


PARTS = mixture.stacked_part(
    mixture.stack_parts([map_tree(lambda p: 0.5 * p, initialize(BIJECTION, _Draws(k))) for k in range(3)], LOG_WEIGHTS)
)


def in_library(name):
    convert = {"torch": torch.as_tensor, "jax": jnp.asarray}[name]
    constants = map_tree(convert, BIJECTION.constants())
    return convert, lambda part: (BIJECTION, merge(part, constants))


def one_part(k):
    return map_tree(lambda leaf: leaf[k], PARTS)


def test_the_density_is_the_weighted_sum_of_the_parts():
    z = np.random.default_rng(0).normal(size=(7, 2))

    def plain(part):
        return BIJECTION, merge(part, BIJECTION.constants())

    expected = np.zeros(7)
    for k, weight in enumerate(np.exp(LOG_WEIGHTS)):
        x, log_det = BIJECTION.inverse(plain(one_part(k))[1], z)
        expected += weight * multivariate_normal(np.zeros(2), np.eye(2)).pdf(x) * np.exp(log_det)
    np.testing.assert_allclose(mixture.log_prob(plain, PARTS, LOG_WEIGHTS, z), np.log(expected), rtol=1e-10)
    for name in ("torch", "jax"):
        convert, staged = in_library(name)
        found = mixture.log_prob(staged, map_tree(convert, PARTS), convert(LOG_WEIGHTS), convert(z))
        np.testing.assert_allclose(
            np.asarray(found.detach() if name == "torch" else found), np.log(expected), rtol=1e-10
        )


NEAR = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1]])


def gradients(name, log_density, power, stretch):
    """Of the mixture loss in the stacked weights, as NumPy arrays, and the estimate of minus the ELBO."""
    convert, staged = in_library(name)
    rest = [convert(LOG_WEIGHTS), convert(stretched(NOISE, DIRECTIONS, stretch))]
    if name == "jax":
        (_, elbo), found = jax.jit(
            jax.value_and_grad(
                lambda parts: mixture.mixture_loss(staged, parts, *rest, 8, NEAR, log_density, power), has_aux=True
            )
        )(map_tree(convert, PARTS))
        return map_tree(np.asarray, found), float(elbo)
    parts = map_tree(lambda leaf: convert(leaf).clone().requires_grad_(), PARTS)
    loss, elbo = mixture.mixture_loss(staged, parts, *rest, 8, NEAR, log_density, power)
    loss.backward()
    return map_tree(lambda leaf: leaf.grad.numpy(), parts), elbo.item()


def standard(z):
    xp = namespace(z)
    return -0.5 * xp.sum(z * z, axis=-1), -z


def test_gradients_agree_in_both_languages():
    (ours, elbo), (theirs, other) = (gradients(name, standard, 0.5, 1.5) for name in ("torch", "jax"))
    map_tree(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10), ours, theirs)
    assert elbo == pytest.approx(other, rel=1e-10)


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_the_gradient_is_zero_draw_by_draw_where_the_mixture_is_the_density(power):
    _, staged = in_library("jax")
    parts = map_tree(jnp.asarray, PARTS)

    def exact(z):
        each = lambda z: mixture.log_prob(staged, parts, jnp.asarray(LOG_WEIGHTS), z)  # noqa: E731
        return each(z), jax.jit(jax.grad(lambda z: each(z).sum()))(z)

    found, elbo = gradients("jax", exact, power, 1.5)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(found)) < 1e-9
    assert abs(elbo) < 1e-9


def test_a_mixture_of_equal_parts_has_the_gradient_of_one():
    _, staged = in_library("jax")
    same = map_tree(lambda leaf: jnp.stack([jnp.asarray(leaf[0])] * 3), PARTS)
    rest = [jnp.asarray(each) for each in (LOG_WEIGHTS, NOISE)]
    found = jax.jit(jax.grad(lambda p: mixture.mixture_loss(staged, p, *rest, 8, NEAR, standard, 0.0)[0]))(same)
    own = map_tree(lambda leaf: leaf[0], same)
    for k in range(3):
        alone = jax.jit(jax.grad(lambda p, k=k: path_loss(*staged(p), rest[1][k], standard)[0]))(own)
        jax.tree.map(lambda a, b, k=k: np.testing.assert_allclose(a[k], b, rtol=1e-7, atol=1e-10), found, alone)


def test_weights_are_those_of_the_density():
    rng = np.random.default_rng(0)
    locs, true = np.array([-2.0, 0.0, 2.0]), np.array([0.6, 0.1, 0.3])
    source = np.repeat(np.arange(3), 4000)
    z = rng.normal(locs[source])
    log_parts = -0.5 * (z - locs[:, None]) ** 2
    log_p = logsumexp(log_parts + np.log(true)[:, None], axis=0) + 5.0
    found = np.exp(mixture.fit_weights(np.log(np.full(3, 1 / 3)), log_p, log_parts, source))
    np.testing.assert_allclose(found, true, atol=1e-3)


def test_draws_follow_new_weights():
    """Weights that are far off at first: what is judged is a mixture with the new ones."""
    rng = np.random.default_rng(0)
    locs, true = np.array([-4.0, 4.0]), np.array([0.95, 0.05])

    def draw(batches):
        z = rng.normal(locs[batches][:, None], size=(len(batches), mixture.BATCH))
        log_parts = -0.5 * (z[:, None] - locs[:, None]) ** 2
        return logsumexp(log_parts + np.log(true)[:, None], axis=1), log_parts

    log_weights, log_w, near = mixture.weigh_parts(np.log([0.05, 0.95]), draw)
    np.testing.assert_allclose(np.exp(log_weights), true, atol=1e-3)
    assert len(log_w) > 4000
    assert np.abs(log_w).max() < 0.01
    assert near.tolist() == [[0, 1], [1, 0]]


def test_draws_may_come_in_the_order_of_the_parts():
    """As in Pyro, which runs one part after the other."""
    rng = np.random.default_rng(0)
    locs = 20.0 * np.arange(5)

    def draw(batches):
        z = rng.normal(locs[np.sort(batches)][:, None], size=(len(batches), mixture.BATCH))
        log_parts = -0.5 * (z[:, None] - locs[:, None]) ** 2
        return logsumexp(log_parts - math.log(5), axis=1), log_parts

    log_weights, log_w, _ = mixture.weigh_parts(np.log(np.full(5, 0.2)), draw)
    np.testing.assert_allclose(np.exp(log_weights), 0.2, rtol=1e-6)
    assert np.abs(log_w).max() < 1e-6


def test_modes_that_cannot_be_listed_are_missing(monkeypatch):
    monkeypatch.setattr("flowppl.inference.modes.MAX_MODES", 4)
    target = mixture_of_normals([[i, j] for i in (-8, 0, 8) for j in (-8, 0, 8)], np.full(9, 1 / 9), 1.0)
    modes = search(target, 0)
    assert len(modes.gaussians) == 4
    assert modes.num_found == 9
    assert modes.left_out == pytest.approx(5 / 9, abs=0.05)


def test_a_search_without_time_tells_nothing():
    target = mixture_of_normals([[0.0, 0.0], [8.0, 8.0]], [0.5, 0.5], 1.0)
    with search_until(time.monotonic()):
        modes = search(target, 0)
    assert modes.num_ended < NUM_SEARCHES / 2


# Models of both languages.


def numpyro_two():
    z = numpyro.sample("z", ndist.Normal(0.0, 10.0).expand([2]).to_event(1))
    numpyro.deterministic("sum", z.sum())
    near = ndist.Normal(0.0, 1.0).log_prob(z).sum() + math.log(0.7)
    far = ndist.Normal(jnp.asarray(LOC), 1.0).log_prob(z).sum() + math.log(0.3)
    numpyro.factor("density", jnp.logaddexp(near, far) - ndist.Normal(0.0, 10.0).log_prob(z).sum())


def pyro_two():
    z = pyro.sample("z", pdist.Normal(0.0, 10.0).expand([2]).to_event(1))
    near = pdist.Normal(0.0, 1.0).log_prob(z).sum() + math.log(0.7)
    far = pdist.Normal(torch.as_tensor(LOC), 1.0).log_prob(z).sum() + math.log(0.3)
    pyro.factor("density", torch.logaddexp(near, far) - pdist.Normal(0.0, 10.0).log_prob(z).sum())


class InNumPyro:
    model, adapter = staticmethod(numpyro_two), fnp

    @staticmethod
    def fit(seed=0, **options):
        return fnp.fit(jax.random.key(seed), numpyro_two, progress=False, **options)

    @staticmethod
    def posterior(result):
        return result.guide.get_posterior(result.params)

    @staticmethod
    def log_prob(result, z):
        return np.asarray(result.guide.get_posterior(result.params).log_prob(jnp.asarray(z)))


class InPyro:
    model, adapter = staticmethod(pyro_two), fpp

    @staticmethod
    def fit(seed=0, **options):
        pyro.set_rng_seed(seed)
        return fpp.fit(pyro_two, progress=False, **options)

    @staticmethod
    def posterior(result):
        return result.guide.get_posterior()

    @staticmethod
    def log_prob(result, z):
        return result.guide.get_posterior().log_prob(torch.as_tensor(z)).detach().numpy()


both = pytest.mark.parametrize("language", [InNumPyro, InPyro], ids=["numpyro", "pyro"])


@pytest.fixture(scope="module", params=[InNumPyro, InPyro], ids=["numpyro", "pyro"])
def fitted(request):
    return request.param, request.param.fit()


def test_a_fit_holds_both_modes(fitted):
    _, result = fitted
    check = result.history.check
    assert check.verdict == "good"
    assert abs(result.elbo) < 0.01
    assert check.search.num_modes == check.search.num_held == 2
    assert check.search.missing == 0
    assert "2 modes; 256 searches met no others" in str(check)
    far = np.asarray(result.sample(4000)["z"])[:, 1] > 4
    assert abs(far.mean() - 0.3) < 0.03
    again = result.diagnose()
    assert again.verdict == "good"
    assert again.search == check.search
    assert abs(np.mean(np.asarray(result.resample(2000)["z"])[:, 1] > 4) - 0.3) < 0.05


def test_what_a_guide_does_it_does_with_several_modes(fitted):
    language, result = fitted
    guide = result.guide
    points = np.random.default_rng(0).normal(size=(5, 2)) * 4
    density = 0.7 * np.exp(-0.5 * (points**2).sum(1)) + 0.3 * np.exp(-0.5 * ((points - LOC) ** 2).sum(1))
    np.testing.assert_allclose(language.log_prob(result, points), np.log(density / (2 * np.pi)), atol=0.05)
    args = (result.params,) if language is InNumPyro else ()
    levels = ([0.1, 0.9], *args) if language is InPyro else (*args, [0.1, 0.9])
    low, high = np.asarray(guide.quantiles(*levels)["z"])
    assert abs(low[1] + 1.07) < 0.3
    assert abs(high[1] - 8.43) < 0.3
    assert guide.median(*args)["z"].shape == (2,)
    with pytest.raises(ValueError, match="holds 2 modes"):
        guide.get_transform(*args)
    if language is InNumPyro:
        with pytest.raises(ValueError, match="num_modes=1"):
            NumPyroNeuTra(guide, result.params)
        drawn = numpyro.infer.Predictive(numpyro_two, guide=guide, params=result.params, num_samples=20)
        assert drawn(jax.random.key(0))["sum"].shape == (20,)
        assert result.sample(10)["sum"].shape == (10,)
    else:
        with pytest.raises(ValueError, match="num_modes=1"):
            PyroNeuTra(guide).reparam(pyro_two)()
        assert pyro.infer.Predictive(pyro_two, guide=guide, num_samples=20)()["z"].shape[0] == 20
        for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
            np.testing.assert_allclose(
                other.get_posterior().log_prob(torch.as_tensor(points)).detach(), language.log_prob(result, points)
            )
        fresh = fpp.AutoFlow(pyro_two, path_flow, num_modes="auto")
        fresh.setup()
        fresh.load_state_dict(guide.state_dict())


def test_draws_of_a_mixture_have_gradients_in_its_flows_alone(fitted):
    language, result = fitted
    if language is InNumPyro:
        own = result.params["auto_flow"]

        def total(own):
            posterior = result.guide.get_posterior({"auto_flow": own})
            z = posterior.rsample(jax.random.key(0), (8,))
            return (z**2).sum() + posterior.log_prob(z).sum()

        slopes = jax.jit(jax.grad(total))(own)
        assert not slopes["log_weights"].any()
        assert any(leaf.any() for leaf in jax.tree.leaves(mixture.stacked_part(slopes)))
        sampled = jax.jit(lambda own: result.guide.get_posterior({"auto_flow": own}).sample(jax.random.key(0), (3, 4)))
        assert sampled(own).shape == (3, 4, 2)
    else:
        posterior = language.posterior(result)
        z = posterior.rsample((8,))
        ((z**2).sum() + posterior.log_prob(z).sum()).backward()
        assert any(p.grad is not None and p.grad.any() for p in result.guide.flow.parameters())
        assert not result.guide.flow.log_weights.requires_grad
        assert posterior.expand((3,)).sample((2,)).shape == (2, 3, 2)


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_a_fit_of_several_modes_is_saved(fitted, backend, tmp_path):
    language, result = fitted
    path = tmp_path / "fit.safetensors"
    result.save(path)
    same = fp.load(path, backend=backend)
    points = np.random.default_rng(0).normal(size=(5, 2)) * 4
    loaded = {"numpyro": InNumPyro, "pyro": InPyro}[backend]
    np.testing.assert_allclose(loaded.log_prob(same, points), language.log_prob(result, points), rtol=1e-9)
    assert same.history.check == result.history.check
    same.save(tmp_path / "again")
    again = fp.load(tmp_path / "again", backend=backend)
    np.testing.assert_allclose(loaded.log_prob(again, points), language.log_prob(result, points), rtol=1e-9)


def test_chains_visit_both_modes(fitted):
    _language, result = fitted
    for nuts in (False, True):
        chains = result.mcmc(150 if nuts else 300, num_chains=2, num_warmup=50, nuts=nuts, progress=False)
        far = np.asarray(chains.get_samples()["z"])[:, 1] > 4
        assert abs(far.mean() - 0.3) < 0.1


@both
def test_restarts_of_a_guide_of_two_modes(language):
    result = language.fit(num_restarts=2, num_steps=100)
    assert abs(result.elbo) < 0.01
    assert result.history.check.search.num_held == 2


def test_weights_that_an_optimiser_decays_still_sum_to_one(fitted):
    language, result = fitted
    if language is InNumPyro:
        own = dict(result.params["auto_flow"])
        own["log_weights"] = 0.7 * own["log_weights"]
        z = np.stack(np.meshgrid(*[np.linspace(-6, 14, 201)] * 2), -1).reshape(-1, 2)
        density = np.exp(result.guide.get_posterior({"auto_flow": own}).log_prob(jnp.asarray(z)))
        assert density.sum() * 0.01 == pytest.approx(1, abs=0.02)


@both
def test_a_guide_of_one_mode_is_not_called_good(language):
    result = language.fit(num_modes=1, num_steps=100)
    check = result.history.check
    assert check.verdict == "do not trust"
    assert check.search.num_held == 1
    assert abs(check.search.missing - 0.3) < 0.03 or abs(check.search.missing - 0.7) < 0.03
    assert f"about {check.search.missing:.0%} of the mass, is not in the guide" in check.advice
    assert result.k_hat < 0.5  # which says nothing of it
    assert all(each.verdict != "good" for each in result.checks)
    with pytest.warns(RuntimeWarning, match="not to be trusted: Another mode"):
        result.resample(10, num_proposals=100)
    assert result.diagnose(200, search=False).search is None
    chains = result.mcmc(5000, num_chains=2, num_warmup=10, nuts=False, progress=False)
    assert chains.r_hat < 1.01  # the chains agree, as all of them stay in the mode
    assert chains.verdict == "do not trust"
    assert "is not in the guide" in chains.advice


def test_diagnose_looks_for_modes_that_the_guide_does_not_have():
    guide = fnp.AutoFlow(numpyro_two)
    params = guide.setup()
    found = fnp.diagnose(jax.random.key(0), numpyro_two, guide, params)
    assert found.verdict == "do not trust"
    assert found.search.num_modes == 2
    assert fnp.diagnose(jax.random.key(0), numpyro_two, guide, params, search=False).search is None
    guide = fpp.AutoFlow(pyro_two)
    guide.setup()
    found = fpp.diagnose(pyro_two, guide)
    assert found.verdict == "do not trust"
    assert found.search.num_modes == 2
    assert fpp.diagnose(pyro_two, guide, search=False).search is None


def test_a_random_density_is_not_searched_and_that_is_told():
    def model(x):
        mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
        with numpyro.plate("data", 8, subsample_size=4) as rows:
            numpyro.sample("x", ndist.Normal(mu, 1.0), obs=x[rows])

    few = {"flow": fp.TriangularAffine, "num_steps": 100, "progress": False}
    with pytest.warns(RuntimeWarning, match="no modes were searched for"):
        result = fnp.fit(jax.random.key(0), model, jnp.arange(8.0), num_modes=3, **few)
    assert result.history.check.search is None

    def same(x):
        mu = pyro.sample("mu", pdist.Normal(0.0, 5.0))
        with pyro.plate("data", 8, subsample_size=4) as rows:
            pyro.sample("x", pdist.Normal(mu, 1.0), obs=x[rows])

    with pytest.warns(RuntimeWarning, match="num_modes=3 has no effect"):
        fpp.fit(same, torch.arange(8.0), num_modes=3, **few)


def test_svi_trains_a_guide_of_several_modes():
    guide = fnp.AutoFlow(numpyro_two, num_modes="auto")
    svi = numpyro.infer.SVI(numpyro_two, guide, numpyro.optim.Adam(1e-3), numpyro.infer.Trace_ELBO(num_particles=8))
    result = svi.run(jax.random.key(0), 50, progress_bar=False)
    assert abs(np.mean(result.losses[-20:])) < 0.2
    assert result.params["auto_flow"]["log_weights"].shape == (2,)
    guide = fpp.AutoFlow(pyro_two, num_modes="auto")
    svi = pyro.infer.SVI(pyro_two, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO(num_particles=8))
    losses = [svi.step() for _ in range(30)]
    assert abs(np.mean(losses[-20:])) < 0.2
    assert len(guide.flow.log_weights) == 2


def many_modes():
    x = numpyro.sample("x", ndist.Normal(0.0, 3.0).expand([12]).to_event(1))
    numpyro.factor("wells", jnp.sum(6 * x**2 - x**4 + x**2 / 18))


def test_more_modes_than_a_guide_holds_are_told():
    """4,096 modes: the searches keep finding others, so no verdict says good."""
    result = fnp.fit(jax.random.key(0), many_modes, num_steps=100, num_modes=1, progress=False)
    check = result.history.check
    assert check.search.unseen > 0.05
    assert check.search.num_searches < MAX_SEARCHES
    assert "more modes than could be found" in check.advice
    assert check.verdict == "do not trust"


def test_what_is_no_number_of_modes():
    for adapter, model in ((fnp, numpyro_two), (fpp, pyro_two)):
        with pytest.raises(ValueError, match='num_modes must be a positive integer or "auto"'):
            adapter.AutoFlow(model, num_modes="all")
        with pytest.raises(ValueError, match="num_modes"):
            adapter.AutoFlow(model, num_modes=0)
    with pytest.raises(TypeError, match="num_modes=2 beside guide="):
        fpp.fit(pyro_two, guide=fpp.AutoFlow(pyro_two), num_modes=2)


def test_a_guide_takes_no_weights_of_another_number_of_modes():
    one, two = fpp.AutoFlow(pyro_two), fpp.AutoFlow(pyro_two, num_modes=2)
    one.setup()
    two.setup()
    with pytest.raises(RuntimeError, match="of a guide of 2 modes, and this one was set up with 1"):
        one.load_state_dict(two.state_dict())


def test_a_number_of_modes_needs_a_search():
    for adapter, model in ((fnp, numpyro_two), (fpp, pyro_two)):
        for options in ({"init": "point"}, {"init_scale": 0.1}):
            with pytest.raises(ValueError, match="num_modes=2 needs a search"):
                adapter.AutoFlow(model, num_modes=2, **options)


def test_modes_are_found_far_out_under_a_flat_prior():
    target = mixture_of_normals([[0.0, 0.0], [300.0, 300.0]], [0.5, 0.5], 1.0)
    target.prior_draws = lambda num, rng: np.full((num, 2), np.nan)
    assert len(search(target, 0).gaussians) == 2


def test_where_second_derivatives_are_no_numbers_there_is_a_start():
    def model():
        x = pyro.sample("x", pdist.ImproperUniform(pdist.constraints.real, (), ()))
        pyro.factor("density", torch.logaddexp(-0.5 * (x - 20) ** 2, -0.5 * x**2))

    result = fpp.fit(model, progress=False, num_steps=100)
    assert abs(result.history.check.log_evidence - math.log(2 * math.sqrt(2 * math.pi))) < 0.1
