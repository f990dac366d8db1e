"""Checks of the exercises of chapter 2."""

from collections.abc import Sequence
from dataclasses import replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.course.checks.battery import (
    require_elsewhere,
    require_everywhere,
    require_for_all,
)
from densenet_from_scratch.course.checks.by_hand import branch_by_hand
from densenet_from_scratch.course.checks.core import (
    as_check,
    build_answer,
    call_answer,
    random_maps,
    require,
    require_own,
    require_shape,
    require_tensor,
    require_values,
)
from densenet_from_scratch.course.checks.layers import (
    layer_gradient,
    layer_list,
    layer_parts,
    layer_shape,
    layer_side_effects,
    layer_values,
)
from densenet_from_scratch.course.checks.plain import DEEP, PLAIN, STACK
from densenet_from_scratch.plain import PlainLayer
from densenet_from_scratch.residual import ResidualLayer

_RESIDUAL = replace(PLAIN, adds_input=True, may_use=(PlainLayer,))


@as_check
def residual_layer_parts(answer: Any) -> str:
    """The residual layer has the parts of a plain one: the shortcut costs no parameter."""
    return layer_parts(answer, _RESIDUAL)


@as_check
def residual_layer_shape(answer: Any) -> str:
    """The residual layer keeps the number and the size of the maps, and their dtype."""
    return layer_shape(answer, _RESIDUAL)


@as_check
def residual_layer_values(answer: Any) -> str:
    """The residual layer adds its input, untouched, to BN-ReLU-conv of it."""
    return layer_values(answer, _RESIDUAL)


@as_check
def residual_layer_side_effects(answer: Any) -> str:
    """The residual layer does not change its input, and runs its branch once."""
    return layer_side_effects(answer, _RESIDUAL)


@as_check
def residual_layer_gradient(answer: Any) -> str:
    """Gradients flow through the residual layer."""
    return layer_gradient(answer, _RESIDUAL)


def _terms(layers: Sequence[PlainLayer], x: Tensor) -> list[Tensor]:
    terms = [x]
    for layer in layers:
        terms.append(branch_by_hand(layer.norm, layer.conv, torch.stack(terms).sum(dim=0)))
    return terms


@as_check
def branches(answer: Any) -> str:
    """The terms of the unrolled sum are the input and what each branch adds, and nothing else."""
    name = require_own(answer, FunctionType)
    layers = [_build_plain(3).eval() for _ in range(3)]
    x = random_maps(2, 3, 4, 4)
    states, terms, chain, parallel = [x], [x], [x], [x]
    for layer in layers:
        norm, conv = layer.norm, layer.conv
        parallel.append(branch_by_hand(norm, conv, x))
        chain.append(branch_by_hand(norm, conv, chain[-1]))
        terms.append(branch_by_hand(norm, conv, states[-1]))
        states.append(states[-1] + terms[-1])
    result = call_answer(f"{name}(layers, x)", answer, layers, x)
    require(
        type(result) in (list, tuple),
        f"{name} gives a {type(result).__name__}, not a list.\nThe question asks for the terms, "
        "not for their sum.",
    )
    require(
        len(result) == len(terms),
        f"{name} gives {len(result)} terms for {len(layers)} layers.\nLook at the sum in the "
        "question: what stands before the branches, and is there one term for each of them?",
    )
    for index in range(len(terms)):
        require_values(
            result[index],
            terms[index],
            f"Term {index} of {name}(layers, x)",
            {
                "every branch reads the input, as if x_L were x_0 plus all H_l(x_0).\nLook at "
                "what the layer before has already added by then.": parallel[index],
                "each branch reads only the branch before it, as in a plain network.\nH_l reads "
                "x_{l-1}, which is a sum: of what?": chain[index],
                "this is x_l itself, and the sum of all x_l is far more than x_L.\nLook at what "
                "each layer *adds*.": states[index],
            },
            f"the values are wrong.\nWrite down what x_{index} is made of, and look at what your "
            "loop has in hand at that moment.",
        )
    for layer in layers[:2]:
        layer.train()
    cases = [(layers, random_maps(1, 3, 5, 7)), (layers[:1], random_maps(5, 3, 2, 9)), ([], x)]
    require_for_all(answer, _terms, cases)
    return f"{name} takes x_L apart: the terms are right, and they sum to it"


def _build_plain(channels: int) -> PlainLayer:
    layer = PlainLayer(channels).double()
    with torch.no_grad():
        layer.norm.weight.normal_()
        layer.norm.bias.normal_()
    return layer


_SHORTCUTS = [
    ((2, 3, 6, 8), 5, 2),
    ((1, 2, 5, 7), 6, 2),
    ((2, 3, 7, 7), 4, 3),
    ((2, 3, 4, 4), 3, 1),
    ((2, 3, 5, 6), 3, 2),
]


def _shortcut(x: Tensor, channels: int, stride: int) -> Tensor:
    strided = x[:, :, ::stride, ::stride]
    missing = strided.new_zeros(len(x), channels - x.shape[1], *strided.shape[2:])
    return torch.cat([strided, missing], dim=1)


