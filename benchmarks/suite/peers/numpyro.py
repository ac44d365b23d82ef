"""NumPyro's own transforms and guides; and the models that guides are timed on."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.example_libraries import stax
from numpyro.distributions.flows import InverseAutoregressiveTransform
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoIAFNormal
from numpyro.nn import AutoregressiveNN

Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=np.float32)
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=np.float32)


def autoregressive(dim, layers, hidden):
    """The weights, and a function from them to the layers, those of an IAF."""
    orders = [jnp.arange(dim), jnp.arange(dim)[::-1]]
    networks = [
        AutoregressiveNN(dim, list(hidden), permutation=orders[i % 2], nonlinearity=stax.Relu) for i in range(layers)
    ]

    def parts(weights):
        for (_, network), each in zip(networks, weights, strict=True):
            yield InverseAutoregressiveTransform(lambda x, network=network, each=each: network(each, x))

    return [init(jax.random.key(i), (dim,))[1] for i, (init, _) in enumerate(networks)], parts


def maf(dim, layers, hidden):
    """The layers the other way round: so that the score is one pass."""
    weights, parts = autoregressive(dim, layers, hidden)
    normal = dist.Normal(jnp.zeros(dim), 1.0).to_event(1)

    def score(weights, x):
        total = 0.0
        for part in parts(weights):
            y, intermediates = part.call_with_intermediates(x)
            total, x = total + part.log_abs_det_jacobian(x, y, intermediates), y
        return total + normal.log_prob(x)

    return weights, score


def maf_both_ways(dim, layers, hidden):
    weights, parts = autoregressive(dim, layers, hidden)

    def there(weights, x):
        for part in parts(weights):
            x = part(x)
        return x

    def back(weights, y):
        for part in reversed(list(parts(weights))):
            y = part._inverse(y)
        return y

    return weights, there, back


def schools():
    """Eight schools, not centred."""

    def model():
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            raw = numpyro.sample("raw", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(mu + tau * raw, SIGMA), obs=Y)

    return model


def regression(dim):
    """A logistic regression on 2,000 rows."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, dim)).astype(np.float32)
    y = jnp.asarray((rng.logistic(size=2000) < rows @ rng.normal(size=dim) / 4).astype(np.float32))
    rows = jnp.asarray(rows)

    def model():
        w = numpyro.sample("w", dist.Normal(jnp.zeros(dim), 1.0).to_event(1))
        with numpyro.plate("data", 2000):
            numpyro.sample("y", dist.Bernoulli(logits=rows @ w), obs=y)

    return model


MODELS = {"schools": schools, "regression55": lambda: regression(55), "regression50": lambda: regression(50)}


def ways(model, new_guide):
    """Steps of SVI, one in a compiled call, and 100."""

    def svi(num_steps):
        svi = SVI(model, new_guide(), numpyro.optim.Adam(1e-3), Trace_ELBO())
        state = svi.init(jax.random.key(0))
        run = jax.jit(lambda state: jax.lax.scan(lambda state, _: svi.update(state), state, None, length=num_steps))

        def step():
            nonlocal state
            state, losses = run(state)
            return losses

        return step, num_steps

    return {"1 step": lambda: svi(1), "100 steps": lambda: svi(100)}


def guides(name, default=False):
    model = MODELS[name]()
    return ways(model, lambda: AutoIAFNormal(model, nonlinearity=stax.Relu))


def first_step(kind):
    return lambda: jax.block_until_ready(guides("regression50")["1 step"]()[0]())
