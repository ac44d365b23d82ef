"""Ready stacks of layers as Pyro transforms, under the names of the literature."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.pyro.transforms import FlowTransform
from flowppl.recipes import autoregressive, continuous, coupling, residual
from flowppl.univariate.base import Bound


def planar(
    dim: int, num_flows: int = 16, *, context_dim: int = 0, hidden_dims: int | Sequence[int] = ()
) -> FlowTransform:
    """A stack of planar flows, each of which bends space along one direction.

    See :class:`Planar` for the equation of a layer. With ``context_dim`` a network makes all weights of the context:
    the transform then needs a context of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts
    at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is iterative: one equation of one unknown for each
    layer.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the widths of the hidden layers of the network that makes the weights; an int
            means one layer, ``()`` none.

    Raises:
        ValueError: if a size is below 1, or ``hidden_dims`` is given without a context.

    References:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770.

    Example:
        >>> import torch
        >>> from flowppl.pyro import planar
        >>> transform = planar(2, num_flows=4, context_dim=3)
        >>> contexts = torch.randn(5, 3)
        >>> transform.condition(contexts)(torch.zeros(2)).shape  # the same x at five contexts
        torch.Size([5, 2])
    """
    return FlowTransform(residual.planar(dim, num_flows, context_dim=context_dim, hidden_dims=hidden_dims))


def radial(
    dim: int, num_flows: int = 16, *, context_dim: int = 0, hidden_dims: int | Sequence[int] = ()
) -> FlowTransform:
    """A stack of radial flows, each of which contracts or expands space around a point.

    See :class:`Radial` for the equation of a layer. With ``context_dim`` a network makes all weights of the context:
    the transform then needs a context of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts
    at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the widths of the hidden layers of the network that makes the weights; an int
            means one layer, ``()`` none.

    Raises:
        ValueError: if a size is below 1, or ``hidden_dims`` is given without a context.

    References:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770.

    Example:
        >>> import torch
        >>> from flowppl.pyro import radial
        >>> transform = radial(2, num_flows=4)
        >>> x = torch.randn(5, 2)
        >>> bool(torch.allclose(transform.inv(transform(x)), x, atol=1e-4))
        True
    """
    return FlowTransform(residual.radial(dim, num_flows, context_dim=context_dim, hidden_dims=hidden_dims))


def orthogonal_sylvester(
    dim: int,
    num_flows: int = 8,
    *,
    num_units: int | None = None,
    context_dim: int = 0,
    hidden_dims: int | Sequence[int] = (),
) -> FlowTransform:
    """A stack of Sylvester flows with free orthonormal frames (O-SNF); ``sylvester`` is another name for it.

    See :class:`OrthogonalSylvester` for the equation of a layer. With ``context_dim`` a network makes all weights of
    the context: the transform then needs a context of shape ``(..., context_dim)``, see
    :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: ``num_units`` small steps for each
    layer.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        num_units: the number of hidden units of each layer; ``None`` is 16, or ``dim`` if that is less.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the widths of the hidden layers of the network that makes the weights; an int
            means one layer, ``()`` none.

    Raises:
        ValueError: if a size is below 1, there are more units than coordinates, or ``hidden_dims`` is given without a
            context.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import torch
        >>> from flowppl.pyro import orthogonal_sylvester
        >>> transform = orthogonal_sylvester(4, num_flows=2, context_dim=3)
        >>> contexts = torch.randn(5, 3)
        >>> transform.condition(contexts)(torch.zeros(4)).shape  # the same x at five contexts
        torch.Size([5, 4])
    """
    return FlowTransform(
        residual.orthogonal_sylvester(
            dim, num_flows, num_units=num_units, context_dim=context_dim, hidden_dims=hidden_dims
        )
    )


def sylvester(
    dim: int,
    num_flows: int = 8,
    *,
    num_units: int | None = None,
    context_dim: int = 0,
    hidden_dims: int | Sequence[int] = (),
) -> FlowTransform:
    """A stack of Sylvester flows with free orthonormal frames: another name for :func:`orthogonal_sylvester`.

    See :class:`OrthogonalSylvester` for the equation of a layer. With ``context_dim`` a network makes all weights of
    the context: the transform then needs a context of shape ``(..., context_dim)``, see
    :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: ``num_units`` small steps for each
    layer.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        num_units: the number of hidden units of each layer; ``None`` is 16, or ``dim`` if that is less.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the widths of the hidden layers of the network that makes the weights; an int
            means one layer, ``()`` none.

    Raises:
        ValueError: if a size is below 1, there are more units than coordinates, or ``hidden_dims`` is given without a
            context.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import torch
        >>> from flowppl.pyro import sylvester
        >>> transform = sylvester(4, num_flows=2, context_dim=3)
        >>> contexts = torch.randn(5, 3)
        >>> transform.condition(contexts)(torch.zeros(4)).shape  # the same x at five contexts
        torch.Size([5, 4])
    """
    return orthogonal_sylvester(dim, num_flows, num_units=num_units, context_dim=context_dim, hidden_dims=hidden_dims)


def householder_sylvester(
    dim: int,
    num_flows: int = 8,
    *,
    num_units: int | None = None,
    num_reflections: int | None = None,
    context_dim: int = 0,
    hidden_dims: int | Sequence[int] = (),
) -> FlowTransform:
    """A stack of Sylvester flows with frames made of Householder reflections (H-SNF).

    See :class:`HouseholderSylvester` for the equation of a layer. With ``context_dim`` a network makes all weights of
    the context: the transform then needs a context of shape ``(..., context_dim)``, see
    :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: ``num_units`` small steps for each
    layer.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        num_units: the number of hidden units of each layer; ``None`` is ``dim``.
        num_reflections: the number of reflections of each layer; ``None`` is 8, or ``dim`` if that is less.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the widths of the hidden layers of the network that makes the weights; an int
            means one layer, ``()`` none.

    Raises:
        ValueError: if a size is below 1, there are more units than coordinates, or ``hidden_dims`` is given without a
            context.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import torch
        >>> from flowppl.pyro import householder_sylvester
        >>> transform = householder_sylvester(4, num_flows=2, num_units=2)
        >>> x = torch.randn(5, 4)
        >>> bool(torch.allclose(transform.inv(transform(x)), x, atol=1e-4))
        True
    """
    return FlowTransform(
        residual.householder_sylvester(
            dim,
            num_flows,
            num_units=num_units,
            num_reflections=num_reflections,
            context_dim=context_dim,
            hidden_dims=hidden_dims,
        )
    )


def triangular_sylvester(
    dim: int, num_flows: int = 8, *, context_dim: int = 0, hidden_dims: int | Sequence[int] = ()
) -> FlowTransform:
    """A stack of triangular Sylvester flows, every other one on the coordinates in reverse order (T-SNF).

    See :class:`TriangularSylvester` for the equation of a layer. With ``context_dim`` a network makes all weights of
    the context: the transform then needs a context of shape ``(..., context_dim)``, see
    :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: ``dim`` small steps for each layer.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the widths of the hidden layers of the network that makes the weights; an int
            means one layer, ``()`` none.

    Raises:
        ValueError: if a size is below 1, or ``hidden_dims`` is given without a context.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import torch
        >>> from flowppl.pyro import triangular_sylvester
        >>> transform = triangular_sylvester(4, num_flows=2)
        >>> x = torch.randn(5, 4)
        >>> bool(torch.allclose(transform.inv(transform(x)), x, atol=1e-4))
        True
    """
    return FlowTransform(
        residual.triangular_sylvester(dim, num_flows, context_dim=context_dim, hidden_dims=hidden_dims)
    )


def householder(
    dim: int, num_flows: int = 2, *, context_dim: int = 0, hidden_dims: int | Sequence[int] = ()
) -> FlowTransform:
    """A product of Householder reflections.

    See :class:`Householder` for the equation. With ``context_dim`` a network makes all weights of the context: the
    transform then needs a context of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. An even number
    of reflections starts at the identity, an odd number at a reflection.

    Alone it only turns the base distribution. It is of use inside a chain, or with a context around a base that is not
    spherical, as in the encoder of a Householder-flow VAE.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number of coordinates.
        num_flows: the number of reflections.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the widths of the hidden layers of the network that makes the reflections'
            vectors; an int means one layer, ``()`` none.

    Raises:
        ValueError: if a size is below 1, or ``hidden_dims`` is given without a context.

    References:
        Tomczak, Welling: Improving Variational Auto-Encoders using Householder Flow, 2016, arXiv 1611.09630.

    Example:
        >>> import torch
        >>> from flowppl.pyro import householder
        >>> transform = householder(4, context_dim=3)
        >>> contexts = torch.randn(5, 3)
        >>> transform.condition(contexts)(torch.zeros(4)).shape  # the same x at five contexts
        torch.Size([5, 4])
    """
    return FlowTransform(residual.householder(dim, num_flows, context_dim=context_dim, hidden_dims=hidden_dims))


def nice(
    dim: int,
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
) -> FlowTransform:
    """Additive coupling layers, which preserve volume, and a scale for each coordinate at the end.

    A layer is :class:`Coupling` with :class:`flowppl.Shift`: it adds to one half of x what a network makes of the
    other half. With ``context_dim`` the networks read a context too: the transform then needs one of shape
    ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.

    Raises:
        ValueError: if a size is below 1, or the activation is unknown.

    References:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, 2014, arXiv 1410.8516.

    Example:
        >>> import torch
        >>> from flowppl.pyro import nice
        >>> transform = nice(6, num_flows=2, hidden_dims=16)
        >>> x = torch.randn(5, 6)
        >>> bool(torch.allclose(transform.inv(transform(x)), x, atol=1e-4))
        True
    """
    return FlowTransform(
        coupling.nice(dim, num_flows, hidden_dims=hidden_dims, context_dim=context_dim, activation=activation)
    )


def realnvp(
    dim: int,
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
    log_scale_bound: Bound = 3.0,
) -> FlowTransform:
    """RealNVP: affine coupling layers; both directions cost one pass.

    A layer is :class:`Coupling` with :class:`flowppl.Affine`: it shifts and scales one half of x by what a network
    makes of the other half. Layers come in pairs that exchange the roles of the two halves. After each pair the
    coordinates are shuffled as a deck of cards is, so that any two coordinates soon stand in different halves. The
    order is restored at the end. With ``context_dim`` the networks read a context too: the transform then needs one of
    shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: one layer scales a coordinate by at most the exponential of this; or a pair of bounds, see
            :class:`flowppl.Affine`.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not positive.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, realnvp
        >>> transform = realnvp(6, hidden_dims=16)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(6), 1.0), transform)
        >>> flow.log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    return FlowTransform(
        coupling.realnvp(
            dim,
            num_flows,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            log_scale_bound=log_scale_bound,
        )
    )


def nsf(
    dim: int,
    num_flows: int = 4,
    *,
    num_bins: int = 8,
    bound: float = 5.0,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
) -> FlowTransform:
    """Neural spline flow: rational-quadratic spline coupling layers; both directions cost one pass.

    A layer is :class:`Coupling` with :class:`flowppl.RationalQuadraticSpline`: it maps each coordinate of one half of
    x by a spline that a network makes of the other half. The layers are arranged as in :func:`realnvp`. With
    ``context_dim`` the networks read a context too: the transform then needs one of shape ``(..., context_dim)``, see
    :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        num_bins: the number of bins of each spline.
        bound: each spline acts between minus and plus this, and is the identity outside.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not positive.

    References:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, nsf
        >>> transform = nsf(6, num_bins=4, hidden_dims=16)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(6), 1.0), transform)
        >>> flow.log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    return FlowTransform(
        coupling.nsf(
            dim,
            num_flows,
            num_bins=num_bins,
            bound=bound,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
        )
    )


def flowpp(
    dim: int,
    num_flows: int = 4,
    *,
    num_components: int = 8,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
    log_scale_bound: Bound = 3.0,
) -> FlowTransform:
    """Flow++: mixture-of-logistics coupling layers; one pass to score a value, a root search to sample.

    A layer is the inverse of :class:`Coupling` with :class:`flowppl.LogisticMixture`: the mixture's distribution
    function, in closed form, takes y to x. The layers are arranged as in :func:`realnvp`. With ``context_dim`` the
    networks read a context too: the transform then needs one of shape ``(..., context_dim)``, see
    :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is iterative: a search for roots in each layer. ``transform.inv(y)`` is one parallel pass. For a
    guide take its inverse, ``transform.inv``.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        num_components: the number of logistics of each mixture.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: the bound of the mixtures' log-scales.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not positive.

    References:
        Ho, Chen, Srinivas, Duan, Abbeel: Flow++: Improving Flow-Based Generative Models with Variational
        Dequantization and Architecture Design, 2019, arXiv 1902.00275.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, flowpp
        >>> transform = flowpp(6, num_flows=2, num_components=4)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(6), 1.0), transform)
        >>> flow.log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    return FlowTransform(
        coupling.flowpp(
            dim,
            num_flows,
            num_components=num_components,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            log_scale_bound=log_scale_bound,
        )
    )


def glow(
    dim: int,
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "silu",
    log_scale_bound: Bound = 3.0,
) -> FlowTransform:
    """Glow for vectors: steps of an affine coupling, a linear map in its LU factors, and a normalising affine layer.

    A step is :class:`Coupling` with :class:`flowppl.Affine`, then :class:`LU`, then :class:`ActNorm`. ``fit_density``
    sets the normalising layers from the data; elsewhere call :meth:`Flow.init_from`. The order of the coordinates is
    reversed after each step, and restored at the end. With ``context_dim`` the networks read a context too: the
    transform then needs one of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at the
    identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number of coordinates.
        num_flows: the number of steps.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: one coupling layer scales a coordinate by at most the exponential of this; or a pair of
            bounds, see :class:`flowppl.Affine`.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not positive.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039.

    Example:
        >>> import torch
        >>> from flowppl.pyro import glow
        >>> transform = glow(4, num_flows=2, hidden_dims=16)
        >>> x = torch.randn(5, 4)
        >>> bool(torch.allclose(transform.inv(transform(x)), x, atol=1e-4))
        True
    """
    return FlowTransform(
        coupling.glow(
            dim,
            num_flows,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            log_scale_bound=log_scale_bound,
        )
    )


def iaf(
    dim: int,
    num_flows: int = 4,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    log_scale_bound: Bound = 3.0,
) -> FlowTransform:
    """Inverse autoregressive flow: one pass to sample; scoring a given value is sequential. For guides.

    A layer is :class:`Autoregressive` with :class:`flowppl.Affine`: it shifts and scales each coordinate of x by what
    a masked network makes of those before it. The order of the coordinates is reversed after each layer, and restored
    at the end. With ``context_dim`` the networks read a context too: the transform then needs one of shape
    ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: ``dim`` small steps for each layer.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: one layer scales a coordinate by at most the exponential of this; or a pair of bounds, see
            :class:`flowppl.Affine`.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not positive.

    References:
        Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934.

    Example:
        >>> import torch
        >>> from flowppl.pyro import iaf
        >>> transform = iaf(6, num_flows=2, hidden_dims=16)
        >>> x = torch.randn(5, 6)
        >>> bool(torch.allclose(transform.inv(transform(x)), x, atol=1e-4))
        True
    """
    return FlowTransform(
        autoregressive.iaf(
            dim,
            num_flows,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            log_scale_bound=log_scale_bound,
        )
    )


