"""Automatic guides for NumPyro."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import UnpackTransform
from numpyro.infer import Predictive
from numpyro.infer.autoguide import AutoContinuous, _ravel_dict, _ravel_dict_with_shape_dict, _unravel_dict
from numpyro.infer.initialization import init_to_median
from numpyro.infer.util import find_valid_initial_params, helpful_support_errors

from flowppl._arrays.tree import Tree
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
from flowppl.numpyro.flow import FlowDistribution, standard_normal
from flowppl.numpyro.target import Target
from flowppl.numpyro.transforms import FlowTransform, init_params
from flowppl.serialization import absent_model


class AutoFlow(AutoContinuous):
    __doc__ = AUTO_FLOW_DOC.format(
        loc_default="numpyro.infer.init_to_median",
        prefix="""
        prefix: the guide's parameters are the site ``{prefix}_flow``.""",
        example="""
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
""",
    )

    # What this relies on in the host's classes beyond their documented methods: `prototype_trace`, `latent_dim`,
    # `_setup_prototype`, `_unpack_latent`, `_postprocess_fn`, `_prototype_frames`, `_prototype_frame_full_sizes`,
    # `_unpack_and_constrain` and `_sample_latent`; and the functions with an underscore imported above.

    def __init__(
        self,
        model,
        flow: FlowChoice = "auto",
        *,
        init: str = "auto",
        init_loc_fn=None,
        init_scale: float | None = None,
        create_plates=None,
        prefix: str = "auto",
    ):
        check_init(init, init_scale)
        super().__init__(model, init_loc_fn=init_loc_fn or init_to_median, create_plates=create_plates, prefix=prefix)
        self.flow_choice = flow
        self.init = init
        self.init_scale = init_scale
        self._has_init_loc = init_loc_fn is not None
        self._known_shapes: list = []
        self._saved_params: Tree | None = None  # of a guide that was loaded from a file

    def setup(self, *args, **kwargs) -> dict[str, Tree]:
        """Look at the model once and create the guide's parameters; the arguments are the model's.

        ``svi.init`` does the same. Call this before where parameters are needed at once, or where ``svi.init`` is
        to run inside ``jax.jit`` for a model whose supports depend on its data.

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
        self._see(trace, needs_args=bool(args or kwargs))
        self._known_shapes.append(jax.tree.map(np.shape, (args, kwargs)))

    def _see(self, trace, *, needs_args):
        """Take over the latents of a model whose sites are ``trace``."""
        latents = {name: site for name, site in trace.items() if "fn" in site}
        flat, shapes = _ravel_dict({name: np.zeros(site["unconstrained_shape"]) for name, site in latents.items()})
        self.bijection = guide_bijection(self.flow_choice, flat.size)
        self.latent_dim = flat.size
        self._unpack_latent = UnpackTransform(partial(_unravel_dict, shape_dict=shapes), _ravel_dict_with_shape_dict)
        self._postprocess_fn = self._constrain
        self._needs_args = needs_args
        self._prototype_frames = {frame.name: frame for site in latents.values() for frame in site["cond_indep_stack"]}
        self._prototype_frame_full_sizes = {name: frame.size for name, frame in self._prototype_frames.items()}
        self.prototype_trace = trace

    def _check_arguments(self, args, kwargs):
        """Raise ValueError if the latents have changed; the model is traced for arguments of new shapes only."""
        shapes = jax.tree.map(np.shape, (args, kwargs))
        if self.model not in (None, absent_model) and shapes not in self._known_shapes:
            now = {n: s["unconstrained_shape"] for n, s in outline_model(self.model, args, kwargs).items() if "fn" in s}
            check_shapes({name: self.prototype_trace[name]["unconstrained_shape"] for name in self._names}, now)
            self._known_shapes.append(shapes)

    @property
    def _keyed_model(self):
        # Sites that a block hides, and plates, ask for a key of their own: no outer handler's may be spent here.
        return handlers.seed(self.model, 0, hide_types=["sample"])

    def _constrain(self, unconstrained):
        return {name: transform(part) for name, transform, part in self._parts(unconstrained)}

    def _constrain_with_log_det(self, unconstrained):
        """The values of all sites, and the log determinant of the map to them, for one draw."""
        values, total = {}, 0.0
        for name, transform, part in self._parts(unconstrained):
            values[name] = transform(part)
            total += transform.log_abs_det_jacobian(part, values[name]).sum()
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
        start_key, flow_key = jax.random.split(rng_key)
        params = init_params(self.bijection, flow_key)
        start = self._search(start_key, args, kwargs)
        if start is not None:
            placed = start_at(
                self.bijection, params, start.loc, start.scale, fixed=True
            )  # in NumPy: nothing to compile
            return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype=float), placed)
        loc, is_valid = self._start_point(start_key, args, kwargs)
        if not _is_traced(is_valid) and not is_valid:
            raise no_start(Target(self, args, kwargs).observed_sites())
        return _start_at(self.bijection, params, loc, (self.init_scale or 0.1) * jnp.ones_like(loc))

    def _search(self, key, args, kwargs) -> Gaussian | None:
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
        with jax.ensure_compile_time_eval():
            target = Target(self, args, kwargs)
            if self.init == "auto" and target.is_random():
                return None
            key = jax.random.key(0) if _is_traced(key) else key
            rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
            points = [np.asarray(self._start_point(key, args, kwargs)[0])] if self._has_init_loc else []
            start = search_start(init, target, self.latent_dim, points, rng)
            if start is None:
                raise no_start(target.observed_sites())
        return start

    def _start_point(self, rng_key, args, kwargs):
        """The point of ``init_loc_fn`` in unconstrained space, and whether the density is finite there."""

        @jax.jit
        def find(key):
            with handlers.block():
                (point, _, _), is_valid = find_valid_initial_params(
                    key,
                    self._keyed_model,
                    init_strategy=self.init_loc_fn,
                    model_args=args,
                    model_kwargs=kwargs,
                    prototype_params=self._unpack_latent(jnp.zeros(self.latent_dim)),
                )
            return jnp.concatenate([jnp.ravel(point[name]) for name in self._names]), is_valid

        return find(rng_key)

    def _get_posterior(self, *args, **kwargs) -> FlowDistribution:
        params = numpyro.param(f"{self.prefix}_flow", lambda key: self._start_params(key, args, kwargs))
        return FlowDistribution(self.get_base_dist(), FlowTransform(self.bijection, params))

    def _sample_latent(self, *args, sample_shape=(), **kwargs):
        self._check_arguments(args, kwargs)
        posterior = self._get_posterior(*args, **kwargs)
        return numpyro.sample(f"_{self.prefix}_latent", posterior.expand_by(sample_shape), infer={"is_auxiliary": True})

    def get_base_dist(self):
        """The standard normal that the flow starts from."""
        self._check_setup()
        return standard_normal((self.latent_dim,))

    def get_transform(self, params) -> FlowTransform:
        """The transform from the base distribution to the unconstrained latents."""
        self._check_setup()
        name = f"{self.prefix}_flow"
        if name not in params:
            raise KeyError(
                f"params has no {name!r}, the parameters of this guide; it has {', '.join(params) or 'nothing'}"
            )
        return FlowTransform(self.bijection, params[name])

    def get_posterior(self, params) -> FlowDistribution:
        """The distribution of the unconstrained latents, one vector for all sites."""
        return FlowDistribution(self.get_base_dist(), self.get_transform(params))

    def sample_posterior(self, rng_key, params, *args, sample_shape=(), **kwargs) -> dict[str, jax.Array]:
        """Draws of all latent sites, each of shape ``sample_shape`` followed by the shape of the site.

        Deterministic sites are there too if the model's arguments are given, or if it has none.
        """
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

    def median(self, params, *, rng_key=None) -> dict[str, jax.Array]:
        """The median of each latent site, from 10,000 draws; see :meth:`quantiles`."""
        return {name: value[0] for name, value in self.quantiles(params, [0.5], rng_key=rng_key).items()}

    def quantiles(self, params, quantiles, *, rng_key=None) -> dict[str, jax.Array]:
        """Quantiles of each latent site, from 10,000 draws, coordinate by coordinate in unconstrained space.

        Args:
            params: the guide's parameters.
            quantiles: numbers between 0 and 1.
            rng_key: the key of the draws; ``None`` is key 0.

        Returns:
            For each site an array with a leading axis for the quantiles.
        """
        key = jax.random.key(0) if rng_key is None else rng_key
        draws = self.get_posterior(params).sample(key, (NUM_DRAWS,))
        return self._unpack_and_constrain(jnp.quantile(draws, jnp.asarray(check_levels(quantiles)), axis=0), params)

    def _check_setup(self):
        if self.prototype_trace is None:
            raise RuntimeError("this AutoFlow has not seen its model yet: call guide.setup(*args) first")


def outline_model(model, args, kwargs) -> dict[str, dict]:
    """The sites of the model without their values.

    The model is traced, not run, with abstract latents: so a support that depends on one of them can be told.
    """
    outlines = {}

    def outline(probe):
        def abstract_value(site):
            if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
                return None
            with helpful_support_errors(site):
                transform = biject_to(site["fn"].support)
            shape = transform.inverse_shape(site["fn"].shape(site["kwargs"]["sample_shape"]))
            return transform(jnp.zeros(shape) + probe)

        # What depends on neither latents nor traced data, as most supports, becomes a value even here.
        with jax.ensure_compile_time_eval(), handlers.block():
            outlined = handlers.substitute(handlers.seed(model, 0), substitute_fn=abstract_value)
            for name, site in handlers.trace(outlined).get_trace(*args, **kwargs).items():
                outlines[name] = {
                    "name": name,
                    "type": site["type"],
                    "is_observed": site.get("is_observed", False),
                    "cond_indep_stack": list(site.get("cond_indep_stack", ())),
                    "is_scaled": site.get("scale") is not None,
                    "args": site["args"] if site["type"] == "plate" else (),
                }
                if site["type"] == "sample" and not site["is_observed"]:
                    support, shape = site["fn"].support, jnp.shape(site["value"])
                    outlines[name]["fn"] = SimpleNamespace(support=support, event_dim=site["fn"].event_dim)
                    if not support.is_discrete:
                        outlines[name]["unconstrained_shape"] = biject_to(support).inverse_shape(shape)

    jax.eval_shape(outline, 0.0)
    return outlines


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


@partial(jax.jit, static_argnums=0)
def _start_at(bijection, params, loc, scale):
    return start_at(bijection, params, loc, scale, fixed=False)


def _is_traced(tree) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
