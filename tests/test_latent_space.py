"""What is done with the noise of a flow, against plain NumPy and Gaussians, in both languages."""

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import map_tree

ADAPTERS = {"pyro": fpp, "numpyro": fnp}
LANGUAGES = pytest.mark.parametrize("language", ADAPTERS)


def flow_of(language, bijection, rng=None, weights=None, base=None):
    """A flow with given weights, or with some from a generator."""
    if weights is None:
        weights = map_tree(lambda p: 0.3 * rng.normal(size=p.shape), bijection.parameters())
    if language == "numpyro":
        return fnp.Flow(bijection, map_tree(jnp.asarray, weights), base)
    flow = fpp.Flow(bijection)
    flow.transform.weights.assign(map_tree(torch.as_tensor, weights))
    return flow


def gaussian(language, loc, matrix, *more):
    """The flow of a normal distribution with this mean and Cholesky factor, and more layers behind."""
    affine = fp.TriangularAffine(len(loc))
    weights = affine.parameters_for(np.array(loc), np.array(matrix))
    if more:
        return flow_of(language, fp.Chain([affine, *more]), weights={"0": weights})
    return flow_of(language, affine, weights=weights)


def call(language, name, *args, key=0, **options):
    function = getattr(ADAPTERS[language], name)
    if name == "inpaint" and language == "numpyro":
        return np.asarray(function(jax.random.key(key), *args, **options))
    pyro.set_rng_seed(key)
    return np.asarray(function(*args, **options))


NVP = fp.Coupling(3, hidden_dims=4)
CONDITIONAL = fp.Coupling(3, hidden_dims=4, context_dim=2)


@LANGUAGES
def test_temperature_scales_the_noise(language, rng):
    flow = flow_of(language, NVP, rng)
    keys = (jax.random.key(1),) if language == "numpyro" else ()
    draws = {}
    for temperature in (1.0, 0.5, 0):
        pyro.set_rng_seed(1)
        draws[temperature] = np.asarray(flow.sample(*keys, (4,), temperature=temperature))
    array = torch.as_tensor if language == "pyro" else jnp.asarray
    with torch.no_grad():
        unit = flow.transform.inv(array(draws[1.0]))
        np.testing.assert_allclose(draws[0.5], np.asarray(flow.transform(0.5 * unit)), atol=1e-10)
        np.testing.assert_allclose(draws[0], np.asarray(flow.transform(0 * unit)), atol=1e-10)


def test_temperature_of_another_base_and_at_a_context():
    import numpyro.distributions as ndist
    import pyro.distributions as pdist

    ours = fpp.Flow(fp.ElementwiseAffine(2), pdist.Laplace(torch.full((2,), 3.0), 1.0).to_event(1))
    base = ndist.Laplace(np.full(2, 3.0), 1.0).to_event(1)
    theirs = flow_of("numpyro", fp.ElementwiseAffine(2), weights={"loc": np.zeros(2), "scale": np.zeros(2)}, base=base)
    np.testing.assert_allclose(ours.sample((2,), temperature=0).numpy(), 3.0)
    np.testing.assert_allclose(theirs.sample(jax.random.key(0), (2,), temperature=0), 3.0)
    at = fpp.Flow(CONDITIONAL)(torch.zeros(5, 2))
    assert at.sample((4,), temperature=0.5).shape == (4, 5, 3)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="temperature must be at least 0"):
            ours.sample((2,), temperature=bad)


@LANGUAGES
def test_ways_between_data(language, rng):
    flow = gaussian(language, [1.0, -1.0], [[2.0, 0.0], [1.0, 0.5]])
    ends = rng.normal(size=(4, 5, 2))
    t = np.linspace(0, 1, 4)[:, None, None]
    line = call(language, "interpolate", flow, *ends[:2], 4)
    np.testing.assert_allclose(line, (1 - t) * ends[0] + t * ends[1], atol=1e-12)
    loc = np.array([1.0, -1.0])
    bow = call(language, "interpolate", flow, *ends[:2], 4, spherical=True) - loc
    angle = t * np.pi / 2
    np.testing.assert_allclose(bow, np.cos(angle) * (ends[0] - loc) + np.sin(angle) * (ends[1] - loc), atol=1e-12)
    square = call(language, "interpolate_four", flow, *ends, 3) - loc
    for i, a in enumerate((0, np.pi / 4, np.pi / 2)):
        for j, b in enumerate((0, np.pi / 4, np.pi / 2)):
            z = ends - loc
            expected = np.cos(a) * (np.cos(b) * z[0] + np.sin(b) * z[1]) + np.sin(a) * (
                np.cos(b) * z[2] + np.sin(b) * z[3]
            )
            np.testing.assert_allclose(square[i, j], expected, atol=1e-12)
    one = call(language, "interpolate_four", flow, *ends[:, 0], num_steps=2)
    np.testing.assert_allclose(one.reshape(4, 2), ends[:, 0], atol=1e-12)


