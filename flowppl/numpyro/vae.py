"""Variational autoencoders with flows in NumPyro."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.module import nnx_module

from flowppl.autoencoders.data import as_data, check_data, check_inputs
from flowppl.autoencoders.model import (
    as_features,
    check_ends,
    check_networks,
    check_output,
    check_parts,
    named,
    num_event_axes,
    path_weights,
    unflatten,
)
from flowppl.bijections.contract import Bijection
from flowppl.inference.losses import standard_log_prob
from flowppl.numpyro.flow import Flow, flow, standard_normal
from flowppl.numpyro.transforms import check_key

LIKELIHOODS: dict[str, Callable] = {
    "bernoulli": lambda output: dist.Bernoulli(logits=output, validate_args=False),
    "categorical": lambda output: dist.Categorical(logits=output, validate_args=False),
    "gaussian": lambda output: dist.Normal(output[0], jnp.exp(output[1]), validate_args=False),
}


@dataclasses.dataclass(frozen=True, eq=False)
class FlowVAE:
    r"""A variational autoencoder whose posterior, and whose prior, may be flows.

    Each datum x has latents z: a vector, or an array of any other shape, such as an image. The model draws them from the prior p(z), and the datum
    from a likelihood that the decoder makes of them. The guide is the posterior q: the encoder makes features of the
    datum, and a flow f that is given these maps standard normal noise to latents:

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
            module of ``flax.nnx``, or a function that declares its parameters by NumPyro's own means.
        decoder: the network from latents, ``(n, *latent_shape)``, to what the likelihood needs, with n in front.
        posterior: the flow from noise to latents given the features, such as
            ``flowppl.amortized_posterior(dim, context_dim, "sylvester", 4)``.
        prior: the flow of a learned prior, such as ``flowppl.realnvp(dim)``, trained with the rest; a :class:`Flow`,
            used as it is, and not trained; ``None`` is the standard normal.
        likelihood: ``"bernoulli"`` (the decoder gives logits, an array like the data), ``"categorical"`` (logits along
            a last axis of its own; the data are integers from 0), ``"gaussian"`` (the decoder gives a pair, the mean
            and the log of the standard deviation, for all rows or one for each), or a function from the decoder's
            output to a NumPyro distribution.

    Raises:
        ValueError: for an unknown likelihood, a posterior without a context, or a prior whose shape is not that of the
            latents; in use, for features or outputs of the wrong shape.
        TypeError: if posterior or prior is no flow, or a network cannot be called.

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114. Rezende, Mohamed: Variational Inference
        with Normalizing Flows, 2015, arXiv 1505.05770. A flow as the prior: Chen et al.: Variational Lossy Autoencoder,
        2016, arXiv 1611.02731.

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
        >>> state, loss = svi.update(svi.init(jax.random.key(0), jnp.ones((5, 9))), jnp.ones((5, 9)))
        >>> vae.sample(jax.random.key(1), svi.get_params(state), 3).shape
        (3, 9)
    """

    encoder: Callable[..., Any]
    decoder: Callable[..., Any]
    posterior: Bijection
    prior: Bijection | Flow | None = None
    likelihood: str | Callable[[Any], Any] = "bernoulli"

    def __post_init__(self) -> None:
        check_networks(encoder=self.encoder, decoder=self.decoder)
        prior = self.prior.bijection if isinstance(self.prior, Flow) else self.prior
        check_parts(self.posterior, prior, self.likelihood)

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
        x = x if x is None or isinstance(x, jax.Array) else jnp.asarray(as_data(x, jax.Array))
        decoder = _network("decoder", self.decoder)
        prior = self._prior()
        with numpyro.plate("data", num_data if x is None else len(x), dim=-1):
            z = numpyro.sample("z", standard_normal(self.latent_shape) if prior is None else prior())
            numpyro.sample("x", self._likelihood(decoder, z, x), obs=x)

    def guide(self, x: Any) -> None:
        """The posterior of the latents ``z`` of the data, in a plate ``data``.

        Args:
            x: n data, ``(n, *shape)``.

        Raises:
            ValueError: if the encoder's features do not fit the posterior.
        """
        x = x if isinstance(x, jax.Array) else jnp.asarray(as_data(x, jax.Array))
        posterior = flow("posterior", self.posterior)(self._features(x))
        with numpyro.plate("data", len(x), dim=-1):
            numpyro.sample("z", posterior)

    def init(self, rng_key: jax.Array, x: Any) -> dict[str, Any]:
        """The first parameters, by the names that ``svi.get_params`` gives them.

        Args:
            rng_key: determines the flows' first weights, and those of networks that draw theirs.
            x: some of the data, as for :func:`fit_vae`.

        Returns:
            A dict: the weights of the encoder and decoder, of the posterior, and of a prior that is trained.

        Raises:
            ValueError: if the data do not fit the networks, or these keep a state, as batch normalisation and dropout
                do, or have parameters with constraints.
        """
        check_key("vae.init(key, x)", rng_key)
        return _init(self, rng_key, self._rows(as_data(x, jax.Array)[:1]))

    def encode(self, rng_key: jax.Array, params: Mapping[str, Any], x: Any, num_samples: int = 1) -> jax.Array:
        """Draws of the latents from the posterior.

        Args:
            rng_key: determines the draws.
            params: the weights, by name.
            x: n data, as for :func:`fit_vae`.
            num_samples: the number of draws for each.

        Returns:
            An array of shape ``(num_samples, n, *latent_shape)``.

        Raises:
            ValueError: if there are no data, they are not finite or not of the likelihood's range, or do not fit the
                encoder; if ``params`` lack a part.
            TypeError: if there is no key, or ``params`` is no dict of weights.
        """
        self._check_call("vae.encode(key, params, x)", rng_key, params)
        x = as_data(x, jax.Array)
        if not isinstance(x, jax.core.Tracer):
            check_inputs(self.likelihood, float(x.min()), float(x.max()))
        noise = jax.random.normal(rng_key, (num_samples, len(x), self.dim))
        return _encode(self, params, self._rows(x), noise)

    def reconstruct(self, rng_key: jax.Array, params: Mapping[str, Any], x: Any, num_samples: int = 1) -> jax.Array:
        """The mean of the likelihood at draws from the posterior.

        Of categories it is the mean of their numbers.

        Args:
            rng_key: determines the draws.
            params: the weights, by name.
            x: n data, as for :func:`fit_vae`.
            num_samples: the number of draws for each.

        Returns:
            An array of shape ``(num_samples, n, *shape)``.

        Raises:
            ValueError: as for :meth:`encode`.
            TypeError: as for :meth:`encode`.
        """
        self._check_call("vae.reconstruct(key, params, x)", rng_key, params)
        return _decode(self, params, self.encode(rng_key, params, x, num_samples), None)

    def sample(
        self, rng_key: jax.Array, params: Mapping[str, Any], num_samples: int = 1, *, mean: bool = True
    ) -> jax.Array:
        """Data made from draws from the prior.

        Args:
            rng_key: determines the draws.
            params: the weights, by name.
            num_samples: the number of draws.
            mean: whether to give the mean of the likelihood at each draw, or a draw from the likelihood.

        Returns:
            An array of shape ``(num_samples, *shape)``.

        Raises:
            ValueError: if ``params`` lack a part.
            TypeError: if there is no key, or ``params`` is no dict of weights.
        """
        self._check_call("vae.sample(key, params, num_samples)", rng_key, params)
        z_key, x_key = jax.random.split(rng_key)
        with handlers.substitute(data=params):
            prior = self._prior()
        distribution = standard_normal(self.latent_shape) if prior is None else prior()
        return _decode(self, params, distribution.sample(z_key, (num_samples,)), None if mean else x_key)

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
        r"""The mean of the likelihood on the way from data to other data, in the noise of the prior.

        One draw of each latent is mapped to the noise :math:`u_0, u_1` of the prior. For t from 0 to 1 the way is
        :math:`(1-t)\,u_0 + t\,u_1`, or, ``spherical``, :math:`\cos(\varphi)\,u_0 + \sin(\varphi)\,u_1` with
        :math:`\varphi = t \pi / 2`, which of independent standard normals makes standard normals all the way (Dinh,
        Sohl-Dickstein, Bengio 2016, arXiv 1605.08803).

        Args:
            rng_key: determines the draws.
            params: the weights, by name.
            first: n data, as for :func:`fit_vae`.
            second: as many.
            num_steps: the number of steps, the two ends among them.
            spherical: whether to take the second way.

        Returns:
            An array of shape ``(num_steps, n, *shape)``, from the reconstruction of the first to that of the second.

        Raises:
            ValueError: for less than two steps, or data that are not equally many; as for :meth:`encode`.
            TypeError: as for :meth:`encode`.
        """
        self._check_call("vae.interpolate(key, params, first, second)", rng_key, params)
        first, second = (as_data(x, jax.Array) for x in (first, second))
        check_ends(first, second)
        keys = jax.random.split(rng_key)
        ends = [self.encode(key, params, x)[0] for key, x in zip(keys, (first, second), strict=True)]
        with handlers.substitute(data=params):
            prior = self._prior()
        transform = None if prior is None else prior.transform
        ends = ends if transform is None else [transform.inv(end) for end in ends]
        axes = (-1, *(1 for _ in ends[0].shape))
        weights = [jnp.asarray(each).reshape(axes) for each in path_weights(num_steps, spherical)]
        noise = sum(weight * end for weight, end in zip(weights, ends, strict=True))
        return _decode(self, params, noise if transform is None else transform(noise), None)

    def terms(
        self, params: Mapping[str, Any], x: jax.Array, noise: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The two parts of the ELBO of each datum at given noise, and the latents.

        Args:
            params: the weights, by name.
            x: n data.
            noise: an array ``(..., n, dim)``.

        Returns:
            log p(x | z) and log q(z | x) - log p(z), each of shape ``(..., n)``, and z.
        """
        with handlers.substitute(data=params):
            z, log_det = self._posterior(x).forward_and_log_det(self._shaped(noise))
            prior = self._prior()
            log_prior = standard_log_prob(z.reshape(noise.shape)) if prior is None else prior().log_prob(z)
            log_likelihood = self._likelihood(_network("decoder", self.decoder), z, x).log_prob(x)
        return log_likelihood, standard_log_prob(noise) - log_det - log_prior, z

    def _features(self, x):
        with named("encoder", x.shape):
            features = _network("encoder", self.encoder)(x)
        return as_features(features, len(x), self.posterior.context_dim)

    def _posterior(self, x):
        return flow("posterior", self.posterior).transform.condition(self._features(x))

    def _shaped(self, noise):
        """Noise, a vector for each datum, as the posterior takes it."""
        return noise.reshape(*noise.shape[:-1], *self.posterior.x_shape)

    def _prior(self) -> Flow | None:
        return flow("prior", self.prior) if isinstance(self.prior, Bijection) else self.prior

    def _likelihood(self, decoder, z, x=None):
        """The distribution of data, such as ``x``, for each row of latents; the decoder sees one axis of rows."""
        rows, batch = z.reshape(-1, *self.latent_shape), z.shape[: z.ndim - len(self.latent_shape)]
        with named("decoder", rows.shape):
            output = decoder(rows)
        output = unflatten(self.likelihood, output, batch)
        make = self.likelihood if callable(self.likelihood) else LIKELIHOODS[self.likelihood]
        likelihood = make(output)
        num_axes = num_event_axes(likelihood, len(batch))
        likelihood = likelihood.to_event(num_axes)
        if x is not None:
            check_output(self.likelihood, likelihood.event_shape, x.shape[1:])
        return likelihood

    def _rows(self, x):
        """Data as an array of the default float dtype, unless they are numbers of categories."""
        x = jnp.asarray(x)
        return x if self.likelihood == "categorical" else x.astype(float)

    def _check_call(self, call, rng_key, params):
        """Raise an error unless these are a key, and can be weights of this autoencoder."""
        check_key(call, rng_key)
        if not isinstance(params, Mapping):
            raise TypeError(
                f"{call}: params must be the weights by name, such as fit.params, svi.get_params(state) or "
                f"vae.init(key, x), got {type(params).__name__}"
            )
        flows = {"posterior": self.posterior, "prior": self.prior}
        needed = [name for name, part in flows.items() if isinstance(part, Bijection) and part.parameters()]
        networks = {"encoder": self.encoder, "decoder": self.decoder}
        needed += [f"{name}$params" for name, network in networks.items() if _is_module(network)]
        missing = [name for name in needed if name not in params]
        if missing:
            raise ValueError(f"{call}: params lack {', '.join(missing)}; they have {', '.join(params) or 'none'}")

    def _check(self, params, x):
        """Raise ValueError unless networks, likelihood and data fit together."""
        found = []

        def look(params, x):
            with handlers.substitute(data=params):
                z = self._posterior(x)(self._shaped(jnp.zeros((1, self.dim))))
                found.append(self._likelihood(_network("decoder", self.decoder), z, x))

        first = self._rows(x[:1])
        jax.eval_shape(look, params, first)
        num_categories = _base(found[0]).logits.shape[-1] if self.likelihood == "categorical" else None
        supported = not callable(self.likelihood) or _supports(_base(found[0]), self._rows(x))
        check_data(self.likelihood, np.asarray(x), num_categories, supported)

    def _learns_scale(self, params) -> bool:
        """Whether the scale of the likelihood ``"gaussian"`` has weights of its own."""

        def scale(params):
            with handlers.substitute(data=params):
                return _network("decoder", self.decoder)(jnp.zeros((1, *self.latent_shape)))[1].sum()

        return any(bool(leaf.any()) for leaf in jax.tree.leaves(jax.grad(scale)(params)))


