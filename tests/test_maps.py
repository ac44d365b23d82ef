"""Polynomials, splines of lines and cubics, and other maps of one number, by their papers' equations and by zuko."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
import zuko
from catalogue import NAMESPACES, numpy, to

import flowppl as fp
from flowppl._arrays.namespace import namespace
from flowppl.univariate.base import bounded


def slopes_by_the_docstring(raw):
    return np.log1p(np.exp(raw + np.log(np.expm1(0.999)))) + 1e-3


def bernstein_coefficients(raw, bound):
    """All M + 1 of them, without the shift."""
    steps = slopes_by_the_docstring(raw[1:]) * 2 * bound / (len(raw) - 1)
    ends = np.concatenate([np.zeros_like(raw[:1]), np.cumsum(steps, axis=0)])
    return ends - ends[-1] / 2


def test_bernstein_is_the_papers_mean_of_beta_densities(rng):
    """Sick et al. 2020, equation 3."""
    for degree in (1, 2, 7):
        raw, x = rng.normal(size=(degree + 1, 50)), rng.uniform(-2, 2, size=50)
        theta, order = bernstein_coefficients(raw, 2.0), np.arange(degree + 1)[:, None]
        densities = scipy.stats.beta.pdf((x + 2) / 4, order + 1, degree - order + 1)
        y, _ = fp.Bernstein(degree, 2.0).forward(raw, x)
        np.testing.assert_allclose(y, raw[0] + (densities * theta).mean(axis=0), rtol=1e-12, atol=1e-12)


def test_bernstein_agrees_with_zuko(rng):
    """In the box; zuko's lines beyond it start 1e-6 of the box before its ends, with the slope there."""
    raw, x = rng.normal(size=(7, 60)), rng.uniform(-4, 4, size=60)
    y, log_slope = fp.Bernstein(6, 3.0).forward(raw, x)
    peer = zuko.transforms.BernsteinTransform(torch.zeros(60, 5, dtype=torch.float64), bound=3.0)
    peer.theta = torch.tensor(bernstein_coefficients(raw, 3.0).T)
    peer.offset, peer.slope = peer._offset_and_slope()
    found, log_det = (numpy(part) for part in peer.call_and_ladj(torch.tensor(x)))
    tolerance = np.where(np.abs(x) < 3, 1e-12, 1e-4)
    assert (np.abs(found + raw[0] - y) <= tolerance * (1 + np.abs(y))).all()
    assert (np.abs(log_det - log_slope) <= tolerance * 10).all()


def squares_by_the_paper(raw, num, degree, bound, x):
    """Jaini et al. 2019, equation 9: the integral of a sum of squares, by the coefficients of the polynomials."""
    coefficients = raw[1:].reshape(degree + 1, num) * 2 * np.arange(1, num + 1) / (num + 1)
    total = np.polynomial.Polynomial([1e-3])
    for column in coefficients.T:
        one = np.polynomial.Polynomial(column / bound ** np.arange(degree + 1)) + 1
        total = total + (1 - 1e-3) / num * one**2
    return raw[0] + total.integ()(x), np.log(total(x))


def test_sum_of_squares_is_the_papers_integral(rng):
    for num, degree in ((1, 1), (2, 2), (3, 5)):
        sos = fp.SumOfSquares(num, degree, bound=2.0)
        raw, x = rng.normal(size=(sos.num_raw, 1)), rng.uniform(-2, 2, size=50)
        expected = squares_by_the_paper(raw[:, 0], num, degree, 2.0, x)
        for found, value in zip(sos.forward(raw, x), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)  # raw numbers are bounded at 1,000
        held = 1e3 * np.arctanh(raw / 1e3)
        for found, value in zip(sos.forward(np.concatenate([raw[:1], held[1:]]), x), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-10, atol=1e-10)


