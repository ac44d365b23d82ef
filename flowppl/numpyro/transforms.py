"""Bijections as NumPyro transforms, whose weights are the leaves of a pytree."""

from __future__ import annotations

import functools
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from flowppl._arrays import tree as _tree
from flowppl._arrays.tree import Tree
from flowppl.bijections.combine import inverted
from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, check_given_context, initialize
from flowppl.checks import describe


class _Draws:
    """First values in the default float dtype, cut from two long arrays; zeros, counted in ``taken``, without them."""

    def __init__(self, long_arrays=None):
        self.long_arrays = long_arrays
        self.taken = {"normal": 0, "uniform": 0}

    def _take(self, kind, shape):
        begin = self.taken[kind]
        self.taken[kind] = end = begin + math.prod(shape)
        return jnp.zeros(shape) if self.long_arrays is None else self.long_arrays[kind][begin:end].reshape(shape)

    def full(self, shape, value):
        return jnp.full(shape, value, dtype=float)

    def normal(self, shape):
        return self._take("normal", shape)

    def uniform(self, shape):
        return self._take("uniform", shape)


def check_key(owner: str, key: Any, name: str = "rng_key", advice: str = "") -> None:
    """Raise TypeError unless this is one key of JAX, of the new kind or the old.

    Args:
        owner: whose argument it is, or how to write the call.
        key: what was given.
        name: the name of the argument.
        advice: what to do, beside giving a key.
    """
    if "(key, " in owner:
        advice = "a key comes first: " + owner.replace("(key, ", "(jax.random.key(0), ")
    end = f"; {advice}" if advice else ""
    if not isinstance(key, jax.Array | np.ndarray):
        what = "a function" if callable(key) else describe(key)
        seed = key if isinstance(key, int) and not isinstance(key, bool) else 0
        raise TypeError(f"{owner}: {name} must be a key such as jax.random.key({seed}), got {what}{end}")
    shape = () if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else (2,)
    if key.shape != shape or (shape and key.dtype != jnp.uint32):
        raise TypeError(
            f"{owner}: {name} must be one key such as jax.random.key(0), got an array of shape {key.shape} and type "
            f"{key.dtype}{end}"
        )


def init_params(bijection: Bijection, key: jax.Array) -> Tree:
    """First weights of a bijection, drawn in one compiled call."""
    check_bijection(bijection)
    check_key(type(bijection).__name__, key, "key")
    return draw_params(bijection, key)


@functools.partial(jax.jit, static_argnums=0)
def draw_params(bijection, key):
    # To compile a draw of its own for each weight would take three times as long.
    counter = _Draws()
    jax.eval_shape(lambda: initialize(bijection, counter))
    draws = {"normal": jax.random.normal, "uniform": jax.random.uniform}
    keys = dict(zip(draws, jax.random.split(key), strict=True))
    long_arrays = {kind: draw(keys[kind], (counter.taken[kind],), dtype=float) for kind, draw in draws.items()}
    return initialize(bijection, _Draws(long_arrays))


# Outside of ``jax.jit`` each operation on arrays of each shape is a program of its own, which takes some 20 ms to
# compile, whatever its size. So keys and first weights that have a value are made by NumPy.


def numpy_rng(key: jax.Array) -> np.random.Generator:
    """NumPy's random numbers for a key, which must have a value."""
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def split_key(key: jax.Array, num: int) -> list[jax.Array]:
    """So many keys made of one, as ``jax.random.split`` does it, but without a program."""
    return [as_key(seed) for seed in seeds(numpy_rng(key), num)]


