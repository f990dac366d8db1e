"""Steps that nbgrader_config.py puts into nbgrader's pipeline.

Every line for the lecturer starts with ``attention:`` in nbgrader's log; tools/grade.py collects
them.
"""

import ast
import json
import math
import re
import secrets
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.api import Gradebook
from nbgrader.plugins import LateSubmissionPlugin
from nbgrader.preprocessors import ClearHiddenTests, NbGraderPreprocessor
from sqlalchemy.exc import SAWarning
from traitlets import Bool, Float, Integer

from safe_grading import guard, sandbox
from safe_grading.kernel import Kernel, KernelDied, Result, error_output

ATTENTION = "attention: "
HIDDEN = "BEGIN HIDDEN TESTS"


def first_line(text: str, length: int = 100) -> str:
    """Return what of a text a student wrote may stand in a log: one line, not too long."""
    return repr(text[:length])[1:-1]


def clear_scores(db_url: str) -> Callable[..., None]:
    """Return a hook for nbgrader that clears the scores of a submission before it is graded.

    So that none from an earlier run stands if this run comes to nothing: the score is then 0 and
    the submission waits for a person.
    """

    def hook(assignment: str, student: str, notebooks: list[str]) -> None:
        for notebook in map(Path, notebooks):
            set_to_zero(db_url, notebook.parent.name, notebook.parent.parent.name)

    return hook


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


