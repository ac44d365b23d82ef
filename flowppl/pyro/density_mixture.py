"""Mixtures of flows in Pyro."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import leaves, map_tree, merge, select
from flowppl.bijections.contract import Bijection
from flowppl.discrete.levels import check_context
from flowppl.inference import density_mixture
from flowppl.pyro.flow import Flow, FlowDistribution, log_prob_at
from flowppl.pyro.transforms import FlowTransform, Weights, to_numpy


class MixtureDistribution(dist.TorchDistribution):
    """What a :class:`Mixture` gives: the distribution of a draw from one of K flows.

    Args:
        mixture: the flows and what makes their weights.
        context: a context, if they take one.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, mixture: Mixture, context: torch.Tensor | None = None) -> None:
        self.mixture, self.context = mixture, context
        self._parts: list[FlowDistribution] = []
        for flow in mixture.flows:
            part = flow(context if flow.bijection.context_dim else None)
            part._validate_args = False  # the mixture looks at values once for all
            self._parts.append(part)
        self.log_weights = mixture._of_x.gate.log_weights(mixture.gate.tree(), context)
        batches = [self.log_weights.shape[:-1], *(part.batch_shape for part in self._parts)]
        super().__init__(torch.broadcast_shapes(*batches), self._parts[0].event_shape)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """That of each flow."""
        return self._parts[0].support

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureDistribution:
        """This distribution with another batch shape, to which its own broadcasts."""
        new = self._get_checked_instance(MixtureDistribution, _instance)
        new.mixture, new.context = self.mixture, self.context
        new._parts, new.log_weights = self._parts, self.log_weights
        super(MixtureDistribution, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log density of events."""
        return torch.logsumexp(self._joint(value), -1)

    def responsibilities(self, value: torch.Tensor) -> torch.Tensor:
        """See :meth:`Mixture.responsibilities`."""
        return torch.softmax(self._joint(value), -1)

    def _joint(self, value: torch.Tensor) -> torch.Tensor:
        """log w_k + log q_k(x), along a last axis."""
        if self._validate_args:
            self._validate_sample(value)
        mixture, first = self.mixture, self._parts[0]
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        if mixture._are_alike and not torch.jit.is_tracing():  # type: ignore[attr-defined]  # a trace cannot see through vmap
            bijection, own = mixture._of_x.bijections[0], [flow.transform.weights.tree() for flow in mixture.flows]
            trained, fixed = mixture._names
            constants = select(fixed, own[0])
            stacked = map_tree(lambda _, *each: torch.stack(each), trained, *own)
            given = self.context if bijection.context_dim else None
            x, log_det = namespace(value).vmap(
                lambda params: bijection.inverse(merge(params, constants), value, given), stacked
            )
            log_q = log_prob_at(first.base_dist, bijection, value, x, log_det).movedim(0, -1)
            return log_q.expand(*batch, len(self._parts)) + self.log_weights
        return torch.stack([part.log_prob(value).expand(batch) for part in self._parts], -1) + self.log_weights

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draws without gradients, of shape ``(*sample_shape, *batch, *event)``."""
        shape = torch.Size(sample_shape)
        logits = self.log_weights.expand(*self.batch_shape, len(self._parts))
        # By hand, since torch's multinomial draws no empty batch; half precision would tell few numbers apart.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        bounds = logits.softmax(-1, dtype).cumsum(-1)
        place = torch.rand(*shape, *logits.shape[:-1], 1, dtype=dtype, device=logits.device) * bounds[..., -1:]
        chosen = (place >= bounds[..., :-1]).sum(-1)
        # Of each draw all flows are run, and one is kept, so that nothing depends on which.
        drawn = torch.stack([part.expand(self.batch_shape).sample(shape) for part in self._parts])
        chosen = chosen.reshape(1, *chosen.shape, *(1,) * len(self.event_shape))
        return torch.take_along_dim(drawn, chosen, dim=0)[0]


class Mixture(torch.nn.Module):
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

    ``mixture()``, or ``mixture(context)``, is a distribution for Pyro's models. Its draws have no gradients: a choice
    has none, so Pyro's ELBO takes the score function. Guides with several modes are those of :class:`AutoFlow`. Cost:
    K passes for a log probability, and K for a draw.

    Args:
        flows: the flows: each a :class:`Flow`, with a base of its own, or a bijection or :class:`FlowTransform` of
            which one is made. ``[bijection] * K`` makes K flows, each with its own weights.
        hidden_dims: with a context, the widths of the hidden layers of the network that makes the logits; an int means
            one layer, and ``()`` a linear map.

    Raises:
        TypeError: if one of them is no flow.
        ValueError: if there is none, one is given twice, or their events, supports or contexts differ; for
            ``hidden_dims`` without a context.

    References:
        Dinh, Sohl-Dickstein, Larochelle, Pascanu: A RAD approach to deep mixture models, 2019, arXiv 1903.07714, and
        Cornish, Caterini, Deligiannidis, Doucet: Relaxing Bijectivity Constraints with Continuously Indexed Normalising
        Flows, 2019, arXiv 1909.13833, on why one flow does not part groups. k-means++: Arthur, Vassilvitskii, 2007.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Mixture, fit_density
        >>> x = torch.cat([torch.randn(100, 2) - 5.0, torch.randn(100, 2) + 5.0])
        >>> mixture = Mixture([fp.ActNorm(2), fp.Chain([fp.realnvp(2), fp.ActNorm(2)])])
        >>> mixture = fit_density(mixture, x, num_epochs=2, progress=False).flow
        >>> mixture.log_prob(x).shape, mixture.sample((5,)).shape
        (torch.Size([200]), torch.Size([5, 2]))
        >>> mixture.responsibilities(x).amax(-1).min() > 0.9
        tensor(True)
    """

    def __init__(
        self, flows: Iterable[Flow | FlowTransform | Bijection], hidden_dims: int | Sequence[int] = ()
    ) -> None:
        super().__init__()
        given = density_mixture.listed(flows, (Flow, FlowTransform, Bijection))
        made = [flow if isinstance(flow, Flow) else Flow(flow) for flow in given]
        weights = {id(flow.transform.weights) for flow in made}
        if len(weights) < len(made):
            raise ValueError(
                "Mixture: a flow is given twice, and would be trained as one; give its bijection twice, or a copy"
            )
        self._of_x = density_mixture.Mixture([flow.bijection for flow in made], hidden_dims)
        self.flows: Any = torch.nn.ModuleList(made)
        self.gate = Weights.drawn(self._of_x.gate).to(self._zeros)
        first = self._of_x.bijections[0]
        # Of a flow's weights and of its constants; what declares them torch.compile cannot follow.
        self._names = [map_tree(lambda _: None, tree) for tree in (first.parameters(), first.constants())]

    @property
    def _are_alike(self) -> bool:
        """Whether the flows differ in their weights only: then one pass of all together serves."""
        is_one = len(set(self._of_x.bijections)) == 1 and any(leaves(self._names[0]))
        return is_one and all(flow.base is None for flow in self.flows)

    @property
    def _zeros(self) -> torch.Tensor:
        return self.flows[0]._zeros

    def __call__(self, context: torch.Tensor | None = None) -> MixtureDistribution:
        """The distribution, at a context of shape ``(*batch, context_dim)`` if the flows take one."""
        return super().__call__(context)

    def forward(self, context: torch.Tensor | None = None) -> MixtureDistribution:
        """What a call gives: see :meth:`__call__`."""
        check_context("Mixture", self._of_x.context_dim, context)
        return MixtureDistribution(self, context)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """``mixture().log_prob(value)``: the log density of each event, without a context."""
        return self().log_prob(value)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """``mixture().sample(sample_shape)``: draws, without a context."""
        return self().sample(torch.Size(sample_shape))

    def responsibilities(self, value: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """The probability of each flow, given an event that came from one of them.

        Args:
            value: events of shape ``(*batch, *event)``.
            context: their context, if the flows take one.

        Returns:
            A tensor of shape ``(*batch, K)``, whose rows sum to 1.
        """
        return self(context).responsibilities(value)

    @torch.no_grad()
    def init_from(self, x: torch.Tensor, context: torch.Tensor | None = None) -> Mixture:
        """Set what starts from data, such as :class:`flowppl.ActNorm`: of each flow from one of K groups of ``x``.

        Args:
            x: data of shape ``(n, *event)``; k-means parts them into groups.
            context: their contexts, of shape ``(n, context_dim)``, if the flows take one.
        """
        for flow, rows in zip(self.flows, density_mixture.shared_out(to_numpy(x), len(self.flows)), strict=True):
            flow.init_from(x[rows], context[rows] if context is not None and flow.bijection.context_dim else None)
        return self

    def freeze(self) -> Mixture:
        """Stop training: no parameter requires a gradient any more, and the module is in evaluation mode."""
        return self.requires_grad_(False).eval()
