"""Checks of the exercises of chapter 10."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import starmap
from operator import eq
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointError
from torch.utils.flop_counter import FlopCounterMode

from densenet_from_scratch.course.checks.battery import (
    require_everywhere,
    require_for_all,
    require_gradients,
)
from densenet_from_scratch.course.checks.by_hand import (
    branch_by_hand,
    convolve_by_hand,
    mix_by_hand,
    normalise_by_hand,
)
from densenet_from_scratch.course.checks.compare import as_python, same_values
from densenet_from_scratch.course.checks.core import (
    as_check,
    build_answer,
    call_answer,
    mistake_of,
    name_of,
    random_maps,
    require,
    require_none,
    require_numbers,
    require_own,
    require_shape,
    require_tensor,
    require_values,
)

# --- What is stored ------------------------------------------------------------------------------


def _recorded(run: Callable[[], Any]) -> list[Tensor]:
    """Return every tensor with four axes that ``run`` stores, as often as it is stored."""
    tensors: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        tensors.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    del output  # held until here: what is held cannot be freed, so its address stays its own
    return [tensor for tensor in tensors if tensor.ndim == 4]


def _addresses(tensors: Sequence[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


def _different(tensors: Sequence[Tensor], without: Sequence[Tensor] = ()) -> list[Tensor]:
    """Return each tensor once, and none of those ``without``."""
    known, different = _addresses(without), []
    for tensor in tensors:
        if not _addresses([tensor]) <= known:
            known |= _addresses([tensor])
            different.append(tensor)
    return different


def _maps(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.shape[1] for tensor in tensors)


class _Block(nn.Module):
    """A plain dense block; ``bn_size`` 0 gives basic layers."""

    def __init__(self, num_layers: int, k_0: int, k: int, bn_size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for reads in range(k_0, k_0 + k * num_layers, k):
            parts, last = [nn.BatchNorm2d(reads), nn.ReLU()], reads
            if bn_size:
                last = bn_size * k
                parts += [nn.Conv2d(reads, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU()]
            parts.append(nn.Conv2d(last, k, 3, padding=1, bias=False))
            self.layers.append(nn.Sequential(*parts))

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, dim=1)))
        return torch.cat(features, dim=1)


def _stored(num_layers: int, k_0: int, k: int, bn_size: int) -> int:
    """Run a block and count."""
    block, x = _Block(num_layers, k_0, k, bn_size), torch.randn(1, k_0, 2, 2)
    return _maps(_different(_recorded(lambda: block(x)), list(block.parameters())))


def _sum(
    num_layers: int, k_0: int, k: int, bn_size: int, reads: int = 2, middle: int = 2, own: int = 0
) -> int:
    """What it would be if a layer stored so many times its inputs, its middle and its own maps."""
    widths = [k_0 + k * layer for layer in range(num_layers)]
    return sum(reads * m + middle * bn_size * k + own * k for m in widths)


@as_check
def stored_maps(answer: Any) -> str:
    """The formula gives what a real block stores."""
    total: Callable[..., int] = _sum
    name = require_numbers(
        answer,
        _stored,
        [(3, 5, 2, 4), (6, 4, 3, 4), (4, 7, 2, 1), (5, 3, 2, 0), (1, 6, 4, 2)],
        {
            "the bottleneck is always taken to be 4k maps wide.\nLook at the last "
            "argument.": lambda L, k_0, k, b: total(L, k_0, k, 4),
            "basic layers are counted as if they had a bottleneck.\nWhich terms are left when "
            "bn_size is 0?": lambda L, k_0, k, b: total(L, k_0, k, b or 4),
            "the middle is counted in maps that are k times too few.\nbn_size is in units of "
            "k.": lambda L, k_0, k, b: total(L, k_0, k, 0) + 2 * b * L,
            "of what a layer reads, one tensor is counted.\nBN stores its input, the ReLU its "
            "output: are these one tensor?": lambda *a: total(*a, reads=1),
            "in the middle one tensor is counted.\nWho stores something there, and is it the same "
            "tensor?": lambda *a: total(*a, middle=1),
            "the middle is not counted.\nWhich operations lie between the two "
            "convolutions?": lambda *a: total(*a, middle=0),
            "what BN hands to the ReLU is counted, too.\nWho would need it in the backward "
            "pass?": lambda *a: total(*a, reads=3, middle=3),
            "each layer's k new maps are counted for the layer that makes them.\nA convolution "
            "stores what it reads: who reads these, and in which "
            "tensor?": lambda *a: total(*a, own=1),
            "every layer reads k maps too many.\nHow many does layer 1 read? So layer "
            "l?": lambda L, k_0, k, b: total(L, k_0 + k, k, b),
            "this is the last layer alone.\nThe others keep theirs until the backward pass comes "
            "by.": lambda L, *a: total(L, *a) - total(L - 1, *a),
            "every layer is taken to read as much as the last one.\nWhat does layer 1 "
            "read?": lambda L, *a: L * (total(L, *a) - total(L - 1, *a)),
            "every layer is taken to read as much as the first one.\nWhat comes in with each "
            "layer?": lambda L, *a: L * total(1, *a),
            "x_0 is counted once more by itself.\nDoes an operation store it, or a copy of "
            "it?": lambda L, k_0, k, b: total(L, k_0, k, b) + k_0,
            "the block's output is counted, too.\nWhat does a concatenation "
            "store?": lambda L, k_0, k, b: total(L, k_0, k, b) + k_0 + k * L,
        },
        "Write down for one layer, operation by operation, what it stores. Then sum over the "
        "layers: what does layer l read?",
        draw=lambda r: (r.randint(1, 6), r.randint(1, 90), r.randint(1, 5), r.randint(0, 5)),
    )
    return f"{name} gives what real blocks store"


class _TwoReaders(nn.Module):
    """Two operations that store one and the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(6, 6, 1, bias=False)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(x) + self.conv2(x)


