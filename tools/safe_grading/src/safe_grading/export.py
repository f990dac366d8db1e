"""The table of marks, with quotes around what holds a comma: a name may."""

import csv
from typing import Any

from nbgrader.api import Gradebook, MissingEntry
from nbgrader.plugins import ExportPlugin

FIELDS = (
    *("assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email"),
    *("raw_score", "late_submission_penalty", "score", "max_score"),
)


class Table(ExportPlugin):
    """The columns and rows of nbgrader's own table, written by Python's csv."""

    def export(self, gradebook: Gradebook) -> None:
        """Write a row for every student and assignment, or for those that were asked for."""
        target = self.to or "grades.csv"
        self.log.info(f"Exporting grades to {target}")
        assignments, students = set(self.assignment or ()), set(self.student or ())
        with open(target, "w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, FIELDS)
            table.writeheader()
            for assignment in gradebook.assignments:
                for student in gradebook.students:
                    if assignments and assignment.name not in assignments:
                        continue
                    if students and student.id not in students:
                        continue
                    table.writerow(_row(gradebook, assignment, student))


def _row(gradebook: Gradebook, assignment: Any, student: Any) -> dict[str, Any]:
    row = {
        "assignment": assignment.name,
        "duedate": assignment.duedate,
        "student_id": student.id,
        "last_name": student.last_name,
        "first_name": student.first_name,
        "email": student.email,
        "raw_score": 0.0,
        "late_submission_penalty": 0.0,
        "score": 0.0,
        "max_score": assignment.max_score,
    }
    try:
        submission = gradebook.find_submission(assignment.name, student.id)
    except MissingEntry:
        return row  # nothing handed in, no points
    penalty = submission.late_submission_penalty or 0.0
    return row | {
        "timestamp": submission.timestamp,
        "raw_score": submission.score,
        "late_submission_penalty": penalty,
        "score": max(0.0, submission.score - penalty),
    }
