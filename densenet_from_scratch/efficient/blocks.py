"""Blocks that share normalisation, and all the ways of running a block by name (chapter 10)."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.dense import BottleneckLayer, DenseBlock, Reader
from densenet_from_scratch.efficient.as_built import (
    why_not_alike,
    why_not_as_built,
    why_not_in_types,
    why_not_round,
)
from densenet_from_scratch.efficient.checkpointed import (
    CheckpointedBlock,
    SelectiveBlock,
    recompute_to_conv1,
    run_checkpointed,
)
from densenet_from_scratch.efficient.shared import (
    ActivateAndPool,
    Plan,
    SharedNormalisation,
    parameters_of,
)
from densenet_from_scratch.internals import is_watched
from densenet_from_scratch.kernels.layout import memory_format

PARTS_OF_A_READER = ("norm", "pool_size", "pools_first", "after_pooling")


class SharedBlock(DenseBlock):
    """A dense block that normalises every map once, for all the layers that read it.

    It does so in training. Where BatchNorm uses running statistics, which differ from layer to
    layer, or a part of the block is not as built, it checkpoints instead; ``why_not_shared`` says
    what is in the way.
    """

    keep_bottleneck = True

    @torch.compiler.disable(recursive=True)
    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to (N, k_0 + kL, H, W)."""
        if self.why_not_shared(x):
            return run_checkpointed(self, x, recompute_to_conv1)
        _, _, maps = self._run(x, with_maps=True)
        assert maps is not None
        return maps

    def read_by(self, reader: Reader, x: Tensor) -> Tensor:
        """Return ``reader(self(x))``; the reader's norm reads the block's x̂, if that can be."""
        if self.why_not_read(reader, x):
            return reader(self(x))
        norm, size = reader.norm, reader.pool_size
        assert isinstance(norm, nn.BatchNorm2d)
        x_hat, statistics, _ = self._run(x)
        update_statistics(norm, *statistics)
        pooled = ActivateAndPool.apply(x_hat, norm.weight, norm.bias, size)
        if size:
            pooled = pooled.contiguous(memory_format=memory_format(x))
        return reader.after_pooling(pooled)

    def why_not_read(self, reader: Reader, x: Tensor) -> str | None:
        """Return in one line why a reader's norm cannot read the block's x̂ of ``x``, or None."""
        if isinstance(reader, nn.Module) and (
            reason := why_not_as_built(reader, "what reads the block")
        ):
            return reason
        if missing := [name for name in PARTS_OF_A_READER if not hasattr(reader, name)]:
            return f"what reads the block has no {missing[0]}"
        if not isinstance(reader.norm, nn.BatchNorm2d):
            return f"the norm after the block is a {type(reader.norm).__name__}"
        if not reader.pools_first:
            return "dropout stands between the reader's convolution and its pooling"
        return why_not_whole(self) or self.why_not_shared(x, reader.norm)

    def why_not_shared(self, x: Tensor, *readers: nn.Module) -> str | None:
        """Return in one line why one x̂ of ``x`` cannot serve all layers here and now, or None.

        Args:
            x: the block's input, (N, k_0, H, W).
            readers: BatchNorms that read the block's output, if they are to be served, too.
        """
        if reason := why_not_round(x):
            return reason
        layers: list[Any] = list(self.layers)
        if reason := why_not_alike(layers, x.shape[1]):
            return reason
        for reader in readers:
            if reason := why_not_as_built(reader, "the norm after the block"):
                return reason
        norms: list[Any] = [layer.norm1 for layer in layers] + [*readers]
        if len({norm.eps for norm in norms}) > 1:
            return "the norms have several eps"
        norms += [layer.norm2 for layer in layers if isinstance(layer, BottleneckLayer)]
        if not all(norm.training for norm in norms):
            return "a norm is in evaluation"
        for layer in layers:
            if isinstance(layer, BottleneckLayer) and layer.bottleneck_drop_rate and layer.training:
                return "dropout follows the bottleneck's convolution"
        if x.numel() <= x.shape[1]:
            return f"x has no more than one value per channel, {tuple(x.shape)}"
        statistics = chain(*((norm.running_mean, norm.running_var) for norm in norms))
        parameters = chain(*(part.parameters() for part in (self, *readers)))
        return why_not_in_types(x, chain(parameters, statistics))

    def _run(self, x: Tensor, with_maps: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return X̂, mean and variance of each of its channels, and, if wanted, the maps.

        The layers' running statistics are updated, once.
        """
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        layers: list[Any] = list(self.layers)
        middle = [layer.norm2 for layer in layers if isinstance(layer, BottleneckLayer)]
        plan = Plan(
            eps=layers[0].norm1.eps,
            eps_middle=tuple(norm.eps for norm in middle),
            drop_rates=tuple(layer.drop_rate if layer.training else 0.0 for layer in layers),
            keep_bottleneck=self.keep_bottleneck,
            with_maps=with_maps,
        )
        values = [value for layer in layers for value in parameters_of(layer)]
        with torch.autocast(kind, enabled=False):  # the types are chosen here
            x_hat, of_block, of_middle, maps = SharedNormalisation.apply(plan, x, *values)
        for layer in layers:
            update_statistics(layer.norm1, *of_block[:, : len(layer.norm1.weight)])
        for norm, statistics in zip(middle, of_middle, strict=False):
            update_statistics(norm, *statistics)
        return x_hat, of_block, maps


class RecomputingSharedBlock(SharedBlock):
    """A shared block that also computes the bottlenecks' maps again in the backward pass."""

    keep_bottleneck = False


@torch.no_grad()
def update_statistics(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Update the running statistics as ``norm`` would if it saw the batch, once."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    share = norm.momentum if norm.momentum is not None else 1 / int(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)


def why_not_whole(block: nn.Module, name: str = "the block") -> str | None:
    """Return why a block as a whole cannot be gone round, whatever its layers are, or None."""
    if type(block) not in BLOCK_TYPES.values():
        return f"{name} is a {type(block).__name__}"
    if "forward" in vars(block) or "read_by" in vars(block) or is_watched(block):
        return f"{name} has a forward of its own or a hook, or was compiled"
    return None


BLOCK_TYPES: dict[bool | str, type[DenseBlock]] = {
    False: DenseBlock,
    True: RecomputingSharedBlock,
    "checkpoint": CheckpointedBlock,
    "selective": SelectiveBlock,
    "shared": SharedBlock,
    "shared-recompute": RecomputingSharedBlock,
}
"""The values of ``DenseNet(efficient=...)``."""
