"""Which models the guides of both adapters refuse: those whose latents no flow over all of them can serve."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from flowppl._arrays.namespace import Array, namespace


@dataclasses.dataclass(frozen=True)
class Latent:
    """What decides whether a guide can serve an unobserved site of a model.

    ``plates`` holds (name, size, full size) of each plate around the site.
    """

    name: str
    is_discrete: bool
    plates: tuple[tuple[str, int, int], ...]


def check_latents(latents: Iterable[Latent]) -> None:
    """Raise ValueError, saying what to do, unless all latents are continuous, global and at least one."""
    latents = list(latents)
    if not latents:
        raise ValueError(
            "AutoFlow found no latent variables: every sample site of the model is observed, hidden or masked out; "
            "use a guide that does nothing instead, or condition on less. For a model of the other language take fit "
            "and guides from there: flowppl.pyro does not see numpyro.sample, nor flowppl.numpyro pyro.sample"
        )
    discrete = [latent.name for latent in latents if latent.is_discrete]
    if discrete:
        raise ValueError(
            f"AutoFlow covers continuous latents only, but these sites are discrete: {', '.join(discrete)}. "
            "Mark them with infer={'enumerate': 'parallel'}, so that they are summed out, or hide them with "
            "block(model, hide=[...]) and give them a guide of their own in an AutoGuideList"
        )
    for latent in latents:
        for plate, size, full_size in latent.plates:
            if size != full_size:
                raise ValueError(
                    f"site {latent.name!r} is local to the plate {plate!r}, subsampled ({size} of {full_size}), "
                    "so that the guide's coordinates would mean other members in every step. Use "
                    "AutoLocalFlow(model, features), or do not subsample"
                )


def over_events(mask: Array, ndim: int) -> Array:
    """A mask of the members of a site with axes of length 1 for their events, so that it has ``ndim`` axes."""
    return namespace(mask).reshape(mask, (*mask.shape, *(1,) * (ndim - mask.ndim)))


def check_supports(moved: list[str]) -> None:
    """Raise ValueError if the supports of some sites changed between two runs of the model."""
    if moved:
        raise ValueError(
            f"the supports of these sites depend on other latents: {', '.join(moved)}. A guide needs fixed supports: "
            "sample a standardised site, for example Uniform(0, 1), and scale it inside the model"
        )


def check_levels(quantiles: Any) -> np.ndarray:
    """The levels of quantiles as a vector; raise ValueError unless they are numbers between 0 and 1."""
    levels = np.asarray(quantiles, dtype=np.float64)
    if levels.ndim != 1 or not ((levels >= 0) & (levels <= 1)).all():
        raise ValueError(f"quantiles must be a list of numbers between 0 and 1, got {quantiles!r}")
    return levels


def check_model(owner: str, model: Any) -> None:
    """Raise TypeError unless the model is a function."""
    if not callable(model):
        raise TypeError(f"{owner}: model must be a function with sample sites, got {shown(model)}")


def no_transform(site: str, support: Any) -> ValueError:
    """What to raise for a latent whose support the host has no transform to."""
    return ValueError(
        f"site {site!r} has the support {support}, to which the host has no transform from unconstrained space. Sample "
        "a site that can be mapped and make the value from it, as LKJCholesky does for correlations; or observe it"
    )


def outside_support(site: str, distribution: Any, support: Any, value: Any) -> ValueError:
    """What to raise for data that their distribution cannot have."""
    return ValueError(
        f"site {site!r} observes data outside of the support of its {type(distribution).__name__}, which is {support}: "
        f"such as {np.asarray(value).tolist()}. Mend the data, take another distribution, or mask out what is missing"
    )


def no_draws(guide: str, sites: list[str]) -> ValueError:
    """What to raise where a guide of the host would draw its start from improper priors."""
    values = ", ".join(f"{site!r}: ..." for site in sites)
    return ValueError(
        f"{guide} draws its start from the prior, but that of {', '.join(map(repr, sites))} is improper and has no "
        f"draws. Give it a start, as AutoNormal(model, init_loc_fn=init_to_value(values={{{values}}})), or take "
        "AutoFlow, which needs none"
    )


def check_shapes(before: dict[str, tuple[int, ...]], now: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless the latents have the unconstrained shapes that a guide was made for.

    Sites that the guide never had, such as data that are left out to predict them, are no concern of it.
    """
    for name, shape in before.items():
        if name not in now:
            raise ValueError(
                f"site {name!r} was a latent of the model when this guide was made and is none with these arguments. "
                "Make a new guide for another set of latents"
            )
        if now[name] != shape:
            raise ValueError(
                f"the model's latents are not those that this guide was made for: site {name!r} had the unconstrained "
                f"shape {shape} and now has {now[name]}. Make a new guide for data of another size, or use "
                "AutoLocalFlow for latents whose number varies"
            )


def check_masks(changed: Iterable[str]) -> None:
    """Raise ValueError if the masks of some latents are not those that a guide was made for."""
    names = ", ".join(changed)
    if names:
        raise ValueError(
            f"other members than when this guide was made are masked out of the sites {names}; make a new guide for "
            "another mask"
        )


def check_real(values: Iterable[tuple[str, Any]]) -> None:
    """Raise TypeError if the data type of the value of a site, given by its name, is complex."""
    for name, dtype in values:
        if "complex" in str(dtype):
            raise TypeError(
                f"site {name!r} has complex values ({dtype}), and densities are of real numbers: observe the real and "
                "the imaginary part, stacked along a last axis"
            )


def shown(value: Any) -> str:
    """A value in a message: itself if it is short, else its type."""
    return repr(value) if isinstance(value, int | float | str | None) else type(value).__name__
