"""The parts of tools/safe_grading, one by one; test_class.py grades a class with all of them."""

import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from nbgrader.api import Gradebook
from nbgrader.preprocessors import OverwriteCells
from nbgrader.utils import compute_checksum
from packaging.requirements import Requirement

from safe_grading import reading
from safe_grading.kernel import Result
from safe_grading.restore import Match, RestoreCells

HIDDEN = "\n### BEGIN HIDDEN TESTS\nassert double(0) == 0\n### END HIDDEN TESTS"


# --- How it is installed -------------------------------------------------------------------------


def config(code: str) -> str:
    """Read nbgrader_config.py in a new Python after running ``code``; return all it names."""
    program = (
        f"{code}\n"
        "from traitlets.config import PyFileConfigLoader\n"
        f"c = PyFileConfigLoader({str(ROOT / 'nbgrader_config.py')!r}).load_config()\n"
        "steps = [*c.Autograde.sanitize_preprocessors, *c.Autograde.autograde_preprocessors]\n"
        "steps += [*c.GenerateFeedback.preprocessors, c.AssignLatePenalties.plugin_class]\n"
        "print(*steps, sep='\\n')"
    )
    command = [sys.executable, "-P", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_configuration_only_names_its_steps():
    """So that who releases an assignment, or only validates it, needs no grading."""
    names = config("import sys; sys.modules['safe_grading'] = None").split()
    assert sum(name.startswith("safe_grading.") for name in names) == 5
    for name in names:
        module, _, what = name.rpartition(".")
        assert isinstance(getattr(__import__(module, fromlist=[what]), what), type), name


def test_it_asks_for_what_the_tested_versions_give():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for requirement in map(Requirement, requires("densenet-from-scratch-safe-grading")):
        assert requirement.specifier.contains(pins[requirement.name]), requirement


# --- Restoring cells -----------------------------------------------------------------------------


def released() -> nbformat.NotebookNode:
    def role(name: str, **roles: object) -> dict:
        meta = {"grade_id": name, "schema_version": 3, "task": False, "cell_type": "code"}
        meta |= {"grade": False, "solution": False, "locked": True} | roles
        return {"nbgrader": meta}

    test = {"grade": True, "points": 3}
    answer = {"solution": True, "locked": False}
    return new_notebook(
        cells=[
            new_markdown_cell("# Numbers", id="title"),
            new_code_cell("import math", id="imports", metadata=role("imports")),
            new_code_cell("def double(n): ...", id="double", metadata=role("double", **answer)),
            new_code_cell("assert double(1) == 2", id="test", metadata=role("test", **test)),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the release, and a gradebook that knows its hidden tests."""
    folder, release = tmp_path_factory.mktemp("grading"), released()
    nbformat.write(release, folder / "n.ipynb")
    with Gradebook(f"sqlite:///{folder}/gradebook.db") as gradebook:
        gradebook.add_assignment("a")
        gradebook.add_notebook("n", "a")
        for cell in release.cells[1:]:
            meta = cell.metadata.nbgrader
            source = cell.source + (HIDDEN if meta.grade else "")
            full = new_code_cell(source, metadata=cell.metadata)
            if meta.grade:
                gradebook.add_grade_cell("test", "n", "a", max_score=3, cell_type="code")
            stored = {"source": source, "checksum": compute_checksum(full)}
            gradebook.add_source_cell(
                meta.grade_id, "n", "a", cell_type="code", locked=meta.locked, **stored
            )
    return folder


@pytest.fixture
def restore(folder, caplog):
    """A function that restores a notebook as the pipeline does; it returns what is told."""

    class Restore(RestoreCells):
        def folder(self, *arguments):
            return folder

    def run(notebook: nbformat.NotebookNode) -> list[str]:
        url = f"sqlite:///{folder}/gradebook.db"
        info = {"notebook": "n", "assignment": "a", "student": "s", "db_url": url}
        Restore().preprocess(notebook, {"nbgrader": info})
        told = [record.getMessage() for record in caplog.records]
        OverwriteCells().preprocess(notebook, {"nbgrader": info})
        return [line.removeprefix("attention: ") for line in told]

    return run


def texts(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """The cells that have a role, in their order."""
    roles = [cell for cell in notebook.cells if "nbgrader" in cell.metadata]
    return {cell.metadata.nbgrader.grade_id: cell.source for cell in roles}


FULL = {"imports": "import math", "double": "def double(n): ...", "test": "assert double(1) == 2"}
FULL["test"] += HIDDEN


def test_an_honest_notebook_gets_its_hidden_tests_and_no_line(restore):
    notebook = released()
    assert restore(notebook) == []
    assert texts(notebook) == FULL
    assert notebook.cells[0].source == "# Numbers"


@pytest.mark.parametrize("missing", [["imports"], ["test"], ["imports", "test"]], ids="-".join)
def test_locked_cells_are_put_back_where_they_stood(restore, missing):
    notebook = released()
    notebook.cells = [cell for cell in notebook.cells if cell.id not in missing]
    told = restore(notebook)
    assert list(texts(notebook).items()) == list(FULL.items())
    kinds = {"imports": "cell", "test": "test"}
    assert told == [f"the {kinds[name]} {name} was missing; put back" for name in missing]


def test_without_the_answer_s_cell_its_test_is_put_back_at_the_end(restore):
    notebook = released()
    answer = [new_code_cell("two = 2"), new_code_cell("def double(n):\n    return two * n")]
    notebook.cells = notebook.cells[:2] + answer
    told = restore(notebook)
    assert told[0] == "the cell double for an answer was missing"
    assert notebook.cells[-1].source == FULL["test"]


def test_a_test_that_had_become_text_with_a_picture_is_code_again(restore):
    notebook = released()
    old = notebook.cells[3]
    picture = {"a.png": {"image/png": "AAAA"}}
    notebook.cells[3] = new_markdown_cell("done", metadata=old.metadata, attachments=picture)
    told = restore(notebook)
    assert "the test test had been edited; restored" in told
    assert "the cell test had become a markdown cell; it is a code cell again" in told
    assert (notebook.cells[3].cell_type, texts(notebook)["test"]) == ("code", FULL["test"])


def test_of_copies_the_last_answered_one_counts_and_the_others_have_no_role(restore):
    notebook = released()
    for source in ("def double(n): ...", "double = None"):
        copy = nbformat.from_dict(notebook.cells[2])
        copy.source = source
        notebook.cells.insert(3, copy)
    assert restore(notebook) == ["the cell double was there 3 times"]
    assert texts(notebook)["double"] == "double = None"
    assert len(notebook.cells) == 6 and len(texts(notebook)) == 3


def test_cells_without_metadata_are_recognised():
    release = released().cells
    mine = [new_code_cell(cell.source, id=f"c{n}") for n, cell in enumerate(release)]
    mine[2].source = "def double(n):\n    return n + n"
    match = Match(mine, [""] * 4, release)
    assert match.places == {index: [index] for index in range(4)}
    assert match.recognised == {"imports": "text", "test": "text", "double": "place"}
    mine.insert(2, new_code_cell("1 + 1"))  # now either could be the answer
    assert 2 not in Match(mine, [""] * 5, release).places


# --- Reading and running -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("import os.path, math\nfrom sys import exit", {"os.path", "sys"}),
        ("x.__code__ = y; eval('1')", {"__code__", "eval"}),
        ("class A:\n    def __eq__(self, other): ...\ndef len(x): ...", {"__eq__", "its own len"}),
        ("type = 1\nall([])", {"its own type"}),
        ("%matplotlib inline\nx = len([1])", {"get_ipython"}),
        ("def broken(", set()),
    ],
)
def test_suspicious_names_are_found(code, names):
    assert reading.suspicious(code) == names


def message(kind: str, **content: object) -> dict:
    return {"msg_type": kind, "header": {"msg_type": kind}, "content": content}


def test_outputs_stop_where_there_is_no_room_but_errors_do_not():
    result = Result(timeout=1, room=100)
    for _ in range(9):
        result.take(message("stream", name="stdout", text="x" * 30))
    result.take(message("error", ename="E", evalue="e" * 9999, traceback=["t" * 9999] * 99))
    text, error = result.outputs
    assert 30 <= len(text.text) <= 100 and result.dropped > 150
    assert result.failed and len(error.evalue) == 2000 and len(error.traceback) == 60
    assert result.take(message("status", execution_state="idle")) and result.idle
