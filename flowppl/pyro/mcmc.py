"""Markov chains with a guide of Pyro as their proposal, alternating with the host's NUTS."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.infer import NUTS

from flowppl.checks import check_sizes
from flowppl.inference import diagnostics
from flowppl.inference.chain_draws import ChainsBase
from flowppl.inference.chains import Walker, WideNormal, check_options, walk
from flowppl.inference.inference_data import convert
from flowppl.pyro.diagnostics import draw_weighted, model_plates, outer_obstacle, traces_of
from flowppl.pyro.guides import AutoFlow
from flowppl.pyro.inference_data import make_groups
from flowppl.pyro.predictive import with_deterministic
from flowppl.pyro.steps import record
from flowppl.pyro.target import Target, to_float64
from flowppl.pyro.transforms import FlowTransform, numpy_rng

if TYPE_CHECKING:
    from flowppl.pyro.fit import Fit


@dataclasses.dataclass(frozen=True, repr=False)
class Chains(ChainsBase):
    """Draws of Markov chains that had a guide as their proposal; :meth:`Fit.mcmc` makes it.

    ``print`` shows the verdict, what it rests on, and a table. Its fields and properties are

    ``draws``
        for each latent site, and each deterministic one, a tensor ``(num_chains, num_samples, ...)``.
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
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoDiagonalNormal
        >>> from flowppl.pyro import fit
        >>> def model():
        ...     pyro.sample("z", dist.StudentT(5.0, 0.0, 1.0))
        >>> guide = AutoDiagonalNormal(model)
        >>> chains = fit(model, guide=guide, num_steps=300, progress=False).mcmc(500, progress=False)
        >>> chains.get_samples()["z"].shape, chains.get_samples(group_by_chain=True)["z"].shape
        (torch.Size([2000]), torch.Size([4, 500]))
    """

    def get_samples(self, group_by_chain: bool = False) -> dict[str, torch.Tensor]:
        """The draws, as of the host's ``MCMC``.

        Args:
            group_by_chain: whether chains have an axis of their own.

        Returns:
            For each latent site, and each deterministic one, a tensor ``(num_chains * num_samples, ...)``, the chains
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
    ) -> Any:
        """The draws, what they say of the data, and the data, as ArviZ takes them: see :meth:`Fit.to_arviz`.

        Args:
            log_likelihood: whether there is such a group; ``None``: if the guide draws all latents.
            posterior_predictive: the same.
            observed_data: the same.
            coords: labels of the members along axes, by their names.
            dims: names of the axes of sites, without those of chains and draws, where plates do not name them.
            chunk_size: how many draws are computed at a time.

        Returns:
            An ``arviz.InferenceData`` with the chains; from ArviZ 1.0 on an ``xarray.DataTree``.

        Raises:
            ValueError: for a group that there cannot be, or ``dims`` that do not fit.
            ImportError: without arviz; install ``flowppl[arviz]``.
        """
        check_sizes("to_arviz", chunk_size=chunk_size)
        fit = self.fit
        groups, sites = make_groups(
            fit._own_model,
            self.get_samples(),
            *fit.arguments,
            chunk_size=chunk_size,
            observed_data=observed_data,
            log_likelihood=log_likelihood,
            posterior_predictive=posterior_predictive,
        )
        return convert(groups, sites, coords, dims, self.num_chains)


