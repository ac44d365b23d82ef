"""Layers that are networks themselves, as Pyro transforms."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.bijections import block_autoregressive, contractive
from flowppl.pyro.transforms import FlowTransform
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
    thirty of the blocks A alone. It has far fewer weights than :class:`Autoregressive` over a map with as many bends.
    Choose it for few coordinates, densities with several peaks, and small files.

    Args:
        dim: the number D of coordinates.
        hidden_factors: the number of units that each coordinate has in each hidden layer; an int means one layer.
        context_dim: the size of the context, 0 for none.
        log_scale_bound: the bound of all trained log-scales, the gates among them, as for :class:`flowppl.Affine`.

    Raises:
        ValueError: for a size below 1, no hidden layer, or a bound that is not positive; when it maps, for a context
            that is missing, of another size, or not expected.

    References:
        De Cao, Titov, Aziz: Block Neural Autoregressive Flow, 2019, arXiv 1904.04676. A gate for each unit, of either
        sign, is ours.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import BlockAutoregressive, FlowDistribution
        >>> transform = BlockAutoregressive(4, hidden_factors=6)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(4), 1.0), transform.inv)  # for densities
        >>> flow.log_prob(torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        dim: int,
        hidden_factors: int | Sequence[int] = (8, 8),
        context_dim: int = 0,
        log_scale_bound: Bound = 3.0,
    ) -> None:
        super().__init__(block_autoregressive.BlockAutoregressive(dim, hidden_factors, context_dim, log_scale_bound))


class ContractiveResidual(FlowTransform):
    r"""A residual layer: the event plus a network g that moves any two events by less than they are apart.

    .. math::
        y = x + g(x), \qquad \|g(x) - g(x')\| \le c\, \|x - x'\|, \quad c < 1, \qquad
        \log|\det| = \log \det\big(I + \partial g / \partial x\big).

    With the weight matrices :math:`W_1, \dots, W_L` of a perceptron,

    .. math::
        g(x) = \frac{W_L\, \sigma(\cdots \sigma(W_1 x + b_1) \cdots)}{(1 + \beta^4 / c^4)^{1/4}} + b_L, \qquad
        \beta = s^{L-1} \prod_{l=1}^L \big\|(W_l^\top W_l)^{16}\big\|_F^{1/32} ,

    where s is the steepest slope of the activation, 1 but for *silu*, whose is 1.09984. The norm of Frobenius is never
    below the spectral one: :math:`\beta` is a proven bound of the slopes of the network, and the layer has an inverse
    for all weights. A context is added to the first product.

    The weights are those of the network, whose last layer starts at 0, where the transform is the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``. With ``context_dim`` the
    transform needs a context of shape ``(..., context_dim)``, whose batch axes broadcast with those of x:
    ``transform.condition(c)``.

    ``transform(x)`` is one parallel pass. The log determinant is exact, no estimate: it takes the whole Jacobian, D
    passes, and :math:`D^3` operations for each event. From some dozens of coordinates on train it by an estimate,
    ``fit_density(..., objective="estimated_likelihood")``.
    ``transform.inv(y)`` is iterative: it repeats :math:`x \leftarrow y - g(x)` as often as makes the error less than
    the rounding of the dtype, with c = 0.9 180 times in float32 and 371 in float64. Two steps of Newton's method
    follow, which make derivatives exact.

    Choose it where no order and no halves of the coordinates are preferred. A layer stretches no direction by more than
    1 + c, so that it takes several, with a scale between them: :func:`residual_flow`.

    Args:
        dim: the number D of coordinates.
        hidden_dims: the widths of the network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        lipschitz: the bound c, between 0 and 1. The nearer to 1, the more a layer bends, and the longer its inverse
            takes.

    Raises:
        ValueError: for a size below 1, an unknown activation, or a bound that is not between 0 and 1; when it maps,
            for a context that is missing, of another size, or not expected.

    References:
        Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen: Invertible Residual Networks, 2018, arXiv 1811.00995. Chen,
        Behrmann, Duvenaud, Jacobsen: Residual Flows for Invertible Generative Modeling, 2019, arXiv 1906.02735. The
        bound of the norm is that of Delattre et al., 2023, arXiv 2305.16173.

    Example:
        >>> import torch
        >>> from flowppl.pyro import ContractiveResidual
        >>> transform = ContractiveResidual(4, hidden_dims=16)
        >>> x = torch.randn(5, 4)
        >>> y = transform(x)
        >>> transform.log_abs_det_jacobian(x, y).shape
        torch.Size([5])
        >>> bool(torch.allclose(transform.inv(y), x, atol=1e-4))
        True
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: int | Sequence[int] = (32, 32),
        context_dim: int = 0,
        activation: str = "tanh",
        lipschitz: float = 0.9,
    ) -> None:
        super().__init__(contractive.ContractiveResidual(dim, hidden_dims, context_dim, activation, lipschitz))
