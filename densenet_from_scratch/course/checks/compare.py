"""Whether an answer's result is the right one: by type and content, whatever it says of itself.

``==``, ``.all()`` and ``torch.allclose`` on an object that a submission made can be overridden by
it, since they ask the object. Hidden tests compare with these functions, too.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# All checks' own reference: an answer could put another function in torch's place while it runs.
allclose = torch.allclose


# Relative and absolute: what sums in another order may differ by.
_TOLERANCES = {torch.float64: (1e-8, 1e-10), torch.float32: (1e-5, 1e-7)}
_ROUGHLY = (1e-3, 1e-3)


def same_values(actual: Any, expected: Tensor, roughly: bool = False) -> bool:
    """Return whether ``actual`` is a plain tensor with the shape, dtype and values of ``expected``.

    NaN equals NaN. ``roughly`` is for float32 against a longer computation by hand.

    For hidden tests too: ``==``, ``.all()`` and ``torch.allclose`` on an object that a submission
    made can be overridden by it, since they ask the object; a type cannot.
    """
    return (
        type(actual) in (Tensor, nn.Parameter)
        and actual.shape == expected.shape
        and actual.dtype == expected.dtype
        and allclose(actual, expected, *_tolerances(expected.dtype, roughly), equal_nan=True)
    )


def _tolerances(dtype: torch.dtype, roughly: bool) -> tuple[float, float]:
    return _ROUGHLY if roughly else _TOLERANCES.get(dtype, (1e-5, 1e-7))


def as_python(value: Any) -> Any:
    """Return Python's own numbers, words, lists and tuples for those of NumPy and PyTorch.

    What a subclass of them claims to be is not asked: its content is read by the type itself.
    """
    if type(value) in (Tensor, nn.Parameter):
        return value.detach().tolist()
    if isinstance(value, np.ndarray | np.generic):
        return np.ndarray.tolist(np.array(value))
    if isinstance(value, bool):
        return value
    for kind, read in _READ:
        if isinstance(value, kind):
            return read(value)
    if isinstance(value, list):
        return [as_python(part) for part in list.__iter__(value)]
    if isinstance(value, tuple):
        return tuple(as_python(part) for part in tuple.__iter__(value))
    return value


_READ: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    *((int, int.__int__), (float, float.__float__), (str, str.__str__)),
)


def same_number(actual: Any, expected: int) -> bool:
    """Return whether ``actual`` is a whole number, and the right one; for hidden tests too."""
    actual = as_python(actual)
    return type(actual) is int and actual == expected


def same_result(actual: Any, expected: Any) -> bool:
    """Return whether ``actual`` is the number, word, list or tuple expected; for hidden tests too.

    Floats may differ by rounding, and lists may stand for tuples.
    """
    return _same_plain(as_python(actual), expected)


def _same_plain(actual: Any, expected: Any) -> bool:
    if isinstance(expected, list | tuple):
        return (
            type(actual) in (list, tuple)
            and len(actual) == len(expected)
            and all(_same_plain(a, e) for a, e in zip(actual, expected, strict=True))
        )
    if type(expected) is float:
        return type(actual) in (int, float) and math.isclose(
            actual, expected, rel_tol=1e-6, abs_tol=1e-9
        )
    return type(actual) is type(expected) and bool(actual == expected)


def shown(value: Any) -> str:
    """Return how a message shows a result: briefly, and whatever it is."""
    try:
        text = repr(value)
    except Exception:  # a number of too many digits, or an object that cannot show itself
        return f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 200 else f"{text[:200]}…"
