"""Flows as Pyro distributions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import Distribution, Transform, constraints, transform_to

from flowppl._arrays.tree import map_tree
from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, check_standard_base
from flowppl.bijections.reversible import round_trip_error
from flowppl.inference.latent_space import check_first_data, tempered
from flowppl.pyro.transforms import FlowTransform


class FlowDistribution(dist.TransformedDistribution):
    """The distribution of ``transform(x)``, x being drawn from a base distribution.

    A sample with its density costs one pass of the flow, and so does the density of fresh data. To that end ``rsample``
    leaves its log determinant for the next ``log_prob``, if that is of the very tensor just drawn: its density is then
    that under the weights it was drawn with. Do not change it through ``.data`` or NumPy in between; other changes are
    noticed. :class:`Flow` makes a new distribution with every call.

    The density of a value is 0, its logarithm minus infinity, where the flow takes it outside of the support of the
    base distribution, or where it lies outside of the flow's own; torch's validation, which is on by default, raises
    its ValueError in the latter case.

    Args:
        base_distribution: the distribution of x; its event shape, or the end of its batch shape, is that of the flow.
        transform: the flow, given its context if it takes one.

    Raises:
        ValueError: if the base distribution does not fit the flow, or the flow lacks its context.

    Example:
        >>> import torch, flowppl as fp
        >>> import pyro.distributions as dist
        >>> from flowppl.pyro import FlowDistribution, FlowTransform
        >>> flow = FlowDistribution(dist.Normal(torch.zeros(2), 1.0), FlowTransform(fp.realnvp(2)))
        >>> flow.log_prob(flow.rsample((5,))).shape
        torch.Size([5])
    """

    def __init__(
        self, base_distribution: Distribution, transform: FlowTransform, validate_args: bool | None = None
    ) -> None:
        bijection = transform.bijection
        shape = base_distribution.batch_shape + base_distribution.event_shape
        if shape[len(shape) - len(bijection.x_shape) :] != bijection.x_shape:
            raise ValueError(
                f"the base distribution must have events of shape {bijection.x_shape}, got batch shape "
                f"{tuple(base_distribution.batch_shape)} and event shape {tuple(base_distribution.event_shape)}"
            )
        if is_real(base_distribution.support):
            check_standard_base(bijection)
        if bijection.context_dim and transform.context is None:
            raise ValueError(f"this flow needs a context of size {bijection.context_dim}: call flow(context)")
        super().__init__(base_distribution, [transform], validate_args=validate_args)
        self._last: tuple | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = self._get_checked_instance(FlowDistribution, _instance)
        new._last = None
        return super().expand(batch_shape, _instance=new)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}  # a graph cannot be copied

    def sample(self, sample_shape: Any = (), temperature: float = 1.0) -> torch.Tensor:
        """Draws without gradients, as ``Flow.sample`` gives them."""
        if isinstance(temperature, float | int) and temperature == 1:
            return super().sample(torch.Size(sample_shape))
        with torch.no_grad():
            x = self.base_dist.sample(torch.Size(sample_shape))
            return self.transforms[0](tempered(x, self.base_dist.mean, temperature))

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        x = self.base_dist.rsample(torch.Size(sample_shape))
        y, log_det = self.transforms[0].forward_and_log_det(x)
        if not y.is_inference():  # such a tensor does not tell whether it was changed
            self._last = (y, y._version, torch.is_grad_enabled(), x, log_det)
        return y

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        last, self._last = self._last, None
        if last is not None:
            y, version, with_grad, x, log_det = last
            if value is y and value._version == version and (with_grad or not torch.is_grad_enabled()):
                return self.base_dist.log_prob(x) - log_det
        x, log_det = self.transforms[0].inverse_and_log_det(value)
        return log_prob_at(self.base_dist, self.transforms[0].bijection, value, x, log_det)


def log_prob_at(
    base: Distribution, bijection: Bijection, value: torch.Tensor, x: torch.Tensor, log_det: torch.Tensor
) -> torch.Tensor:
    """The log density of a flow at values, which it takes to ``x``: minus infinity outside of its support."""
    log_prob = _log_prob_within(base, x) + log_det
    low, high = bijection.y_support
    if (low, high) == REAL_LINE:
        return log_prob
    outside = (value < low) | (value > high)
    for _ in bijection.y_shape:
        outside = outside.any(-1)
    return torch.where(outside, -torch.inf, log_prob)


def is_real(support: Any) -> bool:
    """Whether a constraint, or that of each entry, is all real numbers."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return isinstance(support, type(constraints.real))  # there are several once one was pickled or copied


