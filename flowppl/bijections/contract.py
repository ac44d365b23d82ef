r"""What a bijection is: the contract that all flows keep.

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
or the identity up to a permutation or a rotation, so that a stack of any depth starts at its base distribution.

**Scores.** ``push_score`` takes along, beside x, the gradient s of the logarithm of a density at x, and returns that of
the density of y = f(x) beside what ``forward`` does. With the Jacobian J of f,

.. math::
    s' = J^{-\top} \big(s - \nabla_x \log|\det J|\big),

so that a density can be followed along a stack of maps without ever going back.

**Promises.** The dtype and the device of the result are those of the input and the weights. Nothing is
mutated, nothing is remembered, no branch depends on a value of an array, and no value leaves the device. Both
directions exist, and derivatives through both are exact, to second order where one of them is iterative.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

from flowppl._arrays import tree as _tree
from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.declare import Draws

REAL_LINE = (-math.inf, math.inf)
OTHER = {"forward": "inverse", "inverse": "forward"}
COSTS = ("parallel", "iterative", "sequential")  # from cheap to dear


def slowest(costs: Iterable[str]) -> str:
    """The dearest of some costs."""
    return max(costs, key=COSTS.index, default="parallel")


class Bijection(abc.ABC):
    """The base of all bijections; the contract is the text at the head of this module.

    A subclass is a frozen dataclass. It defines ``parameters``, ``forward`` and ``inverse``, and where they apply
    ``constants``, ``context_dim`` and the two costs. A bijection of vectors has a field ``dim``; others
    define ``x_shape`` and ``y_shape``.
    """

    context_dim: int = 0
    """The size of the context; 0 for an unconditional bijection."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward", "inverse"):
            if name in vars(cls):
                setattr(cls, name, _naming_what_is_missing(vars(cls)[name]))

    @property
    def x_shape(self) -> tuple[int, ...]:
        """The shape of one event on the base side."""
        return (self.dim,)  # type: ignore[attr-defined]

    @property
    def y_shape(self) -> tuple[int, ...]:
        """The shape of one event on the data side."""
        return self.x_shape

    @property
    def x_support(self) -> tuple[float, float]:
        """The open interval in which every entry of x lies."""
        return REAL_LINE

    @property
    def y_support(self) -> tuple[float, float]:
        """The open interval in which every entry of y lies."""
        return REAL_LINE

    @property
    def forward_cost(self) -> str:
        """What ``forward`` costs.

        ``"parallel"`` is one pass, ``"iterative"`` a fixed number of steps, ``"sequential"`` one small step per
        coordinate, or per group of coordinates that do not depend on each other.
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

    def prepare(self, params: Tree) -> Tree:
        """``params`` with what follows from them alone worked out, such as masked weights.

        :class:`flowppl.Repeat` calls it once for the weights of all its layers, which have the axis of the layers in
        front of their own. Each layer's part of the result is then what ``forward`` and ``inverse`` are given, and they
        must give what they give without it. Names and shapes stay; an empty branch may be added, as a note that the
        work is done. By default nothing is worked out.
        """
        return params

    @abc.abstractmethod
    def forward(self, params: Tree, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        """Map x to y; return ``(y, log_det)``, the log determinant being that of x -> y."""

    @abc.abstractmethod
    def inverse(self, params: Tree, y: Array, context: Array | None = None) -> tuple[Array, Array]:
        """Map y to x; return ``(x, log_det)``, the log determinant being that of y -> x."""

    def push_score(
        self, params: Tree, x: Array, score: Array, context: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Map x to y, and the gradient of a log density at x to that of the mapped density at y.

        By default it is found through the inverse; a bijection whose Jacobian is easily inverted needs none, and has a
        version of its own. It takes the derivatives of a library: torch's or JAX's.

        Args:
            params: the weights and constants.
            x: events.
            score: the gradient of the log density at each, of the shape of ``x``.
            context: as for ``forward``.

        Returns:
            ``(y, log_det, score)``, the first two as ``forward`` gives them. The score, of the shape of ``y``, is a
            constant of differentiation.
        """
        y, log_det = self.forward(params, x, context)
        xp, fixed = namespace(y), held(params)
        (x, back), pull = xp.vjp(lambda y: self.inverse(fixed, y, context), xp.stop_gradient(y))
        score = xp.broadcast_to(xp.stop_gradient(score), x.shape)
        return y, log_det, pull(score, xp.ones_like(back))[0]

    def pull_back(
        self, direction: str, params: Tree, image: Array, cotangents: tuple[Array, Array], context: Array | None = None
    ) -> tuple[Array, Tree, Array, Array | None]:
        r"""Go back from an image to the event, and take derivatives along, which needs nothing but the image.

        With g, one of the two directions, and a function L of what it gives, :math:`(z, \ell) = g(\theta, v, c)` of the
        weights, an event and a context, ``image`` is z and the cotangents are :math:`(\partial L / \partial z,
        \partial L / \partial \ell)`. By default v is found by the other direction, and g is run once more. It takes
        the derivatives of a library: torch's or JAX's.

        Args:
            direction: ``"forward"`` or ``"inverse"``: which of the two gave the image.
            params: the weights and constants.
            image: what it gave, with all batch axes.
            cotangents: the derivatives of L with respect to the image and to the log determinant, of their shapes.
            context: as for ``forward``.

        Returns:
            The event v, with the batch axes of the image, and the derivatives of L with respect to the weights (a tree
            like ``params``, with None for constants), to v and to the context.
        """
        event, _ = getattr(self, OTHER[direction])(params, image, context)
        _, pull = namespace(image).pullback(getattr(self, direction), params, event, context)
        return event, *pull(*cotangents)

    def init_from(self, params: Tree, y: Array, context: Array | None = None) -> Tree:
        """The trained part of ``params``, with what is to be set from first data set from the batch ``y``.

        Layers such as :class:`flowppl.ActNorm` start from the data they see first. That is this explicit step, never a
        side effect of a call. Most bijections have nothing to set.
        """
        return _tree.select(self.parameters(), params)


