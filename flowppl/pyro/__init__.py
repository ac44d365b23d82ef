"""Flows for Pyro: transforms, distributions and guides, with the names of :mod:`flowppl.numpyro`.

Each bijection is here as a transform (``Planar``, ``Coupling``, ...), and each recipe as a function that makes one
(``planar``, ``realnvp``, ``iaf``, ...), with the arguments that :mod:`flowppl` gives them.
"""

from flowppl.pyro import transforms as _transforms
from flowppl.pyro.density import fit_density
from flowppl.pyro.diagnostics import log_weights
from flowppl.pyro.flow import Flow, FlowDistribution
from flowppl.pyro.guides import AutoFlow
from flowppl.pyro.transforms import FlowTransform
from flowppl.pyro.wrap import Wrap

globals().update(_transforms.named)

__all__ = [
    "AutoFlow",
    "Flow",
    "FlowDistribution",
    "FlowTransform",
    "Wrap",
    "fit_density",
    "log_weights",
    *_transforms.named,
]
