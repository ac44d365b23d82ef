"""The verdict on a guide: against normals whose ELBO and evidence are known, and in both languages."""

from functools import partial

import jax
import numpy as np
import numpyro
import numpyro.distributions
import numpyro.infer
import pyro
import pyro.distributions
import pyro.infer.autoguide
import pytest
import torch
from scipy.stats import norm

import flowppl.numpyro
import flowppl.pyro
from flowppl.diagnostics import (
    Diagnosis,
    compare,
    diagnose,
    k_hat,
    k_hat_threshold,
    marginal_k_hat,
    resample_indices,
)
from flowppl.inference.fitting import NUM_CHECKS
from flowppl.inference.importance import smooth


def normal_weights(rng, loc, scale, num_draws=10_000, log_evidence=-3.0):
    """Draws of N(loc, scale) and their log weights for the posterior N(0, 1)."""
    z = rng.normal(loc, scale, num_draws)
    return z, log_evidence + norm.logpdf(z) - norm.logpdf(z, loc, scale)


def test_threshold():
    assert k_hat_threshold(100) == 0.5
    assert k_hat_threshold(1000) == pytest.approx(2 / 3)
    assert k_hat_threshold(10**6) == 0.7
    with pytest.raises(ValueError, match="at least 2 draws"):
        k_hat_threshold(1)


def test_one_limit_for_all_the_draws(rng):
    """Whatever the number of batches, and wherever a k-hat is judged."""
    weights = normal_weights(rng, 0.0, 1.3)[1]
    for size, num_batches in [(NUM_CHECKS, 4), (10_000, 10), (10_000, 1), (1000, 10)]:
        found = diagnose(np.resize(weights, size), num_batches=num_batches)
        assert found.k_hat_threshold == k_hat_threshold(size)
        assert f"(limit {k_hat_threshold(size):.2f})" in str(found)
    with pytest.warns(RuntimeWarning, match=r"above 0\.67; see diagnose"):
        resample_indices(np.r_[np.zeros(990), 3.0 * np.arange(10)], 10, rng)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.3), (0.4, 1.1), (0.0, 2.0)])
def test_elbo_and_evidence_of_normals(rng, loc, scale):
    kl = (scale**2 + loc**2 - 1) / 2 - np.log(scale)
    found = diagnose(normal_weights(rng, loc, scale)[1])
    assert abs(found.elbo - (-3 - kl)) < 5 * found.elbo_se
    assert abs(found.log_evidence + 3) < 5 * found.log_evidence_se
    assert abs(found.kl_gap - kl) < 5 * (found.elbo_se + found.log_evidence_se)
    square = scale**2 / np.sqrt(2 * scale**2 - 1) * np.exp(loc**2 / (2 * scale**2 - 1))  # of the normalised weight
    assert abs(found.ess_fraction * square - 1) < 0.1
    assert found.num_draws == 10_000


@pytest.mark.parametrize(
    ("loc", "scale", "verdict"),
    [
        (0.0, 1.0, "good"),
        (0.1, 1.05, "good"),
        (0.6, 1.1, "use with correction"),
        (0.0, 2.0, "use with correction"),
        (0.0, 0.1, "do not trust"),
        (3.0, 0.5, "do not trust"),
        (0.0, 1e4, "do not trust"),  # all tails are covered, but by few draws
    ],
)
def test_verdict_on_normals(rng, loc, scale, verdict):
    found = diagnose(normal_weights(rng, loc, scale)[1])
    assert found.verdict == verdict, found
    assert found.verdict in repr(found)
    assert found.advice in str(found)
    assert ("never visits" in found.advice) == (verdict == "good")


def test_equal_weights_are_good_whatever_the_rounding(rng):
    for weights in (np.zeros(1000), 1e-9 * rng.normal(size=1000), np.float32(-1234.5) + np.zeros(1000, np.float32)):
        assert diagnose(weights).verdict == "good"
    assert k_hat(np.zeros(100)) == 0


