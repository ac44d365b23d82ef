"""Layers over images, against their papers' equations in plain NumPy."""

import numpy as np
import pytest
import scipy.linalg
from catalogue import NumpyDraws, draw, merged

import flowppl as fp


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


@pytest.mark.parametrize("bijection", [fp.LU(3, (1, 2, 0)), fp.QR(3), fp.Householder(3), fp.Permute((2, 0, 1))])
def test_a_linear_map_of_pixels_is_a_convolution_with_a_kernel_of_one_pixel(bijection, rng):
    """Kingma & Dhariwal 2018, equation 9: the log determinant is H W log|det W|."""
    layer = fp.Pixelwise((3, 2, 4), bijection)
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
        (lambda: fp.QR(3, start="random"), ValueError, "QR: start must be one of identity, rotation, got 'random'"),
        (lambda: fp.Householder(3, start=0), ValueError, "Householder: start must be one of"),
    ],
)
def test_bad_arguments_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
