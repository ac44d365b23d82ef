"""`fit` with its defaults beside the guides of both host libraries, which get as many gradients.

    PYTHONPATH=FOLDER python benchmarks/posteriors.py [--posterior arK ...] [--seeds 0 1 2] [--json results.json]
    python benchmarks/posteriors.py --larger [--posterior horseshoe ...] [--json larger.json]

FOLDER holds a package `posteriors` whose module `posteriors.posteriors` has `NAMES` and `get_posterior(name)`, with a
`.model` of one argument for NumPyro, that argument as `.data`, and the log evidence as `.log_z`. Three models are here
once more for Pyro. `--larger` needs no such package: three models with 63 to 1,000 latents, of unknown evidence.

float64, one core. KL = log Z - ELBO from 40,960 draws, infinite if one has no finite weight; k-hat is the median of 10
batches of 4,096. Several seeds give a range. `fit` has its defaults. Each peer has 64 particles in a step and as many
steps as make up the gradients of the fit (at least those of an affine round and three of the flow), in each step Adam
from 1e-2 down to 1e-4 by a cosine, gradients clipped to norm 10, and steps that are not finite left out. What `fit`
spends on the search of its start, and on its judgements, is in its seconds but not in its gradients. Seconds are with
compilation, the median of the seeds. `--larger` gives the peers the seconds of the fit instead, compilation excluded
for them alone, and shows the ELBO of 10,000 draws with its standard error. A star marks a training that was cut short
by `--cap`, in seconds (for `fit` with compilation, for peers without).

Prints Markdown tables. With `--json` each result is written at once, and a second run with the same options does only
what is missing.
"""

import os

# One core, so that the seconds mean something; must come before jax is imported.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import importlib
import math
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import optax
import pyro
import pyro.distributions as pdist
import torch
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer import autoguide as numpyro_guides
from pyro.distributions.transforms import affine_autoregressive, iterated
from pyro.infer import autoguide as pyro_guides
from results import Results
from sklearn.datasets import load_breast_cancer

import flowppl.numpyro
import flowppl.pyro
from flowppl.diagnostics import diagnose
from flowppl.inference.fitting import AFFINE_ROUND, FLOW_ROUNDS, MAX_AFFINE_ROUNDS

PARTICLES, FIRST_RATE, LAST_RATE, CLIP, CHUNK, BATCH = 64, 1e-2, 1e-4, 10.0, 100, 4096


# The three models for Pyro. A flat prior is a proper one whose density is masked.


def eight_schools_noncentered(data):
    mu = pyro.sample("mu", pdist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", pdist.HalfCauchy(torch.tensor(5.0)))
    raw = pyro.sample("theta_trans", pdist.Normal(torch.zeros(8), 1.0).to_event(1))
    theta = mu[..., None] + tau[..., None] * raw
    pyro.sample("obs", pdist.Normal(theta, data["sigma"]).to_event(1), obs=data["y"])


def kidscore_interaction(data):
    columns = [torch.ones_like(data["mom_iq"]), data["mom_hs"], data["mom_iq"], data["mom_hs"] * data["mom_iq"]]
    beta = pyro.sample("beta", pdist.Normal(torch.zeros(4), 1.0).to_event(1).mask(False))
    sigma = pyro.sample("sigma", pdist.HalfCauchy(torch.tensor(2.5)))
    mean = beta @ torch.stack(columns)
    pyro.sample("obs", pdist.Normal(mean, sigma[..., None]).to_event(1), obs=data["kid_score"])


def funnel10(data):
    v = pyro.sample("v", pdist.Normal(0.0, 3.0))
    pyro.sample("x", pdist.Normal(torch.zeros(9), torch.exp(v / 2)[..., None]).to_event(1))


PYRO_MODELS = {model.__name__: model for model in [eight_schools_noncentered, kidscore_interaction, funnel10]}


# The larger models: each returns a model of one argument and that argument.


def horseshoe():
    """Logistic regression on the breast-cancer data, with a regularised horseshoe: 63 latents."""
    rows, outcomes = load_breast_cancer(return_X_y=True)
    rows = (rows - rows.mean(0)) / rows.std(0)

    def model(data):
        rows, outcomes = data
        dim = rows.shape[1]
        # Piironen and Vehtari 2017, with five relevant predictors expected: a logistic outcome has sd 2 or so.
        tau = numpyro.sample("tau", ndist.HalfCauchy(5 / (dim - 5) * 2 / math.sqrt(len(rows))))
        slab = numpyro.sample("slab", ndist.InverseGamma(2.0, 8.0))
        local = numpyro.sample("local", ndist.HalfCauchy(1.0).expand([dim]).to_event(1))
        raw = numpyro.sample("raw", ndist.Normal(0.0, 1.0).expand([dim]).to_event(1))
        beta = raw * tau * local * jnp.sqrt(slab / (slab + (tau * local) ** 2))
        intercept = numpyro.sample("intercept", ndist.Normal(0.0, 5.0))
        numpyro.sample("y", ndist.Bernoulli(logits=intercept + rows @ beta).to_event(1), obs=outcomes)

    return model, (rows, outcomes)


def groups():
    """500 group effects, centred, from 1 to 20 observations each: 503 latents."""
    rng = np.random.default_rng(0)
    index = np.repeat(np.arange(500), rng.integers(1, 21, 500))
    y = 1 + 0.5 * rng.normal(size=500)[index] + rng.normal(size=len(index))

    def model(y):
        mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", ndist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", ndist.HalfNormal(2.0))
        effects = numpyro.sample("effects", ndist.Normal(mu, tau).expand([500]).to_event(1))
        numpyro.sample("y", ndist.Normal(effects[index], sigma).to_event(1), obs=y)

    return model, y