def test_a_heavy_tail_with_a_small_gap(rng):
    numbers = {"ess": 9000.0, "num_draws": 10_000, "elbo": -1.0, "elbo_se": 0.001}
    numbers |= {"log_evidence": -0.99, "log_evidence_se": 0.01, "nonfinite": 0.0, "k_hat_threshold": 2 / 3}
    assert Diagnosis(k_hat=0.8, **numbers).verdict == "bulk only"
    # Weights without a mean are the sign of a mode at the edge of the draws.
    assert Diagnosis(k_hat=2.2, **numbers).verdict == "do not trust"
    z = rng.normal(-3, 1, 10_000)
    lost = diagnose(np.logaddexp(norm.logpdf(z, -3), norm.logpdf(z, 3)) - norm.logpdf(z, -3))
    assert lost.verdict == "do not trust"
    assert lost.k_hat > 1


def test_nothing_that_is_not_finite_raises_or_spreads(rng):
    weights = normal_weights(rng, 0.0, 1.05)[1]
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = weights.copy()
        spoilt[:200] = bad
        found = diagnose(spoilt)
        assert found.nonfinite == pytest.approx(0.02)
        assert found.verdict == "use with correction"
        assert abs(found.elbo - weights.mean()) < 0.01
        assert set(resample_indices(spoilt, 1000, rng)).isdisjoint(range(200))
        spoilt[:2000] = bad
        assert diagnose(spoilt).verdict == "do not trust"
        nothing = diagnose(np.full(1000, bad))
        assert nothing.verdict == "do not trust"
        assert not np.isnan([nothing.k_hat, nothing.kl_gap, nothing.elbo, nothing.elbo_se, nothing.log_evidence]).any()
        assert "nan" not in str(nothing)
        with pytest.raises(ValueError, match="none of the 50"):
            resample_indices(np.full(50, bad), 10, rng)
    one = diagnose(np.r_[0.0, np.full(999, -np.inf)])
    assert one.verdict == "do not trust"
    assert "nan" not in str(one)
    assert diagnose(weights, round_trip_error=np.nan).verdict == "do not trust"
    assert diagnose(weights, round_trip_error=1e-6).verdict == "good"


def test_says_what_it_needs(rng):
    with pytest.raises(ValueError, match="at least 25 draws"):
        diagnose(np.zeros(99))
    with pytest.raises(ValueError, match="both draws and reference"):
        diagnose(np.zeros(1000), reference={"z": np.zeros(10)})
    with pytest.raises(ValueError, match=r"site 'z' must be \(1000, ...\), .* got \(10,\)"):
        diagnose(np.zeros(1000), draws={"z": np.zeros(10)})
    with pytest.raises(ValueError, match="at least 100 draws, got 99 log weights"):
        marginal_k_hat(np.zeros(99), {"z": np.zeros(99)})
    assert diagnose(np.zeros(99), num_batches=1, draws={"z": np.zeros(99)}).marginal_k_hat is None
    with pytest.raises(ValueError, match="no site in common"):
        compare({"a": np.zeros(10)}, {"b": np.zeros(10)})
    with pytest.raises(ValueError, match=r"site 'a' .*\(10, 2\) in draws, \(10, 3\)"):
        compare({"a": np.zeros((10, 2))}, {"a": np.zeros((10, 3))})


def ratios(z, scales, locs=0.0):
    """Of each coordinate the log ratio of N(loc, scale) and N(0, 1)."""
    return norm.logpdf(z, locs, scales) - norm.logpdf(z)


def test_marginals_are_fine_where_many_small_errors_add_up(rng):
    z = rng.normal(size=(10_000, 80))
    log_ratios = ratios(z, 1.2)
    found = diagnose(log_ratios.sum(axis=1), draws={"z": z})
    assert found.k_hat > 0.7
    assert max(found.marginal_k_hat.values()) < 0.7
    assert np.quantile(list(found.marginal_k_hat.values()), 0.8) < 0.15
    assert all(k_hat(column) < 0.55 for column in log_ratios.T[:10])  # the ratios of the marginals themselves


@pytest.mark.parametrize(("size", "margin"), [(10_000, 0.25), (2000, 0.4)])
@pytest.mark.parametrize(("scale", "loc"), [(3.5, 0.0), (1.0, 3.0)])
def test_marginals_name_the_wrong_coordinate(rng, size, margin, scale, loc):
    """One is too narrow or shifted, one too wide; the others are right, and the weights of all are spoilt."""
    z = rng.normal(size=(size, 8))
    log_ratios = ratios(z, np.r_[scale, 0.7, np.full(6, 1.03)], np.r_[loc, np.zeros(7)])
    found = marginal_k_hat(log_ratios.sum(axis=1), {"a": z[:, 0], "b": z[:, 1:4].reshape(-1, 3, 1), "c": z[:, 4:]})
    assert list(found) == ["a", "b[0,0]", "b[1,0]", "b[2,0]", *(f"c[{i}]" for i in range(4))]
    shapes = np.array(list(found.values()))
    assert max(found, key=found.get) == "a"
    assert abs(shapes[0] - min(k_hat(log_ratios[:, 0]), 1.0)) < margin  # that of the ratio of the marginals
    assert np.median(shapes[1:]) < 0.15


