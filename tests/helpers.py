"""What several test files need: places, notebooks and processes."""

import ast
import re
import socket
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "solutions").glob("*/*.ipynb"))
ASSIGNMENTS = [path.stem for path in SOLUTIONS]


# --- Notebooks -----------------------------------------------------------------------------------


@cache
def notebook(path: Path) -> nbformat.NotebookNode:
    """Return a notebook, read once for all tests: none of them may change it."""
    return nbformat.read(path, as_version=4)


def cells(path: Path, kind: str) -> list[nbformat.NotebookNode]:
    """Return the ``code`` or ``markdown`` cells of a notebook."""
    return [cell for cell in notebook(path).cells if cell.cell_type == kind]


def text_of(path: Path, kind: str = "markdown") -> str:
    """Return what the cells of one kind say, with an empty line between them."""
    return "\n\n".join(cell.source for cell in cells(path, kind))


def assignment_cells(folder: str, name: str) -> list[nbformat.NotebookNode]:
    """Return the cells of an assignment, as it stands in solutions/ or in exercises/."""
    return notebook(ROOT / folder / name / f"{name}.ipynb").cells


def assignment_cell(
    name: str, text: str, points: int | None = None, solution: bool = False, markdown: bool = False
) -> nbformat.NotebookNode:
    """Return a new cell with the role that it has in an assignment of nbgrader's."""
    meta = {"grade_id": name, "locked": not solution, "schema_version": 3, "task": False}
    meta |= {"grade": points is not None, "solution": solution}
    if points is not None:
        meta["points"] = points
    new = new_markdown_cell if markdown else new_code_cell
    return new(text, id=name, metadata={"nbgrader": meta})


def role(cell: nbformat.NotebookNode, key: str):
    """Return what nbgrader knows of a cell, or None."""
    return cell.metadata.get("nbgrader", {}).get(key)


def run_cell(source: str, namespace: dict) -> None:
    """Run the code of a cell, with its magics, as a notebook would."""
    exec(compile(TransformerManager().transform_cell(source), "<cell>", "exec"), namespace)


def classes_built_in(chapter: str) -> dict:
    """Run the imports and definitions of a chapter's cells, and nothing else of it."""
    [path] = [path for path in CHAPTERS if path.name.startswith(chapter)]
    namespace: dict = {"__name__": "chapter"}
    for cell in cells(path, "code"):
        source = "\n".join(
            "" if re.match(r"\s*%", line) else line for line in cell.source.splitlines()
        )
        wanted = (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
        for node in ast.parse(source).body:
            if isinstance(node, wanted):
                with suppress(NameError):  # a default value may be one of the settings
                    exec(compile(ast.Module([node], []), str(path), "exec"), namespace)
    return namespace


# --- Processes -----------------------------------------------------------------------------------


def free_ports(number: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def nbgrader(course: Path, *arguments: str) -> None:
    """Run nbgrader in a course, and show what it says if it fails."""
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, cwd=course, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
