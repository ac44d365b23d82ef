"""Training in several processes of ``torch.distributed``."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist

from flowppl.inference import batches


class Workers(batches.Workers):
    """The processes of ``torch.distributed``, or this one alone.

    Args:
        owner: who trains, for messages.
        distributed: whether several processes train together.

    Raises:
        RuntimeError: if there are no processes yet.
    """

    def __init__(self, owner: str, distributed: bool) -> None:
        self.device = torch.device("cpu")
        if not distributed:
            super().__init__()
            return
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                f"{owner}: distributed=True is for a program that torchrun has started in several processes; call "
                'torch.distributed.init_process_group("gloo"), or "nccl" on GPUs, at its beginning'
            )
        super().__init__(dist.get_rank(), dist.get_world_size())
        if dist.get_backend() == "nccl":
            self.device = torch.device("cuda")

    def gather(self, numbers: list[int]) -> np.ndarray:
        if self.size == 1:
            return super().gather(numbers)
        own = torch.tensor(numbers, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(rows, own)
        return torch.stack(rows).cpu().numpy()

    @torch.no_grad()
    def equalise(self, tensors: Iterable[torch.Tensor]) -> None:
        """Set tensors to those of the first process."""
        for tensor in tensors if self.size > 1 else ():
            value = tensor.detach().contiguous()
            dist.broadcast(value, src=0)
            tensor.copy_(value)

    def total(self, number: torch.Tensor) -> torch.Tensor:
        """The sum of a number over all processes."""
        if self.size > 1:
            number = number.clone()
            dist.all_reduce(number)
        return number

    def average(self, parameters: Iterable[torch.Tensor], loss: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
        """Give all processes the mean of their gradients and of their losses, each with the weight of its rows.

        One message for all of them: see the page "On several machines" of the site for what it costs.

        Args:
            parameters: those that hold gradients; a gradient that one lacks is zero.
            loss: the mean loss of the rows of this process.
            counts: how many rows each process has.

        Returns:
            The mean loss of all rows.
        """
        if self.size == 1:
            return loss
        gradients = []
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
        parts = [each.detach().reshape(-1).to(loss.device) for each in (*gradients, loss)]
        message = torch.cat(parts) * float(counts[self.rank] / counts.sum())
        dist.all_reduce(message)
        *means, mean_loss = message.split([len(part) for part in parts])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))
        return mean_loss[0].to(loss.dtype)
