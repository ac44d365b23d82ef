"""Variational autoencoders with flows, in both languages."""

import gzip
import importlib
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from catalogue import draw
from flax import nnx
from pyro.distributions import Normal
from scipy.stats import norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._tree import leaves, map_tree, select
from flowppl.epochs import Progress, run_epochs
from flowppl.evaluation import evaluate
from flowppl.images import load_images
from flowppl.numpyro.steps import make_optimizer, split_batches, take_step
from flowppl.pyro.vae_training import _held
from flowppl.vae import path_weights
from flowppl.vae_training import describe

FLOWS = ["planar", "radial", "sylvester", "orthogonal_sylvester", "householder", "iaf", "realnvp", "nsf", None]


class Pyro:
    """The same few calls in either language."""

    name, adapter = "pyro", fpp

    @staticmethod
    def networks(num_inputs, features, dim, num_outputs, seed=0):
        torch.manual_seed(seed)
        encoder = torch.nn.Sequential(torch.nn.Linear(num_inputs, features), torch.nn.Tanh())
        return encoder, torch.nn.Linear(dim, num_outputs)

    @staticmethod
    def function(of_arrays):
        return _Fixed(lambda z: of_arrays(torch, z))

    @staticmethod
    def fit(seed, vae, x, **options):
        pyro.set_rng_seed(seed)
        return fpp.fit_vae(vae, x, progress=False, **options)

    @staticmethod
    def params(vae, x):
        return dict(vae.state_dict())

    @staticmethod
    def evaluate(seed, vae, params, x, **options):
        pyro.set_rng_seed(seed)
        vae.load_state_dict(params)
        return fpp.evaluate_vae(vae, x, **options)

    @staticmethod
    def call(method, vae, params, *args, **options):
        vae.load_state_dict(params)
        return getattr(vae, method)(*args, **options).numpy()


class NumPyro:
    name, adapter = "numpyro", fnp

    @staticmethod
    def networks(num_inputs, features, dim, num_outputs, seed=0):
        rngs = nnx.Rngs(seed)
        encoder = nnx.Sequential(nnx.Linear(num_inputs, features, rngs=rngs, param_dtype=float), nnx.tanh)
        return encoder, nnx.Linear(dim, num_outputs, rngs=rngs, param_dtype=float)

    @staticmethod
    def function(of_arrays):
        return lambda z: of_arrays(jnp, z)

    @staticmethod
    def fit(seed, vae, x, **options):
        return fnp.fit_vae(jax.random.key(seed), vae, x, progress=False, **options)

    @staticmethod
    def params(vae, x):
        return vae.init(jax.random.key(0), x)

    @staticmethod
    def evaluate(seed, vae, params, x, **options):
        return fnp.evaluate_vae(jax.random.key(seed), vae, params, x, **options)

    @staticmethod
    def call(method, vae, params, *args, **options):
        return np.asarray(getattr(vae, method)(jax.random.key(0), params, *args, **options))


