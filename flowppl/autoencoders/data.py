"""The data of an autoencoder: as an array of rows, whatever users hold them in, and whether a likelihood has them."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flowppl.checks import level_of_caller
from flowppl.inference.batches import INIT_ROWS, Batches, Mapped, is_batches


def as_data(values: Any, native: type) -> Any:
    """Data as an array with one row for each datum.

    Args:
        values: an array; a list of rows; a table with ``to_numpy``, as pandas has; a data set of torch; or an iterable
            of batches, such as a ``DataLoader``, which is gathered. Of items that are tuples, such as an image and its
            label, the first parts are the data.
        native: the type of the adapter's own arrays, which stay as they are.

    Raises:
        TypeError: if this is no array of real numbers.
        ValueError: if there are no data, or some are masked.
    """
    if isinstance(values, (str, bytes, Mapping, numbers.Number, type(None))):
        raise TypeError(
            "the data must be an array with one row for each datum, a list of rows, a data set or an "
            f"iterable of batches, got {type(values).__name__}"
        )
    if np.ma.is_masked(values):
        raise ValueError("some data are masked; drop or impute what is missing")
    if hasattr(values, "tensors"):  # a TensorDataset
        values = values.tensors[0]
    x: Any = values if isinstance(values, native) else _gathered(values)
    if 0 in x.shape:
        raise ValueError("there are no data")
    name = str(x.dtype)
    if not x.shape or not any(kind in name for kind in ("float", "int", "bool")):
        raise TypeError(f"the data must be rows of real numbers, got an array of {name} of shape {tuple(x.shape)}")
    return x


def data_source(x: Any, read: Callable[[Any], Any]) -> Any:
    """Data that are read as they are needed, where ``x`` is such; else ``None``.

    Args:
        x: a memory-mapped array, an iterable of batches that starts anew in each epoch, or a function that gives one.
            Data sets and iterators are none of these: they are gathered.
        read: makes checked rows of some of the data.
    """
    if isinstance(x, np.memmap):
        return Mapped(x, np.arange(len(x)), read)
    if any(hasattr(x, name) for name in ("__getitem__", "__next__")) or not is_batches("fit_vae", x):
        return None
    return Batches("fit_vae", x, lambda batch: (read(_first(batch)), None))


def first_rows(source: Any) -> Any:
    """Some rows of such data, or all that there are of others."""
    if isinstance(source, Batches):
        return source.first()[0]
    return source[: min(INIT_ROWS, len(source))] if isinstance(source, Mapped) else source


def _gathered(values) -> np.ndarray:
    if hasattr(values, "to_numpy"):  # a table
        return _to_numpy(values.to_numpy())
    if isinstance(values, (list, tuple)) or (hasattr(values, "shape") and hasattr(values, "dtype")):
        return _to_numpy(values)
    if hasattr(values, "__getitem__"):  # a data set
        items = (values[i] for i in range(len(values))) if hasattr(values, "__len__") else iter(values)
        return np.stack([_first(item) for item in items] or [np.zeros(0)])
    try:
        batches = iter(values)
    except TypeError:
        raise TypeError(
            f"the data must be an array, a list of rows or an iterable of batches, got {type(values).__name__}"
        ) from None
    return np.concatenate([_first(batch) for batch in batches] or [np.zeros(0)])


def _first(item) -> np.ndarray:
    if isinstance(item, Mapping):
        raise TypeError(
            f"each batch must be an array, or a tuple that begins with one, got a dictionary of "
            f"{', '.join(map(str, item))}; give (batch[name] for batch in batches)"
        )
    return _to_numpy(item[0] if isinstance(item, (list, tuple)) else item)


def _to_numpy(values) -> np.ndarray:
    for of_torch in ("detach", "cpu"):
        values = getattr(values, of_torch, lambda values=values: values)()
    try:
        x = np.asarray(values)
        kind = float if x.dtype == object and x.ndim else x.dtype.newbyteorder("=")  # object: a table of several types
        return np.require(x, kind, ["C", "W"])  # as torch and JAX take them
    except (TypeError, ValueError) as error:
        raise TypeError(f"the data cannot be made an array of numbers: {error}") from error


def is_share(validation: Any) -> bool:
    """Whether this is a share of the data to hold out, or none, and not data."""
    return validation is None or isinstance(validation, numbers.Real)


def check_inputs(kind: Any, low: float, high: float) -> None:
    """Raise ValueError if the least or the largest number of data says that an encoder was not trained on such."""
    if not np.isfinite([low, high]).all():
        raise ValueError("the data are not all finite; drop or impute what is missing")
    if kind == "bernoulli" and not 0 <= low <= high <= 1:
        raise ValueError(
            f"the likelihood 'bernoulli' is of data that are 0 or 1, but the data range from {low} to {high}; "
            "give them as for the training"
        )


def check_data(kind: Any, x: np.ndarray, num_categories: int | None, supported: bool) -> None:
    """Raise ValueError unless all data are in the support of the likelihood.

    Args:
        kind: the likelihood of the autoencoder.
        x: the data.
        num_categories: of the likelihood ``"categorical"``.
        supported: whether a likelihood of one's own has them in its support.
    """
    low, high = x.min(), x.max()
    has = f"but the data range from {low} to {high}"
    if not np.isfinite(low + 0.0) or not np.isfinite(high + 0.0):
        raise ValueError("the data are not all finite; drop or impute what is missing")
    if kind == "bernoulli" and not np.isin(x, (0, 1)).all():
        middle = (float(low) + float(high)) / 2
        raise ValueError(
            f"the likelihood 'bernoulli' is of data that are 0 or 1, {has}; binarise them, such as by "
            f"x > {middle:g}, or take 'categorical' for integers and 'gaussian' for real numbers, such as x / {high:g}"
        )
    if not supported:
        raise ValueError(f"the likelihood must have all data in its support, {has}; scale or round them")
    if kind == "categorical":
        if not np.issubdtype(x.dtype, np.integer):
            raise ValueError(f"the likelihood 'categorical' is of integers, but the data are {x.dtype}")
        if low < 0 or high >= num_categories:  # type: ignore[operator]
            raise ValueError(
                f"the decoder gives logits of {num_categories} categories, 0 to {num_categories - 1}, {has}"  # type: ignore[operator]
            )


def warn_of_constants(x: np.ndarray, learns_scale: Callable[[], bool]) -> None:
    """Warn of numbers that are the same in all data, whose density has no bound if the scale of a Gaussian is learned.

    Args:
        x: the data.
        learns_scale: whether the decoder has weights of its own for the scale.
    """
    same = np.argwhere((x == x[:1]).all(axis=0))
    if len(x) > 1 and len(same) and learns_scale():
        warnings.warn(
            f"fit_vae: {len(same)} of {x[0].size} numbers of a datum are the same in all data, such as that at "
            f"{tuple(same[0].tolist())}. A Gaussian that learns its scale may be as narrow as it likes there, so that "
            "the loss falls without end: leave them out, bound the scale in the decoder, or add noise",
            stacklevel=level_of_caller(),
        )
