"""Draw what each flow does to a grid and to a standard normal: python docs/gallery/draw.py, of some: draw.py planar nsf

The weights are drawn at random, large enough that the bend can be seen. The same seed gives the same pictures.
"""

import io
import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import flowppl as fp
from flowppl._arrays import tree

HERE = pathlib.Path(__file__).parent
FLOWS = {
    "planar": (fp.planar(2, num_flows=4), 1.5, 3),
    "radial": (fp.radial(2, num_flows=6), 2.0, 4),
    "orthogonal_sylvester": (fp.orthogonal_sylvester(2, num_flows=4), 1.6, 3),
    "householder_sylvester": (fp.householder_sylvester(2, num_flows=4), 1.6, 5),
    "triangular_sylvester": (fp.triangular_sylvester(2, num_flows=4), 1.6, 2),
    "householder": (fp.householder(2, num_flows=3), 1.0, 1),
    "nice": (fp.nice(2, num_flows=4), 0.8, 2),
    "realnvp": (fp.realnvp(2, num_flows=4), 0.75, 4),
    "glow": (fp.glow(2, num_flows=4), 0.6, 4),
    "nsf": (fp.nsf(2, num_flows=4), 0.55, 3),
    "flowpp": (fp.flowpp(2, num_flows=2), 0.6, 1),
    "iaf": (fp.iaf(2, num_flows=3), 1.0, 1),
    "maf": (fp.maf(2, num_flows=3), 1.0, 1),
    "nsf_autoregressive": (fp.nsf_autoregressive(2, num_flows=3), 0.5, 3),
    "naf": (fp.naf(2, num_flows=2), 0.8, 1),
    "bnaf": (fp.bnaf(2, num_flows=2), 1.2, 1),
    "cnf": (fp.cnf(2, lipschitz=120.0, num_steps=80), 3.0, 3),
    "residual_flow": (
        fp.Invert(fp.residual_flow(2, 12, hidden_dims=(4, 4), lipschitz=0.97)),
        1.5,
        4,
    ),
}
IMAGE = (1, 32, 32)
IMAGE_FLOWS = {
    "nice_image": (fp.nice_image(IMAGE), (0.3, 0.6)),
    "realnvp_image": (fp.realnvp_image(IMAGE, hidden_channels=8), (0.1, 0.15)),
    "glow_image": (fp.glow_image(IMAGE, hidden_channels=8), (0.03, 0.15)),
    "flowpp_image": (fp.flowpp_image(IMAGE, hidden_channels=8), (0.03, 0.1)),
    "tarflow_image": (fp.tarflow_image(IMAGE, 2, hidden_dim=8), (0.1, 0.3)),
}
MAPS = [
    (fp.Affine(), 0.5, 1),
    (fp.RationalQuadraticSpline(5, bound=3.0), 0.6, 3),
    (fp.CubicSpline(5, bound=3.0), 0.6, 3),
    (fp.LinearSpline(5, bound=3.0), 0.6, 2),
    (fp.CircularSpline(5, bound=3.0), 0.6, 3),
    (fp.Bernstein(8, bound=3.0), 1.5, 2),
    (fp.SumOfSquares(2, 2, bound=3.0), 0.7, 2),
    (fp.LogisticMixture(3), 1.5, 4),
]
BLUE, GREY = "#1f6f8b", "#8a8f98"


def weights(bijection, scale, seed):
    """Random weights: those of matrices are divided by the root of their number of inputs."""
    rng = np.random.default_rng(seed)

    def entry(parameter):
        fan_in = parameter.shape[-2] if len(parameter.shape) > 1 else 1
        return scale * rng.normal(size=parameter.shape) / max(fan_in, 1) ** 0.5

    return tree.merge(
        tree.map_tree(entry, bijection.parameters()), bijection.constants()
    )


def draw(name):
    bijection, scale, seed = FLOWS[name]
    params = weights(bijection, scale, seed)
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.5), layout="constrained")
    ticks, fine = np.linspace(-2.4, 2.4, 13), np.linspace(-2.4, 2.4, 200)
    lines = [np.stack([np.full_like(fine, t), fine], -1) for t in ticks]
    lines += [line[:, ::-1] for line in lines]
    noise = np.random.default_rng(0).normal(size=(4000, 2))
    everything = bijection.forward(params, noise)[0]
    for line in lines:
        mapped = bijection.forward(params, line)[0]
        axes[0].plot(*mapped.T, color=BLUE, linewidth=0.9)
    axes[1].scatter(*everything.T, s=2, color=BLUE, alpha=0.35, linewidths=0)
    low, high = np.quantile(everything, [0.002, 0.998], axis=0)
    pad = 0.1 * (high - low)
    for axis, title in zip(axes, ["a grid", "draws of a standard normal"], strict=True):
        axis.set_title(title, fontsize=10, color="#30343a")
        axis.set_xlim(low[0] - pad[0], high[0] + pad[0])
        axis.set_ylim(low[1] - pad[1], high[1] + pad[1])
        axis.tick_params(colors=GREY, labelsize=8)
        for spine in axis.spines.values():
            spine.set_color("#d0d3d8")
    save(figure, name)


def draw_image(name):
    bijection, scales = IMAGE_FLOWS[name]
    grid = np.full(IMAGE, -0.8)
    grid[:, 3::7] = grid[:, :, 3::7] = 1.0
    mapped = [
        bijection.forward(weights(bijection, scale, 1), grid)[0] for scale in scales
    ]
    figure, axes = plt.subplots(1, 3, figsize=(7.2, 2.7), layout="constrained")
    titles = [
        "a grid, in the place of noise",
        "its image, weights small",
        "larger weights",
    ]
    for axis, title, image in zip(axes, titles, [grid, *mapped], strict=True):
        axis.set_title(title, fontsize=10, color="#30343a")
        axis.imshow(image[0], cmap="gray")
        axis.axis("off")
    save(figure, name)


def draw_maps():
    figure, axes = plt.subplots(2, 4, figsize=(7.2, 3.6), layout="constrained")
    x = np.linspace(-4, 4, 2001)
    for axis, (univariate, scale, seed) in zip(axes.flat, MAPS, strict=True):
        raw = np.random.default_rng(seed).normal(size=(univariate.num_raw, 1))
        y, log_slope = univariate.forward(scale * raw, x)
        slope = np.exp(log_slope)
        low, height = y.min(), np.ptp(y)
        shade = low + 0.4 * height * slope / slope.max()
        axis.fill_between(x, low, shade, color=GREY, alpha=0.3, linewidth=0)
        axis.plot(x, y, color=BLUE, linewidth=1.3)
        axis.set_title(type(univariate).__name__, fontsize=8, color="#30343a")
        axis.set_xlim(-4, 4)
        axis.set_ylim(low, low + height)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_color("#d0d3d8")
    save(figure, "maps")


def save(figure, name):
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=140, facecolor="white")
    Image.open(drawn).convert("RGB").quantize(48).save(
        HERE / f"{name}.png", optimize=True
    )  # a third of the size
    plt.close(figure)


if __name__ == "__main__":
    for name in sys.argv[1:] or [*FLOWS, *IMAGE_FLOWS, "maps"]:
        if name == "maps":
            draw_maps()
        else:
            draw(name) if name in FLOWS else draw_image(name)
