"""Automatic guides for local latents in NumPyro."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.initialization import init_to_median

from flowppl._arrays.tree import Tree
from flowppl.inference.guides import check_levels
from flowppl.inference.local import (
    AUTO_LOCAL_FLOW_DOC,
    NUM_MEDIAN_DRAWS,
    LatentSite,
    LocalFlowChoice,
    Plate,
    check_arguments,
    check_continuous,
    check_finite,
    global_vector,
    local_bijection,
    local_plates,
    make_context,
    mean_member,
    member_features,
    pick_features,
    small_flow,
    split_members,
    split_sites,
    start_local_at,
)
from flowppl.numpyro.flow import FlowDistribution, standard_normal
from flowppl.numpyro.guides import AutoFlow, check_fixed_supports, outline_model
from flowppl.numpyro.transforms import FlowTransform, init_params


class AutoLocalFlow(AutoGuide):
    __doc__ = AUTO_LOCAL_FLOW_DOC.format(
        cost=" (under ``jax.jit`` this costs nothing)",
        loc_default="numpyro.infer.init_to_median",
        prefix="""
        prefix: the guide's parameters are the sites ``{prefix}_{plate}_flow``, ``{prefix}_origin`` and those of the
            guide for the globals.""",
        example="""
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from flowppl.numpyro import AutoLocalFlow
        >>> def model(y, batch_size=None):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with numpyro.plate("data", len(y), subsample_size=batch_size) as index:
        ...         z = numpyro.sample("z", dist.Normal(mu, 1.0))
        ...         numpyro.sample("y", dist.Normal(z, 0.5), obs=y[index])
        >>> guide = AutoLocalFlow(model, lambda y, batch_size=None: y[:, None])
        >>> svi = SVI(model, guide, numpyro.optim.ClippedAdam(5e-3), Trace_ELBO())
        >>> result = svi.run(jax.random.key(0), 3, jnp.ones(100), batch_size=10, progress_bar=False)
        >>> guide.sample_posterior(jax.random.key(1), result.params, jnp.ones(7), sample_shape=(50,))["z"].shape
        (50, 7)
