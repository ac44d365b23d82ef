"""What the guides of both adapters share: which flow, and where it starts."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, map_tree, select
from flowppl.bijections.combine import Chain
from flowppl.bijections.contract import REAL_LINE, Bijection, check_standard_base, held
from flowppl.bijections.elementwise import Elementwise
from flowppl.bijections.frozen import Damped, Frozen
from flowppl.bijections.linear import ElementwiseAffine, FullTriangular, TriangularAffine, diagonal
from flowppl.bijections.repeat import Repeat
from flowppl.bijections.subspace import Subspace
from flowppl.checks import check_positive, check_sizes, did_you_mean, level_of_caller
from flowppl.inference.affine import Affine
from flowppl.inference.fitting import FLOW_ROUNDS, NARROW_ROUNDS, Round
from flowppl.inference.latents import shown
from flowppl.inference.modes import Modes, find_modes
from flowppl.inference.resuming import remembered
from flowppl.inference.starts import (
    MAX_BATCHES,
    NUM_TRIALS,
    Averaged,
    check_start,
    dense_start,
    newton_start,
    quasi_newton_start,
)
from flowppl.recipes import make_flow, nsf, realnvp
from flowppl.univariate.splines import RationalQuadraticSpline

# "auto", a name, a bijection, or a function of the dimension; it may make a transform of an adapter, too.
FlowChoice = str | Bijection | Callable[[int], Any]
INITS = ("auto", "newton", "diagonal", "point")

LOG_SCALE_BOUND = (-3.0, 0.5)  # a layer may shrink a coordinate by e^3, but stretch it by e^(1/2) only
START_RADII = (0.1, 2.0, 1.0, 2.0)
MAX_TRIANGULAR = 256  # above, the trained matrix of the outer layer would outweigh the flow
MAX_DENSE = 2048  # above, so would the steps of the search, and of the training, with a fixed one
MIN_FINITE = 0.9  # share of the draws of a start with a finite density, for no warning
MAX_NARROW, NARROW, WIDE = 16, 32, 64  # dimensions, and widths of the networks of a flow that path gradients train
NUM_DRAWS = 10_000  # for medians and quantiles


def auto_flow(dim: int) -> Bijection:
    """The flow that ``AutoFlow`` uses unless told otherwise.

    Stretching compounds from layer to layer: with bounds of 3 both ways plain SVI at a learning rate of 1e-2 became
    non-finite on a funnel in 19 of 20 seeds, with these in none. Damped, it came closer, too: on that funnel to 0.28
    nats in place of 0.34, after 1,500 steps of 8 particles.
    """
    return nsf(dim) if dim == 1 else Damped(in_loops(realnvp(dim, log_scale_bound=LOG_SCALE_BOUND)))


def path_flow(dim: int) -> Bijection:
    """The flow that ``fit`` uses unless told otherwise.

    Path gradients at the scale of the posterior are steady enough for wider bounds, which come closer: to 0.005 nats
    of the 10-dimensional funnel, where the bounds of :func:`auto_flow` stop at 0.036. For few latents narrow networks
    come as close, in half of the time.
    """
    width = NARROW if dim <= MAX_NARROW else WIDE
    return nsf(dim) if dim == 1 else in_loops(realnvp(dim, hidden_dims=(width, width)))


def rounds_of(flow: FlowChoice, dim: int) -> tuple[Round, ...]:
    """The rounds in which ``fit`` trains a guide with this flow."""
    return NARROW_ROUNDS if flow is path_flow and dim <= MAX_NARROW else FLOW_ROUNDS


def in_loops(bijection: Bijection) -> Bijection:
    """A stack whose layers run in a loop: it is compiled in half of the time, and its steps take hardly longer."""
    if isinstance(bijection, Chain):
        return Chain([in_loops(part) for part in bijection.bijections])
    return dataclasses.replace(bijection, scan=True) if isinstance(bijection, Repeat) else bijection


def guide_bijection(flow: FlowChoice, dim: int, *, has_margins: bool = True) -> Chain:
    """A flow for ``dim`` latents and, outside it, the affine layers that carry the guide's start.

    The last two are the trained one and the fixed one. Above ``MAX_TRIANGULAR`` these are elementwise, and before them
    stand a few trained directions, a fixed matrix of correlations, up to ``MAX_DENSE``, and a trained spline for each
    coordinate of the posterior: what many latents have in common is mostly that each is a little skewed.

    Args:
        flow: the choice of a flow.
        dim: the number of latents.
        has_margins: whether the matrix and the splines are there, as they are not in files of before.

    Raises:
        ValueError: for an unknown name, or a flow that does not map vectors of length ``dim`` without a context.
        TypeError: if ``flow`` is none of a name, a recipe, a factory and a bijection.
    """
    inner = flow if isinstance(flow, Bijection) else auto_flow(dim) if _is_auto(flow) else make_inner(flow, dim)
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
    check_standard_base(inner)
    if inner.context_dim:
        raise ValueError(f"the flow of a guide takes no context, but this one has context_dim={inner.context_dim}")
    if dim <= MAX_TRIANGULAR:
        affine = TriangularAffine(dim)
        return Chain([inner, affine, Frozen(affine)])
    layers = [inner, Subspace(dim, TriangularAffine(round(dim**0.5)))]
    if has_margins:
        layers += [Frozen(FullTriangular(dim))] * (dim <= MAX_DENSE)
        layers += [Elementwise(dim, RationalQuadraticSpline(num_bins=4, bound=5.0))]
    return Chain([*layers, ElementwiseAffine(dim), Frozen(ElementwiseAffine(dim))])


def _is_auto(flow: Any) -> bool:
    return isinstance(flow, str) and flow == "auto"


def make_inner(flow: Any, dim: int, **options: int) -> Bijection:
    """The bijection that a name, a recipe, or a function that makes a transform of an adapter, stands for.

    Raises:
        ValueError: for an unknown name.
        TypeError: for anything else; the message names the one change, where there is one.
    """
    if isinstance(flow, str):
        return make_flow(flow, dim, **options)
    own = getattr(flow, "bijection", None)
    if isinstance(own, Bijection):
        raise TypeError(
            f"flow is a {type(flow).__name__} with weights of its own, and a guide draws its own: pass its bijection, "
            "flow=transform.bijection"
        )
    _check_no_host(flow, dim, "transform")
    if not callable(flow):
        raise TypeError(f"flow must be a name, a bijection or a function of the dimension, got {shown(flow)}")
    if wanted := _wants_weights(flow):
        name = getattr(flow, "__name__", "recipe")
        raise TypeError(
            f"flow={name} asks for a {wanted}, and a guide draws its own weights: pass the function that makes the "
            f"bijection, flow=flowppl.{name}"
        )
    made = flow(dim, **options)
    _check_no_host(made, dim, f"{getattr(flow, '__name__', 'recipe')}({dim})")
    # Of a transform that an adapter's helper made; some bijections have one inside, too.
    inner = made if isinstance(made, Bijection) else getattr(made, "bijection", made)
    if not isinstance(inner, Bijection):
        raise TypeError(
            f"flow must make a flowppl.Bijection of the dimension, but flow({dim}) is {type(made).__name__}"
        )
    return inner


def _check_no_host(made: Any, dim: int, name: str) -> None:
    """Raise TypeError for a transform of the host's own."""
    is_transform = hasattr(made, "log_abs_det_jacobian") and not isinstance(made, type)
    if is_transform and not isinstance(getattr(made, "bijection", None), Bijection):
        adapter = "numpyro" if type(made).__module__.startswith("numpyro") else "pyro"
        raise TypeError(
            f"flow is the host's own {type(made).__name__}, not a bijection: wrap it, "
            f"flow=flowppl.{adapter}.Wrap({name}, {dim})"
        )


