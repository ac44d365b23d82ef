"""The search for the start of a guide, in NumPy and through both languages."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import scipy.linalg
import torch
from numpyro import handlers
from pyro import poutine

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.inference import guides
from flowppl.inference.guides import MAX_DENSE, MAX_TRIANGULAR
from flowppl.inference.starts import (
    Gaussian,
    check_start,
    dense_start,
    newton_start,
    quasi_newton_start,
    search_until,
    widths,
)

DIM = 6


class Normal:
    """A normal target with its derivatives; NaN beyond a wall, if there is one."""

    def __init__(self, loc, scale, wall=np.inf):
        self.loc, self.precision, self.wall = loc, np.linalg.inv(scale @ scale.T), wall
        self.log_scale = np.linalg.slogdet(scale)[1]

    def log_probs(self, points):
        centred = points - self.loc
        values = -0.5 * np.sum(centred @ self.precision * centred, axis=1)
        return np.where(np.abs(points).max(axis=1) < self.wall, values, np.nan)

    def value_and_gradient(self, point):
        return self.log_probs(point[None])[0], -self.precision @ (point - self.loc)

    def derivatives(self, point):
        return self.value_and_gradient(point)[1], -self.precision

    def hessian_products(self, point, vectors):
        return -vectors @ self.precision


def test_newton_finds_a_normal_exactly_in_one_step(rng):
    scale = np.tril(rng.normal(size=(DIM, DIM))) + np.diag(np.logspace(-3, 3, DIM))
    target = Normal(1e3 * rng.normal(size=DIM), scale)
    start = newton_start([rng.normal(size=DIM)], target, rng)
    np.testing.assert_allclose(start.loc, target.loc, rtol=1e-8)
    np.testing.assert_allclose(start.scale @ start.scale.T, scale @ scale.T, rtol=1e-6, atol=1e-9)
    assert np.array_equal(start.scale, np.tril(start.scale))
    assert (start.scale.diagonal() > 0).all()
    np.testing.assert_allclose(start.elbo, target.log_scale, atol=1e-6)


def test_quasi_newton_finds_independent_coordinates(rng):
    scales = np.logspace(-2, 2, DIM)
    target = Normal(rng.normal(size=DIM), np.diag(scales))
    start = quasi_newton_start([rng.normal(size=DIM)], target, rng)
    np.testing.assert_allclose(start.scale, scales, rtol=1e-6)
    assert (abs(start.loc - target.loc) < 0.1 * scales).all()


@pytest.mark.parametrize("search", [newton_start, quasi_newton_start])
def test_a_density_that_is_finite_nowhere_has_no_start(search, rng):
    assert search([np.ones(2)], Normal(np.zeros(2), np.eye(2), wall=0.5), rng) is None


@pytest.mark.parametrize("search", [newton_start, quasi_newton_start])
def test_points_where_the_density_is_not_finite_are_passed_over(search, rng):
    target = Normal(np.zeros(2), np.eye(2), wall=5.0)
    start = search([np.array([9.0, 9.0]), np.array([1.0, 2.0])], target, rng)
    np.testing.assert_allclose(start.loc, 0.0, atol=0.01)


class FarOff:
    """A positive latent of a tiny scale, seen with a small error, and a latent with a Laplace prior of a tinier one."""

    tiny, noise, width = 1e-8, 1e-10, 2e-11

    def log_probs(self, points):
        u, v = np.asarray(points).T
        with np.errstate(over="ignore"):
            error = (np.exp(u) - self.tiny) / self.noise
        return -0.5 * error**2 - 0.5 * (u - np.log(self.tiny)) ** 2 - np.abs(v) / self.width

    def derivatives(self, point):
        u, v = point
        error, slope = (np.exp(u) - self.tiny) / self.noise, np.exp(u) / self.noise
        gradient = [-error * slope - u + np.log(self.tiny), -np.sign(v) / self.width]
        return np.array(gradient), np.diag([-(slope**2) - error * slope - 1, 0.0])

    def value_and_gradient(self, point):
        return self.log_probs([point])[0], self.derivatives(point)[0]

    def hessian_products(self, point, vectors):
        return vectors @ self.derivatives(point)[1]


def test_slopes_without_curvature_and_steep_ones_lead_to_the_posterior(rng):
    """Newton's steps alone end far off, where the search then said that there is no posterior."""
    target = FarOff()
    start = newton_start([rng.uniform(-1, 1, 2) for _ in range(4)], target, rng)
    assert abs(start.loc[0] - np.log(target.tiny)) < 0.05
    assert abs(start.loc[1]) < target.width
    np.testing.assert_allclose(widths(start), [target.noise / target.tiny, target.width], rtol=0.7)