class _Frozen(nn.Sequential):
    """A BN and a strided convolution that do not learn."""

    def __init__(self) -> None:
        first, second = nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 1)
        super().__init__(nn.BatchNorm2d(4), first, nn.Softplus(), second)
        self.requires_grad_(False)


class _OwnBackward(nn.Module):
    """A module that needs what it has stored while it is still running."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        torch.autograd.grad(y.sum(), list(self.parameters()), retain_graph=True)
        return y


@as_check
def counted_maps(answer: Any) -> str:
    """Each stored tensor of maps counts once, parameters do not."""
    name = require_own(answer, FunctionType)
    plain = nn.Sequential(nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 3, 1, bias=False))
    modules: dict[str, tuple[nn.Module, int]] = {
        "BN, ReLU and convolution in turn": (plain, 5),
        "two convolutions that read the same maps": (_TwoReaders(), 6),
        "a plain dense block": (_Block(3, 4, 2, 2), 4),
    }
    cases = [(module, torch.randn(2, maps, 4, 6)) for module, maps in modules.values()]
    # Like a weight in shape, smaller behind a stride, at rest, with nothing to learn but the input.
    modules["a frozen convolution with stride 2"] = _Frozen().eval(), 4
    cases.append((_Frozen().eval(), torch.randn(4, 4, 3, 3, requires_grad=True)))
    values: tuple[Any, ...] = ()
    for text, case in zip(modules, cases, strict=True):
        hint = "A hook gets tensors of any shape, statistics with one axis, too."
        value = as_python(call_answer(f"{name} for {text}", answer, *case, hint=hint))
        hint = "Is a `return` missing?" if value is None else "A count is a Python int."
        require(type(value) is int, f"{name} gives a {type(value).__name__}.\n{hint}")
        values += (value,)

    # Of all that is stored, the weights and the input.
    ways: dict[str, Callable[[list[Tensor], list[Tensor], Tensor], int]] = {
        "the convolutions' weights are counted.\nThey have four axes, too. How do you know a "
        "parameter when you see one?": lambda a, w, x: _maps(_different(a)),
        "tensors are counted as often as they are stored, and the convolutions' weights with "
        "them.\nHow do you know a tensor when you see it again?": lambda a, w, x: _maps(a),
        "tensors are counted as often as they are stored.\nThe hook is called by every operation "
        "that stores one: how do you know a tensor when you see it "
        "again?": lambda a, w, x: _maps([t for t in a if not _addresses([t]) <= _addresses(w)]),
        "the input is not counted.\nIt is kept for the backward pass like every other tensor that "
        "is stored.": lambda a, w, x: _maps(_different(a, [*w, x])),
        "tensors are counted, not maps.\nHow many maps are in a tensor of shape (N, C, H, "
        "W)?": lambda a, w, x: len(_different(a, w)),
        "the maps of every image are counted.\nThe formula is in channels: look at which axes you "
        "multiply.": lambda a, w, x: sum(t.shape[:2].numel() for t in _different(a, w)),
        "numbers are counted, not maps.\nWhich axis of (N, C, H, W) counts maps?": lambda a, w, x: (
            sum(t.numel() for t in _different(a, w))
        ),
        "images are counted, not maps.\nWhich axis of (N, C, H, W) counts maps?": lambda a, w, x: (
            sum(t.shape[0] for t in _different(a, w))
        ),
    }
    stored = [(_recorded(partial(m, x)), list(m.parameters()), x) for m, x in cases]
    right = tuple(_maps(_different(tensors, weights)) for tensors, weights, _ in stored)
    mistakes = {message: tuple(starmap(way, stored)) for message, way in ways.items()}
    require_none(values, right, mistakes, name, eq)
    for text, value, number in zip(modules, values, right, strict=True):
        hint = (
            "There are too few.\nIs everything still in memory that you have seen? When a tensor "
            "is freed, the next one may get its address."
            if value < number
            else "There are too many.\nPrint the shape of each tensor that you count."
        )
        require(value == number, f"{name} for {text} gives {value}, which is wrong. {hint}")
    what = f"{name} for a module that runs a backward pass of its own"
    hint = (
        "In the backward pass operations ask for what they have stored: what do your two hooks "
        "hand on?"
    )
    own = _OwnBackward(), torch.randn(2, 3, 4, 4)
    value = as_python(call_answer(what, answer, *own, hint=hint))
    require(value == 6, f"{what} gives {value}, which is wrong.\n{hint}")
    return f"{name} counts each stored tensor once, and no parameter"


# --- A checkpointed layer ------------------------------------------------------------------------

_WIDTHS, _K = (4, 2, 3), 2  # three sources; growth rate
_READS, _MIDDLE = sum(_WIDTHS), 4 * _K


def _build(answer: Any) -> nn.Module:
    layer = build_answer(answer, _READS, _K)
    name = type(layer).__name__
    parts = {
        "norm1": nn.BatchNorm2d(_READS),
        "conv1": nn.Conv2d(_READS, _MIDDLE, 1, bias=False),
        "norm2": nn.BatchNorm2d(_MIDDLE),
        "conv2": nn.Conv2d(_MIDDLE, _K, 3, padding=1, bias=False),
    }
    for part, like in parts.items():
        require(
            str(getattr(layer, part, None)) == str(like),
            f"{name}: self.{part} is not what the given __init__ makes.\nLeave __init__ as it is: "
            "only forward is to be written.",
        )
    require(
        len(list(layer.parameters())) == 6,
        f"{name} has other parts than the given __init__ makes.\nLeave __init__ as it is.",
    )
    return layer


def _features(gradient: bool = False) -> list[Tensor]:
    return [random_maps(2, maps, 4, 5).requires_grad_(gradient) for maps in _WIDTHS]


_LIST = "forward gets a list of maps: look at what you hand on, and how."


def _parts_of(layer: nn.Module) -> tuple[nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]:
    parts = dict(layer.named_children())
    norm1, conv1, norm2, conv2 = (parts[p] for p in ("norm1", "conv1", "norm2", "conv2"))
    assert isinstance(norm1, nn.BatchNorm2d) and isinstance(norm2, nn.BatchNorm2d)
    assert isinstance(conv1, nn.Conv2d) and isinstance(conv2, nn.Conv2d)
    return norm1, conv1, norm2, conv2


def _mixed(norm: nn.BatchNorm2d, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """BN, ReLU, 1×1 convolution: what reads the maps."""
    return mix_by_hand(conv, normalise_by_hand(norm, x).clamp(min=0))


@as_check
def checkpointed_layer_values(answer: Any) -> str:
    """The layer makes the maps of a bottleneck layer, and leaves its list alone."""
    layer = _build(answer)
    name, (norm1, conv1, norm2, conv2) = type(layer).__name__, _parts_of(layer)
    for training in (True, False):
        layer.train(training)
        features = _features()
        what = f"{name} in {'training' if training else 'evaluation'} mode"
        x, turned = torch.cat(features, dim=1), torch.cat(features[::-1], dim=1)
        z, raw = _mixed(norm1, conv1, x), mix_by_hand(conv1, normalise_by_hand(norm1, x))
        second = partial(branch_by_hand, norm2, conv2)
        y = call_answer(what, layer, features, hint=_LIST)
        all_maps = (2, _READS + _K, 4, 5)
        require_shape(
            y,
            (2, _K, 4, 5),
            what,
            {
                "This is the bottleneck: what reads it?": (2, _MIDDLE, 4, 5),
                "The old maps come back with the new ones: a layer makes new ones only.": all_maps,
            },
        )
        every, normed = (
            "Each convolution has a BN and a ReLU before it.",
            normalise_by_hand(norm2, z),
        )
        reverse = _mixed(norm1, conv1, turned)
        require_values(
            y,
            second(z),
            what,
            {
                f"there is no ReLU before conv1.\n{every}": second(raw),
                f"there is no ReLU before conv2.\n{every}": convolve_by_hand(conv2, normed),
                f"norm2 is not used.\n{every}": convolve_by_hand(conv2, z.clamp(min=0)),
                "the maps are concatenated in reverse order.\nx_0 comes first.": second(reverse),
            },
            "the values are wrong.\nWrite down what the layer does without checkpointing, then "
            "compare, part by part.",
        )
    everywhere = _FromOneTensor(layer)
    require_everywhere(everywhere, lambda x: second(_mixed(norm1, conv1, x)), _READS, repeats=True)
    return f"{name} makes the maps of a bottleneck layer"


class _FromOneTensor(nn.Module):
    """A layer that reads a list, made one that reads a tensor."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(list(x.split(_WIDTHS, dim=1)))


