"""How good a density of NumPyro is."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowppl.checks import check_sizes
from flowppl.inference.density import checked_rows
from flowppl.inference.density_evaluation import DensityEvaluation, check_evaluated, evaluate
from flowppl.numpyro.density_mixture import Mixture
from flowppl.numpyro.discrete import Dequantized
from flowppl.numpyro.flow import Flow
from flowppl.numpyro.pixelcnn import PixelCNN
from flowppl.numpyro.transforms import check_key


def evaluate_density(
    rng_key: jax.Array,
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
        rng_key: determines the noise.
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
        >>> import jax, flowppl as fp
        >>> from flowppl.numpyro import Dequantized, evaluate_density
        >>> counts = Dequantized.init(jax.random.key(0), fp.Elementwise(3, fp.Sigmoid()), levels=5)
        >>> x = jax.random.randint(jax.random.key(1), (50, 3), 0, 5)
        >>> found = evaluate_density(jax.random.key(2), counts, x, num_samples=10)
        >>> found.bits_per_dim < found.bound_bits_per_dim, found.num_dims
        (True, 3)
    """
    check_key("evaluate_density(key, flow, x)", rng_key)
    check_evaluated(flow, (Flow, Mixture, Dequantized, PixelCNN))
    check_sizes("evaluate_density", at_least=2, num_samples=num_samples)
    convert = partial(np.asarray, dtype=jnp.result_type(*jax.tree.leaves(flow), jnp.float32))
    rows, contexts = checked_rows(flow._of_x, x, context, convert, owner="evaluate_density")
    is_estimate = isinstance(flow, Dequantized)

    def log_weights(part: slice, num_draws: int, count: int) -> np.ndarray:
        known = (rng_key, count, rows[part], None if contexts is None else contexts[part])
        return np.asarray(_log_weights(flow, *known, num_draws if is_estimate else 0))

    num_dims = math.prod(rows.shape[1:])
    return evaluate(log_weights, len(rows), num_dims, num_samples if is_estimate else 0, chunk_size)


@partial(jax.jit, static_argnames="num_draws")
def _log_weights(flow, key, count, x, context, num_draws):
    if not num_draws:
        return flow(context).log_prob(x)[None]
    key = jax.random.fold_in(key, count)
    return flow(context, key=key).log_weights(key, x, num_draws)
