r"""Markov chains whose proposals come from a guide, and what they say of their own convergence.

An *independence* chain at the point z takes a draw z' of the guide q, whatever z is, and moves there with probability

.. math:: a(z, z') = \min\Big(1, \frac{w(z')}{w(z)}\Big), \qquad w(z) = \frac{p(x, z)}{q(z)},

where p(x, z) is the density of the model; else it stays. This is in detailed balance with the posterior, which is
proportional to p(x, z) = q(z) w(z): the flow from z to z', q(z) w(z) q(z') a(z, z') = q(z) q(z') min(w(z), w(z')), is
the same in both directions. So the posterior stays as it is, however far the guide is from it; what a poor guide costs
is time, for a chain leaves a point of large weight seldom.

There the proposals alternate with transitions of the host's NUTS, which leave the posterior as it is, too: the guide
jumps between distant places, and NUTS finds what the guide misses nearby. NUTS moves in the space of the guide's base,
where the posterior looks like a standard normal as far as the guide is right. Its step size and its mass matrix are
fitted in a warm-up that is thrown away, together with the effect of the start.

Where the guide's weights have a heavy tail, as in the neck of a funnel, chains would seldom go to places that it hardly
draws, and their agreement would not show that. A quarter of the proposals then comes from a wider guide, the same flow
for noise of heavy tails (:func:`flowppl.inference.gaussians.widened`), and q is the density of both together.

References:
    Tierney: Markov Chains for Exploring Posterior Distributions, 1994. Parno, Marzouk: Transport Map Accelerated Markov
    Chain Monte Carlo, 2018, arXiv 1412.5492. Hoffman, Sountsov, Dillon, Langmore, Tran, Vasudevan: NeuTra-lizing Bad
    Geometry in Hamiltonian Monte Carlo Using Neural Transport, 2019, arXiv 1903.03704. Gabrié, Rotskoff,
    Vanden-Eijnden: Adaptive Monte Carlo Augmented with Normalizing Flows, 2022, arXiv 2105.12603.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Protocol

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl.checks import check_sizes, describe
from flowppl.inference.convergence import effective_draws
from flowppl.inference.gaussians import wide_ratio, widened
from flowppl.inference.importance import k_hat, weigh
from flowppl.inference.losses import standard_log_prob
from flowppl.progress import progress_bar

NUM_PLANNED = 4000  # draws of the guide by which the chains are planned
NUM_WARMUP = 300
MAX_UNMOVED = 0.1  # the share of draws that may be what the draw before was
MAX_PROPOSALS = 50  # for each draw,
MAX_BESIDE_NUTS = 8  # and for each transition of NUTS, which costs about as much as these
MAX_K_HAT = 0.5  # above it the mean of w over the posterior is infinite, and so is the variance of a chain's means
WIDE_SHARE, WIDEST = 0.25, 5.0  # of the proposals, and their largest scale, where k-hat is above that
MIN_SHARE = 0.3  # of the draws that are effective, below which NUTS helps

Points = dict[str, np.ndarray]


def check_options(num_samples, num_chains, num_warmup, num_proposals, nuts, chunk_size) -> None:
    """Raise ValueError, or TypeError, for an option of ``mcmc`` that cannot be meant."""
    is_integer = isinstance(num_samples, numbers.Integral)
    if not is_integer:
        raise TypeError(
            f"mcmc: num_samples must be an integer, got {describe(num_samples)}; all else is passed by name: "
            "result.mcmc(1000, num_chains=4)"
        )
    check_sizes("mcmc", at_least=4, num_samples=num_samples)  # fewer cannot be cut in halves that vary
    check_sizes("mcmc", num_chains=num_chains, chunk_size=chunk_size)
    if num_proposals is not None:
        check_sizes("mcmc", num_proposals=num_proposals)
    if num_warmup is not None:
        check_sizes("mcmc", at_least=0, num_warmup=num_warmup)
    if nuts not in (None, True, False):
        raise TypeError(f"mcmc: nuts must be True, False or None, got {describe(nuts)}")


class Walker(Protocol):
    """What an adapter does for :func:`walk`: points are arrays by name, with a leading axis for several."""

    can_run_nuts: bool
    can_widen: bool = False

    def widen(self) -> None:
        """Take a part of the proposals from a wider guide from now on, if that can be."""

    def propose(self) -> tuple[Points, np.ndarray]:
        """Some draws of the guide, as many each time, and their log weights."""

    def start(self, points: Points, num_warmup: int) -> None:
        """Set NUTS up for chains at these points."""

    def move(self, points: Points) -> tuple[Points, np.ndarray]:
        """A transition of NUTS from each point, and the log weights there."""


class WideNormal:
    """Standard normal noise, a quarter of it of heavy tails.

    Args:
        dim: the number of coordinates.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def sample(self, num: int, rng: np.random.Generator) -> np.ndarray:
        """So many draws."""
        wide, _ = widened((num, self.dim), rng, WIDEST)
        return np.where(rng.random((num, 1)) < WIDE_SHARE, wide, rng.standard_normal((num, self.dim)))

    def log_prob(self, noise: Array) -> Array:
        """The log density at each row of an array of any library."""
        ratio, xp = wide_ratio(noise, WIDEST), namespace(noise)
        parts = xp.stack([xp.zeros_like(ratio) + math.log(1 - WIDE_SHARE), ratio + math.log(WIDE_SHARE)])
        return standard_log_prob(noise) + xp.logsumexp(parts)


