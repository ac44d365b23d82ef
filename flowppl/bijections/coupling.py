"""Coupling layers: one part of the event decides how the other part is mapped."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import OTHER, Bijection, check_event
from flowppl.checks import assign, check_sizes, derived
from flowppl.networks import MLP, Network, NetworkLike, as_dims, bind_network, read_network, split_raw
from flowppl.univariate.base import Affine, Univariate, check_univariate


@dataclasses.dataclass(frozen=True)
class Coupling(Bijection):
    r"""A coupling layer over any univariate map :math:`\tau`.

    The event is split in two. The first part stays as it is, and a network makes of it the parameters of the
    map of every coordinate of the second:

    .. math::
        y_A = x_A, \qquad y_B = \tau\big(x_B;\, g(x_A, \mathrm{context})\big).

    Both directions are one pass. With :class:`~flowppl.Shift` this is the layer of NICE, with
    :class:`~flowppl.Affine` that of RealNVP. With ``dim=1`` there is no first part: the coordinate is mapped by
    parameters that depend on the context alone.

    Args:
        dim: the number of coordinates.
        univariate: the map of each coordinate of the second part.
        hidden_dims: the widths of the network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: the network's activation: elu, relu, silu, softplus or tanh.
        mask: for each coordinate, whether it stays as it is. ``None`` means the first ``dim // 2``; ``"alternating"``
            means every other one, from the second.
        network: a network of your own instead of the default perceptron. It takes the coordinates that stay (their
            cosines and then their sines, if the map is on a circle) and gives ``univariate.num_raw`` blocks, each as
            long as the second part. It follows the protocol of :mod:`flowppl.networks`, or is a module: of
            ``torch.nn`` in Pyro, as ``flowppl.pyro.ModuleNetwork`` takes it, of ``flax.nnx`` in NumPyro, as
            ``flowppl.numpyro.ModuleNetwork`` does. ``hidden_dims`` and ``activation`` then go unused.

    Raises:
        TypeError: for a ``univariate`` or a ``network`` that is none.
        ValueError: for a dimension below 1, a mask of the wrong length or without a coordinate to map, or a mask for
            ``dim=1``, which cannot be split; for a module that does not map to what the layer needs, or keeps a state.

    References:
        Dinh, Krueger, Bengio: NICE, 2014, arXiv 1410.8516. Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real
        NVP, 2016, arXiv 1605.08803.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> layer = fp.Coupling(2, fp.Shift(), hidden_dims=())
        >>> linear = {"weight": np.array([[3.0]]), "bias": np.array([1.0])}
        >>> y, log_det = layer.forward({"network": {"0": linear}}, np.array([2.0, 10.0]))
        >>> y, float(log_det)
        (array([ 2., 17.]), 0.0)
    """

    dim: int
    univariate: Univariate = Affine()
    hidden_dims: int | Sequence[int] = (64, 64)
    context_dim: int = 0
    activation: str = "silu"
    mask: Sequence[bool] | str | None = None
    network: NetworkLike | None = None
    _network: Network = derived()
    _fixed: tuple[bool, ...] = derived()
    _num_fixed: int = derived()
    _layout: str = derived()  # where the fixed part lies: a slice where possible, since that is cheaper than a gather

    def __post_init__(self):
        check_sizes("Coupling", dim=self.dim)
        check_univariate("Coupling", self.univariate, at_least=1)
        network, fixed = read_network("Coupling", self.network), self._read_mask()
        num_fixed, hidden_dims = sum(fixed), as_dims("Coupling", self.hidden_dims)
        num_raw = self.univariate.num_raw * (self.dim - num_fixed)
        num_seen = num_fixed if self._period is None else 2 * num_fixed
        if network is None:
            inner: Network = MLP(num_seen, num_raw, hidden_dims, self.context_dim, self.activation)
        else:
            inner = bind_network("Coupling", network, (num_seen,), (num_raw,), self.context_dim)
        assign(
            self,
            network=network,
            mask=self.mask if self.mask is None or self.mask == "alternating" else fixed,
            hidden_dims=hidden_dims,
            _network=inner,
            _fixed=fixed,
            _num_fixed=num_fixed,
            _layout="front" if all(fixed[:num_fixed]) else "mixed" if any(fixed[:-num_fixed]) else "back",
        )

    def _read_mask(self) -> tuple[bool, ...]:
        if self.mask is None:
            return tuple(i < self.dim // 2 for i in range(self.dim))
        if self.dim == 1:
            raise ValueError("Coupling: dim=1 cannot be split; leave mask out, and the context alone decides")
        if isinstance(self.mask, str):
            if self.mask != "alternating":
                raise ValueError(f'Coupling: mask must be "alternating" or one bool per coordinate, got {self.mask!r}')
            return tuple(i % 2 == 1 for i in range(self.dim))
        if any(stays not in (0, 1) for stays in self.mask):
            raise ValueError(f"Coupling: mask must have one bool per coordinate, got {self.mask!r}")
        fixed = tuple(bool(stays) for stays in self.mask)
        if len(fixed) != self.dim:
            raise ValueError(f"Coupling: mask must have dim={self.dim} entries, got {len(fixed)}")
        if all(fixed):
            raise ValueError("Coupling: mask leaves no coordinate to map; at least one entry must be False")
        return fixed

    @property
    def _period(self) -> float | None:
        return getattr(self.univariate, "period", None)

    @property
    def inverse_cost(self) -> str:
        return getattr(self.univariate, "inverse_cost", "parallel")

    def parameters(self) -> Tree:
        return {"network": self._network.parameters()}

    def constants(self) -> Tree:
        constants: Tree = {"network": self._network.constants()}
        if self._layout == "mixed":
            order = np.argsort(~np.asarray(self._fixed), stable=True)  # the fixed part first
            constants |= {"order": order, "position": np.argsort(order)}
        return constants

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self._map(self.univariate.forward, params, x, context)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self._map(self.univariate.inverse, params, y, context)

    def push_score(self, params, x, score, context=None):
        check_event(self, x, self.x_shape, context)
        xp, (fixed, mapped) = namespace(x), self._split(params, x)
        (raw,), pull_raw = xp.vjp(lambda fixed: (self._raw(params, fixed, context),), fixed)
        if raw.shape[1:-1] != x.shape[:-1] or score.shape != x.shape:  # batch axes of the context or the weights
            return super().push_score(params, x, score, context)
        # With J = (I, 0; A, diag(slope)) the score of the mapped part comes first, and A' times it is a pullback.
        of_fixed, of_mapped = self._split(params, xp.stop_gradient(score))
        (mapped, log_slope), pull = xp.vjp(self.univariate.forward, raw, mapped)
        one, zero = xp.ones_like(log_slope), xp.zeros_like(mapped)
        new = (of_mapped - pull(zero, one)[1]) * xp.exp(-xp.stop_gradient(log_slope))
        rest = of_fixed - pull_raw(pull(new, one)[0])[0]
        return self._joined(params, fixed, mapped), xp.sum(log_slope, axis=-1), self._joined(params, rest, new)

    def pull_back(self, direction, params, image, cotangents, context=None):
        # The network sees the same on both sides, so it is run once.
        xp, (fixed, mapped) = namespace(image), self._split(params, image)
        (raw,), pull_raw = xp.pullback(lambda *given: (self._raw(*given),), params, fixed, context)
        mapped, _ = getattr(self.univariate, OTHER[direction])(raw, mapped)
        (_, log_slope), pull = xp.pullback(getattr(self.univariate, direction), raw, mapped)
        of_fixed, of_mapped = self._split(params, cotangents[0])
        of_raw, of_mapped = pull(of_mapped, xp.broadcast_to(cotangents[1][..., None], log_slope.shape))
        of_params, more, of_context = pull_raw(of_raw)
        event = self._joined(params, fixed, mapped)
        return event, of_params, self._joined(params, of_fixed + more, of_mapped), of_context

    def _map(self, univariate, params, event, context):
        xp, (fixed, mapped) = namespace(event), self._split(params, event)
        mapped, log_slope = univariate(self._raw(params, fixed, context), mapped)
        if mapped.ndim > 1 and mapped.shape[:-1] != fixed.shape[:-1]:  # batch axes of the context or the weights
            fixed = xp.broadcast_to(fixed, (*mapped.shape[:-1], self._num_fixed))
        return self._joined(params, fixed, mapped), xp.sum(log_slope, axis=-1)

    def _split(self, params, event):
        """The fixed part and the mapped one."""
        num = self._num_fixed
        if self._layout == "mixed":
            event = namespace(event).take(event, params["order"], axis=-1)
        sizes = (self.dim - num, num) if self._layout == "back" else (num, self.dim - num)
        parts = namespace(event).split(event, sizes, axis=-1)
        return parts[::-1] if self._layout == "back" else parts

    def _joined(self, params, fixed, mapped):
        xp = namespace(mapped)
        event = xp.concat([mapped, fixed] if self._layout == "back" else [fixed, mapped], axis=-1)
        return xp.take(event, params["position"], axis=-1) if self._layout == "mixed" else event

    def _raw(self, params, fixed, context):
        """The parameters of the univariate map of each mapped coordinate."""
        xp, seen, num_mapped = namespace(fixed), fixed, self.dim - self._num_fixed
        if self._period is not None:
            angle = fixed * (2 * math.pi / self._period)
            seen = xp.concat([xp.cos(angle), xp.sin(angle)], axis=-1)
        output, num_raw = self._network(params["network"], seen, context), self.univariate.num_raw
        if output.shape[-1] != num_raw * num_mapped:
            raise ValueError(
                f"Coupling: the network must give {num_raw} numbers for each of the {num_mapped} coordinates that are "
                f"mapped, {num_raw * num_mapped} in all, got {output.shape[-1]}"
            )
        return split_raw(output, num_raw)