def test_sum_of_squares_agrees_with_zuko(rng):
    """Whose constant is added to the mean of the squares, where ours is weighed against it."""
    sos = fp.SumOfSquares(2, 3, bound=3.0)
    raw, x = rng.normal(size=(sos.num_raw, 30)), rng.uniform(-3, 3, size=30)
    y, log_slope = sos.forward(raw, x)
    coefficients = bounded(raw[1:], 1e3).reshape(4, 2, 30) * np.array([2 / 3, 4 / 3])[:, None]
    slope = 1e-3 / (1 - 1e-3)
    peer = zuko.transforms.SOSPolynomialTransform(torch.tensor(coefficients.transpose(2, 1, 0)), slope, bound=3.0)
    found, log_det = (numpy(part) for part in peer.call_and_ladj(torch.tensor(x)))
    np.testing.assert_allclose((1 - 1e-3) * found + raw[0], y, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(log_det + np.log(1 - 1e-3), log_slope, rtol=1e-10, atol=1e-10)
    # Beyond its bound, where ours goes straight on, zuko's inverse stays at the bound.
    far = sos.forward(raw, np.full(30, 4.0))[0]
    np.testing.assert_allclose(sos.inverse(raw, far)[0], 4.0, rtol=1e-9)
    assert (numpy(peer.inv(torch.tensor((far - raw[0]) / (1 - 1e-3)))) < 3.001).all()


def knots_by_the_docstring(raw, bound):
    shares = np.exp(raw) / np.exp(raw).sum(axis=0)
    sizes = 2 * bound * (1e-3 + (1 - 1e-3 * len(raw)) * shares)
    return np.concatenate([np.zeros_like(raw[:1]), np.cumsum(sizes, axis=0)]) - bound


def test_linear_spline_is_a_polygon(rng):
    """Muller et al. 2018, section 4.1, between knots that NumPy interpolates."""
    raw, x = rng.normal(size=(5, 1)), rng.uniform(-3, 3, size=100)
    y, log_slope = fp.LinearSpline(5, 2.0).forward(raw, x)
    left, bottom = np.linspace(-2, 2, 6), knots_by_the_docstring(raw, 2.0)[:, 0]
    np.testing.assert_allclose(y, np.where(np.abs(x) < 2, np.interp(x, left, bottom), x), rtol=1e-12)
    slopes = np.concatenate([[1.0], np.diff(bottom) / np.diff(left), [1.0]])
    np.testing.assert_allclose(np.exp(log_slope), slopes[np.searchsorted(left, x)], rtol=1e-12)


def steffen_slopes(left, bottom, first, last):
    """Durkan et al. 2019 (cubic-spline flows), section 2, after Steffen 1990, knot by knot."""
    width, slope = np.diff(left), np.diff(bottom) / np.diff(left)
    found = [first * slope[0]]
    for k in range(1, len(width)):
        parabola = (slope[k - 1] * width[k] + slope[k] * width[k - 1]) / (width[k - 1] + width[k])
        found.append((np.sign(slope[k - 1]) + np.sign(slope[k])) * min(slope[k - 1], slope[k], 0.5 * parabola))
    return np.array([*found, last * slope[-1]])


@pytest.mark.parametrize("num_bins", [1, 2, 6])
def test_cubic_spline_is_the_papers_equation(num_bins, rng):
    """With the coefficients of each cubic, and the slopes at the ends as documented."""
    spline = fp.CubicSpline(num_bins, 2.0)
    raw, x = rng.normal(size=(spline.num_raw, 1)), rng.uniform(-3, 3, size=200)
    left, bottom = (knots_by_the_docstring(part, 2.0)[:, 0] for part in (raw[:num_bins], raw[num_bins:-2]))
    ratios = 0.01 + 2.89 / (1 + np.exp(-raw[-2:, 0]) * 1.9 / 0.99)
    slopes = steffen_slopes(left, bottom, *ratios)
    assert (slopes > 0).all()
    expected = []
    for value in x:
        if abs(value) >= 2:
            end = 0 if value < 0 else -1
            expected.append((bottom[end] + slopes[end] * (value - left[end]), slopes[end]))
            continue
        k = np.searchsorted(left, value) - 1
        width, d = left[k + 1] - left[k], slopes[k : k + 2]
        s = (bottom[k + 1] - bottom[k]) / width
        cubic = np.polynomial.Polynomial(
            [bottom[k], d[0], (3 * s - 2 * d[0] - d[1]) / width, (d[0] + d[1] - 2 * s) / width**2]
        )
        expected.append((cubic(value - left[k]), cubic.deriv()(value - left[k])))
    y, log_slope = spline.forward(raw, x)
    np.testing.assert_allclose(np.stack([y, np.exp(log_slope)], axis=-1), expected, rtol=1e-10, atol=1e-12)


def test_log_tails_are_the_papers_equation(rng):
    """Andrade 2024, section 4.2, and its inverse, with what is too large for the dtype."""
    x = 5 * rng.normal(size=100)
    beyond = np.maximum(np.abs(x) - 2.0, 0)
    y, log_slope = fp.LogTails(2.0).forward(None, x)
    np.testing.assert_allclose(y, np.sign(x) * (np.log(beyond + 1) + np.minimum(np.abs(x), 2.0)), rtol=1e-12)
    np.testing.assert_allclose(log_slope, -np.log(beyond + 1), rtol=1e-12)
    for dtype in (np.float32, np.float64):
        x, log_slope = fp.LogTails().inverse(None, np.array([-1e4, 99.0, 101.0, 1e30], dtype=dtype))
        assert x.dtype == dtype
        assert np.isfinite([x, log_slope]).all()
        np.testing.assert_allclose(x[1:3], [99.0, 99.0 + np.e], rtol=1e-5)


def normal_components(raw, num):
    """Weights, locations and scales, as documented."""
    weights = np.exp(raw[:num]) / np.exp(raw[:num]).sum(axis=0)
    loc = raw[num : 2 * num] * np.arange(1, num + 1)[:, None] * 2 / (num + 1)
    return weights, loc, np.exp(3 * np.tanh(raw[2 * num :] / 3))


def test_gaussianization_makes_a_normal_of_a_mixture_of_normals(rng):
    """Chen and Gopinath 2000: by SciPy's distribution functions, in the tails by their logarithms."""
    gaussianize = fp.Gaussianization(3)
    raw = rng.normal(size=(gaussianize.num_raw, 200))
    weights, loc, scale = normal_components(raw, 3)
    near, far = rng.normal(size=200), 300 * rng.normal(size=200)
    y, log_slope = gaussianize.forward(raw, near)
    share = (weights * scipy.stats.norm.cdf(near, loc, scale)).sum(axis=0)
    np.testing.assert_allclose(y, scipy.stats.norm.ppf(share), rtol=1e-9, atol=1e-9)
    density = (weights * scipy.stats.norm.pdf(near, loc, scale)).sum(axis=0)
    np.testing.assert_allclose(log_slope + scipy.stats.norm.logpdf(y), np.log(density), rtol=1e-9, atol=1e-9)
    y, log_slope = gaussianize.forward(raw, far)
    z, side = (far - loc) / scale, -np.sign(far)
    log_share = scipy.special.logsumexp(scipy.special.log_ndtr(z * side), axis=0, b=weights)
    np.testing.assert_allclose(y, side * scipy.special.ndtri_exp(log_share), rtol=1e-9)
    log_density = scipy.special.logsumexp(scipy.stats.norm.logpdf(z), axis=0, b=weights / scale)
    np.testing.assert_allclose(log_slope + scipy.stats.norm.logpdf(y), log_density, rtol=1e-9)


def test_gaussianization_agrees_with_zuko(rng):
    """Between -3 and 3: zuko's shares are taken to 1e-6 of 0 and 1, where it goes flat."""
    raw = rng.normal(size=(9, 50))
    raw[:3] = 0
    _, loc, scale = normal_components(raw, 3)
    peer = zuko.transforms.GaussianizationTransform(torch.tensor((-loc / scale).T), torch.tensor(-np.log(scale).T))
    y = rng.uniform(-3, 3, size=50)
    x, log_slope = fp.Gaussianization(3).inverse(raw, y)
    found, log_det = (numpy(part) for part in peer.call_and_ladj(torch.tensor(x)))
    np.testing.assert_allclose(found, y, atol=2e-3)
    np.testing.assert_allclose(log_det, -log_slope, atol=2e-3)
    far = np.full(50, 1e4)
    assert (numpy(peer(torch.tensor(far))) < 5).all()
    assert (fp.Gaussianization(3).forward(raw, far)[0] > 100).all()


@pytest.mark.parametrize("library", NAMESPACES)
def test_log_of_the_normal_distribution_function(library):
    for dtype, tolerance in ((np.float64, 1e-13), (np.float32, 2e-6)):
        x = np.concatenate([-np.logspace(-6, 4, 200), np.logspace(-6, 1, 50)]).astype(dtype)
        found = numpy(namespace(to(library, x)).log_ndtr(to(library, x)))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, scipy.special.log_ndtr(x.astype(float)), rtol=tolerance, atol=tolerance / 10)