@as_check
def checkpointed_layer_gradient(answer: Any) -> str:
    """Checkpointing changes no gradient."""
    layer = _build(answer)
    name, (norm1, conv1, norm2, conv2) = type(layer).__name__, _parts_of(layer)

    def expected(x: Tensor) -> Tensor:
        return branch_by_hand(norm2, conv2, _mixed(norm1, conv1, x))

    require_gradients(_FromOneTensor(layer), random_maps(3, _READS, 4, 4), expected, name)
    return f"{name} gives the same gradients to all its parameters and to what it reads"


@as_check
def checkpointed_layer_stored(answer: Any) -> str:
    """Stored are the layer's inputs and the bottleneck, and neither copies nor activations."""
    layer, features = _build(answer), _features(gradient=True)
    name = type(layer).__name__
    tensors = _recorded(lambda: call_answer(name, layer, features, hint=_LIST))
    tensors = _different(tensors, list(layer.parameters()))
    new = _maps(_different(tensors, features))
    mistakes = {
        "nothing is checkpointed: it stores what a plain layer stores.\nWhich function throws away "
        "and computes again?": 2 * _READS + 2 * _MIDDLE,
        "the second part keeps the ReLU of the bottleneck.\nThe chapter stops here. You can do "
        "better: look at what stands before conv2.": 2 * _MIDDLE,
        "the first part is not checkpointed, and that is the wide one.\nLook at what stands before "
        "conv1.": 2 * _READS + _MIDDLE,
        "the layer is one part, and keeps nothing of its own: conv1 has to run again.\nWhat should "
        "a part end with, if no convolution is to be repeated?": 0,
        "the concatenation is made outside the part that reads it, and then it is that part's "
        "input, which is kept.\nWhere must the copy be made?": _READS + _MIDDLE,
        "what the ReLUs make is kept, since the convolutions that read it stand outside the "
        "parts.\nWhich is smaller, what a convolution reads or what it "
        "makes?": _READS + 2 * _MIDDLE,
    }
    otherwise = (
        f"it stores {new} maps besides those that it reads, which is not as asked.\nAsk of each: "
        "which operation stores it, and is that in a part?"
    )
    require(new == _MIDDLE, f"{name}: {mistake_of(new, mistakes, otherwise)}")
    require(
        _addresses(features) <= _addresses(tensors),
        f"{name}: the maps that it reads do not come through checkpoint's arguments.\nThey are "
        "held all the same, and nobody who counts can see it: hand them to checkpoint, one by one.",
    )
    return f"{name} stores what it reads and the bottleneck, and nothing else"


