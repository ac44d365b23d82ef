"""The PixelCNN in Pyro."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from flowppl.discrete import pixelcnn
from flowppl.discrete.levels import check_context, check_images, check_levels
from flowppl.pyro.transforms import Weights


class PixelCNNDistribution(dist.TorchDistribution):
    """What a :class:`PixelCNN` gives: a distribution of images of integers.

    Args:
        pixelcnn: the network with its weights.
        context: a context, if it takes one.
    """

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, pixelcnn: PixelCNN, context: torch.Tensor | None = None) -> None:
        self.pixelcnn, self.context = pixelcnn, context
        batch = () if context is None else context.shape[:-1]
        super().__init__(torch.Size(batch), torch.Size(pixelcnn._of_x.shape))

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        """Images of integers from 0 to ``levels - 1``."""
        return constraints.independent(constraints.integer_interval(0, self.pixelcnn.levels - 1), 3)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PixelCNNDistribution:
        """This distribution with another batch shape, to which its own broadcasts."""
        new = self._get_checked_instance(PixelCNNDistribution, _instance)
        new.pixelcnn, new.context = self.pixelcnn, self.context
        super(PixelCNNDistribution, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """The log probability of each image, in one pass."""
        core = self.pixelcnn._of_x
        check_images("PixelCNN", value.shape, core.y_shape)
        if self._validate_args:
            check_levels("PixelCNN", "the data", value, core.levels)
        x = value.to(self.pixelcnn._zeros)
        x = x.expand(*torch.broadcast_shapes(x.shape[:-3], self.batch_shape), *core.shape)
        return core.log_prob(self.pixelcnn.weights.tree(), x, self.context)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draws, integers of shape ``(*sample_shape, *batch, C, H, W)``, number by number."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        zeros = self.pixelcnn._zeros
        tiny = torch.finfo(zeros.dtype).tiny
        choices, noise = torch.rand((2, *shape), dtype=zeros.dtype, device=zeros.device).clamp(min=tiny)
        return self.pixelcnn._of_x.generate(self.pixelcnn.weights.tree(), choices, noise, self.context).long()


class PixelCNN(torch.nn.Module):
    r"""The PixelCNN: a distribution of images of integers, each number given those before it.

    With the numbers :math:`x_1, \dots, x_D` of an image in the order of rows, then columns, then channels,

    .. math::
        P(x) = \prod_{i=1}^D P(x_i \mid x_1, \dots, x_{i-1}),

    where a :class:`flowppl.PixelConvNet`, of two stacks of masked convolutions, makes all the factors from the image in
    one pass. A factor is categorical, with a logit for each level, or, with ``num_components``, a
    :class:`DiscretizedLogisticMixture` of the raw numbers, as its ``from_raw`` takes them. At the start all images are
    about equally likely.

    ``pixelcnn()``, or ``pixelcnn(context)``, is a distribution for Pyro's models; :func:`fit_density` trains this
    module. Cost: a log probability is one pass; a draw finds its D numbers one after the other, in D small steps that
    are together about the work of one pass for each channel.

    Args:
        shape: the shape (C, H, W) of an image.
        levels: the number L of integers, at least 2: they are 0 to L - 1.
        num_components: the number of logistics in each factor; 0 takes a logit for each level.
        hidden_channels: as for :class:`flowppl.PixelConvNet`; so for the next two.
        num_blocks: the number of layers after the first.
        kernel_size: the size of the kernels, odd; or a pair, for the first layer and for the others.
        context_dim: the size of a context, such as the number of classes of which one is 1; 0 for none.
        context_shape: what shape (c, H, W) the context has as an image; ``None`` for a vector.

    Raises:
        ValueError: for a size that is out of range; in use, for images of another shape, values that are none of the
            levels, and a context that is missing or of another size.

    References:
        van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu: Conditional Image Generation with PixelCNN
        Decoders, 2016, arXiv 1606.05328. Mixtures: Salimans, Karpathy, Chen, Kingma: PixelCNN++, 2017, arXiv
        1701.05517.

    Example:
        >>> import torch
        >>> from flowppl.pyro import PixelCNN
        >>> images = PixelCNN((1, 4, 4), levels=2, hidden_channels=4, num_blocks=1)
        >>> x = images.sample((3,))
        >>> x.shape, images.log_prob(x).shape
        (torch.Size([3, 1, 4, 4]), torch.Size([3]))
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
    ) -> None:
        super().__init__()
        self._of_x = pixelcnn.PixelCNN(
            tuple(shape), levels, num_components, hidden_channels, num_blocks, kernel_size, context_dim, context_shape
        )
        self.weights = Weights.drawn(self._of_x)

    @property
    def levels(self) -> int:
        """The number of integers."""
        return self._of_x.levels

    @property
    def _zeros(self) -> torch.Tensor:
        return next(self.weights.parameters()).detach().new_zeros(())

    def __call__(self, context: torch.Tensor | None = None) -> PixelCNNDistribution:
        """The distribution, at a context of shape ``(*batch, context_dim)`` if the network takes one."""
        return super().__call__(context)

    def forward(self, context: torch.Tensor | None = None) -> PixelCNNDistribution:
        """What a call gives: see :meth:`__call__`."""
        check_context("PixelCNN", self._of_x.context_dim, context)
        return PixelCNNDistribution(self, context)

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """``pixelcnn().log_prob(value)``, for a network without a context."""
        return self().log_prob(value)

    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """``pixelcnn().sample(sample_shape)``, for a network without a context."""
        return self().sample(torch.Size(sample_shape))

    def init_from(self, x: torch.Tensor, context: torch.Tensor | None = None) -> PixelCNN:
        """This module: nothing of it starts from data."""
        return self

    def freeze(self) -> PixelCNN:
        """Stop training: no parameter requires a gradient any more, and the module is in evaluation mode."""
        return self.requires_grad_(False).eval()
