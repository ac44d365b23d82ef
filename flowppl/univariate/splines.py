"""Monotone splines: flexible univariate maps with a closed-form inverse."""

from __future__ import annotations

import dataclasses
import math

from flowppl._arrays.namespace import namespace
from flowppl.univariate.base import align, in_single
from flowppl.univariate.curves import bin_of, check_bins, knots, positive_slope, put_back


@dataclasses.dataclass(frozen=True)
class RationalQuadraticSpline:
    r"""A monotone rational-quadratic spline on a box, and the identity outside it.

    The box :math:`[-B, B]^2` is cut into K bins. In the bin from :math:`(x_k, y_k)` to :math:`(x_{k+1}, y_{k+1})`, with
    :math:`s = (y_{k+1} - y_k) / (x_{k+1} - x_k)`, slopes :math:`d_k, d_{k+1}` at its ends and
    :math:`\xi = (x - x_k) / (x_{k+1} - x_k)`,

    .. math::
        y = y_k + \frac{(y_{k+1} - y_k)\,[s \xi^2 + d_k \xi (1 - \xi)]}{s + (d_{k+1} + d_k - 2 s)\, \xi (1 - \xi)} .

    The raw numbers are K widths and K heights, each through a softmax, and K - 1 slopes at the inner knots, through a
    softplus and at most :math:`10^8`. At both ends of the box the slope is 1, so that the map is continuously
    differentiable. Inputs of any size are safe: the spline sees only those inside its box. The inverse is the root of a
    quadratic, in a form without cancellation.

    Args:
        num_bins: the number K of bins.
        bound: the half-width B of the box.

    Raises:
        ValueError: for a number of bins that is not from 1 to 500, or a bound that is not positive.

    References:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, 2019, arXiv 1906.04032. Gregory, Delbourgo:
        Piecewise Rational Quadratic Interpolation to Monotonic Data, 1982.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> spline = fp.RationalQuadraticSpline(num_bins=2, bound=1.0)
        >>> raw = np.array([0.0, 0.0, 1.0, 0.0, 0.0])[:, None]  # widths, heights, the slope in the middle
        >>> y, log_slope = spline.forward(raw, np.array([0.0]))
        >>> y.round(4), log_slope.round(12)
        (array([0.4612]), array([0.]))
    """

    num_bins: int = 8
    bound: float = 5.0

    def __post_init__(self):
        check_bins(self)

    @property
    def num_raw(self) -> int:
        return 3 * self.num_bins - 1

    @in_single
    def forward(self, raw, x):
        return self._map(_up, raw, x)

    @in_single
    def inverse(self, raw, y):
        return self._map(_down, raw, y)

    def _map(self, through_bin, raw, start):
        xp, bound = namespace(start), self.bound
        widths, heights, slopes = xp.split(align(raw, start), (self.num_bins, self.num_bins, self.num_bins - 1))
        outer = xp.ones_like(widths[:1, ...])
        slopes = xp.concat([outer, positive_slope(slopes), outer], axis=0)
        inside = xp.abs(start) <= bound
        inner = xp.where(inside, start, xp.zeros_like(start))
        end, log_slope = _through_box(through_bin, widths, heights, slopes, inner, self.bound)
        return xp.where(inside, end, start), xp.where(inside, log_slope, xp.zeros_like(log_slope))


