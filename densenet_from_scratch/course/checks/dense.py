"""Checks of the exercises of chapter 3."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.battery import require_everywhere, require_gradients
from densenet_from_scratch.course.checks.core import (
    as_check,
    build_answer,
    call_answer,
    random_maps,
    require,
    require_numbers,
    require_shape,
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
from densenet_from_scratch.dense import DenseLayer
from densenet_from_scratch.measure import count_parameters

_DENSE = LayerSpec(arguments=(5, 3), reads=5, makes=3, norm="norm1", conv="conv1")


@as_check
def dense_layer_parts(answer: Any) -> str:
    """The dense layer reads all maps and makes k; it has two parts and nothing else."""
    return layer_parts(answer, _DENSE)


@as_check
def dense_layer_shape(answer: Any) -> str:
    """The dense layer returns its k new maps, and only those."""
    return layer_shape(answer, _DENSE)


@as_check
def dense_layer_values(answer: Any) -> str:
    """The dense layer is BN-ReLU-conv, in training and in evaluation."""
    return layer_values(answer, _DENSE)


@as_check
def dense_layer_side_effects(answer: Any) -> str:
    """The dense layer does not change its input, and runs once."""
    return layer_side_effects(answer, _DENSE)


@as_check
def dense_layer_gradient(answer: Any) -> str:
    """Gradients flow through the dense layer."""
    return layer_gradient(answer, _DENSE)


_BLOCK = (3, 5, 2)  # layers, maps that enter, growth rate


def _dense_block(answer: Any, random: bool = True) -> tuple[nn.Module, list[nn.Module]]:
    block = build_answer(answer, *_BLOCK, may_use=(DenseLayer,), random=random)
    layers = layer_list(block, _BLOCK[0])
    _require_widths(f"{type(block).__name__}{_BLOCK}", layers)
    return block, layers


def _require_widths(what: str, layers: Sequence[nn.Module]) -> None:
    count, k0, k = _BLOCK
    right = [k0 + k * index for index in range(count)]
    widths = [getattr(getattr(layer, "norm1", None), "num_features", 0) for layer in layers]
    mistakes = {
        tuple(k0 for _ in right): "Every layer is made for the block's input alone: what have "
        "the layers before it added?",
        tuple(width + k for width in right): "Each of these is too wide by k: how many layers "
        "come before the first one?",
        tuple(k * index for index in range(1, count + 1)): "The maps that enter the block are "
        "left out: layer 1 reads them, and so do all others.",
        tuple([k0] + [k] * (count - 1)): "After the first, each layer is made for the k maps of "
        "the layer before: which others does it read?",
    }
    hint = mistakes.get(tuple(widths), "Layer l reads the input and the layers before it.")
    require(widths == right, f"{what}: its layers are made for {widths} maps.\n{hint}")


def dense_outputs(
    layers: Sequence[nn.Module], x: Tensor, newest_first: bool = False
) -> list[Tensor]:
    """The maps x_0, ..., x_L of a block, worked out by hand."""
    maps = [x]
    for layer in layers:
        read = torch.cat(maps[::-1] if newest_first else maps, dim=1)
        spec = replace(_DENSE, reads=read.shape[1], makes=_BLOCK[2])
        maps.append(spec.expected(layer, read))
    return maps


@as_check
def dense_block_layers(answer: Any) -> str:
    """Layer l of the block reads k_0 + k(l - 1) maps and makes k; no two share weights."""
    block, layers = _dense_block(answer, random=False)
    name, (count, k0, k) = type(block).__name__, _BLOCK
    right = [k0 + k * index for index in range(count)]
    for layer, width in zip(layers, right, strict=True):
        replace(_DENSE, reads=width, makes=k).parts(layer)
        rate = getattr(layer, "drop_rate", 0)
        require(
            bool(rate == 0),
            f"{name}: its layers have drop_rate={rate}.\nThe question asks for no dropout.",
        )
    require_separate(layers, name)
    require(
        count_parameters(block) == sum(map(count_parameters, layers)),
        f"{name} has parameters outside self.layers.\nLook at what __init__ creates.",
    )
    smallest = build_answer(answer, 1, 1, 1, may_use=(DenseLayer,), random=False)
    replace(_DENSE, arguments=(1, 1), reads=1, makes=1).parts(layer_list(smallest, 1)[0])
    return f"{name} has separate layers of the right widths"


_CONCATENATION = (
    "Look at the axis of torch.cat, which should be that of the maps in (N, C, H, W), and at "
    "what each layer reads."
)


@as_check
def dense_block_shape(answer: Any) -> str:
    """The block returns k_0 + kL maps of the input's height and width."""
    block, _ = _dense_block(answer)
    name, (count, k0, k) = f"{type(block).__name__}{_BLOCK}", _BLOCK
    require_shape(
        call_answer(name, block, random_maps(2, k0, 6, 7), hint=_CONCATENATION),
        (2, k0 + k * count, 6, 7),
        f"The output of {name}",
        {
            "The maps that entered the block are missing from what leaves it: x_0 is one of the "
            "things that the next part reads.": (2, k * count, 6, 7),
            "Only the last layer's maps leave the block.\nWhat comes next reads the maps of every "
            "layer.": (2, k, 6, 7),
            "The last layer's maps are missing from what leaves the block: look at what is "
            "concatenated at the end.": (2, k0 + k * (count - 1), 6, 7),
        },
    )
    return f"{type(block).__name__} returns its input and every layer's maps"


