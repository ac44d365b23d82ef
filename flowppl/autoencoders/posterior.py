"""The posterior of a variational autoencoder: a base whose mean and scale depend on the data, and a flow that does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from flowppl.bijections.combine import Chain
from flowppl.bijections.conditional import Conditional
from flowppl.bijections.contract import Bijection
from flowppl.bijections.elementwise import Elementwise
from flowppl.bijections.image.squeeze import Reshape
from flowppl.bijections.linear import ElementwiseAffine
from flowppl.checks import as_shape, check_sizes
from flowppl.networks import as_dims
from flowppl.recipes import make_flow
from flowppl.univariate.base import Affine


def amortized_posterior(
    dim: int | Sequence[int],
    context_dim: int,
    flow: str | Callable[..., Bijection] | None = "sylvester",
    num_flows: int | None = None,
    *,
    hidden_dims: int | Sequence[int] = (),
    scale_bounds: tuple[float, float] | None = None,
    **options: Any,
) -> Bijection:
    r"""The posterior of latents given features of the data: what an encoder of a variational autoencoder needs.

    With features h, noise :math:`\varepsilon`, and the flow f, the latents z are

    .. math::
        z_0 = \mu(h) + \sigma(h) \odot \varepsilon, \quad \varepsilon \sim N(0, I), \qquad z = f(z_0;\, h),

    where the mean :math:`\mu` and the scale :math:`\sigma > 0` have the shape of z, and :math:`\odot` multiplies
    their elements in pairs.

    For planar, radial, Sylvester and Householder flows one linear head on h makes :math:`\mu`, :math:`\sigma` and all
    parameters of f. Other flows have networks, each of which is given h beside its own input. At the start z is
    :math:`\varepsilon`, whatever h.

    Args:
        dim: the number of latents; or their shape, such as that of an image, for a flow of such events: "glow_image" or
            "realnvp_image" with ``alpha=None``, which leaves out the logit layer, or ``flowppl.ImageAutoregressive``,
            the convolutional IAF.
        context_dim: the number of features.
        flow: a name of :func:`flowppl.available_flows`; a recipe, called as ``flow(dim, context_dim=..., **options)``;
            or ``None`` for no flow, the Gaussian of a plain autoencoder.
        num_flows: the number of layers; ``None`` leaves it to the recipe.
        hidden_dims: the widths of hidden layers between the features and the head; an int means one layer, and ``()``,
            the default, one linear head.
        scale_bounds: the least and the largest :math:`\sigma`, below and above 1, never quite reached; ``None`` for any
            positive one. Of few data a decoder that sees latents without noise learns each by heart, which a least
            scale prevents.
        options: further arguments of the recipe.

    Raises:
        ValueError: for an unknown flow, a size below 1, or bounds that are not below and above 1.
        TypeError: for an option that the recipe does not know, or a flow that is neither a name nor a recipe.

    References:
        van den Berg, Hasenclever, Tomczak, Welling: Sylvester Normalizing Flows for Variational Inference, 2018, arXiv
        1803.05649. Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling: Improving Variational Inference with Inverse
        Autoregressive Flow, 2016, arXiv 1606.04934. Tomczak, Welling: Improving Variational Auto-Encoders using
        Householder Flow, 2016, arXiv 1611.09630.

    Example:
        >>> import flowppl as fp
        >>> posterior = fp.amortized_posterior(8, context_dim=32, flow="iaf", num_flows=2)
        >>> posterior.x_shape, posterior.context_dim
        ((8,), 32)
    """
    check_sizes("amortized_posterior", context_dim=context_dim)
    widths = as_dims("amortized_posterior", hidden_dims)
    size: Any = dim
    if isinstance(size, Sequence) and not isinstance(size, str):
        size = as_shape("amortized_posterior", dim=size)
        num = math.prod(size)
        base: Bijection = Chain([_base(num, scale_bounds), Reshape((num,), size)])
    else:
        check_sizes("amortized_posterior", dim=size)
        base = _base(size, scale_bounds)
    if num_flows is not None:
        options["num_flows"] = num_flows
    if flow is None:
        if options:
            raise TypeError(f"amortized_posterior: without a flow there is no use for {', '.join(options)}")
        return Conditional(base, context_dim, widths)
    if not isinstance(flow, str) and not callable(flow):
        raise TypeError(
            "amortized_posterior: flow must be a name, a recipe such as flowppl.iaf, or None, got "
            f"{type(flow).__name__}; a bijection that is made already is a posterior itself, if it takes a context"
        )
    options["context_dim"] = context_dim
    inner = make_flow(flow, size, **options) if isinstance(flow, str) else flow(size, **options)
    if isinstance(inner, Conditional):  # a flow of few weights, all made from the context: one head makes the base, too
        return Conditional(Chain([base, inner.bijection]), context_dim, widths)
    return Chain([Conditional(base, context_dim, widths), inner])


def _base(dim, scale_bounds) -> Bijection:
    if scale_bounds is None:
        return ElementwiseAffine(dim)
    try:
        low, high = map(float, scale_bounds)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 < low < 1 < high < math.inf:
        raise ValueError(
            "amortized_posterior: scale_bounds must be a positive number below 1 and a finite one above, got "
            f"{scale_bounds!r}"
        )
    return Elementwise(dim, Affine((math.log(low), math.log(high))))