def _wants_weights(function: Any) -> str:
    """The argument, "key" or "params", that a helper or class of the NumPyro adapter asks for; "" if there is none."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables have no signature
        return ""
    wanted = [name for name, each in parameters.items() if each.default is each.empty]
    return next((name for name in ("key", "params") if name in wanted), "")


def start_at(bijection: Chain, params: Tree, loc: Array, scale: Array, *, fixed: bool) -> Tree:
    """``params`` with the guide's start, in the fixed affine layer or in the trained one.

    The scale is a lower-triangular matrix or a vector of standard deviations.
    """
    trained_key, fixed_key = _affine_keys(bijection)
    placed = {fixed_key if fixed else trained_key: _affine_parameters(bijection.bijections[-2], loc, scale)}
    full: Any = Frozen(FullTriangular(*bijection.x_shape))
    if scale.ndim == 2 and is_dense(bijection):  # the scales stand in the last layer, the correlations here
        width = namespace(scale).sqrt(namespace(scale).sum(scale**2, axis=-1))
        placed[str(bijection.bijections.index(full))] = full.bijection.parameters_for(scale / width[:, None])
    return params | placed


def _affine_keys(bijection: Chain) -> tuple[str, str]:
    """Where the trained affine layer and the fixed one stand: they are the last two."""
    num = len(bijection.bijections)
    return str(num - 2), str(num - 1)


def fold(bijection: Chain, params: Tree) -> Tree:
    """The weights of the same guide with its trained affine layer taken into the fixed one, and the identity again."""
    layer: Any = bijection.bijections[-2]
    trained_key, fixed_key = _affine_keys(bijection)
    loc, scale = layer.loc_and_scale(params[trained_key])
    outer_loc, outer_scale = layer.loc_and_scale(params[fixed_key])
    if scale.ndim == 1:
        folded = outer_loc + outer_scale * loc, outer_scale * scale
    else:
        folded = outer_loc + outer_scale @ loc, outer_scale @ scale
    weights = select(bijection.parameters(), params)
    identity = map_tree(lambda leaf: namespace(leaf).zeros_like(leaf), weights[trained_key])
    return weights | {trained_key: identity, fixed_key: layer.parameters_for(*folded)}


def affine_layers(bijection: Chain, params: Tree) -> tuple[Affine, Affine]:
    """Location and triangular scale of the trained affine layer of a guide, and of the fixed one."""
    layer: Any = bijection.bijections[-2]
    trained, fixed = (layer.loc_and_scale(params[key]) for key in _affine_keys(bijection))
    return trained, fixed


def may_step_alone(bijection: Chain, affine: Chain | None) -> bool:
    """Whether the affine layers of a guide can be trained by :class:`flowppl.inference.affine.AffineSteps`.

    They can if the flow does nothing, and where they are two triangular ones.
    """
    return affine is not None and isinstance(bijection.bijections[-2], TriangularAffine)


def affine_part(bijection: Chain, params: Tree) -> Chain | None:
    """The affine layers of a guide without its flow; ``None`` if the flow, with these NumPy weights, does anything.

    As drawn first it is the identity, up to the order of its coordinates, which a standard normal does not mind.
    """
    noise = np.random.default_rng(0).normal(size=(8, *bijection.x_shape))
    try:
        moved, _ = bijection.bijections[0].forward(params.get("0", {}), noise)  # some have no weights
    except TypeError:  # a wrapped transform of the host takes no NumPy arrays
        return None
    same = np.allclose(np.sort(moved, axis=-1), np.sort(noise, axis=-1), atol=1e-5)
    return Chain(bijection.bijections[1:]) if same else None


def stage(bijection: Chain, affine: Chain | None, params: Tree, only_affine: bool) -> tuple[Chain, Tree]:
    """What is trained: the guide, or its affine layers alone, held together with the flow if that does something."""
    if not only_affine:
        return bijection, params
    if affine is None:
        return bijection, params | {"0": held(params["0"])} if "0" in params else params
    return affine, {str(i): params[str(i + 1)] for i in range(len(affine.bijections))}


def distance_from_identity(bijection: Chain, params: Tree) -> Array:
    """How far the trained affine layer is from the identity: half its shift or its largest change of scale."""
    layer: Any = bijection.bijections[-2]
    loc, scale = layer.loc_and_scale(params[_affine_keys(bijection)[0]])
    xp = namespace(loc)
    identity = xp.ones_like(loc) if scale.ndim == 1 else diagonal(xp.ones_like(loc))
    return xp.maximum(xp.max(xp.abs(loc)) / 2, xp.max(xp.abs(scale - identity)))


def is_dense(bijection: Chain) -> bool:
    """Whether a guide has a fixed matrix of correlations beside elementwise layers: see :func:`guide_bijection`."""
    full: Any = Frozen(FullTriangular(*bijection.x_shape))
    return full in bijection.bijections


def _affine_parameters(layer: Any, loc: Array, scale: Array) -> Tree:
    if isinstance(layer, TriangularAffine) and scale.ndim == 1:
        scale = diagonal(scale)
    elif isinstance(layer, ElementwiseAffine) and scale.ndim == 2:
        scale = namespace(scale).sqrt(namespace(scale).sum(scale**2, axis=-1))
    return layer.parameters_for(loc, scale)


def search_start(init: str, target: Any, dim: int, points: list[np.ndarray], rng: np.random.Generator):
    """The best Gaussian on paths from the given points and from random ones; ``None`` if there is none.

    Args:
        init: "newton" or "diagonal".
        target: the adapter's ``Target``, the log density of the model.
        dim: the number of unconstrained dimensions.
        points: where to start beside the random points.
        rng: draws those, and the noise by which the Gaussians are judged.

    Raises:
        RuntimeError: if the posterior cannot be normalised, or is degenerate.

    Warns:
        RuntimeWarning: if the density is not finite in a part of the space that the start reaches.
    """
    return remembered(dim, lambda: _search_start(init, target, dim, points, rng))


def _search_start(init, target, dim, points, rng):
    points = points + [rng.uniform(-radius, radius, dim) for radius in START_RADII]
    search = quasi_newton_start if init == "diagonal" else newton_start if dim <= MAX_TRIANGULAR else dense_start
    start = search(points, target, rng)
    if start is None and init == "newton":  # second derivatives may not be numbers where the first are
        start = quasi_newton_start(points, target, rng)
    if start is None:  # where most of the space is ruled out, more points may meet the rest
        more = rng.uniform(-1, 1, (NUM_TRIALS, dim)) * np.geomspace(0.1, 10.0, NUM_TRIALS)[:, None]
        inside = list(more[np.isfinite(target.log_probs(more))])
        start = search(inside[: len(START_RADII)], target, rng) if inside else None
    if start is not None:
        share = check_start(start, target, rng)
        if share < MIN_FINITE:
            warnings.warn(
                f"the model's log density is not finite at {1 - share:.0%} of the draws of the start of its guide: the "
                "posterior has a sharp edge in unconstrained space, as where the bounds of data or a factor of -inf "
                "depend on latents, and no flow keeps to one side of that. Sample such a latent within its bounds, as "
                "Uniform(0, 1) scaled to them, or as a distance from them",
                RuntimeWarning,
                stacklevel=level_of_caller(),
            )
    return start


def search_average(init: str, target: Any, num: int, dim: int, points: list[np.ndarray], rng: np.random.Generator):
    """As :func:`search_start`, for a density of which each batch of the data gives another; ``None`` if that fails.

    Args:
        init: as there; so are all others.
        target: a density that takes seeds.
        num: how many batches make up the data.
        dim: the number of dimensions.
        points: where to start.
        rng: draws more.
    """

    def search():
        try:
            return _search_start(init, Averaged(target, min(num, MAX_BATCHES)), dim, points, rng)
        except RuntimeError:  # that of some batches may be improper
            return None

    return remembered(dim, search)


def search_modes(target: Any, dim: int, rng: np.random.Generator) -> Modes | None:
    """The modes that a search from a start of its own finds; ``None`` if the density allows none."""

    def search():
        try:
            if target.is_random():
                return None
            start = _search_start(choose_init("auto", dim, None), target, dim, [], rng)
            return None if start is None else find_modes(target, start, rng)
        except RuntimeError:  # narrower than neighbouring numbers, without a mode, or the model cannot be run far out
            return None

    return remembered(dim, search)


def no_start(sites: Iterable[tuple[str, np.ndarray, float]]) -> RuntimeError:
    """What to raise where the density is finite nowhere.

    Args:
        sites: of each observed site, at the origin of unconstrained space, the name, the data and the log density.
    """
    causes = []
    for name, data, log_prob in sites:
        bad = data[~np.isfinite(data)]
        if len(bad):
            causes.append(f"site {name!r} observes data in which {len(bad)} of its {data.size} values are {bad[0]}")
        elif not np.isfinite(log_prob):
            causes.append(f"the log density of site {name!r} is {log_prob} at the origin of unconstrained space")
    found = f" ({'; '.join(causes)})" if causes else ""
    return RuntimeError(
        f"AutoFlow found no start at which the model's log density and its gradient are finite{found}. Drop or impute "
        "missing data, mend data outside of the support of their distribution, or give init_loc_fn with a point of the "
        "support, as init_to_value does"
    )


def choose_init(init: str, dim: int, init_scale: float | None) -> str:
    """The kind of start that ``"auto"`` means for this guide."""
    if init != "auto":
        return init
    return "point" if init_scale is not None else "newton" if dim <= MAX_DENSE else "diagonal"


def check_num_modes(owner: str, num_modes: Any) -> None:
    """Raise ValueError, or TypeError, unless this is a number of modes or "auto"."""
    if isinstance(num_modes, str) and num_modes != "auto":
        raise ValueError(f'{owner}: num_modes must be a positive integer or "auto", got {num_modes!r}')
    if not isinstance(num_modes, str):
        check_sizes(owner, num_modes=num_modes)


def no_transform_of_parts(num: int) -> ValueError:
    """What to raise where one transform is asked of a guide of several modes."""
    return ValueError(
        f"this guide holds {num} modes, each by a flow of its own, so there is no one transform from a standard "
        "normal, as get_transform and NeuTra need it. Use get_posterior, which scores and draws; or make the guide "
        "with num_modes=1, which has a transform and one mode"
    )


def check_init(init: str, init_scale: float | None, num_modes: int | str) -> None:
    """Raise ValueError for an unknown start, or a scale or number of modes that it has no use for."""
    if init not in INITS:
        nearest = did_you_mean(init, INITS) if isinstance(init, str) else ""
        raise ValueError(f"AutoFlow: init must be one of {', '.join(INITS)}, got {init!r}{nearest}")
    if init_scale is not None:
        check_positive("AutoFlow", init_scale=init_scale)
    if num_modes != 1 and (init == "point" or init_scale is not None):
        raise ValueError(
            f'AutoFlow: num_modes={num_modes!r} needs a search, and init_scale and init="point" start at one point '
            "without it: leave them out"
        )
    if init_scale is not None and init not in ("auto", "point"):
        raise ValueError(f'AutoFlow: init={init!r} finds the scale itself; leave init_scale out, or take init="point"')
