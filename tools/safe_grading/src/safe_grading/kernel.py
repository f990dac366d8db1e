"""A kernel for one submission: it runs cells within limits, and is replaced when it dies.

Jupyter's KernelManager starts, interrupts and ends it. What stands here is what strangers make
necessary: the sandbox around it, a watch over what all of its processes use together, a limit of
output, and an end to code that heeds no interrupt.
"""

import contextlib
import functools
import os
import queue
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning import LocalProvisioner
from nbformat import NotebookNode
from nbformat.v4 import new_output, output_from_msg

from safe_grading import sandbox

STARTUP = 120  # seconds until a new kernel must answer
GRACE = 5  # seconds that code has to end after an interrupt
POLL = 0.05  # seconds to wait for a message before the clock is looked at
OUTPUTS = ("stream", "display_data", "execute_result", "error")
OPTIONS = ["--HistoryManager.enabled=False", "--InteractiveShell.xmode=Plain"]
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
    "HOME": "/tmp",
    "USER": "student",  # whom older PyTorch asks for: the user has no name
    "LANG": "C.UTF-8",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONSAFEPATH": "1",  # a file of the submission may be called json.py
    "NBGRADER_EXECUTION": "autograde",
}


class KernelDied(Exception):
    """The kernel is gone; the message says why, as far as is known."""


def error_output(name: str, text: str) -> NotebookNode:
    """Return the output of a cell that failed, with one line that says why."""
    return new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])


@dataclass
class Result:
    """What running one piece of code gave."""

    timeout: float  # seconds it had
    room: int  # characters of output that may still come
    outputs: list[NotebookNode] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0  # characters of output beyond the limit
    idle: bool = False  # no more outputs come
    late: bool = False  # it was interrupted

    @property
    def shows_error(self) -> bool:
        """Whether an error is among the outputs."""
        return any(output.output_type == "error" for output in self.outputs)

    @property
    def failed(self) -> bool:
        """Whether an error was shown or reported."""
        return self.shows_error or self.reply.get("status") != "ok"

    def take(self, message: dict[str, Any]) -> bool:
        """Take in a message from the kernel; return whether it is the last on its channel."""
        kind, content = message["msg_type"], message["content"]
        if kind == "execute_reply":
            self.reply = content
            return True
        if kind == "status" and content["execution_state"] == "idle":
            self.idle = True
            return True
        if kind == "clear_output":
            self.outputs.clear()
        elif kind in OUTPUTS:
            self._limit(message)
        return False

    def _limit(self, message: dict[str, Any]) -> None:
        """Add an output as far as there is room; errors always have some."""
        kind, content = message["msg_type"], message["content"]
        size = len(str(content))
        if kind == "error" or size <= self.room:
            self.room -= size
            self._add(output_from_msg(message))
            return
        room = max(self.room, 0)
        if kind == "stream" and room:
            content["text"] = content["text"][:room]
            self._add(output_from_msg(message))
        self.dropped += size - room
        self.room = 0

    def _add(self, output: NotebookNode) -> None:
        """Add an output; join it to the one before if both are text of the same stream."""
        last = self.outputs[-1] if self.outputs else None
        if output.output_type == "stream" and last and last.get("name") == output.name:
            last.text += output.text
            return
        if output.output_type == "error":
            lines = [line[:2000] for line in output.traceback]
            output.traceback = lines if len(lines) < 60 else [*lines[:30], "…", *lines[-29:]]
            output.evalue = output.evalue[:2000]
            if sum(one.output_type == "error" for one in self.outputs) >= 5:
                return
        self.outputs.append(output)


class Manager(KernelManager):
    """Jupyter's manager, with another command around that of the kernel."""

    wrap: Callable[[list[str]], list[str]] | None = None

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """Return the command that starts the kernel."""
        command = super().format_kernel_cmd(extra_arguments)
        return self.wrap(command) if self.wrap else command


