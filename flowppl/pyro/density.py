"""Maximum likelihood of Pyro flows."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from torch.distributions import Distribution, Transform

from flowppl.bijections.contract import Bijection
from flowppl.checks import without_key
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
from flowppl.pyro.density_mixture import Mixture
from flowppl.pyro.discrete import Dequantized
from flowppl.pyro.distributed import Workers
from flowppl.pyro.flow import Flow, log_prob_at, tensors_of
from flowppl.pyro.pixelcnn import PixelCNN
from flowppl.pyro.steps import Optimizer, check_optimizer, has_rate
from flowppl.pyro.training import ModuleTrainer
from flowppl.pyro.transforms import FlowTransform
from flowppl.training.checkpoints import base_in_words, in_words
from flowppl.training.loop import check_options, train

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    FlowType = TypeVar("FlowType", bound="Flow | Dequantized | Mixture | PixelCNN", default=Flow)

_KINDS = (Flow, Mixture, Dequantized, PixelCNN)  # what is fitted as it is


@without_key
def fit_density(
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
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
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
    which the last may be smaller. The learning rate falls to zero over ``num_epochs`` along half a cosine. The module
    is trained in place, and ends with the weights of the epoch of the best validation loss; without validation, of the
    last epoch. ``pyro.set_rng_seed`` determines the batches and the noise.

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
        flow: the flow, a :class:`Mixture`, a :class:`Dequantized`, a :class:`PixelCNN`, or a :class:`flowppl.Bijection`
            or :class:`FlowTransform` of which a flow is made. What requires no gradient stays as it is, and so does the
            base distribution unless it is a module.
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
        optimizer: ``"adam"`` or ``"adamax"``, or a class of ``torch.optim``, a function from a list of parameters to
            a torch optimiser (or to a pair with its scheduler), or an optimiser of ``pyro.optim``, with
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
        augment: a function of the x of a batch that gives what is trained on in its place, such as images of which
            some are mirrored; of ``torch``'s random numbers it has new ones at every step.
        checkpoint: a file that is written after each epoch. If it is there already, the training goes on from it, to
            the result that it would have had without an interruption. For the optimisers with names, and data that are
            no iterable of batches. A file of another flow, other data or options is refused. ``patience`` and, where
            ``learning_rate`` is a function, ``num_epochs`` may change. Such a function must give the same rate for an
            epoch each time. Of ``augment`` is compared whether there is one, not what it does.
        callback: called after each epoch as ``callback(epoch, loss)``, with its number from 0 and its mean loss; if it
            returns True, training stops.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.
        distributed: whether all processes of ``torch.distributed`` train together, each of which makes this call. They
            share the rows of each batch, and end with the same weights, those of one process up to rounding; noise
            that the flow or ``augment`` draws is each process's own. Of an iterable of batches each process has its
            own, and a step takes one batch of each. The first process writes the checkpoint, which all must be able to
            read, and its ``callback`` counts.

    Returns:
        A :class:`DensityFit`: the trained ``flow``, its ``losses`` and ``validation_losses``, and why it stopped.

    Raises:
        TypeError: if ``flow`` is no flow, x is no data, or ``callback`` or ``optimizer`` is none.
        ValueError: if the data do not fit the flow, do not vary, are not finite or no levels of a distribution of
            integers, an option is out of range, the flow has nothing to estimate, no velocity to match or none to
            penalise, flow matching is given a penalty, a checkpoint is not whole or of another training (it is then as
            it was), or the base distribution lies in an interval that the flow does not map onto the space of the data.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite, torch keeps no gradients here,
            or ``distributed`` before ``torch.distributed.init_process_group``.

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
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import fit_density
        >>> x = 3.0 + 2.0 * torch.randn(500, 2)
        >>> fit = fit_density(fp.ElementwiseAffine(2), x, learning_rate=0.1, num_epochs=50, progress=False)
        >>> fit.flow.sample((10,)).shape, bool(fit.losses[-1] < fit.losses[0])
        (torch.Size([10, 2]), True)
    """
    check_flow(flow, x, Flow, (*_KINDS, FlowTransform, Bijection, Transform))
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise RuntimeError("fit_density: torch keeps no gradients here; call it outside of no_grad and inference_mode")
    check_augment(augment, "x")
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
    workers, is_stream = Workers("fit_density", distributed), is_batches("fit_density", x)
    if checkpoint is not None and is_stream:
        raise ValueError("fit_density: a checkpoint cannot tell where an iterable of batches is; give x as an array")
    fitted: Any = flow if isinstance(flow, _KINDS) else Flow(flow)  # type: ignore[arg-type]
    layers = layers_for(objective, jacobian_penalty, getattr(fitted, "bijection", fitted))
    losses = _matching_losses if objective == "flow_matching" else partial(_likelihood_losses, layers)
    trained = {name: parameter for name, parameter in fitted.named_parameters() if parameter.requires_grad}
    if objective == "flow_matching" and any(name.startswith("base.") for name in trained):
        raise ValueError(
            "fit_density: flow matching trains no base distribution; freeze it by flow.base.requires_grad_(False)"
        )
    if not trained:
        raise ValueError("fit_density: the flow has no parameters that require a gradient; nothing can be trained")
    if any(parameter.is_inference() for parameter in trained.values()):
        raise RuntimeError("fit_density: the flow was made in torch.inference_mode, which keeps no gradients")
    zeros: Any = fitted._zeros  # has the dtype and the device of the flow
    of_x = fitted._of_x

    convert = partial(tensor_like, zeros)
    flows: Any = fitted.flows if isinstance(fitted, Mixture) else [getattr(fitted, "flow", fitted)]
    bases = [getattr(flow, "base", None) for flow in flows]
    for each, base in zip(flows, bases, strict=True):
        base = base() if isinstance(base, torch.nn.Module) else base
        if base is not None and not isinstance(fitted, Dequantized):
            check_base(each.bijection, base, lambda value: torch.as_tensor(value).detach().cpu().numpy())
    batches: Batches | None = None
    first: Any = None

    def make_trainer(seed: int) -> tuple[_Trainer, int, dict[str, Any]]:
        nonlocal batches, first
        data: Any = None
        if is_stream:
            if context is not None:
                raise ValueError("fit_density: beside batches no context is given; let each batch be (x, context)")
            batches, held_out = batches_of(of_x, x, convert), held_out_rows(of_x, validation, convert)
            first = batches.first()
            if not is_of_levels(of_x):
                warn_of_few_values(first[0], column_names(x, of_x.y_shape))
        else:
            data, held_out = split_rows(of_x, x, context, validation, convert, np.random.default_rng(seed))
            first = _part(data, slice(0, INIT_ROWS))
        if init:
            fitted.init_from(*first)
        if init and isinstance(fitted, Flow) and fitted.base is None:
            _warn_of_far_data(fitted, layers, *_part(first, slice(0, 256)))
        rows = data if batches is None else batches
        settings: Any = (losses, batch_size, augment, optimizer, clip_norm, ema_decay, workers)
        trainer = _Trainer(fitted, trained, rows, held_out, seed, *settings)
        told = (x, context) if isinstance(data, MappedRows) else data or ()
        parts = zip(("data", "context", "validation", "context_val"), (*told, *(held_out or ())), strict=False)
        return trainer, trainer.num_rows, dict(parts)

    def row_counts() -> list[int]:
        return batches.counts if batches else []

    words = [base_in_words(base, tensors_of(base) if isinstance(base, Distribution) else ()) for base in bases]
    base_words = {"base": words if len(words) > 1 else words[0]}
    rate_given = asked_once(None if has_rate(optimizer) else learning_rate or LEARNING_RATE)
    rate = rate_of(rate_given, warm_up, num_epochs)
    options = {"optimizer": optimizer, "clip_norm": clip_norm, "ema_decay": ema_decay, "warm_up": warm_up}
    options |= facts_of(learning_rate, num_epochs, objective, jacobian_penalty, augment)
    _, record = train(
        "fit_density",
        make_trainer,
        lambda trainer, epoch, order: trainer.run_epoch(epoch, order, rate(epoch)),
        int(torch.randint(2**31, ())),
        learning_rate=rate_given,
        batch_size=batch_size,
        num_epochs=num_epochs,
        patience=patience,
        checkpoint=checkpoint,
        fixed={"backend": "pyro", "flow": in_words(of_x), "trained parameters": list(trained)} | base_words | options,
        row_counts=row_counts if is_stream else None,
        callback=callback,
        progress=progress,
        advice=advice_for(learning_rate or (None if has_rate(optimizer) else LEARNING_RATE)),
        workers=workers,
    )
    if isinstance(fitted, Flow):
        warn_of_rounding(fitted, *first)
    return DensityFit(flow=fitted, **record)


