"""Sylvester, radial and linear layers, splines and mixtures against their papers' equations and other libraries."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import paramax
import pytest
import scipy.linalg
import scipy.stats
import torch
import zuko
from catalogue import NumpyDraws, context_for, draw, merged, numpy, to
from flowjax.bijections import RationalQuadraticSpline as FlowjaxSpline
from pyro.distributions import transforms as pyro_transforms

import flowppl as fp
from flowppl._arrays import tree as _tree
from flowppl.univariate.base import bounded


def softplus(x):
    return np.log1p(np.exp(x))


def unit_positive(raw):
    """Positive for any real number, and 1 for 0, as documented."""
    return softplus(raw + np.log(np.expm1(1.0)))


def triangle(entries, size):
    """A strictly upper triangular matrix whose transpose has these entries row by row."""
    matrix = np.zeros((size, size))
    matrix[np.tril_indices(size, -1)] = entries
    return matrix.T


def reflection(v):
    return np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v)


def frame(flow, params):
    """Q of the three Sylvester flows, dense."""
    if "q" in params:
        q = params["q"].copy()  # Gram and Schmidt; the signs are those of numpy.linalg.qr, which follow Householder
        for i in range(q.shape[1]):
            for j in range(i):
                q[:, i] -= q[:, j] * (q[:, j] @ q[:, i])
            q[:, i] /= np.linalg.norm(q[:, i])
        return q * np.sign(np.sum(q * np.linalg.qr(params["q"])[0], axis=0))
    if "v" in params:
        product = np.eye(flow.dim)
        for v in params["v"]:
            product = product @ reflection(v)
        return product[:, : flow.num_units]
    return np.eye(flow.dim)


@pytest.mark.parametrize("scale", [0.5, 3.0])
@pytest.mark.parametrize(
    "flow",
    [
        fp.OrthogonalSylvester(5, 3),
        fp.OrthogonalSylvester(4, 4),
        fp.HouseholderSylvester(5, 5, 3),
        fp.HouseholderSylvester(5, 2, 7),
        fp.TriangularSylvester(4),
    ],
)
def test_sylvester_is_the_papers_equation(flow, scale, rng):
    """van den Berg et al. 2018, equations 8, 10 and 13, with dense matrices and the whole Jacobian's determinant."""
    params = draw(flow, rng, scale)
    q, size = frame(flow, params), flow.num_units
    np.testing.assert_allclose(q.T @ q, np.eye(size), atol=1e-12)
    free, inner = params["outer_diagonal"], params["inner_diagonal"]
    diagonal = 0.999 * free / (1 + softplus(-free * inner))
    assert (diagonal * inner > -1).all()
    outer_matrix = triangle(params["outer"], size) + np.diag(diagonal)
    inner_matrix = triangle(params["inner"], size) + np.diag(inner)
    for x in rng.normal(size=(5, flow.dim)):
        h = np.tanh(inner_matrix @ q.T @ x + params["b"])
        y, log_det = flow.forward(merged(flow, params), x)
        np.testing.assert_allclose(y, x + q @ outer_matrix @ h, rtol=1e-10, atol=1e-10)
        jacobian = np.eye(flow.dim) + q @ outer_matrix @ np.diag(1 - h**2) @ inner_matrix @ q.T
        np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=1e-9, atol=1e-9)


def test_sylvester_inverts_where_a_fixed_point_iteration_diverges(rng):
    flow = fp.TriangularSylvester(4)
    params = draw(flow, rng)
    params["outer_diagonal"] = params["outer_diagonal"] + 20.0 * np.sign(params["inner_diagonal"])
    params["inner_diagonal"] = 3 * params["inner_diagonal"]
    x = rng.normal(size=(50, 4))
    tree = merged(flow, params)
    y, _ = flow.forward(tree, x)
    again, _ = flow.inverse(tree, y)
    np.testing.assert_allclose(flow.forward(tree, again)[0], y, rtol=1e-11, atol=1e-11)
    guess = y
    for _ in range(100):
        guess = y - (flow.forward(tree, guess)[0] - guess)
    assert np.abs(guess - again).max() > 1


