"""Flows as users of both languages would write them without reading, and what they are told where that cannot be."""

import dataclasses
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import optax
import pandas
import pyro
import pyro.distributions as pdist
import pytest
import torch
from catalogue import NumpyDraws
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.namespace import namespace

KEY = jax.random.key(0)


def make(language, bijection, base=None):
    if language.name == "pyro":
        pyro.set_rng_seed(0)
        return fpp.Flow(bijection, base)
    return fnp.Flow.init(KEY, bijection, base)


def numbers(array):
    return array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


LANGUAGES = [
    types.SimpleNamespace(
        name="pyro",
        adapter=fpp,
        dist=pdist,
        array=torch.as_tensor,
        fit=lambda flow, *args, **kwargs: fpp.fit_density(flow, *args, **({"progress": False} | kwargs)),
        key=(),
    ),
    types.SimpleNamespace(
        name="numpyro",
        adapter=fnp,
        dist=ndist,
        array=jnp.asarray,
        fit=lambda flow, *args, **kwargs: fnp.fit_density(KEY, flow, *args, **({"progress": False} | kwargs)),
        key=(KEY,),
    ),
]
both = pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
AFFINE = fp.ElementwiseAffine(2)
CONDITIONAL = fp.Conditional(AFFINE, context_dim=1)


def data(rng, n=60):
    return rng.normal(size=(n, 2)) + np.array([1.0, -2.0]), rng.normal(size=(n, 1))


# Flows


@both
def test_a_flow_without_a_context_has_the_methods_of_its_distribution(language, rng):
    flow = make(language, fp.planar(2))
    x = language.array(rng.normal(size=(5, 2)))
    np.testing.assert_array_equal(numbers(flow.log_prob(x)), numbers(flow().log_prob(x)))
    for draw in (flow.sample, flow.rsample):
        assert draw(*language.key, (3,)).shape == (3, 2)
        assert draw(*language.key).shape == (2,)
    conditional = make(language, CONDITIONAL)
    for name, arguments in (("log_prob", (x,)), ("sample", language.key), ("rsample", language.key)):
        with pytest.raises(ValueError, match=rf"context of size 1: write flow\(context\).{name}\("):
            getattr(conditional, name)(*arguments)


@both
def test_shapes_are_those_of_the_docs(language, rng):
    flow = make(language, fp.maf(3, num_flows=1, hidden_dims=4, context_dim=2))
    context, x = (language.array(rng.normal(size=(5, size))) for size in (2, 3))
    assert flow(context).sample(*language.key).shape == (5, 3)
    assert flow(context).sample(*language.key, (4,)).shape == (4, 5, 3)
    assert flow(context).log_prob(x).shape == (5,)
    assert flow(context[0]).log_prob(x).shape == (5,)
    # The hosts' own normals have no density of no events.
    assert flow.transform.condition(context[:0]).inverse_and_log_det(x[:0])[1].shape == (0,)


def test_a_transform_brings_its_weights(rng):
    x = rng.normal(size=(4, 2))
    transform = fpp.planar(2)
    flow = fpp.Flow(transform)
    assert flow.transform.weights is transform.weights
    expected = stats.norm.logpdf(transform.inv(torch.tensor(x)).detach()).sum(-1)
    expected = expected + transform.inverse_and_log_det(torch.tensor(x))[1].detach().numpy()
    np.testing.assert_allclose(flow.log_prob(torch.tensor(x)).detach(), expected, rtol=1e-10)
    transform = fnp.planar(KEY, 2)
    flow = fnp.Flow(transform)
    assert flow.params is transform.params
    again = jax.tree.map(lambda leaf: leaf, flow)
    np.testing.assert_array_equal(again.log_prob(x), fnp.Flow(fp.planar(2), transform.params)().log_prob(x))


@both
def test_what_is_no_flow_is_told(language):
    adapter, params = language.adapter, () if language.name == "pyro" else ({},)
    host = pdist.transforms.affine_autoregressive(2) if language.name == "pyro" else ndist.transforms.ExpTransform()
    for value, message in (
        (host, r"is a transform of .*Wrap\(transform, shape\)"),
        (fp.Planar, "expected a flowppl.Bijection, .* got the class Planar"),
        (adapter.Flow, "got the class Flow"),
        ("realnvp", "got 'realnvp'"),
    ):
        with pytest.raises(TypeError, match=message):
            adapter.Flow(value, *params)
    for base, what in (("normal", "'normal'"), (language.dist.Normal, "the class Normal")):
        with pytest.raises(TypeError, match=f"Flow: base must be a distribution .* got {what}"):
            adapter.Flow(fp.Permute((1, 0)), *params, base)
    conditional = adapter.planar(*language.key, 2, context_dim=1)
    conditioned = conditional.condition(language.array(np.zeros(1)))
    with pytest.raises(ValueError, match="stands at a context already"):
        adapter.Flow(conditioned)


