"""Defects of other libraries that a user of flowppl could meet in the same place, each as a check that they fail.

``found`` is what the library gave when the check was written, in November 2026; ``held`` is the test that holds flowppl
to it. nflows and normflows come with the extra "bench"; distrax has none of these defects.
"""

import contextlib
import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro.distributions.flows import BlockNeuralAutoregressiveTransform, InverseAutoregressiveTransform
from numpyro.infer import SVI, Trace_ELBO, autoguide, init_to_value
from numpyro.nn import AutoregressiveNN, BlockNeuralAutoregressiveNN
from pyro.distributions import transforms
from pyro.infer.autoguide import AutoIAFNormal, AutoNormalizingFlow

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Defect:
    check: Callable[[], None]
    library: str
    found: str
    held: str
    raises: type[Exception]

    @property
    def name(self):
        return self.check.__name__


DEFECTS: list[Defect] = []


def defect(library, found, held, raises=AssertionError):
    def add(check):
        DEFECTS.append(Defect(check, library, found, held, raises))
        return check

    return add


PYRO, NUMPYRO, ZUKO, FLOWJAX = "Pyro 1.9.2", "NumPyro 0.22.0", "zuko 1.6.0", "flowjax 19.1.2"
NFLOWS, NORMFLOWS = "nflows 0.14", "normflows 1.7.3"
HERE = "test_known_defects.py::"


@contextlib.contextmanager
def single_precision():
    """float32 as the default of torch."""
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float64)


def normal(dim):
    return pdist.Normal(torch.zeros(dim), 1.0).to_event(1)


def flow(*parts, dim=3):
    return pdist.TransformedDistribution(normal(dim), list(parts))


# Wrong numbers


@defect(PYRO, "0.60 nats off", "test_bijections.py::test_log_det_is_that_of_the_autodiff_jacobian")
def sylvester_has_a_wrong_log_det_away_from_its_start():
    transform = transforms.Sylvester(5, 2)
    for parameter in transform.parameters():
        parameter.data.normal_()
    x = torch.randn(5)
    expected = torch.linalg.slogdet(torch.autograd.functional.jacobian(transform, x))[1]
    assert torch.allclose(transform.log_abs_det_jacobian(x, transform(x)), expected, atol=1e-6)


@defect(PYRO, "the y of the old weights", "test_pyro_transforms.py::test_nothing_is_stale_after_the_weights_changed")
def a_cache_gives_numbers_of_old_weights():
    transform, x = transforms.planar(2), torch.ones(3, 2)
    before = transform(x)
    for parameter in transform.parameters():
        parameter.data += 1.0
    assert not torch.equal(transform(x), before)


@defect(PYRO, "log densities 3.7 off", "test_pyro_transforms.py::test_state_dict_holds_all_that_decides_the_numbers")
def a_random_permutation_is_not_saved():
    def make(seed):
        torch.manual_seed(seed)
        parts = [transforms.affine_autoregressive(5, hidden_dims=[8]) for _ in range(2)]
        return pdist.ComposeTransformModule([parts[0], transforms.permute(5), parts[1]])

    saved, loaded, y = make(0), make(1), torch.ones(5)
    loaded.load_state_dict(saved.state_dict())
    assert torch.allclose(flow(loaded, dim=5).log_prob(y), flow(saved, dim=5).log_prob(y))


@defect(PYRO, "a slope of 0.999 inside", "test_layer_oracles.py::test_spline_is_continuously_differentiable_at_its_box")
def a_spline_has_a_kink_at_its_box():
    spline = transforms.Spline(1, count_bins=4, bound=3.0)
    near = torch.tensor([[3 * (1 - 1e-9)], [3 * (1 + 1e-9)]])
    inside, outside = spline.log_abs_det_jacobian(near, spline(near))[:, 0]
    assert torch.allclose(inside, outside, atol=1e-5)


