"""Autoregressive layers: every coordinate is mapped by parameters made of the coordinates before it."""

from __future__ import annotations

import dataclasses

import numpy as np

from flowppl._array import namespace
from flowppl._tree import Tree
from flowppl.bijection import Bijection, assign, check_event, check_sizes, derived
from flowppl.nets import MADE, as_dims, split_raw
from flowppl.univariate import Affine, Univariate


@dataclasses.dataclass(frozen=True)
class Autoregressive(Bijection):
    r"""An autoregressive layer over any univariate map :math:`\tau`.

    .. math::
        y_i = \tau\big(x_i;\, g_i(x_1, \dots, x_{i-1}, \mathrm{context})\big), \qquad i = 1, \dots, D.

    ``forward`` is one pass of a masked network; ``inverse`` finds the coordinates one after the other, D passes. This
    way round it is the *inverse autoregressive flow* (IAF): cheap to sample, for guides. Turned
    around, ``Invert(Autoregressive(dim))``, it is the *masked autoregressive flow* (MAF): cheap to
    score, for densities and priors. With ``dim=1`` the parameters depend on the context alone.

    Args:
        dim: the number of coordinates.
        univariate: the map of each coordinate.
        hidden_dims: the widths of the network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: the network's activation: elu, relu, silu, softplus or tanh. A bounded one keeps the training of
            deep stacks stable.

    Raises:
        ValueError: for a dimension below 1.

    References:
        Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934.
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, 2017, arXiv 1705.07057.

    Example:
        >>> import flowppl as fp
        >>> iaf = fp.Autoregressive(4, hidden_dims=16)
        >>> iaf.forward_cost, iaf.inverse_cost
        ('parallel', 'sequential')
    """

    dim: int
    univariate: Univariate = Affine()
    hidden_dims: tuple[int, ...] = (64, 64)
    context_dim: int = 0
    activation: str = "tanh"
    _network: MADE = derived()

    def __post_init__(self):
        check_sizes("Autoregressive", dim=self.dim)
        hidden_dims = as_dims("Autoregressive", self.hidden_dims)
        network = MADE(self.dim, self.univariate.num_raw, hidden_dims, self.context_dim, self.activation)
        assign(self, hidden_dims=hidden_dims, _network=network)

    @property
    def inverse_cost(self) -> str:
        return "sequential"

    def parameters(self) -> Tree:
        return {"network": self._network.parameters()}

    def constants(self) -> Tree:
        return {"network": self._network.constants(), "index": np.arange(self.dim)}

    def _raw(self, params, x, context):
        return split_raw(self._network(params["network"], x, context), self.univariate.num_raw)

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        y, log_slope = self.univariate.forward(self._raw(params, x, context), x)
        return y, namespace(y).sum(log_slope, axis=-1)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)

        def find_next(i, x):
            # Coordinates after i stay zero until their turn, so that no unfinished value can overflow.
            candidate, _ = self.univariate.inverse(self._raw(params, x, context), y)
            return xp.where(params["index"] == i, candidate, x)

        # One pass at zero gives the batch shape, which the context or the weights may widen.
        start = xp.zeros_like(self.univariate.inverse(self._raw(params, xp.zeros_like(y), context), y)[0])
        x = xp.fori_loop(self.dim, find_next, start)
        x, log_slope = self.univariate.inverse(self._raw(params, x, context), y)
        return x, xp.sum(log_slope, axis=-1)
