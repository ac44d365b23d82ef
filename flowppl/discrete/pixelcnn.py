"""An autoregressive distribution of images of integers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.checks import as_image_shape, assign, check_sizes, derived
from flowppl.discrete import logistic
from flowppl.discrete.levels import are_levels, check_precision
from flowppl.networks.pixel import PixelConvNet


@dataclasses.dataclass(frozen=True)
class PixelCNN:
    """What the distributions of both adapters share; see there for the arguments."""

    shape: Sequence[int]
    levels: int
    num_components: int = 0
    hidden_channels: int = 32
    num_blocks: int = 4
    kernel_size: int | tuple[int, int] = (7, 3)
    context_dim: int = 0
    context_shape: tuple[int, int, int] | None = None
    _network: PixelConvNet = derived()

    def __post_init__(self):
        check_sizes("PixelCNN", at_least=2, levels=self.levels)
        check_sizes("PixelCNN", at_least=0, num_components=self.num_components)
        shape = as_image_shape("PixelCNN", self.shape)
        network = PixelConvNet(
            shape[0],
            3 * self.num_components or self.levels,
            self.hidden_channels,
            self.num_blocks,
            self.kernel_size,
            context_dim=self.context_dim,
            context_shape=self.context_shape,
        )
        assign(self, shape=shape, context_dim=network.context_dim, context_shape=network.context_shape)
        assign(self, _network=network)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    def parameters(self) -> Tree:
        return self._network.parameters()

    def constants(self) -> Tree:
        return self._network.constants()

    def _scaled(self, x: Array) -> Array:
        return 2 * x / (self.levels - 1) - 1

    def log_prob(self, params: Tree, x: Array, context: Array | None = None) -> Array:
        """The log probability of each image of real numbers that are levels, in one pass."""
        xp, inside = namespace(x), are_levels(x, self.levels, 0)
        check_precision("PixelCNN", x, self.levels, 8)
        x = xp.where(inside, x, xp.zeros_like(x))
        output = self._network(params, self._scaled(x), context)
        batch, num = output.shape[:-3], self._network.num_outputs
        raw = xp.moveaxis(xp.reshape(output, (*batch, num, *self.shape)), len(batch), 0)
        if self.num_components:
            logits, loc, scale = logistic.from_raw(raw, self.levels)
            each = logistic.log_prob(x, xp.log_softmax(logits), loc, scale, self.levels)
        else:
            each = xp.pick(xp.log_softmax(raw), _index(x))
        return xp.sum(xp.where(inside, each, xp.full_like(each, -math.inf)), axis=(-3, -2, -1))

    def generate(self, params: Tree, choices: Array, noise: Array, context: Array | None = None) -> Array:
        """Draws, of the dtype of the random numbers, which are uniform in (0, 1) and of the shape of the draws."""
        xp = namespace(choices)
        check_precision("PixelCNN", choices, self.levels, 8)

        def find(raw: Array, choice: Array, noise: Array) -> tuple[Any, ...]:
            if not self.num_components:
                return (self._scaled(_choose(raw, choice)),)
            logits, loc, scale = logistic.from_raw(raw, self.levels)
            index = _index(_choose(logits, choice))
            drawn = xp.pick(loc, index) + xp.pick(scale, index) * (xp.log(noise) - xp.log1p(-noise))
            return (self._scaled(logistic.rounded(drawn, self.levels)),)

        (found,) = self._network.generate(params, find, (choices, noise), context)
        return xp.round((found + 1) * ((self.levels - 1) / 2))


def _choose(logits: Array, uniform: Array) -> Array:
    """Which of the first axis, with these probabilities: where their sum first reaches the uniform number."""
    xp = namespace(logits)
    below = xp.astype(xp.cumulative_sum(xp.softmax(logits), axis=0) < uniform, logits.dtype)
    return xp.clip(xp.sum(below, axis=0), 0, logits.shape[0] - 1)


def _index(x: Array) -> Array:
    xp = namespace(x)
    return xp.sum(xp.astype(x[None, ...], xp.int32), axis=0)  # a sum has the type that the library indexes by
