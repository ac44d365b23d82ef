"""The calls of ``fit`` and its result that a user of Pyro or NumPyro would guess, and what wrong ones are answered."""

import functools
import logging
import math
import re
import sys
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import optax
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro.infer.autoguide import AutoNormal as NumPyroAutoNormal
from pyro.infer.autoguide import AutoNormal as PyroAutoNormal

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.inference import affine, fitting, guides

X, Y = np.arange(5.0), np.array([0.1, 2.2, 3.9, 6.1, 7.8])
NEW = np.array([-1.0, 10.0])


def numpyro_line(x, y=None):
    slope = numpyro.sample("slope", ndist.Normal(0.0, 3.0))
    mean = numpyro.deterministic("mean", slope * x)
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", ndist.Normal(mean, 1.0), obs=y)


def pyro_line(x, y=None):
    slope = pyro.sample("slope", pdist.Normal(0.0, 3.0))
    mean = pyro.deterministic("mean", slope * x)
    with pyro.plate("data", len(x)):
        pyro.sample("y", pdist.Normal(mean, 1.0), obs=y)


class InNumPyro:
    model, adapter, array = staticmethod(numpyro_line), fnp, staticmethod(jnp.asarray)
    auto_normal, elbo = NumPyroAutoNormal, numpyro.infer.Trace_ELBO
    ppl, dist, init_to_value = numpyro, ndist, staticmethod(numpyro.infer.init_to_value)

    @staticmethod
    def fit(model, *args, **options):
        return fnp.fit(jax.random.key(0), model, *args, progress=False, **options)

    @staticmethod
    def call(function, model, guide, *args, **kwargs):
        return function(jax.random.key(0), model, guide, {}, *args, **kwargs)


class InPyro:
    model, adapter, array = staticmethod(pyro_line), fpp, staticmethod(torch.as_tensor)
    auto_normal, elbo = PyroAutoNormal, pyro.infer.Trace_ELBO
    ppl, dist, init_to_value = pyro, pdist, staticmethod(pyro.infer.autoguide.init_to_value)

    @staticmethod
    def fit(model, *args, **options):
        return fpp.fit(model, *args, progress=False, **options)

    @staticmethod
    def call(function, model, guide, *args, **kwargs):
        return function(model, guide, *args, **kwargs)


@pytest.fixture(params=[InNumPyro, InPyro])
def lang(request):
    return request.param


PLAIN = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 3e-2}}


def small(dim):
    return fp.ElementwiseAffine(dim)


@pytest.fixture(scope="module", params=[InNumPyro, InPyro])
def fitted(request):
    lang = request.param
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return lang, lang.fit(lang.model, lang.array(X), lang.array(Y), flow=small, num_steps=100)


PRECISION = 1 / 9 + (X**2).sum()
LOC, SD = (X * Y).sum() / PRECISION, PRECISION**-0.5


def test_samples_have_the_deterministic_sites(fitted):
    _, result = fitted
    for draws in (result.sample(200), result.resample(200)):
        assert {name: tuple(value.shape) for name, value in draws.items()} == {"slope": (200,), "mean": (200, 5)}
        slope, mean = (np.asarray(draws[name]) for name in ("slope", "mean"))
        np.testing.assert_allclose(mean, slope[:, None] * X)
        assert abs(slope.mean() - LOC) < 5 * SD / math.sqrt(200)


def test_quantiles_are_those_of_the_posterior(fitted):
    _, result = fitted
    found = {name: np.asarray(value) for name, value in result.quantiles([0.05, 0.5]).items()}
    assert found["mean"].shape == (2, 5)
    expected = LOC + SD * NormalDist().inv_cdf(0.05), LOC
    np.testing.assert_allclose(found["slope"], expected, atol=5 * SD * 2.2 / math.sqrt(10_000))
    with pytest.raises(ValueError, match="between 0 and 1"):
        result.quantiles([50])


