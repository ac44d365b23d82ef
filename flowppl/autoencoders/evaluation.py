r"""How good a variational autoencoder is: the record, and how it is gathered from draws."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from flowppl.checks import check_sizes
from flowppl.inference.density_evaluation import in_chunks

ACTIVE = 0.01  # a unit is active if the variance over the data of its posterior mean is above this


@dataclasses.dataclass(frozen=True)
class Evaluation:
    r"""What ``evaluate_vae`` found: means over the data, in nats.

    With K draws :math:`z_k` from the posterior :math:`q(z \mid x)` of the latents z of a datum x, the prior
    :math:`p(z)` and the likelihood :math:`p(x \mid z)`, the weights are :math:`w_k = p(x \mid z_k)\, p(z_k) / q(z_k
    \mid x)`, and the estimates are

    .. math::
        \mathrm{elbo} = \frac{1}{K} \sum_k \log w_k, \qquad
        \mathrm{log\_prob} = \log \frac{1}{K} \sum_k w_k.

    Each number has its Monte-Carlo standard error, under its name with ``_se``. The errors are those of the draws; that
    the data are a sample themselves is not in them. ``str`` makes a table of all.

    Args:
        elbo: the evidence lower bound (ELBO).
        reconstruction: its first part, the mean of log p(x | z).
        kl: its second part, the mean of log q(z | x) - log p(z): the ELBO is the reconstruction less this.
        log_prob: the importance weighted estimate of log p(x).
        active_units: how many latents have a posterior mean whose variance over the data is above 0.01; the error is
            that of counting those whose variance is near it.
        num_samples: the draws K for each datum.
        num_data: the number of data.
        num_dims: the numbers in a datum.

    References:
        Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv 1509.00519.

    Example:
        >>> from flowppl.autoencoders.evaluation import Evaluation
        >>> found = Evaluation(
        ...     elbo=-7.0, elbo_se=0.1, reconstruction=-5.0, reconstruction_se=0.1, kl=2.0, kl_se=0.1, log_prob=-6.0,
        ...     log_prob_se=0.1, active_units=2, active_units_se=0.0, num_samples=100, num_data=50, num_dims=9,
        ... )
        >>> round(found.bits_per_dim, 3)
        0.962
    """

    elbo: float
    elbo_se: float
    reconstruction: float
    reconstruction_se: float
    kl: float
    kl_se: float
    log_prob: float
    log_prob_se: float
    active_units: int
    active_units_se: float
    num_samples: int
    num_data: int
    num_dims: int

    @property
    def bits_per_dim(self) -> float:
        """Minus log p(x), in bits, divided by the numbers in a datum."""
        return -self.log_prob / (self.num_dims * math.log(2))

    @property
    def bits_per_dim_se(self) -> float:
        """The Monte-Carlo standard error of ``bits_per_dim``."""
        return self.log_prob_se / (self.num_dims * math.log(2))

    def __str__(self) -> str:
        rows = ("elbo", "reconstruction", "kl", "log_prob", "bits_per_dim", "active_units")
        lines = [f"{name:<15}{getattr(self, name):>12.4f} ± {getattr(self, name + '_se'):.4f}" for name in rows]
        return "\n".join([*lines, f"{self.num_data} data, {self.num_samples} draws for each"])


def evaluate(
    weigh: Callable[[slice, int, int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    num_data: int,
    num_dims: int,
    num_samples: int,
    chunk_size: int,
) -> Evaluation:
    """Gather the draws in chunks.

    Args:
        weigh: for a slice of the data, a number of draws and a count that never repeats, gives log p(x | z), the KL
            terms log q(z | x) - log p(z), each (draws, data), and the draws themselves.
    """
    check_sizes("evaluate_vae", at_least=2, num_samples=num_samples)  # one draw has no spread
    check_sizes("evaluate_vae", chunk_size=chunk_size)
    parts = []
    for rows, num_draws, counts in in_chunks(num_data, num_samples, chunk_size):
        drawn = (weigh(rows, num_draws, count) for count in counts)
        parts.append(_of_each(*(np.concatenate(arrays)[:num_samples] for arrays in zip(*drawn, strict=True))))
    each = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    spread = each["mean_error"]  # the variance of each posterior mean, from the draws
    variances = np.var(each["mean"], axis=0) - np.mean(spread, axis=0)
    # Of a variance over the data, given the data: twice the deviations times the errors of the means.
    centred = each["mean"] - each["mean"].mean(axis=0)
    errors = np.sqrt(np.mean(4 * centred**2 * spread + 2 * spread**2, axis=0) / num_data)
    distances = (variances - ACTIVE) / np.maximum(errors, np.finfo(float).tiny)
    above = np.array([0.5 * math.erfc(-distance / math.sqrt(2)) for distance in distances])

    def mean(name):
        return float(each[name].mean()), float(np.sqrt(np.sum(each[name + "_error"])) / num_data)

    found = {name: mean(name) for name in ("elbo", "reconstruction", "kl", "log_prob")}
    return Evaluation(
        **{name: value for name, (value, _) in found.items()},
        **{name + "_se": error for name, (_, error) in found.items()},
        active_units=int(np.sum(variances > ACTIVE)),
        active_units_se=float(np.sqrt(np.sum(above * (1 - above)))),
        num_samples=num_samples,
        num_data=num_data,
        num_dims=num_dims,
    )


@np.errstate(divide="ignore", invalid="ignore")  # a datum that no draw explains has minus infinity, and no error
def _of_each(log_likelihood, kl, z):
    """Of each datum the means over the draws, and the squared errors of these."""
    log_likelihood, kl, z = (np.asarray(array, dtype=np.float64) for array in (log_likelihood, kl, z))
    log_w = log_likelihood - kl
    peak = log_w.max(axis=0)
    w = np.exp(log_w - np.where(np.isfinite(peak), peak, 0.0))
    result = {"log_prob": peak + np.log(w.mean(axis=0)), "log_prob_error": _squared_error(w / w.mean(axis=0))}
    for name, values in (("elbo", log_w), ("reconstruction", log_likelihood), ("kl", kl), ("mean", z)):
        result |= {name: values.mean(axis=0), name + "_error": _squared_error(values)}
    return result


def _squared_error(values):
    """Of a mean over the first axis."""
    return np.var(values, axis=0, ddof=1) / len(values)
