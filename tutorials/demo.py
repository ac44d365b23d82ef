"""Fit `AutoFlow` in Pyro and in NumPyro to two real data sets, beside a mean-field guide and NUTS.

    python tutorials/demo.py [--steps 5000] [--draws 200000] [--figure demo.png]

Prints one table and saves one figure. About four minutes on two cores.
"""

import argparse
import time
import warnings

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as ndist
import optax
import pyro
import pyro.distributions as pdist
import torch
from numpyro.infer import MCMC, NUTS
from numpyro.infer.autoguide import AutoDiagonalNormal as NumpyroMeanField
from numpyro.infer.reparam import LocScaleReparam
from pyro.infer.autoguide import AutoDiagonalNormal as PyroMeanField
from sklearn.datasets import load_diabetes
from tqdm import tqdm

import flowppl.numpyro
import flowppl.pyro
from flowppl.diagnostics import k_hat

PARTICLES, LEARNING_RATE, CLIP = 32, 1e-2, 10.0


# The eight schools (Rubin 1981): effects of coaching on test scores, and their standard errors. Centred.
EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def schools_numpyro():
    mu = numpyro.sample("mu", ndist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", ndist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", ndist.Normal(mu, tau))
        numpyro.sample("y", ndist.Normal(theta, ERRORS), obs=EFFECTS)


def schools_pyro():
    mu = pyro.sample("mu", pdist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", pdist.HalfCauchy(torch.tensor(5.0)))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", pdist.Normal(mu, tau))
        pyro.sample("y", pdist.Normal(theta, torch.tensor(ERRORS)), obs=torch.tensor(EFFECTS))


# Diabetes progression of 442 patients (Efron et al. 2004), all standardised; the blood serums are nearly collinear.
X, PROGRESSION = load_diabetes(return_X_y=True)
X = (X - X.mean(0)) / X.std(0)
PROGRESSION = (PROGRESSION - PROGRESSION.mean()) / PROGRESSION.std()


def diabetes_numpyro():
    tau = numpyro.sample("tau", ndist.HalfNormal(1.0))
    beta = numpyro.sample("beta", ndist.Normal(jnp.zeros(10), tau).to_event(1))
    sigma = numpyro.sample("sigma", ndist.HalfNormal(1.0))
    numpyro.sample("y", ndist.Normal(X @ beta, sigma).to_event(1), obs=PROGRESSION)


def diabetes_pyro():
    tau = pyro.sample("tau", pdist.HalfNormal(torch.tensor(1.0)))
    beta = pyro.sample("beta", pdist.Normal(torch.zeros(10), tau[..., None]).to_event(1))
    sigma = pyro.sample("sigma", pdist.HalfNormal(torch.tensor(1.0)))
    pyro.sample(
        "y", pdist.Normal(beta @ torch.tensor(X.T), sigma[..., None]).to_event(1), obs=torch.tensor(PROGRESSION)
    )


def fit_numpyro(model, guide, steps, num_draws, seed=0):
    """Draws and log weights of a guide trained by plain SVI, and the seconds that the training took."""
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))
    )
    svi = numpyro.infer.SVI(model, guide, optimizer, numpyro.infer.Trace_ELBO(num_particles=PARTICLES))
    start = time.perf_counter()
    params = svi.run(jax.random.key(seed), steps).params
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    weights = flowppl.numpyro.log_weights(jax.random.key(1), model, guide, params, num_samples=num_draws)
    draws = guide.sample_posterior(jax.random.key(2), params, sample_shape=(20_000,))
    return {name: np.asarray(value) for name, value in draws.items()}, np.asarray(weights), seconds


