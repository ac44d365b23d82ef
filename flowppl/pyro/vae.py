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

from flowppl.autoencoders.evaluation import EVALUATE_VAE_DOC, Evaluation, evaluate
from flowppl.autoencoders.model import (
    ENCODE_DOC,
    FLOW_VAE_DOC,
    INTERPOLATE_DOC,
    RECONSTRUCT_DOC,
    SAMPLE_DOC,
    as_data,
    check_data,
    check_ends,
    check_features,
    check_output,
    check_parts,
    path_weights,
    unflatten,
)
from flowppl.bijections.contract import Bijection
from flowppl.inference.losses import standard_log_prob
from flowppl.pyro.flow import Flow, standard_normal

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
        with modes(self, trains=False), torch.no_grad():
            return self.posterior(self._features(self._rows(x))).sample((num_samples,))

    def reconstruct(self, x, num_samples: int = 1) -> torch.Tensor:
        return self._decode(self.encode(x, num_samples))

    def sample(self, num_samples: int = 1, *, mean: bool = True) -> torch.Tensor:
        with torch.no_grad():
            z = self._prior().sample((num_samples,))
        return self._decode(z, mean)

    @torch.no_grad()
    def interpolate(self, first, second, num_steps: int = 8, *, spherical: bool = False) -> torch.Tensor:
        check_ends(first, second)
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
        with modes(self, trains=False), torch.no_grad():
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
        with modes(self, trains=False), torch.no_grad():
            z = self.posterior.transform.condition(self._features(first))(zeros[None])
            likelihood = self._likelihood(z, first)
        num_categories = _base(likelihood).logits.shape[-1] if self.likelihood == "categorical" else None
        supported = not callable(self.likelihood) or _supports(_base(likelihood), self._rows(x))
        array = np.asarray(x.cpu() if isinstance(x, torch.Tensor) else x)
        check_data(self.likelihood, array, num_categories, supported)


@contextlib.contextmanager
def modes(vae, trains):
    """Evaluation mode, or training mode but for modules whose parameters are all held; the modes are put back."""
    before = [(module, module.training) for module in vae.modules()]
    vae.train(trains)
    for module, _ in before if trains else ():
        needs = [parameter.requires_grad for parameter in module.parameters()]
        if needs and not any(needs):
            module.eval()
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


def evaluate_vae(vae: FlowVAE, x, *, num_samples: int = 5000, chunk_size: int = 1000) -> Evaluation:
    x = as_data(x)
    vae._check(x)
    zeros: Any = vae.posterior._zeros

    @torch.no_grad()
    def weigh(part, num_draws, _):
        rows = vae._rows(x[part])
        noise = torch.randn_like(zeros.expand(num_draws, len(rows), -1))
        return tuple(each.cpu().numpy() for each in vae.terms(rows, noise))

    with modes(vae, trains=False):
        return evaluate(weigh, len(x), math.prod(x.shape[1:]), num_samples, chunk_size)


EXAMPLE = """
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import FlowVAE, {name}
        >>> x = (torch.rand(200, 1) < 0.5).expand(200, 9).float()
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=2)
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(9, 16), torch.nn.ReLU())
        >>> vae = FlowVAE(encoder, torch.nn.Linear(2, 9), posterior)"""

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
