"""Convolutions against sums written out, and the networks made of them."""

import jax
import numpy as np
import pytest
import torch
from catalogue import AUTODIFF, NAMESPACES, NumpyDraws, draw, merged, numpy, to

import flowppl as fp
from flowppl._arrays import tree as _tree
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


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def same(layer, x):
    """A convolution that keeps the size, written from the papers."""
    weight = layer["weight"]
    if "scale" in layer:
        norms = np.sqrt((weight**2).sum(axis=(1, 2, 3)))
        weight = weight * (layer["scale"] / norms)[:, None, None, None]
    edge = [(size // 2, size // 2) for size in weight.shape[-2:]]
    return convolution(x, weight, layer["bias"], edge, (1, 1))


def gate(x):
    a, b = np.split(x, 2, axis=-3)
    return a / (1 + np.exp(-b))


def attention(layers, h, num_heads):
    """Pixel by pixel, head by head."""
    channels, height, width = h.shape
    normed = (h - h.mean(axis=0)) / np.sqrt(h.var(axis=0) + 1e-5) + layers["position"]
    query, key, value = np.split(same(layers["make"], normed).reshape(3 * channels, -1), 3)
    mixed, size = np.zeros_like(value), channels // num_heads
    for head in (slice(start, start + size) for start in range(0, channels, size)):
        for pixel in range(height * width):
            shares = np.exp(query[head, pixel] @ key[head] / np.sqrt(size))
            mixed[head, pixel] = value[head] @ shares / shares.sum()
    return h + gate(same(layers["mix"], mixed.reshape(h.shape)))


def conv_net(net, params, x, context):
    """A network on one image, from the equations of its documentation."""
    added = 0
    if net.context_shape:
        context = context.reshape(net.context_shape)
        factor = net.context_shape[1] // x.shape[1]
        patches = [context[:, i::factor, j::factor] for i in range(factor) for j in range(factor)]
        context = np.stack(patches, axis=1).reshape(-1, *x.shape[1:])
        x = np.concatenate([x, context])

    def of_context(layer):
        if "context_kernel" in layer:
            return convolution(context, layer["context_kernel"], np.zeros(1), [(0, 0)] * 2, (1, 1))
        return (context @ layer["context_weight"])[:, None, None] if "context_weight" in layer else 0

    def both(h):
        return elu(np.concatenate([h, -h])) if net.kind == "gated" else elu(h)

    added = 0 if net.context_shape else of_context(params["first"])
    h = same(params["first"], x) + added
    for i in range(net.num_blocks):
        block = params[str(i)]
        inner = same(block["enter"], both(h)) + of_context(block["enter"])
        if net.kind == "plain":
            h = inner
        elif net.kind == "residual":
            h = h + same(block["leave"], both(inner))
        else:
            h = h + gate(same(block["leave"], both(inner)))
        if net.num_heads:
            h = attention(block["attention"], h, net.num_heads)
    return same(params["last"], elu(h))


NETS = {
    "gated": fp.ConvNet(1, 2, 2, 2),
    "gated-context": fp.ConvNet(2, 3, 2, 1, weight_norm=True, context_dim=2),
    "gated-attention": fp.ConvNet(2, 1, 4, 1, num_heads=2, image_size=(2, 3)),
    "residual": fp.ConvNet(1, 1, 2, 2, kind="residual", context_dim=2),
    "residual-image": fp.ConvNet(1, 2, 2, 1, kind="residual", context_shape=(1, 2, 3)),
    "residual-larger-image": fp.ConvNet(1, 1, 2, 1, kind="residual", context_shape=(2, 4, 6), image_size=(2, 3)),
    "plain": fp.ConvNet(2, 2, 3, 1, kind="plain", kernel_size=(3, 1, 3), weight_norm=True),
    "plain-no-blocks": fp.ConvNet(1, 1, 2, 0, kind="plain", kernel_size=(3, 1, 1)),
}


def inputs(net, rng, batch=(), size=(2, 3)):
    context = rng.normal(size=(*batch, net.context_dim)) if net.context_dim else None
    return rng.normal(size=(*batch, net.in_channels, *size)), context


@pytest.mark.parametrize("name", NETS)
def test_a_network_is_its_equations(name, rng):
    """In all libraries, with one set of weights, or one for each image."""
    net = NETS[name]
    x, context = inputs(net, rng, (2,))
    one, two = draw(net, rng), draw(net, rng)
    both = _tree.map_tree(lambda *leaves: np.stack(leaves), one, two)
    for sets, params, libraries in (((one, one), one, NAMESPACES), ((one, two), both, ("numpy", "torch"))):
        contexts = (None, None) if context is None else context
        expected = [conv_net(net, *given) for given in zip(sets, x, contexts, strict=True)]
        for namespace in libraries:
            call = jax.jit(net) if namespace == "jax" else net
            found = numpy(call(merged(net, params, namespace), to(namespace, x), to(namespace, context)))
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
def test_a_network_starts_at_zero_with_blocks_that_do_nothing(name, rng):
    net = NETS[name]
    params = fp.initialize(net, NumpyDraws(rng))
    x, context = inputs(net, rng)
    assert not net(params, x, context).any()
    if net.kind != "plain":
        params["last"] = draw(net, rng)["last"]
        without = fp.ConvNet(**{**vars(net), "num_blocks": 0})
        np.testing.assert_allclose(net(params, x, context), without(params, x, context), rtol=1e-12)


@pytest.mark.parametrize(
    ("net", "radius"),
    [
        (fp.ConvNet(1, 1, 2, 1), 3),
        (fp.ConvNet(1, 1, 2, 1, kind="residual"), 4),
        (fp.ConvNet(1, 1, 2, 1, kind="plain", kernel_size=(3, 1, 3)), 2),
    ],
)
def test_a_pixel_depends_on_those_around_it_only(net, radius, rng):
    params = merged(net, draw(net, rng), "torch")
    x = torch.tensor(rng.normal(size=(1, 10, 10)), requires_grad=True)
    net(params, x)[0, 5, 4].backward()
    slopes = numpy(x.grad)[0]
    rows, columns = np.indices(slopes.shape)
    near = np.maximum(abs(rows - 5), abs(columns - 4)) <= radius
    assert ((slopes != 0) == near).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dense"}, "kind must be one of gated, residual, plain, got 'dense'"),
        ({"kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"kernel_size": (3, 3)}, "kernel_size must be a tuple of 3 integers"),
        ({"num_heads": 3}, "num_heads must divide hidden_channels=8, got 3"),
        ({"num_heads": 2}, "give image_size"),
        ({"context_shape": (1, 2, 2), "context_dim": 5}, "context_dim must be 4"),
        ({"context_shape": (1, 4, 2), "image_size": (2, 2)}, "must be the same multiple"),
        ({"in_channels": 0}, "in_channels must be an integer of at least 1"),
    ],
)
def test_wrong_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fp.ConvNet(**{"in_channels": 1, "out_channels": 1, "hidden_channels": 8} | options)


def test_images_of_another_size_are_refused(rng):
    for net in (NETS["gated-attention"], NETS["residual-image"]):
        x, context = inputs(net, rng, size=(3, 3))
        with pytest.raises(ValueError, match=r"got shape|does not fit images"):
            net(draw(net, rng), x, context)


@pytest.mark.parametrize("name", NETS)
def test_every_weight_of_a_network_gets_a_gradient(name, rng):
    net = NETS[name]
    params = _tree.map_tree(lambda a: torch.tensor(a, requires_grad=True), draw(net, rng))
    (net(params, *(to("torch", a) for a in inputs(net, rng, (5,)))) ** 2).sum().backward()
    assert all((leaf.grad != 0).float().mean() > 0.9 for _, leaf in _tree.leaves(params))
