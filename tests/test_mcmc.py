"""Markov chains with a guide as their proposal: exact whatever the guide, and honest about their convergence."""

import math
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
import pyro
import pyro.distributions
import pytest
import torch
from numpyro.infer.autoguide import AutoDiagonalNormal
from pyro.infer.autoguide import AutoDiagonalNormal as PyroAutoDiagonalNormal
from scipy import stats

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.inference import convergence
from flowppl.inference.chains import Walker, WideNormal, plan, walk

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz

IS_NEW = arviz.__version__ >= "1"


def in_numpyro():
    def result(guide, model, *args, params=None):
        if params is None:
            params = guide.setup(*args) if hasattr(guide, "setup") else {}
        return fnp.Fit(guide, params, None, model, (args, {}), jax.random.key(1))

    return types.SimpleNamespace(
        name="numpyro",
        ppl=numpyro,
        dist=numpyro.distributions,
        array=jnp.asarray,
        adapter=fnp,
        result=result,
        reseeded=lambda seed: {"rng_key": jax.random.key(seed)},
        AutoDiagonalNormal=AutoDiagonalNormal,
        fit=lambda *args, **options: fnp.fit(jax.random.key(0), *args, progress=False, **options),
    )


def in_pyro():
    def result(guide, model, *args, params=None):
        if hasattr(guide, "setup"):
            guide.setup(*args)
        return fpp.Fit(guide, params or {}, None, model, (args, {}))

    def reseeded(seed):
        pyro.set_rng_seed(seed)
        return {}

    return types.SimpleNamespace(
        name="pyro",
        ppl=pyro,
        dist=pyro.distributions,
        array=torch.as_tensor,
        adapter=fpp,
        result=result,
        reseeded=reseeded,
        AutoDiagonalNormal=PyroAutoDiagonalNormal,
        fit=lambda *args, **options: fpp.fit(*args, progress=False, **options),
    )


LANGUAGES = {"numpyro": in_numpyro(), "pyro": in_pyro()}


@pytest.fixture(params=LANGUAGES)
def lang(request):
    return LANGUAGES[request.param]


def check_moments(chains, known):
    """Means and standard deviations within five standard errors, by the effective draws of each coordinate."""
    table = chains.summary()
    for label, (mean, sd, kurtosis) in known.items():
        row = table[label]
        assert row["ess"] > 100, label
        assert abs(row["mean"] - mean) < 5 * sd / math.sqrt(row["ess"]), label
        assert abs(row["sd"] / sd - 1) < 5 * math.sqrt((kurtosis - 1) / 4 / row["ess"]), label


# The chain itself, without a language.


class Table(Walker):
    """A guide and a posterior on a few points."""

    can_run_nuts = False

    def __init__(self, guide, posterior, rng):
        self.guide, self.log_ratio, self.rng = guide, np.log(posterior) - np.log(guide), rng

    def propose(self):
        places = self.rng.choice(len(self.guide), p=self.guide, size=1000)
        return {"place": places}, self.log_ratio[places]


