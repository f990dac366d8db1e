"""Running a DenseNet in evaluation: one buffer for each block, nothing copied twice (chapter 11).

In evaluation a BatchNorm is one multiplication and one addition for each channel, with numbers that
no longer depend on the batch:

    BN(x) = scale · x + shift,   scale = γ / √(variance + eps),   shift = β - mean · scale

A block's maps stand in one matrix with a pixel in each row and a channel in each column. A layer
reads the first columns and writes the next k, so nothing is concatenated; it never stores its
normalised input as a whole, but goes through the rows in pieces that stay in the cache. Transitions
pool before their 1×1 convolution, which is the same sum with a quarter of the products, and write
straight into the next block's matrix.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.nn import functional as F

from densenet_from_scratch.dense import BottleneckLayer, DenseLayer
from densenet_from_scratch.efficient import BLOCK_TYPES
from densenet_from_scratch.shared import Scratch, activate, as_maps, as_matrix, pieces
from densenet_from_scratch.transition import Transition

Folded = Mapping[nn.BatchNorm2d, tuple[Tensor, Tensor]]


def can_infer(network: Any, x: Tensor) -> bool:
    """Say whether :func:`infer` may run a DenseNet instead of its modules.

    It may in evaluation without gradients, where nobody can tell the difference: no hook waits
    inside, no compiler or tracer records, no transform of torch.func or forward-mode derivative is
    under way, no autocast chooses types, every part is of its own kind.
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
    if torch.is_autocast_enabled(x.device.type):
        return False
    if {type(block) for block in network.blocks} - set(BLOCK_TYPES.values()):
        return False
    if {type(transition) for transition in network.transitions} - {Transition}:
        return False
    inside = {DenseLayer, BottleneckLayer, Transition, nn.BatchNorm2d, nn.Conv2d, nn.ModuleList}
    own: set[Any] = inside | set(BLOCK_TYPES.values())
    parts = [*network.blocks.modules(), *network.transitions.modules(), network.norm]
    for part in parts:
        if type(part) not in own or part._forward_hooks or part._forward_pre_hooks:
            return False
        if isinstance(part, nn.BatchNorm2d) and (
            part.training or part.running_mean is None or not part.affine
        ):
            return False
    return True


def scales_and_shifts(norms: Sequence[nn.BatchNorm2d]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each BatchNorm the (C,) numbers that it multiplies by and adds in evaluation.

    They are computed for all norms together: a few long operations instead of many short ones.
    """
    variances: list[Any] = [norm.running_var + norm.eps for norm in norms]  # type: ignore[operator]
    means: list[Any] = [norm.running_mean for norm in norms]
    scale = torch.cat(variances).rsqrt_().mul_(torch.cat([norm.weight for norm in norms]))
    shift = torch.cat([norm.bias for norm in norms]).addcmul_(torch.cat(means), scale, value=-1)
    widths = [norm.num_features for norm in norms]
    return zip(scale.split(widths), shift.split(widths), strict=True)


def infer(network: Any, x: Tensor) -> Tensor:
    """Return the logits (N, classes) of images (N, C, H, W), as the modules would.

    Args:
        network: a :class:`~densenet_from_scratch.DenseNet` for which :func:`can_infer` holds.
        x: checked images.
    """
    stages = [*map(_norms, network.blocks), *([t.norm] for t in network.transitions)]
    norms = [*(norm for stage in stages for norm in stage), network.norm]
    folded = dict(zip(norms, scales_and_shifts(norms), strict=True))

    maps, scratch = network.stem(x.contiguous(memory_format=torch.channels_last)), Scratch(x)
    for index, block in enumerate(network.blocks):
        if index == 0:
            entering, size = as_matrix(maps), maps.shape[1]
            matrix = maps.new_empty(len(entering), block.out_channels)
            matrix[:, :size] = entering
        else:
            transition = network.transitions[index - 1]
            maps = _pool(matrix, maps, folded[transition.norm], scratch, size=2)
            weight = transition.conv.weight.flatten(1)
            entering = as_matrix(maps)
            matrix = maps.new_empty(len(entering), block.out_channels)
            torch.mm(entering, weight.T, out=matrix[:, : len(weight)])
        for layer in block.layers:
            _run_layer(layer, matrix, maps, folded, scratch)
    return network.classifier(_pool(matrix, maps, folded[network.norm], scratch, size=0))


def _norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def _run_layer(layer: Any, matrix: Tensor, like: Tensor, folded: Folded, scratch: Scratch) -> None:
    """Write a layer's new columns of a block's matrix, from all columns before them."""
    end = layer.conv1.in_channels
    read, norm1 = matrix[:, :end], folded[layer.norm1]
    if isinstance(layer, BottleneckLayer):
        # norm2 comes right after a product with weights, so it goes into the weights.
        scale, shift = folded[layer.norm2]
        weight = (layer.conv1.weight.flatten(1) * scale[:, None]).T
        middle = matrix.new_empty(len(matrix), layer.conv1.out_channels)
        for rows in pieces(read):
            a = activate(read[rows], *norm1, scratch(read[rows]))
            torch.addmm(shift, a, weight, out=middle[rows]).relu_()
        new = F.conv2d(as_maps(middle, like), layer.conv2.weight, padding=1)
    else:
        a = activate(read, *norm1, scratch(read))
        new = F.conv2d(as_maps(a, like), layer.conv1.weight, padding=1)
    matrix[:, end : end + new.shape[1]] = as_matrix(new)


def _pool(
    matrix: Tensor, like: Tensor, norm: tuple[Tensor, Tensor], scratch: Scratch, size: int
) -> Tensor:
    """Return BN, ReLU and average pooling of a block's maps: (N, C, H/size, W/size) or (N, C)."""
    maps = as_maps(activate(matrix, *norm, scratch(matrix)), like)
    return F.avg_pool2d(maps, size) if size else maps.mean(dim=(2, 3))
