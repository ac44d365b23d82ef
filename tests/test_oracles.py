"""Each flow against its paper's equation, written once more in plain NumPy, and against other libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as ndist
import pytest
import torch
from catalogue import draw, merged
from numpyro.distributions.flows import InverseAutoregressiveTransform
from pyro.distributions import transforms as pyro_transforms

import flowppl as fp
from flowppl._arrays.namespace import namespace
from flowppl.bijections.residual import root_of_bend


def numpy_network(layers, x, context=None, activation=np.tanh):
    """A perceptron by the book: one product per layer, masks multiplied in."""
    for i in range(len(layers)):
        layer = layers[str(i)]
        x = x @ (layer["weight"] * layer.get("mask", 1.0)) + layer["bias"]
        if "context_weight" in layer:
            x = x + context @ layer["context_weight"]
        if i < len(layers) - 1:
            x = activation(x)
    return x


def test_planar_is_the_papers_stack(rng):
    """Rezende & Mohamed 2015, equations 10 and 12, layer by layer; the constraint as documented."""
    flow = fp.Planar(4, num_flows=3)
    params = draw(flow, rng, 1.5)
    x = rng.normal(size=4)
    y, log_det = flow.forward(params, x)
    expected, total = x, 0.0
    for w, u, b in zip(params["w"], params["u"], params["b"], strict=True):
        along = np.log1p(np.exp(w @ u + np.log(np.expm1(0.999)))) - 0.999
        u = u + (along - w @ u) * w / (w @ w)
        inner = w @ expected + b
        psi = (1 - np.tanh(inner) ** 2) * w
        total += np.log(abs(1 + u @ psi))
        expected = expected + u * np.tanh(inner)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_allclose(log_det, total, rtol=1e-12)


def test_planar_agrees_with_pyro_for_the_same_constrained_step(rng):
    """One layer of Pyro's, its free parameter chosen to give the same constrained u."""
    flow = fp.Planar(3)
    params = draw(flow, rng)
    w, u, b = params["w"][0], params["u"][0], params["b"]
    ours = np.log1p(np.exp(w @ u + np.log(np.expm1(0.999)))) - 0.999
    constrained = u + (ours - w @ u) * w / (w @ w)
    theirs = np.log(np.expm1(1 + w @ constrained))  # the a with softplus(a) - 1 = w'u
    peer = pyro_transforms.Planar(3)
    with torch.no_grad():
        peer.w.copy_(torch.tensor(w))
        peer.bias.copy_(torch.tensor(b))
        peer.u.copy_(torch.tensor(u + (theirs - w @ u) * w / (w @ w)))
    x = torch.tensor(rng.normal(size=3))
    expected = peer(x)
    y, log_det = flow.forward(params, x.numpy())
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-12)
    np.testing.assert_allclose(log_det, peer.log_abs_det_jacobian(x, expected).detach(), rtol=1e-12)


@pytest.mark.parametrize("gain", [-0.999, -0.9, -0.3, 0.0, 0.5, 10.0, 9000.0, 1e4, 1e6, 1e8])
def test_planar_inverse_converges_everywhere(gain):
    """From the smallest targets to the largest, where bisection would need its full sixty steps."""
    targets = np.concatenate([np.logspace(-12, 7, 400), gain + np.linspace(-3, 3, 400)])
    w, u = np.array([[1.0]]), np.array([[0.0]])
    shift = np.log(np.expm1(0.999))
    if gain > 30:  # the free u with this gain
        u[0, 0] = gain + 0.999 - shift
    else:
        u[0, 0] = np.log(np.expm1(gain + 0.999)) - shift if gain > -0.999 else -40.0
    y = targets[:, None]
    flow = fp.Planar(1)
    x, _ = flow.inverse({"w": w, "u": u, "b": np.zeros(1)}, y)
    again, _ = flow.forward({"w": w, "u": u, "b": np.zeros(1)}, x)
    # The way back amplifies the rounding of y - u tanh(.) by the slope, 1 + gain.
    assert (np.abs(again - y) <= 1e-14 * (1 + abs(gain)) * (np.abs(y) + abs(gain) + np.abs(x))).all()


