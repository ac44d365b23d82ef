"""Flows as Pyro distributions."""

from __future__ import annotations

import copy

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from flowppl._arrays.tree import map_tree
from flowppl.bijections.contract import Bijection, check_standard_base
from flowppl.pyro.transforms import FlowTransform


class FlowDistribution(dist.TransformedDistribution):
    """The distribution of ``transform(x)``, x being drawn from a base distribution.

    A sample with its density costs one pass of the flow, and so does the density of fresh data. To that end ``rsample``
    leaves its log determinant for the next ``log_prob``, if that is of the very tensor just drawn: its density is then
    that under the weights it was drawn with. Do not change it through ``.data`` or NumPy in between; other changes are
    noticed. :class:`Flow` makes a new distribution with every call.

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

    def __init__(self, base_distribution, transform: FlowTransform, validate_args=None):
        bijection = transform.bijection
        shape = base_distribution.batch_shape + base_distribution.event_shape
        if shape[len(shape) - len(bijection.x_shape) :] != bijection.x_shape:
            raise ValueError(
                f"the base distribution must have events of shape {bijection.x_shape}, got batch shape "
                f"{tuple(base_distribution.batch_shape)} and event shape {tuple(base_distribution.event_shape)}"
            )
        support = base_distribution.support
        if getattr(support, "base_constraint", support) is constraints.real:
            check_standard_base(bijection)
        if bijection.context_dim and transform.context is None:
            raise ValueError(f"this flow needs a context of size {bijection.context_dim}: call flow(context)")
        super().__init__(base_distribution, [transform], validate_args=validate_args)
        self._last: tuple | None = None

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(FlowDistribution, _instance)
        new._last = None
        return super().expand(batch_shape, _instance=new)

    def __getstate__(self):
        return self.__dict__ | {"_last": None}  # a graph cannot be copied

    def rsample(self, sample_shape=()):
        x = self.base_dist.rsample(torch.Size(sample_shape))
        y, log_det = self.transforms[0].forward_and_log_det(x)
        self._last = (y, y._version, torch.is_grad_enabled(), x, log_det)
        return y

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        last, self._last = self._last, None
        if last is not None:
            y, version, with_grad, x, log_det = last
            if value is y and value._version == version and (with_grad or not torch.is_grad_enabled()):
                return self.base_dist.log_prob(x) - log_det
        x, log_det = self.transforms[0].inverse_and_log_det(value)
        return self.base_dist.log_prob(x) + log_det


class Flow(torch.nn.Module):
    """A bijection, its weights and a base distribution; ``flow()`` or ``flow(context)`` is a distribution.

    It is a module: ``.to(device)`` and ``.to(dtype)`` move all of it, the base included, and ``state_dict`` holds the
    weights, masks and permutations.

    Args:
        bijection: any :class:`flowppl.Bijection`.
        base: the base distribution, or a module that returns one when called; ``None`` is the standard normal.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Flow
        >>> flow = Flow(fp.maf(3))
        >>> flow().log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """

    def __init__(self, bijection: Bijection, base=None):
        super().__init__()
        self.transform = FlowTransform(bijection)
        self.base = base
        self.register_buffer("_zeros", torch.zeros(bijection.x_shape), persistent=False)

    @property
    def bijection(self) -> Bijection:
        """The bijection from the base to the data side."""
        return self.transform.bijection

    def forward(self, context=None) -> FlowDistribution:
        base = self.base
        if base is None:
            check_standard_base(self.bijection)
            base = standard_normal(self._zeros)
        elif isinstance(base, torch.nn.Module):
            base = base()
        transform = self.transform if context is None else self.transform._at(context)
        return FlowDistribution(base, transform)

    @torch.no_grad()
    def init_from(self, x, context=None) -> Flow:
        """Set what starts from data, such as :class:`flowppl.ActNorm`, from the batch ``x``; frozen weights stay."""
        weights = self.transform.weights
        tree = weights.tree()
        new = self.bijection.init_from(tree, x, context)
        weights.assign(map_tree(lambda new, old: new if old.requires_grad else old, new, tree))
        return self

    def freeze(self) -> Flow:
        """Stop training: no parameter requires a gradient any more, and the module is in evaluation mode."""
        return self.requires_grad_(False).eval()

    def _apply(self, fn, *args, **kwargs):
        super()._apply(fn, *args, **kwargs)
        if isinstance(self.base, torch.distributions.Distribution):
            self.base = _map_tensors(fn, self.base)
        return self


def standard_normal(zeros) -> dist.TorchDistribution:
    """Independent standard normals with events like ``zeros``."""
    return dist.Normal(zeros, torch.ones_like(zeros), validate_args=False).to_event(zeros.ndim)


def _map_tensors(fn, distribution):
    """A copy of a distribution, and of those inside it, with ``fn`` applied to its tensors."""
    new = copy.copy(distribution)
    for name, value in vars(distribution).items():
        if isinstance(value, torch.Tensor):
            setattr(new, name, fn(value))
        elif isinstance(value, torch.distributions.Distribution):
            setattr(new, name, _map_tensors(fn, value))
    return new
