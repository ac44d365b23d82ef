"""What of an autoencoder a checkpoint of its training tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from flowppl.training.checkpoints import in_words


def describe(posterior: Any, prior: Any, likelihood: Any, held: Callable | None) -> dict[str, Any]:
    """What of an autoencoder a checkpoint tells, in plain values; networks are told by the shapes of their weights.

    Posterior and prior are bijections, or those of all levels.

    Args:
        held: the log density of a prior that is not trained, of which two are told by their values at three points.
    """
    kind = likelihood if isinstance(likelihood, str) else "own"
    described = {
        "posterior": in_words(posterior),
        "prior": in_words(getattr(prior, "bijection", prior)),
        "likelihood": kind,
    }
    if held is not None:
        points = np.random.default_rng(0).normal(size=(3, *posterior.y_shape))
        described["density of the prior"] = " ".join(f"{value:.5g}" for value in held(points))
    return described
