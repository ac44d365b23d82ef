r"""The networks of coupling and autoregressive layers, and the protocol that any other network can follow.

A *conditioner network* is a hashable object with ``parameters()`` and ``constants()``, as a bijection has, and
``__call__(params, x, context) -> output``. Its output layer starts at zero, so that the layer it serves starts
at the identity.
"""

from __future__ import annotations

import dataclasses
import itertools
import numbers
from typing import Protocol

import numpy as np

from flowppl._array import Array, namespace
from flowppl._tree import Tree
from flowppl.bijection import Constant, Parameter, Uniform, assign, check_sizes

ACTIVATIONS = ("elu", "relu", "silu", "softplus", "tanh")


class Network(Protocol):
    """What a layer needs of its network; see the text at the head of this module."""

    def parameters(self) -> Tree: ...
    def constants(self) -> Tree: ...
    def __call__(self, params: Tree, x: Array, context: Array | None) -> Array: ...


def as_dims(owner: str, hidden_dims) -> tuple[int, ...]:
    """``hidden_dims`` as a tuple: an int means one hidden layer."""
    dims = (hidden_dims,) if isinstance(hidden_dims, numbers.Integral) else tuple(hidden_dims)
    for width in dims:
        check_sizes(owner, hidden_dims=width)
    return dims


def check_activation(owner: str, activation: str) -> None:
    """Raise ValueError unless the activation is a known one."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{owner}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def dense_parameters(sizes: tuple[int, ...], context_dim: int) -> Tree:
    """Layers of the given sizes; the context enters the first; the last starts at zero."""
    layers: Tree = {}
    for i, (fan_in, width) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        total = fan_in + (context_dim if i == 0 else 0)
        draw = Constant(0.0) if last else Uniform((3 / max(total, 1)) ** 0.5)  # keeps the variance of its input
        layers[str(i)] = {"weight": Parameter((fan_in, width), draw), "bias": Parameter((width,))}
        if i == 0 and context_dim:
            layers[str(i)]["context_weight"] = Parameter((context_dim, width), draw)
    return layers


def dense(params: Tree, x: Array, context: Array | None, activation: str) -> Array:
    """Apply dense layers, masked where a layer has a ``mask``."""
    xp = namespace(x)
    for i in range(len(params)):
        layer = params[str(i)]
        if i > 0:
            x = getattr(xp, activation)(x)
        weight = layer["weight"]
        if "mask" in layer:
            weight = xp.where(layer["mask"], weight, xp.zeros_like(weight))
        x = xp.linear(x, weight, layer["bias"])
        if "context_weight" in layer:
            weight = layer["context_weight"]
            x = x + xp.linear(context, weight, xp.zeros_like(layer["bias"]))
    return x


def split_raw(output: Array, num_raw: int) -> Array:
    """The output of a network, ``(..., num_raw * n)``, as raw numbers for n univariate maps: ``(num_raw, ..., n)``."""
    xp = namespace(output)
    blocks = xp.reshape(output, (*output.shape[:-1], num_raw, output.shape[-1] // num_raw))
    return xp.moveaxis(blocks, -2, 0)


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


@dataclasses.dataclass(frozen=True)
class MADE:
    r"""A masked perceptron whose outputs for coordinate d depend on the coordinates before d only.

    Each hidden unit has a degree m and sees the coordinates 1 to m; the outputs of coordinate d see the units of
    degree below d. All degrees have equal shares of a layer; a layer with fewer units than degrees takes a few from
    the lowest to the highest. The context is seen by all units. The output has ``num_outputs`` blocks of length
    ``dim``.

    Args:
        dim: the number of coordinates.
        num_outputs: how many outputs each coordinate gets.
        hidden_dims: the widths of the hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: one of elu, relu, silu, softplus, tanh.

    Raises:
        ValueError: for a size that is not a positive integer or an unknown activation.

    References:
        Germain, Gregor, Murray, Larochelle: MADE: Masked Autoencoder for Distribution Estimation, 2015, arXiv
        1502.03509.

    Example:
        >>> import flowppl as fp
        >>> fp.MADE(3, 1, hidden_dims=4).constants()["0"]["mask"].astype(int)
        array([[1, 1, 1, 1],
               [0, 0, 1, 1],
               [0, 0, 0, 0]])
    """

    dim: int
    num_outputs: int
    hidden_dims: tuple[int, ...] = (64, 64)
    context_dim: int = 0
    activation: str = "tanh"

    def __post_init__(self):
        assign(self, hidden_dims=as_dims("MADE", self.hidden_dims))
        check_sizes("MADE", dim=self.dim, num_outputs=self.num_outputs)
        check_sizes("MADE", at_least=0, context_dim=self.context_dim)
        check_activation("MADE", self.activation)

    def parameters(self) -> Tree:
        return dense_parameters((self.dim, *self.hidden_dims, self.num_outputs * self.dim), self.context_dim)

    def constants(self) -> Tree:
        # Units of degree 0 see the context only: without one they are of use only if there is nothing else to see.
        lowest = 0 if self.context_dim or self.dim == 1 else 1
        degrees = [np.arange(1, self.dim + 1)]
        for width in self.hidden_dims:
            levels = self.dim - lowest
            if width >= levels:
                degrees.append(lowest + np.arange(width) * levels // width)
            else:
                degrees.append(np.rint(np.linspace(lowest, self.dim - 1, width)).astype(int))
        masks = [before[:, None] <= after[None, :] for before, after in itertools.pairwise(degrees)]
        outputs = np.tile(degrees[0], self.num_outputs)
        masks.append(degrees[-1][:, None] < outputs[None, :])
        return {str(i): {"mask": mask} for i, mask in enumerate(masks)}

    def __call__(self, params, x, context=None):
        return dense(params, x, context, self.activation)