def _log_prob_within(base: Distribution, x: torch.Tensor) -> torch.Tensor:
    """The log density of ``base`` at any x: minus infinity outside of its support, with derivatives of 0."""
    support: Any = base.support
    if is_real(support):
        return base.log_prob(x)
    inside = support.check(x)
    onto = transform_to(support)
    if onto.forward_shape(x.shape) != x.shape:
        return base.log_prob(x)
    is_event_inside = inside.reshape(*inside.shape, *(1,) * (x.ndim - inside.ndim))
    within = torch.where(is_event_inside, x, onto(torch.zeros_like(x)).to(x.dtype))
    return torch.where(inside, base.log_prob(within), -torch.inf)


class Flow(torch.nn.Module):
    """A bijection, its weights and a base distribution; ``flow()`` or ``flow(context)`` is a distribution.

    It is a module: ``.to(device)`` and ``.to(dtype)`` move all of it, the base included, and ``state_dict`` holds the
    weights, masks and permutations. A flow without a context also has :meth:`log_prob`, :meth:`sample` and
    :meth:`rsample` itself.

    Args:
        bijection: any :class:`flowppl.Bijection`, or a :class:`FlowTransform`, such as
            ``flowppl.pyro.realnvp(2)``, whose weights the flow then shares.
        base: the base distribution, or a module that returns one when called; ``None`` is the standard normal.

    Raises:
        TypeError: if they are something else.
        ValueError: from a call, if the base does not fit the flow, or a context is missing or of another size.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow
        >>> flow = Flow(fp.maf(3))
        >>> flow().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
        >>> conditional = Flow(fp.maf(3, context_dim=2))
        >>> conditional(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 3])
    """

    def __init__(
        self, bijection: Bijection | FlowTransform, base: Distribution | torch.nn.Module | None = None
    ) -> None:
        super().__init__()
        _check_base(base)
        self.transform = as_transform(bijection)
        self.base = base
        self._zeros: torch.Tensor
        self.register_buffer("_zeros", torch.zeros(self.bijection.x_shape), persistent=False)

    @property
    def bijection(self) -> Bijection:
        """The bijection from the base to the data side."""
        return self.transform.bijection

    _of_x = bijection  # what tells the shape of x, and its context

    def __call__(self, context: torch.Tensor | None = None) -> FlowDistribution:
        """The distribution, at a context if the flow takes one.

        Args:
            context: a tensor of shape ``(*batch, context_dim)``: one context for each event, or one of shape
                ``(context_dim,)`` for all. ``None`` for a flow without a context.

        Returns:
            A distribution of events of shape ``bijection.y_shape``, D numbers for a flow of D coordinates, and batch
            shape ``batch``. So ``flow().log_prob(x)`` of x of shape ``(n, D)`` has the shape ``(n,)``, and
            ``flow().sample((n,))`` is of shape ``(n, D)``; ``flow(context).sample()`` with contexts of shape
            ``(n, context_dim)`` is one event for each, of shape ``(n, D)``, and ``flow(context).sample((s,))`` is of
            shape ``(s, n, D)``.
        """
        return super().__call__(context)

    def forward(self, context: torch.Tensor | None = None) -> FlowDistribution:
        """What a call gives: see :meth:`__call__`."""
        base: Any = self.base
        if base is None:
            check_standard_base(self.bijection)
            base = standard_normal(torch.zeros_like(self._zeros))  # which to_empty leaves undefined
        elif isinstance(base, torch.nn.Module):
            base = base()
        if context is not None and not isinstance(context, torch.Tensor):
            raise TypeError(
                f"flow(context): context must be a tensor whose last axis has size {self.bijection.context_dim}, got "
                f"{type(context).__name__}; convert it by torch.as_tensor"
            )
        transform = self.transform if context is None else self.transform._at(context)
        return FlowDistribution(base, transform)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """``flow().log_prob(value)``: the log density of each event, for a flow without a context."""
        return self._unconditional("log_prob").log_prob(value)

    def sample(self, sample_shape: Any = (), temperature: float = 1.0) -> torch.Tensor:
        r"""``flow().sample(sample_shape)``: draws without gradients, for a flow without a context.

        At a ``temperature`` other than 1 the noise is drawn together towards its mean, or spread: :math:`y = f(m + T
        (z - m))` with noise z of mean m. Below 1, 0.7 for images, draws are more probable and less varied; at 0 all are
        the image of the mean. They are not draws of the flow any more (Kingma, Dhariwal 2018, arXiv 1807.03039).
        """
        return self._unconditional("sample").sample(torch.Size(sample_shape), temperature)

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        """``flow().rsample(sample_shape)``: draws with gradients in the weights, for a flow without a context."""
        return self._unconditional("rsample").rsample(torch.Size(sample_shape))

    def _unconditional(self, name: str) -> FlowDistribution:
        if self.bijection.context_dim:
            raise ValueError(
                f"this flow depends on a context of size {self.bijection.context_dim}: write flow(context).{name}(...)"
            )
        return self()

    @torch.no_grad()
    def init_from(self, x: torch.Tensor, context: torch.Tensor | None = None) -> Flow:
        """Set what starts from data, such as :class:`flowppl.ActNorm`, from the batch ``x``; frozen weights stay."""
        check_first_data(self.bijection, x)
        weights = self.transform.weights
        tree = weights.tree()
        new = self.bijection.init_from(tree, x, context)
        weights.assign(map_tree(lambda new, old: new if old.requires_grad else old, new, tree))
        return self

    @torch.no_grad()
    def round_trip_error(self, x: torch.Tensor, context: torch.Tensor | None = None) -> float:
        r"""How far data are from themselves after the way to the noise and back, :math:`y' = f(f^{-1}(y))`.

        Where the flow is :func:`flowppl.reversible`, its derivatives are off by about as much, relative to them.

        Args:
            x: data y, of shape ``(..., *bijection.y_shape)``.
            context: their context, if the flow takes one.

        Returns:
            The largest of :math:`|y' - y| / (1 + |y|)` over all numbers of the data.

        Example:
            >>> import torch, flowppl as fp
            >>> from flowppl.pyro import Flow
            >>> Flow(fp.realnvp(2)).round_trip_error(torch.ones(5, 2)) < 1e-5
            True
        """
        transform = self.transform if context is None else self.transform._at(context)
        return round_trip_error(transform, x)

    def freeze(self) -> Flow:
        """Stop training: no parameter requires a gradient any more, and the module is in evaluation mode."""
        return self.requires_grad_(False).eval()

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Flow:
        super()._apply(fn, *args, **kwargs)
        if isinstance(self.base, torch.distributions.Distribution):
            self.base = _map_tensors(fn, self.base)
        return self


