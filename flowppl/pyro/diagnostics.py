"""Importance weights of Pyro guides, what they say of a guide, and draws corrected by them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer.autoguide import AutoGuide
from pyro.infer.importance import vectorized_importance_weights
from pyro.poutine.util import site_is_subsample

from flowppl.checks import check_sizes
from flowppl.inference import diagnostics
from flowppl.inference.arguments import check_arguments, check_roles, telling_of_numpyro
from flowppl.inference.guides import search_modes
from flowppl.inference.importance import resample_indices
from flowppl.inference.latents import no_draws
from flowppl.inference.losses import standard_log_prob
from flowppl.inference.outside import SEARCH_SECONDS, GuideDensity, look_outside
from flowppl.inference.starts import search_until
from flowppl.inference.turns import one_at_a_time
from flowppl.pyro.enumeration import is_summed_out, log_joint, plate_nesting, trace_of
from flowppl.pyro.guides import AutoFlow, check_observed, improper_sites, innermost
from flowppl.pyro.predictive import with_deterministic
from flowppl.pyro.target import Target, place_of
from flowppl.pyro.transforms import numpy_rng, to_numpy

ROWS = 1024  # draws of a part at a time, in a look at what a guide does not draw,
SLOW_ROWS = 64  # and of a model that is run for one after the other

EMPTY_TRACE = "Trace Shapes: Param Sites: Sample Sites:"


@one_at_a_time
def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    chunk_size: int = 1000,
    **kwargs: Any,
) -> torch.Tensor:
    """The log importance weights log p(x, z) - log q(z) of draws from a guide; their mean estimates the ELBO.

    Args:
        model: the model; its plates must allow an outer one, over the draws.
        guide: any guide for it.
        args: the arguments of both; so are further keyword arguments.
        num_samples: the number of draws.
        chunk_size: how many are computed at a time.

    Returns:
        A tensor of shape ``(num_samples,)``, for :func:`flowppl.diagnostics.k_hat` and others.

    Raises:
        TypeError: for what is no model or guide, or arguments that the model does not take.
        ValueError: if there is nothing to draw, or the guide leaves out a latent site of the model.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from flowppl.pyro import AutoFlow, log_weights
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoFlow(model, init_scale=1.0)
        >>> log_weights(model, guide).shape
        torch.Size([1000])
    """
    _check("log_weights", model, guide, args, kwargs, log_weights)
    return draw_weighted(model, guide, args, kwargs, num_samples, chunk_size, keep=False)[0]


@one_at_a_time
def diagnose(
    model: Callable[..., Any],
    guide: Callable[..., Any],
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
        model: the model; its plates must allow an outer one, over the draws.
        guide: any guide for it.
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
        TypeError: for what is no model or guide, or arguments that the model does not take.
        ValueError: if a batch has fewer than 25 draws, the guide leaves out a latent site of the model, the reference
            does not fit, or the model subsamples its data.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import init_to_mean
        >>> from flowppl.pyro import AutoFlow, diagnose
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoFlow(model, init_loc_fn=init_to_mean, init_scale=1.0)
        >>> diagnose(model, guide).verdict
        'good'
    """
    _check("diagnose", model, guide, args, kwargs, diagnose)
    check_sizes("diagnose", num_samples=num_samples, num_batches=num_batches, chunk_size=chunk_size)
    diagnostics.check_whole(model_plates(model, guide, args, kwargs))
    keep = None if reference is None else True
    weights, draws = draw_weighted(model, guide, args, kwargs, num_samples, chunk_size, keep=keep)
    check = diagnostics.diagnose(
        to_numpy(weights),
        num_batches=num_batches,
        round_trip_error=_round_trip_error(guide, args, kwargs) if isinstance(guide, AutoFlow) else None,
        draws={name: to_numpy(value) for name, value in draws.items()} or None,
        reference=None if reference is None else {name: to_numpy(value) for name, value in reference.items()},
    )
    return _look_outside(check, model, guide, args, kwargs) if search and isinstance(guide, AutoFlow) else check


