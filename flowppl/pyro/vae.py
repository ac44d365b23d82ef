"""Variational autoencoders with flows in Pyro."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pyro
import torch

from flowppl.autoencoders.checkpoints import describe
from flowppl.autoencoders.model import as_features, check_networks, check_parts, named, unflatten
from flowppl.bijections.contract import Bijection
from flowppl.inference.losses import standard_log_prob
from flowppl.pyro.autoencoder import Autoencoder, as_rows
from flowppl.pyro.flow import Flow, standard_normal


class FlowVAE(Autoencoder):
    r"""A variational autoencoder whose posterior, and whose prior, may be flows.

    Each datum x has latents z: a vector, or an array of another shape, such as that of an image. The model draws them
    from the prior p(z), and the datum from a likelihood that the decoder makes of them. The guide is the posterior q:
    the encoder makes features of the datum, and a flow f that is given these maps standard normal noise to latents:

    .. math::
        z \sim p(z), \quad x \sim p(x \mid \mathrm{decoder}(z)), \qquad
        q(z \mid x): \; z = f\big(\varepsilon;\, \mathrm{encoder}(x)\big), \quad \varepsilon \sim N(0, I).

    Training maximises the evidence lower bound (ELBO), the mean over the data of

    .. math::
        E_{z \sim q(z \mid x)} \big[ \log p(x \mid z) + \log p(z) - \log q(z \mid x) \big] \le \log p(x).

    ``model`` and ``guide`` are for Pyro's ``SVI``, with any of its objectives; :func:`fit_vae` trains the same weights
    with warm-up, early stopping and checkpoints, and :func:`evaluate_vae` says how good they are. These two check that
    the data lie in the support of the likelihood; ``model`` takes them as they are.

    It is a module: ``.to(device)`` moves all of it, and ``state_dict`` holds all weights.

    Args:
        encoder: the network from a batch of data, ``(n, *shape)``, to features, ``(n, context_dim)``: a
            ``torch.nn.Module``. Features of another shape, such as ``(n, channels, height, width)``, are flattened.
        decoder: the network from latents, ``(n, *latent_shape)``, to what the likelihood needs, with n in front.
        posterior: the flow from noise to latents given the features, such as
            ``flowppl.amortized_posterior(dim, context_dim, "sylvester", 4)``.
        prior: the flow of a learned prior, such as ``flowppl.realnvp(dim)``, trained with the rest; a :class:`Flow`,
            used as it is, which ``freeze()`` keeps from training; ``None`` is the standard normal.
        likelihood: ``"bernoulli"`` (the decoder gives logits, an array like the data), ``"categorical"`` (logits along
            a last axis of its own; the data are integers from 0), ``"gaussian"`` (the decoder gives a pair, the mean
            and the log of the standard deviation, for all rows or one for each), or a function from the decoder's
            output to a Pyro distribution. A :class:`PixelCNN` is such a function, of the context that the decoder
            gives: an autoregressive decoder, which sees the data in training, and is trained with the rest.

    Raises:
        ValueError: for an unknown likelihood, a posterior without a context, or a prior whose shape is not that of the
            latents; in use, for features or outputs of the wrong shape, and parts on several devices.
        TypeError: if posterior or prior is no flow, or a network cannot be called.

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114. Rezende, Mohamed: Variational Inference
        with Normalizing Flows, 2015, arXiv 1505.05770. A flow as the prior, and an autoregressive decoder: Chen et al.:
        Variational Lossy Autoencoder, 2016, arXiv 1611.02731.

    Example:
        >>> import torch, pyro, flowppl as fp
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from flowppl.pyro import FlowVAE
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=4)
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(9, 16), torch.nn.ReLU())
        >>> vae = FlowVAE(encoder, torch.nn.Linear(2, 9), posterior)
        >>> pyro.clear_param_store()
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(torch.ones(5, 9))
        >>> vae.sample(3).shape
        torch.Size([3, 9])
    """

    _is_conditional: ClassVar[bool] = False  # whether the prior may take a context

    def __init__(
        self,
        encoder: Callable[..., Any],
        decoder: Callable[..., Any],
        posterior: Bijection,
        prior: Bijection | Flow | None = None,
        likelihood: str | Callable[[Any], Any] = "bernoulli",
    ) -> None:
        super().__init__()
        owner = type(self).__name__
        check_networks(owner, encoder=encoder, decoder=decoder)
        of_prior = prior.bijection if isinstance(prior, Flow) else prior
        check_parts(owner, posterior, of_prior, likelihood, conditional=self._is_conditional)
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        self.posterior = Flow(posterior)
        self.prior = Flow(prior) if isinstance(prior, Bijection) else prior
        self.likelihood = likelihood

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of the latents of a datum."""
        return self.posterior.bijection.y_shape

    @property
    def dim(self) -> int:
        """The number of latents of a datum."""
        return math.prod(self.latent_shape)

    def model(self, x: Any = None, num_data: int = 1) -> None:
        """The generative model, with the sites ``z``, latents, and ``x``, data, in a plate ``data``.

        Args:
            x: n data, ``(n, *shape)``, which are observed; ``None`` draws them.
            num_data: how many to draw.

        Raises:
            ValueError: if the decoder's output does not fit the data, or Pyro's parameter store has another
                autoencoder.

        Example:
            >>> import torch, pyro, flowppl as fp
            >>> from pyro.infer import Predictive
            >>> from flowppl.pyro import FlowVAE
            >>> posterior = fp.amortized_posterior(2, context_dim=9, flow=None)
            >>> vae = FlowVAE(torch.nn.Identity(), torch.nn.Linear(2, 9), posterior)
            >>> pyro.clear_param_store()
            >>> Predictive(vae.model, num_samples=3)(None, 5)["x"].shape
            torch.Size([3, 5, 9])
        """
        self._model(x, num_data)

    def guide(self, x: Any) -> None:
        """The posterior of the latents ``z`` of the data, in a plate ``data``.

        Args:
            x: n data, ``(n, *shape)``.

        Raises:
            ValueError: if the encoder's features do not fit the posterior, or Pyro's parameter store has another
                autoencoder.
        """
        self._guide(x)

    def terms(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
        z, log_det = self._posterior(x).forward_and_log_det(self._shaped(noise))
        kl = standard_log_prob(noise) - log_det - self._prior().log_prob(z)
        return self._log_likelihood(z, x), kl, z

    def _model(self, x, num_data, prefix=""):
        self._register("decoder", "prior", "likelihood", prefix=prefix)
        x = x if x is None or isinstance(x, torch.Tensor) else self._rows(as_rows(x))
        with pyro.plate(f"{prefix}data", num_data if x is None else len(x), dim=-1):
            z = pyro.sample(f"{prefix}z", self._prior())
            return pyro.sample(f"{prefix}x", self._likelihood(z, x), obs=x)

    def _guide(self, x, prefix=""):
        self._register("encoder", "posterior", prefix=prefix)
        x = x if isinstance(x, torch.Tensor) else self._rows(as_rows(x))
        with pyro.plate(f"{prefix}data", len(x), dim=-1):
            pyro.sample(f"{prefix}z", self.posterior(self._features(x)))

    def _features(self, x):
        with named("encoder", x.shape):
            features = self.encoder(x)
        return as_features(features, len(x), self.posterior.bijection.context_dim)

    def _posterior(self, x):
        return self.posterior.transform.condition(self._features(x))

    def _encode(self, x, noise):
        return self._posterior(x)(self._shaped(noise))

    def _shaped(self, noise):
        """Noise, a vector for each datum, as the posterior takes it."""
        return noise.unflatten(-1, self.posterior.bijection.x_shape)

    @property
    def _zeros(self) -> torch.Tensor:
        zeros: torch.Tensor = self.posterior._zeros
        return zeros

    def _prior(self):
        return standard_normal(self._zeros.reshape(self.latent_shape)) if self.prior is None else self.prior()

    def _generate(self, num):
        return self._prior().sample((num,))

    def _to_noise(self, z):
        return (z if self.prior is None else self.prior.transform.inv(z)).flatten(len(self._batch(z)))

    def _from_noise(self, noise):
        if self.prior is None:
            return noise.unflatten(-1, self.latent_shape)
        return self.prior.transform(noise.unflatten(-1, self.prior.bijection.x_shape))

    def _output(self, z):
        rows = z.reshape(-1, *self.latent_shape)
        with named("decoder", rows.shape):
            output = self.decoder(rows)
        return unflatten(self.likelihood, output, self._batch(z))

    def _batch(self, z):
        return tuple(z.shape[: z.ndim - len(self.latent_shape)])

    def _networks(self):
        return [self.encoder, self.decoder]

    def _description(self, held):
        return describe(self.posterior.bijection, self.prior, self.likelihood, held)