def _backward_macs(layer: nn.Module, features: list[Tensor]) -> int:
    output = layer(features)
    with FlopCounterMode(display=False) as counter:
        output.sum().backward()
    return counter.get_total_flops() // 2


@as_check
def checkpointed_layer_macs(answer: Any) -> str:
    """The backward pass repeats no convolution."""
    layer, features = _build(answer), _features(gradient=True)
    name = type(layer).__name__
    macs = call_answer(f"The backward pass of {name}", lambda: _backward_macs(layer, features))
    pixels = features[0][:, 0].numel()
    first, second = _READS * _MIDDLE * pixels, 9 * _MIDDLE * _K * pixels
    plain = 2 * (first + second)  # one gradient for the input of each, one for its weights
    mistakes = {
        "Both convolutions run again: nobody stops the repetition when all is there that is "
        "needed.\nWhich of the two implementations of checkpoint does "
        "that?": plain + first + second,
        "conv1 runs again: it is in the middle of a part.\nWhere should the part end?": plain
        + first,
        "conv2 runs again.\nIs it the last thing in its part?": plain + second,
    }
    hint = mistake_of(macs, mistakes, "Do all gradients flow, and does each part run once?")
    require(
        macs == plain,
        f"{name} does {macs:,} multiply-accumulates in the backward pass, a plain layer {plain:,}."
        f" {hint}",
    )
    return f"{name} repeats no convolution in the backward pass"


# --- Every batch counts once ---------------------------------------------------------------------

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def _parts(momentum: float | None = 0.1) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    """A BN and a convolution that have learned something."""
    norm = nn.BatchNorm2d(_READS, momentum=momentum).double()
    conv = nn.Conv2d(_READS, 5, 1, bias=False).double()
    for statistic in (norm.running_mean, norm.running_var):
        assert statistic is not None
        statistic.uniform_(0.5, 2.0)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    return norm, conv


