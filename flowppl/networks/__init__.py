r"""The networks of coupling and autoregressive layers, and the protocol that any other network can follow.

A *conditioner network* is a hashable object with ``parameters()`` and ``constants()``, as a bijection has, and
``__call__(params, x, context) -> output``. Its output layer starts at zero, so that the layer it serves starts
at the identity.
"""

from flowppl.networks.causal import CausalConv1d
from flowppl.networks.convolution import ConvNet
from flowppl.networks.dense import MLP, dense, dense_layers, dense_parameters, hidden_units
from flowppl.networks.masked import MADE, read_dependencies
from flowppl.networks.pixel import PixelConvNet
from flowppl.networks.protocol import ACTIVATIONS, Network, as_dims, check_activation, check_network, split_raw

__all__ = [
    "ACTIVATIONS",
    "MADE",
    "MLP",
    "CausalConv1d",
    "ConvNet",
    "Network",
    "PixelConvNet",
    "as_dims",
    "check_activation",
    "check_network",
    "dense",
    "dense_layers",
    "dense_parameters",
    "hidden_units",
    "read_dependencies",
    "split_raw",
]
