"""Objectives for the SVI of Pyro, with the names of :mod:`flowppl.numpyro.objectives`."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.elbo import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites, site_is_subsample

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
from flowppl.pyro._host import (
    get_importance_trace,
    is_validation_enabled,
    sum_rightmost,
    torch_item,
    warn_if_nan,
)
from flowppl.pyro.flow import FlowDistribution


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
    instead, in one parallel pass of D times as many events. For D = 10 and 50, and 1 or 10 draws, a step then takes 2
    to 3 times as long as with ``Trace_ELBO``. The guide runs twice, so randomness other than its sample sites, such as
    dropout, is refused.

    Args:
        num_particles: the number of draws in each step; the other arguments are those of ``Trace_ELBO``.

    Raises:
        ValueError: in use, for a site of the guide whose draws are not reparameterised, or a guide that scores its
            draws differently in a second run.

    References:
        Roeder, Wu, Duvenaud: Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
        Inference, 2017, arXiv 1703.09194.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from flowppl.pyro import AutoFlow, PathELBO
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> svi = SVI(model, AutoFlow(model, flow="iaf"), pyro.optim.ClippedAdam({"lr": 5e-3}), PathELBO())
        >>> losses = [svi.step(torch.ones(10)) for _ in range(3)]
    """

    def __init__(self, num_particles: int = 1, max_plate_nesting: float = math.inf, **options: Any) -> None:
        super().__init__(num_particles, max_plate_nesting, **options)

    def _get_trace(self, model, guide, args, kwargs):
        with _Draws() as draws:
            model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        latents = _latents("PathELBO", _samples(guide_trace))
        if latents and torch.is_grad_enabled():
            replay = _Replay(draws.sites, latents)
            again = poutine.block(poutine.trace(replay(guide)).get_trace)(*args, **kwargs)
            again.compute_log_prob(lambda name, _: name in latents)
            log_q = sum(again.nodes[name]["log_prob_sum"] for name in latents)
            _check_same(sum(guide_trace.nodes[name]["log_prob_sum"] for name in latents), log_q)
            for name, slope in replay.slopes(log_q).items():
                # The host takes the value of its loss from log_prob, and its gradient from minus the last part.
                site = guide_trace.nodes[name]
                site["score_parts"] = site["score_parts"]._replace(entropy_term=slope * site["value"])
        return model_trace, guide_trace


