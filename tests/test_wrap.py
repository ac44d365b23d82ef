"""Host transforms inside flowppl's flows: the numbers of the host, weights of the flow."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import numpyro.distributions.transforms as nt
import pyro
import pyro.distributions as pdist
import pyro.distributions.transforms as pt
import pytest
import torch
import zuko
from numpyro.distributions.flows import BlockNeuralAutoregressiveTransform, InverseAutoregressiveTransform
from numpyro.nn import AutoregressiveNN
from pyro.infer import SVI, Trace_ELBO

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.numpyro.wrap import Wrap as NumpyroWrap
from flowppl.pyro.wrap import Wrap as PyroWrap
from flowppl.serialization import save

DIM = 3


def same_layer_twice():
    layer = pt.affine_coupling(DIM, [8])
    return torch.distributions.ComposeTransform([layer, pt.Permute(torch.tensor([2, 0, 1])), layer])


PYRO = {
    "affine-coupling": lambda: pt.affine_coupling(DIM, [8]),
    "spline-coupling": lambda: pt.spline_coupling(DIM, hidden_dims=[8]),
    "affine-autoregressive": lambda: pt.affine_autoregressive(DIM, [8]),
    "affine-autoregressive-stable": lambda: pt.affine_autoregressive(DIM, [8], stable=True),
    "affine-autoregressive-inverse": lambda: pt.affine_autoregressive(DIM, [8]).inv,
    "spline-autoregressive": lambda: pt.spline_autoregressive(DIM, [8]),
    "spline": lambda: pt.Spline(DIM, count_bins=4),
    "householder": lambda: pt.Householder(DIM, count_transforms=2),
    "matrix-exponential": lambda: pt.matrix_exponential(DIM, iterations=20),
    "permute": lambda: pt.Permute(torch.tensor([2, 0, 1])),
    "batch-norm": lambda: pt.BatchNorm(DIM).eval(),
    "lower-cholesky-affine": lambda: pt.LowerCholeskyAffine(torch.ones(DIM), torch.tril(torch.ones(DIM, DIM))),
    "affine": lambda: torch.distributions.AffineTransform(torch.ones(DIM), 2.0),
    "sigmoid": lambda: torch.distributions.SigmoidTransform(),
    "stick-breaking": lambda: torch.distributions.StickBreakingTransform(),
    "compose": lambda: torch.distributions.ComposeTransform(
        [pt.affine_coupling(DIM, [8]), pt.Permute(torch.tensor([2, 0, 1])), pt.affine_autoregressive(DIM, [8]).inv]
    ),
    "compose-twice": same_layer_twice,
    "zuko": lambda: zuko.flows.MAF(DIM, transforms=2, hidden_features=(8,))().transform.inv,
    "compose-module": lambda: pt.ComposeTransformModule([pt.affine_coupling(DIM, [8]), pt.Spline(DIM)]),
}
ONE_WAY = {
    "Planar": lambda: pt.Planar(DIM),
    "Radial": lambda: pt.Radial(DIM),
    "Sylvester": lambda: pt.Sylvester(DIM),
    "NeuralAutoregressive": lambda: pt.neural_autoregressive(DIM, [8]),
    "BlockAutoregressive": lambda: pt.block_autoregressive(DIM),
    "Polynomial": lambda: pt.polynomial(DIM, [8]),
}


NETWORK = AutoregressiveNN(DIM, [8])
_, NETWORK_WEIGHTS = NETWORK[0](jax.random.key(0), (DIM,))


def iaf():
    weights = jax.tree.map(lambda leaf: leaf + 0.1, NETWORK_WEIGHTS)
    return InverseAutoregressiveTransform(functools.partial(NETWORK[1], weights))


class Tilt(nt.Transform):
    """A transform of the user's own, with a weight and a number."""

    domain = codomain = ndist.constraints.real_vector

    def __init__(self, weight, power):
        self.weight, self.power = weight, power

    def __call__(self, x):
        return jnp.exp(self.weight * self.power) * x

    def _inverse(self, y):
        return jnp.exp(-self.weight * self.power) * y

    def log_abs_det_jacobian(self, x, y, intermediates=None):
        return jnp.sum(self.weight) * self.power

    def tree_flatten(self):
        return (self.weight, self.power), (("weight", "power"), {})


