"""The checks that the exercises call: each looks at one property and says what went wrong.

A check takes the reader's own class or function. It prints a line that starts with ✓, or raises
``AssertionError`` with a message that names the likely misconception and where to look, and never
the answer. What an answer should do is computed here by hand, with neither the answer's code nor
the package's layers. Checks compare real tensors and real integers only: an object of another
type, which could claim to equal anything, is refused.

A new check is a function that takes the answer, raises through :func:`_require` and returns what
it found to be right; the decorator :func:`_check` does the rest.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from densenet_from_scratch.dense import DenseLayer
from densenet_from_scratch.measure import count_parameters
from densenet_from_scratch.plain import PlainLayer, PlainNet
from densenet_from_scratch.residual import ResidualLayer

_NOT_WRITTEN = "your code is still missing: look for `raise NotImplementedError` in the cell above."

# --- What every check is made of -----------------------------------------------------------------


def _check(test: Callable[[Any], str]) -> Callable[[Any], None]:
    """Make a check of a test: run it in a clean setting, print what it returns after a ✓."""

    @functools.wraps(test)
    def check(answer: Any) -> None:
        __tracebackhide__ = True  # IPython then shows the message without the frames in between
        failure: Exception
        # Neither the answer's warnings (nbgrader takes stderr for an error) nor the settings that
        # a notebook has changed may decide, and the notebook's random numbers stay as they were.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            try:
                print(f"✓ {test(answer)}")
                return
            except AssertionError as error:
                failure, cause = AssertionError(str(error)), error.__cause__
            except NotImplementedError:
                failure, cause = NotImplementedError(_NOT_WRITTEN), None
        raise failure from cause  # anew, so that the reader need not scroll past our own code

    return check


def _require(condition: bool, message: str) -> None:
    """Raise ``AssertionError``; unlike ``assert`` it also works under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def same_values(actual: Any, expected: Tensor) -> bool:
    """Say whether ``actual`` is a plain tensor with the shape, dtype and values of ``expected``.

    For hidden tests too: ``==``, ``.all()`` and ``torch.allclose`` on an object that a submission
    made can be overridden by it, since they ask the object; a type cannot.
    """
    return (
        type(actual) in (Tensor, nn.Parameter)
        and actual.shape == expected.shape
        and actual.dtype == expected.dtype
        and torch.allclose(actual, expected, rtol=1e-5, atol=1e-7)
    )


def same_number(actual: Any, expected: int) -> bool:
    """Say whether ``actual`` is an ``int``, and the right one; for hidden tests too."""
    return type(actual) is int and actual == expected


def _from_package(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] == __name__.split(".")[0]


def _require_own(answer: Any, kind: type, may_use: Sequence[type] = ()) -> str:
    """Require a class or function that the reader wrote; return its name."""
    if kind is FunctionType:
        _require(type(answer) is FunctionType, f"expected a function, got {type(answer).__name__}.")
        family: Iterable[Any] = (answer,)
    else:
        _require(
            isinstance(answer, type) and issubclass(answer, nn.Module),
            f"expected a class that inherits from nn.Module, got {type(answer).__name__}.",
        )
        family = answer.__mro__
    for thing in family:
        _require(
            not _from_package(thing) or thing in may_use,
            f"{answer.__name__} uses {thing.__name__} of the package densenet_from_scratch, and "
            "this exercise is about writing it yourself.\nLook for an import of it, above or in "
            "your cell: remove it and run the cell with your own code again.",
        )
    return answer.__name__


def _call(what: str, function: Callable[..., Any], *arguments: Any, hint: str = "") -> Any:
    """Call the answer; say what was tried if it fails. A stub's error stays as it is."""
    try:
        return function(*arguments)
    except Exception as error:
        if type(error) is NotImplementedError and not error.args:
            raise
        text = f"{what} stopped with {type(error).__name__}: {error}"
        raise AssertionError(f"{text}\n{hint}" if hint else text) from error


def _build(
    answer: Any, *arguments: int, may_use: Sequence[type] = (), random: bool = True
) -> nn.Module:
    """Build the reader's module in float64, by default with random weights and statistics.

    A fresh BatchNorm has weight 1, bias 0, mean 0 and variance 1, which hide mistakes.
    """
    name = _require_own(answer, nn.Module, may_use)
    module = _call(f"{name}{arguments}", answer, *arguments)
    for part in module.modules():
        _require(
            not _from_package(type(part)) or type(part) in may_use,
            f"{name} is built from {type(part).__name__} of the package densenet_from_scratch, "
            "and this exercise is about writing it yourself.\nLook at what __init__ creates.",
        )
    module.double()
    if random:
        with torch.no_grad():
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d):
                    for statistic in (part.running_mean, part.running_var):
                        if statistic is not None:
                            statistic.uniform_(0.5, 2.0)
            for parameter in module.parameters():
                parameter.normal_()
    return module


