"""Automatic guides for NumPyro."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Sequence
from functools import cache, cached_property, partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import UnpackTransform
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoContinuous
from numpyro.infer.initialization import init_to_median
from numpyro.infer.util import find_valid_initial_params, log_density

from flowppl._arrays.tree import Tree, merge
from flowppl.inference.arguments import with_options
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
    over_events,
)
from flowppl.inference.mixture import is_mixture, stack_parts, stacked_part
from flowppl.inference.modes import Modes, find_modes, single
from flowppl.inference.starts import Gaussian
from flowppl.numpyro._host import Tracer, helpful_support_errors, jit, sum_rightmost, trace_state_clean
from flowppl.numpyro.enumeration import enumerated, is_summed_out
from flowppl.numpyro.flow import FlowDistribution, standard_normal
from flowppl.numpyro.mixture import FlowMixture
from flowppl.numpyro.target import Target
from flowppl.numpyro.transforms import (
    FlowTransform,
    check_key,
    constants_of,
    default_dtype,
    first_params,
    init_params,
    numpy_rng,
    split_key,
)
from flowppl.serialization import absent_model


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
        model: the model, a function with ``numpyro.sample`` sites.
        flow: ``"auto"``, a name of :func:`flowppl.available_flows`, a function from the dimension to a bijection, such
            as :func:`flowppl.realnvp`, or a bijection of the right dimension. ``"auto"`` is :func:`flowppl.realnvp`,
            whose two directions are both fast, bounded and :class:`flowppl.Damped` so that plain SVI stays finite; for
            one dimension, a spline.
        init: how the start is found. ``"newton"`` takes the Gaussian of the highest ELBO that it meets on several
            Newton paths, with the Hessian of the model (above 256 dimensions, on one that follows quasi-Newton paths,
            and improves it by the gradient at its draws); ``"diagonal"`` one with independent coordinates on
            quasi-Newton paths, without a Hessian; ``"point"`` a normal of standard deviation ``init_scale`` at the
            point of ``init_loc_fn``. ``"auto"`` is the first up to 2,048 dimensions and the second above; it is the
            third if ``init_scale`` is given, if the density is random, or if the data are
            traced by ``jax.jit``.
        init_loc_fn: the point to start from, site by site; for ``"point"`` it is
            ``numpyro.infer.init_to_median`` unless given. If given, the searches start from it too, beside
            random points.
        init_scale: the standard deviation at a point, in unconstrained space; 0.1 unless given.
        num_modes: how many modes of the posterior the guide holds: 1 for the one that the search of the start ends in;
            ``"auto"`` for all that a wider search finds, see :mod:`flowppl.inference.modes`; a number for so many of
            them, the heaviest, at the most. For K of them, each in a Gaussian of its own at first, the guide is a
            mixture of K flows, and has no :meth:`get_transform`. A search needs ``init="newton"`` or ``"diagonal"``,
            or an ``"auto"`` that means one of them; from a point, and for batches of the data, there is one mode.
            ``SVI`` trains the K flows, but not the weights of the mixture, to which no gradient leads: they stay those
            of the search. :func:`fit` trains both.
        create_plates: as for other guides of NumPyro.
        prefix: the guide's parameters are the site ``{prefix}_flow``.
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
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from flowppl.numpyro import AutoFlow
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, sigma), obs=y)
        >>> guide = AutoFlow(model)
        >>> svi = SVI(model, guide, numpyro.optim.ClippedAdam(5e-3), Trace_ELBO())
        >>> result = svi.run(jax.random.key(0), 3, jnp.linspace(-1.0, 3.0, 10), progress_bar=False)
        >>> guide.sample_posterior(jax.random.key(1), result.params, sample_shape=(100,))["mu"].shape
        (100,)
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
        prefix: str = "auto",
        **options: Any,
    ) -> None:
        check_model("AutoFlow", model)
        check_num_modes("AutoFlow", num_modes)
        check_init(init, init_scale, num_modes)
        super().__init__(model, init_loc_fn=init_loc_fn or init_to_median, create_plates=create_plates, prefix=prefix)
        self.flow_choice = with_options(flow, options, AutoFlow.__init__)
        self.init = init
        self.init_scale = init_scale
        self.num_modes = num_modes
        self._has_init_loc = init_loc_fn is not None
        self._known_shapes: list = []
        self._saved_params: Tree | None = None  # of a guide that was loaded from a file

    def setup(self, *args: Any, **kwargs: Any) -> dict[str, Tree]:
        """Look at the model once and create the guide's parameters.

        ``svi.init`` does the same. Call this before where parameters are needed at once, or where ``svi.init`` is
        to run inside ``jax.jit`` for a model whose supports or masks depend on its data.

        Args:
            args: the model's arguments; so are further keyword arguments.

        Returns:
            The first parameters, as ``svi.get_params`` gives them, drawn with key 0.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        return {f"{self.prefix}_flow": self._start_params(jax.random.key(0), args, kwargs)}

    def _setup_prototype(self, *args, **kwargs):
        # Only names, shapes and supports stay on the guide, no value of the model.
        trace = outline_model(self.model, args, kwargs)
        latents = {name: site for name, site in trace.items() if "fn" in site}
        sizes = {name: site["args"][0] for name, site in trace.items() if site["type"] == "plate"}
        for site in latents.values():
            for frame in site["cond_indep_stack"]:
                # A block may hide a plate, but not that what stands in a subsample is scaled.
                if frame.name not in sizes and site["is_scaled"]:
                    raise ValueError(
                        f"AutoFlow cannot see whether the plate {frame.name} is subsampled: expose it in block, too"
                    )
                sizes.setdefault(frame.name, frame.size)
        check_latents(
            Latent(
                name,
                site["fn"].support.is_discrete,
                tuple((frame.name, frame.size, sizes[frame.name]) for frame in site["cond_indep_stack"]),
            )
            for name, site in latents.items()
        )
        check_fixed_supports(trace, args, kwargs)
        self._find_masks(trace, args, kwargs)
        self._see(trace, needs_args=bool(args or kwargs))
        self._known_shapes.append(_shapes(args, kwargs))

    def _see(self, trace, *, needs_args):
        """Take over the latents of a model whose sites are ``trace``."""
        latents = {name: site for name, site in trace.items() if "fn" in site}
        shapes = {name: site["unconstrained_shape"] for name, site in latents.items()}
        kept = [_kept(site) for site in latents.values()]
        flat = np.concatenate(kept)
        dim = int(flat.sum())
        if not dim:
            check_latents([])
        # Where all coordinates stand in the vector of those that the guide has.
        places = None if flat.all() else np.where(flat, np.cumsum(flat) - 1, dim)
        self.bijection = guide_bijection(self.flow_choice, dim)
        self.latent_dim = dim
        self._pack = partial(_pack, shapes, places)
        self._unpack_latent = UnpackTransform(partial(_unpack, shapes, places), self._pack)
        self._postprocess_fn = self._constrain
        self._needs_args = needs_args
        self._prototype_frames = {frame.name: frame for site in latents.values() for frame in site["cond_indep_stack"]}
        self._prototype_frame_full_sizes = {name: frame.size for name, frame in self._prototype_frames.items()}
        self.prototype_trace = trace

    def _find_masks(self, trace, args, kwargs):
        """Leave on the latents of ``trace`` the masks of members on which the density depends in no other way."""
        masked = {name: site["mask"] for name, site in trace.items() if site.get("mask") is not None}
        if not masked:
            return
        if _is_traced(list(masked.values())) or _is_traced((args, kwargs)):
            raise ValueError(
                f"the model masks members of the sites {', '.join(masked)}, which AutoFlow cannot look at under a jax "
                "trace: call guide.setup(*args) once, outside jit and vmap"
            )
        shapes = {name: site["unconstrained_shape"] for name, site in trace.items() if "fn" in site}

        @jax.jit
        def density(points):
            values = {name: biject_to(trace[name]["fn"].support)(point) for name, point in points.items()}
            with handlers.block():
                return log_density(self._keyed_model, args, kwargs, values)[0]

        rng = np.random.default_rng(0)
        with jax.ensure_compile_time_eval(), numpyro.validation_enabled(False):
            points = {name: jnp.asarray(rng.uniform(-1, 1, shape), dtype=float) for name, shape in shapes.items()}
            for name in masked:
                inside = _kept(trace[name]).reshape(shapes[name])
                other = jnp.where(inside, points[name], rng.uniform(-1, 1, shapes[name]))
                if not np.array_equal(density(points), density(points | {name: other})):
                    trace[name]["mask"] = None  # what is masked has a density by other means

    def _check_arguments(self, args, kwargs):
        """Raise ValueError if the latents have changed; the model is traced for arguments of new shapes only.

        A mask may change without a change of shape.
        """
        shapes = _shapes(args, kwargs)
        masks = {name: mask for name in self._names if (mask := self.prototype_trace[name].get("mask")) is not None}
        if self.model in (None, absent_model) or (shapes in self._known_shapes and not masks):
            return
        sites = outline_model(self.model, args, kwargs, self._names)
        now = {name: site["unconstrained_shape"] for name, site in sites.items() if "unconstrained_shape" in site}
        check_shapes({name: self.prototype_trace[name]["unconstrained_shape"] for name in self._names}, now)
        check_masks(
            name
            for name, mask in masks.items()
            if not _is_traced(sites[name]["mask"]) and not np.array_equal(sites[name]["mask"], mask)
        )
        self._known_shapes.append(shapes)

    @property
    def _keyed_model(self):
        # Sites that a block hides, and plates, ask for a key of their own: no outer handler's may be spent here.
        return handlers.seed(self.model, 0, hide_types=["sample"])

    def _constrain(self, unconstrained):
        return {name: transform(part) for name, transform, part in self._parts(unconstrained)}

    @cached_property
    def _constrained(self):
        """Gives the values of all sites for rows of unconstrained latents."""
        return jit(jax.vmap(lambda z: self._constrain(self._unpack_latent(z))), once=True)

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name != "_constrained"}

    def _constrain_with_log_det(self, unconstrained):
        """The values of all sites, and the log determinant of the map to them, for one draw."""
        values, total = {}, 0.0
        for name, transform, part in self._parts(unconstrained):
            values[name] = transform(part)
            total += _masked(self.prototype_trace[name], transform.log_abs_det_jacobian(part, values[name])).sum()
        return values, total

    def _parts(self, unconstrained):
        """For each site its name, the transform to its support, and its unconstrained value."""
        for name in self._names:
            yield name, biject_to(self.prototype_trace[name]["fn"].support), unconstrained[name]

    @property
    def _names(self):
        return [name for name, site in self.prototype_trace.items() if "fn" in site]

    def _start_params(self, rng_key, args, kwargs) -> Tree:
        """The first parameters: a pure function of the key and the model's arguments."""
        if self._saved_params is not None:
            return self._saved_params
        start_key, flow_key = _split(rng_key)
        target = Target(self, args, kwargs)
        start = self._search(start_key, target, args, kwargs)
        if start is None:
            return self._params_at_point(start_key, flow_key, args, kwargs)
        if self.num_modes == 1 or target.is_random():
            return self._params_at(flow_key, single(start))
        modes = self._modes(start, start_key, target)
        return self._params_at(flow_key, modes.at_most(self.num_modes))

    def _starts(self, keys, target, args, kwargs) -> tuple[Modes | None, list[Tree]]:
        """The modes of the target, whether the guide holds them all or not, and first parameters for several keys."""
        start_key, flow_key = _split(keys[0])
        if self._saved_params is not None:
            modes = search_modes(target, self.latent_dim, numpy_rng(start_key))
            return modes, [self._saved_params for _ in keys]
        start = self._search(start_key, target, args, kwargs)
        if start is None:
            return None, [self._start_params(key, args, kwargs) for key in keys]
        # Of a density that is drawn anew each time no search tells the modes.
        modes = None if target.is_random() else self._modes(start, start_key, target)
        held = single(start) if self.num_modes == 1 or modes is None else modes.at_most(self.num_modes)
        params = [self._params_at(flow_key, held)]
        for key in keys[1:]:  # guides of one mode have a start each
            start_key, flow_key = _split(key)
            own = self._search(start_key, target, args, kwargs) if len(held.gaussians) == 1 else None
            params.append(self._params_at(flow_key, held if own is None else single(own)))
        return modes, params

    def _modes(self, start, key, target) -> Modes:
        """What a search from the start finds, outside of whatever transformation this runs in."""
        with contextlib.nullcontext() if trace_state_clean() else jax.ensure_compile_time_eval():
            return find_modes(target, start, numpy_rng(jax.random.key(0) if _is_traced(key) else key))

    def _params_at_point(self, start_key, flow_key, args, kwargs) -> Tree:
        params = self._first_params(flow_key)
        loc, is_valid = self._start_point(start_key, args, kwargs)
        if not _is_traced(is_valid) and not is_valid:
            raise no_start(Target(self, args, kwargs).observed_sites())
        return _start_at(self.bijection, params, loc, (self.init_scale or 0.1) * jnp.ones_like(loc))

    def _params_at(self, flow_key, modes: Modes) -> Tree:
        """First parameters with a part at each mode, in NumPy unless they are traced: nothing to compile."""
        first = self._first_params(flow_key)
        parts = [start_at(self.bijection, first, each.loc, each.scale, fixed=True) for each in modes.gaussians]
        params = parts[0] if len(parts) == 1 else stack_parts(parts, modes.log_weights)
        if _is_traced(first):
            return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=float), params)
        return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf, dtype=default_dtype())), params)

    def _first_params(self, key) -> Tree:
        return init_params(self.bijection, key) if _is_traced(key) else first_params(self.bijection, numpy_rng(key))

    def _search(self, key, target, args, kwargs) -> Gaussian | None:
        """The best Gaussian of a search from several points; ``None`` if the guide starts at a point."""
        init = choose_init(self.init, self.latent_dim, self.init_scale)
        if init == "point":
            return None
        if _is_traced((args, kwargs)):
            if self.init == "auto":
                return None
            raise ValueError(
                f"AutoFlow: init={init!r} searches with the values of the model's arguments, but these are under a jax "
                "trace; call svi.init outside jit and vmap, close over the arguments there instead of passing them, "
                'or take init="point"'
            )
        # The search runs outside of whatever transformation this runs in; under one the key has no value to use.
        with contextlib.nullcontext() if trace_state_clean() else jax.ensure_compile_time_eval():
            rng = numpy_rng(jax.random.key(0) if _is_traced(key) else key)
            points = [np.asarray(self._start_point(key, args, kwargs)[0])] if self._has_init_loc else []
            if self.init == "auto" and target.is_random():
                num = target.num_batches()
                return search_average(init, target, num, self.latent_dim, points, rng) if num > 1 else None
            start = search_start(init, target, self.latent_dim, points, rng)
            if start is None:
                raise no_start(target.observed_sites())
        return start

    def _start_point(self, rng_key, args, kwargs):
        """The point of ``init_loc_fn`` in unconstrained space, and whether the density is finite there."""

        nesting = Target(self, args, kwargs)._nesting
        model = self._keyed_model if nesting is None else enumerated(self._keyed_model, nesting)

        @jax.jit
        def find(key):
            with handlers.block():
                (point, _, _), is_valid = find_valid_initial_params(
                    key,
                    model,
                    enum=nesting is not None,
                    init_strategy=self.init_loc_fn,
                    model_args=args,
                    model_kwargs=kwargs,
                    prototype_params=self._unpack_latent(jnp.zeros(self.latent_dim)),
                )
            return self._pack(point), is_valid

        return find(rng_key)

    def _get_posterior(self, *args, **kwargs) -> FlowDistribution | FlowMixture:
        params = numpyro.param(f"{self.prefix}_flow", lambda key: self._start_params(key, args, kwargs))
        # Outside of jit a guide is run once, by `svi.init`, which shall not wait for a thorough compilation.
        if trace_state_clean() and not is_mixture(params):
            return FlowDistribution(self.get_base_dist(), _SoonCompiled(self.bijection, params))
        return self._posterior(params)

    def _posterior(self, params) -> FlowDistribution | FlowMixture:
        if is_mixture(params):
            return FlowMixture(self.bijection, stacked_part(params), params["log_weights"])
        return FlowDistribution(self.get_base_dist(), FlowTransform(self.bijection, params))

    def _sample_latent(self, *args, sample_shape=(), **kwargs):
        self._check_arguments(args, kwargs)
        posterior = self._get_posterior(*args, **kwargs)
        return numpyro.sample(f"_{self.prefix}_latent", posterior.expand_by(sample_shape), infer={"is_auxiliary": True})

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
        """Draw all latent sites, inside the plates of the model.

        Args:
            args: the model's arguments; so are further keyword arguments.

        Returns:
            The value of each latent site.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        parts = self._unpack_latent(self._sample_latent(*args, **kwargs))
        plates = self._create_plates(*args, **kwargs)
        return {name: sample_constrained(self.prototype_trace[name], parts[name], plates) for name in self._names}

    def get_base_dist(self) -> dist.Distribution:
        """The standard normal that the flow starts from.

        Returns:
            A distribution with events of shape ``(D,)``.
        """
        self._check_setup()
        return standard_normal((self.latent_dim,))

    def get_transform(self, params: dict[str, Any]) -> FlowTransform:
        """The transform from the base distribution to the unconstrained latents.

        Args:
            params: the guide's parameters, ``result.params`` of ``svi.run`` or ``svi.get_params(state)``.

        Returns:
            A transform of vectors of shape ``(D,)``.

        Raises:
            ValueError: for a guide of several modes, which has a transform for each.
        """
        own = self._own_params(params)
        if is_mixture(own):
            raise no_transform_of_parts(len(own["log_weights"]))
        return FlowTransform(self.bijection, own)

    def _transforms(self, params) -> list[FlowTransform]:
        """The transform of each mode."""
        own = self._own_params(params)
        if not is_mixture(own):
            return [FlowTransform(self.bijection, own)]
        stacked, num = stacked_part(own), len(own["log_weights"])
        parts = [jax.tree.map(lambda leaf, k=k: leaf[k], stacked) for k in range(num)]
        return [FlowTransform(self.bijection, part) for part in parts]

    def _own_params(self, params) -> Tree:
        self._check_setup()
        check_params("AutoFlow", params)
        name = f"{self.prefix}_flow"
        if name not in params:
            raise KeyError(
                f"params has no {name!r}, the parameters of this guide; it has {', '.join(params) or 'nothing'}"
            )
        return params[name]

    def get_posterior(self, params: dict[str, Any]) -> FlowDistribution | FlowMixture:
        """The distribution of the unconstrained latents, one vector for all sites.

        Args:
            params: as in :meth:`get_transform`.

        Returns:
            A distribution with events of shape ``(D,)``.
        """
        return self._posterior(self._own_params(params))

    def sample_posterior(
        self, rng_key: jax.Array, params: dict[str, Any], *args: Any, sample_shape: Sequence[int] = (), **kwargs: Any
    ) -> dict[str, jax.Array]:
        """Draws of all latent sites.

        Deterministic sites are there too if the model's arguments are given, or if it has none.

        Args:
            rng_key: the key of the draws.
            params: as in :meth:`get_transform`.
            args: the model's arguments; so are further keyword arguments.
            sample_shape: how many draws, such as ``(1000,)``.

        Returns:
            For each site an array of shape ``sample_shape`` followed by the shape of the site.
        """
        check_key("sample_posterior", rng_key)
        sample_shape = tuple(sample_shape)
        draws = self.get_posterior(params).sample(rng_key, sample_shape)
        sites = self._unpack_and_constrain(draws, params)
        names = [name for name, site in self.prototype_trace.items() if site["type"] == "deterministic"]
        if names and (args or kwargs or not self._needs_args):
            predict = Predictive(
                self.model,
                sites,
                params=params,
                return_sites=names,
                batch_ndims=len(sample_shape),
                infer_discrete=False,
            )
            sites |= predict(rng_key, *args, **kwargs)
        return sites

    def median(self, params: dict[str, Any], *, rng_key: jax.Array | None = None) -> dict[str, jax.Array]:
        """The median of each latent site, from 10,000 draws; see :meth:`quantiles`.

        Args:
            params: as in :meth:`get_transform`.
            rng_key: the key of the draws; ``None`` is key 0.

        Returns:
            For each site an array of its shape.
        """
        return {name: value[0] for name, value in self.quantiles(params, [0.5], rng_key=rng_key).items()}

    def quantiles(
        self, params: dict[str, Any], quantiles: Any, *, rng_key: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Quantiles of each latent site, from 10,000 draws, coordinate by coordinate in unconstrained space.

        Args:
            params: as in :meth:`get_transform`.
            quantiles: a list or array of numbers between 0 and 1.
            rng_key: the key of the draws; ``None`` is key 0.

        Returns:
            For each site an array with a leading axis for the quantiles, followed by the shape of the site.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        check_key("quantiles", key)
        draws = self.get_posterior(params).sample(key, (NUM_DRAWS,))
        return self._unpack_and_constrain(jnp.quantile(draws, jnp.asarray(check_levels(quantiles)), axis=0), params)

    def _check_setup(self):
        if self.prototype_trace is None:
            raise RuntimeError("this AutoFlow has not seen its model yet: call guide.setup(*args) first")


class _SoonCompiled(FlowTransform):
    """A transform whose program is compiled soon rather than well."""

    def forward_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        return _forward()(self.bijection, self.params, x)


@cache
def _forward():
    def forward(bijection, params, x):
        return bijection.forward(merge(params, constants_of(bijection)), x)

    return jit(forward, once=True, static_argnums=0)


def check_params(owner: str, params: Any) -> None:
    """Raise TypeError unless the parameters are a dict."""
    if not isinstance(params, dict):
        raise TypeError(
            f"{owner}: params must be a dict of parameters, result.params of svi.run or svi.get_params(state), got "
            f"{type(params).__name__}"
        )


def sample_constrained(model_site, unconstrained, plates):
    """The guide's site for a latent of the model, inside the plates of the model; members outside a mask are free."""
    fn = model_site["fn"]
    transform = biject_to(fn.support)
    value = transform(unconstrained)
    log_density = -transform.log_abs_det_jacobian(unconstrained, value)
    log_density = sum_rightmost(log_density, jnp.ndim(log_density) - jnp.ndim(value) + fn.event_dim)
    log_density = _masked(model_site, log_density)
    with contextlib.ExitStack() as stack:
        for frame in model_site["cond_indep_stack"]:
            stack.enter_context(plates[frame.name])
        return numpyro.sample(model_site["name"], dist.Delta(value, log_density, event_dim=fn.event_dim))


