"""Maximum likelihood of NumPyro flows."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions.transforms import Transform

from flowppl._arrays.tree import merge
from flowppl.bijections.contract import Bijection
from flowppl.inference.batches import INIT_ROWS, Batches, is_batches, steps
from flowppl.inference.density import (
    LEARNING_RATE,
    DensityFit,
    MappedRows,
    advice_for,
    batches_of,
    check_augment,
    check_base,
    check_flow,
    column_names,
    facts_of,
    held_out_rows,
    is_of_levels,
    rate_of,
    split_rows,
    warn_of_far_data,
    warn_of_few_values,
    warn_of_rounding,
)
from flowppl.inference.density_objectives import NUM_DRAWS, inverse_through, layers_for, matching_losses
from flowppl.inference.epochs import Callback, asked_once
from flowppl.numpyro.density_mixture import Mixture
from flowppl.numpyro.discrete import Dequantized
from flowppl.numpyro.distributed import Workers
from flowppl.numpyro.flow import Flow, log_prob_at
from flowppl.numpyro.pixelcnn import PixelCNN
from flowppl.numpyro.steps import Optimizer, check_optimizer, has_rate, make_optimizer, split_batches, take_step
from flowppl.numpyro.training import TreeTrainer, averaged, in_step, kept
from flowppl.numpyro.transforms import FlowTransform, check_key, constants_of, numpy_rng
from flowppl.training.checkpoints import base_in_words, in_words
from flowppl.training.loop import average_share, check_options, train

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    FlowType = TypeVar("FlowType", bound="Flow | Dequantized | Mixture | PixelCNN", default=Flow)

_KINDS = (Flow, Mixture, Dequantized, PixelCNN)  # what is fitted as it is


def fit_density(
    rng_key: jax.Array,
    flow: FlowType | FlowTransform | Bijection,
    x: Any = None,
    context: Any = None,
    *,
    objective: str = "likelihood",
    jacobian_penalty: float = 0.0,
    learning_rate: float | Callable[[int], float] | None = None,
    optimizer: Optimizer = "adam",
    batch_size: int = 128,
    num_epochs: int = 200,
    validation: Any = 0.1,
    patience: int | None = 30,
    clip_norm: float | None = 5.0,
    init: bool = True,
    warm_up: int = 0,
    ema_decay: float = 0.0,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
    distributed: bool = False,
) -> DensityFit[FlowType]:
    r"""Fit a flow, or a distribution of integers, to data by maximum likelihood.

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
    values repeat, such as counts and pixels. Integers are fitted by :class:`Dequantized`, whose noise is new at every
    step, and of which q is the bound; the noise of the validation loss is the same in all epochs. Data on which the
    flow starts far off, more than 10 standard deviations or a spread beyond 1/20 to 20, are warned of.

    With ``objective="flow_matching"`` a flow of one :class:`flowppl.Continuous`, such as ``flowppl.cnf(2)``, learns its
    velocity v without a density. It minimises the mean of

    .. math::
        \big|v(x_t, t, c) - (x - z)\big|^2, \qquad x_t = (1 - t)\, z + t\, x,

    over rows x, noise z from the base distribution and times t from 0 to 1, of which each step draws eight pairs for
    each of its rows: one pass of the network, whatever the number of steps of the flow. The losses, and the validation
    loss that ``patience`` judges, whose draws are the same in all epochs, are this mean, no log likelihoods. The flow
    that comes out has an exact density as any has, whose log likelihood is a little below what training for it
    reaches: see :func:`evaluate_density`. A base distribution stays as it is.

    With ``objective="estimated_likelihood"`` the log determinants of :class:`flowppl.ContractiveResidual` and
    :class:`flowppl.Continuous` layers are estimated, with new noise in each step. The mean of the estimate, and of its
    gradient, is that of the exact one; a step takes some ten products of the Jacobian J of the network with a vector in
    the place of D of them and of a determinant of a D x D matrix,

    .. math::
        \log\det(I + J) = \operatorname{E} \sum_{k=1}^K \frac{(-1)^{k+1}}{k \Pr(K \ge k)}\, e^\top J^k e ,

    where the entries of e are 1 or -1 by a coin, and the number K of terms is drawn: four, and beyond them each with
    a probability c, the bound of the norm of J that the layer keeps. So it is for many coordinates: a step was faster
    from 16 to 64 on, 8 to 27 times at 64 columns of a continuous flow. Of that the middle of each step is found to the
    precision of the dtype, and derivatives through it have a relative error below 0.001. The losses, and the validation
    loss, whose noise is the same in all epochs, are estimates, and nothing else is: ``log_prob`` of the flow that comes
    out is exact, as ever, and :func:`evaluate_density` reports it.

    With ``jacobian_penalty`` w above 0 a flow with continuous layers also pays, in the loss that the steps descend,
    for the slopes of their velocities v: to the loss of each row is added

    .. math::
        w \sum_{\mathrm{layers}} \frac1N \sum_{k=1}^N \big\| J_k \big\|_F^2
        \;\approx\; w \sum_{\mathrm{layers}} \int_0^1 \Big\| \frac{\partial v}{\partial x} (x_t, t, c)
        \Big\|_F^2\, dt ,

    the squares of all entries of the Jacobian :math:`J_k` of v in the middle of each of the layer's N steps on the way
    of the row from data to noise, which are where the log determinant takes it. With the estimated likelihood it is
    estimated, too, by :math:`|J_k e|^2` with one vector e of signs for a step, whose mean is the sum of squares. It
    smooths the flow: a weight of 0.1 gained 0.1 to 0.7 nats of held-out likelihood on two tables of some hundred rows,
    and cost 0.04 to 0.5 where a steep velocity is needed. Choose it by held-out rows. Only gradients have it: the
    losses and the validation loss stay the likelihood.

    With ``ema_decay`` the weights that are validated, and kept, are an average over all steps, the last steps most: of
    step s of t it has the weight :math:`\mathrm{ema\_decay}^{t-s}`, divided by the sum of all.

    Args:
        rng_key: determines the batches, the noise, which rows are held out, and the first weights of a bijection.
        flow: the flow, a :class:`Mixture`, a :class:`Dequantized`, a :class:`PixelCNN`, or a :class:`flowppl.Bijection`
            or :class:`FlowTransform` of which a flow is made. Its base distribution stays as it is.
        x: the data, of shape ``(n, *event_shape)``, one row for each datum: an array, a list, or a data frame, whose
            columns are the coordinates; it takes the dtype and device of the flow. Of a memory-mapped array only the
            rows of a step are read at a time, and those held out. Or an iterable of batches that starts anew in each
            epoch, such as a torch ``DataLoader``, or a function without arguments that gives one, such as a generator
            function: each batch is x or ``(x, context)``, one step.
        context: for a conditional flow, the contexts of the rows, of shape ``(n, context_dim)``.
        objective: ``"likelihood"``, ``"estimated_likelihood"`` for a flow with contractive residual or continuous
            layers, or ``"flow_matching"`` for a flow of one continuous layer.
        jacobian_penalty: the weight w of the squared Jacobians of the velocities of a flow with continuous layers, such
            as 0.1; 0 for none. Not for flow matching.
        learning_rate: the learning rate of the first epoch, ``None`` is 0.003; or a function from the epoch, counted
            from 0, to its learning rate, in the place of the cosine.
        optimizer: ``"adam"`` or ``"adamax"``, or an optimiser of optax or of ``numpyro.optim``, with
            a learning rate or schedule of its own in place of ``learning_rate``.
        batch_size: the number of rows in one step; unused if x is an iterable of batches.
        num_epochs: the number of passes over the training data, unless ``patience`` or ``callback`` ends them.
        validation: the fraction of rows to hold out at random, or held-out data: ``x_val``, ``(x_val, context_val)``,
            or an iterable of batches; ``None`` for no validation. Of an iterable x no fraction is held out.
        patience: stop after so many epochs without a better validation loss; ``None`` never does.
        clip_norm: the largest norm of a gradient; a longer one is scaled down to it. ``None`` clips nothing.
        init: set layers such as :class:`flowppl.ActNorm` from the first data. Pass ``False`` to go on training a flow.
        warm_up: the number of epochs in which the learning rate rises to the full one; 0 for none.
        ema_decay: the decay of the exponential moving average of the weights, such as 0.999, which averages about
            1,000 steps: few of all that there are. 0 takes the weights as they are.
        augment: a function of a key and the x of a batch that gives what is trained on in its place, such as images
            of which some are mirrored; JAX must be able to trace it.
        checkpoint: a file that is written after each epoch. If it is there already, the training goes on from it, to
            the result that it would have had without an interruption. For the optimisers with names, and data that are
            no iterable of batches. A file of another flow, other data or options is refused. ``patience`` and, where
            ``learning_rate`` is a function, ``num_epochs`` may change. Such a function must give the same rate for an
            epoch each time. Of ``augment`` is compared whether there is one, not what it does.
        callback: called after each epoch as ``callback(epoch, loss)``, with its number from 0 and its mean loss; if it
            returns True, training stops.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.
        distributed: whether all devices of JAX train together, those of all hosts after ``jax.distributed.initialize``,
            each of which makes this call. They share the rows of each batch; the weights are on all of them, and end
            as those of one device would, up to rounding. Arrays of data are the same on all hosts, and whole on each
            device; of an iterable of batches each host has its own, of which a device holds its share, and a step
            takes one batch of each. The first host writes the checkpoint, which all must be able to read, and its
            ``callback`` counts.

    Returns:
        A :class:`DensityFit`: the trained ``flow``, its ``losses`` and ``validation_losses``, and why it stopped.

    Raises:
        TypeError: if ``flow`` is no flow, ``rng_key`` no key, x is no data, or ``callback`` or ``optimizer`` is none.
        ValueError: if the data do not fit the flow, do not vary, are not finite or no levels of a distribution of
            integers, an option is out of range, the flow has nothing to estimate, no velocity to match or none to
            penalise, flow matching is given a penalty, a checkpoint is not whole or of another training (it is then as
            it was), or the base distribution lies in an interval that the flow does not map onto the space of the data.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite.

    References:
        Kingma, Ba: Adam: A Method for Stochastic Optimization, 2014, arXiv 1412.6980. Loshchilov, Hutter: SGDR:
        Stochastic Gradient Descent with Warm Restarts, 2016, arXiv 1608.03983. Dequantisation: Theis, van den Oord,
        Bethge: A note on the evaluation of generative models, 2015, arXiv 1511.01844. Averages: Izmailov et al.:
        Averaging Weights Leads to Wider Optima, 2018, arXiv 1803.05407. Flow matching: Lipman, Chen, Ben-Hamu, Nickel,
        Le: Flow Matching for Generative Modeling, 2022, arXiv 2210.02747; Liu, Gong, Liu: Flow Straight and Fast:
        Learning to Generate and Transfer Data with Rectified Flow, 2022, arXiv 2209.03003. The estimate: Chen,
        Behrmann, Duvenaud, Jacobsen: Residual Flows for Invertible Generative Modeling, 2019, arXiv 1906.02735. The
        penalty: Finlay, Jacobsen, Nurbekyan, Oberman: How to Train Your Neural ODE: the World of Jacobian and Kinetic
        Regularization, 2020, arXiv 2002.02798, of whose two it is the one.

    Example:
        >>> import jax, flowppl as fp
        >>> from flowppl.numpyro import fit_density
        >>> x = 3.0 + 2.0 * jax.random.normal(jax.random.key(0), (500, 2))
        >>> options = {"learning_rate": 0.1, "num_epochs": 50, "progress": False}
        >>> fit = fit_density(jax.random.key(1), fp.ElementwiseAffine(2), x, **options)
        >>> fit.flow.sample(jax.random.key(2), (10,)).shape, bool(fit.losses[-1] < fit.losses[0])
        ((10, 2), True)
    """
    kinds = (*_KINDS, FlowTransform, Bijection, Transform)
    if isinstance(rng_key, kinds):
        raise TypeError("fit_density: a key comes first: fit_density(jax.random.key(0), flow, x)")
    check_key("fit_density", rng_key)
    check_flow(flow, x, Flow, kinds)
    check_augment(augment, "a key and x")
    check_optimizer("fit_density", optimizer, learning_rate)
    check_options(
        "fit_density",
        learning_rate=learning_rate,
        warm_up=warm_up,
        patience=patience,
        checkpoint=checkpoint,
        optimizer=optimizer,
        clip_norm=clip_norm,
        ema_decay=ema_decay,
        batch_size=batch_size,
        num_epochs=num_epochs,
    )
    workers, is_stream = Workers(distributed), is_batches("fit_density", x)
    if checkpoint is not None and is_stream:
        raise ValueError("fit_density: a checkpoint cannot tell where an iterable of batches is; give x as an array")
    if isinstance(flow, Bijection):
        flow = Flow.init(jax.random.fold_in(rng_key, 0), flow)  # type: ignore[assignment]
    fitted: Any = flow if isinstance(flow, _KINDS) else Flow(flow)  # type: ignore[arg-type]
    layers = layers_for(objective, jacobian_penalty, getattr(fitted, "bijection", fitted))
    trained = jax.tree.leaves(fitted._params)
    if not trained:
        raise ValueError("fit_density: the flow has no parameters; nothing can be trained")
    flows: Any = fitted.flows if isinstance(fitted, Mixture) else [getattr(fitted, "flow", fitted)]
    bases = [getattr(flow, "base", None) for flow in flows]
    for each, base in zip(flows, bases, strict=True):
        if base is not None and not isinstance(fitted, Dequantized):
            check_base(each.bijection, base, np.asarray)
    of_x = fitted._of_x
    convert = partial(np.asarray, dtype=jnp.result_type(*trained, jnp.float32))  # NumPy has no bfloat16
    batches: Batches | None = None
    first: Any = None

    def make_trainer(seed: int) -> tuple[_Trainer, int, dict[str, Any]]:
        nonlocal batches, first
        rows: Any
        told: Any
        start, told = fitted, ()
        if is_stream:
            if context is not None:
                raise ValueError("fit_density: beside batches no context is given; let each batch be (x, context)")
            rows = batches = batches_of(of_x, x, convert)
            first, held_out = batches.first(), held_out_rows(of_x, validation, convert)
            if not is_of_levels(of_x):
                warn_of_few_values(first[0], column_names(x, of_x.y_shape))
        else:
            rows, held_out = split_rows(of_x, x, context, validation, convert, np.random.default_rng(seed))
            is_mapped, here = isinstance(rows, MappedRows), slice(0, INIT_ROWS)
            first = rows[here] if is_mapped else jax.tree.map(lambda leaf: leaf[here], rows)
            told = (x, context) if is_mapped else rows
        parts = zip(("data", "context", "validation", "context_val"), (*told, *(held_out or ())), strict=False)
        if init:
            is_mixture = isinstance(start, Mixture)  # which has to know the values of the data
            start = start.init_from(*first) if is_mixture else _init_from(start, jax.random.fold_in(rng_key, 1), *first)
        if init and isinstance(start, Flow) and start.base is None:
            warn_of_far_data(first[0], *_noise_of(start, layers, *jax.tree.map(lambda leaf: leaf[:256], first)))
        settings = objective, layers, batch_size, augment, optimizer, clip_norm, ema_decay, workers
        trainer = _Trainer(start, rows, held_out, seed, *settings)
        return trainer, trainer.num_rows, dict(parts)

    def row_counts() -> list[int]:
        return batches.counts if batches else []

    words = [base_in_words(base, jax.tree.leaves(base)) for base in bases]
    rate_given = asked_once(None if has_rate(optimizer) else learning_rate or LEARNING_RATE)
    rate = rate_of(rate_given, warm_up, num_epochs)
    options = {"optimizer": optimizer, "clip_norm": clip_norm, "ema_decay": ema_decay, "warm_up": warm_up}
    options |= facts_of(learning_rate, num_epochs, objective, jacobian_penalty, augment)
    trainer, record = train(
        "fit_density",
        make_trainer,
        lambda trainer, epoch, order: trainer.run_epoch(epoch, order, rate(epoch)),
        int(numpy_rng(rng_key).integers(2**31 - 1)),
        learning_rate=rate_given,
        batch_size=batch_size,
        num_epochs=num_epochs,
        patience=patience,
        checkpoint=checkpoint,
        fixed={"backend": "numpyro", "flow": in_words(of_x), "base": words if len(words) > 1 else words[0]} | options,
        row_counts=row_counts if is_stream else None,
        callback=callback,
        progress=progress,
        advice=advice_for(learning_rate or (None if has_rate(optimizer) else LEARNING_RATE)),
        workers=workers,
    )
    fitted = trainer.flow._with_params(trainer.params)
    if isinstance(fitted, Flow):
        warn_of_rounding(fitted, *first)
    return DensityFit(flow=fitted, **record)


class _Trainer(TreeTrainer):
    """The steps of :func:`fit_density`: see :class:`flowppl.training.loop.Trainer`."""

    def __init__(
        self,
        flow,
        rows,
        held_out,
        seed,
        objective,
        layers,
        batch_size,
        augment,
        optimizer,
        clip_norm,
        ema_decay,
        workers,
    ):
        super().__init__(flow._params, seed, optimizer, clip_norm, ema_decay, workers)
        self.flow, self.batch_size, self.num_steps = flow, batch_size, 0
        self.static = (objective, layers, augment, optimizer, workers)
        self.is_read = isinstance(rows, Batches | MappedRows)
        self.rows = rows if self.is_read else workers.replicated(rows)
        self.num_rows = 0 if isinstance(rows, Batches) else len(rows if self.is_read else rows[0])
        of_held_out = None if held_out is None else split_batches(np.arange(len(held_out[0])), batch_size)
        self.held_out = workers.replicated((held_out, of_held_out))

    def run_epoch(self, epoch, order, rate):
        if not isinstance(self.rows, Batches):
            self.num_steps = epoch * math.ceil(len(order) / self.batch_size)
        if not self.is_read:
            batches = split_batches(order, self.batch_size)
            losses, validation_loss = self._run(epoch, rate, self.rows, batches, self.held_out)
            return np.asarray(losses), validation_loss
        losses = []
        for rows, counts in in_step(self._steps(order), losses):
            rows, weights = self.workers.joined(rows, counts)
            losses.append(self._run(epoch, rate, rows, (None, weights[None]), (None, None))[0][0])
        if self.held_out[0] is None:
            return losses, None
        key = jax.random.fold_in(self.key, 0)
        return losses, _mean_loss(self.flow, self.kept(), *self.held_out, key, *self.static[:2], self.workers)

    def _steps(self, order):
        if isinstance(self.rows, Batches):
            return self.rows.steps(self.workers)
        return steps(lambda here: self.rows[order[here]], len(order), self.batch_size, self.workers)

    def _run(self, epoch, rate, rows, batches, held_out):
        carry = (self.params, self.memory, self.average)
        numbers = (rate, self.clip_norm, self.ema_decay, self.key, epoch, self.num_steps)
        carry, losses, validation_loss = _run_epoch(self.flow, carry, numbers, rows, batches, held_out, *self.static)
        self.params, self.memory, self.average = carry
        self.num_steps += len(losses)
        return losses, validation_loss


@jax.jit
def _init_from(flow, key, x, context):
    return flow.init_from(x, context, key=key) if isinstance(flow, Dequantized) else flow.init_from(x, context)


@partial(jax.jit, static_argnames="layers")
def _noise_of(flow, layers, x, context):
    noise, _ = _inverse(flow, layers, x, context, jax.random.key(0))
    return noise.mean(0), noise.std(0)


# Compiled once for all fits of one flow to data of one shape.
@partial(jax.jit, static_argnames=("objective", "layers", "augment", "optimizer", "workers"))
def _run_epoch(flow, carry, numbers, rows, batches, held_out, objective, layers, augment, optimizer, workers):
    rate, clip_norm, ema_decay, key, epoch, num_steps = numbers
    epoch_key = jax.random.fold_in(key, epoch + 1)

    def step(carry, item):
        i, batch = item
        params, memory, average = carry
        known = (rows, batch, jax.random.fold_in(epoch_key, num_steps + i), augment, objective, layers, workers)

        def mean_loss(params):
            losses, weights = _losses(flow._with_params(params), *known)
            return jnp.average(losses, weights=weights)

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        (params, memory), loss = take_step(make_optimizer(optimizer, clip_norm), (params, memory), gradient, loss, rate)
        if average is not None:
            average = averaged(average, params, average_share(ema_decay, num_steps + i + 1))
        return workers.everywhere(((params, memory, average), loss))

    carry, losses = jax.lax.scan(step, carry, (jnp.arange(len(batches[1])), batches))
    if held_out[0] is None:
        return carry, losses, None
    key = jax.random.fold_in(key, 0)
    return carry, losses, _mean_loss(flow, kept(carry[2], carry[0]), *held_out, key, objective, layers, workers)


@partial(jax.jit, static_argnames=("objective", "layers", "workers"))
def _mean_loss(flow, params, held_out, held_batches, key, objective, layers, workers):
    trained = flow._with_params(params)

    def total(item):
        i, batch = item
        known = (held_out, batch, jax.random.fold_in(key, i), None, objective, layers, workers)
        return jnp.dot(*_losses(trained, *known))

    sums = jax.lax.map(total, (jnp.arange(len(held_batches[0])), held_batches))
    return workers.everywhere(sums.sum() / len(held_out[0]))


def _losses(flow, rows, batch, key, augment, objective, layers, workers):
    index, weights = batch  # without an index the rows are those of the batch
    x, context = workers.shared(rows if index is None else jax.tree.map(lambda leaf: leaf[index], rows))
    augment_key, key = jax.random.split(key)
    x = x if augment is None else augment(augment_key, x)
    distribution = flow(context, key=key) if isinstance(flow, Dequantized) else flow(context)
    if objective == "flow_matching":
        losses = _matching_losses(flow, distribution.base_dist, x, context, key)
    elif layers is not None:
        losses = _losses_through(layers, flow, distribution.base_dist, x, context, key)
    else:
        losses = -distribution.log_prob(x)
    return losses, weights.astype(losses.dtype)


def _matching_losses(flow, base, x, context, key):
    noise_key, time_key = jax.random.split(key)
    noise = base.sample(noise_key, (NUM_DRAWS, len(x))[: 2 - len(base.batch_shape)]).astype(x.dtype)
    params = merge(flow.params, constants_of(flow.bijection))
    return matching_losses(flow.bijection, params, x, noise, jax.random.uniform(time_key, dtype=x.dtype), context)


def _inverse(flow, layers, x, context, key):
    if layers is None:
        return flow(context).transforms[0].inverse_and_log_det(x)
    keys = (jax.random.fold_in(key, i) for i in itertools.count())

    def draw(shape, counts):
        return jax.random.uniform(next(keys), shape, x.dtype)

    params = merge(flow.params, constants_of(flow.bijection))
    return inverse_through(layers, params, x, context, draw)


def _losses_through(layers, flow, base, x, context, key):
    noise, log_det = _inverse(flow, layers, x, context, key)
    return -log_prob_at(base, flow.bijection, x, noise, log_det)
