"""Draws of the other sites of a NumPyro model, given draws of its latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from numpyro import handlers
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
    found: list[bool] = []

    def look():
        first = jax.tree.map(lambda value: value[0], draws)
        # Deterministic sites are not held: they may have other shapes for these arguments.
        known = handlers.substitute(
            handlers.substitute(model, params),
            substitute_fn=lambda site: None if site["type"] == "deterministic" else first.get(site["name"]),
        )
        seeded = handlers.seed(known, 0)
        sites = handlers.trace(seeded).get_trace(*args, **kwargs)
        free = [site for name, site in sites.items() if _is_free(site) and name not in draws]
        found.append(bool(free) and all(map(is_summed_out, free)))

    with handlers.block():
        jax.eval_shape(look)
    return found[0]


def _is_free(site) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


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
    names: list[str] = []
    first = jax.tree.map(lambda value: value[0], draws)

    def look():
        seeded = handlers.seed(handlers.substitute(handlers.substitute(model, params), first), 0)
        trace = handlers.trace(seeded).get_trace(*args, **kwargs)
        names.extend(name for name, site in trace.items() if site["type"] == "deterministic" and name not in draws)

    with handlers.block():
        jax.eval_shape(look)
    return draws | predict(jax.random.key(0), model, params, draws, args, kwargs, names) if names else draws
