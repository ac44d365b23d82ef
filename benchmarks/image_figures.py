"""A picture of what a flow of images can do: samples, interpolations, inpainting, an attribute.

    python benchmarks/image_flows.py mnist --data mnist.npz --backend pyro --models glow --save FOLDER --json FILE
    python benchmarks/image_figures.py mnist --data mnist.npz --flow FOLDER/glow-pyro-0.safetensors --out FILE

From top to bottom: samples at three temperatures; interpolations between two test images, along the line between their
noises; test images of which a part is missing, one kind of part in each column, and what `inpaint` makes of them by the
highest density and by Langevin's steps; and test images moved along an attribute, which is computed from the training
images: the digits that lean to the right less those that lean to the left, or the faces whose lower half is bright
less those where it is dark.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from image_flows import data

import flowppl as fp
from flowppl.pyro import attribute_direction, edit, inpaint, interpolate

COLUMNS, TEMPERATURES = 10, (0.5, 0.7, 1.0)


def masks(height, width, rng):
    """What is observed, of the ten kinds of Dinh et al. (2014): half the image in eight ways, and single pixels."""
    row, column = np.arange(height)[:, None] + np.zeros(width), np.arange(width) + np.zeros((height, 1))
    parts = {
        "top": row < height / 2,
        "bottom": row >= height / 2,
        "odd": (row + column) % 2 == 1,
        "even": (row + column) % 2 == 0,
        "left": column < width / 2,
        "right": column >= width / 2,
        "middle\nrows": np.abs(row - (height - 1) / 2) < height / 4,
        "middle\ncolumns": np.abs(column - (width - 1) / 2) < width / 4,
        "75%": rng.uniform(size=(height, width)) < 0.75,
        "90%": rng.uniform(size=(height, width)) < 0.9,
    }
    return {name: ~missing for name, missing in parts.items()}


def attribute(experiment, images):
    """For each image whether it has the attribute."""
    images = images[:, 0].astype(float)
    height, width = images.shape[1:]
    if experiment == "frey":
        brightness = images[:, height // 2 :].mean((1, 2)) / images.mean((1, 2))
        return brightness > np.median(brightness)
    row, column = np.arange(height)[:, None], np.arange(width)
    mass = images.sum((1, 2))
    means = [(images * axis).sum((1, 2)) / mass for axis in (row, column)]
    return (images * (row - means[0][:, None, None]) * (column - means[1][:, None, None])).sum((1, 2)) < 0


def rows_of(flow, experiment, parts, num_steps, seed):
    """Rows of images in the unit interval, by their names."""
    pyro.set_rng_seed(seed)
    rng = np.random.default_rng(seed)
    rows = {f"T = {temperature}": flow.sample((COLUMNS,), temperature) for temperature in TEMPERATURES}
    train, test = (torch.tensor((part + rng.uniform(size=part.shape)) / 256, dtype=torch.float32) for part in parts)
    for i in range(3):
        rows[f"interpolate {i + 1}"] = interpolate(flow, test[2 * i], test[2 * i + 1], COLUMNS)
    observed = torch.tensor(np.stack(list(masks(*test.shape[-2:], rng).values())))[:, None]
    chosen = test[10 : 10 + COLUMNS]
    rows["missing"] = torch.where(observed, chosen, 0.5)
    rows["by density"] = inpaint(flow, chosen, observed, num_steps=num_steps)
    rows["by Langevin"] = inpaint(flow, chosen, observed, "langevin", num_steps=num_steps)
    direction = attribute_direction(flow, train[:1000], attribute(experiment, parts[0][:1000]))
    for i in range(2):
        amounts = torch.linspace(-1.5, 1.5, COLUMNS)
        rows[f"attribute {i + 1}"] = torch.stack([edit(flow, test[30 + i], direction, float(a)) for a in amounts])
    return rows, list(masks(*test.shape[-2:], rng))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["mnist", "frey"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--flow", type=Path, required=True, help="a `Dequantized` of either language, by `fp.save`")
    parser.add_argument("--num-steps", type=int, default=200, help="of inpainting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    (train, _, test), _ = data(args.experiment, args.data)
    flow = fp.load(args.flow, backend="pyro").flow
    with torch.no_grad():
        rows, kinds = rows_of(flow, args.experiment, (train, test), args.num_steps, args.seed)
    height, width = train.shape[-2:]
    figsize = (COLUMNS * 0.9 + 1, len(rows) * 0.9 * height / width + 0.4)
    figure, axes = plt.subplots(len(rows), COLUMNS, figsize=figsize, layout="constrained")
    for (name, images), line in zip(rows.items(), axes, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for image, ax in zip(images, line, strict=True):
            ax.imshow(image[0], cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
    for kind, ax in zip(kinds, axes[list(rows).index("missing")], strict=True):
        ax.set_title(kind, fontsize=8)
    figure.savefig(args.out, dpi=110)
    print(f"{args.out}: {', '.join(rows)}")


if __name__ == "__main__":
    fp.set_progress(False)
    main()