@pytest.mark.parametrize("gain", [1e7, 1e10, 1e20, 1e30])
def test_inverses_of_bends_stay_finite_and_right_for_huge_gains(gain):
    """In float32 too, where tanh rounds to 1 within 10 of zero."""
    for dtype in (np.float64, np.float32):
        edge = np.linspace(-30, 30, 61)
        target = np.concatenate([gain * np.linspace(0.01, 2, 200), gain + edge]).astype(dtype)
        target = np.concatenate([target, -target])
        root = root_of_bend(namespace(target), target, np.full_like(target, gain))
        back = root.astype(np.longdouble) + np.longdouble(dtype(gain)) * np.tanh(root.astype(np.longdouble))
        np.testing.assert_allclose(back.astype(float), target.astype(float), rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("context_dim", [0, 2])
def test_realnvp_coupling_is_the_papers(context_dim, rng):
    """Dinh et al. 2016, equations 7 and 8, with the log-scale bounded as documented."""
    layer = fp.Coupling(5, fp.Affine(2.0), hidden_dims=(8, 8), context_dim=context_dim, activation="tanh")
    params = draw(layer, rng)
    x, context = rng.normal(size=5), rng.normal(size=context_dim)
    shift, raw = np.split(numpy_network(params["network"], x[:2], context), 2)
    scale = 2 * np.tanh(raw / 2)
    y, log_det = layer.forward(params, x, context if context_dim else None)
    np.testing.assert_allclose(y, np.concatenate([x[:2], x[2:] * np.exp(scale) + shift]), rtol=1e-12)
    np.testing.assert_allclose(log_det, scale.sum(), rtol=1e-12)


def test_nice_coupling_preserves_volume(rng):
    """Dinh et al. 2014, equation 4."""
    layer = fp.Coupling(4, fp.Shift(), hidden_dims=8, activation="tanh", mask=(False, True, False, True))
    params = draw(layer, rng)
    x = rng.normal(size=4)
    y, log_det = layer.forward(merged(layer, params), x)
    expected = x.copy()
    expected[[0, 2]] += numpy_network(params["network"], x[[1, 3]])
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    assert log_det == 0


def test_autoregressive_parameters_see_earlier_coordinates_only(rng):
    """Papamakarios et al. 2017, equations 3 to 5, coordinate by coordinate, in the sequential direction."""
    layer = fp.Autoregressive(4, fp.Affine(3.0), hidden_dims=(7, 6), context_dim=2)
    params = draw(layer, rng)
    tree = merged(layer, params)
    y, context = rng.normal(size=4), rng.normal(size=2)
    x = np.zeros(4)
    total = 0.0
    for i in range(4):
        later = rng.normal(size=4 - i) * 100  # what stands there must not matter
        outputs = numpy_network(tree["network"], np.concatenate([x[:i], later]), context)
        shift, scale = outputs[i], 3 * np.tanh(outputs[4 + i] / 3)
        x[i] = (y[i] - shift) * np.exp(-scale)
        total -= scale
    found, log_det = layer.inverse(tree, y, context)
    np.testing.assert_allclose(found, x, rtol=1e-12)
    np.testing.assert_allclose(log_det, total, rtol=1e-12)


@pytest.mark.parametrize(("dim", "hidden_dims"), [(1, 4), (3, 2), (5, (3, 2)), (6, (64, 64)), (6, ())])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_made_connects_what_it_may_and_all_it_can(dim, hidden_dims, context_dim):
    network = fp.MADE(dim, 2, hidden_dims, context_dim)
    masks = [layer["mask"].astype(int) for layer in network.constants().values()]
    paths = np.linalg.multi_dot(masks) if len(masks) > 1 else masks[0]
    allowed = np.tile(np.triu(np.ones((dim, dim), dtype=int), k=1), 2)
    assert not (paths > 0)[allowed == 0].any()
    if not hidden_dims or min(fp.MADE(dim, 2, hidden_dims).hidden_dims) >= dim:
        np.testing.assert_array_equal(paths > 0, allowed > 0)
    else:
        assert (paths[:, -1] > 0).sum() >= min(dim - 1, 2)


def test_affine_autoregressive_flow_agrees_with_numpyro(rng):
    """NumPyro's transform with our network inside: the same map where our bound does not bind."""
    layer = fp.Autoregressive(4, fp.Affine(1e6), hidden_dims=8)
    params = merged(layer, draw(layer, rng, 0.5))

    def network(x):
        output = layer._network(jax.tree.map(jnp.asarray, params["network"]), x)
        return output[..., :4], output[..., 4:]

    peer = InverseAutoregressiveTransform(network)
    x = jnp.asarray(rng.normal(size=(3, 4)))
    y, log_det = layer.forward(params, np.asarray(x))
    np.testing.assert_allclose(peer(x), y, rtol=1e-9)
    np.testing.assert_allclose(peer.log_abs_det_jacobian(x, peer(x)), log_det, rtol=1e-9, atol=1e-9)


def test_triangular_affine_makes_any_multivariate_normal(rng):
    factor = np.tril(rng.normal(size=(4, 4)), -1) + np.diag(np.exp(rng.normal(size=4)))
    layer, loc = fp.TriangularAffine(4), rng.normal(size=4)
    params = layer.parameters_for(loc, factor) | layer.constants()
    y = rng.normal(size=(5, 4))
    x, log_det = layer.inverse(params, y)
    expected = ndist.MultivariateNormal(loc, scale_tril=factor).log_prob(y)
    np.testing.assert_allclose(ndist.Normal(0, 1).log_prob(x).sum(-1) + log_det, expected, rtol=1e-10)


def test_a_linear_map_of_a_subspace_is_a_matrix_of_low_rank_added_to_the_identity(rng):
    layer = fp.Subspace(6, fp.TriangularAffine(2))
    params = merged(layer, draw(layer, rng))
    columns = np.linalg.qr(params["frame"])[0]
    loc, small = layer.bijection.loc_and_scale(params["bijection"])
    matrix = np.eye(6) + columns @ (small - np.eye(2)) @ columns.T
    x = rng.normal(size=(5, 6))
    y, log_det = layer.forward(params, x)
    np.testing.assert_allclose(y, x @ matrix.T + columns @ loc, rtol=1e-12)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(matrix)[1], rtol=1e-12)
    back, log_det = layer.inverse(params, y)
    np.testing.assert_allclose(back, x, rtol=1e-12)
    np.testing.assert_allclose(log_det, -np.linalg.slogdet(matrix)[1], rtol=1e-12)