class _Differentiable(ELBO):
    """An objective given by ``differentiable_loss``."""

    @abc.abstractmethod
    def differentiable_loss(self, model, guide, *args, **kwargs) -> torch.Tensor:
        """The loss, a tensor with the gradient of this objective."""

    def loss(self, model, guide, *args, **kwargs):
        """The loss, a number."""
        with torch.no_grad():
            return torch_item(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model, guide, *args, **kwargs):
        """The loss, a number; its gradient is added to that of the parameters."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return torch_item(loss)


class RenyiELBO(_Differentiable):
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
        max_plate_nesting: as for Pyro's ELBOs.
        vectorize_particles: as for Pyro's ELBOs.

    Raises:
        ValueError: for an order that is none; in use as :class:`ImportanceWeightedELBO`.

    References:
        Li, Turner: Rényi Divergence Variational Inference, 2016, arXiv 1602.02311. Dieng, Tran, Ranganath, Paisley,
        Blei: Variational Inference via Chi Upper Bound Minimization, 2016, arXiv 1611.00328. Gradient: Tucker, Lawson,
        Gu, Maddison: Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2018, arXiv 1810.04152.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from flowppl.pyro import RenyiELBO
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> loss = RenyiELBO(alpha=-1, vectorize_particles=True)
        >>> svi = SVI(model, AutoNormal(model), pyro.optim.ClippedAdam({"lr": 5e-3}), loss)
        >>> losses = [svi.step(torch.ones(10)) for _ in range(3)]
    """

    def __init__(
        self,
        alpha: float = 0.0,
        num_particles: int | None = None,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = False,
    ):
        check_order(alpha)
        num_particles = particles_of(alpha) if num_particles is None else num_particles
        check_sizes(type(self).__name__, num_particles=num_particles)
        super().__init__(num_particles, max_plate_nesting, vectorize_particles=vectorize_particles)
        self.alpha = alpha

    def _get_trace(self, model, guide, args, kwargs):
        draws = _Draws()
        poutine.block(draws(guide))(*args, **kwargs)
        latents = _latents(type(self).__name__, draws.sites.values())
        replay = _Replay(draws.sites, latents)
        traces = get_importance_trace("flat", self.max_plate_nesting, model, replay(guide), args, kwargs)
        if latents and torch.is_grad_enabled():
            log_p, log_q = (trace.log_prob_sum() for trace in traces)
            for name, slope in replay.slopes(log_p - log_q).items():
                site = traces[1].nodes[name]
                site["path"] = sum_rightmost(slope * draws.sites[name]["value"], site["fn"].event_dim)
        return traces

    def differentiable_loss(self, model, guide, *args, **kwargs):
        vectorized = self.vectorize_particles and self.num_particles > 1

        def terms(model_trace, guide_trace):
            all_sites, latent = _samples(model_trace), _samples(guide_trace)
            axes, scale = _common_plates(type(self).__name__, [*all_sites, *latent])

            def total(sites, part, start=0.0):
                return sum((sum_outside(site[part], axes) for site in sites if part in site), start=start)

            log_p = total(all_sites, "log_prob")
            log_w = log_p - total(latent, "log_prob")
            return log_p, log_w, total(latent, "path", torch.zeros_like(log_w)), scale

        once = _SameSubsample()
        particles = [terms(*traces) for traces in self._get_traces(once(model), once(guide), args, kwargs)]
        *columns, scales = zip(*particles, strict=True)
        if vectorized:
            log_p, log_w, path = (column[0].movedim(-self.max_plate_nesting, 0) for column in columns)
        else:
            log_p, log_w, path = map(torch.stack, columns)
        loss = renyi_loss(log_p, log_w, path, scales[0], self.alpha)
        warn_if_nan(loss, "loss")
        return loss


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
        max_plate_nesting: as for Pyro's ELBOs.
        vectorize_particles: as for Pyro's ELBOs.

    Raises:
        ValueError: in use, for a site of the guide whose draws are not reparameterised, and for a subsampled plate
            that does not enclose all sites: weights of a part of the data bound nothing.

    References:
        Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv 1509.00519.
        Tucker, Lawson, Gu, Maddison: Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, 2018,
        arXiv 1810.04152.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from flowppl.pyro import ImportanceWeightedELBO
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> loss = ImportanceWeightedELBO(vectorize_particles=True)
        >>> svi = SVI(model, AutoNormal(model), pyro.optim.ClippedAdam({"lr": 5e-3}), loss)
        >>> losses = [svi.step(torch.ones(10)) for _ in range(3)]
    """

    def __init__(self, num_particles: int = 16, max_plate_nesting: float = math.inf, vectorize_particles: bool = False):
        super().__init__(0.0, num_particles, max_plate_nesting, vectorize_particles)


class ForwardKL(_Differentiable):
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
        max_plate_nesting: as for Pyro's ELBOs.
        vectorize_particles: as for Pyro's ELBOs.

    Raises:
        ValueError: in use, if a site of the guide or of ``data`` is not in the model.

    References:
        Papamakarios, Murray: Fast epsilon-free Inference of Simulation Models with Bayesian Conditional Density
        Estimation, 2016, arXiv 1605.06376.
        Greenberg, Nonnenmacher, Macke: Automatic Posterior Transformation for Likelihood-Free Inference, 2019,
        arXiv 1905.07488.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, flowppl as fp
        >>> from pyro.infer import SVI
        >>> from flowppl.pyro import Flow, ForwardKL
        >>> flow = Flow(fp.iaf(2, num_flows=1, context_dim=2))
        >>> def model(x):
        ...     z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...     pyro.sample("x_site", dist.Normal(z, 0.5).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("posterior", flow)
        ...     pyro.sample("z", flow(x))
        >>> loss = ForwardKL({"x": "x_site"}, num_particles=16, vectorize_particles=True)
        >>> svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 5e-3}), loss)
        >>> losses = [svi.step(x=torch.zeros(2)) for _ in range(3)]
    """

    def __init__(
        self,
        data: dict[str, str],
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = False,
    ):
        check_sizes("ForwardKL", num_particles=num_particles)
        super().__init__(num_particles, max_plate_nesting, vectorize_particles=vectorize_particles)
        self.data = dict(data)

    def _get_trace(self, model, guide, args, kwargs):
        simulator = poutine.block(poutine.trace(poutine.uncondition(model)).get_trace)
        with torch.no_grad():
            drawn = simulator(*args, **kwargs)
        names = [site["name"] for site in _samples(drawn)]
        check_simulated(self.data, [], names)
        data = {argument: drawn.nodes[site]["value"] for argument, site in self.data.items()}
        guide_trace = poutine.trace(poutine.replay(guide, drawn)).get_trace(*args, **kwargs | data)
        check_simulated({}, [site["name"] for site in _samples(guide_trace)], names)
        return drawn, prune_subsample_sites(guide_trace)

    def differentiable_loss(self, model, guide, *args, **kwargs):
        traces = self._get_traces(model, guide, args, kwargs)
        loss = -sum(guide_trace.log_prob_sum() for _, guide_trace in traces) / self.num_particles
        warn_if_nan(loss, "loss")
        return loss


