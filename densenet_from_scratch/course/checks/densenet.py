"""Checks of the exercises of chapter 7."""

import math
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from densenet_from_scratch.course.checks.battery import require_everywhere
from densenet_from_scratch.course.checks.by_hand import (
    convolve_by_hand,
    normalise_by_hand,
    transition_by_hand,
)
from densenet_from_scratch.course.checks.core import (
    as_check,
    build_answer,
    call_answer,
    random_maps,
    require,
    require_numbers,
    require_own,
    require_part,
    require_parts,
    require_shape,
    require_values,
)
from densenet_from_scratch.course.checks.transition import THETAS, draw_blocks
from densenet_from_scratch.dense import BottleneckLayer, DenseBlock, DenseLayer
from densenet_from_scratch.measure import count_parameters
from densenet_from_scratch.transition import Transition

_K, _BLOCKS, _THETA, _K0, _IMAGES, _CLASSES = _ARGUMENTS = (3, [2, 1, 1], 0.5, 4, 2, 5)
_LEAVE = (10, 8, 7)  # maps that leave the blocks: 4 + 2·3, 5 + 3, 4 + 3
_MAY_USE = (DenseBlock, DenseLayer, BottleneckLayer, Transition)
_OTHERS: dict[tuple[Any, ...], list[int]] = {  # arguments, and the maps that leave the blocks
    (4, (1, 2), 0.75, 6, 1, 4): [10, 7 + 8],
    (1, (2, 1, 1, 3), 1.0, 3, 3, 2): [5, 6, 7, 10],
    (2, (1,), 0.5, 5, 2, 3): [7],
}


_HINT = "Each part reads what the part before it leaves: does the last block run, too?"


def _build(answer: Any) -> nn.Module:
    return build_answer(answer, *_ARGUMENTS, may_use=_MAY_USE)


def _members(network: nn.Module, part: str, kind: type, number: int, hint: str) -> list[Any]:
    members: list[Any] = require_parts(network, part, kind, "Look at the names in the question.")
    require(
        len(members) == number,
        f"{type(network).__name__} with {len(_BLOCKS)} blocks: self.{part} has {len(members)} "
        f"members.\n{hint}",
    )
    return members


def _lists(network: nn.Module) -> tuple[list[Any], list[Any]]:
    between = "A transition stands between two blocks; what stands behind the last one?"
    return (
        _members(network, "blocks", DenseBlock, 3, "Look at block_config."),
        _members(network, "transitions", Transition, 2, between),
    )