class RestoreCells(NbGraderPreprocessor):
    """Give a submission the cells of the release again, whatever has become of them.

    A cell is recognised by its grade id; if nbgrader's metadata are gone, by its cell id, by its
    text, or as the only one left between two that are recognised. Tests and other locked cells get
    the text that the gradebook has; deleted ones are put back where they stood. Metadata that no
    released cell has are dropped, so nobody adds points.
    """

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        info = resources["nbgrader"]
        notebook, assignment = info["notebook"], info["assignment"]
        course = self.parent.parent.coursedir
        folder = Path(course.format_path(course.release_directory, ".", assignment))
        release = nbformat.read(folder / f"{notebook}.ipynb", as_version=4)
        with Gradebook(info["db_url"]) as gradebook:
            known = gradebook.find_notebook(notebook, assignment)
            full = {cell.name: cell.source for cell in known.source_cells}
        if nb.metadata.get("kernelspec", {}).get("name") != release.metadata.kernelspec.name:
            name = first_line(str(nb.metadata.get("kernelspec", {}).get("name")))
            self.log.warning(
                f"{ATTENTION}asks for the kernel {name}; graded with "
                f"{release.metadata.kernelspec.name}"
            )
        nb.metadata = release.metadata.copy()
        self._unattach(nb)
        places = self._match(nb, release)
        self._metadata(nb, release, places, full)
        self._missing(nb, release, places, full)
        released = {cell.source for cell in release.cells}
        questions = [c for c in release.cells if c.cell_type == "code" and "nbgrader" in c.metadata]
        given = set().union(*(suspicious(cell.source) for cell in questions))
        for index, cell in enumerate(nb.cells):
            cell.id = f"cell-{index}"  # two cells of a submission may claim the same
            if cell.cell_type == "code" and not utils.is_locked(cell):
                found = suspicious(cell.source) if cell.source not in released else set()
                if found := found - given:  # an answer may use what its question shows
                    names = ", ".join(sorted(found))
                    self.log.warning(f"{ATTENTION}cell {index} uses {names}: read it")
        nb.nbformat, nb.nbformat_minor = 4, 5
        return nb, resources

    @staticmethod
    def _unattach(nb: NotebookNode) -> None:
        """Set nbgrader's metadata aside, whatever shape they have, as the claim of each cell."""
        for cell in nb.cells:
            claim = cell.metadata.pop("nbgrader", None)
            claim = claim.get("grade_id") if isinstance(claim, dict) else None
            cell.claim = claim if isinstance(claim, str) else None

    def _match(self, nb: NotebookNode, release: NotebookNode) -> dict[int, list[int]]:
        """Return for each released cell, by its place, where it is in the submission."""
        places: dict[int, list[int]] = {}
        taken: set[int] = set()

        def take(index: int, found: list[int]) -> None:
            places[index] = found
            taken.update(found)

        def free(cell: NotebookNode, key: str, value: Any) -> list[int]:
            return [
                index
                for index, other in enumerate(nb.cells)
                if index not in taken and other.get(key) == value and value
            ]

        ids = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in release.cells]
        for index, cell in enumerate(release.cells):
            if ids[index] and (found := free(cell, "claim", ids[index])):
                take(index, found)
        for key in ("id", "source"):
            for index, cell in enumerate(release.cells):
                if index not in places and (found := free(cell, key, cell.get(key))):
                    if ids[index]:
                        self.log.warning(
                            f"{ATTENTION}the metadata of cell {ids[index]} were gone; it was "
                            f"recognised by its {'cell id' if key == 'id' else 'text'}"
                        )
                    take(index, found[:1] if key == "id" else found)
        for index, cell in enumerate(release.cells):
            # A locked cell found so would lose its text: it may be the student's.
            if index in places or not cell.metadata.get("nbgrader", {}).get("solution"):
                continue
            before = max((max(p) for i, p in places.items() if i < index), default=-1)
            after = min((min(p) for i, p in places.items() if i > index), default=len(nb.cells))
            between = [
                place
                for place in range(before + 1, after)
                if place not in taken and nb.cells[place].cell_type == cell.cell_type
            ]
            if len(between) == 1:
                self.log.warning(
                    f"{ATTENTION}the metadata of cell {ids[index]} were gone; it was recognised "
                    "by its place"
                )
                take(index, between)
        return places

    def _metadata(
        self,
        nb: NotebookNode,
        release: NotebookNode,
        places: dict[int, list[int]],
        full: dict[str, str],
    ) -> None:
        drop: list[NotebookNode] = []
        for index, cell in enumerate(release.cells):
            meta = cell.metadata.get("nbgrader")
            if not meta or index not in places:
                continue
            name, found = meta["grade_id"], [nb.cells[place] for place in places[index]]
            chosen = found[-1]
            if meta["solution"]:
                # The last copy with something in it; the others stay, without a role.
                chosen = ([one for one in found if one.source != cell.source] or found)[-1]
            else:
                drop += found[:-1]
                if any(one.source not in (cell.source, full[name]) for one in found):
                    kind = "test" if meta["grade"] else "locked cell"
                    self.log.warning(f"{ATTENTION}the {kind} {name} had been edited; restored")
                chosen.source = full[name]
            if len(found) > 1:
                self.log.warning(f"{ATTENTION}the cell {name} was there {len(found)} times")
            if chosen.cell_type != cell.cell_type:
                self.log.warning(
                    f"{ATTENTION}the cell {name} had become a {chosen.cell_type} cell; it is a "
                    f"{cell.cell_type} cell again"
                )
                chosen.cell_type = cell.cell_type
            chosen.metadata = NotebookNode(cell.metadata.copy())
        nb.cells = [cell for cell in nb.cells if not any(cell is other for other in drop)]
        for cell in nb.cells:
            if cell.pop("claim", None) and "nbgrader" not in cell.metadata:
                self.log.warning(
                    f"{ATTENTION}ignored nbgrader's metadata of a cell that begins "
                    f"'{first_line(cell.source, 40)}'"
                )
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
            else:
                cell.pop("outputs", None)
                cell.pop("execution_count", None)

    def _missing(
        self,
        nb: NotebookNode,
        release: NotebookNode,
        places: dict[int, list[int]],
        full: dict[str, str],
    ) -> None:
        """Put back what was deleted, after the nearest released cell before it that is there."""
        nb.metadata["attention"] = []
        present = {cell.metadata["nbgrader"]["grade_id"]: cell for cell in _graded(nb)}
        last, answered = -1, True
        for cell in release.cells:
            meta = cell.metadata.get("nbgrader")
            if not meta:
                continue
            name = meta["grade_id"]
            if meta["solution"]:
                answered = name in present
            if name in present:
                last = max(last, next(i for i, c in enumerate(nb.cells) if c is present[name]))
                continue
            if meta["solution"] and not meta["grade"]:
                # The stub put back could undo an answer that stands in a cell of its own.
                self.log.warning(f"{ATTENTION}the cell {name} for an answer was missing")
                continue
            copy = NotebookNode(cell.copy())
            copy.metadata = NotebookNode(cell.metadata.copy())
            if meta["solution"]:
                nb.metadata["attention"].append(name)  # the text may stand somewhere else
            else:
                copy.source = full[name]
            what = "test" if meta["grade"] and not meta["solution"] else "cell"
            self.log.warning(f"{ATTENTION}the {what} {name} was missing; put back")
            # Without the cell of the answer, the answer may stand anywhere: then test at the end.
            last = last + 1 if answered else len(nb.cells)
            nb.cells.insert(last, copy)


def _graded(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if "nbgrader" in cell.metadata]


