"""Layers that are networks themselves, against their papers' equations in plain NumPy and against other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import draw, merged
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


def test_a_block_autoregressive_layer_agrees_with_numpyro_for_positive_gates(rng):
    """NumPyro's network with its gated residual connection, its tanh, and weights that make ours the same."""
    dim, bound = 3, 1e6  # at which nothing is bounded
    initialize, network = BlockNeuralAutoregressiveNN(dim, [4, 2], residual="gated", activation=Tanh())
    _, (_, (theirs, _), gate) = initialize(jax.random.key(0), (dim,))
    layers = [tuple(np.asarray(leaf, float) for leaf in part) for part in theirs[::2]]
    ours, steepest = {}, np.ones((dim, 1))
    for level, (weight, log_scale, bias) in enumerate(layers):
        fan_in, width = (size // dim for size in weight.shape)
        blocks = weight.reshape(dim, fan_in, dim, width)
        own = np.exp(np.stack([blocks[i, :, i] for i in range(dim)]))
        before = np.arange(dim)[:, None, None, None] < np.arange(dim)[None, None, :, None]
        others = np.where(before, blocks, 0.0)
        length = np.sqrt((own**2).sum(1) + (others**2).sum((0, 1)))
        scale = np.exp(log_scale.reshape(dim, width)) / length
        if level < 2:
            unit = own[:, 0] if level == 0 else 1.0  # ours has 1 in the place of the only entry
            ours[str(level)] = {"weight": (others / unit).reshape(weight.shape), "log_scale": log_scale, "bias": bias}
            if level:
                ours["1"]["own"] = np.log(own)
            steepest = np.einsum("ia,iab->ib", steepest, own * scale[:, None])
    share = 1 / (1 + np.exp(-float(gate)))
    gain = (own * scale[:, None])[..., 0] * share / (1 - share)
    ours["2"] = {
        "weight": (share * others * scale).reshape(weight.shape),
        "share": np.zeros((dim, 2)),
        "gate": np.log1p(2 * steepest * gain),
        "scale": np.full(dim, np.log(np.expm1(1 - share)) - np.log(np.expm1(1.0))),
        "bias": share * bias,
    }
    layer = fp.BlockAutoregressive(dim, (4, 2), log_scale_bound=bound)
    x = rng.normal(size=(5, dim))
    expected, log_slope = network((None, (theirs, ()), gate), jnp.asarray(x))
    y, log_det = layer.forward(merged(layer, ours), x)
    np.testing.assert_allclose(y, expected, rtol=1e-9)
    np.testing.assert_allclose(log_det, log_slope.sum(-1), rtol=1e-9)
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
