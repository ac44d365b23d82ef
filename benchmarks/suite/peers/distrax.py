"""distrax, with networks as its users write them."""

import itertools

import distrax
import jax
import jax.numpy as jnp
import numpy as np


def network_weights(sizes, rng):
    """Weights and biases of dense layers."""
    return [
        (jnp.asarray(rng.uniform(-1, 1, size=size) / size[0] ** 0.5, jnp.float32), jnp.zeros(size[1]))
        for size in itertools.pairwise(sizes)
    ]


def network(weights, x):
    for matrix, bias in weights[:-1]:
        x = jax.nn.relu(x @ matrix + bias)
    matrix, bias = weights[-1]
    return x @ matrix + bias


def couplings(dim, layers, hidden, outputs, conditioner, univariate):
    rng, half = np.random.default_rng(0), dim // 2
    weights = [network_weights([half, *hidden, half * outputs], rng) for _ in range(layers)]
    normal = distrax.MultivariateNormalDiag(jnp.zeros(dim), jnp.ones(dim))

    def score(weights, x):
        stack = [
            distrax.SplitCoupling(half, 1, lambda h, each=each: conditioner(each, h), univariate, swap=bool(i % 2))
            for i, each in enumerate(weights)
        ]
        return distrax.Transformed(normal, distrax.Inverse(distrax.Chain(stack))).log_prob(x)

    return weights, score


def coupling(dim, layers, hidden):
    half = dim // 2

    def univariate(params):
        return distrax.ScalarAffine(params[..., :half], log_scale=params[..., half:])

    return couplings(dim, layers, hidden, 2, network, univariate)


def spline(dim, layers, hidden, bins, bound):
    """It makes two more numbers for each dimension, which are not used."""

    def conditioner(weights, h):
        return network(weights, h).reshape(len(h), dim // 2, 3 * bins + 1)

    def univariate(params):
        return distrax.RationalQuadraticSpline(params, -bound, bound, boundary_slopes="identity")

    return couplings(dim, layers, hidden, 3 * bins + 1, conditioner, univariate)
