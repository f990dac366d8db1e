"""Checks of the exercises of chapter 6."""

import math
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.bottleneck import mix_by_hand
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
    same_number,
    same_values,
)
from densenet_from_scratch.course.checks.layers import normalise_by_hand, require_gradients
from densenet_from_scratch.dense import BottleneckLayer, DenseBlock
from densenet_from_scratch.measure import count_parameters
from densenet_from_scratch.transition import Transition

_MAPS, _THETA, _KEPT = 7, 0.5, 3


def pool_by_hand(x: Tensor) -> Tensor:
    """2×2 average pooling as the mean of four shifted pictures; what fills no square is dropped."""
    height, width = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
    corners = [x[:, :, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
    return torch.stack(corners).mean(dim=0)


def transition_by_hand(norm: nn.BatchNorm2d, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """BN, ReLU, 1×1 convolution, average pooling."""
    return pool_by_hand(mix_by_hand(conv, normalise_by_hand(norm, x).clamp(min=0)))


def _parts(module: nn.Module) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    name = type(module).__name__
    norm, conv = getattr(module, "norm", None), getattr(module, "conv", None)
    for part, value, kind in (("norm", norm, nn.BatchNorm2d), ("conv", conv, nn.Conv2d)):
        require(
            type(value) is kind,
            f"{name} has no {kind.__name__} called self.{part}.\nLook at the names in the "
            "question: the checks and later code read them.",
        )
    assert isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d)
    return norm, conv


@as_check
def transition_parts(answer: Any) -> str:
    """The transition has a normalisation of m maps and a 1×1 convolution to ⌊θm⌋."""
    module = build_answer(answer, _MAPS, _THETA)
    name, (norm, conv) = type(module).__name__, _parts(module)
    require(
        norm.num_features == _MAPS,
        f"{name}({_MAPS}, {_THETA}): self.norm is made for {norm.num_features} maps.\nIt comes "
        "first: how many maps does it see?",
    )
    hints = {
        _MAPS: "No map is left out: where does compression come in?",
        _KEPT + 1: "⌊ ⌋ rounds *down*.",
    }
    require(
        (conv.in_channels, conv.out_channels) == (_MAPS, _KEPT),
        f"{name}({_MAPS}, {_THETA}): self.conv goes from {conv.in_channels} to "
        f"{conv.out_channels} maps.\n"
        + hints.get(conv.out_channels, "Look at what it reads and what it makes."),
    )
    require(
        conv.kernel_size == (1, 1),
        f"{name}: the kernel of self.conv is {conv.kernel_size}.\nA transition mixes maps; it does "
        "not look at neighbours.",
    )
    require(
        conv.stride == (1, 1) and conv.padding in ((0, 0), "same", "valid"),
        f"{name}: self.conv changes the height and width of the maps.\nThat is the pooling's task: "
        "look at stride and padding.",
    )
    require(
        conv.bias is None and conv.groups == 1 and norm.affine and norm.track_running_stats,
        f"{name}: self.norm or self.conv has unusual settings.\nThe convolution has no bias; leave "
        "the arguments that the question does not name at their defaults.",
    )
    require(
        same_number(getattr(module, "out_channels", None), _KEPT),
        f"{name}({_MAPS}, {_THETA}): self.out_channels is not the number of maps that leave.\nThe "
        "next block asks it for its own width: an integer.",
    )
    require(
        count_parameters(module) == 2 * _MAPS + _MAPS * _KEPT,
        f"{name} has {count_parameters(module)} parameters, more than its two parts need.\nLook "
        "for a part that forward does not use; pooling has none.",
    )
    return f"{name} has the right parts, and no parameter more"


@as_check
def transition_shape(answer: Any) -> str:
    """The transition leaves ⌊θm⌋ maps of half the height and width, rounded down."""
    module = build_answer(answer, _MAPS, _THETA)
    name = type(module).__name__
    for height, width in ((4, 6), (5, 7)):
        x = random_maps(2, _MAPS, height, width)
        before = x.clone()
        what = f"{name}({_MAPS}, {_THETA}) for maps of {height}×{width}"
        y = call_answer(what, module, x)
        require_shape(
            y,
            (2, _KEPT, height // 2, width // 2),
            what,
            {
                (2, _KEPT, height, width): "The maps are fewer, but not smaller: what halves them?",
                (2, _MAPS, height // 2, width // 2): "The maps are smaller, but not fewer.",
                (2, _KEPT, -(-height // 2), -(-width // 2)): "What does not fill a square of 2×2 "
                "pixels is dropped: look at how the pooling treats the border.",
                (
                    2,
                    _KEPT,
                    1,
                    1,
                ): "One pixel is left of each map. That is the head's global pooling.",
                (
                    2,
                    _KEPT,
                    height - 1,
                    width - 1,
                ): "The pooling moves by one pixel at a time.\nLook at its stride.",
            },
        )
        require(
            same_values(x, before),
            f"{name} changes the tensor that it was given.\nLook for inplace=True and methods that "
            "end in an underscore.",
        )
    return f"{name} leaves fewer and smaller maps"


@as_check
def transition_values(answer: Any) -> str:
    """The transition is BN-ReLU-conv1×1 and 2×2 average pooling, in training and evaluation."""
    module = build_answer(answer, _MAPS, _THETA)
    name, (norm, conv) = type(module).__name__, _parts(module)
    for training in (True, False):
        module.train(training)
        x = random_maps(3, _MAPS, 5, 6)
        normed, what = normalise_by_hand(norm, x), "training" if training else "evaluation"
        mixed = mix_by_hand(conv, normed.clamp(min=0))
        height, width = 4, 6
        corners = [mixed[:, :, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]
        early = "\nPooling may trade places with the 1×1 convolution, and with what else?"
        mistakes = [
            (
                torch.stack(corners).amax(dim=0),
                "the largest of four pixels is taken.\nThe transition takes their mean: look at "
                "the kind of pooling.",
            ),
            (
                corners[0],
                "one pixel of four is kept and the others are thrown away.\nThe transition "
                "averages: look at what halves the maps.",
            ),
            (
                pool_by_hand(mix_by_hand(conv, normed)),
                "there is no ReLU.\nLook at what the convolution reads.",
            ),
            (
                pool_by_hand(mix_by_hand(conv, x.clamp(min=0))),
                "the batch normalisation is not used.\nLook at what the ReLU reads.",
            ),
            (
                pool_by_hand(mix_by_hand(conv, normalise_by_hand(norm, x.clamp(min=0)))),
                "ReLU comes before the batch normalisation.\nCompare the order in forward with the "
                "name BN-ReLU-conv.",
            ),
            (
                pool_by_hand(mix_by_hand(conv, normed)).clamp(min=0),
                "ReLU comes last.\nCompare the order in forward with the name BN-ReLU-conv.",
            ),
            (
                pool_by_hand(mix_by_hand(conv, normed).clamp(min=0)),
                "ReLU comes after the convolution.\nCompare the order in forward with the name "
                "BN-ReLU-conv.",
            ),
            (
                pool_by_hand(mixed).clamp(min=0),
                "there is a second ReLU behind the convolution.\nCompare forward with the name "
                "BN-ReLU-conv.",
            ),
            (
                mix_by_hand(conv, pool_by_hand(normed).clamp(min=0)),
                f"the pooling comes before the ReLU.{early}",
            ),
            (
                mix_by_hand(conv, normalise_by_hand(norm, pool_by_hand(x)).clamp(min=0)),
                f"the pooling comes first of all.{early}",
            ),
            (
                4 * pool_by_hand(mixed),
                "four pixels are added up, not averaged.\nLook at the kind of pooling.",
            ),
        ]
        require_values(
            call_answer(name, module, x),
            pool_by_hand(mixed),
            f"{name} in {what} mode",
            mistakes,
            "the values are wrong.\nGo through its four steps in order, and compare with forward.",
        )
    return f"{name} is BN-ReLU-conv1×1 and average pooling"


@as_check
def transition_gradient(answer: Any) -> str:
    """Gradients flow through the transition."""
    module = build_answer(answer, _MAPS, _THETA)
    norm, conv = _parts(module)
    x, name = random_maps(2, _MAPS, 4, 4), type(module).__name__
    require_gradients(module, x, lambda x: transition_by_hand(norm, conv, x), name)
    return f"Gradients flow back through {name} to its input and to every parameter"


def _widths(
    blocks: Sequence[int], k0: int, k: int, theta: float, last: bool = False, up: bool = False
) -> list[tuple[int, int]]:
    """Maps that enter and leave each block; ``last`` puts a transition behind the last one too."""
    pairs, maps = [], k0
    for layers in blocks:
        leave = maps + k * layers
        shrunk = math.ceil(leave * theta) if up else math.floor(leave * theta)
        pairs.append((maps, shrunk if last else leave))
        maps = shrunk
    return pairs


@as_check
def block_widths(answer: Any) -> str:
    """Every block adds kL maps; every transition between two blocks keeps ⌊θm⌋."""
    right = _widths
    name = require_results(
        answer,
        right,
        [
            ([6, 12, 24, 16], 64, 32, 0.5),
            ([16, 16, 16], 24, 12, 1.0),
            ([2, 3, 2], 5, 3, 0.5),
            ([3, 1], 10, 4, 0.25),
            ([4], 8, 2, 0.5),
        ],
        [
            (
                lambda b, k0, k, t: right(b, k0, k, 1.0),
                "no map is left out between two blocks.\nWhere does compression come in?",
            ),
            (
                lambda b, k0, k, t: right(b, k0, k, t, last=True),
                "the transition is counted as part of the block before it, also behind the last "
                "one.\nThe question asks for what leaves the *block*.",
            ),
            (
                lambda b, k0, k, t: right(b, k0, k, t, up=True),
                "half a map is rounded up.\nLook at what ⌊ ⌋ means.",
            ),
            (
                lambda b, k0, k, t: [
                    (k0, k0 + k * n) if i == 0 else (int(t * k0), int(t * k0) + k * n)
                    for i, n in enumerate(b)
                ],
                "every block starts again from the k_0 maps of the stem.\nWhat enters a block is "
                "what is left of the block before.",
            ),
            (
                lambda b, k0, k, t: [(e, e + k) for e, _ in right([1] * len(b), k0, k, t)],
                "each block is counted as one layer.\nHow many maps does a block of n layers add?",
            ),
            (
                lambda b, k0, k, t: right(b, int(t * k0), k, t),
                "the maps are compressed before the first block, too.\nTransitions stand *between* "
                "blocks.",
            ),
        ],
        "a list with a pair of integers for each block",
        "Draw the network as a chain of blocks and transitions, and write the number of maps on "
        "every arrow.",
    )
    return f"{name} keeps the books of a whole network"


def _macs(m: int, theta: float, height: int, width: int, pool_first: bool) -> int:
    if pool_first:
        height, width = height // 2, width // 2
    return m * math.floor(theta * m) * height * width


@as_check
def transition_macs(answer: Any) -> str:
    """A convolution's multiply-accumulates are its weights times the pixels where it works."""
    right = _macs
    name = require_numbers(
        answer,
        right,
        [
            (216, 0.5, 32, 32, False),
            (216, 0.5, 32, 32, True),
            (25, 0.5, 5, 7, False),
            (25, 0.5, 5, 7, True),
            (10, 1.0, 4, 6, True),
        ],
        [
            (
                lambda m, t, h, w, first: right(m, t, h, w, True),
                "the convolution always works on the small maps.\nLook at which comes first when "
                "pool_first is False.",
            ),
            (
                lambda m, t, h, w, first: right(m, t, h, w, False),
                "the order makes no difference.\nOn how many pixels does the convolution work if "
                "the pooling comes first?",
            ),
            (
                lambda m, t, h, w, first: right(m, t, h, w, not first),
                "the two orders have changed places.\nLook at what pool_first says.",
            ),
            (
                lambda m, t, h, w, first: m * m * (h // 2 * (w // 2) if first else h * w),
                "the convolution makes as many maps as it reads.\nWhere does compression come in?",
            ),
            (
                lambda m, t, h, w, first: right(m, t, h, w, False) // (4 if first else 1),
                "a quarter of the work is counted where pooling comes first.\nThat is right for "
                "even sizes: what happens to an odd row?",
            ),
            (
                lambda m, t, h, w, first: right(m, t, h, w, first) * 9,
                "the kernel is counted as 3×3.\nLook at the transition's convolution.",
            ),
            (
                lambda m, t, h, w, first: right(m, t, h, w, False) // (2 if first else 1),
                "half of the work is counted where pooling comes first.\nHow many pixels has a map "
                "of half the height *and* half the width?",
            ),
        ],
        "Count the weights of the 1×1 convolution, then the pixels at which it uses them.",
    )
    return f"{name} counts the work of a transition in either order"


@as_check
def pooled_kernel(answer: Any) -> str:
    """One 2×2 convolution with stride 2 does what mixing and averaging do in turn."""
    name = require_own(answer, FunctionType)
    weight = random_maps(3, 5, 1, 1)
    before = weight.clone()
    what = f"{name}(weight)"
    kernel = call_answer(
        what, answer, weight, hint="weight has shape (maps made, maps read, 1, 1)."
    )
    require_shape(
        kernel,
        (3, 5, 2, 2),
        what,
        {
            (3, 5, 1, 1): "This kernel sees one pixel, but the mean of four needs four.",
            (5, 3, 2, 2): "Maps read and maps made have changed places.",
            (3, 5): "This is a matrix; a kernel has a height and a width too.",
            (3, 5, 4, 4): "The kernel covers more than the square of 2×2 pixels.",
        },
    )
    require(
        same_values(weight, before),
        f"{name} changes the weight that it was given.\nLook for /= and methods that end in an "
        "underscore.",
    )
    spread = weight.expand(3, 5, 2, 2)
    corner = torch.zeros_like(spread)
    corner[:, :, 0, 0] = weight[:, :, 0, 0]
    require_values(
        kernel,
        spread / 4,
        what,
        [
            (
                spread.clone(),
                "every pixel counts in full, so the four are added up.\nWhat makes a mean of a "
                "sum?",
            ),
            (
                spread / 2,
                "every pixel counts for a half.\nHow many pixels has the square?",
            ),
            (
                corner,
                "only one of the four pixels is looked at.\nThat is a 1×1 convolution with stride "
                "2: what do the other three count?",
            ),
        ],
        "the values are wrong.\nWrite the mean of four mixed pixels as one sum over maps and "
        "pixels: what stands before each number that is read?",
    )
    return f"{name} mixes and averages in one step"


_BODY = ([2, 1, 2], 8, 4, 0.25)  # layers of the blocks, maps that enter, growth rate, compression


def _body(answer: Any, theta: float) -> tuple[nn.Module, list[Any], list[Any]]:
    """Build the answer in evaluation mode; return it, its blocks and its transitions."""
    config, k0, k, _ = _BODY
    allowed = (DenseBlock, BottleneckLayer, Transition)
    body = build_answer(answer, config, k0, k, theta, may_use=allowed, random=False).eval()
    name = type(body).__name__
    lists: list[list[Any]] = []
    for part, kind, number in (("blocks", DenseBlock, 3), ("transitions", Transition, 2)):
        members = getattr(body, part, None)
        require(
            isinstance(members, nn.ModuleList) and all(type(member) is kind for member in members),
            f"{name} has no ModuleList of {kind.__name__}s called self.{part}.\nMend only what is "
            "broken.",
        )
        assert isinstance(members, nn.ModuleList)
        require(
            len(members) == number,
            f"{name} with {len(config)} blocks: self.{part} has {len(members)} members.\nA "
            "transition stands *between* two blocks.",
        )
        lists.append(list(members))
    return body, lists[0], lists[1]


@as_check
def body_compression(answer: Any) -> str:
    """The setting θ reaches every transition, and the next block is made for what it leaves."""
    config, k0, k, _ = _BODY
    for theta in (0.75, 1.0):
        body, blocks, transitions = _body(answer, theta)
        name = type(body).__name__
        pairs = _widths(config, k0, k, theta)
        read = [transition.conv.in_channels for transition in transitions]
        found = [transition.conv.out_channels for transition in transitions]
        hints = {
            tuple(maps // 2 for maps in read): "That is θ = 0.5, whatever the caller asks for: "
            "which argument of the transition is not given?",
            tuple(read): "Every map is passed on, whatever θ is: does it reach the transition?",
            tuple(int(maps * theta**2) for maps in read): "θ is applied twice: once is enough.",
        }
        require(
            found == [int(maps * theta) for maps in read],
            f"{name} with θ = {theta}: its transitions read {read} maps and leave {found}.\n"
            + hints.get(tuple(found), "Look at what each transition is made with."),
        )
        widths = [block.layers[0].norm1.num_features for block in blocks]
        require(
            widths == [enter for enter, _ in pairs],
            f"{name} with θ = {theta}: its blocks are made for {widths} maps.\nLook at where "
            "`channels` is updated.",
        )
        require(
            same_number(getattr(body, "out_channels", None), pairs[-1][1]),
            f"{name}: self.out_channels is not the number of maps that leave the last block.\nMend "
            "only what is broken.",
        )
    return f"{name} compresses as it is told"


@as_check
def body_values(answer: Any) -> str:
    """Blocks and transitions alternate, and the last block's maps leave."""
    body, blocks, transitions = _body(answer, _BODY[3])
    name = type(body).__name__
    x = random_maps(2, _BODY[1], 8, 8)
    y = x
    for block, transition in zip(blocks, transitions, strict=False):
        y = transition_by_hand(transition.norm, transition.conv, block(y))
    require_values(
        call_answer(name, body, x, hint="Look at where `channels` is updated."),
        blocks[-1](y),
        name,
        [
            (
                y,
                "the last block does not run.\nzip stops with the shorter list: what is left over?",
            ),
        ],
        "the values are wrong.\nLook at the order in forward: block, transition, block, "
        "transition, block.",
    )
    return f"{name} runs blocks and transitions in turn"
