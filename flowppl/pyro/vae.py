"""Variational autoencoders with flows in Pyro."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from flowppl.bijection import Bijection
from flowppl.evaluation import EVALUATE_VAE_DOC, Evaluation, evaluate
from flowppl.losses import standard_log_prob
from flowppl.pyro.flow import Flow, standard_normal
from flowppl.pyro.steps import take_step
from flowppl.vae import (
    ENCODE_DOC,
    FIT_VAE_DOC,
    FLOW_VAE_DOC,
    INTERPOLATE_DOC,
    RECONSTRUCT_DOC,
    SAMPLE_DOC,
    VAEFit,
    as_data,
    average_share,
    check_data,
    check_features,
    check_options,
    check_output,
    check_parts,
    describe,
    path_weights,
    train,
    unflatten,
)

LIKELIHOODS: dict[str, Callable] = {
    "bernoulli": lambda output: dist.Bernoulli(logits=output, validate_args=False),
    "categorical": lambda output: dist.Categorical(logits=output, validate_args=False),
    "gaussian": lambda output: dist.Normal(output[0], output[1].exp(), validate_args=False),
}


class FlowVAE(torch.nn.Module):
    __doc__ = FLOW_VAE_DOC.format(
        encoder="a ``torch.nn.Module``",
        frozen=", which ``freeze()`` keeps from training",
        example="""
        >>> import torch, pyro, flowppl as fp
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from flowppl.pyro import FlowVAE
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=4)
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(9, 16), torch.nn.ReLU())
        >>> vae = FlowVAE(encoder, torch.nn.Linear(2, 9), posterior)
        >>> pyro.clear_param_store()
        >>> svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step(torch.ones(5, 9))
        >>> vae.sample(3).shape
        torch.Size([3, 9])
