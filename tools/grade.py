"""Grade a class: nbgrader's autograder, one student at a time, prepared for any submission.

    uv run python tools/grade.py 01-plain                  # what is new since the last time
    uv run python tools/grade.py 01-plain --force          # everyone again
    uv run python tools/grade.py 01-plain --student ada    # one

Submissions are in grading/submitted/STUDENT/01-plain/01-plain.ipynb. Each is graded in a process
of its own, which is ended when it takes too long, and its kernel in a sandbox; README.md says what
that keeps out. Scores go into nbgrader's gradebook as always: `nbgrader generate_feedback`,
`nbgrader export` and the Formgrader show them. What a person should look at is printed, and kept
with nbgrader's own log in grading/logs/01-plain/.
"""

import argparse
import functools
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import psutil
from nbgrader.api import Gradebook, MissingEntry
from nbgrader.apps import NbGraderApp

from safe_grading import sandbox
from safe_grading.names import printable, why_not_a_student
from safe_grading.report import ATTENTION, first_line
from safe_grading.scores import set_to_zero

LARGEST = 100 * 2**20  # bytes of a submitted notebook
MEMORY = 8 * 2**30  # bytes for nbgrader itself while it grades one submission
SPARE = 120  # seconds that nbgrader may need besides running the submission


@dataclass
class Outcome:
    """How grading one student went."""

    student: str
    seconds: float
    failed: bool
    attention: list[str]


def autograde(arguments: list[str], log: Path, temporary: str) -> None:
    """Run nbgrader in this process, which is a new one, and write what it says to ``log``."""
    tempfile.tempdir = temporary  # the parent removes it, also if this process is ended
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if os.name != "nt":
        import resource

        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    NbGraderApp.launch_instance(["autograde", *arguments])


def end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process and all that it started."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.kill()
    for child in family:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            pass
    process.join()


def composed(name: str) -> str:
    """Return a name in composed characters: é may be one, or an e and an accent."""
    return unicodedata.normalize("NFC", name)