class Multiscale(FarOff):
    """A positive latent of a tiny scale, of which no data are seen, beside a narrow latent."""

    def log_probs(self, points):
        u, v = np.asarray(points).T
        with np.errstate(over="ignore"):
            return -3 * u - self.tiny * np.exp(-u) - 0.5 * (v / 1e-12) ** 2

    def derivatives(self, point):
        u, v = point
        bend = self.tiny * np.exp(-u)
        return np.array([bend - 3, -v / 1e-24]), np.diag([-bend, -1e24])


def test_a_slope_far_from_the_top_is_climbed_beside_a_narrow_latent(rng):
    """The steps of Newton overshoot there, and those cut back for the narrow latent hardly move the other."""
    start = newton_start([rng.uniform(-1, 1, 2) for _ in range(4)], Multiscale(), rng)
    assert start.loc[0] == pytest.approx(np.log(FarOff.tiny / 3), abs=1.0)
    assert widths(start)[0] == pytest.approx(3**-0.5, rel=0.5)


class Wide(Multiscale):
    """A latent of a vast scale, of which no data are seen, beside a narrow one."""

    def __init__(self, density):
        self.density = density

    def log_probs(self, points):
        u, v = np.asarray(points).T
        value = {"normal": -0.5 * (u / 1e9) ** 2, "cauchy": -np.log1p((u / 1e9) ** 2), "flat": 0.0}[self.density]
        return value - 0.5 * (v / 1e-12) ** 2

    def derivatives(self, point):
        u, v = point / (1e9, 1e-12)
        slope, bend = {
            "normal": (-u, -1.0),
            "cauchy": (-2 * u / (1 + u**2), -2 * (1 - u**2) / (1 + u**2) ** 2),
            "flat": (0.0, -1e-10),  # as by rounding
        }[self.density]
        return np.array([slope / 1e9, -v / 1e-12]), np.diag([bend / 1e18, -1e24])


def test_a_start_that_is_far_narrower_than_the_posterior_proves_nothing(rng):
    start = Gaussian(np.zeros(2), np.diag([10.0, 1e-12]), 0.0)
    for density in ("normal", "cauchy"):
        check_start(start, Wide(density), rng)
    with pytest.raises(RuntimeError, match=r"improper.*coordinate 0"):
        check_start(start, Wide("flat"), rng)


class Flat:
    """Five latents with one wide direction in common, beside a flat one, which no single coordinate of theirs hides."""

    precision = np.linalg.inv(np.eye(5) + 99.0)

    def log_probs(self, points):
        return -0.5 * np.einsum("ni,ij,nj->n", points[:, :5], self.precision, points[:, :5])

    def value_and_gradient(self, point):
        return self.log_probs(point[None])[0], np.append(-self.precision @ point[:5], 0.0)

    def hessian_products(self, point, vectors):
        return vectors @ -scipy.linalg.block_diag(self.precision, 0.0)


def test_a_flat_coordinate_among_wider_ones_is_refused(rng):
    scale = np.linalg.cholesky(scipy.linalg.block_diag(np.linalg.inv(Flat.precision), 25.0))
    with pytest.raises(RuntimeError, match=r"improper.*coordinate 5"):
        check_start(Gaussian(np.zeros(6), scale, 0.0), Flat(), rng)


class Slow(FarOff):
    """The logarithm of a positive latent of a large scale, beside a narrow latent: a slope of 1 with hardly a bend."""

    scale = 1e10

    def log_probs(self, points):
        u, v = np.asarray(points).T
        with np.errstate(over="ignore"):
            return u - np.exp(u) / self.scale - 0.5 * (v / 7e-9) ** 2

    def derivatives(self, point):
        u, v = point
        bend = np.exp(np.minimum(u, 600.0)) / self.scale
        return np.array([1 - bend, -v / 7e-9**2]), np.diag([-bend, -1 / 7e-9**2])


