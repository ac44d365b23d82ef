r"""Perceptrons whose steepness in the event is bounded, whatever their weights.

The *Lipschitz constant* of a map v is the largest :math:`|v(a) - v(b)| / |a - b|` of any two events. Of a perceptron it
is at most the product of the largest singular values of its weights, times the steepest slope of each activation. What
reads the context counts for nothing.
"""

from __future__ import annotations

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.networks.dense import dense_layers

STEEPEST = {"elu": 1.0, "relu": 1.0, "silu": 1.09984, "softplus": 1.0, "tanh": 1.0}
SQUARINGS = 4


def spectral_bound(matrix: Array) -> Array:
    r"""An upper bound of the largest singular value of a matrix, too large by a factor of at most :math:`n^{1/64}`.

    With the smaller side n and :math:`G = W^\top W`, it is the root of :math:`\|G^{16}\|^{1/16}`, where the norm is the
    root of the sum of squares. Its derivatives are exact, and zero for a matrix of zeros.

    References:
        Delattre, Barthélemy, Araujo, Allauzen: Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram
        Iteration, 2023, arXiv 2305.16173.
    """
    xp, (rows, columns) = namespace(matrix), matrix.shape[-2:]
    unit = xp.max(xp.abs(xp.stop_gradient(matrix)), axis=(-2, -1), keepdims=True)  # no square overflows
    is_zero = unit == 0
    scaled = xp.where(is_zero, xp.ones_like(matrix), matrix / xp.where(is_zero, xp.ones_like(unit), unit))
    gram = xp.matmul(scaled.mT, scaled) if columns < rows else xp.matmul(scaled, scaled.mT)
    log_norm, power = 0.0, 0.5
    for k in range(SQUARINGS + 1):
        size = xp.max(gram, axis=(-2, -1), keepdims=True) if k == 0 else 1.0
        size = size * xp.sqrt(xp.sum((gram / size) ** 2, axis=(-2, -1), keepdims=True))
        log_norm = log_norm + power * xp.log(size)
        gram, power = xp.matmul(gram / size, gram / size), power / 2
    return (unit * xp.exp(log_norm))[..., 0, 0]


def shrunk(params: Tree, lipschitz: float, activation: str) -> Tree:
    r"""Weights of dense layers, the last of them made smaller, so that the Lipschitz constant is below ``lipschitz``.

    With the bound b of the network, the last weight is divided by :math:`(1 + (b / \mathrm{lipschitz})^4)^{1/4}`, which
    is next to nothing as long as b is below half of ``lipschitz``.
    """
    last = str(len(params) - 1)
    bound = STEEPEST[activation] ** (len(params) - 1) / lipschitz
    for layer in params.values():
        bound = bound * spectral_bound(layer["weight"])
    xp = namespace(bound)
    one = xp.ones_like(bound)  # of an infinite bound, too
    less = xp.minimum(bound, 1 / xp.maximum(bound, one))  # no fourth power overflows
    bound = xp.maximum(bound, one) * (1 + less**4) ** 0.25
    weight = params[last]["weight"] / bound[..., None, None]
    return {**params, last: {**params[last], "weight": weight}}


def at_context(params: Tree, context: Array) -> Tree:
    """Weights of dense layers that are given a context once, and none after."""
    first = params["0"]
    bias = namespace(context).linear(context, first["context_weight"], first["bias"])
    return {**params, "0": {"weight": first["weight"], "bias": bias}}


def dense_slopes(params: Tree, x: Array, activation: str) -> tuple[list[Array], list[Array]]:
    """The weights of :func:`flowppl.networks.dense`, and the slopes of the activations between them."""
    xp = namespace(x)
    weights, sums = dense_layers(params, None)
    slopes: list[Array] = []
    for weight, added in zip(weights[:-1], sums[:-1], strict=True):
        x, slope = _with_slope(xp, activation, xp.linear(x, weight, added))
        slopes.append(slope)
    return weights, slopes


def along(weights: list[Array], slopes: list[Array], directions: Array) -> Array:
    """The derivatives along directions, rows of ``(..., k, D)``, of the network with these weights and slopes."""
    xp = namespace(directions)
    moved = xp.matmul(directions, weights[0])
    for weight, slope in zip(weights[1:], slopes, strict=True):
        moved = xp.matmul(moved * slope[..., None, :], weight)
    return moved


def dense_jacobian(params: Tree, x: Array, activation: str) -> Array:
    """The derivatives of what :func:`flowppl.networks.dense` gives: of output j in input i at ``[..., i, j]``."""
    xp = namespace(x)
    weights, slopes = dense_slopes(params, x, activation)
    jacobian = weights[0]
    for weight, slope in zip(weights[1:], slopes, strict=True):
        jacobian = xp.matmul(jacobian * slope[..., None, :], weight)
    return jacobian


def _with_slope(xp, activation, x):
    value = getattr(xp, activation)(x)
    if activation == "tanh":
        return value, 1 - value * value
    if activation == "softplus":
        return value, xp.sigmoid(x)
    if activation == "silu":
        share = xp.sigmoid(x)
        return value, share + value * (1 - share)
    if activation == "elu":
        return value, xp.exp(xp.minimum(x, xp.zeros_like(x)))
    return value, xp.astype(x > 0, x.dtype)
