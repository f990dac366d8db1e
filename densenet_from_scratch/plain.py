"""Plain networks: each layer sees only the layer before it (chapter 1).

    x_l = H_l(x_{l-1})

H_l is batch normalisation, ReLU and a 3×3 convolution, the order that He et al. (2016, "Identity
Mappings in Deep Residual Networks") call pre-activation and that DenseNet uses too, so that the
networks of chapters 1 to 3 differ in their connections and in nothing else.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.arguments import channels_read, check_choice, check_count, check_images


class PlainLayer(nn.Module):
    """H_l: BN-ReLU-conv3×3 that keeps the number of channels and the size of the maps.

    Args:
        channels: feature maps in and out.

    Raises:
        ValueError: ``channels`` is not a positive integer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_count("channels", channels)
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return self.conv(F.relu(self.norm(x)))


class PlainNet(nn.Module):
    """A stem, a stack of plain layers, and a head that classifies.

    Args:
        num_layers: layers between stem and head.
        channels: feature maps in every layer.
        in_channels: channels of the image.
        num_classes: classes to tell apart.

    Raises:
        ValueError: an argument is not a positive integer.
    """

    layer_type: type[nn.Module] = PlainLayer

    def __init__(
        self, num_layers: int, channels: int = 16, in_channels: int = 1, num_classes: int = 10
    ) -> None:
        super().__init__()
        check_count("num_layers", num_layers)
        check_count("channels", channels)
        check_count("in_channels", in_channels)
        check_count("num_classes", num_classes)
        self.stem = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, bias=False)
        self.layers = nn.ModuleList(self.layer_type(channels) for _ in range(num_layers))
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes).

        Raises:
            ValueError: ``x`` is not a batch of images with ``in_channels`` channels.
        """
        x = self.stem(check_images(x, channels_read(self.stem)))
        for layer in self.layers:
            x = layer(x)
        x = F.relu(self.norm(x)).mean(dim=(2, 3))  # global average pooling: (N, C)
        return self.classifier(x)


INIT_MODES = ("fan_in", "fan_out")


def initialise(module: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Draw a convolution's weights from N(0, 2 / fan), and zero a linear layer's bias.

    He et al. (2015), "Delving Deep into Rectifiers", section 2.2. With the fan-in (pixels of
    the kernel × maps in) a signal's variance stays constant on the way forward through conv and
    ReLU, with the fan-out (pixels of the kernel × maps out) a gradient's on the way back. The
    DenseNet paper names the method (section 4.2) and not the fan: torchvision takes the fan-in, the
    authors' code the fan-out. The full networks of chapters 7 and 8 call it; the small ones of
    chapters 1 and 2 keep PyTorch's default.

    Args:
        module: what to initialise; other kinds of module are left as they are.
        mode: ``"fan_in"`` or ``"fan_out"``.

    Raises:
        ValueError: ``mode`` is neither.
    """
    check_choice("mode", mode, INIT_MODES)
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