def member_mask(fn, shape) -> Any:
    """Which members of a latent with values of this shape the model scores; ``None`` if all."""
    mask: Any = None
    while fn is not None:
        own = getattr(fn, "_mask", None)
        if own is not None and own is not True:
            mask = own if mask is None else mask & own
        fn = getattr(fn, "base_dist", None)
    if mask is None:
        return None
    mask = mask if _is_traced(mask) else np.asarray(mask)
    mask = (jnp if _is_traced(mask) else np).broadcast_to(mask, shape)
    return None if not _is_traced(mask) and mask.all() else mask


def _masked(model_site, log_density):
    """The log densities of the members of a site, without those that are not the guide's."""
    mask = model_site.get("mask")
    if mask is None:
        return log_density
    return jnp.where(over_events(mask, jnp.ndim(log_density)), log_density, 0.0)


def _kept(site) -> np.ndarray:
    """Which of the unconstrained coordinates of a latent, flat, the guide has."""
    shape, mask = site["unconstrained_shape"], site.get("mask")
    if mask is None:
        return np.ones(math.prod(shape), dtype=bool)
    return np.broadcast_to(over_events(mask, len(shape)), shape).ravel()


def _unpack(shapes, places, latent):
    """The unconstrained values of the sites, with zeros in the places of what the guide does not have."""
    if places is not None:
        latent = jnp.concatenate([latent, jnp.zeros_like(latent[..., :1])], axis=-1)[..., places]
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = jnp.split(latent, ends[:-1], axis=-1)
    named = zip(shapes.items(), parts, strict=True)
    return {name: part.reshape(part.shape[:-1] + shape) for (name, shape), part in named}


