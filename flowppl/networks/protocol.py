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


def follows_protocol(network: Any) -> bool:
    """Whether ``network`` is an object, not a class, with what the protocol asks for."""
    has_all = callable(network) and all(hasattr(network, name) for name in ("parameters", "constants"))
    return has_all and not isinstance(network, type)


def check_activation(owner: str, activation: str) -> None:
    """Raise ValueError unless the activation is a known one."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{owner}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def split_raw(output: Array, num_raw: int) -> Array:
    """The output of a network, ``(..., num_raw * n)``, as raw numbers for n univariate maps: ``(num_raw, ..., n)``."""
    xp = namespace(output)
    blocks = xp.reshape(output, (*output.shape[:-1], num_raw, output.shape[-1] // num_raw))
    raw = xp.moveaxis(blocks, -2, 0)
    if num_raw <= 2:
        return raw
    # In one piece of memory: splines are then much faster.
    return xp.reshape(xp.reshape(raw, (num_raw, math.prod(raw.shape[1:]))), raw.shape)
