"""Continuous flows."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.bijections.continuous import Continuous
from flowppl.bijections.contract import Bijection
from flowppl.bijections.repeat import Repeat
from flowppl.checks import check_sizes


def cnf(
    dim: int,
    num_flows: int = 1,
    *,
    hidden_dims: int | Sequence[int] = (64, 64),
    context_dim: int = 0,
    activation: str = "tanh",
    lipschitz: float = 24.0,
    num_steps: int = 16,
) -> Bijection:
    """Continuous normalizing flow: events move with a velocity that a network gives, in steps that are exact.

    See :class:`flowppl.Continuous` for the equation, the cost and when to choose it.

    Args:
        dim: the number of coordinates.
        num_flows: the number of velocities, one after the other; flow matching needs a single one.
        hidden_dims: the widths of each network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: elu, relu, silu, softplus or tanh.
        lipschitz: the bound of the Lipschitz constant of each velocity, at most ``1.5 * num_steps``;
            see :class:`flowppl.Continuous`.
        num_steps: the number of steps in which each way is gone.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud: Neural Ordinary Differential Equations, 2018, arXiv 1806.07366.
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD: Free-form Continuous Dynamics for Scalable Reversible
        Generative Models, 2018, arXiv 1810.01367.

    Example:
        >>> import flowppl as fp
        >>> flow = fp.cnf(6, hidden_dims=32)
        >>> flow.forward_cost, flow.inverse_cost
        ('iterative', 'iterative')
    """
    check_sizes("cnf", dim=dim, num_flows=num_flows)
    layer = Continuous(dim, hidden_dims, context_dim, activation, lipschitz, num_steps)
    return layer if num_flows == 1 else Repeat(layer, num_flows)
