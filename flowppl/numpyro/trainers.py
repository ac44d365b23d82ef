"""How ``fit`` trains a guide in NumPyro: the steps and the draws behind :func:`flowppl.inference.fitting.train`."""

from __future__ import annotations

import abc
import math
import time
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer import SVI, TraceEnum_ELBO
from scipy.special import logsumexp

from flowppl._arrays.tree import merge
from flowppl.bijections.combine import Chain
from flowppl.inference import mixture
from flowppl.inference.affine import AffineSteps, KeepsAffine
from flowppl.inference.draws import place_of, set_place
from flowppl.inference.fitting import (
    BLOCK,
    CHUNK,
    NUM_CHECKS,
    OTHER_ROUNDS,
    Chunk,
)
from flowppl.inference.guides import (
    affine_layers,
    affine_part,
    distance_from_identity,
    fold,
    is_dense,
    may_step_alone,
    stage,
    start_at,
)
from flowppl.inference.losses import guide_loss, practises, standard_log_prob, stretched
from flowppl.inference.mixture import BATCH, mixture_loss, particles_of_part, stacked_part, weigh_parts
from flowppl.inference.outside import GuideDensity
from flowppl.inference.resuming import alike, under
from flowppl.inference.starts import NUM_TRIALS
from flowppl.numpyro._host import jit
from flowppl.numpyro.diagnostics import draw_weighted
from flowppl.numpyro.enumeration import nesting_of_sums
from flowppl.numpyro.mixture import PUSHED, push, staged
from flowppl.numpyro.objectives import PathELBO
from flowppl.numpyro.steps import has_rate, make_optimizer, take_step
from flowppl.numpyro.transforms import as_key, constants_of, default_dtype, numpy_rng, seeds

MANY = 2**24  # numbers drawn at a time
BUSY_SECONDS = 5.0  # after which no more draws are judged: so many that they hardly count on a busy machine


