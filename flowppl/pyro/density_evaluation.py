"""How good a density of Pyro is."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch

from flowppl.checks import check_sizes, without_key
from flowppl.inference.density import checked_rows
from flowppl.inference.density_evaluation import DensityEvaluation, check_evaluated, evaluate
from flowppl.pyro.density import tensor_like
from flowppl.pyro.density_mixture import Mixture
from flowppl.pyro.discrete import Dequantized
from flowppl.pyro.flow import Flow
from flowppl.pyro.pixelcnn import PixelCNN


@without_key
def evaluate_density(
    flow: Flow | Mixture | Dequantized | PixelCNN,
    x: Any = None,
    context: Any = None,
    *,
    num_samples: int = 100,
    chunk_size: int = 1000,
) -> DensityEvaluation:
    r"""How good a flow, or a distribution of integers, is on data.

    For n data x it gives the mean of log p(x), in nats and in bits for each number, with the error that comes from the
    number of data. For a :class:`Dequantized`, whose density is an estimate, it gives from K = ``num_samples`` draws of
    noise for each datum, with their Monte-Carlo errors,

    .. math::
        \mathrm{bound} = \frac{1}{K} \sum_k \log w_k, \qquad
        \mathrm{log\_prob} = \log \frac{1}{K} \sum_k w_k, \qquad
        w_k = \frac{p\big((x + u_k) / L\big)}{L^D\, q(u_k \mid x)},

    where D is the number of entries of x, L the number of levels, p the density of the flow and q that of the noise.
    The first is the bound that training maximises; the second comes up to log P(x) from below as K grows.

    Args:
        flow: a :class:`Flow`, a :class:`Mixture`, a :class:`Dequantized` or a :class:`PixelCNN`.
        x: the data, of shape ``(n, *event_shape)``, as for :func:`fit_density`; no batches.
        context: for a conditional flow, the contexts of the rows, of shape ``(n, context_dim)``.
        num_samples: the number K of draws of noise for each datum, at least 2; unused where the density is exact.
        chunk_size: how many densities are computed at once; it bounds the memory.

    Returns:
        A :class:`DensityEvaluation`: means over the data, with both errors.

    Raises:
        TypeError: if ``flow`` is none of these, or x are no real numbers.
        ValueError: if the data do not fit the flow, or an option is out of range.

    References:
        Theis, van den Oord, Bethge: A note on the evaluation of generative models, 2015, arXiv 1511.01844. The estimate
        with K draws: Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv 1509.00519.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import Dequantized, evaluate_density
        >>> counts = Dequantized(fp.Elementwise(3, fp.Sigmoid()), levels=5)
        >>> found = evaluate_density(counts, torch.randint(0, 5, (50, 3)), num_samples=10)
        >>> found.bits_per_dim < found.bound_bits_per_dim, found.num_dims
        (True, 3)
    """
    check_evaluated(flow, (Flow, Mixture, Dequantized, PixelCNN))
    check_sizes("evaluate_density", at_least=2, num_samples=num_samples)
    zeros: Any = flow._zeros

    convert = partial(tensor_like, zeros)
    rows, contexts = checked_rows(flow._of_x, x, context, convert, owner="evaluate_density")
    is_estimate = isinstance(flow, Dequantized)

    @torch.no_grad()
    def log_weights(part: slice, num_draws: int, _: int) -> np.ndarray:
        distribution: Any = flow(None if contexts is None else contexts[part])
        found = (
            distribution.log_weights(rows[part], num_draws) if is_estimate else distribution.log_prob(rows[part])[None]
        )
        return found.cpu().double().numpy()

    num_dims = math.prod(rows.shape[1:])
    return evaluate(log_weights, len(rows), num_dims, num_samples if is_estimate else 0, chunk_size)
