"""NumPyro's own transforms as bijections."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.distributions.transforms import Transform

from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.bijections.wrap import Present, as_event_shape, check_host, check_single, interval, one_way
from flowppl.declare import Parameter
from flowppl.numpyro._host import _InverseTransform
from flowppl.recipes import NAMED_BIJECTIONS


@dataclasses.dataclass(frozen=True, eq=False)
class Wrap(Bijection):
    """A transform of NumPyro as a bijection, to stand among flowppl's own.

    So an existing flow moves to flowppl layer by layer: wrap every layer and put them in one :class:`flowppl.Chain`;
    then replace one after the other by a bijection of flowppl, and compare densities at each step.

    The weights of the networks of NumPyro's flows, given as ``functools.partial(apply, weights)``, become weights of
    the flow, and so do the floating arrays of transforms of your own. Python numbers stay fixed, and so does what a
    transform of :mod:`numpyro.distributions.transforms` holds, such as a triangular matrix, which training would not
    keep valid. The
    values of now are the first ones; the transform itself stays as it is. All layers of a :class:`flowppl.Repeat` start
    from the same values. A wrapped transform is equal to itself only: make it once, not at each call of a model. It
    cannot be saved by :func:`flowppl.save`.

    Args:
        transform: a transform of :mod:`numpyro.distributions`, made outside ``jit`` and models.
        shape: the shape of one event x; an int n means a vector, ``(n,)``.

    Raises:
        TypeError: if it is no such transform.
        ValueError: if its events have more axes than ``shape``.
        NotImplementedError: from a direction that the transform does not have.

    Example:
        >>> import functools, jax, jax.numpy as jnp, flowppl as fp
        >>> from numpyro.distributions.flows import InverseAutoregressiveTransform
        >>> from numpyro.nn import AutoregressiveNN
        >>> from flowppl.numpyro import FlowTransform, Wrap
        >>> init, apply = AutoregressiveNN(3, [8])
        >>> _, weights = init(jax.random.key(0), (3,))
        >>> layer = Wrap(InverseAutoregressiveTransform(functools.partial(apply, weights)), 3)
        >>> flow = FlowTransform.init(jax.random.key(1), fp.Chain([fp.Planar(3), layer]))
        >>> x = jnp.ones(3)
        >>> bool(jnp.allclose(flow.inv(flow(x)), x, atol=1e-5))
        True
    """

    transform: Any
    shape: Any

    def __post_init__(self):
        check_host(self.transform, Transform, "a transform of NumPyro")
        object.__setattr__(self, "shape", as_event_shape(self.transform, self.shape))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return tuple(self.transform.forward_shape(self.shape))

    @property
    def x_support(self) -> tuple[float, float]:
        return interval(self.transform.domain)

    @property
    def y_support(self) -> tuple[float, float]:
        return interval(self.transform.codomain)

    @property
    def forward_cost(self) -> str:
        return "sequential" if isinstance(self.transform.inv, InverseAutoregressiveTransform) else "parallel"

    @property
    def inverse_cost(self) -> str:
        return "sequential" if isinstance(self.transform, InverseAutoregressiveTransform) else "parallel"

    def parameters(self) -> Tree:
        leaves, _ = _open(self.transform)
        return {
            str(i): Parameter(leaf.shape, Present(leaf, jnp.asarray)) for i, leaf in enumerate(leaves) if _trains(leaf)
        }

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        transform = self._with(params)
        y, intermediates = self._apply(transform.call_with_intermediates, x)
        return y, self._log_det(transform, x, y, intermediates)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        transform = self._with(params)
        x = self._apply(transform.inv, y)
        return x, -self._log_det(transform, x, y)

    def _apply(self, function, event):
        try:
            return function(event)
        except NotImplementedError as error:
            raise one_way([self.transform, self.transform.inv], _InverseTransform, NAMED_BIJECTIONS) from error

    def _with(self, params):
        """The host transform with these weights."""
        leaves, close = _open(self.transform)
        for name, leaf in params.items():
            check_single(name, leaf, leaves[int(name)].shape)
        return close([params.get(str(i), leaf) for i, leaf in enumerate(leaves)])

    def _log_det(self, transform, x, y, intermediates=None):
        """The host's log determinant, summed over the axes of an event that are batch axes to the host."""
        log_det = transform.log_abs_det_jacobian(x, y, intermediates)
        log_det = jnp.broadcast_to(log_det, x.shape[: x.ndim - transform.domain.event_dim])
        return log_det.sum(tuple(range(x.ndim - len(self.shape), log_det.ndim)))


def _open(transform):
    """The leaves of the weighted transforms in ``transform``, and a function that makes it of such leaves again."""
    nodes, outer = jax.tree.flatten(transform, is_leaf=_is_weighted)
    leaves, inner = jax.tree.flatten([_contents(node) if _is_weighted(node) else None for node in nodes])

    def close(leaves):
        contents = jax.tree.unflatten(inner, leaves)
        rebuilt = [n if c is None else _with_contents(n, *c) for n, c in zip(nodes, contents, strict=True)]
        return jax.tree.unflatten(outer, rebuilt)

    return leaves, close


def _contents(transform):
    """The pytree's children, and the networks that NumPyro's flows keep in the static part, weights and all."""
    children, (_, static) = transform.tree_flatten()
    networks = {name: value for name, value in static.items() if isinstance(value, functools.partial)}
    return children, {name: jax.tree_util.Partial(n.func, *n.args, **n.keywords) for name, n in networks.items()}


def _with_contents(transform, children, networks):
    names, static = transform.tree_flatten()[1]
    return type(transform).tree_unflatten((names, static | networks), children)


def _is_weighted(node) -> bool:
    return isinstance(node, Transform) and type(node).__module__ != Transform.__module__


def _trains(leaf) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray)) and jnp.issubdtype(leaf.dtype, jnp.inexact)