def run_chains(
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
    model = fit._own_model
    diagnostics.check_whole(model_plates(model, fit.guide, args, kwargs))
    kind: Any = _InSpace if isinstance(fit.guide, AutoFlow) else _OfSites
    walker = kind(model, fit.guide, args, kwargs, chunk_size)
    rng = numpy_rng()
    found = walk(walker, num_samples, num_chains, num_warmup, num_proposals, nuts, rng, progress)
    flat = {name: value.reshape(-1, *value.shape[2:]) for name, value in found.points.items()}
    latents = walker.sites(flat)
    draws = with_deterministic(model, latents, traces_of(model, fit.guide, args, kwargs)[0], args, kwargs)
    chains = {name: value.reshape(num_chains, num_samples, *value.shape[1:]) for name, value in draws.items()}
    return Chains(chains, tuple(latents), found, fit)


class _OfSites(Walker):
    """Draws of any guide; its points are the values of the latent sites."""

    can_run_nuts = False

    def __init__(self, model, guide, args, kwargs, chunk_size):
        self._known, self._num = (model, guide, args, kwargs), chunk_size
        self._alone = bool(outer_obstacle(*self._known))
        self._like: dict[str, torch.Tensor] = {}  # a draw of each site, for its dtype and its device

    def propose(self):
        log_weights, draws = draw_weighted(*self._known, self._num, self._num, keep=True, alone=self._alone)
        self._like = {name: value[0] for name, value in draws.items()}
        return {name: value.numpy(force=True) for name, value in draws.items()}, to_float64(log_weights)

    def sites(self, points):
        return {name: torch.as_tensor(value).to(self._like[name]) for name, value in points.items()}


class _InSpace(Walker):
    """Draws of an ``AutoFlow``, and NUTS; its points are those of the space of the guide's base."""

    can_run_nuts = True

    def __init__(self, model, guide, args, kwargs, chunk_size):
        self._guide, self._num = guide, chunk_size
        self._proposal: Any
        self._chart, self._proposal = self._find_space(guide)
        self.can_widen = len(guide._parts_of_flow()) == 1
        self._like = self._draw(1)[0]
        self._target = Target(guide, args, kwargs, self._like, model)

    @torch.no_grad()
    def _find_space(self, guide):
        """The map from the space to the vector of latents, and the distribution of the guide's draws in the space."""
        if len(guide._parts_of_flow()) == 1:
            return guide.get_transform(), guide.get_base_dist()
        posterior = guide.get_posterior()
        draws = posterior.sample((max(1000, 10 * guide.latent_dim),))
        scale = torch.linalg.cholesky(torch.cov(draws.T).reshape(guide.latent_dim, -1))
        chart = dist.transforms.LowerCholeskyAffine(draws.mean(0), scale)
        return chart, dist.TransformedDistribution(posterior, [chart.inv])

    def widen(self):
        self._proposal, self._rng = WideNormal(len(self._like)), numpy_rng()

    @torch.no_grad()
    def _draw(self, num):
        if isinstance(self._proposal, WideNormal):
            return self._tensor(self._proposal.sample(num, self._rng))
        return self._proposal.sample((num,))

    def _log_density(self, x):
        """The log densities of the model in the space, at several points."""
        if isinstance(self._chart, FlowTransform):
            z, log_det = self._chart.forward_and_log_det(x)
        else:
            z = self._chart(x)
            log_det = self._chart.log_abs_det_jacobian(x, z)
        return self._target.batched(z) + log_det

    @torch.no_grad()
    def propose(self):
        x = self._draw(self._num)
        return {"x": x.numpy(force=True)}, to_float64(self._log_density(x) - self._proposal.log_prob(x))

    def start(self, points, num_warmup):
        x = self._tensor(points["x"])

        def value_and_slope(x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                value = self._log_density(x[None])[0] + 0 * x.sum()
                return value.detach(), torch.autograd.grad(value, x)[0]

        may_record = self._target.can_be_mapped and not self._target.is_random()
        potential = _potential(record(value_and_slope, (x[0],)) if may_record else value_and_slope)
        self._kernels = []
        for start in x:
            kernel = NUTS(potential_fn=potential)
            kernel.initial_params = {"x": start}
            kernel.setup(num_warmup)
            self._kernels.append(kernel)

    def move(self, points):
        moved = []
        for kernel, x in zip(self._kernels, self._tensor(points["x"]), strict=True):
            kernel.clear_cache()  # the guide may have taken the chain elsewhere
            moved.append(kernel.sample({"x": x})["x"])
        x = torch.stack(moved)
        with torch.no_grad():
            log_weights = self._log_density(x) - self._proposal.log_prob(x)
        return {"x": x.numpy(force=True)}, to_float64(log_weights)

    @torch.no_grad()
    def sites(self, points):
        parts = self._tensor(points["x"]).split(self._num)
        values = [self._guide._constrain(self._chart(part)) for part in parts]
        return {name: torch.cat([each[name] for each in values]) for name in values[0]}

    def _tensor(self, array):
        return torch.as_tensor(array).to(self._like)


def _potential(value_and_slope):
    """Minus a log density as the host's kernels take it, with the slope that comes with its value."""

    class Potential(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            value, slope = value_and_slope(x)
            ctx.save_for_backward(slope)
            return -value

        @staticmethod
        def backward(ctx, gradient):
            return -gradient * ctx.saved_tensors[0]

    return lambda values: Potential.apply(values["x"])