def test_keys_and_weights_of_numpyro_are_named():
    flow = fnp.Flow.init(KEY, AFFINE)
    for call in (lambda: fnp.Flow.init(0, AFFINE), lambda: flow.sample(0), lambda: flow().sample(0)):
        with pytest.raises(TypeError, match=r"key must be a key such as jax.random.key\(0\), got 0"):
            call()
    with pytest.raises(TypeError, match=r"params is missing; draw the weights by Flow.init\(key, bijection\)"):
        fnp.Flow(AFFINE)
    with pytest.raises(TypeError, match="brings its weights; leave params out"):
        fnp.Flow(fnp.planar(KEY, 2), {})
    assert fnp.Flow.init(jax.random.PRNGKey(0), AFFINE).sample(jax.random.PRNGKey(1)).shape == (2,)


@pytest.mark.parametrize("language", ["pyro", "numpyro"])
def test_a_context_that_does_not_fit_is_told_at_the_call(language):
    def make(bijection):
        return fpp.Flow(bijection) if language == "pyro" else fnp.Flow.init(jax.random.key(0), bijection)

    context = torch.ones(3) if language == "pyro" else jnp.ones(3)
    wrap = (fpp if language == "pyro" else fnp).Dequantized
    plain, conditional = make(fp.planar(2, num_flows=1)), make(fp.planar(2, num_flows=1, context_dim=2))
    for flow in (plain, wrap(plain, 4)):
        with pytest.raises(ValueError, match=r"is unconditional .* was given a context of shape \(3,\); build it with"):
            flow(context)
    for flow in (conditional, wrap(conditional, 4)):
        with pytest.raises(ValueError, match=r"expected a context whose last axis has size 2, got shape \(3,\)"):
            flow(context)


@pytest.mark.parametrize("event", [[0.5, np.nan], [0.5, 2.0]], ids=["nan", "outside"])
def test_events_outside_of_the_support_are_told_as_the_host_does(event):
    bounded = fp.Elementwise(2, fp.Sigmoid())
    ours, theirs = fpp.Flow(bounded), fnp.Flow.init(jax.random.key(0), bounded)
    with pytest.raises(ValueError, match="to be within the support"):
        ours.log_prob(torch.tensor(event))
    with pytest.warns(UserWarning, match="Out-of-support values"):
        assert theirs.log_prob(jnp.array(event)) == -jnp.inf
    with pyro.validation_enabled(False), numpyro.validation_enabled(False):
        expected = np.nan if np.isnan(event).any() else -np.inf
        for found in (ours.log_prob(torch.tensor(event)).item(), theirs.log_prob(jnp.array(event)).item()):
            np.testing.assert_equal(found, expected)


def test_contexts_of_pyro_are_tensors():
    with pytest.raises(TypeError, match="context must be a tensor whose last axis has size 1, got list"):
        fpp.Flow(CONDITIONAL)([0.0])


def test_a_flow_works_in_inference_mode(rng):
    flow = fpp.Flow(fp.planar(2))
    with torch.inference_mode():
        y = flow.rsample((5,))
        np.testing.assert_allclose(flow.log_prob(y), flow().log_prob(y.clone()), rtol=1e-9)
        distribution = flow()
        y = distribution.rsample((5,))
        np.testing.assert_allclose(distribution.log_prob(y), flow.log_prob(y), rtol=1e-9)
        with pytest.raises(RuntimeError, match="torch keeps no gradients here; call it outside of no_grad"):
            fpp.fit_density(flow, rng.normal(size=(9, 2)))
        made_here = fpp.Flow(AFFINE)
    with pytest.raises(RuntimeError, match=r"the flow was made in torch.inference_mode"):
        fpp.fit_density(made_here, rng.normal(size=(9, 2)))
    with torch.inference_mode():
        x = torch.randn(20, 2)
    assert fpp.fit_density(flow, x, num_epochs=1, progress=False).num_skipped == 0


# Supports


