"""nbgrader's settings: assignments are written in solutions/ and released to exercises/.

    nbgrader generate_assignment --force '*'      # write exercises/ again after any edit
    nbgrader generate_assignment --force 01-plain # or one of them

Everything that grading makes (submissions, grades, feedback, the gradebook) stays in grading/,
which git ignores.
"""

import os
import sysconfig
from pathlib import Path

c = get_config()  # noqa: F821  nbgrader provides it

grading = Path(__file__).resolve().parent / "grading"
grading.mkdir(exist_ok=True)

c.CourseDirectory.course_id = "densenet-from-scratch"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"
c.CourseDirectory.submitted_directory = "grading/submitted"
c.CourseDirectory.autograded_directory = "grading/autograded"
c.CourseDirectory.feedback_directory = "grading/feedback"
c.CourseDirectory.db_url = f"sqlite:///{grading / 'gradebook.db'}"

# nbgrader starts alembic by its bare name, also where this environment is not activated.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]

c.ExecutePreprocessor.timeout = 60  # seconds for one cell; an endless loop is cut there
