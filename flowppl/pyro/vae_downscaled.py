"""The self-supervised variational autoencoder in Pyro."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import torch

from flowppl.autoencoders.levels import as_tuple, check_smaller, check_upper
from flowppl.autoencoders.model import named, unflatten
from flowppl.bijections.contract import Bijection
from flowppl.inference.losses import standard_log_prob
from flowppl.pyro.autoencoder import Autoencoder, as_rows
from flowppl.pyro.flow import Flow
from flowppl.pyro.vae import FlowVAE


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
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import FlowVAE, SelfSupervisedVAE
        >>> class Decoder(torch.nn.Linear):
        ...     def forward(self, z, y):
        ...         return super().forward(torch.cat([z, y], -1))
        >>> small = FlowVAE(torch.nn.Linear(3, 8), torch.nn.Linear(1, 3), fp.amortized_posterior(1, 8, None))
        >>> posterior = fp.amortized_posterior(2, 8, None)
        >>> vae = SelfSupervisedVAE(
        ...     torch.nn.Linear(9, 8), Decoder(5, 9), posterior, upper=small, downscale=lambda x: x[:, ::3]
        ... )
        >>> vae.sample(4).shape
        torch.Size([4, 9])
    """

    _parts = ("encoder", "decoder", "posterior", "prior", "upper")
    _is_conditional: ClassVar[bool] = True

    def __init__(
        self,
        encoder: Callable[..., Any],
        decoder: Callable[..., Any],
        posterior: Bijection,
        prior: Bijection | Flow | None = None,
        likelihood: str | Callable[[Any], Any] = "bernoulli",
        *,
        upper: Autoencoder,
        downscale: Callable[[Any], Any],
    ) -> None:
        super().__init__(encoder, decoder, posterior, prior, likelihood)
        check_upper(upper, Autoencoder, downscale)
        self.upper = upper
        self.downscale = downscale

    @property
    def dim(self) -> int:
        """The number of latents of a datum, those of ``upper`` among them."""
        return self._num_own + self.upper.dim

    def interpolate(self, first: Any, second: Any, num_steps: int = 8, *, spherical: bool = False) -> torch.Tensor:
        """There is none, since smaller data have no noise: raises TypeError."""
        raise TypeError("SelfSupervisedVAE: there is no way between smaller data; interpolate by vae.upper")

    @property
    def _num_own(self):
        return math.prod(self.latent_shape)

    def _smaller(self, x):
        y = self.downscale(x)
        check_smaller(y, len(x))
        return self.upper._rows(y)

    def _model(self, x, num_data, prefix=""):
        self._register("decoder", "prior", "likelihood", prefix=prefix)
        x = x if x is None or isinstance(x, torch.Tensor) else self._rows(as_rows(x))
        y = self.upper._model(None if x is None else self._smaller(x), num_data, f"{prefix}upper.")
        with pyro.plate(f"{prefix}data", num_data if x is None else len(x), dim=-1):
            z = pyro.sample(f"{prefix}z", self._prior_at(y))
            return pyro.sample(f"{prefix}x", self._likelihood((z, y), x), obs=x)

    def _guide(self, x, prefix=""):
        x = x if isinstance(x, torch.Tensor) else self._rows(as_rows(x))
        self.upper._guide(self._smaller(x), f"{prefix}upper.")
        super()._guide(x, prefix)

    def terms(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
        y, own = self._smaller(x), noise[..., : self._num_own]
        z, log_det = self._posterior(x).forward_and_log_det(self._shaped(own))
        kl = standard_log_prob(own) - log_det - self._prior_at(y).log_prob(z)
        above = self.upper.terms(y, noise[..., self._num_own :])
        return self._log_likelihood((z, y), x) + above[0], kl + above[1], (z, *as_tuple(above[2]))

    def _prior_at(self, y):
        if self.prior is None or not self.prior.bijection.context_dim:
            return self._prior()
        return self.prior(y.flatten(1).to(self._zeros))

    # The latents are those of this autoencoder, the smaller data, and the latents of ``upper``.

    def _encode(self, x, noise):
        y = self._smaller(x)
        z = super()._encode(x, noise[..., : self._num_own])
        return z, y, self.upper._encode(y, noise[..., self._num_own :])

    def _generate(self, num):
        above = self.upper._generate(num)
        y = self.upper._decode(above, mean=False)
        return self._prior_at(y).expand((num,)).sample(), y, above

    def _drawn(self, z):
        return z[0], *as_tuple(self.upper._drawn(z[2]))

    def _output(self, z):
        z, y = z[:2]
        batch = self._batch((z,))
        rows = z.reshape(-1, *self.latent_shape), y.expand(*batch, *y.shape[1:]).reshape(-1, *y.shape[1:])
        with named("decoder", rows[0].shape):
            output = self.decoder(*rows)
        return unflatten(self.likelihood, output, batch)

    def _batch(self, z):
        return super()._batch(z[0])

    def _check(self, x):
        super()._check(x)
        self.upper._check(self._smaller(self._rows(x)))

    def _networks(self):
        return [*super()._networks(), *self.upper._networks()]

    def _description(self, held):
        return super()._description(held) | {"upper": self.upper._description(None)}
