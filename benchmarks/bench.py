"""flowppl beside other libraries: seconds, memory, compilation, and how they grow.

    python benchmarks/bench.py [--quick] [--only compare growth memory first_steps draws compiled]
                               [--workload MAF] [--language torch]
                               [--clock cpu] [--device cuda] [--write benchmarks/README.md]

Prints the tables as Markdown; ``--write`` puts each between its two markers in that file, and the figure beside it. All
libraries of a workload take turns within one process, on one thread; ``--clock cpu`` counts the seconds of the process,
for a machine that others use too. A library that is not installed leaves its cells empty; ``make bench`` installs them
all. ``--workload`` and ``--language`` measure a part of the first table, as when one flow is to become faster.
"""

import argparse
import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
import traceback
import warnings

ROOT = pathlib.Path(__file__).parents[1]
PARTS = ("compare", "growth", "memory", "first_steps", "draws", "compiled")
PACKAGES = ("torch", "pyro-ppl", "zuko", "nflows", "normflows", "jax", "numpyro", "flowjax", "distrax")


def arguments(given):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer workloads, sizes and rounds")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="all, or on a GPU the first three")
    parser.add_argument("--workload", default="", help="only those with this in their titles")
    parser.add_argument("--language", choices=["torch", "jax"], nargs="+", default=["torch", "jax"])
    parser.add_argument("--rounds", type=int, help="9, or 5 with --quick")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--write", type=pathlib.Path)
    return parser.parse_args(given)


def prepare(device):
    """One thread, no cache of compiled programs, and the device; must come before jax is imported."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["JAX_PLATFORMS"] = device
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if device == "cpu":
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    else:
        import torch

        torch.set_default_device(device)
    warnings.filterwarnings("ignore")  # of the peers, about their own future


def commit():
    """The newest of the source, and a plus if it has changed since."""
    source = [["git", "rev-parse", "--short", "HEAD"], ["git", "status", "--porcelain", "flowppl"]]
    name, changes = (subprocess.run(each, cwd=ROOT, capture_output=True, text=True).stdout.strip() for each in source)
    return f"{name or 'unknown'}{'+' if changes else ''}"


def machine(options, plan, source, load):
    """Where, when and how; ``source`` and ``load`` are those at the start."""
    names = []
    if pathlib.Path("/proc/cpuinfo").exists():
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    where = f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    if options.device == "cuda":
        import torch

        where = f"{torch.cuda.get_device_name()}, {where}"
    versions = [f"{name} {version(name)}" for name in PACKAGES if version(name)]
    clock = {"wall": "wall time", "cpu": "seconds of the process"}[plan.clock]
    command = " ".join(["python benchmarks/bench.py", *sys.argv[1:]])
    yield f"{datetime.date.today()}, commit {source}: `{command}`."
    yield f"{where}; load {load[0]:.1f} at the start and {os.getloadavg()[0]:.1f} at the end."
    yield f"float32, one thread, {clock}, {plan.rounds} rounds."
    yield f"Python {platform.python_version()}, {', '.join(versions)}."


def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def lines_of(part, plan, problems, folder):
    """The section of a part; the figure goes into the folder, if there is one."""
    from suite import costs, growth, tables

    if part == "growth":
        curves = growth.measure(plan, problems)
        if folder:
            growth.figure(curves, folder / "figures" / "growth.png")
        return growth.tables(curves)
    return (tables.compare if part == "compare" else getattr(costs, part))(plan, problems)


def write(path, part, text):
    """Put the text between the markers of a part in a file."""
    begin, end = (f"<!-- bench {part}: {word} -->" for word in ("begin", "end"))
    before, rest = path.read_text().split(begin)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def main(given=None):
    options = arguments(given)
    prepare(options.device)
    from suite.turns import Plan

    rounds, slot = (5, 0.05) if options.quick else (9, 0.15)
    plan = Plan(
        options.rounds or rounds,
        slot,
        options.clock,
        options.quick,
        options.workload,
        tuple(options.language),
    )
    source, failed = commit(), []
    for part in options.only or (PARTS if options.device == "cpu" else PARTS[:3]):
        load, problems = os.getloadavg(), set()
        try:
            lines = list(lines_of(part, plan, problems, options.write and options.write.parent))
        except Exception:  # the other parts still count
            traceback.print_exc()
            failed.append(part)
            continue
        told = [f"Empty cells: {'; '.join(sorted(problems))}.", ""] if problems else []
        text = "\n".join([*lines, "", *told, *machine(options, plan, source, load)])
        print(f"{text}\n", flush=True)
        if options.write:
            write(options.write, part, text)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
