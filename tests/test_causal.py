"""Causal convolutional networks: what each number depends on, the papers' equations, and entries found one by one."""

import jax
import numpy as np
import pytest
import torch
from catalogue import NAMESPACES, NumpyDraws, draw, merged, numpy, to
from test_convolutions import convolution, elu

import flowppl as fp
from flowppl import PixelConvNet
from flowppl._arrays import tree as _tree

# Each with the shape of an event.
NETS = {
    "pixels": (fp.PixelConvNet(1, 2, 3, 2, 3), (1, 4, 6)),
    "pixels-no-blocks": (fp.PixelConvNet(2, 1, 3, 0, 5), (2, 3, 4)),
    "pixels-context": (fp.PixelConvNet(3, 2, 5, 1, (5, 3), weight_norm=True, context_dim=2), (3, 3, 3)),
    "pixels-image": (fp.PixelConvNet(2, 1, 4, 1, 3, context_shape=(3, 2, 3)), (2, 2, 3)),
    "sequence": (fp.CausalConv1d(1, 2, 3, (1, 2)), (1, 7)),
    "sequence-context": (fp.CausalConv1d(2, 1, 4, (2,), 3, weight_norm=True, context_dim=2), (2, 5)),
    "sequence-along": (fp.CausalConv1d(2, 2, 4, (1,), context_shape=(3, 4)), (2, 4)),
}


def inputs(net, shape, rng, batch=(2,)):
    return rng.normal(size=(*batch, *shape)), rng.normal(size=(*batch, net.context_dim)) if net.context_dim else None


def earlier(net, shape, reach):
    """For each entry and each other whether the former may depend on the latter, in the shape of an event, twice."""
    channel, row, column = np.indices(shape if len(shape) == 3 else (shape[0], 1, shape[1]))
    after = [axis[..., None, None, None] for axis in (channel, row, column)]
    up, left = after[1] - row, after[2] - column
    above = (up > 0) & (up <= reach) & (abs(left) <= reach)
    before = (up == 0) & (left > 0) & (left <= reach)
    here = (up == 0) & (left == 0) & (channel < after[0])
    return (above | before | here).reshape(*shape, *shape)


@pytest.mark.parametrize(
    ("name", "reach"),
    [
        ("pixels", 3),
        ("pixels-no-blocks", 2),
        ("pixels-context", 3),
        ("sequence", 4),
        ("sequence-context", 6),
    ],
)
def test_a_number_depends_on_all_earlier_entries_within_reach_and_on_no_others(name, reach, rng):
    """There is no blind spot, and the channels of a pixel are in their order."""
    net, shape = NETS[name]
    tree = merged(net, draw(net, rng), "torch")
    context = to("torch", inputs(net, shape, rng, ())[1])
    slopes = torch.zeros(*shape, *shape)
    for _ in range(3):
        x = to("torch", rng.normal(size=shape))
        jacobian = torch.autograd.functional.jacobian(lambda x: net(tree, x, context), x)
        slopes += abs(jacobian.reshape(net.num_outputs, *shape, *shape)).sum(0)
    assert ((numpy(slopes) != 0) == earlier(net, shape, reach)).all()


def gate(raw):
    a, b = np.split(raw, 2, axis=-3)
    return np.tanh(a) / (1 + np.exp(-b))