@as_check
def densenet_parts(answer: Any) -> str:
    """Stem, blocks, transitions and head have the right widths, and no parameter more."""
    network = _build(answer)
    name = type(network).__name__
    stem = require_part(network, "stem", nn.Conv2d)
    require(
        (stem.in_channels, stem.out_channels) == (_IMAGES, _K0),
        f"{name}: self.stem goes from {stem.in_channels} to {stem.out_channels} maps.\nIt reads "
        "the image: which arguments say what it reads and what it makes?",
    )
    require(
        (stem.kernel_size, stem.stride, stem.bias) == ((3, 3), (1, 1), None)
        and stem.padding in ((1, 1), "same"),
        f"{name}: self.stem is not the 3×3 convolution of the question.\nIt keeps height and width "
        "and has no bias: look at kernel_size, stride, padding and bias.",
    )
    blocks, transitions = _lists(network)
    require(
        all(type(layer) is BottleneckLayer for block in blocks for layer in block.layers),
        f"{name}: its blocks are made of basic layers.\nThe B of DenseNet-BC: look at DenseBlock's "
        "argument bottleneck.",
    )
    counts = [len(block.layers) for block in blocks]
    require(counts == _BLOCKS, f"{name}: its blocks have {counts} layers.\nLook at block_config.")
    counts = [block.layers[0].norm1.num_features for block in blocks]
    right = [_K0, *(t.out_channels for t in transitions)]
    require(
        counts == right
        and [block.out_channels for block in blocks[:-1]]
        == [t.conv.in_channels for t in transitions],
        f"{name}: its blocks are made for {counts} maps.\nEach part reads what the part before it "
        "leaves: look at where the number of maps is updated, behind blocks *and* transitions.",
    )
    require(
        [block.out_channels for block in blocks] == list(_LEAVE),
        f"{name}: {[block.out_channels for block in blocks]} maps leave its blocks.\nLook at what "
        "k, θ and k_0 each do: did every argument arrive where it belongs?",
    )
    norm, classifier = (
        require_part(network, "norm", nn.BatchNorm2d),
        require_part(network, "classifier", nn.Linear),
    )
    require(
        norm.num_features == _LEAVE[-1],
        f"{name}: self.norm is made for {norm.num_features} maps.\nIt reads what leaves the last "
        "block.",
    )
    require(
        (classifier.in_features, classifier.out_features) == (_LEAVE[-1], _CLASSES),
        f"{name}: self.classifier goes from {classifier.in_features} to "
        f"{classifier.out_features} numbers.\nAfter global average pooling one number is left of "
        "each map.",
    )
    require(
        classifier.bias is not None,
        f"{name}: self.classifier has no bias.\nNo batch normalisation follows it that would "
        "subtract a constant.",
    )
    parts = [stem, *blocks, *transitions, norm, classifier]
    require(
        count_parameters(network) == sum(map(count_parameters, parts)),
        f"{name} has more parameters than its parts.\nLook for a part that forward does not use.",
    )
    return f"{name} has all its parts, in the right widths"


