"""Steps in torch, and the memory that they need."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode

torch.set_num_threads(1)


def array(x):
    return torch.as_tensor(x, dtype=torch.get_default_dtype())


def finished(step):
    """The step, and the wait for its end."""

    def waits():
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return waits if torch.cuda.is_available() else step


def training(weights, score, x):
    def step():
        for weight in weights:
            weight.grad = None
        (-score(x).mean()).backward()

    return finished(step)


def mapping(weights, function, x):
    return finished(torch.no_grad()(lambda: function(x)))


def memory(weights, score, x):
    """Bytes at the peak of a step, beside the weights, the data and the gradients."""
    step = training(weights, score, x)
    step()
    with Peak(x, *weights) as peak:
        step()
    return peak.most - sum(weight.nbytes for weight in weights)


class Peak(TorchDispatchMode):
    """The largest number of bytes in tensors that were made inside, at one time."""

    def __init__(self, *before):
        super().__init__()
        self.seen, self.now, self.most = weakref.WeakSet(leaf.untyped_storage() for leaf in before), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for leaf in torch.utils._pytree.tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return found

    def _count(self, storage):
        if storage not in self.seen:
            self.seen.add(storage)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, size):
        self.now -= size
