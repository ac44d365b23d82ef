"""Pyro's and torch's own transforms as bijections."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
from typing import Any, NamedTuple

import torch
from torch.distributions import Transform

from flowppl._arrays.tree import Tree, leaves, nested
from flowppl.bijections.contract import Bijection, check_event
from flowppl.bijections.wrap import Present, as_event_shape, check_host, check_single, interval, one_way
from flowppl.checks import assign, derived
from flowppl.declare import Parameter
from flowppl.pyro._host import _InverseTransform
from flowppl.recipes import NAMED_BIJECTIONS


class _Slot(NamedTuple):
    """A place where a module holds a tensor."""

    module: torch.nn.Module
    attribute: str
    key: str
    name: str

    @property
    def tensor(self) -> torch.Tensor:
        return vars(self.module)[self.attribute][self.key]


@dataclasses.dataclass(frozen=True, eq=False)
class Wrap(Bijection):
    """A transform of Pyro or torch as a bijection, to stand among flowppl's own.

    So an existing flow moves to flowppl layer by layer: wrap every layer and put them in one :class:`flowppl.Chain`;
    then replace one after the other by a bijection of flowppl, and compare densities at each step.

    The parameters of all modules in the transform, and of those that its functions call, become weights of the flow,
    and their buffers (such as the masks of a network) move with it. Tensors that are neither stay on the device where
    they are. Whether a module such as ``BatchNorm`` is in training or evaluation mode is asked of the module. The
    values of now are the first ones; the transform itself stays as it is. All layers of a :class:`flowppl.Repeat` start
    from the same values. A wrapped transform is equal to itself only: make it once, not at each call of a model. It
    cannot be saved by :func:`flowppl.save`.

    Args:
        transform: a transform of :mod:`torch.distributions` or :mod:`pyro.distributions.transforms`.
        shape: the shape of one event x; an int n means a vector, ``(n,)``.

    Raises:
        TypeError: if it is no such transform.
        ValueError: if its events have more axes than ``shape``.
        NotImplementedError: from a direction that the transform does not have.

    Example:
        >>> import torch, flowppl as fp
        >>> import pyro.distributions.transforms as T
        >>> from flowppl.pyro import FlowTransform, Wrap
        >>> flow = FlowTransform(fp.Chain([fp.Planar(3), Wrap(T.affine_coupling(3), 3)]))
        >>> x = torch.ones(3)
        >>> bool(torch.allclose(flow.inv(flow(x)), x, atol=1e-5))
        True
    """

    transform: Any
    shape: Any
    _parts: list = derived()
    _slots: list[_Slot] = derived()

    def __post_init__(self):
        check_host(self.transform, Transform, "a transform of torch or Pyro")
        parts = _parts(self.transform)
        assign(self, shape=as_event_shape(self.transform, self.shape), _parts=parts, _slots=_slots(parts))

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return tuple(self.transform.forward_shape(self.shape))

    @property
    def x_support(self) -> tuple[float, float]:
        return interval(self.transform.domain)

    @property
    def y_support(self) -> tuple[float, float]:
        return interval(self.transform.codomain)

    @property
    def forward_cost(self) -> str:
        return "sequential" if getattr(self.transform.inv, "autoregressive", False) else "parallel"

    @property
    def inverse_cost(self) -> str:
        return "sequential" if getattr(self.transform, "autoregressive", False) else "parallel"

    def parameters(self) -> Tree:
        return self._tree(lambda tensor: tensor.requires_grad, lambda p: Parameter(tuple(p.shape), Present(p, _copy)))

    def constants(self) -> Tree:
        # Buffers may be floats, unlike the constants of other bijections: they belong to networks of the host.
        return self._tree(lambda tensor: not tensor.requires_grad, lambda b: b.detach().cpu().numpy())

    def _tree(self, keep, leaf) -> Tree:
        return nested({slot.name: leaf(slot.tensor) for slot in self._slots if keep(slot.tensor)})

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self._run(self._forward, params, x)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self._run(self._inverse, params, y)

    def _run(self, function, params, event):
        weights = {".".join(path): leaf for path, leaf in leaves(params)}
        for slot in self._slots:
            check_single(slot.name, weights[slot.name], slot.tensor.shape)
        with _lent(self._parts, self._slots, weights):
            return function(event)

    def _forward(self, x):
        y = self._apply(self.transform, x)
        return y, self._log_det(x, y)

    def _inverse(self, y):
        x = self._apply(self.transform.inv, y)
        return x, -self._log_det(x, y)

    def _apply(self, transform, event):
        try:
            return transform(event)
        except (KeyError, NotImplementedError) as error:  # Pyro raises a KeyError where it lacks an inverse
            transforms = (part for part in self._parts if isinstance(part, Transform))
            raise one_way(transforms, _InverseTransform, NAMED_BIJECTIONS) from error

    def _log_det(self, x, y):
        """The host's log determinant, summed over the axes of an event that are batch axes to the host."""
        log_det = self.transform.log_abs_det_jacobian(x, y)
        log_det = log_det.expand(x.shape[: x.ndim - self.transform.domain.event_dim])
        rest = tuple(range(x.ndim - len(self.shape), log_det.ndim))
        return log_det.sum(rest) if rest else log_det


def _parts(transform) -> list:
    """A transform and all transforms and modules in it, itself first; also those that its functions call."""
    found: dict[int, Any] = {}
    seen: dict[int, Any] = {}

    def visit(value):
        if id(value) in seen:
            return
        seen[id(value)] = value
        if isinstance(value, (list, tuple)):
            inner = [*value]
        elif isinstance(value, (Transform, torch.nn.Module)):
            found[id(value)] = value
            inner = [*vars(value).values(), *getattr(value, "_modules", {}).values()]
        elif isinstance(value, functools.partial):
            inner = [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, types.MethodType):
            inner = [value.__self__]
        elif isinstance(value, types.FunctionType):
            inner = [*inspect.getclosurevars(value).nonlocals.values()]
        else:
            return
        for entry in inner:
            visit(entry)

    visit(transform)
    return list(found.values())


def _slots(parts) -> list[_Slot]:
    """The places of all tensors; a module, and a tensor, has one name, wherever it occurs."""
    modules = torch.nn.ModuleList(part for part in parts if isinstance(part, torch.nn.Module))
    names: dict[int, str] = {}
    return [
        _Slot(module, attribute, key, names.setdefault(id(tensor), f"{prefix}.{key}"))
        for prefix, module in modules.named_modules()
        for attribute in ("_parameters", "_buffers")
        for key, tensor in getattr(module, attribute).items()
        if tensor is not None
    ]


@contextlib.contextmanager
def _lent(parts, slots, weights):
    """Lend the weights to the modules among ``parts``, and take all back that the call within leaves on them.

    The caches of host transforms are empty at the start: a cached value is stale once the weights have changed, and its
    graph cannot be copied. Within the call they work, so that the log determinant costs no second pass.
    ``torch.func.functional_call`` does not return the tensors of a module that occurs twice.
    """
    before = [(part, dict(vars(part))) for part in parts]
    try:
        for slot in slots:
            lent = {slot.key: weights[slot.name]}
            vars(slot.module)[slot.attribute] = vars(slot.module)[slot.attribute] | lent
        for part in parts:
            if hasattr(part, "_cached_x_y"):
                part._cached_x_y = None, None
        yield
    finally:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)


def _copy(tensor):
    return tensor.detach().clone()
