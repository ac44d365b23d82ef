"""Seconds to a good guide, beside NUTS of the host, in NumPyro.

    PYTHONPATH=FOLDER python benchmarks/seconds.py [--posterior arK ...] [--seeds 0] [--json seconds.json]

FOLDER holds a package `posteriors` as for `posteriors.py`, whose posteriors have `.ref_mean` and `.ref_sd` as well.

float64, one core; processor seconds with compilation. `fit` has its defaults. NUTS runs four chains of 1,000 steps,
after 1,000 of warm-up, all in one program. The error is that of the mean that is farthest off, in sds of
the posterior, of 4,000 draws of each. Each fit and each run of NUTS has a process of its own, so that nothing is
compiled before.

Prints a Markdown table. With `--json` each result is written at once, and a second run does only what is missing.
"""

import os

# One core, so that the seconds mean something; must come before jax is imported.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import numpyro
from results import Results

import flowppl.numpyro

sys.path.remove(str(Path(__file__).parent))  # where another `posteriors` is


def fit(known, seed):
    """Fit, and draw."""
    result = flowppl.numpyro.fit(jax.random.key(seed), known.model, known.data, progress=False)
    check = result.history.check
    quality = {"k_hat": check.k_hat, "verdict": check.verdict, "kl": known.log_z - check.elbo}
    return result.sample(4000), quality


def nuts(known, seed):
    """Run the host's sampler."""
    kernel = numpyro.infer.NUTS(known.model)
    options = {"num_warmup": 1000, "num_samples": 1000, "num_chains": 4, "chain_method": "vectorized"}
    sampler = numpyro.infer.MCMC(kernel, progress_bar=False, **options)
    sampler.run(jax.random.key(seed), known.data)
    return sampler.get_samples(), {}


def measure(way, name, seed):
    """Seconds and the error, in this process."""
    numpyro.enable_x64()
    known = importlib.import_module("posteriors.posteriors").get_posterior(name)
    begin = time.process_time()
    draws, quality = {"fit": fit, "nuts": nuts}[way](known, seed)
    draws = known.compared(jax.device_get(draws))
    seconds = time.process_time() - begin
    errors = [np.abs(draws[k].mean(0) - known.ref_mean[k]) / np.maximum(known.ref_sd[k], 1e-12) for k in known.keys]
    return quality | {"seconds": seconds, "error": float(max(np.max(each) for each in errors))}


def apart(way, name, seed):
    """As :func:`measure`, in a process of its own."""
    command = [sys.executable, __file__, "--measure", way, "--posterior", name, "--seeds", str(seed)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posterior", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.posterior or importlib.import_module("posteriors.posteriors").NAMES
    if options.measure:
        print(json.dumps(measure(options.measure, names[0], options.seeds[0])))
        return
    results = Results(options.json)
    print("| posterior | seed | `fit`, s | NUTS, s | ratio | error | NUTS's | KL | k-hat | verdict |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in names:
        for seed in options.seeds:
            ours, theirs = (
                results.get({"posterior": name, "seed": seed, "way": way}, apart, way, name, seed)
                for way in ("fit", "nuts")
            )
            numbers = f"{ours['seconds']:.1f} | {theirs['seconds']:.1f} | {ours['seconds'] / theirs['seconds']:.2f}"
            errors = f"{ours['error']:.3f} | {theirs['error']:.3f}"
            quality = f"{ours['kl']:.4f} | {ours['k_hat']:.2f} | {ours['verdict']}"
            print(f"| `{name}` | {seed} | {numbers} | {errors} | {quality} |", flush=True)


if __name__ == "__main__":
    main()
