"""Distributions of integers, in both languages, against sums over all values and the papers' equations."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from flax import nnx
from scipy.special import expit, log_softmax, logsumexp
from scipy.stats import norm

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import map_tree
from flowppl.discrete.levels import are_levels, check_levels
from flowppl.serialization import read_file

ADAPTERS = {"pyro": fpp, "numpyro": fnp}
both = pytest.mark.parametrize("language", ADAPTERS)


def arrays(language, *values):
    """NumPy arrays as those of a language."""
    made = [torch.as_tensor(value) if language == "pyro" else jnp.asarray(value) for value in values]
    return made if len(made) > 1 else made[0]


def draw(language, distribution, shape, seed=0):
    """Draws as a NumPy array."""
    if language == "pyro":
        pyro.set_rng_seed(seed)
        return distribution.sample(shape).numpy()
    return np.asarray(distribution.sample(jax.random.key(seed), shape))


def compiled(language, function):
    """In JAX one program, which takes less time to make than one for each operation."""
    return jax.jit(function) if language == "numpyro" else function


def mixture(language, logits, loc, scale, levels):
    return ADAPTERS[language].DiscretizedLogisticMixture(*arrays(language, logits, loc, scale), levels)


def log_prob_of_rounded_logistics(x, logits, loc, scale, levels):
    """Salimans et al. (2017), equation 2, each difference taken in the tail where it is small."""
    a = np.where(x > 0, (x - 0.5 - loc) / scale, -np.inf)
    b = np.where(x < levels - 1, (x + 0.5 - loc) / scale, np.inf)
    probability = np.where(x < loc, expit(b) - expit(a), expit(-a) - expit(-b))
    with np.errstate(divide="ignore"):
        return logsumexp(log_softmax(logits, axis=-1) + np.log(probability), axis=-1)


@both
def test_a_mixture_of_rounded_logistics_is_that_of_the_paper(language, rng):
    logits, loc, scale = rng.normal(size=(4, 3)), rng.uniform(-3, 20, size=(4, 3)), np.exp(rng.normal(size=(4, 3)))
    pixel = mixture(language, logits, loc, scale, 17)
    x = np.arange(17)
    of_pixel = compiled(language, lambda pixel, x: (pixel.log_prob(x), pixel.mean, pixel.variance))
    found, found_mean, variance = map(np.asarray, of_pixel(pixel, arrays(language, x[:, None])))
    exact = log_prob_of_rounded_logistics(x[:, None, None], logits, loc, scale, 17)
    np.testing.assert_allclose(found, exact, rtol=1e-10)
    np.testing.assert_allclose(np.exp(found).sum(axis=0), 1, atol=1e-12)
    mean = x @ np.exp(found)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-12)
    np.testing.assert_allclose(variance, x**2 @ np.exp(found) - mean**2, rtol=1e-9)
    assert np.array_equal(np.asarray(pixel.enumerate_support()), np.broadcast_to(x[:, None], (17, 4)))
    assert pixel.enumerate_support(expand=False).shape == (17, 1)
    assert pixel.expand((2, 4)).batch_shape == (2, 4)
    draws = draw(language, pixel, (4000,))
    assert draws.dtype.kind == "i"
    np.testing.assert_allclose((draws[None] == x[:, None, None]).mean(axis=1), np.exp(found), atol=0.05)
    assert (np.abs(draws.mean(axis=0) - mean) < 5 * np.sqrt(variance / 4000)).all()


@both
def test_both_tails_are_exact_and_have_gradients(language):
    """Where the probability itself is 0 or 1 in floating point."""
    x, scale, levels = np.array([0, 1, 128, 254, 255]), 0.5, 256
    loc = np.array([[-1000.0], [1000.0], [128.0]])
    a, b = (x - 0.5 - loc) / scale, (x + 0.5 - loc) / scale
    from_below = np.where(x > 0, -np.logaddexp(0, a), 0)
    from_above = np.where(x < 255, -np.logaddexp(0, -b), 0)
    between = np.where((x > 0) & (x < 255), np.log(-np.expm1(-1 / scale)), 0)
    pixel = mixture(language, np.zeros(1), loc[..., None], np.full(1, scale), levels)
    found = compiled(language, lambda x: pixel.log_prob(x))(arrays(language, x))
    np.testing.assert_allclose(found, from_below + from_above + between, rtol=1e-12)
    assert found.min() < -1000
    assert np.isfinite(gradients(language, np.array([0, 3, 255]), levels)).all()


def gradients(language, x, levels):
    """Those of log probabilities in what a network gives, far out."""
    raw = np.array([0.0, 1.0, -2000.0, 3000.0, 1e4, -1e4])
    if language == "numpyro":
        make = functools.partial(fnp.DiscretizedLogisticMixture.from_raw, levels=levels)
        return np.asarray(jax.jit(jax.grad(lambda raw: make(raw).log_prob(x).sum()))(jnp.asarray(raw)))
    raw = torch.tensor(raw, requires_grad=True)
    fpp.DiscretizedLogisticMixture.from_raw(raw, levels).log_prob(torch.as_tensor(x)).sum().backward()
    return raw.grad.numpy()


@both
def test_moments_of_narrow_components_far_from_zero(language):
    """In float32, where the square of the mean takes all digits."""
    loc, scale, levels = np.array([[250.0], [3.0], [200.2]]), np.array([[0.05], [1e-3], [5.0]]), 256
    x = np.arange(levels)[:, None]
    weights = np.exp(log_prob_of_rounded_logistics(x[..., None], np.zeros(1), loc, scale, levels))
    mean = (weights * x).sum(0)
    variance = (weights * (x - mean) ** 2).sum(0)
    single = [a.astype(np.float32) for a in (np.zeros(1), loc, scale)]
    found = mixture(language, *single, levels)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-3, atol=1e-30)


@both
def test_levels_are_told_in_any_dtype(language):
    """Whatever the type of data holds, the number of levels is compared as it is."""
    for largest, dtype in ((1, bool), (100, "int8"), (200, "uint8"), (299, "int64")):
        x = arrays(language, np.array([0, largest]).astype(dtype))
        check_levels("Test", "x", x, 300)
        assert are_levels(x, 300, 1)
        assert are_levels(x[:0], 300, 0).shape == (0,)
    whole = mixture(language, np.zeros(1), np.array([1]), np.ones(1), 4)
    whole._validate_args = False
    assert np.isneginf(np.asarray(whole.log_prob(arrays(language, np.array([1.5])))))


@both
def test_a_dtype_with_too_few_numbers_is_told(language):
    half = torch.bfloat16 if language == "pyro" else jnp.bfloat16
    parts = [part.to(half) if language == "pyro" else part.astype(half) for part in arrays(language, *np.ones((3, 1)))]
    x = arrays(language, np.array([3]))
    assert np.isfinite(float(ADAPTERS[language].DiscretizedLogisticMixture(*parts, 256).log_prob(x)[0]))
    with pytest.raises(ValueError, match="bfloat16 has too few numbers for levels=1000"):
        ADAPTERS[language].DiscretizedLogisticMixture(*parts, 1000).log_prob(x)
    if language == "pyro":
        shape, image = (1, 1, 2), torch.zeros(1, 1, 1, 2)
        counts = fpp.Dequantized(fp.Elementwise(shape, fp.Sigmoid()), 256).to(half)
        pixels = fpp.PixelCNN(shape, 256, hidden_channels=2, num_blocks=0).to(half)
        for call in (counts.log_prob, pixels.log_prob, lambda _: pixels.sample()):
            with pytest.raises(ValueError, match="bfloat16 has too few numbers for levels=256"):
                call(image)
        assert fpp.PixelCNN(shape, 2, hidden_channels=2, num_blocks=0).to(half).log_prob(image).dtype == half


@both
def test_what_is_no_level_has_no_probability(language):
    pixel = mixture(language, np.zeros(2), np.ones(2), np.ones(2), 4)
    values = arrays(language, np.array([-1.0, 0.5, 4.0, 3.0]))
    told = (
        (pytest.raises, ValueError, "IntegerInterval")
        if language == "pyro"
        else (pytest.warns, UserWarning, "Out-of-support")
    )
    wrong = told[0](told[1], match=told[2])
    with wrong:
        pixel.log_prob(values)
    pixel._validate_args = False
    assert np.array_equal(np.isneginf(np.asarray(pixel.log_prob(values))), [True, True, True, False])
    with pytest.raises(ValueError, match="levels must be an integer of at least 2, got 1"):
        mixture(language, np.zeros(2), np.ones(2), np.ones(2), 1)
    with pytest.raises(ValueError, match="3 numbers for each component along its last axis, got a length of 4"):
        ADAPTERS[language].DiscretizedLogisticMixture.from_raw(arrays(language, np.zeros(4)), 4)


def test_both_languages_have_the_same_mixture(rng):
    raw, x = rng.normal(size=(5, 6)), rng.integers(0, 9, size=5)
    ours = fpp.DiscretizedLogisticMixture.from_raw(torch.as_tensor(raw), 9)
    theirs = fnp.DiscretizedLogisticMixture.from_raw(jnp.asarray(raw), 9)
    np.testing.assert_allclose(ours.log_prob(torch.as_tensor(x)), theirs.log_prob(x), rtol=1e-12)
    start = fpp.DiscretizedLogisticMixture.from_raw(torch.zeros(12), 9)
    assert start.loc.tolist() == [1, 3, 5, 7]
    assert start.scale.tolist() == [1, 1, 1, 1]


@both
def test_a_mixture_is_the_likelihood_of_an_autoencoder(language, rng):
    x = rng.integers(0, 5, size=(12, 4))
    adapter = ADAPTERS[language]
    posterior = fp.amortized_posterior(2, context_dim=4, flow=None)
    likelihood = functools.partial(adapter.DiscretizedLogisticMixture.from_raw, levels=5)
    options = {"num_epochs": 2, "progress": False, "warm_up": 0}
    if language == "pyro":
        decoder = torch.nn.Sequential(torch.nn.Linear(2, 24), torch.nn.Unflatten(1, (4, 6)))
        vae = fpp.FlowVAE(torch.nn.Identity(), decoder, posterior, likelihood=likelihood)
        images = fpp.fit_vae(vae, x, **options).vae.sample(3).detach().numpy()
        outside = functools.partial(fpp.fit_vae, vae)
    else:
        linear = nnx.Linear(2, 24, rngs=nnx.Rngs(0))
        vae = fnp.FlowVAE(lambda x: x, Decoder(linear), posterior, likelihood=likelihood)
        fit = fnp.fit_vae(jax.random.key(0), vae, x, **options)
        images = np.asarray(vae.sample(jax.random.key(1), fit.params, 3))
        outside = functools.partial(fnp.fit_vae, jax.random.key(0), vae)
    assert images.shape == (3, 4)
    assert ((images >= 0) & (images <= 4)).all()
    with pytest.raises(ValueError, match="must have all data in its support, but the data range from 0 to 9"):
        outside(np.where(x == 4, 9, x), **options)


class Decoder(nnx.Module):
    def __init__(self, linear):
        self.linear = linear

    def __call__(self, z):
        return self.linear(z).reshape(-1, 4, 6)


@both
def test_a_mixture_stands_in_a_model(language):
    loc = np.array([0.0, 3.0])
    if language == "pyro":

        def model():
            with pyro.plate("pixels", 5):
                return pyro.sample("x", mixture(language, np.zeros(2), loc, np.ones(2), 4))

        assert pyro.poutine.trace(model).get_trace().nodes["x"]["value"].shape == (5,)
    else:

        def model():
            with numpyro.plate("pixels", 5):
                return numpyro.sample("x", mixture(language, np.zeros(2), loc, np.ones(2), 4))

        trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
        assert trace["x"]["value"].shape == (5,)
    assert math.isfinite(float(mixture(language, np.zeros(2), loc, np.ones(2), 4).variance))


def square_flow(language, noise=None, levels=3):
    """Two normal variables through a sigmoid, so that the probability of every cell is known."""
    bijection = fp.Chain([fp.ElementwiseAffine(2), fp.Elementwise(2, fp.Sigmoid())])
    loc, scale = np.array([0.3, -0.8]), np.array([0.2, -0.7])
    if language == "pyro":
        flow = fpp.Flow(bijection)
        flow.transform.weights.assign({"0": {"loc": torch.tensor(loc), "scale": torch.tensor(scale)}})
        return fpp.Dequantized(flow, levels, noise)
    params = {"0": {"loc": jnp.asarray(loc), "scale": jnp.asarray(scale)}}
    flow = fnp.Flow(bijection, params)
    return fnp.Dequantized.init(jax.random.key(0), flow, levels, noise)


# The locations and scales of the two: one at the raw number 0, a softplus elsewhere.
NORMALS = [(loc, np.logaddexp(0, raw + np.log(np.e - 1))) for loc, raw in ((0.3, 0.2), (-0.8, -0.7))]


def exact_log_probs(levels=3):
    """log P of all pairs: each entry is sigmoid(loc + scale * normal), below y with probability Phi."""
    edges = np.log(np.linspace(0, 1, levels + 1)[1:-1]) - np.log1p(-np.linspace(0, 1, levels + 1)[1:-1])
    parts = []
    for loc, scale in NORMALS:
        cdf = np.concatenate([[0.0], norm.cdf((edges - loc) / scale), [1.0]])
        parts.append(np.log(np.diff(cdf)))
    return (parts[0][:, None] + parts[1]).ravel()


PAIRS = np.stack(np.meshgrid(range(3), range(3), indexing="ij"), -1).reshape(-1, 2)


def log_weights(language, dequantized, x, num_samples, seed=0):
    x = arrays(language, x)
    if language == "pyro":
        pyro.set_rng_seed(seed)
        return dequantized.log_weights(x, num_samples).detach().numpy()
    return np.asarray(dequantized.log_weights(jax.random.key(seed), x, num_samples))


@both
@pytest.mark.parametrize("noise", [None, fp.realnvp(2, num_flows=1, hidden_dims=4, context_dim=2)], ids=["u", "flow"])
def test_the_bound_is_below_the_truth_and_its_weights_estimate_it(language, noise):
    exact = exact_log_probs()
    np.testing.assert_allclose(np.exp(exact).sum(), 1, atol=1e-12)
    found = log_weights(language, square_flow(language, noise), PAIRS, 4000)
    weights = np.exp(found - exact)
    assert (np.abs(weights.mean(axis=0) - 1) < 5 * weights.std(axis=0) / 4000**0.5).all()
    assert (found.mean(axis=0) < exact).all()  # of each x by its own divergence
    assert (np.exp(np.log(weights.mean(axis=0)) + exact)).sum() == pytest.approx(1, abs=0.05)


@both
def test_the_uniform_bound_is_the_integral(language):
    """E log p((x + u) / L) - D log L by quadrature, entry by entry."""
    nodes, shares = np.polynomial.legendre.leggauss(200)
    y = (np.arange(3)[:, None] + (nodes + 1) / 2) / 3
    bounds = []
    for loc, scale in NORMALS:
        log_p = norm.logpdf(np.log(y) - np.log1p(-y), loc, scale) - np.log(y) - np.log1p(-y)
        bounds.append(log_p @ shares / 2 - np.log(3))
    bound = (bounds[0][:, None] + bounds[1]).ravel()
    found = log_weights(language, square_flow(language), PAIRS, 4000)
    assert (np.abs(found.mean(axis=0) - bound) < 5 * found.std(axis=0) / 4000**0.5).all()


@both
def test_draws_have_the_exact_probabilities(language):
    draws = draw(language, square_flow(language)(), (4000,))
    assert draws.dtype.kind == "i"
    counts = np.bincount(3 * draws[:, 0] + draws[:, 1], minlength=9)
    exact = np.exp(exact_log_probs())
    assert (np.abs(counts / 4000 - exact) < 5 * np.sqrt(exact * (1 - exact) / 4000)).all()


@both
def test_a_dequantised_flow_is_observed_in_a_model_with_new_noise_in_every_run(language):
    dequantized, x = square_flow(language), arrays(language, PAIRS)
    if language == "pyro":

        def model():
            with pyro.plate("data", 9):
                pyro.sample("x", dequantized(num_samples=1000), obs=x)

        runs = [pyro.poutine.trace(model).get_trace().log_prob_sum().item() for _ in range(2)]
        np.testing.assert_array_equal(dequantized().expand((9,)).sample().shape, (9, 2))
    else:

        def model():
            with numpyro.plate("data", 9):
                numpyro.sample("x", dequantized(num_samples=1000), obs=x)

        density = jax.jit(lambda key: numpyro.infer.util.log_density(numpyro.handlers.seed(model, key), (), {}, {})[0])
        runs = [float(density(jax.random.key(seed))) for seed in range(2)]
        with pytest.raises(ValueError, match=r"needs a key for its noise: .*dequantized\(key=key\)"):
            numpyro.infer.util.log_density(model, (), {}, {})
    assert runs[0] != runs[1]
    np.testing.assert_allclose(runs, exact_log_probs().sum(), atol=1)


@both
def test_bad_levels_are_told(language):
    dequantized = square_flow(language)
    for values, message in (
        ([[0.0, 0.5]], r"from 0 to 2, since levels=3, but 1 of its 2 numbers .* become levels by round\(x \* 2\)"),
        ([[0, 7]], r"let levels be 8, or take fewer by x \* 3 // 8"),
        ([[-1, 1]], r"range from -1 to 1; shift, scale and round them to 0 .. 2"),
    ):
        with pytest.raises(ValueError, match=message):
            log_weights(language, dequantized, np.array(values), 1)
    with pytest.raises(ValueError, match=r"must have the shape \(..., 2\), got \(1, 3\)"):
        log_weights(language, dequantized, np.zeros((1, 3)), 1)
    with pytest.raises(ValueError, match=r"noise must depend on the data: give it context_dim=2"):
        square_flow(language, fp.realnvp(2, num_flows=1, hidden_dims=4))
    with pytest.raises(ValueError, match=r"noise must be of the shape \(2,\)"):
        square_flow(language, fp.realnvp(3, num_flows=1, hidden_dims=4, context_dim=2))
    make = {"pyro": fpp.Dequantized, "numpyro": functools.partial(fnp.Dequantized.init, jax.random.key(0))}[language]
    with pytest.raises(ValueError, match=r"the flow must map to all numbers between 0 and 1"):
        make(fp.Elementwise(2, fp.Bounded(0.5, 1.0)), 3)


@both
def test_what_a_fit_cannot_start_from_or_go_by_is_told(language, rng):
    """Layers set from bytes, where pixels lie between 0 and 1, would all be at the end of the interval."""
    unit, counts = fp.Elementwise(2, fp.Sigmoid()), arrays(language, np.array([[0, 7], [1, 2]]))
    key = jax.random.key(0)
    if language == "pyro":
        flow, dequantized = fpp.Flow(unit), fpp.Dequantized(unit, 3)
        start = dequantized.init_from
    else:
        flow, dequantized = fnp.Flow.init(key, unit), fnp.Dequantized.init(key, unit, 3)
        start = functools.partial(dequantized.init_from, key=key)
    with pytest.raises(ValueError, match=r"outside of \(0, 1\)"):
        flow.init_from(counts)
    with pytest.raises(ValueError, match="must be finite"):
        flow.init_from(counts * math.nan)
    with pytest.raises(ValueError, match="integers from 0 to 2"):
        start(counts)
    for rate in (-0.1, math.nan, None):
        with pytest.raises(ValueError, match="learning_rate must give a finite number of at least 0"):
            fit(language, fp.ElementwiseAffine(2), rng.normal(size=(20, 2)), learning_rate=lambda _, rate=rate: rate)


@both
def test_a_fit_in_bfloat16_has_a_checkpoint(language, rng, tmp_path):
    affine, x = fp.ElementwiseAffine(2), rng.normal(size=(20, 2))
    if language == "pyro":
        flow = fpp.Flow(affine).to(torch.bfloat16)
    else:
        flow = fnp.Flow(affine, map_tree(lambda p: jnp.zeros(p.shape, jnp.bfloat16), affine.parameters()))
    for num_epochs in (1, 2):
        options = {"num_epochs": num_epochs, "learning_rate": lambda epoch: 0.02}
        found = fit(language, flow, x, checkpoint=tmp_path / "here", **options)
    assert len(found.losses) == 2


def fit(language, flow, x, seed=0, **options):
    options = {"progress": False, "learning_rate": 0.02, "batch_size": 32} | options
    if language == "pyro":
        pyro.set_rng_seed(seed)
        return fpp.fit_density(flow, x, **options)
    return fnp.fit_density(jax.random.key(seed), flow, x, **options)


def levels_of(rng, n=192):
    return rng.integers(0, 3, size=(n, 2)) // np.array([1, 2])


@both
def test_a_fit_draws_new_noise_and_learns_the_frequencies(language, rng):
    x = levels_of(rng, 128)
    noise = fp.realnvp(2, num_flows=1, hidden_dims=4, context_dim=2)
    still = fit(language, square_flow(language, noise), x, learning_rate=1e-12, num_epochs=2, validation=x[:20])
    assert still.losses[0] != still.losses[1]
    assert still.validation_losses[0] == pytest.approx(still.validation_losses[1], abs=1e-9)
    fitted = fit(language, square_flow(language, noise), x, num_epochs=15, learning_rate=0.05, validation=x[:20])
    assert fitted.losses[-1] < fitted.losses[0]
    found = log_weights(language, fitted.flow, np.unique(x, axis=0), 200)
    frequencies = np.unique(x, axis=0, return_counts=True)[1] / len(x)
    entropy = -(frequencies * np.log(frequencies)).sum()
    loss = -(frequencies * np.log(np.exp(found).mean(axis=0))).sum()
    assert entropy - 0.02 < loss < entropy + 0.4
    with pytest.raises(ValueError, match="fit_density: x must hold integers from 0 to 2"):
        fit(language, square_flow(language), x / 2)


@both
def test_a_density_fit_resumed_is_the_fit_uninterrupted(language, rng, tmp_path):
    x, path = levels_of(rng, 70), tmp_path / "fit.safetensors"

    def augment(*key_and_x):
        return key_and_x[-1][:, [1, 0]]

    options = {"ema_decay": 0.9, "warm_up": 2, "augment": augment, "num_epochs": 4}
    whole = fit(language, square_flow(language), x, **options)
    fit(language, square_flow(language), x, checkpoint=path, callback=lambda epoch, _: epoch == 1, **options)
    resumed = fit(language, square_flow(language), x, seed=5, checkpoint=path, **options)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(resumed.validation_losses, whole.validation_losses)
    found, expected = (log_weights(language, result.flow, x[:5], 2) for result in (resumed, whole))
    np.testing.assert_array_equal(found, expected)
    for name, other in (("warm_up", 0), ("learning_rate", 0.03), ("augment", None)):
        with pytest.raises(ValueError, match=f"another training, with other {name}; name another file, or delete it"):
            fit(language, square_flow(language), x, checkpoint=path, **options | {name: other})
    message = "with other num_epochs; .* start anew. The learning rate falls over num_epochs: give the same number or"
    with pytest.raises(ValueError, match=message):
        fit(language, square_flow(language), x, checkpoint=path, **options | {"num_epochs": 5})
    with pytest.raises(ValueError, match="with other data"):
        fit(language, square_flow(language), 2 - x, checkpoint=path, **options)
    with pytest.raises(ValueError, match="a checkpoint cannot tell where an iterable of batches is"):
        fit(language, square_flow(language), iter_again(x), checkpoint=path, validation=None)


@both
def test_a_fit_does_not_go_on_with_another_base(language, rng, tmp_path):
    x, options = rng.normal(size=(20, 2)), {"num_epochs": 1, "validation": None, "checkpoint": tmp_path / "fit"}

    def flow(scale):
        affine = fp.ElementwiseAffine(2)
        if scale is None:
            return affine
        if language == "pyro":
            return fpp.Flow(affine, pyro.distributions.Laplace(torch.zeros(2), scale).to_event(1))
        base = numpyro.distributions.Laplace(jnp.zeros(2), scale).to_event(1)
        return fnp.Flow(affine, map_tree(jnp.zeros_like, fnp.Flow.init(jax.random.key(0), affine).params), base)

    fit(language, flow(3.0), x, **options)
    fit(language, flow(3.0), x, **options)
    for scale in (None, 2.0):
        with pytest.raises(ValueError, match="another training, with other base"):
            fit(language, flow(scale), x, **options)


def iter_again(x):
    class Again:
        def __iter__(self):
            yield x[:40]
            yield x[40:]

    return Again()


@both
def test_batches_of_an_iterable_take_part_in_averages(language, rng):
    x = levels_of(rng, 70)
    found = fit(language, square_flow(language), iter_again(x), ema_decay=0.5, num_epochs=2, validation=(x[:5], None))
    assert np.isfinite([*found.losses, *found.validation_losses]).all()


@both
def test_the_learning_rate_warms_up_follows_a_schedule_and_averages_the_steps(language):
    """Of one parameter with a constant gradient Adam's steps are the rates."""
    x = np.full((8, 2), 1000.0) + np.arange(16.0).reshape(8, 2)
    make = {"pyro": fpp.Flow, "numpyro": lambda b: fnp.Flow.init(jax.random.key(0), b)}[language]
    rates, moved = {0: 0.1, 1: 0.2, 2: 0.4}, []
    options = {"validation": None, "batch_size": 8, "init": False}
    for num in (1, 2, 3):
        result = fit(language, make(ShiftOnly()), x, num_epochs=num, learning_rate=rates.get, **options)
        moved.append(shift_of(result.flow))
    np.testing.assert_allclose(np.diff([0, *moved]), [0.1, 0.2, 0.4], rtol=1e-3)
    warm = fit(language, make(ShiftOnly()), x, num_epochs=3, learning_rate=rates.get, warm_up=4, **options)
    np.testing.assert_allclose(shift_of(warm.flow), 0.1 / 4 + 0.2 / 2 + 0.4 * 3 / 4, rtol=1e-3)
    mean = fit(language, make(ShiftOnly()), x, num_epochs=3, learning_rate=rates.get, ema_decay=0.5, **options)
    np.testing.assert_allclose(shift_of(mean.flow), np.average(moved, weights=[1, 2, 4]), rtol=1e-3)