def test_a_slope_with_hardly_a_bend_is_climbed_beside_a_narrow_latent(rng):
    """Newton's steps are cut back there to what gains a little each time, and end half-way."""
    start = newton_start([rng.uniform(-1, 1, 2) for _ in range(4)], Slow(), rng)
    assert start.loc[0] == pytest.approx(np.log(Slow.scale), abs=1.5)


def test_a_search_that_was_cut_short_proves_nothing():
    target, far = FarOff(), Gaussian(np.array([0.0, 0.1]), np.diag([1e-10, 1e-5]), 0.0)
    check_start(far, target, np.random.default_rng(0))
    with search_until(0.0):
        newton_start([np.array([0.0, 0.1])], target, np.random.default_rng(0))


class Slope:
    """The logarithm of a positive latent of a large scale: far below that, a slope of 1 with hardly a bend."""

    scale = 1e6

    def log_probs(self, points):
        u = points[:, 0]
        with np.errstate(over="ignore"):
            return u - 0.5 * (np.exp(u) / self.scale) ** 2

    def derivatives(self, point):
        bend = np.exp(2 * np.minimum(point, 300.0)) / self.scale**2
        return 1 - bend, np.diag(-2 * bend)

    def hessian_products(self, point, vectors):
        return vectors @ self.derivatives(point)[1]

    def value_and_gradient(self, point):
        return self.log_probs(point[None])[0], self.derivatives(point)[0]


@pytest.mark.parametrize("search", [newton_start, quasi_newton_start])
def test_a_search_that_was_cut_short_has_tried_all_widths_at_its_point(search, rng):
    """By the bend alone the first of them is a million, whose draws overflow."""
    with search_until(0.0):
        start = search([np.zeros(1)], Slope(), rng)
    assert widths(start)[0] < 20


X = np.random.default_rng(0).normal(size=(40, 3)) * [1.0, 100.0, 0.01]
Y = X @ [1.0, -0.5, 30.0] + 0.5


def test_a_gaussian_is_scored_by_the_few_of_its_draws_that_are_finite(rng):
    start = newton_start([np.zeros(1)], Normal(np.zeros(1), np.eye(1), wall=0.3), rng)
    assert np.isfinite(start.elbo)


def numpyro_regression(y=Y):
    beta = numpyro.sample("beta", ndist.ImproperUniform(ndist.constraints.real_vector, (), (3,)))
    numpyro.sample("y", ndist.Normal(X @ beta, 0.3).to_event(1), obs=jnp.asarray(y))


def pyro_regression(y=Y):
    beta = pyro.sample("beta", pdist.ImproperUniform(pdist.constraints.real_vector, (), (3,)))
    pyro.sample("y", pdist.Normal(torch.tensor(X) @ beta, 0.3).to_event(1), obs=torch.as_tensor(y))


def moments(language, init, model_args=()):
    """The mean and the covariance of a guide's start."""
    if language == "numpyro":
        guide = fnp.AutoFlow(numpyro_regression, init=init)
        params = guide.setup(*model_args)["auto_flow"]
        loc, scale = guide.bijection.bijections[1].loc_and_scale(params["2"] | guide.bijection.constants()["2"])
    else:
        guide = fpp.AutoFlow(pyro_regression, init=init)
        guide.setup(*model_args)
        loc, scale = guide.flow.bijection.bijections[1].loc_and_scale(guide.flow.transform.weights.tree()["2"])
        loc, scale = loc.detach().numpy(), scale.detach().numpy()
    return np.asarray(loc), np.asarray(scale @ scale.T)


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_guides_start_at_the_posterior_of_a_regression(language):
    """Which is far from the unit scale, in an improper prior."""
    loc, covariance = moments(language, "auto")
    expected = 0.09 * np.linalg.inv(X.T @ X)
    np.testing.assert_allclose(loc, np.linalg.solve(X.T @ X, X.T @ Y), rtol=1e-6)
    np.testing.assert_allclose(covariance, expected, rtol=1e-6)


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_the_diagonal_start_has_the_curvature_of_each_coordinate(language):
    _, covariance = moments(language, "diagonal")
    conditional = 0.09 / np.sum(X**2, axis=0)
    ratio = covariance.diagonal() / conditional
    assert (ratio > 0.25).all()
    assert (ratio < 4).all()


