"""Pictures of a fit: its posterior, its losses and the tail of its weights. They need ``flowppl[plot]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from flowppl.inference.diagnostics import coordinates
from flowppl.inference.importance import k_hat_threshold, smooth, tail_length

# Okabe and Ito's colours, which all eyes can tell apart; the line styles differ too.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
STYLES = {
    "reference": {"color": GREY, "linestyle": "-"},
    "guide": {"color": BLUE, "linestyle": "-"},
    "resampled": {"color": ORANGE, "linestyle": "--"},
}
MAX_COORDINATES = 6
BINS = 60


def pairs(
    guide: Mapping,
    resampled: Mapping | None = None,
    reference: Mapping | None = None,
    names: Sequence[str] | None = None,
    axes=None,
):
    """Marginals and pairs of coordinates of a posterior; the contours hold 50% and 90% of the draws.

    Args:
        guide: draws of a guide: for each site an array ``(n, ...)``.
        resampled: the same, corrected by ``resample``.
        reference: the same, such as draws of NUTS.
        names: sites or coordinates to show, such as ``["tau", "theta[0]"]``; ``None`` shows the first six coordinates.
        axes: a square array of matplotlib axes; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: if there is nothing of a name, or ``axes`` do not fit.
        ImportError: without matplotlib; install ``flowppl[plot]``.

    Example:
        >>> import numpy as np
        >>> from flowppl.plotting import pairs
        >>> draws = {"z": np.random.default_rng(0).normal(size=(1000, 2))}
        >>> len(pairs(draws).axes)
        4
    """
    pyplot = _pyplot()
    groups = {"reference": reference, "guide": guide, "resampled": resampled}
    draws = {label: coordinates(group) for label, group in groups.items() if group is not None}
    shown = _select(list(draws["guide"]), names)
    size = len(shown)
    if axes is None:
        side = max(2.0 * size + 0.8, 4.0)
        _, axes = pyplot.subplots(size, size, figsize=(side, side), squeeze=False, layout="constrained")
    axes = np.asarray(axes, dtype=object)
    if axes.size != size**2:
        raise ValueError(f"pairs shows {size} coordinates and needs {size} x {size} axes, got {axes.size}")
    axes = axes.reshape(size, size)
    ranges = {name: _range([group[name] for group in draws.values() if name in group]) for name in shown}
    for row, y in enumerate(shown):
        for column, x in enumerate(shown):
            ax = axes[row, column]
            if column > row:
                ax.axis("off")
                continue
            for label, group in draws.items():
                if x in group and y in group:
                    if row == column:
                        _marginal(ax, group[x], ranges[x], label)
                    else:
                        _contours(ax, group[x], group[y], ranges[x], ranges[y], label)
            _finish(ax)
            ax.set_xlim(ranges[x])
            ax.locator_params(nbins=3)
            ax.tick_params(labelbottom=row == size - 1, labelleft=0 == column < row)
            if row == column:
                ax.set(ylim=(0, None), yticks=[])
                ax.spines["left"].set_visible(False)
            else:
                ax.set_ylim(ranges[y])
            if row == size - 1:
                ax.set_xlabel(x)
            if column == 0 < row:
                ax.set_ylabel(y)
    figure = axes[0, 0].figure
    corner = axes[0, -1]
    lines = [pyplot.Line2D([], [], linewidth=2, label=label, **STYLES[label]) for label in draws]
    corner.legend(handles=lines, frameon=False, loc="upper right")
    return figure


def losses(losses, elbo: float | None = None, elbo_se: float | None = None, axes=None):
    """The losses of a fit with their running median, and minus the final ELBO.

    Args:
        losses: the loss of each step; what is not finite leaves a gap.
        elbo: the ELBO of the fitted guide.
        elbo_se: its standard error, shown as a band of two of them to each side.
        axes: matplotlib axes; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: if there are no losses.
        ImportError: without matplotlib; install ``flowppl[plot]``.

    Example:
        >>> import numpy as np
        >>> from flowppl.plotting import losses
        >>> losses(5.0 + np.exp(-np.arange(500) / 50), elbo=-5.0, elbo_se=0.01).get_xlabel()
        'step'
    """
    losses = np.asarray(losses, dtype=np.float64).ravel()
    if not len(losses):
        raise ValueError("losses needs the loss of one step or more")
    ax = _axes(axes)
    losses = np.where(np.isfinite(losses), losses, np.nan)
    window = max(len(losses) // 50, 1)
    ends = np.unique(np.linspace(window, len(losses), min(len(losses), 500)).astype(int))
    finite = [block[np.isfinite(block)] for block in (losses[end - window : end] for end in ends)]
    medians = np.array([np.median(block) if len(block) else np.nan for block in finite])
    ax.plot(np.arange(1, len(losses) + 1), losses, color=BLUE, alpha=0.4, linewidth=0.6, label="loss")
    ax.plot(ends - (window - 1) / 2, medians, color=BLUE, linewidth=2, label="running median")
    late = losses[len(losses) // 2 :]
    # The first steps may be orders of magnitude higher: show where the fit ends.
    heights = [*np.quantile(late[np.isfinite(late)], [0.01, 0.99])] if np.isfinite(late).any() else []
    if elbo is not None and np.isfinite(elbo):
        label = f"-ELBO = {-elbo:.2f}"
        if elbo_se is not None and np.isfinite(elbo_se):
            ax.axhspan(-elbo - 2 * elbo_se, -elbo + 2 * elbo_se, color=ORANGE, alpha=0.25, linewidth=0)
            label += f" ± {elbo_se:.2g}"
        ax.axhline(-elbo, color=ORANGE, linestyle="--", label=label)
        heights.append(-elbo)
    if heights:
        margin = max(heights) - min(heights) or 1.0
        ax.set_ylim(min(heights) - margin / 4, max(heights) + margin)
    ax.set(xlabel="step", ylabel="loss", xlim=(1, max(len(losses), 2)))
    ax.legend(frameon=False, loc="upper right")
    _finish(ax)
    return ax


def k_hat_tail(log_weights, axes=None):
    r"""The largest importance weights and the Pareto tail fitted to them, whose shape is :math:`\hat k`.

    On these scales a Pareto tail ends in a line of slope :math:`-\hat k`. The line shown is what smoothing puts in
    place of the weights; it goes no higher than the largest of them.

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z); what is not finite is left out.
        axes: matplotlib axes; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: if fewer than 25 weights are finite.
        ImportError: without matplotlib or arviz; install ``flowppl[plot]``.

    Example:
        >>> import numpy as np
        >>> from flowppl.plotting import k_hat_tail
        >>> z = np.random.default_rng(0).normal(size=5000)
        >>> k_hat_tail(0.3 * z**2).get_ylabel()
        'weight / mean weight'
    """
    log_weights = np.asarray(log_weights, dtype=np.float64).ravel()
    log_weights = log_weights[np.isfinite(log_weights)]
    size = len(log_weights)
    if size < 25:
        raise ValueError(f"k_hat_tail needs at least 25 finite weights, got {size}")
    smoothed, shape = smooth(log_weights)
    length = tail_length(size)
    highest = log_weights.max()
    log_mean = highest + np.log(np.mean(np.exp(log_weights - highest)))
    raw, fitted = (np.exp(np.sort(values)[::-1][: 3 * length] - log_mean) for values in (log_weights, smoothed))
    share = (np.arange(len(raw)) + 0.5) / size
    ax = _axes(axes)
    ax.loglog(share, raw, ".", color=BLUE, markersize=5, label="weights of the draws")
    if np.isfinite(shape):
        ax.loglog(share[:length], fitted[:length], color=ORANGE, linewidth=2, label="fitted Pareto tail")
    limit = k_hat_threshold(size)
    ax.set(xlabel="share of draws with a larger weight", ylabel="weight / mean weight")
    ax.set_title(f"k-hat = {shape:.2f} ({'above' if shape > limit else 'within'} the limit of {limit:.2f})")
    ax.legend(frameon=False)
    _finish(ax)
    return ax


def _pyplot():
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'flowppl[plot]'") from error
    return pyplot


def _axes(axes):
    return _pyplot().subplots(figsize=(6, 4), layout="constrained")[1] if axes is None else axes


def _finish(ax):
    ax.spines[["top", "right"]].set_visible(False)


def _select(known, names):
    if names is None:
        return known[:MAX_COORDINATES]
    names = [names] if isinstance(names, str) else names
    groups = [[name for name in known if name == wanted or name.startswith(f"{wanted}[")] for wanted in names]
    if not groups or not all(groups):
        raise ValueError(f"names must be sites or coordinates of the guide's draws, among {known}, got {list(names)}")
    return [name for group in groups for name in group]


def _range(values):
    """Where nearly all draws are, whatever the tails."""
    ends = [np.quantile(finite, [0.01, 0.99]) for finite in (x[np.isfinite(x)] for x in values) if len(finite)]
    low, high = (min(end[0] for end in ends), max(end[1] for end in ends)) if ends else (0.0, 1.0)
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _marginal(ax, values, limits, label):
    count, edges = np.histogram(values, BINS, limits)
    density = _smoothed(count, _width(len(values), 1)) / max(len(values), 1)
    middle = (edges[1:] + edges[:-1]) / 2
    ax.plot(middle, density, linewidth=1.8, **STYLES[label])
    if label == "reference":
        ax.fill_between(middle, density, color=GREY, alpha=0.3, linewidth=0)


def _contours(ax, x, y, x_limits, y_limits, label):
    count, x_edges, y_edges = np.histogram2d(x, y, BINS, (x_limits, y_limits))
    if not count.any():
        return
    width = _width(len(x), 2)
    density = np.apply_along_axis(_smoothed, 0, np.apply_along_axis(_smoothed, 1, count, width), width)
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    levels = [ordered[np.searchsorted(mass, level)] for level in (0.9, 0.5)]
    if levels[0] == levels[1]:
        return
    x_middle, y_middle = ((edges[1:] + edges[:-1]) / 2 for edges in (x_edges, y_edges))
    if label == "reference":
        shades = [(0.6, 0.6, 0.6, 0.25), (0.6, 0.6, 0.6, 0.55)]
        ax.contourf(x_middle, y_middle, density.T, [*levels, np.inf], colors=shades)
    else:
        style = STYLES[label]
        ax.contour(
            x_middle, y_middle, density.T, levels, colors=style["color"], linestyles=style["linestyle"], linewidths=1.5
        )


def _width(num_draws, dim):
    """The width of the kernel in bins, by Scott's rule for a density that spans a sixth of the axis."""
    return BINS / 6 * max(num_draws, 1) ** (-1 / (dim + 4))


def _smoothed(counts, width):
    offsets = np.arange(-BINS // 2, BINS // 2 + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    return np.convolve(counts, kernel / kernel.sum())[BINS // 2 :][: len(counts)]
