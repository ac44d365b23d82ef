"""Mixtures of flows as NumPyro distributions."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints

from flowppl._arrays.tree import Tree, merge
from flowppl.bijections.contract import Bijection
from flowppl.inference import mixture
from flowppl.inference.mixture import is_mixture, stacked_part
from flowppl.numpyro._host import jit, validate_sample
from flowppl.numpyro.transforms import check_key, constants_of, default_dtype

PUSHED = 512  # draws at a time


class FlowMixture(Distribution):
    """The distribution of a draw from one of K flows, chosen by weights; an ``AutoFlow`` of several modes has it.

    Draws have gradients in the weights of the flows. The weights of the mixture are constants of differentiation:
    :func:`flowppl.numpyro.fit` sets them.

    Args:
        bijection: the bijection of all flows, from standard normals.
        parts: its weights for each flow, stacked along the first axis.
        log_weights: the logarithms of the weights of the mixture, of shape ``(K,)``.
    """

    support = constraints.real_vector
    reparametrized_params: ClassVar[list[str]] = []
    pytree_data_fields = ("parts", "log_weights")
    pytree_aux_fields = ("bijection",)

    def __init__(
        self, bijection: Bijection, parts: Tree, log_weights: jax.Array, *, validate_args: bool | None = None
    ) -> None:
        self.bijection, self.parts = bijection, parts
        # An optimiser that decays what it is given moves these too.
        self.log_weights = jax.lax.stop_gradient(jax.nn.log_softmax(log_weights))
        super().__init__(event_shape=bijection.y_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return True

    def rsample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws with gradients in the weights of the flows."""
        return self.sample(key, sample_shape)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws of shape ``(*sample_shape, D)``."""
        check_key("sample", key, "key")
        return _sample(self.bijection, self.parts, self.log_weights, key, tuple(sample_shape))

    @validate_sample
    def log_prob(self, value: jax.Array, intermediates: Any = None) -> jax.Array:
        """The log density of events."""
        return _log_prob(self.bijection, self.parts, self.log_weights, value)


# As one program each: outside of jit each little operation would be compiled apart.


@partial(jax.jit, static_argnums=(0, 4))
def _sample(bijection, parts, log_weights, key, sample_shape):
    choice_key, noise_key = jax.random.split(key)
    chosen = jax.random.categorical(choice_key, log_weights, shape=sample_shape)
    noise = jax.random.normal(noise_key, (*sample_shape, *bijection.x_shape))
    # Of each draw all flows are run, and one is kept: to gather weights for each draw would take more memory.
    everywhere = jnp.broadcast_to(noise, (len(log_weights), *noise.shape))
    drawn = mixture.forward(staged(bijection), parts, everywhere)
    return jnp.take_along_axis(drawn, chosen[None, ..., None], axis=0)[0]


@partial(jax.jit, static_argnums=0)
def _log_prob(bijection, parts, log_weights, value):
    return mixture.log_prob(staged(bijection), parts, log_weights, value)


def staged(bijection: Bijection) -> mixture.Staged:
    """Gives of the weights of a part the bijection, and these with its constants."""
    return lambda part: (bijection, merge(part, constants_of(bijection)))


def push(bijection: Bijection, params: Tree, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where a bijection takes rows of noise, and the log determinants: ``PUSHED`` at a time, so that one program does.

    In NumPy, in double precision.
    """
    padded = np.concatenate([noise, np.zeros((-len(noise) % PUSHED, noise.shape[1]), dtype=noise.dtype)])
    found = [_push()(bijection, params, rows) for rows in padded.reshape(-1, PUSHED, noise.shape[1])]
    z, log_det = (np.concatenate(each)[: len(noise)].astype(np.float64) for each in zip(*found, strict=True))
    return z, log_det


@cache
def _push():
    def forward(bijection, params, noise):
        return bijection.forward(merge(params, constants_of(bijection)), noise)

    return jit(forward, static_argnums=0)


def draw(bijection: Bijection, params: Tree, num: int, rng: np.random.Generator) -> jax.Array:
    """Draws of a guide with these parameters, of one mode or more, by that program."""
    noise = rng.standard_normal((num, *bijection.x_shape), dtype=default_dtype())
    if not is_mixture(params):
        return jnp.asarray(push(bijection, params, noise)[0], dtype=noise.dtype)
    params = jax.tree.map(np.asarray, params)
    shares = np.exp(np.asarray(params["log_weights"], dtype=np.float64))
    chosen = rng.choice(len(shares), num, p=shares / shares.sum())
    z = np.empty_like(noise)
    for k in np.unique(chosen):
        part = jax.tree.map(lambda leaf, k=k: leaf[k], stacked_part(params))
        z[chosen == k] = push(bijection, part, noise[chosen == k])[0]
    return jnp.asarray(z)
