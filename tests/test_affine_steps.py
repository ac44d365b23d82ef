"""The steps of affine layers alone, against automatic differentiation of the path loss."""

import math

import numpy as np
import pytest
import torch

import flowppl as fp
from flowppl.inference import losses
from flowppl.inference.affine import MAX_FIXED, AffineSteps
from flowppl.inference.fitting import Chunk


def chunk(num, rate=1.0):
    steps = np.full(num, rate)
    return Chunk(steps, 0 * steps, steps, 64, affine=True)


def density(z):
    """A density that is not normal, and its gradient."""
    bend = z[:, 1] - 0.3 * z[:, 0] ** 2
    slope = np.stack([-z[:, 0] + 0.6 * z[:, 0] * bend, -bend, -4 * z[:, 2] ** 3], axis=1)
    return -0.5 * z[:, 0] ** 2 - 0.5 * bend**2 - z[:, 2] ** 4, slope


def layer(rng):
    return rng.normal(size=3), np.tril(rng.normal(size=(3, 3)), -1) * 0.3 + np.diag(rng.uniform(0.5, 2.0, 3))


def alone(fixed, density, num=64, seed=0):
    """The steps of one part, which begin at the fixed layer."""
    dim = len(fixed[0])
    unit = np.zeros(dim), np.eye(dim)
    return AffineSteps([unit], [fixed], np.zeros(1), np.zeros((1, 1), int), density, num, np.random.default_rng(seed))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_normal_is_found_exactly_without_steps(size, rng):
    (loc, scale), start = layer(rng), layer(rng)
    loc, scale, start = loc * size, scale * size, (start[0] * size, start[1] * size)
    precision = np.linalg.inv(scale @ scale.T)

    def normal(z):
        off = z - loc
        return 1e5 - 0.5 * np.sum(off @ precision * off, axis=1), -off @ precision

    steps = alone(start, normal)
    assert steps.settle(math.inf)
    ((inner_loc, inner_scale),) = steps.trained()
    np.testing.assert_allclose(start[0] + start[1] @ inner_loc, loc, atol=2e-3 * size)
    found = start[1] @ inner_scale
    np.testing.assert_allclose(found @ found.T, scale @ scale.T, atol=2e-2 * size**2)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_gaussian_is_as_good_without_steps_as_by_many(seed, rng):
    start = np.zeros(3), np.diag([0.3, 2.0, 1.0])
    settled, stepped = alone(start, density, seed=seed), alone(start, density, seed=seed)
    assert settled.settle(math.inf)
    stepped.run(chunk(100, rate=0.1))
    for rate in np.geomspace(0.05, 1e-4, 10):
        stepped.run(chunk(100, rate=rate))
    noise = rng.standard_normal((100_000, 3))

    def elbo(steps):
        ((loc, scale),) = steps.trained()
        z = start[0] + (loc + noise @ scale.T) @ start[1].T
        return density(z)[0].mean() + np.log(np.diag(scale)).sum()

    assert abs(elbo(settled) - elbo(stepped)) < 0.02


def test_where_there_is_no_search_or_it_fails_nothing_is_moved():
    def half(z):
        return np.where(z[:, 0] > 0, -0.5 * np.sum(z**2, axis=1), -math.inf), -z

    def slope(z):  # without a top
        return z[:, 0], np.eye(z.shape[1])[0] + 0 * z

    def normal(z):
        return -0.5 * np.sum((z - 5) ** 2, axis=1), 5 - z

    wide = np.zeros(MAX_FIXED + 1), np.eye(MAX_FIXED + 1)
    unit = np.zeros(3), np.eye(3)
    cases = [(unit, half, 64, math.inf), (unit, slope, 64, math.inf), (unit, normal, 16, math.inf)]
    for fixed, density, num, end in [*cases, (unit, normal, 64, 0.0), (wide, normal, 64, math.inf)]:
        steps = alone(fixed, density, num)
        assert not steps.settle(end)
        ((loc, scale),) = steps.trained()
        np.testing.assert_array_equal(np.vstack([loc, scale]), np.eye(len(loc) + 1, len(loc), -1))


