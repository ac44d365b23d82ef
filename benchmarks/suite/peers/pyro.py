"""Pyro's own transforms and guides, its caches cleared at every step; and the models that guides are timed on."""

import functools
import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pyro.infer
import pyro.nn
import torch
from pyro.infer.autoguide import AutoIAFNormal

COUNT = itertools.count()
Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def standard_normal(dim):
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


def couplings(dim, parts, trained=lambda name: True):
    """The density of a stack of couplings, after each of which the halves change places."""
    swap = transforms.Permute(torch.arange(dim).roll(dim // 2), dim=-1)
    flow = dist.TransformedDistribution(standard_normal(dim), [each for part in parts for each in (part, swap)])
    modules = torch.nn.ModuleList(parts)

    def score(x):
        flow.clear_cache()
        for part in parts:
            part.clear_cache()
        return flow.log_prob(x)

    return [weight for name, weight in modules.named_parameters() if trained(name)], score


def mapped(parts):
    modules = torch.nn.ModuleList(parts)

    def score(x):
        total = 0.0
        for part in parts:
            part.clear_cache()
            y = part(x)
            total, x = total + part.log_abs_det_jacobian(x, y), y
        return total - 0.5 * x.square().sum(-1)

    return list(modules.parameters()), score


def coupling(dim, layers, hidden):
    return couplings(dim, [transforms.affine_coupling(dim, hidden) for _ in range(layers)])


def spline(dim, layers, hidden, bins, bound):
    half, parts = dim // 2, []
    for _ in range(layers):
        network = pyro.nn.DenseNN(half, hidden, [half * bins, half * bins, half * (bins - 1)])
        parts.append(transforms.SplineCoupling(dim, half, network, bins, bound, order="quadratic", identity=True))
    return couplings(dim, parts, trained=lambda name: "lower_spline" not in name)  # which identity=True does not use


def autoregressive(dim, layers, hidden):
    orders = [torch.arange(dim), torch.arange(dim).flip(0)]
    networks = [pyro.nn.AutoRegressiveNN(dim, hidden, permutation=orders[i % 2]) for i in range(layers)]
    return [transforms.AffineAutoregressive(network) for network in networks]


def maf(dim, layers, hidden):
    """The inverses of Pyro's layers, which are those of an IAF: so that the score is one pass."""
    parts = autoregressive(dim, layers, hidden)
    flow = dist.TransformedDistribution(standard_normal(dim), [part.inv for part in parts])

    def score(x):
        for part in parts:  # the flow's own clear_cache does not reach a transform behind `.inv`
            part.clear_cache()
        return flow.log_prob(x)

    return list(torch.nn.ModuleList(parts).parameters()), score


def maf_both_ways(dim, layers, hidden):
    parts = autoregressive(dim, layers, hidden)

    def there(x):
        return functools.reduce(lambda x, part: part._call(x), parts, x)

    def back(y):
        return functools.reduce(lambda y, part: part._inverse(y), reversed(parts), y)

    return list(torch.nn.ModuleList(parts).parameters()), there, back


def planar(dim, layers):
    return mapped([transforms.Planar(dim) for _ in range(layers)])


def householder(dim, reflections):
    return mapped([transforms.Householder(dim, reflections)])


def sylvester(dim, layers, reflections):
    return mapped([transforms.Sylvester(dim, reflections) for _ in range(layers)])


def schools():
    """Eight schools, not centred."""
    y, sigma = torch.tensor(Y), torch.tensor(SIGMA)

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(5.0)))
        with pyro.plate("schools", 8):
            raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * raw, sigma), obs=y)

    return model


def regression(dim):
    """A logistic regression on 2,000 rows."""
    rows, y = map(torch.tensor, regression_data(dim))

    def model():
        w = pyro.sample("w", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        with pyro.plate("data", 2000):
            pyro.sample("y", dist.Bernoulli(logits=w @ rows.T), obs=y)

    return model


def regression_data(dim):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, dim)).astype(np.float32)
    return rows, (rng.logistic(size=2000) < rows @ rng.normal(size=dim) / 4).astype(np.float32)


MODELS = {"schools": schools, "regression55": lambda: regression(55), "regression50": lambda: regression(50)}


def iaf_guide(model, dim):
    guide = type(f"AutoIAFNormal{next(COUNT)}", (AutoIAFNormal,), {})  # weights are kept by the names of classes
    return guide(model, hidden_dim=[dim, dim], num_transforms=3)


def guides(name, default=False):
    model = MODELS[name]()

    def svi(elbo):
        guide = iaf_guide(model, 10 if name == "schools" else 55)
        guide()
        return pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo).step, 1

    return {
        "SVI.step": lambda: svi(pyro.infer.Trace_ELBO()),
        "JitTrace_ELBO": lambda: svi(pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True)),
        "fit": lambda: svi(pyro.infer.Trace_ELBO()),
    }


def first_step(kind):
    model = MODELS["regression50"]()

    def step():
        pyro.infer.SVI(model, iaf_guide(model, 50), pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO()).step()

    return step
