"""What the variational autoencoders of NumPyro share: data made, encoded and judged."""

from __future__ import annotations

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
from flowppl.autoencoders.model import check_ends, check_output, num_event_axes
from flowppl.bijections.contract import Bijection
from flowppl.inference.latent_space import path_weights
from flowppl.numpyro.transforms import check_key

LIKELIHOODS: dict[str, Callable] = {
    "bernoulli": lambda output: dist.Bernoulli(logits=output, validate_args=False),
    "categorical": lambda output: dist.Categorical(logits=output, validate_args=False),
    "gaussian": lambda output: dist.Normal(output[0], jnp.exp(output[1]), validate_args=False),
}


class Autoencoder:
    """What all autoencoders share: :class:`FlowVAE`, and those of several levels of latents.

    In a subclass "latents" are what it needs to decode: an array, or a tuple of arrays.
    """

    likelihood: Any

    # What a subclass has; all of it but ``dim`` and the dictionaries is called where the weights are substituted.

    @property
    def dim(self) -> int:
        """The number of latents of a datum."""
        raise NotImplementedError

    def _model(self, x: Any, num_data: int) -> jax.Array:
        """The generative model; it gives the data."""
        raise NotImplementedError

    def _guide(self, x: Any) -> None:
        """The posterior."""
        raise NotImplementedError

    def _terms(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        """What ``terms`` gives."""
        raise NotImplementedError

    def _encode(self, x: jax.Array, noise: jax.Array) -> Any:
        """The latents of data that this noise gives."""
        raise NotImplementedError

    def _generate(self, key: jax.Array, num: int) -> Any:
        """Draws of the latents from the prior."""
        return self._from_noise(jax.random.normal(key, (num, self.dim)))

    def _to_noise(self, z: Any) -> jax.Array:
        """The noise of the prior, ``(..., n, dim)``, that gives these latents."""
        raise NotImplementedError

    def _from_noise(self, noise: jax.Array) -> Any:
        """The latents that noise of the prior gives."""
        raise NotImplementedError

    def _output(self, z: Any) -> Any:
        """What the decoder gives for each row of latents."""
        raise NotImplementedError

    def _batch(self, z: Any) -> tuple[int, ...]:
        """The shape of a batch of latents."""
        raise NotImplementedError

    def _drawn(self, z: Any) -> Any:
        """Those of the latents that were drawn."""
        return z

    def _networks(self) -> dict[str, Any]:
        """The encoders and decoders, by the names of their sites."""
        raise NotImplementedError

    def _flows(self) -> dict[str, Any]:
        """The flows, by the names of their sites."""
        raise NotImplementedError

    def _description(self, held: Callable | None) -> dict[str, Any]:
        """What a checkpoint tells of it; see :func:`flowppl.autoencoders.checkpoints.describe`."""
        raise NotImplementedError

    # What it gets for that.

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
        return self._drawn(self._encoded(rng_key, params, x, num_samples))

    def reconstruct(self, rng_key: jax.Array, params: Mapping[str, Any], x: Any, num_samples: int = 1) -> jax.Array:
        """The mean of the likelihood at draws from the posterior.

        Of categories it is the mean of their numbers. Of a likelihood without a mean in closed form, as that of an
        autoregressive decoder, it is a draw.

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
        z_key, x_key = jax.random.split(rng_key)
        return _decode(self, params, self._encoded(z_key, params, x, num_samples), x_key, True)

    def sample(
        self, rng_key: jax.Array, params: Mapping[str, Any], num_samples: int = 1, *, mean: bool = True
    ) -> jax.Array:
        """Data made from draws from the prior.

        Args:
            rng_key: determines the draws.
            params: the weights, by name.
            num_samples: the number of draws.
            mean: whether to give the mean of the likelihood at each draw, if it has one, or a draw from the likelihood.

        Returns:
            An array of shape ``(num_samples, *shape)``.

        Raises:
            ValueError: if ``params`` lack a part.
            TypeError: if there is no key, or ``params`` is no dict of weights.
        """
        self._check_call("vae.sample(key, params, num_samples)", rng_key, params)
        z_key, x_key = jax.random.split(rng_key)
        with handlers.substitute(data=params):
            z = self._generate(z_key, num_samples)
        return _decode(self, params, z, x_key, mean)

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

        What the posterior makes of noise zero, its centre, is mapped to the noise :math:`u_0, u_1` of the prior: the
        ends are not drawn, and are the same in every call. For t from 0 to 1 the way is
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
        ends = [self._encoded(None, params, x, None) for x in (first, second)]
        weights = [jnp.asarray(each)[:, None, None] for each in path_weights(num_steps, spherical)]
        with handlers.substitute(data=params):
            noise: Any = sum(weight * self._to_noise(end)[0] for weight, end in zip(weights, ends, strict=True))
            z = self._from_noise(noise)
        return _decode(self, params, z, rng_key, True)

    def terms(self, params: Mapping[str, Any], x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        """The two parts of the ELBO of each datum at given noise, and the latents.

        Args:
            params: the weights, by name.
            x: n data.
            noise: an array ``(..., n, dim)``.

        Returns:
            log p(x | z) and log q(z | x) - log p(z), each of shape ``(..., n)``, and z.
        """
        with handlers.substitute(data=params):
            return self._terms(x, noise)

    def _encoded(self, rng_key, params, x, num_samples=1):
        """Draws of the latents, or, if their number is ``None``, the centre of the posterior."""
        x = as_data(x, jax.Array)
        if not isinstance(x, jax.core.Tracer):
            check_inputs(self.likelihood, float(x.min()), float(x.max()))
        zeros = jnp.zeros((1, len(x), self.dim))
        noise = zeros if num_samples is None else jax.random.normal(rng_key, (num_samples, len(x), self.dim))
        return _encode(self, params, self._rows(x), noise)

    def _likelihood(self, z, x=None):
        """The distribution of data, such as ``x``, for each row of latents."""
        make: Any = self.likelihood if callable(self.likelihood) else LIKELIHOODS[self.likelihood]
        if _has_weights(make):
            make = make._with_params(numpyro.param("likelihood", make._params))
        likelihood = make(self._output(z))
        num_axes = num_event_axes(likelihood, len(self._batch(z)))
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
        flows, networks = self._flows(), self._networks()
        needed = [name for name, part in flows.items() if isinstance(part, Bijection) and part.parameters()]
        needed += [f"{name}$params" for name, network in networks.items() if _is_module(network)]
        needed += ["likelihood"] * _has_weights(self.likelihood)
        missing = [name for name in needed if name not in params]
        if missing:
            raise ValueError(f"{call}: params lack {', '.join(missing)}; they have {', '.join(params) or 'none'}")

    def _check(self, params, x):
        """Raise ValueError unless networks, likelihood and data fit together."""
        self._checker(params, x[:1])(x)

    def _checker(self, params, first):
        """The same for networks and one datum; and the function that checks other data."""
        found = []

        def look(params, x):
            with handlers.substitute(data=params):
                found.append(self._likelihood(self._encode(x, jnp.zeros((1, self.dim))), x))

        jax.eval_shape(look, params, self._rows(first))
        num_categories = _base(found[0]).logits.shape[-1] if self.likelihood == "categorical" else None

        def check(x):
            supported = not callable(self.likelihood) or _supports(_base(found[0]), self._rows(x))
            check_data(self.likelihood, np.asarray(x), num_categories, supported)

        return check

    def _learns_scale(self, params, x) -> bool:
        """Whether the scale of the likelihood ``"gaussian"`` has weights of its own."""

        def scale(params):
            with handlers.substitute(data=params):
                z = self._encode(self._rows(x[:1]), jnp.zeros((1, self.dim)))
                return self._output(jax.lax.stop_gradient(z))[1].sum()

        return any(bool(leaf.any()) for leaf in jax.tree.leaves(jax.grad(scale)(params)))


def network_of(name, network):
    """The function of a module of flax, its parameters one ``param`` site; any other function as it is."""
    return nnx_module(name, network) if _is_module(network) else network


def _has_weights(likelihood) -> bool:
    """Whether it has weights of its own, which are trained with the rest from where they are."""
    return hasattr(likelihood, "_with_params")


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
            f"the networks keep a state, {', '.join(states)}, as batch normalisation and dropout do; only SVI "
            "with model and guide trains those. Use layers without one, such as LayerNorm"
        )
    sites = {name: site for name, site in trace.items() if site["type"] == "param"}
    real = dist.constraints.real
    bounded = [name for name, site in sites.items() if site["kwargs"].get("constraint", real) is not real]
    if bounded:
        raise ValueError(
            f"the parameters {', '.join(bounded)} have constraints; only SVI with model and guide keeps them. "
            "Declare unconstrained ones, and map them inside the network"
        )
    return {name: site["value"] for name, site in sites.items()}


@partial(jax.jit, static_argnums=0)
def _encode(vae, params, x, noise):
    with handlers.substitute(data=params):
        return vae._encode(x, noise)


@partial(jax.jit, static_argnums=(0, 4))
def _decode(vae, params, z, key, mean):
    with handlers.substitute(data=params):
        likelihood = vae._likelihood(z)
    if not mean:
        return likelihood.sample(key)
    if isinstance(_base(likelihood), (dist.CategoricalLogits, dist.CategoricalProbs)):
        probs = _base(likelihood).probs
        return probs @ jnp.arange(probs.shape[-1], dtype=probs.dtype)
    try:
        return likelihood.mean
    except NotImplementedError:
        return likelihood.sample(key)
