"""Draw the figures of the front page from the tables of the benchmarks: python docs/figures/draw.py"""

import pathlib
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

HERE = pathlib.Path(__file__).parent
TEXT = (HERE.parents[1] / "benchmarks" / "README.md").read_text()
BLUE, ORANGE, GREY, INK = "#1f6f8b", "#d1722b", "#8a8f98", "#30343a"
SHORT = {
    "eight_schools_noncentered": "eight schools",
    "low_dim_gauss_mix": "mixture",
    "kidscore_interaction": "test scores",
}
KNOWN = 0.01  # nats: how well the evidence is known in the first table


def table(after):
    """The rows of the first table below a text, without its head."""
    lines = TEXT[TEXT.index(after) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" `") for cell in line.strip("|").split("|")])
    return rows


def label_rows(axis, rows):
    axis.set_yticks(
        range(len(rows)), [SHORT.get(row[0], row[0].split("_")[0]) for row in rows]
    )
    axis.invert_yaxis()
    axis.grid(axis="x", color="#e6e8ea")


def panel(name, title, height=2.9):
    figure, axis = plt.subplots(figsize=(2.7, height), layout="constrained")
    axis.set_title(title, fontsize=9, color=INK, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#d0d3d8")
    axis.set_axisbelow(True)
    axis.tick_params(colors=INK, labelsize=8, length=0)
    return figure, axis, HERE / f"{name}.svg"


def legend(figure, columns):
    figure.legend(
        fontsize=9,
        frameon=False,
        labelcolor=INK,
        loc="outside lower center",
        ncols=columns,
        columnspacing=0.5,
        handletextpad=0.1,
    )


def save(figure, path):
    # The same drawing makes the same file.
    figure.savefig(path, metadata={"Date": None})
    path.write_text(re.sub(r"[ \t]+$", "", path.read_text(), flags=re.MULTILINE))
    plt.close(figure)


def distances():
    """KL(guide || posterior) of the eleven posteriors."""
    rows = table("The distance of guides from eleven posteriors")

    def nats(cell):
        return float(re.search(r"\((-?[\d.]+)\)", cell)[1])

    kinds = {
        "mean field": (3, GREY, "s"),
        "AutoIAFNormal": (5, ORANGE, "^"),
        "fit": (1, BLUE, "o"),
    }
    figure, axis, path = panel("distances", "Nats from the posterior")
    for label, (column, colour, marker) in kinds.items():
        values = np.maximum([nats(row[column]) for row in rows], KNOWN)
        axis.plot(
            values, range(len(rows)), marker, color=colour, label=label, markersize=4
        )
    label_rows(axis, rows)
    axis.set(xscale="log", xlim=(KNOWN / 1.5, None))
    axis.set_xticks([0.01, 0.1, 1, 10, 100], ["≤ 0.01", "0.1", "1", "10", "100"])
    axis.minorticks_off()
    legend(figure, 3)
    save(figure, path)


def times():
    """Seconds of fit and of NUTS."""
    rows = table("Seconds beside those of NUTS")
    figure, axis, path = panel("seconds", "Seconds of a processor")
    for i, row in enumerate(rows):
        mine, nuts = float(row[1]), float(row[2])
        axis.plot([mine, nuts], [i, i], color="#d0d3d8", linewidth=1.5, zorder=1)
        axis.plot(
            mine,
            i,
            "o",
            color=BLUE,
            markersize=4,
            label="fit" if i == 0 else None,
        )
        axis.plot(
            nuts, i, "D", color=GREY, markersize=3.5, label="NUTS" if i == 0 else None
        )
    label_rows(axis, rows)
    axis.set(xscale="log")
    axis.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axis.minorticks_off()
    legend(figure, 2)
    save(figure, path)


def autoencoders():
    """log p(x) of test images by four autoencoders, three seeds in each language."""
    rows = table("log p(x) of the 1,000 test images in nats")
    figure, axis, path = panel("autoencoders", "log p(x) of new images, nats")
    names = ["plain", "flow\nposterior", "flow\nprior", "both"]
    for row, (colour, marker, shift) in zip(
        rows, [(ORANGE, "^", -0.12), (BLUE, "o", 0.12)], strict=True
    ):
        for i, cell in enumerate(row[1:]):
            values = [float(value) for value in cell.split(",")]
            axis.plot(
                [i + shift] * len(values),
                values,
                marker,
                color=colour,
                label=row[0] if i == 0 else None,
                markersize=4,
            )
    axis.set_xticks(range(4), names)
    axis.grid(axis="y", color="#e6e8ea")
    legend(figure, 2)
    save(figure, path)


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "flowppl"
    distances()
    times()
    autoencoders()