NUMPYRO = {
    "iaf": iaf,
    "iaf-inverse": lambda: iaf().inv,
    "own": lambda: Tilt(jnp.arange(DIM) / 4, 2.0),
    "permute": lambda: nt.PermuteTransform(jnp.array([2, 0, 1])),
    "lower-cholesky-affine": lambda: nt.LowerCholeskyAffine(jnp.ones(DIM), jnp.tril(jnp.ones((DIM, DIM)))),
    "affine": lambda: nt.AffineTransform(jnp.ones(DIM), 2.0),
    "sigmoid": nt.SigmoidTransform,
    "stick-breaking": nt.StickBreakingTransform,
    "compose": lambda: nt.ComposeTransform([iaf(), nt.PermuteTransform(jnp.array([2, 0, 1])), iaf().inv]),
}
NUMPYRO_ONE_WAY = {
    "BlockNeuralAutoregressiveTransform": lambda: BlockNeuralAutoregressiveTransform(lambda x: (x, jnp.zeros_like(x)))
}


def shaken(transform):
    """A torch transform whose parameters are away from their initialisation."""
    parts = getattr(transform, "parts", [transform])
    for module in (side for part in parts for side in (part, part.inv) if isinstance(side, torch.nn.Module)):
        for parameter in module.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return transform


def base():
    return pdist.Normal(torch.zeros(DIM), 1.0).to_event(1)


@pytest.mark.parametrize("name", PYRO | ONE_WAY)
def test_pyro_transform_keeps_its_numbers(name):
    host = shaken((PYRO | ONE_WAY)[name]())
    flow = fpp.Flow(PyroWrap(host, DIM))
    x = torch.randn(4, DIM)
    y, log_det = flow.transform.forward_and_log_det(x)
    expected = host(x)
    assert torch.equal(y, expected)
    assert y.shape == (4, *flow().event_shape)
    found = host.log_abs_det_jacobian(x, expected)
    torch.testing.assert_close(log_det, (found.sum(-1) if host.domain.event_dim == 0 else found).expand(4))
    if name not in ("stick-breaking", "Sylvester"):  # one is not square, the other is Pyro's and wrong
        rows = torch.stack([torch.autograd.functional.jacobian(flow.transform, row) for row in x])
        torch.testing.assert_close(log_det, torch.linalg.slogdet(rows)[1], rtol=1e-7, atol=1e-7)
    if name in PYRO:
        y = y.detach()
        back, inverse_log_det = flow.transform.inverse_and_log_det(y)
        torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(inverse_log_det, -log_det, rtol=1e-6, atol=1e-6)
        alone = pdist.TransformedDistribution(base(), [host])
        torch.testing.assert_close(flow().log_prob(y), alone.log_prob(y).expand(4), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NUMPYRO)
