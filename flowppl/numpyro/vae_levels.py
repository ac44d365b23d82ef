"""Variational autoencoders of several levels of latents in NumPyro."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro

from flowppl.autoencoders.checkpoints import describe
from flowppl.autoencoders.data import as_data
from flowppl.autoencoders.levels import check_context, check_levels, check_rows, offsets
from flowppl.autoencoders.model import named, unflatten
from flowppl.bijections.contract import Bijection
from flowppl.inference.losses import standard_log_prob
from flowppl.numpyro.autoencoder import Autoencoder, network_of
from flowppl.numpyro.flow import FlowDistribution, flow, standard_normal
from flowppl.numpyro.transforms import FlowTransform


@dataclasses.dataclass(frozen=True, eq=False)
class HierarchicalVAE(Autoencoder):
    r"""A variational autoencoder with several levels of latents, each the parent of the one below it.

    Level 1 is next to the data, level L is the top. The model draws from the top, where the decoder of each level gives
    what the prior of the level below depends on, and that of level 1 what the likelihood needs:

    .. math::
        z_L \sim p(z_L), \qquad t_l = \mathrm{decoder}_{l+1}(z_{l+1}), \quad z_l \sim p(z_l \mid t_l), \qquad
        x \sim p(x \mid \mathrm{decoder}_1(z_1)) .

    The posterior goes the same way, ``top_down``. Features :math:`h_l` of the data x are made first, from level to
    level. Then a flow :math:`g_l`, given the features and what is known from above, maps standard normal noise
    :math:`\varepsilon_l` to noise of the prior, which the flow :math:`f_l` of the prior maps to the latents:

    .. math::
        h_0 = x, \quad h_l = \mathrm{encoder}_l(h_{l-1}), \qquad
        z_l = f_l\big(g_l(\varepsilon_l;\, h_l, t_l);\, t_l\big).

    So the posterior of each level is told relative to its prior, is the prior at the start, and its part of the KL term
    is :math:`\log N(\varepsilon_l) - \log|\det g_l'| - \log N(u_l)`, with the density N of the standard normal and
    :math:`u_l = g_l(\varepsilon_l; \cdot)`: no inverse of a prior is taken. With ``top_down=False`` the posterior
    goes from the data upwards instead, and each level knows only the one below it:

    .. math::
        z_0 = x, \qquad z_l = g_l\big(\varepsilon_l;\, \mathrm{encoder}_l(z_{l-1})\big).

    The latents near the top are then used less. All else is as for :class:`FlowVAE`: ``model`` and ``guide`` are for
    NumPyro's ``SVI``, :func:`fit_vae` trains and :func:`evaluate_vae` judges.

    It holds no trained weights: see :class:`FlowVAE`. The parts of level 1 have the names ``encoder1``, ``decoder1``,
    ``posterior1`` and ``prior1`` there.

    Args:
        encoders: a network for each level, the first that of level 1: from data, ``(n, *shape)``, or from what the
            encoder before it gave (``top_down=False``: from the latents of the level below), to features, with n in
            front.
        decoders: a network for each level: the first from the latents of level 1 to what the likelihood needs, the
            others from the latents of their level to features for the prior of the level below.
        posteriors: a flow for each level, given its features and those from above, in this order: ``context_dim`` is
            the sum of their numbers. At the top, or where ``top_down`` is false, it is given its features only.
        priors: a flow for each level, given the features from above; such as
            ``flowppl.amortized_posterior(dim, context_dim, None)``, a Gaussian. The last one takes no context;
            ``None`` is the standard normal.
        likelihood: as for :class:`FlowVAE`.
        top_down: the direction of the posterior.

    Raises:
        ValueError: for lists of different lengths, flows whose shapes do not fit, or an unknown likelihood; in use, for
            features of another number than a flow takes.
        TypeError: if a list is none, a flow is no flow, or a network cannot be called.

    References:
        Sonderby, Raiko, Maaloe, Sonderby, Winther: Ladder Variational Autoencoders, 2016, arXiv 1602.02282. A posterior
        relative to the prior: Vahdat, Kautz: NVAE: A Deep Hierarchical Variational Autoencoder, 2020, arXiv 2007.03898.
        Upwards: Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2015, arXiv 1509.00519.

    Example:
        >>> import jax, jax.numpy as jnp, flowppl as fp
        >>> from flax import nnx
        >>> from flowppl.numpyro import HierarchicalVAE
        >>> rngs = nnx.Rngs(0)
        >>> vae = HierarchicalVAE(
        ...     encoders=[nnx.Linear(9, 16, rngs=rngs), nnx.Linear(16, 16, rngs=rngs)],
        ...     decoders=[nnx.Linear(4, 9, rngs=rngs), nnx.Linear(2, 8, rngs=rngs)],
        ...     posteriors=[fp.amortized_posterior(4, 16 + 8, None), fp.amortized_posterior(2, 16, None)],
        ...     priors=[fp.amortized_posterior(4, 8, None), None],
        ... )
        >>> params = vae.init(jax.random.key(0), jnp.ones((5, 9)))
        >>> [z.shape for z in vae.encode(jax.random.key(1), params, jnp.ones((5, 9)))]
        [(1, 5, 4), (1, 5, 2)]
    """

    encoders: Sequence[Callable[..., Any]]
    decoders: Sequence[Callable[..., Any]]
    posteriors: Sequence[Bijection]
    priors: Sequence[Bijection | None]
    likelihood: str | Callable[[Any], Any] = "bernoulli"
    top_down: bool = dataclasses.field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        parts = {name: getattr(self, name) for name in ("encoders", "decoders", "posteriors", "priors")}
        check_levels(**parts, likelihood=self.likelihood, top_down=self.top_down)
        for name, part in parts.items():
            object.__setattr__(self, name, tuple(part))

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of the latents of each level."""
        flows = zip(self.posteriors, self.priors, strict=True)
        return tuple((posterior if prior is None else prior).y_shape for posterior, prior in flows)

    @property
    def dim(self) -> int:
        """The number of latents of a datum, in all levels."""
        return sum(map(math.prod, self.latent_shapes))

    def model(self, x: Any = None, num_data: int = 1) -> None:
        """The generative model, with the sites ``z1``, ``z2``, ..., latents, and ``x``, data, in a plate ``data``.

        Args:
            x: n data, ``(n, *shape)``, which are observed; ``None`` draws them.
            num_data: how many to draw.

        Raises:
            ValueError: if features do not fit a flow or the data.
        """
        self._model(x, num_data)

    def guide(self, x: Any) -> None:
        """The posterior of the latents ``z1``, ``z2``, ... of the data, in a plate ``data``.

        Args:
            x: n data, ``(n, *shape)``.

        Raises:
            ValueError: as from :meth:`model`.
        """
        self._guide(x)

    def _model(self, x, num_data):
        x = x if x is None or isinstance(x, jax.Array) else jnp.asarray(as_data(x, jax.Array))

        def draw(level, prior, _):
            normal = standard_normal(self.latent_shapes[level] if prior is None else prior.bijection.x_shape)
            return numpyro.sample(f"z{level + 1}", normal if prior is None else FlowDistribution(normal, prior))

        with numpyro.plate("data", num_data if x is None else len(x), dim=-1):
            return numpyro.sample("x", self._likelihood(self._descend(draw), x), obs=x)

    def _guide(self, x):
        x = x if isinstance(x, jax.Array) else jnp.asarray(as_data(x, jax.Array))

        def draw(level, posterior, prior):
            q = FlowDistribution(standard_normal(posterior.bijection.x_shape), posterior)
            return numpyro.sample(f"z{level + 1}", q if prior is None else FlowDistribution(q, prior))

        with numpyro.plate("data", len(x), dim=-1):
            self._ascend(x, draw)

    def _terms(self, x, noise):
        parts, kl = self._split(noise), []

        def draw(level, posterior, prior):
            u, log_det = posterior.forward_and_log_det(_shaped(parts[level], posterior))
            kl.append(standard_log_prob(parts[level]) - log_det)
            if self.top_down:
                kl.append(-standard_log_prob(u.reshape(parts[level].shape)))
            return u if prior is None else prior(u)

        def score(level, prior, _):
            u, log_det = (z[level], 0.0) if prior is None else prior.inverse_and_log_det(z[level])
            kl.append(-standard_log_prob(u.reshape(parts[level].shape)) - log_det)
            return z[level]

        z = self._ascend(x, draw)
        if not self.top_down:
            self._descend(score)
        return self._likelihood(z, x).log_prob(x), sum(kl), z

    def _ascend(self, x, draw):
        """The latents of all levels, by ``draw(level, posterior, prior)`` in the order of the posterior.

        The two are transforms at their contexts; the prior is ``None`` where the posterior is not relative to one.
        """
        z: list[Any] = []
        if not self.top_down:
            below, shapes = x, (tuple(x.shape[1:]), *self.latent_shapes)
            for level in range(len(self.posteriors)):
                features = self._features("encoders", level, below, shapes[level])
                below = draw(level, self._posterior(level, features), None)
                z.append(below)
            return tuple(z)
        features, below = [], x
        for level in range(len(self.posteriors)):
            below = self._through("encoders", level, below)
            features.append(below.reshape(len(x), -1))

        def down(level, prior, above):
            return draw(level, self._posterior(level, features[level], above), prior)

        return self._descend(down)

    def _descend(self, draw):
        """The latents of all levels, by ``draw(level, prior, above)`` in the order of the model."""
        z, above = [], None
        for level in reversed(range(len(self.posteriors))):
            z.append(draw(level, self._prior(level, above), above))
            above = self._features("decoders", level, z[-1], self.latent_shapes[level]) if level else None
        return tuple(reversed(z))

    def _prior(self, level, above) -> FlowTransform | None:
        prior = self.priors[level]
        if prior is None:
            return None
        transform = flow(f"prior{level + 1}", prior).transform
        if above is None:
            return transform
        check_context(f"priors[{level}]", prior, decoder=above.shape[-1])
        return transform.condition(above)

    def _posterior(self, level, features, above=None) -> FlowTransform:
        sizes = {"encoder": features.shape[-1]}
        if above is not None:
            sizes["decoder above"] = above.shape[-1]
            features = jnp.broadcast_to(features, (*above.shape[:-1], features.shape[-1]))
            features = jnp.concatenate([features, above], -1)
        check_context(f"posteriors[{level}]", self.posteriors[level], **sizes)
        return flow(f"posterior{level + 1}", self.posteriors[level]).transform.condition(features)

    def _features(self, kind, level, array, shape):
        """What a network gives for each event of this shape, as vectors; it sees one axis of rows."""
        batch = array.shape[: array.ndim - len(shape)]
        return self._through(kind, level, array.reshape(-1, *shape)).reshape(*batch, -1)

    def _through(self, kind, level, rows):
        name = f"{kind}[{level}]"
        with named(name, rows.shape):
            output = network_of(f"{kind[:-1]}{level + 1}", getattr(self, kind)[level])(rows)
            check_rows(name, output, len(rows))
        return output

    def _split(self, noise):
        return [noise[..., part] for part in offsets(self.latent_shapes)]

    def _encode(self, x, noise):
        parts = self._split(noise)

        def draw(level, posterior, prior):
            u = posterior(_shaped(parts[level], posterior))
            return u if prior is None else prior(u)

        return self._ascend(x, draw)

    def _to_noise(self, z):
        noise: list[Any] = [None] * len(z)

        def look(level, prior, _):
            u = z[level] if prior is None else prior.inv(z[level])
            noise[level] = u.reshape(*self._batch(z), -1)
            return z[level]

        self._descend(look)
        return jnp.concatenate(noise, -1)

    def _from_noise(self, noise):
        parts = self._split(noise)

        def draw(level, prior, _):
            if prior is None:
                return parts[level].reshape(*noise.shape[:-1], *self.latent_shapes[level])
            return prior(_shaped(parts[level], prior))

        return self._descend(draw)

    def _output(self, z):
        rows = z[0].reshape(-1, *self.latent_shapes[0])
        with named("decoders[0]", rows.shape):
            output = network_of("decoder1", self.decoders[0])(rows)
        return unflatten(self.likelihood, output, self._batch(z))

    def _batch(self, z):
        return z[0].shape[: z[0].ndim - len(self.latent_shapes[0])]

    def _networks(self):
        return _by_level(encoder=self.encoders, decoder=self.decoders)

    def _flows(self):
        return _by_level(posterior=self.posteriors, prior=self.priors)

    def _description(self, held):
        return describe(self.posteriors, self.priors, self.likelihood, held) | {"top_down": self.top_down}


def _shaped(noise, transform):
    return noise.reshape(*noise.shape[:-1], *transform.bijection.x_shape)


def _by_level(**parts):
    """The parts by the names of their sites."""
    return {f"{name}{level}": each for name, part in parts.items() for level, each in enumerate(part, 1)}
