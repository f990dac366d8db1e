"""Checks of the exercises of chapter 5."""

from collections.abc import Callable
from functools import partial
from random import Random
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from densenet_from_scratch.course.checks.battery import (
    require_everywhere,
    require_for_all,
    require_gradients,
)
from densenet_from_scratch.course.checks.by_hand import mix_or_convolve_by_hand, normalise_by_hand
from densenet_from_scratch.course.checks.core import (
    as_check,
    build_answer,
    call_answer,
    random_maps,
    require,
    require_defaults,
    require_none,
    require_numbers,
    require_own,
    require_part,
    require_shape,
    require_values,
)
from densenet_from_scratch.measure import count_parameters

_READS, _K, _B = 5, 3, 2  # maps read, growth rate, width of the bottleneck in units of k
_ARGUMENTS = (_READS, _K, _B)
_WIDTH = _B * _K


def _norm(layer: nn.Module, part: str, maps: int, where: str) -> nn.BatchNorm2d:
    hint = "each convolution has a normalisation of its own before it."
    hint = f"Look at the names in the question: {hint}"
    name, norm = type(layer).__name__, require_part(layer, part, nn.BatchNorm2d, hint)
    require(
        norm.num_features == maps,
        f"{name}: self.{part} is made for {norm.num_features} maps.\nIt has one scale and one "
        f"shift for each map that {where}.",
    )
    require_defaults(layer, part)
    return norm


def _conv(layer: nn.Module, part: str, kernel: int) -> nn.Conv2d:
    name, conv = type(layer).__name__, require_part(layer, part, nn.Conv2d)
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
    require_defaults(layer, part)
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


Step = Callable[[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor], Tensor]

# What may stand around a convolution, by what to say about it; the first is right.
_STEPS: dict[str, Step] = {
    "": lambda norm, conv, x: conv(norm(x).clamp(min=0)),
    "the ReLU before self.{} comes before its batch normalisation, which then puts negative "
    "values back.\nCompare the order in forward with the name "
    "BN-ReLU-conv.": lambda norm, conv, x: conv(norm(x.clamp(min=0))),
    "there is no ReLU between self.{}'s normalisation and it.\nWithout it the two convolutions "
    "are nearly one linear map: look at what "
    "each of them reads.": lambda norm, conv, x: conv(norm(x)),
    "the batch normalisation before self.{} is not used.\n"
    "Look at what the ReLU reads.": lambda norm, conv, x: conv(x.clamp(min=0)),
    "self.{} reads raw maps: neither normalisation nor ReLU stands before it.\nEach of the two "
    "convolutions has its own BN and ReLU.": lambda norm, conv, x: conv(x),
    "before self.{} a ReLU stands on both sides of the batch normalisation.\nCompare forward with "
    "the name BN-ReLU-conv.": lambda norm, conv, x: conv(norm(x.clamp(min=0)).clamp(min=0)),
    "the ReLU comes after self.{}.\nCompare the order in forward with "
    "the name BN-ReLU-conv.": lambda norm, conv, x: conv(norm(x)).clamp(min=0),
    "a second ReLU follows self.{}.\nThe next reader cuts off after its own normalisation: compare "
    "forward with the name "
    "BN-ReLU-conv.": lambda norm, conv, x: conv(norm(x).clamp(min=0)).clamp(min=0),
}


def _through(parts: Parts, x: Tensor, first: str = "", second: str = "") -> Tensor:
    norm1, conv1, norm2, conv2 = parts
    for norm, conv, step in ((norm1, conv1, first), (norm2, conv2, second)):
        hands = partial(normalise_by_hand, norm), partial(mix_or_convolve_by_hand, conv)
        x = _STEPS[step](*hands, x)
    return x


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
    narrow = build_answer(answer, 2, 3, 4)
    middle = [_conv(narrow, part, kernel) for part, kernel in (("conv1", 1), ("conv2", 3))]
    require(
        (middle[0].out_channels, middle[1].in_channels) == (12, 12),
        f"{name}(2, 3, 4): the middle is {middle[0].out_channels} maps wide.\nIt is wider than "
        "what enters, and still bn_size times k.",
    )
    return f"{name} has the right four parts, and no parameter more"


@as_check
def bottleneck_layer_shape(answer: Any) -> str:
    """The bottleneck layer returns its k new maps, and only those."""
    layer = build_answer(answer, *_ARGUMENTS)
    name = type(layer).__name__
    x = random_maps(2, _READS, 5, 7)
    y = call_answer(f"{name}{_ARGUMENTS}", layer, x)
    require_shape(
        y,
        (2, _K, 5, 7),
        f"The output of {name}{_ARGUMENTS}",
        {
            "There are more maps, as if the input were concatenated to the output: joining is the "
            "block's task.": (2, _READS + _K, 5, 7),
            "These are the maps of the middle: look at what forward returns.": (2, _WIDTH, 5, 7),
        },
    )
    return f"{name} makes k maps of the input's height and width"


