"""What a guide lacks, by draws of a wider one: exact by quadrature and by closed forms, and told in both languages."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.diagnostics import Search, diagnose
from flowppl.inference.gaussians import widened
from flowppl.inference.modes import ABSENT, find_modes
from flowppl.inference.outside import GuideDensity, lost_share
from flowppl.inference.starts import Gaussian

LOG_NORMAL = stats.norm.logpdf


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_wide_noise_has_the_density_that_it_says(dim):
    noise, ratio = widened((40_000, dim), np.random.default_rng(dim))
    assert np.isfinite(ratio).all()
    # The mean of n / r under r is 1, and so are the mean squares of n: both by weights that are bounded by 26 dim.
    weights = np.exp(-ratio)
    assert weights.mean() == pytest.approx(1, abs=6 * weights.std() / 200)
    squares = weights[:, None] * noise**2
    assert squares.mean() == pytest.approx(1, abs=6 * squares.mean(axis=1).std() / 200)
    assert (np.abs(noise).max(axis=1) > 50).mean() > 0.02


def guide(log_ratio, dim=1, parts=1):
    """A guide of standard normals, with this log p - log q."""
    return GuideDensity(
        None, np.log(np.full(parts, 1 / parts)), dim, lambda part, e: log_ratio(e), rows=1024, block=128
    )


@pytest.mark.parametrize(("dim", "parts"), [(1, 1), (1, 3), (4, 1)])
@pytest.mark.parametrize("freedom", [1, 3])
def test_the_lost_share_of_heavy_tails_is_theirs(freedom, dim, parts):
    """One coordinate has the tails of Student's t under a normal guide."""

    def ratio(e):
        return stats.t.logpdf(e[:, 0], freedom) - LOG_NORMAL(e[:, 0])

    grid = np.linspace(1, 10, 90_001)[:, None]
    lost = 2 * stats.t.sf(grid[np.argmax(ratio(grid) > math.log(ABSENT)), 0], freedom)
    assert lost_share(guide(ratio, dim, parts), 0.0) == pytest.approx(lost / (1 + lost), rel=0.1 * dim)


@pytest.mark.parametrize("dim", [1, 10, 100])
@pytest.mark.parametrize("scale", [0.98, 1.0, 1.02])
def test_a_guide_that_is_nearly_right_lacks_nothing(dim, scale):
    def ratio(e):
        return (LOG_NORMAL(e, scale=scale) - LOG_NORMAL(e)).sum(axis=1)

    assert lost_share(guide(ratio, dim), 0.0) < 0.01


def test_a_mode_that_no_draw_meets_is_outside():
    """Of sd 0.2 and 5% of the mass, six sds away, in three coordinates."""
    loc = np.array([6.0, 0.0, 0.0])

    def ratio(e):
        log_q = LOG_NORMAL(e).sum(axis=1)
        return np.logaddexp(math.log(0.95) + log_q, math.log(0.05) + LOG_NORMAL(e, loc, 0.2).sum(axis=1)) - log_q

    assert lost_share(guide(ratio, 3), math.log(0.95)) > 0.01


def test_what_is_outside_is_told():
    check = diagnose(0.01 * np.random.default_rng(0).normal(size=4000))
    search = Search(64, 64, 1, 1, 0.0, 0.0)
    found = [dataclasses.replace(check, search=dataclasses.replace(search, outside=x)) for x in (0.0, 0.01, 0.04, 0.3)]
    assert [each.verdict for each in found] == ["good", "good", "bulk only", "do not trust"]
    assert "outside" not in str(found[0])
    assert "1.0% of the posterior is where the guide hardly draws" in str(found[1])
    assert "About 4% of the posterior" in found[2].advice


def test_a_search_that_was_cut_short_found_no_others():
    check = diagnose(0.01 * np.random.default_rng(0).normal(size=4000))
    short, many = (dataclasses.replace(check, search=Search(64, num, 2, 2, 0.0, 0.4)) for num in (5, 64))
    assert (short.verdict, many.verdict) == ("good", "do not trust")
    assert "2 modes so far: the search was cut short, as 5 of 64 had ended" in short.advice
    assert "kept finding others" in str(many)


def test_the_tail_of_weights_that_are_all_but_equal_does_not_matter():
    weights = 1 + 1e-4 * (np.random.default_rng(0).random(10_000) ** -0.9 - 1)
    check = diagnose(np.log(weights))
    assert check.k_hat > 0.8
    assert check.kl_gap < 1e-3
    assert check.verdict == "bulk only"
    search = Search(64, 64, 1, 1, 0.0, 0.0)
    assert dataclasses.replace(check, search=search).verdict == "good"
    assert dataclasses.replace(check, search=dataclasses.replace(search, outside=0.002)).verdict == "bulk only"
    assert dataclasses.replace(check, search=dataclasses.replace(search, num_searches=0)).verdict == "bulk only"


# Models of both languages: a posterior of heavy tails.


def fit_numpyro(**options):
    def model():
        numpyro.sample("x", ndist.StudentT(1.0, jnp.zeros(1), 1.0).to_event(1))

    return fnp.fit(jax.random.key(0), model, progress=False, **options)


def fit_pyro(**options):
    def model():
        pyro.sample("x", pdist.StudentT(torch.tensor(1.0), torch.zeros(1), 1.0).to_event(1))

    pyro.set_rng_seed(0)
    return fpp.fit(model, progress=False, **options)


@pytest.mark.parametrize("fit", [fit_numpyro, pytest.param(fit_pyro, marks=pytest.mark.stress)])
def test_heavy_tails_are_not_called_good(fit):
    result = fit(num_steps=100)
    check = result.history.check
    assert check.search.outside > 0.02
    assert check.verdict in ("bulk only", "do not trust")
    again = result.diagnose(500)
    assert again.search == check.search
    if fit is fit_numpyro:
        fresh = fnp.diagnose(jax.random.key(1), result.model, result.guide, result.params, num_samples=500)
    else:
        fresh = fpp.diagnose(result.model, result.guide, num_samples=500)
    assert fresh.search.outside > 0.02


def test_a_narrow_mode_is_found():
    """Of sd 0.2 and 5% of the mass, six sds away: no descent from elsewhere leads there."""
    locs, sds = np.array([[0.0, 0.0, 0.0], [6.0, 0.0, 0.0]]), np.array([1.0, 0.2])
    log_weights = np.log([0.95, 0.05]) - 3 * np.log(sds)

    def parts(z):
        return log_weights - 0.5 * ((z[..., None, :] - locs) ** 2).sum(axis=-1) / sds**2

    def slopes(z):
        shares = np.exp(parts(z) - logsumexp(parts(z), axis=-1, keepdims=True)) / sds**2
        return np.einsum("...k,...kd->...d", shares, locs - z[..., None, :])

    class Needle:
        def log_probs(self, z):
            return logsumexp(parts(z), axis=-1)

        def values_and_gradients(self, z):
            return self.log_probs(z), slopes(z)

        def derivatives(self, z):
            step = 1e-5 * np.eye(3)
            hessian = (slopes(z + step) - slopes(z - step)) / 2e-5
            return slopes(z), (hessian + hessian.T) / 2

        def prior_draws(self, num, rng):
            return rng.normal(0, 10, (num, 3))

    for seed in range(3):
        found = find_modes(Needle(), Gaussian(np.zeros(3), np.eye(3), 0.0), np.random.default_rng(seed))
        np.testing.assert_allclose(np.exp(found.log_weights), [0.95, 0.05], atol=0.01)