@both
def test_densities_over_a_bounded_base_integrate_to_one(language, rng):
    base = language.dist.Uniform(language.array(np.zeros(1)), language.array(np.ones(1))).to_event(1)
    flow = make(language, fp.Chain([fp.nsf(1), fp.ElementwiseAffine(1)]), base)
    grid = np.linspace(-10, 11, 42_001)[:, None]
    for _ in range(2):
        density = np.exp(numbers(flow.log_prob(language.array(grid))))
        np.testing.assert_allclose(np.trapezoid(density, grid[:, 0]), 1, atol=3e-3)  # its ends are steep
        if language.name == "pyro":
            with torch.no_grad():
                for weight in flow.parameters():
                    weight += 0.3 * torch.tensor(rng.normal(size=weight.shape))
        else:
            params = jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), flow.params)
            flow = fnp.Flow(flow.bijection, params, flow.base)
    draws = flow.sample(*language.key, (100,))
    assert np.isfinite(numbers(flow.log_prob(draws))).mean() > 0.95  # but for rounding at the ends
    half = language.dist.HalfNormal(language.array(np.ones(2))).to_event(1)
    flow = make(language, fp.ElementwiseAffine(2), half)
    points = language.array(np.array([[1.0, 2.0], [-1.0, 2.0]]))
    np.testing.assert_allclose(numbers(flow.log_prob(points)), [stats.halfnorm.logpdf([1.0, 2.0]).sum(), -np.inf])


def test_derivatives_outside_of_a_base_are_zero():
    flow = fpp.Flow(fp.ElementwiseAffine(1), pdist.Gamma(torch.ones(1) + 1, 1.0).to_event(1))
    flow.log_prob(torch.tensor([[-1.0], [1.0]]))[1].backward()
    assert all(parameter.grad.isfinite().all() for parameter in flow.parameters())
    flow = fnp.Flow.init(KEY, fp.ElementwiseAffine(1), ndist.Gamma(jnp.ones(1) + 1, 1.0).to_event(1))
    gradient = jax.jit(jax.grad(lambda flow: flow.log_prob(jnp.array([[-1.0], [1.0]]))[1]))(flow)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient.params))


@both
def test_outside_of_its_support_a_flow_has_no_density(language):
    bijection = fp.Chain([AFFINE, fp.Elementwise(2, fp.Bounded(0.0, 2.0))])
    flow = make(language, bijection)
    points = language.array(np.array([[0.5, 1.0], [0.5, 2.5], [-0.5, 1.0], [0.0, 2.0]]))
    distribution = language.adapter.FlowDistribution(flow().base_dist, flow.transform, validate_args=False)
    found = numbers(distribution.log_prob(points))
    assert np.isfinite(found).tolist() == [True, False, False, True]
    assert (found[1:3] == -np.inf).all()
    exact = stats.norm.logpdf(np.log([0.25, 0.5]) - np.log([0.75, 0.5])).sum()
    exact -= np.log(2 * np.array([0.25 * 0.75, 0.5 * 0.5])).sum()
    np.testing.assert_allclose(found[0], exact, rtol=1e-9)
    if language.name == "pyro":
        with pytest.raises(ValueError, match=r"within the support .*lower_bound=0.0, upper_bound=2.0"):
            flow.log_prob(points)


@both
def test_a_base_on_an_interval_must_be_what_the_flow_maps_onto_the_data(language, rng):
    x = rng.beta(2.0, 3.0, size=(40, 1))

    def uniform(low, high):
        return language.dist.Uniform(language.array(np.full(1, low)), language.array(np.full(1, high))).to_event(1)

    for base in (uniform(0.0, 1.0), language.dist.Gamma(language.array(np.ones(1)), 1.0).to_event(1)):
        with pytest.raises(ValueError, match=r"the base distribution lies between 0 and (1|inf), but the flow moves"):
            language.fit(make(language, fp.nsf(1), base), x, num_epochs=1)
    inward = fp.Chain([fp.Invert(fp.Elementwise(1, fp.Bounded(0.0, 1.0))), fp.ElementwiseAffine(1)])
    splines = fp.nsf(1, num_flows=1, bound=2.0)
    for bijection, base in ((inward, uniform(0.0, 1.0)), (splines, uniform(-2.0, 2.0))):
        result = language.fit(make(language, bijection, base), x, num_epochs=1)
        assert np.isfinite(result.losses).all()


# Maximum likelihood


@both
def test_bijections_and_transforms_are_fitted_too(language, rng):
    x, context = data(rng)
    options = {"num_epochs": 3, "learning_rate": 0.1}
    result = language.fit(fp.maf(2, num_flows=1, hidden_dims=4, context_dim=1), x, context, **options)
    assert isinstance(result, language.adapter.DensityFit)
    assert isinstance(result.flow, language.adapter.Flow)
    assert result.losses[-1] < result.losses[0]
    assert language.fit(language.adapter.planar(*language.key, 2), x, **options).losses.shape == (3,)
    with pytest.raises(TypeError, match=r"Wrap\(transform, shape\)"):
        language.fit(language.dist.transforms.ExpTransform(), x)