@as_check
def bottleneck_layer_values(answer: Any) -> str:
    """The bottleneck layer is BN-ReLU-conv1×1-BN-ReLU-conv3×3, in training and in evaluation."""
    layer = build_answer(answer, *_ARGUMENTS)
    name, parts = type(layer).__name__, _parts(layer)
    wrong = [step for step in _STEPS if step]
    for training in (True, False):
        layer.train(training)
        x = random_maps(3, _READS, 4, 5)
        y, right = call_answer(name, layer, x), _through(parts, x)
        what = f"{name} in {'training' if training else 'evaluation'} mode"
        # One mistake explains a result better than two; of two, the message is about the first.
        one = {step.format("conv2"): _through(parts, x, second=step) for step in wrong}
        one |= {step.format("conv1"): _through(parts, x, first=step) for step in wrong}
        two = {
            step.format("conv1"): [_through(parts, x, step, second) for second in wrong]
            for step in wrong
        }
        require_none(y, right, one, what)
        require_values(
            y,
            right,
            what,
            two,
            "the values are wrong.\nWrite its name in full, BN-ReLU-conv1×1-BN-ReLU-conv3×3, and "
            "compare it with forward, part by part.",
        )
    require_everywhere(layer, lambda x: _through(parts, x), _READS)
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
    right: Callable[..., Any] = _parameters
    name = require_numbers(
        answer,
        right,
        [(204, 12, 4), (24, 12, 4), (5, 3, 2), (64, 32, 1)],
        {
            "the normalisation in the middle is not counted.\n"
            "Go through the four parts.": lambda m, k, b: right(m, k, b) - 2 * b * k,
            "only the convolutions are counted.\nGo through the four parts.": lambda m, k, b: (
                right(m, k, b) - 2 * m - 2 * b * k
            ),
            "one number is counted for each map of a normalisation.\nLook at what it does after "
            "it has normalised.": lambda m, k, b: right(m, k, b) - m - b * k,
            "a bias is counted for each convolution.\nLook at how "
            "BottleneckLayer makes them.": lambda m, k, b: right(m, k, b) + b * k + k,
            "the first convolution is counted with a 3×3 kernel.\nLook at which kernel reads the "
            "many maps.": lambda m, k, b: right(m, k, b) + 8 * m * b * k,
            "the second convolution is counted with a 1×1 kernel.\nLook at which kernel sees the "
            "neighbours.": lambda m, k, b: right(m, k, b) - 8 * b * k * k,
            "the middle is counted as b maps wide.\nbn_size counts in "
            "units of the growth rate.": lambda m, k, b: 2 * m + m * b + 2 * b + 9 * b * k,
            "a 3×3 convolution from the maps that enter is counted too.\nIn a bottleneck layer "
            "the 3×3 kernel reads only the middle.": lambda m, k, b: right(m, k, b) + 9 * m * k,
        },
        "Count the four parts one after the other: which maps does each read, which does it make?",
        draw=lambda r: (r.randint(1, 900), r.randint(1, 48), r.randint(1, 8)),
    )
    return f"{name} counts what a real bottleneck layer has"


def _first_cheaper(
    kernel: int, k: int, b: int, extra: int = 0, power: int = 2, second: bool = True
) -> int:
    n = kernel**power

    needed, saved = second * n * b * k * k + extra, (n - b) * k  # once; and by each further map
    return max(needed, 0) // saved + 1 if saved > 0 else 0


