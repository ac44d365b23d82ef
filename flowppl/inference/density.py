"""What the maximum likelihood fits of both adapters share: the checks, the held-out rows, the loop and its result."""

from __future__ import annotations

import dataclasses
import math
import numbers
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl.bijections.combine import Chain, SameWeights, Wrapper
from flowppl.bijections.contract import REAL_LINE, Bijection, check_event
from flowppl.bijections.linear import Permute
from flowppl.bijections.reversible import is_reversible
from flowppl.checks import describe, level_of_caller
from flowppl.discrete.levels import check_levels
from flowppl.inference.batches import INIT_ROWS, Batches, Mapped, Rows, concat, is_batches
from flowppl.inference.epochs import Epochs, hold_out, scheduled_rate

LEARNING_RATE = 3e-3  # unless one is given
# A MAF of a curved density in 2-D, fitted in 100 epochs, ends 0.4 nat worse 10 standard deviations away, 1.5 at 40, and
# 0.2 worse from a spread of 1/30.
FAR, FAR_SPREAD = 10.0, 20.0

FlowType = TypeVar("FlowType")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DensityFit(Epochs, Generic[FlowType]):
    """The flow that ``fit_density`` trained, and the record of its training; losses are negative log likelihoods, or
    estimates of them, or those of flow matching.

    Args:
        flow: the trained flow, with the weights of ``best_epoch``.
    """

    flow: FlowType


def check_flow(flow: Any, x: Any, flow_class: type, others: tuple[type, ...]) -> None:
    """Raise TypeError unless ``flow`` is a flow, or one of the other kinds of which a flow can be made."""
    if isinstance(flow, (flow_class, *others)):
        return
    adapter = ".".join(flow_class.__module__.split(".")[:2])
    what = f"the class {flow.__name__}" if isinstance(flow, type) else type(flow).__name__
    advice = f"; write flowppl.make_flow({flow!r}, dim)" if isinstance(flow, str) else ""
    if isinstance(x, (flow_class, *others)):
        advice = "; flow and x are exchanged"
    raise TypeError(
        f"fit_density: flow must be a {adapter}.Flow, a flowppl.Bijection such as flowppl.maf(2), a FlowTransform, "
        f"a Dequantized or a PixelCNN, got {what}{advice}"
    )


def check_augment(augment: Any, arguments: str) -> None:
    """Raise TypeError unless ``augment`` is a function, of these arguments, or ``None``."""
    if augment is not None and not callable(augment):
        raise TypeError(f"fit_density: augment must be a function of {arguments}, got {describe(augment)}")


def check_base(bijection: Bijection, base: Any, as_numpy: Callable[[Any], np.ndarray]) -> None:
    """Raise ValueError for a base distribution on an interval which the flow does not map onto the data's space.

    Data beyond what it is mapped to would have no density, and where that ends changes with the weights.

    Args:
        bijection: the bijection of the flow.
        base: a distribution of the host.
        as_numpy: makes a number or array of the host a NumPy array.
    """
    support = base.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    low, high = (
        as_numpy(getattr(support, name, end))
        for name, end in zip(("lower_bound", "upper_bound"), REAL_LINE, strict=True)
    )
    is_real = np.isinf(low).all() and np.isinf(high).all()
    if is_real or _same(bijection.x_support, low, high) or _keeps(bijection, low, high):
        return
    raise ValueError(
        f"fit_density: the base distribution lies between {low.min():g} and {high.max():g}, but the flow moves these "
        "ends as it is trained, and data beyond them would have no density. Leave base out, for a standard normal; if "
        "the data lie in an interval, let the flow end with flowppl.Elementwise(dim, flowppl.Bounded(low, high)). A "
        "uniform base serves a flow of splines that all have its ends as theirs"
    )


def _same(interval: tuple[float, float], low: np.ndarray, high: np.ndarray) -> bool:
    return bool(np.allclose(low, interval[0]) and np.allclose(high, interval[1]))


