"""A bijection of vectors at every pixel of an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from flowppl._arrays import tree as _tree
from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.combine import Chain, Invert, SameWeights, Wrapper
from flowppl.bijections.contract import Bijection, check_bijection, check_event
from flowppl.bijections.exponential import MatrixExponential
from flowppl.bijections.frozen import Frozen
from flowppl.bijections.linear import LU, ElementwiseAffine, Permute
from flowppl.bijections.orthogonal import QR, Householder
from flowppl.checks import as_image_shape, assign, derived


def _is_linear(bijection: Bijection) -> bool:
    """Whether it is a matrix, the same for all vectors."""
    if isinstance(bijection, Chain):
        return all(map(_is_linear, bijection.bijections))
    if isinstance(bijection, (Frozen, Invert)):
        return _is_linear(bijection.bijection)
    return isinstance(bijection, (LU, QR, MatrixExponential, Householder, Permute))


@dataclasses.dataclass(frozen=True)
class Pixelwise(SameWeights, Wrapper):
    r"""A bijection f of vectors, applied to the channels of every pixel, with the same weights at all of them.

    .. math::
        y_{:,h,w} = f(x_{:,h,w}), \qquad
        \log|\det| = \sum_{h=1}^H \sum_{w=1}^W \log\Big|\det \frac{\partial f}{\partial x}(x_{:,h,w})\Big| .

    ``Pixelwise(shape, LU(C))`` and ``Pixelwise(shape, QR(C))`` are the invertible 1x1 convolution of Glow, in two
    forms, and ``Pixelwise(shape, ActNorm(C))`` is its normalisation of channels: ``init_from`` sets it from all pixels
    of all images. A linear f is made into its C x C matrix once, whatever the number of pixels: it costs
    :math:`C^3 + HWC^2` operations, and so does a chain of linear ones. ``QR(C, start="rotation")`` starts at a random
    rotation, as in Glow, and so does ``Chain([LU(C), Frozen(Householder(C, C, start="rotation"))])``, whose rotation is
    not trained. A context, if f takes one, is the same at all pixels.

    Normalisation by the statistics of each batch, as RealNVP has it, is no map of one image, and is not here: the
    density of an image would depend on the others. ``ActNorm`` is what took its place.

    Args:
        shape: the shape (C, H, W) of an image.
        bijection: the bijection f, of vectors of length C.

    Raises:
        TypeError: if ``bijection`` is none.
        ValueError: for a shape that is none of an image, or a bijection that does not map vectors of length C to
            vectors of length C.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039, sections 3.1
        and 3.2.

    Example:
        >>> import flowppl as fp
        >>> layer = fp.Pixelwise((3, 8, 8), fp.LU(3))
        >>> layer.x_shape, fp.num_parameters(layer)
        ((3, 8, 8), 9)
    """

    shape: Sequence[int]
    bijection: Bijection
    _ranks: Tree = derived()

    def __post_init__(self):
        check_bijection(self.bijection)
        assign(self, shape=as_image_shape("Pixelwise", self.shape))
        assign(self, _ranks=_tree.map_tree(lambda parameter: len(parameter.shape), self.bijection.parameters()))
        channels = (self.shape[0],)
        if (self.bijection.x_shape, self.bijection.y_shape) != (channels, channels):
            raise ValueError(
                f"Pixelwise: bijection must map vectors of as many numbers as shape={self.shape} has channels, "
                f"{self.shape[0]}, but {type(self.bijection).__name__} maps events of shape {self.bijection.x_shape} "
                f"to {self.bijection.y_shape}"
            )

    @property
    def x_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.x_shape

    def constants(self) -> Tree:
        identity = {"identity": np.eye(self.shape[0], dtype=bool)} if _is_linear(self.bijection) else {}
        return self.bijection.constants() | identity

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        if isinstance(self.bijection, ElementwiseAffine):
            loc, scale, log_det = self._affine(params, x)
            return loc + scale * x, log_det
        return self._map(self.bijection.forward, params, x, context)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        if isinstance(self.bijection, ElementwiseAffine):
            loc, scale, log_det = self._affine(params, y)
            return (y - loc) / scale, -log_det
        return self._map(self.bijection.inverse, params, y, context)

    def _affine(self, params, event):
        """The location and the scale of each channel, and the log determinant: found once, not at each pixel."""
        xp, (_, height, width) = namespace(event), self.shape
        loc, scale = self.bijection.loc_and_scale(params)  # type: ignore[attr-defined]
        log_det = height * width * xp.sum(xp.log(scale), axis=-1) + xp.zeros_like(event[..., 0, 0, 0])
        batch = xp.broadcast_shapes(log_det.shape, loc.shape[:-1])
        return loc[..., None, None], scale[..., None, None], xp.broadcast_to(log_det, batch)

    def init_from(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        pixels = xp.moveaxis(y, -3, -1)
        if context is not None:
            context = xp.broadcast_to(context[..., None, None, :], (*pixels.shape[:-1], context.shape[-1]))
        return self.bijection.init_from(params, pixels, context)

    def _map(self, direction, params, event, context):
        xp = namespace(event)
        if _is_linear(self.bijection):
            return self._map_linearly(direction, params, event)
        # Batch axes of weights and context stand in front of those of the pixels.
        trained = self._spread(params, 2)
        context = None if context is None else context[..., None, None, :]
        pixels, log_det = direction(_tree.replace(params, trained), xp.moveaxis(event, -3, -1), context)
        return xp.moveaxis(pixels, -1, -3), xp.sum(log_det, axis=(-2, -1))

    def _map_linearly(self, direction, params, event):
        xp, (channels, height, width) = namespace(event), self.shape
        units = xp.astype(params["identity"], event.dtype)
        trained = self._spread(params, 1)
        columns, log_det = direction(_tree.replace(params, trained), units)
        batch = event.shape[:-3]
        rows = xp.matmul(columns.mT, xp.reshape(event, (*batch, channels, height * width)))
        image = xp.reshape(rows, (*rows.shape[:-2], channels, height, width))
        return image, height * width * log_det[..., 0] + xp.zeros_like(image[..., 0, 0, 0])

    def _spread(self, params, num):
        """The trained weights, with ``num`` axes of length 1 between their batch axes, if any, and their own."""

        def spread(rank, leaf):
            batch, xp = leaf.ndim - rank, namespace(leaf)
            return xp.reshape(leaf, (*leaf.shape[:batch], *(1,) * num, *leaf.shape[batch:])) if batch else leaf

        return _tree.map_tree(spread, self._ranks, _tree.select(self._ranks, params))
