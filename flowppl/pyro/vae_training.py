"""Training of variational autoencoders in Pyro."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pyro
import torch

from flowppl.autoencoders.data import data_source, first_rows, is_share, warn_of_constants
from flowppl.autoencoders.model import check_vae
from flowppl.autoencoders.training import NUM_PROBED, VAEFit, check_options, train
from flowppl.checks import without_key
from flowppl.inference.batches import Batches, steps
from flowppl.inference.epochs import Callback
from flowppl.pyro.autoencoder import Autoencoder, as_rows, modes, to_numpy
from flowppl.pyro.distributed import Workers
from flowppl.pyro.steps import Optimizer, check_optimizer, has_rate
from flowppl.pyro.training import ModuleTrainer

VAE = TypeVar("VAE", bound=Autoencoder)


@without_key
def fit_vae(
    vae: VAE,
    x: Any = None,
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
    distributed: bool = False,
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
        x: n data of shape ``(n, *shape)``: a tensor or an array, a list of rows, a table of pandas, or a data set of
            torch. Of a memory-mapped array only the rows of a step are read at a time, and those held out. Or an
            iterable of batches that starts anew in each epoch, such as a ``DataLoader``, or a function without
            arguments that gives one, such as a generator function: each batch is one step. An iterator is read once
            and held in memory. Of items that are tuples, such as an image and its label, the first parts are the data.
        validation: the fraction of rows to hold out at random, or held-out data; ``None`` for no validation. Its loss
            is minus the ELBO, with one draw for each datum, the same in all epochs. Of an iterable of batches no
            fraction is held out.
        batch_size: the number of rows in one step; the last batch of an epoch may be smaller. Unused if x is an
            iterable of batches.
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
            the result that it would have had without an interruption. For the optimisers with names, and data that are
            no iterable of batches. A file of another autoencoder, which is told by its flows and by the loss of a few
            rows, of other data or options is refused. ``num_epochs`` and ``patience`` may change; a function for the
            learning rate must give the same one for an epoch each time.
        callback: called as ``callback(epoch, loss)`` after each epoch; if it returns True, the training stops.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.
        distributed: whether all processes of ``torch.distributed`` train together, each of which makes this call. They
            share the rows of each batch and the noise of the latents, and end with the same weights, those of one
            process up to rounding; what is random in the networks is each process's own, and batch normalisation sees
            its rows only. Of an iterable of batches each process has its own, and a step takes one batch of each. The
            first process writes the checkpoint, which all must be able to read, and its ``callback`` counts.

    Returns:
        A :class:`VAEFit`; its ``params`` are the ``state_dict`` of the autoencoder.

    Raises:
        TypeError: if ``vae`` is no autoencoder, the data are no real numbers, or ``optimizer`` is none.
        ValueError: if the data do not fit the likelihood (the message names the range) or the networks, for an option
            that cannot be meant, or a checkpoint that is not whole or of another training; it is then as it was.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite, gradients are switched off, or
            ``distributed`` before ``torch.distributed.init_process_group``.

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
    workers = Workers("fit_vae", distributed)
    checks: list[Callable[[Any], None]] = []  # none until the first rows, of which it is made, are read

    def read(rows):
        rows = as_rows(rows)
        for check in checks:
            check(rows)
        return rows

    source, validation = data_source(x, read), validation if is_share(validation) else as_rows(validation)
    x = as_rows(x) if source is None else source
    first = first_rows(x)
    checks.append(vae._checker(first[:1]))
    checks[0](first)
    if not is_share(validation):
        vae._check(validation)
    if vae.likelihood == "gaussian":
        warn_of_constants(to_numpy(first), lambda: vae._learns_scale(first))

    def make_trainer(data, held_out, seed):
        return _Trainer(vae, data, held_out, seed, batch_size, workers, **options)

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
        workers=workers,
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

    def __init__(self, vae, data, held_out, seed, batch_size, workers, optimizer, free_bits, clip_norm, ema_decay):
        self.vae, self.data, self.held_out = vae, data, held_out
        self.batch_size, self.free_bits, self.num_steps = batch_size, free_bits, 0
        # Such as the statistics of batch normalisation; those of the flows never change.
        networks = [network for network in vae._networks() if isinstance(network, torch.nn.Module)]
        buffers = [buffer for network in networks for buffer in network.buffers()]
        super().__init__(vae, _trained(vae), seed, optimizer, clip_norm, ema_decay, workers, buffers)

    def run_epoch(self, epoch, order, rate, beta):
        if isinstance(self.data, Batches):
            batches = self.data.steps(self.workers)
        else:
            self.num_steps = epoch * math.ceil(len(order) / self.batch_size)
            batches = steps(lambda here: (self.data[order[here]], None), len(order), self.batch_size, self.workers)
        with modes(self.vae, trains=True), self._noises(epoch + 1) as noise:
            losses = [self._step(rows, counts, noise, rate, beta) for (rows, _), counts in batches]
        self.workers.equalise(self.buffers)
        return torch.stack(losses).tolist(), None if self.held_out is None else self._validation_loss()

    @contextlib.contextmanager
    def _noises(self, index):
        """A function that gives each process its rows of the noise of a batch, which is drawn for all of them."""
        with self.noise_of(index) as seed, pyro.validation_enabled(False):
            generator = None
            if self.workers.size > 1:
                generator = torch.Generator(self.vae._zeros.device).manual_seed(seed)

            def noise(counts, num_rows):
                drawn = self.vae._noise(int(counts.sum()), generator=generator)
                return drawn[self.workers.place(counts, num_rows)]

            yield noise

    def _step(self, rows, counts, noise, rate, beta):
        x = self.vae._rows(rows)
        before = [buffer.clone() for buffer in self.buffers]
        try:
            log_likelihood, kl, _ = self.vae.terms(x, noise(counts, len(x)))
        except ValueError as error:
            if len(x) > 1:
                raise
            why = "which the iterable gave; leave it out, as a DataLoader does with drop_last=True"
            if not isinstance(self.data, Batches):
                rows = f"{len(self.data)} rows in batches of {self.batch_size}"
                whom = f" for one of {self.workers.size} processes" if self.workers.size > 1 else ""
                why = f"which {rows} leave at the end{whom}; choose another batch_size"
            raise ValueError(f"fit_vae: the networks cannot be trained on a batch of one row, {why}") from error
        mean_kl = kl.mean()
        if self.free_bits:
            of_all = self.workers.total(mean_kl.detach() * (counts[self.workers.rank] / counts.sum()))
            mean_kl = torch.where(of_all < self.free_bits, self.free_bits, mean_kl)
        self.num_steps += 1
        found = self.take_step(beta * mean_kl - log_likelihood.mean(), counts, rate)
        for buffer, value in zip(self.buffers, before, strict=True):
            buffer.copy_(torch.where(found.isnan(), value, buffer))
        self.average_step(self.num_steps)
        return found

    @torch.no_grad()
    def probe(self):
        x = self.vae._rows(self.data[np.arange(min(NUM_PROBED, len(self.data)))])
        noise = np.random.default_rng(0).normal(size=(len(x), self.vae.dim))  # the same on all devices
        with modes(self.vae, trains=False), self.noise_of(0) as seed, pyro.validation_enabled(False):
            torch.manual_seed(seed)  # in all processes
            terms = self.vae.terms(x, torch.as_tensor(noise).to(self.vae._zeros))[:2]
        return [float(term.mean()) for term in terms]

    @torch.no_grad()
    def _validation_loss(self):
        num_rows, total = len(self.held_out), torch.zeros((), dtype=torch.float64, device=self.workers.device)
        with self.with_averages(), modes(self.vae, trains=False), self._noises(0) as noise:
            for x, counts in steps(lambda here: self.held_out[here], num_rows, self.batch_size, self.workers):
                x = self.vae._rows(x)
                log_likelihood, kl, _ = self.vae.terms(x, noise(counts, len(x)))
                total += float((kl - log_likelihood).sum()) if counts[self.workers.rank] else 0.0
        return float(self.workers.total(total)) / num_rows