def seeds(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """The data of keys for :func:`as_key`, in an array of the given shape with one more axis."""
    return rng.integers(2**32, size=(*shape, 2), dtype=np.uint32)


def as_key(seed: Any) -> jax.Array:
    """The key of one of :func:`seeds`."""
    return jax.random.wrap_key_data(seed, impl="threefry2x32")


def default_dtype() -> np.dtype:
    """That of floats: the one of two that JAX is set to."""
    return np.dtype(jax.dtypes.canonicalize_dtype(float))


class _NumPyDraws:
    def __init__(self, rng: np.random.Generator):
        dtype = default_dtype()
        self.full = functools.partial(np.full, dtype=dtype)
        self.normal = functools.partial(rng.standard_normal, dtype=dtype)
        self.uniform = functools.partial(rng.random, dtype=dtype)


def first_params(bijection: Bijection, rng: np.random.Generator) -> Tree:
    """First weights of a bijection, drawn by NumPy, in the default float dtype."""
    return initialize(bijection, _NumPyDraws(rng))


@functools.lru_cache(maxsize=256)
def constants_of(bijection: Bijection) -> Tree:
    return bijection.constants()


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply_direction(bijection, direction, params, event, context):
    """One direction of a bijection, as one program: outside of jit each little operation would be compiled apart."""
    return getattr(bijection, direction)(_tree.merge(params, constants_of(bijection)), event, context)


class FlowTransform(Transform):
    """A bijection with its weights, as a NumPyro transform.

    ``y = transform(x)`` takes noise x to data y, as sampling does; ``x = transform.inv(y)`` takes data back, as
    scoring does. An array of events x has the shape ``(..., *bijection.x_shape)``, for most bijections ``(..., dim)``;
    y has the shape ``(..., *bijection.y_shape)``, and a log determinant, which is summed over the event, ``(...)``.
    The axes in front, ``...``, are batch axes.

    A transform with ``bijection.context_dim > 0`` needs a context: :meth:`condition` gives it one.

    The weights are leaves of the pytree: ``jax.grad`` with respect to a transform reaches them, ``jax.jit`` does not
    bake them in. Inside :class:`FlowDistribution` a sample with its density, and the density of fresh data, cost one
    pass each. Inside a plain ``TransformedDistribution`` the density of fresh data costs two passes: NumPyro asks for
    the inverse and for the determinant apart.

    Args:
        bijection: any :class:`flowppl.Bijection`.
        params: its weights, a nested dict of arrays; :meth:`init` draws them.
        context: what a conditional bijection is given; see :meth:`condition`.

    Raises:
        TypeError: if ``bijection`` is no bijection.
        ValueError: if ``params`` lacks a weight or one has a wrong shape.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import FlowTransform
        >>> transform = FlowTransform.init(jax.random.key(0), fp.realnvp(3))
        >>> x = jnp.ones(3)
        >>> bool(jnp.allclose(transform.inv(transform(x)), x))
        True
    """

    bijection: Bijection
    params: Tree
    context: jax.Array | None

    def __init__(self, bijection: Bijection, params: Tree, context: jax.Array | None = None) -> None:
        check_bijection(bijection)
        check_params(bijection, params)
        self.bijection = bijection
        self.params = params
        self.context = context

    @classmethod
    def init(cls, key: jax.Array, bijection: Bijection) -> Self:
        """A transform with first weights drawn by ``key``, a key of ``jax.random``."""
        return cls._drawn(key, bijection)

    @classmethod
    def _drawn(cls, key: jax.Array, bijection: Bijection) -> Self:
        return cls._of(bijection, init_params(bijection, key))

    @classmethod
    def _of(cls, bijection: Bijection, params: Tree, context: jax.Array | None = None) -> Self:
        transform = cls.__new__(cls)
        FlowTransform.__init__(transform, bijection, params, context)
        return transform

    def condition(self, context: ArrayLike) -> Self:
        """This transform, over the same weights, at a context.

        Args:
            context: of shape ``(..., bijection.context_dim)``; its batch axes broadcast with those of x and y. A
                transform that takes no context (``context_dim=0``) is the same at all of them, and is returned as it
                is.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> import numpyro.distributions as dist
            >>> from flowppl.numpyro import planar
            >>> base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
            >>> transform = planar(jax.random.key(0), 2, context_dim=3)
            >>> flow = dist.TransformedDistribution(base, transform.condition(jnp.ones((5, 3))))
            >>> flow.sample(jax.random.key(1)).shape
            (5, 2)
        """
        return self._at(context) if self.bijection.context_dim else self

    def _at(self, context: ArrayLike) -> Self:
        """As :meth:`condition`, but a transform that expects no context raises ValueError."""
        context = jnp.asarray(context)
        check_given_context(self.bijection, context)
        return self._of(self.bijection, self.params, context)

    @property
    def domain(self) -> constraints.Constraint:
        """Where x lies: the real line, or an interval, in every entry of an event."""
        return _interval(self.bijection.x_support, self.bijection.x_shape)

    @property
    def codomain(self) -> constraints.Constraint:
        """Where y lies: the real line, or an interval, in every entry of an event."""
        return _interval(self.bijection.y_support, self.bijection.y_shape)

    @property
    def inv(self) -> FlowTransform:
        """The transform in the other direction, y to x, over the same weights and at the same context."""
        return FlowTransform(inverted(self.bijection), self.params, self.context)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """y, of shape ``(..., *bijection.y_shape)``, for x of shape ``(..., *bijection.x_shape)``."""
        return self.forward_and_log_det(x)[0]

    def forward_and_log_det(self, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """``(y, log_det)`` in one pass, the log determinant being that of x -> y.

        x has the shape ``(..., *bijection.x_shape)``, y ``(..., *bijection.y_shape)``, and log_det ``(...)``. The batch
        axes ``...`` of the result are those of x, broadcast with those of the context and of the weights.
        """
        return apply_direction(self.bijection, "forward", self.params, jnp.asarray(x), self.context)

    def inverse_and_log_det(self, y: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """``(x, log_det)`` in one pass, the log determinant being that of y -> x.

        y has the shape ``(..., *bijection.y_shape)``, x ``(..., *bijection.x_shape)``, and log_det ``(...)``. The batch
        axes ``...`` of the result are those of y, broadcast with those of the context and of the weights.
        """
        return apply_direction(self.bijection, "inverse", self.params, jnp.asarray(y), self.context)

    @property
    def _tree(self) -> Tree:
        return _tree.merge(self.params, constants_of(self.bijection))

    def call_with_intermediates(self, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """As :meth:`forward_and_log_det`: NumPyro keeps the log determinant for the density of its own sample."""
        return self.forward_and_log_det(x)

    def _inverse(self, y: ArrayLike) -> jax.Array:
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x: ArrayLike, y: ArrayLike, intermediates: jax.Array | None = None) -> jax.Array:
        """The log determinant of x -> y, of shape ``(...)``, for ``y = transform(x)``, by the cheaper direction."""
        if intermediates is not None:
            return intermediates
        if self.bijection.forward_cost == "parallel":
            return self.forward_and_log_det(x)[1]
        return -self.inverse_and_log_det(y)[1]

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of y for x of this shape: ``(..., *bijection.x_shape)`` gives ``(..., *bijection.y_shape)``."""
        return self._mapped_shape(shape, self.bijection.x_shape, self.bijection.y_shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of x for y of this shape: ``(..., *bijection.y_shape)`` gives ``(..., *bijection.x_shape)``."""
        return self._mapped_shape(shape, self.bijection.y_shape, self.bijection.x_shape)

    def _mapped_shape(self, shape: tuple[int, ...], event: tuple[int, ...], mapped: tuple[int, ...]) -> tuple[int, ...]:
        batch = shape[: len(shape) - len(event)]
        for path, parameter in _tree.leaves(self.bijection.parameters()):  # weights may carry batch axes too
            leaf: Any = functools.reduce(lambda tree, key: tree[key], path, self.params)
            batch = jnp.broadcast_shapes(batch, leaf.shape[: leaf.ndim - len(parameter.shape)])
        if self.context is not None:
            batch = jnp.broadcast_shapes(batch, self.context.shape[:-1])
        return (*batch, *mapped)

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.params, self.context), (("params", "context"), {"bijection": self.bijection})

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        if not isinstance(other, FlowTransform) or self.bijection != other.bijection:
            return False
        ours, theirs = (jax.tree.leaves((t.params, t.context)) for t in (self, other))
        equal = len(ours) == len(theirs) and all(jnp.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        return bool(equal) if static else jnp.asarray(equal)

    def __repr__(self) -> str:
        context = "" if self.context is None else f", context={tuple(self.context.shape)}"
        return f"{type(self).__name__}({self.bijection!r}{context})"


def _interval(support: tuple[float, float], shape: tuple[int, ...]) -> constraints.Constraint:
    """The constraint of events of this shape with entries between two bounds."""
    named = {REAL_LINE: constraints.real, (0.0, math.inf): constraints.positive, (0.0, 1.0): constraints.unit_interval}
    return constraints.independent(named.get(support) or constraints.interval(*support), len(shape))


def check_params(bijection: Bijection, params: Tree) -> None:
    """Raise ValueError unless the tree holds the declared weights and no others."""
    declared = {".".join(path): leaf for path, leaf in _tree.leaves(bijection.parameters())}
    found = {".".join(path): leaf for path, leaf in _tree.leaves(params)}
    if declared.keys() != found.keys():
        missing, extra = sorted(declared.keys() - found.keys()), sorted(found.keys() - declared.keys())
        raise ValueError(
            f"params do not fit {type(bijection).__name__}: missing {missing}, unexpected {extra}; "
            "draw them with FlowTransform.init(key, bijection)"
        )
    for name, parameter in declared.items():
        shape = getattr(found[name], "shape", None)  # placeholders of jax have none
        if isinstance(found[name], bool | int | float | list | tuple):
            raise ValueError(f"params[{name}] must be an array, got {type(found[name]).__name__}")
        if shape is not None and tuple(shape[len(shape) - len(parameter.shape) :]) != parameter.shape:
            raise ValueError(f"params[{name}] must have a shape that ends in {parameter.shape}, got {tuple(shape)}")
