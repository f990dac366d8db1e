"""A kernel for one submission: it runs cells within limits, and is replaced when it dies."""

import functools
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from jupyter_client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from nbformat import NotebookNode
from nbformat.v4 import new_output, output_from_msg

from safe_grading import sandbox

STARTUP = 120  # seconds until a new kernel must answer
GRACE = 5  # seconds that code has to end after an interrupt
OUTPUTS = ("stream", "display_data", "execute_result", "error")


class KernelDied(Exception):
    """The kernel is gone; the message says why, as far as is known."""


@dataclass
class Result:
    """What running one piece of code gave."""

    outputs: list[NotebookNode] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)
    dropped: int = 0  # characters of output beyond the limit
    late: bool = False  # it was interrupted

    @property
    def failed(self) -> bool:
        """Say whether an error was shown or reported."""
        shown = any(output.output_type == "error" for output in self.outputs)
        return shown or self.reply.get("status") != "ok"


def _is_mine(process: psutil.Process) -> bool:
    return bool(process.info["uids"]) and process.info["uids"].real == os.getuid()


def error_output(name: str, text: str) -> NotebookNode:
    """Return the output of a cell that failed, with one line that says why."""
    return new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])


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

    def _start(self, files: Path, isolated: bool) -> None:
        shared, root = self.folder / "shared", self.folder / "root"
        shared.mkdir()
        root.mkdir()
        connection = shared / "connection.json"
        # Sockets in a folder, not on the network: the sandbox has no network.
        transport = "tcp" if os.name == "nt" else "ipc"
        ip = str(shared / "s") if transport == "ipc" else "127.0.0.1"
        write_connection_file(str(connection), ip=ip, transport=transport)
        command = [sys.executable, "-P", "-m", "ipykernel_launcher", f"--f={connection}"]
        command += ["--HistoryManager.enabled=False", "--InteractiveShell.xmode=Plain"]
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/tmp",
            "USER": "student",  # whom older PyTorch asks for: the user has no name
            "LANG": "C.UTF-8",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYTHONDONTWRITEBYTECODE": "1",
            "NBGRADER_EXECUTION": "autograde",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        }
        options: dict[str, Any] = {"cwd": "/"}
        if isolated:
            user = sandbox.unprivileged_user()
            os.chmod(self.folder, 0o711)
            if user is not None:
                os.chown(shared, user, user)
                os.chown(connection, user, user)
            command = sandbox.in_namespaces(command, self.limits, shared, files, root, user)
        else:
            work = self.folder / "work"
            shutil.copytree(files, work)
            # The limit of processes counts all that the user has, so leave those that run now.
            mine = [p for p in psutil.process_iter(["uids", "num_threads"]) if _is_mine(p)]
            processes = self.limits.processes + sum(p.info["num_threads"] or 1 for p in mine)
            options = {"cwd": work, "preexec_fn": functools.partial(self._limit, processes)}
            environment["HOME"] = str(self.folder)
            environment |= {k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )
        self.client = BlockingKernelClient(connection_file=str(connection))
        self.client.load_connection_file()
        self.client.start_channels(stdin=False, hb=False)
        threading.Thread(target=self._watch, daemon=True).start()
        self._wait_until_ready()

    def _limit(self, processes: int) -> None:
        import resource  # not on Windows, which must still be able to read nbgrader_config.py

        for name, value in (
            (resource.RLIMIT_DATA, self.limits.memory),
            (resource.RLIMIT_FSIZE, self.limits.disk),
            (resource.RLIMIT_CPU, self.limits.cpu),
            (resource.RLIMIT_NPROC, processes),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(name, (value, value))

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
                try:
                    memory += process.memory_info().rss
                except psutil.Error:
                    pass
            if memory > self.limits.memory:
                self.kill(f"it used more than {self.limits.memory >> 20} MiB of memory")
            elif len(family) > self.limits.processes:
                self.kill(f"it had more than {self.limits.processes} processes")
            time.sleep(0.5)

    def kill(self, why: str) -> None:
        """End every process of the kernel at once."""
        self.killed = self.killed or why
        family = self._family()
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # it has ended
        for process in family:  # those that left the group; in a sandbox they are gone already
            try:
                process.kill()
            except psutil.Error:
                pass

    def stop(self) -> None:
        """End the kernel and remove what it wrote."""
        if hasattr(self, "process"):
            self.kill("it is no longer needed")
            self.process.wait()
        if hasattr(self, "client"):
            self.client.stop_channels()
        shutil.rmtree(self.folder, ignore_errors=True)

    def interrupt(self) -> None:
        """Send the running code a KeyboardInterrupt."""
        try:
            os.killpg(self.process.pid, signal.SIGINT)
        except (ProcessLookupError, PermissionError):
            pass

    def _why(self) -> str:
        """Say why the kernel is gone."""
        code = self.process.wait()
        if self.killed:
            return self.killed
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return "it was killed, probably for its use of memory or processor time"
        return f"it ended itself, with exit status {code}"

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + STARTUP
        while time.monotonic() < deadline:
            self.client.kernel_info()
            try:
                while True:
                    reply = self.client.get_shell_msg(timeout=0.3)
                    if reply["msg_type"] == "kernel_info_reply":
                        return
            except queue.Empty:
                if self.process.poll() is not None:
                    raise RuntimeError(f"no kernel starts here: {self._why()}") from None
        raise RuntimeError(f"no kernel starts here: it did not answer within {STARTUP} s")

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
        message = self.client.execute(
            code,
            silent=silent,
            store_history=counted and not silent,
            user_expressions=expressions or {},
            allow_stdin=False,
            stop_on_error=False,
        )
        result, room = Result(), self.characters
        deadline = time.monotonic() + timeout
        idle = False
        while not (idle and result.reply):
            if time.monotonic() > deadline:
                if result.late:
                    self.kill(f"it did not stop within {timeout:g} s, nor when interrupted")
                    raise KernelDied(self._why())
                result.late = True
                deadline = time.monotonic() + GRACE
                self.interrupt()
            alive = self.process.poll() is None
            for channel in (self.client.iopub_channel, self.client.shell_channel):
                # Take what has arrived, but look at the clock between: it may never stop coming.
                for _ in range(100):
                    try:
                        # The client waits for outputs only: a reply comes after them.
                        wait = 0.05 if channel is self.client.iopub_channel and not idle else 0
                        if idle and channel is self.client.shell_channel:
                            wait = 0.05
                        received = channel.get_msg(timeout=wait)
                    except queue.Empty:
                        break
                    if received["parent_header"].get("msg_id") != message:
                        continue
                    kind, content = received["msg_type"], received["content"]
                    if kind == "execute_reply":
                        result.reply = content
                        break
                    if kind == "status" and content["execution_state"] == "idle":
                        idle = True
                        break
                    if kind == "clear_output":
                        result.outputs.clear()
                    elif kind in OUTPUTS:
                        size = len(str(content))
                        if kind == "error" or size <= room:
                            room -= size
                            _append(result.outputs, output_from_msg(received))
                        else:
                            if kind == "stream" and room > 0:
                                content["text"] = content["text"][:room]
                                _append(result.outputs, output_from_msg(received))
                            result.dropped += size - max(room, 0)
                            room = 0
            if not alive:
                raise KernelDied(self._why())
        return result


def _append(outputs: list[NotebookNode], output: NotebookNode) -> None:
    """Add an output; join it to the one before if both are text of the same stream."""
    last = outputs[-1] if outputs else None
    if output.output_type == "stream" and last and last.get("name") == output.name:
        last.text += output.text
    elif output.output_type == "error":
        limited = [line[:2000] for line in output.traceback]
        output.traceback = limited if len(limited) < 60 else [*limited[:30], "…", *limited[-29:]]
        output.evalue = output.evalue[:2000]
        if sum(one.output_type == "error" for one in outputs) < 5:
            outputs.append(output)
    else:
        outputs.append(output)
