"""The result of ``fit``, as both languages have it."""

from __future__ import annotations

import abc
import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowppl.checks import level_of_caller
from flowppl.inference.chain_draws import ChainsBase
from flowppl.inference.diagnostics import Diagnosis
from flowppl.inference.fitting import History


@dataclasses.dataclass(frozen=True)
class FitBase(abc.ABC):
    """A fitted guide, with what is known of it."""

    guide: Any
    params: Any
    history: History

    @property
    def losses(self) -> np.ndarray:
        """Minus the ELBO's estimate in each step; NaN for a step that was skipped as it was not finite."""
        return self.history.losses

    @property
    def num_skipped(self) -> int:
        """The number of skipped steps."""
        return int(np.isnan(self.losses).sum())

    @property
    def stopped(self) -> str:
        """Why the training ended: "converged", "rounds", "max_seconds", "callback" or "interrupted"."""
        return self.history.stopped

    @property
    def elbo(self) -> float:
        """The ELBO of the guide."""
        return self.history.check.elbo

    @property
    def elbo_se(self) -> float:
        """The standard error of :attr:`elbo`."""
        return self.history.check.elbo_se

    @property
    def k_hat(self) -> float:
        """The k-hat of the guide: see :func:`flowppl.diagnostics.k_hat`. NaN after a fit to batches of the data."""
        return self.history.check.k_hat

    @property
    def verdict(self) -> str:
        """How far the guide can be trusted, as it was judged last: see :class:`flowppl.diagnostics.Diagnosis`."""
        return self.history.check.verdict

    @property
    def checks(self) -> tuple[Diagnosis, ...]:
        """What the importance weights said at the start, of the best Gaussian, and after each round."""
        return self.history.checks

    def warn_of_missing_modes(self) -> None:
        """Warn where a correction cannot bring back what is known to be missing."""
        search = None if self.history is None else self.history.check.search
        if search is not None and search.fault:
            message = f"the resampled draws are not to be trusted: {search.fault}"
            warnings.warn(message, RuntimeWarning, stacklevel=level_of_caller())

    @abc.abstractmethod
    def sample(self, *args, **kwargs) -> dict[str, Any]:
        """Draws of all latent sites from the guide."""

    @abc.abstractmethod
    def quantiles(self, *args, **kwargs) -> dict[str, Any]:
        """Quantiles of each site, from draws of the guide."""

    @abc.abstractmethod
    def resample(self, *args, **kwargs) -> dict[str, Any]:
        """Draws corrected by Pareto-smoothed importance resampling."""

    @abc.abstractmethod
    def mcmc(self, *args, **kwargs) -> ChainsBase:
        """Draws of Markov chains whose proposals come from the guide: see :mod:`flowppl.inference.chains`."""

    @abc.abstractmethod
    def diagnose(self, *args, **kwargs) -> Diagnosis:
        """Whether the guide can be trusted, from fresh draws: see :func:`flowppl.diagnostics.diagnose`."""

    @abc.abstractmethod
    def to_arviz(self, *args, **kwargs) -> Any:
        """Draws with the log likelihood, the data and predictions, as ArviZ takes them."""

    def __repr__(self):
        kind = type(self.guide).__name__
        numbers = f"elbo={self.elbo:.3f}, k_hat={self.k_hat:.2f}, num_skipped={self.num_skipped}"
        return f"Fit({self.verdict!r}, {kind}, {numbers}, {len(self.losses)} steps, stopped={self.stopped!r})"


def warn_of_given(names: Sequence[str]) -> None:
    """Warn that a prediction has nothing to draw, as these sites are observed and there are no others."""
    if names:
        warnings.warn(
            f"predict: with these arguments the model draws nothing, as {', '.join(map(repr, names))} is observed: "
            "the values are those that were given. To predict, leave out the argument that it is observed from",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )
