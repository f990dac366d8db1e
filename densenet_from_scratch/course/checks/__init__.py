"""The checks that the exercises call: each looks at one property and says what went wrong.

A check takes the reader's own class or function. It prints a line that starts with ✓, or raises
``AssertionError`` with a message that names the likely misconception and where to look, and never
the answer. What an answer should do is computed here by hand, with neither the answer's code nor
the package's layers. Checks compare real tensors and real integers only: an object of another
type, which could claim to equal anything, is refused.

A new check is a function in one of the modules below that takes the answer, raises through the
functions of ``core`` and returns what it found to be right; ``core.as_check`` does the rest.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from densenet_from_scratch.course.checks.compare import (
    as_python as as_python,
)
from densenet_from_scratch.course.checks.compare import (
    same_number as same_number,
)
from densenet_from_scratch.course.checks.compare import (
    same_result as same_result,
)
from densenet_from_scratch.course.checks.compare import (
    same_values as same_values,
)

_MODULES = (
    *("plain", "residual", "dense", "growth_rate", "bottleneck", "transition", "densenet"),
    *("training", "feature_reuse", "memory", "cost"),
)


def _collect(modules: Iterable[str]) -> dict[str, Callable[[Any], None]]:
    """Return the checks that the modules define, by name."""
    checks: dict[str, Callable[[Any], None]] = {}
    for module in (import_module(f"{__name__}.{name}") for name in modules):
        for name, value in vars(module).items():
            if hasattr(value, "__wrapped__") and value.__module__ == module.__name__:
                if name in checks or name in globals():
                    raise ImportError(f"{module.__name__}: the name {name} is taken.")
                checks[name] = value
    return checks


globals().update(_collect(_MODULES))