def test_marginals_see_what_is_missing_between_two_modes(rng):
    x = rng.normal(size=10_000) + 4 * rng.choice([-1, 1], size=10_000)
    other = rng.normal(size=(10_000, 5))
    guide = np.logaddexp(norm.logpdf(x, -4), norm.logpdf(x, 4)) - np.log(2)
    log_weights = norm.logpdf(x, 0, 2.5) - guide + ratios(other, 1.05).sum(axis=1)
    found = diagnose(log_weights, draws={"x": x, "other": other})
    assert found.marginal_k_hat["x"] > 0.7
    assert max(shape for name, shape in found.marginal_k_hat.items() if name != "x") < 0.5
    assert f"k-hat up to {found.marginal_k_hat['x']:.2f}, in x, above the limit in 1 of 6" in str(found)


def test_marginals_of_odd_values(rng):
    z = rng.normal(size=1000)
    z[:20] = np.nan
    found = diagnose(np.zeros(1000), draws={"z": z, "fixed": np.ones(1000), "none": np.zeros((1000, 0))})
    assert found.marginal_k_hat.keys() == {"z", "fixed"}
    assert max(found.marginal_k_hat.values()) < 0.1
    assert found.nonfinite == 0.02
    nothing = diagnose(np.full(1000, -np.inf), draws={"z": z})
    assert nothing.marginal_k_hat == {"z": np.inf}
    assert "nan" not in str(nothing)
    assert diagnose(np.zeros(1000), draws={"z": rng.normal(size=300)}, reference={"z": z}).marginal_k_hat is None


def test_resampling_keeps_each_draw_its_share_of_times(rng):
    weights = rng.uniform(-2, 1, size=200)
    smoothed = np.exp(smooth(weights)[0])
    expected = 300 * smoothed / smoothed.sum()
    counts = [np.bincount(resample_indices(weights, 300, rng), minlength=200) for _ in range(400)]
    assert (np.abs(counts - expected) < 1 + 1e-9).all()
    # A count is one of two neighbours, so its variance is at most 1/4.
    assert np.max(np.abs(np.mean(counts, axis=0) - expected)) < 6 * 0.5 / np.sqrt(400)


def test_resampling_corrects_a_wide_guide(rng):
    z, weights = normal_weights(rng, 0.5, 1.5, num_draws=40_000)
    kept = z[resample_indices(weights, 4000, rng)]
    assert abs(kept.mean()) < 5 / np.sqrt(4000)
    assert abs(kept.std() - 1) < 5 / np.sqrt(8000)
    with pytest.warns(RuntimeWarning, match="not to be trusted"):
        resample_indices(normal_weights(rng, 3.0, 0.5)[1], 100, rng)


def test_comparison_sees_lost_modes_and_scales_and_nothing_else(rng):
    def seen(draws, reference):
        return diagnose(np.zeros(1000), draws={"z": draws}, reference={"z": reference})

    shift = 6 * rng.choice([-1, 0, 1], size=2000)
    modes = rng.normal(size=2000) + shift
    outer = rng.normal(size=2000) + 6 * rng.choice([-1, 1], size=2000)
    for lost in (rng.normal(size=2000), rng.normal(size=2000) - 6, outer):
        found = seen(lost, modes)
        assert found.verdict == "do not trust"
        assert found.comparison.missed > 0.2
    assert seen(0.6 * rng.normal(size=2000), rng.normal(size=2000)).verdict == "do not trust"
    assert seen(rng.normal(size=2000) + 0.6, rng.normal(size=2000)).verdict == "do not trust"
    same = seen(rng.normal(size=2000), rng.normal(size=2000))
    assert same.verdict == "good"
    assert "reference draws tell" not in same.advice
    heavy = compare({"z": rng.standard_cauchy(4000)}, {"z": rng.standard_cauchy(4000)})
    assert heavy.mean_error < 0.2
    assert abs(heavy.log_sd_ratio) < 0.2
    assert heavy.missed == 0


