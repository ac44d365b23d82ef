"""Guides and fits as files: they draw and score as before, in either language, without model, data or training."""

import copy
import dataclasses
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro.distributions import biject_to as numpyro_biject_to
from numpyro.infer import Predictive
from pyro.infer.autoguide import AutoNormal
from torch.distributions import biject_to

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl import serialization
from flowppl._arrays import tree as _tree
from flowppl.diagnostics import Diagnosis
from flowppl.inference.fitting import History
from flowppl.numpyro.transforms import init_params
from flowppl.pyro.target import Target

Y = np.array([1.0, -2.0, 0.5, 3.0])
CHECK = Diagnosis(0.3, 0.67, 900.0, 1000, -4.2, 0.01, -4.1, 0.02, 0.0)
MARGINALS = dataclasses.replace(CHECK, marginal_k_hat={"theta[0,1]": 0.4, "x": 0.1})
HISTORY = History(np.array([3.0, np.nan, 2.0]), (MARGINALS, CHECK), CHECK, "rounds")


def pyro_model(y):
    loc = pyro.sample("loc", pdist.Normal(0.0, 5.0))
    scale = pyro.sample("a.scale", pdist.HalfNormal(2.0))
    with pyro.plate("groups", 4):
        theta = pyro.sample("theta", pdist.Uniform(torch.tensor([-9.0, -8.0, -7.0, -6.0]), 9.0))
        pyro.sample("y", pdist.Normal(loc + theta, scale), obs=torch.as_tensor(y))


def numpyro_model(y):
    loc = numpyro.sample("loc", ndist.Normal(0.0, 5.0))
    scale = numpyro.sample("a.scale", ndist.HalfNormal(2.0))
    numpyro.deterministic("variance", scale**2)
    with numpyro.plate("groups", 4):
        theta = numpyro.sample("theta", ndist.Uniform(jnp.array([-9.0, -8.0, -7.0, -6.0]), 9.0))
        numpyro.sample("y", ndist.Normal(loc + theta, scale), obs=y)


def small(dim):
    return fp.realnvp(dim, num_flows=2, hidden_dims=8)


def shaken(tree):
    """Weights away from where the guide starts."""
    rng = np.random.default_rng(0)
    return _tree.map_tree(lambda leaf: np.asarray(leaf) + 0.2 * rng.normal(size=np.shape(leaf)), tree)


def pyro_guide(model=pyro_model, args=(Y,)):
    guide = fpp.AutoFlow(model, small, init_scale=0.5)
    guide.setup(*args)
    weights = guide.flow.transform.weights
    params = _tree.select(guide.flow.bijection.parameters(), _tree.map_tree(torch.Tensor.detach, weights.tree()))
    weights.assign(_tree.map_tree(torch.tensor, shaken(params)))
    return guide


@pytest.fixture(scope="module")
def theirs():
    """A guide of NumPyro and its params."""
    guide = fnp.AutoFlow(numpyro_model, small, init_scale=0.5, prefix="mine")
    return guide, _tree.map_tree(jnp.asarray, shaken(guide.setup(Y)))


def check_same_pyro(found, guide):
    z = torch.linspace(-1, 1, 3 * guide.latent_dim).reshape(3, -1)
    assert torch.equal(found.get_posterior().log_prob(z), guide.get_posterior().log_prob(z))
    for look in (
        lambda g: g.sample_posterior(sample_shape=(2, 3)),
        lambda g: g.median(),
        lambda g: g.quantiles([0.1, 0.9]),
    ):
        check_same_draws(look, found, guide)


def check_same_draws(look, found, guide):
    pyro.set_rng_seed(1)
    expected = look(guide)
    pyro.set_rng_seed(1)
    for name, value in look(found).items():
        assert torch.equal(value, expected.pop(name))
    assert not expected


def check_same_numpyro(found, guide, params):
    z = jnp.linspace(-1, 1, 3 * guide.latent_dim).reshape(3, -1)
    ours = found.setup()
    np.testing.assert_array_equal(found.get_posterior(ours).log_prob(z), guide.get_posterior(params).log_prob(z))
    expected = guide.sample_posterior(jax.random.key(1), params, sample_shape=(2,))
    for name, value in found.sample_posterior(jax.random.key(1), ours, sample_shape=(2,)).items():
        np.testing.assert_array_equal(value, expected.pop(name), strict=True)
    assert not expected