def annealed(fn: Callable[..., Any]) -> Callable[..., Any]:
    r"""``fn`` with one more keyword, ``kl_weight=1.0``, that scales the log densities of its latent sites.

    Wrap the model and the guide, and pass the weight to ``svi.step`` with the other arguments. Every ELBO then is

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
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from flowppl.pyro import annealed, linear_annealing
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> svi = SVI(annealed(model), annealed(AutoNormal(model)), pyro.optim.ClippedAdam({"lr": 5e-3}), Trace_ELBO())
        >>> for step in range(3):
        ...     loss = svi.step(torch.ones(10), kl_weight=linear_annealing(step, 1000))
    """

    def weighted(*args, kl_weight=1.0, **kwargs):
        with _KLWeight(kl_weight):
            return fn(*args, **kwargs)

    return weighted


def linear_annealing(step: int, num_steps: int, start: float = 0.0) -> float:
    """A weight that rises from ``start`` to 1 in ``num_steps`` steps, and stays there.

    Args:
        step: the number of the step, from 0.
        num_steps: the step at which the weight reaches 1.
        start: the weight of step 0.

    Example:
        >>> from flowppl.pyro import linear_annealing
        >>> [float(linear_annealing(step, 4)) for step in (0, 1, 4, 9)]
        [0.0, 0.25, 1.0, 1.0]
    """
    check_positive("linear_annealing", num_steps=num_steps)
    return start + (1 - start) * min(max(step / num_steps, 0.0), 1.0)


