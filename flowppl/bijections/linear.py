"""Linear and affine bijections: permutations, elementwise and triangular affine maps, LU."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.checks import assign, check_sizes, derived
from flowppl.declare import Parameter


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

    permutation: Sequence[int]
    _pattern: str | tuple[int, int] | None = derived()  # see `reordered` of the array namespace
    _back: str | tuple[int, int] | None = derived()  # that of the inverse

    def __post_init__(self):
        assign(self, permutation=tuple(operator.index(i) for i in self.permutation))
        if sorted(self.permutation) != list(range(len(self.permutation))) or not self.permutation:
            raise ValueError(f"Permute: permutation must hold each of 0, ..., D-1 exactly once, got {self.permutation}")
        order = np.asarray(self.permutation)
        assign(self, _pattern=_pattern(order), _back=_pattern(np.argsort(order)))

    @classmethod
    def reverse(cls, dim: int) -> Permute:
        """The coordinates in reverse order."""
        check_sizes("Permute.reverse", dim=dim)
        return cls(tuple(reversed(range(dim))))

    @classmethod
    def random(cls, dim: int, seed: int = 0) -> Permute:
        """A random order, drawn here and then fixed."""
        check_sizes("Permute.random", dim=dim)
        return cls(tuple(np.random.default_rng(seed).permutation(dim)))

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
        return self._reorder(x, params["order"], self._pattern)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self._reorder(y, params["position"], self._back)

    def push_score(self, params, x, score, context=None):
        y, log_det = self.forward(params, x, context)
        return y, log_det, self._reorder(namespace(score).stop_gradient(score), params["order"], self._pattern)[0]

    def _reorder(self, event: Array, order: Array, pattern: str | tuple[int, int] | None) -> tuple[Array, Array]:
        xp = namespace(event)
        return xp.reordered(event, order, pattern), xp.zeros_like(event[..., 0])


def _pattern(order: np.ndarray) -> str | tuple[int, int] | None:
    """What order it is: "reverse", or the (a, b) of a grid whose rows are read as columns, or none of these."""
    if (order == np.arange(len(order))[::-1]).all():
        return "reverse"
    columns = int(order[1])
    if order[0] or len(order) % columns:
        return None
    is_grid = (order == np.arange(len(order)).reshape(-1, columns).T.ravel()).all()
    return (len(order) // columns, columns) if is_grid else None


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
        return {"loc": loc, "scale": raw_of_positive(scale)}

    def loc_and_scale(self, params: Tree) -> tuple[Array, Array]:
        """The location and the scales, of which ``parameters_for`` makes the parameters."""
        return params["loc"], positive(params["scale"])

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        scale = positive(params["scale"])
        y = params["loc"] + scale * x
        return y, xp.sum(xp.log(scale) + xp.zeros_like(y), axis=-1)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        scale = positive(params["scale"])
        x = (y - params["loc"]) / scale
        return x, -xp.sum(xp.log(scale) + xp.zeros_like(x), axis=-1)

    def push_score(self, params, x, score, context=None):
        y, log_det = self.forward(params, x, context)
        xp = namespace(y)
        return y, log_det, xp.stop_gradient(xp.broadcast_to(score, y.shape) / positive(params["scale"]))


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
        return {"position": triangle_position(self.dim)}

    def parameters_for(self, loc: Array, scale_tril: Array) -> Tree:
        """The parameters with which ``forward`` is ``loc + scale_tril @ x``; its diagonal must be positive."""
        xp = namespace(scale_tril)
        scale = xp.linalg.diagonal(scale_tril)
        rows, columns = np.tril_indices(self.dim, k=-1)
        return {"loc": loc, "scale": raw_of_positive(scale), "lower": (scale_tril / scale[:, None])[rows, columns]}

    def loc_and_scale(self, params: Tree) -> tuple[Array, Array]:
        """The location and the triangular matrix, of which ``parameters_for`` makes the parameters."""
        scale = positive(params["scale"])
        lower = triangle(params["lower"], params["position"], self.dim)
        return params["loc"], scale[..., None] * lower + diagonal(scale)

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        scale = positive(params["scale"])
        lower = triangle(params["lower"], params["position"], self.dim)
        y = params["loc"] + scale * xp.linear(x, lower.mT, x)
        return y, xp.sum(xp.log(scale) + xp.zeros_like(y), axis=-1)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        scale = positive(params["scale"])
        lower = triangle(params["lower"], params["position"], self.dim)
        x = xp.solve_unit_triangular(lower, (y - params["loc"]) / scale)
        return x, -xp.sum(xp.log(scale) + xp.zeros_like(x), axis=-1)

    def push_score(self, params, x, score, context=None):
        y, log_det = self.forward(params, x, context)
        xp = namespace(y)
        lower = triangle(params["lower"], params["position"], self.dim)
        fixed, score = xp.stop_gradient(lower.mT), xp.stop_gradient(xp.broadcast_to(score, y.shape))
        score = xp.solve_unit_triangular(fixed, score, upper=True)
        return y, log_det, xp.stop_gradient(score / positive(params["scale"]))


@dataclasses.dataclass(frozen=True)
class FullTriangular(Bijection):
    r"""The linear part of :class:`TriangularAffine`, :math:`y = \mathrm{diag}(\sigma)\,(I + T)\, x`, for large D.

    T is kept as a full D x D matrix, of which the part below the diagonal counts: nothing has to be gathered from a
    list, and no constant is as large as the weights.
    """

    dim: int

    def __post_init__(self):
        check_sizes("FullTriangular", dim=self.dim)

    def parameters(self) -> Tree:
        return {"scale": Parameter((self.dim,)), "lower": Parameter((self.dim, self.dim))}

    def parameters_for(self, scale_tril: Array) -> Tree:
        """The parameters with which ``forward`` is ``scale_tril @ x``; its diagonal must be positive."""
        xp = namespace(scale_tril)
        scale = xp.linalg.diagonal(scale_tril)
        return {"scale": raw_of_positive(scale), "lower": xp.tril(scale_tril / scale[:, None], k=-1)}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        scale = positive(params["scale"])
        y = scale * xp.linear(x, xp.tril(params["lower"], k=-1).mT, x)
        return y, xp.sum(xp.log(scale) + xp.zeros_like(y), axis=-1)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        scale = positive(params["scale"])
        x = xp.solve_unit_triangular(params["lower"], y / scale)
        return x, -xp.sum(xp.log(scale) + xp.zeros_like(x), axis=-1)


@dataclasses.dataclass(frozen=True)
class LU(Bijection):
    r"""A linear map in its LU factors: :math:`y = P\,(I + L)\, \mathrm{diag}(\sigma)\,(I + U)\, x`.

    P is a fixed permutation, L strictly lower and U strictly upper triangular, and :math:`\sigma > 0` as in
    :class:`ElementwiseAffine`. The determinant is the product of :math:`\sigma`, or minus it.

    Args:
        dim: the number of coordinates.
        permutation: the numbers 0 to D-1 in any order, as in :class:`Permute`; ``None`` keeps theirs.

    Raises:
        ValueError: if ``dim`` < 1 or the permutation is none, or of another length.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039, section 3.2.

    Example:
        >>> import flowppl as fp
        >>> {name: p.shape for name, p in fp.LU(3).parameters().items()}
        {'scale': (3,), 'lower': (3,), 'upper': (3,)}
    """

    dim: int
    permutation: Sequence[int] | None = None

    def __post_init__(self):
        check_sizes("LU", dim=self.dim)
        if self.permutation is not None:
            assign(self, permutation=Permute(self.permutation).permutation)
            if len(self.permutation) != self.dim:
                raise ValueError(f"LU: permutation must have dim={self.dim} entries, got {len(self.permutation)}")

    def parameters(self) -> Tree:
        half = self.dim * (self.dim - 1) // 2
        return {name: Parameter((size,)) for name, size in (("scale", self.dim), ("lower", half), ("upper", half))}

    def constants(self) -> Tree:
        permute = {} if self.permutation is None else Permute(self.permutation).constants()
        return {"triangle": triangle_position(self.dim)} | permute

    def _factors(self, params):
        lower = triangle(params["lower"], params["triangle"], self.dim)
        upper = triangle(params["upper"], params["triangle"], self.dim).mT
        return lower, positive(params["scale"]), upper

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        lower, scale, upper = self._factors(params)
        scaled = scale * xp.linear(x, upper.mT, x)
        y = xp.linear(scaled, lower.mT, scaled)
        if self.permutation is not None:
            y = xp.take(y, params["order"], axis=-1)
        return y, xp.sum(xp.log(scale) + xp.zeros_like(y), axis=-1)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        lower, scale, upper = self._factors(params)
        if self.permutation is not None:
            y = xp.take(y, params["position"], axis=-1)
        x = xp.solve_unit_triangular(upper, xp.solve_unit_triangular(lower, y) / scale, upper=True)
        return x, -xp.sum(xp.log(scale) + xp.zeros_like(x), axis=-1)


@dataclasses.dataclass(frozen=True)
class ActNorm(ElementwiseAffine):
    r"""A location and a scale for each coordinate, to be set from data: :math:`y = \mu + \sigma \odot x`.

    :meth:`init_from` sets them to the mean and the standard deviation of a first batch, so that the layer gives the
    next one, on the side of the base, data of mean 0 and variance 1. A coordinate that does not vary in that batch
    keeps the scale 1. Until then the layer is the identity.
    ``fit_density`` calls it for all layers of a flow; nothing happens by itself. Otherwise it is
    :class:`ElementwiseAffine`.

    Args:
        dim: the number of coordinates.

    Raises:
        ValueError: if ``dim`` < 1.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039, section 3.1.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> layer, data = fp.ActNorm(1), np.array([[2.0], [6.0]])
        >>> params = layer.init_from({"loc": np.zeros(1), "scale": np.zeros(1)}, data)
        >>> layer.inverse(params, data)[0].round(12)
        array([[-1.],
               [ 1.]])
    """

    def init_from(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        rows = xp.reshape(y, (-1, self.dim))
        loc = xp.mean(rows, axis=0)
        offset = rows - loc
        offset = offset - xp.mean(offset, axis=0)  # the rounding of a mean is not the spread of a constant
        largest = xp.max(xp.abs(offset), axis=0)
        varies = largest > 10 * float(xp.finfo(rows.dtype).eps) * xp.max(xp.abs(rows), axis=0)
        unit = xp.where(varies, largest, xp.ones_like(largest))
        spread = unit * xp.std(offset / unit, axis=0)  # a square of tiny or huge data would be 0 or infinite
        return self.parameters_for(loc, xp.where(varies, spread, xp.ones_like(spread)))


def triangle_position(dim: int, diagonal: bool = False) -> np.ndarray:
    """Where each entry of a triangle stands in :func:`triangle`'s list; entries outside point at the zero behind it."""
    rows, columns = np.tril_indices(dim, k=-1)
    position = np.full((dim, dim), len(rows) + dim * diagonal)
    position[rows, columns] = np.arange(len(rows))
    if diagonal:
        position[np.arange(dim), np.arange(dim)] = len(rows) + np.arange(dim)
    return position.ravel()


