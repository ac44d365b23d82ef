"""Simulation-based calibration of the default `fit` and of the host's mean-field guide, on a hierarchical model.

    python benchmarks/calibration.py numpyro [--simulations 100] [--only fit] [--steps 1000] [--figure PATH]

Four groups, mu ~ N(0, 1), tau ~ LogNormal(0, 1/2), eta_j ~ N(0, 1), y_j ~ N(mu + tau eta_j, 1/2): mu, tau and eta are
correlated in the posterior, which a mean-field guide leaves out. float64. The guide of the host is `AutoNormal`, 3,000
steps of Adam at 0.01 with 16 particles. `--steps` is the `num_steps` of `fit`, which otherwise has its defaults. Ctrl-C
ends with the simulations so far.
Prints for each guide the calibration, and a markdown table of p-values of uniform ranks: of the smooth test of
`sbc`, of the usual chi-squared test of ranks in ten bins, and of the symmetry of VSBC.
"""

import argparse
import time
from functools import partial

import jax
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import torch
from numpyro.infer.autoguide import AutoNormal as NumPyroAutoNormal
from pyro.infer.autoguide import AutoNormal as PyroAutoNormal
from scipy.stats import chisquare

import flowppl.numpyro
import flowppl.pyro

NUM_GROUPS, NOISE, STEPS, PARTICLES, LEARNING_RATE, NUM_DRAWS = 4, 0.5, 3000, 16, 0.01, 99


def numpyro_model(y):
    mu = numpyro.sample("mu", ndist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", ndist.LogNormal(0.0, 0.5))
    with numpyro.plate("groups", NUM_GROUPS):
        eta = numpyro.sample("eta", ndist.Normal(0.0, 1.0))
        numpyro.sample("y", ndist.Normal(mu + tau * eta, NOISE), obs=y)


def pyro_model(y):
    mu = pyro.sample("mu", pdist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", pdist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", NUM_GROUPS):
        eta = pyro.sample("eta", pdist.Normal(0.0, 1.0))
        pyro.sample("y", pdist.Normal(mu + tau * eta, NOISE), obs=y)


@partial(jax.jit, static_argnums=1)
def numpyro_mean_field(rng_key, model, *args):
    guide = NumPyroAutoNormal(model)
    elbo = numpyro.infer.Trace_ELBO(num_particles=PARTICLES)
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), elbo)
    params = svi.run(rng_key, STEPS, *args, progress_bar=False).params
    return guide.sample_posterior(rng_key, params, *args, sample_shape=(NUM_DRAWS,))


def pyro_mean_field(model, *args):
    guide = PyroAutoNormal(model)
    elbo = pyro.infer.Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), elbo)
    for _ in range(STEPS):
        svi.step(*args)
    draws = [guide(*args) for _ in range(NUM_DRAWS)]
    return {name: torch.stack([draw[name].detach() for draw in draws]) for name in ("mu", "tau", "eta")}


def run(language, name, num_simulations, num_steps, seed):
    """The calibration of a guide."""
    options = {"num_simulations": num_simulations, "num_draws": NUM_DRAWS, "progress": False}
    adapter = getattr(flowppl, language)
    mean_field = {"numpyro": numpyro_mean_field, "pyro": pyro_mean_field}[language]
    options["fit"] = mean_field if name == "AutoNormal" else partial(adapter.fit, num_steps=num_steps, progress=False)
    options["resample"] = name == "fit, resampled"
    if language == "numpyro":
        return adapter.sbc(jax.random.key(seed), numpyro_model, np.zeros(NUM_GROUPS), **options)
    pyro.set_rng_seed(seed)
    return adapter.sbc(pyro_model, torch.zeros(NUM_GROUPS), **options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("language", choices=("numpyro", "pyro"))
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("fit", "fit, resampled", "AutoNormal"))
    parser.add_argument("--figure", help="a file for the rank plots, the name of the guide put before its ending")
    args = parser.parse_args()
    numpyro.enable_x64()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    lines = ["| guide | coordinate | smooth test | chi-squared | symmetry | fault |", "|---|---|---|---|---|---|"]
    for name in [args.only] if args.only else ("fit", "AutoNormal"):
        start = time.perf_counter()
        found = run(args.language, name, args.simulations, args.steps, args.seed)
        print(f"{args.language} {name}, {time.perf_counter() - start:.0f} s: {found}\n", flush=True)
        for each, ranks in found.ranks.items():
            counts = np.bincount(10 * ranks // (NUM_DRAWS + 1), minlength=10)
            p_values = [found.p_values[each], chisquare(counts).pvalue, found.symmetry_p_values[each]]
            cells = " | ".join(f"{p:.2g}" for p in p_values)
            lines.append(f"| {name} | {each} | {cells} | {found.faults.get(each, '')} |")
        if args.figure:
            from flowppl.plotting import ranks as plot

            plot(found, list(found.ranks)[:10]).savefig(args.figure.replace(".png", f"_{name}.png"))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
