"""The package as a whole: its floors, its documentation, and how much an import loads."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import densenet_from_scratch
from densenet_from_scratch.data import DATASETS

NAME = "densenet_from_scratch"
FOLDER = Path(densenet_from_scratch.__file__).parent

# A module imports only from floors below its own; a folder's own name is its ``__init__``.
FLOORS = [
    {"internals"},
    {"arguments", "kernels.layout", "kernels.gpu_kernels", "measure.signals"},
    {
        "stem",
        "data.basics",
        "data.cache",
        "data.held",
        "data.pictures",
        "data.scan",
        "measure.timing",
        "measure.counts",
        "measure.memory",
        "measure.reuse",
        "plain",
    },
    {
        "measure",
        "kernels.cpu",
        "kernels.gpu",
        "kernels.reference",
        "data.sets",
        "data.downloads",
        "data.folder",
    },
    {"residual", "dense", "transition", "osa", "kernels", "data"},
    {"efficient.as_built", "efficient.shared"},
    {"efficient.checkpointed"},
    {"efficient.blocks"},
    {"efficient"},
    {"frozen"},
    {"model", "torchvision_weights"},
    {"train.checkpoints"},
    {"train", "export"},
    {"train.__main__"},
    {"course"},
]
MODULES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__")
    for path in FOLDER.rglob("*.py")
    if path != FOLDER / "__init__.py"
)
WITH_TRITON = {"kernels.gpu_kernels"}
modules = pytest.mark.parametrize("module", MODULES)


def floor(module: str) -> int:
    """The course is one floor, and the last: what is in it may import each other downwards only."""
    module = "course" if module.split(".")[0] == "course" else module
    [number] = [number for number, names in enumerate(FLOORS) if module in names]
    return number


def file_of(module: str) -> Path:
    path = FOLDER / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def package_imports(module: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in it and by any spelling."""
    found = set()
    for node in ast.walk(ast.parse(file_of(module).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}".split(".", 1)
                if whole[0] == NAME:  # a module, or a name that a module holds
                    found.add(whole[1] if whole[1] in MODULES else whole[1].rpartition(".")[0])
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix(NAME).lstrip(".") for a in node.names if NAME in a.name}
    return found


@modules
def test_a_module_imports_only_from_floors_below(module):
    for imported in package_imports(module):
        assert imported, f"{module} imports from the package's first page"
        if floor(imported) == floor(module) == floor("course"):
            continue
        assert floor(imported) < floor(module), f"{module} imports {imported}"


def test_no_module_is_imported_in_a_circle():
    """Within the course, too, and in functions, where Python itself would not notice."""
    left = {module: package_imports(module) for module in MODULES}
    while ready := [module for module, imported in left.items() if not imported & left.keys()]:
        for module in ready:
            del left[module]
    assert not left, f"each of these imports another: {sorted(left)}"


def test_every_module_has_a_floor():
    named = {m for m in MODULES if m.split(".")[0] != "course"} | {"course"}
    assert set().union(*FLOORS) == named


def public_members(module: str) -> list[tuple[str, object]]:
    """Public functions and classes of a module and their public methods, with full names."""
    found = []
    if module in WITH_TRITON:
        pytest.importorskip("triton", reason="PyTorch brings it on Linux only")
    namespace = vars(importlib.import_module(f"{NAME}.{module}"))
    for name, member in namespace.items():
        if name.startswith("_") or getattr(member, "__module__", "") != f"{NAME}.{module}":
            continue
        if inspect.isclass(member):
            found.append((name, member))
            for method_name, method in vars(member).items():
                method = method.fget if isinstance(method, property) else method
                public = not method_name.startswith("_") or method_name in ("__init__", "__len__")
                own = getattr(method, "__module__", "") == member.__module__
                if inspect.isfunction(method) and public and own:
                    found.append((f"{name}.{method_name}", method))
        elif inspect.isfunction(member) or hasattr(member, "fn"):  # or a kernel in Triton
            found.append((name, member))
    return found


