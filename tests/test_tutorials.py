"""The notebooks and the demo run from top to bottom, with few steps; the longest under `make stress`."""

import multiprocessing
import os
import pathlib
import subprocess
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

# Each notebook has a process of its own, from one that has imported what takes five seconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["flowppl.numpyro", "flowppl.pyro", "arviz", "matplotlib.pyplot", "sklearn.datasets"])

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
# Twelve seconds to a minute each; what they show is held by tests of its own.
LONG = ("01", "02", "03", "04", "05", "06", "07", "08", "09", "10", "11", "13", "14", "15", "17")
SECTIONS = ("*You should know*", "*Run time*", "## What to take away", "## Exercises", "olution", "## References")
# What the site hides: plumbing, code that only draws, and solutions until they are asked for.
TAGS = {"remove-cell", "hide-input", "hide-cell"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_a_lesson(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    missing = [section for section in SECTIONS if section not in text and section not in str(notebook.cells)]
    assert not missing, f"{path.name} lacks {missing}"
    for cell in notebook.cells:
        assert set(cell.metadata.get("tags", [])) <= TAGS
        assert all(output.get("name") != "stderr" for output in cell.get("outputs", [])), "it warns"
        if "filterwarnings" in cell.source or "environ.get" in cell.source:
            assert "remove-cell" in cell.metadata.get("tags", []), "plumbing is hidden"


def run_cells(cells):
    os.chdir(ROOT)
    shell = InteractiveShell.instance()
    for cell in cells:
        try:
            shell.run_cell(cell).raise_error()
        except Exception:
            raise RuntimeError(f"{cell}\n\n{traceback.format_exc()}") from None


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.stress if path.stem[:2] in LONG else ()) for path in NOTEBOOKS],
    ids=[path.stem for path in NOTEBOOKS],
)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("FLOWPPL_TUTORIAL_STEPS", "40")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = nbformat.read(path, as_version=4)
    assert all(cell.get("outputs") for cell in notebook.cells if "plt.subplots" in cell.source), "save it with outputs"
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    with ProcessPoolExecutor(1, FORKS) as pool:
        pool.submit(run_cells, cells).result()


@pytest.mark.stress  # and `make demo`, which the workflow runs
def test_demo_runs(tmp_path):
    figure = tmp_path / "demo.png"
    command = [sys.executable, "tutorials/demo.py", "--seconds", "1", "--draws", "500", "--figure", str(figure)]
    environment = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stderr == ""
    for way in ("NUTS", "mean field, NumPyro", "fit, NumPyro", "fit, Pyro"):
        assert result.stdout.count(f" {way} ") == 2, result.stdout
    assert figure.stat().st_size > 10_000