def _keeps(bijection: Bijection, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether a bijection maps this box onto itself, whatever its weights."""
    if isinstance(bijection, Chain):
        return all(_keeps(part, low, high) for part in bijection.bijections)
    if isinstance(bijection, SameWeights | Wrapper):
        return _keeps(bijection.bijection, low, high)
    bound = getattr(getattr(bijection, "univariate", None), "bound", None)
    return isinstance(bijection, Permute) or (bound is not None and _same((-bound, bound), low, high))


def batches_of(bijection: Bijection, source: Any, convert: Callable[[Any], Array]) -> Batches:
    """Rows to train on from an iterable of batches, each ``x`` or ``(x, context)``.

    Args:
        bijection: the bijection of the flow.
        source: the iterable, or a function that gives one.
        convert: makes anything an array of the flow's library, dtype and device.
    """

    def read(batch):
        x, context = batch, None
        if isinstance(batch, list | tuple) and 1 <= len(batch) <= 2:
            x, context = batch if len(batch) == 2 else (batch[0], None)
        elif isinstance(batch, list | tuple | dict):
            raise TypeError(
                f"fit_density: each batch must be x or (x, context), got a {type(batch).__name__} of {len(batch)}"
            )
        return checked_rows(bijection, x, context, convert)

    return Batches("fit_density", source, read)


def warn_of_few_values(x: Array, names: Sequence[Any]) -> None:
    """Warn of columns with so few values that a density may grow without bound on them; and refuse constant ones.

    Args:
        x: rows of data.
        names: what the user calls the columns.

    Raises:
        ValueError: if a column does not vary.
    """
    xp = namespace(x)
    flat = xp.reshape(x, (x.shape[0], -1))
    low, high = xp.min(flat, axis=0), xp.max(flat, axis=0)
    constant = [(i, float(low[i])) for i, same in enumerate((low == high).tolist()) if same]
    if constant:
        found = ", ".join(f"{names[i]!r} (all {value:g})" for i, value in constant[:5])
        raise ValueError(
            f"fit_density: {len(constant)} of the {flat.shape[1]} columns of x do not vary, so they have no density: "
            f"{found}; leave them out"
        )
    num = min(flat.shape[0], 2000)
    ordered = xp.sort(flat[:num, ...], axis=0)
    distinct = (1 + xp.sum(xp.astype(ordered[1:, ...] != ordered[:-1, ...], xp.int32), axis=0)).tolist()
    few = [i for i, count in enumerate(distinct) if 2 * count <= num]
    if few and num >= 8:
        found = ", ".join(f"{names[i]!r} ({distinct[i]} values in {num} rows)" for i in few[:5])
        warnings.warn(
            f"fit_density: {len(few)} of the {flat.shape[1]} columns of x repeat their values: {found}. A density can "
            f"grow without bound where values repeat. {_remedy(flat)}",
            stacklevel=level_of_caller(),
        )


def _remedy(x: Array) -> str:
    xp = namespace(x)
    low, high = float(xp.min(x)), float(xp.max(x))
    if low >= 0 and bool(xp.all(x == xp.floor(x))):
        return (
            f"They are integers: fit Dequantized(flow, levels={int(high) + 1}), which adds new noise at every step and "
            "has probabilities in the place of densities"
        )
    return (
        "Integers from 0 on, such as counts and levels of pixels, are fitted by Dequantized(flow, levels), which adds "
        "noise to them"
    )


def warn_of_far_data(x: Array, loc: Any, scale: Any) -> None:
    """Warn of data that lie far from where the flow starts, to which training would hardly get.

    Args:
        x: rows of data.
        loc: the means of the coordinates of noise to which the flow takes them, a standard normal at the end.
        scale: their standard deviations.
    """
    loc, scale = np.abs(np.asarray(loc, dtype=float)), np.asarray(scale, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        is_far = (loc > FAR * np.maximum(scale, 1)) | (scale < 1 / FAR_SPREAD) | (scale > FAR_SPREAD)
    is_far &= np.isfinite(loc + scale)  # an event at the very end of an interval is taken to infinity
    if not is_far.any() or len(x) < 2:  # one row has no spread
        return
    xp = namespace(x)
    flat = xp.reshape(x, (x.shape[0], -1))
    mean, spread = xp.mean(flat, axis=0), xp.std(flat, axis=0)
    largest = float(xp.max(xp.abs(mean)))
    warnings.warn(
        f"fit_density: {int(is_far.sum())} of the {is_far.size} coordinates lie far from where the flow starts, a "
        f"standard normal: means of columns go up to {largest:g} in size, and standard deviations from "
        f"{float(xp.min(spread)):g} to {float(xp.max(spread)):g}. The fit would spend its steps on the way, and end "
        "badly: standardise the data, (x - mean) / std, or let the flow end with flowppl.ActNorm(dim), which starts "
        "from them",
        stacklevel=level_of_caller(),
    )


def warn_of_rounding(flow: Any, x: Array, context: Array | None) -> None:
    """Warn if derivatives of a reversible flow, with the weights that it has, are wrong by more than noise."""
    error = flow.round_trip_error(x, context) if is_reversible(flow.bijection) else 0.0
    if not error <= 0.01:
        warnings.warn(
            f"fit_density: the flow is reversible, but data come back from the noise with an error of {error:.2g}, so "
            "the derivatives of its loss were not exact; use float64, fewer layers, smaller bounds of their scales, or "
            "the plain flow",
            stacklevel=level_of_caller(),
        )


def column_names(x: Any, shape: tuple[int, ...]) -> list[Any]:
    """What to call the columns of data, entries of an event of this shape: as a data frame does, or by index."""
    columns = list(getattr(x, "columns", ()))
    if len(shape) == 1:
        return columns if len(columns) == shape[0] else list(range(shape[0]))
    return list(np.ndindex(*shape))


def is_of_levels(data: Any) -> bool:
    """Whether what is fitted is a distribution of integers, and not a density."""
    return hasattr(data, "levels")


def split_rows(bijection: Bijection, x, context, validation, convert, rng) -> tuple[Rows | MappedRows, Rows | None]:
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

    if isinstance(x, np.memmap):
        return _split_mapped(bijection, x, context, validation, convert, rng)
    names = column_names(x, bijection.y_shape)
    x, context = checked_rows(bijection, x, context, convert, at_least=2)
    if not is_of_levels(bijection):
        warn_of_few_values(x, names)

    def take(order) -> Rows:
        return x[order], None if context is None else context[order]

    if validation is None or isinstance(validation, numbers.Real):
        kept, held_out = hold_out("fit_density", validation, len(x), rng)
        return take(kept), take(held_out) if len(held_out) else None
    return take(rng.permutation(len(x))), held_out_rows(bijection, validation, convert)


def _split_mapped(bijection, x, context, validation, convert, rng) -> tuple[MappedRows, Rows | None]:
    """The same of a memory-mapped array; the rows are checked when they are read, the held-out ones now."""
    if len(x) < 2:
        raise ValueError(f"fit_density: x must have at least 2 rows, got {len(x)}")
    context = None if context is None else _numbers("fit_density", "context", context)
    if context is not None and len(context) != len(x):
        raise ValueError(f"fit_density: context must have one row for each of the {len(x)} of x, got {len(context)}")
    is_share = validation is None or isinstance(validation, numbers.Real)
    share = validation if is_share else None
    kept, held_out = (
        MappedRows(bijection, Mapped(x, order), None if context is None else Mapped(context, order), convert)
        for order in hold_out("fit_density", share, len(x), rng)
    )
    if not is_of_levels(bijection):
        warn_of_few_values(kept[:INIT_ROWS][0], column_names(x, bijection.y_shape))
    if not is_share:
        return kept, held_out_rows(bijection, validation, convert)
    return kept, held_out[:] if len(held_out) else None


@dataclasses.dataclass(frozen=True)
class MappedRows:
    """Rows of a memory-mapped array and their contexts, read and checked when they are asked for."""

    bijection: Bijection
    x: Mapped
    context: Mapped | None
    convert: Callable[[Any], Array]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> Rows:
        context = None if self.context is None else self.context[rows]
        return checked_rows(self.bijection, self.x[rows], context, self.convert)


def held_out_rows(bijection: Bijection, validation: Any, convert: Callable[[Any], Array]) -> Rows | None:
    """The rows of held-out data; none for ``None`` or a fraction, which only arrays have."""
    if validation is None or isinstance(validation, numbers.Real):
        return None
    if is_batches("fit_density", validation):
        return concat(list(batches_of(bijection, validation, convert)))
    if isinstance(validation, tuple) and len(validation) != 2:
        raise ValueError(
            f"fit_density: validation must be x_val or (x_val, context_val), got a tuple of {len(validation)}"
        )
    x_val, context_val = validation if isinstance(validation, tuple) else (validation, None)
    return checked_rows(bijection, x_val, context_val, convert, "_val")


def checked_rows(bijection, x, context, convert, suffix="", at_least=1, owner="fit_density") -> Rows:
    """Data and their context as arrays of the flow's library; raise an error unless they fit it."""
    x = convert(_numbers(owner, f"x{suffix}", x))
    context = None if context is None else convert(_numbers(owner, f"context{suffix}", context))
    _check_rows(owner, bijection, x, context, suffix, at_least)
    return x, context


def _numbers(owner: str, name: str, values: Any) -> Any:
    """An array as it is; anything else, such as a list or a data frame, as a NumPy array of real numbers."""
    if values is None:
        raise TypeError(f"{owner}: {name} is missing; give the data, one row for each")
    array, no_numbers = values, tuple("OUSMm")
    try:
        namespace(values)
        is_array = getattr(values.dtype, "kind", None) not in no_numbers
    except TypeError:
        is_array = False
    if not is_array:
        try:
            array = np.asarray(values)
            array = array.astype(np.float64) if array.dtype.kind in no_numbers else array
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{owner}: {name} must be rows of numbers, such as an array, a data frame or a DataLoader, got "
                f"{type(values).__name__} ({error})"
            ) from error
    if "complex" in str(array.dtype):
        raise TypeError(f"{owner}: {name} must be real, got {array.dtype}; give real and imaginary parts apart")
    return array


