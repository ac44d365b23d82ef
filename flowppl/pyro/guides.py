"""Automatic guides for Pyro."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to

from flowppl._arrays.tree import Tree, map_tree, select
from flowppl.bijections.combine import Chain
from flowppl.bijections.contract import Bijection
from flowppl.inference.arguments import telling_of_numpyro, with_options
from flowppl.inference.draws import in_parts
from flowppl.inference.guides import (
    NUM_DRAWS,
    FlowChoice,
    check_init,
    check_num_modes,
    choose_init,
    guide_bijection,
    no_start,
    no_transform_of_parts,
    search_average,
    search_modes,
    search_start,
    start_at,
)
from flowppl.inference.latents import (
    Latent,
    check_latents,
    check_levels,
    check_masks,
    check_model,
    check_real,
    check_shapes,
    check_supports,
    no_transform,
    outside_support,
    over_events,
)
from flowppl.inference.mixture import stack_parts
from flowppl.inference.modes import Modes, find_modes, single
from flowppl.inference.starts import Gaussian
from flowppl.pyro._host import helpful_support_errors, param_with_module_name, sum_rightmost, tree_map
from flowppl.pyro.enumeration import is_summed_out, trace_of
from flowppl.pyro.flow import Flow, FlowDistribution, standard_normal
from flowppl.pyro.mixture import FlowMixture, MixtureOfFlows
from flowppl.pyro.target import Target
from flowppl.pyro.transforms import FlowTransform, numpy_rng, to_numpy
from flowppl.serialization import absent_model

MANY_DRAWS = 2**14  # as many at a time: what the layers of a flow see of a million draws is 30 times what they give


class AutoFlow(AutoContinuous):
    """A guide that is a flow over all continuous latents of a model, whatever their supports.

    Each latent is mapped to real numbers without bounds, its *unconstrained space*, and all of them are strung into one
    vector z of D numbers. The guide is the distribution of

    .. math::
        z = \\mu + L\\,\\big(m + \\mathrm{diag}(\\sigma)(I + T)\\, f(\\varepsilon)\\big),
        \\qquad \\varepsilon \\sim N(0, I),

    where :math:`\\varepsilon` is a vector of D standard normals and f is the flow, which is trained. The vector m, the
    positive vector :math:`\\sigma` and the matrix T, with entries below its diagonal only, are trained, too. The vector
    :math:`\\mu` and the lower-triangular matrix L are fixed; I is the identity.

    At the first step f does nothing, and the guide *is* the Gaussian that it starts from. If this start was searched,
    :math:`\\mu` is its mean and L a square root of its covariance, so that training takes place at the scale of the
    posterior, whatever that is; m, :math:`\\sigma` and T begin as 0, 1 and 0. If the start is a point, m is that point
    and :math:`\\sigma` is ``init_scale``; :math:`\\mu`, L and T begin as 0, I and 0. Above 256 dimensions T
    is zero and L has the standard deviations only; behind the flow, before these, stand a trained
    :class:`flowppl.Subspace` of :math:`\\sqrt{D}` directions, a fixed triangular matrix of correlations, up to 2,048
    dimensions, and a trained spline of each coordinate, for what is skewed.

    Members of a latent that the model masks out, and that bear on nothing else, such as those observed under
    ``obs_mask``, are not part of z: they stay where they are.

    Args:
        model: the model, a function with ``pyro.sample`` sites.
        flow: ``"auto"``, a name of :func:`flowppl.available_flows`, a function from the dimension to a bijection, such
            as :func:`flowppl.realnvp` or :func:`flowppl.pyro.realnvp`, or a bijection of the right dimension.
            ``"auto"`` is :func:`flowppl.realnvp`, whose two directions are both fast, bounded and
            :class:`flowppl.Damped` so that plain SVI stays finite; for one dimension, a spline.
        init: how the start is found. ``"newton"`` takes the Gaussian of the highest ELBO that it meets on several
            Newton paths, with the Hessian of the model (above 256 dimensions, on one that follows quasi-Newton paths,
            and improves it by the gradient at its draws); ``"diagonal"`` one with independent coordinates on
            quasi-Newton paths, without a Hessian; ``"point"`` a normal of standard deviation ``init_scale`` at the
            point of ``init_loc_fn``. ``"auto"`` is the first up to 2,048 dimensions and the second above; it is the
            third if ``init_scale`` is given, or if the density is random, but for batches of the data, over which it is
            averaged.
        init_loc_fn: the point to start from, site by site; for ``"point"`` it is
            ``pyro.infer.autoguide.init_to_median`` unless given. If given, the searches start from it too, beside
            random points.
        init_scale: the standard deviation at a point, in unconstrained space; 0.1 unless given.
        num_modes: how many modes of the posterior the guide holds: 1 for the one that the search of the start ends in;
            ``"auto"`` for all that a wider search finds, see :mod:`flowppl.inference.modes`; a number for so many of
            them, the heaviest, at the most. For K of them, each in a Gaussian of its own at first, the guide is a
            mixture of K flows, and has no :meth:`get_transform`. A search needs ``init="newton"`` or ``"diagonal"``,
            or an ``"auto"`` that means one of them; from a point, and for batches of the data, there is one mode.
            ``SVI`` trains the K flows, but not the weights of the mixture, to which no gradient leads: they stay those
            of the search. :func:`fit` trains both.
        create_plates: as for other guides of Pyro.
        options: of the recipe, where ``flow`` is the name of one or the recipe itself, as in
            ``AutoFlow(model, flow="iaf", num_flows=3, hidden_dims=(32, 32))``.

    Raises:
        TypeError: if the model is not a function, ``flow`` is none of the above, or its recipe has no such option.
        ValueError: when it first sees the model, if that has no latents, discrete ones, ones whose support depends on
            other latents, or ones local to a subsampled plate, or if the flow does not fit the model.
        RuntimeError: if the model's log density is finite at no point that was tried, or if the search finds that the
            posterior is improper or degenerate.

    Warns:
        RuntimeWarning: if the density is not finite at more than a tenth of the draws of the start.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from flowppl.pyro import AutoFlow
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, sigma), obs=y)
        >>> guide = AutoFlow(model)
        >>> svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 5e-3}), Trace_ELBO())
        >>> losses = [svi.step(torch.linspace(-1.0, 3.0, 10)) for _ in range(3)]
        >>> guide.sample_posterior(sample_shape=(100,))["mu"].shape
        torch.Size([100])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        flow: FlowChoice = "auto",
        *,
        init: str = "auto",
        init_loc_fn: Callable[..., Any] | None = None,
        init_scale: float | None = None,
        num_modes: int | str = 1,
        create_plates: Callable[..., Any] | None = None,
        **options: Any,
    ) -> None:
        check_model("AutoFlow", model)
        check_num_modes("AutoFlow", num_modes)
        check_init(init, init_scale, num_modes)
        super().__init__(model, init_loc_fn=_or_origin(init_loc_fn or init_to_median))
        self._model: Any = (self.model, model)  # the second is the user's own, without the host's draws of a start
        self.create_plates = create_plates
        self.flow_choice = with_options(flow, options, AutoFlow.__init__)
        self.init = init
        self.init_scale = init_scale
        self.num_modes = num_modes
        self._modes: Modes | None = None  # of which the guide holds the heaviest
        self._has_init_loc = init_loc_fn is not None
        self._known_shapes: list = []
        self._masks: dict[str, torch.Tensor] = {}  # which members of a latent the guide has, where it lacks some

    def setup(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Look at the model once and create the guide's parameters.

        The first call of the guide does the same. Call this before where parameters are needed at once, for an
        optimiser or for ``load_state_dict``.

        Args:
            args: the model's arguments; so are further keyword arguments.

        Returns:
            The parameters by name.
        """
        self._set_up(args, kwargs)
        return dict(self.named_parameters())

    def _set_up(self, args, kwargs) -> Target | None:
        """As :meth:`setup`; the density that a new guide has been started on, ``None`` if it was there before."""
        if self.prototype_trace is not None:
            return None
        target = self._setup_prototype(*args, **kwargs)
        self._create_plates(*args, **kwargs)
        return target

    @staticmethod
    def _prototype_hide_fn(msg):
        return AutoContinuous._prototype_hide_fn(msg) or is_summed_out(msg)

    @torch.no_grad()  # so that the trace kept here holds no graph, and can be copied
    def _setup_prototype(self, *args, **kwargs):
        def look():
            observed = Observed()
            model = poutine.block(observed(self.model), self._prototype_hide_fn)
            with telling_of_numpyro():
                trial = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
            return observed.sites, trial

        observed, trial = look()
        check_observed(observed, lambda: look()[0])
        check_latents(
            Latent(
                name,
                site["fn"].support.is_discrete,
                tuple((f.name, f.size, f.full_size or f.size) for f in site["cond_indep_stack"]),
            )
            for name, site in trial.iter_stochastic_nodes()
        )
        check_supports(moved_supports(self._model[1], args, kwargs))
        super()._setup_prototype(*args, **kwargs)
        try:
            self._masks = unscored_members(self._model[1], args, kwargs)
            loc = self._init_loc()
            self.latent_dim = len(loc)
            if not self.latent_dim:
                check_latents([])
            bijection = guide_bijection(self.flow_choice, self.latent_dim)
            target = Target(self, args, kwargs, loc)
            self.flow = self._started_flow(bijection, loc, target)
            self._known_shapes.append(_shapes(args, kwargs))
        except Exception:
            self.prototype_trace = None  # the guide stays as it was before
            raise
        return target

    def _started_flow(self, bijection, loc, target) -> Flow | MixtureOfFlows:
        """A flow with first weights at its start, or one at each mode."""
        start = self._search(loc, target)
        flow = Flow(bijection).to(loc)
        weights = flow.transform.weights
        if start is None:
            start_loc, scale = loc, torch.full_like(loc, self.init_scale or 0.1)
            weights.assign(start_at(bijection, weights.tree(), start_loc, scale, fixed=False))
            return flow
        # Of a density that is drawn anew each time no search tells the modes.
        is_one = self.num_modes == 1 or target.is_random()
        self._modes = single(start) if is_one else find_modes(target, start, numpy_rng())
        return self._flow_at(self._modes.at_most(self.num_modes), flow)

    def _flow_at(self, modes: Modes, flow: Flow) -> Flow | MixtureOfFlows:
        """A flow with a part at each mode; ``flow`` has the first weights."""
        bijection, weights, like = cast(Chain, flow.bijection), flow.transform.weights, flow._zeros
        if len(modes.gaussians) == 1:
            (start,) = modes.gaussians
            loc, scale = (torch.as_tensor(array).to(like) for array in (start.loc, start.scale))
            weights.assign(start_at(bijection, weights.tree(), loc, scale, fixed=True))
            return flow
        first = map_tree(to_numpy, select(bijection.parameters(), weights.tree()))
        parts = [start_at(bijection, first, each.loc, each.scale, fixed=True) for each in modes.gaussians]
        return MixtureOfFlows(bijection, stack_parts(parts, modes.log_weights), like)

    def _all_modes(self, target, is_new) -> Modes | None:
        """All modes that a search finds, whether the guide holds them or not; ``None`` if it starts at a point.

        What the search of a new guide found is known; one made before may be fitted to other data now.
        """
        if self._modes is not None and is_new:
            start = self._modes.gaussians[0]
            if target.is_random():
                return None
            return self._modes if self._modes.num_searches else find_modes(target, start, numpy_rng())
        is_at_point = choose_init(self.init, self.latent_dim, self.init_scale) == "point"
        return None if is_at_point else search_modes(target, self.latent_dim, numpy_rng())

    def _search(self, loc, target) -> Gaussian | None:
        """The best Gaussian of a search from several points; ``None`` if the guide starts at a point."""
        init = choose_init(self.init, self.latent_dim, self.init_scale)
        if init == "point":
            return None
        points = [loc.cpu().double().numpy()] if self._has_init_loc else []
        if self.init == "auto" and target.is_random():
            num = target.num_batches()
            return search_average(init, target, num, self.latent_dim, points, numpy_rng()) if num > 1 else None
        start = search_start(init, target, self.latent_dim, points, numpy_rng())
        if start is None:
            raise no_start(target.observed_sites())
        return start

    def _init_loc(self) -> torch.Tensor:
        """The point of ``init_loc_fn``: one vector for all latents, less the members that the guide does not have."""
        sites = cast(Any, self.prototype_trace).nodes
        points = {name: biject_to(sites[name]["fn"].support).inv(sites[name]["value"]) for name in self._names}
        return torch.cat([point.detach().reshape(-1)[self._kept(name)] for name, point in points.items()])

    @property
    def _names(self) -> list[str]:
        return list(self._unconstrained_shapes)

    def _kept(self, name: str) -> torch.Tensor:
        """Which of the unconstrained coordinates of a latent, flat, the guide has."""
        shape = self._unconstrained_shapes[name]
        if name not in self._masks:
            return torch.ones(shape.numel(), dtype=torch.bool)
        mask = self._masks[name]
        return over_events(mask, len(shape)).expand(shape).reshape(-1)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Draw all latent sites.

        Args:
            args: the model's arguments; so are further keyword arguments.

        Returns:
            The value of each latent site.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._check_arguments(args, kwargs)
        own_parameters(f"{self._pyro_name}.flow", self.flow)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        return {
            site["name"]: sample_constrained(site, part, plates, self._masks.get(site["name"]))
            for site, part in self._unpack_latent(latent)
        }

    def _check_arguments(self, args, kwargs):
        """Raise ValueError if the latents have changed; the model is run for arguments of new shapes only.

        A mask may change without a change of shape.
        """
        shapes = _shapes(args, kwargs)
        if self._model is None or self._model[1] is absent_model:
            return
        if shapes not in self._known_shapes or self._masks:
            model = poutine.block(self.model, self._prototype_hide_fn)
            with torch.no_grad(), torch.random.fork_rng(), poutine.block():
                trace = poutine.trace(model).get_trace(*args, **kwargs)
            sites = {name: site for name, site in trace.iter_stochastic_nodes() if name in self._unconstrained_shapes}
            now = {n: biject_to(s["fn"].support).inverse_shape(s["value"].shape) for n, s in sites.items()}
            check_shapes(
                {name: tuple(shape) for name, shape in self._unconstrained_shapes.items()},
                {n: tuple(s) for n, s in now.items()},
            )
            masks = {name: member_mask(sites[name]) for name in self._masks}
            check_masks(name for name, mask in masks.items() if mask is None or not mask.equal(self._masks[name]))
            self._known_shapes.append(shapes)

    def _trained_flow(self, *args, **kwargs) -> Flow | MixtureOfFlows:
        if self.prototype_trace is None:
            if not args and not kwargs:
                raise RuntimeError("this AutoFlow has not seen its model yet: call guide.setup(*args) first")
            self.setup(*args, **kwargs)
        return self.flow

    def _parts_of_flow(self, *args, **kwargs) -> list[tuple[Bijection, Tree]]:
        """For each mode its bijection, and the weights of that with its constants."""
        flow = self._trained_flow(*args, **kwargs)
        if isinstance(flow, MixtureOfFlows):
            return [flow.staged(flow.part(k)) for k in range(len(flow.log_weights))]
        return [(flow.bijection, flow.transform.weights.tree())]

    def get_base_dist(self) -> dist.TorchDistribution:
        """The standard normal that the flow starts from.

        Returns:
            A distribution with events of shape ``(D,)``.
        """
        return standard_normal(self._trained_flow()._zeros)

    def get_transform(self, *args: Any, **kwargs: Any) -> FlowTransform:
        """The transform from the base distribution to the unconstrained latents.

        Args:
            args: the model's arguments, which matter only if the guide has not seen its model yet; so are further
                keyword arguments.

        Returns:
            A transform of vectors of shape ``(D,)``.

        Raises:
            ValueError: for a guide of several modes, which has a transform for each.
        """
        flow = self._trained_flow(*args, **kwargs)
        if isinstance(flow, MixtureOfFlows):
            raise no_transform_of_parts(len(flow.log_weights))
        return flow.transform

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution | FlowMixture:
        """The distribution of the unconstrained latents, one vector for all sites.

        Args:
            args: as in :meth:`get_transform`.

        Returns:
            A distribution with events of shape ``(D,)``.
        """
        return self._trained_flow(*args, **kwargs)()

    @torch.no_grad()
    def sample_posterior(self, *args: Any, sample_shape: Sequence[int] = (), **kwargs: Any) -> dict[str, torch.Tensor]:
        """Draws of all latent sites.

        Args:
            args: as in :meth:`get_transform`.
            sample_shape: how many draws, such as ``(1000,)``.

        Returns:
            For each site a tensor of shape ``sample_shape`` followed by the shape of the site.
        """
        posterior, shape = self.get_posterior(*args, **kwargs), torch.Size(sample_shape)
        if shape.numel() <= MANY_DRAWS:
            return self._constrain(posterior.sample(shape))

        def draw(num):
            return self._constrain(posterior.sample(torch.Size([num])))

        found = in_parts(draw, shape.numel(), MANY_DRAWS, torch.Tensor.new_empty)
        return {name: value.reshape(shape + value.shape[1:]) for name, value in found.items()}

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The median of each latent site, from 10,000 draws; see :meth:`quantiles`.

        Args:
            args: as in :meth:`get_transform`.

        Returns:
            For each site a tensor of its shape.
        """
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles: Any, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Quantiles of each latent site, from 10,000 draws, coordinate by coordinate in unconstrained space.

        Args:
            quantiles: a list or tensor of numbers between 0 and 1.
            args: as in :meth:`get_transform`.

        Returns:
            For each site a tensor with a leading axis for the quantiles, followed by the shape of the site.
        """
        draws = self.get_posterior(*args, **kwargs).sample(torch.Size([NUM_DRAWS]))
        levels = torch.as_tensor(check_levels(quantiles), dtype=draws.dtype, device=draws.device)
        return self._constrain(torch.quantile(draws, levels, dim=0))

    def _constrain(self, latent):
        """The values of all sites for unconstrained latents with any batch axes in front."""
        return {name: transform(part) for name, transform, part in self._parts(latent)}

    def _constrain_with_log_det(self, latent):
        """The values of all sites, and the log determinant of the map to them, for one vector of latents."""
        values, total = {}, torch.zeros_like(latent[0])
        for name, transform, part in self._parts(latent):
            values[name] = transform(part)
            log_det = transform.log_abs_det_jacobian(part, values[name])
            if name in self._masks:
                log_det = torch.where(over_events(self._masks[name], log_det.ndim), log_det, 0.0)
            total = total + log_det.sum()
        return values, total

    def _parts(self, latent) -> Iterator[tuple[str, Any, torch.Tensor]]:
        """For each site its name, the transform to its support, and its part of the latents."""
        prototype, start, latent = cast(Any, self.prototype_trace), 0, self._filled(latent)
        for name, shape in self._unconstrained_shapes.items():
            stop = start + shape.numel()
            part = latent[..., start:stop].reshape(latent.shape[:-1] + shape)
            yield name, biject_to(prototype.nodes[name]["fn"].support), part
            start = stop

    def _unpack_latent(self, latent):
        return super()._unpack_latent(self._filled(latent))

    def _filled(self, latent):
        """Vectors of latents with zeros in the places of the members that the guide does not have."""
        if not self._masks:
            return latent
        kept = torch.cat([self._kept(name) for name in self._names])
        places = torch.where(kept, kept.cumsum(0) - 1, latent.shape[-1])
        return torch.cat([latent, torch.zeros_like(latent[..., :1])], -1)[..., places]

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.prototype_trace is None and any(name.startswith(prefix) for name in state_dict):
            raise RuntimeError(
                "this AutoFlow has not seen its model yet, so it has no weights to load into: call guide.setup(*args) "
                "first, or save and load with flowppl.save and flowppl.load, which need no model"
            )
        weights = state_dict.get(f"{prefix}flow.log_weights")
        found, own = 1 if weights is None else len(weights), len(self._parts_of_flow())
        if found != own and any(name.startswith(f"{prefix}flow.") for name in state_dict):
            raise RuntimeError(
                f"these weights are of a guide of {found} modes, and this one was set up with {own}: make it with "
                f"num_modes={found}, or save and load with flowppl.save and flowppl.load"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self):
        # The host's version takes the model away from the guide that is being copied.
        return self.__dict__ | {"_model": None, "master": None}

    def __deepcopy__(self, memo):
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model = self._model
        return new


def unconstrained_zeros(site) -> torch.Tensor:
    """The origin of a site's unconstrained space, with the dtype and on the device of its distribution."""
    shape = biject_to(site["fn"].support).inverse_shape(site["fn"].shape())
    return _a_parameter(site["fn"]).new_zeros(shape)


def _a_parameter(distribution) -> torch.Tensor:
    """A tensor in a distribution or in those that it wraps; one of the default dtype and device if there is none."""
    parts = list(vars(distribution).values())
    for part in parts:
        if isinstance(part, torch.Tensor) and part.is_floating_point():
            return part
    for part in parts:
        if isinstance(part, torch.distributions.Distribution):
            return _a_parameter(part)
    return torch.zeros(())


def _transform_of(site):
    try:
        with helpful_support_errors(site):
            return biject_to(site["fn"].support)
    except NotImplementedError as error:
        raise no_transform(site["name"], site["fn"].support) from error


def sample_constrained(model_site, unconstrained, plates, mask=None):
    """The guide's site for a latent of the model, inside the plates of the model; members outside a mask are free."""
    fn: Any = model_site["fn"]
    transform = biject_to(fn.support)
    value = transform(unconstrained)
    log_density = -transform.log_abs_det_jacobian(unconstrained, value)
    log_density = sum_rightmost(log_density, log_density.dim() - value.dim() + fn.event_dim)
    if mask is not None:
        log_density = torch.where(mask, log_density, 0.0)
    with contextlib.ExitStack() as stack:
        for frame in model_site["cond_indep_stack"]:
            stack.enter_context(plates[frame.name])
        return pyro.sample(model_site["name"], dist.Delta(value, log_density=log_density, event_dim=fn.event_dim))


def _draw_anywhere(site):
    """Any value of a site: near the origin of unconstrained space, for an improper prior has no draws of its own."""
    try:
        return biject_to(site["fn"].support)(unconstrained_zeros(site).uniform_(-1, 1))
    except NotImplementedError:  # a discrete site, or one that a reparametrisation further in replaces
        return site["fn"]()


def improper_sites(model, args, kwargs) -> list[str]:
    """The names of the latents of a model whose priors are improper."""
    sites = trace_of(InitMessenger(_draw_anywhere)(model), args, kwargs).iter_stochastic_nodes()
    return [name for name, site in sites if _is_improper(site["fn"])]


def _is_improper(distribution) -> bool:
    return isinstance(innermost(distribution), dist.ImproperUniform)


def innermost(distribution):
    """What a distribution is made of, without masks, event axes and transforms."""
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    return distribution


@torch.no_grad()
def moved_supports(model, args, kwargs) -> list[str]:
    """The names of the latents whose supports differ between two random points, given one subsample of the data.

    Raises:
        ValueError: if there is a latent to the support of which the host has no transform.
        TypeError: if complex numbers are observed.
    """
    model = InitMessenger(_draw_anywhere)(model)
    moved = []
    with poutine.block(), torch.random.fork_rng(), pyro.validation_enabled(False):
        before: Any = poutine.trace(model).get_trace(*args, **kwargs)
        check_real((n, s["value"].dtype) for n, s in before.nodes.items() if isinstance(s.get("value"), torch.Tensor))
        subsample = {name: site["value"] for name, site in before.nodes.items() if site_is_subsample(site)}
        now: Any = poutine.trace(poutine.condition(model, data=subsample)).get_trace(*args, **kwargs)
        for name, site in before.iter_stochastic_nodes():
            if name not in subsample and not site["fn"].support.is_discrete:
                _transform_of(site)
                point = unconstrained_zeros(site).uniform_(-1, 1)
                value, other = (biject_to(trace.nodes[name]["fn"].support)(point) for trace in (before, now))
                if not torch.allclose(value, other, atol=0.0, equal_nan=True):
                    moved.append(name)
    return moved


class Observed(Messenger):
    """Keeps the observed sites of the function that it wraps."""

    def __init__(self):
        super().__init__()
        self.sites = {}

    def _pyro_post_sample(self, msg):
        if msg["is_observed"]:
            self.sites[msg["name"]] = {name: msg[name] for name in ("fn", "value", "mask")}


def check_observed(sites: dict[str, dict[str, Any]], again: Callable[[], dict[str, dict[str, Any]]]) -> None:
    """Raise ValueError, unless the host validates nothing, for data outside of a support that no latent moves.

    Args:
        sites: the observed sites of a trace.
        again: gives those of another one.
    """
    bad = {name: value for name, site in sites.items() if (value := _outside(site)) is not None}
    later = again() if bad else {}
    for name, value in bad.items():
        support = sites[name]["fn"].support
        if name in later and _is_same(support, later[name]["fn"].support):
            raise outside_support(name, sites[name]["fn"], support, value)


def _outside(site):
    """A finite value, of a member that is scored, outside of its support; ``None`` if there is none."""
    base, value = innermost(site["fn"]), torch.as_tensor(site["value"])
    if not base._validate_args or isinstance(base, (dist.Unit, dist.Delta)):
        return None
    try:
        is_outside = ~torch.as_tensor(site["fn"].support.check(value))
    except NotImplementedError:  # a distribution of a user's own that has none
        return None
    event, is_finite = value.shape[is_outside.ndim :], torch.isfinite(value)
    for _ in event:
        is_finite = is_finite.all(-1)
    is_outside = is_outside & is_finite
    if (mask := member_mask(site)) is not None:
        is_outside = is_outside & mask
    return value.broadcast_to((*is_outside.shape, *event))[is_outside][0] if is_outside.any() else None


def _is_same(a, b) -> bool:
    """Whether two supports have the same ends."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return torch.equal(torch.as_tensor(a), torch.as_tensor(b))
    if isinstance(a, dist.constraints.Constraint):
        return type(a) is type(b) and all(_is_same(value, vars(b)[name]) for name, value in vars(a).items())
    return a == b


def member_mask(site) -> torch.Tensor | None:
    """Which members of a latent the model scores; ``None`` if all."""
    fn, mask = site["fn"], site["mask"]
    while hasattr(fn, "base_dist"):
        own = getattr(fn, "_mask", None)
        mask = own if mask is None else mask if own is None else mask & own
        fn = fn.base_dist
    if mask is None or mask is True:
        return None
    mask = torch.as_tensor(mask).expand(site["fn"].batch_shape)
    return None if mask.all() else mask


@torch.no_grad()
def unscored_members(model, args, kwargs) -> dict[str, torch.Tensor]:
    """The masks of the latents with masked members on which the density does not depend in any other way."""

    def density(values):
        torch.manual_seed(0)  # for what is random in the model beside
        return poutine.trace(poutine.condition(model, data=values)).get_trace(*args, **kwargs).log_prob_sum()

    masks = {}
    with poutine.block(), torch.random.fork_rng(), pyro.validation_enabled(False):
        trace: Any = poutine.trace(InitMessenger(_draw_anywhere)(model)).get_trace(*args, **kwargs)
        values = {name: site["value"] for name, site in trace.nodes.items() if _is_drawn(site)}
        for name, site in trace.iter_stochastic_nodes():
            mask = None if site_is_subsample(site) else member_mask(site)
            if mask is not None:
                inside = over_events(mask, site["value"].ndim)
                other = values | {name: torch.where(inside, site["value"], _draw_anywhere(site))}
                if torch.equal(density(values), density(other)):
                    masks[name] = mask
    return masks


def _is_drawn(site) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def own_parameters(name: str, module: torch.nn.Module) -> None:
    """Let the module under this name have its own parameters.

    Pyro keeps parameters by name, and all guides of a class share their names: without this a second guide would be
    given the tensors of the first, and never train its own.
    """
    store = pyro.get_param_store()
    for key, parameter in module.named_parameters():
        key = param_with_module_name(name, key)
        if key in store and store[key] is not parameter:
            store[key] = parameter


def _shapes(args, kwargs):
    """What of a model's arguments may decide how many latents it has: shapes, and numbers such as a size."""
    return tree_map(lambda leaf: leaf if isinstance(leaf, int | str) else getattr(leaf, "shape", None), (args, kwargs))


def _or_origin(init_loc_fn):
    """``init_loc_fn``, or the origin of unconstrained space for an improper prior, of which nothing can be drawn."""

    def init(site):
        if is_summed_out(site):
            return site["fn"]()
        try:
            return init_loc_fn(site)
        except NotImplementedError:
            return _transform_of(site)(unconstrained_zeros(site))

    return init
