"""Training of variational autoencoders in Pyro."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import pyro
import torch

from flowppl.autoencoders.data import is_share, warn_of_constants
from flowppl.autoencoders.model import check_vae
from flowppl.autoencoders.training import VAEFit, check_options, train
from flowppl.inference.epochs import Callback
from flowppl.pyro.autoencoder import Autoencoder, as_rows, modes, to_numpy
from flowppl.pyro.steps import Optimizer, check_optimizer, has_rate, take_step
from flowppl.pyro.training import ModuleTrainer

VAE = TypeVar("VAE", bound=Autoencoder)


def fit_vae(
    vae: VAE,
    x: Any,
    *,
    validation: Any = 0.1,
    batch_size: int = 100,
    num_epochs: int = 500,
    learning_rate: float | Callable[[int], float] | None = None,
    optimizer: Optimizer = "adam",
    warm_up: int = 50,
    free_bits: float = 0.0,
    patience: int | None = 50,
    clip_norm: float | None = None,
    ema_decay: float = 0.0,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
) -> VAEFit[VAE, dict[str, torch.Tensor]]:
    r"""Train a :class:`FlowVAE` on data.

    In epoch t, counted from 0, it minimises the mean over the data x of a batch of

    .. math::
        -\log p(x \mid z) + \beta\, \big(\log q(z \mid x) - \log p(z)\big), \qquad z \sim q(z \mid x),

    where z are the latents, :math:`p(x \mid z)` is the likelihood, :math:`q(z \mid x)` the posterior and :math:`p(z)`
    the prior, and :math:`\beta = \min(1, (t+1) / \mathrm{warm\_up})`. At :math:`\beta = 1` this is minus the evidence
    lower bound (ELBO) of x. The second term, without :math:`\beta`, is the KL term. ``free_bits``, if there are any,
    stand in for its mean over the batch when that is less.

    The module is trained in place, and ends with the weights of the epoch of the best validation loss; without
    validation, of the last. ``pyro.set_rng_seed`` determines the batches and the noise. Networks are in training mode
    in steps, and in evaluation mode for the validation loss; afterwards they are as before. A part none of whose
    parameters requires a gradient stays in evaluation mode.

    Of the likelihood ``"gaussian"``, numbers that are the same in all data are warned of, where the scale is learned:
    their density has no bound.

    With ``ema_decay`` the weights that are validated, and kept, are an average over all steps, the last steps most: of
    step s of t it has the weight :math:`\mathrm{ema\_decay}^{t-s}`, divided by the sum of all. Averages are better than
    the weights of any one step where steps are noisy, as those of small batches are.

    A step whose loss or gradient is not finite is left out and counted. An interruption (Ctrl-C) ends the training; the
    result is what the complete epochs reached.

    Args:
        vae: the autoencoder.
        x: n data of shape ``(n, *shape)``: a tensor or an array, a list of rows, a table of pandas, a data set of
            torch, or an iterable of batches such as a ``DataLoader``, which is read once and held in memory. Of items
            that are tuples, such as an image and its label, the first parts are the data.
        validation: the fraction of rows to hold out at random, or held-out data; ``None`` for no validation. Its loss
            is minus the ELBO, with one draw for each datum, the same in all epochs.
        batch_size: the number of rows in one step; the last batch of an epoch may be smaller.
        num_epochs: the number of passes over the data, unless ``patience`` ends them.
        learning_rate: the learning rate, or a function from the epoch, counted from 0, to it; ``None`` is 0.001, or the
            optimiser's own.
        optimizer: ``"adam"`` or ``"adamax"``; a class of ``torch.optim``, or a function from a list of parameters to a
            torch optimiser, or to that and a scheduler; or an optimiser of ``pyro.optim``. Schedules count steps.
        warm_up: the number of epochs in which the weight of the KL term rises to 1; 0 for none.
        free_bits: the nats of KL for each datum that cost nothing: latents are then not given up early.
        patience: stop after so many epochs, from the end of the warm-up on, without a better validation loss; ``None``
            never does.
        clip_norm: the largest norm of a gradient; ``None`` for no limit.
        ema_decay: the decay of the exponential moving average of the weights, such as 0.999, which averages about
            1,000 steps: few of all that there are. 0 takes the weights as they are.
        checkpoint: a file that is written after each epoch. If it is there already, the training goes on from it, to
            the result that it would have had without an interruption. For the optimisers with names only.
        callback: called as ``callback(epoch, loss)`` after each epoch; if it returns True, the training stops.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.

    Returns:
        A :class:`VAEFit`; its ``params`` are the ``state_dict`` of the autoencoder.

    Raises:
        TypeError: if ``vae`` is no autoencoder, the data are no real numbers, or ``optimizer`` is none.
        ValueError: if the data do not fit the likelihood (the message names the range) or the networks, for an option
            that cannot be meant, or a checkpoint that is not whole or of another training; it is then as it was.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite, or gradients are switched off.

    References:
        Warm-up: Bowman et al.: Generating Sentences from a Continuous Space, 2015, arXiv 1511.06349; Sonderby et al.:
        Ladder Variational Autoencoders, 2016, arXiv 1602.02282. Free bits: Kingma et al.: Improving Variational
        Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934. Averages: Kingma, Ba: Adam, 2014, arXiv
        1412.6980, section 7.2; Izmailov et al.: Averaging Weights Leads to Wider Optima, 2018, arXiv 1803.05407.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import FlowVAE, fit_vae
        >>> x = (torch.rand(200, 1) < 0.5).expand(200, 9).float()
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=2)
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(9, 16), torch.nn.ReLU())
        >>> vae = FlowVAE(encoder, torch.nn.Linear(2, 9), posterior)
        >>> fit = fit_vae(vae, x, num_epochs=5, learning_rate=0.03, warm_up=0, progress=False)
        >>> bool(fit.losses[-1] < fit.losses[0])
        True
    """
    check_vae("fit_vae(vae, x)", vae, Autoencoder)
    if not torch.is_grad_enabled():
        raise RuntimeError("fit_vae: gradients are off, by torch.no_grad() or torch.inference_mode(); call it outside")
    if any(parameter.is_inference() for parameter in vae.parameters()):
        raise RuntimeError("fit_vae: this autoencoder was made under torch.inference_mode(); make it outside")
    check_optimizer("fit_vae", optimizer, learning_rate)
    sizes = {"batch_size": batch_size, "num_epochs": num_epochs}
    options: dict[str, Any] = {"optimizer": optimizer, "free_bits": free_bits}
    options |= {"clip_norm": clip_norm, "ema_decay": ema_decay}
    rest: dict[str, Any] = {
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "patience": patience,
        "checkpoint": checkpoint,
    }
    check_options(**rest, **options, **sizes)
    x, validation = as_rows(x), validation if is_share(validation) else as_rows(validation)
    for data in (x,) if is_share(validation) else (x, validation):
        vae._check(data)
    if vae.likelihood == "gaussian":
        warn_of_constants(to_numpy(x), lambda: vae._learns_scale(x))

    def make_trainer(data, held_out, seed):
        return _Trainer(vae, data, held_out, seed, batch_size, **options)

    trained = _trained(vae)
    if not trained:
        raise ValueError("fit_vae: no parameter of the autoencoder requires a gradient; nothing can be trained")
    held = None if checkpoint is None else _held(vae)
    _, record = train(
        make_trainer,
        x,
        validation,
        int(torch.randint(2**31, ())),
        batch_size=batch_size,
        num_epochs=num_epochs,
        learning_rate=None if has_rate(optimizer) else 1e-3 if learning_rate is None else learning_rate,
        warm_up=warm_up,
        patience=patience,
        checkpoint=checkpoint,
        callback=callback,
        fixed={"backend": "pyro", "trained parameters": list(trained)} | options | vae._description(held),
        progress=progress,
    )
    params = {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}
    return VAEFit(vae=vae, params=params, **record)


def _trained(vae) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in vae.named_parameters() if parameter.requires_grad}


def _held(vae) -> Callable | None:
    """The log density of a prior that is not trained."""
    prior = getattr(vae, "prior", None)
    if prior is None or prior.bijection.context_dim or any(each.requires_grad for each in prior.parameters()):
        return None
    return torch.no_grad()(lambda points: prior().log_prob(torch.as_tensor(points).to(vae._zeros)))


class _Trainer(ModuleTrainer):
    """The steps of :func:`fit_vae`: see :class:`flowppl.autoencoders.training.Trainer`."""

    def __init__(self, vae, data, held_out, seed, batch_size, optimizer, free_bits, clip_norm, ema_decay):
        self.vae, self.data, self.held_out = vae, data, held_out
        self.batch_size, self.free_bits = batch_size, free_bits
        # Such as the statistics of batch normalisation; those of the flows never change.
        networks = [network for network in vae._networks() if isinstance(network, torch.nn.Module)]
        buffers = [buffer for network in networks for buffer in network.buffers()]
        super().__init__(vae, _trained(vae), seed, optimizer, clip_norm, ema_decay, buffers)

    def run_epoch(self, epoch, order, rate, beta):
        batches = [order[begin : begin + self.batch_size] for begin in range(0, len(order), self.batch_size)]
        with modes(self.vae, trains=True), self.noise_of(epoch + 1), pyro.validation_enabled(False):
            first = epoch * len(batches) + 1
            losses = [self._step(rows, rate, beta, step) for step, rows in enumerate(batches, first)]
        return torch.stack(losses).tolist(), None if self.held_out is None else self._validation_loss()

    def _step(self, rows, rate, beta, num_steps):
        x = self.vae._rows(self.data[rows])
        before = [buffer.clone() for buffer in self.buffers]
        try:
            log_likelihood, kl, _ = self.vae.terms(x, self.vae._noise(len(x)))
        except ValueError as error:
            if len(x) > 1:
                raise
            raise ValueError(
                f"fit_vae: the networks cannot be trained on a batch of one row, which {len(self.data)} rows in "
                f"batches of {self.batch_size} leave at the end; choose another batch_size"
            ) from error
        mean_kl = kl.mean().clamp(min=self.free_bits) if self.free_bits else kl.mean()
        loss = beta * mean_kl - log_likelihood.mean()
        loss.backward()
        found = take_step(self.optimizer, self.trained.values(), loss, self.clip_norm, rate)
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(torch.where(found.isnan(), value, buffer))
        self.average_step(num_steps)
        return found

    @torch.no_grad()
    def _validation_loss(self):
        total = 0.0
        evaluates = modes(self.vae, trains=False)
        with self.with_averages(), evaluates, self.noise_of(0), pyro.validation_enabled(False):
            for begin in range(0, len(self.held_out), self.batch_size):
                x = self.vae._rows(self.held_out[begin : begin + self.batch_size])
                log_likelihood, kl, _ = self.vae.terms(x, self.vae._noise(len(x)))
                total += float((kl - log_likelihood).sum())
        return total / len(self.held_out)
