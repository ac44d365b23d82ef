"""Ready stacks of layers under the names of the literature, and the registry that finds them by name."""

from __future__ import annotations

from collections.abc import Callable

from flowppl.autoregressive import Autoregressive
from flowppl.bijection import Bijection, check_sizes
from flowppl.combine import Chain, Invert, Repeat
from flowppl.conditional import Conditional
from flowppl.coupling import Coupling
from flowppl.linear import ElementwiseAffine, Permute, TriangularAffine
from flowppl.residual import Planar
from flowppl.univariate import Affine, Shift, Univariate

Recipe = Callable[..., Bijection]


def planar(dim: int, num_flows: int = 16, *, context_dim: int = 0, hidden_dims=()) -> Bijection:
    """A stack of planar flows; with a context, all their parameters are made from it.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        context_dim: the size of the context, 0 for none.
        hidden_dims: with a context, the hidden layers of the network that makes the parameters.

    References:
        Rezende, Mohamed: Variational Inference with Normalizing Flows, 2015, arXiv 1505.05770.

    Example:
        >>> import flowppl as fp
        >>> fp.planar(2, num_flows=8)
        Planar(dim=2, num_flows=8)
    """
    flow = Planar(dim, num_flows)
    return Conditional(flow, context_dim, hidden_dims) if context_dim else flow


def realnvp(
    dim: int,
    num_flows: int = 8,
    *,
    hidden_dims=(64, 64),
    context_dim: int = 0,
    activation: str = "silu",
    log_scale_bound: float = 3.0,
) -> Bijection:
    """Affine coupling layers: both directions cost one pass.

    Layers come in pairs that exchange the roles of the two halves. After each pair the coordinates are shuffled as
    a deck of cards is, so that any two coordinates soon stand in different halves. The order is restored at the
    end.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: one layer scales a coordinate by at most the exponential of this.

    References:
        Dinh, Sohl-Dickstein, Bengio: Density Estimation using Real NVP, 2016, arXiv 1605.08803.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.realnvp(6, hidden_dims=32)
        >>> flow.forward_cost, flow.inverse_cost
        ('parallel', 'parallel')
    """
    check_sizes("realnvp", dim=dim, num_flows=num_flows)
    return _couplings(dim, num_flows, Affine(log_scale_bound), hidden_dims, context_dim, activation)


def nice(
    dim: int, num_flows: int = 8, *, hidden_dims=(64, 64), context_dim: int = 0, activation: str = "silu"
) -> Bijection:
    """Additive coupling layers, which preserve volume, and a scale for each coordinate at the end.

    Args:
        dim: the number of coordinates.
        num_flows: the number of coupling layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.

    References:
        Dinh, Krueger, Bengio: NICE: Non-linear Independent Components Estimation, 2014, arXiv 1410.8516.

    Example:
        >>> import flowppl as fp
        >>> fp.nice(6).bijections[-1]
        ElementwiseAffine(dim=6)
    """
    check_sizes("nice", dim=dim, num_flows=num_flows)
    couplings = _couplings(dim, num_flows, Shift(), hidden_dims, context_dim, activation)
    return Chain([couplings, ElementwiseAffine(dim)])


