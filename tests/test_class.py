"""A class is graded: forty students, right, wrong, late, careless and hostile.

Most of them work on a small assignment that this test writes; some on the real first one. All are
graded in one go by tools/grade.py in a copy of the course. Each hostile submission states the
points that it deserves and the line that the lecturer must see.
"""

import csv
import functools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT, assignment_cell, nbgrader
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from nbgrader.api import Gradebook

from safe_grading import sandbox
from safe_grading.kernel import Kernel, KernelDied

SMALL, REAL = "00-small", "01-plain"
SECRET = "a-hidden-case"  # in a hidden test of the small assignment
NO_SANDBOX = sandbox.unavailable()
needs_sandbox = pytest.mark.skipif(bool(NO_SANDBOX), reason=f"no sandbox: {NO_SANDBOX}")
SETTINGS = """
c.SafeExecute.cell_timeout = {seconds}
c.SafeExecute.total_timeout = {seconds} * 60
c.SafeExecute.memory = 2048
c.LatePenalty.points_per_day = 1
"""


@functools.cache
def cell_seconds() -> int:
    """Seconds for a cell: honest ones need the time that importing PyTorch takes here, or less."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return max(5, math.ceil(3 * (time.perf_counter() - started)))


# --- A small assignment --------------------------------------------------------------------------

AREA = "def area(radius):\n    {}return math.pi * radius**2\n"
DOUBLE = "def double(number):\n    {}return number * 2\n"
COUNT = "def count(text):\n    {}return len(text.split())\n"
STUB = "### BEGIN SOLUTION\n    {}\n    ### END SOLUTION"


def solution(code: str) -> str:
    head, body = code.replace("{}", "").split("\n    ", 1)
    return f"{head}\n    {STUB.format(body.strip())}"


def small_assignment() -> NotebookNode:
    """The source of an assignment of 8 points: 2, 3 and 2 by tests, 1 by a person."""

    def test(name, points, visible, hidden):
        hidden = f"### BEGIN HIDDEN TESTS\n{hidden}\n### END HIDDEN TESTS"
        return assignment_cell(name, f"{visible}\n{hidden}", points)

    cells = [
        new_markdown_cell("# Small numbers", id="title"),
        assignment_cell("imports", "import math"),
        new_markdown_cell("## The area of a circle", id="area-text"),
        assignment_cell("area", solution(AREA), solution=True),
        test(
            "area-test",
            2,
            "assert math.isclose(area(1), math.pi)",
            f'assert math.isclose(area(3), 9 * math.pi), "{SECRET}"',
        ),
        new_markdown_cell("## Twice a number", id="double-text"),
        assignment_cell("double", solution(DOUBLE), solution=True),
        test(
            "double-test",
            3,
            "assert type(double(4)) is int and double(4) == 8",
            "assert [double(n) for n in range(9)] == list(range(0, 18, 2))",
        ),
        new_markdown_cell("## How many words", id="count-text"),
        assignment_cell("count", solution(COUNT), solution=True),
        test(
            "count-test",
            2,
            'assert count("a b") == 2',
            'assert isinstance(count(""), int) and count("") == 0 and count("a  b c") == 3\n'
            'assert sum(count(text) for text in ["x", "y z"]) == 3',
        ),
        new_markdown_cell("## Why?", id="why-text"),
        assignment_cell("why", "Because it is so.", 1, solution=True, markdown=True),
    ]
    notebook = new_notebook(cells=cells)
    notebook.metadata.kernelspec = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    return notebook


# --- Submissions ---------------------------------------------------------------------------------


@dataclass
class Case:
    """A submission: how it is made, what it deserves, and what the lecturer must be told."""

    make: Callable[[NotebookNode], object]
    scores: tuple  # of the graded cells in order; None awaits a person
    says: str = ""  # a regular expression with SECONDS for a cell's; without one, nothing is said
    assignment: str = SMALL
    failed: bool = False  # nothing could be graded, and all of it awaits a person
    days_late: int = 0
    files: Callable[[Path], object] | None = None  # changes the folder that was handed in


CASES: dict[str, Case] = {}


def find(notebook: NotebookNode, name: str) -> NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == name)


def place(notebook: NotebookNode, name: str) -> int:
    return notebook.cells.index(find(notebook, name))


def solve(notebook: NotebookNode, **others: str) -> None:
    """Write the right answers, and others in place of some."""
    answers = {"area": AREA, "double": DOUBLE, "count": COUNT} | others
    for name, code in answers.items():
        find(notebook, name).source = code.replace("{}", "")
    find(notebook, "why").source = "Because words are counted, not letters."


def before(name: str, code: str, **others: str) -> Callable[[NotebookNode], None]:
    """Right answers, and a cell with ``code`` before a cell."""

    def make(notebook: NotebookNode) -> None:
        solve(notebook, **others)
        notebook.cells.insert(place(notebook, name), new_code_cell(code))

    return make


def answers(**others: str) -> Callable[[NotebookNode], None]:
    return lambda notebook: solve(notebook, **others)


def changed(change: Callable[[NotebookNode], object]) -> Callable[[NotebookNode], None]:
    """Right answers, and then a change to the notebook."""

    def make(notebook: NotebookNode) -> None:
        solve(notebook)
        change(notebook)

    return make


def case(name: str, *arguments, **keywords) -> None:
    assert name not in CASES
    CASES[name] = Case(*arguments, **keywords)


ALL, NONE = (2, 3, 2, None), (0, 0, 0, 0)
WRONG_AREA = "def area(radius):\n    return 0\n"

# Honest work.
for student in ("ada", "ben", "cai"):
    case(student, answers(), ALL)
case("dora-untouched", lambda notebook: None, NONE)
case("eli-partly", answers(double="def double(n):\n    return n + n + 1"), (2, 0, 2, None))
case("fay-hidden", answers(area="def area(r):\n    return math.pi * r"), (0, 3, 2, None))
case("gil-floats", answers(double="def double(n):\n    return 2.0 * n"), (2, 0, 2, None))
case("hal-all-wrong", answers(area=WRONG_AREA, double="double = 2", count="0"), (0, 0, 0, None))
case("ida-late", answers(), ALL, days_late=1)
case("jon-later", answers(area=WRONG_AREA), (0, 3, 2, None), days_late=3)
case("kim-very-late", answers(), ALL, days_late=30)
case("leo-syntax", answers(count="def count(text)\n    return 1"), (2, 3, 0, None))
case("mia-own-cells", before("double-test", "list = [1]\nF = 3\nprint(list)"), ALL)
case("ned-warns", answers(area=AREA.format("import warnings; warnings.warn('old'); ")), ALL)


def colab(notebook: NotebookNode) -> None:
    """Other cell ids, other metadata, as another notebook application writes them."""
    solve(notebook)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"c{number}"
        cell.metadata["colab"] = {"base_uri": "https://localhost/"}
    notebook.metadata = NotebookNode(colab={"name": "x"}, kernelspec={"name": "python3"})


case("oli-elsewhere", colab, ALL)


def windows(notebook: NotebookNode) -> None:
    """Line endings and metadata as an editor on Windows may save them."""
    solve(notebook)
    for cell in notebook.cells:
        cell.source = cell.source.replace("\n", "\r\n")
        cell.metadata["vscode"] = {"languageId": "python"}
    notebook.metadata.kernelspec.display_name = ".venv (3.12.1)"


case("pat-on-windows", windows, ALL)

# Names as people have them.
for student in ("O'Brien", "प्रिया शर्मा", "Lee, Ann (2)", "'Zoe\u0308'"):
    case(student, answers(), ALL)

# Code that does not end, or ends everything.
case(
    "loop",
    before("double", "while True:\n    pass"),
    ALL,
    r"cell 6 was interrupted after SECONDS s",
)
case(
    "loop-in-answer",
    answers(double="def double(number):\n    while True:\n        pass"),
    (2, 0, 2, None),
    r"cell \d+ \(double-test\) was interrupted after SECONDS s",
)
SWALLOW = (
    "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n"
)
SWALLOW += "        pass"
case(
    "loop-swallows-interrupts",
    before("double", SWALLOW),
    ALL,
    r"the kernel died in cell 6: it did not stop within SECONDS s, nor when interrupted",
)
case(
    "exits",
    answers(double="def double(number):\n    import os\n    os._exit(0)"),
    (2, 0, 2, None),
    r"the kernel died in cell \d+ \(double-test\): it ended itself, with exit status 0",
)
case(
    "exits-at-once",
    before("area", "import os\nos._exit(0)"),
    ALL,
    r"the kernel died in cell 3: it ended itself, with exit status 0",
)
case(
    "leaves-politely",
    answers(double="def double(n):\n    raise SystemExit"),
    (2, 0, 2, None),
    r"\(double-test\) was left by SystemExit",
)

# Code that takes too much.
case(
    "memory",
    answers(double="def double(n):\n    x = []\n    while True:\n        x.append(bytes(10**8))"),
    (2, 0, 2, None),
    r"\(double-test\).*memory|double-test ran out of memory",
)
if not NO_SANDBOX or os.geteuid():  # else nothing limits the processes of root
    case(
        "fork-bomb",
        before("double", "import os\nwhile True:\n    os.fork()"),
        ALL,
        r"uses os: read it",
    )
case(
    "long-line",
    before("double", "print('x' * 60_000_000)"),
    ALL,
    r"cell 6 wrote [\d,]+ characters too many; cut",
)
case(
    "flood",
    before("double", "while True:\n    print('x' * 1000)"),
    ALL,
    r"cell 6 wrote [\d,]+ characters too many; cut",
)

# Notebooks that are not what was released.


def strip(notebook: NotebookNode) -> None:
    for cell in notebook.cells:
        cell.metadata.pop("nbgrader", None)


def strip_all(notebook: NotebookNode) -> None:
    strip(notebook)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"c{number}"


def one_cell(notebook: NotebookNode) -> None:
    code = "\n\n".join(find(notebook, name).source for name in ("imports", "area", "double"))
    notebook.cells = [new_code_cell(code)]


def remove(*names: str) -> Callable[[NotebookNode], None]:
    def change(notebook: NotebookNode) -> None:
        notebook.cells = [cell for cell in notebook.cells if cell.id not in names]

    return change


def twice(name: str) -> Callable[[NotebookNode], None]:
    def change(notebook: NotebookNode) -> None:
        copy = nbformat.from_dict(find(notebook, name).copy())
        copy.id = "copy"
        notebook.cells.insert(place(notebook, name), copy)

    return change


def edit(name: str, source: str) -> Callable[[NotebookNode], None]:
    def change(notebook: NotebookNode) -> None:
        find(notebook, name).source = source

    return change


def as_markdown(notebook: NotebookNode) -> None:
    index = place(notebook, "double-test")
    old = notebook.cells[index]
    notebook.cells[index] = new_markdown_cell("passed", id=old.id, metadata=old.metadata)


def more_points(notebook: NotebookNode) -> None:
    find(notebook, "area-test").metadata.nbgrader.points = 100
    meta = dict(find(notebook, "area-test").metadata.nbgrader, grade_id="bonus")
    notebook.cells.append(new_code_cell("1 + 1", metadata={"nbgrader": meta}))


def other_roles(notebook: NotebookNode) -> None:
    find(notebook, "area-test").metadata.nbgrader |= {"solution": True, "locked": False}
    find(notebook, "area-test").source = "pass"
    find(notebook, "double-test").metadata.nbgrader = ["what", "is", "this"]
    find(notebook, "count-test").metadata.nbgrader.schema_version = 1
    del find(notebook, "count-test").metadata.nbgrader["points"]


recognised = r"the metadata of cell double-test were gone; it was recognised by its "
case("stripped", changed(strip), ALL, recognised + "cell id")
case("stripped-and-renamed", changed(strip_all), ALL, recognised + "text")
case(
    "all-in-one-cell", changed(one_cell), (2, 3, 0, 0), r"the test area-test was missing; put back"
)
case(
    "test-deleted",
    changed(remove("double-test")),
    ALL,
    r"the test double-test was missing; put back",
)
case(
    "test-deleted-answer-wrong",
    lambda n: (solve(n, double="def double(n):\n    return 0"), remove("double-test")(n)),
    (2, 0, 2, None),
    r"the test double-test was missing; put back",
)
case("answer-copied", changed(twice("double")), ALL, r"the cell double was there 2 times")
case("test-copied", changed(twice("double-test")), ALL, r"the cell double-test was there 2 times")
case(
    "test-edited",
    lambda n: (solve(n, double="def double(n):\n    return 0"), edit("double-test", "pass")(n)),
    (2, 0, 2, None),
    r"the test double-test had been edited; restored",
)
case("test-as-text", changed(as_markdown), ALL, r"double-test had become a markdown cell")
case("more-points", changed(more_points), ALL, r"ignored nbgrader's metadata of a cell .* '1 \+ 1'")
case("other-roles", changed(other_roles), ALL, r"the test area-test had been edited; restored")
case(
    "other-kernel",
    changed(lambda n: n.metadata.update(kernelspec={"name": "../evil", "display_name": "x"})),
    ALL,
    r"asks for the kernel \.\./evil; graded with python3",
)

# Files that are not what was asked for.


def rewrite(text: Callable[[str], str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / f"{SMALL}.ipynb"
        path.write_text(text(path.read_text()))

    return change


def version_4_0(text: str) -> str:
    notebook = json.loads(text)
    notebook["nbformat_minor"] = 0
    for cell in notebook["cells"]:
        del cell["id"]
    return json.dumps(notebook)


def without_ids(text: str) -> str:
    """As programs write it that know the older format only."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        del cell["id"]
    return json.dumps(notebook, indent=4).replace("\n", "\r\n")


