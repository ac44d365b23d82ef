"""Layers that are networks themselves, against their papers' equations in plain NumPy and against other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import paramax
import pytest
from catalogue import draw, merged
from flowjax.bijections import BlockAutoregressiveNetwork as FlowjaxNetwork
from numpyro.nn.block_neural_arn import BlockNeuralAutoregressiveNN, Tanh

import flowppl as fp
from flowppl._arrays.namespace import namespace
from flowppl.networks import ACTIVATIONS
from flowppl.networks.lipschitz import spectral_bound


def test_a_block_autoregressive_layer_is_its_equation(rng):
    """De Cao, Titov & Aziz 2019, equations 4 to 8, unit by unit; the end as documented."""
    bound, widths = 3.0, (1, 3, 2)
    layer = fp.BlockAutoregressive(4, widths[1:], context_dim=2, log_scale_bound=bound)
    params, x, context = draw(layer, rng), rng.normal(size=4), rng.normal(size=2)
    hidden, slopes, steepest = [[number] for number in x], [[1.0]] * 4, [[1.0]] * 4
    for level in range(2):
        p, fan_in, width = params[str(level)], widths[level], widths[level + 1]
        news = [[[], [], []] for _ in range(4)]
        for i in range(4):
            for unit in range(width):
                column = i * width + unit
                row = np.concatenate([p["weight"][: i * fan_in, column], np.ones(fan_in)])
                if level:
                    row[i * fan_in :] = np.exp(bound * np.tanh(p["own"][i, :, unit] / bound))
                row *= np.exp(bound * np.tanh(p["log_scale"][column] / bound)) / np.linalg.norm(row)
                total = row @ np.concatenate(hidden[: i + 1]) + p["bias"][column]
                if level == 0:
                    total += context @ p["context_weight"][:, column]
                own = row[i * fan_in :]
                value = np.tanh(total)
                for found, new in zip(
                    news[i], (value, (1 - value**2) * (own @ slopes[i]), own @ steepest[i]), strict=True
                ):
                    found.append(new)
        hidden, slopes, steepest = ([new[k] for new in news] for k in range(3))
    p, y, log_det = params["2"], np.zeros(4), 0.0
    scale = np.log1p(np.exp(p["scale"] + np.log(np.expm1(1.0))))
    for i in range(4):
        shares = np.exp(p["share"][i]) / np.exp(p["share"][i]).sum()
        gain = shares * np.expm1(bound * np.tanh(p["gate"][i] / bound)) / steepest[i]
        shift = sum(hidden[j] @ p["weight"][2 * j : 2 * j + 2, i] for j in range(i))
        y[i] = scale[i] * (x[i] + gain @ hidden[i]) + shift + p["bias"][i] + context @ p["context_weight"][:, i]
        log_det += np.log(scale[i]) + np.log1p(gain @ slopes[i])
    found = layer.forward(merged(layer, params), x, context)
    np.testing.assert_allclose(found[0], y, rtol=1e-11)
    np.testing.assert_allclose(found[1], log_det, rtol=1e-11)


def numpyro_network(dim, widths):
    """NumPyro's network with its gated residual connection and its tanh: its weights, its part of y, and its map."""
    initialize, network = BlockNeuralAutoregressiveNN(dim, widths, residual="gated", activation=Tanh())
    _, (_, (theirs, _), gate) = initialize(jax.random.key(0), (dim,))
    layers = []
    for raw, log_scale, bias in theirs[::2]:
        weight = np.asarray(raw, float)
        own, before = (np.kron(each, np.ones(np.array(weight.shape) // dim)) for each in (np.eye(dim), over(dim)))
        weight = own * np.exp(weight) + before * weight
        layers.append((weight * np.exp(log_scale) / np.linalg.norm(weight, axis=0), np.asarray(bias, float)))
    share = 1 / (1 + np.exp(-float(gate)))
    return layers, share, lambda x: network((None, (theirs, ()), gate), x)


def flowjax_network(dim, widths):
    """flowjax's network of tanh, which has no part of x in y."""
    network = paramax.unwrap(
        FlowjaxNetwork(jax.random.key(0), dim=dim, depth=len(widths), block_dim=widths[0], activation=jnp.tanh)
    )
    layers = [(np.asarray(linear.weight, float).T, np.asarray(linear.bias, float)) for linear, _ in network.layers]
    return layers, 1.0, jax.vmap(network.transform_and_log_det)


def over(dim):
    return np.triu(np.ones((dim, dim)), k=1)


@pytest.mark.parametrize(("peer", "widths"), [(numpyro_network, [4, 2]), (flowjax_network, [3, 3])])
def test_a_block_autoregressive_layer_agrees_with_other_libraries(peer, widths, rng):
    """With their weights it is their map, if the gates are positive; of a map without x, to a share of 1e-12 of x."""
    dim = 3
    layers, share, network = peer(dim, widths)
    ours, steepest = {}, np.ones((dim, 1))
    for level, (weight, bias) in enumerate(layers):
        fan_in, width = (size // dim for size in weight.shape)
        blocks = weight.reshape(dim, fan_in, dim, width)
        own = np.stack([blocks[i, :, i] for i in range(dim)])
        others = np.kron(over(dim), np.ones((fan_in, width))) * weight
        if level < len(widths):
            unit = own.reshape(-1) if level == 0 else 1.0  # ours has 1 in the place of the only entry
            log_scale = np.log(np.linalg.norm(weight, axis=0))
            ours[str(level)] = {"weight": others / unit, "log_scale": log_scale, "bias": bias}
            if level:
                ours[str(level)]["own"] = np.log(own)
            steepest = np.einsum("ia,iab->ib", steepest, own)
    rest = max(1 - share, 1e-12)
    ours[str(len(widths))] = {
        "weight": share * others,
        "share": np.zeros((dim, widths[-1])),
        "gate": np.log1p(widths[-1] * steepest * own[..., 0] * share / rest),
        "scale": np.full(dim, np.log(np.expm1(rest)) - np.log(np.expm1(1.0))),
        "bias": share * bias,
    }
    layer = fp.BlockAutoregressive(dim, widths, log_scale_bound=1e9)  # at which nothing is bounded
    x = rng.normal(size=(5, dim))
    expected, log_slope = network(jnp.asarray(x))
    y, log_det = layer.forward(merged(layer, ours), x)
    np.testing.assert_allclose(y, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(log_det, log_slope.reshape(5, -1).sum(-1), rtol=1e-9)
    if share < 1:  # else the slopes lie between 1e-12 and 1
        np.testing.assert_allclose(layer.inverse(merged(layer, ours), y)[0], x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("scale", [3.0, 30.0])
def test_steep_blocks_are_inverted_wherever_an_event_lies(scale, rng):
    layer = fp.BlockAutoregressive(2, (4, 4), log_scale_bound=8.0)
    params = merged(layer, draw(layer, rng, scale))
    y = np.concatenate([rng.normal(size=(200, 2)), 1e6 * rng.normal(size=(50, 2))])
    x, log_det = layer.inverse(params, y)
    again, back = layer.forward(params, x)
    # The slope is up to e^8: a step of x to the next number moves y by so much more.
    np.testing.assert_allclose(again, y, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(back, -log_det, rtol=1e-6, atol=1e-6)


def test_a_contractive_residual_layer_is_its_equation(rng):
    """Behrmann et al. 2018, equation 1, with the bound as documented, by powers and the Jacobian by differences."""
    layer = fp.ContractiveResidual(3, hidden_dims=(5, 4), context_dim=2, lipschitz=0.8)
    params, x, context = draw(layer, rng, 2.0), rng.normal(size=3), rng.normal(size=2)
    network = [params["network"][str(i)] for i in range(3)]
    grams = [part["weight"].T @ part["weight"] for part in network]
    beta = np.prod([np.linalg.norm(np.linalg.matrix_power(gram, 16)) ** (1 / 32) for gram in grams])

    def image(x):
        hidden = np.tanh(x @ network[0]["weight"] + network[0]["bias"] + context @ network[0]["context_weight"])
        hidden = np.tanh(hidden @ network[1]["weight"] + network[1]["bias"])
        return x + hidden @ network[2]["weight"] / (1 + beta**4 / 0.8**4) ** 0.25 + network[2]["bias"]

    y, log_det = layer.forward(params, x, context)
    np.testing.assert_allclose(y, image(x), rtol=1e-12)
    steps = 1e-6 * np.eye(3)
    jacobian = np.stack([(image(x + step) - image(x - step)) / 2e-6 for step in steps])
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-7, atol=1e-9)


MATRICES = {
    "normal": lambda rng, n, m: rng.normal(size=(n, m)),
    "equal": lambda rng, n, m: np.ones((n, m)),
    "orthonormal": lambda rng, n, m: np.linalg.qr(rng.normal(size=(max(n, m), min(n, m))))[0].reshape(n, m),
    "of rank one": lambda rng, n, m: rng.normal(size=(n, 1)) * rng.normal(size=m),
    "one entry": lambda rng, n, m: np.eye(n, m) * (np.arange(m) == 0),
    "of all sizes": lambda rng, n, m: rng.normal(size=(n, m)) * 10.0 ** rng.uniform(-20, 20, size=(n, m)),
    "nearly equal singular values": lambda rng, n, m: np.eye(n, m) + 1e-3 * rng.normal(size=(n, m)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bound_of_a_norm_is_never_below_it(dtype, rng):
    for make in MATRICES.values():
        for n, m in ((1, 1), (2, 3), (30, 7), (7, 30), (64, 64)):
            for size in (1e-15, 1.0, 1e15):
                matrix = (size * make(rng, n, m)).astype(dtype)
                excess = spectral_bound(matrix) / np.linalg.norm(matrix.astype(np.float64), 2)
                rounding = 1 + 4 * min(n, m) * np.finfo(dtype).eps
                assert 1 / rounding <= excess <= min(n, m) ** (1 / 64) * rounding * (1 + 1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_contractive_network_is_one_for_all_weights(activation, rng):
    """The slopes in all directions at once, by the Jacobian that the determinant is of; and the way back."""
    layer = fp.ContractiveResidual(3, hidden_dims=(8, 8), activation=activation, lipschitz=0.9)
    for make in MATRICES.values():
        for size in (1e-3, 1.0, 1e3):
            params = draw(layer, rng)
            for part in params["network"].values():
                part["weight"] = size * make(rng, *part["weight"].shape)
            x = rng.normal(size=(40, 3)) * rng.choice([0.01, 1.0, 30.0], size=(40, 1))
            moved = layer._slopes(layer._weights(params, None), x) - np.eye(3)
            assert np.linalg.norm(moved, 2, axis=(-2, -1)).max() <= 0.9 * (1 + 1e-12)
            y, log_det = layer.forward(params, x)
            again, back = layer.inverse(params, y)
            residual = layer.forward(params, again)[0] - y
            assert np.abs(residual).max() <= 1e-13 * (1 + np.abs(y).max())
            np.testing.assert_allclose(back, -log_det, rtol=1e-6, atol=1e-6)


def test_many_gradients_of_determinants_in_one_program_of_jax_end(rng):
    """With LAPACK they wait for each other forever on two cores, from a batch of such a size on."""
    matrices = jnp.eye(16) + 0.1 * jnp.asarray(rng.normal(size=(8, 256, 16, 16))) / 4
    log_abs_det = namespace(matrices).log_abs_det
    found = jax.jit(lambda parts: [jax.grad(lambda part: log_abs_det(part).sum())(part) for part in parts])([*matrices])
    for matrix, gradient in zip(matrices, found, strict=True):
        np.testing.assert_allclose(gradient, np.linalg.inv(matrix).swapaxes(-1, -2), rtol=1e-9, atol=1e-9)


FACTORS = {
    "cholesky": (lambda xp, a: xp.cholesky(a @ a.mT), lambda a: jnp.linalg.cholesky(a @ a.mT)),
    "orthonormal": (lambda xp, a: xp.orthonormal(a[..., :2]), lambda a: jnp.linalg.qr(a[..., :2])[0]),
    "lower": (
        lambda xp, a: xp.solve_unit_triangular(a, a[..., 0]),
        lambda a: jax.scipy.linalg.solve_triangular(a, a[..., 0], lower=True, unit_diagonal=True),
    ),
    "upper": (
        lambda xp, a: xp.solve_unit_triangular(a, a[..., 0], upper=True),
        lambda a: jax.scipy.linalg.solve_triangular(a, a[..., 0], lower=False, unit_diagonal=True),
    ),
}


@pytest.mark.parametrize("name", FACTORS)
def test_batches_in_jax_have_the_factors_of_lapack_without_it(name, rng):
    """Of batches they wait for each other forever, too; alone LAPACK's own, and all derivatives, are the truth."""
    ours, theirs = FACTORS[name]
    matrices = jnp.asarray(rng.normal(size=(3, 3, 3)))
    weight = jnp.asarray(rng.normal(size=theirs(matrices[0]).shape))
    matrices = matrices.at[2, 1:, 0].set(0.0)  # a column without a reflection

    def pulled(function):
        return jax.grad(lambda a: jnp.sum(weight * function(a) ** 2))

    def curved(function):
        return jax.grad(lambda a: jnp.sum(jnp.sin(pulled(function)(a))))

    def batch(a):
        return ours(namespace(a), a)

    lowered = jax.jit(lambda a: (batch(a), pulled(batch)(a), curved(batch)(a))).lower(matrices)
    assert "lapack" not in lowered.as_text()
    found = lowered.compile()(matrices)
    for i, matrix in enumerate(matrices):
        for array, function in zip(found, (theirs, pulled(theirs), curved(theirs)), strict=True):
            np.testing.assert_allclose(array[i], function(matrix), rtol=1e-9, atol=1e-9)


def test_orthonormal_columns_in_jax_where_the_matrix_has_no_full_rank(rng):
    one = rng.normal(size=(4, 1))
    matrices = np.stack([np.zeros((4, 2)), 1e300 * np.ones((4, 2)), np.hstack([one, one]), np.hstack([0 * one, one])])
    frames = namespace(jnp.zeros(1)).orthonormal(jnp.asarray(matrices))
    np.testing.assert_allclose(frames.mT @ frames, np.broadcast_to(np.eye(2), (4, 2, 2)), atol=1e-12)


def test_a_bound_beyond_all_numbers_leaves_numbers(rng):
    layer = fp.ContractiveResidual(2, hidden_dims=4)
    params = draw(layer, rng)
    for part in params["network"].values():
        part["weight"] = part["weight"] * 1e200
    params, x = merged(layer, params, "jax"), jnp.asarray(rng.normal(size=(3, 2)))
    for found in (*layer.forward(params, x), *layer.inverse(params, x)):
        assert jnp.isfinite(found).all()