@dataclasses.dataclass(frozen=True)
class Walk:
    """Where chains went.

    Args:
        points: arrays ``(chains, draws, ...)``.
        acceptance: the share of the guide's proposals that was accepted.
        num_proposals: how many there were for each draw.
        nuts: whether NUTS took part.
        can_run_nuts: whether it can.
        k_hat: that of the log weights of the proposals.
    """

    points: Points
    acceptance: float
    num_proposals: int
    nuts: bool
    can_run_nuts: bool
    k_hat: float


def walk(
    walker: Walker,
    num_samples: int,
    num_chains: int,
    num_warmup: int | None,
    num_proposals: int | None,
    nuts: bool | None,
    rng: np.random.Generator,
    progress: bool | None,
) -> Walk:
    """Run chains, each from a draw of the guide that was chosen by its weight.

    Args:
        walker: draws from the guide, and NUTS.
        num_samples: the number of draws that each chain keeps.
        num_chains: how many chains.
        num_warmup: how many draws are thrown away before.
        num_proposals: the guide's proposals for each draw; ``None``: so many that at most a tenth of the draws is what
            the draw before was.
        nuts: whether to use NUTS; ``None``: if it can be used, and the guide's weights are uneven, or chains without it
            turn out to be slow.
        rng: a NumPy generator.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if NUTS cannot be used but is asked for, or no log weight is finite.
    """
    if nuts and not walker.can_run_nuts:
        raise ValueError("mcmc: nuts=True needs an AutoFlow as the guide; leave it out, or fit without guide=")
    take = _stream(walker.propose)
    trials, trial_weights = take(max(NUM_PLANNED, 100 * num_chains))
    if not np.isfinite(trial_weights).any():
        raise ValueError(
            f"mcmc: none of {len(trial_weights)} draws of the guide has a finite weight, so there is nowhere to start; "
            "see what diagnose() says"
        )
    shape = k_hat(trial_weights[np.isfinite(trial_weights)])
    if shape > MAX_K_HAT and walker.can_widen:
        walker.widen()
        take = _stream(walker.propose)
        trials, trial_weights = take(max(NUM_PLANNED, 100 * num_chains))
        shape = k_hat(trial_weights[np.isfinite(trial_weights)])
    needed = plan(trial_weights)[1]
    num_warmup = NUM_WARMUP if num_warmup is None else num_warmup

    def run(nuts):
        num = num_proposals or min(needed, MAX_BESIDE_NUTS if nuts else MAX_PROPOSALS)
        start = _starts(trial_weights, num_chains, rng)
        points = {name: value[start] for name, value in trials.items()}
        states = points, trial_weights[start]
        points, acceptance = _walk(walker, take, states, num_samples, num_warmup, num, nuts, rng, progress)
        return Walk(points, acceptance, num, nuts, walker.can_run_nuts, shape)

    if nuts is not None or not walker.can_run_nuts:
        return run(bool(nuts))
    if needed > MAX_BESIDE_NUTS or shape > MAX_K_HAT:
        return run(True)
    found = run(False)
    return run(True) if _is_slow(found.points) else found


