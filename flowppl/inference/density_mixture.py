"""What the mixtures of flows of both adapters share: their declaration, their weights, and from where they start."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, leaves
from flowppl.bijections.contract import Bijection, check_bijection, tell_dtypes
from flowppl.checks import assign, derived
from flowppl.declare import Parameter
from flowppl.networks import MLP, as_dims

NUM_MOVES = 20  # of the centres of groups of rows


@dataclasses.dataclass(frozen=True)
class Gate:
    """What makes the weights of a mixture: logits, or of a context a network.

    Args:
        num: the number K of weights.
        hidden_dims: the widths of the hidden layers of the network.
        context_dim: the size of the context, 0 for none.
    """

    num: int
    hidden_dims: tuple[int, ...]
    context_dim: int

    @property
    def _network(self) -> MLP:
        return MLP(self.context_dim, self.num, self.hidden_dims)

    def parameters(self) -> Tree:
        return self._network.parameters() if self.context_dim else {"logits": Parameter((self.num,))}

    def constants(self) -> Tree:
        return {}

    def log_weights(self, params: Tree, context: Array | None) -> Array:
        """The logarithms of the weights, of shape ``(*batch, K)``."""
        try:
            logits = self._network(params, context) if self.context_dim else params["logits"]
        except RuntimeError as error:  # of torch, whose products take one dtype
            tell_dtypes("Mixture", error, context=[context], weights=[leaf for _, leaf in leaves(params)])
            raise
        xp = namespace(logits)
        return xp.moveaxis(xp.log_softmax(xp.moveaxis(logits, -1, 0)), 0, -1)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Several bijections of one event, and what makes the weights of their flows.

    Args:
        bijections: those of the flows.
        hidden_dims: of the network from the context to the weights, if there is one.
    """

    bijections: Sequence[Bijection]
    hidden_dims: int | Sequence[int] = ()
    context_dim: int = derived()
    gate: Gate = derived()

    def __post_init__(self):
        bijections, hidden_dims = tuple(self.bijections), as_dims("Mixture", self.hidden_dims)
        if not bijections:
            raise ValueError("Mixture: give one flow or more, in a list")
        for bijection in bijections:
            check_bijection(bijection)
        for what in ("y_shape", "y_support", "context_dim"):
            found = list(dict.fromkeys(getattr(bijection, what) for bijection in bijections))
            found = [value for value in found if value]  # some may do without a context
            if len(found) > 1:
                raise ValueError(
                    f"Mixture: all flows must have the same {what}{' or 0' * (what == 'context_dim')}, got "
                    f"{' and '.join(map(str, found))}"
                )
        context_dim = max(bijection.context_dim for bijection in bijections)
        if hidden_dims and not context_dim:
            raise ValueError(
                f"Mixture: hidden_dims={hidden_dims} are of the network from a context to the weights, but no flow "
                "takes a context; leave them out"
            )
        gate = Gate(len(bijections), hidden_dims, context_dim)
        assign(self, bijections=bijections, hidden_dims=hidden_dims, context_dim=context_dim, gate=gate)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.bijections[0].y_shape

    @property
    def y_support(self) -> tuple[float, float]:
        return self.bijections[0].y_support

    def parameters(self) -> Tree:
        flows = {str(i): bijection.parameters() for i, bijection in enumerate(self.bijections)}
        return {"gate": self.gate.parameters(), "flows": flows}

    def constants(self) -> Tree:
        return {"flows": {str(i): bijection.constants() for i, bijection in enumerate(self.bijections)}}


def listed(flows: Any, kinds: tuple[type, ...]) -> list[Any]:
    """The flows of a mixture in a list; raise TypeError for one flow of these kinds, or what holds none."""
    if isinstance(flows, kinds) or not isinstance(flows, Iterable):
        raise TypeError(f"Mixture: give a list of flows, such as [bijection] * 3, got one {type(flows).__name__}")
    return list(flows)


def shared_out(x: np.ndarray, num: int) -> list[np.ndarray]:
    """The rows of each of ``num`` groups into which k-means parts them, each as often as makes len(x) of each group.

    The centres start far from each other, by k-means++ (Arthur, Vassilvitskii 2007), from a seed that is always the
    same.
    """
    rng, flat = np.random.default_rng(0), np.asarray(x, dtype=np.float64).reshape(len(x), -1)
    flat = (flat - flat.mean(axis=0)) / np.maximum(flat.std(axis=0), 1e-300)
    centres = flat[rng.integers(len(flat))][None]
    for _ in range(num - 1):
        far = _distances(flat, centres).min(axis=1) + 1e-300
        centres = np.concatenate([centres, flat[rng.choice(len(flat), p=far / far.sum())][None]])
    for _ in range(NUM_MOVES):
        nearest = _distances(flat, centres).argmin(axis=1)
        groups = [np.flatnonzero(nearest == k) for k in range(num)]
        centres = np.stack([flat[g].mean(axis=0) if len(g) else centres[k] for k, g in enumerate(groups)])
    return [np.resize(g if len(g) > 1 else np.arange(len(x)), len(x)) for g in groups]


def _distances(rows: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The squared distance of each row from each centre."""
    return np.stack([((rows - centre) ** 2).sum(axis=1) for centre in centres], axis=1)
