"""Objectives for the SVI of NumPyro, with the names of :mod:`flowppl.pyro.objectives`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.lax import stop_gradient
from numpyro import handlers
from numpyro.infer.elbo import ELBO, Trace_ELBO

from flowppl.checks import check_positive, check_sizes
from flowppl.inference.objectives import (
    check_order,
    check_reparameterised,
    check_simulated,
    common_plates,
    particles_of,
    renyi_loss,
    solves,
    sum_outside,
)
from flowppl.numpyro._host import (
    Messenger,
    check_model_guide_match,
    compute_log_probs,
    get_importance_trace,
)
from flowppl.numpyro.flow import FlowDistribution


class PathELBO(Trace_ELBO):
    r"""The ELBO, its gradient taken along the paths of the draws alone ("sticking the landing").

    The draws are :math:`z = g_\phi(\varepsilon)`. Of the gradient of the ELBO with respect to the guide's parameters
    :math:`\phi` this leaves out the score :math:`\nabla_\phi \log q_\phi(z)`, which is zero in the mean but noisy:

    .. math::
        \nabla_\phi = E\Big[\frac{\partial z}{\partial \phi}\,
            \big(\nabla_z \log p(x, z) - \nabla_z \log q_\phi(z)\big)\Big].

    It vanishes draw by draw where the guide is the posterior, so training does not jitter about a good guide.
    Parameters of the model, and those that model and guide share, keep their gradient through log p. The value is that
    of ``Trace_ELBO``, for which this stands in.

    It costs one more scoring of the guide's own draws: for a flow, one pass of its inverse. Where that is sequential
    (:func:`flowppl.iaf`), :math:`\nabla_z \log q_\phi` is solved for with the D x D Jacobian of the forward map
    instead, in one parallel pass of D times as many events. For D = 10 and 50, and 1 or 10 draws, a step then takes
    1.3 to 4 times as long as with ``Trace_ELBO``.

    Args:
        num_particles: the number of draws in each step; the other arguments are those of ``Trace_ELBO``.

    Raises:
        ValueError: in use, for a site of the guide whose draws are not reparameterised.

    References:
        Roeder, Wu, Duvenaud: Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
        Inference, 2017, arXiv 1703.09194.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI
        >>> from flowppl.numpyro import AutoFlow, PathELBO
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> svi = SVI(model, AutoFlow(model, flow="iaf"), numpyro.optim.ClippedAdam(5e-3), PathELBO())
        >>> result = svi.run(jax.random.key(0), 3, jnp.ones(10), progress_bar=False)
        >>> result.losses.shape
        (3,)
    """

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, *args, **kwargs):
        along_path = _along_path("PathELBO", guide, param_map)
        return super().loss_with_mutable_state(rng_key, param_map, model, along_path, *args, **kwargs)


class RenyiELBO(ELBO):
    r"""Rényi's bound of the order :math:`\alpha`, with doubly reparameterised gradients.

    .. math::
        L_\alpha = \frac{1}{1 - \alpha} \log E\big[w^{1 - \alpha}\big], \qquad w = \frac{p(x, z)}{q_\phi(z)},
        \quad z \sim q_\phi,

    in which the mean is taken over K draws. The bounds of all orders are log p(x) where the guide is the posterior.
    Elsewhere they fall with the order:

    - at 0 it is log p(x) itself, of which K draws give the importance weighted bound
      (:class:`ImportanceWeightedELBO`). Above 0 it lies below: near 1 it is the ELBO, and beyond, the guide keeps to
      where the posterior is high.
    - below 0 it lies above log p(x), and training pushes it down. At -1 it is the chi-square bound: its guide covers
      all that the posterior covers, so that importance weights have a finite variance where they can, and a guide
      with a single peak spans several. The model's parameters have no gradient then.

    The loss is minus a lower bound, or an upper bound itself. Of few draws the mean is too low for :math:`\alpha < 1`
    and too high above, so that an estimate may lie on the wrong side of log p(x). Where guide and posterior are far
    apart one draw has all the weight, the more so the further the order is from 1. Of a guide far narrower than the
    posterior the estimate of an upper bound is too low without limit, so that training may make it narrower still,
    until it collapses: below 0 begin with a wide guide, and take many draws.

    With :math:`\tilde w` the normalised powers of the weights, the gradient with respect to the model's parameters is
    :math:`\sum_k \tilde w_k \nabla \log p(x, z_k)`, and that with respect to the guide's

    .. math::
        \sum_k \big(\alpha \tilde w_k + (1 - \alpha) \tilde w_k^2\big)\, \frac{\partial z_k}{\partial \phi}\,
        \nabla_z \log w_k,

    which is zero draw by draw where the guide is the posterior. The host's ``RenyiELBO`` has the plain gradient.

    Args:
        alpha: the order, any number but 1, that of the ELBO, for which there is :class:`PathELBO`.
        num_particles: K; ``None`` is 16, and 128 for orders below 0.
        vectorize_particles: as for NumPyro's ELBOs.

    Raises:
        ValueError: for an order that is none; in use as :class:`ImportanceWeightedELBO`.

    References:
        Li, Turner: Rényi Divergence Variational Inference, 2016, arXiv 1602.02311. Dieng, Tran, Ranganath, Paisley,
        Blei: Variational Inference via Chi Upper Bound Minimization, 2016, arXiv 1611.00328. Gradient: Tucker, Lawson,
        Gu, Maddison: Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2018, arXiv 1810.04152.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from flowppl.numpyro import RenyiELBO
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> svi = SVI(model, AutoNormal(model), numpyro.optim.ClippedAdam(5e-3), RenyiELBO(alpha=-1))
        >>> result = svi.run(jax.random.key(0), 3, jnp.ones(10), progress_bar=False)
        >>> result.losses.shape
        (3,)
    """

    def __init__(
        self,
        alpha: float = 0.0,
        num_particles: int | None = None,
        vectorize_particles: bool | Callable[..., Any] = True,
    ):
        check_order(alpha)
        num_particles = particles_of(alpha) if num_particles is None else num_particles
        check_sizes(type(self).__name__, num_particles=num_particles)
        super().__init__(num_particles, vectorize_particles)
        self.alpha = alpha

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        plate_key, rng_key = jax.random.split(rng_key)
        # All particles see the same subsample.
        model, guide = (handlers.seed(fn, plate_key, ["sample", "prng_key", "control_flow"]) for fn in (model, guide))
        guide = _along_path(type(self).__name__, guide, param_map)
        held = stop_gradient(param_map)

        def particle(key):
            model_key, guide_key = jax.random.split(key)
            seeded = handlers.seed(model, model_key)
            traces = get_importance_trace(seeded, handlers.seed(guide, guide_key), args, kwargs, held)
            check_model_guide_match(*traces)
            axes, scale = _common_plates(type(self).__name__, *traces)

            def total(log_probs):
                return sum((sum_outside(log_prob, axes) for log_prob in log_probs), start=jnp.zeros(()))

            along = [total(site["log_prob"] for site in _samples(trace)) for trace in traces]
            draws = {site["name"]: stop_gradient(site["value"]) for site in _latents(traces[1])}
            plates = {site["name"]: site["value"] for site in traces[1].values() if site["type"] == "plate"}
            fixed = handlers.substitute(seeded, data=draws | plates)
            log_p, _ = compute_log_probs(fixed, args, kwargs, param_map, sum_log_prob=False)
            return total(log_p.values()), along[0] - along[1], scale

        log_p, log_w, scale = self.vectorize_particles_fn(particle, jax.random.split(rng_key, self.num_particles))
        return renyi_loss(log_p, log_w, log_w, scale[0], self.alpha)


class ImportanceWeightedELBO(RenyiELBO):
    r"""The importance weighted bound on the evidence, with doubly reparameterised gradients.

    .. math::
        E\Big[\log \frac{1}{K} \sum_{k=1}^K w_k\Big], \qquad w_k = \frac{p(x, z_k)}{q_\phi(z_k)}.

    The bound rises to log p(x) as K grows, and a guide trained by it covers more of the posterior than by the ELBO. In
    a plate that encloses all sites, as of the images of a variational autoencoder, each member has a bound of its own,
    and their sum is meant. With :math:`\tilde w` the normalised weights, the gradient with respect to the model's
    parameters is :math:`\sum_k \tilde w_k \nabla \log p(x, z_k)`, and that with respect to the guide's

    .. math::
        \sum_k \tilde w_k^2\, \frac{\partial z_k}{\partial \phi}\, \nabla_z \log w_k,

    whose signal does not drown in noise as K grows, as that of the plain gradient does.

    Args:
        num_particles: K.
        vectorize_particles: as for NumPyro's ELBOs.

    Raises:
        ValueError: in use, for a site of the guide whose draws are not reparameterised, and for a subsampled plate
            that does not enclose all sites: weights of a part of the data bound nothing.

    References:
        Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv 1509.00519.
        Tucker, Lawson, Gu, Maddison: Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2018,
        arXiv 1810.04152.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from flowppl.numpyro import ImportanceWeightedELBO
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> svi = SVI(model, AutoNormal(model), numpyro.optim.ClippedAdam(5e-3), ImportanceWeightedELBO())
        >>> result = svi.run(jax.random.key(0), 3, jnp.ones(10), progress_bar=False)
        >>> result.losses.shape
        (3,)
    """

    def __init__(self, num_particles: int = 16, vectorize_particles: bool | Callable[..., Any] = True):
        super().__init__(0.0, num_particles, vectorize_particles)


class ForwardKL(ELBO):
    r"""Neural posterior estimation: the guide learns from simulations of the model, for all data at once.

    .. math::
        -E_{(z, x) \sim p}\big[\log q_\phi(z \mid x)\big],

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
        num_particles: the number of simulated data sets in each step.
        vectorize_particles: as for NumPyro's ELBOs.

    Raises:
        ValueError: in use, if a site of the guide or of ``data`` is not in the model.

    References:
        Papamakarios, Murray: Fast epsilon-free Inference of Simulation Models with Bayesian Conditional Density
        Estimation, 2016, arXiv 1605.06376.
        Greenberg, Nonnenmacher, Macke: Automatic Posterior Transformation for Likelihood-Free Inference, 2019,
        arXiv 1905.07488.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, flowppl as fp
        >>> from numpyro.infer import SVI
        >>> from flowppl.numpyro import ForwardKL, flow
        >>> def model(x):
        ...     z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        ...     numpyro.sample("x_site", dist.Normal(z, 0.5).to_event(1), obs=x)
        >>> def guide(x):
        ...     numpyro.sample("z", flow("posterior", fp.iaf(2, num_flows=1, context_dim=2))(x))
        >>> svi = SVI(model, guide, numpyro.optim.ClippedAdam(5e-3), ForwardKL({"x": "x_site"}, num_particles=16))
        >>> result = svi.run(jax.random.key(0), 3, x=jnp.zeros(2), progress_bar=False)
        >>> result.losses.shape
        (3,)
    """

    can_infer_discrete = True

    def __init__(
        self, data: dict[str, str], num_particles: int = 1, vectorize_particles: bool | Callable[..., Any] = True
    ):
        check_sizes("ForwardKL", num_particles=num_particles)
        super().__init__(num_particles, vectorize_particles)
        self.data = dict(data)

    def loss(self, rng_key, param_map, model, guide, *args, **kwargs):
        def particle(key):
            model_key, guide_key = jax.random.split(key)
            simulator = handlers.seed(handlers.uncondition(model), model_key)
            drawn = handlers.trace(handlers.substitute(simulator, param_map)).get_trace(*args, **kwargs)
            for site in _samples(drawn):
                site["value"] = stop_gradient(site["value"])
            names = [site["name"] for site in _latents(drawn)]
            check_simulated(self.data, [], names)
            data = {argument: drawn[site]["value"] for argument, site in self.data.items()}
            replayed = handlers.replay(handlers.seed(guide, guide_key), drawn)
            log_q, guide_trace = compute_log_probs(replayed, args, kwargs | data, param_map)
            check_simulated({}, [site["name"] for site in _latents(guide_trace)], names)
            return -sum(log_q.values(), start=jnp.zeros(()))

        return jnp.mean(self.vectorize_particles_fn(particle, jax.random.split(rng_key, self.num_particles)))


def annealed(fn: Callable[..., Any]) -> Callable[..., Any]:
    r"""``fn`` with one more keyword, ``kl_weight=1.0``, that scales the log densities of its latent sites.

    Wrap the model and the guide, and pass the weight to ``svi.update`` with the other arguments. Every ELBO then is

    .. math::
        E_q[\log p(x \mid z)] - \mathrm{kl\_weight} \cdot KL(q \,\|\, p(z)).

    Let the weight rise from near 0 to 1 (:func:`linear_annealing`), so that the latents of an autoencoder are put to
    use before the prior pulls them in, or hold it above 1 for a "beta VAE". Automatic guides are made from the
    model itself, and wrapped after. Models with enumerated latents cannot be annealed.

    Args:
        fn: a model or a guide.

    References:
        Bowman et al.: Generating Sentences from a Continuous Space, 2015, arXiv 1511.06349.
        Higgins et al.: beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, 2017.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import SVI, Trace_ELBO
        >>> from numpyro.infer.autoguide import AutoNormal
        >>> from flowppl.numpyro import annealed, linear_annealing
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> svi = SVI(annealed(model), annealed(AutoNormal(model)), numpyro.optim.ClippedAdam(5e-3), Trace_ELBO())
        >>> state, update = svi.init(jax.random.key(0), jnp.ones(10)), jax.jit(svi.update)
        >>> for step in range(3):
        ...     state, loss = update(state, jnp.ones(10), kl_weight=linear_annealing(step, 1000))
    """

    def weighted(*args, kl_weight=1.0, **kwargs):
        with _KLWeight(kl_weight):
            return fn(*args, **kwargs)

    return weighted


def linear_annealing(step: int | jax.Array, num_steps: int, start: float = 0.0) -> jax.Array:
    """A weight that rises from ``start`` to 1 in ``num_steps`` steps, and stays there.

    Args:
        step: the number of the step, from 0; it may be traced.
        num_steps: the step at which the weight reaches 1.
        start: the weight of step 0.

    Example:
        >>> from flowppl.numpyro import linear_annealing
        >>> [float(linear_annealing(step, 4)) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    check_positive("linear_annealing", num_steps=num_steps)
    return start + (1 - start) * jnp.clip(step / num_steps, 0.0, 1.0)


class _KLWeight(Messenger):
    """Scales the log densities of latent sites."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def process_message(self, msg):
        if msg["type"] == "sample" and not msg["is_observed"]:
            msg["scale"] = self.weight if msg["scale"] is None else self.weight * msg["scale"]


def _along_path(objective, guide, params):
    """A guide that draws as ``guide`` does, and is then scored with its parameters held constant.

    It runs twice with the same randomness: draws of the first run carry their gradients into the second.
    """

    def along_path(*args, **kwargs):
        seeded = handlers.seed(guide, numpyro.prng_key())
        with handlers.block():
            drawn = handlers.trace(handlers.substitute(seeded, params)).get_trace(*args, **kwargs)
        for site in _latents(drawn):
            check_reparameterised(objective, site["name"], site["fn"])
        return _Held(_Replay(seeded, drawn))(*args, **kwargs)

    return along_path


class _Held(Messenger):
    """Gives a function constant parameters; handlers further out see the parameters themselves."""

    def postprocess_message(self, msg):
        if msg["type"] == "param":
            msg["value"] = stop_gradient(msg["value"])


class _Replay(handlers.replay):
    """Replays draws, those of flows whose inverse is sequential together with their base draws."""

    def process_message(self, msg):
        super().process_message(msg)
        fn, drawn = msg.get("fn"), self.trace.get(msg.get("name"))
        if isinstance(fn, FlowDistribution) and drawn and drawn["intermediates"] and solves(fn.transforms[0].bijection):
            ((x, _),) = drawn["intermediates"]
            msg["intermediates"] = [_invert_near(fn.transforms[0], msg["value"], x)]


def _invert_near(transform, y, x):
    """The inverse of y and its log determinant, x being the value of the inverse without its gradient."""
    x = stop_gradient(x)
    y_of_x, pull = jax.vjp(lambda x: transform.forward_and_log_det(x)[0], x)
    unit = jnp.eye(y.shape[-1], dtype=y.dtype).reshape(-1, *(1,) * (y.ndim - 1), y.shape[-1])
    (rows,) = jax.vmap(pull)(jnp.broadcast_to(unit, (len(unit), *y.shape)))
    jacobian = stop_gradient(jnp.moveaxis(rows, 0, -2))
    # A step of Newton's: it has no size, but the gradient of the inverse.
    x = x + jnp.linalg.solve(jacobian, (y - y_of_x)[..., None])[..., 0]
    return x, transform.forward_and_log_det(x)[1]


def _samples(trace):
    return [site for site in trace.values() if site["type"] == "sample"]


def _latents(trace):
    return [site for site in _samples(trace) if not site["is_observed"]]


def _common_plates(objective, *traces):
    stacks = [[(f.name, f.dim, f.size) for f in site["cond_indep_stack"]] for t in traces for site in _samples(t)]
    sizes = {site["name"]: site["args"][0] for t in traces for site in t.values() if site["type"] == "plate"}
    return common_plates(objective, stacks, sizes)
