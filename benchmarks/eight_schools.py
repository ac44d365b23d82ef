"""The eight schools, centred: flow guides by plain SVI beside the guides of both host libraries.

    python benchmarks/eight_schools.py [--steps 20000] [--seeds 0 1 2] [--only flowppl,AutoIAFNormal]

float64; 32 particles; Adam with its gradient clipped to norm 10 and its step size falling from 5e-3 to 0 by a cosine.
KL = log Z - ELBO, with log Z = -31.3113 (mu and theta integrated by hand, tau by a sum over a grid) and the ELBO from
200,000 draws; k-hat is the median of 20 batches of 10,000.
Prints a markdown table, one line per guide.
"""

import argparse
import time
import warnings
from functools import partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as ndist
import optax
import pyro
import pyro.distributions as pdist
import torch
from numpyro.infer import autoguide as numpyro_guides
from pyro.infer import autoguide as pyro_guides

import flowppl.numpyro
import flowppl.pyro
from flowppl.diagnostics import k_hat

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
LOG_Z, PARTICLES, LEARNING_RATE, CLIP, DRAWS = -31.3113, 32, 5e-3, 10.0, 200_000


def numpyro_model():
    mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", ndist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", ndist.Normal(mu, tau))
        numpyro.sample("y", ndist.Normal(theta, SIGMA), obs=Y)


def pyro_model():
    mu = pyro.sample("mu", pdist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", pdist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", pdist.Normal(mu, tau))
        pyro.sample("y", pdist.Normal(theta, torch.as_tensor(SIGMA)), obs=torch.as_tensor(Y))


def fit_numpyro(guide, seed, steps):
    """Log weights of draws from the fitted guide, and the seconds of the fit, compilation included."""
    guide = guide(numpyro_model)
    schedule = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(schedule))
    svi = numpyro.infer.SVI(numpyro_model, guide, optimizer, numpyro.infer.Trace_ELBO(num_particles=PARTICLES))
    start = time.perf_counter()
    result = svi.run(jax.random.key(seed), steps, progress_bar=False)
    jax.block_until_ready(result.params)
    seconds = time.perf_counter() - start
    key = jax.random.key(seed + 1000)
    weights = flowppl.numpyro.log_weights(key, numpyro_model, guide, result.params, num_samples=DRAWS)
    return np.asarray(weights), seconds


def fit_pyro(guide, seed, steps):
    """As :func:`fit_numpyro`, for Pyro."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = guide(pyro_model)
    settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": LEARNING_RATE}, "T_max": steps}
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR
    optimizer = pyro.optim.PyroLRScheduler(schedule, settings, clip_args={"clip_norm": CLIP})
    elbo = pyro.infer.Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = pyro.infer.SVI(pyro_model, guide, optimizer, elbo)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            svi.step()
            optimizer.step()
    seconds = time.perf_counter() - start
    return flowppl.pyro.log_weights(pyro_model, guide, num_samples=DRAWS, chunk_size=10_000).numpy(), seconds


GUIDES = {
    "flowppl-numpyro default": (fit_numpyro, flowppl.numpyro.AutoFlow),
    "flowppl-pyro default": (fit_pyro, flowppl.pyro.AutoFlow),
    "flowppl-numpyro IAF": (fit_numpyro, partial(flowppl.numpyro.AutoFlow, flow="iaf", init="point")),
    "flowppl-pyro IAF": (fit_pyro, partial(flowppl.pyro.AutoFlow, flow="iaf", init="point")),
    "numpyro AutoDiagonalNormal": (fit_numpyro, numpyro_guides.AutoDiagonalNormal),
    "numpyro AutoMultivariateNormal": (fit_numpyro, numpyro_guides.AutoMultivariateNormal),
    "numpyro AutoIAFNormal": (fit_numpyro, numpyro_guides.AutoIAFNormal),
    "numpyro AutoBNAFNormal": (fit_numpyro, numpyro_guides.AutoBNAFNormal),
    "pyro AutoIAFNormal": (fit_pyro, lambda model: pyro_guides.AutoIAFNormal(model, num_transforms=3)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="names of guides, or parts of names, separated by commas")
    args = parser.parse_args()
    numpyro.enable_x64()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    print("| guide | KL by seed | k-hat by seed | seconds |\n|---|---|---|---|")
    for name, (fit, guide) in GUIDES.items():
        if not any(part in name for part in args.only.split(",")):
            continue
        results = [fit(guide, seed, args.steps) for seed in args.seeds]
        divergence = " / ".join(f"{LOG_Z - np.mean(weights):.3f}" for weights, _ in results)
        tails = " / ".join(f"{k_hat(weights, num_batches=20):.2f}" for weights, _ in results)
        print(f"| {name} | {divergence} | {tails} | {np.median([s for _, s in results]):.0f} |", flush=True)


if __name__ == "__main__":
    main()