def maf(
    dim: int,
    num_flows: int = 4,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    log_scale_bound: Bound = 3.0,
) -> FlowTransform:
    """Masked autoregressive flow: one pass to score a value; sampling is sequential. For densities and priors.

    It is :func:`iaf` turned around: each coordinate of y is shifted and scaled by what a masked network makes of the
    coordinates of y before it. With ``context_dim`` the networks read a context too: the transform then needs one of
    shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is sequential: ``dim`` small steps for each layer. ``transform.inv(y)`` is one parallel pass.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: one layer scales a coordinate by at most the exponential of this; or a pair of bounds, see
            :class:`flowppl.Affine`.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not positive.

    References:
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, 2017, arXiv 1705.07057.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, maf
        >>> transform = maf(6, num_flows=2, hidden_dims=16)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(6), 1.0), transform)
        >>> flow.log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    return FlowTransform(
        autoregressive.maf(
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
) -> FlowTransform:
    """Autoregressive neural spline flow: one pass to score a value; sampling is sequential. For densities and priors.

    It is :func:`maf` with splines, :class:`flowppl.RationalQuadraticSpline`, in the place of affine maps. With
    ``context_dim`` the networks read a context too: the transform then needs one of shape ``(..., context_dim)``, see
    :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is sequential: ``dim`` small steps for each layer. ``transform.inv(y)`` is one parallel pass. For
    a guide take its inverse, ``transform.inv``.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        num_bins: the number of bins of each spline.
        bound: each spline acts between minus and plus this, and is the identity outside.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not positive.

    References:
        Durkan, Bekasov, Murray, Papamakarios: Neural Spline Flows, 2019, arXiv 1906.04032.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, nsf_autoregressive
        >>> transform = nsf_autoregressive(6, num_flows=2, num_bins=4, hidden_dims=16)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(6), 1.0), transform)
        >>> flow.log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    return FlowTransform(
        autoregressive.nsf_autoregressive(
            dim,
            num_flows,
            num_bins=num_bins,
            bound=bound,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
        )
    )