def test_numpyro_transform_keeps_its_numbers(name, rng):
    host = NUMPYRO[name]()
    flow = fnp.Flow.init(jax.random.key(0), NumpyroWrap(host, DIM))
    x = jnp.asarray(rng.normal(size=(4, DIM)))

    @jax.jit
    def there(flow, x):
        y, log_det = flow.transform.forward_and_log_det(x)
        rows = jax.jit(jax.vmap(jax.jacobian(flow.transform)))(x)
        expected = host(x)
        return y, expected, log_det, host.log_abs_det_jacobian(x, expected), rows

    @jax.jit
    def back(flow, y):
        alone = ndist.TransformedDistribution(ndist.Normal(jnp.zeros(DIM), 1.0).to_event(1), host)
        return *flow.transform.inverse_and_log_det(y), flow().log_prob(y), alone.log_prob(y)

    y, expected, log_det, found, rows = there(flow, x)
    assert y.shape == (4, *flow().event_shape)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    found = found.sum(-1) if host.domain.event_dim == 0 else found
    np.testing.assert_allclose(log_det, np.broadcast_to(found, 4), rtol=1e-10)
    if name != "stick-breaking":
        np.testing.assert_allclose(log_det, np.linalg.slogdet(rows)[1], rtol=1e-7, atol=1e-7)
    again, inverse_log_det, ours, alone = back(flow, y)
    np.testing.assert_allclose(again, x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(inverse_log_det, -log_det, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(ours, np.broadcast_to(alone, 4), rtol=1e-6, atol=1e-6)


TRAINED = {"affine-coupling": 4, "affine-autoregressive-inverse": 4, "compose": 8, "compose-twice": 4, "batch-norm": 2}


@pytest.mark.parametrize(("name", "count"), (TRAINED | {"permute": 0, "affine": 0}).items())
def test_pyro_parameters_train_in_the_flow_and_not_in_the_host(name, count):
    host = shaken(PYRO[name]())
    before = copy.deepcopy(host)
    flow = fpp.Flow(fp.Chain([fp.Planar(DIM), PyroWrap(host, DIM)]))
    ours = [parameter for name, parameter in flow.named_parameters() if ".1." in name]
    assert len(ours) == count
    data = 2 + torch.randn(50, DIM)
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = -flow().log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        if not losses:
            assert all(parameter.grad.abs().max() > 0 for parameter in ours)
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4
    x = torch.randn(2, DIM)
    assert torch.equal(host(x), before(x))


def test_gradients_are_those_of_the_host_alone():
    host = shaken(pt.affine_autoregressive(DIM, [8]))
    flow = fpp.Flow(PyroWrap(host, DIM))
    y = torch.randn(5, DIM)
    ours = torch.autograd.grad(flow().log_prob(y).sum(), list(flow.parameters()))
    alone = pdist.TransformedDistribution(base(), [host]).log_prob(y).sum()
    for found, expected in zip(ours, torch.autograd.grad(alone, list(host.parameters())), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("name", "leaves"), [("iaf", 4), ("own", 1), ("affine", 0)])
def test_numpyro_weights_train(name, leaves):
    bijection = fp.Chain([fp.ElementwiseAffine(DIM), NumpyroWrap(NUMPYRO[name](), DIM)])
    flow = fnp.Flow.init(jax.random.key(0), bijection)
    assert len(jax.tree.leaves(flow.params.get("1", {}))) == leaves
    data = 2 + jax.random.normal(jax.random.key(1), (50, DIM))
    step = jax.jit(jax.value_and_grad(lambda flow: -flow().log_prob(data).mean()))
    losses = []
    for _ in range(4):
        loss, gradient = step(flow)
        assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient.params.get("1", {})))
        flow = jax.tree.map(lambda p, g: p - 1e-2 * g, flow, gradient)
        losses.append(float(loss))
    assert losses == sorted(losses, reverse=True)
    assert step._cache_size() == 1


@pytest.mark.parametrize("name", ["affine-coupling", "spline-autoregressive", "compose"])
def test_nothing_of_the_host_is_stale_or_left_behind(name):
    host = shaken(PYRO[name]())
    flow = fpp.Flow(PyroWrap(host, DIM))
    x = torch.randn(4, DIM)
    with torch.no_grad():
        y = host(x)  # now in the host's own cache
    for parameter in flow.parameters():
        parameter.data += 0.1
    assert (flow.transform(x) - y).abs().max() > 1e-3
    assert (flow.transform.inv(y) - x).abs().max() > 1e-3
    first = flow.transform(x)
    for parameter in flow.parameters():
        parameter.data += 0.1
    assert (flow.transform(x) - first).abs().max() > 1e-3
    assert host(x) is y or name == "compose"
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(fpp.Flow(PyroWrap(PYRO[name](), DIM))))):
        other.load_state_dict(flow.state_dict(), strict=True)
        assert torch.equal(other.transform(x), flow.transform(x))


@pytest.mark.parametrize("name", ["iaf", "own", "compose"])
def test_numpyro_flow_can_be_copied(name):
    flow = fnp.Flow.init(jax.random.key(0), NumpyroWrap(NUMPYRO[name](), DIM))
    x = jnp.ones(DIM)
    np.testing.assert_array_equal(copy.deepcopy(flow).transform(x), flow.transform(x))


