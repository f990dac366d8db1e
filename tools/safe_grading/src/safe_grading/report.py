"""What the lecturer is told.

Each line stands in nbgrader's log after ``attention:``; tools/grade.py collects them.
"""

import re
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

ATTENTION = "attention: "
HIDDEN = "BEGIN HIDDEN TESTS"  # in a cell before them, as nbgrader has it
COLOURS = re.compile(r"\x1b\[[\d;]*m")


def first_line(text: str, length: int = 100) -> str:
    """Return what of a text a student wrote may stand in a log: one line, not too long."""
    return repr(text[:length])[1:-1]


def grade_id(cell: NotebookNode) -> str:
    """Return nbgrader's name of a cell; nothing if it has none."""
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


class Step(NbGraderPreprocessor):
    """A step of nbgrader's pipeline that can tell the lecturer something."""

    def tell(self, text: str) -> None:
        """Write a line for the lecturer."""
        self.log.warning(f"{ATTENTION}{text}")

    def folder(self, directory: str, student: str, resources: Any) -> Path:
        """Return where one of nbgrader's directories has the assignment's files."""
        course = self.parent.parent.coursedir
        assignment = resources["nbgrader"]["assignment"]
        return Path(course.format_path(getattr(course, directory), student, assignment))