def naf(
    dim: int,
    num_flows: int = 4,
    *,
    num_components: int = 8,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    log_scale_bound: Bound = 3.0,
) -> FlowTransform:
    """Neural autoregressive flow: one pass to score a value; sampling is a root search, coordinate by coordinate.

    It is :func:`maf` with deep sigmoidal maps, :class:`flowppl.LogisticMixture`, in the place of affine ones: weighted
    sigmoids of each coordinate of y, brought back by the logit. With ``context_dim`` the networks read a context too:
    the transform then needs one of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at the
    identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is sequential: for each layer ``dim`` small steps, each a search for a root.
    ``transform.inv(y)`` is one parallel pass. For a guide take its inverse, ``transform.inv``.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        num_components: the number of sigmoids of each map.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: the bound of the maps' log-scales.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not positive.

    References:
        Huang, Krueger, Lacoste, Courville: Neural Autoregressive Flows, 2018, arXiv 1804.00779.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, naf
        >>> transform = naf(6, num_flows=2, num_components=4, hidden_dims=16)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(6), 1.0), transform)
        >>> flow.log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    return FlowTransform(
        autoregressive.naf(
            dim,
            num_flows,
            num_components=num_components,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            log_scale_bound=log_scale_bound,
        )
    )


def bnaf(
    dim: int,
    num_flows: int = 4,
    *,
    hidden_factors: int | Sequence[int] = (8, 8),
    context_dim: int = 0,
    log_scale_bound: Bound = 3.0,
) -> FlowTransform:
    """Block neural autoregressive flow: one pass to score a value; sampling is a root search, coordinate by coordinate.

    See :class:`BlockAutoregressive` for the equation of a layer: one masked network, increasing in each coordinate.
    Between layers the order of the coordinates is reversed. With ``context_dim`` the networks read a context too: the
    transform then needs one of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at the
    identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is sequential: for each layer ``dim`` small steps, each a search for a root.
    ``transform.inv(y)`` is one parallel pass. For a guide take its inverse, ``transform.inv``.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        hidden_factors: the number of units that each coordinate has in each hidden layer; an int means one layer.
        context_dim: the size of the context, 0 for none.
        log_scale_bound: the bound of all trained log-scales.

    Raises:
        ValueError: if a size is below 1, there is no hidden layer, or the bound is not positive.

    References:
        De Cao, Titov, Aziz: Block Neural Autoregressive Flow, 2019, arXiv 1904.04676.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, bnaf
        >>> transform = bnaf(6, num_flows=2, hidden_factors=4)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(6), 1.0), transform)
        >>> flow.log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    return FlowTransform(
        autoregressive.bnaf(
            dim,
            num_flows,
            hidden_factors=hidden_factors,
            context_dim=context_dim,
            log_scale_bound=log_scale_bound,
        )
    )


