"""`fit` with its defaults on posteriors with several modes.

    python benchmarks/modes.py [numpyro|pyro] [--target two-2d-8 ...] [--seeds 0 1 2] [--json modes.json]

float64, one core. KL = log Z - ELBO from 20,000 draws; where Z is not known, the guide's own estimate.
The share of a mode is that of the draws that are nearest to it; the worst is shown, as its ratio to the true share, in
logarithms. Seconds are of processor time, with compilation.

Prints a Markdown table. With `--json` each result is written at once, and a second run with the same options does only
what is missing.
"""

import os

# One core, so that the seconds mean something; must come before jax is imported.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import torch
from results import Results

import flowppl.numpyro
import flowppl.pyro
from flowppl._arrays.namespace import namespace


@dataclasses.dataclass(frozen=True)
class Target:
    """A model of both languages, the log evidence and, where they are known, the modes and their shares."""

    model: Callable
    log_z: float | None = 0.0
    site: str = "x"
    modes: np.ndarray | None = None
    shares: np.ndarray | None = None


def density(dim, log_density, **known):
    """A model with a flat prior on ``dim`` real numbers and a log density of them."""

    def model(ppl, array):
        real_vector = ppl.distributions.constraints.real_vector
        x = ppl.sample("x", ppl.distributions.ImproperUniform(real_vector, (), (dim,)))
        ppl.factor("density", log_density(x, array))

    return Target(model, **known)


def normals(locs, shares, sds, spread=None):
    """A mixture of normals, or of Student t distributions with ``spread`` degrees of freedom."""
    locs, shares, sds = (np.asarray(each, dtype=float) for each in (locs, shares, sds))
    dim = locs.shape[1]

    def log_density(x, array):
        xp = namespace(x)
        squares = xp.sum((x - array(locs)) ** 2, axis=-1) / array(sds) ** 2
        if spread is None:
            logs = -0.5 * squares - 0.5 * dim * math.log(2 * math.pi)
        else:
            norm = math.lgamma((spread + dim) / 2) - math.lgamma(spread / 2) - 0.5 * dim * math.log(spread * math.pi)
            logs = norm - 0.5 * (spread + dim) * xp.log1p(squares / spread)
        return xp.logsumexp(logs + array(np.log(shares) - dim * np.log(sds)))

    return density(dim, log_density, modes=locs, shares=shares)


def two(dim, gap, share):
    far = np.full(dim, gap / math.sqrt(dim))
    return normals([0 * far, far], [share, 1 - share], [1.0, 1.0])


def wells(num):
    """Products of double wells; a well to the right holds .844 of the mass."""

    def log_density(x, array):
        a, b = x[::2], x[1::2]
        return namespace(x).sum(0.5 * a + 6 * a**2 - a**4 - 0.5 * b**2)

    ends = np.array(
        [[sign for bit in f"{i:0{num}b}" for sign in ((1.75, 0) if bit == "1" else (-1.71, 0))] for i in range(2**num)]
    )
    right = (ends[:, ::2] > 0).sum(axis=1)
    log_z = num * (math.log(11784.50927) + 0.5 * math.log(2 * math.pi))
    return density(2 * num, log_density, log_z=log_z, modes=ends, shares=0.8443**right * 0.1557 ** (num - right))


def banana_and_blob():
    def log_density(x, array):
        bend = (x[1] - 0.3 * (x[0] ** 2 - 9)) / 0.5
        banana = -0.5 * ((x[0] / 3) ** 2 + bend**2) - math.log(3 * 0.5)
        blob = -0.5 * ((x[0] / 0.3) ** 2 + ((x[1] - 8) / 0.3) ** 2) - 2 * math.log(0.3)
        return namespace(x).logaddexp(banana, blob) - math.log(4 * math.pi)

    return density(2, log_density)


HEIGHTS = np.random.default_rng(3).normal(np.repeat([-1.5, 1.5], [30, 45]), np.repeat([1.0, 0.8], [30, 45]))
PLACES = np.linspace(-2, 2, 40)
CURVE = np.sin(2 * PLACES) + 0.1 * np.random.default_rng(5).normal(size=40)


def two_groups(ppl, array):
    """A mixture of two normals without an order on its means: each labelling is a mode."""
    dist = ppl.distributions
    share = ppl.sample("share", dist.Beta(array(2.0), array(2.0)))
    mean = ppl.sample("mean", dist.Normal(array(0.0), 5.0).expand([2]).to_event(1))
    sd = ppl.sample("sd", dist.LogNormal(array(0.0), 1.0).expand([2]).to_event(1))
    y = array(HEIGHTS)
    xp = namespace(mean)
    logs = xp.stack([xp.log(share), xp.log1p(-share)])[:, None] - 0.5 * ((y - mean[:, None]) / sd[:, None]) ** 2
    ppl.factor("y", xp.sum(xp.logsumexp(logs - xp.log(sd)[:, None])))