def _statistics(norm: nn.BatchNorm2d) -> list[Tensor]:
    return [buffer.clone() for _, buffer in norm.named_buffers()]


def _counted(state: Sequence[Tensor], features: Sequence[Tensor], momentum: float | None) -> Any:
    """Return the statistics when one batch more has counted, by their definition."""
    mean, variance, number = state
    x = torch.cat([maps.detach() for maps in features], dim=1).transpose(0, 1).flatten(1)
    share = momentum if momentum is not None else 1 / (int(number) + 1)
    centred = x - x.mean(dim=1, keepdim=True)
    unbiased = (centred**2).sum(dim=1) / (x.shape[1] - 1)
    return [
        (1 - share) * mean + share * x.mean(dim=1),
        (1 - share) * variance + share * unbiased,
        number + 1,
    ]


def _same(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(map(same_values, actual, expected))


def _backward(output: Tensor, what: str) -> None:
    """Run the backward pass; explain the error of a repetition that differs."""
    text = f"The backward pass of {what}"
    try:
        call_answer(text, lambda: output.square().sum().backward())
    except AssertionError as failure:
        error = failure.__cause__
        text += f" stopped with {type(error).__name__}: {str(error)[:150]}"
        if isinstance(error, CheckpointError):
            text = (
                f"{what}: PyTorch stops the backward pass, since the repetition stores other "
                "tensors than the first run did.\nBN must do in both the same work, with the same "
                "settings: only where its updates go may differ."
            )
        raise AssertionError(text) from error


def _forward(answer: Any, name: str, norm: nn.Module, conv: nn.Module, maps: list[Tensor]) -> Any:
    output = require_tensor(call_answer(name, answer, norm, conv, *maps), name)
    require(
        output.requires_grad,
        f"{name}: no gradient can flow back from the output.\nCopy the function as it is, and "
        "change only what is broken.",
    )
    return output


@as_check
def counted_once(answer: Any) -> str:
    """A batch counts once: in the forward pass, and not again in the backward pass."""
    name = require_own(answer, FunctionType)
    for momentum in (0.3, None):
        norm, conv = _parts(momentum)
        batches = [_features(gradient=True) for _ in range(3)]
        setting = f"{name}, momentum={momentum}"
        start = _statistics(norm)
        once = _counted(start, batches[0], momentum)
        output = _forward(answer, name, norm, conv, batches[0])
        now = _statistics(norm)
        require(
            not _same(now, start),
            f"{setting}: after a forward pass the batch has not counted yet.\nThere need not be a "
            "backward pass: which of the two runs has to count?",
        )
        require(
            _same(now, once),
            f"{setting}: a forward pass alone counts the batch otherwise than a plain BN "
            "does.\nThe first run should know nothing of a second one: what did you change for "
            "it?",
        )
        _backward(output, name)
        now = _statistics(norm)
        require(
            not _same(now, _counted(once, batches[0], momentum)),
            f"{setting}: the batch counts twice, in the forward pass and in the backward "
            "pass.\nLet it print something before and after the repetition: is it all printed?",
        )
        require(
            not _same(now[:2], once[:2]) or _same(now, once),
            f"{setting}: running_mean and running_var are right, and num_batches_tracked is "
            f"{int(now[2])} after one batch.\nBN keeps three statistics: which one has your cure "
            "left out?",
        )
        require(
            _same(now, once),
            f"{setting}: the backward pass changes the running statistics.\nCompare them before "
            "and after it.",
        )

        outputs, expected = [], once
        for batch in batches[1:]:
            outputs.append(_forward(answer, name, norm, conv, batch))
            expected = _counted(expected, batch, momentum)
        for output in outputs:
            _backward(output, name)
            require(
                _same(_statistics(norm), expected),
                f"{setting}: after two forward passes and then a backward pass the statistics are "
                "wrong.\nWhat has to be put back is what was there when the repetition *began*.",
            )
    norm, conv = _parts()
    norm.eval()
    start = _statistics(norm)
    _backward(_forward(answer, name, norm, conv, _features(gradient=True)), name)
    require(
        _same(_statistics(norm), start),
        f"{name}: a batch counts in evaluation mode.\nLook for what sets the mode.",
    )
    return f"{name} counts every batch once, in training only"


class _Interrupted(Exception):
    """What a repetition is interrupted by."""


def _require_errors_pass(answer: Any, name: str) -> None:
    """Require that an error of the repetition is seen, and that the BN is then as it was."""
    norm, conv = _parts()
    output = _forward(answer, name, norm, conv, _features(gradient=True))
    before = _statistics(norm)

    def interrupt(*_: Any) -> None:
        raise _Interrupted

    conv.register_forward_pre_hook(interrupt)
    try:
        output.sum().backward()
        seen = False
    except Exception as error:
        seen = type(error) is _Interrupted
    require(
        seen,
        f"{name} keeps an error of the repetition from whoever runs the backward pass."
        "\nLook for except, and for return inside finally.",
    )
    require(
        _same(_statistics(norm), before),
        f"{name} does not put the statistics back when the repetition stops with an error.\n"
        "What belongs into finally?",
    )


class _Reader(nn.Module):
    """The answer as a module that reads one tensor."""

    def __init__(self, answer: Any, norm: nn.BatchNorm2d, conv: nn.Conv2d) -> None:
        super().__init__()
        self.answer, self.norm, self.conv = answer, norm, conv

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.norm, self.conv, *x.split(_WIDTHS, dim=1))