def item_response():
    """960 persons answer 20 items (2PL): 1,000 latents."""
    rng = np.random.default_rng(0)
    ability, difficulty, steepness = rng.normal(size=960), rng.normal(size=20), np.exp(0.5 * rng.normal(size=20))
    answers = rng.logistic(size=(960, 20)) < steepness * (ability[:, None] - difficulty)

    def model(answers):
        ability = numpyro.sample("ability", ndist.Normal(0.0, 1.0).expand([960]).to_event(1))
        difficulty = numpyro.sample("difficulty", ndist.Normal(0.0, 2.0).expand([20]).to_event(1))
        steepness = numpyro.sample("steepness", ndist.LogNormal(0.0, 0.5).expand([20]).to_event(1))
        logits = steepness * (ability[:, None] - difficulty)
        numpyro.sample("answers", ndist.Bernoulli(logits=logits).to_event(2), obs=answers)

    return model, answers.astype(int)


LARGER = {make.__name__: make for make in [horseshoe, groups, item_response]}


def pace(done, num_steps, begin, max_seconds):
    """The step size after ``done`` steps, or ``None`` at the end. The budget that ends first sets the pace."""
    position = max(done / num_steps, (time.perf_counter() - begin) / max_seconds)
    return None if position >= 1 else LAST_RATE + (FIRST_RATE - LAST_RATE) * (1 + math.cos(math.pi * position)) / 2


def train_numpyro(guide, model, data, seed, num_steps, max_seconds):
    """The guide, its parameters, the steps taken, and the seconds that they took."""
    svi = SVI(model, guide(model), numpyro.optim.Adam(1.0), Trace_ELBO(num_particles=PARTICLES))
    params = svi.optim.get_params(svi.init(jax.random.key(seed), data).optim_state)
    adam = optax.chain(optax.clip_by_global_norm(CLIP), optax.scale_by_adam())

    def run(carry, key, rate):
        def loss(params, key):
            return svi.loss.loss(key, svi.constrain_fn(params), model, svi.guide, data)

        def step(carry, key):
            params, state = carry
            gradient = jax.grad(loss)(params, key)
            updates, new_state = adam.update(gradient, state)
            new = jax.tree.map(lambda leaf, update: leaf - rate * update, params, updates), new_state
            return jax.tree.map(partial(jnp.where, jnp.isfinite(optax.global_norm(gradient))), new, carry), None

        return jax.lax.scan(step, carry, jax.random.split(key, CHUNK))[0]

    carry, key = (params, adam.init(params)), jax.random.key(seed + 1)
    run = jax.jit(run).lower(carry, key, FIRST_RATE).compile()
    begin, done = time.perf_counter(), 0
    while (rate := pace(done, num_steps, begin, max_seconds)) is not None:
        key, chunk_key = jax.random.split(key)
        carry = jax.block_until_ready(run(carry, chunk_key, rate))
        done += CHUNK
    return svi.guide, svi.constrain_fn(carry[0]), done, time.perf_counter() - begin