def test_the_start_is_the_same_under_vmap_and_needs_no_key():
    guide = fnp.AutoFlow(numpyro_regression)
    svi = numpyro.infer.SVI(numpyro_regression, guide, numpyro.optim.Adam(1e-3), numpyro.infer.Trace_ELBO())
    params = jax.vmap(lambda key: svi.get_params(svi.init(key))["auto_flow"])(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_allclose(params["2"]["loc"][1], np.linalg.solve(X.T @ X, X.T @ Y), rtol=1e-6)


def numpyro_random():
    z = numpyro.sample("z", ndist.Normal(0, 1))
    with numpyro.plate("data", 10, subsample_size=3):
        numpyro.sample("y", ndist.Normal(z, 1), obs=jnp.ones(3) * numpyro.subsample(jnp.arange(10.0), 0))


def pyro_random():
    z = pyro.sample("z", pdist.Normal(torch.zeros(()), 1))
    with pyro.plate("data", 10, subsample_size=3) as index:
        pyro.sample("y", pdist.Normal(z, 1), obs=1.0 * index)


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_a_random_density_is_not_searched(language):
    """One draw of what another guide covers would be taken for the posterior; of batches all that they lead to is."""
    if language == "numpyro":
        params = fnp.AutoFlow(numpyro_random).setup()["auto_flow"]
        hidden = handlers.block(
            lambda: numpyro.sample("y", ndist.Normal(numpyro.sample("z", ndist.Normal()))), hide=["z"]
        )
        others = fnp.AutoFlow(hidden).setup()["auto_flow"]
    else:
        hidden = poutine.block(
            lambda: pyro.sample("y", pdist.Normal(pyro.sample("z", pdist.Normal(0.0, 1.0)), 1.0)), hide=["z"]
        )
        guide, other = fpp.AutoFlow(pyro_random), fpp.AutoFlow(hidden)
        guide.setup()
        other.setup()
        params, others = guide.flow.transform.weights.tree(), other.flow.transform.weights.tree()
    assert abs(np.asarray(others["2"]["scale"].tolist())).max() < 1e-12
    assert np.asarray(others["1"]["scale"].tolist()).max() < 0
    # All ten data have the mean 4.5: the posterior is N(45 / 11, 1 / 11).
    assert np.asarray(params["2"]["loc"].tolist()) == pytest.approx(45 / 11, abs=0.9)
    assert np.log1p(np.exp(np.asarray(params["2"]["scale"].tolist()) + math.log(math.e - 1))) == pytest.approx(
        11**-0.5, rel=1e-6
    )


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
@pytest.mark.parametrize("mean", [lambda z, coin: z + coin, lambda z, coin: z * coin])
def test_hidden_latents_show_whatever_they_do(language, mean):
    """Also a coin that falls alike a few times, and a factor of what is zero at the origin."""

    def numpyro_model():
        z, coin = numpyro.sample("z", ndist.Normal()), numpyro.sample("coin", ndist.Bernoulli(0.8))
        numpyro.sample("y", ndist.Normal(mean(z, coin)), obs=1.0)

    def pyro_model():
        z, coin = pyro.sample("z", pdist.Normal(0.0, 1.0)), pyro.sample("coin", pdist.Bernoulli(0.8))
        pyro.sample("y", pdist.Normal(mean(z, coin), 1.0), obs=torch.tensor(1.0))

    if language == "numpyro":
        guide = fnp.AutoFlow(handlers.block(numpyro_model, hide=["coin"]), init="point")
        guide.setup()
        target = fnp.target.Target(guide, (), {})
    else:
        guide = fpp.AutoFlow(poutine.block(pyro_model, hide=["coin"]), init="point")
        guide.setup()
        target = fpp.target.Target(guide, (), {}, torch.zeros(1))
    assert target.is_random()


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_the_log_density_of_scaled_and_masked_sites_is_that_of_svi(language):
    """What scales or masks a site leaves the log determinant of its constraint as it is."""

    def numpyro_model():
        with handlers.scale(scale=0.5):
            numpyro.sample("z", ndist.HalfNormal(1.0))
        with handlers.mask(mask=False):
            w = numpyro.sample("w", ndist.LogNormal(0.0, 1.0))
        numpyro.sample("y", ndist.Normal(w, 1.0), obs=1.0)  # else w would not be the guide's

    def pyro_model():
        with poutine.scale(scale=0.5):
            pyro.sample("z", pdist.HalfNormal(1.0))
        with poutine.mask(mask=False):
            w = pyro.sample("w", pdist.LogNormal(0.0, 1.0))
        pyro.sample("y", pdist.Normal(w, 1.0), obs=torch.tensor(1.0))

    adapter, model = (fnp, numpyro_model) if language == "numpyro" else (fpp, pyro_model)
    guide = adapter.AutoFlow(model, init="point")
    guide.setup()
    like = [torch.zeros(2)] if language == "pyro" else []
    found = adapter.target.Target(guide, (), {}, *like).log_probs(np.array([[1.0, 0.3]]))
    density = pdist.HalfNormal(torch.ones(())).log_prob(torch.tensor(1.0).exp())
    other = pdist.Normal(torch.tensor(0.3).exp(), 1.0).log_prob(torch.ones(()))
    np.testing.assert_allclose(found, [0.5 * density + other + 1.0 + 0.3])


def test_a_start_that_cannot_be_searched_is_refused():
    """With its data under a trace; "auto" starts at a point then."""
    y = jnp.asarray(Y)
    for init in ("newton", "diagonal"):
        svi = numpyro.infer.SVI(
            numpyro_regression,
            fnp.AutoFlow(numpyro_regression, init=init),
            numpyro.optim.Adam(1e-3),
            numpyro.infer.Trace_ELBO(),
        )
        with pytest.raises(ValueError, match=f"init='{init}' searches with the values.*outside jit"):
            jax.eval_shape(svi.init, jax.random.key(0), y)


@pytest.mark.filterwarnings("ignore:Out-of-support")  # says the host
@pytest.mark.parametrize(("adapter", "model"), [(fnp, numpyro_regression), (fpp, pyro_regression)])
def test_bad_data_and_bad_options_are_told(adapter, model):
    with pytest.raises(RuntimeError, match=r"'y'.*1 of its 40 values.*nan"):
        adapter.AutoFlow(model).setup(np.where(np.arange(40) == 3, np.nan, Y))
    with pytest.raises(ValueError, match="init must be one of auto, newton"):
        adapter.AutoFlow(model, init="laplace")
    with pytest.raises(ValueError, match="leave init_scale out"):
        adapter.AutoFlow(model, init="newton", init_scale=1.0)


def band(dim):
    return 0.1 * (np.eye(dim) + 0.9 * np.eye(dim, k=-1))


def numpyro_band(dim=260):
    numpyro.sample("z", ndist.MultivariateNormal(jnp.arange(1.0 * dim), scale_tril=jnp.asarray(band(dim))))


def pyro_band(dim=260):
    loc = torch.arange(dim, dtype=torch.float64)
    pyro.sample("z", pdist.MultivariateNormal(loc, scale_tril=torch.tensor(band(dim))))


@pytest.mark.parametrize("dim", [30, pytest.param(260, marks=pytest.mark.stress)])
@pytest.mark.parametrize("language", ["numpyro", "pyro"])
@pytest.mark.parametrize("is_dense", [True, False])
def test_many_dimensions_start_with_their_correlations(language, is_dense, dim, monkeypatch, rng):
    """Up to a limit, above which the coordinates are independent; hundreds of them where the limits are as they are."""
    assert MAX_TRIANGULAR < 260 < MAX_DENSE
    if dim < MAX_TRIANGULAR:
        monkeypatch.setattr(guides, "MAX_TRIANGULAR", dim - 4)
    if not is_dense:
        monkeypatch.setattr(guides, "MAX_DENSE", dim - 1)
    noise = np.concatenate([np.zeros((1, dim)), rng.normal(size=(7, dim))])
    if language == "numpyro":
        guide = fnp.AutoFlow(numpyro_band, flow=fp.ElementwiseAffine)
        moved = guide.get_transform(guide.setup(dim))(jnp.asarray(noise))
    else:
        guide = fpp.AutoFlow(pyro_band, flow=fp.ElementwiseAffine)
        guide.setup(dim)
        moved = guide.get_transform()(torch.tensor(noise)).detach().numpy()
    if is_dense:
        np.testing.assert_allclose(moved, np.arange(dim) + noise @ band(dim).T, atol=0.02)
    else:
        width = (moved[1:] - moved[0]) / noise[1:]
        np.testing.assert_allclose(width, width[:1].repeat(7, 0), rtol=1e-6)
        assert len(guide.bijection.bijections if language == "numpyro" else guide.flow.bijection.bijections) == 5


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_guides_of_hundreds_of_dimensions_without_correlations_still_load(backend, tmp_path, monkeypatch):
    """As they were saved before guides had them."""
    path, z = tmp_path / "guide.safetensors", np.arange(260.0) + 0.05
    with monkeypatch.context() as patch:
        patch.setattr(fnp.guides, "guide_bijection", partial(guides.guide_bijection, has_margins=False))
        guide = fnp.AutoFlow(numpyro_band, flow="planar", init="diagonal")
        params = guide.setup()
        fp.save(path, guide, params)
        expected = float(guide.get_posterior(params).log_prob(z))
    loaded = fp.load(path, backend=backend)
    posterior = loaded.get_posterior(loaded.setup()) if backend == "numpyro" else loaded.get_posterior()
    found = posterior.log_prob(jnp.asarray(z) if backend == "numpyro" else torch.tensor(z))
    np.testing.assert_allclose(found.item(), expected, rtol=1e-12)


class Skew:
    """Independent coordinates with the log density k z - exp(z), and their best normal distribution."""

    shape = 3.0
    loc, scale = math.log(3.0) - 1 / 6, 3.0**-0.5  # exp(loc + scale^2 / 2) = k, and the mean curvature is k

    def log_probs(self, points):
        return np.sum(self.shape * points - np.exp(points), axis=1)

    def values_and_gradients(self, points):
        return self.log_probs(points), self.shape - np.exp(points)

    def value_and_gradient(self, point):
        return self.log_probs(point[None])[0], self.shape - np.exp(point)

    def derivatives(self, point):
        return self.shape - np.exp(point), -np.diag(np.exp(point))

    def hessian_products(self, point, vectors):
        return -vectors * np.exp(point)


def test_the_dense_start_is_the_best_normal_distribution_not_that_of_the_mode(rng):
    dim = 100
    start = dense_start([rng.normal(size=dim)], Skew(), rng)
    expected = Skew.shape * Skew.loc - Skew.shape + math.log(Skew.scale) + 0.5  # the ELBO of one coordinate
    at_mode = Skew.shape * math.log(3.0) - 3 * math.exp(1 / 6) + math.log(Skew.scale) + 0.5
    noise = rng.normal(size=(20_000, dim))
    found = Skew().log_probs(start.loc + noise @ start.scale.T).mean() + np.log(start.scale.diagonal()).sum() + dim / 2
    assert dim * expected - 0.3 < found < dim * expected + 0.1
    assert dim * at_mode < dim * expected - 3
    assert abs(start.loc - Skew.loc).mean() < 0.05


@pytest.mark.parametrize("search", [newton_start, quasi_newton_start])
@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30])
def test_a_normal_is_found_at_any_scale(search, size, rng):
    target = Normal(size * np.array([1.0, -2.0]), size * np.diag([1.0, 3.0]))
    start = search([rng.uniform(-2, 2, 2)], target, rng)
    scale = np.diag(start.scale) if start.scale.ndim == 1 else start.scale
    np.testing.assert_allclose(start.loc / size, [1.0, -2.0], atol=1e-3)
    np.testing.assert_allclose(scale / size, np.diag([1.0, 3.0]), atol=1e-6)