class _Fixed(torch.nn.Module):
    """A function as a module without weights."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


both = pytest.mark.parametrize("lang", [Pyro, NumPyro], ids=["pyro", "numpyro"])


def small(lang, flow="planar", *, dim=2, prior=None, likelihood="bernoulli", num_outputs=9):
    posterior = fp.amortized_posterior(dim, 6, flow, None if flow in (None, "householder") else 2)
    return lang.adapter.FlowVAE(*lang.networks(9, 6, dim, num_outputs), posterior, prior, likelihood)


def stripes(num=60):
    """Images of nine pixels, with one of three columns set."""
    return np.eye(3)[np.random.default_rng(0).integers(0, 3, num)].repeat(3, axis=1)


def assert_same(first, second):
    for (path, one), (_, other) in zip(leaves(first), leaves(second), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=str(path))


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

        slope = jax.grad(elbo)(0.0)
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


def curved_model(lang, flow):
    """x = z_1 + z_2^2 + noise: a posterior bent to an arc, whose evidence a grid gives."""

    def decoder(xp, z):
        return z[:, :1] + z[:, 1:] ** 2, xp.log(xp.asarray(0.3))

    encoder = lang.networks(1, 32, 1, 1)[0]
    posterior = fp.amortized_posterior(2, 32, flow, None if flow is None else 4)
    return lang.adapter.FlowVAE(encoder, lang.function(decoder), posterior, likelihood="gaussian")


@both
@pytest.mark.parametrize("seed", [0, 1])
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


# Training


@both
def test_a_training_resumed_is_the_training_uninterrupted(lang, tmp_path):
    x, options = stripes(), {"batch_size": 16, "warm_up": 2, "clip_norm": 5.0, "learning_rate": 0.01, "ema_decay": 0.9}
    whole = lang.fit(1, small(lang), x, num_epochs=6, **options)
    path = tmp_path / "vae.safetensors"
    lang.fit(1, small(lang), x, num_epochs=3, checkpoint=path, **options)
    resumed = lang.fit(2, small(lang), x, num_epochs=6, checkpoint=path, **options)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    np.testing.assert_array_equal(resumed.validation_losses, whole.validation_losses)
    assert_same(resumed.params, whole.params)
    again = lang.fit(3, small(lang), x, num_epochs=6, checkpoint=path, **options)  # nothing is left to do
    assert_same(again.params, whole.params)


def test_a_resumed_training_has_the_same_memory_of_any_layout_and_the_same_noise(tmp_path):
    """Another order of memory, averages of batches, dropout, a rate that changes, data held out."""
    x = stripes().reshape(-1, 1, 3, 3)

    def make():
        torch.manual_seed(0)
        layers = torch.nn.Conv2d(1, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Dropout(0.2), torch.nn.Flatten()
        encoder = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Conv2d(4, 1, 1), *layers)
        decoder = torch.nn.Sequential(torch.nn.Linear(2, 9), torch.nn.Unflatten(1, (1, 3, 3)))
        return fpp.FlowVAE(
            encoder.to(memory_format=torch.channels_last), decoder, fp.amortized_posterior(2, 6, "planar", 2)
        )

    options = {"batch_size": 19, "warm_up": 0, "optimizer": "adamax", "validation": x[:9]}
    options |= {"learning_rate": lambda epoch: 0.02 / (1 + epoch)}
    whole = Pyro.fit(1, make(), x, num_epochs=4, **options)
    path = tmp_path / "vae.safetensors"
    Pyro.fit(1, make(), x, num_epochs=2, checkpoint=path, **options)
    resumed = Pyro.fit(2, make(), x, num_epochs=4, checkpoint=path, **options)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    assert_same(resumed.params, whole.params)


@both
def test_averaged_weights_are_the_average_of_the_steps(lang):
    x = stripes()
    options = {"batch_size": 60, "warm_up": 0, "learning_rate": 0.05, "validation": x[:20]}  # one step in each epoch
    fits = [lang.fit(1, small(lang), x, num_epochs=num, **options) for num in range(1, 5)]
    found = lang.fit(1, small(lang), x, num_epochs=4, ema_decay=0.6, **options)
    assert found.best_epoch == 3
    shares = 0.6 ** np.arange(3, -1, -1)
    for (path, average), *steps in zip(leaves(found.params), *(leaves(fit.params) for fit in fits), strict=True):
        average_of_steps = np.average([np.asarray(each) for _, each in steps], axis=0, weights=shares)
        np.testing.assert_allclose(np.asarray(average), average_of_steps, rtol=1e-5, atol=1e-6, err_msg=str(path))
    np.testing.assert_array_equal(found.losses, fits[3].losses)  # the steps are those without an average
    assert found.validation_losses[0] == pytest.approx(fits[3].validation_losses[0], rel=1e-6)
    assert (found.validation_losses[1:] > fits[3].validation_losses[1:] + 1e-4).all()  # the average lags behind


@both
def test_an_interruption_loses_the_epoch_it_comes_in_and_no_more(lang, tmp_path, monkeypatch):
    x, options = stripes(), {"batch_size": 16, "warm_up": 0, "learning_rate": 0.01, "ema_decay": 0.9}
    module = importlib.import_module(f"flowppl.{lang.name}.vae_training")
    whole = lang.fit(1, small(lang), x, num_epochs=4, **options)
    step = (module._Trainer, "_step") if lang is Pyro else (module, "_take_step")
    keep = (module._Trainer, "averages")
    # After a step of the third epoch; while the averages of the first or second one are kept.
    for (owner, name), at, expected in ((step, 10, 2), (keep, 1, 0), (keep, 2, 1)):
        path, count, original = tmp_path / f"{name}{at}", itertools.count(1), getattr(owner, name)

        def interrupted(*args, at=at, count=count, original=original):
            result = original(*args)
            if next(count) == at:
                raise KeyboardInterrupt
            return result

        with monkeypatch.context() as patched:
            patched.setattr(owner, name, interrupted)
            found = lang.fit(1, small(lang), x, num_epochs=4, checkpoint=path, **options)
        assert (found.stopped, len(found.losses), found.best_epoch) == ("interrupted", expected, expected - 1)
        if expected:
            assert_same(found.params, lang.fit(1, small(lang), x, num_epochs=expected, **options).params)
        assert_same(lang.fit(1, small(lang), x, num_epochs=4, checkpoint=path, **options).params, whole.params)


def test_averages_know_the_statistics_of_batch_normalisation():
    x = (np.random.default_rng(0).random((400, 9)) < np.random.default_rng(1).random((400, 1))).astype(float)

    def make():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(9, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU()]
        layers += [torch.nn.Linear(16, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU()]
        return fpp.FlowVAE(torch.nn.Sequential(*layers), torch.nn.Linear(2, 9), fp.amortized_posterior(2, 16, None))

    options = {"validation": None, "num_epochs": 60, "warm_up": 0, "batch_size": 20, "learning_rate": 0.01}
    vae = make()
    Pyro.fit(1, vae, x[:300], ema_decay=0.99, **options)
    found = Pyro.evaluate(0, vae, vae.state_dict(), x[300:], num_samples=200).elbo
    for module in vae.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    vae.train()
    with torch.no_grad():
        for _ in range(5):
            vae.terms(torch.tensor(x[:300]), torch.randn(300, 2))
    assert abs(found - Pyro.evaluate(0, vae, vae.state_dict(), x[300:], num_samples=200).elbo) < 0.05


def test_averages_of_half_precision_move():
    """And bfloat16, which NumPy has not, goes through a training, with a checkpoint."""
    x = stripes(20)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), NumPyro.params(small(NumPyro), x))
    vae, options = small(NumPyro), {"num_epochs": 30, "warm_up": 0, "learning_rate": 0.03, "ema_decay": 0.999}
    found = NumPyro.fit(0, vae, x, params=params, **options)
    assert all(leaf.dtype == jnp.bfloat16 for _, leaf in leaves(found.params))
    pairs = zip(leaves(found.params), leaves(params), strict=True)
    assert all((np.asarray(one) != np.asarray(other)).any() for (_, one), (_, other) in pairs)


def test_weights_in_bfloat16_are_trained_and_kept(tmp_path):
    def make():
        vae = small(Pyro)
        vae.encoder.append(_Fixed(lambda h: h.double())).bfloat16().insert(0, _Fixed(lambda x: x.bfloat16()))
        return vae

    x, options = stripes(), {"warm_up": 0, "learning_rate": 0.01, "ema_decay": 0.9}
    whole = Pyro.fit(1, make(), x, num_epochs=4, **options)
    assert whole.vae.encoder[1].weight.dtype == torch.bfloat16
    Pyro.fit(1, make(), x, num_epochs=2, checkpoint=tmp_path / "vae", **options)
    resumed = Pyro.fit(2, make(), x, num_epochs=4, checkpoint=tmp_path / "vae", **options)
    assert all(torch.equal(value, whole.params[name]) for name, value in resumed.params.items())


def test_a_part_that_is_held_is_neither_trained_nor_in_training_mode(tmp_path):
    def make(held=True):
        torch.manual_seed(0)
        backbone = torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5))
        backbone.requires_grad_(not held)
        encoder = torch.nn.Sequential(backbone, torch.nn.Linear(6, 6))
        return fpp.FlowVAE(encoder, torch.nn.Linear(2, 9), fp.amortized_posterior(2, 6, "planar", 2))

    vae = make()
    before = {name: value.clone() for name, value in vae.encoder[0].state_dict().items()}
    x, options = stripes(), {"num_epochs": 2, "warm_up": 0, "ema_decay": 0.9, "checkpoint": tmp_path / "vae"}
    Pyro.fit(0, vae, x, **options)
    assert all(torch.equal(value, before[name]) for name, value in vae.encoder[0].state_dict().items())
    assert vae.encoder[0].training  # as it was
    with pytest.raises(ValueError, match="with other trained parameters"):
        Pyro.fit(0, make(held=False), x, **options)
    with pytest.raises(ValueError, match="no parameter of the autoencoder requires a gradient; nothing can be trained"):
        Pyro.fit(0, vae.requires_grad_(False), x)


@both
def test_a_checkpoint_of_another_precision_is_told(lang, tmp_path):
    x, options = stripes(), {"num_epochs": 1, "warm_up": 0, "checkpoint": tmp_path / "vae"}
    lang.fit(0, small(lang), x, **options)
    vae = small(lang)
    if lang is Pyro:
        vae.float()
    else:
        options["params"] = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), NumPyro.params(vae, x))
    with pytest.raises(ValueError, match="with other networks and flows"):
        lang.fit(0, vae, x, **options)


@both
def test_without_data_there_is_no_training(lang):
    with pytest.raises(ValueError, match="there are no data"):
        lang.fit(0, small(lang), stripes()[:0])


def test_a_function_serves_as_a_network():
    vae = small(Pyro)
    vae = fpp.FlowVAE(vae.encoder, lambda z: z.repeat(1, 5)[:, :9], fp.amortized_posterior(2, 6, None))
    assert len(Pyro.fit(0, vae, stripes(), num_epochs=1, ema_decay=0.9).losses) == 1


def test_a_datum_no_draw_explains_has_no_evidence():
    log_likelihood = np.full((10, 2), -np.inf)
    log_likelihood[:, 1] = -1.0
    found = evaluate(
        lambda part, num, _: (log_likelihood[:num, part], np.zeros((num, 2)), np.zeros((num, 2, 1))), 2, 1, 10, 10
    )
    assert found.elbo == found.log_prob == -np.inf


@both
def test_patience_counts_from_the_end_of_the_warm_up(lang):
    options = {"learning_rate": lambda epoch: 0.01 if epoch < 1 else 3.0, "num_epochs": 30, "patience": 3}
    for warm_up, num in ((0, 4), (5, 8)):
        fit = lang.fit(0, small(lang), stripes(), warm_up=warm_up, **options)
        assert (fit.best_epoch, len(fit.losses)) == (0, num)


@both
def test_patience_may_be_given_later(lang, tmp_path):
    path, x = tmp_path / "vae.safetensors", stripes()
    options = {"warm_up": 0, "learning_rate": lambda epoch: 0.01 if epoch < 2 else 2.0, "checkpoint": path}
    assert lang.fit(0, small(lang), x, num_epochs=50, patience=3, **options).stopped == "patience"
    assert len(lang.fit(0, small(lang), x, num_epochs=12, patience=None, **options).losses) == 12


def test_modes_and_averages_are_left_as_they_are():
    x = stripes()
    frozen = fpp.Flow(fp.realnvp(2, 2, hidden_dims=4)).freeze()
    encoder = torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.BatchNorm1d(6))
    vae = fpp.FlowVAE(encoder, torch.nn.Linear(2, 9), fp.amortized_posterior(2, 6, None), frozen)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    fpp.evaluate_vae(vae, x, num_samples=5)
    vae.reconstruct(x)
    assert_same(dict(vae.state_dict()), before)
    fit = Pyro.fit(0, vae, x[:20], num_epochs=1, warm_up=0, batch_size=10, validation=None)
    assert vae.training
    assert not frozen.training
    assert_same(
        {k: v for k, v in vae.state_dict().items() if "prior" in k}, {k: v for k, v in before.items() if "prior" in k}
    )
    kept = {name: value.clone() for name, value in fit.params.items()}
    Pyro.fit(0, vae, x, num_epochs=1, warm_up=0)
    assert_same(fit.params, kept)


def test_svi_in_pyro_refuses_a_second_autoencoder_beside_the_first():
    first, second, x = small(Pyro), small(Pyro), torch.tensor(stripes())
    for vae in (first, second):
        svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
        if vae is first:
            svi.step(x)
            svi.step(x)
    with pytest.raises(ValueError, match="parameter store has the encoder of another autoencoder"):
        svi.step(x)


def test_a_prior_with_a_base_of_its_own_is_sampled_from_it():
    base = numpyro.distributions.Normal(jnp.full(2, 100.0), 1.0)
    vae = small(NumPyro, prior=fnp.Flow.init(jax.random.key(0), fp.ElementwiseAffine(2), base))
    vae = fnp.FlowVAE(vae.encoder, lambda z: z.repeat(5, -1)[:, :9], vae.posterior, vae.prior, "bernoulli")
    params = NumPyro.params(vae, stripes())
    assert (np.asarray(vae.sample(jax.random.key(0), params, 20)) > 0.99).all()


def test_parameters_with_constraints_are_refused_where_they_would_be_lost():
    def decoder(z):
        scale = numpyro.param("scale", jnp.array(0.3), constraint=numpyro.distributions.constraints.positive)
        return z.repeat(5, -1)[:, :9] * scale

    vae = fnp.FlowVAE(NumPyro.networks(9, 6, 2, 9)[0], decoder, fp.amortized_posterior(2, 6, None))
    with pytest.raises(ValueError, match="the parameters scale have constraints"):
        vae.init(jax.random.key(0), stripes())


@both
def test_bad_checkpoints_are_told_and_left_as_they_are(lang, tmp_path):
    x, path = stripes(), tmp_path / "vae.safetensors"

    def fit(vae, **options):
        return lang.fit(0, vae, x, num_epochs=2, warm_up=0, checkpoint=path, **options)

    fit(small(lang), batch_size=20)
    whole = path.read_bytes()
    with pytest.raises(ValueError, match="another training, with other batch_size"):
        fit(small(lang), batch_size=30)
    with pytest.raises(ValueError, match="with other posterior, networks and flows"):
        fit(small(lang, dim=3), batch_size=20)
    held = [fp.realnvp(2), fp.ElementwiseAffine(2)]
    held = [fpp.Flow(each).freeze() if lang is Pyro else fnp.Flow.init(jax.random.key(0), each) for each in held]
    with pytest.raises(ValueError, match="with other prior, density of the prior"):
        fit(small(lang, prior=held[0]), batch_size=20)
    with pytest.raises(ValueError, match="with other data"):
        lang.fit(0, small(lang), 1 - x, num_epochs=2, warm_up=0, checkpoint=path, batch_size=20)
    with pytest.raises(ValueError, match="with other data, validation"):
        fit(small(lang), batch_size=20, validation=x[:5])
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        lang.fit(0, small(lang), x, checkpoint=tmp_path / "none" / "vae.safetensors")
    with pytest.raises(ValueError, match=r"holds a checkpoint, which flowppl.load does not read"):
        fp.load(path)
    assert path.read_bytes() == whole
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        fit(small(lang), batch_size=20)
    assert path.read_bytes() == whole[:-100]
    path.unlink()
    flow = fpp.Flow(fp.realnvp(2))
    fp.save(path, flow)
    with pytest.raises(ValueError, match="holds a flow, not a checkpoint"):
        fit(small(lang), batch_size=20)


@both
def test_training_on_digits_lowers_the_loss_and_stops_early(lang):
    x = (load_images()[:300] > 7).reshape(-1, 64)[:, ::2].astype(float)
    posterior = fp.amortized_posterior(4, 16, "sylvester", 2)
    vae = lang.adapter.FlowVAE(*lang.networks(32, 16, 4, 32), posterior, fp.realnvp(4, 2, hidden_dims=8))
    fit = lang.fit(0, vae, x, num_epochs=30, warm_up=5, patience=3, learning_rate=0.02, optimizer="adamax")
    assert fit.losses[10] < 0.8 * fit.losses[0]
    assert fit.stopped in ("patience", "num_epochs")
    assert fit.best_epoch == np.argmin(fit.validation_losses)
    assert "VAEFit(" in repr(fit)


@both
def test_warm_up_and_free_bits_weigh_the_kl_term(lang):
    x = stripes()
    plain, warm, free = (
        lang.fit(0, small(lang), x, num_epochs=1, batch_size=60, validation=None, **options).losses[0]
        for options in ({"warm_up": 0}, {"warm_up": 10}, {"warm_up": 10, "free_bits": 70.0})
    )
    assert abs(plain - warm) < 0.2  # at the start the posterior is the prior
    assert free == pytest.approx(warm + 7.0, abs=0.1)


@both
def test_rows_may_be_lists_and_the_last_batch_one_row(lang):
    x = stripes(20)
    fit = lang.fit(0, small(lang), x.tolist(), num_epochs=1, warm_up=0, batch_size=19, validation=x[:3].tolist())
    same = lang.fit(0, small(lang), x, num_epochs=1, warm_up=0, batch_size=19, validation=x[:3])
    np.testing.assert_array_equal(fit.losses, same.losses)


@both
def test_bad_steps_are_left_out(lang):
    vae = lang.adapter.FlowVAE(
        lang.networks(1, 4, 1, 1)[0],
        lang.function(lambda xp, z: (z, xp.where(z > 1, -800.0, 0.0))),  # for some draws a scale of zero
        fp.amortized_posterior(1, 4, None),
        likelihood="gaussian",
    )
    fit = lang.fit(0, vae, np.zeros((20, 1)), num_epochs=4, batch_size=2, warm_up=0, validation=None)
    assert 0 < fit.num_skipped < 40
    assert np.isfinite(fit.losses).all()
    never = lang.adapter.FlowVAE(
        vae.encoder,
        lang.function(lambda xp, z: (z, z * math.nan)),
        fp.amortized_posterior(1, 4, None),
        likelihood="gaussian",
    )
    with pytest.raises(RuntimeError, match="every step was not finite; use a smaller learning_rate"):
        lang.fit(0, never, np.ones((20, 1)), num_epochs=4, warm_up=0)


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
    loss = objective.loss(jax.random.key(0), params, peer.model, peer.guide, jnp.asarray(x))
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


def test_a_prior_that_is_held_is_told_by_its_density():
    flow, other = (fpp.Flow(fp.ElementwiseAffine(2), base) for base in (None, Normal(torch.zeros(2), 9.0).to_event(1)))
    for one in (flow, other):
        one.freeze()
    vaes = [small(Pyro, prior=prior) for prior in (flow, other)]
    first, second = (describe(vae.posterior.bijection, vae.prior, "bernoulli", _held(vae)) for vae in vaes)
    assert [name for name in first if first[name] != second[name]] == ["density of the prior"]
    assert "density of the prior" not in describe(flow.bijection, fpp.Flow(flow.bijection), "bernoulli", None)


def test_numbers_of_numpy_are_options_like_others(tmp_path):
    options = {"batch_size": np.int64(20), "free_bits": np.float32(1.0), "warm_up": np.int64(0)}
    path = tmp_path / "vae.safetensors"
    Pyro.fit(0, small(Pyro), stripes(), num_epochs=1, checkpoint=path, **options)
    assert len(Pyro.fit(0, small(Pyro), stripes(), num_epochs=2, checkpoint=path, **options).losses) == 2


def test_params_of_other_networks_are_told():
    vae, x = small(NumPyro), stripes()
    params = vae.init(jax.random.key(0), x)
    del params["posterior"]
    with pytest.raises(ValueError, match=r"names and shapes of vae.init\(key, x\); .* \['posterior'\]"):
        NumPyro.fit(0, vae, x, params=params)


def test_a_step_whose_gradient_overflows_is_left_out():
    params = jnp.zeros(2, dtype=jnp.float32)
    for clip_norm in (math.inf, 5.0):
        optimizer = make_optimizer("adam", clip_norm)
        carry = params, optimizer.init(params)
        gradient = jnp.array([3e19, 1.0], dtype=jnp.float32)  # finite, and its norm is not
        new, loss = take_step(optimizer, carry, gradient, jnp.float32(1.0), 1e-3)
        assert jnp.isnan(loss)
        jax.tree.map(np.testing.assert_array_equal, new, carry)


def test_the_last_batch_is_filled_with_its_own_row():
    index, weights = split_batches(np.array([4, 1, 0, 3, 2]), 3)
    assert index.tolist() == [[4, 1, 0], [3, 2, 3]]
    assert weights.tolist() == [[True] * 3, [True, True, False]]
    index, weights = split_batches(np.arange(6), 3)
    assert index.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert weights.all()


def test_infinitely_good_validation_is_none():
    progress, scores = Progress(), [3.0, -math.inf, 2.0]
    run_epochs(
        "fit_vae",
        lambda epoch: ([1.0], scores[epoch]),
        lambda: None,
        progress,
        num_rows=1,
        batch_size=1,
        num_epochs=3,
        patience=None,
        bar=False,
        advice="",
    )
    assert progress.best_epoch == 2


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
        ({"prior": fp.realnvp(3)}, ValueError, r"real vectors of shape \(2,\)"),
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


@both
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"optimizer": "sgd"},
        {"warm_up": -1},
        {"free_bits": -1.0},
        {"patience": 0},
        {"clip_norm": math.inf},
        {"ema_decay": 1.0},
    ],
)
def test_options_that_cannot_be_meant(lang, options):
    with pytest.raises(ValueError, match=f"fit_vae: {next(iter(options))} must be"):
        lang.fit(0, small(lang), stripes(), **({"num_epochs": 1} | options))


def test_networks_with_a_state_are_refused():
    rngs = nnx.Rngs(0)
    encoder = nnx.Sequential(nnx.Linear(9, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))
    vae = fnp.FlowVAE(encoder, nnx.Linear(2, 9, rngs=rngs), fp.amortized_posterior(2, 6, None))
    with pytest.raises(ValueError, match=r"networks keep a state, encoder\$state, .* such as LayerNorm"):
        vae.init(jax.random.key(0), stripes())


# Images


def test_images_from_files(tmp_path):
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "a.npz", images=images)
    header = b"\x00\x00\x08\x03" + np.array([2, 3, 4], ">i4").tobytes()
    (tmp_path / "b").write_bytes(header + images.tobytes())
    (tmp_path / "c.gz").write_bytes(gzip.compress(header + images.tobytes()))
    for name in ("a.npz", "b", "c.gz"):
        np.testing.assert_array_equal(load_images(tmp_path / name), images)
    (tmp_path / "cut").write_bytes(header + images.tobytes()[:-1])
    (tmp_path / "other").write_bytes(b"GIF89a")
    np.savez(tmp_path / "d.npz", pictures=images)
    np.savez(tmp_path / "e.npz", images=images / 2)
    for name, message in {
        "cut": "not whole: .* 24 values, but 23 are there",
        "other": "neither an .npz file nor",
        "d.npz": "no array 'images'; it has pictures",
        "e.npz": "images must be bytes of shape .*, got float64",
    }.items():
        with pytest.raises(ValueError, match=message):
            load_images(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_images(tmp_path / "none")
    (tmp_path / "f.gz").write_bytes((tmp_path / "c.gz").read_bytes()[:-12])
    (tmp_path / "h.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    damaged = bytearray((tmp_path / "a.npz").read_bytes())
    damaged[damaged.index(images.tobytes())] += 1
    (tmp_path / "g.npz").write_bytes(damaged)
    for name in ("f.gz", "g.npz", "h.npz"):
        with pytest.raises(ValueError, match="is not whole"):
            load_images(tmp_path / name)
    (tmp_path / "head").write_bytes(header[:10])
    with pytest.raises(ValueError, match="nor a file of bytes in MNIST's format"):
        load_images(tmp_path / "head")
    assert load_images(tmp_path / "b").flags.writeable
