"""What other libraries get wrong, flowppl must not: each of their defects is held by a test, here or where it belongs.

``peers.py`` has the defects, with the library and its version, what it gave, and the test that holds flowppl to it.
`make stress` runs its checks on the libraries themselves: one that is mended there fails, so that we know.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as ndist
import pyro.distributions as pdist
import pytest
import torch
from catalogue import BIJECTIONS, context_for, draw, merged, to
from peers import DEFECTS, single_precision

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp

KEY = jax.random.key(0)
ADAPTERS = {"pyro": fpp, "numpyro": fnp}
both = pytest.mark.parametrize("language", ADAPTERS)


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(each, marks=pytest.mark.xfail(strict=True, raises=each.raises, reason=each.found), id=each.name)
        for each in DEFECTS
    ],
)
def test_a_library_has_its_defect_still(defect):
    defect.check()


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_each_defect_is_held_by_a_test_of_ours(defect):
    file, _, name = defect.held.partition("::")
    assert f"\ndef {name}(" in (pathlib.Path(__file__).parent / file).read_text()


def both_directions(name, rng):
    """What a bijection of the catalogue gives in float64, in torch."""
    bijection = BIJECTIONS[name]
    tree, context = merged(bijection, draw(bijection, rng), "torch"), to("torch", context_for(bijection, rng))
    for direction in ("forward", "inverse"):
        shape = bijection.x_shape if direction == "forward" else bijection.y_shape
        event = torch.tensor(rng.normal(size=(2, *shape)))
        yield lambda d=direction, e=event: getattr(bijection, d)(tree, e, context)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_double_precision_stays_under_a_single_precision_default(name, rng):
    """Pyro 1.9.2 makes zeros of the default precision in an inverse, normflows 1.7.3 a log determinant."""
    for call in both_directions(name, rng):
        expected = call()
        with single_precision():
            found = call()
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == torch.float64
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_nothing_is_made_on_the_default_device(name, rng):
    """Pyro 1.9.2 makes an identity matrix there, which fails where the event lies elsewhere."""
    for call in both_directions(name, rng):
        expected = call()
        with torch.device("meta"):
            found = call()
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def make(language, bijection):
    transform = fpp.FlowTransform(bijection) if language == "pyro" else fnp.FlowTransform.init(KEY, bijection)
    if language == "pyro":
        base = pdist.Normal(torch.zeros(3), 1.0).to_event(1)
        return transform, base, torch.as_tensor, pdist
    return transform, ndist.Normal(jnp.zeros(3), 1.0).to_event(1), jnp.asarray, ndist


@both
@pytest.mark.parametrize("recipe", ["planar", "radial", "sylvester"])
def test_a_flow_before_a_transform_of_the_host_scores_what_was_not_sampled(language, recipe):
    """In Pyro 1.9.2 Sylvester's flow before tanh fails even for its own draws, as tanh keeps none of them."""
    transform, base, array, dist = make(language, fp.make_flow(recipe, 3))
    distribution = dist.TransformedDistribution(base, [transform, dist.transforms.SigmoidTransform()])
    y = np.array([0.3, 0.2, 0.9])
    expected = base.log_prob(array(np.log(y / (1 - y)))) - np.log(y * (1 - y)).sum()  # the flow starts as the identity
    np.testing.assert_allclose(distribution.log_prob(array(y)).tolist(), expected, rtol=1e-9)


@both
def test_a_density_is_the_same_in_every_call(language):
    """zuko 1.6.0 draws new probes for the trace of a continuous flow in each call."""
    transform, _, array, _ = make(language, fp.make_flow("sylvester", 3, num_flows=1))
    flow, y = ADAPTERS[language].Flow(transform), array(np.ones(3))
    assert bool(flow.log_prob(y) == flow.log_prob(y))


@both
def test_one_row_of_data_sets_no_normalisation_to_nan(language):
    """nflows 0.14 and normflows 1.7.3 take the standard deviation of whatever comes first, also of one row."""
    adapter, array = ADAPTERS[language], torch.as_tensor if language == "pyro" else jnp.asarray
    flow = adapter.Flow(fp.ActNorm(3)) if language == "pyro" else adapter.Flow.init(KEY, fp.ActNorm(3))
    row = array(np.array([[1.0, -2.0, 1e6]]))
    before = np.asarray(flow.log_prob(row).tolist())
    assert before == np.asarray(flow.log_prob(row).tolist())  # to score data changes nothing
    flow = flow.init_from(row)
    assert np.isfinite(flow.log_prob(row).tolist()).all()


@both
def test_weights_are_those_of_the_transform_at_a_context(language):
    """A transform of Pyro 1.9.2 has no parameters once it is given its context."""
    if language == "pyro":
        transform = fpp.planar(3, context_dim=2)
        found, expected = (list(each.parameters()) for each in (transform.condition(torch.zeros(2)), transform))
    else:
        transform = fnp.planar(KEY, 3, context_dim=2)
        found, expected = (jax.tree.leaves(each.params) for each in (transform.condition(jnp.zeros(2)), transform))
    assert [id(leaf) for leaf in found] == [id(leaf) for leaf in expected] != []


@both
def test_an_inverted_flow_costs_one_pass(language, count_passes):
    """NumPyro 0.22.0 evaluates the network of an inverted transform once to sample, and again to score the draw."""
    bijection = fp.Invert(fp.Coupling(3, hidden_dims=4))
    if language == "pyro":
        distribution = fpp.Flow(bijection)()
        distribution.log_prob(distribution.rsample())
    else:
        distribution = fnp.Flow.init(KEY, bijection)()
        distribution.log_prob(*distribution.sample_with_intermediates(KEY))
    assert len(count_passes) == 1


@both
def test_one_coordinate_makes_no_other_class(language):
    """zuko 1.6.0 answers a masked autoregressive transform of one coordinate with another class."""
    adapter = ADAPTERS[language]
    for name in ("Autoregressive", "Coupling"):
        kind = getattr(adapter, name)
        transform = kind(1) if language == "pyro" else kind.init(KEY, 1)
        assert type(transform) is kind
        assert type(transform.bijection) is getattr(fp, name)


@both
def test_one_width_is_a_network_of_one_layer(language):
    """In Pyro 1.9.2 an integer for the widths is a TypeError."""
    key, adapter = () if language == "pyro" else (KEY,), ADAPTERS[language]
    for helper in (adapter.realnvp, adapter.iaf):
        assert helper(*key, 4, hidden_dims=8).bijection == helper(*key, 4, hidden_dims=(8,)).bijection
