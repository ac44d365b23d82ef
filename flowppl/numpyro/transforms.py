"""Bijections as NumPyro transforms, whose weights are the leaves of a pytree."""

from __future__ import annotations

import functools
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from flowppl._arrays import tree as _tree
from flowppl.bijections.combine import inverted
from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, initialize
from flowppl.recipes import NAMED_BIJECTIONS, NAMED_RECIPES


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


def init_params(bijection: Bijection, key) -> _tree.Tree:
    """First weights of a bijection, drawn in one compiled call."""
    check_bijection(bijection)
    return _init_params(bijection, key)


@functools.partial(jax.jit, static_argnums=0)
def _init_params(bijection, key):
    # To compile a draw of its own for each weight would take three times as long.
    counter = _Draws()
    jax.eval_shape(lambda: initialize(bijection, counter))
    draws = {"normal": jax.random.normal, "uniform": jax.random.uniform}
    keys = dict(zip(draws, jax.random.split(key), strict=True))
    long_arrays = {kind: draw(keys[kind], (counter.taken[kind],), dtype=float) for kind, draw in draws.items()}
    return initialize(bijection, _Draws(long_arrays))


@functools.lru_cache(maxsize=256)
def _constants(bijection: Bijection) -> _tree.Tree:
    return bijection.constants()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(bijection, direction, params, event, context):
    """One direction of a bijection, as one program: outside of jit each little operation would be compiled apart."""
    return getattr(bijection, direction)(_tree.merge(params, _constants(bijection)), event, context)


