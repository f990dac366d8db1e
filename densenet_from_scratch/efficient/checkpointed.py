"""Ways of running a dense block in less memory, with the same result (chapter 10).

Plain training stores, for every layer, the concatenation of all earlier maps and its normalised
copy: a memory that grows with the square of the depth. In the order of the chapter:

- ``"checkpoint"`` stores neither but computes them again in the backward pass (Pleiss et al. 2017,
  "Memory-Efficient Implementation of DenseNets");
- ``"selective"`` computes everything again but the convolutions (selective activation
  checkpointing);
- ``"shared"`` normalises each map once, not once for every layer that reads it, and so needs
  neither the copies nor the repetition: see :mod:`densenet_from_scratch.efficient.shared`;
- ``"shared-recompute"`` also computes the bottlenecks again; it stores one number for each of the
  block's. ``True`` means this one.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from densenet_from_scratch.dense import BottleneckLayer, DenseBlock, DenseLayer
from densenet_from_scratch.efficient.as_built import (
    why_not_alike,
    why_not_as_built,
    why_not_in_types,
    why_not_round,
)
from densenet_from_scratch.efficient.shared import (
    ActivateAndPool,
    SharedNormalisation,
    memory_format,
    parameters_of,
    update_statistics,
)
from densenet_from_scratch.internals import is_watched


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
        self.before = [(part, _settings(part)) for part, _ in self.settings]
        self.copies = {name: buffer.clone() for name, buffer in self.moving.items()}
        self._set(self.settings, again=True)

    def __exit__(self, *_: object) -> None:
        """Return to the present."""
        self._set(self.before, again=False)

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


class CheckpointedBlock(DenseBlock):
    """A dense block that recomputes concatenation, norm1, ReLU and conv1 in the backward pass.

    Arguments, weights, outputs, gradients and running statistics are those of
    :class:`~densenet_from_scratch.dense.DenseBlock`. Stored for each layer: its k new maps and the
    bottleneck's output. A layer that is not as built runs plainly.
    """

    @torch.compiler.disable(recursive=True)
    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to (N, k_0 + kL, H, W)."""
        if not torch.is_grad_enabled() or why_not_round(x):
            return super().forward(x)
        features = [x]
        for layer in self.layers:
            if why_not_as_built(layer):
                features.append(layer(torch.cat(features, dim=1)))
            else:
                assert isinstance(layer, DenseLayer | BottleneckLayer)
                features.append(self.run_layer(layer, features))
        return torch.cat(features, dim=1)

    def run_layer(self, layer: DenseLayer | BottleneckLayer, features: list[Tensor]) -> Tensor:
        """Return the new maps of one layer."""

        def through_conv1(*maps: Tensor) -> Tensor:
            return layer.through_conv1(torch.cat(maps, dim=1))

        random = isinstance(layer, BottleneckLayer) and bool(layer.bottleneck_drop_rate)
        used = ("norm1", "conv1")
        return layer.after_conv1(recomputed(layer, used, through_conv1, *features, random=random))


class SelectiveBlock(CheckpointedBlock):
    """A dense block that keeps the outputs of its convolutions and recomputes all the rest.

    Convolutions take most of the time and their outputs little memory; concatenation, BatchNorm and
    ReLU are the other way round.
    """

    def run_layer(self, layer: DenseLayer | BottleneckLayer, features: list[Tensor]) -> Tensor:
        """Return the new maps of one layer."""

        def run(*maps: Tensor) -> Tensor:
            return layer(torch.cat(maps, dim=1))

        random = bool(layer.drop_rate)
        used = [name for name, _ in layer.named_children()]
        return recomputed(layer, used, run, *features, random=random, keep=_keep_convolutions)


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
    layer, or a part of the block is not as built, it checkpoints instead; ``why_not_shared`` says
    what is in the way.
    """

    keep_bottleneck = True

    @torch.compiler.disable(recursive=True)
    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to (N, k_0 + kL, H, W)."""
        if self.why_not_shared(x):
            return super().forward(x)
        *_, maps = self.run_shared(x, with_maps=True)
        return maps

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

    def run_shared(self, x: Tensor, with_maps: bool = False) -> tuple[Tensor, ...]:
        """Return x̂, the channels' means and variances, and, if wanted, the maps."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        layers: list[Any] = list(self.layers)
        values = [value for layer in layers for value in parameters_of(layer)]
        with torch.autocast(kind, enabled=False):  # the types are chosen here
            return SharedNormalisation.apply(layers, self.keep_bottleneck, with_maps, x, *values)

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


def block_and_transition(block: nn.Module, transition: nn.Module, x: Tensor) -> Tensor:
    """Return ``transition(block(x))``; where the block shares its x̂, the transition reads it too.

    Args:
        block: a dense block, run in any of the ways.
        transition: what follows it.
        x: (N, k_0, H, W).
    """
    if isinstance(block, SharedBlock) and not why_not_as_built(transition):
        parts: Any = transition
        drops = parts.drop_rate and parts.training  # between the convolution and the pooling
        if not (drops or why_not_whole(block) or block.why_not_shared(x, parts.norm)):
            return parts.conv(block.pooled(x, parts.norm, size=2))
    return transition(block(x))


def block_and_pool(block: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Return the network's last features, (N, k_0 + kL): block, BN, ReLU, global average pooling.

    Args:
        block: the last dense block, run in any of the ways.
        norm: the network's last BatchNorm.
        x: (N, k_0, H, W).
    """
    if (
        isinstance(block, SharedBlock)
        and isinstance(norm, nn.BatchNorm2d)
        and not (why_not_whole(block) or block.why_not_shared(x, norm))
    ):
        return block.pooled(x, norm, size=0)
    return F.relu(norm(block(x))).mean(dim=(2, 3))


def why_not_whole(block: nn.Module, name: str = "the block") -> str | None:
    """Return why a block as a whole cannot be gone round, whatever its layers are, or None."""
    if type(block) not in BLOCK_TYPES.values():
        return f"{name} is a {type(block).__name__}"
    if "forward" in vars(block) or is_watched(block):
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