def test_both_languages_agree_at_contexts(rng):
    weights = map_tree(lambda p: 0.5 * rng.normal(size=p.shape), CONDITIONAL.parameters())
    x, context = rng.normal(size=(2, 5, 3)), rng.normal(size=(5, 2))
    found = []
    for language in ADAPTERS:
        flow = flow_of(language, CONDITIONAL, weights=weights)
        way = call(language, "interpolate", flow, *x, 3, context=context)
        direction = call(language, "attribute_direction", flow, x[0], [0, 1, 1, 0, 0], context=context)
        edited = call(language, "edit", flow, x[0], direction, -0.7, context=context)
        best = call(language, "inpaint", flow, x[0], x[0, 0] > 0, num_steps=3, context=context)
        found.append([way, direction, edited, best])
        np.testing.assert_allclose(way[[0, -1]], x, atol=1e-12)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-10)


@LANGUAGES
def test_a_direction_and_edits_along_it(language, rng):
    loc, matrix = np.array([1.0, -1.0]), np.array([[2.0, 0.0], [1.0, 0.5]])
    flow, x = gaussian(language, loc, matrix), rng.normal(size=(6, 2))
    label = np.array([True, False, False, True, True, False])
    direction = call(language, "attribute_direction", flow, x, label)
    z = np.linalg.solve(matrix, (x - loc).T).T
    np.testing.assert_allclose(direction, z[label].mean(0) - z[~label].mean(0), atol=1e-12)
    edited = call(language, "edit", flow, x, direction, 2.0)
    np.testing.assert_allclose(edited, x + 2 * (x[label].mean(0) - x[~label].mean(0)), atol=1e-12)


LOC, MATRIX = np.array([1.0, -1.0, 0.5]), np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.3, -0.4, 0.7]])
COVARIANCE = MATRIX @ MATRIX.T


def given_first(value):
    """Mean and covariance of the last two numbers given the first."""
    slope = COVARIANCE[1:, 0] / COVARIANCE[0, 0]
    return LOC[1:] + slope * (value - LOC[0]), COVARIANCE[1:, 1:] - np.outer(slope, COVARIANCE[0, 1:])


@LANGUAGES
def test_the_most_probable_missing_part(language):
    flow = gaussian(language, LOC, MATRIX)
    x = np.array([[2.5, np.nan, 7.0], [-1.0, 0.0, np.inf]])
    found = call(language, "inpaint", flow, x, np.array([True, False, False]))
    np.testing.assert_allclose(found[:, 0], x[:, 0])
    for row in found:
        np.testing.assert_allclose(row[1:], given_first(row[0])[0], atol=2e-3)


@LANGUAGES
def test_draws_of_the_missing_part(language):
    """Also where the data lie in an interval: before the map onto it they are normal, given one of them."""
    flow = gaussian(language, LOC, MATRIX, fp.Elementwise(3, fp.Bounded(-2.0, 3.0)))
    first = -2.0 + 5.0 / (1.0 + np.exp(-2.0))
    x, observed = np.full((1000, 3), first), np.array([True, False, False])
    found = call(language, "inpaint", flow, x, observed, "langevin", num_steps=150)
    np.testing.assert_allclose(found[:, 0], first)
    unbounded = np.log((found + 2) / (3 - found))[:, 1:]
    mean, covariance = given_first(2.0)
    error = np.sqrt(np.diag(covariance) / len(x))
    assert (np.abs(unbounded.mean(0) - mean) < 5 * error).all()
    np.testing.assert_allclose(np.cov(unbounded.T), covariance, atol=7 * covariance.max() / len(x) ** 0.5)


@LANGUAGES
def test_odd_data_have_low_scores(language, rng):
    flow, reference = gaussian(language, [0.0, 0.0], np.eye(2)), rng.normal(size=(200, 2))
    x = np.array([[0.0, 0.0], [6.0, 0.0], [1.0, 0.6]])
    scores = ADAPTERS[language].anomaly_scores(flow, x, reference)
    log_prob = -0.5 * (x**2).sum(1) - np.log(2 * np.pi)
    of_reference = -0.5 * (reference**2).sum(1) - np.log(2 * np.pi)
    np.testing.assert_allclose(scores.log_prob, log_prob, atol=1e-12)
    np.testing.assert_allclose(scores.percentile, [(of_reference <= each).mean() for each in log_prob])
    distance = np.abs(of_reference - of_reference.mean())
    expected = [(distance >= abs(each - of_reference.mean())).mean() for each in log_prob]
    np.testing.assert_allclose(scores.typicality, expected)
    assert scores.percentile[1] == scores.typicality[1] == 0
    assert scores.percentile[0] == 1


