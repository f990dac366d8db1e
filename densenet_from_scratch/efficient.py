"""Ways of running a dense block in less memory, with the same result (chapter 10).

Plain training stores, for every layer, the concatenation of all earlier maps and its normalised
copy: a memory that grows with the square of the depth. In the order of the chapter:

- ``"checkpoint"`` stores neither but computes them again in the backward pass (Pleiss et al. 2017,
  "Memory-Efficient Implementation of DenseNets");
- ``"selective"`` computes everything again but the convolutions (selective activation
  checkpointing);
- ``"shared"`` normalises each map once, not once for every layer that reads it, and so needs
  neither the copies nor the repetition: see :mod:`densenet_from_scratch.shared`;
- ``"shared-recompute"`` also computes the bottlenecks again; it stores one number for each of the
  block's. ``True`` means this one.
"""

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from densenet_from_scratch.dense import BottleneckLayer, DenseBlock, DenseLayer
from densenet_from_scratch.shared import (
    ActivateAndPool,
    SharedNormalisation,
    are_as_built,
    is_as_built,
    memory_format,
    update_statistics,
)
from densenet_from_scratch.transition import Transition


class FrozenStatistics(AbstractContextManager):
    """Inside, modules work in the given modes and their BatchNorms' running statistics stay.

    A checkpointed BatchNorm runs twice in a training step, and would count the batch twice. Copies
    take the second update, so that everything else happens as it did the first time.

    Args:
        modes: for each module, whether it was in training mode the first time.
    """

    def __init__(self, modes: Mapping[nn.Module, bool]) -> None:
        self.modes = modes

    def __enter__(self) -> None:
        """Put the copies in place."""
        self.before = [(module, module.training, dict(module._buffers)) for module in self.modes]
        for module, mode in self.modes.items():
            module.training = mode
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.clone()

    def __exit__(self, *_: object) -> None:
        """Take them away."""
        for module, mode, buffers in self.before:
            module.training = mode
            module._buffers.update(buffers)


def frozen_statistics(*modules: nn.Module) -> FrozenStatistics:
    """Return the context for recomputing what ``modules`` compute now, in their modes of now."""
    return FrozenStatistics({part: part.training for m in modules for part in m.modules()})


