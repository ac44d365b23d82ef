"""One training step of splines, planar stacks, reflections and Sylvester flows, beside those of other libraries.

    taskset -c 0 python benchmarks/layers.py

One thread, float32. All cases of a workload take turns within one process, and what is reported is the median over
the rounds of the ratio to flowppl in the same language: above 1, so many times slower. The loss is the
mean negative log density (splines) or half the squared length minus the log determinant (the others).
"""

import argparse
import functools
import os
import statistics
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import equinox as eqx
import flowjax.bijections
import flowjax.distributions
import flowjax.flows
import jax
import jax.numpy as jnp
import nflows.flows
import nflows.nn.nets
import nflows.transforms
import numpy as np
import paramax
import pyro.distributions.transforms as pyro_transforms
import pyro.nn
import torch
import zuko

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp

torch.set_num_threads(1)
BATCH, BINS, BOUND, HIDDEN, LAYERS = 512, 8, 5.0, (64, 64), 4


def torch_step(parameters, loss, x):
    parameters = list(parameters)

    def step():
        for parameter in parameters:
            parameter.grad = None
        loss(x).backward()

    return step


def jax_step(tree, loss, x):
    gradient = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(gradient(tree, x))


def torch_transforms(transforms, x):
    """Transforms of Pyro, their caches cleared at every step."""
    modules = torch.nn.ModuleList(transforms)

    def loss(x):
        total = 0.0
        for transform in modules:
            transform.clear_cache()
            y = transform(x)
            total, x = total + transform.log_abs_det_jacobian(x, y), y
        return (0.5 * x.square().sum(-1) - total).mean()

    return torch_step(modules.parameters(), loss, x)


def ours(bijection, direction, x):
    """Both adapters' steps: the torch module, and the pytree of NumPyro."""
    module = fpp.FlowTransform(bijection)
    transform = fnp.FlowTransform.init(jax.random.key(0), bijection)
    run = {"forward": "forward_and_log_det", "inverse": "inverse_and_log_det"}[direction]

    def loss(transform, x):
        y, log_det = getattr(transform, run)(x)
        return (0.5 * (y * y).sum(-1) - log_det).mean()

    yield "torch", "flowppl", torch_step(module.parameters(), functools.partial(loss, module), torch.tensor(x))
    yield "jax", "flowppl", jax_step(transform, loss, jnp.asarray(x))


def flowjax_step(flow, x):
    is_fixed = lambda leaf: isinstance(leaf, paramax.NonTrainable)  # noqa: E731
    params, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=is_fixed)
    return jax_step(params, lambda params, x: -eqx.combine(params, static).log_prob(x).mean(), jnp.asarray(x))