@one_at_a_time
def resample(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_samples: int = 1000,
    num_proposals: int | None = None,
    chunk_size: int = 1000,
    **kwargs: Any,
) -> dict[str, torch.Tensor]:
    """Draws from a guide corrected by their importance weights, see :func:`flowppl.diagnostics.resample_indices`.

    Args:
        model: the model; its plates must allow an outer one, over the draws.
        guide: any guide for it.
        args: the arguments of both; so are further keyword arguments.
        num_samples: the number of corrected draws.
        num_proposals: the number of draws to choose them from; ``None`` is ten times as many.
        chunk_size: how many are computed at a time.

    Returns:
        For each latent site, and each deterministic one, a tensor of shape ``(num_samples, ...)``.

    Raises:
        TypeError: for what is no model or guide, or arguments that the model does not take.
        ValueError: if there is nothing to draw, no weight is finite, the guide leaves out a latent site of the model,
            or the model subsamples its data.

    Warns:
        RuntimeWarning: if the weights are too uneven for a correction; see :func:`diagnose`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from flowppl.pyro import AutoFlow, resample
        >>> def model():
        ...     pyro.sample("z", dist.Normal(0.0, 1.0))
        >>> guide = AutoFlow(model, init_scale=1.2)
        >>> resample(model, guide)["z"].shape
        torch.Size([1000])
    """
    _check("resample", model, guide, args, kwargs, resample)
    check_sizes("resample", num_samples=num_samples, chunk_size=chunk_size)
    number = 10 * num_samples if num_proposals is None else num_proposals
    check_sizes("resample", num_proposals=number)
    diagnostics.check_whole(model_plates(model, guide, args, kwargs))
    weights, draws = draw_weighted(model, guide, args, kwargs, number, chunk_size, keep=True)
    rng = numpy_rng()
    chosen = torch.as_tensor(resample_indices(to_numpy(weights), num_samples, rng), device=weights.device)
    corrected = {name: value[chosen] for name, value in draws.items()}
    return with_deterministic(model, corrected, traces_of(model, guide, args, kwargs)[0], args, kwargs)


def is_guide(value: Any) -> bool:
    """Whether a value is one of the host's automatic guides."""
    return isinstance(value, AutoGuide)


def _check(owner, model, guide, args, kwargs, function):
    order = f"call {owner}(model, guide, *args)"
    check_roles(owner, order, is_guide, model=model, guide=guide)
    check_arguments(owner, model, args, kwargs, function)


@torch.no_grad()
def model_plates(model, guide, args, kwargs) -> list[tuple[str, int, int]]:
    """The name, the number of members in the batch, and of all members, of each plate of the model.

    Raises:
        ValueError: if the guide leaves out a latent site of the model.
    """
    return plates_and_data(model, guide, args, kwargs)[0]


def plates_and_data(model, guide, args, kwargs) -> tuple[list[tuple[str, int, int]], bool]:
    """The plates, as above, and whether the model observes anything."""
    trace, guide_trace = traces_of(model, guide, args, kwargs)
    diagnostics.check_covered(set(_latents(trace)) - set(guide_trace.nodes))
    observed = _observed(trace)
    check_observed(observed, lambda: _observed(traces_of(model, guide, args, kwargs)[0]))
    return plates_of(trace), not all(isinstance(innermost(site["fn"]), Delta) for site in observed.values())


def _observed(trace):
    return {name: trace.nodes[name] for name in trace.observation_nodes}


def plates_of(trace) -> list[tuple[str, int, int]]:
    """The name, the number of members in the batch, and of all members, of each plate in a trace."""
    frames = {frame.name: frame for site in trace.nodes.values() for frame in site.get("cond_indep_stack", ())}
    return [(name, frame.size, frame.full_size or frame.size) for name, frame in frames.items()]


@contextlib.contextmanager
def aside():
    """What runs in here leaves no trace, and Pyro's parameter store as it was."""
    store = pyro.get_param_store()
    with telling_of_numpyro(), torch.no_grad(), poutine.block(), store.scope(store.get_state()):
        try:
            yield
        except (ValueError, RuntimeError) as error:
            cause = error.__cause__
            # Pyro's trace adds the shapes of its sites to a message, and their headings where there are no sites.
            if cause is None or str(error).removeprefix(str(cause)).split() != EMPTY_TRACE.split():
                raise
            raise cause from cause.__cause__