class CheckpointedBlock(DenseBlock):
    """A dense block that recomputes concatenation, norm1, ReLU and conv1 in the backward pass.

    Arguments, weights, outputs, gradients and running statistics are those of
    :class:`~densenet_from_scratch.dense.DenseBlock`. Stored for each layer: its k new maps and the
    bottleneck's output.
    """

    @torch.compiler.disable(recursive=True)
    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to (N, k_0 + kL, H, W)."""
        features = [x]
        for layer in self.layers:
            assert isinstance(layer, DenseLayer | BottleneckLayer)
            features.append(self.run_layer(layer, features))
        return torch.cat(features, dim=1)

    def run_layer(self, layer: DenseLayer | BottleneckLayer, features: list[Tensor]) -> Tensor:
        """Return the new maps of one layer."""

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), frozen_statistics(layer.norm1)

        through_conv1 = checkpoint(
            lambda *maps: layer.through_conv1(torch.cat(maps, dim=1)),
            *features,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing in this part is random
            context_fn=contexts,
        )
        return layer.after_conv1(through_conv1)


class SelectiveBlock(CheckpointedBlock):
    """A dense block that keeps the outputs of its convolutions and recomputes all the rest.

    Convolutions take most of the time and their outputs little memory; concatenation, BatchNorm and
    ReLU are the other way round.
    """

    def run_layer(self, layer: DenseLayer | BottleneckLayer, features: list[Tensor]) -> Tensor:
        """Return the new maps of one layer."""

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            keep, recompute = create_selective_checkpoint_contexts(_keep_convolutions)
            return keep, _Once(frozen_statistics(layer), recompute)

        return checkpoint(
            lambda *maps: layer(torch.cat(maps, dim=1)),
            *features,
            use_reentrant=False,
            preserve_rng_state=bool(layer.drop_rate),
            context_fn=contexts,
            **COUNTED,
        )


# What is kept should be seen by those who count it, such as measure.saved_tensors. Where PyTorch
# does not know this option yet, it hides it from them.
COUNTED: dict[str, Any] = {
    name: True
    for name in ("respect_saved_tensors_hooks",)
    if name in inspect.signature(checkpoint).parameters
}


class _Once(AbstractContextManager):
    """One context inside another, once: what selective checkpointing kept is used up by then."""

    def __init__(self, outer: AbstractContextManager, inner: AbstractContextManager) -> None:
        self.outer, self.inner, self.used = outer, inner, False

    def __enter__(self) -> None:
        if self.used:
            raise RuntimeError(
                'efficient="selective" has one backward pass for each forward pass and no second '
                'derivative: build the network with efficient="checkpoint" or efficient=False'
            )
        self.used = True
        self.outer.__enter__()
        self.inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)
        self.outer.__exit__(*error)


def _keep_convolutions(_context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    if operation is torch.ops.aten.convolution.default:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


class SharedBlock(CheckpointedBlock):
    """A dense block that normalises every map once, for all the layers that read it.

    It does so in training. Where BatchNorm uses running statistics, which differ from layer to
    layer, or a part of the block is not of its own kind, it checkpoints instead. Hooks on modules
    inside do not run: what they would see is never computed whole.
    """

    keep_bottleneck = True

    @torch.compiler.disable(recursive=True)
    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to (N, k_0 + kL, H, W)."""
        if not self.can_share():
            return super().forward(x)
        *_, maps = self.run_shared(x, with_maps=True)
        return maps

    def can_share(self, *readers: nn.BatchNorm2d) -> bool:
        """Say whether one x̂ serves all layers and the ``readers`` of the block's output."""
        if not are_as_built(self.layers) or {*map(type, readers)} - {nn.BatchNorm2d}:
            return False  # such as SyncBatchNorm, or a weight that is computed from others
        layers: list[Any] = list(self.layers)
        norms = [part for part in self.modules() if isinstance(part, nn.BatchNorm2d)] + [*readers]
        same = {norm.eps for norm in (*(layer.norm1 for layer in layers), *readers)}
        return len(same) == 1 and all(norm.training and norm.affine for norm in norms)

    def run_shared(self, x: Tensor, with_maps: bool = False) -> tuple[Tensor, ...]:
        """Return x̂, the channels' means and variances, and, if wanted, the maps."""
        if x.numel() == x.shape[1]:
            raise ValueError(
                f"x must have more than one value per channel in training, got {tuple(x.shape)}"
            )
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):  # the types are chosen here
            return SharedNormalisation.apply(
                list(self.layers), self.keep_bottleneck, with_maps, x, *self.layers.parameters()
            )

    @torch.compiler.disable(recursive=True)
    def pooled(self, x: Tensor, norm: nn.BatchNorm2d, size: int) -> Tensor:
        """Return what ``norm``, ReLU and average pooling make of the block's output.

        Args:
            x: the block's input, (N, k_0, H, W).
            norm: BatchNorm of k_0 + kL channels.
            size: height and width of the windows to pool, or 0 for the whole map.

        Returns:
            (N, k_0 + kL, ⌊H/size⌋, ⌊W/size⌋), or (N, k_0 + kL).
        """
        x_hat, mean, variance, _ = self.run_shared(x)
        update_statistics(norm, mean, variance)
        result = ActivateAndPool.apply(x_hat, norm.weight, norm.bias, size)
        return result.contiguous(memory_format=memory_format(x)) if size else result


class RecomputingSharedBlock(SharedBlock):
    """A shared block that also computes the bottlenecks' maps again in the backward pass."""

    keep_bottleneck = False


@torch.compiler.disable(recursive=True)
def checkpointed_stem(stem: nn.Sequential, x: Tensor) -> Tensor:
    """Run the ImageNet stem on images, storing only the maps its convolution makes.

    They are the largest of the network; BN, ReLU and max-pooling are cheap to compute again.
    """
    convolution, norm, relu, pool = stem
    assert isinstance(norm, nn.BatchNorm2d)
    return checkpoint(
        lambda maps: pool(relu(norm(maps))),
        convolution(x),
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), frozen_statistics(norm)),
    )


def block_and_transition(block: DenseBlock, transition: Transition, x: Tensor) -> Tensor:
    """Return ``transition(block(x))``; where the block shares its x̂, the transition reads it too.

    Args:
        block: a dense block, run in any of the ways.
        transition: what follows it.
        x: (N, k_0, H, W).
    """
    reads_x_hat = is_as_built(transition)
    if reads_x_hat and isinstance(block, SharedBlock) and block.can_share(transition.norm):
        return transition.conv(block.pooled(x, transition.norm, size=2))
    return transition(block(x))


def block_and_pool(block: DenseBlock, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Return the network's last features, (N, k_0 + kL): block, BN, ReLU, global average pooling.

    Args:
        block: the last dense block, run in any of the ways.
        norm: the network's last BatchNorm.
        x: (N, k_0, H, W).
    """
    if isinstance(block, SharedBlock) and block.can_share(norm):
        return block.pooled(x, norm, size=0)
    return F.relu(norm(block(x))).mean(dim=(2, 3))


BLOCK_TYPES: dict[bool | str, type[DenseBlock]] = {
    False: DenseBlock,
    True: RecomputingSharedBlock,
    "checkpoint": CheckpointedBlock,
    "selective": SelectiveBlock,
    "shared": SharedBlock,
    "shared-recompute": RecomputingSharedBlock,
}
"""The values of ``DenseNet(efficient=...)``."""
