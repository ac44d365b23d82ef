"""Continuous flows as Pyro transforms."""

from __future__ import annotations

from collections.abc import Sequence

from flowppl.bijections import continuous
from flowppl.networks import NetworkLike
from flowppl.pyro.transforms import FlowTransform


class Continuous(FlowTransform):
    r"""A continuous flow: from time 0 to time 1 every event moves with a velocity v, a network's.

    .. math::
        \frac{dx}{dt} = v(x, t, c), \qquad x(0) = x, \quad x(1) = y,

    where c is the context. The way is gone in N = ``num_steps`` steps of length h = 1 / N, each with the velocity at
    its own middle m, from :math:`x_k` to :math:`x_{k+1}` by

    .. math::
        m = x_k + \tfrac h2\, v(m, t_k, c), \qquad x_{k+1} = m + \tfrac h2\, v(m, t_k, c), \qquad
        t_k = (k + \tfrac12)\, h .

    Read from right to left this is the same rule with -h. So the inverse is exact, and with the Jacobian J of v in m,

    .. math::
        \log|\det| = \sum_k \log\big|\det(I + \tfrac h2 J)\big| - \log\big|\det(I - \tfrac h2 J)\big|

    is exactly that of the map, for any number of steps. More steps bring the map closer to the differential equation.

    The weights are those of the network, whose last layer starts at 0, where v is 0 and the transform the identity. It
    keeps ``lipschitz`` as a bound of its Lipschitz constant (of :math:`|v(a) - v(b)| / |a - b|` for any two events),
    whatever its weights, so that every step has an inverse. See :class:`flowppl.Continuous` for how, and for when to
    choose it. Where a step is not solved to the precision of the dtype the result is NaN.

    x and y have the shape ``(..., dim)``, their log determinant has the shape ``(...)``. With ``context_dim`` the
    transform needs a context c of shape ``(..., context_dim)``, whose batch axes broadcast with those of x:
    ``transform.condition(c)``.

    ``transform(x)`` and ``transform.inv(y)`` are iterative: about 16 passes of the network for each step, three of its
    Jacobian, each as much as ``dim`` passes, and two determinants of ``dim`` x ``dim`` matrices.

    Args:
        dim: the number of coordinates.
        hidden_dims: the widths of the network's hidden layers; an int means one layer.
        context_dim: the size of the context, 0 for none.
        activation: the network's activation: elu, relu, silu, softplus or tanh.
        lipschitz: the bound of the Lipschitz constant of v, at most ``1.5 * num_steps``. For sharper densities raise
            both.
        num_steps: the number N of steps.
        network: a network of your own as v instead of the perceptron: a module, as :class:`ModuleNetwork` takes it, or
            one that follows the protocol of :mod:`flowppl.networks`. It takes ``dim`` coordinates, and as its context
            the time and then the context of the transform, and gives ``dim`` numbers. Nothing bounds it: where its
            Jacobian is too steep for a step to be inverted the result is NaN, and more steps help. ``hidden_dims``,
            ``activation`` and ``lipschitz`` then go unused.

    Raises:
        ValueError: for a size below 1, a bound that is not positive or above ``1.5 * num_steps``, or an unknown
            activation; when it maps, for a context that is missing, of another size, or not expected.

    References:
        Chen, Rubanova, Bettencourt, Duvenaud: Neural Ordinary Differential Equations, 2018, arXiv 1806.07366.
        Grathwohl, Chen, Bettencourt, Sutskever, Duvenaud: FFJORD: Free-form Continuous Dynamics for Scalable Reversible
        Generative Models, 2018, arXiv 1810.01367. Lu, Chen, Li, Wang, Zhu: Implicit Normalizing Flows, 2021, arXiv
        2103.09527.

    Example:
        >>> import torch
        >>> from flowppl.pyro import Continuous
        >>> transform = Continuous(2, hidden_dims=16, num_steps=20)
        >>> x = torch.randn(5, 2)
        >>> y = transform(x)
        >>> transform.log_abs_det_jacobian(x, y).shape
        torch.Size([5])
        >>> bool(torch.allclose(transform.inv(y), x, atol=1e-4))
        True
    """

    def __init__(
        self,
        dim: int,
        hidden_dims: int | Sequence[int] = (64, 64),
        context_dim: int = 0,
        activation: str = "tanh",
        lipschitz: float = 24.0,
        num_steps: int = 16,
        network: NetworkLike | None = None,
    ) -> None:
        bijection = continuous.Continuous(dim, hidden_dims, context_dim, activation, lipschitz, num_steps, network)
        super().__init__(bijection)
