"""What :mod:`flowppl.serialization` needs to know of NumPyro."""

from __future__ import annotations

import warnings

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from flowppl._tree import Tree, map_tree
from flowppl.bijection import Bijection
from flowppl.numpyro.flow import Flow
from flowppl.numpyro.transforms import FlowTransform
from flowppl.serialization import BASES, check_base

CONSTRUCTORS = {kind: getattr(dist, kind) for kind in BASES} | {
    "MultivariateNormal": lambda loc, scale_tril: dist.MultivariateNormal(loc, scale_tril=scale_tril),
    "Categorical": lambda logits: dist.Categorical(logits=logits),
    "ExpandedDistribution": lambda base_dist, batch_shape: base_dist.expand(tuple(batch_shape)),
}
KINDS = {"CategoricalLogits": "Categorical", "CategoricalProbs": "Categorical"}
ATTRIBUTES = {"mixture_distribution": "mixing_distribution"}


def read_weights(transform: FlowTransform) -> Tree:
    """The weights and constants as NumPy arrays."""
    return map_tree(np.asarray, transform._tree)


def make_transform(bijection: Bijection, params: Tree) -> FlowTransform:
    """A transform with these weights."""
    return FlowTransform(bijection, map_tree(_to_jax, params))


def make_flow(bijection: Bijection, params: Tree, base) -> Flow:
    """A flow with these weights."""
    return Flow(bijection, map_tree(_to_jax, params), base)


def read_base(base) -> Tree:
    """A distribution as a tree: its name as ``type``, and its arguments."""
    kind = KINDS.get(type(base).__name__, type(base).__name__)
    check_base(base, kind, ("numpyro",))
    arguments = {name: getattr(base, ATTRIBUTES.get(name, name)) for name in BASES[kind]}
    if "base_dist" in arguments or "component_distribution" in arguments:
        return {"type": kind} | {name: _read_argument(value) for name, value in arguments.items()}
    dtype = jnp.result_type(float, *arguments.values())  # Python numbers are not float64 by themselves
    return {"type": kind} | {name: np.asarray(value, dtype) for name, value in arguments.items()}


def make_base(tree: Tree):
    """The distribution of such a tree."""
    return CONSTRUCTORS[tree["type"]](*(_make_argument(tree[name]) for name in BASES[tree["type"]]))


def _read_argument(value):
    return read_base(value) if isinstance(value, dist.Distribution) else value


def _make_argument(value):
    if isinstance(value, dict):
        return make_base(value)
    return _to_jax(value) if isinstance(value, np.ndarray) else value


def _to_jax(leaf):
    array = jnp.asarray(leaf)
    if array.dtype != leaf.dtype:
        warnings.warn(
            f"the file holds {leaf.dtype}, which JAX makes {array.dtype} as it is set now; to keep it, call "
            "jax.config.update('jax_enable_x64', True) before loading",
            stacklevel=2,
        )
    return array
