r"""A linear map as the exponential of a matrix."""

from __future__ import annotations

import dataclasses
import math

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.bijections.linear import diagonal
from flowppl.bijections.residual import times
from flowppl.checks import check_sizes
from flowppl.declare import Parameter

BOUND = 16.0  # of the Frobenius norm of A
SMALL_SQUARINGS, SQUARINGS = 3, 6  # BOUND / 2^6 = 1/4, for which twelve terms have an error of 3e-18


def shortened(array: Array, bound: float, axis: int | tuple[int, ...]) -> Array:
    """``array / sqrt(1 + norm^2 / bound^2)``, with the root of the sum of squares along an axis as norm.

    Its norm is below ``bound``; what is much shorter hardly changes. No square overflows.
    """
    xp = namespace(array)
    largest = xp.max(xp.abs(xp.stop_gradient(array)), axis=axis, keepdims=True) / bound
    unit = xp.where(largest > 1, largest, xp.ones_like(largest))  # cancels
    array = array / unit
    return array / xp.sqrt((1 / unit) ** 2 + xp.sum((array / bound) ** 2, axis=axis, keepdims=True))


def exponential(matrix: Array) -> Array:
    """The exponential of a matrix of Frobenius norm up to BOUND: eleven products, by scaling and squaring."""
    xp = namespace(matrix)
    one = diagonal(xp.ones_like(matrix[..., 0]))
    first = matrix / 2**SQUARINGS
    second = xp.matmul(first, first)
    third = xp.matmul(second, first)
    less_one = third / math.factorial(12)  # exp - 1, which keeps its digits where the matrix is small
    for k in (9, 6, 3):
        terms = [power / math.factorial(k + i) for i, power in enumerate((one, first, second))]
        less_one = xp.matmul(third, sum(terms, less_one))
    less_one = first + second / 2 + less_one
    for _ in range(SMALL_SQUARINGS):
        less_one = 2 * less_one + xp.matmul(less_one, less_one)
    power = one + less_one  # from here on a direction that shrinks would lose its digits beside 1
    for _ in range(SQUARINGS - SMALL_SQUARINGS):
        power = xp.matmul(power, power)
    return power


@dataclasses.dataclass(frozen=True)
class MatrixExponential(Bijection):
    r"""A linear map as the exponential of a matrix: :math:`y = e^A x`, with :math:`e^A = I + A + A^2/2! + \dots`.

    .. math::
        A = \frac{W}{\sqrt{1 + \|W\|^2 / 16^2}}, \qquad \log|\det| = \mathrm{trace}(A), \qquad x = e^{-A} y .

    W is any D x D matrix of weights and :math:`\|W\|` the root of the sum of its squares. A is W while that is small,
    and :math:`\|A\| < 16` always: no weights make a number that is not finite, or a map that has no inverse. The
    exponential is twelve terms of the series at :math:`A / 2^6`, squared six times: eleven products, always.

    Choose it where many events are mapped, in both directions: each is one product with a matrix, where :class:`LU` and
    :class:`QR` solve a triangular system on the way back, which took six times as long for 4096 events of 64
    coordinates. No order of the coordinates is preferred. The determinant is positive; a coordinate is stretched by at
    most :math:`e^{16}`, and all D alike by less than :math:`e^{16 / \sqrt{D}}`: put :class:`ElementwiseAffine` beside
    it for units. The matrix itself costs :math:`11 D^3` operations in each call, and in a :class:`Conditional`, where
    every event has weights of its own, for each event: take LU there.

    Args:
        dim: the number D of coordinates.

    Raises:
        ValueError: if ``dim`` < 1.

    References:
        Xiao, Liu: Generative Flows with Matrix Exponential, 2020, arXiv 2007.09651. The bound is ours.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> layer = fp.MatrixExponential(2)
        >>> quarter_turn = layer.parameters_for(np.array([[0.0, -np.pi / 2], [np.pi / 2, 0.0]]))
        >>> layer.forward(quarter_turn, np.array([1.0, 2.0]))[0].round(12)
        array([-2.,  1.])
    """

    dim: int

    def __post_init__(self):
        check_sizes("MatrixExponential", dim=self.dim)

    def parameters(self) -> Tree:
        return {"weight": Parameter((self.dim, self.dim))}

    def parameters_for(self, matrix: Array) -> Tree:
        """The parameters with which A is ``matrix``, for one whose squares have a sum below 16^2."""
        xp = namespace(matrix)
        squares = xp.sum((matrix / BOUND) ** 2, axis=(-2, -1), keepdims=True)
        return {"weight": matrix / xp.sqrt(1 - squares)}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self._apply(shortened(params["weight"], BOUND, (-2, -1)), x)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self._apply(-shortened(params["weight"], BOUND, (-2, -1)), y)

    def push_score(self, params, x, score, context=None):
        y, log_det = self.forward(params, x, context)
        xp = namespace(y)
        back = exponential(-shortened(xp.stop_gradient(params["weight"]), BOUND, (-2, -1)))
        return y, log_det, times(xp, back.mT, xp.stop_gradient(xp.broadcast_to(score, y.shape)))

    def _apply(self, matrix, event):
        xp = namespace(event)
        image = times(xp, exponential(matrix), event)
        return image, xp.sum(xp.linalg.diagonal(matrix), axis=-1) + xp.zeros_like(image[..., 0])