@pytest.mark.parametrize("number", [-1, 0, 2.5, (3,), True, None], ids=str)
def test_numbers_of_draws_that_cannot_be_meant_are_told(fitted, number):
    _, result = fitted
    calls = {
        "sample": result.sample,
        "quantiles": functools.partial(result.quantiles, [0.5]),
        "resample": result.resample,
        "predict": result.predict,
        "diagnose": result.diagnose,
        "to_arviz": result.to_arviz,
    }
    for name, call in calls.items():
        message = f"{name}: num_samples must be an integer of at least 1, got {number}"
        with pytest.raises(ValueError, match=re.escape(message)):
            call(num_samples=number)
    with pytest.raises((TypeError, ValueError), match="mcmc: num_samples must be an integer"):
        result.mcmc(number)
    for name, option in (("diagnose", "num_batches"), ("diagnose", "chunk_size"), ("resample", "chunk_size")):
        with pytest.raises(ValueError, match=rf"{name}: {option} must be an integer of at least 1"):
            calls[name](**{option: number})
    if number is not None:
        with pytest.raises(ValueError, match="resample: num_proposals must be an integer of at least 1"):
            result.resample(num_proposals=number)


def test_predicts_at_new_arguments_as_the_host(fitted):
    lang, result = fitted
    draws = result.predict(lang.array(NEW), num_samples=2000)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"y": (2000, 2), "mean": (2000, 2)}
    y = np.asarray(draws["y"])
    sd = np.sqrt(1 + NEW**2 * SD**2)
    assert np.all(abs(y.mean(0) - LOC * NEW) < 5 * sd / math.sqrt(2000))
    assert np.all(abs(y.std(0) / sd - 1) < 5 / math.sqrt(4000))
    assert abs(np.corrcoef(y.T)[0, 1] + 10 * SD**2 / sd.prod()) < 5 / math.sqrt(2000)
    # The host's own, from draws of the guide.
    latents = {"slope": result.sample(7)["slope"]}
    if lang is InNumPyro:
        host = numpyro.infer.Predictive(lang.model, latents)(jax.random.key(0), lang.array(NEW))
    else:
        host = pyro.infer.Predictive(lang.model, latents)(lang.array(NEW))
    assert host.keys() == draws.keys()
    for name, value in host.items():  # in Pyro a site outside of a plate has an axis for it
        assert value.reshape(7, -1).shape[1:] == draws[name].shape[1:]


def test_predicts_the_data_of_the_fit_anew(fitted):
    lang, result = fitted
    draws = result.predict(num_samples=2000)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"y": (2000, 5), "mean": (2000, 5)}
    sd = np.sqrt(1 + X**2 * SD**2)
    assert np.all(abs(np.asarray(draws["y"]).mean(0) - LOC * X) < 5 * sd / math.sqrt(2000))
    assert np.all(abs(np.asarray(draws["y"]).std(0) / sd - 1) < 5 / math.sqrt(4000))
    with pytest.warns(RuntimeWarning, match="the model draws nothing, as 'y' is observed"):
        given = result.predict(lang.array(X), lang.array(Y), num_samples=3)
    np.testing.assert_array_equal(given["y"], np.tile(Y, (3, 1)))
    with pytest.raises(
        TypeError, match="predict: model takes no argument 'num_sample', nor does predict; did you mean"
    ):
        result.predict(lang.array(NEW), num_sample=3)
    with pytest.raises(ValueError, match="num_samples must be an integer"):
        result.predict(num_samples=0)