def _pack(shapes, places, values):
    """The vector of the unconstrained values of one draw."""
    flat = jnp.concatenate([jnp.ravel(values[name]) for name in shapes])
    return flat if places is None else flat[places < np.max(places)]


def outline_model(model, args, kwargs, names: Collection[str] | None = None) -> dict[str, dict]:
    """The sites of the model without their values.

    The model is traced, not run, with abstract latents: so a support that depends on one of them can be told. If
    ``names`` are given, other latents are of no concern.
    """
    if trace_state_clean():
        # Each operation on constants would be a program of its own, and few supports and masks need any.
        try:
            outlines = _outline(model, args, kwargs, names, contextlib.nullcontext)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # the model looks at a value
            pass
        else:
            if not any(_is_traced((site["fn"].support, site["mask"])) for site in outlines.values() if "fn" in site):
                return outlines
    return _outline(model, args, kwargs, names, jax.ensure_compile_time_eval)


def _outline(model, args, kwargs, names, on_constants) -> dict[str, dict]:
    outlines = {}

    def concerns(site):
        return names is None or site["name"] in names

    def outline(probe):
        def abstract_value(site):
            if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete or not concerns(site):
                return None
            transform = _transform_of(site)
            shape = transform.inverse_shape(site["fn"].shape(site["kwargs"]["sample_shape"]))
            return transform(jnp.zeros(shape) + probe)

        # Under compile-time evaluation what depends on neither latents nor traced data becomes a value even here.
        with on_constants(), handlers.block():
            outlined = handlers.substitute(handlers.seed(model, 0), substitute_fn=abstract_value)
            trace = handlers.trace(outlined).get_trace(*args, **kwargs)
            check_real((name, getattr(s["value"], "dtype", "")) for name, s in trace.items() if s["type"] == "sample")
            sums_out = any(map(is_summed_out, trace.values()))
            for name, site in trace.items():
                # What is computed from a site summed out is not known from the guide's draws.
                if is_summed_out(site) or (sums_out and site["type"] == "deterministic"):
                    continue
                outlines[name] = {
                    "name": name,
                    "type": site["type"],
                    "is_observed": site.get("is_observed", False),
                    "cond_indep_stack": list(site.get("cond_indep_stack", ())),
                    "is_scaled": site.get("scale") is not None,
                    "args": site["args"] if site["type"] == "plate" else (),
                }
                if site["type"] == "sample" and not site["is_observed"] and concerns(site):
                    support, shape = site["fn"].support, jnp.shape(site["value"])
                    outlines[name]["fn"] = SimpleNamespace(support=support, event_dim=site["fn"].event_dim)
                    outlines[name]["mask"] = member_mask(site["fn"], shape[: len(shape) - site["fn"].event_dim])
                    if not support.is_discrete:
                        outlines[name]["unconstrained_shape"] = biject_to(support).inverse_shape(shape)

    jax.eval_shape(outline, 0.0)
    return outlines


