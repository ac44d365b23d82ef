"""Mixtures of rounded logistics in Pyro."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from flowppl.checks import check_sizes
from flowppl.discrete import logistic


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
