"""What the variational autoencoders of both adapters share: whether their parts fit together."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, check_standard_base
from flowppl.checks import did_you_mean

LIKELIHOODS = ("bernoulli", "categorical", "gaussian")


def check_parts(
    owner: str, posterior: Any, prior: Bijection | None, likelihood: Any, *, conditional: bool = False
) -> None:
    """Raise an error unless posterior, prior and likelihood can be those of one autoencoder.

    Args:
        owner: the name of the autoencoder's class, for messages.
        conditional: whether the prior may take a context.
    """
    check_bijection(posterior)
    if not posterior.context_dim:
        raise ValueError(
            f"{owner}: the posterior must depend on features of the data: give it context_dim, or make it by "
            "flowppl.amortized_posterior(dim, context_dim)"
        )
    if posterior.y_support != REAL_LINE:
        raise ValueError(
            f"{owner}: the posterior must map to all real numbers, without a last layer that bounds, such as the logit "
            "layer of flows of images, which alpha=None leaves out"
        )
    check_standard_base(posterior)
    if prior is not None:
        check_bijection(prior)
        if (
            prior.y_shape != posterior.y_shape
            or prior.y_support != REAL_LINE
            or (prior.context_dim and not conditional)
        ):
            what = "a flow" if conditional else "an unconditional flow"
            raise ValueError(
                f"{owner}: the prior must be {what} of real numbers, of shape {posterior.y_shape} as the posterior's; "
                f"this {type(prior).__name__} has the shape {prior.y_shape}, the support {prior.y_support} and "
                f"context_dim={prior.context_dim}"
            )
    check_likelihood(owner, likelihood)


def check_likelihood(owner: str, likelihood: Any) -> None:
    """Raise ValueError unless this is a likelihood's name, or a function."""
    if not callable(likelihood) and likelihood not in LIKELIHOODS:
        raise ValueError(
            f"{owner}: likelihood must be one of {', '.join(LIKELIHOODS)}, or a function from the decoder's output to "
            f"a distribution, got {likelihood!r}{did_you_mean(str(likelihood), LIKELIHOODS)}"
        )


def check_networks(owner: str, **networks: Any) -> None:
    """Raise TypeError unless encoder and decoder can be called."""
    for name, network in networks.items():
        if isinstance(network, type) or not callable(network):
            what = f"the class {network.__name__}" if isinstance(network, type) else type(network).__name__
            raise TypeError(f"{owner}: the {name} must be a module or a function, got {what}")


def check_vae(call: str, vae: Any, kind: type) -> None:
    """Raise TypeError unless this is an autoencoder of the adapter; ``call`` is how to write the call."""
    if not isinstance(vae, kind):
        package = kind.__module__.rpartition(".")[0]
        raise TypeError(
            f"{call}: vae must be a FlowVAE of {package}, or another of its autoencoders, got {type(vae).__name__}"
        )


@contextlib.contextmanager
def named(part: str, shape: tuple[int, ...]):
    """Add to an error of a network which one it is, and what it was given."""
    try:
        yield
    except Exception as error:
        hint = ""
        if part == "encoder" and len(shape) != 2:
            one = "one number each: give rows, x.reshape(len(x), 1)"
            hint = f"; {one}" if len(shape) < 2 else "; if it takes vectors, flatten the data: x.reshape(len(x), -1)"
        error.add_note(f"this is the {part}, given an array of shape {tuple(shape)}, which it could not take{hint}")
        raise


def as_features(features: Any, num: int, context_dim: int) -> Any:
    """What an encoder gave, as one vector for each datum; features that are images are flattened.

    Raises:
        ValueError: if it is not of the right size.
    """
    shape = getattr(features, "shape", None)
    if shape is None or not shape or shape[0] != num or math.prod(shape[1:]) != context_dim:
        raise ValueError(
            f"the encoder must give features of shape ({num}, {context_dim}) for {num} data, since the "
            f"posterior has context_dim={context_dim}, got {type(features).__name__ if shape is None else tuple(shape)}"
        )
    return features if len(shape) == 2 else features.reshape(num, context_dim)


def unflatten(kind: Any, output: Any, batch: tuple[int, ...]) -> Any:
    """What a decoder gave for rows, with the axes of their batch in front in the place of one axis.

    A part with fewer axes than another, such as one scale for each pixel, is for all rows.

    Raises:
        ValueError: if it is not what the likelihood needs.
    """
    is_tuple = isinstance(output, (tuple, list))
    parts = tuple(output) if is_tuple else (output,)
    if not parts or not all(hasattr(part, "ndim") for part in parts):
        raise ValueError(f"the decoder must give an array, or a tuple of arrays, got {type(output).__name__}")
    if kind == "gaussian" and not (is_tuple and len(parts) == 2):
        raise ValueError(
            "for the likelihood 'gaussian' the decoder must give a pair, the mean and the log of the standard "
            f"deviation, got {f'{len(parts)} arrays' if is_tuple else f'one array of shape {tuple(output.shape)}'}"
        )
    if kind in ("bernoulli", "categorical") and is_tuple:
        raise ValueError(f"for the likelihood {kind!r} the decoder must give one array, got {len(parts)}")
    num_axes, num_rows = max(part.ndim for part in parts), math.prod(batch)
    of_rows = [part.ndim == num_axes > 0 and part.shape[0] == num_rows for part in parts]
    found = tuple(
        part.reshape(*batch, *part.shape[1:]) if each else part for part, each in zip(parts, of_rows, strict=True)
    )
    return found if is_tuple else found[0]


def num_event_axes(likelihood: Any, num_batch_axes: int) -> int:
    """How many axes of a likelihood are those of a datum.

    Raises:
        TypeError: if it is no distribution.
        ValueError: if it has not one part for each row of latents.
    """
    if not hasattr(likelihood, "batch_shape"):
        raise TypeError(f"the likelihood must give a distribution, got {type(likelihood).__name__}")
    num = len(likelihood.batch_shape) - num_batch_axes
    if num < 0:
        raise ValueError(
            f"the decoder must give one row for each row of latents, but the likelihood has the batch shape "
            f"{tuple(likelihood.batch_shape)}"
        )
    return num


def check_output(kind: Any, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raise ValueError unless the likelihood is one of data of this shape."""
    if found != expected:
        hint = "; its last axis counts the categories" if kind == "categorical" else ""
        if math.prod(found) == math.prod(expected):
            hint += "; reshape its output in the decoder, or flatten the data: x.reshape(len(x), -1)"
        raise ValueError(
            f"the decoder gives a likelihood of data of shape {found}, but the data have the shape {expected}{hint}"
        )


def check_ends(first: Any, second: Any) -> None:
    """Raise ValueError unless there are as many second ends as first ones."""
    if len(first) != len(second):
        raise ValueError(f"interpolate: first and second must be equally many, got {len(first)} and {len(second)} data")
