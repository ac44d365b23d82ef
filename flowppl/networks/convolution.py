"""Convolutional networks: of an image they make another one of the same height and width."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.checks import assign, check_sizes
from flowppl.declare import Constant, Normal, Parameter, Uniform
from flowppl.networks.dense import masked
from flowppl.networks.protocol import check_activation

KINDS = ("gated", "residual", "plain")


def as_sizes(owner: str, num: int | None, **named: Any) -> Any:
    """The one named value as a tuple of so many sizes, or of any number; raise ValueError unless it is one."""
    ((name, value),) = named.items()
    sizes = tuple(value) if isinstance(value, Iterable) else None
    if sizes is None or num not in (None, len(sizes)):
        what = "integers" if num is None else f"{num} integers"
        raise ValueError(f"{owner}: {name} must be a tuple of {what}, got {value!r}")
    for size in sizes:
        check_sizes(owner, **{name: size})
    return sizes


def as_context_shape(owner: str, num_axes: int, shape: Any, context_dim: int) -> Any:
    """The shape of a context that is no vector, as a tuple; raise ValueError unless it fits ``context_dim``."""
    shape = as_sizes(owner, num_axes, context_shape=shape)
    if context_dim not in (0, math.prod(shape)):
        raise ValueError(
            f"{owner}: context_dim must be {math.prod(shape)}, the number of entries of context_shape={shape}, or be "
            f"left out, got {context_dim}"
        )
    return shape


def check_kernels(owner: str, *sizes: int, at_least: int = 1) -> None:
    """Raise ValueError unless kernels of these sizes have a middle."""
    for size in sizes:
        check_sizes(owner, at_least=at_least, kernel_size=size)
        if size % 2 == 0:
            raise ValueError(f"{owner}: kernel_size must be odd, got {size}")


def conv_parameters(
    in_channels: int,
    out_channels: int,
    kernel: tuple[int, ...],
    weight_norm: bool = False,
    context_dim: int = 0,
    context_channels: int = 0,
    zero: bool = False,
) -> Tree:
    """The weights of one convolution, and of what a context adds: a vector, or an image by one-pixel kernels."""
    fan_in = in_channels * math.prod(kernel)
    # Else the variance of the input is kept.
    draw = Constant(0.0) if zero and not weight_norm else Uniform((3 / fan_in) ** 0.5)
    layer: Tree = {
        "weight": Parameter((out_channels, in_channels, *kernel), draw),
        "bias": Parameter((out_channels,)),
    }
    if weight_norm:  # the norm of what is drawn is about 1
        layer["scale"] = Parameter((out_channels,), Constant(0.0 if zero else 1.0))
    if context_dim:
        layer["context_weight"] = Parameter((context_dim, out_channels), Uniform((3 / context_dim) ** 0.5))
    if context_channels:
        shape = (out_channels, context_channels, 1, 1)
        layer["context_kernel"] = Parameter(shape, Uniform((3 / context_channels) ** 0.5))
    return layer


def conv_weight(layer: Tree) -> Array:
    """The weights of a convolution: masked where the layer has a ``mask``, of norm ``scale`` where it has one."""
    weight = layer["weight"]
    xp = namespace(weight)
    if "mask" in layer:
        weight = masked(layer)["weight"]
    if "scale" in layer:
        axes = (-3, -2, -1)
        norm = xp.sqrt(xp.sum(weight * weight, axis=axes, keepdims=True) + 1e-20)  # no division by zero
        weight = weight * (layer["scale"][..., None, None, None] / norm)
    return weight


def convolve(layer: Tree, x: Array, context: Array | None = None) -> Array:
    """One convolution, with zeros around ``x`` so that its size stays; the context is a vector or an image."""
    xp, weight, bias = namespace(x), conv_weight(layer), layer["bias"]
    top, left = ((size - 1) // 2 for size in weight.shape[-2:])
    padding = ((top, top), (left, left))
    if "context_weight" in layer:
        bias = xp.linear(context, layer["context_weight"], bias)
    y = xp.conv2d(x, weight, bias, padding)
    if "context_kernel" in layer:
        y = y + xp.conv2d(context, layer["context_kernel"], xp.zeros_like(bias))
    return y


def gated(x: Array) -> Array:
    """One half of the channels, times the sigmoid of the other half."""
    half = x.shape[-3] // 2
    return x[..., :half, :, :] * namespace(x).sigmoid(x[..., half:, :, :])


def doubled(x: Array, activation: str) -> Array:
    """The activation of ``x`` and of ``-x``, as twice as many channels."""
    xp = namespace(x)
    return getattr(xp, activation)(xp.concat([x, -x], axis=-3))


def attend(layers: Tree, x: Array, num_heads: int) -> Array:
    """Self-attention over the pixels, gated, added to ``x``."""
    xp, (channels, height, width) = namespace(x), x.shape[-3:]
    centred = x - xp.mean(x, axis=-3, keepdims=True)
    normed = centred / xp.sqrt(xp.mean(centred * centred, axis=-3, keepdims=True) + 1e-5)
    made = convolve(layers["make"], normed + layers["position"])
    size = channels // num_heads
    made = xp.reshape(made, (*made.shape[:-3], 3, num_heads, size, height * width))
    query, key, value = (made[..., i, :, :, :] for i in range(3))
    scores = xp.matmul(xp.matrix_transpose(key) / math.sqrt(size), query)  # (..., heads, keys, queries)
    mixed = xp.matmul(value, xp.softmax(scores, axis=-2))
    return x + gated(convolve(layers["mix"], xp.reshape(mixed, (*mixed.shape[:-3], channels, height, width))))


@dataclasses.dataclass(frozen=True)
class ConvNet:
    r"""A convolutional network: of an image (C, H, W) it makes another one, (O, H, W).

    A first convolution makes of the image n channels h, n being ``hidden_channels``; blocks map them one after the
    other; and a last convolution, which starts at zero, makes the O channels of :math:`\sigma(h)`. With * for a
    convolution, its bias understood, and :math:`\sigma` for the activation, a block maps h to

    .. math::
        \text{gated:}\quad & h + a \odot \mathrm{sigmoid}(b), \qquad
            (a, b) = W_2 * \sigma(\pm (W_1 * \sigma(\pm h) + c)), \\
        \text{residual:}\quad & h + W_2 * \sigma(W_1 * \sigma(h) + c), \\
        \text{plain:}\quad & W_1 * \sigma(h) + c.

    Here :math:`\sigma(\pm h)` are the 2n channels :math:`\sigma(h), \sigma(-h)`, and c is what the context adds. In
    gated blocks W_2 has kernels of one pixel. W_2 starts at zero. The image has zeros around it, so that its size
    stays. A pixel of the result depends on the pixels at most r above, below, left and right of it: with kernels of 3
    pixels r is 2, and one more for each gated or plain block, two more for each residual one.

    With ``num_heads`` each block is followed by self-attention, by which a pixel depends on all others. The channels of
    each pixel are brought to mean 0 and variance 1, a trained array, the position, is added, and one-pixel kernels make
    of them queries q, keys k and values v, of which each head has its share of d = n / num_heads channels:

    .. math::
        h + a \odot \mathrm{sigmoid}(b), \qquad (a, b) = W_4 * m, \qquad
        m_i = \sum_j \frac{\exp(q_i^\top k_j / \sqrt{d})}{\sum_l \exp(q_i^\top k_l / \sqrt{d})}\, v_j,

    i, j and l running over the pixels; W_4 starts at zero. That costs memory and time with the square of H W.

    Args:
        in_channels: the number of channels C of the input.
        out_channels: the number of channels O of the output.
        hidden_channels: the number of channels n in between.
        num_blocks: the number of blocks; may be 0.
        kind: the kind of the blocks, "gated", "residual" or "plain".
        weight_norm: whether weights are given as a direction v and a length g for each output channel,
            :math:`W = g\, v / |v|`. At the start g is 1, or 0 for what starts at zero.
        num_heads: the number of heads of the attention, 0 for no attention. It must divide ``hidden_channels``, and
            ``image_size`` must be given.
        context_dim: the size of the context, 0 for none. The context enters the first convolution and each block.
        context_shape: what shape (c, h, w) the context has as an image, ``None`` for a vector, which adds the same at
            all pixels. An image of the size of the input is stacked on its channels, and enters each block by
            one-pixel kernels. It may be larger by a factor f, the same for both axes, if ``image_size`` is given: each
            pixel is then given the f x f pixels of the context at its place. ``context_dim`` must be c h w, or may be
            left out.
        kernel_size: the height and width of the kernels, odd; or three of them, for the first convolution, those of
            the blocks and the last: (3, 1, 3) is Glow's network.
        activation: one of elu, relu, silu, softplus, tanh.
        image_size: (H, W); needed for attention and for a context that is a larger image.

    Raises:
        ValueError: for a size that is not a positive integer, an unknown kind or activation, an even kernel size, heads
            that do not divide the channels, a missing image size, or sizes that do not fit each other.

    References:
        Salimans, Karpathy, Chen, Kingma: PixelCNN++, 2017, arXiv 1701.05517 (gated blocks). Ho, Chen, Srinivas, Duan,
        Abbeel: Flow++, 2019, arXiv 1902.00275 (attention; theirs normalises each sum, not what enters).
        Dinh, Sohl-Dickstein, Bengio: RealNVP, 2016, arXiv 1605.08803 (residual blocks). Kingma, Dhariwal: Glow, 2018,
        arXiv 1807.03039 (plain blocks). Salimans, Kingma: Weight Normalization, 2016, arXiv 1602.07868.

    Example:
        >>> import flowppl as fp
        >>> net = fp.ConvNet(1, 2, hidden_channels=8, num_blocks=1)
        >>> net.parameters()["first"]["weight"].shape
        (8, 1, 3, 3)
    """

    in_channels: int
    out_channels: int
    hidden_channels: int = 32
    num_blocks: int = 2
    kind: str = "gated"
    weight_norm: bool = False
    num_heads: int = 0
    context_dim: int = 0
    context_shape: tuple[int, int, int] | None = None
    kernel_size: int | tuple[int, int, int] = 3
    activation: str = "elu"
    image_size: tuple[int, int] | None = None

    def __post_init__(self):
        check_sizes(
            "ConvNet",
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            hidden_channels=self.hidden_channels,
        )
        check_sizes("ConvNet", at_least=0, num_blocks=self.num_blocks, num_heads=self.num_heads)
        check_sizes("ConvNet", at_least=0, context_dim=self.context_dim)
        check_activation("ConvNet", self.activation)
        if self.kind not in KINDS:
            raise ValueError(f"ConvNet: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not isinstance(self.kernel_size, int):
            assign(self, kernel_size=as_sizes("ConvNet", 3, kernel_size=self.kernel_size))
        check_kernels("ConvNet", *self._kernels)
        if self.image_size is not None:
            assign(self, image_size=as_sizes("ConvNet", 2, image_size=self.image_size))
        if self.num_heads:
            if self.hidden_channels % self.num_heads:
                raise ValueError(
                    f"ConvNet: num_heads must divide hidden_channels={self.hidden_channels}, got {self.num_heads}"
                )
            if self.image_size is None:
                raise ValueError("ConvNet: attention needs the size of the images; give image_size=(height, width)")
        if self.context_shape is not None:
            shape = as_context_shape("ConvNet", 3, self.context_shape, self.context_dim)
            assign(self, context_shape=shape, context_dim=math.prod(shape))
            if self.image_size is not None and shape[1:] != tuple(self._factor * size for size in self.image_size):
                raise ValueError(
                    f"ConvNet: a context of context_shape={shape} does not fit images of image_size={self.image_size}; "
                    "its height and width must be the same multiple of theirs"
                )

    @property
    def _factor(self) -> int:
        """How many times as high as the input the context is."""
        return self.context_shape[1] // self.image_size[0] if self.context_shape and self.image_size else 1

    @property
    def _kernels(self) -> tuple[int, int, int]:
        return (self.kernel_size,) * 3 if isinstance(self.kernel_size, int) else self.kernel_size

    def parameters(self) -> Tree:
        channels, (first, within, last) = self.hidden_channels, ((size, size) for size in self._kernels)
        vector = self.context_dim if self.context_shape is None else 0
        image = 0 if self.context_shape is None else self.context_shape[0] * self._factor**2
        norm, double = self.weight_norm, 2 if self.kind == "gated" else 1
        layers: Tree = {"first": conv_parameters(self.in_channels + image, channels, first, norm, vector)}
        for i in range(self.num_blocks):
            block: Tree = {"enter": conv_parameters(double * channels, channels, within, norm, vector, image)}
            if self.kind != "plain":
                kernel = (1, 1) if self.kind == "gated" else within
                block["leave"] = conv_parameters(double * channels, double * channels, kernel, norm, zero=True)
            if self.num_heads:
                block["attention"] = {
                    "position": Parameter((channels, *self.image_size), Normal(0.01)),  # type: ignore[misc]
                    "make": conv_parameters(channels, 3 * channels, (1, 1), norm),
                    "mix": conv_parameters(channels, 2 * channels, (1, 1), norm, zero=True),
                }
            layers[str(i)] = block
        layers["last"] = conv_parameters(channels, self.out_channels, last, norm, zero=True)
        return layers

    def constants(self) -> Tree:
        return {}

    def __call__(self, params, x, context=None):
        size = tuple(x.shape[-2:])
        if self.image_size not in (None, size):
            raise ValueError(f"ConvNet: expected images of image_size={self.image_size}, got shape {tuple(x.shape)}")
        if self.context_shape and self.image_size is None and self.context_shape[1:] != size:
            raise ValueError(
                f"ConvNet: context_shape={self.context_shape} does not fit images of shape {tuple(x.shape)}; give one "
                "of their height and width, or give image_size"
            )
        xp, activate = namespace(x), getattr(namespace(x), self.activation)
        entering = x
        if self.context_shape is not None:
            context = self._as_image(context, *self.context_shape)
            batch = xp.broadcast_shapes(x.shape[:-3], context.shape[:-3])
            parts = (xp.broadcast_to(part, (*batch, *part.shape[-3:])) for part in (x, context))
            entering = xp.concat(list(parts), axis=-3)
        hidden = convolve(params["first"], entering, context)
        for i in range(self.num_blocks):
            block = params[str(i)]
            if self.kind == "gated":
                inner = convolve(block["enter"], doubled(hidden, self.activation), context)
                hidden = hidden + gated(convolve(block["leave"], doubled(inner, self.activation)))
            else:
                inner = convolve(block["enter"], activate(hidden), context)
                plain = self.kind == "plain"
                hidden = inner if plain else hidden + convolve(block["leave"], activate(inner))
            if self.num_heads:
                hidden = attend(block["attention"], hidden, self.num_heads)
        return convolve(params["last"], activate(hidden))

    def _as_image(self, context: Array, channels: int, height: int, width: int) -> Array:
        """The context as an image of the size of the input: what lies in f x f pixels as channels of one."""
        xp, factor, batch = namespace(context), self._factor, context.shape[:-1]
        if factor == 1:
            return xp.reshape(context, (*batch, channels, height, width))
        height, width = height // factor, width // factor
        parts = xp.reshape(context, (*batch, channels, height, factor, width, factor))
        parts = xp.moveaxis(parts, (-3, -1), (-4, -3))
        return xp.reshape(parts, (*batch, channels * factor**2, height, width))
