"""Fit a guide to a Pyro model in one call."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro import poutine

from flowppl.checks import check_sizes
from flowppl.inference.arguments import (
    check_arguments,
    check_fit,
    check_loss,
    check_roles,
    takes,
    warn_of_no_data,
)
from flowppl.inference.diagnostics import Diagnosis, is_subsampled
from flowppl.inference.fitting import (
    FEW,
    OTHER_ROUNDS,
    check_options,
    choose_rounds,
    time_limit,
    train,
    warn_of_no_search,
    warn_of_slowness,
)
from flowppl.inference.guides import FlowChoice, path_flow, rounds_of
from flowppl.inference.inference_data import convert
from flowppl.inference.latents import check_levels
from flowppl.inference.modes import Modes
from flowppl.inference.outside import look_outside
from flowppl.inference.result import FitBase, warn_of_given
from flowppl.inference.resuming import NO_CHECKPOINT, remembering
from flowppl.inference.starts import search_until
from flowppl.inference.turns import one_at_a_time
from flowppl.pyro._host import tree_leaves
from flowppl.pyro.diagnostics import (
    aside,
    diagnose,
    draw_weighted,
    is_guide,
    plates_and_data,
    resample,
    traces_of,
)
from flowppl.pyro.guides import AutoFlow
from flowppl.pyro.inference_data import make_groups
from flowppl.pyro.local import AutoLocalFlow
from flowppl.pyro.mcmc import Chains, run_chains
from flowppl.pyro.mixture import MixtureOfFlows
from flowppl.pyro.predictive import given_sites, predict, uncondition, with_deterministic
from flowppl.pyro.steps import Optimizer, check_optimizer
from flowppl.pyro.target import check_trainable
from flowppl.pyro.trainers import ElboTrainer, MixtureTrainer, PathTrainer
from flowppl.serialization import absent_model, save
from flowppl.training.checkpoints import in_words
from flowppl.training.fits import FitCheckpoint, describe_arguments, describe_options
from flowppl.training.loop import check_goes_on


@dataclasses.dataclass(frozen=True, repr=False)
class Fit(FitBase):
    """A fitted guide, its parameters and what is known of it; :func:`fit` makes it.

    Its fields and properties are

    ``guide``
        the guide, for ``Predictive(model, guide=result.guide, ...)`` and all else that takes one.
    ``params``
        the parameters of guide and model by name: copies, that later trainings do not change.
    ``losses``
        minus the ELBO's estimate in each step; NaN where a step was skipped, as it was not finite.
    ``num_skipped``
        the number of those.
    ``verdict``
        how far the guide can be trusted: "good", "use with correction", "bulk only", "not judged" or "do not trust", as
        it was judged at the end of the training. :meth:`diagnose` judges it anew, and says why.
    ``elbo``, ``elbo_se``
        the ELBO of the guide, from fresh draws, and its standard error.
    ``k_hat``
        the shape of the tail of the importance weights, see :func:`flowppl.diagnostics.k_hat`: above 0.7, the limit for
        as many draws as it is judged by, the guide misses a part of the posterior. NaN after a fit to batches of the
        data.
    ``checks``
        a :class:`flowppl.diagnostics.Diagnosis` at the start, of the best Gaussian if that took no rounds, and after
        each round, all with what the search for modes says of the guide in the end.
    ``stopped``
        why the training ended: "converged", "rounds", "max_seconds", "callback" or "interrupted".
    ``model``, ``arguments``
        what was fitted: the model, and its arguments as ``(args, kwargs)``.

    and its methods :meth:`sample`, :meth:`resample`, :meth:`mcmc`, :meth:`predict`, :meth:`diagnose`, :meth:`to_arviz`
    and :meth:`save`. All of them use the arguments of the fit.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from flowppl.pyro import fit
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> result = fit(model, torch.arange(5.0), 2 * torch.arange(5.0), num_steps=100)
        >>> result.sample(50)["slope"].shape, result.predict(torch.tensor([6.0, 7.0]), num_samples=50)["y"].shape
        (torch.Size([50]), torch.Size([50, 2]))
    """

    model: Callable[..., Any]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]

    @one_at_a_time
    def sample(self, num_samples: int = 1000) -> dict[str, torch.Tensor]:
        """Draws from the guide.

        Args:
            num_samples: the number of draws.

        Returns:
            For each latent site, and each deterministic one, a tensor of shape ``(num_samples, ...)``.
        """
        check_sizes("sample", num_samples=num_samples)
        args, kwargs = self.arguments
        draws = self._latents(num_samples, args, kwargs)
        if self.model is absent_model or not takes(self.model, args, kwargs):  # loaded from a file without them
            return draws
        model = self._own_model
        return with_deterministic(model, draws, traces_of(model, self.guide, args, kwargs)[0], args, kwargs)

    @one_at_a_time
    def quantiles(self, quantiles: Any, num_samples: int = 10_000) -> dict[str, torch.Tensor]:
        """Quantiles of each latent site, and of each deterministic one, coordinate by coordinate.

        Args:
            quantiles: a list or tensor of numbers between 0 and 1.
            num_samples: the number of draws, those of :meth:`sample`, that they are taken from.

        Returns:
            For each site a tensor with a leading axis for the quantiles, followed by the shape of the site.
        """
        check_sizes("quantiles", num_samples=num_samples)
        levels, found = check_levels(quantiles).tolist(), {}
        for name, value in self.sample(num_samples).items():
            value = value if value.is_floating_point() else value.double()
            found[name] = torch.quantile(value, value.new_tensor(levels), dim=0)
        return found

    @one_at_a_time
    def resample(
        self, num_samples: int = 1000, *, num_proposals: int | None = None, chunk_size: int = 1000
    ) -> dict[str, torch.Tensor]:
        """Draws corrected by Pareto-smoothed importance resampling: see :func:`flowppl.pyro.resample`.

        Args:
            num_samples: the number of corrected draws.
            num_proposals: the number of draws to choose them from; ``None`` is ten times as many.
            chunk_size: how many are computed at a time.

        Returns:
            For each latent site, and each deterministic one, a tensor of shape ``(num_samples, ...)``.

        Warns:
            RuntimeWarning: if the weights are too uneven for a correction, or a search found modes that are not in the
                guide, which no weights bring back.
        """
        self.warn_of_missing_modes()
        args, kwargs = self.arguments
        known: Any = partial(resample, self._own_model, self.guide, *args, **kwargs)
        return known(num_samples=num_samples, num_proposals=num_proposals, chunk_size=chunk_size)

    @one_at_a_time
    def mcmc(
        self,
        num_samples: int = 1000,
        *,
        num_chains: int = 4,
        num_warmup: int | None = None,
        num_proposals: int | None = None,
        nuts: bool | None = None,
        chunk_size: int = 1000,
        progress: bool | None = None,
    ) -> Chains:
        """Draws of the posterior itself: Markov chains whose proposals come from the guide.

        A chain at z takes a draw z' of the guide q and goes there with probability min(1, w(z') / w(z)), where
        w(z) = p(x, z) / q(z); else it stays. That leaves the posterior as it is, however far the guide is from it. If
        the weights w are uneven, so that chains would stay for long, a transition of the host's NUTS in the space of
        the guide's base follows the proposals for each draw, and where k-hat is above 0.5 a quarter of the proposals
        comes from a wider guide. See :mod:`flowppl.inference.chains`.

        Args:
            num_samples: the number of draws that each chain keeps.
            num_chains: how many chains.
            num_warmup: how many draws are thrown away before, in which NUTS finds its step size and its mass matrix;
                ``None`` is 300.
            num_proposals: the guide's proposals for each draw; ``None``: so many that at most a tenth of the draws is
                what the draw before was, and no more than 50, or 8 beside NUTS.
            nuts: whether to use NUTS, which needs an :class:`AutoFlow`; ``None``: where k-hat is above 0.5, more than 8
                proposals would be needed for a draw, or less than 30% of the draws of chains without it are effective.
            chunk_size: how many draws of the guide are computed at a time.
            progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.

        Returns:
            A :class:`Chains`: ``print`` it, or call its ``get_samples()``, ``summary()`` or ``to_arviz()``.

        Raises:
            TypeError: if the model does not take the arguments of the fit.
            ValueError: for an option that cannot be meant, or if no draw of the guide has a finite weight, the guide
                leaves out a latent site of the model, or the model subsamples its data.

        References:
            Tierney: Markov Chains for Exploring Posterior Distributions, 1994. Parno, Marzouk: Transport Map
            Accelerated Markov Chain Monte Carlo, 2018, arXiv 1412.5492. Hoffman et al.: NeuTra-lizing Bad Geometry in
            Hamiltonian Monte Carlo Using Neural Transport, 2019, arXiv 1903.03704. Gabrié, Rotskoff, Vanden-Eijnden:
            Adaptive Monte Carlo Augmented with Normalizing Flows, 2022, arXiv 2105.12603.

        Example:
            >>> import torch, pyro, pyro.distributions as dist
            >>> from flowppl.pyro import fit
            >>> def model(y):
            ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
            ...     with pyro.plate("data", len(y)):
            ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
            >>> chains = fit(model, torch.ones(10), progress=False).mcmc(progress=False)
            >>> chains.verdict, chains.get_samples()["mu"].shape
            ('good', torch.Size([4000]))
        """
        check_arguments("mcmc", self.model, *self.arguments, Fit.mcmc)
        return run_chains(
            self,
            num_samples,
            num_chains=num_chains,
            num_warmup=num_warmup,
            num_proposals=num_proposals,
            nuts=nuts,
            chunk_size=chunk_size,
            progress=progress,
        )

    @one_at_a_time
    def predict(self, *args: Any, num_samples: int = 1000, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Draws from the posterior predictive: of all sites that are not latents of the guide.

        Args:
            args: new arguments of the model, as in ``result.predict(x_new)`` for ``model(x, y=None)``: leave out what
                is to be drawn, or it is returned as it was given, with a warning if that is all. Without any, those of
                the fit are used, and all observed sites are drawn anew.
            num_samples: the number of draws.
            kwargs: new keyword arguments of the model.

        Returns:
            For each site, deterministic ones too, a tensor of shape ``(num_samples, ...)``. The latents of the guide
            are drawn as by :meth:`sample`, for the arguments of the fit; only an :class:`AutoLocalFlow` draws the local
            latents of what is in the new ones.

        Raises:
            TypeError: if the model does not take these arguments.
        """
        check_sizes("predict", num_samples=num_samples)
        old_args, old_kwargs = self.arguments
        model = self._own_model
        is_new = bool(args or kwargs)
        if is_new:
            check_arguments("predict", self.model, args, kwargs, Fit.predict)
        else:
            args, kwargs, model = old_args, old_kwargs, uncondition()(model)
        seen = (args, kwargs) if isinstance(self.guide, AutoLocalFlow) else (old_args, old_kwargs)
        draws = self._latents(num_samples, *seen)
        if is_new:
            warn_of_given(given_sites(model, draws, args, kwargs))
        return predict(model, draws, args, kwargs)

    @one_at_a_time
    def diagnose(
        self,
        num_samples: int = 10_000,
        *,
        num_batches: int = 4,
        chunk_size: int = 1000,
        reference: Mapping[str, Any] | None = None,
        search: bool | None = None,
    ) -> Diagnosis:
        """Whether the guide can be trusted, from fresh draws: see :func:`flowppl.pyro.diagnose`.

        Args:
            num_samples: the number of draws.
            num_batches: the number of batches over which to take the median of k-hat.
            chunk_size: how many draws are computed at a time.
            reference: reference draws such as ``mcmc.get_samples()``: for each site an array ``(n, ...)``.
            search: whether to look for what the guide does not draw, anew; ``None`` takes what the fit found, and looks
                if it did not.

        Returns:
            A :class:`flowppl.diagnostics.Diagnosis`; ``print`` it.
        """
        args, kwargs = self.arguments
        known: Any = partial(diagnose, self._own_model, self.guide, *args, **kwargs)
        options: dict[str, Any] = {"num_batches": num_batches, "chunk_size": chunk_size, "reference": reference}
        seen = self.history.check.search if search is None else None  # what is known of other modes
        look = seen is None if search is None else search
        check = known(num_samples=num_samples, search=look, **options)
        return check if seen is None else dataclasses.replace(check, search=seen)

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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted guide to a file: see :func:`flowppl.save`."""
        save(path, self)

    def _latents(self, num_samples, args, kwargs):
        if not hasattr(self.guide, "sample_posterior"):
            return draw_weighted(self._own_model, self.guide, args, kwargs, num_samples, num_samples, keep=True)[1]
        return self.guide.sample_posterior(*args, sample_shape=(num_samples,), **kwargs)

    @property
    def _own_model(self):
        """The model with the parameters of this fit, whatever the host's store has by now."""
        own = {name: self.params[name] for name in _parameters_of(self.model, self.guide, *self.arguments)}
        return poutine.substitute(self.model, data=own) if own else self.model


