"""The PixelCNN in NumPyro."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from flowppl._arrays.tree import Tree, merge
from flowppl.discrete import pixelcnn
from flowppl.discrete.levels import check_context, check_images, check_levels
from flowppl.numpyro._host import Tracer
from flowppl.numpyro.transforms import check_key, constants_of, draw_params


class PixelCNNDistribution(dist.Distribution):
    """What a :class:`PixelCNN` gives: a distribution of images of integers.

    Args:
        pixelcnn: the network with its weights.
        context: a context, if it takes one.
    """

    pytree_data_fields = ("pixelcnn", "context")
    has_rsample = False  # type: ignore[assignment]  # the host would take it for granted

    def __init__(self, pixelcnn: PixelCNN, context: jax.Array | None = None) -> None:
        self.pixelcnn, self.context = pixelcnn, context
        batch = () if context is None else context.shape[:-1]
        super().__init__(batch_shape=batch, event_shape=pixelcnn._of_x.shape)

    @constraints.dependent_property(is_discrete=True, event_dim=3)
    def support(self) -> constraints.Constraint:
        """Images of integers from 0 to ``levels - 1``."""
        return constraints.independent(constraints.integer_interval(0, self.pixelcnn.levels - 1), 3)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """The log probability of each image, in one pass."""
        core, value = self.pixelcnn._of_x, jnp.asarray(value)
        check_images("PixelCNN", value.shape, core.y_shape)
        if not isinstance(value, Tracer):
            check_levels("PixelCNN", "the data", np.asarray(value), core.levels)
        shape = (*jnp.broadcast_shapes(value.shape[:-3], self.batch_shape), *core.shape)
        return _log_prob(core, self.pixelcnn.params, value, self.context, shape)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draws, integers of shape ``(*sample_shape, *batch, C, H, W)``, number by number."""
        check_key("PixelCNN.sample", key, "key")
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        return _generate(self.pixelcnn._of_x, self.pixelcnn.params, key, self.context, shape)


@partial(jax.jit, static_argnums=(0, 4))
def _log_prob(core, params, value, context, shape):
    dtype = jnp.result_type(*jax.tree.leaves(params))
    x = jnp.broadcast_to(value, shape).astype(dtype)
    return core.log_prob(merge(params, constants_of(core)), x, context)


@partial(jax.jit, static_argnums=(0, 4))
def _generate(core, params, key, context, shape):
    dtype = jnp.result_type(*jax.tree.leaves(params))
    choices, noise = jax.random.uniform(key, (2, *shape), dtype, jnp.finfo(dtype).tiny)
    return core.generate(merge(params, constants_of(core)), choices, noise, context).astype(int)


