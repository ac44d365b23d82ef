"""Variational autoencoders with flows in Pyro."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from flowppl.autoencoders.data import as_data, check_data, check_inputs
from flowppl.autoencoders.model import (
    as_features,
    check_ends,
    check_networks,
    check_output,
    check_parts,
    named,
    num_event_axes,
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
    r"""A variational autoencoder whose posterior, and whose prior, may be flows.

    Each datum x has latents z: a vector, or an array of any other shape, such as an image. The model draws them from the prior p(z), and the datum
    from a likelihood that the decoder makes of them. The guide is the posterior q: the encoder makes features of the
    datum, and a flow f that is given these maps standard normal noise to latents:

    .. math::
        z \sim p(z), \quad x \sim p(x \mid \mathrm{decoder}(z)), \qquad
        q(z \mid x): \; z = f\big(\varepsilon;\, \mathrm{encoder}(x)\big), \quad \varepsilon \sim N(0, I).

    Training maximises the evidence lower bound (ELBO), the mean over the data of

    .. math::
        E_{z \sim q(z \mid x)} \big[ \log p(x \mid z) + \log p(z) - \log q(z \mid x) \big] \le \log p(x).

    ``model`` and ``guide`` are for Pyro's ``SVI``, with any of its objectives; :func:`fit_vae` trains the same weights
    with warm-up, early stopping and checkpoints, and :func:`evaluate_vae` says how good they are. These two check that
    the data lie in the support of the likelihood; ``model`` takes them as they are.

    It is a module: ``.to(device)`` moves all of it, and ``state_dict`` holds all weights.

    Args:
        encoder: the network from a batch of data, ``(n, *shape)``, to features, ``(n, context_dim)``: a
            ``torch.nn.Module``.
        decoder: the network from latents, ``(n, *latent_shape)``, to what the likelihood needs, with n in front.
        posterior: the flow from noise to latents given the features, such as
            ``flowppl.amortized_posterior(dim, context_dim, "sylvester", 4)``.
        prior: the flow of a learned prior, such as ``flowppl.realnvp(dim)``, trained with the rest; a :class:`Flow`,
            used as it is, which ``freeze()`` keeps from training; ``None`` is the standard normal.
        likelihood: ``"bernoulli"`` (the decoder gives logits, an array like the data), ``"categorical"`` (logits along
            a last axis of its own; the data are integers from 0), ``"gaussian"`` (the decoder gives a pair, the mean
            and the log of the standard deviation, for all rows or one for each), or a function from the decoder's
            output to a Pyro distribution.

    Raises:
        ValueError: for an unknown likelihood, a posterior without a context, or a prior whose shape is not that of the
            latents; in use, for features or outputs of the wrong shape, and parts on several devices.
        TypeError: if posterior or prior is no flow, or a network cannot be called.

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114. Rezende, Mohamed: Variational Inference
        with Normalizing Flows, 2015, arXiv 1505.05770. A flow as the prior: Chen et al.: Variational Lossy Autoencoder,
        2016, arXiv 1611.02731.

    Example:
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
    """

    def __init__(
        self,
        encoder: Callable[..., Any],
        decoder: Callable[..., Any],
        posterior: Bijection,
        prior: Bijection | Flow | None = None,
        likelihood: str | Callable[[Any], Any] = "bernoulli",
    ) -> None:
        super().__init__()
        check_networks(encoder=encoder, decoder=decoder)
        check_parts(posterior, prior.bijection if isinstance(prior, Flow) else prior, likelihood)
        self.encoder: Any = encoder
        self.decoder: Any = decoder
        self.posterior = Flow(posterior)
        self.prior = Flow(prior) if isinstance(prior, Bijection) else prior
        self.likelihood = likelihood

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of the latents of a datum."""
        return self.posterior.bijection.y_shape

    @property
    def dim(self) -> int:
        """The number of latents of a datum."""
        return math.prod(self.latent_shape)

    def model(self, x: Any = None, num_data: int = 1) -> None:
        """The generative model, with the sites ``z``, latents, and ``x``, data, in a plate ``data``.

        Args:
            x: n data, ``(n, *shape)``, which are observed; ``None`` draws them.
            num_data: how many to draw.

        Raises:
            ValueError: if the decoder's output does not fit the data, or Pyro's parameter store has another
                autoencoder.

        Example:
            >>> import torch, pyro, flowppl as fp
            >>> from pyro.infer import Predictive
            >>> from flowppl.pyro import FlowVAE
            >>> posterior = fp.amortized_posterior(2, context_dim=9, flow=None)
            >>> vae = FlowVAE(torch.nn.Identity(), torch.nn.Linear(2, 9), posterior)
            >>> pyro.clear_param_store()
            >>> Predictive(vae.model, num_samples=3)(None, 5)["x"].shape
            torch.Size([3, 5, 9])
        """
        self._register("decoder", "prior", "likelihood")
        x = x if x is None or isinstance(x, torch.Tensor) else self._rows(as_rows(x))
        with pyro.plate("data", num_data if x is None else len(x), dim=-1):
            z = pyro.sample("z", self._prior())
            pyro.sample("x", self._likelihood(z, x), obs=x)

    def guide(self, x: Any) -> None:
        """The posterior of the latents ``z`` of the data, in a plate ``data``.

        Args:
            x: n data, ``(n, *shape)``.

        Raises:
            ValueError: if the encoder's features do not fit the posterior, or Pyro's parameter store has another
                autoencoder.
        """
        self._register("encoder", "posterior")
        x = x if isinstance(x, torch.Tensor) else self._rows(as_rows(x))
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

    def encode(self, x: Any, num_samples: int = 1) -> torch.Tensor:
        """Draws of the latents from the posterior.

        Networks are in evaluation mode meanwhile, and nothing has a gradient.

        Args:
            x: n data, as for :func:`fit_vae`.
            num_samples: the number of draws for each.

        Returns:
            A tensor of shape ``(num_samples, n, *latent_shape)``.

        Raises:
            ValueError: if there are no data, they are not finite or not of the likelihood's range, or do not fit the
                encoder.
        """
        x = self._rows(as_rows(x))
        check_inputs(self.likelihood, float(x.min()), float(x.max()))
        with self._evaluating():
            return self._encode(x, self._noise(num_samples, len(x)))

    def reconstruct(self, x: Any, num_samples: int = 1) -> torch.Tensor:
        """The mean of the likelihood at draws from the posterior.

        Of categories it is the mean of their numbers.

        Args:
            x: n data, as for :func:`fit_vae`.
            num_samples: the number of draws for each.

        Returns:
            A tensor of shape ``(num_samples, n, *shape)``.

        Raises:
            ValueError: as for :meth:`encode`.
        """
        return self._decode(self.encode(x, num_samples))

    def sample(self, num_samples: int = 1, *, mean: bool = True) -> torch.Tensor:
        """Data made from draws from the prior.

        Args:
            num_samples: the number of draws.
            mean: whether to give the mean of the likelihood at each draw, or a draw from the likelihood.

        Returns:
            A tensor of shape ``(num_samples, *shape)``.
        """
        with torch.no_grad():
            z = self._prior().sample((num_samples,))
        return self._decode(z, mean)

    @torch.no_grad()
    def interpolate(self, first: Any, second: Any, num_steps: int = 8, *, spherical: bool = False) -> torch.Tensor:
        r"""The mean of the likelihood on the way from data to other data, in the noise of the prior.

        One draw of each latent is mapped to the noise :math:`u_0, u_1` of the prior. For t from 0 to 1 the way is
        :math:`(1-t)\,u_0 + t\,u_1`, or, ``spherical``, :math:`\cos(\varphi)\,u_0 + \sin(\varphi)\,u_1` with
        :math:`\varphi = t \pi / 2`, which of independent standard normals makes standard normals all the way (Dinh,
        Sohl-Dickstein, Bengio 2016, arXiv 1605.08803).

        Args:
            first: n data, as for :func:`fit_vae`.
            second: as many.
            num_steps: the number of steps, the two ends among them.
            spherical: whether to take the second way.

        Returns:
            A tensor of shape ``(num_steps, n, *shape)``, from the reconstruction of the first to that of the second.

        Raises:
            ValueError: for less than two steps, or data that are not equally many; as for :meth:`encode`.
        """
        first, second = as_rows(first), as_rows(second)
        check_ends(first, second)
        transform = None if self.prior is None else self.prior.transform
        ends = [self.encode(x)[0] for x in (first, second)]
        ends = ends if transform is None else [transform.inv(end) for end in ends]
        axes = (-1, *(1 for _ in ends[0].shape))
        weights = [ends[0].new_tensor(each).reshape(axes) for each in path_weights(num_steps, spherical)]
        noise: Any = sum(weight * end for weight, end in zip(weights, ends, strict=True))
        return self._decode(noise if transform is None else transform(noise))

    def terms(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The two parts of the ELBO of each datum at given noise, and the latents.

        Args:
            x: n data.
            noise: an array ``(..., n, dim)``.

        Returns:
            log p(x | z) and log q(z | x) - log p(z), each of shape ``(..., n)``, and z.
        """
        z, log_det = self._posterior(x).forward_and_log_det(self._shaped(noise))
        kl = standard_log_prob(noise) - log_det - self._prior().log_prob(z)
        return self._log_likelihood(z, x), kl, z

    def _features(self, x):
        with named("encoder", x.shape):
            features = self.encoder(x)
        return as_features(features, len(x), self.posterior.bijection.context_dim)

    def _posterior(self, x):
        return self.posterior.transform.condition(self._features(x))

    def _encode(self, x, noise):
        return self._posterior(x)(self._shaped(noise))

    def _noise(self, *batch):
        zeros: Any = self.posterior._zeros
        return torch.randn(*batch, self.dim, dtype=zeros.dtype, device=zeros.device)

    def _shaped(self, noise):
        """Noise, a vector for each datum, as the posterior takes it."""
        return noise.unflatten(-1, self.posterior.bijection.x_shape)

    def _prior(self):
        zeros: Any = self.posterior._zeros
        return standard_normal(zeros.reshape(self.latent_shape)) if self.prior is None else self.prior()

    def _decode(self, z, mean=True):
        with self._evaluating():
            likelihood = self._likelihood(z)
            return _mean(likelihood) if mean else likelihood.sample()

    def _output(self, z) -> Any:
        """What the decoder gives for each row of latents; it sees one axis of rows."""
        rows = z.reshape(-1, *self.latent_shape)
        with named("decoder", rows.shape):
            output = self.decoder(rows)
        return unflatten(self.likelihood, output, self._batch(z))

    def _batch(self, z) -> tuple[int, ...]:
        return tuple(z.shape[: z.ndim - len(self.latent_shape)])

    def _likelihood(self, z, x=None):
        """The distribution of data, such as ``x``, for each row of latents."""
        make = self.likelihood if callable(self.likelihood) else LIKELIHOODS[self.likelihood]
        likelihood = make(self._output(z))
        num_axes = num_event_axes(likelihood, len(self._batch(z)))
        likelihood = likelihood.to_event(num_axes)
        if x is not None:
            check_output(self.likelihood, tuple(likelihood.event_shape), tuple(x.shape[1:]))
        return likelihood

    def _log_likelihood(self, z, x):
        if self.likelihood != "categorical":
            return self._likelihood(z, x).log_prob(x)
        # Torch's fused cross entropy: Categorical passes over the logits, the largest array of a step, many times.
        logits = self._output(z)
        batch = self._batch(z)
        check_output(self.likelihood, tuple(logits.shape[len(batch) : -1]), tuple(x.shape[1:]))
        categories = x.expand(logits.shape[:-1]).long()
        cross_entropy = torch.nn.functional.cross_entropy
        losses = cross_entropy(logits.flatten(0, -2), categories.flatten(), reduction="none")
        return -losses.reshape(*batch, -1).sum(-1)

    def _rows(self, x):
        """Data as a tensor on the device of the flows and, unless they are numbers of categories, of their dtype."""
        zeros: Any = self.posterior._zeros
        x = x if isinstance(x, torch.Tensor) else torch.as_tensor(x)
        return x.to(zeros.device) if self.likelihood == "categorical" else x.to(zeros)

    def _check(self, x):
        """Raise ValueError unless networks, likelihood and data fit together."""
        first, zeros = self._rows(x[:1]), cast(torch.Tensor, self.posterior._zeros)
        with self._evaluating():
            likelihood = self._likelihood(self._encode(first, zeros.reshape(1, -1)), first)
        num_categories = _base(likelihood).logits.shape[-1] if self.likelihood == "categorical" else None
        supported = not callable(self.likelihood) or _supports(_base(likelihood), self._rows(x))
        check_data(self.likelihood, to_numpy(x), num_categories, supported)

    def _learns_scale(self) -> bool:
        """Whether the scale of the likelihood ``"gaussian"`` has weights of its own that are trained."""
        with modes(self, trains=False):
            zeros = cast(torch.Tensor, self.posterior._zeros)
            return self.decoder(zeros.reshape(1, *self.latent_shape))[1].requires_grad

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients, for parts that are on one device."""
        found = {}
        for name in ("encoder", "decoder", "posterior", "prior"):
            part = getattr(self, name)
            tensors = [*part.parameters(), *part.buffers()] if isinstance(part, torch.nn.Module) else []
            devices = {str(tensor.device) for tensor in tensors}
            if len(devices) == 1:  # a part on several moves its arrays itself
                found[name] = devices.pop()
        if len(set(found.values())) > 1:
            where = ", ".join(f"{name} on {device}" for name, device in found.items())
            raise ValueError(f"FlowVAE: the parts are on several devices: {where}; move all by vae.to(device)")
        with modes(self, trains=False), torch.no_grad():
            yield


def to_numpy(x: Any) -> np.ndarray:
    return x.cpu().numpy() if isinstance(x, torch.Tensor) else x


def as_rows(x: Any) -> Any:
    """Data as rows: a tensor without a gradient, or an array of NumPy."""
    x = as_data(x, torch.Tensor)
    if not isinstance(x, torch.Tensor):
        return x
    return x.detach().float() if x.dtype == torch.bfloat16 else x.detach()  # NumPy has no bfloat16


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
    """The likelihood of the numbers of a datum, not of a whole one; a transformed distribution has a base, too."""
    return likelihood.base_dist if isinstance(likelihood, torch.distributions.Independent) else likelihood


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
