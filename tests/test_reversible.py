"""Reversible stacks: derivatives as those of the plain ones, in the memory of one layer."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pytest
import torch
from catalogue import BIJECTIONS, ENDS, context_for, draw, merged, numpy, to

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl._arrays import tree as _tree

LAYER = fp.Chain([fp.Coupling(4, hidden_dims=8, context_dim=2), fp.LU(4), fp.ActNorm(4)])
STACKS = {
    "repeat": fp.Repeat(LAYER, 3),
    "scan": fp.Repeat(LAYER, 3, scan=True),
    "nested": fp.Frozen(fp.Invert(fp.Damped(fp.Chain([fp.Repeat(LAYER, 2), LAYER])))),
    "conditional": fp.Chain(
        [
            fp.Conditional(fp.Repeat(fp.Chain([fp.Permute((2, 0, 1, 3)), fp.Householder(4, 2)]), 2), context_dim=2),
            fp.Coupling(4, fp.RationalQuadraticSpline(3), hidden_dims=8, mask="alternating"),
            fp.Elementwise(4, fp.Sigmoid()),
        ]
    ),
}


def gradients(bijection, namespace, direction, params, event, context):
    """Of one number made of all that a direction gives: to weights, event and context."""
    tree = merged(bijection, params, namespace)
    own = _tree.select(bijection.parameters(), tree)

    def loss(own, event, context):
        image, log_det = getattr(bijection, direction)(_tree.replace(tree, own), event, context)
        return (image**2).sum() + (image.reshape(*log_det.shape, -1)[..., 0] * log_det).sum() + (log_det**2).sum()

    given = own, to(namespace, event), to(namespace, context)
    if namespace == "jax":
        argnums = (0, 1) if context is None else (0, 1, 2)
        return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss, argnums))(*given))]
    inputs = [leaf.requires_grad_() for tree in given if tree is not None for _, leaf in _tree.leaves(tree)]
    found = torch.autograd.grad(loss(*given), inputs, materialize_grads=True)
    return [numpy(leaf) for leaf in found]


def assert_same_gradients(bijection, *given):
    plain, reversible = (gradients(each, *given) for each in (bijection, fp.reversible(bijection)))
    for one, other in zip(reversible, plain, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-10 * (1 + np.abs(other).max(initial=0)))


@pytest.mark.filterwarnings("ignore:Chain. reversible=True, but")
@pytest.mark.parametrize("name", BIJECTIONS | ENDS)
def test_every_layer_has_its_plain_derivatives_in_torch(name, rng):
    bijection = (BIJECTIONS | ENDS)[name]
    params, context = draw(bijection, rng, 0.5), context_for(bijection, rng, (3,))
    x = rng.normal(size=(3, *bijection.x_shape))
    y, _ = bijection.forward(merged(bijection, params), x, context)
    stack = fp.Chain([bijection])
    for direction, event in (("forward", x), ("inverse", y)):
        assert_same_gradients(stack, "torch", direction, {"0": params} if params else {}, event, context)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", STACKS)
def test_weights_events_and_contexts_of_other_batches(name, direction, rng):
    bijection = STACKS[name]
    for weights in ((), (5,)):
        for contexts in ((5, 2), (2,)):
            for events in ((5,), (), (1,), (2, 5)):
                params = draw(bijection, rng, 0.7, weights)
                event, context = rng.uniform(0.2, 0.8, size=(*events, 4)), rng.normal(size=contexts)
                assert_same_gradients(bijection, "torch", direction, params, event, context)


@pytest.mark.parametrize(("name", "direction"), [("scan", "inverse"), ("nested", "forward")])
def test_derivatives_in_jax(name, direction, rng):
    bijection = STACKS[name]
    event, context = rng.uniform(0.2, 0.8, size=(1, 4)), rng.normal(size=2)
    assert_same_gradients(bijection, "jax", direction, draw(bijection, rng, 0.7, (5,)), event, context)


SMALL = fp.Chain([fp.Coupling(3, hidden_dims=4), fp.ElementwiseAffine(3)])


def test_derivatives_of_derivatives(rng):
    params, x, found = draw(SMALL, rng, 0.5), rng.normal(size=(2, 3)), []
    for bijection in (SMALL, fp.reversible(SMALL)):
        tree = merged(bijection, params, "torch")
        weights = [leaf.requires_grad_() for _, leaf in _tree.leaves(_tree.select(bijection.parameters(), tree))]
        inputs = [torch.tensor(x, requires_grad=True), *weights]
        y, log_det = bijection.inverse(tree, inputs[0])
        first = torch.autograd.grad((y**2).sum() + (y[:, 0] * log_det).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((leaf**2).sum() for leaf in first), inputs)

        def slope(x, bijection=bijection):
            return bijection.inverse(merged(bijection, params, "jax"), x)[1]

        hessian = jax.jit(jax.vmap(jax.jacfwd(jax.grad(slope))))(jnp.asarray(x))
        found.append([*map(numpy, second), np.asarray(hessian)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * np.abs(other).max())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, as it traces
def test_transformed_by_torch(rng):
    """The plain derivatives inside of ``torch.func``, and a break in the graph of ``torch.compile``."""
    bijection, x = fp.reversible(SMALL), torch.tensor(rng.normal(size=(2, 3)))
    tree = merged(bijection, draw(bijection, rng, 0.5), "torch")
    mapped = torch.func.vmap(torch.func.grad(lambda x: bijection.inverse(tree, x)[1]))(x)
    event = x.clone().requires_grad_()
    expected = torch.autograd.grad(bijection.inverse(tree, event)[1].sum(), event)[0]
    torch.testing.assert_close(mapped, expected)
    torch._dynamo.reset()
    compiled = torch.compile(bijection.inverse, backend="aot_eager")
    found = torch.autograd.grad(compiled(tree, event)[1].sum(), event)[0]
    torch.testing.assert_close(found, expected)


def test_memory_is_that_of_one_layer():
    x = np.ones((512, 4))
    for num, is_reversible in ((4, True), (32, True), (32, False)):
        bijection = fp.Repeat(fp.Coupling(4, hidden_dims=2), num, scan=True, reversible=is_reversible)
        transform, sizes = fpp.FlowTransform(bijection), []
        own = {leaf.untyped_storage().data_ptr() for leaf in transform.parameters()}

        def pack(leaf, own=own, sizes=sizes):
            sizes.append(0 if leaf.untyped_storage().data_ptr() in own else leaf.nbytes)
            return leaf

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda leaf: leaf):
            transform.inverse_and_log_det(torch.tensor(x))
        theirs = fnp.FlowTransform(bijection, jax.tree.map(numpy, transform.weights.tree()))
        gradient = jax.grad(lambda transform: sum(part.sum() for part in transform.inverse_and_log_det(x)))
        planned = jax.jit(gradient).lower(theirs).compile().memory_analysis().temp_size_in_bytes
        assert (sum(sizes) == x.nbytes) == is_reversible
        assert (planned < 20 * x.nbytes) == is_reversible, planned / x.nbytes


def test_what_is_refused_and_warned_of():
    for kind in (lambda **given: fp.Chain([fp.Permute((1, 0))], **given), lambda **given: fp.Repeat(LAYER, 2, **given)):
        with pytest.raises(TypeError, match="reversible must be True or False, got 1"):
            kind(reversible=1)
    with pytest.raises(ValueError, match="no Chain or Repeat in this Planar"):
        fp.reversible(fp.Planar(2))
    with pytest.raises(TypeError, match=r"expected a flowppl\.Bijection"):
        fp.reversible("glow")
    with pytest.warns(UserWarning, match="Chain: reversible=True, but its forward is sequential"):
        fp.Chain([fp.Invert(fp.Autoregressive(2))], reversible=True)
    with pytest.warns(UserWarning, match="Repeat: reversible=True, but its inverse is iterative"):
        fp.reversible(fp.Repeat(fp.Planar(2), 2))


def test_files_keep_it(tmp_path):
    flow = fpp.Flow(fp.reversible(fp.glow(2, num_flows=2, hidden_dims=2)))
    assert flow.bijection != fp.glow(2, num_flows=2, hidden_dims=2)
    fp.save(tmp_path / "flow", flow)
    assert fp.load(tmp_path / "flow", "numpyro").bijection == flow.bijection


def test_fits_are_the_same_and_rounding_is_told(rng):
    x = rng.normal(size=(40, 2))
    plain = fp.Chain([fp.Coupling(2, hidden_dims=4), fp.ElementwiseAffine(2)])
    options = {"num_epochs": 2, "batch_size": 20, "validation": None, "progress": False}
    losses = []
    for bijection in (plain, fp.reversible(plain)):
        pyro.set_rng_seed(0)
        losses.append(fpp.fit_density(bijection, x, **options).losses)
        losses.append(fnp.fit_density(jax.random.key(0), bijection, x, **options).losses)
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-9)
    np.testing.assert_allclose(losses[1], losses[3], rtol=1e-9)

    # Once away by a million in float32, and nothing is left of some digits.
    flow = fpp.Flow(fp.Chain([fp.Elementwise(2, fp.Shift())], reversible=True)).to(torch.float32)
    flow.transform.weights.assign({"0": {"raw": torch.full((1, 2), 1e6)}})
    assert 0.01 < flow.round_trip_error(torch.rand(50, 2, dtype=torch.float32)) < 0.1
    with pytest.warns(UserWarning, match="data come back from the noise with an error of"):
        fpp.fit_density(flow, x, init=False, learning_rate=1e-9, **options)


def test_a_classifier_on_a_bijection_knows_digits():
    path = pathlib.Path(__file__).parents[1] / "benchmarks" / "reversible_classifier.py"
    accuracy, error = runpy.run_path(path)["train_in_torch"](num_blocks=1, num_steps=30)
    assert accuracy > 0.7
    assert error < 1e-4