@modules
def test_everything_public_is_documented(module):
    assert importlib.import_module(f"{NAME}.{module}").__doc__
    members = public_members(module)
    assert members or file_of(module).stem == "__init__", f"{module} has nothing public"
    for name, member in members:
        if not name.endswith("__init__"):  # its class says what it takes
            assert inspect.getdoc(member), f"{module}.{name} has no docstring"


@modules
def test_everything_public_has_type_hints(module):
    for name, member in public_members(module):
        if not inspect.isfunction(member):
            continue
        hints = member.__annotations__
        assert "return" in hints, f"{module}.{name} does not say what it returns"
        parameters = set(inspect.signature(member).parameters) - {"self"}
        assert parameters <= hints.keys(), f"{module}.{name} lacks {parameters - hints.keys()}"


def test_what_is_exported_exists_and_is_sorted():
    exported = densenet_from_scratch.__all__
    assert exported == sorted(exported)
    assert all(hasattr(densenet_from_scratch, name) for name in exported)


def test_the_installed_version_is_the_packages():
    assert version("densenet-from-scratch") == densenet_from_scratch.__version__


def brought_by(*packages: str) -> set[str]:
    """Return the installed packages that these need, and they themselves."""
    found, left = set(), [canonicalize_name(name) for name in packages]
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        with suppress(PackageNotFoundError):
            for text in requires(name) or []:
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    left.append(canonicalize_name(requirement.name))
    return found


@pytest.mark.slow
def test_the_library_needs_only_torch_and_tqdm(tmp_path):
    """In an environment that holds nothing else."""
    allowed = brought_by("torch", "tqdm")
    others = {
        module
        for module, packages in packages_distributions().items()
        if not {canonicalize_name(name) for name in packages} & allowed
    }
    assert {"matplotlib", "numpy", "sklearn", "torchvision", "ipywidgets"} <= others
    for path in Path(torch.__file__).parent.parent.iterdir():
        if path.name.split(".")[0] not in others and path.suffix not in (".dist-info", ".pth"):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / NAME).unlink(missing_ok=True)  # installed, perhaps, as a copy of another state
    (tmp_path / NAME).symlink_to(FOLDER)
    library = {module for module in MODULES if floor(module) != floor("course")}
    library -= set() if find_spec("triton") else WITH_TRITON
    code = f"""
import importlib, sys
sys.path.append({str(tmp_path)!r})
import torch, {NAME}
for module in {sorted(library)!r}:
    importlib.import_module("{NAME}." + module)
network = {NAME}.densenet_cifar(10, 4, efficient=True)
network(torch.zeros(2, 3, 8, 8)).sum().backward()
print(network.frozen()(torch.zeros(1, 3, 8, 8)).shape)
try:
    {NAME}.load_data()
except ImportError as error:
    print(error)
"""
    bare = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [
        "torch.Size([1, 10])",
        "scikit-learn is not installed: bring it with pip install scikit-learn",
    ]


@pytest.mark.slow
def test_an_import_loads_only_what_it_needs():
    """Scikit-learn and torchvision take longer to load than PyTorch, and notebook tools need not be
    there. Pyplot, even for figures, would keep every picture of a slider alive."""
    code = f"""
import sys, {NAME}
print([m for m in ("matplotlib", "ipywidgets", "sklearn", "torchvision") if m in sys.modules])
from {NAME}.course import plots, widgets
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_readme_names_every_module_and_no_variable_is_called_like_one():
    text = (FOLDER.parent / "README.md").read_text().split("\n## The package\n")[1]
    names = {module.split(".")[0] for module in MODULES}
    assert not [name for name in names if f"`{name}`" not in text]
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    tree = ast.parse(example)
    assert not names & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_the_data_extra_says_which_data_sets_it_is_for():
    pyproject = (FOLDER.parent / "pyproject.toml").read_text()
    [comment] = re.findall(r"# (What load_data reads.*)\ndata = ", pyproject)
    for name in DATASETS:
        assert re.sub("[0-9]", "", name) in comment.lower(), name
