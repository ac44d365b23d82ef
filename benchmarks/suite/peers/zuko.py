"""zuko."""

import functools

import torch
import zuko
import zuko.flows.coupling


def scored(flow):
    return list(flow.parameters()), lambda x: flow().log_prob(x)


def coupling(dim, layers, hidden):
    return scored(zuko.flows.RealNVP(dim, transforms=layers, hidden_features=hidden))


def maf(dim, layers, hidden):
    return scored(zuko.flows.MAF(dim, transforms=layers, hidden_features=hidden))


def maf_both_ways(dim, layers, hidden):
    flow = zuko.flows.MAF(dim, transforms=layers, hidden_features=hidden)
    transform = flow().transform
    return list(flow.parameters()), transform, transform.inv


def spline(dim, layers, hidden, bins, bound):
    """Couplings that map one half, as those of the others do: zuko's own NSF is autoregressive."""
    univariate = functools.partial(zuko.transforms.MonotonicRQSTransform, bound=bound)
    parts = [
        zuko.flows.coupling.GeneralCouplingTransform(
            dim,
            mask=torch.arange(dim) % 2 == i % 2,
            univariate=univariate,
            shapes=[(bins,), (bins,), (bins - 1,)],
            hidden_features=hidden,
        )
        for i in range(layers)
    ]
    normal = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(dim), torch.ones(dim), buffer=True
    )
    return scored(zuko.lazy.Flow(parts, normal))
