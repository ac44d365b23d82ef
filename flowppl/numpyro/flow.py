"""Flows as NumPyro distributions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions import Distribution, constraints
from numpyro.distributions.transforms import Transform

from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, check_standard_base
from flowppl.bijections.reversible import round_trip_error
from flowppl.inference.latent_space import check_first_data, tempered
from flowppl.numpyro._host import Tracer, validate_sample
from flowppl.numpyro.transforms import FlowTransform, apply_direction, check_key, default_dtype, init_params


class FlowDistribution(dist.TransformedDistribution):
    """The distribution of ``transform(x)``, x being drawn from a base distribution.

    A sample with its density costs one pass of the flow, and so does the density of fresh data.

    The density of a value is 0, its logarithm minus infinity, where the flow takes it outside of the support of the
    base distribution, or where it lies outside of the flow's own; NumPyro's validation warns in the latter case.

    Args:
        base_distribution: the distribution of x; its event shape, or the end of its batch shape, is that of the flow.
        transform: the flow, given its context if it takes one.

    Raises:
        ValueError: if the base distribution does not fit the flow, or the flow lacks its context.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> import numpyro.distributions as dist
        >>> from flowppl.numpyro import FlowDistribution, FlowTransform
        >>> transform = FlowTransform.init(jax.random.key(0), fp.realnvp(2))
        >>> flow = FlowDistribution(dist.Normal(jnp.zeros(2), 1.0), transform)
        >>> flow.log_prob(flow.sample(jax.random.key(1), (5,))).shape
        (5,)
    """

    pytree_data_fields = ()

    def __init__(
        self, base_distribution: Distribution, transform: FlowTransform, *, validate_args: bool | None = None
    ) -> None:
        bijection = transform.bijection
        shape = base_distribution.shape()
        if shape[len(shape) - len(bijection.x_shape) :] != bijection.x_shape:
            raise ValueError(
                f"the base distribution must have events of shape {bijection.x_shape}, got batch shape "
                f"{base_distribution.batch_shape} and event shape {base_distribution.event_shape}"
            )
        if is_real(base_distribution.support):
            check_standard_base(bijection)
        if bijection.context_dim and transform.context is None:
            raise ValueError(f"this flow needs a context of size {bijection.context_dim}: call flow(context)")
        super().__init__(base_distribution, [transform], validate_args=validate_args)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = (), temperature: ArrayLike = 1.0) -> jax.Array:
        """Draws, as ``Flow.sample`` gives them."""
        check_key("flow().sample", key, "key")
        if isinstance(temperature, float | int) and temperature == 1:
            return super().sample(key, sample_shape)
        x = self.base_dist.sample(key, sample_shape)
        return self.transforms[0](tempered(x, self.base_dist.mean, temperature))

    @validate_sample
    def log_prob(self, value: jax.Array, intermediates: Any = None) -> jax.Array:
        # NumPyro takes a flow over a flow apart: into the base of the inner one, and the transforms of both.
        if intermediates is not None:
            return self.base_dist.log_prob(intermediates[0][0]) - sum(log_det for _, log_det in intermediates)
        x, total = value, 0.0
        for transform in reversed(self.transforms):
            x, log_det = transform.inverse_and_log_det(x)
            total = total + log_det
        return log_prob_at(self.base_dist, self.transforms[-1].bijection, value, x, total)


def log_prob_at(
    base: Distribution, bijection: Bijection, value: jax.Array, x: jax.Array, log_det: jax.Array | float
) -> jax.Array:
    """The log density of a flow at values, which it takes to ``x``: minus infinity outside of its support."""
    log_prob = _log_prob_within(base, x) + log_det
    low, high = bijection.y_support
    if (low, high) == REAL_LINE:
        return log_prob
    outside = (value < low) | (value > high)
    outside = jnp.any(outside, axis=tuple(range(outside.ndim - len(bijection.y_shape), outside.ndim)))
    return jnp.where(outside, -jnp.inf, log_prob)


def is_real(support: Any) -> bool:
    """Whether a constraint, or that of each entry, is all real numbers."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support is constraints.real


