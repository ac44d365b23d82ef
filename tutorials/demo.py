"""Two posteriors by `fit`, in NumPyro and in Pyro, beside NUTS and a mean-field guide.

    python tutorials/demo.py [--seconds 45] [--draws 8000] [--figure demo.png]

Prints what each fit says of itself and how far it is from NUTS, and saves a figure. Two minutes on two cores: the two
languages run at the same time.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import time
import warnings

import numpy as np

# One core for each language; must come before jax and torch are imported.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

SCHOOLS, DIABETES = "eight schools", "diabetes"

# The effects of coaching on test scores in eight schools, and their standard errors (Rubin 1981).
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def diabetes_data():
    """The progression of diabetes in 442 patients (Efron et al. 2004), all standardised; two predictors are alike."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()


def numpyro_results(seconds, num_draws):
    """For each data set NUTS, the mean-field guide and the fit in NumPyro: draws, words, seconds."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    import optax
    from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoDiagonalNormal
    from numpyro.infer.reparam import LocScaleReparam

    from flowppl.numpyro import diagnose, fit

    numpyro.enable_x64()

    def schools(errors, effects):
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
            numpyro.sample("y", dist.Normal(theta, errors), obs=effects)

    def diabetes(x, y):
        tau = numpyro.sample("tau", dist.HalfNormal(1.0))
        beta = numpyro.sample("beta", dist.Normal(jnp.zeros(10), tau).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        numpyro.sample("y", dist.Normal(x @ beta, sigma).to_event(1), obs=y)

    def by_nuts(model, data, centred):
        # On the funnel of the schools NUTS fails: it is given another form of the model, which has none.
        easy = numpyro.handlers.reparam(model, config={centred: LocScaleReparam(0.0)})
        kernel = NUTS(easy, target_accept_prob=0.95)
        mcmc = MCMC(kernel, num_warmup=1000, num_samples=num_draws, progress_bar=False)
        mcmc.run(jax.random.key(0), *data)
        return mcmc.get_samples(), ""

    def by_mean_field(model, data, centred):
        guide = AutoDiagonalNormal(model)
        svi = SVI(model, guide, optax.adam(optax.cosine_decay_schedule(1e-2, 5000)), Trace_ELBO(num_particles=16))
        params = svi.run(jax.random.key(0), 5000, *data, progress_bar=False).params
        draws = guide.sample_posterior(jax.random.key(1), params, sample_shape=(num_draws,))
        return draws, diagnose(jax.random.key(2), model, guide, params, *data).verdict

    def by_fit(model, data, centred):
        result = fit(jax.random.key(0), model, *data, max_seconds=seconds)
        return result.sample(num_draws), said_of(result)

    problems = {SCHOOLS: (schools, (ERRORS, EFFECTS), "theta"), DIABETES: (diabetes, diabetes_data(), "beta")}
    ways = {"NUTS": by_nuts, "mean field, NumPyro": by_mean_field, "fit, NumPyro": by_fit}
    return {name: {way: timed(run, *problem) for way, run in ways.items()} for name, problem in problems.items()}


def pyro_results(seconds, num_draws):
    """For each data set the fit in Pyro: draws, words, seconds."""
    import pyro
    import pyro.distributions as dist
    import torch

    from flowppl.pyro import fit

    torch.set_default_dtype(torch.float64)

    def schools(errors, effects):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
        with pyro.plate("schools", 8):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, errors), obs=effects)

    def diabetes(x, y):
        tau = pyro.sample("tau", dist.HalfNormal(torch.tensor(1.0)))
        beta = pyro.sample("beta", dist.Normal(torch.zeros(10), tau[..., None]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(torch.tensor(1.0)))
        pyro.sample("y", dist.Normal(beta @ x.mT, sigma[..., None]).to_event(1), obs=y)

    def by_fit(model, data):
        pyro.set_rng_seed(0)
        result = fit(model, *(torch.tensor(array) for array in data), max_seconds=seconds)
        return result.sample(num_draws), said_of(result)

    problems = {SCHOOLS: (schools, (ERRORS, EFFECTS)), DIABETES: (diabetes, diabetes_data())}
    return {name: {"fit, Pyro": timed(by_fit, *problem)} for name, problem in problems.items()}


def said_of(result):
    """The verdict, with a star if the time ended before the fit was good."""
    return result.diagnose().verdict + "*" * (result.stopped == "max_seconds")


def timed(run, *args):
    """Draws in NumPy, what is said of them, and the seconds that they took."""
    start = time.perf_counter()
    draws, verdict = run(*args)
    return {name: np.asarray(value) for name, value in draws.items()}, verdict, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45.0, help="that a fit may take")
    parser.add_argument("--draws", type=int, default=8000, help="of each posterior")
    parser.add_argument("--figure", default="demo.png")
    args = parser.parse_args()
    print("Fitting two posteriors in two languages: about two minutes.", flush=True)
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, spawn, initializer=quiet) as pool:
        jobs = [pool.submit(run, args.seconds, args.draws) for run in (numpyro_results, pyro_results)]
        first, second = (job.result() for job in jobs)
    results = {name: first[name] | second[name] for name in first}
    print_table(results)
    draw_figure(results, args.figure)
    print(f"\nThe figure is in {args.figure}.")


def quiet():
    """Hide what the libraries say of their own future."""
    warnings.filterwarnings("ignore")


def coordinates(draws):
    """All latents that both have, scales as logarithms: a matrix, one row for each draw."""
    parts = [
        np.log(draws[name]) if name in ("tau", "sigma") else draws[name] for name in sorted(LATENTS & draws.keys())
    ]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


LATENTS = {"mu", "tau", "theta", "beta", "sigma"}


def print_table(results):
    print(
        f"\n{'data':<14} {'posterior by':<20} {'says of itself':<20} {'worst mean':>10} {'worst sd':>9} {'seconds':>8}"
    )
    for name, ways in results.items():
        truth = coordinates(ways["NUTS"][0])
        for way, (draws, verdict, seconds) in ways.items():
            found = coordinates(draws)
            mean = (np.abs(found.mean(0) - truth.mean(0)) / truth.std(0)).max()
            sd = np.abs(found.std(0) / truth.std(0) - 1).max()
            errors = f"{'truth':>10} {'truth':>9}" if way == "NUTS" else f"{mean:>7.2f} sd {sd:>8.0%}"
            print(f"{name:<14} {way:<20} {verdict:<20} {errors} {seconds:>7.0f}")
    print("\nworst mean, worst sd: the largest error of a mean, in posterior standard deviations, and of a standard")
    print("deviation, against NUTS. What the words mean: help(flowppl.diagnostics.Diagnosis).")
    if any("*" in verdict for ways in results.values() for _, verdict, _ in ways.values()):
        print("* Cut short: a fit had no more time; `python tutorials/demo.py --seconds 200` gives it more.")


def draw_figure(results, path):
    """Above the funnel of the schools; below two coefficients of the regression that are hard to tell apart."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ways = {"NUTS": "0.35", "mean field, NumPyro": "C1", "fit, NumPyro": "C0", "fit, Pyro": "C0"}
    views = {
        SCHOOLS: (lambda d: (d["theta"][:, 0], np.log(d["tau"])), r"effect in school 1", r"$\log$ spread $\tau$"),
        DIABETES: (lambda d: (d["beta"][:, 4], d["beta"][:, 5]), "coefficient of s1", "coefficient of s2"),
    }
    figure, axes = plt.subplots(2, 4, figsize=(12, 6), sharex="row", sharey="row", layout="constrained")
    for row, (name, (view, x_label, y_label)) in zip(axes, views.items(), strict=True):
        limits = [np.quantile(values, [0.003, 0.999]) for values in view(results[name]["NUTS"][0])]
        (left, right), (bottom, top) = (ends + np.array([-0.15, 0.15]) * np.ptp(ends) for ends in limits)
        for ax, (way, color) in zip(row, ways.items(), strict=True):
            draws, verdict, _ = results[name][way]
            ax.plot(*view(draws), ".", color=color, markersize=2.5, markeredgewidth=0, alpha=0.3, rasterized=True)
            title = "NUTS: the truth" if way == "NUTS" else f"{way}: “{verdict}”"
            ax.set(title=title, xlabel=x_label, xlim=(left, right), ylim=(bottom, top))
            ax.title.set_fontsize(10)
        row[0].set_ylabel(f"{name}\n{y_label}")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