def _maps(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def _require_tensor(value: Any, what: str) -> Tensor:
    """Require a real tensor, not an object that says it equals one."""
    hint = "Is a `return` missing?" if value is None else "Return a plain torch.Tensor."
    _require(
        type(value) in (Tensor, nn.Parameter), f"{what} gives a {type(value).__name__}.\n{hint}"
    )
    return value


def _require_values(
    value: Any,
    expected: Tensor,
    what: str,
    mistakes: Sequence[tuple[Tensor, str]],
    otherwise: str,
) -> None:
    """Require the expected values; if they are those of a known mistake, say which."""
    value = _require_tensor(value, what)
    if same_values(value, expected):
        return
    for wrong, message in mistakes:
        # A mistake that happens to give the right values here cannot be told apart: skip it.
        if same_values(value, wrong) and not same_values(wrong, expected):
            raise AssertionError(f"{what}: {message}")
    raise AssertionError(f"{what}: {otherwise}")


def _require_shape(
    value: Any, expected: tuple[int, ...], what: str, mistakes: Mapping[tuple[int, ...], str]
) -> None:
    shape = tuple(_require_tensor(value, what).shape)
    hint = mistakes.get(shape, "Look at which axis is which: (N, C, H, W).")
    _require(shape == expected, f"{what} has shape {shape}, which is not as asked.\n{hint}")


def _require_numbers(
    function: Any,
    expected: Callable[..., int],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Sequence[tuple[Callable[..., int], str]],
    otherwise: str,
) -> str:
    """Require integers for every case; if all are those of one known mistake, say which."""
    name = _require_own(function, FunctionType)
    texts = [f"{name}({', '.join(map(str, case))})" for case in cases]
    values = [
        _call(text, function, *case, hint="Look at the line that the traceback above points to.")
        for text, case in zip(texts, cases, strict=True)
    ]
    for text, value in zip(texts, values, strict=True):
        hint = "Is a `return` missing?" if value is None else "A count is a Python int: // not /."
        _require(type(value) is int, f"{text} gives a {type(value).__name__}.\n{hint}")
    right = [expected(*case) for case in cases]
    for wrong, message in mistakes:
        if values != right and values == [wrong(*case) for case in cases]:
            raise AssertionError(f"{name}: {message}")
    for text, value, number in zip(texts, values, right, strict=True):
        _require(value == number, f"{text} gives {value}, which is wrong.\n{otherwise}")
    return name


# --- Layers worked out by hand -------------------------------------------------------------------


def _normalise(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch normalisation by its definition."""
    if norm.training:
        mean = x.mean(dim=(0, 2, 3))
        variance = ((x - mean[:, None, None]) ** 2).mean(dim=(0, 2, 3))
    else:
        assert norm.running_mean is not None and norm.running_var is not None
        mean, variance = norm.running_mean, norm.running_var
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    return (x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3×3 convolution with padding 1 as the sum of its nine shifted 1×1 convolutions."""
    height, width = x.shape[2:]
    padded = F.pad(x, (1, 1, 1, 1))
    result = torch.zeros(())
    for i in range(3):
        for j in range(3):
            shifted = padded[:, :, i : i + height, j : j + width]
            result = result + torch.einsum("oc,nchw->nohw", conv.weight[:, :, i, j], shifted)
    return result


def _branch(norm: nn.BatchNorm2d, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """H_l: batch normalisation, ReLU, convolution."""
    return _convolve(conv, _normalise(norm, x).clamp(min=0))


@dataclass(frozen=True)
class _Layer:
    """What the checks of a layer need to know of it: arguments, widths, names of its parts."""

    arguments: tuple[int, ...]
    reads: int
    makes: int
    norm: str = "norm"
    conv: str = "conv"
    adds_input: bool = False
    may_use: tuple[type[nn.Module], ...] = ()

    def build(self, answer: Any, random: bool = True) -> nn.Module:
        return _build(answer, *self.arguments, may_use=self.may_use, random=random)

    def parts(self, layer: nn.Module) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
        """Require that ``layer`` has the two parts, and that they are what was asked for."""
        name = type(layer).__name__
        for part, kind in ((self.norm, nn.BatchNorm2d), (self.conv, nn.Conv2d)):
            _require(
                type(getattr(layer, part, None)) is kind,
                f"{name} has no {kind.__name__} called self.{part}.\n"
                "Look at the names in the question: the checks and later code read them.",
            )
        norm, conv = getattr(layer, self.norm), getattr(layer, self.conv)
        _require(
            norm.num_features == self.reads,
            f"{name}: self.{self.norm} is made for {norm.num_features} maps.\nIt comes first, so "
            "it has one scale and one shift for each map that *enters* the layer.",
        )
        _require(
            (conv.in_channels, conv.out_channels) == (self.reads, self.makes),
            f"{name}: self.{self.conv} goes from {conv.in_channels} to {conv.out_channels} maps."
            "\nLook at what the layer reads and what it makes, and at the order of Conv2d's "
            "first two arguments.",
        )
        _require(
            conv.kernel_size == (3, 3),
            f"{name}: the kernel of self.{self.conv} is {conv.kernel_size}, not 3×3.",
        )
        _require(
            conv.padding in ((1, 1), "same") and conv.stride == (1, 1),
            f"{name}: self.{self.conv} changes the height and width of the maps.\nA 3×3 kernel "
            "without padding has no neighbours at the border, so each layer loses a ring of "
            "pixels; look at padding and stride.",
        )
        _require(
            norm.affine
            and norm.track_running_stats
            and (conv.groups, conv.dilation, conv.padding_mode) == (1, (1, 1), "zeros"),
            f"{name}: self.{self.norm} and self.{self.conv} have unusual settings.\nLeave the "
            "arguments that the question does not name at their defaults.",
        )
        _require(
            conv.bias is None,
            f"{name}: self.{self.conv} has a bias.\nThe next batch normalisation subtracts the "
            "mean, and any constant with it: look at Conv2d's argument bias.",
        )
        return norm, conv

    def expected(self, layer: nn.Module, x: Tensor) -> Tensor:
        y = _branch(*self.parts(layer), x)
        return x + y if self.adds_input else y

    def mistakes(self, layer: nn.Module, x: Tensor) -> list[tuple[Tensor, str]]:
        """What a layer gives that confuses something, and the message for it."""
        norm, conv = self.parts(layer)
        normed, right = _normalise(norm, x), _branch(norm, conv, x)
        found = [
            (
                _convolve(conv, _normalise(norm, x.clamp(min=0))),
                "ReLU comes before the batch normalisation, so that it cuts off raw maps and the "
                "normalisation puts negative values back.\nCompare the order in forward with the "
                "name BN-ReLU-conv.",
            ),
            (
                _convolve(conv, normed),
                "there is no ReLU: without it a stack of layers is one linear map.\nLook at what "
                "lies between the two parts.",
            ),
            (
                _convolve(conv, x.clamp(min=0)),
                "the batch normalisation is not used.\nLook at what the ReLU reads.",
            ),
            (
                _convolve(conv, normed).clamp(min=0),
                "ReLU comes last, after the convolution.\nCompare the order in forward with the "
                "name BN-ReLU-conv.",
            ),
            (
                right.clamp(min=0),
                "there is a second ReLU, after the convolution.\nThe next layer cuts off after "
                "its own normalisation: compare forward with the name BN-ReLU-conv.",
            ),
        ]
        if self.reads == self.makes:
            later = _normalise(norm, _convolve(conv, x))
            message = (
                "the convolution comes first.\nThat is the older order, conv-BN-ReLU; compare it "
                "with the name BN-ReLU-conv."
            )
            found += [(later.clamp(min=0), message), (later, message)]
        if self.adds_input:
            untouched = "\nLook at whether the name x still means the input when you add it."
            return [(x + wrong, message) for wrong, message in found] + [
                (
                    right,
                    "the shortcut is missing: this is a plain layer.\nLook at both terms of "
                    "x_l = H_l(x_{l-1}) + x_{l-1}.",
                ),
                (
                    (right + x).clamp(min=0),
                    "a ReLU follows the sum, so that no negative value passes and the identity "
                    "path is no identity.\nLook at the last thing forward does.",
                ),
                (
                    right + normed.clamp(min=0),
                    f"what is added is x after batch normalisation and ReLU.{untouched}",
                ),
                (right + normed, f"what is added is x after batch normalisation.{untouched}"),
                (right + x.clamp(min=0), f"what is added is x after a ReLU.{untouched}"),
                (
                    right + 2 * x,
                    "the input is added twice.\nIf your class inherits from another, look at "
                    "what that one's forward already does.",
                ),
            ]
        if self.reads == self.makes:
            message = (
                "the layer adds its input to its output.\nThat is a residual layer; look at the "
                "equation of this one."
            )
            found.append((right + x, message))
        return found


def _layer_parts(answer: Any, spec: _Layer) -> str:
    layer = spec.build(answer)
    name = type(layer).__name__
    spec.parts(layer)
    _require(
        count_parameters(layer) == 2 * spec.reads + 9 * spec.reads * spec.makes,
        f"{name}{spec.arguments} has {count_parameters(layer)} parameters, more than its "
        "normalisation and its convolution need.\nLook for a part that forward does not use.",
    )
    return f"{name} has the right parts, and no parameter more"


def _layer_shape(answer: Any, spec: _Layer) -> str:
    layer = spec.build(answer)
    name = type(layer).__name__
    mistakes: dict[tuple[int, ...], str] = {
        (2, spec.makes, 3, 5): "Both sides are 2 pixels short, as if the border had no "
        "neighbours: look at the padding.",
        (2, spec.reads + spec.makes, 5, 7): "There are more maps, as if the input were "
        "concatenated to the output: look at what forward returns.",
    }
    x = _maps(2, spec.reads, 5, 7)
    y = _call(f"{name}{spec.arguments}", layer, x)
    _require_shape(y, (2, spec.makes, 5, 7), f"The output of {name}{spec.arguments}", mistakes)
    for dtype in (torch.float64, torch.float32):
        y = _call(f"{name}{spec.arguments} in {dtype}", layer.to(dtype), x.to(dtype))
        _require(
            y.dtype == dtype,
            f"{name} turns {dtype} into {y.dtype}.\nLook for a tensor that forward makes or casts "
            "itself instead of computing it from x.",
        )
    return f"{name} gives maps of the right number, size and dtype"


def _layer_values(answer: Any, spec: _Layer) -> str:
    layer = spec.build(answer)
    name = type(layer).__name__
    for training in (True, False):
        layer.train(training)
        x = _maps(3, spec.reads, 4, 5)
        expected, mistakes = spec.expected(layer, x), spec.mistakes(layer, x)
        what = f"{name} in {'training' if training else 'evaluation'} mode"
        y = _call(what, layer, x)
        otherwise = (
            "the values are wrong.\nWrite its equation in words, then look at forward: which "
            "part reads which, in which order, and does each run once?"
            if training
            else "the values are wrong, though they are right in training mode.\nHere the "
            "normalisation uses its stored statistics: look at whether you call the module."
        )
        _require_values(y, expected, what, mistakes, otherwise)
    return f"{name} computes what its equation says, in training and in evaluation mode"


def _layer_side_effects(answer: Any, spec: _Layer) -> str:
    layer = spec.build(answer)
    name = type(layer).__name__
    norm, _ = spec.parts(layer)
    x = _maps(2, spec.reads, 4, 4)
    before = x.clone()
    with torch.no_grad():
        _call(f"{name}{spec.arguments}", layer, x)
    _require(
        same_values(x, before),
        f"{name} changes the tensor that it was given.\nSomebody else may still read it: look "
        "for +=, inplace=True, and methods that end in an underscore.",
    )
    assert norm.num_batches_tracked is not None  # parts() has made sure that it keeps statistics
    updates = int(norm.num_batches_tracked)
    _require(
        updates <= 1,
        f"{name} updates the statistics of self.{spec.norm} {updates} times in one pass.\n"
        "Look at how often forward calls it: H_l is computed once.",
    )
    return f"{name} leaves its input alone and runs its branch once"


def _require_gradients(
    module: nn.Module, x: Tensor, expected: Callable[[Tensor], Tensor], what: str
) -> None:
    """Require the gradients of the input and of every parameter that autograd gets by hand."""
    sources = {"the input": x.requires_grad_()} | dict(module.named_parameters())
    reference = expected(x)
    weights = torch.randn_like(reference)
    right = torch.autograd.grad((reference * weights).sum(), list(sources.values()))
    in_place = "If it speaks of an in-place operation: look for += and inplace=True in forward."
    y = _require_tensor(_call(what, module, x, hint=in_place), what)
    _require(
        y.requires_grad,
        f"{what}: no gradient can flow back from the output.\nLook for what cuts the graph: "
        "detach(), .data, torch.no_grad(), numpy, torch.tensor(...).",
    )
    gradients = _call(
        f"The backward pass of {what}",
        lambda: torch.autograd.grad((y * weights).sum(), list(sources.values()), allow_unused=True),
        hint=in_place,
    )
    for name, gradient, value in zip(sources, gradients, right, strict=True):
        _require(
            gradient is not None,
            f"{what}: {name} gets no gradient, so training would never use it.\nLook for what "
            "cuts its path to the output: detach(), .data, torch.no_grad(), or a part unused.",
        )
        _require(
            same_values(gradient, value),
            f"{what}: the gradient of {name} is wrong.\nIf the values are right, part of the path "
            "is cut: look for detach(), .data and torch.no_grad().",
        )


def _layer_gradient(answer: Any, spec: _Layer) -> str:
    layer = spec.build(answer)
    name = type(layer).__name__
    x = _maps(2, spec.reads, 4, 4)
    _require_gradients(layer, x, lambda x: spec.expected(layer, x), f"{name}{spec.arguments}")
    return f"Gradients flow back through {name} to its input and to every parameter"


def _layer_list(stack: nn.Module, num_layers: int) -> list[nn.Module]:
    """Require that ``stack.layers`` is a ModuleList of that many layers; return them."""
    name, layers = type(stack).__name__, getattr(stack, "layers", None)
    _require(
        type(layers) is not list,
        f"{name}: self.layers is a Python list, and PyTorch does not look for parameters there."
        "\nLook at which of PyTorch's containers holds a list of modules.",
    )
    _require(
        isinstance(layers, nn.ModuleList | nn.Sequential),
        f"{name} has no nn.ModuleList called self.layers.\nLook at the name in the question.",
    )
    assert isinstance(layers, nn.ModuleList | nn.Sequential)
    _require(
        len(layers) == num_layers,
        f"{name}: self.layers holds {len(layers)} layers where {num_layers} were asked for.",
    )
    return list(layers)


def _require_separate(layers: Sequence[nn.Module], name: str) -> None:
    """Require layers that share no parameter and did not start as copies of each other."""
    owners = [id(parameter) for layer in layers for parameter in layer.parameters()]
    _require(
        len(set(owners)) == len(owners),
        f"{name}: layers share parameters: several entries of self.layers are one and the same "
        "object.\nLook at how often a layer is *created*: once, or once for each place?",
    )
    firsts = [max(layer.parameters(), key=Tensor.numel) for layer in layers]
    _require(
        not any(torch.equal(firsts[0], other) for other in firsts[1:]),
        f"{name}: all layers start from the same weights, as if they were copies of one.\nLook "
        "at how each of them is created.",
    )


# --- Chapter 1: plain networks -------------------------------------------------------------------

_PLAIN = _Layer(arguments=(4,), reads=4, makes=4)


@_check
def plain_layer_parts(answer: Any) -> str:
    """The plain layer has a normalisation and a convolution, as asked, and nothing else."""
    return _layer_parts(answer, _PLAIN)


@_check
def plain_layer_shape(answer: Any) -> str:
    """The plain layer keeps the number and the size of the maps, and their dtype."""
    return _layer_shape(answer, _PLAIN)


@_check
def plain_layer_values(answer: Any) -> str:
    """The plain layer is BN-ReLU-conv, in training and in evaluation."""
    return _layer_values(answer, _PLAIN)


@_check
def plain_layer_side_effects(answer: Any) -> str:
    """The plain layer does not change its input, and runs once."""
    return _layer_side_effects(answer, _PLAIN)


@_check
def plain_layer_gradient(answer: Any) -> str:
    """Gradients flow through the plain layer."""
    return _layer_gradient(answer, _PLAIN)


def _plain_parameters(layers: int, channels: int, images: int, classes: int) -> int:
    with torch.device("meta"):
        return count_parameters(PlainNet(layers, channels, images, classes))


@_check
def plain_parameters(answer: Any) -> str:
    """The formula gives the number of parameters of a plain network."""
    right = _plain_parameters
    name = _require_numbers(
        answer,
        right,
        [(1, 1, 1, 2), (3, 4, 1, 10), (5, 8, 3, 7), (2, 16, 3, 100)],
        [
            (
                lambda n, c, i, k: right(n, c, i, k) + (n + 1) * c,
                "a bias is counted for each 3×3 convolution.\nLook at how PlainLayer and the stem "
                "make theirs.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) + n * c,
                "a bias is counted for each layer's 3×3 convolution.\nLook at how PlainLayer makes "
                "its own.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) + 2 * (n + 1) * c,
                "running mean and variance are counted too.\nThey are buffers: the optimiser does "
                "not learn them. Look at what a BatchNorm has to learn for each map.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) - (n + 1) * c,
                "one number is counted for each map of a batch normalisation.\nLook at what it "
                "does after it has normalised.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) - 2 * (n + 1) * c,
                "the batch normalisations are not counted.\nLook at what each of them learns for "
                "each map.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) - 2 * c,
                "the last batch normalisation, before the classifier, is not counted.\nGo through "
                "the list of parts in the question.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) - k,
                "the bias of the classifier is not counted.\nLook at the parts of a linear layer.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) - (c + 1) * k,
                "the classifier is not counted.\nGo through the list of parts in the question.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) - 9 * i * c,
                "the stem is not counted.\nGo through the list of parts in the question.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) + 9 * (c - i) * c,
                "the stem is counted like a layer, from C maps to C maps.\nLook at how many "
                "channels the image has.",
            ),
            (
                lambda n, c, i, k: right(n, c, i, k) - 9 * n * c * (c - 1) - 9 * (i - 1) * c,
                "a convolution is counted with one 3×3 kernel for each map it makes.\nIt has one "
                "for each *pair* of a map read and a map made.",
            ),
        ],
        "Count part by part: the stem, one layer, the last normalisation, the classifier. Which "
        "of them have a bias?",
    )
    return f"{name} counts what a real network has"


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    # Backwards, from one output pixel to the pixels it sees.
    size = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides), strict=True):
        size = (size - 1) * stride + kernel
    return size


def _jumps(strides: Sequence[int], own: bool) -> list[int]:
    jumps, jump = [], 1
    for stride in strides:
        jumps.append(jump * stride if own else jump)
        jump *= stride
    return jumps


@_check
def receptive_field(answer: Any) -> str:
    """The formula gives the receptive field of a stack with any kernels and strides."""
    name = _require_numbers(
        answer,
        _receptive_field,
        [
            ([3], [1]),
            ([3, 3], [1, 1]),
            ([7, 3], [2, 1]),
            ([3, 2, 3, 1], [1, 2, 1, 2]),
            ([5, 3, 3, 3], [2, 2, 2, 1]),
        ],
        [
            (
                lambda k, s: 1 + sum(kernel - 1 for kernel in k),
                "the strides make no difference.\nAfter a stride of 2, neighbours in the next map "
                "are two pixels apart: by how much does a kernel then widen the view?",
            ),
            (
                lambda k, s: sum(k),
                "the kernel sizes are added up.\nTwo neighbouring windows overlap: by how much "
                "does a kernel of size 3 widen the view?",
            ),
            (
                lambda k, s: (
                    1 + sum((a - 1) * j for a, j in zip(k, _jumps(s, own=True), strict=True))
                ),
                "a layer's own stride already widens its own step.\nA stride spreads the outputs "
                "of its layer: which layers read them?",
            ),
            (
                lambda k, s: 1 + sum((a - 1) * b for a, b in zip(k, [1, *s[:-1]], strict=True)),
                "only the stride of the layer just before counts.\nLook at what two strides of 2 "
                "in a row do to the distance between neighbours.",
            ),
            (
                lambda k, s: 1 + sum((a - 1) * (sum(s[:i]) or 1) for i, a in enumerate(k)),
                "the strides before a layer are added up.\nLook at what two strides of 2 in a row "
                "do to the distance between neighbours.",
            ),
            (
                lambda k, s: _receptive_field(k, s) - 1,
                "the result is one too small.\nHow many pixels does a network without layers see?",
            ),
        ],
        "Draw it for this case: mark one pixel of the last map, then the pixels it reads, layer "
        "by layer back to the image.",
    )
    return f"{name} finds how many pixels wide the view is, strides included"


_STACK = (3, 4)  # layers, channels


@_check
def plain_stack_layers(answer: Any) -> str:
    """Every layer of the stack has weights of its own."""
    stack = _build(answer, *_STACK, may_use=(PlainLayer,), random=False)
    layers = _layer_list(stack, _STACK[0])
    for layer in layers:
        _PLAIN.parts(layer)
    _require_separate(layers, type(stack).__name__)
    _require(
        count_parameters(stack) == _STACK[0] * count_parameters(layers[0]),
        f"{type(stack).__name__} has parameters outside self.layers.\nMend only what is broken.",
    )
    return f"{type(stack).__name__} has as many separate layers as asked"


@_check
def plain_stack_values(answer: Any) -> str:
    """The stack runs every layer once, in order."""
    stack = _build(answer, *_STACK, may_use=(PlainLayer,))
    layers = _layer_list(stack, _STACK[0])
    x = _maps(2, _STACK[1], 4, 5)

    def through(order: Sequence[nn.Module]) -> Tensor:
        y = x
        for layer in order:
            y = _PLAIN.expected(layer, y)
        return y

    what = type(stack).__name__
    _require_values(
        _call(what, stack, x),
        through(layers),
        what,
        [
            (
                through([layers[0]] * _STACK[0]),
                "only the first layer runs, again and again.\nLook at what the loop in forward "
                "calls.",
            ),
            (
                through(layers[:-1]),
                "a layer is left out.\nLook at where the loop in forward ends.",
            ),
            (
                through(layers[:1]),
                "only one layer runs.\nLook at what each layer reads, and at where forward "
                "returns.",
            ),
            (
                through(layers[-1:]),
                "the last layer reads the input.\nLook at what each layer reads: the output of the "
                "one before.",
            ),
        ],
        "the values are wrong.\nLook at what each layer reads: x_l = H_l(x_{l-1}).",
    )
    return f"{what} runs each layer once, in order"


# --- Chapter 2: residual connections -------------------------------------------------------------

_RESIDUAL = replace(_PLAIN, adds_input=True, may_use=(PlainLayer,))


@_check
def residual_layer_parts(answer: Any) -> str:
    """The residual layer has the parts of a plain one: the shortcut costs no parameter."""
    return _layer_parts(answer, _RESIDUAL)


@_check
def residual_layer_shape(answer: Any) -> str:
    """The residual layer keeps the number and the size of the maps, and their dtype."""
    return _layer_shape(answer, _RESIDUAL)


@_check
def residual_layer_values(answer: Any) -> str:
    """The residual layer adds its input, untouched, to BN-ReLU-conv of it."""
    return _layer_values(answer, _RESIDUAL)


@_check
def residual_layer_side_effects(answer: Any) -> str:
    """The residual layer does not change its input, and runs its branch once."""
    return _layer_side_effects(answer, _RESIDUAL)


@_check
def residual_layer_gradient(answer: Any) -> str:
    """Gradients flow through the residual layer."""
    return _layer_gradient(answer, _RESIDUAL)


@_check
def branches(answer: Any) -> str:
    """The terms of the unrolled sum are the input and what each branch adds, and nothing else."""
    name = _require_own(answer, FunctionType)
    layers = [_build_plain(3).eval() for _ in range(3)]
    x = _maps(2, 3, 4, 4)
    states, terms, chain, parallel = [x], [x], [x], [x]
    for layer in layers:
        norm, conv = layer.norm, layer.conv
        parallel.append(_branch(norm, conv, x))
        chain.append(_branch(norm, conv, chain[-1]))
        terms.append(_branch(norm, conv, states[-1]))
        states.append(states[-1] + terms[-1])
    before = x.clone()
    result = _call(f"{name}(layers, x)", answer, layers, x)
    _require(
        same_values(x, before),
        f"{name} changes the tensor x that it was given.\nLook for +=: on a tensor it writes "
        "into the tensor itself.",
    )
    _require(
        type(result) in (list, tuple),
        f"{name} gives a {type(result).__name__}, not a list.\nThe question asks for the terms, "
        "not for their sum.",
    )
    _require(
        len(result) == len(terms),
        f"{name} gives {len(result)} terms for {len(layers)} layers.\nLook at the sum in the "
        "question: what stands before the branches, and is there one term for each of them?",
    )
    for index in range(len(terms)):
        _require_values(
            result[index],
            terms[index],
            f"Term {index} of {name}(layers, x)",
            [
                (
                    parallel[index],
                    "every branch reads the input, as if x_L were x_0 plus all H_l(x_0).\nLook at "
                    "what the layer before has already added by then.",
                ),
                (
                    chain[index],
                    "each branch reads only the branch before it, as in a plain network.\nH_l "
                    "reads x_{l-1}, which is a sum: of what?",
                ),
                (
                    states[index],
                    "this is x_l itself, and the sum of all x_l is far more than x_L.\nLook at "
                    "what each layer *adds*.",
                ),
            ],
            f"the values are wrong.\nWrite down what x_{index} is made of, and look at what your "
            "loop has in hand at that moment.",
        )
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
]