@dataclasses.dataclass(frozen=True)
class ShiftOnly(fp.Bijection):
    dim: int = 2

    def parameters(self):
        return {"shift": fp.Parameter((1,))}

    def forward(self, params, x, context=None):
        return x + params["shift"], 0 * x[..., 0]

    def inverse(self, params, y, context=None):
        return y - params["shift"], 0 * y[..., 0]


def shift_of(flow):
    return (flow.params if isinstance(flow, fnp.Flow) else flow.transform.weights.tree())["shift"].item()


@both
def test_integers_and_data_far_away_are_warned_of(language, rng):
    with pytest.warns(UserWarning, match=r"They are integers: fit Dequantized\(flow, levels=3\)"):
        fit(language, fp.ElementwiseAffine(2), levels_of(rng, 50), num_epochs=1)
    for x in (1000.0 + rng.normal(size=(50, 2)), 1e-6 * rng.normal(size=(50, 2))):
        with pytest.warns(UserWarning, match=r"2 of the 2 coordinates lie far .* or let the flow end with flowppl.Act"):
            fit(language, fp.ElementwiseAffine(2), x, num_epochs=1)
        fit(language, fp.Chain([fp.ElementwiseAffine(2), fp.ActNorm(2)]), x, num_epochs=1)


def evaluate(language, flow, x, **options):
    if language == "pyro":
        pyro.set_rng_seed(0)
        return fpp.evaluate_density(flow, x, **options)
    return fnp.evaluate_density(jax.random.key(0), flow, x, **options)


