"""The self-supervised variational autoencoder in NumPyro."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers

from flowppl.autoencoders.data import as_data
from flowppl.autoencoders.levels import as_tuple, check_smaller, check_upper
from flowppl.autoencoders.model import named, unflatten
from flowppl.inference.losses import standard_log_prob
from flowppl.numpyro.autoencoder import Autoencoder, network_of
from flowppl.numpyro.vae import FlowVAE


@dataclasses.dataclass(frozen=True, eq=False)
class SelfSupervisedVAE(FlowVAE):
    r"""A variational autoencoder of data given the same data made smaller, of which another one is the model.

    A function d makes a smaller datum y of each x, such as an image of half the size. An autoencoder ``upper`` is the
    model of y; this one is that of x given y, with latents z. With the prior, the posterior and the likelihood of
    :class:`FlowVAE`,

    .. math::
        y \sim \mathrm{upper}, \quad z \sim p(z \mid y), \quad x \sim p(x \mid \mathrm{decoder}(z, y)), \qquad
        q(z \mid x): \; z = f\big(\varepsilon;\, \mathrm{encoder}(x)\big), \quad \varepsilon \sim N(0, I).

    There is nothing to infer of y, since y = d(x). So the evidence lower bound (ELBO) is that of ``upper`` at d(x), and

    .. math::
        E_{z \sim q(z \mid x)} \big[ \log p(x \mid z, y) + \log p(z \mid y) - \log q(z \mid x) \big], \qquad y = d(x),

    and bounds log p(x) where data are integers or categories. (The density of real data and that of their d(x) are
    not one of x alone.) ``upper`` may be such an autoencoder itself: a ladder of sizes. Trained by :func:`fit_vae`,
    both learn together; draws are made from the small to the large.

    The names of the weights of ``upper`` begin with ``upper.``.

    Args:
        encoder: the network from a batch of data, ``(n, *shape)``, to features, ``(n, context_dim)``.
        decoder: the network of two arguments, latents, ``(n, *latent_shape)``, and smaller data, ``(n, *y_shape)``, to
            what the likelihood needs.
        posterior: the flow from noise to latents given the features.
        prior: the flow of the prior. If it has a context, it is given y as a vector: ``context_dim`` is the number of
            numbers in y. ``None`` is the standard normal.
        likelihood: as for :class:`FlowVAE`.
        upper: the autoencoder of smaller data.
        downscale: the function d from a batch of data to one of smaller data, which ``upper`` takes: of integers, for
            the likelihood ``"categorical"``.

    Raises:
        ValueError: as for :class:`FlowVAE`; in use, if ``downscale`` does not give a row for each datum.
        TypeError: if ``upper`` is no autoencoder, or ``downscale`` cannot be called.

    References:
        Gatopoulos, Tomczak: Self-Supervised Variational Auto-Encoders, 2020, arXiv 2010.02014.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flax import nnx
        >>> from flowppl.numpyro import FlowVAE, SelfSupervisedVAE
        >>> rngs = nnx.Rngs(0)
        >>> class Decoder(nnx.Linear):
        ...     def __call__(self, z, y):
        ...         return super().__call__(jnp.concatenate([z, y], -1))
        >>> encoder, decoder = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(1, 3, rngs=rngs)
        >>> small = FlowVAE(encoder, decoder, fp.amortized_posterior(1, 8, None))
        >>> posterior, encoder = fp.amortized_posterior(2, 8, None), nnx.Linear(9, 8, rngs=rngs)
        >>> vae = SelfSupervisedVAE(
        ...     encoder, Decoder(5, 9, rngs=rngs), posterior, upper=small, downscale=lambda x: x[:, ::3]
        ... )
        >>> params = vae.init(jax.random.key(0), jnp.ones((5, 9)))
        >>> vae.sample(jax.random.key(1), params, 4).shape
        (4, 9)
    """

    upper: Autoencoder = dataclasses.field(kw_only=True)
    downscale: Callable[[Any], Any] = dataclasses.field(kw_only=True)
    _is_conditional: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_upper(self.upper, Autoencoder, self.downscale)

    @property
    def dim(self) -> int:
        """The number of latents of a datum, those of ``upper`` among them."""
        return self._num_own + self.upper.dim

    def interpolate(
        self,
        rng_key: jax.Array,
        params: Mapping[str, Any],
        first: Any,
        second: Any,
        num_steps: int = 8,
        *,
        spherical: bool = False,
    ) -> jax.Array:
        """There is none, since smaller data have no noise: raises TypeError."""
        raise TypeError("SelfSupervisedVAE: there is no way between smaller data; interpolate by vae.upper")

    @property
    def _num_own(self):
        return math.prod(self.latent_shape)

    def _smaller(self, x):
        y = self.downscale(x)
        check_smaller(y, len(x))
        return self.upper._rows(y)

    def _model(self, x, num_data):
        x = x if x is None or isinstance(x, jax.Array) else jnp.asarray(as_data(x, jax.Array))
        with _above():
            y = self.upper._model(None if x is None else self._smaller(x), num_data)
        prior = self._prior_at(y)
        with numpyro.plate("data", num_data if x is None else len(x), dim=-1):
            z = numpyro.sample("z", prior)
            return numpyro.sample("x", self._likelihood((z, y), x), obs=x)

    def _guide(self, x):
        x = x if isinstance(x, jax.Array) else jnp.asarray(as_data(x, jax.Array))
        with _above():
            self.upper._guide(self._smaller(x))
        super()._guide(x)

    def _terms(self, x, noise):
        y, own = self._smaller(x), noise[..., : self._num_own]
        z, log_det = self._posterior(x).forward_and_log_det(self._shaped(own))
        kl = standard_log_prob(own) - log_det - self._prior_at(y).log_prob(z)
        with _above():
            above = self.upper._terms(y, noise[..., self._num_own :])
        return self._likelihood((z, y), x).log_prob(x) + above[0], kl + above[1], (z, *as_tuple(above[2]))

    def _prior_at(self, y):
        prior = self._prior_flow()
        if prior is None or not prior.bijection.context_dim:
            return self._prior()
        return prior(y.reshape(len(y), -1).astype(float))

    # The latents are those of this autoencoder, the smaller data, and the latents of ``upper``.

    def _encode(self, x, noise):
        y = self._smaller(x)
        z = super()._encode(x, noise[..., : self._num_own])
        with _above():
            return z, y, self.upper._encode(y, noise[..., self._num_own :])

    def _generate(self, key, num):
        keys = jax.random.split(key, 3)
        with _above():
            above = self.upper._generate(keys[0], num)
            y = self.upper._likelihood(above).sample(keys[1])
        return self._prior_at(y).expand((num,)).sample(keys[2]), y, above

    def _drawn(self, z):
        return z[0], *as_tuple(self.upper._drawn(z[2]))

    def _output(self, z):
        z, y = z[:2]
        batch = self._batch((z,))
        y = jnp.broadcast_to(y, (*batch, *y.shape[1:]))
        rows = z.reshape(-1, *self.latent_shape), y.reshape(-1, *y.shape[len(batch) :])
        with named("decoder", rows[0].shape):
            output = network_of("decoder", self.decoder)(*rows)
        return unflatten(self.likelihood, output, batch)

    def _batch(self, z):
        return super()._batch(z[0])

    def _check(self, params, x):
        super()._check(params, x)
        above = {name.removeprefix("upper."): value for name, value in params.items() if name.startswith("upper.")}
        self.upper._check(above, self._smaller(self._rows(x)))

    def _networks(self):
        return super()._networks() | {f"upper.{name}": each for name, each in self.upper._networks().items()}

    def _flows(self):
        return super()._flows() | {f"upper.{name}": each for name, each in self.upper._flows().items()}

    def _description(self, held):
        return super()._description(held) | {"upper": self.upper._description(None)}


def _above():
    """The names of sites begin with "upper." here."""
    return handlers.scope(prefix="upper", divider=".")