@_check
def shortcut_shape(answer: Any) -> str:
    """The shortcut without parameters has the shape that the branch has."""
    name = _require_own(answer, FunctionType)
    for shape, channels, stride in _SHORTCUTS:
        what = f"{name}(x, {channels}, {stride}) for x of shape {shape}"
        n, c, h, w = shape
        height, width = -(-h // stride), -(-w // stride)
        _require_shape(
            _call(what, answer, _maps(*shape), channels, stride),
            (n, channels, height, width),
            what,
            {
                (n, c, height, width): "The maps are fewer, but there are not as many as the "
                "branch makes: look at the channels.",
                (n, channels, h, w): "There are enough maps, but they are not smaller: look at "
                "the stride.",
                (n, c + channels, height, width): "There are too many maps: how many zeros are "
                "missing, and how many are there in the end?",
                (n, channels, h // stride, w // stride): "The last row and column are missing "
                "where the stride does not divide the size.",
                (n, c, height, width + channels - c): "The zeros are beside the pixels, not "
                "behind the maps.\nF.pad counts axes from the last: look at which pair is which.",
                (n, c, height + channels - c, width): "The zeros are below the pixels, not behind "
                "the maps.\nF.pad counts axes from the last: look at which pair is which.",
            },
        )
    for dtype in (torch.float32, torch.float64):
        y = _call(f"{name} in {dtype}", answer, torch.zeros(1, 2, 4, 4, dtype=dtype), 3, 2)
        _require(
            y.dtype == dtype,
            f"{name} turns {dtype} into {y.dtype}.\nLook at which dtype the zeros are made with.",
        )
    return f"{name} gives the shape that the branch has, and keeps the dtype"


@_check
def shortcut_values(answer: Any) -> str:
    """The shortcut keeps every stride-th pixel, then zero maps; gradients reach those pixels."""
    name = _require_own(answer, FunctionType)
    for shape, channels, stride in _SHORTCUTS:
        x = _maps(*shape).requires_grad_()
        what = f"{name}(x, {channels}, {stride}) for x of shape {shape}"
        result = _require_tensor(_call(what, answer, x, channels, stride), what)
        n, c, h, w = shape
        zeros = torch.zeros(n, channels - c, -(-h // stride), -(-w // stride), dtype=x.dtype)
        kept = x[:, :, ::stride, ::stride]
        mistakes = [
            (
                torch.cat([zeros, kept], dim=1),
                "the zero maps come first.\nLook at which side of the channel axis they are added "
                "to: map 0 of the input should stay map 0.",
            ),
            (
                torch.cat([F.avg_pool2d(x, stride, ceil_mode=True), zeros], dim=1),
                "pixels are averaged.\nThe question asks to *keep* every stride-th pixel, as the "
                "centre of a strided convolution does.",
            ),
            (
                torch.cat([F.max_pool2d(x, stride, ceil_mode=True), zeros], dim=1),
                "the largest of several pixels is taken.\nThe question asks to *keep* every "
                "stride-th pixel.",
            ),
        ]
        _require_values(
            result,
            torch.cat([kept, zeros], dim=1),
            what,
            mistakes,
            "the values are wrong.\nLook at row 0 and column 0: are they kept? And are the maps "
            "that were added all zero?",
        )
        _require(
            result.requires_grad,
            f"{what}: no gradient flows back.\nLook for detach(), .data, numpy, torch.no_grad().",
        )
    return f"{name} keeps the pixels it should and adds maps of zeros"


def _residual_stack(answer: Any) -> tuple[nn.Module, list[nn.Module]]:
    stack = _build(answer, *_STACK, may_use=(PlainLayer, ResidualLayer))
    return stack, _layer_list(stack, _STACK[0])


@_check
def residual_stack_identity(answer: Any) -> str:
    """With branches that give zero, the stack passes its input on."""
    stack, layers = _residual_stack(answer)
    with torch.no_grad():
        for layer in layers:
            _PLAIN.parts(layer)[1].weight.zero_()
    x = _maps(2, _STACK[1], 4, 4)
    what = f"{type(stack).__name__} with branches of zero"
    _require_values(
        _call(what, stack, x),
        x,
        what,
        [
            (
                x * 2 ** len(layers),
                "each layer doubles what it reads: the input is added twice.\nLook for both places "
                "that add it; one of them is in a class that you did not write.",
            ),
            (
                x * 0,
                "nothing is left of the input: now no place adds it.\nLook at who should.",
            ),
            (
                x.clamp(min=0),
                "what is negative is lost.\nLook for a ReLU on the identity path.",
            ),
        ],
        "the input does not come out as it went in.\nLook at what happens to x besides H_l(x).",
    )
    return f"{type(stack).__name__} passes its input on when the branches give zero"


@_check
def residual_stack_values(answer: Any) -> str:
    """The stack of residual layers computes x_l = H_l(x_{l-1}) + x_{l-1}."""
    stack, layers = _residual_stack(answer)
    x = _maps(2, _STACK[1], 4, 5)

    def through(times: float) -> Tensor:
        y = x
        for layer in layers:
            y = _PLAIN.expected(layer, y) + times * y
        return y

    what = type(stack).__name__
    _require_values(
        _call(what, stack, x),
        through(1),
        what,
        [
            (
                through(2),
                "the input is added twice in each layer.\nLook for both places that add it; one of "
                "them is in a class that you did not write.",
            ),
            (
                through(0),
                "the input is no longer added anywhere.\nLook at who should add it.",
            ),
        ],
        "the values are wrong.\nEach x_l is H_l(x_{l-1}) + x_{l-1}, neither term scaled: look at "
        "the loop in forward.",
    )
    return f"{what} computes H_l(x) + x in every layer"


# --- Chapter 3: dense connections ----------------------------------------------------------------

_DENSE = _Layer(arguments=(5, 3), reads=5, makes=3, norm="norm1", conv="conv1")


@_check
def dense_layer_parts(answer: Any) -> str:
    """The dense layer reads all maps and makes k; it has two parts and nothing else."""
    return _layer_parts(answer, _DENSE)


@_check
def dense_layer_shape(answer: Any) -> str:
    """The dense layer returns its k new maps, and only those."""
    return _layer_shape(answer, _DENSE)


@_check
def dense_layer_values(answer: Any) -> str:
    """The dense layer is BN-ReLU-conv, in training and in evaluation."""
    return _layer_values(answer, _DENSE)


@_check
def dense_layer_side_effects(answer: Any) -> str:
    """The dense layer does not change its input, and runs once."""
    return _layer_side_effects(answer, _DENSE)


@_check
def dense_layer_gradient(answer: Any) -> str:
    """Gradients flow through the dense layer."""
    return _layer_gradient(answer, _DENSE)


_BLOCK = (3, 5, 2)  # layers, maps that enter, growth rate


def _dense_block(answer: Any, random: bool = True) -> tuple[nn.Module, list[nn.Module]]:
    block = _build(answer, *_BLOCK, may_use=(DenseLayer,), random=random)
    return block, _layer_list(block, _BLOCK[0])


def _dense_outputs(layers: Sequence[nn.Module], x: Tensor, newest_first: bool) -> list[Tensor]:
    """The maps x_0, ..., x_L of a block, worked out by hand."""
    maps = [x]
    for layer in layers:
        read = torch.cat(maps[::-1] if newest_first else maps, dim=1)
        spec = replace(_DENSE, reads=read.shape[1], makes=_BLOCK[2])
        maps.append(spec.expected(layer, read))
    return maps


@_check
def dense_block_layers(answer: Any) -> str:
    """Layer l of the block reads k_0 + k(l - 1) maps and makes k; no two share weights."""
    block, layers = _dense_block(answer, random=False)
    name, (count, k0, k) = type(block).__name__, _BLOCK
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
    _require(widths == right, f"{name}{_BLOCK}: its layers are made for {widths} maps.\n{hint}")
    for layer, width in zip(layers, right, strict=True):
        replace(_DENSE, reads=width, makes=k).parts(layer)
    _require_separate(layers, name)
    _require(
        count_parameters(block) == sum(map(count_parameters, layers)),
        f"{name} has parameters outside self.layers.\nLook at what __init__ creates.",
    )
    return f"{name} has separate layers of the right widths"


_CONCATENATION = (
    "Look at the axis of torch.cat, which should be that of the maps in (N, C, H, W), and at "
    "what each layer reads."
)


@_check
def dense_block_shape(answer: Any) -> str:
    """The block returns k_0 + kL maps of the input's height and width."""
    block, _ = _dense_block(answer)
    name, (count, k0, k) = f"{type(block).__name__}{_BLOCK}", _BLOCK
    _require_shape(
        _call(name, block, _maps(2, k0, 6, 7), hint=_CONCATENATION),
        (2, k0 + k * count, 6, 7),
        f"The output of {name}",
        {
            (2, k * count, 6, 7): "The maps that entered the block are missing from what leaves "
            "it: x_0 is one of the things that the next part reads.",
            (2, k, 6, 7): "Only the last layer's maps leave the block.\nWhat comes next reads "
            "the maps of every layer.",
            (2, k0 + k * (count - 1), 6, 7): "The last layer's maps are missing from what leaves "
            "the block: look at what is concatenated at the end.",
        },
    )
    return f"{type(block).__name__} returns its input and every layer's maps"


@_check
def dense_block_values(answer: Any) -> str:
    """The block's maps are x_0, ..., x_L in order, each computed from all before it."""
    block, layers = _dense_block(answer)
    name = type(block).__name__
    x = _maps(2, _BLOCK[1], 4, 5)
    maps = _dense_outputs(layers, x, newest_first=False)
    back = _dense_outputs(layers, x, newest_first=True)
    order = (
        "the newest maps come first.\nEvery weight belongs to one map by its place, so the order "
        "matters: look at what stands first in torch.cat."
    )
    before = x.clone()
    y = _call(name, block, x, hint=_CONCATENATION)
    _require(
        same_values(x, before),
        f"{name} changes the tensor that it was given.\nLook for += and inplace=True.",
    )
    _require_values(
        y,
        torch.cat(maps, dim=1),
        name,
        [
            (
                torch.cat(back[::-1], dim=1),
                order,
            ),
            (
                torch.cat(maps[::-1], dim=1),
                order,
            ),
            (
                torch.cat(back, dim=1),
                "each layer reads the newest maps first, though the output is in order.\nLook at "
                "what stands first in the torch.cat that a layer reads.",
            ),
        ],
        "the values are wrong.\nLook at what each layer reads: the input and the maps of all "
        "layers before, in the order in which they were made.",
    )
    return f"{name} computes x_l = H_l([x_0, ..., x_(l-1)]) and keeps the order"


@_check
def dense_block_gradient(answer: Any) -> str:
    """Gradients flow through every connection of the block."""
    block, layers = _dense_block(answer)
    x = _maps(2, _BLOCK[1], 4, 4)
    name = type(block).__name__
    _require_gradients(
        block, x, lambda x: torch.cat(_dense_outputs(layers, x, newest_first=False), dim=1), name
    )
    return f"Gradients flow back through every connection of {name}"


@_check
def input_channels(answer: Any) -> str:
    """Layer l, counted from 1, reads k_0 + k(l - 1) maps."""
    name = _require_numbers(
        answer,
        lambda layer, k0, k: k0 + sum(k for _ in range(1, layer)),
        [(1, 16, 12), (2, 16, 12), (5, 3, 4), (40, 24, 32)],
        [
            (
                lambda layer, k0, k: k0 + k * layer,
                "layer l itself is counted among the layers before it.\nLook at the first layer: "
                "whose maps does it read?",
            ),
            (
                lambda layer, k0, k: k * (layer - 1),
                "the maps that enter the block are left out.\nLook at the first layer: it must "
                "read something.",
            ),
            (
                lambda layer, k0, k: k0 if layer == 1 else k,
                "only the layer just before is counted.\nA dense layer reads all layers before it.",
            ),
            (
                lambda layer, k0, k: k + k0 * (layer - 1),
                "k_0 and k have changed places.\nWhich of them enters once, and which once for "
                "each layer before?",
            ),
        ],
        "Write down what layers 1, 2 and 3 read, then look for the pattern.",
    )
    return f"{name} follows the widths of a block"


@_check
def connections(answer: Any) -> str:
    """A block of L layers has L(L + 1)/2 direct connections."""
    name = _require_numbers(
        answer,
        lambda count: sum(range(1, count + 1)),
        [(1,), (2,), (5,), (100,)],
        [
            (
                lambda count: count * (count - 1) // 2,
                "connections from the input of the block are left out.\nx_0 is read directly by "
                "every layer: look at the smallest block.",
            ),
            (
                lambda count: count,
                "the connections of a plain network are counted.\nHow many things does layer l of "
                "a dense block read directly?",
            ),
            (
                lambda count: count * (count + 1),
                "each connection is counted twice.\nIt has a direction: from an earlier layer to a "
                "later one.",
            ),
            (
                lambda count: count**2,
                "as many connections as pairs of layers in either direction are counted.\nA layer "
                "reads only what was made before it.",
            ),
            (
                lambda count: (count + 1) * (count + 2) // 2,
                "the block's output is counted as one more layer.\nThe question asks for what the "
                "L layers read.",
            ),
        ],
        "Draw blocks of 1, 2 and 3 layers with their input x_0 and count the arrows.",
    )
    return f"{name} counts every arrow of a block once"


def _block_parameters(count: int, k0: int, k: int) -> int:
    widths = [k0 + k * index for index in range(count)]
    return sum(2 * width + 9 * width * k for width in widths)


@_check
def block_parameters(answer: Any) -> str:
    """The formula gives the number of parameters of a block of basic layers."""
    right = _block_parameters
    name = _require_numbers(
        answer,
        right,
        [(1, 3, 2), (4, 16, 12), (7, 5, 4), (20, 16, 4)],
        [
            (
                lambda n, k0, k: sum(9 * k * (k0 + k * i) for i in range(n)),
                "the batch normalisations are not counted.\nLook at what each of them learns for "
                "each map that it reads.",
            ),
            (
                lambda n, k0, k: sum(9 * k * (k0 + k * i) + 2 * k for i in range(n)),
                "a batch normalisation is counted for the k maps that leave a layer.\nIt comes "
                "first: how many maps does it read?",
            ),
            (
                lambda n, k0, k: n * right(1, k0, k),
                "all layers are counted as wide as the first.\nLook at what the later ones read.",
            ),
            (
                lambda n, k0, k: right(n, k0 + k, k),
                "each layer is counted too wide by k.\nHow many layers come before the first one?",
            ),
            (
                lambda n, k0, k: right(n, k0, k) + n * k,
                "a bias is counted for each convolution.\nLook at how DenseLayer makes its own.",
            ),
            (
                lambda n, k0, k: right(n, k0, k) - sum(k0 + k * i for i in range(n)),
                "one number is counted for each map of a batch normalisation.\nLook at what it "
                "does after it has normalised.",
            ),
            (
                lambda n, k0, k: right(n, k0, k) + 2 * sum(k0 + k * i for i in range(n)),
                "running mean and variance are counted too.\nThey are buffers: the optimiser does "
                "not learn them.",
            ),
        ],
        "Count one layer first: its normalisation, then its convolution, both from the maps that "
        "it reads. Then sum over the layers.",
    )
    return f"{name} counts what a real block has"
