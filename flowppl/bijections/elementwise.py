"""Univariate maps of each coordinate alone, and fixed maps, most of them onto intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import REAL_LINE, Bijection, check_event
from flowppl.checks import as_shape, assign, check_positive, check_sizes, is_rising
from flowppl.declare import Parameter
from flowppl.univariate.base import Univariate, check_univariate


@dataclasses.dataclass(frozen=True)
class Elementwise(Bijection):
    r"""A univariate map :math:`\tau` of each coordinate, with parameters of its own: :math:`y_i = \tau(x_i;\, r_i)`.

    Maps without parameters serve here too: as the last layer, ``Elementwise(dim, Bounded(0.0, 10.0))`` gives a flow its
    support. Events of any other shape, such as images, are mapped in the same way: ``Elementwise((3, 32, 32), ...)``.

    Args:
        dim: the number of coordinates, or the shape of an event.
        univariate: the map: :class:`~flowppl.Affine`, :class:`~flowppl.Scale`,
            :class:`~flowppl.RationalQuadraticSpline`, :class:`~flowppl.LogisticMixture`, ...; or one without
            parameters: :class:`~flowppl.Sigmoid`, :class:`~flowppl.Softplus`, :class:`~flowppl.Tanh`,
            :class:`~flowppl.LeakyReLU`, :class:`~flowppl.Bounded`, :class:`~flowppl.LogTails`.

    Raises:
        ValueError: if ``dim`` < 1, or a size of the shape is.
        TypeError: if ``univariate`` is no univariate map.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> layer = fp.Elementwise(2, fp.Softplus())
        >>> y, log_det = layer.forward({}, np.array([0.0, 3.0]))
        >>> y.round(4), layer.y_support
        (array([0.6931, 3.0486]), (0.0, inf))
    """

    dim: int | Sequence[int]
    univariate: Univariate

    def __post_init__(self):
        if isinstance(self.dim, Sequence) and not isinstance(self.dim, str):
            assign(self, dim=as_shape("Elementwise", dim=self.dim))
        else:
            check_sizes("Elementwise", dim=self.dim)  # type: ignore[arg-type]
        check_univariate("Elementwise", self.univariate)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return tuple(self.dim) if isinstance(self.dim, Sequence) else (self.dim,)

    @property
    def y_support(self) -> tuple[float, float]:
        return getattr(self.univariate, "y_support", REAL_LINE)

    @property
    def inverse_cost(self) -> str:
        return getattr(self.univariate, "inverse_cost", "parallel")

    def parameters(self) -> Tree:
        num_raw = self.univariate.num_raw
        return {"raw": Parameter((num_raw, *self.x_shape))} if num_raw else {}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self._map(self.univariate.forward, params, x)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self._map(self.univariate.inverse, params, y)

    def push_score(self, params, x, score, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        raw = self._raw(params)
        if raw is not None and raw.ndim > 1 + len(self.x_shape):  # batch axes of the weights
            return super().push_score(params, x, score, context)
        (y, log_slope), pull = xp.vjp(lambda x: self.univariate.forward(raw, x), x)
        new = (xp.stop_gradient(score) - pull(xp.zeros_like(y), xp.ones_like(log_slope))[0]) * xp.exp(
            -xp.stop_gradient(log_slope)
        )
        return y, self._total(log_slope + xp.zeros_like(y)), new

    def _raw(self, params):
        """The parameters with the axis of each entry's own numbers in front."""
        return namespace(params["raw"]).moveaxis(params["raw"], -1 - len(self.x_shape), 0) if "raw" in params else None

    def _total(self, log_slope):
        return namespace(log_slope).sum(log_slope, axis=tuple(range(-len(self.x_shape), 0)))

    def _map(self, univariate, params, event):
        event, log_slope = univariate(self._raw(params), event)
        return event, self._total(log_slope + namespace(event).zeros_like(event))


