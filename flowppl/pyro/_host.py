"""What this adapter takes from Pyro and torch beyond their documented names, each with its reason.

A new version of a host may change it without a word: tests/test_host.py holds all of it to what is installed.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.util import sum_rightmost as sum_rightmost
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.utils import helpful_support_errors as helpful_support_errors
from pyro.infer.enum import get_importance_trace as get_importance_trace
from pyro.infer.traceenum_elbo import _compute_model_factors as _compute_model_factors
from pyro.infer.util import is_validation_enabled as is_validation_enabled
from pyro.infer.util import torch_item as torch_item
from pyro.nn import PyroModule
from pyro.ops.contract import contract_to_tensor as contract_to_tensor
from pyro.ops.einsum.util import Tensordot as Tensordot
from pyro.ops.rings import LogRing as LogRing
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.params import param_with_module_name as param_with_module_name
from pyro.params.param_store import ParamStoreDict
from pyro.params.param_store import normalize_param_name as normalize_param_name
from pyro.poutine.enum_messenger import EnumMessenger as EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame as CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.util import warn_if_nan as warn_if_nan
from torch._guards import TracingContext as TracingContext
from torch._guards import tracing as tracing
from torch._subclasses.fake_tensor import FakeTensorMode as FakeTensorMode
from torch.distributions.transforms import _InverseTransform as _InverseTransform
from torch.fx.experimental.proxy_tensor import make_fx as make_fx
from torch.overrides import TorchFunctionMode as TorchFunctionMode
from torch.utils._pytree import tree_leaves as tree_leaves
from torch.utils._pytree import tree_map as tree_map

try:
    from torch._C import _create_function_from_graph as _create_function_from_graph
    from torch._C import _create_graph_by_tracing as _create_graph_by_tracing
except ImportError:  # a torch that has them no more; steps.py tells
    _create_function_from_graph = _create_graph_by_tracing = None  # type: ignore[assignment]

# Functions and classes.
NAMES = {
    "CondIndepStackFrame": "a plate around a latent, written into a file and read from it",
    "EnumMessenger": "enumerates sites; overridden so that `vmap` may pass",
    "FakeTensorMode": "the one mode of all shapes that `make_fx` notes; else each operation has its own",
    "LogRing": "the sums and products by which sites are summed out; overridden so that `vmap` may pass",
    "Tensordot": "makes the product that `opt_einsum` asks for of an einsum",
    "TorchFunctionMode": "sees the tensors that a model makes and then fills",
    "TracingContext": "tells `make_fx` of that mode",
    "_InverseTransform": "in the message about a transform without an inverse, to name the one inside",
    "_compute_model_factors": "the parts of a log density that depend on sites summed out, and their scale",
    "_create_function_from_graph": "the program of a recorded step, which is freed with its last user",
    "_create_graph_by_tracing": "records a step as operations, as `torch.jit.trace` does",
    "contract_to_tensor": "sums sites out",
    "get_importance_trace": "the traces of guide and model with their log densities, as the host's ELBOs take them",
    "helpful_support_errors": "the host's message about a support to which it does not map",
    "is_validation_enabled": "checks that cost time are made only where the host makes its own",
    "make_fx": "records a training step of `fit` as one program",
    "normalize_param_name": "the name of a parameter as the function of options of a `pyro.optim` optimiser sees it",
    "param_with_module_name": "the names under which the store keeps the parameters of a module",
    "sum_rightmost": "the sum of a log density over the axes of an event",
    "torch_item": "the number in a loss, which may be a tensor or a number",
    "tracing": "puts that context around `make_fx`",
    "tree_leaves": "the tensors among a model's arguments, however they are nested",
    "tree_map": "the shapes of a model's arguments, however they are nested",
    "warn_if_nan": "the host's warning about a loss",
}

# Attributes and methods of the host's classes: used, or overridden so that the host calls ours.
MEMBERS: dict[type, dict[str, str]] = {
    AutoContinuous: {
        "__getstate__": "overridden: the host's takes the model away from the guide that is copied",
        "_check_prototype": "overridden by `AutoLocalFlow`: a guide inside it has seen the same model",
        "_cond_indep_stacks": "the plates around each latent: read and written by `save` and `load`",
        "_create_plates": "makes the plates that the host's `forward` enters",
        "_init_loc": "the point of `init_loc_fn` as one vector",
        "_model": "holds the model; the guide keeps the user's own, without the host's starts, beside it",
        "_prototype_frames": "the plates that `_create_plates` makes: written by `load`",
        "_prototype_hide_fn": "tells the sites that are no latents",
        "_setup_prototype": "overridden: called by the host when the guide first sees its model",
        "_unconstrained_shapes": "the unconstrained shape of each latent, in the order of the vector",
        "_unpack_latent": "overridden: the host's `forward` takes the vector of latents apart by it",
        "latent_dim": "the length of the vector of latents",
        "master": "the guide that this one is part of, which makes the plates",
        "plates": "the plates of this guide",
        "prototype_trace": "the model's sites as first seen; `None` before",
    },
    ParamStoreDict: {"_params": "the unconstrained parameter of a name, to tell whose it is"},
    PyroOptim: {
        "_clip_grad": "clips gradients as the optimiser was told to",
        "pt_clip_args": "the options of that clipping",
        "pt_optim_args": "the options of the optimiser of torch",
        "pt_optim_constructor": "the optimiser of torch",
    },
    PyroLRScheduler: {"pt_scheduler_constructor": "the schedule of torch"},
    PyroModule: {"_pyro_name": "the first part of the names of parameters and auxiliary sites"},
    LogRing: {"_backend": "overridden: the module in which `opt_einsum` finds the sums"},
    Trace_ELBO: {
        "_get_trace": "overridden: one particle of an objective",
        "_get_traces": "all particles, one by one or in one plate",
    },
    Messenger: {
        "_pyro_post_sample": "overridden: called after a site was drawn",
        "_pyro_sample": "overridden: called before a site is drawn",
    },
    dist.MaskedDistribution: {"_mask": "which members of a site are scored"},
    torch.distributions.Distribution: {
        "_get_checked_instance": "makes the instance that `expand` fills",
        "_validate_args": "whether values are checked",
        "_validate_sample": "the check of a value",
    },
    torch.distributions.Transform: {
        "_cached_x_y": "emptied when weights are lent to a wrapped transform: what it has kept is stale",
        "_call": "overridden, as torch's documentation of `Transform` says",
        "_inverse": "overridden, as torch's documentation of `Transform` says",
    },
    torch.nn.Module: {
        "_apply": "overridden by `Flow`: moves the base distribution too",
        "_buffers": "the fixed tensors of a module by name",
        "_load_from_state_dict": "overridden by `AutoFlow`: says what to do if there are no weights to load into",
        "_modules": "the modules in a module by name, without Pyro's store in between",
        "_parameters": "the trained tensors of a module by name",
    },
    torch.optim.Adam: {"found_inf": "set: not 0, it makes the fused optimiser leave a step out"},
    torch.Tensor: {"_version": "tells whether a draw was changed in place before it was scored"},
}

# What the messages of sample sites hold in a trace.
SITE_KEYS = {
    "cond_indep_stack": "the plates around a site, each with name, dim, size, full_size and vectorized",
    "infer": "`enumerate`, for what is summed out; `is_auxiliary`, for the vector of latents; `_deterministic`",
    "is_observed": "whether the site is a latent",
    "mask": "which members of a site are scored",
    "scale": "what annealing multiplies",
}
# What `Trace.compute_score_parts` adds; the host's ELBO takes its gradient from it.
SCORE_PARTS = {"entropy_term": "replaced by `PathELBO`, which has its gradient from the path of the draws"}
