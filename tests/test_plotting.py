"""Pictures: what they take, what they show, and that their densities are right up to the edges."""

import subprocess
import sys
import types
import warnings

import jax
import matplotlib
import numpy as np
import numpyro
import numpyro.distributions
import pyro
import pyro.distributions
import pytest
import torch
from scipy import stats

import flowppl.numpyro
import flowppl.pyro
from flowppl import plotting
from flowppl.autoencoders.training import VAEFit
from flowppl.diagnostics import Calibration, diagnose
from flowppl.inference.density import DensityFit
from flowppl.inference.fitting import History
from flowppl.inference.selection import select
from flowppl.inference.smoothing import Scale, density, joint_density, middles

matplotlib.use("Agg")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import arviz
    import xarray

pytestmark = pytest.mark.usefixtures("_closed")


@pytest.fixture
def _closed():
    yield
    matplotlib.pyplot.close("all")


@pytest.fixture
def draws(rng):
    return {"tau": rng.exponential(size=500), "theta": rng.normal(size=(500, 2, 4)), "count": rng.poisson(2.0, 500)}


def labels(figure):
    """The names of the coordinates, from left to right."""
    return [ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()]


def history(losses):
    check = diagnose(np.zeros(1000) - 4.2)
    return History(losses, (check,), check, "rounds")


