"""Automatic guides for Pyro."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous, init_to_median
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.params import param_with_module_name
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to
from torch.utils._pytree import tree_map

from flowppl.inference.guides import (
    AUTO_FLOW_DOC,
    NUM_DRAWS,
    FlowChoice,
    Latent,
    check_init,
    check_latents,
    check_levels,
    check_shapes,
    check_supports,
    choose_init,
    guide_bijection,
    no_start,
    search_start,
    start_at,
)
from flowppl.inference.starts import Gaussian
from flowppl.pyro.flow import Flow, FlowDistribution, standard_normal
from flowppl.pyro.target import Target
from flowppl.pyro.transforms import FlowTransform
from flowppl.serialization import absent_model


class AutoFlow(AutoContinuous):
    __doc__ = AUTO_FLOW_DOC.format(
        loc_default="pyro.infer.autoguide.init_to_median",
        prefix="",
        example="""
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
""",
    )

    # What this relies on in the host's classes beyond their documented methods: `prototype_trace`, `_setup_prototype`,
    # `_prototype_hide_fn`, `_unconstrained_shapes`, `_init_loc`, `_create_plates`, `_model` and `__getstate__`.

    def __init__(
        self,
        model,
        flow: FlowChoice = "auto",
        *,
        init: str = "auto",
        init_loc_fn=None,
        init_scale: float | None = None,
        create_plates=None,
    ):
        check_init(init, init_scale)
        super().__init__(model, init_loc_fn=_or_origin(init_loc_fn or init_to_median))
        self._model: Any = (self.model, model)  # the second is the user's own, without the host's draws of a start
        self.create_plates = create_plates
        self.flow_choice = flow
        self.init = init
        self.init_scale = init_scale
        self._has_init_loc = init_loc_fn is not None
        self._known_shapes: list = []

    def setup(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        """Look at the model once and create the guide's parameters; the arguments are the model's.

        The first call of the guide does the same. Call this before where parameters are needed at once, for an
        optimiser or for ``load_state_dict``.

        Returns:
            The parameters by name.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
            self._create_plates(*args, **kwargs)
        return dict(self.named_parameters())

    @torch.no_grad()  # so that the trace kept here holds no graph, and can be copied
    def _setup_prototype(self, *args, **kwargs):
        model = poutine.block(self.model, self._prototype_hide_fn)
        trial = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
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
            loc = self._init_loc()
            bijection = guide_bijection(self.flow_choice, self.latent_dim)
            self.flow = self._started_flow(bijection, loc, args, kwargs)
            self._known_shapes.append(_shapes(args, kwargs))
        except Exception:
            self.prototype_trace = None  # the guide stays as it was before
            raise

    def _started_flow(self, bijection, loc, args, kwargs) -> Flow:
        """A flow with first weights, at its start."""
        start = self._search(loc, args, kwargs)
        if start is None:
            start_loc, scale = loc, torch.full_like(loc, self.init_scale or 0.1)
        else:
            start_loc, scale = (torch.as_tensor(array).to(loc) for array in (start.loc, start.scale))
        flow = Flow(bijection).to(loc)
        weights = flow.transform.weights
        weights.assign(start_at(bijection, weights.tree(), start_loc, scale, fixed=start is not None))
        return flow

    def _search(self, loc, args, kwargs) -> Gaussian | None:
        """The best Gaussian of a search from several points; ``None`` if the guide starts at a point."""
        init = choose_init(self.init, self.latent_dim, self.init_scale)
        target = Target(self, args, kwargs, loc)
        if init == "point" or (self.init == "auto" and target.is_random()):
            return None
        rng = np.random.default_rng(int(torch.randint(2**63 - 1, ())))
        points = [loc.cpu().double().numpy()] if self._has_init_loc else []
        start = search_start(init, target, self.latent_dim, points, rng)
        if start is None:
            raise no_start(target.observed_sites())
        return start

    def forward(self, *args, **kwargs):
        """Draw all latent sites; the arguments are the model's."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._check_arguments(args, kwargs)
        own_parameters(f"{self._pyro_name}.flow", self.flow)
        return super().forward(*args, **kwargs)

    def _check_arguments(self, args, kwargs):
        """Raise ValueError if the latents have changed; the model is run for arguments of new shapes only."""
        shapes = _shapes(args, kwargs)
        if self._model is not None and self._model[1] is not absent_model and shapes not in self._known_shapes:
            model = poutine.block(self.model, self._prototype_hide_fn)
            with torch.no_grad(), torch.random.fork_rng(), poutine.block():
                trace = poutine.trace(model).get_trace(*args, **kwargs)
            sites = dict(trace.iter_stochastic_nodes())
            now = {n: biject_to(s["fn"].support).inverse_shape(s["value"].shape) for n, s in sites.items()}
            check_shapes(
                {name: tuple(shape) for name, shape in self._unconstrained_shapes.items()},
                {n: tuple(s) for n, s in now.items()},
            )
            self._known_shapes.append(shapes)

    def _trained_flow(self, *args, **kwargs) -> Flow:
        if self.prototype_trace is None:
            if not args and not kwargs:
                raise RuntimeError("this AutoFlow has not seen its model yet: call guide.setup(*args) first")
            self.setup(*args, **kwargs)
        return self.flow

    def get_base_dist(self):
        """The standard normal that the flow starts from."""
        return standard_normal(self._trained_flow()._zeros)

    def get_transform(self, *args, **kwargs) -> FlowTransform:
        """The transform from the base distribution to the unconstrained latents."""
        return self._trained_flow(*args, **kwargs).transform

    def get_posterior(self, *args, **kwargs) -> FlowDistribution:
        """The distribution of the unconstrained latents, one vector for all sites."""
        return self._trained_flow(*args, **kwargs)()

    @torch.no_grad()
    def sample_posterior(self, *args, sample_shape=(), **kwargs) -> dict[str, torch.Tensor]:
        """Draws of all latent sites, each of shape ``sample_shape`` followed by the shape of the site."""
        return self._constrain(self.get_posterior(*args, **kwargs).sample(torch.Size(sample_shape)))

    @torch.no_grad()
    def median(self, *args, **kwargs) -> dict[str, torch.Tensor]:
        """The median of each latent site, from 10,000 draws; see :meth:`quantiles`."""
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(self, quantiles, *args, **kwargs) -> dict[str, torch.Tensor]:
        """Quantiles of each latent site, from 10,000 draws, coordinate by coordinate in unconstrained space.

        Args:
            quantiles: numbers between 0 and 1.

        Returns:
            For each site an array with a leading axis for the quantiles.
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
            total = total + transform.log_abs_det_jacobian(part, values[name]).sum()
        return values, total

    def _parts(self, latent):
        """For each site its name, the transform to its support, and its part of the latents."""
        start, prototype = 0, cast(Any, self.prototype_trace)
        for name, shape in self._unconstrained_shapes.items():
            stop = start + shape.numel()
            part = latent[..., start:stop].reshape(latent.shape[:-1] + shape)
            yield name, biject_to(prototype.nodes[name]["fn"].support), part
            start = stop

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if self.prototype_trace is None and any(name.startswith(prefix) for name in state_dict):
            raise RuntimeError(
                "this AutoFlow has not seen its model yet, so it has no weights to load into: call guide.setup(*args) "
                "first, or save and load with flowppl.save and flowppl.load, which need no model"
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


@torch.no_grad()
def moved_supports(model, args, kwargs) -> list[str]:
    """The names of the latents whose supports differ between two random points, given one subsample of the data."""

    def draw(site):
        if site["fn"].support.is_discrete:
            return site["fn"]()
        return biject_to(site["fn"].support)(unconstrained_zeros(site).uniform_(-1, 1))

    model = InitMessenger(draw)(model)
    moved = []
    with poutine.block(), torch.random.fork_rng(), pyro.validation_enabled(False):
        before: Any = poutine.trace(model).get_trace(*args, **kwargs)
        subsample = {name: site["value"] for name, site in before.nodes.items() if site_is_subsample(site)}
        now: Any = poutine.trace(poutine.condition(model, data=subsample)).get_trace(*args, **kwargs)
        for name, site in before.iter_stochastic_nodes():
            if name not in subsample and not site["fn"].support.is_discrete:
                point = unconstrained_zeros(site).uniform_(-1, 1)
                value, other = (biject_to(trace.nodes[name]["fn"].support)(point) for trace in (before, now))
                if not torch.allclose(value, other, atol=0.0, equal_nan=True):
                    moved.append(name)
    return moved


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
    return tree_map(lambda leaf: getattr(leaf, "shape", None), (args, kwargs))


def _or_origin(init_loc_fn):
    """``init_loc_fn``, or the origin of unconstrained space for an improper prior, of which nothing can be drawn."""

    def init(site):
        try:
            return init_loc_fn(site)
        except NotImplementedError:
            return biject_to(site["fn"].support)(unconstrained_zeros(site))

    return init
