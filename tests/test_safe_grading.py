"""The parts of tools/safe_grading, one by one; test_class.py grades a class with all of them."""

import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbgrader.api import Gradebook
from nbgrader.preprocessors import OverwriteCells
from nbgrader.utils import compute_checksum
from packaging.requirements import Requirement

from safe_grading import cleaning, reading
from safe_grading.feedback import HideHiddenTests
from safe_grading.harmless import clean_output
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
    assert sum(name.startswith("safe_grading.") for name in names) == 6
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


# --- What may be looked at -----------------------------------------------------------------------
# Whether something still runs is tried in a browser, in test_pages_of_submissions.py.


@pytest.mark.parametrize(
    ("given", "clean", "told"),
    [
        ("<b>a</b> &lt; 2 &amp; c", "<b>a</b> &lt; 2 &amp; c", ""),
        ("<style>p {}</style><script>x</script>a", "a", "a script"),
        ('<p onclick="x" onload="y">a</p>', "<p>a</p>", "2 event handlers"),
        ('<a href="java&#115;cript:x">a</a>', "a", "a link that runs code"),
        ('<a href="files/javascript:x">a</a>', "a", "a link that runs code"),
        ('<a href="https://x.org/?a&amp;b">a</a>', "a (https://x.org/?a&amp;b)", ""),
        ('<img src="https://x.org" alt="&lt;b&gt;">', "[picture: &lt;b&gt;]", ""),
        ('<img src="data:image/svg+xml;base64,AA">', "[picture: not shown]", ""),
        ('<p style="color:red">a</p>', '<p style="color:red;">a</p>', ""),
        ('<p style="color:re\\64;">a</p>', "<p>a</p>", ""),
        ('<p class="comment">a</p><p id="score">b</p>', "<p>a</p><p>b</p>", ""),
        ("&#92;hr&#101;f{x}", "\\\u200chref{x}", "a LaTeX macro that links or loads"),
        ("C:\\data <code>\\href{x}</code>", "C:\\\u200cdata <code>\\\u200chref{x}</code>", ""),
    ],
)
def test_html_is_cleaned_and_what_is_not_honest_told(given, clean, told):
    assert cleaning.clean_html(given) == clean
    found = cleaning.findings(given)
    assert (cleaning.in_words(found) if found else "") == told
    assert cleaning.clean_html(clean) == clean


def test_drawings_keep_their_shapes():
    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = f'{head} width="9"><script>x</script><g clip-path="url(#a)" onload="x">'
    svg += '<use xlink:href="#b"/>'
    svg += '<use href="http://x.org#c"/><path style="fill: url(http://x.org)" d="M 0 0"/></g></svg>'
    clean = cleaning.clean_svg(svg)
    assert 'width="9"' in clean and 'clip-path="url(#a)"' in clean and 'd="M 0 0"' in clean
    assert 'xlink:href="#b"' in clean
    assert not any(word in clean for word in ("script", "onload", "x.org"))
    for broken in ("<svg>", "<p>a</p>", '<!DOCTYPE svg [<!ENTITY a "b">]><svg/>', 3):
        assert cleaning.clean_svg(broken) == ""


def test_text_keeps_its_colours_only():
    text = "\x1b[31mred\x1b[0m\x1b]8;;javascript:x\x07link\x1b]8;;\x07\x1b[2J\x00\tend\n"
    assert cleaning.clean_text(text) == "\x1b[31mred\x1b[0mlink\tend\n"


def test_outputs_are_text_and_pictures():
    data = {
        "text/plain": "<IPython.core.display.Latex object>",
        "text/latex": "$x$",
        "application/vnd.x+json": {},
    }
    shown = new_output("display_data", data, metadata={"application/vnd.x+json": {"x": 1}})
    assert not clean_output(shown)
    assert (shown.data, shown.metadata) == ({"text/plain": "$x$"}, {})
    picture = {"image/png": "AAAA", "image/jpeg": '"><b>'}
    sizes = {"image/png": {"width": "1 onerror=x", "height": 3}}
    shown = new_output("display_data", picture, metadata=sizes)
    assert not clean_output(shown)
    assert (shown.data, shown.metadata) == ({"image/png": "AAAA"}, {"image/png": {"height": 3}})
    shown = new_output("display_data", {"application/javascript": "alert(1)"})
    assert clean_output(shown) == {"JavaScript output": 1}
    assert shown.data == {"text/plain": "alert(1)"}


def test_an_output_with_a_line_of_a_hidden_test_is_not_shown():
    role = {"grade": True, "solution": False, "locked": True, "grade_id": "test", "points": 1}
    role |= {"schema_version": 3, "task": False, "cell_type": "code"}
    test = new_code_cell(f"assert double(1) == 2{HIDDEN}", metadata={"nbgrader": role})
    printed = new_output("stream", text="✓ right\nnumber 0\n")
    test.outputs = [printed, new_output("display_data", {"text/plain": "0"})]
    other = new_code_cell("print(1)", outputs=[new_output("stream", text=repr(HIDDEN))])
    honest = new_code_cell("print(1)", outputs=[new_output("stream", text="double(0) is 0")])
    notebook = new_notebook(cells=[test, other, honest])
    HideHiddenTests().preprocess(notebook, {})
    assert [output.text for output in test.outputs] == [
        "✓ right\n(what your code prints while hidden tests run is not shown)\n"
    ]
    assert other.outputs[0].text == "(not shown: it repeats a hidden test)\n"
    assert honest.outputs[0].text == "double(0) is 0"
