"""Variational autoencoders with flows, in both languages: their numbers, and what a user does with them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from autoencoders import NumPyro, Pyro, both, small, stripes
from catalogue import draw
from flax import nnx
from scipy.stats import norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import map_tree, select
from flowppl.autoencoders.evaluation import evaluate
from flowppl.inference.latent_space import path_weights

FLOWS = ["planar", "radial", "sylvester", "orthogonal_sylvester", "householder", "iaf", "realnvp", "nsf", None]


# The numbers are right


@pytest.mark.parametrize("prior", [None, fp.realnvp(3, 2, hidden_dims=4)], ids=["normal", "realnvp"])
@pytest.mark.parametrize("flow", FLOWS)
def test_both_languages_give_the_same_elbo_of_each_datum(flow, prior, rng):
    x, noise = stripes(7), rng.normal(size=(4, 7, 3))
    vae = small(Pyro, flow, dim=3, prior=prior)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter += 0.3 * torch.tensor(rng.normal(size=parameter.shape))
    peer = small(NumPyro, flow, dim=3, prior=prior)
    params = {}
    for name, layer, path in (("encoder", vae.encoder[0], ("layers", 0)), ("decoder", vae.decoder, ())):
        tree = {
            "kernel": jnp.asarray(layer.weight.detach().T.numpy()),
            "bias": jnp.asarray(layer.bias.detach().numpy()),
        }
        for key in reversed(path):
            tree = {key: tree}
        params[f"{name}$params"] = tree
    for name in ("posterior",) if prior is None else ("posterior", "prior"):
        part = getattr(vae, name)
        tree = select(part.bijection.parameters(), part.transform.weights.tree())
        params[name] = map_tree(lambda leaf: jnp.asarray(leaf.detach().numpy()), tree)
    with torch.no_grad():
        expected = vae.terms(torch.tensor(x), torch.tensor(noise))
    found = peer.terms(params, jnp.asarray(x), jnp.asarray(noise))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    assert found[0].shape == found[1].shape == (4, 7)


@both
@pytest.mark.parametrize("flow", FLOWS)
def test_gradients_reach_the_encoder_through_the_context(lang, flow, rng):
    """Against finite differences along a random direction of the encoder's weights, away from the first ones."""
    vae, x, noise = small(lang, flow, dim=3), stripes(5), rng.normal(size=(5, 3))
    params = lang.params(vae, x)
    flat, treedef = jax.tree.flatten(params)
    paths = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    start = [np.asarray(leaf) for leaf in flat]  # constants, such as masks, are among those of Pyro
    start = [leaf + 0.3 * rng.normal(size=leaf.shape) if leaf.dtype.kind == "f" else leaf for leaf in start]
    direction = [rng.normal(size=leaf.shape) for leaf in start]

    def at(step):
        moved = zip(paths, start, direction, strict=True)
        return jax.tree.unflatten(treedef, [a + step * b if p.startswith("encoder") else a for p, a, b in moved])

    if lang is Pyro:
        start, direction = (list(map(torch.tensor, arrays)) for arrays in (start, direction))

        def elbo(step):
            tensors = at(step)
            arguments = (torch.tensor(x), torch.tensor(noise))
            log_likelihood, kl, _ = torch.func.functional_call(_Terms(vae), _named(tensors), arguments)
            return (log_likelihood - kl).sum()

        step = torch.zeros((), requires_grad=True)
        (slope,) = torch.autograd.grad(elbo(step), step)
    else:

        def elbo(step):
            log_likelihood, kl, _ = vae.terms(jax.tree.map(jnp.asarray, at(step)), jnp.asarray(x), jnp.asarray(noise))
            return (log_likelihood - kl).sum()

        slope = jax.jit(jax.grad(elbo))(0.0)
    size = 1e-5
    with torch.no_grad():
        difference = (float(elbo(torch.tensor(size) if lang is Pyro else size)) - float(elbo(-size))) / (2 * size)
    assert abs(float(slope)) > 1e-3
    np.testing.assert_allclose(float(slope), difference, rtol=1e-5)


