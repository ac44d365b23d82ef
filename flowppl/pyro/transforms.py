"""Bijections as Pyro transforms, whose weights are module parameters."""

from __future__ import annotations

import functools
import inspect
import math

import torch
from pyro.distributions import TransformModule
from torch.distributions import constraints

from flowppl._arrays.namespace import build
from flowppl._arrays.tree import Tree, leaves
from flowppl.bijections.combine import inverted
from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, initialize
from flowppl.recipes import NAMED_BIJECTIONS, NAMED_RECIPES

build("torch")  # torch.compile cannot trace the making of it


class _Draws:
    """First values from torch's global generator, in the default dtype and on the default device."""

    def full(self, shape, value):
        return torch.full(shape, value)

    def normal(self, shape):
        return torch.randn(shape)

    def uniform(self, shape):
        return torch.rand(shape)


class Weights(torch.nn.Module):
    """A tree of parameters and constants as a module: parameters are trained, constants are buffers."""

    def __init__(self, params: Tree, constants: Tree):
        super().__init__()
        for key in [*params, *(key for key in constants if key not in params)]:
            branch, fixed = params.get(key, {}), constants.get(key, {})
            if isinstance(branch, dict) and isinstance(fixed, dict):
                self.add_module(key, Weights(branch, fixed))
            elif isinstance(branch, dict):
                self.register_buffer(key, torch.as_tensor(fixed))
            else:
                self.register_parameter(key, torch.nn.Parameter(branch))

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


class FlowTransform(TransformModule):
    """A bijection with its weights, as a Pyro transform and a torch module.

    ``transform(x)`` samples, ``transform.inv(y)`` scores. Nothing is cached: a value computed again after the
    weights have changed, by whatever means, is new.

    Inside :class:`FlowDistribution` a sample with its density, and the density of fresh data, cost one pass each.
    Inside a plain ``TransformedDistribution`` the density costs two passes: torch asks for the inverse and for the
    determinant apart.

    Args:
        bijection: any :class:`flowppl.Bijection`. Its weights are drawn here, as ``pyro.set_rng_seed`` determines.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import FlowTransform
        >>> transform = FlowTransform(fp.realnvp(3))
        >>> x = torch.ones(3)
        >>> bool(torch.allclose(transform.inv(transform(x)), x))
        True
    """

    bijective = True

    def __init__(self, bijection: Bijection):
        check_bijection(bijection)
        super().__init__(cache_size=0)
        self.bijection = bijection
        self.weights = Weights(initialize(bijection, _Draws()), bijection.constants())
        self.context = None

    @classmethod
    def _sharing(cls, bijection: Bijection, weights: Weights, context=None) -> FlowTransform:
        """A transform over weights that exist already; they are registered here too, and counted once."""
        transform = cls.__new__(cls)
        TransformModule.__init__(transform, cache_size=0)
        transform.bijection, transform.weights, transform.context = bijection, weights, context
        return transform

    def condition(self, context) -> FlowTransform:
        """This transform, over the same weights, at a context whose last axis has size ``bijection.context_dim``."""
        return FlowTransform._sharing(self.bijection, self.weights, context)

    @property
    def domain(self):  # type: ignore[override]
        return _interval(self.bijection.x_support, self.bijection.x_shape)

    @property
    def codomain(self):  # type: ignore[override]
        return _interval(self.bijection.y_support, self.bijection.y_shape)

    @property
    def inv(self) -> FlowTransform:
        """The transform in the other direction, over the same weights."""
        return FlowTransform._sharing(inverted(self.bijection), self.weights, self.context)

    def with_cache(self, cache_size=1) -> FlowTransform:
        """This transform: it has no cache, whatever the size asked for."""
        return self

    def forward_and_log_det(self, x):
        """``(y, log_det)`` in one pass, the log determinant being that of x -> y."""
        return self.bijection.forward(self.weights.tree(), x, self.context)

    def inverse_and_log_det(self, y):
        """``(x, log_det)`` in one pass, the log determinant being that of y -> x."""
        return self.bijection.inverse(self.weights.tree(), y, self.context)

    def _call(self, x):
        return self.forward_and_log_det(x)[0]

    def _inverse(self, y):
        return self.inverse_and_log_det(y)[0]

    def log_abs_det_jacobian(self, x, y):
        if self.bijection.forward_cost == "parallel":
            return self.forward_and_log_det(x)[1]
        return -self.inverse_and_log_det(y)[1]

    def forward_shape(self, shape):
        return self._mapped_shape(shape, self.bijection.x_shape, self.bijection.y_shape)

    def inverse_shape(self, shape):
        return self._mapped_shape(shape, self.bijection.y_shape, self.bijection.x_shape)

    def _mapped_shape(self, shape, event, mapped):
        batch = shape[: len(shape) - len(event)]
        if self.context is not None:
            batch = torch.broadcast_shapes(batch, self.context.shape[:-1])
        return torch.Size((*batch, *mapped))

    def __eq__(self, other):
        return (
            isinstance(other, FlowTransform)
            and self.weights is other.weights
            and self.context is other.context
            and self.bijection == other.bijection
        )

    __hash__ = TransformModule.__hash__

    def __repr__(self):
        context = "" if self.context is None else f", context={tuple(self.context.shape)}"
        return f"{type(self).__name__}({self.bijection!r}{context})"


def _interval(support, shape):
    """The constraint of events of this shape with entries between two bounds."""
    named = {REAL_LINE: constraints.real, (0.0, math.inf): constraints.positive, (0.0, 1.0): constraints.unit_interval}
    return constraints.independent(named.get(support) or constraints.interval(*support), len(shape))


def _named_transform(kind: type[Bijection]) -> type[FlowTransform]:
    """The transform of one kind of bijection, built from the bijection's own arguments."""

    def __init__(self, *args, **kwargs):
        FlowTransform.__init__(self, kind(*args, **kwargs))

    members = {
        "__init__": __init__,
        "__doc__": f"{kind.__name__} as a Pyro transform.\n\n{kind.__doc__}",
        "__module__": __name__,
        "__signature__": inspect.signature(kind),
    }
    return type(kind.__name__, (FlowTransform,), members)


def _named_helper(name, recipe):
    """A function that makes a transform of a recipe's stack."""

    @functools.wraps(recipe)
    def helper(*args, **kwargs):
        return FlowTransform(recipe(*args, **kwargs))

    helper.__signature__ = inspect.signature(recipe).replace(  # type: ignore[attr-defined]
        return_annotation=FlowTransform
    )
    helper.__name__ = helper.__qualname__ = name
    helper.__module__ = __name__
    return helper


named = {kind.__name__: _named_transform(kind) for kind in NAMED_BIJECTIONS}
named |= {name: _named_helper(name, recipe) for name, recipe in NAMED_RECIPES.items()}
globals().update(named)  # pickle finds a class by its name in its module
