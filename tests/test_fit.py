"""Fitting guides in one call: the driver with a trainer of its own, and both languages."""

import functools
import itertools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro.infer.autoguide import AutoNormal as NumPyroAutoNormal
from pyro.infer.autoguide import AutoNormal as PyroAutoNormal

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import map_tree, merge
from flowppl.inference.fitting import CHUNK, NUM_CHECKS, Round, train
from flowppl.inference.guides import affine_part, distance_from_identity, fold, guide_bijection, stage, start_at
from flowppl.inference.losses import elbo_loss, guide_loss, log_prob, path_loss
from flowppl.pyro.steps import record
from flowppl.pyro.trainers import PathTrainer

ROUNDS = (Round(200, 64, 0.1), Round(300, 64, 0.01), Round(100, 64, 0.01))


class Walker:
    """Fits the mean of a normal by going along a list of positions, one for each round."""

    has_affine, is_dense, is_subsampled, num_restarts = False, False, False, 1

    def __init__(self, positions, losses=0.0, seconds=0.0):
        self.positions, self.losses, self.seconds, self.clock = list(positions), losses, seconds, 0.0
        self.position, self.chunks = 3.0, []
        self.noise = np.random.default_rng(0).normal(size=NUM_CHECKS)

    def settle(self, end):
        return False

    def begin(self, affine):
        self.position = self.positions.pop(0)

    def run(self, chunk):
        self.chunks.append(chunk)
        self.clock += self.seconds
        return np.full((1, CHUNK), self.losses)

    def log_weights(self):
        draws = self.noise + self.position
        return (-0.5 * draws**2 + 0.5 * self.noise**2)[None]

    def get(self):
        return self.position

    def set(self, params):
        self.position = params


def test_training_ends_when_the_guide_is_good():
    walker = Walker([1.0, 0.0, 2.0])
    history = train(walker, ROUNDS, math.inf, False)
    assert (history.stopped, walker.position, len(history.losses)) == ("converged", 0.0, 500)
    assert [round(check.elbo, 1) for check in history.checks] == [-4.5, -0.5, 0.0]
    rates = np.concatenate([chunk.rates for chunk in walker.chunks[:2]])
    assert rates.argmax() in range(40, 60)
    assert 0.001 < rates[-1] < 0.0012


def test_the_best_round_is_kept():
    walker = Walker([2.0, 0.5, 1.0])
    history = train(walker, ROUNDS, math.inf, False)
    assert (history.stopped, walker.position) == ("rounds", 0.5)
    assert abs(history.check.elbo + 0.125) < 0.02


def test_a_long_round_follows_only_where_the_one_before_it_paid():
    for last, num_steps in ((0.9, 600), (0.5, 1200)):
        walker = Walker([2.0, 1.0, last, 0.2])
        long_round = Round(600, 64, 1.0, least_gain=0.3)
        assert len(train(walker, (*ROUNDS, long_round), math.inf, False).losses) == num_steps


def test_a_budget_in_seconds_ends_a_round_with_its_rate_brought_down(monkeypatch):
    walker = Walker([1.0], seconds=0.05)
    monkeypatch.setattr(time, "monotonic", lambda: walker.clock)
    history = train(walker, (Round(100_000, 64, 1.0),), 0.5, False)
    assert history.stopped == "max_seconds"
    assert 4 <= len(walker.chunks) <= 12
    assert walker.chunks[-1].rates[-1] < 0.3


def test_steps_that_are_not_finite_are_told():
    with pytest.raises(RuntimeError, match="no step had a finite gradient"):
        train(Walker([1.0, 0.5, 0.5], losses=math.nan), ROUNDS, math.inf, False)
    walker = Walker([1.0, 0.5, 0.5])
    walker.run = lambda chunk: np.where(np.arange(CHUNK) < 10, np.nan, 1.0)[None]
    with pytest.warns(RuntimeWarning, match="10% of the steps were skipped"):
        history = train(walker, ROUNDS, math.inf, False)
    assert np.isnan(history.losses).sum() == 60


