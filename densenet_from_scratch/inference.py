"""Running a DenseNet in evaluation: one buffer for each block, nothing copied twice (chapter 11).

In evaluation a BatchNorm is one multiplication and one addition for each channel, with numbers that
no longer depend on the batch:

    BN(x) = scale · x + shift,   scale = γ / √(variance + eps),   shift = β - mean · scale

A block's maps stand in one matrix with a pixel in each row and a channel in each column. A layer
reads the first columns and writes the next k, so nothing is concatenated; it never stores its
normalised input as a whole, but goes through the rows in pieces that stay in the cache. Transitions
pool before their 1×1 convolution, which is the same sum with a quarter of the products, and write
straight into the next block's matrix. For small images the time goes into calling operations
rather than into their work, so there are few of them.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook

from densenet_from_scratch.arguments import check_images
from densenet_from_scratch.dense import BottleneckLayer
from densenet_from_scratch.efficient import BLOCK_TYPES
from densenet_from_scratch.shared import (
    PIECE,
    Scratch,
    activate,
    are_as_built,
    as_maps,
    as_matrix,
    in_pieces,
    is_as_built,
)

Folded = Mapping[nn.BatchNorm2d, tuple[Tensor, Tensor]]


def can_infer(network: Any, x: Tensor) -> bool:
    """Say whether :func:`infer` may run a DenseNet instead of its modules.

    It may in evaluation without gradients, where nobody can tell the difference: no hook waits
    inside, no compiler or tracer records, no transform of torch.func or forward-mode derivative is
    under way, no autocast chooses types, every part is as it was built.
    """
    if (
        network.training
        or torch.is_grad_enabled()
        or x.is_meta
        or x.dtype != network.norm.weight.dtype
    ):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if peek_interpreter_stack() is not None or forward_ad._current_level >= 0:
        return False  # both refuse operators with ``out``; there is no public way to ask
    if torch.is_autocast_enabled(x.device.type) or _has_any_global_hook():
        return False
    return is_known(network)


def is_known(network: Any) -> bool:
    """Say whether a DenseNet's parts are as built, in evaluation, and no hook waits inside."""
    if {type(block) for block in network.blocks} - set(BLOCK_TYPES.values()):
        return False
    if type(network.norm) is not nn.BatchNorm2d or not (
        all(are_as_built(block.layers) for block in network.blocks)
        and all(map(is_as_built, network.transitions))
    ):
        return False
    owners = [*chain(*(block.layers for block in network.blocks)), *network.transitions]
    parts = [network.norm, *chain(*(owner._modules.values() for owner in owners))]
    if any(type(part) is nn.BatchNorm2d and not _is_linear(part) for part in parts):
        return False
    watched = (*network.blocks, *owners, *parts)
    return not any(part._forward_hooks or part._forward_pre_hooks for part in watched)


def fold(network: Any) -> Folded:
    """Return what every BatchNorm of a DenseNet multiplies by and adds.

    That of the stem is left out where the stem has to run as a whole.
    """
    owners = [*chain(*(block.layers for block in network.blocks)), *network.transitions]
    norms = [*chain(*map(_norms, owners)), network.norm]
    if _is_split(network.stem):
        norms.append(network.stem.norm)
    return dict(zip(norms, scales_and_shifts(norms), strict=True))


