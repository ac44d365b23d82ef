"""Image flows: of events of shape (channels, height, width), with data in the unit interval."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from flowppl.bijections.combine import Chain, Invert
from flowppl.bijections.contract import Bijection
from flowppl.bijections.elementwise import Bounded, Elementwise
from flowppl.bijections.image.autoregressive import ImageAutoregressive
from flowppl.bijections.image.coupling import ImageCoupling
from flowppl.bijections.image.factor_out import FactorOut
from flowppl.bijections.image.pixelwise import Pixelwise
from flowppl.bijections.image.squeeze import Reshape, Squeeze
from flowppl.bijections.linear import ActNorm, Permute
from flowppl.bijections.orthogonal import QR
from flowppl.bijections.repeat import Repeat
from flowppl.checks import as_image_shape, check_sizes, is_rising
from flowppl.networks import CausalTransformer, ConvNet
from flowppl.recipes.coupling import nice
from flowppl.univariate.base import Affine, Bound
from flowppl.univariate.mixture import LogisticMixture

Shape = tuple[int, int, int]


def nice_image(
    shape: Sequence[int],
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (256, 256),
    context_dim: int = 0,
    activation: str = "silu",
    alpha: float | None = 0.05,
) -> Bijection:
    r"""NICE: additive couplings of an image as one long vector, and a scale for each number.

    It is :func:`nice` of ``C * H * W`` coordinates between two :class:`Reshape`, and the logit layer: the data are
    :math:`y = (\sigma(v) - \alpha) / (1 - 2 \alpha)` for what the flow makes, v. Data lie in the unit interval, its
    ends included, and samples at most :math:`\alpha / (1 - 2\alpha)` outside.

    Args:
        shape: the shape (C, H, W) of an image; of any size.
        num_flows: the number of coupling layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        alpha: the margin of the logit, between 0 and 1/2; ``None`` for no logit layer: a flow of any real numbers.

    Raises:
        ValueError: for a shape that is none of an image, a size below 1, or a margin outside of its range.

    References:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, 2014, arXiv 1410.8516.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.nice_image((1, 8, 8), hidden_dims=32)
        >>> flow.x_shape, flow.forward_cost, flow.inverse_cost
        ((1, 8, 8), 'parallel', 'parallel')
    """
    shape = as_image_shape("nice_image", shape)
    flat = (math.prod(shape),)
    check_sizes("nice_image", num_flows=num_flows)
    flow = nice(*flat, num_flows, hidden_dims=hidden_dims, context_dim=context_dim, activation=activation)
    return Chain([Reshape(shape, flat), flow, Reshape(flat, shape), *_logit("nice_image", shape, alpha)])


def realnvp_image(
    shape: Sequence[int],
    num_flows: int = 3,
    *,
    num_scales: int | None = None,
    hidden_channels: int = 32,
    num_blocks: int = 2,
    context_dim: int = 0,
    log_scale_bound: Bound = 3.0,
    alpha: float | None = 0.05,
) -> Bijection:
    """Multi-scale RealNVP: affine couplings over checkerboards and channels; half of the numbers leave at each scale.

    Seen from the data, after the logit layer of :func:`nice_image`, a scale is ``num_flows`` couplings over
    checkerboards, a :class:`Squeeze`, ``num_flows`` couplings over channels, and a :class:`FactorOut` of half of the
    channels; the other half goes to the next scale. The last scale is ``num_flows + 1`` couplings over checkerboards.
    Each coupling's network is residual, and an :class:`ActNorm` of channels follows it, where the paper has batch
    normalisation. ``fit_density`` sets those from the data; elsewhere call ``init_from``.

    Args:
        shape: the shape (C, H, W) of an image.
        num_flows: the number of couplings between two changes of shape.
        num_scales: the number of scales; the height and the width are halved one time less. ``None`` is as many as they
            allow down to 2 pixels, at most 3.
        hidden_channels: the number of channels within each network.
        num_blocks: its number of residual blocks.
        context_dim: the size of the context, 0 for none.
        log_scale_bound: one coupling scales a number by at most the exponential of this; or a pair of bounds, see
            :class:`flowppl.Affine`.
        alpha: the margin of the logit, between 0 and 1/2; ``None`` for no logit layer: a flow of any real numbers.

    Raises:
        ValueError: for a shape that is none of an image or cannot be halved as often, a size below 1, or a margin or a
            bound outside of its range.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.realnvp_image((1, 8, 8), hidden_channels=8)
        >>> flow.x_shape, flow.forward_cost, flow.inverse_cost
        ((1, 8, 8), 'parallel', 'parallel')
    """
    shape = as_image_shape("realnvp_image", shape)
    check_sizes("realnvp_image", num_flows=num_flows)
    num_squeezes = _num_squeezes("realnvp_image", shape, num_scales, 2, more_scales=1)

    def couplings(shape: Shape, mask: str, num: int) -> Bijection:
        univariate = Affine(log_scale_bound)

        def layer(flip: bool) -> Bijection:
            seen, mapped = _seen_and_mapped(shape, mask, flip)
            network = ConvNet(seen, 2 * mapped, hidden_channels, num_blocks, kind="residual", context_dim=context_dim)
            coupling = ImageCoupling(shape, univariate, mask, flip, network, context_dim=context_dim)
            return Chain([coupling, Pixelwise(shape, ActNorm(shape[0]))])

        return _in_turn(layer, num)

    def scale(shape: Shape, num_squeezes: int) -> Bijection:
        if num_squeezes == 0:
            return couplings(shape, "checkerboard", num_flows + 1)
        squeezed = _squeezed(shape)
        inner = scale(_first_half(squeezed), num_squeezes - 1)
        return Chain(
            [
                Squeeze(shape),
                FactorOut(squeezed, inner),
                couplings(squeezed, "channel", num_flows),
                Invert(Squeeze(shape)),
                couplings(shape, "checkerboard", num_flows),
            ]
        )

    return Chain([scale(shape, num_squeezes), *_logit("realnvp_image", shape, alpha)])


def glow_image(
    shape: Sequence[int],
    num_flows: int = 8,
    *,
    num_scales: int | None = None,
    hidden_channels: int = 64,
    num_blocks: int = 1,
    context_dim: int = 0,
    log_scale_bound: Bound = 3.0,
    alpha: float | None = 0.05,
) -> Bijection:
    """Glow: at each scale steps of an ActNorm of channels, an invertible 1x1 convolution and an affine coupling.

    Seen from the data, after the logit layer of :func:`nice_image`, a scale is a :class:`Squeeze`, ``num_flows`` steps,
    and a :class:`FactorOut` of half of the channels, whose means and scales given the other half a network makes; that
    half goes to the next scale. The 1x1 convolutions are in their QR factors and start at random rotations. The
    networks are those of Glow: kernels of 3, 1 and 3 pixels. ``fit_density`` sets the ActNorms from the data; elsewhere
    call ``init_from``.

    Args:
        shape: the shape (C, H, W) of an image.
        num_flows: the number of steps at each scale.
        num_scales: the number of scales; the height and the width are halved as often. ``None`` is as many as they
            allow down to 2 pixels, at most 3.
        hidden_channels: the number of channels within each network; the paper has 512.
        num_blocks: its number of convolutions with kernels of one pixel.
        context_dim: the size of the context, 0 for none.
        log_scale_bound: one coupling scales a number by at most the exponential of this; or a pair of bounds, see
            :class:`flowppl.Affine`.
        alpha: the margin of the logit, between 0 and 1/2; ``None`` for no logit layer: a flow of any real numbers.

    Raises:
        ValueError: for a shape that is none of an image or cannot be halved as often, a size below 1, or a margin or a
            bound outside of its range.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.glow_image((3, 32, 32), num_flows=2, hidden_channels=8)
        >>> flow.x_shape, flow.forward_cost, flow.inverse_cost
        ((3, 32, 32), 'parallel', 'parallel')
    """
    shape = as_image_shape("glow_image", shape)
    check_sizes("glow_image", num_flows=num_flows)
    univariate = Affine(log_scale_bound)

    def coupling(shape: Shape, blocks: int) -> Bijection:
        seen, mapped = _seen_and_mapped(shape, "channel")
        kernels = (3, 1, 3) if blocks else 3
        network = ConvNet(
            seen, 2 * mapped, hidden_channels, blocks, "plain", context_dim=context_dim, kernel_size=kernels
        )
        return ImageCoupling(shape, univariate, network=network, context_dim=context_dim)

    def scale(shape: Shape, num_squeezes: int) -> Bijection:
        squeezed = _squeezed(shape)
        step = Chain([coupling(squeezed, num_blocks), *_mix_and_normalise(squeezed)])
        inner = []
        if num_squeezes > 1:
            rest = scale(_first_half(squeezed), num_squeezes - 1)
            inner = [FactorOut(squeezed, rest, prior=coupling(squeezed, 0))]
        return Chain([Squeeze(shape), *inner, _repeated(step, num_flows), Invert(Squeeze(shape))])

    flow = scale(shape, _num_squeezes("glow_image", shape, num_scales, 3))
    return Chain([flow, *_logit("glow_image", shape, alpha)])


def flowpp_image(
    shape: Sequence[int],
    num_flows: Sequence[int] = (4, 2, 3),
    *,
    num_components: int = 8,
    hidden_channels: int = 32,
    num_blocks: int = 2,
    num_heads: int = 0,
    context_dim: int = 0,
    log_scale_bound: Bound = 3.0,
    alpha: float | None = 0.05,
) -> Bijection:
    """Flow++: mixture-of-logistics couplings, one pass to score an image, a root search to sample.

    Seen from the data, after the logit layer of :func:`nice_image`, it is ``num_flows[0]`` couplings over
    checkerboards, a :class:`Squeeze`, ``num_flows[1]`` couplings over channels and ``num_flows[2]`` over checkerboards.
    Before each come an ActNorm of channels and an invertible 1x1 convolution. The networks are gated, with
    self-attention if ``num_heads`` says so. ``fit_density`` sets the ActNorms from the data; elsewhere call
    ``init_from``. Nothing is factored out.

    Args:
        shape: the shape (C, H, W) of an image.
        num_flows: the numbers of couplings: over checkerboards at full size, then over channels and over checkerboards
            at half the size.
        num_components: the number of logistics of each mixture; the paper has 32.
        hidden_channels: the number of channels within each network; the paper has 96.
        num_blocks: its number of gated residual blocks; the paper has 10.
        num_heads: the number of heads of the networks' self-attention, 0 for none. Its cost grows with the square of
            the number of pixels.
        context_dim: the size of the context, 0 for none.
        log_scale_bound: the bound of the mixtures' log-scales.
        alpha: the margin of the logit, between 0 and 1/2; ``None`` for no logit layer: a flow of any real numbers.

    Raises:
        ValueError: for a shape that is none of an image or cannot be halved, a size below 1, heads that do not divide
            the channels, or a margin or a bound outside of its range.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++: Improving Flow-Based Generative Models with Variational
        Dequantization and Architecture Design, 2019, arXiv 1902.00275.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.flowpp_image((1, 8, 8), hidden_channels=8, num_blocks=1)
        >>> flow.x_shape, flow.forward_cost, flow.inverse_cost
        ((1, 8, 8), 'iterative', 'parallel')
    """
    shape = as_image_shape("flowpp_image", shape)
    if isinstance(num_flows, (str, int)) or len(num_flows) != 3:
        raise ValueError(f"flowpp_image: num_flows must be three numbers, such as (4, 2, 3), got {num_flows!r}")
    for num in num_flows:
        check_sizes("flowpp_image", **{"each of num_flows": num})
    _num_squeezes("flowpp_image", shape, 1, 1)
    univariate = LogisticMixture(num_components, log_scale_bound)

    def couplings(shape: Shape, mask: str, num: int) -> Bijection:

        def layer(flip: bool) -> Bijection:
            seen, mapped = _seen_and_mapped(shape, mask, flip)
            network = ConvNet(
                seen,
                univariate.num_raw * mapped,
                hidden_channels,
                num_blocks,
                num_heads=num_heads,
                context_dim=context_dim,
                image_size=shape[1:] if num_heads else None,
            )
            coupling = ImageCoupling(shape, univariate, mask, flip, network, context_dim=context_dim)
            return Chain([Invert(coupling), *_mix_and_normalise(shape)])

        return _in_turn(layer, num)

    squeezed = _squeezed(shape)
    full, channels, half = num_flows
    return Chain(
        [
            Squeeze(shape),
            couplings(squeezed, "checkerboard", half),
            couplings(squeezed, "channel", channels),
            Invert(Squeeze(shape)),
            couplings(shape, "checkerboard", full),
            *_logit("flowpp_image", shape, alpha),
        ]
    )


def tarflow_image(
    shape: Sequence[int],
    num_flows: int = 4,
    *,
    patch_size: int = 2,
    num_components: int = 4,
    hidden_dim: int = 64,
    num_blocks: int = 2,
    num_heads: int = 4,
    context_dim: int = 0,
    log_scale_bound: Bound = 3.0,
    alpha: float | None = 0.05,
) -> Bijection:
    """TarFlow: autoregressive over patches of an image, by causal transformers; one pass to score an image.

    Seen from the data, after the logit layer of :func:`nice_image`, a :class:`Squeeze` makes patches of ``patch_size``
    x ``patch_size`` pixels, and ``num_flows`` layers map them, each given all patches before it, in the order of rows
    and in the opposite one in turn. A layer is an :class:`ImageAutoregressive` with a
    :class:`~flowppl.CausalTransformer`; before it come an ActNorm of the numbers of a patch and an invertible 1x1
    convolution of them. ``fit_density`` sets the ActNorms from the data; elsewhere call ``init_from``. The numbers
    of one patch do not see each other within a layer.

    Args:
        shape: the shape (C, H, W) of an image.
        num_flows: the number of layers.
        patch_size: the side of a patch, in pixels; 1 is each pixel for itself.
        num_components: the number of logistics of the mixture that maps each number. 0 means the affine maps of the
            paper, of which it takes more layers where images are few.
        hidden_dim: the numbers of a token in each transformer; the paper has 768 and more.
        num_blocks: the number of its blocks; the paper has 8.
        num_heads: the number of heads of its attention, which divides ``hidden_dim``. Its cost grows with the square of
            the number of patches.
        context_dim: the size of the context, 0 for none.
        log_scale_bound: one layer scales a number by at most the exponential of this; or a pair of bounds of affine
            maps, see :class:`flowppl.Affine`.
        alpha: the margin of the logit, between 0 and 1/2; ``None`` for no logit layer: a flow of any real numbers.

    Raises:
        ValueError: for a shape that is none of an image, a height or width that ``patch_size`` does not divide, a size
            below 1, heads that do not divide ``hidden_dim``, or a margin or a bound outside of its range.

    References:
        Zhai et al.: Normalizing Flows are Capable Generative Models, 2024, arXiv 2412.06329.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.tarflow_image((1, 8, 8), hidden_dim=8)
        >>> flow.x_shape, flow.forward_cost, flow.inverse_cost
        ((1, 8, 8), 'sequential', 'parallel')
    """
    shape = as_image_shape("tarflow_image", shape)
    check_sizes("tarflow_image", num_flows=num_flows, patch_size=patch_size)
    check_sizes("tarflow_image", at_least=0, num_components=num_components)
    if shape[1] % patch_size or shape[2] % patch_size:
        raise ValueError(
            f"tarflow_image: height and width of shape={shape} must be multiples of patch_size={patch_size}; pad or "
            "crop the images, or choose another size"
        )
    squeeze = Squeeze(shape, patch_size)
    inner, flat = as_image_shape("tarflow_image", squeeze.y_shape), (math.prod(shape),)
    univariate = LogisticMixture(num_components, log_scale_bound) if num_components else Affine(log_scale_bound)
    options = (hidden_dim, num_blocks, num_heads, context_dim)
    network = CausalTransformer(inner[0], univariate.num_raw, inner[1:], *options)
    layer = Invert(ImageAutoregressive(inner, univariate, network))
    turned = [Reshape(inner, flat), Permute.reverse(*flat), Reshape(flat, inner)]
    step = Chain([*turned, layer, *_mix_and_normalise(inner)])
    flow = [squeeze, _repeated(step, num_flows), Invert(squeeze)]
    return Chain([*flow, *_logit("tarflow_image", shape, alpha)])


def _logit(owner: str, shape: Shape, alpha: float | None) -> list[Bijection]:
    """The last layer, y = (sigmoid(x) - alpha) / (1 - 2 alpha), or none."""
    if alpha is None:
        return []
    if isinstance(alpha, bool) or not is_rising(0, alpha, 0.5):
        raise ValueError(f"{owner}: alpha must be between 0 and 1/2, got {alpha!r}")
    margin = alpha / (1 - 2 * alpha)
    return [Elementwise(shape, Bounded(-margin, 1 + margin))]


def _num_squeezes(owner: str, shape: Shape, num_scales: int | None, at_most: int, more_scales: int = 0) -> int:
    """How often the image is squeezed: ``num_scales`` less ``more_scales``, or as often as it can be.

    Raises:
        ValueError: if its height or width cannot be halved so often.
    """
    _, height, width = shape
    possible = 0
    while height % 2 ** (possible + 1) == width % 2 ** (possible + 1) == 0 and height * width > 4 ** (possible + 1):
        possible += 1
    if num_scales is None:
        down_to_two = math.frexp(min(height, width))[1] - 2
        wanted = max(1, min(at_most, possible, down_to_two))
    else:
        check_sizes(owner, num_scales=num_scales)
        wanted = num_scales - more_scales
    if wanted > possible:
        fitting = possible + more_scales
        padded = tuple(max(-(-size // 2**wanted), 2) * 2**wanted for size in (height, width))
        remedies = [f"pad or crop the images, to {(shape[0], *padded)} for example"]
        if fitting > 0 and owner != "flowpp_image":
            remedies.append(f"give num_scales={fitting}")
        if not possible:
            remedies.append("use nice_image, which takes any size")
        raise ValueError(
            f"{owner}: height and width of shape={shape} are to be halved {_times(wanted)}, but can be, if "
            f"more than one pixel is to be left, {_times(possible)}; {', or '.join(remedies)}"
        )
    return wanted


def _times(num: int) -> str:
    return "once" if num == 1 else f"{num} times"


def _squeezed(shape: Shape) -> Shape:
    channels, height, width = shape
    return (4 * channels, height // 2, width // 2)


def _first_half(shape: Shape) -> Shape:
    channels, height, width = shape
    return (channels // 2, height, width)


def _seen_and_mapped(shape: Shape, mask: str, flip: bool = False) -> tuple[int, int]:
    """The channels that the network of a coupling sees, and those that it maps."""
    channels = shape[0]
    if mask == "checkerboard":
        return channels, channels
    first, rest = channels // 2, channels - channels // 2
    return (rest, first) if flip else (first, rest)


def _mix_and_normalise(shape: Shape) -> list[Bijection]:
    """An invertible 1x1 convolution, if there are channels to mix, and the ActNorm of channels."""
    channels = shape[0]
    mix = [Pixelwise(shape, QR(channels, start="rotation"))] if channels > 1 else []
    return [*mix, Pixelwise(shape, ActNorm(channels))]


def _repeated(layer: Bijection, num: int) -> Bijection:
    return layer if num == 1 else Repeat(layer, num)


def _in_turn(layer: Callable[[bool], Bijection], num: int) -> Bijection:
    """So many layers, not flipped and flipped in turn."""
    layer = functools.cache(layer)
    if num == 1:
        return layer(False)
    pairs = _repeated(Chain([layer(False), layer(True)]), num // 2)
    return Chain([pairs, layer(False)]) if num % 2 else pairs