@both
def test_an_evaluation_has_the_truth_within_its_errors(language, rng):
    exact = exact_log_probs()
    rows = rng.choice(9, size=40, p=np.exp(exact))
    found = evaluate(language, square_flow(language), PAIRS[rows], num_samples=300, chunk_size=1700)
    assert abs(found.log_prob - exact[rows].mean()) < 5 * found.log_prob_se
    assert found.bound + 5 * found.bound_se < found.log_prob
    assert found.log_prob_sampling_se == pytest.approx(exact[rows].std(ddof=1) / 40**0.5, rel=0.1)
    assert (found.num_data, found.num_dims, found.num_samples) == (40, 2, 300)
    assert found.bits_per_dim == pytest.approx(-found.log_prob / (2 * np.log(2)))
    assert "bound_bits_per_dim" in str(found)
    flow = square_flow(language).flow
    y = rng.uniform(0.1, 0.9, size=(7, 2))
    density = norm.logpdf(np.log(y / (1 - y)), *zip(*NORMALS, strict=True)) - np.log(y * (1 - y))
    found = evaluate(language, flow, y, chunk_size=4)
    assert found.log_prob == found.bound == pytest.approx(density.sum(axis=1).mean(), rel=1e-10)
    assert (found.log_prob_se, found.bound_se, found.num_samples) == (0, 0, 0)
    assert "bound" not in str(found)
    with pytest.raises(ValueError, match="evaluate_density: x must hold integers from 0 to 2"):
        evaluate(language, square_flow(language), y)
    with pytest.raises(TypeError, match=r"flow must be one of flowppl\.\w+, .*PixelCNN, got Elementwise"):
        evaluate(language, fp.Elementwise(2, fp.Sigmoid()), y)


