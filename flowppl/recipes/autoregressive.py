"""Autoregressive flows."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.bijections.autoregressive import Autoregressive
from flowppl.bijections.block_autoregressive import BlockAutoregressive
from flowppl.bijections.combine import Invert
from flowppl.bijections.contract import Bijection
from flowppl.bijections.linear import Permute
from flowppl.checks import check_sizes
from flowppl.recipes.shuffle import shuffled
from flowppl.univariate.base import Affine, Bound
from flowppl.univariate.mixture import LogisticMixture
from flowppl.univariate.splines import RationalQuadraticSpline


def iaf(
    dim: int,
    num_flows: int = 4,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    log_scale_bound: Bound = 3.0,
) -> Bijection:
    """Inverse autoregressive flow: one pass to sample; scoring a given value is sequential. For guides.

    The order of the coordinates is reversed after each layer, and restored at the end.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: one layer scales a coordinate by at most the exponential of this; or a pair of bounds, see
            :class:`flowppl.Affine`.

    References:
        Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.iaf(6)
        >>> flow.forward_cost, flow.inverse_cost
        ('parallel', 'sequential')
    """
    check_sizes("iaf", dim=dim, num_flows=num_flows)
    layer = Autoregressive(dim, Affine(log_scale_bound), hidden_dims, context_dim, activation)
    return shuffled(layer, Permute.reverse(dim), num_flows)


def maf(
    dim: int,
    num_flows: int = 4,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    log_scale_bound: Bound = 3.0,
) -> Bijection:
    """Masked autoregressive flow: one pass to score a value; sampling is sequential. For densities and priors.

    It is :func:`iaf` turned around, and takes the same arguments.

    References:
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, 2017, arXiv 1705.07057.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.maf(6)
        >>> flow.forward_cost, flow.inverse_cost
        ('sequential', 'parallel')
    """
    return Invert(
        iaf(
            dim,
            num_flows,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            log_scale_bound=log_scale_bound,
        )
    )


def nsf_autoregressive(
    dim: int,
    num_flows: int = 4,
    *,
    num_bins: int = 8,
    bound: float = 5.0,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
) -> Bijection:
    """Autoregressive neural spline flow: one pass to score a value; sampling is sequential. For densities and priors.

    It is :func:`maf` with splines in the place of affine maps. ``Invert`` it for a guide.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        num_bins: the number of bins of each spline.
        bound: each spline acts between minus and plus this, and is the identity outside.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.

    References:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, 2019, arXiv 1906.04032.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.nsf_autoregressive(6)
        >>> flow.forward_cost, flow.inverse_cost
        ('sequential', 'parallel')
    """
    check_sizes("nsf_autoregressive", dim=dim, num_flows=num_flows)
    spline = RationalQuadraticSpline(num_bins, bound)
    layer = Autoregressive(dim, spline, hidden_dims, context_dim, activation)
    return Invert(shuffled(layer, Permute.reverse(dim), num_flows))


def naf(
    dim: int,
    num_flows: int = 4,
    *,
    num_components: int = 8,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    log_scale_bound: Bound = 3.0,
) -> Bijection:
    """Neural autoregressive flow: one pass to score a value; sampling is a root search, coordinate by coordinate.

    It is :func:`maf` with deep sigmoidal maps in the place of affine ones: :class:`~flowppl.LogisticMixture`, weighted
    sigmoids brought back by the logit. ``Invert`` it for a guide.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        num_components: the number of sigmoids of each map.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: the bound of the maps' log-scales.

    References:
        Huang, Krueger, Lacoste, Courville: Neural Autoregressive Flows, 2018, arXiv 1804.00779.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.naf(6)
        >>> flow.forward_cost, flow.inverse_cost
        ('sequential', 'parallel')
    """
    check_sizes("naf", dim=dim, num_flows=num_flows)
    mixture = LogisticMixture(num_components, log_scale_bound)
    layer = Autoregressive(dim, mixture, hidden_dims, context_dim, activation)
    return Invert(shuffled(layer, Permute.reverse(dim), num_flows))


def bnaf(
    dim: int,
    num_flows: int = 4,
    *,
    hidden_factors: int | Sequence[int] = (8, 8),
    context_dim: int = 0,
    log_scale_bound: Bound = 3.0,
) -> Bijection:
    """Block neural autoregressive flow: one pass to score a value; sampling is a root search, coordinate by coordinate.

    Each layer is one masked network, increasing in each coordinate, with a residual connection that makes it a map onto
    the real numbers: :class:`~flowppl.BlockAutoregressive`. Between layers the order of the coordinates is reversed.
    ``Invert`` it for a guide.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        hidden_factors: the number of units that each coordinate has in each hidden layer; an int means one layer.
        context_dim: the size of the context, 0 for none.
        log_scale_bound: the bound of all trained log-scales.

    References:
        De Cao, Titov, Aziz: Block Neural Autoregressive Flow, 2019, arXiv 1904.04676.

    Example:
        >>> import flowppl as fp
        >>> fp.num_parameters(fp.bnaf(6)), fp.num_parameters(fp.naf(6))
        (14256, 58992)
    """
    check_sizes("bnaf", dim=dim, num_flows=num_flows)
    layer = BlockAutoregressive(dim, hidden_factors, context_dim, log_scale_bound)
    return Invert(shuffled(layer, Permute.reverse(dim), num_flows))
