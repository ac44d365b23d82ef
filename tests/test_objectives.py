"""The objectives of both adapters, on models where what is sought is known by hand."""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import numpyro.infer.autoguide
import pyro
import pyro.distributions as pdist
import pyro.infer.autoguide
import pytest
import torch
from numpyro import handlers
from numpyro.infer.util import log_density
from pyro import poutine

import flowppl as fp
import flowppl.numpyro
import flowppl.pyro
from flowppl.inference.objectives import renyi_loss

QUICK = {"xla_backend_optimization_level": 0}  # what is compiled here runs once

NOISE = 0.7
Y = np.array([0.3, -1.0, 2.0, 0.8, 1.4])
NUM_DATA = len(Y)
POSTERIOR_VAR = 1 / (1 + NUM_DATA / NOISE**2)
POSTERIOR = (POSTERIOR_VAR * Y.sum() / NOISE**2, math.sqrt(POSTERIOR_VAR))


class Pyro:
    """What the tests need of a host: its names, and losses and gradients by seed and by name of the parameter."""

    host, dist, ours, infer = pyro, pdist, flowppl.pyro, pyro.infer
    array = staticmethod(torch.as_tensor)
    vectorized: ClassVar = {"vectorize_particles": True, "max_plate_nesting": 1}

    @staticmethod
    def param(name, value):
        return pyro.param(name, torch.as_tensor(value, dtype=torch.float64))

    @staticmethod
    def exp(x):
        return torch.exp(x)

    @staticmethod
    def _grads(function, seed):
        pyro.set_rng_seed(seed)
        with poutine.trace(param_only=True) as capture:
            value = function()
        grads = {}
        for name, site in capture.trace.nodes.items():
            leaf = site["value"].unconstrained()
            grads[name] = np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy().copy()
            leaf.grad = None
        return value, grads

    @classmethod
    def run(cls, objective, model, guide, seeds, **kwargs):
        poutine.block(guide)(**kwargs)  # whatever is drawn when it is first called
        runs = [cls._grads(lambda: objective.loss_and_grads(model, guide, **kwargs), seed) for seed in seeds]
        return np.array([loss for loss, _ in runs]), {
            name: np.array([grads[name] for _, grads in runs]) for name in runs[0][1]
        }

    @classmethod
    def scores(cls, guide, seed):
        """The gradient of log q at the draws of a seed, these held constant."""

        def backward():
            trace = poutine.block(poutine.trace(guide).get_trace)()
            trace.detach_()
            poutine.trace(poutine.replay(guide, trace)).get_trace().log_prob_sum().backward()

        return cls._grads(backward, seed)[1]


class NumPyro:
    host, dist, ours, infer = numpyro, ndist, flowppl.numpyro, numpyro.infer
    array = staticmethod(jnp.asarray)
    vectorized: ClassVar = {}

    @staticmethod
    def param(name, value):
        return numpyro.param(name, jnp.asarray(value, dtype=float))

    @staticmethod
    def exp(x):
        return jnp.exp(x)

    @staticmethod
    def _params(*functions, **kwargs):
        def draw():
            traces = [handlers.trace(handlers.seed(function, 0)).get_trace(**kwargs) for function in functions]
            return {s["name"]: s["value"] for trace in traces for s in trace.values() if s["type"] == "param"}

        return jax.jit(draw, compiler_options=QUICK)()

    @staticmethod
    def _keyed(guide):
        """The guide with its key split as our objectives split it."""
        return lambda **kwargs: handlers.seed(guide, numpyro.prng_key())(**kwargs)

    @classmethod
    def run(cls, objective, model, guide, seeds, **kwargs):
        params = cls._params(guide, model, **kwargs)
        used = cls._keyed(guide) if type(objective) is numpyro.infer.Trace_ELBO else guide

        def loss(params, seed):
            return objective.loss(jax.random.key(seed), params, model, used, **kwargs)

        run = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)), compiler_options=QUICK)
        losses, grads = run(params, jnp.asarray(list(seeds)))
        return np.asarray(losses), jax.tree.map(np.asarray, grads)

    @classmethod
    def scores(cls, guide, seed):
        params = cls._params(guide)
        keyed = handlers.seed(cls._keyed(guide), jax.random.split(jax.random.key(seed))[1])
        trace = handlers.trace(handlers.substitute(keyed, params)).get_trace()
        replayed = handlers.replay(handlers.seed(guide, 0), trace)
        score = jax.grad(lambda params: log_density(replayed, (), {}, params)[0])
        return jax.jit(score, compiler_options=QUICK)(params)


