"""Autoregressive layers: the incremental inverse against one pass per coordinate, orders, adjacencies, blocks."""

import jax
import numpy as np
import pytest
import torch
from catalogue import context_for, draw, merged, numpy, to

import flowppl as fp
from flowppl._arrays import tree as _tree
from flowppl._arrays.namespace import namespace
from flowppl.networks import dense, masked_layers, split_raw

DIAMOND = ((0, 0, 0, 0, 0), (0, 0, 0, 0, 1), (0, 1, 0, 1, 0), (0, 0, 0, 0, 1), (0, 0, 0, 0, 0))  # 4 -> 1, 3 -> 2; 0
UNEVEN = tuple(tuple(j < min(i, 4) for j in range(12)) for i in range(12))  # a chain of five, then eight at once

LAYERS = {
    "one": fp.Autoregressive(1, hidden_dims=4, context_dim=2),
    "two": fp.Autoregressive(2, hidden_dims=(4, 4)),
    "five": fp.Autoregressive(5, hidden_dims=(8, 9), context_dim=2),
    "thirty": fp.Autoregressive(30, hidden_dims=(40, 33)),
    "narrow": fp.Autoregressive(30, hidden_dims=(7, 5), context_dim=1),
    "no-hidden-layer": fp.Autoregressive(30, fp.Shift(), hidden_dims=(), context_dim=2),
    "order": fp.Autoregressive(5, hidden_dims=8, order=(3, 0, 4, 2, 1)),
    "adjacency": fp.Autoregressive(5, hidden_dims=(16, 16), adjacency=DIAMOND, context_dim=2),
    "uneven": fp.Autoregressive(12, hidden_dims=24, adjacency=UNEVEN),
    "uneven-no-hidden-layer": fp.Autoregressive(12, hidden_dims=(), adjacency=UNEVEN),
    "independent": fp.Autoregressive(3, hidden_dims=4, adjacency=((False,) * 3,) * 3),
    "residual": fp.Autoregressive(11, hidden_dims=(16, 16), residual=True, context_dim=2),
}


def inverse_by_passes(layer, tree, y, context=None):
    """The whole network once for each coordinate, until nothing can change any more."""
    xp, x = namespace(y), 0 * y
    for _ in range(layer.dim + 1):
        raw = split_raw(layer._network(tree["network"], x, context), layer.univariate.num_raw)
        x, log_slope = layer.univariate.inverse(raw, y)
    return x, xp.sum(log_slope, axis=-1)


def assert_close(found, expected, tolerance=1e-10):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("name", LAYERS)
def test_inverse_is_that_of_one_pass_per_coordinate(name, library, rng):
    layer = LAYERS[name]
    params, inverse = draw(layer, rng), jax.jit(layer.inverse) if library == "jax" else layer.inverse
    for batch in [(2, 3)] if library == "jax" else [(), (3,), (2, 3), (0, 3)]:
        y, context = rng.normal(size=(*batch, layer.dim)), context_for(layer, rng, batch)
        expected = inverse_by_passes(layer, merged(layer, params), y, context)
        found = inverse(merged(layer, params, library), to(library, y), to(library, context))
        assert found[0].shape == y.shape
        assert found[1].shape == batch
        assert_close(found, expected)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("name", ["one", "narrow", "no-hidden-layer", "adjacency", "residual"])
def test_weights_events_and_contexts_broadcast(name, library, rng):
    layer = LAYERS[name]
    inverse = jax.jit(layer.inverse) if library == "jax" else layer.inverse
    for weights, events, contexts in [((3,), (2, 1), (2, 3)), ((), (), (4,)), ((2, 3), (), ())]:
        params, y, context = draw(layer, rng, batch=weights), rng.normal(size=(*events, layer.dim)), None
        context = context_for(layer, rng, contexts)
        batch = np.broadcast_shapes(weights, events, contexts)
        found = inverse(merged(layer, params, library), to(library, y), to(library, context))
        assert found[0].shape == (*batch, layer.dim)
        wide = np.broadcast_to(y, found[0].shape)
        expected = inverse_by_passes(layer, merged(layer, params), wide, context)
        assert_close(found, expected)
        if library == "jax":
            break