def fit_in_pyro(losses=None):
    def model():
        pyro.sample("z", pyro.distributions.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = flowppl.pyro.AutoFlow(model, init_scale=1.0)
    return flowppl.pyro.Fit(guide, dict(guide.setup()), history(losses), model, ((), {}))


def fit_in_numpyro(losses=None):
    def model():
        numpyro.sample("z", numpyro.distributions.Normal(np.zeros(2), 1.0).to_event(1))

    guide = flowppl.numpyro.AutoFlow(model, init_scale=1.0)
    return flowppl.numpyro.Fit(guide, guide.setup(), history(losses), model, ((), {}), jax.random.key(0))


@pytest.mark.parametrize("fit", [fit_in_pyro, fit_in_numpyro])
def test_pairs_of_a_fit(fit, rng):
    for reference in (
        None,
        {"z": rng.normal(size=(300, 2))},
        types.SimpleNamespace(get_samples=lambda: {"z": torch.ones(9, 2)}),
    ):
        assert labels(plotting.pairs(fit(), reference=reference)) == ["z[0]", "z[1]"]


def test_pairs_of_what_arviz_has(rng):
    chains = {"tau": rng.exponential(size=(2, 100)), "theta": rng.normal(size=(2, 100, 3))}
    posterior = xarray.Dataset({name: (("chain", "draw", "at")[: x.ndim], x) for name, x in chains.items()})
    expected = {name: value.reshape(200, *value.shape[2:]) for name, value in chains.items()}
    found = [posterior, types.SimpleNamespace(posterior=posterior), posterior.transpose("at", "draw", "chain")]
    if hasattr(xarray, "DataTree"):
        found.append(xarray.DataTree.from_dict({"posterior": posterior}))
    if int(arviz.__version__.split(".")[0]) < 1:
        found.append(arviz.InferenceData(posterior=posterior))
    for each in found:
        draws = plotting._draws(each, "guide")
        assert {name: value.tolist() for name, value in draws.items()} == {k: v.tolist() for k, v in expected.items()}
    assert labels(plotting.pairs(found[-1])) == ["tau", "theta[0]", "theta[1]", "theta[2]"]
    with pytest.raises(TypeError, match=r"the reference draws must be a Fit, a dict of arrays, .* got list"):
        plotting.pairs(posterior, reference=[1, 2])


def test_which_coordinates(draws):
    names = [f"theta[{i},{j}]" for i in range(2) for j in range(4)]
    with pytest.warns(UserWarning, match=r"shows the first 6 of 10 coordinates; say which by var_names="):
        assert labels(plotting.pairs(draws)) == ["tau", *names[:5]]
    for chosen, filter_vars, expected in [
        ("tau", None, ["tau"]),
        (["theta[0,1]", "tau"], None, ["theta[0,1]", "tau"]),
        ("~theta", None, ["tau", "count"]),
        (["~theta", "~tau"], None, ["count"]),
        (["theta", "~theta[0,0]"], None, names[1:]),
        (["ta[1"], "like", names[4:]),
        (["~ta"], "like", ["count"]),
        ([r"^t.*,3"], "regex", [names[3], names[7]]),
    ]:
        assert select("pairs", ["tau", *names, "count"], chosen, filter_vars) == expected
    assert labels(plotting.pairs(draws, var_names=["tau", "count"])) == ["tau", "count"]
    for wrong in ("thet", "~thet", "theta[3,0]"):
        with pytest.raises(
            ValueError, match=r"among the sites \['tau', 'theta', 'count'\] .* got .*; did you mean 'theta.*'\?"
        ):
            plotting.pairs(draws, var_names=["tau", wrong])
    with pytest.raises(ValueError, match="nothing to show; var_names leave out all"):
        plotting.pairs(draws, var_names=["~tau", "~theta", "~count"])
    with pytest.raises(ValueError, match=r"up to 16 coordinates, .* mean 20; .* var_names=\['x\[0\]', 'x\[1\]'\]"):
        plotting.pairs({"x": np.zeros((5, 20))}, var_names="x")
    with pytest.raises(ValueError, match="filter_vars must be None, 'like' or 'regex', got 'glob'"):
        plotting.pairs(draws, filter_vars="glob")


def test_axes_of_ones_own(draws):
    mine, axes = matplotlib.pyplot.subplots(2, 2)
    assert plotting.pairs(draws, var_names=["theta[0,1]", "tau"], axes=axes) is mine
    assert [axes[1, 0].get_xlabel(), axes[1, 0].get_ylabel()] == ["theta[0,1]", "tau"]
    with pytest.raises(ValueError, match="needs 1 x 1 axes, got 4"):
        plotting.pairs(draws, var_names="tau", axes=axes)
    assert plotting.losses([1.0, 2.0], axes=axes[0, 0]) is axes[0, 0]


def test_whatever_the_draws(rng, tmp_path):
    """Constants, draws that are not finite, few draws, booleans, huge and tiny numbers: a picture and no warning."""
    odd = {
        "either": rng.uniform(size=300) < 0.3,
        "zero": np.zeros(300),
        "constant": np.full(300, 2.5),
        "bad": np.r_[np.full(100, np.inf), np.full(100, np.nan), np.ones(100)],
        "lost": np.full(300, np.nan),
        "huge": 1e30 * rng.normal(size=300),
        "tiny": 1e-30 * rng.normal(size=300),
        "far": 1e8 + rng.normal(size=300),
        "heavy": np.exp(20 * rng.normal(size=300)),
    }
    few = {name: value[:2] for name, value in odd.items()}
    for names in (list(odd)[:4], ["huge", "constant", "far"], ["tiny", "bad", "heavy"]):
        figure = plotting.pairs(odd, resampled=few, reference=odd, var_names=names)
        figure.savefig(tmp_path / "pairs.png", dpi=30)


@pytest.mark.parametrize("seed", range(3))
def test_densities_are_right_up_to_the_edges(seed):
    rng = np.random.default_rng(seed)
    for truth in (stats.norm(3, 0.5), stats.expon(), stats.gamma(2.0), stats.uniform(-1, 2), stats.beta(1, 3)):
        values = truth.rvs(4000, random_state=rng)
        scale = Scale([values])
        edges, heights = density(values, scale, 400)
        at = middles(edges)
        low, high = truth.support()
        shown = (at > scale.limits[0]) & (at < scale.limits[1])
        largest = truth.pdf(at).max()
        outside = heights[(at < low) | (at > high)]
        assert not outside.size or outside.max() < 5e-3 * largest  # nothing is smeared over the ends
        errors = np.abs(heights - truth.pdf(at))[shown]
        assert errors.max() < 0.4 * largest  # the ends have half of the draws to go by
        assert errors.mean() < 0.06 * largest
        assert abs(heights @ np.diff(edges) - 1) < 0.02
        for end, bound in zip(scale.limits, (low, high), strict=True):  # it ends where the support or the density does
            assert abs(end - bound) < 0.1 or truth.pdf(end) < 0.02 * largest


def test_modes_far_apart_are_not_smeared(rng):
    values = np.r_[rng.normal(-20, 1, 2000), rng.normal(20, 1, 2000)]
    edges, heights = density(values, Scale([values]), 400)
    assert heights.max() > 0.7 * 0.5 * stats.norm.pdf(0)
    assert heights[np.abs(middles(edges)) < 10].max() < 1e-6


def test_joint_densities(rng):
    x, y = rng.exponential(size=20_000), rng.normal(size=20_000)
    at_x, at_y, found = joint_density(x, y, (Scale([x]), Scale([y])), 100)
    truth = np.exp(-at_x) * stats.norm.pdf(at_y)[:, None]
    assert at_x[0] > 0
    assert np.abs(found - truth).max() < 0.2 * truth.max()
    count = rng.poisson(1.0, 20_000)
    at_x, at_k, found = joint_density(x, count, (Scale([x]), Scale([count])), 100)
    truth = np.exp(-at_x) * stats.poisson.pmf(np.round(at_k), 1.0)[:, None]
    assert np.abs(found - truth).max() < 0.25 * truth.max()


def test_integers_have_bars(rng):
    count = rng.poisson(2.0, 4000)
    edges, heights = density(count, Scale([count]), 400)
    np.testing.assert_allclose(heights, [np.mean(count == k) for k in middles(edges)], atol=1e-12)
    assert not Scale([count * 100]).is_integer  # too many for bars
    assert not Scale([count, count + 0.5]).is_integer


@pytest.mark.parametrize("fit", [fit_in_pyro, fit_in_numpyro])
def test_losses_of_a_fit(fit, rng, tmp_path):
    ax = plotting.losses(fit(np.r_[np.nan, 1e6, 4.2 + rng.normal(size=300)]))
    ax.figure.savefig(tmp_path / "one.png")
    assert [text.get_text() for text in ax.get_legend().get_texts()][-1].startswith("-ELBO = 4.20 ± ")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss (nats)")
    assert ax.get_ylim()[1] < 20


def test_losses_in_epochs(tmp_path):
    losses = np.r_[1e6, 2 + np.exp(-np.arange(24) / 4)]
    record = {"losses": losses, "best_epoch": 20, "stopped": "patience", "num_skipped": 0}
    for validation in (losses + 0.2, np.zeros(0)):
        for found in (
            DensityFit(**record, validation_losses=validation, flow=None),
            VAEFit(**record, validation_losses=validation, vae=None, params=None),
        ):
            ax = plotting.losses(found)
            ax.figure.savefig(tmp_path / "one.png")
            shown = [text.get_text() for text in ax.get_legend().get_texts()]
            assert shown == ["training", *(["held out"] if len(validation) else []), "kept: epoch 21"]
            assert ax.get_xlabel() == "epoch"
            assert ax.get_ylim()[0] < 2.01
            assert ax.get_ylim()[1] < 4


def test_losses_of_steps(rng, tmp_path):
    steps = np.r_[np.nan, 1e6, 5 + rng.normal(size=300)]
    for ax in (plotting.losses(steps, elbo=-5.0, elbo_se=0.1), plotting.losses([np.nan, np.inf])):
        ax.figure.savefig(tmp_path / "one.png")
    with pytest.raises(ValueError, match="the loss of one step or more"):
        plotting.losses([])


def test_tail_of_weights(rng, tmp_path):
    for weights in (np.r_[rng.normal(size=500), np.nan], np.zeros(500), 50 * rng.normal(size=500)):
        plotting.k_hat_tail(weights).figure.savefig(tmp_path / "one.png")
    with pytest.raises(ValueError, match="at least 25 finite weights, got 3"):
        plotting.k_hat_tail([1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="k_hat_tail takes log weights"):
        plotting.k_hat_tail(fit_in_numpyro())


def test_ranks(rng, tmp_path):
    drawn = rng.integers(0, 100, size=(100, 8))
    found = Calibration({"tau": drawn[:, 0] // 3} | {f"z[{i}]": drawn[:, i] for i in range(1, 8)}, num_draws=99)
    with pytest.warns(UserWarning, match="ranks shows the first 6 of 8 coordinates"):
        figure = plotting.ranks(found)
    figure.savefig(tmp_path / "six.png")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == [f"tau: {found.faults['tau']}", *(f"z[{i}]" for i in range(1, 6))]
    band, bars, line = figure.axes[0].patches
    np.testing.assert_array_equal(bars.get_data().values, np.bincount(drawn[:, 0] // 3 // 10, minlength=10))
    np.testing.assert_array_equal(line.get_data().values, np.full(10, 10.0))
    assert (band.get_data().baseline < 10).all()
    assert (band.get_data().values > 10).all()
    few = Calibration({"z": rng.integers(0, 20, size=15)}, num_draws=19)
    assert len(plotting.ranks(few).axes[0].patches[1].get_data().values) == 2
    _, axes = matplotlib.pyplot.subplots(1, 2)
    assert plotting.ranks(found, ["tau", "z[7]"], axes=axes) is axes[0].figure
    with pytest.raises(ValueError, match="shows 1 coordinates and needs as many axes, got 2"):
        plotting.ranks(found, "tau", axes=axes)
    with pytest.raises(ValueError, match=r"ranks: var_names must be among the sites \['tau', 'z'\]"):
        plotting.ranks(found, "mu")
    with pytest.raises(TypeError, match="takes what sbc found, a Calibration, got a dict"):
        plotting.ranks({"z": np.arange(9)})


def test_import_needs_neither_matplotlib_nor_arviz():
    code = (
        "import sys, flowppl.plotting; print([m for m in ('matplotlib', 'arviz', 'torch', 'jax') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_plots_name_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"flowppl\[plot\]"):
        plotting.losses([1.0])