@LANGUAGES
def test_data_where_a_flow_has_none_are_refused_and_odd(language):
    """Bytes of images, say: moved to the end of the interval, they would all be the same."""
    flow = flow_of(language, fp.Elementwise(2, fp.Sigmoid()), weights={})
    bytes_of, unit = np.array([[3, 200], [0, 255]], dtype=np.uint8), np.array([[0.0, 1.0], [0.2, 0.7]])
    for name, args in (
        ("interpolate", (unit, bytes_of)),
        ("interpolate_four", (unit, unit, bytes_of, unit)),
        ("attribute_direction", (bytes_of, [0, 1])),
        ("edit", (bytes_of, np.full(2, 7.0))),
        ("inpaint", (bytes_of, np.array([True, False]))),
    ):
        with pytest.raises(ValueError, match=r"outside of \(0, 1\)"):
            call(language, name, flow, *args)
    assert np.isfinite(call(language, "edit", flow, unit, np.full(2, 7.0))).all()
    odd = np.array([[0.5, 0.5], [np.nan, 0.5], [-1.0, 0.5], [np.inf, 0.5]])
    scores = ADAPTERS[language].anomaly_scores(flow, odd, unit[1:])
    assert scores.percentile[0] == 1
    assert not scores.percentile[1:].any()
    assert not scores.typicality[1:].any()
    for x, reference in ((unit[0], unit), (unit, unit[None])):
        with pytest.raises(ValueError, match="rows of data"):
            ADAPTERS[language].anomaly_scores(flow, x, reference)


@LANGUAGES
def test_a_temperature_is_one_number_of_at_least_0(language):
    flow = flow_of(language, fp.Elementwise(2, fp.Sigmoid()), weights={})
    keys = (jax.random.key(1),) if language == "numpyro" else ()
    array = jnp.asarray if language == "numpyro" else torch.tensor
    for wrong in (-1, np.float32(-1), array(-1.0), array(np.nan), np.nan, np.inf):
        with pytest.raises(ValueError, match="at least 0 and finite"):
            flow.sample(*keys, (4,), temperature=wrong)
    for wrong in ("0.7", None, np.array([0.5, 0.2])):
        with pytest.raises(TypeError, match="must be a number"):
            flow.sample(*keys, (4,), temperature=wrong)
    if language == "numpyro":
        jax.vmap(lambda temperature: flow.sample(keys[0], (4,), temperature))(jnp.array([0.5, 1.0]))


@LANGUAGES
def test_events_of_other_shapes_and_bad_arguments(language, rng):
    flow = flow_of(language, fp.Elementwise((1, 2, 2), fp.Affine()), rng)
    x, observed = rng.normal(size=(3, 1, 2, 2)), np.array([[True, False], [False, True]])
    assert call(language, "interpolate", flow, x[0], x[1], 5).shape == (5, 1, 2, 2)
    found = call(language, "inpaint", flow, x, observed, num_steps=3)
    assert found.shape == x.shape
    np.testing.assert_array_equal(found[..., observed], x[..., observed])

    def refused(match, name, *args, error=ValueError, **options):
        with pytest.raises(error, match=match):
            call(language, name, flow, *args, **options)

    refused("at least 2", "interpolate", x, x, 1)
    refused("the same shape", "interpolate", x, x[0])
    refused("unconditional", "interpolate", x, x, context=np.ones((3, 2)))
    refused("one for each", "attribute_direction", x, [0, 1])
    refused("of some rows and not of others", "attribute_direction", x, [1, 1, 1])
    refused("True or False", "attribute_direction", x, [0, 1, 2])
    refused("direction must have the shape", "edit", x, np.ones(4))
    refused("method must be one of", "inpaint", x, observed, "mcmc")
    refused("observed must be True where", "inpaint", x, observed.astype(float))
    refused("the shape of one event", "inpaint", x, np.ones(3, bool))
    refused("must be finite where", "inpaint", np.full_like(x, np.nan), observed)
    refused("step_size must be positive", "inpaint", x, observed, step_size=0.0)
    refused("num_steps must be an integer", "inpaint", x, observed, num_steps=0)
    with pytest.raises(TypeError, match="flow must be a flowppl"):
        call(language, "interpolate", flow.transform, x, x)
