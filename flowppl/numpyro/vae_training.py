"""Training of variational autoencoders in NumPyro."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flowppl.autoencoders.data import as_data, data_source, first_rows, is_share, warn_of_constants
from flowppl.autoencoders.model import check_vae
from flowppl.autoencoders.training import NUM_PROBED, VAEFit, check_options, train
from flowppl.inference.batches import Batches, Mapped, steps
from flowppl.inference.epochs import Callback
from flowppl.numpyro.autoencoder import Autoencoder
from flowppl.numpyro.distributed import Workers
from flowppl.numpyro.flow import Flow
from flowppl.numpyro.steps import Optimizer, check_optimizer, has_rate, make_optimizer, split_batches, take_step
from flowppl.numpyro.training import TreeTrainer, averaged, in_step
from flowppl.numpyro.transforms import check_key
from flowppl.training.loop import average_share

VAE = TypeVar("VAE", bound=Autoencoder)


def fit_vae(
    rng_key: jax.Array,
    vae: VAE,
    x: Any = None,
    *,
    params: Mapping[str, Any] | None = None,
    validation: Any = 0.1,
    batch_size: int = 100,
    num_epochs: int = 500,
    learning_rate: float | Callable[[int], float] | None = None,
    optimizer: Optimizer = "adam",
    warm_up: int = 50,
    free_bits: float = 0.0,
    patience: int | None = 50,
    clip_norm: float | None = None,
    ema_decay: float = 0.0,
    checkpoint: str | os.PathLike[str] | None = None,
    callback: Callback | None = None,
    progress: bool | None = None,
    distributed: bool = False,
) -> VAEFit[VAE, dict[str, Any]]:
    r"""Train a :class:`FlowVAE` on data.

    In epoch t, counted from 0, it minimises the mean over the data x of a batch of

    .. math::
        -\log p(x \mid z) + \beta\, \big(\log q(z \mid x) - \log p(z)\big), \qquad z \sim q(z \mid x),

    where z are the latents, :math:`p(x \mid z)` is the likelihood, :math:`q(z \mid x)` the posterior and :math:`p(z)`
    the prior, and :math:`\beta = \min(1, (t+1) / \mathrm{warm\_up})`. At :math:`\beta = 1` this is minus the evidence
    lower bound (ELBO) of x. The second term, without :math:`\beta`, is the KL term. ``free_bits``, if there are any,
    stand in for its mean over the batch when that is less.

    The result has the weights of the epoch of the best validation loss; without validation, of the last.

    Of the likelihood ``"gaussian"``, numbers that are the same in all data are warned of, where the scale is learned:
    their density has no bound.

    With ``ema_decay`` the weights that are validated, and kept, are an average over all steps, the last steps most: of
    step s of t it has the weight :math:`\mathrm{ema\_decay}^{t-s}`, divided by the sum of all. Averages are better than
    the weights of any one step where steps are noisy, as those of small batches are.

    A step whose loss or gradient is not finite is left out and counted. An interruption (Ctrl-C) ends the training; the
    result is what the complete epochs reached.

    Args:
        rng_key: determines the flows' first weights, the batches and the noise.
        vae: the autoencoder.
        x: n data of shape ``(n, *shape)``: an array, a list of rows, a table of pandas, or a data set of torch. Of a
            memory-mapped array only the rows of a step are read at a time, and those held out. Or an iterable of
            batches that starts anew in each epoch, such as a ``DataLoader``, or a function without arguments that gives
            one, such as a generator function: each batch is one step. An iterator is read once and held in memory. Of
            items that are tuples, such as an image and its label, the first parts are the data.
        params: the weights to start from; ``None`` means ``vae.init``.
        validation: the fraction of rows to hold out at random, or held-out data; ``None`` for no validation. Its loss
            is minus the ELBO, with one draw for each datum, the same in all epochs. Of an iterable of batches no
            fraction is held out.
        batch_size: the number of rows in one step; the last batch of an epoch may be smaller. Unused if x is an
            iterable of batches.
        num_epochs: the number of passes over the data, unless ``patience`` ends them.
        learning_rate: the learning rate, or a function from the epoch, counted from 0, to it; ``None`` is 0.001, or the
            optimiser's own.
        optimizer: ``"adam"`` or ``"adamax"``; an optimiser of optax, such as
            ``optax.adamw(optax.cosine_decay_schedule(1e-2, 1000))``, or of ``numpyro.optim``. Schedules count steps.
        warm_up: the number of epochs in which the weight of the KL term rises to 1; 0 for none.
        free_bits: the nats of KL for each datum that cost nothing: latents are then not given up early.
        patience: stop after so many epochs, from the end of the warm-up on, without a better validation loss; ``None``
            never does.
        clip_norm: the largest norm of a gradient; ``None`` for no limit.
        ema_decay: the decay of the exponential moving average of the weights, such as 0.999, which averages about
            1,000 steps: few of all that there are. 0 takes the weights as they are.
        checkpoint: a file that is written after each epoch. If it is there already, the training goes on from it, to
            the result that it would have had without an interruption. For the optimisers with names, and data that are
            no iterable of batches. A file of another autoencoder, which is told by its flows and by the loss of a few
            rows, of other data or options is refused. ``num_epochs`` and ``patience`` may change; a function for the
            learning rate must give the same one for an epoch each time.
        callback: called as ``callback(epoch, loss)`` after each epoch; if it returns True, the training stops.
        progress: whether to show a progress bar; ``None`` is what :func:`flowppl.set_progress` said.
        distributed: whether all devices of JAX train together, those of all hosts after ``jax.distributed.initialize``,
            each of which makes this call. They share the rows of each batch; the weights are on all of them, and end
            as those of one device would, up to rounding. Arrays of data are the same on all hosts, and whole on each
            device; of an iterable of batches each host has its own, of which a device holds its share, and a step
            takes one batch of each. The first host writes the checkpoint, which all must be able to read, and its
            ``callback`` counts.

    Returns:
        A :class:`VAEFit`; its ``params`` are a dict by name, as of ``vae.init``.

    Raises:
        TypeError: if there is no key, ``vae`` is no autoencoder, ``optimizer`` is none, or the data are no real
            numbers.
        ValueError: if the data do not fit the likelihood (the message names the range) or the networks, for an option
            that cannot be meant, or a checkpoint that is not whole or of another training; it is then as it was.
        RuntimeError: if no step of the first epoch, or no validation loss, is finite.

    References:
        Warm-up: Bowman et al.: Generating Sentences from a Continuous Space, 2015, arXiv 1511.06349; Sonderby et al.:
        Ladder Variational Autoencoders, 2016, arXiv 1602.02282. Free bits: Kingma et al.: Improving Variational
        Inference with Inverse Autoregressive Flow, 2016, arXiv 1606.04934. Averages: Kingma, Ba: Adam, 2014, arXiv
        1412.6980, section 7.2; Izmailov et al.: Averaging Weights Leads to Wider Optima, 2018, arXiv 1803.05407.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flax import nnx
        >>> from flowppl.numpyro import FlowVAE, fit_vae
        >>> x = jnp.broadcast_to(jax.random.bernoulli(jax.random.key(0), 0.5, (200, 1)), (200, 9)).astype(float)
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=2)
        >>> rngs = nnx.Rngs(0)
        >>> encoder = nnx.Sequential(nnx.Linear(9, 16, rngs=rngs), nnx.relu)
        >>> vae = FlowVAE(encoder, nnx.Linear(2, 9, rngs=rngs), posterior)
        >>> fit = fit_vae(
        ...     jax.random.key(1), vae, x, num_epochs=5, learning_rate=0.03, warm_up=0, progress=False
        ... )
        >>> bool(fit.losses[-1] < fit.losses[0])
        True
    """
    check_key("fit_vae(key, vae, x)", rng_key)
    check_vae("fit_vae(key, vae, x)", vae, Autoencoder)
    check_optimizer("fit_vae", optimizer, learning_rate)
    sizes = {"batch_size": batch_size, "num_epochs": num_epochs}
    options: dict[str, Any] = {"optimizer": optimizer, "free_bits": free_bits}
    options |= {"clip_norm": clip_norm, "ema_decay": ema_decay}
    rest: dict[str, Any] = {
        "learning_rate": learning_rate,
        "warm_up": warm_up,
        "patience": patience,
        "checkpoint": checkpoint,
    }
    check_options(**rest, **options, **sizes)
    init_key, seed_key = jax.random.split(rng_key)
    workers = Workers(distributed)
    checks: list[Callable[[Any], None]] = []  # none until the first rows, of which it is made, are read

    def read(rows):
        rows = np.asarray(as_data(rows, jax.Array))
        for check in checks:
            check(rows)
        return rows

    source, validation = data_source(x, read), validation if is_share(validation) else as_data(validation, jax.Array)
    x = as_data(x, jax.Array) if source is None else source
    first = first_rows(x)
    start = vae.init(init_key, first) if params is None else _checked_params(init_key, vae, params, first)
    checks.append(vae._checker(start, first[:1]))
    checks[0](first)
    if not is_share(validation):
        vae._check(start, validation)
    if vae.likelihood == "gaussian":
        warn_of_constants(np.asarray(first), lambda: vae._learns_scale(start, first))

    def make_trainer(data, held_out, seed):
        return _Trainer(vae, start, data, held_out, seed, batch_size, workers, **options)

    # One program, and only where there is a file that tells it.
    prior = getattr(vae, "prior", None)
    held = None
    if isinstance(prior, Flow) and not prior.bijection.context_dim and checkpoint is not None:
        held = jax.jit(prior().log_prob)
    trainer, record = train(
        make_trainer,
        np.asarray(x) if source is None else source,
        validation,
        int(jax.random.randint(seed_key, (), 0, 2**31 - 1)),
        batch_size=batch_size,
        num_epochs=num_epochs,
        learning_rate=None if has_rate(optimizer) else 1e-3 if learning_rate is None else learning_rate,
        warm_up=warm_up,
        patience=patience,
        checkpoint=checkpoint,
        callback=callback,
        fixed={"backend": "numpyro"} | options | vae._description(held),
        progress=progress,
        workers=workers,
    )
    return VAEFit(vae=vae, params=trainer.params, **record)


def _checked_params(key, vae, params, x):
    vae._check_call("fit_vae(key, vae, x, params=params)", key, params)
    expected = jax.eval_shape(lambda key: vae.init(key, x), key)
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


class _Trainer(TreeTrainer):
    """The steps of :func:`fit_vae`: see :class:`flowppl.autoencoders.training.Trainer`."""

    def __init__(
        self, vae, params, data, held_out, seed, batch_size, workers, optimizer, free_bits, clip_norm, ema_decay
    ):
        super().__init__(params, seed, optimizer, clip_norm, ema_decay, workers)
        self.vae, self.batch_size, self.num_steps = vae, batch_size, 0
        self.data: Any = data if isinstance(data, Batches | Mapped) else workers.replicated(data)
        self.held_out: Any = None if held_out is None else workers.replicated(held_out)
        self.options = (optimizer, free_bits, self.clip_norm, workers)

    def run_epoch(self, epoch, order, rate, beta):
        losses: list[jax.Array] = []
        key = jax.random.fold_in(self.key, epoch + 1)
        if not isinstance(self.data, Batches):
            self.num_steps = epoch * math.ceil(len(order) / self.batch_size)
        for i, batch in enumerate(self._batches(order, losses)):
            known = ((self.params, self.memory), *batch, jax.random.fold_in(key, i), rate, beta)
            (self.params, self.memory), loss = _take_step(self.vae, self.options, *known)
            losses.append(loss)
            self.num_steps += 1
            if self.ema_decay:
                share = average_share(self.ema_decay, self.num_steps)
                self.average = _average(self.average, self.params, share)
        return [float(loss) for loss in losses], None if self.held_out is None else self._validation_loss()

    def _batches(self, order, losses):
        """The data of each step, the indices of its rows if they are some of these, and their weights."""
        if not isinstance(self.data, Batches | Mapped):
            for index, weights in zip(*split_batches(order, self.batch_size), strict=True):
                yield self.data, index, weights
            return
        if isinstance(self.data, Batches):
            batches = self.data.steps(self.workers)
        else:
            batches = steps(lambda here: (self.data[order[here]], None), len(order), self.batch_size, self.workers)
        for (rows, _), counts in in_step(batches, losses):
            rows, weights = self.workers.joined(rows, counts)
            yield rows, None, weights

    def probe(self):
        index = np.arange(min(NUM_PROBED, len(self.data)))
        read = isinstance(self.data, Mapped)
        rows = (self.workers.replicated(np.asarray(self.data[index])), None) if read else (self.data, index)
        known = self.params, *rows, np.ones(len(index), dtype=bool), jax.random.fold_in(self.key, 0)
        return [float(term) for term in _mean_terms(self.vae, self.workers, *known)]

    def _validation_loss(self):
        batches = split_batches(np.arange(len(self.held_out)), self.batch_size)
        key, params, total = jax.random.fold_in(self.key, 0), self.kept(), 0.0
        for i, batch in enumerate(zip(*batches, strict=True)):
            known = params, self.held_out, *batch, jax.random.fold_in(key, i)
            total += float(_sum_loss(self.vae, self.workers, *known))
        return total / len(self.held_out)


# One program for all calls with arrays of the same shapes; an autoencoder is hashed by its identity.


def _take(vae, data, index):
    return vae._rows(data if index is None else data[index])


def _noise(vae, key, weights):
    """A row for each of a batch; where the first row is repeated, its noise is, too, so that nothing new can happen."""
    noise = jax.random.normal(key, (len(weights), vae.dim))
    return jnp.where(weights[:, None], noise, noise[0])


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _take_step(vae, options, carry, data, index, weights, key, rate, beta):
    optimizer, free_bits, clip_norm, workers = options
    x, noise = workers.shared((_take(vae, data, index), _noise(vae, key, weights)))

    def mean_loss(params):
        log_likelihood, kl, _ = vae.terms(params, x, noise)
        mean_kl = jnp.average(kl, weights=weights)
        mean_kl = jnp.maximum(mean_kl, free_bits) if free_bits else mean_kl
        return beta * mean_kl - jnp.average(log_likelihood, weights=weights)

    loss, gradient = jax.value_and_grad(mean_loss)(carry[0])
    return workers.everywhere(take_step(make_optimizer(optimizer, clip_norm), carry, gradient, loss, rate))


@partial(jax.jit, donate_argnums=0)
def _average(average, params, share):
    return averaged(average, params, share)


@partial(jax.jit, static_argnums=(0, 1))
def _sum_loss(vae, workers, params, data, index, weights, key):
    x, noise = workers.shared((_take(vae, data, index), _noise(vae, key, weights)))
    log_likelihood, kl, _ = vae.terms(params, x, noise)
    return workers.everywhere(jnp.dot(kl - log_likelihood, weights))


@partial(jax.jit, static_argnums=(0, 1))
def _mean_terms(vae, workers, params, data, index, weights, key):
    log_likelihood, kl, _ = vae.terms(params, _take(vae, data, index), _noise(vae, key, weights))
    return workers.everywhere((log_likelihood.mean(), kl.mean()))
