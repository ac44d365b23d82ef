"""Trainings that go on from their checkpoints: ``python resumed_runs.py LANGUAGE KILLS`` kills them at random moments.

The process imports the language once; each run is a fork of it, ended by SIGKILL at a random time, until one of them
gets to its end: then its weights must be those of a run that was let alone, bit for bit. That is repeated until there
were so many kills of each kind of training, or of those named after KILLS. What was found is printed.
"""

import json
import math
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import optax
import pyro
import pyro.distributions as pdist
import torch
from autoencoders import NumPyro as VAEInNumPyro
from autoencoders import Pyro as VAEInPyro
from autoencoders import small, stripes
from numpyro.infer.autoguide import AutoNormal as NumPyroAutoNormal
from pyro.infer.autoguide import AutoNormal as PyroAutoNormal

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.inference import modes
from flowppl.numpyro import trainers as numpyro_trainers
from flowppl.pyro import target as pyro_target
from flowppl.pyro import trainers as pyro_trainers
from flowppl.serialization import read_file
from flowppl.training import fits

Y = np.array([0.1, 2.2, 3.9])
ROWS = np.random.default_rng(0).normal(size=(200, 2)) @ np.array([[1.0, 0.5], [0.0, 0.7]])
KINDS = ("one mode", "two modes", "two restarts", "another guide", "fit_density", "fit_vae")
# What cuts searches and judgements short on a busy machine, so that their results depend on the load.
CLOCKS = {
    "BUSY_SECONDS": numpyro_trainers,
    "JUDGE_SECONDS": pyro_trainers,
    "PRIOR_SECONDS": pyro_target,
    "MAX_SECONDS": modes,
}
SHORT = {"num_steps": 100, "num_particles": 16}


