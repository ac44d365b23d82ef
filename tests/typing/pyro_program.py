"""A user's program in Pyro, with all the main names; read by mypy as strictly as it can."""

from pathlib import Path
from typing import assert_type

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import ClippedAdam

import flowppl as fp
import flowppl.pyro as fpp
from flowppl.diagnostics import Calibration, Diagnosis


def model(x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def local_model(y: torch.Tensor) -> None:
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


x, y = torch.linspace(-1.0, 1.0, 20), torch.randn(20)
rows = torch.rand(100, 2)


def transforms() -> None:
    layer = fpp.Coupling(2, fp.RationalQuadraticSpline(8), hidden_dims=32, context_dim=3, mask=[True, False])
    assert_type(layer, fpp.Coupling)
    net = torch.nn.Sequential(torch.nn.Linear(1, 2))
    for network in (
        net,
        lambda: torch.nn.Linear(1, 2),
        torch.nn.Identity,
        fpp.ModuleNetwork(net, identity_start=False),
    ):
        assert_type(fpp.Coupling(2, network=network), fpp.Coupling)
    given = layer.condition(torch.ones(3))
    assert_type(given, fpp.FlowTransform)
    assert_type(given(rows), torch.Tensor)
    assert_type(given.inv, fpp.FlowTransform)
    assert_type(given.forward_and_log_det(rows), tuple[torch.Tensor, torch.Tensor])
    assert_type(given.log_abs_det_jacobian(rows, rows), torch.Tensor)
    stack = [
        fpp.Planar(2, num_flows=4),
        fpp.Autoregressive(2, order=(1, 0)),
        fpp.Permute([1, 0]),
        fpp.LU(2),
        fpp.ActNorm(2),
    ]
    assert_type(stack[0](rows), torch.Tensor)
    for helper in (fpp.planar, fpp.radial, fpp.realnvp, fpp.nsf, fpp.iaf, fpp.maf, fpp.glow, fpp.sylvester):
        assert_type(helper(2), fpp.FlowTransform)


def flows() -> None:
    bijection = fp.Chain([fp.realnvp(2, num_flows=4, hidden_dims=32), fp.Elementwise(2, fp.Bounded(0.0, 1.0))])
    fp.register_flow("mine", lambda dim: fp.Planar(dim, num_flows=2))
    flow = fpp.Flow(fp.make_flow("maf", 2, hidden_dims=(16,)), base=dist.Normal(torch.zeros(2), 1.0).to_event(1))
    assert_type(flow(), fpp.FlowDistribution)
    assert_type(flow().rsample((5,)), torch.Tensor)
    assert_type(flow().log_prob(rows), torch.Tensor)
    assert_type(flow.init_from(rows).freeze(), fpp.Flow)
    trained = fpp.fit_density(fpp.Flow(bijection), rows, num_epochs=2)
    assert_type(trained.flow, fpp.Flow)
    assert_type(fpp.fit_density(bijection, rows).flow, fpp.Flow)
    parts = fpp.fit_density(fpp.Mixture([bijection, fpp.Flow(bijection)]), rows)
    assert_type(parts.flow, fpp.Mixture)
    assert_type(parts.flow.responsibilities(rows), torch.Tensor)
    counts = fpp.fit_density(fpp.Dequantized(bijection, levels=5), rows)
    assert_type(counts.flow, fpp.Dequantized)
    assert_type(fpp.evaluate_density(counts.flow, rows).bits_per_dim, float)


def guides() -> None:
    guide = fpp.AutoFlow(model, "iaf")
    guide.setup(x, y)
    svi = SVI(model, guide, ClippedAdam({"lr": 1e-3}), fpp.PathELBO(num_particles=4))
    svi.step(x, y)
    assert_type(guide.median(x, y), dict[str, torch.Tensor])
    assert_type(guide.sample_posterior(x, y, sample_shape=(10,)), dict[str, torch.Tensor])
    local = fpp.AutoLocalFlow(local_model, lambda y: y[:, None], flow="planar", plates="data")
    local.setup(y)
    assert_type(local.median(y), dict[str, torch.Tensor])
    SVI(local_model, local, ClippedAdam({"lr": 1e-3}), fpp.ImportanceWeightedELBO(num_particles=4)).step(y)
    SVI(local_model, local, ClippedAdam({"lr": 1e-3}), fpp.RenyiELBO(-1, num_particles=4)).step(y)


def fits() -> None:
    guide = fpp.AutoFlow(model)
    result = fpp.fit(model, x, y, num_steps=10)
    assert_type(result, fpp.Fit)
    assert_type(result.sample(100), dict[str, torch.Tensor])
    assert_type(result.resample(100), dict[str, torch.Tensor])
    assert_type(result.diagnose(), Diagnosis)
    assert_type(fpp.diagnose(model, guide, x, y), Diagnosis)
    assert_type(fpp.sbc(model, x, y, num_simulations=20), Calibration)
    assert_type(fpp.log_weights(model, guide, x, y, num_samples=10), torch.Tensor)
    assert_type(fpp.resample(model, guide, x, y, num_samples=10), dict[str, torch.Tensor])


def files() -> None:
    flow, result = fpp.Flow(fp.planar(2)), fpp.fit(model, x, y, num_steps=10)
    path = Path("flow.safetensors")
    fp.save(path, flow)
    again: fpp.Flow = fp.load(path, backend="pyro")
    result.save(path)
    assert_type(again(), fpp.FlowDistribution)


def autoencoders() -> None:
    encoder, decoder = torch.nn.Linear(9, 16), torch.nn.Linear(2, 9)
    vae = fpp.FlowVAE(encoder, decoder, fp.amortized_posterior(2, context_dim=16, flow="planar"), fp.realnvp(2))
    images = torch.rand(50, 9).round()
    fpp.fit_vae(vae, images, num_epochs=1)
    assert_type(vae.sample(10), torch.Tensor)
    assert_type(vae.encode(images), torch.Tensor)
