"""What the variational autoencoders of Pyro share: data made, encoded and judged."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from flowppl.autoencoders.data import as_data, check_data, check_inputs
from flowppl.autoencoders.model import check_ends, check_output, num_event_axes
from flowppl.inference.latent_space import path_weights

LIKELIHOODS: dict[str, Callable] = {
    "bernoulli": lambda output: dist.Bernoulli(logits=output, validate_args=False),
    "categorical": lambda output: dist.Categorical(logits=output, validate_args=False),
    "gaussian": lambda output: dist.Normal(output[0], output[1].exp(), validate_args=False),
}


class Autoencoder(torch.nn.Module):
    """What all autoencoders share: :class:`FlowVAE`, and those of several levels of latents.

    In a subclass "latents" are what it needs to decode: an array, or a tuple of arrays.
    """

    likelihood: Any
    _parts: tuple[str, ...] = ("encoder", "decoder", "posterior", "prior")

    # What a subclass has.

    @property
    def dim(self) -> int:
        """The number of latents of a datum."""
        raise NotImplementedError

    @property
    def _zeros(self) -> torch.Tensor:
        """A tensor of the dtype and on the device of the flows."""
        raise NotImplementedError

    def _model(self, x: Any, num_data: int, prefix: str = "") -> torch.Tensor:
        """The generative model, the names of its sites after this prefix; it gives the data."""
        raise NotImplementedError

    def _guide(self, x: Any, prefix: str = "") -> None:
        """The posterior, the names of its sites after this prefix."""
        raise NotImplementedError

    def terms(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """The two parts of the ELBO of each datum at given noise, and the latents.

        Args:
            x: n data.
            noise: an array ``(..., n, dim)``.

        Returns:
            log p(x | z) and log q(z | x) - log p(z), each of shape ``(..., n)``, and z.
        """
        raise NotImplementedError

    def _encode(self, x: Any, noise: torch.Tensor) -> Any:
        """The latents of data that this noise gives."""
        raise NotImplementedError

    def _generate(self, num: int) -> Any:
        """Draws of the latents from the prior."""
        return self._from_noise(self._noise(num))

    def _to_noise(self, z: Any) -> torch.Tensor:
        """The noise of the prior, ``(..., n, dim)``, that gives these latents."""
        raise NotImplementedError

    def _from_noise(self, noise: torch.Tensor) -> Any:
        """The latents that noise of the prior gives."""
        raise NotImplementedError

    def _output(self, z: Any) -> Any:
        """What the decoder gives for each row of latents."""
        raise NotImplementedError

    def _batch(self, z: Any) -> tuple[int, ...]:
        """The shape of a batch of latents."""
        raise NotImplementedError

    def _drawn(self, z: Any) -> Any:
        """Those of the latents that were drawn."""
        return z

    def _networks(self) -> list[Any]:
        """The encoders and decoders."""
        raise NotImplementedError

    def _description(self, held: Callable | None) -> dict[str, Any]:
        """What a checkpoint tells of it; see :func:`flowppl.autoencoders.checkpoints.describe`."""
        raise NotImplementedError

    # What it gets for that.

    def _register(self, *names, prefix=""):
        store = pyro.get_param_store()
        for name in names:
            module = getattr(self, name)
            if not (isinstance(module, torch.nn.Module) and any(p.requires_grad for p in module.parameters())):
                continue
            pyro.module(f"vae.{prefix}{name}", module)
            for part, parameter in module.named_parameters():
                if parameter.requires_grad and store._params[f"vae.{prefix}{name}$$${part}"] is not parameter:
                    raise ValueError(
                        f"Pyro's parameter store has the {prefix}{name} of another autoencoder, which SVI "
                        "would train in the place of this one: call pyro.clear_param_store() first"
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
        return self._drawn(self._encoded(x, num_samples))

    def reconstruct(self, x: Any, num_samples: int = 1) -> torch.Tensor:
        """The mean of the likelihood at draws from the posterior.

        Of categories it is the mean of their numbers. Of a likelihood without a mean in closed form, as that of an
        autoregressive decoder, it is a draw.

        Args:
            x: n data, as for :func:`fit_vae`.
            num_samples: the number of draws for each.

        Returns:
            A tensor of shape ``(num_samples, n, *shape)``.

        Raises:
            ValueError: as for :meth:`encode`.
        """
        return self._decode(self._encoded(x, num_samples))

    def sample(self, num_samples: int = 1, *, mean: bool = True) -> torch.Tensor:
        """Data made from draws from the prior.

        Args:
            num_samples: the number of draws.
            mean: whether to give the mean of the likelihood at each draw, if it has one, or a draw from the likelihood.

        Returns:
            A tensor of shape ``(num_samples, *shape)``.
        """
        with torch.no_grad():
            z = self._generate(num_samples)
        return self._decode(z, mean)

    @torch.no_grad()
    def interpolate(self, first: Any, second: Any, num_steps: int = 8, *, spherical: bool = False) -> torch.Tensor:
        r"""The mean of the likelihood on the way from data to other data, in the noise of the prior.

        What the posterior makes of noise zero, its centre, is mapped to the noise :math:`u_0, u_1` of the prior: the
        ends are not drawn, and are the same in every call. For t from 0 to 1 the way is
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
        ends = [self._to_noise(self._encoded(x, None)) for x in (first, second)]
        weights = [ends[0].new_tensor(each)[:, None, None] for each in path_weights(num_steps, spherical)]
        noise: Any = sum(weight * end[0] for weight, end in zip(weights, ends, strict=True))
        return self._decode(self._from_noise(noise))

    def _encoded(self, x, num_samples=1):
        """Draws of the latents, or, if their number is ``None``, the centre of the posterior."""
        x = self._rows(as_rows(x))
        check_inputs(self.likelihood, float(x.min()), float(x.max()))
        with self._evaluating():
            zeros = self._zeros.new_zeros(1, len(x), self.dim)
            noise = zeros if num_samples is None else self._noise(num_samples, len(x))
            return self._encode(x, noise)

    def _noise(self, *batch, generator=None):
        zeros = self._zeros
        return torch.randn(*batch, self.dim, dtype=zeros.dtype, device=zeros.device, generator=generator)

    def _decode(self, z, mean=True):
        with self._evaluating():
            likelihood = self._likelihood(z)
            return _mean(likelihood) if mean else likelihood.sample()

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
        x = x if isinstance(x, torch.Tensor) else torch.as_tensor(x)
        return x.to(self._zeros.device) if self.likelihood == "categorical" else x.to(self._zeros)

    def _check(self, x):
        """Raise ValueError unless networks, likelihood and data fit together."""
        self._checker(x[:1])(x)

    def _checker(self, first):
        """The same for networks and one datum; and the function that checks other data."""
        values = to_numpy(first)
        check_inputs(None, float(values.min()), float(values.max()))  # before a distribution is made of them
        first = self._rows(first)
        with self._evaluating():
            likelihood = self._likelihood(self._encode(first, self._noise(1)), first)
        num_categories = _base(likelihood).logits.shape[-1] if self.likelihood == "categorical" else None

        def check(x):
            supported = not callable(self.likelihood) or _supports(_base(likelihood), self._rows(x))
            check_data(self.likelihood, to_numpy(x), num_categories, supported)

        return check

    def _learns_scale(self, x) -> bool:
        """Whether the scale of the likelihood ``"gaussian"`` has weights of its own that are trained."""
        with self._evaluating():
            z = self._encode(self._rows(x[:1]), self._noise(1))
        with modes(self, trains=False):
            return self._output(z)[1].requires_grad

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients, for parts that are on one device."""
        found = {}
        for name in (*self._parts, "likelihood"):
            part = getattr(self, name)
            tensors = [*part.parameters(), *part.buffers()] if isinstance(part, torch.nn.Module) else []
            devices = {str(tensor.device) for tensor in tensors}
            if len(devices) == 1:  # a part on several moves its arrays itself
                found[name] = devices.pop()
        if len(set(found.values())) > 1:
            where = ", ".join(f"{name} on {device}" for name, device in found.items())
            raise ValueError(f"the parts are on several devices: {where}; move all by vae.to(device)")
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
    try:
        return likelihood.mean
    except NotImplementedError:
        return likelihood.sample()
