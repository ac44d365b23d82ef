r"""What a bijection is, and the three ways to combine bijections: ``Chain``, ``Invert``, ``Repeat``.

The contract
------------

A bijection is a smooth, invertible map between *events*. It is a frozen, hashable dataclass of
hyper-parameters and holds no array: its weights come in from outside, as a tree of arrays, with every
call. So one bijection serves NumPy, PyTorch and JAX, and any number of sets of weights.

**Direction.** ``x`` is on the base side (noise), ``y`` on the data side. ``forward`` maps x to y, as
sampling does; ``inverse`` maps y to x, as scoring data does. Each returns the mapped event and the
log absolute determinant of the Jacobian *of the map just applied*:

.. math::
    \mathrm{forward}(x) = \big(f(x),\; \log|\det f'(x)|\big), \qquad
    \mathrm{inverse}(y) = \big(f^{-1}(y),\; \log|\det (f^{-1})'(y)|\big).

**Shapes.** One event x has the shape ``x_shape``, one event y the shape ``y_shape``. An array of events
has any number of *batch* axes in front: ``x.shape == batch + x_shape``. The log determinant is summed over
the event, so its shape is ``batch``. A context has the shape ``batch' + (context_dim,)``; ``batch'`` and
``batch`` broadcast against each other, and so may leading axes of every weight: a weight declared with
shape ``(3, 2)`` may arrive as ``(100, 3, 2)``, one for each of 100 events. The result then has the
broadcast batch shape.

**Parameters** are declared, not drawn. ``parameters()`` is a tree of :class:`Parameter`, each a shape and
an initializer; whoever owns the weights draws them (:func:`initialize`). ``constants()`` is a tree
of NumPy arrays of booleans or integers (masks, permutations) under other names. Both arrive in one merged tree,
the argument ``params`` of ``forward`` and ``inverse``.

**Identity at the start.** Drawn by their initializers, the weights of a trainable bijection give the identity,
or the identity up to a permutation, so that a stack of any depth starts at its base distribution.

**Promises.** The dtype and the device of the result are those of the input and the weights. Nothing is
mutated, nothing is remembered, no branch depends on a value of an array, and no value leaves the device. Both
directions exist, and derivatives through both are exact, to second order where one of them is iterative.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from flowppl import _tree
from flowppl._array import Array, namespace
from flowppl._tree import Tree

COSTS = ("parallel", "iterative", "sequential")  # from cheap to dear


class Draws(Protocol):
    """Where initial values come from: the adapter's own random numbers, dtype and device."""

    def full(self, shape: tuple[int, ...], value: float) -> Array: ...
    def normal(self, shape: tuple[int, ...]) -> Array: ...
    def uniform(self, shape: tuple[int, ...]) -> Array: ...


@dataclasses.dataclass(frozen=True)
class Constant:
    """Initializer: every entry is ``value``."""

    value: float = 0.0

    def __call__(self, draws: Draws, shape: tuple[int, ...]) -> Array:
        return draws.full(shape, self.value)


