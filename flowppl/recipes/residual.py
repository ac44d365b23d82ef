"""Residual flows: those whose weights are few, all made of a context if there is one, and contractive networks."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.bijections.combine import Chain, Invert
from flowppl.bijections.conditional import Conditional
from flowppl.bijections.contract import Bijection
from flowppl.bijections.contractive import ContractiveResidual
from flowppl.bijections.linear import ElementwiseAffine, Permute
from flowppl.bijections.orthogonal import Householder
from flowppl.bijections.repeat import Repeat
from flowppl.bijections.residual import Planar, Radial
from flowppl.bijections.sylvester import HouseholderSylvester, OrthogonalSylvester, TriangularSylvester
from flowppl.checks import check_sizes
from flowppl.recipes.shuffle import shuffled


def planar(dim: int, num_flows: int = 16, *, context_dim: int = 0, hidden_dims: int | Sequence[int] = ()) -> Bijection:
    """A stack of planar flows; with a context, all their parameters are made from it.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the hidden layers of the network that makes the parameters.

    References:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770.

    Example:
        >>> import flowppl as fp
        >>> fp.planar(2, num_flows=8)
        Planar(dim=2, num_flows=8)
    """
    return _amortised(Planar(dim, num_flows), context_dim, hidden_dims)


def radial(dim: int, num_flows: int = 16, *, context_dim: int = 0, hidden_dims: int | Sequence[int] = ()) -> Bijection:
    """A stack of radial flows; with a context, all their parameters are made from it.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the hidden layers of the network that makes the parameters.

    References:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770.

    Example:
        >>> import flowppl as fp
        >>> fp.radial(2, num_flows=8)
        Repeat(bijection=Radial(dim=2), num=8, scan=None, reversible=False)
    """
    check_sizes("radial", dim=dim, num_flows=num_flows)
    return _amortised(Repeat(Radial(dim), num_flows), context_dim, hidden_dims)


def orthogonal_sylvester(
    dim: int,
    num_flows: int = 8,
    *,
    num_units: int | None = None,
    context_dim: int = 0,
    hidden_dims: int | Sequence[int] = (),
) -> Bijection:
    """A stack of Sylvester flows with free orthonormal frames (O-SNF); ``sylvester`` is another name for it.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        num_units: the number of hidden units of each layer; ``None`` is 16, or ``dim`` if that is less.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the hidden layers of the network that makes the parameters.

    Raises:
        ValueError: if a size is below 1, or there are more units than coordinates.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import flowppl as fp
        >>> fp.orthogonal_sylvester(4, num_flows=2).bijection
        OrthogonalSylvester(dim=4, num_units=4)
    """
    check_sizes("orthogonal_sylvester", dim=dim, num_flows=num_flows)
    layer = OrthogonalSylvester(dim, min(16, dim) if num_units is None else num_units)
    return _amortised(Repeat(layer, num_flows), context_dim, hidden_dims)


def householder_sylvester(
    dim: int,
    num_flows: int = 8,
    *,
    num_units: int | None = None,
    num_reflections: int | None = None,
    context_dim: int = 0,
    hidden_dims: int | Sequence[int] = (),
) -> Bijection:
    """A stack of Sylvester flows with frames made of Householder reflections (H-SNF).

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        num_units: the number of hidden units of each layer; ``None`` is ``dim``.
        num_reflections: the number of reflections of each layer; ``None`` is 8, or ``dim`` if that is less.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the hidden layers of the network that makes the parameters.

    Raises:
        ValueError: if a size is below 1, or there are more units than coordinates.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import flowppl as fp
        >>> fp.householder_sylvester(4, num_flows=2).bijection
        HouseholderSylvester(dim=4, num_units=4, num_reflections=4)
    """
    check_sizes("householder_sylvester", dim=dim, num_flows=num_flows)
    layer = HouseholderSylvester(dim, num_units, num_reflections)  # type: ignore[arg-type]
    return _amortised(Repeat(layer, num_flows), context_dim, hidden_dims)


def triangular_sylvester(
    dim: int, num_flows: int = 8, *, context_dim: int = 0, hidden_dims: int | Sequence[int] = ()
) -> Bijection:
    """A stack of triangular Sylvester flows, every other one on the coordinates in reverse order (T-SNF).

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the hidden layers of the network that makes the parameters.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import flowppl as fp
        >>> fp.triangular_sylvester(4, num_flows=2).bijection.bijections[0]
        TriangularSylvester(dim=4)
    """
    check_sizes("triangular_sylvester", dim=dim, num_flows=num_flows)
    stack = shuffled(TriangularSylvester(dim), Permute.reverse(dim), num_flows)
    return _amortised(stack, context_dim, hidden_dims)


def householder(
    dim: int, num_flows: int = 2, *, context_dim: int = 0, hidden_dims: int | Sequence[int] = ()
) -> Bijection:
    """A product of Householder reflections; with a context, their vectors are made from it.

    Alone it only turns the base distribution; it is of use inside a chain, or with a context around a base that is not
    spherical, as in the encoder of a Householder-flow VAE.

    Args:
        dim: the number of coordinates.
        num_flows: the number of reflections.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the hidden layers of the network that makes the parameters.

    References:
        Tomczak, Welling: Improving Variational Auto-Encoders using Householder Flow, 2016, arXiv 1611.09630.

    Example:
        >>> import flowppl as fp
        >>> fp.householder(4, num_flows=2)
        Householder(dim=4, num_reflections=2, start='identity')
    """
    return _amortised(Householder(dim, num_flows), context_dim, hidden_dims)


def residual_flow(
    dim: int,
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (32, 32),
    context_dim: int = 0,
    activation: str = "tanh",
    lipschitz: float = 0.9,
) -> Bijection:
    """Residual flow: contractive networks that move all coordinates at once; exact, and parallel to score a value.

    Each layer is a :class:`~flowppl.ContractiveResidual`, followed by a scale and a shift of each coordinate. Sampling
    repeats each network hundreds of times. ``Invert`` it for a guide.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        lipschitz: the bound of how much a network moves events, relative to their distance; between 0 and 1.

    References:
        Chen, Behrmann, Duvenaud, Jacobsen: Residual Flows for Invertible Generative Modeling, 2019, arXiv 1906.02735.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.residual_flow(6)
        >>> flow.forward_cost, flow.inverse_cost
        ('iterative', 'parallel')
    """
    check_sizes("residual_flow", dim=dim, num_flows=num_flows)
    layer = ContractiveResidual(dim, hidden_dims, context_dim, activation, lipschitz)
    return Invert(Repeat(Chain([layer, ElementwiseAffine(dim)]), num_flows))


def _amortised(flow: Bijection, context_dim: int, hidden_dims) -> Bijection:
    if context_dim:
        return Conditional(flow, context_dim, hidden_dims)
    if hidden_dims != ():
        raise ValueError(f"hidden_dims={hidden_dims!r} is of the network that reads a context; give context_dim too")
    return flow
