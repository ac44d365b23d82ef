"""Many draws of a guide, made in parts."""

from __future__ import annotations

from collections.abc import Callable

from flowppl._arrays.namespace import Array


def in_parts(draw: Callable[[int], dict], num_samples: int, at_most: int, empty: Callable[..., Array]) -> dict:
    """The draws of all sites, at most so many at a time, so that they take little more memory than they fill.

    Args:
        draw: makes so many draws, a dict by site.
        num_samples: the number of draws in all.
        at_most: the number of draws at a time.
        empty: makes an array of a shape, to write into, of the dtype of a value: ``empty(value, shape)``.
    """
    found: dict[str, Array] = {}
    for first in range(0, num_samples, at_most):
        num = min(at_most, num_samples - first)
        for name, value in draw(num).items():
            if name not in found:
                found[name] = empty(value, (num_samples, *value.shape[1:]))
            found[name][first : first + num] = value
    return found
