"""Nested dicts ("trees") of parameters and constants.

A tree is a dict whose values are leaves or trees. Nothing here relies on the order of keys: JAX
sorts them, torch keeps them. Where an order matters the tree of declared parameters gives it.
"""

from typing import Any

Tree = dict[str, Any]


def map_tree(function, tree, *others):
    """The tree of ``function(leaf, *other_leaves)``; the others must have at least the keys of the first."""
    if isinstance(tree, dict):
        return {key: map_tree(function, value, *(other[key] for other in others)) for key, value in tree.items()}
    return function(tree, *others)


def leaves(tree, path=()):
    """Yield ``(path, leaf)`` for all leaves; a path is a tuple of keys."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, tree


def merge(first: Tree, second: Tree) -> Tree:
    """The union of two trees that have no leaf in common."""
    merged = dict(first)
    for key, value in second.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def select(declared: Tree, tree: Tree) -> Tree:
    """The part of ``tree`` under the names of ``declared``, in their order."""
    return map_tree(lambda _, leaf: leaf, declared, tree)


def replace(tree: Tree, new: Tree) -> Tree:
    """``tree`` with the leaves of ``new`` in the place of its own."""
    found = {key: replace(tree[key], value) if isinstance(value, dict) else value for key, value in new.items()}
    return {**tree, **found}


def nested(flat: dict[str, Any]) -> Tree:
    """The tree of what stands under names such as ``layer.weight``, whose dots part the keys."""
    tree: Tree = {}
    for name, leaf in flat.items():
        *path, key = name.split(".")
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
        branch[key] = leaf
    return tree