def test_sampling_with_density_costs_one_pass():
    host, passes = pt.affine_coupling(DIM, [8]), []
    host.nn.register_forward_hook(lambda *args: passes.append(1))
    distribution = fpp.Flow(PyroWrap(host, DIM))()
    distribution.log_prob(distribution.rsample((2,)))
    assert len(passes) == 1
    distribution.log_prob(torch.ones(DIM))
    assert len(passes) == 2


def test_pyro_flow_moves_as_one_module():
    flow = fpp.Flow(fp.Chain([fp.Planar(DIM), PyroWrap(pt.affine_coupling(DIM, [8]), DIM)])).to(torch.float32)
    x = torch.ones(2, DIM, dtype=torch.float32)
    y, log_det = flow.transform.forward_and_log_det(x)
    assert y.dtype == log_det.dtype == flow.transform.inv(y).dtype == torch.float32
    flow = fpp.Flow(PyroWrap(pt.affine_autoregressive(DIM, [8]), DIM)).to("meta")
    assert flow.transform(torch.ones(2, DIM, device="meta")).device.type == "meta"


def test_repeat_gives_each_layer_weights_of_its_own():
    host = shaken(pt.affine_coupling(DIM, [8]))
    flow = fpp.FlowTransform(fp.Repeat(PyroWrap(host, DIM), 2))
    x = torch.randn(4, DIM)
    torch.testing.assert_close(flow(x), host(host(x)))
    torch.testing.assert_close(flow.inv(flow(x)), x)
    y = flow(x)
    next(flow.parameters()).data[1] += 0.1
    assert not torch.allclose(flow(x), y)
    for scan in (False, True):
        host = iaf()
        flow = fnp.FlowTransform.init(jax.random.key(0), fp.Repeat(NumpyroWrap(host, DIM), 2, scan=scan))
        np.testing.assert_allclose(flow(x.numpy()), host(host(x.numpy())), rtol=1e-10)


@pytest.mark.parametrize(("wrap", "host"), [(PyroWrap, torch.distributions), (NumpyroWrap, nt)])
def test_support_is_that_of_the_host(wrap, host):
    positive, unit = (0.0, np.inf), (0.0, 1.0)
    assert wrap(host.ExpTransform(), DIM).y_support == wrap(host.ExpTransform().inv, DIM).x_support == positive
    assert fp.Chain([fp.Planar(DIM), wrap(host.SigmoidTransform(), DIM)]).y_support == unit
    affine = wrap(host.AffineTransform(1.0, 2.0), DIM)
    assert affine.x_support == affine.y_support == fp.Planar(DIM).y_support
    flow = PyroWrap(pt.affine_coupling(DIM, [8]), DIM) if wrap is PyroWrap else NumpyroWrap(iaf(), DIM)
    assert flow.x_support == flow.y_support == fp.Planar(DIM).y_support


@pytest.mark.parametrize(("wrap", "host"), [(PyroWrap, PYRO["affine-autoregressive"]), (NumpyroWrap, iaf)])
def test_is_a_hashable_bijection_with_shapes_and_costs(wrap, host):
    layer, inverse = wrap(host(), (2, DIM)), wrap(host().inv, DIM)
    assert (layer.forward_cost, layer.inverse_cost) == ("parallel", "sequential")
    assert (inverse.forward_cost, inverse.inverse_cost) == ("sequential", "parallel")
    assert layer.x_shape == layer.y_shape == (2, DIM)
    assert hash(layer) == hash(layer)
    assert layer != wrap(layer.transform, (2, DIM))


def test_events_may_have_more_axes_than_the_host_knows():
    shape = (2, DIM)
    x = torch.randn(4, *shape)
    pyro_flow = fpp.Flow(PyroWrap(pt.ComposeTransformModule([shaken(pt.affine_coupling(DIM, [8]))]), shape))
    log_det = pyro_flow.transform.forward_and_log_det(x)[1]
    found = pyro_flow.bijection.transform.log_abs_det_jacobian(x, pyro_flow.transform(x))
    torch.testing.assert_close(log_det, found.flatten(1).sum(-1))
    assert pyro_flow().log_prob(x).shape == (4,)
    numpyro_flow = fnp.Flow.init(jax.random.key(0), NumpyroWrap(iaf(), shape))
    log_det = numpyro_flow.transform.forward_and_log_det(x.numpy())[1]
    found = iaf().log_abs_det_jacobian(x.numpy(), None)
    np.testing.assert_allclose(log_det, found.reshape(4, -1).sum(-1), rtol=1e-10)
    assert numpyro_flow().log_prob(x.numpy()).shape == (4,)


