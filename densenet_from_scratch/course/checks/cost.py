"""Checks of the exercises of chapter 11."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import sqrt
from operator import add
from random import Random
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.course.checks.battery import (
    require_everywhere,
    require_gradients,
    require_same_again,
)
from densenet_from_scratch.course.checks.by_hand import (
    mix_by_hand,
    mix_or_convolve_by_hand,
    normalise_by_hand,
)
from densenet_from_scratch.course.checks.compare import allclose
from densenet_from_scratch.course.checks.core import (
    as_check,
    build_answer,
    call_answer,
    mistake_of,
    random_maps,
    require,
    require_none,
    require_numbers,
    require_own,
    require_part,
    require_shape,
    require_values,
)
from densenet_from_scratch.course.checks.layers import layer_list
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
    loads: int = 1,
) -> int:
    """Go from pixel to pixel; ``loads`` is how often the weights are read."""
    read = len(range(height)) * len(range(width))
    written = len(range(0, height, stride)) * len(range(0, width, stride))
    return images * (c_1 * read + c_2 * written) + loads * kernel**2 * c_1 * c_2


def _draw_convolution(chance: Random) -> tuple[int, ...]:
    widths, kernel = chance.choices(range(1, 200), k=2), chance.choice((1, 3, 5, 7))
    sizes = chance.choices(range(1, 60), k=2)
    return *widths, kernel, *sizes, chance.randint(1, 4), chance.randint(1, 64)


@as_check
def numbers_moved(answer: Any) -> str:
    """A convolution moves the maps of every image, in and out, and its weights once."""
    right: Callable[..., int] = _moved
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
        {
            "the weights are counted for every image.\nThey are the same for all of a batch: how "
            "often must they be read?": lambda *a: right(*a, loads=a[-1]),
            "only the maps of one image are counted.\nWhat does a batch of more images have more "
            "of?": lambda *a: right(*a[:-1], 1),
            "the stride does not matter.\nHow many pixels has a map that leaves?": lambda *a: right(
                *a[:5], 1, a[-1]
            ),
            "the maps that enter are counted at the size of those that leave.\nA stride leaves out "
            "positions of the kernel: does it also leave out pixels that are "
            "there?": lambda c, d, k, h, w, s, n: right(c, d, k, -(-h // s), -(-w // s), 1, n),
            "some maps that leave have a row or a column too few.\nTake 7 pixels in a row and "
            "stride 2: on which of them does the middle of the kernel "
            "stand?": lambda c, d, k, h, w, s, n: (
                n * (c * h * w + d * (h // s) * (w // s)) + k**2 * c * d
            ),
            "the stride makes the maps smaller along one axis only.\nIt goes in two "
            "directions.": lambda c, d, k, h, w, s, n: (
                n * (c * h * w + d * -(-h * w // s)) + k**2 * c * d
            ),
            "a kernel of K×K pixels is counted with K weights.\nHow many "
            "pixels does it look at?": lambda *a: right(*a) - (a[2] ** 2 - a[2]) * a[0] * a[1],
            "the weights are not counted.\nWhat must be read besides the maps?": lambda *a: right(
                *a, loads=0
            ),
            "what the convolution reads of its input is not counted.\nGo through the chapter's "
            "formula, brace by brace.": lambda *a: right(*a) - a[-1] * a[0] * a[3] * a[4],
            "what the convolution writes is not counted.\nGo through the chapter's formula, brace "
            "by brace.": lambda *a: right(a[0], 0, *a[2:]) + a[2] ** 2 * a[0] * a[1],
            "each input pixel is counted for every place of the kernel.\nThe count asks for "
            "numbers that must be moved at least once, not for how often "
            "they are used.": lambda *a: right(*a) + (a[2] ** 2 - 1) * a[-1] * a[0] * a[3] * a[4],
            "these are multiply-accumulates: what is computed.\nThe question asks for what is "
            "moved.": lambda *a: a[2] ** 2 * a[0] * right(0, *a[1:]),
        },
        "Count maps in, maps out and weights apart, for one image; then ask which of the three "
        "grow with the batch.",
        draw=_draw_convolution,
    )
    return f"{name} counts what a convolution moves, with stride and batch"


def _least(work: int, kernel: int, pixels: int) -> float:
    """Balance the maps: both widths are the root of their product, which the work fixes."""
    side = sqrt(work / pixels) / kernel
    return pixels * (side + side) + kernel * side * kernel * side


@as_check
def least_moved(answer: Any) -> str:
    """No K×K convolution moves less, for its work, than the one with equal widths."""
    name = require_numbers(
        answer,
        _least,
        [
            (784 * 512 * 128, 1, 784),
            (784 * 9 * 128 * 32, 3, 784),
            (49 * 250 * 6, 5, 49),
            (378, 3, 6),
        ],
        {
            "this is the bound for a 1×1 convolution, whatever the kernel.\nWith the same work, "
            "does a larger kernel leave room for as many "
            "maps?": lambda work, kernel, n: 2 * sqrt(n * work) + work / n,
            "the kernel counts twice in what the maps move.\nWhat happens to a K² that stands "
            "under a root?": lambda work, kernel, n: 2 * sqrt(n * work) / kernel**2 + work / n,
            "the kernel changes the weights and not the maps.\nHow many weights are there, each "
            "used once at every pixel, when the "
            "work is given?": lambda work, kernel, n: 2 * sqrt(n * work) + work / n / kernel**2,
            "a kernel is counted with one weight.\nEach weight is used once at every pixel: how "
            "many are there, then, when the work is "
            "given?": lambda work, kernel, n: 2 * sqrt(n * work) / kernel + work / n / kernel**2,
            "maps are counted once where they are moved twice.\nMaps "
            "enter and maps leave.": lambda work, kernel, n: sqrt(n * work) / kernel + work / n,
            "the weights are not counted.\nWhat must "
            "be read besides the maps?": lambda work, kernel, n: 2 * sqrt(n * work) / kernel,
            "the maps have one pixel.\nBehind the sum of the two widths "
            "there is a factor.": lambda work, kernel, n: 2 * sqrt(work / n) / kernel + work / n,
            "a larger kernel needs more maps here for the same work.\nSolve the "
            "work for c_1 c_2.": lambda work, kernel, n: 2 * sqrt(n * work) * kernel + work / n,
        },
        "Choose c_1 = c_2 and a kernel, compute the work and what is moved, and compare: with "
        "equal widths nothing is moved above the bound.",
        "a number (a float)",
        draw=lambda r: (r.randint(1, 10**9), r.choice((1, 3, 5, 7)), r.randint(1, 4000)),
    )
    return f"{name} knows what a convolution of this work must move at least"


# --- Question 2: readers -------------------------------------------------------------------------

_PAIR = "a pair of integers (read, normalised)"
_Counts = Callable[..., tuple[int, int]]


def _off(right: _Counts, by: _Counts) -> Callable[..., tuple[int, ...]]:
    """Return what counts so many too many, or too few."""
    return lambda *case: tuple(map(add, right(*case), by(*case)))


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
    off = partial(_off, right)
    name = require_numbers(
        answer,
        right,
        [(128, 32, 12), (24, 12, 16), (7, 5, 1), (3, 2, 4)],
        {
            "what follows the block is forgotten, a reader that normalises as well.\nThe chapter "
            "counts 1 + 2 + … + 6 for *five* "
            "layers.": off(lambda k_0, k, n: (-(k_0 + k * n), -(k_0 + k * n))),
            "what follows the block reads nothing.\nThe chapter counts 1 + 2 + … + 6 for *five* "
            "layers.": off(lambda k_0, k, n: (-(k_0 + k * n), 0)),
            "what follows the block does not normalise.\nWhat does a transition begin with?": off(
                lambda k_0, k, n: (0, -(k_0 + k * n))
            ),
            "a bottleneck layer has one normalisation here.\nWhich maps does the second one "
            "read?": off(lambda k_0, k, n: (0, -4 * k * n)),
            "the second normalisation of a layer sees k maps.\nIt stands between the two "
            "convolutions: how wide is it there?": off(lambda k_0, k, n: (0, -3 * k * n)),
            "the middle of each layer is counted among the maps of the block that are read.\nA "
            "layer's second convolution reads what its first one made, inside the "
            "layer.": off(lambda k_0, k, n: (4 * k * n, 0)),
            "every map is counted once.\nHow many readers has each of them?": lambda k_0, k, n: (
                k_0 + k * n,
                k_0 + 5 * k * n,
            ),
            "every map of the block is normalised once.\nA dense layer is pre-activation: whose "
            "norm1 is it, the maker's or the "
            "reader's?": lambda k_0, k, n: (right(k_0, k, n)[0], k_0 + 5 * k * n),
            "every reader reads k maps too many.\nHow many layers come before the first?": off(
                lambda k_0, k, n: (k * (n + 1), k * (n + 1))
            ),
            "the maps that enter are read once.\nWho reads x_0 in a dense block?": off(
                lambda k_0, k, n: (-n * k_0, -n * k_0)
            ),
            "the two counts have changed places.\nLook at the order in the question.": lambda *a: (
                right(*a)[::-1]
            ),
        },
        "Take a block of two layers, and write for each reader which of x_0, x_1, x_2 it reads, "
        "and where its BNs stand.",
        _PAIR,
        draw=lambda r: (r.randint(1, 200), r.randint(1, 48), r.randint(1, 60)),
    )
    return f"{name} counts every reader of every map of a dense block"


def _osa_counts(k_0: int, width: int, out: int, layers: int) -> tuple[int, int]:
    """Go from maker to maker: the layers, then the aggregation."""
    widths = [k_0] + [width for _ in range(layers)]
    return sum(widths[:-1]) + sum(widths), sum(widths[1:]) + out


@as_check
def osa_counts(answer: Any) -> str:
    """In an OSA module the chain reads, the aggregation reads, and each maker normalises once."""
    right = _osa_counts
    off = partial(_off, right)
    name = require_numbers(
        answer,
        right,
        [(128, 110, 512, 5), (24, 12, 64, 16), (7, 5, 3, 1), (3, 2, 9, 4)],
        {
            "only the aggregation reads.\nThe chapter counts *five* connections in the chain, "
            "too.": off(lambda k_0, c, out, n: (-k_0 - (n - 1) * c, 0)),
            "only the chain reads.\nThe chapter counts *six* connections into the aggregation, "
            "too.": off(lambda k_0, c, out, n: (-k_0 - n * c, 0)),
            "the maps that enter are read once.\nWho reads x_0 in an OSA module?": off(
                lambda k_0, c, out, n: (-k_0, 0)
            ),
            "the last layer's maps are read once too often.\nIs there a layer of the chain behind "
            "them?": off(lambda k_0, c, out, n: (c, 0)),
            "the aggregation does not normalise.\nOf which parts does it consist?": off(
                lambda k_0, c, out, n: (0, -out)
            ),
            "the maps that enter are normalised again.\nWho has normalised them, in the order "
            "conv-BN-ReLU?": off(lambda k_0, c, out, n: (0, k_0)),
            "here the readers normalise.\nCompare the order within a layer of the chain with that "
            "of a dense layer.": [
                lambda *a: (right(*a)[0], right(*a)[0]),
                lambda *a: (right(*a)[0], right(*a)[0] + a[2]),
            ],
            "every layer reads all maps before it, as in a dense block.\nWhat does a layer of the "
            "chain read?": off(
                lambda k_0, c, out, n: ((n - 1) * k_0 + c * (n - 1) * (n - 2) // 2, 0)
            ),
            "what the module hands on is counted as read.\nThe module's own readers are its "
            "layers and the aggregation.": off(lambda k_0, c, out, n: (out, 0)),
            "the two counts have changed places.\nLook at the order in the question.": lambda *a: (
                right(*a)[::-1]
            ),
        },
        "Take a module of two layers, and write for each reader which of x_0, x_1, x_2 it reads, "
        "and where its BNs stand.",
        _PAIR,
        draw=lambda r: (*r.choices(range(1, 600), k=3), r.randint(1, 20)),
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
_SINGLE = (3, ((5, 3),))
# Maps out, and whether the input is added.
_KINDS = ((_UNEVEN, 5, False), (_EVEN, 4, False), (_EVEN, 4, True), (_SINGLE, 6, False))
_FORWARD = (
    "Which maps does each layer read, and how many go into the aggregation? Print shapes in "
    "forward. If only a second pass fails, a list has outlived the first."
)


class _OneShot(NamedTuple):
    """A module of the reader's, and what it was built from."""

    module: nn.Module
    layers: list[ConvLayer]
    aggregate: ConvLayer
    enters: int
    out: int
    identity: bool

    @property
    def name(self) -> str:
        return type(self.module).__name__

    @property
    def what(self) -> str:
        return f"{self.name} of {len(self.layers)} layers with identity={self.identity}"

    def call(self, x: Tensor, what: str = "") -> Any:
        return call_answer(what or self.what, self.module, x, hint=_FORWARD)

    def right(self, x: Tensor) -> Tensor:
        out = _run_layer(self.aggregate, torch.cat(_chain(self.layers, x), dim=1))
        return out + x if self.identity else out


