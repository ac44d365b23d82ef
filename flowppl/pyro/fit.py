"""Fit a guide to a Pyro model in one call."""

from __future__ import annotations

import abc
import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch.fx.experimental.proxy_tensor import make_fx

from flowppl._arrays.tree import map_tree
from flowppl.checks import check_sizes
from flowppl.inference.diagnostics import is_subsampled
from flowppl.inference.fitting import (
    BLOCK,
    CHUNK,
    FIT_DOC,
    FLOW_ROUNDS,
    NUM_CHECKS,
    OTHER_ROUNDS,
    Chunk,
    FitBase,
    check_options,
    choose_rounds,
    time_limit,
    train,
)
from flowppl.inference.guides import affine_part, distance_from_identity, fold, path_flow, stage
from flowppl.inference.inference_data import convert
from flowppl.inference.losses import guide_loss, standard_log_prob
from flowppl.pyro.diagnostics import _draw, _traces, aside, diagnose, log_weights, model_plates, plate_nesting, resample
from flowppl.pyro.guides import AutoFlow
from flowppl.pyro.inference_data import make_groups
from flowppl.pyro.objectives import PathELBO
from flowppl.pyro.steps import take_step
from flowppl.pyro.target import Target
from flowppl.serialization import absent_model, save


@dataclasses.dataclass(frozen=True, repr=False)
class Fit(FitBase):
    """A fitted guide, its parameters and what is known of it; :func:`fit` makes it."""

    model: Any
    arguments: tuple

    def sample(self, num_samples: int = 1000) -> dict[str, torch.Tensor]:
        """Draws of all latent sites from the guide."""
        args, kwargs = self.arguments
        if not hasattr(self.guide, "sample_posterior"):
            return _draw(self._own_model, self.guide, args, kwargs, num_samples, num_samples, keep=True)[1]
        return self.guide.sample_posterior(*args, sample_shape=(num_samples,), **kwargs)

    def resample(self, num_samples: int = 1000, **options) -> dict[str, torch.Tensor]:
        """Draws corrected by Pareto-smoothed importance resampling: see :func:`flowppl.pyro.resample`."""
        args, kwargs = self.arguments
        return resample(self._own_model, self.guide, *args, num_samples=num_samples, **options, **kwargs)

    def diagnose(self, num_samples: int = 10_000, *, reference=None, **options):
        """Whether the guide can be trusted, from fresh draws: see :func:`flowppl.pyro.diagnose`."""
        args, kwargs = self.arguments
        known: tuple = (self._own_model, self.guide, *args)
        return diagnose(*known, num_samples=num_samples, reference=reference, **options, **kwargs)  # type: ignore[misc]

    def to_arviz(
        self,
        num_samples: int = 1000,
        *,
        resample: bool = False,
        log_likelihood: bool | None = None,
        posterior_predictive: bool | None = None,
        observed_data: bool = True,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        chunk_size: int = 1000,
        **options: Any,
    ) -> Any:
        """Draws, what they say of the data, and the data, as ArviZ takes them: in one chain, with names for the axes.

        The groups are ``posterior`` (the latents, and what the model computes at deterministic sites),
        ``log_likelihood`` (of each datum, for ``arviz.loo`` and ``arviz.compare``), ``posterior_predictive`` (new data
        from the model at each draw, for ``arviz.plot_ppc``) and ``observed_data``. The axes of plates have the names
        of the plates, those of events the names in a site's ``infer={"event_dims": [...]}``. Each number of
        ``log_likelihood`` and ``posterior_predictive`` is one for each draw and datum, so they may be large.

        Args:
            num_samples: the number of draws.
            resample: whether to correct the draws by importance resampling, see :meth:`resample`.
            log_likelihood: whether there is such a group; ``None``: if the model sees all its data and the guide draws
                all latents.
            posterior_predictive: the same; ``None``: if the model sees all its data.
            observed_data: the same.
            coords: labels of the members along axes, by their names, such as ``{"school": ["A", "B"]}``.
            dims: names of the axes of sites, without that of the draws, where plates do not name them.
            chunk_size: how many draws are computed at a time.
            options: further ones of :meth:`sample` or :meth:`resample`.

        Returns:
            An ``arviz.InferenceData``; from ArviZ 1.0 on an ``xarray.DataTree``.

        Raises:
            ValueError: for a group that there cannot be, or ``dims`` that do not fit.
            ImportError: without arviz; install ``flowppl[arviz]``.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from flowppl.pyro import fit
            >>> def model(y):
            ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
            ...     with pyro.plate("day", len(y)):
            ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            >>> result = fit(model, torch.ones(10), progress=False)
            >>> data = result.to_arviz(500)
            >>> data.log_likelihood["y"].dims, data.observed_data["y"].shape
            (('chain', 'draw', 'day'), (10,))
        """
        check_sizes("to_arviz", num_samples=num_samples, chunk_size=chunk_size)
        args, kwargs = self.arguments
        if resample:
            draws = self.resample(num_samples, chunk_size=chunk_size, **options)
        else:
            draws = self.sample(num_samples, **options)
        groups, sites = make_groups(
            self._own_model if self.model is not absent_model else absent_model,
            draws,
            args,
            kwargs,
            chunk_size=chunk_size,
            observed_data=observed_data,
            log_likelihood=log_likelihood,
            posterior_predictive=posterior_predictive,
        )
        return convert(groups, sites, coords, dims)

    def save(self, path) -> None:
        """Write the fitted guide to a file: see :func:`flowppl.save`."""
        save(path, self)

    @property
    def _own_model(self):
        """The model with the parameters of this fit, whatever the host's store has by now."""
        own = {name: self.params[name] for name in _parameters_of(self.model, self.guide, *self.arguments)}
        return poutine.substitute(self.model, data=own) if own else self.model


