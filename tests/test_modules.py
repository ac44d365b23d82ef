"""Modules of torch and of flax as networks of layers: their numbers, their weights, and those that are refused."""

import copy
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from flax import nnx
from pyro.infer import SVI, Trace_ELBO

import flowppl as fp
import flowppl.numpyro as fnp
import flowppl.pyro as fpp
from flowppl.networks import bind_network, read_network

nn = torch.nn
LEAVES = ("0.weight", "0.bias", "2.weight", "2.bias")


def torch_net(num_in=2, num_out=4):
    return nn.Sequential(nn.Linear(num_in, 5), nn.Tanh(), nn.Linear(5, num_out))


class Net(nnx.Module):
    """The same of flax."""

    def __init__(self, num_in=2, num_out=4, *, rngs):
        self.first = nnx.Linear(num_in, 5, rngs=rngs)
        self.last = nnx.Linear(5, num_out, rngs=rngs)

    def __call__(self, x):
        return self.last(jnp.tanh(self.first(x)))


class OwnWeights(Net):
    """A module whose weights flowppl cannot draw anew."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.table = nnx.Param(rngs.params.uniform((4,)))

    def __call__(self, x):
        return super().__call__(x) * self.table


class WithContext(nnx.Module):
    def __init__(self, *, rngs):
        self.of_x, self.of_context = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x, context):
        return self.of_x(x) * self.of_context(context)


class TorchWithContext(nn.Module):
    def __init__(self):
        super().__init__()
        self.of_x, self.of_context = nn.Linear(2, 4), nn.Linear(3, 4)

    def forward(self, x, context):
        return self.of_x(x) * self.of_context(context)


def flax_net(*sizes):
    return Net(*sizes, rngs=nnx.Rngs(0))


def test_a_torch_module_gives_the_parameters_of_the_layer():
    """Against the module itself with the flow's weights."""
    net = torch_net()
    before = copy.deepcopy(net.state_dict())
    layer = fpp.Coupling(4, network=net)
    x = torch.randn(7, 4)
    assert torch.equal(layer(x), x)  # the start
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    copied = copy.deepcopy(net)
    copied.load_state_dict({name: layer.state_dict()[f"weights.network.module.{name}"] for name in LEAVES})
    raw = copied(x[:, :2])
    mapped, log_slope = fp.Affine().forward(raw.reshape(7, 2, 2).movedim(1, 0), x[:, 2:])
    y, log_det = layer.forward_and_log_det(x)
    torch.testing.assert_close(y, torch.cat([x[:, :2], mapped], -1))
    torch.testing.assert_close(log_det, log_slope.sum(-1))
    torch.testing.assert_close(layer.inv(y), x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_flax_module_gives_the_parameters_of_the_layer(rng):
    net, x = flax_net(), jnp.asarray(rng.normal(size=(7, 4)))
    layer = fnp.Coupling.init(jax.random.key(0), 4, network=net)
    assert jnp.array_equal(layer(x), x)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), layer.params)
    module = params["network"]["module"]
    raw = jnp.tanh(x[:, :2] @ module["first"]["kernel"] + module["first"]["bias"])
    raw = raw @ module["last"]["kernel"] + module["last"]["bias"]
    mapped, log_slope = fp.Affine().forward(jnp.moveaxis(raw.reshape(7, 2, 2), 1, 0), x[:, 2:])
    y, log_det = fnp.Coupling(4, network=net, params=params).forward_and_log_det(x)
    np.testing.assert_allclose(y, jnp.concatenate([x[:, :2], mapped], -1), rtol=1e-12)
    np.testing.assert_allclose(log_det, log_slope.sum(-1), rtol=1e-12)