def test_a_chain_leaves_its_posterior_as_it_is(rng):
    guide, posterior = np.array([0.6, 0.25, 0.1, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
    found = walk(Table(guide, posterior, rng), 4000, 5, None, 12, None, rng, False)
    assert found.points["place"].shape == (5, 4000)
    counts = np.bincount(found.points["place"].ravel()[::3], minlength=4)  # by then independent
    assert stats.chisquare(counts, posterior * counts.sum()).pvalue > 1e-4
    expected, _ = plan(np.repeat(np.log(posterior / guide), (10_000 * guide).round().astype(int)))
    assert abs(found.acceptance - expected) < 0.01
    assert found.num_proposals == 12
    assert not found.nuts


def test_a_single_proposal_is_accepted_in_detailed_balance(rng):
    """The flows between any two points are the same in both directions."""
    guide, posterior = np.array([0.6, 0.25, 0.1, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
    places = walk(Table(guide, posterior, rng), 20_000, 4, 50, 1, None, rng, False).points["place"]
    flows = np.zeros((4, 4))
    np.add.at(flows, (places[:, :-1], places[:, 1:]), 1)
    flows /= flows.sum()
    ratio = posterior / guide
    known = posterior[:, None] * guide * np.minimum(1, ratio / ratio[:, None])
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(flows[off], known[off], atol=0.004)


def test_proposals_for_each_draw_are_as_many_as_move_the_chains(rng):
    log_weights = rng.normal(scale=1.5, size=2000)
    acceptance, num = plan(log_weights)
    weights = np.exp(log_weights)
    leaves = np.minimum(1, weights / weights[:, None]).mean(axis=1)
    share = weights / weights.sum()
    assert acceptance == pytest.approx(share @ leaves, rel=1e-12)
    assert share @ (1 - leaves) ** num <= 0.1 < share @ (1 - leaves) ** (num - 1)
    assert plan(np.append(log_weights, -np.inf))[0] == pytest.approx(acceptance * 2000 / 2001, rel=1e-12)
    assert plan(np.array([0.0, -800.0])) == (0.5, 4)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("size", [101, 1000])
def test_convergence_is_that_of_arviz(correlation, size, rng):
    chains = rng.standard_t(3, size=(4, size, 2))
    for t in range(1, size):
        chains[:, t] += correlation * chains[:, t - 1]
    chains[0] += 0.2
    chains[:, :, 1] = chains[:, :, 1].round()  # with ties, as of a chain that stays
    for i, (ours, count) in enumerate(zip(convergence.r_hat(chains), convergence.effective_draws(chains), strict=True)):
        assert ours == pytest.approx(float(arviz.rhat(chains[..., i])), rel=1e-6)
        methods = {"method": "bulk"}, {"method": "tail", "prob": (0.05, 0.95)}
        theirs = min(float(arviz.ess(chains[..., i], **method)) for method in methods)
        assert count == pytest.approx(theirs, rel=0.1)


def test_convergence_of_chains_that_do_not_move():
    stuck = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 100, 1))
    assert convergence.r_hat(stuck)[0] > 100
    assert convergence.effective_draws(stuck)[0] < 10
    assert np.isnan(convergence.r_hat(np.ones((4, 100, 1)))[0])
    broken = np.where(np.arange(100)[None, :, None] == 50, np.nan, stuck)
    assert convergence.r_hat(broken)[0] == np.inf
    assert convergence.effective_draws(broken)[0] == 0


# In both languages.


def conjugate(lang):
    def model(y):
        mu = lang.ppl.sample("mu", lang.dist.Normal(0.0, 2.0))
        lang.ppl.deterministic("twice", 2 * mu)
        with lang.ppl.plate("day", len(y)):
            lang.ppl.sample("y", lang.dist.Normal(mu, 1.0), obs=y)

    return model


Y = np.array([1.0, 2.0, 0.0, 3.0, 1.5])
PRECISION = 1 / 4 + len(Y)
CONJUGATE = (Y.sum() / PRECISION, PRECISION**-0.5)


def wide(lang, model, *args, scale=1.0, **options):
    """A guide that is a normal of the wrong scale."""
    guide = lang.adapter.AutoFlow(model, fp.TriangularAffine, init="point", init_scale=scale, **options)
    return lang.result(guide, model, *args)


def test_draws_of_a_wide_guide_are_those_of_the_posterior(lang):
    result = wide(lang, conjugate(lang), lang.array(Y), scale=2.5)
    chains = result.mcmc(2000, nuts=False, progress=False, **lang.reseeded(3))
    assert chains.verdict == "good"
    assert chains.num_proposals > 5
    check_moments(chains, {"mu": (*CONJUGATE, 3)})
    z = (np.asarray(chains.draws["mu"]) - CONJUGATE[0]) / CONJUGATE[1]
    assert stats.kstest(z[:, ::10].ravel(), "norm").pvalue > 1e-4


def test_a_good_guide_needs_no_nuts(lang):
    result = lang.result(lang.adapter.AutoFlow(conjugate(lang), fp.TriangularAffine), conjugate(lang), lang.array(Y))
    chains = result.mcmc(500, progress=False)
    assert (chains.verdict, chains.nuts, chains.num_proposals) == ("good", False, 1)
    assert chains.acceptance > 0.999
    assert chains.ess > 1000
    check_moments(chains, {"mu": (*CONJUGATE, 3)})


def test_shapes_and_names_are_those_of_the_host(lang, capsys):
    chains = wide(lang, conjugate(lang), lang.array(Y)).mcmc(100, num_chains=3, nuts=False, progress=False)
    assert isinstance(chains, lang.adapter.Chains)
    flat, grouped = chains.get_samples(), chains.get_samples(group_by_chain=True)
    assert list(flat) == list(grouped) == ["mu", "twice"]
    assert type(flat["mu"]) is type(lang.array(Y))
    assert flat["mu"].shape == (300,)
    assert grouped["twice"].shape == (3, 100)
    np.testing.assert_array_equal(np.asarray(grouped["mu"]).ravel(), flat["mu"])
    np.testing.assert_allclose(flat["twice"], 2 * flat["mu"], rtol=1e-12)
    assert flat["mu"].dtype == lang.array(Y).dtype
    table = chains.summary()
    assert list(table) == ["mu"]
    assert list(table["mu"]) == ["mean", "sd", "5%", "50%", "95%", "ess", "r_hat"]
    assert table["mu"]["mean"] == pytest.approx(float(flat["mu"].mean()), rel=1e-9)
    assert (chains.num_chains, chains.num_samples) == (3, 100)
    chains.print_summary()
    assert capsys.readouterr().out.strip() == str(chains).strip()
    for text in ("R-hat", "effective draws", "3 chains of 100", "accepted", "NUTS", chains.advice):
        assert text in str(chains)
    assert repr(chains).startswith(f"Chains({chains.verdict!r}, 3 x 100, ")


def test_arviz_has_the_chains(lang):
    chains = wide(lang, conjugate(lang), lang.array(Y)).mcmc(60, nuts=False, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = chains.to_arviz(coords={"day": list("abcde")})
        ranks = arviz.rhat(data, var_names=["mu"]) if not IS_NEW else arviz.rhat(data.posterior.to_dataset()[["mu"]])
    assert data.posterior["mu"].dims == ("chain", "draw")
    np.testing.assert_array_equal(data.posterior["twice"], chains.draws["twice"])
    assert data.log_likelihood["y"].dims == data.posterior_predictive["y"].dims == ("chain", "draw", "day")
    known = stats.norm.logpdf(Y, np.asarray(chains.draws["mu"])[..., None], 1.0)
    np.testing.assert_allclose(data.log_likelihood["y"], known, rtol=1e-12)
    assert data.observed_data["y"].dims == ("day",)
    assert float(ranks["mu"]) == pytest.approx(chains.r_hat, rel=1e-6)


def banana(lang):
    def model():
        x = lang.ppl.sample("x", lang.dist.Normal(0.0, 1.0))
        lang.ppl.sample("y", lang.dist.Normal(x * x, 1.0))

    return model


slow_in_pyro = pytest.mark.parametrize(
    "lang", ["numpyro", pytest.param("pyro", marks=pytest.mark.stress)], indirect=True
)

# The centred y is x^2 - 1 and noise: its fourth moment is 60 + 6 * 2 + 3.
BANANA = {"x": (0.0, 1.0, 3.0), "y": (1.0, math.sqrt(3), 75 / 9)}


@pytest.mark.parametrize(
    ("lang", "is_one_transform"),
    [
        ("numpyro", True),
        ("numpyro", False),
        *(pytest.param("pyro", is_one, marks=pytest.mark.stress) for is_one in (True, False)),
    ],
    indirect=["lang"],
)
def test_nuts_mends_a_poor_guide(lang, is_one_transform, monkeypatch):
    if not is_one_transform:  # such as a mixture of flows
        parts = "_transforms" if lang.name == "numpyro" else "_parts_of_flow"
        monkeypatch.setattr(lang.adapter.AutoFlow, parts, lambda self, *args: [None, None])
        monkeypatch.setattr(lang.adapter.AutoFlow, "get_posterior", normal_posterior(lang))
    result = wide(lang, banana(lang), scale=1.0)
    num_samples, num_warmup = (1500, None) if lang.name == "numpyro" else (500, 150)
    chains = result.mcmc(num_samples, num_warmup=num_warmup, progress=False, **lang.reseeded(4))
    assert chains.nuts
    assert chains.verdict in ("good", "too few draws")
    check_moments(chains, BANANA)


def normal_posterior(lang):
    zeros = lang.array(np.zeros(2))
    return lambda self, *args: lang.dist.Normal(zeros, zeros + 1.0).to_event(1)


@slow_in_pyro
def test_nuts_sees_the_density_of_the_model(lang):
    """With plates, a mask, a positive site, a parameter of the model."""
    model = grouped(lang)
    y = np.array([0.3, -1.0, 2.0])
    params = {"scale": lang.array(np.array(0.7))}
    guide = lang.adapter.AutoFlow(model, fp.TriangularAffine)
    first = guide.setup(lang.array(y))
    result = lang.result(guide, model, lang.array(y), params=params | (first if lang.name == "numpyro" else {}))
    num_samples, num_warmup = (400, 150) if lang.name == "numpyro" else (250, 100)
    chains = result.mcmc(
        num_samples, num_warmup=num_warmup, nuts=True, num_proposals=1, progress=False, **lang.reseeded(6)
    )
    assert chains.nuts
    assert set(chains.summary()) == {"tau", "theta[0]", "theta[1]", "theta[2]"}
    tau = np.linspace(1e-3, 12, 20_001)
    density = stats.lognorm.pdf(tau, 0.4) * np.prod(
        [stats.norm.pdf(y[i], 0, np.hypot(tau, 0.7)) for i in (0, 2)], axis=0
    )
    known = {"tau": moments(tau, density), "theta[1]": moments(tau, density, np.zeros_like(tau), tau)}
    for i in (0, 2):
        precision = 1 / tau**2 + 1 / 0.49
        known[f"theta[{i}]"] = moments(tau, density, y[i] / 0.49 / precision, precision**-0.5)
    check_moments(chains, known)


def moments(grid, density, means=None, sds=0.0):
    """Mean, standard deviation and kurtosis of normals, or of the points themselves, over a density on a grid."""
    density = density / density.sum()
    means = grid if means is None else means
    mean = density @ means
    off = means - mean
    variance = density @ (off**2 + sds**2)
    return mean, math.sqrt(variance), density @ (off**4 + 6 * off**2 * sds**2 + 3 * sds**4) / variance**2


def grouped(lang):
    def model(y):
        scale = lang.ppl.param("scale", lang.array(np.array(2.0)))
        tau = lang.ppl.sample("tau", lang.dist.LogNormal(0.0, 0.4))  # without a neck, where chains stick
        with lang.ppl.plate("group", 3):
            theta = lang.ppl.sample("theta", lang.dist.Normal(0.0, tau))
            seen = lang.array(np.array([True, False, True]))
            lang.ppl.sample("y", lang.dist.Normal(theta, scale).mask(seen), obs=y)

    return model


def two_modes(lang):
    """A posterior with a share of .3 around -4 and .7 around 4, and a guide with half in each."""
    weights, places = lang.array(np.array([0.3, 0.7])), lang.array(np.array([-4.0, 4.0]))
    sds = lang.array(np.ones(2))
    mixture = lang.dist.MixtureSameFamily

    def part(weights, sds):
        base = lang.dist.Categorical(probs=weights) if lang.name == "numpyro" else lang.dist.Categorical(weights)
        return mixture(base, lang.dist.Normal(places, sds))

    def model():
        lang.ppl.sample("z", part(weights, sds))

    def guide():
        lang.ppl.sample("z", part(lang.array(np.array([0.5, 0.5])), 1.4 * sds))

    return model, guide


@pytest.mark.parametrize("seed", [1, 2])
def test_two_modes_keep_their_shares(lang, seed):
    model, guide = two_modes(lang)
    chains = lang.result(guide, model).mcmc(2000, progress=False, **lang.reseeded(seed))
    assert chains.verdict == "good"
    z = np.asarray(chains.draws["z"])
    assert abs((z > 0).mean() - 0.7) < 5 * math.sqrt(0.21 / chains.ess)
    check_moments(chains, {"z": (1.6, math.sqrt(1 + 16 * 0.84), 2.0)})


def test_chains_that_stick_are_told(lang):
    def model():
        lang.ppl.sample("z", lang.dist.Normal(lang.array(np.zeros(2)), 1.0).to_event(1))

    def guide():
        lang.ppl.sample("z", lang.dist.Normal(lang.array(np.full(2, 8.0)), 0.5).to_event(1))

    chains = lang.result(guide, model).mcmc(300, progress=False)
    assert chains.verdict == "do not trust"
    assert chains.r_hat > 1.1
    assert chains.acceptance < 0.05
    assert "train the guide longer" in chains.advice

    result = wide(lang, model, scale=30.0)
    chains = result.mcmc(100, nuts=False, num_proposals=1, num_warmup=0, progress=False)
    assert chains.verdict == "do not trust"
    assert "nuts=True" in chains.advice


def test_a_tail_that_is_never_proposed_is_told(lang):
    """Chains of a narrow guide agree with each other, for all of them miss the tails."""

    def model():
        lang.ppl.sample("z", lang.dist.StudentT(3.0, 0.0, 1.0))

    def guide():
        lang.ppl.sample("z", lang.dist.Normal(0.0, 1.0))

    chains = lang.result(guide, model).mcmc(1000, progress=False)
    assert chains.verdict != "good"


def test_tails_that_the_guide_misses_are_proposed_by_a_wider_one(lang):
    def model():
        lang.ppl.sample("z", lang.dist.StudentT(3.0, lang.array(np.zeros(1)), 1.0).to_event(1))

    result = wide(lang, model, scale=1.0)
    chains = result.mcmc(2000, nuts=False, progress=False, **lang.reseeded(2))
    assert chains.walk.k_hat < 0.5  # of normal proposals it is 1 and more
    assert chains.verdict == "good"
    z = np.asarray(chains.draws["z"]).ravel()
    for level in (0.005, 0.05, 0.5, 0.95, 0.995):
        error = math.sqrt(level * (1 - level) / 1000)
        assert abs(np.mean(z < stats.t.ppf(level, 3)) - level) < 5 * error


def test_wide_proposals_have_the_density_that_they_say(rng):
    grid = np.linspace(-60, 60, 24_001)[:, None]
    density = np.exp(WideNormal(1).log_prob(grid))
    assert density.sum() * 0.005 == pytest.approx(1, abs=1e-6)
    draws = WideNormal(1).sample(40_000, rng)[:, 0]
    assert stats.kstest(draws, lambda x: np.interp(x, grid[:, 0], np.cumsum(density) * 0.005)).pvalue > 1e-3


def test_few_draws_are_told(lang):
    chains = wide(lang, conjugate(lang), lang.array(Y), scale=0.5).mcmc(50, num_chains=2, nuts=False, progress=False)
    assert chains.verdict in ("too few draws", "do not trust")
    assert "raise num_samples" in chains.advice


def test_guides_of_the_host(lang):
    model = conjugate(lang)
    result = lang.fit(model, lang.array(Y), guide=lang.AutoDiagonalNormal(model, init_scale=0.5), num_steps=1000)
    chains = result.mcmc(1000, progress=False)
    check_moments(chains, {"mu": (*CONJUGATE, 3)})
    assert set(chains.draws) == {"mu", "twice"}
    with pytest.raises(ValueError, match="nuts=True needs an AutoFlow"):
        result.mcmc(100, nuts=True)


@slow_in_pyro
def test_local_guides(lang):
    def model(x):
        mu = lang.ppl.sample("mu", lang.dist.Normal(0.0, 1.0))
        with lang.ppl.plate("data", len(x)):
            z = lang.ppl.sample("z", lang.dist.Normal(mu, 1.0))
            lang.ppl.sample("x", lang.dist.Normal(z, 1.0), obs=x)

    data = np.array([0.5, 1.0])
    guide = lang.adapter.AutoLocalFlow(model, lambda x: x, plates=("data",), init_scale=0.7)
    result = lang.fit(model, lang.array(data), guide=guide, num_steps=400)
    chains = result.mcmc(1000, progress=False)
    precision = 1 + 2 / 2
    check_moments(chains, {"mu": (data.sum() / 2 / precision, precision**-0.5, 3)})
    assert chains.draws["z"].shape == (4, 1000, 2)


@pytest.mark.parametrize(
    ("lang", "of_host"),
    [
        ("numpyro", False),
        ("numpyro", True),
        ("pyro", False),
        pytest.param("pyro", True, marks=pytest.mark.stress),  # one draw after the other
    ],
    indirect=["lang"],
)
def test_sites_that_are_summed_out(lang, of_host):
    def model(y):
        mu = lang.ppl.sample("mu", lang.dist.Normal(0.0, 1.0))
        with lang.ppl.plate("data", len(y)):
            k = lang.ppl.sample("k", lang.dist.Bernoulli(lang.array(np.array(0.3))), infer={"enumerate": "parallel"})
            lang.ppl.sample("y", lang.dist.Normal(mu + 3.0 * k, 1.0), obs=y)

    def guide(y):
        lang.ppl.sample("mu", lang.dist.Normal(0.3, 0.8))

    data = np.array([0.3, 2.9, 1.0])
    result = lang.result(guide, model, lang.array(data)) if of_host else wide(lang, model, lang.array(data), scale=0.8)
    is_slow = of_host and lang.name == "pyro"  # one by one
    num_samples, num_warmup = (150, 50) if is_slow else (1500, None)
    options = {"nuts": None if of_host else False, "progress": False}
    chains = result.mcmc(num_samples, num_warmup=num_warmup, **options, **lang.reseeded(7))
    assert set(chains.draws) == {"mu"}
    grid = np.linspace(-6, 6, 4001)
    parts = [0.7 * stats.norm.pdf(data[:, None], grid), 0.3 * stats.norm.pdf(data[:, None], grid + 3)]
    check_moments(chains, {"mu": moments(grid, stats.norm.pdf(grid) * np.prod(sum(parts), axis=0))})


def test_saved_fits_go_on(lang, tmp_path):
    model = conjugate(lang)
    args = (lang.array(Y),)
    result = lang.fit(model, *args, flow=fp.TriangularAffine, num_steps=100)
    fp.save(tmp_path / "fit", result)
    loaded = fp.load(tmp_path / "fit", backend=lang.name, model=model, args=args)
    one, other = (each.mcmc(100, nuts=False, progress=False, **lang.reseeded(8)) for each in (result, loaded))
    np.testing.assert_allclose(one.draws["mu"], other.draws["mu"], rtol=1e-6)
    with pytest.raises(RuntimeError, match="needs the model"):
        fp.load(tmp_path / "fit", backend=lang.name).mcmc()
    with pytest.raises(TypeError, match="mcmc: the model's argument 'y' is missing"):
        fp.load(tmp_path / "fit", backend=lang.name, model=model).mcmc()


def test_the_same_seed_gives_the_same_draws(lang):
    result = wide(lang, banana(lang), scale=0.5)
    one, again, other = (
        np.asarray(result.mcmc(20, num_warmup=10, nuts=True, progress=False, **lang.reseeded(seed)).draws["x"])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_batches_of_the_data_are_refused(lang):
    def model():
        mu = lang.ppl.sample("mu", lang.dist.Normal(0.0, 1.0))
        with lang.ppl.plate("data", 10, subsample_size=5):
            lang.ppl.sample("y", lang.dist.Normal(mu, 1.0), obs=lang.array(np.ones(5)))

    with pytest.raises(ValueError, match="sees 5 of the 10 members of the plate 'data'"):
        wide(lang, model).mcmc(progress=False)


def test_what_cannot_be_meant_is_refused(lang):
    model = conjugate(lang)
    result = wide(lang, model, lang.array(Y))
    for options in ({"num_samples": 3}, {"num_chains": 0}, {"num_warmup": -1}, {"num_proposals": 0}, {"chunk_size": 0}):
        with pytest.raises(ValueError, match=f"mcmc: {next(iter(options))} must be an integer of at least"):
            result.mcmc(**options)
    with pytest.raises(TypeError, match="num_samples must be an integer"):
        result.mcmc(lang.array(Y))
    with pytest.raises(TypeError, match="nuts must be True, False or None"):
        result.mcmc(nuts="yes")

    def far(y):
        lang.ppl.sample("mu", lang.dist.Normal(1e200, 1e-3))

    with pytest.raises(ValueError, match="none of 4000 draws of the guide has a finite weight"):
        lang.result(far, model, lang.array(Y)).mcmc(progress=False)
    with pytest.raises(ValueError, match="does not draw these latent sites of the model: mu"):
        lang.result(lambda y: None, model, lang.array(Y)).mcmc(progress=False)
