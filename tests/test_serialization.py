"""Flows as files: the same numbers in the other language, and a clear word where that cannot be."""

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro.distributions as pdist
import pytest
import torch
from catalogue import BIJECTIONS, RECIPES, context_for, draw

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
import flowppl.serialization
from flowppl._arrays import tree as _tree
from flowppl.serialization import load, save


def pyro_flow(bijection, rng, base=None):
    flow = fpp.Flow(bijection, base)
    flow.transform.weights.assign(_tree.map_tree(torch.tensor, draw(bijection, rng, 0.5)))
    return flow


def numpyro_flow(bijection, rng, base=None):
    return fnp.Flow(bijection, _tree.map_tree(jnp.asarray, draw(bijection, rng, 0.5)), base)


def weights(flow):
    """The weights of either language, by name, as NumPy arrays."""
    tree = flow.transform.weights.tree() if isinstance(flow, fpp.Flow) else flow.params
    return {path: np.asarray(leaf.detach() if torch.is_tensor(leaf) else leaf) for path, leaf in _tree.leaves(tree)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "flow.safetensors"


@pytest.mark.parametrize("name", BIJECTIONS | RECIPES)
def test_every_bijection_goes_to_the_other_language_and_back(name, rng, path):
    bijection = (BIJECTIONS | RECIPES)[name]
    start = pyro_flow(bijection, rng)
    save(path, start)
    there = load(path, backend="numpyro")
    assert type(there) is fnp.Flow
    save(path, there)
    back = load(path, backend="pyro")
    assert start.bijection == there.bijection == back.bijection
    assert hash(start.bijection) == hash(there.bijection)
    expected = weights(start)
    for key, value in weights(there).items():
        np.testing.assert_array_equal(value, expected[key], strict=True)
    assert weights(back).keys() == expected.keys()
    for key, value in weights(back).items():
        np.testing.assert_array_equal(value, expected[key], strict=True)
    assert back.state_dict().keys() == start.state_dict().keys()


@pytest.mark.parametrize(
    "name", ["radial", "coupling-mixed", "repeat", "repeat-scan", "lu-permuted", "coupling-spline"]
)
def test_the_other_language_gives_the_same_numbers(name, rng, path):
    bijection = (BIJECTIONS | RECIPES)[name]
    context, y = context_for(bijection, rng, (4,)), rng.normal(size=(4, *bijection.x_shape))
    ours, theirs = pyro_flow(bijection, rng), numpyro_flow(bijection, rng)
    torch_context = None if context is None else torch.tensor(context)
    save(path, ours)
    score = jax.jit(lambda flow: flow(context).log_prob(y))
    found = score(load(path, "numpyro"))
    expected = ours(torch_context).log_prob(torch.tensor(y)).detach()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    save(path, theirs)
    found = load(path, "pyro")(torch_context).log_prob(torch.tensor(y)).detach()
    np.testing.assert_allclose(found, score(theirs), rtol=1e-12, atol=1e-12)


def test_the_language_is_the_one_saved_from_unless_told(rng, path):
    save(path, pyro_flow(fp.Planar(2), rng))
    assert isinstance(load(path), fpp.Flow)
    save(path, numpyro_flow(fp.Planar(2), rng))
    assert isinstance(load(str(path)), fnp.Flow)


def test_transforms_are_saved_as_transforms(rng, path):
    for transform in (fpp.Planar(3, num_flows=2), fpp.realnvp(3), fpp.maf(3).inv):
        save(path, transform)
        for backend, kind in (("pyro", fpp.FlowTransform), ("numpyro", fnp.FlowTransform)):
            found = load(path, backend)
            assert type(found) is kind
            assert found.bijection == transform.bijection
    transform = fnp.Planar.init(jax.random.key(0), 3)
    save(path, transform)
    assert load(path) == transform


@pytest.mark.parametrize("flow", [pyro_flow, numpyro_flow])
def test_single_precision_stays(flow, rng, path):
    flow = flow(fp.realnvp(3, num_flows=2, hidden_dims=4), rng)
    flow = flow.to(torch.float32) if isinstance(flow, fpp.Flow) else jax.tree.map(lambda a: a.astype("float32"), flow)
    save(path, flow)
    for backend in ("pyro", "numpyro"):
        found = load(path, backend)
        for key, value in weights(flow).items():
            if key in weights(found):
                np.testing.assert_array_equal(value, weights(found)[key], strict=True)
    flow = load(path, "pyro")
    assert flow().log_prob(flow().sample()).dtype == torch.float32


def test_double_precision_is_not_lost_in_silence(rng, path):
    base = pdist.Laplace(torch.zeros(2), 1.0).to_event(1)
    for flow in (pyro_flow(fp.Planar(2), rng), pyro_flow(fp.Permute((1, 0)), rng, base)):
        save(path, flow)
        jax.config.update("jax_enable_x64", False)
        try:
            with pytest.warns(UserWarning, match=r"holds float64, .* float32 .* jax.config.update\('jax_enable_x64'"):
                load(path, "numpyro")
        finally:
            jax.config.update("jax_enable_x64", True)


def test_arrays_in_any_memory_order(rng, path):
    flow = numpyro_flow(fp.realnvp(4, num_flows=2, hidden_dims=8), rng)
    flow = dataclasses.replace(flow, params=_tree.map_tree(lambda a: np.asfortranarray(a), flow.params))
    save(path, flow)
    for key, value in weights(load(path)).items():
        np.testing.assert_array_equal(value, weights(flow)[key])


def test_batched_weights_stay_in_numpyro(rng, path):
    bijection = fp.Coupling(2, hidden_dims=4)
    save(path, fnp.Flow(bijection, _tree.map_tree(jnp.asarray, draw(bijection, rng, batch=(3,)))))
    assert load(path)().batch_shape == (3,)
    with pytest.raises(ValueError, match=r"network.0.weight has batch axes, .* load the file with backend='numpyro'"):
        load(path, "pyro")


def test_loading_draws_nothing(path):
    save(path, fpp.Flow(fp.realnvp(2)))
    state = torch.get_rng_state()
    load(path)
    assert torch.equal(torch.get_rng_state(), state)


SCALE_TRIL = np.array([[1.0, 0.0], [0.5, 2.0]])
LOCS = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 6.0]])