def test_stands_in_a_pyro_guide():
    def model():
        pyro.sample("z", pdist.Normal(torch.zeros(DIM), 1.0).to_event(1))

    host = shaken(pt.affine_coupling(DIM, [8]))
    guide = fpp.AutoFlow(model, lambda dim: fp.Chain([fp.Planar(dim), PyroWrap(host, dim)]))
    before = {name: value.detach().clone() for name, value in guide.setup().items()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert np.isfinite(svi.step())
    trained = [name for name, value in guide.named_parameters() if not torch.equal(value, before[name])]
    assert len([name for name in trained if name.startswith("flow.transform.weights.0.1.")]) == 4
    copy.deepcopy(guide)


def test_stands_in_a_numpyro_guide():
    def model():
        numpyro.sample("z", ndist.Normal(jnp.zeros(DIM), 1.0).to_event(1))

    guide = fnp.AutoFlow(
        model, lambda dim: fp.Chain([fp.ElementwiseAffine(dim), NumpyroWrap(Tilt(jnp.ones(dim), 2.0), dim)])
    )
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.SGD(1e-2), numpyro.infer.Trace_ELBO())
    state, _ = jax.jit(svi.update)(svi.init(jax.random.key(0)))
    before, after = (params["auto_flow"]["0"]["1"]["0"] for params in (guide.setup(), svi.get_params(state)))
    assert jnp.abs(before - after).min() > 0


@pytest.mark.parametrize("name", ONE_WAY | NUMPYRO_ONE_WAY)
def test_a_direction_that_the_host_lacks_is_refused(name):
    remedy = rf"use flowppl.{name}, which has both" if name in fp.__all__ else "use a bijection of flowppl"
    x = np.ones(DIM)
    if name in ONE_WAY:
        host, x = ONE_WAY[name](), torch.tensor(x)
        flows = [fpp.FlowTransform(PyroWrap(t, DIM)) for t in (host, host.inv)]
    else:
        host = NUMPYRO_ONE_WAY[name]()
        flows = [fnp.FlowTransform.init(jax.random.key(0), NumpyroWrap(t, DIM)) for t in (host, host.inv)]
    run = jax.eval_shape if name in NUMPYRO_ONE_WAY else lambda function, x: function(x)
    for call in (lambda: run(flows[0].inv, x), lambda: run(flows[1], x)):
        with pytest.raises(NotImplementedError, match=rf"Wrap: .*{name}.* does not map in this direction; {remedy}"):
            call()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: PyroWrap(nt.ExpTransform(), 2), TypeError, "a transform of torch or Pyro, got ExpTransform"),
        (lambda: NumpyroWrap(torch.nn.ReLU(), 2), TypeError, "a transform of NumPyro, got ReLU"),
        (lambda: PyroWrap(pt.Planar(2), ()), ValueError, r"Planar maps events of 1 axes, but shape=\(\) has 0"),
        (lambda: NumpyroWrap(iaf(), ()), ValueError, "InverseAutoregressiveTransform maps events of 1 axes"),
        (lambda: save("unused", fpp.Flow(PyroWrap(pt.Planar(2), 2))), TypeError, "cannot save bijection.transform"),
        (
            lambda: fpp.Flow(fp.Conditional(PyroWrap(pt.Planar(2), 2), 1))(torch.ones(5, 1)).rsample(),
            ValueError,
            r"came with batch axes, the shape \(5, 1\), but .* use a bijection of flowppl here",
        ),
        (
            lambda: fnp.Flow.init(jax.random.key(0), fp.Conditional(NumpyroWrap(iaf(), DIM), 1))(
                jnp.ones((5, 1))
            ).sample(jax.random.key(0)),
            ValueError,
            r"came with batch axes",
        ),
    ],
)
def test_errors_say_what_to_do(build, error, message):
    with pytest.raises(error, match=message):
        build()