@defect(PYRO, "not finite", "test_layer_oracles.py::test_splines_hold_at_edges_and_for_extreme_weights")
def a_spline_of_many_bins_is_not_inverted():
    for seed in range(20):
        torch.manual_seed(seed)
        spline = transforms.Spline(1, count_bins=64, bound=3.0).float()
        for parameter in spline.parameters():
            parameter.data = 8 * torch.randn_like(parameter)
        y = spline(1.5 * torch.randn(500, 1, dtype=torch.float32))
        assert torch.allclose(spline._call(spline._inverse(y)), y, atol=1e-3)


@defect(
    NFLOWS,
    "AssertionError in 20 of 150 draws",
    "test_layer_oracles.py::test_splines_hold_at_edges_and_for_extreme_weights",
)
def a_spline_does_not_invert_its_own_values():
    pytest.importorskip("nflows")
    from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

    with single_precision():
        for seed in range(150):
            torch.manual_seed(seed)
            raw = [8 * torch.randn(400, size) for size in (64, 64, 63)]
            y, _ = unconstrained_rational_quadratic_spline(
                6 * torch.rand(400) - 3, *raw, tails="linear", tail_bound=3.0
            )
            unconstrained_rational_quadratic_spline(y, *raw, inverse=True, tails="linear", tail_bound=3.0)


@defect(FLOWJAX, "a gradient of 0", "test_numpyro_transforms.py::test_gradients_reach_the_context")
def no_gradient_reaches_the_context_in_numpyro():
    import equinox
    from flowjax.distributions import Normal
    from flowjax.experimental.numpyro import distribution_to_numpyro
    from flowjax.flows import coupling_flow

    peer = coupling_flow(KEY, base_dist=Normal(jnp.zeros(2)), cond_dim=3, flow_layers=2, nn_width=4)
    peer = jax.tree.map(lambda leaf: leaf + 0.01 if equinox.is_inexact_array(leaf) else leaf, peer)
    y, context = jnp.ones(2), jnp.ones(3)
    expected = jax.grad(lambda c: peer.log_prob(y, c))(context)
    found = jax.grad(lambda c: distribution_to_numpyro(peer, c).log_prob(y))(context)
    assert jnp.abs(expected).max() > 1e-6
    assert jnp.allclose(found, expected)


@defect(NUMPYRO, "leaves [-5.0, 3.0]", "test_numpyro_transforms.py::test_weights_are_leaves_and_gradients_reach_them")
def weights_are_no_leaves_of_the_transform():
    initialise, network = AutoregressiveNN(3, [4])
    _, weights = initialise(KEY, (3,))
    transform = InverseAutoregressiveTransform(lambda x: network(weights, x))
    assert len(jax.tree.leaves(transform)) >= len(jax.tree.leaves(weights))


@defect(ZUKO, "-0.33 apart", HERE + "test_a_density_is_the_same_in_every_call")
def two_densities_of_one_point_differ():
    import zuko

    peer, y = zuko.flows.CNF(2, hidden_features=[4], exact=False), torch.ones(2)
    assert torch.equal(peer().log_prob(y), peer().log_prob(y))


@defect(ZUKO, "1.3e-3 apart", "test_bijections.py::test_each_direction_undoes_the_other")
def a_draw_of_a_continuous_flow_has_another_density():
    import zuko

    torch.manual_seed(0)
    peer = zuko.flows.CNF(3, hidden_features=[32, 32]).double().requires_grad_(False)
    for parameter in peer.parameters():
        parameter.mul_(2.0)
    y, log_prob = peer().rsample_and_log_prob((100,))
    assert torch.allclose(peer().log_prob(y), log_prob, rtol=1e-6, atol=1e-6)


@defect(PYRO, "a shape of (5, 3)", "test_errors.py::test_wrong_events_and_contexts_are_refused")
def an_event_of_one_number_is_broadcast_to_three():
    y = transforms.radial(3)(torch.zeros(5, 1))
    assert y.shape != (5, 3)


@defect(PYRO, "densities of shape (3, 2)", "test_pyro_transforms.py::test_base_distributions")
def a_base_without_an_event_gives_densities_of_coordinates():
    distribution = pdist.TransformedDistribution(pdist.Normal(torch.zeros(2), 1.0), [transforms.Spline(2)])
    assert distribution.log_prob(torch.zeros(3, 2)).shape == (3,)


# No inverse


