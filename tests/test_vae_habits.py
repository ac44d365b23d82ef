"""What users of Pyro and NumPyro do with an autoencoder by habit, and what they are told where it cannot work."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pandas as pd
import pyro
import pytest
import torch
from autoencoders import FunctionModule, NumPyro, Pyro, assert_same, both, small, stripes
from flax import nnx
from torch.utils.data import DataLoader, Subset, TensorDataset

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.autoencoders.data import as_data

ONE = {"num_epochs": 1, "warm_up": 0, "batch_size": 10}


def plain(lang, **options):
    return small(lang, None, **options)


# The hosts' own inference


def test_svi_of_pyro_and_a_loop_of_torch_take_the_same_step():
    x, start = torch.tensor(stripes()), plain(Pyro)
    losses = []
    for by_hand in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        vae = plain(Pyro)
        vae.load_state_dict(start.state_dict())
        if by_hand:
            optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
            losses.append([])
            for _ in range(3):
                loss = pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[-1].append(loss.item())
        else:
            svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
            losses.append([svi.step(x) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0])


def test_svi_of_numpyro_run_and_stepped_are_the_same():
    x, vae = jnp.asarray(stripes()), plain(NumPyro)
    svi = numpyro.infer.SVI(vae.model, vae.guide, numpyro.optim.Adam(0.01), numpyro.infer.Trace_ELBO())
    found = svi.run(jax.random.key(0), 3, x, progress_bar=False)
    state = svi.init(jax.random.key(0), x)
    update = jax.jit(svi.update)
    for _ in range(3):
        state, _ = update(state, x)
    jax.tree.map(np.testing.assert_allclose, svi.get_params(state), found.params)
    assert vae.sample(jax.random.key(1), found.params, 4).shape == (4, 9)


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_draws_latents_of_data_and_new_data(parallel):
    x = stripes(5)
    vae = small(Pyro, prior=fp.realnvp(2, 2, hidden_dims=4))
    known = {"num_samples": 3, "parallel": parallel}
    assert pyro.infer.Predictive(vae.model, guide=vae.guide, **known)(torch.tensor(x))["z"].shape == (3, 5, 2)
    drawn = pyro.infer.Predictive(vae.model, **known)(None, 4)
    assert (drawn["z"].shape, drawn["x"].shape) == ((3, 4, 2), (3, 4, 9))
    assert set(drawn["x"].unique().tolist()) == {0.0, 1.0}
    peer = small(NumPyro, prior=fp.realnvp(2, 2, hidden_dims=4))
    known |= {"params": NumPyro.params(peer, x)}
    found = numpyro.infer.Predictive(peer.guide, **known)(jax.random.key(0), jnp.asarray(x))
    assert found["z"].shape == (3, 5, 2)
    whole = numpyro.infer.Predictive(peer.model, guide=peer.guide, return_sites=["z"], **known)
    np.testing.assert_array_equal(whole(jax.random.key(0), jnp.asarray(x))["z"].shape, found["z"].shape)
    drawn = numpyro.infer.Predictive(peer.model, **known)(jax.random.key(0), num_data=4)
    assert (drawn["z"].shape, drawn["x"].shape) == ((3, 4, 2), (3, 4, 9))
    assert set(np.unique(drawn["x"])) == {0.0, 1.0}


@both
def test_a_batch_of_numpy_serves_in_svi(lang):
    x, vae = stripes(5), plain(lang)
    if lang is Pyro:
        elbo = pyro.infer.Trace_ELBO()
        pyro.set_rng_seed(0)
        first = elbo.loss(vae.model, vae.guide, x)
        pyro.set_rng_seed(0)
        assert first == elbo.loss(vae.model, vae.guide, torch.tensor(x))
    else:
        loss = numpyro.infer.Trace_ELBO().loss
        args = jax.random.key(0), NumPyro.params(vae, x), vae.model, vae.guide
        assert loss(*args, x) == loss(*args, jnp.asarray(x))


# Data as users hold them


class Pairs:
    """A data set as torchvision has them: an image and a label."""

    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], 7


X = stripes(20)
TENSORS = TensorDataset(torch.tensor(X), torch.arange(20))
HELD = {
    "list": X.tolist(),
    "table": pd.DataFrame(X.astype(int)),
    "nullable table": pd.DataFrame(X.astype(int)).astype("Int64"),
    "booleans": X > 0,
    "other order of bytes": X.astype(">f4"),
    "backwards": X[::-1].copy()[::-1],
    "tensor with a gradient": torch.tensor(X, requires_grad=True),
    "array of jax": jnp.asarray(X),
    "data set of tensors": TENSORS,
    "part of a data set": Subset(TENSORS, range(20)),
    "data set of pairs": Pairs(X),
    "loader": DataLoader(TENSORS, batch_size=7, generator=torch.Generator()),  # else it draws from that of all
    "tensors in a generator": lambda: (torch.tensor(X[i : i + 7]) for i in (0, 7, 14)),
    "arrays in an iterator": lambda: iter([X[:3], X[3:]]),
}


@pytest.mark.parametrize("native", [torch.Tensor, jax.Array])
@pytest.mark.parametrize("name", HELD)
def test_data_are_the_rows_however_they_are_held(name, native):
    held = HELD[name]() if callable(HELD[name]) else HELD[name]
    found = as_data(held, native)
    assert found is held if isinstance(held, native) else isinstance(found, (np.ndarray, native))
    np.testing.assert_array_equal(np.asarray(found.detach() if hasattr(found, "detach") else found), X)


@both
@pytest.mark.parametrize("name", ["table", "arrays in an iterator"])
def test_a_training_is_the_same_however_data_are_held(lang, name):
    def held():
        return HELD[name]() if callable(HELD[name]) else HELD[name]

    found, same = (lang.fit(0, plain(lang), each, validation=X[:1], **ONE) for each in (held(), X))
    np.testing.assert_array_equal(found.losses, same.losses)
    np.testing.assert_array_equal(found.validation_losses, same.validation_losses)
    assert_same(found.params, same.params)
    vae = plain(lang)
    params = lang.params(vae, held())
    assert lang.evaluate(0, vae, params, held(), num_samples=3).num_data == 20
    assert lang.call("reconstruct", vae, params, held()).shape == (1, 20, 9)


def test_tensors_of_half_the_precision_are_data(tmp_path):
    found, same = (
        Pyro.fit(0, plain(Pyro), x, checkpoint=tmp_path / str(i), **ONE)
        for i, x in enumerate((torch.tensor(X).bfloat16(), torch.tensor(X).float()))
    )
    np.testing.assert_array_equal(found.losses, same.losses)


NO_DATA = [
    (None, TypeError, "an iterable of batches, got NoneType"),
    (5, TypeError, "an iterable of batches, got int"),
    ("x.npz", TypeError, "an iterable of batches, got str"),
    ({"image": X}, TypeError, "an iterable of batches, got dict"),
    (object(), TypeError, "an iterable of batches, got object"),
    (lambda: iter([{"image": X, "label": 0}]), TypeError, "a dictionary of image, label; give"),
    ([[1, 0], [1]], TypeError, "cannot be made an array of numbers"),
    (pd.DataFrame({"a": ["u", "v"]}), TypeError, "cannot be made an array of numbers"),
    (X + 0j, TypeError, r"rows of real numbers, got an array of complex128 of shape \(20, 9\)"),
    (np.array(1.0), TypeError, r"rows of real numbers, got an array of float64 of shape \(\)"),
    (X[:0], ValueError, "there are no data"),
    (X[:, :0], ValueError, "there are no data"),
    ([], ValueError, "there are no data"),
    (lambda: iter([]), ValueError, "there are no data"),
    (np.ma.array(X, mask=X > 0), ValueError, "some data are masked"),
]


@pytest.mark.parametrize(("held", "error", "message"), NO_DATA)
@pytest.mark.parametrize("native", [torch.Tensor, jax.Array])
def test_what_is_no_data_is_told(held, error, message, native):
    with pytest.raises(error, match=message):
        as_data(held() if callable(held) else held, native)


@both
def test_complex_or_no_data_are_told_by_all_that_takes_data(lang):
    vae = plain(lang)
    params, x = lang.params(vae, X), lang.function(lambda xp, x: xp.asarray(x))
    x = x.forward(X + 0j) if lang is Pyro else x(X + 0j)
    for call in (
        lambda x: lang.fit(0, vae, x, **ONE),
        lambda x: lang.fit(0, vae, X, validation=x, **ONE),
        lambda x: lang.evaluate(0, vae, params, x),
        lambda x: lang.call("encode", vae, params, x),
        lambda x: lang.call("reconstruct", vae, params, x),
        lambda x: lang.call("interpolate", vae, params, x, x),
    ):
        with pytest.raises(TypeError, match=r"rows of real numbers, got an array of .*complex128"):
            call(x)
        with pytest.raises(ValueError, match="there are no data"):
            call(X[:0])
        with pytest.raises(ValueError, match="not all finite"):
            call(np.where(X > 0, np.nan, X))
        with pytest.raises(ValueError, match="0 or 1, but the data range from 0"):
            call((255 * X).astype(np.uint8))


@both
@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("row", [0, 19])
def test_data_that_are_not_finite_are_told_before_a_network_sees_them(lang, row, kind):
    encoder, decoder = lang.networks(9, 6, 2, 9)
    pair = lang.function(lambda xp, z: (decoder(z), decoder(z))) if kind == "gaussian" else decoder
    vae = lang.adapter.FlowVAE(encoder, pair, fp.amortized_posterior(2, 6, "planar", 2), likelihood=kind)
    bad = X.copy()
    bad[row, 3] = np.nan
    for x, held in ((bad, X), (X, bad)):
        with pytest.raises(ValueError, match="the data are not all finite; drop or impute what is missing"):
            lang.fit(0, vae, x, **ONE | {"validation": held})


@both
def test_an_encoder_of_another_width_is_told(lang):
    with pytest.raises((RuntimeError, TypeError)) as caught:
        lang.fit(0, plain(lang), X[:, :8], **ONE)
    assert "this is the encoder, given an array of shape (1, 8), which it could not take" in caught.value.__notes__


@both
def test_gray_levels_under_bernoulli_are_told_how_to_be_scaled(lang):
    with pytest.raises(ValueError, match=r"such as by x > 127.5, or take .* such as x / 255"):
        lang.fit(0, plain(lang), (255 * X).astype(np.uint8), **ONE)


@both
def test_images_before_networks_of_vectors(lang):
    for shape in ((20, 3, 3), (20, 1, 3, 3), (20,)):
        with pytest.raises((RuntimeError, TypeError, ValueError)) as caught:
            lang.fit(0, plain(lang), X.reshape(shape) if len(shape) > 1 else X[:, 0], **ONE)
        hint = "flatten the data" if len(shape) > 1 else "give rows"
        assert f"this is the encoder, given an array of shape {(1, *shape[1:])}" in caught.value.__notes__[0]
        assert hint in caught.value.__notes__[0]
    flattening = lang.networks(9, 6, 2, 9)
    encoder = lang.function(lambda xp, x: flattening[0](x.reshape(len(x), -1)))
    if lang is NumPyro:
        encoder = lambda x: flattening[0](x.reshape(len(x), -1))  # noqa: E731
    vae = lang.adapter.FlowVAE(encoder, flattening[1], fp.amortized_posterior(2, 6, None))
    with pytest.raises(ValueError, match=r"shape \(9,\), but the data have the shape \(3, 3\); reshape its output"):
        lang.fit(0, vae, X.reshape(20, 3, 3), **ONE)


@both
def test_one_row_of_data(lang):
    vae = plain(lang)
    fit = lang.fit(0, vae, X[:1], **ONE | {"validation": X[:1]})
    assert np.isfinite([*fit.losses, *fit.validation_losses]).all()
    found = lang.evaluate(0, vae, fit.params, X[:1], num_samples=4)
    assert (found.num_data, found.active_units) == (1, 0)


@both
@pytest.mark.parametrize("learned", [True, False])
def test_constant_data_have_no_best_scale(lang, learned):
    x = np.random.default_rng(0).normal(size=(20, 2))
    x[:, 1] = 3.0
    encoder, decoder = lang.networks(2, 6, 2, 2)
    if lang is Pyro:
        decoder.forward = lambda z: ((z @ decoder.weight.T), decoder.bias if learned else torch.zeros(2))
        network = decoder
    else:

        def network(z):
            return z, numpyro.param("scale", jnp.zeros(2)) if learned else jnp.zeros(2)

    vae = lang.adapter.FlowVAE(encoder, network, fp.amortized_posterior(2, 6, None), likelihood="gaussian")
    if learned:
        with pytest.warns(UserWarning, match=r"1 of 2 numbers of a datum .* such as that at \(1,\). A Gaussian"):
            lang.fit(0, vae, x, **ONE)
    else:
        lang.fit(0, vae, x, **ONE)


@both
def test_the_support_is_that_of_the_likelihood_not_of_its_base(lang):
    """Data of one number each: no axis is declared as one of events."""
    own = (pyro if lang is Pyro else numpyro).distributions.LogNormal
    encoder = lang.function(lambda xp, x: xp.stack([x] * 6, -1))
    decoder = lang.function(lambda xp, z: z[:, 0])
    posterior = fp.amortized_posterior(2, 6, "planar", 2)
    vae = lang.adapter.FlowVAE(encoder, decoder, posterior, likelihood=lambda output: own(output, 1.0))
    params = lang.params(vae, X[:, 0])
    assert np.isfinite(lang.evaluate(0, vae, params, np.full(4, 0.5), num_samples=3).elbo)
    with pytest.raises(ValueError, match="must have all data in its support, but the data range from -1"):
        lang.evaluate(0, vae, params, np.array([-1.0, 1.0]), num_samples=3)


# Calls with something missing, or in another order


def test_calls_in_another_order_are_told():
    vae, peer, key = plain(Pyro), plain(NumPyro), jax.random.key(0)
    params = peer.init(key, X)
    for call, message in (
        (lambda: fpp.fit_vae(X, vae), r"fit_vae\(vae, x\): vae must be a FlowVAE of flowppl.pyro, .* got ndarray"),
        (lambda: fpp.evaluate_vae(X, vae), "vae must be .*FlowVAE .*, got ndarray"),
        (lambda: fpp.fit_vae(peer, X), "vae must be a FlowVAE of flowppl.pyro, .* got FlowVAE"),
        (lambda: fnp.fit_vae(peer, X, X), r"fit_vae\(key, vae, x\): rng_key must be a key .* got a"),
        (lambda: fnp.fit_vae(0, peer, X), "rng_key must be a key such as jax.random.key.0., got 0"),
        (lambda: fnp.fit_vae(key, X, peer), "vae must be a FlowVAE of flowppl.numpyro, .* got ndarray"),
        (lambda: fnp.fit_vae(key, peer, X, params=X), "params must be the weights by name"),
        (lambda: fnp.evaluate_vae(peer, params, X, X), "rng_key must be"),
        (lambda: fnp.evaluate_vae(key, params, peer, X), "vae must be a FlowVAE of flowppl.numpyro, .* got dict"),
        (lambda: fnp.evaluate_vae(key, peer, X, params), "params must be the weights by name, .* got ndarray"),
        (lambda: peer.init(X, key), r"vae.init\(key, x\): rng_key must be"),
        (lambda: peer.encode(params, X, 3), "rng_key must be a key .* got a dict"),
        (lambda: peer.encode(key, X, params), "params must be the weights by name, .* got ndarray"),
        (lambda: peer.reconstruct(params, key, X), r"vae.reconstruct\(key, params, x\): rng_key must be"),
        (lambda: peer.sample(params, 3), "rng_key must be"),
        (lambda: peer.sample(key, 3), "params must be the weights by name, such as fit.params, .* got int"),
        (lambda: peer.interpolate(params, X, X, X), "rng_key must be"),
    ):
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(ValueError, match=r"params lack posterior, decoder\$params; they have encoder\$params"):
        peer.sample(key, {"encoder$params": params["encoder$params"]})
    assert peer.sample(jax.random.PRNGKey(0), params, 3).shape == (3, 9)


@both
def test_names_and_networks_that_cannot_be_meant(lang):
    with pytest.raises(ValueError, match="did you mean 'bernoulli'"):
        plain(lang, likelihood="Bernouli")
    encoder, decoder = lang.networks(9, 6, 2, 9)
    posterior = fp.amortized_posterior(2, 6, None)
    with pytest.raises(TypeError, match="the encoder must be a module or a function, got NoneType"):
        lang.adapter.FlowVAE(None, decoder, posterior)
    with pytest.raises(TypeError, match="the decoder must be a module or a function, got the class"):
        lang.adapter.FlowVAE(encoder, type(decoder), posterior)
    with pytest.raises(TypeError, match="the likelihood must give a distribution, got"):
        lang.fit(0, plain(lang, likelihood=lambda output: output), X, **ONE)


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y.sum(), "one row for each row of latents"),
        (lambda y: y.reshape(-1), r"likelihood of data of shape \(\), but the data have the shape \(9,\)"),
        (lambda y: y.T, r"likelihood of data of shape \(1,\), but the data have the shape \(9,\)"),
        (lambda y: {"logits": y}, "the decoder must give an array, or a tuple of arrays, got dict"),
        (lambda y: (), "the decoder must give an array, or a tuple of arrays, got tuple"),
        (lambda y: (y, y), "for the likelihood 'bernoulli' the decoder must give one array, got 2"),
    ],
)
def test_outputs_of_other_shapes_are_told(lang, change, message):
    encoder, _ = lang.networks(9, 6, 2, 9)
    decoder = lang.function(lambda xp, z: change(xp.concatenate([z[:, :1]] * 9, -1)))
    with pytest.raises(ValueError, match=message):
        lang.fit(0, lang.adapter.FlowVAE(encoder, decoder, fp.amortized_posterior(2, 6, None)), X, **ONE)


@both
def test_an_encoder_that_gives_a_mean_and_a_scale_is_told(lang):
    """As those of plain autoencoders do."""
    encoder = lang.function(lambda xp, x: (x[:, :6], x[:, :6]))
    vae = lang.adapter.FlowVAE(encoder, lang.networks(9, 6, 2, 9)[1], fp.amortized_posterior(2, 6, None))
    with pytest.raises(ValueError, match=r"features of shape \(1, 6\) for 1 data, .* got tuple"):
        lang.fit(0, vae, X, **ONE)


def test_modules_of_flax_without_weights():
    vae = fnp.FlowVAE(nnx.Sequential(lambda x: x[:, :6]), NumPyro.networks(9, 6, 2, 9)[1], fp.amortized_posterior(2, 6))
    assert vae.sample(jax.random.key(0), NumPyro.fit(0, vae, X, **ONE).params).shape == (1, 9)


# Modes, devices and gradients of torch


def test_parts_on_several_devices_are_told():
    vae = plain(Pyro)
    vae.decoder.to("meta")
    where = "encoder on cpu, decoder on meta, posterior on cpu; move all by vae.to"
    for call in (lambda: Pyro.fit(0, vae, X, **ONE), lambda: fpp.evaluate_vae(vae, X), lambda: vae.sample(3)):
        with pytest.raises(ValueError, match=where):
            call()
    vae = fpp.FlowVAE(vae.encoder, FunctionModule(lambda z: z.repeat(1, 5)[:, :9]), vae.posterior.bijection)
    assert vae.sample(3).shape == (3, 9)  # a function is on no device


def test_methods_do_not_train_batch_normalisation_nor_drop_out():
    encoder = torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.5))
    vae = fpp.FlowVAE(encoder, torch.nn.Linear(2, 9), fp.amortized_posterior(2, 6, None)).train()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    means = [vae.reconstruct(X[:1], 200).mean(0) for _ in range(2)]  # of one row there is no statistic
    vae.interpolate(X[:2], X[2:4])
    vae.sample(2)
    assert_same(dict(vae.state_dict()), before)
    assert (means[0] - means[1]).abs().max() < 0.2
    assert all(module.training for module in vae.modules())


def test_one_row_left_over_cannot_be_normalised():
    encoder = torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.BatchNorm1d(6))
    vae = fpp.FlowVAE(encoder, torch.nn.Linear(2, 9), fp.amortized_posterior(2, 6, None))
    with pytest.raises(ValueError, match="a batch of one row, which 20 rows in batches of 19 leave at the end"):
        Pyro.fit(0, vae, X, **ONE | {"batch_size": 19, "validation": None})
    with pytest.raises(ValueError, match="a batch of one row, which the iterable gave; leave it out"):
        Pyro.fit(0, vae, lambda: [X[:19], X[19:]], **ONE)


def test_without_gradients_there_is_no_training_but_all_else():
    with torch.inference_mode():
        made_inside, x = plain(Pyro), torch.tensor(X)
        with pytest.raises(RuntimeError, match=r"gradients are off, by torch.no_grad\(\) or torch.inference_mode"):
            Pyro.fit(0, plain(Pyro), X, **ONE)
        assert fpp.evaluate_vae(made_inside, x, num_samples=3).num_data == 20
        assert made_inside.interpolate(x[:2], x[2:4], 3).shape == (3, 2, 9)
    with torch.no_grad(), pytest.raises(RuntimeError, match="gradients are off"):
        Pyro.fit(0, plain(Pyro), X, **ONE)
    with pytest.raises(RuntimeError, match=r"made under torch.inference_mode\(\); make it outside"):
        Pyro.fit(0, made_inside, X, **ONE)
    assert len(Pyro.fit(0, plain(Pyro), x, **ONE).losses) == 1  # data may have been made inside


def test_a_likelihood_in_half_precision_is_evaluated():
    vae = fpp.FlowVAE(
        FunctionModule(lambda x: x[:, :6].bfloat16()),
        FunctionModule(lambda z: z.bfloat16().repeat(1, 5)[:, :9]),
        fp.amortized_posterior(2, 6, None),
    ).bfloat16()
    assert np.isfinite(fpp.evaluate_vae(vae, X, num_samples=3).elbo)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16])
def test_tensors_of_any_numbers_are_encoded(dtype):
    vae = plain(Pyro)
    assert vae.encode(torch.tensor(X).to(dtype)).shape == (1, 20, 2)
    assert fpp.evaluate_vae(vae, torch.tensor(X).to(dtype), num_samples=2).num_data == 20


def test_methods_compile_in_jax():
    vae = plain(NumPyro)
    params, key = NumPyro.params(vae, X), jax.random.key(0)
    np.testing.assert_allclose(jax.jit(vae.reconstruct)(key, params, X), vae.reconstruct(key, params, X), rtol=1e-12)
    assert jax.jit(jax.vmap(vae.sample, (0, None)))(jax.random.split(key, 3), params).shape == (3, 1, 9)


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = pd.DataFrame(X)
        Pyro.fit(0, plain(Pyro), frame, **ONE)
