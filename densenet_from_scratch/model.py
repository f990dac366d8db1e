"""The whole DenseNet, for small images and for ImageNet (chapter 7)."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.arguments import (
    channels_read,
    check_choice,
    check_count,
    check_fraction,
    check_images,
)
from densenet_from_scratch.dense import DenseBlock
from densenet_from_scratch.efficient import (
    BLOCK_TYPES,
    checkpointed_stem,
    why_not_alike,
    why_not_as_built,
    why_not_whole,
)
from densenet_from_scratch.efficient.shared import parameters_of
from densenet_from_scratch.frozen import NO_SCRIPT, FrozenDenseNet
from densenet_from_scratch.internals import is_watched
from densenet_from_scratch.plain import INIT_MODES, initialise
from densenet_from_scratch.stem import ImageNetStem, SmallStem
from densenet_from_scratch.transition import Transition


class Features(nn.Module):
    """What ``network.features`` is: all up to the network's last norm, as one module.

    It is there to be called, hooked (Grad-CAM's target), frozen (``requires_grad_``, ``eval``) or
    replaced. It is a view: the parts and their weights belong to the network, which is what to
    move, to save and to build into other modules. To cut a network off here, use torchvision's
    ``create_feature_extractor(network, ["norm"])``.

    Args:
        network: whose features they are.
    """

    def __init__(self, network: "DenseNet") -> None:
        super().__init__()
        self.network = (network,)  # in a tuple: it is no part of this module

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the last block's normalised maps, before the ReLU."""
        [network] = self.network
        return network.norm(network.blocks[-1](network.up_to_last_block(x)))

    def parts(self) -> list[nn.Module]:
        """Return the network's parts that it runs."""
        return [p for n in self.network for p in (n.stem, n.blocks, n.transitions, n.norm)]

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Yield the parameters of the parts that it runs."""
        yield from chain(*(part.parameters(recurse) for part in self.parts()))

    def train(self, mode: bool = True) -> "Features":
        """Set the mode of the parts that it runs."""
        for part in self.parts():
            part.train(mode)
        return super().train(mode)


class Head:
    """What reads the last block: BN, ReLU and global average pooling (section 3).

    Args:
        norm: the network's last BatchNorm.
    """

    pool_size, pools_first = 0, True

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm

    def __call__(self, maps: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C)."""
        return F.relu(self.norm(maps)).mean(dim=(2, 3))

    def after_pooling(self, pooled: Tensor) -> Tensor:
        """Return ``pooled``, (N, C): nothing is left to do."""
        return pooled


def run(block: nn.Module, reader: Any, x: Tensor) -> Tensor:
    """Return ``reader(block(x))``, both at once where the block knows how."""
    return block.read_by(reader, x) if isinstance(block, DenseBlock) else reader(block(x))


class DenseNet(nn.Module):
    """DenseNet and its variants B, C and BC (Huang et al. 2017, sections 3 and 4, Table 1).

    The names and defaults of the arguments are those of the well-known memory-efficient
    implementation, so its call sites work; the default network is DenseNet-BC with L = 100 and
    k = 12 for images of CIFAR's size.

    Args:
        growth_rate: maps each layer adds, k.
        block_config: layers in each dense block.
        compression: θ, the share of maps that a transition keeps; 1 keeps all.
        num_init_features: maps that the stem makes, k_0.
        bn_size: width of a bottleneck in units of k.
        drop_rate: share that dropout sets to zero in training; the paper uses 0.2 without
            augmentation.
        num_classes: classes to tell apart.
        small_inputs: the 3×3 stem for small images, or the 7×7 one of ImageNet.
        efficient: how dense blocks run: ``False`` plainly; ``True`` in the least memory, and
            faster; or the name of one of the ways in :mod:`densenet_from_scratch.efficient`. All
            give the same results.
        bottleneck: bottleneck layers (B) or basic ones.
        in_channels: channels of the image.
        drop_after: where dropout works: ``"layer"``, on the output of each dense layer, as in
            torchvision; or ``"convolution"``, after each convolution but the first, as the paper
            says (section 4.2) and the authors' code does.
        init_mode: first weights are scaled by their ``"fan_in"``, as in torchvision, or
            ``"fan_out"``, as in the authors' code: ``plain.initialise`` tells the difference.

    Raises:
        ValueError: an argument is out of range; the message names it, its value and the range.
    """

    def __init__(
        self,
        growth_rate: int = 12,
        block_config: Sequence[int] = (16, 16, 16),
        compression: float = 0.5,
        num_init_features: int = 24,
        bn_size: int = 4,
        drop_rate: float = 0.0,
        num_classes: int = 10,
        small_inputs: bool = True,
        efficient: bool | str = False,
        bottleneck: bool = True,
        in_channels: int = 3,
        drop_after: str = "layer",
        init_mode: Literal["fan_in", "fan_out"] = "fan_in",
    ) -> None:
        super().__init__()
        check_count("num_classes", num_classes)
        check_count("in_channels", in_channels)
        channels = check_count("num_init_features", num_init_features)
        if not isinstance(block_config, Sequence) or not block_config:
            raise ValueError(f"block_config must list at least one block, got {block_config!r}")
        check_fraction("compression", compression)
        block_type = BLOCK_TYPES[check_choice("efficient", efficient, BLOCK_TYPES)]

        check_choice("init_mode", init_mode, INIT_MODES)
        check_choice("small_inputs", small_inputs, (True, False))
        transition_drop_rate = drop_rate if drop_after == "convolution" else 0.0

        stem_type = SmallStem if small_inputs else ImageNetStem
        self.stem = stem_type(in_channels, channels)
        self.checkpoint_stem = efficient is not False and not small_inputs
        self.blocks = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for index, num_layers in enumerate(block_config):
            check_count(f"block_config[{index}]", num_layers)
            block = block_type(
                num_layers, channels, growth_rate, bottleneck, bn_size, drop_rate, drop_after
            )
            self.blocks.append(block)
            channels = block.out_channels
            if index < len(block_config) - 1:  # a transition between blocks, none after the last
                transition = Transition(channels, compression, transition_drop_rate)
                self.transitions.append(transition)
                channels = transition.out_channels
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)

        self.features = Features(self)  # type: ignore[misc]  # registered; the property finds it
        self.apply(partial(initialise, mode=init_mode))

    @property
    def features(self) -> Any:
        """The module that maps images (N, C, H, W) to normalised maps, before the last ReLU.

        A subclass may override it with a method, which may call ``super().features(x)``.
        """
        part = super().__getattr__("features")
        if isinstance(part, Features):
            part.network = (self,)
        return part

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes).

        Raises:
            ValueError: ``x`` is not a batch of images with ``in_channels`` channels, or is smaller
                than ``minimum_size`` pixels; or ``features`` was set to None.
        """
        if self.why_not_features():
            if self.features is None:
                raise ValueError("features must be a module, or overridden by a method, got None")
            pooled = F.relu(self.features(x)).mean(dim=(2, 3))  # global average pooling: (N, C)
        else:
            pooled = run(self.blocks[-1], Head(self.norm), self.up_to_last_block(x))
        return self.classifier(pooled)

    def up_to_last_block(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to the last block's input."""
        x = check_images(x, self.in_channels, self.minimum_size)
        x = checkpointed_stem(self.stem, x) if self.checkpoint_stem else self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=False):
            x = run(block, transition, x)
        return x

    @property
    def in_channels(self) -> int | None:
        """Channels of the image, or None where the stem is one of your own and may take any."""
        return channels_read(self.stem)

    @property
    def minimum_size(self) -> int:
        """Pixels an image must be high and wide for every stage to be left one."""
        # Every transition halves the maps, and the ImageNet stem quarters them, rounding up.
        size = 2 ** sum(isinstance(transition, Transition) for transition in self.transitions)
        return 4 * (size - 1) + 1 if isinstance(self.stem, ImageNetStem) else size

    def why_not_features(self) -> str | None:
        """Return why ``forward`` must call ``features``, or None: the head may read a shared x̂."""
        for name in ("features", "up_to_last_block"):
            if getattr(type(self), name) is not getattr(DenseNet, name):
                return f"{name} is overridden"
        if "up_to_last_block" in vars(self):
            return "up_to_last_block is overridden"
        own = self.features
        if type(own) is not Features or "forward" in vars(own) or is_watched(own):
            return "features is replaced, or has a hook or a forward of its own"
        return None

    def why_not_as_built(self) -> str | None:
        """Return in one line what of the network is not as its class built it, or None.

        :class:`~densenet_from_scratch.FrozenDenseNet` takes only a network as built, and the
        efficient ways go round only parts as built. The stem and the classifier are always run as
        they are.
        """
        if type(self).forward is not DenseNet.forward or "forward" in vars(self):
            return "the network has a forward of its own"
        if reason := self.why_not_features():
            return reason
        if len(self.transitions) != len(self.blocks) - 1:
            return f"{len(self.blocks)} blocks have {len(self.transitions)} transitions"
        blocks: list[Any] = [*self.blocks]
        transitions: list[Any] = [*self.transitions]
        width = None
        for number, block in enumerate(blocks):
            name = f"blocks.{number}"
            if reason := why_not_whole(block, name):
                return reason
            if reason := why_not_alike(block.layers, width, f"{name}.layers"):
                return reason
            new_maps = [len(parameters_of(layer)[-1]) for layer in block.layers]
            width = len(block.layers[0].norm1.weight) + sum(new_maps)
            reader: Any = self  # its norm reads the last block, and a transition's any other
            if number < len(transitions):
                reader = transitions[number]
                if reason := why_not_as_built(reader, f"transitions.{number}"):
                    return reason
            elif reason := why_not_as_built(self.norm, "norm"):
                return reason
            if reader.norm.num_features != width:
                return f"what reads {name} reads {reader.norm.num_features} maps, not {width}"
            width = None if reader is self else len(reader.conv.weight)
        for name, part in self.named_modules():
            if isinstance(part, nn.BatchNorm2d) and part.training and not self.training:
                return f"{name} is in training and the network in evaluation"
        gone_round = (self.blocks, self.transitions, self.norm)
        tensors = [*chain(*((*part.parameters(), *part.buffers()) for part in gone_round))]
        kinds = {(t.dtype, t.device) for t in tensors if t.is_floating_point()}
        return "its parameters are of several types or devices" if len(kinds) > 1 else None

    def __prepare_scriptable__(self) -> None:
        raise TypeError(NO_SCRIPT)

    def frozen(self) -> FrozenDenseNet:
        """Return a copy for inference only, which is faster: see :class:`FrozenDenseNet`.

        Raises:
            ValueError: a part is not as built; ``why_not_as_built`` says what.
        """
        return FrozenDenseNet(self)

    @property
    def depth(self) -> int:
        """L as the paper counts it: convolutions on the way through, and one for the classifier."""
        layers = [layer for block in self.blocks for layer in block.layers]  # type: ignore[union-attr]
        per_layer = 2 if hasattr(layers[0], "conv2") else 1
        return 1 + per_layer * len(layers) + len(self.transitions) + 1


