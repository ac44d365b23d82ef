"""Any bijection, with all its parameters made from a context."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from flowppl._arrays import tree as _tree
from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.combine import Wrapper
from flowppl.bijections.contract import Bijection, check_bijection, check_event, num_parameters
from flowppl.checks import assign, check_sizes, derived
from flowppl.networks import MLP, as_dims


@dataclasses.dataclass(frozen=True)
class Conditional(Wrapper):
    r"""A bijection whose parameters depend on a context: :math:`\theta(c) = \theta_0 + g(c)`.

    One network g makes all parameters of the bijection at once, added to parameters :math:`\theta_0` of its own.
    The last layer of g starts at zero, so that the flow starts at the unconditional one. This is how flow-VAE
    encoders amortise planar, Sylvester or Householder flows. Coupling and autoregressive layers have a network
    already: give them ``context_dim`` instead.

    Args:
        bijection: an unconditional bijection with parameters.
        context_dim: the size of the context.
        hidden_dims: the hidden layers of g; ``()``, the default, is one linear layer.
        activation: the activation of g: elu, relu, silu, softplus or tanh.

    Raises:
        ValueError: if the bijection takes a context itself, has no parameters, or is one of your own that does not
            take weights with batch axes; or ``context_dim`` < 1.

    References:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770. van den Berg,
        Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.Conditional(fp.Planar(4, num_flows=8), context_dim=16)
        >>> flow.context_dim, flow.parameters()["network"]["0"]["weight"].shape
        (16, (16, 72))
    """

    bijection: Bijection
    context_dim: int
    hidden_dims: int | Sequence[int] = ()
    activation: str = "silu"
    _network: MLP = derived()
    _shapes: Tree = derived()

    def __post_init__(self):
        check_bijection(self.bijection)
        check_sizes("Conditional", context_dim=self.context_dim)
        name = type(self.bijection).__name__
        if self.bijection.context_dim:
            raise ValueError(f"Conditional: {name} takes a context itself; give it context_dim instead of wrapping it")
        if not self.bijection.parameters():
            raise ValueError(f"Conditional: {name} has no parameters that could depend on a context")
        _check_batched_weights(self.bijection)
        hidden_dims = as_dims("Conditional", self.hidden_dims)
        network = MLP(self.context_dim, num_parameters(self.bijection), hidden_dims, activation=self.activation)
        shapes = _tree.map_tree(lambda parameter: parameter.shape, self.bijection.parameters())
        assign(self, hidden_dims=hidden_dims, _network=network, _shapes=shapes)

    def parameters(self) -> Tree:
        return {"bijection": self.bijection.parameters(), "network": self._network.parameters()}

    def constants(self) -> Tree:
        constants = self.bijection.constants()
        return {"bijection": constants} if constants else {}

    def _at(self, params, context):
        """The merged tree of the inner bijection at this context."""
        return _tree.replace(params["bijection"], self._weights(params, context))

    def _weights(self, params, context):
        """The parameters of the inner bijection at this context."""
        offsets = _cut(self._network(params["network"], context), self._shapes)
        return _tree.map_tree(lambda offset, start: start + offset, offsets, params["bijection"])

    def init_from(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        trained = _tree.select(self.parameters(), params)
        return trained | {"bijection": self.bijection.init_from(params["bijection"], y)}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self.bijection.forward(self._at(params, context), x)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self.bijection.inverse(self._at(params, context), y)

    def push_score(self, params, x, score, context=None):
        check_event(self, x, self.x_shape, context)
        return self.bijection.push_score(self._at(params, context), x, score)

    def pull_back(self, direction, params, image, cotangents, context=None):
        xp = namespace(image)
        (weights,), pull = xp.pullback(lambda *given: (self._weights(*given),), params, context)
        inner = _tree.replace(params["bijection"], weights)
        event, of_inner, of_event, _ = self.bijection.pull_back(direction, inner, image, cotangents)
        of_params, of_context = pull(_tree.select(weights, of_inner))
        return event, of_params, of_event, of_context


def _cut(vector: Array, shapes: Tree) -> Tree:
    """The last axis of ``vector`` cut into arrays of these shapes; its other axes stay in front of each."""
    xp, position = namespace(vector), 0

    def leaf(shape):
        nonlocal position
        start, position = position, position + math.prod(shape)
        return xp.reshape(vector[..., start:position], (*vector.shape[:-1], *shape))

    return _tree.map_tree(leaf, shapes)


def _check_batched_weights(bijection: Bijection) -> None:
    """Raise ValueError if a layer of the user's own gives, at one set of weights for each event, something else.

    It is tried on two random events, in NumPy; a layer that cannot be computed in NumPy is not judged.
    """
    if all(type(part).__module__.startswith("flowppl.") for part in _parts(bijection)):
        return
    rng = np.random.default_rng(0)
    weights = _tree.map_tree(lambda p: 0.3 * rng.normal(size=(2, *p.shape)), bijection.parameters())
    events = rng.uniform(0.2, 0.8, size=(2, *bijection.x_shape))

    def run(index) -> tuple[Array, Array]:
        tree = _tree.merge(_tree.map_tree(lambda leaf: leaf[index], weights), bijection.constants())
        return bijection.forward(tree, events[index])

    try:
        one_by_one = [run(0), run(1)]
    except Exception:
        return
    try:
        together = run(slice(None))
        agree = all(
            np.shape(both) == np.shape(each) and np.allclose(both, each, equal_nan=True)
            for both, each in zip(together, map(np.stack, zip(*one_by_one, strict=True)), strict=True)
        )
    except Exception:
        agree = False
    if not agree:
        raise ValueError(
            f"Conditional: {type(bijection).__name__} gives other results for two events with weights of their own, of "
            "the shape (2, ...), than for one after the other; its weights must be able to carry batch axes in front "
            "(see flowppl.Bijection). Or let the layer take the context itself, by context_dim"
        )


def _parts(bijection: Bijection) -> Iterator[Bijection]:
    """A bijection and all those in its fields."""
    yield bijection
    for value in vars(bijection).values():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Bijection):
                yield from _parts(part)