@both
def test_data_frames_and_lists_are_data(language, rng):
    x, context = data(rng)
    frame, contexts = pandas.DataFrame(x, columns=["height", "weight"]), pandas.DataFrame(context)
    options = {"num_epochs": 2, "batch_size": 16}

    def fit(x, c):
        pyro.set_rng_seed(1)
        return language.fit(CONDITIONAL, x, c, **options).losses

    exact = fit(x, context)
    np.testing.assert_array_equal(fit(frame, contexts), exact)
    np.testing.assert_array_equal(fit(x.tolist(), context.tolist()), exact)
    with pytest.raises(TypeError, match=r"x must be rows of numbers, .* got DataFrame \(could not convert string"):
        language.fit(AFFINE, frame.assign(weight="heavy"))
    with pytest.raises(ValueError, match=r"1 of the 2 columns of x do not vary, .* 'weight' \(all 3\); leave"):
        language.fit(AFFINE, frame.assign(weight=3.0))
    with pytest.raises(ValueError, match=r"x must have the shape \(n, 1\), got \(60,\); write x\[:, None\]"):
        language.fit(fp.ElementwiseAffine(1), frame["height"])


class Loader:
    """Batches that start anew; counts the passes."""

    def __init__(self, *batches):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


@both
def test_batches_are_read_anew_in_each_epoch(language, rng):
    x, context = data(rng, 50)
    loader = Loader((x[:20], context[:20]), (x[20:40], context[20:40]), (x[40:], context[40:]))
    flow = make(language, CONDITIONAL)
    result = language.fit(flow, loader, num_epochs=3, learning_rate=1e-9, validation=Loader((x, context)))
    assert loader.passes == 4  # one for what starts from data
    exact = -stats.norm.logpdf(x).sum(1).mean()
    # The last batch has 10 rows and counts as 10.
    np.testing.assert_allclose([result.losses, result.validation_losses], exact, rtol=1e-6)
    plain = language.fit(AFFINE, Loader(x[:30], [x[30:]]), num_epochs=60, learning_rate=0.1, validation=None)
    assert plain.losses[-1] < -stats.norm.logpdf(x, x.mean(0), x.std(0)).sum(1).mean() + 0.02
    assert plain.validation_losses.shape == (0,)


@both
def test_a_torch_loader_is_an_iterable_of_batches(language, rng):
    x, context = data(rng, 50)
    pyro.set_rng_seed(0)
    dataset = TensorDataset(torch.tensor(x), torch.tensor(context))
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    result = language.fit(CONDITIONAL, loader, num_epochs=2, validation=(x, context))
    assert result.validation_losses.shape == (2,)
    with pytest.raises(TypeError, match=r"x must be rows of numbers, such as .*DataLoader, got TensorDataset"):
        language.fit(CONDITIONAL, dataset)


@both
def test_batches_that_cannot_be_used_are_told(language, rng):
    x, context = data(rng)
    for batches, error, message in (
        ((batch for batch in [x]), TypeError, "x is a generator, which can be read once"),
        (Loader(), ValueError, "x gave no batch"),
        (Loader((x, x, x)), TypeError, r"each batch must be x or \(x, context\), got a tuple of 3"),
        (Loader({"x": x}), TypeError, r"each batch must be x or \(x, context\), got a dict of 1"),
        (Loader(x[:, :1]), ValueError, r"x must have the shape \(n, 2\), got \(60, 1\)"),
        (Loader((x, context)), ValueError, "unconditional"),
    ):
        with pytest.raises(error, match=message):
            language.fit(AFFINE, batches, num_epochs=1)
    with pytest.raises(ValueError, match=r"let each batch be \(x, context\)"):
        language.fit(CONDITIONAL, Loader(x), context)


@both
def test_a_callback_stops_a_fit(language, rng):
    x, seen = data(rng)[0], []
    result = language.fit(AFFINE, x, callback=lambda epoch, loss: seen.append(loss) or epoch == 2)
    assert result.stopped == "callback"
    np.testing.assert_array_equal(result.losses, seen)
    assert len(seen) == 3
    with pytest.raises(TypeError, match="callback must be a function"):
        language.fit(AFFINE, x, callback=1)


