"""What autoencoders of several levels of latents share: whether their parts fit together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from flowppl.autoencoders.model import check_likelihood, check_networks
from flowppl.bijections.contract import REAL_LINE, Bijection, check_bijection, check_standard_base


def check_levels(encoders: Any, decoders: Any, posteriors: Any, priors: Any, likelihood: Any, top_down: bool) -> None:
    """Raise an error unless these can be the parts of one autoencoder of several levels."""
    parts = {"encoders": encoders, "decoders": decoders, "posteriors": posteriors, "priors": priors}
    for name, part in parts.items():
        if isinstance(part, (str, Bijection)) or not isinstance(part, Sequence):
            raise TypeError(
                f"HierarchicalVAE: {name} must be a list with one entry for each level, from the data upwards, got "
                f"{type(part).__name__}"
            )
    if len(set(map(len, parts.values()))) > 1 or not len(encoders):
        found = ", ".join(f"{len(part)} {name}" for name, part in parts.items())
        raise ValueError(f"HierarchicalVAE: each list must have one entry for each level, got {found}")
    for name in ("encoders", "decoders"):
        check_networks("HierarchicalVAE", **{f"{name}[{level}]": network for level, network in enumerate(parts[name])})
    for level, (posterior, prior) in enumerate(zip(posteriors, priors, strict=True)):
        _check_level(level, posterior, prior, level == len(priors) - 1, top_down)
    check_likelihood("HierarchicalVAE", likelihood)


def _check_level(level, posterior, prior, is_top, top_down):
    check_bijection(posterior)
    check_standard_base(posterior)
    if not posterior.context_dim or posterior.y_support != REAL_LINE:
        raise ValueError(
            f"HierarchicalVAE: posteriors[{level}] must depend on features, by context_dim, and map to all real "
            "numbers, such as flowppl.amortized_posterior(dim, context_dim)"
        )
    if prior is None:
        if not is_top:
            raise ValueError(
                f"HierarchicalVAE: priors[{level}] must be a flow that depends on the level above it, such as "
                "flowppl.amortized_posterior(dim, context_dim, None); only the prior of the last level may be None"
            )
        return
    check_bijection(prior)
    check_standard_base(prior)
    if bool(prior.context_dim) == is_top or prior.y_support != REAL_LINE:
        what = "takes no context, since nothing is above it" if is_top else "depends on the level above it"
        raise ValueError(f"HierarchicalVAE: priors[{level}] must be a flow of all real numbers that {what}")
    side = prior.x_shape if top_down else prior.y_shape
    if side != posterior.y_shape:
        raise ValueError(
            f"HierarchicalVAE: posteriors[{level}] gives the shape {posterior.y_shape}, but priors[{level}] has the "
            f"shape {side}"
        )


def check_context(owner: str, flow: Bijection, **sizes: int) -> None:
    """Raise ValueError unless these numbers of features, by where they come from, add up to the context of a flow."""
    total = sum(sizes.values())
    if total != flow.context_dim:
        given = " and ".join(f"{size} from the {name}" for name, size in sizes.items())
        raise ValueError(
            f"HierarchicalVAE: {owner} has context_dim={flow.context_dim}, but gets {given}; give it "
            f"context_dim={total}"
        )


def check_rows(part: str, output: Any, num: int) -> None:
    """Raise ValueError unless a network gave an array with one row for each of so many."""
    shape = getattr(output, "shape", None)
    if not shape or shape[0] != num:
        raise ValueError(
            f"the {part} must give an array with one row for each of {num}, got "
            f"{type(output).__name__ if shape is None else f'the shape {tuple(shape)}'}"
        )


def offsets(shapes: Sequence[tuple[int, ...]]) -> list[slice]:
    """Where the numbers of each level lie in a vector of all."""
    ends = [0]
    for shape in shapes:
        ends.append(ends[-1] + math.prod(shape))
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def as_tuple(latents: Any) -> tuple[Any, ...]:
    """The latents of all levels, also where there is one."""
    return latents if isinstance(latents, tuple) else (latents,)


def check_upper(upper: Any, kind: type, downscale: Any) -> None:
    """Raise TypeError unless these are an autoencoder of the adapter, and a function."""
    if not isinstance(upper, kind):
        raise TypeError(f"SelfSupervisedVAE: upper must be an autoencoder, such as a FlowVAE, got {upper!r:.80}")
    if not callable(downscale):
        raise TypeError(f"SelfSupervisedVAE: downscale must be a function, got {type(downscale).__name__}")


def check_smaller(y: Any, num: int) -> None:
    """Raise ValueError unless there is a smaller datum for each of so many."""
    shape = getattr(y, "shape", None)
    if not shape or shape[0] != num:
        raise ValueError(
            f"SelfSupervisedVAE: downscale must give an array with one row for each of {num} data, got "
            f"{type(y).__name__ if shape is None else f'the shape {tuple(shape)}'}"
        )