def test_radial_is_the_papers_equation_and_pyros(rng):
    """Rezende & Mohamed 2015, equation 14 and appendix A.2."""
    flow = fp.Radial(4)
    params = draw(flow, rng, 2.0)
    alpha = unit_positive(params["alpha"])
    beta = alpha * (softplus(params["beta"] + np.log(np.expm1(0.999))) - 0.999)
    peer = pyro_transforms.Radial(4)
    with torch.no_grad():
        peer.x0.copy_(torch.tensor(params["center"]))
        peer.alpha_prime.fill_(np.log(np.expm1(alpha)))
        peer.beta_prime.fill_(np.log(np.expm1(alpha + beta)))
    for x in rng.normal(size=(5, 4)):
        y, log_det = flow.forward(params, x)
        radius = np.linalg.norm(x - params["center"])
        h, slope = 1 / (alpha + radius), -1 / (alpha + radius) ** 2
        np.testing.assert_allclose(y, x + beta * h * (x - params["center"]), rtol=1e-10)
        expected = 3 * np.log1p(beta * h) + np.log1p(beta * h + beta * slope * radius)
        np.testing.assert_allclose(log_det, expected, rtol=1e-9, atol=1e-9)
        theirs = peer(torch.tensor(x))
        np.testing.assert_allclose(theirs.detach(), y, rtol=1e-9)
        found = peer.log_abs_det_jacobian(torch.tensor(x), theirs)
        np.testing.assert_allclose(found.detach(), log_det, rtol=1e-9, atol=1e-9)


def test_radial_is_safe_at_its_centre():
    flow = fp.Radial(2)
    for beta in (-50.0, 5.0):
        params = {"center": torch.zeros(2), "alpha": torch.tensor(0.0), "beta": torch.tensor(beta)}
        for direction in (flow.forward, flow.inverse):
            point = torch.zeros(2, requires_grad=True)
            event, log_det = direction(params, point)
            (event.sum() + log_det).backward()
            assert (event == 0).all()
            assert torch.isfinite(point.grad).all()


@pytest.mark.parametrize("num_reflections", [1, 2, 3, 4])
def test_householder_is_the_product_of_its_reflections(num_reflections, rng):
    flow = fp.Householder(4, num_reflections)
    params = draw(flow, rng)
    dense = np.eye(4)
    for v in params["v"]:
        dense = reflection(v) @ dense
    x = rng.normal(size=(6, 4))
    np.testing.assert_allclose(flow.forward(params, x)[0], x @ dense.T, rtol=1e-12, atol=1e-12)
    peer = pyro_transforms.Householder(4, num_reflections)
    with torch.no_grad():
        peer.u_unnormed.copy_(torch.tensor(params["v"]))
    np.testing.assert_allclose(peer(torch.tensor(x)).detach(), x @ dense.T, rtol=1e-10, atol=1e-10)


def test_a_reflection_along_nothing_changes_nothing(rng):
    x = rng.normal(size=(3, 4))
    np.testing.assert_array_equal(fp.Householder(4).forward({"v": np.zeros((1, 4))}, x)[0], x)


def test_linear_factors_are_the_dense_matrices(rng):
    """Kingma & Dhariwal 2018, equation 10, and its QR counterpart."""
    x = rng.normal(size=(6, 4))
    lu = fp.LU(4, permutation=(2, 0, 3, 1))
    params = draw(lu, rng)
    scale = np.diag(unit_positive(params["scale"]))
    lower, upper = triangle(params["lower"], 4).T + np.eye(4), triangle(params["upper"], 4) + np.eye(4)
    dense = np.eye(4)[[2, 0, 3, 1]] @ lower @ scale @ upper
    y, log_det = lu.forward(merged(lu, params), x)
    np.testing.assert_allclose(y, x @ dense.T, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(dense)[1], rtol=1e-8)

    qr = fp.QR(4, num_reflections=3)
    params = draw(qr, rng)
    dense = np.diag(unit_positive(params["scale"])) @ (triangle(params["upper"], 4) + np.eye(4))
    for v in params["v"]:
        dense = reflection(v) @ dense
    y, log_det = qr.forward(merged(qr, params), x)
    np.testing.assert_allclose(y, x @ dense.T, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(dense)[1], rtol=1e-8)


