"""Draw README's picture: one posterior by NUTS, by a mean-field guide, and by `fit`.

python tutorials/readme_picture.py [--figure tutorials/readme.png]
"""

import argparse

import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoDiagonalNormal

from flowppl.numpyro import fit, log_weights

# The biochemical oxygen demand of water over days, mg/l (Bates & Watts 1988).
DAYS = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
OXYGEN = np.array([8.3, 10.3, 19.0, 16.0, 15.6, 19.8])
NUM_DRAWS = 4000


def model(days, oxygen=None):
    limit = numpyro.sample("limit", dist.LogNormal(3.0, 0.3))
    rate = numpyro.sample("rate", dist.LogNormal(-0.7, 0.5))
    noise = numpyro.sample("noise", dist.LogNormal(1.0, 0.5))
    with numpyro.plate("days", len(days)):
        numpyro.sample("oxygen", dist.Normal(limit * (1 - jnp.exp(-rate * days)), noise), obs=oxygen)


def by_nuts():
    mcmc = MCMC(NUTS(model, target_accept_prob=0.95), num_warmup=1000, num_samples=NUM_DRAWS, progress_bar=False)
    mcmc.run(jax.random.key(0), DAYS, OXYGEN)
    return mcmc.get_samples()


def by_mean_field():
    """The draws, and the ELBO."""
    guide = AutoDiagonalNormal(model)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 5000))
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=16))
    params = svi.run(jax.random.key(0), 5000, DAYS, OXYGEN, progress_bar=False).params
    weights = log_weights(jax.random.key(1), model, guide, params, DAYS, OXYGEN, num_samples=10_000)
    return guide.sample_posterior(jax.random.key(2), params, sample_shape=(NUM_DRAWS,)), float(weights.mean())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", default="tutorials/readme.png")
    args = parser.parse_args()
    matplotlib.use("Agg")
    numpyro.enable_x64()
    truth, (mean_field, mean_field_elbo) = by_nuts(), by_mean_field()
    result = fit(jax.random.key(0), model, DAYS, OXYGEN)
    print(result.diagnose())
    gap = result.diagnose().log_evidence - mean_field_elbo
    panels = {
        "the truth, by NUTS": (truth, "0.35"),
        f"mean-field guide: {gap:.2f} nats away": (mean_field, "C1"),
        f"flowppl's fit: {abs(result.diagnose().kl_gap):.3f} nats away": (result.sample(NUM_DRAWS), "C0"),
    }
    x_levels, y_levels = ((np.quantile(truth[name], [0.001, 0.999])) for name in ("limit", "rate"))
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharex=True, sharey=True, layout="constrained")
    for ax, (title, (draws, color)) in zip(axes, panels.items(), strict=True):
        ax.plot(draws["limit"], draws["rate"], ".", color=color, markersize=3, alpha=0.3, markeredgewidth=0)
        ax.set(title=title, xlabel="limit of the oxygen demand, mg/l")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="rate, 1/day", xlim=x_levels * [0.95, 1.1], ylim=[0, y_levels[1] * 1.1])
    figure.savefig(args.figure, dpi=110)


if __name__ == "__main__":
    main()
