"""SVI with a flow guide in two processes of this machine, each with half of the data:

torchrun --standalone --nproc-per-node 2 tutorials/distributed/pyro_svi.py
"""

from datetime import timedelta

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from torch.nn.parallel import DistributedDataParallel

from flowppl.pyro import AutoFlow, PathELBO

torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=60))
rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()

pyro.set_rng_seed(0)  # the same in each process: the same draws, of which each sees its rows
x = torch.linspace(-1.0, 1.0, 1000)
y = 0.5 + 2.0 * x + 0.3 * torch.randn(1000)


def model(x, y, rows):
    offset = pyro.sample("offset", dist.Normal(0.0, 3.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 1000, subsample=rows):
        pyro.sample("y", dist.Normal(offset + slope * x, 0.3), obs=y)


rows = torch.arange(rank, 1000, size)
guide = AutoFlow(model)
guide.setup(x, y, torch.arange(1000))  # DistributedDataParallel looks for parameters once
objective = DistributedDataParallel(PathELBO()(model, guide), find_unused_parameters=True)
svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.01}), lambda model, guide, *args: objective(*args))
losses = [svi.step(x[rows], y[rows], rows) for _ in range(300)]
if rank == 0:
    print(f"slope {guide.sample_posterior(1000)['slope'].mean():.1f}")
torch.distributed.destroy_process_group()