class _Trainer(abc.ABC):
    """The steps that all guides share; parameters have a leading axis for the restarts."""

    has_affine = False
    is_dense = False
    is_subsampled: bool
    block: int  # the particles of one gradient
    params: Any

    def __init__(self, starts, key, optimizer, clip_norm):
        self.set(jax.tree.map(lambda *leaves: np.stack(leaves), *starts))
        self.rng = numpy_rng(key)
        self.has_rate, self._settings = has_rate(optimizer), (optimizer, clip_norm)
        self.own = make_optimizer("adam" if self.has_rate else optimizer, clip_norm, eps=1e-4)
        self.optimizer = make_optimizer(optimizer, clip_norm) if self.has_rate else self.own
        self.state, self.was_affine = None, False
        self.pace = 1  # steps in one call of the program
        self._run = self._program("steps", _over_restarts(self._steps, 3), static_argnums=6)

    def _program(self, name, function, **options):
        """A compiled function."""
        return jit(function, **options)

    @abc.abstractmethod
    def _draws(self, num_steps, num_blocks, stretches) -> Any:
        """What is random in so many steps, by NumPy: for each restart, step and block of particles."""

    @abc.abstractmethod
    def _loss(self, params, draws, power, affine):
        """A number with the gradient to go along, in all layers or the affine ones, and minus the ELBO's estimate."""

    @abc.abstractmethod
    def log_weights(self) -> list[np.ndarray]: ...

    def constrained(self, params):
        """The parameters as the host's ``get_params`` gives them."""
        return params

    def first(self):
        """The parameters of the first restart, as the host's ``get_params`` gives them."""
        return self.constrained(jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)[0]), self.params))

    def _trained(self, params, affine):
        """Those of the parameters that a round moves."""
        return params

    def begin(self, affine):
        trained = self._trained(self.params, affine)
        if affine or not self.has_rate:
            size = sum(leaf.size for leaf in jax.tree.leaves(trained)) // self.num_restarts
            flat = jax.ShapeDtypeStruct((self.num_restarts, size), jnp.result_type(*jax.tree.leaves(trained)))
            zeros = jax.eval_shape(jax.vmap(self.own.init), flat)
            self.state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), zeros)
        elif self.state is None or self.was_affine:  # the host's goes through all rounds
            self.state = jax.jit(jax.vmap(self.optimizer.init))(trained)
        self.was_affine = affine

    def run(self, chunk: Chunk):
        num_blocks, losses = max(1, chunk.num_particles // self.block), []
        size = self._length(num_blocks)
        for first in range(0, CHUNK, size):
            here, done = slice(first, first + size), 0
            draws = jax.device_put(self._draws(size, num_blocks, chunk.stretches[here]))
            while done < size:
                begin, end = time.monotonic(), size if math.isinf(chunk.end) else min(done + self.pace, size)
                known = (self.params, self.state, draws, (chunk.rates[here], chunk.powers[here]), done, end)
                self.params, self.state, new = self._run(*known, chunk.affine)
                losses.append(np.asarray(new)[:, done:end])
                now = time.monotonic()
                # So many that there is a look at the clock each second. The first time is the compiler's.
                self.pace, done = max(1, int((end - done) / max(now - begin, 1e-9))), end
                if now >= chunk.end:
                    return np.concatenate(losses, axis=1)
        return np.concatenate(losses, axis=1)

    def _length(self, num_blocks) -> int:
        """For how many steps there is memory for all that is random in them: a divisor of ``CHUNK``."""
        return CHUNK

    def settle(self, end):
        return False

    def fold(self):
        return 0.0  # no affine layer, nothing to take in

    def select(self, index, kept):
        chosen = jax.tree.map(lambda leaf: leaf[index : index + 1], (self.params, self.state, kept))
        self.params, self.state, kept = chosen
        self.num_restarts = 1
        return kept

    def get(self):
        return self.params

    def set(self, params):
        self.params = params
        self.num_restarts = len(jax.tree.leaves(params)[0])

    # What a checkpoint asks for: see `flowppl.training.fits.Trainer`.

    def arrays_of(self, params):
        return _by_name(params)

    def params_of(self, arrays):
        return _filled(self.params, arrays)

    def memory(self, in_round):
        memory = {f"optimizer{name}": array for name, array in _by_name(self.state).items()} if in_round else {}
        return memory | {"random": place_of(self.rng)}

    def recall(self, params, memory, affine):
        self.set(params)
        if affine is not None:
            self.begin(affine)
            self.state = _filled(self.state, under("optimizer", memory))
        set_place(self.rng, memory["random"])

    @abc.abstractmethod
    def log_density(self, params) -> list[float]: ...

    def _steps(self, params, state, draws, schedule, begin, end, affine):
        is_own = affine or not self.has_rate
        trained = self._trained(params, affine)
        # Of one vector, the program of a step of Adam is shorter; other optimisers may look at names and shapes.
        start, unravel = ravel_pytree(trained) if is_own else (trained, lambda tree: tree)

        def gradient(position, power, draws):
            def loss(position):
                return self._loss(params | unravel(position), draws, power, affine)

            return jax.grad(loss, has_aux=True)(position)

        def step(i, carry):
            (position, state), losses = carry
            (rates, powers), here = schedule, jax.tree.map(lambda leaf: leaf[i], draws)
            num_blocks = len(jax.tree.leaves(here)[0])
            if num_blocks == 1:
                slope, loss = gradient(position, powers[i], jax.tree.map(lambda leaf: leaf[0], here))
            else:
                zeros = jax.tree.map(jnp.zeros_like, (position, jnp.zeros(())))
                sums = jax.lax.scan(
                    lambda sums, block: (jax.tree.map(jnp.add, sums, gradient(position, powers[i], block)), None),
                    zeros,
                    here,
                )[0]
                slope, loss = jax.tree.map(lambda leaf: leaf / num_blocks, sums)
            optimizer, rate = (self.own, rates[i]) if is_own else (self.optimizer, None)
            carry, loss = take_step(optimizer, (position, state), slope, loss, rate)
            return carry, losses.at[i].set(loss)

        losses = jnp.zeros(len(jax.tree.leaves(draws)[0]))
        (position, state), losses = jax.lax.fori_loop(begin, end, step, ((start, state), losses))
        return params | unravel(position), state, losses


class PathTrainer(KeepsAffine, _Trainer):
    """Trains an ``AutoFlow`` on the log density of the model; nothing else of model and guide is run.

    The fixed layer belongs to the density here, which is that of the posterior at the scale of its start.
    """

    has_affine = True
    block = BLOCK
    num_parts = 1

    def __init__(self, guide, target, starts, key, optimizer, clip_norm):
        self.guide, self.bijection, self.target = guide, guide.bijection, target
        *trained, self.fixed = guide.bijection.bijections
        self.is_dense = is_dense(guide.bijection)
        self.trained, self._fixed_key = Chain(trained), str(len(trained))
        self._affine = affine_part(self.trained, jax.tree.map(np.asarray, self._tree(starts[0])))
        self._near = np.zeros((1, 1), dtype=int)
        self._steps_alone: list[AffineSteps] = []
        super().__init__(starts, key, optimizer, clip_norm)

    def _program(self, name, function, **options):
        return self.target.program((name, self.bijection, *self._settings), function, **options)

    def constrained(self, params):
        return {f"{self.guide.prefix}_flow": params}

    def begin(self, affine):
        self._steps_alone = []
        if not (affine and may_step_alone(self.bijection, self._affine) and not self.target.is_random()):
            super().begin(affine)
            return
        density = self.target.values_and_gradients
        for parts, log_weights in zip(self._flows(), self._log_weights_of_parts(), strict=True):
            layers = [affine_layers(self.bijection, merge(part, constants_of(self.bijection))) for part in parts]
            trained, fixed = zip(*layers, strict=True)
            num = particles_of_part(len(parts))
            self._steps_alone.append(AffineSteps(trained, fixed, log_weights, self._near, density, num, self.rng))

    def run(self, chunk):
        if not self._steps_alone:
            return super().run(chunk)
        losses = [steps.run(chunk) for steps in self._steps_alone]
        num = min(map(len, losses))
        self._follow_steps()
        return np.stack([row[:num] for row in losses])

    def _follow_steps(self):
        """Take the affine layers over from the steps that they take alone."""

        def moved(part, loc, scale):
            return start_at(self.bijection, part, loc, scale, fixed=False)

        self._set_flows(
            [
                [moved(part, *affine) for part, affine in zip(parts, steps.trained(), strict=True)]
                for parts, steps in zip(self._flows(), self._steps_alone, strict=True)
            ]
        )

    def _flows(self) -> list[list[Any]]:
        """The weights of the flows of each restart, in NumPy: what is done to them needs no program."""
        params = jax.tree.map(np.asarray, self.params)
        return [[jax.tree.map(lambda leaf, i=i: leaf[i], params)] for i in range(self.num_restarts)]

    def _set_flows(self, flows: list[list[Any]]) -> None:
        new = jax.tree.map(lambda *leaves: np.stack(leaves), *(parts[0] for parts in flows))
        self.params = jax.tree.map(lambda old, leaf: leaf.astype(old.dtype), self.params, new)

    def _log_weights_of_parts(self) -> np.ndarray:
        return np.zeros((self.num_restarts, 1))

    def fold(self):
        constants, flows = constants_of(self.bijection), self._flows()
        trees = [[merge(part, constants) for part in parts] for parts in flows]
        distances = [float(distance_from_identity(self.bijection, tree)) for parts in trees for tree in parts]
        self._set_flows([[fold(self.bijection, tree) for tree in parts] for parts in trees])
        return max(distances)

    def log_weights(self):
        return [in_time(partial(self._judged, flow), NUM_CHECKS, PUSHED) for (flow,) in self._flows()]

    def _judged(self, flow, num):
        noise = self.rng.standard_normal((num, *self.bijection.x_shape), dtype=default_dtype())
        return self._log_weights_at(flow, noise)

    def _log_weights_at(self, flow, noise):
        """Log weights of the draws of some noise, by programs that other tasks use as well."""
        z, log_det = push(self.bijection, flow, noise)
        log_p = [
            self.target.log_probs(rows, int(self.rng.integers(2**31))) for rows in np.split(z, len(z) // NUM_TRIALS)
        ]
        return np.concatenate(log_p) - standard_log_prob(noise.astype(np.float64)) + log_det

    def _trained(self, params, affine):
        return {key: tree for key, tree in params.items() if key != self._fixed_key and not (affine and key == "0")}

    def _length(self, num_blocks):
        size = self.num_restarts * num_blocks * self.block * self.bijection.x_shape[0]
        return max(each for each in range(1, CHUNK + 1) if CHUNK % each == 0 and (each == 1 or each * size <= MANY))

    def _noise(self, *shape):
        return self.rng.standard_normal((self.num_restarts, *shape, *self.bijection.x_shape), dtype=default_dtype())

    def _draws(self, num_steps, num_blocks, stretches):
        noise = self._noise(num_steps, num_blocks, self.block)
        if practises(self.trained) and (stretches != 1).any():
            directions = self._noise(num_steps, num_blocks, self.block // 2)
            noise = stretched(noise, directions, stretches[:, None, None, None].astype(noise.dtype))
        return noise, seeds(self.rng, self.num_restarts, num_steps, num_blocks)

    def _tree(self, params):
        return merge(params, constants_of(self.bijection))

    def log_prob(self, points):
        """The log densities of the guide at points, of NumPy."""
        own = self.first()[f"{self.guide.prefix}_flow"]
        log_prob = jit(lambda own, points: self.guide._posterior(own).log_prob(points))
        return np.asarray(log_prob(own, points.astype(default_dtype())), dtype=np.float64)

    def density(self):
        """The guide, for a look at what it does not draw."""

        (flow,), dim = self._flows()[0], self.bijection.x_shape[0]

        def weigh(_, noise):
            return self._log_weights_at(flow, noise.astype(default_dtype()))

        return GuideDensity(self.log_prob, np.zeros(1), dim, weigh, rows=PUSHED, block=PUSHED)

    def _density(self, tree, seed):
        """The log density at the scale of the start."""
        key = as_key(seed)

        def log_prob(x):
            z, log_det = self.fixed.forward(tree[self._fixed_key], x)
            return self.target.log_prob(z, key) + log_det

        return log_prob

    def _loss(self, params, draws, power, affine):
        tree, (noise, seed) = self._tree(params), draws
        log_density = jax.vmap(jax.value_and_grad(self._density(tree, seed)))
        bijection, trained = stage(self.trained, self._affine, tree, affine)
        return guide_loss(bijection, trained, noise, self.block // 2, log_density, power)


class MixtureTrainer(PathTrainer):
    """Trains an ``AutoFlow`` of several modes: all its flows at once, by draws of each."""

    def __init__(self, guide, target, starts, key, optimizer, clip_norm):
        self._staged = staged(guide.bijection)
        self.num_parts = len(starts[0]["log_weights"])
        self._shape = self.num_parts, particles_of_part(self.num_parts)
        super().__init__(guide, target, starts, key, optimizer, clip_norm)
        self._affine = affine_part(self.bijection, self._tree(jax.tree.map(np.asarray, starts[0])))

    def _program(self, name, function, **options):
        return jit(function, **options)  # of a number of parts, and of what is near each, that the data tell

    def _tree(self, params):
        """The weights of the first part; all have flows alike."""
        return self._staged(jax.tree.map(lambda leaf: leaf[0], stacked_part(params)))[1]

    def _flows(self):
        parts = stacked_part(jax.tree.map(np.asarray, self.params))
        return [
            [jax.tree.map(lambda leaf, i=i, k=k: leaf[i, k], parts) for k in range(self.num_parts)]
            for i in range(self.num_restarts)
        ]

    def _set_flows(self, flows):
        stacked = [jax.tree.map(lambda *leaves: np.stack(leaves), *parts) for parts in flows]
        super()._set_flows([[each | {"log_weights": self.params["log_weights"][i]}] for i, each in enumerate(stacked)])

    def _log_weights_of_parts(self):
        return np.asarray(self.params["log_weights"], dtype=np.float64)

    def log_weights(self):
        rows, fitted = [], []
        for i in range(self.num_restarts):
            params = jax.tree.map(lambda leaf, i=i: leaf[i], self.params)
            before = np.asarray(params["log_weights"], dtype=np.float64)
            log_weights, row, near = weigh_parts(before, partial(self._draw_parts, params))
            self._near = near if len(self._near) < self.num_parts else self._near  # once: steps are compiled with it
            fitted.append(log_weights.astype(default_dtype()))
            rows.append(row)
        self.params = self.params | {"log_weights": np.stack(fitted)}
        return rows

    def density(self):
        params = jax.tree.map(lambda leaf: leaf[0], self.params)
        log_weights = np.asarray(params["log_weights"], dtype=np.float64)
        num_batches = self._num_batches  # those of a judgement, so that there is a program

        def weigh(parts, noise):
            log_p, log_parts = self._draw_parts(params, parts[::BATCH], noise.reshape(num_batches, BATCH, -1))
            return (log_p - logsumexp(log_parts + log_weights[:, None], axis=1)).reshape(-1)

        dim = self.bijection.x_shape[0]
        return GuideDensity(self.log_prob, log_weights, dim, weigh, rows=num_batches * BATCH, block=BATCH)

    def memory(self, in_round):
        return super().memory(in_round) | {"num_batches": np.array(self._num_batches)}

    def recall(self, params, memory, affine):
        super().recall(params, memory, affine)
        self._num_batches = int(memory["num_batches"])

    def _draw_parts(self, params, batches, noise=None):
        self._num_batches = len(batches)
        if noise is None:
            noise = self.rng.standard_normal((len(batches), BATCH, *self.bijection.x_shape))
        noise = noise.astype(default_dtype())
        drawn = self._drawn(params, batches, noise, seeds(self.rng, len(batches)))
        return jax.tree.map(partial(np.asarray, dtype=np.float64), drawn)

    @cached_property
    def _drawn(self):
        """The log densities of draws of each part that is named, under the model and under all parts."""

        def draw(params, now):
            part, noise, seed = now
            stacked = stacked_part(params)
            bijection, tree = self._staged(jax.tree.map(lambda leaf: leaf[part], stacked))
            z, _ = bijection.forward(tree, noise)
            log_p = jax.vmap(partial(self.target.log_prob, key=as_key(seed)))(z)
            return log_p, mixture.log_probs(self._staged, stacked, z)

        return jit(lambda params, *inputs: jax.lax.map(partial(draw, params), inputs))

    def _trained(self, params, affine):
        return super()._trained(stacked_part(params), affine)

    def _length(self, num_blocks):
        return super()._length(num_blocks * math.ceil(math.prod(self._shape) / self.block))

    def _draws(self, num_steps, num_blocks, stretches):
        num, each = self._shape
        noise = self._noise(num_steps, num_blocks, num, each)
        if (stretches != 1).any():
            directions = self._noise(num_steps, num_blocks, num, each // 2)
            noise = stretched(noise, directions, stretches[:, None, None, None, None].astype(noise.dtype))
        return noise, seeds(self.rng, self.num_restarts, num_steps, num_blocks)

    def _loss(self, params, draws, power, affine):
        noise, seed = draws
        log_density = jax.vmap(jax.value_and_grad(partial(self.target.log_prob, key=as_key(seed))))

        def to_train(part):
            return stage(self.bijection, self._affine, self._staged(part)[1], affine)

        log_weights = jax.lax.stop_gradient(params["log_weights"])
        settings = (self._shape[1] // 2, self._near, log_density, power)
        return mixture_loss(to_train, stacked_part(params), log_weights, noise, *settings)


class ElboTrainer(_Trainer):
    """Trains any guide, and the parameters of its model, by an objective of the host."""

    def __init__(self, model, guide, loss, num_particles, args, kwargs, start_keys, key, optimizer, clip_norm):
        self.block = OTHER_ROUNDS[0].num_particles if num_particles is None else num_particles
        self.svi = SVI(
            model, guide, numpyro.optim.Adam(1.0), PathELBO(num_particles=self.block) if loss is None else loss
        )
        self.args, self.kwargs = args, kwargs
        states = [self.svi.init(start_key, *args, **kwargs) for start_key in start_keys]
        if loss is None and nesting_of_sums(self._replayed(states[0]), args, kwargs) is not None:
            self.svi.loss = TraceEnum_ELBO(num_particles=self.block)
        if states[0].mutable_state is not None:
            raise ValueError("fit: models with mutable state are not supported; train them with SVI")
        super().__init__([self.svi.optim.get_params(state.optim_state) for state in states], key, optimizer, clip_norm)
        self._weigh = self._program("weights", _over_restarts(self._log_weights, 2))

    def _replayed(self, state):
        """The model at draws of the guide, since an improper prior has none of its own."""
        params = self.svi.get_params(state)
        model, guide = (handlers.seed(handlers.substitute(fn, params), 0) for fn in (self.svi.model, self.svi.guide))

        def replayed(*args, **kwargs):
            with handlers.block():
                drawn = handlers.trace(guide).get_trace(*args, **kwargs)
            return handlers.replay(model, drawn)(*args, **kwargs)

        return replayed

    def constrained(self, params):
        return self.svi.constrain_fn(params)

    def log_weights(self):
        def draw(num):
            return self._weigh(self.params, seeds(self.rng, self.num_restarts))

        return in_time(draw, NUM_CHECKS // 4, 8 * BLOCK)

    def log_density(self, params):
        """Less that of the guide, at the same draws each time."""
        return np.asarray(self._weigh(params, seeds(np.random.default_rng(0), self.num_restarts)))[0, :4].tolist()

    def _draws(self, num_steps, num_blocks, stretches):
        return seeds(self.rng, self.num_restarts, num_steps, num_blocks)

    def _loss(self, params, seed, power, affine):
        svi = self.svi
        known = (svi.constrain_fn(params), svi.model, svi.guide)
        loss = svi.loss.loss(as_key(seed), *known, *self.args, **self.kwargs)
        return loss, jax.lax.stop_gradient(loss)

    def _log_weights(self, params, seed):
        svi = self.svi
        known = (as_key(seed), svi.model, svi.guide, svi.constrain_fn(params), self.args, self.kwargs)
        return draw_weighted(*known, 8 * BLOCK, 8 * BLOCK, keep=False)[0]


def in_time(draw, num_draws, batch_size) -> np.ndarray:
    """What ``draw`` gives, in batches: ``num_draws`` of them, or as many as a judgement has time for."""
    batches = [np.asarray(draw(batch_size))]
    begin = time.monotonic()  # the time of the first is the compiler's
    while len(batches) * batch_size < num_draws and time.monotonic() - begin <= BUSY_SECONDS:
        batches.append(np.asarray(draw(batch_size)))
    return np.concatenate(batches, axis=-1)


def _by_name(tree) -> dict[str, np.ndarray]:
    """The leaves of a tree under the paths to them."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _filled(tree, arrays):
    """A tree like this one, of arrays by the names of :func:`_by_name`."""

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        return alike(arrays[name], leaf, name)

    return jax.tree_util.tree_map_with_path(fill, tree)


def _over_restarts(function, num_mapped):
    """``function`` over the leading axis of its first arguments; that of one restart is taken off, for speed."""

    def mapped(*args):
        own, shared = args[:num_mapped], args[num_mapped:]
        if len(jax.tree.leaves(own)[0]) > 1:
            return jax.vmap(lambda *own: function(*own, *shared))(*own)
        result = function(*jax.tree.map(lambda leaf: leaf[0], own), *shared)
        return jax.tree.map(lambda leaf: leaf[None], result)

    return mapped
