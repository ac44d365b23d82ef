r"""Solving scalar equations :math:`F(t, \theta) = 0`, entry by entry, with a fixed number of steps and exact
derivatives.

The number of steps is fixed, so that the same program runs compiled and on any device without waiting for it. They run
on values held constant; two Newton steps then follow on the values themselves. By the implicit function theorem
the first of these gives the exact first derivative of t in :math:`\theta`, and the second the exact second one.
Third derivatives are not exact.

A ``function(t, *args)`` returns ``(value, slope)``, the slope being the derivative in t and positive. Derivatives
reach the arrays ``args``, and nothing that the function closes over.
"""

from __future__ import annotations

from collections.abc import Callable

from flowppl._arrays.namespace import Array, namespace

Equation = Callable[..., tuple[Array, Array]]


def halley_root(
    function: Callable[..., tuple[Array, Array, Array]], args: tuple[Array, ...], start: Array, num_steps: int
) -> Array:
    """The root by Halley's method. Nothing guards the steps: the caller knows a start from which all values converge.

    Args:
        function: the equation, which gives half its second derivative in t, too: ``(value, slope, half)``.
        args: its arrays.
        start: the first t, of the full shape of the result.
        num_steps: the number of steps that bring it so close that two of Newton's bring it to the precision of the
            dtype.
    """
    xp = namespace(start)
    held = tuple(xp.stop_gradient(arg) for arg in args)

    def step(_, t):
        value, slope, half = function(t, *held)
        return t - value / (slope - value / slope * half)

    t = xp.fori_loop(num_steps, step, xp.stop_gradient(start))
    for _ in range(2):
        value, slope, _ = function(t, *args)
        t = t - value / slope
    return t


def bracketed_root(function: Equation, args: tuple[Array, ...], lower: Array, upper: Array, num_steps: int) -> Array:
    """The root of an increasing function between two bounds, by bisection and then Newton's method.

    Args:
        function: the equation.
        args: its arrays.
        lower: where the function is not positive, of the full shape of the result.
        upper: where it is not negative.
        num_steps: the number of bisections, after which the root is close enough for Newton's method.
    """
    xp = namespace(lower)
    held = tuple(xp.stop_gradient(arg) for arg in args)
    longest = xp.stop_gradient(upper - lower + 1e-3 * (1 + xp.abs(upper)))  # more than the bracket: it may be a point

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        is_low = function(middle, *held)[0] < 0
        return xp.where(is_low, middle, low), xp.where(is_low, high, middle)

    def newton(t, args):
        value, slope = function(t, *args)
        step = value / xp.where(slope > 0, slope, xp.ones_like(slope))
        # No step where the function is flat to the precision of the dtype.
        return t - xp.where((slope > 0) & (xp.abs(step) <= longest), step, xp.zeros_like(step))

    low, high = xp.fori_loop(num_steps, halve, (xp.stop_gradient(lower), xp.stop_gradient(upper)))
    t = xp.fori_loop(3, lambda _, t: newton(t, held), (low + high) / 2)
    return newton(newton(t, args), args)
