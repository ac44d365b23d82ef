"""Noise that makes integers continuous, so that a flow can model them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.combine import Chain
from flowppl.bijections.contract import Bijection, check_bijection
from flowppl.bijections.elementwise import Elementwise, Sigmoid
from flowppl.checks import check_sizes
from flowppl.discrete.levels import check_precision


@dataclasses.dataclass(frozen=True)
class Dequantized:
    """What the distributions of both adapters share: how integers x and noise u in (0, 1) make y = (x + u) / levels.

    Args:
        bijection: that of the flow over y.
        levels: the number of integers.
        noise: that of the flow over u, given x; or ``None``, and u is uniform.
    """

    bijection: Bijection
    levels: int
    noise: Bijection | None = None

    def __post_init__(self):
        check_bijection(self.bijection)
        check_sizes("Dequantized", at_least=2, levels=self.levels)
        low, high = self.bijection.y_support
        if low > 0 or high < 1:
            raise ValueError(
                "Dequantized: the flow must map to all numbers between 0 and 1, where (x + u) / levels lies, but this "
                f"{type(self.bijection).__name__} maps to ({low}, {high}); let it end with flowppl.Elementwise(shape, "
                "flowppl.Sigmoid())"
            )
        if self.noise is None:
            return
        dim = math.prod(self.y_shape)
        sizes = sorted({dim, dim + self.context_dim})
        if self.noise.y_shape != self.y_shape or self.noise.y_support != (0.0, 1.0):
            raise ValueError(
                f"Dequantized: noise must be of the shape {self.y_shape} of the data and lie between 0 and 1, but this "
                f"{type(self.noise).__name__} maps to the shape {self.noise.y_shape} and {self.noise.y_support}"
            )
        if self.noise.context_dim not in sizes:
            raise ValueError(
                f"Dequantized: noise must depend on the data: give it context_dim={' or '.join(map(str, sizes))}, the "
                f"number of entries of x{' and of these with the context' * (len(sizes) > 1)}, not "
                f"{self.noise.context_dim}"
            )

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.bijection.y_shape

    @property
    def context_dim(self) -> int:
        return self.bijection.context_dim

    def parameters(self) -> Tree:
        return {name: bijection.parameters() for name, bijection in self._bijections().items()}

    def constants(self) -> Tree:
        return {name: bijection.constants() for name, bijection in self._bijections().items()}

    def _bijections(self) -> dict[str, Bijection]:
        return {"flow": self.bijection} | ({} if self.noise is None else {"noise": self.noise})

    @property
    def log_cells(self) -> float:
        """The logarithm of the number of cells, one for each x, into which the unit cube is parted."""
        return math.prod(self.y_shape) * math.log(self.levels)

    def features(self, x: Array, context: Array | None) -> Array:
        """What the flow of the noise is given: x as numbers from -1 to 1, and the context if it takes it."""
        xp = namespace(x)
        batch = x.shape[: x.ndim - len(self.y_shape)]
        flat = xp.reshape(2 * x / (self.levels - 1) - 1, (*batch, math.prod(self.y_shape)))
        if context is None or self.noise.context_dim == flat.shape[-1]:  # type: ignore[union-attr]
            return flat
        return xp.concat([flat, xp.broadcast_to(context, (*batch, context.shape[-1]))], axis=-1)

    def continuous(self, x: Array, u: Array) -> Array:
        """y, which rounding does not take out of the open interval (0, 1)."""
        xp = namespace(u)
        check_precision("Dequantized", u, self.levels, 8)
        gap = float(xp.finfo(u.dtype).eps)
        return xp.clip((x + u) / self.levels, gap, 1 - gap)

    def integers(self, y: Array) -> Array:
        """x, in the dtype of y; what lies outside of the unit cube goes to the first or last level."""
        xp = namespace(y)
        return xp.clip(xp.floor(self.levels * y), 0, self.levels - 1)


def between_0_and_1(noise: Bijection) -> Bijection:
    """A bijection of noise, and a sigmoid."""
    shape: Any = noise.y_shape[0] if len(noise.y_shape) == 1 else noise.y_shape
    return Chain([noise, Elementwise(shape, Sigmoid())])
