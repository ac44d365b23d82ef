r"""How good a fitted density is on data: the record, and how it is gathered from draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flowppl.checks import check_sizes


@dataclasses.dataclass(frozen=True)
class DensityEvaluation:
    r"""What ``evaluate_density`` found: means over n data x of D numbers, in nats.

    Each has two standard errors. That under its name with ``_se`` is the Monte-Carlo error, of the draws of noise; it
    is 0 where the logarithm of the density is exact. That with ``_sampling_se`` is the error of n data in the place of
    all that there could be: the standard deviation over the data, divided by :math:`\sqrt n`.

    Of a density the numbers depend on the unit of the data: of x / 256 they are more by D log 256 than of x. Of
    integers they are probabilities, and comparable between all models.

    Args:
        log_prob: the mean of log p(x): exact, or of a ``Dequantized`` the estimate with ``num_samples`` draws, which is
            too small in the mean, the less the more draws.
        bound: the mean of the bound of log p(x) that ``fit_density`` maximises; where it is exact, the same.
        num_samples: the draws of noise for each datum; 0 where none are needed.
        num_data: the number n of data.
        num_dims: the number D of numbers in a datum.

    Example:
        >>> from flowppl.inference.density_evaluation import DensityEvaluation
        >>> found = DensityEvaluation(
        ...     log_prob=-6.0, log_prob_se=0.0, log_prob_sampling_se=0.2, bound=-6.5, bound_se=0.0,
        ...     bound_sampling_se=0.2, num_samples=100, num_data=50, num_dims=9,
        ... )
        >>> round(found.bits_per_dim, 3), round(found.bound_bits_per_dim, 3)
        (0.962, 1.042)
    """

    log_prob: float
    log_prob_se: float
    log_prob_sampling_se: float
    bound: float
    bound_se: float
    bound_sampling_se: float
    num_samples: int
    num_data: int
    num_dims: int

    @property
    def _nats(self) -> float:
        """The nats in as many bits for each number as one."""
        return self.num_dims * math.log(2)

    @property
    def bits_per_dim(self) -> float:
        """Minus ``log_prob``, in bits, divided by the numbers in a datum."""
        return -self.log_prob / self._nats

    @property
    def bits_per_dim_se(self) -> float:
        """The Monte-Carlo standard error of ``bits_per_dim``."""
        return self.log_prob_se / self._nats

    @property
    def bits_per_dim_sampling_se(self) -> float:
        """The standard error of ``bits_per_dim`` that comes from the number of data."""
        return self.log_prob_sampling_se / self._nats

    @property
    def bound_bits_per_dim(self) -> float:
        """Minus ``bound``, in bits, divided by the numbers in a datum; it is above ``bits_per_dim``."""
        return -self.bound / self._nats

    @property
    def bound_bits_per_dim_se(self) -> float:
        """The Monte-Carlo standard error of ``bound_bits_per_dim``."""
        return self.bound_se / self._nats

    @property
    def bound_bits_per_dim_sampling_se(self) -> float:
        """The standard error of ``bound_bits_per_dim`` that comes from the number of data."""
        return self.bound_sampling_se / self._nats

    def __str__(self) -> str:
        names = ("log_prob", "bits_per_dim") + ("bound", "bound_bits_per_dim") * bool(self.num_samples)
        lines = [f"{'':<20}{'':>12}   draws    data"]
        for name in names:
            errors = (getattr(self, name + end) for end in ("_se", "_sampling_se"))
            lines.append(f"{name:<20}{getattr(self, name):>12.4f}" + "".join(f" ± {error:.4f}" for error in errors))
        draws = f", {self.num_samples} draws of noise for each" if self.num_samples else ""
        return "\n".join([*lines, f"{self.num_data} data{draws}"])


def check_evaluated(flow: Any, kinds: tuple[type, ...]) -> None:
    """Raise TypeError unless ``flow`` is of one of these kinds."""
    if not isinstance(flow, kinds):
        adapter = ".".join(kinds[0].__module__.split(".")[:2])
        names = ", ".join(kind.__name__ for kind in kinds)
        what = f"the class {flow.__name__}" if isinstance(flow, type) else type(flow).__name__
        raise TypeError(f"evaluate_density: flow must be one of {adapter}, {names}, got {what}")


def evaluate(
    log_weights: Callable[[slice, int, int], np.ndarray],
    num_data: int,
    num_dims: int,
    num_samples: int,
    chunk_size: int,
) -> DensityEvaluation:
    """Gather the logarithms of densities, or of terms that estimate them, in chunks.

    Args:
        log_weights: for a slice of the data, a number of draws and a count that never repeats, gives an array
            (draws, data); of one draw if none are needed.
        num_samples: the draws for each datum; 0 if none are needed.
    """
    check_sizes("evaluate_density", chunk_size=chunk_size)
    num, parts = max(num_samples, 1), []
    for rows, num_draws, counts in in_chunks(num_data, num, chunk_size):
        found = [np.asarray(log_weights(rows, num_draws, count), dtype=np.float64) for count in counts]
        parts.append(_of_each(np.concatenate(found)[:num]))
    of_each = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def mean(name):
        values, errors = of_each[name], of_each[name + "_error"]
        with np.errstate(invalid="ignore"):  # minus infinity, of data that have no density
            spread = float(values.std(ddof=1) / math.sqrt(num_data)) if num_data > 1 else math.nan
        return {
            name: float(values.mean()),
            f"{name}_se": float(np.sqrt(errors.sum()) / num_data),
            f"{name}_sampling_se": spread,
        }

    return DensityEvaluation(
        **mean("log_prob"), **mean("bound"), num_samples=num_samples, num_data=num_data, num_dims=num_dims
    )


def in_chunks(num_data: int, num_samples: int, chunk_size: int) -> Iterator[tuple[slice, int, range]]:
    """For each part of the data its rows, how many draws to make at a time, and for each time a number of its own."""
    num_chunks = math.ceil(num_samples / chunk_size)
    num_draws = math.ceil(num_samples / num_chunks)  # all chunks are of one size, so that one program does
    num_rows = max(1, chunk_size // num_draws)
    for i, begin in enumerate(range(0, num_data, num_rows)):
        counts = range(i * num_chunks, (i + 1) * num_chunks)
        yield slice(begin, min(begin + num_rows, num_data)), num_draws, counts


@np.errstate(divide="ignore", invalid="ignore")
def _of_each(log_w):
    """Of each datum the means over the draws, and the squared errors of these."""
    if len(log_w) == 1:
        return dict.fromkeys(("log_prob", "bound"), log_w[0]) | {
            f"{name}_error": np.zeros(log_w.shape[1]) for name in ("log_prob", "bound")
        }
    peak = log_w.max(axis=0)
    w = np.exp(log_w - np.where(np.isfinite(peak), peak, 0.0))
    return {
        "log_prob": peak + np.log(w.mean(axis=0)),
        "log_prob_error": np.var(w / w.mean(axis=0), axis=0, ddof=1) / len(w),
        "bound": log_w.mean(axis=0),
        "bound_error": np.var(log_w, axis=0, ddof=1) / len(w),
    }
