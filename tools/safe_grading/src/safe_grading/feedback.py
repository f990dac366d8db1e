"""Feedback pages: a student sees the visible tests, and of a hidden one only that it failed."""

import html
import re
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader.preprocessors import ClearHiddenTests

from safe_grading.report import COLOURS, HIDDEN

END = "END HIDDEN TESTS"
FAILED_LINE = re.compile(r"(?:Cell In|Input In) ?\[\d+\].*?line (\d+)", re.S)
OURS = ("CellTimeout", "KernelDied", "NotRun", "NotTrusted")  # errors that grading itself writes
SHORT = 12  # characters of a line that may stand in any code
REPEATS = "(not shown: it repeats a hidden test)\n"
PRINTED = "(what your code prints while hidden tests run is not shown)\n"


def hidden_lines(nb: NotebookNode) -> set[str]:
    """Return the lines of hidden tests that stand nowhere else, as ``without_form`` has them."""
    hidden: set[str] = set()
    shown: set[str] = set()
    for cell in nb.cells:
        inside = False
        for line in cell.source.split("\n"):
            inside = (inside or HIDDEN in line) and END not in line
            (hidden if inside and HIDDEN not in line else shown).add(without_form(line))
    return {line for line in hidden - shown if len(line) >= SHORT}


def without_form(text: str) -> str:
    """Return a text without what differs between code, its ``repr``, and the HTML that shows it."""
    return re.sub(r"[\s\\'\"]", "", html.unescape(COLOURS.sub("", text)))


class HideHiddenTests(ClearHiddenTests):
    """For feedback pages: hidden tests do not show, nor does what they said when they failed."""

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        hidden = hidden_lines(nb)
        for cell in nb.cells:
            if cell.cell_type == "code":
                inside = HIDDEN in cell.source
                cell.outputs = [_not_repeating(one, hidden, inside) for one in cell.outputs]
        return super().preprocess(nb, resources)

    def preprocess_cell(
        self, cell: NotebookNode, resources: Any, cell_index: int
    ) -> tuple[NotebookNode, Any]:
        lines = cell.source.split("\n")
        start = next((number for number, line in enumerate(lines, 1) if HIDDEN in line), None)
        cell, resources = super().preprocess_cell(cell, resources, cell_index)
        if start is None or cell.cell_type != "code":
            return cell, resources
        cell.source = cell.source.rstrip() + "\n# Hidden tests follow here."
        # Hidden tests call the answer, which could show what it is given.
        cell.outputs = [output for output in cell.outputs if output.output_type != "display_data"]
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = _of_checks(output.text)
            elif output.output_type == "error" and output.ename not in OURS:
                failed = FAILED_LINE.search(COLOURS.sub("", "\n".join(output.traceback)))
                if not failed or int(failed[1]) > start:
                    output.ename, output.evalue = "", ""
                    output.traceback = [
                        "A hidden test tried your answer on another case and found it wrong."
                    ]
        return cell, resources


def _not_repeating(output: NotebookNode, hidden: set[str], inside: bool) -> NotebookNode:
    """Return an output as it is, or a line in its place if it has a line of a hidden test.

    The errors of a test itself stay: of those that a hidden part gave nothing is shown anyway.
    """
    if output.output_type == "error":
        own = output.evalue if inside else "".join([output.evalue, *output.traceback])
    else:
        own = output.get("text", "") + "".join(map(str, output.get("data", {}).values()))
    text = without_form(own)
    if any(line in text for line in hidden):
        return new_output("stream", name="stdout", text=REPEATS)
    return output


def _of_checks(text: str) -> str:
    """Return the lines of a text that are those of a check, or ours."""
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if line.startswith("✓") or line == REPEATS]
    others = any(line.strip() for line in lines if line not in kept)
    return "".join(kept) + PRINTED * others