@as_check
def dense_block_values(answer: Any) -> str:
    """The block's maps are x_0, ..., x_L in order, each computed from all before it."""
    block, layers = _dense_block(answer)
    name = type(block).__name__
    x = random_maps(2, _BLOCK[1], 4, 5)
    maps = dense_outputs(layers, x)
    back = dense_outputs(layers, x, newest_first=True)
    order = (
        "the newest maps come first.\nEvery weight belongs to one map by its place, so the order "
        "matters: look at what stands first in torch.cat."
    )
    y = call_answer(name, block, x, hint=_CONCATENATION)
    require_values(
        y,
        torch.cat(maps, dim=1),
        name,
        {
            order: [torch.cat(back[::-1], dim=1), torch.cat(maps[::-1], dim=1)],
            "each layer reads the newest maps first, though the output is in order.\nLook at what "
            "stands first in the torch.cat that a layer reads.": torch.cat(back, dim=1),
        },
        "the values are wrong.\nLook at what each layer reads: the input and the maps of all "
        "layers before, in the order in which they were made.",
    )
    require_everywhere(block, lambda x: torch.cat(dense_outputs(layers, x), dim=1), _BLOCK[1])
    return f"{name} computes x_l = H_l([x_0, ..., x_(l-1)]) and keeps the order"


@as_check
def dense_block_gradient(answer: Any) -> str:
    """Gradients flow through every connection of the block."""
    block, layers = _dense_block(answer)
    x = random_maps(2, _BLOCK[1], 4, 4)
    name = type(block).__name__
    require_gradients(block, x, lambda x: torch.cat(dense_outputs(layers, x), dim=1), name)
    return f"Gradients flow back through every connection of {name}"


