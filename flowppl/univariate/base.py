r"""Maps of one real number to another, with parameters that a conditioner supplies.

A univariate map is a frozen dataclass with a number ``num_raw`` and two functions,

- ``forward(raw, x) -> (y, log_slope)``,
- ``inverse(raw, y) -> (x, log_slope)``,

which act on every entry of an array of any shape. ``raw`` has one more axis, in front, of length ``num_raw``:
unconstrained numbers, any real values, from which the map makes its parameters. ``log_slope`` is the logarithm of the
derivative of the map just applied, entry by entry. With ``raw = 0`` the map is the identity.

``inverse_cost`` may say ``"iterative"``, as for a bijection; a map on a circle has a ``period``.

A map knows no network: :class:`flowppl.Coupling` and :class:`flowppl.Autoregressive` take any of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

from flowppl._arrays.namespace import Array, namespace
from flowppl.checks import is_rising


def align(raw: Array, x: Array) -> Array:
    """``raw`` with axes of length 1 behind its first, for the batch axes that only ``x`` has."""
    missing = x.ndim + 1 - raw.ndim
    return namespace(raw).reshape(raw, (raw.shape[0], *(1,) * missing, *raw.shape[1:])) if missing > 0 else raw


def in_single(direction: Callable[..., tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
    """A direction of a map, computed in the wider dtype of its two arrays, and half precision in single precision.

    The knots of a spline, or the steps to a root, are finer than half precision. What comes out is rounded to it.
    """

    @functools.wraps(direction)
    def widened(self: Any, raw: Array, x: Array) -> tuple[Array, Array]:
        xp = namespace(x)
        if raw.dtype == x.dtype and xp.finfo(x.dtype).bits >= 32:
            return direction(self, raw, x)
        dtype = xp.result_type(raw, x)
        wide = dtype if xp.finfo(dtype).bits >= 32 else xp.float32
        y, log_slope = direction(self, xp.astype(raw, wide), xp.astype(x, wide))
        return xp.astype(y, dtype), xp.astype(log_slope, dtype)

    return widened


Bound = float | tuple[float, float]


def bounded(raw: Array, bound: Bound, sign: int = 1) -> Array:
    """A number that follows the raw one near zero, between minus and plus ``bound``, or between the two of a pair.

    With ``sign=-1`` it is the negative of that.
    """
    xp = namespace(raw)
    if isinstance(bound, tuple):
        low, high = bound
        return xp.where(raw > 0, sign * high * xp.tanh(raw / high), sign * low * xp.tanh(raw / low))
    return sign * bound * xp.tanh(raw / bound)


def check_bound(owner: str, log_scale_bound: Bound) -> None:
    """Raise ValueError unless the bound is positive and finite, or a pair of finite ones around zero."""
    pair: Any = log_scale_bound
    low, high = pair if isinstance(pair, tuple) and len(pair) == 2 else (-1, pair)
    if not is_rising(-math.inf, low, 0, high, math.inf):
        raise ValueError(
            f"{owner}: log_scale_bound must be positive and finite, or a pair of finite numbers, one below and one "
            f"above 0, got {log_scale_bound!r}; 10 bounds almost nothing"
        )


class Univariate(Protocol):
    """What a conditioner needs of a univariate map; see the text at the head of this module."""

    @property
    def num_raw(self) -> int: ...
    def forward(self, raw: Array, x: Array) -> tuple[Array, Array]: ...
    def inverse(self, raw: Array, y: Array) -> tuple[Array, Array]: ...


def check_univariate(owner: str, value: Any, at_least: int = 0) -> None:
    """Raise TypeError or ValueError unless ``value`` is a univariate map of at least so many raw numbers."""
    num_raw = getattr(value, "num_raw", None)
    if isinstance(value, type) or not isinstance(num_raw, int):
        what = f"the class {value.__name__}" if isinstance(value, type) else repr(value)[:80]
        raise TypeError(
            f"{owner}: univariate must be a univariate map, such as flowppl.Affine() or "
            f"flowppl.RationalQuadraticSpline(8), got {what}"
        )
    if num_raw < at_least:
        raise ValueError(f"{owner}: {value!r} has no parameters for a network to make; it fits into Elementwise only")


@dataclasses.dataclass(frozen=True)
class Affine:
    r"""A shift and a bounded scale: :math:`y = x e^{s} + t`, with :math:`s = b \tanh(r_1 / b)` and :math:`t = r_0`.

    The log-scale is bounded smoothly: it follows the raw number near zero and never leaves :math:`(-b, b)`.
    An unbounded exponential is the commonest cause of overflow in deep affine flows; a clamp has no gradient.

    Args:
        log_scale_bound: the bound b, positive and finite. One layer scales by at most :math:`e^b`. Or a pair (low,
            high) around 0, between which the log-scale then lies, with low or high as b on its side. A pair such as
            (-2.0, 0.1) lets a layer shrink much and stretch little, which keeps deep flows of many dimensions stable:
            the asymmetric soft clip of Andrade, with tanh in the place of arctan. His other remedy is
            :class:`LogTails`.

    References:
        Andrade: Stable Training of Normalizing Flows for High-dimensional Variational Inference, 2024, arXiv
        2402.16408.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> y, log_slope = fp.Affine().forward(np.array([[1.0], [0.5]]), np.array([2.0]))
        >>> y.round(4), log_slope.round(4)
        (array([4.2824]), array([0.4954]))
    """

    log_scale_bound: Bound = 3.0

    def __post_init__(self):
        check_bound("Affine", self.log_scale_bound)

    @property
    def num_raw(self) -> int:
        return 2

    def forward(self, raw, x):
        xp = namespace(x)
        shift, raw = xp.unstack(raw, axis=0)
        log_scale = bounded(raw, self.log_scale_bound)
        return x * xp.exp(log_scale) + shift, log_scale

    def inverse(self, raw, y):
        xp = namespace(y)
        shift, raw = xp.unstack(raw, axis=0)
        log_slope = bounded(raw, self.log_scale_bound, -1)
        return (y - shift) * xp.exp(log_slope), log_slope


@dataclasses.dataclass(frozen=True)
class Shift:
    r"""A shift alone: :math:`y = x + r_0`; its slope is 1. The additive map of NICE.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> fp.Shift().forward(np.array([[1.0]]), np.array([2.0]))
        (array([3.]), array([0.]))
    """

    @property
    def num_raw(self) -> int:
        return 1

    def forward(self, raw, x):
        y = x + raw[0, ...]
        return y, namespace(y).zeros_like(y)

    def inverse(self, raw, y):
        x = y - raw[0, ...]
        return x, namespace(x).zeros_like(x)


@dataclasses.dataclass(frozen=True)
class Scale:
    r"""A bounded scale alone: :math:`y = x e^{s}`, with :math:`s = b \tanh(r_0 / b)`. The rescaling layer of NICE.

    Args:
        log_scale_bound: the bound b, positive, as in :class:`Affine`.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> fp.Scale().forward(np.array([[0.0]]), np.array([2.0]))
        (array([2.]), array([0.]))
    """

    log_scale_bound: Bound = 3.0

    def __post_init__(self):
        check_bound("Scale", self.log_scale_bound)

    @property
    def num_raw(self) -> int:
        return 1

    def forward(self, raw, x):
        log_scale = bounded(raw[0, ...], self.log_scale_bound)
        return x * namespace(x).exp(log_scale), log_scale

    def inverse(self, raw, y):
        log_scale = bounded(raw[0, ...], self.log_scale_bound)
        return y * namespace(y).exp(-log_scale), -log_scale
