"""Layers worked out by hand, and the checks that every kind of layer shares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.battery import require_everywhere, require_gradients
from densenet_from_scratch.course.checks.by_hand import (
    branch_by_hand,
    convolve_by_hand,
    normalise_by_hand,
)
from densenet_from_scratch.course.checks.core import (
    build_answer,
    call_answer,
    random_maps,
    require,
    require_defaults,
    require_part,
    require_parts,
    require_shape,
    require_values,
)
from densenet_from_scratch.measure import count_parameters


@dataclass(frozen=True)
class LayerSpec:
    """What the checks of a layer need to know of it: arguments, widths, names of its parts."""

    arguments: tuple[int, ...]
    reads: int
    makes: int
    norm: str = "norm"
    conv: str = "conv"
    adds_input: bool = False
    may_use: tuple[type[nn.Module], ...] = ()

    @property
    def keeps_width(self) -> bool:
        """Whether as many maps leave the layer as enter it."""
        return self.reads == self.makes

    def build(self, answer: Any, random: bool = True) -> nn.Module:
        """Build the answer with the arguments of this specification."""
        return build_answer(answer, *self.arguments, may_use=self.may_use, random=random)

    def parts(self, layer: nn.Module) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
        """Require that ``layer`` has the two parts, and that they are what was asked for."""
        name = type(layer).__name__
        norm = require_part(layer, self.norm, nn.BatchNorm2d)
        conv = require_part(layer, self.conv, nn.Conv2d)
        require(
            norm.num_features == self.reads,
            f"{name}: self.{self.norm} is made for {norm.num_features} maps.\nIt comes first, so "
            "it has one scale and one shift for each map that *enters* the layer.",
        )
        require(
            (conv.in_channels, conv.out_channels) == (self.reads, self.makes),
            f"{name}: self.{self.conv} goes from {conv.in_channels} to {conv.out_channels} maps."
            "\nLook at what the layer reads and what it makes, and at the order of Conv2d's "
            "first two arguments.",
        )
        require(
            conv.kernel_size == (3, 3),
            f"{name}: the kernel of self.{self.conv} is {conv.kernel_size}, not 3×3.",
        )
        require(
            conv.padding in ((1, 1), "same") and conv.stride == (1, 1),
            f"{name}: self.{self.conv} changes the height and width of the maps.\nA 3×3 kernel "
            "without padding has no neighbours at the border, so each layer loses a ring of "
            "pixels; look at padding and stride.",
        )
        for part in (self.norm, self.conv):
            require_defaults(layer, part)
        require(
            conv.bias is None,
            f"{name}: self.{self.conv} has a bias.\nThe next batch normalisation subtracts the "
            "mean, and any constant with it: look at Conv2d's argument bias.",
        )
        return norm, conv

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return what a right layer gives for ``x``, worked out by hand."""
        y = branch_by_hand(*self.parts(layer), x)
        return x + y if self.adds_input else y

    def mistakes(self, layer: nn.Module, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        """What a layer gives that confuses something, by the message for it."""
        norm, conv = self.parts(layer)
        normed, right = normalise_by_hand(norm, x), branch_by_hand(norm, conv, x)
        later = normalise_by_hand(norm, convolve_by_hand(conv, x)) if self.keeps_width else x
        orders = {
            "ReLU comes before the batch normalisation, so that it cuts off raw maps and the "
            "normalisation puts negative values back.\nCompare the order in forward with the "
            "name BN-ReLU-conv.": [convolve_by_hand(conv, normalise_by_hand(norm, x.clamp(min=0)))],
            "there is no ReLU: without it a stack of layers is one linear map.\nLook at what "
            "lies between the two parts.": [convolve_by_hand(conv, normed)],
            "the batch normalisation is not used.\nLook at what the ReLU reads.": [
                convolve_by_hand(conv, x.clamp(min=0))
            ],
            "ReLU comes last, after the convolution.\nCompare the order in forward with the "
            "name BN-ReLU-conv.": [convolve_by_hand(conv, normed).clamp(min=0)],
            "there is a second ReLU, after the convolution.\nThe next layer cuts off after "
            "its own normalisation: compare forward with the name "
            "BN-ReLU-conv.": [right.clamp(min=0)],
        }
        if self.keeps_width:
            orders[
                "the convolution comes first.\nThat is the older order, conv-BN-ReLU; compare it "
                "with the name BN-ReLU-conv."
            ] = [later.clamp(min=0), later]
        if not self.adds_input:
            if self.keeps_width:
                orders[
                    "the layer adds its input to its output.\nThat is a residual layer; look at "
                    "the equation of this one."
                ] = [right + x]
            return {**orders}
        untouched = "\nLook at whether the name x still means the input when you add it."
        return {message: [x + wrong for wrong in wrongs] for message, wrongs in orders.items()} | {
            "the shortcut is missing: this is a plain layer.\nLook at both terms of "
            "x_l = H_l(x_{l-1}) + x_{l-1}.": right,
            "a ReLU follows the sum, so that no negative value passes and the identity path is "
            "no identity.\nLook at the last thing forward does.": (right + x).clamp(min=0),
            f"what is added is x after batch normalisation and ReLU.{untouched}": (
                right + normed.clamp(min=0)
            ),
            f"what is added is x after batch normalisation.{untouched}": right + normed,
            f"what is added is x after a ReLU.{untouched}": right + x.clamp(min=0),
            "the input is added twice.\nIf your class inherits from another, look at what that "
            "one's forward already does.": right + 2 * x,
        }


def layer_parts(answer: Any, spec: LayerSpec) -> str:
    """Check that the layer has the parts asked for, and no parameter more."""
    layer = spec.build(answer)
    name = type(layer).__name__
    spec.parts(layer)
    require(
        count_parameters(layer) == 2 * spec.reads + 9 * spec.reads * spec.makes,
        f"{name}{spec.arguments} has {count_parameters(layer)} parameters, more than its "
        "normalisation and its convolution need.\nLook for a part that forward does not use.",
    )
    return f"{name} has the right parts, and no parameter more"


def layer_shape(answer: Any, spec: LayerSpec) -> str:
    """Check the number, size and dtype of the maps that the layer gives."""
    layer = spec.build(answer)
    name = type(layer).__name__
    mistakes = {
        "Both sides are 2 pixels short, as if the border had no neighbours: look at the padding.": (
            2,
            spec.makes,
            3,
            5,
        ),
        "There are more maps, as if the input were concatenated to the output: look at what "
        "forward returns.": (2, spec.reads + spec.makes, 5, 7),
    }
    x = random_maps(2, spec.reads, 5, 7)
    y = call_answer(f"{name}{spec.arguments}", layer, x)
    require_shape(y, (2, spec.makes, 5, 7), f"The output of {name}{spec.arguments}", mistakes)
    for dtype in (torch.float64, torch.float32):
        y = call_answer(f"{name}{spec.arguments} in {dtype}", layer.to(dtype), x.to(dtype))
        require(
            y.dtype == dtype,
            f"{name} turns {dtype} into {y.dtype}.\nLook for a tensor that forward makes or casts "
            "itself instead of computing it from x.",
        )
    return f"{name} gives maps of the right number, size and dtype"


def layer_values(answer: Any, spec: LayerSpec) -> str:
    """Check the values that the layer gives, in training and in evaluation."""
    layer = spec.build(answer)
    name = type(layer).__name__
    for training in (True, False):
        layer.train(training)
        x = random_maps(3, spec.reads, 4, 5)
        expected, mistakes = spec.expected(layer, x), spec.mistakes(layer, x)
        what = f"{name} in {'training' if training else 'evaluation'} mode"
        y = call_answer(what, layer, x)
        otherwise = (
            "the values are wrong.\nWrite its equation in words, then look at forward: which "
            "part reads which, in which order, and does each run once?"
            if training
            else "the values are wrong, though they are right in training mode.\nHere the "
            "normalisation uses its stored statistics: look at whether you call the module."
        )
        require_values(y, expected, what, mistakes, otherwise)
    require_everywhere(layer, lambda x: spec.expected(layer, x), spec.reads)
    smallest = replace(spec, arguments=(1,) * len(spec.arguments), reads=1, makes=1)
    smallest.parts(smallest.build(answer))
    return f"{name} computes what its equation says, in training and in evaluation mode"


def layer_side_effects(answer: Any, spec: LayerSpec) -> str:
    """Check that the layer leaves its input alone and runs its branch once."""
    layer = spec.build(answer)
    name = type(layer).__name__
    norm, _ = spec.parts(layer)
    x = random_maps(2, spec.reads, 4, 4)
    with torch.no_grad():
        call_answer(f"{name}{spec.arguments}", layer, x)
    assert norm.num_batches_tracked is not None  # parts() has made sure that it keeps statistics
    updates = int(norm.num_batches_tracked)
    require(
        updates <= 1,
        f"{name} updates the statistics of self.{spec.norm} {updates} times in one pass.\n"
        "Look at how often forward calls it: H_l is computed once.",
    )
    return f"{name} leaves its input alone and runs its branch once"


def layer_gradient(answer: Any, spec: LayerSpec) -> str:
    """Check that gradients reach the input and every parameter."""
    layer = spec.build(answer)
    name = type(layer).__name__
    x = random_maps(2, spec.reads, 4, 4)
    require_gradients(layer, x, lambda x: spec.expected(layer, x), f"{name}{spec.arguments}")
    return f"Gradients flow back through {name} to its input and to every parameter"


def layer_list(stack: nn.Module, num_layers: int) -> list[nn.Module]:
    """Require that ``stack.layers`` is a list of that many layers; return them."""
    layers = require_parts(stack, "layers", nn.Module)
    require(
        len(layers) == num_layers,
        f"{type(stack).__name__}: self.layers holds {len(layers)} layers where {num_layers} were "
        "asked for.",
    )
    return layers


def require_separate(layers: Sequence[nn.Module], name: str) -> None:
    """Require layers that share no parameter and did not start as copies of each other."""
    owners = [id(parameter) for layer in layers for parameter in layer.parameters()]
    require(
        len(set(owners)) == len(owners),
        f"{name}: layers share parameters: several entries of self.layers are one and the same "
        "object.\nLook at how often a layer is *created*: once, or once for each place?",
    )
    firsts = [max(layer.parameters(), key=Tensor.numel) for layer in layers]
    require(
        not any(torch.equal(firsts[0], other) for other in firsts[1:]),
        f"{name}: all layers start from the same weights, as if they were copies of one.\nLook "
        "at how each of them is created.",
    )
