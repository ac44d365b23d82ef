"""Continuous flows: events that move with a velocity."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from flowppl._arrays.namespace import Array, namespace
from flowppl._arrays.tree import Tree, leaves
from flowppl.bijections.contract import Bijection, check_event, held
from flowppl.bijections.linear import diagonal, join
from flowppl.bijections.residual import times
from flowppl.checks import assign, check_positive, check_sizes, derived
from flowppl.networks import MLP, Network, NetworkLike, as_dims, bind_network, read_network
from flowppl.networks.lipschitz import at_context, dense_jacobian, shrunk, spectral_bound

MOST = 0.75  # of the Lipschitz constant of half a step, which has an inverse below 1
# By the bound the plain iterations bring the middle of a step as close as this, as a part of the first distance; then
# two chords, and two with a new Jacobian, were enough in 96,000 events of random networks with weights up to a hundred
# times the usual ones.
CLOSE, NUM_CHORDS = 0.03, 2


@dataclasses.dataclass(frozen=True)
class Continuous(Bijection):
    r"""A continuous flow: from time 0 to time 1 every event moves with a velocity v, a network's.

    .. math::
        \frac{dx}{dt} = v(x, t, c), \qquad x(0) = x, \quad x(1) = y,

    where c is the context. The way is gone in N = ``num_steps`` steps of length h = 1 / N, each of which moves with the
    velocity at its own middle m (the *implicit midpoint rule*): from :math:`x_k` to :math:`x_{k+1}` by

    .. math::
        m = x_k + \tfrac h2\, v(m, t_k, c), \qquad x_{k+1} = m + \tfrac h2\, v(m, t_k, c), \qquad
        t_k = (k + \tfrac12)\, h .

    Read from right to left this is the same rule with -h. So the inverse is exact, and with the Jacobian J of v in m,

    .. math::
        \log|\det| = \sum_k \log\big|\det(I + \tfrac h2 J)\big| - \log\big|\det(I - \tfrac h2 J)\big|

    is exactly that of the map, for any number of steps. FFJORD and others run a solver anew in each direction, and
    integrate the trace of J beside it: what they draw and what they score agree only up to the error of the solver.
    More steps bring the map closer to that of the differential equation, with an error of order :math:`h^2`.

    A step is invertible where the *Lipschitz constant* of v, the largest :math:`|v(a) - v(b)| / |a - b|` of two events,
    is below 2 N. The network here keeps the bound ``lipschitz``, whatever its weights: it is a perceptron, whose last
    weights are made smaller once the product of the largest singular values of all comes near it. That product is a
    cautious bound, in trained flows five to ten times what v does. The middle is found by plain iterations, twelve at
    the default bound, and four steps of Newton's method with two Jacobians, of which the last two carry exact first
    and second derivatives. Where it is not found to the precision of the dtype the result is NaN, never a wrong number.

    Choose it for smooth densities in one piece or nearly so, whose coordinates have no natural order and no natural
    halves, and train it by flow matching (``fit_density(objective="flow_matching")``), which takes one pass of the
    network for a step: of 16 columns, a rotation of eight pairs of moons, its loss ended 1.7 nats below that of the
    best of four other flows. Both directions cost about ``num_steps`` times 16 passes of the network and three of its
    Jacobian, each as much as D passes, and two determinants of D x D matrices. A step of maximum likelihood takes ten
    to thirty times as long as with :func:`flowppl.nsf`; from some twenty coordinates on ``fit_density`` is faster with
    ``objective="estimated_likelihood"``, in which no D x D matrix is made. For sharp edges and for speed take splines.

    Args:
        dim: the number D of coordinates.
        hidden_dims: the widths of the network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: the network's activation: elu, relu, silu, softplus or tanh.
        lipschitz: the bound of the Lipschitz constant of v, at most ``1.5 * num_steps``. For sharper densities raise
            both.
        num_steps: the number N of steps.
        network: a network of your own as v instead of the perceptron. It takes D coordinates, and as its context the
            time and then the context of the flow, and gives D numbers. It follows the protocol of
            :mod:`flowppl.networks`, or is a module: of ``torch.nn`` in Pyro, as ``flowppl.pyro.ModuleNetwork`` takes
            it, of ``flax.nnx`` in NumPyro, as ``flowppl.numpyro.ModuleNetwork`` does. Nothing bounds it: where its
            Jacobian is too steep for a step to be inverted the result is NaN, and more steps help. It needs the
            derivatives of a library, torch's or JAX's. ``hidden_dims``, ``activation`` and ``lipschitz`` go unused.

    Raises:
        TypeError: for a ``network`` that is none.
        ValueError: for a size below 1, a bound that is not positive or above ``1.5 * num_steps``, or an unknown
            activation; for a module that does not map to what the layer needs, or keeps a state.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud: Neural Ordinary Differential Equations, 2018, arXiv 1806.07366.
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD: Free-form Continuous Dynamics for Scalable Reversible
        Generative Models, 2018, arXiv 1810.01367. A step is one of the implicit flows of Lu, Chen, Li, Wang, Zhu:
        Implicit Normalizing Flows, 2021, arXiv 2103.09527.

    Example:
        >>> import numpy as np, flowppl as fp
        >>> flow = fp.Continuous(2, hidden_dims=(), num_steps=50)
        >>> turn = np.array([[0.0, np.pi / 2], [-np.pi / 2, 0.0]])  # by a right angle in time 1
        >>> layer = {"weight": turn, "bias": np.zeros(2), "context_weight": np.zeros((1, 2))}
        >>> params = {"network": {"0": layer}, "step": flow.constants()["step"]}
        >>> y, log_det = flow.forward(params, np.array([2.0, 1.0]))
        >>> y.round(3), flow.inverse(params, y)[0].round(12)
        (array([-1.,  2.]), array([2., 1.]))
    """

    dim: int
    hidden_dims: int | Sequence[int] = (64, 64)
    context_dim: int = 0
    activation: str = "tanh"
    lipschitz: float = 24.0
    num_steps: int = 16
    network: NetworkLike | None = None
    _network: Network = derived()
    _num_iterations: int = derived()

    def __post_init__(self):
        check_sizes("Continuous", dim=self.dim, num_steps=self.num_steps)
        check_sizes("Continuous", at_least=0, context_dim=self.context_dim)
        check_positive("Continuous", lipschitz=self.lipschitz)
        network, hidden_dims = read_network("Continuous", self.network), as_dims("Continuous", self.hidden_dims)
        given = 1 + self.context_dim
        if network is not None:
            inner: Network = bind_network("Continuous", network, (self.dim,), (self.dim,), given)
        elif self.lipschitz > 2 * MOST * self.num_steps:
            raise ValueError(
                f"Continuous: lipschitz must be at most 1.5 * num_steps = {1.5 * self.num_steps:g}, so that every step "
                f"has an inverse, got {self.lipschitz!r}; take more steps, or a smaller bound"
            )
        else:
            inner = MLP(self.dim, self.dim, hidden_dims, given, self.activation)
        steepest = MOST if network is not None else self.lipschitz / (2 * self.num_steps)
        num_iterations = math.ceil(math.log(CLOSE) / math.log(steepest))
        assign(self, network=network, hidden_dims=hidden_dims, _network=inner, _num_iterations=num_iterations)

    @property
    def forward_cost(self) -> str:
        return "iterative"

    @property
    def inverse_cost(self) -> str:
        return "iterative"

    def parameters(self) -> Tree:
        return {"network": self._network.parameters()}

    def constants(self) -> Tree:
        return {"network": self._network.constants(), "step": np.arange(self.num_steps)}

    def velocity(self, params: Tree, x: Array, time: Array, context: Array | None = None) -> Array:
        """The velocity of events at a time.

        Args:
            params: the weights and constants.
            x: the events, of shape ``(..., dim)``.
            time: the time of each, between 0 and 1, of shape ``(...)``.
            context: as for ``forward``.

        Returns:
            An array of the shape of ``x``. The batch axes of all broadcast.
        """
        check_event(self, x, self.x_shape, context)
        return self._network(self._weights(params), x, _given(time[..., None], context))

    def forward(self, params, x, context=None):
        check_event(self, x, self.x_shape, context)
        return self._move(params, x, context, 0.5 / self.num_steps)

    def inverse(self, params, y, context=None):
        check_event(self, y, self.y_shape, context)
        return self._move(params, y, context, -0.5 / self.num_steps)

    def _weights(self, params):
        """The weights of the network, by which it keeps its bound if it has one."""
        weights = params["network"]
        return shrunk(weights, self.lipschitz, self.activation) if self.network is None else weights

    def _at(self, weights, time, context):
        """The weights, and what the network reads as its context beside x: nothing, where it is in the weights."""
        given = _given(time, context)
        return (at_context(weights, given), None) if self.network is None else (weights, given)

    def _jacobian(self, at, x):
        """The transposed Jacobian of the velocity."""
        weights, given = at
        if self.network is None:
            return dense_jacobian(weights, x, self.activation)
        return namespace(x).jacobian(lambda x: self._network(weights, x, given), x).mT

    def _batch(self, params, event, context):
        """The batch axes of the event, the context and all weights together."""
        declared = dict(leaves(self.parameters()))
        batches = [event.shape[:-1], *([] if context is None else [context.shape[:-1]])]
        for path, leaf in leaves(params):
            if path in declared:
                batches.append(leaf.shape[: leaf.ndim - len(declared[path].shape)])
        return tuple(namespace(event).broadcast_shapes(*batches))

    def _move(self, params, event, context, half):
        """All steps, in time or, with a negative ``half``, against it; ``half`` is half the length of one."""
        xp, batch = namespace(event), self._batch(params, event, context)
        event = event if tuple(event.shape[:-1]) == batch else xp.broadcast_to(event, (*batch, self.dim))
        weights = self._weights(params)
        time = (xp.astype(params["step"], event.dtype) + 0.5) / self.num_steps

        def step(_, start, time):
            middle = self._middle(self._at(weights, time, context), start, half)
            return 2 * middle - start, (start, middle)

        end, (starts, middles) = xp.collect(self.num_steps, step, event, time[:, None], reverse=half < 0)
        at = self._at(weights, xp.reshape(time, (self.num_steps, *(1 for _ in batch), 1)), context)
        each = self._log_dets(params, at, middles, half) + xp.zeros_like(middles[..., 0])  # if v is linear, too
        log_det = xp.sum(each, axis=0)

        starts, middles = xp.stop_gradient(starts), xp.stop_gradient(middles)
        off = self._image(_held(at), starts, middles, half) - middles
        limit = float(xp.finfo(event.dtype).eps) ** (2 / 3)
        size = xp.max(xp.abs(middles), axis=-1, keepdims=True)  # all coordinates round as the largest does
        is_solved = xp.all(xp.abs(off) <= limit * (1 + size), axis=-1)
        if self.network is not None:
            is_solved = is_solved & xp.isfinite(xp.stop_gradient(each))
        is_solved = xp.all(is_solved, axis=0)
        nothing = xp.full_like(log_det, xp.nan)
        end = xp.where(is_solved[..., None], end, nothing[..., None])
        return end, xp.where(is_solved, log_det, nothing)

    def _image(self, at, start, middle, half):
        """Where the middle of a step is, of which the middle itself is the fixed point."""
        return start + half * self._network(at[0], middle, at[1])

    def _nearly(self, at, start, half, num_iterations):
        """The middle of a step from ``start`` after so many plain iterations, all held constant."""
        return namespace(start).fori_loop(num_iterations, lambda _, middle: self._image(at, start, middle, half), start)

    def _middle(self, at, start, half):
        """The middle of a step, with its first and second derivatives."""
        xp, fixed = namespace(start), _held(at)
        fixed_start = xp.stop_gradient(start)
        middle = self._nearly(fixed, fixed_start, half, self._num_iterations)
        # Of two with the Jacobian at the middle itself derivatives are exact, to second order.
        for given, begin, num in ((fixed, fixed_start, NUM_CHORDS), (at, start, 2)):
            slopes = half * self._jacobian(fixed, middle)
            back = xp.inv(_one(slopes) - slopes).mT
            for _ in range(num):
                middle = middle + times(xp, back, self._image(given, begin, middle, half) - middle)
        return middle

    def _log_dets(self, params, at, middles, half):
        """The log determinant of each step; NaN where a network that nothing bounds is too steep."""
        return self._log_dets_of(half * self._jacobian(at, middles))

    def _log_dets_of(self, slopes):
        xp = namespace(slopes)
        log_dets = xp.log_abs_det(_one(slopes) + slopes) - xp.log_abs_det(_one(slopes) - slopes)
        if self.network is None:
            return log_dets
        return xp.where(spectral_bound(xp.stop_gradient(slopes)) < 1, log_dets, xp.full_like(log_dets, xp.nan))


def _one(matrices):
    """The identity of their size."""
    first = matrices[(*(slice(1),) * (matrices.ndim - 2), ..., 0)]  # of the batch, which may be empty
    return diagonal(namespace(matrices).ones_like(first))


def _held(at):
    """Weights and a context as constants."""
    weights, given = at
    return held(weights), None if given is None else namespace(given).stop_gradient(given)


def _given(time, context):
    """What the network reads as its context: the time, then the context of the flow."""
    return time if context is None else join(time, context)
