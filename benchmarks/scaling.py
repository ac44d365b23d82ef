"""What a step costs on several machines: measured steps and all-reduces, and what they come to on 8 and 64.

nice python benchmarks/scaling.py

The step is that of one process on one core; the all-reduce is gloo's, of two processes of this machine over its
loopback. The page "On several machines" of the site holds the results and the formula.
"""

import os
import statistics
import subprocess
import sys
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO

import flowppl as fp
from flowppl.pyro import AutoFlow, FlowVAE

SIZES = [1, 2**18, 1_455_166, 1_809_568, 2**24]  # numbers in float32; two are those of the guide and the autoencoder


def seconds(function, repeats, clock):
    function()
    found = []
    for _ in range(repeats):
        begin = clock()
        function()
        found.append(clock() - begin)
    return found


def all_reduces():
    torch.distributed.init_process_group("gloo")
    for size in SIZES:
        message = torch.ones(size)
        found = min(seconds(lambda message=message: torch.distributed.all_reduce(message), 40, time.perf_counter))
        if torch.distributed.get_rank() == 0:
            print(f"all-reduce of {4 * size / 1e6:8.3f} MB: {1e3 * found:8.2f} ms", flush=True)


def num_trained(loss, module):
    """How many numbers a message of gradients holds."""
    parameters = list(module.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return sum(gradient.numel() for gradient in found if gradient is not None)


def vae_step(batch_size):
    """The autoencoder of `flow_vae.py`: 784-300-300-40 with a flow of Sylvester's."""
    torch.manual_seed(0)
    layers = torch.nn.Linear, torch.nn.ReLU
    encoder = torch.nn.Sequential(layers[0](784, 300), layers[1](), layers[0](300, 300), layers[1]())
    decoder = torch.nn.Sequential(
        layers[0](40, 300), layers[1](), layers[0](300, 300), layers[1](), layers[0](300, 784)
    )
    vae = FlowVAE(encoder, decoder, fp.amortized_posterior(40, 300, "sylvester", 4))
    x = (torch.rand(batch_size, 784) < 0.5).float()
    optimizer = torch.optim.Adam(vae.parameters())

    def step():
        log_likelihood, kl, _ = vae.terms(x, torch.randn(batch_size, 40))
        (kl.mean() - log_likelihood.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, num_trained(sum(map(torch.sum, vae.terms(x, torch.randn(batch_size, 40))[:2])), vae)


def guide_step(num_particles, dim=10_000):
    """A guide of 10^4 latents with 16 planar layers, on a Gaussian model."""
    pyro.clear_param_store()

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=torch.ones(dim))

    guide = AutoFlow(model, lambda dim, **options: fp.planar(dim, 16, **options))
    guide.setup()
    objective = Trace_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=0)(model, guide)
    optimizer = torch.optim.Adam(guide.parameters())

    def step():
        objective().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, num_trained(objective(), guide)


if __name__ == "__main__":
    if "RANK" in os.environ:
        all_reduces()
        sys.exit()
    torch.set_num_threads(1)
    for name, make, sizes in (("autoencoder", vae_step, (1, 12, 100)), ("guide", guide_step, (1, 8, 64))):
        for size in sizes:
            step, num_weights = make(size)
            # The time of the processor, since other programs may run here too.
            found = statistics.median(seconds(step, 15, time.process_time))
            print(f"{name}, {num_weights} weights trained, {size} rows: {1e3 * found:.1f} ms a step", flush=True)
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, "-W", "ignore", __file__], env=os.environ | told | {"RANK": str(rank)})
        for rank in range(2)
    ]
    sys.exit(max(process.wait() for process in processes))
