"""How close one map of one number comes to densities: the table of docs/gallery/maps.md. python benchmarks/maps.py

Each map, from data to noise, is fitted by L-BFGS to the divergence KL(density || map's density) on a grid, from two
random starts; the better one counts.
"""

import math

import torch

import flowppl as fp

X = torch.linspace(-10, 10, 1001, dtype=torch.float64)
STEP = float(X[1] - X[0])
MAPS = {
    "`Affine()`": fp.Affine(),
    "`RationalQuadraticSpline(8)`": fp.RationalQuadraticSpline(8),
    "`CubicSpline(10)`": fp.CubicSpline(10),
    "`LinearSpline(23)`": fp.LinearSpline(23),
    "`Bernstein(22)`": fp.Bernstein(22),
    "`SumOfSquares(2, 10)`": fp.SumOfSquares(2, 10),
    "`LogisticMixture(7)`": fp.LogisticMixture(7),
    "`Gaussianization(8)`": fp.Gaussianization(8),
}


def normal(loc, scale):
    return torch.exp(-0.5 * ((X - loc) / scale) ** 2) / scale


DENSITIES = {
    "two peaks": 0.4 * normal(-1.5, 0.5) + 0.6 * normal(1.5, 0.5),
    "three peaks": 0.3 * normal(-3, 0.4) + 0.4 * normal(0, 0.6) + 0.3 * normal(2.5, 0.3),
    "skew normal": normal(0, 1) * torch.special.ndtr(4 * X),
    "steps": 3.0 * (X.abs() < 1) + (X.abs() < 2),
    "Student, 3 degrees": (1 + X**2 / 3) ** -2,
}


def divergence(univariate, density):
    """The least that L-BFGS finds, in nats."""
    entropy, found = torch.xlogy(density, density).sum() * STEP, []
    for seed in range(2):
        draws = torch.Generator().manual_seed(seed)
        raw = 0.3 * torch.randn(univariate.num_raw, 1, generator=draws, dtype=torch.float64)
        raw.requires_grad_()
        optimizer = torch.optim.LBFGS([raw], max_iter=250, line_search_fn="strong_wolfe", tolerance_change=1e-10)

        def loss(raw=raw, optimizer=optimizer):
            optimizer.zero_grad()
            y, log_slope = univariate.forward(raw, X)
            log_density = log_slope - y * y / 2 - math.log(2 * math.pi) / 2
            value = entropy - (density * log_density).sum() * STEP
            value.backward()
            return value

        optimizer.step(loss)
        found.append(float(loss()))
    return min(found)


if __name__ == "__main__":
    print("| map | raw numbers |", " | ".join(DENSITIES), "|")
    print("|---" * (2 + len(DENSITIES)) + "|")
    for name, univariate in MAPS.items():
        nats = [f"{divergence(univariate, density / (density.sum() * STEP)):.4f}" for density in DENSITIES.values()]
        print(f"| {name} | {univariate.num_raw} |", " | ".join(nats), "|", flush=True)