def test_scales_far_apart_are_found_together(rng):
    scales = np.array([1e-12, 1.0, 1e12])
    start = newton_start([rng.uniform(-2, 2, 3)], Normal(scales, np.diag(scales)), rng)
    np.testing.assert_allclose(start.loc / scales, 1.0, atol=1e-3)
    np.testing.assert_allclose(start.scale.diagonal() / scales, 1.0, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e-11, 1e30])
@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_guides_start_at_the_posterior_at_any_scale(language, size):
    y = size * np.array([0.3, 1.1, -0.2])
    precision = 3 / size**2 + 0.01 / size**2

    def numpyro_model():
        mu = numpyro.sample("mu", ndist.Normal(0.0, 10 * size))
        numpyro.sample("y", ndist.Normal(mu, size).expand([3]).to_event(1), obs=jnp.asarray(y))

    def pyro_model():
        mu = pyro.sample("mu", pdist.Normal(0.0, 10 * torch.tensor(size)))
        pyro.sample("y", pdist.Normal(mu, size).expand([3]).to_event(1), obs=torch.tensor(y))

    if language == "numpyro":
        guide = fnp.AutoFlow(numpyro_model)
        posterior = guide.get_posterior(guide.setup())
        draws = np.asarray(posterior.sample(jax.random.key(0), (4000,)))[:, 0]
    else:
        guide = fpp.AutoFlow(pyro_model)
        guide.setup()
        draws = guide.get_posterior().sample((4000,)).numpy()[:, 0]
    mean, sd = y.sum() / size**2 / precision, precision**-0.5
    assert abs(draws.mean() - mean) < 0.1 * sd
    assert abs(draws.std() / sd - 1) < 0.1