@as_check
def repeated_gradient(answer: Any) -> str:
    """The repetition computes what the first run computed."""
    name = require_own(answer, FunctionType)
    for training in (True, False):
        norm, conv = _parts()
        norm.train(training)
        what = f"{name} in {'training' if training else 'evaluation'} mode"
        x, right = random_maps(3, _READS, 4, 4), partial(_mixed, norm, conv)
        trial = copy.deepcopy((norm, conv))
        _backward(_forward(answer, what, *trial, list(x.split(_WIDTHS, dim=1))), what)
        require_values(
            call_answer(what, _Reader(answer, *copy.deepcopy((norm, conv))), x),
            right(x),
            what,
            {},
            "the output is wrong.\nConcatenation, BN, ReLU, convolution: compare with the function "
            "that you copied.",
        )
        require_gradients(_Reader(answer, norm, conv), x, right, what)
    norm, conv = _parts()
    require_everywhere(_Reader(answer, norm, conv), partial(_mixed, norm, conv), _READS)
    return f"{name} gives the right output and gradients, in both modes"


@as_check
def read_stored(answer: Any) -> str:
    """The part is still checkpointed."""
    name = require_own(answer, FunctionType)
    (norm, conv), features = _parts(), _features(gradient=True)
    tensors = _recorded(lambda: _forward(answer, name, norm, conv, features))
    new = _maps(_different(tensors, [*conv.parameters(), *features]))
    require(
        new == 0,
        f"{name} stores {new} maps besides those that it reads.\nThe trap is gone if nothing is "
        "checkpointed, and so is what checkpointing was for.",
    )
    return f"{name} still stores nothing but what it reads"


@as_check
def read_side_effects(answer: Any) -> str:
    """After the backward pass the BN is as it was, but for what it has counted."""
    name = require_own(answer, FunctionType)
    (norm, conv), features = _parts(), _features(gradient=True)
    buffers = dict(norm.named_buffers())
    settings = ("training", "momentum", "track_running_stats", "eps", "affine")
    originals = {setting: getattr(norm, setting) for setting in settings}
    for _ in range(2):
        _backward(_forward(answer, name, norm, conv, features), name)
    for setting, value in originals.items():
        require(
            getattr(norm, setting) == value,
            f"{name} leaves {setting}={getattr(norm, setting)!r} behind, where {value!r} was."
            "\nWhat is changed for the repetition has to be put back, however it ends.",
        )
    for key in _STATISTICS:
        require(
            dict(norm.named_buffers()).get(key) is buffers[key],
            f"{name} leaves another tensor behind as {key}.\nOthers may hold the one that was "
            "there: a copy is for the repetition only.",
        )
    _require_errors_pass(answer, name)
    return f"{name} leaves the BN as it was"


# --- BN's backward pass --------------------------------------------------------------------------


def _mean(maps: Tensor, dim: int | tuple[int, ...] = (0, 2, 3)) -> Tensor:
    return maps.mean(dim=dim, keepdim=True)