def _transform_of(site):
    try:
        with helpful_support_errors(site):
            return biject_to(site["fn"].support)
    except NotImplementedError as error:
        raise no_transform(site["name"], site["fn"].support) from error


def check_fixed_supports(trace, args, kwargs) -> None:
    """Raise ValueError if in this outline of a model the support of a latent depends on other latents."""
    continuous = {name: site for name, site in trace.items() if "unconstrained_shape" in site}
    moved = [name for name, site in continuous.items() if _is_traced(site["fn"].support)]
    if moved and _is_traced((args, kwargs)):
        raise ValueError(
            f"the supports of these sites depend on other latents or on data under a jax trace: {', '.join(moved)}"
            "; if it is the data, call guide.setup(*args) once with them, outside jit and vmap"
        )
    check_supports(moved)


def _shapes(args, kwargs):
    """What of a model's arguments may decide how many latents it has: shapes, and numbers such as a size."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, int | str) else np.shape(leaf), (args, kwargs))


def _split(key):
    """Two keys made of one."""
    return jax.random.split(key) if _is_traced(key) else split_key(key, 2)


@partial(jax.jit, static_argnums=0)
def _start_at(bijection, params, loc, scale):
    return start_at(bijection, params, loc, scale, fixed=False)


def _is_traced(tree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