def triangle(entries: Array, position: Array, dim: int) -> Array:
    """The lower triangular matrix whose strict part has these entries, row by row, followed by a diagonal or none."""
    xp = namespace(entries)
    zero = xp.zeros_like(xp.sum(entries, axis=-1, keepdims=True))
    matrix = xp.take(xp.concat([entries, zero], axis=-1), position, axis=-1)
    return xp.reshape(matrix, (*matrix.shape[:-1], dim, dim))


def diagonal(entries: Array) -> Array:
    """The diagonal matrix with these entries."""
    xp = namespace(entries)
    full = entries[..., None] + xp.zeros_like(entries)[..., None, :]
    return xp.tril(full) - xp.tril(full, k=-1)  # on the device of the entries


def join(*arrays: Array) -> Array:
    """Arrays whose batch axes broadcast, one behind the other along the last axis."""
    shapes = {a.shape[:-1] for a in arrays}
    if len(shapes) > 1:
        batch = namespace(arrays[0]).broadcast_shapes(*shapes)
        arrays = tuple(namespace(a).broadcast_to(a, (*batch, a.shape[-1])) for a in arrays)
    return namespace(arrays[0]).concat(arrays, axis=-1)


def positive(raw: Array) -> Array:
    """A positive number for any real one; 1 for 0."""
    least = _least_scale(raw)
    return namespace(raw).softplus(raw + _unit(least)) + least


def raw_of_positive(scale: Array) -> Array:
    """The number of which :func:`positive` makes this one."""
    xp, scale = namespace(scale), 1.0 * scale
    least = _least_scale(scale)
    rest = xp.where(scale > least, scale - least, scale)
    return rest + xp.log(-xp.expm1(-rest)) - _unit(least)


def _unit(least: float) -> float:
    """The number whose softplus is 1 less the least scale, which counts in half precision."""
    return math.log(math.expm1(1 - least))


def _least_scale(like: Array) -> float:
    """No weight gives a scale below this: 7e-16 in float32 and 8e-124 in float64, so that its square is a number."""
    return float(namespace(like).finfo(like.dtype).smallest_normal) ** 0.4
