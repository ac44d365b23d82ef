"""What a file says by name: the bijections, the base distributions and the supports that it can hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from flowppl.bijections.autoregressive import Autoregressive
from flowppl.bijections.block_autoregressive import BlockAutoregressive
from flowppl.bijections.combine import Chain, Invert
from flowppl.bijections.conditional import Conditional
from flowppl.bijections.continuous import Continuous
from flowppl.bijections.contractive import ContractiveResidual
from flowppl.bijections.coupling import Coupling
from flowppl.bijections.elementwise import Bounded, Elementwise, LeakyReLU, LogTails, Sigmoid, Softplus, Tanh
from flowppl.bijections.exponential import MatrixExponential
from flowppl.bijections.frozen import Damped, Frozen
from flowppl.bijections.image.autoregressive import ImageAutoregressive
from flowppl.bijections.image.coupling import ImageCoupling
from flowppl.bijections.image.emerging import EmergingConvolution
from flowppl.bijections.image.factor_out import FactorOut
from flowppl.bijections.image.pixelwise import Pixelwise
from flowppl.bijections.image.squeeze import Reshape, Squeeze
from flowppl.bijections.linear import LU, ActNorm, ElementwiseAffine, Permute, TriangularAffine
from flowppl.bijections.low_rank import LowRankAffine
from flowppl.bijections.orthogonal import QR, Householder
from flowppl.bijections.repeat import Repeat
from flowppl.bijections.residual import Planar, Radial
from flowppl.bijections.stack import Stack
from flowppl.bijections.subspace import Subspace
from flowppl.bijections.sylvester import HouseholderSylvester, OrthogonalSylvester, TriangularSylvester
from flowppl.checks import given_fields
from flowppl.networks import (
    MADE,
    MLP,
    CausalConv1d,
    CausalTransformer,
    ConvNet,
    ModuleNetwork,
    PixelConvNet,
    Transformer,
)
from flowppl.univariate.base import Affine, Scale, Shift
from flowppl.univariate.gaussianization import Gaussianization
from flowppl.univariate.mixture import LogisticMixture
from flowppl.univariate.polynomial_splines import CubicSpline, LinearSpline
from flowppl.univariate.polynomials import Bernstein, SumOfSquares
from flowppl.univariate.splines import CircularSpline, RationalQuadraticSpline

# What a flow in a file is made of, beside a user's own classes.
CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        LU,
        MADE,
        MLP,
        QR,
        ActNorm,
        Affine,
        Autoregressive,
        Bernstein,
        BlockAutoregressive,
        Bounded,
        CausalConv1d,
        CausalTransformer,
        Chain,
        CircularSpline,
        Conditional,
        Continuous,
        ContractiveResidual,
        ConvNet,
        Coupling,
        CubicSpline,
        Damped,
        Elementwise,
        ElementwiseAffine,
        EmergingConvolution,
        FactorOut,
        Frozen,
        Gaussianization,
        Householder,
        HouseholderSylvester,
        ImageAutoregressive,
        ImageCoupling,
        Invert,
        LeakyReLU,
        LinearSpline,
        LogTails,
        LogisticMixture,
        LowRankAffine,
        MatrixExponential,
        OrthogonalSylvester,
        Permute,
        Pixelwise,
        PixelConvNet,
        Planar,
        Radial,
        RationalQuadraticSpline,
        Repeat,
        Reshape,
        Scale,
        Shift,
        Sigmoid,
        Softplus,
        Squeeze,
        Stack,
        Subspace,
        SumOfSquares,
        Tanh,
        Transformer,
        TriangularAffine,
        TriangularSylvester,
    )
}
# Base distributions that both languages have, and the names of their arguments in the file.
BASES = {
    "Normal": ("loc", "scale"),
    "Laplace": ("loc", "scale"),
    "Logistic": ("loc", "scale"),
    "Cauchy": ("loc", "scale"),
    "StudentT": ("df", "loc", "scale"),
    "Uniform": ("low", "high"),
    "MultivariateNormal": ("loc", "scale_tril"),
    "Categorical": ("logits",),
    "MixtureSameFamily": ("mixture_distribution", "component_distribution"),
    "Independent": ("base_dist", "reinterpreted_batch_ndims"),
    "ExpandedDistribution": ("base_dist", "batch_shape"),
}

# Supports of latents, and the names of their arguments in the file. From lower_cholesky on only NumPyro maps to them.
SUPPORTS = {
    "real": (),
    "interval": ("lower_bound", "upper_bound"),
    "greater_than": ("lower_bound",),
    "less_than": ("upper_bound",),
    "independent": ("base_constraint", "reinterpreted_batch_ndims"),
    "simplex": (),
    "ordered_vector": (),
    "positive_ordered_vector": (),
    "corr_cholesky": (),
    "corr_matrix": (),
    "softplus_positive": (),
    "lower_cholesky": (),
    "softplus_lower_cholesky": (),
    "scaled_unit_lower_cholesky": (),
    "positive_definite": (),
    "l1_ball": (),
    "zero_sum": ("event_dim",),
}
# The classes of both languages with those names, and others with the same map from unconstrained space.
SUPPORT_CLASSES = {"_" + name.title().replace("_", ""): name for name in SUPPORTS} | {
    "_IndependentConstraint": "independent",
    "_RealVector": "independent",
    "_RealMatrix": "independent",
    "_UnitInterval": "interval",
    "_HalfOpenInterval": "interval",
    "_OpenInterval": "interval",
    "_Circular": "interval",
    "_Positive": "greater_than",
    "_Nonnegative": "greater_than",
    "_GreaterThanEq": "greater_than",
    "_LessThanEq": "less_than",
    "_PositiveSemiDefinite": "positive_definite",
}


MOST_BLOCKS = 100  # of a network, for each number in its file: far more than a right one has, and soon made


def check_base(distribution: Any, kind: str, hosts: tuple[str, ...]) -> None:
    """Raise TypeError unless the distribution is a host's own and of a kind that both languages have."""
    if kind not in BASES or type(distribution).__module__.partition(".")[0] not in hosts:
        raise TypeError(
            f"cannot save the base distribution, a {type(distribution).__name__}; those that can be saved are "
            f"{', '.join(BASES)}. Save flow.transform instead, and make the flow anew around it after loading"
        )


