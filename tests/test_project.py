"""The project's own promises: one set of versions, two commands, checked style and types."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = (ROOT / "constraints.txt").read_text().split()
OWN = PROJECT["project"]["name"]


def every_requirement() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    texts = [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]
    found = [Requirement(text) for text in texts]
    return [requirement for requirement in found if requirement.name != OWN]


def outer_extras() -> str:
    """The extras that no other extra brings along, as pip writes them."""
    extras = PROJECT["project"]["optional-dependencies"]
    texts = [Requirement(text) for extra in extras.values() for text in extra]
    brought = {name for text in texts if text.name == OWN for name in text.extras}
    assert brought < set(extras)
    return ",".join(name for name in extras if name not in brought)


def test_uv_pip_and_conda_install_the_same_versions():
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == CONSTRAINTS
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [by_pip] = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    extras = outer_extras()
    assert by_pip == [
        "-c constraints.txt",
        f"-e .[{extras}]",
        "./tools/landing",
        "-e ./tools/safe_grading",
    ]
    assert PROJECT["dependency-groups"]["dev"] == [
        f"densenet-from-scratch[{extras}]",
        "densenet-from-scratch-landing",
        "densenet-from-scratch-safe-grading",
    ]


def test_condas_python_is_supported():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    [python] = [d for d in environment["dependencies"] if str(d).startswith("python=")]
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(python.split("=")[1] + ".9")


@pytest.mark.parametrize("requirement", every_requirement(), ids=lambda r: r.name)
def test_every_requirement_has_a_tested_version_in_its_range(requirement):
    pins = dict(line.split("==") for line in CONSTRAINTS)
    assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_constraints_are_plain_names_and_versions():
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line


def test_the_environment_has_the_tested_versions():
    """So that a result of this run is a result for the versions we name.

    On another torch than the pinned one, this is a run of the supported range, and says so.
    """
    from importlib.metadata import version

    pins = dict(line.split("==") for line in CONSTRAINTS)
    if version("torch").split("+")[0] != pins["torch"]:
        pytest.skip(f"not the pinned torch {pins['torch']} but {version('torch')}")
    names = ("torch", "torchvision", "nbval", "nbgrader", "jupyterlab", "ipywidgets", "matplotlib")
    assert {name: version(name).split("+")[0] for name in names} == {n: pins[n] for n in names}


def test_readme_ci_and_workflow_use_the_same_commands():
    readme = (ROOT / "README.md").read_text()
    start, test = "pip install uv && uv run jupyter lab", "uv run pytest"
    assert readme.index(start) < readme.index(test) < readme.index("\n## ")
    assert test in (ROOT / ".ci/run").read_text()
    assert ".ci/run" in (ROOT / ".github/workflows/test.yml").read_text()


@pytest.mark.parametrize(
    "command", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join
)
@pytest.mark.slow
def test_style_and_types(command):
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
