"""Runs a submission as nbgrader's Execute does, but prepared for the worst."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from traitlets import Bool, Integer

from safe_grading import sandbox
from safe_grading.report import ATTENTION, Step
from safe_grading.submission import Conditions, Submission
from safe_grading.trust import Trust


class SafeExecute(Step):
    """Run a submission in a sandbox, under limits of memory, processes, time and output.

    Around each test a guard puts back what the submission has replaced. If the kernel dies, the
    cell at fault fails, and the others are graded in a new kernel in which it is left out.
    """

    cell_timeout = Integer(60, help="seconds for one cell").tag(config=True)
    total_timeout = Integer(300, help="seconds for a submission").tag(config=True)
    memory = Integer(4096, help="MiB of memory for a submission").tag(config=True)
    processes = Integer(128, help="processes for a submission").tag(config=True)
    characters = Integer(100_000, help="characters of output kept for a cell").tag(config=True)
    max_restarts = Integer(5, help="new kernels for a submission whose kernel died").tag(
        config=True
    )
    require_sandbox = Bool(
        True, help="refuse to grade where there is no sandbox for the submission"
    ).tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        why = sandbox.unavailable()
        if why and self.require_sandbox:
            raise RuntimeError(f"{ATTENTION}not graded: {why}. README.md says what you can do")
        resources["distrusted"] = set(nb.metadata.pop("attention", []))
        with tempfile.TemporaryDirectory(prefix="files") as folder:
            self._stage(Path(folder), resources)
            given = Conditions(
                files=Path(folder),
                limits=sandbox.Limits(
                    memory=self.memory << 20, cpu=2 * self.total_timeout, processes=self.processes
                ),
                isolated=not why,
                characters=self.characters,
                cell_timeout=self.cell_timeout,
                total_timeout=self.total_timeout,
                max_restarts=self.max_restarts,
            )
            trust = Trust(self, resources["distrusted"])
            Submission(self, nb.cells, given, trust).run()
        nb.metadata["language_info"] = {"name": "python"}
        return nb, resources

    def _stage(self, files: Path, resources: Any) -> None:
        """Copy the files that belong to a submission, and no links and no notebooks."""
        student = resources["nbgrader"]["student"]
        for source in (
            self.folder("submitted_directory", student, resources),
            self.folder("source_directory", ".", resources),
        ):
            for path in source.rglob("*"):
                target = files / path.relative_to(source)
                if path.is_symlink() or ".ipynb" in path.name or ".ipynb_" in str(path):
                    continue
                if path.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                elif path.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)
