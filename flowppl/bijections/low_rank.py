r"""A scale for each coordinate and a few directions of correlation among many."""

from __future__ import annotations

import dataclasses

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event, held
from flowppl.bijections.exponential import shortened
from flowppl.bijections.linear import diagonal, positive
from flowppl.bijections.orthogonal import InPairs
from flowppl.bijections.residual import times
from flowppl.checks import check_sizes
from flowppl.declare import Parameter

LONGEST = 32.0  # of a row of U and V


class Spread:
    r"""The positive definite matrix :math:`I + U^\top U`, for the K rows of U, and its inverse, without making either.

    The inverse is :math:`I - U^\top C^{-1} U` with :math:`C = I + U U^\top`, K x K, and the determinants of the two are
    the same. No eigenvalue of C is below 1, so that its Cholesky factor exists for every U.
    """

    def __init__(self, rows: Array) -> None:
        xp = namespace(rows)
        gram = xp.matmul(rows, rows.mT)
        factor = xp.cholesky(gram + diagonal(xp.ones_like(gram[..., 0])))
        self.rows, self.width = rows, xp.linalg.diagonal(factor)
        self.lower = factor / self.width[..., None, :]

    def log_det(self) -> Array:
        xp = namespace(self.rows)
        return 2 * xp.sum(xp.log(self.width), axis=-1)

    def times(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.linear(times(xp, self.rows, x), self.rows, x)

    def solve(self, x: Array) -> Array:
        xp = namespace(x)
        along = xp.solve_unit_triangular(self.lower, times(xp, self.rows, x)) / self.width**2
        return xp.linear(-xp.solve_unit_triangular(self.lower.mT, along, upper=True), self.rows, x)


@dataclasses.dataclass(frozen=True)
class LowRankAffine(Bijection):
    r"""A location, a scale for each coordinate, and K directions along which coordinates go together.

    .. math::
        y = \mu + \mathrm{diag}(\sigma)\,(I + U^\top U)\,(I + V^\top V)^{-1} x, \qquad \log|\det| = \sum_{i=1}^D \log
        \sigma_i + \log\det(I + U U^\top) - \log\det(I + V V^\top)

    U and V are K x D: what varies along the rows of U is stretched, what varies along those of V shrinks. The scale is
    :math:`\sigma = \log(1 + e^{s + c}) > 0` as in :class:`ElementwiseAffine`. It has an inverse for all weights, since
    no eigenvalue of :math:`I + U^\top U` is below 1, and of the same form:

    .. math::
        (I + V^\top V)^{-1} = I - V^\top (I + V V^\top)^{-1} V .

    Of a standard normal it makes every normal whose covariance is a diagonal matrix plus a positive semi-definite one
    of rank K (then V is 0, and the correlations may have any sign), and every normal of which the same holds for the
    inverse of the covariance (then U is 0); and more. With r, a row of weights divided by :math:`\sqrt{D}`, that of U
    or V is :math:`r / \sqrt{1 + |r|^2 / 32^2}`: shorter than 32, so that one row stretches by at most 1025.

    Choose it for thousands of coordinates that a few directions correlate: both directions cost O(DK) for each event,
    and :math:`O(DK^2)` once for each set of weights, in O(DK) memory, where :class:`TriangularAffine` has
    :math:`D^2 / 2` weights. A :class:`Subspace` bends such directions too.

    Args:
        dim: the number D of coordinates.
        rank: the number K of directions of each kind, at most D.

    Raises:
        ValueError: if one of the sizes is below 1, or ``rank`` is above ``dim``.

    References:
        Ong, Nott, Smith: Gaussian variational approximation with a factor covariance structure, 2017, arXiv 1701.03208,
        has the normals with V = 0; the form of the map is ours.

    Example:
        >>> import flowppl as fp
        >>> layer = fp.LowRankAffine(1000, rank=2)
        >>> {name: p.shape for name, p in layer.parameters().items()}
        {'loc': (1000,), 'scale': (1000,), 'directions': (4, 1000)}
    """

    dim: int
    rank: int

    def __post_init__(self):
        check_sizes("LowRankAffine", dim=self.dim, rank=self.rank)
        if self.rank > self.dim:
            raise ValueError(f"LowRankAffine: rank must be at most dim={self.dim}, got {self.rank}")

    def parameters(self) -> Tree:
        # U and V start as the same, at random: at U = V = 0 derivatives would be 0.
        directions = Parameter((2 * self.rank, self.dim), InPairs())
        return {"loc": Parameter((self.dim,)), "scale": Parameter((self.dim,)), "directions": directions}

    def _factors(self, params):
        """The scale, and the matrices of U and V, whose rows alternate."""
        rows = shortened(params["directions"] / self.dim**0.5, LONGEST, -1)
        return positive(params["scale"]), Spread(rows[..., ::2, :]), Spread(rows[..., 1::2, :])

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        scale, wider, narrower = self._factors(params)
        y = params["loc"] + scale * wider.times(narrower.solve(x))
        return y, self._log_det(scale, wider, narrower, y)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        scale, wider, narrower = self._factors(params)
        x = narrower.times(wider.solve((y - params["loc"]) / scale))
        return x, -self._log_det(scale, wider, narrower, x)

    def push_score(self, params, x, score, context=None):
        y, log_det = self.forward(params, x, context)
        xp = namespace(y)
        scale, wider, narrower = self._factors(held(params))
        score = wider.solve(narrower.times(xp.stop_gradient(xp.broadcast_to(score, y.shape))))
        return y, log_det, score / scale

    def _log_det(self, scale, wider, narrower, image):
        xp = namespace(image)
        scales = xp.sum(xp.log(scale) + xp.zeros_like(image), axis=-1)
        return scales + wider.log_det() - narrower.log_det()
