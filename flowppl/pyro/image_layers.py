"""Layers over images as Pyro transforms."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.bijections.contract import Bijection
from flowppl.bijections.image import autoregressive, coupling, emerging, factor_out, pixelwise, squeeze
from flowppl.networks import CausalConv1d, CausalTransformer, NetworkLike, PixelConvNet
from flowppl.pyro.transforms import FlowTransform
from flowppl.univariate.base import Affine, Univariate


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

    Raises:
        ValueError: for a shape that is none of an image, or a height or width that ``factor`` does not divide.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803, section 3.6.

    Example:
        >>> import torch
        >>> from flowppl.pyro import Squeeze
        >>> transform = Squeeze((1, 4, 4))
        >>> y = transform(torch.arange(16.0).reshape(1, 4, 4))
        >>> y.shape, y[:, 0, 0].tolist()
        (torch.Size([4, 2, 2]), [0.0, 1.0, 4.0, 5.0])
    """

    def __init__(self, shape: Sequence[int], factor: int = 2) -> None:
        super().__init__(squeeze.Squeeze(shape, factor))


class Reshape(FlowTransform):
    r"""The same numbers, in the same order, as an event of another shape.

    It has no weights, and its log determinant is 0.

    x has the shape ``(..., *shape)``, y the shape ``(..., *new_shape)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each, which moves no number.

    Args:
        shape: the shape of x.
        new_shape: the shape of y, with as many numbers.

    Raises:
        ValueError: for a shape that is none, or shapes of different numbers of numbers.

    Example:
        >>> import torch
        >>> from flowppl.pyro import Reshape
        >>> Reshape((64,), (1, 8, 8))(torch.zeros(5, 64)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(self, shape: Sequence[int], new_shape: Sequence[int]) -> None:
        super().__init__(squeeze.Reshape(shape, new_shape))


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

    Raises:
        TypeError: if ``bijection`` is none.
        ValueError: for a shape that is none of an image, or a bijection that does not map vectors of length C to
            vectors of length C.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039, sections 3.1
        and 3.2.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Pixelwise
        >>> transform = Pixelwise((3, 8, 8), fp.QR(3, start="rotation"))
        >>> x = torch.randn(5, 3, 8, 8)
        >>> y = transform(x)
        >>> bool(torch.allclose((x**2).sum(1), (y**2).sum(1), atol=1e-4))  # each pixel is rotated
        True
    """

    def __init__(self, shape: Sequence[int], bijection: Bijection) -> None:
        super().__init__(pixelwise.Pixelwise(shape, bijection))


class FactorOut(FlowTransform):
    r"""A bijection f of the first channels of an image; the other channels leave the flow here.

    With the first K channels :math:`x_A`, as many as f maps, and the others :math:`x_B`,

    .. math::
        y = g\big(f(x_A),\; x_B\big), \qquad \log|\det| = \log|\det f'(x_A)| + \log|\det g'| .

    Seen from the data, where a flow is an encoder, :math:`y_B` becomes noise at once, and only :math:`y_A` goes through
    the layers of f. The bijection g of the whole image is ``prior``, or the identity. A coupling that leaves the first
    K channels as they are models what leaves given what stays: :class:`flowppl.ImageCoupling` if K is half of the
    channels.

    The weights are those of f, under ``bijection``, and of g, under ``prior``, and so is the start. With a context,
    which f or g then takes: ``transform.condition(c)``.

    x and y have the shape ``(..., C, H, W)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` cost what those of f and g cost: one parallel pass each, unless one of
    them is iterative or sequential.

    Args:
        shape: the shape (C, H, W) of an image.
        bijection: the bijection f, of images of shape (K, H, W) with K < C, which it keeps.
        prior: the bijection g, of images of shape (C, H, W), or ``None``.

    Raises:
        TypeError: if ``bijection`` or ``prior`` is none.
        ValueError: for a shape that is none of an image, a bijection or prior that does not fit it or does not map real
            numbers to real numbers, or contexts of different sizes.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803, section 3.6. Kingma,
        Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import FactorOut
        >>> transform = FactorOut((4, 2, 2), fp.Elementwise((2, 2, 2), fp.Scale()), prior=fp.ImageCoupling((4, 2, 2)))
        >>> x = torch.randn(5, 4, 2, 2)
        >>> bool(torch.allclose(transform.inv(transform(x)), x, atol=1e-4))
        True
    """

    def __init__(self, shape: Sequence[int], bijection: Bijection, prior: Bijection | None = None) -> None:
        super().__init__(factor_out.FactorOut(shape, bijection, prior))


