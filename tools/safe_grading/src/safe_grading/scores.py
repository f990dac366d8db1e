"""Scores: none stands from an earlier run, none that cannot be trusted; late work costs points."""

import math
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.plugins import LateSubmissionPlugin
from nbgrader.preprocessors import NbGraderPreprocessor
from sqlalchemy.exc import SAWarning
from traitlets import Float


def clear(db_url: str, notebooks: Iterable[str]) -> None:
    """Clear the scores of submissions before they are graded, by the paths of their notebooks.

    So that none from an earlier run stands if this run comes to nothing: the score is then 0 and
    the submission waits for a person.
    """
    for notebook in map(Path, notebooks):
        set_to_zero(db_url, notebook.parent.name, notebook.parent.parent.name)


def set_to_zero(db_url: str, assignment: str, student: str) -> None:
    """Give a submission 0 for every graded cell, and mark it as waiting for a person."""
    with warnings.catch_warnings(), Gradebook(db_url) as gradebook:
        warnings.simplefilter("ignore", SAWarning)  # about how nbgrader makes a submission
        gradebook.update_or_create_student(student)
        submission = gradebook.update_or_create_submission(assignment, student)
        for notebook in submission.notebooks:
            for grade in notebook.grades:
                grade.auto_score, grade.needs_manual_grade = 0, True
            notebook.late_submission_penalty = None
        gradebook.db.commit()


class FlagForAttention(NbGraderPreprocessor):
    """After the scores are saved: those that could not be trusted wait for a person."""

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        info = resources["nbgrader"]
        with Gradebook(info["db_url"]) as gradebook:
            for name in resources.get("distrusted", ()):
                grade = gradebook.find_grade(
                    name, info["notebook"], info["assignment"], info["student"]
                )
                grade.auto_score, grade.needs_manual_grade = 0, True
            gradebook.db.commit()
        return nb, resources


class LatePenalty(LateSubmissionPlugin):
    """Takes points off for each day, or part of one, that a notebook is late."""

    points_per_day = Float(0, help="points taken off for each day begun after the due date").tag(
        config=True
    )

    def late_submission_penalty(
        self, student_id: str, score: float, total_seconds_late: float
    ) -> float:
        """Return how many points are taken off; nbgrader takes no more than there are."""
        return self.points_per_day * math.ceil(total_seconds_late / 86_400)
