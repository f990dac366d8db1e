"""Feedback pages: a student sees the visible tests, and of a hidden one only that it failed."""

import re
from typing import Any

from nbformat import NotebookNode
from nbgrader.preprocessors import ClearHiddenTests

HIDDEN = "BEGIN HIDDEN TESTS"
COLOURS = re.compile(r"\x1b\[[\d;]*m")
FAILED_LINE = re.compile(r"(?:Cell In|Input In) ?\[\d+\].*?line (\d+)", re.S)


class HideHiddenTests(ClearHiddenTests):
    """For feedback pages: hidden tests do not show, nor does what they said when they failed."""

    def preprocess_cell(
        self, cell: NotebookNode, resources: Any, cell_index: int
    ) -> tuple[NotebookNode, Any]:
        lines = cell.source.split("\n")
        start = next((number for number, line in enumerate(lines, 1) if HIDDEN in line), None)
        cell, resources = super().preprocess_cell(cell, resources, cell_index)
        if start is None:
            return cell, resources
        cell.source = cell.source.rstrip() + "\n# Hidden tests follow here."
        for output in cell.outputs:
            if output.output_type == "error":
                failed = FAILED_LINE.search(COLOURS.sub("", "\n".join(output.traceback)))
                if failed and int(failed[1]) > start:
                    output.ename, output.evalue = "", ""
                    output.traceback = [
                        "A hidden test tried your answer on another case and found it wrong."
                    ]
        return cell, resources