class _Fixed:
    """A map without parameters."""

    num_raw = 0


@dataclasses.dataclass(frozen=True)
class Bounded(_Fixed):
    r"""The real line onto the interval from ``low`` to ``high``: :math:`y = l + (h - l)\, \sigma(x)`.

    A y at one of the ends counts as a number next to it, so that its density is finite.

    Args:
        low: the lower end l.
        high: the upper end h.

    Raises:
        ValueError: unless both are finite and ``low < high``; when it maps, if the dtype has too few numbers between.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> fp.Bounded(2.0, 4.0).forward(None, np.array([0.0]))
        (array([3.]), array([-0.69314718]))
    """

    low: float
    high: float

    def __post_init__(self):
        if not is_rising(-math.inf, self.low, self.high, math.inf):
            raise ValueError(f"Bounded: low must be below high, both finite, got {self.low!r} and {self.high!r}")

    @property
    def y_support(self) -> tuple[float, float]:
        return (self.low, self.high)

    def _unit(self, xp, y):
        """``y`` in the unit interval, off its ends by more than the rounding of the interval from low to high."""
        width = self.high - self.low
        margin = float(xp.finfo(y.dtype).eps) * max(abs(self.low), abs(self.high), width) / width
        if margin > 0.01:
            raise ValueError(f"{self} has too few numbers in {y.dtype}; use float64, or shift it towards 0")
        return xp.clip(y, margin, 1 - margin)

    def forward(self, raw, x):
        xp = namespace(x)
        y = self.low + (self.high - self.low) * self._unit(xp, xp.sigmoid(x))
        return y, math.log(self.high - self.low) - xp.softplus(x) - xp.softplus(-x)

    def inverse(self, raw, y):
        xp = namespace(y)
        y = self._unit(xp, (y - self.low) / (self.high - self.low))
        x, log_slope = _logit(xp, y)
        return x, log_slope - math.log(self.high - self.low)


@dataclasses.dataclass(frozen=True)
class Sigmoid(_Fixed):
    r"""The real line onto the unit interval: :math:`y = 1 / (1 + e^{-x})`.

    As :class:`Bounded` from 0 to 1, but with all the precision of floating point near 0.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> fp.Sigmoid().forward(None, np.array([0.0]))[0]
        array([0.5])
    """

    y_support = (0.0, 1.0)

    def forward(self, raw, x):
        xp = namespace(x)
        return _inside(xp, xp.sigmoid(x), 0.0), -xp.softplus(x) - xp.softplus(-x)

    def inverse(self, raw, y):
        xp = namespace(y)
        return _logit(xp, _inside(xp, y, 0.0))


@dataclasses.dataclass(frozen=True)
class Tanh(_Fixed):
    r"""The real line onto the interval from -1 to 1: :math:`y = \tanh x`; see :class:`Bounded` for its ends.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> fp.Tanh().forward(None, np.array([1.0]))[0].round(4)
        array([0.7616])
    """

    y_support = (-1.0, 1.0)

    def forward(self, raw, x):
        xp = namespace(x)
        return _inside(xp, xp.tanh(x), -1.0), math.log(4.0) - xp.softplus(2 * x) - xp.softplus(-2 * x)

    def inverse(self, raw, y):
        xp = namespace(y)
        y = _inside(xp, y, -1.0)
        return xp.atanh(y), -xp.log1p(y) - xp.log1p(-y)


@dataclasses.dataclass(frozen=True)
class Softplus(_Fixed):
    r"""The real line onto the positive numbers: :math:`y = \log(1 + e^x)`.

    A y of 0 counts as the smallest positive number, so that its density is finite.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> fp.Softplus().inverse(None, np.array([1.0]))[0].round(4)
        array([0.5413])
    """

    y_support = (0.0, math.inf)

    def forward(self, raw, x):
        xp = namespace(x)
        return _positive(xp, xp.softplus(x)), -xp.softplus(-x)

    def inverse(self, raw, y):
        xp = namespace(y)
        log_slope = xp.log(-xp.expm1(-_positive(xp, y)))
        return y + log_slope, -log_slope


