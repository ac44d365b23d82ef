"""Draws of the other sites of a NumPyro model, given draws of its latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from numpyro import handlers
from numpyro.distributions import Unit
from numpyro.infer import Predictive

from flowppl.numpyro.enumeration import is_summed_out


def predict(
    rng_key: jax.Array,
    model: Callable[..., Any],
    params: dict[str, Any],
    draws: dict[str, jax.Array],
    args: tuple,
    kwargs: dict[str, Any],
    names: list[str] | None = None,
) -> dict[str, jax.Array]:
    """Draws of all sites of a model that are not in ``draws``, by the host's ``Predictive``, all at once.

    Sites that a fit sums out are drawn from their posterior, given the others.

    Args:
        rng_key: the key of the draws.
        model: the model.
        params: its parameters.
        draws: for each latent site an array ``(num_samples, ...)``.
        args: the model's arguments.
        kwargs: its keyword arguments.
        names: the sites that are asked for; ``None`` means all.

    Returns:
        For each other site, deterministic ones too, an array of shape ``(num_samples, ...)``.
    """
    discrete: dict[str, Any] = {}
    if _infers_sums(model, params, draws, args, kwargs):
        infer: Any = Predictive(model, draws, params=params, infer_discrete=True)
        inferred = infer(rng_key, *args, **kwargs)
        discrete = {name: value for name, value in inferred.items() if name not in draws}
    known: Any = Predictive(model, draws | discrete, params=params, return_sites=names, parallel=True)
    found = known(rng_key, *args, **kwargs)
    return found if names is not None else discrete | found


def _infers_sums(model, params, draws, args, kwargs) -> bool:
    """Whether sites that a fit sums out have a posterior; where data are drawn anew, they come from their prior."""
    sites = _other_sites(model, params, draws, args, kwargs)
    free = [site for site in sites if site["type"] == "sample" and not site["is_observed"]]
    return bool(free) and all(map(is_summed_out, free))


def given_sites(
    model: Callable[..., Any], params: dict[str, Any], draws: dict[str, jax.Array], args: tuple, kwargs: dict[str, Any]
) -> list[str]:
    """The observed sites of a model that has no site left to draw; none if it has one."""
    others = {
        site["name"]: site["is_observed"]
        for site in _other_sites(model, params, draws, args, kwargs)
        if site["type"] == "sample" and not isinstance(site["fn"], Unit)
    }
    return list(others) if all(others.values()) else []


def _other_sites(model, params, draws, args, kwargs) -> list[dict[str, Any]]:
    """The sites of the model that are not in ``draws``; their values are none that can be used."""
    sites: list[dict[str, Any]] = []

    def look():
        first = jax.tree.map(lambda value: value[0], draws)
        # Deterministic sites are not held: they may have other shapes for these arguments.
        known = handlers.substitute(
            handlers.substitute(model, params),
            substitute_fn=lambda site: None if site["type"] == "deterministic" else first.get(site["name"]),
        )
        trace = handlers.trace(handlers.seed(known, 0)).get_trace(*args, **kwargs)
        sites.extend(site for name, site in trace.items() if name not in draws)

    with handlers.block():
        jax.eval_shape(look)
    return sites


def with_deterministic(
    model: Callable[..., Any], params: dict[str, Any], draws: dict[str, jax.Array], args: tuple, kwargs: dict[str, Any]
) -> dict[str, jax.Array]:
    """``draws`` and the deterministic sites of the model that belong to them.

    Args:
        model: the model.
        params: its parameters.
        draws: for each latent site an array ``(num_samples, ...)``.
        args: the model's arguments.
        kwargs: its keyword arguments.
    """
    sites = _other_sites(model, params, draws, args, kwargs)
    names = [site["name"] for site in sites if site["type"] == "deterministic"]
    return draws | predict(jax.random.key(0), model, params, draws, args, kwargs, names) if names else draws
