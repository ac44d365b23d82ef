"""Many draws of a guide, made in parts; and where a generator of random numbers is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

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


def place_of(rng: np.random.Generator) -> np.ndarray:
    """Where a generator of NumPy is, which is its default one."""
    state: Any = rng.bit_generator.state
    parts = [divmod(state["state"][name], 2**64) for name in ("state", "inc")]
    return np.array([*parts[0], *parts[1], state["has_uint32"], state["uinteger"]], dtype=np.uint64)


def set_place(rng: np.random.Generator, place: np.ndarray) -> None:
    """Put a generator where :func:`place_of` found another one."""
    high, low, inc_high, inc_low, has_uint32, uinteger = map(int, place)
    state = {"state": high * 2**64 + low, "inc": inc_high * 2**64 + inc_low}
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": state,
        "has_uint32": has_uint32,
        "uinteger": uinteger,
    }
