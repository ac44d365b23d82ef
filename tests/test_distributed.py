"""Several processes and devices end where one does, and a process that is killed ends the run with an error."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
from functools import partial

import numpy as np
import pyro
import pytest
import torch

import flowppl as fp
import flowppl.pyro as fpp
from flowppl.inference.batches import Workers
from flowppl.training.loop import _check_together

FOLDER = pathlib.Path(__file__).parent / "distributed"
SCRIPTS = pathlib.Path(__file__).parents[1] / "tutorials" / "distributed"
sys.path.insert(0, str(FOLDER))

import numpyro_runs  # noqa: E402
import pyro_runs  # noqa: E402


def two_devices():
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"}


def start(script, folder, *arguments, **environment):
    command = [sys.executable, "-W", "ignore", str(FOLDER / script), str(folder), *map(str, arguments)]
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, env=os.environ | environment, stderr=log)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def assert_same(found, expected, tolerance=1e-8):
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


def part(runs, name):
    return {key.removeprefix(f"{name}."): value for key, value in runs.items() if key.startswith(f"{name}.")}


def assert_killed(folder, first, second):
    """The second process kills itself, and the first one ends with an error within a minute."""
    assert second.wait(300) == -signal.SIGKILL, (folder / "log").read_text()[-2000:]
    assert first.wait(60) != 0


def test_processes_of_torch_end_where_one_does_and_a_killed_one_ends_the_run(tmp_path):
    # What torchrun tells the processes that it starts.
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [start("pyro_runs.py", tmp_path, RANK=str(rank), **told) for rank in range(2)]
    expected = pyro_runs.all_runs()
    assert_killed(tmp_path, *processes)
    for rank in range(2):
        assert_same(dict(np.load(tmp_path / f"{rank}.npz")), expected)
    pyro.set_rng_seed(5)  # the checkpoint has its own seed
    resumed = pyro_runs.density(False, checkpoint=tmp_path / "flow.checkpoint")
    assert_same(resumed, part(expected, "density"))


def test_devices_of_jax_end_where_one_does(tmp_path):
    process = start("numpyro_runs.py", tmp_path, **two_devices())
    expected = numpyro_runs.all_runs()
    assert process.wait(300) == 0, (tmp_path / "log").read_text()[-2000:]
    assert_same(dict(np.load(tmp_path / "0.npz")), expected)


@pytest.mark.stress
def test_hosts_of_jax_end_where_one_does_and_a_killed_one_ends_the_run(tmp_path):
    """Two hosts of two devices, and SVI with its particles on two devices."""
    address = f"127.0.0.1:{free_port()}"
    processes = [start("numpyro_runs.py", tmp_path, address, rank, **two_devices()) for rank in range(2)]
    expected = numpyro_runs.all_runs(names=numpyro_runs.ALL)
    assert_killed(tmp_path, *processes)
    for rank in range(2):
        assert_same(dict(np.load(tmp_path / f"{rank}.npz")), expected)
    resumed = numpyro_runs.density(False, checkpoint=tmp_path / "flow.checkpoint")
    assert_same(resumed, part(expected, "density"))
    process = start("numpyro_runs.py", tmp_path, "all", **two_devices())
    assert process.wait(300) == 0, (tmp_path / "log").read_text()[-2000:]
    assert_same(dict(np.load(tmp_path / "0.npz")), expected, 1e-6)


class Second(Workers):
    """The second of three processes, whose numbers are told by a function of its own."""

    def __init__(self, others):
        super().__init__(1, 3)
        self.others = others

    def gather(self, numbers):
        return np.array([self.others(numbers), numbers, numbers])


def test_each_row_is_of_one_process_and_one_without_rows_counts_for_nothing():
    for num_rows in (1, 2, 3, 7, 30):
        shares = [Workers(rank, 3).share(num_rows) for rank in range(3)]
        counts = shares[0][1]
        assert all((each == counts).all() for _, each in shares)
        rows = [np.arange(num_rows)[own] for own, _ in shares]
        assert [len(own) if count else 0 for own, count in zip(rows, counts, strict=True)] == counts.tolist()
        np.testing.assert_array_equal(np.concatenate([rows[i] for i in range(3) if counts[i]]), np.arange(num_rows))
        assert all(len(own) >= 1 for own in rows)
        assert all(Workers(i, 3).place(counts, len(rows[i])) == shares[i][0] for i in range(3))


def test_processes_that_do_not_fit_together_are_told():
    data = {"data": np.arange(3.0), "validation": None}
    check = partial(_check_together, "fit_vae", done=2, num_rows=3, data=data)
    check(workers=Second(list))
    with pytest.raises(
        ValueError, match=r"from different epochs, \[0, 2, 2\]; the checkpoint must lie where all of them"
    ):
        check(workers=Second(lambda numbers: [0, *numbers[1:]]))
    with pytest.raises(ValueError, match="fit_vae: the processes were given different data"):
        check(workers=Second(lambda numbers: [*numbers[:-1], numbers[-1] + 1]))


def test_without_processes_it_is_told_how_to_start_some():
    with pytest.raises(RuntimeError, match=r"fit_density: distributed=True is for a program that torchrun has started"):
        fpp.fit_density(fp.ElementwiseAffine(2), torch.randn(10, 2), distributed=True)


@pytest.mark.stress
@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.py")), ids=lambda script: script.stem)
def test_scripts_run_as_they_say(script, tmp_path):
    by_torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, "-W", "ignore", *(by_torchrun if script.stem.startswith("pyro_") else []), str(script)]
    environment = os.environ | two_devices()
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    expected = "slope 2.0" if "svi" in script.stem else "DensityFit(20 epochs"
    assert expected in result.stdout, result.stderr[-2000:]