@both
def test_saved_in_one_language_it_is_the_same_in_the_other(language, tmp_path):
    other = {"pyro": "numpyro", "numpyro": "pyro"}[language]
    for noise in (None, fp.realnvp(2, num_flows=1, hidden_dims=4, context_dim=2)):
        dequantized = square_flow(language, noise)
        fp.save(tmp_path / "file", dequantized)
        same, there = (fp.load(tmp_path / "file", backend=each) for each in (language, other))
        assert there.levels == 3
        assert there._of_x == dequantized._of_x
        expected = log_weights(language, dequantized, PAIRS, 1)
        np.testing.assert_array_equal(log_weights(language, same, PAIRS, 1), expected)
        fp.save(tmp_path / "back", there)
        for one, again in zip(read_file(tmp_path / "file"), read_file(tmp_path / "back"), strict=True):
            assert one.keys() == again.keys()
            assert one.get("bijection") == again.get("bijection")
        np.testing.assert_array_equal(
            log_weights(language, fp.load(tmp_path / "back", backend=language), PAIRS, 1), expected
        )


@both
def test_classes_are_a_context_of_flow_and_noise(language):
    """Of images, with a noise that knows the image, and one that knows the class too."""
    shape, given = (1, 2, 2), arrays(language, np.eye(3))
    flow = fp.nice_image(shape, num_flows=2, hidden_dims=4, context_dim=3)
    x = arrays(language, np.arange(12).reshape(3, *shape) % 4)
    for size in (4, 7):
        noise = fp.ImageCoupling(shape, mask="checkerboard", hidden_channels=4, num_blocks=1, context_dim=size)
        if language == "pyro":
            dequantized = fpp.Dequantized(flow, 4, noise)
            found, draws = dequantized(given, 2).log_prob(x).detach(), dequantized(given).sample((2,))
        else:
            dequantized = fnp.Dequantized.init(jax.random.key(0), flow, 4, noise)

            @jax.jit
            def run(dequantized, key):
                return dequantized(given, 2, key=key).log_prob(x), dequantized(given).sample(key, (2,))

            found, draws = run(dequantized, jax.random.key(1))
        assert found.shape == (3,)
        assert np.isfinite(np.asarray(found)).all()
        assert draws.shape == (2, 3, *shape)
        with pytest.raises(ValueError, match="needs a context"):
            log_weights(language, dequantized, np.asarray(x), 1)
