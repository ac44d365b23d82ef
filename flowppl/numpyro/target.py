"""The log density of a NumPyro model on the unconstrained space of a guide."""

from __future__ import annotations

from functools import cached_property

import jax
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.infer.util import potential_energy

from flowppl.starts import NUM_TRIALS


class Target:
    """The log density of a model, as a function of the vector that an ``AutoFlow`` guide draws.

    Args:
        guide: a guide that has seen the model.
        args: the model's arguments.
        kwargs: its keyword arguments.
    """

    def __init__(self, guide, args, kwargs):
        self._guide, self._args, self._kwargs = guide, args, kwargs

    def log_prob(self, z, key):
        """The log density at one point; the key draws what is random in the model, such as a subsample."""
        model = handlers.seed(self._guide.model, key, hide_types=["sample"])
        with handlers.block():
            return -potential_energy(model, self._args, self._kwargs, self._guide._unpack_latent(z))

    def is_random(self) -> bool:
        """Whether the log density is random: the model draws a subsample, or latents that the guide does not see."""
        points = np.zeros((NUM_TRIALS, self._guide.latent_dim))
        return not np.array_equal(self.log_probs(points, seed=0), self.log_probs(points, seed=1), equal_nan=True)

    def observed_sites(self) -> list[tuple[str, np.ndarray, float]]:
        """Of each observed site the name, the data, and the log density at the origin of unconstrained space."""
        values = self._guide._constrain(self._guide._unpack_latent(np.zeros(self._guide.latent_dim)))
        with handlers.block(), numpyro.validation_enabled(False):
            model = handlers.substitute(handlers.seed(self._guide.model, 0), data=values)
            trace = handlers.trace(model).get_trace(*self._args, **self._kwargs)
            return [
                (site["name"], np.asarray(site["value"], float), float(site["fn"].log_prob(site["value"]).sum()))
                for site in trace.values()
                if site["type"] == "sample" and site["is_observed"]
            ]

    # What a search calls: NumPy in, NumPy out.

    def log_probs(self, points: np.ndarray, seed: int = 0) -> np.ndarray:
        """The log densities of several points."""
        return np.asarray(self._log_probs(points, jax.random.key(seed)), dtype=np.float64)

    def derivatives(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradient and the Hessian."""
        return _to_numpy(self._derivatives(point))

    def value_and_gradient(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log density and its gradient."""
        return _to_numpy(self._value_and_gradient(point))

    def hessian_products(self, point: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """The products of the Hessian and each row of ``vectors``."""
        return _to_numpy(self._hessian_products(point, vectors))

    @cached_property
    def _log_probs(self):
        return jax.jit(jax.vmap(self.log_prob, (0, None)))

    @cached_property
    def _derivatives(self):
        return jax.jit(lambda z: (jax.grad(self._at_rest)(z), jax.hessian(self._at_rest)(z)))

    @cached_property
    def _value_and_gradient(self):
        return jax.jit(jax.value_and_grad(self._at_rest))

    @cached_property
    def _hessian_products(self):
        def products(z, vectors):
            return jax.vmap(lambda vector: jax.jvp(jax.grad(self._at_rest), (z,), (vector,))[1])(vectors)

        return jax.jit(products)

    def _at_rest(self, z):
        return self.log_prob(z, jax.random.key(0))


def _to_numpy(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype=np.float64), tree)
