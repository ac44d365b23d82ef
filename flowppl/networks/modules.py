"""Modules of a host's framework as networks: what the adapters share, and where they are made known."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, leaves, nested
from flowppl.declare import Constant, Draws, Parameter
from flowppl.networks.protocol import Network, follows_protocol

READERS: list[Callable[[Any], ModuleNetwork | None]] = []
"""For each adapter that is imported, the function that makes a network of a module of its host, None of all else."""


class ModuleNetwork(abc.ABC):
    """A module of a host's framework, or a function that makes one, as the network of a layer.

    It is equal to another one of the very same module. An adapter's class reads the module when it is made, and keeps
    what it needs: later changes of the module are of no account.
    """

    module: Any
    identity_start: bool
    shapes: dict[str, tuple[int, ...]]
    """Of the trained arrays, in an order that is always the same; dots in the names part the keys of the tree."""
    takes_context: bool
    """Whether the module has an argument ``context``."""

    def __init__(self, module: Any, identity_start: bool = True) -> None:
        self.module, self.identity_start = module, identity_start

    @abc.abstractmethod
    def constants(self) -> Tree:
        """Arrays that are not trained."""

    @abc.abstractmethod
    def draw(self, draws: Draws, num: int) -> dict[str, Array]:
        """First values of all trained arrays for so many layers, along an axis in front."""

    @abc.abstractmethod
    def apply(self, params: Tree, x: Array, **context: Array) -> Array:
        """The output of the module with these arrays for rows ``x``."""

    @abc.abstractmethod
    def try_out(self, x_shape: tuple[int, ...], **context_shape: tuple[int, ...]) -> tuple[int, ...] | str:
        """The shape of the output for rows of this shape, or why the module cannot be a network."""

    @abc.abstractmethod
    def example(self) -> dict[str, Array]:
        """Some values of all trained arrays, as first ones may be."""

    @abc.abstractmethod
    def evaluate(self, weights: dict[str, Array], x: np.ndarray, **context: np.ndarray) -> np.ndarray:
        """The output with these arrays, for rows of numbers."""

    def bind(self, owner: str, in_shape: tuple[int, ...], out_shape: tuple[int, ...], context_dim: int) -> BoundNetwork:
        """The network from events of one shape to those of another.

        Raises:
            ValueError: if the module does not map the one to the other, or keeps a state.
        """
        apart = self.takes_context and context_dim > 0
        seen = in_shape if apart else (in_shape[0] + context_dim, *in_shape[1:])
        sizes = f"arrays of shape {_rows(seen)}"
        if apart:
            sizes += f" and a context of shape {_rows((context_dim,))}"
        elif context_dim:
            sizes += f", the last {context_dim} of the {seen[0]} being the context,"
        needed = f"{owner}: network={self!r} must take {sizes} and give {_rows(out_shape)}"
        try:
            found = self.try_out((2, *seen), **({"context": (2, context_dim)} if apart else {}))
        except Exception as error:
            raise ValueError(f"{needed}, but raised {type(error).__name__}: {error}") from error
        if isinstance(found, str):
            raise ValueError(f"{owner}: network={self!r} {found}")
        if found != (2, *out_shape):
            raise ValueError(f"{needed}, but gives {_rows(found[1:])}")
        zeros = self._last_layer((2, *seen), (2, context_dim) if apart else None) if self.identity_start else ()
        return BoundNetwork(self, in_shape, out_shape, context_dim, zeros)

    def _last_layer(self, x_shape: tuple[int, ...], context_shape: tuple[int, ...] | None) -> tuple[str, ...] | None:
        """The names of the arrays in which the output is linear: with zeros in them it is zero. None if there are none.

        The names of no array if the output is zero as it is.
        """

        def some(shape):
            return np.sin(np.arange(1.0, 1.0 + math.prod(shape))).reshape(shape)

        def evaluate(weights):
            return self.evaluate(weights, some(x_shape), **context)

        context = {} if context_shape is None else {"context": some(context_shape)}
        weights = self.example()
        output = evaluate(weights)
        if not output.any():
            return ()
        owners: dict[str, list[str]] = {}
        for name in reversed(self.shapes):
            owners.setdefault(name.rpartition(".")[0], []).append(name)
        # Matrices first: with Adam, they take the output from zero faster than single numbers do.
        for names in sorted(owners.values(), key=lambda names: max(len(self.shapes[name]) for name in names) < 2):

            def times(factor, names=names):
                return evaluate({name: factor * leaf if name in names else leaf for name, leaf in weights.items()})

            if all(np.allclose(times(factor), factor * output, rtol=1e-4, atol=1e-6) for factor in (-1, 2)):
                return tuple(names)
        return None

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ModuleNetwork)
            and self.module is other.module
            and self.identity_start == other.identity_start
        )

    def __hash__(self) -> int:
        return hash((id(self.module), self.identity_start))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing in it changes, and a copy would be equal to itself only

    def __repr__(self) -> str:
        name = getattr(self.module, "__name__", type(self.module).__name__)
        return f"{name}{'' if self.identity_start else ', identity_start=False'}"


NetworkLike = Network | ModuleNetwork | Callable[..., Any]
"""What a layer takes as ``network``: a module, and what makes one, can be called."""


def _rows(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['n', *map(str, shape)])})"


@dataclasses.dataclass(frozen=True)
class BoundNetwork:
    """A module between events of known shapes, with the protocol of networks.

    The module sees one axis of rows. Its weights may carry batch axes in front: it is then mapped over them.
    """

    network: ModuleNetwork
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    context_dim: int
    zeros: tuple[str, ...] | None
    """The arrays that start at zero; with None the output is multiplied by numbers that do."""

    def parameters(self) -> Tree:
        drawn = {
            name: Parameter(shape, Constant(0.0) if name in (self.zeros or ()) else Drawn(self.network, name))
            for name, shape in self.network.shapes.items()
        }
        return {"module": nested(drawn)} | ({"scale": Parameter(self._scale_shape)} if self.zeros is None else {})

    def constants(self) -> Tree:
        return {"module": self.network.constants()}

    @property
    def _scale_shape(self):
        """One number for each output; for an image one for each channel."""
        return (self.out_shape[0], *(1 for _ in self.out_shape[1:]))

    def __call__(self, params, x, context=None):
        xp, weights = namespace(x), params["module"]
        num_axes, shapes = x.ndim - len(self.in_shape), self.network.shapes
        batches = [tuple(x.shape[:num_axes])]
        if context is not None:
            batches.append(tuple(context.shape[:-1]))
        flat = {".".join(path): leaf for path, leaf in leaves(weights)}
        own = {name: tuple(flat[name].shape[: flat[name].ndim - len(shape)]) for name, shape in shapes.items()}
        batch = xp.broadcast_shapes(*batches, *own.values())
        rows = [_as_rows(xp, x, batch, self.in_shape)]
        if context is not None:
            rows.append(_as_rows(xp, context, batch, (self.context_dim,)))
        if any(own.values()):
            each = {name: _as_rows(xp, flat[name], batch, shape) for name, shape in shapes.items()}
            rest = {name: leaf for name, leaf in flat.items() if name not in each}

            def one(each, *row):
                return self._apply(nested({**rest, **each}), *(part[None, ...] for part in row))[0, ...]

            output = xp.vmap(one, each, *rows)
        else:
            output = self._apply(weights, *rows)
        output = xp.reshape(output, (*batch, *self.out_shape))
        return output * params["scale"] if "scale" in params else output

    def _apply(self, weights, x, context=None):
        if context is None:
            return self.network.apply(weights, x)
        if self.network.takes_context:
            return self.network.apply(weights, x, context=context)
        xp = namespace(x)
        # To an image the context comes as channels, each of which is the same number everywhere.
        context = xp.reshape(context, (*context.shape, *(1 for _ in self.in_shape[1:])))
        context = xp.broadcast_to(context, (*context.shape[:2], *self.in_shape[1:]))
        return self.network.apply(weights, xp.concat([x, context], axis=1))


def _as_rows(xp, array, batch, shape):
    """The array with its batch axes, broadcast to ``batch``, as one."""
    array = array if array.shape[: array.ndim - len(shape)] == batch else xp.broadcast_to(array, (*batch, *shape))
    return xp.reshape(array, (math.prod(batch), *shape))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Initializer of one array of a module: all arrays of a module are drawn together."""

    network: ModuleNetwork
    name: str

    def __call__(self, draws, shape):
        return self.stacked(draws, (1, *shape))[0, ...]

    def stacked(self, draws, shape):
        """As many draws as the first axis is long."""
        drawn = vars(draws).setdefault("drawn", {})
        waiting = drawn.setdefault((self.network, shape[0]), {name: [] for name in self.network.shapes})
        if not waiting[self.name]:
            for name, leaf in self.network.draw(draws, shape[0]).items():
                waiting[name].append(leaf)
        return waiting[self.name].pop(0)


