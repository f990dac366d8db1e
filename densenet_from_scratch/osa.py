"""One-shot aggregation and VoVNet: concatenate once, at the end (chapter 11).

    x_1 = H_1(x_0), ..., x_n = H_n(x_{n-1}),    out = A([x_0, x_1, ..., x_n])

Lee et al. (2019), "An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object
Detection", section 3. A dense block concatenates for every layer. In an OSA module each layer reads
only the one before it, all have one width, and a single 1×1 convolution aggregates their maps. H
and A are conv-BN-ReLU, in this order. The options ``identity`` and ``ese`` make VoVNetV2: Lee and
Park (2020), "CenterMask: Real-Time Anchor-Free Instance Segmentation", section 3, "VoVNetV2".
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.arguments import channels_read, check_choice, check_count, check_images
from densenet_from_scratch.plain import initialise


class ConvLayer(nn.Sequential):
    """Convolution, BN and ReLU, as in VGG: the normalised and activated maps are handed on.

    Args:
        in_channels: maps it reads.
        out_channels: maps it makes.
        kernel_size: 3, or 1 for the aggregation.
        stride: 2 halves the height and width, rounding up.

    Raises:
        ValueError: an argument is not a positive integer.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("out_channels", out_channels)
        check_count("kernel_size", kernel_size)
        check_count("stride", stride)
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()


class ESE(nn.Module):
    """Effective squeeze-and-excitation: weigh each map by a gate computed from all maps' means.

    One linear layer that keeps the width, where the original squeeze-and-excitation has two and
    loses information in between (Lee and Park 2020, section 3, "VoVNetV2"). The gate is the
    piecewise linear sigmoid of the authors' code.

    Args:
        channels: maps in and out.

    Raises:
        ValueError: ``channels`` is not a positive integer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_count("channels", channels)
        self.conv = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H, W)."""
        return x * F.hardsigmoid(self.conv(x.mean(dim=(2, 3), keepdim=True)))


class OSAModule(nn.Module):
    """A chain of 3×3 layers of one width, whose outputs and input are aggregated once.

    Args:
        in_channels: maps that enter.
        channels: maps that each layer makes.
        out_channels: maps that the aggregation makes.
        num_layers: layers in the chain; the paper uses 5.
        identity: add the module's input to its output, as a residual connection.
        ese: weigh the output's maps by :class:`ESE`.

    Raises:
        ValueError: a count is not a positive integer, or ``identity`` where the widths of input
            and output differ.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        num_layers: int = 5,
        identity: bool = False,
        ese: bool = False,
    ) -> None:
        super().__init__()
        check_count("in_channels", in_channels)
        check_count("channels", channels)
        check_count("out_channels", out_channels)
        check_count("num_layers", num_layers)
        check_choice("identity", identity, (True, False))
        check_choice("ese", ese, (True, False))
        if identity and in_channels != out_channels:
            raise ValueError(
                f"identity must be False where {in_channels} maps enter and {out_channels} leave, "
                f"got {identity!r}"
            )
        self.identity = identity
        self.layers = nn.ModuleList(
            ConvLayer(in_channels if index == 0 else channels, channels)
            for index in range(num_layers)
        )
        self.aggregate = ConvLayer(in_channels + num_layers * channels, out_channels, kernel_size=1)
        self.ese = ESE(out_channels) if ese else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H, W)."""
        features = [x]
        for layer in self.layers:
            features.append(layer(features[-1]))
        out = self.aggregate(torch.cat(features, dim=1))
        if self.ese is not None:
            out = self.ese(out)
        return out + x if self.identity else out


