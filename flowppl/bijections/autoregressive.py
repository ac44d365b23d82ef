"""Autoregressive layers: every coordinate is mapped by parameters made of the coordinates before it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.checks import assign, check_sizes, derived
from flowppl.networks import MADE, as_dims, dense_layers, hidden_units, masked_layers, split_raw
from flowppl.univariate.base import Affine, Univariate, check_univariate


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How the coordinates are found: in blocks of steps, each step finding ``width`` coordinates at once.

    The coordinates stand in *slots*, in the order of the steps; a step, or the last block, may have slots to spare.
    """

    index: tuple[int, ...]  # the coordinate in each slot; the number of coordinates stands for none
    width: int
    steps: int  # in each block
    blocks: int
    unit_bounds: tuple[tuple[int, ...], ...]  # of each hidden layer: where the units start that each block computes

    @property
    def slots(self) -> tuple[int, ...]:
        """Where the slots of each block start, and where the last ends."""
        size = self.steps * self.width
        return tuple(range(0, self.blocks * size + 1, size))

    @property
    def bounds(self) -> tuple[tuple[int, ...], ...]:
        """Where the blocks start among the slots, and among the units of each hidden layer."""
        return (self.slots, *self.unit_bounds)

    def arrange(self, array: Array, index: Array, axis: int = -1) -> Array:
        """The coordinates along an axis, put in their slots; zeros where a slot has none."""
        xp = namespace(array)
        array = xp.moveaxis(array, axis, -1)
        if self.index != tuple(range(array.shape[-1])):
            array = xp.take(xp.concat([array, xp.zeros_like(array[..., :1])], axis=-1), index, axis=-1)
        spare = self.slots[-1] - array.shape[-1]
        if spare:
            array = xp.concat([array, xp.zeros_like(array[..., :spare])], axis=-1)
        return xp.moveaxis(array, -1, axis)

    def restore(self, array: Array, index: Array, dim: int) -> Array:
        """The coordinates along the last axis, out of their slots."""
        if self.index == tuple(range(dim)):
            return array[..., :dim]
        xp = namespace(array)
        return xp.take(array, xp.argsort(index)[:dim], axis=-1)


