"""Maximum likelihood of Pyro flows."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pyro
import torch
from torch.distributions import Transform

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
from flowppl.pyro.flow import Flow
from flowppl.pyro.steps import Optimizer, check_optimizer, has_rate, make_optimizer, take_step
from flowppl.pyro.transforms import FlowTransform, numpy_rng


def fit_density(
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
    which the last may be smaller. The learning rate falls to zero over ``num_epochs`` along half a cosine. The module
    is trained in place, and ends with the weights of the epoch of the best validation loss; without validation, of the
    last epoch. ``pyro.set_rng_seed`` determines the batches.

    Standardise the data first: a flow starts near its base distribution, the standard normal unless told otherwise.
    A step whose loss or gradient is not finite is left out and counted. An interruption (Ctrl-C) ends the training, and
    the result is what the complete epochs reached.

    A density needs data that vary continuously: columns that do not vary are refused, and a warning names those whose
    values repeat, such as counts. To those add noise that is uniform between 0 and 1, once, before the fit
    (dequantisation).

    Args:
        flow: the flow, or a :class:`flowppl.Bijection` or :class:`FlowTransform` of which one is made. What
            requires no gradient stays as it is, and so does the base distribution unless it is a module.
        x: the data, of shape ``(n, *event_shape)``, one row for each datum: an array, a list, or a data frame, whose
            columns are the coordinates; it takes the dtype and device of the flow. Or an iterable of batches that
            starts anew in each epoch, such as a torch ``DataLoader``: each batch is x or ``(x, context)``, one step.
        context: for a conditional flow, the contexts of the rows, of shape ``(n, context_dim)``.
        learning_rate: the learning rate of the first epoch; ``None`` is 0.003.
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
        callback: called after each epoch as ``callback(epoch, loss)``, with its number from 0 and its mean loss; if it
            returns True, training stops.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.

    Returns:
        A :class:`DensityFit`: the trained ``flow``, its ``losses`` and ``validation_losses``, and why it stopped.

    Raises:
        TypeError: if ``flow`` is no flow, x is no data, or ``callback`` or ``optimizer`` is none.
        ValueError: if the data do not fit the flow, do not vary or are not finite, an option is out of range, or the
            base distribution lies in an interval that the flow does not map onto the space of the data.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite, or torch keeps no
            gradients here.

    References:
        Kingma, Ba: Adam: A Method for Stochastic Optimization, 2014, arXiv 1412.6980. Loshchilov, Hutter: SGDR:
        Stochastic Gradient Descent with Warm Restarts, 2016, arXiv 1608.03983. Dequantisation: Theis, van den Oord,
        Bethge: A note on the evaluation of generative models, 2015, arXiv 1511.01844.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import fit_density
        >>> x = 3.0 + 2.0 * torch.randn(500, 2)
        >>> fit = fit_density(fp.ElementwiseAffine(2), x, learning_rate=0.1, num_epochs=50, progress=False)
        >>> fit.flow.sample((10,)).shape, bool(fit.losses[-1] < fit.losses[0])
        (torch.Size([10, 2]), True)
    """
    check_flow(flow, x, Flow, (FlowTransform, Bijection, Transform))
    if not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        raise RuntimeError("fit_density: torch keeps no gradients here; call it outside of no_grad and inference_mode")
    check_optimizer("fit_density", optimizer, learning_rate)
    check_options(
        learning_rate=learning_rate,
        clip_norm=clip_norm,
        patience=patience,
        batch_size=batch_size,
        num_epochs=num_epochs,
    )
    fitted = flow if isinstance(flow, Flow) else Flow(flow)  # type: ignore[arg-type]
    trained = {name: parameter for name, parameter in fitted.named_parameters() if parameter.requires_grad}
    if not trained:
        raise ValueError("fit_density: the flow has no parameters that require a gradient; nothing can be trained")
    if any(parameter.is_inference() for parameter in trained.values()):
        raise RuntimeError("fit_density: the flow was made in torch.inference_mode, which keeps no gradients")
    zeros: Any = fitted._zeros  # has the dtype and the device of the flow

    def convert(values: Any) -> torch.Tensor:
        tensor = values.detach() if isinstance(values, torch.Tensor) else torch.tensor(np.asarray(values))
        return tensor.to(zeros).clone() if tensor.is_inference() else tensor.to(zeros)

    base = fitted.base() if isinstance(fitted.base, torch.nn.Module) else fitted.base
    if base is not None:
        check_base(fitted.bijection, base, lambda value: torch.as_tensor(value).detach().cpu().numpy())
    rng = numpy_rng()
    batches: Batches | None = None
    data: Any = None
    if is_batches(x):
        if context is not None:
            raise ValueError("fit_density: beside batches no context is given; let each batch be (x, context)")
        batches, held_out = Batches(fitted.bijection, x, convert), held_out_rows(fitted.bijection, validation, convert)
        first = batches.first()
        warn_of_few_values(first[0], column_names(x, fitted.bijection.y_shape))
    else:
        data, held_out = split_rows(fitted.bijection, x, context, validation, convert, rng)
        first = data[0][:INIT_ROWS], None if data[1] is None else data[1][:INIT_ROWS]
    if init:
        fitted.init_from(*first)
    host = make_optimizer(optimizer, trained, **({"fused": True} if optimizer == "adam" else {}))
    host.zero_grad()
    norm = math.inf if clip_norm is None else clip_norm

    def step(x: torch.Tensor, context: torch.Tensor | None, rate: float | None) -> torch.Tensor:
        loss = -fitted(context).log_prob(x).mean()
        loss.backward()
        return take_step(host, list(trained.values()), loss, norm, rate)

    def run_epoch(rate: float | None, order: np.ndarray) -> tuple[list[float], Any]:
        with pyro.validation_enabled(False):  # the rows were checked; to check them again a GPU would be waited for
            if batches is None:
                parts = torch.as_tensor(order, device=zeros.device).split(batch_size)
                losses = [step(*_part(data, rows), rate) for rows in parts]
            else:
                losses = [step(*rows, rate) for rows in batches]
        return torch.stack(losses).tolist(), None if held_out is None else _mean_loss(fitted, held_out, batch_size)

    def flow_with(state: dict[str, torch.Tensor]) -> Flow:
        fitted.load_state_dict(state)
        host.zero_grad()
        return fitted

    return train(
        run_epoch,
        lambda: copy.deepcopy(fitted.state_dict()),
        flow_with,
        rng,
        batches=batches,
        num_rows=0 if batches is not None else len(data[0]),
        batch_size=batch_size,
        learning_rate=None if has_rate(optimizer) else learning_rate or LEARNING_RATE,
        num_epochs=num_epochs,
        patience=patience,
        callback=callback,
        progress=progress,
    )


def _part(data: Any, rows: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    x, context = data
    return x[rows], None if context is None else context[rows]


@torch.no_grad()
def _mean_loss(flow: Flow, data: Any, batch_size: int) -> Any:
    num_rows = len(data[0])
    parts = (_part(data, slice(start, start + batch_size)) for start in range(0, num_rows, batch_size))
    return -sum(flow(context).log_prob(x).sum() for x, context in parts) / num_rows
