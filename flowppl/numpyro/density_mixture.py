"""Mixtures of flows in NumPyro."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import Tree, merge
from flowppl.bijections.contract import Bijection
from flowppl.discrete.levels import check_context
from flowppl.inference import density_mixture
from flowppl.numpyro._host import Tracer, validate_sample
from flowppl.numpyro.flow import Flow, FlowDistribution, log_prob_at
from flowppl.numpyro.transforms import FlowTransform, check_key, constants_of, draw_params

_KINDS = (Flow, FlowTransform, Bijection)


class MixtureDistribution(dist.Distribution):
    """What a :class:`Mixture` gives: the distribution of a draw from one of K flows.

    Args:
        mixture: the flows and what makes their weights.
        context: a context, if they take one.
    """

    pytree_data_fields = ("mixture", "context")
    has_rsample = False  # type: ignore[assignment]  # the host would take it for granted

    def __init__(
        self, mixture: Mixture, context: jax.Array | None = None, *, validate_args: bool | None = None
    ) -> None:
        self.mixture, self.context = mixture, context
        batches = [self.log_weights.shape[:-1], *(part.batch_shape for part in self._parts)]
        shape = mixture.flows[0].bijection.y_shape
        super().__init__(jnp.broadcast_shapes(*batches), shape, validate_args=validate_args)

    @property
    def log_weights(self) -> jax.Array:
        """The logarithms of the weights, of shape ``(*batch, K)``."""
        return self.mixture._of_x.gate.log_weights(self.mixture.gate, self.context)

    @property
    def _parts(self) -> list[FlowDistribution]:
        return [flow(self.context if flow.bijection.context_dim else None) for flow in self.mixture.flows]

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        """That of each flow."""
        return self._parts[0].support

    @validate_sample
    def log_prob(self, value: jax.Array) -> jax.Array:
        """The log density of events."""
        return jax.nn.logsumexp(_joint(self.mixture, self.context, value), -1)

    def responsibilities(self, value: jax.Array) -> jax.Array:
        """See :meth:`Mixture.responsibilities`."""
        return jax.nn.softmax(_joint(self.mixture, self.context, value), -1)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws without gradients, of shape ``(*sample_shape, *batch, *event)``."""
        check_key("Mixture.sample", key, "key")
        return _sample(self.mixture, self.context, key, tuple(sample_shape))


# As one program each: outside of jit each little operation would be compiled apart.


@jax.jit
def _joint(mixture, context, value):
    """log w_k + log q_k(x), along a last axis."""
    distribution = MixtureDistribution(mixture, context, validate_args=False)
    parts, log_weights = distribution._parts, distribution.log_weights
    if mixture._are_alike:
        bijection = mixture.flows[0].bijection
        constants = constants_of(bijection)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(flow.params for flow in mixture.flows))
        given = context if bijection.context_dim else None
        x, log_det = namespace(value).vmap(
            lambda params: bijection.inverse(merge(params, constants), value, given), stacked
        )
        return jnp.moveaxis(log_prob_at(parts[0].base_dist, bijection, value, x, log_det), 0, -1) + log_weights
    shape = value.shape[: value.ndim - len(distribution.event_shape)]
    batch = jnp.broadcast_shapes(shape, distribution.batch_shape)
    return jnp.stack([jnp.broadcast_to(part.log_prob(value), batch) for part in parts], -1) + log_weights


