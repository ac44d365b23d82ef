"""Linear and affine bijections: permutations, elementwise and triangular affine maps."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from flowppl._array import Array, namespace
from flowppl._tree import Tree
from flowppl.bijection import Bijection, Parameter, assign, check_event, check_sizes

MIN_SCALE = 1e-10  # no weight gives a scale of zero, or an infinite density
UNIT = math.log(math.expm1(1 - MIN_SCALE))  # softplus(UNIT) + MIN_SCALE = 1


@dataclasses.dataclass(frozen=True)
class Permute(Bijection):
    """A fixed reordering of the coordinates: ``y[i] = x[permutation[i]]``. Its log determinant is 0.

    Args:
        permutation: the numbers 0 to D-1 in any order.

    Raises:
        ValueError: if it is not a permutation.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> swap = fp.Permute((2, 0, 1))
        >>> swap.forward(swap.constants(), np.array([10.0, 20.0, 30.0]))[0]
        array([30., 10., 20.])
    """

    permutation: tuple[int, ...]

    def __post_init__(self):
        assign(self, permutation=tuple(int(i) for i in self.permutation))
        if sorted(self.permutation) != list(range(len(self.permutation))) or not self.permutation:
            raise ValueError(f"Permute: permutation must hold each of 0, ..., D-1 exactly once, got {self.permutation}")

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (len(self.permutation),)

    def parameters(self) -> Tree:
        return {}

    def constants(self) -> Tree:
        order = np.asarray(self.permutation)
        return {"order": order, "position": np.argsort(order)}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return _reorder(x, params["order"])

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return _reorder(y, params["position"])


def _reorder(event: Array, order: Array) -> tuple[Array, Array]:
    xp = namespace(event)
    return xp.take(event, order, axis=-1), xp.zeros_like(event[..., 0])


@dataclasses.dataclass(frozen=True)
class ElementwiseAffine(Bijection):
    r"""A location and a positive scale for each coordinate: :math:`y = \mu + \sigma \odot x`.

    The scale is :math:`\sigma = \log(1 + e^{s + c})`, with c such that s = 0 gives 1: it grows linearly, not
    exponentially, with its parameter, and never reaches 0.

    Args:
        dim: the number of coordinates.

    Raises:
        ValueError: if ``dim`` < 1.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> layer = fp.ElementwiseAffine(2)
        >>> params = layer.parameters_for(np.array([1.0, 2.0]), np.array([3.0, 0.1]))
        >>> y, log_det = layer.forward(params, np.array([1.0, 1.0]))
        >>> y.round(12), float(log_det.round(4))
        (array([4. , 2.1]), -1.204)
    """

    dim: int

    def __post_init__(self):
        check_sizes("ElementwiseAffine", dim=self.dim)

    def parameters(self) -> Tree:
        return {"loc": Parameter((self.dim,)), "scale": Parameter((self.dim,))}

    def parameters_for(self, loc: Array, scale: Array) -> Tree:
        """The parameters with which ``forward`` is ``loc + scale * x``, for a positive ``scale``."""
        return {"loc": loc, "scale": _raw_scale(scale)}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        scale = _scale(xp, params)
        y = params["loc"] + scale * x
        return y, xp.sum(xp.log(scale) + xp.zeros_like(y), axis=-1)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        scale = _scale(xp, params)
        x = (y - params["loc"]) / scale
        return x, -xp.sum(xp.log(scale) + xp.zeros_like(x), axis=-1)


@dataclasses.dataclass(frozen=True)
class TriangularAffine(Bijection):
    r"""A location and a lower-triangular matrix: :math:`y = \mu + \mathrm{diag}(\sigma)\,(I + T)\, x`.

    T is strictly lower triangular, and the scale is :math:`\sigma = \log(1 + e^{s + c}) > 0` as in
    :class:`ElementwiseAffine`. Each row's unit is in :math:`\sigma`, so T has none, and one learning rate fits
    coordinates of all sizes. Of a standard normal it makes any multivariate normal.

    Args:
        dim: the number of coordinates.

    Raises:
        ValueError: if ``dim`` < 1.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> layer = fp.TriangularAffine(2)
        >>> params = layer.parameters_for(np.array([1.0, 2.0]), np.array([[2.0, 0.0], [1.0, 3.0]]))
        >>> layer.forward(params | layer.constants(), np.array([1.0, 1.0]))[0]
        array([3., 6.])
    """

    dim: int

    def __post_init__(self):
        check_sizes("TriangularAffine", dim=self.dim)

    def parameters(self) -> Tree:
        sizes = {"loc": self.dim, "scale": self.dim, "lower": self.dim * (self.dim - 1) // 2}
        return {name: Parameter((size,)) for name, size in sizes.items()}

    def constants(self) -> Tree:
        # Where each entry of T stands among the parameters, row by row; all others point at a zero behind them.
        rows, columns = np.tril_indices(self.dim, k=-1)
        position = np.full((self.dim, self.dim), len(rows))
        position[rows, columns] = np.arange(len(rows))
        return {"position": position.ravel()}

    def parameters_for(self, loc: Array, scale_tril: Array) -> Tree:
        """The parameters with which ``forward`` is ``loc + scale_tril @ x``; its diagonal must be positive."""
        xp = namespace(scale_tril)
        scale = xp.linalg.diagonal(scale_tril)
        rows = [(scale_tril[i, :i] / scale[i]) for i in range(self.dim)]
        return {"loc": loc, "scale": _raw_scale(scale), "lower": xp.concat(rows)}

    def _scale_and_strict_lower(self, xp, params):
        entries = params["lower"]
        zero = xp.zeros_like(xp.sum(entries, axis=-1, keepdims=True))
        entries = xp.concat([entries, zero], axis=-1)
        lower = xp.take(entries, params["position"], axis=-1)
        return _scale(xp, params), xp.reshape(lower, (*lower.shape[:-1], self.dim, self.dim))

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        scale, lower = self._scale_and_strict_lower(xp, params)
        y = params["loc"] + scale * xp.linear(x, lower.mT, x)
        return y, xp.sum(xp.log(scale) + xp.zeros_like(y), axis=-1)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        scale, lower = self._scale_and_strict_lower(xp, params)
        x = xp.solve_unit_lower(lower, (y - params["loc"]) / scale)
        return x, -xp.sum(xp.log(scale) + xp.zeros_like(x), axis=-1)


def _scale(xp, params: Tree) -> Array:
    return xp.softplus(params["scale"] + UNIT) + MIN_SCALE


def _raw_scale(scale: Array) -> Array:
    """The parameter that gives this scale."""
    xp = namespace(scale)
    rest = scale - MIN_SCALE
    return rest + xp.log(-xp.expm1(-rest)) - UNIT