@one_at_a_time
def fit(
    model: Callable[..., Any],
    *args: Any,
    guide: Callable[..., Any] | None = None,
    flow: FlowChoice | None = None,
    num_modes: int | str | None = None,
    loss: Any = None,
    num_steps: int | None = None,
    num_particles: int | None = None,
    learning_rate: float | None = None,
    optimizer: Optimizer | None = None,
    clip_norm: float | None = None,
    num_restarts: int = 1,
    max_seconds: float | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callable[[int, float], object] | None = None,
    progress: bool | None = None,
    **kwargs: Any,
) -> Fit:
    """Fit a guide to a model, and say how far it can be trusted.

    With no more than a model and its arguments this fits an :class:`AutoFlow` from a searched start, in rounds, until
    its importance weights say that it is good or the last round ends: see :mod:`flowppl.inference.fitting`. Such a
    guide is trained on the log density of the model itself, along the path of its draws, at the scale of the posterior.
    Any other guide, or any guide of a model with parameters of its own, is trained by Pyro's means, by
    :class:`PathELBO` unless ``loss`` is given.

    Discrete sites marked with ``infer={"enumerate": "parallel"}`` are summed out, as by NUTS;
    ``pyro.infer.infer_discrete`` draws them afterwards, given the others.

    Pyro has one stack of handlers for all threads: a thread that calls this waits until another has ended such a call.

    Args:
        model: the model.
        args: its arguments; so are further keyword arguments.
        guide: the guide; ``None`` is an :class:`AutoFlow`, with a flow of wider bounds than its default. It must draw
            all latents of the model, so discrete ones have to be summed out. One that is trained already goes on from
            there.
        flow: the flow of that :class:`AutoFlow`, such as ``"iaf"`` or ``fp.nsf``: whatever :class:`AutoFlow` takes. Not
            beside ``guide``.
        num_modes: how many modes of the posterior that :class:`AutoFlow` holds. ``None`` and ``"auto"`` mean all that a
            search finds, 1 the one that the start is in, a larger number so many at the most, the heaviest. The verdict
            speaks of all that were found, whether the guide holds them or not. Not beside ``guide``.
        loss: an objective of Pyro for ``SVI``, such as ``Trace_ELBO()``; its number of particles is its own.
        num_steps: the number of steps, rounded up to hundreds, in one round; ``None`` means rounds of 500 to 12,000,
            as many as are needed. An ``AutoFlow`` of more than 16 latents, or of several modes, has rounds of its
            affine layers before, of 400 steps each, on which this and the next three options have no effect.
        num_particles: draws for each step; ``None`` means 64 (16 for guides trained by Pyro's means). An
            ``AutoFlow`` of several modes has 16 or more for each.
        learning_rate: that at the start of a round; it comes down by a cosine. ``None`` means 1e-2 to 1e-3, and 1e-2 to
            1e-3 for guides trained by Pyro's means.
        optimizer: an optimiser in the place of Adam with that learning rate: a class of ``torch.optim``, or a function
            from a list of parameters to a torch optimiser, as ``functools.partial(torch.optim.AdamW, lr=1e-3)``; or a
            function to a pair, ``(optimizer, scheduler)``, with a schedule of ``torch.optim.lr_scheduler``; or an
            optimiser of ``pyro.optim``, also one with a schedule. Its learning rate and its schedule are its own, so
            ``learning_rate`` beside it is an error. It is made once and goes through all rounds; its schedule goes on
            with each step, so give ``num_steps`` with a schedule of a certain length.
        clip_norm: the largest norm of a gradient, before any optimiser sees it; ``None`` for no limit.
        num_restarts: so many guides, each with first weights and a searched start of its own, are trained in the first
            round, one after the other (of an ``AutoFlow`` only); the one of the highest ELBO goes on.
        max_seconds: the time that all of it may take, with the search of the start; what is begun then, a step or a
            judgement, is finished. The learning rate comes down in time. ``None`` means 240, but no limit if
            ``num_steps`` is given; ``math.inf`` is none. What is cut short, ``.stopped == "max_seconds"``, depends on
            the machine.
        checkpoint: a file that is written as soon as there is a start, then every ten seconds or so, and at the end. If
            it is there already, as after a crash, the same call goes on from it: without the search, and to the very
            weights that it would have had without an interruption, on the same machine. (If that is so slow that
            ``max_seconds``, or the few seconds that a judgement has, cut something short, it depends on the load.) Of a
            fit that has ended it gives the result at once; one that a callback or Ctrl-C ended goes on. ``max_seconds``
            counts the seconds of all runs, and may not change: to go on from what it cut short, save the result and
            give ``guide=flowppl.load(path).guide`` to a new call. Random numbers go on from the file, whatever seed is
            set. For the optimisers with names, and models that draw all that is random by their sample sites.
        callback: called as ``callback(step, loss)`` after every hundred steps, those of the affine layers too, with the
            number of steps so far and the mean loss of the last hundred (of the best of the restarts; NaN if all were
            skipped). If it returns True the training ends, and ``.stopped == "callback"``.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.

    Returns:
        A :class:`Fit`.

    Raises:
        TypeError: for what is no model, guide, flow, objective or optimiser, and for arguments that the model does not
            take.
        ValueError: for an option that cannot be meant, a model that the guide cannot serve, or a checkpoint that is not
            whole, or of another model, other data, options or version; it is then as it was.
        OSError: if the checkpoint cannot be written, as on a full disk; what was there before is then as it was.
        RuntimeError: if the model's log density is finite at no start, no step has a finite gradient, or the search of
            the start finds that the posterior is improper or has no mode.

    Warns:
        RuntimeWarning: if more than a twentieth of the steps had to be skipped, as they were not finite, or the
            posterior seems to have a sharp edge.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from flowppl.pyro import fit
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> result = fit(model, torch.ones(10))
        >>> result.sample(100)["mu"].shape, result.k_hat < 0.5
        (torch.Size([100]), True)

        Had the first of these calls been killed, the second would end with the same weights:

        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "fit.checkpoint")
        ...     first = fit(model, torch.ones(10), checkpoint=path)
        ...     again = fit(model, torch.ones(10), checkpoint=path)
        >>> again.elbo == first.elbo
        True
    """
    check_roles("fit", "call fit(model, *args); Pyro takes no key, but pyro.set_rng_seed(0)", is_guide, model=model)
    check_fit(guide, flow, num_modes, args, is_guide)
    check_arguments("fit", model, args, kwargs, fit)
    check_loss(loss, "loss", "loss_and_grads")
    check_options(num_steps, num_particles, learning_rate, clip_norm, num_restarts, max_seconds, callback)
    check_trainable((args, kwargs))
    optimizer = "adam" if optimizer is None else optimizer
    check_optimizer("fit", optimizer, learning_rate)
    check_goes_on("fit", checkpoint, optimizer)
    kept = NO_CHECKPOINT
    if checkpoint is not None:
        options = describe_options(
            flow=flow if isinstance(flow, str) else None,
            num_modes=num_modes,
            loss=None if loss is None else type(loss).__name__,
            num_steps=num_steps,
            num_particles=num_particles,
            learning_rate=learning_rate,
            optimizer=optimizer,
            clip_norm=clip_norm,
            num_restarts=num_restarts,
            max_seconds=max_seconds,
            backend="pyro",
        )
        kept = FitCheckpoint(checkpoint, options | describe_arguments(args, kwargs, tree_leaves))
    end = time.monotonic() + time_limit(max_seconds, num_steps) - kept.seconds
    if guide is None:
        choice = path_flow if flow is None else flow
        guide = AutoFlow(model, choice, num_modes="auto" if num_modes is None else num_modes)
    trainer: Any
    modes: Modes | None = None
    shared = (args, kwargs, num_restarts, optimizer, math.inf if clip_norm is None else float(clip_norm))
    with search_until(end), remembering(kept.searches):
        target = guide._set_up(args, kwargs) if isinstance(guide, AutoFlow) else None
        plates, has_data = plates_and_data(model, guide, args, kwargs)
        if isinstance(guide, AutoFlow) and loss is None and not _parameters_of(model, guide, args, kwargs):
            kind = MixtureTrainer if isinstance(guide.flow, MixtureOfFlows) else PathTrainer
            trainer = kind(guide, model, *shared, target if model is guide.model else None)
            modes = guide._all_modes(trainer.target, target is not None)
            default = rounds_of(guide.flow_choice, guide.latent_dim)
        else:
            trainer = ElboTrainer(model, guide, loss, num_particles, *shared)
            default = OTHER_ROUNDS
    trainer.is_subsampled = is_subsampled(plates)
    if not has_data:
        warn_of_no_data(model, args, kwargs)
    if checkpoint is not None:
        kept.describe(trainer, _described(guide))
    rounds = choose_rounds(default, num_steps, num_particles, learning_rate)
    if trainer.obstacle:
        warn_of_slowness(trainer.obstacle)
        rounds = tuple(dataclasses.replace(each, num_particles=num_particles or FEW) for each in rounds)
    with torch.enable_grad():
        history = train(trainer, rounds, end - time.monotonic(), progress, callback, kept)
    params = trainer.parameters()
    if modes is None and isinstance(trainer, PathTrainer):
        warn_of_no_search(num_modes)
    if modes is not None and history.check.search is None:
        # A model that runs draw by draw would take seconds for it.
        outside_until = end if trainer.obstacle else math.inf
        check = look_outside(history.check, modes, trainer.density(), trainer.target, outside_until)
        history = history.told(check)
    kept.finish(trainer, history)
    return Fit(guide, params, history, model, (args, kwargs))


def _described(guide) -> dict[str, Any]:
    """A guide as a checkpoint tells it."""
    if not isinstance(guide, AutoFlow):
        return {"guide": type(guide).__name__}
    latents = {name: list(shape) for name, shape in guide._unconstrained_shapes.items()}
    return {"guide": "AutoFlow", "latents": latents, "flow of the guide": in_words(guide.flow.bijection)}


def _parameters_of(model, guide, args, kwargs) -> list[str]:
    """The names of the model's own parameters."""
    with aside():
        replayed = poutine.replay(model, poutine.trace(guide).get_trace(*args, **kwargs))
        with poutine.trace(param_only=True) as capture:
            replayed(*args, **kwargs)
    return list(capture.trace.nodes)
