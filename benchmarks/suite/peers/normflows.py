"""normflows."""

import normflows
import torch


def coupling(dim, layers, hidden):
    parts = []
    for _ in range(layers):
        network = normflows.nets.MLP([dim // 2, *hidden, dim])
        parts += [normflows.flows.AffineCouplingBlock(network), normflows.flows.Permute(dim, mode="swap")]
    flow = normflows.NormalizingFlow(normflows.distributions.DiagGaussian(dim, trainable=False), parts)
    return list(flow.parameters()), flow.log_prob


def autoregressive(dim, layers, hidden):
    parts = []
    for _ in range(layers):
        layer = normflows.flows.MaskedAffineAutoregressive(
            dim, hidden[0], num_blocks=len(hidden) - 1, use_residual_blocks=False
        )
        parts += [layer, normflows.flows.Permute(dim, mode="swap")]
    return normflows.NormalizingFlow(normflows.distributions.DiagGaussian(dim, trainable=False), parts)


def maf(dim, layers, hidden):
    """Its own ``log_prob`` takes a pass for each dimension: this is the direction of one pass."""
    flow = autoregressive(dim, layers, hidden)

    def score(x):
        z, log_det = flow.forward_and_log_det(x)
        return flow.q0.log_prob(z) + log_det

    return list(flow.parameters()), score


def maf_both_ways(dim, layers, hidden):
    flow = autoregressive(dim, layers, hidden)
    return list(flow.parameters()), flow.forward_and_log_det, flow.inverse


def planar(dim, layers):
    parts = torch.nn.ModuleList(normflows.flows.Planar((dim,)) for _ in range(layers))

    def score(x):
        total = 0.0
        for part in parts:
            x, log_det = part(x)
            total = total + log_det
        return total - 0.5 * x.square().sum(-1)

    return list(parts.parameters()), score
