"""Bijections as Pyro transforms, whose weights are module parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pyro.distributions import ConditionalTransform, TransformModule
from torch.distributions import constraints

from flowppl._arrays.namespace import build
from flowppl._arrays.tree import Tree, leaves
from flowppl.bijections.combine import inverted
from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, check_given_context, initialize

build("torch")  # torch.compile cannot trace the making of it


class _Draws:
    """First values from torch's global generator, in the default dtype and on the default device."""

    def full(self, shape, value):
        return torch.full(shape, value)

    def normal(self, shape):
        return torch.randn(shape)

    def uniform(self, shape):
        return torch.rand(shape)


def numpy_rng() -> np.random.Generator:
    """NumPy's random numbers, as ``pyro.set_rng_seed`` determines."""
    return np.random.default_rng(int(torch.randint(2**63 - 1, ())))


def to_numpy(values: Any) -> np.ndarray:
    """A tensor, or what makes one, as an array of NumPy, which has no bfloat16."""
    tensor = torch.as_tensor(values).detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Weights(torch.nn.Module):
    """A tree of parameters and constants as a module: parameters are trained, constants are buffers."""

    def __init__(self, params: Tree, constants: Tree) -> None:
        super().__init__()
        for key in [*params, *(key for key in constants if key not in params)]:
            branch, fixed = params.get(key, {}), constants.get(key, {})
            if isinstance(branch, dict) and isinstance(fixed, dict):
                self.add_module(key, Weights(branch, fixed))
            elif isinstance(branch, dict):
                self.register_buffer(key, torch.as_tensor(fixed))
            else:
                self.register_parameter(key, torch.nn.Parameter(branch))

    @classmethod
    def drawn(cls, declared: Any) -> Weights:
        """First weights, and the constants, of what declares both, such as a bijection."""
        return cls(initialize(declared, _Draws()), declared.constants())

    def tree(self) -> Tree:
        """The merged tree, as a bijection takes it."""
        tree: Tree = {**self._parameters, **self._buffers}
        for key, branch in self._modules.items():
            tree[key] = branch.tree()  # type: ignore[union-attr, operator]
        return tree

    def __getstate__(self):
        # Pyro's parameter store hangs weak references on the parameters it has seen, which cannot be pickled.
        parameters = self.named_parameters(recurse=False)
        plain = {key: torch.nn.Parameter(p.detach(), p.requires_grad) for key, p in parameters}
        return self.__dict__ | {"_parameters": plain}

    @torch.no_grad()
    def assign(self, tree: Tree) -> None:
        """Set the parameters to the values of a tree; constants in it are passed over.

        Raises:
            ValueError: unless the tree has the names and shapes of the parameters here.
        """
        constants = dict(self.named_buffers())
        values = {name: leaf for path, leaf in leaves(tree) if (name := ".".join(path)) not in constants}
        parameters = dict(self.named_parameters())
        expected, found = ({name: tuple(leaf.shape) for name, leaf in each.items()} for each in (parameters, values))
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise ValueError(
                    f"assign: the weight {name!r} has the shape {found.get(name)}, expected {expected.get(name)}; "
                    "give all weights of the same bijection"
                )
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