def fit(
    model,
    *args,
    guide=None,
    loss=None,
    num_steps: int | None = None,
    num_particles: int | None = None,
    learning_rate: float | None = None,
    clip_norm: float | None = None,
    num_restarts: int = 1,
    max_seconds: float | None = None,
    progress: bool | None = None,
    **kwargs,
) -> Fit:
    check_options(num_steps, num_particles, learning_rate, clip_norm, num_restarts, max_seconds)
    guide = AutoFlow(model, path_flow) if guide is None else guide
    norm = math.inf if clip_norm is None else float(clip_norm)
    if isinstance(guide, AutoFlow):
        guide.setup(*args, **kwargs)
    trainer: Any
    plates = model_plates(model, guide, args, kwargs)
    if isinstance(guide, AutoFlow) and loss is None and not _parameters_of(model, guide, args, kwargs):
        trainer = PathTrainer(guide, model, args, kwargs, num_restarts, norm)
        default = FLOW_ROUNDS
    else:
        trainer = ElboTrainer(model, guide, loss, num_particles, args, kwargs, num_restarts, norm)
        default = OTHER_ROUNDS
    trainer.is_subsampled = is_subsampled(plates)
    rounds = choose_rounds(default, num_steps, num_particles, learning_rate)
    history = train(trainer, rounds, time_limit(max_seconds, num_steps), progress)
    return Fit(guide, trainer.parameters(), history, model, (args, kwargs))


def _parameters_of(model, guide, args, kwargs) -> list[str]:
    """The names of the model's own parameters."""
    with aside():
        replayed = poutine.replay(model, poutine.trace(guide).get_trace(*args, **kwargs))
        with poutine.trace(param_only=True) as capture:
            replayed(*args, **kwargs)
    return list(capture.trace.nodes)


