"""What :mod:`flowppl.serialization` needs to know of NumPyro."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from flowppl._arrays.tree import Tree, map_tree, merge
from flowppl.bijections.combine import Chain
from flowppl.bijections.contract import Bijection
from flowppl.checks import level_of_caller
from flowppl.discrete import pixelcnn as discrete
from flowppl.inference.fitting import History
from flowppl.inference.mixture import is_mixture, stacked_part
from flowppl.numpyro._host import CondIndepStackFrame
from flowppl.numpyro.density_mixture import Mixture
from flowppl.numpyro.discrete import Dequantized as Dequantized
from flowppl.numpyro.fit import Fit
from flowppl.numpyro.flow import Flow
from flowppl.numpyro.guides import AutoFlow
from flowppl.numpyro.pixelcnn import PixelCNN
from flowppl.numpyro.transforms import FlowTransform
from flowppl.serialization import BASES, BFLOAT16, SUPPORTS, absent_model, check_base, check_support

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


def read_pixelcnn(pixelcnn: PixelCNN) -> Tree:
    """The weights and constants as NumPy arrays."""
    return map_tree(np.asarray, merge(pixelcnn.params, pixelcnn._of_x.constants()))


def make_pixelcnn(core: discrete.PixelCNN, params: Tree) -> PixelCNN:
    """A network with these weights."""
    return PixelCNN.tree_unflatten(core, (map_tree(_to_jax, params),))


def read_gate(mixture: Mixture) -> Tree:
    """What makes the weights of a mixture, as NumPy arrays."""
    return map_tree(np.asarray, mixture.gate)


def make_mixture(flows: list[Flow], hidden_dims: tuple[int, ...], gate: Tree) -> Mixture:
    """A mixture of these flows."""
    return Mixture(flows, hidden_dims, map_tree(_to_jax, gate))


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


def read_guide(guide: AutoFlow, params: Tree | None) -> tuple[Chain, Tree, Tree]:
    """The bijection of a guide, its weights and constants as NumPy arrays, and the rest of it as a tree."""
    if params is None:
        raise ValueError("save: in NumPyro a guide is saved with its parameters: save(path, guide, params)")
    own = guide._own_params(params)
    mixed = is_mixture(own)
    weights = merge(stacked_part(own), guide.bijection.constants())
    sites = guide.prototype_trace
    latents = {
        str(i): {
            "name": name,
            "shape": list(sites[name]["unconstrained_shape"]),
            "event_dim": sites[name]["fn"].event_dim,
            "support": _read_support(name, sites[name]["fn"].support),
            "plates": [list(frame) for frame in sites[name]["cond_indep_stack"]],
        }
        | ({} if sites[name].get("mask") is None else {"mask": sites[name]["mask"].tolist()})
        for i, name in enumerate(guide._names)
    }
    kinds = ("deterministic", "param", "mutable")
    others = {name: site["type"] for name, site in sites.items() if site["type"] in kinds}
    rest = {"other_sites": others, "needs_args": guide._needs_args, "prefix": guide.prefix}
    if mixed:
        rest["log_weights"] = np.asarray(own["log_weights"])
    return guide.bijection, map_tree(np.asarray, weights), {"latents": latents} | rest


def make_guide(bijection: Chain, params: Tree, tree: Tree, model) -> AutoFlow:
    """A guide that starts from these weights, as if it had seen a model with these latents."""
    num_modes = len(params["log_weights"]) if is_mixture(params) else 1
    guide = AutoFlow(model, bijection.bijections[0], num_modes=num_modes, prefix=tree["prefix"])
    trace: dict[str, dict] = {}
    for latent in tree["latents"].values():
        name = latent["name"]
        support = _make_support(latent["support"])
        trace[name] = {
            "name": name,
            "type": "sample",
            "is_observed": False,
            "cond_indep_stack": [CondIndepStackFrame(*plate) for plate in latent["plates"]],
            "fn": SimpleNamespace(support=support, event_dim=latent["event_dim"]),
            "unconstrained_shape": tuple(latent["shape"]),
            "mask": np.asarray(latent["mask"]) if "mask" in latent else None,
        }
    trace |= {name: {"name": name, "type": kind} for name, kind in tree["other_sites"].items()}
    guide._see(trace, needs_args=tree["needs_args"] or model is absent_model)
    guide.bijection = bijection  # a file of before has other layers
    guide._saved_params = map_tree(_to_jax, params)
    return guide


def read_fit(fit: Fit) -> Tree:
    """The parameters of a fit's model, and its key."""
    others = {name: value for name, value in fit.params.items() if name != f"{fit.guide.prefix}_flow"}
    return {
        "params": map_tree(np.asarray, others),
        "rng_key": np.asarray(jax.random.key_data(fit.rng_key)),
        "rng_impl": str(jax.random.key_impl(fit.rng_key)),
    }


def make_fit(guide: AutoFlow, history: tuple, arguments: tuple, tree: Tree) -> Fit:
    """A fit with these properties."""
    params = guide.setup() | map_tree(_to_jax, tree["params"])
    key = jax.random.wrap_key_data(tree["rng_key"], impl=tree["rng_impl"]) if "rng_key" in tree else jax.random.key(0)
    return Fit(guide, params, History(*history), guide.model, arguments, key)


def _read_support(site, support):
    kind = check_support(site, support)
    if kind == "independent":
        base = _read_support(site, support.base_constraint)
        return {"type": kind, "base_constraint": base, "reinterpreted_batch_ndims": support.reinterpreted_batch_ndims}
    arguments = {name: getattr(support, name) for name in SUPPORTS[kind]}
    return {"type": kind} | {
        name: value if isinstance(value, (int, float)) else np.asarray(jnp.asarray(value))
        for name, value in arguments.items()
    }


def _make_support(tree):
    kind = tree["type"]
    if kind == "independent":
        return dist.constraints.independent(_make_support(tree["base_constraint"]), tree["reinterpreted_batch_ndims"])
    support = getattr(dist.constraints, kind)
    return support(*(_make_argument(tree[name]) for name in SUPPORTS[kind])) if SUPPORTS[kind] else support


def _read_argument(value):
    return read_base(value) if isinstance(value, dist.Distribution) else value


def _make_argument(value):
    if isinstance(value, dict):
        return make_base(value)
    return _to_jax(value) if isinstance(value, np.ndarray) else value


def _to_jax(leaf):
    leaf = leaf.view(jnp.bfloat16) if leaf.dtype == BFLOAT16 else leaf
    array = jnp.asarray(leaf)
    if array.dtype != leaf.dtype:
        warnings.warn(
            f"the file holds {leaf.dtype}, which JAX makes {array.dtype} as it is set now; to keep it, call "
            "jax.config.update('jax_enable_x64', True) before loading",
            stacklevel=level_of_caller(),
        )
    return array
