"""The final ELBO of `AutoFlow` trained by `PathELBO`, beside that by the host's `Trace_ELBO`.

    PYTHONPATH=FOLDER python benchmarks/path_elbo.py [--posterior arK ...] [--seeds 0]

FOLDER is as for `benchmarks/posteriors.py`. float64, one core, the SVI of NumPyro from the searched start: 3,000 steps
of 16 particles, Adam from 3e-3 down to 3e-5 by a cosine. The ELBO is of 40,960 draws, with its standard error.
Prints a Markdown table, one line per posterior and seed.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import argparse
import importlib
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import numpyro
import optax
from numpyro.infer import SVI, Trace_ELBO

from flowppl.diagnostics import diagnose
from flowppl.numpyro import AutoFlow, PathELBO, log_weights

STEPS, PARTICLES, DRAWS = 3000, 16, 40_960


def train(loss, model, data, seed):
    """What the importance weights say of the trained guide, and the seconds of the training."""
    begin = time.perf_counter()
    adam = numpyro.optim.optax_to_numpyro(optax.adam(optax.cosine_decay_schedule(3e-3, STEPS, alpha=0.01)))
    guide = AutoFlow(model)
    svi = SVI(model, guide, adam, loss(num_particles=PARTICLES))
    params = svi.run(jax.random.key(seed), STEPS, data, progress_bar=False).params
    seconds = time.perf_counter() - begin
    key = jax.random.key(seed + 1000)
    weights = log_weights(key, model, guide, params, data, num_samples=DRAWS, chunk_size=512)
    return diagnose(np.asarray(weights)), seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posterior", nargs="+", help="names; all unless given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the hosts, about their own future
    numpyro.enable_x64()
    # Python looks for modules beside this file first, and would take one for the package of the same name.
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
    posteriors = importlib.import_module("posteriors.posteriors")
    print("| posterior | seed | ELBO, path | ELBO, trace | difference | k-hat, path | k-hat, trace | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.posterior or posteriors.NAMES:
        known = posteriors.get_posterior(name)
        for seed in args.seeds:
            (path, ours), (trace, theirs) = (
                train(loss, known.model, known.data, seed) for loss in (PathELBO, Trace_ELBO)
            )
            gain = f"{path.elbo - trace.elbo:+.4f} ± {np.hypot(path.elbo_se, trace.elbo_se):.4f}"
            print(
                f"| {name} | {seed} | {path.elbo:.4f} | {trace.elbo:.4f} | {gain} | "
                f"{path.k_hat:.2f} | {trace.k_hat:.2f} | {ours:.0f}, {theirs:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