@pytest.mark.parametrize("norm", [0.01, 5.0, 15.0])
def test_a_matrix_exponential_is_that_of_scipy(norm, rng):
    """Equation 1 of Xiao & Liu 2020, at a matrix of this norm, and at the documented bound of one that is larger."""
    layer, x = fp.MatrixExponential(4), rng.normal(size=(6, 4))
    matrix = rng.normal(size=(4, 4))
    matrix *= norm / np.linalg.norm(matrix)
    for params, bounded_matrix in (
        (layer.parameters_for(matrix), matrix),
        ({"weight": 1e200 * matrix}, 16 / norm * matrix),
    ):
        dense, back = scipy.linalg.expm(bounded_matrix), scipy.linalg.expm(-bounded_matrix)
        y, log_det = layer.forward(params, x)
        np.testing.assert_allclose(y, x @ dense.T, rtol=1e-11, atol=1e-11 * np.abs(dense).max())
        np.testing.assert_allclose(log_det, np.trace(bounded_matrix), rtol=1e-12)
        y, log_det = layer.inverse(params, x)
        np.testing.assert_allclose(y, x @ back.T, rtol=1e-11, atol=1e-11 * np.abs(back).max())
        np.testing.assert_allclose(log_det, -np.trace(bounded_matrix), rtol=1e-12)


def test_a_low_rank_affine_layer_is_its_dense_matrix(rng):
    layer, x = fp.LowRankAffine(4, rank=2), rng.normal(size=(6, 4))
    params = draw(layer, rng, 3.0)
    rows = params["directions"] / 2
    rows /= np.sqrt(1 + (rows**2).sum(axis=1, keepdims=True) / 32**2)
    wider, narrower = (np.eye(4) + each.T @ each for each in (rows[::2], rows[1::2]))
    dense = np.diag(unit_positive(params["scale"])) @ wider @ np.linalg.inv(narrower)
    y, log_det = layer.forward(params, x)
    np.testing.assert_allclose(y, params["loc"] + x @ dense.T, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(dense)[1], rtol=1e-10)


@pytest.mark.parametrize("which", ["covariance", "precision"])
def test_a_low_rank_affine_layer_makes_every_normal_that_it_says(which, rng):
    """Ong, Nott & Smith 2017, equation 3: a diagonal plus B B', and the same of the inverse of the covariance."""
    width, factor = rng.uniform(0.5, 2.0, size=5), 2 * rng.normal(size=(5, 2))
    wanted = np.diag(width**2) + factor @ factor.T
    # (I + U'U)^2 = I + B B', in the basis in which U U' is diagonal
    left, values, _ = np.linalg.svd(factor / width[:, None], full_matrices=False)
    rows = (left * np.sqrt(np.sqrt(1 + values**2) - 1)).T
    raw = 5**0.5 * rows / np.sqrt(1 - (rows**2).sum(axis=1, keepdims=True) / 32**2)
    directions, is_precision = np.zeros((4, 5)), which == "precision"
    directions[int(is_precision) :: 2] = raw
    scale = 1 / width if is_precision else width
    params = {"loc": np.zeros(5), "scale": np.log(np.expm1(scale)) - np.log(np.expm1(1.0)), "directions": directions}
    dense = fp.LowRankAffine(5, rank=2).forward(params, np.eye(5))[0].T
    covariance = np.linalg.inv(wanted) if is_precision else wanted
    np.testing.assert_allclose(dense @ dense.T, covariance, rtol=1e-9, atol=1e-10)


def test_a_low_rank_affine_layer_does_not_start_at_a_saddle(rng):
    """Where U and V are zero the first derivatives are."""
    layer = fp.LowRankAffine(3, rank=1)
    weights = merged(layer, fp.initialize(layer, NumpyDraws(rng)), "torch")
    data = torch.tensor(rng.normal(size=(100, 1)) + 0.1 * rng.normal(size=(100, 3)))
    weights["directions"].requires_grad_()
    x, log_det = layer.inverse(weights, data)
    (x.square().sum(axis=-1) / 2 - log_det).mean().backward()
    assert np.abs(weights["directions"].grad.numpy()).max() > 0.01