class FlowTransform(Transform):
    """A bijection with its weights, as a NumPyro transform.

    ``transform(x)`` samples, ``transform.inv(y)`` scores. The weights are leaves of the pytree: ``jax.grad`` with
    respect to a transform reaches them, ``jax.jit`` does not bake them in.

    Inside :class:`FlowDistribution` a sample with its density, and the density of fresh data, cost one pass each.
    Inside a plain ``TransformedDistribution`` the density of fresh data costs two passes: NumPyro asks for the
    inverse and for the determinant apart.

    Args:
        bijection: any :class:`flowppl.Bijection`.
        params: its weights, a nested dict of arrays; see :meth:`init`.
        context: what a conditional bijection is given; see :meth:`condition`.

    Raises:
        ValueError: if ``params`` lacks a weight or one has a wrong shape.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import FlowTransform
        >>> transform = FlowTransform.init(jax.random.key(0), fp.realnvp(3))
        >>> x = jnp.ones(3)
        >>> bool(jnp.allclose(transform.inv(transform(x)), x))
        True
    """

    def __init__(self, bijection: Bijection, params: _tree.Tree, context=None):
        check_bijection(bijection)
        check_params(bijection, params)
        self.bijection = bijection
        self.params = params
        self.context = context

    @classmethod
    def init(cls, key, *args, **kwargs) -> FlowTransform:
        """A transform with first weights drawn by ``key``; the other arguments are the class's own."""
        bijection = cls._bijection(*args, **kwargs)
        return cls._of(bijection, init_params(bijection, key))

    @staticmethod
    def _bijection(bijection: Bijection) -> Bijection:
        return bijection

    @classmethod
    def _of(cls, bijection, params, context=None) -> FlowTransform:
        transform = cls.__new__(cls)
        FlowTransform.__init__(transform, bijection, params, context)
        return transform

    def condition(self, context) -> FlowTransform:
        """This transform at a context, an array whose last axis has size ``bijection.context_dim``."""
        return self._of(self.bijection, self.params, jnp.asarray(context))

    @property
    def domain(self):
        return _interval(self.bijection.x_support, self.bijection.x_shape)

    @property
    def codomain(self):
        return _interval(self.bijection.y_support, self.bijection.y_shape)

    @property
    def inv(self) -> FlowTransform:
        """The transform in the other direction, over the same weights."""
        return FlowTransform(inverted(self.bijection), self.params, self.context)

    def forward_and_log_det(self, x):
        """``(y, log_det)`` in one pass, the log determinant being that of x -> y."""
        return _apply(self.bijection, "forward", self.params, jnp.asarray(x), self.context)

    def inverse_and_log_det(self, y):
        """``(x, log_det)`` in one pass, the log determinant being that of y -> x."""
        return _apply(self.bijection, "inverse", self.params, jnp.asarray(y), self.context)

    @property
    def _tree(self):
        return _tree.merge(self.params, _constants(self.bijection))

    def __call__(self, x):
        return self.forward_and_log_det(x)[0]

    def call_with_intermediates(self, x):
        return self.forward_and_log_det(x)

    def _inverse(self, y):
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        if intermediates is not None:
            return intermediates
        if self.bijection.forward_cost == "parallel":
            return self.forward_and_log_det(x)[1]
        return -self.inverse_and_log_det(y)[1]

    def forward_shape(self, shape):
        return self._mapped_shape(shape, self.bijection.x_shape, self.bijection.y_shape)

    def inverse_shape(self, shape):
        return self._mapped_shape(shape, self.bijection.y_shape, self.bijection.x_shape)

    def _mapped_shape(self, shape, event, mapped):
        batch = shape[: len(shape) - len(event)]
        for path, parameter in _tree.leaves(self.bijection.parameters()):  # weights may carry batch axes too
            leaf: Any = functools.reduce(lambda tree, key: tree[key], path, self.params)
            batch = jnp.broadcast_shapes(batch, leaf.shape[: leaf.ndim - len(parameter.shape)])
        if self.context is not None:
            batch = jnp.broadcast_shapes(batch, self.context.shape[:-1])
        return (*batch, *mapped)

    def tree_flatten(self):
        return (self.params, self.context), (("params", "context"), {"bijection": self.bijection})

    def eq(self, other, static=False):
        if not isinstance(other, FlowTransform) or self.bijection != other.bijection:
            return False
        ours, theirs = (jax.tree.leaves((t.params, t.context)) for t in (self, other))
        equal = len(ours) == len(theirs) and all(jnp.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        return bool(equal) if static else jnp.asarray(equal)

    def __repr__(self):
        context = "" if self.context is None else f", context={tuple(self.context.shape)}"
        return f"{type(self).__name__}({self.bijection!r}{context})"


def _interval(support, shape):
    """The constraint of events of this shape with entries between two bounds."""
    named = {REAL_LINE: constraints.real, (0.0, math.inf): constraints.positive, (0.0, 1.0): constraints.unit_interval}
    return constraints.independent(named.get(support) or constraints.interval(*support), len(shape))


def check_params(bijection: Bijection, params: _tree.Tree) -> None:
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


def _named_transform(kind: type[Bijection]) -> type[FlowTransform]:
    """The transform of one kind of bijection, built from the bijection's own arguments."""

    def __init__(self, *args, params, **kwargs):
        FlowTransform.__init__(self, kind(*args, **kwargs), params)

    signature = inspect.signature(kind)
    params = inspect.Parameter("params", inspect.Parameter.KEYWORD_ONLY)
    members = {
        "__init__": __init__,
        "__doc__": f"{kind.__name__} as a NumPyro transform over the weights ``params``.\n\n{kind.__doc__}",
        "__module__": __name__,
        "__signature__": signature.replace(parameters=[*signature.parameters.values(), params]),
        "_bijection": staticmethod(kind),
    }
    return type(kind.__name__, (FlowTransform,), members)


def _named_helper(name, recipe):
    """A function that draws the weights of a recipe's stack with a key."""

    @functools.wraps(recipe)
    def helper(key, *args, **kwargs):
        return FlowTransform.init(key, recipe(*args, **kwargs))

    signature = inspect.signature(recipe)
    key = inspect.Parameter("key", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    helper.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[key, *signature.parameters.values()], return_annotation=FlowTransform
    )
    helper.__name__ = helper.__qualname__ = name
    helper.__module__ = __name__
    return helper


named = {kind.__name__: _named_transform(kind) for kind in NAMED_BIJECTIONS}
named |= {name: _named_helper(name, recipe) for name, recipe in NAMED_RECIPES.items()}
globals().update(named)  # pickle finds a class by its name in its module