def both(function):
    """The value and the gradient of a function of a dict of arrays and a noise, in both languages."""

    def in_torch(params, *arrays):
        params = map_tree(lambda leaf: torch.tensor(leaf, requires_grad=leaf.dtype.kind == "f"), params)
        value, other = function(params, *map(torch.tensor, arrays))
        value.backward()
        return other.numpy(), {k: v.grad.numpy() for k, v in params["0"].items() if v.grad is not None}

    def in_jax(params, *arrays):
        def loss(floats):
            return function(params | {"0": params["0"] | floats}, *map(jnp.asarray, arrays))

        floats = {k: jnp.asarray(v) for k, v in params["0"].items() if v.dtype.kind == "f"}
        gradient, other = jax.jit(jax.grad(loss, has_aux=True))(floats)
        return np.asarray(other), map_tree(np.asarray, gradient)

    return in_torch, in_jax


FLOW = fp.Chain([fp.TriangularAffine(3)])
LOC, SCALE = np.array([1.0, -2.0, 0.5]), np.array([[2.0, 0, 0], [0.3, 0.5, 0], [-1.0, 0.2, 1.5]])
TARGET_LOC, TARGET_PRECISION = np.array([1.5, -2.0, 0.0]), np.diag([1.0, 2.0, 0.5])


def weights(loc=LOC, scale=SCALE):
    return {"0": fp.TriangularAffine(3).parameters_for(loc, scale) | FLOW.constants()["0"]}


def normal(loc, precision):
    """The log density of a normal but for a constant, and its gradient, for arrays of either library."""

    def log_density(z):
        like = torch.tensor if isinstance(z, torch.Tensor) else jnp.asarray
        slope = -(z - like(loc)) @ like(precision)
        return 0.5 * ((z - like(loc)) * slope).sum(-1), slope

    return log_density


@pytest.mark.parametrize("power", [0.0, 0.5])
def test_the_path_gradient_is_the_formula(rng, power):
    noise = rng.normal(size=(50, 3))
    log_density = normal(TARGET_LOC, TARGET_PRECISION)
    z = LOC + noise @ SCALE.T
    inverse = np.linalg.inv(SCALE)
    slope = -(z - TARGET_LOC) @ TARGET_PRECISION + (z - LOC) @ (inverse.T @ inverse)
    log_w = -0.5 * ((z - TARGET_LOC) @ TARGET_PRECISION * (z - TARGET_LOC)).sum(1) + 0.5 * (noise**2).sum(1)
    w = np.exp(np.clip(log_w - np.log(np.mean(np.exp(log_w))), -10, np.log(5))) ** power
    for compute in both(lambda params, noise: path_loss(FLOW, params, noise, log_density, power)):
        found, gradient = compute(weights(), noise)
        np.testing.assert_allclose(found - found[0], log_w - log_w[0], atol=1e-10)
        np.testing.assert_allclose(gradient["loc"], -np.mean(w[:, None] * slope, axis=0), atol=1e-10)


def test_the_path_gradient_vanishes_at_the_target_whatever_the_noise(rng):
    log_density = normal(LOC, np.linalg.inv(SCALE @ SCALE.T))
    for compute in both(lambda params, noise: path_loss(FLOW, params, noise, log_density, 0.5)):
        _, gradient = compute(weights(), 3 * rng.normal(size=(4, 3)))
        assert max(abs(leaf).max() for leaf in gradient.values()) < 1e-12


def test_draws_that_are_not_finite_count_nothing(rng):
    noise = rng.normal(size=(6, 3))

    def log_density(z):
        value, slope = normal(TARGET_LOC, TARGET_PRECISION)(z)
        first = (torch if isinstance(z, torch.Tensor) else jnp).arange(len(z)) == 0
        where = torch.where if isinstance(z, torch.Tensor) else jnp.where
        return where(first, math.nan, value), slope

    for compute in both(lambda params, noise: path_loss(FLOW, params, noise, log_density)):
        without = both(lambda params, noise: path_loss(FLOW, params, noise, normal(TARGET_LOC, TARGET_PRECISION)))[0]
        expected = without(weights(), noise[1:])[1]["loc"] * 5 / 6
        np.testing.assert_allclose(compute(weights(), noise)[1]["loc"], expected, atol=1e-10)