def _log_prob_within(base: Distribution, x: jax.Array) -> jax.Array:
    """The log density of ``base`` at any x: minus infinity outside of its support, with derivatives of 0."""
    support: Any = base.support
    if is_real(support):
        return base.log_prob(x)
    inside = support(x)
    is_event_inside = inside.reshape(*inside.shape, *(1,) * (x.ndim - inside.ndim))
    within = jnp.where(is_event_inside, x, support.feasible_like(x))
    return jnp.where(inside, base.log_prob(within), -jnp.inf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Flow:
    """A bijection, its weights and a base distribution; ``flow()`` or ``flow(context)`` is a distribution.

    It is a pytree: the weights (and the parameters of the base) are its leaves. A flow without a context also has
    :meth:`log_prob`, :meth:`sample` and :meth:`rsample` itself.

    Args:
        bijection: any :class:`flowppl.Bijection`, or a :class:`FlowTransform`, such as
            ``flowppl.numpyro.realnvp(key, 2)``, which brings its weights.
        params: the weights of a bijection; :meth:`init` draws them.
        base: the base distribution; ``None`` is the standard normal.

    Raises:
        TypeError: if they are something else, or the weights are missing.
        ValueError: from a call, if the base does not fit the flow, or a context is missing or of another size.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Flow
        >>> flow = Flow.init(jax.random.key(0), fp.maf(3))
        >>> flow().log_prob(jnp.zeros((5, 3))).shape
        (5,)
        >>> conditional = Flow.init(jax.random.key(0), fp.maf(3, context_dim=2))
        >>> conditional(jnp.zeros((5, 2))).sample(jax.random.key(1)).shape
        (5, 3)
    """

    bijection: Bijection = dataclasses.field(metadata={"static": True})
    params: Tree
    base: Any = None

    def __init__(
        self, bijection: Bijection | FlowTransform, params: Tree | None = None, base: Distribution | None = None
    ) -> None:
        if isinstance(bijection, FlowTransform):
            if params is not None:
                raise TypeError("Flow: a FlowTransform brings its weights; leave params out, or give its bijection")
            if bijection.context is not None:
                raise ValueError(
                    "this transform stands at a context already; give it as it is, and the context to the flow"
                )
            params = bijection.params
            bijection = bijection.bijection
        check_flow_bijection(bijection)
        if params is None:
            raise TypeError("Flow: params is missing; draw the weights by Flow.init(key, bijection)")
        if isinstance(base, str | type | Bijection | Transform):
            what = f"the class {base.__name__}" if isinstance(base, type) else repr(base)[:80]
            raise TypeError(
                "Flow: base must be a distribution of NumPyro, such as Normal(jnp.zeros(2), 1.0).to_event(1), or None "
                f"for the standard normal, got {what}"
            )
        for name, value in (("bijection", bijection), ("params", params), ("base", base)):
            object.__setattr__(self, name, value)

    @classmethod
    def init(cls, key: jax.Array, bijection: Bijection, base: Distribution | None = None) -> Flow:
        """A flow with first weights drawn by ``key``."""
        check_key("Flow.init", key, "key")
        check_flow_bijection(bijection)
        return cls(bijection, init_params(bijection, key), base)

    @property
    def transform(self) -> FlowTransform:
        """The transform from the base to the data side."""
        return FlowTransform(self.bijection, self.params)

    @property
    def _of_x(self) -> Bijection:
        """What tells the shape of x, and its context."""
        return self.bijection

    @property
    def _params(self) -> Tree:
        """What is trained."""
        return self.params

    def _with_params(self, params: Tree) -> Flow:
        return dataclasses.replace(self, params=params)

    def init_from(self, x: jax.Array, context: jax.Array | None = None) -> Flow:
        """This flow with what starts from data, such as :class:`flowppl.ActNorm`, set from the batch ``x``."""
        x = jnp.asarray(x)
        if not isinstance(x, Tracer):  # whose values are not known yet
            check_first_data(self.bijection, x)
        new = apply_direction(self.bijection, "init_from", self.params, x, context)
        return dataclasses.replace(self, params=new)

    def round_trip_error(self, x: jax.Array, context: jax.Array | None = None) -> float:
        r"""How far data are from themselves after the way to the noise and back, :math:`y' = f(f^{-1}(y))`.

        Where the flow is :func:`flowppl.reversible`, its derivatives are off by about as much, relative to them.

        Args:
            x: data y, of shape ``(..., *bijection.y_shape)``.
            context: their context, if the flow takes one.

        Returns:
            The largest of :math:`|y' - y| / (1 + |y|)` over all numbers of the data.

        Example:
            >>> import jax, jax.numpy as jnp, flowppl as fp
            >>> from flowppl.numpyro import Flow
            >>> Flow.init(jax.random.key(0), fp.realnvp(2)).round_trip_error(jnp.ones((5, 2))) < 1e-5
            True
        """
        transform = self.transform if context is None else self.transform._at(context)
        return round_trip_error(transform, jnp.asarray(x))

    def __call__(self, context: jax.Array | None = None) -> FlowDistribution:
        """The distribution, at a context if the flow takes one.

        Args:
            context: an array of shape ``(*batch, context_dim)``: one context for each event, or one of shape
                ``(context_dim,)`` for all. ``None`` for a flow without a context.

        Returns:
            A distribution of events of shape ``bijection.y_shape``, D numbers for a flow of D coordinates, and batch
            shape ``batch``. So ``flow().log_prob(x)`` of x of shape ``(n, D)`` has the shape ``(n,)``, and
            ``flow().sample(key, (n,))`` is of shape ``(n, D)``; ``flow(context).sample(key)`` with contexts of shape
            ``(n, context_dim)`` is one event for each, of shape ``(n, D)``, and ``flow(context).sample(key, (s,))``
            is of shape ``(s, n, D)``.
        """
        base = self.base
        if base is None:
            base = standard_normal(self.bijection.x_shape)
        transform = self.transform if context is None else self.transform._at(context)
        return FlowDistribution(base, transform)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """``flow().log_prob(value)``: the log density of each event, for a flow without a context."""
        return self._unconditional("log_prob").log_prob(value)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = (), temperature: ArrayLike = 1.0) -> jax.Array:
        r"""``flow().sample(key, sample_shape)``: draws, for a flow without a context.

        At a ``temperature`` other than 1 the noise is drawn together towards its mean, or spread: :math:`y = f(m + T
        (z - m))` with noise z of mean m. Below 1, 0.7 for images, draws are more probable and less varied; at 0 all are
        the image of the mean. They are not draws of the flow any more (Kingma, Dhariwal 2018, arXiv 1807.03039).
        """
        check_key("flow.sample", key, "key")
        return self._unconditional("sample").sample(key, sample_shape, temperature)

    def rsample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """``flow().rsample(key, sample_shape)``: as :meth:`sample`, whose draws have gradients too."""
        check_key("flow.rsample", key, "key")
        return self._unconditional("rsample").rsample(key, sample_shape)

    def _unconditional(self, name: str) -> FlowDistribution:
        if self.bijection.context_dim:
            raise ValueError(
                f"this flow depends on a context of size {self.bijection.context_dim}: write flow(context).{name}(...)"
            )
        return self()