@both
def test_optimisers_of_the_host(language, rng):
    x = data(rng)[0]
    schedule = optax.exponential_decay(0.1, 10, 0.9)
    for optimizer in (
        [lambda ps: torch.optim.SGD(ps, lr=0.1), pyro.optim.Adam({"lr": 0.1}), "adamax"]
        if language.name == "pyro"
        else [optax.sgd(schedule), "adamax"]
    ):
        for given in (x, Loader(x[:30], x[30:])):
            rate = {"learning_rate": 0.1} if optimizer == "adamax" else {}
            result = language.fit(AFFINE, given, optimizer=optimizer, num_epochs=10, validation=None, **rate)
            assert result.losses[-1] < result.losses[0] - 0.1
    with pytest.raises(ValueError, match="there is no optimizer 'sgdd'"):
        language.fit(AFFINE, x, optimizer="sgdd")


@both
def test_columns_that_do_not_vary_are_refused(language, rng):
    x = data(rng)[0]
    x[:, 1] = 3.0
    with pytest.raises(ValueError, match=r"1 of the 2 columns of x do not vary, so .*: 1 \(all 3\); leave them out"):
        language.fit(AFFINE, x)
    with pytest.raises(ValueError, match=r"1 of the 2 columns of x do not vary"):
        language.fit(AFFINE, Loader(x[:30], x[30:]))
    x = rng.normal(size=(40, 2)) * np.array([1e-30, 1e30])  # small or large is not constant
    result = language.fit(fp.ActNorm(2), x, num_epochs=1)
    assert np.isfinite(result.losses).all()


@both
def test_columns_of_counts_are_named(language, rng):
    x = data(rng, 200)[0]
    x[:, 0] = rng.poisson(3.0, size=200)
    frame = pandas.DataFrame(x, columns=["visits", "weight"])
    for given, name in ((x, "0"), (x.astype(np.float32), "0"), (frame, "'visits'"), (Loader(x), "0")):
        with pytest.warns(UserWarning, match=rf"1 of the 2 columns of x repeat their values: {name} .*Dequantized"):
            language.fit(AFFINE, given, num_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        language.fit(AFFINE, x + rng.uniform(size=x.shape), num_epochs=1)


@both
def test_complex_and_empty_data_are_refused(language, rng):
    x = data(rng)[0]
    with pytest.raises(TypeError, match="x must be real, got complex128; give real and imaginary parts apart"):
        language.fit(AFFINE, x + 1j)
    with pytest.raises(TypeError, match=r"x must be real, got .*complex128"):
        language.fit(AFFINE, language.array(x + 1j))
    with pytest.raises(ValueError, match="x must have at least 2 rows, got 0"):
        language.fit(AFFINE, x[:0])
    with pytest.raises(TypeError, match="context must be rows of numbers"):
        language.fit(CONDITIONAL, x, "c")


# Layers of one's own under a context


@dataclasses.dataclass(frozen=True)
class Convolution(fp.Bijection):
    """A 1 x 1 convolution of images, written for one set of weights; with ``batched`` also for many."""

    batched: bool = False
    x_shape: tuple = (2, 2, 2)

    def parameters(self):
        return {"weight": fp.Parameter((2, 2)), "log_scale": fp.Parameter((2,))}

    def _matrix(self, xp, params):
        return params["weight"] * 0.1 + xp.eye(2) * xp.exp(params["log_scale"])[..., None]

    def forward(self, params, x, context=None):
        xp = namespace(x)
        matrix = self._matrix(xp, params)
        y = xp.reshape(xp.matmul(matrix, xp.reshape(x, (*x.shape[:-2], 4))), x.shape)
        log_det = 4 * xp.linalg.slogdet(matrix)[1]
        if not self.batched:
            log_det = xp.sum(log_det)  # that of one set of weights
        return y, log_det + xp.zeros_like(x[..., 0, 0, 0])

    def inverse(self, params, y, context=None):
        raise NotImplementedError


def test_a_layer_that_takes_one_set_of_weights_has_no_context(rng):
    with pytest.raises(ValueError, match="Convolution gives other results for two events with weights of their own"):
        fp.Conditional(Convolution(), context_dim=3)
    with pytest.raises(ValueError, match="Repeat gives other results"):
        fp.Conditional(fp.Repeat(Convolution(), 2), context_dim=3)
    layer = fp.Conditional(Convolution(batched=True), context_dim=3)
    x, context = rng.normal(size=(2, 2, 2, 2)), rng.normal(size=(2, 3))
    params = fp.initialize(layer, NumpyDraws(rng))
    params["network"]["0"]["weight"] = rng.normal(size=(3, 6))
    y, log_det = layer.forward(params, x, context)
    for i in range(2):
        alone, log_det_alone = layer.forward(params, x[i], context[i])
        np.testing.assert_allclose(y[i], alone, rtol=1e-10)
        np.testing.assert_allclose(log_det[i], log_det_alone, rtol=1e-10)
