"""A user's program in NumPyro, with all the main names; read by mypy as strictly as it can."""

from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from flax import nnx
from numpyro.infer import SVI
from numpyro.optim import Adam

import flowppl as fp
import flowppl.numpyro as fnp
from flowppl.diagnostics import Calibration, Diagnosis


def model(x: jax.Array, y: jax.Array | None = None) -> None:
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def local_model(y: jax.Array) -> None:
    with numpyro.plate("data", len(y)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)


KEY = jax.random.key(0)
x, y = jnp.linspace(-1.0, 1.0, 20), jax.random.normal(KEY, (20,))
rows = jax.random.uniform(KEY, (100, 2))


def transforms() -> None:
    layer = fnp.Coupling.init(KEY, 2, fp.RationalQuadraticSpline(8), hidden_dims=32, context_dim=3, mask=[True, False])
    assert_type(layer, fnp.Coupling)
    dense = nnx.Linear(1, 2, rngs=nnx.Rngs(0))
    for network in (dense, nnx.Linear, fnp.ModuleNetwork(dense, identity_start=False)):
        assert_type(fnp.Coupling.init(KEY, 2, network=network), fnp.Coupling)
    assert_type(fnp.Coupling.init(KEY, 2, network=lambda rngs: nnx.Linear(1, 2, rngs=rngs)), fnp.Coupling)
    given = layer.condition(jnp.ones(3))
    assert_type(given, fnp.Coupling)
    assert_type(given(rows), jax.Array)
    assert_type(given.inv, fnp.FlowTransform)
    assert_type(given.forward_and_log_det(rows), tuple[jax.Array, jax.Array])
    assert_type(given.log_abs_det_jacobian(rows, rows), jax.Array)
    stack = [
        fnp.Planar.init(KEY, 2, num_flows=4),
        fnp.Autoregressive.init(KEY, 2, order=(1, 0)),
        fnp.Permute([1, 0], params={}),
        fnp.LU.init(KEY, 2),
        fnp.ActNorm.init(KEY, 2),
    ]
    assert_type(stack[0](rows), jax.Array)
    for helper in (fnp.planar, fnp.radial, fnp.realnvp, fnp.nsf, fnp.iaf, fnp.maf, fnp.glow, fnp.sylvester):
        assert_type(helper(KEY, 2), fnp.FlowTransform)


def flows() -> None:
    bijection = fp.Chain([fp.realnvp(2, num_flows=4, hidden_dims=32), fp.Elementwise(2, fp.Bounded(0.0, 1.0))])
    fp.register_flow("mine", lambda dim: fp.Planar(dim, num_flows=2))
    base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    flow = fnp.Flow.init(KEY, fp.make_flow("maf", 2, hidden_dims=(16,)), base=base)
    assert_type(flow, fnp.Flow)
    assert_type(flow(), fnp.FlowDistribution)
    draws: jax.Array = flow().sample(KEY, (5,))  # NumPyro's distributions have no types for the checker
    total: jax.Array = flow().log_prob(draws).sum()
    assert_type(flow.transform(draws * total), jax.Array)
    assert_type(flow.init_from(rows), fnp.Flow)
    assert_type(flow.transform.inv(rows), jax.Array)
    trained = fnp.fit_density(KEY, fnp.Flow.init(KEY, bijection), rows, num_epochs=2)
    assert_type(trained.flow, fnp.Flow)
    assert_type(fnp.fit_density(KEY, bijection, rows).flow, fnp.Flow)
    parts = fnp.fit_density(KEY, fnp.Mixture.init(KEY, [bijection, bijection]), rows)
    assert_type(parts.flow, fnp.Mixture)
    assert_type(parts.flow.responsibilities(rows), jax.Array)
    counts = fnp.fit_density(KEY, fnp.Dequantized.init(KEY, bijection, levels=5), rows)
    assert_type(counts.flow, fnp.Dequantized)
    assert_type(fnp.evaluate_density(KEY, counts.flow, rows).bits_per_dim, float)


def prior_model(x: jax.Array) -> None:
    prior = fnp.flow("prior", fp.realnvp(2))
    assert_type(prior, fnp.Flow)
    with numpyro.plate("data", len(x)):
        numpyro.sample("x", prior(), obs=x)


def guides() -> None:
    guide = fnp.AutoFlow(model, "iaf")
    guide.setup(x, y)
    svi = SVI(model, guide, Adam(1e-3), fnp.PathELBO(num_particles=4))
    params = svi.run(KEY, 10, x, y).params
    assert_type(guide.median(params), dict[str, jax.Array])
    assert_type(guide.sample_posterior(KEY, params, x, y, sample_shape=(10,)), dict[str, jax.Array])
    local = fnp.AutoLocalFlow(local_model, lambda y: y[:, None], flow="planar", plates="data")
    assert_type(local.setup(y), dict[str, dict[str, Any]])
    SVI(local_model, local, Adam(1e-3), fnp.ImportanceWeightedELBO(num_particles=4)).run(KEY, 10, y)
    SVI(local_model, local, Adam(1e-3), fnp.RenyiELBO(-1, num_particles=4)).run(KEY, 10, y)


def fits() -> None:
    result = fnp.fit(KEY, model, x, y, num_steps=10)
    assert_type(result, fnp.Fit)
    assert_type(result.sample(100), dict[str, jax.Array])
    assert_type(result.resample(100, rng_key=KEY), dict[str, jax.Array])
    assert_type(result.diagnose(rng_key=KEY), Diagnosis)
    guide, params = result.guide, result.params
    assert_type(fnp.diagnose(KEY, model, guide, params, x, y), Diagnosis)
    assert_type(fnp.sbc(KEY, model, x, y, num_simulations=20), Calibration)
    assert_type(fnp.log_weights(KEY, model, guide, params, x, y, num_samples=10), jax.Array)
    assert_type(fnp.resample(KEY, model, guide, params, x, y, num_samples=10), dict[str, jax.Array])


def files() -> None:
    flow, result = fnp.Flow.init(KEY, fp.planar(2)), fnp.fit(KEY, model, x, y, num_steps=10)
    path = Path("flow.safetensors")
    fp.save(path, flow)
    again: fnp.Flow = fp.load(path, backend="numpyro")
    result.save(path)
    assert_type(again(), fnp.FlowDistribution)


def encoder(x: jax.Array) -> jax.Array:
    return x @ jnp.ones((9, 16))


def decoder(z: jax.Array) -> jax.Array:
    return z @ jnp.ones((2, 9))


def autoencoders() -> None:
    posterior = fp.amortized_posterior(2, context_dim=16, flow="planar")
    vae = fnp.FlowVAE(encoder, decoder, posterior, fp.realnvp(2))
    images = jnp.ones((50, 9))
    params = fnp.fit_vae(KEY, vae, images, num_epochs=1).params
    assert_type(vae.sample(KEY, params, 10), jax.Array)
    assert_type(vae.encode(KEY, params, images), jax.Array)
