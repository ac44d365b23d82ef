"""Distributions of integers, in both languages, against sums over all values and the papers' equations."""

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

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp

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
