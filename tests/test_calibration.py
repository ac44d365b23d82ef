"""Simulation-based calibration: its tests against exact distributions, and fits whose faults are known."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import pyro
import pyro.distributions
import pytest
import torch
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from pyro import poutine
from scipy.stats import binom, chi2

import flowppl.numpyro
import flowppl.pyro
from flowppl.diagnostics import Calibration
from flowppl.inference.calibration import _polynomials, _reaches, _symmetry, binomial_band

Y = np.array([1.0, 2.0, 0.5])
NUM_DRAWS = 99


def simulated(rng, num_simulations=200, shift=0.0, scale=1.0, num_draws=NUM_DRAWS):
    """The ranks of parameters from N(0, 1) among draws from N(shift, scale)."""
    draws = shift + scale * rng.normal(size=(num_simulations, num_draws))
    return np.sum(draws < rng.normal(size=(num_simulations, 1)), axis=1)


def test_polynomials_are_orthonormal_over_the_ranks():
    for num_draws in (19, 99, 1000):
        table = _polynomials(num_draws)
        np.testing.assert_allclose(table.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(table.T @ table / (num_draws + 1), np.eye(4), atol=1e-11)
        assert (table[-1] > 0).all()
    # Legendre's, as there are many ranks.
    x = np.linspace(-1, 1, 1001)
    legendre = [math.sqrt(2 * k + 1) * np.polynomial.Legendre.basis(k)(x) for k in range(1, 5)]
    np.testing.assert_allclose(table, np.transpose(legendre), atol=0.1)


def test_walks_that_come_far_are_counted():
    for num_steps in range(1, 9):
        walks = np.cumsum(list(itertools.product([-1, 1], repeat=num_steps)), axis=1)
        for height in range(1, num_steps + 2):
            assert _reaches(num_steps, height) == pytest.approx(np.mean(np.abs(walks).max(axis=1) >= height), abs=1e-15)


def test_symmetry_is_the_distance_of_distribution_functions(rng):
    for _ in range(20):
        positions = 2 * rng.integers(0, 20, size=30) - 19
        distance = max(abs(np.mean(positions <= x) - np.mean(-positions <= x)) for x in range(-20, 21))
        assert _symmetry(positions) == _reaches(30, round(30 * distance))
    assert _symmetry(np.zeros(10, int)) == 1
    assert _symmetry(np.full(10, 3)) == pytest.approx(2 * 0.5**10)


def test_p_values_of_uniform_ranks_are_uniform(rng):
    for num_simulations in (50, 200):
        found = Calibration(dict(enumerate(rng.integers(0, 100, size=(2000, num_simulations)))), NUM_DRAWS)
        for level in (0.05, 0.3):
            error = 5 * math.sqrt(level * (1 - level) / 2000)
            assert abs(np.mean(np.array(list(found.p_values.values())) < level) - level) < error + 0.015
            # Exact, and below its level only because walks come as far as whole numbers.
            assert np.mean(np.array(list(found.symmetry_p_values.values())) < level) < level + error
    one = Calibration({"z": np.array([3, 50, 70, 99])}, NUM_DRAWS)
    squares = [(_polynomials(99)[one.ranks["z"], j].sum() ** 2 / 4) for j in range(4)]
    assert one.p_values["z"] == pytest.approx(chi2.sf(sum(squares), 4))
    np.testing.assert_allclose(one.probabilities["z"], [0.035, 0.505, 0.705, 0.995])


def test_bands_hold_all_bars_with_their_probability(rng):
    shares = np.array([0.05, 0.05, 0.2, 0.3, 0.4])
    lower, upper = binomial_band(80, shares)
    np.testing.assert_array_equal(lower, binom.ppf(0.005, 80, shares))
    np.testing.assert_array_equal(upper, binom.ppf(0.995, 80, shares))
    counts = rng.multinomial(80, shares, size=2000)
    assert np.mean(((counts >= lower) & (counts <= upper)).all(axis=1)) > 0.94


@pytest.mark.parametrize(
    ("shift", "scale", "fault"),
    [
        (0.6, 1.0, "too high"),
        (-0.6, 1.0, "too low"),
        (0.0, 0.5, "too narrow"),
        (0.0, 2.0, "too wide"),
        (-0.8, 0.4, "too low and too narrow"),
        (3.0, 1.0, "too high"),
    ],
)
def test_each_fault_is_told_apart(rng, shift, scale, fault):
    named = []
    for _ in range(6):
        found = Calibration({"good": simulated(rng), "bad": simulated(rng, 200, shift, scale)}, NUM_DRAWS)
        assert found.verdict == "miscalibrated"
        assert found.p_values["bad"] < 1e-3
        if shift:
            assert found.symmetry_p_values["bad"] < 1e-2
        named.append(found.faults["bad"])
        for part in (f"bad ({named[-1]})", f"  bad              {named[-1]}: p-values", "200 of 200, with 99 draws"):
            assert part in str(found)
    assert named.count(fault) >= 4
    assert all(set(fault.split(" and ")) <= set(each.split(" and ")) for each in named)


def test_many_coordinates_are_calibrated_together(rng):
    found = [Calibration(dict(enumerate(rng.integers(0, 100, size=(100, 60)))), NUM_DRAWS) for _ in range(20)]
    assert sum(each.verdict == "calibrated" for each in found) >= 16  # 19 on average
    found = Calibration({f"z[{i}]": simulated(rng, shift=2.0) for i in range(8)}, NUM_DRAWS)
    assert "z[5] (too high) and 2 more" in found.advice


def test_what_is_not_judged(rng):
    few = Calibration({"z": rng.integers(0, 100, 19)}, NUM_DRAWS)
    assert few.verdict == "not judged"
    assert repr(few) == "Calibration('not judged', 19 simulations, 1 coordinates)"
    failed = Calibration({"z": np.arange(100)}, NUM_DRAWS, {i: f"ValueError: no. {i}" for i in range(3, 15)})
    assert failed.verdict == "not judged"
    for part in (
        "12 of 112 fits failed, and the others may be the easy ones. The first: ValueError: no. 3",
        "number 3",
    ):
        assert part in str(failed)
    assert Calibration({"z": np.arange(100)}, NUM_DRAWS, {5: "ValueError"}).verdict == "calibrated"


def test_ranks_are_checked():
    good = np.arange(20)
    for wrong in ({}, {"z": good - 1}, {"z": good + 90}, {"z": good / 2}, {"z": good[:0]}, {"z": good, "y": good[:9]}):
        with pytest.raises(ValueError, match="must be a dict with vectors of integers from 0 to 99"):
            Calibration(wrong, NUM_DRAWS)
    for wrong in ({"z": 3}, {"z": good[None]}):
        with pytest.raises(ValueError, match="vectors of integers"):
            Calibration(wrong, NUM_DRAWS)


def posterior(y):
    return y.sum() / (len(y) + 1), 1 / math.sqrt(len(y) + 1)


class InPyro:
    ppl, dist, array, host = pyro, pyro.distributions, staticmethod(torch.as_tensor), poutine
    adapter = flowppl.pyro

    @staticmethod
    def sbc(model, *args, seed=0, **kwargs):
        pyro.set_rng_seed(seed)
        return flowppl.pyro.sbc(model, *args, progress=False, **kwargs)

    @staticmethod
    def fit(model, data, *args, shift=0.0, scale=1.0):
        """The exact posterior of ``conjugate``, or one that is wrong in a known way."""
        loc, sd = posterior(data["y"])
        return {"z": loc + sd * (shift + scale * torch.randn(NUM_DRAWS))}


class InNumPyro:
    ppl, dist, array, host = numpyro, numpyro.distributions, staticmethod(jnp.asarray), handlers
    adapter = flowppl.numpyro

    @staticmethod
    def sbc(model, *args, seed=0, **kwargs):
        return flowppl.numpyro.sbc(jax.random.key(seed), model, *args, progress=False, **kwargs)

    @staticmethod
    def fit(rng_key, model, data, *args, shift=0.0, scale=1.0):
        loc, sd = posterior(data["y"])
        return {"z": loc + sd * (shift + scale * jax.random.normal(rng_key, (NUM_DRAWS,)))}


@pytest.fixture(params=[InPyro, InNumPyro])
def lang(request):
    return request.param


def conjugate(lang, y=None):
    z = lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))
    lang.ppl.deterministic("twice", 2 * z)
    with lang.ppl.plate("data", len(Y)):
        lang.ppl.sample("y", lang.dist.Normal(z, 1.0), obs=y)


def test_exact_posteriors_are_calibrated(lang):
    model, y = partial(conjugate, lang), lang.array(Y)
    found = [lang.sbc(model, y, fit=lang.fit, num_simulations=60, seed=seed) for seed in range(5)]
    assert [each.verdict for each in found].count("calibrated") >= 3
    assert all(each.ranks.keys() == {"z"} and each.num_simulations == 60 for each in found)
    assert min(each.p_values["z"] for each in found) > 1e-4
    assert not np.array_equal(found[0].ranks["z"], found[1].ranks["z"])
    again = lang.sbc(model, y, fit=lang.fit, num_simulations=60)
    np.testing.assert_array_equal(again.ranks["z"], found[0].ranks["z"])


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"shift": 1.0}, "too high"),
        ({"shift": -1.0}, "too low"),
        ({"scale": 0.4}, "too narrow"),
        ({"scale": 2.5}, "too wide"),
    ],
)
def test_wrong_posteriors_are_told(lang, options, fault):
    for seed in range(2):
        wrong = partial(lang.fit, **options)
        found = lang.sbc(partial(conjugate, lang), lang.array(Y), fit=wrong, num_simulations=80, seed=seed)
        assert found.faults == {"z": fault}


def test_data_left_out_are_named(lang):
    model = partial(conjugate, lang)
    found = lang.sbc(model, observed="y", fit=lang.fit, num_simulations=30)
    same = lang.sbc(model, observed=["y"], fit=lang.fit, num_simulations=30)
    np.testing.assert_array_equal(found.ranks["z"], same.ranks["z"])
    with pytest.raises(ValueError, match="observes nothing with these arguments"):
        lang.sbc(model, fit=lang.fit)
    with pytest.raises(ValueError, match=r"observed must name sites of the model, got 'Y'"):
        lang.sbc(model, observed=["Y"])
    with pytest.raises(ValueError, match=r"the model observes \['y'\] too"):
        lang.sbc(model, lang.array(Y), observed=["z"])
    with pytest.raises(ValueError, match="no latents"):
        lang.sbc(model, observed=["y", "z"])


def test_every_site_has_its_rank(lang):
    """Sites of all shapes, what the model computes if the draws have it, and what never varies."""

    def model(y):
        lang.ppl.sample("unused", lang.dist.Normal(lang.array(np.zeros((2, 3))), 1.0).to_event(2))
        z = lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))
        lang.ppl.deterministic("twice", 2 * z)
        lang.ppl.deterministic("fixed", lang.array(np.ones(2)))
        lang.ppl.sample("y", lang.dist.Normal(z, 1.0).expand([len(Y)]).to_event(1), obs=y)

    def fit(*args):
        drawn = {"z": np.repeat(np.asarray(lang.fit(*args)["z"]), 3)}
        numbers = np.random.default_rng(list(drawn["z"][:3].tobytes())).normal(size=(3 * NUM_DRAWS, 2, 3))
        return drawn | {"twice": 2 * drawn["z"], "fixed": np.ones((3 * NUM_DRAWS, 2)), "unused": numbers}

    found = lang.sbc(model, lang.array(Y), fit=fit, num_simulations=40)
    names = [f"unused[{i},{j}]" for i in range(2) for j in range(3)]
    assert list(found.ranks) == [*names, "z", "twice", "fixed[0]", "fixed[1]"]
    np.testing.assert_array_equal(found.ranks["z"], found.ranks["twice"])
    assert min(found.p_values.values()) > 1e-5
    assert len(set(found.ranks["fixed[0]"])) > 20  # any rank, as all draws are equal


def test_failures_are_counted_and_named(lang):
    calls = []

    def fit(*args, fails):
        calls.append(len(calls))
        if fails(calls[-1]):
            raise ArithmeticError(f"call {calls[-1]}")
        drawn = lang.fit(*args)
        return {"z": drawn["z"] * math.nan} if calls[-1] == 7 else drawn

    model, y = partial(conjugate, lang), lang.array(Y)
    found = lang.sbc(model, y, fit=partial(fit, fails=lambda call: call in (0, 5)), num_simulations=30)
    assert found.num_simulations == 27
    expected = {0: "ArithmeticError: call 0", 5: "ArithmeticError: call 5"}
    assert found.failures == expected | {7: "ArithmeticError: the draws of the guide are not finite at 'z'"}
    calls[:] = range(26)
    with pytest.raises(RuntimeError, match="all of the first 5 fits failed: call 30"):
        lang.sbc(model, y, fit=partial(fit, fails=lambda call: True), num_simulations=30)


def test_what_a_fit_returns(lang):
    class Found:
        stopped = ""

        def __init__(self, drawn):
            self.drawn = drawn

        def sample(self, num):
            return {name: value[:num] for name, value in self.drawn.items()}

        def resample(self, num):
            return {name: value[:num] + 100 for name, value in self.drawn.items()}

    def fit(*args):
        return Found(lang.fit(*args))

    model, y = partial(conjugate, lang), lang.array(Y)
    plain = lang.sbc(model, y, fit=lang.fit, num_simulations=30, num_draws=49)
    found = lang.sbc(model, y, fit=fit, num_simulations=30, num_draws=49)
    assert found.num_draws == plain.num_draws == 49
    assert max(found.ranks["z"]) > 25
    shifted = lang.sbc(model, y, fit=fit, num_simulations=30, resample=True)
    assert shifted.faults == {"z": "too high"}
    for wrong, error, message in [
        (lambda *args: None, TypeError, "what fit returns must have a sample method, or be a dict of draws, got None"),
        (lambda *args: {"a": np.zeros(99)}, ValueError, r"lack the latents \['z'\], and have \['a'\]"),
        (lambda *args: {"z": np.zeros(50)}, ValueError, r"'z' must have the shape \(99 or more, \), got \(50,\)"),
        (
            lambda *args: {"z": np.zeros((99, 2))},
            ValueError,
            r"\(99 or more, \), got \(99, 2\)",
        ),
        (lambda: None, TypeError, "positional arguments"),
    ]:
        with pytest.raises(error, match=message):
            lang.sbc(model, y, fit=wrong)
    with pytest.raises(TypeError, match="must have a resample method, got a dict"):
        lang.sbc(model, y, fit=lang.fit, resample=True)


def test_interrupted_with_what_there_is(lang):
    calls = []

    def fit(*args, last):
        calls.append(0)
        if len(calls) == last:
            raise KeyboardInterrupt
        return lang.fit(*args)

    model, y = partial(conjugate, lang), lang.array(Y)
    assert lang.sbc(model, y, fit=partial(fit, last=9)).num_simulations == 8
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        lang.sbc(model, y, fit=partial(fit, last=1))


def test_models_that_cannot_make_their_data(lang):
    def improper(y):
        z = lang.ppl.sample("z", lang.dist.ImproperUniform(lang.dist.constraints.real, (), ()))
        lang.ppl.sample("y", lang.dist.Normal(z, 1.0), obs=y)

    def with_factor(y):
        z = lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))
        lang.ppl.factor("penalty", -z)
        lang.ppl.sample("y", lang.dist.Normal(z, 1.0), obs=y)

    def with_param(y):
        z = lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))
        lang.ppl.sample("y", lang.dist.Normal(z, lang.ppl.param("sd", lang.array(1.0))), obs=y)

    def subsampled(y):
        z = lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))
        with lang.ppl.plate("data", 10, subsample_size=3):
            lang.ppl.sample("y", lang.dist.Normal(z, 1.0), obs=y)

    one = lang.array(1.0)
    for model, y, message in [
        (improper, one, "cannot make its parameters and data"),
        (with_factor, one, "at 'penalty' the model has factors"),
        (with_param, one, "the model has parameters of its own, 'sd'"),
        (subsampled, lang.array(Y), "the model sees 3 of the 10 members"),
    ]:
        with pytest.raises(ValueError, match=message):
            lang.sbc(model, y)
    # As the message says:
    fixed = lang.host.block(lang.host.substitute(with_param, data={"sd": one}), hide=["sd"])
    assert lang.sbc(fixed, one, fit=lambda *args: {"z": np.arange(99.0)}, num_simulations=2).num_simulations == 2


def test_says_what_it_needs(lang):
    model, y = partial(conjugate, lang), lang.array(Y)
    for options, error, message in [
        ({"num_simulations": 0}, ValueError, "num_simulations must be an integer of at least 1, got 0"),
        ({"num_draws": 10}, ValueError, "num_draws must be an integer of at least 19, got 10"),
        ({"fit": "exact"}, TypeError, r"fit must be a function such as .*, got 'exact'"),
        ({"resample": 100}, TypeError, "resample must be True or False, got 100"),
        ({"num_simulation": 10}, TypeError, "did you mean 'num_simulations'"),
    ]:
        with pytest.raises(error, match=message):
            lang.sbc(model, y, **options)
    with pytest.raises(TypeError, match=r"call sbc\(.*model, \*args\)"):
        lang.sbc(lang.adapter.AutoFlow(model), y)


@pytest.mark.parametrize("resample", [False, True])
def test_fits_of_the_package(lang, resample):
    fit = partial(lang.adapter.fit, num_steps=100, progress=False)
    found = lang.sbc(partial(conjugate, lang), lang.array(Y), fit=fit, num_simulations=2, resample=resample)
    assert found.ranks.keys() == {"z", "twice"}
    assert not found.failures
    np.testing.assert_array_equal(found.ranks["z"], found.ranks["twice"])


def test_the_default_is_fit(lang, monkeypatch):
    monkeypatch.setattr(f"{lang.adapter.__name__}.calibration.default_fit", lambda *args, progress: lang.fit(*args))
    assert lang.sbc(partial(conjugate, lang), lang.array(Y), num_simulations=3).num_simulations == 3


def test_discrete_sites_are_summed_out(lang):
    def model(y):
        z = lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))
        which = lang.ppl.sample("which", lang.dist.Bernoulli(lang.array(0.5)), infer={"enumerate": "parallel"})
        lang.ppl.sample("y", lang.dist.Normal(z + which, 1.0).expand([len(Y)]).to_event(1), obs=y)

    assert lang.sbc(model, lang.array(Y), fit=lang.fit, num_simulations=3).ranks.keys() == {"z"}


def test_a_compiled_fit_is_compiled_once():
    traced = []

    @partial(jax.jit, static_argnums=1)
    def fit(rng_key, model, data, *args):
        traced.append(handlers.trace(handlers.seed(model, 0)).get_trace(data, *args)["y"])
        return InNumPyro.fit(rng_key, model, data, *args)

    InNumPyro.sbc(partial(conjugate, InNumPyro), jnp.asarray(Y), fit=fit, num_simulations=5)
    (site,) = traced
    assert site["is_observed"]
    assert isinstance(site["value"], jax.core.Tracer)


def test_fits_of_the_package_are_compiled_once():
    """For the second data set the model is hardly run again, and the fit is what it is alone."""
    calls, found = [], []

    def model(y):
        calls.append(None)
        conjugate(InNumPyro, y)

    def fit(*known):
        before = len(calls)
        result = flowppl.numpyro.fit(*known, num_steps=100, progress=False)
        found.append((len(calls) - before, known, result.elbo))
        return result

    InNumPyro.sbc(model, jnp.asarray(Y), fit=fit, num_simulations=2)
    (first, *_), (second, known, elbo) = found
    assert second < first / 2
    assert flowppl.numpyro.fit(*known, num_steps=100, progress=False).elbo == pytest.approx(elbo, abs=1e-4)
    assert abs(found[0][2] - elbo) > 1e-3  # the data differ


def test_data_observed_in_a_loop_have_to_be_left_out():
    """Each would be drawn after the old one before it."""
    seen = []

    def model(y=None):
        z = numpyro.sample("z", numpyro.distributions.Normal(0.0, 1.0))

        def step(before, now):
            value = numpyro.sample("y", numpyro.distributions.Normal(before + z, 1e-3), obs=now)
            return value, None

        scan(step, 0.0, y, length=4)

    def fit(rng_key, model, data):
        seen.append(data["y"])
        steps = jnp.diff(data["y"], prepend=0.0)
        density = handlers.trace(handlers.seed(handlers.substitute(model, {"z": steps.mean()}), 0)).get_trace(data)["y"]
        np.testing.assert_array_equal(density["value"], data["y"])
        return {"z": steps.mean() + 1e-3 * jax.random.normal(rng_key, (99,)) / 2}

    with pytest.raises(ValueError, match=r"the data at \['y'\] are observed in a loop .* observed=\['y'\]"):
        InNumPyro.sbc(model, jnp.zeros(4))
    assert InNumPyro.sbc(model, observed=["y"], fit=fit, num_simulations=60).p_values["z"] > 1e-4
    assert all(np.ptp(np.diff(y)) < 0.02 for y in seen)


def test_the_parameter_store_stays_as_it_was():
    """And a fit does not find the parameters of the one before."""
    pyro.param("mine", torch.tensor(3.0))

    def fit(*args):
        assert not list(pyro.get_param_store())
        pyro.param("loc", torch.tensor(0.0))
        return InPyro.fit(*args)

    InPyro.sbc(partial(conjugate, InPyro), torch.as_tensor(Y), fit=fit, num_simulations=3)
    assert list(pyro.get_param_store()) == ["mine"]
