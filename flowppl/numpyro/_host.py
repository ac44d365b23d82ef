"""What this adapter takes from NumPyro and JAX beyond their documented names, each with its reason.

A new version of a host may change it without a word: tests/test_host.py holds all of it to what is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from jax._src.core import trace_state_clean as trace_state_clean
from jax.core import Tracer as Tracer
from jax.experimental import multihost_utils as multihost_utils
from numpyro.distributions.transforms import Transform
from numpyro.distributions.transforms import _InverseTransform as _InverseTransform
from numpyro.distributions.util import sum_rightmost as sum_rightmost
from numpyro.distributions.util import validate_sample as validate_sample
from numpyro.infer import Trace_ELBO
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.util import compute_log_probs as compute_log_probs
from numpyro.infer.util import get_importance_trace as get_importance_trace
from numpyro.infer.util import helpful_support_errors as helpful_support_errors
from numpyro.optim import _NumPyroOptim as _NumPyroOptim
from numpyro.primitives import CondIndepStackFrame as CondIndepStackFrame
from numpyro.primitives import Messenger as Messenger
from numpyro.util import check_model_guide_match as check_model_guide_match

# Functions and classes.
NAMES = {
    "CondIndepStackFrame": "a plate around a latent, written into a file and read from it",
    "Messenger": "the base of effect handlers",
    "Tracer": "tells values under a transformation of JAX, which cannot be looked at, from others",
    "_NumPyroOptim": "the base of the optimisers of `numpyro.optim`",
    "_InverseTransform": "in the message about a transform without an inverse, to name the one inside",
    "check_model_guide_match": "the host's warnings about sites that only one of model and guide has",
    "compute_log_probs": "the log densities of a model at given values, site by site",
    "get_importance_trace": "the traces of guide and model with their log densities, as the host's ELBOs take them",
    "helpful_support_errors": "the host's message about a support to which it does not map",
    "multihost_utils": "what the processes of several hosts tell each other: sizes, and the first weights",
    "sum_rightmost": "the sum of a log density over the axes of an event",
    "trace_state_clean": "whether what is computed now is computed at once, and becomes no part of a program",
    "validate_sample": "the host's check of a value, around `log_prob`",
}

# Attributes and methods of the host's classes: used, or overridden so that the host calls ours.
MEMBERS: dict[type, dict[str, str]] = {
    AutoContinuous: {
        "_create_plates": "makes the plates around the guide's sites",
        "_get_posterior": "overridden: the distribution of the vector of latents, with its `param` site",
        "_postprocess_fn": "set: the values of all sites for unconstrained ones",
        "_prototype_frame_full_sizes": "set: the size of each plate around a latent",
        "_prototype_frames": "set: the plates around the latents",
        "_sample_latent": "overridden: the site of the vector of latents, called by the host in each run",
        "_setup_prototype": "overridden: called by the host when the guide first sees its model",
        "_unpack_and_constrain": "the values of all sites for vectors of latents",
        "_unpack_latent": "set: takes the vector of latents apart",
        "latent_dim": "the length of the vector of latents",
        "prototype_trace": "the model's sites as first seen; `None` before",
    },
    Trace_ELBO: {
        "loss_with_mutable_state": "overridden: the loss that `SVI` asks for",
        "vectorize_particles_fn": "runs all particles, mapped or one by one",
    },
    Messenger: {
        "postprocess_message": "overridden: called after a site was drawn",
        "process_message": "overridden: called before a site is drawn",
    },
    dist.MaskedDistribution: {"_mask": "which members of a site are scored"},
    dist.Distribution: {
        "pytree_aux_fields": "says what of a distribution is static",
        "pytree_data_fields": "says what of a distribution are leaves",
    },
    Transform: {
        "_inverse": "overridden, as for any transform of one's own",
        "call_with_intermediates": "overridden: y with its log determinant in one pass",
        "eq": "overridden: whether two transforms are the same",
        "tree_flatten": "overridden: the weights are the leaves",
    },
}

# What the messages of sample sites hold in a trace.
SITE_KEYS = {
    "cond_indep_stack": "the plates around a site, each with name, dim and size",
    "infer": "`enumerate`, for what is summed out; `is_auxiliary`, for the vector of latents",
    "intermediates": "the base draw and log determinant of a flow",
    "is_observed": "whether the site is a latent",
    "kwargs": "`sample_shape`",
    "scale": "what annealing multiplies, and what stands in a subsample has",
}


# XLA's thorough ways take two to three times as long to compile, for steps that are hardly faster.
FAST = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1}
# For what runs once or twice: three times slower again, and compiled in less than half of the time.
ONCE = FAST | {"xla_backend_optimization_level": 0}


def jit(function: Callable[..., Any], *, once: bool = False, **options: Any) -> Any:
    """``jax.jit`` for a program that runs a few thousand times at most, or ``once``: compiled soon rather than well."""
    known = _known_options(jax.default_backend())
    wanted = ONCE if once else FAST
    return jax.jit(function, compiler_options={name: wanted[name] for name in known} or None, **options)


@cache
def _known_options(backend: str) -> tuple[str, ...]:
    """Those of the options that this version of XLA has."""
    if backend != "cpu":
        return ()
    known = []
    for name, value in FAST.items():
        try:
            jax.jit(lambda x: x, compiler_options={name: value}).lower(np.zeros(1)).compile()
        except Exception:  # of a kind that depends on the version
            continue
        known.append(name)
    return tuple(known)