# Each builds a base distribution over two coordinates in either language.
BASES = {
    "normal": lambda d, a: d.Normal(a([0.0, 1.0]), a([1.0, 2.0])),
    "normal-event": lambda d, a: d.Normal(a([0.0, 1.0]), 2.0).to_event(1),
    "normal-expanded": lambda d, a: d.Normal(0.0, 2.0).expand([2]).to_event(1),
    "expanded-event": lambda d, a: d.Normal(a([0.0, 1.0]), 2.0).to_event(1).expand([3]),
    "laplace": lambda d, a: d.Laplace(a([0.0, 1.0]), a([1.0, 2.0])).to_event(1),
    "cauchy": lambda d, a: d.Cauchy(a([0.0, 1.0]), 0.5).to_event(1),
    "student-t": lambda d, a: d.StudentT(5.0, a([0.0, 1.0]), a([1.0, 2.0])).to_event(1),
    "uniform": lambda d, a: d.Uniform(a([-3.0, -4.0]), a([3.0, 4.0])).to_event(1),
    "multivariate-normal": lambda d, a: d.MultivariateNormal(a([0.0, 1.0]), scale_tril=a(SCALE_TRIL)),
    "mixture": lambda d, a: d.MixtureSameFamily(
        d.Categorical(probs=a([0.2, 0.3, 0.5])), d.Normal(a(LOCS), 1.0).to_event(1)
    ),
    "mixture-logits": lambda d, a: d.MixtureSameFamily(
        d.Categorical(logits=a([0.2, 0.3, 0.5])), d.MultivariateNormal(a(LOCS), scale_tril=a(SCALE_TRIL))
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_base_distributions_go_along(name, rng, path):
    if name == "mixture" and numpyro.__version__.startswith("0.21."):
        pytest.skip("NumPyro 0.21 has no mixture of independent distributions")
    bijection, y = fp.ElementwiseAffine(2), rng.uniform(-0.5, 0.5, size=(4, 1, 2))
    params = draw(bijection, rng, 0.1)
    ours = fpp.Flow(bijection, BASES[name](pdist, torch.tensor))
    ours.transform.weights.assign(_tree.map_tree(torch.tensor, params))
    theirs = fnp.Flow(bijection, _tree.map_tree(jnp.asarray, params), BASES[name](ndist, jnp.asarray))
    expected = ours().log_prob(torch.tensor(y)).detach()
    for flow in (ours, theirs):
        save(path, flow)
        pyro_found, numpyro_found = load(path, "pyro"), load(path, "numpyro")
        assert pyro_found().batch_shape == numpyro_found().batch_shape == ours().batch_shape
        np.testing.assert_allclose(pyro_found().log_prob(torch.tensor(y)).detach(), expected, rtol=1e-12)
        np.testing.assert_allclose(numpyro_found().log_prob(y), expected, rtol=1e-12)


def test_what_single_precision_loses_is_told_where_the_file_was_loaded(path):
    save(path, fpp.Flow(fp.ElementwiseAffine(2)))  # float64
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.warns(UserWarning, match="the file holds float64, which JAX makes float32") as told:
            load(path, "numpyro")
    finally:
        jax.config.update("jax_enable_x64", True)
    assert {warning.filename for warning in told} == {__file__}


def test_python_numbers_in_a_base_take_the_default_precision(path):
    jax.config.update("jax_enable_x64", False)
    try:
        base = ndist.Normal(0.0, 2.0).expand((2,)).to_event(1)
        save(path, fnp.Flow(fp.Permute((1, 0)), {}, base))
        assert load(path)().log_prob(jnp.zeros(2)).dtype == jnp.float32  # and no warning
    finally:
        jax.config.update("jax_enable_x64", True)


@dataclasses.dataclass(frozen=True)
class Shear(fp.Bijection):
    """A user's own bijection, with a field of each kind."""

    dim: int
    factors: tuple
    label: str | None = None

    def parameters(self):
        return {"shift": fp.Parameter((self.dim,))}

    def forward(self, params, x, context=None):
        return x + params["shift"], 0 * x[..., 0]

    def inverse(self, params, y, context=None):
        return y - params["shift"], 0 * y[..., 0]


def test_own_classes_are_named_when_loading(path):
    factors = (0.1, 1 / 3, float("inf"), -0.0, 5e-324, 2, True, None, (np.float64(0.7), np.int64(3)))
    bijection = fp.Chain([Shear(2, factors, "café"), fp.Planar(np.int64(2))])
    save(path, fpp.FlowTransform(bijection))
    found = load(path, "numpyro", classes=[Shear]).bijection
    assert found == bijection
    assert repr(found.bijections[0].factors) == repr((*factors[:-1], (0.7, 3)))
    with pytest.raises(ValueError, match=r"unknown class 'Shear'; if it is yours, load\(path, classes=\(Shear,\)\)"):
        load(path)


def test_a_name_of_ours_is_refused_for_another_class(path):
    impostor = type("Planar", (Shear,), {})
    with pytest.raises(TypeError, match=r"cannot save bijection: flowppl has another class Planar"):
        save(path, fpp.FlowTransform(impostor(2, ())))


@dataclasses.dataclass(frozen=True)
class OwnNetwork:
    """A hashable network that is data."""

    width: int

    def parameters(self):
        return {"weight": fp.Parameter((1, self.width))}

    def constants(self):
        return {}

    def __call__(self, params, x, context=None):
        return x @ params["weight"]


def test_own_networks_are_saved_if_they_are_dataclasses(path):
    transform = fpp.FlowTransform(fp.Coupling(2, network=OwnNetwork(2)))
    save(path, transform)
    assert load(path, classes=(OwnNetwork,)).bijection == transform.bijection
    opaque = type("Opaque", (), dict(vars(OwnNetwork), __init__=lambda self: setattr(self, "width", 2)))
    for name in ("__dataclass_fields__", "__setattr__", "__eq__", "__hash__"):
        delattr(opaque, name)
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"cannot save bijection.network, a Opaque: .* frozen dataclasses of these"):
        save(path, fpp.FlowTransform(fp.Coupling(2, network=opaque())))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: fp.Planar(2), TypeError, "expected a Flow, FlowTransform or Mixture, .* got Planar"),
        (
            lambda: fpp.fit_density(fp.Planar(2), torch.randn(40, 2), num_epochs=1, progress=False),
            TypeError,
            "the result of fit_density: save its flow, result.flow",
        ),
        (
            lambda: fpp.FlowTransform(fp.Coupling(2, context_dim=1)).condition(torch.ones(1)),
            ValueError,
            r"cannot save a transform at a context: .* call condition\(context\) later",
        ),
        (lambda: fpp.Flow(fp.Planar(2), torch.nn.Linear(1, 1)), TypeError, "base distribution, a Linear; .* Normal, "),
        (
            lambda: fpp.Flow(fp.Planar(2), pdist.Gamma(torch.ones(2), 1.0)),
            TypeError,
            "base distribution, a Gamma; .* Save flow.transform instead",
        ),
        (
            lambda: fpp.Flow(fp.Planar(2), pdist.Normal(torch.ones(2), 1.0).mask(True)),
            TypeError,
            "base distribution, a MaskedDistribution",
        ),
        (
            lambda: fnp.Flow.init(jax.random.key(0), fp.Planar(2), ndist.Gamma(jnp.ones(2), 1.0).to_event(1)),
            TypeError,
            "base distribution, a Gamma",
        ),
    ],
)
def test_what_cannot_be_saved_is_named(build, error, message, path):
    with pytest.raises(error, match=message):
        save(path, build())
    assert not path.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": print}, "load: model given, but .* holds a flow: a guide takes its model, a fit"),
        ({"args": (1.0,), "kwargs": {"y": 2.0}}, "load: args, kwargs given, but .* holds a flow"),
    ],
)
def test_a_model_is_refused_for_what_has_none(given, message, path):
    save(path, fpp.Flow(fp.Planar(2)))
    with pytest.raises(TypeError, match=message):
        load(path, **given)