""",
    )

    def __init__(self, encoder, decoder, posterior: Bijection, prior=None, likelihood="bernoulli"):
        super().__init__()
        check_parts(posterior, prior.bijection if isinstance(prior, Flow) else prior, likelihood)
        self.encoder = encoder
        self.decoder = decoder
        self.posterior = Flow(posterior)
        self.prior = Flow(prior) if isinstance(prior, Bijection) else prior
        self.likelihood = likelihood

    @property
    def dim(self) -> int:
        """The number of latents."""
        return self.posterior.bijection.y_shape[0]

    def model(self, x):
        """The generative model of the data ``x``, with the sites ``z`` and ``x`` in a plate ``data``."""
        self._register("decoder", "prior", "likelihood")
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self._prior())
            pyro.sample("x", self._likelihood(z, x), obs=x)

    def guide(self, x):
        """The posterior of ``z``."""
        self._register("encoder", "posterior")
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(self._features(x)))

    def _register(self, *names):
        store = pyro.get_param_store()
        for name in names:
            module = getattr(self, name)
            if not (isinstance(module, torch.nn.Module) and any(p.requires_grad for p in module.parameters())):
                continue
            pyro.module(f"vae.{name}", module)
            for part, parameter in module.named_parameters():
                if parameter.requires_grad and store._params[f"vae.{name}$$${part}"] is not parameter:
                    raise ValueError(
                        f"FlowVAE: Pyro's parameter store has the {name} of another autoencoder, which SVI would train "
                        "in the place of this one: call pyro.clear_param_store() first"
                    )

    def encode(self, x, num_samples: int = 1) -> torch.Tensor:
        with _modes(self, trains=False), torch.no_grad():
            return self.posterior(self._features(self._rows(x))).sample((num_samples,))

    def reconstruct(self, x, num_samples: int = 1) -> torch.Tensor:
        return self._decode(self.encode(x, num_samples))

    def sample(self, num_samples: int = 1, *, mean: bool = True) -> torch.Tensor:
        with torch.no_grad():
            z = self._prior().sample((num_samples,))
        return self._decode(z, mean)

    @torch.no_grad()
    def interpolate(self, first, second, num_steps: int = 8, *, spherical: bool = False) -> torch.Tensor:
        transform = None if self.prior is None else self.prior.transform
        ends = [self.encode(x)[0] for x in (first, second)]
        ends = ends if transform is None else [transform.inv(end) for end in ends]
        weights = [ends[0].new_tensor(each)[:, None, None] for each in path_weights(num_steps, spherical)]
        noise = sum(weight * end for weight, end in zip(weights, ends, strict=True))
        return self._decode(noise if transform is None else transform(noise))

    encode.__doc__, reconstruct.__doc__ = ENCODE_DOC.format(key=""), RECONSTRUCT_DOC.format(key="")
    sample.__doc__, interpolate.__doc__ = SAMPLE_DOC.format(key=""), INTERPOLATE_DOC.format(key="")

    def terms(self, x, noise) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The two parts of the ELBO of each datum at given noise, and the latents.

        Args:
            x: n data.
            noise: an array ``(..., n, dim)``.

        Returns:
            log p(x | z) and log q(z | x) - log p(z), each of shape ``(..., n)``, and z.
        """
        z, log_det = self.posterior.transform.condition(self._features(x)).forward_and_log_det(noise)
        kl = standard_log_prob(noise) - log_det - self._prior().log_prob(z)
        return self._log_likelihood(z, x), kl, z

    def _features(self, x):
        features = self.encoder(x)
        check_features(tuple(features.shape), len(x), self.posterior.bijection.context_dim)
        return features

    def _prior(self):
        return standard_normal(self.posterior._zeros) if self.prior is None else self.prior()

    def _decode(self, z, mean=True):
        with _modes(self, trains=False), torch.no_grad():
            likelihood = self._likelihood(z)
            return _mean(likelihood) if mean else likelihood.sample()

    def _output(self, z) -> Any:
        """What the decoder gives for each row of latents; it sees one axis of rows."""
        return unflatten(self.likelihood, self.decoder(z.reshape(-1, z.shape[-1])), tuple(z.shape[:-1]))

    def _likelihood(self, z, x=None):
        """The distribution of data, such as ``x``, for each row of latents."""
        make = self.likelihood if callable(self.likelihood) else LIKELIHOODS[self.likelihood]
        likelihood = make(self._output(z))
        likelihood = likelihood.to_event(len(likelihood.batch_shape) - z.ndim + 1)
        if x is not None:
            check_output(self.likelihood, tuple(likelihood.event_shape), tuple(x.shape[1:]))
        return likelihood

    def _log_likelihood(self, z, x):
        if self.likelihood != "categorical":
            return self._likelihood(z, x).log_prob(x)
        # Torch's fused cross entropy: Categorical passes over the logits, the largest array of a step, many times.
        logits = self._output(z)
        check_output(self.likelihood, tuple(logits.shape[z.ndim - 1 : -1]), tuple(x.shape[1:]))
        categories = x.expand(logits.shape[:-1]).long()
        cross_entropy = torch.nn.functional.cross_entropy
        losses = cross_entropy(logits.flatten(0, -2), categories.flatten(), reduction="none")
        return -losses.reshape(*z.shape[:-1], -1).sum(-1)

    def _rows(self, x):
        """Data as a tensor on the device of the flows and, unless they are numbers of categories, of their dtype."""
        zeros: Any = self.posterior._zeros
        x = x if isinstance(x, torch.Tensor) else torch.as_tensor(np.asarray(x))
        return x.to(zeros.device) if self.likelihood == "categorical" else x.to(zeros)

    def _check(self, x):
        """Raise ValueError unless networks, likelihood and data fit together."""
        first, zeros = self._rows(x[:1]), cast(torch.Tensor, self.posterior._zeros)
        with _modes(self, trains=False), torch.no_grad():
            z = self.posterior.transform.condition(self._features(first))(zeros[None])
            likelihood = self._likelihood(z, first)
        num_categories = _base(likelihood).logits.shape[-1] if self.likelihood == "categorical" else None
        supported = not callable(self.likelihood) or _supports(_base(likelihood), self._rows(x))
        array = np.asarray(x.cpu() if isinstance(x, torch.Tensor) else x)
        check_data(self.likelihood, array, num_categories, supported)


@contextlib.contextmanager
def _modes(vae, trains):
    """Evaluation mode, or the training mode of what has something to train; the modes are put back."""
    before = [(module, module.training) for module in vae.modules()]
    vae.eval()
    for child in vae.children() if trains else ():
        child.train(any(parameter.requires_grad for parameter in child.parameters()))
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


def _base(likelihood) -> Any:
    return getattr(likelihood, "base_dist", likelihood)


def _supports(likelihood, x) -> bool:
    """Whether all data are in the support, if that is known and the same for all latents."""
    try:
        support = likelihood.support
    except NotImplementedError:
        return True
    is_fixed = all(isinstance(value, numbers.Real) for value in vars(support).values())
    return not is_fixed or bool(support.check(x).all())


def _mean(likelihood):
    base = _base(likelihood)
    if isinstance(base, dist.Categorical):
        return base.probs @ torch.arange(base.probs.shape[-1]).to(base.probs)
    return likelihood.mean


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
    progress: bool = True,
) -> VAEFit:
    sizes = {"batch_size": batch_size, "num_epochs": num_epochs}
    check_options(learning_rate, optimizer, warm_up, free_bits, patience, clip_norm, ema_decay, **sizes)
    x, validation = as_data(x), as_data(validation)
    for data in (x, validation):
        if data is not None and not isinstance(data, numbers.Real):
            vae._check(data)
    options = {"optimizer": optimizer, "free_bits": free_bits, "clip_norm": clip_norm, "ema_decay": ema_decay}

    def make_trainer(data, held_out, seed):
        return _Trainer(vae, data, held_out, seed, batch_size, **options)

    of_vae = describe(vae.posterior.bijection, vae.prior, vae.likelihood, _held(vae))
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
        fixed={"backend": "pyro"} | options | of_vae,
        progress=progress,
    )
    params = {name: tensor.detach().clone() for name, tensor in vae.state_dict().items()}
    return VAEFit(vae=vae, params=params, **record)