def numpyro_weights(seed, model, guide, params, data, num_draws):
    options = {"num_samples": num_draws, "chunk_size": 512}
    return flowppl.numpyro.log_weights(jax.random.key(seed + 1000), model, guide, params, data, **options)


def peer_numpyro(guide, model, data, seed, num_steps, max_seconds, num_draws):
    """The log weights of a peer and a record of its training."""
    start = time.perf_counter()
    guide, params, done, running = train_numpyro(guide, model, data, seed, num_steps, max_seconds)
    seconds = time.perf_counter() - start
    record = {
        "seconds": seconds,
        "running": running,
        "gradients": done * PARTICLES,
        "capped": done < num_steps < math.inf,
    }
    return numpyro_weights(seed, model, guide, params, data, num_draws), record


def peer_pyro(guide, model, data, seed, num_steps, max_seconds, num_draws):
    """As :func:`peer_numpyro`, for Pyro."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    guide = guide(model)
    loss = pyro.infer.Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=0)
    loss.loss(model, guide, data)  # creates the parameters
    optimizer = torch.optim.Adam(guide.parameters(), FIRST_RATE)
    begin, done = time.perf_counter(), 0
    while (rate := pace(done, num_steps, begin, max_seconds)) is not None:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss.differentiable_loss(model, guide, data).backward()
        if torch.nn.utils.clip_grad_norm_(guide.parameters(), CLIP).isfinite():
            optimizer.step()
        done += 1
    seconds = time.perf_counter() - begin
    record = {"seconds": seconds, "gradients": done * PARTICLES, "capped": done < num_steps < math.inf}
    return flowppl.pyro.log_weights(model, guide, data, num_samples=num_draws, chunk_size=BATCH), record


def fit_numpyro(model, data, seed, max_seconds, num_draws):
    """The log weights of our fit and a record of it."""
    start = time.perf_counter()
    result = flowppl.numpyro.fit(jax.random.key(seed), model, data, max_seconds=max_seconds, progress=False)
    record = describe(result, start)
    return numpyro_weights(seed, model, result.guide, result.params, data, num_draws), record


def fit_pyro(model, data, seed, max_seconds, num_draws):
    """As :func:`fit_numpyro`, for Pyro."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    start = time.perf_counter()
    result = flowppl.pyro.fit(model, data, max_seconds=max_seconds, progress=False)
    record = describe(result, start)
    return flowppl.pyro.log_weights(model, result.guide, data, num_samples=num_draws, chunk_size=BATCH), record


def describe(result, start):
    seconds, capped = time.perf_counter() - start, result.stopped == "max_seconds"
    return {"seconds": seconds, "gradients": gradients(result), "capped": capped, "stopped": result.stopped}


def gradients(result):
    """The gradients of a fit in default rounds: how many of them were for the affine layers, the losses tell."""
    steps, rounds = len(result.losses), len(result.checks) - 1
    for num_affine in range(min(rounds, MAX_AFFINE_ROUNDS), 0, -1):
        done = [AFFINE_ROUND] * num_affine + list(FLOW_ROUNDS[: rounds - num_affine])
        particles = np.repeat([each.num_particles for each in done], [each.num_steps for each in done])
        if len(particles) - done[-1].num_steps < steps <= len(particles):
            return int(particles[:steps].sum())
    return 0


# The gradients of a peer where the fit stops at its start, which it has found by other means.
LEAST_GRADIENTS = sum(each.num_steps * each.num_particles for each in (AFFINE_ROUND, *FLOW_ROUNDS[:3]))

OURS = {"flowppl-numpyro": fit_numpyro, "flowppl-pyro": fit_pyro}
NUMPYRO = {name: getattr(numpyro_guides, name) for name in numpyro_guides.__all__}
PEERS = ("AutoDiagonalNormal", "AutoMultivariateNormal", "AutoIAFNormal", "AutoBNAFNormal")
LARGER_PEERS = ("AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoIAFNormal")
PYRO_PEERS = {
    "pyro AutoNormalizingFlow": lambda model: pyro_guides.AutoNormalizingFlow(
        model, partial(iterated, 3, affine_autoregressive)
    )
}
GUIDES = NUMPYRO | PYRO_PEERS


def wanted(names, args):
    return [name for name in names if not args.guides or any(part in name for part in args.guides)]


