"""NUTS in the space of a fitted `AutoFlow` (NeuTra) beside plain NUTS: effective draws per gradient.

    python benchmarks/neutra.py [--draws 1000] [--chains 4] [--seeds 0 1 2] [--only funnel]

float64, defaults throughout. The effective sample size (ESS) is the rank-normalised bulk ESS of arviz, the smallest of
all coordinates; the x of the funnel are taken on the scale of arcsinh, as their tails are heavy. A gradient is a
leapfrog step. Plain NUTS needs no fit; for NeuTra the gradients of the training are in a column of their own (those
of the search for its start, a few thousand, are not), and so is the ESS from which on NeuTra needs fewer gradients
in all. An R-hat well above 1.01 says that chains disagree: their ESS is then too good to be true.
Prints a markdown table, one line per seed and sampler.
"""

import argparse
import math
import time
from unittest import mock

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import NeuTraReparam

from flowppl.numpyro import fit
from flowppl.numpyro.trainers import PathTrainer


def funnel():
    """Neal's, in ten dimensions."""
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)).expand([9]).to_event(1))


def banana():
    """Haario's twisted Gaussian, in four dimensions."""
    x1 = numpyro.sample("x1", dist.Normal(0.0, 10.0))
    numpyro.sample("x2", dist.Normal(0.03 * (x1**2 - 100.0), 1.0))
    numpyro.sample("rest", dist.Normal(0.0, 1.0).expand([2]).to_event(1))


TARGETS = {"funnel": funnel, "banana": banana}


def run_nuts(model, seed, draws, chains):
    """The draws, their gradients, those of the warm-up, and the number of divergent transitions."""
    options = {"num_chains": chains, "chain_method": "vectorized", "progress_bar": False}
    mcmc = MCMC(NUTS(model), num_warmup=draws, num_samples=draws, **options)
    fields = ("num_steps", "diverging")
    mcmc.warmup(jax.random.key(seed), extra_fields=fields, collect_warmup=True)
    warmup = int(mcmc.get_extra_fields()["num_steps"].sum())
    mcmc.run(mcmc.post_warmup_state.rng_key, extra_fields=fields)
    found = mcmc.get_extra_fields()
    return mcmc.get_samples(group_by_chain=True), int(found["num_steps"].sum()), warmup, int(found["diverging"].sum())


def run_fit(model, seed):
    """The fit, and the number of gradients of its training."""
    chunks, run = [], PathTrainer.run

    def counted(self, chunk):
        chunks.append(len(chunk.rates) * chunk.num_particles)
        return run(self, chunk)

    with mock.patch.object(PathTrainer, "run", counted):
        result = fit(jax.random.key(seed), model, progress=False)
    return result, sum(chunks)


def summary(draws):
    """The smallest ESS and the largest R-hat of all coordinates."""
    scaled = {name: np.arcsinh(value) if name == "x" else np.asarray(value) for name, value in draws.items()}
    dataset = arviz.convert_to_dataset(scaled)
    ess, r_hat = arviz.ess(dataset, method="bulk"), arviz.rhat(dataset)
    return min(float(v.min()) for v in ess.values()), max(float(v.max()) for v in r_hat.values())


def compare(name, model, seed, draws, chains):
    """Print a line for each sampler."""
    start = time.perf_counter()
    values, *counts = run_nuts(model, seed, draws, chains)
    plain_cost = report([name, seed, "NUTS"], values, counts, start)
    start = time.perf_counter()
    result, fit_gradients = run_fit(model, seed)
    neutra = NeuTraReparam(result.guide, result.params)
    values, *counts = run_nuts(neutra.reparam(model), seed, draws, chains)
    values = neutra.transform_sample(values["auto_shared_latent"])
    report([name, seed, "NeuTra"], values, counts, start, fit_gradients, result.k_hat, plain_cost)


def report(labels, values, counts, start, fit_gradients=0, k_hat=math.nan, plain_cost=0.0):
    """Print a line of the table. Return the gradients for one effective draw, with warm-up."""
    gradients, warmup, divergent = counts
    ess, r_hat = summary(values)
    cost = (gradients + warmup) / ess
    pays_from = fit_gradients / (plain_cost - cost) if plain_cost > cost else math.nan
    cells = [*labels, f"{ess:,.0f}", f"{r_hat:.2f}", divergent, f"{gradients:,}", f"{warmup:,}"]
    cells += [f"{1000 * ess / gradients:.2f}", f"{1000 / cost:.2f}", f"{fit_gradients:,}", f"{k_hat:.2f}"]
    cells += [f"{pays_from:,.0f}", f"{time.perf_counter() - start:.0f}"]
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    return cost


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000, help="of each chain, after as many of warm-up")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=TARGETS)
    args = parser.parse_args()
    numpyro.enable_x64()
    columns = "target | seed | sampler | ESS | R-hat | divergent | gradients | of warm-up | ESS per 1,000 gradients | "
    columns += "with warm-up | of the fit | k-hat | pays from an ESS of | seconds"
    print(f"| {columns} |\n{'|---' * 14}|")
    for name in [args.only] if args.only else TARGETS:
        for seed in args.seeds:
            compare(name, TARGETS[name], seed, args.draws, args.chains)


if __name__ == "__main__":
    main()
