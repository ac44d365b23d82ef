"""Optimisers of optax and NumPyro for all trainings, steps that leave out what is not finite, and batches for them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from numpyro.optim import Minimize

from flowppl.numpyro._host import _NumPyroOptim

Optimizer: TypeAlias = str | optax.GradientTransformation | _NumPyroOptim
"""What the ``optimizer`` of a training may be: see :func:`make_optimizer`."""

_NAMED = {"adam": optax.scale_by_adam, "adamax": optax.scale_by_adamax}
_WAYS = (
    'pass "adam" or "adamax", an optimiser of optax such as optax.adamw(optax.cosine_decay_schedule(1e-2, 1000)), or '
    "one of numpyro.optim"
)


def check_optimizer(owner: str, optimizer: Any, learning_rate: Any = None) -> None:
    """Raise unless ``optimizer`` can be one, and a learning rate is given only where it counts.

    Args:
        owner: who trains, for messages.
        optimizer: as for :func:`make_optimizer`.
        learning_rate: that of the training, ``None`` if the user gave none.

    Raises:
        TypeError: for what is no optimiser of optax or NumPyro, and for ``numpyro.optim.Minimize``, which needs more
            than gradients.
        ValueError: for a learning rate beside an optimiser that has its own.
    """
    if isinstance(optimizer, str) and optimizer not in _NAMED:
        raise ValueError(f"{owner}: there is no optimizer {optimizer!r}; {_WAYS}")
    if isinstance(optimizer, Minimize):
        raise TypeError(f"{owner}: numpyro.optim.Minimize needs more than the gradients of steps; {_WAYS}")
    if not isinstance(optimizer, str | optax.GradientTransformation | _NumPyroOptim):
        raise TypeError(f"{owner}: optimizer is no optimiser of optax or NumPyro, got {optimizer!r}; {_WAYS}")
    if not isinstance(optimizer, str) and learning_rate is not None:
        raise ValueError(
            f"{owner}: learning_rate={learning_rate!r} beside an optimizer that has a learning rate of its own; leave "
            "one of the two out"
        )


def has_rate(optimizer: Optimizer) -> bool:
    """Whether ``optimizer`` has its own learning rate and schedule: those of the training are then not used."""
    return not isinstance(optimizer, str)


def make_optimizer(
    optimizer: Optimizer, clip_norm: float | jax.Array = math.inf, **options: Any
) -> optax.GradientTransformation:
    """An optimiser for :func:`take_step`, which clips gradients first.

    Args:
        optimizer: one of

            - ``"adam"`` or ``"adamax"``, whose learning rate :func:`take_step` is given in each step;
            - an optimiser of optax with its learning rate or schedule, such as
              ``optax.adamw(optax.cosine_decay_schedule(1e-2, 1000))``;
            - an optimiser of ``numpyro.optim``, such as ``numpyro.optim.ClippedAdam(1e-3)``.
        clip_norm: the largest norm of the gradient.
        options: those of the named optimisers; others have their own.

    Returns:
        A transformation of gradients to what :func:`take_step` subtracts from the parameters.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from flowppl.numpyro.steps import make_optimizer, take_step
        >>> optimizer = make_optimizer(optax.sgd(optax.exponential_decay(1.0, 1, 0.5)))
        >>> carry = (jnp.zeros(2), optimizer.init(jnp.zeros(2)))
        >>> for _ in range(2):
        ...     carry, loss = take_step(optimizer, carry, jnp.ones(2), 0.0)
        >>> carry[0].tolist()
        [-1.5, -1.5]
    """
    is_endless = isinstance(clip_norm, float) and math.isinf(clip_norm)
    clip = optax.identity() if is_endless else optax.clip_by_global_norm(clip_norm)  # type: ignore[arg-type]
    if isinstance(optimizer, str):
        return optax.chain(clip, _NAMED[optimizer](**options))
    host = _of_numpyro(optimizer) if isinstance(optimizer, _NumPyroOptim) else optimizer
    return optax.chain(clip, host, optax.scale(-1.0))


def _of_numpyro(optimizer: _NumPyroOptim) -> optax.GradientTransformation:
    def update(gradient, state, params, *, value, **_):
        state = optimizer.update(gradient, state, value=value)
        return jax.tree.map(jnp.subtract, optimizer.get_params(state), params), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def take_step(optimizer: optax.GradientTransformation, carry, gradient, loss, rate=None):
    """Step from ``carry``, parameters and the optimiser's state.

    Args:
        optimizer: one of :func:`make_optimizer`.
        carry: parameters and the optimiser's state.
        gradient: that of the loss.
        loss: the loss of this step.
        rate: the learning rate of this step; ``None`` for an optimiser that has its own, see :func:`has_rate`.

    Returns:
        The new ones and the loss; the old ones and NaN, if it or the gradient is not finite.
    """
    params, state = carry
    rate = 1.0 if rate is None else rate
    updates, new_state = optax.with_extra_args_support(optimizer).update(gradient, state, params, value=loss)
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