def judge(train, *args):
    """The record of a training, and how good its log weights say that it is."""
    weights, record = train(*args)
    check = diagnose(np.asarray(weights), num_batches=len(weights) // BATCH)
    elbo = -math.inf if check.nonfinite else check.elbo
    return record | {"elbo": elbo, "elbo_se": check.elbo_se, "k_hat": check.k_hat}


def compare(name, seed, args, results):
    """Ours and the peers on one posterior, the peers with as many gradients."""
    known = importlib.import_module("posteriors.posteriors").get_posterior(name)
    sides = [("flowppl-numpyro", known.model, known.data, PEERS, peer_numpyro)]
    if name in PYRO_MODELS:
        data = {key: torch.as_tensor(np.asarray(value)).double() for key, value in known.data.items()}
        sides.append(("flowppl-pyro", PYRO_MODELS[name], data, PYRO_PEERS, peer_pyro))
    for ours, model, data, peers, train in sides:
        if not wanted([ours, *peers], args):
            continue
        labels = {"posterior": name, "seed": seed, "log_z": known.log_z}
        budget = (seed, args.cap, 10 * BATCH)
        fitted = results.get(labels | {"guide": ours}, judge, OURS[ours], model, data, *budget)
        num_steps = math.ceil(max(fitted["gradients"], LEAST_GRADIENTS) / PARTICLES)
        for guide in wanted(peers, args):
            budget = (seed, num_steps, args.cap, 10 * BATCH)
            results.get(labels | {"guide": guide}, judge, train, GUIDES[guide], model, data, *budget)


def compare_larger(name, seed, args, results):
    """Ours and the peers on one larger model, the peers with as many seconds."""
    model, data = LARGER[name]()
    labels = {"posterior": name, "seed": seed}
    ours = (fit_numpyro, model, data, seed, args.cap, 10_000)
    fitted = results.get(labels | {"guide": "flowppl-numpyro"}, judge, *ours)
    for guide in wanted(LARGER_PEERS, args):
        budget = (seed, math.inf, fitted["seconds"], 10_000)
        results.get(labels | {"guide": guide}, judge, peer_numpyro, GUIDES[guide], model, data, *budget)


def span(values, form):
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"


def nats(value):
    return f"{value:.3f}" if abs(value) < 1 else f"{value:,.3g}" if abs(value) < 1000 else f"{value:.1e}"


def cell(records, larger):
    """What a cell of the table says of the fits with one guide, one for each seed."""
    if not records:
        return ""
    if larger:
        quality = " / ".join(f"{each['elbo']:.2f} ± {each['elbo_se']:.2f}" for each in records)
    else:
        quality = span([each["log_z"] - each["elbo"] for each in records], nats)
    tail = span([each["k_hat"] for each in records], "{:.2f}".format)
    star = "*" if any(each["capped"] for each in records) else ""
    return f"{quality}; {tail}; {np.median([each['seconds'] for each in records]):.0f} s{star}"


def print_table(names, guides, args, results):
    measure = "ELBO" if args.larger else "KL"
    print(f"\n{measure}; k-hat; seconds\n\n| posterior | " + " | ".join(guides) + " |\n|" + "---|" * (1 + len(guides)))
    for name in names:
        groups = [
            [r for r in results.records if (r["posterior"], r["guide"]) == (name, guide) and r["seed"] in args.seeds]
            for guide in guides
        ]
        print(f"| {name} | " + " | ".join(cell(group, args.larger) for group in groups) + " |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posterior", nargs="+", help="names; all unless given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--guides", nargs="+", help="names of guides, or parts of names; all unless given")
    parser.add_argument("--cap", type=float, default=240.0, help="the most seconds that a training may take")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--larger", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # of the peers, about their own future
    numpyro.enable_x64()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    results = Results(args.json)
    if args.larger:
        known, guides, run = list(LARGER), ["flowppl-numpyro", *LARGER_PEERS], compare_larger
    else:
        # Python looks for modules beside this file first, and would take it for the package of the same name.
        sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]
        known = list(importlib.import_module("posteriors.posteriors").NAMES)
        guides, run = [*OURS, *PEERS, *PYRO_PEERS], compare
    names = args.posterior or known
    if unknown := set(names) - set(known):
        parser.error(f"--posterior must be among {', '.join(known)}, got {', '.join(unknown)}")
    for name in names:
        for seed in args.seeds:
            run(name, seed, args, results)
    print_table(names, guides, args, results)


if __name__ == "__main__":
    main()
