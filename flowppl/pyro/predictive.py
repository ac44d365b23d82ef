"""Draws of the other sites of a Pyro model, given draws of its latents."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from flowppl.pyro.enumeration import is_summed_out, plate_nesting, trace_of

Values = dict[str, torch.Tensor]
Function = Callable[[Values], Values]


class uncondition(Messenger):
    """Draws anew what was observed.

    The host's handler of this name does the same, but gives deterministic sites within plates a wrong shape.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            msg.update(value=None, is_observed=False, done=False)


def at_once(function: Function, draws: Mapping[str, torch.Tensor], chunk_size: int | None = None) -> Values:
    """A function of one draw at all draws of a chunk at once, if the model can be mapped, else one by one."""
    # Checks of values would be branches on them.
    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # an operation that is mapped one by one
        try:
            return torch.func.vmap(function, randomness="different", chunk_size=chunk_size)(dict(draws))
        except Exception:  # whatever the model does that vmap has no rule for
            pass
    return one_by_one(function, draws)


def one_by_one(function: Function, draws: Mapping[str, torch.Tensor]) -> Values:
    """A function of one draw at all draws; so the random numbers of any distribution are new ones each time."""
    size = len(next(iter(draws.values())))
    rows = [function({name: value[i] for name, value in draws.items()}) for i in range(size)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@torch.no_grad()
def predict(
    model: Callable[..., Any], draws: dict[str, torch.Tensor], args: tuple, kwargs: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Draws of all sites of a model that are not in ``draws``, as by the host's ``Predictive``.

    All are drawn at once where the operations of the model allow that, and otherwise one by one. Sites that a fit sums
    out are drawn from their posterior, given the others.

    Args:
        model: the model.
        draws: for each latent site a tensor ``(num_samples, ...)``.
        args: the model's arguments.
        kwargs: its keyword arguments.

    Returns:
        For each other site, deterministic ones too, a tensor of shape ``(num_samples, ...)``.
    """
    first = poutine.condition(model, data={name: value[0] for name, value in draws.items()})
    trace = trace_of(first, args, kwargs)
    sums_out = any(map(is_summed_out, trace.nodes.values()))

    def one(values):
        conditioned = poutine.condition(model, data=values)
        if sums_out:  # from their posterior given the rest, not from their prior
            conditioned = infer_discrete(conditioned, first_available_dim=-1 - plate_nesting(trace), temperature=1)
        nodes = trace_of(conditioned, args, kwargs).nodes
        return {
            name: torch.as_tensor(site["value"])
            for name, site in nodes.items()
            if site["type"] == "sample" and name not in values and not site_is_subsample(site)
        }

    return (one_by_one if sums_out else at_once)(one, draws)


def given_sites(
    model: Callable[..., Any], draws: dict[str, torch.Tensor], args: tuple, kwargs: dict[str, Any]
) -> list[str]:
    """The observed sites of a model that has no site left to draw; none if it has one."""
    first = poutine.condition(model, data={name: value[0] for name, value in draws.items()})
    others = {
        name: site["is_observed"]
        for name, site in trace_of(first, args, kwargs).nodes.items()
        if site["type"] == "sample" and name not in draws and not site_is_subsample(site)
        if not site["infer"].get("_deterministic") and not isinstance(site["fn"], Unit)
    }
    return list(others) if all(others.values()) else []


def with_deterministic(
    model: Callable[..., Any], draws: dict[str, torch.Tensor], trace: Any, args: tuple, kwargs: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """``draws`` and the deterministic sites of the model that belong to them.

    Args:
        model: the model.
        draws: for each latent site a tensor ``(num_samples, ...)``.
        trace: a trace of the model, in which its deterministic sites are looked up.
        args: the model's arguments.
        kwargs: its keyword arguments.
    """
    names = [name for name, site in trace.nodes.items() if site.get("infer", {}).get("_deterministic")]
    if not set(names) - set(draws):
        return draws
    found = predict(model, draws, args, kwargs)
    return draws | {name: found[name] for name in names}