class _Terms(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, x, noise):
        return self.vae.terms(x, noise)


def _named(tensors):
    return {f"vae.{name}": tensor for name, tensor in tensors.items()}


def linear_model(lang, rng):
    """x = W z + b + noise, with its evidence known; the posterior is a Gaussian, but not of independent latents."""
    matrix, offset, scale = rng.normal(size=(4, 2)), rng.normal(size=4), 0.7

    def decoder(xp, z):
        w, b = (xp.asarray(each) for each in (matrix, offset))
        return z @ w.T + b, xp.log(xp.asarray(scale))

    encoder, _ = lang.networks(4, 6, 2, 1)
    posterior = fp.amortized_posterior(2, 6, None)
    vae = lang.adapter.FlowVAE(encoder, lang.function(decoder), posterior, likelihood="gaussian")
    x = rng.normal(size=(12, 2)) @ matrix.T + offset + scale * rng.normal(size=(12, 4))
    covariance = matrix @ matrix.T + scale**2 * np.eye(4)
    centred = x - offset
    quadratic = np.sum(centred * np.linalg.solve(covariance, centred.T).T, axis=1)
    return vae, x, -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])


@both
def test_evaluation_finds_the_evidence_and_knows_its_errors(lang, rng):
    vae, x, log_evidence = linear_model(lang, rng)
    params = lang.fit(0, vae, x, num_epochs=300, warm_up=0, validation=None, learning_rate=0.02).params
    found = lang.evaluate(0, vae, params, x, num_samples=20_000, chunk_size=10_000)
    assert abs(found.log_prob - log_evidence.mean()) < 6 * found.log_prob_se + 0.02
    assert found.elbo < found.log_prob
    assert found.elbo == pytest.approx(found.reconstruction - found.kl)
    assert found.bits_per_dim == pytest.approx(-found.log_prob / (4 * math.log(2)))
    small_runs = [lang.evaluate(seed, vae, params, x, num_samples=50) for seed in range(40)]
    for name in ("elbo", "reconstruction", "kl"):
        values = [getattr(each, name) for each in small_runs]
        errors = [getattr(each, name + "_se") for each in small_runs]
        assert 0.6 < np.std(values) / np.median(errors) < 1.6
        assert abs(np.mean(values) - getattr(found, name)) < 5 * np.std(values) / 40**0.5
    assert "bits_per_dim" in str(found)
    assert (found.num_data, found.num_dims) == (12, 4)


def test_active_units_are_counted_with_the_error_of_counting():
    rng = np.random.default_rng(0)
    means = rng.normal(size=(400, 3)) * [1.0, 0.1, 0.0]  # variances 1, 0.01, which is the limit, and 0

    def weigh(part, num_draws, count):
        z = means[part] + rng.normal(size=(num_draws, len(means[part]), 3))
        return z[..., 0], z[..., 1], z

    found = evaluate(weigh, 400, 1, 100, 1000)
    assert found.active_units in (1, 2)
    assert 0.05 < found.active_units_se <= 0.5


def test_a_datum_no_draw_explains_has_no_evidence():
    log_likelihood = np.full((10, 2), -np.inf)
    log_likelihood[:, 1] = -1.0
    found = evaluate(
        lambda part, num, _: (log_likelihood[:num, part], np.zeros((num, 2)), np.zeros((num, 2, 1))), 2, 1, 10, 10
    )
    assert found.elbo == found.log_prob == -np.inf


def curved_model(lang, flow):
    """x = z_1 + z_2^2 + noise: a posterior bent to an arc, whose evidence a grid gives."""

    def decoder(xp, z):
        return z[:, :1] + z[:, 1:] ** 2, xp.log(xp.asarray(0.3))

    encoder = lang.networks(1, 32, 1, 1)[0]
    posterior = fp.amortized_posterior(2, 32, flow, None if flow is None else 4)
    return lang.adapter.FlowVAE(encoder, lang.function(decoder), posterior, likelihood="gaussian")


