"""Checks of the exercises of chapter 6."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.course.checks.battery import (
    require_everywhere,
    require_for_all,
    require_gradients,
)
from densenet_from_scratch.course.checks.by_hand import (
    mix_by_hand,
    normalise_by_hand,
    pool_by_hand,
    squares_by_hand,
    transition_by_hand,
)
from densenet_from_scratch.course.checks.compare import same_number
from densenet_from_scratch.course.checks.core import (
    as_check,
    build_answer,
    call_answer,
    mistake_of,
    random_maps,
    require,
    require_defaults,
    require_numbers,
    require_own,
    require_part,
    require_parts,
    require_shape,
    require_values,
)
from densenet_from_scratch.dense import BottleneckLayer, DenseBlock
from densenet_from_scratch.measure import count_parameters
from densenet_from_scratch.transition import Transition

_MAPS, _THETA, _LEFT = 7, 0.5, 3


def _parts(module: nn.Module) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    return require_part(module, "norm", nn.BatchNorm2d), require_part(module, "conv", nn.Conv2d)


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
    makes = {
        "No map is left out: where does compression come in?": _MAPS,
        "⌊ ⌋ rounds *down*.": _LEFT + 1,
    }
    hint = mistake_of(conv.out_channels, makes, "Look at what it reads and what it makes.")
    require(
        (conv.in_channels, conv.out_channels) == (_MAPS, _LEFT),
        f"{name}({_MAPS}, {_THETA}): self.conv goes from {conv.in_channels} to "
        f"{conv.out_channels} maps.\n{hint}",
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
    require(conv.bias is None, f"{name}: self.conv has a bias.\nThe question asks for none.")
    for part in ("norm", "conv"):
        require_defaults(module, part)
    require(
        same_number(getattr(module, "out_channels", None), _LEFT),
        f"{name}({_MAPS}, {_THETA}): self.out_channels is not the number of maps that leave.\nThe "
        "next block asks it for its own width: an integer.",
    )
    require(
        count_parameters(module) == 2 * _MAPS + _MAPS * _LEFT,
        f"{name} has {count_parameters(module)} parameters, more than its two parts need.\nLook "
        "for a part that forward does not use; pooling has none.",
    )
    for maps, theta in ((10, 0.75), (100, 0.375), (9, 1.0), (1, 1.0)):
        made = _parts(build_answer(answer, maps, theta))[1].out_channels
        require(
            made == math.floor(maps * theta),
            f"{name}({maps}, {theta}): self.conv makes {made} maps.\nHow many are ⌊θm⌋ here?",
        )
    return f"{name} has the right parts, and no parameter more"


@as_check
def transition_shape(answer: Any) -> str:
    """The transition leaves ⌊θm⌋ maps of half the height and width, rounded down."""
    module = build_answer(answer, _MAPS, _THETA)
    name = type(module).__name__
    for h, w in ((4, 6), (5, 7)):
        x = random_maps(2, _MAPS, h, w)
        what = f"{name}({_MAPS}, {_THETA}) for maps of {h}×{w}"
        require_shape(
            call_answer(what, module, x),
            (2, _LEFT, h // 2, w // 2),
            what,
            {
                "The maps are fewer, but not smaller: what halves them?": (2, _LEFT, h, w),
                "The maps are smaller, but not fewer.": (2, _MAPS, h // 2, w // 2),
                "What does not fill a square of 2×2 pixels is dropped: look at how the pooling "
                "treats the border.": (2, _LEFT, -(-h // 2), -(-w // 2)),
                "One pixel is left of each map. That is the head's global pooling.": (
                    2,
                    _LEFT,
                    1,
                    1,
                ),
                "The pooling moves by one pixel at a time.\nLook at its stride.": (
                    2,
                    _LEFT,
                    h - 1,
                    w - 1,
                ),
            },
        )
    return f"{name} leaves fewer and smaller maps"


@as_check
def transition_values(answer: Any) -> str:
    """The transition is BN-ReLU-conv1×1 and 2×2 average pooling, in training and evaluation."""
    module = build_answer(answer, _MAPS, _THETA)
    name, (norm, conv) = type(module).__name__, _parts(module)
    bn, mix, pool = partial(normalise_by_hand, norm), partial(mix_by_hand, conv), pool_by_hand
    for training in (True, False):
        module.train(training)
        x = random_maps(3, _MAPS, 5, 6)
        normed, early = (
            bn(x),
            "Pooling may trade places with the 1×1 convolution, and with what else?",
        )
        mixed = mix(normed.clamp(min=0))
        mistakes = {
            "the largest of four pixels is taken.\nThe transition takes their mean: look at the "
            "kind of pooling.": squares_by_hand(mixed).amax(dim=0),
            "one pixel of four is kept and the others are thrown away.\nThe transition averages: "
            "look at what halves the maps.": squares_by_hand(mixed)[0],
            "there is no ReLU.\nLook at what the convolution reads.": pool(mix(normed)),
            "the batch normalisation is not used.\nLook at what the ReLU reads.": pool(
                mix(x.clamp(min=0))
            ),
            "ReLU comes before the batch normalisation.\nCompare the order in forward with the "
            "name BN-ReLU-conv.": pool(mix(bn(x.clamp(min=0)))),
            "ReLU comes last.\nCompare the order in forward with the name BN-ReLU-conv.": pool(
                mix(normed)
            ).clamp(min=0),
            "ReLU comes after the convolution.\nCompare the order in forward with the name "
            "BN-ReLU-conv.": pool(mix(normed).clamp(min=0)),
            "there is a second ReLU behind the convolution.\nCompare forward with the name "
            "BN-ReLU-conv.": pool(mixed).clamp(min=0),
            f"the pooling comes before the ReLU.\n{early}": mix(pool(normed).clamp(min=0)),
            f"the pooling comes first of all.\n{early}": mix(bn(pool(x)).clamp(min=0)),
            "four pixels are added up, not averaged.\nLook at the kind of pooling.": 4
            * pool(mixed),
        }
        require_values(
            call_answer(name, module, x),
            pool(mixed),
            f"{name} in {'training' if training else 'evaluation'} mode",
            mistakes,
            "the values are wrong.\nGo through its four steps in order, and compare with forward.",
        )
    require_everywhere(module, lambda x: transition_by_hand(norm, conv, x), _MAPS)
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


THETAS = (0.25, 0.375, 0.5, 0.75, 1.0)  # exact as floats, so that ⌊θm⌋ is no matter of rounding


def draw_blocks(chance: Random) -> list[int]:
    """Layers of one to five blocks, at random."""
    return chance.choices(range(1, 30), k=chance.randint(1, 5))


def _draw_transition(chance: Random) -> tuple[int, float, int, int, bool]:
    height, width = chance.choices(range(2, 200), k=2)
    return chance.randint(1, 600), chance.choice(THETAS), height, width, chance.random() < 0.5


@as_check
def block_widths(answer: Any) -> str:
    """Every block adds kL maps; every transition between two blocks keeps ⌊θm⌋."""
    right: Callable[..., Any] = _widths
    name = require_numbers(
        answer,
        right,
        [
            *(([6, 12, 24, 16], 64, 32, 0.5), ([16, 16, 16], 24, 12, 1.0), ([2, 3, 2], 5, 3, 0.5)),
            *(([3, 1], 10, 4, 0.25), ([4], 8, 2, 0.5)),
        ],
        {
            "no map is left out between two blocks.\nWhere "
            "does compression come in?": lambda b, k0, k, t: right(b, k0, k, 1.0),
            "the transition is counted as part of the block before it, also behind the last one.\n"
            "The question asks for what leaves the *block*.": lambda *a: right(*a, True),
            "half a map is rounded up.\nLook at what ⌊ ⌋ means.": lambda *a: right(*a, False, True),
            "every block starts again from the k_0 maps of the stem.\nWhat enters a block is what "
            "is left of the block before.": lambda b, k0, k, t: [
                (e, e + k * n) for e, n in zip([k0] + [int(t * k0)] * len(b), b, strict=False)
            ],
            "each block is counted as one layer.\nHow many maps does a block of n layers "
            "add?": lambda b, k0, k, t: [(e, e + k) for e, _ in right([1] * len(b), k0, k, t)],
            "the maps are compressed before the first block, too.\nTransitions stand *between* "
            "blocks.": lambda b, k0, k, t: right(b, int(t * k0), k, t),
        },
        "Draw the network as a chain of blocks and transitions, and write the number of maps on "
        "every arrow.",
        "a list with a pair of integers for each block",
        draw=lambda r: (draw_blocks(r), r.randint(1, 99), r.randint(1, 48), r.choice(THETAS)),
    )
    return f"{name} keeps the books of a whole network"


def _macs(m: int, theta: float, height: int, width: int, pool_first: bool) -> int:
    if pool_first:
        height, width = height // 2, width // 2
    return m * math.floor(theta * m) * height * width


@as_check
def transition_macs(answer: Any) -> str:
    """A convolution's multiply-accumulates are its weights times the pixels where it works."""
    right: Callable[..., Any] = _macs
    name = require_numbers(
        answer,
        right,
        [
            *((216, 0.5, 32, 32, False), (216, 0.5, 32, 32, True), (25, 0.5, 5, 7, False)),
            *((25, 0.5, 5, 7, True), (10, 1.0, 4, 6, True)),
        ],
        {
            "the convolution always works on the small maps.\nLook at which comes first when "
            "pool_first is False.": lambda *a: right(*a[:4], True),
            "the order makes no difference.\nOn how many pixels does the convolution work if the "
            "pooling comes first?": lambda *a: right(*a[:4], False),
            "the two orders have changed places.\nLook at what pool_first says.": lambda *a: right(
                *a[:4], not a[4]
            ),
            "the convolution makes as many maps as it reads.\nWhere does "
            "compression come in?": lambda m, t, *a: right(m, 1.0, *a),
            "a quarter of the work is counted where pooling comes first.\nThat is right for even "
            "sizes: what happens to an "
            "odd row?": lambda *a: right(*a[:4], False) // (4 if a[4] else 1),
            "the kernel is counted as 3×3.\nLook at the transition's convolution.": lambda *a: (
                right(*a) * 9
            ),
            "half of the work is counted where pooling comes first.\nHow many pixels has a map of "
            "half the height *and* half the "
            "width?": lambda *a: right(*a[:4], False) // (2 if a[4] else 1),
        },
        "Count the weights of the 1×1 convolution, then the pixels at which it uses them.",
        draw=_draw_transition,
    )
    return f"{name} counts the work of a transition in either order"


