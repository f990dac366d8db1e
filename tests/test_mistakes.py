"""Every mistake that a check names gets its own message, and not that of another.

A check holds plausible wrong answers as ``{message: wrong}``. Here the solutions run once while
those dictionaries are written down; then each wrong answer is handed in. A new mistake in a check
needs no test of its own; ``tests/wrong_answers`` has what no check holds in this form.
"""

import contextlib
import io
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from helpers import ASSIGNMENTS, assignment_cells, run_cell

from densenet_from_scratch.course import checks
from densenet_from_scratch.course.checks import core

MODULES = [value for value in vars(checks).values() if isinstance(value, ModuleType)]


def mistakes_of(name: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Callable]]:
    """Run a solution; return ``(message, hand_in)`` for each mistake that its checks name."""
    found = []

    def variants(wrong) -> list:
        return wrong if isinstance(wrong, list) else [wrong]

    def numbers(function, right, cases, mistakes, *others, **options):
        for message, wrong in mistakes.items():
            for variant in variants(wrong):
                # A function of this file: one of the package's would be refused for that.
                def hand_in(variant=variant):
                    def answer(*given):
                        return variant(*given)

                    core.require_numbers(answer, right, cases, mistakes, *others, **options)

                found.append((message, hand_in))
        return core.require_numbers(function, right, cases, mistakes, *others, **options)

    def values(value, right, what, mistakes, otherwise):
        for message, wrong in mistakes.items():
            for variant in variants(wrong):
                given = (variant.detach().clone(), right, what, mistakes, otherwise)
                found.append((message, lambda given=given: core.require_values(*given)))
        return core.require_values(value, right, what, mistakes, otherwise)

    def shape(value, right, what, mistakes, *otherwise):
        for message, wrong in mistakes.items():
            for variant in variants(wrong):
                given = (torch.zeros(variant), right, what, mistakes, *otherwise)
                found.append((message, lambda given=given: core.require_shape(*given)))
        return core.require_shape(value, right, what, mistakes, *otherwise)

    def none(value, right, mistakes, what, *same):
        for message, wrong in mistakes.items():
            for variant in variants(wrong):
                given = (variant, right, mistakes, what, *same)
                found.append((message, lambda given=given: core.require_none(*given)))
        return core.require_none(value, right, mistakes, what, *same)

    with monkeypatch.context() as patch:
        for module in MODULES:
            for name_, recorder in (
                ("require_numbers", numbers),
                ("require_values", values),
                ("require_shape", shape),
                ("require_none", none),
            ):
                if module is not core and hasattr(module, name_):
                    patch.setattr(module, name_, recorder)
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