""",
    )

    def __init__(
        self,
        model,
        features: Callable[..., Any],
        *,
        flow: LocalFlowChoice = "auto",
        plates=None,
        global_guide=None,
        hidden_dims=(64, 64),
        init_loc_fn=init_to_median,
        init_scale: float = 0.1,
        prefix: str = "auto",
    ):
        self.plate_names = check_arguments(features, plates, init_scale)
        super().__init__(model, init_loc_fn=init_loc_fn, prefix=prefix)
        self.features = features
        self.flow_choice = flow
        self.global_guide = global_guide
        self.hidden_dims = hidden_dims
        self.init_scale = init_scale
        self._has_checked_supports = False

    def setup(self, *args, **kwargs) -> dict[str, Tree]:
        """Look at the model once and create the guide's parameters; the arguments are the model's.

        ``svi.init`` does the same.

        Returns:
            The first parameters, as ``svi.get_params`` gives them, drawn with key 0.
        """

        @jax.jit  # one compiled program, not one for each operation
        def start(key):
            with handlers.block():
                trace = handlers.trace(handlers.seed(self, key)).get_trace(*args, **kwargs)
            return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}

        return start(jax.random.key(0))

    def _look(self, args, kwargs, values, start=()) -> dict[str, dict]:
        """The model's sites, given values of some; sites of ``start`` are where ``init_loc_fn`` says.

        Its plates are seen by the handlers around the guide, which may set the subsamples.
        """

        def start_fn(site):
            if site["name"] in start:
                return self.init_loc_fn(site)
            if site["type"] != "sample" or site["value"] is not None or site["fn"].support.is_discrete:
                return None
            transform = biject_to(site["fn"].support)  # any value will do, and an improper prior has no draws
            shape = transform.inverse_shape(site["fn"].shape(site["kwargs"]["sample_shape"]))
            return transform(jnp.zeros(shape))

        model = handlers.seed(self.model, 0, hide_types=["plate"])
        model = handlers.substitute(handlers.substitute(model, substitute_fn=start_fn), data=values)
        with handlers.block(hide_fn=lambda site: site["type"] != "plate"):
            return handlers.trace(model).get_trace(*args, **kwargs)

    def _read_latents(self, trace) -> list[LatentSite]:
        found = [site for site in trace.values() if site["type"] == "sample" and not site["is_observed"]]
        discrete = [site for site in found if site["fn"].support.is_discrete]
        check_continuous(site["name"] for site in discrete if not site["infer"].get("enumerate"))
        hidden = {f.name for site in found for f in site["cond_indep_stack"] if f.name not in trace}
        if hidden:
            raise ValueError(f"AutoLocalFlow cannot see the plates {', '.join(hidden)}: expose them in block, too")

        def read(site):
            shape = biject_to(site["fn"].support).inverse_shape(site["fn"].shape())
            frames = site["cond_indep_stack"]
            plates = tuple(Plate(f.name, f.dim, f.size, trace[f.name]["args"][0]) for f in frames)
            return LatentSite(site["name"], plates, shape, len(site["fn"].batch_shape))

        return [read(site) for site in found if not site["fn"].support.is_discrete]

    def __call__(self, *args, **kwargs) -> dict[str, jax.Array]:
        """Draw all latent sites; the arguments are the model's."""
        trace = self._look(args, kwargs, {})
        sites = self._read_latents(trace)
        if not self._has_checked_supports:
            check_fixed_supports(outline_model(self.model, args, kwargs), args, kwargs)
            self._has_checked_supports = True
        if self.plate_names is None:
            self.plate_names = local_plates(sites, None)
        local_plates(sites, self.plate_names)
        shared, local = split_sites(sites, self.plate_names)
        with handlers.substitute(data=_subsamples(trace)):
            plates = {p.name: numpyro.plate(p.name, p.full_size, p.size, p.dim) for site in sites for p in site.plates}
        values = self._draw_global(shared, args, kwargs)
        centred = self._centred(trace, shared, values)
        features = self.features(*args, **kwargs)
        result = dict(values)
        for plate, members in local:
            own = pick_features(features, plate)
            if not isinstance(own, jax.core.Tracer):
                check_finite(plate, bool(np.isfinite(np.asarray(own)).all()))
            own = member_features(jnp.asarray(own, dtype=float), plate, trace[plate.name]["value"])
            context = make_context([own, *centred])
            flow = self._flow(plate, members, context.shape[-1], values, args, kwargs)
            with plates[plate.name]:
                latent = numpyro.sample(
                    f"_{self.prefix}_{plate.name}_latent",
                    FlowDistribution(standard_normal(flow.bijection.x_shape), flow.condition(context)),
                    infer={"is_auxiliary": True},
                )
            for site, unconstrained in zip(members, split_members(latent, plate, members), strict=True):
                result[site.name] = _sample_constrained(trace[site.name], unconstrained, plates)
        return result

    def _draw_global(self, shared, args, kwargs) -> dict[str, jax.Array]:
        if not shared:
            return {}
        names = tuple(site.name for site in shared)
        if self.global_guide is None:
            flow = partial(small_flow, hidden_dims=self.hidden_dims)
            self.global_guide = AutoFlow(_Exposing(self.model, names), flow, init="point", prefix=self.prefix)
        trace = handlers.trace(self.global_guide).get_trace(*args, **kwargs)
        missing = [name for name in names if name not in trace]
        if missing:
            raise ValueError(
                f"global_guide draws nothing for the global latents {', '.join(missing)}; hide what another guide "
                "covers from this one, with block(model, hide=[...])"
            )
        return {name: trace[name]["value"] for name in names}

    def _centred(self, trace, shared, values) -> list[jax.Array]:
        """The global latents, unconstrained, less their first draw: near zero, whatever their location."""
        if not shared:
            return []
        vector = global_vector([(s, biject_to(trace[s.name]["fn"].support).inv(values[s.name])) for s in shared])
        origin = numpyro.param(f"{self.prefix}_origin", jax.lax.stop_gradient(vector))
        return [vector - jax.lax.stop_gradient(origin)]

    def _flow(self, plate, members, context_dim, values, args, kwargs) -> FlowTransform:
        dim = sum(math.prod(site.member_shape(plate)) for site in members)
        bijection = local_bijection(self.flow_choice, dim, context_dim, self.hidden_dims)

        @jax.jit
        def start(key):
            with handlers.block(), handlers.seed(rng_seed=key):
                trace = self._look(args, kwargs, values, [site.name for site in members])
            found = [(s, biject_to(trace[s.name]["fn"].support).inv(trace[s.name]["value"])) for s in members]
            return start_local_at(bijection, init_params(bijection, key), mean_member(plate, found), self.init_scale)

        return FlowTransform(bijection, numpyro.param(f"{self.prefix}_{plate.name}_flow", start))

    def sample_posterior(self, rng_key, params, *args, sample_shape=(), **kwargs) -> dict[str, jax.Array]:
        """Draws of all latent sites, each of shape ``sample_shape`` followed by the shape of the site.

        The locals are those of the members that the model sees with these arguments, which may be new ones; where the
        model draws a subsample of its own, tell it not to.
        """

        @jax.jit
        def draw(key, keys):
            with handlers.block(), handlers.seed(rng_seed=key):
                members = _subsamples(self._look(args, kwargs, {}))  # the same in all draws
                guide = handlers.substitute(self, data=params | members)
                return jax.vmap(lambda key: handlers.seed(guide, key)(*args, **kwargs))(keys)

        draws = draw(rng_key, jax.random.split(rng_key, math.prod(sample_shape)))
        return {name: value.reshape((*sample_shape, *value.shape[1:])) for name, value in draws.items()}

    def median(self, params, *args, rng_key=None, **kwargs) -> dict[str, jax.Array]:
        """The median of each latent site, from 1,000 draws; see :meth:`quantiles`."""
        return {k: v[0] for k, v in self.quantiles(params, [0.5], *args, rng_key=rng_key, **kwargs).items()}

    def quantiles(self, params, quantiles, *args, rng_key=None, **kwargs) -> dict[str, jax.Array]:
        """Quantiles of each latent site, from 1,000 draws, coordinate by coordinate in unconstrained space.

        Args:
            params: the guide's parameters.
            quantiles: numbers between 0 and 1.
            args: the model's arguments; so are further keyword arguments.
            rng_key: the key of the draws; ``None`` is key 0.

        Returns:
            For each site an array with a leading axis for the quantiles.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        draws = self.sample_posterior(key, params, *args, sample_shape=(NUM_MEDIAN_DRAWS,), **kwargs)
        with handlers.block(), handlers.seed(rng_seed=0):
            trace = self._look(args, kwargs, {})
        transforms = {name: biject_to(trace[name]["fn"].support) for name in draws}
        levels = jnp.asarray(check_levels(quantiles))
        return {k: transforms[k](jnp.quantile(transforms[k].inv(v), levels, axis=0)) for k, v in draws.items()}


def _subsamples(trace) -> dict[str, jax.Array]:
    """The indices of the members in each plate."""
    return {site["name"]: site["value"] for site in trace.values() if site["type"] == "plate"}


def _sample_constrained(model_site, unconstrained, plates):
    """The guide's site for a latent of the model, at the value of the flow, inside the plates of the model."""
    name, fn = model_site["name"], model_site["fn"]
    transform = biject_to(fn.support)
    value = transform(unconstrained)
    log_density = -transform.log_abs_det_jacobian(unconstrained, value)
    log_density = sum_rightmost(log_density, jnp.ndim(log_density) - jnp.ndim(value) + fn.event_dim)
    with contextlib.ExitStack() as stack:
        for frame in model_site["cond_indep_stack"]:
            stack.enter_context(plates[frame.name])
        return numpyro.sample(name, dist.Delta(value, log_density, event_dim=fn.event_dim))


@dataclasses.dataclass(frozen=True)
class _Exposing:
    """A model with only some of its latents; unlike ``block`` with a function it can be pickled."""

    model: Any
    names: tuple[str, ...]

    def __call__(self, *args, **kwargs):
        def hide(site):
            return site["type"] == "sample" and not site["is_observed"] and site["name"] not in self.names

        return handlers.block(self.model, hide_fn=hide)(*args, **kwargs)
