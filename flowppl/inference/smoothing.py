"""Densities of draws on the axes of a picture."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

BOUNDS = (-1.0, 0.0, 1.0)  # where the support of a site may end
MAX_BARS = 60  # values of a site of integers that are shown one by one


class Scale:
    """An axis for draws of a coordinate: its limits, and the ends of their support that are near."""

    def __init__(self, groups: Iterable[np.ndarray]):
        some = [values for values in (group[np.isfinite(group)] for group in groups) if len(values)] or [np.zeros(1)]
        lowest, highest = min(values.min() for values in some), max(values.max() for values in some)
        self.lower, self.upper = -np.inf, np.inf
        self.is_integer = 0 < highest - lowest < MAX_BARS and all((values == np.round(values)).all() for values in some)
        if self.is_integer:
            self.limits = float(lowest) - 0.7, float(highest) + 0.7
            self._edges = np.arange(lowest - 1.5, highest + 2)  # with an empty bin on each side
            return
        low = float(min(np.quantile(values, 0.005) for values in some))
        high = float(max(np.quantile(values, 0.995) for values in some))
        if high - low <= 1e-6 * abs(high):  # a constant, but for rounding
            self.limits = low - 0.1 * (abs(low) or 10.0), high + 0.1 * (abs(high) or 10.0)
        else:
            margin, edge = 0.2 * (high - low), 0.02 * (high - low)
            self.lower = max((bound for bound in BOUNDS if low - margin < bound <= lowest), default=-np.inf)
            self.upper = min((bound for bound in BOUNDS if highest <= bound < high + margin), default=np.inf)
            self.limits = max(low - margin, self.lower - edge), min(high + margin, self.upper + edge)
        # Draws next to the axis have a share in the density on it.
        beyond = 0.25 * (self.limits[1] - self.limits[0])
        self._range = max(self.limits[0] - beyond, self.lower), min(self.limits[1] + beyond, self.upper)

    def edges(self, num_bins: int) -> np.ndarray:
        """The edges of the bins of a histogram."""
        return self._edges if self.is_integer else np.linspace(*self._range, num_bins + 1)

    def smoother(self, values: np.ndarray, edges: np.ndarray, dim: int) -> np.ndarray:
        """The matrix that smoothes a histogram of draws: at each bin a straight line through the bins around it.

        They are weighted by a Gaussian kernel. Its width is that of Silverman's rule, and goes by the shortest interval
        with a quarter of the draws, which does not take the distance between two modes, or a heavy tail, for the width
        of a mode. A line needs nothing from beyond the end of the support.
        """
        if self.is_integer:
            return np.eye(len(edges) - 1)
        values = np.sort(values[(values >= edges[0]) & (values <= edges[-1])])
        quarter = len(values) // 4
        spread = 0.0
        if quarter:
            spread = min(values.std(), (values[quarter:] - values[:-quarter]).min() / 0.637) or values.std()
        width = (0.9 if dim == 1 else 1.4) * spread * max(len(values), 1) ** (-1 / (dim + 4))
        steps = np.arange(len(edges) - 1)
        distance = (steps - steps[:, None]) / max(width / (edges[1] - edges[0]), 1.0)
        kernel = np.exp(-0.5 * distance**2)
        sums = [(kernel * distance**power).sum(axis=1, keepdims=True) for power in range(3)]
        return kernel * (sums[2] - sums[1] * distance) / (sums[0] * sums[2] - sums[1] ** 2)


def middles(edges: np.ndarray) -> np.ndarray:
    """The middles of bins."""
    return (edges[1:] + edges[:-1]) / 2


def density(values: np.ndarray, scale: Scale, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """The edges of the bins of an axis, and the density on each of finite draws."""
    edges = scale.edges(num_bins)
    share = np.histogram(values, edges)[0] / max(len(values), 1)
    return edges, np.maximum(scale.smoother(values, edges, 1) @ share, 0.0) / np.diff(edges)


def joint_density(
    x: np.ndarray, y: np.ndarray, scales: tuple[Scale, Scale], num_bins: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions on two axes, and the density of finite draws at them, a row for each position on the second."""
    edges = [scale.edges(num_bins) for scale in scales]
    share = np.histogram2d(x, y, edges)[0] / max(len(x), 1)
    found = scales[0].smoother(x, edges[0], 2) @ share @ scales[1].smoother(y, edges[1], 2).T
    found = np.maximum(found, 0.0) / np.outer(*map(np.diff, edges))
    for axis, scale in enumerate(scales):
        if scale.is_integer:  # blocks, rather than slopes from one to the next
            edges[axis] = np.linspace(edges[axis][0], edges[axis][-1], 8 * (len(edges[axis]) - 1) + 1)
            found = np.repeat(found, 8, axis)
    return middles(edges[0]), middles(edges[1]), found.T
