"""The old form of the core, for the modules that still list their mistakes as pairs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from densenet_from_scratch.course.checks import core
from densenet_from_scratch.course.checks.core import (
    as_check as as_check,
)
from densenet_from_scratch.course.checks.core import (
    build_answer as build_answer,
)
from densenet_from_scratch.course.checks.core import (
    call_answer as call_answer,
)
from densenet_from_scratch.course.checks.core import (
    random_maps as random_maps,
)
from densenet_from_scratch.course.checks.core import (
    require as require,
)
from densenet_from_scratch.course.checks.core import (
    require_own as require_own,
)
from densenet_from_scratch.course.checks.core import (
    require_tensor as require_tensor,
)
from densenet_from_scratch.course.checks.core import (
    same_number as same_number,
)
from densenet_from_scratch.course.checks.core import (
    same_result as same_result,
)
from densenet_from_scratch.course.checks.core import (
    same_values as same_values,
)


class _Message(str):
    """Pairs may repeat a message, and their order counts: each is a key of its own."""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def _grouped(mistakes: Sequence[tuple[Any, str]]) -> dict[str, Any]:
    return {_Message(message): wrong for wrong, message in mistakes}


def require_values(
    value: Any,
    expected: Tensor,
    what: str,
    mistakes: Sequence[tuple[Tensor, str]],
    otherwise: str,
) -> None:
    """Use ``core.require_values``."""
    core.require_values(value, expected, what, _grouped(mistakes), otherwise)


def require_shape(
    value: Any,
    expected: tuple[int, ...],
    what: str,
    mistakes: Mapping[tuple[int, ...], str],
    otherwise: str = "Look at which axis is which: (N, C, H, W).",
) -> None:
    """Use ``core.require_shape``."""
    shape = tuple(core.require_tensor(value, what).shape)
    hint = {mistakes[shape]: shape} if shape in mistakes else {}
    core.require_shape(value, expected, what, hint, otherwise)


def require_numbers(
    function: Any,
    expected: Callable[..., Any],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Sequence[tuple[Callable[..., Any], str]],
    otherwise: str,
) -> str:
    """Use ``core.require_numbers``."""
    return core.require_numbers(function, expected, cases, _grouped(mistakes), otherwise)


def require_results(
    function: Any,
    expected: Callable[..., Any],
    cases: Sequence[tuple[Any, ...]],
    mistakes: Sequence[tuple[Callable[..., Any], str]],
    form: str,
    otherwise: str,
) -> str:
    """Use ``core.require_numbers`` with a form."""
    return core.require_numbers(function, expected, cases, _grouped(mistakes), otherwise, form)