def _naming_what_is_missing(direction: Callable[..., Any]) -> Callable[..., Any]:
    """A direction of a bijection that raises ValueError, with the names, for a tree without some of the weights."""

    @functools.wraps(direction)
    def named(self: Bijection, params: Tree, event: Array, context: Array | None = None) -> Any:
        try:
            return direction(self, params, event, context)
        except KeyError:
            check_tree(self, params)
            raise
        except (TypeError, AttributeError):
            if not isinstance(params, dict):
                check_tree(self, params)
            raise
        except RuntimeError as error:  # of torch, whose products take one dtype
            declared = {path for path, _ in _tree.leaves(self.parameters())}
            weights = [leaf for path, leaf in _tree.leaves(params) if path in declared]
            tell_dtypes(type(self).__name__, error, event=[event], context=[context], weights=weights)
            raise

    return named


def tell_dtypes(owner: str, error: Exception, **given: Iterable[Array | None]) -> None:
    """Raise TypeError if ``error`` is about arrays of several dtypes, and these are such."""
    found = {name: {array.dtype for array in arrays if array is not None} for name, arrays in given.items()}
    is_about_them = "dtype" in str(error) or "scalar type" in str(error)  # the latter within torch.vmap
    if is_about_them and len(set().union(*found.values())) > 1:
        listed = ", ".join(
            f"{name}: {' and '.join(sorted(map(str, dtypes)))}" for name, dtypes in found.items() if dtypes
        )
        raise TypeError(
            f"{owner} takes arrays of one dtype, got {listed}; convert the data or the flow, as by "
            "x.to(torch.float64) or flow.to(torch.float32)"
        ) from error