def check_flow_bijection(value: Any) -> None:
    """Raise TypeError unless ``value`` is a bijection; a transform of the host needs a :class:`Wrap`."""
    if isinstance(value, Transform) and not isinstance(value, FlowTransform):
        raise TypeError(
            f"{type(value).__name__} is a transform of NumPyro: write Wrap(transform, shape), with the shape of one "
            "event, in its place"
        )
    check_bijection(value)


def standard_normal(shape: tuple[int, ...]) -> Distribution:
    """Independent standard normals with events of this shape."""
    # Of NumPy: outside of jit each array of JAX, and each check of one, would be a program.
    dtype = default_dtype()
    return dist.Normal(np.zeros(shape, dtype), np.ones(shape, dtype)).to_event(len(shape))


def flow(name: str, bijection: Bijection, base: Distribution | None = None) -> Flow:
    """A :class:`Flow` inside a model or guide, its weights one trained ``param`` site.

    Args:
        name: the name of the site.
        bijection: any :class:`flowppl.Bijection`.
        base: the base distribution; ``None`` is the standard normal.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, flowppl as fp
        >>> from flowppl.numpyro import flow
        >>> def model(x):
        ...     prior = flow("prior", fp.realnvp(2))
        ...     with numpyro.plate("data", len(x)):
        ...         numpyro.sample("x", prior(), obs=x)
        >>> trace = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(jnp.zeros((4, 2)))
        >>> list(trace)
        ['prior', 'data', 'x']
    """
    check_flow_bijection(bijection)
    return Flow(bijection, numpyro.param(name, lambda key: init_params(bijection, key)), base)
