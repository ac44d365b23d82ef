"""The suite of benchmarks, at tiny sizes: that it runs, and the form of its tables."""

import dataclasses
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"
SIZES = {"coupling": {"dim": 4, "layers": 1, "hidden": (3, 3)}, "planar": {"dim": 3, "layers": 2}}


@pytest.fixture
def suite(monkeypatch):
    """The folder of the benchmarks where Python looks for modules."""
    monkeypatch.syspath_prepend(FOLDER)


@pytest.mark.filterwarnings("ignore")  # of the peers, about their own future
@pytest.mark.parametrize("function", ["planar", pytest.param("coupling", marks=pytest.mark.stress)])
def test_a_row_of_ratios_for_each_language(suite, function):
    from suite import tables
    from suite.turns import Plan
    from suite.workloads import COLUMNS, Workload

    problems, workload = set(), Workload(function, function, SIZES[function], batch=5)
    rows = list(tables.trainings([workload], Plan(rounds=1, slot=0.0), problems))
    assert [row[:2] for row in rows] == [[function, "torch"], [function, "jax"]]
    for row in rows:
        cells = dict(zip(COLUMNS, row[2:], strict=True))
        assert re.fullmatch(r"[\d.e-]+ ms", cells.pop("flowppl"))
        assert all(not cell or re.fullmatch(r"[\d.]+", cell) for cell in cells.values())
    assert rows[0][2 + COLUMNS.index("Pyro, NumPyro")]
    assert all(problem.endswith(" is not installed") for problem in problems), problems
    assert [line.count("|") for line in tables.markdown(["", "", *COLUMNS], rows)] == [len(COLUMNS) + 3] * 4


def test_a_score_is_a_number_for_each_event(suite):
    from suite.workloads import LANGUAGES, TRAININGS, offered

    workload = dataclasses.replace(TRAININGS[0], sizes=SIZES["coupling"], batch=5)
    x = LANGUAGES[0].steps.array(workload.data())
    for function in offered(LANGUAGES[0], "coupling", set()).values():
        weights, score = function(**workload.sizes)
        assert score(x).shape == (5,)
        assert all(weight.requires_grad for weight in weights)


def test_what_is_measured_stands_between_two_markers(suite, tmp_path):
    import bench

    page = tmp_path / "README.md"
    begin, end = "<!-- bench draws: begin -->", "<!-- bench draws: end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for text in ("one", "two"):
        bench.write(page, "draws", text)
    assert page.read_text() == f"before\n{begin}\n\ntwo\n\n{end}\nafter\n"
    markers = re.findall("<!-- bench (.*) -->", (FOLDER / "README.md").read_text())
    assert markers == [f"{part}: {word}" for part in bench.PARTS for word in ("begin", "end")]


def test_a_ratio_leaves_the_ends_out(suite):
    from suite import turns

    assert turns.ratio([2, 4, 6, 8, 100], [2] * 5) == (3, 2, 4)
    assert turns.ratio_cell([3.0], [2.0]) == "1.50"
    assert turns.ratio_cell([3.0, 2.0, 2.5], [2.0] * 3) == "1.25 (1.00-1.50)"