@pytest.fixture
def path(tmp_path):
    return tmp_path / "guide.safetensors"


def test_a_pyro_guide_is_the_same_again(path):
    guide = pyro_guide()
    fp.save(path, guide)
    state = torch.get_rng_state()
    found = fp.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (found, copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        check_same_pyro(other, guide)
    fp.save(path, found)
    check_same_pyro(fp.load(path), guide)
    found.load_state_dict(pyro_guide().state_dict(), strict=True)


def test_a_numpyro_guide_is_the_same_again(path, theirs):
    guide, params = theirs
    fp.save(path, guide, params)
    found = fp.load(path)
    check_same_numpyro(found, guide, params)
    expected = guide.quantiles(params, [0.1, 0.9])
    for name, value in found.quantiles(found.setup(), [0.1, 0.9]).items():
        np.testing.assert_array_equal(value, expected[name], strict=True)
    check_same_numpyro(pickle.loads(pickle.dumps(found)), guide, params)
    content = path.read_bytes()
    fp.save(path, found, found.setup())
    assert path.read_bytes() == content


def test_the_other_language_gives_the_same_numbers(path, theirs, rng):
    x = rng.normal(size=(5, 6))
    guide = pyro_guide()
    fp.save(path, guide)
    check_agreement(guide, fp.load(path, "numpyro"), x)
    guide, params = theirs
    fp.save(path, guide, params)
    found = fp.load(path, "pyro")
    check_agreement(found, fp.load(path), x)
    assert list(found._unconstrained_shapes) == guide._names == ["loc", "a.scale", "theta"]


def check_agreement(ours, theirs, x):
    params = theirs.setup()
    with torch.no_grad():
        expected = ours.get_transform()(torch.tensor(x))
        z = theirs.get_transform(params)(x)
        np.testing.assert_allclose(z, expected, rtol=1e-10, atol=1e-10)
        density = ours.get_posterior().log_prob(expected)
    np.testing.assert_allclose(theirs.get_posterior(params).log_prob(z), density, rtol=1e-10, atol=1e-10)
    sites = ours._constrain(expected)
    for name, value in theirs._unpack_and_constrain(z, params).items():
        np.testing.assert_allclose(value, sites.pop(name), rtol=1e-10, atol=1e-10)
    assert not sites


CHILD = """
import sys, json, torch, jax, numpy as np, flowppl as fp
jax.config.update("jax_enable_x64", True)
torch.set_default_dtype(torch.float64)
guide = fp.load(sys.argv[1])
torch.manual_seed(3)
theirs = fp.load(sys.argv[2])
np.savez(
    sys.argv[3],
    pyro=guide.sample_posterior(sample_shape=(5,))["theta"].numpy(),
    numpyro=theirs.sample(5)["theta"],
)
"""


def test_a_new_process_draws_the_same(tmp_path, theirs):
    guide, fit = pyro_guide(), numpyro_fit(theirs)
    paths = [tmp_path / name for name in ("pyro.safetensors", "numpyro.safetensors", "draws.npz")]
    fp.save(paths[0], guide)
    fit.save(paths[1])
    subprocess.run([sys.executable, "-c", CHILD, *map(str, paths)], check=True)
    draws = np.load(paths[2])
    torch.manual_seed(3)
    np.testing.assert_array_equal(draws["pyro"], guide.sample_posterior(sample_shape=(5,))["theta"])
    np.testing.assert_array_equal(draws["numpyro"], fit.sample(5)["theta"])


# Supports of both languages, for six unconstrained numbers.
SUPPORTS = {
    "real": lambda c, a: c.real,
    "positive": lambda c, a: c.positive,
    "nonnegative": lambda c, a: c.nonnegative,
    "greater-than": lambda c, a: c.greater_than(a([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
    "greater-than-eq": lambda c, a: c.greater_than_eq(2.0),
    "less-than": lambda c, a: c.less_than(a(-1.5)),
    "unit-interval": lambda c, a: c.unit_interval,
    "interval": lambda c, a: c.interval(-2.0, a([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
    "real-vector": lambda c, a: c.real_vector,
    "independent": lambda c, a: c.independent(c.interval(a([-1.0]), 3.0), 1),
    "simplex": lambda c, a: c.simplex,
    "simplices": lambda c, a: c.independent(c.simplex, 1),
    "ordered": lambda c, a: c.ordered_vector,
    "positive-ordered": lambda c, a: c.positive_ordered_vector,
    "corr-cholesky": lambda c, a: c.corr_cholesky,
    "corr-matrix": lambda c, a: c.corr_matrix,
    "softplus-positive": lambda c, a: c.softplus_positive,
}
# Those of NumPyro for which Pyro has another of the same map.
RENAMED = {
    "less-than-eq": lambda c: c.less_than_eq(2.0),
    "open-interval": lambda c: c.open_interval(-1.0, 2.0),
    "circular": lambda c: c.circular,
    "real-matrix": lambda c: c.real_matrix,
}
NUMPYRO_ONLY = {
    "lower-cholesky": lambda c: c.lower_cholesky,
    "softplus-lower-cholesky": lambda c: c.softplus_lower_cholesky,
    "scaled-unit-lower-cholesky": lambda c: c.scaled_unit_lower_cholesky,
    "positive-definite": lambda c: c.positive_definite,
    "positive-semidefinite": lambda c: c.positive_semidefinite,
    "l1-ball": lambda c: c.l1_ball,
    "zero-sum": lambda c: c.zero_sum(1),
}


def with_supports(supports):
    """A guide of a NumPyro model with a latent of six unconstrained numbers for each support, and its params."""

    def model():
        for name, support in supports.items():
            z = jnp.zeros((2, 3) if name in ("simplices", "real-matrix") else 6)
            shape = jnp.shape(numpyro_biject_to(support)(z))
            batch = len(shape) - support.event_dim
            numpyro.sample(name, ndist.ImproperUniform(support, shape[:batch], shape[batch:]))

    guide = fnp.AutoFlow(model, small, prefix="mine")
    guide._setup_prototype()  # without a start, which would take long to compile
    params = {"mine_flow": init_params(guide.bijection, jax.random.key(0))}
    return guide, _tree.map_tree(jnp.asarray, shaken(params))


def test_supports_of_both_languages(path, rng):
    supports = {name: make(ndist.constraints, jnp.asarray) for name, make in SUPPORTS.items()}
    supports |= {name: make(ndist.constraints) for name, make in RENAMED.items()}
    guide, params = with_supports(supports)
    fp.save(path, guide, params)
    there = fp.load(path, "pyro")
    z = 1.5 * rng.normal(size=guide.latent_dim)
    values = there._constrain(torch.tensor(z))
    check_values(guide, fp.load(path), z)
    for name, value in guide._constrain(guide._unpack_latent(jnp.asarray(z))).items():
        np.testing.assert_allclose(value, values[name], rtol=1e-10, atol=1e-10, err_msg=name)
    for i, (name, make) in enumerate(SUPPORTS.items()):
        part = torch.tensor(z[6 * i : 6 * i + 6].reshape((2, 3) if name == "simplices" else 6))
        assert torch.equal(values[name], biject_to(make(pdist.constraints, torch.tensor))(part)), name
    fp.save(path, there)
    check_same_pyro(fp.load(path), there)
    check_values(guide, fp.load(path, "numpyro"), z)


def check_values(guide, found, z):
    """Check that an unconstrained vector means the same to the last bit."""
    ours, theirs = (g._constrain(g._unpack_latent(jnp.asarray(z))) for g in (guide, found))
    for name in (*ours, *theirs):
        np.testing.assert_array_equal(ours[name], theirs[name], strict=True, err_msg=name)


def test_supports_of_numpyro_alone(path, rng):
    guide, params = with_supports({name: make(ndist.constraints) for name, make in NUMPYRO_ONLY.items()})
    fp.save(path, guide, params)
    check_values(guide, fp.load(path), rng.normal(size=guide.latent_dim))
    with pytest.raises(ValueError, match=r"site 'lower-cholesky' has the support .* Pyro does not map; .*'numpyro'"):
        fp.load(path, "pyro")
    for name in NUMPYRO_ONLY:
        with pytest.raises(ValueError, match=f"site {name!r} has the support"):
            load_only(name, path)


def load_only(name, path):
    """Load into Pyro a file with nothing but this latent."""
    config, _ = serialization.read_file(path)
    (latent,) = (latent for latent in config["guide"]["latents"].values() if latent["name"] == name)
    fpp.serialization._make_support(name, latent["support"])


def test_half_open_intervals_of_pyro(path, rng):
    class HalfOpen(pdist.Uniform):
        support = pdist.constraints.half_open_interval(-1.0, 2.0)

    guide = pyro_guide(lambda: pyro.sample("x", HalfOpen(-1.0, 2.0).expand([3]).to_event(1)), ())
    fp.save(path, guide)
    check_same_pyro(fp.load(path), guide)
    check_agreement(guide, fp.load(path, "numpyro"), rng.normal(size=(2, 3)))


class Anywhere(type(ndist.constraints.real)):
    """A support of a user's own."""


@numpyro_biject_to.register(Anywhere)
def from_real_to_anywhere(support):
    return ndist.transforms.IdentityTransform()


def test_supports_without_a_name_are_refused(path):
    guide, params = with_supports({"x": Anywhere()})
    with pytest.raises(TypeError, match=r"site 'x', whose support is nywhere.* are real, .* Pickle the guide"):
        fp.save(path, guide, params)
    assert not path.exists()


def pyro_fit(theirs):
    guide = pyro_guide()
    params = dict(guide.setup()) | {"w": torch.tensor([1.0, 2.0])}
    return fpp.Fit(guide, params, HISTORY, pyro_model, ((Y,), {}))


def numpyro_fit(theirs):
    guide, params = theirs
    return fnp.Fit(guide, params | {"net": {"w": jnp.ones(2)}}, HISTORY, numpyro_model, ((Y,), {}), jax.random.key(7))


@pytest.mark.parametrize("make", [pyro_fit, numpyro_fit])
def test_fits_keep_what_is_known_of_them(make, path, theirs):
    pytest.importorskip("arviz")
    fit = make(theirs)
    fit.save(path)
    for backend in ("pyro", "numpyro"):
        found = fp.load(path, backend)
        np.testing.assert_array_equal(found.losses, HISTORY.losses)
        assert (found.checks, found.history.check, found.stopped) == (HISTORY.checks, CHECK, "rounds")
        assert (found.elbo, found.elbo_se, found.k_hat, found.num_skipped) == (-4.2, 0.01, 0.3, 1)
        assert repr(found) == repr(fit)
        assert found.sample(3)["theta"].shape == (3, 4)
        assert found.to_arviz(5).posterior["theta"].shape == (1, 5, 4)
        for need in (found.diagnose, found.resample):
            with pytest.raises(RuntimeError, match=r"loaded without it: load\(path, model=model\), .* args=\.\.\."):
                need()
    found = fp.load(path)
    assert {name for name, _ in _tree.leaves(found.params)} == {name for name, _ in _tree.leaves(fit.params)}
    for name, value in _tree.leaves(fit.params):
        same = dict(_tree.leaves(found.params))[name]
        np.testing.assert_array_equal(same, value.detach() if torch.is_tensor(value) else value, strict=True)
    found.save(path)
    assert repr(fp.load(path)) == repr(fit)


def test_a_fit_given_its_model_and_data_again(path, theirs):
    fit = numpyro_fit(theirs)
    fit.save(path)
    assert "variance" not in fp.load(path).sample(3)
    found = fp.load(path, model=numpyro_model, args=(Y,))
    expected, draws = fit.sample(3), found.sample(3)
    assert draws.keys() == expected.keys() >= {"variance"}
    for name, value in expected.items():
        np.testing.assert_array_equal(draws[name], value)
    assert found.diagnose(500).num_draws == 500
    fit = pyro_fit(theirs)
    fit.save(path)
    found = fp.load(path, model=pyro_model, kwargs={"y": Y})
    pyro.set_rng_seed(1)
    expected = fit.diagnose(500)
    pyro.set_rng_seed(1)
    assert found.diagnose(500) == expected


def test_a_model_that_is_none_is_told(path):
    fp.save(path, pyro_guide())
    with pytest.raises(TypeError, match="load: model must be a function with sample sites, got 3"):
        fp.load(path, model=3)
    with pytest.raises(TypeError, match=r"load: args given, but .* holds a guide"):
        fp.load(path, model=pyro_model, args=(Y,))


@pytest.mark.parametrize("ask", ["sample", "quantiles", "predict", "resample", "diagnose", "to_arviz"])
@pytest.mark.parametrize(("make", "model"), [(pyro_fit, pyro_model), (numpyro_fit, numpyro_model)])
def test_a_fit_given_a_model_of_other_latents_is_refused(make, model, ask, path, theirs):
    """Its draws would be those of no site of that model, which would predict from the prior."""
    host, dist = (pyro, pdist) if model is pyro_model else (numpyro, ndist)

    def other(y):
        mean = host.sample("mean", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        host.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    make(theirs).save(path)
    arguments = {"quantiles": ([0.5],)}.get(ask, ())
    found = fp.load(path, model=other, args=(torch.as_tensor(Y) if host is pyro else jnp.asarray(Y),))
    with pytest.raises(ValueError, match="site 'loc' was a latent of the model when this guide was made and is none"):
        getattr(found, ask)(*arguments)


def test_a_pyro_guide_goes_on_training(path):
    guide = pyro_guide()
    fp.save(path, guide)
    found = fp.load(path)
    pyro.set_rng_seed(1)
    expected = step_pyro(guide)
    pyro.set_rng_seed(1)
    assert step_pyro(found) == expected
    result = fpp.fit(pyro_model, Y, guide=found, num_steps=100, num_particles=4, progress=False)
    assert result.sample(2)["theta"].shape == (2, 4)
    z = torch.linspace(-1, 1, 6)
    densities = [Target(g, (Y,), {}, z).log_prob(z) for g in (guide, fp.load(path, model=pyro_model))]
    assert densities[0] == densities[1]


def step_pyro(guide):
    svi = pyro.infer.SVI(pyro_model, guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    return [svi.step(Y) for _ in range(3)]


def test_a_numpyro_guide_goes_on_training(path, theirs):
    guide, params = theirs
    fp.save(path, guide, params)
    found = fp.load(path)

    svi = numpyro.infer.SVI(numpyro_model, found, numpyro.optim.Adam(1e-3), numpyro.infer.Trace_ELBO())
    start = svi.get_params(svi.init(jax.random.key(1), Y))
    for path, leaf in _tree.leaves(params):
        np.testing.assert_array_equal(dict(_tree.leaves(start))[path], leaf)
    draws = Predictive(found, params=found.setup(), num_samples=3)(jax.random.key(3))
    assert draws["theta"].shape == (3, 4)


def test_params_go_with_numpyro_guides_only(path, theirs):
    guide, params = theirs
    with pytest.raises(ValueError, match=r"saved with its parameters: save\(path, guide, params\)"):
        fp.save(path, guide)
    with pytest.raises(KeyError, match="params has no 'mine_flow'"):
        fp.save(path, guide, {})
    for other in (pyro_guide(), fpp.Flow(fp.Planar(2)), numpyro_fit(theirs)):
        with pytest.raises(ValueError, match=r"params go with an AutoFlow of NumPyro only; this \w+ has its own"):
            fp.save(path, other, params)
    assert not path.exists()


def test_what_cannot_be_saved_is_named(path):
    for guide, args in ((fpp.AutoFlow(pyro_model), ()), (fnp.AutoFlow(numpyro_model), ({},))):
        with pytest.raises(RuntimeError, match="has not seen its model yet: call guide"):
            fp.save(path, guide, *args)
    with pytest.raises(TypeError, match=r"AutoFlow or a Fit, .* got AutoNormal; of a guide of the host .* pickle it"):
        fp.save(path, AutoNormal(pyro_model))
    with pytest.raises(TypeError, match="cannot save a fit of AutoNormal, only of AutoFlow"):
        fp.save(path, fpp.Fit(AutoNormal(pyro_model), {}, HISTORY, pyro_model, ((), {})))
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it first"):
        fp.save(path.parent / "nowhere" / "guide.safetensors", pyro_guide())
    assert not path.exists()


def test_a_pyro_guide_that_has_not_seen_its_model_loads_no_state():
    state = pyro_guide().state_dict()
    with pytest.raises(RuntimeError, match=r"call guide.setup\(\*args\) first, or save and load with flowppl.save"):
        fpp.AutoFlow(pyro_model).load_state_dict(state)


def test_single_precision_stays(path):
    guide = pyro_guide().to(torch.float32)
    fp.save(path, guide)
    assert fp.load(path).sample_posterior()["loc"].dtype == torch.float32
