"""The masked perceptron, whose outputs for a coordinate depend on the coordinates before it only."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Sequence

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.checks import assign, check_sizes, derived
from flowppl.networks.dense import dense, dense_parameters, masked, masked_layers
from flowppl.networks.protocol import as_dims, check_activation

WIDE = 512  # from so many rows and columns on a matrix is cut into strips; at 256 nothing is won
STRIPS = 4  # forward and backward 0.68 of the time of a layer of 1,024 units in torch; with two 0.75, with eight 0.68


def read_dependencies(owner: str, dim: int, order, adjacency) -> tuple[np.ndarray, np.ndarray]:
    """Which coordinates each coordinate may depend on, and the level of each: the length of the longest way to it.

    Raises:
        ValueError: if both are given, ``order`` is no permutation, or ``adjacency`` no matrix without cycles.
    """
    if order is not None and adjacency is not None:
        raise ValueError(f"{owner}: give order or adjacency, not both; an adjacency determines the order")
    if adjacency is None:
        order = tuple(range(dim)) if order is None else order
        if sorted(order) != list(range(dim)):
            raise ValueError(f"{owner}: order must contain each of 0 .. {dim - 1} exactly once, got {order!r}")
        position = np.argsort(order)
        return position[:, None] > position[None, :], position
    lengths = [len(row) for row in adjacency]
    if lengths != [dim] * dim:
        raise ValueError(f"{owner}: adjacency must have dim={dim} rows of {dim} entries, got rows of {lengths}")
    reads = np.array(adjacency)
    if reads.diagonal().any():
        own = int(np.argmax(reads.diagonal()))
        raise ValueError(
            f"{owner}: adjacency[{own}][{own}] must be False; a coordinate's parameters cannot depend on itself"
        )
    level, waits = np.full(dim, -1), reads.sum(axis=1)
    for step in range(dim):
        ready = np.flatnonzero((waits == 0) & (level < 0))
        level[ready] = step
        waits = waits - reads[:, ready].sum(axis=1)
    if (level < 0).any():
        raise ValueError(
            f"{owner}: adjacency has the cycle {_cycle(reads, level < 0)} (each depends on the next); "
            "make one of these entries False"
        )
    return reads, level


def _cycle(reads: np.ndarray, stuck: np.ndarray) -> str:
    """A cycle among the coordinates that are stuck: each of them depends on another of them."""
    path = [int(np.argmax(stuck))]
    while path.count(path[-1]) < 2:
        path.append(int(np.argmax(reads[path[-1]] & stuck)))
    return " -> ".join(map(str, path[path.index(path[-1]) :]))


@dataclasses.dataclass(frozen=True)
class MADE:
    r"""A masked perceptron whose outputs for coordinate d depend on the coordinates before d only.

    Each hidden unit sees the coordinates that the outputs of some coordinate may depend on: for the default order the
    coordinates 1 to m, m being the degree of the unit. A unit sees units that see no more than it does, and the
    outputs of coordinate d see the units that see only what these outputs may depend on. All such sets of coordinates
    have equal shares of a layer, so that all that may be connected is; a layer with fewer units than sets takes a few
    from the lowest to the highest, and leaves some connections out. The context is seen by all units. The output has
    ``num_outputs`` blocks of length ``dim``.

    With ``residual=True`` each entry of ``hidden_dims`` is a block of two layers,
    :math:`h \leftarrow h + W_2\, \sigma(W_1\, \sigma(h))`, between a first layer and the output; its second layer
    starts at zero.

    Args:
        dim: the number of coordinates.
        num_outputs: how many outputs each coordinate gets.
        hidden_dims: the widths of the hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: one of elu, relu, silu, softplus, tanh.
        order: the coordinates in the order in which they are generated, each seeing those before it. ``None`` means
            0, 1, ...
        adjacency: instead of an order, for each coordinate i and each j whether the outputs of i may depend on j.
        residual: whether the entries of ``hidden_dims``, which must be equal, are residual blocks.

    Raises:
        ValueError: for a size that is not a positive integer, an unknown activation, both an order and an adjacency, an
            order that is no permutation, an adjacency of the wrong shape or with a cycle, or residual blocks of unequal
            widths.

    References:
        Germain, Gregor, Murray, Larochelle: MADE: Masked Autoencoder for Distribution Estimation, 2015, arXiv
        1502.03509. Residual blocks: Nash, Durkan: Autoregressive Energy Machines, 2019, arXiv 1904.05626; Durkan,
        Bekasov, Murray, Papamakarios: Neural Spline Flows, 2019, arXiv 1906.04032.

    Example:
        >>> import flowppl as fp
        >>> fp.MADE(3, 1, hidden_dims=4).constants()["0"]["mask"].astype(int)
        array([[1, 1, 1, 1],
               [0, 0, 1, 1],
               [0, 0, 0, 0]])
    """

    dim: int
    num_outputs: int
    hidden_dims: tuple[int, ...] = (64, 64)
    context_dim: int = 0
    activation: str = "tanh"
    order: Sequence[int] | None = None
    adjacency: Sequence[Sequence[bool]] | None = None
    residual: bool = False
    levels: tuple[int, ...] = derived()  # the level of each coordinate: it may be found once all lower ones are known
    unit_levels: tuple[tuple[int, ...], ...] = derived()  # the same for the units of each hidden layer; they ascend
    _strips: tuple[tuple[tuple[int, int], ...], ...] = derived()  # see `_find_strips`; empty if none are worth it

    def __post_init__(self):
        assign(self, hidden_dims=as_dims("MADE", self.hidden_dims))
        check_sizes("MADE", dim=self.dim, num_outputs=self.num_outputs)
        check_sizes("MADE", at_least=0, context_dim=self.context_dim)
        check_activation("MADE", self.activation)
        if self.residual and len(set(self.hidden_dims)) != 1:
            raise ValueError(
                f"MADE: residual blocks need one or more hidden_dims, all equal, got {self.hidden_dims}; "
                "write (64, 64) for two blocks of width 64"
            )
        if self.order is not None:
            assign(self, order=tuple(operator.index(i) for i in self.order))
        if self.adjacency is not None:
            assign(self, adjacency=tuple(tuple(bool(entry) for entry in row) for row in self.adjacency))
        sets, _, shares, level = self._share_out()
        ready = np.where(sets, level + 1, 0).max(axis=1)
        assign(self, levels=tuple(level.tolist()), unit_levels=tuple(tuple(ready[share].tolist()) for share in shares))
        assign(self, _strips=self._find_strips())

    @property
    def _widths(self) -> tuple[int, ...]:
        return self.hidden_dims[:1] * (1 + 2 * len(self.hidden_dims)) if self.residual else self.hidden_dims

    def parameters(self) -> Tree:
        return dense_parameters((self.dim, *self._widths, self.num_outputs * self.dim), self.context_dim, self.residual)

    def _share_out(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray], np.ndarray]:
        """All sets of coordinates that units may see; that of each coordinate; those of each layer's units; levels."""
        reads, level = read_dependencies("MADE", self.dim, self.order, self.adjacency)
        sets, which = np.unique(reads, axis=0, return_inverse=True)
        by_level = np.argsort(np.where(sets, level + 1, 0).max(axis=1), stable=True)
        sets, which = sets[by_level], np.argsort(by_level)[which.reshape(-1)]
        # Units of the empty set see the context only: without one they are of use only if there is nothing else to see.
        lowest = 0 if self.context_dim or len(sets) == 1 else 1
        num, shares = len(sets) - lowest, []
        for width in self._widths:
            if width >= num:
                shares.append(lowest + np.arange(width) * num // width)
            else:
                shares.append(np.rint(np.linspace(lowest, len(sets) - 1, width)).astype(int))
        return sets, which, shares, level

    def constants(self) -> Tree:
        sets, which, shares, _ = self._share_out()
        if not shares:
            masks = [sets[which].T]
        else:
            within = sets.astype(np.float32) @ ~sets.T == 0  # within[a, b]: set a is a part of set b
            masks = [sets[shares[0]].T, *(within[np.ix_(*pair)] for pair in itertools.pairwise([*shares, which]))]
        masks[-1] = np.tile(masks[-1], self.num_outputs)
        # torch.where takes up to ten times as long with a transposed mask.
        return {str(i): {"mask": np.ascontiguousarray(mask)} for i, mask in enumerate(masks)}

    def prepare(self, params: Tree) -> Tree:
        """``params`` with the masks put on the weights, where this is not done strip by strip."""
        return params if self._strips else masked_layers(params)

    def __call__(self, params, x, context=None):
        if not self._strips:
            return dense(masked_layers(params), x, context, self.activation, self.residual)
        layers = {key: self._in_strips(int(key), layer) for key, layer in params.items()}
        return dense(layers, x, context, self.activation, self.residual, _by_strips)

    def _find_strips(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each layer how its rows are cut into strips: how many rows, and the first column that sees any of them.

        Coordinates and units in the order of their levels make the masks staircases: three eighths of a wide
        matrix are left out, and not masked either.
        """
        if list(self.levels) != sorted(self.levels):
            return ()
        see = [np.asarray(levels) for levels in (*self.unit_levels, self.levels)]
        seen = [np.asarray(self.levels) + 1, *see[:-1]]
        strips = []
        for rows, columns in zip(seen, see, strict=True):
            num = STRIPS if min(len(rows), len(columns)) >= WIDE else 1
            bounds = np.arange(num + 1) * len(rows) // num
            firsts = np.minimum(np.searchsorted(columns, rows[bounds[1:-1]]), len(columns) - 1)  # no strip is empty
            strips.append(tuple(zip(np.diff(bounds).tolist(), [0, *firsts.tolist()], strict=True)))
        return tuple(strips) if max(map(len, strips)) > 1 else ()

    def _in_strips(self, i: int, layer: Tree) -> Tree:
        """Layer i with strips of masked weights, ``(..., rows, blocks of columns, columns from the first on)``."""
        weight, mask, blocks = layer["weight"], layer["mask"], self.num_outputs if i == len(self._widths) else 1
        xp, sizes = namespace(weight), [size for size, _ in self._strips[i]]

        def cut(array):
            array = xp.reshape(array, (*array.shape[:-1], blocks, array.shape[-1] // blocks))
            parts = xp.split(array, sizes, axis=-3)
            return [part[..., start:] for part, (_, start) in zip(parts, self._strips[i], strict=True)]

        strips = [masked({"weight": each, "mask": seen}) for each, seen in zip(cut(weight), cut(mask), strict=True)]
        return {**layer, "weight": [strip["weight"] for strip in strips]}


def _by_strips(x: Array, strips: list[Array], added: Array) -> Array:
    """``x @ weight + added``, for a weight in strips of its rows.

    Columns that a strip does not see are finished by the strips before it.
    """
    xp, rest = namespace(x), added
    done: list[Array] = []
    for part, strip in zip(xp.split(x, [strip.shape[-3] for strip in strips], axis=-1), strips, strict=True):
        blocks, columns = strip.shape[-2:]
        rest = xp.reshape(rest, (*rest.shape[:-1], blocks, rest.shape[-1] // blocks))
        finished, rest = xp.split(rest, [rest.shape[-1] - columns, columns], axis=-1)
        done.append(finished)
        strip = xp.reshape(strip, (*strip.shape[:-2], blocks * columns))
        rest = xp.linear(part, strip, xp.reshape(rest, (*rest.shape[:-2], blocks * columns)))
    rest = xp.reshape(rest, (*rest.shape[:-1], blocks, columns))
    output = xp.concat([*done[1:], rest], axis=-1)
    return xp.reshape(output, (*output.shape[:-2], blocks * output.shape[-1]))
