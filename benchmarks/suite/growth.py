"""Growth with the dimension, the batch and the depth, and the figure of it."""

import itertools
import math
import statistics

from suite.tables import built, markdown, measured
from suite.workloads import GROWTH, languages, offered

TITLES = {
    "dimension": ("Dimension (batches of 512, 8 layers)", lambda workload: workload.sizes["dim"]),
    "batch": ("Batch (D = 16, 8 layers)", lambda workload: workload.batch),
    "depth": ("Layers (D = 16, batches of 512)", lambda workload: workload.sizes["layers"]),
}
COLORS = {"flowppl": "C3", "Pyro": "C0", "zuko": "C1", "flowjax": "C2", "distrax": "C4"}


def measure(plan, problems):
    """By what grows, by library and language, a list of sizes, medians of seconds, and seconds to the first step."""
    curves = {}
    for name, workloads in GROWTH.items():
        curves[name] = {}
        size = TITLES[name][1]
        for workload in workloads[:: 2 if plan.quick else 1]:
            for language in languages(plan):
                functions, first = offered(language, workload.function, problems), {}
                for left_out in ("nflows", "normflows", *(("zuko", "flowjax") if plan.quick else ())):
                    functions.pop(left_out, None)

                def make(function, workload=workload, steps=language.steps, first=first):
                    step = steps.training(*function(**workload.sizes), steps.array(workload.data()))
                    first[id(function)] = plan.seconds(step)
                    return step

                label = f"{name} {size(workload):,}"
                steps = built(functions, make, problems, label, language)
                for column, times in measured(label, language, steps, plan).items():
                    seconds = statistics.median(times)
                    point = size(workload), seconds, first[id(functions[column])] - seconds
                    curves[name].setdefault((column.split(",")[0], language.name), []).append(point)
    return curves


def exponents(points):
    """The slopes between neighbours, on logarithmic axes."""
    for (size, seconds, _), (larger, more, _) in itertools.pairwise(points):
        yield math.log(more / seconds) / math.log(larger / size)


def tables(curves):
    yield from ["### Growth", "", GROWS, "", "![Seconds of a step against size](figures/growth.png)"]
    for name, (title, _) in TITLES.items():
        sizes = [size for size, *_ in next(iter(curves[name].values()))]
        rows = []
        for (library, language), points in curves[name].items():
            known = {size: f"{1e3 * seconds:.3g}" for size, seconds, _ in points}
            steepest = max(exponents(points), default=math.nan)
            rows.append([f"{library}, {language}", *(known.get(size, "") for size in sizes), f"{steepest:.2f}"])
        yield from ["", *markdown([f"{title}, ms", *(f"{size:,}" for size in sizes), "steepest"], rows)]
    rows = [
        [library, *(f"{compilation:.2g}" for *_, compilation in points)]
        for (library, language), points in curves["depth"].items()
        if language == "jax"
    ]
    if rows:
        sizes = [f"layers: {size}" for size, *_ in next(iter(curves["depth"].values()))]
        yield from ["", COMPILES, "", *markdown(["", *sizes], rows)]


def figure(curves, path):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    drawing, axes = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    for panel, (name, (title, _)) in zip(axes, TITLES.items(), strict=True):
        for (library, language), points in curves[name].items():
            sizes, seconds, _ = zip(*points, strict=True)
            style = {"color": COLORS[library], "linestyle": "-" if language == "torch" else "--", "marker": "o"}
            panel.loglog(sizes, [1e3 * each for each in seconds], label=f"{library}, {language}", markersize=3, **style)
        labels = [f"{size // 1024}k" if size >= 1024 else size for size in sizes]
        panel.set(xlabel=title, xticks=sizes, xticklabels=labels)
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("a training step, ms")
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    path.parent.mkdir(exist_ok=True)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


GROWS = """\
A training step of affine couplings with networks of two layers (64 wide; 128 where the depth grows), in milliseconds.
"Steepest" is the largest exponent of the growth between two neighbours: 1 is proportional."""
COMPILES = "Seconds of tracing and compiling that step in JAX (D = 16, batches of 512):"
