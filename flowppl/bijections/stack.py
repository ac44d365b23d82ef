"""Bijections of the blocks of a vector, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from flowppl._arrays import tree as _tree
from flowppl._arrays.namespace import Array, namespace
from flowppl.bijections.combine import Several
from flowppl.bijections.contract import Bijection, check_event
from flowppl.bijections.linear import join


@dataclasses.dataclass(frozen=True)
class Stack(Several):
    r"""Bijections :math:`f_1, \dots, f_n` of consecutive blocks of a vector, side by side: :math:`y_k = f_k(x_k)`.

    .. math::
        x = (x_1, \dots, x_n), \quad y = (y_1, \dots, y_n), \qquad \log|\det| = \sum_{k=1}^n \log|\det f_k'(x_k)| .

    Of an independent base the blocks of y are independent of each other: a product of densities, each of the flow that
    suits it. With ``conditional=True`` each block is given those before it,

    .. math::
        y_k = f_k(x_k;\; c, y_1, \dots, y_{k-1}),

    which by the product rule of probability is any density again: :math:`p(y_1 | c)\, p(y_2 | c, y_1) \cdots`. The
    context of :math:`f_k` is then the context c of the stack, if it has one, followed by the blocks before.

    Choose it where the groups of variables are known: locations and scales, causes and effects, columns of a kind.
    Both directions cost as much as the dearest block. With ``conditional=True`` the blocks of ``forward`` wait for each
    other; ``inverse``, which scores data, does not.

    Args:
        bijections: the bijections of vectors, in the order of their blocks.
        conditional: whether each is given the blocks before it: a bijection with C numbers of context comes first
            (0 if it has none), and every other has ``context_dim`` C plus the number of coordinates before it.

    Raises:
        TypeError: if one of them is no bijection.
        ValueError: if the list is empty, one does not map vectors to vectors of the same length, their supports differ
            (a flow has one for all coordinates), or the sizes of their contexts do not fit.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.Stack([fp.realnvp(4), fp.ElementwiseAffine(2)])
        >>> flow.x_shape, flow.forward_cost, flow.inverse_cost
        ((6,), 'parallel', 'parallel')
        >>> given = fp.Stack([fp.realnvp(4), fp.realnvp(2, context_dim=4)], conditional=True)
        >>> given.context_dim, given.forward_cost, given.inverse_cost
        (0, 'sequential', 'parallel')
    """

    bijections: Sequence[Bijection]
    conditional: bool = False

    def __post_init__(self):
        super().__post_init__()
        first, before = self.bijections[0], 0
        for i, part in enumerate(self.bijections):
            kind, shape = f"bijections[{i}] ({type(part).__name__})", part.x_shape
            if len(shape) != 1 or part.y_shape != shape:
                raise ValueError(
                    f"Stack: {kind} must map vectors to vectors of the same length, but maps events of shape {shape} "
                    f"to {part.y_shape}"
                )
            for side in ("x_support", "y_support"):
                found, others = getattr(part, side), getattr(first, side)
                if found != others:
                    raise ValueError(
                        f"Stack: bijections[0] ({type(first).__name__}) has values of {side[0]} in {others}, but "
                        f"{kind} in {found}; a flow has one support for all coordinates: give all blocks the same"
                    )
            needed = first.context_dim + before
            if self.conditional and part.context_dim != needed:
                raise ValueError(
                    f"Stack: with conditional=True {kind} must have context_dim={needed}, the context of the first "
                    f"block and the {before} coordinates before, got {part.context_dim}"
                )
            before += shape[0]
        if not self.conditional:
            self._check_contexts()

    @property
    def context_dim(self) -> int:  # type: ignore[override]
        return self.bijections[0].context_dim if self.conditional else super().context_dim

    @property
    def x_shape(self) -> tuple[int, ...]:
        return (sum(self._sizes),)

    @property
    def x_support(self) -> tuple[float, float]:
        return self.bijections[0].x_support

    @property
    def y_support(self) -> tuple[float, float]:
        return self.bijections[0].y_support

    @property
    def forward_cost(self) -> str:
        return "sequential" if self.conditional and len(self.bijections) > 1 else super().forward_cost

    @property
    def _sizes(self) -> list[int]:
        return [part.x_shape[0] for part in self.bijections]

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self._map("forward", params, x, context)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self._map("inverse", params, y, context)

    def push_score(self, params, x, score, context=None):
        if self.conditional:
            return super().push_score(params, x, score, context)
        check_event(self, x, self.x_shape, context)
        scores = self._blocks(namespace(x).broadcast_to(score, x.shape))
        pushed = [
            part.push_score(params.get(str(i), {}), block, own, self._given(part, context, []))
            for i, (part, block, own) in enumerate(zip(self.bijections, self._blocks(x), scores, strict=True))
        ]
        images, log_dets, scores = zip(*pushed, strict=True)
        return join(*images), sum(log_dets[1:], log_dets[0]), join(*scores)

    def init_from(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        new, blocks = {}, self._blocks(y)
        for i, part in enumerate(self.bijections):
            given = self._given(part, context, blocks[:i])
            new[str(i)] = part.init_from(params.get(str(i), {}), blocks[i], given)
        return _tree.select(self.parameters(), new)

    def _map(self, direction, params, event, context):
        blocks, total = self._blocks(event), 0.0
        images: list[Array] = []
        for i, part in enumerate(self.bijections):
            given = self._given(part, context, images if direction == "forward" else blocks[:i])
            image, log_det = getattr(part, direction)(params.get(str(i), {}), blocks[i], given)
            images.append(image)
            total = total + log_det
        return join(*images), total

    def _blocks(self, event):
        return list(namespace(event).split(event, self._sizes, axis=-1))

    def _given(self, part, context, before):
        """The context of a part, the blocks of y before it being these."""
        if not self.conditional:
            return context if part.context_dim else None
        known = [*([] if context is None else [context]), *before]
        return join(*known) if known else None