class _KLWeight(Messenger):
    """Scales the log densities of latent sites."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg):
        if not msg["is_observed"]:
            msg["scale"] = self.weight * msg["scale"]


class _SameSubsample(Messenger):
    """Gives functions the same subsamples whenever they run."""

    def __init__(self):
        super().__init__()
        self.values = {}

    def _pyro_sample(self, msg):
        if site_is_subsample(msg) and msg["name"] in self.values:
            msg["done"] = True
            msg["value"] = self.values[msg["name"]]

    def _pyro_post_sample(self, msg):
        if site_is_subsample(msg):
            self.values[msg["name"]] = msg["value"]


class _Draws(Messenger):
    """Keeps the sites that a guide draws, those of flows with their base draws."""

    def __init__(self):
        super().__init__()
        self.sites = {}

    def _pyro_post_sample(self, msg):
        if msg["name"] not in self.sites:  # the guide is run first, the model after it
            self.sites[msg["name"]] = msg.copy()
            if isinstance(msg["fn"], FlowDistribution) and msg["fn"]._last is not None:
                self.sites[msg["name"]]["base_draw"] = msg["fn"]._last[3]


class _Replay(Messenger):
    """Replays draws, those of latents as fresh leaves: so gradients with respect to single draws can be asked for.

    This holds constant all that the draws depend on, in whatever way parameters reach the guide.
    """

    def __init__(self, sites, latents):
        super().__init__()
        self.sites = sites
        self.leaves = {name: sites[name]["value"].detach().requires_grad_() for name in latents}

    def _pyro_sample(self, msg):
        name = msg["name"]
        if name in self.sites and not msg["is_observed"]:
            msg["done"] = True
            msg["value"] = self.leaves.get(name, self.sites[name]["value"])

    def _pyro_post_sample(self, msg):
        base_draw = self.sites.get(msg["name"], {}).get("base_draw")
        if base_draw is not None and solves(msg["fn"].transforms[0].bijection):
            _solve_inverse(msg["fn"], msg["value"], base_draw)

    def slopes(self, total):
        """The derivatives of ``total`` in each latent draw."""
        if not total.requires_grad:  # a guide of point masses
            return {name: torch.zeros_like(leaf) for name, leaf in self.leaves.items()}
        slopes = torch.autograd.grad(total, list(self.leaves.values()), retain_graph=True, materialize_grads=True)
        return dict(zip(self.leaves, slopes, strict=True))


def _solve_inverse(flow, y, x):
    """Let ``flow`` know the inverse of y for its next ``log_prob``, x being its value without its gradient."""
    transform, size = flow.transforms[0], y.shape[-1]
    x = x.detach()
    rows = x.expand(size, *x.shape).clone().requires_grad_()
    unit = torch.eye(size).to(y).reshape(size, *(1,) * (y.ndim - 1), size).expand_as(rows)
    with torch.enable_grad():
        (jacobian,) = torch.autograd.grad(transform(rows), rows, unit)
    # A step of Newton's: it has no size, but the gradient of the inverse.
    step = torch.linalg.solve(jacobian.movedim(0, -2), (y - transform(x))[..., None])[..., 0]
    x = x + step
    flow._last = (y, y._version, torch.is_grad_enabled(), x, transform.forward_and_log_det(x)[1])


def _samples(trace):
    return [site for site in trace.nodes.values() if site["type"] == "sample" and not site_is_subsample(site)]


def _latents(objective, sites):
    """The names of the latent sites among these; all must be reparameterised."""
    latents = [site for site in sites if not (site["is_observed"] or site_is_subsample(site))]
    for site in latents:
        check_reparameterised(objective, site["name"], site["fn"])
    return [site["name"] for site in latents]


def _common_plates(objective, sites):
    frames = [list(site["cond_indep_stack"]) for site in sites]
    sizes = {frame.name: frame.full_size or frame.size for stack in frames for frame in stack}
    return common_plates(
        objective, [[(frame.name, frame.dim, frame.size) for frame in stack] for stack in frames], sizes
    )


def _check_same(first, second):
    """Raise ValueError if the same draws had different densities in two runs of a guide."""
    if is_validation_enabled() and not torch.allclose(first, second, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ValueError(
            f"PathELBO: the guide scored the same draws by {first.item():.6g} and then by {second.item():.6g}. Either "
            "it uses randomness other than its sample sites, such as dropout: switch that off, or use Trace_ELBO. Or "
            "its inverse lost precision: use float64"
        )
