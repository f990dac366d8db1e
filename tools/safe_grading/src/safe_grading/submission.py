"""Runs the cells of a submission in their order, in as many kernels as that takes."""

import time
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader import utils

from safe_grading.kernel import KernelDied, Result, error_output
from safe_grading.report import Step, grade_id
from safe_grading.sandbox import Limits
from safe_grading.trust import GuardedKernel, Trust, imports_of_locked

IMPORTING = 60  # seconds more than a cell has, for the imports of the tests


@dataclass(frozen=True)
class Conditions:
    """What a submission runs under; times in seconds."""

    files: Path
    limits: Limits
    isolated: bool
    characters: int  # of output for one cell
    cell_timeout: float
    total_timeout: float
    max_restarts: int


def is_run(cell: NotebookNode) -> bool:
    """Return whether there is something to run in a cell."""
    return cell.cell_type == "code" and bool(cell.source.strip())


class Submission:
    """The cells of a submission while they are run.

    If the kernel dies, the cell at fault fails, and the others are graded in a new kernel in which
    it is left out.
    """

    def __init__(self, step: Step, cells: list[NotebookNode], given: Conditions, trust: Trust):
        self.step, self.cells, self.given, self.trust = step, cells, given, trust
        self.deadline = time.monotonic() + given.total_timeout
        self.kernel: GuardedKernel | None = None
        self.left_out: set[int] = set()  # the places of cells that a new kernel does not run again
        self.deaths = 0

    def run(self) -> None:
        """Run all cells, and write what they show into them."""
        try:
            for index, cell in enumerate(self.cells):
                if is_run(cell):
                    cell.outputs, cell.execution_count = [], None
                    self._run_or_refuse(index, cell)
        finally:
            self._stop()
        if self._seconds_left() < 0:
            self.step.tell(
                f"the submission used up its {self.given.total_timeout:g} s; cells after that were "
                "not run"
            )
        elif self.deaths > self.given.max_restarts:
            self.step.tell(f"{self.deaths} kernels died; the cells after were not run")

    def _seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def _name(self, index: int) -> str:
        name = grade_id(self.cells[index])
        return f"cell {index} ({name})" if name else f"cell {index}"

    # --- Kernels ---------------------------------------------------------------------------------

    def _start(self) -> None:
        given = self.given
        kernel = GuardedKernel(given.files, given.limits, given.isolated, given.characters)
        self.kernel = kernel
        kernel.guard(imports_of_locked(self.cells), given.cell_timeout + IMPORTING)

    def _stop(self) -> None:
        if self.kernel is not None:
            self.kernel.stop()
            self.kernel = None

    def _replay(self, end: int) -> None:
        """Run again what an earlier kernel ran before a place, but no tests."""
        for index, cell in enumerate(self.cells[:end]):
            if is_run(cell) and not utils.is_grade(cell) and index not in self.left_out:
                self._execute(cell)

    # --- Cells -----------------------------------------------------------------------------------

    def _run_or_refuse(self, index: int, cell: NotebookNode) -> None:
        late = self._seconds_left() <= 0
        if late or self.deaths > self.given.max_restarts:
            why = "time" if late else "new kernels"
            text = f"not run: the submission has used up its {why}"
            cell.outputs = [error_output("NotRun", text)]
            return
        try:
            if self.kernel is None:
                self._start()
                self._replay(index)
            result = self._execute(cell)
        except KernelDied as error:
            self.deaths += 1
            self.left_out.add(index)
            self._stop()
            cell.outputs.append(error_output("KernelDied", f"the kernel died: {error}"))
            self.step.tell(f"the kernel died in {self._name(index)}: {error}")
        else:
            self._show(index, cell, result)

    def _execute(self, cell: NotebookNode) -> Result:
        assert self.kernel is not None
        timeout = max(1, min(self.given.cell_timeout, self._seconds_left()))
        if utils.is_locked(cell):
            return self.trust.run(self.kernel, cell, timeout)
        return self.kernel.run(cell.source, timeout)

    def _show(self, index: int, cell: NotebookNode, result: Result) -> None:
        """Write into a cell what it gave, and tell the lecturer what is not as usual."""
        cell.outputs, cell.execution_count = result.outputs, result.reply.get("execution_count")
        if result.late:
            text = f"interrupted after {result.timeout:g} s"
            cell.outputs.append(error_output("CellTimeout", text))
        elif result.reply.get("status") != "ok" and not result.shows_error:
            text = str(result.reply.get("evalue", "the cell was not run"))[:500]
            cell.outputs.append(error_output(str(result.reply.get("ename", "Error")), text))
        test = utils.is_locked(cell) and utils.is_grade(cell)
        if test and result.reply.get("ename") == "SystemExit":
            self.step.tell(f"{self._name(index)} was left by SystemExit")
        if any(output.get("ename") == "MemoryError" for output in cell.outputs):
            self.step.tell(f"{self._name(index)} ran out of memory")
        if result.dropped:
            self.step.tell(f"{self._name(index)} wrote {result.dropped:,} characters too many; cut")
            cut = f"\n… cut: {result.dropped:,} characters more\n"
            cell.outputs.append(new_output("stream", name="stdout", text=cut))
        if test:
            self.trust.settle(cell)
        if result.late:
            self.left_out.add(index)
            self.step.tell(
                f"{self._name(index)} was interrupted after {self.given.cell_timeout:g} s"
            )
