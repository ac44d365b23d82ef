r"""What is done with the noise of a flow: ways between data, directions, what is missing filled in, odd data found.

A flow f maps noise z to data y, and every datum has one noise, :math:`z = f^{-1}(y)`. The two languages differ only in
how they draw and how they compile.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl.bijections.contract import REAL_LINE, Bijection
from flowppl.bijections.elementwise import Bounded, Elementwise, Softplus
from flowppl.checks import check_positive, check_sizes, is_number

METHODS = ("map", "langevin")
ACCEPTED = 0.574  # the share of Langevin's proposals at which they move fastest: Roberts, Rosenthal 1998


@dataclasses.dataclass(frozen=True, eq=False)
class AnomalyScores:
    """How odd each datum is, beside reference data; see ``anomaly_scores``.

    Args:
        log_prob: the log density of each datum.
        percentile: the share of the reference data, between 0 and 1, whose density is not higher. Near 0 it is odd.
        typicality: the share of the reference data whose log density is as far from the reference's mean or farther,
            to either side. Near 0 it is odd.
    """

    log_prob: np.ndarray
    percentile: np.ndarray
    typicality: np.ndarray


def score_anomalies(log_prob: np.ndarray, reference: np.ndarray) -> AnomalyScores:
    """The scores of data with these log densities, given those of reference data; NaN is no density."""
    log_prob = np.where(np.isnan(log_prob), -np.inf, log_prob)
    if log_prob.ndim != 1 or reference.ndim != 1 or not len(reference):
        raise ValueError(
            "anomaly_scores: x and reference must be rows of data, at least one of reference, got batches of shape "
            f"{log_prob.shape} and {reference.shape}"
        )
    if not np.isfinite(reference).all():
        raise ValueError("anomaly_scores: the flow gives some of the reference data no finite density")
    centre = reference.mean()
    distance = np.sort(np.abs(reference - centre))
    lower = np.searchsorted(np.sort(reference), log_prob, side="right")
    nearer = np.searchsorted(distance, np.abs(log_prob - centre), side="left")
    return AnomalyScores(log_prob, lower / len(reference), 1 - nearer / len(reference))


def tempered(noise: Array, centre: Array, temperature: Any) -> Array:
    """Noise drawn together towards its centre, or spread about it.

    Raises:
        TypeError: for a temperature that is no number.
        ValueError: for one below 0 or not finite, if it is known before it is compiled.
    """
    if not is_number(temperature):
        raise TypeError(f"sample: temperature must be a number of at least 0, such as 0.7, got {temperature!r:.80}")
    try:
        value = float(temperature)
    except TypeError:  # not known yet: it is being compiled
        value = 1.0
    if not 0 <= value < math.inf:
        raise ValueError(f"sample: temperature must be at least 0 and finite, got {temperature!r}")
    return centre + temperature * (noise - centre)


def path_weights(num_steps: int, spherical: bool) -> tuple[np.ndarray, ...]:
    """The weights of the first and of the second end in each step of an interpolation."""
    check_sizes("interpolate", at_least=2, num_steps=num_steps)
    t = np.linspace(0.0, 1.0, num_steps)
    return (np.cos(t * math.pi / 2), np.sin(t * math.pi / 2)) if spherical else (1 - t, t)


def square_weights(num_steps: int) -> tuple[np.ndarray, ...]:
    """The weights of four ends at each point of a square, of shape ``(num_steps, num_steps)``."""
    check_sizes("interpolate_four", at_least=2, num_steps=num_steps)
    angle = np.linspace(0.0, math.pi / 2, num_steps)
    down, right = angle[:, None], angle
    firsts, lasts = np.cos(down), np.sin(down)
    return firsts * np.cos(right), firsts * np.sin(right), lasts * np.cos(right), lasts * np.sin(right)


def between(transform: Any, ends: Sequence[Array], weights: Sequence[Array]) -> Array:
    """The images of sums of the noise of the ends, with the axes of the weights in front."""
    shapes = {tuple(end.shape) for end in ends}
    if len(shapes) > 1:
        raise ValueError(f"interpolate: the ends must have the same shape, got {sorted(shapes)}")
    noise = [transform.inv(end) for end in ends]
    wide = (weight.reshape(*weight.shape, *(1,) * noise[0].ndim) for weight in weights)
    return transform(sum(weight * z for weight, z in zip(wide, noise, strict=True)))


def direction_of(noise: Array, label: Any, num_axes: int) -> Array:
    """The mean noise of the rows with the label less that of the others.

    Raises:
        ValueError: unless there is one label for each row, and rows with it and without.
    """
    label = np.asarray(label)
    if label.shape != (noise.shape[0],) or noise.ndim != num_axes + 1:
        raise ValueError(
            f"attribute_direction: x must be rows of data and label one for each, got {tuple(noise.shape)} and "
            f"{label.shape}"
        )
    if not np.isin(label, (0, 1)).all():
        raise ValueError("attribute_direction: label must be True or False, or 1 or 0, for each row")
    has, lacks = np.flatnonzero(label == 1), np.flatnonzero(label == 0)
    if not (len(has) and len(lacks)):
        raise ValueError("attribute_direction: label must hold of some rows and not of others")
    xp = namespace(noise)
    return xp.mean(noise[has], axis=0) - xp.mean(noise[lacks], axis=0)


def check_inpainting(
    bijection: Bijection, x: Array, observed: Array, method: str, num_steps: int, **sizes: float
) -> None:
    """Raise ValueError unless the arguments of ``inpaint`` are in range and fit together."""
    if method not in METHODS:
        raise ValueError(f"inpaint: method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    check_sizes("inpaint", num_steps=num_steps)
    check_positive("inpaint", **sizes)
    shape, xp = bijection.y_shape, namespace(x)
    if tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise ValueError(f"inpaint: x must have a shape that ends in {shape}, got {tuple(x.shape)}")
    if observed.dtype != xp.bool:
        raise ValueError(f"inpaint: observed must be True where x is known and False elsewhere, got {observed.dtype}")
    try:
        fits = np.broadcast_shapes(tuple(observed.shape), tuple(x.shape)) == tuple(x.shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"inpaint: observed must have the shape of one event, {shape}, or of x, got {tuple(observed.shape)} for x "
            f"of shape {tuple(x.shape)}"
        )
    if not bool(xp.all(xp.isfinite(x) | ~observed)):
        raise ValueError("inpaint: x must be finite where it is observed")
    check_within("inpaint", bijection, xp.where(observed, x, xp.full_like(x, math.nan)))


def check_within(owner: str, bijection: Bijection, *data: Array) -> None:
    """Raise ValueError if some of the data lie where those of a flow cannot; NaN stands for what is missing."""
    low, high = bijection.y_support
    if (low, high) != REAL_LINE and any(bool(namespace(x).any((x < low) | (x > high))) for x in data):
        raise ValueError(
            f"{owner}: some of the data lie outside of ({low:g}, {high:g}), where all data of this flow lie; scale "
            "them as those that it was trained on, such as images of 256 levels by x / 255"
        )


def check_first_data(bijection: Bijection, x: Array) -> None:
    """Raise ValueError unless all data from which layers start are finite, and where those of a flow can lie."""
    if not bool(namespace(x).all(namespace(x).isfinite(x))):
        raise ValueError("init_from: the data must be finite; drop or impute what is missing")
    check_within("init_from", bijection, x)


def onto_support(bijection: Bijection) -> Bijection | None:
    """A map of all real numbers onto where the data of a flow lie; ``None`` if those are all."""
    low, high = bijection.y_support
    if (low, high) == REAL_LINE:
        return None
    shape: Any = bijection.y_shape
    if (low, high) == (0.0, math.inf):
        return Elementwise(shape, Softplus())
    return Elementwise(shape, Bounded(low, high))


def fill_in(
    log_prob: Callable[[Array], Array],
    bijection: Bijection,
    x: Array,
    observed: Array,
    start: Array,
    draws: tuple[Callable[[Any], Array], Callable[[Any], Array]],
    method: str,
    num_steps: int,
    step_size: float,
) -> Array:
    """Events that are x where observed, and elsewhere the most probable ones, or drawn, given that.

    Args:
        log_prob: the log density of each event.
        bijection: that of the flow, which tells where its data lie.
        x: the events, with any numbers where they are missing.
        observed: where they are not.
        start: whole events, from which the missing part starts.
        draws: of the number of a step, standard normals of the shape of x, and uniform numbers of the shape of a batch.
        method: "map" or "langevin".
        num_steps: the number of steps.
        step_size: the largest step of Adam, or the first of Langevin.
    """
    xp, support, num_axes = namespace(x), onto_support(bijection), len(bijection.y_shape)
    known = xp.where(observed, x, start)

    def event_of(place: Array) -> tuple[Array, Any]:
        """What a place, any real numbers, stands for, and the logarithm of how much that grows with it."""
        image, log_det = (place, 0.0) if support is None else support.forward({}, place)
        return xp.where(observed, known, image), log_det

    def score_of(place: Array) -> tuple[Array, Array]:
        def score(place):
            event, log_det = event_of(place)
            found = log_prob(event)
            return (found if method == "map" else found + log_det,)

        (value,), pull = xp.vjp(score, place)
        return xp.stop_gradient(value), xp.where(observed, xp.zeros_like(place), pull(xp.ones_like(value))[0])

    def wide(value):
        return xp.reshape(value, (*value.shape, *(1,) * num_axes))

    def climb(i, carry):
        """A step of Adam; the best place so far is kept, which the last one, at a rate of zero, comes close to."""
        place, best, highest, mean, square = carry
        value, slope = score_of(place)
        is_better = value > highest
        best, highest = xp.where(wide(is_better), place, best), xp.where(is_better, value, highest)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        rate = step_size * (1 - i / num_steps)
        ahead = (mean / (1 - 0.9 ** (i + 1))) / ((square / (1 - 0.999 ** (i + 1))) ** 0.5 + 1e-8)
        return place + rate * ahead, best, highest, mean, square

    def walk(i, carry):
        """A proposal along the gradient with noise, taken with the probability that leaves the density as it is."""
        place, value, slope, log_step = carry
        step = wide(xp.exp(log_step))
        noise = xp.where(observed, xp.zeros_like(place), draws[0](i))
        proposed = place + step**2 / 2 * slope + step * noise
        new_value, new_slope = score_of(proposed)
        back = (place - proposed - step**2 / 2 * new_slope) / step
        axes = tuple(range(-num_axes, 0))
        log_ratio = new_value - value + xp.sum(noise**2 - back**2, axis=axes) / 2
        log_ratio = xp.where(xp.isfinite(log_ratio), log_ratio, xp.full_like(log_ratio, -1e30))
        chance = xp.exp(xp.minimum(log_ratio, xp.zeros_like(log_ratio)))
        is_taken = draws[1](i) < chance
        place, slope = (xp.where(wide(is_taken), new, old) for new, old in ((proposed, place), (new_slope, slope)))
        learning = (i < num_steps / 2) / (1 + i) ** 0.6  # the first half finds the size of the steps
        return place, xp.where(is_taken, new_value, value), slope, log_step + learning * (chance - ACCEPTED)

    place = start if support is None else support.inverse({}, start)[0]
    value, slope = score_of(place)
    if method == "map":
        zeros = xp.zeros_like(place)
        carry = xp.fori_loop(num_steps, climb, (place, place, xp.full_like(value, -math.inf), zeros, zeros))
        return event_of(carry[1])[0]
    carry = xp.fori_loop(num_steps, walk, (place, value, slope, xp.full_like(value, math.log(step_size))))
    return event_of(carry[0])[0]