def test_draws_of_numpyro_follow_their_keys():
    result = InNumPyro.fit(numpyro_line, X, Y, flow=small, num_steps=100)
    one, other = jax.random.key(1), jax.random.key(2)
    for draw in (result.sample, result.resample, functools.partial(result.predict, NEW)):
        name = "y" if isinstance(draw, functools.partial) else "slope"
        first = draw(num_samples=20)[name]
        assert first.shape[0] == 20
        np.testing.assert_array_equal(first, draw(num_samples=20)[name])
        np.testing.assert_array_equal(draw(num_samples=20, rng_key=one)[name], draw(num_samples=20, rng_key=one)[name])
        assert not np.array_equal(draw(num_samples=20, rng_key=one)[name], draw(num_samples=20, rng_key=other)[name])
        with pytest.raises(TypeError, match=r"rng_key must be a key such as jax\.random\.key\(3\), got 3"):
            draw(num_samples=20, rng_key=3)
    for key in (one, jax.random.PRNGKey(1)):
        with pytest.raises(TypeError, match=r"a key is passed by name: result\.sample\(1000, rng_key=key\)"):
            result.sample(key)


def test_a_model_that_cannot_be_mapped_predicts_one_by_one():
    def model(y=None):
        z = pyro.sample("z", pdist.Normal(0.0, 1.0))
        loc = 10.0 if float(z) > 0 else -10.0
        pyro.deterministic("loc", torch.tensor(loc))
        pyro.sample("y", pdist.Normal(loc, 1.0), obs=y)

    draws = {"z": torch.linspace(-1, 1, 8)}
    found = fpp.predictive.predict(model, draws, (), {})
    np.testing.assert_array_equal(found["loc"], 10 * np.sign(draws["z"].numpy()))
    assert np.all(abs(found["y"] - found["loc"]).numpy() < 6)


def test_predictions_differ_from_draw_to_draw():
    """Of distributions that torch draws in different ways, beside the deterministic part."""

    def model():
        z = pyro.sample("z", pdist.Normal(0.0, 1.0))
        for name, fn in {
            "normal": pdist.Normal(z, 1.0),
            "gamma": pdist.Gamma(2.0, z.exp()),
            "poisson": pdist.Poisson(100 * z.exp()),
            "student": pdist.StudentT(3.0, z, 1.0),
            "dirichlet": pdist.Dirichlet(torch.ones(3)),
        }.items():
            pyro.sample(name, fn)

    found = fpp.predictive.predict(model, {"z": torch.zeros(400)}, (), {})
    for name, value in found.items():
        assert value.shape == ((400, 3) if name == "dirichlet" else (400,)), name
        assert len(np.unique(value.numpy())) > 20, name
    assert abs(found["gamma"].mean() - 2) < 5 * math.sqrt(2 / 400)
    assert abs(found["poisson"].mean() - 100) < 5 * 10 / 20


def test_deterministic_sites_keep_their_shapes_in_plates():
    def model(y):
        z = pyro.sample("z", pdist.Normal(0.0, 1.0))
        with pyro.plate("outer", 2, dim=-2), pyro.plate("data", len(y), subsample_size=4) as index:
            mean = pyro.deterministic("mean", z + torch.zeros(2, 4))
            pyro.sample("y", pdist.Normal(mean, 1e-6), obs=y[index].expand(2, 4))

    for handler in (lambda model: model, fpp.predictive.uncondition()):
        found = fpp.predictive.predict(handler(model), {"z": torch.arange(3.0)}, (torch.ones(5),), {})
        assert found["mean"].shape == found["y"].shape == (3, 2, 4)
        np.testing.assert_array_equal(found["mean"][:, 0, 0], np.arange(3.0))
    assert abs(found["y"] - found["mean"]).max() < 1e-4


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_local_latents_are_predicted_for_new_members(language):
    lang = InNumPyro if language == "numpyro" else InPyro
    ppl, dist = (numpyro, ndist) if lang is InNumPyro else (pyro, pdist)

    def model(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
        with ppl.plate("members", len(y)):
            z = ppl.sample("z", dist.Normal(mu, 1.0))
            ppl.sample("y", dist.Normal(z, 1.0), obs=y)

    def affine(dim, context_dim):
        return fp.Conditional(fp.ElementwiseAffine(dim), context_dim, 4)

    guide = lang.adapter.AutoLocalFlow(model, lambda y: y, flow=affine, plates=("members",), hidden_dims=4)
    result = lang.fit(model, lang.array(np.ones(6)), guide=guide, num_steps=100)
    with pytest.warns(RuntimeWarning, match="'y' is observed"):
        draws = result.predict(lang.array(np.ones(9)), num_samples=4)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"y": (4, 9)}
    assert result.predict(num_samples=4)["y"].shape == (4, 6)


