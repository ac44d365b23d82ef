"""Maximum likelihood of NumPyro flows."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from flowppl.inference.density import FIT_DENSITY_DOC, INIT_ROWS, DensityFit, check_options, split_rows, train
from flowppl.numpyro.flow import Flow
from flowppl.numpyro.steps import make_optimizer, split_batches, take_step


def fit_density(
    rng_key,
    flow: Flow,
    x,
    context=None,
    *,
    learning_rate: float = 3e-3,
    batch_size: int = 128,
    num_epochs: int = 200,
    validation=0.1,
    patience: int | None = 30,
    clip_norm: float | None = 5.0,
    init: bool = True,
    progress: bool | None = None,
) -> DensityFit:
    if not isinstance(flow, Flow):
        raise TypeError(f"fit_density: flow must be a flowppl.numpyro.Flow, got {type(flow).__name__}")
    check_options(
        learning_rate=learning_rate,
        clip_norm=clip_norm,
        patience=patience,
        batch_size=batch_size,
        num_epochs=num_epochs,
    )
    trained = jax.tree.leaves(flow.params)
    if not trained:
        raise ValueError("fit_density: the flow has no parameters; nothing can be trained")
    # What runs once is left to NumPy: jax would compile each operation, and a permutation for seconds.
    rng = np.random.default_rng(np.asarray(jax.random.key_data(rng_key)))
    convert = partial(np.asarray, dtype=jnp.result_type(*trained))
    rows, held_out = jax.tree.map(jnp.asarray, split_rows(flow.bijection, x, context, validation, convert, rng))
    if init:
        flow = jax.jit(Flow.init_from)(flow, *jax.tree.map(lambda leaf: leaf[:INIT_ROWS], rows))
    norm = math.inf if clip_norm is None else float(clip_norm)
    carry = (flow.params, make_optimizer("adam", norm).init(flow.params))
    held_batches = None if held_out is None else split_batches(np.arange(len(held_out[0])), batch_size)

    def run_epoch(rate, order):
        nonlocal carry
        batches = split_batches(order, batch_size)
        carry, losses, validation_loss = _run_epoch(flow, carry, rate, norm, rows, batches, held_out, held_batches)
        return losses, validation_loss

    return train(
        run_epoch,
        lambda: carry[0],
        partial(_with_params, flow),
        rng,
        num_rows=len(rows[0]),
        batch_size=batch_size,
        learning_rate=learning_rate,
        num_epochs=num_epochs,
        patience=patience,
        progress=progress,
    )


def _with_params(flow, params):
    return dataclasses.replace(flow, params=params)


# Compiled once for all fits of one flow to data of one shape.
@jax.jit
def _run_epoch(flow, carry, rate, clip_norm, rows, batches, held_out, held_batches):
    def step(carry, batch):
        def mean_loss(params):
            losses, weights = _losses(_with_params(flow, params), rows, batch)
            return jnp.average(losses, weights=weights)

        loss, gradient = jax.value_and_grad(mean_loss)(carry[0])
        return take_step(make_optimizer("adam", clip_norm), carry, gradient, loss, rate)

    carry, losses = jax.lax.scan(step, carry, batches)
    if held_out is None:
        return carry, losses, None
    trained = _with_params(flow, carry[0])
    sums = jax.lax.map(lambda batch: jnp.dot(*_losses(trained, held_out, batch)), held_batches)
    return carry, losses, sums.sum() / len(held_out[0])


def _losses(flow, rows, batch):
    index, weights = batch
    x, context = jax.tree.map(lambda leaf: leaf[index], rows)
    losses = -flow(context).log_prob(x)
    return losses, weights.astype(losses.dtype)


fit_density.__doc__ = FIT_DENSITY_DOC.format(
    returns="""The result is a
    new flow with the weights of the epoch of the best validation loss; without validation, of the last epoch.""",
    key="\n        rng_key: determines the batches and which rows are held out.",
    base="Its base distribution stays as it is.",
    example="""
        >>> import jax, flowppl as fp
        >>> from flowppl.numpyro import Flow, fit_density
        >>> x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (500, 2))
        >>> flow = Flow.init(jax.random.key(1), fp.ElementwiseAffine(2))
        >>> fit = fit_density(jax.random.key(2), flow, x, learning_rate=0.1, num_epochs=50, progress=False)
        >>> fit.flow().sample(jax.random.key(3), (10,)).shape, bool(fit.losses[-1] < fit.losses[0])
        ((10, 2), True)
""",
)
