"""Flows for Pyro: transforms, distributions and guides, with the names of :mod:`flowppl.numpyro`.

Each layer is here as a transform (``Planar``, ``Coupling``, ...), and each recipe as a function that makes one
(``planar``, ``realnvp``, ``iaf``, ...), with the arguments that :mod:`flowppl` gives them.
"""

try:
    import pyro as _pyro  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"flowppl.pyro needs {error.name}: pip install 'flowppl[pyro]'", name=error.name
    ) from error

from flowppl.autoencoders.evaluation import Evaluation
from flowppl.autoencoders.training import VAEFit
from flowppl.inference.density_evaluation import DensityEvaluation
from flowppl.pyro.calibration import sbc
from flowppl.pyro.continuous import Continuous
from flowppl.pyro.density import DensityFit, fit_density
from flowppl.pyro.density_evaluation import evaluate_density
from flowppl.pyro.density_mixture import Mixture
from flowppl.pyro.diagnostics import diagnose, log_weights, resample
from flowppl.pyro.discrete import Dequantized
from flowppl.pyro.fit import Fit, fit
from flowppl.pyro.flow import Flow, FlowDistribution
from flowppl.pyro.guides import AutoFlow
from flowppl.pyro.image_layers import (
    EmergingConvolution,
    FactorOut,
    ImageAutoregressive,
    ImageCoupling,
    Pixelwise,
    Reshape,
    Squeeze,
)
from flowppl.pyro.image_recipes import flowpp_image, glow_image, nice_image, realnvp_image, tarflow_image
from flowppl.pyro.latent_space import (
    AnomalyScores,
    anomaly_scores,
    attribute_direction,
    edit,
    inpaint,
    interpolate,
    interpolate_four,
)
from flowppl.pyro.layers import (
    Autoregressive,
    Coupling,
    Elementwise,
    HouseholderSylvester,
    OrthogonalSylvester,
    Planar,
    Radial,
    TriangularSylvester,
)
from flowppl.pyro.linear import (
    LU,
    QR,
    ActNorm,
    ElementwiseAffine,
    Householder,
    LowRankAffine,
    MatrixExponential,
    Permute,
    TriangularAffine,
)
from flowppl.pyro.local import AutoLocalFlow
from flowppl.pyro.logistic_mixture import DiscretizedLogisticMixture
from flowppl.pyro.mcmc import Chains
from flowppl.pyro.modules import ModuleNetwork
from flowppl.pyro.network_layers import BlockAutoregressive, ContractiveResidual
from flowppl.pyro.objectives import (
    ForwardKL,
    ImportanceWeightedELBO,
    PathELBO,
    RenyiELBO,
    annealed,
    linear_annealing,
)
from flowppl.pyro.pixelcnn import PixelCNN
from flowppl.pyro.recipes import (
    bnaf,
    cnf,
    flowpp,
    glow,
    householder,
    householder_sylvester,
    iaf,
    maf,
    naf,
    nice,
    nsf,
    nsf_autoregressive,
    orthogonal_sylvester,
    planar,
    radial,
    realnvp,
    residual_flow,
    sylvester,
    triangular_sylvester,
)
from flowppl.pyro.transforms import FlowTransform
from flowppl.pyro.vae import FlowVAE
from flowppl.pyro.vae_downscaled import SelfSupervisedVAE
from flowppl.pyro.vae_evaluation import evaluate_vae
from flowppl.pyro.vae_levels import HierarchicalVAE
from flowppl.pyro.vae_training import fit_vae
from flowppl.pyro.wrap import Wrap

__all__ = [
    "LU",
    "QR",
    "ActNorm",
    "AnomalyScores",
    "AutoFlow",
    "AutoLocalFlow",
    "Autoregressive",
    "BlockAutoregressive",
    "Chains",
    "Continuous",
    "ContractiveResidual",
    "Coupling",
    "DensityEvaluation",
    "DensityFit",
    "Dequantized",
    "DiscretizedLogisticMixture",
    "Elementwise",
    "ElementwiseAffine",
    "EmergingConvolution",
    "Evaluation",
    "FactorOut",
    "Fit",
    "Flow",
    "FlowDistribution",
    "FlowTransform",
    "FlowVAE",
    "ForwardKL",
    "HierarchicalVAE",
    "Householder",
    "HouseholderSylvester",
    "ImageAutoregressive",
    "ImageCoupling",
    "ImportanceWeightedELBO",
    "LowRankAffine",
    "MatrixExponential",
    "Mixture",
    "ModuleNetwork",
    "OrthogonalSylvester",
    "PathELBO",
    "Permute",
    "PixelCNN",
    "Pixelwise",
    "Planar",
    "Radial",
    "RenyiELBO",
    "Reshape",
    "SelfSupervisedVAE",
    "Squeeze",
    "TriangularAffine",
    "TriangularSylvester",
    "VAEFit",
    "Wrap",
    "annealed",
    "anomaly_scores",
    "attribute_direction",
    "bnaf",
    "cnf",
    "diagnose",
    "edit",
    "evaluate_density",
    "evaluate_vae",
    "fit",
    "fit_density",
    "fit_vae",
    "flowpp",
    "flowpp_image",
    "glow",
    "glow_image",
    "householder",
    "householder_sylvester",
    "iaf",
    "inpaint",
    "interpolate",
    "interpolate_four",
    "linear_annealing",
    "log_weights",
    "maf",
    "naf",
    "nice",
    "nice_image",
    "nsf",
    "nsf_autoregressive",
    "orthogonal_sylvester",
    "planar",
    "radial",
    "realnvp",
    "realnvp_image",
    "resample",
    "residual_flow",
    "sbc",
    "sylvester",
    "tarflow_image",
    "triangular_sylvester",
]