def test_torch_weights_are_drawn_anew_for_each_layer_and_seed():
    class Odd(nn.Module):  # which the reset of its parts would not give
        def __init__(self, num=1):
            super().__init__()
            self.table = nn.Parameter(torch.randn(4))
            self.inner = torch_net()
            nn.init.constant_(self.inner[0].bias, 7.0)

        def forward(self, x):
            return self.inner(x) * self.table

    for network in (torch_net(), Odd, functools.partial(Odd, 2), lambda: Odd(3)):
        stack = fp.Chain([fp.Repeat(fp.Coupling(4, network=network), 3), fp.Coupling(4, network=network)])

        def drawn(stack=stack):
            pyro.set_rng_seed(3)
            return fpp.Flow(stack), fpp.Flow(stack)

        flow, other = drawn()
        for (name, weight), another, again in zip(
            flow.named_parameters(), other.parameters(), drawn()[0].parameters(), strict=True
        ):
            assert torch.equal(weight, again)
            if "module.2." in name or "inner.2." in name:
                assert not weight.any()
            elif name.endswith("inner.0.bias"):
                assert (weight == 7.0).all()
            else:
                assert not torch.equal(weight, another)
                assert ".0." not in name.split("network")[0] or not torch.equal(weight[0], weight[1])
    net = torch_net()
    layer = fp.Coupling(4, network=net)
    pyro.set_rng_seed(3)
    weights = fpp.FlowTransform(layer).weights.tree()["network"]["module"]
    pyro.set_rng_seed(3)
    for part in (net[0], net[2]):  # as torch draws them
        part.reset_parameters()
    assert torch.equal(weights["0"]["weight"], net[0].weight)


def test_flax_weights_are_drawn_anew_for_each_layer_and_key():
    for network in (flax_net(), functools.partial(Net, 2, 4), lambda rngs: OwnWeights(rngs=rngs)):
        stack = fp.Repeat(fp.Coupling(4, network=network), 3)
        first, again, other = (fnp.FlowTransform.init(jax.random.key(i), stack).params["network"] for i in (0, 0, 1))
        assert jax.tree.all(jax.tree.map(jnp.array_equal, first, again))
        assert not first["module"]["last"]["kernel"].any()
        kernel = first["module"]["first"]["kernel"]
        assert kernel.dtype == float
        assert not jnp.array_equal(kernel, other["module"]["first"]["kernel"])
        assert not jnp.array_equal(kernel[0], kernel[1])
        assert 0.3 < kernel.std() < 1.4  # that of flax is 0.71
        assert not first["module"]["first"]["bias"].any()


@pytest.mark.parametrize("apart", [False, True])
def test_a_context_reaches_the_module(apart, rng):
    context, x = rng.normal(size=(5, 1, 3)), rng.normal(size=(6, 4))
    networks = (TorchWithContext, WithContext) if apart else (torch_net(5), flax_net(5))
    layers = [fp.Coupling(4, context_dim=3, network=network) for network in networks]
    theirs = fnp.FlowTransform.init(jax.random.key(0), layers[1])
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), theirs.params)
    network = fnp.FlowTransform(layers[1], params).bijection._network
    seen = jnp.broadcast_to(x[:, :2], (5, 6, 2))
    given = jnp.broadcast_to(context, (5, 6, 3))
    found = network(params["network"], jnp.asarray(x[:, :2]), jnp.asarray(context))
    part = params["network"]["module"]
    dense = lambda name, x: x @ part[name]["kernel"] + part[name]["bias"]  # noqa: E731
    if apart:
        expected = dense("of_x", seen) * dense("of_context", given)
        names = {"of_x": "of_x", "of_context": "of_context"}
    else:
        expected = dense("last", jnp.tanh(dense("first", jnp.concatenate([seen, given], -1))))
        names = {"first": "0", "last": "2"}
    np.testing.assert_allclose(found, expected * params["network"].get("scale", 1.0), rtol=1e-12)
    ours = fpp.FlowTransform(layers[0])
    module = {
        names[name]: {
            "weight": torch.tensor(np.asarray(each["kernel"]).T.copy()),
            "bias": torch.tensor(np.asarray(each["bias"])),
        }
        for name, each in part.items()
    }
    scale = {key: torch.tensor(np.asarray(leaf)) for key, leaf in params["network"].items() if key == "scale"}
    ours.weights.assign({"network": {"module": module, **scale}})
    x, context = torch.tensor(x), torch.tensor(context)
    y, log_det = ours.condition(context).forward_and_log_det(x)
    theirs = fnp.FlowTransform(layers[1], params).condition(context.numpy())
    for a, b in zip((y, log_det), theirs.forward_and_log_det(x.numpy()), strict=True):
        np.testing.assert_allclose(a.detach(), b, rtol=1e-10)