@both
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.stress)])
def test_a_flow_closes_the_gap_that_a_gaussian_leaves(lang, seed):
    x = np.linspace(-1.0, 3.0, 16)[:, None]
    grid = np.linspace(-6, 6, 601)
    first, second = np.meshgrid(grid, grid)
    log_joint = -0.5 * (first**2 + second**2) - 0.5 * ((x[:, :, None] - first - second**2) / 0.3) ** 2
    log_joint -= 1.5 * math.log(2 * math.pi) + math.log(0.3)
    log_evidence = np.log(np.exp(log_joint).sum((1, 2)) * (grid[1] - grid[0]) ** 2)
    gaps = {}
    for flow in (None, "realnvp"):
        vae = curved_model(lang, flow)
        options = {
            "validation": None,
            "warm_up": 0,
            "batch_size": 256,
            "learning_rate": lambda epoch: 0.01 / (1 + epoch / 50),
        }
        fit = lang.fit(seed, vae, np.tile(x, (64, 1)), num_epochs=100, **options)
        gaps[flow] = log_evidence.mean() - lang.evaluate(0, vae, fit.params, x, num_samples=2000).elbo
    assert gaps[None] > 0.4
    assert -0.02 < gaps["realnvp"] < 0.3 * gaps[None], gaps


# Inside SVI


def test_svi_of_either_language_has_the_same_elbo():
    x = stripes()
    vae = small(Pyro, "sylvester", prior=fp.realnvp(2, 2, hidden_dims=4))
    loss = pyro.infer.Trace_ELBO(num_particles=400, vectorize_particles=True).loss(
        vae.model, vae.guide, torch.tensor(x)
    )
    found = fpp.evaluate_vae(vae, x, num_samples=1000)
    assert abs(found.elbo + loss / 60) < 6 * found.elbo_se * 1000**0.5 / 400**0.5
    peer = small(NumPyro, "sylvester", prior=fp.realnvp(2, 2, hidden_dims=4))
    params = NumPyro.params(peer, x)
    objective = numpyro.infer.Trace_ELBO(num_particles=400)
    loss = jax.jit(objective.loss, static_argnums=(2, 3))
    loss = loss(jax.random.key(0), params, peer.model, peer.guide, jnp.asarray(x))
    found = fnp.evaluate_vae(jax.random.key(1), peer, params, x, num_samples=1000)
    assert abs(found.elbo + loss / 60) < 6 * found.elbo_se * 1000**0.5 / 400**0.5


def test_svi_trains_all_parts_but_a_frozen_prior():
    x = stripes()
    frozen = fpp.Flow(fp.realnvp(2, 2, hidden_dims=4)).freeze()
    vae = small(Pyro, "planar", prior=frozen)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
    for _ in range(3):
        svi.step(torch.tensor(x))
    moved = {name.split(".")[0] for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"encoder", "decoder", "posterior"}
    peer = small(NumPyro, "planar", prior=fnp.Flow.init(jax.random.key(0), fp.realnvp(2, 2, hidden_dims=4)))
    svi = numpyro.infer.SVI(peer.model, peer.guide, numpyro.optim.Adam(0.01), numpyro.infer.Trace_ELBO())
    state = svi.init(jax.random.key(0), jnp.asarray(x))
    assert set(svi.get_params(state)) == {"encoder$params", "decoder$params", "posterior"}
    assert set(svi.get_params(state)) == set(NumPyro.params(peer, x))


def test_svi_in_pyro_refuses_a_second_autoencoder_beside_the_first():
    first, second, x = small(Pyro), small(Pyro), torch.tensor(stripes())
    for vae in (first, second):
        svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
        if vae is first:
            svi.step(x)
            svi.step(x)
    with pytest.raises(ValueError, match="parameter store has the encoder of another autoencoder"):
        svi.step(x)


# What a user does with it


