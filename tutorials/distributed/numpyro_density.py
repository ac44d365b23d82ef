"""Fit a flow on all devices of this machine, each with its share of every batch, and go on where it stopped:

XLA_FLAGS=--xla_force_host_platform_device_count=2 python tutorials/distributed/numpyro_density.py

The flag is for CPUs, which are one device without it. On two machines each runs, with its own last number,

python tutorials/distributed/numpyro_density.py FIRST_MACHINE:1234 2 0

Under Slurm, and on pods of TPUs, `jax.distributed.initialize()` finds these three by itself.
"""

import sys

import jax
import numpy as np

import flowppl as fp
from flowppl.numpyro import fit_density

if len(sys.argv) == 4:
    address, num_processes, process_id = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    # A host that is lost ends the run after this time at the latest.
    jax.distributed.initialize(address, num_processes, process_id, heartbeat_timeout_seconds=30)

# The same data on each host; of a memory-mapped file, np.load("x.npy", mmap_mode="r"), each reads its rows only.
rng = np.random.default_rng(0)
angle = 6.3 * rng.random(2000)
x = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.normal(size=(2000, 2))

fit = fit_density(jax.random.key(0), fp.nsf(2), x, num_epochs=20, checkpoint="ring.checkpoint", distributed=True)
if jax.process_index() == 0:
    print(fit)
    fp.save("ring.safetensors", fit.flow)