def test_an_image_has_the_context_as_channels():
    net = nn.Conv2d(1 + 2, 4, 3, padding=1)
    network = bind_network("Test", read_network("Test", net), (1, 4, 3), (4, 4, 3), 2)
    weights = {"module": dict(net.named_parameters())}
    x, context = torch.randn(5, 1, 1, 4, 3), torch.randn(6, 2)
    found = network(weights, x, context)
    channels = context[:, :, None, None].expand(6, 2, 4, 3)
    expected = torch.stack([net(torch.cat([each.expand(6, 1, 4, 3), channels], 1)) for each in x])
    torch.testing.assert_close(found, expected)


class ChannelsLast(nnx.Module):
    def __init__(self, num_in, num_out, *, rngs):
        self.conv = nnx.Conv(num_in, num_out, (3, 3), rngs=rngs)

    def __call__(self, x):
        return jnp.moveaxis(self.conv(jnp.moveaxis(x, 1, -1)), -1, 1)


@pytest.mark.parametrize("mask", ["channel", "checkerboard"])
def test_couplings_of_images_take_modules_in_both_languages(mask, rng):
    sizes = (1, 2) if mask == "channel" else (2, 4)
    net = nn.Conv2d(*sizes, 3, padding=1)
    ours = fpp.FlowTransform(fp.ImageCoupling((2, 3, 4), mask=mask, network=net))
    layer = fp.ImageCoupling((2, 3, 4), mask=mask, network=functools.partial(ChannelsLast, *sizes))
    params = fnp.FlowTransform.init(jax.random.key(0), layer).params
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    conv = params["network"]["module"]["conv"]
    weight = torch.tensor(np.moveaxis(np.asarray(conv["kernel"]), (3, 2), (0, 1)).copy())
    x = torch.randn(5, 2, 3, 4)
    assert torch.equal(ours(x), x)
    ours.weights.assign({"network": {"module": {"weight": weight, "bias": torch.tensor(np.asarray(conv["bias"]))}}})
    for a, b in zip(
        ours.forward_and_log_det(x),
        fnp.FlowTransform(layer, params).forward_and_log_det(x.numpy()),
        strict=True,
    ):
        np.testing.assert_allclose(a.detach(), b, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"ImageCoupling: network=Conv2d must take .* but gives \(n, 3, 3, 4\)"):
        fp.ImageCoupling((2, 3, 4), mask=mask, network=nn.Conv2d(sizes[0], 3, 1))