def iaf(
    dim: int,
    num_flows: int = 4,
    *,
    hidden_dims=(64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    log_scale_bound: float = 3.0,
) -> Bijection:
    """Inverse autoregressive flow: one pass to sample, D passes to score a given value. For guides.

    The order of the coordinates is reversed after each layer, and restored at the end.

    Args:
        dim: the number of coordinates.
        num_flows: the number of layers.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        log_scale_bound: one layer scales a coordinate by at most the exponential of this.

    References:
        Kingma et al.: Improving Variational Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.iaf(6)
        >>> flow.forward_cost, flow.inverse_cost
        ('parallel', 'sequential')
    """
    check_sizes("iaf", dim=dim, num_flows=num_flows)
    layer = Autoregressive(dim, Affine(log_scale_bound), hidden_dims, context_dim, activation)
    return _shuffled(layer, tuple(reversed(range(dim))), num_flows)


def maf(
    dim: int,
    num_flows: int = 4,
    *,
    hidden_dims=(64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    log_scale_bound: float = 3.0,
) -> Bijection:
    """Masked autoregressive flow: one pass to score a value, D passes to sample. For densities and priors.

    It is :func:`iaf` turned around, and takes the same arguments.

    References:
        Papamakarios, Pavlakou, Murray: Masked Autoregressive Flow for Density Estimation, 2017, arXiv 1705.07057.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.maf(6)
        >>> flow.forward_cost, flow.inverse_cost
        ('sequential', 'parallel')
    """
    return Invert(
        iaf(
            dim,
            num_flows,
            hidden_dims=hidden_dims,
            context_dim=context_dim,
            activation=activation,
            log_scale_bound=log_scale_bound,
        )
    )


def _couplings(dim, num_flows, univariate: Univariate, hidden_dims, context_dim, activation) -> Bijection:
    half = dim // 2
    first = tuple(i < half for i in range(dim))
    second = tuple(i >= half for i in range(dim)) if dim > 1 else first
    layers = [Coupling(dim, univariate, hidden_dims, context_dim, activation, mask) for mask in (first, second)]
    if num_flows == 1:
        return layers[0]
    # The riffle 0, h, 1, h+1, ... moves the next bit of a coordinate's number into the place that the halves test.
    riffle = tuple(i // 2 + (i % 2) * (dim - half) for i in range(dim))
    pairs = _shuffled(Chain(layers), riffle, num_flows // 2)
    return Chain([pairs, layers[0]]) if num_flows % 2 else pairs


def _shuffled(layer: Bijection, permutation: tuple[int, ...], num: int) -> Bijection:
    """``num`` layers, each followed by the permutation, and the inverse of all permutations at the end."""
    if num == 1:
        return layer
    if len(permutation) == 1:
        return Repeat(layer, num)
    total = list(range(len(permutation)))
    for _ in range(num):
        total = [total[i] for i in permutation]
    stack = Repeat(Chain([layer, Permute(permutation)]), num)
    if total == sorted(total):
        return stack
    return Chain([stack, Permute(tuple(total.index(i) for i in range(len(total))))])


_RECIPES: dict[str, Recipe] = {recipe.__name__: recipe for recipe in (planar, nice, realnvp, iaf, maf)}


def available_flows() -> tuple[str, ...]:
    """The names that :func:`make_flow` and ``AutoFlow`` know.

    Example:
        >>> import flowppl as fp
        >>> "realnvp" in fp.available_flows()
        True
    """
    return tuple(sorted(_RECIPES))


def make_flow(name: str, dim: int, **options) -> Bijection:
    """The flow of this name for ``dim`` coordinates; ``options`` go to the recipe.

    Raises:
        ValueError: if no flow has this name; the message lists the known ones.

    Example:
        >>> import flowppl as fp
        >>> fp.make_flow("planar", 3, num_flows=4)
        Planar(dim=3, num_flows=4)
    """
    if name not in _RECIPES:
        raise ValueError(f"unknown flow {name!r}; known flows are {', '.join(available_flows())}")
    return _RECIPES[name](dim, **options)


def register_flow(name: str, recipe: Recipe) -> None:
    """Make ``recipe(dim, **options) -> Bijection`` known under a name.

    Raises:
        ValueError: if the name is taken already.

    Example:
        >>> import flowppl as fp
        >>> fp.register_flow("two_planes", lambda dim: fp.Planar(dim, num_flows=2))
        >>> fp.make_flow("two_planes", 3)
        Planar(dim=3, num_flows=2)
    """
    if name in _RECIPES:
        raise ValueError(f"a flow named {name!r} exists already; choose another name")
    _RECIPES[name] = recipe


# The table from which both adapters make their named transforms and lower-case helpers.
NAMED_BIJECTIONS: tuple[type[Bijection], ...] = (
    Planar,
    Coupling,
    Autoregressive,
    Permute,
    ElementwiseAffine,
    TriangularAffine,
)
NAMED_RECIPES: tuple[Recipe, ...] = tuple(_RECIPES.values())
