"""What is done with the noise of NumPyro flows: interpolations, edits, inpainting, anomaly scores."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
from flowppl.numpyro._host import Tracer
from flowppl.numpyro.flow import Flow
from flowppl.numpyro.transforms import FlowTransform, check_key


def interpolate(
    flow: Flow, first: Any, second: Any, num_steps: int = 8, *, spherical: bool = False, context: Any = None
) -> jax.Array:
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
        An array of shape ``(num_steps, ..., *event_shape)``, from the first data to the second.

    Raises:
        ValueError: for less than two steps, ends of different shapes, data where the flow has none, or a context that
            is missing or too much.
        TypeError: if ``flow`` is no flow.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Flow, interpolate
        >>> flow = Flow.init(jax.random.key(0), fp.realnvp(2))
        >>> interpolate(flow, jnp.zeros(2), jnp.ones(2), 3).shape
        (3, 2)
    """
    transform, ends = _prepared("interpolate", flow, (first, second), context)
    _check_within("interpolate", flow, *ends)
    return _between(transform, ends, path_weights(num_steps, spherical))


def interpolate_four(
    flow: Flow, first: Any, second: Any, third: Any, fourth: Any, num_steps: int = 8, *, context: Any = None
) -> jax.Array:
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
        An array of shape ``(num_steps, num_steps, ..., *event_shape)``.

    Raises:
        ValueError: as :func:`interpolate`.
        TypeError: as :func:`interpolate`.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Flow, interpolate_four
        >>> flow = Flow.init(jax.random.key(0), fp.realnvp(2))
        >>> interpolate_four(flow, *jax.random.normal(jax.random.key(1), (4, 2)), num_steps=5).shape
        (5, 5, 2)
    """
    transform, ends = _prepared("interpolate_four", flow, (first, second, third, fourth), context)
    _check_within("interpolate_four", flow, *ends)
    return _between(transform, ends, square_weights(num_steps))


def attribute_direction(flow: Flow, x: Any, label: Any, *, context: Any = None) -> jax.Array:
    r"""The direction of an attribute in the noise of a flow: to those that have it from those that have not.

    It is :math:`\bar z_+ - \bar z_-`, the mean noise of the data with the label less that of the data without.
    :func:`edit` moves data along it.

    Args:
        flow: the flow.
        x: n data, of shape ``(n, *event_shape)``.
        label: for each whether it has the attribute, of shape ``(n,)``.
        context: of a conditional flow the contexts of the data, of shape ``(n, context_dim)``.

    Returns:
        An array of the shape of the flow's noise.

    Raises:
        ValueError: if not all labels are True or False, all are the same, or their number is not that of the data; or
            for data where the flow has none.
        TypeError: if ``flow`` is no flow.

    References:
        Kingma, Dhariwal: Glow: Generative Flow with Invertible 1x1 Convolutions, 2018, arXiv 1807.03039.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Flow, attribute_direction
        >>> flow = Flow.init(jax.random.key(0), fp.ElementwiseAffine(1))
        >>> attribute_direction(flow, jnp.array([[3.0], [0.0], [1.0]]), [True, False, False]).tolist()
        [2.5]
    """
    transform, (x,) = _prepared("attribute_direction", flow, (x,), context)
    _check_within("attribute_direction", flow, x)
    return direction_of(transform.inv(x), label, len(flow.bijection.y_shape))


def edit(flow: Flow, x: Any, direction: Any, amount: float = 1.0, *, context: Any = None) -> jax.Array:
    r"""Data moved along a direction in the noise of a flow: :math:`f(f^{-1}(y) + \alpha d)`.

    Args:
        flow: the flow.
        x: data y, of shape ``(..., *event_shape)``.
        direction: d, of the shape of the flow's noise, such as :func:`attribute_direction` finds.
        amount: :math:`\alpha`, how far; below 0 it goes the other way.
        context: of a conditional flow the context of the data, of shape ``(..., context_dim)``.

    Returns:
        An array of the shape of ``x``.

    Raises:
        ValueError: if the direction is of another shape, or for data where the flow has none.
        TypeError: if ``flow`` is no flow.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Flow, edit
        >>> flow = Flow.init(jax.random.key(0), fp.ElementwiseAffine(1))
        >>> edit(flow, jnp.array([[3.0], [0.0], [1.0]]), jnp.array([2.5]), amount=2.0)[0].tolist()
        [8.0]
    """
    transform, (x, direction) = _prepared("edit", flow, (x, direction), context)
    _check_within("edit", flow, x)
    if tuple(direction.shape) != flow.bijection.x_shape:
        raise ValueError(
            f"edit: direction must have the shape {flow.bijection.x_shape} of the flow's noise, got "
            f"{tuple(direction.shape)}"
        )
    return _edited(transform, x, direction, amount)


def inpaint(
    rng_key: jax.Array,
    flow: Flow,
    x: Any,
    observed: Any,
    method: str = "map",
    *,
    num_steps: int = 500,
    step_size: float = 0.05,
    context: Any = None,
) -> jax.Array:
    """Fill in what is missing of data, by the density of a flow.

    ``"map"`` gives the missing part with the highest density beside what is observed, found by Adam from the image of
    the centre of the noise; it may be a local maximum, and in many dimensions the highest density lies far from what
    data look like. ``"langevin"`` gives a draw of the missing part given what is observed: each step follows the
    gradient of the log density with noise, and is taken or not such that the draws have the right distribution after
    many steps (the Metropolis-adjusted Langevin algorithm). Its steps grow or shrink in the first half, until about
    57% are taken. Where the data of the flow lie in an interval, both move before a map onto it. Each step takes one
    pass of the flow and its derivatives; for several draws of one datum give it several times.

    Args:
        rng_key: determines the draws.
        flow: the flow.
        x: data, of shape ``(..., *event_shape)``; what they have where they are missing does not matter.
        observed: True where x is known, of the shape of ``x`` or of one event.
        method: ``"map"`` or ``"langevin"``.
        num_steps: the number of steps.
        step_size: the size of Adam's first steps, which fall to zero, or of Langevin's.
        context: of a conditional flow the context of the data, of shape ``(..., context_dim)``, with the batch axes of
            ``x``.

    Returns:
        An array of the shape of ``x``, equal to it where it is observed.

    Raises:
        ValueError: for an unknown method, a mask that is not of booleans or does not fit, x that is not finite, or lies
            where the flow has no data, where it is observed, or sizes that are not positive.
        TypeError: if ``flow`` is no flow, or there is no key.

    References:
        Dinh, Krueger, Bengio: NICE, 2014, arXiv 1410.8516, section 5.2. Roberts, Rosenthal: Optimal Scaling of Discrete
        Approximations to Langevin Diffusions, 1998.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Flow, inpaint
        >>> flow = Flow.init(jax.random.key(0), fp.realnvp(2))
        >>> x = inpaint(jax.random.key(1), flow, jnp.array([3.0, jnp.nan]), jnp.array([True, False]), num_steps=5)
        >>> x.shape, float(x[0])
        ((2,), 3.0)
    """
    check_key("inpaint", rng_key)
    _, (x,) = _prepared("inpaint", flow, (x,), context)
    observed = jnp.asarray(observed)
    check_inpainting(flow.bijection, x, observed, method, num_steps, step_size=step_size)
    context = None if context is None else jnp.asarray(context)
    return _fill_in(rng_key, flow, x, observed, context, method, num_steps, float(step_size))


@partial(jax.jit, static_argnames=("method", "num_steps", "step_size"))
def _fill_in(rng_key, flow, x, observed, context, method, num_steps, step_size):
    distribution, bijection = flow(context), flow.bijection
    batch = x.shape[: x.ndim - len(bijection.y_shape)]
    free = batch[: len(batch) - len(distribution.batch_shape)]
    start_key, normal_key, uniform_key = jax.random.split(rng_key, 3)
    start = distribution.sample(start_key, free, temperature=0.0 if method == "map" else 1.0)
    draws = (
        lambda i: jax.random.normal(jax.random.fold_in(normal_key, i), x.shape, x.dtype),
        lambda i: jax.random.uniform(jax.random.fold_in(uniform_key, i), batch, x.dtype),
    )
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
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flowppl.numpyro import Flow, anomaly_scores
        >>> flow = Flow.init(jax.random.key(0), fp.ElementwiseAffine(1))
        >>> reference = jnp.linspace(-1.0, 1.0, 21)[:, None]
        >>> scores = anomaly_scores(flow, jnp.array([[5.0], [0.0]]), reference)
        >>> scores.percentile.round(1), scores.typicality.round(1)
        (array([0., 1.]), array([0. , 0.2]))
    """
    found, expected = (_log_prob(flow, data, given) for data, given in ((x, context), (reference, reference_context)))
    return score_anomalies(found, expected)


