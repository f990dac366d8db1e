"""Every assignment is released, explained and graded as it should be.

A new assignment needs no new test: it is found in solutions/. Wrong answers that its checks hold
themselves are tested in test_mistakes.py, others stand in tests/wrong_answers/NAME.toml. Each names
its cell, and either the whole code or a text to ``replace`` in the solution ``by`` another; then
what the check below it ``says``, or that only the ``hidden`` tests find it.

What nbgrader writes goes into a temporary copy of the course.
"""

import re
import shutil
import tomllib
from pathlib import Path

import nbformat
import pytest
from helpers import ASSIGNMENTS, ROOT, assignment_cells, nbgrader, role, run_cell
from nbgrader.api import Gradebook

from densenet_from_scratch.course import checks

WRONG_ANSWERS = [
    (name, answer)
    for name in ASSIGNMENTS
    for answer in tomllib.loads((ROOT / f"tests/wrong_answers/{name}.toml").read_text())["answer"]
]

assignment = pytest.mark.parametrize("name", ASSIGNMENTS)


def is_test(cell) -> bool:
    return cell.cell_type == "code" and bool(role(cell, "grade"))


# --- What an assignment looks like ---------------------------------------------------------------


def test_every_assignment_has_its_parts():
    assert len(ASSIGNMENTS) >= 3
    for folder in ("solutions", "exercises"):
        found = [path for path in sorted((ROOT / folder).glob("*")) if any(path.glob("*.ipynb"))]
        assert [path.name for path in found] == ASSIGNMENTS
    tables = sorted((ROOT / "tests/wrong_answers").glob("*.toml"))
    assert [path.stem for path in tables] == ASSIGNMENTS


@assignment
def test_the_assignment_keeps_the_conventions(name):
    cells = assignment_cells("solutions", name)
    assert sum(role(cell, "points") or 0 for cell in cells) == 10
    assert any(role(cell, "grade") and cell.cell_type == "markdown" for cell in cells)
    assert re.match(r"# Exercises \d+\. .*\n\n\*\*Time\*\*", cells[0].source)
    assert "](../../chapters/" in cells[0].source
    text = "\n".join(cell.source for cell in cells)
    assert re.search(r"^## Question \d+\. Find the bug$", text, flags=re.M)
    for cell in cells:
        if role(cell, "grade_id"):
            assert cell.id == role(cell, "grade_id")
        if cell.cell_type == "markdown" and role(cell, "grade"):
            assert "**Rubric.**" in cell.source


@assignment
def test_questions_say_how_hard_how_long_how_many_points_and_why(name):
    stated, given, number = 0, 0, 0
    for cell in assignment_cells("solutions", name):
        given += role(cell, "points") or 0
        if cell.source.startswith("## Question"):
            number += 1
            assert cell.source.startswith(f"## Question {number}. ")
            assert stated == given - (role(cell, "points") or 0), "points of the question before"
            assert "**Why it matters.**" in cell.source
            facts = re.search(r"^(●○○|●●○|●●●) · \d+ minutes · (\d+) points", cell.source, re.M)
            stated += int(facts[2])
    assert (number, stated, given) == (5, 10, 10)
    text = "\n".join(cell.source for cell in assignment_cells("solutions", name))
    assert text.count("<details><summary>Hint") == text.count("</details>") >= 2 * number


@assignment
def test_links_lead_somewhere(name):
    for folder in ("solutions", "exercises"):
        for cell in assignment_cells(folder, name):
            text = cell.source if cell.cell_type == "markdown" else ""
            for target in re.findall(r"\]\(([^)\s]+)\)", text):
                if not target.startswith(("http://", "https://")):
                    assert (ROOT / folder / name / target).exists(), target


# --- The release ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A copy of the course in which everything has been released."""
    course = tmp_path_factory.mktemp("course")
    shutil.copy(ROOT / "nbgrader_config.py", course)
    ignore = shutil.ignore_patterns(".ipynb_checkpoints")
    shutil.copytree(ROOT / "solutions", course / "solutions", ignore=ignore)
    nbgrader(course, "generate_assignment", "*")
    return course


def contents(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if ".ipynb_checkpoints" not in path.parts
    }


@assignment
def test_the_release_is_what_the_solution_gives(course, name):
    assert contents(ROOT / "exercises" / name) == contents(course / "exercises" / name), (
        f"exercises/{name} is not what solutions/{name} gives. Write it again:\n"
        f"    nbgrader generate_assignment --force {name}"
    )


@assignment
def test_the_release_opens_clean_and_tells_nothing(name):
    path = ROOT / "exercises" / name / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    assert not re.search("(BEGIN|END) (SOLUTION|HIDDEN)|Rubric|Model answer", path.read_text())
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    solved = {cell.id: cell for cell in assignment_cells("solutions", name)}
    for cell in notebook.cells:
        if is_test(cell):
            assert "checks." in cell.source
            assert "### BEGIN HIDDEN TESTS" in solved[cell.id].source