def cnf(
    dim: int,
    num_flows: int = 1,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    lipschitz: float = 24.0,
    num_steps: int = 16,
) -> FlowTransform:
    """Continuous normalizing flow: events move with a velocity that a network gives, in steps that are exact.

    It is one :class:`Continuous` transform, or several in a row. With ``context_dim`` the velocity depends on a context
    too: the transform then needs one of shape ``(..., context_dim)``, see :meth:`FlowTransform.condition`. It starts at
    the identity. A single one can be trained by flow matching: ``fit_density(..., objective="flow_matching")``.
    From some twenty coordinates on train by an estimate: ``objective="estimated_likelihood"``.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are iterative: about 16 passes of the network for each step, and three of
    its Jacobian.

    Args:
        dim: the number of coordinates.
        num_flows: the number of velocities, one after the other; flow matching needs a single one.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        lipschitz: the bound of the Lipschitz constant of each velocity, at most ``1.5 * num_steps``;
            see :class:`Continuous`.
        num_steps: the number of steps in which each way is gone.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not positive or above
            ``1.5 * num_steps``.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud: Neural Ordinary Differential Equations, 2018, arXiv 1806.07366.
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD: Free-form Continuous Dynamics for Scalable Reversible
        Generative Models, 2018, arXiv 1810.01367.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, cnf
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(3), 1.0), cnf(3, hidden_dims=16))
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    return FlowTransform(
        continuous.cnf(
            dim,
            num_flows,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            lipschitz=lipschitz,
            num_steps=num_steps,
        )
    )


def residual_flow(
    dim: int,
    num_flows: int = 8,
    *,
    hidden_dims: int | Sequence[int] = (32, 32),
    context_dim: int = 0,
    activation: str = "tanh",
    lipschitz: float = 0.9,
) -> FlowTransform:
    """Residual flow: contractive networks that move all coordinates at once; exact, and parallel to score a value.

    See :class:`ContractiveResidual` for the equation of a layer; a scale and a shift of each coordinate follow it. With
    ``context_dim`` the networks read a context too: the transform then needs one of shape ``(..., context_dim)``, see
    :meth:`FlowTransform.condition`. It starts at the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is iterative: each network hundreds of times. ``transform.inv(y)`` is one parallel pass; its exact
    log determinant takes D passes, and :math:`D^3` operations for each event. For a guide take its inverse,
    ``transform.inv``.

    Args:
        dim: the number D of coordinates.
        num_flows: the number of layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        lipschitz: the bound of how much a network moves events, relative to their distance; between 0 and 1.

    Raises:
        ValueError: if a size is below 1, the activation is unknown, or the bound is not between 0 and 1.

    References:
        Chen, Behrmann, Duvenaud, Jacobsen: Residual Flows for Invertible Generative Modeling, 2019, arXiv 1906.02735.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, residual_flow
        >>> transform = residual_flow(6, num_flows=2, hidden_dims=16)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(6), 1.0), transform)
        >>> flow.log_prob(torch.zeros(5, 6)).shape
        torch.Size([5])
    """
    return FlowTransform(
        residual.residual_flow(
            dim,
            num_flows,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            lipschitz=lipschitz,
        )
    )
