"""Bijections as Pyro transforms and distributions."""

import copy
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import BIJECTIONS, ENDS, FEW_STEPS, VECTOR_RECIPES, context_for, draw, merged, to

import flowppl as fp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree
from flowppl.pyro.flow import is_real


def trained(bijection, rng):
    """A transform away from its initialisation."""
    transform = fpp.FlowTransform(bijection)
    transform.weights.assign(_tree.map_tree(torch.tensor, draw(bijection, rng, 0.5)))
    return transform


def normal(shape):
    """A standard normal over events of this shape."""
    return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))


def at_context(transform, rng, batch=()):
    context = to("torch", context_for(transform.bijection, rng, batch))
    return transform if context is None else transform.condition(context)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_is_the_bijection_as_a_torch_transform(name, rng):
    transform = at_context(trained(BIJECTIONS[name], rng), rng, (4,))
    x = torch.tensor(rng.normal(size=(4, *transform.bijection.x_shape)))
    tree = transform.weights.tree()
    y, log_det = transform.bijection.forward(tree, x, transform.context)
    assert isinstance(transform, dist.TransformModule)
    assert transform.domain.event_dim == len(transform.bijection.x_shape)
    assert transform.codomain.event_dim == len(transform.bijection.y_shape)
    assert torch.equal(transform(x), y)
    assert torch.allclose(transform.log_abs_det_jacobian(x, y), log_det, atol=1e-8)
    assert torch.allclose(transform.inv(y), x, atol=1e-7)
    assert torch.allclose(transform.inv.log_abs_det_jacobian(y, x), -log_det, atol=1e-7)
    assert transform.inv.inv == transform
    assert transform.with_cache(1) is transform
    base = normal(transform.bijection.x_shape)
    plain = dist.TransformedDistribution(base, [transform])
    assert torch.allclose(plain.log_prob(y), base.log_prob(x) - log_det, atol=1e-7)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_state_dict_holds_all_that_decides_the_numbers(name, rng):
    transform = trained(BIJECTIONS[name], rng)
    declared = [*_tree.leaves(transform.bijection.parameters()), *_tree.leaves(transform.bijection.constants())]
    assert set(transform.state_dict()) == {"weights." + ".".join(path) for path, _ in declared}
    fresh = fpp.FlowTransform(BIJECTIONS[name])
    fresh.load_state_dict(transform.state_dict(), strict=True)
    x = torch.tensor(rng.normal(size=(3, *transform.bijection.x_shape)))
    transform, fresh = (at_context(t, np.random.default_rng(1)) for t in (transform, fresh))
    for other in (fresh, copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert is_real(other.codomain) == is_real(transform.codomain)
        assert torch.equal(other(x), transform(x))


def test_moves_as_one_module():
    flow = fpp.Flow(fp.maf(4, num_flows=2), base=dist.Laplace(torch.zeros(4), torch.ones(4)).to_event(1))
    flow.to(torch.float32)
    assert all(t.dtype in (torch.float32, torch.bool, torch.int64) for t in flow.state_dict().values())
    assert flow().rsample((2,)).dtype == torch.float32
    assert flow().log_prob(torch.zeros(3, 4, dtype=torch.float32)).dtype == torch.float32
    flow.to("meta")
    assert flow().rsample((2,)).device.type == "meta"
    assert flow().base_dist.base_dist.loc.device.type == "meta"


def test_inverse_shares_its_weights_under_one_name():
    transform = fpp.realnvp(4)
    inverse = transform.inv
    assert [id(p) for p in inverse.parameters()] == [id(p) for p in transform.parameters()]
    assert len(list(inverse.parameters())) > 0
    assert len(torch.nn.ModuleList([transform, inverse]).state_dict()) == 2 * len(transform.state_dict())
    assert len(list(torch.nn.ModuleList([transform, inverse]).parameters())) == len(list(transform.parameters()))


def change_by_fused_step(flow, y):
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.1, fused=True)
    flow().log_prob(y).sum().backward()
    optimizer.step()


def change_by_data(flow, y):
    for parameter in flow.parameters():
        parameter.data = parameter.data + 0.1


def change_by_vector(flow, y):
    vector = torch.nn.utils.parameters_to_vector(flow.parameters())
    torch.nn.utils.vector_to_parameters(vector + 0.1, flow.parameters())


@pytest.mark.parametrize("change", [change_by_fused_step, change_by_data, change_by_vector])
@pytest.mark.parametrize("score", ["flow", "distribution", "bare"])
def test_nothing_is_stale_after_the_weights_changed(change, score):
    flow = fpp.Flow(fp.realnvp(3, num_flows=2))
    distribution = flow()
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    bare = dist.TransformedDistribution(base, [flow.transform])
    with torch.no_grad():
        y = distribution.rsample((5,))
    log_prob = {"flow": lambda: flow().log_prob(y), "distribution": lambda: distribution.log_prob(y)}.get(
        score, lambda: bare.log_prob(y)
    )
    before = log_prob()
    change(flow, y)
    expected = flow().log_prob(y.clone())
    assert torch.equal(log_prob(), expected)
    assert (expected - before).abs().min() > 1e-4