def test_comparison_of_odd_values(rng):
    triangle = np.tril(rng.normal(size=(1000, 2, 2)))
    assert compare({"L": triangle}, {"L": np.tril(rng.normal(size=(500, 2, 2)))}).missed == 0
    assert compare({"L": triangle}, {"L": triangle + np.array([[0, 1], [0, 0]])}).worst == "L[0,1]"
    assert compare({"z": np.zeros(1000)}, {"z": rng.normal(size=1000)}).log_sd_ratio == -np.inf
    assert compare({"z": np.full(1000, np.nan)}, {"z": rng.normal(size=1000)}).mean_error == np.inf
    reference = rng.normal(size=1000)
    reference[:10] = np.nan
    draws = rng.normal(size=1000)
    draws[:50] = np.inf
    found = diagnose(np.zeros(1000), draws={"z": draws}, reference={"z": reference})
    assert found.comparison.nonfinite == 0.01
    assert found.nonfinite == 0.05
    assert "1.00% of it is not finite" in str(found)


Y = np.array([1.0, 2.0, 0.5])


class InPyro:
    ppl, dist, array = pyro, pyro.distributions, staticmethod(torch.as_tensor)
    adapter, init_to_mean = flowppl.pyro, staticmethod(pyro.infer.autoguide.init_to_mean)

    @staticmethod
    def call(function, model, guide, *args, **kwargs):
        return function(model, guide, *args, **kwargs)


class InNumPyro:
    ppl, dist, array = numpyro, numpyro.distributions, staticmethod(jax.numpy.asarray)
    adapter, init_to_mean = flowppl.numpyro, staticmethod(numpyro.infer.init_to_mean)

    @staticmethod
    def call(function, model, guide, *args, params=None, **kwargs):
        return function(jax.random.key(0), model, guide, params or {}, *args, **kwargs)


@pytest.fixture(params=[InPyro, InNumPyro])
def lang(request):
    return request.param


def conjugate(lang, y):
    z = lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))
    with lang.ppl.plate("data", len(Y)):
        lang.ppl.sample("y", lang.dist.Normal(z, 1.0), obs=y)


def normal_guide(lang, loc, scale, *args):
    lang.ppl.sample("z", lang.dist.Normal(loc, scale))


def posterior(y):
    return y.sum() / (len(y) + 1), 1 / np.sqrt(len(y) + 1)


def test_conjugate_posterior_is_good_and_wrong_data_are_not(lang, rng):
    model, y = partial(conjugate, lang), lang.array(Y)
    guide = partial(normal_guide, lang, *posterior(Y))
    loc, scale = posterior(Y)
    reference = {"z": lang.array(rng.normal(loc, scale, 1000)), "unknown": lang.array(np.zeros(1000))}
    good = lang.call(lang.adapter.diagnose, model, guide, y, reference=reference)
    assert good.verdict == "good", good
    assert abs(good.elbo - good.log_evidence) < 1e-6
    assert good.round_trip_error is None
    assert good.marginal_k_hat.keys() == {"z"}
    assert good.marginal_k_hat["z"] < 0.1
    wrong = lang.call(lang.adapter.diagnose, model, guide, lang.array(Y + 4))
    assert wrong.verdict == "do not trust", wrong
    assert wrong.marginal_k_hat["z"] > wrong.k_hat_threshold


def test_marginals_of_few_coordinates_only(lang, monkeypatch):
    def model():
        with lang.ppl.plate("all", 4):
            lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))

    for most, expected in ((4, [f"z[{i}]" for i in range(4)]), (3, None)):
        monkeypatch.setattr("flowppl.inference.diagnostics.MAX_MARGINALS", most)
        found = lang.call(lang.adapter.diagnose, model, model, num_samples=300)
        assert found.marginal_k_hat == (expected and dict.fromkeys(expected, pytest.approx(0, abs=1e-6)))


