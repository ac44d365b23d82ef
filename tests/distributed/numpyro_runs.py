"""Trainings in NumPyro, on one device and on several.

`python numpyro_runs.py FOLDER [all]` runs some trainings, or all, on all devices of this host, and `python
numpyro_runs.py FOLDER ADDRESS RANK` is one of two hosts, of which the second ends by being killed.
"""

import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.infer import SVI

import flowppl as fp
from flowppl.numpyro import AutoFlow, FlowVAE, PathELBO, fit_density, fit_vae

X = np.random.default_rng(0).normal(size=(103, 2)) @ np.array([[1.0, 0.5], [0.0, 0.7]])
BITS = (np.random.default_rng(1).random((103, 1)) < 0.5) * np.ones((1, 9))
FLOW = fp.maf(2, num_flows=1, hidden_dims=4)
OPTIONS = {"batch_size": 15, "num_epochs": 4, "ema_decay": 0.9, "progress": False}
# Rows of the batches of the first and of the second, which has fewer, and of those that one alone has in their place.
OURS, THEIRS = [slice(0, 10), slice(20, 30), slice(40, 50)], [slice(10, 20), slice(30, 35)]
BOTH = [slice(0, 20), slice(20, 35), slice(40, 50)]


def density(distributed, x=X, **options):
    # Each host has a key of its own, so that only the first one's can lead to the same end.
    fit = fit_density(jax.random.key(jax.process_index()), FLOW, x, distributed=distributed, **OPTIONS | options)
    return {"losses": fit.losses, "validation": fit.validation_losses, **arrays(fit.flow.params)}


def vae(distributed, x=BITS):
    rngs = nnx.Rngs(0)
    encoder = nnx.Sequential(nnx.Linear(9, 6, rngs=rngs, param_dtype=float), nnx.tanh)
    made = FlowVAE(encoder, nnx.Linear(2, 9, rngs=rngs, param_dtype=float), fp.amortized_posterior(2, 6, "planar", 1))
    options = OPTIONS | {"warm_up": 2, "free_bits": 0.05, "distributed": distributed}
    fit = fit_vae(jax.random.key(1 + jax.process_index()), made, x, **options)
    return {"losses": fit.losses, "validation": fit.validation_losses, **arrays(fit.params)}


def model(y):
    slope = numpyro.sample("slope", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", dist.Normal(slope.sum(-1), 1.0), obs=y)


def svi(devices):
    """SVI with data and particles on all devices."""
    rows = NamedSharding(Mesh(np.array(devices), ("rows",)), PartitionSpec("rows"))
    y = jax.device_put(X[:40, 0], rows)

    def spread(particle, keys):
        return jax.vmap(particle)(jax.lax.with_sharding_constraint(keys, rows))

    stepper = SVI(model, AutoFlow(model, "planar"), numpyro.optim.Adam(0.01), PathELBO(4, vectorize_particles=spread))
    result = stepper.run(jax.random.key(2), 20, y, progress_bar=False)
    return {"losses": np.asarray(result.losses), **arrays(result.params)}


def arrays(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# One of rows that the package deals out, one of batches that are given; what the other two add is held for hosts.
SOME = ("density", "vae batches")
OF_HOSTS = ("density", "batches", "vae", "vae batches")
ALL = (*OF_HOSTS, "svi")


def all_runs(distributed=False, hosts=1, rank=0, names=SOME):
    numpyro.enable_x64()
    batches = (OURS, THEIRS)[rank] if hosts > 1 else BOTH
    runs = {
        "density": lambda: density(distributed),
        "batches": lambda: density(distributed, lambda: (X[rows] for rows in batches), validation=X[50:]),
        "vae": lambda: vae(distributed),
        "vae batches": lambda: vae(distributed, lambda: (BITS[rows] for rows in batches)),
        "svi": lambda: svi(jax.devices() if distributed else jax.devices()[:1]),
    }
    return {f"{name}.{key}": value for name in names for key, value in runs[name]().items()}


def die(epoch, loss):
    if jax.process_index() == 1 and epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, *rest = sys.argv[1:]
    hosts, rank = (2, int(rest[1])) if len(rest) == 2 else (1, 0)
    if hosts > 1:
        jax.distributed.initialize(rest[0], hosts, rank, heartbeat_timeout_seconds=20)
    names = OF_HOSTS if hosts > 1 else ALL if rest == ["all"] else SOME
    np.savez(pathlib.Path(folder) / f"{rank}.npz", **all_runs(True, hosts, rank, names))
    if hosts > 1:
        density(True, checkpoint=pathlib.Path(folder) / "flow.checkpoint", callback=die)
