"""Runs inside the kernel of a submission, before its first cell and around every test.

A submission shares one Python with its tests, so it can replace what they stand on: a function of
``checks``, ``torch.allclose``, ``len``, the names ``torch`` and ``checks`` in the notebook, hooks
of IPython. The guard remembers all that before the submission runs. Before a test it puts back
what has been replaced, and lets the test run in a copy of the notebook's names in which the
trusted ones mean what they should. After the test it looks again.

It cannot notice what leaves no trace: code that changes things back in time, or that reaches below
Python (``ctypes``). Its source is sent to the kernel, so it imports nothing of this package.
"""

import ast
import builtins
import importlib
import json
import os
import sys
import threading
import types
from typing import Any

# Whose functions, classes and modules are remembered, with what is inside them.
TRUSTED = (
    "builtins collections copy functools inspect itertools json math operator random re types "
    "typing warnings densenet_from_scratch torch numpy IPython ipykernel jupyter_client traitlets "
    "zmq comm"
).split()
OWN = "densenet_from_scratch"  # of which the data are remembered too
MISSING = object()
CALLABLE = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    staticmethod,
    classmethod,
    property,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
)
# What modules and classes change by themselves while they work.
VOLATILE = {"__warningregistry__", "__annotations__", "__annotate__", "__doc__"}
# What IPython sets in builtins, some of it only while a cell runs.
IPYTHONS = {
    "_",
    "copyright",
    "credits",
    "display",
    "exit",
    "get_ipython",
    "help",
    "license",
    "quit",
}


def trusted(name: Any) -> bool:
    """Say whether a module of this name is one of those remembered."""
    return isinstance(name, str) and name.split(".")[0] in TRUSTED