@as_check
def densenet_shape(answer: Any) -> str:
    """The network gives one logit for each class, for images of any size."""
    network = _build(answer)
    name = type(network).__name__
    for height, width in ((8, 8), (12, 16)):
        what = f"{name} for images of {height}×{width}"
        y = call_answer(what, network, random_maps(3, _IMAGES, height, width), hint=_HINT)
        require_shape(
            y,
            (3, _CLASSES),
            what,
            {
                "The images of the batch have been averaged, too: look at the axes of the mean.": (
                    _CLASSES,
                ),
                "These are the averages of the maps: look for the classifier.": (3, _LEAVE[-1]),
                "These are maps: look for the head.": (3, _LEAVE[-1], height // 4, width // 4),
                "Pixels are left, one of each map: look at the mean.": (3, _CLASSES, 1, 1),
            },
        )
    for arguments, leave in _OTHERS.items():
        k, config, theta, *rest = arguments
        other = build_answer(answer, k, list(config), theta, *rest, may_use=_MAY_USE)
        text = f"{name}({k}, {list(config)}, {theta}, {', '.join(map(str, rest))})"
        made = [block.out_channels for block in require_parts(other, "blocks", DenseBlock)]
        require(
            made == leave,
            f"{text}: {made} maps leave its blocks.\nDoes every argument arrive where it belongs, "
            "θ in the transitions, too?",
        )
        shape = (1, rest[1], 16, 24)
        y = call_answer(text, other.eval(), random_maps(*shape), hint=_HINT)
        require_shape(y, (1, rest[2]), f"{text} for an image of shape {shape}", {}, _HINT)
    return f"{name} makes one logit for each class, whatever the size of the image"


@as_check
def densenet_values(answer: Any) -> str:
    """Stem, blocks and transitions in turn, then BN, ReLU, global average, classifier."""
    network = _build(answer).eval()
    name, (blocks, transitions) = type(network).__name__, _lists(network)
    norm, classifier = (
        require_part(network, "norm", nn.BatchNorm2d),
        require_part(network, "classifier", nn.Linear),
    )
    stem, x = require_part(network, "stem", nn.Conv2d), random_maps(2, _IMAGES, 12, 8)

    def body(maps: Tensor) -> Tensor:
        for block, transition in zip(blocks[:-1], transitions, strict=True):
            maps = transition_by_hand(transition.norm, transition.conv, block(maps))
        return blocks[-1](maps)

    def logits(features: Tensor) -> Tensor:
        return features @ classifier.weight.T + classifier.bias

    first = convolve_by_hand(stem, x)
    maps = body(first)
    normed, pixels = normalise_by_hand(norm, maps), (2, 3)
    active = normed.clamp(min=0)
    right = logits(active.mean(pixels))
    reader = "Who normalises and cuts off the last block's maps? They have no later layer."
    mistakes = {
        f"the head has neither BN nor ReLU.\n{reader}": logits(maps.mean(pixels)),
        f"the head has no ReLU.\n{reader}": logits(normed.mean(pixels)),
        f"the head's normalisation is not used.\n{reader}": logits(maps.clamp(min=0).mean(pixels)),
        "the head averages before the ReLU.\nThe two do not commute: look at the order.": logits(
            normed.mean(pixels).clamp(min=0)
        ),
        "in the head the ReLU comes before the normalisation.\nLook at the order.": logits(
            normalise_by_hand(norm, maps.clamp(min=0)).mean(pixels)
        ),
        "the head takes the largest pixel of each map.\nLook at the kind of pooling.": logits(
            active.amax(pixels)
        ),
        "the head adds up the pixels of each map.\nThen the logits depend on the size of the "
        "image: look at the kind of pooling.": logits(active.sum(pixels)),
        "these are probabilities.\nThe question asks for logits: "
        "the loss does the softmax.": right.softmax(dim=1),
        "a ReLU follows the classifier, and no logit can be "
        "negative.\nLook at the last line.": right.clamp(min=0),
        "a ReLU follows the stem.\nThe first layer cuts off after its own normalisation.": logits(
            normalise_by_hand(norm, body(first.clamp(min=0))).clamp(min=0).mean(pixels)
        ),
    }
    require_values(
        call_answer(name, network, x, hint=_HINT),
        right,
        name,
        mistakes,
        "the logits are wrong.\nGo through stem, body and head in order, and compare with forward.",
    )

    def right_everywhere(x: Tensor) -> Tensor:
        active = normalise_by_hand(norm, body(convolve_by_hand(stem, x))).clamp(min=0)
        return logits(active.mean(pixels))

    require_everywhere(network, right_everywhere, _IMAGES, ((1, 9, 12), (3, 8, 8)))
    return f"{name} computes the logits of a DenseNet"


def _depth(blocks: Sequence[int], bottleneck: bool) -> int:
    convolutions = [2 if bottleneck else 1 for layers in blocks for _ in range(layers)]
    return 1 + sum(convolutions) + len(blocks[1:]) + 1


@as_check
def depth(answer: Any) -> str:
    """L counts the convolutions and the classifier."""
    right = _depth
    name = require_numbers(
        answer,
        right,
        [([6, 12, 24, 16], True), ([12, 12, 12], False), ([16, 16, 16], True), ([5], False)],
        {
            "a bottleneck layer is counted once.\nHow many convolutions has it?": lambda b, two: (
                right(b, False)
            ),
            "the transitions are not counted.\nThey have a convolution each.": lambda b, two: (
                right(b, two) - len(b) + 1
            ),
            "there is one too many.\nHow many transitions have as many blocks? And pooling has "
            "nothing to learn.": lambda b, two: right(b, two) + 1,
            "there is one too few.\nWhat stands before the first block, and what behind the last "
            "one?": lambda b, two: right(b, two) - 1,
            "only the body is counted.\nWhat stands before the first block, and what behind the "
            "last one?": lambda b, two: right(b, two) - 2,
            "these are the dense layers.\nL counts convolutions and the classifier, on the whole "
            "path.": lambda b, two: sum(b),
            "every layer is counted as a bottleneck.\n"
            "Look at the second argument.": lambda b, two: right(b, True),
        },
        "Write down the path from image to logits, part by part, and tick every convolution.",
        draw=lambda r: (draw_blocks(r), r.random() < 0.5),
    )
    return f"{name} counts as the paper does"


def _layers(depth: int, bottleneck: bool) -> int:
    fitting = [n for n in range(1, depth // 3 + 1) if _depth([n, n, n], bottleneck) == depth]
    return fitting[0] if fitting else 0


@as_check
def layers_per_block(answer: Any) -> str:
    """Three equal blocks have (L - 4)/3 or (L - 4)/6 layers, if that is a whole number."""
    name = require_numbers(
        answer,
        _layers,
        [
            (40, False),
            (100, False),
            (100, True),
            (190, True),
            (42, False),
            (45, True),
            (4, False),
            (1, False),
            (904, False),
            (1804, True),
        ],
        {
            "a depth that no such network has gets an answer too.\nPut it back: which depth has "
            "the network that you found?": lambda depth, two: (depth - 4) // (6 if two else 3),
            "a bottleneck layer is counted once.\nHow "
            "many convolutions has it?": lambda depth, two: _layers(depth, False),
            "stem, transitions and classifier are counted as layers of the blocks.\nHow many of "
            "these are there?": lambda depth, two: depth // (6 if two else 3),
            "these are the layers of all three blocks together.\nThe "
            "question asks for one.": lambda depth, two: max(0, (depth - 4) // (2 if two else 1)),
        },
        "Turn the formula of question 2, part 1, for three equal blocks round.",
        draw=lambda r: (r.randint(1, 300), r.random() < 0.5),
    )
    return f"{name} finds the blocks that a name stands for"


def _parameters(
    k: int,
    blocks: Sequence[int],
    theta: float,
    k0: int,
    images: int,
    classes: int,
    *,
    norms: int = 2,
    convolutions: bool = True,
    after_last: bool = False,
) -> int:
    """Count part by part; ``norms`` numbers for each map of a normalisation."""
    total, maps = 9 * images * k0, k0
    for index, layers in enumerate(blocks):
        for _ in range(layers):
            total += norms * maps + maps * 4 * k + norms * 4 * k + 9 * 4 * k * k
            maps += k
        if index < len(blocks) - 1 or after_last:
            left = math.floor(theta * maps)
            total += (norms * maps + maps * left) if convolutions else 0
            maps = left
    return total + norms * maps + (maps + 1) * classes


@as_check
def densenet_parameters(answer: Any) -> str:
    """The formula gives the number of parameters of a DenseNet-BC for small images."""
    right = _parameters

    def leaving(k: int, blocks: Sequence[int], t: float, k0: int, i: int, c: int) -> int:
        """Maps that the classifier reads."""
        for index, layers in enumerate(blocks):
            k0 += k * layers
            k0 = k0 if index == len(blocks) - 1 else math.floor(t * k0)
        return k0

    name = require_numbers(
        answer,
        right,
        [
            (12, [16, 16, 16], 0.5, 24, 3, 10),
            (3, [2, 1, 1], 0.5, 4, 2, 5),
            (5, [1, 3], 1.0, 7, 1, 2),
            (2, [4], 0.5, 6, 3, 7),
        ],
        {
            "the batch normalisations are not counted.\nEach layer has two, each transition one, "
            "and the head one.": lambda *a: right(*a, norms=0),
            "one number is counted for each map of a normalisation.\nLook at what it does after "
            "it has normalised.": lambda *a: right(*a, norms=1),
            "the transitions are not counted.\nThey have a "
            "normalisation and a convolution.": lambda *a: right(*a, convolutions=False),
            "a transition is counted behind the last block.\n"
            "What stands there instead?": lambda *a: right(*a, after_last=True),
            "no map is left out between two blocks.\nWhere "
            "does compression come in?": lambda k, b, t, k0, i, c: right(k, b, 1.0, k0, i, c),
            "the bias of the classifier is not counted.\nLook at the "
            "parts of a linear layer.": lambda *a: right(*a) - a[-1],
            "the head's normalisation is not counted.\nGo through "
            "the parts in the question.": lambda *a: right(*a) - 2 * leaving(*a),
            "the stem is not counted.\nGo through the parts in the question.": lambda *a: (
                right(*a) - 9 * a[3] * a[4]
            ),
            "a bias is counted for the stem.\nLook at which layers have one.": lambda *a: (
                right(*a) + a[3]
            ),
            "the classifier is not counted.\nGo through the parts in the question.": lambda *a: (
                right(*a) - (leaving(*a) + 1) * a[-1]
            ),
            "the second normalisation of the bottleneck layers is not counted.\nIt sees the 4k "
            "maps of the middle.": lambda *a: right(*a) - sum(a[1]) * 8 * a[0],
            "the image is always taken for one of three "
            "channels.\nLook at in_channels.": lambda *a: right(a[0], a[1], a[2], a[3], 3, a[5]),
        },
        "Count part by part, and compare with a network of a single layer that you count by hand.",
        draw=lambda r: (
            *(r.randint(1, 48), draw_blocks(r), r.choice(THETAS)),
            *(r.randint(1, 64), r.randint(1, 4), r.randint(1, 200)),
        ),
    )
    return f"{name} counts what a real DenseNet-BC has"


def _key_pairs() -> Iterator[tuple[str, str]]:
    """Torchvision's keys and ours, for blocks of 3, 12 and 103 layers."""
    yield "features.conv0.weight", "stem.conv.weight"
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    heads = [("features.norm0.", "stem.norm."), ("features.norm5.", "norm.")]
    for block, layers in enumerate((3, 12, 103)):
        for layer in range(layers):
            theirs = f"features.denseblock{block + 1}.denselayer{layer + 1}."
            ours = f"blocks.{block}.layers.{layer}."
            heads += [(f"{theirs}norm{n}.", f"{ours}norm{n}.") for n in (1, 2)]
            for n in (1, 2):
                yield f"{theirs}conv{n}.weight", f"{ours}conv{n}.weight"
        if block < 2:
            transition = f"features.transition{block + 1}."
            heads.append((f"{transition}norm.", f"transitions.{block}.norm."))
            yield f"{transition}conv.weight", f"transitions.{block}.conv.weight"
    for theirs, ours in heads:
        for part in norm:
            yield theirs + part, ours + part
    yield "classifier.weight", "classifier.weight"
    yield "classifier.bias", "classifier.bias"


@as_check
def key_names(answer: Any) -> str:
    """Every key of a torchvision DenseNet gets the name that ours has."""
    name = require_own(answer, FunctionType)
    pairs = list(_key_pairs())
    names = {}
    for theirs, _ in pairs:
        value = call_answer(f"{name}({theirs!r})", answer, theirs)
        hint = "Is a `return` missing?" if value is None else "The question asks for a key, a str."
        require(type(value) is str, f"{name}({theirs!r}) gives a {type(value).__name__}.\n{hint}")
        names[theirs] = value
    wrong = [theirs for theirs, ours in pairs if names[theirs] != ours]
    if wrong:
        example = f"{name}({wrong[0]!r}) gives {names[wrong[0]]!r}.\n"
        if all(names[theirs] == theirs for theirs in wrong):
            hint = (
                f"So {len(wrong)} keys keep torchvision's name.\nWhat have these in common that "
                "the others have not? Look at how many digits a pattern allows."
            )
        elif len(set(names.values())) < len(pairs):
            hint = "Two keys get one name, so weights are lost.\nLook at what your pattern drops."
        elif any("classifier" in theirs or "norm5" in theirs for theirs in wrong):
            hint = "Mend only what is broken: this key was right before."
        else:
            hint = "Torchvision counts blocks and layers from 1, and a ModuleList from 0."
        raise AssertionError(example + hint)
    return f"{name} finds the right name for each of {len(pairs)} keys"