@partial(jax.jit, static_argnums=3)
def _sample(mixture, context, key, sample_shape):
    distribution = MixtureDistribution(mixture, context, validate_args=False)
    parts, batch = distribution._parts, distribution.batch_shape
    keys = jax.random.split(key, len(parts) + 1)
    chosen = jax.random.categorical(keys[0], distribution.log_weights, shape=(*sample_shape, *batch))
    # Of each draw all flows are run, and one is kept, so that nothing depends on which.
    drawn = [part.expand(batch).sample(key, sample_shape) for part, key in zip(parts, keys[1:], strict=True)]
    chosen = chosen.reshape(1, *chosen.shape, *(1,) * len(distribution.event_shape))
    return jax.lax.stop_gradient(jnp.take_along_axis(jnp.stack(drawn), chosen, axis=0)[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Mixture:
    r"""A mixture of K flows: a draw is one of the flow k, which is chosen with the probability :math:`w_k`.

    With the densities :math:`q_k` of the flows, and weights that are positive and sum to 1, its density is

    .. math::
        q(x) = \sum_{k=1}^K w_k\, q_k(x), \qquad w = \mathrm{softmax}(a),

    which is exact. The logits a are trained with the flows, and start at zero. If the flows take a context c, the
    logits are :math:`a(c)`, made by a network that starts at zero. That x came from the flow k has, given x, the
    probability

    .. math::
        P(k \mid x) = \frac{w_k\, q_k(x)}{q(x)},

    which :meth:`responsibilities` gives: a clustering whose groups may have any shape.

    One flow is a continuous image of a normal, so it leaves bridges of density between groups that lie apart. Choose a
    mixture for such data, with as many flows as there are groups or a few more, and small ones. Flows that start equal
    are slow to tell each other apart; let each end with :class:`flowppl.ActNorm`. :func:`fit_density` then has
    :meth:`init_from` place them: it parts the first data into K groups by k-means, and starts each flow from one.

    ``mixture()``, or ``mixture(context)``, is a distribution for NumPyro's models. Its draws have no gradients: a
    choice has none, so a guide needs ``TraceGraph_ELBO``. Guides with several modes are those of :class:`AutoFlow`. It
    is a pytree, whose leaves are the weights. Cost: K passes for a log probability, and K for a draw.

    Args:
        flows: the flows: each a :class:`Flow`, with a base of its own, or a :class:`FlowTransform` of which one is
            made. :meth:`init` makes them of bijections: ``[bijection] * K`` gives K, each with its own weights.
        hidden_dims: with a context, the widths of the hidden layers of the network that makes the logits; an int means
            one layer, and ``()`` a linear map.
        gate: the logits, or the weights of that network; ``None`` is zero. :meth:`init` draws those of hidden layers.

    Raises:
        TypeError: if one of them is no flow, or hidden layers lack their weights.
        ValueError: if there is none, one is given twice, or their events, supports or contexts differ; for
            ``hidden_dims`` without a context.

    References:
        Dinh, Sohl-Dickstein, Larochelle, Pascanu: A RAD approach to deep mixture models, 2019, arXiv 1903.07714, and
        Cornish, Caterini, Deligiannidis, Doucet: Relaxing Bijectivity Constraints with Continuously Indexed Normalising
        Flows, 2019, arXiv 1909.13833, on why one flow does not part groups. k-means++: Arthur, Vassilvitskii, 2007.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Mixture, fit_density
        >>> keys = jax.random.split(jax.random.key(0), 4)
        >>> x = jax.random.normal(keys[0], (200, 2)) + jnp.repeat(jnp.array([-5.0, 5.0]), 100)[:, None]
        >>> mixture = Mixture.init(keys[1], [fp.ActNorm(2), fp.Chain([fp.realnvp(2), fp.ActNorm(2)])])
        >>> mixture = fit_density(keys[2], mixture, x, num_epochs=2, progress=False).flow
        >>> mixture.log_prob(x).shape, mixture.sample(keys[3], (5,)).shape
        ((200,), (5, 2))
        >>> bool(mixture.responsibilities(x).max(-1).min() > 0.9)
        True
    """

    flows: tuple[Flow, ...]
    hidden_dims: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    gate: Tree

    def __init__(
        self, flows: Iterable[Flow | FlowTransform], hidden_dims: int | Sequence[int] = (), gate: Tree | None = None
    ) -> None:
        given = density_mixture.listed(flows, _KINDS)
        if any(isinstance(flow, Bijection) for flow in given):
            raise TypeError("Mixture: the weights are missing; draw them by Mixture.init(key, flows)")
        made = tuple(flow if isinstance(flow, Flow) else Flow(flow) for flow in given)
        if len({id(flow.params) for flow in made}) < len(made):
            raise ValueError(
                "Mixture: a flow is given twice, and its copies would stay equal in training; let Mixture.init(key, "
                "[bijection] * 2) draw weights for each"
            )
        core = density_mixture.Mixture([flow.bijection for flow in made], hidden_dims)
        if gate is None and core.hidden_dims:
            raise TypeError("Mixture: gate is missing; draw the weights of hidden layers by Mixture.init(key, flows)")
        if gate is None:
            gate = jax.tree.map(jnp.zeros_like, draw_params(core.gate, jax.random.key(0)))
        for name, value in (("flows", made), ("hidden_dims", core.hidden_dims), ("gate", gate)):
            object.__setattr__(self, name, value)

    @classmethod
    def init(
        cls,
        key: jax.Array,
        flows: Iterable[Flow | FlowTransform | Bijection],
        hidden_dims: int | Sequence[int] = (),
    ) -> Mixture:
        """As the class, with first weights of bijections drawn by ``key``."""
        check_key("Mixture.init", key, "key")
        given = density_mixture.listed(flows, _KINDS)
        keys = jax.random.split(key, len(given) + 1)
        made = [
            Flow.init(key, flow) if isinstance(flow, Bijection) else flow if isinstance(flow, Flow) else Flow(flow)
            for key, flow in zip(keys[1:], given, strict=True)
        ]
        bijections = [flow.bijection for flow in made]
        gate = draw_params(density_mixture.Mixture(bijections, hidden_dims).gate, keys[0])
        return cls(made, hidden_dims, gate)

    @property
    def _of_x(self) -> density_mixture.Mixture:
        return density_mixture.Mixture([flow.bijection for flow in self.flows], self.hidden_dims)

    @property
    def _are_alike(self) -> bool:
        """Whether the flows differ in their weights only: then one pass of all together serves."""
        is_one = len({flow.bijection for flow in self.flows}) == 1 and bool(jax.tree.leaves(self.flows[0].params))
        return is_one and all(flow.base is None for flow in self.flows)

    @property
    def _params(self) -> Tree:
        return {"gate": self.gate, "flows": {str(i): flow.params for i, flow in enumerate(self.flows)}}

    def _with_params(self, params: Tree) -> Mixture:
        flows = [flow._with_params(params["flows"][str(i)]) for i, flow in enumerate(self.flows)]
        return Mixture(flows, self.hidden_dims, params["gate"])

    def __call__(self, context: jax.Array | None = None) -> MixtureDistribution:
        """The distribution, at a context of shape ``(*batch, context_dim)`` if the flows take one."""
        check_context("Mixture", self._of_x.context_dim, context)
        return MixtureDistribution(self, context)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """``mixture().log_prob(value)``: the log density of each event, without a context."""
        return self().log_prob(value)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """``mixture().sample(key, sample_shape)``: draws, without a context."""
        check_key("mixture.sample", key, "key")
        return self().sample(key, sample_shape)

    def responsibilities(self, value: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """The probability of each flow, given an event that came from one of them.

        Args:
            value: events of shape ``(*batch, *event)``.
            context: their context, if the flows take one.

        Returns:
            An array of shape ``(*batch, K)``, whose rows sum to 1.
        """
        return self(context).responsibilities(value)

    def init_from(self, x: jax.Array, context: jax.Array | None = None) -> Mixture:
        """This mixture with what starts from data, such as :class:`flowppl.ActNorm`: of each flow from one of K groups.

        Args:
            x: data of shape ``(n, *event)``, which must have values: k-means parts them into groups.
            context: their contexts, of shape ``(n, context_dim)``, if the flows take one.
        """
        if isinstance(x, Tracer):
            raise TypeError("mixture.init_from: x has no values inside of jax.jit; call it outside")
        flows = []
        for flow, rows in zip(self.flows, density_mixture.shared_out(np.asarray(x), len(self.flows)), strict=True):
            given = context[rows] if context is not None and flow.bijection.context_dim else None
            flows.append(flow.init_from(x[rows], given))
        return Mixture(flows, self.hidden_dims, self.gate)
