"""Checkpointing: storing less in the forward pass, and computing it again in the backward pass.

Chapter 10; Pleiss et al. 2017, "Memory-Efficient Implementation of DenseNets".
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from densenet_from_scratch.dense import BottleneckLayer, DenseBlock, DenseLayer
from densenet_from_scratch.efficient.as_built import why_not_as_built, why_not_round


class _Again(nn.Module, AbstractContextManager):
    """A computation that checkpointing does twice: at once, and in the backward pass again.

    The second time all is as it was the first time: the modules' modes and settings, and the
    tensors, which autograd has kept and watched, whatever the modules hold by then
    (torch.func.functional_call puts other ones in for a while). BatchNorms update copies, lest they
    count the batch twice.

    Args:
        owner: the module that computes.
        used: the names of those of its parts that it computes with.
        run: the computation.
    """

    def __init__(self, owner: nn.Module, used: Sequence[str], run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: getattr(owner, name) for name in used})
        self.run, self.again = run, False
        self.settings = [(part, _settings(part)) for part in (owner, *self.parts.modules())]
        self.tensors = dict(self.named_parameters())
        self.moving: dict[str, Tensor] = {}
        for prefix, module in self.named_modules():
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if module.training:
                    self.moving[name] = buffer
                else:  # a later step in training may move them before the backward pass
                    self.tensors[name] = buffer.clone()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(*inputs)

    def first_or_again(self, *tensors: Tensor) -> Tensor:
        """Compute from the inputs, followed by ``self.tensors``."""
        inputs = tensors[: len(tensors) - len(self.tensors)]
        if not self.again:
            return self.run(*inputs)
        state = dict(zip(self.tensors, tensors[len(inputs) :], strict=True))
        return functional_call(self, state | self.copies, inputs)

    def __enter__(self) -> None:
        """Go back to the settings of the first time."""
        self.present = [(part, _settings(part)) for part, _ in self.settings]
        self.copies = {name: buffer.clone() for name, buffer in self.moving.items()}
        self._set(self.settings, again=True)

    def __exit__(self, *_: object) -> None:
        """Return to the present."""
        self._set(self.present, again=False)

    def _set(self, settings: list[tuple[nn.Module, dict[str, Any]]], again: bool) -> None:
        self.again = again
        for part, values in settings:
            vars(part).update(values)


def _settings(part: nn.Module) -> dict[str, Any]:
    """Return a part's plain attributes: its mode, drop rate, eps and the like."""
    return {name: value for name, value in vars(part).items() if not name.startswith("_")}


def recomputed(
    owner: nn.Module,
    used: Sequence[str],
    run: Callable[..., Tensor],
    *inputs: Tensor,
    random: bool = False,
    keep: Callable[..., CheckpointPolicy] | None = None,
) -> Tensor:
    """Return ``run(*inputs)``, whose inner results are computed again in the backward pass.

    Args:
        owner: the module that computes; it must be as built.
        used: the names of those of its parts that it computes with.
        run: the computation.
        inputs: tensors, which are stored.
        random: whether random numbers are drawn.
        keep: which operations' results are stored after all; by default none.
    """
    twice = _Again(owner, used, run)

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        if keep is None:
            return nullcontext(), twice
        first, second = create_selective_checkpoint_contexts(keep)
        return first, _Once(twice, second)

    return checkpoint(
        twice.first_or_again,
        *inputs,
        *twice.tensors.values(),
        use_reentrant=False,
        preserve_rng_state=random,
        context_fn=contexts,
        **(COUNTED if keep else {}),
    )


def run_checkpointed(block: DenseBlock, x: Tensor, run_layer: Callable[..., Tensor]) -> Tensor:
    """Map (N, k_0, H, W) to (N, k_0 + kL, H, W), as :class:`DenseBlock` does.

    Args:
        block: whose layers run.
        x: its input.
        run_layer: takes a layer that is as built and the list of all maps before it, and returns
            the new maps. Any other layer runs plainly.
    """
    if not torch.is_grad_enabled() or why_not_round(x):
        return DenseBlock.forward(block, x)
    features = [x]
    for layer in block.layers:
        if why_not_as_built(layer):
            features.append(layer(torch.cat(features, dim=1)))
        else:
            features.append(run_layer(layer, features))
    return torch.cat(features, dim=1)


def recompute_to_conv1(layer: DenseLayer | BottleneckLayer, features: list[Tensor]) -> Tensor:
    """Return a layer's new maps; concatenation, norm1, ReLU and conv1 are computed again."""

    def through_conv1(*maps: Tensor) -> Tensor:
        return layer.through_conv1(torch.cat(maps, dim=1))

    random = isinstance(layer, BottleneckLayer) and bool(layer.bottleneck_drop_rate)
    used = ("norm1", "conv1")
    return layer.after_conv1(recomputed(layer, used, through_conv1, *features, random=random))


def recompute_all_but_convolutions(
    layer: DenseLayer | BottleneckLayer, features: list[Tensor]
) -> Tensor:
    """Return a layer's new maps; only the outputs of its convolutions are stored."""

    def run(*maps: Tensor) -> Tensor:
        return layer(torch.cat(maps, dim=1))

    random = bool(layer.drop_rate)
    used = [name for name, _ in layer.named_children()]
    return recomputed(layer, used, run, *features, random=random, keep=_keep_convolutions)


class CheckpointedBlock(DenseBlock):
    """A dense block that recomputes concatenation, norm1, ReLU and conv1 in the backward pass.

    Arguments, weights, outputs, gradients and running statistics are those of
    :class:`~densenet_from_scratch.dense.DenseBlock`. Stored for each layer: its k new maps and the
    bottleneck's output. A layer that is not as built runs plainly.
    """

    @torch.compiler.disable(recursive=True)
    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to (N, k_0 + kL, H, W)."""
        return run_checkpointed(self, x, recompute_to_conv1)


class SelectiveBlock(DenseBlock):
    """A dense block that keeps the outputs of its convolutions and recomputes all the rest.

    Convolutions take most of the time and their outputs little memory; concatenation, BatchNorm and
    ReLU are the other way round. A layer that is not as built runs plainly.
    """

    @torch.compiler.disable(recursive=True)
    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to (N, k_0 + kL, H, W)."""
        return run_checkpointed(self, x, recompute_all_but_convolutions)


# An option of checkpoint: what is kept is to be seen by those who count what is stored, such as
# measure.saved_tensors. A PyTorch that does not know the option hides it from them.
COUNTED: dict[str, Any] = {
    name: True
    for name in ("respect_saved_tensors_hooks",)
    if name in inspect.signature(checkpoint).parameters
}


class _Once(AbstractContextManager):
    """One context inside another, once: what selective checkpointing stores serves one time."""

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


@torch.compiler.disable(recursive=True)
def checkpointed_stem(stem: nn.Module, x: Tensor) -> Tensor:
    """Run the ImageNet stem on images, storing only the maps its convolution makes.

    They are the largest of the network; BN, ReLU and max-pooling are cheap to compute again. A stem
    that is not as built runs plainly.
    """
    if why_not_as_built(stem) or why_not_round(x):
        return stem(x)
    parts: Any = stem

    def after_conv(maps: Tensor) -> Tensor:
        return parts.pool(parts.relu(parts.norm(maps)))

    return recomputed(parts, ("norm",), after_conv, parts.conv(x))