def _modules(answer: Any) -> Iterator[_OneShot]:
    """Build every kind; require that it holds the given layers and an aggregation."""
    for (enters, chain), out, identity in _KINDS:
        widths = [width for width, _ in chain]
        reads = [enters, *widths[:-1]]
        layers = _Layers(ConvLayer(m, *of) for m, of in zip(reads, chain, strict=True))
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
            f"{name}: self.layers does not hold the given layers, in their order.\nThey are to be "
            "used as they are: look for copies, new layers, or another order.",
        )
        aggregate = require_part(
            module, "aggregate", ConvLayer, "Look at the names in the question."
        )
        conv, even = aggregate.conv, [enters + len(widths) * widths[i] for i in (0, -1)]
        hints = {
            "The maps that enter the module are concatenated, too.": sum(widths),
            "The last layer's maps are concatenated, too.": sum(reads),
            "It reads *all* layers' maps, not only the last one's.": widths[-1],
            "The layers need not all make equally many maps: ask each of them.": even,
            "Each layer was asked for what it reads: ask for what it makes.": sum(reads) + enters,
        }
        hint = mistake_of(
            conv.in_channels, hints, "What is concatenated, and how many maps is that?"
        )
        require(
            conv.in_channels == enters + sum(widths),
            f"{name}: {enters} maps enter, and its layers make {widths}; self.aggregate reads "
            f"{conv.in_channels}.\n{hint}",
        )
        require(
            conv.out_channels == out,
            f"{name}: self.aggregate makes {conv.out_channels} maps where {out} were asked for."
            "\nLook at the argument out_channels.",
        )
        require(
            conv.kernel_size == (1, 1) and conv.stride == (1, 1),
            f"{name}: the kernel of self.aggregate is {conv.kernel_size}.\nThe aggregation mixes "
            "maps at each pixel by itself: look at kernel_size and stride.",
        )
        yield _OneShot(module, given, aggregate, enters, out, identity)


