"""Flows for NumPyro: transforms, distributions and guides, with the names of :mod:`flowppl.pyro`.

Each bijection is here as a transform (``Planar``, ``Coupling``, ...), which takes its weights as ``params``, and
each recipe as a function that draws them with a key (``planar``, ``realnvp``, ``iaf``, ...). The other arguments
are those that :mod:`flowppl` gives them.
"""

from flowppl.numpyro import transforms as _transforms
from flowppl.numpyro.density import fit_density
from flowppl.numpyro.diagnostics import log_weights
from flowppl.numpyro.flow import Flow, FlowDistribution, flow
from flowppl.numpyro.guides import AutoFlow
from flowppl.numpyro.transforms import FlowTransform
from flowppl.numpyro.wrap import Wrap

globals().update(_transforms.named)

__all__ = [
    "AutoFlow",
    "Flow",
    "FlowDistribution",
    "FlowTransform",
    "Wrap",
    "flow",
    "fit_density",
    "log_weights",
    *_transforms.named,
]
