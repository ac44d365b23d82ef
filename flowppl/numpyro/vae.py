"""Variational autoencoders with flows in NumPyro."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.contrib.module import nnx_module

from flowppl.autoencoders.evaluation import EVALUATE_VAE_DOC, Evaluation, evaluate
from flowppl.autoencoders.model import (
    ENCODE_DOC,
    FLOW_VAE_DOC,
    INTERPOLATE_DOC,
    RECONSTRUCT_DOC,
    SAMPLE_DOC,
    as_data,
    check_data,
    check_ends,
    check_features,
    check_output,
    check_parts,
    path_weights,
    unflatten,
)
from flowppl.bijections.contract import Bijection
from flowppl.inference.losses import standard_log_prob
from flowppl.numpyro.flow import Flow, flow, standard_normal

LIKELIHOODS: dict[str, Callable] = {
    "bernoulli": lambda output: dist.Bernoulli(logits=output, validate_args=False),
    "categorical": lambda output: dist.Categorical(logits=output, validate_args=False),
    "gaussian": lambda output: dist.Normal(output[0], jnp.exp(output[1]), validate_args=False),
}


DRAWS = """
            rng_key: determines the draws.
            params: the weights, by name."""


@dataclasses.dataclass(frozen=True, eq=False)
class FlowVAE:
    __doc__ = FLOW_VAE_DOC.format(
        encoder="a module of ``flax.nnx``, or a function that declares its parameters by NumPyro's own means",
        frozen=", and not trained",
        example="""
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
""",
    )

    encoder: Any
    decoder: Any
    posterior: Bijection
    prior: Any = None
    likelihood: Any = "bernoulli"

    def __post_init__(self):
        prior = self.prior.bijection if isinstance(self.prior, Flow) else self.prior
        check_parts(self.posterior, prior, self.likelihood)

    @property
    def dim(self) -> int:
        """The number of latents."""
        return self.posterior.y_shape[0]

    def model(self, x):
        """The generative model of the data ``x``, with the sites ``z`` and ``x`` in a plate ``data``."""
        decoder = _network("decoder", self.decoder)
        prior = self._prior()
        with numpyro.plate("data", len(x), dim=-1):
            z = numpyro.sample("z", standard_normal((self.dim,)) if prior is None else prior())
            numpyro.sample("x", self._likelihood(decoder, z, x), obs=x)

    def guide(self, x):
        """The posterior of ``z``."""
        posterior = flow("posterior", self.posterior)(self._features(x))
        with numpyro.plate("data", len(x), dim=-1):
            numpyro.sample("z", posterior)

    def init(self, rng_key, x) -> dict[str, Any]:
        """The first parameters, by the names that ``svi.get_params`` gives them; ``x`` are some of the data."""
        return _init(self, rng_key, self._rows(x[:1]))

    def encode(self, rng_key, params, x, num_samples: int = 1) -> jax.Array:
        noise = jax.random.normal(rng_key, (num_samples, len(x), self.dim))
        return _encode(self, params, self._rows(x), noise)

    def reconstruct(self, rng_key, params, x, num_samples: int = 1) -> jax.Array:
        return _decode(self, params, self.encode(rng_key, params, x, num_samples), None)

    def sample(self, rng_key, params, num_samples: int = 1, *, mean: bool = True) -> jax.Array:
        z_key, x_key = jax.random.split(rng_key)
        with handlers.substitute(data=params):
            prior = self._prior()
        distribution = standard_normal((self.dim,)) if prior is None else prior()
        return _decode(self, params, distribution.sample(z_key, (num_samples,)), None if mean else x_key)

    def interpolate(self, rng_key, params, first, second, num_steps: int = 8, *, spherical: bool = False) -> jax.Array:
        check_ends(first, second)
        keys = jax.random.split(rng_key)
        ends = [self.encode(key, params, x)[0] for key, x in zip(keys, (first, second), strict=True)]
        with handlers.substitute(data=params):
            prior = self._prior()
        transform = None if prior is None else prior.transform
        ends = ends if transform is None else [transform.inv(end) for end in ends]
        weights = [jnp.asarray(each)[:, None, None] for each in path_weights(num_steps, spherical)]
        noise = sum(weight * end for weight, end in zip(weights, ends, strict=True))
        return _decode(self, params, noise if transform is None else transform(noise), None)

    encode.__doc__, reconstruct.__doc__ = ENCODE_DOC.format(key=DRAWS), RECONSTRUCT_DOC.format(key=DRAWS)
    sample.__doc__, interpolate.__doc__ = SAMPLE_DOC.format(key=DRAWS), INTERPOLATE_DOC.format(key=DRAWS)

    def terms(self, params, x, noise) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The two parts of the ELBO of each datum at given noise, and the latents.

        Args:
            params: the weights, by name.
            x: n data.
            noise: an array ``(..., n, dim)``.

        Returns:
            log p(x | z) and log q(z | x) - log p(z), each of shape ``(..., n)``, and z.
        """
        with handlers.substitute(data=params):
            z, log_det = self._posterior_transform(x).forward_and_log_det(noise)
            prior = self._prior()
            log_prior = standard_log_prob(z) if prior is None else prior().log_prob(z)
            log_likelihood = self._likelihood(_network("decoder", self.decoder), z, x).log_prob(x)
        return log_likelihood, standard_log_prob(noise) - log_det - log_prior, z

    def _features(self, x):
        features = _network("encoder", self.encoder)(x)
        check_features(features.shape, len(x), self.posterior.context_dim)
        return features

    def _posterior_transform(self, x):
        return flow("posterior", self.posterior).transform.condition(self._features(x))

    def _prior(self) -> Flow | None:
        return flow("prior", self.prior) if isinstance(self.prior, Bijection) else self.prior

    def _likelihood(self, decoder, z, x=None):
        """The distribution of data, such as ``x``, for each row of latents; the decoder sees one axis of rows."""
        output = unflatten(self.likelihood, decoder(z.reshape(-1, z.shape[-1])), z.shape[:-1])
        make = self.likelihood if callable(self.likelihood) else LIKELIHOODS[self.likelihood]
        likelihood = make(output)
        likelihood = likelihood.to_event(len(likelihood.batch_shape) - z.ndim + 1)
        if x is not None:
            check_output(self.likelihood, likelihood.event_shape, x.shape[1:])
        return likelihood

    def _rows(self, x):
        """Data as an array of the default float dtype, unless they are numbers of categories."""
        x = jnp.asarray(x)
        return x if self.likelihood == "categorical" else x.astype(float)

    def _check(self, params, x):
        """Raise ValueError unless networks, likelihood and data fit together."""
        found = []

        def look(params, x):
            with handlers.substitute(data=params):
                z = self._posterior_transform(x)(jnp.zeros((1, self.dim)))
                found.append(self._likelihood(_network("decoder", self.decoder), z, x))

        jax.eval_shape(look, params, self._rows(x[:1]))
        num_categories = _base(found[0]).logits.shape[-1] if self.likelihood == "categorical" else None
        supported = not callable(self.likelihood) or _supports(_base(found[0]), self._rows(x))
        check_data(self.likelihood, np.asarray(x), num_categories, supported)