_Step = Callable[[ConvLayer, Tensor], Tensor]


def _run_conv(layer: ConvLayer, x: Tensor) -> Tensor:
    return mix_or_convolve_by_hand(layer.conv, x)


def _run_linear(layer: ConvLayer, x: Tensor) -> Tensor:
    return normalise_by_hand(layer.norm, _run_conv(layer, x))


def _run_layer(layer: ConvLayer, x: Tensor) -> Tensor:
    return _run_linear(layer, x).clamp(min=0)


def _chain(layers: Sequence[ConvLayer], x: Tensor, step: _Step = _run_layer) -> list[Tensor]:
    """Return x_0, x_1, …: what goes into the aggregation."""
    maps = [x]
    for layer in layers:
        maps.append(step(layer, maps[-1]))
    return maps


@as_check
def one_shot_parts(answer: Any) -> str:
    """The module holds the given layers, an aggregation of the right width, and no more."""
    for one in _modules(answer):
        parts = [*one.layers, one.aggregate]
        require(
            count_parameters(one.module) == sum(map(count_parameters, parts)),
            f"{one.name} has more parameters than its layers and its aggregation.\nLook for a part "
            "that forward does not use.",
        )
    return f"{one.name} holds the given layers and an aggregation of the right width"


@as_check
def one_shot_shape(answer: Any) -> str:
    """The module gives out_channels maps, for maps of any size, in the dtype of its input."""
    for one in _modules(answer):
        widths = [layer.conv.out_channels for layer in one.layers]
        for dtype in (torch.float64, torch.float32):
            one.module.to(dtype)
            y = one.call(random_maps(2, one.enters, 5, 7).to(dtype))
            mistakes = {
                "These are the concatenated maps: who mixes them?": one.enters + sum(widths),
                "These are the last layer's maps: who reads all?": widths[-1],
            }
            require_shape(
                y,
                (2, one.out, 5, 7),
                f"The output of {one.what}",
                {message: (2, maps, 5, 7) for message, maps in mistakes.items()},
            )
            require(
                y.dtype == dtype,
                f"{one.name} turns {dtype} into {y.dtype}.\nLook for a tensor that forward makes "
                "or casts itself instead of computing it from x.",
            )
    return f"{one.name} gives maps of the right number, size and dtype"