class Kernel:
    """One IPython kernel in its sandbox, or under limits only where there is no sandbox."""

    def __init__(self, files: Path, limits: sandbox.Limits, isolated: bool, characters: int):
        self.limits, self.characters = limits, characters
        self.killed = ""  # why we killed it
        self.folder = Path(tempfile.mkdtemp(prefix="kernel"))
        try:
            self._start(files, isolated)
        except BaseException:
            self.stop()
            raise

    # --- Its life --------------------------------------------------------------------------------

    def _start(self, files: Path, isolated: bool) -> None:
        shared = self.folder / "shared"
        shared.mkdir()
        self.manager = Manager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),  # this Python, no other's
            connection_file=str(shared / "connection.json"),
            # Sockets in a folder, not on the network: the sandbox has no network.
            transport="tcp" if os.name == "nt" else "ipc",
            ip="127.0.0.1" if os.name == "nt" else str(shared / "s"),
        )
        self.manager.write_connection_file()
        self.manager.start_kernel(
            extra_arguments=OPTIONS,
            independent=True,  # in its namespaces it has no parent to look at
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **(self._in_sandbox(files, shared) if isolated else self._under_limits(files)),
        )
        provisioner = self.manager.provisioner
        assert isinstance(provisioner, LocalProvisioner) and provisioner.process is not None
        self.process = provisioner.process
        self.client = self.manager.client()
        self.client.start_channels(stdin=False, hb=False)
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self.client.wait_for_ready(STARTUP)
        except RuntimeError as error:
            why = error if self.process.poll() is None else self._why()
            raise RuntimeError(f"no kernel starts here: {why}") from None

    def _in_sandbox(self, files: Path, shared: Path) -> dict[str, Any]:
        """Prepare a start in the sandbox; return what Jupyter's manager must know."""
        root, user = self.folder / "root", sandbox.unprivileged_user()
        root.mkdir()
        self.folder.chmod(0o711)
        if user is not None:
            for path in (shared, *shared.iterdir()):
                os.chown(path, user, user)
        self.manager.wrap = functools.partial(
            sandbox.in_namespaces,
            limits=self.limits,
            shared=shared,
            files=files,
            root=root,
            user=user,
        )
        return {"cwd": "/", "env": self._environment()}

    def _under_limits(self, files: Path) -> dict[str, Any]:
        """Prepare a start without a sandbox; return what Jupyter's manager must know."""
        work = self.folder / "work"
        shutil.copytree(files, work)
        environment = self._environment() | {"HOME": str(self.folder)}
        environment |= {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
        return {"cwd": str(work), "env": environment, "preexec_fn": self.limits.setter()}

    @staticmethod
    def _environment() -> dict[str, str]:
        return ENVIRONMENT | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}

    def _family(self) -> list[psutil.Process]:
        try:
            kernel = psutil.Process(self.process.pid)
            return [kernel, *kernel.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _watch(self) -> None:
        """Kill the kernel when all of its processes together use too much."""
        while self.process.poll() is None:
            memory, family = 0, self._family()
            for process in family:
                with contextlib.suppress(psutil.Error):
                    memory += process.memory_info().rss
            if memory > self.limits.memory:
                self.kill(f"it used more than {self.limits.memory >> 20} MiB of memory")
            elif len(family) > self.limits.processes:
                self.kill(f"it had more than {self.limits.processes} processes")
            time.sleep(0.5)

    def kill(self, why: str) -> None:
        """End every process of the kernel at once."""
        self.killed = self.killed or why
        family = self._family()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has ended
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in family:  # those that left the group; in a sandbox they are gone already
            with contextlib.suppress(psutil.Error):
                process.kill()

    def stop(self) -> None:
        """End the kernel and remove what it wrote."""
        if hasattr(self, "client"):
            self.client.stop_channels()
        if hasattr(self, "process"):
            self.kill("it is no longer needed")
            self.manager.shutdown_kernel(now=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _why(self) -> str:
        """Return why the kernel is gone."""
        code = self.process.wait()
        if self.killed:
            return self.killed
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return "it was killed, probably for its use of memory or processor time"
        return f"it ended itself, with exit status {code}"

    # --- What it runs ----------------------------------------------------------------------------

    def run(
        self,
        code: str,
        timeout: float,
        *,
        silent: bool = False,
        counted: bool = True,
        expressions: dict[str, str] | None = None,
    ) -> Result:
        """Run code until it is done, for ``timeout`` seconds at most, and collect its outputs.

        Code that outlasts the time is interrupted; if that does not end it, the kernel is killed.
        What is not ``counted`` leaves the numbers of the cells as they are.
        Raises ``KernelDied`` whenever the kernel is gone.
        """
        request = self.client.execute(
            code,
            silent=silent,
            store_history=counted and not silent,
            user_expressions=expressions or {},
            allow_stdin=False,
            stop_on_error=False,
        )
        result = Result(timeout, self.characters)
        deadline = time.monotonic() + timeout
        while not (result.idle and result.reply):
            if time.monotonic() > deadline:
                if result.late:
                    self.kill(f"it did not stop within {timeout:g} s, nor when interrupted")
                    raise KernelDied(self._why())
                result.late = True
                deadline = time.monotonic() + GRACE
                self.manager.interrupt_kernel()
            alive = self.process.poll() is None
            # Outputs are waited for, and then the reply: it comes after them.
            outputs, reply = self.client.iopub_channel, self.client.shell_channel
            self._receive(outputs, request, result, wait=0 if result.idle else POLL)
            self._receive(reply, request, result, wait=POLL if result.idle else 0)
            if not alive:
                raise KernelDied(self._why())
        return result

    @staticmethod
    def _receive(channel: Any, request: str, result: Result, wait: float) -> None:
        """Take what has arrived, but not more at once: it may never stop coming."""
        for _ in range(100):
            try:
                message = channel.get_msg(timeout=wait)
            except queue.Empty:
                return
            if message["parent_header"].get("msg_id") == request and result.take(message):
                return
