"""What every check is made of: run the answer safely, compare it, and say what is wrong.

All code of the reader's runs through :func:`call_answer`. What is right is a value or a function;
plausible mistakes are a dictionary, ``{message: what this mistake gives}``, or a list of things
that it gives in its variants.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import starmap
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

Part = TypeVar("Part")

_NOT_WRITTEN = "your code is still missing: look for `raise NotImplementedError` in the cell above."


def as_check(test: Callable[[Any], str]) -> Callable[[Any], None]:
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


def require(condition: bool, message: str) -> None:
    """Raise ``AssertionError``; unlike ``assert`` it also works under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def same_values(actual: Any, expected: Tensor) -> bool:
    """Return whether ``actual`` is a plain tensor with the shape, dtype and values of ``expected``.

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
    """Return whether ``actual`` is an ``int``, and the right one; for hidden tests too."""
    return type(actual) is int and actual == expected


def same_result(actual: Any, expected: Any) -> bool:
    """Return whether ``actual`` is the number, word, list or tuple expected; for hidden tests too.

    Python's own types only. Floats may differ by rounding, and lists may stand for tuples.
    """
    if isinstance(expected, list | tuple):
        return (
            type(actual) in (list, tuple)
            and len(actual) == len(expected)
            and all(same_result(a, e) for a, e in zip(actual, expected, strict=True))
        )
    if type(expected) is float:
        return type(actual) in (int, float) and math.isclose(
            actual, expected, rel_tol=1e-6, abs_tol=1e-9
        )
    return type(actual) is type(expected) and bool(actual == expected)


def _from_package(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] == __name__.split(".")[0]


def require_own(answer: Any, kind: type, may_use: Sequence[type] = ()) -> str:
    """Require a class or function that the reader wrote; return its name."""
    if kind is FunctionType:
        require(type(answer) is FunctionType, f"expected a function, got {type(answer).__name__}.")
        family: Iterable[Any] = (answer,)
    else:
        require(
            isinstance(answer, type) and issubclass(answer, nn.Module),
            f"expected a class that inherits from nn.Module, got {type(answer).__name__}.",
        )
        family = answer.__mro__
    for thing in family:
        require(
            not _from_package(thing) or thing in may_use,
            f"{answer.__name__} uses {thing.__name__} of the package densenet_from_scratch, and "
            "this exercise is about writing it yourself.\nLook for an import of it, above or in "
            "your cell: remove it and run the cell with your own code again.",
        )
    return answer.__name__


def call_answer(what: str, function: Callable[..., Any], *arguments: Any, hint: str = "") -> Any:
    """Call the answer; say what was tried if it fails. A stub's error stays as it is.

    Checks run what the reader wrote through this function, so that what should hold for every
    answer has one place.
    """
    try:
        return function(*arguments)
    except Exception as error:
        if type(error) is NotImplementedError and not error.args:
            raise
        text = f"{what} stopped with {type(error).__name__}: {error}"
        raise AssertionError(f"{text}\n{hint}" if hint else text) from error


def build_answer(
    answer: Any, *arguments: Any, may_use: Sequence[type] = (), random: bool = True
) -> nn.Module:
    """Build the reader's module in float64, by default with random weights and statistics.

    A fresh BatchNorm has weight 1, bias 0, mean 0 and variance 1, which hide mistakes.
    """
    name = require_own(answer, nn.Module, may_use)
    module = call_answer(f"{name}{arguments}", answer, *arguments)
    for part in module.modules():
        require(
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


def random_maps(*shape: int) -> Tensor:
    """Return random feature maps of a shape, in float64."""
    return torch.randn(shape, dtype=torch.float64)


def require_tensor(value: Any, what: str) -> Tensor:
    """Require a real tensor, not an object that says it equals one."""
    hint = "Is a `return` missing?" if value is None else "Return a plain torch.Tensor."
    require(
        type(value) in (Tensor, nn.Parameter), f"{what} gives a {type(value).__name__}.\n{hint}"
    )
    return value


def _variants(mistakes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for message, wrong in mistakes.items():
        for variant in wrong if isinstance(wrong, list) else [wrong]:
            yield message, variant


def mistake_of(value: Any, mistakes: Mapping[str, Any], otherwise: str) -> str:
    """Return the message of the known mistake that gives a count or shape (the last one)."""
    return {wrong: message for message, wrong in _variants(mistakes)}.get(value, otherwise)


def require_none(
    value: Any,
    right: Any,
    mistakes: Mapping[str, Any],
    what: str,
    same: Callable[[Any, Any], bool] = same_values,
) -> None:
    """Require that ``value`` is not that of a known mistake; otherwise say which."""
    for message, wrong in _variants(mistakes):
        # A mistake that happens to give the right values here cannot be told apart: skip it.
        require(not same(value, wrong) or same(wrong, right), f"{what}: {message}")


def require_values(
    value: Any,
    right: Tensor,
    what: str,
    mistakes: Mapping[str, Tensor | list[Tensor]],
    otherwise: str,
) -> None:
    """Require the right values; if they are those of a known mistake, say which."""
    value = require_tensor(value, what)
    if same_values(value, right):
        return
    require_none(value, right, mistakes, what)
    raise AssertionError(f"{what}: {otherwise}")


def require_shape(
    value: Any,
    right: tuple[int, ...],
    what: str,
    mistakes: Mapping[str, tuple[int, ...] | list[tuple[int, ...]]],
    otherwise: str = "Look at which axis is which: (N, C, H, W).",
) -> None:
    """Require the right shape; if it is that of a known mistake, say which (the last one)."""
    shape = tuple(require_tensor(value, what).shape)
    hint = mistake_of(shape, mistakes, otherwise)
    require(shape == right, f"{what} has shape {shape}, which is not as asked.\n{hint}")


def require_part(
    owner: nn.Module,
    attribute: str,
    kind: type[Part],
    hint: str = "Look at the names in the question: the checks and later code read them.",
) -> Part:
    """Require that ``owner`` has a part of this very kind under this name; return it."""
    part = getattr(owner, attribute, None)
    missing = f"{type(owner).__name__} has no {kind.__name__} called self.{attribute}."
    require(type(part) is kind, f"{missing}\n{hint}")
    return cast(Part, part)


def require_parts(
    owner: nn.Module,
    attribute: str,
    kind: type[Part],
    hint: str = "Look at the name in the question.",
) -> list[Part]:
    """Require that ``owner`` has a list of modules under this name; return them.

    All are of this very kind; ``nn.Module`` stands for any.
    """
    name, parts = type(owner).__name__, getattr(owner, attribute, None)
    require(
        not isinstance(parts, list),
        f"{name}: self.{attribute} is a Python list, and PyTorch does not look for parameters "
        "there.\nLook at which of PyTorch's containers holds a list of modules.",
    )
    asked = "nn.ModuleList" if kind is nn.Module else f"ModuleList of {kind.__name__}s"
    require(
        isinstance(parts, nn.ModuleList | nn.Sequential)
        and (kind is nn.Module or all(type(part) is kind for part in parts)),
        f"{name} has no {asked} called self.{attribute}.\n{hint}",
    )
    return list(cast(list[Part], parts))


def require_unchanged(
    given: Tensor,
    original: Tensor,
    name: str,
    hint: str = "Look for += and inplace=True.",
    what: str = "the tensor that it was given",
) -> None:
    """Require that ``given`` is still what it was before the call."""
    require(same_values(given, original), f"{name} changes {what}.\n{hint}")


def _has_form(value: Any, like: Any) -> bool:
    if isinstance(like, list | tuple):
        return type(value) in (list, tuple) and all(_has_form(v, like[0]) for v in value)
    return type(value) in (int, float) if type(like) is float else type(value) is type(like)


def require_numbers(
    function: Any,
    right: Callable[..., Any],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Mapping[str, Callable[..., Any] | list[Callable[..., Any]]],
    otherwise: str,
    form: str = "",
) -> str:
    """Require the right result for every case; if all are those of a known mistake, say which.

    Results are ints, floats, words, and lists or tuples of them. ``form`` says in words what a
    result is, such as "a pair of integers"; without it, each is a count.
    """
    name = require_own(function, FunctionType)
    texts = [f"{name}({', '.join(map(repr, case))})" for case in cases]
    results = [right(*case) for case in cases]
    hint = "Look at the line that the traceback above points to."
    values = [
        call_answer(text, function, *case, hint=hint)
        for text, case in zip(texts, cases, strict=True)
    ]
    asked = f"The question asks for {form}." if form else "A count is a Python int: // not /."
    for text, value, like in zip(texts, values, results, strict=True):
        hint = "Is a `return` missing?" if value is None else asked
        require(_has_form(value, like), f"{text} gives a {type(value).__name__}.\n{hint}")
    if all(map(same_result, values, results)):
        return name
    for message, wrong in _variants(mistakes):
        require(not all(map(same_result, values, starmap(wrong, cases))), f"{name}: {message}")
    for text, value, result in zip(texts, values, results, strict=True):
        require(same_result(value, result), f"{text} gives {value}, which is wrong.\n{otherwise}")
    return name


def require_gradients(
    module: nn.Module, x: Tensor, expected: Callable[[Tensor], Tensor], what: str
) -> None:
    """Require the gradients of the input and of every parameter that autograd gets by hand."""
    sources = {"the input": x.requires_grad_()} | dict(module.named_parameters())
    reference = expected(x)
    weights = torch.randn_like(reference)
    right = torch.autograd.grad((reference * weights).sum(), list(sources.values()))
    in_place = "If it speaks of an in-place operation: look for += and inplace=True in forward."
    y = require_tensor(call_answer(what, module, x, hint=in_place), what)
    require(
        y.requires_grad,
        f"{what}: no gradient can flow back from the output.\nLook for what cuts the graph: "
        "detach(), .data, torch.no_grad(), numpy, torch.tensor(...).",
    )
    gradients = call_answer(
        f"The backward pass of {what}",
        lambda: torch.autograd.grad((y * weights).sum(), list(sources.values()), allow_unused=True),
        hint=in_place,
    )
    for name, gradient, value in zip(sources, gradients, right, strict=True):
        require(
            gradient is not None,
            f"{what}: {name} gets no gradient, so training would never use it.\nLook for what "
            "cuts its path to the output: detach(), .data, torch.no_grad(), or a part unused.",
        )
        require(
            same_values(gradient, value),
            f"{what}: the gradient of {name} is wrong.\nIf the values are right, part of the path "
            "is cut: look for detach(), .data and torch.no_grad().",
        )