@as_check
def pooled_kernel(answer: Any) -> str:
    """One 2×2 convolution with stride 2 does what mixing and averaging do in turn."""
    name = require_own(answer, FunctionType)
    weight, what = random_maps(3, 5, 1, 1), f"{name}(weight)"
    hint = "weight has shape (maps made, maps read, 1, 1)."
    kernel = call_answer(what, answer, weight, hint=hint)
    require_shape(
        kernel,
        (3, 5, 2, 2),
        what,
        {
            "This kernel sees one pixel, but the mean of four needs four.": (3, 5, 1, 1),
            "Maps read and maps made have changed places.": (5, 3, 2, 2),
            "This is a matrix; a kernel has a height and a width too.": (3, 5),
            "The kernel covers more than the square of 2×2 pixels.": (3, 5, 4, 4),
        },
    )
    spread = weight.expand(3, 5, 2, 2)
    require_values(
        kernel,
        spread / 4,
        what,
        {
            "every pixel counts in full, so the four are added up.\n"
            "What makes a mean of a sum?": spread,
            "every pixel counts for a half.\nHow many pixels has the square?": spread / 2,
            "only one of the four pixels is looked at.\nThat is a 1×1 convolution with stride 2: "
            "what do the other three count?": F.pad(weight, (0, 1, 0, 1)),
        },
        "the values are wrong.\nWrite the mean of four mixed pixels as one sum over maps and "
        "pixels: what stands before each number that is read?",
    )
    cases = [(random_maps(1, 1, 1, 1),), (random_maps(6, 2, 1, 1),)]
    require_for_all(answer, lambda weight: weight.tile(2, 2) / 4, cases, False)
    return f"{name} mixes and averages in one step"


