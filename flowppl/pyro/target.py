"""The log density of a Pyro model on the unconstrained space of a guide."""

from __future__ import annotations

import contextlib
from functools import cached_property

import numpy as np
import pyro
import torch
from pyro import poutine


class Target:
    """The log density of a model, as a function of the vector that an ``AutoFlow`` guide draws.

    Args:
        guide: a guide that has seen the model.
        args: the model's arguments.
        kwargs: its keyword arguments.
        like: a tensor of the dtype and on the device of the guide.
        model: the model, if it is not the one that the guide was made for.
    """

    def __init__(self, guide, args, kwargs, like: torch.Tensor, model=None):
        self._guide, self._args, self._kwargs, self._like = guide, args, kwargs, like
        # Not the host's version of it, which draws a start for each latent.
        self._model = guide._model[1] if model is None else model

    def log_prob(self, z):
        """The log density at one point."""
        values, log_det = self._guide._constrain_with_log_det(z)
        return self._trace(values).log_prob_sum() + log_det

    def _trace(self, values):
        model = poutine.condition(self._model, data=values)
        with poutine.block():
            return poutine.trace(model).get_trace(*self._args, **self._kwargs)

    def batched(self, z):
        """The log densities at several points, all with the same subsample of the data."""
        return self._map(self.log_prob, z)

    def values_and_slopes(self, z):
        """The log densities at several points, and their gradients."""
        slopes, values = self._map(torch.func.grad_and_value(self.log_prob), z)
        return values.detach(), slopes.detach()

    def is_random(self) -> bool:
        """Whether the log density is random: the model draws a subsample, or latents that the guide does not see."""
        # At the origin a hidden factor of a latent does not show, and a hidden coin may fall alike a few times.
        points = np.random.default_rng(0).uniform(-2, 2, (4, self._guide.latent_dim))
        first = self.log_probs(points)
        return any(not np.array_equal(first, self.log_probs(points, seed), equal_nan=True) for seed in range(1, 8))

    @torch.no_grad()
    def observed_sites(self) -> list[tuple[str, np.ndarray, float]]:
        """Of each observed site the name, the data, and the log density at the origin of unconstrained space."""
        with pyro.validation_enabled(False):
            trace = self._trace(self._guide._constrain(torch.zeros_like(self._like)))
            return [
                (name, _to_numpy(site["value"]), float(site["fn"].log_prob(site["value"]).sum()))
                for name, site in trace.nodes.items()
                if site["type"] == "sample" and site["is_observed"] and name not in self._guide._unconstrained_shapes
            ]

    # What a search calls: NumPy in, NumPy out.

    def log_probs(self, points: np.ndarray, seed: int = 0) -> np.ndarray:
        """The log densities of several points."""
        with torch.no_grad(), self._seeded(seed):
            return _to_numpy(self.batched(self._tensor(points)))

    def derivatives(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradient and the Hessian."""

        def gradient_twice(z):
            gradient = torch.func.grad(self.log_prob)(z)
            return gradient, gradient

        with self._seeded(0):
            hessian, gradient = torch.func.jacrev(gradient_twice, has_aux=True)(self._tensor(point))
        return _to_numpy(gradient), _to_numpy(hessian)

    def value_and_gradient(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log density and its gradient."""
        with self._seeded(0):
            gradient, value = torch.func.grad_and_value(self.log_prob)(self._tensor(point))
        return _to_numpy(value), _to_numpy(gradient)

    def hessian_products(self, point: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """The products of the Hessian and each row of ``vectors``."""
        with self._seeded(0):
            product = torch.func.vjp(torch.func.grad(self.log_prob), self._tensor(point))[1]
            return _to_numpy(torch.func.vmap(lambda vector: product(vector)[0])(self._tensor(vectors)))

    def _map(self, function, z):
        with pyro.validation_enabled(False):  # checks of values would be branches on them
            if self.can_be_mapped:
                return torch.func.vmap(function, randomness="same")(z)
            seed = int(torch.randint(2**31, ()))
            return _stack([self._call_seeded(seed, function, row) for row in z])

    @cached_property
    def can_be_mapped(self) -> bool:
        """Whether the model can be run for many points at once; one that branches on values cannot."""
        z = torch.stack([torch.zeros_like(self._like), torch.full_like(self._like, 0.1)])
        try:
            mapped = self._call_seeded(0, torch.func.vmap(self.log_prob, randomness="same"), z)
        except Exception:  # whatever the model does that vmap has no rule for
            return False
        one_by_one = torch.stack([self._call_seeded(0, self.log_prob, row) for row in z])
        return mapped.shape == one_by_one.shape and torch.allclose(mapped, one_by_one, equal_nan=True)

    def _call_seeded(self, seed, function, *args):
        with self._seeded(seed):
            return function(*args)

    @contextlib.contextmanager
    def _seeded(self, seed):
        with torch.random.fork_rng(), pyro.validation_enabled(False):
            torch.manual_seed(seed)
            yield

    def _tensor(self, array):
        return torch.as_tensor(array).to(self._like)


def _stack(rows):
    return tuple(map(torch.stack, zip(*rows, strict=True))) if isinstance(rows[0], tuple) else torch.stack(rows)


def _to_numpy(tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
