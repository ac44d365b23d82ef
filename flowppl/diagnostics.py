"""Whether a guide can be trusted: checks of any log weights and draws, whatever made them."""

from flowppl.inference.calibration import Calibration
from flowppl.inference.diagnostics import Comparison, Diagnosis, Search, compare, diagnose
from flowppl.inference.importance import (
    effective_sample_size,
    k_hat,
    k_hat_threshold,
    marginal_k_hat,
    resample_indices,
)

__all__ = [
    "Calibration",
    "Comparison",
    "Diagnosis",
    "Search",
    "compare",
    "diagnose",
    "effective_sample_size",
    "k_hat",
    "k_hat_threshold",
    "marginal_k_hat",
    "resample_indices",
]