def causal_net(net, tree, x, context):
    """A network on one image, by kernels of full size with zeros where they must not look."""
    x = x if x.ndim == 3 else x[:, None, :]
    dilations = (1,) * (net.num_blocks + 1) if isinstance(net, fp.PixelConvNet) else (1, *net.dilations)
    groups = {
        "x": np.arange(net.in_channels),
        "h": np.arange(net.hidden_channels) * net.in_channels // net.hidden_channels,
    }
    groups |= {"hh": np.tile(groups["h"], 2), "out": np.tile(groups["x"], net.num_outputs)}

    def apply(layer, x, after=None, before=None, strict=False, dilation=1):
        weight = layer["weight"].copy()
        if after:
            late = groups[after][:, None] <= groups[before] if strict else groups[after][:, None] < groups[before]
            weight[:, :, 0, -1][late] = 0
        if net.weight_norm:
            weight *= (layer["scale"] / np.sqrt((weight**2).sum(axis=(1, 2, 3))))[:, None, None, None]
        rows, columns = weight.shape[-2:]
        if after:  # along the row: zeros on the right of the pixel
            weight = np.concatenate([weight, np.zeros((*weight.shape[:-1], columns - 1))], axis=-1)
        elif rows * columns > 1:  # from above: zeros below the rows that are seen
            weight = np.concatenate([weight, np.zeros((*weight.shape[:-2], columns - rows, columns))], axis=-2)
        height, width = (dilation * (size // 2) for size in weight.shape[-2:])
        y = convolution(x, weight, layer["bias"], ((height, height), (width, width)), (dilation, dilation))
        if "context_weight" in layer:
            y = y + (context @ layer["context_weight"])[:, None, None]
        if "context_kernel" in layer:
            image = context.reshape(-1, *x.shape[1:])
            y = y + np.einsum("oc,chw->ohw", layer["context_kernel"][..., 0, 0], image)
        return y

    v = h = x
    total = 0
    for i, dilation in enumerate(dilations):
        layer = tree[str(i)]
        raw = apply(layer["across"], h, "hh", "h" if i else "x", strict=i == 0, dilation=dilation)
        if "down" in layer:
            down = apply(layer["down"], v)
            raw, v = raw + apply(layer["link"], down), gate(down)
        z = gate(raw)
        total = total + apply(layer["skip"], z, "h", "h")
        if i < len(dilations) - 1:
            h = (h if i else 0) + apply(layer["stay"], z, "h", "h")
    return apply(tree["last"], elu(apply(tree["join"], elu(total), "h", "h")), "out", "h")


@pytest.mark.parametrize("name", NETS)
def test_a_causal_network_is_its_equations_and_finds_entries_one_by_one(name, rng):
    """In all libraries, with one set of weights, or one for each image."""
    net, shape = NETS[name]
    x, context = inputs(net, shape, rng)
    noise = rng.normal(size=x.shape)
    one, two = draw(net, rng), draw(net, rng)
    both = _tree.map_tree(lambda *leaves: np.stack(leaves), one, two)
    libraries = NAMESPACES if name in ("pixels-context", "sequence-along") else ("numpy", "strict", "torch")
    for sets, params, namespaces in (((one, one), one, libraries), ((one, two), both, ("numpy", "torch"))):
        contexts = (None, None) if context is None else context
        expected = [causal_net(net, *given).reshape(-1, *shape) for given in zip(sets, x, contexts, strict=True)]
        expected = np.stack(expected)
        for namespace in namespaces:

            def run(tree, x, noise, context):
                """Its output, and what a search for x makes of the numbers for each entry."""

                def find(raw, x, noise):
                    return x, raw[0, ...] * noise, raw[-1, ...]

                return net(tree, x, context), *net.generate(tree, find, (x, noise), context)

            run = jax.jit(run) if namespace == "jax" else run
            output, *found = run(merged(net, params, namespace), *(to(namespace, a) for a in (x, noise, context)))
            np.testing.assert_allclose(numpy(output).reshape(expected.shape), expected, rtol=1e-10, atol=1e-10)
            for part, right in zip(found, (x, expected[:, 0] * noise, expected[:, -1]), strict=True):
                np.testing.assert_allclose(numpy(part), right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
def test_a_causal_network_starts_at_zero_and_every_weight_can_learn(name, rng):
    net, shape = NETS[name]
    x, context = inputs(net, shape, rng, (5,))
    assert not net(merged(net, fp.initialize(net, NumpyDraws(rng))), x, context).any()
    params = _tree.map_tree(lambda a: torch.tensor(a, requires_grad=True), draw(net, rng))
    tree = _tree.merge(params, _tree.map_tree(torch.as_tensor, net.constants()))
    (net(tree, to("torch", x), to("torch", context)) ** 2).sum().backward()
    masks = dict(_tree.leaves(net.constants()))
    for path, leaf in _tree.leaves(params):
        learns, mask = numpy(leaf.grad) != 0, masks.get((*path[:-1], "mask"))
        if path[-1] == "weight" and mask is not None:
            assert not learns[~mask].any()
            learns = learns[mask]
        assert learns.mean() > 0.9, path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.PixelConvNet(3, 1, 2), "hidden_channels must be an integer of at least 3, got 2"),
        (lambda: fp.PixelConvNet(1, 1, kernel_size=4), "kernel_size must be odd, got 4"),
        (lambda: fp.PixelConvNet(1, 1, kernel_size=(3, 1)), "kernel_size must be an integer of at least 3, got 1"),
        (lambda: fp.PixelConvNet(1, 1, context_shape=(2, 2)), "context_shape must be a tuple of 3 integers"),
        (lambda: fp.CausalConv1d(1, 0), "num_outputs must be an integer of at least 1, got 0"),
        (lambda: fp.CausalConv1d(1, 1, dilations=3), "dilations must be a tuple of integers, got 3"),
        (lambda: fp.CausalConv1d(1, 1, context_dim=3, context_shape=(2, 2)), "context_dim must be 4"),
        (lambda: fp.CausalConv1d(1, 1, activation="gelu"), "activation must be one of"),
        (lambda: layer((3, 3), fp.CausalConv1d(3, 1)), "network must have num_outputs=2, .*, got 1"),
        (lambda: layer((1, 3, 3), PixelConvNet(2, 2)), "network must have in_channels=1, .*, got 2"),
        (lambda: layer((1, 3, 3), PixelConvNet(1, 2, context_dim=3), context_dim=2), "context_dim=2, .*, got 3"),
        (lambda: layer((1, 3, 3), PixelConvNet(1, 2, context_shape=(1, 3, 4))), "which does not fit shape"),
        (lambda: layer((3, 3, 3), None, hidden_channels=2), "hidden_channels must be an integer of at least 3, got 2"),
        (lambda: layer((3,), None), "shape must be"),
    ],
)
def test_wrong_causal_networks_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def layer(shape, network, **options):
    return fp.ImageAutoregressive(shape, fp.Affine(), network, **options)


