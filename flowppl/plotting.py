"""Pictures of a fit: its posterior, losses, weights and calibration. They need ``flowppl[plot]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flowppl.checks import describe
from flowppl.inference.calibration import Calibration, binomial_band
from flowppl.inference.epochs import Epochs
from flowppl.inference.importance import coordinates, k_hat_threshold, smooth, tail_length
from flowppl.inference.result import FitBase
from flowppl.inference.selection import select
from flowppl.inference.smoothing import Scale, density, joint_density, middles

__all__ = ["k_hat_tail", "losses", "pairs", "ranks"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which all eyes can tell apart; the line styles differ too.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
STYLES: dict[str, dict[str, Any]] = {
    "reference": {"color": GREY, "linestyle": "-"},
    "guide": {"color": BLUE, "linestyle": "-"},
    "resampled": {"color": ORANGE, "linestyle": "--"},
}
NUM_DRAWS = 4000  # of a fit
RANK_BINS = 20  # at most, with ten ranks or more expected in each
BINS = (400, 120)  # along an axis, for densities of one coordinate and of two


def pairs(
    draws: Any,
    resampled: Any = None,
    reference: Any = None,
    var_names: str | Sequence[str] | None = None,
    *,
    filter_vars: str | None = None,
    axes: Any = None,
) -> Figure:
    """Marginals and pairs of coordinates of a posterior; the contours hold 50% and 90% of the draws.

    All draws may be a :class:`Fit`, which is asked for draws; a dict with an array ``(n, ...)`` for each site; an
    ``arviz.InferenceData`` or ``xarray.DataTree`` with a group ``posterior``; or an ``MCMC`` of Pyro or NumPyro.

    The axes span nearly all draws; of a heavy tail the last hundredth is outside. Where all draws are on one side of 0,
    1 or -1 the density ends there. Sites of integers have a bar for each value.

    Args:
        draws: draws of a guide.
        resampled: the same, corrected by ``resample``.
        reference: draws to compare with, such as those of NUTS.
        var_names: sites or coordinates to show, such as ``["tau", "theta[0]"]``; with ``~`` before the names, what not
            to show. ``None`` shows the first six coordinates.
        filter_vars: how names are compared: ``None`` for equal names, ``"like"`` for a part of a name, ``"regex"`` for
            regular expressions.
        axes: a square array of matplotlib axes; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        TypeError: if draws are none of these.
        ValueError: if there is nothing of a name, there are too many coordinates, or ``axes`` do not fit.
        ImportError: without matplotlib; install ``flowppl[plot]``.

    Warns:
        UserWarning: if only the first coordinates are shown.

    Example:
        >>> import matplotlib, numpy as np
        >>> matplotlib.use("Agg")
        >>> from flowppl.plotting import pairs
        >>> rng = np.random.default_rng(0)
        >>> draws = {"tau": rng.exponential(size=1000), "theta": rng.normal(size=(1000, 8))}
        >>> figure = pairs(draws, var_names=["tau", "theta[0]"])
        >>> len(figure.axes)
        4
    """
    pyplot = _pyplot()
    given = {"reference": reference, "guide": draws, "resampled": resampled}
    groups = {label: coordinates(_draws(each, label)) for label, each in given.items() if each is not None}
    shown = select("pairs", list(groups["guide"]), var_names, filter_vars)
    size = len(shown)
    if axes is None:
        side = max(1.8 * size + 0.8, 4.0)
        _, axes = pyplot.subplots(size, size, figsize=(side, side), squeeze=False, layout="constrained")
    axes = np.asarray(axes, dtype=object)
    if axes.size != size**2:
        raise ValueError(f"pairs shows {size} coordinates and needs {size} x {size} axes, got {axes.size}")
    axes = axes.reshape(size, size)
    scales = {name: Scale([group[name] for group in groups.values() if name in group]) for name in shown}
    for row, y in enumerate(shown):
        for column, x in enumerate(shown):
            ax = axes[row, column]
            if column > row:
                ax.axis("off")
                continue
            for label, group in groups.items():
                if x in group and y in group:
                    if row == column:
                        _marginal(ax, group[x], scales[x], label)
                    else:
                        _contours(ax, group[x], group[y], (scales[x], scales[y]), label)
            _finish(ax)
            ax.set_xlim(scales[x].limits)
            ax.xaxis.set_major_locator(pyplot.MaxNLocator(3, integer=scales[x].is_integer))
            ax.tick_params(labelbottom=row == size - 1, labelleft=0 == column < row)
            if row == column:
                ax.set(ylim=(0, None), yticks=[])
                ax.spines["left"].set_visible(False)
            else:
                ax.set_ylim(scales[y].limits)
                ax.yaxis.set_major_locator(pyplot.MaxNLocator(3, integer=scales[y].is_integer))
            if row == size - 1:
                ax.set_xlabel(x)
            if column == 0 < row:
                ax.set_ylabel(y)
    figure = axes[0, 0].figure
    figure.align_labels(list(axes[:, 0]) + list(axes[-1]))
    if len(groups) > 1:
        lines = [pyplot.Line2D([], [], linewidth=2, label=label, **STYLES[label]) for label in groups]
        if size > 1:
            axes[0, -1].legend(handles=lines, frameon=False, loc="upper right")
        else:
            figure.legend(handles=lines, frameon=False, loc="outside upper center", ncols=len(lines))
    return figure


def losses(losses: Any, elbo: float | None = None, elbo_se: float | None = None, axes: Axes | None = None) -> Axes:
    """The losses of a training with their running median, and what it ended with.

    Args:
        losses: a :class:`Fit`, whose ELBO is shown too; a :class:`DensityFit` or :class:`VAEFit`, whose loss of each
            epoch is shown beside that of the held-out rows and the epoch that was kept; or the loss of each step. What
            is not finite leaves a gap.
        elbo: the ELBO of the fitted guide.
        elbo_se: its standard error, shown as a band of two of them to each side.
        axes: matplotlib axes; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: if there are no losses.
        ImportError: without matplotlib; install ``flowppl[plot]``.

    Example:
        >>> import matplotlib, numpy as np
        >>> matplotlib.use("Agg")
        >>> from flowppl.plotting import losses
        >>> losses(5.0 + np.exp(-np.arange(500) / 50), elbo=-5.0, elbo_se=0.01).get_xlabel()
        'step'
    """
    if isinstance(losses, Epochs):
        return _epochs(losses, axes)
    if isinstance(losses, FitBase):
        elbo = losses.elbo if elbo is None else elbo
        elbo_se = losses.elbo_se if elbo_se is None else elbo_se
        losses = losses.losses
    losses = _as_losses(losses)
    ax = _axes(axes)
    window = max(len(losses) // 50, 1)
    ends = np.unique(np.linspace(window, len(losses), min(len(losses), 500)).astype(int))
    finite = [block[np.isfinite(block)] for block in (losses[end - window : end] for end in ends)]
    medians = np.array([np.median(block) if len(block) else np.nan for block in finite])
    ax.plot(np.arange(1, len(losses) + 1), losses, color=BLUE, alpha=0.4, linewidth=0.6, label="loss")
    ax.plot(ends - (window - 1) / 2, medians, color=BLUE, linewidth=2, label="running median")
    heights: list[float] = []
    if elbo is not None and np.isfinite(elbo):
        label = f"-ELBO = {-elbo:.2f}"
        if elbo_se is not None and np.isfinite(elbo_se):
            ax.axhspan(-elbo - 2 * elbo_se, -elbo + 2 * elbo_se, color=ORANGE, alpha=0.25, linewidth=0)
            label += f" ± {elbo_se:.2f}" if elbo_se >= 0.005 else " ± < 0.01"
        ax.axhline(-elbo, color=ORANGE, linestyle="--", label=label)
        heights.append(-elbo)
    _limit(ax, [losses], heights)
    ax.set(xlabel="step", ylabel="loss (nats)", xlim=(1, max(len(losses), 2)))
    ax.legend(frameon=False, loc="upper right")
    _finish(ax)
    return ax


def _epochs(found: Epochs, axes: Axes | None) -> Axes:
    """The losses of a training in epochs."""
    series = {"training": (_as_losses(found.losses), BLUE, "-")}
    if len(found.validation_losses):
        series["held out"] = (_as_losses(found.validation_losses), ORANGE, "--")
    ax = _axes(axes)
    for label, (values, color, style) in series.items():
        marker = "." if len(values) < 30 else None
        ax.plot(np.arange(1, len(values) + 1), values, style, color=color, marker=marker, label=label)
    if found.best_epoch >= 0:
        ax.axvline(found.best_epoch + 1, color=GREY, linewidth=1, zorder=0, label=f"kept: epoch {found.best_epoch + 1}")
    _limit(ax, [values for values, *_ in series.values()], [])
    ax.set(xlabel="epoch", ylabel="loss (nats)", xlim=(1, max(len(found.losses), 2)))
    ax.xaxis.set_major_locator(_pyplot().MaxNLocator(integer=True))
    ax.legend(frameon=False, loc="upper right")
    _finish(ax)
    return ax


def _as_losses(losses: Any) -> np.ndarray:
    losses = np.asarray(losses, dtype=np.float64).ravel()
    if not len(losses):
        raise ValueError("losses needs the loss of one step or more")
    return np.where(np.isfinite(losses), losses, np.nan)


def _limit(ax: Axes, series: Sequence[np.ndarray], heights: Sequence[float]) -> None:
    """Show where a training ends: the first losses may be orders of magnitude higher."""
    late = [losses[len(losses) // 2 :] for losses in series]
    finite = [losses[np.isfinite(losses)] for losses in late if np.isfinite(losses).any()]
    heights = [*heights, *(end for losses in finite for end in np.quantile(losses, [0.01, 0.99]))]
    if heights:
        margin = max(heights) - min(heights) or 1.0
        ax.set_ylim(min(heights) - margin / 4, max(heights) + margin)


def k_hat_tail(log_weights: Any, axes: Axes | None = None) -> Axes:
    r"""The largest importance weights and the Pareto tail fitted to them, whose shape is :math:`\hat k`.

    On these scales a Pareto tail ends in a line of slope :math:`-\hat k`. The line shown is what smoothing puts in
    place of the weights; it goes no higher than the largest of them.

    Args:
        log_weights: an array of log weights, log p(x, z) - log q(z); what is not finite is left out.
        axes: matplotlib axes; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        TypeError: for a fit.
        ValueError: if fewer than 25 weights are finite.
        ImportError: without matplotlib; install ``flowppl[plot]``.

    Example:
        >>> import matplotlib, numpy as np
        >>> matplotlib.use("Agg")
        >>> from flowppl.plotting import k_hat_tail
        >>> z = np.random.default_rng(0).normal(size=5000)
        >>> k_hat_tail(0.3 * z**2).get_ylabel()
        'weight / mean weight'
    """
    if isinstance(log_weights, FitBase):
        raise TypeError(
            "k_hat_tail takes log weights, such as those that log_weights(...) gives; diagnose() judges a fit"
        )
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
    if raw[0] < 100 * raw[-1]:  # less than two decades, in which powers of ten are too few ticks
        ax.yaxis.set_major_locator(_pyplot().LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_formatter(_pyplot().NullFormatter())
    ax.yaxis.set_major_formatter(lambda height, _: f"{height:g}")
    limit = k_hat_threshold(size)
    ax.set(xlabel="share of draws with a larger weight", ylabel="weight / mean weight")
    ax.set_title(f"k-hat = {shape:.2f} ({'above' if shape > limit else 'within'} the limit of {limit:.2f})")
    ax.legend(frameon=False)
    _finish(ax)
    return ax


def ranks(
    calibration: Calibration,
    var_names: str | Sequence[str] | None = None,
    *,
    filter_vars: str | None = None,
    axes: Any = None,
) -> Figure:
    """Histograms of the ranks that ``sbc`` found, with the band in which those of calibrated guides stay.

    All bars of a calibrated coordinate are in its band with a probability of 95%, and near the line. Large ranks say
    that the guide is too low; many at both ends that it is too narrow, few there that it is too wide. Coordinates that
    are miscalibrated have another colour, and what is wrong with them in their title.

    Args:
        calibration: what ``sbc`` found.
        var_names: sites or coordinates to show, such as ``["tau", "theta[0]"]``; with ``~`` before the names, what not
            to show. ``None`` shows the first six coordinates.
        filter_vars: ``None`` takes the names as they are, ``"like"`` as parts of names, ``"regex"`` as patterns.
        axes: matplotlib axes, one for each coordinate; ``None`` makes a figure.

    Returns:
        The figure.

    Raises:
        TypeError: for what is no :class:`flowppl.diagnostics.Calibration`.
        ValueError: if ``var_names`` mean nothing or too many coordinates, or ``axes`` do not fit.
        ImportError: without matplotlib; install ``flowppl[plot]``.

    Warns:
        UserWarning: if only the first coordinates are shown.

    Example:
        >>> import matplotlib, numpy as np
        >>> matplotlib.use("Agg")
        >>> from flowppl.diagnostics import Calibration
        >>> from flowppl.plotting import ranks
        >>> drawn = np.random.default_rng(0).integers(0, 100, size=(2, 200))
        >>> len(ranks(Calibration({"mu": drawn[0], "tau": drawn[1]}, num_draws=99)).axes)
        2
    """
    pyplot = _pyplot()
    if not isinstance(calibration, Calibration):
        raise TypeError(f"ranks takes what sbc found, a Calibration, got {describe(calibration)}")
    shown = select("ranks", list(calibration.ranks), var_names, filter_vars)
    if axes is None:
        columns = min(len(shown), 3)
        rows = -(-len(shown) // columns)
        inches = (2.8 * columns + 0.6, 2.2 * rows + 0.6)
        _, grid = pyplot.subplots(rows, columns, figsize=inches, squeeze=False, sharey=True, layout="constrained")
        axes = grid.ravel()
        for ax in axes[len(shown) :]:
            ax.remove()
        axes = axes[: len(shown)]
    axes = np.ravel(np.asarray(axes, dtype=object))
    if axes.size != len(shown):
        raise ValueError(f"ranks shows {len(shown)} coordinates and needs as many axes, got {axes.size}")
    size, number = calibration.num_draws + 1, calibration.num_simulations
    num_bins = min(max(number // 10, 2), RANK_BINS, size)
    edges = np.round(np.linspace(0, size, num_bins + 1)).astype(int)
    lower, upper = binomial_band(number, np.diff(edges) / size)
    faults = calibration.faults
    for ax, name in zip(axes, shown, strict=True):
        counts = np.histogram(calibration.ranks[name], edges)[0]
        ax.stairs(upper, edges, baseline=lower, fill=True, color=GREY, alpha=0.35)
        ax.stairs(counts, edges, fill=True, color=ORANGE if name in faults else BLUE, alpha=0.7)
        ax.stairs(number * np.diff(edges) / size, edges, baseline=None, color="black", linewidth=1)
        ax.set_title(f"{name}: {faults[name]}" if name in faults else name, fontsize="medium")
        # An axis of the user's own figure may have no place in a grid.
        is_outer = ax.get_subplotspec() is None or ax.get_subplotspec().is_first_col()
        label = "simulations" if is_outer else ""
        ax.set(xlim=(0, size), xlabel=f"rank among {size - 1} draws", ylabel=label)
        ax.xaxis.set_major_locator(pyplot.MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(pyplot.MaxNLocator(4, integer=True))
        _finish(ax)
    return axes[0].figure


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'flowppl[plot]'") from error
    return pyplot


def _axes(axes: Axes | None) -> Axes:
    return _pyplot().subplots(figsize=(6, 4), layout="constrained")[1] if axes is None else axes


def _finish(ax: Axes) -> None:
    ax.spines[["top", "right"]].set_visible(False)


def _draws(given: Any, label: str) -> dict[str, np.ndarray]:
    """For each site an array ``(n, ...)``."""
    posterior = getattr(given, "posterior", given)  # of InferenceData and DataTree
    if isinstance(given, FitBase):
        found = given.sample(NUM_DRAWS)
    elif hasattr(given, "get_samples"):
        found = given.get_samples()
    elif hasattr(posterior, "data_vars"):
        found = {name: each.transpose("chain", "draw", ...).values for name, each in posterior.data_vars.items()}
        found = {name: value.reshape(-1, *value.shape[2:]) for name, value in found.items()}
    elif isinstance(given, Mapping):
        found = dict(given)
    else:
        raise TypeError(
            f"pairs: the {label} draws must be a Fit, a dict of arrays, an InferenceData or DataTree, or an MCMC, got "
            f"{type(given).__name__}"
        )
    # What is on a GPU has to come to the host first.
    return {name: np.asarray(value.detach().cpu() if hasattr(value, "cpu") else value) for name, value in found.items()}


def _marginal(ax: Axes, values: np.ndarray, scale: Scale, label: str) -> None:
    edges, heights = density(values[np.isfinite(values)], scale, BINS[0])
    is_filled = label == "reference"
    if scale.is_integer:
        ax.stairs(heights, edges, linewidth=1.8, fill=is_filled, alpha=0.6 if is_filled else 1, **STYLES[label])
        return
    ax.plot(middles(edges), heights, linewidth=1.8, **STYLES[label])
    if is_filled:
        ax.fill_between(middles(edges), heights, color=GREY, alpha=0.3, linewidth=0)


def _contours(ax: Axes, x: np.ndarray, y: np.ndarray, scales: tuple[Scale, Scale], label: str) -> None:
    finite = np.isfinite(x) & np.isfinite(y)
    *grid, heights = joint_density(x[finite], y[finite], scales, BINS[1])
    if not heights.any():
        return
    ordered = np.sort(heights.ravel())[::-1]
    mass = np.cumsum(ordered) / ordered.sum()
    levels = [ordered[np.searchsorted(mass, level)] for level in (0.9, 0.5)]
    if levels[0] == levels[1]:
        return
    style = STYLES[label]
    if label == "reference":
        ax.contourf(*grid, heights, [*levels, np.inf], colors=[(0.6, 0.6, 0.6, 0.25), (0.6, 0.6, 0.6, 0.55)])
    else:
        ax.contour(*grid, heights, levels, colors=style["color"], linestyles=style["linestyle"], linewidths=1.5)
