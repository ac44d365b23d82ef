r"""Sylvester flows: residual flows with many hidden units in an orthonormal frame.

All three kinds are

.. math::
    y = x + Q R \tanh(\tilde R\, Q^\top x + b), \qquad
    \log|\det| = \sum_{i=1}^M \log\big(1 + r_{ii}\, \tilde r_{ii}\, (1 - \tanh^2(\cdot)_i)\big),

with D x M orthonormal columns Q and M x M upper triangular matrices :math:`R, \tilde R`; they differ in Q. The flow is
invertible where all :math:`r_{ii} \tilde r_{ii} > -1`. To that end the diagonal of R is made from a free number
:math:`\rho`,

.. math::
    r = (1 - \varepsilon)\, \rho \,/\, \big(1 + \log(1 + e^{-\rho \tilde r})\big), \qquad \varepsilon = 10^{-3},

which keeps the product above -0.999 and, unlike a pair of diagonals bounded by 1, sets it no limit above. In half
precision :math:`\varepsilon` is twice its rounding at 1. At the start R is 0, and the flow the identity.

The inverse is exact. In the frame, :math:`t = Q^\top y = v + R \tanh(\tilde R v + b)` is triangular in
:math:`v = Q^\top x`: from the last component to the first, each is the root of one scalar equation, that of a planar
flow. A plain fixed-point iteration diverges instead where R is large.

van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
1803.05649.
"""

from __future__ import annotations

import abc
import dataclasses

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection, check_event
from flowppl.bijections.linear import join, triangle, triangle_position
from flowppl.bijections.orthogonal import reflect, unit_rows
from flowppl.bijections.residual import min_slope, root_of_bend, times
from flowppl.checks import assign, check_sizes
from flowppl.declare import Normal, Parameter


class Sylvester(Bijection):
    """What the three kinds share; see the text at the head of this module."""

    num_units: int

    @abc.abstractmethod
    def _frame(self, params: Tree) -> Array:
        """What is needed of Q, made once for both of the following; it has more than two axes only where weights do."""

    @abc.abstractmethod
    def _to_frame(self, frame: Array, x: Array) -> Array:
        """:math:`Q^T x`."""

    @abc.abstractmethod
    def _from_frame(self, frame: Array, v: Array) -> Array:
        """:math:`Q v`."""

    @property
    def inverse_cost(self) -> str:
        return "sequential"

    def parameters(self) -> Tree:
        size = self.num_units
        half = size * (size - 1) // 2
        draw = Normal(size**-0.5)  # only one of the two matrices may start at zero, or neither would ever leave it
        return {
            "outer_diagonal": Parameter((size,)),
            "outer": Parameter((half,)),
            "inner_diagonal": Parameter((size,), draw),
            "inner": Parameter((half,), draw),
            "b": Parameter((size,)),
        }

    def constants(self) -> Tree:
        return {"position": triangle_position(self.num_units, diagonal=True), "index": np.arange(self.num_units)}

    def _matrices(self, params):
        """R, the inner matrix, and the product of their diagonals."""
        xp = namespace(params["b"])
        free, inner_diagonal = params["outer_diagonal"], params["inner_diagonal"]
        outer_diagonal = (1 - min_slope(xp, free.dtype)) * free / (1 + xp.softplus(-free * inner_diagonal))

        def upper(entries, diagonal):
            return triangle(join(entries, diagonal), params["position"], self.num_units).mT

        outer, inner = upper(params["outer"], outer_diagonal), upper(params["inner"], inner_diagonal)
        return outer, inner, outer_diagonal * inner_diagonal

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        xp = namespace(x)
        frame = self._frame(params)
        outer, inner, gain = self._matrices(params)
        if max(outer.ndim, inner.ndim, frame.ndim) == 2:  # put the frame into the matrices, once for all events
            both = self._from_frame(frame, xp.concat([inner, outer.mT], axis=0))
            step = xp.tanh(xp.linear(x, both[: self.num_units, :].mT, params["b"]))
            y = xp.linear(step, both[self.num_units :, :], x)
        else:
            step = xp.tanh(times(xp, inner, self._to_frame(frame, x)) + params["b"])
            y = x + self._from_frame(frame, times(xp, outer, step))
        return y, xp.sum(xp.log1p(gain * (1 - step * step)), axis=-1) + xp.zeros_like(y[..., 0])

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        xp = namespace(y)
        frame = self._frame(params)
        outer, inner, gain = self._matrices(params)
        t = self._to_frame(frame, y)
        shapes = [t.shape[:-1], params["b"].shape[:-1], *(matrix.shape[:-2] for matrix in (outer, inner))]
        t = xp.broadcast_to(t, (*xp.broadcast_shapes(*shapes), self.num_units))

        def find(carry, row):
            """One component, those before it still zero: its activation a solves ``a + gain * tanh(a) = target``."""
            v, steps = carry
            rest = row["t"] - xp.sum(row["outer"] * steps, axis=-1)
            target = xp.sum(row["inner"] * v, axis=-1) + row["b"] + row["inner_diagonal"] * rest
            step = xp.tanh(root_of_bend(xp, target, row["gain"] + xp.zeros_like(target)))
            here = params["index"] == row["index"]
            v = xp.where(here, (rest - row["outer_diagonal"] * step)[..., None], v)
            return v, xp.where(here, step[..., None], steps)

        rows = {"outer": xp.moveaxis(outer, -2, 0), "inner": xp.moveaxis(inner, -2, 0)}
        columns = {
            "t": t,
            "outer_diagonal": xp.linalg.diagonal(outer),
            "inner_diagonal": params["inner_diagonal"],
            "gain": gain,
            "b": params["b"],
            "index": params["index"],
        }
        rows |= {name: xp.moveaxis(column, -1, 0) for name, column in columns.items()}
        _, step = xp.scan(find, (xp.zeros_like(t), xp.zeros_like(t)), rows, self.num_units, reverse=True)
        x = y - self._from_frame(frame, times(xp, outer, step))
        return x, -xp.sum(xp.log1p(gain * (1 - step * step)), axis=-1)