CURVES = [fp.Bernstein(1), fp.Bernstein(9, 3.0), fp.SumOfSquares(), fp.SumOfSquares(1, 5), fp.CubicSpline(1)]
CURVES += [fp.CubicSpline(8, 3.0)]


@pytest.mark.parametrize("curve", [*CURVES, fp.LinearSpline(7, 3.0)])
def test_curves_hold_at_edges_and_for_extreme_weights(curve, rng):
    """At, around and far beyond the ends of the box; with raw numbers of scale 8, and of the largest there are."""
    bound = curve.bound
    edges = np.concatenate([[b, b * (1 + 1e-7), b * (1 - 1e-7)] for b in (bound, -bound)])
    points = np.concatenate([[0.0, 1e4, -1e4], edges, bound * rng.normal(size=500)])
    for dtype, tolerance in ((np.float64, 1e-10), (np.float32, 1e-4)):
        x, raw = points.astype(dtype), (8 * rng.normal(size=(curve.num_raw, len(points)))).astype(dtype)
        y, log_slope = curve.forward(raw, x)
        back, log_slope_back = curve.inverse(raw, y)
        again, log_slope_again = curve.forward(raw, back)
        assert {a.dtype for a in (y, log_slope, back, log_slope_back)} == {np.dtype(dtype)}
        assert (np.abs(again - y) <= tolerance * (1 + np.abs(y))).all()
        jumps = isinstance(curve, fp.LinearSpline) & (np.abs(np.abs(x) / bound - 1) < 1e-6)
        np.testing.assert_allclose(log_slope_back[~jumps], -log_slope_again[~jumps], atol=tolerance * 100)
        order = np.argsort(points)
        assert (np.diff(curve.forward(raw[:, :1], x[order])[0]) >= -tolerance).all()
        for size in (1e30, -1e30):
            raw = (size * (0.5 + rng.uniform(size=raw.shape))).astype(dtype)
            for direction in (curve.forward, curve.inverse):
                assert all(np.isfinite(part).all() for part in direction(raw, x / 1e4))


