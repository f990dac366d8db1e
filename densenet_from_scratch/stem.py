"""Stems: the first convolution, for small images and for ImageNet (chapter 7).

Huang et al. (2017), "Densely Connected Convolutional Networks", section 3 and Table 1. A stem is an
``nn.Sequential``: its parts run in the order in which they are set.
"""

from torch import nn

from densenet_from_scratch.arguments import check_count


class SmallStem(nn.Sequential):
    """The stem for small images: one 3×3 convolution at full size (section 3).

    Args:
        in_channels: channels of the image.
        out_channels: maps it makes, k_0.

    Raises:
        ValueError: a count is not a positive integer.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)


class ImageNetStem(nn.Sequential):
    """The stem for ImageNet: 7×7 convolution, stride 2, BN, ReLU, 3×3 max-pool, stride 2 (Table 1).

    It leaves a quarter of the height and width, rounding up.

    Args:
        in_channels: channels of the image.
        out_channels: maps it makes, k_0.

    Raises:
        ValueError: a count is not a positive integer.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size=7, stride=2, padding=3, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
