"""Execute tutorials in full and store their outputs; `make tutorials` does all of them.

    python tutorials/execute.py [tutorials/01_first_flow_guide.ipynb ...]

Prints, for each, the seconds by the clock and those of the processor. Nothing is stored of a notebook that fails, or
that prints to stderr.
"""

import pathlib
import resource
import sys
import time

import nbformat
from nbclient import NotebookClient

HERE = pathlib.Path(__file__).parent


def execute(path):
    """Execute a notebook and store it with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    begin, used = time.perf_counter(), processor_seconds()
    NotebookClient(notebook, timeout=None, kernel_name="python3", record_timing=False).execute(cwd=str(HERE.parent))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    if noise := [output.text for output in outputs if output.get("name") == "stderr"]:
        raise RuntimeError(f"{path.name} prints to stderr: {noise[0]}")
    notebook.metadata.language_info = {"name": "python"}
    path.write_text(nbformat.writes(notebook, indent=1) + "\n")
    print(f"{path.name:<32}{time.perf_counter() - begin:>6.0f} s{processor_seconds() - used:>6.0f} s", flush=True)


def processor_seconds():
    """The seconds of the processor of all kernels that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


if __name__ == "__main__":
    for path in map(pathlib.Path, sys.argv[1:] or sorted(HERE.glob("[0-9]*.ipynb"))):
        execute(path)
