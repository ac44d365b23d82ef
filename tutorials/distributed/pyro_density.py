"""Fit a flow in two processes of this machine, each with half of every batch, and go on where it stopped:

torchrun --standalone --nproc-per-node 2 tutorials/distributed/pyro_density.py

On several machines `torchrun --nnodes` and `--rdzv-endpoint` say how many there are and where they meet.
"""

from datetime import timedelta

import numpy as np
import torch

import flowppl as fp
from flowppl.pyro import fit_density

on_gpu = torch.cuda.is_available()
# A process that is lost is known at once; one that hangs, after this time.
torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=60))
rank = torch.distributed.get_rank()
if on_gpu:
    torch.cuda.set_device(rank % torch.cuda.device_count())
    torch.set_default_device("cuda")

# The same data in each process; of a memory-mapped file, np.load("x.npy", mmap_mode="r"), each reads its rows only.
rng = np.random.default_rng(0)
angle = 6.3 * rng.random(2000)
x = np.stack([np.cos(angle), np.sin(angle)], 1) + 0.1 * rng.normal(size=(2000, 2))

fit = fit_density(fp.nsf(2), x, num_epochs=20, checkpoint="ring.checkpoint", distributed=True)
if rank == 0:
    print(fit)
    fp.save("ring.safetensors", fit.flow)
torch.distributed.destroy_process_group()