def _held(vae) -> Callable | None:
    """The log density of a prior that is not trained."""
    if vae.prior is None or any(parameter.requires_grad for parameter in vae.prior.parameters()):
        return None
    return torch.no_grad()(lambda points: vae._prior().log_prob(torch.as_tensor(points).to(vae.posterior._zeros)))


class _Trainer:
    """The steps of :func:`fit_vae`: see :class:`flowppl.vae.Trainer`."""

    def __init__(self, vae, data, held_out, seed, batch_size, optimizer, free_bits, clip_norm, ema_decay):
        self.vae, self.data, self.held_out, self.seed = vae, data, held_out, seed
        self.batch_size, self.free_bits, self.ema_decay = batch_size, free_bits, ema_decay
        self.clip_norm = math.inf if clip_norm is None else clip_norm
        self.trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
        self.pairs = [(parameter, parameter.detach().clone()) for parameter in self.trained if ema_decay]
        kinds: dict[str, Callable] = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}
        self.optimizer = kinds[optimizer](self.trained)
        self.optimizer.zero_grad()
        # Such as the averages of batch normalisation; those of the flows never change.
        self.buffers = [buffer for network in (vae.encoder, vae.decoder) for buffer in network.buffers()]

    def run_epoch(self, epoch, order, rate, beta):
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = [order[begin : begin + self.batch_size] for begin in range(0, len(order), self.batch_size)]
        with _modes(self.vae, trains=True), self._noise_of(epoch + 1), pyro.validation_enabled(False):
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
        found = take_step(self.optimizer, self.trained, loss.item(), self.clip_norm)
        if math.isnan(found):
            for buffer, value in zip(self.buffers, before, strict=True):
                buffer.copy_(value)
        for parameter, average in self.pairs:
            average.lerp_(parameter.detach(), average_share(self.ema_decay, num_steps))
        return found

    @contextlib.contextmanager
    def _averaged(self):
        """The averages, if there are any, in the place of the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self):
        for parameter, average in self.pairs:
            parameter.data, average.data = average.data, parameter.data

    @torch.no_grad()
    def _validation_loss(self):
        total = 0.0
        modes = _modes(self.vae, trains=False)
        with self._averaged(), modes, self._noise_of(0), pyro.validation_enabled(False):
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
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.vae.state_dict().items()}

    def averages(self):
        with self._averaged():
            return self.weights()

    def state(self):
        memory = self.optimizer.state_dict()["state"]
        entries = {f"{i}.{name}": value for i, of in memory.items() for name, value in of.items()}
        entries |= {f"{i}.average": average for i, (_, average) in enumerate(self.pairs)}
        return {name: value.cpu().numpy() for name, value in entries.items()}

    def restore(self, weights, state):
        self.vae.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
        self.optimizer.zero_grad()
        if state is not None:
            memory: dict[int, dict] = {}
            for name, array in state.items():
                index, _, entry = name.partition(".")
                memory.setdefault(int(index), {})[entry] = torch.as_tensor(array)
            for i, (_, average) in enumerate(self.pairs):
                average.copy_(memory[i].pop("average"))
            self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": memory})


def evaluate_vae(vae: FlowVAE, x, *, num_samples: int = 5000, chunk_size: int = 1000) -> Evaluation:
    x = as_data(x)
    vae._check(x)
    zeros: Any = vae.posterior._zeros

    @torch.no_grad()
    def weigh(part, num_draws, _):
        rows = vae._rows(x[part])
        noise = torch.randn_like(zeros.expand(num_draws, len(rows), -1))
        return tuple(each.cpu().numpy() for each in vae.terms(rows, noise))

    with _modes(vae, trains=False):
        return evaluate(weigh, len(x), math.prod(x.shape[1:]), num_samples, chunk_size)


EXAMPLE = """
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import FlowVAE, {name}
        >>> x = (torch.rand(200, 1) < 0.5).expand(200, 9).float()
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=2)
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(9, 16), torch.nn.ReLU())
        >>> vae = FlowVAE(encoder, torch.nn.Linear(2, 9), posterior)"""

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

evaluate_vae.__doc__ = EVALUATE_VAE_DOC.format(
    key="",
    params="",
    example=EXAMPLE.format(name="evaluate_vae")
    + """
        >>> found = evaluate_vae(vae, x, num_samples=50)
        >>> found.log_prob > found.elbo, found.num_dims
        (True, 9)
""",
)
