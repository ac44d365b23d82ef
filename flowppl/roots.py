"""Solving scalar equations with a fixed number of steps and exact derivatives."""

from __future__ import annotations

from collections.abc import Callable

from flowppl._array import Array, namespace


def newton_root(
    function: Callable[..., tuple[Array, Array]], args: tuple[Array, ...], start: Array, num_steps: int
) -> Array:
    r"""A root t of a scalar equation :math:`F(t, \theta) = 0`, entry by entry, by Newton's method.

    The number of steps is fixed, so that the same program runs compiled and on any device without waiting for it.
    They run on values held constant; two more steps then follow on the values themselves. By the implicit function
    theorem the first of these gives the exact first derivative of t in :math:`\theta`, and the second the exact
    second one. Third derivatives are not exact.

    Nothing guards the steps: the caller knows a start from which they converge for all values.

    Args:
        function: ``function(t, *args) -> (value, slope)``.
        args: the arrays :math:`\theta`. Derivatives reach these, and nothing that the function closes over.
        start: the first t, of the full shape of the result.
        num_steps: the number of steps that bring it to the precision of the dtype.
    """
    xp = namespace(start)
    held = tuple(xp.stop_gradient(arg) for arg in args)

    def step(_, t):
        value, slope = function(t, *held)
        return t - value / slope

    t = xp.fori_loop(num_steps, step, xp.stop_gradient(start))
    for _ in range(2):
        value, slope = function(t, *args)
        t = t - value / slope
    return t
