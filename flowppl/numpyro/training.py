"""What the trainings of NumPyro share: weights that are averaged, kept and put back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flowppl.numpyro.distributed import Workers
from flowppl.numpyro.steps import Optimizer, make_optimizer
from flowppl.serialization import BFLOAT16

Batch = TypeVar("Batch")


class TreeTrainer:
    """A pytree of weights in training: see :class:`flowppl.training.loop.Trainer`.

    Args:
        params: the first weights.
        seed: determines the noise.
        optimizer: as for :func:`flowppl.numpyro.steps.make_optimizer`.
        clip_norm: the largest norm of a gradient, or ``None``.
        ema_decay: the decay of the averages; 0 for none.
        workers: the devices that train together.
    """

    def __init__(
        self,
        params: Any,
        seed: int,
        optimizer: Optimizer,
        clip_norm: float | None,
        ema_decay: float,
        workers: Workers,
    ) -> None:
        self.workers, self.ema_decay = workers, ema_decay
        params = workers.equalised(params)
        self.key = workers.replicated(jax.random.key(seed))
        self.clip_norm = math.inf if clip_norm is None else float(clip_norm)
        # Copies: a step may give its arguments up.
        self.params = workers.replicated(jax.tree.map(jnp.array, params))
        # In half precision an average would not move.
        self.average = workers.replicated(jax.tree.map(_at_least_float32, params)) if ema_decay else None
        self.memory = workers.replicated(make_optimizer(optimizer, self.clip_norm).init(params))

    def kept(self) -> Any:
        """The averages, if there are any, and else the weights."""
        return kept(self.average, self.params)

    def weights(self) -> dict[str, np.ndarray]:
        return _to_arrays(self.params)

    def averages(self) -> dict[str, np.ndarray]:
        return _to_arrays(self.kept())

    def state(self) -> dict[str, np.ndarray]:
        return _to_arrays((self.memory, self.average))

    def restore(self, weights: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray] | None) -> None:
        self.params = _from_arrays(self.params, weights)
        if state is not None:  # else the training is over, and the weights stay where the user's arrays are
            own = (self.params, *_from_arrays((self.memory, self.average), state))
            self.params, self.memory, self.average = self.workers.replicated(own)


def kept(average: Any, params: Any) -> Any:
    """The averages, if there are any, in the dtype of the weights, and else the weights."""
    return params if average is None else jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), average, params)


def averaged(average: Any, params: Any, share: Any) -> Any:
    """Averages that take in new weights with this share."""
    return jax.tree.map(lambda mean, leaf: (mean + share * (leaf - mean)).astype(mean.dtype), average, params)


def in_step(batches: Iterable[Batch], losses: Sequence[jax.Array]) -> Iterator[Batch]:
    """The batches, each read once the step before the last one is done: all steps that JAX has yet to make hold theirs.

    Args:
        batches: what is read from a file or an iterable.
        losses: the losses of the steps so far, to which each step adds its own.
    """
    for batch in batches:
        yield batch
        jax.block_until_ready(losses[-2:-1])


def _at_least_float32(leaf):
    return jnp.array(leaf, dtype=jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def _to_arrays(tree):
    """The leaves of a pytree by name, in NumPy."""
    named = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {name: array.view(BFLOAT16) if array.dtype == jnp.bfloat16 else array for name, array in named.items()}


def _from_arrays(tree, arrays):
    def find(path, _):
        array = arrays[jax.tree_util.keystr(path)]
        return jnp.asarray(array.view(jnp.bfloat16) if array.dtype == BFLOAT16 else array)

    return jax.tree_util.tree_map_with_path(find, tree)
