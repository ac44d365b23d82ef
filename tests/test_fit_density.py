"""Maximum likelihood fits: exact answers where there are some, and what both languages promise."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from sklearn.datasets import make_moons

import flowppl as fp
import flowppl.numpyro.density as numpyro_density
import flowppl.pyro.density as pyro_density
from flowppl import numpyro as fnp
from flowppl import pyro as fpp
from flowppl._arrays.namespace import namespace
from flowppl.inference.density import split_rows
from flowppl.serialization import read_file, write_file
from flowppl.training import fits
from flowppl.training.checkpoints import ENTRIES, read_checkpoint


def fit_pyro(bijection, x, context=None, base=None, seed=0, **options):
    pyro.set_rng_seed(seed)
    flow = bijection if isinstance(bijection, fpp.Flow) else fpp.Flow(bijection, base)
    return pyro_density.fit_density(flow, x, context, **({"progress": False} | options))


def fit_numpyro(bijection, x, context=None, base=None, seed=0, **options):
    flow_key, key = jax.random.split(jax.random.key(seed))
    flow = bijection if isinstance(bijection, fnp.Flow) else fnp.Flow.init(flow_key, bijection, base)
    return numpyro_density.fit_density(key, flow, x, context, **({"progress": False} | options))


X = np.arange(12.0).reshape(6, 2)
PLAIN, CONDITIONAL = fp.ElementwiseAffine(2), fp.Conditional(fp.ElementwiseAffine(2), context_dim=3)

FITS = {"pyro": fit_pyro, "numpyro": fit_numpyro}
both = pytest.mark.parametrize("fit", FITS.values(), ids=FITS)


def log_prob(flow, x, context=None):
    """The log density of each row, as a NumPy array."""
    if isinstance(flow, fnp.Flow):
        return np.asarray(flow(context).log_prob(x))
    context = None if context is None else torch.as_tensor(context)
    return flow(context).log_prob(torch.as_tensor(x)).detach().numpy()


def gaussian_log_prob(x, mean, covariance):
    residual = x - mean
    squared = np.einsum("ni,ij,nj->n", residual, np.linalg.inv(covariance), residual)
    return -0.5 * (squared + np.linalg.slogdet(2 * np.pi * covariance)[1])


def correlated(rng, n=400):
    return rng.normal(size=(n, 2)) @ np.array([[1.0, 0.6], [0.0, 0.5]]) + np.array([0.7, -0.4])


@dataclasses.dataclass(frozen=True)
class FirstBatch(fp.Bijection):
    """An ActNorm: y = loc + exp(log_scale) * x, set so that the first data have mean 0 and standard deviation 1."""

    x_shape: tuple = (2,)
    calls = []  # noqa: RUF012  the shapes of what init_from saw

    def parameters(self):
        return {"loc": fp.Parameter(self.x_shape), "log_scale": fp.Parameter(self.x_shape)}

    def forward(self, params, x, context=None):
        raise NotImplementedError

    def inverse(self, params, y, context=None):
        xp = namespace(y)
        x = (y - params["loc"]) * xp.exp(-params["log_scale"])
        log_det = xp.zeros_like(x) - params["log_scale"]
        return x, xp.sum(log_det, axis=tuple(range(-len(self.x_shape), 0)))

    def init_from(self, params, y, context=None):
        xp = namespace(y)
        self.calls.append(tuple(y.shape))
        mean = xp.mean(y, axis=0)
        return {"loc": mean, "log_scale": xp.log(xp.mean((y - mean) ** 2, axis=0)) / 2}


@dataclasses.dataclass(frozen=True)
class Fragile(fp.Bijection):
    """A shift whose log determinant is NaN for events that start below -9, and for all once it exceeds ``limit``."""

    limit: float = np.inf
    dim: int = 1

    def parameters(self):
        return {"shift": fp.Parameter((self.dim,))}

    def forward(self, params, x, context=None):
        raise NotImplementedError

    def inverse(self, params, y, context=None):
        xp = namespace(y)
        bad = (y[..., 0] < -9) | (xp.abs(params["shift"][0]) > self.limit)
        return y - params["shift"], xp.where(bad, xp.asarray(np.nan, dtype=y.dtype), xp.zeros_like(y[..., 0]))


@both
def test_an_affine_flow_reaches_the_gaussian_maximum_likelihood(fit, rng):
    x = correlated(rng)
    options = {"validation": None, "batch_size": 400, "learning_rate": 0.1, "num_epochs": 400}
    result = fit(fp.Chain([PLAIN]), x, **options)
    exact = gaussian_log_prob(x, x.mean(axis=0), np.diag(x.var(axis=0)))
    np.testing.assert_allclose(log_prob(result.flow, x), exact, atol=1e-6)
    assert (result.best_epoch, result.stopped, result.num_skipped) == (399, "num_epochs", 0)
    assert result.validation_losses.shape == (0,)
    assert result.losses.shape == (400,)


@both
def test_a_conditional_flow_learns_a_regression(fit, rng):
    context = rng.normal(size=(300, 1))
    x = 1.5 * context - 0.7 + 0.3 * rng.normal(size=(300, 1))
    bijection = fp.Conditional(fp.ElementwiseAffine(1), context_dim=1)
    options = {"validation": None, "batch_size": 300, "learning_rate": 0.05, "num_epochs": 300}
    flow = fit(bijection, x, context, **options).flow
    # The noise of the fit may depend on the context too, so that the exact answer is near that of least squares only.
    design = np.hstack([context, np.ones_like(context)])
    exact, noise, *_ = np.linalg.lstsq(design, x, rcond=None)
    loss = 0.5 * np.log(2 * np.pi * np.e * noise[0] / 300)
    assert -0.03 < -log_prob(flow, x, context).mean() - loss < 0
    grid = np.linspace(-1.0, 1.0, 3)[:, None]
    zeros = np.zeros((3, 1))
    if isinstance(flow, fnp.Flow):
        means = flow.transform.condition(grid)(zeros)
    else:
        means = flow.transform.condition(torch.as_tensor(grid))(torch.as_tensor(zeros)).detach()
    np.testing.assert_allclose(means, exact[0] * grid + exact[1], atol=0.05)


@both
def test_early_stopping_returns_the_best_weights(fit, rng):
    # On its way from 0 to the mean of x the flow passes that of the held-out data.
    x, x_val = 1.0 + rng.normal(size=(40, 2)), 0.5 + 0.5 * rng.normal(size=(20, 2))
    options = {"validation": x_val, "learning_rate": 0.02, "patience": 5, "batch_size": 16, "num_epochs": 200}
    result = fit(PLAIN, x, **options)
    assert result.stopped == "patience"
    assert len(result.losses) == len(result.validation_losses) == result.best_epoch + 6
    assert result.best_epoch == result.validation_losses.argmin()
    np.testing.assert_allclose(-log_prob(result.flow, x_val).mean(), result.validation_losses.min(), rtol=1e-12)
    assert "stopped by 'patience'" in repr(result)
    assert f"validation_loss={result.validation_losses.min():.4f}" in repr(result)


@both
def test_losses_are_means_over_all_rows(fit, rng):
    x, context = rng.normal(size=(10, 1)), rng.normal(size=(10, 1))
    bijection = fp.Conditional(fp.ElementwiseAffine(1), context_dim=1)
    options = {"learning_rate": 1e-9, "num_epochs": 1, "batch_size": 4}  # the weights hardly move
    exact = -gaussian_log_prob(x, 0.0, np.eye(1)).mean()
    # The last of the batches holds two rows, and counts as two.
    result = fit(bijection, x, context, validation=(x, context), **options)
    np.testing.assert_allclose([result.losses, result.validation_losses], exact, rtol=1e-6)


@pytest.mark.parametrize(
    ("fraction", "size"), [(None, 0), (0, 0), (0.01, 1), (0.3, 3), (np.float32(0.5), 5), (0.99, 9)]
)
def test_a_fraction_of_the_rows_is_held_out(fraction, size, rng):
    x, context = (np.arange(10.0)[:, None].repeat(size, axis=1) for size in (2, 3))
    train, held_out = split_rows(CONDITIONAL, x, context, fraction, np.asarray, rng)
    parts = [train] if held_out is None else [train, held_out]
    assert [len(x) for x, _ in parts] == ([10 - size, size] if size else [10])
    assert all(np.array_equal(x[:, 0], context[:, 0]) for x, context in parts)
    assert sorted(np.concatenate([x[:, 0] for x, _ in parts])) == list(range(10))


@both
def test_the_last_smaller_batch_is_trained_on(fit):
    # With batches of 2, three rows of which one is far off: only where every row counts is the mean of all reached.
    x = np.array([[0.0], [1.0], [5.0]])
    options = {"validation": None, "batch_size": 2, "learning_rate": 0.1, "num_epochs": 200, "clip_norm": None}
    flow = fit(fp.ElementwiseAffine(1), x, **options).flow
    exact = gaussian_log_prob(x, 2.0, np.cov(x.T, bias=True).reshape(1, 1))
    np.testing.assert_allclose(log_prob(flow, x), exact, atol=0.1)


def test_both_languages_reach_the_same_loss(monkeypatch):
    x = make_moons(330, noise=0.1, random_state=0)[0]
    theirs = fnp.Flow.init(jax.random.key(0), fp.maf(2, num_flows=1, hidden_dims=16))
    ours = fpp.Flow(theirs.bijection)
    ours.transform.weights.assign(jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf)), theirs.params))
    generator = np.random.default_rng  # the same rows in the same order
    monkeypatch.setattr(np.random, "default_rng", lambda seed: generator(0))
    options = {"num_epochs": 20, "learning_rate": 1e-2, "batch_size": 64, "clip_norm": None}
    first, second = fit_pyro(ours, x, **options), fit_numpyro(theirs, x, **options)
    np.testing.assert_allclose(first.losses, second.losses, rtol=1e-8)
    np.testing.assert_allclose(first.validation_losses, second.validation_losses, rtol=1e-8)
    assert first.losses[-1] < first.losses[0] - 0.2


@both
def test_a_fit_is_determined_by_its_seed(fit, rng):
    x = correlated(rng, 40)
    first, again, other = (fit(PLAIN, x, num_epochs=3, batch_size=16, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.losses, again.losses)
    assert not np.array_equal(first.losses, other.losses)


@both
def test_layers_are_set_from_the_first_data(fit, rng):
    x = rng.normal(size=(5000, 2)) * [3.0, 0.01] + [100.0, -5.0]
    options = {"learning_rate": 1e-9, "num_epochs": 1, "validation": None, "batch_size": 5000}
    FirstBatch.calls.clear()
    flow = fit(fp.Chain([FirstBatch()]), x, **options).flow
    assert FirstBatch.calls == [(4096, 2)]
    exact = gaussian_log_prob(x, x.mean(axis=0), np.diag(x.var(axis=0))).mean()
    np.testing.assert_allclose(log_prob(flow, x).mean(), exact, atol=0.01)
    FirstBatch.calls.clear()
    again = fit(flow, 2 * x, init=False, **options).flow
    assert FirstBatch.calls == []
    np.testing.assert_allclose(log_prob(again, x).mean(), exact, atol=0.01)


@both
def test_data_take_the_dtype_of_the_flow(fit, rng):
    x = rng.normal(size=(20, 2))
    if fit is fit_pyro:
        flow = fpp.Flow(PLAIN).float()
        given = [x, x.tolist(), torch.as_tensor(x), jnp.asarray(x)]
    else:
        flow = fnp.Flow.init(jax.random.key(0), PLAIN)
        flow = jax.tree.map(lambda leaf: leaf.astype("float32"), flow)
        given = [x, x.tolist(), jnp.asarray(x)]
    for data in given:
        result = fit(flow, data, num_epochs=1)
        assert {str(leaf.dtype).removeprefix("torch.") for leaf in jax.tree.leaves(weights(result.flow))} == {"float32"}
    with pytest.raises(ValueError, match="1 of the 20 rows of x are not finite"), np.errstate(over="ignore"):
        fit(flow, np.where(np.arange(40).reshape(20, 2) == 3, 1e300, x))


def weights(flow):
    return flow.params if isinstance(flow, fnp.Flow) else dict(flow.transform.named_parameters())


@both
def test_events_of_any_rank(fit, rng):
    x = rng.normal(size=(50, 2, 3)) * np.arange(1.0, 7.0).reshape(2, 3)
    flow = fit(FirstBatch((2, 3)), x, validation=None, batch_size=50, learning_rate=1e-9, num_epochs=1).flow
    exact = gaussian_log_prob(x.reshape(50, 6), x.mean(axis=0).ravel(), np.diag(x.var(axis=0).ravel()))
    np.testing.assert_allclose(log_prob(flow, x), exact, rtol=1e-6)


@both
def test_a_fixed_base_does_not_move(fit, rng):
    x = 1.0 + rng.normal(size=(40, 2))
    dist, zeros = (pdist, torch.zeros(2)) if fit is fit_pyro else (ndist, jnp.zeros(2))
    base = dist.Normal(zeros, zeros + 2.0).to_event(1)
    flow = fit(fp.ElementwiseAffine(2), x, base=base, num_epochs=3).flow
    np.testing.assert_array_equal(flow.base.base_dist.loc, np.zeros(2))
    np.testing.assert_array_equal(flow.base.base_dist.scale, np.full(2, 2.0))


class LearnedBase(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(1))

    def forward(self):
        return pdist.Normal(self.loc, 1.0).to_event(1)


def test_pyro_trains_the_module_in_place_with_its_base_and_leaves_frozen_weights(rng):
    x = 3.0 + rng.normal(size=(40, 1))
    flow = fpp.Flow(FirstBatch((1,)), LearnedBase())
    flow.transform.requires_grad_(False)
    options = {"validation": None, "learning_rate": 0.1, "num_epochs": 500, "batch_size": 40}
    assert fit_pyro(flow, x, **options).flow is flow
    np.testing.assert_allclose(flow.base.loc.item(), x.mean(), rtol=1e-6)
    assert not any(p.any() for p in flow.transform.parameters())
    assert all(p.grad is None for p in flow.parameters())
    with pytest.raises(ValueError, match="no parameters that require a gradient"):
        fit_pyro(flow.freeze(), x)


def test_numpyro_leaves_the_given_flow_alone_and_compiles_once(rng):
    flow = fnp.Flow.init(jax.random.key(0), PLAIN)
    before, sizes = jax.tree.map(np.asarray, flow.params), []
    for learning_rate in (0.1, 0.2):
        result = fit_numpyro(flow, rng.normal(size=(40, 2)), num_epochs=3, batch_size=16, learning_rate=learning_rate)
        assert not jnp.array_equal(result.flow.params["loc"], flow.params["loc"])
        sizes.append(numpyro_density._run_epoch._cache_size())
    assert sizes[0] == sizes[1]
    jax.tree.map(np.testing.assert_array_equal, before, flow.params)


@both
def test_steps_that_are_not_finite_are_skipped_and_counted(fit, rng):
    x = rng.normal(size=(8, 1))
    x[3] = -10.0
    result = fit(Fragile(), x, validation=None, batch_size=1, num_epochs=4, learning_rate=0.01)
    assert result.num_skipped == 4
    assert np.isfinite(result.losses).all()
    assert np.isfinite(log_prob(result.flow, x[:3])).all()


@both
def test_a_fit_that_cannot_go_on_says_what_to_do(fit, rng):
    x = 1.0 + rng.normal(size=(8, 1))
    remedy = "use a smaller learning_rate .* or scale the data"
    with pytest.raises(RuntimeError, match=f"the loss of every step was not finite; {remedy}"):
        fit(Fragile(limit=-100.0), x, validation=None, batch_size=8, num_epochs=5)
    with pytest.raises(RuntimeError, match=f"validation loss of every epoch was not finite; {remedy}"):
        fit(Fragile(), x, validation=np.full((2, 1), -10.0), num_epochs=5)


@both
def test_an_interruption_returns_what_was_reached(fit, rng, monkeypatch):
    x = rng.normal(size=(40, 2))
    module = pyro_density if fit is fit_pyro else numpyro_density
    name = "_mean_loss" if fit is fit_pyro else "_run_epoch"
    original, calls = getattr(module, name), []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(module, name, interrupted)
    for stop in (3, 1):
        calls.clear()
        result = fit(PLAIN, x, num_epochs=10, batch_size=16)
        assert result.stopped == "interrupted"
        assert len(result.losses) == len(result.validation_losses) == stop - 1
        if stop == 3:
            assert result.best_epoch == result.validation_losses.argmin()
        else:
            np.testing.assert_allclose(log_prob(result.flow, x), gaussian_log_prob(x, 0.0, np.eye(2)))
            assert repr(result) == "DensityFit(0 epochs, stopped by 'interrupted', best_epoch=-1, num_skipped=0)"


@both
def test_progress(fit, rng, capsys):
    x = rng.normal(size=(40, 2))
    fit(PLAIN, x, num_epochs=2, batch_size=16)
    assert capsys.readouterr() == ("", "")
    fit(PLAIN, x, num_epochs=2, batch_size=16, progress=True)
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("fit_density", "2/2", "loss=", "validation="))


@both
@pytest.mark.parametrize(
    ("bijection", "x", "context", "options", "message"),
    [
        (PLAIN, np.zeros((6, 3)), None, {}, r"x must have the shape \(n, 2\), got \(6, 3\)"),
        (PLAIN, np.zeros(2), None, {}, r"x must have the shape \(n, 2\), got \(2,\)"),
        (PLAIN, np.zeros((4, 6, 2)), None, {}, r"x must have the shape \(n, 2\), got \(4, 6, 2\)"),
        (PLAIN, np.zeros((1, 2)), None, {}, "at least 2 rows, got 1"),
        (PLAIN, np.array([[np.nan, np.inf], [0, 0], [0, np.inf]]), None, {}, "2 of the 3 rows of x are not finite"),
        (PLAIN, X, np.zeros((6, 3)), {}, "unconditional"),
        (CONDITIONAL, X, None, {}, "needs a context: .* size 3"),
        (CONDITIONAL, X, np.zeros((6, 2)), {}, r"last axis has size 3, got shape \(6, 2\)"),
        (CONDITIONAL, X, np.zeros((5, 3)), {}, r"one row for each of x, .* \(6, 3\), got \(5, 3\)"),
        (CONDITIONAL, X, np.full((6, 3), np.nan), {}, "6 of the 6 rows of context are not finite"),
        (PLAIN, X, None, {"validation": 1.0}, "a fraction, at least 0 and below 1, or .*, got 1.0"),
        (PLAIN, X, None, {"validation": -0.1}, "a fraction, at least 0 and below 1"),
        (PLAIN, X, None, {"validation": np.zeros((4, 3))}, r"x_val must have the shape \(n, 2\), got \(4, 3\)"),
        (PLAIN, X, None, {"validation": np.zeros((0, 2))}, "x_val must have at least 1 rows, got 0"),
        (PLAIN, X, None, {"validation": np.full((1, 2), np.nan)}, "1 of the 1 rows of x_val are not finite"),
        (CONDITIONAL, X, np.zeros((6, 3)), {"validation": X}, "needs a context"),
        (CONDITIONAL, X, np.zeros((6, 3)), {"validation": (X, np.zeros((2, 3)))}, "context_val must have one row"),
        (PLAIN, X, None, {"validation": (X,)}, r"must be .*\(x_val, context_val\), got a tuple of 1"),
        (PLAIN, X, None, {"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        (PLAIN, X, None, {"num_epochs": 0}, "num_epochs must be an integer of at least 1, got 0"),
        (PLAIN, X, None, {"patience": 0}, "patience must be an integer of at least 1, got 0"),
        (PLAIN, X, None, {"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        (PLAIN, X, None, {"clip_norm": np.inf}, "clip_norm must be positive and finite, got inf"),
        (fp.Permute((1, 0)), X, None, {}, "nothing can be trained"),
    ],
)
def test_bad_input_is_refused_before_training(fit, bijection, x, context, options, message):
    with pytest.raises(ValueError, match=message):
        fit(bijection, x, context, **options)


@both
@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.array([["a", "b"]] * 6), {}, "x must be rows of numbers, .* got ndarray .could not convert .*'a'"),
        (np.array([["a", 1.0]] * 6, dtype=object), {}, "x must be rows of numbers, .* got ndarray"),
        ([["a", "b"]] * 6, {}, "x must be rows of numbers, .* got list"),
        (X, {"validation": np.array([["a", "b"]] * 6)}, "x_val must be rows of numbers, .* got ndarray"),
        (X, {"augment": 3}, "augment must be a function of (a key and )?x, got 3"),
        (X, {"augment": "flip"}, "augment must be a function of (a key and )?x, got 'flip'"),
    ],
)
def test_what_is_no_data_and_no_function_is_told(fit, x, options, message):
    with pytest.raises(TypeError, match=f"fit_density: {message}"):
        fit(PLAIN, x, **options)


@both
def test_an_array_of_objects_that_are_numbers_is_data(fit):
    same = [fit(PLAIN, x, num_epochs=2).losses for x in (X, X.astype(object))]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize("module", [pyro_density, numpyro_density])
def test_only_a_flow_can_be_fitted(module):
    key = () if module is pyro_density else (jax.random.key(0),)
    adapter = fpp if module is pyro_density else fnp
    for flow, what in (
        (fp.maf, "function"),
        ("maf", r"str; write flowppl.make_flow\('maf', dim\)"),
        (None, "NoneType"),
    ):
        with pytest.raises(TypeError, match=rf"must be a flowppl\.\w+\.Flow, a flowppl.Bijection .*, got {what}"):
            module.fit_density(*key, flow, X)
    with pytest.raises(TypeError, match="got the class Flow"):
        module.fit_density(*key, adapter.Flow, X)
    with pytest.raises(TypeError, match="got ndarray; flow and x are exchanged"):
        module.fit_density(*key, X, PLAIN)
    with pytest.raises(TypeError, match="x is missing"):
        module.fit_density(*key, PLAIN)


def test_a_missing_or_wrong_key_is_told():
    for call in (lambda: fnp.fit_density(PLAIN, X), lambda: fnp.fit_density(PLAIN, jax.random.key(0), X)):
        with pytest.raises(TypeError, match=r"a key comes first: fit_density\(jax.random.key\(0\), flow, x\)"):
            call()
    with pytest.raises(TypeError, match=r"rng_key must be a key such as jax.random.key\(3\), got 3"):
        fnp.fit_density(3, PLAIN, X)


@pytest.mark.parametrize("key", [0, jax.random.key(0), jax.random.PRNGKey(0)], ids=["seed", "key", "old key"])
@pytest.mark.parametrize("name", ["fit_density", "evaluate_density", "fit_vae", "evaluate_vae"])
def test_pyro_tells_that_it_takes_no_key(name, key):
    first = "flow" if "density" in name else "vae"
    message = rf"{name}: the first argument is {first}, got .*; Pyro takes no key, but pyro.set_rng_seed\(0\)"
    with pytest.raises(TypeError, match=message):
        getattr(fpp, name)(key, PLAIN, X)


@pytest.mark.parametrize("name", ["evaluate_density", "fit_vae", "evaluate_vae"])
def test_numpyro_tells_that_a_key_comes_first(name):
    given = (PLAIN, {}, X) if name == "evaluate_vae" else (PLAIN, X)
    with pytest.raises(TypeError, match=rf"; a key comes first: {name}\(jax.random.key\(0\), .*, x\)"):
        getattr(fnp, name)(*given)


def test_both_languages_have_the_same_arguments():
    ours, theirs = (list(inspect.signature(m.fit_density).parameters.values()) for m in (pyro_density, numpyro_density))
    assert theirs[0].name == "rng_key"
    assert [(p.name, p.default) for p in theirs[1:]] == [(p.name, p.default) for p in ours]


def test_a_single_row_to_start_from_has_no_spread_to_warn_of():
    """Of two rows one is held out; warnings are errors."""
    x = np.array([[0.3, -0.2], [0.5, 0.4]])
    fpp.fit_density(fp.ElementwiseAffine(2), x, num_epochs=1, progress=False)
    fnp.fit_density(jax.random.key(0), fp.ElementwiseAffine(2), x, num_epochs=1, progress=False)


@both
def test_a_training_at_a_rate_of_its_own_may_be_extended(fit, rng, tmp_path):
    """Not one whose rate falls over its epochs; and a smaller patience ends it, with what was done."""
    x, path = correlated(rng, 60), tmp_path / "fit"
    options = {"learning_rate": lambda epoch: 0.05 / (1 + epoch), "patience": None}
    whole = fit(PLAIN, x, num_epochs=4, **options)
    fit(PLAIN, x, num_epochs=2, checkpoint=path, **options)
    resumed = fit(PLAIN, x, num_epochs=4, seed=5, checkpoint=path, **options)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(resumed.validation_losses, whole.validation_losses)
    for num_epochs in (4, 3):
        again = fit(PLAIN, x, num_epochs=num_epochs, checkpoint=path, **options | {"patience": 1})
        np.testing.assert_array_equal(again.losses, whole.losses)
        np.testing.assert_array_equal(log_prob(again.flow, x), log_prob(whole.flow, x))


@both
def test_a_checkpoint_of_another_kind_of_training_is_told(fit, rng, tmp_path):
    path, owners = tmp_path / "fit", ("fit_density", "fit_vae", "fit")
    fit(PLAIN, correlated(rng, 20), num_epochs=1, checkpoint=path)
    kinds = [("checkpoint", ENTRIES, {"flow": ""}), ("checkpoint", ENTRIES, {"posterior": ""})]
    kinds.append((fits.KIND, fits.ENTRIES, {"flow": ""}))
    config, arrays = read_file(path)
    for writer, (kind, _, fixed) in zip(owners, kinds, strict=True):
        write_file(path, config | {"kind": kind, "fixed": fixed}, arrays)
        for owner, (expected, entries, _) in zip(owners, kinds, strict=True):
            if owner != writer:
                message = f"{path} holds a checkpoint of {writer}, not one of {owner}; name another file, or delete it"
                with pytest.raises(ValueError, match=message):
                    read_checkpoint(owner, path, expected, entries)
