"""How good a variational autoencoder of NumPyro is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowppl.autoencoders.data import as_data
from flowppl.autoencoders.evaluation import Evaluation, evaluate
from flowppl.autoencoders.levels import as_tuple
from flowppl.autoencoders.model import check_vae
from flowppl.numpyro.autoencoder import Autoencoder
from flowppl.numpyro.transforms import check_key


def evaluate_vae(
    rng_key: jax.Array,
    vae: Autoencoder,
    params: Mapping[str, Any],
    x: Any = None,
    *,
    num_samples: int = 5000,
    chunk_size: int = 1000,
) -> Evaluation:
    r"""How good a :class:`FlowVAE` is on data.

    With K draws :math:`z_k` from the posterior :math:`q(z \mid x)` of the latents z of a datum x, the prior
    :math:`p(z)` and the likelihood :math:`p(x \mid z)`, the weights are :math:`w_k = p(x \mid z_k)\, p(z_k) / q(z_k
    \mid x)`. The ELBO is the mean of their logarithms, and

    .. math::
        \log p(x) \approx \log \frac{1}{K} \sum_{k=1}^K w_k,

    which is below it in the mean, the less the larger K.

    Args:
        rng_key: determines the draws.
        vae: the autoencoder.
        params: its weights, by name.
        x: n data, as for :func:`fit_vae`.
        num_samples: the number K of draws for each datum, at least 2.
        chunk_size: how many draws are decoded at once; it bounds the memory.

    Returns:
        A :class:`Evaluation`: means over the data, with standard errors.

    Raises:
        ValueError: if the data do not fit the likelihood (the message names the range) or the networks, or ``params``
            lack a part.
        TypeError: if there is no key, ``vae`` is no autoencoder, ``params`` no dict, or the data are no real numbers.

    References:
        Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv 1509.00519: the estimate of log
        p(x), and active units.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flax import nnx
        >>> from flowppl.numpyro import FlowVAE, evaluate_vae
        >>> x = jnp.broadcast_to(jax.random.bernoulli(jax.random.key(0), 0.5, (200, 1)), (200, 9)).astype(float)
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=2)
        >>> rngs = nnx.Rngs(0)
        >>> encoder = nnx.Sequential(nnx.Linear(9, 16, rngs=rngs), nnx.relu)
        >>> vae = FlowVAE(encoder, nnx.Linear(2, 9, rngs=rngs), posterior)
        >>> found = evaluate_vae(jax.random.key(1), vae, vae.init(jax.random.key(2), x), x, num_samples=50)
        >>> found.log_prob > found.elbo, found.num_dims
        (True, 9)
    """
    check_key("evaluate_vae(key, vae, params, x)", rng_key)
    check_vae("evaluate_vae(key, vae, params, x)", vae, Autoencoder)
    vae._check_call("evaluate_vae(key, vae, params, x)", rng_key, params)
    x = as_data(x, jax.Array)
    vae._check(params, x)

    def weigh(part, num_draws, count):
        rows = vae._rows(x[part])
        return jax.tree.map(np.asarray, _weigh(vae, params, rows, jax.random.fold_in(rng_key, count), num_draws))

    return evaluate(weigh, len(x), math.prod(x.shape[1:]), num_samples, chunk_size)


@partial(jax.jit, static_argnums=(0, 4))
def _weigh(vae, params, x, key, num_draws):
    log_likelihood, kl, z = vae.terms(params, x, jax.random.normal(key, (num_draws, len(x), vae.dim)))
    return log_likelihood, kl, jnp.concatenate([each.reshape(*each.shape[:2], -1) for each in as_tuple(z)], -1)