def splines():
    """A spline coupling flow (D = 16, 4 layers, [64, 64], 8 bins), scored."""
    dim = 16
    half = dim // 2
    x = np.random.default_rng(0).normal(size=(BATCH, dim)).astype(np.float32)
    recipe = fp.nsf(dim, LAYERS, num_bins=BINS, bound=BOUND, hidden_dims=HIDDEN, activation="relu")
    yield from ours(recipe, "inverse", x)

    stack = []
    for _ in range(LAYERS):
        network = pyro.nn.DenseNN(half, list(HIDDEN), [half * BINS, half * BINS, half * (BINS - 1)])
        coupling = pyro_transforms.SplineCoupling(dim, half, network, BINS, BOUND, order="quadratic", identity=True)
        stack += [coupling, pyro_transforms.Permute(torch.arange(dim).roll(half), dim=-1)]
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(dim), torch.ones(dim)), 1)
    pyro_flow = pyro.distributions.TransformedDistribution(base, stack)

    def pyro_loss(x):
        pyro_flow.clear_cache()
        for transform in stack:
            transform.clear_cache()
        return -pyro_flow.log_prob(x).mean()

    couplings = torch.nn.ModuleList(stack[::2])
    trained = [p for name, p in couplings.named_parameters() if "lower_spline" not in name]
    yield "torch", "pyro", torch_step(trained, pyro_loss, torch.tensor(x))

    spline = functools.partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND)
    shapes = [(BINS,), (BINS,), (BINS - 1,)]
    couplings = [
        zuko.flows.coupling.GeneralCouplingTransform(
            dim, mask=torch.arange(dim) % 2 == i % 2, univariate=spline, shapes=shapes, hidden_features=list(HIDDEN)
        )
        for i in range(LAYERS)
    ]
    normal = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(dim), torch.ones(dim), buffer=True
    )
    zuko_flow = zuko.lazy.Flow(couplings, normal)
    zuko_loss = lambda x: -zuko_flow().log_prob(x).mean()  # noqa: E731
    yield "torch", "zuko", torch_step(zuko_flow.parameters(), zuko_loss, torch.tensor(x))

    class Network(nflows.nn.nets.MLP):
        hidden_features = HIDDEN[0]

        def forward(self, x, context=None):
            return super().forward(x)

    layers = [
        nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
            (torch.arange(dim) >= half).int() if i % 2 == 0 else (torch.arange(dim) < half).int(),
            lambda fan_in, fan_out: Network([fan_in], [fan_out], list(HIDDEN)),
            num_bins=BINS,
            tails="linear",
            tail_bound=BOUND,
        )
        for i in range(LAYERS)
    ]
    peer = nflows.flows.Flow(nflows.transforms.CompositeTransform(layers), nflows.distributions.StandardNormal([dim]))
    yield "torch", "nflows", torch_step(peer.parameters(), lambda x: -peer.log_prob(x).mean(), torch.tensor(x))

    flow = flowjax.flows.coupling_flow(
        jax.random.key(0),
        base_dist=paramax.non_trainable(flowjax.distributions.Normal(jnp.zeros(dim))),
        transformer=flowjax.bijections.RationalQuadraticSpline(knots=BINS - 1, interval=BOUND),
        flow_layers=LAYERS,
        nn_width=HIDDEN[0],
        nn_depth=len(HIDDEN),
    )
    yield "jax", "flowjax", flowjax_step(flow, x)


def planar():
    """16 planar layers (D = 64), sampled."""
    x = np.random.default_rng(0).normal(size=(BATCH, 64)).astype(np.float32)
    yield from ours(fp.Planar(64, 16), "forward", x)
    yield "torch", "pyro", torch_transforms([pyro_transforms.Planar(64) for _ in range(16)], torch.tensor(x))
    base = flowjax.distributions.Normal(jnp.zeros(64))
    flow = flowjax.flows.planar_flow(jax.random.key(0), base_dist=base, flow_layers=16, invert=True)
    yield "jax", "flowjax", flowjax_step(flow, x)


def householder():
    """16 reflections (D = 64)."""
    x = np.random.default_rng(0).normal(size=(BATCH, 64)).astype(np.float32)
    yield from ours(fp.Householder(64, 16), "forward", x)
    yield "torch", "pyro", torch_transforms([pyro_transforms.Householder(64, 16)], torch.tensor(x))


def sylvester():
    """4 Householder-Sylvester layers of 8 reflections (D = 64), sampled."""
    x = np.random.default_rng(0).normal(size=(BATCH, 64)).astype(np.float32)
    yield from ours(fp.householder_sylvester(64, 4, num_reflections=8), "forward", x)
    yield "torch", "pyro", torch_transforms([pyro_transforms.Sylvester(64, 8) for _ in range(4)], torch.tensor(x))


WORKLOADS = {function.__name__: function for function in (splines, planar, householder, sylvester)}


def seconds(step, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - start) / repeats


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=WORKLOADS)
    args = parser.parse_args()
    print("| workload | language | library | ms | times flowppl |\n|---|---|---|---|---|")
    for name in [args.only] if args.only else WORKLOADS:
        cases = {(language, library): step for language, library, step in WORKLOADS[name]()}
        repeats = {}
        for case, step in cases.items():
            step()
            repeats[case] = max(1, round(0.15 / seconds(step, 3)))
        rounds = [{case: seconds(step, repeats[case]) for case, step in cases.items()} for _ in range(args.rounds)]
        for language, library in cases:
            times = [times[language, library] for times in rounds]
            ratio = statistics.median(times[language, library] / times[language, "flowppl"] for times in rounds)
            print(f"| {name} | {language} | {library} | {1e3 * statistics.median(times):.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
