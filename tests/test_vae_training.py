"""The training of autoencoders, in both languages: resumed, averaged, stopped, interrupted."""

import importlib
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as ndist
import optax
import pytest
import torch
from autoencoders import FunctionModule, NumPyro, Pyro, assert_same, both, small, stripes
from pyro.distributions import Normal

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import leaves
from flowppl.autoencoders.checkpoints import describe
from flowppl.images import load_images
from flowppl.inference.epochs import Progress, run_epochs
from flowppl.numpyro.steps import make_optimizer, split_batches, take_step
from flowppl.pyro.vae_training import _held
from flowppl.serialization import read_file, write_file


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
    options = {"batch_size": 60, "warm_up": 0, "learning_rate": 0.05, "validation": None}  # one step in each epoch
    fits = [lang.fit(1, small(lang), x, num_epochs=num, **options) for num in range(1, 5)]
    found = lang.fit(1, small(lang), x, num_epochs=4, ema_decay=0.6, **options)
    assert found.best_epoch == 3
    shares = 0.6 ** np.arange(3, -1, -1)
    for (path, average), *steps in zip(leaves(found.params), *(leaves(fit.params) for fit in fits), strict=True):
        average_of_steps = np.average([np.asarray(each) for _, each in steps], axis=0, weights=shares)
        np.testing.assert_allclose(np.asarray(average), average_of_steps, rtol=1e-5, atol=1e-6, err_msg=str(path))
    np.testing.assert_array_equal(found.losses, fits[3].losses)  # the steps are those without an average


@both
def test_averaged_weights_are_what_is_validated(lang):
    x = stripes()
    options = {"batch_size": 60, "warm_up": 0, "learning_rate": 0.005, "validation": x, "num_epochs": 4}
    plain, averaged = (lang.fit(1, small(lang), x, ema_decay=decay, **options) for decay in (0.0, 0.6))
    assert averaged.validation_losses[0] == pytest.approx(plain.validation_losses[0], rel=1e-6)
    assert (averaged.validation_losses[1:] > plain.validation_losses[1:] + 1e-4).all()  # the average lags behind


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
        vae.encoder.append(FunctionModule(lambda h: h.double())).bfloat16().insert(
            0, FunctionModule(lambda x: x.bfloat16())
        )
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
    for damaged in (b"", whole[:-100], whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:]):
        path.write_bytes(damaged)
        message = r"(not a whole safetensors file|is damaged).*; copy it again, or delete it to start anew"
        with pytest.raises(ValueError, match=message):
            fit(small(lang), batch_size=20)
        assert path.read_bytes() == damaged
    path.unlink()
    flow = fpp.Flow(fp.realnvp(2))
    fp.save(path, flow)
    with pytest.raises(ValueError, match="holds a flow, not a checkpoint"):
        fit(small(lang), batch_size=20)


@both
@pytest.mark.parametrize("validation", [None, 0.1])
def test_a_checkpoint_of_another_likelihood_is_told(lang, validation, tmp_path):
    """The weights have the same shapes, and a likelihood of one's own has no words: the loss of a few rows differs."""
    x, path, normal = stripes(), tmp_path / "vae", Normal if lang is Pyro else ndist.Normal
    options = {"validation": validation, "batch_size": 20, "warm_up": 0, "ema_decay": 0.5, "learning_rate": 0.01}

    def fit(vae, num_epochs, seed=0, **more):
        return lang.fit(seed, vae, x, num_epochs=num_epochs, **options, **more)

    def wide(scale=1.0):
        return small(lang, likelihood=lambda mean: normal(mean, scale))

    whole = fit(wide(), 4)
    fit(wide(), 2, checkpoint=path)
    content, other = path.read_bytes(), wide(0.1)
    before = {name: value.clone() for name, value in other.state_dict().items()} if lang is Pyro else {}
    message = f"{path} is a checkpoint of another training, with other loss of the model; name another file, or delete"
    for num_epochs in (2, 4):
        with pytest.raises(ValueError, match=message):
            fit(other, num_epochs, checkpoint=path)
    assert path.read_bytes() == content
    assert_same(dict(other.state_dict()) if lang is Pyro else {}, before)
    resumed = fit(wide(), 4, seed=5, checkpoint=path)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    assert_same(resumed.params, whole.params)
    config, arrays = read_file(path)
    for told in (3, [1.0], ["one", None]):
        config["fixed"]["loss of the model"] = told
        write_file(path, config, arrays)
        with pytest.raises(ValueError, match=message):
            fit(wide(), 4, checkpoint=path)
    del config["fixed"]["loss of the model"]  # as in files of before
    write_file(path, config, arrays)
    np.testing.assert_array_equal(fit(wide(), 4, checkpoint=path).losses, whole.losses)


