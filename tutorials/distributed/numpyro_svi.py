"""SVI with a flow guide, its data and its particles on all devices of this machine:

XLA_FLAGS=--xla_force_host_platform_device_count=2 python tutorials/distributed/numpyro_svi.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpyro.infer import SVI

from flowppl.numpyro import AutoFlow, PathELBO

rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
x = np.linspace(-1.0, 1.0, 1000)
y = 0.5 + 2.0 * x + 0.3 * np.random.default_rng(0).normal(size=1000)


def model(x, y):
    offset = numpyro.sample("offset", dist.Normal(0.0, 3.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 3.0))
    with numpyro.plate("data", len(x)):
        numpyro.sample("y", dist.Normal(offset + slope * x, 0.3), obs=y)


def on_all_devices(particle, keys):
    return jax.vmap(particle)(jax.lax.with_sharding_constraint(keys, rows))


guide = AutoFlow(model)
svi = SVI(model, guide, numpyro.optim.ClippedAdam(0.01), PathELBO(8, vectorize_particles=on_all_devices))
# Data on all devices: the step computes where they lie, and every sum over them is one over devices.
data = jax.device_put((jnp.asarray(x), jnp.asarray(y)), rows)
result = svi.run(jax.random.key(1), 300, *data, progress_bar=False)
draws = guide.sample_posterior(jax.random.key(2), result.params, sample_shape=(1000,))
print(f"slope {draws['slope'].mean():.1f}")
