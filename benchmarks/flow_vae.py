"""Variational autoencoders with flows: Frey Faces as published, a part of MNIST, and the time of a step.

    python benchmarks/flow_vae.py frey --data freyfaces.npz [--backend pyro] [--models vae t-snf] [--seeds 123]
    python benchmarks/flow_vae.py mnist --data mnist.npz [--backend numpyro] [--seeds 0 1 2]
    python benchmarks/flow_vae.py speed [--backend pyro] [--rounds 5]

`frey` is the experiment of van den Berg et al. 2018 (arXiv 1803.05649): gated convolutions, 64 latents whose base has
variances of .01 to 7, a softmax over 256 levels for each pixel, Adamax at 5e-4, batches of 100, 100 epochs of warm-up,
early stopping after 100 epochs without a better validation loss, 1,565 / 200 / 200 images split by a seed. In bits per
dimension, minus the ELBO and minus log p(x) on the test images; the published column is minus the ELBO. On a CPU
`--fast --batch-size 20` needs a third of the epochs, each in half the time. `--ema-decay 0.999` validates and evaluates
an average of the weights, which the published experiment does not have.

`mnist` takes 10,000 images (8,000 / 1,000 / 1,000), binarised once by a fixed seed, gated dense layers of 256, 32
latents, Adam at 1e-3: the plain autoencoder, one with a flow as its posterior, one with a flow as its prior, and one
with both. In nats, log p(x) of the test images.

`speed` has the seconds of a training step of the networks of `frey`, and those of the two Sylvester flows as their
reference implementation computes them: products of dense Householder matrices, and 100 steps of Bjorck's iteration.
One thread, float32; all cases take turns, and a ratio is the median over the rounds.

With `--fast` the networks of `frey` in Pyro compute in bfloat16, except for the loss, and the last two convolutions,
between which there is no nonlinearity, as one: the same function of the same weights but for rounding, in half the
time. Images held out are always evaluated in float32.

With `--json` each result is written at once, and a second run does only what is missing. With `--checkpoints` a folder
keeps trainings, which go on where they stopped. On a GPU if the backend has one.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
from results import Results

import flowppl as fp
from flowppl._arrays.namespace import namespace
from flowppl.bijections.linear import diagonal
from flowppl.bijections.residual import times
from flowppl.bijections.sylvester import Sylvester
from flowppl.declare import Normal, Parameter
from flowppl.images import load_images

DIM, FEATURES = 64, 256
PUBLISHED = {"vae": 4.53, "planar": 4.40, "iaf": 4.47, "t-snf": 4.45}  # minus the ELBO, bits/dim; FFJORD has 4.39

# Kernel, channels in and out, stride, padding and, of a transposed convolution, output padding.
ENCODER = [(5, 1, 32, 1, 2), (5, 32, 32, 2, 2), (5, 32, 64, 1, 2), (5, 64, 64, 2, 2), (5, 64, 64, 1, 2)]
DECODER = [(5, 64, 64, 1, 2, 0), (5, 64, 32, 2, 2, 1), (5, 32, 32, 1, 2, 0), (5, 32, 32, 2, 2, 1), (5, 32, 32, 1, 2, 0)]


FREY_MODELS = {
    "vae": {"flow": None},
    "planar": {"flow": "planar"},
    "iaf": {"flow": "iaf", "hidden_dims": (320, 320), "activation": "elu"},
    "o-snf": {"flow": "orthogonal_sylvester", "num_units": 16},
    "h-snf": {"flow": "householder_sylvester", "num_reflections": 8},
    "t-snf": {"flow": "triangular_sylvester"},
}
MNIST_MODELS = ("vae", "flow posterior", "flow prior", "both")


def frey_posterior(model, num_flows):
    options = FREY_MODELS[model] | {"scale_bounds": (0.1, 7**0.5), "num_flows": num_flows if model != "vae" else None}
    return fp.amortized_posterior(DIM, FEATURES, **options)


# The two Sylvester flows as their reference implementation has them.


class DenseHouseholder(Sylvester):
    """The frame is a product of D x D matrices."""

    dim, num_units = DIM, DIM

    def parameters(self):
        return {"v": Parameter((8, DIM), Normal(1.0))} | super().parameters()

    def _frame(self, params):
        v = params["v"]
        xp = namespace(v)
        v = v / xp.sqrt(xp.sum(v * v, axis=-1, keepdims=True))
        frame = eye = diagonal(xp.ones_like(v[..., 0, :]))
        for i in range(8):
            frame = xp.matmul(frame, eye - 2 * v[..., i, :, None] * v[..., i, None, :])
        return frame

    def _to_frame(self, frame, x):
        return times(namespace(x), frame.mT, x)

    def _from_frame(self, frame, v):
        return times(namespace(v), frame, v)


class Bjorck(DenseHouseholder):
    """The frame is made orthonormal by an iteration."""

    num_units = 16

    def parameters(self):
        return {"q": Parameter((DIM, 16), Normal(1.0))} | Sylvester.parameters(self)

    def _frame(self, params):
        frame = params["q"]
        xp = namespace(frame)
        frame = frame / xp.sqrt(xp.sum(frame * frame, axis=(-2, -1), keepdims=True))
        for _ in range(100):
            frame = frame + 0.5 * (frame - xp.matmul(frame, xp.matmul(frame.mT, frame)))
        return frame


# Networks, of both libraries.


def torch_networks(shape, kind, fast=False):
    import torch
    from torch.nn.functional import conv2d

    class Gated(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            h, gate = self.layer(x).chunk(2, dim=1)
            return h * gate.sigmoid()

    if kind == "dense":

        def linear(a, b):
            layer = torch.nn.Linear(a, b)
            # As in flax. From torch's smaller weights the plain autoencoder gives up half of its latents for good.
            torch.nn.init.normal_(layer.weight, std=a**-0.5)
            torch.nn.init.zeros_(layer.bias)
            return layer

        def gated(a, b):
            return Gated(linear(a, 2 * b))

        size = shape[0] * shape[1]
        encoder = torch.nn.Sequential(torch.nn.Flatten(), gated(size, 256), gated(256, 256))
        decoder = torch.nn.Sequential(gated(32, 256), gated(256, 256), linear(256, size), torch.nn.Unflatten(1, shape))
        return encoder, decoder
    conv, transposed = torch.nn.Conv2d, torch.nn.ConvTranspose2d
    last = tuple(size // 4 for size in shape)

    def precision(network, x):
        return torch.autocast(x.device.type, torch.bfloat16, enabled=fast and network.training)

    class Encoder(torch.nn.Sequential):
        def forward(self, x):
            x = (x / 255.0).to(torch.float32)[:, None].contiguous(memory_format=torch.channels_last)
            with precision(self, x):
                return super().forward(x)[:, :, 0, 0].float()

    class Decoder(torch.nn.Sequential):
        def forward(self, z):
            x = z[:, :, None, None]
            with precision(self, x):
                for layer in list(self)[: -2 if fast else None]:
                    x = layer(x)
                if fast:
                    inner, outer = self[-2:]
                    matrix = outer.weight[:, :, 0, 0]
                    weight = torch.tensordot(matrix, inner.weight, 1).contiguous(memory_format=torch.channels_last)
                    x = conv2d(x, weight, matrix @ inner.bias + outer.bias, padding=2)
                return x.float().permute(0, 2, 3, 1)

    encoder = Encoder(*(Gated(conv(a, 2 * b, k, s, p)) for k, a, b, s, p in ENCODER), Gated(conv(64, 512, last)))
    middle = (Gated(transposed(a, 2 * b, k, s, p, out)) for k, a, b, s, p, out in DECODER)
    decoder = Decoder(Gated(transposed(DIM, 128, last)), *middle, conv(32, 256, 5, 1, 2), conv(256, 256, 1))
    return tuple(network.to(memory_format=torch.channels_last) for network in (encoder, decoder))


def flax_networks(seed, shape, kind):
    import jax
    from flax import nnx

    rngs = nnx.Rngs(seed)

    def gate(x):
        h, gate = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return h * jax.nn.sigmoid(gate)

    size, last = shape[0] * shape[1], tuple(size // 4 for size in shape)
    if kind == "dense":

        def gated(a, b):
            return nnx.Linear(a, 2 * b, rngs=rngs), gate

        encoder = nnx.Sequential(lambda x: x.reshape(-1, size), *gated(size, 256), *gated(256, 256))
        decoder = nnx.Sequential(
            *gated(32, 256),
            *gated(256, 256),
            nnx.Linear(256, size, rngs=rngs),
            lambda x: x.reshape(-1, *shape),
        )
        return encoder, decoder

    def conv(a, b, kernel, stride, padding):
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        return nnx.Conv(a, b, kernel, strides=stride, padding=padding, rngs=rngs)

    def transposed(a, b, kernel, stride, padding):
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        return nnx.ConvTranspose(a, b, kernel, strides=(stride, stride), padding=padding, rngs=rngs)

    layers = [lambda x: (x / 255.0)[..., None]]
    for k, a, b, s, p in ENCODER:
        layers += [conv(a, 2 * b, k, s, p), gate]
    encoder = nnx.Sequential(*layers, conv(64, 512, last, 1, 0), gate, lambda x: x[:, 0, 0, :])
    layers = [lambda z: z[:, None, None, :], transposed(DIM, 128, last, 1, "VALID"), gate]
    for k, a, b, s, _, _ in DECODER:
        layers += [transposed(a, 2 * b, k, s, "SAME"), gate]
    return encoder, nnx.Sequential(*layers, conv(32, 256, 5, 1, 2), conv(256, 256, 1, 1, 0))


# The two languages.


class Language:
    """What differs: how networks are made, how noise is seeded."""

    def __init__(self, backend, fast):
        self.backend, self.fast = backend, fast
        if backend == "pyro":
            import torch

            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        else:
            import jax

            self.device = jax.devices()[0].platform

    def vae(self, seed, shape, kind, posterior, prior, likelihood):
        if self.backend == "pyro":
            import pyro

            from flowppl.pyro import FlowVAE

            pyro.set_rng_seed(seed)
            return FlowVAE(*torch_networks(shape, kind, self.fast), posterior, prior, likelihood).to(self.device)
        from flowppl.numpyro import FlowVAE

        return FlowVAE(*flax_networks(seed, shape, kind), posterior, prior, likelihood)

    def fit(self, seed, vae, x, **options):
        if self.backend == "pyro":
            from flowppl.pyro import fit_vae

            return fit_vae(vae, x, **options)
        import jax

        from flowppl.numpyro import fit_vae

        return fit_vae(jax.random.key(seed), vae, x, **options)

    def evaluate(self, fit, x, num_samples):
        if self.backend == "pyro":
            from flowppl.pyro import evaluate_vae

            return evaluate_vae(fit.vae, x, num_samples=num_samples)
        import jax

        from flowppl.numpyro import evaluate_vae

        return evaluate_vae(jax.random.key(0), fit.vae, fit.params, x, num_samples=num_samples)

    def stepper(self, vae, x):
        """A function that takes a training step."""
        options = {"optimizer": "adamax", "free_bits": 0.0, "clip_norm": None, "ema_decay": 0.0}
        if self.backend == "pyro":
            from flowppl.pyro.vae_training import _Trainer

            trainer = _Trainer(vae, x, None, 0, len(x), **options)
        else:
            import jax

            from flowppl.numpyro.vae_training import _Trainer

            params = vae.init(jax.random.key(0), x)
            trainer = _Trainer(vae, params, x, None, 0, len(x), **options)
        return lambda: trainer.run_epoch(0, np.arange(len(x)), 5e-4, 1.0)


# The three experiments.


def run(language, args, labels, vae, parts, **options):
    """Train, evaluate and describe."""
    train, held_out, test = parts
    name = "-".join(str(label) for label in labels.values()).replace(" ", "-")
    checkpoint = args.checkpoints / f"{name}.safetensors" if args.checkpoints else None
    begin = time.perf_counter()
    fit = language.fit(
        labels["seed"], vae, train, validation=held_out, checkpoint=checkpoint, progress=False, **options
    )
    found = language.evaluate(fit, test, args.num_samples)
    bits = found.num_dims * np.log(2)
    return {
        "epochs": len(fit.losses),
        "best_epoch": fit.best_epoch,
        "stopped": fit.stopped,
        "skipped": fit.num_skipped,
        "elbo": found.elbo,
        "elbo_se": found.elbo_se,
        "log_prob": found.log_prob,
        "log_prob_se": found.log_prob_se,
        "elbo_bits": -found.elbo / bits,
        "bits": found.bits_per_dim,
        "active_units": found.active_units,
        "device": language.device,
        "seconds": time.perf_counter() - begin,
    }


def frey(language, args, results):
    images = load_images(args.data)
    print("| | split | minus ELBO | published | minus log p(x) | epochs |\n|---|---|---|---|---|---|")
    for seed in args.seeds or (123, 321, 231):
        order = np.random.default_rng(seed).permutation(len(images))
        parts = [images[part] for part in np.split(order, [1565, 1765])]
        for model in args.models or FREY_MODELS:
            labels = {"experiment": "frey", "backend": args.backend, "model": model, "seed": seed}
            labels |= {"num_flows": args.num_flows, "max_epochs": args.epochs or 2000, "num_samples": args.num_samples}
            labels |= {"batch_size": args.batch_size, "patience": args.patience, "fast": args.fast}
            labels |= {"ema_decay": args.ema_decay}

            def measure(model=model, seed=seed, parts=parts, labels=labels):
                posterior = frey_posterior(model, args.num_flows)
                vae = language.vae(seed, images.shape[1:], "convolutions", posterior, None, "categorical")
                options = {"optimizer": "adamax", "learning_rate": 5e-4, "warm_up": 100, "patience": args.patience}
                options |= {"batch_size": args.batch_size, "ema_decay": args.ema_decay}
                return run(language, args, labels, vae, parts, num_epochs=args.epochs or 2000, **options)

            found = results.get(labels, measure)
            published = PUBLISHED.get(model, "")
            print(
                f"| {model} | {seed} | {found['elbo_bits']:.3f} | {published} | {found['bits']:.3f} | "
                f"{found['epochs']}, {found['stopped']} |",
                flush=True,
            )


def mnist(language, args, results):
    images = load_images(args.data)[:10_000]
    binary = (np.random.default_rng(0).random(images.shape) < images / 255.0).astype(np.float32)
    parts = np.split(binary[np.random.default_rng(1).permutation(len(binary))], [8000, 9000])
    print("| | seed | log p(x) | ELBO | active units | epochs |\n|---|---|---|---|---|---|")
    for seed in args.seeds or (0, 1, 2):
        for model in args.models or MNIST_MODELS:
            labels = {"experiment": "mnist", "backend": args.backend, "model": model, "seed": seed}
            labels |= {"num_flows": args.num_flows, "max_epochs": args.epochs or 500, "num_samples": args.num_samples}
            labels |= {"ema_decay": args.ema_decay}

            def measure(model=model, seed=seed, labels=labels):
                flow = "householder_sylvester" if model in ("flow posterior", "both") else None
                posterior = fp.amortized_posterior(32, 256, flow, args.num_flows if flow else None)
                prior = fp.realnvp(32) if model in ("flow prior", "both") else None
                vae = language.vae(seed, images.shape[1:], "dense", posterior, prior, "bernoulli")
                options = {"learning_rate": 1e-3, "warm_up": 20, "patience": 20, "ema_decay": args.ema_decay}
                return run(language, args, labels, vae, parts, num_epochs=args.epochs or 500, **options)

            found = results.get(labels, measure)
            print(
                f"| {model} | {seed} | {found['log_prob']:.2f} ± {found['log_prob_se']:.2f} | "
                f"{found['elbo']:.2f} ± {found['elbo_se']:.2f} | {found['active_units']} | {found['epochs']} |",
                flush=True,
            )


def speed(language, args, results):
    x = np.random.default_rng(0).integers(0, 256, (100, 28, 20), dtype=np.uint8)
    flows = {name: frey_posterior(name, args.num_flows) for name in ("vae", "h-snf", "o-snf", "iaf")}
    for name, layer in (("h-snf, dense", DenseHouseholder), ("o-snf, Bjorck", Bjorck)):
        stack = fp.Chain([fp.ElementwiseAffine(DIM), *(layer() for _ in range(args.num_flows))])
        flows[name] = fp.Conditional(stack, FEATURES)
    steps = {}
    for name, posterior in flows.items():
        steps[name] = language.stepper(language.vae(0, (28, 20), "convolutions", posterior, None, "categorical"), x)
        steps[name]()
    seconds = {name: [] for name in steps}
    for _ in range(args.rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begin)
    print("| | seconds a step | as a multiple of the plain one |\n|---|---|---|")
    for name, times_ in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times_, seconds["vae"], strict=True))
        print(f"| {name} | {statistics.median(times_):.3f} | {ratio:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["frey", "mnist", "speed"])
    parser.add_argument("--data", type=Path, help="the images, .npz or IDX")
    parser.add_argument("--backend", choices=["pyro", "numpyro"], default="pyro")
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--num-flows", type=int, default=4)
    parser.add_argument("--num-samples", type=int, default=5000, help="draws for each test image")
    parser.add_argument("--batch-size", type=int, default=100, help="of frey")
    parser.add_argument("--patience", type=int, default=100, help="of frey, in epochs")
    parser.add_argument("--ema-decay", type=float, default=0.0, help="of the weights' average")
    parser.add_argument("--fast", action="store_true", help="of frey in Pyro")
    parser.add_argument("--epochs", type=int, help="the most epochs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.experiment == "speed":  # must come before torch and jax are imported
        os.environ["OMP_NUM_THREADS"] = "1"
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    if args.experiment != "speed" and args.data is None:
        parser.error("--data is needed: no images come with this package")
    if args.fast and (args.experiment, args.backend) != ("frey", "pyro"):
        parser.error("--fast is of frey in Pyro")
    {"frey": frey, "mnist": mnist, "speed": speed}[args.experiment](
        Language(args.backend, args.fast), args, Results(args.json)
    )


if __name__ == "__main__":
    main()
