"""Autoregressive layers of images and sequences, whose networks are causal convolutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.checks import as_shape, assign, check_sizes, derived
from flowppl.networks import CausalConv1d, CausalTransformer, PixelConvNet
from flowppl.univariate.base import Affine, Univariate, check_univariate


@dataclasses.dataclass(frozen=True)
class ImageAutoregressive(Bijection):
    r"""An autoregressive layer of images, or of sequences, over any univariate map :math:`\tau`.

    .. math::
        y_i = \tau\big(x_i;\, g_i(x_1, \dots, x_{i-1}, \mathrm{context})\big), \qquad
        \log|\det| = \sum_i \log \tau'(x_i) .

    The numbers of an image (C, H, W) are in the order of rows, then columns, then channels, those of a sequence (C, L)
    in the order of places, then channels. The network g is a causal convolution, so there are as few weights for large
    images as for small ones; of the numbers before i it sees those within its reach. Or it is a causal transformer,
    which sees all pixels before that of i, and none of its other channels: these are then found together.

    ``forward`` is one pass of the network. ``inverse`` finds the numbers one after the other, in as many small steps as
    there are, each of which computes one pixel in each layer: together about the work of one pass for each of the C
    channels; of a transformer in H W steps, about the work of two passes. This way round it is an *inverse
    autoregressive flow* (IAF), cheap to sample; ``Invert(ImageAutoregressive(shape))`` is a *masked autoregressive
    flow* (MAF), cheap to score.

    Args:
        shape: the shape (C, H, W) of an image, or (C, L) of a sequence.
        univariate: the map of each number.
        network: the network: a :class:`~flowppl.PixelConvNet` for images, a :class:`~flowppl.CausalConv1d` for
            sequences, or a :class:`~flowppl.CausalTransformer`, with ``in_channels`` C and ``num_outputs``
            ``univariate.num_raw``. ``None`` means one of the first two with ``hidden_channels`` and ``num_blocks``,
            which are unused otherwise.
        hidden_channels: the number of channels within the default network.
        num_blocks: the number of its layers after the first; for sequences their dilations are 1, 2, 4, ...
        context_dim: the size of the context, 0 for none; with a ``network`` its own.

    Raises:
        TypeError: for a ``univariate`` that is none, or a ``network`` that is none of these.
        ValueError: for a shape that is none of an image or a sequence, fewer hidden channels than channels, or a
            network for another shape, number of outputs or context.

    References:
        Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934, whose
        layers for images are such; van den Oord et al.: Conditional Image Generation with PixelCNN Decoders, 2016,
        arXiv 1606.05328. Transformers: Zhai et al.: Normalizing Flows are Capable Generative Models, 2024, arXiv
        2412.06329.

    Example:
        >>> import flowppl as fp
        >>> iaf = fp.ImageAutoregressive((1, 8, 8), hidden_channels=8)
        >>> iaf.forward_cost, iaf.inverse_cost
        ('parallel', 'sequential')
    """

    shape: Sequence[int]
    univariate: Univariate = Affine()
    network: PixelConvNet | CausalConv1d | CausalTransformer | None = None
    hidden_channels: int = 32
    num_blocks: int = 2
    context_dim: int = 0
    _network: PixelConvNet | CausalConv1d | CausalTransformer = derived()

    def __post_init__(self):
        owner = "ImageAutoregressive"
        if not isinstance(self.shape, Sequence) or len(self.shape) not in (2, 3):
            raise ValueError(
                f"{owner}: shape must be that of an image, (channels, height, width), such as (1, 28, 28), or "
                f"of a sequence, (channels, length), got {self.shape!r}"
            )
        shape, is_sequence = as_shape(owner, shape=self.shape), len(self.shape) == 2
        check_univariate(owner, self.univariate, at_least=1)
        check_sizes(owner, at_least=0, num_blocks=self.num_blocks, context_dim=self.context_dim)
        kind: type[PixelConvNet | CausalConv1d] = CausalConv1d if is_sequence else PixelConvNet
        channels, num_raw, network = shape[0], self.univariate.num_raw, self.network
        if network is None:
            check_sizes(owner, at_least=channels, hidden_channels=self.hidden_channels)
            if is_sequence:
                dilations = tuple(2**i for i in range(self.num_blocks))
                network = CausalConv1d(channels, num_raw, self.hidden_channels, dilations, context_dim=self.context_dim)
            else:
                network = PixelConvNet(
                    channels, num_raw, self.hidden_channels, self.num_blocks, context_dim=self.context_dim
                )
        elif not isinstance(network, kind | CausalTransformer):
            what = f"the class {network.__name__}" if isinstance(network, type) else repr(network)[:80]
            raise TypeError(
                f"{owner}: network for shape={shape} must be a flowppl.{kind.__name__} or CausalTransformer, got {what}"
            )
        else:
            context_dim = self.context_dim or network.context_dim
            sizes = {"in_channels": channels, "num_outputs": num_raw, "context_dim": context_dim}
            for name, size in sizes.items():
                if getattr(network, name) != size:
                    raise ValueError(
                        f"{owner}: network must have {name}={size}, as shape, univariate and context_dim say, got "
                        f"{getattr(network, name)}"
                    )
            if isinstance(network, CausalTransformer) and network.size != shape[1:]:
                raise ValueError(f"{owner}: network has size={network.size}, which does not fit shape={shape}")
            along = network.context_shape[1:] if network.context_shape else shape[1:]
            if tuple(along) != shape[1:]:
                raise ValueError(
                    f"{owner}: network has context_shape={network.context_shape}, which does not fit shape={shape}"
                )
        assign(self, shape=shape, context_dim=network.context_dim, _network=network)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    @property
    def inverse_cost(self) -> str:
        return "sequential"

    def parameters(self) -> Tree:
        return {"network": self._network.parameters()}

    def constants(self) -> Tree:
        return {"network": self._network.constants()}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp, num_axes = namespace(x), len(self.shape)
        output = self._network(params["network"], x, context)
        raw = xp.reshape(output, (*output.shape[:-num_axes], self.univariate.num_raw, *self.shape))
        y, log_slope = self.univariate.forward(xp.moveaxis(raw, -num_axes - 1, 0), x)
        return y, self._total(log_slope)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        x, log_slope = self._network.generate(params["network"], self.univariate.inverse, [y], context)
        return x, self._total(log_slope)

    def _total(self, log_slope):
        return namespace(log_slope).sum(log_slope, axis=tuple(range(-len(self.shape), 0)))