def densenet_cifar(
    depth: int,
    growth_rate: int,
    bottleneck: bool = True,
    compression: float = 0.5,
    *,
    drop_rate: float = 0.0,
    num_classes: int = 10,
    efficient: bool | str = False,
    in_channels: int = 3,
    drop_after: str = "layer",
    init_mode: Literal["fan_in", "fan_out"] = "fan_in",
) -> DenseNet:
    """Build a network of the paper's CIFAR and SVHN experiments (sections 3 and 4) from L and k.

    Three equal blocks. L counts the stem, two transitions, the classifier and the layers' own
    convolutions, one a layer or two with a bottleneck, so L = 3n + 4 or L = 6n + 4. DenseNet-BC
    starts with 2k maps and the others with 16.

    Args:
        depth: L.
        growth_rate: k.
        bottleneck: DenseNet-B.
        compression: θ; below 1 it is DenseNet-C.
        drop_rate: share that dropout sets to zero in training.
        num_classes: classes to tell apart.
        efficient: how dense blocks run, see :class:`DenseNet`.
        in_channels: channels of the image.
        drop_after: ``"layer"`` or ``"convolution"``, see :class:`DenseNet`.
        init_mode: ``"fan_in"`` or ``"fan_out"``, see :class:`DenseNet`.

    Raises:
        ValueError: no such network has depth ``depth``, or another argument is out of range.
    """
    step = 6 if check_choice("bottleneck", bottleneck, (True, False)) else 3
    check_count("depth", depth, minimum=step + 4)
    if (depth - 4) % step:
        below = depth - (depth - 4) % step
        raise ValueError(
            f"depth must be {step}n + 4 with {'' if bottleneck else 'no '}bottleneck "
            f"(nearest: {below} and {below + step}), got {depth}"
        )
    check_count("growth_rate", growth_rate)
    return DenseNet(
        growth_rate=growth_rate,
        block_config=((depth - 4) // step,) * 3,
        compression=compression,
        num_init_features=2 * growth_rate if bottleneck and compression < 1 else 16,
        drop_rate=drop_rate,
        num_classes=num_classes,
        efficient=efficient,
        bottleneck=bottleneck,
        in_channels=in_channels,
        drop_after=drop_after,
        init_mode=init_mode,
    )


def _imagenet(
    growth_rate: int, block_config: tuple[int, ...], num_classes: int, efficient: bool | str
) -> DenseNet:
    return DenseNet(
        growth_rate=growth_rate,
        block_config=block_config,
        num_init_features=2 * growth_rate,
        num_classes=num_classes,
        small_inputs=False,
        efficient=efficient,
    )


def densenet121(num_classes: int = 1000, *, efficient: bool | str = False) -> DenseNet:
    """DenseNet-121 of Table 1: k = 32, blocks of 6, 12, 24 and 16 layers."""
    return _imagenet(32, (6, 12, 24, 16), num_classes, efficient)


def densenet161(num_classes: int = 1000, *, efficient: bool | str = False) -> DenseNet:
    """DenseNet-161, the authors' widest ImageNet network: k = 48, blocks of 6, 12, 36 and 24."""
    return _imagenet(48, (6, 12, 36, 24), num_classes, efficient)


def densenet169(num_classes: int = 1000, *, efficient: bool | str = False) -> DenseNet:
    """DenseNet-169 of Table 1: k = 32, blocks of 6, 12, 32 and 32 layers."""
    return _imagenet(32, (6, 12, 32, 32), num_classes, efficient)


def densenet201(num_classes: int = 1000, *, efficient: bool | str = False) -> DenseNet:
    """DenseNet-201 of Table 1: k = 32, blocks of 6, 12, 48 and 32 layers."""
    return _imagenet(32, (6, 12, 48, 32), num_classes, efficient)


def densenet264(num_classes: int = 1000, *, efficient: bool | str = False) -> DenseNet:
    """DenseNet-264 of Table 1: k = 32, blocks of 6, 12, 64 and 48 layers.

    Its ``depth`` is 265: the paper's name is one less than its own count (chapter 7).
    """
    return _imagenet(32, (6, 12, 64, 48), num_classes, efficient)
