"""Data that need not fit in memory: memory-mapped arrays, loaders and functions that give batches."""

import gc
import tracemalloc

import jax
import numpy as np
import pyro
import pytest
import torch
from autoencoders import both, small, stripes
from torch.utils.data import DataLoader, TensorDataset

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp

X = stripes(20)
OPTIONS = {"num_epochs": 2, "warm_up": 0, "learning_rate": 0.01}


def plain(lang):
    return small(lang, None)


def fit_density(lang, x, context=None, **options):
    pyro.set_rng_seed(0)
    key = () if lang.name == "pyro" else (jax.random.key(0),)
    adapter = fpp if lang.name == "pyro" else fnp
    flow = fp.ElementwiseAffine(x.shape[1])
    flow = flow if context is None else fp.Conditional(flow, 1)
    return adapter.fit_density(*key, flow, x, context, progress=False, **options)


def mapped(path, x):
    held = np.memmap(path, mode="w+", shape=x.shape, dtype=x.dtype)
    held[:] = x
    held.flush()
    return np.memmap(path, mode="r", shape=x.shape, dtype=x.dtype)


@both
def test_each_batch_of_a_loader_or_a_function_is_a_step_of_an_autoencoder(lang):
    loader = DataLoader(TensorDataset(torch.tensor(X), torch.arange(20)), batch_size=7, generator=torch.Generator())
    held = loader, lambda: (X[i : i + 7] for i in (0, 7, 14))
    by_loader, by_function = (lang.fit(0, plain(lang), x, **OPTIONS) for x in held)
    np.testing.assert_allclose(by_function.losses, by_loader.losses, rtol=1e-12)
    assert len(by_loader.validation_losses) == 0  # of batches none is held out
    with pytest.raises(ValueError, match="a checkpoint cannot tell where an iterable of batches is"):
        lang.fit(0, plain(lang), loader, checkpoint="vae", **OPTIONS)
    with pytest.raises(ValueError, match="'bernoulli' is of data that are 0 or 1"):
        lang.fit(0, plain(lang), lambda: [*[X] * 300, X + 0.5], **OPTIONS | {"batch_size": 20})
    with pytest.raises(ValueError, match="fit_vae: x gave no batch"):
        lang.fit(0, plain(lang), lambda: iter(()), **OPTIONS)
    with pytest.raises(TypeError, match="fit_vae: x must be a function that gives batches, but gave int"):
        lang.fit(0, plain(lang), lambda: 1, **OPTIONS)


@both
def test_a_memory_mapped_array_ends_where_an_array_does(lang, tmp_path):
    options = OPTIONS | {"batch_size": 9, "ema_decay": 0.9}  # of 18 rows
    found, same = (lang.fit(0, plain(lang), x, **options) for x in (mapped(tmp_path / "x", X), X))
    np.testing.assert_allclose(found.losses, same.losses, rtol=1e-9)
    np.testing.assert_allclose(found.validation_losses, same.validation_losses, rtol=1e-9)
    path = {"checkpoint": tmp_path / "training"}
    for num_epochs in (1, 2):
        again = lang.fit(0, plain(lang), mapped(tmp_path / "x", X), **options | path | {"num_epochs": num_epochs})
    np.testing.assert_allclose(again.losses, same.losses, rtol=1e-9)
    noise = np.random.default_rng(0).normal(size=(30, 2))
    found, same = (fit_density(lang, x, num_epochs=2, batch_size=9) for x in (mapped(tmp_path / "noise", noise), noise))
    np.testing.assert_allclose(found.losses, same.losses, rtol=1e-6)
    np.testing.assert_allclose(found.validation_losses, same.validation_losses, rtol=1e-6)
    bad = noise.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match=r"1 of the \d+ rows of x are not finite"):
        fit_density(lang, mapped(tmp_path / "bad", bad), num_epochs=2, validation=None)


@both
def test_rows_of_a_memory_mapped_array_keep_their_contexts(lang, tmp_path):
    x = np.random.default_rng(0).normal(size=(30, 2))
    context, options = np.sign(x[:, :1]), {"num_epochs": 2, "batch_size": 9}
    there, same = mapped(tmp_path / "x", x), fit_density(lang, x, context, **options)
    own = torch.tensor(context, requires_grad=True) if lang.name == "pyro" else jax.numpy.asarray(context)
    for given in (mapped(tmp_path / "context", context), own):
        np.testing.assert_allclose(fit_density(lang, there, given, **options).losses, same.losses, rtol=1e-6)
    with pytest.raises(ValueError, match="context must have one row for each of the 30 of x, got 29"):
        fit_density(lang, there, context[1:], **options)
    with pytest.raises(ValueError, match="fit_density: x must have at least 2 rows, got 1"):
        fit_density(lang, there[:1], **options)


@both
def test_a_memory_mapped_array_is_never_whole_in_memory(lang, tmp_path):
    """48 MB of data need no more memory than their first 10 MB: what the host compiles counts for both alike."""
    x = mapped(tmp_path / "x", np.random.default_rng(0).normal(size=(30_000, 200)))

    def peak(x):
        gc.collect()
        tracemalloc.start()
        fit_density(lang, x, num_epochs=1, batch_size=3000, validation=x[:600])
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    fit_density(lang, x[:6_000], num_epochs=1, batch_size=3000, validation=x[:600])  # imports and compiles
    few = peak(x[:6_000])
    many = peak(x)
    assert many < few + 10e6  # two batches