@dataclasses.dataclass(frozen=True)
class LeakyReLU(_Fixed):
    r"""A kink at 0: y = x for positive x, and y = slope x for negative.

    Args:
        slope: the slope on the negative side, positive.

    Raises:
        ValueError: if the slope is not positive.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> fp.LeakyReLU(0.5).forward(None, np.array([-2.0, 2.0]))[0]
        array([-1.,  2.])
    """

    slope: float = 0.1

    def __post_init__(self):
        check_positive("LeakyReLU", slope=self.slope)

    def forward(self, raw, x):
        return self._bend(x, self.slope)

    def inverse(self, raw, y):
        return self._bend(y, 1 / self.slope)

    def _bend(self, x, slope):
        xp = namespace(x)
        zero = xp.zeros_like(x)
        return xp.where(x < 0, slope * x, x), xp.where(x < 0, zero + math.log(slope), zero)


@dataclasses.dataclass(frozen=True)
class LogTails(_Fixed):
    r"""The identity up to a threshold, and a logarithm beyond it, which makes far values near.

    .. math::
        y = \begin{cases} x & |x| \le \tau \\
        \mathrm{sign}(x)\, \big(\tau + \log(1 + |x| - \tau)\big) & |x| > \tau \end{cases}

    Its slope is 1 at the threshold from both sides. Both directions have closed forms. A y whose x is too large for
    its dtype counts as that of the largest x, so that its density is finite.

    Choose it as the last layer of a guide of many dimensions, whose first draws may lie so far out that the model
    overflows: ``Chain([realnvp(1000), Elementwise(1000, LogTails())])``. Turned around by :class:`~flowppl.Invert` it
    makes tails heavy: beyond the threshold those of a normal become those of a log-normal.

    Args:
        threshold: the threshold :math:`\tau`, positive; larger than what is to stay as it is.

    Raises:
        ValueError: if the threshold is not positive.

    References:
        Andrade: Stable Training of Normalizing Flows for High-dimensional Variational Inference, 2024, arXiv
        2402.16408.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> fp.LogTails(10.0).forward(None, np.array([5.0, 1e6]))[0].round(4)
        array([ 5.    , 23.8155])
    """

    threshold: float = 100.0

    def __post_init__(self):
        check_positive("LogTails", threshold=self.threshold)

    def forward(self, raw, x):
        xp = namespace(x)
        excess = xp.relu(xp.abs(x) - self.threshold)
        log_excess = xp.log1p(excess)
        return xp.where(excess > 0, xp.sign(x) * (self.threshold + log_excess), x), -log_excess

    def inverse(self, raw, y):
        xp = namespace(y)
        log_excess = xp.relu(xp.abs(y) - self.threshold)
        most = math.log(float(xp.finfo(y.dtype).max)) - 1
        is_too_large = (log_excess > most) & (log_excess < math.inf)
        log_excess = xp.where(is_too_large, xp.full_like(log_excess, most), log_excess)
        return xp.where(log_excess > 0, xp.sign(y) * (self.threshold + xp.expm1(log_excess)), y), log_excess


def _inside(xp, y, low):
    """``y`` kept off the ends of the interval from ``low``, which is -1 or 0, to 1."""
    finfo = xp.finfo(y.dtype)
    margin = float(finfo.eps) / 2
    return xp.clip(y, float(finfo.smallest_normal) if low == 0 else margin - 1, 1 - margin)


def _logit(xp, y):
    """The inverse of the sigmoid, and the log of its derivative."""
    below, above = xp.log(y), xp.log1p(-y)
    return below - above, -below - above


def _positive(xp, y):
    return xp.maximum(y, xp.zeros_like(y) + float(xp.finfo(y.dtype).smallest_normal))
