"""Float64 everywhere, and programs that compile fast, and once."""

import gc
import math
import os
import pathlib
from importlib.metadata import version

# Most programs here run once or twice, also those of the notebooks; must come before jax is imported.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Modules, workers, notebooks and examples share them, and so do the next runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"))
# Each worker has a core; threads of notebooks and examples would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(
    "XLA_FLAGS",
    # A program is compiled as one part, not as 32 by threads: a sixth less work.
    "--xla_cpu_multi_thread_eigen=false --xla_cpu_parallel_codegen_split_count=1"
    # The older code generator compiles in a third less time; a flag that jaxlib does not know ends the process.
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import numpy as np
import pytest
import torch

from flowppl.networks import MADE, MLP

jax.config.update("jax_enable_x64", True)
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The longest first: no worker waits for another at the end."""
    items.sort(key=lambda item: item.path.stem != "test_tutorials")


def pytest_collection_finish():
    """What was imported and collected stays: a collection of garbage that walks through it took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture
def rng(request):
    """A generator seeded by the test's own name: independent between tests, the same in every run."""
    return np.random.default_rng(list(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def _clean_pyro():
    import pyro

    pyro.clear_param_store()
    pyro.set_rng_seed(0)


# What ends fits and searches by the clock, which would depend on what else the machine does.
CLOCKS = ("inference.fitting.MAX_SECONDS", "inference.modes.MAX_SECONDS", "numpyro.trainers.BUSY_SECONDS")
CLOCKS += tuple(f"{language}.diagnostics.SEARCH_SECONDS" for language in ("pyro", "numpyro"))


@pytest.fixture(autouse=True, scope="session")
def _no_clock():
    with pytest.MonkeyPatch.context() as patch:
        for clock in CLOCKS:
            patch.setattr(f"flowppl.{clock}", math.inf)
        yield


@pytest.fixture
def few_draws(monkeypatch):
    """The least number of draws for what is judged draw by draw, otherwise as many as some seconds have room for."""
    for clock in ("pyro.trainers.JUDGE_SECONDS", "pyro.target.PRIOR_SECONDS", "inference.outside.WIDE_SECONDS"):
        monkeypatch.setattr(f"flowppl.{clock}", 0.0)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Thousands of compiled programs would fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture
def count_passes(monkeypatch):
    """Counts the evaluations of networks."""
    calls = []
    for kind in (MADE, MLP):
        original = kind.__call__

        def counted(self, *args, original=original):
            calls.append(1)
            return original(self, *args)

        monkeypatch.setattr(kind, "__call__", counted)
    return calls
