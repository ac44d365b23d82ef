"""What :mod:`flowppl.serialization` needs to know of Pyro."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from torch.distributions import biject_to

from flowppl._arrays.tree import Tree, leaves, map_tree, merge
from flowppl.bijections.combine import Chain
from flowppl.bijections.contract import Bijection
from flowppl.discrete import pixelcnn as discrete
from flowppl.inference.fitting import History
from flowppl.inference.mixture import is_mixture
from flowppl.pyro._host import CondIndepStackFrame
from flowppl.pyro.density_mixture import Mixture
from flowppl.pyro.discrete import Dequantized as Dequantized
from flowppl.pyro.fit import Fit
from flowppl.pyro.flow import Flow
from flowppl.pyro.guides import AutoFlow
from flowppl.pyro.mixture import MixtureOfFlows
from flowppl.pyro.pixelcnn import PixelCNN
from flowppl.pyro.transforms import FlowTransform, Weights
from flowppl.serialization import BASES, BFLOAT16, SUPPORTS, check_base, check_support

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
    return FlowTransform._sharing(bijection, Weights(map_tree(_to_torch, params), bijection.constants()))


def make_flow(bijection: Bijection, params: Tree, base) -> Flow:
    """A flow with these weights."""
    with torch.random.fork_rng(devices=[]):  # draws weights, which are replaced at once
        flow = Flow(bijection, base)
    flow.transform = make_transform(bijection, params)
    for parameter in flow.transform.parameters():
        flow._zeros = flow._zeros.to(parameter.dtype)
    return flow


def read_pixelcnn(pixelcnn: PixelCNN) -> Tree:
    """The weights and constants as NumPy arrays."""
    return map_tree(_to_numpy, pixelcnn.weights.tree())


def make_pixelcnn(core: discrete.PixelCNN, params: Tree) -> PixelCNN:
    """A network with these weights."""
    new = PixelCNN.__new__(PixelCNN)
    torch.nn.Module.__init__(new)
    new._of_x, new.weights = core, Weights(map_tree(_to_torch, params), core.constants())
    return new


def read_gate(mixture: Mixture) -> Tree:
    """What makes the weights of a mixture, as NumPy arrays."""
    return map_tree(_to_numpy, mixture.gate.tree())


def make_mixture(flows: list[Flow], hidden_dims: tuple[int, ...], gate: Tree) -> Mixture:
    """A mixture of these flows."""
    with torch.random.fork_rng(devices=[]):  # draws weights, which are replaced at once
        mixture = Mixture(flows, hidden_dims)
    mixture.gate = Weights(map_tree(_to_torch, gate), {})
    return mixture


def read_base(base) -> Tree:
    """A distribution as a tree: its name as ``type``, and its arguments."""
    kind = type(base).__name__
    check_base(base, kind, ("pyro", "torch"))
    return {"type": kind} | {name: _read_argument(getattr(base, name)) for name in BASES[kind]}


def make_base(tree: Tree):
    """The distribution of such a tree."""
    return CONSTRUCTORS[tree["type"]](*(_make_argument(tree[name]) for name in BASES[tree["type"]]))


def read_guide(guide: AutoFlow, params: None) -> tuple[Chain, Tree, Tree]:
    """The bijection of a guide, its weights and constants as NumPy arrays, and the rest of it as a tree."""
    flow = guide._trained_flow()
    rest: Tree = {"other_sites": {}, "needs_args": True, "prefix": "auto"}
    if isinstance(flow, MixtureOfFlows):
        weights = merge(map_tree(_to_numpy, flow.parts.tree()), flow.bijection.constants())
        rest["log_weights"] = _to_numpy(flow.log_weights)
    else:
        weights = read_weights(flow.transform)
    sites = cast(Any, guide.prototype_trace).nodes
    latents = {
        str(i): {
            "name": name,
            "shape": list(shape),
            "event_dim": sites[name]["fn"].event_dim,
            "support": _read_support(name, sites[name]["fn"].support),
            "plates": [[frame.name, frame.dim, frame.size] for frame in guide._cond_indep_stacks[name]],
        }
        | ({"mask": guide._masks[name].tolist()} if name in guide._masks else {})
        for i, (name, shape) in enumerate(guide._unconstrained_shapes.items())
    }
    return cast(Chain, flow.bijection), weights, {"latents": latents} | rest


def make_guide(bijection: Chain, params: Tree, tree: Tree, model) -> AutoFlow:
    """A guide with these weights, as if it had seen a model with these latents."""
    num_modes, flow = 1, cast(Any, None)
    if is_mixture(params):
        num_modes = len(params["log_weights"])
        params = map_tree(_to_torch, params)
        flow = MixtureOfFlows(bijection, params, params["log_weights"])
    else:
        flow = make_flow(bijection, params, None)
    weight = next(flow.parameters())
    guide = AutoFlow(model, bijection.bijections[0], num_modes=num_modes)
    guide.prototype_trace = poutine.Trace()
    guide._unconstrained_shapes, guide._cond_indep_stacks = {}, {}
    for latent in tree["latents"].values():
        name, shape = latent["name"], torch.Size(latent["shape"])
        support = _make_support(name, latent["support"])
        frames = tuple(CondIndepStackFrame(plate, dim, size, 0) for plate, dim, size in latent["plates"])
        guide.prototype_trace.add_node(
            name,
            name=name,
            type="sample",
            is_observed=False,
            fn=SimpleNamespace(support=support, event_dim=latent["event_dim"]),
            value=biject_to(support)(weight.new_zeros(shape)),
            cond_indep_stack=frames,
        )
        guide._unconstrained_shapes[name] = shape
        guide._cond_indep_stacks[name] = frames
        if "mask" in latent:
            guide._masks[name] = torch.tensor(latent["mask"])
        guide._prototype_frames |= {frame.name: frame for frame in frames}
    (guide.latent_dim,) = bijection.x_shape
    guide.flow = flow
    guide._create_plates()
    return guide


def read_fit(fit: Fit) -> Tree:
    """The parameters of a fit's model."""
    own, prefix = fit.guide.setup(), f"{fit.guide._pyro_name}."  # which Pyro's store puts before a guide's names
    others = {
        name: _to_numpy(value)
        for name, value in fit.params.items()
        if name.removeprefix(prefix).replace("$$$", ".") not in own
    }
    return {"params": others}