def test_the_gradient_without_an_inverse_is_that_of_the_elbo(rng):
    """The path gradient and the score term, which autodiff gives."""
    noise = rng.normal(size=(20, 3))
    log_density = normal(TARGET_LOC, TARGET_PRECISION)

    def elbo(params, noise):
        z, _ = FLOW.forward(params, noise)
        return -(log_density(z)[0] - log_prob(FLOW, params, z)).mean(), z.detach() if hasattr(z, "detach") else z

    for compute, expected in zip(
        both(lambda params, noise: elbo_loss(FLOW, params, noise, log_density)), both(elbo), strict=True
    ):
        found, wanted = compute(weights(), noise)[1], expected(weights(), noise)[1]
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-10)


@pytest.mark.parametrize("dim", [3, 300])
def test_folding_keeps_the_guide(rng, dim):
    bijection = guide_bijection("planar", dim)
    params = map_tree(lambda p: 0.1 * rng.normal(size=p.shape), bijection.parameters())
    scale = np.exp(rng.normal(size=dim))
    tree = start_at(bijection, params, rng.normal(size=dim), scale, fixed=True)
    constants = bijection.constants()
    merged = merge(tree, constants)
    new = merge(fold(bijection, merged), constants)
    x = rng.normal(size=(5, dim))
    for before, after in zip(bijection.forward(merged, x), bijection.forward(new, x), strict=True):
        np.testing.assert_allclose(before, after, rtol=1e-10, atol=1e-9)
    assert distance_from_identity(bijection, merged) > 0.05
    assert distance_from_identity(bijection, new) < 1e-12