def test_an_absent_language_is_told(path, monkeypatch):
    save(path, fpp.Flow(fp.Planar(2)))

    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(flowppl.serialization.trained.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"pip install 'flowppl\[pyro\]' .* load\(path, backend='numpyro'\)"):
        load(path)


@pytest.mark.parametrize("name", ["planar-stack", "coupling-mixed", "repeat"])
def test_a_pyro_flow_is_copied_by_torch_as_well(name, rng):
    base = pdist.StudentT(5.0, torch.zeros(BIJECTIONS[name].x_shape), 1.0).to_event(1)
    flow = pyro_flow(BIJECTIONS[name], rng, base)
    fresh = fpp.Flow(BIJECTIONS[name], base)
    fresh.load_state_dict(flow.state_dict(), strict=True)
    context = context_for(flow.bijection, rng, (3,))
    context = None if context is None else torch.tensor(context)
    y = torch.tensor(rng.normal(size=(3, *flow.bijection.x_shape)))
    for other in (fresh, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other(context).log_prob(y), flow(context).log_prob(y))


def test_files_can_hold_every_public_class():
    kinds = {name: getattr(fp, name) for name in fp.__all__ if dataclasses.is_dataclass(getattr(fp, name))}
    declared = {"Constant", "Normal", "Parameter", "Uniform"}  # of weights, whose values stand in the file
    assert {name: kind for name, kind in kinds.items() if name not in declared} == fp.serialization.CLASSES