def _make_plan(network: MADE) -> _Plan:
    """The plan for a network. Steps are as wide as levels of coordinates on average; a wider level takes several."""
    members: list[list[int]] = [[] for _ in range(max(network.levels) + 1)]
    for coordinate, level in enumerate(network.levels):
        members[level].append(coordinate)
    width = -(-network.dim // len(members))
    index: list[int] = []
    first_step = []
    for together in members:
        first_step.append(len(index) // width)
        index += together + [network.dim] * (-len(together) % width)
    total = len(index) // width
    # In each step a block computes all its units anew. At the root that costs about as much as the rest: one pass.
    blocks = -(-total // min(max(round(math.sqrt(total)), 8), 28))
    steps = -(-total // blocks)
    starts = [block * steps for block in range(blocks)]
    unit_bounds = tuple(
        (*np.searchsorted(np.asarray(first_step)[list(levels)], starts).tolist(), len(levels))
        for levels in network.unit_levels
    )
    return _Plan(tuple(index), width, steps, blocks, unit_bounds)


@dataclasses.dataclass(frozen=True)
class Autoregressive(Bijection):
    r"""An autoregressive layer over any univariate map :math:`\tau`.

    .. math::
        y_i = \tau\big(x_i;\, g_i(x_1, \dots, x_{i-1}, \mathrm{context})\big), \qquad i = 1, \dots, D.

    ``forward`` is one pass of a masked network. ``inverse`` finds the coordinates one after the other, in blocks, and
    computes in each step only what the block needs: D small steps, in all about the work of two passes. This way round
    it is the *inverse autoregressive flow* (IAF): cheap to sample, for guides. Turned around,
    ``Invert(Autoregressive(dim))``, it is the *masked autoregressive flow* (MAF): cheap to score, for densities and
    priors. With ``dim=1`` the parameters depend on the context alone.

    Args:
        dim: the number of coordinates.
        univariate: the map of each coordinate.
        hidden_dims: the widths of the network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: the network's activation: elu, relu, silu, softplus or tanh. A bounded one keeps the training of
            deep stacks stable.
        order: the coordinates in the order in which they are generated, each depending on those before it. ``None``
            means 0, 1, ...
        adjacency: instead of an order, for each coordinate i and each j whether the parameters of i may depend on j.
            Coordinates that do not wait for each other are then found in one step.
        residual: whether the entries of ``hidden_dims``, which must be equal, are residual blocks of two layers; see
            :class:`~flowppl.MADE`.

    Raises:
        ValueError: for a dimension below 1, both an order and an adjacency, an order that is no
            permutation, an adjacency of the wrong shape or with a cycle, or residual blocks of unequal widths.

    References:
        Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934.
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, 2017, arXiv 1705.07057.

    Example:
        >>> import flowppl as fp
        >>> iaf = fp.Autoregressive(4, hidden_dims=16)
        >>> iaf.forward_cost, iaf.inverse_cost
        ('parallel', 'sequential')
    """

    dim: int
    univariate: Univariate = Affine()
    hidden_dims: int | Sequence[int] = (64, 64)
    context_dim: int = 0
    activation: str = "tanh"
    order: Sequence[int] | None = None
    adjacency: Sequence[Sequence[bool]] | None = None
    residual: bool = False
    _network: MADE = derived()
    _plan: _Plan = derived()

    def __post_init__(self):
        check_sizes("Autoregressive", dim=self.dim)
        check_univariate("Autoregressive", self.univariate, at_least=1)
        network = MADE(
            self.dim,
            self.univariate.num_raw,
            as_dims("Autoregressive", self.hidden_dims),
            self.context_dim,
            self.activation,
            self.order,
            self.adjacency,
            self.residual,
        )
        assign(self, hidden_dims=network.hidden_dims, order=network.order, adjacency=network.adjacency)
        assign(self, _network=network, _plan=_make_plan(network))

    @property
    def inverse_cost(self) -> str:
        return "sequential"

    def parameters(self) -> Tree:
        return {"network": self._network.parameters()}

    def constants(self) -> Tree:
        return {"network": self._network.constants(), "index": np.asarray(self._plan.index)}

    def prepare(self, params):
        return {**params, "network": self._network.prepare(params["network"])}  # torch 2.5 compiles no ``|`` of dicts

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self._pass(self.univariate.forward, params, x, context)

    def _pass(self, univariate, params, event, context):
        raw = split_raw(self._network(params["network"], event, context), self.univariate.num_raw)
        event, log_slope = univariate(raw, event)
        return event, namespace(event).sum(log_slope, axis=-1)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        if self._plan.steps == 1:  # no coordinate depends on another: whatever the network is given is masked
            return self._pass(self.univariate.inverse, params, y, context)
        xp, plan, num_raw, num_hidden = namespace(y), self._plan, self.univariate.num_raw, len(self._plan.unit_bounds)

        def arrange_outputs(array):
            array = plan.arrange(xp.reshape(array, (*array.shape[:-1], num_raw, self.dim)), params["index"])
            return xp.reshape(array, (*array.shape[:-2], num_raw * plan.slots[-1]))

        weights, sums = dense_layers(masked_layers(params["network"]), context)
        weights[0] = plan.arrange(weights[0], params["index"], axis=-2)
        weights[-1], sums[-1] = arrange_outputs(weights[-1]), arrange_outputs(sums[-1])
        dtype = xp.result_type(y, *sums, *weights)  # the carry of a loop must not change its own
        y, sums = xp.astype(plan.arrange(y, params["index"]), dtype), [xp.astype(added, dtype) for added in sums]
        shapes = [array.shape[:-1] for array in (y, *sums)] + [weight.shape[:-2] for weight in weights]
        batch = xp.broadcast_shapes(*shapes)

        # From here on coordinates and units are rows, and events that share their weights are columns: small products
        # are faster this way round, and a part of the rows is one piece of memory.
        shared = all(weight.ndim == 2 for weight in weights)

        def to_columns(array):
            array = xp.broadcast_to(array, (*batch, array.shape[-1]))
            return xp.reshape(array, (math.prod(batch), array.shape[-1])).mT if shared else array[..., None]

        y, weights, sums = to_columns(y), [weight.mT for weight in weights], [to_columns(added) for added in sums]

        def find_block(block, sums):
            """Find the coordinates of a block, and add what they give to the sums of all units and outputs."""

            def part(array, layer):
                """The rows of the block: its slots (layer 0), its units in a hidden layer, its outputs."""
                if layer <= num_hidden:
                    return xp.segment(array, plan.bounds[layer], block, -2)
                array = xp.reshape(array, (*array.shape[:-2], num_raw, plan.slots[-1], array.shape[-1]))
                array = xp.segment(array, plan.slots, block, -2)
                return xp.reshape(array, (*array.shape[:-3], num_raw * array.shape[-2], array.shape[-1]))

            def by_step(array, num):
                """The rows ``num * steps * width`` as ``(steps, ..., num * width, :)``."""
                array = xp.reshape(array, (*array.shape[:-2], num, plan.steps, plan.width, array.shape[-1]))
                array = xp.moveaxis(array, -3, 0)
                return xp.reshape(array, (*array.shape[:-3], num * plan.width, array.shape[-1]))

            outer = [xp.segment(weight, plan.bounds[layer], block, -1) for layer, weight in enumerate(weights)]
            inner = [part(weight, layer) for layer, weight in enumerate(outer, start=1)]
            added = [part(array, layer) for layer, array in enumerate(sums, start=1)]
            by_steps = [by_step(part(y, 0), 1), by_step(inner[0].mT, 1).mT]
            if num_hidden:
                by_steps += [by_step(inner[-1], num_raw), by_step(added[-1], num_raw)]

            def units(before):
                """The hidden units of the block; those that wait for a coordinate not yet found are unfinished."""
                return hidden_units(before, inner[1:-1], added[1:-1], self.activation, self.residual, xp.matmul_add)

            def find_step(step, before, events, first_weight, *outputs):
                raw = xp.matmul_add(units(before)[-1], *outputs) if outputs else by_step(before, num_raw)[step, ...]
                raw = xp.reshape(raw, (*raw.shape[:-2], num_raw, plan.width, raw.shape[-1]))
                found = self.univariate.inverse(xp.moveaxis(raw, -3, 0), events)
                return xp.matmul_add(found[0], first_weight, before), found

            before, found = xp.collect(plan.steps, find_step, added[0], *by_steps)
            found = tuple(map(join, found))
            inputs = [found[0], *(units(before) if num_hidden else [])]
            return [xp.matmul_add(*layer) for layer in zip(inputs, outer, sums, strict=True)], found

        def join(array):
            """Rows that stand apart along the first axis."""
            array = xp.moveaxis(array, 0, -3)
            return xp.reshape(array, (*array.shape[:-3], array.shape[-3] * array.shape[-2], array.shape[-1]))

        _, found = xp.collect(plan.blocks, find_block, sums)
        found = (join(part) for part in found)
        found = (xp.reshape(part.mT, (*batch, plan.slots[-1])) if shared else part[..., 0] for part in found)
        x, log_slope = (plan.restore(part, params["index"], self.dim) for part in found)
        return x, xp.sum(log_slope, axis=-1)
