"""Monotone polynomials on a box, with straight tails."""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator

import numpy as np

from flowppl._arrays.namespace import namespace
from flowppl.checks import assign, check_sizes, derived
from flowppl.univariate.base import align, bounded, in_single
from flowppl.univariate.curves import MIN_SLOPE, check_box, down, positive_slope, up

MAX_COEFFICIENT = 1e3  # its square times 1e30 is still a number in float32


@dataclasses.dataclass(frozen=True)
class Bernstein:
    r"""A monotone polynomial in Bernstein's form on a box, and straight lines outside it.

    With :math:`u = (x + B) / (2 B)`, for x between -B and B,

    .. math::
        y = r_0 + \sum_{i=0}^M \theta_i \binom{M}{i} u^i (1 - u)^{M - i} , \qquad
        \theta_i - \theta_{i-1} = \frac{2 B}{M}\, d_i , \qquad \theta_0 = -\theta_M .

    The raw numbers are the shift :math:`r_0` and M numbers that make the slopes :math:`d_1, \dots, d_M` through a
    softplus, at least 0.001 and at most :math:`10^8`. Since the coefficients :math:`\theta_i` increase, so does y. At
    the ends of the box the slope is :math:`d_1` and :math:`d_M`, and the map goes on in these directions: it is
    continuously differentiable, and no input is too large. All terms of the slope are positive, so that none is lost to
    rounding. The inverse has no closed form: it is found by bisection and Newton's method.

    Choose it for wide and smooth bends, such as skewness or tails: M + 1 numbers make a map without kinks, whose
    density has all derivatives inside the box. Each number acts on the whole box, so that narrow peaks take a high
    degree: there take a spline, or :class:`SumOfSquares`.

    Args:
        degree: the degree M, up to 100. A value costs about 6 M products, the inverse 30 values.
        bound: the half-width B of the box.

    Raises:
        ValueError: for a degree that is not from 1 to 100, or a bound that is not positive.

    References:
        Sick, Hothorn, Durr: Deep Transformation Models, 2020, arXiv 2004.00464. Ramasinghe, Fernando, Khan, Barnes:
        Robust Normalizing Flows using Bernstein-type Polynomials, 2021, arXiv 2102.03739.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> bend = fp.Bernstein(degree=2, bound=1.0)
        >>> raw = np.array([0.0, -1.0, 1.0])[:, None]  # no shift, slopes .49 and 1.73 at the two ends
        >>> y, log_slope = bend.forward(raw, np.array([0.0]))
        >>> y.round(4), np.exp(log_slope).round(4)
        (array([-0.3112]), array([1.1126]))
    """

    degree: int = 8
    bound: float = 5.0

    inverse_cost = "iterative"

    def __post_init__(self):
        check_sizes("Bernstein", degree=self.degree)
        check_box("Bernstein", self.bound)
        if self.degree > 100:
            raise ValueError(
                f"Bernstein: degree must be at most 100, since float32 has no larger binomials, got {self.degree}"
            )

    @property
    def num_raw(self) -> int:
        return self.degree + 1

    @in_single
    def forward(self, raw, x):
        shift, *args = self._coefficients(raw, x)
        x = x + namespace(x).zeros_like(shift)  # the powers of x stand beside the weights, whose batch may be larger
        y, log_slope = up(self._curve, args, x, self.bound)
        return y + shift, log_slope

    @in_single
    def inverse(self, raw, y):
        shift, *args = self._coefficients(raw, y)
        return down(self._curve, args, y - shift, self.bound)

    def _coefficients(self, raw, x):
        """The shift, all coefficients but the last, and the slopes."""
        xp = namespace(raw)
        shift, slopes = xp.split(align(raw, x), (1, self.degree))
        slopes = positive_slope(slopes)
        steps = slopes * (2 * self.bound / self.degree)
        ends = xp.cumulative_sum(steps, axis=0)
        return shift[0, ...], ends - steps - ends[-1:, ...] / 2, slopes

    def _curve(self, x, coefficients, slopes):
        xp, last = namespace(x), self.degree - 1
        u = (x + self.bound) / (2 * self.bound)
        pairs = zip(_powers(u, last), reversed(_powers(1 - u, last)), strict=True)
        basis = xp.stack([math.comb(last, i) * up * down for i, (up, down) in enumerate(pairs)], axis=0)
        chords = coefficients + u * (2 * self.bound / self.degree) * slopes
        return xp.sum(basis * chords, axis=0), xp.sum(basis * slopes, axis=0)


