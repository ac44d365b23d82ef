"""Dense layers, with masks or without, and the perceptron."""

from __future__ import annotations

import dataclasses
import itertools

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.checks import assign, check_sizes
from flowppl.declare import Constant, Parameter, Uniform
from flowppl.networks.protocol import as_dims, check_activation


def dense_parameters(sizes: tuple[int, ...], context_dim: int, residual: bool = False) -> Tree:
    """Layers of the given sizes; the context enters the first; the last, and the last of each block, start at zero."""
    layers: Tree = {}
    for i, (fan_in, width) in enumerate(itertools.pairwise(sizes)):
        ends = i == len(sizes) - 2 or (residual and _closes_block(i))
        total = fan_in + (context_dim if i == 0 else 0)
        draw = Constant(0.0) if ends else Uniform((3 / max(total, 1)) ** 0.5)  # keeps the variance of its input
        layers[str(i)] = {"weight": Parameter((fan_in, width), draw), "bias": Parameter((width,))}
        if i == 0 and context_dim:
            layers[str(i)]["context_weight"] = Parameter((context_dim, width), draw)
    return layers


def _closes_block(i: int) -> bool:
    """Whether dense layer i is the second of a residual block: layer 0 comes first, then two layers for each block."""
    return i > 0 and i % 2 == 0


def masked(layer: Tree) -> Tree:
    """A layer with its ``mask`` put on its weights, which an empty branch notes, so that it is done once."""
    if "is_masked" in layer:
        return layer
    mask, weight = layer["mask"], layer["weight"]
    xp = namespace(weight)
    # A product with the mask takes less time, but 0 times a gradient that overflows is no number.
    return {**layer, "weight": xp.where(mask, weight, xp.zeros_like(weight[..., :1, :1])), "is_masked": {}}


def masked_layers(params: Tree) -> Tree:
    """Layers, each of which must have a ``mask``, with the masks put on their weights."""
    return {key: masked(layer) for key, layer in params.items()}


def dense_layers(params: Tree, context: Array | None) -> tuple[list[Array], list[Array]]:
    """The weights of dense layers, and what is added: bias and context. Masks are not looked at."""
    weights, sums = [], []
    for i in range(len(params)):
        layer = params[str(i)]
        weight, bias = layer["weight"], layer["bias"]
        if "context_weight" in layer:
            bias = namespace(bias).linear(context, layer["context_weight"], bias)
        weights.append(weight)
        sums.append(bias)
    return weights, sums


def hidden_units(first, weights, sums, activation: str, residual: bool, product) -> list[Array]:
    """All hidden layers, given the first before its activation, and of the others the weights and what is added.

    ``product(x, weight, added)`` is what a layer does.
    """
    activate = getattr(namespace(first), activation)
    before = skipped = first
    hidden = [activate(before)]
    for i, (weight, added) in enumerate(zip(weights, sums, strict=True), start=1):
        before = product(hidden[-1], weight, added)
        if residual and _closes_block(i):
            before = skipped = before + skipped
        hidden.append(activate(before))
    return hidden


def dense(
    params: Tree, x: Array, context: Array | None, activation: str, residual: bool = False, product=None
) -> Array:
    """Apply dense layers; ``product`` is as for :func:`hidden_units`."""
    product = product or namespace(x).linear
    weights, sums = dense_layers(params, context)
    output = product(x, weights[0], sums[0])
    if len(weights) == 1:
        return output
    hidden = hidden_units(output, weights[1:-1], sums[1:-1], activation, residual, product)
    return product(hidden[-1], weights[-1], sums[-1])


@dataclasses.dataclass(frozen=True)
class MLP:
    r"""A multi-layer perceptron: :math:`h_{i+1} = \sigma(h_i) W_i + b_i`, with the context added to the first product.

    Args:
        in_dim: the size of the input; may be 0 (the output then depends on the context only).
        out_dim: the size of the output.
        hidden_dims: the widths of the hidden layers; an int means one layer; ``()`` means a linear map.
        context_dim: the size of the context, 0 for none.
        activation: one of elu, relu, silu, softplus, tanh. Smooth ones give smooth densities.

    Raises:
        ValueError: for a size that is not a positive integer or an unknown activation.

    Example:
        >>> import flowppl as fp
        >>> fp.MLP(2, 3, hidden_dims=8).parameters()["0"]["weight"].shape
        (2, 8)
    """

    in_dim: int
    out_dim: int
    hidden_dims: tuple[int, ...] = (64, 64)
    context_dim: int = 0
    activation: str = "silu"

    def __post_init__(self):
        assign(self, hidden_dims=as_dims("MLP", self.hidden_dims))
        check_sizes("MLP", out_dim=self.out_dim)
        check_sizes("MLP", at_least=0, in_dim=self.in_dim, context_dim=self.context_dim)
        check_activation("MLP", self.activation)

    def parameters(self) -> Tree:
        return dense_parameters((self.in_dim, *self.hidden_dims, self.out_dim), self.context_dim)

    def constants(self) -> Tree:
        return {}

    def __call__(self, params, x, context=None):
        return dense(params, x, context, self.activation)
