"""The split of a multi-scale flow: some channels are mapped on, the others are noise already."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import Tree, replace
from flowppl.bijections.contract import REAL_LINE, Bijection, added, check_bijection, check_event, slowest
from flowppl.checks import as_image_shape, assign


@dataclasses.dataclass(frozen=True)
class FactorOut(Bijection):
    r"""A bijection f of the first channels of an image; the other channels leave the flow here.

    With the first K channels :math:`x_A`, as many as f maps, and the others :math:`x_B`,

    .. math::
        y = g\big(f(x_A),\; x_B\big), \qquad \log|\det| = \log|\det f'(x_A)| + \log|\det g'| .

    Seen from the data, where a flow is an encoder, :math:`y_B` becomes noise at once, and only :math:`y_A` goes
    through the layers of f: half of the work, and a loss that reaches the early layers directly. Noise has the shape of
    the image all the same, so a base distribution needs to know nothing of it.

    ``prior`` is the bijection g of the whole image; without one it is the identity, and what leaves is standard
    normal, whatever stays. A coupling that leaves the first K channels as they are, and maps the others by what they
    say, models what leaves given what stays: ``ImageCoupling(shape)`` if K is half of the channels, which with
    :class:`~flowppl.Affine` is a normal distribution with a mean and a scale for each number, as in Glow.

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
        >>> import numpy as np, flowppl as fp
        >>> layer = fp.FactorOut((2, 1, 1), fp.Elementwise((1, 1, 1), fp.Shift()))
        >>> y, _ = layer.forward({"bijection": {"raw": np.full((1, 1, 1, 1), 5.0)}}, np.zeros((2, 1, 1)))
        >>> y.ravel()
        array([5., 0.])
    """

    shape: Sequence[int]
    bijection: Bijection
    prior: Bijection | None = None

    def __post_init__(self):
        check_bijection(self.bijection)
        assign(self, shape=as_image_shape("FactorOut", self.shape))
        channels, *size = self.shape
        found, kind = self.bijection.x_shape, type(self.bijection).__name__
        if len(found) != 3 or found != self.bijection.y_shape or list(found[1:]) != size or found[0] >= channels:
            raise ValueError(
                f"FactorOut: bijection must map images of less than {channels} channels and of the size {tuple(size)} "
                f"of shape={self.shape} to such, but {kind} maps events of shape {found} to {self.bijection.y_shape}"
            )
        if self.prior is not None:
            check_bijection(self.prior)
            if (self.prior.x_shape, self.prior.y_shape) != (self.shape, self.shape):
                raise ValueError(
                    f"FactorOut: prior must map images of shape={self.shape} to such, but {type(self.prior).__name__} "
                    f"maps events of shape {self.prior.x_shape} to {self.prior.y_shape}"
                )
        for part in self._parts:
            if {part.x_support, part.y_support} != {REAL_LINE}:
                raise ValueError(
                    f"FactorOut: bijection and prior must map real numbers to real numbers, but {type(part).__name__} "
                    f"maps {part.x_support} to {part.y_support}; bound the values by a last layer of the flow"
                )
        sizes = {part.context_dim for part in self._parts} - {0}
        if len(sizes) > 1:
            raise ValueError(f"FactorOut: bijection and prior must take the same context, got sizes {sorted(sizes)}")

    @property
    def _parts(self) -> tuple[Bijection, ...]:
        return (self.bijection,) if self.prior is None else (self.bijection, self.prior)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return max(part.context_dim for part in self._parts)

    @property
    def forward_cost(self) -> str:
        return slowest(part.forward_cost for part in self._parts)

    @property
    def inverse_cost(self) -> str:
        return slowest(part.inverse_cost for part in self._parts)

    def parameters(self) -> Tree:
        return self._named(lambda part: part.parameters())

    def constants(self) -> Tree:
        return self._named(lambda part: part.constants())

    def _named(self, tree_of):
        trees = {"bijection": tree_of(self.bijection), "prior": tree_of(self.prior) if self.prior else {}}
        return {name: tree for name, tree in trees.items() if tree}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        y, total = self._map(self.bijection.forward, params, x, context)
        if self.prior is None:
            return y, total
        y, log_det = self.prior.forward(params.get("prior", {}), y, context if self.prior.context_dim else None)
        return y, total + log_det

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        if self.prior is None:
            return self._map(self.bijection.inverse, params, y, context)
        y, total = self.prior.inverse(params.get("prior", {}), y, context if self.prior.context_dim else None)
        x, log_det = self._map(self.bijection.inverse, params, y, context)
        return x, total + log_det

    def pull_back(self, direction, params, image, cotangents, context=None):
        of_params: Tree = {}
        of_image, of_context = cotangents[0], None
        names = ["bijection", "prior"] if direction == "inverse" else ["prior", "bijection"]
        for name in names:
            part, own = getattr(self, name), params.get(name, {})
            if part is None:
                continue
            given, num = context if part.context_dim else None, part.x_shape[0]
            kept, of_kept = image[..., :num, :, :], of_image[..., :num, :, :]
            kept, of_own, of_kept, found = part.pull_back(direction, own, kept, (of_kept, cotangents[1]), given)
            image = join_channels(kept, image[..., num:, :, :])
            of_image = join_channels(of_kept, of_image[..., num:, :, :])
            of_params |= {name: of_own} if name in params else {}
            of_context = added(of_context, found)
        return image, of_params, of_image, of_context

    def init_from(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        new: Tree = {}
        if self.prior is not None:
            own, given = params.get("prior", {}), context if self.prior.context_dim else None
            new["prior"] = self.prior.init_from(own, y, given)
            y, _ = self.prior.inverse(replace(own, new["prior"]), y, given)
        own, given = params.get("bijection", {}), context if self.bijection.context_dim else None
        new["bijection"] = self.bijection.init_from(own, y[..., : self._num_kept, :, :], given)
        return {name: tree for name, tree in new.items() if tree}

    @property
    def _num_kept(self) -> int:
        return self.bijection.x_shape[0]

    def _map(self, direction, params, event, context):
        given = context if self.bijection.context_dim else None
        kept, log_det = direction(params.get("bijection", {}), event[..., : self._num_kept, :, :], given)
        return join_channels(kept, event[..., self._num_kept :, :, :]), log_det


def join_channels(*images):
    """Images whose batch axes broadcast, with the channels of one behind those of the other."""
    shapes = {image.shape[:-3] for image in images}
    if len(shapes) > 1:
        batch = namespace(images[0]).broadcast_shapes(*shapes)
        images = tuple(namespace(image).broadcast_to(image, (*batch, *image.shape[-3:])) for image in images)
    return namespace(images[0]).concat(images, axis=-3)
