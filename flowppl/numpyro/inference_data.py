"""What a NumPyro model says of draws of its latents, for ArviZ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.infer import Predictive

from flowppl.inference.inference_data import Groups, Site, wanted
from flowppl.serialization import absent_model


def make_groups(
    key: jax.Array,
    model: Any,
    draws: Mapping[str, jax.Array],
    args: tuple,
    kwargs: dict[str, Any],
    *,
    chunk_size: int,
    observed_data: bool,
    **switches: bool | None,
) -> tuple[Groups, dict[str, Site]]:
    """The groups of ArviZ and the sites of the model.

    Args:
        key: the key of the predictive draws.
        model: the model with its parameters.
        draws: draws of its latents: for each an array ``(n, ...)``.
        args: its arguments.
        kwargs: its keyword arguments.
        chunk_size: how many draws are computed at a time.
        observed_data: whether to give the data.
        switches: of ``log_likelihood`` and ``posterior_predictive``, as for :func:`wanted`.
    """
    if model is absent_model and not any(switches.values()):
        return {"posterior": {name: np.asarray(value) for name, value in draws.items()}}, {}
    seeded = handlers.seed(model, key)  # for what is random though it was drawn or observed
    sites, latents = look(seeded, {name: value[0] for name, value in draws.items()}, args, kwargs)
    names = [name for name, site in sites.items() if site.observed is not None]
    chosen = wanted(sites, [name for name in latents if name not in draws], **switches)

    def one(values):
        trace = handlers.trace(handlers.substitute(seeded, data=values)).get_trace(*args, **kwargs)
        computed = {name: site["value"] for name, site in trace.items() if site["type"] == "deterministic"}
        terms = {name: trace[name]["fn"].log_prob(trace[name]["value"]) for name in names}
        return computed, terms if "log_likelihood" in chosen else {}

    computed, terms = jax.jit(lambda draws: jax.lax.map(one, draws, batch_size=chunk_size))(dict(draws))
    groups: dict[str, dict[str, Any]] = {"posterior": {**computed, **draws}}
    if "log_likelihood" in chosen:
        groups["log_likelihood"] = terms
    if "posterior_predictive" in chosen:
        predict = Predictive(handlers.uncondition(model), dict(draws), return_sites=names)
        groups["posterior_predictive"] = jax.jit(lambda key: predict(key, *args, **kwargs))(key)
    if observed_data and names:
        groups["observed_data"] = {name: sites[name].observed for name in names}
    return jax.tree.map(np.asarray, groups), sites


def look(
    model: Any, values: Mapping[str, jax.Array], args: tuple, kwargs: dict[str, Any]
) -> tuple[dict[str, Site], list[str]]:
    """The sites of a model and the names of its latents, seen at these values of them."""
    with handlers.block():
        trace = handlers.trace(handlers.substitute(model, data=dict(values))).get_trace(*args, **kwargs)
    full_sizes = {site["name"]: site["args"][0] for site in trace.values() if site["type"] == "plate"}
    sites, latents = {}, []
    for name, site in trace.items():
        if site["type"] not in ("sample", "deterministic"):
            continue
        is_sample = site["type"] == "sample"
        observed = np.asarray(site["value"]) if is_sample and site["is_observed"] else None
        if observed is not None and not observed.size:
            continue  # a factor
        if is_sample and observed is None:
            latents.append(name)
        sites[name] = Site(
            name,
            tuple((*frame, full_sizes.get(frame.name, frame.size)) for frame in site["cond_indep_stack"]),
            site["fn"].event_dim if is_sample else None,
            tuple(site.get("infer", {}).get("event_dims", ())),
            observed,
        )
    return sites, latents
