"""Normalizing flows for Pyro and NumPyro: each flow's mathematics written once, for both.

``flowppl`` itself needs NumPy only. ``flowppl.pyro`` and ``flowppl.numpyro`` make of its bijections
transforms, distributions and guides of the two languages.
"""

from flowppl.autoregressive import Autoregressive
from flowppl.bijection import Bijection, Constant, Normal, Parameter, Uniform, initialize, num_parameters
from flowppl.combine import Chain, Invert, Repeat
from flowppl.conditional import Conditional
from flowppl.coupling import Coupling
from flowppl.linear import ElementwiseAffine, Permute, TriangularAffine
from flowppl.nets import MADE, MLP
from flowppl.recipes import available_flows, iaf, maf, make_flow, nice, planar, realnvp, register_flow
from flowppl.residual import Planar
from flowppl.univariate import Affine, Shift

__version__ = "0.1.0"

__all__ = [
    "MADE",
    "MLP",
    "Affine",
    "Autoregressive",
    "Bijection",
    "Chain",
    "Conditional",
    "Constant",
    "Coupling",
    "ElementwiseAffine",
    "Invert",
    "Normal",
    "Parameter",
    "Permute",
    "Planar",
    "Repeat",
    "Shift",
    "TriangularAffine",
    "Uniform",
    "available_flows",
    "iaf",
    "initialize",
    "maf",
    "make_flow",
    "nice",
    "num_parameters",
    "planar",
    "realnvp",
    "register_flow",
]