def network(ppl, array):
    """One hidden layer of three tanh units: 48 copies of each mode by symmetry."""
    dist = ppl.distributions
    inner, bias, outer = (
        ppl.sample(name, dist.Normal(array(0.0), 2.0).expand([3]).to_event(1)) for name in ("inner", "bias", "outer")
    )
    level = ppl.sample("level", dist.Normal(array(0.0), 1.0))
    xp = namespace(inner)
    mean = level + xp.sum(outer * xp.tanh(array(PLACES)[:, None] * inner + bias), axis=-1)
    ppl.sample("y", dist.Normal(mean, 0.2).to_event(1), obs=array(CURVE))


def arm(ppl, array):
    """The ten joints of a planar arm whose hand is near one of four goals."""
    dist = ppl.distributions
    sds = array(np.array([0.4, *[0.2] * 9]))
    joints = ppl.sample("x", dist.Normal(array(np.zeros(10)), sds).to_event(1))
    xp = namespace(joints)
    angles = xp.cumulative_sum(joints, axis=0)
    hand = xp.stack([xp.sum(xp.cos(angles)), xp.sum(xp.sin(angles))])
    goals = array(np.array([[7.0, 0.0], [-7.0, 0.0], [0.0, 7.0], [0.0, -7.0]]))
    ppl.factor("goal", xp.logsumexp(-0.5 * xp.sum((hand - goals) ** 2, axis=-1) / 0.01))


GRID = [[i, j] for i in (-5, 0, 5) for j in (-5, 0, 5)]
TARGETS = {
    f"two-{dim}d-{gap}{'' if share == 0.5 else '-uneven'}": two(dim, gap, share)
    for dim in (2, 10)
    for gap in (4, 8, 20)
    for share in (0.5, 0.3)
}
TARGETS |= {"grid": normals(GRID, np.full(9, 1 / 9), np.full(9, 0.548))}
TARGETS |= {f"wells-{2 * num}d": wells(num) for num in (1, 2, 4, 16)}
TARGETS |= {"labels": Target(two_groups, None, "mean", np.array([[-1.4, 1.5], [1.5, -1.4]]), np.array([0.5, 0.5]))}
TARGETS |= {"network": Target(network, None), "arm": Target(arm, None), "banana-and-blob": banana_and_blob()}
RNG = np.random.default_rng(7)
TARGETS |= {
    "forty": normals(RNG.uniform(-40, 40, (40, 2)), np.full(40, 1 / 40), np.ones(40)),
    "heavy-tails": normals([[0.0] * 5, [12.0] * 5], [0.4, 0.6], [1.0, 1.5], spread=5.0),
    "five-of-all-sizes": normals(RNG.uniform(-15, 15, (5, 3)), [0.05, 0.1, 0.2, 0.25, 0.4], [0.2, 0.5, 1.0, 1.5, 2.5]),
}


def run(language, name, seed):
    """Fit, and measure."""
    target, begin = TARGETS[name], time.process_time()
    if language == "numpyro":
        numpyro.enable_x64()
        result = flowppl.numpyro.fit(jax.random.key(seed), lambda: target.model(numpyro, jnp.asarray), progress=False)
    else:
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float64)
        pyro.set_rng_seed(seed)
        result = flowppl.pyro.fit(lambda: target.model(pyro, torch.as_tensor), progress=False)
    seconds = time.process_time() - begin
    check = result.diagnose(20_000)
    log_z = check.log_evidence if target.log_z is None else target.log_z
    return {
        "kl": log_z - check.elbo,
        "kl_se": check.elbo_se,
        "k_hat": check.k_hat,
        "verdict": check.verdict,
        "found": str(check.search),
        "missing": check.search.missing,
        "steps": len(result.losses),
        "seconds": seconds,
        "worst_share": worst_share(target, np.asarray(result.sample(20_000)[target.site])),
    }


def worst_share(target, draws):
    """The largest error of a mode's share, as the logarithm of its ratio to the truth; modes of 1% or more count."""
    if target.modes is None:
        return None
    nearest = np.argmin(((draws[:, None] - target.modes) ** 2).sum(axis=-1), axis=1)
    found = np.bincount(nearest, minlength=len(target.modes)) / len(draws)
    counts = target.shares >= 0.01
    return float(np.abs(np.log(np.maximum(found, 1e-6) / target.shares))[counts].max())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("language", nargs="?", default="numpyro", choices=("numpyro", "pyro"))
    parser.add_argument("--target", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = Results(options.json)
    print("| target | KL | worst share | k-hat | verdict | found | seconds |\n|---|---|---|---|---|---|---|")
    for name in options.target:
        rows = []
        for seed in options.seeds:
            labels = {"language": options.language, "target": name, "seed": seed}
            rows.append(results.get(labels, run, options.language, name, seed))
        shares = " / ".join("" if row["worst_share"] is None else f"{row['worst_share']:.2f}" for row in rows)
        columns = (
            " / ".join(f"{row['kl']:.4f}" for row in rows),
            shares,
            " / ".join(f"{row['k_hat']:.2f}" for row in rows),
            ", ".join(sorted({row["verdict"] for row in rows})),
            rows[0]["found"],
            " / ".join(f"{row['seconds']:.0f}" for row in rows),
        )
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
