"""All flows of vectors under one protocol: nats, weights and seconds.

    python benchmarks/flows.py [--flows planar realnvp ...] [--targets U1 moons ...] [--seeds 0 1 2] [--json flows.json]

Each flow is what its recipe makes by default, in NumPyro, in float32, on one core. Two kinds of targets:

- The four energies of Rezende & Mohamed (2015, arXiv 1505.05770), each times a normal prior of scale 2, as three of
  them alone have an infinite integral. A flow is trained by 2,000 steps of Adam on 256 draws, from 5e-3 down along half
  a cosine, to the least KL(flow || target), which 50,000 draws then estimate; the target's integral is known by a grid.
- Data: 5,000 points of two moons, scikit-learn's breast cancer table (569 rows of 30 columns) and the pixels of its
  digits (1,797 rows of 64 columns, dequantised by uniform noise and mapped to the real line). All columns are
  standardised. A fifth of the rows is the test. `fit_density` with its defaults, at most 200 epochs, stops by a tenth
  of the rest; `cnf` and `residual_flow` by the estimated likelihood on the two wide tables. The value is the mean
  negative log density of the test; of the moons, whose density is known, that above the truth's. For comparison the
  normal distribution with the mean and covariance of the training rows.

Less is better in both. Seconds are of processor time for the whole training, with compilation. Prints a Markdown table;
with `--json` each result is written at once, and a second run does only what is missing.
"""

import os

# One core, so that the seconds mean something; must come before jax is imported.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import scipy.stats
import sklearn.datasets
from numpyro.infer import SVI, Trace_ELBO
from results import Results
from scipy.special import logit, logsumexp

import flowppl as fp
import flowppl.numpyro as fnp
from flowppl.bijections.estimated import has_estimate

STEPS, DRAWS, RATE = 2_000, 256, 5e-3


def parts(z):
    """The three curves of the energies, of the first coordinate."""
    w1 = jnp.sin(jnp.pi * z[..., 0] / 2)
    w2 = 3 * jnp.exp(-0.5 * ((z[..., 0] - 1) / 0.6) ** 2)
    w3 = 3 * jax.nn.sigmoid((z[..., 0] - 1) / 0.3)
    return w1, w2, w3


def bump(x, scale):
    return -0.5 * (x / scale) ** 2


def two_crescents(z):
    ring = bump(jnp.linalg.norm(z, axis=-1) - 2, 0.4)
    return ring + jnp.logaddexp(bump(z[..., 0] - 2, 0.6), bump(z[..., 0] + 2, 0.6))


def wave(z):
    return bump(z[..., 1] - parts(z)[0], 0.4)


def forking_wave(z):
    w1, w2, _ = parts(z)
    return jnp.logaddexp(bump(z[..., 1] - w1, 0.35), bump(z[..., 1] - w1 + w2, 0.35))


def stepping_wave(z):
    w1, _, w3 = parts(z)
    return jnp.logaddexp(bump(z[..., 1] - w1, 0.4), bump(z[..., 1] - w1 + w3, 0.35))


ENERGIES = {"U1": two_crescents, "U2": wave, "U3": forking_wave, "U4": stepping_wave}
DATA = ("moons", "cancer", "digits")
NOISE = 0.1  # of the moons
PRIOR = dist.Normal(jnp.zeros(2), 2.0).to_event(1)


@functools.cache
def log_integral(name):
    """Of the energy times the prior, by the sum over a grid: all but exact for a smooth function that falls off."""
    axis = np.linspace(-12, 12, 1201)
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), -1)
    return logsumexp(np.asarray(ENERGIES[name](grid) + PRIOR.log_prob(grid), float)) + 2 * np.log(axis[1] - axis[0])


@functools.cache
def rows(name):
    """The rows of a data set in a random order, which is always the same: those to train on, and the test."""
    rng = np.random.default_rng(0)
    if name == "moons":
        x = sklearn.datasets.make_moons(5_000, noise=NOISE, random_state=0)[0]
    elif name == "cancer":
        x = sklearn.datasets.load_breast_cancer().data
    else:
        pixels = sklearn.datasets.load_digits().data
        x = logit(0.05 + 0.9 * (pixels + rng.random(pixels.shape)) / 17)
    x = rng.permutation(x)
    num_test = len(x) // 5
    loc, scale = x[num_test:].mean(0), x[num_test:].std(0)
    standard = ((x - loc) / scale).astype(np.float32)
    least = 0.0 if name != "moons" else -np.mean(log_moons(x[:num_test]) + np.log(scale).sum())
    return standard[num_test:], standard[:num_test], least


