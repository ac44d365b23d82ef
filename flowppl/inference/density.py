"""What the maximum likelihood fits of both adapters share: the checks, the held-out rows, the loop and its result."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl.bijections.contract import REAL_LINE, Bijection, check_event
from flowppl.checks import check_positive, check_sizes
from flowppl.inference.epochs import Epochs, Progress, hold_out, run_epochs

INIT_ROWS = 4096  # of the training data, for layers that start from data

Rows = tuple[Array, Array | None]  # x and its context

FIT_DENSITY_DOC = """Fit a flow to data by maximum likelihood.

    It minimises the mean negative log likelihood of the rows of x, at their contexts c,

    .. math::
        -\\frac{{1}}{{n}} \\sum_{{i=1}}^n \\log q(x_i \\mid c_i),

    by Adam with clipped gradients, on mini-batches drawn anew in every epoch, of which the last may be smaller. The
    learning rate falls to zero over ``num_epochs`` along half a cosine. {returns}

    Standardise the data first: a flow starts near its base distribution, the standard normal unless told otherwise.
    A step whose loss or gradient is not finite is left out and counted. An interruption (Ctrl-C) ends the training, and
    the result is what the complete epochs reached.

    Args:{key}
        flow: the flow. {base}
        x: the data, of shape ``(n, *event_shape)``: any array, converted to the dtype and device of the flow.
        context: for a conditional flow, one row of context for each row of x.
        learning_rate: the learning rate of the first epoch.
        batch_size: the number of rows in one step.
        num_epochs: the number of passes over the training data, unless ``patience`` ends them.
        validation: the fraction of rows to hold out at random, or held-out data, ``x_val`` or ``(x_val, context_val)``;
            ``None`` for no validation.
        patience: stop after so many epochs without a better validation loss; ``None`` never does.
        clip_norm: the largest norm of a gradient; a longer one is scaled down to it. ``None`` clips nothing.
        init: set layers such as :class:`flowppl.ActNorm` from the data first. Pass ``False`` to go on training a flow.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.

    Returns:
        A :class:`flowppl.inference.density.DensityFit`.

    Raises:
        TypeError: if ``flow`` is not a flow.
        ValueError: if the data do not fit the flow or are not finite, or an option is out of range.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite.

    References:
        Kingma, Ba: Adam: A Method for Stochastic Optimization, 2014, arXiv 1412.6980. Loshchilov, Hutter: SGDR:
        Stochastic Gradient Descent with Warm Restarts, 2016, arXiv 1608.03983.

    Example:{example}"""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DensityFit(Epochs):
    """The flow that ``fit_density`` trained, and the record of its training; losses are negative log likelihoods.

    Args:
        flow: the trained flow, with the weights of ``best_epoch``.
    """

    flow: Any


def check_options(*, learning_rate, clip_norm, patience, **sizes) -> None:
    """Raise ValueError unless the options of ``fit_density`` are in range."""
    check_sizes("fit_density", **sizes, **({} if patience is None else {"patience": patience}))
    check_positive("fit_density", learning_rate=learning_rate, clip_norm=1 if clip_norm is None else clip_norm)


def split_rows(bijection: Bijection, x, context, validation, convert, rng) -> tuple[Rows, Rows | None]:
    """Check the data and part them into the rows to train on, shuffled, and those to validate on.

    Args:
        bijection: the bijection of the flow.
        x: the data.
        context: its context, or ``None``.
        validation: as for ``fit_density``.
        convert: makes anything an array of the flow's library, dtype and device.
        rng: a NumPy generator.

    Raises:
        ValueError: if shapes do not fit, values are not finite, or ``validation`` is none of what it may be.
    """

    def checked(x, context, suffix="", at_least=1) -> Rows:
        rows = convert(x), None if context is None else convert(context)
        _check_rows(bijection, *rows, suffix, at_least)
        return rows

    x, context = checked(x, context, at_least=2)

    def take(order) -> Rows:
        return x[order], None if context is None else context[order]

    if validation is None or isinstance(validation, numbers.Real):
        kept, held_out = hold_out("fit_density", validation, len(x), rng)
        return take(kept), take(held_out) if len(held_out) else None
    if isinstance(validation, tuple) and len(validation) != 2:
        raise ValueError(
            f"fit_density: validation must be x_val or (x_val, context_val), got a tuple of {len(validation)}"
        )
    x_val, context_val = validation if isinstance(validation, tuple) else (validation, None)
    return take(rng.permutation(len(x))), checked(x_val, context_val, "_val")


def _check_rows(bijection, x, context, suffix, at_least):
    shape = bijection.y_shape
    if tuple(x.shape[1:]) != shape or x.ndim != len(shape) + 1:
        expected = ", ".join(map(str, ("n", *shape)))
        raise ValueError(f"fit_density: x{suffix} must have the shape ({expected}), got {tuple(x.shape)}")
    if len(x) < at_least:
        raise ValueError(f"fit_density: x{suffix} must have at least {at_least} rows, got {len(x)}")
    check_event(bijection, x, shape, context)
    if context is not None and tuple(context.shape) != (len(x), bijection.context_dim):
        raise ValueError(
            f"fit_density: context{suffix} must have one row for each of x{suffix}, so the shape "
            f"({len(x)}, {bijection.context_dim}), got {tuple(context.shape)}"
        )
    for name, rows in (("x", x), ("context", context)):
        if rows is None:
            continue
        xp = namespace(rows)
        bad = len(rows) - int(xp.sum(xp.all(xp.isfinite(xp.reshape(rows, (len(rows), -1))), axis=1)))
        if bad:
            raise ValueError(
                f"fit_density: {bad} of the {len(rows)} rows of {name}{suffix} are not finite (in the dtype of the "
                "flow); drop or impute them"
            )
    low, high = bijection.y_support
    if (low, high) != REAL_LINE:
        xp = namespace(x)
        outside = int(xp.sum(xp.any(xp.reshape((x < low) | (x > high), (len(x), -1)), axis=1)))
        if outside:
            raise ValueError(
                f"fit_density: {outside} of the {len(x)} rows of x{suffix} lie outside of ({low}, {high}), the support "
                "of the flow"
            )


def train(
    run_epoch: Callable[[float, np.ndarray], tuple[Any, Any]],
    weights: Callable[[], Any],
    flow_with: Callable[[Any], Any],
    rng: np.random.Generator,
    *,
    num_rows: int,
    batch_size: int,
    learning_rate: float,
    num_epochs: int,
    patience: int | None,
    progress: bool | None,
) -> DensityFit:
    """Run epochs until one of the reasons to stop, and return the flow with the best weights.

    Args:
        run_epoch: trains one epoch at a learning rate and in an order of the rows; gives the loss of each step, NaN
            where it was skipped, and the validation loss or ``None``.
        weights: gives the present weights, as they will stay.
        flow_with: the flow with given weights.
        rng: draws the orders.
    """
    best, done = weights(), Progress()

    def keep():
        nonlocal best
        best = weights()

    def run(epoch):
        # At rates that suit, this ends 0.02 to 0.05 nat above a constant rate (two moons; a mixture in 5-D).
        rate = learning_rate * (1 + math.cos(math.pi * epoch / num_epochs)) / 2
        return run_epoch(rate, rng.permutation(num_rows))

    try:
        run_epochs(
            "fit_density",
            run,
            keep,
            done,
            num_rows=num_rows,
            batch_size=batch_size,
            num_epochs=num_epochs,
            patience=patience,
            bar=progress,
            advice=f"use a smaller learning_rate (it was {learning_rate:g}), or scale the data to mean 0 and standard "
            "deviation 1",
        )
    finally:
        flow = flow_with(best)
    return DensityFit(flow=flow, **done.record())
