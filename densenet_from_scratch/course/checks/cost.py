"""Checks of the exercises of chapter 11."""

from collections.abc import Sequence
from functools import partial
from math import sqrt
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.course.checks.bottleneck import mix_by_hand, mix_or_convolve_by_hand
from densenet_from_scratch.course.checks.common import (
    as_check,
    build_answer,
    call_answer,
    random_maps,
    require,
    require_numbers,
    require_own,
    require_results,
    require_shape,
    require_values,
    same_values,
)
from densenet_from_scratch.course.checks.layers import (
    layer_list,
    normalise_by_hand,
    require_gradients,
)
from densenet_from_scratch.measure import count_parameters
from densenet_from_scratch.osa import ConvLayer

# --- Question 1: what a convolution moves --------------------------------------------------------


def _moved(
    c_1: int,
    c_2: int,
    kernel: int,
    height: int,
    width: int,
    stride: int,
    images: int,
    *,
    loads: int = 1,
) -> int:
    """Go from pixel to pixel; ``loads`` is how often the weights are read."""
    read = len(range(height)) * len(range(width))
    written = len(range(0, height, stride)) * len(range(0, width, stride))
    return images * (c_1 * read + c_2 * written) + loads * kernel**2 * c_1 * c_2


@as_check
def numbers_moved(answer: Any) -> str:
    """A convolution moves the maps of every image, in and out, and its weights once."""
    right = _moved
    name = require_numbers(
        answer,
        right,
        [
            (16, 8, 1, 6, 10, 1, 1),
            (5, 7, 3, 9, 4, 1, 1),
            (64, 32, 3, 28, 28, 1, 16),
            (6, 10, 3, 8, 12, 2, 3),
            (4, 3, 5, 7, 9, 2, 2),
            (2, 9, 3, 10, 7, 3, 1),
        ],
        [
            (
                lambda *a: right(*a, loads=a[-1]),
                "the weights are counted for every image.\nThey are the same for all of a batch: "
                "how often must they be read?",
            ),
            (
                lambda c_1, c_2, kernel, h, w, stride, n: right(c_1, c_2, kernel, h, w, stride, 1),
                "only the maps of one image are counted.\nWhat does a batch of more images have "
                "more of?",
            ),
            (
                lambda c_1, c_2, kernel, h, w, stride, n: right(c_1, c_2, kernel, h, w, 1, n),
                "the stride does not matter.\nHow many pixels has a map that leaves?",
            ),
            (
                lambda c_1, c_2, kernel, h, w, stride, n: (
                    n * (c_1 + c_2) * len(range(0, h, stride)) * len(range(0, w, stride))
                    + kernel**2 * c_1 * c_2
                ),
                "the maps that enter are counted at the size of those that leave.\nA stride leaves "
                "out positions of the kernel: does it also leave out pixels that are there?",
            ),
            (
                lambda c_1, c_2, kernel, h, w, stride, n: (
                    n * (c_1 * h * w + c_2 * (h // stride) * (w // stride)) + kernel**2 * c_1 * c_2
                ),
                "some maps that leave have a row or a column too few.\nTake 7 pixels in a row and "
                "stride 2: on which of them does the middle of the kernel stand?",
            ),
            (
                lambda c_1, c_2, kernel, h, w, stride, n: (
                    n * (c_1 * h * w + c_2 * -(-h * w // stride)) + kernel**2 * c_1 * c_2
                ),
                "the stride makes the maps smaller along one axis only.\nIt goes in two "
                "directions.",
            ),
            (
                lambda *a: right(*a) - (a[2] ** 2 - a[2]) * a[0] * a[1],
                "a kernel of K×K pixels is counted with K weights.\nHow many pixels does it look "
                "at?",
            ),
            (
                lambda *a: right(*a, loads=0),
                "the weights are not counted.\nWhat must be read besides the maps?",
            ),
            (
                lambda *a: right(*a) - a[-1] * a[0] * a[3] * a[4],
                "what the convolution reads of its input is not counted.\nGo through the "
                "chapter's formula, brace by brace.",
            ),
            (
                lambda *a: right(a[0], 0, *a[2:]) + a[2] ** 2 * a[0] * a[1],
                "what the convolution writes is not counted.\nGo through the chapter's formula, "
                "brace by brace.",
            ),
            (
                lambda *a: right(*a) + (a[2] ** 2 - 1) * a[-1] * a[0] * a[3] * a[4],
                "each input pixel is counted for every place of the kernel.\nThe count asks for "
                "numbers that must be moved at least once, not for how often they are used.",
            ),
            (
                lambda c_1, c_2, kernel, h, w, stride, n: (
                    n * kernel**2 * c_1 * c_2 * len(range(0, h, stride)) * len(range(0, w, stride))
                ),
                "these are multiply-accumulates: what is computed.\nThe question asks for what is "
                "moved.",
            ),
        ],
        "Count maps in, maps out and weights apart, for one image; then ask which of the three "
        "grow with the batch.",
    )
    return f"{name} counts what a convolution moves, with stride and batch"


def _least(work: int, kernel: int, pixels: int) -> float:
    """Balance the maps: both widths are the root of their product, which the work fixes."""
    side = sqrt(work / pixels) / kernel
    return pixels * (side + side) + kernel * side * kernel * side


@as_check
def least_moved(answer: Any) -> str:
    """No K×K convolution moves less, for its work, than the one with equal widths."""
    name = require_results(
        answer,
        _least,
        [
            (784 * 512 * 128, 1, 784),
            (784 * 9 * 128 * 32, 3, 784),
            (49 * 25 * 6 * 10, 5, 49),
            (6 * 9 * 7, 3, 6),
        ],
        [
            (
                lambda work, kernel, n: 2 * sqrt(n * work) + work / n,
                "this is the bound for a 1×1 convolution, whatever the kernel.\nWith the same "
                "work, does a larger kernel leave room for as many maps?",
            ),
            (
                lambda work, kernel, n: 2 * sqrt(n * work) / kernel**2 + work / n,
                "the kernel counts twice in what the maps move.\nWhat happens to a K² that "
                "stands under a root?",
            ),
            (
                lambda work, kernel, n: 2 * sqrt(n * work) + work / n / kernel**2,
                "the kernel changes the weights and not the maps.\nHow many weights are there, "
                "each used once at every pixel, when the work is given?",
            ),
            (
                lambda work, kernel, n: 2 * sqrt(n * work) / kernel + work / n / kernel**2,
                "a kernel is counted with one weight.\nEach weight is used once at every pixel: "
                "how many are there, then, when the work is given?",
            ),
            (
                lambda work, kernel, n: sqrt(n * work) / kernel + work / n,
                "maps are counted once where they are moved twice.\nMaps enter and maps leave.",
            ),
            (
                lambda work, kernel, n: 2 * sqrt(n * work) / kernel,
                "the weights are not counted.\nWhat must be read besides the maps?",
            ),
            (
                lambda work, kernel, n: 2 * sqrt(work / n) / kernel + work / n,
                "the maps have one pixel.\nBehind the sum of the two widths there is a factor.",
            ),
            (
                lambda work, kernel, n: 2 * sqrt(n * work) * kernel + work / n,
                "a larger kernel needs more maps here for the same work.\nSolve the work for "
                "c_1 c_2.",
            ),
        ],
        "a number (a float)",
        "Choose c_1 = c_2 and a kernel, compute the work and what is moved, and compare: with "
        "equal widths nothing is moved above the bound.",
    )
    return f"{name} knows what a convolution of this work must move at least"


# --- Question 2: readers -------------------------------------------------------------------------

_PAIR = "a pair of integers (read, normalised)"


def _dense_counts(k_0: int, k: int, layers: int) -> tuple[int, int]:
    """Go from reader to reader: the layers, then what follows the block."""
    read, normalised, maps = 0, 0, k_0
    for _ in range(layers):
        read += maps
        normalised += maps + 4 * k
        maps += k
    return read + maps, normalised + maps


@as_check
def dense_counts(answer: Any) -> str:
    """In a dense block every layer reads, and normalises, all maps before it."""
    right = _dense_counts

    def leaving(k_0: int, k: int, layers: int) -> int:
        return k_0 + k * layers

    name = require_results(
        answer,
        right,
        [(128, 32, 12), (24, 12, 16), (7, 5, 1), (3, 2, 4)],
        [
            (
                lambda *a: tuple(count - leaving(*a) for count in right(*a)),
                "what follows the block is forgotten, a reader that normalises as well.\nThe "
                "chapter counts 1 + 2 + … + 6 for *five* layers.",
            ),
            (
                lambda *a: (right(*a)[0] - leaving(*a), right(*a)[1]),
                "what follows the block reads nothing.\nThe chapter counts 1 + 2 + … + 6 for "
                "*five* layers.",
            ),
            (
                lambda *a: (right(*a)[0], right(*a)[1] - leaving(*a)),
                "what follows the block does not normalise.\nWhat does a transition begin with?",
            ),
            (
                lambda *a: (right(*a)[0], right(*a)[0]),
                "a bottleneck layer has one normalisation here.\nWhich maps does the second one "
                "read?",
            ),
            (
                lambda k_0, k, layers: (
                    right(k_0, k, layers)[0],
                    right(k_0, k, layers)[0] + layers * k,
                ),
                "the second normalisation of a layer sees k maps.\nIt stands between the two "
                "convolutions: how wide is it there?",
            ),
            (
                lambda *a: (right(*a)[0] + 4 * a[1] * a[2], right(*a)[1]),
                "the middle of each layer is counted among the maps of the block that are read.\n"
                "A layer's second convolution reads what its first one made, inside the layer.",
            ),
            (
                lambda k_0, k, layers: (
                    leaving(k_0, k, layers),
                    leaving(k_0, k, layers) + 4 * k * layers,
                ),
                "every map is counted once.\nHow many readers has each of them?",
            ),
            (
                lambda k_0, k, layers: (
                    right(k_0, k, layers)[0],
                    leaving(k_0, k, layers) + 4 * k * layers,
                ),
                "every map of the block is normalised once.\nA dense layer is pre-activation: "
                "whose norm1 is it, the maker's or the reader's?",
            ),
            (
                lambda k_0, k, layers: (
                    (layers + 1) * k_0 + k * (layers + 1) * (layers + 2) // 2,
                    (layers + 1) * k_0 + k * (layers + 1) * (layers + 2) // 2 + 4 * k * layers,
                ),
                "every reader reads k maps too many.\nHow many layers come before the first?",
            ),
            (
                lambda k_0, k, layers: (
                    k_0 + k * layers * (layers + 1) // 2,
                    k_0 + k * layers * (layers + 1) // 2 + 4 * k * layers,
                ),
                "the maps that enter are read once.\nWho reads x_0 in a dense block?",
            ),
            (
                lambda *a: right(*a)[::-1],
                "the two counts have changed places.\nLook at the order in the question.",
            ),
        ],
        _PAIR,
        "Take a block of two layers, and write for each reader which of x_0, x_1, x_2 it reads, "
        "and where its BNs stand.",
    )
    return f"{name} counts every reader of every map of a dense block"


def _osa_counts(k_0: int, width: int, out: int, layers: int) -> tuple[int, int]:
    """Go from maker to maker: the layers, then the aggregation."""
    made = [k_0] + [width for _ in range(layers)]
    read = sum(made[:-1]) + sum(made)
    return read, sum(made[1:]) + out


@as_check
def osa_counts(answer: Any) -> str:
    """In an OSA module the chain reads, the aggregation reads, and each maker normalises once."""
    right = _osa_counts
    name = require_results(
        answer,
        right,
        [(128, 110, 512, 5), (24, 12, 64, 16), (7, 5, 3, 1), (3, 2, 9, 4)],
        [
            (
                lambda k_0, c, out, n: (k_0 + n * c, right(k_0, c, out, n)[1]),
                "only the aggregation reads.\nThe chapter counts *five* connections in the chain, "
                "too.",
            ),
            (
                lambda k_0, c, out, n: (k_0 + (n - 1) * c, right(k_0, c, out, n)[1]),
                "only the chain reads.\nThe chapter counts *six* connections into the "
                "aggregation, too.",
            ),
            (
                lambda k_0, c, out, n: (right(k_0, c, out, n)[0] - k_0, right(k_0, c, out, n)[1]),
                "the maps that enter are read once.\nWho reads x_0 in an OSA module?",
            ),
            (
                lambda k_0, c, out, n: (right(k_0, c, out, n)[0] + c, right(k_0, c, out, n)[1]),
                "the last layer's maps are read once too often.\nIs there a layer of the chain "
                "behind them?",
            ),
            (
                lambda k_0, c, out, n: (right(k_0, c, out, n)[0], n * c),
                "the aggregation does not normalise.\nOf which parts does it consist?",
            ),
            (
                lambda k_0, c, out, n: (right(k_0, c, out, n)[0], k_0 + n * c + out),
                "the maps that enter are normalised again.\nWho has normalised them, in the order "
                "conv-BN-ReLU?",
            ),
            (
                lambda k_0, c, out, n: (right(k_0, c, out, n)[0], right(k_0, c, out, n)[0]),
                "here the readers normalise.\nCompare the order within a layer of the chain with "
                "that of a dense layer.",
            ),
            (
                lambda k_0, c, out, n: (
                    right(k_0, c, out, n)[0],
                    right(k_0, c, out, n)[0] + out,
                ),
                "here the readers normalise.\nCompare the order within a layer of the chain with "
                "that of a dense layer.",
            ),
            (
                lambda k_0, c, out, n: (
                    (n + 1) * k_0 + c * n * (n + 1) // 2,
                    right(k_0, c, out, n)[1],
                ),
                "every layer reads all maps before it, as in a dense block.\nWhat does a layer of "
                "the chain read?",
            ),
            (
                lambda k_0, c, out, n: (right(k_0, c, out, n)[0] + out, right(k_0, c, out, n)[1]),
                "what the module hands on is counted as read.\nThe module's own readers are its "
                "layers and the aggregation.",
            ),
            (
                lambda k_0, c, out, n: right(k_0, c, out, n)[::-1],
                "the two counts have changed places.\nLook at the order in the question.",
            ),
        ],
        _PAIR,
        "Take a module of two layers, and write for each reader which of x_0, x_1, x_2 it reads, "
        "and where its BNs stand.",
    )
    return f"{name} counts every reader of every map of an OSA module"


# --- Question 3: the module ----------------------------------------------------------------------


class _Layers(list[ConvLayer]):
    """A list that a message shows by its name."""

    def __repr__(self) -> str:
        return "layers"


# Maps in, then (maps out, kernel) by layer. In the second everything that could be confused has the
# same width, so that confusing it gives values instead of an error.
_UNEVEN = (4, ((3, 3), (7, 1), (2, 3)))
_EVEN = (4, ((4, 3), (4, 3), (4, 1)))
_Chain = tuple[int, Sequence[tuple[int, int]]]


def _chain(spec: _Chain) -> _Layers:
    width, rest = spec
    layers = _Layers()
    for made, kernel in rest:
        layers.append(ConvLayer(width, made, kernel))
        width = made
    return layers


def _build(
    answer: Any, spec: _Chain, out: int, identity: bool
) -> tuple[nn.Module, list[ConvLayer], ConvLayer]:
    """Build the answer; require that it holds the given layers and an aggregation."""
    layers = _chain(spec)
    given = list(layers)
    module = build_answer(answer, layers, out, identity, may_use=(ConvLayer,))
    name = type(module).__name__
    require(
        list(layers) == given,
        f"{name} changes the list of layers that it was given.\nIts owner may build a second "
        "module from it: look for append, insert, pop and += on that very list.",
    )
    own = layer_list(module, len(given))
    require(
        all(mine is layer for mine, layer in zip(own, given, strict=True)),
        f"{name}: self.layers does not hold the given layers, in their order.\nThey are to be used "
        "as they are: look for copies, new layers, or another order.",
    )
    aggregate = getattr(module, "aggregate", None)
    require(
        type(aggregate) is ConvLayer,
        f"{name} has no ConvLayer called self.aggregate.\nLook at the names in the question.",
    )
    assert isinstance(aggregate, ConvLayer)
    found, (enters, chain) = aggregate.conv.in_channels, spec
    widths = [made for made, _ in chain]
    hints = {
        sum(widths): "The maps that enter the module are concatenated, too.",
        enters + sum(widths[:-1]): "The last layer's maps are concatenated, too.",
        widths[-1]: "It reads *all* layers' maps, not only the last one's.",
        enters + len(widths) * widths[0]: "The layers need not all make equally many maps: ask "
        "each of them.",
        enters + len(widths) * widths[-1]: "The layers need not all make equally many maps: ask "
        "each of them.",
        sum([enters, *widths[:-1]]) + enters: "Each layer was asked for what it reads: ask for "
        "what it makes.",
    }
    require(
        found == enters + sum(widths),
        f"{name}: {enters} maps enter, and its layers make {widths}; self.aggregate reads {found}."
        f"\n{hints.get(found, 'What is concatenated, and how many maps is that?')}",
    )
    require(
        aggregate.conv.out_channels == out,
        f"{name}: self.aggregate makes {aggregate.conv.out_channels} maps where {out} were asked "
        "for.\nLook at the argument out_channels.",
    )
    require(
        aggregate.conv.kernel_size == (1, 1) and aggregate.conv.stride == (1, 1),
        f"{name}: the kernel of self.aggregate is {aggregate.conv.kernel_size}.\nThe aggregation "
        "mixes maps at each pixel by itself: look at kernel_size and stride.",
    )
    return module, given, aggregate


def _run_layer(layer: ConvLayer, x: Tensor) -> Tensor:
    return normalise_by_hand(layer.norm, mix_or_convolve_by_hand(layer.conv, x)).clamp(min=0)


def _run(layers: Sequence[ConvLayer], aggregate: ConvLayer, identity: bool, x: Tensor) -> Tensor:
    maps = [x]
    for layer in layers:
        maps.append(_run_layer(layer, maps[-1]))
    out = _run_layer(aggregate, torch.cat(maps, dim=1))
    return out + x if identity else out


_SINGLE = (3, ((5, 3),))
_KINDS = ((_UNEVEN, 5, False), (_EVEN, 4, False), (_EVEN, 4, True), (_SINGLE, 6, False))
_FORWARD = (
    "Which maps does each layer read, and how many go into the aggregation? Print shapes in "
    "forward. If only a second pass fails, a list has outlived the first."
)


def _text(name: str, spec: _Chain, out: int, identity: bool) -> str:
    return f"{name} of {len(spec[1])} layers with identity={identity}"


@as_check
def one_shot_parts(answer: Any) -> str:
    """The module holds the given layers, an aggregation of the right width, and no more."""
    for kind in _KINDS:
        module, layers, aggregate = _build(answer, *kind)
        name = type(module).__name__
        require(
            count_parameters(module) == sum(map(count_parameters, [*layers, aggregate])),
            f"{name} has more parameters than its layers and its aggregation.\nLook for a part "
            "that forward does not use.",
        )
    return f"{name} holds the given layers and an aggregation of the right width"


@as_check
def one_shot_shape(answer: Any) -> str:
    """The module gives out_channels maps, for maps of any size, in the dtype of its input."""
    for kind in _KINDS:
        module, *_ = _build(answer, *kind)
        name, out = type(module).__name__, kind[1]
        what = _text(name, *kind)
        for dtype in (torch.float64, torch.float32):
            x = random_maps(2, kind[0][0], 5, 7).to(dtype)
            y = call_answer(what, module.to(dtype), x, hint=_FORWARD)
            require_shape(
                y,
                (2, out, 5, 7),
                f"The output of {what}",
                {
                    (2, kind[0][0] + sum(made for made, _ in kind[0][1]), 5, 7): "These are the "
                    "concatenated maps: who mixes them?",
                    (2, kind[0][1][-1][0], 5, 7): "These are the last layer's maps: who reads all?",
                },
            )
            require(
                y.dtype == dtype,
                f"{name} turns {dtype} into {y.dtype}.\nLook for a tensor that forward makes or "
                "casts itself instead of computing it from x.",
            )
    return f"{name} gives maps of the right number, size and dtype"


def _mistakes(
    layers: Sequence[ConvLayer], aggregate: ConvLayer, identity: bool, x: Tensor
) -> list[tuple[Tensor, str]]:
    """What a module gives that confuses something, and the message for it."""
    maps = [x]
    for layer in layers:
        maps.append(_run_layer(layer, maps[-1]))
    joined = torch.cat(maps, dim=1)
    mixed = mix_by_hand(aggregate.conv, joined)
    normed = normalise_by_hand(aggregate.norm, mixed)
    shortcut = x if identity else torch.zeros_like(normed)
    order = "Look at the order in which the maps are joined: x_0 first."

    def finish(features: Sequence[Tensor]) -> Tensor:
        return _run_layer(aggregate, torch.cat(list(features), dim=1)) + shortcut

    found = [
        (finish(maps[::-1]), f"the newest maps stand first.\n{order}"),
        (finish([*maps[1:], x]), f"the input stands last.\n{order}"),
        (finish([*maps[:1], *maps[:0:-1]]), f"the layers' maps stand newest first.\n{order}"),
        (mixed + shortcut, "the aggregation has neither BN nor ReLU.\nLook at what you call."),
        (normed + shortcut, "the aggregation has no ReLU.\nLook at what you call."),
        (
            mixed.clamp(min=0) + shortcut,
            "the aggregation has no BN.\nLook at what you call.",
        ),
    ]
    raw, linear = [x], [x]
    for layer in layers:
        raw.append(mix_or_convolve_by_hand(layer.conv, raw[-1]))
        linear.append(
            normalise_by_hand(layer.norm, mix_or_convolve_by_hand(layer.conv, linear[-1]))
        )
    whole = "Look at what you call: the whole layer?"
    found += [
        (finish(raw), f"only the layers' convolutions run.\n{whole}"),
        (finish(linear), f"the layers have no ReLU.\n{whole}"),
    ]
    if identity:
        found += [
            (
                normed.clamp(min=0),
                "the input is not added.\nLook at the argument identity: does forward know it?",
            ),
            (
                (normed + x).clamp(min=0),
                "the input is added before the last ReLU.\nThe module's input is added to the "
                "module's output: look at what comes last.",
            ),
            (
                _run_layer(aggregate, joined) + maps[-1],
                "the last layer's maps are added.\nLook at whether the name x still means the "
                "input when you add it.",
            ),
            (
                (_run_layer(aggregate, joined) + x).clamp(min=0),
                "a ReLU follows the sum.\nLook at the last thing forward does.",
            ),
            (
                _run_layer(aggregate, joined) + 2 * x,
                "the input is added twice.\nLook at where forward adds it.",
            ),
        ]
    elif normed.shape == x.shape:
        found.append(
            (
                normed.clamp(min=0) + x,
                "the input is added to the output though identity is False.\nWho decides about it, "
                "the widths or the argument?",
            )
        )
    return found


@as_check
def one_shot_values(answer: Any) -> str:
    """Chain, concatenation in order, aggregation, in training and in evaluation."""
    for kind in _KINDS:
        module, layers, aggregate = _build(answer, *kind)
        name, identity = type(module).__name__, kind[2]
        for training in (False, True):
            module.train(training)
            x = random_maps(3, kind[0][0], 4, 5)
            what = f"{_text(name, *kind)} in {'training' if training else 'evaluation'}"
            right, mistakes = (
                _run(layers, aggregate, identity, x),
                _mistakes(layers, aggregate, identity, x),
            )
            require_values(
                call_answer(what, module, x, hint=_FORWARD),
                right,
                what,
                mistakes,
                "the values are wrong.\nGo through forward: what does each layer read, what is "
                "joined and in which order, what comes last?",
            )
    return f"{name} aggregates once what its layers make, in the order x_0, x_1, …"


@as_check
def one_shot_gradient(answer: Any) -> str:
    """Gradients reach the input and every layer."""
    for kind in _KINDS:
        module, layers, aggregate = _build(answer, *kind)
        name, identity = type(module).__name__, kind[2]
        require_gradients(
            module,
            random_maps(2, kind[0][0], 4, 3),
            partial(_run, layers, aggregate, identity),
            name,
        )
    return f"Gradients flow back through {name} to its input and to every layer"


@as_check
def one_shot_side_effects(answer: Any) -> str:
    """A pass leaves the input and the module as they were, and runs every part once."""
    for kind in _KINDS:
        module, layers, aggregate = _build(answer, *kind)
        name, what = type(module).__name__, _text(type(module).__name__, *kind)
        x = random_maps(2, kind[0][0], 4, 4)
        before = x.clone()
        with torch.no_grad():
            call_answer(what, module, x, hint=_FORWARD)
        require(
            same_values(x, before),
            f"{name} changes the maps that it was given.\nSomebody else may still read them: look "
            "for +=, inplace=True, and methods that end in an underscore.",
        )
        updates = [int(p.norm.num_batches_tracked or 0) for p in (*layers, aggregate)]
        require(
            set(updates) == {1},
            f"{what}: in one pass its layers and its aggregation run {updates} times.\nLook at how "
            "often forward calls each.",
        )
        module.eval()
        with torch.no_grad():
            first, second = (call_answer(what, module, x, hint=_FORWARD) for _ in range(2))
        require(
            same_values(second, first),
            f"{name} gives something else the second time.\nLook for a list that outlives the "
            "pass: an attribute of self, or a default argument.",
        )
    return f"{name} leaves its input alone, and remembers nothing from pass to pass"


# --- Question 4: folding -------------------------------------------------------------------------


def _pair(
    conv: nn.Conv2d, eps: float = 1e-5, quiet: bool = False
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution and the BN after it, as if trained; quiet maps vary hardly or not at all."""
    norm = nn.BatchNorm2d(conv.out_channels, eps=eps)
    assert norm.running_mean is not None and norm.running_var is not None
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.bias):
            tensor.normal_()
        for tensor in (norm.running_var, norm.weight):
            tensor.uniform_(0.5, 2)
        if quiet:
            norm.running_var[:2] = torch.tensor([0.0, 1e-6])
    return conv.double().eval(), norm.double().eval()


def _pairs() -> list[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    plain = nn.Conv2d(5, 5, 3, padding=1, bias=False)
    special = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)
    return [
        ("a 3×3 convolution", *_pair(plain)),
        ("a 1×1 convolution", *_pair(nn.Conv2d(3, 7, 1, bias=False))),
        (
            "a BN with quiet maps",
            *_pair(nn.Conv2d(5, 5, 3, padding=1, bias=False), quiet=True),
        ),
        ("a BN with an ε of its own", *_pair(nn.Conv2d(5, 5, 1, bias=False), eps=0.1)),
        ("a convolution with a bias", *_pair(nn.Conv2d(5, 5, 3, padding=1))),
        ("a strided convolution with groups and a bias", *_pair(special)),
    ]


_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode")


def _fold(name: str, answer: Any, case: str, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Call the answer; require a convolution that stands in the same place."""
    what = f"{name} for {case}"
    folded = call_answer(
        what, answer, conv, norm, hint="Mend only what is broken: the rest of the function ran."
    )
    hint = "Is a `return` missing?" if folded is None else "Return one convolution."
    require(type(folded) is nn.Conv2d, f"{what} gives a {type(folded).__name__}.\n{hint}")
    changed = [key for key in _SETTINGS if getattr(folded, key) != getattr(conv, key)]
    require(
        not changed,
        f"{what}: the new convolution has another {' and another '.join(changed)}.\nMend only what "
        "is broken: the copy had the right ones.",
    )
    for part, like in (("weight", conv.weight), ("bias", norm.bias)):
        value = getattr(folded, part)
        require(
            type(value) is nn.Parameter,
            f"{what}: the new convolution's {part} is a {type(value).__name__}.\nWhat does BN do "
            "with every map besides scaling it, and which part of a convolution can do that?",
        )
        require(
            value.shape == like.shape and value.dtype == like.dtype,
            f"{what}: the new convolution's {part} has shape {tuple(value.shape)} and "
            f"{value.dtype}.\nThere is one scale and one shift for each map that leaves, and the "
            "dtype stays.",
        )
    return folded


def _close(actual: Tensor, expected: Tensor) -> bool:
    """Whether tensors agree to 1e-10: a fold is exact but for rounding."""
    return torch.allclose(actual, expected, rtol=1e-10, atol=1e-10)


def _require_kept(
    given: Sequence[nn.Module], before: Sequence[dict[str, Tensor]], what: str, hint: str
) -> None:
    for module, old in zip(given, before, strict=True):
        new = module.state_dict()
        require(
            new.keys() == old.keys() and all(torch.equal(new[key], old[key]) for key in old),
            f"{what} changes the {type(module).__name__} that was given.\n{hint}",
        )


@as_check
def folded_side_effects(answer: Any) -> str:
    """The given modules stay as they are, and share no memory with the new one."""
    name = require_own(answer, FunctionType)
    for case, *given in _pairs():
        before = [{key: v.clone() for key, v in m.state_dict().items()} for m in given]
        folded = _fold(name, answer, case, *given)  # type: ignore[arg-type]
        _require_kept(
            given,
            before,
            f"{name} for {case}",
            "Training may go on with it: what must be copied before it is changed? Look for "
            "methods that end in an underscore, too.",
        )
        with torch.no_grad():
            for parameter in folded.parameters():
                parameter.zero_()
        _require_kept(
            given,
            before,
            f"{name} for {case}: whoever changes the new convolution",
            "They share memory: look for what was taken over without a copy.",
        )
    return f"{name} leaves the modules that it was given alone"


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run a convolution with other weights, and not a forward that came with a module."""
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups).detach()


def _fold_mistakes(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> list[tuple[Tensor, str]]:
    """What a wrong fold gives, and the message for it."""
    mean, variance, gamma, beta = norm.running_mean, norm.running_var, norm.weight, norm.bias
    assert mean is not None and variance is not None
    old = torch.zeros_like(mean) if conv.bias is None else conv.bias
    root = torch.sqrt(variance + norm.eps)
    formula = "Write BN's formula out in full and compare, symbol by symbol."
    unscaled = "It is there before BN: what does BN do with it?"

    scales = [
        (gamma / root, ""),
        (
            gamma / (variance.sqrt() + norm.eps),
            f"the scale is only nearly right: ε is there, but not where BN has it.\n{formula}",
        ),
        (
            gamma / variance.sqrt(),
            f"the scale is only nearly right, as if there were no ε.\n{formula}",
        ),
        (
            gamma / torch.sqrt(variance + 1e-5),
            "ε is always 10⁻⁵.\nA BN has its own: look for its name among BN's attributes.",
        ),
        (
            gamma / (variance + norm.eps),
            f"the maps are divided by their variance.\nThen they do not vary by 1. {formula}",
        ),
        (gamma * root, f"the maps are multiplied where they should be divided.\n{formula}"),
        (1 / root, "BN's γ is not used.\nWhat does BN do after it has normalised?"),
        (torch.ones_like(root), "the weights are not scaled.\nWhat does BN do with every map?"),
    ]
    found = []
    # Every mistake in the scale may come alone or together with one in the bias.
    for scale, message in scales:
        weight = conv.weight * scale[:, None, None, None]
        biases = [
            ((old - mean) * scale + beta, ""),
            (beta - mean * scale + old, f"the convolution's own bias is not scaled.\n{unscaled}"),
            (beta - mean * scale, f"the convolution's own bias is lost.\n{unscaled}"),
            (beta + old * scale, f"the running mean is not subtracted.\n{formula}"),
            (beta + old - mean, f"the running mean is not scaled.\n{formula}"),
            (beta + (old + mean) * scale, f"the running mean is added.\n{formula}"),
            ((old - mean) * scale, "BN's β is not used.\nWhat does BN add at the end?"),
            ((old - mean) * gamma / root + beta, ""),  # right, whatever the scale
        ]
        for bias, also in biases:
            found.append((_convolve(conv, x, weight, bias), message or also))
    if conv.in_channels == conv.out_channels and conv.groups == 1:
        scale = gamma / root
        turned = _convolve(conv, x, conv.weight * scale[:, None, None], (old - mean) * scale + beta)
        message = "the maps that enter are scaled.\nBN scales what leaves: which axis is that?"
        found.append((turned, message))
    return [(wrong, message) for wrong, message in found if message]


@as_check
def folded_values(answer: Any) -> str:
    """One convolution gives what convolution and BN give in evaluation, to 1e-10."""
    name = require_own(answer, FunctionType)
    for case, conv, norm in _pairs():
        x = random_maps(2, conv.in_channels, 9, 8)
        right = normalise_by_hand(norm, _convolve(conv, x, conv.weight, conv.bias))
        mistakes = _fold_mistakes(conv, norm, x)
        folded = _fold(name, answer, case, conv, norm)
        result = _convolve(conv, x, folded.weight, folded.bias)
        if _close(result, right):
            continue
        for wrong, message in mistakes:
            if _close(result, wrong) and not _close(wrong, right):
                raise AssertionError(f"{name} for {case}: {message}")
        nearly = torch.allclose(result, right, rtol=1e-3, atol=1e-3)
        raise AssertionError(
            f"{name} for {case}: this is {'nearly, but not exactly' if nearly else 'not'} what "
            "convolution and BN give.\nTake a convolution whose weights are zero: only the bias is "
            "left then. Is it right?"
        )
    return f"{name} gives one convolution in place of two modules, exactly"
