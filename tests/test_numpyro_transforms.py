"""Bijections as NumPyro transforms and distributions."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from catalogue import BIJECTIONS, ENDS, VECTOR_RECIPES, context_for, draw, merged, to
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive

import flowppl as fp
import flowppl.numpyro as fnp
from flowppl._arrays import tree as _tree


def trained(bijection, rng, batch=()):
    """A transform away from its initialisation, at a context if it takes one."""
    params = _tree.map_tree(jnp.asarray, draw(bijection, rng, 0.5))
    return fnp.FlowTransform(bijection, params, to("jax", context_for(bijection, rng, batch)))


@pytest.mark.parametrize(
    "name",
    [
        "planar",
        "planar-conditional",
        "lu-permuted",
        "elementwise-spline",
        "coupling-mixed",
        "autoregressive",
        "autoregressive-inverted",
        "permute",
        "subspace-conditional",
        "chain",
        "repeat",
        "repeat-scan",
        "damped",
        "amortized-iaf",
        "image-coupling",
    ],
)
def test_is_the_bijection_as_a_numpyro_transform(name, rng):
    transform = trained(BIJECTIONS[name], rng, (4,))
    x_shape = transform.bijection.x_shape
    x = jnp.asarray(rng.normal(size=(4, *x_shape)))

    @jax.jit
    def everything(transform, x):
        tree = merged(transform.bijection, transform.params, "jax")
        y, log_det = transform.bijection.forward(tree, x, transform.context)
        base = dist.Normal(jnp.zeros(x_shape), 1.0).to_event(len(x_shape))
        plain = dist.TransformedDistribution(base, [transform])
        return (
            (transform(x), y),
            (transform.log_abs_det_jacobian(x, y), log_det),
            (transform.inv(y), x),
            (transform.inv.log_abs_det_jacobian(y, x), -log_det),
            (plain.log_prob(y), base.log_prob(x) - log_det),
        )

    for found, expected in everything(transform, x):
        np.testing.assert_allclose(found, expected, atol=1e-7)
    assert transform.domain.event_dim == transform.codomain.event_dim == len(x_shape)
    assert transform.inv.inv == transform
    assert pickle.loads(pickle.dumps(transform)) == transform


def test_weights_are_leaves_and_gradients_reach_them(rng):
    transform = trained(BIJECTIONS["autoregressive"], rng)
    x = jnp.asarray(rng.normal(size=5))
    gradient = jax.jit(jax.grad(lambda t: t(x).sum() + t.log_abs_det_jacobian(x, t(x))))(transform)
    assert isinstance(gradient, fnp.FlowTransform)
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == len(list(_tree.leaves(transform.bijection.parameters())))
    assert all(jnp.abs(leaf).max() > 0 for leaf in leaves)


def test_equal_distributions_share_one_compiled_program():
    keys = jax.random.split(jax.random.key(0), 10)
    score = jax.jit(lambda d, y: d.log_prob(y))
    for key in keys:
        score(fnp.Flow.init(key, fp.realnvp(3, num_flows=2))(), jnp.zeros(3))
    assert score._cache_size() == 1


def test_flow_is_a_pytree_that_can_be_mapped():
    keys = jax.random.split(jax.random.key(0), 4)
    flows = jax.jit(jax.vmap(lambda key: fnp.Flow.init(key, fp.maf(3, num_flows=2))))(keys)
    found = jax.jit(jax.vmap(lambda flow, y: flow().log_prob(y), in_axes=(0, None)))(flows, jnp.ones(3))
    assert found.shape == (4,)
    np.testing.assert_allclose(found, dist.Normal(0, 1).log_prob(jnp.ones(3)).sum(), rtol=1e-6)


@pytest.mark.parametrize(("name", "layers"), [("realnvp", 8), ("iaf", 4), ("maf", 4)])
def test_sampling_with_density_and_density_cost_one_pass_per_layer(name, layers, count_passes):
    flow = fnp.Flow.init(jax.random.key(0), fp.make_flow(name, 3, num_flows=layers))
    if name != "maf":  # its sampling is sequential

        def model():
            numpyro.sample("y", flow())

        count_passes.clear()
        trace = handlers.trace(handlers.seed(model, 0)).get_trace()
        site = trace["y"]
        site["fn"].log_prob(site["value"], site["intermediates"])
        assert len(count_passes) == layers
    if name != "iaf":  # its scoring is
        count_passes.clear()
        flow().log_prob(jnp.zeros(3))
        assert len(count_passes) == layers


CONTEXTUAL = {name: fp.make_flow(name, 3, context_dim=2) for name in ("planar", "nice", "realnvp", "iaf", "maf")}


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_gradients_reach_the_context(name, rng):
    flow = fnp.Flow(CONTEXTUAL[name], _tree.map_tree(jnp.asarray, draw(CONTEXTUAL[name], rng, 0.5)))
    value = jnp.asarray(rng.normal(size=3))
    context = rng.normal(size=2)
    score = jax.jit(lambda context: flow(context).log_prob(value))
    gradient = jax.jit(jax.grad(score))(context)
    assert np.abs(gradient).min() > 1e-3
    for i in range(2):
        step = 1e-6 * np.eye(2)[i]
        difference = (score(context + step) - score(context - step)) / 2e-6
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context_batch", [(), (4,), (2, 1, 4)])
@pytest.mark.parametrize("sample_shape", [(), (7,), (2, 3)])
def test_shapes_follow_base_and_context(context_batch, sample_shape):
    flow = fnp.Flow.init(jax.random.key(0), fp.realnvp(3, num_flows=2, context_dim=2))
    distribution = flow(jnp.ones((*context_batch, 2)))
    assert distribution.batch_shape == context_batch
    assert distribution.event_shape == (3,)
    y = distribution.sample(jax.random.key(0), sample_shape)
    assert y.shape == (*sample_shape, *context_batch, 3)
    assert distribution.log_prob(y).shape == (*sample_shape, *context_batch)
    assert distribution.expand((5, *context_batch)).sample(jax.random.key(0)).shape == (5, *context_batch, 3)
    assert distribution.support.event_dim == 1


@pytest.mark.parametrize("base", [dist.Normal(jnp.zeros(3), 1.0), dist.StudentT(5.0, jnp.zeros(3), 1.0).to_event(1)])
def test_base_distributions(base):
    flow = fnp.Flow.init(jax.random.key(0), fp.planar(3), base)
    assert flow().batch_shape == ()
    assert flow().log_prob(flow().sample(jax.random.key(0), (5,))).shape == (5,)


def test_a_learned_prior_is_one_param_site_and_works_in_nuts_and_predictive():
    def model(y=None):
        prior = fnp.flow("prior", fp.realnvp(2, num_flows=2, hidden_dims=8))
        z = numpyro.sample("z", prior())
        numpyro.sample("y", dist.Normal(z, 1.0).to_event(1), obs=y)

    trace = handlers.trace(handlers.seed(model, 0)).get_trace()
    assert [name for name, site in trace.items() if site["type"] == "param"] == ["prior"]
    params = {"prior": trace["prior"]["value"]}
    drawn = Predictive(model, params=params, num_samples=4)(jax.random.key(0))
    assert drawn["z"].shape == (4, 2)
    fixed = handlers.substitute(model, params)
    mcmc = MCMC(NUTS(fixed), num_warmup=20, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(1), y=jnp.ones(2))
    assert jnp.isfinite(mcmc.get_samples()["z"]).all()


def test_named_transforms_take_the_arguments_of_their_bijections():
    transform = fnp.Planar.init(jax.random.key(0), 3, num_flows=2)
    assert transform.bijection == fp.Planar(3, num_flows=2)
    again = fnp.Planar(3, num_flows=2, params=transform.params)
    assert type(again) is type(pickle.loads(pickle.dumps(transform))) is fnp.Planar
    assert again == transform
    assert fnp.realnvp(jax.random.key(0), 3, hidden_dims=8).bijection == fp.realnvp(3, hidden_dims=8)
    assert repr(fp.Planar(3, num_flows=2)) in repr(transform)


def test_wrong_weights_are_refused():
    params = fnp.planar(jax.random.key(0), 3).params
    with pytest.raises(ValueError, match=r"missing \['w'\], unexpected \['v'\]"):
        fnp.FlowTransform(fp.planar(3), {"v": params["w"], "u": params["u"], "b": params["b"]})
    with pytest.raises(ValueError, match=r"params\[w\] must have a shape that ends in \(16, 4\), got \(16, 3\)"):
        fnp.FlowTransform(fp.planar(4), params)


def test_data_may_be_numpy_arrays_beside_traced_weights():
    flow = fnp.Flow.init(jax.random.key(0), fp.realnvp(2, num_flows=2))
    data = np.ones((4, 2))
    gradient = jax.jit(jax.grad(lambda flow: flow().log_prob(data).sum()))(flow)
    assert jnp.isfinite(jax.jit(lambda flow: flow().log_prob(data))(flow)).all()
    assert isinstance(gradient, fnp.Flow)
    assert isinstance(flow.transform(data), jax.Array)


def test_batched_weights_are_batch_axes_of_the_distribution():
    flows = jax.jit(jax.vmap(lambda key: fnp.Flow.init(key, fp.realnvp(2, num_flows=2))))(
        jax.random.split(jax.random.key(0), 3)
    )
    assert flows().batch_shape == (3,)
    y = flows().sample(jax.random.key(1), (5,))
    assert y.shape == (5, 3, 2)
    assert jnp.abs(y[:, 0] - y[:, 1]).max() > 0
    assert flows().log_prob(y).shape == (5, 3)


def test_what_is_not_a_bijection_is_refused():
    for wrong in ("realnvp", fp.Planar, fnp.planar(jax.random.key(0), 2)):
        with pytest.raises(TypeError, match=r"expected a flowppl.Bijection, such as flowppl.realnvp\(3\)"):
            fnp.Flow.init(jax.random.key(0), wrong)


def test_a_single_precision_flow_meets_the_double_precision_of_its_base():
    flow = fnp.Flow.init(jax.random.key(0), fp.maf(3, num_flows=1))
    flow = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), flow)
    y = flow().sample(jax.random.key(1), (4,))  # NumPyro draws in the precision of the session
    assert np.isfinite(flow().log_prob(y)).all()


def test_a_flow_from_an_interval_needs_a_base_there():
    flow = fnp.Flow.init(jax.random.key(0), fp.Invert(fp.Elementwise(2, fp.Sigmoid())))
    with pytest.raises(ValueError, match=r"takes values in \(0.0, 1.0\) only"):
        flow()


def test_init_from_sets_a_flow_from_data(rng):
    data = 5 + 2 * rng.normal(size=(100, 2))
    flow = fnp.Flow.init(jax.random.key(0), fp.glow(2, num_flows=2)).init_from(data)
    np.testing.assert_allclose(flow.transform.inv(data).mean(0), 0, atol=1e-9)


SMALL = {name: fp.make_flow(name, 3, num_flows=1) for name in VECTOR_RECIPES}
CONDITIONAL = {
    f"{name}-context": fp.make_flow(name, 3, num_flows=1, context_dim=2) for name in ("planar", "realnvp", "iaf", "maf")
}
INVERTED_END = {"inverted-end": fp.Invert(fp.Elementwise(3, fp.Sigmoid()))}
EVERYWHERE = SMALL | CONDITIONAL | ENDS | INVERTED_END
# A row of each kind: an inverse that is searched, in one pass, one pass for each coordinate; a context; other supports.
KINDS = {"planar", "nsf", "iaf-context", "realnvp-context", *ENDS, *INVERTED_END}


def base_for(bijection, batch=()):
    if bijection.x_support == (0.0, 1.0):
        return dist.Uniform(jnp.zeros((*batch, 3)), 1.0).to_event(1)
    return dist.Normal(jnp.zeros((*batch, 3)), 1.0).to_event(1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in KINDS else pytest.mark.stress) for name in EVERYWHERE]
)
def test_works_in_a_plain_transformed_distribution(name, rng):
    bijection = EVERYWHERE[name]
    transform, base = trained(bijection, rng, (4,)), base_for(bijection, (2, 1))
    plain, ours = dist.TransformedDistribution(base, transform), fnp.FlowDistribution(base, transform)
    assert plain.batch_shape == ours.batch_shape == ((2, 4) if bijection.context_dim else (2, 1))
    assert plain.event_shape == ours.event_shape == (3,)
    assert repr(plain.support) == repr(ours.support)
    assert plain.support.event_dim == 1
    assert plain.has_rsample
    plain, ours = (each.expand((5, *each.batch_shape)) for each in (plain, ours))

    @jax.jit
    def everything(plain, ours):
        """Samples and densities; the distributions come in as pytrees."""
        key = jax.random.key(1)
        y, intermediates = plain.sample_with_intermediates(key, (2,))
        return (
            (plain.rsample(key, (2,)), ours.rsample(key, (2,))),
            (plain.log_prob(y), ours.log_prob(y)),
            (plain.log_prob(y, intermediates), ours.log_prob(y)),
            (plain.support(y), jnp.ones(y.shape[:-1], bool)),
        )

    for found, expected in everything(plain, ours):
        assert found.shape[:2] == (2, 5)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_ends_are_checked_in_a_plain_transformed_distribution():
    transform = fnp.Elementwise.init(jax.random.key(0), 3, fp.Sigmoid())
    plain = dist.TransformedDistribution(dist.Normal(jnp.zeros(3), 1.0), transform, validate_args=True)
    with pytest.warns(UserWarning, match="Out-of-support"):
        plain.log_prob(jnp.full(3, -7.0))


def test_transforms_follow_each_other_in_a_plain_transformed_distribution(rng):
    parts = [trained(SMALL[name], rng) for name in ("planar", "realnvp")]
    parts.append(fnp.Elementwise(3, fp.Sigmoid(), params={}))
    base = dist.Normal(jnp.zeros((2, 3)), 1.0)  # the transforms make an event of its last axis
    plain = dist.TransformedDistribution(base, parts)
    joined = dist.TransformedDistribution(base, dist.transforms.ComposeTransform(parts))
    y = plain.sample(jax.random.key(0), (4,))
    assert y.shape == (4, 2, 3)
    x, log_det = y, 0.0
    for part in reversed(parts):
        x, step = part.inverse_and_log_det(x)
        log_det = log_det + step
    expected = base.log_prob(x).sum(-1) + log_det
    for distribution in (plain, joined):
        np.testing.assert_allclose(jax.jit(lambda d: d.log_prob(y))(distribution), expected)


def test_weights_are_leaves_of_a_plain_transformed_distribution(rng):
    transform = trained(CONDITIONAL["realnvp-context"], rng, (4,))
    plain = dist.TransformedDistribution(base_for(transform.bijection), transform)
    gradient = jax.jit(jax.grad(lambda distribution: distribution.log_prob(jnp.ones(3)).sum()))(plain)
    found = jax.tree.leaves(gradient.transforms)
    assert len(found) == len(jax.tree.leaves((transform.params, transform.context)))
    assert all(jnp.abs(leaf).max() > 0 for leaf in found)


def test_a_transform_that_takes_no_context_is_the_same_at_all(rng):
    transform = trained(SMALL["planar"], rng)
    assert transform.condition(jnp.ones((4, 2))) is transform
    with pytest.raises(ValueError, match=r"unconditional .*context of shape \(4, 2\); build it with context_dim=2"):
        fnp.Flow(transform.bijection, transform.params)(jnp.ones((4, 2))).sample(jax.random.key(0))
