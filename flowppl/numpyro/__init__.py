"""Flows for NumPyro: transforms, distributions and guides, with the names of :mod:`flowppl.pyro`.

Each layer is here as a transform (``Planar``, ``Coupling``, ...), which takes its weights as ``params``, and
each recipe as a function that draws them with a key (``planar``, ``realnvp``, ``iaf``, ...). The other arguments
are those that :mod:`flowppl` gives them.
"""

try:
    import numpyro as _numpyro  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"flowppl.numpyro needs {error.name}: pip install 'flowppl[numpyro]'", name=error.name
    ) from error

from flowppl.autoencoders.evaluation import Evaluation
from flowppl.autoencoders.training import VAEFit
from flowppl.inference.density_evaluation import DensityEvaluation
from flowppl.numpyro.calibration import sbc
from flowppl.numpyro.continuous import Continuous
from flowppl.numpyro.density import DensityFit, fit_density
from flowppl.numpyro.density_evaluation import evaluate_density
from flowppl.numpyro.density_mixture import Mixture
from flowppl.numpyro.diagnostics import diagnose, log_weights, resample
from flowppl.numpyro.discrete import Dequantized
from flowppl.numpyro.fit import Fit, fit
from flowppl.numpyro.flow import Flow, FlowDistribution, flow
from flowppl.numpyro.guides import AutoFlow
from flowppl.numpyro.image_layers import (
    EmergingConvolution,
    FactorOut,
    ImageAutoregressive,
    ImageCoupling,
    Pixelwise,
    Reshape,
    Squeeze,
)
from flowppl.numpyro.image_recipes import flowpp_image, glow_image, nice_image, realnvp_image, tarflow_image
from flowppl.numpyro.latent_space import (
    AnomalyScores,
    anomaly_scores,
    attribute_direction,
    edit,
    inpaint,
    interpolate,
    interpolate_four,
)
from flowppl.numpyro.layers import (
    Autoregressive,
    Coupling,
    Elementwise,
    HouseholderSylvester,
    OrthogonalSylvester,
    Planar,
    Radial,
    TriangularSylvester,
)
from flowppl.numpyro.linear import (
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
from flowppl.numpyro.local import AutoLocalFlow
from flowppl.numpyro.logistic_mixture import DiscretizedLogisticMixture
from flowppl.numpyro.mcmc import Chains
from flowppl.numpyro.modules import ModuleNetwork
from flowppl.numpyro.network_layers import BlockAutoregressive, ContractiveResidual
from flowppl.numpyro.objectives import (
    ForwardKL,
    ImportanceWeightedELBO,
    PathELBO,
    RenyiELBO,
    annealed,
    linear_annealing,
)
from flowppl.numpyro.pixelcnn import PixelCNN
from flowppl.numpyro.recipes import (
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
from flowppl.numpyro.transforms import FlowTransform
from flowppl.numpyro.vae import FlowVAE
from flowppl.numpyro.vae_downscaled import SelfSupervisedVAE
from flowppl.numpyro.vae_evaluation import evaluate_vae
from flowppl.numpyro.vae_levels import HierarchicalVAE
from flowppl.numpyro.vae_training import fit_vae
from flowppl.numpyro.wrap import Wrap

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
    "flow",
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
