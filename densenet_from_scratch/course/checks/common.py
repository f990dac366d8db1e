"""What every check is made of: run the answer safely, compare it, and say what is wrong."""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

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


def same_result(actual: Any, expected: Any) -> bool:
    """Say whether ``actual`` is the number, word, list or tuple expected; for hidden tests too.

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
    """Call the answer; say what was tried if it fails. A stub's error stays as it is."""
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


def require_values(
    value: Any,
    expected: Tensor,
    what: str,
    mistakes: Sequence[tuple[Tensor, str]],
    otherwise: str,
) -> None:
    """Require the expected values; if they are those of a known mistake, say which."""
    value = require_tensor(value, what)
    if same_values(value, expected):
        return
    for wrong, message in mistakes:
        # A mistake that happens to give the right values here cannot be told apart: skip it.
        if same_values(value, wrong) and not same_values(wrong, expected):
            raise AssertionError(f"{what}: {message}")
    raise AssertionError(f"{what}: {otherwise}")


def require_shape(
    value: Any,
    expected: tuple[int, ...],
    what: str,
    mistakes: Mapping[tuple[int, ...], str],
    otherwise: str = "Look at which axis is which: (N, C, H, W).",
) -> None:
    """Require the expected shape; if it is that of a known mistake, say which."""
    shape = tuple(require_tensor(value, what).shape)
    hint = mistakes.get(shape, otherwise)
    require(shape == expected, f"{what} has shape {shape}, which is not as asked.\n{hint}")


def require_numbers(
    function: Any,
    expected: Callable[..., int],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Sequence[tuple[Callable[..., int], str]],
    otherwise: str,
) -> str:
    """Require integers for every case; if all are those of one known mistake, say which."""
    name = require_own(function, FunctionType)
    texts = [f"{name}({', '.join(map(str, case))})" for case in cases]
    values = [
        call_answer(
            text, function, *case, hint="Look at the line that the traceback above points to."
        )
        for text, case in zip(texts, cases, strict=True)
    ]
    for text, value in zip(texts, values, strict=True):
        hint = "Is a `return` missing?" if value is None else "A count is a Python int: // not /."
        require(type(value) is int, f"{text} gives a {type(value).__name__}.\n{hint}")
    right = [expected(*case) for case in cases]
    for wrong, message in mistakes:
        if values != right and values == [wrong(*case) for case in cases]:
            raise AssertionError(f"{name}: {message}")
    for text, value, number in zip(texts, values, right, strict=True):
        require(value == number, f"{text} gives {value}, which is wrong.\n{otherwise}")
    return name


def _has_form(value: Any, like: Any) -> bool:
    if isinstance(like, list | tuple):
        return type(value) in (list, tuple) and all(_has_form(v, like[0]) for v in value)
    return type(value) in (int, float) if type(like) is float else type(value) is type(like)


def require_results(
    function: Any,
    expected: Callable[..., Any],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Sequence[tuple[Callable[..., Any], str]],
    form: str,
    otherwise: str,
) -> str:
    """Like :func:`require_numbers`, for floats, words, and lists or tuples of numbers.

    ``form`` says in words what a result is, such as "a pair of integers".
    """
    name = require_own(function, FunctionType)
    texts = [f"{name}({', '.join(map(repr, case))})" for case in cases]
    hint = "Look at the line that the traceback above points to."
    values = [
        call_answer(text, function, *case, hint=hint)
        for text, case in zip(texts, cases, strict=True)
    ]
    right = [expected(*case) for case in cases]
    for text, value, like in zip(texts, values, right, strict=True):
        hint = "Is a `return` missing?" if value is None else f"The question asks for {form}."
        require(_has_form(value, like), f"{text} gives a {type(value).__name__}.\n{hint}")
    if all(map(same_result, values, right)):
        return name
    for wrong, message in mistakes:
        if all(map(same_result, values, [wrong(*case) for case in cases])):
            raise AssertionError(f"{name}: {message}")
    for text, value, result in zip(texts, values, right, strict=True):
        require(same_result(value, result), f"{text} gives {value}, which is wrong.\n{otherwise}")
    return name
