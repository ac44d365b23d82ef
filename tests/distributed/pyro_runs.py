"""Trainings in Pyro, in one process and in several: `python pyro_runs.py FOLDER` is one of those that torchrun starts.

Each process has weights and a seed of its own, so that only the first one's can lead to the same end.
"""

import os
import pathlib
import signal
import sys
from datetime import timedelta

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.nn.parallel import DistributedDataParallel

import flowppl as fp
from flowppl.pyro import AutoFlow, FlowVAE, fit_density, fit_vae

X = np.random.default_rng(0).normal(size=(103, 2)) @ np.array([[1.0, 0.5], [0.0, 0.7]])
BITS = (np.random.default_rng(1).random((103, 1)) < 0.5) * np.ones((1, 9))
FLOW = fp.maf(2, num_flows=1, hidden_dims=4)
OPTIONS = {"batch_size": 15, "num_epochs": 4, "ema_decay": 0.9, "progress": False}
# Rows of the batches of the first and of the second, which has fewer, and of those that one alone has in their place.
OURS, THEIRS = [slice(0, 10), slice(20, 30), slice(40, 50)], [slice(10, 20), slice(30, 35)]
BOTH = [slice(0, 20), slice(20, 35), slice(40, 50)]


def density(distributed, x=X, **options):
    fit = fit_density(FLOW, x, distributed=distributed, **OPTIONS | options)
    return {"losses": fit.losses, "validation": fit.validation_losses, **arrays(fit.flow)}


def vae(distributed, x=BITS):
    encoder = torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.Tanh())
    made = FlowVAE(encoder, torch.nn.Linear(2, 9), fp.amortized_posterior(2, 6, "planar", 1))
    fit = fit_vae(made, x, warm_up=2, free_bits=0.05, distributed=distributed, **OPTIONS)
    return {"losses": fit.losses, "validation": fit.validation_losses, **arrays(made)}


def model(y, rows):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", 40, subsample=rows):
        pyro.sample("y", dist.Normal(slope.sum(-1), 1.0), obs=y[rows])


def svi(rank=0, size=1):
    """SVI with the gradients of DistributedDataParallel; the processes draw the same latents, and see their rows."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    rows, y = torch.arange(40).chunk(size)[rank], torch.as_tensor(X[:40, 0])
    guide = AutoFlow(model, "planar")
    guide.setup(y, torch.arange(40))
    objective = Trace_ELBO()(model, guide)
    objective = DistributedDataParallel(objective, find_unused_parameters=True) if size > 1 else objective
    stepper = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), lambda model, guide, *args: objective(*args))
    losses = torch.tensor([stepper.step(y, rows) for _ in range(20)])
    if size > 1:
        torch.distributed.all_reduce(losses)
    return {"losses": (losses / size).numpy(), **arrays(guide)}


def arrays(module):
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def all_runs(rank=0, size=1):
    torch.set_default_dtype(torch.float64)
    distributed, found = size > 1, {}
    batches = (OURS, THEIRS)[rank] if distributed else BOTH
    for name, run in {
        "density": lambda: density(distributed),
        "batches": lambda: density(distributed, lambda: (X[rows] for rows in batches), validation=X[50:]),
        "vae": lambda: vae(distributed),
        "vae batches": lambda: vae(distributed, lambda: (BITS[rows] for rows in batches)),
        "svi": lambda: svi(rank, size),
    }.items():
        pyro.set_rng_seed(rank)
        found |= {f"{name}.{key}": value for key, value in run().items()}
    return found


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    np.savez(folder / f"{rank}.npz", **all_runs(rank, size))
    pyro.set_rng_seed(rank)

    def die(epoch, loss):
        if rank == 1 and epoch == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    density(True, checkpoint=folder / "flow.checkpoint", callback=die)
