"""Rearrangements of the numbers of an event: ``Squeeze`` and ``Reshape``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.checks import as_image_shape, as_shape, assign, check_sizes


@dataclasses.dataclass(frozen=True)
class Squeeze(Bijection):
    r"""Blocks of f x f pixels become f^2 channels of one pixel.

    ``forward`` maps an image of shape (C, H, W) to one of shape (C f^2, H/f, W/f):

    .. math::
        y_{c f^2 + i f + j,\; h,\; w} = x_{c,\; h f + i,\; w f + j}, \qquad 0 \le i, j < f .

    So the channels of one pixel are those of a block, and layers that split channels split neighbours. Its log
    determinant is 0; both directions move numbers, and compute nothing. ``Invert(Squeeze(shape))`` brings an image back
    to the shape (C, H, W): the data side of a flow whose layers work on squeezed images.

    Args:
        shape: the shape (C, H, W) of x.
        factor: the side f of a block.

    Raises:
        ValueError: for a shape that is none of an image, or a height or width that ``factor`` does not divide.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803, section 3.6.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> layer = fp.Squeeze((1, 2, 4))
        >>> y, _ = layer.forward({}, np.arange(8.0).reshape(1, 2, 4))
        >>> y[:, 0, 0], y.shape
        (array([0., 1., 4., 5.]), (4, 1, 2))
    """

    shape: Sequence[int]
    factor: int = 2

    def __post_init__(self):
        assign(self, shape=as_image_shape("Squeeze", self.shape))
        check_sizes("Squeeze", factor=self.factor)
        _, height, width = self.shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"Squeeze: height and width of shape must be multiples of factor={self.factor}, got shape "
                f"{self.shape}; pad or crop the images, or choose another factor"
            )

    @property
    def x_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    @property
    def y_shape(self) -> tuple[int, ...]:
        channels, height, width = self.shape
        return (channels * self.factor**2, height // self.factor, width // self.factor)

    def parameters(self) -> Tree:
        return {}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        (channels, _, _), (_, height, width) = self.x_shape, self.y_shape
        blocks = (channels, height, self.factor, width, self.factor)
        return _rearranged(x, self.x_shape, blocks, (0, 2, 4, 1, 3), self.y_shape)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        (channels, _, _), (_, height, width) = self.x_shape, self.y_shape
        blocks = (channels, self.factor, self.factor, height, width)
        return _rearranged(y, self.y_shape, blocks, (0, 3, 1, 4, 2), self.x_shape)


def _rearranged(event, shape, blocks, order, new_shape):
    """The event seen in blocks, the axes of which are put in another order; and a log determinant of 0."""
    xp, batch = namespace(event), event.shape[: event.ndim - len(shape)]
    rank = len(batch)
    axes = (*range(rank), *(rank + axis for axis in order))
    moved = xp.permute_dims(xp.reshape(event, (*batch, *blocks)), axes)
    return xp.reshape(moved, (*batch, *new_shape)), xp.zeros_like(event[(..., *(0,) * len(shape))])


@dataclasses.dataclass(frozen=True)
class Reshape(Bijection):
    """The same numbers, in the same order, as an event of another shape. Its log determinant is 0.

    Args:
        shape: the shape of x.
        new_shape: the shape of y, with as many numbers.

    Raises:
        ValueError: for a shape that is none, or shapes of different numbers of numbers.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.Chain([fp.maf(64), fp.Reshape((64,), (1, 8, 8))])  # of images, in the order of their rows
        >>> flow.y_shape
        (1, 8, 8)
    """

    shape: Sequence[int]
    new_shape: Sequence[int]

    def __post_init__(self):
        assign(self, shape=as_shape("Reshape", shape=self.shape))
        assign(self, new_shape=as_shape("Reshape", new_shape=self.new_shape))
        before, after = math.prod(self.shape), math.prod(self.new_shape)
        if before != after:
            raise ValueError(
                f"Reshape: shape and new_shape must have as many numbers, got {self.shape} of {before} and "
                f"{self.new_shape} of {after}"
            )

    @property
    def x_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return tuple(self.new_shape)

    def parameters(self) -> Tree:
        return {}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return _reshaped(x, self.x_shape, self.y_shape)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return _reshaped(y, self.y_shape, self.x_shape)


def _reshaped(event, shape, new_shape):
    xp = namespace(event)
    batch = event.shape[: event.ndim - len(shape)]
    return xp.reshape(event, (*batch, *new_shape)), xp.zeros_like(event[(..., *(0,) * len(shape))])
