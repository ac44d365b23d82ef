"""Importance weights of NumPyro guides, what they say of a guide, and draws corrected by them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.util import log_density

from flowppl.checks import check_sizes, describe
from flowppl.inference import diagnostics
from flowppl.inference.arguments import check_arguments, check_roles
from flowppl.inference.guides import search_modes
from flowppl.inference.importance import resample_indices
from flowppl.inference.outside import SEARCH_SECONDS, GuideDensity, look_outside
from flowppl.inference.starts import search_until
from flowppl.inference.turns import one_at_a_time
from flowppl.numpyro.enumeration import is_summed_out, log_joint, nesting_of_sums
from flowppl.numpyro.guides import AutoFlow
from flowppl.numpyro.predictive import with_deterministic
from flowppl.numpyro.target import Target
from flowppl.numpyro.transforms import check_key, default_dtype, numpy_rng

ROWS = 512  # draws of a part at a time, in a look at what a guide does not draw


@one_at_a_time
def log_weights(
    rng_key: jax.Array,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    params: Mapping[str, Any],
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int = 1000,
    **kwargs: Any,
) -> jax.Array:
    """The log importance weights log p(x, z) - log q(z) of draws from a guide; their mean estimates the ELBO.

    Args:
        rng_key: the key of the draws.
        model: the model.
        guide: any guide for it.
        params: the parameters of both.
        args: the arguments of both; so are further keyword arguments.
        num_samples: the number of draws.
        chunk_size: how many are computed at a time.

    Returns:
        An array of shape ``(num_samples,)``, for :func:`flowppl.diagnostics.k_hat` and others.

    Raises:
        TypeError: for what is no key, model, guide or params, or arguments that the model does not take.
        ValueError: if there is nothing to draw, or the guide leaves out a latent site of the model.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from flowppl.numpyro import AutoFlow, log_weights
        >>> def model():
        ...     numpyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoFlow(model, init_scale=1.0)
        >>> log_weights(jax.random.key(0), model, guide, guide.setup()).shape
        (1000,)
    """
    _check("log_weights", rng_key, model, guide, params, args, kwargs, log_weights)
    return draw_weighted(rng_key, model, guide, params, args, kwargs, num_samples, chunk_size, keep=False)[0]


@one_at_a_time
def diagnose(
    rng_key: jax.Array,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    params: Mapping[str, Any],
    *args: Any,
    num_samples: int = 10_000,
    num_batches: int = 4,
    chunk_size: int = 1000,
    reference: Mapping[str, Any] | None = None,
    search: bool = True,
    **kwargs: Any,
) -> diagnostics.Diagnosis:
    """Say whether a guide can be trusted: :func:`flowppl.diagnostics.diagnose` of draws from it.

    That includes a k-hat for each marginal, and for an :class:`AutoFlow` how badly the flow is inverted numerically.

    Args:
        rng_key: the key of the draws.
        model: the model.
        guide: any guide for it.
        params: the parameters of both.
        args: the arguments of both; so are further keyword arguments.
        num_samples: the number of draws.
        num_batches: the number of batches over which to take the median of k-hat.
        chunk_size: how many draws are computed at a time.
        reference: reference draws such as ``mcmc.get_samples()``: for each site an array ``(n, ...)``.
        search: whether to search for modes that an :class:`AutoFlow` does not have, see
            :mod:`flowppl.inference.modes`; it takes some
            seconds, and half a minute at the most.

    Returns:
        A :class:`flowppl.diagnostics.Diagnosis`; ``print`` it.

    Raises:
        TypeError: for what is no key, model, guide or params, or arguments that the model does not take.
        ValueError: if a batch has fewer than 25 draws, the guide leaves out a latent site of the model, the reference
            does not fit, or the model subsamples its data.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import init_to_mean
        >>> from flowppl.numpyro import AutoFlow, diagnose
        >>> def model():
        ...     numpyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoFlow(model, init_loc_fn=init_to_mean, init_scale=1.0)
        >>> diagnose(jax.random.key(0), model, guide, guide.setup()).verdict
        'good'
    """
    _check("diagnose", rng_key, model, guide, params, args, kwargs, diagnose)
    check_sizes("diagnose", num_samples=num_samples, num_batches=num_batches, chunk_size=chunk_size)
    keep = None if reference is None else True
    diagnostics.check_whole(model_plates(model, guide, params, args, kwargs))
    weights, draws = draw_weighted(rng_key, model, guide, params, args, kwargs, num_samples, chunk_size, keep=keep)
    check = diagnostics.diagnose(
        np.asarray(weights),
        num_batches=num_batches,
        round_trip_error=_round_trip_error(rng_key, guide, params) if isinstance(guide, AutoFlow) else None,
        draws=draws or None,
        reference=reference,
    )
    if search and isinstance(guide, AutoFlow):
        check = _look_outside(check, rng_key, model, guide, params, args, kwargs)
    return check


@one_at_a_time
def resample(
    rng_key: jax.Array,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    params: Mapping[str, Any],
    *args: Any,
    num_samples: int = 1000,
    num_proposals: int | None = None,
    chunk_size: int = 1000,
    **kwargs: Any,
) -> dict[str, jax.Array]:
    """Draws from a guide corrected by their importance weights, see :func:`flowppl.diagnostics.resample_indices`.

    Args:
        rng_key: the key of the draws.
        model: the model.
        guide: any guide for it.
        params: the parameters of both.
        args: the arguments of both; so are further keyword arguments.
        num_samples: the number of corrected draws.
        num_proposals: the number of draws to choose them from; ``None`` is ten times as many.
        chunk_size: how many are computed at a time.

    Returns:
        For each latent site, and each deterministic one, an array of shape ``(num_samples, ...)``.

    Raises:
        TypeError: for what is no key, model, guide or params, or arguments that the model does not take.
        ValueError: if there is nothing to draw, no weight is finite, the guide leaves out a latent site of the model,
            or the model subsamples its data.

    Warns:
        RuntimeWarning: if the weights are too uneven for a correction; see :func:`diagnose`.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from flowppl.numpyro import AutoFlow, resample
        >>> def model():
        ...     numpyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoFlow(model, init_scale=1.2)
        >>> resample(jax.random.key(0), model, guide, guide.setup())["z"].shape
        (1000,)
    """
    _check("resample", rng_key, model, guide, params, args, kwargs, resample)
    check_sizes("resample", num_samples=num_samples, chunk_size=chunk_size)
    number = 10 * num_samples if num_proposals is None else num_proposals
    check_sizes("resample", num_proposals=number)
    diagnostics.check_whole(model_plates(model, guide, params, args, kwargs))
    draw_key, choice_key = jax.random.split(rng_key)
    weights, draws = draw_weighted(draw_key, model, guide, params, args, kwargs, number, chunk_size, keep=True)
    rng = numpy_rng(choice_key)
    chosen = resample_indices(np.asarray(weights), num_samples, rng)
    corrected = {name: value[chosen] for name, value in draws.items()}
    return with_deterministic(model, dict(params), corrected, args, kwargs)


def is_guide(value: Any) -> bool:
    """Whether a value is one of the host's automatic guides."""
    return isinstance(value, AutoGuide)


