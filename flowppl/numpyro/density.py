"""Maximum likelihood of NumPyro flows."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.transforms import Transform

from flowppl._arrays.tree import Tree
from flowppl.bijections.contract import Bijection
from flowppl.inference.density import (
    INIT_ROWS,
    LEARNING_RATE,
    Batches,
    DensityFit,
    check_base,
    check_flow,
    check_options,
    column_names,
    held_out_rows,
    is_batches,
    split_rows,
    train,
    warn_of_few_values,
)
from flowppl.inference.epochs import Callback
from flowppl.numpyro.flow import Flow
from flowppl.numpyro.steps import Optimizer, check_optimizer, has_rate, make_optimizer, split_batches, take_step
from flowppl.numpyro.transforms import FlowTransform, check_key, numpy_rng


def fit_density(
    rng_key: jax.Array,
    flow: Flow | FlowTransform | Bijection,
    x: Any = None,
    context: Any = None,
    *,
    learning_rate: float | None = None,
    optimizer: Optimizer = "adam",
    batch_size: int = 128,
    num_epochs: int = 200,
    validation: Any = 0.1,
    patience: int | None = 30,
    clip_norm: float | None = 5.0,
    init: bool = True,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> DensityFit[Flow]:
    r"""Fit a flow to data by maximum likelihood.

    It minimises the mean negative log likelihood of the rows of x, n in number, at their contexts c,

    .. math::
        -\frac{1}{n} \sum_{i=1}^n \log q(x_i \mid c_i),

    where q is the density of the flow, by Adam with clipped gradients, on mini-batches drawn anew in every epoch, of
    which the last may be smaller. The learning rate falls to zero over ``num_epochs`` along half a cosine. The result
    is a new flow with the weights of the epoch of the best validation loss; without validation, of the last epoch.

    Standardise the data first: a flow starts near its base distribution, the standard normal unless told otherwise.
    A step whose loss or gradient is not finite is left out and counted. An interruption (Ctrl-C) ends the training, and
    the result is what the complete epochs reached.

    A density needs data that vary continuously: columns that do not vary are refused, and a warning names those whose
    values repeat, such as counts. To those add noise that is uniform between 0 and 1, once, before the fit
    (dequantisation).

    Args:
        rng_key: determines the batches, which rows are held out, and the first weights of a bijection.
        flow: the flow, or a :class:`flowppl.Bijection` or :class:`FlowTransform` of which one is made. Its
            base distribution stays as it is.
        x: the data, of shape ``(n, *event_shape)``, one row for each datum: an array, a list, or a data frame, whose
            columns are the coordinates; it takes the dtype and device of the flow. Or an iterable of batches that
            starts anew in each epoch, such as a torch ``DataLoader``: each batch is x or ``(x, context)``, one step.
        context: for a conditional flow, the contexts of the rows, of shape ``(n, context_dim)``.
        learning_rate: the learning rate of the first epoch; ``None`` is 0.003.
        optimizer: ``"adam"`` or ``"adamax"``, or an optimiser of optax or of ``numpyro.optim``, with
            a learning rate or schedule of its own in place of ``learning_rate``.
        batch_size: the number of rows in one step; unused if x is an iterable of batches.
        num_epochs: the number of passes over the training data, unless ``patience`` or ``callback`` ends them.
        validation: the fraction of rows to hold out at random, or held-out data: ``x_val``, ``(x_val, context_val)``,
            or an iterable of batches; ``None`` for no validation. Of an iterable x no fraction is held out.
        patience: stop after so many epochs without a better validation loss; ``None`` never does.
        clip_norm: the largest norm of a gradient; a longer one is scaled down to it. ``None`` clips nothing.
        init: set layers such as :class:`flowppl.ActNorm` from the first data. Pass ``False`` to go on training a flow.
        callback: called after each epoch as ``callback(epoch, loss)``, with its number from 0 and its mean loss; if it
            returns True, training stops.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.

    Returns:
        A :class:`DensityFit`: the trained ``flow``, its ``losses`` and ``validation_losses``, and why it stopped.

    Raises:
        TypeError: if ``flow`` is no flow, ``rng_key`` no key, x is no data, or ``callback`` or ``optimizer`` is none.
        ValueError: if the data do not fit the flow, do not vary or are not finite, an option is out of range, or the
            base distribution lies in an interval that the flow does not map onto the space of the data.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite.

    References:
        Kingma, Ba: Adam: A Method for Stochastic Optimization, 2014, arXiv 1412.6980. Loshchilov, Hutter: SGDR:
        Stochastic Gradient Descent with Warm Restarts, 2016, arXiv 1608.03983. Dequantisation: Theis, van den Oord,
        Bethge: A note on the evaluation of generative models, 2015, arXiv 1511.01844.

    Example:
        >>> import jax, flowppl as fp
        >>> from flowppl.numpyro import fit_density
        >>> x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (500, 2))
        >>> options = {"learning_rate": 0.1, "num_epochs": 50, "progress": False}
        >>> fit = fit_density(jax.random.key(1), fp.ElementwiseAffine(2), x, **options)
        >>> fit.flow.sample(jax.random.key(2), (10,)).shape, bool(fit.losses[-1] < fit.losses[0])
        ((10, 2), True)
    """
    kinds = (FlowTransform, Bijection, Transform)
    if isinstance(rng_key, (Flow, *kinds)):
        raise TypeError("fit_density: a key comes first: fit_density(jax.random.key(0), flow, x)")
    check_key("fit_density", rng_key)
    check_flow(flow, x, Flow, kinds)
    check_optimizer("fit_density", optimizer, learning_rate)
    check_options(
        learning_rate=learning_rate,
        clip_norm=clip_norm,
        patience=patience,
        batch_size=batch_size,
        num_epochs=num_epochs,
    )
    if isinstance(flow, Bijection):
        flow = Flow.init(jax.random.fold_in(rng_key, 0), flow)
    fitted = flow if isinstance(flow, Flow) else Flow(flow)
    trained = jax.tree.leaves(fitted.params)
    if not trained:
        raise ValueError("fit_density: the flow has no parameters; nothing can be trained")
    if fitted.base is not None:
        check_base(fitted.bijection, fitted.base, np.asarray)
    # What runs once is left to NumPy: jax would compile each operation, and a permutation for seconds.
    rng = numpy_rng(rng_key)
    convert = partial(np.asarray, dtype=jnp.result_type(*trained))
    batches: Batches | None = None
    rows: Any = None
    if is_batches(x):
        if context is not None:
            raise ValueError("fit_density: beside batches no context is given; let each batch be (x, context)")
        batches, held_out = Batches(fitted.bijection, x, convert), held_out_rows(fitted.bijection, validation, convert)
        first = batches.first()
        warn_of_few_values(first[0], column_names(x, fitted.bijection.y_shape))
    else:
        rows, held_out = split_rows(fitted.bijection, x, context, validation, convert, rng)
        first = jax.tree.map(lambda leaf: leaf[:INIT_ROWS], rows)
    first, rows, held_out = jax.tree.map(jnp.asarray, (first, rows, held_out))
    if init:
        fitted = jax.jit(Flow.init_from)(fitted, *first)
    norm = math.inf if clip_norm is None else float(clip_norm)
    carry = (fitted.params, make_optimizer(optimizer, norm).init(fitted.params))
    held_batches = None if held_out is None else split_batches(np.arange(len(held_out[0])), batch_size)

    def run_epoch(rate: float | None, order: np.ndarray) -> tuple[Any, Any]:
        nonlocal carry
        if batches is None:
            steps = split_batches(order, batch_size)
            arguments = (fitted, carry, rate, norm, rows, steps, held_out, held_batches, optimizer)
            carry, losses, validation_loss = _run_epoch(*arguments)
            return losses, validation_loss
        losses = []
        for batch in batches:
            step = split_batches(np.arange(len(batch[0])), len(batch[0]))
            carry, loss, _ = _run_epoch(fitted, carry, rate, norm, batch, step, None, None, optimizer)
            losses.append(loss[0])
        return losses, None if held_out is None else _mean_loss(fitted, carry[0], held_out, held_batches)

    return train(
        run_epoch,
        lambda: carry[0],
        partial(_with_params, fitted),
        rng,
        batches=batches,
        num_rows=0 if batches is not None else len(rows[0]),
        batch_size=batch_size,
        learning_rate=None if has_rate(optimizer) else learning_rate or LEARNING_RATE,
        num_epochs=num_epochs,
        patience=patience,
        callback=callback,
        progress=progress,
    )


def _with_params(flow: Flow, params: Tree) -> Flow:
    return dataclasses.replace(flow, params=params)


# Compiled once for all fits of one flow to data of one shape.
@partial(jax.jit, static_argnames="optimizer")
def _run_epoch(flow, carry, rate, clip_norm, rows, batches, held_out, held_batches, optimizer):
    def step(carry, batch):
        def mean_loss(params):
            losses, weights = _losses(_with_params(flow, params), rows, batch)
            return jnp.average(losses, weights=weights)

        loss, gradient = jax.value_and_grad(mean_loss)(carry[0])
        return take_step(make_optimizer(optimizer, clip_norm), carry, gradient, loss, rate)

    carry, losses = jax.lax.scan(step, carry, batches)
    return carry, losses, None if held_out is None else _mean_loss(flow, carry[0], held_out, held_batches)


@jax.jit
def _mean_loss(flow, params, held_out, held_batches):
    trained = _with_params(flow, params)
    sums = jax.lax.map(lambda batch: jnp.dot(*_losses(trained, held_out, batch)), held_batches)
    return sums.sum() / len(held_out[0])


def _losses(flow, rows, batch):
    index, weights = batch
    x, context = jax.tree.map(lambda leaf: leaf[index], rows)
    losses = -flow(context).log_prob(x)
    return losses, weights.astype(losses.dtype)
