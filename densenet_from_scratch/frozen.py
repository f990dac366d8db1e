"""A DenseNet for inference only: a block's maps in one matrix, nothing concatenated (chapter 11).

In evaluation a BatchNorm is one multiplication and one addition for each channel, with numbers that
no longer depend on the batch:

    BN(x) = scale · x + shift,   scale = γ / √(variance + eps),   shift = β - mean · scale

So they are computed once, when the network is frozen, and where a convolution comes right before,
they go into its weights. The matrix has a pixel in each row and a channel in each column, and all
blocks use the same memory. A layer reads the first columns and writes the next k; it never stores
its normalised input as a whole, but goes through the rows in pieces that stay in the cache.
Transitions pool before their 1×1 convolution, which is the same sum with a quarter of the products,
and write straight into the next block's matrix. For small images the time goes into calling
operations rather than into their work, so there are few of them.

It needs nothing but PyTorch. Wherever we measured on a CPU, runtimes made for inference were faster
still, by a tenth to a third (``benchmarks/inference.py``): their products of matrices and their
convolutions are, and they call no operation from Python. ``export`` writes the file that they read.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.arguments import check_images
from densenet_from_scratch.dense import BottleneckLayer, DenseBlock, DenseLayer
from densenet_from_scratch.efficient import why_not_as_built, why_not_round
from densenet_from_scratch.internals import is_watched
from densenet_from_scratch.kernels import activate
from densenet_from_scratch.kernels.layout import (
    PIECE,
    Scratch,
    as_maps,
    as_matrix,
    in_pieces,
)
from densenet_from_scratch.stem import ImageNetStem

NO_SCRIPT = "torch.jit.script cannot read this network: use torch.jit.trace or torch.export"


def fold(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what a BatchNorm in evaluation multiplies each channel by and adds: (C,) both.

    It is computed in float64, so that folding costs no digits.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    shift = norm.bias.double() - mean.double() * scale
    return scale.to(norm.weight.dtype), shift.to(norm.weight.dtype)


def constant(values: Tensor) -> nn.Parameter:
    """Return a copy as a parameter that does not learn."""
    return nn.Parameter(values.detach().clone(), requires_grad=False)


def has_changed(module: nn.Module) -> bool:
    """Return whether a part of a frozen network was replaced, is watched or has its own forward."""
    kinds = (nn.ModuleList, FrozenBlock, FrozenLayer)
    return type(module) not in kinds or "forward" in vars(module) or is_watched(module)


class FrozenLayer(nn.Module):
    """What a dense layer of either kind is in evaluation: two constants a norm, and weights.

    Args:
        layer: the layer, as built.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        assert isinstance(layer, DenseLayer | BottleneckLayer)
        self.scale, self.shift = map(constant, fold(layer.norm1))
        self.weight = constant(layer.conv1.weight)  # of the 3×3 convolution
        self.weight1: nn.Parameter | None = None  # of a bottleneck's 1×1 convolution and norm2
        self.bias: nn.Parameter | None = None
        if isinstance(layer, BottleneckLayer):
            scale, shift = fold(layer.norm2)
            self.weight1 = constant(layer.conv1.weight * scale[:, None, None, None])
            self.bias = constant(shift)
            self.weight = constant(layer.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0 + k(l - 1), H, W) to (N, k, H, W)."""
        a = scale_and_shift(x, self.scale, self.shift)
        if self.weight1 is not None:
            a = F.relu(F.conv2d(a, self.weight1, self.bias))
        return F.conv2d(a, self.weight, padding=1)

    def write(self, every: "Space", middle: "Space", scratch: Scratch) -> None:
        """Write the new maps behind all the maps before them, which are read."""
        end = len(self.scale)
        read = every.matrix[:, :end]
        if self.weight1 is None:
            a = as_maps(activate(read, self.scale, self.shift, scratch(read)), every.maps)
        else:
            weight, bias, a = self.weight1.flatten(1).T, self.bias, middle.maps
            assert bias is not None
            for part, out in in_pieces(read, middle.matrix):
                activated = activate(part, self.scale, self.shift, scratch(part))
                torch.addmm(bias, activated, weight, out=out).relu_()
        new = F.conv2d(a, self.weight, padding=1)
        every.maps[:, end : end + new.shape[1]] = new


class FrozenBlock(nn.Module):
    """A dense block in evaluation with the BN and ReLU of what reads it, and what that does next.

    Args:
        block: the block, its layers as built.
        norm: of the transition, or the network's last one.
        conv: of the transition; none after the last block.
    """

    def __init__(
        self, block: DenseBlock, norm: nn.BatchNorm2d, conv: nn.Conv2d | None = None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(FrozenLayer, block.layers))
        self.scale, self.shift = map(constant, fold(norm))
        self.weight = None if conv is None else constant(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, k_0, H, W) to the next block's input, or to features (N, k_0 + kL)."""
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, dim=1)))
        x = scale_and_shift(torch.cat(features, dim=1), self.scale, self.shift)
        if self.weight is None:
            return x.mean(dim=(2, 3))
        return F.conv2d(F.avg_pool2d(x, kernel_size=2), self.weight)

    def run(self, every: "Space", middle: "Space", scratch: Scratch) -> Tensor:
        """Return what leads to the next block, pooled: (N, C, H/2, W/2), or features (N, C).

        Args:
            every: room for all maps of the block; its input stands in front.
            middle: room for a bottleneck's maps.
            scratch: room for the piece at hand.
        """
        for layer in self.layers:
            assert isinstance(layer, FrozenLayer)
            layer.write(every, middle, scratch)
        for (part,) in in_pieces(every.matrix):
            activate(part, self.scale, self.shift, part)
        return every.maps.mean(dim=(2, 3)) if self.weight is None else F.avg_pool2d(every.maps, 2)

    def channels(self) -> tuple[int, int]:
        """Return how many maps there are in the block, and in a bottleneck (or 0)."""
        first = self.layers[0]
        assert isinstance(first, FrozenLayer)
        return len(self.scale), 0 if first.weight1 is None else len(first.weight1)