both = pytest.mark.parametrize("host", [Pyro, NumPyro])


def conjugate(host, theta=0.0):
    """z ~ N(theta, 1), y_i ~ N(z, NOISE); theta is a parameter of the model."""

    def model(y=None):
        z = host.host.sample("z", host.dist.Normal(host.param("theta", theta), 1.0))
        with host.host.plate("data", NUM_DATA):
            host.host.sample("y", host.dist.Normal(z, NOISE), obs=host.array(Y if y is None else y))

    return model


def gaussian(host, loc=0.4, scale=0.9):
    def guide(y=None):
        q = host.dist.Normal(host.param("loc", loc), host.exp(host.param("log_scale", math.log(scale))))
        host.host.sample("z", q)

    return guide


def two_sites(host):
    """A model, and a guide whose second site depends on the first."""

    def model():
        a = host.host.sample("a", host.dist.Normal(0.0, 1.0))
        host.host.sample("b", host.dist.Normal(2.0 * a, host.exp(a)))

    def guide():
        a = host.host.sample("a", host.dist.Normal(host.param("loc", 0.5), 1.0))
        host.host.sample("b", host.dist.Normal(a + host.param("shift", 0.2), host.exp(a / 2 + host.param("log", 0.1))))

    return model, guide


def automatic(host, kind):
    def model():
        z = host.host.sample("z", host.dist.Normal(host.array(np.zeros(2)), 1.0).to_event(1))
        scale = host.host.sample("scale", host.dist.LogNormal(0.0, 0.5))
        host.host.sample("y", host.dist.Normal(z, scale).to_event(1), obs=host.array(Y[:2]))

    if kind.startswith("Auto"):
        return model, getattr(host.infer.autoguide, kind)(model)
    return model, host.ours.AutoFlow(model, flow=lambda dim: fp.make_flow(kind, dim, num_flows=1, hidden_dims=4))


def is_mean(draws, expected, num_errors=6.0):
    """Whether the mean of independent draws is the expected value, to within standard errors."""
    error = np.std(draws, axis=0) / math.sqrt(len(draws))
    return np.all(np.abs(np.mean(draws, axis=0) - expected) <= num_errors * error + 1e-10)


@pytest.mark.parametrize(
    ("host", "kind"),
    [(Pyro, kind) for kind in ("two sites", "AutoNormal", "iaf", "realnvp")]
    + [(NumPyro, kind) for kind in ("two sites", "iaf")],
)
def test_path_gradients_are_those_of_the_elbo_without_the_score(host, kind):
    """The values are equal, and so are the gradients when the score at these draws is added to ours."""
    model, guide = two_sites(host) if kind == "two sites" else automatic(host, kind)
    losses, grads = host.run(host.ours.PathELBO(), model, guide, [3])
    expected_losses, expected = host.run(host.infer.Trace_ELBO(), model, guide, [3])
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    ours, theirs, scores = map(jax.tree.leaves, (grads, expected, host.scores(guide, 3)))
    assert any(np.abs(score).max() > 1e-3 for score in scores)
    for our, their, score in zip(ours, theirs, scores, strict=True):
        np.testing.assert_allclose(our[0] + score, their[0], rtol=1e-8, atol=1e-9)


@both
def test_path_gradients_on_a_conjugate_model(host):
    loc, scale, theta, num = 0.4, 0.9, 0.25, 8
    model, guide = conjugate(host, theta), gaussian(host, loc, scale)
    losses, grads = host.run(host.ours.PathELBO(num, **host.vectorized), model, guide, range(200))
    expected_losses, expected = host.run(host.infer.Trace_ELBO(num, **host.vectorized), model, guide, range(200))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)
    np.testing.assert_allclose(grads["theta"], expected["theta"], rtol=1e-10)
    # Derivatives of minus the ELBO, by hand.
    assert is_mean(grads["loc"], loc - theta - (Y - loc).sum() / NOISE**2)
    assert is_mean(grads["log_scale"], scale**2 * (1 + NUM_DATA / NOISE**2) - 1)
    assert is_mean(grads["theta"], theta - loc)