def _check_rows(owner, bijection, x, context, suffix, at_least):
    shape = bijection.y_shape
    if tuple(x.shape[1:]) != shape or x.ndim != len(shape) + 1:
        expected = ", ".join(map(str, ("n", *shape)))
        advice = f"; write x{suffix}[:, None]" if (*x.shape[1:], 1) == shape else ""
        raise ValueError(f"{owner}: x{suffix} must have the shape ({expected}), got {tuple(x.shape)}{advice}")
    if len(x) < at_least:
        raise ValueError(f"{owner}: x{suffix} must have at least {at_least} rows, got {len(x)}")
    check_event(bijection, x, shape, context)
    if context is not None and tuple(context.shape) != (len(x), bijection.context_dim):
        raise ValueError(
            f"{owner}: context{suffix} must have one row for each of x{suffix}, so the shape "
            f"({len(x)}, {bijection.context_dim}), got {tuple(context.shape)}"
        )
    for name, rows in (("x", x), ("context", context)):
        if rows is None:
            continue
        xp = namespace(rows)
        bad = len(rows) - int(xp.sum(xp.all(xp.isfinite(xp.reshape(rows, (len(rows), -1))), axis=1)))
        if bad:
            raise ValueError(
                f"{owner}: {bad} of the {len(rows)} rows of {name}{suffix} are not finite (in the dtype of the "
                "flow); drop or impute them"
            )
    if is_of_levels(bijection):
        check_levels(owner, f"x{suffix}", x, bijection.levels)
        return
    low, high = bijection.y_support
    if (low, high) != REAL_LINE:
        xp = namespace(x)
        outside = int(xp.sum(xp.any(xp.reshape((x < low) | (x > high), (len(x), -1)), axis=1)))
        if outside:
            raise ValueError(
                f"{owner}: {outside} of the {len(x)} rows of x{suffix} lie outside of ({low}, {high}), the support "
                "of the flow; scale them into it. Integers, such as grey values, take Dequantized(flow, levels=...)"
            )