def numpyro_bent(y):
    z = numpyro.sample("z", ndist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with numpyro.plate("data", len(y)):
        numpyro.sample("y", ndist.Normal(z[1] + 0.3 * z[0] ** 2, 0.5), obs=jnp.asarray(y))


def pyro_bent(y):
    z = pyro.sample("z", pdist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", pdist.Normal(z[1] + 0.3 * z[0] ** 2, 0.5), obs=torch.as_tensor(y))


Y = np.array([0.5, 1.0, -0.2])


def small_flow(dim):
    return fp.realnvp(dim, 2, hidden_dims=8)


def fit_bent(language, **options):
    if language == "numpyro":
        guide = fnp.AutoFlow(numpyro_bent, small_flow)
        return fnp.fit(jax.random.key(0), numpyro_bent, Y, guide=guide, progress=False, **options)
    return fpp.fit(pyro_bent, Y, guide=fpp.AutoFlow(pyro_bent, small_flow), progress=False, **options)


def log_evidence():
    """By a sum over a fine grid."""
    a, b = np.meshgrid(*[np.linspace(-8, 8, 1601)] * 2)
    log_p = -0.5 * (a**2 + b**2) - np.log(2 * np.pi)
    for y in Y:
        log_p += -2 * (y - b - 0.3 * a**2) ** 2 - 0.5 * np.log(2 * np.pi * 0.25)
    return float(np.log(np.sum(np.exp(log_p)) * 0.01**2))


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_fits_a_bent_posterior(language):
    result = fit_bent(language, num_steps=300, num_particles=64, learning_rate=1e-2, num_restarts=2)
    assert abs(result.elbo - log_evidence()) < 0.03
    assert result.elbo > result.checks[0].elbo + 0.02
    assert result.k_hat < 0.7
    assert (result.num_skipped, result.stopped) in ((0, "rounds"), (0, "converged"))
    assert np.isfinite(result.losses).all()
    assert result.sample(50)["z"].shape == (50, 2)
    assert result.resample(50)["z"].shape == (50, 2)
    assert result.to_arviz(20).posterior["z"].shape == (1, 20, 2)
    assert result.diagnose().verdict != "do not trust"
    assert result.verdict == result.checks[-1].verdict != "do not trust"
    assert repr(result).startswith(f"Fit('{result.verdict}', AutoFlow, elbo={result.elbo:.3f}, k_hat=")


def numpyro_linear():
    z = numpyro.sample("z", ndist.Normal(0.0, 1.0))
    w = numpyro.param("w", 0.0)
    numpyro.sample("y", ndist.Normal(z + w, 1.0), obs=2.0)


def pyro_linear():
    z = pyro.sample("z", pdist.Normal(torch.tensor(0.0), 1.0))
    w = pyro.param("w", torch.tensor(0.0))
    pyro.sample("y", pdist.Normal(z + w, 1.0), obs=torch.tensor(2.0))


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_trains_other_guides_and_the_parameters_of_the_model(language):
    options = {"num_steps": 400, "learning_rate": 0.1, "progress": False}
    if language == "numpyro":
        result = fnp.fit(jax.random.key(0), numpyro_linear, guide=NumPyroAutoNormal(numpyro_linear), **options)
    else:
        pyro.clear_param_store()
        result = fpp.fit(pyro_linear, guide=PyroAutoNormal(pyro_linear), **options)
    assert abs(float(result.params["w"]) - 2) < 0.1
    assert abs(result.elbo + 0.5 * np.log(4 * np.pi)) < 0.02


def numpyro_batches(size=None):
    z = numpyro.sample("z", ndist.Normal(0.0, 1.0))
    with numpyro.plate("data", 6, subsample_size=size) as index:
        numpyro.sample("y", ndist.Normal(z, 1.0), obs=jnp.arange(6.0)[index])


def pyro_batches(size=None):
    z = pyro.sample("z", pdist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("data", 6, subsample_size=size) as index:
        pyro.sample("y", pdist.Normal(z, 1.0), obs=torch.arange(6.0)[index])


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_weights_of_a_batch_judge_no_guide(language):
    options = {"num_steps": 400, "learning_rate": 0.1, "size": 2, "progress": False}
    if language == "numpyro":
        result = fnp.fit(jax.random.key(0), numpyro_batches, guide=NumPyroAutoNormal(numpyro_batches), **options)
        known = (jax.random.key(1), numpyro_batches, result.guide, result.params)
        assert fnp.diagnose(*known, num_samples=1000).k_hat < 0.7
    else:
        result = fpp.fit(pyro_batches, guide=PyroAutoNormal(pyro_batches), **options)
        assert fpp.diagnose(pyro_batches, result.guide, num_samples=1000).k_hat < 0.7
    assert np.isnan(result.k_hat)
    assert abs(result.elbo + 0.5 * (6 * np.log(2 * np.pi) + np.log(7) + 55 - 15**2 / 7)) < 2.5
    for judge in (result.diagnose, result.resample):
        with pytest.raises(ValueError, match="sees 2 of the 6 members of the plate 'data'"):
            judge()


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_bad_options_are_told(language):
    for options, message in [
        ({"num_steps": 0}, "num_steps must be an integer of at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be positive and finite"),
        ({"max_seconds": -1.0}, "max_seconds must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit_bent(language, **options)


def test_a_budget_that_is_spent_before_the_first_step_ends_the_training(monkeypatch):
    walker = Walker([1.0, 1.0, 1.0], seconds=0.2)
    ticks = itertools.count()  # a millionth of a second for each look at the clock
    monkeypatch.setattr(time, "monotonic", lambda: walker.clock + 1e-6 * next(ticks))
    history = train(walker, (Round(10_000, 64, 0.1),), 1e-6, False)
    assert (len(history.losses), history.stopped) == (0, "max_seconds")
    history = train(walker, (Round(10_000, 64, 0.1),), 0.3, False)
    assert (len(history.losses), history.stopped) == (2 * CHUNK, "max_seconds")


class Lucky(Walker):
    """A walker with affine layers, whose weights look good in every other set of draws while it is far away."""

    has_affine, looks = True, 0

    def fold(self):
        return 0.0

    def log_weights(self):
        self.looks += 1
        if self.position and self.looks % 2 == 0:
            return np.zeros((1, NUM_CHECKS))
        return super().log_weights()


def test_a_guide_is_good_in_two_sets_of_draws_or_not():
    rounds = (Round(100, 64, 0.1), Round(100, 64, 0.1), Round(100, 64, 0.1))
    history = train(Lucky([1.0, 1.0, 0.0, 0.0]), rounds, math.inf, False)
    assert (len(history.losses), history.stopped) == (400 + 200, "converged")
    assert history.check.kl_gap < 1e-3


class Settled(Lucky):
    """Such a walker that is at the best Gaussian without steps."""

    def settle(self, end):
        self.position = self.positions.pop(0)
        return True


@pytest.mark.parametrize(
    ("positions", "num_steps", "stopped"), [([0.0], 0, "converged"), ([1.0, 0.0], 100, "converged")]
)
def test_the_best_gaussian_needs_no_affine_rounds_and_may_be_enough(positions, num_steps, stopped):
    history = train(Settled(positions), (Round(100, 64, 0.1),), math.inf, False)
    assert (len(history.losses), history.stopped) == (num_steps, stopped)
    assert history.check.kl_gap < 1e-3


def test_a_second_round_like_the_first_may_end_the_training():
    history = train(Walker([0.0, 0.0, 0.0]), (ROUNDS[0],) * 3, math.inf, False)
    assert (len(history.losses), history.stopped) == (2 * ROUNDS[0].num_steps, "converged")


@pytest.mark.parametrize("recipe", [fp.realnvp, fp.iaf])
def test_draws_outside_of_the_support_give_no_reason_to_skip_a_step(rng, recipe):
    bijection = recipe(2, 2, hidden_dims=4)
    params = map_tree(lambda parameter: jnp.asarray(rng.normal(size=parameter.shape)), bijection.parameters())
    noise = jnp.asarray(rng.normal(size=(64, 2)))

    def log_density(z):
        inside = z[:, 0] < 1
        return jnp.where(inside, -0.5 * (z**2).sum(-1), -jnp.inf), jnp.where(inside[:, None], -z, jnp.nan)

    def loss(params):
        tree = merge(params, bijection.constants())
        return guide_loss(bijection, tree, noise, 32, log_density, 0.0)

    gradient, minus_elbo = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert np.isfinite(minus_elbo)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_the_guide_must_draw_all_latents_of_the_model(language):
    if language == "numpyro":

        def model():
            k = numpyro.sample("k", ndist.Normal(0.0, 1.0))
            numpyro.sample("z", ndist.Normal(k, 1.0))

        guide = fnp.AutoFlow(numpyro.handlers.block(model, hide=["k"]), fp.Planar, init="point")
        with pytest.raises(ValueError, match="does not draw these latent sites of the model: k"):
            fnp.fit(jax.random.key(0), model, guide=guide, progress=False)
    else:

        def model():
            k = pyro.sample("k", pdist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("z", pdist.Normal(k, 1.0))

        guide = fpp.AutoFlow(pyro.poutine.block(model, hide=["k"]), fp.Planar, init="point")
        with pytest.raises(ValueError, match="does not draw these latent sites of the model: k"):
            fpp.fit(model, guide=guide, progress=False)


def test_a_fit_in_pyro_keeps_its_own_parameters():
    options = {"num_steps": 200, "learning_rate": 0.1, "progress": False}
    result = fpp.fit(pyro_linear, guide=PyroAutoNormal(pyro_linear), **options)
    before = float(result.params["w"])
    pyro.param("w").data += 5.0
    assert float(result.params["w"]) == before
    assert abs(result.diagnose(2000).elbo - result.elbo) < 0.5
    assert result.sample(7)["z"].shape == (7,)


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_restarts_survive_a_first_round_that_makes_things_worse(language):
    result = fit_bent(language, num_steps=100, learning_rate=5.0, num_restarts=2)
    assert result.elbo >= result.checks[0].elbo - 0.05
    assert result.sample(3)["z"].shape == (3, 2)


@pytest.mark.parametrize("affine", [False, True])
def test_a_recorded_step_is_the_step(affine):
    guide = fpp.AutoFlow(pyro_bent, small_flow)
    guide.setup(Y)
    trainer = PathTrainer(guide, pyro_bent, (Y,), {}, 1, "adam", math.inf)
    assert trainer._may_record
    function = functools.partial(trainer._gradient, affine)
    settings = (torch.tensor(0.3), torch.tensor(1.2))
    inputs = (*(p.detach() for p in guide.flow.parameters()), torch.randn(6, 2), torch.randn(3, 2), *settings)
    program = record(function, inputs)
    assert isinstance(program, torch.jit.ScriptFunction | torch.jit.ScriptModule)
    others = [0.3 * tensor + 0.1 for tensor in inputs]
    for recorded, plain in zip(program(*others), function(*others), strict=True):
        np.testing.assert_allclose(recorded, plain, rtol=1e-10, atol=1e-12)


def test_what_cannot_be_recorded_stays_as_it_is():
    def branches(x):
        return (x if float(x) > 0 else 2 * x,)

    def counts(x):
        counts.calls += 1
        return (x * counts.calls,)

    counts.calls = 0
    for function in (branches, counts):
        assert record(function, (torch.tensor(1.0),)) is function


@pytest.mark.parametrize(
    "chosen",
    [lambda x: x[x > 0], lambda x: x.masked_select(x > 0), lambda x: x[(x > 0).nonzero()], lambda x: x[[0, 1]]],
)
def test_sizes_that_depend_on_values_are_not_kept(chosen):
    def function(x):
        return (len(chosen(x)) * chosen(x).sum(),)

    x = torch.tensor([1.0, -2.0, 3.0, 4.0])
    assert record(function, (x,))(-x) == function(-x)


@pytest.mark.parametrize("layer", [fp.Elementwise(2, fp.LogTails(1.0)), fp.Permute([1, 0])])
def test_a_flow_without_weights_is_fitted(layer):
    fitted = fpp.fit(pyro_bent, Y, flow=lambda _: layer, num_modes=1, num_steps=1)
    assert math.isfinite(fitted.elbo)
    chain = guide_bijection(layer, 2)
    params = merge(map_tree(lambda p: np.zeros(p.shape), chain.parameters()), chain.constants())
    affine = affine_part(chain, params)
    assert (affine is None) == isinstance(layer, fp.Elementwise)
    staged, tree = stage(chain, affine, params, True)
    assert math.isfinite(staged.forward(tree, np.ones(2))[1])


def test_a_step_is_not_recorded_for_longer_than_a_fit_may_take():
    calls = []

    def function(x):
        calls.append(time.monotonic())
        for _ in range(300):
            x = x.sin()
        return (x,)

    assert record(function, (torch.ones(2),), end=time.monotonic() + 0.02) is function
    assert len(calls) == 2
    assert record(function, (torch.ones(2),), end=time.monotonic() + 1000) is not function


@pytest.mark.parametrize("name", ["_create_graph_by_tracing", "_create_function_from_graph"])
def test_a_torch_that_records_no_more_is_told(name, monkeypatch):
    monkeypatch.setattr(f"flowppl.pyro.steps.{name}", None)  # as of a torch that has it no more
    with pytest.warns(RuntimeWarning, match="does not record steps as flowppl asks it to .* take longer"):
        program = record(lambda x: (x.sin() + 1,), (torch.tensor([1.0, 2.0]),))
    np.testing.assert_allclose(program(torch.tensor([3.0, 4.0]))[0], np.sin([3.0, 4.0]) + 1)


def test_a_fit_in_numpyro_compiles_few_programs():
    compiled = []

    def listen(event, seconds, **_):
        compiled.extend([seconds] if event.endswith("backend_compile_duration") else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fit_bent("numpyro", num_steps=100)
    finally:
        jax.monitoring.clear_event_listeners()  # that of one listener is not in JAX 0.7
    # Those of the search, the weights and the two kinds of rounds, and some small ones.
    assert 4 <= len(compiled) <= 25


@pytest.mark.parametrize("language", ["numpyro", "pyro"])
def test_a_slow_model_stops_within_a_hundred_steps(language, monkeypatch):
    """Each gradient takes a tenth of a second, and a hundred of them ten, by a clock that only the model moves."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    if language == "numpyro":

        def wait(z):
            now[0] += 0.1
            return np.zeros(np.shape(z)[:-1], z.dtype)

        def model():
            z = numpyro.sample("z", ndist.Normal(3.0, 1.0).expand([2]).to_event(1))
            shape = jax.ShapeDtypeStruct((), z.dtype)
            slow = jax.pure_callback(wait, shape, jax.lax.stop_gradient(z), vmap_method="broadcast_all")
            numpyro.factor("slow", jax.lax.stop_gradient(slow))

        fit, guide = functools.partial(fnp.fit, jax.random.key(0)), fnp.AutoFlow(model, small_flow, init="point")
    else:

        def model():
            z = pyro.sample("z", pdist.Normal(torch.full((2,), 3.0), 1.0).to_event(1))
            now[0] += 0.1
            pyro.factor("slow", 0 * z.detach().sum(-1))

        fit, guide = fpp.fit, fpp.AutoFlow(model, small_flow, init="point")
    result = fit(model, guide=guide, num_steps=1000, max_seconds=3.0, progress=False)
    assert result.stopped == "max_seconds"
    assert len(result.losses) < 100
