"""Layers over images as NumPyro transforms; ``init`` draws their weights."""

# mypy: disable-error-code="override"
# ``init`` of a named transform takes the arguments of its class instead of a bijection.

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import jax

from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection
from flowppl.bijections.image import pixelwise, squeeze
from flowppl.numpyro.transforms import FlowTransform


class Squeeze(FlowTransform):
    r"""Blocks of f x f pixels become f^2 channels of one pixel.

    .. math::
        y_{c f^2 + i f + j,\; h,\; w} = x_{c,\; h f + i,\; w f + j}, \qquad 0 \le i, j < f, \qquad \log|\det| = 0 .

    So the channels of one pixel are those of a block, and layers that split channels split neighbours. It has no
    weights.

    x has the shape ``(..., C, H, W)``, y the shape ``(..., C * f**2, H / f, W / f)``, their log determinant has the
    shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each, which moves numbers and computes nothing.

    Args:
        shape: the shape (C, H, W) of x.
        factor: the side f of a block.
        params: the weights, a nested dict of arrays; :meth:`init` draws them.

    Raises:
        ValueError: for a shape that is none of an image, or a height or width that ``factor`` does not divide.
        ValueError: if ``params`` lacks a weight or one has a wrong shape.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803, section 3.6.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flowppl.numpyro import Squeeze
        >>> transform = Squeeze.init(jax.random.key(0), (1, 4, 4))
        >>> y = transform(jnp.arange(16.0).reshape(1, 4, 4))
        >>> y.shape, y[:, 0, 0].tolist()
        ((4, 2, 2), [0.0, 1.0, 4.0, 5.0])
    """

    def __init__(self, shape: Sequence[int], factor: int = 2, *, params: Tree) -> None:
        super().__init__(squeeze.Squeeze(shape, factor), params)

    @classmethod
    def init(cls, key: jax.Array, shape: Sequence[int], factor: int = 2) -> Self:
        """The transform with first weights drawn by ``key``; the other arguments are those of the class."""
        return cls._drawn(key, squeeze.Squeeze(shape, factor))


class Reshape(FlowTransform):
    r"""The same numbers, in the same order, as an event of another shape.

    It has no weights, and its log determinant is 0.

    x has the shape ``(..., *shape)``, y the shape ``(..., *new_shape)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each, which moves no number.

    Args:
        shape: the shape of x.
        new_shape: the shape of y, with as many numbers.
        params: the weights, a nested dict of arrays; :meth:`init` draws them.

    Raises:
        ValueError: for a shape that is none, or shapes of different numbers of numbers.
        ValueError: if ``params`` lacks a weight or one has a wrong shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flowppl.numpyro import Reshape
        >>> Reshape.init(jax.random.key(0), (64,), (1, 8, 8))(jnp.zeros((5, 64))).shape
        (5, 1, 8, 8)
    """

    def __init__(self, shape: Sequence[int], new_shape: Sequence[int], *, params: Tree) -> None:
        super().__init__(squeeze.Reshape(shape, new_shape), params)

    @classmethod
    def init(cls, key: jax.Array, shape: Sequence[int], new_shape: Sequence[int]) -> Self:
        """The transform with first weights drawn by ``key``; the other arguments are those of the class."""
        return cls._drawn(key, squeeze.Reshape(shape, new_shape))


class Pixelwise(FlowTransform):
    r"""A bijection f of vectors, applied to the channels of every pixel, with the same weights at all of them.

    .. math::
        y_{:,h,w} = f(x_{:,h,w}), \qquad
        \log|\det| = \sum_{h=1}^H \sum_{w=1}^W \log\Big|\det \frac{\partial f}{\partial x}(x_{:,h,w})\Big| .

    With :class:`flowppl.LU` or :class:`flowppl.QR` it is the invertible 1x1 convolution of Glow, and with
    :class:`flowppl.ActNorm` its normalisation of channels, which :meth:`Flow.init_from` sets from all pixels of all
    images. A linear f is made into its C x C matrix once, whatever the number of pixels.

    The weights are those of f, and so is the start. With a context, which f then takes, it is the same at all pixels:
    ``transform.condition(c)``.

    x and y have the shape ``(..., C, H, W)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` cost what those of f cost: one parallel pass each, unless f is iterative
    or sequential.

    Args:
        shape: the shape (C, H, W) of an image.
        bijection: the bijection f, of vectors of length C.
        params: the weights, a nested dict of arrays; :meth:`init` draws them.

    Raises:
        TypeError: if ``bijection`` is none.
        ValueError: for a shape that is none of an image, or a bijection that does not map vectors of length C to
            vectors of length C.
        ValueError: if ``params`` lacks a weight or one has a wrong shape.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039, sections 3.1
        and 3.2.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Pixelwise
        >>> transform = Pixelwise.init(jax.random.key(0), (3, 8, 8), fp.QR(3, start="rotation"))
        >>> x = jax.random.normal(jax.random.key(1), (5, 3, 8, 8))
        >>> y = transform(x)
        >>> bool(jnp.allclose((x**2).sum(1), (y**2).sum(1), atol=1e-4))  # each pixel is rotated
        True
    """

    def __init__(self, shape: Sequence[int], bijection: Bijection, *, params: Tree) -> None:
        super().__init__(pixelwise.Pixelwise(shape, bijection), params)

    @classmethod
    def init(cls, key: jax.Array, shape: Sequence[int], bijection: Bijection) -> Self:
        """The transform with first weights drawn by ``key``; the other arguments are those of the class."""
        return cls._drawn(key, pixelwise.Pixelwise(shape, bijection))