class SafeExecute(NbGraderPreprocessor):
    """Run a submission as nbgrader's Execute does, but prepared for the worst.

    Its kernel is in a sandbox, under limits of memory, processes, time and output. Around each
    test a guard puts back what the submission has replaced. If the kernel dies, the cell at fault
    fails, and the others are graded in a new kernel in which it is left out.
    """

    cell_timeout = Integer(60, help="seconds for one cell").tag(config=True)
    total_timeout = Integer(300, help="seconds for a submission").tag(config=True)
    memory = Integer(4096, help="MiB of memory for a submission").tag(config=True)
    processes = Integer(128, help="processes and threads for a submission").tag(config=True)
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
        self.cells = nb.cells
        self.distrusted: set[str] = set()
        self.told: set[str] = set()
        resources["distrusted"] = self.distrusted
        self.deadline = time.monotonic() + self.total_timeout
        self.limits = sandbox.Limits(
            memory=self.memory << 20, cpu=2 * self.total_timeout, processes=self.processes
        )
        self.distrusted |= set(nb.metadata.pop("attention", []))
        with tempfile.TemporaryDirectory(prefix="files") as folder:
            self.files, self.isolated = Path(folder), not why
            self._stage(resources)
            self._run(nb)
        nb.metadata["language_info"] = {"name": "python"}
        return nb, resources

    # --- What a submission brings along ----------------------------------------------------------

    def _stage(self, resources: Any) -> None:
        """Copy the files that belong to a submission, and no links and no notebooks."""
        info = resources["nbgrader"]
        course = self.parent.parent.coursedir
        for directory, student in (
            (course.submitted_directory, info["student"]),
            (course.source_directory, "."),
        ):
            source = Path(course.format_path(directory, student, info["assignment"]))
            for path in source.rglob("*"):
                target = self.files / path.relative_to(source)
                if path.is_symlink() or ".ipynb" in path.name or ".ipynb_" in str(path):
                    continue
                if path.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                elif path.is_file():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)

    # --- Running it -------------------------------------------------------------------------------

    def _imports(self) -> str:
        """Return the import statements of the locked cells, which the guard runs first."""
        locked = [c for c in self.cells if c.cell_type == "code" and utils.is_locked(c)]
        return "\n".join(ast.unparse(node) for cell in locked for node in imports(cell.source))

    def _start(self) -> Kernel:
        kernel = Kernel(self.files, self.limits, self.isolated, self.characters)
        self.place, self.secret = f"_{secrets.token_hex(8)}", secrets.token_hex(8)
        source = Path(guard.__file__).read_text()
        code = (
            "import builtins as _b\n"
            f"_g = {{'__builtins__': dict(vars(_b)), '__name__': '_'}}\n"
            f"exec(compile({source!r}, '<guard>', 'exec'), _g)\n"
            f"_g['install']({self.secret!r}, {self.place!r}, {self._imports()!r})\n"
            "del _g, _b"
        )
        try:
            result = kernel.run(code, self.cell_timeout + 60, silent=True)
            if result.failed:
                said = result.reply.get("evalue", "")
                raise RuntimeError(f"the imports of the tests do not run: {said}")
        except BaseException:
            kernel.stop()  # nobody else knows it, and its open channels would wait for ever
            raise
        return kernel

    def _run(self, nb: NotebookNode) -> None:
        kernel: Kernel | None = None
        bad: set[int] = set()
        deaths = 0
        try:
            for index, cell in enumerate(nb.cells):
                if cell.cell_type != "code" or not cell.source.strip():
                    continue
                cell.outputs, cell.execution_count = [], None
                left = self.deadline - time.monotonic()
                if left <= 0 or deaths > self.max_restarts:
                    why = "time" if left <= 0 else "new kernels"
                    text = f"not run: the submission has used up its {why}"
                    cell.outputs = [error_output("NotRun", text)]
                    continue
                try:
                    if kernel is None:
                        kernel = self._start()
                        for earlier in range(index):
                            if earlier not in bad and self._replays(nb.cells[earlier]):
                                self._cell(kernel, nb.cells[earlier], replay=True)
                    self._cell(kernel, cell)
                except KernelDied as error:
                    deaths += 1
                    bad.add(index)
                    if kernel is not None:
                        kernel.stop()
                    kernel = None
                    cell.outputs.append(error_output("KernelDied", f"the kernel died: {error}"))
                    self.log.warning(
                        f"{ATTENTION}the kernel died in {self._name(index, cell)}: {error}"
                    )
                if cell.get("late"):
                    del cell["late"]
                    bad.add(index)
                    self.log.warning(
                        f"{ATTENTION}{self._name(index, cell)} was interrupted after "
                        f"{self.cell_timeout} s"
                    )
        finally:
            if kernel is not None:
                kernel.stop()
        if time.monotonic() > self.deadline:
            self.log.warning(
                f"{ATTENTION}the submission used up its {self.total_timeout} s; cells after that "
                "were not run"
            )
        elif deaths > self.max_restarts:
            self.log.warning(f"{ATTENTION}{deaths} kernels died; the cells after were not run")

    @staticmethod
    def _replays(cell: NotebookNode) -> bool:
        return cell.cell_type == "code" and bool(cell.source.strip()) and not utils.is_grade(cell)

    @staticmethod
    def _name(index: int, cell: NotebookNode) -> str:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
        return f"cell {index} ({name})" if name else f"cell {index}"

    def _cell(self, kernel: Kernel, cell: NotebookNode, replay: bool = False) -> None:
        locked = utils.is_locked(cell)
        test = locked and utils.is_grade(cell)
        if locked:
            self._ask(kernel, cell, "enter()")
        timeout = max(1, min(self.cell_timeout, self.deadline - time.monotonic()))
        result = kernel.run(cell.source, timeout)
        if locked:
            names = [
                n.asname or n.name.split(".")[0] for i in imports(cell.source) for n in i.names
            ]
            told = self._ask(kernel, cell, f"leave({names}, trust={not test})")
            if told and test:
                self._distrust(cell, result, f"while it ran, {told} was replaced")
        if test and not result.failed:
            self._canary(kernel, cell, result)
        if replay:
            return
        cell.outputs, cell.execution_count = result.outputs, result.reply.get("execution_count")
        if result.late:
            cell.late = True
            text = f"interrupted after {timeout:g} s"
            cell.outputs.append(error_output("CellTimeout", text))
        elif result.reply.get("status") != "ok" and not any(
            output.output_type == "error" for output in cell.outputs
        ):
            text = str(result.reply.get("evalue", "the cell was not run"))[:500]
            cell.outputs.append(error_output(str(result.reply.get("ename", "Error")), text))
        if test and result.reply.get("ename") == "SystemExit":
            self.log.warning(
                f"{ATTENTION}{self._name(self.cells.index(cell), cell)} was left by SystemExit"
            )
        if any(output.get("ename") == "MemoryError" for output in cell.outputs):
            self.log.warning(
                f"{ATTENTION}{self._name(self.cells.index(cell), cell)} ran out of memory"
            )
        if result.dropped:
            self.log.warning(
                f"{ATTENTION}{self._name(self.cells.index(cell), cell)} wrote "
                f"{result.dropped:,} characters too many; cut"
            )
            cut = f"\n… cut: {result.dropped:,} characters more\n"
            cell.outputs.append(nbformat.v4.new_output("stream", name="stdout", text=cut))
        if test:
            self._settle(cell)

    def _ask(self, kernel: Kernel, cell: NotebookNode, what: str) -> str:
        """Call the guard; return what it found replaced. No answer is a finding too."""
        expression = f"get_ipython().kernel.{self.place}.{what}"
        result = kernel.run("", 30, silent=True, expressions={"guard": expression})
        name = cell.metadata["nbgrader"]["grade_id"]
        try:
            text = result.reply["user_expressions"]["guard"]["data"]["text/plain"]
            report = json.loads(ast.literal_eval(text))
            if report["secret"] != self.secret:
                raise ValueError
        except (KeyError, ValueError, SyntaxError, TypeError):
            if utils.is_grade(cell):
                self.distrusted.add(name)
            self.log.warning(
                f"{ATTENTION}the guard of the tests no longer answers at {name}; it scores 0"
            )
            return "the guard"
        changed = [first_line(str(one)) for one in report["changed"]]
        if what.startswith("enter"):
            changed = [one for one in changed if one not in self.told]
            self.told |= {one for one in changed if one.startswith("the name")}  # not put back
            if changed:
                self.log.warning(f"{ATTENTION}put back before {name}: {', '.join(changed)}")
            threads = [first_line(str(one)) for one in report["threads"]]
            if threads:
                self.log.warning(
                    f"{ATTENTION}threads still run at {name}: {', '.join(threads[:5])}"
                )
        return ", ".join(changed)

    def _canary(self, kernel: Kernel, cell: NotebookNode, result: Result) -> None:
        """Make sure that a failure would have been seen."""
        token = secrets.token_hex(8)
        told = kernel.run(f"raise AssertionError({token!r})", 30, counted=False)
        seen = [output for output in told.outputs if output.output_type == "error"]
        right = told.reply.get("evalue") == token and [o.evalue for o in seen] == [token]
        if not right:
            self._distrust(cell, result, "a failure put there on purpose was not reported")

    def _distrust(self, cell: NotebookNode, result: Result, why: str) -> None:
        name = cell.metadata["nbgrader"]["grade_id"]
        self.distrusted.add(name)
        result.outputs.append(error_output("NotTrusted", f"not counted: {why}"))
        self.log.warning(f"{ATTENTION}the test {name} scores 0: {why}")

    def _settle(self, cell: NotebookNode) -> None:
        """Leave only outputs from which nbgrader reads the right score.

        nbgrader takes the first value that a test shows for a partial score, so what an answer
        shows through ``sys.displayhook`` must not stay; and text on stderr for a failure, but a
        warning is none.
        """
        if cell.metadata["nbgrader"]["grade_id"] in self.distrusted and not any(
            output.output_type == "error" for output in cell.outputs
        ):
            cell.outputs.append(error_output("NotTrusted", "not counted: the guard is gone"))
        body = ast.parse(TransformerManager().transform_cell(cell.source)).body
        failed = any(output.output_type == "error" for output in cell.outputs)
        values = [o for o in cell.outputs if o.output_type == "execute_result"]
        gives_value = bool(body) and isinstance(body[-1], ast.Expr) and not failed
        keep = values[-1:] if gives_value else []
        if len(values) > len(keep):
            self.log.warning(
                f"{ATTENTION}ignored a value shown during {cell.metadata['nbgrader']['grade_id']}"
            )
        cell.outputs = [o for o in cell.outputs if o.output_type != "execute_result"] + keep
        printed = 0
        for output in cell.outputs:
            if output.output_type == "stream":
                output.name = "stdout"
                lines = output.text.splitlines()
                printed += sum(bool(line) and not line.startswith("✓") for line in lines)
        if printed:
            self.log.info(
                f"{cell.metadata['nbgrader']['grade_id']} printed {printed} lines that are not its "
                "checks'; they decide nothing"
            )