def _draw_sizes(chance: Random) -> tuple[int, int, int]:
    """A kernel, k, and a middle that pays soon, or very late, or never."""
    kernel = chance.choice((3, 5, 7))
    middle = chance.choice(
        (chance.randint(1, kernel**2 // 2), kernel**2 - 1, kernel**2, kernel**2 + 3)
    )
    return kernel, chance.randint(1, 32), middle


@as_check
def first_cheaper(answer: Any) -> str:
    """The bottleneck pays from the first width that lies above break-even."""
    right: Callable[..., Any] = _first_cheaper

    def formula(kernel: int, k: int, b: int) -> int:
        n = kernel**2
        return n * b * k // (n - b) if n != b else -1

    name = require_numbers(
        answer,
        right,
        [(3, 12, 4), (3, 5, 4), (5, 7, 4), (3, 8, 8), (3, 12, 9), (3, 12, 10)],
        {
            "a width at which both layers cost the same counts as cheaper.\nRead the question: "
            "*fewer* multiply-accumulates.": lambda *a: right(*a, -1),
            "break-even itself, rounded down, is returned.\nIs the bottleneck already cheaper "
            "there? Try the two widths around it.": lambda *a: max(formula(*a), 0),
            "the kernel is always taken for 3×3.\nLook at what "
            "kernel_size changes in both layers.": lambda n, k, b: right(3, k, b),
            "a K×K kernel is counted with K weights.\nHow many "
            "pixels does it look at?": lambda *a: right(*a, 0, 1),
            "where the bottleneck never pays, there is still a number.\nLook at the sign of what "
            "a further map saves when b is large.": lambda *a: formula(*a) + 1,
            "the second batch normalisation is counted.\nIt has parameters, but no "
            "multiply-accumulates as they are counted "
            "here.": lambda n, k, b: right(n, k, b, 2 * b * k),
            "the K×K convolution of the bottleneck layer costs nothing here.\nLook at what reads "
            "the middle.": lambda *a: right(*a, 0, 2, False),
        },
        "Write down the multiply-accumulates per pixel of both layers, set them equal, and try the "
        "whole widths around the solution.",
        draw=_draw_sizes,
    )
    return f"{name} finds from which width on a bottleneck saves work"


@as_check
def merged_kernel(answer: Any) -> str:
    """The 3×3 kernel does at once what the 1×1 and the 3×3 convolution do in turn."""
    name = require_own(answer, FunctionType)
    first, second = random_maps(_WIDTH, 4, 1, 1), random_maps(_K, _WIDTH, 3, 3)
    what = f"{name}(first, second)"
    hint = "Look at the shapes of the two weights, axis by axis."
    result = call_answer(what, answer, first, second, hint=hint)
    middle = _K, _WIDTH
    require_shape(
        result,
        (_K, 4, 3, 3),
        what,
        {
            "Conv2d's weight is (maps made, maps read, height, width): which is which in the "
            "whole step?": (4, _K, 3, 3),
            "The kernel has lost its neighbours: which of the two steps sees them?": (_K, 4, 1, 1),
            "This is a matrix at one pixel; the question asks for a 3×3 kernel.": (_K, 4),
            "The maps of the middle are still there: the second convolution sums over them.": (
                *middle,
                4,
                3,
                3,
            ),
            "It reads the middle. The merged kernel reads what enters the layer.": (*middle, 3, 3),
        },
    )
    right = sum(second[:, m, None] * first[m, :, 0, 0, None, None] for m in range(_WIDTH))
    assert isinstance(right, Tensor)
    require_values(
        result,
        right,
        what,
        {
            "the two weights are summed over the middle one by one, and then multiplied.\nA map "
            "of the middle multiplies its own weights: which comes "
            "first, product or sum?": second.sum(dim=1, keepdim=True) * first.sum(dim=0)[None],
            "the maps of the middle are averaged.\nA convolution adds up what it reads.": right
            / _WIDTH,
            "the kernel is turned round.\nPyTorch's convolutions do not flip kernels: look at the "
            "order of height and width.": right.flip(2, 3),
            "height and width have changed places.\nLook "
            "at the order of the axes.": right.transpose(2, 3),
            "only the first map of the middle counts.\nLook at what is summed.": second[:, :1]
            * first[:1].transpose(0, 1)[None, :, 0],
        },
        "the values are wrong.\nTake one map that is read and one that is made: by how many paths "
        "does the first reach the second, and what is each path multiplied with?",
    )
    weights = [random_maps(1, 1, 1, 1), random_maps(9, 2, 1, 1), random_maps(2, 6, 1, 1)]
    kernels = [random_maps(1, 1, 3, 3), random_maps(2, 9, 3, 3), random_maps(7, 2, 3, 3)]

    def merged(first: Tensor, second: Tensor) -> Tensor:
        return (second[:, :, None] * first[None, :, :]).sum(dim=1)

    require_for_all(answer, merged, list(zip(weights, kernels, strict=True)), False)
    return f"{name} does in one step what the two convolutions do in turn"


@as_check
def mixtures(answer: Any) -> str:
    """The rank of the merged kernel is limited by the maps read, the middle, and 9k."""
    name = require_numbers(
        answer,
        lambda m, k, b: sorted((m, b * k, 9 * k))[0],
        [(204, 12, 4), (24, 12, 4), (500, 12, 9), (500, 12, 16), (6, 1, 20)],
        {
            "only the width of the middle counts.\nCan there be more different mixtures than maps "
            "to mix, or more than a kernel can hold?": lambda m, k, b: b * k,
            "a middle as wide as you like is always used in full.\nThe kernel has one row for "
            "each map made and each of its "
            "pixels: how many rows are that?": lambda m, k, b: min(m, b * k),
            "more mixtures than maps are found.\nHow many different mixtures can there be of the "
            "maps that are read?": lambda m, k, b: min(b * k, 9 * k),
            "the middle does not limit anything.\nEvery mixture passes through it: how many maps "
            "wide is it?": lambda m, k, b: min(m, 9 * k),
            "one row is counted for each map made.\nThe kernel looks at nine pixels, and may want "
            "another mixture at each.": lambda m, k, b: min(m, b * k, k),
            "the middle is counted as b maps wide.\nbn_size counts in "
            "units of the growth rate.": lambda m, k, b: min(m, b, 9 * k),
        },
        "The rank of a product is at most the smallest of the sizes on its way: which three are "
        "there?",
        draw=lambda r: (r.randint(1, 900), r.randint(1, 48), r.randint(1, 20)),
    )
    return f"{name} says how many mixtures of its input a layer can look at"
