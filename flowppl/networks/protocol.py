"""What a layer needs of its network, checks of arguments, and what is done with the output."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any, Protocol

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.checks import check_sizes

ACTIVATIONS = ("elu", "relu", "silu", "softplus", "tanh")


class Network(Protocol):
    """What a layer needs of its network; see the text at the head of :mod:`flowppl.networks`."""

    def parameters(self) -> Tree: ...
    def constants(self) -> Tree: ...
    def __call__(self, params: Tree, x: Array, context: Array | None) -> Array: ...


def as_dims(owner: str, hidden_dims) -> tuple[int, ...]:
    """``hidden_dims`` as a tuple: an int means one hidden layer."""
    if isinstance(hidden_dims, str) or not isinstance(hidden_dims, numbers.Integral | Iterable):
        raise TypeError(
            f"{owner}: hidden_dims must be a tuple of widths, such as (64, 64), or one, got {hidden_dims!r}"
        )
    dims = (hidden_dims,) if isinstance(hidden_dims, numbers.Integral) else tuple(hidden_dims)
    for width in dims:
        check_sizes(owner, hidden_dims=width)
    return dims


def check_network(owner: str, network: Any) -> None:
    """Raise TypeError unless ``network`` follows the protocol."""
    follows = callable(network) and all(hasattr(network, name) for name in ("parameters", "constants"))
    if isinstance(network, type) or not follows:
        what = f"the class {network.__name__}" if isinstance(network, type) else repr(network)[:80]
        raise TypeError(
            f"{owner}: network must have parameters() and constants() and be callable, as flowppl.MLP(2, 4) is, or be "
            f"None for a perceptron with hidden_dims, got {what}"
        )


def check_activation(owner: str, activation: str) -> None:
    """Raise ValueError unless the activation is a known one."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{owner}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def split_raw(output: Array, num_raw: int) -> Array:
    """The output of a network, ``(..., num_raw * n)``, as raw numbers for n univariate maps: ``(num_raw, ..., n)``."""
    xp = namespace(output)
    blocks = xp.reshape(output, (*output.shape[:-1], num_raw, output.shape[-1] // num_raw))
    raw = xp.moveaxis(blocks, -2, 0)
    # In one piece of memory: splines are then much faster.
    return xp.reshape(xp.reshape(raw, (num_raw, math.prod(raw.shape[1:]))), raw.shape)