def check_tree(bijection: Bijection, params: Tree) -> None:
    """Raise unless ``params`` has all weights and constants of ``bijection``.

    Raises:
        TypeError: if it is no dict.
        ValueError: if one is missing.
    """
    name = type(bijection).__name__
    if not isinstance(params, dict):
        raise TypeError(f"{name}: params must be a dict of arrays, got {type(params).__name__}")
    found = {path for path, _ in _tree.leaves(params)}
    for kind, declared in (("weights", bijection.parameters()), ("constants", bijection.constants())):
        missing = [".".join(path) for path, _ in _tree.leaves(declared) if path not in found]
        if missing:
            raise ValueError(
                f"{name}: params lacks the {kind} {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; give "
                "all that parameters() and constants() declare, in one tree"
            )


def initialize(bijection: Bijection, draws: Draws) -> Tree:
    """Draw first values for the declared parameters, in the order of their declaration."""
    return _tree.map_tree(lambda p: p.initializer(draws, p.shape), bijection.parameters())


def held(params: Tree) -> Tree:
    """``params`` as constants of automatic differentiation."""
    return _tree.map_tree(lambda leaf: namespace(leaf).stop_gradient(leaf), params)


def added(first: Array | None, second: Array | None) -> Array | None:
    """The sum of two cotangents, of which ``None`` is zero."""
    return second if first is None else first if second is None else first + second


def check_bijection(value: Any) -> None:
    """Raise TypeError unless ``value`` is a bijection."""
    if not isinstance(value, Bijection):
        what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)[:80]
        raise TypeError(
            f"expected a flowppl.Bijection, such as flowppl.realnvp(3) or flowppl.make_flow('realnvp', 3), got {what}"
        )


def check_standard_base(bijection: Bijection) -> None:
    """Raise ValueError unless any real number, as of a standard normal, may go into ``bijection``."""
    if bijection.x_support != REAL_LINE:
        raise ValueError(
            f"this {type(bijection).__name__} takes values in {bijection.x_support} only, but its base distribution, "
            "such as the standard normal, has others; give the flow a base distribution on that interval"
        )


def check_event(bijection: Bijection, event: Array, shape: tuple[int, ...], context: Array | None) -> None:
    """Raise unless ``event`` is an array whose shape ends in ``shape`` and the context is what ``bijection`` needs.

    Raises:
        TypeError: for an event or context that is no array of real numbers.
        ValueError: for one of a wrong shape, or a context that is missing or too much.
    """
    _check_array(bijection, "event", event)
    found = tuple(event.shape)
    if found[len(found) - len(shape) :] != shape:
        raise ValueError(f"{type(bijection).__name__} expected an array whose shape ends in {shape}, got shape {found}")
    check_given_context(bijection, context)
    size = bijection.context_dim
    if size > 0 and context is None:
        raise ValueError(
            f"this {type(bijection).__name__} needs a context: pass an array whose last axis has size {size}, to a "
            "transform by transform.condition(context)"
        )


def check_given_context(bijection: Bijection, context: Array | None) -> None:
    """Raise as :func:`check_event` for a context that is there and is not what ``bijection`` needs."""
    size = bijection.context_dim
    if context is not None:
        _check_array(bijection, "context", context)
    if size == 0 and context is not None:
        given = context.shape[-1] if context.ndim else 1
        raise ValueError(
            f"this {type(bijection).__name__} is unconditional (context_dim=0) but was given a context of shape "
            f"{tuple(context.shape)}; build it with context_dim={given}"
        )
    if context is not None and (context.ndim == 0 or context.shape[-1] != size):
        raise ValueError(
            f"{type(bijection).__name__} expected a context whose last axis has size {size}, "
            f"got shape {tuple(context.shape)}"
        )


def _check_array(bijection: Bijection, name: str, value: Any) -> None:
    try:
        xp = namespace(value)
    except TypeError as error:
        raise TypeError(f"{type(bijection).__name__}: {name}: {error}") from None
    if xp.isdtype(value.dtype, "complex floating"):
        raise TypeError(f"{type(bijection).__name__}: {name} must be real, got {value.dtype}")


def num_parameters(bijection: Bijection) -> int:
    """The number of trained scalars of a bijection.

    Example:
        >>> import flowppl as fp
        >>> fp.num_parameters(fp.ElementwiseAffine(3))
        6
    """
    return sum(math.prod(p.shape) for _, p in _tree.leaves(bijection.parameters()))
