"""Every bijection once, with what the generic tests need to run it on any array library."""

import math

import array_api_strict
import jax.numpy as jnp
import numpy as np
import torch

import flowppl as fp
from flowppl._arrays import tree as _tree

MIXED = (True, False, False, True, False)

# One row per kind and per way of building it that takes a path of its own through the code.
BIJECTIONS = {
    "planar": fp.Planar(5),
    "planar-1d": fp.Planar(1, num_flows=2),
    "planar-stack": fp.Planar(5, num_flows=4),
    "planar-conditional": fp.Conditional(fp.Planar(5, num_flows=3), context_dim=2),
    "planar-conditional-mlp": fp.Conditional(fp.Planar(2), context_dim=3, hidden_dims=4),
    "radial": fp.Radial(5),
    "radial-1d": fp.Radial(1),
    "radial-conditional": fp.Conditional(fp.Repeat(fp.Radial(3), 2), context_dim=2),
    "sylvester-orthogonal": fp.OrthogonalSylvester(5, num_units=3),
    "sylvester-orthogonal-conditional": fp.Conditional(fp.OrthogonalSylvester(4, num_units=2), context_dim=2),
    "sylvester-householder": fp.HouseholderSylvester(5, num_units=3, num_reflections=2),
    "sylvester-householder-full": fp.HouseholderSylvester(3),
    "sylvester-householder-conditional": fp.Conditional(fp.HouseholderSylvester(4, 2, 3), context_dim=2),
    "sylvester-triangular": fp.TriangularSylvester(3),
    "sylvester-triangular-conditional": fp.Conditional(fp.TriangularSylvester(2), context_dim=2),
    "householder": fp.Householder(5, num_reflections=4),
    "householder-conditional": fp.Conditional(fp.Householder(5, num_reflections=2), context_dim=2),
    "lu": fp.LU(5),
    "lu-permuted": fp.LU(3, permutation=(2, 0, 1)),
    "qr": fp.QR(5),
    "matrix-exponential": fp.MatrixExponential(4),
    "matrix-exponential-conditional": fp.Conditional(fp.MatrixExponential(2), context_dim=2),
    "act-norm": fp.ActNorm(5),
    "elementwise-spline": fp.Elementwise(5, fp.RationalQuadraticSpline(4, bound=3.0)),
    "elementwise-mixture": fp.Elementwise(3, fp.LogisticMixture(3)),
    "elementwise-bernstein": fp.Elementwise(3, fp.Bernstein(3, bound=2.0)),
    "elementwise-squares": fp.Elementwise(2, fp.SumOfSquares(2, 1, bound=2.0)),
    "elementwise-gaussianization": fp.Elementwise(2, fp.Gaussianization(2)),
    "elementwise-linear-spline": fp.Elementwise(3, fp.LinearSpline(3, bound=2.0)),
    "elementwise-cubic-spline": fp.Elementwise(3, fp.CubicSpline(3, bound=2.0)),
    "elementwise-scale-conditional": fp.Conditional(fp.Elementwise(3, fp.Scale()), context_dim=2),
    "coupling": fp.Coupling(5, hidden_dims=8),
    "coupling-1d": fp.Coupling(1, hidden_dims=8),
    "coupling-1d-context": fp.Coupling(1, hidden_dims=8, context_dim=2),
    "coupling-back": fp.Coupling(5, hidden_dims=8, mask=(False, False, False, True, True)),
    "coupling-mixed": fp.Coupling(5, hidden_dims=8, mask=MIXED, context_dim=2),
    "coupling-shift": fp.Coupling(5, fp.Shift(), hidden_dims=8),
    "coupling-alternating": fp.Coupling(5, hidden_dims=8, mask="alternating"),
    "coupling-spline": fp.Coupling(5, fp.RationalQuadraticSpline(), hidden_dims=8, context_dim=2),
    "coupling-circular": fp.Coupling(4, fp.CircularSpline(4), hidden_dims=8),
    "coupling-mixture": fp.Coupling(4, fp.LogisticMixture(3), hidden_dims=8),
    "coupling-linear-net": fp.Coupling(2, hidden_dims=(), context_dim=1),
    "autoregressive": fp.Autoregressive(5, hidden_dims=8),
    "autoregressive-1d": fp.Autoregressive(1, hidden_dims=8),
    "autoregressive-1d-context": fp.Autoregressive(1, hidden_dims=8, context_dim=2),
    "autoregressive-narrow": fp.Autoregressive(5, hidden_dims=(3, 2), context_dim=2),
    "autoregressive-linear-net": fp.Autoregressive(5, hidden_dims=()),
    "autoregressive-shift": fp.Autoregressive(5, fp.Shift(), hidden_dims=8, activation="tanh"),
    "autoregressive-spline": fp.Autoregressive(3, fp.RationalQuadraticSpline(3, bound=2.0), hidden_dims=8),
    "autoregressive-mixture": fp.Autoregressive(3, fp.LogisticMixture(2), hidden_dims=4),
    "autoregressive-circular": fp.Autoregressive(3, fp.CircularSpline(3), hidden_dims=8),
    "autoregressive-order": fp.Autoregressive(5, hidden_dims=8, order=(3, 0, 4, 2, 1)),
    "autoregressive-adjacency": fp.Autoregressive(
        4, hidden_dims=8, adjacency=((0, 1, 0, 0), (0, 0, 0, 0), (1, 1, 0, 0), (0, 1, 0, 0))
    ),
    "autoregressive-residual": fp.Autoregressive(4, hidden_dims=(8, 8), residual=True, context_dim=2),
    "autoregressive-inverted": fp.Invert(fp.Autoregressive(5, hidden_dims=8)),
    "block-autoregressive": fp.BlockAutoregressive(4, hidden_factors=(3, 2)),
    "block-autoregressive-1d": fp.BlockAutoregressive(1, hidden_factors=4),
    "block-autoregressive-context": fp.BlockAutoregressive(3, hidden_factors=3, context_dim=2),
    "continuous": fp.Continuous(3, hidden_dims=4, num_steps=3, lipschitz=4.0, context_dim=2),
    "contractive-residual": fp.ContractiveResidual(3, hidden_dims=(5, 4)),
    "contractive-residual-1d": fp.ContractiveResidual(1, hidden_dims=4, activation="silu", lipschitz=0.7),
    "contractive-residual-context": fp.ContractiveResidual(
        2, hidden_dims=4, context_dim=2, activation="softplus", lipschitz=0.8
    ),
    "permute": fp.Permute((2, 0, 1, 4, 3)),
    "elementwise-affine": fp.ElementwiseAffine(5),
    "elementwise-affine-conditional": fp.Conditional(fp.ElementwiseAffine(5), context_dim=2),
    "triangular-affine": fp.TriangularAffine(5),
    "triangular-affine-conditional": fp.Conditional(fp.TriangularAffine(3), context_dim=2),
    "low-rank-affine": fp.LowRankAffine(4, rank=2),
    "low-rank-affine-conditional": fp.Conditional(fp.LowRankAffine(3, rank=1), context_dim=2),
    "subspace": fp.Subspace(5, fp.TriangularAffine(2)),
    "subspace-coupling": fp.Subspace(4, fp.Coupling(3, hidden_dims=4, context_dim=2)),
    "subspace-conditional": fp.Conditional(fp.Subspace(4, fp.ElementwiseAffine(2)), context_dim=2),
    "chain": fp.Chain([fp.Planar(3), fp.Permute((1, 2, 0)), fp.Coupling(3, hidden_dims=4, context_dim=2)]),
    "stack": fp.Stack([fp.Coupling(2, hidden_dims=4, context_dim=2), fp.Permute((1, 0)), fp.ElementwiseAffine(1)]),
    "stack-conditional": fp.Stack(
        [fp.Coupling(1, hidden_dims=4, context_dim=2), fp.Coupling(2, hidden_dims=4, context_dim=3)], conditional=True
    ),
    "repeat": fp.Repeat(fp.Chain([fp.Coupling(3, hidden_dims=4), fp.Permute((1, 2, 0))]), 3),
    "amortized-gaussian": fp.amortized_posterior(3, 2, None),
    "amortized-sylvester": fp.amortized_posterior(3, 2, "sylvester", 2, num_units=2),
    "amortized-iaf": fp.amortized_posterior(3, 2, "iaf", 2, hidden_dims=4),
    "chain-reversible": fp.Chain(
        [
            fp.Repeat(fp.Chain([fp.Coupling(3, hidden_dims=4, context_dim=2), fp.Permute((1, 2, 0))]), 2),
            fp.Damped(fp.Coupling(3, hidden_dims=4)),
            fp.Invert(fp.Conditional(fp.TriangularAffine(3), context_dim=2)),
        ],
        reversible=True,
    ),
    "damped": fp.Damped(fp.Coupling(3, hidden_dims=4, context_dim=2)),
    "damped-repeat": fp.Damped(fp.Repeat(fp.Coupling(3, hidden_dims=4), 2), factor=0.5),
    "repeat-scan": fp.Repeat(fp.Autoregressive(3, hidden_dims=4, context_dim=2), 3, scan=True),
    "repeat-conditional": fp.Conditional(fp.Repeat(fp.ElementwiseAffine(3), 2), context_dim=2),
    "squeeze": fp.Squeeze((1, 2, 4)),
    "reshape": fp.Reshape((4,), (1, 2, 2)),
    "elementwise-image": fp.Elementwise((2, 1, 2), fp.Affine()),
    "pixelwise-lu": fp.Pixelwise((3, 2, 1), fp.LU(3, permutation=(2, 0, 1))),
    "pixelwise-act-norm": fp.Pixelwise((2, 2, 1), fp.ActNorm(2)),
    "pixelwise-coupling": fp.Pixelwise((2, 1, 2), fp.Coupling(2, hidden_dims=4, context_dim=2)),
    "image-autoregressive": fp.ImageAutoregressive((2, 2, 2), network=fp.PixelConvNet(2, 2, 2, 1, 3)),
    "sequence-autoregressive": fp.ImageAutoregressive(
        (1, 3), fp.Shift(), network=fp.CausalConv1d(1, 1, 2, (), context_dim=2)
    ),
    "image-autoregressive-transformer": fp.ImageAutoregressive(
        (2, 1, 3), network=fp.CausalTransformer(2, 2, (1, 3), 4, 1, 2, context_dim=2)
    ),
    "image-coupling-transformer": fp.ImageCoupling((3, 1, 2), network=fp.Transformer(1, 4, (1, 2), 4, 1, 2)),
    "image-coupling": fp.ImageCoupling((3, 1, 2), flip=True, network=fp.ConvNet(2, 2, 3, 1, kernel_size=1)),
    "image-coupling-checkerboard": fp.ImageCoupling(
        (1, 2, 3), fp.Affine(2.0), "checkerboard", hidden_channels=2, num_blocks=0, context_dim=2
    ),
    "factor-out": fp.FactorOut(
        (2, 2, 2),
        fp.Pixelwise((1, 2, 2), fp.ActNorm(1)),
        fp.ImageCoupling((2, 2, 2), hidden_channels=2, num_blocks=0, context_dim=2),
    ),
    "emerging": fp.EmergingConvolution((2, 2, 3)),
    "pixelwise-conditional": fp.Conditional(fp.Pixelwise((2, 1, 2), fp.QR(2)), context_dim=2),
}

