"""Invertible convolutions: two masked ones, one after the other, that together see a whole square of pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.bijections.linear import positive, triangle, triangle_position
from flowppl.checks import as_image_shape, assign, check_sizes
from flowppl.declare import Parameter


@dataclasses.dataclass(frozen=True)
class EmergingConvolution(Bijection):
    r"""An invertible convolution with kernels of k x k pixels, made of two autoregressive ones.

    With d = (k + 1) / 2, zeros outside of the image, and vectors of channels :math:`x_{h,w}`,

    .. math::
        z_{h,w} = \mathrm{diag}(\sigma)\Big((I + L)\, x_{h,w} + \sum_{(i,j) \ne (0,0)} A_{ij}\, x_{h-i,w-j}\Big), \qquad
        y_{h,w} = (I + U)\, z_{h,w} + \sum_{(i,j) \ne (0,0)} B_{ij}\, z_{h+i,w+j},

    i and j running from 0 to d - 1. L is strictly lower and U strictly upper triangular, and :math:`\sigma > 0` as in
    :class:`~flowppl.ElementwiseAffine`. Each number of z depends on numbers before it only, and each of y on
    numbers of z behind it, so both maps are triangular:

    .. math::
        \log|\det| = H W \sum_{c=1}^C \log \sigma_c .

    A pixel of y depends on the k x k pixels around it. ``forward`` is two convolutions. ``inverse`` is sequential and
    exact: pixels whose row and column add up to the same number do not wait for each other, so it takes H + W - 1 steps
    for each of the two. ``Invert`` it, to score images by convolutions and to sample step by step.

    Args:
        shape: the shape (C, H, W) of an image.
        kernel_size: the side k, odd and at least 3; d must be at most H and W.

    Raises:
        ValueError: for a shape that is none of an image, or a kernel size that is even, below 3, or too large for it.

    References:
        Hoogeboom, van den Berg, Welling: Emerging Convolutions for Generative Normalizing Flows, 2019, arXiv
        1901.11137.

    Example:
        >>> import flowppl as fp
        >>> layer = fp.EmergingConvolution((4, 8, 8))
        >>> layer.forward_cost, layer.inverse_cost, layer.parameters()["before"].shape
        ('parallel', 'sequential', (3, 4, 4))
    """

    shape: Sequence[int]
    kernel_size: int = 3

    def __post_init__(self):
        assign(self, shape=as_image_shape("EmergingConvolution", self.shape))
        check_sizes("EmergingConvolution", at_least=3, kernel_size=self.kernel_size)
        _, height, width = self.shape
        if self.kernel_size % 2 == 0 or self._reach > min(height, width):
            raise ValueError(
                f"EmergingConvolution: kernel_size must be odd and at most {2 * min(height, width) - 1}, twice the "
                f"smaller side of shape={self.shape} less 1, got {self.kernel_size}"
            )

    @property
    def _reach(self) -> int:
        """The side d of the square of pixels that one of the two convolutions sees."""
        return (self.kernel_size + 1) // 2

    @property
    def x_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    @property
    def inverse_cost(self) -> str:
        return "sequential"

    def parameters(self) -> Tree:
        channels = self.shape[0]
        half, others = channels * (channels - 1) // 2, self._reach**2 - 1
        matrices = (others, channels, channels)
        shapes: dict[str, tuple[int, ...]] = {"scale": (channels,), "lower": (half,), "upper": (half,)}
        shapes |= {"before": matrices, "after": matrices}
        return {name: Parameter(shape) for name, shape in shapes.items()}

    def constants(self) -> Tree:
        channels, height, width = self.shape
        row, step = np.arange(height)[:, None], np.arange(height + width - 1)
        column = step - row
        inside = (column >= 0) & (column < width)
        return {
            "triangle": triangle_position(channels),
            "diagonals": np.where(inside, row * width + column, height * width).ravel(),
            "inside": inside.T,
            "pixels": (row * len(step) + row + np.arange(width)).ravel(),
        }

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        scale, (centre, before), (last_centre, after) = self._factors(params)
        reach = self._reach - 1
        z = scale[..., None, None] * _convolve(x, centre, before, ((reach, 0), (reach, 0)))
        y = _convolve(z, last_centre, after, ((0, reach), (0, reach)), behind=True)
        return y, self._log_det(scale, y)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        scale, (centre, before), (last_centre, after) = self._factors(params)
        turned = xp.flip(y, axis=(-2, -1))
        z = xp.flip(self._solve(params, turned, last_centre, after, upper=True), axis=(-2, -1))
        x = self._solve(params, z / scale[..., None, None], centre, before)
        return x, -self._log_det(scale, x)

    def _factors(self, params):
        """The scale, and of each convolution the triangle of the pixel itself and the matrices of the others."""
        channels = self.shape[0]
        lower = triangle(params["lower"], params["triangle"], channels)
        upper = triangle(params["upper"], params["triangle"], channels).mT
        return positive(params["scale"]), (lower, params["before"]), (upper, params["after"])

    def _log_det(self, scale, image):
        xp, (_, height, width) = namespace(image), self.shape
        return height * width * xp.sum(xp.log(scale), axis=-1) + xp.zeros_like(image[..., 0, 0, 0])

    def _solve(self, params, y, centre, others, upper=False):
        """The x with ``y = (I + centre) x + the sum of others``, diagonal of pixels by diagonal."""
        xp, (channels, height, width), reach = namespace(y), self.shape, self._reach
        dtype = xp.result_type(y, centre, others)
        batch = xp.broadcast_shapes(y.shape[:-3], centre.shape[:-2], others.shape[:-3])
        y = xp.astype(xp.broadcast_to(y, (*batch, channels, height, width)), dtype)
        flat = xp.reshape(y, (*batch, channels, height * width))
        padded = xp.concat([flat, xp.zeros_like(flat[..., :1])], axis=-1)
        diagonals = xp.reshape(
            xp.take(padded, params["diagonals"], axis=-1), (*batch, channels, height, height + width - 1)
        )
        nothing = xp.zeros_like(diagonals[..., 0])  # (..., channels, height): one pixel of each row
        offsets = [(i, j) for i in range(reach) for j in range(reach)][1:]
        triangles = centre[..., None, :, :] if centre.ndim > 2 else centre

        def down(column, rows):
            """A column moved down by so many rows."""
            if rows == 0:
                return column
            return xp.concat([xp.zeros_like(column[..., :rows]), column[..., :-rows]], axis=-1)

        def step(_, earlier, wanted, inside):
            for number, (i, j) in enumerate(offsets):
                wanted = wanted - xp.matmul(others[..., number, :, :], down(earlier[i + j - 1], i))
            found = xp.solve_unit_triangular(triangles, wanted.mT, upper=upper).mT
            found = xp.where(inside, found, xp.zeros_like(found))
            return (found, *earlier[:-1]), (found,)

        earlier = (nothing,) * (2 * reach - 2)
        _, (found,) = xp.collect(height + width - 1, step, earlier, xp.moveaxis(diagonals, -1, 0), params["inside"])
        found = xp.reshape(xp.moveaxis(found, 0, -1), (*batch, channels, height * (height + width - 1)))
        return xp.reshape(xp.take(found, params["pixels"], axis=-1), (*batch, channels, height, width))


def _convolve(image: Array, centre: Array, others: Array, padding, behind: bool = False) -> Array:
    """``(I + centre) x + the sum of others``, those with larger offsets being farther from the pixel."""
    xp = namespace(image)
    reach = round((others.shape[-3] + 1) ** 0.5)
    batch = xp.broadcast_shapes(centre.shape[:-2], others.shape[:-3])
    centre, others = (xp.broadcast_to(a, (*batch, *a.shape[-k:])) for a, k in ((centre, 2), (others, 3)))
    kernels = xp.concat([centre[..., None, :, :], others], axis=-3)
    kernels = kernels if behind else xp.flip(kernels, axis=-3)
    kernels = xp.moveaxis(kernels, -3, -1)
    weight = xp.reshape(kernels, (*kernels.shape[:-1], reach, reach))
    return image + xp.conv2d(image, weight, xp.zeros_like(centre[..., 0]), padding)
