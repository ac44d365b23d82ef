"""The causal convolutional network over images, the gated PixelCNN."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.checks import assign, check_sizes, derived
from flowppl.networks.causal import Causal, Find, as_matrices, causal_gate, zeros_for
from flowppl.networks.convolution import as_sizes, check_kernels


@dataclasses.dataclass(frozen=True)
class PixelConvNet(Causal):
    r"""The gated PixelCNN, over images (C, H, W): what it makes for an entry depends on the entries before it.

    The entries are in the order of rows, then columns, then channels. For each there are ``num_outputs`` numbers, which
    depend on the rows above, on the pixels on the left in the same row, and on the earlier channels of the same pixel,
    as far as the network reaches. Two stacks of layers see to that without a blind spot. A layer maps the output v of
    the vertical stack, which knows the rows above, and that of the horizontal one, h, n channels each, to

    .. math::
        g = A *_{\uparrow} v + c, \quad v \leftarrow \mathrm{gate}(g), \quad
        z = \mathrm{gate}(W *_{\leftarrow} h + B g + c'), \quad h \leftarrow h + U z, \quad s \leftarrow s + V z.

    The gate of 2n channels (a, b) is :math:`\tanh(a) \odot \mathrm{sigmoid}(b)`; c and c' are what the context adds.
    With a kernel size k = 2r + 1, the kernels of A see the r rows above and the row itself, k columns wide, those of W
    the r pixels on the left and the pixel itself. The first layer reads the image, by kernels that see the rows
    strictly above, and, of the pixel itself, its earlier channels only; it gives U z alone. The output is
    :math:`R\, \sigma(Q\, \sigma(s))` with the activation :math:`\sigma`; B, U, V, Q and R act on the channels of each
    pixel, and all have biases. R starts at zero. The network reaches as many rows up, and columns to both sides, as the
    r of all layers together.

    Of C channels each has its share of the n hidden ones of h, and masks keep the order; the output has
    ``num_outputs`` blocks of C channels.

    Args:
        in_channels: the number of channels C.
        num_outputs: how many numbers each entry gets.
        hidden_channels: the number of hidden channels n, C or more.
        num_blocks: the number of layers after the first; may be 0.
        kernel_size: the kernel size k, odd and 3 or more; or a pair, for the first layer and for the others.
        weight_norm: whether weights are given as a direction and a length, as for :class:`~flowppl.ConvNet`.
        context_dim: the size of the context, 0 for none. A vector adds the same at all pixels.
        context_shape: what shape (c, H, W) the context has as an image, which adds at each pixel what one-pixel kernels
            make of it there; ``None`` for a vector. ``context_dim`` must be c H W, or may be left out.
        activation: one of elu, relu, silu, softplus, tanh.

    Raises:
        ValueError: for a size that is not a positive integer, fewer hidden channels than channels, a kernel size that
            is even or 1, an unknown activation, or sizes of the context that do not fit each other.

    References:
        van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu: Conditional Image Generation with PixelCNN
        Decoders, 2016, arXiv 1606.05328; the sum s of all layers is that of van den Oord et al.: WaveNet, 2016, arXiv
        1609.03499.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> net = fp.PixelConvNet(1, 2, hidden_channels=4, num_blocks=1)
        >>> net.parameters()["1"]["down"]["weight"].shape
        (8, 4, 2, 3)
    """

    in_channels: int
    num_outputs: int
    hidden_channels: int = 32
    num_blocks: int = 4
    kernel_size: int | tuple[int, int] = (7, 3)
    weight_norm: bool = False
    context_dim: int = 0
    context_shape: tuple[int, int, int] | None = None
    activation: str = "elu"
    _widths: tuple[int, ...] = derived()
    _dilations: tuple[int, ...] = derived()

    def __post_init__(self):
        self._check(3)
        check_sizes("PixelConvNet", at_least=0, num_blocks=self.num_blocks)
        if not isinstance(self.kernel_size, int):
            assign(self, kernel_size=as_sizes("PixelConvNet", 2, kernel_size=self.kernel_size))
        first, others = (self.kernel_size,) * 2 if isinstance(self.kernel_size, int) else self.kernel_size
        check_kernels("PixelConvNet", first, others, at_least=3)
        widths = (first // 2 + 1, *(others // 2 + 1,) * self.num_blocks)
        assign(self, _widths=widths, _dilations=(1,) * len(widths))

    def parameters(self) -> Tree:
        layers, channels = super().parameters(), self.hidden_channels
        for i, width in enumerate(self._widths):
            fan_in, rows = (channels, width) if i else (self.in_channels, width - 1)
            down = self._convolution(fan_in, 2 * channels, (rows, 2 * width - 1), has_context=True)
            layers[str(i)] |= {"down": down, "link": self._convolution(2 * channels, 2 * channels)}
        return layers

    def _down(self, layers: Tree, i: int, rows: Array, above: int) -> Array:
        """The raw numbers of the vertical stack in a layer, with so many rows of zeros above."""
        side = self._widths[i] - 1
        return namespace(rows).conv2d(rows, **layers[str(i)]["down"], padding=((above, 0), (side, side)))

    def _link(self, layers: Tree, i: int, raw: Array, of_image: Sequence[Array]) -> Array:
        """What the vertical stack, and an image, add to the horizontal one in a layer."""
        linked = namespace(raw).conv2d(raw, **layers[str(i)]["link"])
        return linked + of_image[i] if of_image else linked

    def __call__(self, params, x, context=None):
        layers = self._prepared(params, context)
        down, across = (self._of_image(params, x, context, name) for name in ("down", "across"))
        rows, added = x, []
        for i, width in enumerate(self._widths):
            raw = self._down(layers, i, rows, width - 1)
            raw = raw if i else raw[..., :-1, :]  # the first layer's kernels end in the row above
            raw = raw + down[i] if down else raw
            added.append(self._link(layers, i, raw, across))
            rows = causal_gate(raw)
        return self._along(layers, x, added)[0]

    def generate(
        self, params: Tree, find: Find, items: Sequence[Array], context: Array | None = None
    ) -> tuple[Array, ...]:
        """Find the entries of images one after the other, each given what the network makes of those before it.

        Args:
            params: the weights and constants.
            find: a function ``find(raw, *entries)`` of the numbers for an entry, ``(num_outputs, ...)``, and of the
                entry of each item, ``(...)``. It returns a tuple of arrays ``(...)``, of which the first is the entry
                found.
            items: one or more arrays ``(..., C, H, W)``: what the search for each entry is given, such as random
                numbers.
            context: as for the network.

        Returns:
            For each array that ``find`` returns the array ``(..., C, H, W)`` of them all. The vertical stack is
            computed row by row, once, and each of the C H W steps computes one pixel of the horizontal one: together
            less than the work of C passes of the network, but in many small steps.
        """
        xp, num, channel = namespace(items[0]), len(items), params["channel"]
        layers = self._prepared(params, context)
        matrices = as_matrices(layers)
        images = [self._of_image(params, items[0], context, name) for name in ("down", "across")]
        zero = self._zero(layers, items, [*images[0], *images[1]])

        def find_row(_, above, *rows):
            rows, of_image = rows[:num], [row[..., None, :] for row in rows[num:]]
            down, across = of_image[: len(images[0])], of_image[len(images[0]) :]
            seen, added, made = above[0], [], []
            for i in range(len(self._widths)):
                raw = self._down(layers, i, seen, 0)
                raw = raw + down[i] if down else raw
                added.append(self._link(layers, i, raw, across)[..., 0, :])
                if i + 1 < len(self._widths):
                    made.append(causal_gate(raw))
                    seen = xp.concat([above[i + 1], made[-1]], axis=-2)
            found = self._find_row(matrices, find, rows, added, zero, channel)
            news = [found[0][..., None, :], *made]
            return [xp.concat([old[..., 1:, :], new], axis=-2) for old, new in zip(above, news, strict=True)], found

        height, width = items[0].shape[-2:]
        fan_ins = (self.in_channels, *(self.hidden_channels,) * (len(self._widths) - 1))
        above = [zeros_for(zero, (fan_in, size - 1, width)) for fan_in, size in zip(fan_ins, self._widths, strict=True)]
        rows = (xp.moveaxis(array, -2, 0) for array in (*items, *images[0], *images[1]))
        _, found = xp.collect(height, find_row, above, *rows)
        return tuple(xp.moveaxis(part, 0, -2) for part in found)
