"""Checks of the exercises of chapter 1."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.battery import require_everywhere
from densenet_from_scratch.course.checks.core import (
    as_check,
    build_answer,
    call_answer,
    random_maps,
    require,
    require_numbers,
    require_values,
)
from densenet_from_scratch.course.checks.layers import (
    LayerSpec,
    layer_gradient,
    layer_list,
    layer_parts,
    layer_shape,
    layer_side_effects,
    layer_values,
    require_separate,
)
from densenet_from_scratch.measure import count_parameters
from densenet_from_scratch.plain import PlainLayer, PlainNet

PLAIN = LayerSpec(arguments=(4,), reads=4, makes=4)


@as_check
def plain_layer_parts(answer: Any) -> str:
    """The plain layer has a normalisation and a convolution, as asked, and nothing else."""
    return layer_parts(answer, PLAIN)


@as_check
def plain_layer_shape(answer: Any) -> str:
    """The plain layer keeps the number and the size of the maps, and their dtype."""
    return layer_shape(answer, PLAIN)


@as_check
def plain_layer_values(answer: Any) -> str:
    """The plain layer is BN-ReLU-conv, in training and in evaluation."""
    return layer_values(answer, PLAIN)


@as_check
def plain_layer_side_effects(answer: Any) -> str:
    """The plain layer does not change its input, and runs once."""
    return layer_side_effects(answer, PLAIN)


@as_check
def plain_layer_gradient(answer: Any) -> str:
    """Gradients flow through the plain layer."""
    return layer_gradient(answer, PLAIN)


def _plain_parameters(layers: int, channels: int, images: int, classes: int) -> int:
    with torch.device("meta"):
        return count_parameters(PlainNet(layers, channels, images, classes))


@as_check
def plain_parameters(answer: Any) -> str:
    """The formula gives the number of parameters of a plain network."""
    right = _plain_parameters
    name = require_numbers(
        answer,
        right,
        [(1, 1, 1, 2), (3, 4, 1, 10), (5, 8, 3, 7), (2, 16, 3, 100)],
        {
            "a bias is counted for each 3×3 convolution.\nLook at how PlainLayer and the stem "
            "make theirs.": lambda n, c, i, k: right(n, c, i, k) + (n + 1) * c,
            "a bias is counted for each layer's 3×3 convolution.\nLook at how PlainLayer makes "
            "its own.": lambda n, c, i, k: right(n, c, i, k) + n * c,
            "running mean and variance are counted too.\nThey are buffers: the optimiser does not "
            "learn them. Look at what a BatchNorm "
            "has to learn for each map.": lambda n, c, i, k: right(n, c, i, k) + 2 * (n + 1) * c,
            "one number is counted for each map of a batch normalisation.\nLook at what it does "
            "after it has normalised.": lambda n, c, i, k: right(n, c, i, k) - (n + 1) * c,
            "the batch normalisations are not counted.\nLook at what each of them learns for each "
            "map.": lambda n, c, i, k: right(n, c, i, k) - 2 * (n + 1) * c,
            "the last batch normalisation, before the classifier, is not counted.\nGo through the "
            "list of parts in the question.": lambda n, c, i, k: right(n, c, i, k) - 2 * c,
            "the bias of the classifier is not counted.\nLook at the "
            "parts of a linear layer.": lambda n, c, i, k: right(n, c, i, k) - k,
            "the classifier is not counted.\nGo through the list "
            "of parts in the question.": lambda n, c, i, k: right(n, c, i, k) - (c + 1) * k,
            "the stem is not counted.\nGo through the list "
            "of parts in the question.": lambda n, c, i, k: right(n, c, i, k) - 9 * i * c,
            "the stem is counted like a layer, from C maps to C maps.\nLook at how many channels "
            "the image has.": lambda n, c, i, k: right(n, c, i, k) + 9 * (c - i) * c,
            "a convolution is counted with one 3×3 kernel for each map it makes.\nIt has one for "
            "each *pair* of a map read and a map "
            "made.": lambda n, c, i, k: right(n, c, i, k) - 9 * n * c * (c - 1) - 9 * (i - 1) * c,
        },
        "Count part by part: the stem, one layer, the last normalisation, the classifier. Which "
        "of them have a bias?",
        draw=lambda r: (r.randint(1, 60), r.randint(1, 64), r.randint(1, 4), r.randint(2, 200)),
    )
    return f"{name} counts what a real network has"


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    # Backwards, from one output pixel to the pixels it sees.
    size = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        size = (size - 1) * stride + kernel
    return size


def _jumps(strides: Sequence[int], own: bool) -> list[int]:
    jumps, jump = [], 1
    for stride in strides:
        jumps.append(jump * stride if own else jump)
        jump *= stride
    return jumps


def _draw_stack(chance: Random) -> tuple[list[int], list[int]]:
    layers = chance.randint(0, 7)
    return chance.choices(range(1, 8), k=layers), chance.choices(range(1, 4), k=layers)


@as_check
def receptive_field(answer: Any) -> str:
    """The formula gives the receptive field of a stack with any kernels and strides."""
    name = require_numbers(
        answer,
        _receptive_field,
        [
            ([3], [1]),
            ([3, 3], [1, 1]),
            ([7, 3], [2, 1]),
            ([3, 2, 3, 1], [1, 2, 1, 2]),
            ([5, 3, 3, 3], [2, 2, 2, 1]),
        ],
        {
            "the strides make no difference.\nAfter a stride of 2, neighbours in the next map are "
            "two pixels apart: by how much does a "
            "kernel then widen the view?": lambda k, s: 1 + sum(kernel - 1 for kernel in k),
            "the kernel sizes are added up.\nTwo neighbouring windows overlap: by how much does a "
            "kernel of size 3 widen the view?": lambda k, s: sum(k),
            "a layer's own stride already widens its own step.\nA stride spreads the outputs of "
            "its layer: which layers read them?": lambda k, s: (
                1 + sum((a - 1) * j for a, j in zip(k, _jumps(s, own=True), strict=True))
            ),
            "only the stride of the layer just before counts.\nLook at what two strides of 2 in a "
            "row do to the distance between "
            "neighbours.": lambda k, s: (
                1 + sum((a - 1) * b for a, b in zip(k, [1, *s[:-1]], strict=True))
            ),
            "the strides before a layer are added up.\nLook at what two strides of 2 in a row do "
            "to the distance between "
            "neighbours.": lambda k, s: (
                1 + sum((a - 1) * (sum(s[:i]) or 1) for i, a in enumerate(k))
            ),
            "the result is one too small.\nHow many pixels does a "
            "network without layers see?": lambda k, s: _receptive_field(k, s) - 1,
        },
        "Draw it for this case: mark one pixel of the last map, then the pixels it reads, layer "
        "by layer back to the image.",
        draw=_draw_stack,
    )
    return f"{name} finds how many pixels wide the view is, strides included"


STACK = (3, 4)  # layers, channels
DEEP = 33  # layers


@as_check
def plain_stack_layers(answer: Any) -> str:
    """Every layer of the stack has weights of its own."""
    stack = build_answer(answer, *STACK, may_use=(PlainLayer,), random=False)
    layers = layer_list(stack, STACK[0])
    for layer in layers:
        PLAIN.parts(layer)
    require_separate(layers, type(stack).__name__)
    require(
        count_parameters(stack) == STACK[0] * count_parameters(layers[0]),
        f"{type(stack).__name__} has parameters outside self.layers.\nMend only what is broken.",
    )
    single = layer_list(build_answer(answer, 1, 1, may_use=(PlainLayer,), random=False), 1)
    replace(PLAIN, arguments=(1,), reads=1, makes=1).parts(single[0])
    return f"{type(stack).__name__} has as many separate layers as asked"


@as_check
def plain_stack_values(answer: Any) -> str:
    """The stack runs every layer once, in order."""
    stack = build_answer(answer, *STACK, may_use=(PlainLayer,))
    layers = layer_list(stack, STACK[0])
    x = random_maps(2, STACK[1], 4, 5)

    def through(order: Sequence[nn.Module], x: Tensor = x) -> Tensor:
        for layer in order:
            x = PLAIN.expected(layer, x)
        return x

    what = type(stack).__name__
    require_values(
        call_answer(what, stack, x),
        through(layers),
        what,
        {
            "only the first layer runs, again and again.\nLook at what "
            "the loop in forward calls.": through([layers[0]] * STACK[0]),
            "a layer is left out.\nLook at where the loop in forward ends.": through(layers[:-1]),
            "only one layer runs.\nLook at what each layer reads, and "
            "at where forward returns.": through(layers[:1]),
            "the last layer reads the input.\nLook at what each layer reads: the output of the "
            "one before.": through(layers[-1:]),
        },
        "the values are wrong.\nLook at what each layer reads: x_l = H_l(x_{l-1}).",
    )
    require_everywhere(stack, lambda x: through(layers, x), STACK[1])
    deep = build_answer(answer, DEEP, STACK[1], may_use=(PlainLayer,))
    layers = layer_list(deep, DEEP)
    require_everywhere(deep, lambda x: through(layers, x), STACK[1], ((2, 3, 4),))
    return f"{what} runs each layer once, in order"