# Fixed maps, most of them onto an interval: they cannot start at the identity.
ENDS = {
    "sigmoid": fp.Elementwise(3, fp.Sigmoid()),
    "softplus": fp.Elementwise(3, fp.Softplus()),
    "tanh": fp.Elementwise(3, fp.Tanh()),
    "leaky-relu": fp.Elementwise(3, fp.LeakyReLU(0.3)),
    "bounded": fp.Elementwise(3, fp.Bounded(-1.0, 3.0)),
    "log-tails": fp.Elementwise(3, fp.LogTails(0.5)),
}

VECTOR_RECIPES = sorted(set(fp.recipes.NAMED_RECIPES) - set(fp.recipes.IMAGE_RECIPES) - {"sylvester"})
RECIPES = {name: fp.make_flow(name, 6) for name in VECTOR_RECIPES}
FEW_STEPS = {"cnf": {"num_steps": 2, "lipschitz": 3.0}}  # what is slow otherwise
IMAGE_RECIPES = {
    "nice_image": fp.nice_image((1, 2, 3), 2, hidden_dims=4),
    "realnvp_image": fp.realnvp_image((1, 4, 4), 1, hidden_channels=2, num_blocks=1, context_dim=2),
    "glow_image": fp.glow_image((1, 4, 8), 2, num_scales=2, hidden_channels=2),
    "flowpp_image": fp.flowpp_image((1, 4, 2), (1, 1, 1), num_components=2, hidden_channels=2, num_blocks=0),
    "tarflow_image": fp.tarflow_image(
        (1, 2, 4), 2, num_components=2, hidden_dim=4, num_blocks=1, num_heads=2, context_dim=2
    ),
}