def scored(name):
    def check():
        flow(getattr(transforms, name)(3)).log_prob(torch.zeros(3))

    check.__name__ = f"{name}_cannot_be_scored"
    return check


for each, error in (
    ("planar", KeyError),
    ("radial", KeyError),
    ("sylvester", KeyError),
    ("block_autoregressive", KeyError),
    ("polynomial", KeyError),
    ("neural_autoregressive", NotImplementedError),
):
    defect(PYRO, error.__name__, "test_pyro_transforms.py::test_works_in_a_plain_transformed_distribution", error)(
        scored(each)
    )


@defect(PYRO, "KeyError", HERE + "test_a_flow_before_a_transform_of_the_host_scores_what_was_not_sampled", KeyError)
def sylvester_cannot_stand_before_tanh():
    distribution = flow(transforms.sylvester(3), transforms.TanhTransform())
    distribution.log_prob(distribution.rsample())


@defect(
    FLOWJAX,
    "NotImplementedError",
    "test_flows.py::test_a_flow_without_a_context_has_the_methods_of_its_distribution",
    NotImplementedError,
)
def planar_cannot_be_sampled():
    from flowjax.distributions import Normal
    from flowjax.flows import planar_flow

    planar_flow(KEY, base_dist=Normal(jnp.zeros(2))).sample(KEY)


@defect(
    NUMPYRO,
    "NotImplementedError",
    "test_numpyro_guides.py::test_draws_lie_in_the_supports_with_the_density_of_the_flow",
    NotImplementedError,
)
def a_guide_cannot_be_scored():
    guide, params = numpyro_guide(autoguide.AutoBNAFNormal, num_flows=1, hidden_factors=[2])
    guide.get_posterior(params).log_prob(jnp.zeros(3))


@defect(
    NORMFLOWS, "NotImplementedError", "test_bijections.py::test_each_direction_undoes_the_other", NotImplementedError
)
def planar_and_radial_have_no_inverse():
    normflows = pytest.importorskip("normflows")
    normflows.flows.Radial((2,)).inverse(torch.zeros(3, 2))
    normflows.flows.Planar((2,)).inverse(torch.zeros(3, 2))


# NaN


@defect(NORMFLOWS, "NaN", "test_bijections.py::test_weights_of_1e30_are_safe")
def planar_overflows():
    normflows = pytest.importorskip("normflows")
    y, _ = normflows.flows.Planar((2,), u=torch.full((1, 2), 30.0), w=torch.full((1, 2), 30.0))(torch.zeros(3, 2))
    assert y.isfinite().all()


@defect(NFLOWS, "NaN", HERE + "test_one_row_of_data_sets_no_normalisation_to_nan")
def one_row_of_data_sets_a_normalisation_to_nan():
    nflows = pytest.importorskip("nflows.transforms")
    assert nflows.ActNorm(3)(torch.ones(1, 3))[0].isfinite().all()


@defect(NORMFLOWS, "NaN", HERE + "test_one_row_of_data_sets_no_normalisation_to_nan")
def one_row_of_data_sets_a_normalisation_to_nan_too():
    normflows = pytest.importorskip("normflows")
    assert normflows.flows.ActNorm((3,))(torch.ones(1, 3))[0].isfinite().all()


# Precision and devices


@defect(PYRO, "RuntimeError", HERE + "test_double_precision_stays_under_a_single_precision_default", RuntimeError)
def an_inverse_takes_the_default_precision():
    with single_precision():
        transform = transforms.affine_autoregressive(3, hidden_dims=[8]).double()
        transform.inv(torch.zeros(3, dtype=torch.float64))


@defect(NORMFLOWS, "torch.float32", HERE + "test_double_precision_stays_under_a_single_precision_default")
def a_log_det_is_added_up_in_single_precision():
    normflows = pytest.importorskip("normflows")
    with single_precision():
        base = normflows.distributions.DiagGaussian(2)
        peer = normflows.NormalizingFlow(base, [normflows.flows.Planar((2,))]).double()
        assert peer.forward_and_log_det(torch.zeros(3, 2, dtype=torch.float64))[1].dtype == torch.float64