def scales_and_shifts(norms: Sequence[nn.BatchNorm2d]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each BatchNorm the (C,) numbers that it multiplies by and adds in evaluation.

    They are computed for all norms together: a few long operations instead of many short ones.
    """

    def every(kind: str, name: str) -> Tensor:
        # norm.weight would look for the name in several places; here it is known where it is.
        return torch.cat([getattr(norm, kind)[name] for norm in norms])

    widths = [norm.num_features for norm in norms]
    scale = every("_buffers", "running_var")
    eps = scale.new_tensor([norm.eps for norm in norms])
    scale += eps.repeat_interleave(torch.tensor(widths, device=scale.device))
    scale.rsqrt_().mul_(every("_parameters", "weight"))
    mean, shift = every("_buffers", "running_mean"), every("_parameters", "bias")
    shift.addcmul_(mean, scale, value=-1)
    return zip(scale.split(widths), shift.split(widths), strict=True)


class Space(NamedTuple):
    """Some maps of a block, seen in two ways in the same memory."""

    matrix: Tensor
    """(NHW, C)"""
    maps: Tensor
    """(N, C, H, W)"""


def _spaces(memory: Scratch, like: Tensor, channels: Sequence[int]) -> tuple[list[Space], Scratch]:
    """Return room for such maps with other numbers of channels, and for the piece at hand.

    It is all one piece of memory, and the same for all blocks, so that the system need not find
    and clear new memory for each.
    """
    rows = like.numel() // like.shape[1]
    sizes = [rows * width for width in channels]
    on_cpu = like.device.type == "cpu"
    sizes.append(min(sizes[0], torch.get_num_threads() * PIECE) if on_cpu else sizes[0])
    *parts, rest = memory.take(sum(sizes)).split(sizes)
    matrices = [part.view(rows, width) for part, width in zip(parts, channels, strict=True)]
    scratch = Scratch(rest)
    scratch.memory = rest
    return [Space(matrix, as_maps(matrix, like)) for matrix in matrices], scratch


def infer(
    network: Any,
    x: Tensor,
    folded: Folded | None = None,
    weights: Mapping[nn.Module, Tensor] | None = None,
) -> Tensor:
    """Return the logits (N, classes) of images (N, C, H, W), as the modules would.

    Args:
        network: a :class:`~densenet_from_scratch.DenseNet` for which :func:`can_infer` holds.
        x: checked images.
        folded: what :func:`fold` returns, if it is known already.
        weights: conv1's weights (4k, channels read) of layers into which norm2 is folded already.
    """
    stem, x = network.stem, x.contiguous(memory_format=torch.channels_last)
    if folded is None:
        with torch.inference_mode():
            folded = fold(network)
    stem_norm = folded[stem.norm] if getattr(stem, "norm", None) in folded else None
    maps, memory = stem(x) if stem_norm is None else stem.conv(x), Scratch(x)
    with torch.inference_mode():  # spares each operation its bookkeeping for autograd
        weights = weights or {}
        if stem_norm is not None:
            _activate_all(as_matrix(maps), stem_norm)
            maps = stem.pool(maps)
        for index, block in enumerate(network.blocks):
            channels = (block.out_channels, block.layers[0].conv1.out_channels)
            if index == 0:
                (every, middle), scratch = _spaces(memory, maps, channels)
                every.maps[:, : maps.shape[1]] = maps
            else:
                transition = network.transitions[index - 1]
                pooled = _pool(every, folded[transition.norm], size=2)
                (every, middle), scratch = _spaces(memory, pooled, channels)
                weight = transition.conv.weight.flatten(1)
                torch.mm(as_matrix(pooled), weight.T, out=every.matrix[:, : len(weight)])
            for layer in block.layers:
                _run_layer(layer, every, middle, folded, weights.get(layer), scratch)
        features = _pool(every, folded[network.norm], size=0)
    return network.classifier(features.clone())  # a tensor like any other again


class FrozenDenseNet(nn.Module):
    """A DenseNet for inference only: what the weights alone decide is computed once.

    It holds a copy of the network, in evaluation; what is done to the original later, it does not
    see. Beside a network in evaluation it saves the time to look whether anything has changed and
    to fold the BatchNorms, which counts for single and for small images.

    Args:
        network: a :class:`~densenet_from_scratch.DenseNet` whose blocks and transitions are as
            built, without hooks.

    Raises:
        ValueError: a part of the network is of another kind.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = copy.deepcopy(network).eval().requires_grad_(False)
        if not hasattr(network, "transitions") or not is_known(self.network):
            raise ValueError(
                "network must be a DenseNet with blocks and transitions as built and no hooks, "
                f"got {type(network).__name__}"
            )
        self._prepare()

    @torch.no_grad()
    def _prepare(self) -> None:
        self.folded = fold(self.network)
        layers = chain(*(block.layers for block in self.network.blocks))
        self.weights: dict[nn.Module, Tensor] = {
            layer: layer.conv1.weight.flatten(1) * self.folded[layer.norm2][0][:, None]
            for layer in layers
            if isinstance(layer, BottleneckLayer)
        }

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes), without gradients.

        Raises:
            ValueError: ``x`` is not a batch of images that the network takes.
        """
        network = self.network
        x = check_images(x, network.stem.conv.in_channels, network.minimum_size)
        with torch.autocast(x.device.type, enabled=False):
            return infer(network, x, self.folded, self.weights)

    def train(self, mode: bool = True) -> "FrozenDenseNet":
        """Stay in evaluation, whatever is asked for."""
        return super().train(False)

    def _apply(self, *arguments: Any, **options: Any) -> "FrozenDenseNet":
        """Compute anew what was computed of weights that move or change their type."""
        super()._apply(*arguments, **options)
        self._prepare()
        return self

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Load weights and fold them."""
        result = super().load_state_dict(*arguments, **options)
        self._prepare()
        return result


