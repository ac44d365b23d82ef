"""Threads, one after the other, where a host keeps one stack of handlers for the whole process."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_lock = threading.RLock()


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which waits while another thread is in one such call.

    Pyro and NumPyro keep their stacks of handlers for the whole process, Pyro also its parameters and settings, so that
    the programs of two threads would see each other's. To fit at the same time, take processes.
    """

    @functools.wraps(function)
    def waits(*args: P.args, **kwargs: P.kwargs) -> R:
        with _lock:
            return function(*args, **kwargs)

    return waits