@both
def test_path_gradients_vanish_at_the_posterior(host):
    loc, scale = POSTERIOR
    spreads = []
    for distance in (0.0, 1e-2):
        guide = gaussian(host, loc + distance, scale * (1 + distance))
        _, grads = host.run(host.ours.PathELBO(), conjugate(host), guide, range(20))
        spreads.append(max(np.var(grads["loc"]), np.var(grads["log_scale"])))
        pyro.clear_param_store()
    assert spreads[0] < 1e-20
    assert spreads[1] < 1e-1  # it grows with the square of the distance: the slope of log w is about 2e-2 / scale


@both
def test_a_shared_parameter_keeps_its_gradient_through_the_model(host):
    def model():
        host.host.sample("z", host.dist.Normal(host.param("shared", 0.3), 1.0))

    def guide():
        host.host.sample("z", host.dist.Normal(host.param("shared", 0.3), 2.0))

    losses, grads = host.run(host.ours.PathELBO(), model, guide, range(4))
    # With z = shared + 2 e the loss is 3/2 e^2 - log 2. In log p path and parameter cancel; in log q the path stays.
    e = np.sqrt((losses + math.log(2)) / 1.5)
    np.testing.assert_allclose(np.abs(grads["shared"]), e / 2, rtol=1e-9)


def local(host, size):
    """A latent for each datum, in a subsampled plate; the guide has a parameter for each."""

    def model():
        with host.host.plate("data", NUM_DATA, subsample_size=size) as index:
            z = host.host.sample("z", host.dist.Normal(0.0, 1.0))
            host.host.sample("y", host.dist.Normal(z, NOISE), obs=host.array(Y)[index])

    def guide():
        with host.host.plate("data", NUM_DATA, subsample_size=size) as index:
            host.host.sample("z", host.dist.Normal(host.param("loc", np.full(NUM_DATA, 0.2))[index], 0.8))

    return model, guide


@both
def test_path_gradients_of_minibatches_are_scaled(host):
    model, guide = local(host, 2)
    losses, grads = host.run(host.ours.PathELBO(), model, guide, range(80))
    expected_losses, _ = host.run(host.infer.Trace_ELBO(), model, guide, range(80))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-10)
    assert (np.count_nonzero(grads["loc"], axis=-1) == 2).all()
    assert is_mean(grads["loc"], 0.2 - (Y - 0.2) / NOISE**2)


def flow_with_draws(host):
    """A conditional flow away from its start: draws of it, its log density of y, given or not given the base draw x."""
    rng = np.random.default_rng(0)
    bijection = fp.iaf(3, 1, context_dim=2, hidden_dims=8)
    context, x = (host.array(rng.normal(size=(4, size))) for size in (2, 3))
    if host is Pyro:
        transform = flowppl.pyro.FlowTransform(bijection)
        for weight in transform.parameters():
            weight.data = torch.as_tensor(rng.normal(size=weight.shape)) / 3

        def log_prob(context, y, solve):
            flow = flowppl.pyro.FlowDistribution(pdist.Normal(torch.zeros(3), 1.0), transform.condition(context))
            if solve:
                flowppl.pyro.objectives._solve_inverse(flow, y, x)
            return flow.log_prob(y).sum()

        def slopes(solve):
            arguments = [context.requires_grad_(), y.detach().requires_grad_()]
            return torch.autograd.grad(log_prob(*arguments, solve), arguments)

        y = transform.condition(context)(x)
    else:
        params = flowppl.numpyro.FlowTransform.init(jax.random.key(0), bijection).params
        transform = flowppl.numpyro.FlowTransform(
            bijection, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)) / 3, params)
        )

        def log_prob(context, y, solve):
            given = transform.condition(context)
            known = [flowppl.numpyro.objectives._invert_near(given, y, x)] if solve else None
            return flowppl.numpyro.FlowDistribution(ndist.Normal(jnp.zeros(3), 1.0), given).log_prob(y, known).sum()

        def slopes(solve):
            grad = jax.jit(jax.grad(log_prob, (0, 1)), static_argnums=2, compiler_options=QUICK)
            return grad(context, y, solve)

        y = transform.condition(context)(x)
    return slopes


