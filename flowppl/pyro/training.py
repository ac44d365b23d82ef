"""What the trainings of Pyro share: a module whose weights are averaged, kept and put back."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from flowppl.pyro.distributed import Workers
from flowppl.pyro.steps import Optimizer, make_optimizer, take_step
from flowppl.pyro.transforms import to_numpy
from flowppl.training.loop import average_share


class ModuleTrainer:
    """The weights of a module in training: see :class:`flowppl.training.loop.Trainer`.

    Args:
        module: what is trained.
        trained: its parameters that are trained, by name.
        seed: determines the noise.
        optimizer: as for :func:`flowppl.pyro.steps.make_optimizer`.
        clip_norm: the largest norm of a gradient, or ``None``.
        ema_decay: the decay of the averages; 0 for none.
        workers: the processes that train together.
        buffers: tensors that steps change too, such as the statistics of batch normalisation.
        options: those of a named optimiser.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        trained: Mapping[str, torch.Tensor],
        seed: int,
        optimizer: Optimizer,
        clip_norm: float | None,
        ema_decay: float,
        workers: Workers,
        buffers: Sequence[torch.Tensor] = (),
        **options: bool,
    ) -> None:
        self.module, self.trained, self.seed, self.ema_decay = module, trained, seed, ema_decay
        self.workers = workers
        workers.equalise([*module.parameters(), *module.buffers()])
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.optimizer = make_optimizer(optimizer, trained, **options)
        self.optimizer.zero_grad()
        self.buffers = buffers
        floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        self.averaged = [*trained.values(), *floating] if ema_decay else []
        self.average = [_at_least_float32(tensor.detach().clone()) for tensor in self.averaged]

    def take_step(self, loss: torch.Tensor, counts: np.ndarray, rate: float | None) -> torch.Tensor:
        """Step down the mean loss of the rows of all processes; see :func:`flowppl.pyro.steps.take_step`.

        Args:
            loss: the mean loss of this process's rows.
            counts: how many rows each process has.
            rate: the learning rate.
        """
        loss.backward()
        loss = self.workers.average(self.trained.values(), loss.detach(), counts)
        return take_step(self.optimizer, self.trained.values(), loss, self.clip_norm, rate)

    def average_step(self, num_steps: int) -> None:
        """Take the weights after the ``num_steps``-th step into the averages."""
        if self.average:
            share = average_share(self.ema_decay, num_steps)
            for tensor, average in zip(self.averaged, self.average, strict=True):
                average.lerp_(tensor.detach().to(average.dtype), share)

    @contextlib.contextmanager
    def with_averages(self) -> Iterator[None]:
        """The averages, if there are any, in the place of the weights."""
        weights = [tensor.detach().clone() for tensor in self.averaged]
        try:
            _copy(self.averaged, self.average)
            yield
        finally:
            _copy(self.averaged, weights)

    @contextlib.contextmanager
    def noise_of(self, index: int) -> Iterator[int]:
        """Random numbers, those of dropout too, that depend on the seed, this index and the process only.

        It gives a seed that is the same in all processes.
        """
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        rank = self.workers.rank
        shared, own = (
            np.random.SeedSequence([self.seed, index, *more]).generate_state(1)[0].item()
            for more in ([], [rank] if rank else [])
        )
        with torch.random.fork_rng(devices):  # all of them are seeded below
            torch.manual_seed(own)
            yield shared

    def weights(self) -> dict[str, np.ndarray]:
        return {name: to_numpy(tensor).copy() for name, tensor in self.module.state_dict().items()}

    def averages(self) -> dict[str, np.ndarray]:
        with self.with_averages():
            return self.weights()

    def state(self) -> dict[str, np.ndarray]:
        averages = {f"average.{i}": to_numpy(average) for i, average in enumerate(self.average)}
        return memory_of(self.optimizer) | averages

    def restore(self, weights: Mapping[str, np.ndarray], state: Mapping[str, np.ndarray] | None) -> None:
        self.module.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
        self.optimizer.zero_grad()
        if state is not None:
            memory = dict(state)
            for i, average in enumerate(self.average):
                average.copy_(torch.as_tensor(memory.pop(f"average.{i}")))
            recall(self.optimizer, memory)


def memory_of(optimizer: torch.optim.Optimizer) -> dict[str, np.ndarray]:
    """What an optimiser remembers, as arrays by name."""
    memory = optimizer.state_dict()["state"]
    return {f"{i}.{name}": to_numpy(value) for i, of in memory.items() for name, value in of.items()}


def recall(optimizer: torch.optim.Optimizer, memory: Mapping[str, np.ndarray]) -> None:
    """Let an optimiser remember what :func:`memory_of` gave."""
    parts: dict[str, dict] = {}
    for name, array in memory.items():
        part, _, entry = name.partition(".")
        parts.setdefault(part, {})[entry] = torch.as_tensor(array)
    if len({frozenset(of) for of in parts.values()}) > 1:
        raise ValueError("some of the optimiser's memory is missing")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, of in parts.items():
        if not {tensor.shape for tensor in of.values()} <= {parameters[int(i)].shape, torch.Size([])}:
            raise ValueError("the optimiser's memory is of other parameters")
    whole = optimizer.state_dict()
    whole["state"] = {int(i): of for i, of in parts.items()}
    optimizer.load_state_dict(whole)


@torch.no_grad()
def _copy(tensors, values):
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def _at_least_float32(tensor):
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
