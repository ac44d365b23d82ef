"""Steps per second of `SVI` with an inverse autoregressive guide, beside the same guide of the host library.

    taskset -c 0 python benchmarks/guides.py

One thread, float32, one particle, Adam, three flows with hidden layers [D, D]. All cases of a model take turns, and a
ratio is the median over the rounds: above 1, so many times faster than the host's. NumPyro is timed with one compiled
step per call and with 100; Pyro step by step, and in `fit`, where no trace is made. The last table has the seconds
from a new `AutoFlow(model)` with its defaults to the end of the first step, each in a process of its own: with the
search of the start and all compilation, without imports.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import subprocess
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import torch
from jax.example_libraries import stax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoIAFNormal as NumPyroIAF
from pyro.infer.autoguide import AutoIAFNormal as PyroIAF

import flowppl as fp
import flowppl.numpyro
import flowppl.pyro
from flowppl.inference.fitting import CHUNK, Chunk
from flowppl.pyro.trainers import PathTrainer

torch.set_num_threads(1)
warnings.filterwarnings("ignore")  # of the peers, about their own future

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=np.float32)
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=np.float32)


def regression_data(dim):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, dim)).astype(np.float32)
    return rows, (rng.logistic(size=2000) < rows @ rng.normal(size=dim) / 4).astype(np.float32)


def schools_numpyro():
    mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", ndist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        raw = numpyro.sample("raw", ndist.Normal(0.0, 1.0))
        numpyro.sample("y", ndist.Normal(mu + tau * raw, SIGMA), obs=Y)


def schools_pyro():
    mu = pyro.sample("mu", pdist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", pdist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", 8):
        raw = pyro.sample("raw", pdist.Normal(0.0, 1.0))
        pyro.sample("y", pdist.Normal(mu + tau * raw, torch.as_tensor(SIGMA)), obs=torch.as_tensor(Y))


def regression_numpyro(dim):
    rows, y = map(jnp.asarray, regression_data(dim))

    def model():
        w = numpyro.sample("w", ndist.Normal(jnp.zeros(dim), 1.0).to_event(1))
        with numpyro.plate("data", 2000):
            numpyro.sample("y", ndist.Bernoulli(logits=rows @ w), obs=y)

    return model


def regression_pyro(dim):
    rows, y = map(torch.as_tensor, regression_data(dim))

    def model():
        w = pyro.sample("w", pdist.Normal(torch.zeros(dim), 1.0).to_event(1))
        with pyro.plate("data", 2000):
            pyro.sample("y", pdist.Bernoulli(logits=w @ rows.T), obs=y)

    return model


MODELS = {
    "eight schools, D = 10": (10, schools_numpyro, schools_pyro),
    "logistic regression, D = 55": (55, regression_numpyro(55), regression_pyro(55)),
}


def small_iaf(dim):
    return fp.iaf(dim, 3, hidden_dims=(dim, dim), activation="relu")


def numpyro_case(model, guide, num_steps):
    """A function that takes ``num_steps`` steps."""
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    state = svi.init(jax.random.key(0))
    run = jax.jit(lambda state: jax.lax.scan(lambda state, _: svi.update(state), state, None, length=num_steps))

    def step():
        nonlocal state
        state, losses = run(state)
        jax.block_until_ready(losses)

    return step


def pyro_case(model, guide):
    guide()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    return svi.step


def fit_case(model, guide):
    """``CHUNK`` steps of ``fit`` with one particle."""
    guide.setup()
    trainer = PathTrainer(guide, model, (), {}, 1, "adam", np.inf)
    trainer.begin(False)
    chunk = Chunk(np.full(CHUNK, 1e-3), np.zeros(CHUNK), np.ones(CHUNK), 1, False)
    return lambda: trainer.run(chunk)


def cases(dim, numpyro_model, pyro_model):
    """For each case the function to time and the steps that it takes."""

    def ours(package, model):
        return package.AutoFlow(model, small_iaf, init="point")

    host = {"nonlinearity": stax.Relu}
    # Pyro keeps parameters by the names of classes; its own guides would share them.
    mine = type("PeerIAF", (PyroIAF,), {})(pyro_model, hidden_dim=[dim, dim], num_transforms=3)
    return {
        "NumPyro, 1 step": (numpyro_case(numpyro_model, ours(flowppl.numpyro, numpyro_model), 1), 1),
        "NumPyro, 1 step, host": (numpyro_case(numpyro_model, NumPyroIAF(numpyro_model, **host), 1), 1),
        "NumPyro, 100 steps": (numpyro_case(numpyro_model, ours(flowppl.numpyro, numpyro_model), 100), 100),
        "NumPyro, 100 steps, host": (numpyro_case(numpyro_model, NumPyroIAF(numpyro_model, **host), 100), 100),
        "Pyro": (pyro_case(pyro_model, ours(flowppl.pyro, pyro_model)), 1),
        "Pyro, host": (pyro_case(pyro_model, mine), 1),
        "Pyro, fit": (fit_case(pyro_model, ours(flowppl.pyro, pyro_model)), CHUNK),
    }


def seconds_per_step(function, steps, least=0.3):
    begin, count = time.perf_counter(), 0
    while time.perf_counter() < begin + least:
        function()
        count += steps
    return (time.perf_counter() - begin) / count


def compare(rounds):
    print("| steps per second | flowppl | host | ratio |\n|---|---|---|---|")
    for name, parts in MODELS.items():
        pyro.clear_param_store()
        functions = cases(*parts)
        for function, _ in functions.values():
            function()
        times = {case: [] for case in functions}
        for _ in range(rounds):
            for case, (function, steps) in functions.items():
                times[case].append(seconds_per_step(function, steps))
        for case in ("NumPyro, 1 step", "NumPyro, 100 steps", "Pyro", "Pyro, fit"):
            host = times["Pyro, host" if case == "Pyro, fit" else f"{case}, host"]
            ratio = statistics.median(theirs / ours for ours, theirs in zip(times[case], host, strict=True))
            speeds = [1 / statistics.median(each) for each in (times[case], host)]
            print(f"| {name}; {case} | {speeds[0]:,.0f} | {speeds[1]:,.0f} | {ratio:.2f} |", flush=True)


def first_step(host):
    """Seconds from a new guide of 50 dimensions to the end of its first step."""
    begin = time.perf_counter()
    if host == "numpyro":
        model = regression_numpyro(50)
        svi = SVI(model, flowppl.numpyro.AutoFlow(model), numpyro.optim.Adam(1e-3), Trace_ELBO())
        jax.block_until_ready(jax.jit(svi.update)(svi.init(jax.random.key(0))))
    else:
        model = regression_pyro(50)
        guide = flowppl.pyro.AutoFlow(model)
        pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()).step()
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--first-step", choices=["numpyro", "pyro"], help="print its seconds only")
    args = parser.parse_args()
    if args.first_step:
        print(f"{first_step(args.first_step):.1f}")
        return
    compare(args.rounds)
    print("\n| first step at D = 50 | seconds |\n|---|---|")
    for host in ("numpyro", "pyro"):
        command = [sys.executable, __file__, "--first-step", host]
        print(f"| {host} | {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()} |")


if __name__ == "__main__":
    main()
