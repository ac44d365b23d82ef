"""Bijections made of bijections: ``Chain`` and ``Invert``, and what those of others share."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from flowppl._arrays import tree as _tree
from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import OTHER, REAL_LINE, Bijection, added, check_bijection, check_event, slowest
from flowppl.bijections.image.squeeze import Reshape, Squeeze
from flowppl.bijections.linear import Permute
from flowppl.bijections.reversible import check_reversible, run
from flowppl.checks import assign, derived


class Several(Bijection):
    """A bijection made of others, its field ``bijections``, whose weights it has under their numbers."""

    bijections: Sequence[Bijection]

    def __post_init__(self):
        name = type(self).__name__
        if isinstance(self.bijections, Bijection):
            raise TypeError(f"{name}: bijections must be a list of them, got one {type(self.bijections).__name__}")
        assign(self, bijections=tuple(self.bijections))
        if not self.bijections:
            raise ValueError(f"{name}: bijections must not be empty")
        for i, part in enumerate(self.bijections):
            if not isinstance(part, Bijection):
                raise TypeError(f"{name}: bijections[{i}] must be a Bijection, got {type(part).__name__}")

    def _check_contexts(self):
        sizes = {part.context_dim for part in self.bijections} - {0}
        if len(sizes) > 1:
            raise ValueError(
                f"{type(self).__name__}: all parts that take a context must take the same one, got sizes "
                f"{sorted(sizes)}"
            )

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return max(part.context_dim for part in self.bijections)

    @property
    def forward_cost(self) -> str:
        return slowest(part.forward_cost for part in self.bijections)

    @property
    def inverse_cost(self) -> str:
        return slowest(part.inverse_cost for part in self.bijections)

    def parameters(self) -> Tree:
        declared = {str(i): part.parameters() for i, part in enumerate(self.bijections)}
        return {key: tree for key, tree in declared.items() if tree}

    def constants(self) -> Tree:
        declared = {str(i): part.constants() for i, part in enumerate(self.bijections)}
        return {key: tree for key, tree in declared.items() if tree}


@dataclasses.dataclass(frozen=True)
class Chain(Several):
    r"""Bijections one after the other: :math:`f = f_n \circ \dots \circ f_1`.

    ``forward`` applies the first of the list first. The log determinants add up. All parts that take a
    context take the same one.

    Args:
        bijections: the parts, in the order in which ``forward`` applies them. Each one's ``y_shape``
            must be the next one's ``x_shape``.
        reversible: keep for derivatives the image alone, and compute what the layers see again from there, by their
            inverses: see :func:`flowppl.reversible`. No number changes, but for rounding.

    Warns:
        UserWarning: if ``reversible`` and a direction of a layer is sequential or iterative, for which derivatives of
            the other wait.

    Raises:
        ValueError: if the list is empty, or shapes, supports or context sizes do not fit together.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.Chain([fp.Coupling(4), fp.Permute((3, 2, 1, 0))])
        >>> flow.x_shape, sorted(flow.parameters())
        ((4,), ['0'])
    """

    bijections: Sequence[Bijection]
    reversible: bool = False
    _moves: tuple[bool, ...] = derived()  # which only move numbers, and leave supports and volumes as they are
    _bounding: tuple[Bijection, ...] = derived()  # the others, in order

    def __post_init__(self):
        super().__post_init__()
        for i, (first, second) in enumerate(zip(self.bijections, self.bijections[1:], strict=False)):
            if first.y_shape != second.x_shape:
                raise ValueError(
                    f"Chain: bijections[{i}] ({type(first).__name__}) gives events of shape {first.y_shape}, but "
                    f"bijections[{i + 1}] ({type(second).__name__}) takes events of shape {second.x_shape}"
                )
        assign(self, _moves=tuple(map(_only_moves, self.bijections)))
        bounding = [(i, part) for i, part in enumerate(self.bijections) if not self._moves[i]]
        for (i, first), (j, second) in itertools.pairwise(bounding):
            if first.y_support != second.x_support:
                raise ValueError(
                    f"Chain: bijections[{i}] ({type(first).__name__}) gives values in {first.y_support}, but "
                    f"bijections[{j}] ({type(second).__name__}) takes values in {second.x_support}; a layer that "
                    "bounds its values comes last"
                )
        assign(self, _bounding=tuple(part for _, part in bounding))
        self._check_contexts()
        check_reversible(self, self.reversible)

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.bijections[0].x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.bijections[-1].y_shape

    @property
    def x_support(self) -> tuple[float, float]:
        return self._bounding[0].x_support if self._bounding else REAL_LINE

    @property
    def y_support(self) -> tuple[float, float]:
        return self._bounding[-1].y_support if self._bounding else REAL_LINE

    def prepare(self, params):
        own = {str(i): part for i, part in enumerate(self.bijections) if str(i) in params}
        return {**params, **{key: part.prepare(params[key]) for key, part in own.items()}}

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return run(self, "forward", params, x, context)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return run(self, "inverse", params, y, context)

    def _run(self, direction, params, event, context):
        total = None
        for i, part in self._in_order(direction == "inverse"):
            apply, given = getattr(part, direction), context if part.context_dim else None
            event, log_det = apply(params.get(str(i), {}), event, given)
            if total is None:
                total = log_det
            elif not self._moves[i]:
                total = total + log_det
        return event, total

    def _in_order(self, reverse):
        parts = list(enumerate(self.bijections))
        return parts[::-1] if reverse else parts

    def pull_back(self, direction, params, image, cotangents, context=None):
        of_image, of_log_det = cotangents
        of_params, of_context = {}, None
        for i, part in self._in_order(direction == "forward"):
            own, given = params.get(str(i), {}), context if part.context_dim else None
            image, of_own, of_image, found = part.pull_back(direction, own, image, (of_image, of_log_det), given)
            of_params[str(i)] = of_own
            of_context = added(of_context, found)
        return image, of_params, of_image, of_context

    def push_score(self, params, x, score, context=None):
        check_event(self, x, self.x_shape, context)
        total = None
        for i, part in enumerate(self.bijections):
            own, given = params.get(str(i), {}), context if part.context_dim else None
            x, log_det, score = part.push_score(own, x, score, given)
            total = log_det if total is None else total + log_det
        return x, total, score

    def init_from(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        new = {}
        for i, part in reversed(list(enumerate(self.bijections))):
            own, given = params.get(str(i), {}), context if part.context_dim else None
            new[str(i)] = part.init_from(own, y, given)
            y, _ = part.inverse(_tree.replace(own, new[str(i)]), y, given)
        return _tree.select(self.parameters(), new)


def _only_moves(part: Bijection) -> bool:
    """Whether a bijection does no more than to put numbers in other places."""
    return isinstance(part.bijection if isinstance(part, Invert) else part, (Permute, Squeeze, Reshape))


class SameWeights(Bijection):
    """A bijection with the weights, the constants and the context of another, its field ``bijection``."""

    bijection: Bijection

    def __post_init__(self):
        check_bijection(self.bijection)

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijection.context_dim

    def parameters(self) -> Tree:
        return self.bijection.parameters()

    def constants(self) -> Tree:
        return self.bijection.constants()


@dataclasses.dataclass(frozen=True)
class Invert(SameWeights):
    """A bijection with its two directions exchanged, over the same parameters.

    ``Invert(b).forward`` is ``b.inverse``. A masked autoregressive flow is an inverted inverse
    autoregressive flow, for example. ``init_from`` sets nothing inside: its data lie on the other side.

    Args:
        bijection: the bijection to turn around.

    Example:
        >>> import flowppl as fp
        >>> fp.Autoregressive(8).forward_cost, fp.Invert(fp.Autoregressive(8)).forward_cost
        ('parallel', 'sequential')
    """

    bijection: Bijection

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.bijection.y_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.bijection.x_shape

    @property
    def x_support(self) -> tuple[float, float]:
        return self.bijection.y_support

    @property
    def y_support(self) -> tuple[float, float]:
        return self.bijection.x_support

    @property
    def forward_cost(self) -> str:
        return self.bijection.inverse_cost

    @property
    def inverse_cost(self) -> str:
        return self.bijection.forward_cost

    def prepare(self, params):
        return self.bijection.prepare(params)

    def forward(self, params, x, context=None):
        return self.bijection.inverse(params, x, context)

    def inverse(self, params, y, context=None):
        return self.bijection.forward(params, y, context)

    def pull_back(self, direction, params, image, cotangents, context=None):
        return self.bijection.pull_back(OTHER[direction], params, image, cotangents, context)


class Wrapper(Bijection):
    """A bijection with the shapes, the supports and the costs of another, its field ``bijection``."""

    bijection: Bijection

    @property
    def x_shape(self) -> tuple[int, ...]:
        return self.bijection.x_shape

    @property
    def y_shape(self) -> tuple[int, ...]:
        return self.bijection.y_shape

    @property
    def x_support(self) -> tuple[float, float]:
        return self.bijection.x_support

    @property
    def y_support(self) -> tuple[float, float]:
        return self.bijection.y_support

    @property
    def forward_cost(self) -> str:
        return self.bijection.forward_cost

    @property
    def inverse_cost(self) -> str:
        return self.bijection.inverse_cost


def inverted(bijection: Bijection) -> Bijection:
    """``Invert(bijection)``, or the inner bijection if it is inverted already."""
    return bijection.bijection if isinstance(bijection, Invert) else Invert(bijection)
