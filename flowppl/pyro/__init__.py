"""Flows for Pyro: transforms, distributions and guides, with the names of :mod:`flowppl.numpyro`.

Each layer is here as a transform (``Planar``, ``Coupling``, ...), and each recipe as a function that makes one
(``planar``, ``realnvp``, ``iaf``, ...), with the arguments that :mod:`flowppl` gives them.
"""

from flowppl.pyro import transforms as _transforms
from flowppl.pyro.density import fit_density
from flowppl.pyro.diagnostics import diagnose, log_weights, resample
from flowppl.pyro.fit import Fit, fit
from flowppl.pyro.flow import Flow, FlowDistribution
from flowppl.pyro.guides import AutoFlow
from flowppl.pyro.local import AutoLocalFlow
from flowppl.pyro.objectives import ForwardKL, ImportanceWeightedELBO, PathELBO, annealed, linear_annealing
from flowppl.pyro.transforms import FlowTransform
from flowppl.pyro.vae import FlowVAE
from flowppl.pyro.vae_evaluation import evaluate_vae
from flowppl.pyro.vae_training import fit_vae
from flowppl.pyro.wrap import Wrap

globals().update(_transforms.named)

__all__ = [
    "Fit",
    "fit",
    "AutoFlow",
    "AutoLocalFlow",
    "Flow",
    "FlowDistribution",
    "FlowTransform",
    "FlowVAE",
    "ForwardKL",
    "ImportanceWeightedELBO",
    "PathELBO",
    "Wrap",
    "annealed",
    "diagnose",
    "evaluate_vae",
    "fit_density",
    "fit_vae",
    "linear_annealing",
    "log_weights",
    "resample",
    *_transforms.named,
]
