"""Steps of optax's optimisers that leave out what is not finite, and batches of one size for them."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree


def make_optimizer(name: str, clip_norm: float, **options) -> optax.GradientTransformation:
    """An optimiser whose rate comes with each step."""
    scale = {"adam": optax.scale_by_adam, "adamax": optax.scale_by_adamax}[name]
    return optax.chain(optax.clip_by_global_norm(clip_norm), scale(**options))


def take_step(optimizer: optax.GradientTransformation, carry, gradient, loss, rate):
    """Step from ``carry``, parameters and the optimiser's state.

    Returns:
        The new ones and the loss; the old ones and NaN, if it or the gradient is not finite.
    """
    params, state = carry
    updates, new_state = optimizer.update(gradient, state)
    new_params = jax.tree.map(lambda leaf, update: (leaf - rate * update).astype(leaf.dtype), params, updates)
    taken = jnp.isfinite(loss) & jnp.isfinite(jnp.linalg.norm(ravel_pytree(gradient)[0]))
    carry = jax.tree.map(partial(jnp.where, taken), (new_params, new_state), carry)
    return carry, jnp.where(taken, loss, jnp.nan)


def split_batches(order: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of each batch and their weights: 0 for the last one's first row, repeated to fill it."""
    size = min(batch_size, len(order))
    num = math.ceil(len(order) / size)
    filled = np.concatenate([order, np.full(num * size - len(order), order[(num - 1) * size])])
    return filled.reshape(num, size), (np.arange(num * size) < len(order)).reshape(num, size)
