"""Files of every kind that earlier versions wrote still load, in both languages, with the numbers that they had.

``python tests/test_old_files.py VERSION`` lets the code at hand write its files, and the numbers that it finds in them,
into ``tests/files/VERSION``. Add such a folder before the format changes, and never write one anew.
"""

import dataclasses
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from flax import nnx

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp

FILES = pathlib.Path(__file__).with_name("files")
VERSIONS = sorted(path.name for path in FILES.iterdir()) if FILES.exists() else []
KINDS = ("flow", "transform", "guide", "fit")
POINTS = np.linspace(-1.0, 2.0, 6).reshape(3, 2)
CONTEXT = np.array([[-0.5], [0.0], [1.5]])
LATENTS = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
IMAGES = (np.arange(48).reshape(12, 4) % 3 == 0).astype(float)

CONDITIONAL = fp.realnvp(2, num_flows=2, hidden_dims=4, context_dim=1)
AUTOREGRESSIVE = fp.Chain([fp.maf(2, num_flows=1, hidden_dims=4), fp.TriangularAffine(2)])


def one_planar(dim):
    return fp.planar(dim, num_flows=1)


class Pyro:
    backend, array = "pyro", staticmethod(torch.tensor)

    @staticmethod
    def model():
        pyro.sample("z", pdist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("tau", pdist.HalfNormal(1.0))

    @staticmethod
    def shaken(module):
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return module

    @classmethod
    def make(cls):
        base = pdist.Laplace(torch.tensor([0.0, 0.5]), 2.0).to_event(1)
        guide = fpp.AutoFlow(cls.model, one_planar)
        guide.setup()
        yield "flow", (cls.shaken(fpp.Flow(CONDITIONAL, base)),)
        yield "transform", (cls.shaken(fpp.FlowTransform(AUTOREGRESSIVE)),)
        yield "guide", (cls.shaken(guide),)
        yield "fit", (fpp.fit(cls.model, guide=fpp.AutoFlow(cls.model, one_planar), num_steps=20, progress=False),)

    @staticmethod
    def posterior(guide):
        return guide.get_posterior()

    @staticmethod
    def fit_vae(num_epochs, path):
        pyro.set_rng_seed(0)
        posterior = fp.amortized_posterior(2, 3, "planar", 1)
        vae = fpp.FlowVAE(torch.nn.Linear(4, 3), torch.nn.Linear(2, 4), posterior, likelihood="bernoulli")
        return fpp.fit_vae(vae, IMAGES, num_epochs=num_epochs, batch_size=4, checkpoint=path, progress=False)


class NumPyro:
    backend, array = "numpyro", staticmethod(jnp.asarray)

    @staticmethod
    def model():
        numpyro.sample("z", ndist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("tau", ndist.HalfNormal(1.0))

    @staticmethod
    def shaken(params):
        rng = np.random.default_rng(0)
        return jax.tree.map(lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape), params)

    @classmethod
    def make(cls):
        key = jax.random.key(0)
        base = ndist.Laplace(jnp.array([0.0, 0.5]), 2.0).to_event(1)
        flow = fnp.Flow.init(key, CONDITIONAL, base)
        transform = fnp.FlowTransform.init(key, AUTOREGRESSIVE)
        guide = fnp.AutoFlow(cls.model, one_planar)
        params = guide.setup()
        yield "flow", (dataclasses.replace(flow, params=cls.shaken(flow.params)),)
        yield "transform", (cls.shaken(transform),)
        yield "guide", (guide, cls.shaken(params))
        guide = fnp.AutoFlow(cls.model, one_planar)
        yield "fit", (fnp.fit(key, cls.model, guide=guide, num_steps=20, progress=False),)

    @staticmethod
    def posterior(guide):
        return guide.get_posterior(guide.setup())

    @staticmethod
    def fit_vae(num_epochs, path):
        rngs, posterior = nnx.Rngs(0), fp.amortized_posterior(2, 3, "planar", 1)
        networks = nnx.Linear(4, 3, rngs=rngs, param_dtype=float), nnx.Linear(2, 4, rngs=rngs, param_dtype=float)
        vae, key = fnp.FlowVAE(*networks, posterior, likelihood="bernoulli"), jax.random.key(0)
        return fnp.fit_vae(key, vae, IMAGES, num_epochs=num_epochs, batch_size=4, checkpoint=path, progress=False)


LANGUAGES = {language.backend: language for language in (Pyro, NumPyro)}


def numbers(path, kind, reader):
    """What is in a file, as one vector."""
    loaded = fp.load(path, backend=reader.backend)
    if kind == "flow":
        found = [loaded(reader.array(CONTEXT)).log_prob(reader.array(POINTS))]
    elif kind == "transform":
        x = reader.array(POINTS)
        y = loaded(x)
        found = [y, loaded.log_abs_det_jacobian(x, y)]
    else:
        guide = loaded.guide if kind == "fit" else loaded
        found = [reader.posterior(guide).log_prob(reader.array(LATENTS))]
        found += [loaded.losses, loaded.elbo, loaded.k_hat] if kind == "fit" else []
    return np.concatenate([np.ravel(part.detach() if torch.is_tensor(part) else part) for part in found])


def goes_on(checkpoint, language, copy):
    """The losses of a training that goes on from a copy of the checkpoint."""
    shutil.copy(checkpoint, copy)
    result = language.fit_vae(4, copy)
    return np.concatenate([result.losses, result.validation_losses])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("writer", LANGUAGES)
@pytest.mark.parametrize("reader", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_has_the_numbers_that_it_had(version, writer, reader, kind):
    path = FILES / version / f"{writer}_{kind}.safetensors"
    with np.load(FILES / version / "expected.npz") as expected:
        np.testing.assert_allclose(numbers(path, kind, LANGUAGES[reader]), expected[path.stem], rtol=1e-10)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("writer", LANGUAGES)
def test_a_training_goes_on_as_it_would_have(version, writer, tmp_path):
    path = FILES / version / f"{writer}_checkpoint.safetensors"
    with np.load(FILES / version / "expected.npz") as expected:
        np.testing.assert_allclose(goes_on(path, LANGUAGES[writer], tmp_path / "copy"), expected[path.stem], rtol=1e-10)


def main(version):
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    folder, expected = FILES / version, {}
    folder.mkdir(parents=True)
    for name, language in LANGUAGES.items():
        pyro.set_rng_seed(0)
        for kind, trained in language.make():
            path = folder / f"{name}_{kind}.safetensors"
            fp.save(path, *trained)
            expected[path.stem] = numbers(path, kind, language)
        path = folder / f"{name}_checkpoint.safetensors"
        language.fit_vae(2, path)
        expected[path.stem] = goes_on(path, language, folder / "copy")
        (folder / "copy").unlink()
    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main(*sys.argv[1:])
