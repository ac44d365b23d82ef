r"""What the variational autoencoders of both adapters share: texts and checks."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, check_standard_base
from flowppl.checks import check_sizes

FLOW_VAE_DOC = r"""A variational autoencoder whose posterior, and whose prior, may be flows.

    .. math::
        z \sim p(z), \quad x \sim p(x \mid \mathrm{{decoder}}(z)), \qquad
        q(z \mid x): \; z = f\big(\varepsilon;\, \mathrm{{encoder}}(x)\big), \quad \varepsilon \sim N(0, I).

    ``model`` and ``guide`` are for the host's ``SVI``, with any of its objectives; :func:`fit_vae` trains the same
    weights with warm-up, early stopping and checkpoints, and :func:`evaluate_vae` says how good they are. These two
    check that the data lie in the support of the likelihood; ``model`` takes them as they are.

    Args:
        encoder: the network from a batch of data, ``(n, *shape)``, to features, ``(n, context_dim)``: {encoder}.
        decoder: the network from latents, ``(n, dim)``, to what the likelihood needs, with n in front.
        posterior: the flow from noise to latents given the features, such as
            ``flowppl.amortized_posterior(dim, context_dim, "sylvester", 4)``.
        prior: the flow of a learned prior, such as ``flowppl.realnvp(dim)``, trained with the rest; a ``Flow``, used as
            it is{frozen}; ``None`` is the standard normal.
        likelihood: ``"bernoulli"`` (the decoder gives logits), ``"categorical"`` (logits along a last axis of its own;
            the data are integers from 0), ``"gaussian"`` (the decoder gives a pair, the mean and the log of the
            standard deviation, for all rows or one for each), or a function from the decoder's output to a
            distribution.

    Raises:
        ValueError: for an unknown likelihood, a posterior without a context, or a prior whose shape is not that of the
            latents; in use, for features or outputs of the wrong shape.
        TypeError: if posterior or prior is no flow.

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes, 2013, arXiv 1312.6114. Rezende, Mohamed: Variational Inference
        with Normalizing Flows, 2015, arXiv 1505.05770. A flow as the prior: Chen et al.: Variational Lossy Autoencoder,
        2016, arXiv 1611.02731.

    Example:{example}"""

ENCODE_DOC = """Draws of the latents from the posterior.

        Args:{key}
            x: n data.
            num_samples: the number of draws for each.

        Returns:
            An array of shape ``(num_samples, n, dim)``.
        """

RECONSTRUCT_DOC = """The mean of the likelihood at draws from the posterior.

        Of categories it is the mean of their numbers.

        Args:{key}
            x: n data.
            num_samples: the number of draws for each.

        Returns:
            An array of shape ``(num_samples, n, *shape)``.
        """

SAMPLE_DOC = """Data made from draws from the prior.

        Args:{key}
            num_samples: the number of draws.
            mean: whether to give the mean of the likelihood at each draw, or a draw from the likelihood.

        Returns:
            An array of shape ``(num_samples, *shape)``.
        """

INTERPOLATE_DOC = r"""The mean of the likelihood on the way from data to other data, in the noise of the prior.

        One draw of each latent is mapped to the noise :math:`u_0, u_1` of the prior; there the way is
        :math:`(1-t)\,u_0 + t\,u_1`, or, ``spherical``, :math:`\cos(\varphi)\,u_0 + \sin(\varphi)\,u_1` with
        :math:`\varphi = t \pi / 2`, which of independent standard normals makes standard normals all the way (Dinh,
        Sohl-Dickstein, Bengio 2016, arXiv 1605.08803).

        Args:{key}
            first: n data.
            second: as many.
            num_steps: the number of steps, the two ends among them.
            spherical: whether to take the second way.

        Raises:
            ValueError: for less than two steps, or data that are not equally many.

        Returns:
            An array of shape ``(num_steps, n, *shape)``, from the reconstruction of the first to that of the second.
        """

LIKELIHOODS = ("bernoulli", "categorical", "gaussian")


def check_parts(posterior: Any, prior: Bijection | None, likelihood: Any) -> None:
    """Raise an error unless posterior, prior and likelihood can be those of one autoencoder."""
    check_bijection(posterior)
    if not posterior.context_dim:
        raise ValueError(
            "FlowVAE: the posterior must depend on features of the data: give it context_dim, or make it by "
            "flowppl.amortized_posterior(dim, context_dim)"
        )
    if posterior.y_support != REAL_LINE or len(posterior.y_shape) != 1:
        raise ValueError("FlowVAE: the posterior must map to vectors of real numbers, without a last layer that bounds")
    check_standard_base(posterior)
    if prior is not None:
        check_bijection(prior)
        if prior.y_shape != posterior.y_shape or prior.y_support != REAL_LINE or prior.context_dim:
            raise ValueError(
                f"FlowVAE: the prior must be an unconditional flow of real vectors of shape {posterior.y_shape}, as "
                f"the posterior's are; this {type(prior).__name__} has the shape {prior.y_shape}, the support "
                f"{prior.y_support} and context_dim={prior.context_dim}"
            )
    if not callable(likelihood) and likelihood not in LIKELIHOODS:
        raise ValueError(
            f"FlowVAE: likelihood must be one of {', '.join(LIKELIHOODS)}, or a function from the decoder's output to "
            f"a distribution, got {likelihood!r}"
        )


def check_features(found: tuple[int, ...], num: int, context_dim: int) -> None:
    """Raise ValueError unless the encoder gives features of the right shape."""
    if found != (num, context_dim):
        raise ValueError(
            f"FlowVAE: the encoder must give features of shape ({num}, {context_dim}) for {num} data, since the "
            f"posterior has context_dim={context_dim}, got {found}"
        )


def unflatten(kind: Any, output: Any, batch: tuple[int, ...]) -> Any:
    """What a decoder gave for rows, with the axes of their batch in front in the place of one axis.

    A part with fewer axes than another, such as one scale for each pixel, is for all rows.

    Raises:
        ValueError: if it is not what the likelihood needs.
    """
    is_tuple = isinstance(output, (tuple, list))
    parts = tuple(output) if is_tuple else (output,)
    if kind == "gaussian" and not (is_tuple and len(parts) == 2):
        raise ValueError(
            "FlowVAE: for the likelihood 'gaussian' the decoder must give a pair, the mean and the log of the standard "
            f"deviation, got {f'{len(parts)} arrays' if is_tuple else f'one array of shape {tuple(output.shape)}'}"
        )
    if kind in ("bernoulli", "categorical") and is_tuple:
        raise ValueError(f"FlowVAE: for the likelihood {kind!r} the decoder must give one array, got {len(parts)}")
    num_axes, num_rows = max(part.ndim for part in parts), math.prod(batch)
    of_rows = [part.ndim == num_axes > 0 and part.shape[0] == num_rows for part in parts]
    found = tuple(
        part.reshape(*batch, *part.shape[1:]) if each else part for part, each in zip(parts, of_rows, strict=True)
    )
    return found if is_tuple else found[0]


def check_output(kind: Any, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ValueError unless the likelihood is one of data of this shape."""
    if found != expected:
        hint = "; its last axis counts the categories" if kind == "categorical" else ""
        raise ValueError(
            f"FlowVAE: the decoder gives a likelihood of data of shape {found}, but the data have the shape {expected}"
            f"{hint}"
        )


