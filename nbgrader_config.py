"""nbgrader's settings: assignments are written in solutions/ and released to exercises/.

    nbgrader generate_assignment --force '*'      # write exercises/ again after any edit
    nbgrader generate_assignment --force 01-plain # or one of them

Everything that grading makes (submissions, grades, feedback, the gradebook) stays in grading/,
which git ignores.
"""

import importlib.util
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

c.ExportPlugin.to = "grading/grades.csv"
c.ExportApp.plugin_class = "safe_grading.export.Table"

# What a learning platform gives belongs in grading/downloaded/01-plain/archive/, as it is: archives
# of Moodle, Canvas or Blackboard, or folders and files with the students' names.
c.ZipCollectApp.downloaded_directory = "grading/downloaded"
c.ZipCollectApp.extractor_plugin = "safe_grading.collect.ClassExtractor"
c.ZipCollectApp.collector_plugin = "safe_grading.collect.ClassCollector"
c.ZipCollectApp.force = (
    True  # what was unpacked before goes; what is handed in stays if it is the same
)

# nbgrader starts alembic by its bare name, also where this environment is not activated.
os.environ["PATH"] = sysconfig.get_path("scripts") + os.pathsep + os.environ["PATH"]

c.ExecutePreprocessor.timeout = 60  # seconds for one cell, when students press Validate

# Grading runs what strangers wrote. Steps of tools/safe_grading stand in for nbgrader's own where
# its own would trust them; tools/grade.py drives them, and the Formgrader uses them too.
c.SafeExecute.cell_timeout = 60  # seconds for one cell; an endless loop is cut there
c.SafeExecute.total_timeout = 300  # seconds for a submission
c.SafeExecute.memory = 4096  # MiB
c.SafeExecute.processes = 128
c.SafeExecute.characters = 100_000  # of output that are kept for one cell


def clear_scores(assignment, student, notebooks):
    """Start from zero, so that no earlier score stands if this run comes to nothing."""
    from safe_grading import scores  # not needed to write or release an assignment

    scores.clear(c.CourseDirectory.db_url, notebooks)


c.Autograde.pre_convert_hook = clear_scores
c.Autograde.sanitize_preprocessors = [
    "safe_grading.restore.RestoreCells",
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.OverwriteKernelspec",
    "nbgrader.preprocessors.OverwriteCells",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.Autograde.autograde_preprocessors = [
    "safe_grading.execute.SafeExecute",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "safe_grading.scores.FlagForAttention",
    "nbgrader.preprocessors.AssignLatePenalties",
    "safe_grading.harmless.MakeHarmless",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.AssignLatePenalties.plugin_class = "safe_grading.scores.LatePenalty"
c.LatePenalty.points_per_day = 0  # points off for each day begun after the due date

c.GenerateFeedback.preprocessors = [
    "nbgrader.preprocessors.GetGrades",
    "safe_grading.feedback.HideHiddenTests",
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]

# What students hand in must not run in the browser of whoever looks at it: how the Formgrader's
# pages and the feedback show it. Neither shows anything if tools/safe_grading is not installed.
c.HTMLExporter.sanitize_html = True
c.HTMLExporter.filters = {
    "markdown2html": "safe_grading.pages.markdown2html",
    "clean_html": "safe_grading.cleaning.clean_html",
    "get_metadata": "safe_grading.pages.get_metadata",
    "with_policy": "safe_grading.pages.with_policy",
}
if (safe_grading := importlib.util.find_spec("safe_grading")) and safe_grading.origin:
    c.HTMLExporter.template_file = str(Path(safe_grading.origin).with_name("page.html.j2"))
