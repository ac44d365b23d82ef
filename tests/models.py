"""Random small models of known evidence, in both languages: all supports, scales from 1e-12 to 1e12, few data."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import torch
from scipy import stats
from scipy.special import logsumexp

# The arguments of a prior of scale c in both hosts, and the same of SciPy.
PRIORS = {
    "Normal": (lambda c: (0.5 * c, c), lambda c: stats.norm(0.5 * c, c)),
    "HalfNormal": (lambda c: (c,), lambda c: stats.halfnorm(scale=c)),
    "Gamma": (lambda c: (2.0, 1 / c), lambda c: stats.gamma(2.0, scale=c)),
    "LogNormal": (lambda c: (math.log(c), 1.0), lambda c: stats.lognorm(1.0, scale=c)),
    "Exponential": (lambda c: (1 / c,), lambda c: stats.expon(scale=c)),
    "InverseGamma": (lambda c: (3.0, c), lambda c: stats.invgamma(3.0, scale=c)),
    "Cauchy": (lambda c: (0.0, c), lambda c: stats.cauchy(0.0, c)),
    "HalfCauchy": (lambda c: (c,), lambda c: stats.halfcauchy(scale=c)),
    "StudentT": (lambda c: (2.0, 0.0, c), lambda c: stats.t(2.0, 0.0, c)),
    "Laplace": (lambda c: (0.0, c), lambda c: stats.laplace(0.0, c)),
    "Gumbel": (lambda c: (0.0, c), lambda c: stats.gumbel_r(0.0, c)),
    "Uniform": (lambda c: (-c, 2 * c), lambda c: stats.uniform(-c, 3 * c)),
    "Beta": (lambda c: (2.0, 3.0), lambda c: stats.beta(2.0, 3.0)),
}


@dataclasses.dataclass
class Block:
    """A latent, or several, independent of all others, with data (rows are data, columns members of a plate)."""

    kind: str
    scale: float
    noise: float
    data: np.ndarray
    inputs: np.ndarray | None = None

    def log_evidence(self):
        """The log density of the data, by quadrature or in closed form."""
        if not len(self.data):
            return 0.0
        if self.kind == "regression":
            covariance = self.noise**2 * np.eye(len(self.data)) + self.scale**2 * self.inputs @ self.inputs.T
            normal = stats.multivariate_normal(np.zeros(len(covariance)), covariance, allow_singular=False)
            return float(normal.logpdf(self.data[:, 0]))
        if self.kind == "hierarchy":
            return self._integrated(stats.halfnorm(scale=self.scale), self._of_spread)
        prior = PRIORS[self.kind][1](self.scale)
        return sum(self._integrated(prior, lambda z, y=y: self._of_mean(z, y), y) for y in self.data.T)

    def _of_mean(self, z, y):
        return stats.norm(z, self.noise).logpdf(y[:, None]).sum(0)

    def _of_spread(self, z):
        return stats.norm(0.0, np.hypot(z, self.noise)).logpdf(self.data.reshape(-1, 1)).sum(0)

    def _integrated(self, prior, log_likelihood, y=()):
        """Trapezia on the quantiles of the prior, around the data and near the ends of the support."""
        low, high = prior.support()
        steps = self.scale * np.geomspace(1e-16, 1e12, 8001)
        parts = [prior.ppf(np.linspace(1e-9, 1 - 1e-9, 20_001)), steps, -steps]
        parts += [end + sign * steps for end in (low, high) if math.isfinite(end) for sign in (-1, 1)]
        if len(y):
            parts.append(np.mean(y) + self.noise * np.linspace(-15, 15, 8001))
        z = np.unique(np.concatenate(parts))
        z = z[(z > low) & (z < high)]
        with np.errstate(over="ignore"):
            log_joint = prior.logpdf(z) + log_likelihood(z)
        widths = np.log(np.diff(z))
        return float(logsumexp(np.logaddexp(log_joint[1:], log_joint[:-1]) + widths - math.log(2)))


def random_blocks(rng):
    """One to three blocks, the evidence of which is their product."""
    return [random_block(rng) for _ in range(rng.integers(1, 4))]


def random_block(rng):
    kind = rng.choice([*PRIORS, "regression", "hierarchy"])
    scale = 1.0 if kind == "Beta" else 10.0 ** rng.uniform(-12, 12)
    noise = scale * 10.0 ** rng.uniform(-3, 1)
    num, members = rng.choice([0, 1, 5]), rng.choice([1, 1, 3])
    is_equal = rng.integers(4) == 0
    if kind == "regression":
        inputs = rng.normal(size=(num, rng.integers(1, 4)))
        mean, members = (inputs @ rng.normal(0, scale, inputs.shape[1]))[:, None], 1
    elif kind == "hierarchy":
        inputs, mean = None, rng.normal(0, abs(rng.normal(0, scale)), (1, members))
        num = min(num, 1)
    else:
        inputs, mean = None, PRIORS[kind][1](scale).rvs((1, members), random_state=rng)
    data = np.broadcast_to(mean, (num, members)) + rng.normal(0, noise, (num, members))
    if is_equal and num:
        data = np.full_like(data, data[0, 0])
    return Block(str(kind), scale, noise, data, inputs)


def program(blocks, language, single=False):
    """The model of some blocks; in single precision in torch, if so told."""
    if language == "pyro":
        host, dist = pyro, pdist
        dtype = torch.float32 if single else torch.float64

        def array(values):
            return torch.tensor(values, dtype=dtype)
    else:
        host, dist, array = numpyro, ndist, jnp.asarray

    def latent(name, kind, *args):
        return host.sample(name, getattr(dist, kind)(*map(array, args)))

    def model():
        for i, block in enumerate(blocks):
            num, members = block.data.shape
            if block.kind == "regression":
                width = block.inputs.shape[1]
                normal = dist.Normal(array(np.zeros(width)), array(np.full(width, block.scale))).to_event(1)
                z = (host.sample(f"z{i}", normal) * array(block.inputs)).sum(-1)[..., None]
            else:
                of_all = block.kind == "hierarchy"
                spread = latent(f"tau{i}", "HalfNormal", block.scale) if of_all else None
                with host.plate(f"members{i}", members, dim=-1):
                    prior = dist.Normal(array(0.0), spread) if of_all else None
                    args = () if of_all else PRIORS[block.kind][0](block.scale)
                    z = host.sample(f"z{i}", prior) if of_all else latent(f"z{i}", block.kind, *args)
            if num:
                with host.plate(f"members{i}_", members, dim=-1), host.plate(f"data{i}", num, dim=-2):
                    host.sample(f"y{i}", dist.Normal(z, array(block.noise)), obs=array(block.data))

    return model