def version_3(text: str) -> str:
    notebook = json.loads(text)
    cells = []
    for cell in notebook["cells"]:
        del cell["id"]
        if cell["cell_type"] == "code":
            cell |= {"input": cell.pop("source"), "language": "python", "collapsed": False}
            cell["prompt_number"] = cell.pop("execution_count")
        cells.append(cell)
    return json.dumps(
        {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": cells}]}
    )


def link(folder: Path) -> None:
    (folder / f"{SMALL}.ipynb").unlink()
    (folder / f"{SMALL}.ipynb").symlink_to(f"../../../../solutions/{SMALL}/{SMALL}.ipynb")


case(
    "not-json",
    answers(),
    NONE,
    r"nbgrader could not grade it: NotJSONError",
    failed=True,
    files=rewrite(lambda text: text[:-200]),
)
case(
    "nested-json",
    answers(),
    NONE,
    r"nbgrader could not grade it: RecursionError",
    failed=True,
    files=rewrite(lambda text: "[" * 100_000),
)
case(
    "json-but-no-notebook",
    answers(),
    NONE,
    r"nbgrader could not grade it",
    failed=True,
    files=rewrite(lambda text: "{}"),
)
case("without-cell-ids", answers(), ALL, files=rewrite(without_ids))
case("format-4-0", answers(), ALL, files=rewrite(version_4_0))
case("format-3", answers(), ALL, r"asks for the kernel None", files=rewrite(version_3))
case(
    "no-notebook",
    answers(),
    NONE,
    rf"there is no {SMALL}\.ipynb$",
    failed=True,
    files=lambda folder: (folder / f"{SMALL}.ipynb").unlink(),
)
case(
    "renamed",
    answers(),
    NONE,
    rf"there is no {SMALL}\.ipynb; found mine \(1\)\.ipynb: rename it",
    failed=True,
    files=lambda folder: (folder / f"{SMALL}.ipynb").rename(folder / "mine (1).ipynb"),
)
case(
    "link",
    answers(),
    NONE,
    rf"it has links to other files \({SMALL}\.ipynb\)",
    failed=True,
    files=link,
)

# Answers that try to be right without being so.
ALWAYS = """\
class Always:
    def __eq__(self, other):
        return True
    def __getattr__(self, name):
        return lambda *a, **k: Always()
    def __call__(self, *arguments, **options):
        return Always()
    def __bool__(self):
        return True
    def __float__(self):
        return 3.14
    def __iter__(self):
        return iter([])
"""
case(
    "always-equal",
    answers(area=f"{ALWAYS}area = Always()", double="double = area", count="count = area"),
    (0, 0, 0, None),
    r"cell 3 uses __bool__, __eq__, __getattr__: read it",
)
case(
    "prints-scores",
    answers(double="def double(n):\n    print('score: 3/3 passed')\n    return 0"),
    (2, 0, 2, None),
)
case(
    "shows-scores",
    answers(double="import sys\ndef double(n):\n    sys.displayhook(3)\n    return 0"),
    (2, 0, 2, None),
    r"ignored a value shown during double-test",
)
case(
    "replaces-a-function",
    before("area", "import math\nmath.isclose = lambda *a, **k: True", area=WRONG_AREA),
    (0, 3, 2, None),
    r"put back before area-test: math\.isclose",
)
case(
    "replaces-it-during-the-test",
    answers(area="def area(r):\n    math.isclose = lambda *a, **k: True\n    return 0"),
    (0, 3, 2, None),
    r"the test area-test scores 0: while it ran, math\.isclose was replaced",
)
case(
    "replaces-it-in-a-thread",
    before(
        "area-test",
        "import threading, time\n"
        "def again():\n"
        "    while True:\n"
        "        math.isclose = lambda *a, **k: True\n"
        "threading.Thread(target=again, daemon=True).start()",
        area=WRONG_AREA,
    ),
    (0, 0, 0, None),
    r"threads still run at area-test: Thread-\d+ \(again\)",
)
case(
    "replaces-a-module",
    before(
        "area-test",
        "import sys, types\n"
        "math = types.SimpleNamespace(isclose=lambda *a: True, pi=3)\n"
        "sys.modules['math'] = math",
        area=WRONG_AREA,
    ),
    (0, 3, 2, None),
    r"put back before area-test: sys\.modules\['math'\], the name math",
)
case(
    "replaces-builtins",
    before(
        "count",
        "import builtins\nbuiltins.sum = lambda *a: 3",
        count="count = {'a b': 2, '': 0, 'a  b c': 3}.get",
    ),
    (2, 3, 0, None),
    r"put back before count-test: builtins\.sum",
)
case(
    "hides-builtins",
    before(
        "count",
        "isinstance = lambda *a: True\ntype = lambda x: int",
        double=DOUBLE.replace("* 2", "* 2.0"),
    ),
    (2, 0, 2, None),
    r"uses its own isinstance, its own type: read it",
)
case(
    "silences-ipython",
    before(
        "area",
        "shell = get_ipython()\n"
        "shell.showtraceback = lambda *a, **k: None\n"
        "type(shell).showtraceback = lambda *a, **k: None\n"
        "type(shell)._showtraceback = lambda *a, **k: None\n"
        "shell.set_custom_exc((AssertionError,), lambda *a, **k: None)",
        area=WRONG_AREA,
    ),
    (0, 3, 2, None),
    r"put back before area-test: .*showtraceback",
)
case(
    "removes-asserts",
    before(
        "area",
        "import ast\n"
        "class NoAsserts(ast.NodeTransformer):\n"
        "    def visit_Assert(self, node):\n"
        "        return ast.Pass()\n"
        "get_ipython().ast_transformers.append(NoAsserts())\n"
        "get_ipython().input_transformers_post.append(lambda lines: ['pass'])",
        area=WRONG_AREA,
    ),
    (0, 3, 2, None),
    r"put back before area-test: .*transformer of IPython's input",
)
case(
    "removes-the-guard",
    before(
        "area",
        "kernel = get_ipython().kernel\n"
        "for name in list(vars(kernel)):\n"
        "    if 'Guard' in type(vars(kernel)[name]).__name__:\n"
        "        delattr(kernel, name)",
    ),
    (0, 0, 0, None),
    r"the guard of the tests no longer answers at area-test; it scores 0",
)

# Code that looks around. It prints what it can reach; nothing must be within reach.
LOOK = """\
import os, socket
from pathlib import Path
course = Path("{course}")
for path in [course / "solutions", course / "grading", course / "nbgrader_config.py"]:
    if path.exists():
        print("REACHED", path)
for folder, below, names in os.walk("/"):
    if "/site-packages" in folder or folder.startswith(("/proc", "/sys", "/usr", "/dev")):
        below.clear()
    else:
        for name in names:
            if name.endswith((".ipynb", ".db")):
                print("REACHED", folder, name)
for path in [course / "written", Path(os.__file__), Path("/etc/passwd"), Path("/usr/written")]:
    try:
        path.open("a").close()
        print("REACHED", path)
    except OSError:
        pass
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=2)
    print("REACHED the network")
except OSError:
    pass
processes = [int(name) for name in os.listdir("/proc") if name.isdigit()]
if len(processes) > 3 or os.environ.get("A_SECRET_OF_THE_LECTURER"):
    print("REACHED", processes, os.environ)
print("looked around")
"""
if not NO_SANDBOX:
    case("looks-around", before("double", LOOK), ALL, r"cell 6 uses os, socket: read it")


# The real assignment: what its checks and PyTorch can be made to say.
def real(**others: str) -> Callable[[NotebookNode], None]:
    """The worked answers of the real assignment, and others in place of some."""

    def make(notebook: NotebookNode) -> None:
        solved = nbformat.read(ROOT / f"solutions/{REAL}/{REAL}.ipynb", as_version=4)
        for cell in solved.cells:
            if cell.metadata.get("nbgrader", {}).get("solution"):
                lines = [line for line in cell.source.splitlines() if "SOLUTION" not in line]
                find(notebook, cell.id).source = "\n".join(lines)
        for name, source in others.items():
            find(notebook, name.replace("_", "-")).source = source

    return make


def real_before(name: str, code: str, **others: str) -> Callable[[NotebookNode], None]:
    def make(notebook: NotebookNode) -> None:
        real(**others)(notebook)
        notebook.cells.insert(place(notebook, name), new_code_cell(code))

    return make


WRONG_LAYER = """\
class PlainLayer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)

    def forward(self, x):
        return self.norm(self.conv(F.relu(x)))
"""
case("pia-real", real(), (1, 1, 2, 2, 2, None), assignment=REAL)
case(
    "many-threads",
    real_before("imports", "import torch\ntorch.set_num_threads(64)"),
    (1, 1, 2, 2, 2, None),
    assignment=REAL,
)
case("quinn-real", real(plain_layer=WRONG_LAYER), (1, 0, 2, 2, 2, None), assignment=REAL)
case(
    "real-always-equal",
    real(
        plain_layer=f"{ALWAYS}PlainLayer = Always()",
        plain_parameters="plain_parameters = PlainLayer",
        receptive_field="receptive_field = PlainLayer",
        mended_stack="MendedStack = PlainLayer",
    ),
    (0, 0, 0, 0, 0, None),
    r"cell 4 uses __bool__, __eq__, __getattr__: read it",
    assignment=REAL,
)
case(
    "real-replaces-checks",
    real_before(
        "plain-layer-form",
        "import sys\n"
        "checks.same_values = checks.core.same_values = lambda *a: True\n"
        "checks.core.require = checks.plain.require = lambda *a: None\n"
        "checks.plain_layer_values = print\n"
        "checks.plain_layer_gradient.__closure__[0].cell_contents = lambda answer: 'fine'\n"
        "checks.plain_parameters.__wrapped__.__code__ = (lambda answer: 'fine').__code__\n"
        "class Checks:\n"
        "    def __getattr__(self, name):\n"
        "        return lambda *a, **k: True\n"
        "sys.modules['densenet_from_scratch.course.checks'] = checks = Checks()",
        plain_layer=WRONG_LAYER,
        plain_parameters="def plain_parameters(*arguments):\n    return 0",
    ),
    (1, 0, 0, 2, 2, None),
    r"put back before plain-layer-form: .*densenet_from_scratch\.course\.checks\.same_values",
    assignment=REAL,
)
case(
    "real-replaces-torch",
    real_before(
        "plain-layer",
        "torch.allclose = torch.equal = lambda *a, **k: True\n"
        "torch.Tensor.__eq__ = lambda *a: True\n"
        "torch.Tensor.allclose = lambda *a, **k: True\n"
        "nn.Module.load_state_dict = lambda *a, **k: None\n"
        "nn.BatchNorm2d.forward = lambda self, x: x\n"
        "F.relu = lambda x: x",
        plain_layer=WRONG_LAYER,
    ),
    (1, 0, 2, 2, 2, None),
    r"put back before plain-layer-form: .*torch",
    assignment=REAL,
)
case(
    "real-own-torch-file",
    real(),
    (1, 1, 2, 2, 2, None),
    assignment=REAL,
    files=lambda folder: [
        (folder / f"{name}.py").write_text("raise SystemExit")
        for name in ("torch", "densenet_from_scratch", "ipykernel_launcher", "json")
    ],
)

# --- Grading the class ---------------------------------------------------------------------------


def run(course: Path, *command: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "A_SECRET_OF_THE_LECTURER": "1"}
    return subprocess.run(
        [sys.executable, *command],
        cwd=course,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        **options,
    )


def grade(course: Path, *arguments: str) -> tuple[int, dict[str, list[str]]]:
    """Run tools/grade.py; return its exit status and what it said about each student."""
    extra = ["--no-sandbox"] if NO_SANDBOX else []
    done = run(course, "tools/grade.py", *arguments, *extra)
    said: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if head := re.match(r"(.+?): .*\(\d+ s\)$", line):
            said[head[1]] = []
        elif line.startswith("    "):
            said[list(said)[-1]].append(line.strip())
    assert said, done.stdout + done.stderr
    return done.returncode, said


def hand_in(course: Path, student: str, what: Case, port: int = 0) -> None:
    name = what.assignment
    folder = course / "grading/submitted" / student / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    notebook = nbformat.read(course / f"exercises/{name}/{name}.ipynb", as_version=4)
    what.make(notebook)
    for cell in notebook.cells:
        if cell.source.startswith("import os, socket"):
            cell.source = cell.source.format(course=course, port=port)
    (folder / f"{name}.ipynb").write_text(nbformat.writes(notebook))
    if what.days_late:
        (folder / "timestamp.txt").write_text(f"2026-01-{what.days_late:02} 12:00:00 UTC")
    if what.files is not None:
        what.files(folder)


def scores(course: Path, assignment: str) -> dict[str, list]:
    """What the gradebook says: for each student the score and whether a person must look."""
    found = {}
    order = [
        cell.metadata.nbgrader.grade_id
        for cell in nbformat.read(
            course / f"solutions/{assignment}/{assignment}.ipynb", as_version=4
        ).cells
        if cell.metadata.get("nbgrader", {}).get("grade")
    ]
    with Gradebook(f"sqlite:///{course}/grading/gradebook.db", "densenet-from-scratch") as book:
        for submission in book.assignment_submissions(assignment):
            grades = {grade.name: grade for grade in submission.notebooks[0].grades}
            found[submission.student.id] = [
                (grades[name].auto_score, grades[name].needs_manual_grade) for name in order
            ]
    return found


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """A copy of the course with the small assignment and the real one, both released."""
    course = tmp_path_factory.mktemp("course")
    ignore = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
    shutil.copytree(ROOT / "tools", course / "tools", ignore=ignore)
    shutil.copytree(ROOT / f"solutions/{REAL}", course / f"solutions/{REAL}", ignore=ignore)
    (course / f"solutions/{SMALL}").mkdir()
    nbformat.write(small_assignment(), course / f"solutions/{SMALL}/{SMALL}.ipynb")
    settings = (ROOT / "nbgrader_config.py").read_text()
    settings += SETTINGS.format(seconds=cell_seconds())
    (course / "nbgrader_config.py").write_text(settings)
    nbgrader(course, "generate_assignment", "*")
    with Gradebook(f"sqlite:///{course}/grading/gradebook.db", "densenet-from-scratch") as book:
        book.update_or_create_assignment(SMALL, duedate="2026-01-01 00:00:00 UTC")
    return course


@pytest.fixture(scope="module")
def graded(course) -> dict[str, dict]:
    """The class, graded: the gradebook's scores, and what tools/grade.py said of each student."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for student, what in CASES.items():
            hand_in(course, student, what, server.getsockname()[1])
        found = {}
        for assignment in (SMALL, REAL):
            status, said = grade(course, assignment, "--jobs=2")
            failures = [c for c in CASES.values() if c.failed and c.assignment == assignment]
            assert status == (1 if failures else 0)
            for student, result in scores(course, assignment).items():
                found[student] = {"scores": result, "said": said[student]}
    return found


@pytest.mark.parametrize("student", CASES)
def test_a_submission_gets_what_it_deserves(graded, student):
    what, result = CASES[student], graded[student]
    text = "\n".join(result["said"])
    assert [score for score, _ in result["scores"]] == list(what.scores), text
    for score, waits in result["scores"]:
        # What nbgrader cannot score waits for a person, and so does what was not trusted.
        assert waits or (score is not None and not what.failed), text
        if waits and score is not None and not what.failed:
            assert score == 0 and re.search("scores 0|cell why was missing", text), text
    if what.says:
        assert re.search(what.says.replace("SECONDS", str(cell_seconds())), text, re.M), text
    else:
        assert result["said"] == []


def total(student: str) -> tuple[float, float]:
    """The points of a student before and after the penalty for being late."""
    points = sum(filter(None, CASES[student].scores))
    return points, max(0, points - CASES[student].days_late)


def test_the_exported_table_has_the_expected_marks(course, graded):
    nbgrader(course, "export", "--to=grading/marks.csv")
    with (course / "grading/marks.csv").open() as file:
        rows = {(row["assignment"], row["student_id"]): row for row in csv.DictReader(file)}
    for student, what in CASES.items():
        row = rows[what.assignment, student]
        assert (float(row["raw_score"]), float(row["score"])) == total(student), student
        assert float(row["max_score"]) == (8 if what.assignment == SMALL else 10)


@needs_sandbox
def test_a_submission_reaches_nothing_outside(course, graded):
    path = course / f"grading/autograded/looks-around/{SMALL}/{SMALL}.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    [cell] = [cell for cell in cells if cell.source.startswith("import os, socket")]
    assert [output.text for output in cell.outputs] == ["looked around\n"]  # it REACHED nothing
    assert not (course / "written").exists()


@needs_sandbox
def test_processes_are_limited(tmp_path):
    """Forking stops at the limit of processes; here no other limit is near."""
    code = (
        "import os, time\n"
        "for made in range(500):\n"
        "    try:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(1200)\n"
        "    except OSError as error:\n"
        "        print(made, type(error).__name__)\n"
        "        break\n"
    )
    limits = sandbox.Limits(memory=64 * 2**30, processes=60, threads=0)
    kernel = Kernel(tmp_path, limits, isolated=True, characters=1000)
    try:
        outputs = kernel.run(code, timeout=600).outputs
        family = len(kernel._family())
    finally:
        kernel.stop()
    made, error = outputs[0].text.split()
    assert error == "BlockingIOError" and 10 < int(made) < 60
    assert int(made) < family <= limits.processes + 1  # one outside starts the sandbox


@needs_sandbox
def test_threads_are_no_processes(tmp_path):
    """A library may start hundreds of threads; of processes there are as many as it says."""
    limits = sandbox.Limits(memory=64 * 2**30, processes=60)
    kernel = Kernel(tmp_path, limits, isolated=True, characters=1000)
    code = (
        "import threading, time\n"
        "for _ in range(300):\n"
        "    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n"
        "time.sleep(1.5)\n"
        "print('still there')"
    )
    torch = (
        "import torch\n"
        "torch.set_num_threads(64)\n"
        "x = torch.randn(64, 16, 32, 32, requires_grad=True)\n"
        "torch.nn.functional.conv2d(x, torch.randn(16, 16, 3, 3)).sum().backward()"
    )
    fork = "import os\nfor _ in range(80):\n    if os.fork() == 0:\n        time.sleep(600)\n"
    try:
        assert kernel.run(code, timeout=60).outputs[0].text == "still there\n"
        assert kernel.run(torch, timeout=120).outputs == []
        with pytest.raises(KernelDied, match="more than 60 processes"):
            kernel.run(f"{fork}time.sleep(60)", timeout=60)
    finally:
        kernel.stop()


def test_outputs_stay_small(course, graded):
    for student in ("long-line", "flood"):
        path = course / f"grading/autograded/{student}/{SMALL}/{SMALL}.ipynb"
        assert path.stat().st_size < 300_000


def test_printed_scores_are_noted_and_ignored(course, graded):
    log = (course / f"grading/logs/{SMALL}/prints-scores.log").read_text()
    assert "double-test printed" in log and "they decide nothing" in log


def test_feedback_pages_show_no_hidden_tests(course, graded):
    nbgrader(course, "generate_feedback", SMALL, "--student=fay-hidden")
    page = (course / f"grading/feedback/fay-hidden/{SMALL}/{SMALL}.html").read_text()
    assert "Hidden tests follow here" in page and "A hidden test tried your answer" in page
    assert "isclose" in page  # the visible test
    assert SECRET not in page and "HIDDEN TESTS" not in page and "isinstance" not in page


# --- What is collected is graded -----------------------------------------------------------------


def test_an_archive_of_a_learning_platform_is_collected_and_graded(course, graded, tmp_path):
    """Two of one name, a renamed file, an apostrophe, a second try: each gets its own marks."""
    wrong = answers(double="def double(n):\n    return 0")
    folder = "{}_assignsubmission_file_/{}"
    names = {
        folder.format("Li Wei_7", f"{SMALL}.ipynb"): answers(),
        folder.format("Li Wei_8", f"{SMALL} (1).ipynb"): wrong,
        f"o'brien_LATE_5_90_{SMALL}.ipynb": wrong,
        f"o'brien_LATE_5_91_{SMALL}-1.ipynb": windows,
        "प्रिया [B]/my homework.ipynb": colab,
        folder.format("Xia_9", ".ipynb_checkpoints/x-checkpoint.ipynb"): wrong,
    }
    for name, make in names.items():
        notebook = nbformat.read(course / f"exercises/{SMALL}/{SMALL}.ipynb", as_version=4)
        make(notebook)
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(nbformat.writes(notebook))
    archive = course / f"grading/downloaded/{SMALL}/archive"
    shutil.make_archive(str(archive / "all"), "zip", tmp_path)
    nbgrader(course, "zip_collect", SMALL)
    students = {"Li Wei_7": 3, "Li Wei_8": 0, "o'brien_5": 3, "प्रिया (B)": 3}
    status, said = grade(course, SMALL, *(f"--student={student}" for student in students))
    assert said == {student: [] for student in students} and status == 0
    found = scores(course, SMALL)
    for student, points in students.items():
        assert [score for score, _ in found[student]] == [2, points, 2, None], student
        remove_student(course, student)  # the tests below know only the class
    assert not [name for name in found if "Xia" in name or "checkpoint" in name]


def remove_student(course: Path, student: str) -> None:
    shutil.rmtree(course / "grading/submitted" / student)
    with Gradebook(f"sqlite:///{course}/grading/gradebook.db", "densenet-from-scratch") as book:
        book.remove_student(student)


def test_folders_that_are_no_students_stop_nobody(course, graded):
    """Each gets one line; the others are graded."""
    submitted = course / "grading/submitted"
    names = [
        "a:b",
        "con",
        "Zo\u00eb x",
        "Zoe\u0308 x",
        ".ipynb_checkpoints",
        "x" * 250,
        "e\u202ev",
        "a [b]",
    ]
    names.append(os.fsdecode(b"not utf-8 \xff"))
    for name in names:
        shutil.copytree(submitted / "dora-untouched", submitted / name)
    status, said = grade(
        course, SMALL, *(f"--student={name}" for name in [*names, "ada"]), "--force"
    )
    for name in names:
        shutil.rmtree(submitted / name)
    assert status == 1 and said.pop("ada") == [] and len(said) == len(names)
    assert all(len(lines) == 1 for lines in said.values()), said
    assert "Windows keeps for itself" in said["con"][0] and "two folders" in said["Zoë x"][0]
    assert not set(names) & set(scores(course, SMALL))


# --- Where the package is ------------------------------------------------------------------------


def test_a_copy_of_the_course_is_graded_where_the_package_is_elsewhere(course, graded):
    """A lecturer's own copy of the folder, beside what a server has installed for all."""
    ignore = shutil.ignore_patterns("__pycache__")
    copy = course / "densenet_from_scratch"
    shutil.copytree(ROOT / "densenet_from_scratch", copy, ignore=ignore)
    _, said = grade(course, REAL, "--student=pia-real", "--force")
    shutil.rmtree(copy)
    assert said["pia-real"] == []
    assert [score for score, _ in scores(course, REAL)["pia-real"]] == [1, 1, 2, 2, 2, None]


def test_without_the_package_nobody_is_graded(course, graded):
    before_it = scores(course, REAL)
    code = (
        "import runpy, sys\n"
        "from safe_grading import sandbox\n"
        "sandbox.packages = dict\n"
        "sys.argv = ['grade.py', *sys.argv[1:]]\n"
        "runpy.run_path('tools/grade.py', run_name='__main__')"
    )
    extra = ["--no-sandbox"] if NO_SANDBOX else []
    done = run(course, "-c", code, REAL, "--force", *extra)
    assert done.returncode == 1 and scores(course, REAL) == before_it
    assert re.search(r"^Nothing was graded\. .* finds no densenet_from_scratch", done.stdout, re.M)


# --- Grading again -------------------------------------------------------------------------------


def test_nothing_new_is_not_graded_again(course, graded):
    extra = ["--no-sandbox"] if NO_SANDBOX else []
    done = run(course, "tools/grade.py", SMALL, "--student=ada", *extra)
    assert "Nothing new to grade" in done.stdout


@pytest.mark.parametrize("student", ["not-json", "no-notebook", "loop-swallows-interrupts"])
def test_no_earlier_score_stands(course, graded, student):
    """A submission that had full marks is handed in again, and now cannot be graded."""
    others = {name: found for name, found in scores(course, SMALL).items() if name != "ben"}
    hand_in(course, "ben", CASES[student])
    settings = course / "nbgrader_config.py"
    before_it = settings.read_text()
    settings.write_text(before_it + "\nc.SafeExecute.max_restarts = 0\n")
    _, said = grade(course, SMALL, "--student=ben", "--force")
    settings.write_text(before_it)
    assert said["ben"]
    after = scores(course, SMALL)
    expected = [(0, True)] * 4
    if student == "loop-swallows-interrupts":  # what was before the loop stands
        expected = [(2, False), (0, False), (0, False), (None, True)]
    assert after.pop("ben") == expected
    assert after == others
    hand_in(course, "ben", CASES["ben"])
    grade(course, SMALL, "--student=ben", "--force")
    assert [score for score, _ in scores(course, SMALL)["ben"]] == list(ALL)


def test_nbgraders_own_command_leaves_no_earlier_score(course, graded):
    """The Formgrader's button is this command too."""
    hand_in(course, "cai", CASES["not-json"])
    extra = ["--SafeExecute.require_sandbox=False"] if NO_SANDBOX else []
    done = run(course, "-m", "nbgrader", "autograde", SMALL, "--student=cai", "--force", *extra)
    assert done.returncode != 0
    assert scores(course, SMALL)["cai"] == [(0, True)] * 4


def test_without_a_sandbox_nothing_is_graded_unless_asked(course, graded, tmp_path):
    """Without the commands that make a sandbox, the lecturer has to say that it may be done."""
    environment = {**os.environ, "PATH": str(tmp_path)}
    command = [sys.executable, "tools/grade.py", SMALL, "--student=ada", "--force"]
    options = {"cwd": course, "capture_output": True, "text": True, "env": environment}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 1 and done.stdout.startswith("No sandbox: a sandbox needs")
    done = subprocess.run([*command, "--no-sandbox"], check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "they can read and write your files" in done.stdout
    assert [score for score, _ in scores(course, SMALL)["ada"]] == list(ALL)


def test_private_hidden_tests(course, graded):
    """As the README says: a private copy of the source, and what it tests is not in the release."""
    private = course / f"grading/private/{SMALL}"
    shutil.copytree(course / f"solutions/{SMALL}", private)
    path = private / f"{SMALL}.ipynb"
    path.write_text(path.read_text().replace('count(\\"\\") == 0', 'count(\\"é è\\") == 2'))
    released = (course / f"exercises/{SMALL}/{SMALL}.ipynb").read_bytes()
    source = "--CourseDirectory.source_directory=grading/private"
    nbgrader(course, "generate_assignment", SMALL, "--force", source)
    assert (course / f"exercises/{SMALL}/{SMALL}.ipynb").read_bytes() == released
    ascii_only = "import re\ndef count(text):\n    return len(re.findall('[a-z]+', text))"
    hand_in(course, "ben", Case(answers(count=ascii_only), ()))
    grade(course, SMALL, "--student=ben", "--student=ada", "--force")
    found = scores(course, SMALL)
    assert [score for score, _ in found["ada"]] == list(ALL)
    assert [score for score, _ in found["ben"]] == [2, 3, 0, None]
