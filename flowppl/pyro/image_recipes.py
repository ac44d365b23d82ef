"""Image flows as Pyro transforms, under the names of the literature."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.pyro.transforms import FlowTransform
from flowppl.recipes import image
from flowppl.univariate.base import Bound


def nice_image(
    shape: Sequence[int],
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (256, 256),
    context_dim: int = 0,
    activation: str = "silu",
    alpha: float = 0.05,
) -> FlowTransform:
    r"""NICE: additive couplings of an image as one long vector, and a scale for each number.

    It is :func:`nice` of ``C * H * W`` coordinates between two :class:`Reshape`, and the logit layer: the data are
    :math:`y = (\sigma(v) - \alpha) / (1 - 2 \alpha)` for what the flow makes, v. Data lie in the unit interval, its
    ends included, and samples at most :math:`\alpha / (1 - 2\alpha)` outside. With ``context_dim`` the networks read a
    context too: the transform then needs one of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It
    starts at the logit layer alone.

    x and y have the shape ``(..., C, H, W)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        shape: the shape (C, H, W) of an image; of any size.
        num_flows: the number of coupling layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        alpha: the margin of the logit, between 0 and 1/2.

    Raises:
        ValueError: for a shape that is none of an image, a size below 1, or a margin outside of its range.

    References:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, 2014, arXiv 1410.8516.

    Example:
        >>> import torch
        >>> from flowppl.pyro import nice_image
        >>> transform = nice_image((1, 4, 4), hidden_dims=16)
        >>> images = torch.rand(5, 1, 4, 4)
        >>> noise, log_det = transform.inverse_and_log_det(images)
        >>> bool(torch.allclose(transform(noise), images, atol=1e-3))
        True
    """
    return FlowTransform(
        image.nice_image(
            shape, num_flows, hidden_dims=hidden_dims, context_dim=context_dim, activation=activation, alpha=alpha
        )
    )


def realnvp_image(
    shape: Sequence[int],
    num_flows: int = 3,
    *,
    num_scales: int | None = None,
    hidden_channels: int = 32,
    num_blocks: int = 2,
    context_dim: int = 0,
    log_scale_bound: Bound = 3.0,
    alpha: float = 0.05,
) -> FlowTransform:
    """Multi-scale RealNVP: affine couplings over checkerboards and channels; half of the numbers leave at each scale.

    Seen from the data, after the logit layer of :func:`nice_image`, a scale is ``num_flows`` couplings over
    checkerboards, a :class:`Squeeze`, ``num_flows`` couplings over channels, and a :class:`FactorOut` of half of the
    channels; the other half goes to the next scale. The last scale is ``num_flows + 1`` couplings over checkerboards.
    Each coupling's network is residual, and an :class:`ActNorm` of channels follows it, where the paper has batch
    normalisation. ``fit_density`` sets those from the data; elsewhere call :meth:`Flow.init_from`. With ``context_dim``
    the networks read a context too: the transform then needs one of shape ``(..., context_dim)``, see
    :meth:`FlowTransform.condition`. It starts at the logit layer alone.

    x and y have the shape ``(..., C, H, W)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

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
        alpha: the margin of the logit, between 0 and 1/2.

    Raises:
        ValueError: for a shape that is none of an image or cannot be halved as often, a size below 1, or a margin or a
            bound outside of its range.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803.

    Example:
        >>> import torch
        >>> from flowppl.pyro import realnvp_image
        >>> transform = realnvp_image((1, 4, 4), num_flows=1, hidden_channels=4)
        >>> images = torch.rand(5, 1, 4, 4)
        >>> noise, log_det = transform.inverse_and_log_det(images)
        >>> bool(torch.allclose(transform(noise), images, atol=1e-3))
        True
    """
    return FlowTransform(
        image.realnvp_image(
            shape,
            num_flows,
            num_scales=num_scales,
            hidden_channels=hidden_channels,
            num_blocks=num_blocks,
            context_dim=context_dim,
            log_scale_bound=log_scale_bound,
            alpha=alpha,
        )
    )


def glow_image(
    shape: Sequence[int],
    num_flows: int = 8,
    *,
    num_scales: int | None = None,
    hidden_channels: int = 64,
    num_blocks: int = 1,
    context_dim: int = 0,
    log_scale_bound: Bound = 3.0,
    alpha: float = 0.05,
) -> FlowTransform:
    """Glow: at each scale steps of an ActNorm of channels, an invertible 1x1 convolution and an affine coupling.

    Seen from the data, after the logit layer of :func:`nice_image`, a scale is a :class:`Squeeze`, ``num_flows`` steps,
    and a :class:`FactorOut` of half of the channels, whose means and scales given the other half a network makes; that
    half goes to the next scale. The 1x1 convolutions are in their QR factors and start at random rotations. The
    networks are those of Glow: kernels of 3, 1 and 3 pixels. ``fit_density`` sets the ActNorms from the data; elsewhere
    call :meth:`Flow.init_from`. With ``context_dim`` the networks read a context too: the transform then needs one of
    shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at rotations and the logit layer.

    x and y have the shape ``(..., C, H, W)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

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
        alpha: the margin of the logit, between 0 and 1/2.

    Raises:
        ValueError: for a shape that is none of an image or cannot be halved as often, a size below 1, or a margin or a
            bound outside of its range.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039.

    Example:
        >>> import torch
        >>> from flowppl.pyro import glow_image
        >>> transform = glow_image((1, 4, 4), num_flows=2, hidden_channels=4)
        >>> images = torch.rand(5, 1, 4, 4)
        >>> noise, log_det = transform.inverse_and_log_det(images)
        >>> bool(torch.allclose(transform(noise), images, atol=1e-3))
        True
    """
    return FlowTransform(
        image.glow_image(
            shape,
            num_flows,
            num_scales=num_scales,
            hidden_channels=hidden_channels,
            num_blocks=num_blocks,
            context_dim=context_dim,
            log_scale_bound=log_scale_bound,
            alpha=alpha,
        )
    )


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
    alpha: float = 0.05,
) -> FlowTransform:
    """Flow++: mixture-of-logistics couplings, one pass to score an image, a root search to sample.

    Seen from the data, after the logit layer of :func:`nice_image`, it is ``num_flows[0]`` couplings over
    checkerboards, a :class:`Squeeze`, ``num_flows[1]`` couplings over channels and ``num_flows[2]`` over checkerboards.
    Before each come an ActNorm of channels and an invertible 1x1 convolution. The networks are gated, with
    self-attention if ``num_heads`` says so. ``fit_density`` sets the ActNorms from the data; elsewhere call
    :meth:`Flow.init_from`. Nothing is factored out. With ``context_dim`` the networks read a context too: the transform
    then needs one of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at rotations and the
    logit layer.

    x and y have the shape ``(..., C, H, W)``, their log determinant has the shape ``(...)``.

    ``transform.inv(y)``, which scores an image, is one parallel pass. ``transform(x)`` is iterative: a root search for
    each number that a coupling maps.

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
        alpha: the margin of the logit, between 0 and 1/2.

    Raises:
        ValueError: for a shape that is none of an image or cannot be halved, a size below 1, heads that do not divide
            the channels, or a margin or a bound outside of its range.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++: Improving Flow-Based Generative Models with Variational
        Dequantization and Architecture Design, 2019, arXiv 1902.00275.

    Example:
        >>> import torch
        >>> from flowppl.pyro import flowpp_image
        >>> transform = flowpp_image((1, 4, 4), (1, 1, 1), num_components=2, hidden_channels=4)
        >>> images = torch.rand(5, 1, 4, 4)
        >>> noise, log_det = transform.inverse_and_log_det(images)
        >>> bool(torch.allclose(transform(noise), images, atol=1e-3))
        True
    """
    return FlowTransform(
        image.flowpp_image(
            shape,
            num_flows,
            num_components=num_components,
            hidden_channels=hidden_channels,
            num_blocks=num_blocks,
            num_heads=num_heads,
            context_dim=context_dim,
            log_scale_bound=log_scale_bound,
            alpha=alpha,
        )
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
    alpha: float = 0.05,
) -> FlowTransform:
    """TarFlow: autoregressive over patches of an image, by causal transformers; one pass to score an image.

    Seen from the data, after the logit layer of :func:`nice_image`, a :class:`Squeeze` makes patches of ``patch_size``
    x ``patch_size`` pixels, and ``num_flows`` layers map them, each given all patches before it, in the order of rows
    and in the opposite one in turn. A layer is an :class:`ImageAutoregressive` with a
    :class:`flowppl.CausalTransformer`; before it come an ActNorm of the numbers of a patch and an invertible 1x1
    convolution of them. ``fit_density`` sets the ActNorms from the data; elsewhere call :meth:`Flow.init_from`. The
    numbers of one patch do not see each other within a layer. With ``context_dim`` the networks read a context too: the
    transform then needs one of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at
    rotations and the logit layer.

    x and y have the shape ``(..., C, H, W)``, their log determinant has the shape ``(...)``.

    ``transform.inv(y)``, which scores an image, is one parallel pass. ``transform(x)`` is sequential: patch by patch,
    each by a root search, or in closed form where the maps are affine.

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
        alpha: the margin of the logit, between 0 and 1/2.

    Raises:
        ValueError: for a shape that is none of an image, a height or width that ``patch_size`` does not divide, a size
            below 1, heads that do not divide ``hidden_dim``, or a margin or a bound outside of its range.

    References:
        Zhai et al.: Normalizing Flows are Capable Generative Models, 2024, arXiv 2412.06329.

    Example:
        >>> import torch
        >>> from flowppl.pyro import tarflow_image
        >>> transform = tarflow_image((1, 4, 4), 1, num_components=2, hidden_dim=4)
        >>> images = torch.rand(5, 1, 4, 4)
        >>> noise, log_det = transform.inverse_and_log_det(images)
        >>> bool(torch.allclose(transform(noise), images, atol=1e-3))
        True
    """
    return FlowTransform(
        image.tarflow_image(
            shape,
            num_flows,
            patch_size=patch_size,
            num_components=num_components,
            hidden_dim=hidden_dim,
            num_blocks=num_blocks,
            num_heads=num_heads,
            context_dim=context_dim,
            log_scale_bound=log_scale_bound,
            alpha=alpha,
        )
    )
