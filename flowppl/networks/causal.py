"""What causal convolutional networks share, and the one over sequences: no number depends on later entries."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, leaves
from flowppl.checks import assign, check_sizes, derived
from flowppl.networks.convolution import as_context_shape, as_sizes, conv_parameters, conv_weight
from flowppl.networks.protocol import check_activation

Find = Callable[..., tuple[Array, ...]]


def prepared(layers: Tree, context: Array | None) -> Tree:
    """All convolutions as weights and biases; what a context that is a vector adds is in the biases."""
    if "bias" not in layers:
        return {name: prepared(layer, context) for name, layer in layers.items()}
    bias = layers["bias"]
    if "context_weight" in layers:
        bias = namespace(bias).linear(context, layers["context_weight"], bias)
    return {"weight": conv_weight(layers), "bias": bias}


def as_matrices(layers: Tree) -> Tree:
    """Prepared convolutions as matrix products, for one pixel at a time, which are faster then."""
    if "bias" not in layers:
        return {name: as_matrices(layer) for name, layer in layers.items()}
    weight = layers["weight"]
    xp = namespace(weight)
    flat = xp.reshape(weight, (*weight.shape[:-3], math.prod(weight.shape[-3:])))
    return {"matrix": xp.matrix_transpose(flat), "bias": layers["bias"]}


def _apply(layer: Tree, x: Array, width: int = 1, dilation: int = 1) -> Array:
    """A convolution along the rows of images; or a matrix product, of as many pixels as its kernel spans."""
    xp = namespace(x)
    if "weight" in layer:
        padding = ((0, 0), ((width - 1) * dilation, 0))
        return xp.conv2d(x, layer["weight"], layer["bias"], padding, (1, dilation))
    flat = xp.reshape(x[..., ::dilation], (*x.shape[:-3], layer["matrix"].shape[-2]))
    return xp.linear(flat, layer["matrix"], layer["bias"])[..., None, None]


def causal_gate(raw: Array) -> Array:
    xp, half = namespace(raw), raw.shape[-3] // 2
    return xp.tanh(raw[..., :half, :, :]) * xp.sigmoid(raw[..., half:, :, :])


def zeros_for(zero: Array, shape: tuple[int, ...]) -> Array:
    """Zeros of a shape for each entry of the array of zeros ``zero``."""
    wide = namespace(zero).reshape(zero, (*zero.shape, *(1,) * len(shape)))
    return namespace(zero).broadcast_to(wide, (*zero.shape, *shape))


class Causal:
    """What both networks share: layers that run along the rows of an image, and the search for its entries.

    A sequence is an image one pixel high. Each layer has a convolution ``across``, of the pixels on the left and the
    pixel itself, of which the first layer sees the earlier channels only. The hidden channels are shared out among the
    C channels: those of channel c see what the outputs for c may depend on.
    """

    in_channels: int
    num_outputs: int
    hidden_channels: int
    weight_norm: bool
    context_dim: int
    context_shape: tuple[int, ...] | None
    activation: str
    # Of each layer, the width of the convolution across, and between which pixels it leaves out some.
    _widths: tuple[int, ...]
    _dilations: tuple[int, ...]

    def _check(self, num_axes: int) -> None:
        """Raise ValueError for what both networks cannot have; take the size of a context from its shape."""
        owner = type(self).__name__
        check_sizes(owner, in_channels=self.in_channels, num_outputs=self.num_outputs)
        check_sizes(owner, at_least=self.in_channels, hidden_channels=self.hidden_channels)
        check_sizes(owner, at_least=0, context_dim=self.context_dim)
        check_activation(owner, self.activation)
        if self.context_shape is not None:
            shape = as_context_shape(owner, num_axes, self.context_shape, self.context_dim)
            assign(self, context_shape=shape, context_dim=math.prod(shape))

    def _convolution(self, fan_in: int, fan_out: int, kernel: tuple[int, int] = (1, 1), has_context=False, zero=False):
        """Declare a convolution, of one pixel unless a kernel is given."""
        vector = self.context_dim if has_context and self.context_shape is None else 0
        image = self.context_shape[0] if has_context and self.context_shape is not None else 0
        return conv_parameters(fan_in, fan_out, kernel, self.weight_norm, vector, image, zero)

    def parameters(self) -> Tree:
        channels, last = self.hidden_channels, len(self._widths) - 1
        layers: Tree = {}
        for i, width in enumerate(self._widths):
            across = self._convolution(channels if i else self.in_channels, 2 * channels, (1, width), has_context=True)
            layers[str(i)] = {"across": across, "skip": self._convolution(channels, channels)}
            if i < last:
                layers[str(i)]["stay"] = self._convolution(channels, channels)
        layers["join"] = self._convolution(channels, channels)
        layers["last"] = self._convolution(channels, self.num_outputs * self.in_channels, zero=True)
        return layers

    def constants(self) -> Tree:
        entries = np.arange(self.in_channels)
        hidden = np.arange(self.hidden_channels) * self.in_channels // self.hidden_channels

        def mask(after, before, width=1, strict=False):
            seen = np.ones((len(after), len(before), 1, width), dtype=bool)
            seen[..., 0, -1] = after[:, None] > before if strict else after[:, None] >= before
            return {"mask": seen}

        layers: Tree = {"0": {"across": mask(np.tile(hidden, 2), entries, self._widths[0], strict=True)}}
        layers["channel"] = np.eye(self.in_channels, dtype=bool)
        if self.in_channels == 1:
            return layers
        for i, width in enumerate(self._widths):
            layer = layers.setdefault(str(i), {"across": mask(np.tile(hidden, 2), hidden, width)})
            layer["skip"] = mask(hidden, hidden)
            if i < len(self._widths) - 1:
                layer["stay"] = mask(hidden, hidden)
        return layers | {"join": mask(hidden, hidden), "last": mask(np.tile(entries, self.num_outputs), hidden)}

    def _prepared(self, params: Tree, context: Array | None) -> Tree:
        """The convolutions of all layers, :func:`prepared`."""
        layers = dict(params)
        del layers["channel"]  # a KeyError without constants: else missing masks would go unnoticed
        return prepared(layers, context)

    def _of_image(self, params: Tree, event: Array, context: Array | None, name: str) -> list[Array]:
        """What a context that is an image adds to the named convolution of each layer; nothing of a vector."""
        if self.context_shape is None or context is None:
            return []
        size = self.context_shape[1:]
        if tuple(event.shape[-len(size) :]) != size:
            raise ValueError(
                f"{type(self).__name__}: context_shape={self.context_shape} does not fit an event of shape "
                f"{tuple(event.shape)}; they must agree in all but the channels"
            )
        xp, channels = namespace(context), self.context_shape[0]
        image = xp.reshape(context, (*context.shape[:-1], channels, *(1, *size)[-2:]))
        kernels = [params[str(i)][name]["context_kernel"] for i in range(len(self._widths))]
        return [xp.conv2d(image, kernel, xp.zeros_like(kernel[..., 0, 0, 0])) for kernel in kernels]

    def _along(
        self, layers: Tree, current: Array, added: Sequence[Array], seen: Sequence[Array] = ()
    ) -> tuple[Array, list[Array]]:
        """The output and what enters each layer: of images, or of a pixel, given what each has ``seen`` before it."""
        xp, entered, skips = namespace(current), [], None
        activate = getattr(xp, self.activation)
        for i, (width, dilation) in enumerate(zip(self._widths, self._dilations, strict=True)):
            layer = layers[str(i)]
            entered.append(current)
            window = xp.concat([seen[i], current], axis=-1) if seen else current
            raw = _apply(layer["across"], window, width, dilation)
            made = causal_gate(raw + added[i] if added else raw)
            skip = _apply(layer["skip"], made)
            skips = skip if skips is None else skips + skip
            if "stay" in layer:
                stays = _apply(layer["stay"], made)
                current = current + stays if i else stays
        return _apply(layers["last"], activate(_apply(layers["join"], activate(skips)))), entered

    def _find_row(
        self, layers: Tree, find: Find, items: Sequence[Array], added: Sequence[Array], zero: Array, channel
    ) -> tuple[Array, ...]:
        """The entries of a row, ``(..., C, W)`` each, given items of that shape and what is added in each layer."""
        xp, channels, num = namespace(zero), self.in_channels, len(items)

        def find_pixel(_: Array, seen: list[Array], *columns: Array) -> tuple[list[Array], tuple[Array, ...]]:
            sums = [column[..., None, None] for column in columns[num:]]

            def find_entry(_, carry, here, *entries):
                pixel = carry[0]
                output, entered = self._along(layers, pixel, sums, seen)
                raw = xp.reshape(output, (*output.shape[:-3], self.num_outputs, channels))
                raw = xp.moveaxis(xp.sum(xp.where(here, raw, xp.zeros_like(raw)), axis=-1), -1, 0)
                found = tuple(xp.astype(xp.broadcast_to(a, zero.shape), zero.dtype) for a in find(raw, *entries))
                pixel = xp.where(here[:, None, None], found[0][..., None, None, None], pixel)
                return [pixel, *entered[1:]], found

            start = [zeros_for(zero, (channels, 1, 1)), *(rows[..., :1] for rows in seen[1:])]
            entries = (xp.moveaxis(entries, -1, 0) for entries in columns[:num])
            entered, parts = xp.collect(channels, find_entry, start, channel, *entries)
            found = tuple(xp.moveaxis(part, 0, -1) for part in parts)
            return [xp.concat([old[..., 1:], new], axis=-1) for old, new in zip(seen, entered, strict=True)], found

        fan_in, seen = channels, []
        for width, dilation in zip(self._widths, self._dilations, strict=True):
            seen.append(zeros_for(zero, (fan_in, 1, (width - 1) * dilation)))
            fan_in = self.hidden_channels
        columns = [xp.moveaxis(array, -1, 0) for array in (*items, *added)]
        _, found = xp.collect(items[0].shape[-1], find_pixel, seen, *columns)
        return tuple(xp.moveaxis(part, 0, -1) for part in found)

    def _zero(self, layers: Tree, items: Sequence[Array], added: Sequence[Array]) -> Array:
        """Zeros of the shape of the batch, and of the dtype of the result; the items are images."""
        xp = namespace(items[0])
        weights = {"weight": -4, "bias": -1}
        parts = [(leaf, weights[path[-1]]) for path, leaf in leaves(layers)] + [(array, -3) for array in added]
        parts += [(item, -3) for item in items]
        batch = xp.broadcast_shapes(*(array.shape[:end] for array, end in parts))
        dtype = xp.result_type(*(array for array, _ in parts if xp.isdtype(array.dtype, "real floating")))
        return xp.broadcast_to(xp.astype(xp.zeros_like(items[0][..., 0, 0, 0]), dtype), batch)


@dataclasses.dataclass(frozen=True)
class CausalConv1d(Causal):
    r"""A causal convolutional network over sequences (C, L): what it makes at a place depends on what is before it.

    For each entry it makes ``num_outputs`` numbers, which depend on all channels of earlier places, as far as the
    network reaches, and on the earlier channels of the same place. There are as many layers as ``dilations``, and one
    before them that reads the sequence. With :math:`*_d` for a convolution whose kernel has ``kernel_size`` entries,
    the last at the place itself and the others d apart before it, a layer maps its input h, n channels, to

    .. math::
        z = \tanh(a) \odot \mathrm{sigmoid}(b), \quad (a, b) = W *_d h + c, \quad
        h \leftarrow h + U z, \quad s \leftarrow s + V z,

    where c is what the context adds (the first layer gives U z alone), and the output is
    :math:`R\, \sigma(Q\, \sigma(s))` with the activation :math:`\sigma`. U, V, Q and R act on the channels of each
    place, and all have biases. R starts at zero. The k - 1 entries of each kernel before the place reach back over
    :math:`(k - 1)(1 + \sum d)` places in all.

    Of C channels each has its share of the n hidden ones, and masks keep the order; the output has ``num_outputs``
    blocks of C channels.

    Args:
        in_channels: the number of channels C.
        num_outputs: how many numbers each entry gets.
        hidden_channels: the number of hidden channels n, C or more.
        dilations: the dilations d, one for each layer after the first.
        kernel_size: the number of entries of a kernel, 2 or more.
        weight_norm: whether weights are given as a direction and a length, as for :class:`~flowppl.ConvNet`.
        context_dim: the size of the context, 0 for none. A vector adds the same at all places.
        context_shape: what shape (c, L) the context has as a sequence, which adds at each place what kernels of one
            entry make of it there; ``None`` for a vector. ``context_dim`` must be c L, or may be left out.
        activation: one of elu, relu, silu, softplus, tanh.

    Raises:
        ValueError: for a size that is not a positive integer, fewer hidden channels than channels, a kernel of one
            entry, an unknown activation, or sizes of the context that do not fit each other.

    References:
        van den Oord et al.: WaveNet: A Generative Model for Raw Audio, 2016, arXiv 1609.03499.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> net = fp.CausalConv1d(1, 2, hidden_channels=4, dilations=(1, 2))
        >>> net.parameters()["1"]["across"]["weight"].shape
        (8, 4, 1, 2)
    """

    in_channels: int
    num_outputs: int
    hidden_channels: int = 32
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    kernel_size: int = 2
    weight_norm: bool = False
    context_dim: int = 0
    context_shape: tuple[int, int] | None = None
    activation: str = "elu"
    _widths: tuple[int, ...] = derived()
    _dilations: tuple[int, ...] = derived()

    def __post_init__(self):
        self._check(2)
        check_sizes("CausalConv1d", at_least=2, kernel_size=self.kernel_size)
        dilations = as_sizes("CausalConv1d", None, dilations=self.dilations)
        assign(self, dilations=dilations, _dilations=(1, *dilations))
        assign(self, _widths=(self.kernel_size,) * len(self._dilations))

    def __call__(self, params, x, context=None):
        layers = self._prepared(params, context)
        return self._along(layers, x[..., None, :], self._of_image(params, x, context, "across"))[0][..., 0, :]

    def generate(
        self, params: Tree, find: Find, items: Sequence[Array], context: Array | None = None
    ) -> tuple[Array, ...]:
        """Find the entries of sequences one after the other, each given what the network makes of those before it.

        Args:
            params: the weights and constants.
            find: a function ``find(raw, *entries)`` of the numbers for an entry, ``(num_outputs, ...)``, and of the
                entry of each item, ``(...)``. It returns a tuple of arrays ``(...)``, of which the first is the entry
                found.
            items: one or more arrays ``(..., C, L)``: what the search for each entry is given, such as random
                numbers.
            context: as for the network.

        Returns:
            For each array that ``find`` returns the array ``(..., C, L)`` of them all. Each of the C L steps computes
            one place in each layer: together about the work of C passes of the network.
        """
        layers, added = self._prepared(params, context), self._of_image(params, items[0], context, "across")
        zero = self._zero(layers, [item[..., None, :] for item in items], added)
        added = [array[..., 0, :] for array in added]
        return self._find_row(as_matrices(layers), find, items, added, zero, params["channel"])