@dataclasses.dataclass(frozen=True)
class OrthogonalSylvester(Sylvester):
    r"""A Sylvester flow whose frame is any D x M orthonormal matrix (O-SNF).

    .. math::
        y = x + Q R \tanh(\tilde R\, Q^\top x + b)

    The columns of Q are those of the QR decomposition of a free matrix, orthonormal wherever it has full rank. Where
    every event has weights of its own, :class:`HouseholderSylvester` is cheaper. See
    :mod:`flowppl.bijections.sylvester` for R and the inverse.

    Args:
        dim: the number D of coordinates.
        num_units: the number M of hidden units.

    Raises:
        ValueError: if one of them is below 1, or there are more units than coordinates.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import flowppl as fp
        >>> fp.OrthogonalSylvester(10, num_units=4).parameters()["q"].shape
        (10, 4)
    """

    dim: int
    num_units: int = 1

    def __post_init__(self):
        _check_units("OrthogonalSylvester", self.dim, self.num_units)

    def parameters(self) -> Tree:
        return {"q": Parameter((self.dim, self.num_units), Normal(1.0))} | super().parameters()

    def _frame(self, params):
        return namespace(params["q"]).orthonormal(params["q"])

    def _to_frame(self, frame, x):
        return times(namespace(x), frame.mT, x)

    def _from_frame(self, frame, v):
        return times(namespace(v), frame, v)


@dataclasses.dataclass(frozen=True)
class HouseholderSylvester(Sylvester):
    r"""A Sylvester flow whose frame is made of Householder reflections (H-SNF).

    .. math::
        y = x + Q R \tanh(\tilde R\, Q^\top x + b), \qquad Q = \text{the first M columns of } H_1 \cdots H_K

    It costs O(KD + M^2) for each event also where every event has weights of its own. The paper has M = D. See
    :mod:`flowppl.bijections.sylvester` for R and the inverse.

    Args:
        dim: the number D of coordinates.
        num_units: the number M of hidden units; ``None`` is D.
        num_reflections: the number K of reflections; ``None`` is 8, or D if that is less.

    Raises:
        ValueError: if one of them is below 1, or there are more units than coordinates.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import flowppl as fp
        >>> fp.HouseholderSylvester(10, num_units=4, num_reflections=2).parameters()["v"].shape
        (2, 10)
    """

    dim: int
    num_units: int = None  # type: ignore[assignment]  # an int from __post_init__ on
    num_reflections: int = None  # type: ignore[assignment]

    def __post_init__(self):
        check_sizes("HouseholderSylvester", dim=self.dim)
        num_units = self.dim if self.num_units is None else self.num_units
        num_reflections = min(8, self.dim) if self.num_reflections is None else self.num_reflections
        _check_units("HouseholderSylvester", self.dim, num_units)
        check_sizes("HouseholderSylvester", num_reflections=num_reflections)
        assign(self, num_units=num_units, num_reflections=num_reflections)

    def parameters(self) -> Tree:
        return {"v": Parameter((self.num_reflections, self.dim), Normal(1.0))} | super().parameters()

    def _frame(self, params):
        return unit_rows(params["v"])

    def _to_frame(self, frame, x):
        return reflect(frame, x)[..., : self.num_units]

    def _from_frame(self, frame, v):
        xp = namespace(v)
        if self.num_units < self.dim:
            v = join(v, xp.zeros_like(frame[..., 0, self.num_units :]))
        return reflect(xp.flip(frame, axis=-2), v)


@dataclasses.dataclass(frozen=True)
class TriangularSylvester(Sylvester):
    r"""A Sylvester flow in the frame of the coordinates themselves (T-SNF).

    .. math::
        y = x + R \tanh(\tilde R\, x + b)

    Stacks alternate it with the reverse permutation, as :func:`flowppl.triangular_sylvester` does. See
    :mod:`flowppl.bijections.sylvester` for R and the inverse.

    Args:
        dim: the number of coordinates, and of hidden units.

    Raises:
        ValueError: if ``dim`` < 1.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649.

    Example:
        >>> import flowppl as fp
        >>> fp.TriangularSylvester(10).num_units
        10
    """

    dim: int

    def __post_init__(self):
        check_sizes("TriangularSylvester", dim=self.dim)

    @property
    def num_units(self) -> int:  # type: ignore[override]
        return self.dim

    def _frame(self, params):
        return params["index"]  # not used: the frame is the identity

    def _to_frame(self, frame, x):
        return x

    def _from_frame(self, frame, v):
        return v


def _check_units(owner, dim, num_units):
    check_sizes(owner, dim=dim, num_units=num_units)
    if num_units > dim:
        raise ValueError(
            f"{owner}: num_units={num_units} is more than dim={dim}, but no more than {dim} columns can be orthonormal"
        )