@as_check
def shortcut_shape(answer: Any) -> str:
    """The shortcut without parameters has the shape that the branch has."""
    name = require_own(answer, FunctionType)
    for shape, channels, stride in _SHORTCUTS:
        what = f"{name}(x, {channels}, {stride}) for x of shape {shape}"
        n, c, h, w = shape
        height, width = -(-h // stride), -(-w // stride)
        require_shape(
            call_answer(what, answer, random_maps(*shape), channels, stride),
            (n, channels, height, width),
            what,
            {
                "The maps are fewer, but there are not as many as the branch makes: look at the "
                "channels.": (n, c, height, width),
                "There are enough maps, but they are not smaller: look at the stride.": (
                    n,
                    channels,
                    h,
                    w,
                ),
                "There are too many maps: how many zeros are missing, and how many are there in "
                "the end?": (n, c + channels, height, width),
                "The last row and column are missing where the stride does not divide the size.": (
                    n,
                    channels,
                    h // stride,
                    w // stride,
                ),
                "The zeros are beside the pixels, not behind the maps.\nF.pad counts axes from "
                "the last: look at which pair is which.": (n, c, height, width + channels - c),
                "The zeros are below the pixels, not behind the maps.\nF.pad counts axes from the "
                "last: look at which pair is which.": (n, c, height + channels - c, width),
            },
        )
    return f"{name} gives the shape that the branch has"


@as_check
def shortcut_values(answer: Any) -> str:
    """The shortcut keeps every stride-th pixel, then zero maps; gradients reach those pixels."""
    name = require_own(answer, FunctionType)
    for shape, channels, stride in _SHORTCUTS:
        x = random_maps(*shape).requires_grad_()
        what = f"{name}(x, {channels}, {stride}) for x of shape {shape}"
        result = require_tensor(call_answer(what, answer, x, channels, stride), what)
        n, c, h, w = shape
        zeros = torch.zeros(n, channels - c, -(-h // stride), -(-w // stride), dtype=x.dtype)
        strided = x[:, :, ::stride, ::stride]
        mistakes = {
            "the zero maps come first.\nLook at which side of the channel axis they are added to: "
            "map 0 of the input should stay map 0.": torch.cat([zeros, strided], dim=1),
            "pixels are averaged.\nThe question asks to *keep* every stride-th pixel, as the "
            "centre of a strided convolution "
            "does.": torch.cat([F.avg_pool2d(x, stride, ceil_mode=True), zeros], dim=1),
            "the largest of several pixels is taken.\nThe question asks to *keep* every stride-th "
            "pixel.": torch.cat([F.max_pool2d(x, stride, ceil_mode=True), zeros], dim=1),
        }
        require_values(
            result,
            torch.cat([strided, zeros], dim=1),
            what,
            mistakes,
            "the values are wrong.\nLook at row 0 and column 0: are they kept? And are the maps "
            "that were added all zero?",
        )
        require(
            result.requires_grad,
            f"{what}: no gradient flows back.\nLook for detach(), .data, numpy, torch.no_grad().",
        )
    cases = [(random_maps(1, 1, 1, 9), 1, 1), (random_maps(5, 2, 7, 4), 19, 4)]
    require_for_all(answer, _shortcut, cases)
    require_elsewhere(answer, (2, 5, 3, 2), random_maps(2, 3, 5, 4), 5, 2)
    return f"{name} keeps the pixels it should and adds maps of zeros"


def _residual_stack(answer: Any) -> tuple[nn.Module, list[nn.Module]]:
    stack = build_answer(answer, *STACK, may_use=(PlainLayer, ResidualLayer))
    return stack, layer_list(stack, STACK[0])


@as_check
def residual_stack_identity(answer: Any) -> str:
    """With branches that give zero, the stack passes its input on."""
    stack, layers = _residual_stack(answer)
    with torch.no_grad():
        for layer in layers:
            PLAIN.parts(layer)[1].weight.zero_()
    x = random_maps(2, STACK[1], 4, 4)
    what = f"{type(stack).__name__} with branches of zero"
    require_values(
        call_answer(what, stack, x),
        x,
        what,
        {
            "each layer doubles what it reads: the input is added twice.\nLook for both places "
            "that add it; one of them is in a class that you did not write.": x * 2 ** len(layers),
            "nothing is left of the input: now no place adds it.\nLook at who should.": x * 0,
            "what is negative is lost.\nLook for a ReLU on the identity path.": x.clamp(min=0),
        },
        "the input does not come out as it went in.\nLook at what happens to x besides H_l(x).",
    )
    return f"{type(stack).__name__} passes its input on when the branches give zero"


@as_check
def residual_stack_values(answer: Any) -> str:
    """The stack of residual layers computes x_l = H_l(x_{l-1}) + x_{l-1}."""
    stack, layers = _residual_stack(answer)
    x = random_maps(2, STACK[1], 4, 5)

    def through(times: float, x: Tensor = x) -> Tensor:
        for layer in layers:
            x = PLAIN.expected(layer, x) + times * x
        return x

    what = type(stack).__name__
    require_values(
        call_answer(what, stack, x),
        through(1),
        what,
        {
            "the input is added twice in each layer.\nLook for both places that add it; one of "
            "them is in a class that you did not write.": through(2),
            "the input is no longer added anywhere.\nLook at who should add it.": through(0),
        },
        "the values are wrong.\nEach x_l is H_l(x_{l-1}) + x_{l-1}, neither term scaled: look at "
        "the loop in forward.",
    )
    require_everywhere(stack, lambda x: through(1, x), STACK[1])
    deep = build_answer(answer, DEEP, STACK[1], may_use=(PlainLayer, ResidualLayer))
    layers = layer_list(deep, DEEP)
    require_everywhere(deep, lambda x: through(1, x), STACK[1], ((2, 3, 4),))
    smallest = build_answer(answer, 1, 1, may_use=(PlainLayer, ResidualLayer))
    replace(PLAIN, arguments=(1,), reads=1, makes=1).parts(layer_list(smallest, 1)[0])
    return f"{what} computes H_l(x) + x in every layer"
