"""A bijection of a few directions among many coordinates."""

from __future__ import annotations

import dataclasses

from flowppl._arrays.namespace import namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, check_event
from flowppl.bijections.residual import times
from flowppl.checks import check_sizes
from flowppl.declare import Normal, Parameter


@dataclasses.dataclass(frozen=True)
class Subspace(Bijection):
    r"""A bijection f of R coordinates, applied in R trained directions of D coordinates.

    .. math::
        y = x + Q\,\big(f(Q^\top x) - Q^\top x\big), \qquad \log|\det \partial y / \partial x| = \log|\det
        \partial f|,

    with D x R orthonormal columns Q: what is orthogonal to all of them stays as it is. The inverse is the same with
    :math:`f^{-1}`. With a linear f this is a matrix of low rank added to the identity: 2RD operations for each event,
    and once :math:`R^2 D` for Q, where a triangular matrix takes :math:`D^2` for each.

    Args:
        dim: the number D of coordinates.
        bijection: the bijection f of vectors of length R, with R at most D.

    Raises:
        ValueError: if ``dim`` is below R, or f is not from vectors of one length to vectors of that length, over all
            real numbers.

    References:
        A frame around a smaller map is that of Sylvester flows: van den Berg, Hasenclever, Tomczak, Welling: Sylvester
        Normalizing Flows for Variational Inference, 2018, arXiv 1803.05649. Low rank in guides: Ong, Nott, Smith:
        Gaussian variational approximation with a factor covariance structure, 2017, arXiv 1701.03208.

    Example:
        >>> import flowppl as fp
        >>> layer = fp.Subspace(1000, fp.TriangularAffine(10))
        >>> layer.x_shape, layer.parameters()["frame"].shape
        ((1000,), (1000, 10))
    """

    dim: int
    bijection: Bijection

    def __post_init__(self):
        check_sizes("Subspace", dim=self.dim)
        check_bijection(self.bijection)
        shape, kind = self.bijection.x_shape, type(self.bijection).__name__
        if len(shape) != 1 or self.bijection.y_shape != shape or shape[0] > self.dim:
            raise ValueError(
                f"Subspace: bijection must map vectors of at most dim={self.dim} coordinates, but {kind} maps events "
                f"of shape {shape} to {self.bijection.y_shape}"
            )
        if {self.bijection.x_support, self.bijection.y_support} != {REAL_LINE}:
            raise ValueError(
                f"Subspace: bijection must map real numbers to real numbers, but {kind} maps "
                f"{self.bijection.x_support} to {self.bijection.y_support}; bound the coordinates by a last layer"
            )

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijection.context_dim

    @property
    def forward_cost(self) -> str:
        return self.bijection.forward_cost

    @property
    def inverse_cost(self) -> str:
        return self.bijection.inverse_cost

    def parameters(self) -> Tree:
        frame = Parameter((self.dim, *self.bijection.x_shape), Normal(1.0))
        return {"frame": frame, "bijection": self.bijection.parameters()}

    def constants(self) -> Tree:
        constants = self.bijection.constants()
        return {"bijection": constants} if constants else {}

    def init_from(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        inside = times(xp, xp.orthonormal(params["frame"]).mT, y)
        inner = self.bijection.init_from(params.get("bijection", {}), inside, context)
        return {"frame": params["frame"], "bijection": inner}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self._within(self.bijection.forward, params, x, context)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self._within(self.bijection.inverse, params, y, context)

    def push_score(self, params, x, score, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        frame = xp.orthonormal(params["frame"])
        fixed, score = xp.stop_gradient(frame), xp.stop_gradient(score)
        before, along = times(xp, frame.mT, x), times(xp, fixed.mT, score)
        after, log_det, new = self.bijection.push_score(params.get("bijection", {}), before, along, context)
        return x + times(xp, frame, after - before), log_det, score + times(xp, fixed, new - along)

    def _within(self, direction, params, event, context):
        xp = namespace(event)
        frame = xp.orthonormal(params["frame"])
        before = times(xp, frame.mT, event)
        after, log_det = direction(params.get("bijection", {}), before, context)
        return event + times(xp, frame, after - before), log_det