def _case(shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Return a BN's inputs, what is stored of it, and autograd's gradients of a formula by hand."""
    x = (random_maps(*shape) * 3 + random_maps(1, shape[1], 1, 1)).requires_grad_()
    gamma, beta = random_maps(2, shape[1])
    gamma[1:3] = beta[1:2] = 0  # what the ReLU reads is exactly 0: it lets no gradient through
    gamma.requires_grad_()
    beta.requires_grad_()
    grad = random_maps(*shape) + 0.5  # a mean that is not 0, or its term would hardly show
    centred = x - _mean(x)
    inverse = 1 / torch.sqrt(_mean(centred**2) + 0.1)
    x_hat = centred * inverse
    y = x_hat * gamma[:, None, None] + beta[:, None, None]
    case = {"x_hat": x_hat, "inverse": inverse.flatten(), "gamma": gamma, "beta": beta}
    for name, output in (("plain", y), ("relu", torch.relu(y))):
        gradients = torch.autograd.grad(output, (x, gamma, beta), grad, retain_graph=True)
        case |= {f"{name} {n}": g for n, g in zip(_GRADIENTS, gradients, strict=True)}
    return {"grad": grad} | {key: tensor.detach().clone() for key, tensor in case.items()}


_GRADIENTS = ("grad_x", "grad_gamma", "grad_beta")
_SHAPES = ((3, 4, 5, 2), (2, 1, 3, 3), (5, 6, 1, 2))


def _call(answer: Any, names: Sequence[str], case: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Call the answer; require three tensors of the right shapes, and inputs left alone."""
    name = require_own(answer, FunctionType)
    arguments = [case[key].clone() for key in names]
    what = f"{name} for maps of shape {tuple(case['grad'].shape)}"
    hint = "inverse, gamma and beta have one number a channel: over which axes must they spread?"
    value = call_answer(what, answer, *arguments, hint=hint)
    with torch.inference_mode():  # where autograd does not work, and formulas do
        call_answer(
            f"{name} without autograd",
            answer,
            *(argument.clone() for argument in arguments),
            hint="The question asks for the formula: look for torch.autograd, backward() and grad.",
        )
    hint = "Is a `return` missing?" if value is None else "Return grad_x, grad_gamma, grad_beta."
    require(
        isinstance(value, tuple | list) and len(value) == 3,
        f"{what} gives a {type(value).__name__}, not three tensors.\n{hint}",
    )
    maps, channels = tuple(case["grad"].shape), (case["grad"].shape[1],)
    for tensor, part, shape in zip(value, _GRADIENTS, (maps, channels, channels), strict=True):
        tensor = require_tensor(tensor, f"{part} of {what}")
        require(
            tuple(tensor.shape) == shape and tensor.dtype == case["grad"].dtype,
            f"{part} of {what} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}.\nA "
            "gradient has the shape and dtype of what it is the gradient of: one number for each "
            "of its numbers.",
        )
    return tuple(value)


@as_check
def normalisation_gradients_shape(answer: Any) -> str:
    """A gradient has the shape of what it is the gradient of; nothing given is changed."""
    for shape in _SHAPES:
        _call(answer, ("grad", "x_hat", "inverse", "gamma"), _case(shape))
    return f"{name_of(answer)} gives three gradients of the right shapes, and changes nothing"


def _sum_mistakes(grad: Tensor, x_hat: Tensor) -> dict[str, Tensor | list[Tensor]]:
    """What comes out for γ or β when something else is summed, by the message for it."""
    product, pixels = grad * x_hat, (0, 2, 3)
    means = [grad.mean(dim=pixels), product.mean(dim=pixels)]
    return {
        "it is a mean over the pixels.\nEvery pixel adds its share.": means,
        "each pixel adds its incoming gradient alone.\nIn y = γ x̂ + β, by how much does y move "
        "when γ moves a little?": grad.sum(dim=pixels),
        "each pixel adds its incoming gradient times x̂.\nIn y = γ x̂ + β, by how much does y move "
        "when β moves a little?": product.sum(dim=pixels),
    }


def _without_means(total: Tensor, x_hat: Tensor, dim: int | tuple[int, ...] = (0, 2, 3)) -> Tensor:
    """The chapter's formula without 1/σ."""
    return total - _mean(total, dim) - x_hat * _mean(total * x_hat, dim)


def _gradients(case: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """The three gradients by the chapter's formula."""
    x_hat, pixels = case["x_hat"], (0, 2, 3)
    gamma, inverse = (case[key][:, None, None] for key in ("gamma", "inverse"))
    values = (
        _without_means(gamma * grad, x_hat) * inverse,
        (grad * x_hat).sum(dim=pixels),
        grad.sum(dim=pixels),
    )
    return dict(zip(_GRADIENTS, values, strict=True))


def _require_in_both_dtypes(answer: Any, names: Sequence[str]) -> None:
    def right(*given: Tensor) -> list[Tensor]:
        case = dict(zip(names, given, strict=True))
        grad = case["grad"]
        if "beta" in case:
            gamma, beta = (case[key][:, None, None] for key in ("gamma", "beta"))
            grad = grad * (gamma * case["x_hat"] + beta > 0)
        return list(_gradients(case, grad).values())

    cases = [tuple(case[name] for name in names) for case in map(_case, _SHAPES[:2])]
    require_for_all(answer, right, cases, differentiable=False)


def _wrong_grad_x(case: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """What comes out when a term is forgotten or confused, by the message for it."""
    x_hat, n = case["x_hat"], grad[:, 0].numel()
    gamma, inverse = (case[key][:, None, None] for key in ("gamma", "inverse"))
    total = gamma * grad
    first, second = _mean(total), x_hat * _mean(total * x_hat)
    right, plain = total - first - second, _without_means(grad, x_hat)
    gradient_of_total = "\nThe gradient of x̂ is not that of y: what lies between them?"
    unscaled = {
        "μ and σ are taken for constants, as in evaluation mode.\nIn training they move with x: "
        "which two terms come of that?": total,
        "only the mean's movement is taken into account.\nWhat else moves with x?": total - first,
        "only the deviation's movement is taken into account.\nWhat else moves with x?": total
        - second,
        "sums stand where means should.\nLook at dμ in the derivation: each pixel moves the mean "
        "by how much?": total - n * (first + second),
        "1/σ is missing.\nIn which unit is x, and in which is x̂?": right / inverse,
        "it is multiplied by σ.\nWhich of σ and 1/σ is the argument `inverse`?": right / inverse**2,
        f"γ is missing.{gradient_of_total}": plain,
        f"γ is missing in the means.{gradient_of_total}": total - grad + plain,
        f"γ is multiplied twice.{gradient_of_total}": gamma * right,
        "the two terms have the wrong sign.\nThe mean goes along when x moves: is x - μ then "
        "larger or smaller for it?": total + first + second,
        "the last term is the same at all pixels.\nHow far a pixel is from the mean decides how "
        "much σ concerns it.": total - first - _mean(total * x_hat),
        "the last mean is taken of the gradient alone.\nHow does σ move when x does? Look at "
        "dσ.": total - first - x_hat * first,
        "the sums are divided by n - 1.\nOnly the running variance is unbiased: which one "
        "normalises?": total - (first + second) * n / (n - 1),
        "each image has its own means.\nBN's μ and σ are those of the whole batch.": _without_means(
            total, x_hat, dim=(2, 3)
        ),
        "each pixel has its own means.\nBN's μ and σ are those of a whole map.": _without_means(
            total, x_hat, dim=0
        ),
    }
    return {message: wrong * inverse for message, wrong in unscaled.items()}


@as_check
def normalisation_gradients_values(answer: Any) -> str:
    """The three gradients are autograd's."""
    name = name_of(answer)
    for shape in _SHAPES:
        case = _case(shape)
        grad_x, grad_gamma, grad_beta = _call(answer, ("grad", "x_hat", "inverse", "gamma"), case)
        for value, part in ((grad_beta, "grad_beta"), (grad_gamma, "grad_gamma")):
            require_values(
                value,
                case[f"plain {part}"],
                f"{part} of {name}",
                _sum_mistakes(case["grad"], case["x_hat"]),
                "the values are wrong.\nIn y = γ x̂ + β, by how much does y move, at each pixel of "
                "each image?",
            )
        require_values(
            grad_x,
            case["plain grad_x"],
            f"grad_x of {name}",
            _wrong_grad_x(case, case["grad"]),
            "the values are wrong.\nFirst the gradient of x̂, then the chapter's formula, term by "
            "term.",
        )
    _require_in_both_dtypes(answer, ("grad", "x_hat", "inverse", "gamma"))
    return f"{name} gives autograd's gradients of x, γ and β"


@as_check
def activated_gradients_values(answer: Any) -> str:
    """With a ReLU behind, the gradients are autograd's, too."""
    name = name_of(answer)
    for shape in _SHAPES:
        case = _case(shape)
        values = _call(answer, ("grad", "x_hat", "inverse", "gamma", "beta"), case)
        gamma, beta = (case[key][:, None, None] for key in ("gamma", "beta"))
        grad, scaled = case["grad"], gamma * case["x_hat"]
        y = scaled + beta
        masks = {
            "the ReLU is not there.\nWhere it gave 0, which gradient comes "
            "through?": torch.ones_like(y),
            "it is taken for open where x̂ is positive.\nWhat does the ReLU read?": case["x_hat"]
            > 0,
            "it is taken for open where γ x̂ is positive.\nWhat does the ReLU read?": scaled > 0,
            "it is open where it should be shut.\nLook at the comparison.": y < 0,
            "the gradient is multiplied by the ReLU's output.\nWhat is its slope?": y.clamp(min=0),
            "the gradient itself is cut off where it is negative.\nThe ReLU cut off maps, in the "
            "forward pass: which?": grad > 0,
        }
        wrong = {message: _gradients(case, grad * mask) for message, mask in masks.items()}
        for part, value in zip(_GRADIENTS, values, strict=True):
            require_values(
                value,
                case[f"relu {part}"],
                f"{part} of {name}",
                {message: gradients[part] for message, gradients in wrong.items()},
                "the values are wrong.\nFirst the ReLU's own backward pass, then that of BN with "
                "what has come through.",
            )
    _require_in_both_dtypes(answer, ("grad", "x_hat", "inverse", "gamma", "beta"))
    return f"{name} needs nothing but x̂ for BN and ReLU together"