@pytest.mark.parametrize(
    ("name", "library"), [("five", "torch"), ("adjacency", "torch"), ("residual", "torch"), ("residual", "jax")]
)
def test_first_and_second_derivatives_are_exact(name, library, rng):
    """In the event and in the first biases, against one pass per coordinate and against finite differences."""
    layer = LAYERS[name]
    params, context, y = draw(layer, rng), context_for(layer, rng), rng.normal(size=layer.dim)
    cotangent, bias = rng.normal(size=layer.dim), params["network"]["0"]["bias"]

    def through(inverse, library):
        def scalar(point):
            tree = merged(layer, params, library)
            tree["network"]["0"]["bias"] = point[layer.dim :]
            x, log_det = inverse(tree, point[: layer.dim], to(library, context))
            return (x * to(library, cotangent)).sum() + log_det

        return scalar

    point, step = np.concatenate([y, bias]), 1e-5 * rng.normal(size=y.size + bias.size)
    mine, by_passes = through(layer.inverse, library), through(lambda *args: inverse_by_passes(layer, *args), "torch")

    def derivatives(scalar, library):
        """The gradient, and the Hessian times a vector."""
        autodiff = jax if library == "jax" else torch.func

        def both(at, vector):
            return autodiff.jvp(autodiff.grad(scalar), (at,), (vector,))

        both = jax.jit(both) if library == "jax" else both
        return both(to(library, point), to(library, step))

    found = derivatives(mine, library)
    assert_close(found, derivatives(by_passes, "torch"), 1e-9)
    point, step = torch.tensor(point), torch.tensor(step)
    ahead, behind = (numpy(by_passes(point + sign * step)) for sign in (1, -1))
    np.testing.assert_allclose(numpy(found[0]) @ numpy(step), (ahead - behind) / 2, rtol=1e-5, atol=1e-11)


@pytest.mark.parametrize("dim", [64, 256])
def test_inverse_multiplies_as_much_as_a_few_passes(dim, rng):
    """Multiplications are counted by torch; one pass for each coordinate would be ``dim`` times a pass."""
    from torch.utils.flop_counter import FlopCounterMode

    layer = fp.Autoregressive(dim, hidden_dims=(128, 128))
    tree, x = merged(layer, draw(layer, rng), "torch"), to("torch", rng.normal(size=(16, dim)))
    counts = []
    for direction in (layer.forward, layer.inverse):
        with FlopCounterMode(display=False) as counter:
            direction(tree, x)
        counts.append(counter.get_total_flops())
    assert counts[1] <= 2.5 * counts[0]


def test_compiled_size_does_not_grow_with_the_number_of_coordinates(rng):
    """The steps are loops of the compiled program, not unrolled into it."""
    sizes = []
    for dim in (32, 784):
        layer = fp.Autoregressive(dim, hidden_dims=16)
        tree = merged(layer, draw(layer, rng), "jax")
        sizes.append(len(str(jax.make_jaxpr(layer.inverse)(tree, to("jax", np.zeros((2, dim))))).splitlines()))
    assert sizes[1] <= 1.5 * sizes[0]


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_far_events_stay_finite(library, rng):
    for name in ("thirty", "residual", "uneven") if library == "torch" else ("residual",):
        layer = LAYERS[name]
        tree, context = merged(layer, draw(layer, rng), library), to(library, context_for(layer, rng))
        far = to(library, 1e4 * rng.choice([-1.0, 1.0], size=layer.dim))
        inverse = jax.jit(layer.inverse) if library == "jax" else layer.inverse
        assert all(np.isfinite(numpy(part)).all() for part in inverse(tree, far, context))


def test_compiles_to_one_torch_graph(rng):
    layer = LAYERS["adjacency"]
    params, context, y = draw(layer, rng), context_for(layer, rng, (3,)), rng.normal(size=(3, layer.dim))
    torch._dynamo.reset()
    compiled = torch.compile(layer.inverse, backend="aot_eager", fullgraph=True)
    found = compiled(merged(layer, params, "torch"), to("torch", y), to("torch", context))
    assert_close(found, inverse_by_passes(layer, merged(layer, params), y, context))


