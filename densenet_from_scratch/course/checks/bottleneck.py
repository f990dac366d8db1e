"""Checks of the exercises of chapter 5."""

from collections.abc import Callable
from itertools import product
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.common import (
    as_check,
    build_answer,
    call_answer,
    random_maps,
    require,
    require_numbers,
    require_own,
    require_shape,
    require_values,
    same_values,
)
from densenet_from_scratch.course.checks.layers import (
    convolve_by_hand,
    normalise_by_hand,
    require_gradients,
)
from densenet_from_scratch.measure import count_parameters

_READS, _K, _B = 5, 3, 2  # maps read, growth rate, width of the bottleneck in units of k
_ARGUMENTS = (_READS, _K, _B)
_WIDTH = _B * _K


def mix_by_hand(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution: one matrix at every pixel."""
    return torch.einsum("om,nmhw->nohw", conv.weight[:, :, 0, 0], x)


def mix_or_convolve_by_hand(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1×1 convolution, or a 3×3 one with padding 1."""
    return mix_by_hand(conv, x) if conv.kernel_size == (1, 1) else convolve_by_hand(conv, x)


def _norm(layer: nn.Module, part: str, maps: int, where: str) -> nn.BatchNorm2d:
    name, norm = type(layer).__name__, getattr(layer, part, None)
    require(
        type(norm) is nn.BatchNorm2d,
        f"{name} has no BatchNorm2d called self.{part}.\nLook at the names in the question: each "
        "convolution has a normalisation of its own before it.",
    )
    assert isinstance(norm, nn.BatchNorm2d)
    require(
        norm.num_features == maps,
        f"{name}: self.{part} is made for {norm.num_features} maps.\nIt has one scale and one "
        f"shift for each map that {where}.",
    )
    require(
        norm.affine and norm.track_running_stats,
        f"{name}: self.{part} has unusual settings.\nLeave the arguments that the question does "
        "not name at their defaults.",
    )
    return norm


def _conv(layer: nn.Module, part: str, kernel: int) -> nn.Conv2d:
    name, conv = type(layer).__name__, getattr(layer, part, None)
    require(
        type(conv) is nn.Conv2d,
        f"{name} has no Conv2d called self.{part}.\nLook at the names in the question: the checks "
        "and later code read them.",
    )
    assert isinstance(conv, nn.Conv2d)
    require(
        conv.kernel_size == (kernel, kernel),
        f"{name}: the kernel of self.{part} is {conv.kernel_size}.\nThe cheap kernel reads the "
        "many maps, the one that sees neighbours reads the few: which is which?",
    )
    padding = kernel // 2
    require(
        conv.padding in ((padding, padding), "same") and conv.stride == (1, 1),
        f"{name}: self.{part} changes the height and width of the maps.\nHow many pixels beyond "
        "the border does a kernel of that size reach? Look at padding and stride.",
    )
    require(
        (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros"),
        f"{name}: self.{part} has unusual settings.\nLeave the arguments that the question does "
        "not name at their defaults.",
    )
    require(
        conv.bias is None,
        f"{name}: self.{part} has a bias.\nThe next batch normalisation subtracts the mean, and "
        "any constant with it: look at Conv2d's argument bias.",
    )
    return conv


Parts = tuple[nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]


def _parts(layer: nn.Module) -> Parts:
    name = type(layer).__name__
    norm1 = _norm(layer, "norm1", _READS, "*enters* the layer")
    conv1 = _conv(layer, "conv1", 1)
    hints = {
        _B: "bn_size counts in units of the growth rate: how many maps are in the middle?",
        _K: "The middle is wider than what leaves the layer: what is bn_size for?",
        _B * _READS: "bn_size counts in units of the growth rate, not of the maps that enter.",
    }
    require(
        (conv1.in_channels, conv1.out_channels) == (_READS, _WIDTH),
        f"{name}{_ARGUMENTS}: self.conv1 goes from {conv1.in_channels} to {conv1.out_channels} "
        "maps.\n" + hints.get(conv1.out_channels, "Look at what it reads and what it makes."),
    )
    norm2 = _norm(layer, "norm2", _WIDTH, "self.conv1 makes")
    conv2 = _conv(layer, "conv2", 3)
    require(
        (conv2.in_channels, conv2.out_channels) == (_WIDTH, _K),
        f"{name}{_ARGUMENTS}: self.conv2 goes from {conv2.in_channels} to {conv2.out_channels} "
        "maps.\nIt reads the middle: how many maps does a dense layer add, with a bottleneck or "
        "without?",
    )
    return norm1, conv1, norm2, conv2


Step = Callable[[nn.BatchNorm2d, Callable[[Tensor], Tensor], Tensor], Tensor]

# What may stand around a convolution, and what to say about it; the first is right.
_STEPS: list[tuple[Step, str]] = [
    (lambda norm, conv, x: conv(normalise_by_hand(norm, x).clamp(min=0)), ""),
    (
        lambda norm, conv, x: conv(normalise_by_hand(norm, x.clamp(min=0))),
        "the ReLU before self.{} comes before its batch normalisation, which then puts negative "
        "values back.\nCompare the order in forward with the name BN-ReLU-conv.",
    ),
    (
        lambda norm, conv, x: conv(normalise_by_hand(norm, x)),
        "there is no ReLU between self.{}'s normalisation and it.\nWithout it the two convolutions "
        "are nearly one linear map: look at what each of them reads.",
    ),
    (
        lambda norm, conv, x: conv(x.clamp(min=0)),
        "the batch normalisation before self.{} is not used.\nLook at what the ReLU reads.",
    ),
    (
        lambda norm, conv, x: conv(x),
        "self.{} reads raw maps: neither normalisation nor ReLU stands before it.\nEach of the two "
        "convolutions has its own BN and ReLU.",
    ),
    (
        lambda norm, conv, x: conv(normalise_by_hand(norm, x.clamp(min=0)).clamp(min=0)),
        "before self.{} a ReLU stands on both sides of the batch normalisation.\nCompare forward "
        "with the name BN-ReLU-conv.",
    ),
    (
        lambda norm, conv, x: conv(normalise_by_hand(norm, x)).clamp(min=0),
        "the ReLU comes after self.{}.\nCompare the order in forward with the name BN-ReLU-conv.",
    ),
    (
        lambda norm, conv, x: conv(normalise_by_hand(norm, x).clamp(min=0)).clamp(min=0),
        "a second ReLU follows self.{}.\nThe next reader cuts off after its own normalisation: "
        "compare forward with the name BN-ReLU-conv.",
    ),
]


def _through(parts: Parts, x: Tensor, first: int = 0, second: int = 0) -> Tensor:
    norm1, conv1, norm2, conv2 = parts
    y = _STEPS[first][0](norm1, lambda maps: mix_by_hand(conv1, maps), x)
    return _STEPS[second][0](norm2, lambda maps: convolve_by_hand(conv2, maps), y)


@as_check
def bottleneck_layer_parts(answer: Any) -> str:
    """The bottleneck layer has two normalisations and two convolutions of the right widths."""
    layer = build_answer(answer, *_ARGUMENTS)
    name = type(layer).__name__
    _parts(layer)
    needed = 2 * _READS + _READS * _WIDTH + 2 * _WIDTH + 9 * _WIDTH * _K
    require(
        count_parameters(layer) == needed,
        f"{name}{_ARGUMENTS} has {count_parameters(layer)} parameters, more than its four parts "
        "need.\nLook for a part that forward does not use.",
    )
    return f"{name} has the right four parts, and no parameter more"


@as_check
def bottleneck_layer_shape(answer: Any) -> str:
    """The bottleneck layer returns its k new maps, and only those."""
    layer = build_answer(answer, *_ARGUMENTS)
    name = type(layer).__name__
    x = random_maps(2, _READS, 5, 7)
    before = x.clone()
    y = call_answer(f"{name}{_ARGUMENTS}", layer, x)
    require_shape(
        y,
        (2, _K, 5, 7),
        f"The output of {name}{_ARGUMENTS}",
        {
            (2, _READS + _K, 5, 7): "There are more maps, as if the input were concatenated to the "
            "output: joining is the block's task.",
            (2, _WIDTH, 5, 7): "These are the maps of the middle: look at what forward returns.",
        },
    )
    require(
        same_values(x, before),
        f"{name} changes the tensor that it was given.\nSomebody else may still read it: look "
        "for inplace=True, +=, and methods that end in an underscore.",
    )
    return f"{name} makes k maps of the input's height and width"


@as_check
def bottleneck_layer_values(answer: Any) -> str:
    """The bottleneck layer is BN-ReLU-conv1×1-BN-ReLU-conv3×3, in training and in evaluation."""
    layer = build_answer(answer, *_ARGUMENTS)
    name, parts = type(layer).__name__, _parts(layer)
    kinds = range(len(_STEPS))
    # One mistake explains a result better than two.
    pairs = sorted(product(kinds, kinds), key=lambda pair: sum(kind > 0 for kind in pair))
    for training in (True, False):
        layer.train(training)
        x = random_maps(3, _READS, 4, 5)
        mistakes = [
            (
                _through(parts, x, first, second),
                # The message is about the first convolution that is wrong.
                _STEPS[first or second][1].format("conv1" if first else "conv2"),
            )
            for first, second in pairs
        ]
        require_values(
            call_answer(name, layer, x),
            _through(parts, x),
            f"{name} in {'training' if training else 'evaluation'} mode",
            mistakes,
            "the values are wrong.\nWrite its name in full, BN-ReLU-conv1×1-BN-ReLU-conv3×3, and "
            "compare it with forward, part by part.",
        )
    return f"{name} is BN-ReLU-conv1×1-BN-ReLU-conv3×3"


@as_check
def bottleneck_layer_gradient(answer: Any) -> str:
    """Gradients flow through the bottleneck layer."""
    layer = build_answer(answer, *_ARGUMENTS)
    name, parts = type(layer).__name__, _parts(layer)
    require_gradients(layer, random_maps(2, _READS, 4, 4), lambda x: _through(parts, x), name)
    return f"Gradients flow back through {name} to its input and to every parameter"


def _parameters(m: int, k: int, b: int) -> int:
    return 2 * m + m * b * k + 2 * b * k + 9 * b * k * k


@as_check
def bottleneck_parameters(answer: Any) -> str:
    """The formula gives the number of parameters of a bottleneck layer."""
    right = _parameters
    name = require_numbers(
        answer,
        right,
        [(204, 12, 4), (24, 12, 4), (5, 3, 2), (64, 32, 1)],
        [
            (
                lambda m, k, b: right(m, k, b) - 2 * b * k,
                "the normalisation in the middle is not counted.\nGo through the four parts.",
            ),
            (
                lambda m, k, b: right(m, k, b) - 2 * m - 2 * b * k,
                "only the convolutions are counted.\nGo through the four parts.",
            ),
            (
                lambda m, k, b: right(m, k, b) - m - b * k,
                "one number is counted for each map of a normalisation.\nLook at what it does "
                "after it has normalised.",
            ),
            (
                lambda m, k, b: right(m, k, b) + b * k + k,
                "a bias is counted for each convolution.\nLook at how BottleneckLayer makes them.",
            ),
            (
                lambda m, k, b: right(m, k, b) + 8 * m * b * k,
                "the first convolution is counted with a 3×3 kernel.\nLook at which kernel reads "
                "the many maps.",
            ),
            (
                lambda m, k, b: right(m, k, b) - 8 * b * k * k,
                "the second convolution is counted with a 1×1 kernel.\nLook at which kernel sees "
                "the neighbours.",
            ),
            (
                lambda m, k, b: 2 * m + m * b + 2 * b + 9 * b * k,
                "the middle is counted as b maps wide.\nbn_size counts in units of the growth "
                "rate.",
            ),
            (
                lambda m, k, b: right(m, k, b) + 9 * m * k,
                "a 3×3 convolution from the maps that enter is counted too.\nIn a bottleneck layer "
                "the 3×3 kernel reads only the middle.",
            ),
        ],
        "Count the four parts one after the other: which maps does each read, which does it make?",
    )
    return f"{name} counts what a real bottleneck layer has"


def _first(cheaper: Callable[[int], bool]) -> int:
    return next((m for m in range(1, 2000) if cheaper(m)), 0)


def _first_cheaper(kernel: int, k: int, b: int) -> int:
    n = kernel**2
    return _first(lambda m: m * b * k + n * b * k * k < n * m * k)


@as_check
def first_cheaper(answer: Any) -> str:
    """The bottleneck pays from the first width that lies above break-even."""

    def formula(n: int, k: int, b: int, add: int) -> int:
        return n * b * k // (n - b) + add if n != b else 0

    name = require_numbers(
        answer,
        _first_cheaper,
        [(3, 12, 4), (3, 5, 4), (5, 7, 4), (3, 8, 8), (3, 12, 9), (3, 12, 10)],
        [
            (
                lambda n, k, b: _first(lambda m: m * b * k + n**2 * b * k * k <= n**2 * m * k),
                "a width at which both layers cost the same counts as cheaper.\nRead the question: "
                "*fewer* multiply-accumulates.",
            ),
            (
                lambda n, k, b: formula(n**2, k, b, 0) if b < n**2 else 0,
                "break-even itself, rounded down, is returned.\nIs the bottleneck already cheaper "
                "there? Try the two widths around it.",
            ),
            (
                lambda n, k, b: _first_cheaper(3, k, b),
                "the kernel is always taken for 3×3.\nLook at what kernel_size changes in both "
                "layers.",
            ),
            (
                lambda n, k, b: _first(lambda m: m * b * k + n * b * k * k < n * m * k),
                "a K×K kernel is counted with K weights.\nHow many pixels does it look at?",
            ),
            (
                lambda n, k, b: formula(n**2, k, b, 1),
                "where the bottleneck never pays, there is still a number.\nLook at the sign of "
                "what a further map saves when b is large.",
            ),
            (
                lambda n, k, b: _first(
                    lambda m: m * b * k + n**2 * b * k * k + 2 * b * k < n**2 * m * k
                ),
                "the second batch normalisation is counted.\nIt has parameters, but no "
                "multiply-accumulates as they are counted here.",
            ),
            (
                lambda n, k, b: _first(lambda m: m * b * k < n**2 * m * k),
                "the K×K convolution of the bottleneck layer costs nothing here.\nLook at what "
                "reads the middle.",
            ),
        ],
        "Write down the multiply-accumulates per pixel of both layers, set them equal, and try the "
        "whole widths around the solution.",
    )
    return f"{name} finds from which width on a bottleneck saves work"


def _kernels() -> tuple[Tensor, Tensor]:
    return random_maps(_WIDTH, 4, 1, 1), random_maps(_K, _WIDTH, 3, 3)


@as_check
def merged_kernel(answer: Any) -> str:
    """The 3×3 kernel does at once what the 1×1 and the 3×3 convolution do in turn."""
    name = require_own(answer, FunctionType)
    first, second = _kernels()
    kept = first.clone(), second.clone()
    what = f"{name}(first, second)"
    result = call_answer(
        what, answer, first, second, hint="Look at the shapes of the two weights, axis by axis."
    )
    require_shape(
        result,
        (_K, 4, 3, 3),
        what,
        {
            (4, _K, 3, 3): "Conv2d's weight is (maps made, maps read, height, width): which is "
            "which in the whole step?",
            (_K, 4, 1, 1): "The kernel has lost its neighbours: which of the two steps sees them?",
            (_K, 4): "This is a matrix at one pixel; the question asks for a 3×3 kernel.",
            (_K, _WIDTH, 4, 3, 3): "The maps of the middle are still there: the second convolution "
            "sums over them.",
            (_K, _WIDTH, 3, 3): "It reads the middle. The merged kernel reads what enters the "
            "layer.",
        },
    )
    require(
        same_values(first, kept[0]) and same_values(second, kept[1]),
        f"{name} changes the weights that it was given.\nLook for methods that end in an "
        "underscore.",
    )
    right = torch.zeros(_K, 4, 3, 3, dtype=first.dtype)
    for middle in range(_WIDTH):
        for read in range(4):
            right[:, read] += second[:, middle] * first[middle, read, 0, 0]
    require_values(
        result,
        right,
        what,
        [
            (
                second.sum(dim=1, keepdim=True) * first.sum(dim=0)[None],
                "the two weights are summed over the middle one by one, and then multiplied.\nA "
                "map of the middle multiplies its own weights: which comes first, product or sum?",
            ),
            (
                right / _WIDTH,
                "the maps of the middle are averaged.\nA convolution adds up what it reads.",
            ),
            (
                right.flip(2, 3),
                "the kernel is turned round.\nPyTorch's convolutions do not flip kernels: look at "
                "the order of height and width.",
            ),
            (
                right.transpose(2, 3),
                "height and width have changed places.\nLook at the order of the axes.",
            ),
            (
                second[:, :1] * first[:1].transpose(0, 1)[None, :, 0],
                "only the first map of the middle counts.\nLook at what is summed.",
            ),
        ],
        "the values are wrong.\nTake one map that is read and one that is made: by how many paths "
        "does the first reach the second, and what is each path multiplied with?",
    )
    return f"{name} does in one step what the two convolutions do in turn"


@as_check
def mixtures(answer: Any) -> str:
    """The rank of the merged kernel is limited by the maps read, the middle, and 9k."""
    name = require_numbers(
        answer,
        lambda m, k, b: sorted((m, b * k, 9 * k))[0],
        [(204, 12, 4), (24, 12, 4), (500, 12, 9), (500, 12, 16), (6, 1, 20)],
        [
            (
                lambda m, k, b: b * k,
                "only the width of the middle counts.\nCan there be more different mixtures than "
                "maps to mix, or more than a kernel can hold?",
            ),
            (
                lambda m, k, b: min(m, b * k),
                "a middle as wide as you like is always used in full.\nThe kernel has one row for "
                "each map made and each of its pixels: how many rows are that?",
            ),
            (
                lambda m, k, b: min(b * k, 9 * k),
                "more mixtures than maps are found.\nHow many different mixtures can there be of "
                "the maps that are read?",
            ),
            (
                lambda m, k, b: min(m, 9 * k),
                "the middle does not limit anything.\nEvery mixture passes through it: how many "
                "maps wide is it?",
            ),
            (
                lambda m, k, b: min(m, b * k, k),
                "one row is counted for each map made.\nThe kernel looks at nine pixels, and may "
                "want another mixture at each.",
            ),
            (
                lambda m, k, b: min(m, b, 9 * k),
                "the middle is counted as b maps wide.\nbn_size counts in units of the growth "
                "rate.",
            ),
        ],
        "The rank of a product is at most the smallest of the sizes on its way: which three are "
        "there?",
    )
    return f"{name} says how many mixtures of its input a layer can look at"
