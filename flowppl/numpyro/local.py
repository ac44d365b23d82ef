"""Automatic guides for local latents in NumPyro."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.autoguide import AutoGuide
from numpyro.infer.initialization import init_to_median

from flowppl._arrays.tree import Tree
from flowppl.inference.latents import check_levels, check_model
from flowppl.inference.local import (
    NUM_MEDIAN_DRAWS,
    LatentSite,
    LocalFlowChoice,
    Plate,
    check_arguments,
    check_continuous,
    check_finite,
    check_present,
    check_unmasked,
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
from flowppl.numpyro._host import Tracer
from flowppl.numpyro.flow import FlowDistribution, standard_normal
from flowppl.numpyro.guides import (
    AutoFlow,
    check_fixed_supports,
    check_params,
    member_mask,
    outline_model,
    sample_constrained,
)
from flowppl.numpyro.transforms import FlowTransform, check_key, init_params


class AutoLocalFlow(AutoGuide):
    """A guide for local latents: a flow over the globals, amortised flows over the locals.

    A latent is *local* if it stands inside a plate whose members come in batches; all others are *global*. Call g the
    values of all globals, in unconstrained space and strung into one vector, and :math:`z_i` those of all locals of
    member i. The guide is

    .. math::
        q(g) \\prod_i q(z_i \\mid c_i), \\qquad
        c_i = 5\\, \\mathrm{asinh}\\big((\\mathrm{features}_i,\\ g - g_0) / 5\\big),

    where :math:`\\mathrm{features}_i` is what is known of member i, :math:`g_0` is the first draw of the globals, and
    :math:`c_i`, the *context*, is both side by side with large entries squashed. :math:`q(z_i \\mid c)` is a flow whose
    networks depend on the context, and so do the location and the scale of an affine layer outside it. At the first
    step all members have the same normal: its location is the point of ``init_loc_fn``, averaged over the members, its
    scale ``init_scale``. No parameter belongs to a member: batches may have any size, members may be new, and the model
    may be run on all of them. The model is run once more in each step, to look at its plates (under
    ``jax.jit`` this costs nothing).

    Args:
        model: the model, a function with ``numpyro.sample`` sites.
        features: a function of the model's arguments that gives what is known of each member: an array with the
            members along its first axis, or a dict from names of plates to arrays. As long as the plate, it is indexed
            by the plate's subsample; as long as the batch, it is used as it is. Features of size one train best.
        flow: ``"auto"``, a name of :func:`flowppl.available_flows`, or a recipe, called as
            ``flow(dim, context_dim=...)``. ``"auto"`` is :func:`flowppl.realnvp` with four layers that shrink more than
            they stretch, or a mixture of three logistics for one latent per member. It is :class:`flowppl.Damped`, as
            is the affine layer: small batches make noisy gradients.
        plates: the names of the plates with local latents. ``None`` means all that are subsampled when the guide first
            sees the model; name them where that may be a run on all members.
        global_guide: a guide for the global latents. ``None`` is an :class:`AutoFlow` with the flow of ``"auto"``,
            which starts at a point.
        hidden_dims: the hidden layers of the networks of the affine layer and of the ``"auto"`` flows.
        init_loc_fn: where the locals start, site by site; ``numpyro.infer.init_to_median`` unless given.
        init_scale: the standard deviation that they start with, in unconstrained space.
        prefix: the guide's parameters are the sites ``{prefix}_{plate}_flow``, ``{prefix}_origin`` and those of the
            guide for the globals.

    Raises:
        TypeError: if the model or ``features`` is not a function.
        ValueError: when it sees the model, if that has no local latents, no plate of a given name, discrete latents
            that are not enumerated, latents in two plates of locals, latents some members of which are masked, or
            latents whose support depends on other latents; if the flow does not fit; or if the features have the wrong
            length or are not finite (under ``jax.jit`` their values cannot be looked at).

    Example:
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
    """

    def __init__(
        self,
        model: Callable[..., Any],
        features: Callable[..., Any],
        *,
        flow: LocalFlowChoice = "auto",
        plates: str | Sequence[str] | None = None,
        global_guide: Callable[..., Any] | None = None,
        hidden_dims: int | Sequence[int] = (64, 64),
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        prefix: str = "auto",
    ) -> None:
        check_model("AutoLocalFlow", model)
        self.plate_names = check_arguments(features, plates, init_scale)
        super().__init__(model, init_loc_fn=init_loc_fn, prefix=prefix)
        self.features = features
        self.flow_choice = flow
        self.global_guide: Any = global_guide
        self.hidden_dims = hidden_dims
        self.init_scale = init_scale
        self._latent_names: frozenset[str] = frozenset()  # none: it has not seen its model

    def setup(self, *args: Any, **kwargs: Any) -> dict[str, Tree]:
        """Look at the model once and create the guide's parameters.

        ``svi.init`` does the same.

        Args:
            args: the model's arguments; so are further keyword arguments.

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
        found = [site for site in trace.values() if self._is_own(site)]
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

        check_unmasked(site["name"] for site in found if _some_masked(site))
        return [read(site) for site in found if not site["fn"].support.is_discrete]

    def _is_own(self, site) -> bool:
        """Whether a site is a latent of this guide: what it never had, such as data left out, is no concern of it."""
        is_latent = site["type"] == "sample" and not site["is_observed"]
        return is_latent and (not self._latent_names or site["name"] in self._latent_names)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
        """Draw all latent sites.

        Args:
            args: the model's arguments; so are further keyword arguments.

        Returns:
            The value of each latent site.
        """
        trace = self._look(args, kwargs, {})
        sites = self._read_latents(trace)
        check_present(self._latent_names, sites)
        if not self._latent_names:
            check_fixed_supports(outline_model(self.model, args, kwargs), args, kwargs)
            self._latent_names = frozenset(site.name for site in sites)
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
            if not isinstance(own, Tracer):
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
                result[site.name] = sample_constrained(trace[site.name], unconstrained, plates)
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

    def sample_posterior(
        self, rng_key: jax.Array, params: dict[str, Any], *args: Any, sample_shape: Sequence[int] = (), **kwargs: Any
    ) -> dict[str, jax.Array]:
        """Draws of all latent sites.

        The locals are those of the members that the model sees with these arguments, which may be new ones; where the
        model draws a subsample of its own, tell it not to.

        Args:
            rng_key: the key of the draws.
            params: the guide's parameters, ``result.params`` of ``svi.run`` or ``svi.get_params(state)``.
            args: the model's arguments; so are further keyword arguments.
            sample_shape: how many draws, such as ``(1000,)``.

        Returns:
            For each site an array of shape ``sample_shape`` followed by the shape of the site.
        """
        check_key("sample_posterior", rng_key)
        check_params("AutoLocalFlow", params)

        @jax.jit
        def draw(key, keys):
            with handlers.block(), handlers.seed(rng_seed=key):
                members = _subsamples(self._look(args, kwargs, {}))  # the same in all draws
                guide = handlers.substitute(self, data=params | members)
                return jax.vmap(lambda key: handlers.seed(guide, key)(*args, **kwargs))(keys)

        draws = draw(rng_key, jax.random.split(rng_key, math.prod(sample_shape)))
        return {name: value.reshape((*sample_shape, *value.shape[1:])) for name, value in draws.items()}

    def median(
        self, params: dict[str, Any], *args: Any, rng_key: jax.Array | None = None, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """The median of each latent site, from 1,000 draws; see :meth:`quantiles`.

        Args:
            params: as in :meth:`sample_posterior`.
            args: the model's arguments; so are further keyword arguments.
            rng_key: the key of the draws; ``None`` is key 0.

        Returns:
            For each site an array of its shape.
        """
        return {k: v[0] for k, v in self.quantiles(params, [0.5], *args, rng_key=rng_key, **kwargs).items()}

    def quantiles(
        self, params: dict[str, Any], quantiles: Any, *args: Any, rng_key: jax.Array | None = None, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """Quantiles of each latent site, from 1,000 draws, coordinate by coordinate in unconstrained space.

        Args:
            params: as in :meth:`sample_posterior`.
            quantiles: a list or array of numbers between 0 and 1.
            args: the model's arguments; so are further keyword arguments.
            rng_key: the key of the draws; ``None`` is key 0.

        Returns:
            For each site an array with a leading axis for the quantiles, followed by the shape of the site.
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


def _some_masked(site) -> bool:
    """Whether the model scores some members of a latent and others not; if it cannot be told, then yes."""
    shape = jnp.shape(site["value"])
    mask = member_mask(site["fn"], shape[: len(shape) - site["fn"].event_dim])
    return mask is not None and (isinstance(mask, Tracer) or bool(mask.any()))


@dataclasses.dataclass(frozen=True)
class _Exposing:
    """A model with only some of its latents; unlike ``block`` with a function it can be pickled."""

    model: Any
    names: tuple[str, ...]

    def __call__(self, *args, **kwargs):
        def hide(site):
            return site["type"] == "sample" and not site["is_observed"] and site["name"] not in self.names

        return handlers.block(self.model, hide_fn=hide)(*args, **kwargs)