def check_data(kind: Any, x: np.ndarray, num_categories: int | None, supported: bool) -> None:
    """Raise ValueError unless all data are in the support of the likelihood.

    Args:
        supported: whether a likelihood of one's own has them in its support.
    """
    check_not_empty(x)
    low, high = x.min(), x.max()
    has = f"but the data range from {low} to {high}"
    if not np.isfinite(low + 0.0) or not np.isfinite(high + 0.0):
        raise ValueError("FlowVAE: the data are not all finite; drop or impute what is missing")
    if kind == "bernoulli" and not np.isin(x, (0, 1)).all():
        raise ValueError(
            f"FlowVAE: the likelihood 'bernoulli' is of data that are 0 or 1, {has}; binarise them, or take "
            "'categorical' for integers and 'gaussian' for real numbers"
        )
    if not supported:
        raise ValueError(f"FlowVAE: the likelihood must have all data in its support, {has}; scale or round them")
    if kind == "categorical":
        if not np.issubdtype(x.dtype, np.integer):
            raise ValueError(f"FlowVAE: the likelihood 'categorical' is of integers, but the data are {x.dtype}")
        if low < 0 or high >= num_categories:  # type: ignore[operator]
            raise ValueError(
                f"FlowVAE: the decoder gives logits of {num_categories} categories, 0 to {num_categories - 1}, {has}"  # type: ignore[operator]
            )


def check_not_empty(x: Any) -> None:
    """Raise ValueError for data without rows."""
    if 0 in np.shape(x):
        raise ValueError("FlowVAE: there are no data")


def check_ends(first: Any, second: Any) -> None:
    """Raise ValueError unless there are as many second ends as first ones."""
    if len(first) != len(second):
        raise ValueError(f"interpolate: first and second must be equally many, got {len(first)} and {len(second)} data")


def path_weights(num_steps: int, spherical: bool) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the first and of the second end in each step of an interpolation."""
    check_sizes("interpolate", at_least=2, num_steps=num_steps)
    t = np.linspace(0.0, 1.0, num_steps)
    return (np.cos(t * math.pi / 2), np.sin(t * math.pi / 2)) if spherical else (1 - t, t)


def as_data(values: Any) -> Any:
    """Data as an array, if they are none yet; a fraction or ``None`` as it is."""
    plain = values is None or isinstance(values, numbers.Real)
    return values if plain or (hasattr(values, "shape") and hasattr(values, "dtype")) else np.asarray(values)
