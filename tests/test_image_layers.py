"""Layers over images, against their papers' equations in plain NumPy."""

from functools import partial

import jax
import numpy as np
import pyro
import pytest
import scipy.linalg
import torch
from catalogue import IMAGE_RECIPES, NumpyDraws, draw, merged

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree

COUPLING = fp.ImageCoupling((2, 2, 2))


def test_squeeze_makes_the_pixels_of_a_block_channels(rng):
    """Dinh et al. 2016, section 3.6, pixel by pixel."""
    layer = fp.Squeeze((2, 4, 6), factor=2)
    x = rng.normal(size=(3, 2, 4, 6))
    y, log_det = layer.forward({}, x)
    for channel, row, column, i, j in np.ndindex(2, 2, 3, 2, 2):
        expected = x[:, channel, 2 * row + i, 2 * column + j]
        np.testing.assert_array_equal(y[:, 4 * channel + 2 * i + j, row, column], expected)
    assert (log_det == 0).all()


def test_a_layer_that_bounds_its_values_may_stand_before_one_that_moves_them():
    flow = fp.Chain(
        [fp.Elementwise((4, 1, 1), fp.Sigmoid()), fp.Invert(fp.Squeeze((1, 2, 2))), fp.Reshape((1, 2, 2), (4,))]
    )
    assert flow.y_support == (0.0, 1.0)


ROTATED = fp.Chain([fp.LU(3), fp.Invert(fp.Frozen(fp.Householder(3, 2, start="rotation")))])