def traces_of(model, guide, args, kwargs):
    """The traces of the model, at draws of the guide (an improper prior has none of its own), and of the guide."""
    with aside():
        try:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        except NotImplementedError as error:
            improper = improper_sites(model, args, kwargs) if is_guide(guide) else []
            if not improper:
                raise
            raise no_draws(type(guide).__name__, improper) from error
        return poutine.trace(poutine.replay(model, guide_trace)).get_trace(*args, **kwargs), guide_trace


def _latents(trace):
    sites = trace.iter_stochastic_nodes()
    return {name: site for name, site in sites if not site_is_subsample(site) and not is_summed_out(site)}


@torch.no_grad()
def draw_weighted(model, guide, args, kwargs, num_samples, chunk_size, *, keep, alone=None):
    """Log weights of draws from the guide and, if they are to be kept, the values of all latent sites.

    ``keep=None`` is to keep them if there are not too many coordinates for the checks of each.

    Each draw is computed alone where the model allows nothing else; ``None`` is to find out.
    """
    check_sizes("log_weights", num_samples=num_samples, chunk_size=chunk_size)
    trace, guide_trace = traces_of(model, guide, args, kwargs)
    sites = _latents(trace)
    diagnostics.check_covered(set(sites) - set(guide_trace.nodes))
    if keep is None:
        keep = sum(site["value"].numel() for site in sites.values()) <= diagnostics.MAX_MARGINALS
    if isinstance(guide, AutoFlow):
        like = guide.get_base_dist().mean
        target = Target(guide, args, kwargs, like, model)
        if not target.is_random():  # then all points share what is drawn once
            return _draw_flow(guide, target, num_samples, chunk_size, keep)
    if outer_obstacle(model, guide, args, kwargs) if alone is None else alone:
        return _draw_one_by_one(model, guide, args, kwargs, num_samples, list(sites) if keep else [])
    nesting = plate_nesting(trace)
    weights: list[torch.Tensor] = []
    draws: dict[str, list[torch.Tensor]] = {name: [] for name in sites if keep}
    for start in range(0, num_samples, chunk_size):
        size = min(chunk_size, num_samples - start)
        # A plate of one would be squeezed away: draw two, keep one.
        drawn = max(size, 2)
        batch, drawn_trace, _ = vectorized_importance_weights(
            model, guide, *args, num_samples=drawn, max_plate_nesting=nesting, **kwargs
        )
        weights.append(batch[:size])
        for name in draws:
            draws[name].append(_row(drawn_trace.nodes[name], sites[name], nesting, drawn)[:size])
    return torch.cat(weights), {name: torch.cat(values) for name, values in draws.items()}


def _draw_flow(guide, target, num_samples, chunk_size, keep):
    """As above, but of a model that need not allow an outer plate over the draws."""
    weights, draws = [], []
    for start in range(0, num_samples, chunk_size):
        posterior = guide.get_posterior()
        z = posterior.rsample((min(chunk_size, num_samples - start),))
        weights.append(target.batched(z) - posterior.log_prob(z))
        draws.append(guide._constrain(z) if keep else {})
    return torch.cat(weights), {name: torch.cat([each[name] for each in draws]) for name in draws[0]}


