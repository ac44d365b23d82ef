"""Ready stacks of layers under the names of the literature, and the registry that finds them by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowppl.bijections.autoregressive import Autoregressive
from flowppl.bijections.block_autoregressive import BlockAutoregressive
from flowppl.bijections.continuous import Continuous
from flowppl.bijections.contract import Bijection
from flowppl.bijections.contractive import ContractiveResidual
from flowppl.bijections.coupling import Coupling
from flowppl.bijections.elementwise import Elementwise
from flowppl.bijections.exponential import MatrixExponential
from flowppl.bijections.image.autoregressive import ImageAutoregressive
from flowppl.bijections.image.coupling import ImageCoupling
from flowppl.bijections.image.emerging import EmergingConvolution
from flowppl.bijections.image.factor_out import FactorOut
from flowppl.bijections.image.pixelwise import Pixelwise
from flowppl.bijections.image.squeeze import Reshape, Squeeze
from flowppl.bijections.linear import LU, ActNorm, ElementwiseAffine, Permute, TriangularAffine
from flowppl.bijections.low_rank import LowRankAffine
from flowppl.bijections.orthogonal import QR, Householder
from flowppl.bijections.residual import Planar, Radial
from flowppl.bijections.sylvester import HouseholderSylvester, OrthogonalSylvester, TriangularSylvester
from flowppl.checks import did_you_mean
from flowppl.recipes.autoregressive import bnaf, iaf, maf, naf, nsf_autoregressive
from flowppl.recipes.continuous import cnf
from flowppl.recipes.coupling import flowpp, glow, nice, nsf, realnvp
from flowppl.recipes.image import flowpp_image, glow_image, nice_image, realnvp_image, tarflow_image
from flowppl.recipes.residual import (
    householder,
    householder_sylvester,
    orthogonal_sylvester,
    planar,
    radial,
    residual_flow,
    triangular_sylvester,
)

Recipe = Callable[..., Bijection]

sylvester = orthogonal_sylvester

# What both adapters have as transforms and lower-case helpers; tests hold them to these tables.
NAMED_BIJECTIONS: tuple[type[Bijection], ...] = (
    Planar,
    Radial,
    OrthogonalSylvester,
    HouseholderSylvester,
    TriangularSylvester,
    Coupling,
    Autoregressive,
    BlockAutoregressive,
    Continuous,
    ContractiveResidual,
    Elementwise,
    Permute,
    Householder,
    LU,
    QR,
    MatrixExponential,
    ActNorm,
    ElementwiseAffine,
    TriangularAffine,
    LowRankAffine,
    Squeeze,
    Reshape,
    Pixelwise,
    FactorOut,
    ImageCoupling,
    ImageAutoregressive,
    EmergingConvolution,
)
IMAGE_RECIPES: dict[str, Recipe] = {  # these take the shape of an image, the others a number of coordinates
    "nice_image": nice_image,
    "realnvp_image": realnvp_image,
    "glow_image": glow_image,
    "flowpp_image": flowpp_image,
    "tarflow_image": tarflow_image,
}
NAMED_RECIPES: dict[str, Recipe] = {
    "planar": planar,
    "radial": radial,
    "sylvester": sylvester,
    "orthogonal_sylvester": orthogonal_sylvester,
    "householder_sylvester": householder_sylvester,
    "triangular_sylvester": triangular_sylvester,
    "householder": householder,
    "nice": nice,
    "realnvp": realnvp,
    "nsf": nsf,
    "flowpp": flowpp,
    "glow": glow,
    "iaf": iaf,
    "maf": maf,
    "nsf_autoregressive": nsf_autoregressive,
    "naf": naf,
    "bnaf": bnaf,
    "cnf": cnf,
    "residual_flow": residual_flow,
    **IMAGE_RECIPES,
}

_RECIPES = dict(NAMED_RECIPES)


def available_flows() -> tuple[str, ...]:
    """The names that :func:`make_flow` and ``AutoFlow`` know.

    Example:
        >>> import flowppl as fp
        >>> "realnvp" in fp.available_flows()
        True
    """
    return tuple(sorted(_RECIPES))


def make_flow(name: str, dim: int | Sequence[int], **options) -> Bijection:
    """The flow of this name for ``dim`` coordinates, or for images of the shape ``dim``; ``options`` go to the recipe.

    Raises:
        ValueError: if no flow has this name; the message lists the known ones.

    Example:
        >>> import flowppl as fp
        >>> fp.make_flow("planar", 3, num_flows=4)
        Planar(dim=3, num_flows=4)
    """
    return recipe_of(name)(dim, **options)


def recipe_of(name: str) -> Recipe:
    """The recipe of this name.

    Raises:
        ValueError: if no flow has it.
    """
    if name not in _RECIPES:
        known = available_flows()
        raise ValueError(f"unknown flow {name!r}; known flows are {', '.join(known)}{did_you_mean(name, known)}")
    return _RECIPES[name]


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
    if not callable(recipe):
        raise TypeError(f"recipe must be a function from a dimension to a bijection, got {type(recipe).__name__}")
    _RECIPES[name] = recipe