def test_density_and_gradient_do_not_depend_on_the_identity_of_a_tensor(rng):
    flow = fpp.Flow(fp.realnvp(3, num_flows=2))
    flow.transform.weights.assign(_tree.map_tree(torch.tensor, draw(flow.bijection, rng, 0.5)))
    gradients = []
    for score in (lambda d, y: d.log_prob(y), lambda d, y: d.log_prob(y.clone()), lambda d, y: flow().log_prob(y)):
        torch.manual_seed(1)
        distribution = flow()
        y = distribution.rsample((4,))
        value = score(distribution, y).sum()
        gradients.append([value, *torch.autograd.grad(value, list(flow.parameters()))])
    for other in gradients[1:]:
        for a, b in zip(gradients[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-9)


def test_sample_without_gradient_is_scored_with_one():
    flow = fpp.Flow(fp.realnvp(3))
    for sample in ("sample", "rsample"):
        distribution = flow()
        with torch.no_grad():
            y = getattr(distribution, sample)((4,))
        assert distribution.log_prob(y).requires_grad
    distribution = flow()
    y = distribution.rsample((4,))
    with torch.no_grad():
        y.add_(1.0)
    assert torch.allclose(distribution.log_prob(y), flow().log_prob(y))


def test_naked_training_loop_reuses_a_tensor():
    flow = fpp.Flow(fp.maf(2, num_flows=2))
    data = 3 + torch.randn(50, 2)
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        loss = -flow().log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(("name", "layers"), [("realnvp", 8), ("iaf", 4), ("maf", 4)])
def test_sampling_with_density_and_density_cost_one_pass_per_layer(name, layers, count_passes):
    flow = fpp.Flow(fp.make_flow(name, 3))
    if name != "maf":  # its sampling is sequential
        distribution = flow()
        distribution.log_prob(distribution.rsample((2,)))
        assert len(count_passes) == layers
    if name != "iaf":  # its scoring is
        count_passes.clear()
        flow().log_prob(torch.zeros(2, 3))
        assert len(count_passes) == layers


def test_weights_are_drawn_by_the_global_seed():
    def first_weights():
        torch.manual_seed(3)
        return next(fpp.realnvp(3).parameters()).detach()

    assert torch.equal(first_weights(), first_weights())
    assert not torch.equal(first_weights(), next(fpp.realnvp(3).parameters()).detach())


CONTEXTUAL = {name: fp.make_flow(name, 3, context_dim=2) for name in ("planar", "nice", "realnvp", "iaf", "maf")}


@pytest.mark.parametrize("name", CONTEXTUAL)
def test_gradients_reach_the_context(name, rng):
    flow = fpp.Flow(CONTEXTUAL[name])
    flow.transform.weights.assign(_tree.map_tree(torch.tensor, draw(flow.bijection, rng, 0.5)))
    value = torch.tensor(rng.normal(size=3))
    context = torch.tensor(rng.normal(size=2), requires_grad=True)
    (gradient,) = torch.autograd.grad(flow(context).log_prob(value), context)
    assert gradient.abs().min() > 1e-3
    for i in range(2):
        step = 1e-6 * torch.eye(2)[i]
        ahead, behind = (flow(c).log_prob(value) for c in (context + step, context - step))
        assert torch.allclose(gradient[i], (ahead - behind) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("context_batch", [(), (4,), (2, 1, 4)])
@pytest.mark.parametrize("sample_shape", [(), (7,), (2, 3)])
def test_shapes_follow_base_and_context(context_batch, sample_shape):
    flow = fpp.Flow(fp.realnvp(3, num_flows=2, context_dim=2))
    distribution = flow(torch.randn(*context_batch, 2))
    assert distribution.batch_shape == context_batch
    assert distribution.event_shape == (3,)
    y = distribution.rsample(sample_shape)
    assert y.shape == (*sample_shape, *context_batch, 3)
    assert distribution.log_prob(y).shape == (*sample_shape, *context_batch)
    wide = distribution.expand((5, *context_batch))
    assert wide.rsample().shape == (5, *context_batch, 3)
    assert distribution.support.event_dim == 1


@pytest.mark.parametrize(
    "base", [dist.Normal(torch.zeros(3), 1.0), dist.Normal(torch.zeros(3), 1.0).to_event(1), torch.nn.Module]
)
def test_base_distributions(base):
    if base is torch.nn.Module:

        class Base(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.loc = torch.nn.Parameter(torch.zeros(3))

            def forward(self):
                return dist.Laplace(self.loc, 1.0).to_event(1)

        base = Base()
    flow = fpp.Flow(fp.planar(3), base)
    assert flow().batch_shape == ()
    assert flow().log_prob(flow().sample((5,))).shape == (5,)


def test_frozen_flow_does_not_train():
    flow = fpp.Flow(fp.realnvp(3)).freeze()
    assert not any(parameter.requires_grad for parameter in flow.parameters())
    assert not flow.training
    assert flow().rsample().requires_grad is False


def test_named_transforms_take_the_arguments_of_their_bijections():
    transform = fpp.Planar(3, num_flows=2)
    assert transform.bijection == fp.Planar(3, num_flows=2)
    assert isinstance(transform, fpp.FlowTransform)
    assert type(pickle.loads(pickle.dumps(transform))) is fpp.Planar
    assert fpp.realnvp(3, hidden_dims=8).bijection == fp.realnvp(3, hidden_dims=8)
    assert repr(fp.Planar(3, num_flows=2)) in repr(transform)


def test_runs_in_one_graph_under_compile():
    flow = fpp.Flow(fp.maf(3, num_flows=2, hidden_dims=4))
    y = torch.randn(4, 3)
    torch._dynamo.reset()
    with pyro.validation_enabled(False):
        compiled = torch.compile(lambda y: flow().log_prob(y), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(y), flow().log_prob(y))


def test_merged_tree_is_that_of_the_bijection(rng):
    bijection = BIJECTIONS["repeat"]
    params = draw(bijection, rng)
    transform = fpp.FlowTransform(bijection)
    transform.weights.assign(_tree.map_tree(torch.tensor, params))
    found, expected = (dict(_tree.leaves(t)) for t in (transform.weights.tree(), merged(bijection, params, "torch")))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[path], expected[path]) for path in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {"v": v[:1]}, r"'v' has the shape \(1, 3\), expected \(2, 3\)"),
        (lambda v: {"w": v}, r"'v' has the shape None, expected \(2, 3\)"),
        (lambda v: {"v": v, "w": v}, r"'w' has the shape \(2, 3\), expected None"),
    ],
)
def test_weights_of_another_bijection_are_refused(change, message):
    transform = fpp.Householder(3)
    before = transform.weights.v.detach().clone()
    with pytest.raises(ValueError, match=message):
        transform.weights.assign(change(before + 1.0))
    assert torch.equal(transform.weights.v, before)