def tensor_like(zeros: torch.Tensor, values: Any) -> torch.Tensor:
    """Anything that NumPy reads as a tensor of the dtype and device of ``zeros``, without a gradient."""
    tensor = values.detach() if isinstance(values, torch.Tensor) else torch.tensor(np.asarray(values))
    return tensor.to(zeros).clone() if tensor.is_inference() else tensor.to(zeros)


class _Trainer(ModuleTrainer):
    """The steps of :func:`fit_density`: see :class:`flowppl.training.loop.Trainer`."""

    def __init__(
        self,
        flow,
        trained,
        rows,
        held_out,
        seed,
        losses,
        batch_size,
        augment,
        optimizer,
        clip_norm,
        ema_decay,
        workers,
    ):
        self.flow, self.rows, self.held_out, self.losses = flow, rows, held_out, losses
        self.batch_size, self.augment, self.num_steps = batch_size, augment, 0
        self.num_rows = 0 if isinstance(rows, Batches) else len(rows if isinstance(rows, MappedRows) else rows[0])
        fused: Any = {"fused": True} if optimizer == "adam" else {}
        super().__init__(flow, trained, seed, optimizer, clip_norm, ema_decay, workers, **fused)

    def run_epoch(self, epoch, order, rate):
        if not isinstance(self.rows, Batches):
            self.num_steps = epoch * math.ceil(len(order) / self.batch_size)
        # The rows were checked; to check them again a GPU would be waited for.
        with self.noise_of(epoch + 1), pyro.validation_enabled(False):
            losses = [self._step(rows, counts, rate) for rows, counts in self._steps(order)]
        return torch.stack(losses).tolist(), None if self.held_out is None else self._validation_loss()

    def _steps(self, order):
        if isinstance(self.rows, Batches):
            return self.rows.steps(self.workers)
        index = order if isinstance(self.rows, MappedRows) else torch.as_tensor(order, device=self.rows[0].device)
        return steps(lambda here: _part(self.rows, index[here]), len(order), self.batch_size, self.workers)

    def _step(self, rows, counts, rate):
        x, context = rows
        x = x if self.augment is None else self.augment(x)
        loss = self.losses(self.flow, x, context).mean()
        self.num_steps += 1
        found = self.take_step(loss, counts, rate)
        self.average_step(self.num_steps)
        return found

    def _validation_loss(self):
        with self.with_averages(), self.noise_of(0), pyro.validation_enabled(False):
            return _mean_loss(self.losses, self.flow, self.held_out, self.batch_size, self.workers)


