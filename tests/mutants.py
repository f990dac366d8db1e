"""Generate wrong answers to the exercises, and see whether the checks find them.

    python tests/mutants.py [ASSIGNMENT ...] [--list-survivors] [--folder FOLDER] [--limit N]

Each solution cell's syntax tree is changed at one place at a time. Mutants that behave as the
solution on the battery of ``battery.py`` are set aside; all others are wrong answers, and the test
cells below must refuse them. In the other direction, rewrites of the solutions that keep what they
do, automatic ones and those of ``tests/rewrites/``, must be accepted. Neither the changes nor the
battery know what the checks look for.
"""

import argparse
import ast
import contextlib
import copy
import difflib
import io
import random
import re
import resource
import signal
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from battery import behaves_alike, behaviour, raises_everywhere, reset
from helpers import ASSIGNMENTS, ROOT, assignment_cells, role, run_cell
from torch import Tensor, nn
from tqdm import tqdm

SECONDS = 8  # for what one mutant does, and again for the tests of it


@dataclass
class Mutant:
    cell: str
    operator: str
    source: str


# --- Changes of one place ------------------------------------------------------------------------

NAMES = {
    "max": ["min"], "min": ["max"], "sum": ["mean", "max", "len"], "mean": ["sum", "median"],
    "amax": ["amin", "mean"], "argmax": ["argmin"], "ceil": ["floor", "trunc"],
    "int": ["round", "float", "math_ceil"], "stdev": ["pstdev"], "repeat": ["expand"],
    "relu": ["leaky_relu", "relu6", "gelu", "elu", "silu"], "avg_pool2d": ["max_pool2d"],
    "BatchNorm2d": ["InstanceNorm2d"], "clone": ["detach", "view_as"], "zeros": ["ones"],
    "new_zeros": ["new_ones", "new_empty"], "zeros_like": ["ones_like", "empty_like"],
    "append": ["extend"], "abs": ["square", "neg"], "cat": ["stack"], "stack": ["cat"],
    "enumerate": ["list"], "eval": ["train"], "train": ["eval"], "deepcopy": ["copy"],
    "no_grad": ["enable_grad"], "ModuleList": ["list", "Sequential"], "backward": ["detach"],
    "split": ["chunk"], "named_buffers": ["named_parameters"], "size": ["stride"],
}  # fmt: skip
OPERATORS: dict[type, list[type]] = {
    ast.Add: [ast.Sub, ast.Mult], ast.Sub: [ast.Add], ast.Mult: [ast.Div, ast.Add, ast.FloorDiv],
    ast.Div: [ast.Mult, ast.FloorDiv], ast.FloorDiv: [ast.Div, ast.Mult, ast.Mod],
    ast.Mod: [ast.FloorDiv], ast.Pow: [ast.Mult], ast.Lt: [ast.LtE, ast.Gt, ast.NotEq],
    ast.LtE: [ast.Lt, ast.GtE, ast.Eq], ast.Gt: [ast.GtE, ast.Lt], ast.GtE: [ast.Gt, ast.LtE],
    ast.Eq: [ast.NotEq, ast.LtE, ast.GtE], ast.NotEq: [ast.Eq, ast.Lt, ast.Gt], ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is], ast.In: [ast.NotIn], ast.NotIn: [ast.In], ast.And: [ast.Or],
    ast.Or: [ast.And],
}  # fmt: skip
KEYWORDS = {
    "BatchNorm2d": ["affine=False", "track_running_stats=False", "momentum=0.2", "momentum=None",
                    "eps=0.001", "eps=0.1"],
    "Conv2d": ["padding_mode='reflect'", "padding_mode='replicate'", "padding_mode='circular'",
               "stride=2", "dilation=2", "bias=True", "dtype=torch.float64"],
    "Linear": ["bias=False"],
    "cat": ["dim=-1", "dim=0"], "mean": ["keepdim=True"], "sum": ["keepdim=True"],
    "relu": ["inplace=True"], "avg_pool2d": ["ceil_mode=True", "padding=1", "stride=1"],
    "SGD": ["momentum=0.0", "nesterov=False", "weight_decay=0.0", "dampening=0.1", "foreach=False"],
    "cross_entropy": ["label_smoothing=0.1", "reduction='mean'", "reduction='sum'"],
    "MultiStepLR": ["gamma=0.5"], "DenseBlock": ["bottleneck=False", "bn_size=2", "drop_rate=0.2"],
    "checkpoint": ["use_reentrant=True", "preserve_rng_state=False"], "zip": ["strict=False"],
    "zero_grad": ["set_to_none=False"],
}  # fmt: skip