def _walk(walker, take, states, num_samples, num_warmup, num_proposals, nuts, rng, progress):
    """The points of the chains that start at these, and the share of the proposals that was accepted."""
    points, log_weights = states
    num_chains = len(log_weights)
    if nuts:
        walker.start(points, num_warmup)
    kept, num_accepted = [], 0
    with progress_bar("mcmc", num_warmup + num_samples, "draw", progress) as bar:
        for step in range(num_warmup + num_samples):
            proposals, new_weights = take(num_chains * num_proposals)
            new_weights = new_weights.reshape(num_chains, num_proposals)
            steps, accepted = zip(*map(_follow, log_weights, new_weights, rng.random(new_weights.shape)), strict=True)
            chains = np.array([chain for chain in range(num_chains) if steps[chain] >= 0], dtype=int)
            chosen = chains * num_proposals + np.array(steps)[chains]
            points = {name: _replaced(value, chains, proposals[name][chosen]) for name, value in points.items()}
            log_weights = _replaced(log_weights, chains, new_weights.ravel()[chosen])
            if nuts:
                points, log_weights = walker.move(points)
            if step >= num_warmup:
                kept.append(points)
                num_accepted += sum(accepted)
            bar.update(1)
    draws = {name: np.stack([each[name] for each in kept], axis=1) for name in points}
    return draws, num_accepted / (num_samples * num_chains * num_proposals)


def _is_slow(points: Points) -> bool:
    """Whether of some coordinate few draws are effective."""
    flat = [value.reshape(*value.shape[:2], -1) for value in points.values()]
    return any(np.nan_to_num(effective_draws(each)).min() < MIN_SHARE * each[..., 0].size for each in flat)


def plan(log_weights: np.ndarray) -> tuple[float, int]:
    r"""What to expect of an independence chain, from the weights of draws of its proposal.

    At a point of weight w a proposal is accepted with probability :math:`a(w) = \mathrm{mean}_j \min(1, w_j / w)`.
    Points of the posterior are the draws with their normalised weights :math:`\bar w_i`.

    Args:
        log_weights: those of n draws, of which one at least is finite.

    Returns:
        The mean :math:`\sum_i \bar w_i\, a(w_i)`, and the least number t of proposals after which at most a tenth of
        the chains still are where they were, :math:`\sum_i \bar w_i\, (1 - a(w_i))^t \le 1/10`, or 51 if that is
        not enough.

    Example:
        >>> import numpy as np
        >>> acceptance, num_proposals = plan(np.array([0.0, -40.0, -40.0, -40.0, -40.0]))
        >>> round(acceptance, 3), num_proposals  # only the first is ever accepted, and it is one of five
        (0.2, 11)
    """
    finite = np.sort(log_weights[np.isfinite(log_weights)])
    weights = np.exp(finite - finite[-1])
    weights = weights[weights > 0]
    larger = np.arange(len(weights))[::-1]
    leaves = np.minimum((np.cumsum(weights) / weights + larger) / len(log_weights), 1.0)
    share = weights / weights.sum()
    unmoved = (float(share @ (1 - leaves) ** steps) for steps in range(1, MAX_PROPOSALS + 1))
    needed = next((steps for steps, left in enumerate(unmoved, 1) if left <= MAX_UNMOVED), MAX_PROPOSALS + 1)
    return float(share @ leaves), needed


def _follow(log_weight: float, proposals: np.ndarray, uniforms: np.ndarray) -> tuple[int, int]:
    """The proposal at which a chain ends, -1 if it takes none, and how many it takes."""
    place, count = -1, 0
    for step, (proposal, log_uniform) in enumerate(zip(proposals.tolist(), np.log(uniforms).tolist(), strict=True)):
        if log_uniform < proposal - log_weight:
            place, count, log_weight = step, count + 1, proposal
    return place, count


def _starts(log_weights: np.ndarray, num_chains: int, rng: np.random.Generator) -> list[int]:
    """A draw for each chain, chosen by its weight out of a part of its own: where one draw outweighs all others, the
    chains must not all begin there, or they would seem to agree."""
    starts = []
    for part in np.array_split(np.arange(len(log_weights)), num_chains):
        weights = weigh(log_weights[part])[0]
        if not weights.any():
            part, weights = np.arange(len(log_weights)), weigh(log_weights)[0]
        starts.append(int(rng.choice(part, p=weights)))
    return starts


def _stream(propose: Callable[[], tuple[Points, np.ndarray]]) -> Callable[[int], tuple[Points, np.ndarray]]:
    """A function that gives the next so many proposals, of those that come in batches; each is given once."""
    points: Points = {}
    weights, start = np.zeros(0), 0

    def take(num):
        nonlocal points, weights, start
        while len(weights) - start < num:
            new, new_weights = propose()
            points = {n: np.concatenate([points[n][start:], value]) if points else value for n, value in new.items()}
            new_weights = np.where(np.isfinite(new_weights), new_weights, -np.inf)
            weights, start = np.concatenate([weights[start:], new_weights]), 0
        chosen = slice(start, start + num)
        start += num
        return {name: value[chosen] for name, value in points.items()}, weights[chosen]

    return take


def _replaced(array: np.ndarray, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    new = array.copy()
    new[rows] = values
    return new
