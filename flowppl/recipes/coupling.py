"""Coupling flows."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.bijections.combine import Chain, Invert
from flowppl.bijections.contract import Bijection
from flowppl.bijections.coupling import Coupling
from flowppl.bijections.elementwise import Elementwise
from flowppl.bijections.linear import LU, ActNorm, Permute
from flowppl.checks import check_sizes
from flowppl.recipes.shuffle import shuffled
from flowppl.univariate.base import Affine, Bound, Scale, Shift, Univariate
from flowppl.univariate.mixture import LogisticMixture
from flowppl.univariate.splines import RationalQuadraticSpline


def nice(
    dim: int,
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
) -> Bijection:
    """Additive coupling layers, which preserve volume, and a scale for each coordinate at the end.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.

    References:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, 2014, arXiv 1410.8516.

    Example:
        >>> import flowppl as fp
        >>> fp.nice(6).bijections[-1]
        Elementwise(dim=6, univariate=Scale(log_scale_bound=3.0))
    """
    check_sizes("nice", dim=dim, num_flows=num_flows)
    stack = couplings(dim, num_flows, Shift(), hidden_dims, context_dim, activation)
    return Chain([stack, Elementwise(dim, Scale())])


def realnvp(
    dim: int,
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
    log_scale_bound: Bound = 3.0,
) -> Bijection:
    """Affine coupling layers: both directions cost one pass.

    Layers come in pairs that exchange the roles of the two halves. After each pair the coordinates are shuffled as
    a deck of cards is, so that any two coordinates soon stand in different halves. The order is restored at the
    end.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: one layer scales a coordinate by at most the exponential of this; or a pair of bounds, see
            :class:`flowppl.Affine`.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.realnvp(6, hidden_dims=32)
        >>> flow.forward_cost, flow.inverse_cost
        ('parallel', 'parallel')
    """
    check_sizes("realnvp", dim=dim, num_flows=num_flows)
    return couplings(dim, num_flows, Affine(log_scale_bound), hidden_dims, context_dim, activation)


def nsf(
    dim: int,
    num_flows: int = 4,
    *,
    num_bins: int = 8,
    bound: float = 5.0,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
) -> Bijection:
    """Neural spline flow: rational-quadratic spline coupling layers; both directions cost one pass.

    The layers are arranged as in :func:`realnvp`.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        num_bins: the number of bins of each spline.
        bound: each spline acts between minus and plus this, and is the identity outside.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.

    References:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, 2019, arXiv 1906.04032.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.nsf(6, num_bins=4)
        >>> flow.forward_cost, flow.inverse_cost
        ('parallel', 'parallel')
    """
    check_sizes("nsf", dim=dim, num_flows=num_flows)
    spline = RationalQuadraticSpline(num_bins, bound)
    return couplings(dim, num_flows, spline, hidden_dims, context_dim, activation)


def flowpp(
    dim: int,
    num_flows: int = 4,
    *,
    num_components: int = 8,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
    log_scale_bound: Bound = 3.0,
) -> Bijection:
    """Flow++: mixture-of-logistics coupling layers; one pass to score a value, a root search to sample.

    The layers are arranged as in :func:`realnvp`, and turned around: the closed form scores. ``Invert`` it for a guide.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        num_components: the number of logistics of each mixture.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: the bound of the mixtures' log-scales.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++: Improving Flow-Based Generative Models with Variational
        Dequantization and Architecture Design, 2019, arXiv 1902.00275.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.flowpp(6)
        >>> flow.forward_cost, flow.inverse_cost
        ('iterative', 'parallel')
    """
    check_sizes("flowpp", dim=dim, num_flows=num_flows)
    mixture = LogisticMixture(num_components, log_scale_bound)
    return Invert(couplings(dim, num_flows, mixture, hidden_dims, context_dim, activation))


def glow(
    dim: int,
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
    log_scale_bound: Bound = 3.0,
) -> Bijection:
    """Glow for vectors: steps of an affine coupling, a linear map in its LU factors, and a normalising affine layer.

    ``fit_density`` sets the normalising layers from the data; elsewhere call ``init_from``.

    Args:
        dim: the number of coordinates.
        num_flows: the number of steps.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: one coupling layer scales a coordinate by at most the exponential of this; or a pair of bounds,
            see :class:`flowppl.Affine`.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039.

    Example:
        >>> import flowppl as fp
        >>> [type(layer).__name__ for layer in fp.glow(4, num_flows=1).bijections]
        ['Coupling', 'LU', 'ActNorm']
    """
    check_sizes("glow", dim=dim, num_flows=num_flows)
    coupling = Coupling(dim, Affine(log_scale_bound), hidden_dims, context_dim, activation)
    return shuffled(Chain([coupling, LU(dim), ActNorm(dim)]), Permute.reverse(dim), num_flows)


def couplings(dim: int, num_flows: int, univariate: Univariate, hidden_dims, context_dim, activation) -> Bijection:
    """Coupling layers in pairs that exchange the roles of the two halves, shuffled like a deck after each pair."""
    half = dim // 2
    masks = [None] if dim == 1 else [tuple(i < half for i in range(dim)), tuple(i >= half for i in range(dim))]
    layers = [Coupling(dim, univariate, hidden_dims, context_dim, activation, mask) for mask in masks]
    first, last = layers[0], layers[-1]
    if num_flows == 1:
        return first
    # The riffle 0, h, 1, h+1, ... moves the next bit of a coordinate's number into the place that the halves test.
    riffle = Permute(tuple(i // 2 + (i % 2) * (dim - half) for i in range(dim)))
    pairs = shuffled(Chain([first, last]), riffle, num_flows // 2)
    return Chain([pairs, first]) if num_flows % 2 else pairs