def _check(owner, rng_key, model, guide, params, args, kwargs, function):
    order = f"call {owner}(rng_key, model, guide, params, *args)"
    check_key(owner, rng_key, advice=order)
    check_roles(owner, order, is_guide, model=model, guide=guide)
    if not isinstance(params, Mapping):
        raise TypeError(
            f"{owner}: params must be a dict, such as svi_result.params or svi.get_params(state), got "
            f"{describe(params)}; {order}"
        )
    check_arguments(owner, model, args, kwargs, function)


def model_plates(model, guide, params, args, kwargs) -> list[tuple[str, int, int]]:
    """The name, the number of members in the batch, and of all members, of each plate of the model.

    Raises:
        ValueError: if the guide leaves out a latent site of the model.
    """
    return plates_and_data(model, guide, params, args, kwargs)[0]


def plates_and_data(model, guide, params, args, kwargs) -> tuple[list[tuple[str, int, int]], bool]:
    """The plates, as above, and whether the model observes anything."""
    plates: list[tuple[str, int, int]] = []
    has_data: list[bool] = []

    def look():
        seeded_model, seeded_guide = (handlers.seed(handlers.substitute(fn, params), 0) for fn in (model, guide))
        drawn = handlers.trace(seeded_guide).get_trace(*args, **kwargs)  # an improper prior has no draws of its own
        trace = handlers.trace(handlers.replay(seeded_model, drawn)).get_trace(*args, **kwargs)
        diagnostics.check_covered(set(_latents(trace)) - set(drawn))
        plates.extend((s["name"], len(s["value"]), s["args"][0]) for s in trace.values() if s["type"] == "plate")
        has_data.extend(s["is_observed"] for s in trace.values() if s["type"] == "sample")

    with handlers.block():
        jax.eval_shape(look)
    return plates, any(has_data)


