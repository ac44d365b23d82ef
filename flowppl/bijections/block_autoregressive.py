"""Block autoregressive layers: one masked network that is increasing in each coordinate itself."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.roots import bracketed_root
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.bijections.linear import diagonal, positive
from flowppl.bijections.residual import times
from flowppl.checks import assign, check_sizes
from flowppl.declare import Normal, Parameter, Uniform
from flowppl.networks import as_dims
from flowppl.networks.dense import dense_layers, masked_layers
from flowppl.univariate.base import Bound, bounded, check_bound


@dataclasses.dataclass(frozen=True)
class BlockAutoregressive(Bijection):
    r"""A block neural autoregressive layer: a masked network that is itself the map, not what makes its parameters.

    Each coordinate i has a block of units in each of L hidden layers, a vector :math:`h^l_i`. With :math:`h^0 = x`,

    .. math::
        h^l_i = \tanh\Big(A^l_i h^{l-1}_i + \sum_{j<i} B^l_{ij} h^{l-1}_j + b^l_i\Big), \qquad
        y_i = \sigma_i \Big(x_i + \sum_k g_{ik} h^L_{ik}\Big) + \sum_{j<i} V_{ij} h^L_j + c_i .

    All entries of the blocks :math:`A^l_i` are positive, exponentials of weights, so that the units of i increase with
    :math:`x_i`. A and B have normalised weights: for each unit they are divided by the root of the sum of their
    squares, and multiplied by a scale. The scale :math:`\sigma_i` is positive. V are weights, b and c biases. A context
    acts on all units of the first layer, and on y.

    A sum of tanh is bounded. The paper's network without its residual connection is then no map onto the real numbers:
    it has no inverse for large y, and a density made of it lacks what lies beyond its bounds. So the term :math:`x_i`
    is part of the layer here. Each unit has a gate :math:`\rho_{ik}`, of any sign, and a share :math:`\pi_{ik}`, both
    trained; the shares of a coordinate add up to 1:

    .. math::
        g_{ik} = \pi_{ik} \frac{e^{\rho_{ik}} - 1}{d_{ik}}, \qquad d_i = A^L_i \cdots A^1_i, \qquad
        \frac{\partial y_i}{\partial x_i} = \sigma_i \Big(1 + \sum_k g_{ik}
        \frac{\partial h^L_{ik}}{\partial x_i}\Big) .

    The slope of a unit is between 0 and :math:`d_{ik}`, so that the last factor is a mean of numbers between 1 and
    :math:`e^{\rho_{ik}}`: the layer is invertible and onto for all weights. With gates of 0 it is affine, and at the
    start the identity. The paper's gated residual connection is the case of positive gates.

    The Jacobian is triangular: the log determinant is the sum of the logarithms of these slopes. ``forward`` is one
    pass. ``inverse`` finds the coordinates one after the other, each by bisection and Newton's method in its block
    alone, and adds to the units of later coordinates what it gives them: in all the work of about two passes, and of
    thirty of the blocks A alone.

    It has far fewer weights than :class:`Autoregressive` over a map of as many bends, whose network makes all numbers
    of the map anew for each coordinate: choose it for few coordinates, densities with several peaks, and small files.
    To sample in a loop, or for many coordinates, take another.

    Args:
        dim: the number D of coordinates.
        hidden_factors: the number of units that each coordinate has in each hidden layer; an int means one layer.
        context_dim: the size of the context, 0 for none.
        log_scale_bound: the bound of all trained log-scales, the gates among them, as for :class:`Affine`.

    Raises:
        ValueError: for a size below 1, no hidden layer, or a bound that is not positive.

    References:
        De Cao, Titov, Aziz: Block Neural Autoregressive Flow, 2019, arXiv 1904.04676. A gate for each unit, of either
        sign, is ours.

    Example:
        >>> import flowppl as fp
        >>> layer = fp.BlockAutoregressive(3, hidden_factors=(8, 8))
        >>> layer.forward_cost, layer.inverse_cost
        ('parallel', 'sequential')
    """

    dim: int
    hidden_factors: int | Sequence[int] = (8, 8)
    context_dim: int = 0
    log_scale_bound: Bound = 3.0

    def __post_init__(self):
        check_sizes("BlockAutoregressive", dim=self.dim)
        check_sizes("BlockAutoregressive", at_least=0, context_dim=self.context_dim)
        check_bound("BlockAutoregressive", self.log_scale_bound)
        assign(self, hidden_factors=as_dims("BlockAutoregressive", self.hidden_factors))
        if not self.hidden_factors:
            raise ValueError("BlockAutoregressive: hidden_factors must have one or more layers, such as (8, 8), got ()")

    @property
    def inverse_cost(self) -> str:
        return "sequential"

    @property
    def _sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes of the blocks of all layers: inputs and outputs of each coordinate."""
        return tuple(itertools.pairwise((1, *self.hidden_factors, 1)))  # type: ignore[misc]

    def parameters(self) -> Tree:
        layers: Tree = {}
        for i, (fan_in, width) in enumerate(self._sizes):
            is_last = i == len(self.hidden_factors)  # type: ignore[arg-type]
            shape = (self.dim * fan_in, self.dim * width)
            draw = Uniform((3 / shape[0]) ** 0.5)
            layer = {"weight": Parameter(shape) if is_last else Parameter(shape, draw)}
            if is_last:
                layer |= {"gate": Parameter((self.dim, fan_in)), "share": Parameter((self.dim, fan_in))}
                layer |= {"scale": Parameter((self.dim,)), "bias": Parameter((self.dim,))}
            else:
                if i:  # a first layer of one input each needs none: of its weights the lengths do not matter
                    layer["own"] = Parameter((self.dim, fan_in, width), Normal(0.5))
                layer |= {"log_scale": Parameter(shape[1:]), "bias": Parameter(shape[1:], Normal(1.0))}
            if self.context_dim and is_last:
                layer["context_weight"] = Parameter((self.context_dim, self.dim))
            elif self.context_dim and i == 0:
                draw = Uniform((3 / self.context_dim) ** 0.5)
                layer["context_weight"] = Parameter((self.context_dim, *shape[1:]), draw)
            layers[str(i)] = layer
        return layers

    def constants(self) -> Tree:
        before = np.triu(np.ones((self.dim, self.dim), bool), k=1)
        return {str(i): {"mask": np.kron(before, np.ones(size, bool))} for i, size in enumerate(self._sizes)}

    def _constrain(self, params, context) -> tuple[Any, Any]:
        """For each hidden layer its blocks A and B and what is added; the same of the last, with g and sigma for A."""
        xp = namespace(params["0"]["weight"])
        *hidden, last = (params[str(i)] for i in range(len(params)))
        (*weights, last_weight), (*sums, last_sum) = dense_layers(masked_layers(params), context)
        layers = []
        steepest = None
        for layer, others, added, (_, width) in zip(hidden, weights, sums, self._sizes[:-1], strict=True):
            own = xp.ones_like(layer["log_scale"])
            own = xp.reshape(own, (*own.shape[:-1], self.dim, 1, width))
            if "own" in layer:
                own = xp.exp(bounded(layer["own"], self.log_scale_bound))
            squares = xp.sum(own * own, axis=-2)
            squares = xp.reshape(squares, (*squares.shape[:-2], self.dim * width)) + xp.sum(others * others, axis=-2)
            scale = xp.exp(bounded(layer["log_scale"], self.log_scale_bound)) / xp.sqrt(squares)
            own = own * xp.reshape(scale, (*scale.shape[:-1], self.dim, 1, width))
            steepest = own[..., 0, :] if steepest is None else xp.matmul(steepest[..., None, :], own)[..., 0, :]
            layers.append((own, others * scale[..., None, :], added))
        shares = xp.softmax(last["share"], axis=-1)
        rise = shares * xp.expm1(bounded(last["gate"], self.log_scale_bound))
        return layers, (rise / steepest, rise, positive(last["scale"]), last_weight, last_sum)

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        layers, (gain, _, scale, others, added) = self._constrain(params, context)
        hidden, slope = x, None
        for own, others_here, added_here in layers:
            # A and B in one matrix: the zeros cost less than a second product.
            here = diagonal(xp.ones_like(own[..., 0, 0]))[..., :, None, :, None]
            blocks = own[..., None, :] * here
            blocks = xp.reshape(blocks, (*blocks.shape[:-4], *others_here.shape[-2:]))
            hidden = xp.tanh(xp.linear(hidden, blocks + others_here, added_here))
            bend = self._by_coordinate(1 - hidden * hidden)
            slope = bend * (own[..., 0, :] if slope is None else _block_by_block(slope, own))
        moved = xp.sum(gain * self._by_coordinate(hidden), axis=-1)
        y = scale * (x + moved) + xp.linear(hidden, others, added)
        return y, xp.sum(xp.log(scale) + xp.log1p(xp.sum(gain * slope, axis=-1)) + xp.zeros_like(y), axis=-1)

    def _by_coordinate(self, units):
        return namespace(units).reshape(units, (*units.shape[:-1], self.dim, units.shape[-1] // self.dim))

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        layers, (gain, rise, scale, others, added) = self._constrain(params, context)
        owns, sums = [own for own, _, _ in layers], [*(added for _, _, added in layers), added]
        others = [*(others for _, others, _ in layers), others]
        dtype = xp.result_type(y, gain, scale, *owns, *sums, *others)  # the carry of a loop must not change its own
        shapes = [gain.shape[:-2], rise.shape[:-2], *(own.shape[:-3] for own in owns)]
        shapes += [weight.shape[:-2] for weight in others] + [array.shape[:-1] for array in (y, scale, *sums)]
        batch = xp.broadcast_shapes(*shapes)
        sums = [xp.astype(xp.broadcast_to(array, (*batch, array.shape[-1])), dtype) for array in sums]
        bounds = [tuple(range(0, array.shape[-1] + 1, array.shape[-1] // self.dim)) for array in sums]
        zero = xp.zeros_like(rise)
        slopes = (1 + xp.sum(xp.minimum(rise, zero), axis=-1), 1 + xp.sum(xp.maximum(rise, zero), axis=-1))
        rows = [xp.reshape(w, (*w.shape[:-2], self.dim, w.shape[-2] // self.dim, w.shape[-1])) for w in others]
        items = [xp.moveaxis(array, -1, 0) for array in (y, scale, *slopes)] + [xp.moveaxis(gain, -2, 0)]
        items = [xp.astype(item, dtype) for item in items] + [xp.moveaxis(array, -3, 0) for array in (*owns, *rows)]

        def find(i, sums, y, scale, least, most, gain, *matrices):
            owns, rows = matrices[: len(layers)], matrices[len(layers) :]
            *before, shift = (xp.segment(*pair, i, -1) for pair in zip(sums, bounds, strict=True))
            x = _root((y - shift[..., 0]) / scale, gain, owns, before, least, most)
            hidden, slope = _units(x, owns, before)
            inputs = (x[..., None], *hidden)
            sums = [total + times(xp, row.mT, h) for total, row, h in zip(sums, rows, inputs, strict=True)]
            return sums, (x, -xp.log(scale) - xp.log1p(xp.sum(gain * slope, axis=-1)))

        _, (x, log_slope) = xp.collect(self.dim, find, sums, *items)
        return xp.moveaxis(x, 0, -1), xp.sum(log_slope, axis=0)


def _block_by_block(x: Array, own: Array) -> Array:
    """The row of each block, ``(..., D, a)``, times the block, ``(..., D, a, b)``."""
    xp = namespace(x)
    if own.ndim > 3 or x.ndim < 3:
        return xp.matmul(x[..., None, :], own)[..., 0, :]
    rows = xp.reshape(x, (-1, *x.shape[-2:]))
    product = xp.moveaxis(xp.matmul(xp.moveaxis(rows, 1, 0), own), 0, 1)
    return xp.reshape(product, (*x.shape[:-1], own.shape[-1]))


def _units(t: Array, owns: Sequence[Array], before: Sequence[Array]) -> tuple[list[Array], Array]:
    """The units of a coordinate t in all layers, given what comes before, and the slopes of the last."""
    xp = namespace(t)
    hidden: list[Array] = []
    slope = None
    for own, added in zip(owns, before, strict=True):
        own_sum = times(xp, own.mT, hidden[-1]) if hidden else t[..., None] * own[..., 0, :]
        hidden.append(xp.tanh(own_sum + added))
        slope = (1 - hidden[-1] * hidden[-1]) * (own[..., 0, :] if slope is None else times(xp, own.mT, slope))
    return hidden, slope


def _root(target: Array, gain: Array, owns, before, least: Array, most: Array) -> Array:
    """The t with ``t + sum(gain * units(t)) = target``, for a map with slopes from ``least`` to ``most``."""
    xp, num = namespace(target), len(owns)

    def equation(t, target, gain, *blocks):
        hidden, slope = _units(t, blocks[:num], blocks[num:])
        return t + xp.sum(gain * hidden[-1], axis=-1) - target, 1 + xp.sum(gain * slope, axis=-1)

    args = (target, gain, *owns, *before)
    over, _ = equation(target, *args)
    ends = target - over / least, target - over / most  # on both sides of the root, whatever the sign
    return bracketed_root(equation, args, xp.minimum(*ends), xp.maximum(*ends), num_steps=24)