def test_act_norm_normalises_the_first_data_of_every_layer(rng):
    flow = fp.glow(3, num_flows=3)
    params = fp.initialize(flow, NumpyDraws(rng))
    data = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 3)) + 5
    new = flow.init_from(merged(flow, params), data)
    assert [path for path, _ in _tree.leaves(new)] == [path for path, _ in _tree.leaves(params)]
    x, _ = flow.inverse(merged(flow, new), data)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-10)
    for (_, before), (path, after) in zip(_tree.leaves(params), _tree.leaves(new), strict=True):
        assert path[-1] in ("loc", "scale") or np.array_equal(before, after)


def spline_knots(raw, num_bins, bound):
    """The knots and slopes that raw numbers stand for: Durkan et al. 2019, section 3.1, with the margins documented."""

    def edges(logits):
        sizes = 1e-3 + (1 - 1e-3 * num_bins) * np.exp(logits) / np.exp(logits).sum(0)
        return np.concatenate([np.full((1, raw.shape[1]), -bound), 2 * bound * sizes.cumsum(0) - bound])

    slopes = softplus(raw[2 * num_bins :] + np.log(np.expm1(1 - 1e-3))) + 1e-3
    ones = np.ones((1, raw.shape[1]))
    slopes = np.concatenate([ones, slopes, ones] if len(slopes) < num_bins else [slopes, slopes[:1]])
    return edges(raw[:num_bins]), edges(raw[num_bins : 2 * num_bins]), slopes


def spline_by_the_paper(x, left, bottom, slopes):
    """Durkan et al. 2019, equation 4, for one x."""
    k = np.searchsorted(left, x) - 1
    s = (bottom[k + 1] - bottom[k]) / (left[k + 1] - left[k])
    xi = (x - left[k]) / (left[k + 1] - left[k])
    numerator = (bottom[k + 1] - bottom[k]) * (s * xi**2 + slopes[k] * xi * (1 - xi))
    return bottom[k] + numerator / (s + (slopes[k + 1] + slopes[k] - 2 * s) * xi * (1 - xi))


@pytest.mark.parametrize("spline", [fp.RationalQuadraticSpline(5, bound=2.0), fp.CircularSpline(5, bound=2.0)])
def test_splines_are_the_papers_equation(spline, rng):
    raw = rng.normal(size=(spline.num_raw, 40))
    x = rng.uniform(-2, 2, size=40)
    knots = spline_knots(raw, 5, 2.0)
    expected = [spline_by_the_paper(x[i], *(values[:, i] for values in knots)) for i in range(40)]
    np.testing.assert_allclose(spline.forward(raw, x)[0], expected, rtol=1e-10, atol=1e-12)


