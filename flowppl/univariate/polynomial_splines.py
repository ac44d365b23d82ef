"""Splines of lines and of cubics, which take fewer raw numbers than those of rational functions."""

from __future__ import annotations

import dataclasses
import math

from flowppl._arrays.namespace import namespace
from flowppl._arrays.roots import bracketed_root
from flowppl.univariate.base import align, in_single
from flowppl.univariate.curves import bin_of, check_bins, clipped, knots, put_back, with_tails

MIN_END, MAX_END = 0.01, 2.9  # slopes at the ends of the box, in those of the bins there; from 3 on a cubic could fall
UNIT_END = math.log((1 - MIN_END) / (MAX_END - 1))  # where the sigmoid between the two gives 1


@dataclasses.dataclass(frozen=True)
class LinearSpline:
    r"""A polygon on a box, and the identity outside it.

    The interval from -B to B is cut into K bins of one width. In the bin from :math:`x_k` on, whose heights
    :math:`y_{k+1} - y_k` come from K raw numbers through a softmax,

    .. math::
        y = y_k + (y_{k+1} - y_k)\, \frac{K\, (x - x_k)}{2 B} .

    Both directions have closed forms: find the bin, then a product and a sum.

    Choose it for speed, where a density with jumps will do, as in importance sampling of a light transport or a cross
    section: it is the cheapest of the splines, with a third of the raw numbers of :class:`RationalQuadraticSpline`.
    Its slope jumps at each knot, and so does the density that it makes, as a histogram does, and the gradient of that
    density says nothing of the jumps. For posteriors and for anything smooth take another.

    Args:
        num_bins: the number K of bins.
        bound: the half-width B of the box.

    Raises:
        ValueError: for a number of bins that is not from 1 to 500, or a bound that is not positive.

    References:
        Muller, McWilliams, Rousselle, Gross, Novak: Neural Importance Sampling, 2018, arXiv 1808.03856, section 4.1.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> spline = fp.LinearSpline(num_bins=2, bound=1.0)
        >>> raw = np.log([[1.0], [3.0]])  # the second bin is three times as high as the first
        >>> y, log_slope = spline.forward(raw, np.array([-0.5, 0.0, 2.0]))
        >>> y.round(3), np.exp(log_slope).round(3)
        (array([-0.75 , -0.499,  2.   ]), array([0.501, 1.499, 1.   ]))
    """

    num_bins: int = 8
    bound: float = 5.0

    def __post_init__(self):
        check_bins(self)

    @property
    def num_raw(self) -> int:
        return self.num_bins

    @in_single
    def forward(self, raw, x):
        return self._map(raw, x, is_forward=True)

    @in_single
    def inverse(self, raw, y):
        return self._map(raw, y, is_forward=False)

    def _map(self, raw, start, is_forward):
        xp = namespace(start)
        heights, tops = knots(align(raw, start), self.bound)
        width = 2 * self.bound / self.num_bins
        rights = width * xp.cumulative_sum(xp.ones_like(heights), axis=0) - self.bound
        inside = xp.abs(start) <= self.bound
        inner = xp.where(inside, start, xp.zeros_like(start))
        index = bin_of(inner, rights if is_forward else tops)
        slope, right, top = (xp.pick(table, index) for table in (heights / width, rights, tops))
        end = top - slope * (right - inner) if is_forward else right - (top - inner) / slope
        log_slope = xp.log(slope) if is_forward else -xp.log(slope)
        return xp.where(inside, end, start), xp.where(inside, log_slope, xp.zeros_like(log_slope))


