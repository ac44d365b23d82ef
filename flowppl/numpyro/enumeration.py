"""The log density of NumPyro models whose discrete sites are summed out, as the host's NUTS has it."""

from __future__ import annotations

import jax
from numpyro import handlers
from numpyro.infer.util import log_density


def is_summed_out(site) -> bool:
    """Whether a site is discrete and marked for enumeration."""
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and site["infer"].get("enumerate") == "parallel"
        and site["fn"].has_enumerate_support
    )


def nesting_of_sums(model, args, kwargs) -> int | None:
    """How many dimensions the plates of a seeded model take, to the left of which sites are to be summed out.

    ``None`` if there are no such sites.

    Raises:
        ValueError: if they stand in a subsample, which the host would scale inside of the sum.
    """
    found: list[int] = []

    def look():
        with handlers.block():
            sites = handlers.trace(model).get_trace(*args, **kwargs).values()
        summed = [site for site in sites if is_summed_out(site)]
        for site in summed:
            if site["scale"] is not None:
                raise ValueError(
                    f"the site {site['name']!r} is to be summed out, but stands in a subsample, which is scaled: pass "
                    "all data, or train with TraceEnum_ELBO"
                )
        frames = [frame for site in sites for frame in site.get("cond_indep_stack", ())]
        if summed:
            found.append(max((-frame.dim for frame in frames), default=0))

    jax.eval_shape(look)
    return found[0] if found else None


def enumerated(model, nesting: int):
    """The model with its marked sites at all their values, as the host's functions with ``enum=True`` need it."""
    return _funsor().enum(model, -nesting - 1)


def log_joint(model, args, kwargs, params, nesting: int | None):
    """The log density of all sites of a seeded model, marked ones summed out, and the trace."""
    if nesting is None:
        return log_density(model, args, kwargs, params)
    return _funsor().log_density(enumerated(model, nesting), args, kwargs, params)


def _funsor():
    try:
        import numpyro.contrib.funsor as contrib
    except ImportError as error:
        raise ImportError(
            "models with sites to be summed out (infer={'enumerate': 'parallel'}) need funsor: pip install funsor"
        ) from error
    return contrib
