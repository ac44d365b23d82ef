"""Distributions of integers in NumPyro."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions import constraints

from flowppl.bijections.contract import REAL_LINE, Bijection
from flowppl.checks import check_sizes
from flowppl.discrete import dequantization
from flowppl.discrete.levels import are_levels, check_levels
from flowppl.numpyro._host import Tracer
from flowppl.numpyro.flow import Flow
from flowppl.numpyro.transforms import FlowTransform, check_key


class DequantizedDistribution(dist.Distribution):
    """What a :class:`Dequantized` gives: a distribution of integers, whose log probability is an estimate.

    Args:
        dequantized: the flows.
        context: a context, if the flow takes one.
        num_samples: the number of draws of noise for each log probability.
        key: determines the noise of log probabilities; ``None`` if there is none.
    """

    pytree_data_fields = ("dequantized", "context", "key")
    pytree_aux_fields = ("num_samples",)
    has_rsample = False  # type: ignore[assignment]  # the host would take it for granted

    def __init__(
        self,
        dequantized: Dequantized,
        context: jax.Array | None = None,
        num_samples: int = 1,
        key: jax.Array | None = None,
    ) -> None:
        check_sizes("Dequantized", num_samples=num_samples)
        self.dequantized, self.context, self.num_samples, self.key = dequantized, context, num_samples, key
        flow = self._flow
        super().__init__(batch_shape=flow.batch_shape, event_shape=flow.event_shape)

    @property
    def _flow(self):
        return self.dequantized.flow(self.context)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> constraints.Constraint:
        """Integers from 0 to ``levels - 1``."""
        each = constraints.integer_interval(0, self.dequantized.levels - 1)
        return constraints.independent(each, len(self.event_shape))

    def log_prob(self, value: jax.Array) -> jax.Array:
        """An estimate of the log probability of each event, from noise that the key determines."""
        if self.key is None:
            raise ValueError(
                "Dequantized: a log probability needs a key for its noise: give it as dequantized(key=key), or call "
                "dequantized.log_prob(key, x); in a model, put it under handlers.seed"
            )
        value = jnp.asarray(value)
        if not isinstance(value, Tracer):
            check_levels("Dequantized", "the data", np.asarray(value), self.dequantized.levels)
        inside = are_levels(value, self.dequantized.levels, len(self.event_shape))
        log_weights = self.log_weights(self.key, value, self.num_samples)
        return jnp.where(inside, jax.nn.logsumexp(log_weights, 0) - math.log(self.num_samples), -math.inf)

    def log_weights(self, key: jax.Array, value: jax.Array, num_samples: int) -> jax.Array:
        """See :meth:`Dequantized.log_weights`."""
        flow, core = self._flow, self.dequantized._of_x
        shape = value.shape[: value.ndim - len(self.event_shape)]
        if value.shape[len(shape) :] != self.event_shape:
            raise ValueError(
                f"Dequantized: the data must have the shape (..., {', '.join(map(str, self.event_shape))}), got "
                f"{value.shape}"
            )
        dtype = jnp.result_type(*jax.tree.leaves(self.dequantized), jnp.float32)
        shape = (*jnp.broadcast_shapes(shape, self.batch_shape), *self.event_shape)
        x = jnp.broadcast_to(value, shape).astype(dtype)
        if self.dequantized.noise is None:
            u, log_q = jax.random.uniform(key, (num_samples, *shape), dtype), 0.0
        else:
            noise = self.dequantized.noise(core.features(x, self.context))
            u, intermediates = noise.sample_with_intermediates(key, (num_samples,))
            log_q = noise.log_prob(u, intermediates)
        return flow.log_prob(core.continuous(x, u)) - log_q - core.log_cells

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, integers of shape ``(*sample_shape, *batch, *event)``."""
        check_key("Dequantized.sample", key, "key")
        return self.dequantized._of_x.integers(self._flow.sample(key, sample_shape)).astype(int)


