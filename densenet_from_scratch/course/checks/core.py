"""What every check is made of: run the answer safely, compare it, and say what is wrong.

All code of the reader's runs through :func:`call_answer`. What is right is a value or a function;
plausible mistakes are a dictionary, ``{message: what this mistake gives}``, or a list of things
that it gives in its variants.
"""

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import starmap
from random import Random
from types import FunctionType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.compare import as_python, same_result, same_values, shown
from densenet_from_scratch.course.checks.conditions import (
    Broken,
    allow,
    one_question,
    run_answer,
)
from densenet_from_scratch.internals import hooks_of

Part = TypeVar("Part")

_SEED = 160806993  # one that no answer chooses, so that seeding again would show
_DRAWS = 40  # cases drawn at random for a question about numbers
_NOT_WRITTEN = "your code is still missing: look for `raise NotImplementedError` in the cell above."


def as_check(test: Callable[[Any], str]) -> Callable[[Any], None]:
    """Make a check of a test: run it in a clean setting, print what it returns after a ✓."""

    @functools.wraps(test)
    def check(answer: Any) -> None:
        __tracebackhide__ = True  # IPython then shows the message without the frames in between
        failure: Exception
        # Neither the answer's warnings (nbgrader takes stderr for an error) nor the settings that
        # a notebook has changed may decide, and the notebook's random numbers stay as they were.
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
            one_question(),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(_SEED)
            try:
                print(f"✓ {test(answer)}")
                return
            except AssertionError as error:
                failure, cause = AssertionError(str(error)), error.__cause__
            except NotImplementedError:
                failure, cause = NotImplementedError(_NOT_WRITTEN), None
            except Exception as error:  # never one that only we could understand
                failure = AssertionError(
                    f"this answer cannot be tried ({type(error).__name__}: {error}).\nIf a check "
                    "above this one fails, too, begin there; otherwise compare the names, types "
                    "and shapes with what the question asks for."
                )
                cause = error
        raise failure from cause  # anew, so that the reader need not scroll past our own code

    return check