def permitted(layer):
    """Which x each y may depend on besides its own."""
    if layer.adjacency is not None:
        return np.array(layer.adjacency)
    position = np.argsort(layer.order or range(layer.dim))
    return position[:, None] > position[None, :]


@pytest.mark.parametrize("name", ["five", "order", "adjacency", "uneven", "uneven-no-hidden-layer", "residual"])
def test_each_coordinate_depends_on_all_it_may_and_nothing_else(name, rng):
    layer = LAYERS[name]
    tree, context = merged(layer, draw(layer, rng), "torch"), to("torch", context_for(layer, rng))
    x = to("torch", rng.normal(size=layer.dim))
    jacobian = torch.func.jacrev(lambda x: layer.forward(tree, x, context)[0])(x)
    np.testing.assert_array_equal(numpy(jacobian) != 0, permitted(layer) | np.eye(layer.dim, dtype=bool))


WIDE = {
    "two layers": {"hidden_dims": (12, 17)},
    "one": {"hidden_dims": 11, "context_dim": 2},
    "none": {"hidden_dims": ()},
    "narrow and wide": {"hidden_dims": (5, 20)},
    "residual": {"hidden_dims": (16, 16), "residual": True, "context_dim": 2},
    "adjacency": {"hidden_dims": (14, 14), "adjacency": (np.tri(9, k=-2) > 0).tolist()},
    "strips that none sees": {"hidden_dims": 9, "adjacency": [[i > 0 == j for j in range(9)] for i in range(9)]},
}


@pytest.mark.parametrize("options", WIDE.values(), ids=WIDE)
def test_strips_of_wide_weights_leave_out_zeros_only(options, monkeypatch, rng):
    assert not fp.MADE(9, 3, **options)._strips
    monkeypatch.setattr("flowppl.networks.masked.WIDE", 8)
    network = fp.MADE(9, 3, **options)
    assert max(map(len, network._strips)) == 4
    x, context = rng.normal(size=(6, 9)), context_for(network, rng, (6,))
    params = draw(network, rng)
    rows = _tree.map_tree(lambda leaf: leaf + rng.normal(size=(6, *leaf.shape)), params)  # weights for each event
    for weights in (params, rows):
        expected = dense(masked_layers(merged(network, weights)), x, context, network.activation, network.residual)
        for library in ("numpy", "strict", "torch", "jax")[: 4 if network.residual else 3]:
            tree, given = merged(network, weights, library), (to(library, x), to(library, context))
            if library == "torch":
                leaves = [leaf.requires_grad_() for _, leaf in _tree.leaves(tree) if leaf.is_floating_point()]
            found = (jax.jit(network) if library == "jax" else network)(tree, *given)
            assert_close([found], [expected], 1e-12)
            if library == "torch":
                whole = dense(masked_layers(tree), *given, network.activation, network.residual)
                assert_close(*(torch.autograd.grad((y**2).sum(), leaves) for y in (found, whole)))


def test_masks_are_in_one_piece_and_a_random_order_has_no_strips(monkeypatch):
    monkeypatch.setattr("flowppl.networks.masked.WIDE", 8)
    network = fp.MADE(9, 2, (12, 12), order=(1, 0, *range(2, 9)))
    assert not network._strips
    for _, mask in _tree.leaves(network.constants()):
        assert mask.flags.c_contiguous


@pytest.mark.parametrize("name", ["five", "order", "residual"])
def test_prepared_weights_serve_as_before(name, rng):
    layer = LAYERS[name]
    stack = fp.Repeat(fp.Chain([fp.Invert(layer), fp.Permute.reverse(layer.dim)]), 2)
    tree, x, context = merged(stack, draw(stack, rng)), rng.normal(size=(3, layer.dim)), context_for(layer, rng, (3,))
    prepared = stack.bijection.prepare(tree)
    assert str(prepared).count("is_masked") == len(tree["0"]["network"])
    for direction in (stack.forward, stack.inverse):
        assert_close(direction(prepared, x, context), direction(tree, x, context), 0)
    unprepared = fp.Chain([stack.bijection, stack.bijection])
    layers = {str(i): _tree.map_tree(lambda leaf, i=i: leaf[i], _tree.select(stack.parameters(), tree)) for i in (0, 1)}
    layers = _tree.merge(layers, unprepared.constants())
    assert_close(stack.forward(tree, x, context), unprepared.forward(layers, x, context), 1e-13)