def imports(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Return the import statements of a cell."""
    body = ast.parse(TransformerManager().transform_cell(source)).body
    return [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]


SUSPICIOUS_MODULES = set(
    "_ctypes builtins ctypes faulthandler gc importlib ipykernel marshal mmap multiprocessing "
    "os pickle resource shutil signal socket sqlite3 subprocess sys threading zmq".split()
)
SUSPICIOUS_NAMES = set("__builtins__ compile eval exec get_ipython setattr".split())
SUSPICIOUS_METHODS = set(
    "__bool__ __eq__ __getattr__ __getattribute__ __instancecheck__ __torch_function__".split()
)
SUSPICIOUS_ATTRIBUTES = set(
    "__builtins__ __closure__ __code__ __globals__ __subclasses__ _getframe ast_transformers "
    "displayhook f_globals set_custom_exc settrace".split()
)
# What tests judge by.
JUDGES = set("abs all any callable hasattr isinstance issubclass len type".split())


def suspicious(source: str) -> set[str]:
    """Return the names in a cell that exercises have no use for."""
    try:
        tree = ast.parse(TransformerManager().transform_cell(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, "module", None) or "", *(name.name for name in node.names)]
            found |= {m for m in modules if m.split(".")[0] in SUSPICIOUS_MODULES}
        elif isinstance(node, ast.Attribute) and node.attr in SUSPICIOUS_ATTRIBUTES:
            found.add(node.attr)
        elif isinstance(node, ast.FunctionDef) and node.name in SUSPICIOUS_METHODS:
            found.add(node.name)
        elif isinstance(node, ast.FunctionDef) and node.name in JUDGES:
            found.add(f"its own {node.name}")
        elif isinstance(node, ast.Name) and node.id in SUSPICIOUS_NAMES:
            found.add(node.id)
        elif isinstance(node, ast.Name) and node.id in JUDGES and isinstance(node.ctx, ast.Store):
            found.add(f"its own {node.id}")
    return found


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
                text = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(output.traceback))
                found = re.search(r"(?:Cell In|Input In) ?\[\d+\].*?line (\d+)", text, re.S)
                if found and int(found[1]) > start:
                    output.ename, output.evalue = "", ""
                    output.traceback = [
                        "A hidden test tried your answer on another case and found it wrong."
                    ]
        return cell, resources
