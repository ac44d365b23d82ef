"""Optimisers of torch and Pyro for all trainings, and steps that leave out what is not finite."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from flowppl.checks import level_of_caller
from flowppl.pyro._host import (
    FakeTensorMode,
    TracingContext,
    _create_function_from_graph,
    _create_graph_by_tracing,
    make_fx,
    normalize_param_name,
    tracing,
)

Optimizer: TypeAlias = str | PyroOptim | Callable[..., Any]
"""What the ``optimizer`` of a training may be: see :func:`make_optimizer`."""

_NAMED: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}
_WAYS = (
    'pass "adam" or "adamax", a class of torch.optim, a function from a list of parameters to a torch optimiser such '
    "as functools.partial(torch.optim.AdamW, lr=1e-3), or an optimiser of pyro.optim"
)


def check_optimizer(owner: str, optimizer: Any, learning_rate: Any = None) -> None:
    """Raise unless ``optimizer`` can be one, and a learning rate is given only where it counts.

    Args:
        owner: who trains, for messages.
        optimizer: as for :func:`make_optimizer`.
        learning_rate: that of the training, ``None`` if the user gave none.

    Raises:
        TypeError: for what is no optimiser of torch or Pyro.
        ValueError: for a learning rate beside an optimiser that has its own.
    """
    if isinstance(optimizer, str) and optimizer not in _NAMED:
        raise ValueError(f"{owner}: there is no optimizer {optimizer!r}; {_WAYS}")
    if isinstance(optimizer, torch.optim.Optimizer | LRScheduler | ReduceLROnPlateau):
        raise TypeError(
            f"{owner}: optimizer is a {type(optimizer).__name__} that has its parameters already, but those to train "
            f"are found in here; {_WAYS}"
        )
    if not isinstance(optimizer, str) and not callable(optimizer):
        raise TypeError(f"{owner}: optimizer is no optimiser of torch or Pyro, got {optimizer!r}; {_WAYS}")
    if not isinstance(optimizer, str) and learning_rate is not None:
        raise ValueError(
            f"{owner}: learning_rate={learning_rate!r} beside an optimizer that has a learning rate of its own; leave "
            "one of the two out"
        )


def has_rate(optimizer: Optimizer) -> bool:
    """Whether ``optimizer`` has its own learning rate and schedule: those of the training are then not used."""
    return not isinstance(optimizer, str)


def make_optimizer(
    optimizer: Optimizer, parameters: Mapping[str, torch.Tensor], **options: Any
) -> torch.optim.Optimizer:
    """A torch optimiser over these parameters; a schedule goes on with each of its steps.

    Args:
        optimizer: one of

            - ``"adam"`` or ``"adamax"``, whose learning rate :func:`take_step` is given in each step;
            - a class of ``torch.optim``, or a function from a list of parameters to a torch optimiser, such as
              ``functools.partial(torch.optim.AdamW, lr=1e-3)``;
            - a function from a list of parameters to a pair, a torch optimiser and a scheduler of
              ``torch.optim.lr_scheduler`` over it;
            - an optimiser of ``pyro.optim``, or one with a schedule, such as
              ``pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 1e-2}, "gamma": 0.999})``.
              Only its settings are used: its own memory stays as it is.
        parameters: the parameters to train, by name.
        options: those of the named optimisers; others have their own.

    Raises:
        TypeError: if it is, or gives, none of these, or something that needs more than gradients: ``LBFGS``, or
            ``ReduceLROnPlateau``.

    Example:
        >>> import torch
        >>> from flowppl.pyro.steps import make_optimizer, take_step
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> def decaying(parameters):
        ...     optimizer = torch.optim.SGD(parameters, lr=1.0)
        ...     return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
        >>> optimizer = make_optimizer(decaying, {"weight": weight})
        >>> for _ in range(2):
        ...     weight.sum().backward()
        ...     loss = take_step(optimizer, [weight], torch.tensor(0.0))
        >>> weight.tolist()
        [-1.5, -1.5]
    """
    if isinstance(optimizer, str):
        return _NAMED[optimizer](parameters.values(), **options)  # type: ignore[call-arg]
    if isinstance(optimizer, PyroOptim):
        return _of_pyro(optimizer, parameters)
    made = optimizer(list(parameters.values()))
    made, *schedulers = made if isinstance(made, tuple | list) else [made]
    return _with_schedule(made, schedulers)


def _of_pyro(optimizer: PyroOptim, parameters: Mapping[str, torch.Tensor]) -> torch.optim.Optimizer:
    constructor: Any = optimizer.pt_optim_constructor
    arguments: Any = optimizer.pt_optim_args
    clips: Any = optimizer.pt_clip_args
    if callable(clips):
        raise TypeError("optimizer: clip_args of pyro.optim must be a dict here, not a function")
    if callable(arguments):  # of the name of a parameter
        made = constructor(
            [{"params": [parameter], **arguments(normalize_param_name(name))} for name, parameter in parameters.items()]
        )
    else:
        made = constructor(parameters.values(), **arguments)
    if clips:

        def clip(*_: Any) -> None:
            for parameter in parameters.values():
                optimizer._clip_grad(parameter, **clips)

        made.register_step_pre_hook(clip)
    if isinstance(optimizer, PyroLRScheduler):
        return _with_schedule(made, [optimizer.pt_scheduler_constructor(made, **optimizer.kwargs)])
    return _with_schedule(made, [])


def _with_schedule(made: Any, schedulers: list) -> torch.optim.Optimizer:
    if not isinstance(made, torch.optim.Optimizer) or isinstance(made, torch.optim.LBFGS):
        raise TypeError(f"optimizer must give a torch optimiser that needs gradients only, got {made!r}; {_WAYS}")
    for scheduler in schedulers:
        if not isinstance(scheduler, LRScheduler) or isinstance(scheduler, ReduceLROnPlateau):
            raise TypeError(f"optimizer must give schedulers that go by the number of steps, got {scheduler!r}")
        made.register_step_post_hook(lambda *_, scheduler=scheduler: scheduler.step())
    return made


def take_step(
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[torch.Tensor],
    loss: torch.Tensor,
    clip_norm: float = math.inf,
    rate: float | None = None,
) -> torch.Tensor:
    """Step along the gradients that the parameters hold, and forget these.

    With torch's fused Adam no value is read from the device, for which the program would have to wait.

    Args:
        optimizer: one of :func:`make_optimizer`.
        parameters: those to train.
        loss: the loss of this step, one number.
        clip_norm: the largest norm of the gradient.
        rate: the learning rate of this step; ``None`` for an optimiser that has its own, see :func:`has_rate`.

    Returns:
        The loss; NaN, and no step was taken, if it or a gradient is not finite.
    """
    if rate is not None:
        for group in optimizer.param_groups:
            group["lr"] = rate
    loss, norm = loss.detach(), torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
    finite = loss.isfinite() & norm.isfinite()
    if isinstance(optimizer, torch.optim.Adam) and optimizer.defaults["fused"]:
        cast(Any, optimizer).found_inf = (~finite).to(torch.float32)  # not 0: the step is left out on the device
        optimizer.step()
    elif finite:
        optimizer.step()
    optimizer.zero_grad()
    return torch.where(finite, loss, math.nan)


def record(function, inputs, end=math.inf):
    """``function`` as a program of tensor operations: a step then takes a fraction of the time in Python.

    It must take and return tensors and be the same in every call. What cannot be recorded stays as it is, and so does
    what gives other numbers when recorded, what has tensors whose size depends on values, and what is so long, as the
    search of a root for each coordinate, that its recording might not be over at ``end``, by the monotonic clock.
    """
    if end < math.inf:
        step = _seconds(function, inputs)
        # As measured: 100 short steps, and more of long ones, as the recorder takes more than in proportion.
        if time.monotonic() + 100 * step * (1 + 20 * step) > end:
            return function
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of the recorder
        try:
            with tracing(TracingContext(FakeTensorMode())):  # else each operation has a mode, which notes the stack
                module = make_fx(function)(*inputs)
            if any(map(_has_a_shape_of_its_values, module.graph.nodes)):
                return function  # a program would keep the sizes of these inputs
            program, fault = _compiled(module, inputs)
            others = [0.5 * tensor for tensor in inputs]
            same = zip(function(*others), program(*others), strict=True)
            is_same = all(torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True) for one, other in same)
        except Exception:  # whatever an operation of the model does that cannot be recorded
            return function
    if fault:
        warnings.warn(
            f"torch {torch.__version__} does not record steps as flowppl asks it to ({fault}): fits in Pyro are right, "
            "but take longer; install another torch of those that flowppl is tested with",
            RuntimeWarning,
            stacklevel=level_of_caller(),
        )
    return program if is_same else function


def _seconds(function, inputs) -> float:
    """How long a call takes: the shorter of two, as the first may have something to load."""
    begins = [time.monotonic()]
    for _ in range(2):
        function(*inputs)
        begins.append(time.monotonic())
    return min(begins[1] - begins[0], begins[2] - begins[1])


def _has_a_shape_of_its_values(node):
    """Whether the shape of what an operation gives depends on values, as that of ``x[x > 0]`` does."""
    if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
        return False
    if node.target is not torch.ops.aten.index.Tensor:
        return True
    return any(index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8) for index in node.args[1])


def _compiled(module, inputs):
    """The program of an ``fx`` module, without Python between its operations; or the module, and why it is no program.

    As ``torch.jit.trace`` makes it, which registers each program for as long as the process lives, though: fit after
    fit, the memory would fill with them.
    """
    for node in module.graph.nodes:
        if node.op == "get_attr":  # a constant must not ask for a gradient
            value = getattr(module, node.target).detach()
            delattr(module, node.target)
            setattr(module, node.target, value)
    names = [f"input_{i}" for i in range(len(inputs))]
    try:
        graph = _create_graph_by_tracing(module.forward, inputs, lambda _: "", True, False, None, names)[0]
        return _create_function_from_graph("step", graph), None
    except (AttributeError, TypeError) as error:  # of another torch, in which they are gone or take other arguments
        return module, error