@jax.tree_util.register_pytree_node_class
class PixelCNN:
    r"""The PixelCNN: a distribution of images of integers, each number given those before it.

    With the numbers :math:`x_1, \dots, x_D` of an image in the order of rows, then columns, then channels,

    .. math::
        P(x) = \prod_{i=1}^D P(x_i \mid x_1, \dots, x_{i-1}),

    where a :class:`flowppl.PixelConvNet`, of two stacks of masked convolutions, makes all the factors from the image in
    one pass. A factor is categorical, with a logit for each level, or, with ``num_components``, a
    :class:`DiscretizedLogisticMixture` of the raw numbers, as its ``from_raw`` takes them. At the start all images are
    about equally likely.

    ``pixelcnn()``, or ``pixelcnn(context)``, is a distribution for NumPyro's models. It is a pytree, whose leaves are
    the weights; :func:`fit_density` trains them. Cost: a log probability is one pass; a draw finds its D numbers one
    after the other, in D small steps that are together about the work of one pass for each channel.

    Args:
        shape: the shape (C, H, W) of an image.
        levels: the number L of integers, at least 2: they are 0 to L - 1.
        num_components: the number of logistics in each factor; 0 takes a logit for each level.
        hidden_channels: as for :class:`flowppl.PixelConvNet`; so for the next two.
        num_blocks: the number of layers after the first.
        kernel_size: the size of the kernels, odd; or a pair, for the first layer and for the others.
        context_dim: the size of a context, such as the number of classes of which one is 1; 0 for none.
        context_shape: what shape (c, H, W) the context has as an image; ``None`` for a vector.
        params: the weights; :meth:`init` draws them.

    Raises:
        ValueError: for a size that is out of range; in use, for images of another shape, values that are none of the
            levels, and a context that is missing or of another size.

    References:
        van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu: Conditional Image Generation with PixelCNN
        Decoders, 2016, arXiv 1606.05328. Mixtures: Salimans, Karpathy, Chen, Kingma: PixelCNN++, 2017, arXiv
        1701.05517.

    Example:
        >>> import jax
        >>> from flowppl.numpyro import PixelCNN
        >>> images = PixelCNN.init(jax.random.key(0), (1, 4, 4), levels=2, hidden_channels=4, num_blocks=1)
        >>> x = images.sample(jax.random.key(1), (3,))
        >>> x.shape, images.log_prob(x).shape
        ((3, 1, 4, 4), (3,))
    """

    def __init__(
        self,
        shape: Sequence[int],
        levels: int,
        num_components: int = 0,
        hidden_channels: int = 32,
        num_blocks: int = 4,
        kernel_size: int | tuple[int, int] = (7, 3),
        context_dim: int = 0,
        context_shape: tuple[int, int, int] | None = None,
        *,
        params: Tree,
    ) -> None:
        self._of_x = pixelcnn.PixelCNN(
            tuple(shape), levels, num_components, hidden_channels, num_blocks, kernel_size, context_dim, context_shape
        )
        self.params = params

    @classmethod
    def init(
        cls,
        key: jax.Array,
        shape: Sequence[int],
        levels: int,
        num_components: int = 0,
        hidden_channels: int = 32,
        num_blocks: int = 4,
        kernel_size: int | tuple[int, int] = (7, 3),
        context_dim: int = 0,
        context_shape: tuple[int, int, int] | None = None,
    ) -> PixelCNN:
        """As the class, with first weights drawn by ``key``."""
        check_key("PixelCNN.init", key, "key")
        core = pixelcnn.PixelCNN(
            tuple(shape), levels, num_components, hidden_channels, num_blocks, kernel_size, context_dim, context_shape
        )
        return cls.tree_unflatten(core, (draw_params(core, key),))

    def tree_flatten(self) -> tuple[tuple[Tree], pixelcnn.PixelCNN]:
        """The weights, and what is static."""
        return (self.params,), self._of_x

    @classmethod
    def tree_unflatten(cls, static: pixelcnn.PixelCNN, leaves: Any) -> PixelCNN:
        """The inverse of :meth:`tree_flatten`."""
        new = cls.__new__(cls)
        new._of_x, (new.params,) = static, leaves
        return new

    @property
    def levels(self) -> int:
        """The number of integers."""
        return self._of_x.levels

    @property
    def _params(self) -> Tree:
        return self.params

    def _with_params(self, params: Tree) -> PixelCNN:
        return self.tree_unflatten(self._of_x, (params,))

    def __call__(self, context: jax.Array | None = None) -> PixelCNNDistribution:
        """The distribution, at a context of shape ``(*batch, context_dim)`` if the network takes one."""
        check_context("PixelCNN", self._of_x.context_dim, context)
        return PixelCNNDistribution(self, context)

    def log_prob(self, value: jax.Array) -> jax.Array:
        """``pixelcnn().log_prob(value)``, for a network without a context."""
        return self().log_prob(value)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """``pixelcnn().sample(key, sample_shape)``, for a network without a context."""
        return self().sample(key, sample_shape)

    def init_from(self, x: jax.Array, context: jax.Array | None = None) -> PixelCNN:
        """This one: nothing of it starts from data."""
        return self
