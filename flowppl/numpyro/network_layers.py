"""Layers that are networks themselves, as NumPyro transforms; ``init`` draws their weights."""

# mypy: disable-error-code="override"
# ``init`` of a named transform takes the arguments of its class instead of a bijection.

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import jax

from flowppl._arrays.tree import Tree
from flowppl.bijections import block_autoregressive
from flowppl.numpyro.transforms import FlowTransform
from flowppl.univariate.base import Bound


class BlockAutoregressive(FlowTransform):
    r"""A block neural autoregressive layer: a masked network that is itself the map, not what makes its parameters.

    Each coordinate i has a block of units in each of L hidden layers, a vector :math:`h^l_i`. With :math:`h^0 = x`,

    .. math::
        h^l_i = \tanh\Big(A^l_i h^{l-1}_i + \sum_{j<i} B^l_{ij} h^{l-1}_j + b^l_i\Big), \qquad
        y_i = \sigma_i \Big(x_i + \sum_k g_{ik} h^L_{ik}\Big) + \sum_{j<i} V_{ij} h^L_j + c_i ,

    .. math::
        g_{ik} = \pi_{ik} \frac{e^{\rho_{ik}} - 1}{d_{ik}}, \quad d_i = A^L_i \cdots A^1_i, \qquad
        \log|\det| = \sum_{i=1}^D \log \sigma_i \Big(1 + \sum_k g_{ik}
        \frac{\partial h^L_{ik}}{\partial x_i}\Big) .

    All entries of the blocks :math:`A^l_i` are positive, exponentials of weights, and A and B have normalised weights:
    for each unit they are divided by the root of the sum of their squares, and multiplied by a scale. A context acts on
    all units of the first layer, and on y. The gates :math:`\rho_{ik}` and the shares :math:`\pi_{ik}` are trained; the
    shares of a coordinate add up to 1. The sum in the log determinant is a mean of numbers between 1 and
    :math:`e^{\rho_{ik}}`: the layer is invertible for all weights. The term :math:`x_i`, the paper's residual
    connection, makes it a map onto the real numbers, which a sum of tanh is not.

    The weights of a hidden layer are ``own``, whose exponentials make A (in the first layer they are 1), ``weight`` for
    B, ``log_scale`` for the scales, and ``bias``; those of the last layer are ``gate``, ``share``, ``scale``,
    ``weight`` for V and ``bias`` for c. At the start the gates, V and c are 0, and the transform the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``. With ``context_dim`` the
    transform needs a context c of shape ``(..., context_dim)``, whose batch axes broadcast with those of x:
    ``transform.condition(c)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: for each coordinate bisection and
    Newton's method in its block alone, exact as are derivatives through it; in all the work of about two passes, and of
    thirty in the blocks. It has far fewer weights than :class:`Autoregressive` over a map with as many bends. Choose it
    for few coordinates, densities with several peaks, and small files.

    Args:
        dim: the number D of coordinates.
        hidden_factors: the number of units that each coordinate has in each hidden layer; an int means one layer.
        context_dim: the size of the context, 0 for none.
        log_scale_bound: the bound of all trained log-scales, the gates among them, as for :class:`flowppl.Affine`.
        params: the weights, a nested dict of arrays; :meth:`init` draws them.

    Raises:
        ValueError: for a size below 1, no hidden layer, or a bound that is not positive; when it maps, for a context
            that is missing, of another size, or not expected.
        ValueError: if ``params`` lacks a weight or one has a wrong shape.

    References:
        De Cao, Titov, Aziz: Block Neural Autoregressive Flow, 2019, arXiv 1904.04676. A gate for each unit, of either
        sign, is ours.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import numpyro.distributions as dist
        >>> from flowppl.numpyro import BlockAutoregressive, FlowDistribution
        >>> transform = BlockAutoregressive.init(jax.random.key(0), 4, hidden_factors=6)
        >>> flow = FlowDistribution(dist.Normal(jnp.zeros(4), 1.0), transform.inv)  # for densities
        >>> flow.log_prob(jnp.zeros((5, 4))).shape
        (5,)
    """

    def __init__(
        self,
        dim: int,
        hidden_factors: int | Sequence[int] = (8, 8),
        context_dim: int = 0,
        log_scale_bound: Bound = 3.0,
        *,
        params: Tree,
    ) -> None:
        super().__init__(
            block_autoregressive.BlockAutoregressive(dim, hidden_factors, context_dim, log_scale_bound), params
        )

    @classmethod
    def init(
        cls,
        key: jax.Array,
        dim: int,
        hidden_factors: int | Sequence[int] = (8, 8),
        context_dim: int = 0,
        log_scale_bound: Bound = 3.0,
    ) -> Self:
        """The transform with first weights drawn by ``key``; the other arguments are those of the class."""
        return cls._drawn(
            key, block_autoregressive.BlockAutoregressive(dim, hidden_factors, context_dim, log_scale_bound)
        )