def test_what_is_not_a_bijection_is_refused():
    for wrong in ("realnvp", fp.Planar, None):
        with pytest.raises(TypeError, match=r"expected a flowppl.Bijection, such as flowppl.realnvp\(3\)"):
            fpp.Flow(wrong)


def test_a_distribution_can_be_copied_after_sampling():
    distribution = fpp.Flow(fp.realnvp(2, num_flows=2))()
    y = distribution.rsample((3,))
    assert torch.allclose(copy.deepcopy(distribution).log_prob(y), distribution.log_prob(y))


def test_a_flow_from_an_interval_needs_a_base_there():
    with pytest.raises(ValueError, match=r"takes values in \(0.0, 1.0\) only"):
        fpp.Flow(fp.Invert(fp.Elementwise(2, fp.Sigmoid())))()


def test_init_from_sets_a_flow_from_data(rng):
    data = torch.tensor(5 + 2 * rng.normal(size=(100, 2)))
    flow = fpp.Flow(fp.glow(2, num_flows=2)).init_from(data)
    np.testing.assert_allclose(flow.transform.inv(data).mean(0).detach(), 0, atol=1e-9)


SMALL = {name: fp.make_flow(name, 3, num_flows=2, **FEW_STEPS.get(name, {})) for name in VECTOR_RECIPES}
CONDITIONAL = {
    name + "-context": fp.make_flow(name, 3, num_flows=2, context_dim=2, **FEW_STEPS.get(name, {}))
    for name in VECTOR_RECIPES
}
INVERTED_END = {"inverted-end": fp.Invert(fp.Elementwise(3, fp.Sigmoid()))}
EVERYWHERE = SMALL | CONDITIONAL | ENDS | INVERTED_END


