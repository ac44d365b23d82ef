"""Distributions of integers in Pyro."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection
from flowppl.checks import check_sizes
from flowppl.discrete import dequantization
from flowppl.discrete.levels import are_levels, check_levels
from flowppl.pyro.flow import Flow
from flowppl.pyro.transforms import FlowTransform


class DequantizedDistribution(dist.TorchDistribution):
    """What a :class:`Dequantized` gives: a distribution of integers, whose log probability is an estimate.

    Args:
        dequantized: the flows.
        context: a context, if the flow takes one.
        num_samples: the number of draws of noise for each log probability.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, dequantized: Dequantized, context: torch.Tensor | None = None, num_samples: int = 1) -> None:
        check_sizes("Dequantized", num_samples=num_samples)
        self.dequantized, self.context, self.num_samples = dequantized, context, num_samples
        self._flow = dequantized.flow(context)
        super().__init__(self._flow.batch_shape, self._flow.event_shape)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Integers from 0 to ``levels - 1``."""
        each = constraints.integer_interval(0, self.dequantized.levels - 1)
        return constraints.independent(each, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> DequantizedDistribution:
        """This distribution with another batch shape, to which its own broadcasts."""
        new = self._get_checked_instance(DequantizedDistribution, _instance)
        new.dequantized, new.context, new.num_samples = self.dequantized, self.context, self.num_samples
        new._flow = self._flow
        super(DequantizedDistribution, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """An estimate of the log probability of each event, from new noise."""
        if self._validate_args:
            check_levels("Dequantized", "the data", value, self.dequantized.levels)
        inside = are_levels(value, self.dequantized.levels, len(self.event_shape))
        log_prob = torch.logsumexp(self.log_weights(value, self.num_samples), 0) - math.log(self.num_samples)
        return torch.where(inside, log_prob, -math.inf)

    def log_weights(self, value: torch.Tensor, num_samples: int) -> torch.Tensor:
        """See :meth:`Dequantized.log_weights`."""
        core, zeros = self.dequantized._of_x, self.dequantized._zeros
        shape = value.shape[: value.ndim - len(self.event_shape)]
        if value.shape[len(shape) :] != self.event_shape:
            raise ValueError(
                f"Dequantized: the data must have the shape (..., {', '.join(map(str, self.event_shape))}), got "
                f"{tuple(value.shape)}"
            )
        x = value.to(zeros).expand(*torch.broadcast_shapes(shape, self.batch_shape), *self.event_shape)
        if self.dequantized.noise is None:
            u, log_q = torch.rand_like(x.expand(num_samples, *x.shape)), x.new_zeros(())
        else:
            noise = self.dequantized.noise(core.features(x, self.context))
            u = noise.rsample((num_samples,))
            log_q = noise.log_prob(u)
        return self._flow.log_prob(core.continuous(x, u)) - log_q - core.log_cells

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draws, integers of shape ``(*sample_shape, *batch, *event)``."""
        flow = self._flow.expand(self.batch_shape)
        return self.dequantized._of_x.integers(flow.sample(torch.Size(sample_shape))).long()


def _noise_flow(noise: Bijection) -> Flow:
    """A flow of noise between 0 and 1, uniform where the bijection starts at the identity."""
    check_bijection(noise)
    if noise.y_support != REAL_LINE:
        return Flow(noise)
    zeros = torch.zeros(noise.x_shape)
    base = dist.Logistic(zeros, torch.ones_like(zeros), validate_args=False).to_event(zeros.ndim)
    return Flow(dequantization.between_0_and_1(noise), base)


class Dequantized(torch.nn.Module):
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

    ``dequantized()``, or ``dequantized(context)``, is a distribution for Pyro's models; :func:`fit_density` trains this
    module, and :func:`evaluate_density` has both numbers with their errors. Cost: K passes of the flow for each log
    probability. If the flow is one onto the unit cube, as one that ends with ``flowppl.Sigmoid()`` is, the
    probabilities sum to 1; of others the part that lies outside is missing, and draws from there go to the nearest
    level.

    Args:
        flow: the flow over y: a :class:`Flow`, or a bijection or :class:`FlowTransform` of which one is made.
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
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Dequantized
        >>> flow = fp.Chain([fp.maf(3), fp.Elementwise(3, fp.Sigmoid())])
        >>> counts = Dequantized(flow, levels=5, noise=fp.realnvp(3, context_dim=3))
        >>> x = torch.tensor([[0, 4, 2], [1, 1, 3]])
        >>> counts.log_prob(x, num_samples=10).shape, counts.sample((7,)).shape
        (torch.Size([2]), torch.Size([7, 3]))
    """

    def __init__(
        self, flow: Flow | FlowTransform | Bijection, levels: int, noise: Flow | Bijection | None = None
    ) -> None:
        super().__init__()
        self.flow = flow if isinstance(flow, Flow) else Flow(flow)
        if noise is not None and not isinstance(noise, Flow):
            noise = _noise_flow(noise)
        self._of_x = dequantization.Dequantized(self.flow.bijection, levels, None if noise is None else noise.bijection)
        self.noise = noise

    @property
    def levels(self) -> int:
        """The number of integers."""
        return self._of_x.levels

    @property
    def _zeros(self) -> torch.Tensor:
        return self.flow._zeros

    def __call__(self, context: torch.Tensor | None = None, num_samples: int = 1) -> DequantizedDistribution:
        """The distribution, at a context if the flow takes one.

        Args:
            context: as for a :class:`Flow`.
            num_samples: the number K of draws of noise for each log probability.
        """
        return super().__call__(context, num_samples)

    def forward(self, context: torch.Tensor | None = None, num_samples: int = 1) -> DequantizedDistribution:
        """What a call gives: see :meth:`__call__`."""
        return DequantizedDistribution(self, context, num_samples)

    def log_prob(self, value: torch.Tensor, num_samples: int = 1) -> torch.Tensor:
        """``dequantized(None, num_samples).log_prob(value)``, for a flow without a context."""
        self.flow._unconditional("log_prob")
        return self(None, num_samples).log_prob(value)

    def log_weights(self, value: torch.Tensor, num_samples: int, context: torch.Tensor | None = None) -> torch.Tensor:
        """The logarithms of the terms of the sum that estimates a probability.

        Args:
            value: integers of shape ``(*batch, *event)``.
            num_samples: the number K of draws of noise.
            context: a context, if the flow takes one.

        Returns:
            A tensor of shape ``(num_samples, *batch)``: its mean over the first axis estimates the bound, and
            the logarithm of the mean of its exponentials log P(x).
        """
        check_levels("Dequantized", "the data", value, self.levels)
        return self(context).log_weights(value, num_samples)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """``dequantized().sample(sample_shape)``: draws, for a flow without a context."""
        self.flow._unconditional("sample")
        return self().sample(torch.Size(sample_shape))

    @torch.no_grad()
    def init_from(self, x: torch.Tensor, context: torch.Tensor | None = None) -> Dequantized:
        """Set what of the flow starts from data, such as :class:`flowppl.ActNorm`, from integers with uniform noise."""
        check_levels("Dequantized", "the data", x, self.levels)
        x = x.to(self._zeros)
        self.flow.init_from(self._of_x.continuous(x, torch.rand_like(x)), context)
        return self

    def freeze(self) -> Dequantized:
        """Stop training: no parameter requires a gradient any more, and the module is in evaluation mode."""
        return self.requires_grad_(False).eval()