@pytest.mark.parametrize("language", ["torch", "flax"])
def test_weights_may_have_batch_axes(language, rng):
    layer = fp.Coupling(4, network=torch_net() if language == "torch" else flax_net())
    as_array = torch.tensor if language == "torch" else jnp.asarray
    declared = layer.parameters()["network"]

    def draw(*batch):
        return {"network": fp_map(lambda p: as_array(rng.normal(size=(*batch, *p.shape))), declared)}

    def fp_map(function, tree):
        return {k: fp_map(function, v) if isinstance(v, dict) else function(v) for k, v in tree.items()}

    params, x = draw(3, 1), as_array(rng.normal(size=(2, 4)))
    y, log_det = layer.forward(params, x)
    assert y.shape == (3, 2, 4)
    for i in range(3):
        each = fp_map(lambda leaf, i=i: leaf[i, 0], params)
        for found, expected in zip((y[i], log_det[i]), layer.forward(each, x), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_torch_module_is_trained_moved_and_copied():
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, affine=False)).float().eval()
    net[1].running_mean += 2.0
    flow = fpp.Flow(fp.Repeat(fp.Coupling(4, network=net), 2))
    assert {p.dtype for p in [*flow.parameters(), *flow.buffers()] if p.is_floating_point()} == {torch.float64}
    assert any("running_mean" in name for name in flow.state_dict())
    before = {name: p.detach().clone() for name, p in flow.named_parameters()}
    x = torch.randn(40, 4)
    fit = fpp.fit_density(flow, x, num_epochs=4, validation=None, progress=False).flow
    assert all(not torch.equal(p, before[name]) for name, p in fit.named_parameters())
    assert copy.deepcopy(fit).bijection == fit.bijection == fp.Repeat(fp.Coupling(4, network=net), 2)
    assert hash(fit.bijection) == hash(fp.Repeat(fp.Coupling(4, network=net), 2))
    other = pickle.loads(pickle.dumps(fit))
    torch.testing.assert_close(other().log_prob(x), fit().log_prob(x))
    other = fpp.Flow(fp.Repeat(fp.Coupling(4, network=net), 2))
    other.load_state_dict(fit.state_dict())
    net.train()  # of no account
    torch.testing.assert_close(other().log_prob(x), fit().log_prob(x))
    assert fit.to(torch.float32)().log_prob(x.float()).dtype == torch.float32
    # One program, also for a layer made again of the same module.
    log_prob = torch.compile(lambda layer, x: layer.inverse_and_log_det(x)[1], backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(log_prob(other.transform, x), other.transform.inverse_and_log_det(x)[1])


def test_a_flax_module_is_trained_copied_and_compiled_once():
    calls = []

    class Counted(Net):
        def __call__(self, x):
            calls.append(1)
            return super().__call__(x)

    net = Counted(rngs=nnx.Rngs(0))
    key, x = jax.random.key(0), jax.random.normal(jax.random.key(1), (40, 4))
    flow = fnp.Flow.init(key, fp.Repeat(fp.Coupling(4, network=net), 9))  # a compiled loop
    fit = fnp.fit_density(key, flow, x, num_epochs=3, validation=None, progress=False).flow
    moved = jax.tree.map(lambda a, b: not jnp.array_equal(a, b), flow.transform.params, fit.transform.params)
    assert jax.tree.all(moved)
    again = fp.Repeat(fp.Coupling(4, network=net), 9)
    assert copy.deepcopy(fit).bijection == fit.bijection == again
    fit().log_prob(x)
    del calls[:]
    fnp.Flow(copy.deepcopy(again), fit.transform.params)().log_prob(x)
    assert len(calls) == 0
    flow = fnp.Flow.init(key, fp.Coupling(4, network=Net))
    same = pickle.loads(pickle.dumps(flow))
    assert jnp.array_equal(same().log_prob(x), flow().log_prob(x))


def test_guides_take_flows_of_modules():
    def model():
        pyro.sample("z", pdist.Normal(torch.zeros(4), 1.0).to_event(1))

    guide = fpp.AutoFlow(model, fp.Coupling(4, network=torch_net()))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    assert all(np.isfinite(svi.step()) for _ in range(3))
    names = [name for name in pyro.get_param_store() if "module" in name]
    assert len(names) == 4

    def their_model():
        numpyro.sample("z", ndist.Normal(jnp.zeros(4), 1.0).to_event(1))

    guide = fnp.AutoFlow(their_model, lambda dim: fp.Repeat(fp.Coupling(dim, network=Net), 2))
    svi = numpyro.infer.SVI(their_model, guide, numpyro.optim.Adam(1e-2), numpyro.infer.Trace_ELBO())
    states = jax.jit(jax.vmap(lambda key: svi.init(key)))(jax.random.split(jax.random.key(0), 2))
    kernel = svi.get_params(states)["auto_flow"]["0"]["network"]["module"]["first"]["kernel"]
    assert kernel.shape == (2, 2, 2, 5)
    assert not jnp.array_equal(kernel[0], kernel[1])

    net = flax_net()

    def with_flow():
        flow = fnp.flow("prior", fp.Coupling(4, network=net))
        numpyro.sample("x", flow(), obs=jnp.ones(4))

    svi = numpyro.infer.SVI(with_flow, lambda: None, numpyro.optim.Adam(1e-2), numpyro.infer.Trace_ELBO())
    _, loss = jax.jit(svi.update)(svi.init(jax.random.key(0)))
    assert np.isfinite(loss)


class Doubling(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], -1)


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, x):
        last, self.last = self.last, torch.cat([x, x], -1)
        return self.last if last is None else last + self.last


