"""Image flows: what a step of Glow takes, beside the same step in normflows.

    taskset -c 0 python benchmarks/image_flows.py speed

One thread, float32. A step of Glow is an ActNorm of channels, an invertible 1x1 convolution and an affine coupling,
whose network has kernels of 3, 1 and 3 pixels. Timed is what training does: images to noise with the log determinant,
and the gradient of their sum with respect to all weights. Both take turns within one process; what is printed is the
median over the rounds, and of the ratio of each round. normflows is no dependency: ``pip install --no-deps normflows``.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

import flowppl as fp
import flowppl.pyro as fpp

# Channels, height and width of a squeezed image, hidden channels of the network, images in a batch.
SIZES = (((12, 16, 16), 64, 32), ((48, 4, 4), 64, 32), ((12, 16, 16), 256, 8))


def ours(shape, hidden_channels):
    """A step in flowppl, with the 1x1 convolution in its LU factors, as in normflows, or in its QR factors."""
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

    step = normflows.flows.GlowBlock(shape[0], hidden_channels)
    step.inverse(torch.randn(8, *shape))  # sets its ActNorm
    return {"normflows": (step.inverse, list(step.parameters()))}


def measure(function, parameters, images):
    start = time.perf_counter()
    noise, log_det = function(images)
    torch.autograd.grad((noise**2).sum() / 2 - log_det.sum(), parameters)
    return time.perf_counter() - start


def speed(rounds):
    print("| image | hidden | batch | step | ms | flowppl / normflows |\n|---|---|---|---|---|---|")
    for shape, hidden_channels, batch in SIZES:
        cases = theirs(shape, hidden_channels) | ours(shape, hidden_channels)
        images = torch.randn(batch, *shape)
        for case in cases.values():
            measure(*case, images)
        times = {name: [] for name in cases}
        for _ in range(rounds):
            for name, case in cases.items():
                times[name].append(measure(*case, images))
        for name, values in times.items():
            ratio = statistics.median(a / b for a, b in zip(values, times["normflows"], strict=True))
            milliseconds = 1e3 * statistics.median(values)
            print(f"| {shape} | {hidden_channels} | {batch} | {name} | {milliseconds:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("speed", help="a step of Glow beside that of normflows")
    part.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    speed(arguments.rounds)
