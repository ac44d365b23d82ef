"""Flows of images: bits per dimension of digits, a part of MNIST and faces; a step of Glow beside normflows.

    python benchmarks/image_flows.py digits [--backend numpyro] [--models nice realnvp] [--seeds 0 1 2] --json FILE
    python benchmarks/image_flows.py mnist --data mnist.npz [--backend numpyro] [--models realnvp glow] --json FILE
    python benchmarks/image_flows.py frey --data freyfaces.npz [--minutes 10] [--save FOLDER] --json FILE
    taskset -c 0 python benchmarks/image_flows.py speed

`digits` takes 8 x 8 pixels of 17 levels: 1,297 images to train, 200 to stop by, 300 to measure on, split by one fixed
seed. Adam, batches of 50, averaged weights; the training ends when the images to stop by have not become likelier for
a while, and takes the best weights. `mnist` takes 10,000 images of 28 x 28 pixels with 256 levels: 8,000, 1,000
and 1,000; `frey` 1,965 faces of 28 x 20 pixels with 256 levels: 1,565, 200 and 200, at random, though they are the
frames of one film. A seed determines the first weights, the batches and the noise. `--minutes` ends each training
early; `--save` writes the trained distribution of integers, a file that :func:`flowppl.load` takes.

Of a flow of dequantised integers `bound` is what it was trained for, and `bits` has the probability itself, from 50
draws of noise for each image; a factorised categorical and a PixelCNN have no noise, and a Gaussian of dequantised
images has its bound in closed form. A difference of two models is that of the same images, averaged over the seeds; its
errors are the standard error over images of the averages, and that over seeds.

With `--json` each result is written at once, and a second run does only what is missing; then it prints the tables of
all that is in the file, where `held out` is the bound of the images to stop by, for tuning.

`speed`: one thread, float32. A step of Glow is an ActNorm of channels, an invertible 1x1 convolution and an affine
coupling, whose network has kernels of 3, 1 and 3 pixels. Timed is what training does: images to noise with the log
determinant, and the gradient of their sum with respect to all weights. Both take turns within one process; what is
printed is the median over the rounds, and of the ratio of each round. normflows is no dependency: ``pip install
--no-deps normflows``.
"""

import argparse
import math
import os
import statistics
import time
from pathlib import Path

import numpy as np
from results import Results

import flowppl as fp
from flowppl.images import load_images

NUM_SAMPLES = 50  # of the noise, for each image


def data(experiment, path):
    """Images to train, to stop by, to measure on, of shape (n, 1, H, W), and the number of levels."""
    images = load_images(path)
    levels, *cuts = {"digits": (17, 1297, 1497), "mnist": (256, 8000, 9000), "frey": (256, 1565, 1765)}[experiment]
    order = np.random.default_rng(0).permutation(len(images))[: cuts[-1] + 1000]
    return np.split(images[order][:, None].astype(np.int64), cuts), levels


# The models without a network: nats for each image of the last part.


def factorised(parts, levels):
    """A categorical for each pixel, with as many pseudo-counts as are best for the images to stop by."""
    train, held_out, test = (part.reshape(len(part), -1) for part in parts)
    counts = np.stack([(train == level).sum(0) for level in range(levels)])

    def log_prob(x, alpha):
        table = np.log((counts + alpha) / (len(train) + alpha * levels))
        return np.take_along_axis(table, x, 0).sum(1)

    alpha = max((0.01, 0.03, 0.1, 0.3, 1.0), key=lambda alpha: log_prob(held_out, alpha).mean())
    return log_prob(held_out, alpha), log_prob(test, alpha)


