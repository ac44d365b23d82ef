"""The log density of a NumPyro model on the unconstrained space of a guide."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.distributions import biject_to

from flowppl.inference.starts import NUM_TRIALS
from flowppl.numpyro._host import jit
from flowppl.numpyro.enumeration import log_joint, nesting_of_sums
from flowppl.numpyro.transforms import as_key, default_dtype, seeds

_shared: contextvars.ContextVar[dict[Any, Any] | None] = contextvars.ContextVar("shared", default=None)


@contextlib.contextmanager
def shared_programs(programs: dict[Any, Any]) -> Iterator[None]:
    """In here fits of one model, whose first argument is a dict of data, compile once for data of one shape.

    Args:
        programs: where they are kept; empty at first.
    """
    token = _shared.set(programs)
    try:
        yield
    finally:
        _shared.reset(token)


class Target:
    """The log density of a model, as a function of the vector that an ``AutoFlow`` guide draws.

    Discrete sites marked with ``infer={"enumerate": "parallel"}`` are summed out.

    Args:
        guide: a guide that has seen the model.
        args: the model's arguments.
        kwargs: its keyword arguments.
        model: the model, if it is not the one that the guide was made for.
    """

    def __init__(self, guide, args, kwargs, model=None):
        self._guide, self._args, self._kwargs = guide, args, kwargs
        self._model = guide.model if model is None else model
        self._is_checked = False  # by the host, in a first run
        self.eps = float(np.finfo(default_dtype()).eps)

    def log_prob(self, z, key):
        """The log density at one point; the key draws what is random in the model, such as a subsample."""
        # Not the host's potential energy, which scales and masks the log determinant too, as no ELBO does.
        values, log_det = self._guide._constrain_with_log_det(self._guide._unpack_latent(z))
        model = handlers.seed(self._model, key, hide_types=["sample"])
        nesting = self._nesting
        # The host checks each constant by programs of their own: once is enough.
        with handlers.block(), numpyro.validation_enabled(False) if self._is_checked else contextlib.nullcontext():
            self._is_checked = True
            return log_joint(model, self._args, self._kwargs, values, nesting)[0] + log_det

    def program(self, name: Any, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """A compiled function that uses this density, under a name that tells it from others of the same model."""
        programs = _shared.get()
        if programs is None or not self._args or not isinstance(self._args[0], dict):
            return jit(function, **options)
        data, *rest = self._args
        # All but the data are constants of the program: another object is another program.
        constants = jax.tree.leaves((rest, self._kwargs))
        key = name, self._model, tuple(map(id, constants))
        if key not in programs:
            self._nesting  # noqa: B018  # looked up once, outside of programs

            def of_data(data, *args):
                known, self._args = self._args, (data, *self._args[1:])
                try:
                    return function(*args)
                finally:
                    self._args = known

            static = {"static_argnums": options["static_argnums"] + 1} if "static_argnums" in options else {}
            programs[key] = jit(of_data, **options | static), constants
        return partial(programs[key][0], data)

    @cached_property
    def _nesting(self) -> int | None:
        def at_origin(*args, **kwargs):
            values = self._guide._constrain(self._guide._unpack_latent(jnp.zeros(self._guide.latent_dim)))
            return handlers.substitute(handlers.seed(self._model, 0), data=values)(*args, **kwargs)

        return nesting_of_sums(at_origin, self._args, self._kwargs)

    def is_random(self) -> bool:
        """Whether the log density is random: the model draws a subsample, or latents that the guide does not see."""
        return self._is_random

    @cached_property
    def _is_random(self) -> bool:
        # At the origin a hidden factor of a latent does not show, and a hidden coin may fall alike a few times. The
        # points are as many as in a search, which runs the same program.
        points = np.random.default_rng(0).uniform(-2, 2, (NUM_TRIALS, self._guide.latent_dim))
        first = self.log_probs(points)
        return any(not np.array_equal(first, self.log_probs(points, seed), equal_nan=True) for seed in range(1, 8))

    def num_batches(self) -> int:
        """How many batches of the data, of which the model sees one, are as many as all."""
        sizes = [site["args"] for site in self._guide.prototype_trace.values() if site["type"] == "plate"]
        return max((math.ceil(size / seen) for size, seen in sizes if seen), default=1)

    def observed_sites(self) -> list[tuple[str, np.ndarray, float]]:
        """Of each observed site the name, the data, and the log density at the origin of unconstrained space."""
        values = self._guide._constrain(self._guide._unpack_latent(np.zeros(self._guide.latent_dim)))
        with handlers.block(), numpyro.validation_enabled(False):
            model = handlers.substitute(handlers.seed(self._model, 0), data=values)
            trace = handlers.trace(model).get_trace(*self._args, **self._kwargs)
            return [
                (site["name"], np.asarray(site["value"], float), float(site["fn"].log_prob(site["value"]).sum()))
                for site in trace.values()
                if site["type"] == "sample" and site["is_observed"]
            ]

    # What a search calls: NumPy in, NumPy out.

    def log_probs(self, points: np.ndarray, seed: int = 0) -> np.ndarray:
        """The log densities of several points."""
        return np.asarray(self._log_probs(points, _seed(seed)), dtype=np.float64)

    def derivatives(self, point: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The gradient and the Hessian."""
        return _to_numpy(self._derivatives(point, _seed(seed)))

    def value_and_gradient(self, point: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The log density and its gradient."""
        return _to_numpy(self._value_and_gradient(point, _seed(seed)))

    def values_and_gradients(self, points: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """The log densities of several points, and their gradients."""
        return _to_numpy(self._values_and_gradients(points, _seed(seed)))

    def prior_draws(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """Draws of the prior in unconstrained space; where it is improper they are not numbers."""
        supports = {name: site["fn"].support for name, site in self._guide.prototype_trace.items() if "fn" in site}

        def draw(key):
            def undrawable(site):
                if site["type"] != "sample" or site["name"] not in supports:
                    return None
                try:
                    jax.eval_shape(site["fn"].sample, key)
                except NotImplementedError:
                    shape = site["fn"].shape(site["kwargs"]["sample_shape"])
                    return jnp.full(shape, jnp.nan)
                return None

            model = handlers.substitute(handlers.seed(self._model, key), substitute_fn=undrawable)
            with handlers.block(), numpyro.validation_enabled(False):
                trace = handlers.trace(model).get_trace(*self._args, **self._kwargs)
            return self._guide._pack(
                {name: biject_to(support).inv(trace[name]["value"]) for name, support in supports.items()}
            )

        drawn = self.program("prior", jax.vmap(lambda seed: draw(as_key(seed))), once=True)
        return _to_numpy(drawn(seeds(rng, num)))

    def hessian_products(self, point: np.ndarray, vectors: np.ndarray, seed: int = 0) -> np.ndarray:
        """The products of the Hessian and each row of ``vectors``."""
        return _to_numpy(self._hessian_products(point, vectors, _seed(seed)))

    @cached_property
    def _log_probs(self):
        return self.program("log_probs", jax.vmap(self._seeded, (0, None)))

    @cached_property
    def _derivatives(self):
        def both(z, seed):
            return jax.grad(self._seeded)(z, seed), jax.hessian(self._seeded)(z, seed)

        return self.program("derivatives", both)

    @cached_property
    def _value_and_gradient(self):
        return self.program("value", jax.value_and_grad(self._seeded))

    @cached_property
    def _values_and_gradients(self):
        return self.program("values", jax.vmap(jax.value_and_grad(self._seeded), (0, None)))

    @cached_property
    def _hessian_products(self):
        def products(z, vectors, seed):
            gradient = jax.grad(self._seeded)
            return jax.vmap(lambda vector: jax.jvp(lambda z: gradient(z, seed), (z,), (vector,))[1])(vectors)

        return self.program("products", products)

    def _seeded(self, z, seed):
        return self.log_prob(z, as_key(seed))


def _seed(seed):
    """The data of a key."""
    return np.array([0, seed], dtype=np.uint32)


def _to_numpy(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, dtype=np.float64), tree)