def as_transform(value: Any) -> FlowTransform:
    """A :class:`FlowTransform` as it is, and one of a bijection, over weights that are drawn here.

    Raises:
        TypeError: for anything else; a transform of the host needs a :class:`Wrap`.
    """
    if isinstance(value, FlowTransform):
        if value.context is not None:
            raise ValueError(
                "this transform stands at a context already; give it as it is, and the context to the flow"
            )
        return value
    if isinstance(value, Transform):
        raise TypeError(
            f"{type(value).__name__} is a transform of torch or Pyro: write Flow(Wrap(transform, shape)), with the "
            "shape of one event"
        )
    check_bijection(value)
    return FlowTransform(value)


def _check_base(base: Any) -> None:
    if base is not None and not isinstance(base, Distribution | torch.nn.Module):
        what = f"the class {base.__name__}" if isinstance(base, type) else repr(base)[:80]
        raise TypeError(
            "Flow: base must be a distribution of Pyro or torch, such as Normal(torch.zeros(2), 1.0).to_event(1), a "
            f"module that returns one, or None for the standard normal, got {what}"
        )


def standard_normal(zeros: Any) -> dist.TorchDistribution:
    """Independent standard normals with events like ``zeros``."""
    return dist.Normal(zeros, torch.ones_like(zeros), validate_args=False).to_event(zeros.ndim)


def tensors_of(distribution: Distribution) -> list[torch.Tensor]:
    """The tensors of a distribution, and of those inside it."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor.detach())
        return tensor

    _map_tensors(note, distribution)
    return found


def _map_tensors(fn: Callable[[torch.Tensor], torch.Tensor], distribution: Any) -> Any:
    """A copy of a distribution, and of those inside it, with ``fn`` applied to its tensors."""
    new = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, torch.Tensor):
            setattr(new, name, fn(value))
        elif isinstance(value, torch.distributions.Distribution):
            setattr(new, name, _map_tensors(fn, value))
    return new
