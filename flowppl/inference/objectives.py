"""What the objectives of both adapters share: their documentation, and what is the same in any array library."""

from __future__ import annotations

import math

from flowppl._arrays.namespace import Array, namespace
from flowppl.bijections.contract import Bijection

PATH_ELBO_DOC = r"""The ELBO, its gradient taken along the paths of the draws alone ("sticking the landing").

    The draws are :math:`z = g_\phi(\varepsilon)`. Of the gradient of the ELBO with respect to the guide's parameters
    :math:`\phi` this leaves out the score :math:`\nabla_\phi \log q_\phi(z)`, which is zero in the mean but noisy:

    .. math::
        \nabla_\phi = E\Big[\frac{{\partial z}}{{\partial \phi}}\,
            \big(\nabla_z \log p(x, z) - \nabla_z \log q_\phi(z)\big)\Big].

    It vanishes draw by draw where the guide is the posterior, so training does not jitter about a good guide.
    Parameters of the model, and those that model and guide share, keep their gradient through log p. The value is that
    of ``Trace_ELBO``, for which this stands in.

    It costs one more scoring of the guide's own draws: for a flow, one pass of its inverse. Where that is sequential
    (:func:`flowppl.iaf`), :math:`\nabla_z \log q_\phi` is solved for with the D x D Jacobian of the forward map
    instead, in one parallel pass of D times as many events. {cost}

    Args:
        num_particles: the number of draws in each step; the other arguments are those of ``Trace_ELBO``.

    Raises:
        ValueError: in use, for a site of the guide whose draws are not reparameterised{raises}.

    References:
        Roeder, Wu, Duvenaud: Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
        Inference, 2017, arXiv 1703.09194.

    Example:{example}"""

IMPORTANCE_WEIGHTED_ELBO_DOC = r"""The importance weighted bound on the evidence, with doubly reparameterised gradients.

    .. math::
        E\Big[\log \frac{{1}}{{K}} \sum_{{k=1}}^K w_k\Big], \qquad w_k = \frac{{p(x, z_k)}}{{q_\phi(z_k)}}.

    The bound rises to log p(x) as K grows, and a guide trained by it covers more of the posterior than by the ELBO. In
    a plate that encloses all sites, as of the images of a variational autoencoder, each member has a bound of its own,
    and their sum is meant. With :math:`\tilde w` the normalised weights, the gradient with respect to the model's
    parameters is :math:`\sum_k \tilde w_k \nabla \log p(x, z_k)`, and that with respect to the guide's

    .. math::
        \sum_k \tilde w_k^2\, \frac{{\partial z_k}}{{\partial \phi}}\, \nabla_{{z}} \log w_k,

    whose signal does not drown in noise as K grows, as that of the plain gradient does.

    Args:
        num_particles: K.{arguments}

    Raises:
        ValueError: in use, for a site of the guide whose draws are not reparameterised, and for a subsampled plate
            that does not enclose all sites: weights of a part of the data bound nothing.

    References:
        Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv 1509.00519.
        Tucker, Lawson, Gu, Maddison: Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2018,
        arXiv 1810.04152.

    Example:{example}"""

FORWARD_KL_DOC = r"""Neural posterior estimation: the guide learns from simulations of the model, for all data at once.

    .. math::
        -E_{{(z, x) \sim p}}\big[\log q_\phi(z \mid x)\big],

    which is, up to a constant, the mean over data sets x of KL(p(z | x) || q(z | x)): a guide so trained covers the
    posterior, and serves any x at no further cost. In each step the model draws latents and data, whatever it was
    conditioned on, and the guide scores these latents, given these data. Neither densities nor gradients of the model
    are needed, so a simulator will do; its parameters are not trained.

    The guide gets its data as it does elsewhere, from the arguments it shares with the model. In its call here the
    arguments that ``data`` names are replaced by the draws of these sites, so pass them to ``SVI`` by keyword. What is
    passed matters only where the model reads sizes off it.

    The guide may leave latents of the model out: they are integrated over. On simulations that are there already,
    ``fit_density`` of a flow does the same, with the latents as ``x`` and the data as ``context``.

    Args:
        data: for each keyword argument that carries data, the name of the site that it is the data of.
        num_particles: the number of simulated data sets in each step.{arguments}

    Raises:
        ValueError: in use, if a site of the guide or of ``data`` is not in the model.

    References:
        Papamakarios, Murray: Fast epsilon-free Inference of Simulation Models with Bayesian Conditional Density
        Estimation, 2016, arXiv 1605.06376.
        Greenberg, Nonnenmacher, Macke: Automatic Posterior Transformation for Likelihood-Free Inference, 2019,
        arXiv 1905.07488.

    Example:{example}"""

