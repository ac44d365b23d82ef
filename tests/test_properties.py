"""Random compositions of all bijections keep the contract, for all dtypes, shapes and values."""

import contextlib
import functools
import math
import os

import hypothesis
import jax.numpy as jnp
import numpy as np
import pyro
import pyro.distributions as pdist
import pytest
import torch
from catalogue import BIJECTIONS, NAMESPACES, RECIPES, VECTOR_RECIPES, NumpyDraws, draw, merged, numpy
from hypothesis import strategies as st

import flowppl as fp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree

NUM = int(os.environ.get("FLOWPPL_EXAMPLES", "3000"))  # of each test of thousands
EVERYTHING = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}
quick = hypothesis.settings(max_examples=100, derandomize=True, **EVERYTHING)
thorough = hypothesis.settings(max_examples=NUM, **EVERYTHING)
# Without a compiler each takes JAX a good part of a second.
few = hypothesis.settings(max_examples=2, derandomize=True, **EVERYTHING)
hundreds = hypothesis.settings(max_examples=NUM // 15, **EVERYTHING)
SCALES = st.sampled_from([0.0, 0.3, 1.0, 3.0])  # of weights; 0 is their start
WHOLE = st.integers(0, 2**32 - 1)
BATCHES = [(), (0,), (1,), (3,), (2, 0), (2, 3), (2, 1, 3)]
DTYPES = {
    "float16": (torch.float16, jnp.float16),
    "bfloat16": (torch.bfloat16, jnp.bfloat16),
    "float32": (torch.float32, jnp.float32),
    "float64": (torch.float64, jnp.float64),
}


class Maker:
    """Makes random bijections; hypothesis draws whole numbers only, for its other strategies take their time."""

    def __init__(self, draw):
        self.draw = draw

    def number(self, low, high):
        return self.draw(st.integers(low, high))

    def one_of(self, *options):
        return options[self.number(0, len(options) - 1)]

    def order(self, dim):
        return tuple(sorted(range(dim), key=[self.number(0, 9) for _ in range(dim)].__getitem__))

    def univariate(self):
        """A map of one number that takes parameters."""
        few = self.number(1, 4)
        return self.one_of(
            fp.Affine(),
            fp.Affine((-1.0, 2.0)),
            fp.Shift(),
            fp.Scale(),
            fp.RationalQuadraticSpline(few, bound=0.5),
            fp.RationalQuadraticSpline(few, bound=3.0),
            fp.CircularSpline(few),
            fp.LogisticMixture(few),
            fp.Gaussianization(few),
            fp.LinearSpline(few, bound=3.0),
            fp.CubicSpline(few, bound=3.0),
            fp.Bernstein(few, bound=3.0),
            fp.SumOfSquares(few, few, bound=3.0),
        )

    def plain(self, dim):
        """A layer of vectors without a context, whose weights a network may make."""
        few, units = self.number(1, 3), self.number(1, dim)
        return self.one_of(
            lambda: fp.Planar(dim, few),
            lambda: fp.Radial(dim),
            lambda: fp.OrthogonalSylvester(dim, units),
            lambda: fp.HouseholderSylvester(dim, units, few),
            lambda: fp.TriangularSylvester(dim),
            lambda: fp.Householder(dim, few),
            lambda: fp.LU(dim, permutation=self.order(dim)),
            lambda: fp.QR(dim),
            lambda: fp.MatrixExponential(dim),
            lambda: fp.LowRankAffine(dim, units),
            lambda: fp.ActNorm(dim),
            lambda: fp.ElementwiseAffine(dim),
            lambda: fp.TriangularAffine(dim),
            lambda: fp.Elementwise(dim, self.univariate()),
        )()

    def of_image(self, dim, context_dim):
        """A layer of images, between two that make an image of a vector and a vector of an image."""
        sizes = range(1, dim + 1)
        shape = self.one_of(*((c, h, dim // (c * h)) for c in sizes for h in sizes if dim % (c * h) == 0))
        channels, *sides = shape
        network = {"hidden_channels": max(2, channels), "num_blocks": self.number(0, 1), "context_dim": context_dim}
        kinds = [
            lambda: fp.Elementwise(shape, self.univariate()),
            lambda: fp.Pixelwise(shape, self.plain(channels)),
            lambda: fp.ImageAutoregressive(shape, self.univariate(), **network),
        ]
        if min(sides) > 1:
            kinds.append(lambda: fp.EmergingConvolution(shape))
        if channels > 1:
            kinds.append(lambda: fp.ImageCoupling(shape, self.univariate(), flip=self.one_of(False, True), **network))
        if max(sides) > 1:
            kinds.append(lambda: fp.ImageCoupling(shape, self.univariate(), "checkerboard", **network))
        if channels % 2 == 0:
            half, prior = (channels // 2, *sides), fp.ImageCoupling(shape, **network)
            kinds.append(lambda: fp.FactorOut(shape, fp.Elementwise(half, self.univariate()), prior))
        there = fp.Reshape((dim,), shape)
        return fp.Chain([there, self.one_of(*kinds)(), fp.Invert(there)])

    def layer(self, dim, context_dim, depth=2):
        """Any bijection of ``dim`` numbers, also one made of others."""
        hidden_dims = self.one_of((), (3,), (4, 2))
        network = {"hidden_dims": hidden_dims, "context_dim": context_dim}
        masks = [None] if dim == 1 else [None, "alternating", (False,) + (True,) * (dim - 1)]
        kinds = [
            lambda: self.plain(dim),
            lambda: fp.Permute(self.order(dim)),
            lambda: fp.Coupling(dim, self.univariate(), mask=self.one_of(*masks), **network),
            lambda: fp.Autoregressive(dim, self.univariate(), order=self.one_of(None, self.order(dim)), **network),
            lambda: fp.BlockAutoregressive(dim, self.one_of(2, (2, 1)), context_dim),
            lambda: fp.ContractiveResidual(dim, **network, lipschitz=0.5),
            lambda: self.of_image(dim, context_dim),
            lambda: fp.Continuous(dim, num_steps=self.number(2, 3), lipschitz=3.0, **network),
        ]
        if context_dim:
            kinds.append(lambda: fp.Conditional(self.plain(dim), **network))
        if depth:
            kinds += [
                lambda: fp.Chain([self.layer(dim, context_dim, depth - 1) for _ in range(self.number(1, 3))]),
                lambda: fp.Invert(self.layer(dim, context_dim, depth - 1)),
                lambda: fp.Repeat(self.layer(dim, context_dim, depth - 1), self.number(1, 3), self.one_of(False, True)),
                lambda: fp.Damped(self.layer(dim, context_dim, depth - 1), self.one_of(0.5, 1.0)),
                lambda: fp.Frozen(self.layer(dim, context_dim, depth - 1)),
            ]
        if depth and dim > 1:
            kinds.append(lambda: fp.Subspace(dim, self.layer(dim - 1, context_dim, 0)))
            kinds.append(lambda: fp.Stack([self.layer(1, context_dim, 0), self.layer(dim - 1, context_dim, 0)]))
        return self.one_of(*kinds)()


ENDS = fp.Sigmoid(), fp.Softplus(), fp.Tanh(), fp.LeakyReLU(0.3), fp.Bounded(-1.0, 3.0), fp.LogTails(0.5)


@st.composite
def flows(draw):
    """A composition, with an end of its own now and then."""
    make = Maker(draw)
    dim, context_dim = make.one_of(1, 2, 3, 4, 6), make.one_of(0, 0, 2)
    flow = make.layer(dim, context_dim)
    return make.one_of(flow, flow, flow, fp.Chain([flow, fp.Elementwise(dim, make.one_of(*ENDS))]))


def weights(flow, scale, rng):
    """First weights for a scale of 0, otherwise draws."""
    return draw(flow, rng, scale) if scale else fp.initialize(flow, NumpyDraws(rng))


def inside(support, event):
    """A real event brought into an interval."""
    low, high = support
    if math.isinf(low):
        return event
    return low + np.abs(event) + 1e-3 if math.isinf(high) else low + (high - low) / (1 + np.exp(-event))


def start(flow, direction):
    """The shape and the support of the side that a direction starts from."""
    return (flow.x_shape, flow.x_support) if direction == "forward" else (flow.y_shape, flow.y_support)


def tell_tame(flow, scale, seed, batch, library):
    """The inverse undoes the map, and the determinants are those of automatic differentiation."""
    rng = np.random.default_rng(seed)
    params = merged(flow, weights(flow, scale, rng), library)
    to = NAMESPACES[library]
    context = to(rng.normal(size=(*batch, flow.context_dim))) if flow.context_dim else None
    x = rng.normal(size=(*batch, *flow.x_shape))
    y, log_det = flow.forward(params, to(x), context)
    again, back = flow.inverse(params, y, context)
    assert tuple(y.shape) == (*batch, *flow.y_shape)
    assert tuple(log_det.shape) == tuple(back.shape) == batch
    if not math.prod(batch):
        return
    one = (0,) * len(batch)
    # Derivatives by torch for all libraries: those of JAX take a second without a compiler, and longer with it.
    tensors, given = _tree.map_tree(lambda leaf: torch.tensor(numpy(leaf)), params), None
    if context is not None:
        given = torch.tensor(numpy(context)[one])
    matrix = torch.func.jacfwd(lambda x: flow.forward(tensors, x, given)[0])(torch.tensor(x[one]))
    matrix = numpy(matrix).reshape(x[one].size, x[one].size)
    condition = np.linalg.cond(matrix)
    hypothesis.assume(condition < 1e8)
    # Near the end of a support the slope that torch derives is one less almost one.
    rest = 0.0 if flow.y_support == (-math.inf, math.inf) else 1e-15 / np.linalg.norm(matrix, -2)
    np.testing.assert_allclose(
        numpy(log_det)[one], np.linalg.slogdet(matrix)[1], rtol=1e-9, atol=1e-9 + 1e-14 * condition + rest
    )
    rounding = 1e-12 * condition
    np.testing.assert_allclose(numpy(again)[one], x[one], rtol=1e-6 + rounding, atol=1e-6 + rounding)
    np.testing.assert_allclose(numpy(back)[one], -numpy(log_det)[one], rtol=1e-6, atol=1e-6 + rounding)


of_compositions = hypothesis.given(flow=flows(), scale=SCALES, seed=WHOLE, batch=st.sampled_from(BATCHES))


@quick
@of_compositions
def test_compositions_are_bijections(flow, scale, seed, batch):
    tell_tame(flow, scale, seed, batch, "torch")


@pytest.mark.stress
@thorough
@of_compositions
def test_thousands_of_compositions_are_bijections(flow, scale, seed, batch):
    tell_tame(flow, scale, seed, batch, "torch")


@few
@of_compositions
def test_compositions_are_bijections_in_jax(flow, scale, seed, batch):
    tell_tame(flow, scale, seed, batch, "jax")


@pytest.mark.stress
@hundreds
@of_compositions
def test_hundreds_of_compositions_are_bijections_in_jax(flow, scale, seed, batch):
    tell_tame(flow, scale, seed, batch, "jax")


VALUES = {"tame": None, "zero": 0.0, "minus zero": -0.0, "subnormal": 1.0, "far": 1.0, "inf": math.inf, "nan": math.nan}


@contextlib.contextmanager
def largest():
    """A list with the largest number, or log determinant, on the way through all bijections at work within."""
    found, kept = [0.0], []

    def watched(function):
        @functools.wraps(function)
        def call(self, params, event, context=None):
            image, log_det = function(self, params, event, context)
            for each in (image, log_det):
                found[0] = max(found[0], float(torch.nan_to_num(each, posinf=math.inf).abs().max()))
            return image, log_det

        return call

    kinds = [fp.Bijection]
    for kind in kinds:
        kinds += kind.__subclasses__()
        for direction in ("forward", "inverse"):
            if direction in vars(kind):
                kept.append((kind, direction, vars(kind)[direction]))
                setattr(kind, direction, watched(vars(kind)[direction]))
    try:
        yield found
    finally:
        for kind, direction, function in reversed(kept):  # a kind of two parents is watched twice
            setattr(kind, direction, function)


def in_jax(array, dtype):
    """A tensor as an array of JAX, in a dtype that NumPy need not know; a whole number keeps its own."""
    if array is None or not array.is_floating_point():
        return None if array is None else jnp.asarray(numpy(array))
    return jnp.asarray(numpy(array.double())).astype(dtype)


def tell_values(flow, scale, seed, dtype, kinds, library):
    """What a dtype can hold comes out as a number, and what is no number in an event is none in its image."""
    rng, (dtype, in_other) = np.random.default_rng(seed), DTYPES[dtype]
    params = _tree.map_tree(
        lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf,
        merged(flow, weights(flow, scale, rng), "torch"),
    )
    double = _tree.map_tree(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, params)
    limits = torch.finfo(dtype)
    far = {torch.float16: 1e3, torch.float64: 1e100}.get(dtype, 1e30)
    context = torch.tensor(rng.normal(size=(len(kinds), flow.context_dim)), dtype=dtype) if flow.context_dim else None
    for direction in ("forward", "inverse"):
        shape, support = start(flow, direction)
        event = rng.normal(size=(len(kinds), *shape))
        if support == (-math.inf, math.inf):
            for row, kind in zip(event, kinds, strict=True):
                if kind != "tame":
                    value = {"subnormal": limits.tiny / 4, "far": far}.get(kind, VALUES[kind])
                    row[rng.uniform(size=shape) < 0.5] = value
                    row.reshape(-1)[rng.integers(row.size)] = value * rng.choice([-1, 1])
        else:
            event = inside(support, event)
            kinds = ["tame"] * len(kinds)
        event = torch.tensor(event).to(dtype)
        if library == "torch":
            image, log_det = getattr(flow, direction)(params, event, context)
        else:
            others = _tree.map_tree(lambda leaf: in_jax(leaf, in_other), params)
            found = getattr(flow, direction)(others, in_jax(event, in_other), in_jax(context, in_other))
            assert all(each.dtype == in_other for each in found)
            image, log_det = (torch.tensor(np.asarray(each.astype(float))).to(dtype) for each in found)
        assert image.dtype == log_det.dtype == dtype
        for i, kind in enumerate(kinds):
            ok = bool(torch.isfinite(image[i]).all() and torch.isfinite(log_det[i]))
            if kind == "nan":
                assert image[i].isnan().any(), (direction, kind, event[i], image[i], log_det[i])
            elif kind == "inf":
                bounded = (flow.y_support if direction == "forward" else flow.x_support) != (-math.inf, math.inf)
                assert not ok or bounded, (direction, kind, event[i], image[i], log_det[i])
            elif not ok:
                with largest() as found:
                    getattr(flow, direction)(
                        double, event[i].double(), None if context is None else context[i].double()
                    )
                assert found[0] > limits.max / 10, (direction, kind, event[i], image[i], log_det[i])


KINDS = st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=4)
of_numbers = hypothesis.given(flow=flows(), scale=SCALES, seed=WHOLE, dtype=st.sampled_from(list(DTYPES)), kinds=KINDS)


@quick
@of_numbers
def test_numbers_of_any_kind_and_dtype(flow, scale, seed, dtype, kinds):
    tell_values(flow, scale, seed, dtype, kinds, "torch")


@pytest.mark.stress
@thorough
@of_numbers
def test_thousands_of_numbers_of_any_kind_and_dtype(flow, scale, seed, dtype, kinds):
    tell_values(flow, scale, seed, dtype, kinds, "torch")


@few
@of_numbers
def test_numbers_of_any_kind_and_dtype_in_jax(flow, scale, seed, dtype, kinds):
    tell_values(flow, scale, seed, dtype, kinds, "jax")


@pytest.mark.stress
@hundreds
@of_numbers
def test_hundreds_of_numbers_of_any_kind_and_dtype_in_jax(flow, scale, seed, dtype, kinds):
    tell_values(flow, scale, seed, dtype, kinds, "jax")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [fp.Planar, fp.Radial, fp.TriangularSylvester])
def test_the_steepest_layers_keep_an_inverse_in_half_precision(kind, dtype):
    """One plus a gain of almost -1 would be rounded to 0; at 1000 neither a square nor a quotient overflows."""
    flow = kind(3)
    fill = {"alpha": -3.0, "beta": -20.0, "outer_diagonal": -50.0, "w": 3.0, "u": -20.0}
    params = {
        name: torch.full(leaf.shape, fill.get(name, 0.5), dtype=dtype) for name, leaf in flow.parameters().items()
    }
    params = _tree.merge(params, _tree.map_tree(torch.tensor, flow.constants()))
    for size in (1.0, 1000.0):
        x = torch.tensor([[1.0, -0.5, 0.3], [0.5, 0.5, 0.5]], dtype=dtype) * size
        for direction in (flow.forward, flow.inverse):
            image, log_det = direction(params, x)
            assert torch.isfinite(image).all()
            assert torch.isfinite(log_det).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_that_of_the_dtype(dtype, rng):
    """At their first weights, and under autocast with these, all flows give what they give in double precision."""
    for name, flow in (BIJECTIONS | RECIPES).items():
        params = merged(flow, weights(flow, 0.0, rng), "torch")
        half = _tree.map_tree(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, params)
        x = torch.tensor(rng.normal(size=(5, *flow.x_shape))).to(dtype)
        context = torch.tensor(rng.normal(size=(5, flow.context_dim))).to(dtype) if flow.context_dim else None
        for direction in ("forward", "inverse"):
            event = x.reshape(5, *start(flow, direction)[0])
            found = getattr(flow, direction)(half, event, context)
            expected = getattr(flow, direction)(params, event.double(), None if context is None else context.double())
            for a, b in zip(found, expected, strict=True):
                assert a.dtype == dtype, name
                assert (a.double() - b).abs().max() < 40 * torch.finfo(dtype).eps, (name, direction)


def test_autocast_gives_the_same_numbers_but_for_its_rounding(rng):
    for name in VECTOR_RECIPES:
        flow = RECIPES[name]
        params = _tree.map_tree(
            lambda leaf: leaf.float() if leaf.is_floating_point() else leaf,
            merged(flow, weights(flow, 0.03, rng), "torch"),
        )
        x = torch.tensor(rng.normal(size=(5, *flow.x_shape)), dtype=torch.float32)
        for direction in ("forward", "inverse"):
            expected = getattr(flow, direction)(params, x)
            with torch.autocast("cpu", torch.bfloat16):
                found = getattr(flow, direction)(params, x)
            for a, b in zip(found, expected, strict=True):
                assert (a - b).abs().max() < 0.2, (name, direction)


def test_arrays_of_several_dtypes_are_told():
    flow = fpp.Flow(fp.realnvp(2)).double()
    with pytest.raises(TypeError, match=r"one dtype, got event: torch.float32, weights: torch.float64; convert"):
        flow().log_prob(torch.zeros(3, 2, dtype=torch.float32))
    assert flow().log_prob(torch.zeros(3, 2, dtype=torch.float64)).dtype == torch.float64
    flow = fpp.Flow(fp.iaf(2, context_dim=1)).double()
    with pytest.raises(TypeError, match=r"event: torch.float64, context: torch.float32, weights: torch.float64; conv"):
        flow(torch.zeros(1, dtype=torch.float32)).log_prob(torch.zeros(3, 2, dtype=torch.float64))


def test_a_flow_made_without_memory_gets_its_weights_later():
    with torch.device("meta"):
        flow = fpp.Flow(fp.realnvp(2))
    flow, other = flow.to_empty(device="cpu"), fpp.Flow(fp.realnvp(2))
    flow._zeros.fill_(7.0)  # what may stand in empty memory
    flow.load_state_dict(other.state_dict())
    x = torch.ones(3, 2)
    assert torch.equal(flow().log_prob(x), other().log_prob(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_any_dtype_are_run_for_many_draws(dtype):
    """Also where tensors without axes decide the dtype, which they do not for many draws."""

    def model():
        z = pyro.sample("z", pdist.Normal(torch.zeros((), dtype=dtype), torch.ones((), dtype=dtype)))
        pyro.sample("y", pdist.Gumbel(z, torch.tensor(0.5)), obs=torch.tensor(0.3))

    guide = fpp.AutoFlow(model)
    guide.setup()
    assert fpp.log_weights(model, guide, num_samples=50).dtype == torch.float64
    assert guide()["z"].dtype == dtype
