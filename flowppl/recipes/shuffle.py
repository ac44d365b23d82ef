"""Stacks of equal layers with a permutation between them."""

from __future__ import annotations

from flowppl.bijections.combine import Chain
from flowppl.bijections.contract import Bijection
from flowppl.bijections.linear import Permute
from flowppl.bijections.repeat import Repeat


def shuffled(layer: Bijection, permute: Permute, num: int) -> Bijection:
    """``num`` layers, each followed by the permutation, and the inverse of all permutations at the end."""
    order = range(len(permute.permutation))
    if num == 1:
        return layer
    if len(order) == 1:
        return Repeat(layer, num)
    total = list(order)
    for _ in range(num):
        total = [total[i] for i in permute.permutation]
    stack = Repeat(Chain([layer, permute]), num)
    if total == sorted(total):
        return stack
    return Chain([stack, Permute(tuple(total.index(i) for i in order))])