def fit_pyro(model, guide, steps, num_draws, seed=0):
    """The same in Pyro."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    optimizer = pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.CosineAnnealingLR,
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": LEARNING_RATE}, "T_max": steps},
        clip_args={"clip_norm": CLIP},
    )
    elbo = pyro.infer.Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = pyro.infer.SVI(model, guide, optimizer, elbo)
    start = time.perf_counter()
    bar = tqdm(range(steps))
    for step in bar:
        loss = svi.step()
        optimizer.step()
        if step % 100 == 0:
            bar.set_description(f"loss {loss:.2f}", refresh=False)
    seconds = time.perf_counter() - start
    weights = flowppl.pyro.log_weights(model, guide, num_samples=num_draws, chunk_size=5000)
    if isinstance(guide, flowppl.pyro.AutoFlow):
        draws = guide.sample_posterior(sample_shape=(20_000,))
    else:
        predictive = pyro.infer.Predictive(guide, num_samples=5000, parallel=True)
        draws = predictive()
    return {name: value.detach().numpy() for name, value in draws.items()}, weights.numpy(), seconds


def reference(model, non_centred, steps):
    """Draws by NUTS. Centred, the funnel defeats it: the sites named are sampled non-centred."""
    config = {name: LocScaleReparam(0.0) for name in non_centred}
    kernel = NUTS(numpyro.handlers.reparam(model, config=config), target_accept_prob=0.95)
    mcmc = MCMC(kernel, num_warmup=min(1000, steps), num_samples=min(8000, 2 * steps))
    start = time.perf_counter()
    mcmc.run(jax.random.key(0))
    seconds = time.perf_counter() - start
    return {name: np.asarray(value) for name, value in mcmc.get_samples().items()}, seconds


def columns(draws):
    """One matrix of draws, scales on the log scale: n by number of coordinates."""
    parts = [
        np.log(draws[k]) if k in ("tau", "sigma") else draws[k]
        for k in ("mu", "tau", "sigma", "theta", "beta")
        if k in draws
    ]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)


def compare(draws, truth):
    """The largest error of a mean, in posterior standard deviations, and of a standard deviation, in per cent."""
    x, y = columns(draws), columns(truth)
    mean_error = np.abs(x.mean(0) - y.mean(0)) / y.std(0)
    return mean_error.max(), 100 * np.abs(x.std(0) / y.std(0) - 1).max()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--draws", type=int, default=200_000, help="for the ELBO and k-hat")
    parser.add_argument("--figure", default="demo.png")
    args = parser.parse_args()
    matplotlib.use("Agg")
    numpyro.enable_x64()
    torch.set_default_dtype(torch.float64)

    data_sets = {
        "eight schools, centred": (schools_numpyro, schools_pyro, ["theta"]),
        "diabetes regression": (diabetes_numpyro, diabetes_pyro, ["beta"]),
    }
    rows, panels = [], {}
    for name, (numpyro_model, pyro_model, non_centred) in data_sets.items():
        print(f"\n{name}: NUTS in NumPyro, the reference")
        truth, seconds = reference(numpyro_model, non_centred, args.steps)
        panels[name] = {"NUTS (reference)": truth}
        rows.append((name, "NUTS (reference)", None, None, 0.0, 0.0, seconds))
        guides = {
            "AutoFlow, NumPyro": (fit_numpyro, numpyro_model, flowppl.numpyro.AutoFlow(numpyro_model)),
            "AutoFlow, Pyro": (fit_pyro, pyro_model, flowppl.pyro.AutoFlow(pyro_model)),
            "mean field, NumPyro": (fit_numpyro, numpyro_model, NumpyroMeanField(numpyro_model)),
            "mean field, Pyro": (fit_pyro, pyro_model, PyroMeanField(pyro_model)),
        }
        for label, (fit, model, guide) in guides.items():
            print(f"{name}: {label}")
            draws, weights, seconds = fit(model, guide, args.steps, args.draws)
            panels[name][label] = draws
            rows.append((name, label, weights.mean(), k_hat(weights, 20), *compare(draws, truth), seconds))
    print_table(rows, args.draws // 20)
    draw_figure(panels, args.figure)


def print_table(rows, batch_size):
    print(f"\n{'model':<23} {'guide':<20} {'ELBO':>9} {'k-hat':>6} {'mean err':>9} {'sd err':>7} {'seconds':>8}")
    for name, label, elbo, tail, mean_error, sd_error, seconds in rows:
        scores = f"{'':>9} {'':>6}" if elbo is None else f"{elbo:>9.2f} {tail:>6.2f}"
        print(f"{name:<23} {label:<20} {scores} {mean_error:>9.3f} {sd_error:>6.1f}% {seconds:>8.1f}")
    print(
        f"\nELBO: higher is better. k-hat: the median of 20 batches of {batch_size:,} draws; below 0.7 a guide is of "
        "use.\nmean err: the largest, in posterior standard deviations; sd err: the largest. Both against NUTS."
    )


def draw_figure(panels, path):
    """Above the funnel of the schools, below two nearly collinear coefficients of the regression."""
    labels = ["NUTS (reference)", "AutoFlow, NumPyro", "AutoFlow, Pyro", "mean field, NumPyro"]
    pairs = {
        "eight schools, centred": (lambda d: (d["mu"], np.log(d["tau"])), r"$\mu$", r"$\log\,\tau$"),
        "diabetes regression": (lambda d: (d["beta"][:, 4], d["beta"][:, 5]), r"$\beta$ (s1)", r"$\beta$ (s2)"),
    }
    figure, axes = plt.subplots(2, 4, figsize=(13, 6.6), sharex="row", sharey="row", layout="constrained")
    for row, (name, (pair, x_label, y_label)) in zip(axes, pairs.items(), strict=True):
        limits = [np.quantile(v, [0.0005, 0.9995]) for v in pair(panels[name]["NUTS (reference)"])]
        for ax, label in zip(row, labels, strict=True):
            x, y = pair(panels[name][label])
            ax.plot(
                x[:5000],
                y[:5000],
                ".",
                markersize=2,
                alpha=0.35,
                color="0.35" if "NUTS" in label else "C0" if "Flow" in label else "C3",
                rasterized=True,
            )
            ax.set(
                title=label,
                xlabel=x_label,
                xlim=limits[0] + np.array([-1, 1]) * 0.15 * np.ptp(limits[0]),
                ylim=limits[1] + np.array([-1, 1]) * 0.15 * np.ptp(limits[1]),
            )
        row[0].set_ylabel(f"{name}\n\n{y_label}")
    figure.savefig(path, dpi=110)
    print(f"\nThe figure is in {path}.")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