@defect(PYRO, "float32 draws", "test_pyro_guides.py::test_works_in_double_precision_under_a_single_precision_default")
def a_guide_takes_the_default_precision():
    def model():
        pyro.sample("z", pdist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))

    with single_precision():
        assert AutoIAFNormal(model, hidden_dim=[4])()["z"].dtype == torch.float64


@defect(PYRO, "RuntimeError", HERE + "test_nothing_is_made_on_the_default_device", RuntimeError)
def sylvester_makes_a_matrix_on_the_default_device():
    transform = transforms.Sylvester(5, 2)
    with torch.device("meta"):
        transform(torch.zeros(5, device="cpu"))


# Parameters, training, compilation


@defect(
    PYRO, "AttributeError", "test_pyro_transforms.py::test_inverse_shares_its_weights_under_one_name", AttributeError
)
def an_inverse_has_no_parameters():
    assert list(transforms.planar(3).inv.parameters())


@defect(PYRO, "none", HERE + "test_weights_are_those_of_the_transform_at_a_context")
def a_transform_at_a_context_has_no_parameters():
    transform = transforms.conditional_affine_autoregressive(3, 2, hidden_dims=[8])
    assert list(transform.condition(torch.zeros(2)).parameters())


@defect(PYRO, "RuntimeError", "test_pyro_transforms.py::test_naked_training_loop_reuses_a_tensor", RuntimeError)
def a_second_step_on_one_tensor_fails():
    distribution, y = flow(transforms.affine_coupling(3, hidden_dims=[4])), torch.ones(3)
    for _ in range(2):
        distribution.log_prob(y).backward()


@defect(PYRO, "no gradient", "test_pyro_transforms.py::test_sample_without_gradient_is_scored_with_one")
def a_sample_is_scored_without_a_gradient():
    distribution = flow(transforms.affine_coupling(3, hidden_dims=[4]))
    assert distribution.log_prob(distribution.sample()).requires_grad


@defect(PYRO, "RuntimeError", "test_bijections.py::test_torch_func_maps_over_events_and_weights", RuntimeError)
def a_spline_cannot_be_mapped():
    torch.func.vmap(transforms.Spline(3))(torch.zeros(4, 3))


@defect(ZUKO, "Unsupported", "test_bijections.py::test_torch_compiles_to_one_graph", RuntimeError)
def spline_couplings_do_not_compile_to_one_graph():
    import zuko

    peer = zuko.flows.NSF(3, transforms=1, hidden_features=[4])
    torch.compile(lambda y: peer().log_prob(y), backend="aot_eager", fullgraph=True)(torch.zeros(2, 3))


@defect(NUMPYRO, "2 programs", "test_numpyro_transforms.py::test_equal_distributions_share_one_compiled_program")
def equal_distributions_are_compiled_twice():
    def make(key):
        initialise, network = AutoregressiveNN(3, [4])
        _, weights = initialise(key, (3,))
        transform = InverseAutoregressiveTransform(lambda x: network(weights, x))
        return ndist.TransformedDistribution(ndist.Normal(jnp.zeros(3), 1.0).to_event(1), transform)

    score = jax.jit(lambda distribution, y: distribution.log_prob(y))
    for key in jax.random.split(KEY):
        score(make(key), jnp.zeros(3))
    assert score._cache_size() == 1


@defect(NUMPYRO, "2 passes for 1", HERE + "test_an_inverted_flow_costs_one_pass")
def an_inverted_flow_evaluates_its_network_twice():
    passes = []

    def network(x):
        passes.append(1)
        return jnp.zeros(x.shape), jnp.zeros(x.shape)

    transform = InverseAutoregressiveTransform(network).inv
    distribution = ndist.TransformedDistribution(ndist.Normal(jnp.zeros(1), 1.0).to_event(1), transform)
    distribution.log_prob(*distribution.sample_with_intermediates(KEY))
    assert len(passes) == 1


# Guides


def numpyro_model(dim=3):
    numpyro.sample("z", ndist.Normal(jnp.zeros(dim), 1.0).to_event(1))


def numpyro_guide(kind, model=numpyro_model, **options):
    guide = kind(model, **options)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    return guide, svi.get_params(svi.init(KEY))


