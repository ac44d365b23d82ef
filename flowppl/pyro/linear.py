"""Linear and affine layers as Pyro transforms."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.bijections import exponential, linear, low_rank, orthogonal
from flowppl.pyro.transforms import FlowTransform


class Permute(FlowTransform):
    """A fixed reordering of the coordinates: ``y[i] = x[permutation[i]]``.

    It has no weights, and its log determinant is 0.

    x and y have the shape ``(..., D)``, D being the length of the permutation; their log determinant has the shape
    ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        permutation: the numbers 0 to D-1 in any order, such as ``flowppl.Permute.reverse(D).permutation`` or
            ``flowppl.Permute.random(D, seed=0).permutation``.

    Raises:
        ValueError: if it is not a permutation.

    Example:
        >>> import torch
        >>> from flowppl.pyro import Permute
        >>> Permute((2, 0, 1))(torch.tensor([10.0, 20.0, 30.0])).tolist()
        [30.0, 10.0, 20.0]
    """

    def __init__(self, permutation: Sequence[int]) -> None:
        super().__init__(linear.Permute(permutation))


class Householder(FlowTransform):
    r"""A product of Householder reflections, which is a rotation or a reflected one.

    .. math::
        y = H_K \cdots H_1\, x, \qquad H_k = I - 2 v_k v_k^\top / \|v_k\|^2, \qquad \log|\det| = 0

    The weights are ``v``, of shape ``(num_reflections, dim)``, with the rows :math:`v_k`. An even number of
    reflections starts at the identity, an odd number at a reflection; with ``start="rotation"`` all are random.
    With K = D reflections it can be any rotation if D is even, and any reflected one if D is odd.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each: all reflections at once, in O(KD) operations
    for each event.

    Args:
        dim: the number D of coordinates.
        num_reflections: the number K of reflections.
        start: ``"identity"``, or ``"rotation"`` for a random one.

    Raises:
        ValueError: if one of the sizes is below 1, or the start is unknown.

    References:
        Tomczak, Welling: Improving Variational Auto-Encoders using Householder Flow, 2016, arXiv 1611.09630.

    Example:
        >>> import torch
        >>> from flowppl.pyro import Householder
        >>> swap = Householder(2, num_reflections=1)
        >>> swap.weights.assign({"v": torch.tensor([[1.0, -1.0]])})
        >>> swap(torch.tensor([3.0, 4.0])).detach().round(decimals=4).tolist()
        [4.0, 3.0]
    """

    def __init__(self, dim: int, num_reflections: int = 2, start: str = "identity") -> None:
        super().__init__(orthogonal.Householder(dim, num_reflections, start))


class LU(FlowTransform):
    r"""A linear map in its LU factors.

    .. math::
        y = P\,(I + L)\, \mathrm{diag}(\sigma)\,(I + U)\, x, \qquad \log|\det| = \sum_{i=1}^D \log \sigma_i

    P is the fixed ``permutation``, L strictly lower and U strictly upper triangular. The scale is
    :math:`\sigma = \log(1 + e^{s + c})`, with the constant c for which s = 0 gives 1: it grows linearly with its
    weight, not exponentially, and never reaches 0.

    The weights are ``scale``, of shape ``(dim,)``, for s, and ``lower`` and ``upper``, of shape
    ``(dim * (dim - 1) // 2,)``, for the entries of L and of the transpose of U, row by row. At the start all are 0,
    and the transform is P.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number D of coordinates.
        permutation: the numbers 0 to D-1 in any order, as in :class:`Permute`; ``None`` keeps theirs.

    Raises:
        ValueError: if ``dim`` < 1 or the permutation is none, or of another length.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039, section 3.2.

    Example:
        >>> import torch
        >>> from flowppl.pyro import LU
        >>> LU(3, permutation=(2, 0, 1))(torch.tensor([10.0, 20.0, 30.0])).tolist()
        [30.0, 10.0, 20.0]
    """

    def __init__(self, dim: int, permutation: Sequence[int] | None = None) -> None:
        super().__init__(linear.LU(dim, permutation))


class QR(FlowTransform):
    r"""A linear map in its QR factors.

    .. math::
        y = Q\, \mathrm{diag}(\sigma)\,(I + U)\, x, \qquad \log|\det| = \sum_{i=1}^D \log \sigma_i

    Q is a product of Householder reflections as in :class:`Householder`, U strictly upper triangular. The scale is
    :math:`\sigma = \log(1 + e^{s + c})`, with the constant c for which s = 0 gives 1: it grows linearly with its
    weight, not exponentially, and never reaches 0.

    The weights are ``v``, of shape ``(num_reflections, dim)``, for Q, ``scale``, of shape ``(dim,)``, for s, and
    ``upper``, of shape ``(dim * (dim - 1) // 2,)``, for the entries of the transpose of U, row by row. At the start
    the transform is the identity, or a reflection if their number is odd; with ``start="rotation"`` it is a random
    rotation, as in Glow.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number D of coordinates.
        num_reflections: the number of reflections; ``None`` is the largest even number up to D, and at least 2.
        start: ``"identity"``, or ``"rotation"`` for a random one.

    Raises:
        ValueError: if one of the sizes is below 1, or the start is unknown.

    References:
        Hoogeboom, van den Berg, Welling: Emerging Convolutions for Generative Normalizing Flows, 2019, arXiv
        1901.11137.

    Example:
        >>> import torch
        >>> from flowppl.pyro import QR
        >>> transform = QR(4)
        >>> x = torch.randn(5, 4)
        >>> bool(torch.allclose(transform(x), x, atol=1e-4))  # as long as it is not trained
        True
    """

    def __init__(self, dim: int, num_reflections: int | None = None, start: str = "identity") -> None:
        super().__init__(orthogonal.QR(dim, num_reflections, start))


class MatrixExponential(FlowTransform):
    r"""A linear map as the exponential of a matrix.

    .. math::
        y = e^A x, \qquad A = \frac{W}{\sqrt{1 + \|W\|^2 / 16^2}}, \qquad \log|\det| = \mathrm{trace}(A)

    with :math:`e^A = I + A + A^2/2! + \dots` and the root :math:`\|W\|` of the sum of the squares of W. A is W while
    that is small, and :math:`\|A\| < 16` always: no weights make a number that is not finite, or a map that has no
    inverse. The exponential is twelve terms of the series at :math:`A / 2^6`, squared six times.

    Choose it where many events are mapped, in both directions: :class:`LU` and :class:`QR` solve a triangular system on
    the way back, which took six times as long for 4096 events of 64 coordinates. A coordinate is stretched by at most
    :math:`e^{16}`, and all D alike by less than :math:`e^{16 / \sqrt{D}}`: put :class:`ElementwiseAffine` beside it
    for units.

    The weight is ``weight``, of shape ``(dim, dim)``, for W. At the start it is 0, and the transform the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each, of the same cost: a product with a matrix,
    which itself takes 11 products of D x D matrices.

    Args:
        dim: the number D of coordinates.

    Raises:
        ValueError: if ``dim`` < 1.

    References:
        Xiao, Liu: Generative Flows with Matrix Exponential, 2020, arXiv 2007.09651. The bound is ours.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import MatrixExponential
        >>> transform = MatrixExponential(2)
        >>> quarter_turn = torch.tensor([[0.0, -torch.pi / 2], [torch.pi / 2, 0.0]])
        >>> transform.weights.assign(fp.MatrixExponential(2).parameters_for(quarter_turn))
        >>> transform(torch.tensor([1.0, 2.0])).detach().round(decimals=4).tolist()
        [-2.0, 1.0]
    """

    def __init__(self, dim: int) -> None:
        super().__init__(exponential.MatrixExponential(dim))


class ActNorm(FlowTransform):
    r"""A location and a scale for each coordinate, to be set from data: :math:`y = \mu + \sigma \odot x`.

    The log determinant is the sum of :math:`\log \sigma_i` over the coordinates. :meth:`Flow.init_from`, which
    ``fit_density`` calls, sets :math:`\mu` and :math:`\sigma` to the mean and the standard deviation of a first batch
    of y, so that ``transform.inv`` gives it mean 0 and variance 1; until then the transform is the identity. Otherwise
    it is :class:`ElementwiseAffine`, with the same weights.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number of coordinates.

    Raises:
        ValueError: if ``dim`` < 1.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039, section 3.1.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow
        >>> data = torch.tensor([[2.0], [6.0]])
        >>> flow = Flow(fp.ActNorm(1)).init_from(data)
        >>> flow.transform.inv(data).detach().round(decimals=4).tolist()
        [[-1.0], [1.0]]
    """

    def __init__(self, dim: int) -> None:
        super().__init__(linear.ActNorm(dim))


class ElementwiseAffine(FlowTransform):
    r"""A location and a positive scale for each coordinate: :math:`y = \mu + \sigma \odot x`.

    The log determinant is the sum of :math:`\log \sigma_i` over the coordinates. The scale is
    :math:`\sigma = \log(1 + e^{s + c})`, with the constant c for which s = 0 gives 1: it grows linearly with its
    weight, not exponentially, and never reaches 0.

    The weights are ``loc`` for :math:`\mu` and ``scale`` for s, both of shape ``(dim,)``. At the start both are 0, and
    the transform the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number of coordinates.

    Raises:
        ValueError: if ``dim`` < 1.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import ElementwiseAffine
        >>> transform = ElementwiseAffine(2)
        >>> loc, scale = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5])
        >>> transform.weights.assign(fp.ElementwiseAffine(2).parameters_for(loc, scale))
        >>> transform(torch.ones(2)).detach().round(decimals=4).tolist()
        [4.0, 2.5]
    """

    def __init__(self, dim: int) -> None:
        super().__init__(linear.ElementwiseAffine(dim))


class TriangularAffine(FlowTransform):
    r"""A location and a lower-triangular matrix: :math:`y = \mu + \mathrm{diag}(\sigma)\,(I + T)\, x`.

    T is strictly lower triangular. Of a standard normal the transform makes any multivariate normal. The log
    determinant is the sum of :math:`\log \sigma_i` over the coordinates. The scale is
    :math:`\sigma = \log(1 + e^{s + c})`, with the constant c for which s = 0 gives 1: it grows linearly with its
    weight, not exponentially, and never reaches 0.

    The weights are ``loc`` for :math:`\mu` and ``scale`` for s, both of shape ``(dim,)``, and ``lower``, of shape
    ``(dim * (dim - 1) // 2,)``, for the entries of T, row by row. At the start all are 0, and the transform the
    identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each.

    Args:
        dim: the number of coordinates.

    Raises:
        ValueError: if ``dim`` < 1.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import TriangularAffine
        >>> transform = TriangularAffine(2)
        >>> loc, scale_tril = torch.tensor([1.0, 2.0]), torch.tensor([[2.0, 0.0], [1.0, 3.0]])
        >>> transform.weights.assign(fp.TriangularAffine(2).parameters_for(loc, scale_tril))
        >>> transform(torch.ones(2)).detach().round(decimals=4).tolist()
        [3.0, 6.0]
    """

    def __init__(self, dim: int) -> None:
        super().__init__(linear.TriangularAffine(dim))


class LowRankAffine(FlowTransform):
    r"""A location, a scale for each coordinate, and K directions along which coordinates go together.

    .. math::
        y = \mu + \mathrm{diag}(\sigma)\,(I + U^\top U)\,(I + V^\top V)^{-1} x, \qquad \log|\det| = \sum_{i=1}^D \log
        \sigma_i + \log\det(I + U U^\top) - \log\det(I + V V^\top)

    U and V are K x D: what varies along the rows of U is stretched, what varies along those of V shrinks. The scale is
    :math:`\sigma = \log(1 + e^{s + c})`, with the constant c for which s = 0 gives 1. There is an inverse for all
    weights, since no eigenvalue of :math:`I + U^\top U` is below 1.

    Of a standard normal the transform makes every normal whose covariance is a diagonal matrix plus a positive
    semi-definite one of rank K (then V is 0, and the correlations may have any sign), and every normal of which the
    same holds for the inverse of the covariance (then U is 0); and more. Choose it for thousands of coordinates that a
    few directions correlate: it takes O(DK) memory, where :class:`TriangularAffine` has :math:`D^2 / 2` weights.

    The weights are ``loc`` for :math:`\mu` and ``scale`` for s, both of shape ``(dim,)``, and ``directions``, of shape
    ``(2 * rank, dim)``, for the rows of U and V in turn. With r, a row of weights divided by :math:`\sqrt{D}`, that of
    U or V is :math:`r / \sqrt{1 + |r|^2 / 32^2}`. At the start U = V is random, and the transform the identity.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``.

    ``transform(x)`` and ``transform.inv(y)`` are one parallel pass each, of O(DK) operations for each event and
    :math:`O(DK^2)` once.

    Args:
        dim: the number D of coordinates.
        rank: the number K of directions of each kind, at most D.

    Raises:
        ValueError: if one of the sizes is below 1, or ``rank`` is above ``dim``.

    References:
        Ong, Nott, Smith: Gaussian variational approximation with a factor covariance structure, 2017, arXiv 1701.03208,
        has the normals with V = 0; the form of the map is ours.

    Example:
        >>> import torch
        >>> from flowppl.pyro import LowRankAffine
        >>> transform = LowRankAffine(1000, rank=2)
        >>> x = torch.randn(5, 1000)
        >>> bool(torch.allclose(transform(x), x, atol=1e-4))  # as long as it is not trained
        True
    """

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(low_rank.LowRankAffine(dim, rank))
