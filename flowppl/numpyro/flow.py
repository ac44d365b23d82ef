"""Flows as NumPyro distributions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_standard_base
from flowppl.numpyro._host import validate_sample
from flowppl.numpyro.transforms import FlowTransform, init_params


class FlowDistribution(dist.TransformedDistribution):
    """The distribution of ``transform(x)``, x being drawn from a base distribution.

    A sample with its density costs one pass of the flow, and so does the density of fresh data.

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

    def __init__(self, base_distribution, transform: FlowTransform, *, validate_args=None):
        bijection = transform.bijection
        shape = base_distribution.shape()
        if shape[len(shape) - len(bijection.x_shape) :] != bijection.x_shape:
            raise ValueError(
                f"the base distribution must have events of shape {bijection.x_shape}, got batch shape "
                f"{base_distribution.batch_shape} and event shape {base_distribution.event_shape}"
            )
        support = base_distribution.support
        if getattr(support, "base_constraint", support) is constraints.real:
            check_standard_base(bijection)
        if bijection.context_dim and transform.context is None:
            raise ValueError(f"this flow needs a context of size {bijection.context_dim}: call flow(context)")
        super().__init__(base_distribution, [transform], validate_args=validate_args)

    @validate_sample
    def log_prob(self, value, intermediates=None):
        if intermediates is not None:
            ((x, log_det),) = intermediates
            return self.base_dist.log_prob(x) - log_det
        x, log_det = self.transforms[0].inverse_and_log_det(value)
        return self.base_dist.log_prob(x) + log_det


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """A bijection, its weights and a base distribution; ``flow()`` or ``flow(context)`` is a distribution.

    It is a pytree: the weights (and the parameters of the base) are its leaves.

    Args:
        bijection: any :class:`flowppl.Bijection`.
        params: its weights; :meth:`init` draws them.
        base: the base distribution; ``None`` is the standard normal.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Flow
        >>> flow = Flow.init(jax.random.key(0), fp.maf(3))
        >>> flow().log_prob(jnp.zeros((5, 3))).shape
        (5,)
    """

    bijection: Bijection = dataclasses.field(metadata={"static": True})
    params: Tree
    base: Any = None

    @classmethod
    def init(cls, key, bijection: Bijection, base=None) -> Flow:
        """A flow with first weights drawn by ``key``."""
        return cls(bijection, init_params(bijection, key), base)

    @property
    def transform(self) -> FlowTransform:
        """The transform from the base to the data side."""
        return FlowTransform(self.bijection, self.params)

    def init_from(self, x, context=None) -> Flow:
        """This flow with what starts from data, such as :class:`flowppl.ActNorm`, set from the batch ``x``."""
        new = self.bijection.init_from(self.transform._tree, jnp.asarray(x), context)
        return dataclasses.replace(self, params=new)

    def __call__(self, context=None) -> FlowDistribution:
        base = self.base
        if base is None:
            base = standard_normal(self.bijection.x_shape)
        transform = self.transform if context is None else self.transform._at(context)
        return FlowDistribution(base, transform)


def standard_normal(shape) -> dist.Distribution:
    """Independent standard normals with events of this shape."""
    return dist.Normal(jnp.zeros(shape), jnp.ones(shape)).to_event(len(shape))


def flow(name: str, bijection: Bijection, base=None) -> Flow:
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
    return Flow(bijection, numpyro.param(name, lambda key: init_params(bijection, key)), base)
