"""Residual networks: each layer adds to what came before (chapter 2).

    x_l = H_l(x_{l-1}) + x_{l-1}

He et al. (2016), "Identity Mappings in Deep Residual Networks", equation 3, in the form with
nothing after the sum, so that the identity path runs untouched from the stem to the head.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.arguments import channels_read, check_count, check_images
from densenet_from_scratch.plain import PlainLayer, PlainNet, initialise


class ResidualLayer(PlainLayer):
    """BN-ReLU-conv3×3 whose output is added to its input; arguments as :class:`PlainLayer`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return super().forward(x) + x


class ResidualNet(PlainNet):
    """The plain network with an identity shortcut around every layer; not one parameter more."""

    layer_type = ResidualLayer


class PreActivationBlock(nn.Module):
    """The unit of a full-size residual network: BN-ReLU-conv3×3 twice, added to its input.

    Where the shape changes, a 1×1 convolution of the activated input takes the identity's place
    (He et al. 2016, "Identity Mappings in Deep Residual Networks", figure 4e and appendix).

    Args:
        in_channels: feature maps in.
        out_channels: feature maps out.
        stride: 2 halves the height and width.

    Raises:
        ValueError: an argument is not a positive integer.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        check_count("stride", stride)
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, ⌈H/stride⌉, ⌈W/stride⌉)."""
        activated = F.relu(self.norm1(x))
        branch = self.conv2(F.relu(self.norm2(self.conv1(activated))))
        return branch + (x if self.shortcut is None else self.shortcut(activated))


class ResNet(nn.Module):
    """The pre-activation ResNet for small images: DenseNet's peer in chapter 8.

    Three stages of n units, of width, 2·width and 4·width maps, so that the depth is 6n + 2
    (He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2).

    Args:
        depth: 6n + 2, counting the stem, the units' convolutions and the classifier.
        width: feature maps of the first stage; the paper uses 16.
        num_classes: classes to tell apart.
        in_channels: channels of the image.

    Raises:
        ValueError: no such network has depth ``depth``, or a count is not a positive integer.
    """

    def __init__(
        self, depth: int, width: int = 16, num_classes: int = 10, in_channels: int = 3
    ) -> None:
        super().__init__()
        check_count("depth", depth, minimum=8)
        if (depth - 2) % 6:
            below = depth - (depth - 2) % 6
            raise ValueError(
                f"depth must be 6n + 2 (nearest: {below} and {below + 6}), got {depth}"
            )
        check_count("width", width)
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        self.stem = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
        self.units = nn.Sequential()
        channels = width
        for stage in range(3):
            for unit in range((depth - 2) // 6):
                stride = 2 if stage > 0 and unit == 0 else 1
                self.units.append(PreActivationBlock(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes).

        Raises:
            ValueError: ``x`` is not a batch of images with ``in_channels`` channels.
        """
        x = self.units(self.stem(check_images(x, channels_read(self.stem))))
        return self.classifier(F.relu(self.norm(x)).mean(dim=(2, 3)))