def expression(text: str, **parts: ast.expr) -> ast.expr:
    """Parse a text, with parts of a tree in place of the names in capital letters."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node):
            return copy.deepcopy(parts[node.id]) if node.id in parts else node

    return Fill().visit(ast.parse(text, mode="eval").body)


def last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def other_expressions(node: ast.expr, names: list[str]) -> Iterator[tuple[str, ast.expr]]:
    """Yield what else could stand in place of an expression."""
    if isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield "flip", ast.Constant(not value)
        elif isinstance(value, int):
            yield "off by one", ast.Constant(value + 1)
            yield "off by one", ast.Constant(value - 1)
        elif isinstance(value, float):
            yield "other constant", ast.Constant(value * 2)
            yield "other constant", ast.Constant(value / 10)
        elif isinstance(value, str) and value.startswith("^"):  # a pattern
            for index in range(len(value)):
                yield "pattern", ast.Constant(value[:index] + value[index + 1 :])
        elif isinstance(value, str):
            yield "other word", ast.Constant({"first": "second", "second": "first"}.get(value, ""))
    if isinstance(node, ast.BinOp):
        for kind in OPERATORS.get(type(node.op), []):
            yield "operator", ast.BinOp(node.left, kind(), node.right)
        yield "swap operands", ast.BinOp(node.right, node.op, node.left)
        yield "drop operand", node.left
        yield "drop operand", node.right
        parts = {"A": node.left, "B": node.right}
        if isinstance(node.op, ast.FloorDiv):
            yield "rounding", expression("round(A / B)", **parts)
            yield "rounding", expression("-(-A // B)", **parts)
            yield "rounding", expression("A // B + 1", **parts)
        if isinstance(node.op, ast.Div):
            yield "rounding", expression("round(A / B)", **parts)
            yield "rounding", expression("int(A / B)", **parts)
        if isinstance(node.op, ast.Mult):
            yield "operator", expression("A ** B", **parts)
            yield "operator", expression("A @ B", **parts)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        for kind in OPERATORS.get(type(node.ops[0]), []):
            yield "comparison", ast.Compare(node.left, [kind()], node.comparators)
        yield "always", ast.Constant(True)
        yield "never", ast.Constant(False)
        if isinstance(node.ops[0], ast.Lt | ast.LtE):
            for bound in (10, 100):
                yield "cap", expression(f"A and B < {bound}", A=node, B=node.left)
    if isinstance(node, ast.BoolOp):
        for kind in OPERATORS[type(node.op)]:
            yield "and, or", ast.BoolOp(kind(), node.values)
        for value in node.values:
            yield "drop a condition", value
    if isinstance(node, ast.UnaryOp):
        yield "drop a sign", node.operand
    if isinstance(node, ast.IfExp):
        yield "negate", ast.IfExp(node.test, node.orelse, node.body)
        yield "one branch", node.body
        yield "one branch", node.orelse
    if isinstance(node, ast.List | ast.Tuple) and isinstance(node.ctx, ast.Load):
        if len(node.elts) > 1:
            yield "reverse", type(node)(node.elts[::-1], node.ctx)
            for index in range(len(node.elts)):
                yield (
                    "drop an element",
                    type(node)(node.elts[:index] + node.elts[index + 1 :], node.ctx),
                )
        elif node.elts:
            yield "empty", type(node)([], node.ctx)
    if isinstance(node, ast.ListComp | ast.GeneratorExp):
        inner = node.generators[0]
        for text in ("list(A)[1:]", "list(A)[:-1]", "list(A)[::-1]", "list(A) + [list(A)[-1]]"):
            changed = copy.deepcopy(node)
            changed.generators[0].iter = expression(text, A=inner.iter)
            yield "iterate", changed
        yield (
            "only the first, again",
            expression(
                "[ITEM] * len(list(A))",
                A=inner.iter,
                ITEM=(expression("next(iter(B))", B=ast.GeneratorExp(node.elt, node.generators))),
            ),
        )
    if isinstance(node, ast.Slice):
        for part in ("lower", "upper", "step"):
            if (bound := getattr(node, part)) is not None:
                for other in (None, expression("A + 1", A=bound), expression("A - 1", A=bound)):
                    changed = copy.copy(node)
                    setattr(changed, part, other)
                    yield "slice", changed
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        yield "drop the index", node.value
    if isinstance(node, ast.Call):
        yield from other_calls(node)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        for name in names:
            if name != node.id:
                yield "another name", ast.Name(name, node.ctx)
    if isinstance(node, ast.Attribute) and last_name(node.value) == "self":
        for name in names:
            if name.startswith("self.") and name != f"self.{node.attr}":
                yield "another part", ast.Attribute(node.value, name[5:], node.ctx)
    if isinstance(node, ast.Starred):
        yield "list in place of elements", node.value


def other_calls(node: ast.Call) -> Iterator[tuple[str, ast.expr]]:
    name = last_name(node.func)
    for other in NAMES.get(name, []):
        changed = copy.deepcopy(node)
        if isinstance(changed.func, ast.Attribute):
            changed.func.attr = other
        else:
            changed.func = (
                expression("__import__('math').ceil")
                if other == "math_ceil"
                else expression("__import__('statistics').pstdev")
                if other == "pstdev"
                else expression("(lambda v: sum(list(v)[:-1]))")
                if other == "mean"
                else ast.Name(other, ast.Load())
            )
        yield "another function", changed
    for index in range(len(node.keywords)):
        changed = copy.deepcopy(node)
        del changed.keywords[index]
        yield "drop a keyword", changed
    for text in KEYWORDS.get(name, []):
        new = expression(f"f({text})").keywords[0]
        changed = copy.deepcopy(node)
        changed.keywords = [k for k in changed.keywords if k.arg != new.arg] + [new]
        yield "keyword", changed
    for index in range(len(node.args) - 1):
        changed = copy.deepcopy(node)
        changed.args[index : index + 2] = changed.args[index : index + 2][::-1]
        yield "swap arguments", changed
    for index in range(len(node.args) if len(node.args) > 1 else 0):
        changed = copy.deepcopy(node)
        del changed.args[index]
        yield "drop an argument", changed
    if name in ("range", "zip", "enumerate", "pairwise"):
        for text in ("list(A)[1:]", "list(A)[:-1]", "list(A)[::-1]"):
            yield "iterate", expression(text, A=node)
        return
    if len(node.args) == 1:
        yield "leave out the call", node.args[0]
        yield "twice in a row", ast.Call(node.func, [node], node.keywords)
    if isinstance(node.func, ast.Attribute):
        yield "leave out the method", node.func.value
    yield "evaluate twice", expression("(A, A)[1]", A=node)
    if name in ("cat", "stack") and node.args:
        for text in (
            "A[::-1]",
            "list(reversed(A))",
            "A[1:]",
            "A[-1:]",
            "A[:-1]",
            "sorted(A, key=id)",
        ):
            changed = copy.deepcopy(node)
            changed.args[0] = expression(text, A=changed.args[0])
            yield "another list", changed
    for method in ("detach", "float", "double", "relu_", "squeeze", "neg", "half"):
        if name not in ("super", "__init__", "append", "sum", "len", "int", "slice"):
            yield method, expression(f"A.{method}()", A=node)


# --- Changes of statements and of whole functions ------------------------------------------------


def statement(text: str, **parts: ast.expr) -> list[ast.stmt]:
    class Fill(ast.NodeTransformer):
        def visit_Name(self, node):
            return copy.deepcopy(parts[node.id]) if node.id in parts else node

    return Fill().visit(ast.parse(text)).body


def other_statements(body: list[ast.stmt], index: int) -> Iterator[tuple[str, list[ast.stmt]]]:
    """Yield what else a list of statements could be, changed at one of them."""
    here, before, after = body[index], body[:index], body[index + 1 :]
    if isinstance(here, ast.Expr) and isinstance(here.value, ast.Constant):
        return
    yield "drop a statement", before + after or [ast.Pass()]
    yield "duplicate a statement", [*before, here, copy.deepcopy(here), *after]
    if after:
        yield "swap statements", [*before, after[0], here, *after[1:]]
    if isinstance(here, ast.If):
        yield (
            "negate",
            [*before, ast.If(expression("not A", A=here.test), here.body, here.orelse), *after],
        )
        yield "no condition", [*before, *here.body, *after]
    if isinstance(here, ast.While):
        for bound in (3, 10, 100):
            text = f"_count = 0\nwhile TEST and _count < {bound}:\n    _count += 1"
            first, loop = statement(text, TEST=here.test)
            loop.body += here.body
            yield "cap the search", [*before, first, loop, *after]
    if isinstance(here, ast.For):
        for text in (
            "list(A)[1:]",
            "list(A)[:-1]",
            "list(A)[::-1]",
            "list(A)[:10]",
            "list(A)[:2]",
            "set(A)",
        ):
            changed = copy.copy(here)
            changed.iter = expression(text, A=here.iter)
            yield "iterate", [*before, changed, *after]
        changed = copy.copy(here)
        changed.body = [*here.body, ast.Break()]
        yield "stop after the first", [*before, changed, *after]
        changed = copy.copy(here)
        changed.body = [*here.body, *copy.deepcopy([s for s in after if isinstance(s, ast.Return)])]
        yield "return in the loop", [*before, changed, *after]
        for last in here.body[-1:]:
            changed = copy.copy(here)
            changed.body = here.body[:-1] or [ast.Pass()]
            yield "move out of the loop", [*before, changed, last, *after]
        for first in after[:1]:
            changed = copy.copy(here)
            changed.body = [*here.body, first]
            yield "move into the loop", [*before, changed, *after[1:]]
    if isinstance(here, ast.With):
        yield "without the context", [*before, *here.body, *after]
        if after:
            changed = copy.copy(here)
            changed.body = [*here.body, after[0]]
            yield "move into the context", [*before, changed, *after[1:]]
        changed = copy.copy(here)
        changed.body = here.body[:-1] or [ast.Pass()]
        yield "move out of the context", [*before, changed, here.body[-1], *after]
    if isinstance(here, ast.Try):
        yield "without try", [*before, *here.body, *here.finalbody, *after]
        yield "without finally", [*before, *here.body, *after]
    if isinstance(here, ast.AugAssign):
        for kind in OPERATORS.get(type(here.op), []):
            yield "operator", [*before, ast.AugAssign(here.target, kind(), here.value), *after]
        yield "assign", [*before, ast.Assign([here.target], here.value), *after]
    if isinstance(here, ast.Assign) and len(here.targets) == 1:
        target = here.targets[0]
        if isinstance(target, ast.Attribute) and last_name(target.value) == "self":
            text = (
                f"if not hasattr(type(self), '_{target.attr}'):\n"
                f"    type(self)._{target.attr} = A\n"
                f"self.{target.attr} = type(self)._{target.attr}"
            )
            yield "shared by instances", [*before, *statement(text, A=here.value), *after]
            text = f"object.__setattr__(self, '{target.attr}', A)"
            yield "not registered", [*before, *statement(text, A=here.value), *after]
        if isinstance(here.value, ast.BinOp) and isinstance(target, ast.Name):
            yield (
                "in place",
                [*before, ast.AugAssign(target, here.value.op, here.value.right), *after],
            )
    if isinstance(here, ast.Return) and here.value is not None:
        for text in RETURNS:
            yield "return", [*before, *statement(f"return {text}", A=here.value), *after]


RETURNS = [
    "A.detach()", "A.squeeze()", "A.float()", "A.double()", "A[:1]",
    "A.relu()", "A.mean()", "A.flatten(1)", "[A]", "-A", "A + 1", "A - 1", "abs(A)", "min(A, 10)",
    "min(A, 100)", "min(A, 1000)", "max(A, 1)", "max(A, 0)", "int(A)", "round(A)", "round(A, 2)",
    "float(A)", "str(A)", "A[::-1]", "A[:-1]", "A[1:]", "A / 2", "A * 2", "bool(A)", "None",
    "A.T", "A.half().to(A.dtype)", "A.unsqueeze(0)", "A.data", "print(A)", "A.clamp(-3, 3)",
    "A.nan_to_num()",
    "A.reshape(2, *A.shape[1:])", "sorted(A)", "A.bool().to(A.dtype)", "A.tolist()",
]  # fmt: skip

# For each argument X: what is done to it at the start, or in the end, whatever it is.
STARTS = [
    "X = X.detach()", "X = X.float()", "X = X.double()", "X = X.relu()", "X.relu_()", "X.add_(1)",
    "X = X.squeeze()", "X = X[:1]", "X = X.clamp(-1, 1)", "X = X - X.mean()", "X = X.flip(0)",
    "X.requires_grad_()", "X.data.add_(1)", "X = X[..., :4]", "X = X[:2]", "X.reverse()",
    "X.sort()", "X = sorted(X)", "X.pop()", "X = X[::-1]", "X = X[:3]", "X = X[:10]", "X = set(X)",
    "X = list(dict.fromkeys(X))", "X.clear()", "X.append(X[-1])", "X.eval()", "X.train()",
    "[part.eval() for part in X]", "[part.train() for part in X]", "X.double()", "X.zero_grad()",
    "X = min(X, 10)", "X = min(X, 50)", "X = min(X, 100)", "X = max(X, 2)", "X = max(X, 3)",
    "X = int(X)", "X = round(X, 1)", "X = X // 2 * 2", "X = X + 1", "X = X - 1", "X = -X",
    "X = not X", "X = True", "X = False", "X = 1", "X = 2", "X = 3", "X = 4", "X = 8", "X = 10",
    "X = 12", "X = 16", "X = 32", "X = 64", "X = 0.5", "X = 1.0", "X = 0.1", "X = None",
    "X = next(iter(X))", "X = [X[0]] * len(X)", "X = [X[-1]] * len(X)",
    "X = __import__('copy').deepcopy(X)",
    "X = X.mean(0, keepdim=True)",
    "X = X.view(X.shape)", "X.fill_(0)", "X.grad = None", "X.data = X.data * 2",
]  # fmt: skip
GLOBAL = ["torch.set_grad_enabled(False)"]
CONTEXTS = ["torch.no_grad()", "torch.inference_mode()"]


def other_functions(node: ast.FunctionDef, is_method: bool) -> Iterator[tuple[str, ast.AST]]:
    """Yield what else a function could be as a whole."""
    doc = node.body[:1] if ast.get_docstring(node) is not None else []
    body = node.body[len(doc) :]
    names = [a.arg for a in [*node.args.posonlyargs, *node.args.args] if a.arg != "self"]
    in_init = node.name == "__init__"

    def with_body(new: list[ast.stmt]) -> ast.FunctionDef:
        changed = copy.copy(node)
        changed.body = [*doc, *new]
        return changed

    for name in names:
        for text in STARTS:
            yield f"start: {text}", with_body([*statement(text.replace("X", name)), *body])
            if not re.match(r"X\.?\w* = |X.requires_grad_", text):
                new = ast.Try(body, [], [], statement(text.replace("X", name)))
                yield f"end: {text}", with_body([new])
    for first, second in pairwise(names):
        yield (
            "swap arguments",
            with_body([*statement(f"{first}, {second} = {second}, {first}"), *body]),
        )
    for text in GLOBAL:
        yield f"start: {text}", with_body([*statement(text), *body])
    if in_init:
        for text in (
            "self.eval()",
            "self.double()",
            "self.requires_grad_(False)",
            "torch.manual_seed(0)",
        ):
            yield f"end: {text}", with_body([*body, *statement(text)])
        return
    for text in CONTEXTS:
        [new] = statement(f"with {text}:\n    pass")
        new.body = body
        yield f"in {text}", with_body([new])
    owner = "self" if is_method else node.name
    if is_method:
        for text in (
            "self.eval()",
            "self.train()",
            "self.double()",
            "self.float()",
            "self.norm.reset_running_stats()",
            "self.norm1.reset_running_stats()",
            "[p.requires_grad_(False) for p in self.parameters()]",
            "[p.data.mul_(0.99) for p in self.parameters()]",
        ):
            yield f"start: {text}", with_body([*statement(text), *body])
        new = ast.Try(body, [], [], statement("self.eval()"))
        yield "end: self.eval()", with_body([new])
    # The answer of the first call, for ever; and what grows from call to call.
    kept = statement(
        f"if '_kept' in {owner}.__dict__:\n    return {owner}.__dict__['_kept']\n"
        "def _answer():\n    pass\n"
        f"{owner}.__dict__['_kept'] = _answer()\nreturn {owner}.__dict__['_kept']"
    )
    kept[1].body = body
    yield "remembers its first answer", with_body(kept)
    for index, each in enumerate(body):
        if isinstance(each, ast.Assign) and isinstance(each.value, ast.List | ast.Dict):
            text = f"T = {owner}.__dict__.setdefault('_kept', A)"
            new = statement(text, A=each.value)
            new[0].targets = each.targets
            yield "grows from call to call", with_body([*body[:index], *new, *body[index + 1 :]])


# --- Generation ----------------------------------------------------------------------------------

Path_ = tuple[tuple[str, int | None], ...]


def places(node: ast.AST, path: Path_ = ()) -> Iterator[tuple[Path_, ast.AST]]:
    yield path, node
    for name, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield from places(value, (*path, (name, None)))
        elif isinstance(value, list):
            for index, each in enumerate(value):
                if isinstance(each, ast.AST):
                    yield from places(each, (*path, (name, index)))


def replaced(tree: ast.AST, path: Path_, new) -> ast.AST:
    """Return a copy of a tree with something else at one place."""
    if not path:
        return new
    changed = copy.copy(tree)
    (name, index), rest = path[0], path[1:]
    value = getattr(tree, name)
    if index is None:
        setattr(changed, name, replaced(value, rest, new) if isinstance(value, ast.AST) else new)
    else:
        parts = list(value)
        parts[index] = replaced(parts[index], rest, new)
        setattr(changed, name, parts)
    return changed


def solution_lines(source: str) -> set[int]:
    """Return the numbers of the lines that the reader writes."""
    inside, lines = False, set()
    for number, line in enumerate(source.splitlines(), 1):
        inside = ("BEGIN SOLUTION" in line) or (inside and "END SOLUTION" not in line)
        if inside:
            lines.add(number)
    return lines


def mutants_of(cell: str, source: str) -> list[Mutant]:
    """Return all wrong answers that one change of a solution cell gives, each once."""
    tree, lines = ast.parse(source), solution_lines(source)
    seen, found = {ast.unparse(tree)}, []

    def add(operator: str, path: Path_, new) -> None:
        try:
            text = ast.unparse(ast.fix_missing_locations(replaced(tree, path, new)))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compile(text, "<mutant>", "exec")
        except (SyntaxError, ValueError, AttributeError, TypeError):
            return
        if text not in seen:
            seen.add(text)
            found.append(Mutant(cell, operator, text))

    functions = [(path, node) for path, node in places(tree) if isinstance(node, ast.FunctionDef)]
    for path, node in functions:
        inner = {n.lineno for n in ast.walk(node) if hasattr(n, "lineno")}
        if not inner & lines:
            continue
        is_method = bool(node.args.args) and node.args.args[0].arg == "self"
        nested = any(path[: len(p)] == p and p != path for p, _ in functions)
        names = names_in(node, tree if is_method else None)
        if not nested:
            for operator, new in other_functions(node, is_method):
                add(operator, path, new)
        for place, here in places(node, path):
            if isinstance(here, ast.FunctionDef | ast.arguments | ast.arg) and here is not node:
                continue
            if isinstance(here, ast.expr) and here.lineno in lines:
                for operator, new in other_expressions(here, names):
                    add(operator, place, new)
            for attribute in ("body", "orelse", "finalbody"):
                body = getattr(here, attribute, None)
                if isinstance(body, list) and not isinstance(here, ast.Lambda | ast.IfExp):
                    for index, each in enumerate(body):
                        if each.lineno in lines:
                            for operator, new in other_statements(body, index):
                                changed = copy.copy(here)
                                setattr(changed, attribute, new)
                                add(operator, place, changed)
    return found


def names_in(function: ast.FunctionDef, tree: ast.AST | None) -> list[str]:
    """Return the arguments and locals of a function, and the parts of self."""
    found = [argument.arg for argument in ast.walk(function) if isinstance(argument, ast.arg)]
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.append(node.id)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.append(f"self.{node.attr}")
    return [name for name in dict.fromkeys(found) if name != "self"]


# --- Running an answer ---------------------------------------------------------------------------


class TooLong(BaseException):
    """Not an Exception, so that no answer and no check can catch it."""


@contextlib.contextmanager
def limited(seconds: float = SECONDS):
    def stop(*_):
        raise TooLong

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        reset()


@dataclass
class Exercise:
    """A solution cell, the names that the cells above it leave, and the tests below it."""

    assignment: str
    cell: str
    source: str
    above: dict
    tests: list[str] = field(default_factory=list)
    expected: list = field(default_factory=list)

    def names(self, source: str) -> dict:
        """Return the names after another answer; what stands above is the same each time."""
        mutable = (list, dict, Tensor, nn.Module)
        names = {
            key: copy.deepcopy(value)
            if isinstance(value, mutable) and not key.startswith("_")
            else value
            for key, value in self.above.items()
        }
        run_cell(source, names)
        return names

    def behaves(self, source: str) -> str:
        """Say whether an answer is "alike", "other", or "raises" whatever it is given."""
        try:
            with limited():
                found = behaviour(self.assignment, self.cell, self.names(source))
                if behaves_alike(self.expected, found):
                    return "alike"
                return "raises" if raises_everywhere(found) else "other"
        except TooLong:
            return "other"
        except Exception:
            return "raises"

    def refusal(self, source: str) -> str | None:
        """Return what the tests say of an answer, or None if it gets full marks."""
        try:
            with limited():
                torch.manual_seed(0)
                names = self.names(source)
                for test in self.tests:
                    run_cell(test, names)
        except TooLong:
            return "too long"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return f"{type(error).__name__}: {error}"
        return None


def exercises(assignment: str) -> list[Exercise]:
    """Return an assignment's solution cells, each with what it needs."""
    found: list[Exercise] = []
    names: dict = {"__name__": "__main__"}
    open_ = False
    for cell in assignment_cells("solutions", assignment):
        if cell.cell_type != "code":
            continue
        if role(cell, "grade"):
            if open_:
                found[-1].tests.append(cell.source)
            continue
        open_ = bool(role(cell, "solution"))
        if open_:
            found.append(Exercise(assignment, cell.id, cell.source, dict(names)))
        with limited(60):
            run_cell(cell.source, names)
    for each in found:
        with limited(60):
            each.expected = behaviour(assignment, each.cell, each.names(each.source))
        assert each.tests, each.cell
        assert not raises_everywhere(each.expected), (assignment, each.cell)
        assert each.behaves(each.source) == "alike", (assignment, each.cell)
        assert each.refusal(each.source) is None, (assignment, each.cell)
    return found


