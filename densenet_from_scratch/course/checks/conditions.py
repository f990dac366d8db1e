"""What holds for every answer while it runs, whatever the question asks.

An answer computes its result itself, from what it was given, and leaves all else as it was: its
arguments, the modules among them, and PyTorch's settings. :func:`run_answer` sees to that.
"""

import copy
import gc
import inspect
import os
import random
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, nn

from densenet_from_scratch.course.checks.compare import allclose
from densenet_from_scratch.internals import (
    drop_saved_tensors_hooks,
    hooks_of,
    saved_tensors_hooks_now,
    times_written,
)

PACKAGE = f"{Path(__file__).parents[2]}{os.sep}"
_LIBRARIES = tuple({sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")})
# What nobody needs who computes a result: it leads to the frames of who called.
_PEEKING = {"f_back", "f_locals", "tb_frame", "tb_next", "__traceback__", "gi_frame", "cr_frame"}
_PEEKING_CALLS = (
    *(sys._getframe, sys._current_frames, sys.setprofile, sys.settrace, sys.exc_info),
    *(gc.get_objects, gc.get_referrers),
)
_FUNCTION_IN_CHECKS = "<locals>"  # a hook or a function that an answer can only have been given

_allowed: set[str] = set()  # what of the package the answer to the present question may use


@contextmanager
def one_question() -> Iterator[None]:
    """Forget at the end what an answer was allowed to use."""
    try:
        yield
    finally:
        _allowed.clear()


def allow(*things: Any) -> None:
    """Let the answer to the present question use these classes or functions of the package."""
    _allowed.update(thing.__qualname__ for thing in things)


class Broken(Exception):
    """An answer has not kept a condition; the message goes on after what was called."""


# --- What it was given ---------------------------------------------------------------------------

# What may change, where the question says so.
TENSOR, LIST = "the tensor", "the list"
WEIGHTS, STATISTICS, MODE, GRADIENTS, REQUIRES_GRAD, HOOKS = (
    *("the weights", "the running statistics", "the mode", "the gradients"),
    *("requires_grad of parameters", "the hooks"),
)
TRAINING = frozenset({WEIGHTS, STATISTICS, MODE, GRADIENTS})
ANYTHING = frozenset({*TRAINING, REQUIRES_GRAD, TENSOR, LIST})
_HINTS = {
    MODE: "Who calls it decides about training and evaluation: look for train() and eval().",
    STATISTICS: "In evaluation mode they are only read: look for train() and for momentum.",
    GRADIENTS: "Look for backward() and zero_grad().",
    REQUIRES_GRAD: "Look for requires_grad_() and requires_grad =.",
    HOOKS: "They would run again in every later pass: remove() each, or compute without.",
}
_IN_PLACE = (
    "Somebody else may still need it: look for +=, inplace=True, and methods that work in place, "
    "such as sort() and those that end in an underscore."
)


def fresh(argument: Any) -> Any:
    """Return an argument with containers of its own, so that ours stay as they are."""
    if isinstance(argument, list):
        result = copy.copy(argument)
        result[:] = [fresh(part) for part in argument]
        return result
    if type(argument) is tuple:
        return tuple(map(fresh, argument))
    return {k: fresh(v) for k, v in argument.items()} if type(argument) is dict else argument


def _same(a: Tensor, b: Tensor) -> bool:
    if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
        return False
    return a.is_meta or allclose(a, b, 0, 0, equal_nan=True)


def _tensors_of(module: nn.Module, statistics: bool) -> dict[str, tuple[Tensor, int]]:
    tensors = dict(module.named_buffers() if statistics else module.named_parameters())
    return {
        name: (tensor.detach().clone(), times_written(tensor)) for name, tensor in tensors.items()
    }


def _module_facts(module: nn.Module) -> dict[str, Any]:
    parameters = dict(module.named_parameters())
    return {
        MODE: {name: part.training for name, part in module.named_modules(remove_duplicate=False)},
        WEIGHTS: _tensors_of(module, statistics=False),
        STATISTICS: _tensors_of(module, statistics=True),
        HOOKS: {name: hooks_of(part) for name, part in module.named_modules()},
        REQUIRES_GRAD: {name: p.requires_grad for name, p in parameters.items()},
        GRADIENTS: {
            name: None if p.grad is None else p.grad.detach().clone()
            for name, p in parameters.items()
        },
    }


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or _same(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return a is b or (type(a) is type(b) and bool(a == b))


class _Given:
    """What an argument was like before the call."""

    def __init__(self, value: Any, name: str = "") -> None:
        self.value, self.name = value, name
        inside = f"in {name}" if name else ""
        self.parts = [_Given(v, inside) for v in value] if isinstance(value, list | tuple) else []
        if isinstance(value, Tensor):
            self.tensor, self.requires_grad = value.detach().clone(), value.requires_grad
            self.version = times_written(value)
        elif isinstance(value, nn.Module):
            self.facts = _module_facts(value)
            # A pass in training mode counts its batch: only at rest must statistics stay.
            self.at_rest = not any(part.training for part in value.modules())

    def changed(self, may_change: frozenset[str]) -> str:
        """Return what of it has changed, or nothing."""
        value = self.value
        if isinstance(value, Tensor):
            written = times_written(value) != self.version or not _same(value.detach(), self.tensor)
            if value.requires_grad != self.requires_grad or (written and TENSOR not in may_change):
                return f"{TENSOR} {self.name}".rstrip()
        if isinstance(value, nn.Module):
            return self._changed_module(value, may_change)
        if isinstance(value, list) and LIST not in may_change:
            parts = [given.value for given in self.parts]
            if len(parts) != len(value) or any(
                a is not b for a, b in zip(parts, value, strict=True)
            ):
                return f"{LIST} {self.name}".rstrip()
        return next(filter(None, (given.changed(may_change) for given in self.parts)), "")

    def _changed_module(self, module: nn.Module, may_change: frozenset[str]) -> str:
        now = _module_facts(module)
        for fact, before in self.facts.items():
            if fact in may_change or (fact == STATISTICS and not self.at_rest):
                continue
            if not _equal(before, now[fact]):
                return f"{fact} of the {type(module).__name__} {self.name}".rstrip()
        return ""


def _parameter_names(function: Callable[..., Any], number: int) -> list[str]:
    """Return how the reader calls the arguments, as far as Python can tell."""
    called = function.forward if isinstance(function, nn.Module) else function
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return [""] * number
    rest = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL] or [""]
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (names + rest * number)[:number]


# --- The settings of PyTorch ---------------------------------------------------------------------


def _settings() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "number of threads": torch.get_num_threads(),
        "recording of gradients": torch.is_grad_enabled(),
        "hooks of saved tensors": saved_tensors_hooks_now(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "detection of anomalies": torch.is_anomaly_enabled(),
        "precision of products": torch.get_float32_matmul_precision(),
        "cuDNN's choice of algorithms": torch.backends.cudnn.benchmark,
        "seed": torch.initial_seed(),
        "Python's random numbers": random.getstate(),
    }


def _restore(settings: dict[str, Any]) -> None:
    torch.set_default_dtype(settings["default dtype"])
    if torch.get_default_device() != settings["default device"]:
        torch.set_default_device(settings["default device"])
    if torch.get_num_threads() != settings["number of threads"]:
        torch.set_num_threads(settings["number of threads"])
    torch.set_grad_enabled(settings["recording of gradients"])
    while saved_tensors_hooks_now() not in (None, settings["hooks of saved tensors"]):
        drop_saved_tensors_hooks()
    torch.use_deterministic_algorithms(settings["deterministic algorithms"])
    torch.autograd.set_detect_anomaly(settings["detection of anomalies"])
    torch.set_float32_matmul_precision(settings["precision of products"])
    torch.backends.cudnn.benchmark = settings["cuDNN's choice of algorithms"]
    random.setstate(settings["Python's random numbers"])


# --- Its own work --------------------------------------------------------------------------------


def _is_answers(code: CodeType) -> bool:
    """Return whether code is the reader's: of no library, not ours, and nothing of Python's."""
    name = code.co_filename
    return not name.startswith((PACKAGE, *_LIBRARIES, "<frozen", "<string>", "<__array"))


def _called_by_answer(frame: FrameType) -> bool:
    """Return whether the reader's code, and not ours, has called this, perhaps through others."""
    caller = frame.f_back
    while caller is not None:
        if caller.f_code.co_filename.startswith(PACKAGE):
            return False
        if _is_answers(caller.f_code):
            return True
        caller = caller.f_back
    return False


def _may_be_called(frame: FrameType) -> bool:
    name = frame.f_code.co_qualname
    if _FUNCTION_IN_CHECKS in name or name == "<module>" or name.split(".")[0] in _allowed:
        return True
    # A method of a layer that was given, but neither of a new one nor with the reader's own self.
    own = frame.f_locals.get("self")
    from_package = type(own).__module__.split(".")[0] == __name__.split(".")[0]
    return from_package and not name.endswith("__init__")


class _Watch:
    """Sees every call while an answer runs, and remembers the first that is not its own work."""

    def __init__(self) -> None:
        self.seen = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if self.seen:
            return
        if event == "call":
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE):
                if not _may_be_called(frame) and _called_by_answer(frame):
                    thing = code.co_qualname.removesuffix(".__init__")
                    self.seen = f"uses {thing} of the package densenet_from_scratch"
            elif _PEEKING.intersection(code.co_names) and _is_answers(code):
                self.seen = "looks into the frames of who called it"
        elif event == "c_call" and argument in _PEEKING_CALLS and _is_answers(frame.f_code):
            self.seen = "looks into the frames of who called it"


def run_answer(
    function: Callable[..., Any], arguments: tuple[Any, ...], may_change: frozenset[str]
) -> Any:
    """Return what the function gives for fresh copies of the containers among the arguments.

    Raises:
        Broken: it has changed what it was given, or a setting, or has not done its own work.
        Exception: whatever the function raises.
    """
    names = _parameter_names(function, len(arguments))
    given = [_Given(fresh(a), name) for a, name in zip(arguments, names, strict=True)]
    if isinstance(function, nn.Module):
        given.append(_Given(function))
    settings, watch, profiler = _settings(), _Watch(), sys.getprofile()
    sys.setprofile(watch)
    try:
        result = function(*(argument.value for argument in given[: len(arguments)]))
    except Exception:
        if not watch.seen:
            raise
    finally:
        sys.setprofile(profiler)
        changed = [n for n, value in _settings().items() if value != settings[n]]
        _restore(settings)
    if watch.seen:
        raise Broken(
            f"{watch.seen}, and this exercise is about writing it yourself.\nAn answer computes "
            "its result itself, from what it was given: remove it and run the cell again."
        )
    if changed:
        raise Broken(
            f"changes a setting of the whole notebook: {changed[0]}.\nWhoever runs after it gets "
            "that, too. Leave it as it is."
        )
    for argument in given:
        if what := argument.changed(may_change):
            own = argument.value is function
            raise Broken(
                f"changes {what} {'while it runs' if own else 'that it was given'}.\n"
                + next((hint for fact, hint in _HINTS.items() if fact in what), _IN_PLACE)
            )
    return result