@pytest.mark.parametrize(
    "bijection",
    [fp.LU(3, (1, 2, 0)), fp.QR(3), fp.MatrixExponential(3), fp.Householder(3), fp.Permute((2, 0, 1)), ROTATED],
)
def test_a_linear_map_of_pixels_is_a_convolution_with_a_kernel_of_one_pixel(bijection, rng):
    """Kingma & Dhariwal 2018, equation 9: the log determinant is H W log|det W|."""
    layer = fp.Pixelwise((3, 2, 4), bijection)
    assert "identity" in layer.constants()  # it is made into a matrix
    params = merged(layer, draw(layer, rng))
    matrix = bijection.forward(params, np.eye(3))[0].T
    x = rng.normal(size=(5, 3, 2, 4))
    y, log_det = layer.forward(params, x)
    np.testing.assert_allclose(y, np.einsum("oc,nchw->nohw", matrix, x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_det, 8 * np.linalg.slogdet(matrix)[1], rtol=1e-12, atol=1e-12)


def test_act_norm_of_pixels_is_set_from_all_pixels(rng):
    layer = fp.Pixelwise((2, 3, 5), fp.ActNorm(2))
    images = rng.normal(size=(7, 2, 3, 5)) * np.array([2.0, 5.0])[:, None, None] + 3
    params = layer.init_from(fp.initialize(layer, NumpyDraws(rng)), images)
    x, log_det = layer.inverse(params, images)
    np.testing.assert_allclose(x.mean(axis=(0, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(x.std(axis=(0, 2, 3)), 1, rtol=1e-12)
    np.testing.assert_allclose(log_det, -15 * np.log(images.std(axis=(0, 2, 3))).sum(), rtol=1e-12)


def test_a_random_start_is_a_rotation_and_differs_from_layer_to_layer(rng):
    flow = fp.Repeat(fp.QR(4, start="rotation"), 2)
    params = fp.initialize(flow, NumpyDraws(rng))
    matrices = []
    for i in range(2):
        layer = {name: leaf[i] for name, leaf in params.items()} | fp.QR(4).constants()
        matrices.append(fp.QR(4).forward(layer, np.eye(4))[0].T)
    for matrix in matrices:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(matrix), 1)
        assert np.abs(scipy.linalg.logm(matrix)).max() > 0.1
    assert np.abs(matrices[0] - matrices[1]).max() > 0.1


def numpy_convolution(layer, x):
    """A convolution by the book, with zeros around the image: a sum over the pixels of the kernel."""
    weight, (_, height, width) = layer["weight"], x.shape
    reach = weight.shape[-1] // 2
    around = np.pad(x, ((0, 0), (reach, reach), (reach, reach)))
    y = np.zeros((len(weight), height, width)) + layer["bias"][:, None, None]
    for i, j in np.ndindex(*weight.shape[-2:]):
        y = y + np.einsum("oc,chw->ohw", weight[..., i, j], around[:, i : i + height, j : j + width])
    return y


def two_convolutions(params, x):
    hidden = numpy_convolution(params["first"], x)
    return numpy_convolution(params["last"], np.where(hidden > 0, hidden, np.expm1(np.minimum(hidden, 0))))


@pytest.mark.parametrize("flip", [False, True])
def test_channel_coupling_is_the_papers(flip, rng):
    """Dinh et al. 2016, equations 7 and 8, with the log-scale bounded as documented."""
    layer = fp.ImageCoupling((3, 2, 4), fp.Affine(2.0), flip=flip, hidden_channels=5, num_blocks=0)
    params = draw(layer, rng)
    x = rng.normal(size=(3, 2, 4))
    stays, changes = ([1, 2], [0]) if flip else ([0], [1, 2])
    shift, raw = np.split(two_convolutions(params["network"], x[stays]), 2)
    scale = 2 * np.tanh(raw / 2)
    expected = x.copy()
    expected[changes] = x[changes] * np.exp(scale) + shift
    y, log_det = layer.forward(params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_allclose(log_det, scale.sum(), rtol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
def test_checkerboard_coupling_is_the_papers(flip, rng):
    """Dinh et al. 2016, equation 9: y = b * x + (1 - b) * (x * exp(s(b * x)) + t(b * x))."""
    layer = fp.ImageCoupling((2, 3, 4), fp.Affine(2.0), "checkerboard", flip, hidden_channels=5, num_blocks=0)
    params = draw(layer, rng)
    x = rng.normal(size=(2, 3, 4))
    b = np.array([[(i + j) % 2 == flip for j in range(4)] for i in range(3)]).astype(float)
    shift, raw = np.split(two_convolutions(params["network"], b * x), 2)
    scale = 2 * np.tanh(raw / 2)
    y, log_det = layer.forward(merged(layer, params), x)
    np.testing.assert_allclose(y, b * x + (1 - b) * (x * np.exp(scale) + shift), rtol=1e-12)
    np.testing.assert_allclose(log_det, ((1 - b) * scale).sum(), rtol=1e-12)


def test_a_coupling_over_a_circle_sees_cosines_and_sines(rng):
    for mask in ("channel", "checkerboard"):
        layer = fp.ImageCoupling((2, 2, 2), fp.CircularSpline(3), mask, hidden_channels=3, num_blocks=0)
        params = merged(layer, draw(layer, rng))
        x = rng.uniform(-3, 3, size=(2, 2, 2))
        turned = np.where(rng.uniform(size=x.shape) < 0.5, 2 * np.pi, 0.0)
        np.testing.assert_allclose(layer.forward(params, x + turned)[1], layer.forward(params, x)[1], rtol=1e-9)


@pytest.mark.parametrize(("shape", "kernel_size"), [((2, 3, 4), 3), ((3, 3, 3), 5)])
def test_an_emerging_convolution_is_a_triangular_map_after_another(shape, kernel_size, rng):
    """Hoogeboom et al. 2019, section 3: sums over pixels, written as loops, and a diagonal of the matrix."""
    layer = fp.EmergingConvolution(shape, kernel_size)
    params = draw(layer, rng)
    channels, height, width = shape
    reach = (kernel_size + 1) // 2
    scale = np.log1p(np.exp(params["scale"] + np.log(np.expm1(1.0))))
    lower, upper = np.eye(channels), np.eye(channels)
    lower[np.tril_indices(channels, -1)] = params["lower"]
    upper.T[np.tril_indices(channels, -1)] = params["upper"]
    x = rng.normal(size=shape)
    z, y = np.zeros(shape), np.zeros(shape)
    for matrices, centre, source, target, way in (
        (params["before"], lower, x, z, -1),
        (params["after"], upper, z, y, 1),
    ):
        for h, w, i, j in np.ndindex(height, width, reach, reach):
            row, column = h + way * i, w + way * j
            if 0 <= row < height and 0 <= column < width:
                matrix = centre if i == j == 0 else matrices[i * reach + j - 1]
                target[:, h, w] += matrix @ source[:, row, column]
        if way == -1:
            z *= scale[:, None, None]
    found, log_det = layer.forward(merged(layer, params), x)
    np.testing.assert_allclose(found, y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_det, height * width * np.log(scale).sum(), rtol=1e-12)
    back, _ = layer.inverse(merged(layer, params), found)
    np.testing.assert_allclose(back, x, rtol=1e-8, atol=1e-8)


def test_what_leaves_is_noise_given_what_stays(rng):
    """Kingma & Dhariwal 2018: a normal distribution, whose mean and scale a network makes of the other half."""
    prior = fp.ImageCoupling((2, 1, 2), fp.Affine(2.0), hidden_channels=3, num_blocks=0)
    layer = fp.FactorOut((2, 1, 2), fp.Elementwise((1, 1, 2), fp.Scale()), prior)
    params = draw(layer, rng)
    y = rng.normal(size=(2, 1, 2))
    x, log_det = layer.inverse(params, y)
    mean, raw = np.split(two_convolutions(params["prior"]["network"], y[:1]), 2)
    log_scale = 2 * np.tanh(raw / 2)
    own = 3 * np.tanh(params["bijection"]["raw"][0] / 3)
    np.testing.assert_allclose(x[1:], (y[1:] - mean) * np.exp(-log_scale), rtol=1e-12)
    np.testing.assert_allclose(x[:1], y[:1] * np.exp(-own), rtol=1e-12)
    np.testing.assert_allclose(log_det, -(log_scale.sum() + own.sum()), rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: fp.Squeeze((1, 3, 4)), ValueError, r"multiples of factor=2, got shape \(1, 3, 4\); pad or crop"),
        (lambda: fp.Squeeze(8), ValueError, r"Squeeze: shape must be \(channels, height, width\), .* got 8"),
        (lambda: fp.Squeeze((8, 8)), ValueError, r"Squeeze: shape must be \(channels, height, width\)"),
        (lambda: fp.Squeeze((1, 4, 0)), ValueError, "each size in shape must be an integer of at least 1, got 0"),
        (lambda: fp.Reshape((4,), (5,)), ValueError, r"as many numbers, got \(4,\) of 4 and \(5,\) of 5"),
        (lambda: fp.Reshape((4,), 4), ValueError, "Reshape: new_shape must be a tuple of sizes"),
        (lambda: fp.Pixelwise((3, 2, 2), fp.LU(2)), ValueError, r"as shape=\(3, 2, 2\) has channels, 3, but LU maps"),
        (lambda: fp.Pixelwise((3, 2, 2), fp.LU), TypeError, "expected a flowppl.Bijection"),
        (lambda: fp.Elementwise((3, 0), fp.Scale()), ValueError, "each size in dim must be an integer of at least 1"),
        (lambda: fp.ImageCoupling((2, 4)), ValueError, r"ImageCoupling: shape must be \(channels, height, width\)"),
        (lambda: fp.ImageCoupling((1, 2, 2)), ValueError, "cannot be split; use mask='checkerboard', or Squeeze"),
        (lambda: fp.ImageCoupling((2, 1, 1), mask="checkerboard"), ValueError, "cannot be split; use mask='channel'"),
        (lambda: fp.ImageCoupling((2, 2, 2), mask="half"), ValueError, "mask must be one of 'channel', 'checkerboard'"),
        (lambda: fp.ImageCoupling((2, 2, 2), mask=(True, False)), ValueError, "mask must be one of 'channel'"),
        (lambda: fp.ImageCoupling((2, 2, 2), flip=2), ValueError, "flip must be True or False, got 2"),
        (lambda: fp.ImageCoupling((2, 2, 2), "spline"), TypeError, "univariate must be a univariate map"),
        (lambda: fp.ImageCoupling((2, 2, 2), network="net"), TypeError, "ImageCoupling: network must have"),
        (lambda: fp.FactorOut((2, 2, 2), COUPLING), ValueError, "images of less than 2 channels and of the size"),
        (lambda: fp.FactorOut((4, 2, 4), COUPLING), ValueError, r"size \(2, 4\) of shape=\(4, 2, 4\) to such, but"),
        (
            lambda: fp.FactorOut((4, 2, 2), COUPLING, COUPLING),
            ValueError,
            r"prior must map images of shape=\(4, 2, 2\)",
        ),
        (
            lambda: fp.FactorOut((4, 2, 2), fp.Elementwise((2, 2, 2), fp.Sigmoid())),
            ValueError,
            "must map real numbers to real numbers, but Elementwise",
        ),
        (lambda: fp.EmergingConvolution((2, 4, 4), 4), ValueError, "kernel_size must be odd and at most 7, .*, got 4"),
        (lambda: fp.EmergingConvolution((2, 4, 1)), ValueError, "kernel_size must be odd and at most 1, .*, got 3"),
        (lambda: fp.EmergingConvolution((2, 4, 4), 1), ValueError, "kernel_size must be an integer of at least 3"),
        (lambda: fp.glow_image(8), ValueError, r"glow_image: shape must be \(channels, height, width\)"),
        (lambda: fp.glow_image((1, 27, 28)), ValueError, r"can be.* 0 times; pad .* to \(1, 28, 28\).*use nice_image"),
        (lambda: fp.glow_image((1, 28, 28), num_scales=3), ValueError, "halved 3 times.* 2 times; .*num_scales=2"),
        (lambda: fp.realnvp_image((1, 28, 28), num_scales=4), ValueError, "halved 3 times.* 2 times; .*num_scales=3"),
        (lambda: fp.tarflow_image((1, 7, 8)), ValueError, r"multiples of patch_size=2; pad or crop"),
        (lambda: fp.flowpp_image((1, 7, 8)), ValueError, r"halved once.* 0 times; pad or crop .* to \(1, 8, 8\)"),
        (lambda: fp.flowpp_image((1, 8, 8), 4), ValueError, r"num_flows must be three numbers, such as \(4, 2, 3\)"),
        (lambda: fp.flowpp_image((1, 8, 8), (4, 0, 3)), ValueError, "each of num_flows must be an integer of at least"),
        (
            lambda: fp.nice_image((1, 8, 8), alpha=0.5),
            ValueError,
            "nice_image: alpha must be between 0 and 1/2, got 0.5",
        ),
        (lambda: fp.QR(3, start="random"), ValueError, "QR: start must be one of identity, rotation, got 'random'"),
        (lambda: fp.Householder(3, start=0), ValueError, "Householder: start must be one of"),
    ],
)
def test_bad_arguments_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_network_of_the_wrong_output_is_refused(rng):
    for mask, channels in (("channel", 1), ("checkerboard", 2)):
        layer = fp.ImageCoupling((2, 2, 2), mask=mask, network=fp.ConvNet(channels, 3, 2, 0))
        with pytest.raises(ValueError, match=rf"network must give 2 numbers .* shape \({2 * channels}, 2, 2\) in all"):
            layer.forward(merged(layer, draw(layer, rng)), np.ones((2, 2, 2)))


SMALL = {"hidden_channels": 4, "num_blocks": 1}
FULL_SIZE = {
    "nice_image": fp.nice_image((3, 32, 32), 2, hidden_dims=4),
    "realnvp_image": fp.realnvp_image((3, 32, 32), 1, **SMALL),
    "glow_image": fp.glow_image((3, 32, 32), 1, **SMALL),
    "flowpp_image": fp.flowpp_image((3, 32, 32), (1, 1, 1), num_components=2, **SMALL),
    "emerging": fp.EmergingConvolution((3, 32, 32)),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_flows_of_full_size_come_back(name, rng):
    flow = FULL_SIZE[name]
    params = _tree.map_tree(torch.tensor, _tree.merge(draw(flow, rng, 0.3), flow.constants()))
    x = torch.tensor(rng.normal(size=(2, 3, 32, 32)))
    y, log_det = flow.forward(params, x)
    back, log_det_back = flow.inverse(params, y)
    np.testing.assert_allclose(back, x, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(log_det_back, -log_det, rtol=1e-9)


@pytest.mark.parametrize("name", IMAGE_RECIPES)
def test_log_det_of_a_whole_flow_is_that_of_the_autodiff_jacobian(name, rng):
    flow = IMAGE_RECIPES[name]
    params = _tree.map_tree(torch.tensor, _tree.merge(draw(flow, rng, 0.5), flow.constants()))
    context = torch.tensor(rng.normal(size=flow.context_dim)) if flow.context_dim else None
    y = torch.tensor(rng.uniform(size=flow.y_shape))
    matrix, log_det = torch.func.jacfwd(flow.inverse, argnums=1, has_aux=True)(params, y, context)
    np.testing.assert_allclose(log_det, torch.linalg.slogdet(matrix.reshape(y.numel(), -1))[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "recipe", [partial(fp.nice_image, hidden_dims=4), partial(fp.realnvp_image, num_scales=1, hidden_channels=4)]
)
def test_a_density_of_two_pixels_integrates_to_one(recipe, rng):
    flow = recipe((1, 1, 2))
    params = merged(flow, draw(flow, rng, 0.5))
    low, high = flow.y_support
    axis = low + (high - low) * (np.arange(150) + 0.5) / 150
    y = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 1, 1, 2)
    x, log_det = flow.inverse(params, y)
    density = np.exp(log_det - 0.5 * (x**2).sum(axis=(1, 2, 3)) - np.log(2 * np.pi))
    assert abs(density.mean() * (high - low) ** 2 - 1) < 1e-3


@pytest.mark.parametrize("name", ["realnvp_image", "glow_image", "flowpp_image"])
def test_data_normalise_the_layers_at_every_scale(name, rng):
    num_flows = (2, 2, 2) if name == "flowpp_image" else 2
    flow = fp.make_flow(name, (1, 8, 8), num_flows=num_flows, hidden_channels=4, num_blocks=1)
    y = rng.uniform(size=(50, 1, 8, 8)) ** 3
    params = fp.initialize(flow, NumpyDraws(rng))
    params = flow.init_from(merged(flow, params), y)
    x, _ = flow.inverse(merged(flow, params), y)
    np.testing.assert_allclose(x.mean(), 0, atol=0.02)
    np.testing.assert_allclose(x.std(), 1, atol=0.02)


def test_glow_is_trained_saved_and_sampled_in_both_languages(tmp_path, rng):
    """Bright squares on a dark ground, at one of four places."""
    images = 0.2 * rng.uniform(size=(200, 1, 4, 4))
    for image, (row, column) in zip(images, rng.integers(0, 2, size=(200, 2)), strict=True):
        image[0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 0.7
    bijection = fp.glow_image((1, 4, 4), 1, hidden_channels=8)
    options = {"num_epochs": 20, "batch_size": 50, "learning_rate": 1e-2, "progress": False}
    pyro.set_rng_seed(0)
    ours = fpp.fit_density(fpp.Flow(bijection), torch.tensor(images), **options)
    theirs = fnp.fit_density(jax.random.key(0), fnp.Flow.init(jax.random.key(0), bijection), images, **options)
    start = fpp.Flow(bijection).init_from(torch.tensor(images))().log_prob(torch.tensor(images)).mean().item()
    for name, result, other in (("ours", ours, "numpyro"), ("theirs", theirs, "pyro")):
        found = np.asarray(log_prob(result.flow, images))
        assert found.mean() > start + 3
        fp.save(tmp_path / name, result.flow)
        again = fp.load(tmp_path / name, backend=other)
        np.testing.assert_allclose(log_prob(again, images), found, rtol=1e-9, atol=1e-9)
    samples = ours.flow().sample((50,)), theirs.flow().sample(jax.random.key(1), (50,))
    low, high = bijection.y_support
    for drawn in samples:
        assert drawn.shape == (50, 1, 4, 4)
        assert ((low < np.asarray(drawn)) & (np.asarray(drawn) < high)).all()
        assert abs(np.asarray(drawn).mean() - images.mean()) < 0.2


def log_prob(flow, images):
    if isinstance(flow, fpp.Flow):
        return flow().log_prob(torch.tensor(images)).detach().numpy()
    return jax.jit(lambda flow, images: flow().log_prob(images))(flow, images)
