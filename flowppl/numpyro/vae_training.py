"""Training of variational autoencoders in NumPyro."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from flowppl.autoencoders.model import as_data, check_not_empty
from flowppl.autoencoders.training import FIT_VAE_DOC, VAEFit, average_share, check_options, describe, train
from flowppl.numpyro.flow import Flow
from flowppl.numpyro.steps import make_optimizer, split_batches, take_step
from flowppl.numpyro.vae import EXAMPLE, FlowVAE
from flowppl.serialization import BFLOAT16


def fit_vae(
    rng_key,
    vae: FlowVAE,
    x,
    *,
    params=None,
    validation=0.1,
    batch_size: int = 100,
    num_epochs: int = 500,
    learning_rate: float | Callable[[int], float] = 1e-3,
    optimizer: str = "adam",
    warm_up: int = 50,
    free_bits: float = 0.0,
    patience: int | None = 50,
    clip_norm: float | None = None,
    ema_decay: float = 0.0,
    checkpoint=None,
    progress: bool | None = None,
) -> VAEFit:
    sizes = {"batch_size": batch_size, "num_epochs": num_epochs}
    options = {"optimizer": optimizer, "free_bits": free_bits, "clip_norm": clip_norm, "ema_decay": ema_decay}
    check_options(learning_rate, warm_up, patience, **options, **sizes)
    init_key, seed_key = jax.random.split(rng_key)
    x, validation = as_data(x), as_data(validation)
    check_not_empty(x)
    start = vae.init(init_key, x) if params is None else _checked_params(vae, params, x)
    for data in (x, validation):
        if data is not None and not isinstance(data, numbers.Real):
            vae._check(start, data)

    def make_trainer(data, held_out, seed):
        return _Trainer(vae, start, data, held_out, seed, batch_size, **options)

    # One program, and only where there is a file that tells it.
    is_told = isinstance(vae.prior, Flow) and checkpoint is not None
    held = jax.jit(vae.prior().log_prob) if is_told else None
    of_vae = describe(vae.posterior, vae.prior, vae.likelihood, held)
    trainer, record = train(
        make_trainer,
        np.asarray(x),
        validation,
        int(jax.random.randint(seed_key, (), 0, 2**31 - 1)),
        batch_size=batch_size,
        num_epochs=num_epochs,
        learning_rate=learning_rate,
        warm_up=warm_up,
        patience=patience,
        checkpoint=checkpoint,
        fixed={"backend": "numpyro"} | options | of_vae,
        progress=progress,
    )
    return VAEFit(vae=vae, params=trainer.params, **record)


def _checked_params(vae, params, x):
    expected = jax.eval_shape(lambda key: vae.init(key, x), jax.random.key(0))
    shapes, needed = (
        {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, expected)
    )
    wrong = sorted(name for name in shapes | needed if shapes.get(name) != needed.get(name))
    if wrong:
        raise ValueError(
            "fit_vae: params must have the names and shapes of vae.init(key, x); these are missing, needless or of "
            f"another shape: {', '.join(wrong)}"
        )
    return params


class _Trainer:
    """The steps of :func:`fit_vae`: see :class:`flowppl.autoencoders.training.Trainer`."""

    def __init__(self, vae, params, data, held_out, seed, batch_size, optimizer, free_bits, clip_norm, ema_decay):
        self.vae, self.batch_size, self.ema_decay = vae, batch_size, ema_decay
        self.data, self.held_out = (None if rows is None else jnp.asarray(rows) for rows in (data, held_out))
        self.num_held_out = 0 if held_out is None else len(held_out)
        self.key = jax.random.key(seed)
        clip_norm = math.inf if clip_norm is None else clip_norm
        self.options = (optimizer, free_bits, clip_norm)
        self.params = jax.tree.map(jnp.array, params)  # copies: a step gives its arguments up
        # In half precision an average would not move.
        self.average = jax.tree.map(_at_least_float32, params) if ema_decay else None
        self.memory = make_optimizer(optimizer, clip_norm).init(params)

    def run_epoch(self, epoch, order, rate, beta):
        losses = []
        key = jax.random.fold_in(self.key, epoch + 1)
        batches = list(zip(*split_batches(order, self.batch_size), strict=True))
        for i, batch in enumerate(batches):
            known = ((self.params, self.memory), self.data, *batch, jax.random.fold_in(key, i), rate, beta)
            (self.params, self.memory), loss = _take_step(self.vae, self.options, *known)
            losses.append(loss)
            if self.ema_decay:
                share = average_share(self.ema_decay, epoch * len(batches) + i + 1)
                self.average = _average(self.average, self.params, share)
        return [float(loss) for loss in losses], self._validation_loss() if self.num_held_out else None

    def _validation_loss(self):
        batches = split_batches(np.arange(self.num_held_out), self.batch_size)
        key, params, total = jax.random.fold_in(self.key, 0), self._kept(), 0.0
        for i, batch in enumerate(zip(*batches, strict=True)):
            total += float(_sum_loss(self.vae, params, self.held_out, *batch, jax.random.fold_in(key, i)))
        return total / self.num_held_out

    def _kept(self):
        if not self.ema_decay:
            return self.params
        return jax.tree.map(lambda average, leaf: average.astype(leaf.dtype), self.average, self.params)

    def weights(self):
        return _to_arrays(self.params)

    def averages(self):
        return _to_arrays(self._kept())

    def state(self):
        return _to_arrays((self.memory, self.average))

    def restore(self, weights, state):
        self.params = _from_arrays(self.params, weights)
        if state is not None:
            self.memory, self.average = _from_arrays((self.memory, self.average), state)


# One program for all calls with arrays of the same shapes; an autoencoder is hashed by its identity.


def _noise(vae, key, weights):
    """A row for each of a batch; where the first row is repeated, its noise is, too, so that nothing new can happen."""
    noise = jax.random.normal(key, (len(weights), vae.dim))
    return jnp.where(weights[:, None], noise, noise[0])


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _take_step(vae, options, carry, data, index, weights, key, rate, beta):
    optimizer, free_bits, clip_norm = options
    x, noise = vae._rows(data[index]), _noise(vae, key, weights)

    def mean_loss(params):
        log_likelihood, kl, _ = vae.terms(params, x, noise)
        mean_kl = jnp.average(kl, weights=weights)
        mean_kl = jnp.maximum(mean_kl, free_bits) if free_bits else mean_kl
        return beta * mean_kl - jnp.average(log_likelihood, weights=weights)

    loss, gradient = jax.value_and_grad(mean_loss)(carry[0])
    return take_step(make_optimizer(optimizer, clip_norm), carry, gradient, loss, rate)


@partial(jax.jit, donate_argnums=0)
def _average(average, params, share):
    return jax.tree.map(lambda mean, leaf: (mean + share * (leaf - mean)).astype(mean.dtype), average, params)


@partial(jax.jit, static_argnums=0)
def _sum_loss(vae, params, data, index, weights, key):
    log_likelihood, kl, _ = vae.terms(params, vae._rows(data[index]), _noise(vae, key, weights))
    return jnp.dot(kl - log_likelihood, weights)


def _at_least_float32(leaf):
    return jnp.array(leaf, dtype=jnp.promote_types(jnp.result_type(leaf), jnp.float32))


def _to_arrays(tree):
    """The leaves of a pytree by name, in NumPy."""
    named = {jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {name: array.view(BFLOAT16) if array.dtype == jnp.bfloat16 else array for name, array in named.items()}


def _from_arrays(tree, arrays):
    def find(path, _):
        array = arrays[jax.tree_util.keystr(path)]
        return jnp.asarray(array.view(jnp.bfloat16) if array.dtype == BFLOAT16 else array)

    return jax.tree_util.tree_map_with_path(find, tree)


fit_vae.__doc__ = FIT_VAE_DOC.format(
    returns="""The result has the weights
    of the epoch of the best validation loss; without validation, of the last.""",
    key="\n        rng_key: determines the flows' first weights, the batches and the noise.",
    start="""
        params: the weights to start from; ``None`` means ``vae.init``.""",
    example=EXAMPLE.format(name="fit_vae")
    + """
        >>> fit = fit_vae(
        ...     jax.random.key(1), vae, x, num_epochs=5, learning_rate=0.03, warm_up=0, progress=False
        ... )
        >>> bool(fit.losses[-1] < fit.losses[0])
        True
""",
)