class _Trainer(abc.ABC):
    """The steps that all guides share."""

    has_affine = False
    is_subsampled: bool

    def __init__(self, parameters: list[list[torch.Tensor]], clip_norm):
        self.all_parameters, self.clip_norm = parameters, clip_norm  # a list for each restart

    @property
    def num_restarts(self) -> int:
        return len(self.all_parameters)

    @abc.abstractmethod
    def _take_gradient(self, index, chunk: Chunk, step) -> float:
        """Put into the parameters of a restart the gradient to go along; return the estimate of minus the ELBO."""

    def begin(self):
        # Fused: one call for all parameters.
        self.optimizers = [torch.optim.Adam(each, lr=1.0, eps=1e-4, fused=True) for each in self.all_parameters]

    def run(self, chunk: Chunk):
        return np.array([[self._step(i, chunk, step) for step in range(CHUNK)] for i in range(self.num_restarts)])

    def _step(self, index, chunk, step) -> float:
        optimizer, parameters = self.optimizers[index], self.all_parameters[index]
        optimizer.param_groups[0]["lr"] = chunk.rates[step]
        return take_step(optimizer, parameters, self._take_gradient(index, chunk, step), self.clip_norm)

    def fold(self):
        return 0.0  # no affine layer, nothing to take in

    @abc.abstractmethod
    def log_weights(self) -> np.ndarray: ...

    @abc.abstractmethod
    def parameters(self) -> dict[str, torch.Tensor]:
        """The parameters by name."""

    def select(self, index, kept):
        self.all_parameters = self.all_parameters[index : index + 1]
        return kept[index : index + 1]

    def get(self):
        return [[parameter.detach().clone() for parameter in each] for each in self.all_parameters]

    @torch.no_grad()
    def set(self, params):
        for mine, values in zip(self.all_parameters, params, strict=True):
            for parameter, value in zip(mine, values, strict=True):
                parameter.copy_(value)