class Taken(nn.Module):
    def __init__(self):
        super().__init__()
        self.half = nn.Linear(2, 4)


ONCE = torch_net()
TORCH_REFUSED = {
    "batch norm": (lambda: nn.Sequential(torch_net(2, 4), nn.BatchNorm1d(4)), "buffer '1.running_mean' .* LayerNorm"),
    "batch statistics": (
        lambda: nn.Sequential(torch_net(2, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        "the same for each row alone",
    ),
    "dropout": (lambda: nn.Sequential(torch_net(2, 4), nn.Dropout(0.5)), r"random numbers .* module.eval\(\)"),
    "memory": (Remembering, "must be a function of its input"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), r"'0.weight' has no shape yet; give the layer its width"),
    "outputs": (
        lambda: torch_net(2, 3),
        r"network=Sequential must take .* \(n, 2\) and give \(n, 4\), but gives \(n, 3\)",
    ),
    "inputs": (lambda: torch_net(3, 4), r"\(n, 2\) and give \(n, 4\), but raised RuntimeError: (addmm: )?mat1"),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 4)),
        "original0' cannot be drawn anew .* network=lambda: ...",
    ),
    "one module": (lambda: lambda: ONCE, "must make a new module at each call"),
    "no module": (lambda: lambda: 3, "must make a torch.nn.Module, got 3"),
    "arguments": (lambda: lambda a, b: ONCE, "or a function that makes one, without arguments for torch"),
    "operation": (lambda: torch.tanh, "network must have .* got <built-in method tanh"),
    "name": (Taken, "the parameter 'half.weight' needs a name that no module has already"),
    "tuple": (lambda: nn.LSTM(2, 4), "must give one tensor, got a tuple"),
}


@pytest.mark.parametrize("name", TORCH_REFUSED)
def test_torch_modules_that_are_no_networks_are_refused(name):
    make, message = TORCH_REFUSED[name]
    network = make()
    state = torch.get_rng_state()
    with pytest.raises((ValueError, TypeError), match=message):
        fp.Coupling(4, network=network)
    assert torch.equal(state, torch.get_rng_state())


def with_layer(layer):
    return lambda: lambda rngs: nnx.Sequential(Net(rngs=rngs), layer(rngs))


SAME = flax_net()
FLAX_REFUSED = {
    "batch norm": (with_layer(lambda rngs: nnx.BatchNorm(4, rngs=rngs)), r"mean, .*var when .* module.eval\(\)"),
    "dropout": (with_layer(lambda rngs: nnx.Dropout(0.5, rngs=rngs)), "rngs.count when it is called"),
    "outputs": (lambda: flax_net(2, 3), r"network=Net must take .* \(n, 2\) and give \(n, 4\), but gives \(n, 3\)"),
    "inputs": (lambda: flax_net(3, 4), r"\(n, 2\) and give \(n, 4\), but raised TypeError"),
    "own weights": (lambda: OwnWeights(rngs=nnx.Rngs(0)), "'table' cannot be drawn anew .* network=lambda rngs: ..."),
    "one module": (lambda: lambda rngs: SAME, "must make a new module at each call"),
    "no module": (lambda: lambda rngs: 3, "must make a flax.nnx.Module, got 3"),
    "operation": (lambda: jnp.tanh, "network must have .* got <PjitFunction"),
    "not callable": (lambda: nnx.Dict(a=1), "not callable"),
}


@pytest.mark.parametrize("name", FLAX_REFUSED)
def test_flax_modules_that_are_no_networks_are_refused(name):
    make, message = FLAX_REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=message):
        fp.Coupling(4, network=make())


