"""Markov chains with a guide of NumPyro as their proposal, alternating with the host's NUTS."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import NUTS

from flowppl.checks import check_sizes
from flowppl.inference import diagnostics
from flowppl.inference.chain_draws import ChainsBase
from flowppl.inference.chains import Walker, WideNormal, check_options, walk
from flowppl.inference.inference_data import convert
from flowppl.numpyro.diagnostics import model_plates, weighted_drawer
from flowppl.numpyro.guides import AutoFlow
from flowppl.numpyro.inference_data import make_groups
from flowppl.numpyro.predictive import with_deterministic
from flowppl.numpyro.target import Target
from flowppl.numpyro.transforms import default_dtype, numpy_rng

if TYPE_CHECKING:
    from flowppl.numpyro.fit import Fit


@dataclasses.dataclass(frozen=True, repr=False)
class Chains(ChainsBase):
    """Draws of Markov chains that had a guide as their proposal; :meth:`Fit.mcmc` makes it.

    ``print`` shows the verdict, what it rests on, and a table. Its fields and properties are

    ``draws``
        for each latent site, and each deterministic one, an array ``(num_chains, num_samples, ...)``.
    ``r_hat``, ``ess``
        the largest R-hat and the smallest effective sample size (of the bulk and of the tails) of a coordinate.
    ``acceptance``, ``num_proposals``
        the share of the guide's proposals that was accepted, and their number for each draw.
    ``nuts``
        whether a transition of NUTS followed these proposals for each draw.
    ``verdict``, ``advice``
        whether the draws can be used, and what to do next.
    ``fit``
        the fit.

    ===================== ===========================================================================================
    ``verdict``           when
    ===================== ===========================================================================================
    ``"good"``            R-hat is below 1.01, 100 draws of each chain are effective, and all else is in order
    ``"too few draws"``   R-hat is below 1.05
    ``"bulk only"``       as for good, but without NUTS, and k-hat is too large, so that tails are met far too seldom
    ``"do not trust"``    otherwise, and whenever the search of the fit found modes that the guide does not have
    ===================== ===========================================================================================

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer.autoguide import AutoDiagonalNormal
        >>> from flowppl.numpyro import fit
        >>> def model():
        ...     numpyro.sample("z", dist.StudentT(5.0, 0.0, 1.0))
        >>> guide = AutoDiagonalNormal(model)
        >>> chains = fit(jax.random.key(0), model, guide=guide, num_steps=300, progress=False).mcmc(500, progress=False)
        >>> chains.get_samples()["z"].shape, chains.get_samples(group_by_chain=True)["z"].shape
        ((2000,), (4, 500))
    """

    def get_samples(self, group_by_chain: bool = False) -> dict[str, jax.Array]:
        """The draws, as of the host's ``MCMC``.

        Args:
            group_by_chain: whether chains have an axis of their own.

        Returns:
            For each latent site, and each deterministic one, an array ``(num_chains * num_samples, ...)``, the chains
            one after the other, or ``(num_chains, num_samples, ...)``.
        """
        return self._samples(group_by_chain)

    def to_arviz(
        self,
        *,
        log_likelihood: bool | None = None,
        posterior_predictive: bool | None = None,
        observed_data: bool = True,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
        chunk_size: int = 1000,
        rng_key: jax.Array | None = None,
    ) -> Any:
        """The draws, what they say of the data, and the data, as ArviZ takes them: see :meth:`Fit.to_arviz`.

        Args:
            log_likelihood: whether there is such a group; ``None``: if the guide draws all latents.
            posterior_predictive: the same.
            observed_data: the same.
            coords: labels of the members along axes, by their names.
            dims: names of the axes of sites, without those of chains and draws, where plates do not name them.
            chunk_size: how many draws are computed at a time.
            rng_key: the key of the predictions; without one they are always the same.

        Returns:
            An ``arviz.InferenceData`` with the chains; from ArviZ 1.0 on an ``xarray.DataTree``.

        Raises:
            ValueError: for a group that there cannot be, or ``dims`` that do not fit.
            ImportError: without arviz; install ``flowppl[arviz]``.
        """
        check_sizes("to_arviz", chunk_size=chunk_size)
        fit = self.fit
        groups, sites = make_groups(
            fit._key(3, rng_key),
            handlers.substitute(fit.model, data=fit.params),
            self.get_samples(),
            *fit.arguments,
            chunk_size=chunk_size,
            observed_data=observed_data,
            log_likelihood=log_likelihood,
            posterior_predictive=posterior_predictive,
        )
        return convert(groups, sites, coords, dims, self.num_chains)


def run_chains(
    rng_key: jax.Array,
    fit: Fit,
    num_samples: int,
    *,
    num_chains: int,
    num_warmup: int | None,
    num_proposals: int | None,
    nuts: bool | None,
    chunk_size: int,
    progress: bool | None,
) -> Chains:
    """The chains of a fit, see :meth:`Fit.mcmc`."""
    check_options(num_samples, num_chains, num_warmup, num_proposals, nuts, chunk_size)
    args, kwargs = fit.arguments
    diagnostics.check_whole(model_plates(fit.model, fit.guide, fit.params, args, kwargs))
    walker_key, choice_key = jax.random.split(rng_key)
    kind: Any = _InSpace if isinstance(fit.guide, AutoFlow) else _OfSites
    walker = kind(walker_key, fit, chunk_size)
    rng = numpy_rng(choice_key)
    found = walk(walker, num_samples, num_chains, num_warmup, num_proposals, nuts, rng, progress)
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in found.points.items()}
    latents = walker.sites(flat)
    draws = with_deterministic(fit.model, fit.params, latents, args, kwargs)
    chains = {name: value.reshape(num_chains, num_samples, *value.shape[1:]) for name, value in draws.items()}
    return Chains(chains, tuple(latents), found, fit)


class _OfSites(Walker):
    """Draws of any guide; its points are the values of the latent sites."""

    can_run_nuts = False

    def __init__(self, key, fit, chunk_size):
        args, kwargs = fit.arguments
        self._key, self._params = key, fit.params
        self._draw = weighted_drawer(fit.model, fit.guide, args, kwargs, chunk_size, chunk_size, keep=True)

    def propose(self):
        self._key, key = jax.random.split(self._key)
        log_weights, draws = self._draw(key, self._params)
        return jax.tree.map(np.asarray, draws), np.asarray(log_weights, dtype=np.float64)

    def sites(self, points):
        return jax.tree.map(jnp.asarray, points)


class _InSpace(Walker):
    """Draws of an ``AutoFlow``, and NUTS; its points are those of the space of the guide's base."""

    can_run_nuts = True

    def __init__(self, key, fit, chunk_size):
        self._key, self._num = key, chunk_size
        self._guide = fit.guide
        model = handlers.substitute(fit.model, data=fit.params)
        args, kwargs = fit.arguments
        self._target = Target(fit.guide, args, kwargs, model)
        self._target._nesting  # noqa: B018  # looked up once, outside of programs
        self._chart, self._proposal = self._find_space(fit.guide, fit.params)
        self.can_widen = len(fit.guide._transforms(fit.params)) == 1
        self._evaluate = jax.jit(self._evaluated)
        self._sample: Any = jax.jit(lambda key: self._proposal.sample(key, (chunk_size,)))

    def _find_space(self, guide, params):
        """The map from the space to the vector of latents, and the distribution of the guide's draws in the space."""
        if len(guide._transforms(params)) == 1:
            return guide.get_transform(params), guide.get_base_dist()
        posterior = guide.get_posterior(params)
        draws = posterior.sample(jax.random.key(0), (max(1000, 10 * guide.latent_dim),))
        scale = jnp.linalg.cholesky(jnp.cov(draws.T).reshape(guide.latent_dim, -1))
        chart = dist.transforms.LowerCholeskyAffine(draws.mean(axis=0), scale)
        return chart, dist.TransformedDistribution(posterior, chart.inv)

    def widen(self):
        self._key, key = jax.random.split(self._key)
        rng, wide = numpy_rng(key), WideNormal(self._guide.latent_dim)
        self._proposal, self._evaluate = wide, jax.jit(lambda x: self._evaluated(x))
        self._sample = lambda _: wide.sample(self._num, rng).astype(default_dtype())

    def _log_density(self, x):
        """The log density of the model in the space, at one point."""
        z, between = self._chart.call_with_intermediates(x)
        return self._target.log_prob(z, jax.random.key(0)) + self._chart.log_abs_det_jacobian(x, z, between)

    def _evaluated(self, x):
        """The log weights of points, and the values of the sites there."""
        sites = jax.vmap(lambda x: self._guide._constrain(self._guide._unpack_latent(self._chart(x))))(x)
        return jax.vmap(self._log_density)(x) - self._proposal.log_prob(x), sites

    def propose(self):
        self._key, key = jax.random.split(self._key)
        x = self._sample(key)
        return {"x": np.asarray(x)}, np.asarray(self._evaluate(x)[0], dtype=np.float64)

    def start(self, points, num_warmup):
        self._key, key = jax.random.split(self._key)
        value_and_grad = jax.vmap(jax.value_and_grad(lambda x: -self._log_density(x)))
        kernel = NUTS(potential_fn=lambda x: -self._log_density(x))
        x = jnp.asarray(points["x"])
        init = jax.jit(lambda keys, x: kernel.init(keys, num_warmup, x, (), {}))
        self._state = init(jax.random.split(key, len(x)), x)

        @jax.jit
        def move(state, x):
            potential, gradient = value_and_grad(x)  # of where the guide has taken the chains
            state = kernel.sample(state._replace(z=x, potential_energy=potential, z_grad=gradient), (), {})
            return state, -state.potential_energy - self._proposal.log_prob(state.z)

        self._move = move

    def move(self, points):
        self._state, log_weights = self._move(self._state, jnp.asarray(points["x"]))
        return {"x": np.asarray(self._state.z)}, np.asarray(log_weights, dtype=np.float64)

    def sites(self, points):
        x = points["x"]
        num = math.ceil(len(x) / self._num) * self._num  # the program is one for so many points
        padded = jnp.asarray(np.resize(x, (num, *x.shape[1:]))).reshape(-1, self._num, *x.shape[1:])
        parts = [self._evaluate(part)[1] for part in padded]
        return jax.tree.map(lambda *values: jnp.concatenate(values)[: len(x)], *parts)
