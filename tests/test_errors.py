"""Bad input is refused with a message that says what was expected, what came, and what to do."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
import torch
from catalogue import BIJECTIONS, VECTOR_RECIPES, context_for, draw, merged

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl import diagnostics
from flowppl.autoencoders.model import check_parts
from flowppl.checks import level_of_caller
from flowppl.inference.guides import guide_bijection
from flowppl.inference.latents import check_levels


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", BIJECTIONS)
def test_wrong_events_and_contexts_are_refused(name, direction, rng):
    bijection = BIJECTIONS[name]
    params = merged(bijection, draw(bijection, rng))
    call = getattr(bijection, direction)
    *outer, dim = shape = bijection.x_shape if direction == "forward" else bijection.y_shape
    event, context = rng.normal(size=(3, *shape)), context_for(bijection, rng, (3,))
    other = 1 if dim > 1 else 2
    for wrong in (np.zeros((3, *outer, dim + 1)), np.zeros(()), np.zeros((3, *outer, other))):
        with pytest.raises(ValueError, match=rf"shape ends in {re.escape(str(shape))}, got shape"):
            call(params, wrong, context)
    if bijection.context_dim:
        with pytest.raises(ValueError, match=f"needs a context: .* size {bijection.context_dim}"):
            call(params, event)
        with pytest.raises(
            ValueError, match=rf"context whose last axis has size .*, got shape \(3, {context.shape[-1] + 1}\)"
        ):
            call(params, event, np.zeros((3, context.shape[-1] + 1)))
    else:
        with pytest.raises(ValueError, match=r"unconditional.*build it with context_dim=4"):
            call(params, event, np.zeros((3, 4)))


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3"])
@pytest.mark.parametrize(
    "build",
    [
        fp.Planar,
        fp.Coupling,
        fp.Autoregressive,
        fp.BlockAutoregressive,
        fp.ContractiveResidual,
        fp.Radial,
        fp.OrthogonalSylvester,
        fp.HouseholderSylvester,
        fp.TriangularSylvester,
        fp.Householder,
        fp.LU,
        fp.QR,
        fp.MatrixExponential,
        fp.ActNorm,
        fp.ElementwiseAffine,
        fp.TriangularAffine,
        lambda n: fp.Subspace(n, fp.ElementwiseAffine(1)),
        fp.Permute.reverse,
        fp.Permute.random,
        *(fp.recipes.NAMED_RECIPES[name] for name in VECTOR_RECIPES),
        lambda n: fp.Elementwise(n, fp.Shift()),
        lambda n: fp.Householder(4, n),
        lambda n: fp.QR(4, n),
        lambda n: fp.LowRankAffine(n, 1),
        lambda n: fp.LowRankAffine(4, n),
        lambda n: fp.OrthogonalSylvester(4, n),
        lambda n: fp.HouseholderSylvester(4, n),
        lambda n: fp.HouseholderSylvester(4, 2, n),
        lambda n: fp.RationalQuadraticSpline(n),
        lambda n: fp.CircularSpline(n),
        lambda n: fp.LogisticMixture(n),
        lambda n: fp.Gaussianization(n),
        lambda n: fp.CubicSpline(n),
        lambda n: fp.Bernstein(n),
        lambda n: fp.SumOfSquares(n),
        lambda n: fp.SumOfSquares(1, n),
        lambda n: fp.radial(2, num_flows=n),
        lambda n: fp.nsf(2, num_flows=n),
        lambda n: fp.glow(2, num_flows=n),
        lambda n: fp.Planar(2, num_flows=n),
        lambda n: fp.realnvp(2, num_flows=n),
        lambda n: fp.iaf(2, num_flows=n),
        lambda n: fp.Repeat(fp.Planar(2), n),
        lambda n: fp.Conditional(fp.Planar(2), context_dim=n),
        lambda n: fp.Coupling(2, hidden_dims=(n,)),
        lambda n: fp.MADE(2, n),
        lambda n: fp.MLP(2, n),
    ],
)
def test_sizes_must_be_positive_integers(build, value):
    with pytest.raises(ValueError, match="must be an integer of at least 1, got"):
        build(value)


@pytest.mark.parametrize(
    "build", [fp.Coupling, fp.Autoregressive, fp.BlockAutoregressive, fp.ContractiveResidual, fp.realnvp, fp.iaf]
)
def test_a_context_size_must_be_an_integer(build):
    for value in (-1, 1.5):
        with pytest.raises(ValueError, match="context_dim must be an integer of at least 0, got"):
            build(2, context_dim=value)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: fp.Chain([]), ValueError, "must not be empty"),
        (lambda: fp.Chain([fp.Planar(2), "x"]), TypeError, r"bijections\[1\] must be a Bijection, got str"),
        (
            lambda: fp.Chain([fp.Planar(2), fp.Planar(3)]),
            ValueError,
            r"gives events of shape \(2,\), but bijections\[1\]",
        ),
        (
            lambda: fp.Chain([fp.Coupling(2, context_dim=1), fp.Coupling(2, context_dim=2)]),
            ValueError,
            r"same one, got sizes \[1, 2\]",
        ),
        (lambda: fp.Permute((0, 2)), ValueError, "exactly once"),
        (lambda: fp.Permute(()), ValueError, "exactly once"),
        (lambda: fp.Coupling(3, mask=(True, False)), ValueError, "must have dim=3 entries, got 2"),
        (lambda: fp.Coupling(2, mask=(True, True)), ValueError, "at least one entry must be False"),
        (
            lambda: fp.Coupling(3, "spline"),
            TypeError,
            r"univariate must be .*RationalQuadraticSpline\(8\), got 'spline'",
        ),
        (lambda: fp.Coupling(3, fp.Affine), TypeError, "got the class Affine"),
        (lambda: fp.Autoregressive(3, (64, 64)), TypeError, r"Autoregressive: univariate .* got \(64, 64\)"),
        (lambda: fp.Coupling(3, fp.Sigmoid()), ValueError, "has no parameters for a network to make"),
        (lambda: fp.Elementwise(3, fp.Planar(3)), TypeError, "Elementwise: univariate must be"),
        (lambda: fp.Invert("realnvp"), TypeError, "expected a flowppl.Bijection"),
        (lambda: fp.Repeat(fp.Planar, 3), TypeError, "got the class Planar"),
        (lambda: fp.Conditional(fp.planar, 3), TypeError, "expected a flowppl.Bijection"),
        (lambda: fp.Chain(fp.Planar(3)), TypeError, "must be a list of them, got one Planar"),
        (lambda: fp.Chain([fp.Elementwise(2, fp.Tanh()), fp.Planar(2)]), ValueError, "bounds its values comes last"),
        (lambda: fp.Repeat(fp.Elementwise(2, fp.Tanh()), 2), ValueError, "must keep the support"),
        (lambda: fp.planar(3, hidden_dims=64), ValueError, "give context_dim too"),
        (lambda: fp.register_flow("no-function", fp.Planar(3)), TypeError, "must be a function"),
        (lambda: fp.Affine(float("inf")), ValueError, "positive and finite"),
        (lambda: fp.Permute((0.0, 1.0)), TypeError, "float"),
        (lambda: fp.Coupling(1, mask=(True,)), ValueError, "dim=1 cannot be split; leave mask out"),
        (
            lambda: fp.Coupling(3, mask="checker"),
            ValueError,
            "\"alternating\" or one bool per coordinate, got 'checker'",
        ),
        (
            lambda: fp.OrthogonalSylvester(3, num_units=4),
            ValueError,
            "num_units=4 is more than dim=3, but no more than 3",
        ),
        (lambda: fp.householder_sylvester(3, num_units=4), ValueError, "num_units=4 is more than dim=3"),
        (lambda: fp.Subspace(3, fp.Planar(4)), ValueError, r"at most dim=3 coordinates, but Planar .* shape \(4,\)"),
        (
            lambda: fp.Subspace(3, fp.Elementwise(2, fp.Tanh())),
            ValueError,
            "real numbers to real numbers, but Elementw",
        ),
        (lambda: fp.Stack([]), ValueError, "Stack: bijections must not be empty"),
        (
            lambda: fp.Stack([fp.LU(2), fp.Squeeze((1, 2, 2))]),
            ValueError,
            r"bijections\[1\] \(Squeeze\) must map vectors",
        ),
        (
            lambda: fp.Stack([fp.LU(2), fp.Elementwise(1, fp.Sigmoid())]),
            ValueError,
            r"values of y in \(-inf, inf\), but bijections\[1\] \(Elementwise\) in \(0.0, 1.0\); a flow has one",
        ),
        (
            lambda: fp.Stack([fp.Coupling(2, context_dim=1), fp.Coupling(2, context_dim=2)], conditional=True),
            ValueError,
            r"bijections\[1\] \(Coupling\) must have context_dim=3, .* 2 coordinates before, got 2",
        ),
        (
            lambda: fp.Stack([fp.Coupling(2, context_dim=1), fp.Coupling(2, context_dim=2)]),
            ValueError,
            r"Stack: all parts that take a context must take the same one, got sizes \[1, 2\]",
        ),
        (
            lambda: fp.BlockAutoregressive(2, ()),
            ValueError,
            r"must have one or more layers, such as \(8, 8\), got \(\)",
        ),
        (lambda: fp.ContractiveResidual(2, lipschitz=1.0), ValueError, "lipschitz must be between 0 and 1, got 1.0"),
        (lambda: fp.residual_flow(2, lipschitz=0.0), ValueError, "lipschitz must be between 0 and 1, got 0.0"),
        (lambda: fp.LowRankAffine(3, rank=4), ValueError, "rank must be at most dim=3, got 4"),
        (lambda: fp.LU(3, permutation=(0, 1)), ValueError, "must have dim=3 entries, got 2"),
        (lambda: fp.LU(3, permutation=(0, 1, 1)), ValueError, "exactly once"),
        (lambda: fp.RationalQuadraticSpline(501), ValueError, "num_bins must be at most 500"),
        (lambda: fp.RationalQuadraticSpline(bound=0.0), ValueError, "bound must be positive and finite"),
        (lambda: fp.nsf(2, bound=-1.0), ValueError, "bound must be positive and finite"),
        (lambda: fp.CircularSpline(bound=float("inf")), ValueError, "bound must be positive and finite"),
        (lambda: fp.LinearSpline(501), ValueError, "num_bins must be at most 500"),
        (lambda: fp.CubicSpline(bound=-1.0), ValueError, "bound must be positive and finite"),
        (lambda: fp.Bernstein(101), ValueError, "degree must be at most 100"),
        (lambda: fp.Bernstein(bound=0.0), ValueError, "bound must be positive and finite"),
        (lambda: fp.SumOfSquares(2, 10**6), ValueError, "degree must be at most 100"),
        (lambda: fp.SumOfSquares(bound=float("inf")), ValueError, "bound must be positive and finite"),
        (lambda: fp.LogTails(0.0), ValueError, "threshold must be positive and finite"),
        (lambda: fp.LogisticMixture(log_scale_bound=0.0), ValueError, "log_scale_bound must be positive"),
        (lambda: fp.Gaussianization(log_scale_bound=-1.0), ValueError, "log_scale_bound must be positive"),
        (lambda: fp.Scale(-1.0), ValueError, "log_scale_bound must be positive"),
        (lambda: fp.Bounded(2.0, 1.0), ValueError, "low must be below high"),
        (lambda: fp.Bounded(0.0, float("inf")), ValueError, "low must be below high, both finite"),
        (lambda: fp.LeakyReLU(0.0), ValueError, "slope must be positive"),
        (lambda: fp.Conditional(fp.Elementwise(2, fp.Sigmoid()), 1), ValueError, "has no parameters"),
        (lambda: fp.Coupling(2, activation="swish"), ValueError, "one of elu, relu, .* got 'swish'"),
        (lambda: fp.Affine(0.0), ValueError, "log_scale_bound must be positive"),
        (lambda: fp.Conditional(fp.Coupling(2, context_dim=1), 1), ValueError, "takes a context itself"),
        (lambda: fp.Conditional(fp.Permute((1, 0)), 1), ValueError, "has no parameters"),
        (
            lambda: fp.make_flow("realnpv", 2),
            ValueError,
            "unknown flow 'realnpv'; known flows are .*flowpp, flowpp_i",
        ),
        (lambda: fp.register_flow("iaf", fp.iaf), ValueError, "exists already"),
        (lambda: fp.Planar(2).forward({}, [1.0, 2.0]), TypeError, "Planar: event: expected an array .* got list"),
        (lambda: fp.Planar(2).forward({}, np.ones(2)), ValueError, "Planar: params lacks the weights w, u, b; give"),
        (lambda: fp.Planar(2).inverse({"w": np.ones((1, 2))}, np.ones(2)), ValueError, "lacks the weights u, b;"),
        (lambda: fp.Planar(2).inverse(None, np.ones(2)), TypeError, "params must be a dict of arrays, got NoneType"),
        (lambda: fp.Permute((1, 0)).forward({}, np.ones(2)), ValueError, "lacks the constants order, position"),
        (lambda: fp.realnvp(2).forward({}, np.ones(2)), ValueError, r"params lacks the weights .*, \.\.\.;"),
        (lambda: fp.Planar(2).forward({}, np.ones(2) + 1j), TypeError, "Planar: event must be real, got complex128"),
        (
            lambda: fp.Coupling(2, context_dim=1).forward({}, np.ones(2), [1.0]),
            TypeError,
            "Coupling: context: expected an array .* got list",
        ),
        (
            lambda: fp.Coupling(2, context_dim=1).forward({}, np.ones(2), np.ones(1) + 1j),
            TypeError,
            "context must be real, got complex128",
        ),
        (lambda: fp.Coupling(4, network="mlp"), TypeError, r"network must have parameters\(\) .* got 'mlp'"),
        (lambda: fp.Coupling(4, network=fp.MLP), TypeError, "network must .* got the class MLP"),
        (lambda: fp.Coupling(4, hidden_dims="64"), TypeError, "hidden_dims must be a tuple of widths, .* got '64'"),
        (lambda: fp.maf(4, hidden_dims=None), TypeError, "hidden_dims must be a tuple of widths, .* got None"),
    ],
)
def test_constructors_reject_nonsense(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_users_can_register_a_flow():
    fp.register_flow("test-only", lambda dim, num_flows=2: fp.Planar(dim, num_flows))
    assert "test-only" in fp.available_flows()
    assert fp.make_flow("test-only", 3, num_flows=5) == fp.Planar(3, 5)


def test_a_network_of_the_wrong_size_is_refused():
    layer = fp.Coupling(3, fp.Affine(), network=fp.MLP(1, 2, hidden_dims=()))
    params = {"network": {"0": {"weight": np.ones((1, 2)), "bias": np.zeros(2)}}}
    with pytest.raises(ValueError, match="2 numbers for each of the 2 coordinates that are mapped, 4 in all, got 2"):
        layer.forward(params, np.ones(3))


@pytest.mark.parametrize("levels", [[1.5], [-0.1, 0.5], 0.5, [np.nan]])
def test_levels_of_quantiles_lie_between_0_and_1(levels):
    with pytest.raises(ValueError, match="quantiles must be a list of numbers between 0 and 1"):
        check_levels(levels)


def test_weights_of_single_data_are_not_judged_as_weights_of_draws():
    for judge in (diagnostics.diagnose, diagnostics.k_hat, diagnostics.effective_sample_size):
        with pytest.raises(ValueError, match=r"one number for each draw, got an array of shape \(100, 50\)"):
            judge(np.zeros((100, 50)))
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        diagnostics.resample_indices(np.zeros(100), 0, np.random.default_rng(0))
    with pytest.raises(ValueError, match="in 0 batches"):
        diagnostics.diagnose(np.zeros(100), num_batches=0)


@pytest.mark.parametrize("adapter", [fpp, fnp], ids=["pyro", "numpyro"])
def test_options_of_objectives_are_checked(adapter):
    for make in (
        adapter.ImportanceWeightedELBO,
        lambda num: adapter.RenyiELBO(2, num),
        lambda num: adapter.ForwardKL({"x": "x_site"}, num),
    ):
        with pytest.raises(ValueError, match="num_particles must be an integer of at least 1"):
            make(0)
    assert float(adapter.linear_annealing(-1, 4)) == 0
    with pytest.raises(ValueError, match="num_steps must be positive"):
        adapter.linear_annealing(1, 0)


def inward():
    """A flow from the unit interval."""
    return fp.Invert(fp.Elementwise(1, fp.Bounded(0.0, 1.0)))


@pytest.mark.parametrize("adapter", [fpp, fnp], ids=["pyro", "numpyro"])
def test_a_flow_from_an_interval_has_no_base_on_the_whole_line(adapter):
    if adapter is fpp:
        base, transform = torch.distributions.Normal(torch.zeros(1), 1.0), fpp.FlowTransform(inward())
    else:
        base, transform = numpyro.distributions.Normal(jnp.zeros(1), 1.0), fnp.FlowTransform(inward(), {})
    with pytest.raises(ValueError, match="but its base distribution"):
        adapter.FlowDistribution(base, transform)


def test_guides_and_autoencoders_draw_from_the_whole_line():
    posterior = fp.Chain([inward(), fp.Conditional(fp.ElementwiseAffine(1), 2)])
    for bind in (lambda: guide_bijection(inward(), 1), lambda: check_parts("FlowVAE", posterior, None, "bernoulli")):
        with pytest.raises(ValueError, match="but its base distribution"):
            bind()


@pytest.mark.parametrize("adapter", [fpp, fnp], ids=["pyro", "numpyro"])
def test_data_outside_the_support_of_a_flow_are_told(adapter):
    bijection = fp.Chain([fp.planar(1), fp.Elementwise(1, fp.Bounded(0.0, 1.0))])
    x = np.linspace(0.1, 0.9, 50)[:, None]
    x[7] = 1.5
    flow = (
        (fpp.Flow(bijection),) if adapter is fpp else (jax.random.key(0), fnp.Flow.init(jax.random.key(0), bijection))
    )
    with pytest.raises(ValueError, match=r"1 of the 50 rows of x lie outside of \(0.0, 1.0\), the support"):
        adapter.fit_density(*flow, x, num_epochs=1)


def test_weights_of_numpyro_are_arrays():
    with pytest.raises(ValueError, match=r"params\[loc\] must be an array, got float"):
        fnp.FlowTransform(fp.ElementwiseAffine(2), {"loc": 0.0, "scale": 0.0})


def test_a_guide_without_its_parameters_is_not_weighed():
    def model():
        numpyro.sample("mu", numpyro.distributions.Normal(0.0, 1.0))

    guide = fnp.AutoFlow(model, init="point")
    with pytest.raises(ValueError, match=r"params must hold all parameters of guide and model, but .*'auto_flow'"):
        fnp.log_weights(jax.random.key(0), model, guide, {"auto_flw": 0.0}, num_samples=3)


@pytest.mark.parametrize("value", ["3", None, [1.0], (1.0, 2.0, 3.0)])
@pytest.mark.parametrize(
    "build",
    [
        lambda value: fp.nsf(2, bound=value),
        lambda value: fp.realnvp(2, log_scale_bound=value),
        lambda value: fp.Bounded(0.0, value),
        lambda value: fp.LeakyReLU(value),
        lambda value: fp.LogTails(value),
        lambda value: fp.Damped(fp.Planar(2), value),
        lambda value: fp.Continuous(2, lipschitz=value),
        lambda value: fp.ContractiveResidual(2, lipschitz=value),
        lambda value: fpp.fit_density(fpp.Flow(fp.Planar(2)), np.zeros((9, 2)), ema_decay=value),
        lambda value: fnp.fit(jax.random.key(0), lambda: None, learning_rate=value or "3"),
        lambda value: fnp.fit(jax.random.key(0), lambda: None, max_seconds=value or "3"),
    ],
)
def test_what_is_no_number_is_told_by_name(build, value):
    with pytest.raises(
        ValueError, match=r"(bound|low|slope|threshold|factor|lipschitz|decay|learning_rate|max_seconds).* must be"
    ):
        build(value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: fp.load(3),
        lambda: fp.save(3, fpp.Flow(fp.Planar(2))),
        lambda: fpp.fit(lambda: None, checkpoint=3),
        lambda: fpp.fit_density(fpp.Flow(fp.Planar(2)), np.random.default_rng(0).normal(size=(9, 2)), checkpoint=3),
    ],
)
def test_a_file_has_a_name(call):
    with pytest.raises(TypeError, match=r"a file is named by a str or a path, such as .*, got 3"):
        call()


def test_warnings_point_at_the_line_of_the_user_behind_the_host():
    inside = {"__name__": "flowppl.here", "warnings": warnings, "level_of_caller": level_of_caller}
    warn = torch.no_grad()(eval("lambda: warnings.warn('here', stacklevel=level_of_caller())", inside))
    with pytest.warns(UserWarning, match="here") as told:
        warn()
    assert told[0].filename == __file__
