"""The notebooks and the demo run from top to bottom, with few steps."""

import os
import pathlib
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "tutorials").glob("*.ipynb"))
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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("FLOWPPL_TUTORIAL_STEPS", "40")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # they would take longer than the few steps
    notebook = nbformat.read(path, as_version=4)
    assert all(cell.get("outputs") for cell in notebook.cells if "plt.subplots" in cell.source), "save it with outputs"
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(ROOT))


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
