"""Residual networks: each layer adds to what came before (chapter 2).

    x_l = H_l(x_{l-1}) + x_{l-1}

He et al. (2016), "Identity Mappings in Deep Residual Networks", equation 2, in the form with
nothing after the sum, so that the identity path runs untouched from the stem to the head.
"""

from torch import Tensor

from densenet_from_scratch.plain import PlainLayer, PlainNet


class ResidualLayer(PlainLayer):
    """BN-ReLU-conv3×3 whose output is added to its input; arguments as :class:`PlainLayer`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return super().forward(x) + x


class ResidualNet(PlainNet):
    """The plain network with an identity shortcut around every layer; not one parameter more."""

    layer_type = ResidualLayer
