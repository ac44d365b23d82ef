"""What the guides for local latents share: which latents are local, their flow, its context and its start."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from flowppl._arrays import tree as _tree
from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree
from flowppl.bijections.combine import Chain
from flowppl.bijections.conditional import Conditional
from flowppl.bijections.contract import REAL_LINE, Bijection, check_standard_base
from flowppl.bijections.coupling import Coupling
from flowppl.bijections.frozen import Damped
from flowppl.bijections.linear import ElementwiseAffine
from flowppl.checks import check_positive
from flowppl.inference.guides import LOG_SCALE_BOUND, make_inner
from flowppl.recipes import realnvp
from flowppl.univariate.mixture import LogisticMixture

LocalFlowChoice = str | Callable[..., Any]

MAX_LINEAR = 5.0  # a context is left as it is well below this, and grows like its logarithm above
NUM_MEDIAN_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Plate:
    """A plate around a latent: its dimension, the number of members in the batch, and of all members."""

    name: str
    dim: int
    size: int
    full_size: int


@dataclasses.dataclass(frozen=True)
class LatentSite:
    """A latent: the plates around it, its shape in unconstrained space, and how many of the axes are batch axes."""

    name: str
    plates: tuple[Plate, ...]
    shape: tuple[int, ...]
    batch_dim: int

    def axis(self, plate: Plate) -> int:
        """The axis along which the members of a plate lie."""
        return self.batch_dim + plate.dim

    def member_shape(self, plate: Plate) -> tuple[int, ...]:
        """The shape of one member's part; other plates around the site are in it."""
        axis = self.axis(plate)
        return self.shape[:axis] + self.shape[axis + 1 :]


def check_arguments(features, plates, init_scale: float) -> tuple[str, ...] | None:
    """The names of the plates as a tuple; raise for what can be told to be wrong without the model."""
    if not callable(features):
        raise TypeError(
            "AutoLocalFlow: features must be a function of the model's arguments, such as lambda x, y: x, "
            f"got {type(features).__name__}"
        )
    check_positive("AutoLocalFlow", init_scale=init_scale)
    return (plates,) if isinstance(plates, str) else None if plates is None else tuple(plates)


def check_continuous(discrete: Iterable[str]) -> None:
    """Raise ValueError if there are discrete latents that nobody sums out."""
    names = ", ".join(discrete)
    if names:
        raise ValueError(
            f"AutoLocalFlow covers continuous latents only, but these sites are discrete: {names}. Sum them out: mark "
            'them with infer={"enumerate": "parallel"} and use TraceEnum_ELBO'
        )


def check_unmasked(masked: Iterable[str]) -> None:
    """Raise ValueError if some members of latents are masked out."""
    names = ", ".join(masked)
    if names:
        raise ValueError(
            f"AutoLocalFlow does not support masks of single members, and the model masks some of the sites {names}. "
            "Mask what is observed instead, or use AutoFlow, which leaves masked members out"
        )


def check_present(names: Iterable[str], sites: Iterable[LatentSite]) -> None:
    """Raise ValueError unless all latents that a guide was made for are there."""
    absent = ", ".join(sorted(set(names) - {site.name for site in sites}))
    if absent:
        raise ValueError(
            f"these sites were latents of the model when this guide was made and are none with these arguments: "
            f"{absent}. Make a new guide for another set of latents"
        )


def local_plates(sites: Iterable[LatentSite], plates: tuple[str, ...] | None) -> tuple[str, ...]:
    """The names of the plates with local latents.

    Raises:
        ValueError: if there are none, or a given name is that of no plate around a latent.
    """
    around = {plate.name: plate for site in sites for plate in site.plates}
    if plates is None:
        plates = tuple(name for name, plate in around.items() if plate.size != plate.full_size)
        if not plates:
            raise ValueError(
                "AutoLocalFlow found no local latents: no latent stands in a subsampled plate. Name the plates, "
                f"plates=({next(iter(around), 'data')!r},), if this run has all members; otherwise use AutoFlow"
            )
    for name in plates:
        if name not in around:
            raise ValueError(
                f"AutoLocalFlow: no latent of the model stands in a plate {name!r}; "
                f"the plates with latents are: {', '.join(around) or 'none'}"
            )
    return plates


def split_sites(
    sites: Iterable[LatentSite], plates: tuple[str, ...]
) -> tuple[list[LatentSite], list[tuple[Plate, list[LatentSite]]]]:
    """The global latents, and each plate of locals with the latents in it.

    Raises:
        ValueError: if a latent stands in two of the plates.
    """
    shared: list[LatentSite] = []
    local: dict[str, tuple[Plate, list[LatentSite]]] = {}
    for site in sites:
        own = [plate for plate in site.plates if plate.name in plates]
        if len(own) > 1:
            names = " and ".join(repr(plate.name) for plate in own)
            raise ValueError(
                f"site {site.name!r} is local to the plates {names}; a latent may be local to one. Subsample one of "
                "them only, and leave the other out of plates: its members are then latents of a member of the first"
            )
        if own:
            local.setdefault(own[0].name, (own[0], []))[1].append(site)
        else:
            shared.append(site)
    return shared, list(local.values())


def small_flow(dim: int, hidden_dims=(64, 64), context_dim: int = 0) -> Bijection:
    """The flow of ``"auto"``, for the locals of a member or for the globals."""
    if dim == 1:
        return Damped(Coupling(1, LogisticMixture(3), hidden_dims=hidden_dims, context_dim=context_dim))
    return Damped(realnvp(dim, 4, hidden_dims=hidden_dims, context_dim=context_dim, log_scale_bound=LOG_SCALE_BOUND))


