"""Steps in JAX, and the memory that they need."""

import jax
import jax.numpy as jnp


def array(x):
    return jnp.asarray(x, dtype=float)  # what JAX says that is


def finished(step):
    """The step, and the wait for its end."""
    return lambda: jax.block_until_ready(step())


def training(weights, score, x):
    gradient = _gradient(score)
    return finished(lambda: gradient(weights, x))


def mapping(weights, function, x):
    mapped = jax.jit(function)
    return finished(lambda: mapped(weights, x))


def memory(weights, score, x):
    """Bytes that the compiler plans for a step, beside the weights, the data and the gradients."""
    return _gradient(score).lower(weights, x).compile().memory_analysis().temp_size_in_bytes


def _gradient(score):
    return jax.jit(jax.value_and_grad(lambda weights, x: -score(weights, x).mean()))
