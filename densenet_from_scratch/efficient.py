"""Ways of running a dense block in less memory, with the same result to the bit (chapter 10).

Plain training stores, for every layer, the concatenation of all earlier maps and its normalised
copy: a memory that grows with the square of the depth. Pleiss et al. (2017), "Memory-Efficient
Implementation of DenseNets", do not store them but compute them again in the backward pass.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densenet_from_scratch.dense import BottleneckLayer, DenseBlock, DenseLayer


@contextmanager
def frozen_statistics(norm: nn.BatchNorm2d, training: bool) -> Iterator[None]:
    """Let ``norm`` normalise in the given mode without touching its running statistics.

    A checkpointed BatchNorm runs twice in a training step, and would count the batch twice. Copies
    take the second update, so that everything else happens as it did the first time.
    """
    mode, buffers = norm.training, dict(norm.named_buffers())
    norm.training = training
    for name, buffer in buffers.items():
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        norm.training = mode
        for name, buffer in buffers.items():
            setattr(norm, name, buffer)


class CheckpointedBlock(DenseBlock):
    """A dense block that recomputes concatenation, norm1, ReLU and conv1 in the backward pass.

    Arguments, weights, outputs, gradients and running statistics are those of
    :class:`~densenet_from_scratch.dense.DenseBlock`. Stored for each layer: its k new maps and the
    bottleneck's output.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to (N, k_0 + kL, H, W)."""
        features = [x]
        for layer in self.layers:
            assert isinstance(layer, DenseLayer | BottleneckLayer)
            features.append(layer.after_conv1(_checkpointed_conv1(layer, features)))
        return torch.cat(features, dim=1)


def _checkpointed_conv1(layer: DenseLayer | BottleneckLayer, features: list[Tensor]) -> Tensor:
    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        first, again = nullcontext(), frozen_statistics(layer.norm1, layer.norm1.training)
        return first, again

    return checkpoint(
        lambda *maps: layer.through_conv1(torch.cat(maps, dim=1)),
        *features,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in this part is random
        context_fn=contexts,
    )


BLOCK_TYPES: dict[bool | str, type[DenseBlock]] = {
    False: DenseBlock,
    True: CheckpointedBlock,
    "checkpoint": CheckpointedBlock,
}
"""The values of ``DenseNet(efficient=...)``: ``True`` is the best of the exact ways."""
