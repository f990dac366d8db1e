"""Dense layers and dense blocks: each layer sees every layer before it (chapters 3 to 5).

    x_l = H_l([x_0, x_1, ..., x_{l-1}])

Huang et al. (2017), "Densely Connected Convolutional Networks", equation 2. The brackets
concatenate feature maps along the channel axis. Each H_l adds k maps, the growth rate, so layer l
of a block with k_0 input maps reads k_0 + k(l - 1) of them.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.arguments import check_choice, check_count, check_fraction

DROP_AFTER = ("layer", "convolution")


class DenseLayer(nn.Module):
    """The basic H_l: BN-ReLU-conv3×3 from all earlier maps to k new ones (section 3).

    Args:
        in_channels: maps it reads, k_0 + k(l - 1).
        growth_rate: maps it adds, k.
        drop_rate: share of its output that dropout sets to zero in training.

    Raises:
        ValueError: a count is not a positive integer, or ``drop_rate`` is not in [0, 1).
    """

    def __init__(self, in_channels: int, growth_rate: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("growth_rate", growth_rate)
        self.drop_rate = check_fraction("drop_rate", drop_rate, zero=True, one=False)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, growth_rate, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0 + k(l - 1), H, W) to (N, k, H, W)."""
        return self.after_conv1(self.through_conv1(x))

    def through_conv1(self, x: Tensor) -> Tensor:
        """The part that reads all earlier maps: norm1, ReLU, conv1."""
        return self.conv1(F.relu(self.norm1(x)))

    def after_conv1(self, x: Tensor) -> Tensor:
        """What is left: dropout, if any."""
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x


class BottleneckLayer(nn.Module):
    """The H_l of DenseNet-B: BN-ReLU-conv1×1 to 4k maps, then BN-ReLU-conv3×3 to k (section 3).

    Args:
        in_channels: maps it reads, k_0 + k(l - 1).
        growth_rate: maps it adds, k.
        bn_size: width of the bottleneck in units of k; the paper uses 4.
        drop_rate: share of its output that dropout sets to zero in training.
        drop_after: ``"layer"`` drops out of the layer's output only, as torchvision does;
            ``"convolution"`` also of the bottleneck's, as section 4.2 of the paper says ("after
            each convolutional layer") and the authors' code does.

    Raises:
        ValueError: a count is not a positive integer, ``drop_rate`` is not in [0, 1), or
            ``drop_after`` is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        bn_size: int = 4,
        drop_rate: float = 0.0,
        drop_after: str = "layer",
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("growth_rate", growth_rate)
        width = check_count("bn_size", bn_size) * growth_rate
        self.drop_rate = check_fraction("drop_rate", drop_rate, zero=True, one=False)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, growth_rate, kernel_size=3, padding=1, bias=False)
        everywhere = check_choice("drop_after", drop_after, DROP_AFTER) == "convolution"
        self.bottleneck_drop_rate = self.drop_rate if everywhere else 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0 + k(l - 1), H, W) to (N, k, H, W)."""
        return self.after_conv1(self.through_conv1(x))

    def through_conv1(self, x: Tensor) -> Tensor:
        """The part that reads all earlier maps: norm1, ReLU, conv1, dropout; to (N, 4k, H, W)."""
        x = self.conv1(F.relu(self.norm1(x)))
        rate = self.bottleneck_drop_rate
        return F.dropout(x, rate, self.training) if rate else x

    def after_conv1(self, x: Tensor) -> Tensor:
        """The rest, from the bottleneck (N, 4k, H, W) to the new maps (N, k, H, W)."""
        x = self.conv2(F.relu(self.norm2(x)))
        return F.dropout(x, self.drop_rate, self.training) if self.drop_rate else x


class Reader(Protocol):
    """What reads a finished block: BN, ReLU, and a pooling that may come right after them."""

    pool_size: int
    """Height and width of the windows that it pools, or 0 for the whole map."""

    @property
    def norm(self) -> nn.Module:
        """What comes first."""

    @property
    def pools_first(self) -> bool:
        """Whether pooling right after norm and ReLU gives the same."""

    def __call__(self, maps: Tensor) -> Tensor:
        """Run all of it on maps (N, k_0 + kL, H, W)."""

    def after_pooling(self, pooled: Tensor) -> Tensor:
        """Run what is left to do once norm, ReLU and pooling are done."""


class DenseBlock(nn.Module):
    """L densely connected layers; all feature maps have one height and width.

    Args:
        num_layers: layers in the block.
        in_channels: maps that enter it, k_0.
        growth_rate: maps each layer adds, k.
        bottleneck: bottleneck layers (DenseNet-B) or basic ones.
        bn_size: width of a bottleneck in units of k.
        drop_rate: dropout after each layer.
        drop_after: see :class:`BottleneckLayer`; a basic layer has one convolution, so nothing to
            choose.

    Raises:
        ValueError: a count is not a positive integer, ``drop_rate`` is not in [0, 1), or
            ``drop_after`` is unknown.
    """

    def __init__(
        self,
        num_layers: int,
        in_channels: int,
        growth_rate: int,
        bottleneck: bool = True,
        bn_size: int = 4,
        drop_rate: float = 0.0,
        drop_after: str = "layer",
    ) -> None:
        super().__init__()
        check_choice("drop_after", drop_after, DROP_AFTER)
        check_choice("bottleneck", bottleneck, (True, False))
        check_count("num_layers", num_layers)
        check_count("in_channels", in_channels)
        check_count("growth_rate", growth_rate)
        check_count("bn_size", bn_size)
        widths = range(in_channels, in_channels + num_layers * growth_rate, growth_rate)
        self.layers = nn.ModuleList(
            BottleneckLayer(width, growth_rate, bn_size, drop_rate, drop_after)
            if bottleneck
            else DenseLayer(width, growth_rate, drop_rate)
            for width in widths
        )
        self.out_channels = in_channels + num_layers * growth_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to (N, k_0 + kL, H, W): the input and every layer's maps."""
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, dim=1)))
        return torch.cat(features, dim=1)

    def read_by(self, reader: Reader, x: Tensor) -> Tensor:
        """Return ``reader(self(x))``; ways of running a block may do both at once (chapter 10).

        Args:
            reader: a transition, or the network's head: see :class:`Reader`.
            x: (N, k_0, H, W).
        """
        return reader(self(x))
