"""What a Pyro model says of draws of its latents, for ArviZ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from flowppl.inference.inference_data import Groups, Site, wanted
from flowppl.pyro.diagnostics import aside
from flowppl.pyro.predictive import at_once, one_by_one, uncondition
from flowppl.serialization import absent_model


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
        return {"posterior": _numpy(draws)}, {}
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

    with aside(), pyro.validation_enabled(False):
        groups: Groups = {"posterior": _numpy(at_once(see, draws, chunk_size) if computed else {}) | _numpy(draws)}
        if "log_likelihood" in chosen:
            groups["log_likelihood"] = _numpy(at_once(score, draws, chunk_size))
        if "posterior_predictive" in chosen:
            groups["posterior_predictive"] = _numpy(one_by_one(predict, draws))
    if observed_data and observed:
        groups["observed_data"] = observed
    return groups, sites


def _numpy(values: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy(force=True) for name, value in values.items()}


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
