"""The log density of Pyro models whose discrete sites are summed out, as the host's NUTS has it.

The host's own sums of exponentials have no rule for ``torch.func``; those here, which ``opt_einsum`` finds by the name
of this module, have.
"""

from __future__ import annotations

import torch
from opt_einsum import shared_intermediates
from pyro import poutine

from flowppl.pyro._host import EnumMessenger, LogRing, Tensordot, _compute_model_factors, contract_to_tensor


def trace_of(model, args, kwargs):
    """The trace of a model that leaves none in the programs around it."""
    with poutine.block():
        return poutine.trace(model).get_trace(*args, **kwargs)


def plate_nesting(trace) -> int:
    """How many dimensions the plates of a model take, to the left of which there is room for draws."""
    frames = [frame for site in trace.nodes.values() for frame in site.get("cond_indep_stack", ())]
    return max((-frame.dim for frame in frames if frame.vectorized), default=0)


def is_summed_out(site) -> bool:
    """Whether a site is discrete and marked for enumeration."""
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and site["infer"].get("enumerate") == "parallel"
        and site["fn"].has_enumerate_support
    )


def log_joint(model, args, kwargs, nesting: int, sums_out: bool):
    """The log density of all sites of a model, at what it draws; sites marked for enumeration are summed out.

    Args:
        model: the model, conditioned on its continuous latents.
        args: its arguments.
        kwargs: its keyword arguments.
        nesting: how many dimensions its plates take.
        sums_out: whether it has such sites.
    """
    if not sums_out:
        return trace_of(model, args, kwargs).log_prob_sum()
    trace = trace_of(_Enumerated(first_available_dim=-1 - nesting)(model), args, kwargs)
    trace.compute_log_prob()
    trace.pack_tensors()
    # Not the evaluator of NUTS, which scales a subsample inside of the sum.
    costs, factors, _, dims, scale = _compute_model_factors(trace, poutine.Trace())
    with shared_intermediates() as cache:
        total = contract_to_tensor(factors, dims, ring=_Ring(cache)) * scale
    return total + sum(cost.sum() for terms in costs.values() for cost in terms)


class _Ring(LogRing):
    _backend = __name__


def einsum(equation: str, *operands: torch.Tensor) -> torch.Tensor:
    """Sums of products of numbers whose logarithms are given; the result is a logarithm."""
    inputs, output = equation.split("->")
    names = inputs.split(",")
    order = output + "".join(sorted(set(inputs) - set(output) - {","}))
    total = sum(_aligned(operand, name, order) for operand, name in zip(operands, names, strict=True))
    summed = tuple(range(len(output), len(order)))
    return torch.logsumexp(total, summed) if summed else total


def _aligned(operand, name, order):
    """The operand with its axes in this order, and axes of length 1 for those that it lacks."""
    operand = operand.permute([name.index(axis) for axis in order if axis in name])
    lengths = iter(operand.shape)
    return operand.reshape([next(lengths) if axis in name else 1 for axis in order])


def transpose(operand: torch.Tensor, axes) -> torch.Tensor:
    return operand.permute(axes)


tensordot = Tensordot(einsum)


class _Enumerated(EnumMessenger):
    """The host's enumeration, which asks for the shape of a value in a way that ``vmap`` does not allow."""

    def _pyro_post_sample(self, msg):
        value = msg["value"]
        if isinstance(value, torch.Tensor):
            msg["value"] = torch.empty(value.shape, device="meta")
        super()._pyro_post_sample(msg)
        msg["value"] = value