def settle() -> None:
    """Let happen what PyTorch changes in itself at the first use, before it is remembered.

    The first optimizer of a class wraps the class's own ``step``.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return
    for name in ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad"):
        getattr(torch.optim, name)([torch.zeros(1, requires_grad=True)], lr=0.1)
    cap_threads(torch)


def cap_threads(torch: Any) -> None:
    """Let PyTorch start no more threads than a few for each core, however many are asked for.

    More would only wait for each other, and hundreds would meet the limits of the submission.
    """
    most, plain = 4 * (os.cpu_count() or 1), torch.set_num_threads

    def set_num_threads(number: int) -> None:
        plain(min(number, most))

    torch.set_num_threads = set_num_threads


class Guard:
    """What was there before the submission ran."""

    def __init__(self, shell: Any, secret: str, imports: str):
        self.shell, self.secret = shell, secret
        self.names: dict[str, Any] = {}
        path = list(sys.path)
        # Not from the submission's folder, in which a file may be called torch.py.
        sys.path[:] = [entry for entry in path if entry not in ("", ".")]
        exec(compile(ast.parse(imports), "<imports of the tests>", "exec"), self.names)
        sys.path[:] = path
        settle()
        self.names.pop("__builtins__")
        self.names["get_ipython"] = shell.user_ns["get_ipython"]
        self.modules = {name: m for name, m in sys.modules.items() if trusted(name)}
        self.builtin_names = set(vars(builtins)) - IPYTHONS
        self.spaces: list[tuple[str, Any, dict[str, Any], set[str]]] = []
        self.functions: list[tuple[str, Any, tuple[Any, ...], list[Any]]] = []
        seen: set[int] = set()
        for name, module in self.modules.items():
            self._remember(name, module, seen, everything=name.split(".")[0] == OWN)
        self.hooks = (sys.settrace, sys.setprofile)
        parts = [shell, shell.kernel, shell.kernel.session, shell.displayhook, shell.display_pub]
        self.parts = [(part, set(vars(part))) for part in parts]
        self.lists = [
            (values, list(values))
            for values in (
                shell.ast_transformers,
                shell.input_transformers_post,
                shell.input_transformer_manager.cleanup_transforms,
                shell.input_transformer_manager.line_transforms,
                shell.input_transformer_manager.token_transformers,
            )
        ]
        self.events = {name: list(calls) for name, calls in shell.events.callbacks.items()}
        self.custom_exceptions = shell.custom_exceptions
        self.threads = set(threading.enumerate())
        self.notebook = shell.user_module
        self.codes: list[Any] = []
        self.before: dict[str, Any] = {}
        self.their_events: dict[str, list[Any]] = {}

    def _remember(self, label: str, holder: Any, seen: set[int], everything: bool = False) -> None:
        """Remember what a module or class holds, and the insides of its functions."""
        if id(holder) in seen:
            return
        seen.add(id(holder))
        space = dict(vars(holder))
        ignored = VOLATILE | IPYTHONS if holder is builtins else VOLATILE
        kept = {
            name: value
            for name, value in space.items()
            if (everything or isinstance(value, CALLABLE)) and name not in ignored
        }
        self.spaces.append((label, holder, kept, set(space)))
        for name, value in kept.items():
            inner = f"{label}.{name}"
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            for function in (
                [value.fget, value.fset, value.fdel] if isinstance(value, property) else [value]
            ):
                while isinstance(function, types.FunctionType) and id(function) not in seen:
                    seen.add(id(function))
                    cells = [cell for cell in function.__closure__ or ()]
                    contents = [self._content(cell) for cell in cells]
                    self.functions.append((inner, function, self._inside(function), contents))
                    function = getattr(function, "__wrapped__", None)
            if isinstance(value, type) and trusted(value.__module__):
                self._remember(inner, value, seen)
            elif everything and type(value).__module__.split(".")[0] == OWN:
                if hasattr(value, "__dict__"):  # for example the LayerSpec of a check
                    self._remember(inner, value, seen, everything=True)

    @staticmethod
    def _content(cell: Any) -> Any:
        try:
            return cell.cell_contents
        except ValueError:
            return MISSING

    @staticmethod
    def _inside(function: Any) -> tuple[Any, ...]:
        return function.__code__, function.__defaults__, function.__kwdefaults__

    def restore(self) -> list[str]:
        """Put back whatever was replaced; return the names of it."""
        changed = []
        for name, module in self.modules.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module
                changed.append(f"sys.modules[{name!r}]")
        for label, holder, kept, names in self.spaces:
            space = vars(holder)
            for name, value in kept.items():
                if space.get(name, MISSING) is not value:
                    self._set(holder, name, value)
                    changed.append(f"{label}.{name}")
            if isinstance(holder, type):
                for name in [name for name in space if name not in names]:
                    hides = any(name in vars(base) for base in holder.__mro__[1:])
                    if hides and isinstance(space[name], CALLABLE):
                        type.__delattr__(holder, name)
                        changed.append(f"{label}.{name}")
            elif isinstance(holder, types.ModuleType) and holder is not builtins:
                for name in (self.builtin_names & space.keys()) - names:
                    del space[name]
                    changed.append(f"{label}.{name}")
        for label, function, inside, contents in self.functions:
            now = self._inside(function)
            if any(a is not b for a, b in zip(now, inside)):  # noqa: B905
                function.__code__, function.__defaults__, function.__kwdefaults__ = inside
                changed.append(label)
            for cell, value in zip(function.__closure__ or (), contents):  # noqa: B905
                if value is not MISSING and self._content(cell) is not value:
                    if label.split(".")[0] == OWN:
                        cell.cell_contents = value
                        changed.append(label)
        for part, names in self.parts:
            for name in [name for name in vars(part) if name not in names]:
                if callable(vars(part)[name]) and hasattr(type(part), name):
                    del vars(part)[name]
                    changed.append(f"{type(part).__name__}.{name}")
        for values, before in self.lists:
            if values != before:
                values[:] = before
                changed.append("a transformer of IPython's input")
        if self.shell.custom_exceptions != self.custom_exceptions:
            self.shell.custom_exceptions = self.custom_exceptions
            changed.append("IPython's handler of exceptions")
        settrace, setprofile = self.hooks
        if sys.gettrace() or sys.getprofile():
            settrace(None)
            setprofile(None)
            changed.append("sys.settrace")
        return changed

    @staticmethod
    def _set(holder: Any, name: str, value: Any) -> None:
        if isinstance(holder, type):
            type.__setattr__(holder, name, value)
        else:
            vars(holder)[name] = value

    def enter(self) -> str:
        """Make ready for a test or another locked cell; tell what had to be put back."""
        changed = self.restore()
        notebook = vars(self.notebook)
        for name, value in self.names.items():
            if name in notebook and notebook[name] is not value:
                changed.append(f"the name {name}")
        stage = types.ModuleType("__main__")
        self.before = {n: v for n, v in notebook.items() if n not in self.builtin_names}
        vars(stage).update(self.before | self.names)
        self.before = dict(vars(stage))
        self.shell.user_module, self.shell.user_ns = stage, vars(stage)
        self.their_events = {name: list(calls) for name, calls in self.events_now().items()}
        for name, calls in self.events.items():
            self.events_now()[name][:] = calls
        threads = set(threading.enumerate()) - self.threads
        return self._report(changed, sorted(thread.name for thread in threads))

    def prepare(self, source: str, name: str) -> str:
        """Compile a test, after entering, and before anything of the submission runs again.

        Its source is then nowhere: neither in a history, nor in a message, nor in a frame.
        """
        body = ast.parse(self.shell.transform_cell(source), name).body
        last = [body.pop()] if body and isinstance(body[-1], ast.Expr) else []
        self.codes = [compile(ast.Module(body, []), name, "exec")]
        if last:  # whose value is shown
            self.codes.append(compile(ast.Interactive(last), name, "single"))
        return self._report([], [])

    def test(self) -> None:
        """Run what was prepared."""
        codes, self.codes = self.codes, []
        for code in codes:
            exec(code, vars(self.shell.user_module))

    def events_now(self) -> dict[str, list[Any]]:
        """Return what IPython calls before and after a cell."""
        return self.shell.events.callbacks

    def leave(self, imported: list[str], trust: bool = False) -> str:
        """Go back to the notebook's own names; tell what the test's run replaced.

        ``imported`` are the names that the cell imports, so binds even if they had their value.
        With ``trust``, the functions and classes that the cell defined are remembered like what
        the tests import.
        """
        changed = self.restore()
        stage = vars(self.shell.user_module)
        new = {n: v for n, v in stage.items() if self.before.get(n, MISSING) is not v}
        vars(self.notebook).update(new | {name: stage[name] for name in imported if name in stage})
        if trust:
            kinds = (type, types.FunctionType, types.ModuleType)
            self.names |= {name: value for name, value in new.items() if isinstance(value, kinds)}
        self.shell.user_module, self.shell.user_ns = self.notebook, vars(self.notebook)
        for name, calls in self.their_events.items():
            self.events_now()[name][:] = calls
        return self._report(changed, [])

    def _report(self, changed: list[str], threads: list[str]) -> str:
        report = {"secret": self.secret, "changed": changed[:8], "threads": threads}
        return json.dumps(report)


def install(secret: str, place: str, imports: str) -> None:
    """Start guarding; the guard is kept at the kernel, under a name that nobody knows before."""
    from IPython import get_ipython

    for module in ("IPython.core.interactiveshell", "ipykernel.zmqshell"):
        importlib.import_module(module)
    shell = get_ipython()
    setattr(shell.kernel, place, Guard(shell, secret, imports))
