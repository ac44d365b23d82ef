"""Transformers: networks of images and sequences whose pixels attend to each other, or to those before them."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.checks import assign, check_sizes
from flowppl.declare import Constant, Normal, Parameter, Uniform
from flowppl.networks.causal import Find
from flowppl.networks.convolution import as_sizes
from flowppl.networks.protocol import check_activation

EXPANSION = 4  # how many times as wide as the tokens the layer within the perceptron of a block is


def _matrix(fan_in: int, fan_out: int, zero: bool = False) -> Parameter:
    return Parameter((fan_in, fan_out), Constant(0.0) if zero else Uniform((3 / fan_in) ** 0.5))  # keeps the variance


def _layer(fan_in: int, fan_out: int, zero: bool = False) -> Tree:
    return {"weight": _matrix(fan_in, fan_out, zero), "bias": Parameter((fan_out,))}


def _norm(width: int) -> Tree:
    return {"scale": Parameter((width,), Constant(1.0)), "bias": Parameter((width,))}


def _dense(layer: Tree, tokens: Array) -> Array:
    """A dense layer of each token; its weights may have batch axes."""
    xp, weight, bias = namespace(tokens), layer["weight"], layer["bias"]
    if weight.ndim == 2 and bias.ndim == 1:
        return xp.linear(tokens, weight, bias)
    return xp.matmul(tokens, weight) + bias[..., None, :]


def _normed(layer: Tree, tokens: Array) -> Array:
    """Tokens of mean 0 and variance 1, scaled and moved."""
    xp = namespace(tokens)
    centred = tokens - xp.mean(tokens, axis=-1, keepdims=True)
    normed = centred / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + 1e-5)
    return normed * layer["scale"][..., None, :] + layer["bias"][..., None, :]


class _Transformer:
    """What both transformers share: the embedding, the blocks, and the last layer."""

    in_channels: int
    size: Any
    hidden_dim: int
    num_blocks: int
    num_heads: int
    context_dim: int
    activation: str
    context_shape = None  # as an image, as other networks of images may take it

    def _check(self) -> None:
        owner = type(self).__name__
        sizes = (self.size,) if isinstance(self.size, numbers.Integral) else self.size
        assign(self, size=as_sizes(owner, None, size=sizes))
        if len(self.size) not in (1, 2):
            raise ValueError(f"{owner}: size must be (height, width), or a length, got {self.size}")
        check_sizes(owner, in_channels=self.in_channels, hidden_dim=self.hidden_dim, num_heads=self.num_heads)
        check_sizes(owner, at_least=0, num_blocks=self.num_blocks, context_dim=self.context_dim)
        check_activation(owner, self.activation)
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"{owner}: num_heads must divide hidden_dim={self.hidden_dim}, got {self.num_heads}")

    @property
    def _num_tokens(self) -> int:
        return math.prod(self.size)

    @property
    def _num_axes(self) -> int:
        return len(self.size) + 1

    def _declare(self, out_channels: int) -> Tree:
        width = self.hidden_dim
        layers: Tree = {"enter": _layer(self.in_channels, width)}
        if self.context_dim:
            layers["context"] = _layer(self.context_dim, width)
        layers["position"] = Parameter((self._num_tokens, width), Normal(0.01))
        for i in range(self.num_blocks):
            layers[str(i)] = {
                "attention": {"norm": _norm(width), "make": _matrix(width, 3 * width), "mix": _layer(width, width)},
                "perceptron": {
                    "norm": _norm(width),
                    "up": _layer(width, EXPANSION * width),
                    "down": _layer(EXPANSION * width, width),
                },
            }
        return layers | {"norm": _norm(width), "last": _layer(width, out_channels, zero=True)}

    def _added(self, params: Tree, context: Array | None) -> Array:
        """What is added to the embedding of each token: its position, and the context."""
        position = params["position"]
        if context is None:
            return position
        return position + _dense(params["context"], context[..., None, :])

    def _blocks(self, params: Tree, tokens: Array, attend: Callable[[int, list[Array]], Array]) -> Array:
        """The output for each token; ``attend`` mixes the values of a block, given its queries, keys and values."""
        xp = namespace(tokens)
        activate = getattr(xp, self.activation)
        for i in range(self.num_blocks):
            attention, perceptron = params[str(i)]["attention"], params[str(i)]["perceptron"]
            made = self._by_heads(xp.matmul(_normed(attention["norm"], tokens), attention["make"]))
            tokens = tokens + _dense(attention["mix"], self._joined(attend(i, made)))
            inner = activate(_dense(perceptron["up"], _normed(perceptron["norm"], tokens)))
            tokens = tokens + _dense(perceptron["down"], inner)
        return _dense(params["last"], _normed(params["norm"], tokens))

    def _by_heads(self, made: Array) -> list[Array]:
        """Queries, keys and values, each of shape ``(..., heads, tokens, d)``."""
        xp = namespace(made)
        made = xp.reshape(made, (*made.shape[:-1], 3, self.num_heads, self.hidden_dim // self.num_heads))
        made = xp.moveaxis(made, -4, -2)
        return [made[..., i, :, :, :] for i in range(3)]

    def _joined(self, mixed: Array) -> Array:
        xp = namespace(mixed)
        mixed = xp.moveaxis(mixed, -3, -2)
        return xp.reshape(mixed, (*mixed.shape[:-2], self.hidden_dim))

    def _as_tokens(self, x: Array) -> Array:
        """An image, or a sequence, as tokens ``(..., N, C)``."""
        shape, num_axes = (self.in_channels, *self.size), self._num_axes
        if tuple(x.shape[-num_axes:]) != shape:
            raise ValueError(
                f"{type(self).__name__}: expected events of shape {shape}, as in_channels and size say, got shape "
                f"{tuple(x.shape)}"
            )
        xp = namespace(x)
        return xp.matrix_transpose(xp.reshape(x, (*x.shape[:-num_axes], self.in_channels, self._num_tokens)))

    def _as_image(self, tokens: Array) -> Array:
        xp = namespace(tokens)
        return xp.reshape(xp.matrix_transpose(tokens), (*tokens.shape[:-2], tokens.shape[-1], *self.size))


def _attend(made: list[Array], seen: Array | None = None) -> Array:
    """The values, weighed for each query by how it fits their keys; of all tokens, or of those that it has ``seen``."""
    query, key, value = made
    xp = namespace(query)
    scores = xp.matmul(query / math.sqrt(query.shape[-1]), xp.matrix_transpose(key))
    if seen is not None:
        scores = xp.where(seen, scores, xp.full_like(scores, -math.inf))
    return xp.matmul(xp.softmax(scores, axis=-1), value)


@dataclasses.dataclass(frozen=True)
class Transformer(_Transformer):
    r"""A transformer: of an image (C, H, W) it makes another one, (O, H, W), each pixel of which sees all others.

    Each of the N pixels is a *token*: its C numbers become n by a dense layer, n being ``hidden_dim``, and a trained
    array, the position, is added, and what a dense layer makes of the context. Blocks map the tokens h, N rows of n
    numbers, one after the other:

    .. math::
        h \leftarrow h + \mathrm{softmax}\Big(\frac{Q K^\top}{\sqrt d}\Big) V\, W_o, \qquad
        (Q, K, V) = \mathrm{norm}(h)\, W, \\
        h \leftarrow h + \sigma\big(\mathrm{norm}(h)\, W_1\big) W_2 .

    Here norm brings each token to mean 0 and variance 1, and then scales and moves it, the softmax is over the tokens
    that are attended to, :math:`\sigma` is the activation, and W_1 makes 4 n numbers; all but W have biases. The first
    line is done by each head with its share of d = n / num_heads columns of Q, K and V. The last layer, of the norm of
    h, starts at zero. Memory and time grow with the square of N.

    For images of more than a hundred pixels let a :class:`~flowppl.Squeeze` make patches of them first: a pixel of
    (C f^2, H/f, W/f) is a patch of f x f pixels. Choose it for much data and relations between pixels that lie far
    apart; of few data a :class:`~flowppl.ConvNet` learns sooner.

    Args:
        in_channels: the number of channels C of the input.
        out_channels: the number of channels O of the output.
        size: (H, W); or the length of sequences (C, L).
        hidden_dim: the numbers n of a token.
        num_blocks: the number of blocks; may be 0.
        num_heads: the number of heads, which divides ``hidden_dim``.
        context_dim: the size of the context, a vector; 0 for none.
        activation: one of elu, relu, silu, softplus, tanh.

    Raises:
        ValueError: for a size that is not a positive integer, an unknown activation, heads that do not divide
            ``hidden_dim``; when it maps, for an event of another shape.

    References:
        Kolesnikov, Pinto, Tschannen: Jet: A Modern Transformer-Based Normalizing Flow, 2024, arXiv 2412.15129, whose
        couplings have such networks. Vaswani et al.: Attention Is All You Need, 2017, arXiv 1706.03762. Dosovitskiy et
        al.: An Image is Worth 16x16 Words, 2020, arXiv 2010.11929.

    Example:
        >>> import flowppl as fp
        >>> network = fp.Transformer(2, 4, size=(4, 4), hidden_dim=8, num_heads=2)
        >>> layer = fp.ImageCoupling((4, 4, 4), network=network)
        >>> layer.forward_cost, layer.inverse_cost
        ('parallel', 'parallel')
    """

    in_channels: int
    out_channels: int
    size: int | Sequence[int]
    hidden_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    context_dim: int = 0
    activation: str = "silu"

    def __post_init__(self):
        self._check()
        check_sizes("Transformer", out_channels=self.out_channels)

    def parameters(self) -> Tree:
        return self._declare(self.out_channels)

    def constants(self) -> Tree:
        return {}

    def __call__(self, params, x, context=None):
        tokens = _dense(params["enter"], self._as_tokens(x)) + self._added(params, context)
        return self._as_image(self._blocks(params, tokens, lambda _, made: _attend(made)))


@dataclasses.dataclass(frozen=True)
class CausalTransformer(_Transformer):
    r"""A transformer whose output for a pixel depends on the pixels before it only.

    It is :class:`~flowppl.Transformer` with two changes. The embedding of each pixel stands in the place of the next
    one, and a trained vector in that of the first; and a token attends to itself and to those before it. So
    the numbers for a pixel, ``num_outputs`` for each of its C channels, depend on all pixels before it, in the order of
    rows and then columns, and neither on itself nor on later ones: its channels do not see each other. Of few data a
    :class:`~flowppl.PixelConvNet` or :class:`~flowppl.CausalConv1d` learns sooner.

    Args:
        in_channels: the number of channels C.
        num_outputs: how many numbers each entry gets. The output has so many blocks of C channels.
        size: (H, W); or the length of sequences (C, L).
        hidden_dim: the numbers of a token.
        num_blocks: the number of blocks; may be 0.
        num_heads: the number of heads, which divides ``hidden_dim``.
        context_dim: the size of the context, a vector; 0 for none.
        activation: one of elu, relu, silu, softplus, tanh.

    Raises:
        ValueError: for a size that is not a positive integer, an unknown activation, heads that do not divide
            ``hidden_dim``; when it maps, for an event of another shape.

    References:
        Zhai et al.: Normalizing Flows are Capable Generative Models (TarFlow), 2024, arXiv 2412.06329, where the
        numbers for the first pixel are zero, and not learned.

    Example:
        >>> import flowppl as fp
        >>> network = fp.CausalTransformer(4, 2, size=(4, 4), hidden_dim=8, num_heads=2)
        >>> maf = fp.Invert(fp.ImageAutoregressive((4, 4, 4), network=network))
        >>> maf.forward_cost, maf.inverse_cost
        ('sequential', 'parallel')
    """

    in_channels: int
    num_outputs: int
    size: int | Sequence[int]
    hidden_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 4
    context_dim: int = 0
    activation: str = "silu"

    def __post_init__(self):
        self._check()
        check_sizes("CausalTransformer", num_outputs=self.num_outputs)

    def parameters(self) -> Tree:
        return self._declare(self.num_outputs * self.in_channels) | {"start": Parameter((self.hidden_dim,))}

    def constants(self) -> Tree:
        num = self._num_tokens
        return {"seen": np.tri(num, dtype=bool), "here": np.eye(num, dtype=bool)}

    def __call__(self, params, x, context=None):
        xp = namespace(x)
        entered = _dense(params["enter"], self._as_tokens(x))
        start = params["start"][..., None, :]
        batch = xp.broadcast_shapes(start.shape[:-2], entered.shape[:-2])
        start, before = (xp.broadcast_to(part, (*batch, *part.shape[-2:])) for part in (start, entered[..., :-1, :]))
        tokens = xp.concat([start, before], axis=-2) + self._added(params, context)
        return self._as_image(self._blocks(params, tokens, lambda _, made: _attend(made, params["seen"])))

    def generate(
        self, params: Tree, find: Find, items: Sequence[Array], context: Array | None = None
    ) -> tuple[Array, ...]:
        """Find the pixels of images one after the other, each given what the network makes of those before it.

        Args:
            params: the weights and constants.
            find: a function ``find(raw, *entries)`` of the numbers for a pixel, ``(num_outputs, ..., C)``, and of the
                pixel of each item, ``(..., C)``. It returns a tuple of arrays ``(..., C)``, of which the first is the
                pixel found.
            items: one or more arrays ``(..., C, H, W)``: what the search for each pixel is given, such as random
                numbers.
            context: as for the network.

        Returns:
            For each array that ``find`` returns the array ``(..., C, H, W)`` of them all. Keys and values of pixels
            that were found are kept, so that the N steps are together about the work of two passes of the network.
        """
        xp, width, num = namespace(items[0]), self.hidden_dim, self._num_tokens
        shaped = self(params, items[0], context)  # tells the batch axes and the dtype, of whichever weights have them
        num_axes = self._num_axes
        batch = xp.broadcast_shapes(*(array.shape[:-num_axes] for array in (shaped, *items)))
        dtype = xp.result_type(shaped, *items)
        zeros = xp.zeros_like(xp.astype(items[0][(..., *(0,) * num_axes)], dtype))

        def filled(*shape: int) -> Array:
            wide = xp.reshape(zeros, (*zeros.shape, *(1,) * len(shape)))
            return xp.broadcast_to(wide, (*batch, *shape))

        added = xp.moveaxis(self._added(params, context), -2, 0)
        start, heads = params["start"], (self.num_heads, num, width // self.num_heads)

        def find_pixel(_, carry, here, seen, added, *entries):
            kept = carry[1:]
            own = _dense(params["enter"], carry[0][..., None, :])
            token = xp.where(here[0], start[..., None, :], own) + added[..., None, :]

            def attend(i, made):
                query, *new = made
                for j, part in enumerate(new, start=2 * i):
                    kept[j] = xp.where(here[:, None], part, kept[j])
                return _attend([query, *kept[2 * i : 2 * i + 2]], seen)

            output = self._blocks(params, token, attend)[..., 0, :]
            raw = xp.reshape(output, (*output.shape[:-1], self.num_outputs, self.in_channels))
            found = find(xp.moveaxis(raw, -2, 0), *entries)
            found = tuple(xp.astype(xp.broadcast_to(part, (*batch, self.in_channels)), dtype) for part in found)
            return [found[0], *kept], found

        carry = [filled(self.in_channels), *(filled(*heads) for _ in range(2 * self.num_blocks))]
        entries = (xp.moveaxis(self._as_tokens(item), -2, 0) for item in items)
        _, found = xp.collect(num, find_pixel, carry, params["here"], params["seen"], added, *entries)
        return tuple(self._as_image(xp.moveaxis(part, 0, -2)) for part in found)
