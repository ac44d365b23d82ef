"""How ``fit`` trains a guide in Pyro: the steps and the draws behind :func:`flowppl.inference.fitting.train`."""

from __future__ import annotations

import abc
import contextlib
import copy
import time
from functools import partial
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO

from flowppl._arrays.tree import map_tree, select
from flowppl.inference import mixture
from flowppl.inference.affine import AffineSteps, KeepsAffine
from flowppl.inference.fitting import (
    BLOCK,
    CHUNK,
    FEW,
    JUDGE_SECONDS,
    MIN_CHECKS,
    NUM_CHECKS,
    OTHER_ROUNDS,
    Chunk,
)
from flowppl.inference.guides import (
    affine_layers,
    affine_part,
    distance_from_identity,
    fold,
    is_dense,
    may_step_alone,
    stage,
    start_at,
)
from flowppl.inference.losses import guide_loss, practises, standard_log_prob, stretched
from flowppl.inference.mixture import BATCH, mixture_loss, particles_of_part, weigh_parts
from flowppl.inference.modes import single
from flowppl.inference.outside import GuideDensity
from flowppl.inference.resuming import under
from flowppl.pyro.diagnostics import (
    draw_weighted,
    outer_obstacle,
    plate_nesting,
    traces_of,
)
from flowppl.pyro.enumeration import is_summed_out
from flowppl.pyro.flow import Flow
from flowppl.pyro.objectives import PathELBO
from flowppl.pyro.steps import Optimizer, has_rate, make_optimizer, record, take_step
from flowppl.pyro.target import Target, to_float64
from flowppl.pyro.training import memory_of, recall
from flowppl.pyro.transforms import numpy_rng, to_numpy


class _Trainer(abc.ABC):
    """The steps that all guides share."""

    has_affine = False
    is_dense = False
    is_subsampled: bool
    obstacle = ""  # what of the model cannot be run for many draws at once, so that each is run alone

    def __init__(self, parameters: list[dict[str, torch.Tensor]], optimizer: Optimizer, clip_norm: float):
        self.named_parameters = parameters  # by name, for each restart
        self.optimizer, self.clip_norm = optimizer, clip_norm
        self.optimizers: list[torch.optim.Optimizer] = []
        self.host_optimizers: list[torch.optim.Optimizer] = []  # made once, for all rounds of the flow

    @property
    def num_restarts(self) -> int:
        return len(self.named_parameters)

    @abc.abstractmethod
    def _take_gradient(self, index, chunk: Chunk, step) -> torch.Tensor:
        """Put into the parameters of a restart the gradient to go along; return the estimate of minus the ELBO."""

    def begin(self, affine):
        if affine or not has_rate(self.optimizer):
            # Fused: one call for all parameters.
            name, options = (self.optimizer, {}) if self.optimizer == "adamax" else ("adam", {"fused": True})
            self.optimizers = [make_optimizer(name, each, eps=1e-4, **options) for each in self.named_parameters]
            return
        if not self.host_optimizers:
            self.host_optimizers = [make_optimizer(self.optimizer, each) for each in self.named_parameters]
        self.optimizers = self.host_optimizers

    def run(self, chunk: Chunk):
        losses = []
        for step in range(CHUNK):
            losses.append(torch.stack([self._step(i, chunk, step) for i in range(self.num_restarts)]))
            if time.monotonic() >= chunk.end:
                break
        return torch.stack(losses, dim=1).cpu().double().numpy()

    def _step(self, index, chunk, step) -> torch.Tensor:
        optimizer, parameters = self.optimizers[index], list(self.named_parameters[index].values())
        rate = chunk.rates[step] if chunk.affine or not has_rate(self.optimizer) else None
        return take_step(optimizer, parameters, self._take_gradient(index, chunk, step), self.clip_norm, rate)

    def settle(self, end):
        return False

    def fold(self):
        return 0.0  # no affine layer, nothing to take in

    @abc.abstractmethod
    def log_weights(self) -> list[np.ndarray]: ...

    @abc.abstractmethod
    def parameters(self) -> dict[str, torch.Tensor]:
        """The parameters by name."""

    def select(self, index, kept):
        self.named_parameters = self.named_parameters[index : index + 1]
        self.host_optimizers = self.host_optimizers[index : index + 1]
        return kept[index : index + 1]

    def get(self):
        return [
            {name: tensor.detach().clone() for name, tensor in self._kept(i).items()} for i in range(self.num_restarts)
        ]

    @torch.no_grad()
    def set(self, params):
        for i, values in enumerate(params):
            for name, tensor in self._kept(i).items():
                tensor.copy_(values[name])

    def _kept(self, index) -> dict[str, torch.Tensor]:
        """What a training of a restart changes."""
        return self.named_parameters[index]

    # What a checkpoint asks for: see `flowppl.training.fits.Trainer`.

    def arrays_of(self, params):
        return {f"{i}.{name}": to_numpy(value) for i, each in enumerate(params) for name, value in each.items()}

    def params_of(self, arrays):
        return [
            {name: torch.as_tensor(arrays[f"{i}.{name}"]) for name in self._kept(i)} for i in range(self.num_restarts)
        ]

    def memory(self, in_round):
        memory = {"random": torch.get_rng_state().numpy()}
        if self._device.type == "cuda":
            memory["random of the device"] = torch.cuda.get_rng_state(self._device).numpy()
        for i, optimizer in enumerate(self.optimizers if in_round else []):
            memory |= {f"optimizer.{i}.{name}": array for name, array in memory_of(optimizer).items()}
        return memory

    def recall(self, params, memory, affine):
        self.set(params)
        if affine is not None:
            self.begin(affine)
            for i, optimizer in enumerate(self.optimizers):
                recall(optimizer, under(f"optimizer.{i}.", memory))
        torch.set_rng_state(torch.as_tensor(memory["random"]))
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(torch.as_tensor(memory["random of the device"]), self._device)

    @abc.abstractmethod
    def log_density(self, params) -> list[float]: ...

    @property
    def _device(self) -> torch.device:
        return next(iter(self.named_parameters[0].values())).device


