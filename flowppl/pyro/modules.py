"""Torch modules as networks of layers."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

from flowppl._arrays.tree import Tree, leaves, nested
from flowppl.checks import describe
from flowppl.networks import modules
from flowppl.pyro.transforms import Weights


class ModuleNetwork(modules.ModuleNetwork):
    r"""A ``torch.nn.Module`` as the network of a layer, such as :class:`flowppl.Coupling`.

    ``network=module`` is short for ``network=ModuleNetwork(module)``. The module is read once: a flow has weights of
    its own, which are trained, move by ``.to`` and stand in ``state_dict``, and the module itself stays as it is.

    **First weights** are drawn anew for every layer, as ``pyro.set_rng_seed`` determines, in the default dtype: by
    ``reset_parameters`` of the parts of the module, inner ones first, as torch's own layers have it. A module that
    draws its weights in another way is given by a function that makes it, ``lambda: MyModule(...)``.

    **Start.** The layer starts as the identity, as guides and deep flows should: the weights of the last layer of the
    module, the one in which its output is linear, start at zero. If there is none, the output is multiplied by trained
    numbers that do, one for each (for each channel of an image). With ``identity_start=False`` it is as it is.

    **Shapes.** The module sees one axis of rows, ``(n, ...)``, whatever the batch axes of the flow. A context goes to
    the argument ``context`` of its ``forward``, if that has one, as an array ``(n, context_dim)``. Otherwise it follows
    the input along its first axis after the rows: the module takes as many numbers more, or channels of an image, each
    of one number everywhere.

    The module must be a function of its input alone, the same for each row: no batch normalisation, no dropout, unless
    ``module.eval()`` is called first, which makes them fixed. Buffers and weights that need no gradient are constants.

    Args:
        module: the module, or a function without arguments that makes one.
        identity_start: whether the output starts at zero.

    Raises:
        TypeError: if it is no module, nor makes one.
        ValueError: for parameters that are not initialised yet, or that cannot be drawn anew. In a layer, for a module
            that does not map to what the layer needs, or keeps a state.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow, ModuleNetwork
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.SiLU(), torch.nn.Linear(16, 4))
        >>> flow = Flow(fp.Repeat(fp.Coupling(4, network=net), 3))
        >>> flow().rsample((5,)).shape
        torch.Size([5, 4])
        >>> flow.state_dict()["transform.weights.network.module.0.weight"].shape
        torch.Size([3, 16, 2])
        >>> layer = fp.Coupling(4, network=ModuleNetwork(net, identity_start=False))
    """

    def __init__(self, module: torch.nn.Module | Callable[[], torch.nn.Module], identity_start: bool = True) -> None:
        super().__init__(module, identity_start)
        with _quietly():
            self._template = self._made()
            _check(self, self._made(), self._made())
        trained = {name: p for name, p in self._template.named_parameters() if p.requires_grad}
        taken = [name for name in trained if any(hasattr(Weights, part) for part in name.split("."))]
        if taken:
            raise ValueError(f"network={self!r}: the parameter {taken[0]!r} needs a name that no module has already")
        self.shapes = {name: tuple(p.shape) for name, p in trained.items()}
        self.takes_context = "context" in inspect.signature(self._template.forward).parameters

    def __reduce__(self) -> tuple[Any, ...]:
        is_module = isinstance(self.module, torch.nn.Module)
        return type(self), (self._template if is_module else self.module, self.identity_start)

    def constants(self) -> Tree:
        tensors = {**dict(self._template.named_parameters()), **dict(self._template.named_buffers())}
        fixed = {name: tensor.detach() for name, tensor in tensors.items() if name not in self.shapes}
        dtype = torch.get_default_dtype()
        return nested({n: (t.to(dtype) if t.is_floating_point() else t).numpy() for n, t in fixed.items()})

    def draw(self, draws, num):
        like = draws.full((), 0.0)
        if not isinstance(like, torch.Tensor):
            raise TypeError(f"network={self!r} is a module of torch, which only flowppl.pyro can train")
        made = [dict(self._made().named_parameters()) for _ in range(num)]
        return {name: torch.stack([each[name].detach() for each in made]).to(like) for name in self.shapes}

    def _made(self) -> torch.nn.Module:
        """The module with new weights, on the CPU; the first time as it is."""
        with torch.device("cpu"):
            if not isinstance(self.module, torch.nn.Module):
                module = self.module()
                if not isinstance(module, torch.nn.Module):
                    raise TypeError(f"network={self!r} must make a torch.nn.Module, got {describe(module)}")
                return module.cpu()
            if not hasattr(self, "_template"):
                return _copied(self, self.module).cpu()
            module = copy.deepcopy(self._template)
            module.apply(_reset)
            return module

    def apply(self, params, x, **context):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"network={self!r} is a module of torch and takes its tensors, got {describe(x)}")
        weights = {".".join(path): leaf for path, leaf in leaves(params)}
        return torch.func.functional_call(self._template, weights, (x,), context)

    def try_out(self, x_shape, **context_shape):
        with _quietly():
            module = copy.deepcopy(self._template)
            dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())

            def some(shape, last_row=0.0):
                """Numbers of which the last row can be another."""
                rows = torch.sin(torch.arange(1.0, 1.0 + shape[1:].numel(), dtype=dtype, device="cpu")).reshape(
                    shape[1:]
                )
                return torch.stack([rows, rows + last_row])

            x = some(torch.Size(x_shape))
            context = {name: some(torch.Size(shape)) for name, shape in context_shape.items()}
            before = {name: buffer.clone() for name, buffer in module.named_buffers()}
            random = torch.get_rng_state()
            output = module(x, **context)
            if not isinstance(output, torch.Tensor):
                return f"must give one tensor, got {describe(output)}"
            remedy = "call module.eval() before, which fixes it, or use a layer without"
            if not torch.equal(random, torch.get_rng_state()):
                return f"draws random numbers when it is called, as dropout does, and a flow must not; {remedy}"
            for name, buffer in module.named_buffers():
                if name not in before or not torch.equal(before[name], buffer):
                    norm = "such as LayerNorm or GroupNorm"
                    return f"changes its buffer {name!r} when called, as batch normalisation does; {remedy}, {norm}"
            again = module(some(torch.Size(x_shape), last_row=1.0), **context)
            if output.shape == again.shape and not torch.allclose(output[0], again[0], rtol=1e-4, atol=1e-6):
                return (
                    "must be a function of its input, the same for each row alone, as without a state and without "
                    "statistics of the batch"
                )
            return tuple(output.shape)

    def example(self):
        return {name: p.detach() for name, p in self._template.named_parameters() if name in self.shapes}

    def evaluate(self, weights, x, **context):
        dtype = next((p.dtype for p in weights.values()), torch.get_default_dtype())
        x, context = (
            torch.tensor(x, dtype=dtype, device="cpu"),
            {n: torch.tensor(c, dtype=dtype, device="cpu") for n, c in context.items()},
        )
        with _quietly():
            return torch.func.functional_call(self._template, weights, (x,), context).numpy()


def read(network: Any) -> ModuleNetwork | None:
    """The network of a module, or of what makes one; None if it is neither."""
    kind = network.func if isinstance(network, functools.partial) else network
    if isinstance(network, torch.nn.Module) or (isinstance(kind, type) and issubclass(kind, torch.nn.Module)):
        return ModuleNetwork(network)
    if not (inspect.isfunction(kind) or inspect.ismethod(kind)):
        return None
    needed = [p for p in inspect.signature(network).parameters.values() if p.default is p.empty]
    return None if needed else ModuleNetwork(network)


modules.READERS.append(read)


@contextlib.contextmanager
def _quietly():
    """Without a graph, and without a trace on torch's random numbers."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        yield


def _copied(network, module):
    lazy = [name for name, p in module.named_parameters() if torch.nn.parameter.is_lazy(p)]
    if lazy:
        raise ValueError(
            f"network={network!r}: the parameter {lazy[0]!r} has no shape yet; give the layer its width, or call the "
            "module once before"
        )
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise ValueError(
            f"network={network!r} cannot be copied ({type(error).__name__}: {error}); give a function that makes it, "
            "network=lambda: ..."
        ) from error


def _reset(module):
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if reset is not None:
        reset()


def _check(network, first, second):
    """Raise ValueError unless the second has weights drawn anew, wherever those of the first are not all equal."""
    if first is second:
        raise ValueError(f"network={network!r} must make a new module at each call; give the module itself, or so")
    others = dict(second.named_parameters())
    for name, p in first.named_parameters():
        same = p.requires_grad and name in others and torch.equal(p, others[name])
        if same and p.numel() > 1 and bool((p != p.flatten()[0]).any()):
            raise ValueError(
                f"network={network!r}: the parameter {name!r} cannot be drawn anew for each layer; give a function "
                "that makes the module, network=lambda: ..., or the part that owns it a method reset_parameters"
            )
