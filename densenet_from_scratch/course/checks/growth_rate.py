"""Checks of the exercises of chapter 4."""

from collections import Counter
from collections.abc import Callable
from itertools import count, takewhile
from random import Random
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.battery import require_for_all
from densenet_from_scratch.course.checks.core import (
    as_check,
    call_answer,
    random_maps,
    require,
    require_numbers,
    require_own,
    require_shape,
    require_values,
)
from densenet_from_scratch.course.checks.dense import block_cost, dense_outputs
from densenet_from_scratch.dense import DenseLayer

_COUNT, _K0, _K = 3, 5, 2  # layers, maps that enter, growth rate


def _layers() -> list[DenseLayer]:
    layers = [DenseLayer(_K0 + _K * index, _K).double() for index in range(_COUNT)]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.normal_()
    return layers


def _run(answer: Callable[..., Any], name: str, layers: list[DenseLayer], x: Tensor) -> Any:
    hint = (
        "Layer l reads the part of the state that is already filled: how many maps are that? And "
        "which dtype does the state have?"
    )
    with torch.no_grad():
        return call_answer(f"{name}(layers, x)", answer, layers, x, hint=hint)


@as_check
def shared_state_shape(answer: Any) -> str:
    """The state has room for k_0 + kL maps, and the dtype of the input."""
    name = require_own(answer, FunctionType)
    layers, x = _layers(), random_maps(2, _K0, 4, 6)
    state = _run(answer, name, layers, x)
    require_shape(
        state,
        (2, _K0 + _K * _COUNT, 4, 6),
        f"{name}(layers, x)",
        {
            "There is room for what the layers make, and none for x_0.": (2, _K * _COUNT, 4, 6),
            "The last layer's maps are missing: it also writes what it makes.": (
                2,
                _K0 + _K * (_COUNT - 1),
                4,
                6,
            ),
            "These are the last layer's maps; the question asks for the state.": (2, _K, 4, 6),
            "There is room for one layer's maps only: none is overwritten.": (2, _K0 + _K, 4, 6),
        },
    )
    require(
        state.dtype == x.dtype,
        f"{name} turns {x.dtype} into {state.dtype}.\nLook at which dtype the state is made with.",
    )
    return f"{name} makes room for x_0 and for the maps of every layer"


def _wrong_states(layers: list[DenseLayer], x: Tensor) -> dict[str, Tensor | list[Tensor]]:
    """What the state holds after likely mistakes, by what to say about them."""
    right = dense_outputs(layers, x)
    one_place = torch.cat([x, x.new_zeros(len(x), _K * _COUNT, *x.shape[2:])], dim=1)
    clipped = x
    for index, layer in enumerate(layers):
        read = one_place[:, : _K0 + _K * index]
        one_place[:, _K0 : _K0 + _K] = dense_outputs([layer], read)[1]
        clipped = torch.cat([clipped, dense_outputs([layer], clipped)[1].clamp(min=0)], dim=1)
    return {
        "x_0 is not in it, and layer 1 reads only zeros.\nLook at what must be written before the "
        "first layer runs.": torch.cat(dense_outputs(layers, torch.zeros_like(x)), dim=1),
        "every layer writes to the same maps, so that only the last one's are left.\nLook at "
        "where the free part of the state begins after each layer.": one_place,
        "x_0 has been lost.\nLook at what stands in the first maps of "
        "the state at the end.": torch.cat([torch.zeros_like(x), *right[1:]], dim=1),
        "the newest maps do not come last.\nLook at where layer l writes: after all before it.": [
            torch.cat(right[::-1], dim=1),
            torch.cat([x, *right[:0:-1]], dim=1),
        ],
        "a ReLU is applied to what a layer makes.\nA layer does its own: look at what you write "
        "to the state.": clipped,
    }