NAMESPACES = {
    "numpy": np.asarray,
    "strict": array_api_strict.asarray,
    "torch": lambda a: torch.tensor(np.asarray(a)),
    "jax": jnp.asarray,
}
AUTODIFF = ("torch", "jax")


def draw(bijection, rng, scale=1.0, batch=()):
    """Weights from N(0, scale^2), those of matrices divided by the root of their number of inputs."""

    def entry(parameter):
        # A matrix has its inputs as rows, a convolution as its last three axes.
        rank, shape = len(parameter.shape), parameter.shape
        fan_in = math.prod(shape[-3:]) if rank > 3 else shape[-2] if rank > 1 else 1
        return scale * rng.normal(size=(*batch, *parameter.shape)) / max(fan_in, 1) ** 0.5

    return _tree.map_tree(entry, bijection.parameters())


class NumpyDraws:
    """First values from a NumPy generator."""

    def __init__(self, rng):
        self.normal = lambda shape: rng.normal(size=shape)
        self.uniform = lambda shape: rng.uniform(size=shape)
        self.full = np.full


def merged(bijection, params, namespace="numpy"):
    """Weights and constants as one tree of arrays of a library."""
    return _tree.map_tree(NAMESPACES[namespace], _tree.merge(params, bijection.constants()))


def context_for(bijection, rng, batch=()):
    return rng.normal(size=(*batch, bijection.context_dim)) if bijection.context_dim else None


def to(namespace, array):
    return None if array is None else NAMESPACES[namespace](array)


def numpy(array):
    return array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