def facts_of(
    learning_rate: Any, num_epochs: int, objective: str, jacobian_penalty: float, augment: Any
) -> dict[str, Any]:
    """What a checkpoint tells of options that it cannot tell as they are."""
    return {
        "num_epochs": None if callable(learning_rate) else num_epochs,  # over which the cosine falls
        "objective": None if objective == "likelihood" else objective,  # older checkpoints tell none
        "jacobian_penalty": float(jacobian_penalty) or None,
        "augment": augment is not None,
    }


def rate_of(
    learning_rate: float | Callable[[int], float] | None, warm_up: int, num_epochs: int
) -> Callable[[int], float | None]:
    """The learning rate of each epoch, as ``fit_density`` says; ``None`` for an optimiser that has its own."""

    def rate(epoch):
        if learning_rate is None:
            return None
        rise = min(1.0, (epoch + 1) / warm_up) if warm_up else 1.0
        if callable(learning_rate):
            return rise * scheduled_rate("fit_density", learning_rate, epoch)
        # At rates that suit, this ends 0.02 to 0.05 nat above a constant rate (two moons; a mixture in 5-D).
        return rise * learning_rate * (1 + math.cos(math.pi * epoch / num_epochs)) / 2

    return rate


def advice_for(learning_rate: Any) -> str:
    """What to try if no loss is finite."""
    rate = f" (it was {learning_rate:g})" if isinstance(learning_rate, numbers.Real) else ""
    return f"use a smaller learning_rate{rate}, or scale the data to mean 0 and standard deviation 1"