def _noise_flow(key: jax.Array, noise: Bijection) -> Flow:
    """A flow of noise between 0 and 1, uniform where the bijection starts at the identity."""
    if noise.y_support != REAL_LINE:
        return Flow.init(key, noise)
    base = dist.Logistic(jnp.zeros(noise.x_shape), jnp.ones(noise.x_shape)).to_event(len(noise.x_shape))
    return Flow.init(key, dequantization.between_0_and_1(noise), base)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Dequantized:
    r"""A distribution of integers made of a flow: noise makes them continuous, and the flow has the density of the sum.

    For an event x of D integers from 0 to L - 1, L = ``levels``, let :math:`y = (x + u) / L`, with noise u between 0
    and 1 in each entry, and p the density of the flow over y. The flow has the probability of the cell of x, and noise
    with the density :math:`q(u \mid x)` gives a bound of it,

    .. math::
        P(x) = L^{-D} \int_{(0, 1)^D} p\Big(\frac{x + u}{L}\Big)\, du, \qquad
        \log P(x) \ge E_{u \sim q(u \mid x)} \Big[ \log p\Big(\frac{x + u}{L}\Big) - \log q(u \mid x) \Big]
        - D \log L .

    Uniform noise has q = 1; a flow of the noise, trained with the other one, makes the bound tight where p is uneven in
    a cell. With K = ``num_samples`` draws of the noise, a log probability here is

    .. math::
        \log \frac{1}{K} \sum_{k=1}^K \frac{p\big((x + u_k) / L\big)}{L^{D}\, q(u_k \mid x)},

    whose mean is the bound for K = 1, and comes up to log P(x) as K grows. It is random: each call draws new noise. A
    fit to integers without noise has no bound instead: the density grows beyond all limits at the levels.

    The noise needs a key. ``dequantized()``, or ``dequantized(context)``, is a distribution for NumPyro's models, where
    it takes one from the ``seed`` handler, as ``numpyro.prng_key()`` does; elsewhere give it as
    ``dequantized(key=key)``, or call ``dequantized.log_prob(key, x)``. It is a pytree, whose leaves are the weights;
    :func:`fit_density` trains them, and :func:`evaluate_density` has both numbers with their errors. Cost: K passes of
    the flow for each log probability. If the flow is one onto the unit cube, as one that ends with
    ``flowppl.Sigmoid()`` is, the probabilities sum to 1; of others the part that lies outside is missing, and draws
    from there go to the nearest level.

    Args:
        flow: the flow over y: a :class:`Flow`, or a :class:`FlowTransform` of which one is made. :meth:`init` makes it
            of a bijection.
        levels: the number L of integers, at least 2.
        noise: the flow of the noise, trained with the other: a conditional bijection whose ``context_dim`` is the
            number D of entries of x, such as ``flowppl.realnvp(D, context_dim=D)``; where the flow has a context, D
            and the size of that, if the noise is to know it. It is given x as a vector of numbers from -1 to 1, and
            maps logistic noise to the logits of u, which thus starts uniform; or, if its values lie between 0 and 1,
            normal noise to u itself. ``None`` is uniform noise.

    Raises:
        TypeError: if ``flow`` or ``noise`` is none.
        ValueError: if ``levels`` is less than 2, or the shapes, supports and contexts of the two do not fit; in use,
            for data that are no such integers.

    References:
        Uniform noise: Theis, van den Oord, Bethge: A note on the evaluation of generative models, 2015, arXiv
        1511.01844. Flows of noise: Ho, Chen, Srinivas, Duan, Abbeel: Flow++: Improving Flow-Based Generative Models
        with Variational Dequantization and Architecture Design, 2019, arXiv 1902.00275. The estimate with K draws:
        Hoogeboom, Cohen, Tomczak: Learning Discrete Distributions by Dequantization, 2020, arXiv 2001.11235.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Dequantized
        >>> flow = fp.Chain([fp.maf(3), fp.Elementwise(3, fp.Sigmoid())])
        >>> counts = Dequantized.init(jax.random.key(0), flow, levels=5, noise=fp.realnvp(3, context_dim=3))
        >>> x = jnp.array([[0, 4, 2], [1, 1, 3]])
        >>> counts.log_prob(jax.random.key(1), x, num_samples=10).shape, counts.sample(jax.random.key(2), (7,)).shape
        ((2,), (7, 3))
    """

    flow: Flow
    levels: int = dataclasses.field(metadata={"static": True})
    noise: Flow | None = None

    def __init__(self, flow: Flow | FlowTransform, levels: int, noise: Flow | None = None) -> None:
        flow = flow if isinstance(flow, Flow) else Flow(flow)
        if noise is not None and not isinstance(noise, Flow):
            raise TypeError(
                f"Dequantized: noise must be a Flow, with its weights, got {type(noise).__name__}; draw them by "
                "Dequantized.init(key, bijection, levels, noise)"
            )
        for name, value in (("flow", flow), ("levels", levels), ("noise", noise)):
            object.__setattr__(self, name, value)
        self._of_x  # noqa: B018  checks that they fit

    @classmethod
    def init(
        cls,
        key: jax.Array,
        flow: Flow | FlowTransform | Bijection,
        levels: int,
        noise: Flow | Bijection | None = None,
    ) -> Dequantized:
        """As the class, with first weights of bijections drawn by ``key``."""
        check_key("Dequantized.init", key, "key")
        keys = jax.random.split(key)
        flow = Flow.init(keys[0], flow) if isinstance(flow, Bijection) else flow
        if isinstance(noise, Bijection):
            noise = _noise_flow(keys[1], noise)
        return cls(flow, levels, noise)

    @property
    def _of_x(self) -> dequantization.Dequantized:
        noise = None if self.noise is None else self.noise.bijection
        return dequantization.Dequantized(self.flow.bijection, self.levels, noise)

    @property
    def _params(self) -> dict[str, Any]:
        return {"flow": self.flow.params} | ({} if self.noise is None else {"noise": self.noise.params})

    def _with_params(self, params: dict[str, Any]) -> Dequantized:
        noise = None if self.noise is None else self.noise._with_params(params["noise"])
        return Dequantized(self.flow._with_params(params["flow"]), self.levels, noise)

    def __call__(
        self, context: jax.Array | None = None, num_samples: int = 1, *, key: jax.Array | None = None
    ) -> DequantizedDistribution:
        """The distribution, at a context if the flow takes one.

        Args:
            context: as for a :class:`Flow`.
            num_samples: the number K of draws of noise for each log probability.
            key: determines the noise; ``None`` takes a key from the ``seed`` handler if there is one.
        """
        if key is None:
            with handlers.trace():  # outside of all handlers NumPyro would warn
                key = numpyro.prng_key()
        return DequantizedDistribution(self, context, num_samples, key)

    def log_prob(self, key: jax.Array, value: jax.Array, num_samples: int = 1) -> jax.Array:
        """``dequantized(None, num_samples, key=key).log_prob(value)``, for a flow without a context."""
        check_key("dequantized.log_prob", key, "key")
        self.flow._unconditional("log_prob")
        return self(None, num_samples, key=key).log_prob(value)

    def log_weights(
        self, key: jax.Array, value: jax.Array, num_samples: int, context: jax.Array | None = None
    ) -> jax.Array:
        """The logarithms of the terms of the sum that estimates a probability.

        Args:
            key: determines the noise.
            value: integers of shape ``(*batch, *event)``.
            num_samples: the number K of draws of noise.
            context: a context, if the flow takes one.

        Returns:
            An array of shape ``(num_samples, *batch)``: its mean over the first axis estimates the bound, and
            the logarithm of the mean of its exponentials log P(x).
        """
        check_key("dequantized.log_weights", key, "key")
        value = jnp.asarray(value)
        if not isinstance(value, Tracer):
            check_levels("Dequantized", "the data", np.asarray(value), self.levels)
        return self(context, key=key).log_weights(key, value, num_samples)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """``dequantized().sample(key, sample_shape)``: draws, for a flow without a context."""
        check_key("dequantized.sample", key, "key")
        self.flow._unconditional("sample")
        return DequantizedDistribution(self).sample(key, sample_shape)

    def init_from(self, x: jax.Array, context: jax.Array | None = None, *, key: jax.Array) -> Dequantized:
        """With what of the flow starts from data, such as :class:`flowppl.ActNorm`, set from integers with noise."""
        x = jnp.asarray(x)
        if not isinstance(x, Tracer):
            check_levels("Dequantized", "the data", np.asarray(x), self.levels)
        u = jax.random.uniform(key, x.shape, jnp.result_type(*jax.tree.leaves(self.flow), jnp.float32))
        return dataclasses.replace(self, flow=self.flow.init_from(self._of_x.continuous(x, u), context))
