"""Normalizing flows for Pyro and NumPyro: each flow's mathematics written once, for both.

``flowppl`` itself needs NumPy and neither language's framework. ``flowppl.pyro`` and ``flowppl.numpyro`` make of its
bijections transforms, distributions and guides of the two languages.
"""

import importlib
from typing import Any

from flowppl._arrays.namespace import namespace
from flowppl.autoencoders.posterior import amortized_posterior
from flowppl.bijections.autoregressive import Autoregressive
from flowppl.bijections.block_autoregressive import BlockAutoregressive
from flowppl.bijections.combine import Chain, Invert
from flowppl.bijections.conditional import Conditional
from flowppl.bijections.continuous import Continuous
from flowppl.bijections.contract import Bijection, initialize, num_parameters
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
from flowppl.bijections.reversible import reversible
from flowppl.bijections.stack import Stack
from flowppl.bijections.subspace import Subspace
from flowppl.bijections.sylvester import HouseholderSylvester, OrthogonalSylvester, TriangularSylvester
from flowppl.declare import Constant, Normal, Parameter, Uniform
from flowppl.networks import MADE, MLP, CausalConv1d, CausalTransformer, ConvNet, PixelConvNet, Transformer
from flowppl.progress import set_progress
from flowppl.recipes import (
    available_flows,
    bnaf,
    cnf,
    flowpp,
    flowpp_image,
    glow,
    glow_image,
    householder,
    householder_sylvester,
    iaf,
    maf,
    make_flow,
    naf,
    nice,
    nice_image,
    nsf,
    nsf_autoregressive,
    orthogonal_sylvester,
    planar,
    radial,
    realnvp,
    realnvp_image,
    register_flow,
    residual_flow,
    sylvester,
    tarflow_image,
    triangular_sylvester,
)
from flowppl.serialization import load, save
from flowppl.univariate.base import Affine, Scale, Shift
from flowppl.univariate.gaussianization import Gaussianization
from flowppl.univariate.mixture import LogisticMixture
from flowppl.univariate.polynomial_splines import CubicSpline, LinearSpline
from flowppl.univariate.polynomials import Bernstein, SumOfSquares
from flowppl.univariate.splines import CircularSpline, RationalQuadraticSpline
from flowppl.version import __version__ as __version__

__all__ = [
    "LU",
    "MADE",
    "MLP",
    "QR",
    "ActNorm",
    "Affine",
    "Autoregressive",
    "Bernstein",
    "Bijection",
    "BlockAutoregressive",
    "Bounded",
    "CausalConv1d",
    "CausalTransformer",
    "Chain",
    "CircularSpline",
    "Conditional",
    "Constant",
    "Continuous",
    "ContractiveResidual",
    "ConvNet",
    "Coupling",
    "CubicSpline",
    "Damped",
    "Elementwise",
    "ElementwiseAffine",
    "EmergingConvolution",
    "FactorOut",
    "Frozen",
    "Gaussianization",
    "Householder",
    "HouseholderSylvester",
    "ImageAutoregressive",
    "ImageCoupling",
    "Invert",
    "LeakyReLU",
    "LinearSpline",
    "LogTails",
    "LogisticMixture",
    "LowRankAffine",
    "MatrixExponential",
    "Normal",
    "OrthogonalSylvester",
    "Parameter",
    "Permute",
    "PixelConvNet",
    "Pixelwise",
    "Planar",
    "Radial",
    "RationalQuadraticSpline",
    "Repeat",
    "Reshape",
    "Scale",
    "Shift",
    "Sigmoid",
    "Softplus",
    "Squeeze",
    "Stack",
    "Subspace",
    "SumOfSquares",
    "Tanh",
    "Transformer",
    "TriangularAffine",
    "TriangularSylvester",
    "Uniform",
    "amortized_posterior",
    "available_flows",
    "bnaf",
    "cnf",
    "flowpp",
    "flowpp_image",
    "glow",
    "glow_image",
    "householder",
    "householder_sylvester",
    "iaf",
    "initialize",
    "load",
    "maf",
    "make_flow",
    "naf",
    "namespace",
    "nice",
    "nice_image",
    "nsf",
    "nsf_autoregressive",
    "num_parameters",
    "orthogonal_sylvester",
    "planar",
    "radial",
    "realnvp",
    "realnvp_image",
    "register_flow",
    "residual_flow",
    "reversible",
    "save",
    "set_progress",
    "sylvester",
    "tarflow_image",
    "triangular_sylvester",
]


def __getattr__(name: str) -> Any:
    """Import the parts that need more than NumPy when they are asked for, as in ``flowppl.plotting.pairs(result)``."""
    if name in ("diagnostics", "images", "numpyro", "plotting", "pyro"):
        return importlib.import_module(f"flowppl.{name}")
    raise AttributeError(f"module 'flowppl' has no attribute {name!r}")