@assignment
def test_every_check_of_the_untouched_release_asks_for_an_answer(name):
    namespace = {"__name__": "__main__"}
    for cell in assignment_cells("exercises", name):
        if is_test(cell):
            with pytest.raises(NotImplementedError, match="your code is still missing"):
                run_cell(cell.source, namespace)
        elif cell.cell_type == "code":
            run_cell(cell.source, namespace)


# --- Wrong answers -------------------------------------------------------------------------------


def checks_below(name: str, answer: dict) -> tuple[dict, list]:
    """Run the solution with a wrong answer in it; return its names and the tests below it."""
    cells = [cell for cell in assignment_cells("solutions", name) if cell.cell_type == "code"]
    index = [cell.id for cell in cells].index(answer["cell"])
    source = answer.get("code", cells[index].source)
    if "replace" in answer:
        assert source.count(answer["replace"]) == 1, "the text to replace must occur once"
        source = source.replace(answer["replace"], answer["by"])
    namespace = {"__name__": "__main__"}
    for cell in cells[:index]:
        if not is_test(cell):
            run_cell(cell.source, namespace)
    run_cell(source, namespace)
    tests = []
    for cell in cells[index + 1 :]:
        if not is_test(cell):
            break
        tests.append(cell)
    return namespace, tests


@pytest.mark.parametrize(
    ("name", "answer"),
    WRONG_ANSWERS,
    ids=[f"{name}-{answer.get('says', 'hidden')}" for name, answer in WRONG_ANSWERS],
)
def test_a_wrong_answer_gets_its_message(name, answer):
    namespace, tests = checks_below(name, answer)
    released = {cell.id: cell for cell in assignment_cells("exercises", name)}
    message = None
    try:
        for cell in tests:
            run_cell(released[cell.id].source, namespace)
    except AssertionError as error:
        message = str(error)
    if not answer.get("hidden"):
        assert message is not None, "the checks accept it"
        assert answer["says"] in message.replace("\n", " ")
        assert "Traceback" not in message and len(message) < 500
    else:
        assert message is None
        with pytest.raises((AssertionError, KeyError)):
            for cell in tests:
                run_cell(cell.source, namespace)


def test_there_are_wrong_answers_for_every_answer():
    for name in ASSIGNMENTS:
        answers = {answer["cell"] for other, answer in WRONG_ANSWERS if other == name}
        solution_cells = {
            cell.id
            for cell in assignment_cells("solutions", name)
            if cell.cell_type == "code" and role(cell, "solution")
        }
        assert answers == solution_cells
        assert any(answer.get("hidden") for other, answer in WRONG_ANSWERS if other == name)


def test_every_check_is_called_by_an_assignment():
    text = "\n".join(
        cell.source for name in ASSIGNMENTS for cell in assignment_cells("solutions", name)
    )
    for name, value in vars(checks).items():
        if hasattr(value, "__wrapped__"):
            assert f"checks.{name}(" in text, name


# --- Grades --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grades(course) -> dict:
    """Grade two students in one run: one hands in the solutions, one two untouched releases."""
    for student, folder, names in (
        ("solved", "solutions", ASSIGNMENTS),
        ("untouched", "exercises", UNTOUCHED),
    ):
        for name in names:
            target = course / "grading/submitted" / student / name
            shutil.copytree(course / folder / name, target)
    nbgrader(course, "autograde", "*", "--SafeExecute.require_sandbox=False")
    found = {}
    with Gradebook(f"sqlite:///{course}/grading/gradebook.db", "densenet-from-scratch") as book:
        for name in ASSIGNMENTS:
            for submission in book.assignment_submissions(name):
                [notebook] = submission.notebooks
                found[name, submission.student.id] = {
                    grade.name: (grade.auto_score, grade.max_score, grade.needs_manual_grade)
                    for grade in notebook.grades
                }
    return found


@assignment
def test_the_solution_gets_full_marks(grades, name):
    cells = {cell.id: cell for cell in assignment_cells("solutions", name) if role(cell, "grade")}
    result = grades[name, "solved"]
    assert result.keys() == cells.keys()
    for key, (score, maximum, needs_manual_grade) in result.items():
        assert maximum == role(cells[key], "points")
        if is_test(cells[key]):
            assert (score, needs_manual_grade) == (maximum, False), key
        else:
            assert (score, needs_manual_grade) == (None, True), key


# That every check of all others refuses the untouched release is tested above, without grading it.
UNTOUCHED = ASSIGNMENTS[0], ASSIGNMENTS[-1]


@pytest.mark.parametrize("name", UNTOUCHED)
def test_the_untouched_release_gets_nothing(grades, name):
    for key, (score, _, needs_manual_grade) in grades[name, "untouched"].items():
        assert (score, needs_manual_grade) == (0, False), key
    assert grades[name, "untouched"].keys() == grades[name, "solved"].keys()