def _log_prob(flow: Flow, x: Any, context: Any) -> np.ndarray:
    _, (x,) = _prepared("anomaly_scores", flow, (x,), context)
    return np.asarray(_log_prob_of(flow, x, None if context is None else jnp.asarray(context)), dtype=float)


# Compiled as a whole: outside of ``jax.jit`` each operation would be a program of its own.


@jax.jit
def _between(transform, ends, weights):
    return between(transform, ends, [jnp.asarray(weight, ends[0].dtype) for weight in weights])


@jax.jit
def _edited(transform, x, direction, amount):
    return transform(transform.inv(x) + amount * direction)


@jax.jit
def _log_prob_of(flow, x, context):
    return flow(context).log_prob(x)


def _prepared(owner: str, flow: Flow, data: tuple[Any, ...], context: Any) -> tuple[FlowTransform, list[jax.Array]]:
    """The transform of a flow, at a context if there is one, and data as arrays of floats."""
    if not isinstance(flow, Flow):
        raise TypeError(f"{owner}: flow must be a flowppl.numpyro.Flow, got {type(flow).__name__}")
    transform = flow.transform if context is None else flow.transform._at(jnp.asarray(context))
    return transform, [jnp.asarray(each, dtype=jnp.result_type(float, jnp.asarray(each).dtype)) for each in data]


def _check_within(owner: str, flow: Flow, *data: jax.Array) -> None:
    if not any(isinstance(each, Tracer) for each in data):  # whose values are not known yet
        check_within(owner, flow.bijection, *data)
