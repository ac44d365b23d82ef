"""Draws of the other sites of a NumPyro model, given draws of its latents."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from numpyro import handlers
from numpyro.infer import Predictive


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
    known: Any = Predictive(model, draws, params=params, return_sites=names, parallel=True)
    return known(rng_key, *args, **kwargs)


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
