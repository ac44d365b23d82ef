"""Automatic guides for local latents in Pyro."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide, init_to_median
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.runtime import NonlocalExit
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to

from flowppl.inference.latents import check_levels, check_model, check_supports
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
from flowppl.pyro.flow import Flow
from flowppl.pyro.guides import (
    AutoFlow,
    member_mask,
    moved_supports,
    own_parameters,
    sample_constrained,
    unconstrained_zeros,
)


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
    may be run on all of them. The model is run once more in each step, to look at its plates,
    as far as its last latent and without gradients.

    Args:
        model: the model, a function with ``pyro.sample`` sites.
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
        init_loc_fn: where the locals start, site by site; ``pyro.infer.autoguide.init_to_median`` unless given.
        init_scale: the standard deviation that they start with, in unconstrained space.

    Raises:
        TypeError: if the model or ``features`` is not a function.
        ValueError: when it sees the model, if that has no local latents, no plate of a given name, discrete latents
            that are not enumerated, latents in two plates of locals, latents some members of which are masked, or
            latents whose support depends on other latents; if the flow does not fit; or if the features have the wrong
            length or are not finite.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from flowppl.pyro import AutoLocalFlow
        >>> def model(y, batch_size=None):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y), subsample_size=batch_size) as index:
        ...         z = pyro.sample("z", dist.Normal(mu, 1.0))
        ...         pyro.sample("y", dist.Normal(z, 0.5), obs=y[index])
        >>> guide = AutoLocalFlow(model, lambda y, batch_size=None: y[:, None])
        >>> svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 5e-3}), Trace_ELBO())
        >>> losses = [svi.step(torch.ones(100), batch_size=10) for _ in range(3)]
        >>> guide.sample_posterior(torch.ones(7), sample_shape=(50,))["z"].shape
        torch.Size([50, 7])
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
    ) -> None:
        check_model("AutoLocalFlow", model)
        plates = check_arguments(features, plates, init_scale)
        super().__init__(model)
        self.plate_names: tuple[str, ...] = plates or ()
        self.plates: dict[str, Any] = {}
        self.features = features
        self.flow_choice = flow
        self.global_guide: Any = global_guide
        self.hidden_dims = hidden_dims
        self.init_loc_fn = init_loc_fn
        self.init_scale = init_scale
        self._latent_names: frozenset[str] = frozenset()  # none: not set up yet

    def setup(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Look at the model once and create the guide's parameters.

        The first call of the guide does the same. Call this before where parameters are needed at once, for an
        optimiser or for ``load_state_dict``.

        Args:
            args: the model's arguments; so are further keyword arguments.

        Returns:
            The parameters by name.
        """
        if not self._latent_names:
            self._setup(args, kwargs)
        return dict(self.named_parameters())

    @torch.no_grad()
    def _look(self, args, kwargs, values=None, start=()) -> poutine.Trace:
        """The trace of the model up to its last latent, given values of some.

        The sites of ``start`` are where ``init_loc_fn`` says.
        """

        def start_fn(site):
            if site["name"] in start:
                return self.init_loc_fn(site)
            try:  # any value will do, and an improper prior has no draws
                return biject_to(site["fn"].support)(unconstrained_zeros(site))
            except NotImplementedError:  # a discrete site, or one that a reparametrisation further in replaces
                return site["fn"]()

        def all_seen(site):
            return bool(self._latent_names) and self._latent_names <= tracer.trace.nodes.keys()

        tracer = poutine.trace(poutine.condition(self.model, data=values or {}))
        escaping = poutine.escape(escape_fn=all_seen)
        with poutine.block(), escaping, InitMessenger(start_fn), contextlib.suppress(NonlocalExit):
            tracer(*args, **kwargs)
        return tracer.trace

    def _read_latents(self, trace) -> list[LatentSite]:
        found = [site for name, site in trace.iter_stochastic_nodes() if self._is_own(name, site)]
        discrete = [site for site in found if site["fn"].support.is_discrete]
        check_continuous(site["name"] for site in discrete if not site["infer"].get("enumerate"))
        sequential = {f.name for site in found for f in site["cond_indep_stack"] if not f.vectorized}
        if sequential:
            raise ValueError(
                f"AutoLocalFlow does not support sequential plates: {', '.join(sequential)}; "
                "write 'with pyro.plate(...):' instead of 'for ... in pyro.plate(...):'"
            )

        def read(site):
            shape = biject_to(site["fn"].support).inverse_shape(site["fn"].shape())
            frames = site["cond_indep_stack"]
            plates = tuple(Plate(f.name, f.dim, f.size, f.full_size or f.size) for f in frames)
            return LatentSite(site["name"], plates, tuple(shape), len(site["fn"].batch_shape))

        check_unmasked(site["name"] for site in found if _some_masked(site))
        return [read(site) for site in found if not site["fn"].support.is_discrete]

    def _is_own(self, name, site) -> bool:
        """Whether a site is a latent of this guide: what it never had, such as data left out, is no concern of it."""
        return not site_is_subsample(site) and (not self._latent_names or name in self._latent_names)

    def _setup(self, args, kwargs):
        with poutine.block(), torch.no_grad():
            trace = self._look(args, kwargs)
            sites = self._read_latents(trace)
            plate_names = local_plates(sites, self.plate_names or None)
            shared, local = split_sites(sites, plate_names)
            check_supports(moved_supports(self.model, args, kwargs))
            self._make_plates(trace, sites)
            if shared and self.global_guide is None:
                kept = {site.name for site in shared}
                flow = partial(small_flow, hidden_dims=self.hidden_dims)
                others_hidden = poutine.block(self.model, hide_fn=lambda s: _is_latent_outside(s, kept))
                self.global_guide = AutoFlow(others_hidden, flow, init="point")
            values = self._draw_global(shared, args, kwargs)
            vector = self._global_vector(trace, shared, values)
            features = self.features(*args, **kwargs)
            names = [site.name for _, members in local for site in members]
            trace = self._look(args, kwargs, values, names)
            flows = []
            for plate, members in local:
                own = self._member_features(features, plate, trace)
                dim = sum(math.prod(site.member_shape(plate)) for site in members)
                context_dim = own.shape[-1] + (0 if vector is None else vector.shape[-1])
                bijection = local_bijection(self.flow_choice, dim, context_dim, self.hidden_dims)
                loc = mean_member(plate, [(site, _unconstrained(trace, site.name)) for site in members])
                member_flow = Flow(bijection).to(loc)
                weights = member_flow.transform.weights
                weights.assign(start_local_at(bijection, weights.tree(), loc, self.init_scale))
                flows.append(member_flow)
        self.register_buffer("origin", vector)
        self.flows = torch.nn.ModuleList(flows)
        self.plate_names = plate_names
        self._latent_names = frozenset(site.name for site in sites)

    def _make_plates(self, trace, sites):
        if self.master is not None:
            self.plates = self.master().plates
            return
        self.plates = {}
        for plate in {plate.name: plate for site in sites for plate in site.plates}.values():
            if plate.size == plate.full_size:
                self.plates[plate.name] = pyro.plate(plate.name, plate.size, dim=plate.dim)
            else:
                chosen = {"subsample": trace.nodes[plate.name]["value"]} if plate.name in trace else {}
                chosen = chosen or {"subsample_size": plate.size}  # a block hides the members that the model chose
                self.plates[plate.name] = pyro.plate(plate.name, plate.full_size, dim=plate.dim, **chosen)

    def _check_prototype(self, part_trace):
        pass  # a guide inside this one asks; it has seen the same model

    def _draw_global(self, shared, args, kwargs) -> dict[str, torch.Tensor]:
        if not shared:
            return {}
        trace = poutine.trace(self.global_guide).get_trace(*args, **kwargs)
        missing = [site.name for site in shared if site.name not in trace]
        if missing:
            raise ValueError(
                f"global_guide draws nothing for the global latents {', '.join(missing)}; hide what another guide "
                "covers from this one, with block(model, hide=[...])"
            )
        return {site.name: trace.nodes[site.name]["value"] for site in shared}

    def _global_vector(self, trace, shared, values):
        transforms = {site.name: biject_to(trace.nodes[site.name]["fn"].support) for site in shared}
        unconstrained = [(site, transforms[site.name].inv(values[site.name])) for site in shared]
        return global_vector(unconstrained) if shared else None

    def _member_features(self, features, plate, trace) -> torch.Tensor:
        own = torch.as_tensor(pick_features(features, plate))
        own = own if own.is_floating_point() else own.to(torch.get_default_dtype())
        check_finite(plate, bool(own.isfinite().all()))
        return member_features(own, plate, self.plates[plate.name].indices.to(own.device))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Draw all latent sites.

        Args:
            args: the model's arguments; so are further keyword arguments.

        Returns:
            The value of each latent site.
        """
        self.setup(*args, **kwargs)
        trace = self._look(args, kwargs)
        sites = self._read_latents(trace)
        check_present(self._latent_names, sites)
        local_plates(sites, self.plate_names)
        shared, local = split_sites(sites, self.plate_names)
        self._make_plates(trace, sites)
        values = self._draw_global(shared, args, kwargs)
        vector = self._global_vector(trace, shared, values)
        centred = [] if vector is None else [vector - self.origin]
        features = self.features(*args, **kwargs)
        result = dict(values)
        # An access to self.flows would take what the store has.
        own_parameters(f"{self._pyro_name}.flows", self._modules["flows"])  # type: ignore[arg-type]
        for flow, (plate, members) in zip(self.flows, local, strict=True):
            own = self._member_features(features, plate, trace)
            context = make_context([part.to(flow._zeros) for part in (own, *centred)])
            with self.plates[plate.name]:
                name = f"_{self._pyro_name}_{plate.name}_latent"
                latent = pyro.sample(name, flow(context), infer={"is_auxiliary": True})
            for site, unconstrained in zip(members, split_members(latent, plate, members), strict=True):
                result[site.name] = sample_constrained(trace.nodes[site.name], unconstrained, self.plates)
        return result

    @torch.no_grad()
    def sample_posterior(self, *args: Any, sample_shape: Sequence[int] = (), **kwargs: Any) -> dict[str, torch.Tensor]:
        """Draws of all latent sites.

        The locals are those of the members that the model sees with these arguments, which may be new ones; where the
        model draws a subsample of its own, tell it not to.

        Args:
            args: the model's arguments; so are further keyword arguments.
            sample_shape: how many draws, such as ``(1000,)``.

        Returns:
            For each site a tensor of shape ``sample_shape`` followed by the shape of the site.
        """
        self.setup(*args, **kwargs)
        trace: Any = self._look(args, kwargs)
        sites = self._read_latents(trace)
        nesting = max(-plate.dim for site in sites for plate in site.plates)
        with poutine.block(), pyro.plate("_draws", max(math.prod(sample_shape), 2), dim=-1 - nesting):
            draws = self(*args, **kwargs)
        shapes = {site.name: trace.nodes[site.name]["value"].shape for site in sites}
        count = math.prod(sample_shape)  # of one draw a plate would be squeezed away
        return {name: draws[name][:count].reshape((*sample_shape, *shape)) for name, shape in shapes.items()}

    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The median of each latent site, from 1,000 draws; see :meth:`quantiles`.

        Args:
            args: the model's arguments; so are further keyword arguments.

        Returns:
            For each site a tensor of its shape.
        """
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Quantiles of each latent site, from 1,000 draws, coordinate by coordinate in unconstrained space.

        Args:
            quantiles: a list or tensor of numbers between 0 and 1.
            args: the model's arguments; so are further keyword arguments.

        Returns:
            For each site a tensor with a leading axis for the quantiles, followed by the shape of the site.
        """
        draws = self.sample_posterior(*args, sample_shape=(NUM_MEDIAN_DRAWS,), **kwargs)
        trace: Any = self._look(args, kwargs)
        result = {}
        for name, value in draws.items():
            transform = biject_to(trace.nodes[name]["fn"].support)
            levels = torch.as_tensor(check_levels(quantiles), dtype=value.dtype, device=value.device)
            result[name] = transform(torch.quantile(transform.inv(value), levels, dim=0))
        return result

    def __getstate__(self):
        # Unlike the host's guides this one needs its model and features in every call, and keeps them.
        return self.__dict__ | {"master": None, "plates": {}}

    def __deepcopy__(self, memo):
        memo[id(self._model)], memo[id(self.features)] = self._model, self.features
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new


def _unconstrained(trace, name):
    site = trace.nodes[name]
    return biject_to(site["fn"].support).inv(site["value"])


def _some_masked(site) -> bool:
    mask = member_mask(site)
    return mask is not None and bool(mask.any())


def _is_latent_outside(site, names) -> bool:
    return site["type"] == "sample" and not site["is_observed"] and site["name"] not in names