@dataclasses.dataclass(frozen=True)
class Normal:
    """Initializer: independent normal entries of mean 0 and standard deviation ``scale``."""

    scale: float

    def __call__(self, draws: Draws, shape: tuple[int, ...]) -> Array:
        return self.scale * draws.normal(shape)


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Initializer: independent uniform entries between ``-bound`` and ``bound``."""

    bound: float

    def __call__(self, draws: Draws, shape: tuple[int, ...]) -> Array:
        return self.bound * (2 * draws.uniform(shape) - 1)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """The declaration of one trained array: its shape, and how its first value is drawn."""

    shape: tuple[int, ...]
    initializer: Callable[[Draws, tuple[int, ...]], Array] = Constant(0.0)


class Bijection(abc.ABC):
    """The base of all bijections; the contract is the text at the head of this module.

    A subclass is a frozen dataclass. It defines ``parameters``, ``forward`` and ``inverse``, and where they apply
    ``constants``, ``context_dim`` and the two costs. A bijection of vectors has a field ``dim``; others
    define ``x_shape`` and ``y_shape``.
    """

    context_dim: int = 0
    """The size of the context; 0 for an unconditional bijection."""

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one event on the base side."""
        return (self.dim,)  # type: ignore[attr-defined]

    @property
    def y_shape(self) -> tuple[int, ...]:
        """The shape of one event on the data side."""
        return self.x_shape

    @property
    def forward_cost(self) -> str:
        """What ``forward`` costs.

        ``"parallel"`` is one pass, ``"iterative"`` a fixed number of steps, ``"sequential"`` one pass per coordinate.
        """
        return "parallel"

    @property
    def inverse_cost(self) -> str:
        """As ``forward_cost``, for ``inverse``."""
        return "parallel"

    @abc.abstractmethod
    def parameters(self) -> Tree:
        """The declared parameters: a tree of :class:`Parameter`; no key contains a dot."""

    def constants(self) -> Tree:
        """Boolean and integer NumPy arrays that are not trained, under names that no parameter has."""
        return {}

    @abc.abstractmethod
    def forward(self, params: Tree, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        """Map x to y; return ``(y, log_det)``, the log determinant being that of x -> y."""

    @abc.abstractmethod
    def inverse(self, params: Tree, y: Array, context: Array | None = None) -> tuple[Array, Array]:
        """Map y to x; return ``(x, log_det)``, the log determinant being that of y -> x."""


def initialize(bijection: Bijection, draws: Draws) -> Tree:
    """Draw first values for the declared parameters, in the order of their declaration."""
    return _tree.map_tree(lambda p: p.initializer(draws, p.shape), bijection.parameters())


def check_event(bijection: Bijection, event: Array, shape: tuple[int, ...], context: Array | None) -> None:
    """Raise ValueError unless ``event`` ends in ``shape`` and the context is what ``bijection`` needs."""
    namespace(event)  # raises TypeError for what is not an array
    found = tuple(event.shape)
    if found[len(found) - len(shape) :] != shape:
        raise ValueError(f"{type(bijection).__name__} expected an array whose shape ends in {shape}, got shape {found}")
    size = bijection.context_dim
    if size == 0 and context is not None:
        given = context.shape[-1] if context.ndim else 1
        raise ValueError(
            f"this {type(bijection).__name__} is unconditional (context_dim=0) but was given a context of shape "
            f"{tuple(context.shape)}; build it with context_dim={given}"
        )
    if size > 0 and context is None:
        raise ValueError(
            f"this {type(bijection).__name__} needs a context: pass an array whose last axis has size {size}"
        )
    if context is not None and (context.ndim == 0 or context.shape[-1] != size):
        raise ValueError(
            f"{type(bijection).__name__} expected a context whose last axis has size {size}, "
            f"got shape {tuple(context.shape)}"
        )


def check_sizes(owner: str, *, at_least: int = 1, **sizes: int) -> None:
    """Raise ValueError unless all ``sizes`` are integers of at least ``at_least``."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
            raise ValueError(f"{owner}: {name} must be an integer of at least {at_least}, got {value!r}")


def derived() -> Any:
    """A field of a bijection that follows from the others: no argument, not compared, not printed."""
    return dataclasses.field(init=False, repr=False, compare=False)


def assign(bijection: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass, within its ``__post_init__`` only."""
    for name, value in values.items():
        object.__setattr__(bijection, name, value)


def _slowest(costs: Iterable[str]) -> str:
    return max(costs, key=COSTS.index, default="parallel")


@dataclasses.dataclass(frozen=True)
class Chain(Bijection):
    r"""Bijections one after the other: :math:`f = f_n \circ \dots \circ f_1`.

    ``forward`` applies the first of the list first. The log determinants add up. All parts that take a
    context take the same one.

    Args:
        bijections: the parts, in the order in which ``forward`` applies them. Each one's ``y_shape``
            must be the next one's ``x_shape``.

    Raises:
        ValueError: if the list is empty, or shapes or context sizes do not fit together.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.Chain([fp.Coupling(4), fp.Permute((3, 2, 1, 0))])
        >>> flow.x_shape, sorted(flow.parameters())
        ((4,), ['0'])
    """

    bijections: Sequence[Bijection]

    def __post_init__(self):
        assign(self, bijections=tuple(self.bijections))
        if not self.bijections:
            raise ValueError("Chain: bijections must not be empty")
        for i, part in enumerate(self.bijections):
            if not isinstance(part, Bijection):
                raise TypeError(f"Chain: bijections[{i}] must be a Bijection, got {type(part).__name__}")
        for i, (first, second) in enumerate(zip(self.bijections, self.bijections[1:], strict=False)):
            if first.y_shape != second.x_shape:
                raise ValueError(
                    f"Chain: bijections[{i}] ({type(first).__name__}) gives events of shape {first.y_shape}, but "
                    f"bijections[{i + 1}] ({type(second).__name__}) takes events of shape {second.x_shape}"
                )
        sizes = {part.context_dim for part in self.bijections} - {0}
        if len(sizes) > 1:
            raise ValueError(f"Chain: all parts that take a context must take the same one, got sizes {sorted(sizes)}")

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return max(part.context_dim for part in self.bijections)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.bijections[0].x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.bijections[-1].y_shape

    @property
    def forward_cost(self) -> str:
        return _slowest(part.forward_cost for part in self.bijections)

    @property
    def inverse_cost(self) -> str:
        return _slowest(part.inverse_cost for part in self.bijections)

    def parameters(self) -> Tree:
        declared = {str(i): part.parameters() for i, part in enumerate(self.bijections)}
        return {key: tree for key, tree in declared.items() if tree}

    def constants(self) -> Tree:
        declared = {str(i): part.constants() for i, part in enumerate(self.bijections)}
        return {key: tree for key, tree in declared.items() if tree}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        total = None
        for i, part in enumerate(self.bijections):
            x, log_det = part.forward(params.get(str(i), {}), x, context if part.context_dim else None)
            total = log_det if total is None else total + log_det
        return x, total

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        total = None
        for i, part in reversed(list(enumerate(self.bijections))):
            y, log_det = part.inverse(params.get(str(i), {}), y, context if part.context_dim else None)
            total = log_det if total is None else total + log_det
        return y, total


@dataclasses.dataclass(frozen=True)
class Invert(Bijection):
    """A bijection with its two directions exchanged, over the same parameters.

    ``Invert(b).forward`` is ``b.inverse``. A masked autoregressive flow is an inverted inverse
    autoregressive flow, for example.

    Args:
        bijection: the bijection to turn around.

    Example:
        >>> import flowppl as fp
        >>> fp.Autoregressive(8).forward_cost, fp.Invert(fp.Autoregressive(8)).forward_cost
        ('parallel', 'sequential')
    """

    bijection: Bijection

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijection.context_dim

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.bijection.y_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.bijection.x_shape

    @property
    def forward_cost(self) -> str:
        return self.bijection.inverse_cost

    @property
    def inverse_cost(self) -> str:
        return self.bijection.forward_cost

    def parameters(self) -> Tree:
        return self.bijection.parameters()

    def constants(self) -> Tree:
        return self.bijection.constants()

    def forward(self, params, x, context=None):
        return self.bijection.inverse(params, x, context)

    def inverse(self, params, y, context=None):
        return self.bijection.forward(params, y, context)


@dataclasses.dataclass(frozen=True)
class Repeat(Bijection):
    """``num`` layers of one kind, each with weights of its own, stacked into few large arrays.

    Parameters have the names of one layer and a leading axis of length ``num`` (after batch axes, if any). Optimisers,
    checkpoints and compilers prefer this to many small arrays. Constants are shared by the layers.

    Args:
        bijection: one layer; its ``x_shape`` and ``y_shape`` must be equal.
        num: the number of layers, at least 1.
        scan: run the layers in a compiled loop (JAX) instead of unrolling them. Compilation then takes the same time
            for any number of layers; the unrolled form runs a little faster. ``None`` unrolls up to 8 layers.

    Raises:
        ValueError: if ``num`` < 1 or the layer changes the shape of the event.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.Repeat(fp.ElementwiseAffine(3), 5)
        >>> flow.parameters()["loc"].shape
        (5, 3)
    """

    bijection: Bijection
    num: int
    scan: bool | None = None
    _ranks: Tree = derived()

    def __post_init__(self):
        check_sizes("Repeat", num=self.num)
        assign(self, _ranks=_tree.map_tree(lambda parameter: len(parameter.shape), self.bijection.parameters()))
        if self.bijection.x_shape != self.bijection.y_shape:
            raise ValueError(
                f"Repeat: the layer must keep the shape of the event, but {type(self.bijection).__name__} "
                f"maps {self.bijection.x_shape} to {self.bijection.y_shape}"
            )

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijection.context_dim

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.bijection.x_shape

    @property
    def forward_cost(self) -> str:
        return self.bijection.forward_cost

    @property
    def inverse_cost(self) -> str:
        return self.bijection.inverse_cost

    def parameters(self) -> Tree:
        return _tree.map_tree(
            lambda p: Parameter((self.num, *p.shape), _Stacked(p.initializer)), self.bijection.parameters()
        )

    def constants(self) -> Tree:
        return self.bijection.constants()

    def forward(self, params, x, context=None):
        return self._run(self.bijection.forward, params, x, context, reverse=False)

    def inverse(self, params, y, context=None):
        return self._run(self.bijection.inverse, params, y, context, reverse=True)

    def _run(self, apply, params, event, context, reverse):
        check_event(self, event, self.x_shape, context)
        xp = namespace(event)

        def layers_first(rank, leaf):
            return xp.moveaxis(leaf, leaf.ndim - rank - 1, 0)

        stacked = _tree.map_tree(layers_first, self._ranks, params)
        columns = _tree.map_tree(lambda leaf: xp.unstack(leaf, axis=0), stacked)

        def step(carry, layer):
            event, total = carry
            event, log_det = apply(_tree.replace(params, layer), event, context)
            return event, log_det if total is None else total + log_det

        # The first step gives the carry the shapes and the dtype that it keeps.
        order = list(reversed(range(self.num))) if reverse else list(range(self.num))
        carry = step((event, None), _tree.map_tree(lambda column: column[order[0]], columns))
        if self.num > 8 if self.scan is None else self.scan:
            rest = slice(None, -1) if reverse else slice(1, None)
            return xp.scan(step, carry, _tree.map_tree(lambda leaf: leaf[rest, ...], stacked), self.num - 1, reverse)
        for i in order[1:]:
            carry = step(carry, _tree.map_tree(lambda column, i=i: column[i], columns))
        return carry


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """Initializer of a stack: one independent draw for each layer."""

    initializer: Callable[[Draws, tuple[int, ...]], Array]

    def __call__(self, draws, shape):
        layers = [self.initializer(draws, shape[1:]) for _ in range(shape[0])]
        return namespace(layers[0]).stack(layers)


def num_parameters(bijection: Bijection) -> int:
    """The number of trained scalars of a bijection.

    Example:
        >>> import flowppl as fp
        >>> fp.num_parameters(fp.ElementwiseAffine(3))
        6
    """
    return sum(math.prod(p.shape) for _, p in _tree.leaves(bijection.parameters()))


def inverted(bijection: Bijection) -> Bijection:
    """``Invert(bijection)``, or the inner bijection if it is inverted already."""
    return bijection.bijection if isinstance(bijection, Invert) else Invert(bijection)


__all__ = [
    "Bijection",
    "Chain",
    "Constant",
    "Draws",
    "Invert",
    "Normal",
    "Parameter",
    "Repeat",
    "Uniform",
    "initialize",
    "num_parameters",
]
