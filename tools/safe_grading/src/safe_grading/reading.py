"""What can be read from code without running it."""

import ast

from IPython.core.inputtransformer2 import TransformerManager

MODULES = set(
    "_ctypes builtins ctypes faulthandler gc importlib ipykernel marshal mmap multiprocessing "
    "os pickle resource shutil signal socket sqlite3 subprocess sys threading zmq".split()
)
NAMES = set("__builtins__ compile eval exec get_ipython setattr".split())
METHODS = set(
    "__bool__ __eq__ __getattr__ __getattribute__ __instancecheck__ __torch_function__".split()
)
ATTRIBUTES = set(
    "__builtins__ __closure__ __code__ __globals__ __subclasses__ _getframe ast_transformers "
    "displayhook f_globals set_custom_exc settrace".split()
)
# What tests judge by.
JUDGES = set("abs all any callable hasattr isinstance issubclass len type".split())


def parse(source: str) -> ast.Module:
    """Return the syntax tree of a cell, whose lines may be IPython's."""
    return ast.parse(TransformerManager().transform_cell(source))


def imports(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Return the import statements of a cell."""
    return [node for node in parse(source).body if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported_names(source: str) -> list[str]:
    """Return the names that the import statements of a cell bind."""
    names = [name for node in imports(source) for name in node.names]
    return [name.asname or name.name.split(".")[0] for name in names]


def ends_with_a_value(source: str) -> bool:
    """Return whether the last statement of a cell shows its value."""
    body = parse(source).body
    return bool(body) and isinstance(body[-1], ast.Expr)


def suspicious(source: str) -> set[str]:
    """Return the names in a cell that exercises have no use for."""
    try:
        tree = parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    return set().union(*map(_suspicious_names, ast.walk(tree)))


def _suspicious_names(node: ast.AST) -> set[str]:
    match node:
        case ast.Import(names) | ast.ImportFrom(names=names):
            modules = [getattr(node, "module", None) or "", *(name.name for name in names)]
            return {module for module in modules if module.split(".")[0] in MODULES}
        case ast.Attribute(attr=name) if name in ATTRIBUTES:
            return {name}
        case ast.FunctionDef(name=name) if name in METHODS:
            return {name}
        case ast.FunctionDef(name=name) if name in JUDGES:
            return {f"its own {name}"}
        case ast.Name(id=name) if name in NAMES:
            return {name}
        case ast.Name(id=name, ctx=ast.Store()) if name in JUDGES:
            return {f"its own {name}"}
    return set()