@pytest.mark.parametrize("num", [1, 3])
def test_the_gradient_is_that_of_the_path(num, rng):
    trained, fixed = [layer(rng) for _ in range(num)], [layer(rng) for _ in range(num)]
    log_weights = np.log(rng.dirichlet(np.ones(num)))
    near = np.tile(np.arange(num), (num, 1))
    steps = AffineSteps(trained, fixed, log_weights, near, density, 8, np.random.default_rng(3))
    loss = steps.run(chunk(1, rate=0.0))[0]
    # With a rate of zero nothing moves, and the first moment is a tenth of the gradient.
    found = [10 * moment for moment in steps.moments[0]]

    noise = torch.as_tensor(np.random.default_rng(3).standard_normal((num, 8, 3)))
    leaves = [torch.as_tensor(value).requires_grad_() for value in steps.values]
    outer = [tuple(map(torch.as_tensor, each)) for each in fixed]
    normal = torch.distributions.MultivariateNormal

    def part(k, values):
        loc, log_width, lower = (value[k] for value in values)
        scale = outer[k][1] @ (log_width.exp()[:, None] * (torch.tril(lower, -1) + torch.eye(3).double()))
        return outer[k][0] + outer[k][1] @ loc, scale

    own = [part(k, leaves) for k in range(num)]
    held = [normal(loc.detach(), scale_tril=scale.detach()) for loc, scale in own]
    total, elbo = 0.0, 0.0
    for k, (loc, scale) in enumerate(own):
        z = loc + noise[k] @ scale.T
        log_p, slope = map(torch.as_tensor, density(z.detach().numpy()))
        y = z.detach().requires_grad_()
        each = torch.stack([held[j].log_prob(y) + log_weights[j] for j in range(num)])
        log_q = torch.logsumexp(each, dim=0)
        (slope_q,) = torch.autograd.grad(log_q.sum(), y)
        total = total + ((slope - slope_q) * z).sum(1).mean()
        elbo += math.exp(log_weights[k]) * float((log_p - log_q).detach().mean())
    expected = torch.autograd.grad(total, leaves)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(loss, -elbo, rtol=1e-10)


def test_a_normal_is_found(rng):
    loc, scale = layer(rng)
    inverse = np.linalg.inv(scale)

    def normal(z):
        white = (z - loc) @ inverse.T
        return -0.5 * np.sum(white**2, axis=1), -white @ inverse

    one, unit = (np.zeros(3), np.eye(3)), (np.zeros(3), 2 * np.eye(3))
    steps = AffineSteps([one], [unit], np.zeros(1), np.zeros((1, 1), int), normal, 64, rng)
    for rate in (0.1, 0.03, 0.01, 0.001):
        losses_of_rate = steps.run(chunk(150, rate))
    ((m, s),) = steps.trained()
    np.testing.assert_allclose(2 * m, loc, atol=1e-3)
    np.testing.assert_allclose(2 * s, scale, atol=1e-3)
    assert np.ptp(losses_of_rate[-10:]) < 1e-3


def test_draws_that_are_not_finite_count_nothing(rng):
    def half(z):
        log_p = np.where(z[:, 0] > 0, -z[:, 0], -np.inf)
        return log_p, np.where(z > 0, -1.0, np.nan)

    one = np.zeros(1), np.eye(1)
    steps = AffineSteps([one], [one], np.zeros(1), np.zeros((1, 1), int), half, 64, rng)
    assert np.isfinite(steps.run(chunk(5, 0.01))).all()
    steps.density = lambda z: (np.full(len(z), -np.inf), np.full_like(z, np.nan))
    before = steps.trained()[0][0].copy()
    assert np.isnan(steps.run(chunk(1))).all()
    assert (steps.trained()[0][0] == before).all()


def test_it_is_the_layer_of_the_core(rng):
    loc, scale = layer(rng)
    affine = fp.TriangularAffine(3)
    params = affine.parameters_for(loc, scale) | affine.constants()
    noise = np.random.default_rng(3).standard_normal((1, 8, 3))
    steps = AffineSteps([(loc, scale)], [(np.zeros(3), np.eye(3))], np.zeros(1), np.zeros((1, 1), int), density, 8, rng)
    log_q, slope = steps._of_guide(noise, affine.forward(params, noise)[0])
    _, log_det = affine.forward(params, noise)
    np.testing.assert_allclose(log_q, losses.standard_log_prob(noise) - log_det, rtol=1e-12)
    np.testing.assert_allclose(slope, affine.push_score(params, noise, -noise)[2], rtol=1e-9)