def _network(name, network):
    """The function of a module of flax, its parameters one ``param`` site; any other function as it is."""
    return nnx_module(name, network) if _is_module(network) else network


def _is_module(network) -> bool:
    nnx = sys.modules.get("flax.nnx")  # there is a module of it only where it was imported
    return nnx is not None and isinstance(network, nnx.Module)


def _base(likelihood):
    """The likelihood of the numbers of a datum, not of a whole one; a transformed distribution has a base, too."""
    return likelihood.base_dist if isinstance(likelihood, dist.Independent) else likelihood


def _supports(likelihood, x) -> bool:
    """Whether all data are in the support, if that is known and the same for all latents."""
    support = likelihood.support
    is_fixed = support is not None and not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(support))
    return not is_fixed or bool(support(x).all())


# One program for all calls with arrays of the same shapes; an autoencoder is hashed by its identity.


@partial(jax.jit, static_argnums=0)
def _init(vae, key, x):
    with handlers.block(), handlers.trace() as trace, handlers.seed(rng_seed=key):
        vae.terms({}, x, jnp.zeros((1, vae.dim)))
    states = [name for name, site in trace.items() if site["type"] == "mutable"]
    if states:
        raise ValueError(
            f"FlowVAE: the networks keep a state, {', '.join(states)}, as batch normalisation and dropout do; only SVI "
            "with model and guide trains those. Use layers without one, such as LayerNorm"
        )
    sites = {name: site for name, site in trace.items() if site["type"] == "param"}
    real = dist.constraints.real
    bounded = [name for name, site in sites.items() if site["kwargs"].get("constraint", real) is not real]
    if bounded:
        raise ValueError(
            f"FlowVAE: the parameters {', '.join(bounded)} have constraints; only SVI with model and guide keeps them. "
            "Declare unconstrained ones, and map them inside the network"
        )
    return {name: site["value"] for name, site in sites.items()}


@partial(jax.jit, static_argnums=0)
def _encode(vae, params, x, noise):
    with handlers.substitute(data=params):
        return vae._posterior(x)(vae._shaped(noise))


@partial(jax.jit, static_argnums=0)
def _decode(vae, params, z, key):
    with handlers.substitute(data=params):
        likelihood = vae._likelihood(_network("decoder", vae.decoder), z)
    if key is not None:
        return likelihood.sample(key)
    if isinstance(_base(likelihood), (dist.CategoricalLogits, dist.CategoricalProbs)):
        probs = _base(likelihood).probs
        return probs @ jnp.arange(probs.shape[-1], dtype=probs.dtype)
    return likelihood.mean
