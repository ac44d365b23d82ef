"""Variational autoencoders with flows in NumPyro."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro

from flowppl.autoencoders.checkpoints import describe
from flowppl.autoencoders.data import as_data
from flowppl.autoencoders.model import (
    as_features,
    check_networks,
    check_parts,
    named,
    unflatten,
)
from flowppl.bijections.contract import Bijection
from flowppl.inference.losses import standard_log_prob
from flowppl.numpyro.autoencoder import Autoencoder, network_of
from flowppl.numpyro.flow import Flow, flow, standard_normal


@dataclasses.dataclass(frozen=True, eq=False)
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

    ``model`` and ``guide`` are for NumPyro's ``SVI``, with any of its objectives; :func:`fit_vae` trains the same
    weights with warm-up, early stopping and checkpoints, and :func:`evaluate_vae` says how good they are. These two
    check that the data lie in the support of the likelihood; ``model`` takes them as they are.

    It holds no trained weights: these are a dict by name, ``params``, which :meth:`init` makes, ``fit_vae(...).params``
    and ``svi.get_params(state)`` are, and the methods take.

    Args:
        encoder: the network from a batch of data, ``(n, *shape)``, to features, ``(n, context_dim)``: a
            module of ``flax.nnx``, or a function that declares its parameters by NumPyro's own means. Features of
            another shape, such as ``(n, height, width, channels)``, are flattened.
        decoder: the network from latents, ``(n, *latent_shape)``, to what the likelihood needs, with n in front.
        posterior: the flow from noise to latents given the features, such as
            ``flowppl.amortized_posterior(dim, context_dim, "sylvester", 4)``.
        prior: the flow of a learned prior, such as ``flowppl.realnvp(dim)``, trained with the rest; a :class:`Flow`,
            used as it is, and not trained; ``None`` is the standard normal.
        likelihood: ``"bernoulli"`` (the decoder gives logits, an array like the data), ``"categorical"`` (logits along
            a last axis of its own; the data are integers from 0), ``"gaussian"`` (the decoder gives a pair, the mean
            and the log of the standard deviation, for all rows or one for each), or a function from the decoder's
            output to a NumPyro distribution. A :class:`PixelCNN` is such a function, of the context that the decoder
            gives: an autoregressive decoder, which sees the data in training, and is trained with the rest.

    Raises:
        ValueError: for an unknown likelihood, a posterior without a context, or a prior whose shape is not that of the
            latents; in use, for features or outputs of the wrong shape.
        TypeError: if posterior or prior is no flow, or a network cannot be called.

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114. Rezende, Mohamed: Variational Inference
        with Normalizing Flows, 2015, arXiv 1505.05770. A flow as the prior, and an autoregressive decoder: Chen et al.:
        Variational Lossy Autoencoder, 2016, arXiv 1611.02731.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, flowppl as fp
        >>> from flax import nnx
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from flowppl.numpyro import FlowVAE
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=4)
        >>> rngs = nnx.Rngs(0)
        >>> encoder = nnx.Sequential(nnx.Linear(9, 16, rngs=rngs), nnx.relu)
        >>> vae = FlowVAE(encoder, nnx.Linear(2, 9, rngs=rngs), posterior)
        >>> svi = SVI(vae.model, vae.guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
        >>> state, loss = jax.jit(svi.update)(svi.init(jax.random.key(0), jnp.ones((5, 9))), jnp.ones((5, 9)))
        >>> vae.sample(jax.random.key(1), svi.get_params(state), 3).shape
        (3, 9)
    """

    encoder: Callable[..., Any]
    decoder: Callable[..., Any]
    posterior: Bijection
    prior: Bijection | Flow | None = None
    likelihood: str | Callable[[Any], Any] = "bernoulli"

    _is_conditional: ClassVar[bool] = False  # whether the prior may take a context

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_networks(owner, encoder=self.encoder, decoder=self.decoder)
        prior = self.prior.bijection if isinstance(self.prior, Flow) else self.prior
        check_parts(owner, self.posterior, prior, self.likelihood, conditional=self._is_conditional)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of the latents of a datum."""
        return self.posterior.y_shape

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
            ValueError: if the decoder's output does not fit the data.

        Example:
            >>> import jax, flowppl as fp
            >>> from flax import nnx
            >>> from numpyro.infer import Predictive
            >>> from flowppl.numpyro import FlowVAE
            >>> posterior = fp.amortized_posterior(2, context_dim=9, flow=None)
            >>> vae = FlowVAE(lambda x: x, nnx.Linear(2, 9, rngs=nnx.Rngs(0)), posterior)
            >>> Predictive(vae.model, num_samples=3)(jax.random.key(0), None, 5)["x"].shape
            (3, 5, 9)
        """
        self._model(x, num_data)

    def guide(self, x: Any) -> None:
        """The posterior of the latents ``z`` of the data, in a plate ``data``.

        Args:
            x: n data, ``(n, *shape)``.

        Raises:
            ValueError: if the encoder's features do not fit the posterior.
        """
        self._guide(x)

    def _model(self, x, num_data):
        x = x if x is None or isinstance(x, jax.Array) else jnp.asarray(as_data(x, jax.Array))
        prior = self._prior()
        with numpyro.plate("data", num_data if x is None else len(x), dim=-1):
            z = numpyro.sample("z", prior)
            return numpyro.sample("x", self._likelihood(z, x), obs=x)

    def _guide(self, x):
        x = x if isinstance(x, jax.Array) else jnp.asarray(as_data(x, jax.Array))
        posterior = flow("posterior", self.posterior)(self._features(x))
        with numpyro.plate("data", len(x), dim=-1):
            numpyro.sample("z", posterior)

    def _terms(self, x, noise):
        z, log_det = self._posterior(x).forward_and_log_det(self._shaped(noise))
        kl = standard_log_prob(noise) - log_det - self._prior().log_prob(z)
        return self._likelihood(z, x).log_prob(x), kl, z

    def _features(self, x):
        with named("encoder", x.shape):
            features = network_of("encoder", self.encoder)(x)
        return as_features(features, len(x), self.posterior.context_dim)

    def _posterior(self, x):
        return flow("posterior", self.posterior).transform.condition(self._features(x))

    def _encode(self, x, noise):
        return self._posterior(x)(self._shaped(noise))

    def _shaped(self, noise):
        """Noise, a vector for each datum, as the posterior takes it."""
        return noise.reshape(*noise.shape[:-1], *self.posterior.x_shape)

    def _prior_flow(self) -> Flow | None:
        return flow("prior", self.prior) if isinstance(self.prior, Bijection) else self.prior

    def _prior(self):
        prior = self._prior_flow()
        return standard_normal(self.latent_shape) if prior is None else prior()

    def _generate(self, key, num):
        return self._prior().sample(key, (num,))

    def _to_noise(self, z):
        prior = self._prior_flow()
        return (z if prior is None else prior.transform.inv(z)).reshape(*self._batch(z), -1)

    def _from_noise(self, noise):
        prior = self._prior_flow()
        if prior is None:
            return noise.reshape(*noise.shape[:-1], *self.latent_shape)
        return prior.transform(noise.reshape(*noise.shape[:-1], *prior.bijection.x_shape))

    def _output(self, z):
        rows = z.reshape(-1, *self.latent_shape)
        with named("decoder", rows.shape):
            output = network_of("decoder", self.decoder)(rows)
        return unflatten(self.likelihood, output, self._batch(z))

    def _batch(self, z):
        return z.shape[: z.ndim - len(self.latent_shape)]

    def _networks(self):
        return {"encoder": self.encoder, "decoder": self.decoder}

    def _flows(self):
        return {"posterior": self.posterior, "prior": self.prior}

    def _description(self, held):
        return describe(self.posterior, self.prior, self.likelihood, held)
