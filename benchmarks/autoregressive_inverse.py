"""The sequential direction of autoregressive flows, as a multiple of the same flow's one-pass direction.

Each flow of masked autoregressive networks (ReLU, batch of 256, float32, one thread, no gradients) maps in both
directions. The directions of all libraries run in turn, round by round; the table shows medians over the rounds, the
ratio being that of each round. Run it pinned to one core:

    taskset -c 0 python benchmarks/autoregressive_inverse.py --dims 16 64 784

The peers that are installed are timed too. They make one pass per coordinate, which takes seconds for 784 of them: they
then run for one round, or not at all with ``--skip-peers-above 64``.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import argparse
import importlib.util
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch

import flowppl as fp
import flowppl.numpyro
import flowppl.pyro

torch.set_num_threads(1)
BATCH = 256


def flow(dim, layers, hidden):
    layer = fp.Autoregressive(dim, hidden_dims=hidden, activation="relu")
    return layer if layers == 1 else fp.Chain([fp.Chain([layer, fp.Permute(tuple(reversed(range(dim))))])] * layers)


def flowppl_torch(dim, layers, hidden, x):
    transform, x = flowppl.pyro.FlowTransform(flow(dim, layers, hidden)), torch.tensor(x)
    return lambda: transform(x), lambda: transform.inv(x)


def flowppl_jax(dim, layers, hidden, x):
    transform = flowppl.numpyro.FlowTransform.init(jax.random.key(0), flow(dim, layers, hidden))
    return jitted(lambda t, x: t(x), lambda t, x: t.inv(x), transform, x)


def jitted(there, back, model, x):
    x = jnp.asarray(x)
    there, back = jax.jit(there), jax.jit(back)
    return lambda: there(model, x).block_until_ready(), lambda: back(model, x).block_until_ready()


def pyro(dim, layers, hidden, x):
    from pyro.distributions.transforms import AffineAutoregressive
    from pyro.nn import AutoRegressiveNN

    orders = [torch.arange(dim), torch.arange(dim).flip(0)]
    parts = [AffineAutoregressive(AutoRegressiveNN(dim, hidden, permutation=orders[i % 2])) for i in range(layers)]
    x = torch.tensor(x)

    def there():
        y = x
        for part in parts:
            y = part._call(y)

    def back():
        y = x
        for part in reversed(parts):
            y = part._inverse(y)

    return there, back


def zuko(dim, layers, hidden, x):
    from zuko.flows import MAF

    transform, x = MAF(dim, transforms=layers, hidden_features=hidden)().transform, torch.tensor(x)
    return lambda: transform(x), lambda: transform.inv(x)


def numpyro(dim, layers, hidden, x):
    from jax.example_libraries import stax
    from numpyro.distributions.flows import InverseAutoregressiveTransform
    from numpyro.nn import AutoregressiveNN

    orders = [jnp.arange(dim), jnp.arange(dim)[::-1]]
    networks = [AutoregressiveNN(dim, hidden, permutation=orders[i % 2], nonlinearity=stax.Relu) for i in range(layers)]
    weights = [init(jax.random.key(i), (dim,))[1] for i, (init, _) in enumerate(networks)]

    def parts(weights):
        for (_, network), w in zip(networks, weights, strict=True):
            yield InverseAutoregressiveTransform(lambda x, network=network, w=w: network(w, x))

    def there(weights, x):
        for part in parts(weights):
            x = part(x)
        return x

    def back(weights, x):
        for part in reversed(list(parts(weights))):
            x = part._inverse(x)
        return x

    return jitted(there, back, weights, x)


def flowjax(dim, layers, hidden, x):
    import equinox
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow
    from paramax import unwrap

    model = masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=Normal(jnp.zeros(dim)),
        flow_layers=layers,
        nn_width=hidden[0],
        nn_depth=len(hidden),
    ).bijection
    arrays, rest = equinox.partition(model, equinox.is_array)

    def mapped(direction):
        return lambda arrays, x: jax.vmap(getattr(unwrap(equinox.combine(arrays, rest)), direction))(x)

    return jitted(mapped("inverse"), mapped("transform"), arrays, x)


def seconds(function, at_least):
    start, runs = time.perf_counter(), 0
    while runs == 0 or time.perf_counter() - start < at_least:
        function()
        runs += 1
    return (time.perf_counter() - start) / runs


def compare(dim, layers, hidden, rounds, slot, makers):
    x = np.random.default_rng(0).normal(size=(BATCH, dim)).astype(np.float32)
    cases = {maker.__name__: maker(dim, layers, hidden, x) for maker in makers}
    first, slow, times = {}, set(), {name: [] for name in cases}
    for name, (there, back) in cases.items():
        there()
        first[name] = seconds(back, 0)
        if first[name] > 5:
            slow.add(name)
    for number in range(rounds):
        for name, directions in cases.items():
            if number == 0 or name not in slow:
                times[name].append([seconds(direction, slot) for direction in directions])
    print(f"\n### D = {dim}, {layers} layer(s), hidden {hidden}\n")
    print("| library | one pass, ms | sequential, ms | ratio | first sequential call, s |\n|---|---|---|---|---|")
    for name, pairs in times.items():
        there, back = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(back / there for there, back in pairs)
        print(f"| {name} | {there:.2f} | {back:.2f} | {ratio:.1f} | {first[name]:.1f} |", flush=True)


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=int, nargs="+", default=[16, 64, 784])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--slot", type=float, default=0.15, help="seconds for each direction and round")
    parser.add_argument("--skip-peers-above", type=int, default=10_000, metavar="DIM")
    arguments = parser.parse_args()
    peers = [peer for peer in (pyro, zuko, numpyro, flowjax) if importlib.util.find_spec(peer.__name__)]
    for dim in arguments.dims:
        layers, hidden = (5, [128, 128]) if dim <= 128 else (1, [1024])
        makers = [flowppl_torch, flowppl_jax, *(peers if dim <= arguments.skip_peers_above else [])]
        compare(dim, layers, hidden, arguments.rounds, arguments.slot, makers)


if __name__ == "__main__":
    main()
