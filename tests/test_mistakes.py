"""Every mistake that a check names gets its own message, and not that of another.

A check holds plausible wrong answers as ``{message: wrong}``. Here the solutions run once while
those dictionaries are written down; then each wrong answer is handed in. A new mistake in a check
needs no test of its own; ``tests/wrong_answers`` has what no check holds in this form.
"""

import contextlib
import inspect
import io
from collections.abc import Callable
from functools import partial
from types import ModuleType

import pytest
import torch
from helpers import ASSIGNMENTS, assignment_cells, run_cell
from torch import Tensor

from densenet_from_scratch.course import checks
from densenet_from_scratch.course.checks import core

TELLS = (
    *(core.require_numbers, core.require_values, core.require_shape),
    *(core.require_none, core.mistake_of),
)
MODULES = [value for value in vars(checks).values() if isinstance(value, ModuleType)]


def hand_in(function: Callable, given: dict, wrong) -> None:
    """Call a function of ``core`` again, with a mistake in place of what the solution gave."""
    first = next(iter(given))
    if function is core.require_numbers:
        # A function of this file: one of the package's would be refused for that.
        given = given | {first: lambda *case: wrong(*case)}
    elif function is core.require_shape:
        given = given | {first: torch.zeros(wrong)}
    else:
        given = given | {first: wrong.detach().clone() if isinstance(wrong, Tensor) else wrong}
    said = function(**given)
    if function is core.mistake_of:
        raise AssertionError(said)


def mistakes_of(name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Callable]]:
    """Run a solution; return ``(message, hand_in)`` for each mistake that its checks name."""
    found = []

    def recorder(function: Callable) -> Callable:
        def record(*arguments, **options):
            given = inspect.signature(function).bind(*arguments, **options).arguments
            for message, wrong in given["mistakes"].items():
                for variant in wrong if isinstance(wrong, list) else [wrong]:
                    found.append((message, partial(hand_in, function, given, variant)))
            return function(*arguments, **options)

        return record

    with monkeypatch.context() as patch:
        for module in MODULES:
            for tells in TELLS:
                if module is not core and hasattr(module, tells.__name__):
                    patch.setattr(module, tells.__name__, recorder(tells))
        namespace = {"__name__": "__main__"}
        for cell in assignment_cells("solutions", name):
            if cell.cell_type == "code":
                with contextlib.redirect_stdout(io.StringIO()):
                    run_cell(cell.source, namespace)
    return found


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_every_mistake_that_a_check_names_gets_its_message(name, monkeypatch):
    told, untold = set(), {}
    for message, hand_in in mistakes_of(name, monkeypatch):
        try:
            hand_in()
            said = "nothing"
        except AssertionError as error:
            said = str(error)
        if message in said:
            told.add(message)
        else:
            untold[message] = said
    # Where a check looks at several cases, one of them may not be able to tell a mistake.
    assert told and {message: untold[message] for message in untold.keys() - told} == {}
