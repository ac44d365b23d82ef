r"""Orthogonal maps made of Householder reflections, in compact form.

A product of K reflections of D coordinates, :math:`Q = H_K \cdots H_1` with :math:`H_k = I - 2 n_k n_k^\top` and unit
vectors in the rows of N, is

.. math::
    Q x = x - 2 N^\top z, \qquad (I + 2\, \mathrm{strictly\ lower}(N N^\top))\, z = N x,

since :math:`z_k` is the component along :math:`n_k` of what the reflections before k have left of x. It costs
two products with N, is never a loop over reflections, and never a D x D matrix.

Bischof, Van Loan: The WY Representation for Products of Householder Matrices, 1987.
"""

from __future__ import annotations

import dataclasses

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.bijections.linear import positive, triangle, triangle_position
from flowppl.checks import check_sizes
from flowppl.declare import Normal, Parameter


def unit_rows(vectors: Array) -> Array:
    """Each row divided by its length; a row of zeros stays, and reflects nothing."""
    xp = namespace(vectors)
    square = xp.sum(vectors * vectors, axis=-1, keepdims=True)
    return vectors / xp.sqrt(xp.where(square > 0, square, xp.ones_like(square)))


def reflect(vectors: Array, x: Array) -> Array:
    """Reflections of ``x`` along the rows of ``vectors``, the first row first; rows have length 1 or 0."""
    xp = namespace(x)
    products = 2 * xp.matmul(vectors, vectors.mT)
    if vectors.ndim == 2:  # solve for the matrix that gives z, once for all events
        solved = xp.solve_unit_triangular(products, -2 * vectors.mT)
        return xp.linear(xp.matmul(x, solved), vectors, x)
    components = xp.matmul(vectors, x[..., None])[..., 0]
    z = xp.solve_unit_triangular(products, components)
    return x - 2 * xp.matmul(z[..., None, :], vectors)[..., 0, :]


@dataclasses.dataclass(frozen=True)
class InPairs:
    """Initializer of reflections: normal rows, each twice, so that an even number of them is the identity."""

    def __call__(self, draws, shape):
        rows, columns = shape
        half = draws.normal(((rows + 1) // 2, 1, columns))
        xp = namespace(half)
        return xp.reshape(xp.concat([half, half], axis=1), (-1, columns))[:rows, :]


STARTS: dict[str, InPairs | Normal] = {"identity": InPairs(), "rotation": Normal(1.0)}


def check_start(owner: str, start: str) -> None:
    """Raise ValueError unless ``start`` names a way of drawing the first reflections."""
    if start not in STARTS:
        raise ValueError(f"{owner}: start must be one of {', '.join(STARTS)}, got {start!r}")


@dataclasses.dataclass(frozen=True)
class Householder(Bijection):
    r"""A product of Householder reflections: :math:`y = H_K \cdots H_1\, x`, :math:`H_k = I - 2 v_k v_k^\top /
    \|v_k\|^2`.

    An orthogonal map; its log determinant is 0. With K = D reflections it can be any rotation, if D is even, and any
    reflected one if D is odd. All reflections are applied at once, in O(KD) operations for each event also where every
    event has vectors of its own (:class:`~flowppl.Conditional`). An even number of reflections starts at the
    identity, an odd number at a reflection; or, with ``start="rotation"``, at reflections drawn at random.

    Args:
        dim: the number D of coordinates.
        num_reflections: the number K of reflections.
        start: ``"identity"``, or ``"rotation"`` for a random one, drawn with the other weights.

    Raises:
        ValueError: if one of the sizes is below 1, or the start is unknown.

    References:
        Tomczak, Welling: Improving Variational Auto-Encoders using Householder Flow, 2016, arXiv 1611.09630.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> swap = {"v": np.array([[1.0, -1.0]])}
        >>> fp.Householder(2).forward(swap, np.array([3.0, 4.0]))[0].round(12)
        array([4., 3.])
    """

    dim: int
    num_reflections: int = 2
    start: str = "identity"

    def __post_init__(self):
        check_sizes("Householder", dim=self.dim, num_reflections=self.num_reflections)
        check_start("Householder", self.start)

    def parameters(self) -> Tree:
        return {"v": Parameter((self.num_reflections, self.dim), STARTS[self.start])}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        y = reflect(unit_rows(params["v"]), x)
        return y, namespace(y).zeros_like(y[..., 0])

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        x = reflect(unit_rows(xp.flip(params["v"], axis=-2)), y)
        return x, xp.zeros_like(x[..., 0])


@dataclasses.dataclass(frozen=True)
class QR(Bijection):
    r"""A linear map in its QR factors: :math:`y = Q\, \mathrm{diag}(\sigma)\,(I + U)\, x`.

    Q is a product of Householder reflections, U strictly upper triangular, and :math:`\sigma > 0` as in
    :class:`~flowppl.ElementwiseAffine`. The determinant is the product of :math:`\sigma`, or minus
    it for an odd number of reflections. It starts at the identity or, as the invertible 1x1 convolution of Glow does,
    at a random rotation.

    Args:
        dim: the number D of coordinates.
        num_reflections: the number of reflections; ``None`` is the largest even number up to D, and at
            least 2.
        start: ``"identity"``, or ``"rotation"`` for a random one, drawn with the other weights.

    Raises:
        ValueError: if one of the sizes is below 1, or the start is unknown.

    References:
        Hoogeboom, van den Berg, Welling: Emerging Convolutions for Generative Normalizing Flows, 2019, arXiv
        1901.11137.

    Example:
        >>> import flowppl as fp
        >>> {name: p.shape for name, p in fp.QR(4).parameters().items()}
        {'v': (4, 4), 'scale': (4,), 'upper': (6,)}
    """

    dim: int
    num_reflections: int | None = None
    start: str = "identity"

    def __post_init__(self):
        check_sizes("QR", dim=self.dim)
        check_start("QR", self.start)
        if self.num_reflections is not None:
            check_sizes("QR", num_reflections=self.num_reflections)

    @property
    def _householder(self) -> Householder:
        num = max(self.dim - self.dim % 2, 2) if self.num_reflections is None else self.num_reflections
        return Householder(self.dim, num, self.start)

    def parameters(self) -> Tree:
        sizes = {"scale": self.dim, "upper": self.dim * (self.dim - 1) // 2}
        return self._householder.parameters() | {name: Parameter((size,)) for name, size in sizes.items()}

    def constants(self) -> Tree:
        return {"position": triangle_position(self.dim)}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        scale = positive(params["scale"])
        upper = triangle(params["upper"], params["position"], self.dim).mT
        y, _ = self._householder.forward(params, scale * xp.linear(x, upper.mT, x))
        return y, xp.sum(xp.log(scale) + xp.zeros_like(y), axis=-1)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        scale = positive(params["scale"])
        upper = triangle(params["upper"], params["position"], self.dim).mT
        turned, _ = self._householder.inverse(params, y)
        x = xp.solve_unit_triangular(upper, turned / scale, upper=True)
        return x, -xp.sum(xp.log(scale) + xp.zeros_like(x), axis=-1)