@as_check
def shared_state_values(answer: Any) -> str:
    """Each layer reads all maps before it and writes to maps of its own, once."""
    name = require_own(answer, FunctionType)
    layers, x = _layers(), random_maps(3, _K0, 4, 5)
    calls: Counter[nn.Module] = Counter()
    read: list[Tensor] = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, *_: calls.update([layer]))
        layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    state = _run(answer, name, layers, x)
    most = max(calls.values(), default=0)
    require(
        most <= 1,
        f"{name} runs a layer {most} times.\nEach layer makes its maps once; whoever needs "
        "them later reads them from the state.",
    )
    require_values(
        state,
        torch.cat(dense_outputs(layers, x), dim=1),
        f"{name}(layers, x)",
        _wrong_states(layers, x),
        "the values are wrong.\nTake pencil and paper for k_0 = 5 and k = 2: which maps does layer "
        "2 read, and to which does it write?",
    )
    ours = {tensor.untyped_storage().data_ptr() for tensor in (state, x)}
    require(
        all(tensor.untyped_storage().data_ptr() in ours for tensor in read),
        f"{name}: a layer reads a tensor of its own, not a part of the state.\nThe question asks "
        "for *one* tensor that all layers read and write: look for cat, clone(), contiguous().",
    )
    cases = [(layers[:1], random_maps(1, _K0, 3, 5)), (layers, random_maps(1, _K0, 1, 7))]
    with torch.no_grad():
        require_for_all(
            answer, lambda layers, x: torch.cat(dense_outputs(layers, x), dim=1), cases, False
        )
    return f"{name} lets each layer read all maps before it, and overwrites none"


Count = Callable[[int, int, int], int]

_LARGE = 850  # more than a search in vain would try, and less than recursion allows


def _without_norms(n: int, k0: int, k: int) -> int:
    return sum(9 * k * (k0 + k * i) for i in range(n))


def _require_largest(
    answer: Any, of_layers: bool, cases: list[tuple[int, int, int]], as_first: str, too_dear: str
) -> str:
    """Require the largest n, of layers or of maps a layer, whose block stays within the budget."""

    def largest(cost: Count) -> Count:
        def number(budget: int, k0: int, given: int) -> int:
            costs = (cost(*((n, k0, given) if of_layers else (given, k0, n))) for n in count(1))
            return sum(1 for _ in takewhile(lambda spent: spent <= budget, costs))

        return number

    def draw(chance: Random) -> tuple[int, int, int]:
        """A budget that one size just fits, or just misses, or that is too small for any."""
        k0, given, free = chance.randint(1, 64), chance.randint(1, 12), chance.randint(0, 130)
        free = _LARGE if chance.random() < 0.1 else free
        spent = block_cost(*((free, k0, given) if of_layers else (given, k0, free)))
        return max(0, spent + chance.randint(-3, 3)), k0, given

    cost = block_cost
    right = largest(cost)
    return require_numbers(
        answer,
        right,
        cases,
        {
            "the block that it finds costs more than the budget.\nWhich one do you return: the "
            "last that fits, or the first that does not?": lambda *a: right(*a) + 1,
            "a block that costs exactly the budget is turned down.\nLook at how you compare with "
            "the budget: may it be used up?": largest(lambda *a: cost(*a) + 1),
            "the batch normalisations cost nothing here.\nLook at what each of them learns for "
            "each map that it reads.": largest(_without_norms),
            f"every layer is counted as {as_first}": largest(lambda n, k0, k: n * cost(1, k0, k)),
            f"{too_dear} is returned where even that is too dear.\nRead in the question what to "
            "return then.": lambda *a: max(right(*a), 1),
            "each layer is counted too wide by k.\nHow many layers come "
            "before the first one?": largest(lambda n, k0, k: cost(n, k0 + k, k)),
        },
        "Count the parameters of the block that you found, and of the next larger one, with the "
        "formula of the chapter. Where is the budget?",
        draw=draw,
    )


@as_check
def largest_growth_rate(answer: Any) -> str:
    """The largest k with which a block of L layers stays within the budget."""
    edges = [(2 * block_cost(5, 3, 6), 3, 5), (block_cost(1, 9, 7), 9, 1)]
    cases = [(13_680, 8, 12), (13_680, 8, 4), *edges, (_without_norms(3, 4, 6), 4, 3), (5, 8, 2)]
    first = "wide as the first.\nLook at what layer l reads, and at how that depends on k."
    name = _require_largest(answer, False, cases, first, "k = 1")
    return f"{name} finds the widest layers that the budget allows"