def test_takes_the_flows_of_an_autoflow(lang):
    data = lang.array(X), lang.array(Y)
    for flow in ("planar", fp.planar, fp.ElementwiseAffine(1)):
        result = lang.fit(lang.model, *data, flow=flow, num_steps=100, max_seconds=0.01)
        assert isinstance(result.guide, lang.adapter.AutoFlow)
        assert result.guide.flow_choice is flow
    with pytest.raises(TypeError, match="fit: flow='iaf' beside guide="):
        lang.fit(lang.model, *data, flow="iaf", guide=lang.adapter.AutoFlow(lang.model))


@pytest.mark.parametrize(
    ("lang", "optimizer", "has_flow"),
    [
        (InNumPyro, optax.adamw(optax.cosine_decay_schedule(3e-2, 300)), True),
        (InNumPyro, numpyro.optim.ClippedAdam(3e-2), False),
        (InPyro, functools.partial(torch.optim.AdamW, lr=3e-2), True),
        (InPyro, pyro.optim.ExponentialLR(PLAIN | {"gamma": 0.999}), False),
    ],
)
def test_takes_the_optimisers_of_the_host(lang, optimizer, has_flow, monkeypatch):
    data = lang.array(X), lang.array(Y)
    # At a point, and by steps alone, so that there is something to learn.
    monkeypatch.setattr(affine, "MAX_FIXED", 0)
    guide = lang.adapter.AutoFlow(lang.model, small, init="point") if has_flow else lang.auto_normal(lang.model)
    result = lang.fit(lang.model, *data, guide=guide, optimizer=optimizer, num_steps=300)
    assert result.elbo > result.checks[0].elbo
    assert result.diagnose(2000).kl_gap < 0.5
    with pytest.raises(ValueError, match=r"learning_rate=0\.1 beside an optimizer"):
        lang.fit(lang.model, *data, guide=guide, optimizer=optimizer, learning_rate=0.1)