def test_a_layer_refuses_the_network_of_another_kind_of_event():
    for shape, network, message in (
        ((1, 3, 3), fp.CausalConv1d(1, 2), r"network for shape=\(1, 3, 3\) must be a flowppl.PixelConvNet or"),
        ((1, 3), fp.MLP(1, 2), "must be a flowppl.CausalConv1d or CausalTransformer, got MLP"),
        ((1, 3), fp.CausalConv1d, "got the class CausalConv1d"),
    ):
        with pytest.raises(TypeError, match=message):
            layer(shape, network)


def test_events_of_another_size_than_the_context_are_refused(rng):
    """A context one pixel wide would else be that of all."""
    for net, shape in (
        (fp.CausalConv1d(1, 1, 2, (), context_shape=(1, 1)), (1, 3)),
        (PixelConvNet(1, 1, 2, 0, 3, context_shape=(1, 3, 1)), (1, 3, 3)),
    ):
        tree, x, context = merged(net, draw(net, rng)), rng.normal(size=shape), rng.normal(size=net.context_dim)
        for call in (net, lambda tree, x, context, net=net: net.generate(tree, lambda raw, x: (x,), [x], context)):
            with pytest.raises(ValueError, match=r"context_shape=.* does not fit an event"):
                call(tree, x, context)


def test_layers_have_the_network_that_their_arguments_say():
    image = fp.ImageAutoregressive((2, 4, 4), fp.Shift(), None, 8, 3, 5)
    assert image.parameters() == {"network": PixelConvNet(2, 1, 8, 3, context_dim=5).parameters()}
    sequence = fp.ImageAutoregressive((1, 9), fp.Affine(), None, 8, 3)
    assert sequence.parameters() == {"network": fp.CausalConv1d(1, 2, 8, (1, 2, 4)).parameters()}
    assert layer((1, 3), fp.CausalConv1d(1, 2, context_shape=(2, 3))).context_dim == 6
