"""Simulation-based calibration of fits to a NumPyro model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import numpy as np
from numpyro import handlers

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
from flowppl.numpyro.diagnostics import is_guide
from flowppl.numpyro.enumeration import is_summed_out
from flowppl.numpyro.fit import fit as default_fit
from flowppl.numpyro.target import shared_programs
from flowppl.numpyro.transforms import check_key, numpy_rng


@one_at_a_time
def sbc(
    rng_key: jax.Array,
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

    Each simulation costs a fit. ``fit`` of this package compiles its programs once for all of them, unless a posterior
    has several modes, and trains for as long as the data need. So is a function of your own that is compiled with its
    arguments, as in the second example.

    Args:
        rng_key: determines the simulations and the fits.
        model: the model. It must be able to make its data: with proper priors, no factors, no parameters of its own.
            What it observes in a ``scan`` has to be left out of the arguments, and named in ``observed``.
        args: its arguments, with data in the places of the observed ones, of which the shapes alone matter; so are
            further keyword arguments.
        num_simulations: the number of simulations, and of fits.
        num_draws: the number of draws among which each parameter is ranked, at least 19.
        fit: a function that is called as ``fit(rng_key, model, data, *args, **kwargs)``, with a model whose first
            argument is a dict of the simulated data, the same function each time, and the arguments as they are here.
            It returns an object with a method ``sample(num_draws)``, such as that of :func:`fit`, or a dict of
            ``num_draws`` draws or more of each latent, of which as many are taken, evenly spread. ``None`` is
            :func:`fit` with its defaults; for other options give ``functools.partial(fit, num_steps=500)``.
        resample: whether to take the draws from the method ``resample``, corrected by their importance weights. Where
            few of the draws are effective some appear twice, and ranks are less even for it.
        observed: names of the sites that are data, if the arguments leave data out; ``None`` means those that the model
            observes.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.

    Returns:
        A :class:`flowppl.diagnostics.Calibration`; ``print`` it. If it is interrupted, that of the simulations so far.

    Raises:
        TypeError: for what is no key, model or fit, arguments that the model does not take, or what ``fit`` returns if
            there are no draws in it.
        ValueError: if the model cannot make its data, or the draws lack a latent.
        RuntimeError: if all of the first fits fail. Of others the errors are in ``.failures``.

    References:
        Talts, Betancourt, Simpson, Vehtari, Gelman: Validating Bayesian Inference Algorithms with Simulation-Based
        Calibration, 2018, arXiv 1804.06788. Yao, Vehtari, Simpson, Gelman: Yes, but Did It Work?, 2018, arXiv
        1802.02538.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from functools import partial
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from flowppl.numpyro import fit, sbc
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> found = sbc(jax.random.key(0), model, jnp.zeros(5), num_simulations=2, fit=partial(fit, num_steps=100))
        >>> found.ranks["mu"].shape, found.verdict
        ((2,), 'not judged')
        >>> @partial(jax.jit, static_argnums=1)
        ... def my_fit(rng_key, model, *args):
        ...     guide = AutoNormal(model)
        ...     svi = SVI(model, guide, numpyro.optim.Adam(0.05), Trace_ELBO(num_particles=4))
        ...     params = svi.run(rng_key, 500, *args, progress_bar=False).params
        ...     return guide.sample_posterior(rng_key, params, *args, sample_shape=(99,))
        >>> sbc(jax.random.key(0), model, jnp.zeros(5), fit=my_fit).verdict
        'calibrated'
    """
    order = "call sbc(rng_key, model, *args)"
    check_key("sbc", rng_key, advice=order)
    check_roles("sbc", order, is_guide, model=model)
    check_arguments("sbc", model, args, kwargs, sbc)
    check_options(num_simulations, num_draws, fit, resample)
    sites = _look(model, args, kwargs)
    data = choose_data(sites, observed)
    chosen_fit = partial(default_fit, progress=False) if fit is None else fit
    simulate_key, fit_key, rank_key = jax.random.split(rng_key, 3)

    def on_data(data, /, *args, **kwargs):
        return handlers.condition(model, data=data)(*args, **kwargs)

    @jax.jit
    def draw(key):
        trace = handlers.trace(handlers.seed(handlers.uncondition(model), key)).get_trace(*args, **kwargs)
        return {name: site["value"] for name, site in trace.items()}

    def simulate(index):
        with draws_or_says_so():
            values = draw(jax.random.fold_in(simulate_key, index))
        latents = {name: values[name] for name in sites.latents if name not in data}
        return Simulation(latents, {n: values[n] for n in sites.deterministic}, {n: values[n] for n in data})

    programs: dict[Any, Any] = {}

    def fitted(index, simulation):
        with shared_programs(programs):
            return chosen_fit(jax.random.fold_in(fit_key, index), on_data, simulation.data, *args, **kwargs)

    return calibrate(
        simulate,
        fitted,
        np.asarray,
        numpy_rng(rank_key),
        num_simulations=num_simulations,
        num_draws=num_draws,
        resample=resample,
        progress=progress,
    )


def _look(model, args, kwargs) -> Sites:
    """The sites of a model; sites to be summed out are none that a guide has to find."""
    found: list[dict[str, Any]] = []

    def look():
        found.extend(handlers.trace(handlers.seed(model, 0)).get_trace(*args, **kwargs).values())

    with handlers.block(), draws_or_says_so():
        jax.eval_shape(look)
    diagnostics.check_whole((s["name"], len(s["value"]), s["args"][0]) for s in found if s["type"] == "plate")
    drawn = [site for site in found if site["type"] == "sample"]
    # What a scan observes would be drawn anew one by one, each after the old ones.
    if looped := [s["name"] for s in drawn if s["is_observed"] and s.get("_control_flow_done")]:
        raise ValueError(
            f"sbc: the data at {looped} are observed in a loop of numpyro.contrib.control_flow, where they cannot be "
            f"drawn anew; let the model draw them if it is not given any, and pass observed={looped}"
        )
    return Sites(
        latents=[s["name"] for s in drawn if not s["is_observed"] and not is_summed_out(s)],
        deterministic=[s["name"] for s in found if s["type"] == "deterministic"],
        observed=[s["name"] for s in drawn if s["is_observed"]],
        params=[s["name"] for s in found if s["type"] in ("param", "mutable")],
        factors=[s["name"] for s in drawn if s["fn"].event_shape == (0,)],
    )