class InPyro:
    optimizer = torch.optim.SGD

    @staticmethod
    def one_mode(y):
        loc = pyro.sample("loc", pdist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", pdist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", pdist.Normal(loc, scale), obs=y)

    @staticmethod
    def three_latents(y):
        pyro.sample("x", pdist.Normal(torch.zeros(3), 1.0).to_event(1))

    @staticmethod
    def another_prior(y):
        loc = pyro.sample("loc", pdist.Normal(0.0, 6.0))
        scale = pyro.sample("scale", pdist.HalfNormal(1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", pdist.Normal(loc, scale), obs=y)

    @staticmethod
    def two_modes():
        x = pyro.sample("x", pdist.Normal(torch.zeros(2), 3.0).to_event(1))
        pyro.factor("two", two_bananas(x, torch.logaddexp))

    @staticmethod
    def fit(kind, checkpoint, callback=None, y=Y, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, args, options = InPyro.call(kind, torch.as_tensor(y), options, PyroAutoNormal)
        return fpp.fit(model, *args, checkpoint=checkpoint, callback=callback, progress=False, **options)

    @classmethod
    def call(cls, kind, y, options, auto_normal):
        options = SHORT | options
        if kind == "two modes":
            return cls.two_modes, (), options
        if kind == "three latents":
            return cls.three_latents, (y,), options
        if kind == "two restarts":
            options["num_restarts"] = 2
        if kind.startswith("another guide"):
            options["guide"] = auto_normal(cls.one_mode)
        return cls.another_prior if kind.endswith("another prior") else cls.one_mode, (y,), options

    @staticmethod
    def density(checkpoint, **options):
        pyro.set_rng_seed(0)
        flow = fpp.Flow(fp.maf(2, num_flows=1, hidden_dims=4))
        return fpp.fit_density(flow, ROWS, checkpoint=checkpoint, **options).flow.state_dict()

    @staticmethod
    def vae(checkpoint, **options):
        return VAEInPyro.fit(0, small(VAEInPyro), stripes(), checkpoint=checkpoint, warm_up=0, **options).params


class InNumPyro:
    optimizer = optax.sgd(0.1)

    @staticmethod
    def one_mode(y):
        loc = numpyro.sample("loc", ndist.Normal(0.0, 5.0))
        scale = numpyro.sample("scale", ndist.HalfNormal(1.0))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", ndist.Normal(loc, scale), obs=y)

    @staticmethod
    def three_latents(y):
        numpyro.sample("x", ndist.Normal(jnp.zeros(3), 1.0).to_event(1))

    @staticmethod
    def another_prior(y):
        loc = numpyro.sample("loc", ndist.Normal(0.0, 6.0))
        scale = numpyro.sample("scale", ndist.HalfNormal(1.0))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", ndist.Normal(loc, scale), obs=y)

    @staticmethod
    def two_modes():
        x = numpyro.sample("x", ndist.Normal(jnp.zeros(2), 3.0).to_event(1))
        numpyro.factor("two", two_bananas(x, jnp.logaddexp))

    @staticmethod
    def fit(kind, checkpoint, callback=None, y=Y, **options):
        model, args, options = InNumPyro.call(kind, jnp.asarray(y), options, NumPyroAutoNormal)
        key = jax.random.key(options.pop("seed", 0))
        return fnp.fit(key, model, *args, checkpoint=checkpoint, callback=callback, progress=False, **options)

    call = classmethod(InPyro.call.__func__)

    @staticmethod
    def density(checkpoint, **options):
        flow = fnp.Flow.init(jax.random.key(1), fp.maf(2, num_flows=1, hidden_dims=4))
        return fnp.fit_density(jax.random.key(0), flow, ROWS, checkpoint=checkpoint, **options).flow.params

    @staticmethod
    def vae(checkpoint, **options):
        return VAEInNumPyro.fit(0, small(VAEInNumPyro), stripes(), checkpoint=checkpoint, warm_up=0, **options).params


LANGUAGES = {"pyro": InPyro, "numpyro": InNumPyro}


def two_bananas(x, logaddexp):
    first = -((x[..., 0] - 4) ** 2) - 4 * (x[..., 1] - x[..., 0] ** 2 / 4) ** 2
    return logaddexp(first, -2 * (x[..., 0] + 4) ** 2 - 4 * (x[..., 1] + x[..., 0] ** 2 / 8) ** 2)


def weights(params):
    """The arrays of a tree by name."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(params), is_leaf=lambda leaf: isinstance(leaf, torch.Tensor))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def run(language, kind, checkpoint):
    lang = LANGUAGES[language]
    if kind == "fit_density":
        return weights(lang.density(checkpoint, num_epochs=60, patience=None, progress=False))
    if kind == "fit_vae":
        # In NumPyro the most is compilation: with 100 epochs all kills came before the first checkpoint.
        return weights(lang.vae(checkpoint, num_epochs=100 if language == "pyro" else 3000, patience=None))
    return weights(lang.fit(kind, checkpoint).params)


def attempt(language, kind, checkpoint, result, seconds):
    """Whether a run of its own process came to its end before these seconds, after which it is killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            np.savez(result, **run(language, kind, checkpoint))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            assert status == 0, f"the run of {kind} in {language} failed"
            return True
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main(language, kind, num_kills, seed=0):
    """Kill runs of one kind so many times, and hold all that come to an end to one that was let alone."""
    fits.EVERY = 0.1
    for name, module in CLOCKS.items():
        setattr(module, name, math.inf)
    rng, begin = np.random.default_rng(seed), time.monotonic()
    counts = {"kills": 0, "after which a fit went on": 0, "fits": 0}
    with tempfile.TemporaryDirectory() as folder:
        here, result = pathlib.Path(folder) / "here", pathlib.Path(folder) / "result.npz"
        attempt(language, kind, None, result, math.inf)
        whole, expected = time.monotonic() - begin, dict(np.load(result))
        while counts["kills"] < num_kills:
            here.mkdir()
            path, tries, start, ended = here / "checkpoint", 0, time.monotonic(), False
            while not ended:
                is_last = counts["kills"] == num_kills
                seconds = math.inf if is_last else rng.uniform(0, whole * (0.5 + tries / 20))
                ended = attempt(language, kind, path, result, seconds)
                tries += 1
                if not ended:
                    counts["kills"] += 1
                    if path.exists():
                        counts["after which a fit went on"] += 1
                        read_file(path)  # whole, whenever it was
            if tries == 1:
                whole = min(whole, time.monotonic() - start)  # the first one had more to compile
            found = dict(np.load(result))
            assert found.keys() == expected.keys()
            for name, array in expected.items():
                np.testing.assert_array_equal(found[name], array, strict=True, err_msg=name)
            assert os.listdir(here) == ["checkpoint"], os.listdir(here)
            counts["fits"] += 1
            print(language, kind, json.dumps(counts | {"seconds": round(time.monotonic() - begin)}), flush=True)
            shutil.rmtree(here)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).zero_grad()  # imports what takes seconds
    for each in sys.argv[3:] or KINDS:
        main(sys.argv[1], each, int(sys.argv[2]))
