"""Training on several devices of JAX, of one host or of all hosts of ``jax.distributed``."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowppl.checks import assign
from flowppl.inference import batches
from flowppl.numpyro._host import multihost_utils


@dataclasses.dataclass(frozen=True)
class Workers(batches.Workers):
    """All devices of JAX, or the one that it takes by itself; a static argument of programs.

    A process, of which there is one on each host, may have several devices.

    Args:
        distributed: whether all devices train together.
    """

    distributed: bool
    rank: int = dataclasses.field(init=False)
    size: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        rank, size = (jax.process_index(), jax.process_count()) if self.distributed else (0, 1)
        assign(self, rank=rank, size=size)

    def gather(self, numbers: list[int]) -> np.ndarray:
        if self.size == 1:
            return super().gather(numbers)
        return np.asarray(multihost_utils.process_allgather(np.array(numbers, dtype=np.int32)))

    def equalised(self, tree: Any) -> Any:
        """The arrays of the first process, in all of them."""
        return multihost_utils.broadcast_one_to_all(tree) if self.size > 1 else tree

    def replicated(self, tree: Any) -> Any:
        """Arrays that are the same in all processes, whole on all devices."""
        if not self.distributed:
            return jax.tree.map(jnp.asarray, tree)

        def place(leaf):
            if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
                return jax.random.wrap_key_data(place(jax.random.key_data(leaf)))
            leaf = np.asarray(leaf)
            return jax.make_array_from_callback(leaf.shape, self._sharding(), lambda index: leaf[index])

        return jax.tree.map(place, tree)

    def shared(self, tree: Any) -> Any:
        """In a program: arrays with their rows on different devices, which then compute with these."""
        return jax.lax.with_sharding_constraint(tree, self._sharding("rows")) if self.distributed else tree

    def everywhere(self, tree: Any) -> Any:
        """In a program: arrays whole on all devices."""
        return jax.lax.with_sharding_constraint(tree, self._sharding()) if self.distributed else tree

    def joined(self, rows: Any, counts: np.ndarray) -> tuple[Any, Any]:
        """The rows of a step of all processes, on all devices, and weights: 1, or 0 where a process has fewer rows.

        Args:
            rows: arrays of NumPy, those of this process.
            counts: how many of them count in each of the processes.
        """
        if not self.distributed:
            return jax.tree.map(jnp.asarray, rows), np.ones(counts[0], dtype=bool)
        num_devices = jax.local_device_count()
        size = num_devices * math.ceil(counts.max() / num_devices)
        weights = np.arange(size) < counts[self.rank]

        def place(leaf):
            leaf = np.concatenate([leaf[:size], np.repeat(leaf[:1], max(size - len(leaf), 0), axis=0)])
            return jax.make_array_from_process_local_data(self._sharding("rows"), leaf)

        return jax.tree.map(place, (jax.tree.map(np.asarray, rows), weights))

    def _sharding(self, *axes):
        return NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec(*axes))