def outer_obstacle(model, guide, args, kwargs) -> str:
    """What stands in the way of an outer plate over draws; empty if nothing does."""
    trace, _ = traces_of(model, guide, args, kwargs)
    if any(map(is_summed_out, trace.nodes.values())):
        return "sites to be summed out, where the plate would stand"
    nesting = plate_nesting(trace)
    subsample = {name: site["value"] for name, site in trace.nodes.items() if site_is_subsample(site)}
    model, guide = (poutine.condition(program, data=subsample) for program in (model, guide))
    with aside(), torch.random.fork_rng(), pyro.validation_enabled(False):
        for num in (3, 2):  # one of them at least is not, by chance, the length of an axis of the model
            try:
                _, drawn, _ = vectorized_importance_weights(
                    model, guide, *args, num_samples=num, max_plate_nesting=nesting, **kwargs
                )
            except Exception as error:  # whatever the model does that cannot be done for many draws
                return place_of(error)
            joint = sum(
                site["log_prob"].expand(num, *site["log_prob"].shape[1:]).reshape(num, -1).sum(-1)
                if site["log_prob"].ndim == nesting + 1
                else site["log_prob"].sum()
                for site in drawn.nodes.values()
                if site["type"] == "sample" and not site_is_subsample(site)
            )
            for i in range(num):
                own = {name: _row(drawn.nodes[name], site, nesting, num)[i] for name, site in _latents(trace).items()}
                alone = trace_of(poutine.condition(model, data=own), args, kwargs).log_prob_sum()
                if not torch.allclose(torch.as_tensor(joint).expand(num)[i], alone, rtol=1e-3, equal_nan=True):
                    return "a model that gives other values for many draws at once than for each alone"
    return ""


def _row(drawn, site, nesting, num):
    """The values of a site in so many draws inside an outer plate, each of the shape that it has without."""
    shape = site["value"].shape
    between = (1,) * (nesting - len(site["fn"].batch_shape))
    return drawn["value"].expand(num, *between, *shape).reshape(num, *shape)


def _draw_one_by_one(model, guide, args, kwargs, num_samples, names):
    """As above, of a model that allows no outer plate, or with sites to be summed out."""
    weights, draws = [], []
    with pyro.validation_enabled(False):
        for _ in range(num_samples):
            guide_trace = trace_of(guide, args, kwargs)
            replayed = poutine.replay(model, guide_trace)
            trace = trace_of(replayed, args, kwargs)
            sums_out = any(map(is_summed_out, trace.nodes.values()))
            log_p = log_joint(replayed, args, kwargs, plate_nesting(trace), True) if sums_out else trace.log_prob_sum()
            weights.append(log_p - guide_trace.log_prob_sum())
            draws.append([trace.nodes[name]["value"] for name in names])
    return torch.stack(weights), {name: torch.stack([row[i] for row in draws]) for i, name in enumerate(names)}


@torch.no_grad()
def _round_trip_error(guide, args, kwargs) -> float:
    x = guide.get_base_dist().sample((1000,))
    errors = []
    for bijection, params in guide._parts_of_flow(*args, **kwargs):
        again = bijection.inverse(params, bijection.forward(params, x)[0])[0]
        errors.append(float(torch.max((again - x).abs() / (1 + x.abs()))))
    return max(errors)


def _look_outside(check, model, guide, args, kwargs):
    """The judgement with what a search for modes says of it, unless the density is random."""
    like = guide.get_posterior(*args, **kwargs).sample()
    target = Target(guide, args, kwargs, like, model)
    rng = numpy_rng()
    with search_until(time.monotonic() + SEARCH_SECONDS):
        modes = search_modes(target, len(like), rng)
    if modes is None:
        return check

    posterior, parts = guide.get_posterior(*args, **kwargs), guide._parts_of_flow(*args, **kwargs)

    @torch.no_grad()
    def log_prob(points):
        return to_numpy(posterior.log_prob(torch.as_tensor(points).to(like))).astype(float)

    @torch.no_grad()
    def weigh(part, noise):
        (bijection, weights), noise = parts[part[0]], torch.as_tensor(noise).to(like)
        z, log_det = bijection.forward(weights, noise)
        log_q = posterior.log_prob(z) if len(parts) > 1 else standard_log_prob(noise) - log_det
        return to_numpy(target.batched(z) - log_q).astype(float)

    log_weights = to_numpy(posterior.flows.log_weights).astype(float) if len(parts) > 1 else np.zeros(1)
    rows = SLOW_ROWS if target.is_slow else ROWS
    density = GuideDensity(log_prob, log_weights, len(like), weigh, rows, block=rows)
    return look_outside(check, modes, density, target)