def _mistakes(one: _OneShot, x: Tensor) -> dict[str, Tensor]:
    """What a module gives that confuses something, by the message for it."""
    layers, aggregate = one.layers, one.aggregate
    maps = _chain(layers, x)
    mixed = mix_by_hand(aggregate.conv, torch.cat(maps, dim=1))
    normed = normalise_by_hand(aggregate.norm, mixed)
    active = normed.clamp(min=0)
    shortcut = x if one.identity else torch.zeros_like(normed)
    order = "Look at the order in which the maps are joined: x_0 first."
    whole = "Look at what you call: the whole layer?"

    def finish(*features: Tensor) -> Tensor:
        return _run_layer(aggregate, torch.cat(features, dim=1)) + shortcut

    mistakes = {
        f"the newest maps stand first.\n{order}": finish(*maps[::-1]),
        f"the input stands last.\n{order}": finish(*maps[1:], x),
        f"the layers' maps stand newest first.\n{order}": finish(*maps[:1], *maps[:0:-1]),
        "the aggregation has neither BN nor ReLU.\nLook at what you call.": mixed + shortcut,
        "the aggregation has no ReLU.\nLook at what you call.": normed + shortcut,
        "the aggregation has no BN.\nLook at what you call.": mixed.clamp(min=0) + shortcut,
        f"only the layers' convolutions run.\n{whole}": finish(*_chain(layers, x, _run_conv)),
        f"the layers have no ReLU.\n{whole}": finish(*_chain(layers, x, _run_linear)),
    }
    if one.identity:
        mistakes |= {
            "the input is not added.\nLook at the argument identity: does forward know it?": active,
            "the input is added before the last ReLU.\nThe module's input is added to the "
            "module's output: look at what comes last.": (normed + x).clamp(min=0),
            "the last layer's maps are added.\nLook at whether the name x still means the input "
            "when you add it.": active + maps[-1],
            "a ReLU follows the sum.\nLook at the last thing forward does.": (active + x).clamp(0),
            "the input is added twice.\nLook at where forward adds it.": active + 2 * x,
        }
    elif normed.shape == x.shape:
        mistakes |= {
            "the input is added to the output though identity is False.\nWho decides about it, "
            "the widths or the argument?": active + x
        }
    return mistakes


