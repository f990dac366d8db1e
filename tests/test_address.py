"""Where the course lives is said once, and each notebook's first cell does what it says.

The cell is run in a bare environment (pip and setuptools only), with the placeholder and with the
address of a git server on this machine, from which pip really installs. No network is used.
"""

import ast
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import venv
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT, notebook
from IPython.core.interactiveshell import InteractiveShell
from packaging.requirements import Requirement

sys.path.insert(0, str(ROOT / "tools"))

import set_address

pytestmark = pytest.mark.slow  # much of it is environments and installations

NOTEBOOKS = [
    path.relative_to(ROOT)
    for pattern in ("chapters/*.ipynb", "solutions/*/*.ipynb", "exercises/*/*.ipynb")
    for path in sorted(ROOT.glob(pattern))
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LONG = "https://github.com/a-department/a-rather-long-name-for-a-copy-of-densenet-from-scratch"
# Imports whose distribution has another name.
NAMES = {"sklearn": "scikit-learn", "IPython": "ipython"}


def first_cell(path: Path) -> str:
    return next(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code")


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the files that the address stands in, and of the package."""
    for path in [*NOTEBOOKS, Path("pyproject.toml"), Path("README.md"), Path("LICENSE")]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    ignore = shutil.ignore_patterns("__pycache__")
    package = "densenet_from_scratch"
    shutil.copytree(ROOT / package, tmp_path / package, ignore=ignore)
    return tmp_path


def texts(folder: Path) -> dict[Path, bytes]:
    """What each text of a copy holds."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".ipynb", ".md", ".toml")]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


# --- One place -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_the_first_code_cell_is_that_of_the_projects_address(path):
    address = PROJECT["project"]["urls"]["Repository"]
    assert first_cell(ROOT / path) == set_address.install_cell(address)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=str)
def test_no_other_cell_knows_an_address_or_installs(path):
    text = "\n".join(cell.source for cell in notebook(ROOT / path).cells)
    text = text.replace(first_cell(ROOT / path), "")
    assert not re.search(r"git\+|pip install|set_address", text)


def test_what_is_committed_is_what_the_command_writes(copy):
    before = texts(copy)
    assert set_address.set_address(copy, set_address.address_of(copy)) == []
    assert texts(copy) == before


def test_another_address_is_written_everywhere_once_and_taken_back(copy):
    set_address.set_address(copy, set_address.PLACEHOLDER)
    before = texts(copy)
    changed = set_address.set_address(copy, LONG)
    assert sorted(path.relative_to(copy) for path in changed) == sorted(
        [*NOTEBOOKS, Path("pyproject.toml"), Path("README.md")]
    )
    for path in changed:
        text = path.read_text()
        assert LONG in text, path
        assert ".invalid/" not in text, path
    assert set_address.set_address(copy, LONG) == []
    again = LONG.replace("a-department", "another")
    assert len(set_address.set_address(copy, again)) == len(changed)
    set_address.set_address(copy, set_address.PLACEHOLDER)
    assert texts(copy) == before


def test_only_the_cell_s_source_changes(copy):
    path = copy / NOTEBOOKS[0]
    before = json.loads(path.read_text())
    set_address.set_address(copy, LONG)
    after = json.loads(path.read_text())
    place = next(n for n, cell in enumerate(before["cells"]) if cell["cell_type"] == "code")
    assert before["cells"][place].pop("source") != after["cells"][place].pop("source")
    assert before == after


def test_released_assignments_stay_what_nbgrader_makes_of_the_solutions(copy):
    set_address.set_address(copy, LONG)
    [name, *_] = [path.stem for path in NOTEBOOKS if path.parts[0] == "exercises"]
    written = (copy / "exercises" / name / f"{name}.ipynb").read_bytes()
    shutil.copy(ROOT / "nbgrader_config.py", copy)
    nbgrader = [sys.executable, "-m", "nbgrader", "generate_assignment", "--force", name]
    subprocess.run(nbgrader, cwd=copy, capture_output=True, check=True)
    assert (copy / "exercises" / name / f"{name}.ipynb").read_bytes() == written


def test_badges_are_those_of_the_address(copy):
    set_address.set_address(copy, LONG)
    readme = (copy / "README.md").read_text()
    assert f"]({LONG}/actions/workflows/test.yml)" in readme
    name = LONG.removeprefix("https://")
    assert f"colab.research.google.com/{name.replace('.com', '')}/blob/main/chapters/00" in readme
    set_address.set_address(copy, "https://git.example.org/course.git")  # no badges known there
    assert "badge" not in (copy / "README.md").read_text()


@pytest.mark.parametrize(
    "address", ["densenet", "ftp://host/x", "https://host", 'https://host/a"b', "https://h/a b"]
)
def test_what_git_cannot_fetch_is_refused(address):
    command = [sys.executable, str(ROOT / "tools/set_address.py"), address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "must be the address of a git repository" in done.stderr


def test_nothing_is_written_if_a_notebook_has_no_such_cell(copy):
    path = copy / NOTEBOOKS[-1]
    notebook = nbformat.read(path, 4)
    next(c for c in notebook.cells if c.cell_type == "code").source = "import torch"
    nbformat.write(notebook, path)
    before = texts(copy)
    with pytest.raises(SystemExit, match=f"{NOTEBOOKS[-1].name}: the first code cell is not"):
        set_address.set_address(copy, LONG)
    assert texts(copy) == before


@pytest.mark.parametrize(
    "address", [set_address.PLACEHOLDER, *(LONG.ljust(n, "x") for n in (84, 85, 86, 90, 91, 99))]
)
def test_the_cell_keeps_the_conventions(address, tmp_path):
    cell = set_address.install_cell(address)
    assert len(cell.splitlines()) <= 25
    path = tmp_path / "cell.py"
    path.write_text(cell + "\n")
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--config", ROOT / "pyproject.toml", path]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


# --- What the notebooks need ---------------------------------------------------------------------


def needed_by(extra: str) -> set[str]:
    """Return the names that an extra asks for, and those that it brings along."""
    found = set()
    for text in PROJECT["project"]["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["project"]["name"]:
            found |= set().union(*map(needed_by, requirement.extras))
        else:
            found.add(requirement.name)
    return found


def test_the_light_extra_and_the_package_bring_what_notebooks_import():
    base = {Requirement(text).name for text in PROJECT["project"]["dependencies"]}
    brought = base | needed_by("notebooks")
    # Matplotlib, ipywidgets and torchvision ask for these; PyTorch for Triton, where there is one.
    transitive = {"packaging", "IPython", "PIL", "triton"}
    sources = [
        cell.source
        for path in NOTEBOOKS
        for cell in notebook(ROOT / path).cells
        if cell.cell_type == "code"
    ]
    sources += [path.read_text() for path in ROOT.glob("densenet_from_scratch/**/*.py")]
    shell = InteractiveShell.instance()
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(shell.transform_cell(source))):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    found -= set(sys.stdlib_module_names) | {"densenet_from_scratch"} | transitive
    assert {NAMES.get(name, name) for name in found} <= brought
    assert not needed_by("notebooks") & {"jupyterlab", "nbgrader", "notebook"}


def test_the_course_brings_the_light_extra_along():
    assert (
        "densenet-from-scratch[notebooks]" in PROJECT["project"]["optional-dependencies"]["course"]
    )


# --- The cell, run -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """The Python of an environment with pip and setuptools, and nothing else."""
    if importlib.util.find_spec("ensurepip") is None or shutil.which("git") is None:
        pytest.skip("needs ensurepip and git")
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    asked = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
    ours = distribution("setuptools")
    for top in {path.parts[0] for path in ours.files if ".." not in path.parts}:
        there = Path(site.stdout.strip()) / top
        if there.is_dir():
            shutil.rmtree(there)
        elif there.exists():
            there.unlink()
        there.symlink_to(ours.locate_file(top))
    return python


def run(python: Path, cell: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a cell as a notebook in another environment would; pip may ask no index."""
    offline = {
        "PIP_NO_BUILD_ISOLATION": "0",  # this is how pip reads it: no isolation
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    left_out = ("PYTHONPATH", "VIRTUAL_ENV")
    ours = {key: value for key, value in os.environ.items() if key not in left_out}
    return subprocess.run(
        [python, "-c", cell],
        env=ours | offline | environment,
        cwd=python.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_with_a_placeholder_it_says_what_to_do_and_fetches_nothing(bare):
    cell = set_address.install_cell(set_address.PLACEHOLDER)
    assert "git+" not in cell and "subprocess" not in cell
    done = run(bare, cell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "upload or clone your copy" in done.stdout
    assert '%pip install "FOLDER[notebooks]"' in done.stdout
    assert len(done.stdout.splitlines()) == 2


def test_what_it_says_to_do_installs_the_course(bare, copy):
    asked = re.search(r'%pip install "(FOLDER\[notebooks\])"', set_address.BRING_IT)[1]
    target = copy / "target"
    pip = ["-m", "pip", "install", "-q", "--target", str(target)]
    command = [*pip, asked.replace("FOLDER", str(copy))]
    done = run(bare, f"import subprocess, sys; subprocess.run([sys.executable, *{command}])")
    assert (target / "densenet_from_scratch/__init__.py").exists(), done.stderr


@pytest.mark.parametrize("address", [set_address.PLACEHOLDER, LONG])
def test_where_the_course_is_installed_it_does_nothing(address):
    done = subprocess.run(
        [sys.executable, "-c", set_address.install_cell(address)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def server(copy, tmp_path_factory):
    """A git server on this machine with a copy of the course, and the copy's address there."""
    folder = tmp_path_factory.mktemp("server")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}/course.git"
        set_address.set_address(copy, address)
        who = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
        for arguments in (
            ["init", "--quiet"],
            ["add", "."],
            [*who, "commit", "--quiet", "--no-gpg-sign", "--message", "The course"],
            ["clone", "--quiet", "--bare", ".", str(folder / "course.git")],
        ):
            subprocess.run(["git", *arguments], cwd=copy, check=True)
        subprocess.run(["git", "update-server-info"], cwd=folder / "course.git", check=True)
        yield address
        http.shutdown()


def test_with_an_address_it_installs_from_there(bare, copy, server):
    cell = first_cell(copy / NOTEBOOKS[-1])
    target = copy / "target"
    done = run(bare, cell, PIP_TARGET=str(target))
    assert (done.returncode, done.stderr) == (0, "")
    assert "It is installed." in done.stdout, done.stdout
    assert (target / "densenet_from_scratch/dense.py").exists()
    [metadata] = target.glob("densenet_from_scratch-*.dist-info")
    assert json.loads((metadata / "direct_url.json").read_text())["url"] == server
    assert f"Project-URL: Repository, {server}" in (metadata / "METADATA").read_text()
    assert run(bare, cell, PYTHONPATH=str(target)).stdout == ""  # and now it does nothing


@pytest.mark.parametrize("missing", ["network", "git", "pip"])
def test_without_network_git_or_pip_it_says_so_in_a_line(bare, missing, tmp_path):
    cell = set_address.install_cell("http://127.0.0.1:9/course.git")  # nobody listens there
    without = {
        "network": {},
        "git": {"PATH": str(tmp_path)},
        "pip": {"PYTHONPATH": str(tmp_path)},
    }
    (tmp_path / "pip.py").write_text("raise SystemExit(1)")
    done = run(bare, cell, **without[missing])
    assert (done.returncode, done.stderr) == (0, "")
    _, failed, instead = done.stdout.splitlines()
    assert failed == (
        "It could not be fetched from http://127.0.0.1:9/course.git. "
        "Are there a network, git and pip?"
    )
    assert "FOLDER[notebooks]" in instead