class PathTrainer(KeepsAffine, _Trainer):
    """Trains an ``AutoFlow`` on the log density of the model; nothing else of model and guide is run."""

    has_affine = True
    num_parts = 1

    def __init__(self, guide, model, args, kwargs, num_restarts, optimizer, clip_norm, target=None):
        self.guide, self.bijection = guide, guide.flow.bijection
        self.is_dense = is_dense(self.bijection)
        self.like = guide.flow._zeros
        self.target = Target(guide, args, kwargs, self.like, model) if target is None else target
        self.flows = [guide.flow, *(self._another_flow() for _ in range(num_restarts - 1))]
        self._affine = affine_part(self.bijection, map_tree(to_numpy, self._first_tree()))
        self._programs: dict[tuple[bool, int], Any] = {}
        self._may_record = self.target.can_be_mapped and not self.target.is_random()
        self.obstacle = self.target.obstacle if self.target.is_slow else ""
        self._near = np.zeros((1, 1), dtype=int)
        self._steps_alone: list[AffineSteps] = []
        super().__init__([dict(flow.named_parameters()) for flow in self.flows], optimizer, clip_norm)

    def _another_flow(self):
        """A flow with first weights and a start of its own."""
        guide, loc = self.guide, self.guide._init_loc()
        if guide._modes is None:
            return guide._started_flow(self.bijection, loc, self.target)
        return guide._flow_at(single(guide._search(loc, self.target)), Flow(self.bijection).to(loc))

    def _first_tree(self):
        return self.flows[0].transform.weights.tree()

    def _noise(self, *shape):
        return torch.randn((*shape, len(self.like)), dtype=self.like.dtype, device=self.like.device)

    def log_prob(self, points):
        """The log densities of the guide at points, of NumPy."""
        with torch.no_grad():
            return self.flows[0]().log_prob(torch.as_tensor(points).to(self.like)).cpu().double().numpy()

    def density(self):
        """The guide, for a look at what it does not draw."""
        rows = BLOCK if self.obstacle else 16 * BLOCK
        return GuideDensity(self.log_prob, np.zeros(1), len(self.like), self._weigh, rows, block=rows)

    @torch.no_grad()
    def _weigh(self, _, noise):
        return self._log_weights_at(self.flows[0], torch.as_tensor(noise).to(self.like)).cpu().double().numpy()

    def _take_gradient(self, index, chunk, step):
        parameters = list(self.named_parameters[index].values())
        num = min(chunk.num_particles, FEW) if self.obstacle and chunk.affine else chunk.num_particles
        settings = (self.like.new_full((), setting[step]) for setting in (chunk.powers, chunk.stretches))
        inputs = (*parameters, *self._inputs(index, num), *settings)
        key = chunk.affine, num
        with torch.no_grad():
            if key not in self._programs:
                function = partial(self._gradient, chunk.affine)
                self._programs[key] = record(function, inputs, chunk.end) if self._may_record else function
            minus_elbo, *gradients = self._programs[key](*inputs)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return minus_elbo

    def _inputs(self, index, num):
        """What a step draws."""
        return self._noise(num), self._noise(num // 2)

    def _gradient(self, affine, *inputs):
        """The estimate of minus the ELBO, and the gradients of the parameters, which are the first inputs."""
        own = list(self.flows[0].parameters())
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in inputs[: len(own)]]
            places = dict(zip(map(id, own), leaves, strict=True))
            loss, minus_elbo = self._loss(affine, lambda leaf: places.get(id(leaf), leaf), *inputs[len(own) :])
            gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return minus_elbo.detach(), *(gradient.detach() for gradient in gradients)  # torch 2.5's zeros ask for one

    def _loss(self, affine, place, *inputs):
        noise, directions, power, stretch = inputs
        tree = map_tree(place, self._first_tree())
        bijection, params = stage(self.bijection, self._affine, tree, affine)
        noise = stretched(noise, directions, stretch) if practises(bijection) else noise
        return guide_loss(bijection, params, noise, len(directions), self.target.values_and_slopes, power)

    @torch.no_grad()
    def begin(self, affine):
        self._steps_alone = []
        if not (affine and may_step_alone(self.bijection, self._affine) and not self.target.is_random()):
            super().begin(affine)
            return
        num = max(2, FEW // self.num_parts) if self.obstacle else particles_of_part(self.num_parts)
        density = self._density(min(num * self.num_parts, BLOCK))
        for flow in self.flows:
            layers = [affine_layers(self.bijection, tree) for tree in self._trees(flow)]
            trained, fixed = ([tuple(map(to_float64, each)) for each in side] for side in zip(*layers, strict=True))
            known = self._log_weights_of_parts(flow), self._near, density, num, numpy_rng()
            self._steps_alone.append(AffineSteps(trained, fixed, *known))

    def _density(self, num):
        """The log densities of the model and their gradients at so many rows of NumPy; or at others, in more time."""
        function = self.target.values_and_slopes
        program = record(function, (self._noise(num),)) if self._may_record else function

        def density(points):
            if program is not function and len(points) == num:
                with contextlib.suppress(torch.linalg.LinAlgError):
                    return tuple(map(to_float64, program(torch.as_tensor(points).to(self.like))))
            return self.target.values_and_gradients(points)

        return density

    @torch.no_grad()
    def run(self, chunk):
        if not self._steps_alone:
            with torch.enable_grad():
                return super().run(chunk)
        losses = [steps.run(chunk) for steps in self._steps_alone]
        self._follow_steps()
        num = min(map(len, losses))
        return np.stack([row[:num] for row in losses])

    @torch.no_grad()
    def _follow_steps(self):
        """Take the affine layers over from the steps that they take alone."""
        for flow, steps in zip(self.flows, self._steps_alone, strict=True):
            moved = []
            for tree, affine in zip(self._trees(flow), steps.trained(), strict=True):
                loc, scale = (torch.as_tensor(array).to(self.like) for array in affine)
                moved.append(start_at(self.bijection, tree, loc, scale, fixed=False))
            self._assign(flow, moved)

    def _trees(self, flow):
        """The weights of the parts of a flow, with their constants."""
        return [flow.transform.weights.tree()]

    def _assign(self, flow, trees):
        """Set the weights of its parts."""
        flow.transform.weights.assign(select(self.bijection.parameters(), trees[0]))

    def _log_weights_of_parts(self, flow) -> np.ndarray:
        return np.zeros(1)

    @torch.no_grad()
    def fold(self):
        trees = [self._trees(flow) for flow in self.flows]
        distances = [float(distance_from_identity(self.bijection, tree)) for parts in trees for tree in parts]
        for flow, parts in zip(self.flows, trees, strict=True):
            self._assign(flow, [fold(self.bijection, tree) for tree in parts])
        return max(distances)

    @torch.no_grad()
    def log_weights(self):
        return [self._log_weights(flow) for flow in self.flows]

    def _log_weights(self, flow):
        def draw(num):
            return self._log_weights_at(flow, self._noise(num))

        return in_time(draw, NUM_CHECKS, BLOCK if self.obstacle else 16 * BLOCK)

    def _log_weights_at(self, flow, noise):
        z, log_det = flow.transform.forward_and_log_det(noise)
        return self.target.batched(z) - standard_log_prob(noise) + log_det

    def select(self, index, kept):
        self.flows = self.flows[index : index + 1]
        return super().select(index, kept)

    def parameters(self):
        """Put the flow into the guide; return the guide's parameters by name."""
        self.guide.flow.load_state_dict(self.flows[0].state_dict())
        return {name: parameter.detach().clone() for name, parameter in self.guide.named_parameters()}


class MixtureTrainer(PathTrainer):
    """Trains an ``AutoFlow`` of several modes: all its flows at once, by draws of each."""

    def __init__(self, guide, *rest):
        self.num_parts = len(guide.flow.log_weights)
        super().__init__(guide, *rest)

    def _another_flow(self):
        if self.guide._modes is None:  # loaded from a file
            return copy.deepcopy(self.guide.flow)
        modes = self.guide._modes.at_most(self.num_parts)
        return self.guide._flow_at(modes, Flow(self.bijection).to(self.like))

    def _first_tree(self):
        return self.flows[0].staged(self.flows[0].part(0))[1]

    def _inputs(self, index, num):
        each = max(num // BLOCK, 1) * particles_of_part(self.num_parts)
        if self.obstacle:
            each = max(2, num // self.num_parts)
        noise, directions = self._noise(self.num_parts, each), self._noise(self.num_parts, each // 2)
        return self.flows[index].log_weights, noise, directions

    def _loss(self, affine, place, *inputs):
        log_weights, noise, directions, power, stretch = inputs

        def to_train(part):
            return stage(self.bijection, self._affine, self.flows[0].staged(part)[1], affine)

        parts = map_tree(place, self.flows[0].parts.tree())
        noise = stretched(noise, directions, stretch)
        settings = (directions.shape[1], self._near, self.target.values_and_slopes, power)
        return mixture_loss(to_train, parts, log_weights, noise, *settings)

    def _trees(self, flow):
        return [flow.staged(flow.part(k))[1] for k in range(self.num_parts)]

    def _assign(self, flow, trees):
        weights = [select(self.bijection.parameters(), tree) for tree in trees]
        flow.parts.assign(map_tree(lambda *leaves: torch.stack(leaves), *weights))

    def _log_weights_of_parts(self, flow):
        return to_float64(flow.log_weights)

    def _log_weights(self, flow):
        def draw(batches):
            drawn = [
                self._draw_part(flow, int(k), self._noise(BATCH))
                for k, num in zip(*np.unique(batches, return_counts=True), strict=True)
                for _ in range(num)
            ]
            return (torch.stack(rows).cpu().double().numpy() for rows in zip(*drawn, strict=True))

        before = to_float64(flow.log_weights)
        log_weights, row, near = weigh_parts(before, draw, MIN_CHECKS if self.obstacle else NUM_CHECKS)
        self._near = near if len(self._near) < self.num_parts else self._near  # once: steps are recorded with it
        flow.log_weights.copy_(torch.as_tensor(log_weights))
        return row

    def _draw_part(self, flow, part, noise):
        """The log densities of draws of a part, under the model and under all parts."""
        bijection, tree = flow.staged(flow.part(part))
        z, _ = bijection.forward(tree, noise)
        return self.target.batched(z), mixture.log_probs(flow.staged, flow.parts.tree(), z)

    def density(self):
        log_weights = self.flows[0].log_weights.cpu().double().numpy()
        return GuideDensity(self.log_prob, log_weights, len(self.like), self._weigh, rows=BATCH, block=BATCH)

    @torch.no_grad()
    def _weigh(self, parts, noise):
        flow = self.flows[0]
        log_p, log_parts = self._draw_part(flow, int(parts[0]), torch.as_tensor(noise).to(self.like))
        log_q = torch.logsumexp(log_parts + flow.log_weights[:, None], dim=0)
        return (log_p - log_q).cpu().double().numpy()

    def _kept(self, index):
        return super()._kept(index) | {"log_weights": self.flows[index].log_weights}


def in_time(draw, num_draws, batch_size) -> np.ndarray:
    """What ``draw`` gives, in batches: ``num_draws`` of them, or as many as a judgement has time for."""
    begin, batches = time.monotonic(), []
    for start in range(0, num_draws, batch_size):
        batches.append(draw(batch_size))
        if time.monotonic() - begin > JUDGE_SECONDS and start + batch_size >= MIN_CHECKS:
            break
    return torch.cat(batches).cpu().double().numpy()


class ElboTrainer(_Trainer):
    """Trains any guide, and the parameters of its model, by an objective of the host."""

    def __init__(self, model, guide, loss, num_particles, args, kwargs, num_restarts, optimizer, clip_norm):
        if num_restarts > 1:
            raise ValueError(
                f"fit: num_restarts={num_restarts} needs an AutoFlow guide of a model without parameters; "
                "for others call fit several times, each after pyro.clear_param_store() and with a new guide"
            )
        particles = OTHER_ROUNDS[0].num_particles if num_particles is None else num_particles
        obstacle = outer_obstacle(model, guide, args, kwargs)
        self.alone = bool(obstacle)
        if loss is None:
            trace = traces_of(model, guide, args, kwargs)[0]
            sums_out = any(map(is_summed_out, trace.nodes.values()))
            self.obstacle = "" if sums_out else obstacle
            nesting = plate_nesting(trace)
            many: dict[str, Any] = {"vectorize_particles": not obstacle, "max_plate_nesting": nesting}
            loss = (TraceEnum_ELBO if sums_out else PathELBO)(num_particles=particles, **many)
        self.loss = loss
        self.programs, self.args, self.kwargs = (model, guide), args, kwargs
        with poutine.trace(param_only=True) as capture:
            self.loss.loss(model, guide, *args, **kwargs)
        sites: Any = capture.trace.nodes
        own = {name: site["value"].unconstrained() for name, site in sites.items()}
        super().__init__([own], optimizer, clip_norm)

    def _take_gradient(self, index, chunk, step):
        return torch.as_tensor(self.loss.loss_and_grads(*self.programs, *self.args, **self.kwargs))

    def log_weights(self):
        def draw(num):
            return draw_weighted(*self.programs, self.args, self.kwargs, num, num, keep=False, alone=self.alone)[0]

        # All draws of a batch see one batch of the data.
        return [in_time(draw, NUM_CHECKS // 4, 32 if self.is_subsampled or self.alone else 512)]

    def log_density(self, params):
        """Less that of the guide, at the same draws each time."""
        now, memory = self.get(), self.memory(in_round=False)
        try:
            self.set(params)
            torch.manual_seed(0)
            options: dict[str, Any] = {"keep": False, "alone": self.alone}
            return draw_weighted(*self.programs, self.args, self.kwargs, 4, 4, **options)[0].tolist()
        finally:
            self.recall(now, memory, None)

    def parameters(self):
        """The parameters by name."""
        return {name: pyro.param(name).detach().clone() for name in self.named_parameters[0]}
