"""What :mod:`flowppl.serialization` needs to know of Pyro."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import torch

from flowppl._tree import Tree, leaves, map_tree
from flowppl.bijection import Bijection
from flowppl.pyro.flow import Flow
from flowppl.pyro.transforms import FlowTransform, Weights
from flowppl.serialization import BASES, check_base

CONSTRUCTORS = {kind: getattr(dist, kind) for kind in BASES if kind != "ExpandedDistribution"} | {
    "MultivariateNormal": lambda loc, scale_tril: dist.MultivariateNormal(loc, scale_tril=scale_tril),
    "Categorical": lambda logits: dist.Categorical(logits=logits),
    "ExpandedDistribution": lambda base_dist, batch_shape: base_dist.expand(batch_shape),
}


def read_weights(transform: FlowTransform) -> Tree:
    """The weights and constants as NumPy arrays."""
    return map_tree(_to_numpy, transform.weights.tree())


def make_transform(bijection: Bijection, params: Tree) -> FlowTransform:
    """A transform with these weights."""
    for (path, parameter), (_, leaf) in zip(leaves(bijection.parameters()), leaves(params), strict=True):
        if leaf.shape != parameter.shape:
            raise ValueError(
                f"{'.'.join(path)} has batch axes, the shape {leaf.shape} for {parameter.shape}, which a flow in Pyro "
                "does not take; load the file with backend='numpyro'"
            )
    return FlowTransform._sharing(bijection, Weights(map_tree(torch.tensor, params), bijection.constants()))


def make_flow(bijection: Bijection, params: Tree, base) -> Flow:
    """A flow with these weights."""
    with torch.random.fork_rng(devices=[]):  # draws weights, which are replaced at once
        flow = Flow(bijection, base)
    flow.transform = make_transform(bijection, params)
    for parameter in flow.transform.parameters():
        flow._zeros = flow._zeros.to(parameter.dtype)
    return flow


def read_base(base) -> Tree:
    """A distribution as a tree: its name as ``type``, and its arguments."""
    kind = type(base).__name__
    check_base(base, kind, ("pyro", "torch"))
    return {"type": kind} | {name: _read_argument(getattr(base, name)) for name in BASES[kind]}


def make_base(tree: Tree):
    """The distribution of such a tree."""
    return CONSTRUCTORS[tree["type"]](*(_make_argument(tree[name]) for name in BASES[tree["type"]]))


def _read_argument(value):
    if isinstance(value, torch.distributions.Distribution):
        return read_base(value)
    return _to_numpy(value) if isinstance(value, torch.Tensor) else value


def _make_argument(value):
    if isinstance(value, dict):
        return make_base(value)
    return torch.tensor(value) if isinstance(value, np.ndarray) else value


def _to_numpy(tensor):
    return tensor.detach().cpu().numpy()
