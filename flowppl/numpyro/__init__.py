"""Flows for NumPyro: transforms, distributions and guides, with the names of :mod:`flowppl.pyro`.

Each layer is here as a transform (``Planar``, ``Coupling``, ...), which takes its weights as ``params``, and
each recipe as a function that draws them with a key (``planar``, ``realnvp``, ``iaf``, ...). The other arguments
are those that :mod:`flowppl` gives them.
"""

from flowppl.numpyro import transforms as _transforms
from flowppl.numpyro.density import fit_density
from flowppl.numpyro.diagnostics import diagnose, log_weights, resample
from flowppl.numpyro.fit import Fit, fit
from flowppl.numpyro.flow import Flow, FlowDistribution, flow
from flowppl.numpyro.guides import AutoFlow
from flowppl.numpyro.local import AutoLocalFlow
from flowppl.numpyro.objectives import ForwardKL, ImportanceWeightedELBO, PathELBO, annealed, linear_annealing
from flowppl.numpyro.transforms import FlowTransform
from flowppl.numpyro.vae import FlowVAE
from flowppl.numpyro.vae_evaluation import evaluate_vae
from flowppl.numpyro.vae_training import fit_vae
from flowppl.numpyro.wrap import Wrap

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
    "flow",
    "diagnose",
    "evaluate_vae",
    "fit_density",
    "fit_vae",
    "linear_annealing",
    "log_weights",
    "resample",
    *_transforms.named,
]