class ImageCoupling(FlowTransform):
    r"""A coupling layer of images: one part of x decides how the other part is mapped.

    .. math::
        y_A = x_A, \qquad y_B = \tau\big(x_B;\, g(x_A, c)\big), \qquad
        \log|\det| = \sum_{i \in B} \log \tau'(x_i) .

    A are the numbers that stay as they are, B the others. The univariate map :math:`\tau` acts on each number of
    :math:`x_B`, with parameters that the network g makes of :math:`x_A` and the context c. With ``mask="channel"`` A
    are the first ``C // 2`` channels, and g sees them as an image of so many channels; with ``flip=True`` A are the
    others. With ``mask="checkerboard"`` A are the pixels (h, w) with even h + w, in all channels, or with ``flip=True``
    those with odd h + w; g sees the whole image, with zeros at B.

    The weights are those of the network, whose last layer starts at 0, where :math:`\tau` and so the transform is the
    identity.

    x and y have the shape ``(..., C, H, W)``, their log determinant has the shape ``(...)``. With ``context_dim`` the
    transform needs a context c of shape ``(..., context_dim)``, whose batch axes broadcast with those of x:
    ``transform.condition(c)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each; with a map whose inverse is a root, such as
    :class:`flowppl.LogisticMixture` or :class:`flowppl.Bernstein`, the inverse is iterative.

    Args:
        shape: the shape (C, H, W) of an image.
        univariate: the map of each number of B.
        mask: ``"channel"`` or ``"checkerboard"``.
        flip: whether the two parts are exchanged.
        network: a network of your own instead of the default :class:`flowppl.ConvNet`: one that follows the protocol of
            :mod:`flowppl.networks`, or a module, as :class:`ModuleNetwork` takes it. Of images (channels it sees, H, W)
            it gives images (``univariate.num_raw`` times the channels of B, H, W): first the first raw number of all
            channels, then the second, and so on; in a checkerboard all C channels are of B, and what it gives at A goes
            unused. ``hidden_channels`` and ``num_blocks`` then go unused.
        hidden_channels: the number of channels within the default network.
        num_blocks: its number of gated residual blocks.
        context_dim: the size of the context, 0 for none.

    Raises:
        TypeError: for a ``univariate`` or a ``network`` that is none.
        ValueError: for a shape that is none of an image or cannot be split, or an unknown mask; when it maps, for a
            network that gives an image of another shape, or a context that is missing, of another size, or not
            expected.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803, section 3.4. Ho, Chen,
        Srinivas, Duan, Abbeel: Flow++, 2019, arXiv 1902.00275.

    Example:
        >>> import torch
        >>> from flowppl.pyro import ImageCoupling
        >>> transform = ImageCoupling((4, 2, 2), hidden_channels=8, num_blocks=1)
        >>> x = torch.randn(5, 4, 2, 2)
        >>> y = transform(x)
        >>> bool(torch.equal(y[:, :2], x[:, :2]))
        True
        >>> transform.log_abs_det_jacobian(x, y).shape
        torch.Size([5])
    """

    def __init__(
        self,
        shape: Sequence[int],
        univariate: Univariate = Affine(),
        mask: str = "channel",
        flip: bool = False,
        network: NetworkLike | None = None,
        hidden_channels: int = 32,
        num_blocks: int = 2,
        context_dim: int = 0,
    ) -> None:
        super().__init__(
            coupling.ImageCoupling(shape, univariate, mask, flip, network, hidden_channels, num_blocks, context_dim)
        )