def _network(name, network):
    """The function of a module of flax, its parameters one ``param`` site; any other function as it is."""
    nnx = sys.modules.get("flax.nnx")  # there is a module of it only where it was imported
    return nnx_module(name, network) if nnx and isinstance(network, nnx.Module) else network


def _base(likelihood):
    return getattr(likelihood, "base_dist", likelihood)


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
        return vae._posterior_transform(x)(noise)


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


@partial(jax.jit, static_argnums=(0, 4))
def _weigh(vae, params, x, key, num_draws):
    return vae.terms(params, x, jax.random.normal(key, (num_draws, len(x), vae.dim)))


def evaluate_vae(rng_key, vae: FlowVAE, params, x, *, num_samples: int = 5000, chunk_size: int = 1000) -> Evaluation:
    x = as_data(x)
    vae._check(params, x)

    def weigh(part, num_draws, count):
        rows = vae._rows(x[part])
        return jax.tree.map(np.asarray, _weigh(vae, params, rows, jax.random.fold_in(rng_key, count), num_draws))

    return evaluate(weigh, len(x), math.prod(np.shape(x)[1:]), num_samples, chunk_size)


EXAMPLE = """
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flax import nnx
        >>> from flowppl.numpyro import FlowVAE, {name}
        >>> x = jnp.broadcast_to(jax.random.bernoulli(jax.random.key(0), 0.5, (200, 1)), (200, 9)).astype(float)
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=2)
        >>> rngs = nnx.Rngs(0)
        >>> encoder = nnx.Sequential(nnx.Linear(9, 16, rngs=rngs), nnx.relu)
        >>> vae = FlowVAE(encoder, nnx.Linear(2, 9, rngs=rngs), posterior)"""

evaluate_vae.__doc__ = EVALUATE_VAE_DOC.format(
    key="\n        rng_key: determines the draws.",
    params="\n        params: its weights, by name.",
    example=EXAMPLE.format(name="evaluate_vae")
    + """
        >>> found = evaluate_vae(jax.random.key(1), vae, vae.init(jax.random.key(2), x), x, num_samples=50)
        >>> found.log_prob > found.elbo, found.num_dims
        (True, 9)
""",
)
