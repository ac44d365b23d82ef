"""Layers of one kind, stacked into few large arrays: ``Repeat``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from flowppl._arrays import tree as _tree
from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.combine import Wrapper
from flowppl.bijections.contract import Bijection, check_bijection, check_event
from flowppl.bijections.reversible import check_reversible, run
from flowppl.checks import assign, check_sizes, derived
from flowppl.declare import Constant, Draws, Normal, Parameter, Uniform


@dataclasses.dataclass(frozen=True)
class Repeat(Wrapper):
    """``num`` layers of one kind, each with weights of its own, stacked into few large arrays.

    Parameters have the names of one layer and a leading axis of length ``num`` (after batch axes, if any). Optimisers,
    checkpoints and compilers prefer this to many small arrays. Constants are shared by the layers.

    Args:
        bijection: one layer; its ``x_shape`` and ``y_shape`` must be equal.
        num: the number of layers, at least 1.
        scan: run the layers in a compiled loop (JAX) instead of unrolling them. Compilation then takes the same time
            for any number of layers; the unrolled form runs a little faster. ``None`` unrolls up to 8 layers.
        reversible: as for :class:`Chain`.

    Warns:
        UserWarning: as :class:`Chain`.

    Raises:
        ValueError: if ``num`` < 1 or the layer changes the shape of the event.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.Repeat(fp.ElementwiseAffine(3), 5)
        >>> flow.parameters()["loc"].shape
        (5, 3)
    """

    bijection: Bijection
    num: int
    scan: bool | None = None
    reversible: bool = False
    _ranks: Tree = derived()

    def __post_init__(self):
        check_bijection(self.bijection)
        check_sizes("Repeat", num=self.num)
        assign(self, _ranks=_tree.map_tree(lambda parameter: len(parameter.shape), self.bijection.parameters()))
        if self.bijection.x_shape != self.bijection.y_shape:
            raise ValueError(
                f"Repeat: the layer must keep the shape of the event, but {type(self.bijection).__name__} "
                f"maps {self.bijection.x_shape} to {self.bijection.y_shape}"
            )
        if self.bijection.x_support != self.bijection.y_support:
            raise ValueError(
                f"Repeat: the layer must keep the support, but {type(self.bijection).__name__} maps "
                f"{self.bijection.x_support} to {self.bijection.y_support}"
            )
        check_reversible(self, self.reversible)

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijection.context_dim

    def parameters(self) -> Tree:
        return _tree.map_tree(
            lambda p: Parameter((self.num, *p.shape), Stacked(p.initializer)), self.bijection.parameters()
        )

    def constants(self) -> Tree:
        return self.bijection.constants()

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return run(self, "forward", params, x, context)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return run(self, "inverse", params, y, context)

    def push_score(self, params, x, score, context=None):
        check_event(self, x, self.x_shape, context)
        return self._run("push_score", params, x, context, score)

    def pull_back(self, direction, params, image, cotangents, context=None):
        xp = namespace(image)

        def tree_of(leaves):
            return _tree.map_tree(lambda _: next(leaves), self._ranks)

        def step(i, carry, *layer):
            image, of_image, of_context = carry
            own, given = _tree.replace(params, tree_of(iter(layer))), (of_image, cotangents[1])
            image, of_own, of_image, found = self.bijection.pull_back(direction, own, image, given, context)
            carry = image, of_image, None if found is None else of_context + found
            return carry, tuple(leaf for _, leaf in _tree.leaves(_tree.select(self._ranks, of_own)))

        layers = [leaf for _, leaf in _tree.leaves(self._layers_first(xp, params))]
        carry = image, cotangents[0], None if context is None else xp.zeros_like(context)
        (image, *rest), found = xp.collect(self.num, step, carry, *layers, reverse=direction == "forward")
        of_layers = _tree.map_tree(
            lambda rank, leaf: xp.moveaxis(leaf, 0, leaf.ndim - rank - 1), self._ranks, tree_of(iter(found))
        )
        return image, _tree.replace(_tree.map_tree(lambda _: None, params), of_layers), *rest

    def init_from(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        columns = _tree.map_tree(lambda leaf: xp.unstack(leaf, axis=0), self._layers_first(xp, params))
        layers: list[Tree] = []
        for i in reversed(range(self.num)):
            layer = _tree.replace(params, _tree.map_tree(lambda column, i=i: column[i], columns))
            layers.insert(0, self.bijection.init_from(layer, y, context))
            y, _ = self.bijection.inverse(_tree.replace(layer, layers[0]), y, context)
        return _tree.map_tree(lambda first, *rest: xp.stack([first, *rest]), *layers)

    def _layers_first(self, xp, params):
        """The trained part of ``params`` with the axis of the layers in front."""

        def first(rank, leaf):
            return leaf if leaf.ndim == rank + 1 else xp.moveaxis(leaf, leaf.ndim - rank - 1, 0)

        return _tree.map_tree(first, self._ranks, params)

    def _keeps(self, stacked, event):
        """Whether the event has the dtype and the batch axes of the result before the first layer."""
        ranks = _tree.leaves(self._ranks)
        pairs = [(rank, leaf) for (_, rank), (_, leaf) in zip(ranks, _tree.leaves(stacked), strict=True)]
        return all(leaf.ndim == rank + 1 and leaf.dtype == event.dtype for rank, leaf in pairs)

    def _run(self, direction, params, event, context, *score):
        xp, apply, reverse = namespace(event), getattr(self.bijection, direction), direction == "inverse"
        params = self.bijection.prepare(params)
        stacked = self._layers_first(xp, params)
        columns = _tree.map_tree(lambda leaf: xp.unstack(leaf, axis=0), stacked)

        def step(carry, layer):
            event, total, *score = carry
            event, log_det, *score = apply(_tree.replace(params, layer), event, *score, context)
            return event, log_det if total is None else total + log_det, *score

        scan = self.num > 8 if self.scan is None else self.scan
        settled = self._keeps(stacked, event) and all(part.shape == event.shape for part in score)
        if scan and context is None and settled:
            nothing = xp.zeros_like(event[(..., *(0,) * len(self.x_shape))])
            return xp.scan(step, (event, nothing, *score), stacked, self.num, reverse)
        # The first step gives the carry the shapes and the dtype that it keeps.
        order = list(reversed(range(self.num))) if reverse else list(range(self.num))
        carry = step((event, None, *score), _tree.map_tree(lambda column: column[order[0]], columns))
        if scan:
            rest = slice(None, -1) if reverse else slice(1, None)
            return xp.scan(step, carry, _tree.map_tree(lambda leaf: leaf[rest, ...], stacked), self.num - 1, reverse)
        for i in order[1:]:
            carry = step(carry, _tree.map_tree(lambda column, i=i: column[i], columns))
        return carry


@dataclasses.dataclass(frozen=True)
class Stacked:
    """Initializer of a stack: one independent draw for each layer."""

    initializer: Callable[[Draws, tuple[int, ...]], Array]

    def __call__(self, draws, shape):
        if isinstance(self.initializer, (Constant, Normal, Uniform)):  # entries are independent: one draw does for all
            return self.initializer(draws, shape)
        if hasattr(self.initializer, "stacked"):
            return self.initializer.stacked(draws, shape)
        layers = [self.initializer(draws, shape[1:]) for _ in range(shape[0])]
        return namespace(layers[0]).stack(layers)
