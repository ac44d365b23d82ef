"""Coupling layers of images, whose networks see the other part as an image."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import OTHER, Bijection, check_event
from flowppl.bijections.image.factor_out import join_channels
from flowppl.checks import as_image_shape, assign, derived
from flowppl.networks import ConvNet, Network, NetworkLike, bind_network, read_network
from flowppl.univariate.base import Affine, Univariate, check_univariate

MASKS = ("channel", "checkerboard")


@dataclasses.dataclass(frozen=True)
class ImageCoupling(Bijection):
    r"""A coupling layer of images over any univariate map :math:`\tau`.

    Part A of the numbers of an image stays as it is, and a network g makes of it the parameters of the map of every
    number of the other part B:

    .. math::
        y_A = x_A, \qquad y_B = \tau\big(x_B;\, g(x_A, \mathrm{context})\big), \qquad
        \log|\det| = \sum_{i \in B} \log \tau'(x_i) .

    With ``mask="channel"`` A are the first ``C // 2`` channels, and g sees them as an image of so many channels; with
    ``flip=True`` A are the others. With ``mask="checkerboard"`` A are the pixels (h, w) with even h + w, in all
    channels, or with ``flip=True`` those with odd h + w; g sees the whole image, with zeros at B. Both directions
    are one pass, if those of :math:`\tau` are.

    Args:
        shape: the shape (C, H, W) of an image.
        univariate: the map of each number of B.
        mask: ``"channel"`` or ``"checkerboard"``.
        flip: whether the two parts are exchanged.
        network: a network of your own instead of the default :class:`~flowppl.ConvNet`: one that follows the protocol
            of :mod:`flowppl.networks`, or a module, as for :class:`~flowppl.Coupling`. Of images (channels it sees, H,
            W) it gives images (``univariate.num_raw`` times the channels of B, H, W): first the first raw number of all
            channels, then the second, and so on; in a checkerboard all C channels are of B, and what it gives at A goes
            unused. ``hidden_channels`` and ``num_blocks`` then go unused.
        hidden_channels: the number of channels within the default network.
        num_blocks: its number of gated residual blocks.
        context_dim: the size of the context, 0 for none.

    Raises:
        TypeError: for a ``univariate`` or a ``network`` that is none.
        ValueError: for a shape that is none of an image or cannot be split, or an unknown mask; when it maps, for a
            network that gives an image of another shape.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803, section 3.4. Ho, Chen,
        Srinivas, Duan, Abbeel: Flow++, 2019, arXiv 1902.00275.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> layer = fp.ImageCoupling((1, 2, 2), fp.Shift(), mask="checkerboard", hidden_channels=4, num_blocks=0)
        >>> layer.constants()["mask"].astype(int)
        array([[1, 0],
               [0, 1]])
    """

    shape: Sequence[int]
    univariate: Univariate = Affine()
    mask: str = "channel"
    flip: bool = False
    network: NetworkLike | None = None
    hidden_channels: int = 32
    num_blocks: int = 2
    context_dim: int = 0
    _network: Network = derived()
    _num_first: int = derived()  # of a channel mask: the channels before the cut

    def __post_init__(self):
        assign(self, shape=as_image_shape("ImageCoupling", self.shape))
        check_univariate("ImageCoupling", self.univariate, at_least=1)
        channels, height, width = self.shape
        if self.mask not in MASKS:
            raise ValueError(f"ImageCoupling: mask must be one of {', '.join(map(repr, MASKS))}, got {self.mask!r}")
        if not isinstance(self.flip, bool):
            raise ValueError(f"ImageCoupling: flip must be True or False, got {self.flip!r}")
        if self.mask == "channel" and channels == 1:
            raise ValueError(
                f"ImageCoupling: the one channel of shape={self.shape} cannot be split; use mask='checkerboard', or "
                "Squeeze the images first"
            )
        if self.mask == "checkerboard" and height * width == 1:
            raise ValueError(f"ImageCoupling: the one pixel of shape={self.shape} cannot be split; use mask='channel'")
        assign(self, _num_first=channels // 2)
        seen = channels if self.mask == "checkerboard" else channels - self._num_mapped
        seen = seen if self._period is None else 2 * seen
        num_raw, network = self.univariate.num_raw * self._num_mapped, read_network("ImageCoupling", self.network)
        if network is None:
            inner: Network = ConvNet(seen, num_raw, self.hidden_channels, self.num_blocks, context_dim=self.context_dim)
        else:
            shapes = (seen, height, width), (num_raw, height, width)
            inner = bind_network("ImageCoupling", network, *shapes, self.context_dim)
        assign(self, network=network, _network=inner)

    @property
    def _num_mapped(self) -> int:
        """The channels that are mapped, all or in part."""
        channels = self.shape[0]
        return channels if self.mask == "checkerboard" else self._num_first if self.flip else channels - self._num_first

    @property
    def _period(self) -> float | None:
        return getattr(self.univariate, "period", None)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return tuple(self.shape)

    @property
    def inverse_cost(self) -> str:
        return getattr(self.univariate, "inverse_cost", "parallel")

    def parameters(self) -> Tree:
        return {"network": self._network.parameters()}

    def constants(self) -> Tree:
        constants: Tree = {"network": self._network.constants()}
        if self.mask == "checkerboard":
            _, height, width = self.shape
            constants["mask"] = (np.arange(height)[:, None] + np.arange(width)) % 2 == int(self.flip)
        return constants

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self._map(self.univariate.forward, params, x, context)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self._map(self.univariate.inverse, params, y, context)

    def pull_back(self, direction, params, image, cotangents, context=None):
        # The network sees the same on both sides, so it is run once.
        xp, (of_image, of_log_det) = namespace(image), cotangents
        seen, mapped = self._split(image)
        (raw,), pull_raw = xp.pullback(lambda *given: (self._raw(*given),), params, seen, context)
        mapped, _ = getattr(self.univariate, OTHER[direction])(raw, mapped)
        (_, log_slope), pull = xp.pullback(getattr(self.univariate, direction), raw, mapped)
        of_seen, of_mapped = self._split(of_image)
        of_slope = xp.broadcast_to(of_log_det[..., None, None, None], log_slope.shape)
        if self.mask == "checkerboard":
            stays, nothing = params["mask"], xp.zeros_like(image)
            of_mapped, of_slope = xp.where(stays, nothing, of_mapped), xp.where(stays, nothing, of_slope)
            of_raw, of_mapped = pull(of_mapped, of_slope)
            of_params, more, of_context = pull_raw(of_raw)
            event = xp.where(stays, image, mapped)
            return event, of_params, xp.where(stays, of_seen, of_mapped) + more, of_context
        of_raw, of_mapped = pull(of_mapped, of_slope)
        of_params, more, of_context = pull_raw(of_raw)
        return self._joined(seen, mapped), of_params, self._joined(of_seen + more, of_mapped), of_context

    def _split(self, event):
        """What the network sees, and what is mapped; of a checkerboard both are all, and the network masks it."""
        if self.mask == "checkerboard":
            return event, event
        first, second = event[..., : self._num_first, :, :], event[..., self._num_first :, :, :]
        return (second, first) if self.flip else (first, second)

    def _joined(self, fixed, mapped):
        return join_channels(mapped, fixed) if self.flip else join_channels(fixed, mapped)

    def _map(self, univariate, params, event, context):
        xp = namespace(event)
        if self.mask == "checkerboard":
            stays = params["mask"]
            raw = self._raw(params, event, context)
            mapped, log_slope = univariate(raw, event)
            log_slope = xp.where(stays, xp.zeros_like(log_slope), log_slope)
            return xp.where(stays, event, mapped), xp.sum(log_slope, axis=(-3, -2, -1))
        fixed, mapped = self._split(event)
        mapped, log_slope = univariate(self._raw(params, fixed, context), mapped)
        return self._joined(fixed, mapped), xp.sum(log_slope, axis=(-3, -2, -1))

    def _raw(self, params, seen, context):
        """The parameters of the univariate map of each mapped number, of an image of what stays."""
        xp = namespace(seen)
        if self._period is not None:
            angle = seen * (2 * math.pi / self._period)
            seen = xp.concat([xp.cos(angle), xp.sin(angle)], axis=-3)
        if self.mask == "checkerboard":
            seen = xp.where(params["mask"], seen, xp.zeros_like(seen))
        output, num_raw = self._network(params["network"], seen, context), self.univariate.num_raw
        expected = (num_raw * self._num_mapped, *self.shape[1:])
        if tuple(output.shape[-3:]) != expected:
            raise ValueError(
                f"ImageCoupling: network must give {num_raw} numbers for each number of {self._num_mapped} channels, "
                f"images of shape {expected} in all, got shape {tuple(output.shape)}"
            )
        raw = xp.reshape(output, (*output.shape[:-3], num_raw, self._num_mapped, *expected[1:]))
        return xp.moveaxis(raw, -4, 0)