@both
@pytest.mark.parametrize("prior", [None, fp.realnvp(2, 2, hidden_dims=4)], ids=["normal", "realnvp"])
def test_shapes_and_ends_of_what_is_generated(lang, prior):
    x = stripes(5)
    vae = small(lang, prior=prior)
    params = lang.params(vae, x)
    assert lang.call("encode", vae, params, x, 3).shape == (3, 5, 2)
    assert lang.call("reconstruct", vae, params, x, 3).shape == (3, 5, 9)
    drawn = lang.call("sample", vae, params, 50, mean=False)
    assert drawn.shape == (50, 9)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    means = lang.call("sample", vae, params, 50)
    assert ((means > 0) & (means < 1)).all()
    for spherical in (False, True):
        way = lang.call("interpolate", vae, params, x[:2], x[2:4], 4, spherical=spherical)
        assert way.shape == (4, 2, 9)
        again = lang.call("interpolate", vae, params, x[:2], x[2:4], 2)  # the ends are encoded, not drawn
        np.testing.assert_allclose(way[[0, -1]], again, rtol=1e-10)


def test_a_prior_with_a_base_of_its_own_is_sampled_from_it():
    base = numpyro.distributions.Normal(jnp.full(2, 100.0), 1.0)
    vae = small(NumPyro, prior=fnp.Flow.init(jax.random.key(0), fp.ElementwiseAffine(2), base))
    vae = fnp.FlowVAE(vae.encoder, lambda z: z.repeat(5, -1)[:, :9], vae.posterior, vae.prior, "bernoulli")
    params = NumPyro.params(vae, stripes())
    assert (np.asarray(vae.sample(jax.random.key(0), params, 20)) > 0.99).all()


@pytest.mark.parametrize("spherical", [False, True])
def test_ways_begin_and_end_at_the_data(spherical):
    first, second = path_weights(5, spherical)
    np.testing.assert_allclose([first[0], second[0], first[-1], second[-1]], [1, 0, 0, 1], atol=1e-12)
    if spherical:
        np.testing.assert_allclose(first**2 + second**2, 1.0)
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 2"):
        path_weights(1, spherical)


@both
def test_categories_and_likelihoods_of_ones_own(lang):
    x = np.random.default_rng(0).integers(0, 3, (8, 9))

    def decoder(xp, z):
        return xp.stack([xp.zeros_like(z[:, :1]) + 0 * z[:, :1]] * 27, -1).reshape(-1, 9, 3)

    vae = lang.adapter.FlowVAE(
        lang.function(lambda xp, x: xp.ones_like(xp.asarray(x[:, :6])) * 1.0),
        lang.function(decoder),
        fp.amortized_posterior(2, 6, None),
        likelihood="categorical",
    )
    params = lang.params(vae, x)
    found = lang.evaluate(0, vae, params, x, num_samples=10)
    assert found.reconstruction == pytest.approx(9 * math.log(1 / 3))
    np.testing.assert_allclose(lang.call("reconstruct", vae, params, x), 1.0)
    own = pyro.distributions.Poisson if lang is Pyro else numpyro.distributions.Poisson
    vae = small(lang, likelihood=lambda output: own(1.0 + 0.0 * output))
    found = lang.evaluate(0, vae, lang.params(vae, x), x, num_samples=10)
    expected = -9 - np.mean(np.sum([[math.lgamma(k + 1) for k in row] for row in x], axis=1))
    assert found.reconstruction == pytest.approx(expected)