def make_fit(guide: AutoFlow, history: tuple, arguments: tuple, tree: Tree) -> Fit:
    """A fit with these properties."""
    own = {name: parameter.detach() for name, parameter in guide.setup().items()}
    params = own | map_tree(_to_torch, tree["params"])
    (*_, model) = guide._model
    return Fit(guide, params, History(*history), model, arguments)


def _read_support(site, support):
    kind = check_support(site, support)
    if kind == "independent":
        base = _read_support(site, support.base_constraint)
        return {"type": kind, "base_constraint": base, "reinterpreted_batch_ndims": support.reinterpreted_batch_ndims}
    return {"type": kind} | {name: _read_argument(getattr(support, name)) for name in SUPPORTS[kind]}


def _make_support(site, tree):
    kind = tree["type"]
    if kind == "independent":
        base = _make_support(site, tree["base_constraint"])
        return dist.constraints.independent(base, tree["reinterpreted_batch_ndims"])
    arguments = [_make_argument(tree[name]) for name in SUPPORTS[kind]]
    try:
        support = getattr(dist.constraints, kind)
        support = support(*arguments) if arguments else support
        biject_to(support)
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            f"site {site!r} has the support {kind}, to which Pyro does not map; load the file with backend='numpyro'"
        ) from error
    return support


def _read_argument(value):
    if isinstance(value, torch.distributions.Distribution):
        return read_base(value)
    return _to_numpy(value) if isinstance(value, torch.Tensor) else value


def _make_argument(value):
    if isinstance(value, dict):
        return make_base(value)
    return _to_torch(value) if isinstance(value, np.ndarray) else value


def _to_numpy(tensor):
    tensor = tensor.detach().cpu()
    return tensor.view(torch.int16).numpy().view(BFLOAT16) if tensor.dtype == torch.bfloat16 else tensor.numpy()


def _to_torch(array):
    if array.dtype == BFLOAT16:
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)