@both
def test_the_jacobian_gives_the_derivatives_of_the_inverse(host):
    """In the value and in the context, through which other latents may come."""
    slopes = flow_with_draws(host)
    for solved, inverted in zip(slopes(True), slopes(False), strict=True):
        np.testing.assert_allclose(np.asarray(solved), np.asarray(inverted), atol=1e-9)


@both
@pytest.mark.parametrize("objective", ["PathELBO", "ImportanceWeightedELBO"])
def test_draws_that_are_not_reparameterised_are_refused(host, objective):
    def model():
        host.host.sample("flag", host.dist.Bernoulli(0.5))

    def guide():
        host.host.sample("flag", host.dist.Bernoulli(host.param("p", 0.3)))

    with pytest.raises(ValueError, match="reparameterised guides, but site 'flag' draws from Bernoulli"):
        host.run(getattr(host.ours, objective)(), model, guide, [0])


def test_dropout_in_a_guide_of_pyro_is_refused():
    def guide():
        weights = torch.nn.functional.dropout(torch.ones(50), 0.5)
        pyro.sample("z", pdist.Normal(weights.sum(), pyro.param("scale", torch.tensor(0.1))))

    with pytest.raises(ValueError, match="dropout"):
        flowppl.pyro.PathELBO().loss_and_grads(conjugate(Pyro), guide)


