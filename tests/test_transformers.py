"""Transformers: the papers' equations in plain NumPy, what each pixel depends on, and pixels found one by one."""

import jax
import numpy as np
import pytest
import torch
from catalogue import NAMESPACES, NumpyDraws, draw, merged, numpy, to

import flowppl as fp
from flowppl._arrays import tree as _tree

# Each with the shape of an event.
NETS = {
    "image": (fp.Transformer(2, 3, (2, 3), 8, 2, 2), (2, 2, 3)),
    "image-context": (fp.Transformer(1, 2, (1, 3), 4, 1, 1, context_dim=2, activation="elu"), (1, 1, 3)),
    "sequence-no-blocks": (fp.Transformer(2, 1, 4, 3, 0, 3), (2, 4)),
    "causal": (fp.CausalTransformer(2, 3, (2, 2), 8, 2, 2), (2, 2, 2)),
    "causal-context": (fp.CausalTransformer(1, 2, 3, 4, 1, 4, context_dim=2), (1, 3)),
    "causal-one": (fp.CausalTransformer(2, 1, 1, 4, 1, 2), (2, 1)),
}
CAUSAL = [name for name in NETS if name.startswith("causal")]


def inputs(net, shape, rng, batch=(2,)):
    return rng.normal(size=(*batch, *shape)), rng.normal(size=(*batch, net.context_dim)) if net.context_dim else None


def activate(name, x):
    return x / (1 + np.exp(-x)) if name == "silu" else np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def norm(layer, h):
    h = (h - h.mean(axis=1, keepdims=True)) / np.sqrt(h.var(axis=1, keepdims=True) + 1e-5)
    return h * layer["scale"] + layer["bias"]


def dense(layer, h):
    return h @ layer["weight"] + layer["bias"]


def transformer(net, tree, x, context):
    """The output for one event, head by head and token by token."""
    is_causal, d = isinstance(net, fp.CausalTransformer), net.hidden_dim // net.num_heads
    h = dense(tree["enter"], x.reshape(len(x), -1).T)
    if is_causal:
        h = np.concatenate([tree["start"][None], h[:-1]])
    h = h + tree["position"] + (0 if context is None else dense(tree["context"], context))
    for i in range(net.num_blocks):
        attention, perceptron = tree[str(i)]["attention"], tree[str(i)]["perceptron"]
        made = (norm(attention["norm"], h) @ attention["make"]).reshape(len(h), 3, net.num_heads, d)
        mixed = np.zeros((len(h), net.num_heads, d))
        for head in range(net.num_heads):
            for token in range(len(h)):
                query, (key, value) = made[token, 0, head], made[:, 1:, head].swapaxes(0, 1)
                last = token + 1 if is_causal else len(h)
                weights = np.exp(key[:last] @ query / np.sqrt(d))
                mixed[token, head] = weights @ value[:last] / weights.sum()
        h = h + dense(attention["mix"], mixed.reshape(len(h), -1))
        h = h + dense(
            perceptron["down"], activate(net.activation, dense(perceptron["up"], norm(perceptron["norm"], h)))
        )
    return dense(tree["last"], norm(tree["norm"], h)).T.reshape(-1, *x.shape[1:])


@pytest.mark.parametrize("name", NETS)
def test_a_transformer_is_its_equations_and_finds_pixels_one_by_one(name, rng):
    """In all libraries, with one set of weights, or one for each event."""
    net, shape = NETS[name]
    x, context = inputs(net, shape, rng)
    noise, (one, two) = rng.normal(size=x.shape), (draw(net, rng), draw(net, rng))
    both = _tree.map_tree(lambda *leaves: np.stack(leaves), one, two)
    libraries = NAMESPACES if name in ("image", "causal") else ("numpy", "strict", "torch")
    for sets, params, namespaces in (((one, one), one, libraries), ((one, two), both, ("numpy", "torch"))):
        contexts = (None, None) if context is None else context
        expected = np.stack([transformer(net, *given) for given in zip(sets, x, contexts, strict=True)])
        entries = expected.reshape(2, -1, *shape) if name in CAUSAL else None
        for namespace in namespaces:

            def run(tree, x, noise, context):
                """Its output, and what a search for x makes of the numbers for each entry."""

                def find(raw, x, noise):
                    return x, raw[0, ...] * noise, raw[-1, ...]

                found = net.generate(tree, find, (x, noise), context) if name in CAUSAL else ()
                return net(tree, x, context), *found

            run = jax.jit(run) if namespace == "jax" else run
            output, *found = run(merged(net, params, namespace), *(to(namespace, a) for a in (x, noise, context)))
            np.testing.assert_allclose(numpy(output), expected, rtol=1e-9, atol=1e-9)
            for part, right in zip(found, (x, entries[:, 0] * noise, entries[:, -1]) if found else (), strict=True):
                np.testing.assert_allclose(numpy(part), right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["image", "causal"])
