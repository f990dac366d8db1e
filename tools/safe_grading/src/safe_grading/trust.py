"""Whether the score of a test counts: the guard is asked around it, and failures are tried out."""

import ast
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbgrader import utils

from safe_grading import guard, reading
from safe_grading.kernel import Kernel, Result, error_output
from safe_grading.report import COLOURS, HIDDEN, Step, first_line, grade_id

PATIENCE = 30  # seconds for an answer of the guard
PLACE = "<test>"  # the name under which a test with hidden parts is compiled
INSTALL = """\
import builtins as _b
_g = {{'__builtins__': dict(vars(_b)), '__name__': '_'}}
exec(compile({source!r}, '<guard>', 'exec'), _g)
_g['install']({secret!r}, {place!r}, {imports!r})
del _g, _b"""


def imports_of_locked(cells: Iterable[NotebookNode]) -> str:
    """Return the import statements of the locked cells, which the guard runs first."""
    locked = [cell for cell in cells if cell.cell_type == "code" and utils.is_locked(cell)]
    statements = [node for cell in locked for node in reading.imports(cell.source)]
    return "\n".join(map(ast.unparse, statements))


@dataclass
class Replaced:
    """What the guard says: what was replaced, and which threads still run."""

    names: list[str]
    threads: list[str]


class GuardedKernel(Kernel):
    """A kernel whose guard has remembered, before the submission runs, what tests stand on."""

    def guard(self, imports: str, timeout: float) -> None:
        """Start guarding what the imports of the tests bring."""
        self._place, self._secret = f"_{secrets.token_hex(8)}", secrets.token_hex(8)
        source = Path(guard.__file__).read_text()
        code = INSTALL.format(
            source=source, secret=self._secret, place=self._place, imports=imports
        )
        result = self.run(code, timeout, silent=True)
        if result.failed:
            said = result.reply.get("evalue", "")
            raise RuntimeError(f"the imports of the tests do not run: {said}")

    def ask(self, what: str) -> Replaced | None:
        """Call the guard; return what it says, or nothing if it no longer answers."""
        expression = f"get_ipython().kernel.{self._place}.{what}"
        result = self.run("", PATIENCE, silent=True, expressions={"guard": expression})
        try:
            text = result.reply["user_expressions"]["guard"]["data"]["text/plain"]
            report = json.loads(ast.literal_eval(text))
            if report["secret"] != self._secret:
                return None
        except (KeyError, ValueError, SyntaxError, TypeError):
            return None
        return Replaced(
            names=[first_line(str(name)) for name in report["changed"]],
            threads=[first_line(str(name)) for name in report["threads"]],
        )

    def test(self) -> str:
        """Return code that runs the test which the guard has compiled."""
        return f"get_ipython().kernel.{self._place}.test()"

    def shows_failures(self) -> bool:
        """Return whether a failure put there on purpose is reported."""
        token = secrets.token_hex(8)
        result = self.run(f"raise AssertionError({token!r})", PATIENCE, counted=False)
        shown = [output.evalue for output in result.outputs if output.output_type == "error"]
        return result.reply.get("evalue") == token and shown == [token]


