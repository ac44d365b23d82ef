"""nflows."""

import nflows.flows
import nflows.nn.nets
import nflows.transforms
import torch
from nflows.distributions import StandardNormal


class Network(nflows.nn.nets.MLP):
    """What the layers of nflows call: they pass a context too, and splines ask for the width."""

    def __init__(self, dim, out, hidden):
        super().__init__([dim], [out], list(hidden))
        self.hidden_features = hidden[0]

    def forward(self, x, context=None):
        return super().forward(x)


def couplings(dim, layers, layer):
    second = torch.arange(dim) >= dim // 2
    parts = [layer((second if i % 2 == 0 else ~second).int()) for i in range(layers)]
    flow = nflows.flows.Flow(nflows.transforms.CompositeTransform(parts), StandardNormal([dim]))
    return list(flow.parameters()), flow.log_prob


def coupling(dim, layers, hidden):
    def layer(mask):
        return nflows.transforms.AffineCouplingTransform(mask, lambda fan_in, out: Network(fan_in, out, hidden))

    return couplings(dim, layers, layer)


def spline(dim, layers, hidden, bins, bound):
    def layer(mask):
        return nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask,
            lambda fan_in, out: Network(fan_in, out, hidden),
            num_bins=bins,
            tails="linear",
            tail_bound=bound,
        )

    return couplings(dim, layers, layer)


def autoregressive(dim, layers, hidden):
    return nflows.flows.MaskedAutoregressiveFlow(dim, hidden[0], layers, len(hidden) - 1, use_residual_blocks=False)


def maf(dim, layers, hidden):
    flow = autoregressive(dim, layers, hidden)
    return list(flow.parameters()), flow.log_prob


def maf_both_ways(dim, layers, hidden):
    flow = autoregressive(dim, layers, hidden)
    return list(flow.parameters()), flow._transform, flow._transform.inverse
