"""What a Pyro model says of draws of its latents, for ArviZ."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from flowppl.inference.inference_data import Groups, Site, wanted
from flowppl.pyro.diagnostics import aside
from flowppl.pyro.predictive import uncondition
from flowppl.serialization import absent_model

Values = dict[str, torch.Tensor]
Function = Callable[[Values], Values]


def make_groups(
    model: Any,
    draws: Mapping[str, torch.Tensor],
    args: tuple,
    kwargs: dict[str, Any],
    *,
    chunk_size: int,
    observed_data: bool,
    **switches: bool | None,
) -> tuple[Groups, dict[str, Site]]:
    """The groups of ArviZ and the sites of the model.

    Args:
        model: the model with its parameters.
        draws: draws of its latents: for each a tensor ``(n, ...)``.
        args: its arguments.
        kwargs: its keyword arguments.
        chunk_size: how many draws are computed at a time.
        observed_data: whether to give the data.
        switches: of ``log_likelihood`` and ``posterior_predictive``, as for :func:`wanted`.
    """
    if model is absent_model and not any(switches.values()):
        return {"posterior": {name: value.numpy(force=True) for name, value in draws.items()}}, {}
    sites, latents = look(model, {name: value[0] for name, value in draws.items()}, args, kwargs)
    observed = {name: site.observed for name, site in sites.items() if site.observed is not None}
    computed = [name for name, site in sites.items() if site.event_dim is None and name not in draws]
    chosen = wanted(sites, [name for name in latents if name not in draws], **switches)

    def at(values, model=model):
        return poutine.trace(poutine.condition(model, data=values)).get_trace(*args, **kwargs).nodes

    def see(values):
        nodes = at(values)
        return {name: nodes[name]["value"] for name in computed}

    def score(values):
        nodes = at(values)
        return {name: _log_likelihood(nodes[name]) for name in observed}

    def predict(values):
        nodes = at(values, uncondition()(model))
        return {name: nodes[name]["value"] for name in observed}

    groups: Groups = {"posterior": at_once(see, draws, chunk_size) if computed else {}}
    groups["posterior"] |= {name: value.numpy(force=True) for name, value in draws.items()}
    if "log_likelihood" in chosen:
        groups["log_likelihood"] = at_once(score, draws, chunk_size)
    if "posterior_predictive" in chosen:
        groups["posterior_predictive"] = one_by_one(predict, draws)
    if observed_data and observed:
        groups["observed_data"] = observed
    return groups, sites


def at_once(function: Function, draws: Mapping[str, torch.Tensor], chunk_size: int) -> dict[str, np.ndarray]:
    """A function of one draw at all draws of a chunk at once, if the model can be mapped, else one by one."""
    with aside(), pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # an operation that is mapped one by one
        try:
            found = torch.func.vmap(function, randomness="different", chunk_size=chunk_size)(dict(draws))
        except Exception:  # whatever the model does that vmap has no rule for
            return one_by_one(function, draws)
    return {name: value.numpy(force=True) for name, value in found.items()}


def one_by_one(function: Function, draws: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A function of one draw at all draws; so the random numbers of any distribution are new ones each time."""
    with aside(), pyro.validation_enabled(False):
        size = len(next(iter(draws.values())))
        rows = [function({name: value[i] for name, value in draws.items()}) for i in range(size)]
        return {name: torch.stack([row[name] for row in rows]).numpy(force=True) for name in rows[0]}


def _log_likelihood(site: Any) -> torch.Tensor:
    """The log density of each member of a site: 0 of those that are masked out."""
    log_prob = site["fn"].log_prob(site["value"])
    if site["mask"] is None:
        return log_prob
    mask = torch.as_tensor(site["mask"], device=log_prob.device)
    return torch.where(mask, log_prob, torch.zeros_like(log_prob))


def look(
    model: Any, values: Mapping[str, torch.Tensor], args: tuple, kwargs: dict[str, Any]
) -> tuple[dict[str, Site], list[str]]:
    """The sites of a model and the names of its latents, seen at these values of them."""
    with aside():
        trace = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(*args, **kwargs)
    sites, latents = {}, []
    nodes: dict[str, Any] = trace.nodes
    for name, site in nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        is_computed = bool(site["infer"].get("_deterministic"))
        is_latent = not is_computed and (name in values or not site["is_observed"])
        if not (is_latent or is_computed or site["value"].numel()):
            continue  # a factor
        if is_latent:
            latents.append(name)
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        sites[name] = Site(
            name,
            tuple((frame.name, frame.dim, frame.size, frame.full_size or frame.size) for frame in frames),
            None if is_computed else site["fn"].event_dim,
            tuple(site["infer"].get("event_dims", ())),
            None if is_latent or is_computed else site["value"].numpy(force=True),
        )
    return sites, latents
