"""What is done with the noise of Pyro flows: interpolations, edits, inpainting, anomaly scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import torch

from flowppl.inference.latent_space import (
    AnomalyScores,
    between,
    check_inpainting,
    check_within,
    direction_of,
    fill_in,
    path_weights,
    score_anomalies,
    square_weights,
)
from flowppl.pyro.flow import Flow
from flowppl.pyro.transforms import FlowTransform


@torch.no_grad()
def interpolate(
    flow: Flow, first: Any, second: Any, num_steps: int = 8, *, spherical: bool = False, context: Any = None
) -> torch.Tensor:
    r"""Data on the way from data to other data, in the noise of a flow.

    The two ends have the noise :math:`z_0, z_1`. For t from 0 to 1 the way is :math:`(1-t)\,z_0 + t\,z_1`, or,
    ``spherical``, :math:`\cos(\varphi)\,z_0 + \sin(\varphi)\,z_1` with :math:`\varphi = t \pi / 2`, which of
    independent standard normals makes standard normals all the way. Nothing is drawn: the same call gives the same.

    Args:
        flow: the flow.
        first: data, of shape ``(..., *event_shape)``: one event, or many.
        second: as many.
        num_steps: the number of steps, the two ends among them.
        spherical: whether to take the second way.
        context: of a conditional flow the context of the data, of shape ``(..., context_dim)``.

    Returns:
        A tensor of shape ``(num_steps, ..., *event_shape)``, from the first data to the second.

    Raises:
        ValueError: for less than two steps, ends of different shapes, data where the flow has none, or a context that
            is missing or too much.
        TypeError: if ``flow`` is no flow.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow, interpolate
        >>> flow = Flow(fp.realnvp(2))
        >>> interpolate(flow, torch.zeros(2), torch.ones(2), 3).shape
        torch.Size([3, 2])
    """
    transform, ends = _prepared("interpolate", flow, (first, second), context)
    check_within("interpolate", flow.bijection, *ends)
    return between(transform, ends, [_as_tensor(flow, weight) for weight in path_weights(num_steps, spherical)])


@torch.no_grad()
def interpolate_four(
    flow: Flow, first: Any, second: Any, third: Any, fourth: Any, num_steps: int = 8, *, context: Any = None
) -> torch.Tensor:
    r"""Data on the square between four, in the noise of a flow.

    With the noise :math:`z_1, \dots, z_4` of the corners it is that of

    .. math::
        z = \cos(a)\,\big(\cos(b)\,z_1 + \sin(b)\,z_2\big) + \sin(a)\,\big(\cos(b)\,z_3 + \sin(b)\,z_4\big)

    for the angles a, along the first axis, and b, along the second, from 0 to :math:`\pi / 2`.

    Args:
        flow: the flow.
        first: data, of shape ``(..., *event_shape)``: one event, or many. They are at the first corner of the square.
        second: as many, at the end of the first row.
        third: as many, at the start of the last row.
        fourth: as many, at the end of the last row.
        num_steps: the number of steps along a side, the corners among them.
        context: of a conditional flow the context of the data, of shape ``(..., context_dim)``.

    Returns:
        A tensor of shape ``(num_steps, num_steps, ..., *event_shape)``.

    Raises:
        ValueError: as :func:`interpolate`.
        TypeError: as :func:`interpolate`.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow, interpolate_four
        >>> flow = Flow(fp.realnvp(2))
        >>> interpolate_four(flow, *torch.randn(4, 2), num_steps=5).shape
        torch.Size([5, 5, 2])
    """
    transform, ends = _prepared("interpolate_four", flow, (first, second, third, fourth), context)
    check_within("interpolate_four", flow.bijection, *ends)
    return between(transform, ends, [_as_tensor(flow, weight) for weight in square_weights(num_steps)])


@torch.no_grad()
def attribute_direction(flow: Flow, x: Any, label: Any, *, context: Any = None) -> torch.Tensor:
    r"""The direction of an attribute in the noise of a flow: to those that have it from those that have not.

    It is :math:`\bar z_+ - \bar z_-`, the mean noise of the data with the label less that of the data without.
    :func:`edit` moves data along it.

    Args:
        flow: the flow.
        x: n data, of shape ``(n, *event_shape)``.
        label: for each whether it has the attribute, of shape ``(n,)``.
        context: of a conditional flow the contexts of the data, of shape ``(n, context_dim)``.

    Returns:
        A tensor of the shape of the flow's noise.

    Raises:
        ValueError: if not all labels are True or False, all are the same, or their number is not that of the data; or
            for data where the flow has none.
        TypeError: if ``flow`` is no flow.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow, attribute_direction
        >>> flow = Flow(fp.ElementwiseAffine(1))
        >>> attribute_direction(flow, torch.tensor([[3.0], [0.0], [1.0]]), [True, False, False])
        tensor([2.5000])
    """
    transform, (x,) = _prepared("attribute_direction", flow, (x,), context)
    check_within("attribute_direction", flow.bijection, x)
    return direction_of(
        transform.inv(x), label.cpu() if isinstance(label, torch.Tensor) else label, len(flow.bijection.y_shape)
    )


@torch.no_grad()
def edit(flow: Flow, x: Any, direction: Any, amount: float = 1.0, *, context: Any = None) -> torch.Tensor:
    r"""Data moved along a direction in the noise of a flow: :math:`f(f^{-1}(y) + \alpha d)`.

    Args:
        flow: the flow.
        x: data y, of shape ``(..., *event_shape)``.
        direction: d, of the shape of the flow's noise, such as :func:`attribute_direction` finds.
        amount: :math:`\alpha`, how far; below 0 it goes the other way.
        context: of a conditional flow the context of the data, of shape ``(..., context_dim)``.

    Returns:
        A tensor of the shape of ``x``.

    Raises:
        ValueError: if the direction is of another shape, or for data where the flow has none.
        TypeError: if ``flow`` is no flow.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow, edit
        >>> flow = Flow(fp.ElementwiseAffine(1))
        >>> edit(flow, torch.tensor([[3.0], [0.0], [1.0]]), torch.tensor([2.5]), amount=2.0)[0]
        tensor([8.])
    """
    transform, (x, direction) = _prepared("edit", flow, (x, direction), context)
    check_within("edit", flow.bijection, x)
    if tuple(direction.shape) != flow.bijection.x_shape:
        raise ValueError(
            f"edit: direction must have the shape {flow.bijection.x_shape} of the flow's noise, got "
            f"{tuple(direction.shape)}"
        )
    return transform(transform.inv(x) + amount * direction)


def inpaint(
    flow: Flow,
    x: Any,
    observed: Any,
    method: str = "map",
    *,
    num_steps: int = 500,
    step_size: float = 0.05,
    context: Any = None,
) -> torch.Tensor:
    """Fill in what is missing of data, by the density of a flow.

    ``"map"`` gives the missing part with the highest density beside what is observed, found by Adam from the image of
    the centre of the noise; it may be a local maximum, and in many dimensions the highest density lies far from what
    data look like. ``"langevin"`` gives a draw of the missing part given what is observed: each step follows the
    gradient of the log density with noise, and is taken or not such that the draws have the right distribution after
    many steps (the Metropolis-adjusted Langevin algorithm). Its steps grow or shrink in the first half, until about
    57% are taken. Where the data of the flow lie in an interval, both move before a map onto it. Each step takes one
    pass of the flow and its derivatives; for several draws of one datum give it several times.

    Args:
        flow: the flow.
        x: data, of shape ``(..., *event_shape)``; what they have where they are missing does not matter.
        observed: True where x is known, of the shape of ``x`` or of one event.
        method: ``"map"`` or ``"langevin"``.
        num_steps: the number of steps.
        step_size: the size of Adam's first steps, which fall to zero, or of Langevin's.
        context: of a conditional flow the context of the data, of shape ``(..., context_dim)``, with the batch axes of
            ``x``.

    Returns:
        A tensor of the shape of ``x``, equal to it where it is observed.

    Raises:
        ValueError: for an unknown method, a mask that is not of booleans or does not fit, x that is not finite, or lies
            where the flow has no data, where it is observed, or sizes that are not positive.
        TypeError: if ``flow`` is no flow.

    References:
        Dinh, Krueger, Bengio: NICE, 2014, arXiv 1410.8516, section 5.2. Roberts, Rosenthal: Optimal Scaling of Discrete
        Approximations to Langevin Diffusions, 1998.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow, inpaint
        >>> flow = Flow(fp.realnvp(2))
        >>> x = inpaint(flow, torch.tensor([3.0, torch.nan]), torch.tensor([True, False]), num_steps=5)
        >>> x.shape, float(x[0])
        (torch.Size([2]), 3.0)
    """
    _, (x,) = _prepared("inpaint", flow, (x,), context)
    observed, bijection = torch.as_tensor(observed).to(x.device), flow.bijection
    check_inpainting(bijection, x, observed, method, num_steps, step_size=step_size)
    with torch.no_grad():
        distribution = flow(None if context is None else _as_tensor(flow, context))
        batch = x.shape[: x.ndim - len(bijection.y_shape)]
        free = batch[: len(batch) - len(distribution.batch_shape)]
        start = distribution.sample(free, temperature=0.0 if method == "map" else 1.0)

        def normal(_: Any) -> torch.Tensor:
            return torch.randn_like(x)

        def uniform(_: Any) -> torch.Tensor:
            return torch.rand(batch, dtype=x.dtype, device=x.device)

        draws = normal, uniform
        return fill_in(distribution.log_prob, bijection, x, observed, start, draws, method, num_steps, step_size)


def anomaly_scores(
    flow: Flow, x: Any, reference: Any, *, context: Any = None, reference_context: Any = None
) -> AnomalyScores:
    """How odd data are under a flow, beside data that are not, such as those held out of its training.

    Do not take a low density for all that is odd, nor a high one for all that is not: flows that were trained on
    photographs give those of house numbers, and plain grey images, a higher density than the photographs they were
    trained on. The ``typicality`` is two-sided, and calls that odd, too; neither is a test with a known error where the
    kind of anomaly is not known. Use reference data that the flow was not trained on: the densities of the others are
    too high.

    Args:
        flow: the flow.
        x: n data, of shape ``(n, *event_shape)``.
        reference: m data that are not odd, of shape ``(m, *event_shape)``.
        context: of a conditional flow the contexts of x.
        reference_context: those of the reference data.

    Returns:
        :class:`AnomalyScores` with the arrays of NumPy ``log_prob``, ``percentile`` and ``typicality``, each ``(n,)``.

    Raises:
        ValueError: if the density of some of the reference data is not finite, there are none, or one is no row.
        TypeError: if ``flow`` is no flow.

    References:
        Nalisnick, Matsukawa, Teh, Gorur, Lakshminarayanan: Do Deep Generative Models Know What They Don't Know?, 2018,
        arXiv 1810.09136; Detecting Out-of-Distribution Inputs to Deep Generative Models Using Typicality, 2019, arXiv
        1906.02994.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow, anomaly_scores
        >>> flow = Flow(fp.ElementwiseAffine(1))
        >>> reference = torch.linspace(-1.0, 1.0, 21)[:, None]
        >>> scores = anomaly_scores(flow, torch.tensor([[5.0], [0.0]]), reference)
        >>> scores.percentile.round(1), scores.typicality.round(1)
        (array([0., 1.]), array([0. , 0.2]))
    """
    found, expected = (_log_prob(flow, data, given) for data, given in ((x, context), (reference, reference_context)))
    return score_anomalies(found, expected)


@torch.no_grad()
def _log_prob(flow: Flow, x: Any, context: Any) -> np.ndarray:
    _, (x,) = _prepared("anomaly_scores", flow, (x,), context)
    with pyro.validation_enabled(False):  # what no datum of the flow can be is odd, not an error
        log_prob = flow(None if context is None else _as_tensor(flow, context)).log_prob(x)
    return log_prob.double().cpu().numpy()


def _prepared(owner: str, flow: Flow, data: tuple[Any, ...], context: Any) -> tuple[FlowTransform, list[torch.Tensor]]:
    """The transform of a flow, at a context if there is one, and data in its dtype and on its device."""
    if not isinstance(flow, Flow):
        raise TypeError(f"{owner}: flow must be a flowppl.pyro.Flow, got {type(flow).__name__}")
    transform = flow.transform if context is None else flow.transform._at(_as_tensor(flow, context))
    return transform, [_as_tensor(flow, each) for each in data]


def _as_tensor(flow: Flow, values: Any) -> torch.Tensor:
    return torch.as_tensor(values).to(flow._zeros)  # type: ignore[arg-type, call-overload]