class Trust:
    """Asks the guard of a submission's kernel, and remembers which scores do not count."""

    def __init__(self, step: Step, distrusted: set[str]):
        self.step, self.distrusted = step, distrusted
        self.told: set[str] = set()  # what was said once is not said again

    def run(self, kernel: GuardedKernel, cell: NotebookNode, timeout: float) -> Result:
        """Run a locked cell between two looks of the guard."""
        hidden = utils.is_grade(cell) and HIDDEN in cell.source
        guarded = self._enter(kernel, cell)
        if hidden and guarded:
            # Only now: before, a name of the submission could have stood for the guard.
            self._ask(kernel, cell, f"prepare({cell.source!r}, {PLACE!r})")
        result = kernel.run(kernel.test() if hidden else cell.source, timeout)
        if hidden:
            _show_places(cell, result)
        self._leave(kernel, cell, result)
        if utils.is_grade(cell) and not result.failed and not kernel.shows_failures():
            self._distrust(cell, result, "a failure put there on purpose was not reported")
        return result

    def _enter(self, kernel: GuardedKernel, cell: NotebookNode) -> bool:
        replaced = self._ask(kernel, cell, "enter()")
        if replaced is None:
            return False
        names = [one for one in replaced.names if one not in self.told]
        self.told |= {one for one in names if one.startswith("the name")}  # not put back
        if names:
            self.step.tell(f"put back before {grade_id(cell)}: {', '.join(names)}")
        if replaced.threads:
            threads = ", ".join(replaced.threads[:5])
            self.step.tell(f"threads still run at {grade_id(cell)}: {threads}")
        return True

    def _leave(self, kernel: GuardedKernel, cell: NotebookNode, result: Result) -> None:
        test = utils.is_grade(cell)
        imported = reading.imported_names(cell.source)
        replaced = self._ask(kernel, cell, f"leave({imported}, trust={not test})")
        names = ["the guard"] if replaced is None else replaced.names
        if names and test:
            self._distrust(cell, result, f"while it ran, {', '.join(names)} was replaced")

    def _ask(self, kernel: GuardedKernel, cell: NotebookNode, what: str) -> Replaced | None:
        """Return what the guard says was replaced. No answer is a finding too."""
        replaced = kernel.ask(what)
        if replaced is None:
            if utils.is_grade(cell):
                self.distrusted.add(grade_id(cell))
            self.step.tell(
                f"the guard of the tests no longer answers at {grade_id(cell)}; it scores 0"
            )
        return replaced

    def _distrust(self, cell: NotebookNode, result: Result, why: str) -> None:
        self.distrusted.add(grade_id(cell))
        result.outputs.append(error_output("NotTrusted", f"not counted: {why}"))
        self.step.tell(f"the test {grade_id(cell)} scores 0: {why}")

    def settle(self, cell: NotebookNode) -> None:
        """Leave only outputs of a test from which nbgrader reads the right score.

        nbgrader takes the first value that a test shows for a partial score, so what an answer
        shows through ``sys.displayhook`` must not stay; and text on stderr for a failure, but a
        warning is none.
        """
        name = grade_id(cell)
        failed = any(output.output_type == "error" for output in cell.outputs)
        if name in self.distrusted and not failed:
            cell.outputs.append(error_output("NotTrusted", "not counted: the guard is gone"))
            failed = True
        values = [output for output in cell.outputs if output.output_type == "execute_result"]
        own = values[-1:] if not failed and reading.ends_with_a_value(cell.source) else []
        if len(values) > len(own):
            self.step.tell(f"ignored a value shown during {name}")
        others = [output for output in cell.outputs if output.output_type != "execute_result"]
        cell.outputs = others + own
        if printed := sum(map(_unasked_lines, cell.outputs)):
            self.step.log.info(
                f"{name} printed {printed} lines that are not its checks'; they decide nothing"
            )


def _unasked_lines(output: Any) -> int:
    """Make a text one of stdout; return how many lines of it are not those of a check."""
    if output.output_type != "stream":
        return 0
    output.name = "stdout"
    return sum(bool(line) and not line.startswith("✓") for line in output.text.splitlines())


def _show_places(cell: NotebookNode, result: Result) -> None:
    """Write into the errors of a test that had no source what IPython would have written."""
    lines, number = cell.source.split("\n"), result.reply.get("execution_count")

    def place(found: re.Match[str]) -> str:
        line = int(found[1])
        source = lines[line - 1].strip() if line <= len(lines) else ""
        return f"Cell In[{number}], line {line}{found[2]}\n    {source}"

    for output in result.outputs:
        if output.output_type == "error":
            told = []
            for text in output.traceback:
                plain = COLOURS.sub("", text)
                if re.search(r"<guard>:\d+ in test\b|\.test\(\)$", plain.strip()):
                    continue
                again = re.sub(r"File <test>:(\d+)(.*)", place, plain)
                told.append(text if again == plain else again)
            output.traceback = told