class ImageAutoregressive(FlowTransform):
    r"""An autoregressive layer of images or sequences: every number is mapped by parameters made of those before it.

    .. math::
        y_i = \tau\big(x_i;\, g_i(x_1, \dots, x_{i-1}, c)\big), \qquad \log|\det| = \sum_i \log \tau'(x_i) .

    The univariate map :math:`\tau` acts on each number of x, with parameters that the network g makes of the numbers
    before it and of the context c. The numbers of an image (C, H, W) are in the order of rows, then columns, then
    channels, those of a sequence (C, L) in the order of places, then channels. The network is a causal convolution,
    which sees of the numbers before those within its reach, or a causal transformer, which sees all pixels before that
    of i, and none of its other channels.

    The weights are those of the network, whose last layer starts at 0, where :math:`\tau` and so the transform is the
    identity.

    x and y have the shape ``(..., C, H, W)`` or ``(..., C, L)``, their log determinant has the shape ``(...)``. With
    ``context_dim`` the transform needs a context c of shape ``(..., context_dim)``, whose batch axes broadcast with
    those of x: ``transform.condition(c)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: as many small steps as there are numbers,
    together about the work of one pass for each of the C channels; of a transformer as many as there are pixels,
    together about the work of two passes. Turn it around for data that are scored more often than sampled, with
    :class:`flowppl.Invert`.

    Args:
        shape: the shape (C, H, W) of an image, or (C, L) of a sequence.
        univariate: the map of each number.
        network: the network: a :class:`flowppl.PixelConvNet` for images, a :class:`flowppl.CausalConv1d` for sequences,
            or a :class:`flowppl.CausalTransformer`, with ``in_channels`` C and ``num_outputs`` ``univariate.num_raw``.
            ``None`` means one of the first two with ``hidden_channels`` and ``num_blocks``, which are unused otherwise.
        hidden_channels: the number of channels within the default network.
        num_blocks: the number of its layers after the first; for sequences their dilations are 1, 2, 4, ...
        context_dim: the size of the context, 0 for none; with a ``network`` its own.

    Raises:
        TypeError: for a ``univariate`` that is none, or a ``network`` that is none of these.
        ValueError: for a shape that is none of an image or a sequence, fewer hidden channels than channels, or a
            network for another shape, number of outputs or context; when it maps, for a context that is missing, of
            another size, or not expected.

    References:
        Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934. van den
        Oord et al.: Conditional Image Generation with PixelCNN Decoders, 2016, arXiv 1606.05328. Transformers: Zhai et
        al.: Normalizing Flows are Capable Generative Models, 2024, arXiv 2412.06329.

    Example:
        >>> import torch
        >>> from flowppl.pyro import ImageAutoregressive
        >>> transform = ImageAutoregressive((1, 4, 4), hidden_channels=4, num_blocks=1)
        >>> x = torch.randn(5, 1, 4, 4)
        >>> y = transform(x)
        >>> bool(torch.allclose(transform.inv(y), x, atol=1e-5))
        True
        >>> transform.log_abs_det_jacobian(x, y).shape
        torch.Size([5])
    """

    def __init__(
        self,
        shape: Sequence[int],
        univariate: Univariate = Affine(),
        network: PixelConvNet | CausalConv1d | CausalTransformer | None = None,
        hidden_channels: int = 32,
        num_blocks: int = 2,
        context_dim: int = 0,
    ) -> None:
        super().__init__(
            autoregressive.ImageAutoregressive(shape, univariate, network, hidden_channels, num_blocks, context_dim)
        )


class EmergingConvolution(FlowTransform):
    r"""An invertible convolution with kernels of k x k pixels, made of two autoregressive ones.

    With d = (k + 1) / 2, zeros outside of the image, and vectors of channels :math:`x_{h,w}`,

    .. math::
        z_{h,w} = \mathrm{diag}(\sigma)\Big((I + L)\, x_{h,w} + \sum_{(i,j) \ne (0,0)} A_{ij}\, x_{h-i,w-j}\Big), \qquad
        y_{h,w} = (I + U)\, z_{h,w} + \sum_{(i,j) \ne (0,0)} B_{ij}\, z_{h+i,w+j},

    i and j running from 0 to d - 1. L is strictly lower and U strictly upper triangular, and :math:`\sigma > 0` as in
    :class:`flowppl.ElementwiseAffine`. Both maps are triangular, so the log determinant is :math:`H W \sum_c \log
    \sigma_c`. A pixel of y depends on the k x k pixels around it.

    The weights are ``scale``, of shape ``(C,)``, for :math:`\sigma`, ``lower`` and ``upper``, of shape ``(C * (C - 1)
    // 2,)``, for the entries of L and of the transpose of U, row by row, and ``before`` and ``after``, of shape ``(d**2
    - 1, C, C)``, for A and B. At the start all are 0, and the transform the identity.

    x and y have the shape ``(..., C, H, W)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is two convolutions, parallel. ``transform.inv(y)`` is exact and sequential: H + W - 1 steps, each
    of which finds all pixels whose row and column add up to the same number, for each of the two.

    Args:
        shape: the shape (C, H, W) of an image.
        kernel_size: the side k, odd and at least 3; d must be at most H and W.

    Raises:
        ValueError: for a shape that is none of an image, or a kernel size that is even, below 3, or too large for it.

    References:
        Hoogeboom, van den Berg, Welling: Emerging Convolutions for Generative Normalizing Flows, 2019, arXiv
        1901.11137.

    Example:
        >>> import torch
        >>> from flowppl.pyro import EmergingConvolution
        >>> transform = EmergingConvolution((2, 4, 4))
        >>> x = torch.randn(5, 2, 4, 4)
        >>> bool(torch.allclose(transform.inv(transform(x)), x, atol=1e-4))
        True
    """

    def __init__(self, shape: Sequence[int], kernel_size: int = 3) -> None:
        super().__init__(emerging.EmergingConvolution(shape, kernel_size))
