"""Memory and time of a training step of deep stacks, plain and with ``fp.reversible``.

    taskset -c 0 python benchmarks/reversible.py

One thread, float32. Memory is what the gradient of a batch needs at its peak beside the weights, the data and the
gradients themselves: in JAX as the compiler plans it, in torch the largest sum of living tensors. Plain and reversible
steps take turns within one process; the ratio of times is the median over the rounds.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import numpy as np
import torch
from suite.torch_steps import Peak

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp

torch.set_num_threads(1)


def glow(num_flows):
    """Steps of Glow over vectors of 64 numbers."""
    return fp.glow(64, num_flows, hidden_dims=(256, 256)), 1024


def glow_image(num_flows):
    """Steps of Glow over images of 12 channels of 8 x 8 pixels, with networks of one residual block of 32 channels."""
    shape = (12, 8, 8)
    coupling = fp.ImageCoupling(shape, hidden_channels=32, num_blocks=1)
    mix, norm = fp.Pixelwise(shape, fp.LU(12)), fp.Pixelwise(shape, fp.ActNorm(12))
    return fp.Repeat(fp.Chain([coupling, mix, norm]), num_flows), 32


WORKLOADS = {"glow_image": glow_image, "glow": glow}


def in_torch(bijection, direction, x):
    transform = fpp.FlowTransform(bijection)
    parameters = list(transform.parameters())
    run = getattr(transform, f"{direction}_and_log_det")

    def step():
        image, log_det = run(torch.tensor(x))
        return torch.autograd.grad(0.5 * image.square().flatten(1).sum(-1).mean() - log_det.mean(), parameters)

    def memory():
        with Peak(*transform.weights.state_dict().values()) as peak:
            gradients = step()
        return peak.most - sum(leaf.nbytes for leaf in gradients)

    return step, memory


def in_jax(bijection, direction, x):
    transform = fnp.FlowTransform.init(jax.random.key(0), bijection)

    @jax.jit
    @jax.grad
    def gradient(transform, x):
        image, log_det = getattr(transform, f"{direction}_and_log_det")(x)
        return 0.5 * (image**2).reshape(len(x), -1).sum(-1).mean() - log_det.mean()

    compiled = gradient.lower(transform, x).compile()
    return lambda: jax.block_until_ready(compiled(transform, x)), lambda: compiled.memory_analysis().temp_size_in_bytes


LANGUAGES = {"torch": in_torch, "jax": in_jax}


def seconds(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workload", choices=WORKLOADS, nargs="*", default=list(WORKLOADS))
    parser.add_argument("--language", choices=LANGUAGES, nargs="*", default=list(LANGUAGES))
    options = parser.parse_args()
    print("| | direction | MB, 8 steps | MB, 64 steps | MB reversible, 8 | MB reversible, 64 | times the seconds, 64 |")
    print("|---|---|---|---|---|---|---|")
    for workload in options.workload:
        for language in options.language:
            for direction in ("inverse", "forward"):
                memory, steps = [], []
                for wrap in (lambda bijection: bijection, fp.reversible):
                    for num_flows in (8, 64):
                        bijection, batch = WORKLOADS[workload](num_flows)
                        x = np.random.default_rng(0).normal(size=(batch, *bijection.x_shape)).astype(np.float32)
                        step, measure = LANGUAGES[language](wrap(bijection), direction, x)
                        memory.append(f"{measure() / 1e6:.1f}")
                    step()
                    steps.append(step)
                rounds = [[seconds(step) for step in steps] for _ in range(options.rounds)]
                ratio = statistics.median(reversible / plain for plain, reversible in rounds)
                print(f"| {workload}, {language} | {direction} | {' | '.join(memory)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
