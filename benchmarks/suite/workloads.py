"""The workloads and their sizes, and the libraries that take part."""

import dataclasses
import importlib
import importlib.util
import sys

import numpy as np


@dataclasses.dataclass(frozen=True)
class Language:
    """A language's file of steps, and its libraries by the column in which they stand; the first is flowppl."""

    name: str
    columns: dict

    @property
    def steps(self):
        return importlib.import_module(f"suite.{self.name}_steps")


LANGUAGES = (
    Language(
        "torch",
        {
            "flowppl": "flowppl_pyro",
            "Pyro, NumPyro": "pyro",
            "zuko": "zuko",
            "nflows": "nflows",
            "normflows": "normflows",
            "by hand": "hand_torch",
        },
    ),
    Language(
        "jax",
        {
            "flowppl": "flowppl_numpyro",
            "Pyro, NumPyro": "numpyro",
            "flowjax": "flowjax",
            "distrax": "distrax",
            "by hand": "hand_jax",
        },
    ),
)
COLUMNS = tuple(dict.fromkeys(column for language in LANGUAGES for column in language.columns))


@dataclasses.dataclass(frozen=True)
class Workload:
    """A function of the peers' files, its arguments, the events of a batch; ``quick``: in the short run, too."""

    title: str
    function: str
    sizes: dict
    batch: int = 512
    quick: bool = False

    def data(self):
        shape = (self.batch, self.sizes["dim"])
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def coupling(dim, layers=8, hidden=(128, 128), batch=512, quick=False):
    sizes = {"dim": dim, "layers": layers, "hidden": hidden}
    return Workload(f"coupling, D = {dim:,}", "coupling", sizes, batch, quick)


def autoregressive(title, function, dim, layers, hidden, quick=False):
    sizes = {"dim": dim, "layers": layers, "hidden": hidden}
    return Workload(f"{title}, D = {dim}", function, sizes, 256, quick)


TRAININGS = (
    coupling(16, quick=True),
    coupling(64, quick=True),
    coupling(1024),
    autoregressive("MAF", "maf", 16, 5, (128, 128)),
    autoregressive("MAF", "maf", 64, 5, (128, 128), quick=True),
    autoregressive("MAF", "maf", 784, 5, (1024,)),
    Workload(
        "spline coupling, D = 16",
        "spline",
        {"dim": 16, "layers": 4, "hidden": (64, 64), "bins": 8, "bound": 5.0},
        quick=True,
    ),
    Workload("16 planar layers, D = 64", "planar", {"dim": 64, "layers": 16}, quick=True),
    Workload("16 Householder reflections, D = 64", "householder", {"dim": 64, "reflections": 16}),
    Workload(
        "4 Householder-Sylvester layers, D = 64",
        "sylvester",
        {"dim": 64, "layers": 4, "reflections": 8},
        quick=True,
    ),
)
SAMPLINGS = (
    autoregressive("MAF sampled", "maf_both_ways", 16, 5, (128, 128)),
    autoregressive("MAF sampled", "maf_both_ways", 64, 5, (128, 128), quick=True),
    autoregressive("MAF sampled", "maf_both_ways", 784, 1, (1024,)),
)
GUIDES = (
    Workload("guide, D = 10", "guides", {"name": "schools"}, quick=True),
    Workload("guide, D = 55", "guides", {"name": "regression55"}),
    Workload("default guide, D = 10", "guides", {"name": "schools", "default": True}),
    Workload("default guide, D = 55", "guides", {"name": "regression55", "default": True}),
)
# Each grows in one size; the others stay.
GROWTH = {
    "dimension": [coupling(dim, hidden=(64, 64)) for dim in (16, 64, 256, 1024, 4096)],
    "batch": [coupling(16, hidden=(64, 64), batch=batch) for batch in (1, 64, 1024, 8192, 65536)],
    "depth": [coupling(16, layers=layers) for layers in (1, 4, 8, 16, 64)],
}
MEMORY = [
    Workload(f"{layers} layers", "coupling", {"dim": 256, "layers": layers, "hidden": (256, 256)}, 1024)
    for layers in (8, 64)
]


def library(name):
    """A library's file, or None if it is not installed."""
    package = {"flowppl_pyro": "pyro", "flowppl_numpyro": "numpyro", "hand_torch": "torch", "hand_jax": "jax"}
    if importlib.util.find_spec(package.get(name, name)) is None:
        return None
    return importlib.import_module(f"suite.peers.{name}")


def languages(plan):
    return [language for language in LANGUAGES if language.name in plan.languages]


def offered(language, function, problems):
    """By column, the function of each library that has it; what is not installed is told to ``problems``."""
    functions = {}
    for column, name in language.columns.items():
        try:
            found = library(name)
        except Exception as error:  # one that does not fit what else is installed
            problems.add(f"{name} cannot be imported: {brief(error)}")
            continue
        if found is None:
            problems.add(f"{name} is not installed")
        elif hasattr(found, function):
            functions[column] = getattr(found, function)
    return functions


def brief(error):
    """Its kind, and its first line."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:120]


def say(text):
    print(text, file=sys.stderr, flush=True)