def log_moons(x):
    """Of points on the two arcs, as near to each other as they are dense, and normal noise."""
    points = sklearn.datasets.make_moons(4_000)[0]
    log_density = -0.5 * ((x[:, None] - points) ** 2).sum(-1) / NOISE**2 - np.log(2 * np.pi * NOISE**2)
    return logsumexp(log_density, axis=1) - np.log(len(points))


def of_normal(name):
    x, test, least = rows(name)
    return -scipy.stats.multivariate_normal(x.mean(0), np.cov(x.T)).logpdf(test).mean() - least


def fit_energy(bijection, name, key):
    """KL(flow || target), and its standard error."""

    def model():
        z = numpyro.sample("z", PRIOR)
        numpyro.factor("energy", ENERGIES[name](z))

    def guide():
        numpyro.sample("z", fnp.flow("flow", bijection)())

    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(optax.cosine_decay_schedule(RATE, STEPS)))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=DRAWS))
    params = svi.run(key, STEPS, progress_bar=False).params
    q = fnp.Flow(bijection, params["flow"])()
    z = q.sample(jax.random.fold_in(key, 1), (50_000,))
    gap = np.asarray(q.log_prob(z) - PRIOR.log_prob(z) - ENERGIES[name](z), float) + log_integral(name)
    return gap.mean(), gap.std() / len(gap) ** 0.5


def fit_data(bijection, name, key):
    """The mean negative log density of the test rows, and its standard error."""
    x, test, least = rows(name)
    start = fnp.Flow.init(jax.random.fold_in(key, 0), bijection)
    is_dear = x.shape[1] > 2 and has_estimate(bijection)
    objective = "estimated_likelihood" if is_dear else "likelihood"
    flow = fnp.fit_density(key, start, x, objective=objective, progress=False).flow
    found = -np.asarray(flow.log_prob(test), float)
    return found.mean() - least, found.std() / len(found) ** 0.5


def measure(flow, target, seed):
    """Nats, their error by sampling, weights and seconds of one fit."""
    is_energy = target in ENERGIES
    bijection = fp.make_flow(flow, 2 if is_energy else rows(target)[0].shape[1])
    begin = time.process_time()
    nats, error = (fit_energy if is_energy else fit_data)(bijection, target, jax.random.key(seed))
    seconds = time.process_time() - begin
    return {"nats": float(nats), "error": float(error), "weights": fp.num_parameters(bijection), "seconds": seconds}


def in_digits(nats, target):
    """As many as sampling allows."""
    return f"{nats:.1f}" if target in ("cancer", "digits") else f"{nats:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flows = [name for name in fp.available_flows() if not name.endswith("_image") and name != "sylvester"]
    parser.add_argument("--flows", nargs="+", default=flows)
    parser.add_argument("--targets", nargs="+", default=[*ENERGIES, *DATA])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = Results(options.json)
    print("| flow | weights |", " | ".join(options.targets), "| seconds |")
    print("|---" * (3 + len(options.targets)) + "|")
    normal = [in_digits(of_normal(target), target) if target in DATA else "" for target in options.targets]
    print("| normal distribution | |", " | ".join(normal), "| |")
    for flow in options.flows:
        found = {
            target: [
                results.get({"flow": flow, "target": target, "seed": seed}, measure, flow, target, seed)
                for seed in options.seeds
            ]
            for target in options.targets
        }
        cells = [in_digits(np.median([each["nats"] for each in found[target]]), target) for target in options.targets]
        weights, seconds = ([each[name] for fits in found.values() for each in fits] for name in ("weights", "seconds"))
        print(
            f"| `{flow}` | {min(weights)} to {max(weights)} |",
            " | ".join(cells),
            f"| {min(seconds):.0f} to {max(seconds):.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