@dataclasses.dataclass(frozen=True)
class CircularSpline:
    r"""A rational-quadratic spline on a circle, for angles.

    As :class:`RationalQuadraticSpline`, on the box :math:`[-B, B]^2` with K slopes: the two ends of the box are one
    point of the circle and share theirs. The ends stay where they are. On the real line the map goes on
    periodically, :math:`f(x + 2B) = f(x) + 2B`, so that it is smooth everywhere and an angle may have any number of
    turns.

    A base distribution on the box, such as a uniform one, gives a flow on the circle. In a :class:`~flowppl.Coupling`
    the network is given the cosine and the sine of the angles it sees, so that what it does has no seam. In an
    :class:`~flowppl.Autoregressive` layer it sees the angles themselves.

    Args:
        num_bins: the number K of bins.
        bound: the half-width B of the box, half a turn.

    Raises:
        ValueError: for a number of bins that is not from 1 to 500, or a bound that is not positive.

    References:
        Rezende, Papamakarios, Racaniere, Albergo, Kanwar, Shanahan, Cranmer: Normalizing Flows on Tori and Spheres,
        2020, arXiv 2002.02428.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> raw = np.linspace(-1, 1, 12)[:, None]
        >>> y, _ = fp.CircularSpline(num_bins=4).forward(raw, np.array([0.5, 0.5 + 2 * np.pi]))
        >>> bool(np.isclose(y[1] - y[0], 2 * np.pi))
        True
    """

    num_bins: int = 8
    bound: float = math.pi

    def __post_init__(self):
        check_bins(self)

    @property
    def num_raw(self) -> int:
        return 3 * self.num_bins

    @property
    def period(self) -> float:
        """The length of a full turn."""
        return 2 * self.bound

    @in_single
    def forward(self, raw, x):
        return self._map(_up, raw, x)

    @in_single
    def inverse(self, raw, y):
        return self._map(_down, raw, y)

    def _map(self, through_bin, raw, start):
        xp = namespace(start)
        widths, heights, slopes = xp.split(align(raw, start), (self.num_bins,) * 3)
        slopes = positive_slope(slopes)
        slopes = xp.concat([slopes, slopes[:1, ...]], axis=0)
        turns = self.period * xp.floor((start + self.bound) / self.period)
        angle = put_back(start - turns, -self.bound, self.bound)
        end, log_slope = _through_box(through_bin, widths, heights, slopes, angle, self.bound)
        return end + turns, log_slope


def _through_box(through_bin, widths, heights, slopes, start, bound):
    """Find the bin of each entry and map the entry through it; widths and heights are raw."""
    xp = namespace(start)
    widths, rights = knots(widths, bound)
    heights, tops = knots(heights, bound)
    index = bin_of(start, rights if through_bin is _up else tops)
    width, right, height, top = (xp.pick(table, index) for table in (widths, rights, heights, tops))
    slope_left, slope_right = xp.pick(slopes, index), xp.pick(slopes, index + 1)
    return through_bin(xp, start, right - width, width, top - height, height, slope_left, slope_right)


def _up(xp, x, left, width, bottom, height, slope_left, slope_right):
    xi = put_back((x - left) / width, 0.0, 1.0)
    steepness = height / width
    both = xi * (1 - xi)
    denominator = steepness + (slope_left + slope_right - 2 * steepness) * both
    y = bottom + height * (steepness * xi * xi + slope_left * both) / denominator
    return y, _log_slope(xp, xi, steepness, denominator, slope_left, slope_right)


def _down(xp, y, left, width, bottom, height, slope_left, slope_right):
    t = put_back((y - bottom) / height, 0.0, 1.0)
    steepness = height / width
    # The quadratic in xi has b = difference + 2 s t and the discriminant below: sums of what is positive. Of the two
    # forms of its root each is free of cancellation for one sign of the difference.
    difference = slope_left * (1 - t) - slope_right * t
    falling = difference >= 0
    size = xp.where(falling, difference, -difference)
    reach = size + xp.sqrt(size * size + 4 * steepness * steepness * t * (1 - t))
    near = xp.where(falling, 2 * steepness * t, reach)
    far = xp.where(falling, reach, 2 * steepness * (1 - t))
    xi = near / (near + far)
    denominator = steepness + (slope_left + slope_right - 2 * steepness) * xi * (1 - xi)
    return left + width * xi, -_log_slope(xp, xi, steepness, denominator, slope_left, slope_right)


def _log_slope(xp, xi, steepness, denominator, slope_left, slope_right):
    rest = 1 - xi
    numerator = slope_right * xi * xi + 2 * steepness * xi * rest + slope_left * rest * rest
    ratio = steepness / denominator
    return xp.log(numerator * ratio * ratio)