def gaussian(parts, levels):
    """A normal distribution of x + u, u uniform, whose bound is exact; the ridge is best for the images to stop by."""
    train, held_out, test = (part.reshape(len(part), -1) + 0.5 for part in parts)
    mean, covariance = train.mean(0), np.cov(train.T, bias=True) + np.eye(train.shape[1]) / 12

    def bound(y, share):
        shrunk = (1 - share) * covariance + share * np.diag(np.diag(covariance))
        precision = np.linalg.inv(shrunk)
        square = np.einsum("ni,ij,nj->n", y - mean, precision, y - mean) + np.trace(precision) / 12
        return -0.5 * (square + np.linalg.slogdet(shrunk)[1] + len(mean) * math.log(2 * math.pi))

    share = max((0.0, 0.01, 0.02, 0.05, 0.1, 0.2), key=lambda share: bound(held_out, share).mean())
    return bound(held_out, share), bound(test, share)


# The models with networks: what is trained, and by which options.


def flat_maf(shape):
    """A MAF of the image as one vector, with the logit layer of the image flows."""
    dim, margin = math.prod(shape), 0.05 / 0.9
    logit = fp.Elementwise(shape, fp.Bounded(-margin, 1 + margin))
    return fp.Chain(
        [fp.Reshape(shape, (dim,)), fp.maf(dim, 5, hidden_dims=(128, 128)), fp.Reshape((dim,), shape), logit]
    )


def noise_flow(shape, num_flows=4, hidden_channels=12):
    """A flow of the noise in the cells of an image, which its networks see beside the noise."""

    def layer(flip):
        univariate = fp.LogisticMixture(4)
        network = fp.ConvNet(1, univariate.num_raw, hidden_channels, 1, context_shape=shape)
        return fp.ImageCoupling(shape, univariate, "checkerboard", flip, network, context_dim=math.prod(shape))

    return fp.Chain([layer(i % 2 == 1) for i in range(num_flows)])


def flowpp(shape):
    return fp.flowpp_image(shape, (4, 2, 2), num_components=4, hidden_channels=16, num_blocks=1)