def test_a_lost_mode_shows_only_beside_a_reference(lang, rng):
    def model():
        modes = lang.dist.Normal(lang.array([-8.0, 8.0]), 1.0)
        mixing = lang.dist.Categorical(probs=lang.array([0.5, 0.5]))
        family = getattr(lang.dist, "MixtureSameFamily", None)
        lang.ppl.sample("z", family(mixing, modes))

    guide = partial(normal_guide, lang, -8.0, 1.0)
    alone = lang.call(lang.adapter.diagnose, model, guide)
    assert alone.verdict == "good"
    assert "mode" in alone.advice
    reference = {"z": lang.array(rng.normal(size=1000) + 8 * rng.choice([-1.0, 1.0], size=1000))}
    beside = lang.call(lang.adapter.diagnose, model, guide, reference=reference)
    assert beside.verdict == "do not trust"
    assert abs(beside.comparison.missed - 0.5) < 0.1


def test_resampling_corrects_a_shifted_guide(lang):
    loc, scale = posterior(Y)
    guide = partial(normal_guide, lang, loc + 0.4, 1.3 * scale)
    draws = lang.call(lang.adapter.resample, partial(conjugate, lang), guide, lang.array(Y), num_samples=2000)["z"]
    assert draws.shape == (2000,)
    draws = np.asarray(draws)
    assert abs(draws.mean() - loc) < 5 * scale / np.sqrt(2000)
    assert abs(draws.std() / scale - 1) < 5 / np.sqrt(4000)


def test_draws_have_the_shapes_of_their_sites(lang):
    def model():
        lang.ppl.sample("a", lang.dist.Normal(0.0, 1.0))
        with lang.ppl.plate("outer", 3, dim=-2), lang.ppl.plate("inner", 2, dim=-1):
            lang.ppl.sample("b", lang.dist.Normal(lang.array(np.zeros(4)), 1.0).to_event(1))
        with lang.ppl.plate("single", 5):
            lang.ppl.sample("c", lang.dist.Normal(0.0, 1.0))

    # In Pyro the last batch holds one draw.
    draws = lang.call(lang.adapter.resample, model, model, num_samples=4, num_proposals=29, chunk_size=7)
    assert {name: tuple(v.shape) for name, v in draws.items()} == {"a": (4,), "b": (4, 3, 2, 4), "c": (4, 5)}
    assert len(np.unique(np.asarray(draws["c"]))) == 20


def test_adapters_say_what_they_need(lang):
    def two():
        lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))
        lang.ppl.sample("forgotten", lang.dist.Normal(0.0, 1.0))

    guide = partial(normal_guide, lang, 0.0, 1.0)
    for function in (lang.adapter.log_weights, lang.adapter.diagnose, lang.adapter.resample):
        with pytest.raises(ValueError, match="num_samples must be an integer of at least 1, got 0"):
            lang.call(function, guide, guide, num_samples=0)
    with pytest.raises(ValueError, match="does not draw these latent sites of the model: forgotten"):
        lang.call(lang.adapter.log_weights, two, guide)


@pytest.mark.parametrize(("loc", "verdict"), [(0.0, "good"), (1e17, "do not trust")])
def test_inverts_the_flow_of_an_autoflow(lang, loc, verdict):
    """Far from the origin all digits of the base draws are lost."""

    def model():
        lang.ppl.sample("z", lang.dist.Normal(lang.array(np.full(2, loc)), 1.0).to_event(1))

    guide = lang.adapter.AutoFlow(model, flowppl.TriangularAffine, init_loc_fn=lang.init_to_mean, init_scale=1.0)
    params = {"params": guide.setup()} if lang is InNumPyro else {}
    found = lang.call(lang.adapter.diagnose, model, guide, **params)
    assert (found.round_trip_error < 1e-12) == (verdict == "good")
    assert found.verdict == verdict
    assert ("inverted" in found.advice) == (verdict != "good")


def test_an_improper_prior_needs_no_draws(lang):
    def model(y):
        z = lang.ppl.sample("z", lang.dist.ImproperUniform(lang.dist.constraints.real, (), ()))
        with lang.ppl.plate("data", len(Y)):
            lang.ppl.sample("y", lang.dist.Normal(z, 1.0), obs=y)

    guide = partial(normal_guide, lang, np.mean(Y), 1 / np.sqrt(len(Y)))
    assert lang.call(lang.adapter.diagnose, model, guide, lang.array(Y), num_samples=1000).kl_gap < 1e-6
    assert lang.call(lang.adapter.resample, model, guide, lang.array(Y), num_samples=100)["z"].shape == (100,)