def read_network(owner: str, network: NetworkLike | None) -> Any:
    """``network`` as one that follows the protocol, or as a :class:`ModuleNetwork`; None as it is.

    Raises:
        TypeError: if it is neither.
    """
    if network is None or isinstance(network, ModuleNetwork) or follows_protocol(network):
        return network
    for read in READERS:
        found = read(network)
        if found is not None:
            return found
    what = f"the class {network.__name__}" if isinstance(network, type) else repr(network)[:80]
    raise TypeError(
        f"{owner}: network must have parameters() and constants() and be callable, as flowppl.MLP(2, 4) is, be a "
        "module of torch.nn (once flowppl.pyro is imported) or flax.nnx (once flowppl.numpyro is), or a function that "
        "makes one, without arguments for torch and of rngs for flax, or be None for a perceptron with hidden_dims, "
        f"got {what}"
    )


def bind_network(
    owner: str, network: Any, in_shape: tuple[int, ...], out_shape: tuple[int, ...], context_dim: int
) -> Network:
    """What :func:`read_network` gave, as a network between events of these shapes."""
    if isinstance(network, ModuleNetwork):
        return network.bind(owner, in_shape, out_shape, context_dim)
    if getattr(network, "context_dim", context_dim) != context_dim:  # it would not see it, or wait for it
        raise ValueError(
            f"{owner}: network must have context_dim={context_dim}, as {owner} gives it, got {network.context_dim}"
        )
    return network
