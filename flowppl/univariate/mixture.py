"""Mixtures of logistics as univariate maps."""

from __future__ import annotations

import dataclasses

from flowppl._arrays.namespace import namespace
from flowppl._arrays.roots import bracketed_root
from flowppl.checks import check_sizes
from flowppl.univariate.base import Affine, Bound, align, bounded, check_bound, in_single


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    r"""The distribution function of a mixture of K logistics, brought back to the real line, and an affine map.

    .. math::
        y = e^{a} \; \mathrm{logit}\Big(\sum_{k=1}^K \pi_k\, \sigma\big((x - \mu_k)\, e^{-s_k}\big)\Big) + t .

    It has as many bends as the mixture has components. The raw numbers are K logits of :math:`\pi`, K locations, K
    log-scales, and t and a. All logarithms are taken of sums of exponentials, so that both tails are exact. The
    inverse has no closed form: the root lies between the smallest and the largest of the components' own roots, and
    is found by bisection and Newton's method.

    With the affine map at rest this is also the deep sigmoidal map of neural autoregressive flows: weighted sigmoids of
    :math:`a_k x + b_k`, here :math:`a_k = e^{-s_k}` and :math:`b_k = -\mu_k e^{-s_k}`, brought back by the logit.

    Choose it for coordinates with several peaks, and where kinks between bins, as of a spline, are unwelcome: it is
    smooth everywhere, and has no box. A spline is cheaper, and as cheap in both directions.

    Equal components would stay equal in training, and unequal ones would not start at the identity. So the
    components start equal, but each location moves at a pace of its own: :math:`\mu_k = 2 k\, r_k / (K + 1)`.

    Args:
        num_components: the number K of logistics.
        log_scale_bound: the bound of the log-scales s and a, as in :class:`~flowppl.Affine`.

    Raises:
        ValueError: if ``num_components`` < 1, or the bound is not positive.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++: Improving Flow-Based Generative Models with Variational
        Dequantization and Architecture Design, 2019, arXiv 1902.00275. Huang, Krueger, Lacoste, Courville: Neural
        Autoregressive Flows, 2018, arXiv 1804.00779.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> mixture = fp.LogisticMixture(num_components=2)
        >>> raw = np.array([0.0, 0.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0])[:, None]
        >>> y, _ = mixture.forward(raw, np.array([1.0]))
        >>> x, _ = mixture.inverse(raw, y)
        >>> y.round(4), x.round(12)
        (array([0.8295]), array([1.]))
    """

    num_components: int = 8
    log_scale_bound: Bound = 3.0

    inverse_cost = "iterative"

    def __post_init__(self):
        check_sizes("LogisticMixture", num_components=self.num_components)
        check_bound("LogisticMixture", self.log_scale_bound)

    @property
    def num_raw(self) -> int:
        return 3 * self.num_components + 2

    def _components(self, raw, x):
        """The components, and the raw numbers of the outer affine map."""
        num = self.num_components
        weights, loc, log_scale, outer = namespace(raw).split(align(raw, x), (num, num, num, 2))
        return components(weights, loc, log_scale, self.log_scale_bound), outer

    @property
    def _outer(self) -> Affine:
        return Affine(self.log_scale_bound)

    @in_single
    def forward(self, raw, x):
        parts, outer = self._components(raw, x)
        logit, log_slope = _logit(x, *parts)
        y, outer_log_slope = self._outer.forward(outer, logit)
        return y, log_slope + outer_log_slope

    @in_single
    def inverse(self, raw, y):
        parts, outer = self._components(raw, y)
        target, outer_log_slope = self._outer.inverse(outer, y)

        def equation(x, target, *parts):
            logit, log_slope = _logit(x, *parts)
            return logit - target, namespace(x).exp(log_slope)

        x = root_among(equation, target, target, parts)
        return x, outer_log_slope - _logit(x, *parts)[1]


def components(weights, loc, log_scale, log_scale_bound):
    """The logs of the weights, the locations and the log-scales of a mixture, made of as many raw numbers each."""
    xp = namespace(loc)
    pace = xp.cumulative_sum(xp.ones_like(loc), axis=0) * (2 / (loc.shape[0] + 1))
    return xp.log_softmax(weights), pace * loc, bounded(log_scale, log_scale_bound)


def root_among(equation, target, standard, parts):
    """The x that solves an equation of a mixture, which lies between the roots of its components.

    ``standard`` is the root of one component at 0 with the scale 1.
    """
    xp = namespace(standard)
    _, loc, log_scale = parts
    roots = loc + xp.exp(log_scale) * standard
    return bracketed_root(equation, (target, *parts), xp.min(roots, axis=0), xp.max(roots, axis=0), num_steps=24)


def _logit(x, log_weights, loc, log_scale):
    """The logit of the mixture's distribution function at x, and the log of its derivative."""
    xp = namespace(x)
    z = (x - loc) * xp.exp(-log_scale)
    below, above = xp.softplus(-z), xp.softplus(z)  # minus log sigmoid(z), minus log sigmoid(-z)
    log_cdf = xp.logsumexp(log_weights - below)
    log_rest = xp.logsumexp(log_weights - above)
    # The slope is a mean over the tail on whose side x lies: no sum of large logarithms that cancel.
    is_low = log_cdf < log_rest
    near, far = xp.where(is_low, above, below), xp.where(is_low, below, above)
    log_speed = xp.logsumexp(xp.log_softmax(log_weights - far) - log_scale - near)
    return log_cdf - log_rest, log_speed - xp.where(is_low, log_rest, log_cdf)