class Grader:
    """Grades the submissions of one assignment of the course in the current folder."""

    def __init__(self, assignment: str, options: argparse.Namespace):
        self.assignment, self.options = assignment, options
        app = NbGraderApp.instance()
        app.initialize([])
        self.config = app.config
        self.course = app.coursedir
        NbGraderApp.clear_instance()
        self.logs = Path("grading/logs", assignment)
        self.logs.mkdir(parents=True, exist_ok=True)
        settings = self.config.get("SafeExecute", {})
        self.timeout = settings.get("total_timeout", 300) + SPARE

    @functools.cached_property
    def everyone(self) -> list[str]:
        """Who has handed something in for the assignment."""
        submitted = Path(self.course.format_path(self.course.submitted_directory, ".", "."))
        return sorted(path.parent.name for path in submitted.glob(f"*/{self.assignment}"))

    def students(self) -> list[str]:
        """Return who is to be graded."""
        wanted = {composed(student) for student in self.options.student or self.everyone}
        return [student for student in self.everyone if composed(student) in wanted]

    def unfit(self, student: str) -> str:
        """Return why a folder is no student's; nothing if its name may stand in the gradebook."""
        if why := why_not_a_student(student):
            return f"{why}: rename the folder"
        if sum(composed(other) == composed(student) for other in self.everyone) > 1:
            return "two folders have this name, in other characters: on other machines they are one"
        return ""

    def lacks_package(self) -> str:
        """Return why no submission could import the course's package; nothing if all can."""
        package = "densenet_from_scratch"
        released = self.folder(self.course.release_directory, ".")
        texts = [path.read_text(errors="replace") for path in released.glob("*.ipynb")]
        if sandbox.packages().get(package) or not any(package in text for text in texts):
            return ""
        return (
            f"Where submissions run, {sys.executable} finds no {package}: PYTHONPATH and the "
            f"current folder do not count there. Install it: {sys.executable} -m pip install ."
        )

    def folder(self, step: str, student: str) -> Path:
        """Return where a step of nbgrader has a student's files."""
        return Path(self.course.format_path(step, student, self.assignment))

    def is_graded(self, student: str) -> bool:
        """Return whether the submission as it is now has been graded."""
        log = self.log(student)
        if self.unfit(student) or not log.exists():
            return False
        newest = max(
            (path.lstat().st_mtime for path in self.folder("submitted", student).rglob("*")),
            default=0,
        )
        return newest < log.stat().st_mtime

    def refusal(self, student: str) -> str:
        """Return why a submission cannot be given to nbgrader; nothing if it can."""
        folder = self.folder(self.course.submitted_directory, student)
        if folder.is_symlink() or not folder.is_dir():
            return "what was handed in is not a folder"
        if links := [path for path in folder.rglob("*") if path.is_symlink()]:
            return f"it has links to other files ({first_line(links[0].name)})"
        with Gradebook(self.course.db_url) as gradebook:
            names = [
                notebook.name for notebook in gradebook.find_assignment(self.assignment).notebooks
            ]
        for name in names:
            path = folder / f"{name}.ipynb"
            if not path.is_file():
                others = ", ".join([first_line(p.name) for p in folder.glob("*.ipynb")][:3])
                hint = f"; found {others}: rename it if it is the one" if others else ""
                return f"there is no {name}.ipynb{hint}"
            if path.stat().st_size > LARGEST:
                return f"{name}.ipynb is larger than {LARGEST >> 20} MiB"
        return ""

    def grade(self, students: list[str]) -> Iterator[Outcome]:
        """Grade students, ``--jobs`` at a time; whatever happens, the gradebook says what is so."""
        waiting, running = list(reversed(students)), []
        while waiting or running:
            while waiting and len(running) < self.options.jobs:
                student = waiting.pop()
                if why := self.unfit(student):
                    yield Outcome(student, 0, True, [why])
                    continue
                set_to_zero(self.course.db_url, self.assignment, student)
                started = time.perf_counter()
                why = self.refusal(student)
                if why:
                    self.log(student).write_text(f"{ATTENTION}{why}\n")
                    yield self.outcome(student, started, why)
                else:
                    temporary = tempfile.mkdtemp(prefix="grade")
                    process = self.start(student, temporary)
                    running.append((student, started, temporary, process))
            wait([process.sentinel for *_, process in running], timeout=1)
            for job in list(running):
                student, started, temporary, process = job
                why = ""
                if process.exitcode is None:
                    if time.perf_counter() - started < self.timeout:
                        continue
                    why = f"nbgrader was ended after {self.timeout} s"
                elif process.exitcode:
                    why = "nbgrader could not grade it"
                end(process)
                shutil.rmtree(temporary, ignore_errors=True)
                running.remove(job)
                yield self.outcome(student, started, why)

    def start(self, student: str, temporary: str) -> multiprocessing.process.BaseProcess:
        """Start nbgrader for one student."""
        # nbgrader takes this for a pattern, but quotation marks around it away.
        pattern = re.sub("^'", "[']", student)
        arguments = [self.assignment, f"--student={pattern}", "--force"]
        if self.options.no_sandbox:
            arguments.append("--SafeExecute.require_sandbox=False")
        # Forked where that is safe: nbgrader takes seconds to import.
        method = "fork" if sys.platform == "linux" else "spawn"
        process = multiprocessing.get_context(method).Process(
            target=autograde, args=(arguments, self.log(student), temporary)
        )
        process.start()
        return process

    def outcome(self, student: str, started: float, why: str) -> Outcome:
        """Return how it went; if it did not go, no score stands."""
        text = self.log(student).read_text(errors="replace")
        lines = [line.split(ATTENTION, 1)[1] for line in text.splitlines() if ATTENTION in line]
        if why:
            set_to_zero(self.course.db_url, self.assignment, student)
            errors = re.findall(r"^ *(?:\w+\.)*(\w+(?:Error|Exception)\b.*)$", text, re.M)
            if errors and not lines:
                why += f": {first_line(errors[-1], 150)}"
            if why not in lines:
                lines.append(why)
        seconds = time.perf_counter() - started
        return Outcome(student, seconds, bool(why), list(dict.fromkeys(lines)))

    def log(self, student: str) -> Path:
        """Return where nbgrader's log of a student is."""
        return self.logs / f"{student}.log"

    def score(self, student: str) -> str:
        """Return what the gradebook says: points, of how many, and how many await a person."""
        with Gradebook(self.course.db_url) as gradebook:
            try:
                submission = gradebook.find_submission(self.assignment, student)
            except MissingEntry:
                return "no submission"
            grades = [grade for notebook in submission.notebooks for grade in notebook.grades]
            waiting = sum(grade.max_score for grade in grades if grade.needs_manual_grade)
            text = f"{submission.score:g} of {submission.max_score:g}"
            return text + (f", {waiting:g} wait for a person" if waiting else "")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("assignment", help="the name of its folder, for example 01-plain")
    parser.add_argument("--student", action="append", help="only this one (may be repeated)")
    parser.add_argument("--force", action="store_true", help="also what has been graded before")
    parser.add_argument("--jobs", type=int, default=1, help="how many students at a time")
    parser.add_argument(
        "--no-sandbox",
        action="store_true",
        help="where there is no sandbox, grade with limits only: submissions can then read the "
        "solutions and write the gradebook",
    )
    return parser.parse_args()


def main() -> int:
    """Grade what the command line asks for; return 1 if a submission could not be graded."""
    options = arguments()
    if why := sandbox.unavailable():
        print(f"No sandbox: {why}.")
        if not options.no_sandbox:
            print("Nothing was graded. See --help for --no-sandbox, and README.md for containers.")
            return 1
        print("Submissions run as you, under limits only: they can read and write your files.")
    sys.stdout.reconfigure(errors="backslashreplace")  # a name must not stop a class
    grader = Grader(options.assignment, options)
    try:
        with Gradebook(grader.course.db_url) as gradebook:
            gradebook.find_assignment(options.assignment)
    except MissingEntry:
        print(f"Release it first: nbgrader generate_assignment --force {options.assignment}")
        return 1
    if why := grader.lacks_package():
        print(f"Nothing was graded. {why}")
        return 1
    students = [s for s in grader.students() if options.force or not grader.is_graded(s)]
    if not students:
        print("Nothing new to grade. --force grades again what has been graded.")
    failed = 0
    for outcome in grader.grade(students):
        failed += outcome.failed
        score = "not graded" if grader.unfit(outcome.student) else grader.score(outcome.student)
        print(f"{printable(outcome.student)}: {score} ({outcome.seconds:.0f} s)", flush=True)
        for line in outcome.attention:
            print(f"    {line}", flush=True)
    print(f"{len(students)} graded, {failed} of them could not be; logs in {grader.logs}/")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