def jet(shape, num_pairs=2):
    """Couplings with transformers, over the channels of patches of 2 x 2 pixels and over checkerboards of patches."""
    squeeze = fp.Squeeze(shape)
    inner, channels = squeeze.y_shape, squeeze.y_shape[0]

    def coupling(mask, flip=False):
        seen, mapped = (channels,) * 2 if mask == "checkerboard" else (channels // 2, channels - channels // 2)
        network = fp.Transformer(seen, 2 * mapped, inner[1:], hidden_dim=32, num_blocks=1)
        mix = (fp.QR(channels, start="rotation"), fp.ActNorm(channels))
        layer = fp.ImageCoupling(inner, mask=mask, flip=flip, network=network)
        return fp.Chain([layer, *(fp.Pixelwise(inner, each) for each in mix)])

    turns = [("channel",), ("checkerboard",), ("channel",), ("checkerboard", True)]
    step = fp.Chain([coupling(*turn) for turn in turns])
    return with_logit(shape, fp.Chain([squeeze, fp.Repeat(step, num_pairs), fp.Invert(squeeze)]), 0.05 / 0.9)


DIGITS = {
    "nice": lambda shape: fp.nice_image(shape, 8, hidden_dims=(256, 256)),
    "maf": flat_maf,
    "realnvp": lambda shape: fp.realnvp_image(shape, 3, hidden_channels=16, num_blocks=1),
    "glow": lambda shape: fp.glow_image(shape, 8, hidden_channels=64),
    "flowpp": flowpp,
    "flowpp variational": flowpp,
    "tarflow": lambda shape: fp.tarflow_image(shape, 6, hidden_dim=32, num_blocks=1),
    "jet": jet,
    "pixelcnn mixture": {"num_components": 5, "hidden_channels": 24, "num_blocks": 4},
    "pixelcnn categories": {"num_components": 0, "hidden_channels": 24, "num_blocks": 4},
}


def gated_couplings(shape, num, mask, hidden_channels):
    """Affine couplings with gated networks, not flipped and flipped in turn."""

    def layer(flip):
        seen, mapped = (shape[0],) * 2 if mask == "checkerboard" else (shape[0] // 2,) * 2
        network = fp.ConvNet(seen, 2 * mapped, hidden_channels, num_blocks=3)
        return fp.ImageCoupling(shape, fp.Affine(3.0), mask, flip, network)

    return fp.Repeat(fp.Chain([layer(False), layer(True)]), num // 2)


def with_logit(shape, flow, margin=1e-5):
    return fp.Chain([flow, fp.Elementwise(shape, fp.Bounded(-margin, 1 + margin))])


def checkerboards(shape):
    """Eight couplings at full size."""
    return with_logit(shape, gated_couplings(shape, 8, "checkerboard", 32))


def multi_scale(shape):
    """Two couplings at full size, two at half, of which half leaves, and four at a quarter."""
    half = (4, shape[1] // 2, shape[2] // 2)
    quarter = (8, half[1] // 2, half[2] // 2)
    small = (2, *half[1:])
    inner = fp.Chain([fp.Squeeze(small), gated_couplings(quarter, 4, "channel", 64), fp.Invert(fp.Squeeze(small))])
    scales = [fp.Squeeze(shape), fp.FactorOut(half, inner), gated_couplings(half, 2, "channel", 48)]
    flow = fp.Chain([*scales, fp.Invert(fp.Squeeze(shape)), gated_couplings(shape, 2, "checkerboard", 32)])
    return with_logit(shape, flow)


MNIST = {
    "realnvp": lambda shape: fp.realnvp_image(shape, 2, hidden_channels=24, num_blocks=1),
    "glow": lambda shape: fp.glow_image(shape, 6, hidden_channels=32),
    "checkerboards": checkerboards,
    "checkerboards variational": checkerboards,
    "multi-scale variational": multi_scale,
    "pixelcnn mixture": {"num_components": 5, "hidden_channels": 32, "num_blocks": 4},
}
MODELS = {"digits": DIGITS, "mnist": MNIST, "frey": MNIST}
CLOSED = {"factorised": factorised, "gaussian": gaussian}
OPTIONS = {"learning_rate": 2e-3, "batch_size": 50, "ema_decay": 0.99, "num_epochs": 40, "patience": 15}
OWN_OPTIONS = {
    "nice": {"num_epochs": 100},
    "maf": {"num_epochs": 100},
    "tarflow": {"num_epochs": 150},
    "jet": {"num_epochs": 150},
}


class Deadline:
    """A callback that ends a training after so many minutes."""

    def __init__(self, minutes):
        self.end = time.perf_counter() + 60 * minutes

    def __call__(self, epoch, loss):
        return time.perf_counter() > self.end


def train(backend, seed, model, spec, shape, levels, parts, options):
    """The fit, and functions of its log weights; of shape (draws, images)."""
    noise = noise_flow(shape) if "variational" in model else None
    options = options | {"validation": parts[1], "progress": False}
    if backend == "pyro":
        import pyro
        import torch

        from flowppl.pyro import Dequantized, PixelCNN, fit_density

        pyro.set_rng_seed(seed)
        is_network = isinstance(spec, dict)
        start = PixelCNN(shape, levels, **spec) if is_network else Dequantized(spec(shape), levels, noise)
        fit = fit_density(start, parts[0], **options)

        @torch.no_grad()
        def log_weights(x, num_samples):
            x = torch.tensor(x)
            return (fit.flow.log_prob(x)[None] if is_network else fit.flow.log_weights(x, num_samples)).double().numpy()

        return fit, log_weights, sum(each.numel() for each in fit.flow.parameters())
    import jax

    from flowppl.numpyro import Dequantized, PixelCNN, fit_density

    key = jax.random.key(seed)
    if isinstance(spec, dict):
        start = PixelCNN.init(key, shape, levels, **spec)
        fit = fit_density(key, start, parts[0], **options)
        of_x = jax.jit(lambda flow, x, num_samples: flow.log_prob(x)[None], static_argnums=2)
    else:
        start = Dequantized.init(key, spec(shape), levels, noise)
        fit = fit_density(key, start, parts[0], **options)
        of_x = jax.jit(lambda flow, x, num_samples: flow.log_weights(key, x, num_samples), static_argnums=2)
    size = sum(leaf.size for leaf in jax.tree.leaves(fit.flow))
    return fit, lambda x, num_samples: np.asarray(of_x(fit.flow, x, num_samples), dtype=float), size


def measure(backend, seed, model, spec, levels, parts, options, minutes, save):
    """Bits per dimension of each held-out image, by the bound and by the probability."""
    shape = parts[0].shape[1:]
    unit = math.prod(shape) * math.log(2)
    if model in CLOSED:
        held_out, test = CLOSED[model](parts, levels)
        bits = (-test / unit).round(5).tolist()
        return {"validation": float(-held_out.mean() / unit), "bound": bits, "bits": bits}
    begin = time.perf_counter(), time.process_time()
    options = options | {"callback": Deadline(minutes)}
    fit, log_weights, size = train(backend, seed, model, spec, shape, levels, parts, options)
    seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]

    if save:
        fp.save(save / f"{model.replace(' ', '-')}-{backend}-{seed}.safetensors", fit.flow)

    def evaluate(images, num_samples):
        chunks = [log_weights(images[i : i + 50], num_samples) for i in range(0, len(images), 50)]
        values = np.concatenate(chunks, 1)
        return values.mean(0), np.logaddexp.reduce(values, 0) - math.log(len(values))

    bound, log_prob = evaluate(parts[2], NUM_SAMPLES)
    return {
        "validation": float(-evaluate(parts[1], 5)[0].mean() / unit),
        "bound": (-bound / unit).round(5).tolist(),
        "bits": (-log_prob / unit).round(5).tolist(),
        "epochs": len(fit.losses),
        "best_epoch": fit.best_epoch,
        "stopped": fit.stopped,
        "skipped": fit.num_skipped,
        "weights": int(size),
        "seconds": seconds[0],
        "process_seconds": seconds[1],
    }


# A step of Glow.

# Channels, height and width of a squeezed image, hidden channels of the network, images in a batch.
SIZES = (((12, 16, 16), 64, 32), ((48, 4, 4), 64, 32), ((12, 16, 16), 256, 8))


def ours(shape, hidden_channels):
    """A step in flowppl, with the 1x1 convolution in its LU factors, as in normflows, or in its QR factors."""
    import flowppl.pyro as fpp

    channels = shape[0]
    network = fp.ConvNet(channels // 2, channels, hidden_channels, 1, "plain", kernel_size=(3, 1, 3), activation="relu")
    coupling, norm = fp.ImageCoupling(shape, network=network), fp.Pixelwise(shape, fp.ActNorm(channels))
    steps = {}
    for kind in (fp.LU, fp.QR):
        step = fp.Chain([coupling, fp.Pixelwise(shape, kind(channels)), norm])
        transform = fpp.FlowTransform(step)
        steps[f"flowppl {kind.__name__}"] = transform.inverse_and_log_det, list(transform.parameters())
    return steps


def theirs(shape, hidden_channels):
    import normflows
    import torch

    step = normflows.flows.GlowBlock(shape[0], hidden_channels)
    step.inverse(torch.randn(8, *shape))  # sets its ActNorm
    return {"normflows": (step.inverse, list(step.parameters()))}


def seconds(function, parameters, images):
    import torch

    start = time.perf_counter()
    noise, log_det = function(images)
    torch.autograd.grad((noise**2).sum() / 2 - log_det.sum(), parameters)
    return time.perf_counter() - start


def speed(rounds):
    import torch

    torch.set_num_threads(1)
    print("| image | hidden | batch | step | ms | flowppl / normflows |\n|---|---|---|---|---|---|")
    for shape, hidden_channels, batch in SIZES:
        cases = theirs(shape, hidden_channels) | ours(shape, hidden_channels)
        images = torch.randn(batch, *shape)
        for case in cases.values():
            seconds(*case, images)
        times = {name: [] for name in cases}
        for _ in range(rounds):
            for name, case in cases.items():
                times[name].append(seconds(*case, images))
        for name, values in times.items():
            ratio = statistics.median(a / b for a, b in zip(values, times["normflows"], strict=True))
            milliseconds = 1e3 * statistics.median(values)
            print(f"| {shape} | {hidden_channels} | {batch} | {name} | {milliseconds:.2f} | {ratio:.2f} |")


# The tables.


PAIRS = [
    ("gaussian", "nice"),
    ("factorised", "realnvp"),
    ("nice", "realnvp"),
    ("maf", "realnvp"),
    ("realnvp", "glow"),
    ("glow", "flowpp"),
    ("flowpp", "flowpp variational"),
    ("flowpp variational", "pixelcnn mixture"),
    ("pixelcnn categories", "pixelcnn mixture"),
]


def with_errors(values, sign=""):
    """The mean of rows of images, one for each seed, its error over images and, of several seeds, over them."""
    values = np.asarray(values)
    over_images = values.mean(0).std(ddof=1) / values.shape[1] ** 0.5
    over_seeds = f" ± {values.mean(1).std(ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.3f} ± {over_images:.3f}{over_seeds}"


def tables(records, backend):
    found = {}
    for record in records:
        if record["backend"] in (backend, "both"):
            found.setdefault(record["model"], {})[record["seed"]] = record
    print(f"\n{backend}\n\n| | seeds | bound | bits | held out | weights | epochs | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    for model, each in found.items():
        columns = [with_errors([record[name] for record in each.values()]) for name in ("bound", "bits")]
        columns.append(" / ".join(f"{record['validation']:.3f}" for record in each.values()))
        costs = [[f"{r.get(name, 0):.0f}" for r in each.values()] for name in ("weights", "epochs", "process_seconds")]
        columns += [" / ".join(dict.fromkeys(values)) for values in costs]
        print(f"| {model} | {len(each)} | {' | '.join(columns)} |")
    print("\n| difference | bound | bits |\n|---|---|---|")
    for first, second in PAIRS:
        one, other = found.get(first, {}), found.get(second, {})
        pairs = [(other[seed], one.get(seed, one.get(-1))) for seed in other if seed in one or -1 in one]
        if pairs:
            names = ("bound", "bits")
            columns = [with_errors([np.subtract(b[name], a[name]) for b, a in pairs], "+") for name in names]
            print(f"| {second} less {first} | {' | '.join(columns)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=[*MODELS, "speed"])
    parser.add_argument("--data", type=Path, help="the images of MNIST or the faces, .npz or IDX")
    parser.add_argument("--backend", choices=["pyro", "numpyro"], default="numpyro")
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="the most epochs")
    parser.add_argument("--batch-size", type=int, help="of a training")
    parser.add_argument("--minutes", type=float, default=math.inf, help="the longest training")
    parser.add_argument("--save", type=Path, help="a folder for what was trained")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=100, help="of speed")
    args = parser.parse_args()
    if args.experiment == "speed":
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # must come before torch is imported
        speed(args.rounds)
        return
    if args.experiment != "digits" and args.data is None:
        parser.error("--data is needed: no such images come with this package")
    parts, levels = data(args.experiment, args.data)
    specs = MODELS[args.experiment]
    results = Results(args.json)
    models = [*CLOSED, *specs] if args.models is None else args.models
    for model in models:
        for seed in args.seeds:
            closed = model in CLOSED
            labels = {"experiment": args.experiment, "model": model}
            labels |= {"backend": "both" if closed else args.backend, "seed": -1 if closed else seed}
            options = OPTIONS | OWN_OPTIONS.get(model, {})
            options |= {"num_epochs": args.epochs} if args.epochs else {}
            options |= {"batch_size": args.batch_size} if args.batch_size else {}
            case = args.backend, seed, model, specs.get(model), levels, parts, options, args.minutes, args.save
            results.get(labels, measure, *case)
    for backend in ("numpyro", "pyro"):
        tables([record for record in results.records if record["experiment"] == args.experiment], backend)


if __name__ == "__main__":
    main()