@as_check
def input_channels(answer: Any) -> str:
    """Layer l, counted from 1, reads k_0 + k(l - 1) maps."""
    name = require_numbers(
        answer,
        lambda layer, k0, k: k0 + sum(k for _ in range(1, layer)),
        [(1, 16, 12), (2, 16, 12), (5, 3, 4), (5, 3, 7), (40, 24, 32)],
        {
            "layer l itself is counted among the layers before it.\nLook at the first layer: "
            "whose maps does it read?": lambda layer, k0, k: k0 + k * layer,
            "the maps that enter the block are left out.\nLook at the first layer: it must read "
            "something.": lambda layer, k0, k: k * (layer - 1),
            "only the layer just before is counted.\nA dense layer "
            "reads all layers before it.": lambda layer, k0, k: k0 if layer == 1 else k,
            "k_0 and k have changed places.\nWhich of them enters once, and which once for each "
            "layer before?": lambda layer, k0, k: k + k0 * (layer - 1),
        },
        "Write down what layers 1, 2 and 3 read, then look for the pattern.",
        draw=lambda r: (r.randint(1, 80), r.randint(1, 100), r.randint(1, 48)),
    )
    return f"{name} follows the widths of a block"


@as_check
def connections(answer: Any) -> str:
    """A block of L layers has L(L + 1)/2 direct connections."""
    name = require_numbers(
        answer,
        lambda count: sum(range(1, count + 1)),
        [(1,), (2,), (5,), (100,)],
        {
            "connections from the input of the block are left out.\nx_0 is read directly by every "
            "layer: look at the smallest block.": lambda count: count * (count - 1) // 2,
            "the connections of a plain network are counted.\nHow many things does layer l of a "
            "dense block read directly?": lambda count: count,
            "each connection is counted twice.\nIt has a direction: from an earlier layer to a "
            "later one.": lambda count: count * (count + 1),
            "as many connections as pairs of layers in either direction are counted.\nA layer "
            "reads only what was made before it.": lambda count: count**2,
            "the block's output is counted as one more layer.\nThe question asks for what the L "
            "layers read.": lambda count: (count + 1) * (count + 2) // 2,
        },
        "Draw blocks of 1, 2 and 3 layers with their input x_0 and count the arrows.",
        draw=lambda r: (r.randint(1, 400),),
    )
    return f"{name} counts every arrow of a block once"


def block_cost(count: int, k0: int, k: int) -> int:
    """Return the parameters of a basic dense block: each layer's norm and 3×3 convolution."""
    widths = [k0 + k * index for index in range(count)]
    return sum(2 * width + 9 * width * k for width in widths)


@as_check
def block_parameters(answer: Any) -> str:
    """The formula gives the number of parameters of a block of basic layers."""
    right = block_cost
    name = require_numbers(
        answer,
        right,
        [(1, 3, 2), (4, 16, 12), (7, 5, 4), (20, 16, 4)],
        {
            "the batch normalisations are not counted.\nLook at what each of them learns for each "
            "map that it reads.": lambda n, k0, k: sum(9 * k * (k0 + k * i) for i in range(n)),
            "a batch normalisation is counted for the k maps that leave a layer.\nIt comes first: "
            "how many maps "
            "does it read?": lambda n, k0, k: sum(9 * k * (k0 + k * i) + 2 * k for i in range(n)),
            "all layers are counted as wide as the first.\nLook at "
            "what the later ones read.": lambda n, k0, k: n * right(1, k0, k),
            "each layer is counted too wide by k.\nHow many layers "
            "come before the first one?": lambda n, k0, k: right(n, k0 + k, k),
            "a bias is counted for each convolution.\nLook at how "
            "DenseLayer makes its own.": lambda n, k0, k: right(n, k0, k) + n * k,
            "one number is counted for each map of a batch normalisation.\nLook at what it does "
            "after it has "
            "normalised.": lambda n, k0, k: right(n, k0, k) - sum(k0 + k * i for i in range(n)),
            "running mean and variance are counted too.\nThey are buffers: the optimiser does not "
            "learn "
            "them.": lambda n, k0, k: right(n, k0, k) + 2 * sum(k0 + k * i for i in range(n)),
        },
        "Count one layer first: its normalisation, then its convolution, both from the maps that "
        "it reads. Then sum over the layers.",
        draw=lambda r: (r.randint(1, 60), r.randint(1, 100), r.randint(1, 48)),
    )
    return f"{name} counts what a real block has"