def test_parameters_of_modules_are_held_constant_however_they_reach_the_guide():
    class Encoder(torch.nn.Linear):
        def __init__(self):
            super().__init__(1, 2)
            self.weight.data.zero_()
            self.bias.data.copy_(torch.tensor([POSTERIOR[0], math.log(POSTERIOR[1])]))

        def draw(self):
            loc, log_scale = self(torch.ones(1))
            pyro.sample("z", pdist.Normal(loc, log_scale.exp()))

    class Amortised(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder()

        def forward(self):
            self.encoder.draw()

    plain = Encoder()
    for guide in (Amortised(), lambda: pyro.module("encoder", plain).draw()):
        _, grads = Pyro.run(flowppl.pyro.PathELBO(), conjugate(Pyro), guide, range(3))
        weights = [np.ravel(value) for name, value in grads.items() if "encoder" in name]
        assert len(weights) == 2
        np.testing.assert_allclose(np.concatenate(weights), 0.0, atol=1e-10)


def log_weight(params, e):
    """log p(z, y) - log q(z) of the conjugate model at z = loc + exp(log_scale) e."""
    z = params["loc"] + jnp.exp(params["log_scale"]) * e
    squares = (z - params["theta"]) ** 2 - e**2 + ((Y - z[..., None]) ** 2).sum(-1) / NOISE**2
    return params["log_scale"] - 0.5 * squares - NUM_DATA * math.log(NOISE * math.sqrt(2 * math.pi))


def log_mean_exp(log_w):
    return jax.scipy.special.logsumexp(log_w, axis=-1) - math.log(log_w.shape[-1])


@pytest.mark.parametrize("alpha", [0.0, -1.0, 0.5, 2.0])
@pytest.mark.parametrize(("host", "vectorize"), [(Pyro, True), (Pyro, False), (NumPyro, True)])
def test_bounds_of_all_orders(host, vectorize, alpha):
    """Their mean, and that of their gradients, against autodiff of the bound; order 0 is importance weighted."""
    params, num = {"loc": 0.9, "log_scale": math.log(0.5), "theta": 0.25}, 3
    kwargs = {"vectorize_particles": vectorize} | ({"max_plate_nesting": 1} if host is Pyro else {})
    model, guide = conjugate(host, params["theta"]), gaussian(host, params["loc"], 0.5)
    objective = host.ours.RenyiELBO(alpha, num, **kwargs) if alpha else host.ours.ImportanceWeightedELBO(num, **kwargs)
    losses, grads = host.run(objective, model, guide, range(120))
    e, power, sign = np.random.default_rng(0).normal(size=(100_000, num)), 1 - alpha, 1 if alpha < 0 else -1

    def bound(params):
        return (log_mean_exp(power * log_weight(params, e)) / power).mean()

    value, expected = jax.jit(jax.value_and_grad(bound))(params)
    assert is_mean(sign * losses, value)
    for name, gradient in expected.items():
        if name == "theta" and alpha < 0:  # an upper bound says nothing of the model
            assert not np.any(grads.get(name, 0.0))
        else:
            assert is_mean(sign * grads[name], gradient), name


@both
@pytest.mark.parametrize("alpha", [0.0, -1.0, 2.0])
def test_bounds_are_exact_for_an_exact_guide(host, alpha):
    evidence = log_weight({"loc": POSTERIOR[0], "log_scale": math.log(POSTERIOR[1]), "theta": 0.0}, jnp.zeros(()))
    objective = host.ours.RenyiELBO(alpha, **host.vectorized)
    losses, grads = host.run(objective, conjugate(host), gaussian(host, *POSTERIOR), range(3))
    np.testing.assert_allclose(np.abs(losses), -float(evidence), rtol=1e-12)
    np.testing.assert_allclose(grads["loc"], 0.0, atol=1e-10)
    np.testing.assert_allclose(grads["log_scale"], 0.0, atol=1e-10)


@both
@pytest.mark.parametrize("alpha", [1, 1.0, math.inf, "0"])
def test_there_is_no_bound_of_this_order(host, alpha):
    with pytest.raises(ValueError, match="RenyiELBO: alpha must be a finite number other than 1"):
        host.ours.RenyiELBO(alpha)


@pytest.mark.parametrize(("host", "vectorize"), [(Pyro, True), (Pyro, False), (NumPyro, True)])
def test_each_member_of_a_plate_has_an_importance_weighted_bound(host, vectorize):
    kwargs = {"vectorize_particles": vectorize} | ({"max_plate_nesting": 2} if host is Pyro and vectorize else {})
    num, size = 3, 2
    model, guide = local(host, size)
    losses, grads = host.run(host.ours.ImportanceWeightedELBO(num, **kwargs), model, guide, range(80))
    # All particles of a step see the same members.
    assert (np.count_nonzero(grads["loc"], axis=-1) == size).all()

    def bound(loc):
        e = np.random.default_rng(0).normal(size=(50_000, NUM_DATA, num))
        z = loc[:, None] + 0.8 * e
        squares = z**2 - e**2 + (Y[:, None] - z) ** 2 / NOISE**2
        log_w = -0.5 * squares + math.log(0.8) - math.log(NOISE * math.sqrt(2 * math.pi))
        return log_mean_exp(log_w).mean(0).sum()

    value, expected = jax.jit(jax.value_and_grad(bound))(jnp.full(NUM_DATA, 0.2))
    assert is_mean(-losses, value)
    assert is_mean(-grads["loc"], expected)


@both
def test_importance_weights_of_globals_with_subsampled_data_are_refused(host):
    def model():
        z = host.host.sample("z", host.dist.Normal(0.0, 1.0))
        with host.host.plate("data", NUM_DATA, subsample_size=2) as index:
            host.host.sample("y", host.dist.Normal(z, NOISE), obs=host.array(Y)[index])

    with pytest.raises(ValueError, match="plate 'data' is subsampled but does not enclose all sites"):
        host.run(host.ours.ImportanceWeightedELBO(), model, gaussian(host), [0])


def amortised(host, slope, log_scale):
    def guide(y=None):
        total = host.array(Y if y is None else y).sum(-1, keepdims=True)[..., 0]
        q = host.dist.Normal(host.param("slope", slope) * total, host.exp(host.param("log_scale", log_scale)))
        host.host.sample("z", q)

    return guide


@both
def test_forward_kl_finds_the_posterior_of_all_data(host):
    """At the posterior of a conjugate model its gradient is zero in the mean; elsewhere it is what one has by hand."""

    def model(y):
        z = host.host.sample("z", host.dist.Normal(0.0, 1.0))
        means = z[..., None] + host.array(np.zeros(NUM_DATA))
        host.host.sample("data", host.dist.Normal(means, NOISE).to_event(1), obs=y)

    best, log_scale = POSTERIOR_VAR / NOISE**2, 0.5 * math.log(POSTERIOR_VAR)
    objective = host.ours.ForwardKL({"y": "data"}, num_particles=20, **host.vectorized)
    for slope in (best, best + 0.03):
        losses, grads = host.run(objective, model, amortised(host, slope, log_scale), range(80), y=host.array(Y))
        total = NUM_DATA * (NUM_DATA + NOISE**2)  # the mean square of the sum of the data
        excess = (slope - best) ** 2 * total / POSTERIOR_VAR
        assert is_mean(losses, 0.5 * math.log(2 * math.pi * POSTERIOR_VAR) + 0.5 * (1 + excess))
        assert is_mean(grads["slope"], (slope - best) * total / POSTERIOR_VAR)
        assert is_mean(grads["log_scale"], -excess)
        pyro.clear_param_store()


@both
def test_forward_kl_needs_the_sites_of_the_model(host):
    def auxiliary(y=None):
        host.host.sample("other", host.dist.Normal(host.param("loc", 0.0), 1.0))

    for data, guide, message in (
        ({"y": "y"}, auxiliary, "the guide has the site 'other', which the model does not draw; it draws z, y"),
        ({"y": "x"}, gaussian(host), "the data has the site 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            host.run(host.ours.ForwardKL(data), conjugate(host), guide, [0])


@pytest.mark.parametrize(
    ("host", "loss"), [(Pyro, "PathELBO"), (Pyro, "TraceMeanField_ELBO"), (NumPyro, "TraceMeanField_ELBO")]
)
def test_annealing_weighs_the_divergence_alone(host, loss):
    """The loss is affine in the weight: E[-log p(y | z)] + weight * (log q(z) - log p(z))."""
    objective = getattr(host.ours if loss == "PathELBO" else host.infer, loss)()
    model, guide = (host.ours.annealed(fn) for fn in (conjugate(host), gaussian(host)))
    losses = [host.run(objective, model, guide, [2], kl_weight=weight)[0][0] for weight in (0.0, 0.5)]
    losses.append(host.run(objective, conjugate(host), gaussian(host), [2])[0][0])
    assert math.isclose(losses[1], (losses[0] + losses[2]) / 2, rel_tol=1e-12)
    if loss == "TraceMeanField_ELBO":  # whose divergence is exact
        assert math.isclose(losses[2] - losses[0], 0.5 * (0.9**2 + 0.4**2 - 1) - math.log(0.9), rel_tol=1e-12)
    else:  # at a guide equal to the prior there is none
        prior = host.ours.annealed(gaussian(host, 0.0, 1.0))
        pyro.clear_param_store()
        same = [host.run(objective, model, prior, [2], kl_weight=weight)[0][0] for weight in (0.0, 1.0)]
        assert math.isclose(*same, rel_tol=1e-12)


def test_a_weight_rises_linearly():
    for host in (Pyro, NumPyro):
        weights = [float(host.ours.linear_annealing(step, 8, start=0.5)) for step in (0, 4, 8, 50)]
        assert weights == [0.5, 0.75, 1.0, 1.0]


@both
def test_draws_without_density_have_no_weight(host):
    """And an order next to that of the ELBO loses no digits."""
    xp = torch if host is Pyro else jnp

    def loss(alpha, log_w):
        log_w = host.array(log_w)
        return float(renyi_loss(log_w, log_w, log_w, 1.0, alpha))

    log_w = np.array([-3.0, -np.inf, -4.0])
    assert loss(0.0, log_w) == pytest.approx(3.0 - math.log((1 + math.exp(-1)) / 3))
    assert loss(2.0, log_w) == math.inf
    assert loss(0.5, log_w - np.inf) == math.inf
    assert math.isnan(loss(0.0, log_w * math.nan))
    assert loss(1 + 1e-12, [-1.0, -2.0, -6.0]) == pytest.approx(3.0)

    def model():
        z = host.host.sample("z", host.dist.Normal(0.0, 1.0))
        host.host.factor("positive", xp.where(z > 0, 0.0, -xp.inf))

    def guide():
        host.host.sample("z", host.dist.Normal(host.param("loc", 0.2), 1.0))

    losses, grads = host.run(host.ours.RenyiELBO(0.0, 50), model, guide, range(3))
    assert np.isfinite(losses).all()
    assert np.isfinite(grads["loc"]).all()


def test_a_loop_over_a_part_of_the_data_is_refused():
    def model():
        for i in pyro.plate("data", NUM_DATA, 2):
            pyro.sample(f"z{i}", pdist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="plate 'data' is subsampled but does not enclose all sites as one array"):
        flowppl.pyro.ImportanceWeightedELBO().loss(model, model)