def test_an_optimiser_goes_through_all_rounds_and_starts_after_the_affine_ones(monkeypatch):
    rounds = (fitting.Round(200, 64, 1.0), fitting.Round(100, 64, 1.0))
    made, rates = [], []

    def make(parameters):
        optimizer = torch.optim.SGD(parameters, lr=1e-3)
        made.append(optimizer)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.99)
        optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
        return optimizer, scheduler

    monkeypatch.setattr(guides, "FLOW_ROUNDS", rounds)
    monkeypatch.setattr(fitting, "_is_exact", lambda check: False)

    def bent(y):
        z = pyro.sample("z", pdist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", pdist.Normal(z[0] ** 2 + z[1], 0.1), obs=y)

    flow = functools.partial(fp.realnvp, num_flows=2, hidden_dims=4)
    settings = {"num_modes": 1, "num_restarts": 2, "max_seconds": math.inf}
    result = InPyro.fit(bent, torch.tensor(1.0), flow=flow, optimizer=make, **settings)
    num_affine = len(result.losses) - 300
    assert num_affine % 400 == 0
    assert len(made) == 2
    # In the first round each of the two restarts has its own, one goes on.
    np.testing.assert_allclose(sorted(rates, reverse=True)[::2][:100], 1e-3 * 0.99 ** np.arange(100))
    assert len(rates) == 500
    np.testing.assert_allclose(min(rates), 1e-3 * 0.99**299)


def test_callbacks_see_each_hundred_steps_and_can_stop(lang):
    seen = []

    def stop(step, loss):
        seen.append((step, loss))
        return step == 300

    guide = lang.auto_normal(lang.model)
    data = lang.array(X), lang.array(Y)
    result = lang.fit(lang.model, *data, guide=guide, num_steps=1000, callback=stop)
    assert result.stopped == "callback"
    assert [step for step, _ in seen] == [100, 200, 300]
    np.testing.assert_allclose([loss for _, loss in seen], result.losses.reshape(3, 100).mean(1), rtol=1e-6)
    result = lang.fit(lang.model, *data, guide=guide, num_steps=200, callback=lambda step, loss: seen.append(step))
    assert seen[-2:] == [100, 200]
    assert result.stopped == "rounds"


def test_the_bar_ends_at_its_total_and_news_are_logged(lang, monkeypatch, caplog):
    bars, make = [], fitting.progress_bar

    def kept(*args):
        bars.append(make(*args))
        return bars[-1]

    monkeypatch.setattr(fitting, "progress_bar", kept)
    monkeypatch.setattr(affine, "MAX_FIXED", 0)  # or there would be no steps
    fit = functools.partial(fnp.fit, jax.random.key(0)) if lang is InNumPyro else fpp.fit
    data = lang.array(X), lang.array(Y)
    with caplog.at_level(logging.INFO, logger="flowppl"):
        guide = lang.adapter.AutoFlow(lang.model, small, init="point")
        result = fit(lang.model, *data, guide=guide, num_steps=150, progress=True)
    assert bars[0].n == bars[0].total == len(result.losses)
    assert 0 < len(result.losses) < 4000
    assert "ELBO" in caplog.text
    fit(lang.model, *data, guide=lang.auto_normal(lang.model), num_steps=1000, progress=True, callback=lambda *_: True)
    assert bars[1].n == bars[1].total == 100


WRONG = [
    (
        lambda lang: {"num_step": 100},
        "fit: model takes no argument 'num_step', nor does fit; did you mean 'num_steps'\\? ",
    ),
    (
        lambda lang: {"zzz": 100},
        r"nor does fit\. fit's options are guide, flow, num_modes, loss, num_steps, .*the model's arguments",
    ),
    (lambda lang: {"guide": "iaf"}, "guide must be a guide, got 'iaf'; for a flow pass flow='iaf'"),
    (lambda lang: {"guide": fp.planar(2)}, "guide must be a guide, got a Planar; for a flow pass flow="),
    (lambda lang: {"guide": lang.adapter.AutoFlow}, r"guide is the class AutoFlow; pass AutoFlow\(model\)"),
    (lambda lang: {"loss": "elbo"}, r"loss must be an objective such as Trace_ELBO\(\), got 'elbo'"),
    (lambda lang: {"loss": lang.elbo}, r"loss must be an objective such as Trace_ELBO\(\), got the class Trace_ELBO"),
    (lambda lang: {"optimizer": 1e-3}, "optimizer is no optimiser of"),
    (lambda lang: {"callback": 3}, "callback must be a function of the step and the loss, got 3"),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_wrong_options_are_told(lang, make, message):
    with pytest.raises(TypeError, match=message):
        lang.fit(lang.model, lang.array(X), lang.array(Y), **make(lang))


def test_wrong_arguments_of_the_model_are_told(lang):
    def needs_two(a, b, *, c):
        raise AssertionError("must not be run")

    def takes_any(a, **kwargs):
        raise ZeroDivisionError

    guide = lang.auto_normal(lang.model)
    x = lang.array(X)
    ppl = numpyro.handlers if lang is InNumPyro else pyro.poutine
    for model in (needs_two, ppl.condition(ppl.block(needs_two), {}), functools.partial(needs_two)):
        with pytest.raises(
            TypeError, match="fit: the model's argument 'b' is missing; the model's arguments are a, b, c"
        ):
            lang.fit(model, x)
        with pytest.raises(TypeError, match="fit: the model's argument 'c' is missing"):
            lang.fit(model, x, x)
        with pytest.raises(TypeError, match="fit: the model takes 2 arguments by position, got 3"):
            lang.fit(model, x, x, x, c=x)
        with pytest.raises(TypeError, match="'a'"):
            lang.fit(model, x, x, a=x, c=x)
    with pytest.raises(ZeroDivisionError):
        lang.fit(takes_any, x, num_step=100)
    # By habit of SVI(model, guide).
    with pytest.raises(TypeError, match="the first argument of the model is a guide; pass it as guide="):
        lang.fit(lang.model, guide, x)
    with pytest.raises(TypeError, match=r"got 3; .* If the first of them is a guide, pass it as guide="):
        lang.fit(lang.model, lambda x, y: None, x, x)
    for wrong, what in ((None, "None"), (3, "3"), (fp.planar(2), "a Planar")):
        with pytest.raises(TypeError, match=f"fit: model must be a function with sample sites, got {what}; call fit"):
            lang.fit(wrong, x)
    with pytest.raises(TypeError, match=r"fit: model is a guide, of type Auto.*Normal; call fit"):
        lang.fit(guide, x)


IMPOSSIBLE = {
    "rate": (lambda r: pdist.Exponential(r), -1.0),
    "count": (lambda r: pdist.Poisson(r), 1.5),
    "soft label": (lambda r: pdist.Bernoulli(logits=r), 0.3),
    "known end": (lambda r: pdist.Pareto(torch.tensor(1.0), r), 0.5),
    "class": (lambda r: pdist.Categorical(logits=torch.stack([r, -r], -1)), 5.0),
    "vector": (lambda r: pdist.Normal(0.0, r).expand([2, 3]).to_event(1), None),
    "mapped": (lambda r: pdist.LogNormal(r, 1.0), -2.0),
}


def observing(make, y, mask=True):
    def model():
        rate = pyro.sample("rate", pdist.Gamma(torch.tensor(2.0), 1.0))
        with pyro.plate("data", 2), pyro.poutine.mask(mask=torch.as_tensor(mask)):
            pyro.sample("y", make(rate), obs=y)

    return model


@pytest.mark.parametrize("guide", [None, PyroAutoNormal])
@pytest.mark.parametrize("kind", [kind for kind in IMPOSSIBLE if kind != "vector"])
def test_data_that_their_distribution_cannot_have_are_refused(kind, guide):
    """As the host refuses them; without a check an exponential rate of negative data was called good."""
    make, value = IMPOSSIBLE[kind]
    model = observing(make, torch.tensor([1.0, value]))
    with pytest.raises(ValueError, match=rf"site 'y' observes data outside of the support of .* such as {value}"):
        fpp.fit(model, num_steps=20, progress=False, **({} if guide is None else {"guide": guide(model)}))


# Where the end is a latent the density has an edge.
@pytest.mark.filterwarnings("ignore:the model's log density is not finite at:RuntimeWarning")
def test_data_that_may_be_outside_are_let_through():
    y = torch.tensor([1.0, -1.0])
    options = {"flow": small, "num_steps": 20, "progress": False}
    for model in (
        observing(pdist.Exponential, y, mask=[True, False]),
        observing(lambda r: pdist.Exponential(r).mask(torch.tensor([True, False])), y),
        observing(lambda r: pdist.Exponential(r, validate_args=False), y),
        observing(IMPOSSIBLE["vector"][0], torch.ones(2, 3)),
        observing(pdist.Exponential, torch.tensor(1.0)),  # for both
        observing(pdist.Exponential, 1.0),
        observing(lambda r: pdist.Exponential(r).expand([0, 2]).to_event(2), torch.ones(0, 2)),
    ):
        assert math.isfinite(fpp.fit(model, **options).elbo)
    with pyro.validation_enabled(False):
        assert math.isfinite(fpp.fit(observing(IMPOSSIBLE["soft label"][0], y.clamp(0.3)), **options).elbo)
    fpp.fit(observing(lambda r: pdist.Uniform(torch.tensor(0.0), r), y.abs()), **options)


def test_data_that_were_left_out_are_told(lang):
    """The data are latents then, which are fitted in their prior; a model without data has none to leave out."""
    options = {"flow": small, "num_steps": 100}
    with pytest.warns(RuntimeWarning, match=r"what is fitted is its prior. .*: 'y'. If that holds the data") as told:
        lang.fit(lang.model, lang.array(X), **options)
    assert [each.filename for each in told] == [__file__]
    prior = lang.dist.Normal(lang.array(0.0), 1.0)
    lang.fit(lambda x=None: lang.ppl.sample("z", prior), None, **options)
    with pytest.warns(RuntimeWarning, match="'x'"):  # what is deterministic is no datum
        lang.fit(lambda x=None: lang.ppl.deterministic("w", lang.ppl.sample("z", prior)), **options)
    lang.fit(functools.partial(lang.model, lang.array(X), lang.array(Y)), **options)


def flat_line(lang):
    def model(y):
        z = lang.ppl.sample("z", lang.dist.ImproperUniform(lang.dist.constraints.real, (), ()))
        with lang.ppl.plate("data", len(Y)):
            lang.ppl.sample("y", lang.dist.Normal(z, 1.0), obs=y)

    return model


def test_guides_of_the_host_serve_improper_priors(lang):
    model, start = flat_line(lang), lang.init_to_value(values={"z": lang.array(3.0)})
    guide = lang.auto_normal(model, init_loc_fn=start)
    result = lang.fit(model, lang.array(Y), guide=guide, num_steps=100, num_particles=1, learning_rate=0.1)
    np.testing.assert_allclose(np.mean(result.sample(1000)["z"].tolist()), np.mean(Y), atol=0.5)


def test_a_guide_of_pyro_that_would_draw_from_an_improper_prior_is_told():
    model = flat_line(InPyro)
    for function in (fpp.fit, lambda model, y, guide: fpp.diagnose(model, guide, y)):
        with pytest.raises(ValueError, match=r"AutoNormal draws its start.*'z' is improper.*init_to_value"):
            function(model, torch.tensor(Y), guide=PyroAutoNormal(model))


def test_wrong_orders_are_told():
    key, x = jax.random.key(0), jnp.asarray(X)
    for call, what in [
        (lambda: fnp.fit(numpyro_line, x), "a function"),
        (lambda: fnp.fit(numpyro_line, key, x), "a function"),
        (lambda: fnp.fit(0, numpyro_line, x), "0"),
        (lambda: fnp.fit(None, numpyro_line, x), "None"),
        (lambda: fnp.diagnose(numpyro_line, numpyro_line, {}, x, x), "a function"),
    ]:
        with pytest.raises(TypeError, match=rf"rng_key must be a key such as jax.random.key\(0\), got {what}; call "):
            call()
    with pytest.raises(TypeError, match=r"one key such as jax.random.key\(0\), got an array of shape \(5,\)"):
        fnp.fit(x, numpyro_line, x)
    with pytest.raises(TypeError, match=r"got an array of shape \(3,\)"):
        fnp.fit(jax.random.split(key, 3), numpyro_line, x)
    assert fnp.fit(jax.random.PRNGKey(0), numpyro_line, x, x, flow=small, num_steps=1, max_seconds=0.01, progress=False)
    for model in (key, 0, None):
        with pytest.raises(TypeError, match=r"model must be .*Pyro takes no key, but pyro.set_rng_seed\(0\)"):
            fpp.fit(model, pyro_line, torch.as_tensor(X))


def test_a_model_of_numpyro_is_told_in_pyro():
    def model(x):
        numpyro.sample("z", ndist.Normal(0.0, 1.0))

    x = torch.as_tensor(X)
    guide = fpp.AutoFlow(model)
    for call in (
        lambda: fpp.fit(model, x),
        lambda: fpp.fit(model, x, guide=PyroAutoNormal(model)),
        lambda: guide.setup(x),
        lambda: fpp.sbc(model, x),
    ):
        with pytest.raises(
            TypeError, match=r"the model calls numpyro.sample, .* take fit and guides from flowppl.numpyro"
        ):
            call()


def test_a_model_of_pyro_is_told_in_numpyro():
    def model():
        pyro.sample("z", pdist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"no latent variables: .* take fit and guides from there: flowppl.pyro"):
        InNumPyro.fit(model)


def test_a_model_of_pyro_may_draw_from_numpyro():
    """Where it is given a key, or handlers of its own, as by a simulator."""

    def model(x, y):
        with numpyro.handlers.seed(rng_seed=0):
            shift = float(numpyro.sample("a", ndist.Normal(0.0, 1e-9)))
        shift += float(numpyro.sample("b", ndist.Normal(0.0, 1e-9), rng_key=jax.random.key(0)))
        pyro_line(x + shift, y)

    x, y = torch.as_tensor(X), torch.as_tensor(Y)
    assert math.isfinite(InPyro.fit(model, x, y, flow=small, num_steps=10).elbo)


def test_an_error_before_any_site_has_no_headings_of_an_empty_trace():
    def model(y):
        if len(y) > 1:
            pyro.sample("a", pdist.Normal(0.0, 1.0))
        pyro.sample("b", pdist.Normal(0.0, 1.0))
        if len(y) > 2:
            raise ValueError("too many")

    guide = fpp.AutoFlow(model, small)
    guide.setup(torch.ones(2))
    for call in (functools.partial(fpp.fit, guide=guide), lambda model, y: fpp.diagnose(model, guide, y)):
        with pytest.raises(ValueError, match=r"Make a new guide for another set of latents$"):
            call(model, torch.ones(1))
        with pytest.raises(ValueError, match=r"(?s)^too many\nTrace Shapes:.* b dist"):  # there it tells something
            call(model, torch.ones(3))


def test_wrong_calls_of_the_diagnostics_are_told(lang):
    x, guide = lang.array(X), lang.auto_normal(lang.model)
    for name in ("log_weights", "diagnose", "resample"):
        function = getattr(lang.adapter, name)
        with pytest.raises(TypeError, match=f"{name}: model is a guide, of type .*; call {name}\\("):
            lang.call(function, guide, lang.model, x)
        with pytest.raises(TypeError, match=f"{name}: guide must be a function with sample sites, got an? "):
            lang.call(function, lang.model, x, x)
        with pytest.raises(
            TypeError, match=f"takes no argument 'num_sample', nor does {name}; did you mean 'num_samples'"
        ):
            lang.call(function, lang.model, guide, x, num_sample=3)
        with pytest.raises(TypeError, match="the model's argument 'x' is missing"):
            lang.call(function, lang.model, guide)
        if lang is InNumPyro:
            with pytest.raises(TypeError, match=f"{name}: params must be a dict, .* got an? .*; call {name}"):
                function(jax.random.key(0), lang.model, guide, x, x)


def test_many_draws_in_numpyro_are_made_in_parts_and_are_the_same(monkeypatch):
    """A million draws at once take the memory of all that lies between them and the noise."""

    def model():
        numpyro.sample("scale", ndist.HalfNormal(np.ones(3)).to_event(1))

    guide = fnp.AutoFlow(model, init="point")
    fitted: Any = SimpleNamespace(guide=guide, params=guide.setup())
    whole = fnp.Fit._latents(fitted, jax.random.key(0), 80, (), {})["scale"]
    monkeypatch.setattr(sys.modules[fnp.Fit.__module__], "MANY_DRAWS", 32)
    parts = fnp.Fit._latents(fitted, jax.random.key(0), 80, (), {})["scale"]
    np.testing.assert_array_equal(parts, whole)
