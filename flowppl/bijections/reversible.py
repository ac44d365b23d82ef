"""Derivatives of deep stacks in the memory of one layer: what the layers saw is computed again from the image."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, select
from flowppl.bijections.contract import Bijection, check_bijection
from flowppl.checks import level_of_caller


def reversible(bijection: Bijection) -> Bijection:
    r"""The same stack of layers, whose derivatives take no more memory for more layers.

    Reverse-mode differentiation keeps what every layer saw, so the memory of a training step grows with the depth. A
    bijection has no need to: from the image :math:`z_n` of the last layer the event that went into it is found by its
    inverse, and the derivatives :math:`a = \partial L / \partial z` of a loss L are passed on layer by layer,

    .. math::
        z_{i-1} = f_i^{-1}(z_i), \qquad
        a_{i-1} = \Big(\frac{\partial f_i}{\partial z}\Big)^{\!\top} a_i
        + \frac{\partial L}{\partial \log|\det f_i'|}\, \nabla_z \log|\det f_i'(z_{i-1})|,

    with what one layer needs in memory at a time. Both directions are treated so: that of samples, and that of
    densities, which ``fit_density`` trains.

    Values are those of the plain stack, and so are all derivatives but for rounding, which grows as the inverses
    amplify it: ``flow.round_trip_error(x)`` says how large it is, and ``fit_density`` warns where it is above 0.01. In
    float32 it is about 1e-6 for each of a few layers near the identity, and far more where a layer scales by the
    thousand; in float64 it is hardly ever in the way. The cost is one more pass through each layer: a step
    takes about 1.3 times as long where the layers are couplings, which compute their network once only, and up to 1.7
    times elsewhere. Where one direction of a layer is sequential or iterative, derivatives of the other wait for it:
    those of the density of a masked autoregressive flow take D passes.

    In JAX derivatives of derivatives are exact, and so are they in torch; they take the memory that they save here.
    Inside of transformations of ``torch.func``, and where the score of a density is pushed along
    (``PathELBO``), the plain derivatives are taken.

    Args:
        bijection: a :class:`Chain` or a :class:`Repeat`, or one around them, such as ``Invert(Chain([...]))`` or what a
            recipe gives. The outermost stack is made anew with ``reversible=True``; its weights are as they were.

    Raises:
        TypeError: if it is no bijection.
        ValueError: if there is no stack in it.

    Warns:
        UserWarning: if a direction of a layer is sequential or iterative.

    References:
        Gomez, Ren, Urtasun, Grosse: The Reversible Residual Network: Backpropagation Without Storing Activations, 2017,
        arXiv 1707.04585.

    Example:
        >>> import flowppl as fp
        >>> deep = fp.reversible(fp.glow(6, num_flows=64))
        >>> deep.parameters() == fp.glow(6, num_flows=64).parameters()
        True
    """
    check_bijection(bijection)
    parts: Any = bijection
    if hasattr(bijection, "reversible"):
        return dataclasses.replace(parts, reversible=True)
    if isinstance(getattr(bijection, "bijection", None), Bijection):
        return dataclasses.replace(parts, bijection=reversible(parts.bijection))
    raise ValueError(
        f"reversible: there is no Chain or Repeat in this {type(bijection).__name__}, so no stack of layers to save "
        "the memory of"
    )


def is_reversible(bijection: Bijection) -> bool:
    """Whether there is a reversible stack in it."""
    inner = (*getattr(bijection, "bijections", ()), getattr(bijection, "bijection", None))
    return getattr(bijection, "reversible", False) or any(is_reversible(part) for part in inner if part is not None)


def round_trip_error(transform: Any, y: Array) -> float:
    r"""The largest of :math:`|f(f^{-1}(y)) - y| / (1 + |y|)` over all entries of y; f is a transform of a host."""
    xp = namespace(y)
    again = transform(transform.inverse_and_log_det(y)[0])
    return float(xp.max(xp.abs(again - y) / (1 + xp.abs(y))))


def check_reversible(bijection: Any, reversible: Any) -> None:
    """Raise TypeError unless ``reversible`` is a bool, and warn if it costs more than another pass."""
    name = type(bijection).__name__
    if not isinstance(reversible, bool):
        raise TypeError(f"{name}: reversible must be True or False, got {reversible!r}")
    if reversible and (cost := {bijection.forward_cost, bijection.inverse_cost} - {"parallel"}):
        slow = "forward" if bijection.forward_cost != "parallel" else "inverse"
        warnings.warn(
            f"{name}: reversible=True, but its {slow} is {cost.pop()}: derivatives of the other direction run it "
            "in each step. Without reversible=True they are faster, and take memory for each layer",
            stacklevel=level_of_caller(),
        )


def run(bijection: Any, direction: str, params: Tree, event: Array, context: Array | None) -> tuple[Array, Array]:
    """A stack in one direction, with derivatives that keep the image alone if it is reversible."""
    if not bijection.reversible:
        return bijection._run(direction, params, event, context)
    xp, shape, dtype = namespace(event), event.shape, event.dtype

    def pull(params, image, context, cotangents):
        _, of_params, of_event, of_context = bijection.pull_back(direction, params, image, cotangents, context)
        return select(params, of_params), xp.astype(_summed(of_event, shape), dtype), of_context

    return xp.reversible(functools.partial(bijection._run, direction), pull, params, event, context)


def _summed(array: Array, shape: tuple[int, ...]) -> Array:
    """``array`` summed over the axes along which ``shape`` was broadcast."""
    xp, extra = namespace(array), array.ndim - len(shape)
    axes = [*range(extra), *(extra + i for i, size in enumerate(shape) if size == 1 != array.shape[extra + i])]
    return xp.reshape(xp.sum(array, axis=tuple(axes)), shape) if axes else array
