"""Simulation-based calibration of fits to a Pyro model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pyro
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from flowppl.inference import diagnostics
from flowppl.inference.arguments import check_arguments, check_roles
from flowppl.inference.calibration import Calibration
from flowppl.inference.simulation import (
    Simulation,
    Sites,
    calibrate,
    check_options,
    choose_data,
    draws_or_says_so,
)
from flowppl.inference.turns import one_at_a_time
from flowppl.pyro.diagnostics import aside, is_guide, plates_of
from flowppl.pyro.enumeration import is_summed_out, trace_of
from flowppl.pyro.fit import fit as default_fit
from flowppl.pyro.predictive import uncondition
from flowppl.pyro.transforms import numpy_rng, to_numpy


@one_at_a_time
def sbc(
    model: Callable[..., Any],
    *args: Any,
    num_simulations: int = 100,
    num_draws: int = 99,
    fit: Callable[..., Any] | None = None,
    resample: bool = False,
    observed: str | Iterable[str] | None = None,
    progress: bool | None = None,
    **kwargs: Any,
) -> Calibration:
    r"""Simulation-based calibration: whether guides fitted to data of the model itself are right about what made them.

    Each simulation draws parameters and data from the model, fits a guide to these data, and ranks each parameter among
    draws of the guide. If the guides are the posteriors, all ranks are equally probable; otherwise their histogram
    shows what is wrong: see :class:`flowppl.diagnostics.Calibration`, and :func:`flowppl.plotting.ranks` for pictures.

    Each simulation costs a fit, which trains for as long as the data need. It begins with an empty parameter store, and
    that of the caller is as it was in the end.

    Args:
        model: the model. It must be able to make its data: with proper priors, no factors, no parameters of its own.
        args: its arguments, with data in the places of the observed ones, of which the shapes alone matter; so are
            further keyword arguments.
        num_simulations: the number of simulations, and of fits.
        num_draws: the number of draws among which each parameter is ranked, at least 19.
        fit: a function that is called as ``fit(model, data, *args, **kwargs)``, with a model whose first argument is a
            dict of the simulated data, the same function each time, and the arguments as they are here. It returns an
            object with a method ``sample(num_draws)``, such as that of :func:`fit`, or a dict of ``num_draws`` draws or
            more of each latent, of which as many are taken, evenly spread. ``None`` is :func:`fit` with its defaults;
            for other options give ``functools.partial(fit, num_steps=500)``.
        resample: whether to take the draws from the method ``resample``, corrected by their importance weights. Where
            few of the draws are effective some appear twice, and ranks are less even for it.
        observed: names of the sites that are data, if the arguments leave data out; ``None`` means those that the model
            observes.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.

    Returns:
        A :class:`flowppl.diagnostics.Calibration`; ``print`` it. If it is interrupted, that of the simulations so far.

    Raises:
        TypeError: for what is no model or fit, arguments that the model does not take, or what ``fit`` returns if there
            are no draws in it.
        ValueError: if the model cannot make its data, or the draws lack a latent.
        RuntimeError: if all of the first fits fail. Of others the errors are in ``.failures``.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman: Validating Bayesian Inference Algorithms with Simulation-Based
        Calibration, 2018, arXiv 1804.06788. Yao, Vehtari, Simpson, Gelman: Yes, but Did It Work?, 2018, arXiv
        1802.02538.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from functools import partial
        >>> from flowppl.pyro import fit, sbc
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> found = sbc(model, torch.zeros(5), num_simulations=2, fit=partial(fit, num_steps=100))
        >>> found.ranks["mu"].shape, found.verdict
        ((2,), 'not judged')
        >>> def exact_fit(model, data, *args):
        ...     y = data["y"]
        ...     return {"mu": y.sum() / (len(y) + 0.25) + torch.randn(99) / (len(y) + 0.25) ** 0.5}
        >>> sbc(model, torch.zeros(5), fit=exact_fit).verdict
        'calibrated'
    """
    check_roles("sbc", "call sbc(model, *args)", is_guide, model=model)
    check_arguments("sbc", model, args, kwargs, sbc)
    check_options(num_simulations, num_draws, fit, resample)
    sites = _look(model, args, kwargs)
    data = choose_data(sites, observed)
    chosen_fit = partial(default_fit, progress=False) if fit is None else fit

    def on_data(data, /, *args, **kwargs):
        return poutine.condition(model, data=data)(*args, **kwargs)

    def simulate(index):
        with aside(), draws_or_says_so():
            nodes = trace_of(uncondition()(model), args, kwargs).nodes
        values = {name: site["value"] for name, site in nodes.items() if site["type"] == "sample"}
        latents = {name: values[name] for name in sites.latents if name not in data}
        return Simulation(latents, {n: values[n] for n in sites.deterministic}, {n: values[n] for n in data})

    def fitted(index, simulation):
        pyro.clear_param_store()
        return chosen_fit(on_data, simulation.data, *args, **kwargs)

    with pyro.get_param_store().scope():  # which keeps that of the caller
        return calibrate(
            simulate,
            fitted,
            to_numpy,
            numpy_rng(),
            num_simulations=num_simulations,
            num_draws=num_draws,
            resample=resample,
            progress=progress,
        )


def _look(model, args, kwargs) -> Sites:
    """The sites of a model; sites to be summed out are none that a guide has to find."""
    with aside(), draws_or_says_so():
        trace = trace_of(model, args, kwargs)
    diagnostics.check_whole(plates_of(trace))
    drawn = [s for s in trace.nodes.values() if s["type"] == "sample" and not site_is_subsample(s)]
    stated = [site for site in drawn if site["infer"].get("_deterministic")]
    observed = [site for site in drawn if site["is_observed"] and not site["infer"].get("_deterministic")]
    return Sites(
        latents=[s["name"] for s in drawn if not s["is_observed"] and not is_summed_out(s)],
        deterministic=[s["name"] for s in stated],
        observed=[s["name"] for s in observed],
        params=[s["name"] for s in trace.nodes.values() if s["type"] == "param"],
        factors=[s["name"] for s in observed if tuple(s["fn"].event_shape) == (0,)],
    )
