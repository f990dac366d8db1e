"""The package as a whole: its floors, its documentation, and how much an import loads."""

import ast
import importlib
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import densenet_from_scratch

NAME = "densenet_from_scratch"
FOLDER = Path(densenet_from_scratch.__file__).parent

# A module imports only from floors below its own.
FLOORS = [
    {"internals"},
    {"arguments", "stem"},
    {"data", "measure", "fused"},
    {"plain"},
    {"residual", "dense", "transition", "osa"},
    {"as_built", "shared"},
    {"efficient"},
    {"inference"},
    {"model"},
    {"checkpoints"},
    {"train"},
    {"command_line", "plots"},
    {"widgets", "checks"},
]
MODULES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if path.stem != "__init__"
)
modules = pytest.mark.parametrize("module", MODULES)


def top(module: str) -> str:
    return module.split(".")[0]


def floor(module: str) -> int:
    [number] = [number for number, names in enumerate(FLOORS) if top(module) in names]
    return number


def package_imports(module: str) -> set[str]:
    """Modules of the package that a module imports at its top level, by any spelling."""
    found = set()
    for node in ast.parse((FOLDER / f"{module.replace('.', '/')}.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module == NAME:
                found |= {alias.name for alias in node.names}
            elif (node.module or "").startswith(f"{NAME}."):
                found.add(node.module.removeprefix(f"{NAME}."))
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix(f"{NAME}.") for a in node.names if NAME in a.name}
    return found


@modules
def test_a_module_imports_only_from_floors_below(module):
    for imported in package_imports(module):
        if top(imported) == top(module):  # within checks/
            continue
        assert floor(imported) < floor(module), f"{module} imports {imported}"


def test_every_module_has_a_floor():
    assert set().union(*FLOORS) == set(map(top, MODULES))


def public_members(module: str) -> list[tuple[str, object]]:
    """Public functions and classes of a module and their public methods, with full names."""
    found = []
    namespace = vars(importlib.import_module(f"{NAME}.{module}"))
    for name, member in namespace.items():
        if name.startswith("_") or getattr(member, "__module__", "") != f"{NAME}.{module}":
            continue
        if inspect.isclass(member):
            found.append((name, member))
            for method_name, method in vars(member).items():
                method = method.fget if isinstance(method, property) else method
                public = not method_name.startswith("_") or method_name in ("__init__", "__len__")
                if inspect.isfunction(method) and public:
                    found.append((f"{name}.{method_name}", method))
        elif inspect.isfunction(member):
            found.append((name, member))
    return found


@modules
def test_everything_public_is_documented(module):
    assert importlib.import_module(f"{NAME}.{module}").__doc__
    members = public_members(module)
    assert members, f"{module} has nothing public"
    for name, member in members:
        if not name.endswith("__init__"):  # its class says what it takes
            assert inspect.getdoc(member), f"{module}.{name} has no docstring"


@modules
def test_everything_public_has_type_hints(module):
    for name, member in public_members(module):
        if inspect.isclass(member):
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


def test_an_import_loads_only_what_it_needs():
    """Scikit-learn and torchvision take longer to load than PyTorch, and notebook tools need not be
    there. Pyplot, even for figures, would keep every picture of a slider alive."""
    code = f"""
import sys, {NAME}
print([m for m in ("matplotlib", "ipywidgets", "sklearn", "torchvision") if m in sys.modules])
from {NAME} import plots, widgets
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