def _part(data: Any, rows: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    if isinstance(data, MappedRows):
        return data[rows]
    x, context = data
    return x[rows], None if context is None else context[rows]


def _matching_losses(flow: Flow, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    base = flow(context).base_dist
    noise = base.sample(torch.Size((NUM_DRAWS, len(x))[: 2 - len(base.batch_shape)])).to(x)
    return matching_losses(flow.bijection, flow.transform.weights.tree(), x, noise, torch.rand(()).to(x), context)  # type: ignore[arg-type]


def _inverse(
    layers: Bijection | None, flow: Flow, x: torch.Tensor, context: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    if layers is None:
        return flow(context).transforms[0].inverse_and_log_det(x)

    def draw(shape, counts):  # the host runs the loops
        return torch.rand(shape, dtype=x.dtype, device="cpu" if counts else x.device)

    return inverse_through(layers, flow.transform.weights.tree(), x, context, draw)


def _likelihood_losses(
    layers: Bijection | None, flow: Any, x: torch.Tensor, context: torch.Tensor | None
) -> torch.Tensor:
    if layers is None:
        return -flow(context).log_prob(x)
    noise, log_det = _inverse(layers, flow, x, context)
    return -log_prob_at(flow(context).base_dist, flow.bijection, x, noise, log_det)


@torch.no_grad()
def _warn_of_far_data(flow: Flow, layers: Bijection | None, x: torch.Tensor, context: torch.Tensor | None) -> None:
    noise = _inverse(layers, flow, x, context)[0].double()
    warn_of_far_data(x, noise.mean(0).cpu(), noise.std(0, correction=0).cpu())


@torch.no_grad()
def _mean_loss(losses: Any, flow: Any, data: Any, batch_size: int, workers: Workers) -> torch.Tensor:
    num_rows, total = len(data[0]), flow._zeros.new_zeros(())
    for (x, context), counts in steps(partial(_part, data), num_rows, batch_size, workers):
        if counts[workers.rank]:
            total += losses(flow, x, context).sum()
    return workers.total(total) / num_rows