@as_check
def one_shot_values(answer: Any) -> str:
    """Chain, concatenation in order, aggregation, in training and in evaluation."""
    for one in _modules(answer):
        for training in (False, True):
            one.module.train(training)
            x = random_maps(3, one.enters, 4, 5)
            what = f"{one.what} in {'training' if training else 'evaluation'}"
            right, mistakes = one.right(x), _mistakes(one, x)
            require_values(
                one.call(x, what),
                right,
                what,
                mistakes,
                "the values are wrong.\nGo through forward: what does each layer read, what is "
                "joined and in which order, what comes last?",
            )
        require_everywhere(one.module, one.right, one.enters)
    return f"{one.name} aggregates once what its layers make, in the order x_0, x_1, …"


@as_check
def one_shot_gradient(answer: Any) -> str:
    """Gradients reach the input and every layer."""
    for one in _modules(answer):
        require_gradients(one.module, random_maps(2, one.enters, 4, 3), one.right, one.name)
    return f"Gradients flow back through {one.name} to its input and to every layer"


@as_check
def one_shot_side_effects(answer: Any) -> str:
    """A pass leaves the input and the module as they were, and runs every part once."""
    for one in _modules(answer):
        x = random_maps(2, one.enters, 4, 4)
        with torch.no_grad():
            one.call(x)
        parts = [*one.layers, one.aggregate]
        updates = [int(part.norm.num_batches_tracked or 0) for part in parts]
        require(
            set(updates) == {1},
            f"{one.what}: in one pass its layers and its aggregation run {updates} times.\nLook at "
            "how often forward calls each.",
        )
        one.module.eval()
        with torch.no_grad():
            first, second = one.call(x), one.call(x)
        require_same_again(first, second, one.name)
    return f"{one.name} leaves its input alone, and remembers nothing from pass to pass"


# --- Question 4: folding -------------------------------------------------------------------------