@pytest.mark.parametrize("curve", CURVES)
def test_curves_go_on_in_the_directions_of_their_ends(curve, rng):
    raw = rng.normal(size=(curve.num_raw, 1))
    for end in (curve.bound, -curve.bound):
        y, log_slope = curve.forward(raw, end * np.array([1 - 1e-9, 1.0, 2.0]))
        np.testing.assert_allclose(log_slope, log_slope[1], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(y[2] - y[1], end * np.exp(log_slope[1]), rtol=1e-12)


@pytest.mark.parametrize("curve", [*CURVES, fp.Gaussianization(3)])
def test_inverses_of_curves_have_exact_derivatives(curve, rng):
    """The first two in y, by those of the forward, and the first in the raw numbers: inside a box and beyond it."""
    raw = torch.tensor(rng.normal(size=(curve.num_raw, 20)), requires_grad=True)
    far = 2 * getattr(curve, "bound", 4.0)
    x = torch.tensor(np.linspace(-far, far, 20), requires_grad=True)

    def derivatives(direction, start):
        end, log_slope = direction(raw, start)
        (slope,) = torch.autograd.grad(end.sum(), start, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), start, create_graph=True, materialize_grads=True)
        (by_raw,) = torch.autograd.grad(end.sum(), raw)
        return [part.detach() for part in (end, log_slope, slope, bend, by_raw)]

    y, log_slope, slope, bend, by_raw = derivatives(curve.forward, x)
    back, log_slope_back, slope_back, bend_back, by_raw_back = derivatives(curve.inverse, y.requires_grad_())
    for found, expected in (
        (back, x.detach()),
        (slope, log_slope.exp()),
        (slope_back, log_slope_back.exp()),
        (slope_back, 1 / slope),
        (bend_back, -bend / slope**3),
        (by_raw_back, -by_raw / slope),
    ):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


FAR_OUT = [fp.LogisticMixture(3), fp.Gaussianization(3), fp.Bernstein(4), fp.SumOfSquares(), fp.CubicSpline(4)]


@pytest.mark.parametrize("curve", FAR_OUT, ids=lambda curve: type(curve).__name__)
def test_slopes_far_out_keep_the_digits_of_single_precision(curve, rng):
    """They go to a limit, which no difference of numbers as large as x itself gives."""
    raw, x = rng.normal(size=(curve.num_raw, 1)), np.outer([-1.0, 1.0], 10.0 ** np.arange(3, 31, 3)).ravel()
    for direction in (curve.forward, curve.inverse):
        _, expected = direction(raw, x)
        _, found = direction(raw.astype(np.float32), x.astype(np.float32))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


MAPS = [
    *(fp.Affine(), fp.Shift(), fp.Scale(), fp.RationalQuadraticSpline(3), fp.CircularSpline(3), fp.LinearSpline(3)),
    *(fp.CubicSpline(3), fp.LogisticMixture(3), fp.Gaussianization(3), fp.Bernstein(3), fp.SumOfSquares(3, 2)),
]


@pytest.mark.parametrize("curve", MAPS, ids=lambda curve: type(curve).__name__)
def test_weights_may_have_batch_axes_that_events_lack(curve, rng):
    """Three of them, as many as there are weights of one kind."""
    raw, x = rng.normal(size=(curve.num_raw, 3, 2)), rng.uniform(-2, 2, size=2)
    for direction in (curve.forward, curve.inverse):
        rows = [direction(raw[:, i], x) for i in range(3)]
        for found, *each in zip(direction(raw, x), *rows, strict=True):
            full = np.broadcast_to(found, (3, 2))
            np.testing.assert_allclose(full, np.broadcast_to(each, (3, 2)), rtol=1e-12)