def _latents(trace):
    sites = {name: s for name, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    return {name: site["value"] for name, site in sites.items() if not is_summed_out(site)}


def draw_weighted(rng_key, model, guide, params, args, kwargs, num_samples, chunk_size, *, keep):
    """Log weights of draws from the guide and, if they are to be kept, the values of all latent sites.

    ``keep=None`` is to keep them if there are not too many coordinates for the checks of each.
    """
    check_sizes("log_weights", num_samples=num_samples, chunk_size=chunk_size)
    return weighted_drawer(model, guide, args, kwargs, num_samples, chunk_size, keep=keep)(rng_key, params)


def weighted_drawer(model, guide, args, kwargs, num_samples, chunk_size, *, keep):
    """The program of :func:`draw_weighted`: a function of the key and the parameters."""
    nesting: list[int | None] = []

    def one(key, params):
        guide_key, model_key = jax.random.split(key)
        log_q, guide_trace = log_density(handlers.seed(guide, guide_key), args, kwargs, params)
        replayed = handlers.replay(handlers.seed(model, model_key), guide_trace)
        if not nesting:
            nesting.append(nesting_of_sums(handlers.substitute(replayed, params), args, kwargs))
        log_p, trace = log_joint(replayed, args, kwargs, params, nesting[0])
        _check_params(params, guide_trace, trace)
        latents = _latents(trace)
        diagnostics.check_covered(set(latents) - set(guide_trace))
        is_kept = sum(map(jnp.size, latents.values())) <= diagnostics.MAX_MARGINALS if keep is None else keep
        return log_p - log_q, latents if is_kept else {}

    # Batches of one size, so that one program serves them all.
    num_batches = math.ceil(num_samples / chunk_size)
    shape = (num_batches, math.ceil(num_samples / num_batches))

    @jax.jit
    def run(key, params):
        drawn = jax.lax.map(jax.vmap(lambda key: one(key, params)), jax.random.split(key, shape))
        return jax.tree.map(lambda value: value.reshape(-1, *value.shape[2:])[:num_samples], drawn)

    return run


def _check_params(params, *traces):
    """Raise ValueError if a parameter is missing, in the place of which the host would draw first values."""
    names = {name for trace in traces for name, site in trace.items() if site["type"] == "param"}
    if missing := sorted(names - params.keys()):
        raise ValueError(
            f"params must hold all parameters of guide and model, but {missing} are missing, and {sorted(params)} are "
            "there; pass result.params of svi.run, or svi.get_params(state)"
        )


def _round_trip_error(rng_key, guide, params):
    transforms = guide._transforms(params)

    @jax.jit
    def largest(key, transform):
        x = guide.get_base_dist().sample(key, (1000,))
        return jnp.max(jnp.abs(transform.inv(transform(x)) - x) / (1 + jnp.abs(x)))

    return max(float(largest(rng_key, transform)) for transform in transforms)


def _look_outside(check, rng_key, model, guide, params, args, kwargs):
    """The judgement with what a search for modes says of it, unless the density is random."""
    target = Target(guide, args, kwargs, model)
    rng = numpy_rng(rng_key)
    with search_until(time.monotonic() + SEARCH_SECONDS):
        modes = search_modes(target, guide.latent_dim, rng)
    if modes is None:
        return check
    transforms, posterior = guide._transforms(params), guide.get_posterior(params)

    @jax.jit
    def log_weights_at(transform, noise):
        z, between = transform.call_with_intermediates(noise)
        if len(transforms) > 1:
            log_q = posterior.log_prob(z)
        else:
            log_q = guide.get_base_dist().log_prob(noise) - transform.log_abs_det_jacobian(noise, z, between)
        return jax.vmap(partial(target.log_prob, key=jax.random.key(0)))(z) - log_q

    def weigh(part, noise):
        return np.asarray(log_weights_at(transforms[part[0]], noise.astype(default_dtype())), dtype=np.float64)

    log_weights = np.asarray(getattr(posterior, "log_weights", np.zeros(1)), dtype=np.float64)
    density = GuideDensity(posterior.log_prob, log_weights, guide.latent_dim, weigh, rows=ROWS, block=ROWS)
    return look_outside(check, modes, density, target)