@as_check
def largest_depth(answer: Any) -> str:
    """The largest L with which a block of growth rate k stays within the budget."""
    edges = [(3 * block_cost(6, 5, 3), 5, 3), (block_cost(2, 4, 9), 4, 9)]
    cases = [(13_680, 8, 4), (13_680, 8, 13), *edges, (_without_norms(5, 4, 2), 4, 2), (9, 8, 2)]
    first = "dear as the first.\nLook at what the later ones read."
    name = _require_largest(answer, True, cases, first, "one layer")
    return f"{name} finds the deepest block that the budget allows"


_DRAW = "Draw the block's output as a row of maps for k_0 = 8 and k = 4, and mark who made which."


def _maps_of(layer: int, k0: int, k: int) -> tuple[int, int]:
    edges = [0, k0] + [k0 + k * (index + 1) for index in range(layer)]
    return edges[layer], edges[layer + 1]


@as_check
def maps_of(answer: Any) -> str:
    """Layer l's maps stand behind x_0 and the maps of the l - 1 layers before."""
    right = _maps_of
    name = require_numbers(
        answer,
        right,
        [(0, 8, 4), (1, 8, 4), (2, 8, 4), (7, 24, 12)],
        {
            "each layer is placed k maps too far.\nLook at layer 1: where do the first new maps "
            "stand?": lambda n, k0, k: (k0 + k * n, k0 + k * (n + 1)) if n else (0, k0),
            "the maps that enter the block are taken for k "
            "maps.\nHow many does x_0 have?": lambda n, k0, k: (k * n, k * (n + 1)),
            "the layers' maps begin at 0, where x_0 stands.\nLook at what "
            "a block hands on first.": lambda n, k0, k: (k * (n - 1), k * n) if n else (0, k0),
            "layer 0 is treated like the others.\nx_0 was made by no layer: how many maps has it, "
            "and where do they begin?": lambda n, k0, k: (k0 + k * (n - 1), k0 + k * n),
            "the last map is left out.\nThe pair is used like a slice: look at whether Python "
            "counts the end in.": lambda n, *k: (right(n, *k)[0], right(n, *k)[1] - (n > 0)),
            "these are all maps up to the layer's own.\nWhich "
            "of them did others make?": lambda *a: (0, right(*a)[1]),
            "the second number is how many maps there are.\nA slice wants "
            "the place where it ends.": lambda n, k0, k: (right(n, k0, k)[0], k if n else k0),
        },
        _DRAW,
        "a pair of integers (start, stop)",
        draw=lambda r: (r.randint(0, 60), r.randint(1, 100), r.randint(1, 48)),
    )
    return f"{name} says which maps are whose"


def _maker_of(channel: int, k0: int, k: int) -> int:
    return next(layer for layer in range(channel + 2) if channel < _maps_of(layer, k0, k)[1])


@as_check
def maker_of(answer: Any) -> str:
    """Every map of the block's output belongs to x_0 or to one layer."""
    name = require_numbers(
        answer,
        _maker_of,
        [(0, 8, 4), (7, 8, 4), (8, 8, 4), (11, 8, 4), (12, 8, 4), (205, 24, 12)],
        {
            "the layers are counted from 0, which is the number of x_0.\nLook at the first map "
            "behind x_0: which layer made it?": lambda c, k0, k: 0 if c < k0 else (c - k0) // k,
            "the maps that enter the block are taken for layers' maps.\nLook at where the first "
            "layer's maps begin.": lambda c, k0, k: c // k,
            "the first maps do not all belong to layer 0.\nx_0 has k_0 maps, not k: look at what "
            "a negative number becomes under //.": lambda c, k0, k: (c - k0) // k + 1,
            "x_0 gets one map too many.\nMaps are counted from 0: look at which is the first "
            "behind x_0.": lambda c, k0, k: 0 if c == k0 else _maker_of(c, k0, k),
            "every layer gets one map of the layer after it.\nMaps are counted from 0: look at "
            "which is the first behind x_0.": lambda c, k0, k: 0 if c < k0 else -(-(c - k0) // k),
        },
        _DRAW,
        draw=lambda r: (r.randint(0, 900), r.randint(1, 100), r.randint(1, 48)),
    )
    return f"{name} says who made a map"
