r"""The networks of coupling and autoregressive layers, and the protocol that any other network can follow.

A *conditioner network* is a hashable object with ``parameters()`` and ``constants()``, as a bijection has, and
``__call__(params, x, context) -> output``. Its output layer starts at zero, so that the layer it serves starts
at the identity. Vectors are mapped by :class:`flowppl.MLP` and :class:`flowppl.MADE`; images, ``(..., C, H, W)``, by
:class:`flowppl.ConvNet` and :class:`flowppl.PixelConvNet`; sequences, ``(..., C, L)``, by
:class:`flowppl.CausalConv1d`; both by :class:`flowppl.Transformer` and :class:`flowppl.CausalTransformer`. The context
of all is a vector.

A module of a host's framework is made a network by the ``ModuleNetwork`` of an adapter, where it is imported.
"""

from flowppl.networks.causal import CausalConv1d
from flowppl.networks.convolution import ConvNet
from flowppl.networks.dense import MLP, dense, dense_layers, dense_parameters, hidden_units, masked_layers
from flowppl.networks.masked import MADE, read_dependencies
from flowppl.networks.modules import BoundNetwork, ModuleNetwork, NetworkLike, bind_network, read_network
from flowppl.networks.pixel import PixelConvNet
from flowppl.networks.protocol import ACTIVATIONS, Network, as_dims, check_activation, split_raw
from flowppl.networks.transformer import CausalTransformer, Transformer

__all__ = [
    "ACTIVATIONS",
    "MADE",
    "MLP",
    "BoundNetwork",
    "CausalConv1d",
    "CausalTransformer",
    "ConvNet",
    "ModuleNetwork",
    "Network",
    "NetworkLike",
    "PixelConvNet",
    "Transformer",
    "as_dims",
    "bind_network",
    "check_activation",
    "dense",
    "dense_layers",
    "dense_parameters",
    "hidden_units",
    "masked_layers",
    "read_dependencies",
    "read_network",
    "split_raw",
]