def pyro_model():
    pyro.sample("z", normal(3))


def pyro_guide():
    guide = AutoIAFNormal(pyro_model, hidden_dim=[4])
    guide()
    return guide


@defect(NUMPYRO, "ValueError", "test_numpyro_guides.py::test_starts_exactly_at_its_gaussian", ValueError)
def a_guide_refuses_one_latent():
    numpyro_guide(autoguide.AutoIAFNormal, lambda: numpyro.sample("z", ndist.Normal(0.0, 1.0)))


@defect(NUMPYRO, "0.09 for 100", "test_numpyro_guides.py::test_starts_where_it_is_told")
def a_guide_ignores_where_it_should_start():
    start = init_to_value(values={"z": jnp.full(3, 100.0)})
    guide, params = numpyro_guide(autoguide.AutoIAFNormal, init_loc_fn=start)
    mean = guide.sample_posterior(KEY, params, sample_shape=(100,))["z"].mean()
    assert abs(mean - 100) < 5


@defect(PYRO, "means to -1.0, deviations of 0.2", "test_pyro_guides.py::test_starts_exactly_at_its_gaussian")
def a_guide_starts_anywhere():
    guide = AutoNormalizingFlow(pyro_model, lambda dim: transforms.iterated(3, transforms.spline_coupling, dim))
    draws = torch.stack([guide()["z"].detach() for _ in range(100)])
    assert draws.mean(0).abs().max() < 0.5
    assert (draws.std(0) - 1).abs().max() < 0.3


@defect(
    FLOWJAX,
    "standard deviations of 34 to 292",
    "test_bijections.py::test_recipes_start_at_the_identity_in_any_dimension",
)
def a_flow_of_50_numbers_starts_far_out():
    from flowjax.distributions import Normal
    from flowjax.flows import triangular_spline_flow

    peer = triangular_spline_flow(KEY, base_dist=Normal(jnp.zeros(50)), flow_layers=2)
    assert peer.sample(KEY, (50,)).std(0).max() < 2


@defect(PYRO, "3 latents for 10, no error", "test_pyro_guides.py::test_refuses_what_it_cannot_do")
def a_guide_takes_a_batch_of_a_plate_for_all_of_it():
    def model():
        with pyro.plate("data", 10, subsample_size=3):
            pyro.sample("z", pdist.Normal(torch.tensor(0.0), 1.0))

    try:
        AutoIAFNormal(model, hidden_dim=[4])()
    except (NotImplementedError, ValueError):
        return
    raise AssertionError("it takes the 3 latents of a batch for all 10")


@defect(
    PYRO, "RuntimeError", "test_pyro_guides.py::test_loads_copies_and_pickles_without_running_the_model", RuntimeError
)
def a_new_guide_loads_no_weights():
    AutoIAFNormal(pyro_model, hidden_dim=[4]).load_state_dict(pyro_guide().state_dict())


@defect(
    PYRO, "RuntimeError", "test_pyro_guides.py::test_loads_copies_and_pickles_without_running_the_model", RuntimeError
)
def a_guide_cannot_be_copied():
    copy.deepcopy(pyro_guide())


@defect(
    NUMPYRO,
    "AttributeError",
    "test_numpyro_guides.py::test_a_pickled_guide_draws_the_same_without_the_data",
    AttributeError,
)
def a_guide_cannot_be_pickled():
    pickle.dumps(numpyro_guide(autoguide.AutoIAFNormal)[0])


@defect(NUMPYRO, "AttributeError", "test_saved_guides.py::test_a_numpyro_guide_is_the_same_again", AttributeError)
def a_new_guide_draws_nothing_with_old_weights():
    _, params = numpyro_guide(autoguide.AutoIAFNormal)
    autoguide.AutoIAFNormal(numpyro_model).sample_posterior(KEY, params)


@defect(PYRO, "AssertionError", "test_pyro_guides.py::test_compiled_elbo_trains_as_the_eager_one_does")
def a_guide_cannot_be_traced():
    elbo = pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True)
    svi = pyro.infer.SVI(pyro_model, pyro_guide(), pyro.optim.Adam({"lr": 1e-3}), elbo)
    for _ in range(2):
        svi.step()