class PathTrainer(_Trainer):
    """Trains an ``AutoFlow`` on the log density of the model; nothing else of model and guide is run."""

    has_affine = True

    def __init__(self, guide, model, args, kwargs, num_restarts, clip_norm):
        self.guide, self.bijection = guide, guide.flow.bijection
        self.like = guide.flow._zeros
        self.target = Target(guide, args, kwargs, self.like, model)
        others = [guide._started_flow(self.bijection, guide._init_loc(), args, kwargs) for _ in range(num_restarts - 1)]
        self.flows = [guide.flow, *others]
        tree = map_tree(lambda leaf: leaf.detach().cpu().numpy(), guide.flow.transform.weights.tree())
        self._affine = affine_part(self.bijection, tree)
        self._programs: dict[tuple[bool, int], Any] = {}
        self._may_record = self.target.can_be_mapped and not self.target.is_random()
        super().__init__([list(flow.parameters()) for flow in self.flows], clip_norm)

    def _noise(self, num):
        return torch.randn((num, len(self.like)), dtype=self.like.dtype, device=self.like.device)

    def _take_gradient(self, index, chunk, step):
        parameters = self.all_parameters[index]
        noise, directions = self._noise(chunk.num_particles), self._noise(chunk.num_particles // 2)
        settings = (self.like.new_tensor(setting[step]) for setting in (chunk.powers, chunk.stretches))
        inputs = (*parameters, noise, directions, *settings)
        key = chunk.affine, chunk.num_particles
        with torch.no_grad():
            if key not in self._programs:
                function = partial(self._gradient, chunk.affine)
                self._programs[key] = record(function, inputs) if self._may_record else function
            minus_elbo, *gradients = self._programs[key](*inputs)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return minus_elbo.item()

    def _gradient(self, affine, *inputs):
        """The estimate of minus the ELBO, and the gradients of the parameters, which are the first inputs."""
        *parameters, noise, directions, power, stretch = inputs
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in parameters]
            places = dict(zip(map(id, self.flows[0].parameters()), leaves, strict=True))
            tree = map_tree(lambda leaf: places.get(id(leaf), leaf), self.flows[0].transform.weights.tree())
            bijection, params = stage(self.bijection, self._affine, tree, affine)
            settings = (self.target.values_and_slopes, power, stretch)
            loss, minus_elbo = guide_loss(bijection, params, noise, directions, *settings)
            gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return minus_elbo.detach(), *gradients

    @torch.no_grad()
    def fold(self):
        distances = []
        for flow in self.flows:
            weights = flow.transform.weights
            distances.append(float(distance_from_identity(self.bijection, weights.tree())))
            weights.assign(fold(self.bijection, weights.tree()))
        return max(distances)

    @torch.no_grad()
    def log_weights(self):
        return np.stack([self._log_weights(flow) for flow in self.flows])

    def _log_weights(self, flow):
        batches = []
        for _ in range(NUM_CHECKS // (16 * BLOCK)):
            noise = self._noise(16 * BLOCK)
            z, log_det = flow.transform.forward_and_log_det(noise)
            batches.append(self.target.batched(z) - standard_log_prob(noise) + log_det)
        return torch.cat(batches).cpu().double().numpy()

    def select(self, index, kept):
        self.flows = self.flows[index : index + 1]
        return super().select(index, kept)

    def parameters(self):
        """Put the flow into the guide; return the guide's parameters by name."""
        self.guide.flow.load_state_dict(self.flows[0].state_dict())
        return {name: parameter.detach().clone() for name, parameter in self.guide.named_parameters()}


def record(function, inputs):
    """``function`` as a program of tensor operations: a step then takes a fraction of the time in Python.

    It must take and return tensors and be the same in every call. What cannot be recorded stays as it is, and so does
    what gives other numbers when recorded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the age of the recorder
        try:
            program = torch.jit.trace(make_fx(function)(*inputs), inputs, check_trace=False)
            others = [0.5 * tensor for tensor in inputs]
            same = zip(function(*others), program(*others), strict=True)
            is_same = all(torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True) for one, other in same)
        except Exception:  # whatever an operation of the model does that cannot be recorded
            return function
    return program if is_same else function


class ElboTrainer(_Trainer):
    """Trains any guide, and the parameters of its model, by an objective of the host."""

    def __init__(self, model, guide, loss, num_particles, args, kwargs, num_restarts, clip_norm):
        if num_restarts > 1:
            raise ValueError(
                f"fit: num_restarts={num_restarts} needs an AutoFlow guide of a model without parameters; "
                "for others call fit several times, each after pyro.clear_param_store() and with a new guide"
            )
        particles = OTHER_ROUNDS[0].num_particles if num_particles is None else num_particles
        if loss is None:
            nesting = plate_nesting(_traces(model, guide, args, kwargs)[0])
            loss = PathELBO(num_particles=particles, vectorize_particles=True, max_plate_nesting=nesting)
        self.loss = loss
        self.programs, self.args, self.kwargs = (model, guide), args, kwargs
        with poutine.trace(param_only=True) as capture:
            self.loss.loss(model, guide, *args, **kwargs)
        self.names = list(capture.trace.nodes)
        sites: Any = capture.trace.nodes
        super().__init__([[site["value"].unconstrained() for site in sites.values()]], clip_norm)

    def _take_gradient(self, index, chunk, step):
        return float(self.loss.loss_and_grads(*self.programs, *self.args, **self.kwargs))

    def log_weights(self):
        known = (*self.programs, *self.args)
        chunk_size = 32 if self.is_subsampled else 1000  # all draws of a chunk see one batch of the data
        weights = log_weights(*known, num_samples=NUM_CHECKS // 4, chunk_size=chunk_size, **self.kwargs)
        return weights.cpu().double().numpy()[None]

    def parameters(self):
        """The parameters by name."""
        return {name: pyro.param(name).detach().clone() for name in self.names}


fit.__doc__ = FIT_DOC.format(
    key="",
    again=" One that is trained already goes on from there.",
    restarts="one after the other (of an ``AutoFlow`` only)",
    example="""
        >>> import torch, pyro, pyro.distributions as dist
        >>> from flowppl.pyro import fit
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> result = fit(model, torch.ones(10), progress=False)
        >>> result.sample(100)["mu"].shape, result.k_hat < 0.5
        (torch.Size([100]), True)
""",
)