class FlowTransform(TransformModule, ConditionalTransform):
    """A bijection with its weights, as a Pyro transform and a torch module.

    ``y = transform(x)`` takes noise x to data y, as sampling does; ``x = transform.inv(y)`` takes data back, as
    scoring does. An array of events x has the shape ``(..., *bijection.x_shape)``, for most bijections ``(..., dim)``;
    y has the shape ``(..., *bijection.y_shape)``, and a log determinant, which is summed over the event, ``(...)``.
    The axes in front, ``...``, are batch axes.

    A transform with ``bijection.context_dim > 0`` needs a context: :meth:`condition` gives it one, and so does Pyro's
    ``ConditionalTransformedDistribution``.

    Nothing is cached: a value computed again after the weights have changed, by whatever means, is new. Inside
    :class:`FlowDistribution` a sample with its density, and the density of fresh data, cost one pass each. Inside a
    plain ``TransformedDistribution`` the density costs two passes: torch asks for the inverse and for the determinant
    apart.

    Args:
        bijection: any :class:`flowppl.Bijection`. Its weights are drawn here, as ``pyro.set_rng_seed`` determines.

    Raises:
        TypeError: if ``bijection`` is no bijection.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import FlowTransform
        >>> transform = FlowTransform(fp.realnvp(3))
        >>> x = torch.ones(3)
        >>> bool(torch.allclose(transform.inv(transform(x)), x))
        True
    """

    bijective = True
    bijection: Bijection
    weights: Weights
    context: torch.Tensor | None
    domain: constraints.Constraint
    """Where x lies: the real line, or an interval, in every entry of an event."""
    codomain: constraints.Constraint
    """Where y lies: the real line, or an interval, in every entry of an event."""

    def __init__(self, bijection: Bijection) -> None:
        check_bijection(bijection)
        super().__init__(cache_size=0)
        self._set(bijection, Weights.drawn(bijection), None)

    @classmethod
    def _sharing(cls, bijection: Bijection, weights: Weights, context: torch.Tensor | None = None) -> FlowTransform:
        """A transform over weights that exist already; they are registered here too, and counted once."""
        transform = cls.__new__(cls)
        TransformModule.__init__(transform, cache_size=0)
        transform._set(bijection, weights, context)
        return transform

    def _set(self, bijection: Bijection, weights: Weights, context: torch.Tensor | None) -> None:
        self.bijection, self.weights, self.context = bijection, weights, context
        self.domain = _interval(bijection.x_support, bijection.x_shape)
        self.codomain = _interval(bijection.y_support, bijection.y_shape)

    def condition(self, context: torch.Tensor) -> FlowTransform:
        """This transform, over the same weights, at a context.

        Args:
            context: of shape ``(..., bijection.context_dim)``; its batch axes broadcast with those of x and y. A
                transform that takes no context (``context_dim=0``) is the same at all of them, and is returned as it
                is: so it may stand beside others in Pyro's ``ConditionalTransformedDistribution``.

        Example:
            >>> import torch
            >>> import pyro.distributions as dist
            >>> from flowppl.pyro import planar
            >>> base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            >>> flow = dist.ConditionalTransformedDistribution(base, [planar(2, context_dim=3)])
            >>> flow.condition(torch.ones(5, 3)).sample().shape
            torch.Size([5, 2])
        """
        return self._at(context) if self.bijection.context_dim else self

    def _at(self, context: torch.Tensor) -> FlowTransform:
        """As :meth:`condition`, but a transform that expects no context raises ValueError."""
        check_given_context(self.bijection, context)
        return FlowTransform._sharing(self.bijection, self.weights, context)

    @property
    def inv(self) -> FlowTransform:
        """The transform in the other direction, y to x, over the same weights and at the same context."""
        return FlowTransform._sharing(inverted(self.bijection), self.weights, self.context)

    def with_cache(self, cache_size: int = 1) -> FlowTransform:
        """This transform: it has no cache, whatever the size asked for."""
        return self

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """y, of shape ``(..., *bijection.y_shape)``, for x of shape ``(..., *bijection.x_shape)``."""
        return self.forward_and_log_det(x)[0]

    _call = __call__

    def forward_and_log_det(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(y, log_det)`` in one pass, the log determinant being that of x -> y.

        x has the shape ``(..., *bijection.x_shape)``, y ``(..., *bijection.y_shape)``, and log_det ``(...)``. The batch
        axes ``...`` of the result are those of x, broadcast with those of the context.
        """
        return self.bijection.forward(self.weights.tree(), x, self.context)

    def inverse_and_log_det(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(x, log_det)`` in one pass, the log determinant being that of y -> x.

        y has the shape ``(..., *bijection.y_shape)``, x ``(..., *bijection.x_shape)``, and log_det ``(...)``. The batch
        axes ``...`` of the result are those of y, broadcast with those of the context.
        """
        return self.bijection.inverse(self.weights.tree(), y, self.context)

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The log determinant of x -> y, of shape ``(...)``, for ``y = transform(x)``, by the cheaper direction."""
        if self.bijection.forward_cost == "parallel":
            return self.forward_and_log_det(x)[1]
        return -self.inverse_and_log_det(y)[1]

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        """The shape of y for x of this shape: ``(..., *bijection.x_shape)`` gives ``(..., *bijection.y_shape)``."""
        return self._mapped_shape(shape, self.bijection.x_shape, self.bijection.y_shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        """The shape of x for y of this shape: ``(..., *bijection.y_shape)`` gives ``(..., *bijection.x_shape)``."""
        return self._mapped_shape(shape, self.bijection.y_shape, self.bijection.x_shape)

    def _mapped_shape(self, shape: Sequence[int], event: tuple[int, ...], mapped: tuple[int, ...]) -> torch.Size:
        batch = shape[: len(shape) - len(event)]
        if self.context is not None:
            batch = torch.broadcast_shapes(batch, self.context.shape[:-1])
        return torch.Size((*batch, *mapped))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, FlowTransform)
            and self.weights is other.weights
            and self.context is other.context
            and self.bijection == other.bijection
        )

    __hash__ = TransformModule.__hash__

    def __repr__(self) -> str:
        context = "" if self.context is None else f", context={tuple(self.context.shape)}"
        return f"{type(self).__name__}({self.bijection!r}{context})"


def _interval(support: tuple[float, float], shape: tuple[int, ...]) -> constraints.Constraint:
    """The constraint of events of this shape with entries between two bounds."""
    named = {REAL_LINE: constraints.real, (0.0, math.inf): constraints.positive, (0.0, 1.0): constraints.unit_interval}
    return constraints.independent(named.get(support) or constraints.interval(*support), len(shape))