@pytest.mark.parametrize("residual", [False, True])
def test_units_are_shared_out_among_all_dependencies(residual, rng):
    """Of a random graph every permitted dependency is a path through the masks, and every unit is on one."""
    for _ in range(5):
        order = rng.permutation(8)
        graph = (rng.uniform(size=(8, 8)) < 0.4) & (np.argsort(order)[:, None] > np.argsort(order)[None, :])
        adjacency = tuple(map(tuple, graph.tolist()))
        network = fp.MADE(8, 2, (20, 20), adjacency=adjacency, residual=residual)
        masks = [layer["mask"].astype(int) for layer in network.constants().values()]
        paths = np.linalg.multi_dot(masks)
        np.testing.assert_array_equal(paths > 0, np.tile(graph.T, 2))
        ascending = [list(levels) == sorted(levels) for levels in network.unit_levels]
        assert all(ascending)


def test_the_first_order_is_the_default(rng):
    plain, ordered = fp.MADE(6, 2, (9, 4)), fp.MADE(6, 2, (9, 4), order=range(6))
    full = fp.MADE(6, 2, (9, 4), adjacency=np.tri(6, k=-1, dtype=bool).tolist())
    for other in (ordered, full):
        for (path, mask), (_, same) in zip(
            _tree.leaves(plain.constants()), _tree.leaves(other.constants()), strict=True
        ):
            np.testing.assert_array_equal(mask, same, err_msg=str(path))
    assert fp.Autoregressive(6, order=[2, 1, 0, 5, 4, 3]) == fp.Autoregressive(6, order=(2, 1, 0, 5, 4, 3))


def test_residual_blocks_are_those_of_the_equation(rng):
    network = fp.MADE(4, 1, (6, 6), residual=True)
    tree = merged(network, draw(network, rng))
    x = rng.normal(size=4)
    matrices = [tree[str(i)]["weight"] * tree[str(i)]["mask"] for i in range(6)]
    biases = [tree[str(i)]["bias"] for i in range(6)]
    h = x @ matrices[0] + biases[0]
    for block in (1, 3):
        middle = np.tanh(h) @ matrices[block] + biases[block]
        h = h + np.tanh(middle) @ matrices[block + 1] + biases[block + 1]
    np.testing.assert_allclose(network(tree, x), np.tanh(h) @ matrices[5] + biases[5], rtol=1e-12)
    zero = [key for key, layer in network.parameters().items() if layer["weight"].initializer == fp.Constant(0.0)]
    assert zero == ["2", "4", "5"]


@pytest.mark.parametrize("kind", [fp.Autoregressive, lambda dim, **options: fp.MADE(dim, 2, **options)])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": (0, 1, 2), "adjacency": ((0,) * 3,) * 3}, "give order or adjacency, not both"),
        ({"order": (0, 1, 1)}, r"each of 0 \.\. 2 exactly once, got \(0, 1, 1\)"),
        ({"order": (0, 1)}, "exactly once"),
        ({"adjacency": ((0,) * 3,) * 2}, r"dim=3 rows of 3 entries, got rows of \[3, 3\]"),
        ({"adjacency": ((0,) * 3, (0,) * 2, (0,) * 3)}, r"got rows of \[3, 2, 3\]"),
        ({"adjacency": ((0, 0, 0), (0, 1, 0), (0, 0, 0))}, r"adjacency\[1\]\[1\] must be False"),
        ({"adjacency": ((0, 0, 0), (1, 0, 1), (0, 1, 0))}, "cycle 1 -> 2 -> 1 .* make one of these entries False"),
        ({"residual": True, "hidden_dims": (4, 5)}, r"all equal, got \(4, 5\)"),
        ({"residual": True, "hidden_dims": ()}, r"one or more hidden_dims, all equal, got \(\)"),
    ],
)
def test_errors_say_what_to_do(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(3, **options)