_BODY = ([2, 1, 3], 8, 4, 0.25)  # layers of the blocks, maps that enter, growth rate, compression


def _body(
    answer: Any, config: list[int], k0: int, k: int, theta: float
) -> tuple[nn.Module, list[Any], list[Any]]:
    """Build the answer in evaluation mode; return it, its blocks and its transitions."""
    allowed = (DenseBlock, BottleneckLayer, Transition)
    body = build_answer(answer, config, k0, k, theta, may_use=allowed, random=False).eval()
    name = type(body).__name__
    for part, kind, number in (
        ("blocks", DenseBlock, len(config)),
        ("transitions", Transition, len(config) - 1),
    ):
        members = require_parts(body, part, kind, "Mend only what is broken.")
        require(
            len(members) == number,
            f"{name} with {len(config)} blocks: self.{part} has {len(members)} members.\nA "
            "transition stands *between* two blocks.",
        )
    blocks: Any = body.blocks
    transitions: Any = body.transitions
    return body, list(blocks), list(transitions)


@as_check
def body_compression(answer: Any) -> str:
    """The setting θ reaches every transition, and the next block is made for what it leaves."""
    for config, k0, k, theta in (
        *((*_BODY[:3], theta) for theta in (0.75, 1.0)),
        *(([2], 1, 1, 0.5), ([1, 2], 3, 5, 0.75)),
    ):
        body, blocks, transitions = _body(answer, config, k0, k, theta)
        name = type(body).__name__
        pairs = _widths(config, k0, k, theta)
        read = [transition.conv.in_channels for transition in transitions]
        leave = [transition.conv.out_channels for transition in transitions]
        mistakes = {
            "That is θ = 0.5, whatever the caller asks for: which argument of the transition is "
            "not given?": tuple(maps // 2 for maps in read),
            "Every map is passed on, whatever θ is: does it reach the transition?": tuple(read),
            "θ is applied twice: once is enough.": tuple(int(maps * theta**2) for maps in read),
        }
        hint = mistake_of(tuple(leave), mistakes, "Look at what each transition is made with.")
        require(
            leave == [int(maps * theta) for maps in read],
            f"{name} with θ = {theta}: its transitions read {read} maps and leave {leave}.\n{hint}",
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
    body, blocks, transitions = _body(answer, *_BODY)
    name = type(body).__name__
    x = random_maps(2, _BODY[1], 8, 8)

    def before_last(x: Tensor) -> Tensor:
        for block, transition in zip(blocks, transitions, strict=False):
            x = transition_by_hand(transition.norm, transition.conv, block(x))
        return x

    rest = before_last(x)
    require_values(
        call_answer(name, body, x, hint="Look at where `channels` is updated."),
        blocks[-1](rest),
        name,
        {
            "the last block does not run.\nzip stops with the shorter list: what is left over?": (
                rest
            ),
        },
        "the values are wrong.\nLook at the order in forward: block, transition, block, "
        "transition, block.",
    )
    sizes = ((1, 9, 12), (3, 8, 8))
    require_everywhere(body, lambda x: blocks[-1](before_last(x)), _BODY[1], sizes)
    single, (block,), _ = _body(answer, [2], 3, 2, 0.5)
    require_everywhere(single, block, 3)
    return f"{name} runs blocks and transitions in turn"
