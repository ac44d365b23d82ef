"""The log density of a Pyro model on the unconstrained space of a guide."""

from __future__ import annotations

import contextlib
import math
import os
import time
import traceback
from functools import cached_property
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.util import site_is_subsample
from torch.distributions import biject_to

from flowppl.inference.starts import NUM_TRIALS
from flowppl.pyro._host import TorchFunctionMode, tree_leaves
from flowppl.pyro.enumeration import is_summed_out, log_joint, plate_nesting, trace_of

MANY_ROWS = 1024
PRIOR_SECONDS = 2.0  # after which no more draws are taken of the prior


class Target:
    """The log density of a model, as a function of the vector that an ``AutoFlow`` guide draws.

    Discrete sites marked with ``infer={"enumerate": "parallel"}`` are summed out.

    Args:
        guide: a guide that has seen the model.
        args: the model's arguments.
        kwargs: its keyword arguments.
        like: a tensor of the dtype and on the device of the guide.
        model: the model, if it is not the one that the guide was made for.
    """

    def __init__(self, guide, args, kwargs, like: torch.Tensor, model=None):
        self._guide, self._args, self._kwargs, self._like = guide, args, kwargs, like
        self.eps = torch.finfo(like.dtype).eps
        # Not the host's version of it, which draws a start for each latent.
        self._model = guide._model[1] if model is None else model

    def log_prob(self, z):
        """The log density at one point."""
        values, log_det = self._guide._constrain_with_log_det(z)
        return log_joint(self._conditioned(values), self._args, self._kwargs, *self._layout) + log_det

    def _conditioned(self, values):
        return poutine.condition(self._model, data=values)

    @cached_property
    def _layout(self) -> tuple[int, bool]:
        """How many dimensions the plates of the model take, and whether sites are to be summed out left of them."""
        trace = self._trace_at_origin()
        return plate_nesting(trace), any(map(is_summed_out, trace.nodes.values()))

    def _trace_at_origin(self):
        values = self._guide._constrain(torch.zeros_like(self._like))
        with self._seeded(0), torch.no_grad():
            return trace_of(self._conditioned(values), self._args, self._kwargs)

    def num_batches(self) -> int:
        """How many batches of the data, of which the model sees one, are as many as all."""
        sites = self._trace_at_origin().nodes.values()
        frames = [frame for site in sites if site["type"] == "sample" for frame in site["cond_indep_stack"]]
        return max((math.ceil((frame.full_size or frame.size) / frame.size) for frame in frames), default=1)

    def batched(self, z):
        """The log densities at several points, all with the same subsample of the data."""
        with pyro.validation_enabled(False):  # checks of values would be branches on them
            return self._ways[self._way[0]](z)

    def values_and_slopes(self, z):
        """The log densities at several points, and their gradients."""
        if self.can_be_mapped:
            with pyro.validation_enabled(False):
                slopes, values = torch.func.vmap(torch.func.grad_and_value(self._one), randomness="same")(z)
        else:
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                values = self.batched(z)
                slopes = torch.autograd.grad(values.sum() + 0 * z.sum(), z)[0]
        return values.detach(), slopes.detach()

    def is_random(self) -> bool:
        """Whether the log density is random: the model draws a subsample, or latents that the guide does not see."""
        return self._is_random

    @cached_property
    def _is_random(self) -> bool:
        # At the origin a hidden factor of a latent does not show, and a hidden coin may fall alike a few times.
        points = np.random.default_rng(0).uniform(-2, 2, (4, self._guide.latent_dim))
        first = self.log_probs(points)
        return any(not np.array_equal(first, self.log_probs(points, seed), equal_nan=True) for seed in range(1, 8))

    @torch.no_grad()
    def observed_sites(self) -> list[tuple[str, np.ndarray, float]]:
        """Of each observed site the name, the data, and the log density at the origin of unconstrained space."""
        values = self._guide._constrain(torch.zeros_like(self._like))
        with pyro.validation_enabled(False):
            trace = trace_of(self._conditioned(values), self._args, self._kwargs)
            return [
                (name, to_float64(site["value"]), float(site["fn"].log_prob(site["value"]).sum()))
                for name, site in trace.nodes.items()
                if site["type"] == "sample" and site["is_observed"] and name not in self._guide._unconstrained_shapes
            ]

    # What a search calls: NumPy in, NumPy out. Where a matrix of the model cannot be factorised there is no number.

    def log_probs(self, points: np.ndarray, seed: int = 0) -> np.ndarray:
        """The log densities of several points."""
        try:
            with torch.no_grad(), self._seeded(seed):
                return to_float64(self.batched(self._tensor(points)))
        except torch.linalg.LinAlgError:
            if len(points) == 1:
                return np.full(1, np.nan)
            return np.concatenate([self.log_probs(point[None], seed) for point in points])

    def derivatives(self, point: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The gradient and the Hessian."""
        if not self.can_be_mapped:
            gradient = self.value_and_gradient(point, seed)[1]
            return gradient, self.hessian_products(point, np.eye(len(point)), seed)

        def gradient_twice(z):
            gradient = torch.func.grad(self._one)(z)
            return gradient, gradient

        with self._seeded(seed):
            hessian, gradient = torch.func.jacrev(gradient_twice, has_aux=True)(self._tensor(point))
        return to_float64(gradient), to_float64(hessian)

    def value_and_gradient(self, point: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The log density and its gradient."""
        values, slopes = self.values_and_gradients(point[None], seed)
        return values[0], slopes[0]

    def values_and_gradients(self, points: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The log densities of several points, and their gradients."""
        try:
            with self._seeded(seed):
                values, slopes = self.values_and_slopes(self._tensor(points))
        except torch.linalg.LinAlgError:
            if len(points) == 1:
                return np.full(1, np.nan), np.full_like(points, np.nan)
            rows = [self.values_and_gradients(point[None], seed) for point in points]
            return tuple(map(np.concatenate, zip(*rows, strict=True)))  # type: ignore[return-value]
        return to_float64(values), to_float64(slopes)

    @torch.no_grad()
    def prior_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """Draws of the prior in unconstrained space; where it is improper, or took too long, they are not numbers."""
        guide, rows, begin = self._guide, [], time.monotonic()
        model = InitMessenger(_drawn_or_nan)(self._model)
        with pyro.poutine.block(), self._seeded(int(rng.integers(2**31))):
            for _ in range(num):
                trace = poutine.trace(model).get_trace(*self._args, **self._kwargs)
                parts = []
                for name in guide._names:
                    site: Any = trace.nodes[name]
                    part = biject_to(site["fn"].support).inv(site["value"]).reshape(-1)
                    parts.append(part[guide._kept(name)].to(self._like))
                rows.append(torch.cat(parts))
                if time.monotonic() - begin > PRIOR_SECONDS:
                    break
        drawn = to_float64(torch.stack(rows))
        return np.concatenate([drawn, np.full((num - len(drawn), drawn.shape[1]), np.nan)])

    def hessian_products(self, point: np.ndarray, vectors: np.ndarray, seed: int = 0) -> np.ndarray:
        """The products of the Hessian and each row of ``vectors``."""
        with self._seeded(seed), torch.enable_grad():
            z, rows = self._tensor(point), self._tensor(vectors)
            if self.can_be_mapped:
                product = torch.func.vjp(torch.func.grad(self._one), z)[1]
                return to_float64(torch.func.vmap(lambda vector: product(vector)[0])(rows))
            z.requires_grad_()
            gradient = torch.autograd.grad(self.log_prob(z) + 0 * z.sum(), z, create_graph=True)[0] + 0 * z
            products = [torch.autograd.grad(gradient, z, row, retain_graph=True)[0] for row in rows]
            return to_float64(torch.stack(products))

    # How the model is run for many points.

    @property
    def can_be_mapped(self) -> bool:
        """Whether ``torch.func`` can map the model over points; one that branches on values it cannot."""
        return self._way[0] in ("as it is", "with filled tensors")

    @property
    def num_rows(self) -> int:
        """How many points to take at a time, where there are thousands."""
        return NUM_TRIALS if self.is_slow else MANY_ROWS

    @property
    def is_slow(self) -> bool:
        """Whether the model is run for one point after the other, as it cannot be run for many at once."""
        return self._way[0] == "one by one"

    @property
    def obstacle(self) -> str:
        """The operation that cannot be mapped over points; empty if all can."""
        return "" if self.can_be_mapped else self._way[1]

    @property
    def _ways(self):
        return {
            "as it is": torch.func.vmap(self.log_prob, randomness="same"),
            "with filled tensors": torch.func.vmap(self._filled, randomness="same"),
            "in a plate": self._in_a_plate,
            "one by one": self._one_by_one,
        }

    @cached_property
    def _way(self) -> tuple[str, str]:
        """The first way that gives what the model gives point by point, and what stands in the way of the first."""
        z = torch.stack([torch.full_like(self._like, value) for value in (0.0, 0.1, -0.2)])
        obstacle = ""
        tolerance = max(1e-5, torch.finfo(z.dtype).eps ** 0.5)
        with torch.no_grad():
            expected = torch.stack([self._call_seeded(0, self.log_prob, row) for row in z])
            for way, function in self._ways.items():
                try:
                    # Of two numbers of points one at least is not, by chance, the length of an axis of the model.
                    found = [self._call_seeded(0, function, z[:num]) for num in (3, 2)]
                except Exception as error:  # whatever the model does that cannot be done for many points
                    obstacle = obstacle or place_of(error)
                    continue
                if all(
                    torch.allclose(each.to(expected), expected[:num], rtol=tolerance, equal_nan=True)
                    for num, each in zip((3, 2), found, strict=True)
                ):
                    return way, obstacle
                obstacle = obstacle or "the model gives other values for many points at once than for each alone"
        return "one by one", obstacle  # a random model, of which each run has a draw of its own

    @property
    def _one(self):
        return self._filled if self._way[0] == "with filled tensors" else self.log_prob

    def _filled(self, z):
        with _Filled(torch.zeros_like(z[0])):
            return self.log_prob(z)

    def _in_a_plate(self, z):
        """The model is run once, for all points, in an outer plate of the host."""
        nesting, sums_out = self._layout
        if sums_out:
            raise NotImplementedError("the sites summed out stand where the plate would")
        values, log_det = torch.func.vmap(self._guide._constrain_with_log_det)(z)
        for name, value in values.items():
            rank = value.ndim - 1 - self._guide.prototype_trace.nodes[name]["fn"].event_dim
            values[name] = value.reshape(len(z), *(1,) * (nesting - rank), *value.shape[1:])
        with pyro.plate("_flowppl_points", len(z), dim=-nesting - 1):
            trace = trace_of(self._conditioned(values), self._args, self._kwargs)
        trace.compute_log_prob()
        return log_det + sum(
            site["log_prob"].reshape(len(z), -1).sum(-1)
            for site in trace.nodes.values()
            if site["type"] == "sample" and not site_is_subsample(site)
        )

    def _one_by_one(self, z):
        seed = int(torch.randint(2**31, ()))
        return torch.stack([self._call_seeded(seed, self.log_prob, row) for row in z])

    def _call_seeded(self, seed, function, *args):
        with self._seeded(seed):
            return function(*args)

    @contextlib.contextmanager
    def _seeded(self, seed):
        with torch.random.fork_rng(), pyro.validation_enabled(False):
            if self._like.device.type == "cpu" and not torch.cuda.is_initialized():
                torch.default_generator.manual_seed(seed)
            else:  # for a device that is not in use it notes the whole call stack, each time
                torch.manual_seed(seed)
            yield

    def _tensor(self, array):
        return torch.as_tensor(array).to(self._like)


class _Filled(TorchFunctionMode):
    """Tensors that a model makes to fill them have one part for each point, as what they are filled with."""

    MAKERS = frozenset(
        prefix + name + suffix
        for name in ("empty", "zeros", "ones", "full")
        for prefix, suffix in (("", ""), ("", "_like"), ("new_", ""))
    ) | {"clone", "eye"}

    def __init__(self, zero):
        super().__init__()
        self.zero = zero

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in self.MAKERS and made.is_floating_point():
            return made + self.zero.to(made)
        return made


def _drawn_or_nan(site):
    try:
        return site["fn"]()
    except NotImplementedError:  # an improper prior
        return torch.full(site["fn"].shape(), torch.nan)


def check_trainable(arguments) -> None:
    """Raise RuntimeError where, or of what, no gradient can be taken."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError("fit needs gradients, which torch.inference_mode() rules out: call fit outside of it")
    if any(isinstance(leaf, torch.Tensor) and leaf.is_inference() for leaf in tree_leaves(arguments)):
        raise RuntimeError(
            "fit needs gradients, but an argument of the model was made under torch.inference_mode(), which rules them "
            "out: pass its .clone()"
        )


def place_of(error: BaseException) -> str:
    """The line of the model, or of its host, that raised an error, and what it said."""
    while error.__cause__ is not None:
        error = error.__cause__
    inside = os.path.dirname(torch.__file__)
    frame = [each for each in traceback.extract_tb(error.__traceback__) if not each.filename.startswith(inside)][-1]
    said = str(error).strip().partition("\n")[0].rstrip(" .")
    return f"{frame.line!r} ({os.path.basename(frame.filename)}, line {frame.lineno}): {said or type(error).__name__}"


def to_float64(tensor) -> np.ndarray:
    # By force: a derivative that is zero everywhere may be a tensor without memory.
    return tensor.double().numpy(force=True)