def _trained(
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
        norm.weight[0] *= -1
        if quiet:
            norm.running_var[:2] = torch.tensor([0.0, 1e-6])
    return conv.double().eval(), norm.double().eval()


def _pairs() -> list[tuple[str, nn.Conv2d, nn.BatchNorm2d]]:
    wide = partial(nn.Conv2d, 5, 5, 3, padding=1)
    plain = wide(bias=False)
    special = nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2)
    return [
        ("a 3×3 convolution", *_trained(plain)),
        ("a 1×1 convolution", *_trained(nn.Conv2d(3, 7, 1, bias=False))),
        ("a BN with quiet maps", *_trained(wide(bias=False), quiet=True)),
        ("a BN with an ε of its own", *_trained(nn.Conv2d(5, 5, 1, bias=False), eps=0.1)),
        ("a convolution with a bias", *_trained(wide())),
        ("a strided convolution with groups and a bias", *_trained(special)),
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
    """Return whether tensors agree to 1e-10: a fold is exact but for rounding."""
    return allclose(actual, expected, rtol=1e-10, atol=1e-10)


def _require_same(
    given: Sequence[nn.Module], states: Sequence[dict[str, Tensor]], what: str, hint: str
) -> None:
    for module, old in zip(given, states, strict=True):
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
        states = [{key: v.clone() for key, v in m.state_dict().items()} for m in given]
        given[1].train()
        what = f"{name} for {case}"
        folded = _fold(name, answer, case, *given)  # type: ignore[arg-type]
        _require_same(
            given,
            states,
            what,
            "Training may go on with it: what must be copied before it is changed? Look for "
            "methods that end in an underscore, too.",
        )
        with torch.no_grad():
            for parameter in folded.parameters():
                parameter.zero_()
        _require_same(
            given,
            states,
            f"{what}: whoever changes the new convolution",
            "They share memory: look for what was taken over without a copy.",
        )
    return f"{name} leaves the modules that it was given alone"


def _convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Run a convolution with other weights, and not a forward that came with a module."""
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups).detach()


def _fold_mistakes(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> dict[str, list[Tensor]]:
    """What a wrong fold gives, by the message for it."""
    mean, variance, gamma, beta = norm.running_mean, norm.running_var, norm.weight, norm.bias
    assert mean is not None and variance is not None
    old = torch.zeros_like(mean) if conv.bias is None else conv.bias
    root = torch.sqrt(variance + norm.eps)
    formula = "Write BN's formula out in full and compare, symbol by symbol."
    unscaled = "It is there before BN: what does BN do with it?"

    std, only = variance.sqrt(), "the scale is only nearly right"
    scales = {
        "": gamma / root,
        f"{only}: ε is there, but not where BN has it.\n{formula}": gamma / (std + norm.eps),
        f"{only}, as if there were no ε.\n{formula}": gamma / std,
        "ε is always 10⁻⁵.\nA BN has its own: look for its name among BN's attributes.": gamma
        / torch.sqrt(variance + 1e-5),
        f"the maps are divided by their variance.\nThen they do not vary by 1. {formula}": gamma
        / (variance + norm.eps),
        f"the maps are multiplied where they should be divided.\n{formula}": gamma * root,
        "BN's γ is not used.\nWhat does BN do after it has normalised?": 1 / root,
        "the weights are not scaled.\nWhat does BN do with every map?": torch.ones_like(root),
    }
    mistakes: dict[str, list[Tensor]] = {}
    # Every mistake in the scale may come alone or together with one in the bias.
    for message, scale in scales.items():
        weight = conv.weight * scale[:, None, None, None]
        biases = {
            "": [(old - mean) * scale + beta, (old - mean) * gamma / root + beta],
            f"the convolution's own bias is not scaled.\n{unscaled}": [beta - mean * scale + old],
            f"the convolution's own bias is lost.\n{unscaled}": [beta - mean * scale],
            f"the running mean is not subtracted.\n{formula}": [beta + old * scale],
            f"the running mean is not scaled.\n{formula}": [beta + old - mean],
            f"the running mean is added.\n{formula}": [beta + (old + mean) * scale],
            "BN's β is not used.\nWhat does BN add at the end?": [(old - mean) * scale],
        }
        for also, variants in biases.items():
            wrong = [_convolve(conv, x, weight, bias) for bias in variants]
            mistakes.setdefault(message or also, []).extend(wrong)
    if conv.in_channels == conv.out_channels and conv.groups == 1:
        scale = gamma / root
        turned = _convolve(conv, x, conv.weight * scale[:, None, None], (old - mean) * scale + beta)
        message = "the maps that enter are scaled.\nBN scales what leaves: which axis is that?"
        mistakes[message] = [turned]
    return {message: wrong for message, wrong in mistakes.items() if message}


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
        what = f"{name} for {case}"
        require_none(result, right, mistakes, what, _close)
        nearly = allclose(result, right, rtol=1e-3, atol=1e-3)
        raise AssertionError(
            f"{what}: this is {'nearly, but not exactly' if nearly else 'not'} what "
            "convolution and BN give.\nTake a convolution whose weights are zero: only the bias is "
            "left then. Is it right?"
        )
    _fold(name, answer, "a convolution in float32", conv.float(), norm.float())
    return f"{name} gives one convolution in place of two modules, exactly"