class VoVNet(nn.Module):
    """VoVNet (Lee et al. 2019, section 3.3, Table 1), and VoVNetV2 (Lee and Park 2020).

    A stem of 3×3 layers, stages of OSA modules with a 3×3 max-pooling of stride 2 between them,
    and a head that classifies. The defaults are those of VoVNet-39 on ImageNet.

    Args:
        stem_channels: maps that each layer of the stem makes. For ImageNet its first and last layer
            have stride 2.
        channels: maps that a layer makes, by stage.
        out_channels: maps that a module hands on, by stage.
        block_config: OSA modules, by stage.
        num_layers: layers of every module.
        num_classes: classes to tell apart.
        small_inputs: a stem that keeps the size of the image, for small images.
        identity: VoVNetV2's residual connection, around each module but the first of a stage.
        ese: VoVNetV2's :class:`ESE`, in the last module of a stage, as in the authors' code.
        in_channels: channels of the image.

    Raises:
        ValueError: an argument is out of range; the message names it, its value and the range.
    """

    def __init__(
        self,
        stem_channels: Sequence[int] = (64, 64, 128),
        channels: Sequence[int] = (128, 160, 192, 224),
        out_channels: Sequence[int] = (256, 512, 768, 1024),
        block_config: Sequence[int] = (1, 1, 2, 2),
        num_layers: int = 5,
        num_classes: int = 1000,
        small_inputs: bool = False,
        identity: bool = False,
        ese: bool = False,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        check_count("num_layers", num_layers)
        check_count("num_classes", num_classes)
        width = check_count("in_channels", in_channels)
        check_choice("small_inputs", small_inputs, (True, False))
        check_choice("identity", identity, (True, False))
        check_choice("ese", ese, (True, False))
        _check_counts("stem_channels", stem_channels, at_least=1 if small_inputs else 2)
        _check_counts("block_config", block_config)
        for name, counts in (("channels", channels), ("out_channels", out_channels)):
            _check_counts(name, counts)
            if len(counts) != len(block_config):
                raise ValueError(
                    f"{name} must have a number for each of {len(block_config)} stages, "
                    f"got {counts!r}"
                )
        self.stem = nn.Sequential()
        for index, maps in enumerate(stem_channels):
            end = index in (0, len(stem_channels) - 1)
            self.stem.append(ConvLayer(width, maps, stride=2 if end and not small_inputs else 1))
            width = maps
        self.stages = nn.ModuleList()
        for middle, out, num_modules in zip(channels, out_channels, block_config, strict=True):
            stage = nn.Sequential()
            for index in range(num_modules):
                first, last = index == 0, index == num_modules - 1
                options = {"identity": identity and not first, "ese": ese and last}
                stage.append(OSAModule(width, middle, out, num_layers, **options))
                width = out
            self.stages.append(stage)
        self.classifier = nn.Linear(width, num_classes)

        # Pooling between stages halves the maps, rounding down; the stem quarters, rounding up.
        self.minimum_size = 2 ** (len(block_config) - 1)
        if not small_inputs:
            self.minimum_size = 4 * (self.minimum_size - 1) + 1
        self.apply(initialise)

    def features(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the last stage's maps."""
        x = self.stem(check_images(x, channels_read(self.stem), self.minimum_size))
        x = self.stages[0](x)
        for stage in self.stages[1:]:
            x = stage(F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True))
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes).

        Raises:
            ValueError: ``x`` is not a batch of images with ``in_channels`` channels, or is smaller
                than ``minimum_size`` pixels.
        """
        return self.classifier(self.features(x).mean(dim=(2, 3)))  # global average pooling


def _check_counts(name: str, counts: Sequence[int], at_least: int = 1) -> None:
    if not isinstance(counts, Sequence) or len(counts) < at_least:
        numbers = "one number" if at_least == 1 else f"{at_least} numbers"
        raise ValueError(f"{name} must list at least {numbers}, got {counts!r}")
    for index, count in enumerate(counts):
        check_count(f"{name}[{index}]", count)


def vovnet27_slim(num_classes: int = 1000, *, identity: bool = False, ese: bool = False) -> VoVNet:
    """VoVNet-27-slim of Table 1: one module a stage, at half of VoVNet-39's widths."""
    return VoVNet(
        channels=(64, 80, 96, 112),
        out_channels=(128, 256, 384, 512),
        block_config=(1, 1, 1, 1),
        num_classes=num_classes,
        identity=identity,
        ese=ese,
    )


def vovnet39(num_classes: int = 1000, *, identity: bool = False, ese: bool = False) -> VoVNet:
    """VoVNet-39 of Table 1: 1, 1, 2 and 2 modules."""
    return VoVNet(num_classes=num_classes, identity=identity, ese=ese)


def vovnet57(num_classes: int = 1000, *, identity: bool = False, ese: bool = False) -> VoVNet:
    """VoVNet-57 of Table 1: 1, 1, 4 and 3 modules."""
    return VoVNet(block_config=(1, 1, 4, 3), num_classes=num_classes, identity=identity, ese=ese)
