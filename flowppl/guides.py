"""What the guides of both adapters share: which flow, where it starts, and which models they refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

from flowppl._array import Array, namespace
from flowppl._tree import Tree
from flowppl.bijection import REAL_LINE, Bijection
from flowppl.combine import Chain
from flowppl.linear import ElementwiseAffine, TriangularAffine
from flowppl.recipes import iaf, make_flow

FlowChoice = str | Bijection | Callable[[int], Bijection]

AUTO_FLOW_DOC = """A guide that is a flow over all continuous latents of a model, whatever their supports.

    The latents of all sites are mapped to unconstrained space and strung into one vector z. The guide is

    .. math::
        z = \\mu + \\mathrm{{diag}}(\\sigma)(I + T)\\, f(\\varepsilon), \\qquad \\varepsilon \\sim N(0, I),

    with a flow f inside an affine layer. At the first step f is the identity, T = 0, the location is the point of
    ``init_loc_fn`` and the scale is ``init_scale``: the guide *is* that Gaussian, and training leaves it from there.
    Above 256 dimensions the affine layer has no T.

    Args:
        model: the model.
        flow: ``"auto"``, a name of :func:`flowppl.available_flows`, a recipe or another function from the dimension
            to a bijection, or a bijection of the right dimension. ``"auto"`` is :func:`flowppl.iaf`.
        init_loc_fn: where the guide starts, site by site; ``{loc_default}`` unless given.
        init_scale: the standard deviation it starts with, in unconstrained space.
        create_plates: as for other guides of the host library.{prefix}

    Raises:
        ValueError: when it first sees the model, if that has no latents, discrete ones, ones whose support depends on
            other latents, or ones local to a subsampled plate, or if the flow does not fit the model.

    Example:{example}"""

MAX_TRIANGULAR = 256  # above, the D x D matrix of the outer layer would outweigh the flow
NUM_DRAWS = 10_000  # for medians and quantiles


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
            "AutoFlow found no latent variables: every sample site of the model is observed or hidden; "
            "use a guide that does nothing instead, or condition on less"
        )
    discrete = [latent.name for latent in latents if latent.is_discrete]
    if discrete:
        raise ValueError(
            f"AutoFlow covers continuous latents only, but these sites are discrete: {', '.join(discrete)}. "
            "Hide them from the guide with block(model, hide=[...]) and sum them out by enumeration, or give them "
            "a guide of their own in an AutoGuideList"
        )
    for latent in latents:
        for plate, size, full_size in latent.plates:
            if size != full_size:
                raise ValueError(
                    f"site {latent.name!r} is local to the plate {plate!r}, subsampled ({size} of {full_size}), "
                    "so that the guide's coordinates would mean other members in every step. Hide the site with "
                    f"block(model, hide=[{latent.name!r}]) and give it an amortised guide, or do not subsample"
                )


def check_supports(moved: list[str]) -> None:
    """Raise ValueError if the supports of some sites changed between two runs of the model."""
    if moved:
        raise ValueError(
            f"the supports of these sites depend on other latents: {', '.join(moved)}. A guide needs fixed supports: "
            "sample a standardised site, for example Uniform(0, 1), and scale it inside the model"
        )


def auto_flow(dim: int) -> Bijection:
    """The flow that ``AutoFlow`` uses unless told otherwise."""
    return iaf(dim)


def guide_bijection(flow: FlowChoice, dim: int) -> Bijection:
    """A flow for ``dim`` latents and, outside it, the affine layer that carries the guide's start.

    Raises:
        ValueError: for an unknown name, or a flow that does not map vectors of length ``dim`` without a context.
        TypeError: if ``flow`` is none of a name, a recipe, a factory and a bijection.
    """
    if isinstance(flow, str):
        inner = auto_flow(dim) if flow == "auto" else make_flow(flow, dim)
    elif isinstance(flow, Bijection):
        inner = flow
    elif callable(flow):
        inner = flow(dim)
    else:
        raise TypeError(f"flow must be a name, a bijection or a function of the dimension, got {type(flow).__name__}")
    if not isinstance(inner, Bijection):
        raise TypeError(
            f"flow must make a flowppl.Bijection of the dimension, but flow({dim}) is {type(inner).__name__}"
        )
    if inner.x_shape != (dim,) or inner.y_shape != (dim,):
        raise ValueError(
            f"the model has {dim} unconstrained latent dimensions, but the flow maps events of shape {inner.x_shape} "
            f"to {inner.y_shape}; pass a recipe such as flowppl.realnvp, which is given the dimension"
        )
    if inner.y_support != REAL_LINE:
        raise ValueError(
            f"a guide maps to unconstrained space, but this flow maps into the interval {inner.y_support}; leave its "
            "last layer out: the model's own supports are met without it"
        )
    if inner.context_dim:
        raise ValueError(f"the flow of a guide takes no context, but this one has context_dim={inner.context_dim}")
    return Chain([inner, TriangularAffine(dim) if dim <= MAX_TRIANGULAR else ElementwiseAffine(dim)])


def start_at(bijection: Bijection, params: Tree, loc: Array, scale: float) -> Tree:
    """``params`` with the outer layer set so that the guide starts as a normal at ``loc`` with this scale."""
    xp = namespace(loc)
    outer = bijection.bijections[-1]  # type: ignore[attr-defined]
    scales = scale * xp.ones_like(loc)
    if isinstance(outer, TriangularAffine):
        full = scales[:, None] + xp.zeros_like(loc)
        scales = xp.tril(full) - xp.tril(full, k=-1)  # the diagonal matrix, on the device of loc
    return {"0": params.get("0", {}), "1": outer.parameters_for(loc, scales)}


def check_scale(init_scale: float) -> None:
    """Raise ValueError unless the scale is positive."""
    if not init_scale > 0:
        raise ValueError(f"AutoFlow: init_scale must be positive, got {init_scale!r}")