def test_splines_agree_with_zuko_flowjax_and_pyro(rng):
    spline = fp.RationalQuadraticSpline(6, bound=3.0)
    raw = rng.normal(size=(spline.num_raw, 30))
    x = rng.uniform(-4, 4, size=30)  # some outside
    y, log_slope = spline.forward(raw, x)
    left, bottom, slopes = (torch.tensor(values.T) for values in spline_knots(raw, 6, 3.0))

    peer = zuko.transforms.MonotonicRQSTransform(torch.zeros(6), torch.zeros(6), torch.zeros(5), bound=3.0)
    peer.horizontal, peer.vertical, peer.derivatives = left, bottom, slopes
    found, log_det = peer.call_and_ladj(torch.tensor(x))
    np.testing.assert_allclose(found, y, rtol=1e-9)
    np.testing.assert_allclose(log_det, log_slope, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(peer.inv(torch.tensor(y)), x, rtol=1e-8)

    def flowjax_spline(left, bottom, slopes, x):
        peer = paramax.unwrap(FlowjaxSpline(knots=5, interval=3.0))
        peer = eqx.tree_at(lambda s: (s.x_pos, s.y_pos, s.derivatives), peer, (left, bottom, slopes))
        return peer.transform_and_log_det(x)

    arrays = (jnp.asarray(a.numpy()) for a in (left, bottom, slopes))
    found, log_det = jax.jit(jax.vmap(flowjax_spline))(*arrays, x)
    np.testing.assert_allclose(found, y, rtol=1e-9)
    np.testing.assert_allclose(log_det, log_slope, rtol=1e-8, atol=1e-8)

    one = raw[:, 0]
    peer = pyro_transforms.Spline(1, count_bins=6, bound=3.0, order="quadratic")
    with torch.no_grad():
        peer.unnormalized_widths.copy_(torch.tensor(one[:6]))
        peer.unnormalized_heights.copy_(torch.tensor(one[6:12]))
        peer.unnormalized_derivatives.copy_(torch.tensor(one[12:] + np.log(np.expm1(1 - 1e-3))))
    x = rng.uniform(*left[0, [1, -2]], size=30)  # in the bins at the ends Pyro's outer slope is not exactly 1
    ours, log_slope = spline.forward(one[:, None], x)
    theirs = peer(torch.tensor(x)[:, None])
    np.testing.assert_allclose(theirs[:, 0].detach(), ours, rtol=1e-8)
    found = peer.log_abs_det_jacobian(torch.tensor(x)[:, None], theirs)
    np.testing.assert_allclose(found[:, 0].detach(), log_slope, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("namespace", ["numpy", "torch", "jax"])
@pytest.mark.parametrize("spline", [fp.RationalQuadraticSpline(bound=3.0), fp.CircularSpline(bound=3.0)])
def test_splines_hold_at_edges_and_for_extreme_weights(spline, namespace, rng):
    """At 0, at and around the ends of the box, and far outside; with raw numbers of scale 8; both dtypes."""
    edges = np.concatenate([b * (1 + s) for b in (3.0, -3.0) for s in np.array([[0, 1e-15, -1e-15, 1e-7, -1e-7]])])
    points = np.concatenate([[0.0, 1e3, -1e3, 1e6, -1e6], edges, rng.normal(size=2000)])
    raw = 8 * rng.normal(size=(spline.num_raw, len(points)))
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        args = [to(namespace, a.astype(dtype)) for a in (raw, points)]
        y, log_slope = spline.forward(*args)
        x, log_slope_back = spline.inverse(args[0], y)
        again, _ = spline.forward(args[0], x)
        y, x, again, log_slope, log_slope_back = map(numpy, (y, x, again, log_slope, log_slope_back))
        assert y.dtype == x.dtype == log_slope.dtype == dtype
        assert all(np.isfinite(a).all() for a in (y, x, log_slope, log_slope_back))
        assert (np.abs(again - y) <= tolerance * np.maximum(np.abs(y), 3)).all()
    order = np.argsort(points)
    shared = 8 * rng.normal(size=(spline.num_raw, 1))
    assert (np.diff(spline.forward(shared, points[order])[0]) >= -1e-9).all()


def test_spline_is_continuously_differentiable_at_its_box(rng):
    raw = 2 * rng.normal(size=(fp.RationalQuadraticSpline(4, 3.0).num_raw, 1))
    for end in (3.0, -3.0):
        near = np.array([end * (1 - 1e-9), end * (1 + 1e-9)])
        y, log_slope = fp.RationalQuadraticSpline(4, 3.0).forward(raw, near)
        np.testing.assert_allclose(y, end, rtol=1e-8)
        np.testing.assert_allclose(log_slope, 0, atol=1e-5)
        _, log_slope = fp.CircularSpline(3, 3.0).forward(raw[:9], near)
        np.testing.assert_allclose(log_slope[0], log_slope[1], atol=1e-5)


@pytest.mark.parametrize("namespace", ["torch", "jax"])
@pytest.mark.parametrize(
    "univariate",
    [fp.RationalQuadraticSpline(8, 5.0), fp.CircularSpline(8), fp.LogisticMixture(8), fp.LogisticMixture(1)],
)
def test_derivatives_are_those_of_the_slope_at_knots_and_at_the_start(univariate, namespace, rng):
    """At raw numbers of 0 the knots are known points and all components of a mixture equal."""
    bound = getattr(univariate, "bound", 4.0)
    points = np.concatenate([np.linspace(-bound, bound, 17), rng.normal(size=20)])
    for dtype, scale in ((np.float32, 0.0), (np.float64, 1.0)):
        raw = to(namespace, scale * rng.normal(size=(univariate.num_raw, 1)).astype(dtype))
        for direction in (univariate.forward, univariate.inverse):
            start = to(namespace, points.astype(dtype))
            if namespace == "torch":
                slope = torch.func.grad(lambda x, d=direction, raw=raw: d(raw, x)[0].sum())(start)
            else:
                slope = jax.jit(jax.grad(lambda x, d=direction, raw=raw: d(raw, x)[0].sum()))(start)
            run = jax.jit(direction) if namespace == "jax" else direction
            expected = np.exp(numpy(run(raw, start)[1]))
            np.testing.assert_allclose(numpy(slope), expected, rtol=1e-9 if dtype == np.float64 else 1e-3)


def test_circular_coupling_has_no_seam(rng):
    layer = fp.Coupling(4, fp.CircularSpline(4), hidden_dims=8)
    tree = merged(layer, draw(layer, rng, 2.0))
    x = rng.uniform(-np.pi, np.pi, size=(10, 4))
    turns = 2 * np.pi * rng.integers(-3, 4, size=(10, 4))
    y, log_det = layer.forward(tree, x)
    again, log_det_again = layer.forward(tree, x + turns)
    np.testing.assert_allclose(again, y + turns, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(log_det_again, log_det, rtol=1e-8, atol=1e-8)


def test_logistic_mixture_is_the_papers_equation(rng):
    """Ho et al. 2019, equations 16 to 18, with the distribution functions of SciPy."""
    mixture = fp.LogisticMixture(4)
    raw = rng.normal(size=(mixture.num_raw, 30))
    x = rng.normal(size=30)
    weights = np.exp(raw[:4]) / np.exp(raw[:4]).sum(0)
    loc = raw[4:8] * np.arange(1, 5)[:, None] * 2 / 5
    scale, outer = np.exp(3 * np.tanh(raw[8:12] / 3)), 3 * np.tanh(raw[13] / 3)
    cdf = (weights * scipy.stats.logistic.cdf(x, loc, scale)).sum(0)
    density = (weights * scipy.stats.logistic.pdf(x, loc, scale)).sum(0)
    y, log_slope = mixture.forward(raw, x)
    np.testing.assert_allclose(y, np.exp(outer) * np.log(cdf / (1 - cdf)) + raw[12], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(log_slope, np.log(density / cdf / (1 - cdf)) + outer, rtol=1e-9, atol=1e-9)


def test_logistic_mixture_inverts_tails_and_gaps(rng):
    mixture = fp.LogisticMixture(4)
    raw = 8 * rng.normal(size=(mixture.num_raw, 3000))
    y = rng.normal(size=3000) * np.repeat([1.0, 100.0, 1e4], 1000)
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 1e-4)):
        x, log_slope = mixture.inverse(raw.astype(dtype), y.astype(dtype))
        assert np.isfinite(x).all()
        assert np.isfinite(log_slope).all()
        again, forward_slope = mixture.forward(raw.astype(dtype), x)
        # Where the map is steep, one unit in the last place of x is more than one of y.
        slack = np.exp(forward_slope) * np.abs(x) * np.finfo(dtype).eps * 4
        shift = np.abs(raw[12]) + 1
        assert (np.abs(again - y.astype(dtype)) <= tolerance * (np.abs(y) + shift) + slack).all()


@pytest.mark.parametrize("end", [fp.Sigmoid(), fp.Softplus(), fp.Tanh(), fp.LeakyReLU(0.2), fp.Bounded(-2.0, 5.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ends_stay_finite_where_they_saturate(end, dtype):
    layer = fp.Elementwise(1, end)
    x = np.array([[-1e4], [-50.0], [0.0], [50.0], [1e4]], dtype=dtype)
    y, log_det = layer.forward({}, x)
    low, high = layer.y_support
    assert ((y >= low) & (y <= high)).all()
    back, log_det_back = layer.inverse({}, y)
    assert all(np.isfinite(a).all() for a in (y, log_det, back, log_det_back))


@pytest.mark.parametrize(("low", "high"), [(2.0, 4.0), (-1000.0, -999.0), (0.0, 1.0), (0.0, 1e6)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bounded_ends_are_alike_and_what_saturates_comes_back(low, high, dtype):
    layer = fp.Elementwise(1, fp.Bounded(low, high))
    (x_low,), log_low = layer.inverse({}, np.array([low], dtype=dtype))
    (x_high,), log_high = layer.inverse({}, np.array([high], dtype=dtype))
    np.testing.assert_allclose(-x_low, x_high, rtol=1e-2)
    np.testing.assert_allclose(log_low, log_high, rtol=1e-2)
    x = np.array([[-1e4], [1e4]], dtype=dtype)
    y, _ = layer.forward({}, x)
    again, _ = layer.inverse({}, y)
    np.testing.assert_allclose(np.abs(again), abs(float(x_low)), atol=2)


def test_act_norm_leaves_a_constant_column_alone():
    for constant in (0.0, 0.1, 1e-4, -1e6):
        data = np.stack([np.full(1000, constant), np.linspace(-1, 1, 1000)], axis=-1).astype(np.float32)
        params = fp.ActNorm(2).init_from({"loc": np.zeros(2), "scale": np.zeros(2)}, data)
        _, log_det = fp.ActNorm(2).inverse(params, data)
        np.testing.assert_allclose(log_det, -np.log(data[:, 1].std()), rtol=1e-3)


def test_supports_follow_the_layers():
    end = fp.Elementwise(2, fp.Bounded(0.0, 3.0))
    flip = fp.Permute((1, 0))
    assert fp.Chain([fp.Planar(2), end, flip]).y_support == (0.0, 3.0)
    assert fp.Chain([flip, fp.Invert(end), fp.Planar(2)]).x_support == (0.0, 3.0)
    assert fp.Conditional(fp.Chain([fp.Planar(2), end]), 1).y_support == (0.0, 3.0)
    assert fp.Chain([flip, flip]).y_support == fp.Repeat(fp.Planar(2), 2).y_support == (-np.inf, np.inf)


def test_conditional_householder_never_forms_a_matrix(rng):
    """Weights for every event, at a size where a D x D matrix per event would need 8 GB."""
    dim = 2000
    flow = fp.Conditional(fp.Householder(dim, 2), context_dim=1)
    params = draw(flow, rng)
    x, context = rng.normal(size=(256, dim)), context_for(flow, rng, (256,))
    y, _ = flow.forward(params, x, context)
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-10)


def test_a_pair_bounds_log_scales_from_both_sides():
    raw = np.linspace(-50, 50, 2001)
    found = bounded(raw, (-3.0, 0.5))
    assert (np.diff(found) >= 0).all()
    np.testing.assert_allclose((found[0], found[-1]), (-3.0, 0.5))
    small = np.array([-1e-4, 1e-4])
    np.testing.assert_allclose(bounded(small, (-3.0, 0.5)), small, rtol=1e-6)
    for bad in ((1.0, 2.0), (-1.0, np.inf), (0.0, 1.0), -1.0):
        with pytest.raises(ValueError, match="log_scale_bound must be positive and finite, or a pair"):
            fp.Affine(bad)


def test_frozen_weights_get_no_gradient(rng):
    """But the event does."""
    layer = fp.ElementwiseAffine(3)
    params = {"loc": rng.normal(size=3), "scale": rng.normal(size=3)}
    x = rng.normal(size=(4, 3))
    for frozen, plain in zip(fp.Frozen(layer).inverse(params, x), layer.inverse(params, x), strict=True):
        np.testing.assert_array_equal(frozen, plain)

    def loss(params, x):
        y, log_det = fp.Frozen(layer).forward(params, x)
        return (y**2).sum() + log_det.sum()

    by_params, by_event = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    assert all((leaf == 0).all() for leaf in by_params.values())
    assert (by_event != 0).all()
    params = {name: torch.tensor(leaf, requires_grad=True) for name, leaf in params.items()}
    x = torch.tensor(x, requires_grad=True)
    loss(params, x).backward()
    assert all(leaf.grad is None for leaf in params.values())
    assert (x.grad != 0).all()


@pytest.mark.parametrize(
    "stack", [lambda layer: layer, lambda layer: fp.Repeat(layer, 2), lambda layer: fp.Repeat(fp.Repeat(layer, 2), 2)]
)
def test_damped_is_the_bijection_with_smaller_last_layers(rng, stack):
    layer = stack(fp.Coupling(3, hidden_dims=4))
    params = _tree.map_tree(lambda parameter: rng.normal(size=parameter.shape), layer.parameters())
    smaller = _tree.map_tree(np.copy, params)
    smaller["network"]["1"]["weight"] *= 0.125
    x = rng.normal(size=(5, 3))
    params, smaller = (_tree.merge(tree, layer.constants()) for tree in (params, smaller))
    for damped, plain in zip(fp.Damped(layer).forward(params, x), layer.forward(smaller, x), strict=True):
        np.testing.assert_array_equal(damped, plain)
    with pytest.raises(ValueError, match="factor must be above 0 and at most 1, got 2"):
        fp.Damped(layer, 2)


@pytest.mark.parametrize("flow", ["householder", "realnvp", fp.nsf, None])
def test_an_amortized_posterior_is_a_gaussian_of_the_features_moved_by_the_flow(rng, flow):
    posterior = fp.amortized_posterior(3, 4, flow, **({} if flow is None else {"num_flows": 2}))
    params = _tree.map_tree(lambda p: 0.3 * rng.normal(size=p.shape), posterior.parameters())
    params = _tree.merge(params, posterior.constants())
    noise, features = rng.normal(size=(6, 3)), rng.normal(size=(6, 4))
    z, log_det = posterior.forward(params, noise, features)
    if flow is None or flow == "householder":
        head = params["network"]["0"]
        made = features @ head["weight"] + head["bias"]
        own = params["bijection"] if flow is None else params["bijection"]["0"]
        raw = made[:, :6].reshape(6, 2, 3) + np.stack([own["loc"], own["scale"]])
        scale = np.logaddexp(0, raw[:, 1] + np.log(np.e - 1))
        base = raw[:, 0] + scale * noise
        np.testing.assert_allclose(log_det, np.log(scale).sum(axis=-1), rtol=1e-6, atol=1e-8)
        if flow is None:
            np.testing.assert_allclose(z, base, atol=1e-8)
        else:  # reflections keep lengths
            np.testing.assert_allclose(np.linalg.norm(z, axis=-1), np.linalg.norm(base, axis=-1), rtol=1e-8)
    else:
        assert posterior.context_dim == posterior.bijections[1].context_dim == 4
    np.testing.assert_allclose(posterior.inverse(params, z, features)[0], noise, atol=1e-9)


def test_an_amortized_posterior_tells_what_it_cannot_use():
    with pytest.raises(ValueError, match="unknown flow 'no'"):
        fp.amortized_posterior(3, 4, "no")
    with pytest.raises(TypeError, match="without a flow there is no use for num_flows"):
        fp.amortized_posterior(3, 4, None, 2)
    with pytest.raises(ValueError, match="context_dim"):
        fp.amortized_posterior(3, 0)


@pytest.mark.parametrize("bounds", [(0.0, 1e6), (0.0, 1e-6), (-1e-8, 1e-8), (-3.0, 5.0), (0.0, 1e30)])
def test_bounded_keeps_the_precision_of_float32_whatever_its_scale(bounds):
    x = np.linspace(-8.0, 8.0, 33, dtype=np.float32)
    bounded = fp.Bounded(*bounds)
    y, log_det = bounded.forward(None, x)
    back, slope = bounded.inverse(None, y)
    exact_y, exact = bounded.forward(None, x.astype(np.float64))
    size = max(map(abs, bounds))
    np.testing.assert_allclose(y, exact_y, atol=4e-7 * size)
    np.testing.assert_allclose(back, x, atol=2e-3)
    np.testing.assert_allclose(log_det, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slope, -exact, rtol=1e-3, atol=1e-3)


def test_an_interval_with_too_few_numbers_is_refused():
    with pytest.raises(ValueError, match="too few numbers in float32; use float64"):
        fp.Bounded(1e6, 1e6 + 1).forward(None, np.zeros(1, dtype=np.float32))