def _is_split(stem: Any) -> bool:
    """Say whether a stem is convolution, BN, ReLU and pooling, and nobody looks at its parts."""
    parts = [stem, *stem.children()]
    kinds = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    return (
        list(map(type, parts[1:])) == kinds
        and _is_linear(parts[2])
        and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    )


def _is_linear(norm: Any) -> bool:
    """Say whether a BatchNorm multiplies and adds the same, whatever the batch."""
    return not norm.training and norm._buffers["running_mean"] is not None and norm.affine


def _norms(owner: nn.Module) -> list[Any]:
    return [part for name, part in owner._modules.items() if name.startswith("norm")]


def _run_layer(
    layer: Any,
    every: Space,
    middle: Space,
    folded: Folded,
    weight: Tensor | None,
    scratch: Scratch,
) -> None:
    """Write a layer's new maps behind all the maps before them, which it reads."""
    width, end = layer.conv1.weight.shape[:2]
    read, norm1 = every.matrix[:, :end], folded[layer.norm1]
    if isinstance(layer, BottleneckLayer):
        scale, shift = folded[layer.norm2]
        # norm2 multiplies what the product has made, or else the weights, whichever are fewer.
        norm2_in_weight = weight is not None or len(read) > end
        if weight is None:
            weight = layer.conv1.weight.view(width, end)
            weight = weight * scale[:, None] if norm2_in_weight else weight
        for part, out in in_pieces(read, middle.matrix):
            a = activate(part, *norm1, scratch(part))
            if norm2_in_weight:
                torch.addmm(shift, a, weight.T, out=out).relu_()
            else:
                activate(torch.mm(a, weight.T, out=out), scale, shift, out)
        new = F.conv2d(middle.maps, layer.conv2.weight, padding=1)
    else:
        a = activate(read, *norm1, scratch(read))
        new = F.conv2d(as_maps(a, every.maps), layer.conv1.weight, padding=1)
    every.maps[:, end : end + new.shape[1]] = new


def _pool(every: Space, norm: tuple[Tensor, Tensor], size: int) -> Tensor:
    """Return BN, ReLU and average pooling of a block's maps: (N, C, H/size, W/size) or (N, C).

    Overwrites the block's maps.
    """
    _activate_all(every.matrix, norm)
    return F.avg_pool2d(every.maps, size) if size else every.maps.mean(dim=(2, 3))


def _activate_all(matrix: Tensor, norm: tuple[Tensor, Tensor]) -> None:
    for (part,) in in_pieces(matrix):
        activate(part, *norm, part)
