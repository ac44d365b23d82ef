"""How good a variational autoencoder of Pyro is."""

from __future__ import annotations

import math
from typing import Any

import torch

from flowppl.autoencoders.evaluation import Evaluation, evaluate
from flowppl.autoencoders.levels import as_tuple
from flowppl.autoencoders.model import check_vae
from flowppl.checks import without_key
from flowppl.pyro.autoencoder import Autoencoder, as_rows, modes


@without_key
def evaluate_vae(vae: Autoencoder, x: Any = None, *, num_samples: int = 5000, chunk_size: int = 1000) -> Evaluation:
    r"""How good a :class:`FlowVAE` is on data.

    With K draws :math:`z_k` from the posterior :math:`q(z \mid x)` of the latents z of a datum x, the prior
    :math:`p(z)` and the likelihood :math:`p(x \mid z)`, the weights are :math:`w_k = p(x \mid z_k)\, p(z_k) / q(z_k
    \mid x)`. The ELBO is the mean of their logarithms, and

    .. math::
        \log p(x) \approx \log \frac{1}{K} \sum_{k=1}^K w_k,

    which is below it in the mean, the less the larger K. Networks are in evaluation mode meanwhile.

    Args:
        vae: the autoencoder.
        x: n data, as for :func:`fit_vae`.
        num_samples: the number K of draws for each datum, at least 2.
        chunk_size: how many draws are decoded at once; it bounds the memory.

    Returns:
        A :class:`Evaluation`: means over the data, with standard errors.

    Raises:
        ValueError: if the data do not fit the likelihood (the message names the range) or the networks.
        TypeError: if ``vae`` is no autoencoder, or the data are no real numbers.

    References:
        Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv 1509.00519: the estimate of log
        p(x), and active units.

    Example:
        >>> import torch, flowppl as fp
        >>> from flowppl.pyro import FlowVAE, evaluate_vae
        >>> x = (torch.rand(200, 1) < 0.5).expand(200, 9).float()
        >>> posterior = fp.amortized_posterior(2, context_dim=16, flow="planar", num_flows=2)
        >>> encoder = torch.nn.Sequential(torch.nn.Linear(9, 16), torch.nn.ReLU())
        >>> vae = FlowVAE(encoder, torch.nn.Linear(2, 9), posterior)
        >>> found = evaluate_vae(vae, x, num_samples=50)
        >>> found.log_prob > found.elbo, found.num_dims
        (True, 9)
    """
    check_vae("evaluate_vae(vae, x)", vae, Autoencoder)
    x = as_rows(x)
    vae._check(x)

    @torch.no_grad()
    def weigh(part, num_draws, _):
        rows = vae._rows(x[part])
        log_likelihood, kl, z = vae.terms(rows, vae._noise(num_draws, len(rows)))
        z = torch.cat([each.flatten(2) for each in as_tuple(z)], -1)
        return tuple(each.cpu().double().numpy() for each in (log_likelihood, kl, z))

    with modes(vae, trains=False):
        return evaluate(weigh, len(x), math.prod(x.shape[1:]), num_samples, chunk_size)