def test_a_fit_at_a_tiny_scale_has_the_evidence():
    y = 1e-11 * np.array([0.3, 1.1, -0.2])

    def model():
        mu = pyro.sample("mu", pdist.Normal(0.0, torch.tensor(1e-10)))
        with pyro.plate("data", 3):
            pyro.sample("y", pdist.Normal(mu, 1e-11), obs=torch.tensor(y))

    result = fpp.fit(model, num_steps=100, progress=False)
    covariance = 1e-22 * np.eye(3) + 1e-20
    expected = -0.5 * (y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert abs(result.elbo - expected) < 0.01
    assert result.k_hat < 0.5


# Away from zero and at zero the width is held against different limits.
@pytest.mark.parametrize("value", [3.0, 0.0, pytest.param(0.1, marks=pytest.mark.stress)])
@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_constant_data_have_a_degenerate_posterior(language, value):
    """The density of what is all the same rises without end as its scale goes to zero."""

    def numpyro_model():
        loc, scale = numpyro.sample("loc", ndist.Normal(0.0, 10.0)), numpyro.sample("scale", ndist.HalfNormal(5.0))
        numpyro.sample("y", ndist.Normal(loc, scale).expand([20]).to_event(1), obs=jnp.full(20, value))

    def pyro_model():
        loc, scale = pyro.sample("loc", pdist.Normal(0.0, 10.0)), pyro.sample("scale", pdist.HalfNormal(5.0))
        pyro.sample("y", pdist.Normal(loc, scale).expand([20]).to_event(1), obs=torch.full((20,), value))

    adapter, model = (fnp, numpyro_model) if language == "numpyro" else (fpp, pyro_model)
    with pytest.raises(RuntimeError, match=r"the posterior is degenerate.*data that are all the same"):
        adapter.AutoFlow(model).setup()


LIBRARIES = {
    "numpyro": (fnp, numpyro, ndist, jnp, jnp.asarray),
    "pyro": (fpp, pyro, pdist, torch, lambda values: torch.tensor(values, dtype=torch.float64)),
}
NO_POSTERIOR = {
    "flat": "improper",
    "flat scale": "no mode",
    "collinear": "improper.*a direction of the coordinates 0, 1, 2",
    "separated": "improper",
    "rising": "no mode",
    "square": "no mode",
    "exponential": "degenerate",
}
FAIR = ("heavy tails", "wide and narrow", "funnel", "mixture", "no curvature")


def in_words_of(language, kind):
    """A model that has no posterior, or a difficult one."""
    _, host, dist, lib, array = LIBRARIES[language]

    def flat(support="real", shape=()):
        return host.sample("b", dist.ImproperUniform(getattr(dist.constraints, support), (), shape))

    def normal(name, loc=0.0, scale=1.0):
        return host.sample(name, dist.Normal(array(loc), array(scale)))

    def observe(fn, values):
        host.sample("y", fn.to_event(1), obs=array(values))

    def model():
        if kind in ("flat", "flat scale"):
            flat("real" if kind == "flat" else "positive")
            observe(dist.Normal(normal("m"), 1.0).expand([2]), [0.3, 1.2])
        elif kind == "collinear":
            b = flat("real_vector", (3,))
            observe(dist.Normal(b[0] + array([1.0, 0.0]) * b[1] + array([0.0, 1.0]) * b[2], 1.0), [0.3, 1.2])
        elif kind == "separated":
            observe(dist.Bernoulli(logits=flat() * array([-1.0, 2.0])), [0.0, 1.0])
        elif kind == "rising":
            host.factor("f", flat())
        elif kind == "square":
            host.factor("f", normal("b") ** 2)
        elif kind == "exponential":
            host.factor("f", lib.exp(normal("b")))
        elif kind == "bounds":
            observe(dist.Uniform(array(0.0), host.sample("b", dist.HalfNormal(array(5.0)))).expand([2]), [0.3, 1.2])
        elif kind == "half":
            inside = (normal("b") > 0) & (normal("c") > 0) & (normal("d") > 0)
            host.factor("f", lib.where(inside, array(0.0), array(-np.inf)))
        elif kind == "heavy tails":
            host.sample("a", dist.Cauchy(array(0.0), 1.0))
            host.sample("s", dist.HalfCauchy(array(1.0)))
            host.sample("t", dist.StudentT(array(0.5), 0.0, 1.0))
        elif kind == "no curvature":  # a Hessian of zeros, which torch keeps without memory
            host.sample("b", dist.Laplace(array(0.0), 1.0))
        elif kind == "wide and narrow":
            normal("a", 0.0, 1e30), normal("b", 1e30, 1e27), normal("c", 0.0, 1e-30)
        elif kind == "funnel":
            host.sample("x", dist.Normal(0.0, lib.exp(normal("v", 0.0, 3.0) / 2)).expand([9]).to_event(1))
        elif kind == "mixture":  # of which each component may hold one datum
            mean = host.sample("m", dist.Normal(array(0.0), 5.0).expand([2]).to_event(1))
            scale = host.sample("s", dist.HalfNormal(array(2.0)).expand([2]).to_event(1))
            mixture = dist.MixtureSameFamily(dist.Categorical(array([0.5, 0.5])), dist.Normal(mean, scale))
            observe(mixture.expand([3]), [0.3, 1.2, -2.0])

    return model


@pytest.mark.parametrize("language", LIBRARIES)
@pytest.mark.parametrize("kind", NO_POSTERIOR)
def test_what_has_no_posterior_is_refused(language, kind):
    with pytest.raises(RuntimeError, match=f"the posterior (is|has) {NO_POSTERIOR[kind]}"):
        LIBRARIES[language][0].AutoFlow(in_words_of(language, kind)).setup()


@pytest.mark.parametrize("language", LIBRARIES)
@pytest.mark.parametrize("kind", FAIR)
def test_difficult_posteriors_are_no_bad_ones(language, kind):
    LIBRARIES[language][0].AutoFlow(in_words_of(language, kind)).setup()


@pytest.mark.parametrize("language", LIBRARIES)
def test_an_edge_of_the_density_is_told(language):
    with pytest.warns(RuntimeWarning, match=r"not finite at \d+% of the draws of the start.*sharp edge"):
        LIBRARIES[language][0].AutoFlow(in_words_of(language, "half")).setup()


@pytest.mark.filterwarnings("ignore:the model's log density is not finite")
@pytest.mark.parametrize("language", LIBRARIES)
def test_bounds_of_data_that_depend_on_a_latent_have_a_start(language):
    """Though its density is zero at most of the first points."""
    LIBRARIES[language][0].AutoFlow(in_words_of(language, "bounds")).setup()