def require(condition: bool, message: str) -> None:
    """Raise ``AssertionError``; unlike ``assert`` it also works under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def _from_package(thing: Any) -> bool:
    return str(getattr(thing, "__module__", "")).split(".")[0] == __name__.split(".")[0]


def _unwrapped(function: Any) -> list[Any]:
    """Return a function and what it wraps: through partial, lru_cache and other decorators."""
    layers = [function]
    while len(layers) < 10:
        inner = layers[-1].func if type(layers[-1]) is functools.partial else None
        inner = inner or getattr(layers[-1], "__wrapped__", None)
        if inner is None:
            break
        layers.append(inner)
    return layers


def require_own(answer: Any, kind: type, may_use: Sequence[type] = ()) -> str:
    """Require a class or function that the reader wrote; return its name."""
    allow(*may_use)
    if kind is FunctionType:
        layers = _unwrapped(answer)
        inner = layers[-1]
        require(
            type(inner) is FunctionType or type(vars(type(inner)).get("__call__")) is FunctionType,
            f"expected a function, got {type(answer).__name__}.",
        )
        family: Iterable[Any] = [*layers, type(inner)]
    else:
        require(
            isinstance(answer, type) and issubclass(answer, nn.Module),
            f"expected a class that inherits from nn.Module, got {type(answer).__name__}.",
        )
        family = answer.__mro__
    for thing in family:
        require(
            not _from_package(thing) or thing in may_use,
            f"{name_of(answer)} uses {name_of(thing)} of the package densenet_from_scratch, and "
            "this exercise is about writing it yourself.\nLook for where your code imports it, "
            "inherits from it or calls it: write that part yourself.",
        )
    return name_of(answer)


def name_of(answer: Any) -> str:
    """Return the name of a class or function, also of one that is wrapped."""
    return str(getattr(_unwrapped(answer)[-1], "__name__", type(answer).__name__))


def call_answer(
    what: str,
    function: Callable[..., Any],
    *arguments: Any,
    hint: str = "",
    may_change: frozenset[str] = frozenset(),
) -> Any:
    """Call the answer; say what was tried if it fails or breaks a condition of every answer.

    A stub's error stays as it is. What may change besides the result, such as the weights of a
    network that is trained, are names from :mod:`conditions`.
    """
    try:
        return run_answer(function, arguments, may_change)
    except Broken as broken:
        raise AssertionError(f"{what} {broken}") from None
    except Exception as error:
        if type(error) is NotImplementedError and not error.args:
            raise
        said = str(error)
        said = said if len(said) <= 240 else f"{said[:240]}…"
        text = f"{what} stopped with {type(error).__name__}: {said}"
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
    other = {p.dtype for p in module.parameters()} - {torch.get_default_dtype()}
    require(
        not other,
        f"{name} has parameters in {', '.join(map(str, other))} when it is new.\nLook in __init__ "
        "for half(), double() or dtype=, and for a part that was there before and is used again.",
    )
    _require_fresh(module, name)
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
            for part in module.modules():
                if isinstance(part, nn.BatchNorm2d) and part.affine:
                    part.weight.mul_(4)  # maps well above 6, where ReLU6 is no ReLU
    return module


def _require_fresh(module: nn.Module, name: str) -> None:
    """Require that a new module is ready to train, its normalisations as PyTorch makes them."""
    require(
        not any([*map(hooks_of, module.modules()), *map(hooks_of, module.parameters())]),
        f"{name} registers a hook, which changes what happens outside forward.\nCompute in "
        "forward what is asked for.",
    )
    for place, part in module.named_modules():
        where = f"self.{place}" if place else name
        require(
            part.training,
            f"{name}: {where} is in evaluation mode when it is new.\nWho calls it decides about "
            "the mode: look for eval() in __init__.",
        )
        if isinstance(part, nn.BatchNorm2d):
            first = nn.BatchNorm2d(part.num_features, device=part.weight.device).state_dict()
            require(
                all(same_values(part.state_dict().get(key), v) for key, v in first.items()),
                f"{name}: {where} does not begin as PyTorch makes it, with γ = 1, β = 0 and no "
                "batch counted.\nLook in __init__ for who sets these, or runs it.",
            )
    frozen = [key for key, parameter in module.named_parameters() if not parameter.requires_grad]
    require(
        not frozen,
        f"{name}: self.{frozen[0] if frozen else ''} would not learn.\nLook for requires_grad.",
    )


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
    require(
        value.dtype == right.dtype,
        f"{what} is of {value.dtype} where {right.dtype} was given.\nLook for a tensor that is "
        "made or cast on the way without regard to the dtype of what was given.",
    )
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


_DEFAULTS: dict[type[nn.Module], dict[str, Any]] = {
    nn.BatchNorm2d: {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True},
    nn.Conv2d: {"groups": 1, "dilation": (1, 1), "padding_mode": "zeros"},
}


def require_defaults(owner: nn.Module, attribute: str) -> None:
    """Require that a part was made with the defaults of what no question names."""
    part = getattr(owner, attribute)
    for argument, usual in _DEFAULTS[type(part)].items():
        value = getattr(part, argument)
        require(
            value == usual,
            f"{type(owner).__name__}: self.{attribute} has {argument}={value!r}.\nThe question "
            "does not speak of that argument: leave it at its default.",
        )


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


def _has_form(value: Any, like: Any) -> bool:
    if isinstance(like, list | tuple):
        if type(value) not in (list, tuple) or (type(like) is tuple and len(value) != len(like)):
            return False
        return all(_has_form(part, like[0]) for part in value)
    return type(value) in (int, float) if type(like) is float else type(value) is type(like)


def require_numbers(
    function: Any,
    right: Callable[..., Any],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Mapping[str, Callable[..., Any] | list[Callable[..., Any]]],
    otherwise: str,
    form: str = "",
    draw: Callable[[Random], tuple[Any, ...]] | None = None,
) -> str:
    """Require the right result for every case; if all are those of a known mistake, say which.

    Results are ints, floats, words, and lists or tuples of them. ``form`` says in words what a
    result is, such as "a pair of integers"; without it, each is a count. ``draw`` gives a case at
    random from all that the question allows: what is right for the cases must be right there, too.
    """
    name = require_own(function, FunctionType)
    results = [right(*case) for case in cases]
    values = [
        _result_for(function, name, case, result, form)
        for case, result in zip(cases, results, strict=True)
    ]
    for message, wrong in [] if all(map(same_result, values, results)) else _variants(mistakes):
        require(not all(map(same_result, values, starmap(wrong, cases))), f"{name}: {message}")
    for case, value, result in zip(cases, values, results, strict=True):
        gives = f"{_call_text(name, case)} gives {shown(value)}, which is wrong."
        require(same_result(value, result), f"{gives}\n{otherwise}")
    chance = Random(_SEED)
    for case in [draw(chance) for _ in range(_DRAWS)] if draw else []:
        result = right(*case)
        value = _result_for(function, name, case, result, form)
        gives = f"{_call_text(name, case)} gives {shown(value)}, which is wrong"
        require(
            same_result(value, result),
            f"{gives}, though other cases go well.\nWhat is special here? Look for what is "
            "rounded, cut off, or taken for granted.",
        )
    return name


def _call_text(name: str, case: tuple[Any, ...]) -> str:
    return f"{name}({', '.join(map(shown, case))})"


def _result_for(function: Any, name: str, case: tuple[Any, ...], like: Any, form: str) -> Any:
    """Call the answer for a case; require a result of the form that the right one has."""
    text = _call_text(name, case)
    hint = "Look at the line that the traceback above points to."
    value = as_python(call_answer(text, function, *case, hint=hint))
    asked = (
        f"The question asks for {form}."
        if form
        else "A count is a Python int: // not /, and no float()."
    )
    hint = "Is a `return` missing?" if value is None else asked
    gives = shown(value) if type(value) in (list, tuple) else f"a {type(value).__name__}"
    require(_has_form(value, like), f"{text} gives {gives}.\n{hint}")
    return value