def test_a_pixel_depends_on_all_others_or_on_all_before_it(name, rng):
    net, shape = NETS[name]
    tree, num = merged(net, draw(net, rng), "torch"), int(np.prod(shape[1:]))
    jacobian = torch.autograd.functional.jacobian(lambda x: net(tree, x), to("torch", rng.normal(size=shape)))
    slopes = abs(numpy(jacobian)).reshape(-1, num, shape[0], num)
    expected = np.tri(num, k=-1, dtype=bool) if name in CAUSAL else np.ones((num, num), dtype=bool)
    assert ((slopes > 0) == expected[None, :, None, :]).all()


@pytest.mark.parametrize("name", NETS)
def test_a_transformer_starts_at_zero_and_every_weight_can_learn(name, rng):
    net, shape = NETS[name]
    x, context = inputs(net, shape, rng, (5,))
    assert not net(merged(net, fp.initialize(net, NumpyDraws(rng))), x, context).any()
    params = _tree.map_tree(lambda a: torch.tensor(a, requires_grad=True), draw(net, rng))
    output = net(_tree.merge(params, merged(net, {}, "torch")), to("torch", x), to("torch", context))
    (output * torch.tensor(rng.normal(size=output.shape))).sum().backward()
    for path, leaf in _tree.leaves(params):
        if name == "causal-one" and path[0] == "enter":
            continue  # there is no pixel before the first
        learns = numpy(leaf.grad) != 0
        if name == "causal-one" and "make" in path:
            learns = learns.reshape(-1, 3, net.hidden_dim)[:, 2]  # one token attends to itself alone
        assert learns.mean() > 0.9, path


def test_a_context_moves_every_pixel_and_heads_change_what_is_mixed(rng):
    net, shape = NETS["causal-context"]
    tree, (x, context) = merged(net, draw(net, rng)), inputs(net, shape, rng)
    assert (net(tree, x, context) != net(tree, x, context + 1)).all()
    one_head = fp.CausalTransformer(1, 2, 3, 4, 1, 1, context_dim=2)
    assert (net(tree, x, context)[..., 1:] != one_head(tree, x, context)[..., 1:]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.Transformer(0, 1, 3), "in_channels must be an integer of at least 1, got 0"),
        (lambda: fp.Transformer(1, 0, 3), "out_channels must be an integer of at least 1, got 0"),
        (lambda: fp.Transformer(1, 1, (2, 0)), "size must be an integer of at least 1, got 0"),
        (lambda: fp.Transformer(1, 1, "ab"), "size must be"),
        (lambda: fp.Transformer(1, 1, 3, num_blocks=-1), "num_blocks must be an integer of at least 0"),
        (lambda: fp.CausalTransformer(1, 1, 3, hidden_dim=6), "num_heads must divide hidden_dim=6, got 4"),
        (lambda: fp.CausalTransformer(1, 0, 3), "num_outputs must be an integer of at least 1, got 0"),
        (lambda: fp.CausalTransformer(1, 1, 3, activation="gelu"), "activation must be one of"),
        (lambda: layer((1, 2, 2), fp.CausalTransformer(1, 2, 4)), r"size=\(4,\), which does not fit shape=\(1, 2, 2\)"),
        (lambda: layer((1, 3), fp.CausalTransformer(1, 1, 3)), "network must have num_outputs=2, .*, got 1"),
        (
            lambda: called(fp.Transformer(1, 1, 3), np.zeros((2, 3))),
            r"expected events of shape \(1, 3\), .*, got shape",
        ),
    ],
)
def test_wrong_transformers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def called(network, x):
    return network(fp.initialize(network, NumpyDraws(np.random.default_rng(0))), x)


def layer(shape, network):
    return fp.ImageAutoregressive(shape, network=network)


def test_sizes_and_contexts_that_do_not_fit_are_told():
    for size in ((), (2, 2, 2)):
        with pytest.raises(ValueError, match=r"Transformer: size must be \(height, width\), or a length"):
            fp.Transformer(1, 2, size)
    assert fp.Transformer(1, 2, np.int64(4)).size == (4,)
    options = {"size": (2, 2), "hidden_dim": 4}
    for network in (fp.Transformer(1, 2, **options), fp.ConvNet(1, 2)):
        with pytest.raises(ValueError, match="network must have context_dim=3, as ImageCoupling gives it, got 0"):
            fp.ImageCoupling((2, 2, 2), network=network, context_dim=3)
    with pytest.raises(ValueError, match="network must have context_dim=0, as ImageCoupling gives it, got 3"):
        fp.ImageCoupling((2, 2, 2), network=fp.Transformer(1, 2, context_dim=3, **options))
    with pytest.raises(ValueError, match="network must have context_dim=1, as Continuous gives it, got 0"):
        fp.Continuous(2, network=fp.MLP(2, 2))
