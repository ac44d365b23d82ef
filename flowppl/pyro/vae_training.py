"""Training of variational autoencoders in Pyro."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable

import numpy as np
import pyro
import torch

from flowppl.autoencoders.model import as_data
from flowppl.autoencoders.training import FIT_VAE_DOC, VAEFit, average_share, check_options, describe, train
from flowppl.pyro.steps import take_step
from flowppl.pyro.vae import EXAMPLE, FlowVAE, modes


def fit_vae(
    vae: FlowVAE,
    x,
    *,
    validation=0.1,
    batch_size: int = 100,
    num_epochs: int = 500,
    learning_rate: float | Callable[[int], float] = 1e-3,
    optimizer: str = "adam",
    warm_up: int = 50,
    free_bits: float = 0.0,
    patience: int | None = 50,
    clip_norm: float | None = None,
    ema_decay: float = 0.0,
    checkpoint=None,
    progress: bool | None = None,
) -> VAEFit:
    sizes = {"batch_size": batch_size, "num_epochs": num_epochs}
    options = {"optimizer": optimizer, "free_bits": free_bits, "clip_norm": clip_norm, "ema_decay": ema_decay}
    check_options(learning_rate, warm_up, patience, **options, **sizes)
    x, validation = as_data(x), as_data(validation)
    for data in (x, validation):
        if data is not None and not isinstance(data, numbers.Real):
            vae._check(data)

    def make_trainer(data, held_out, seed):
        return _Trainer(vae, data, held_out, seed, batch_size, **options)

    trained = _trained(vae)
    if not trained:
        raise ValueError("fit_vae: no parameter of the autoencoder requires a gradient; nothing can be trained")
    held = None if checkpoint is None else _held(vae)
    of_vae = describe(vae.posterior.bijection, vae.prior, vae.likelihood, held)
    _, record = train(
        make_trainer,
        x,
        validation,
        int(torch.randint(2**31, ())),
        batch_size=batch_size,
        num_epochs=num_epochs,
        learning_rate=learning_rate,
        warm_up=warm_up,
        patience=patience,
        checkpoint=checkpoint,
        fixed={"backend": "pyro", "trained parameters": list(trained)} | options | of_vae,
        progress=progress,
    )
    params = {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}
    return VAEFit(vae=vae, params=params, **record)


def _trained(vae) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in vae.named_parameters() if parameter.requires_grad}


def _held(vae) -> Callable | None:
    """The log density of a prior that is not trained."""
    if vae.prior is None or any(parameter.requires_grad for parameter in vae.prior.parameters()):
        return None
    return torch.no_grad()(lambda points: vae._prior().log_prob(torch.as_tensor(points).to(vae.posterior._zeros)))


class _Trainer:
    """The steps of :func:`fit_vae`: see :class:`flowppl.autoencoders.training.Trainer`."""

    def __init__(self, vae, data, held_out, seed, batch_size, optimizer, free_bits, clip_norm, ema_decay):
        self.vae, self.data, self.held_out, self.seed = vae, data, held_out, seed
        self.batch_size, self.free_bits, self.ema_decay = batch_size, free_bits, ema_decay
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.trained = _trained(vae)
        kinds: dict[str, Callable] = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}
        self.optimizer = kinds[optimizer](self.trained.values())
        self.optimizer.zero_grad()
        # Such as the statistics of batch normalisation; those of the flows never change.
        networks = [network for network in (vae.encoder, vae.decoder) if isinstance(network, torch.nn.Module)]
        self.buffers = [buffer for network in networks for buffer in network.buffers()]
        of_networks = [buffer for buffer in self.buffers if buffer.is_floating_point()]
        self.averaged = [*self.trained.values(), *of_networks] if ema_decay else []
        self.average = [_at_least_float32(tensor.detach().clone()) for tensor in self.averaged]

    def run_epoch(self, epoch, order, rate, beta):
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = [order[begin : begin + self.batch_size] for begin in range(0, len(order), self.batch_size)]
        with modes(self.vae, trains=True), self._noise_of(epoch + 1), pyro.validation_enabled(False):
            first = epoch * len(batches) + 1
            losses = [self._step(rows, beta, step) for step, rows in enumerate(batches, first)]
        return losses, None if self.held_out is None else self._validation_loss()

    def _step(self, rows, beta, num_steps):
        x = self.vae._rows(self.data[rows])
        before = [buffer.clone() for buffer in self.buffers]
        log_likelihood, kl, _ = self.vae.terms(x, self._noise(len(x)))
        mean_kl = kl.mean().clamp(min=self.free_bits) if self.free_bits else kl.mean()
        loss = beta * mean_kl - log_likelihood.mean()
        loss.backward()
        found = take_step(self.optimizer, self.trained.values(), loss.item(), self.clip_norm)
        if math.isnan(found):
            for buffer, value in zip(self.buffers, before, strict=True):
                buffer.copy_(value)
        share = average_share(self.ema_decay, num_steps)
        for tensor, average in zip(self.averaged, self.average, strict=True):
            average.lerp_(tensor.detach().to(average.dtype), share)
        return found

    @contextlib.contextmanager
    @torch.no_grad()
    def _averages(self):
        """The averages, if there are any, in the place of the weights."""
        weights = [tensor.clone() for tensor in self.averaged]
        try:
            for tensor, average in zip(self.averaged, self.average, strict=True):
                tensor.copy_(average)
            yield
        finally:
            for tensor, weight in zip(self.averaged, weights, strict=True):
                tensor.copy_(weight)

    @torch.no_grad()
    def _validation_loss(self):
        total = 0.0
        evaluates = modes(self.vae, trains=False)
        with self._averages(), evaluates, self._noise_of(0), pyro.validation_enabled(False):
            for begin in range(0, len(self.held_out), self.batch_size):
                x = self.vae._rows(self.held_out[begin : begin + self.batch_size])
                log_likelihood, kl, _ = self.vae.terms(x, self._noise(len(x)))
                total += float((kl - log_likelihood).sum())
        return total / len(self.held_out)

    def _noise(self, num):
        return torch.randn_like(self.vae.posterior._zeros.expand(num, -1))

    @contextlib.contextmanager
    def _noise_of(self, index):
        """Random numbers, those of dropout too, that depend on the seed and this index only."""
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices):  # all of them are seeded below
            torch.manual_seed(np.random.SeedSequence([self.seed, index]).generate_state(1)[0].item())
            yield

    def weights(self):
        return {name: _to_array(tensor).copy() for name, tensor in self.vae.state_dict().items()}

    def averages(self):
        with self._averages():
            return self.weights()

    def state(self):
        memory = self.optimizer.state_dict()["state"]
        entries = {f"{i}.{name}": value for i, of in memory.items() for name, value in of.items()}
        entries |= {f"average.{i}": average for i, average in enumerate(self.average)}
        return {name: _to_array(value) for name, value in entries.items()}

    def restore(self, weights, state):
        self.vae.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
        self.optimizer.zero_grad()
        if state is not None:
            memory: dict[str, dict] = {}
            for name, array in state.items():
                part, _, entry = name.partition(".")
                memory.setdefault(part, {})[entry] = torch.as_tensor(array)
            for i, array in memory.pop("average", {}).items():
                self.average[int(i)].copy_(array)
            if len({frozenset(of) for of in memory.values()}) > 1:
                raise ValueError("some of the optimiser's memory is missing")
            whole = self.optimizer.state_dict()
            whole["state"] = {int(i): of for i, of in memory.items()}
            self.optimizer.load_state_dict(whole)


def _at_least_float32(tensor):
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _to_array(tensor):
    # NumPy has no bfloat16.
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


fit_vae.__doc__ = FIT_VAE_DOC.format(
    returns="""The module is trained in
    place, and ends with the weights of the epoch of the best validation loss; without validation, of the last.
    ``pyro.set_rng_seed`` determines the batches and the noise.""",
    key="",
    start="",
    example=EXAMPLE.format(name="fit_vae")
    + """
        >>> fit = fit_vae(vae, x, num_epochs=5, learning_rate=0.03, warm_up=0, progress=False)
        >>> bool(fit.losses[-1] < fit.losses[0])
        True
""",
)
