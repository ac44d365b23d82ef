"""Layers that are networks themselves, against their papers' equations in plain NumPy and against other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from catalogue import draw, merged
from numpyro.nn.block_neural_arn import BlockNeuralAutoregressiveNN, Tanh

import flowppl as fp


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