def local_bijection(flow: LocalFlowChoice, dim: int, context_dim: int, hidden_dims) -> Bijection:
    """A conditional flow for the ``dim`` latents of a member, and outside it the affine layer with the start.

    Raises:
        ValueError: for an unknown name, or a flow that does not map vectors of length ``dim``.
        TypeError: if ``flow`` is neither a name nor a recipe.
    """
    if isinstance(flow, Bijection) or not (isinstance(flow, str) or callable(flow)):
        raise TypeError(
            f"flow must be a name or a recipe, called as flow(dim, context_dim=...), got {type(flow).__name__}"
        )
    if flow == "auto":
        inner = small_flow(dim, hidden_dims, context_dim)
    else:
        inner = make_inner(flow, dim, context_dim=context_dim)
    if inner.x_shape != (dim,) or inner.y_shape != (dim,) or inner.y_support != REAL_LINE:
        raise ValueError(
            f"a member has {dim} unconstrained latent dimensions, but the flow maps events of shape {inner.x_shape} to "
            f"{inner.y_shape}, in the interval {inner.y_support}; pass a recipe such as flowppl.realnvp"
        )
    check_standard_base(inner)
    return Chain([inner, Damped(Conditional(ElementwiseAffine(dim), context_dim, hidden_dims))])


def start_local_at(bijection: Bijection, params: Tree, loc: Array, scale: float) -> Tree:
    """``params`` with the outer layer set so that all members start as the same normal."""
    outer: Conditional = bijection.bijections[-1].bijection  # type: ignore[attr-defined]
    start = outer.bijection.parameters_for(loc, scale * namespace(loc).ones_like(loc))  # type: ignore[attr-defined]
    return _tree.replace(params, {"1": {"bijection": start}})


def member_features(features: Array, plate: Plate, indices: Array) -> Array:
    """The features of the members in the batch, as vectors along the plate's dimension.

    Raises:
        ValueError: if there are as many neither as members of the plate nor as members in the batch.
    """
    xp = namespace(features)
    length = features.shape[0] if features.ndim else 0
    if length == plate.full_size != plate.size:
        features = xp.take(features, indices, axis=0)
    elif length != plate.size:
        lengths = f"{plate.size}" if plate.size == plate.full_size else f"{plate.size} (batch) or {plate.full_size}"
        raise ValueError(
            f"the features for the plate {plate.name!r} must have the members along their first axis, {lengths} of "
            f"them, got shape {tuple(features.shape)}"
        )
    width = math.prod(features.shape[1:])
    return xp.reshape(features, (plate.size, *(1,) * (-plate.dim - 1), width))


def check_finite(plate: Plate, is_finite: bool) -> None:
    """Raise ValueError unless all features of the plate's members are finite."""
    if not is_finite:
        raise ValueError(
            f"the features for the plate {plate.name!r} have entries that are not finite; fill missing values in, and "
            "give an indicator of them as a further feature"
        )


def pick_features(features, plate: Plate):
    """What ``features`` gave for one plate."""
    if not isinstance(features, dict):
        return features
    if plate.name not in features:
        raise ValueError(f"features gave nothing for the plate {plate.name!r}, only for: {', '.join(features)}")
    return features[plate.name]


def make_context(parts: list[Array]) -> Array:
    """The context of a flow: the parts side by side, large entries squashed."""
    joined = _join_vectors(parts)
    return MAX_LINEAR * namespace(joined).asinh(joined / MAX_LINEAR)


def _join_vectors(parts: list[Array]) -> Array:
    """Vectors joined to longer ones; their batch axes broadcast."""
    xp = namespace(parts[0])
    batch = np.broadcast_shapes(*(tuple(part.shape[:-1]) for part in parts))
    return xp.concat([xp.broadcast_to(part, (*batch, part.shape[-1])) for part in parts], axis=-1)


def global_vector(values: list[tuple[LatentSite, Array]]) -> Array:
    """Unconstrained values of global latents as one vector; further batch axes, of particles, stay in front."""
    parts = []
    for site, value in values:
        lead = tuple(value.shape)[: value.ndim - len(site.shape)]
        parts.append(namespace(value).reshape(value, (*lead, *(1,) * site.batch_dim, math.prod(site.shape))))
    return _join_vectors(parts)


def mean_member(plate: Plate, values: list[tuple[LatentSite, Array]]) -> Array:
    """The mean over the members of their vectors of latents."""
    xp = namespace(values[0][1])
    means = [xp.mean(value, axis=site.axis(plate)) for site, value in values]
    return xp.concat([xp.reshape(mean, (-1,)) for mean in means])


def split_members(latent: Array, plate: Plate, sites: list[LatentSite]) -> list[Array]:
    """The unconstrained values of the sites for vectors that lie along the plate's dimension."""
    xp, position, values = namespace(latent), 0, []
    count = latent.shape[plate.dim - 1]
    lead = tuple(latent.shape)[: latent.ndim + plate.dim - 1]
    for site in sites:
        own, axis = site.member_shape(plate), site.axis(plate)
        part = latent[..., position : position + math.prod(own)]
        position += math.prod(own)
        # The site's own axes take the places of as many axes in front of the members.
        part = xp.reshape(part, (*lead[: max(len(lead) - axis, 0)], count, *own))
        values.append(xp.moveaxis(part, -1 - len(own), axis - len(site.shape)))
    return values