def test_flow_pushes_its_base_forward(rng):
    """The density is that of the samples: a histogram of a one-dimensional flow against exp(log_prob)."""
    flow = fp.Chain([fp.Planar(1, num_flows=3), fp.ElementwiseAffine(1)])
    params = merged(flow, draw(flow, rng))
    y, _ = flow.forward(params, rng.normal(size=(400_000, 1)))
    edges = np.quantile(y, np.linspace(0.01, 0.99, 40))
    count, _ = np.histogram(y, edges)
    fine = np.linspace(edges[:-1], edges[1:], 200)
    x, log_det = flow.inverse(params, fine[..., None])
    mass = np.exp(log_det - 0.5 * x[..., 0] ** 2 - 0.5 * np.log(2 * np.pi)).mean(0) * np.diff(edges)
    np.testing.assert_allclose(count / len(y), mass, atol=5 * np.sqrt(mass.max() / len(y)))


def test_k_hat_of_a_known_tail(rng):
    """Weights of a generalised Pareto distribution of shape k have k-hat = k."""
    from flowppl.diagnostics import k_hat

    for shape in (0.3, 0.8):
        weights = rng.uniform(size=200_000) ** -shape
        assert abs(k_hat(np.log(weights), num_batches=20) - shape) < 0.1
    with pytest.raises(ValueError, match="at least 25 draws"):
        k_hat(np.zeros(30), num_batches=2)
    assert k_hat(np.full(100, np.nan)) == np.inf