# --- Rewrites that keep what an answer does ------------------------------------------------------


class Change(ast.NodeTransformer):
    """Replace each expression by what a function makes of it."""

    def __init__(self, change: Callable):
        self.change = change

    def generic_visit(self, node):
        node = super().generic_visit(node)
        return self.change(node) or node


def rename_locals(tree: ast.Module) -> None:
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        stored = {
            n.id
            for n in ast.walk(function)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        taken = {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
        outer = {n for g in ast.walk(function) if isinstance(g, ast.Nonlocal) for n in g.names}
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and node.id in stored - taken - outer:
                node.id = f"my_{node.id}"


def simple(pattern: Callable[[ast.AST], ast.AST | None]) -> Callable[[ast.Module], None]:
    return lambda tree: Change(pattern).visit(tree)


def relu_as(text: str):
    def change(node):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "F.relu":
            return expression(text, A=node.args[0])

    return simple(change)


def cat_as(text: str):
    def change(node):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.cat":
            return expression(text, A=node.args[0])

    return simple(change)


def padding_same(node):
    if isinstance(node, ast.keyword) and node.arg == "padding" and ast.unparse(node.value) == "1":
        return ast.keyword("padding", ast.Constant("same"))


def numbers_by_position(node):
    if isinstance(node, ast.Call) and last_name(node.func) == "Conv2d":
        for index, key in enumerate(node.keywords):
            if key.arg == "kernel_size" and len(node.args) == 2:
                return ast.Call(
                    node.func,
                    [*node.args, ast.Tuple([key.value] * 2, ast.Load())],
                    node.keywords[:index] + node.keywords[index + 1 :],
                )


def type_hints(tree: ast.Module) -> None:
    for function in [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]:
        if not function.decorator_list:
            function.returns = ast.Constant("Any")
            for argument in function.args.args:
                if argument.arg != "self":
                    argument.annotation = ast.Constant("Any")


def without_docstrings(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]


def named_results(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        for attribute in ("body", "orelse"):
            body = getattr(node, attribute, None)
            if isinstance(body, list) and body and isinstance(body[-1], ast.Return):
                if body[-1].value is not None:
                    body[-1:] = statement("my_result = A\nreturn my_result", A=body[-1].value)


def plain_assignments(tree: ast.Module) -> None:
    def change(node):
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            left = ast.Name(node.target.id, ast.Load())
            return ast.Assign([node.target], ast.BinOp(left, node.op, node.value))

    Change(change).visit(tree)


def commuted(node):
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return ast.BinOp(node.right, node.op, node.left)


def lists_of_generators(node):
    if isinstance(node, ast.GeneratorExp):
        return ast.ListComp(node.elt, node.generators)


def helper_base(tree: ast.Module) -> None:
    for node in list(tree.body):
        if isinstance(node, ast.ClassDef) and ast.unparse(node.bases[0]) == "nn.Module":
            node.bases = [ast.Name("MyBase", ast.Load())]
            tree.body[0:0] = statement("class MyBase(nn.Module):\n    pass")


def negated_ifs(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and node.orelse:
            node.test, node.body, node.orelse = (
                ast.UnaryOp(ast.Not(), node.test),
                node.orelse,
                node.body,
            )
        if isinstance(node, ast.IfExp):
            node.test, node.body, node.orelse = (
                ast.UnaryOp(ast.Not(), node.test),
                node.orelse,
                node.body,
            )


def wrapped(lines: str) -> Callable[[ast.Module], None]:
    """Put lines behind each function, in which NAME stands for its name."""

    def change(tree: ast.Module) -> None:
        for index in range(len(tree.body) - 1, -1, -1):
            node = tree.body[index]
            if isinstance(node, ast.FunctionDef) and not node.decorator_list:
                tree.body[index + 1 : index + 1] = ast.parse(lines.replace("NAME", node.name)).body

    return change


WRAPS = """
import functools
def my_wrapper(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    return wrapper
NAME = my_wrapper(NAME)
"""
RESULTS = """
import functools, numpy, torch
def my_wrapper(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        def convert(value):
            if isinstance(value, (list, tuple)):
                return type(value)(convert(each) for each in value)
            if isinstance(value, int) and not isinstance(value, bool):
                return INT(value)
            if isinstance(value, float):
                return FLOAT(value)
            return value
        return convert(function(*args, **kwargs))
    return wrapper
NAME = my_wrapper(NAME)
"""
SEQUENCES = """
import functools
def my_wrapper(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        def convert(value):
            if isinstance(value, (list, tuple)):
                return MADE(convert(each) for each in value)
            return value
        return convert(function(*args, **kwargs))
    return wrapper
NAME = my_wrapper(NAME)
"""
NAMED = """
import functools
from collections import namedtuple
def my_wrapper(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        result = function(*args, **kwargs)
        if isinstance(result, tuple):
            return namedtuple("Answer", [f"part_{i}" for i in range(len(result))])(*result)
        return result
    return wrapper
NAME = my_wrapper(NAME)
"""


def result_as(integer: str, number: str):
    return wrapped(RESULTS.replace("INT", integer).replace("FLOAT", number))


REWRITES: dict[str, Callable[[ast.Module], None]] = {
    "rename locals": rename_locals,
    "x.relu()": relu_as("A.relu()"),
    "torch.relu": relu_as("torch.relu(A)"),
    "nn.functional.relu": relu_as("nn.functional.relu(A)"),
    "nn.ReLU()": relu_as("nn.ReLU()(A)"),
    "clamp": relu_as("A.clamp(min=0)"),
    "cat by position": cat_as("torch.cat(A, 1)"),
    "concat": cat_as("torch.concat(tuple(A), dim=1)"),
    "cat axis": cat_as("torch.cat(A, axis=1)"),
    "padding same": simple(padding_same),
    "kernel size as a pair, by position": simple(numbers_by_position),
    "type hints": type_hints,
    "no docstrings": without_docstrings,
    "named results": named_results,
    "plain assignments": plain_assignments,
    "commuted products": simple(commuted),
    "lists in place of generators": simple(lists_of_generators),
    "helper base class": helper_base,
    "negated conditions": negated_ifs,
    "functools.wraps": wrapped(WRAPS),
    "functools.partial": wrapped("import functools\nNAME = functools.partial(NAME)"),
    "lambda": wrapped("NAME = (lambda function: lambda *a, **k: function(*a, **k))(NAME)"),
    "lru_cache": wrapped("import functools\nNAME = functools.lru_cache(NAME)"),
    "NumPy scalars": result_as("numpy.int64", "numpy.float64"),
    "0-d tensors": result_as("torch.tensor", "(lambda v: torch.tensor(v, dtype=torch.float64))"),
    "tuples": wrapped(SEQUENCES.replace("MADE", "tuple")),
    "lists": wrapped(SEQUENCES.replace("MADE", "list")),
    "named tuples": wrapped(NAMED),
}
# Where a question says what to return, nothing else is right; a cache needs what can be hashed.
NOT_HERE = {
    ("checkpointed-layer", "padding same"),
    ("evaluate", "NumPy scalars"), ("evaluate", "0-d tensors"), ("mended-freeze", "lambda"),
    *((cell, "lru_cache") for cell in (
        "receptive-field", "branches", "run-in-state", "evaluate", "interval", "mended-train",
        "sources", "strength-and-contribution", "heatmap", "mended-rises", "books", "depths",
        "densenet-parameters", "shortcut", "merged", "pooled-kernel", "counts", "gradients",
        "mended-fold", "mended-read")),
    *(("mended-read", name) for name in ("lambda", "functools.partial")),
}  # fmt: skip


def rewrites_of(
    exercise: Exercise, limit: int | None = None, seed: int = 0
) -> list[tuple[str, str]]:
    """Return right answers in another style, as pairs of what is different and the source.

    ``limit`` is for the automatic ones.
    """
    kept = ast.unparse(ast.parse(exercise.source))
    found = []
    for name, change in REWRITES.items():
        if (exercise.cell, name) in NOT_HERE:
            continue
        tree = ast.parse(exercise.source)
        change(tree)
        text = ast.unparse(ast.fix_missing_locations(tree))
        if text != kept:
            found.append((name, text))
    if limit is not None and len(found) > limit:
        found = random.Random(f"{seed} {exercise.cell}").sample(found, limit)
    table = ROOT / f"tests/rewrites/{exercise.assignment}.toml"
    if table.exists():
        for answer in tomllib.loads(table.read_text())["answer"]:
            if answer["cell"] == exercise.cell:
                found.append((answer["why"], answer["code"]))
    return found


# --- Report --------------------------------------------------------------------------------------


def difference(old: str, new: str) -> str:
    old = ast.unparse(ast.parse(old))
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=1)
    return "\n".join(list(lines)[2:])


def survey(
    found: list[Exercise], limit: int | None = None, seed: int = 0, bar: bool = True
) -> tuple[Counter, list[tuple[Mutant, str]]]:
    """Try the mutants (a sample of each exercise with ``limit``); return counts and survivors."""
    counts: Counter = Counter()
    survivors: list[tuple[Mutant, str]] = []
    for exercise in found:
        every = mutants_of(exercise.cell, exercise.source)
        if limit is not None and len(every) > limit:
            every = random.Random(f"{seed} {exercise.cell}").sample(every, limit)
        label = f"{exercise.assignment} {exercise.cell}"
        for mutant in tqdm(every, desc=label, disable=not bar, leave=False):
            kind = exercise.behaves(mutant.source)
            counts["generated"] += 1
            counts[kind] += 1
            if kind == "alike":
                continue
            if exercise.refusal(mutant.source) is not None:
                counts[f"{kind} caught"] += 1
            else:
                survivors.append((mutant, difference(exercise.source, mutant.source)))
    return counts, survivors


def try_rewrites(
    found: list[Exercise], limit: int | None = None, seed: int = 0
) -> tuple[int, list[str]]:
    """Return how many rewrites there are, and what is said of those that are refused."""
    count, refused = 0, []
    for exercise in found:
        for why, source in rewrites_of(exercise, limit, seed):
            count += 1
            if (message := exercise.refusal(source)) is not None:
                refused.append(f"== {exercise.cell}: {why}\n{message}\n\n{source}\n")
    return count, refused


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("assignments", nargs="*", help="all by default, such as 01-plain")
    parser.add_argument("--list-survivors", action="store_true")
    parser.add_argument("--folder", type=Path, help="write survivors/ and refused/ here")
    parser.add_argument("--limit", type=int, help="at most so many mutants of a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rewrites-only", action="store_true")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    torch.set_num_threads(1)
    print(
        "assignment        | made  alike  raise at once | wrong  caught    %"
        "  | rewrites accepted | s"
    )
    for name in options.assignments or ASSIGNMENTS:
        start = time.perf_counter()
        found = exercises(name)
        counts, survivors = (Counter(), [])
        count, refused = try_rewrites(found)
        if not options.rewrites_only:
            counts, survivors = survey(found, options.limit, options.seed)
        wrong, caught = counts["other"], counts["other caught"]
        print(
            f"{name:17} | {counts['generated']:5} {counts['alike']:5} {counts['raises']:6}"
            f" ({counts['raises caught']} caught) | {wrong:5} {caught:6}"
            f" {100 * caught / max(wrong, 1):6.1f} | {count - len(refused):3} of {count:3}"
            f" | {time.perf_counter() - start:.0f}",
            flush=True,
        )
        text = "\n".join(f"== {m.cell}: {m.operator}\n{diff}\n" for m, diff in survivors)
        if options.list_survivors:
            print(text, *refused, sep="\n")
        if options.folder:
            for kind, content in (("survivors", text), ("refused", "\n".join(refused))):
                (options.folder / kind).mkdir(parents=True, exist_ok=True)
                (options.folder / kind / f"{name}.txt").write_text(content)


if __name__ == "__main__":
    main()