def check_support(site: str, support: Any) -> str:
    """The name in the file of a latent's support; raise TypeError if there is none."""
    kind, own = type(support), ("torch", "pyro", "numpyro")
    if kind.__name__ not in SUPPORT_CLASSES or kind.__module__.partition(".")[0] not in own:
        raise TypeError(
            f"cannot save a guide of site {site!r}, whose support is {support}; those that can be saved are "
            f"{', '.join(SUPPORTS)}. Pickle the guide (and its params) instead"
        )
    return SUPPORT_CLASSES[kind.__name__]


def encode(value: Any, where: str) -> Any:
    """A bijection, or what is in a field of one, as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        if CLASSES.get(name, type(value)) is not type(value):
            raise TypeError(f"cannot save {where}: flowppl has another class {name}; give yours a name of its own")
        return {"type": name} | {field: encode(each, f"{where}.{field}") for field, each in given_fields(value).items()}
    if isinstance(value, (tuple, list)):
        return [encode(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, ModuleNetwork):
        raise TypeError(
            f"cannot save {where}, the module {value!r} of your own: a file holds no code. Save the weights alone, as "
            "a state_dict or a pytree, and make the flow anew with the module to load them"
        )
    value = value.item() if isinstance(value, np.generic) else value
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"cannot save {where}, a {type(value).__name__}: a flow is saved as its classes and their fields, which must "
        "be numbers, strings, tuples or frozen dataclasses of these. Make it one, or save the weights alone, as a "
        "state_dict or a pytree"
    )


def decode(value: Any, classes: dict[str, type], num_numbers: int) -> Any:
    """What :func:`encode` was given; a list becomes a tuple, as a field of a hashable class must be.

    Args:
        classes: a user's own classes by name.
        num_numbers: how many numbers the arrays of the file have: what makes tables of its sizes has no larger ones.
    """
    if isinstance(value, list):
        return tuple(decode(entry, classes, num_numbers) for entry in value)
    if not isinstance(value, dict):
        return value
    name = value.get("type")
    if not isinstance(name, str):
        raise ValueError(f"the description must have the name of a class as its type, got {name!r}")
    kind = (CLASSES | classes).get(name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"unknown class {name!r}; if it is yours, load(path, classes=({name},))")
    fields = {field: decode(entry, classes, num_numbers) for field, entry in value.items() if field != "type"}
    unknown = fields.keys() - {field.name for field in dataclasses.fields(kind) if field.init}
    if unknown:
        raise ValueError(f"{name} has no field {', '.join(map(repr, sorted(unknown)))}")
    _check_sizes(kind, fields, num_numbers)
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be made of its fields: {error}") from error


def _check_sizes(kind, fields, num_numbers):
    """Raise ValueError for sizes whose tables, or whose names of blocks, would fill the memory when they are made.

    A right file has a number for each unit, and more than one for each block.
    """
    sizes = []
    if kind in (MADE, Autoregressive):
        hidden = fields.get("hidden_dims", ())
        sizes = [fields.get("dim"), *(hidden if isinstance(hidden, tuple) else (hidden,))]
    elif kind is Coupling and type(fields.get("network")) in (type(None), *CLASSES.values()):
        sizes = [fields.get("dim")]
    elif isinstance(fields.get("num_blocks"), int):
        sizes = [fields["num_blocks"] // MOST_BLOCKS]
    if any(isinstance(size, int) and size > num_numbers for size in sizes):
        raise ValueError(
            f"{kind.__name__} has more units or blocks than arrays of {num_numbers} numbers in all can have"
        )


def check_described(what: str, tree: Any, known: dict[str, tuple[str, ...]]) -> None:
    """Raise ValueError unless the tree names a known distribution or support, and has all its arguments."""
    name = tree.get("type") if isinstance(tree, dict) else None
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{what}: the type must be one of {', '.join(known)}, got {name!r}")
    if tree.keys() != {"type", *known[name]}:
        raise ValueError(f"{what}: {name} must have the arguments {', '.join(known[name])}, got {', '.join(tree)}")
    for value in tree.values():
        if isinstance(value, dict):
            check_described(what, value, known)