def test_more_that_is_refused(tmp_path):
    flows = fpp.Coupling(4, network=torch_net()), fnp.Coupling.init(jax.random.key(0), 4, network=Net)
    for name, flow in zip(("Sequential", "Net"), flows, strict=True):
        with pytest.raises(
            TypeError, match=rf"cannot save bijection.network, the module {name} .* state_dict or a pytree"
        ):
            fp.save(tmp_path / "flow", flow)
    with pytest.raises(ValueError, match=r"made inside of jit .* network=lambda rngs"):
        jax.eval_shape(lambda: fp.Coupling(4, network=flax_net()))
    with pytest.raises(TypeError, match=r"a module of torch, which only flowppl\.pyro can train"):
        fnp.Coupling.init(jax.random.key(0), 4, network=torch_net())
    with pytest.raises(TypeError, match=r"a module of flax, which only flowppl\.numpyro can train"):
        fpp.Coupling(4, network=flax_net())
    with pytest.raises(TypeError, match="a module of torch and takes its tensors"):
        fp.Coupling(4, network=Doubling()).forward({"network": {"module": {}, "scale": np.ones(4)}}, np.ones(4))
    # A context that follows the input, and is counted with it.
    with pytest.raises(ValueError, match=r"\(n, 5\), the last 3 of the 5 being the context, and give \(n, 4\)"):
        fp.Coupling(4, context_dim=3, network=torch_net(2))


def test_modules_in_evaluation_are_fixed():
    net = nnx.Sequential(Net(rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    net.eval()
    layer = fnp.Coupling.init(jax.random.key(0), 4, network=fnp.ModuleNetwork(net, identity_start=False))
    assert not jnp.allclose(layer(jnp.ones(4)), jnp.ones(4))
    layer = fpp.Coupling(4, network=fpp.ModuleNetwork(nn.Sequential(torch_net(), nn.Dropout()).eval(), False))
    assert torch.equal(layer(torch.ones(4)), layer(torch.ones(4)))
    assert not torch.allclose(layer(torch.ones(4)), torch.ones(4))


def test_the_output_starts_at_zero_wherever_that_is(rng):
    """In the matrices it is linear in, else by a scale; and it leaves zero."""

    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.out, self.inner = nn.Conv2d(3, 2, 1), nn.Conv2d(1, 3, 1)

        def forward(self, x):
            return self.out(torch.relu(self.inner(x)))

    cases = {
        "2.weight 2.bias": torch_net(),
        "1.weight 1.bias": nn.Sequential(nn.Linear(2, 4), nn.LayerNorm(4)),
        "1.weight": nn.Sequential(nn.ReLU(), nn.Linear(2, 4, bias=False)),
        "scale": nn.Sequential(nn.Linear(2, 4), nn.Tanh()),
    }
    for zeros, net in cases.items():
        transform = fpp.Coupling(4, network=net)
        x = torch.randn(5, 4)
        assert torch.equal(transform(x), x)
        ends = [
            name.removeprefix("weights.network.").removeprefix("module.")
            for name, p in transform.named_parameters()
            if not p.any()
        ]
        assert ends == zeros.split()
        transform(x).square().sum().backward()
        moved = [p.grad.abs().sum() > 0 for p in transform.parameters() if not p.any()]
        assert all(moved)
    network = bind_network("Test", read_network("Test", Skipping), (1, 2, 2), (2, 2, 2), 0)
    assert set(network.zeros) == {"out.weight", "out.bias"}
    network = bind_network(
        "Test", read_network("Test", nn.Conv2d(1, 4, 1).requires_grad_(False)), (1, 2, 2), (4, 2, 2), 0
    )
    assert network.parameters()["scale"].shape == (4, 1, 1)
    assert set(network.constants()["module"]) == {"weight", "bias"}
    tanh = fp.Coupling(4, network=lambda rngs: nnx.Sequential(Net(rngs=rngs), jnp.tanh))
    assert tanh.parameters()["network"]["scale"].shape == (4,)
