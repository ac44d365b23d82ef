"""Autoencoders of scikit-learn's digits: flows of images, several levels, an autoregressive decoder.

    python benchmarks/digits_vae.py [--backend pyro] [--models vae "two levels"] [--seeds 0 1 2] [--json FILE]

The 1,797 images of 8 x 8 pixels with 17 levels: 1,297 to train on, 200 to stop by, 300 to test on, split by a fixed
seed. All encoders and decoders have one hidden layer of 128, all likelihoods are categorical, and each has 16 latents
next to the data. In bits per dimension of the test images, minus log p(x), from 50 draws for each (which is a bound
from above), with the Monte-Carlo error; the difference from the plain autoencoder is over the seeds, which also
determine the first weights.

`vae` has a Gaussian posterior and a standard normal prior. `image prior` and `image posterior` have latents of the
shape (1, 4, 4) and `realnvp_image`; `iaf posterior` has one `ImageAutoregressive`. `two levels` has 8 more latents
above, top-down. `smaller image` is the self-supervised one: the upper level is the image of 4 x 4 pixels, rounded, of
which an autoencoder with 8 latents is the model. `pixelcnn` has a PixelCNN as its decoder, of 16 channels, one block.
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
from results import Results
from sklearn.datasets import load_digits

import flowppl as fp

LEVELS, DIM, WIDTH = 17, 16, 128
SHAPE = (1, 4, 4)
MODELS = ("vae", "image prior", "image posterior", "iaf posterior", "two levels", "smaller image", "pixelcnn")
LATENT_FLOW = {"alpha": None, "num_flows": 1, "hidden_channels": 16, "num_blocks": 1}


def digits():
    x = load_digits().images.astype(int)[:, None]
    return np.split(x[np.random.default_rng(0).permutation(len(x))], [1297, 1497])


class Pyro:
    """What differs between the languages: how networks are made, how noise is seeded."""

    def __init__(self, seed):
        import pyro
        import torch

        import flowppl.pyro

        pyro.set_rng_seed(seed)
        self.adapter, self.torch = flowppl.pyro, torch

    def network(self, num_inputs, num_outputs, shape=None):
        """A network of one hidden layer, of one or more arrays; levels are brought to the unit interval."""
        torch = self.torch
        first, second = torch.nn.Linear(num_inputs, WIDTH), torch.nn.Linear(WIDTH, num_outputs)

        class Dense(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = first, second

            def forward(self, *arrays):
                rows = [array.flatten(1) if array.is_floating_point() else array.flatten(1) / 16 for array in arrays]
                rows = torch.cat(rows, -1)
                output = self.second(torch.nn.functional.silu(self.first(rows)))
                return output if shape is None else output.reshape(-1, *shape)

        return Dense()

    def half(self, x):
        return x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).double().mean((-3, -1)).round().long()

    def pixelcnn(self, **options):
        return self.adapter.PixelCNN(**options)

    def fit(self, seed, vae, x, **options):
        return self.adapter.fit_vae(vae, x, **options)

    def evaluate(self, fit, x, **options):
        return self.adapter.evaluate_vae(fit.vae, x, **options)


class NumPyro:
    def __init__(self, seed):
        import jax
        from flax import nnx

        import flowppl.numpyro

        self.adapter, self.jax, self.rngs = flowppl.numpyro, jax, nnx.Rngs(seed)

    def network(self, num_inputs, num_outputs, shape=None):
        from flax import nnx

        jax, rngs = self.jax, self.rngs

        class Dense(nnx.Module):
            def __init__(self):
                self.first = nnx.Linear(num_inputs, WIDTH, rngs=rngs)
                self.second = nnx.Linear(WIDTH, num_outputs, rngs=rngs)

            def __call__(self, *arrays):
                rows = [array if array.dtype.kind == "f" else array / 16 for array in arrays]
                rows = jax.numpy.concatenate([array.reshape(len(array), -1) for array in rows], -1)
                output = self.second(jax.nn.silu(self.first(rows)))
                return output if shape is None else output.reshape(-1, *shape)

        return Dense()

    def half(self, x):
        *rest, height, width = x.shape
        means = x.reshape(*rest, height // 2, 2, width // 2, 2).astype(float).mean((-3, -1))
        return self.jax.numpy.round(means).astype(int)

    def pixelcnn(self, **options):
        return self.adapter.PixelCNN.init(self.rngs.params(), **options)

    def fit(self, seed, vae, x, **options):
        return self.adapter.fit_vae(self.jax.random.key(seed), vae, x, **options)

    def evaluate(self, fit, x, **options):
        return self.adapter.evaluate_vae(self.jax.random.key(0), fit.vae, fit.params, x, **options)


def make(language, model):
    """An autoencoder of the images."""
    flow_vae = partial(language.adapter.FlowVAE, likelihood="categorical")
    encoder = language.network(64, WIDTH)
    decoder = language.network(DIM, 64 * LEVELS, (1, 8, 8, LEVELS))
    plain = fp.amortized_posterior(DIM, WIDTH, None)
    if model == "vae":
        return flow_vae(encoder, decoder, plain)
    if model == "image prior":
        posterior = fp.amortized_posterior(SHAPE, WIDTH, None)
        return flow_vae(encoder, decoder, posterior, fp.realnvp_image(SHAPE, **LATENT_FLOW))
    if model == "image posterior":
        return flow_vae(encoder, decoder, fp.amortized_posterior(SHAPE, WIDTH, "realnvp_image", **LATENT_FLOW))
    if model == "iaf posterior":
        options = {"hidden_channels": 16, "num_blocks": 1}
        return flow_vae(encoder, decoder, fp.amortized_posterior(SHAPE, WIDTH, fp.ImageAutoregressive, **options))
    if model == "two levels":
        return language.adapter.HierarchicalVAE(
            [encoder, language.network(WIDTH, WIDTH)],
            [decoder, language.network(8, 32)],
            [fp.amortized_posterior(DIM, WIDTH + 32, None), fp.amortized_posterior(8, WIDTH, None)],
            [fp.amortized_posterior(DIM, 32, None), None],
            "categorical",
        )
    if model == "smaller image":
        upper = flow_vae(
            language.network(16, WIDTH),
            language.network(8, 16 * LEVELS, (1, 4, 4, LEVELS)),
            fp.amortized_posterior(8, WIDTH, None),
        )
        decoder = language.network(DIM + 16, 64 * LEVELS, (1, 8, 8, LEVELS))
        make = language.adapter.SelfSupervisedVAE
        return make(encoder, decoder, plain, None, "categorical", upper=upper, downscale=language.half)
    options = {"shape": (1, 8, 8), "levels": LEVELS, "hidden_channels": 16, "num_blocks": 1, "context_dim": 32}
    decoder = language.network(DIM, 32)
    return language.adapter.FlowVAE(encoder, decoder, plain, likelihood=language.pixelcnn(**options))


def measure(backend, model, seed, epochs, num_samples):
    train, held_out, test = digits()
    language = {"pyro": Pyro, "numpyro": NumPyro}[backend](seed)
    begin = time.perf_counter()
    options = {"learning_rate": lambda epoch: 0.01 * (1 - epoch / epochs), "warm_up": 10, "patience": None}
    options |= {"batch_size": 50, "num_epochs": epochs}
    fit = language.fit(seed, make(language, model), train, validation=held_out, progress=False, **options)
    seconds = time.perf_counter() - begin
    found = language.evaluate(fit, test, num_samples=num_samples)
    return {
        "bits": found.bits_per_dim,
        "bits_se": found.bits_per_dim_se,
        "elbo_bits": float(-found.elbo / (64 * np.log(2))),
        "kl": found.kl,
        "epochs": len(fit.losses),
        "seconds": seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["pyro", "numpyro"], default="pyro")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30, help="the most epochs")
    parser.add_argument("--num-samples", type=int, default=50, help="draws for each test image")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = Results(args.json)
    bits = {}
    for seed in args.seeds:
        for model in args.models:
            labels = {"experiment": "digits", "backend": args.backend, "model": model, "seed": seed}
            labels |= {"max_epochs": args.epochs, "num_samples": args.num_samples}
            arguments = (args.backend, model, seed, args.epochs, args.num_samples)
            bits[model, seed] = results.get(labels, measure, *arguments)["bits"]
    print("| | bits per dimension, by seed | less than the plain one |\n|---|---|---|")
    for model in args.models:
        each = ", ".join(f"{bits[model, seed]:.3f}" for seed in args.seeds)
        gain = ""
        if model != "vae" and "vae" in args.models and len(args.seeds) > 1:
            gains = [bits["vae", seed] - bits[model, seed] for seed in args.seeds]
            gain = f"{statistics.mean(gains):.3f} ± {statistics.stdev(gains) / len(gains) ** 0.5:.3f}"
        print(f"| {model} | {each} | {gain} |")


if __name__ == "__main__":
    main()
