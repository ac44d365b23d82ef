"""Mixtures of rounded logistics in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import constraints

from flowppl.checks import check_sizes
from flowppl.discrete import logistic
from flowppl.numpyro._host import validate_sample
from flowppl.numpyro.transforms import check_key


class DiscretizedLogisticMixture(dist.Distribution):
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
        ValueError: if ``levels`` is less than 2, or, with NumPyro's validation, a scale is not positive.

    References:
        Salimans, Karpathy, Chen, Kingma: PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture
        Likelihood and Other Modifications, 2017, arXiv 1701.05517.

    Example:
        >>> import jax.numpy as jnp
        >>> from flowppl.numpyro import DiscretizedLogisticMixture
        >>> loc = jnp.array([1.0, 6.0])
        >>> pixel = DiscretizedLogisticMixture(jnp.zeros(2), loc, jnp.ones(2), levels=8)
        >>> round(float(jnp.exp(pixel.log_prob(jnp.arange(8))).sum()), 5), round(float(pixel.mean), 4)
        (1.0, 3.5)
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    has_enumerate_support = True
    pytree_aux_fields = ("levels",)

    def __init__(
        self,
        logits: jax.Array,
        loc: jax.Array,
        scale: jax.Array,
        levels: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        check_sizes("DiscretizedLogisticMixture", at_least=2, levels=levels)
        self.logits, self.loc, self.scale = jnp.broadcast_arrays(logits, loc, scale)
        self.levels = levels
        super().__init__(batch_shape=self.loc.shape[:-1], validate_args=validate_args)

    @classmethod
    def from_raw(cls, raw: jax.Array, levels: int) -> DiscretizedLogisticMixture:
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
            >>> import jax.numpy as jnp
            >>> from flowppl.numpyro import DiscretizedLogisticMixture
            >>> DiscretizedLogisticMixture.from_raw(jnp.zeros((5, 28, 28, 30)), levels=256).batch_shape
            (5, 28, 28)
        """
        parts = logistic.from_raw(jnp.moveaxis(raw, -1, 0), levels)
        logits, loc, scale = (jnp.moveaxis(part, 0, -1) for part in parts)
        return cls(logits, loc, scale, levels, validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        """The integers from 0 to ``levels - 1``."""
        return constraints.integer_interval(0, self.levels - 1)

    @property
    def mean(self) -> jax.Array:
        """The mean, of the batch shape."""
        return self._moments()[0]

    @property
    def variance(self) -> jax.Array:
        """The variance, of the batch shape."""
        return self._moments()[1]

    @validate_sample
    def log_prob(self, value: jax.Array) -> jax.Array:
        """The log probability of each integer."""
        logits, loc, scale = self._components()
        return logistic.log_prob(jnp.asarray(value), jax.nn.log_softmax(logits, 0), loc, scale, self.levels)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, integers of shape ``(*sample_shape, *batch)``."""
        check_key("DiscretizedLogisticMixture.sample", key, "key")
        key, noise_key = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        chosen = jax.random.categorical(key, self.logits, shape=shape)[..., None]
        parts = (jnp.broadcast_to(part, (*shape, part.shape[-1])) for part in (self.loc, self.scale))
        loc, scale = (jnp.take_along_axis(part, chosen, -1)[..., 0] for part in parts)
        noise = jax.random.logistic(noise_key, shape, loc.dtype)
        return logistic.rounded(loc + scale * noise, self.levels).astype(int)

    def enumerate_support(self, expand: bool = True) -> jax.Array:
        """All integers, along a new first axis."""
        values = jnp.arange(self.levels).reshape(-1, *(1,) * len(self.batch_shape))
        return jnp.broadcast_to(values, (self.levels, *self.batch_shape)) if expand else values

    def _components(self):
        return (jnp.moveaxis(part, -1, 0) for part in (self.logits, self.loc, self.scale))

    def _moments(self):
        logits, loc, scale = self._components()
        return logistic.moments(jax.nn.softmax(logits, 0), loc, scale, self.levels)