@dataclasses.dataclass(frozen=True)
class SumOfSquares:
    r"""The integral of a sum of squared polynomials, and of a positive constant, on a box; straight lines outside it.

    .. math::
        y = r_0 + \int_0^x \Big[ \epsilon + \frac{1 - \epsilon}{K} \sum_{k=1}^K
        \Big( 1 + \sum_{l=0}^L a_{kl} \big(\tfrac{u}{B}\big)^l \Big)^2 \Big]\, du , \qquad -B \le x \le B ,

    with :math:`\epsilon = 0.001`. The raw numbers are :math:`r_0` and K (L + 1) numbers :math:`r_{kl}`, of which
    :math:`a_{kl} = 2 k\, r_{kl} / (K + 1)`, smoothly bounded: the polynomials start equal, and would stay equal, did
    they not each move at a pace of its own. The integral is taken exactly: by the rule of Gauss and Legendre with L + 1
    nodes, which is exact for polynomials of degree 2 L + 1 and has positive weights, so that nothing is lost to
    rounding. The inverse has no closed form: it is found by bisection and Newton's method.

    Any increasing polynomial of degree 2 L + 1 with slopes above :math:`\epsilon` has this form with K = 2. A
    polynomial overflows where its powers do, and a stack of n of them grows as :math:`x^{(2L+1)^n}`. So beyond the box
    the map goes on as the straight line that touches it.

    Choose it for smooth bends of all kinds, tails and peaks alike: it is freer than :class:`Bernstein` of the same
    degree, which needs increasing coefficients. For very narrow peaks take a spline.

    Args:
        num_polynomials: the number K of squares.
        degree: the degree L of each polynomial, up to 100. A value costs about 2 K L (L + 2) products, the inverse 30
            values.
        bound: the half-width B of the box.

    Raises:
        ValueError: if ``num_polynomials`` < 1, the degree is not from 1 to 100, or the bound is not positive.

    References:
        Jaini, Selby, Yu: Sum-of-Squares Polynomial Flow, 2019, arXiv 1905.02325.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> bend = fp.SumOfSquares(num_polynomials=1, degree=1, bound=1.0)
        >>> raw = np.array([0.0, 0.0, 1.0])[:, None]  # the integral of (1 + x)^2
        >>> y, log_slope = bend.forward(raw, np.array([1.0]))
        >>> y.round(4), np.exp(log_slope).round(4)
        (array([2.332]), array([3.997]))
    """

    num_polynomials: int = 2
    degree: int = 2
    bound: float = 5.0
    _rule: tuple[tuple[float, float], ...] = derived()  # nodes from 0 to 1, and their weights

    inverse_cost = "iterative"

    def __post_init__(self):
        check_sizes("SumOfSquares", num_polynomials=self.num_polynomials, degree=self.degree)
        check_box("SumOfSquares", self.bound)
        if self.degree > 100:
            raise ValueError(
                "SumOfSquares: degree must be at most 100, up to where the nodes of the rule are known to be exact, "
                f"got {self.degree}"
            )
        nodes, weights = np.polynomial.legendre.leggauss(self.degree + 1)
        assign(self, _rule=tuple(zip(((1 + nodes) / 2).tolist(), (weights / 2).tolist(), strict=True)))

    @property
    def num_raw(self) -> int:
        return self.num_polynomials * (self.degree + 1) + 1

    @in_single
    def forward(self, raw, x):
        shift, args = self._coefficients(raw, x)
        y, log_slope = up(self._curve, args, x, self.bound)
        return y + shift, log_slope

    @in_single
    def inverse(self, raw, y):
        shift, args = self._coefficients(raw, y)
        return down(self._curve, args, y - shift, self.bound)

    def _coefficients(self, raw, x):
        """The shift, and the coefficients of all polynomials, those of one power after the other."""
        xp, num = namespace(raw), self.num_polynomials
        shift, *powers = xp.split(align(raw, x), (1, *(num,) * (self.degree + 1)))
        pace = xp.cumulative_sum(xp.ones_like(powers[0]), axis=0) * (2 / (num + 1))
        return shift[0, ...], tuple(pace * bounded(power, MAX_COEFFICIENT) for power in powers)

    def _curve(self, x, *coefficients):
        mean = sum(weight * self._slope(node * x, coefficients) for node, weight in self._rule)
        return x * mean, self._slope(x, coefficients)

    def _slope(self, x, coefficients):
        *lower, value = coefficients
        for coefficient in reversed(lower):
            value = value * (x / self.bound) + coefficient
        squares = (1 + value) * (1 + value)
        return MIN_SLOPE + (1 - MIN_SLOPE) * namespace(x).mean(squares, axis=0)


def _powers(x, highest):
    """The powers of x from 0 on, by products: those have all derivatives at 0."""
    return list(itertools.accumulate([x] * highest, operator.mul, initial=namespace(x).ones_like(x)))
