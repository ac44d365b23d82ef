"""Seconds on a GPU and on a CPU: a step of a density, one of a flow autoencoder, and a whole `fit`, in both languages.

    python benchmarks/gpu.py [--device cuda] [--language pyro numpyro]

float32. A step is one of Adam in `fit_density` (realnvp, D = 64, batches of 512) or in `fit_vae` (dense layers of 256,
32 latents, realnvp as the prior, four Householder-Sylvester flows as the posterior, batches of 100): the fastest epoch
of five, divided by its steps. `fit` is that of a logistic regression with 20 coefficients on 1,000 rows, 2,000 steps,
with its search and its compilation. Prints a Markdown table. `--device cpu` leaves the other column out.
"""

import argparse
import time

import numpy as np

import flowppl as fp

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(20_480, 64)).astype(np.float32)
IMAGES = (RNG.uniform(size=(4_000, 784)) < 0.2).astype(np.float32)
ROWS = RNG.normal(size=(1_000, 20)).astype(np.float32)
LABELS = (RNG.uniform(size=1_000) < 1 / (1 + np.exp(-ROWS @ np.linspace(-1, 1, 20)))).astype(np.float32)
DENSITY = fp.realnvp(64, hidden_dims=(128, 128))
POSTERIOR = fp.amortized_posterior(32, 256, "householder_sylvester", num_flows=4)
EPOCHS = 5


class Clock:
    """Called after each epoch; knows the seconds of the fastest one."""

    def __init__(self):
        self.times = [time.perf_counter()]

    def __call__(self, epoch, loss):
        self.times.append(time.perf_counter())

    @property
    def fastest(self):
        return float(np.diff(self.times).min())


def pyro_seconds(device):
    import pyro
    import pyro.distributions as dist
    import torch

    from flowppl.pyro import Flow, FlowVAE, fit, fit_density, fit_vae

    def density(clock):
        fit_density(
            Flow(DENSITY).to(device), POINTS, batch_size=512, validation=None, num_epochs=EPOCHS, callback=clock
        )

    def autoencoder(clock):
        encoder = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU())
        decoder = torch.nn.Sequential(torch.nn.Linear(32, 256), torch.nn.ReLU(), torch.nn.Linear(256, 784))
        vae = FlowVAE(encoder, decoder, POSTERIOR, prior=fp.realnvp(32), likelihood="bernoulli").to(device)
        fit_vae(vae, IMAGES, batch_size=100, validation=None, num_epochs=EPOCHS, callback=clock)

    def model(x, y):
        beta = pyro.sample("beta", dist.Normal(x.new_zeros(20), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    def posterior():
        fit(model, *(torch.tensor(array, device=device) for array in (ROWS, LABELS)), num_steps=2000)

    return measure(density, autoencoder, posterior)


def numpyro_seconds(device):
    import jax
    import numpyro
    import numpyro.distributions as dist
    from flax import nnx

    from flowppl.numpyro import FlowVAE, fit, fit_density, fit_vae

    def density(clock):
        options = {"batch_size": 512, "validation": None, "num_epochs": EPOCHS, "callback": clock}
        fit_density(jax.random.key(0), DENSITY, POINTS, **options)

    def autoencoder(clock):
        rngs = nnx.Rngs(0)
        encoder = nnx.Sequential(nnx.Linear(784, 256, rngs=rngs), nnx.relu)
        decoder = nnx.Sequential(nnx.Linear(32, 256, rngs=rngs), nnx.relu, nnx.Linear(256, 784, rngs=rngs))
        vae = FlowVAE(encoder, decoder, POSTERIOR, prior=fp.realnvp(32), likelihood="bernoulli")
        options = {"batch_size": 100, "validation": None, "num_epochs": EPOCHS, "callback": clock}
        fit_vae(jax.random.key(0), vae, IMAGES, **options)

    def model(x, y):
        beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([20]).to_event(1))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)

    def posterior():
        fit(jax.random.key(0), model, *(jax.device_put(array) for array in (ROWS, LABELS)), num_steps=2000)

    with jax.default_device(jax.devices("gpu" if device == "cuda" else device)[0]):
        return measure(density, autoencoder, posterior)


def measure(density, autoencoder, posterior):
    """Milliseconds of a step of each training, and the seconds of the fit."""
    steps = {density: len(POINTS) / 512, autoencoder: len(IMAGES) / 100}
    results = []
    for train, num_steps in steps.items():
        clock = Clock()
        train(clock)
        results.append(1e3 * clock.fastest / num_steps)
    start = time.perf_counter()
    posterior()
    return [*results, time.perf_counter() - start]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--language", nargs="+", default=["pyro", "numpyro"])
    args = parser.parse_args()
    fp.set_progress(False)
    languages = {"pyro": pyro_seconds, "numpyro": numpyro_seconds}
    print("| | device | density step, ms | autoencoder step, ms | fit, s |\n|---|---|---|---|---|")
    for language in args.language:
        for device in dict.fromkeys([args.device, "cpu"]):
            cells = " | ".join(f"{value:.3g}" for value in languages[language](device))
            print(f"| {language} | {device} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
