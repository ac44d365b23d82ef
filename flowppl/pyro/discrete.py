"""Distributions of integers in Pyro."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection
from flowppl.checks import check_sizes
from flowppl.discrete import dequantization, logistic
from flowppl.discrete.levels import are_levels, check_levels
from flowppl.pyro.flow import Flow
from flowppl.pyro.transforms import FlowTransform


class DiscretizedLogisticMixture(dist.TorchDistribution):
    r"""A mixture of logistic distributions, rounded to the integers from 0 to ``levels`` - 1.

    A draw of the mixture is rounded to the nearest integer, and to the first or last one beyond these. So, with K
    components of weights :math:`\pi_k`, locations :math:`\mu_k` and scales :math:`s_k`, and
    :math:`\sigma(t) = 1 / (1 + e^{-t})`,

    .. math::
        P(x) = \sum_{k=1}^K \pi_k \Big[ \sigma\big((x + \tfrac{1}{2} - \mu_k) / s_k\big)
        - \sigma\big((x - \tfrac{1}{2} - \mu_k) / s_k\big) \Big],

    where at x = ``levels`` - 1 the first term in the brackets is 1, and at x = 0 the second is 0. Where levels have an
    order, as the brightness of a pixel has, it needs far fewer numbers than one probability for each. The log
    probability is exact in both tails, and minus infinity for what is none of the integers. Cost: K terms for each
    number; the mean and the variance take ``levels`` times that.

    Args:
        logits: the logarithms of the weights, up to a constant; of shape ``(*batch, K)``.
        loc: the locations, on the scale of the integers; of a shape that broadcasts with that of ``logits``.
        scale: the scales, positive; of such a shape too.
        levels: the number of integers, at least 2.

    Raises:
        ValueError: if ``levels`` is less than 2, or a scale is not positive.

    References:
        Salimans, Karpathy, Chen, Kingma: PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
        Likelihood and Other Modifications, 2017, arXiv 1701.05517.

    Example:
        >>> import torch
        >>> from flowppl.pyro import DiscretizedLogisticMixture
        >>> loc = torch.tensor([1.0, 6.0])
        >>> pixel = DiscretizedLogisticMixture(torch.zeros(2), loc, torch.ones(2), levels=8)
        >>> round(pixel.log_prob(torch.arange(8)).exp().sum().item(), 6), round(pixel.mean.item(), 4)
        (1.0, 3.5)
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    has_enumerate_support = True

    def __init__(
        self,
        logits: torch.Tensor,
        loc: torch.Tensor,
        scale: torch.Tensor,
        levels: int,
        validate_args: bool | None = None,
    ) -> None:
        check_sizes("DiscretizedLogisticMixture", at_least=2, levels=levels)
        self.logits, self.loc, self.scale = torch.broadcast_tensors(logits, loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape[:-1], validate_args=validate_args)

    @classmethod
    def from_raw(cls, raw: torch.Tensor, levels: int) -> DiscretizedLogisticMixture:
        r"""The distribution that any real numbers give, such as the output of a network.

        With K logits, K numbers :math:`m_k` and K numbers :math:`r_k` it has the logits as they are, and, with L =
        ``levels``,

        .. math::
            \mu_k = (L - 1) \Big( \frac{k - 1/2}{K} + \frac{m_k}{2} \Big), \qquad
            s_k = \frac{L - 1}{2 K}\, e^{7 \tanh(r_k / 7)},

        so that at zero the components lie side by side over the whole range. As the likelihood of a
        :class:`FlowVAE` it is ``functools.partial(DiscretizedLogisticMixture.from_raw, levels=levels)``.

        Args:
            raw: of shape ``(*batch, 3 * K)``.
            levels: the number of integers.

        Raises:
            ValueError: if the last axis is not 3 K long, or ``levels`` is less than 2.

        Example:
            >>> import torch
            >>> from flowppl.pyro import DiscretizedLogisticMixture
            >>> DiscretizedLogisticMixture.from_raw(torch.zeros(5, 28, 28, 30), levels=256).batch_shape
            torch.Size([5, 28, 28])
        """
        parts = logistic.from_raw(torch.movedim(raw, -1, 0), levels)
        logits, loc, scale = (torch.movedim(part, 0, -1) for part in parts)
        return cls(logits, loc, scale, levels, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """The integers from 0 to ``levels - 1``."""
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def mean(self) -> torch.Tensor:
        """The mean, of the batch shape."""
        return self._moments()[0]

    @property
    def variance(self) -> torch.Tensor:
        """The variance, of the batch shape."""
        return self._moments()[1]

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogisticMixture:
        """This distribution with another batch shape, to which its own broadcasts."""
        new = self._get_checked_instance(DiscretizedLogisticMixture, _instance)
        shape = (*batch_shape, self.loc.shape[-1])
        new.logits, new.loc, new.scale = (part.expand(shape) for part in (self.logits, self.loc, self.scale))
        new.levels = self.levels
        super(DiscretizedLogisticMixture, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log probability of each integer."""
        if self._validate_args:
            self._validate_sample(value)
        logits, loc, scale = self._components()
        return logistic.log_prob(value, torch.log_softmax(logits, 0), loc, scale, self.levels)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draws, integers of shape ``(*sample_shape, *batch)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        chosen = dist.Categorical(logits=self.logits, validate_args=False).sample(sample_shape)[..., None]
        loc, scale = (part.expand(*shape, -1).gather(-1, chosen)[..., 0] for part in (self.loc, self.scale))
        noise = torch.rand(shape, dtype=loc.dtype, device=loc.device).clamp(min=torch.finfo(loc.dtype).tiny)
        return logistic.rounded(loc + scale * torch.logit(noise), self.levels).long()

    def enumerate_support(self, expand: bool = True) -> torch.Tensor:
        """All integers, along a new first axis."""
        values = torch.arange(self.levels, device=self.loc.device).reshape(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values

    def _components(self):
        return (torch.movedim(part, -1, 0) for part in (self.logits, self.loc, self.scale))

    def _moments(self):
        logits, loc, scale = self._components()
        return logistic.moments(torch.softmax(logits, 0), loc, scale, self.levels)


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
