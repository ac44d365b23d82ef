"""Mixtures of flows as Pyro distributions."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from flowppl._arrays.tree import Tree, map_tree, merge
from flowppl.bijections.contract import Bijection
from flowppl.inference import mixture
from flowppl.pyro.transforms import Weights


class FlowMixture(dist.TorchDistribution):
    """The distribution of a draw from one of K flows, chosen by weights; an ``AutoFlow`` of several modes has it.

    Draws have gradients in the weights of the flows. The weights of the mixture are constants of differentiation:
    :func:`flowppl.pyro.fit` sets them.

    Args:
        flows: the flows and the weights.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flows: MixtureOfFlows, *, validate_args: bool | None = None) -> None:
        self.flows = flows
        super().__init__(event_shape=torch.Size(flows.bijection.y_shape), validate_args=validate_args)

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draws of shape ``(*sample_shape, D)``, with gradients in the weights of the flows."""
        flows, zeros = self.flows, self.flows._zeros
        shape = torch.Size(sample_shape)
        chosen = torch.distributions.Categorical(logits=flows.log_weights).sample(shape)
        noise = torch.randn((*shape, len(zeros)), dtype=zeros.dtype, device=zeros.device)
        # Of each draw all flows are run, and one is kept, so that nothing depends on which.
        everywhere = noise.expand(len(flows.log_weights), *noise.shape)
        drawn = mixture.forward(flows.staged, flows.parts.tree(), everywhere)
        return torch.take_along_dim(drawn, chosen[None, ..., None], dim=0)[0]

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log density of events."""
        if self._validate_args:
            self._validate_sample(value)
        return mixture.log_prob(self.flows.staged, self.flows.parts.tree(), self.flows.log_weights, value)


class MixtureOfFlows(torch.nn.Module):
    """K flows of one bijection from standard normals, and their weights; a call gives a :class:`FlowMixture`.

    Args:
        bijection: the bijection of all flows.
        params: the stacked weights, and ``log_weights``, as tensors or NumPy arrays.
        like: a tensor of the dtype and on the device of the flows.
    """

    log_weights: torch.Tensor
    _zeros: torch.Tensor

    def __init__(self, bijection: Bijection, params: Tree, like: torch.Tensor) -> None:
        super().__init__()
        self.bijection: Any = bijection
        self.parts = Weights(map_tree(lambda leaf: torch.as_tensor(leaf).to(like), mixture.stacked_part(params)), {})
        self.constants = Weights({}, bijection.constants())
        self.register_buffer("log_weights", torch.as_tensor(params["log_weights"]).to(like))
        self.register_buffer("_zeros", like.new_zeros(bijection.x_shape), persistent=False)
        self.to(like.device)

    def forward(self) -> FlowMixture:
        """The distribution."""
        return FlowMixture(self)

    def staged(self, part: Tree) -> tuple[Bijection, Tree]:
        """Of the weights of a part the bijection, and these with its constants."""
        return self.bijection, merge(part, self.constants.tree())

    def part(self, k: int) -> Tree:
        """The weights of one part, without the constants."""
        return map_tree(lambda leaf: leaf[k], self.parts.tree())