ANNEALED_DOC = """``fn`` with one more keyword, ``kl_weight=1.0``, that scales the log densities of its latent sites.

    Wrap the model and the guide, and pass the weight to ``{step}`` with the other arguments. Every ELBO then is

    .. math::
        E_q[\\log p(x \\mid z)] - \\mathrm{{kl\\_weight}} \\cdot KL(q \\,\\|\\, p(z)).

    Let the weight rise from near 0 to 1 (:func:`linear_annealing`), so that the latents of an autoencoder are put to
    use before the prior pulls them in, or hold it above 1 for a "beta VAE". Automatic guides are made from the
    model itself, and wrapped after. Models with enumerated latents cannot be annealed.

    Args:
        fn: a model or a guide.

    References:
        Bowman et al.: Generating Sentences from a Continuous Space, 2015, arXiv 1511.06349.
        Higgins et al.: beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, 2017.

    Example:{example}"""

LINEAR_ANNEALING_DOC = """A weight that rises from ``start`` to 1 in ``num_steps`` steps, and stays there.

    Args:
        step: the number of the step, from 0{step}.
        num_steps: the step at which the weight reaches 1.
        start: the weight of step 0.

    Example:
        >>> from flowppl.{package} import linear_annealing
        >>> [float(linear_annealing(step, 4)) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """


def importance_weighted(log_p: Array, log_w: Array, path: Array, scale: float) -> tuple[Array, Array]:
    """The bound of K draws, and what has its doubly reparameterised gradient; particles are the first axis.

    Args:
        log_p: the log density of the model, whose gradient reaches the model's parameters alone.
        log_w: the log weights, of any gradient.
        path: anything that has the gradient of the log weights along the paths of the draws.
        scale: the factor by which all three were scaled for subsampling.
    """
    xp = namespace(log_w)
    log_w = xp.stop_gradient(log_w) / scale
    log_sum = xp.logsumexp(log_w)
    weight = xp.exp(log_w - log_sum)
    return scale * xp.sum(log_sum - math.log(len(log_w))), xp.sum(weight * log_p + weight**2 * path)


def common_plates(stacks, sizes) -> tuple[set[int], float]:
    """The axes of the plates that enclose all sites, and the factor by which these are subsampled.

    Args:
        stacks: for each site its plates as (name, axis, size).
        sizes: the full size of each plate by its name.

    Raises:
        ValueError: if a plate that does not enclose all sites is subsampled.
    """
    stacks = [set(stack) for stack in stacks]
    common = set.intersection(*stacks) if stacks else set()
    for name, _, size in set.union(*stacks, set()) - common:
        if sizes[name] > size:
            raise ValueError(
                f"ImportanceWeightedELBO: plate {name!r} is subsampled but does not enclose all sites: the weights "
                "of global latents need all data. Do not subsample, or use PathELBO"
            )
    return {axis for _, axis, _ in common}, math.prod(sizes[name] / size for name, _, size in common)


def sum_outside(log_prob: Array, axes: set[int]) -> Array:
    """Sum over all axes but these, counted from the right; the summed ones stay, with size 1."""
    others = tuple(axis for axis in range(-log_prob.ndim, 0) if axis not in axes)
    return namespace(log_prob).sum(log_prob, axis=others, keepdims=True) if others else log_prob


def solves(bijection: Bijection) -> bool:
    """Whether the inverse near a known point is better solved for with the Jacobian than run: it is sequential."""
    return bijection.inverse_cost == "sequential" and len(bijection.x_shape) == len(bijection.y_shape) == 1


def check_reparameterised(objective: str, site: str, fn) -> None:
    """Raise ValueError unless the draws of ``fn`` carry gradients to its parameters."""
    if not getattr(fn, "has_rsample", False):
        raise ValueError(
            f"{objective} needs reparameterised guides, but site {site!r} draws from {type(fn).__name__}, whose draws "
            "carry no gradient; sum discrete latents out, or use an ELBO with score-function gradients"
        )


def check_simulated(data: dict[str, str], guide_sites, model_sites) -> None:
    """Raise ValueError unless the model draws all that the guide scores and is given."""
    for what, names in (("the data", data.values()), ("the guide", guide_sites)):
        missing = sorted(set(names) - set(model_sites))
        if missing:
            raise ValueError(
                f"ForwardKL: {what} has the site {missing[0]!r}, which the model does not draw; it draws "
                f"{', '.join(model_sites) or 'nothing'}. Name the model's sites, with no auxiliary ones"
            )