@both
def test_one_scale_for_all_rows_stays_one_whatever_the_number_of_rows(lang):
    """Nine numbers in a datum, and nine draws."""
    scales = np.linspace(-1.0, 1.0, 9)
    vae = lang.adapter.FlowVAE(
        lang.networks(9, 6, 2, 9)[0],
        lang.function(lambda xp, z: (xp.concatenate([z[:, :1]] * 9, -1), xp.asarray(scales))),
        fp.amortized_posterior(2, 6, None),
        likelihood="gaussian",
    )
    x = np.random.default_rng(0).normal(size=(1, 9))
    params = lang.params(vae, x)
    assert lang.call("reconstruct", vae, params, x, 9).shape == (9, 1, 9)
    noise = np.random.default_rng(1).normal(size=(9, 1, 2))
    arrays = (torch.as_tensor(x), torch.as_tensor(noise)) if lang is Pyro else (params, x, noise)
    found, _, z = (np.asarray(each.detach() if lang is Pyro else each) for each in vae.terms(*arrays))
    expected = norm.logpdf(x, z[..., :1], np.exp(scales)).sum(axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    lang.evaluate(0, vae, params, x, num_samples=9, chunk_size=1)


@both
def test_log_likelihood_of_categories_by_hand(lang):
    rng = np.random.default_rng(0)
    x, slopes = rng.integers(0, 3, (8, 9)), rng.normal(size=(9, 3))
    vae = lang.adapter.FlowVAE(
        lang.function(lambda xp, x: xp.ones_like(xp.asarray(x[:, :6])) * 1.0),
        lang.function(lambda xp, z: z[:, :1, None] * xp.asarray(slopes)),
        fp.amortized_posterior(2, 6, "planar", 2),
        likelihood="categorical",
    )
    noise, params = rng.normal(size=(4, 8, 2)), lang.params(vae, x)
    arrays = (torch.as_tensor(x), torch.as_tensor(noise)) if lang is Pyro else (params, x, noise)
    found, _, z = (each.detach() if lang is Pyro else each for each in vae.terms(*arrays))
    logits = np.asarray(z)[..., :1, None] * slopes
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = np.stack([sum(log_probs[:, row, i, x[row, i]] for i in range(9)) for row in range(8)], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


class _Devices(TorchDispatchMode):
    """Gathers the devices of all arrays that operations take or give."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
        self.found |= {tensor.device.type for tensor in tensors if tensor.ndim}
        return result


@pytest.mark.parametrize("flow", FLOWS)
def test_an_elbo_is_computed_on_the_device_of_the_module(flow):
    """The device "meta" computes nothing, but tells what was left on another one."""
    vae = small(Pyro, flow, prior=fp.realnvp(2)).to("meta")
    with pyro.validation_enabled(False), _Devices() as devices:
        log_likelihood, kl, _ = vae.terms(vae._rows(torch.ones(5, 9, device="meta")), torch.ones(5, 2, device="meta"))
        (kl - log_likelihood).mean().backward()
    assert devices.found == {"meta"}


# Errors


@both
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"posterior": fp.realnvp(2)}, ValueError, "the posterior must depend on features"),
        ({"posterior": "sylvester"}, TypeError, "expected a flowppl.Bijection"),
        ({"prior": fp.realnvp(3)}, ValueError, r"real numbers, of shape \(2,\)"),
        ({"prior": "realnvp"}, TypeError, "expected a flowppl.Bijection"),
        ({"likelihood": "poisson"}, ValueError, "likelihood must be one of bernoulli, categorical, gaussian"),
    ],
)
def test_parts_that_do_not_fit(lang, options, error, message):
    parts = {"posterior": fp.amortized_posterior(2, 6, None)} | options
    with pytest.raises(error, match=message):
        lang.adapter.FlowVAE(*lang.networks(9, 6, 2, 9), **parts)


def test_an_unknown_flow_of_a_posterior():
    with pytest.raises(ValueError, match="unknown flow 'silvester'; known flows are"):
        fp.amortized_posterior(2, 6, "silvester")
    with pytest.raises(TypeError, match=r"flow must be a name, a recipe .*, or None, got Repeat"):
        fp.amortized_posterior(2, 6, fp.iaf(2, context_dim=6))
    assert fp.amortized_posterior(2, 6, fp.iaf, 3) == fp.amortized_posterior(2, 6, "iaf", 3)
    assert fp.amortized_posterior(2, 6, hidden_dims=4) == fp.amortized_posterior(2, 6, hidden_dims=[4])


def test_scales_of_a_base_stay_in_their_bounds(rng):
    posterior = fp.amortized_posterior(3, 6, None, scale_bounds=(0.1, 2.5))
    params = draw(posterior, rng, scale=5.0)
    context = rng.normal(size=(200, 6))
    ends = [posterior.forward(params, np.full(3, x), context)[0] for x in (0.0, 1.0)]
    scales = ends[1] - ends[0]
    assert scales.min() == pytest.approx(0.1, rel=1e-3)
    assert scales.max() == pytest.approx(2.5, rel=1e-3)
    for flow in ("planar", "iaf"):
        whole = fp.amortized_posterior(3, 6, flow, scale_bounds=(0.1, 2.5))
        assert repr(posterior.bijection) in repr(whole)
    for bounds in ((0.1, 0.5), (0.0, 2.0), (2.0, 3.0), (0.1, math.inf), (0.1,), (0.1, None), 0.1):
        with pytest.raises(ValueError, match="scale_bounds must be a positive number below 1 and a finite one above"):
            fp.amortized_posterior(3, 6, None, scale_bounds=bounds)


@both
def test_data_that_do_not_fit(lang):
    x = stripes()

    def fit(vae, x, **options):
        return lang.fit(0, vae, x, num_epochs=1, **options)

    with pytest.raises(ValueError, match=r"data that are 0 or 1, but the data range from 0.0 to 16.0; binarise"):
        fit(small(lang), 16 * x)
    with pytest.raises(ValueError, match="not all finite"):
        fit(small(lang), np.where(x > 0, np.nan, 0.0))
    with pytest.raises(ValueError, match=r"likelihood of data of shape \(4,\), but the data have the shape \(9,\)"):
        fit(small(lang, num_outputs=4), x)
    with pytest.raises(ValueError, match=r"features of shape \(1, 6\) for 1 data, .* got \(1, 5\)"):
        fit(lang.adapter.FlowVAE(*lang.networks(9, 5, 2, 9), fp.amortized_posterior(2, 6, None)), x)
    with pytest.raises(ValueError, match=r"0 or 1, but the data range from 0.0 to 2.0"):
        fit(small(lang), x, validation=2 * x[:5])
    with pytest.raises(ValueError, match="validation must be a fraction, at least 0 and below 1"):
        fit(small(lang), x, validation=1.0)
    with pytest.raises(ValueError, match="of 1 row none can be held out"):
        fit(small(lang), x[:1])
    with pytest.raises(ValueError, match=r"must give a pair, the mean and .*, got one array of shape \(1, 9\)"):
        fit(small(lang, likelihood="gaussian"), x)
    own = (pyro if lang is Pyro else numpyro).distributions.Poisson
    with pytest.raises(ValueError, match=r"all data in its support, but the data range from 0.0 to 0.5"):
        fit(small(lang, likelihood=lambda output: own(1.0 + output**2)), x / 2)


def test_networks_with_a_state_are_refused():
    rngs = nnx.Rngs(0)
    encoder = nnx.Sequential(nnx.Linear(9, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
    vae = fnp.FlowVAE(encoder, nnx.Linear(2, 9, rngs=rngs), fp.amortized_posterior(2, 6, None))
    with pytest.raises(ValueError, match=r"networks keep a state, encoder\$state, .* such as LayerNorm"):
        vae.init(jax.random.key(0), stripes())


def test_parameters_with_constraints_are_refused_where_they_would_be_lost():
    def decoder(z):
        scale = numpyro.param("scale", jnp.array(0.3), constraint=numpyro.distributions.constraints.positive)
        return z.repeat(5, -1)[:, :9] * scale

    vae = fnp.FlowVAE(NumPyro.networks(9, 6, 2, 9)[0], decoder, fp.amortized_posterior(2, 6, None))
    with pytest.raises(ValueError, match="the parameters scale have constraints"):
        vae.init(jax.random.key(0), stripes())


def test_ways_lead_between_pairs():
    vae = small(Pyro)
    with pytest.raises(ValueError, match="must be equally many, got 1 and 5 data"):
        vae.interpolate(stripes(1), stripes(5))