@dataclasses.dataclass(frozen=True)
class CubicSpline:
    r"""A monotone cubic spline on a box, and straight lines outside it.

    The box :math:`[-B, B]^2` is cut into K bins, with widths :math:`w_k` and heights :math:`h_k` from 2 K raw numbers
    through a softmax each. In bin k, with :math:`s_k = h_k / w_k`, slopes :math:`d_k, d_{k+1}` at its ends and
    :math:`\xi = (x - x_k) / w_k`,

    .. math::
        y = y_k + h_k \Big[ \tfrac{d_k}{s_k}\, \xi (1 - \xi)^2 + \big(3 - \tfrac{d_{k+1}}{s_k}\big) \xi^2 (1 - \xi)
        + \xi^3 \Big] .

    At an inner knot the slope is that of Steffen, which keeps every bin monotone:
    :math:`d_k = 2 \min\{s_{k-1},\, s_k,\, (s_{k-1} w_k + s_k w_{k-1}) / (2 w_{k-1} + 2 w_k)\}`. At the two ends of the
    box it is between 0.01 and 2.9 times the slope of the bin there, by two more raw numbers, and the map goes on in
    these directions, so that it is continuously differentiable.

    The inverse finds the bin, and then the root in it by bisection and Newton's method, to the precision of the dtype.
    The closed forms of the roots of a cubic lose digits, and the more so the closer a bin is to a line.

    Choose it where the tails have scales of their own, which :class:`RationalQuadraticSpline` has not, or fewer raw
    numbers are wanted: 2 K + 2 for K bins. Otherwise that one bends more sharply, and its inverse is cheaper.

    Args:
        num_bins: the number K of bins.
        bound: the half-width B of the box.

    Raises:
        ValueError: for a number of bins that is not from 1 to 500, or a bound that is not positive.

    References:
        Durkan, Bekasov, Murray, Papamakarios: Cubic-Spline Flows, 2019, arXiv 1906.02145. Steffen: A simple method for
        monotonic interpolation in one dimension, 1990.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> spline = fp.CubicSpline(num_bins=2, bound=1.0)
        >>> raw = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 0.0])[:, None]  # widths, heights, the slopes at the two ends
        >>> y, log_slope = spline.forward(raw, np.array([0.0]))
        >>> x, _ = spline.inverse(raw, y)
        >>> y.round(4), x.round(12)
        (array([0.4612]), array([0.]))
    """

    num_bins: int = 8
    bound: float = 5.0

    inverse_cost = "iterative"

    def __post_init__(self):
        check_bins(self)

    @property
    def num_raw(self) -> int:
        return 2 * self.num_bins + 2

    @in_single
    def forward(self, raw, x):
        return self._map(_up, raw, x)

    @in_single
    def inverse(self, raw, y):
        return self._map(_down, raw, y)

    def _map(self, through_bin, raw, start):
        xp, num = namespace(start), self.num_bins
        raw_widths, raw_heights, raw_ends = xp.split(align(raw, start), (num, num, 2))
        widths, rights = knots(raw_widths, self.bound)
        heights, tops = knots(raw_heights, self.bound)
        slopes = _slopes(widths, heights / widths, raw_ends)

        inner = clipped(start, -self.bound, self.bound)
        index = bin_of(inner, rights if through_bin is _up else tops)
        width, right, height, top = (xp.pick(table, index) for table in (widths, rights, heights, tops))
        ratios = [xp.pick(slopes, i) * width / height for i in (index, index + 1)]
        inside = through_bin(inner, right - width, width, top - height, height, *ratios)
        log_ends = xp.log(slopes) if through_bin is _up else -xp.log(slopes)
        low, high = ((end, end, log_ends[i, ...]) for i, end in ((0, -self.bound), (num, self.bound)))
        return with_tails(start, inside, low, high)


def _slopes(widths, steepness, raw_ends):
    """The slopes at all knots."""
    xp = namespace(widths)
    ratios = MIN_END + (MAX_END - MIN_END) * xp.sigmoid(raw_ends + UNIT_END)
    left, right = ratios[:1, ...] * steepness[:1, ...], ratios[1:, ...] * steepness[-1:, ...]
    before, after = steepness[:-1, ...], steepness[1:, ...]
    width, next_width = widths[:-1, ...], widths[1:, ...]
    parabola = (before * next_width + after * width) / (width + next_width)
    inner = xp.minimum(2 * xp.minimum(before, after), parabola)
    return xp.concat([left, inner, right], axis=0)


def _cubic(xi, first, last):
    """The cubic from 0 to 1 with these slopes at its ends, and its slope."""
    rest = 1 - xi
    value = first * xi * rest * rest + (3 - last) * xi * xi * rest + xi * xi * xi
    return value, first * rest * rest + 2 * (3 - first - last) * xi * rest + last * xi * xi


def _up(x, left, width, bottom, height, first, last):
    xp = namespace(x)
    value, slope = _cubic(put_back((x - left) / width, 0.0, 1.0), first, last)
    return bottom + height * value, xp.log(slope * height / width)


def _down(y, left, width, bottom, height, first, last):
    xp = namespace(y)
    target = put_back((y - bottom) / height, 0.0, 1.0)

    def equation(xi, target, first, last):
        value, slope = _cubic(xi, first, last)
        return value - target, slope

    lower, upper = 0 * target, 0 * target + 1  # no numbers where y is none
    xi = put_back(bracketed_root(equation, (target, first, last), lower, upper, num_steps=24), 0.0, 1.0)
    return left + width * xi, -xp.log(_cubic(xi, first, last)[1] * height / width)