class FrozenDenseNet(nn.Module):
    """A DenseNet for inference only: what the weights alone decide is computed once.

    To deploy on a CPU, :func:`densenet_from_scratch.export.to_onnx` and a runtime for ONNX are
    faster; this is for PyTorch itself.

    It is a copy of its own, in evaluation for good, and holds nothing but folded numbers: what is
    done to the original later, it does not see; what is done to its own tensors (moved, changed,
    loaded) is what it computes with. The stem and the classifier may be of any kind, and run as
    they are. There are no gradients, and autocast is not heeded. Where something records or
    transforms its operations (torch.jit.trace, torch.export, torch.func, a counter), the same
    numbers go through plain operations.

    Args:
        network: a :class:`~densenet_from_scratch.DenseNet` whose ``why_not_as_built()`` is None.

    Raises:
        ValueError: the network is something else; the message says what.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        source: Any = network
        ask = getattr(network, "why_not_as_built", None)
        reason = ask() if callable(ask) else f"it is a {type(network).__name__}"
        if reason:
            raise ValueError(f"network must be a DenseNet as built, but {reason}")
        self.in_channels, self.minimum_size = source.in_channels, source.minimum_size
        with torch.no_grad():
            self.stem = _freeze_stem(source.stem)
            exits = [(part.norm, part.conv) for part in source.transitions] + [(source.norm,)]
            self.blocks = nn.ModuleList(
                FrozenBlock(block, *exit_)
                for block, exit_ in zip(source.blocks, exits, strict=True)
            )
        self.classifier = copy.deepcopy(source.classifier)
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes), without gradients.

        Raises:
            ValueError: ``x`` is not a batch of images that the network takes.
        """
        x = check_images(x, self.in_channels, self.minimum_size)
        if not isinstance(x, Tensor) or not has_autocast(x.device.type):
            return self.plain(x)  # torch.fx traces, or a device of which nothing is known here
        with torch.autocast(x.device.type, enabled=False):
            if why_not_round(x) or x.numel() == 0 or any(map(has_changed, self.blocks.modules())):
                return self.plain(x)
            with torch.no_grad():
                return self.classifier(self._run(x))

    def plain(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits by operations that anything can record."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(x)

    def _run(self, x: Tensor) -> Tensor:
        """Return the last block's features (N, C), written without concatenation."""
        maps = self.stem(x.contiguous(memory_format=torch.channels_last))
        memory, weight = Scratch(maps.new_empty(0)), None
        with torch.inference_mode():  # spares each operation its bookkeeping for autograd
            for block in self.blocks:
                assert isinstance(block, FrozenBlock)
                (every, middle), scratch = spaces(memory, maps, block.channels())
                if weight is None:
                    every.maps[:, : maps.shape[1]] = maps
                else:
                    out = every.matrix[:, : len(weight)]
                    torch.mm(as_matrix(maps), weight.flatten(1).T, out=out)
                maps, weight = block.run(every, middle, scratch), block.weight
        return maps.clone()  # a tensor like any other again

    def __prepare_scriptable__(self) -> None:
        raise TypeError(NO_SCRIPT)

    def train(self, mode: bool = True) -> "FrozenDenseNet":
        """Stay in evaluation, whatever is asked for."""
        return super().train(False)


def has_autocast(device: str) -> bool:
    """Return whether autocast can be switched off for a type of device."""
    # Under torch.compile it can, for all that are known; PyTorch 2.11 cannot compile the question.
    return torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)


def _freeze_stem(stem: nn.Module) -> nn.Module:
    """Return a copy of a stem; that of ImageNet as built has its BN in the convolution."""
    if not isinstance(stem, ImageNetStem) or why_not_as_built(stem):
        return copy.deepcopy(stem)
    scale, shift = fold(stem.norm)
    conv = copy.deepcopy(stem.conv)
    conv.weight = constant(conv.weight * scale[:, None, None, None])
    conv.bias = constant(shift)
    return nn.Sequential(conv, nn.ReLU(inplace=True), copy.deepcopy(stem.pool))


def scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ReLU(scale · x + shift) of maps (N, C, H, W).

    It is written as a BatchNorm of mean 0 and variance 1: one operation, which compilers and other
    runtimes know how to join with the ReLU.
    """
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return F.relu(F.batch_norm(x, zeros, ones, scale, shift, eps=1e-30))  # 1 + eps is 1


class Space(NamedTuple):
    """Room for some maps, seen in two ways: all maps of a block (``every``), or a bottleneck's."""

    matrix: Tensor
    """(NHW, C)"""
    maps: Tensor
    """(N, C, H, W)"""


def spaces(memory: Scratch, like: Tensor, channels: Sequence[int]) -> tuple[list[Space], Scratch]:
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
    return [Space(matrix, as_maps(matrix, like)) for matrix in matrices], Scratch(rest)
