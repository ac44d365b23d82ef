"""Convolutions against sums written out, and the networks made of them."""

import jax
import numpy as np
import pytest
import torch
from catalogue import AUTODIFF, NAMESPACES, numpy, to

from flowppl._arrays.namespace import namespace as functions_of

# The shapes of x, weight and bias, and padding and dilation.
CASES = {
    "no-batch": ((2, 4, 5), (3, 2, 3, 3), (3,), ((1, 1), (1, 1)), (1, 1)),
    "batch": ((2, 1, 2, 4, 5), (3, 2, 3, 3), (3,), ((1, 1), (1, 1)), (1, 1)),
    "asymmetric": ((2, 2, 4, 3), (1, 2, 2, 3), (1,), ((1, 0), (2, 0)), (1, 1)),
    "dilated": ((2, 2, 5, 6), (2, 2, 2, 3), (2,), ((0, 1), (2, 2)), (2, 2)),
    "no-padding": ((0, 1, 3, 3), (2, 1, 1, 2), (2,), ((0, 0), (0, 0)), (1, 1)),
    "bias-for-each": ((2, 2, 3, 3), (3, 2, 1, 1), (4, 1, 3), ((0, 0), (0, 0)), (1, 1)),
    "weights-for-each": ((3, 2, 4, 4), (3, 2, 2, 3, 3), (3, 2), ((1, 1), (2, 0)), (1, 2)),
    "weights-for-some": ((5, 2, 3, 3), (3, 1, 2, 2, 1, 3), (2,), ((0, 0), (1, 1)), (1, 1)),
}


def drawn(name, rng):
    *shapes, padding, dilation = CASES[name]
    return [rng.normal(size=shape) for shape in shapes], padding, dilation


def convolution(x, weight, bias, padding, dilation):
    """The definition, over windows of an image with zeros around it."""
    x = np.pad(x, (*[(0, 0)] * (x.ndim - 2), *padding))
    size = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[-2:], strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(-2, -1))
    windows = windows[..., :: dilation[0], :: dilation[1]]
    return np.einsum("...chwij,...ocij->...ohw", windows, weight) + bias[..., None, None]


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("name", CASES)
def test_a_convolution_is_its_definition(name, namespace, rng):
    arrays, padding, dilation = drawn(name, rng)
    expected = convolution(*arrays, padding, dilation)
    given = [to(namespace, array) for array in arrays]
    xp = functions_of(given[0])
    with jax.numpy_dtype_promotion("strict"):
        found = numpy(xp.conv2d(*given, padding, dilation))
    assert (found.dtype, found.shape) == (np.dtype(float), expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_a_convolution_of_sequences_is_its_definition(namespace, rng):
    for x, weight, bias, padding, dilation in (
        ((2, 7), (3, 2, 2), (3,), (2, 0), 2),
        ((4, 2, 5), (4, 3, 2, 3), (4, 3), (1, 1), 1),
    ):
        arrays = [rng.normal(size=shape) for shape in (x, weight, bias)]
        given = [to(namespace, array.astype(np.float32)) for array in arrays]
        found = numpy(functions_of(given[0]).conv1d(*given, padding, dilation))
        wide = convolution(
            arrays[0][..., None, :],
            arrays[1][..., None, :],
            bias=arrays[2],
            padding=((0, 0), padding),
            dilation=(1, dilation),
        )
        assert found.dtype == np.dtype(np.float32)
        np.testing.assert_allclose(found, wide[..., 0, :], rtol=1e-5, atol=1e-5)


def gradients(namespace, arrays, cotangent, *options):
    """Those of the sum of a convolution times ``cotangent``, in all three arrays."""

    def total(*arrays):
        return (functions_of(arrays[0]).conv2d(*arrays, *options) * to(namespace, cotangent)).sum()

    given = [to(namespace, array) for array in arrays]
    if namespace == "jax":
        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*given)
    return torch.autograd.grad(total(*(a.requires_grad_() for a in given)), given)


@pytest.mark.parametrize("namespace", AUTODIFF)
@pytest.mark.parametrize("name", ["asymmetric", "dilated", "bias-for-each", "weights-for-each"])
def test_derivatives_of_a_convolution_are_exact(name, namespace, rng):
    """It is linear in each array: a difference along a direction, of any length, is the derivative along it."""
    arrays, *options = drawn(name, rng)
    cotangent = rng.normal(size=convolution(*arrays, *options).shape)
    for i, gradient in enumerate(gradients(namespace, arrays, cotangent, *options)):
        direction = rng.normal(size=arrays[i].shape)
        moved = [array + direction if i == j else array for j, array in enumerate(arrays)]
        change = ((convolution(*moved, *options) - convolution(*arrays, *options)) * cotangent).sum()
        np.testing.assert_allclose((numpy(gradient) * direction).sum(), change, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("namespace", AUTODIFF)
def test_a_convolution_maps_over_images_and_weights(namespace, rng):
    arrays, *options = drawn("weights-for-each", rng)
    given = [to(namespace, array) for array in arrays]
    xp = functions_of(given[0])
    found = xp.vmap(lambda *one: xp.conv2d(*one, *options), *given)
    np.testing.assert_allclose(numpy(found), convolution(*arrays, *options), rtol=1e-12, atol=1e-12)
