"""Where the tests of this folder run: on a GPU, or not at all.

    python -m pytest tests/gpu

takes under six minutes on one GPU, straight from the source tree. ``FLOWPPL_DEVICE=cpu`` runs the same tests on a CPU,
to test the tests.
"""

import os

import jax
import pytest
import torch

FORCED = os.environ.get("FLOWPPL_DEVICE")


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.path.parts:
            # Hosts and drivers of many versions warn of their own future; other tests watch ours.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def device():
    """The device of torch."""
    if FORCED is None and not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    return torch.device(FORCED or "cuda:0")


@pytest.fixture(scope="session")
def jax_device():
    """The device of jax."""
    try:
        return jax.devices(FORCED or "gpu")[0]
    except RuntimeError:
        pytest.skip("jax sees no GPU")
