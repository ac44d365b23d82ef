"""Layers as Pyro transforms."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.bijections import autoregressive, coupling, elementwise, residual, sylvester
from flowppl.networks import NetworkLike
from flowppl.pyro.transforms import FlowTransform
from flowppl.univariate.base import Affine, Univariate


class Planar(FlowTransform):
    r"""A stack of planar flows, each of which bends space along one direction.

    ``y = transform(x)`` is the last of :math:`x_1, \dots, x_K`, with K = ``num_flows``, :math:`x_0 = x` and

    .. math::
        x_k = x_{k-1} + \hat u_k \tanh(w_k^\top x_{k-1} + b_k), \qquad
        \hat u_k = u_k + \big(m(w_k^\top u_k) - w_k^\top u_k\big) \frac{w_k}{\|w_k\|^2} .

    The log determinant is the sum of :math:`\log(1 + w_k^\top \hat u_k\, (1 - \tanh^2(\cdot)))` over the layers. The
    function :math:`m(a) = \log(1 + e^{a + c}) - 0.999`, with the constant c for which m(0) = 0, keeps
    :math:`w_k^\top \hat u_k` above -0.999: every layer is invertible, whatever the weights.

    The weights are ``w`` and ``u``, of shape ``(num_flows, dim)``, with the rows :math:`w_k` and :math:`u_k`, and
    ``b``, of shape ``(num_flows,)``. At the start u is 0, and the transform the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass: two matrix products and a recursion over K numbers. ``transform.inv(y)`` is
    iterative: for each layer one equation of one unknown, by Newton's method from a start that is proven to converge.

    Args:
        dim: the number of coordinates.
        num_flows: the number K of layers.

    Raises:
        ValueError: if one of them is below 1.

    References:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770, section 4.1 and
        appendix A.1.

    Example:
        >>> import torch
        >>> from flowppl.pyro import Planar
        >>> transform = Planar(2, num_flows=8)
        >>> x = torch.tensor([[0.5, -1.0], [2.0, 0.0]])
        >>> y = transform(x)
        >>> transform.log_abs_det_jacobian(x, y).shape
        torch.Size([2])
        >>> bool(torch.allclose(transform.inv(y), x, atol=1e-4))
        True
    """

    def __init__(self, dim: int, num_flows: int = 1) -> None:
        super().__init__(residual.Planar(dim, num_flows))


class Radial(FlowTransform):
    r"""A radial flow, which contracts or expands space around a point.

    .. math::
        y = x + \frac{\beta}{\alpha + r}\,(x - x_0), \qquad r = \|x - x_0\|, \qquad
        \log|\det| = (D - 1) \log\Big(1 + \frac{\beta}{\alpha + r}\Big)
        + \log\Big(1 + \frac{\alpha \beta}{(\alpha + r)^2}\Big) .

    It is invertible where :math:`\beta > -\alpha`, so that :math:`\alpha = \log(1 + e^{a + c})` and
    :math:`\beta = \alpha\, (\log(1 + e^{b + d}) - 0.999)` with free numbers a and b. The constants c and d are those
    for which a = 0 gives :math:`\alpha = 1` and b = 0 gives :math:`\beta = 0`.

    The weights are ``center``, of shape ``(dim,)``, for :math:`x_0`, and the numbers ``alpha`` and ``beta`` for a and
    b. At the start b is 0, and the transform the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each: r is the root of a quadratic.

    Args:
        dim: the number D of coordinates.

    Raises:
        ValueError: if ``dim`` < 1.

    References:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770, section 4.1 and
        appendix A.2.

    Example:
        >>> import torch
        >>> from flowppl.pyro import Radial
        >>> transform = Radial(2)
        >>> x = torch.randn(5, 2)
        >>> y = transform(x)
        >>> transform.log_abs_det_jacobian(x, y).shape
        torch.Size([5])
        >>> bool(torch.allclose(transform.inv(y), x, atol=1e-4))
        True
    """

    def __init__(self, dim: int) -> None:
        super().__init__(residual.Radial(dim))


class OrthogonalSylvester(FlowTransform):
    r"""A Sylvester flow: a layer of M hidden units in a free orthonormal frame (O-SNF).

    .. math::
        y = x + Q R \tanh(\tilde R\, Q^\top x + b)

    Q has M = ``num_units`` orthonormal columns: those of the QR decomposition of a free matrix. R and :math:`\tilde R`
    are upper triangular, of shape ``(num_units, num_units)``. With their diagonals r and :math:`\tilde r`, and tanh
    taken at :math:`\tilde R Q^\top x + b`, the log determinant is

    .. math::
        \sum_{i=1}^M \log\big(1 + r_i\, \tilde r_i\, (1 - \tanh^2(\cdot)_i)\big), \qquad
        r_i = \frac{0.999\, \rho_i}{1 + \log(1 + e^{-\rho_i \tilde r_i})} .

    The form of :math:`r_i`, made from a free number :math:`\rho_i`, keeps :math:`r_i \tilde r_i` above -0.999: the
    transform is invertible whatever the weights.

    The weights are ``q``, of shape ``(dim, num_units)``, ``outer_diagonal`` (:math:`\rho`) and ``outer`` (the rest of
    R, row by row of its transpose), ``inner_diagonal`` and ``inner`` (the same of :math:`\tilde R`), and ``b``. At the
    start R is 0, and the transform the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: exact, in M small steps, each of which
    solves an equation of one unknown.

    Args:
        dim: the number of coordinates.
        num_units: the number M of hidden units.

    Raises:
        ValueError: if one of them is below 1, or there are more units than coordinates.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import torch
        >>> from flowppl.pyro import OrthogonalSylvester
        >>> transform = OrthogonalSylvester(10, num_units=4)
        >>> x = torch.randn(5, 10)
        >>> y = transform(x)
        >>> bool(torch.allclose(transform.inv(y), x, atol=1e-4))
        True
        >>> transform.weights.q.shape
        torch.Size([10, 4])
    """

    def __init__(self, dim: int, num_units: int = 1) -> None:
        super().__init__(sylvester.OrthogonalSylvester(dim, num_units))


class HouseholderSylvester(FlowTransform):
    r"""A Sylvester flow: a layer of M hidden units in a frame made of Householder reflections (H-SNF).

    .. math::
        y = x + Q R \tanh(\tilde R\, Q^\top x + b), \qquad
        Q = \text{the first M columns of } H_1 \cdots H_K, \qquad H_k = I - 2 v_k v_k^\top / \|v_k\|^2

    with M = ``num_units`` and K = ``num_reflections``. It costs O(KD + M^2) for each of the events of D = ``dim``
    numbers, also where every event has weights of its own. R and :math:`\tilde R` are upper triangular, of shape
    ``(num_units, num_units)``. With their diagonals r and :math:`\tilde r`, and tanh taken at
    :math:`\tilde R Q^\top x + b`, the log determinant is

    .. math::
        \sum_{i=1}^M \log\big(1 + r_i\, \tilde r_i\, (1 - \tanh^2(\cdot)_i)\big), \qquad
        r_i = \frac{0.999\, \rho_i}{1 + \log(1 + e^{-\rho_i \tilde r_i})} .

    The form of :math:`r_i`, made from a free number :math:`\rho_i`, keeps :math:`r_i \tilde r_i` above -0.999: the
    transform is invertible whatever the weights.

    The weights are ``v``, of shape ``(num_reflections, dim)``, with the rows :math:`v_k`, ``outer_diagonal``
    (:math:`\rho`) and ``outer`` (the rest of R, row by row of its transpose), ``inner_diagonal`` and ``inner`` (the
    same of :math:`\tilde R`), and ``b``. At the start R is 0, and the transform the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: exact, in M small steps, each of which
    solves an equation of one unknown.

    Args:
        dim: the number of coordinates.
        num_units: the number M of hidden units; ``None`` is ``dim``, as in the paper.
        num_reflections: the number K of reflections; ``None`` is 8, or ``dim`` if that is less.

    Raises:
        ValueError: if one of them is below 1, or there are more units than coordinates.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import torch
        >>> from flowppl.pyro import HouseholderSylvester
        >>> transform = HouseholderSylvester(10, num_units=4, num_reflections=2)
        >>> x = torch.randn(5, 10)
        >>> y = transform(x)
        >>> bool(torch.allclose(transform.inv(y), x, atol=1e-4))
        True
        >>> transform.weights.v.shape
        torch.Size([2, 10])
    """

    def __init__(self, dim: int, num_units: int | None = None, num_reflections: int | None = None) -> None:
        super().__init__(sylvester.HouseholderSylvester(dim, num_units, num_reflections))  # type: ignore[arg-type]  # None stands for a default


class TriangularSylvester(FlowTransform):
    r"""A Sylvester flow in the frame of the coordinates themselves (T-SNF).

    .. math::
        y = x + R \tanh(\tilde R\, x + b)

    R and :math:`\tilde R` are upper triangular, of shape ``(dim, dim)``. With their diagonals r and :math:`\tilde r`,
    and tanh taken at :math:`\tilde R\, x + b`, the log determinant is

    .. math::
        \sum_{i=1}^D \log\big(1 + r_i\, \tilde r_i\, (1 - \tanh^2(\cdot)_i)\big), \qquad
        r_i = \frac{0.999\, \rho_i}{1 + \log(1 + e^{-\rho_i \tilde r_i})} .

    The form of :math:`r_i`, made from a free number :math:`\rho_i`, keeps :math:`r_i \tilde r_i` above -0.999: the
    transform is invertible whatever the weights.

    The weights are ``outer_diagonal`` (:math:`\rho`) and ``outer`` (the rest of R, row by row of its transpose),
    ``inner_diagonal`` and ``inner`` (the same of :math:`\tilde R`), and ``b``. At the start R is 0, and the transform
    the identity.

    Stacks alternate it with the reverse permutation, as :func:`triangular_sylvester` does.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: exact, in D small steps, each of which
    solves an equation of one unknown.

    Args:
        dim: the number D of coordinates, and of hidden units.

    Raises:
        ValueError: if ``dim`` < 1.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import torch
        >>> from flowppl.pyro import TriangularSylvester
        >>> transform = TriangularSylvester(3)
        >>> x = torch.randn(5, 3)
        >>> y = transform(x)
        >>> bool(torch.allclose(transform.inv(y), x, atol=1e-4))
        True
    """

    def __init__(self, dim: int) -> None:
        super().__init__(sylvester.TriangularSylvester(dim))


class Coupling(FlowTransform):
    r"""A coupling layer: one part of x decides how the other part is mapped.

    .. math::
        y_A = x_A, \qquad y_B = \tau\big(x_B;\, g(x_A, c)\big), \qquad
        \log|\det| = \sum_{i \in B} \log \tau'(x_i) .

    A are the coordinates that stay as they are, B the others. The univariate map :math:`\tau` acts on each number of
    :math:`x_B`, with parameters that the network g makes of :math:`x_A` and the context c. With :class:`flowppl.Shift`
    this is the layer of NICE, with :class:`flowppl.Affine` that of RealNVP, with
    :class:`flowppl.RationalQuadraticSpline` that of neural spline flows. With ``dim=1`` there is no A: the parameters
    depend on the context alone.

    The weights are those of the network, whose last layer starts at 0, where :math:`\tau` and so the transform is the
    identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``. With ``context_dim`` the
    transform needs a context c of shape ``(..., context_dim)``, whose batch axes broadcast with those of x:
    ``transform.condition(c)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each; with a map whose inverse is a root, such as
    :class:`flowppl.LogisticMixture` or :class:`flowppl.Bernstein`, the inverse is iterative.

    Args:
        dim: the number of coordinates.
        univariate: the map of each coordinate of B.
        hidden_dims: the widths of the network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: the network's activation: elu, relu, silu, softplus or tanh.
        mask: for each coordinate, whether it stays as it is. ``None`` means the first ``dim // 2``; ``"alternating"``
            means every other one, from the second.
        network: a network of your own instead of the default perceptron: a module, as :class:`ModuleNetwork` takes it,
            or one that follows the protocol of :mod:`flowppl.networks`. It takes the coordinates of A (their cosines
            and then their sines, if the map is on a circle) and gives ``univariate.num_raw`` blocks, each as long as B.
            ``hidden_dims`` and ``activation`` then go unused.

    Raises:
        ValueError: for a dimension below 1, a mask of the wrong length or without a coordinate to map, or a mask for
            ``dim=1``, which cannot be split; when it maps, for a context that is missing, of another size, or not
            expected.

    References:
        Dinh, Krueger, Bengio: NICE, 2014, arXiv 1410.8516. Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real
        NVP, 2016, arXiv 1605.08803.

    Example:
        >>> import torch
        >>> from flowppl.pyro import Coupling
        >>> transform = Coupling(4, hidden_dims=16, context_dim=3)
        >>> given = transform.condition(torch.ones(3))
        >>> x = torch.randn(5, 4)
        >>> y = given(x)
        >>> bool(torch.equal(y[:, :2], x[:, :2]))
        True
        >>> given.log_abs_det_jacobian(x, y).shape
        torch.Size([5])
    """

    def __init__(
        self,
        dim: int,
        univariate: Univariate = Affine(),
        hidden_dims: int | Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "silu",
        mask: Sequence[bool] | str | None = None,
        network: NetworkLike | None = None,
    ) -> None:
        super().__init__(coupling.Coupling(dim, univariate, hidden_dims, context_dim, activation, mask, network))


class Autoregressive(FlowTransform):
    r"""An autoregressive layer: each coordinate is mapped by parameters made of the coordinates before it.

    .. math::
        y_i = \tau\big(x_i;\, g_i(x_1, \dots, x_{i-1}, c)\big), \qquad
        \log|\det| = \sum_{i=1}^D \log \tau'(x_i) .

    The univariate map :math:`\tau` acts on the coordinate :math:`x_i`, with parameters that a masked network g makes
    of the coordinates before it and the context c. With ``dim=1`` they depend on the context alone.

    The weights are those of the network, whose last layer starts at 0, where :math:`\tau` and so the transform is the
    identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``. With ``context_dim`` the
    transform needs a context c of shape ``(..., context_dim)``, whose batch axes broadcast with those of x:
    ``transform.condition(c)``.

    ``transform(x)`` is one parallel pass. ``transform.inv(y)`` is sequential: D small steps, in all about the work of
    two passes. So this is the *inverse autoregressive flow* (IAF): cheap to sample, for guides. Its ``transform.inv``
    is the *masked autoregressive flow* (MAF): cheap to score, for densities and priors.

    Args:
        dim: the number D of coordinates.
        univariate: the map of each coordinate.
        hidden_dims: the widths of the network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: the network's activation: elu, relu, silu, softplus or tanh. A bounded one keeps the training of
            deep stacks stable.
        order: the coordinates in the order in which they are generated, each depending on those before it. ``None``
            means 0, 1, ...
        adjacency: instead of an order, for each coordinate i and each j whether the parameters of i may depend on j.
            Coordinates that do not wait for each other are then found in one step.
        residual: whether the entries of ``hidden_dims``, which must be equal, are residual blocks of two layers; see
            :class:`flowppl.MADE`.

    Raises:
        ValueError: for a dimension below 1, both an order and an adjacency, an order that is no permutation, an
            adjacency of the wrong shape or with a cycle, or residual blocks of unequal widths; when it maps, for a
            context that is missing, of another size, or not expected.

    References:
        Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934.
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, 2017, arXiv 1705.07057.

    Example:
        >>> import torch
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import Autoregressive, FlowDistribution
        >>> transform = Autoregressive(4, hidden_dims=16)
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(4), 1.0), transform.inv)  # a masked autoregressive flow
        >>> flow.log_prob(torch.zeros(5, 4)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        dim: int,
        univariate: Univariate = Affine(),
        hidden_dims: int | Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "tanh",
        order: Sequence[int] | None = None,
        adjacency: Sequence[Sequence[bool]] | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__(
            autoregressive.Autoregressive(
                dim, univariate, hidden_dims, context_dim, activation, order, adjacency, residual
            )
        )


class Elementwise(FlowTransform):
    r"""A univariate map of each coordinate, with parameters of its own.

    .. math::
        y_i = \tau(x_i;\, r_i), \qquad \log|\det| = \sum_{i=1}^D \log \tau'(x_i)

    The weights are ``raw``, of shape ``(univariate.num_raw, dim)``, with the columns :math:`r_i`, the numbers from
    which the map :math:`\tau` makes its parameters. At the start they are 0, and the transform the identity. Maps
    without parameters serve here too: they give a flow its support, which is then the transform's ``codomain``. Events
    of another shape, such as images, are mapped in the same way: ``dim`` may be their shape.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each; with a map whose inverse is a root, such as
    :class:`flowppl.LogisticMixture` or :class:`flowppl.Bernstein`, the inverse is iterative.

    Args:
        dim: the number D of coordinates, or the shape of an event.
        univariate: the map: :class:`flowppl.Affine`, :class:`flowppl.Scale`, :class:`flowppl.RationalQuadraticSpline`,
            :class:`flowppl.LogisticMixture`, ...; or one without parameters: :class:`flowppl.Sigmoid`,
            :class:`flowppl.Softplus`, :class:`flowppl.Tanh`, :class:`flowppl.LeakyReLU`, :class:`flowppl.Bounded`,
            :class:`flowppl.LogTails`.

    Raises:
        ValueError: if ``dim`` < 1, or a size of the shape is.
        TypeError: if ``univariate`` is no univariate map.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Elementwise
        >>> transform = Elementwise(2, fp.Bounded(0.0, 10.0))
        >>> transform(torch.zeros(2)).tolist()
        [5.0, 5.0]
        >>> bool(transform.codomain.check(torch.tensor([3.0, 11.0])))
        False
    """

    def __init__(self, dim: int | Sequence[int], univariate: Univariate) -> None:
        super().__init__(elementwise.Elementwise(dim, univariate))