@both
def test_a_checkpoint_tells_the_learning_rate_of_the_epochs_that_are_done(lang, tmp_path):
    x, path, asked = stripes(), tmp_path / "vae", []

    def fit(rate, num_epochs=2, **options):
        return lang.fit(0, small(lang), x, num_epochs=num_epochs, warm_up=0, learning_rate=rate, **options)

    def rate(epoch):
        asked.append(epoch)
        return 0.01 * (1 + epoch)

    fit(rate, checkpoint=path)
    assert asked == [0, 1]  # once each
    for other in (0.01, None, lambda epoch: 0.01, lambda epoch: 0.01 + epoch):
        with pytest.raises(ValueError, match="of another training, with other learning_rate; name another file"):
            fit(other, checkpoint=path)

    def then(epoch):
        return rate(epoch) if epoch < 2 else 0.001

    assert_same(fit(then, 4, checkpoint=path).params, fit(then, 4).params)
    path.unlink()
    fit(None, checkpoint=path)
    with pytest.raises(ValueError, match="with other learning_rate"):
        fit(0.002, checkpoint=path)
    assert_same(fit(0.001, 3, checkpoint=path).params, fit(0.001, 3).params)


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
    wrong = params | {"decoder$params": params["posterior"]}
    with pytest.raises(ValueError, match=r"names and shapes of vae.init\(key, x\); .* \['decoder\$params'\]"):
        NumPyro.fit(0, vae, x, params=wrong)
    del params["posterior"]
    with pytest.raises(ValueError, match="params lack posterior"):
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


@both
@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"learning_rate": 0.0},
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


HOSTS = {"pyro": torch.optim.SGD, "numpyro": optax.sgd(1e-3)}


@both
def test_optimizers_that_cannot_be_meant(lang, tmp_path):
    """What an optimiser of the host does with a checkpoint could not be told apart, nor its schedule go on."""
    host = HOSTS[lang.name]
    for error, message, options in (
        (ValueError, "fit_vae: there is no optimizer 'sgd'", {"optimizer": "sgd"}),
        (TypeError, "fit_vae: optimizer is no optimiser", {"optimizer": 3}),
        (ValueError, "learning_rate=0.1 beside an optimizer", {"optimizer": host, "learning_rate": 0.1}),
        (
            ValueError,
            "give optimizer='adam' or 'adamax', or no checkpoint",
            {"optimizer": HOSTS[lang.name], "checkpoint": tmp_path / "vae"},
        ),
    ):
        with pytest.raises(error, match=message):
            lang.fit(0, small(lang), stripes(), num_epochs=1, **options)


@both
def test_an_optimizer_of_the_host_takes_its_own_steps(lang):
    """Gradient descent by hand: one step of rate 0.1, then one of 0.05, from the same noise as one step with Adam."""
    x, options = stripes(), {"batch_size": 60, "warm_up": 0, "validation": None}

    def decaying(parameters):
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)

    hosts = {
        "pyro": (partial(torch.optim.SGD, lr=0.1), partial(torch.optim.SGD, lr=0.05), decaying),
        "numpyro": (optax.sgd(0.1), optax.sgd(0.05), optax.sgd(optax.exponential_decay(0.1, 1, 0.5))),
    }[lang.name]
    start = [np.asarray(leaf) for _, leaf in leaves(lang.params(small(lang), x))]

    def moves(optimizer, num_epochs):
        vae = small(lang)
        known = {"params": lang.params(vae, x)} if lang is NumPyro else {}
        found = lang.fit(1, vae, x, num_epochs=num_epochs, optimizer=optimizer, **known, **options)
        return [np.asarray(leaf) - first for (_, leaf), first in zip(leaves(found.params), start, strict=True)]

    one, half, two = (moves(*each) for each in zip(hosts, (1, 1, 2), strict=True))
    for whole, other in zip(one, half, strict=True):
        np.testing.assert_allclose(whole, 2 * other, rtol=1e-9, atol=1e-14)  # the rate times the gradient
    assert max(np.abs(second - first).max(initial=0) for first, second in zip(one, two, strict=True)) > 1e-4


@both
def test_a_callback_sees_each_epoch_and_stops(lang, tmp_path):
    seen, x, options = [], stripes(), {"warm_up": 0, "learning_rate": 0.01, "batch_size": 20}

    def callback(epoch, loss):
        seen.append((epoch, loss))
        return epoch == 2

    found = lang.fit(1, small(lang), x, num_epochs=9, callback=callback, checkpoint=tmp_path / "vae", **options)
    assert found.stopped == "callback"
    assert seen == list(enumerate(found.losses))
    assert len(seen) == 3
    whole = lang.fit(1, small(lang), x, num_epochs=5, **options)
    resumed = lang.fit(1, small(lang), x, num_epochs=5, checkpoint=tmp_path / "vae", **options)
    np.testing.assert_array_equal(resumed.losses, whole.losses)
    with pytest.raises(TypeError, match="fit_vae: callback must be a function of the epoch and its loss"):
        lang.fit(1, small(lang), x, callback="stop")
