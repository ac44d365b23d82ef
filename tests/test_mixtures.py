"""Mixtures of flows, in both languages, against sums over the flows and the densities of SciPy."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import kstest, norm

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays.tree import leaves, nested
from flowppl.inference.density_mixture import shared_out

both = pytest.mark.parametrize("language", ["pyro", "numpyro"])
NORMALS = [fp.ElementwiseAffine(1), fp.ElementwiseAffine(1)]  # a mixture of two normals
KEY = jax.random.key(0)


def make(language, flows, hidden_dims=()):
    if language == "pyro":
        return fpp.Mixture(flows, hidden_dims)
    return fnp.Mixture.init(KEY, flows, hidden_dims)


def arrays(language, *values):
    return [torch.as_tensor(value) if language == "pyro" else jnp.asarray(value) for value in values]


def weights_of(mixture):
    """The weights as NumPy arrays, by name."""
    if isinstance(mixture, torch.nn.Module):
        named = dict(mixture.named_parameters())
        return {name.replace(".transform.weights", ""): leaf.detach().numpy() for name, leaf in named.items()}
    return {".".join(path): np.asarray(leaf) for path, leaf in leaves(mixture._params)}


def with_weights(mixture, weights):
    """The mixture with these weights, by name."""
    if isinstance(mixture, fnp.Mixture):
        own = mixture._params  # those of a flow without weights too
        return mixture._with_params(jax.tree.map_with_path(lambda path, _: jnp.asarray(weights[_name(path)]), own))
    for name, leaf in mixture.named_parameters():
        leaf.data = torch.as_tensor(weights[name.replace(".transform.weights", "")])
    return mixture


def _name(path):
    return ".".join(entry.key for entry in path)


def moved(mixture, rng):
    """The mixture with weights away from the start."""
    return with_weights(mixture, {n: w + 0.3 * rng.normal(size=w.shape) for n, w in weights_of(mixture).items()})


def two_normals(language, logits, loc, scale):
    """A mixture of normals with these properties."""
    mixture = make(language, NORMALS)
    own = {"gate.logits": np.array(logits)}
    for i, flow in enumerate(NORMALS):
        params = flow.parameters_for(np.array(loc[i : i + 1]), np.array(scale[i : i + 1]))
        own |= {f"flows.{i}.{name}": leaf for name, leaf in params.items()}
    return with_weights(mixture, own)


def draw(language, distribution, shape):
    if language == "pyro":
        return distribution.sample(shape).numpy()
    return np.asarray(distribution.sample(KEY, shape))


@both
def test_the_density_is_the_weighted_sum_of_those_of_normals(language, rng):
    mixture = two_normals(language, [0.2, -1.0], [-1.0, 2.0], [0.5, 1.5])
    x, w = rng.normal(size=(4, 3, 1)), softmax([0.2, -1.0])
    joint = np.log(w) + norm.logpdf(x, [-1.0, 2.0], [0.5, 1.5])
    (given,) = arrays(language, x)
    np.testing.assert_allclose(mixture.log_prob(given).tolist(), logsumexp(joint, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(mixture.responsibilities(given).tolist(), softmax(joint, axis=-1), rtol=1e-12)
    draws = draw(language, mixture, (4000,))[:, 0]
    assert kstest(draws, lambda z: norm.cdf(z[:, None], [-1.0, 2.0], [0.5, 1.5]) @ w).pvalue > 1e-4


@both
@pytest.mark.parametrize("is_alike", [True, False])
def test_flows_and_weights_depend_on_a_context(language, is_alike, rng):
    first = fp.Coupling(2, hidden_dims=3, context_dim=2)
    mixture = moved(make(language, [first, first if is_alike else fp.ActNorm(2)], hidden_dims=4), rng)
    x, c = rng.normal(size=(5, 3, 2)), rng.normal(size=(3, 2))
    given, context = arrays(language, x, c)
    each = [flow(context if flow.bijection.context_dim else None).log_prob(given) for flow in mixture.flows]
    gate = {name.removeprefix("gate."): leaf for name, leaf in weights_of(mixture).items() if "gate" in name}
    logits = fp.MLP(2, 2, 4)(nested(gate), c)
    joint = log_softmax(logits, axis=-1) + np.stack([part.tolist() for part in each], axis=-1)
    found = mixture(context)
    assert found.batch_shape == (3,)
    assert found.event_shape == (2,)
    np.testing.assert_allclose(found.log_prob(given).tolist(), logsumexp(joint, axis=-1), rtol=1e-10)
    np.testing.assert_allclose(mixture.responsibilities(given, context).tolist(), softmax(joint, axis=-1), atol=1e-10)
    assert draw(language, found, (4,)).shape == (4, 3, 2)
    wide = found.expand((5, 3))
    assert draw(language, wide, (4,)).shape == (4, 5, 3, 2)
    assert np.ptp(draw(language, wide, ()), axis=0).min() > 0  # new draws along the new axis
    np.testing.assert_allclose(wide.log_prob(given).tolist(), logsumexp(joint, axis=-1), rtol=1e-10)


@both
def test_a_fit_finds_groups_and_their_shares(language, rng):
    is_first = rng.random(400) < 0.3
    x = np.where(is_first[:, None], -20.0, 20.0) + rng.normal(size=(400, 1)) * np.where(is_first[:, None], 2.0, 0.5)
    options = {"learning_rate": 0.1, "num_epochs": 25, "validation": None, "progress": False}
    mixture = make(language, [fp.ActNorm(1), fp.ActNorm(1)])
    if language == "pyro":
        fit = fpp.fit_density(mixture, x, **options)
        found = fpp.evaluate_density(fit.flow, x)
    else:
        fit = fnp.fit_density(KEY, mixture, x, **options)
        found = fnp.evaluate_density(KEY, fit.flow, x)
    share = is_first.mean()
    groups = [x[is_first], x[~is_first]]
    best = share * np.log(share) + (1 - share) * np.log(1 - share)
    best += sum(norm.logpdf(group, group.mean(), group.std()).sum() for group in groups) / len(x)
    assert best - 0.01 < found.log_prob < best + 1e-6
    (given,) = arrays(language, x)
    which = np.asarray(fit.flow.responsibilities(given).tolist()).argmax(axis=-1)
    assert len(set(which[is_first])) == len(set(which[~is_first])) == 1
    weights = softmax(weights_of(fit.flow)["gate.logits"])
    np.testing.assert_allclose(weights[which[is_first][0]], share, atol=0.03)


def test_rows_are_shared_out_by_groups(rng):
    x = np.concatenate([rng.normal(size=(n, 2, 1)) + place for n, place in ((30, -50.0), (20, 0.0), (50, 50.0))])
    groups = shared_out(x, 3)
    assert [len(rows) for rows in groups] == [100] * 3
    assert sorted(sorted(set(rows.tolist())) for rows in groups) == [[*range(30)], [*range(30, 50)], [*range(50, 100)]]
    assert all(len(rows) == 3 for rows in shared_out(np.zeros((3, 2)), 5))  # no groups at all


@pytest.mark.parametrize("saved_by", ["pyro", "numpyro"])
def test_a_file_holds_it_for_both_languages(saved_by, tmp_path, rng):
    dist, full = (pyro.distributions, torch.full) if saved_by == "pyro" else (numpyro.distributions, jnp.full)
    base = dist.Laplace(full((2,), 1.0), full((2,), 2.0)).to_event(1)
    flows = [fp.Coupling(2, hidden_dims=3), fp.Permute((1, 0)), fp.ElementwiseAffine(2)]
    if saved_by == "pyro":
        mixture = fpp.Mixture([fpp.Flow(flows[0], base), *flows[1:]])
    else:
        mixture = fnp.Mixture.init(KEY, [fnp.Flow.init(KEY, flows[0], base), *flows[1:]])
    conditional = make(saved_by, [fp.Coupling(2, hidden_dims=3, context_dim=1)] * 2, hidden_dims=2)
    x, c = rng.normal(size=(5, 2)), rng.normal(size=(5, 1))
    for each, given in ((mixture, []), (conditional, [c])):
        each = moved(each, rng)
        fp.save(tmp_path / "mixture", each)
        (value, *context) = arrays(saved_by, x, *given)
        expected = each(*context).log_prob(value).tolist()
        for backend in ("pyro", "numpyro"):
            again = fp.load(tmp_path / "mixture", backend)
            assert type(again).__module__.split(".")[1] == backend
            (value, *context) = arrays(backend, x, *given)
            np.testing.assert_allclose(again(*context).log_prob(value).tolist(), expected, rtol=1e-12)


def elbo_gradient(logits):
    """The gradient of the ELBO in the logits: of normals at -1 and 2, against the standard normal, by quadrature."""
    z = jnp.linspace(-12, 12, 4001)
    normal = numpyro.distributions.Normal

    def elbo(logits):
        log_q = jax.nn.logsumexp(
            jax.nn.log_softmax(logits) + normal(jnp.array([-1.0, 2.0]), 1.0).log_prob(z[:, None]), -1
        )
        return jnp.trapezoid(jnp.exp(log_q) * (normal(0.0, 1.0).log_prob(z) - log_q), z)

    return jax.jit(jax.grad(elbo))(jnp.array(logits))


def test_in_a_guide_the_weights_have_the_score_function():
    expected = elbo_gradient([0.5, 0.0])
    mixture = two_normals("pyro", [0.5, 0.0], [-1.0, 2.0], [1.0, 1.0])
    assert not mixture().has_rsample
    assert not mixture.sample((2,)).requires_grad

    def model():
        pyro.sample("z", pyro.distributions.Normal(torch.zeros(1), 1.0).to_event(1))

    loss = pyro.infer.Trace_ELBO(num_particles=20_000, vectorize_particles=True, max_plate_nesting=0)
    loss.differentiable_loss(model, lambda: pyro.sample("z", mixture())).backward()
    np.testing.assert_allclose(-mixture.gate.logits.grad.numpy(), expected, atol=0.05)

    theirs = two_normals("numpyro", [0.5, 0.0], [-1.0, 2.0], [1.0, 1.0])
    elbo = numpyro.infer.TraceGraph_ELBO(num_particles=20_000)

    def their_loss(logits):
        guide = fnp.Mixture(theirs.flows, (), {"logits": logits})
        prior = numpyro.distributions.Normal(jnp.zeros(1), 1.0).to_event(1)
        args = (lambda: numpyro.sample("z", prior), lambda: numpyro.sample("z", guide()))
        return elbo.loss(KEY, {}, *args)

    np.testing.assert_allclose(-jax.jit(jax.grad(their_loss))(jnp.array([0.5, 0.0])), expected, atol=0.05)


def test_it_is_a_prior_of_plates_in_pyro(rng):
    mixture = moved(fpp.Mixture([fp.Coupling(2, hidden_dims=3), fp.ActNorm(2)]), rng)

    def model():
        prior = pyro.module("prior", mixture)
        with pyro.plate("rows", 3):
            return pyro.sample("z", prior())

    trace = pyro.poutine.trace(model).get_trace()
    assert trace.nodes["z"]["value"].shape == (3, 2)
    assert trace.nodes["z"]["fn"].batch_shape == (3,)
    trace.compute_log_prob()
    np.testing.assert_allclose(
        trace.nodes["z"]["log_prob"].tolist(), mixture.log_prob(trace.nodes["z"]["value"]).tolist()
    )
    assert "prior$$$gate.logits" in pyro.get_param_store()
    draws = pyro.infer.Predictive(model, num_samples=4, parallel=True)()["z"]
    assert draws.shape == (4, 3, 2)
    same = copy.deepcopy(mixture)
    again = pickle.loads(pickle.dumps(mixture))
    assert torch.equal(same.log_prob(draws), mixture.log_prob(draws))
    assert torch.equal(again.log_prob(draws), mixture.log_prob(draws))
    assert mixture.to(torch.float32).log_prob(draws.float()).dtype == torch.float32
    assert not any(weight.requires_grad for weight in mixture.freeze().parameters())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("is_alike", [True, False])
def test_it_has_the_shapes_and_the_errors_of_a_flow_in_pyro(is_alike, rng):
    one = fp.Coupling(2, hidden_dims=3)
    mixture = moved(fpp.Mixture([one, one if is_alike else fp.ActNorm(2)]), rng)
    x = torch.zeros(2)
    assert mixture().expand((5,)).log_prob(x).tolist() == 5 * [mixture.log_prob(x).item()]
    assert mixture.sample((0,)).shape == (0, 2)
    with pytest.raises(TypeError, match=r"one dtype, got event: torch\.float32, weights: torch\.float64"):
        mixture.log_prob(x.float())
    conditional = fpp.Mixture([fp.Coupling(2, hidden_dims=3, context_dim=2)] * 2)
    with pytest.raises(TypeError, match=r"Mixture takes arrays of one dtype, got context: torch\.float32"):
        conditional(x.float())
    mixture.freeze()
    traced = torch.jit.trace(lambda x: mixture.log_prob(x), x, check_trace=False)  # as Pyro's JitTrace_ELBO does
    np.testing.assert_allclose(traced(x + 1).tolist(), mixture.log_prob(x + 1).tolist())


def test_it_is_a_prior_of_plates_in_numpyro():
    def model():
        prior = numpyro.param(
            "prior", lambda key: fnp.Mixture.init(key, [fp.Coupling(2, hidden_dims=3), fp.ActNorm(2)])
        )
        with numpyro.plate("rows", 3):
            return numpyro.sample("z", prior())

    site = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace()
    assert site["z"]["value"].shape == (3, 2)
    assert isinstance(site["prior"]["value"], fnp.Mixture)
    draws = numpyro.infer.Predictive(model, num_samples=4)(KEY)["z"]
    assert draws.shape == (4, 3, 2)
    mixture = moved(site["prior"]["value"], np.random.default_rng(0))
    gradient = jax.jit(jax.grad(lambda mixture: mixture.log_prob(draws).sum()))(mixture)
    assert jnp.abs(gradient.gate["logits"]).sum() > 0
    moved_one = jax.jit(jax.vmap(lambda mixture, z: mixture().log_prob(z), in_axes=(None, 0)))(mixture, draws)
    np.testing.assert_allclose(moved_one, mixture.log_prob(draws), rtol=1e-12)


@both
def test_a_value_outside_of_the_support_has_no_density(language):
    positive = fp.Elementwise(1, fp.Softplus())
    mixture = make(language, [fp.Chain([fp.ActNorm(1), positive]), positive])
    if language == "pyro":
        with pytest.raises(ValueError, match=r"[Ee]xpected value argument"):
            mixture.log_prob(torch.tensor([-1.0]))
        distribution = fpp.Mixture(list(mixture.flows))()
        distribution._validate_args = False
        assert distribution.log_prob(torch.tensor([-1.0])) == -torch.inf
    else:
        with pytest.warns(UserWarning, match="Out-of-support"):
            assert mixture.log_prob(jnp.array([-1.0])) == -jnp.inf


@both
def test_what_is_no_mixture_is_refused_in_words(language):
    ours, flow = (fpp, fpp.Flow(fp.ActNorm(2))) if language == "pyro" else (fnp, fnp.Flow.init(KEY, fp.ActNorm(2)))
    for flows, told in (
        ([], "one flow or more"),
        ([fp.ActNorm(2), fp.ActNorm(3)], r"same y_shape, got \(2,\) and \(3,\)"),
        ([fp.ActNorm(1), fp.Elementwise(1, fp.Softplus())], "same y_support"),
        ([fp.maf(2, context_dim=1), fp.maf(2, context_dim=2)], "same context_dim or 0, got 1 and 2"),
        ([flow, flow], "given twice"),
    ):
        with pytest.raises(ValueError, match=told):
            make(language, flows)
    with pytest.raises(ValueError, match="no flow takes a context"):
        make(language, [fp.ActNorm(2)], hidden_dims=3)
    with pytest.raises(TypeError, match=r"a list of flows, such as \[bijection\] \* 3"):
        make(language, fp.ActNorm(2))
    with pytest.raises(TypeError, match=r"a list of flows, .* got one int"):
        make(language, 3)
    with pytest.raises(TypeError, match="Bijection"):
        make(language, [3])
    conditional = make(language, [fp.Coupling(2, hidden_dims=2, context_dim=1)])
    with pytest.raises(ValueError, match="needs a context whose last axis has size 1"):
        conditional()
    assert "Mixture" in ours.__all__


def test_a_mixture_of_numpyro_needs_its_weights_and_values():
    flow = fnp.Flow.init(KEY, fp.Coupling(2, hidden_dims=2, context_dim=1))
    with pytest.raises(TypeError, match="gate is missing"):
        fnp.Mixture([flow], hidden_dims=2)
    assert fnp.Mixture([flow]).gate["0"]["weight"].shape == (1, 1)
    mixture = fnp.Mixture.init(KEY, [fp.ActNorm(2)])
    with pytest.raises(TypeError, match=r"x has no values inside of jax\.jit"):
        jax.jit(lambda x: mixture.init_from(x).gate)(jnp.ones((3, 2)))


@both
def test_flows_without_weights_mix_too(language, rng):
    mixture = make(language, [fp.Permute((1, 0))] * 2)
    (x,) = arrays(language, rng.normal(size=(3, 2)))
    np.testing.assert_allclose(mixture.log_prob(x).tolist(), norm.logpdf(x).sum(axis=-1), rtol=1e-12)


@pytest.mark.parametrize("noise", [0.0, 1 - 2**-24])
def test_torch_draws_none_of_a_flow_without_weight(noise, monkeypatch):
    mixture = fpp.Mixture(NORMALS)
    monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: torch.full(shape, noise, **kwargs))
    for k, empty in enumerate([[0.0, -torch.inf], [-torch.inf, 0.0]]):
        mixture.gate.assign({"logits": torch.tensor(empty)})
        pyro.set_rng_seed(0)
        drawn = torch.stack([flow().sample((3,)) for flow in mixture.flows])
        pyro.set_rng_seed(0)
        torch.testing.assert_close(mixture.sample((3,)), drawn[k])


def test_torch_maps_over_draws():
    mixture = fpp.Mixture(NORMALS)
    draws = torch.func.vmap(lambda one: mixture.sample() + one, randomness="different")(torch.zeros(2))
    assert draws[0] != draws[1]


@pytest.mark.stress
def test_torch_compiles_it_to_one_graph():
    mixture, x = fpp.Mixture(NORMALS), torch.ones(4, 1)
    torch._dynamo.reset()
    with pyro.validation_enabled(False):
        compiled = torch.compile(mixture.log_prob, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), mixture.log_prob(x))