@defect(
    PYRO,
    "an empty NotImplementedError",
    "test_pyro_guides.py::test_summaries_are_used_as_those_of_the_hosts_guides",
    NotImplementedError,
)
def a_guide_of_pyro_has_no_median():
    pyro_guide().median()


@defect(
    NUMPYRO,
    "an empty NotImplementedError",
    "test_numpyro_guides.py::test_summaries_are_used_as_those_of_the_hosts_guides",
    NotImplementedError,
)
def a_guide_of_numpyro_has_no_median():
    guide, params = numpyro_guide(autoguide.AutoIAFNormal)
    guide.median(params)


# Imports, classes, arguments


@defect(ZUKO, "validation is off", "test_package.py::test_import_changes_nothing_global")
def an_import_turns_off_the_validation_of_torch():
    code = (
        "from torch.distributions import Distribution\nbefore = Distribution._validate_args\n"
        "import zuko\nprint(before == Distribution._validate_args)"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"


@defect(ZUKO, "an ElementWiseTransform", HERE + "test_one_coordinate_makes_no_other_class")
def one_coordinate_makes_another_class():
    from zuko.flows.autoregressive import MaskedAutoregressiveTransform

    assert type(MaskedAutoregressiveTransform(1)) is MaskedAutoregressiveTransform


@defect(PYRO, "ValueError", "test_oracles.py::test_made_connects_what_it_may_and_all_it_can", ValueError)
def a_network_must_be_as_wide_as_the_event():
    transforms.affine_autoregressive(5, hidden_dims=[3])


@defect(PYRO, "TypeError", HERE + "test_one_width_is_a_network_of_one_layer", TypeError)
def one_width_is_not_taken():
    transforms.affine_coupling(4, hidden_dims=8)


@defect(NUMPYRO, "NotImplementedError", "test_bijections.py::test_each_direction_undoes_the_other", NotImplementedError)
def a_block_neural_autoregressive_flow_has_no_inverse():
    initialize, network = BlockNeuralAutoregressiveNN(2)
    _, params = initialize(KEY, (2,))
    BlockNeuralAutoregressiveTransform(lambda x: network(params, x)).inv(jnp.zeros(2))


@defect(NFLOWS, "ValueError", "test_bijections.py::test_batch_axes_are_independent", ValueError)
def events_have_one_batch_axis():
    nflows = pytest.importorskip("nflows.transforms")
    from nflows.nn.nets import ResidualNet

    transform = nflows.AffineCouplingTransform([0, 1, 0], lambda ins, outs: ResidualNet(ins, outs, 4))
    transform(torch.zeros(2, 4, 3))


@defect(
    NORMFLOWS, "RuntimeError", "test_bijections.py::test_recipes_start_at_the_identity_in_any_dimension", RuntimeError
)
def a_coupling_of_one_number_fails():
    normflows = pytest.importorskip("normflows")
    normflows.flows.CoupledRationalQuadraticSpline(1, 1, 4)(torch.zeros(3, 1))


@defect(NORMFLOWS, "a norm of 1.11", "test_network_layers.py::test_the_bound_of_a_norm_is_never_below_it")
def a_matrix_is_normalised_by_less_than_its_norm():
    lipschitz = pytest.importorskip("normflows.nets.lipschitz")
    torch.manual_seed(0)
    norms = []
    for _ in range(50):
        layer = lipschitz.InducedNormLinear(64, 64, coeff=0.97, domain=2, codomain=2, n_iterations=5)
        torch.nn.init.normal_(layer.weight)
        norms.append(torch.linalg.matrix_norm(layer.compute_weight(update=True), 2))
    assert max(norms) < 1


@defect(NORMFLOWS, "an error of 2e-4", "test_network_layers.py::test_a_contractive_network_is_one_for_all_weights")
def an_inverse_of_a_residual_layer_stops_early():
    residual = pytest.importorskip("normflows.flows.residual")
    block, x = residual.iResBlock(lambda x: 0.8 * torch.sin(x)), torch.linspace(-2, 2, 41, dtype=torch.float64)
    assert (block.inverse(block(x)) - x).abs().max() < 1e-8