def base_for(bijection, batch=()):
    if bijection.x_support == (0.0, 1.0):
        return dist.Uniform(torch.zeros(*batch, 3), 1.0).to_event(1)
    return dist.Normal(torch.zeros(*batch, 3), 1.0).to_event(1)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_works_in_a_plain_transformed_distribution(name, rng):
    bijection = EVERYWHERE[name]
    transform = at_context(trained(bijection, rng), rng, (4,))
    for base in (base_for(bijection), base_for(bijection, (4,)), base_for(bijection, (2, 1))):
        plain, ours = dist.TransformedDistribution(base, [transform]), fpp.FlowDistribution(base, transform)
        expanded = (5, 2, 4) if ours.batch_shape in ((2, 4), (4,)) else (5, *ours.batch_shape)
        for one, other in ((plain, ours), (plain.expand(expanded), ours.expand(expanded))):
            assert (one.batch_shape, one.event_shape) == (other.batch_shape, other.event_shape)
            assert repr(one.support) == repr(other.support)
            assert one.support.event_dim == 1
            assert one.has_rsample
            torch.manual_seed(1)
            y = one.rsample((2,))
            torch.manual_seed(1)
            assert torch.equal(y, other.rsample((2,)))
            assert one.sample().shape == one.batch_shape + one.event_shape
            assert one.support.check(y).all()
            # no slack but that of solving twice, where a saturated end leaves few digits
            y = y.detach()
            assert torch.allclose(one.log_prob(y), other.log_prob(y), rtol=1e-6, atol=1e-6)
    if bijection.y_support != (-np.inf, np.inf):
        with pytest.raises(ValueError, match="support"):
            dist.TransformedDistribution(base, [transform], validate_args=True).log_prob(torch.full((3,), -7.0))


def test_transforms_follow_each_other_in_a_plain_transformed_distribution(rng):
    parts = [trained(SMALL[name], rng) for name in ("planar", "realnvp")]
    parts.append(fpp.Elementwise(3, fp.Sigmoid()))
    base = dist.Normal(torch.zeros(2, 3), 1.0)  # the transforms make an event of its last axis
    plain = dist.TransformedDistribution(base, parts)
    joined = dist.TransformedDistribution(base, [dist.ComposeTransformModule(parts)])
    y = plain.rsample((4,)).detach()
    assert y.shape == (4, 2, 3)
    x, log_det = y, 0.0
    for part in reversed(parts):
        x, step = part.inverse_and_log_det(x)
        log_det = log_det + step
    expected = base.log_prob(x).sum(-1) + log_det
    for distribution in (plain, joined):
        assert torch.allclose(distribution.log_prob(y), expected)


@pytest.mark.parametrize("name", [name for name, flow in (CONDITIONAL | BIJECTIONS).items() if flow.context_dim])
def test_is_a_conditional_transform(name, rng):
    bijection = (CONDITIONAL | BIJECTIONS)[name]
    transform = trained(bijection, rng)
    assert isinstance(transform, dist.ConditionalTransform)
    base = normal(bijection.x_shape)
    context = to("torch", context_for(bijection, rng, (4,))).requires_grad_()
    given = dist.ConditionalTransformedDistribution(base, [transform]).condition(context)
    ours = fpp.FlowDistribution(base, transform.condition(context))
    assert given.batch_shape == (4,)
    y = given.rsample((2,)).detach()
    assert torch.allclose(given.log_prob(y), ours.log_prob(y), rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(given.log_prob(y).sum(), context)
    assert gradient.abs().max() > 0
    base = normal(bijection.y_shape)
    turned = dist.ConditionalTransformedDistribution(base, [transform.inv]).condition(context)
    x = turned.sample((2,))
    z, log_det = transform.condition(context).forward_and_log_det(x)
    assert torch.allclose(turned.log_prob(x), base.log_prob(z) + log_det, rtol=1e-6, atol=1e-6)


def test_stands_beside_other_transforms_in_a_conditional_distribution(rng):
    conditional, plain = trained(CONDITIONAL["nsf-context"], rng), trained(SMALL["planar"], rng)
    base, context = dist.Normal(torch.zeros(3), 1.0).to_event(1), torch.tensor(rng.normal(size=(4, 2)))
    host = dist.transforms.AffineTransform(1.0, 2.0)
    mixed = dist.ConditionalTransformedDistribution(base, [conditional, host, plain])
    module = dist.conditional.ConditionalComposeTransformModule([conditional, plain])
    assert len(list(module.parameters())) == len(list(conditional.parameters())) + len(list(plain.parameters()))
    y = mixed.condition(context).sample()
    expected = dist.TransformedDistribution(base, [conditional.condition(context), host, plain])
    assert torch.equal(mixed.condition(context).log_prob(y), expected.log_prob(y))
    assert plain.condition(context) is plain
    mixed.clear_cache()
    with pytest.raises(ValueError, match=r"unconditional .*context of shape \(4, 2\); build it with context_dim=2"):
        fpp.Flow(SMALL["planar"])(context).sample()


def test_trains_as_pyros_own_conditional_flows_do(rng):
    transform = fpp.planar(2, num_flows=2, context_dim=3)
    flow = dist.ConditionalTransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [transform])
    context, y = torch.tensor(rng.normal(size=(64, 3))), torch.tensor(2 + rng.normal(size=(64, 2)))
    optimizer = torch.optim.Adam(transform.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = -flow.condition(context).log_prob(y).mean()
        loss.backward()
        optimizer.step()
        flow.clear_cache()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
