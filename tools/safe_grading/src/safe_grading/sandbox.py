"""Where the kernel of a submission runs.

On Linux, in namespaces of its own (``unshare``, ``mount`` and ``setpriv`` of util-linux): it sees
Python, the packages and the submission's own files, but neither the course, nor the gradebook, nor
another student, and it has no network. Started by root it is another user as well. Elsewhere it
runs as the user who grades, under resource limits only; ``unavailable`` says why.

Why not bubblewrap: it asks for the same namespaces, and would do no more than the mounting. The
user it sets (``--uid``) is still root outside, whose processes Linux does not count; it limits the
size of each file system but its own root; and limits, users and the copy of files would remain.
"""

import functools
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

FOLDER = "/submission"  # the kernel's working directory in the sandbox

# Runs as process 1 of the new namespaces, still with the right to mount. $1 is a new directory, $2
# a directory with the submission's files.
_SCRIPT = r"""
set -eu
root=$1; files=$2; shift 2
mount --make-rprivate /
mount -t tmpfs -o size={disk},mode=755 tmpfs "$root"
mkdir -m 755 "$root/proc" "$root/dev" "$root/old"
mkdir -m 1777 "$root/tmp" "$root/dev/shm" "$root{folder}"
{mounts}
mount -t proc proc "$root/proc"
for device in null zero random urandom full; do
    touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
cp -r "$files/." "$root{folder}"
chmod -R a+rwX "$root{folder}"
cd "$root"
pivot_root . old
cd {folder}
umount -l /old
exec "$@"
"""


@dataclass(frozen=True)
class Limits:
    """What one submission may use; in bytes, seconds and numbers of processes and threads.

    Linux counts threads as processes. So its own limit is that of both together, and whoever
    watches the kernel must count the processes.
    """

    memory: int = 4 * 2**30
    disk: int = 256 * 2**20
    cpu: int = 900
    processes: int = 128
    threads: int = 1024  # more than any library starts by itself

    @property
    def tasks(self) -> int:
        """How many processes and threads there may be together."""
        return self.processes + self.threads

    def prlimit(self) -> list[str]:
        """Return the command that starts another one under these limits."""
        limits = {
            "data": self.memory,  # writable memory; the address space says little under PyTorch
            "fsize": self.disk,
            "cpu": self.cpu,
            "nofile": 1024,
            "core": 0,
            "nproc": self.tasks,
        }
        return ["prlimit", *(f"--{name}={value}" for name, value in limits.items()), "--"]

    def setter(self) -> Callable[[], None]:
        """Return a function that puts the process that calls it under these limits."""
        import resource  # not on Windows, which must still be able to import this

        # The limit of processes counts all that the user has, so leave those that run now.
        mine = [p for p in psutil.process_iter(["uids", "num_threads"]) if _is_mine(p)]
        limits = {
            resource.RLIMIT_DATA: self.memory,
            resource.RLIMIT_FSIZE: self.disk,
            resource.RLIMIT_CPU: self.cpu,
            resource.RLIMIT_NPROC: self.tasks + sum(p.info["num_threads"] or 1 for p in mine),
            resource.RLIMIT_CORE: 0,
        }

        def set_limits() -> None:
            for name, value in limits.items():
                resource.setrlimit(name, (value, value))

        return set_limits


def _is_mine(process: psutil.Process) -> bool:
    return bool(process.info["uids"]) and process.info["uids"].real == os.getuid()


@functools.cache
def packages() -> dict[str, list[str]]:
    """Return where the kernel of a submission finds the packages of this course, if it does.

    The kernel is asked, as it were: this process may find others, in the current folder or through
    PYTHONPATH, and the kernel would look for its own in vain.
    """
    names = ("densenet_from_scratch", "safe_grading")  # installed from folders of their own
    code = (
        "import importlib.util, json\n"
        f"found = [(name, importlib.util.find_spec(name)) for name in {names}]\n"
        "found = {n: list(s.submodule_search_locations or []) for n, s in found if s}\n"
        "print(json.dumps(found))"
    )
    environment = {"HOME": "/tmp", "PYTHONSAFEPATH": "1", "LANG": "C.UTF-8"}
    kept = ("LD_LIBRARY_PATH", "SYSTEMROOT")
    environment |= {name: os.environ[name] for name in kept if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=tempfile.gettempdir(),
    )
    return dict(json.loads(done.stdout)) if done.returncode == 0 else {}


def python_folders() -> list[Path]:
    """Return every folder that the running Python needs, links resolved and not."""
    folders = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_prefix).resolve()]
    program = Path(sys.executable)
    while program.is_symlink():  # .venv/bin/python may point at a link that points at a Python
        program = Path(os.path.normpath(program.parent / os.readlink(program)))
        folders.append(program.parent.parent)
    folders += [Path(path) for path in sysconfig.get_paths().values()]
    for places in packages().values():
        folders += map(Path, places)
    return folders


def _visible() -> list[Path]:
    """Return what the sandbox shows, read-only, without a folder inside another."""
    system = ["/usr", "/sys/devices/system/cpu", "/nix/store"]
    system += ["/etc/" + name for name in ("alternatives", "fonts", "group", "ld.so.cache")]
    system += ["/etc/" + name for name in ("localtime", "nsswitch.conf", "passwd", "timezone")]
    system += [f"/{name}" for name in ("bin", "lib", "lib32", "lib64", "sbin")]
    paths = sorted({path for path in [*map(Path, system), *python_folders()] if path.exists()})
    outermost: list[Path] = []
    for path in paths:
        if str(path) != "/" and not any(path.is_relative_to(other) for other in outermost):
            outermost.append(path)
    return outermost


def _mounts() -> str:
    lines = []
    for path in _visible():
        source, target = shlex.quote(str(path)), f'"$root"{shlex.quote(str(path))}'
        lines.append(f'mkdir -p "$root"{shlex.quote(str(path.parent))}')
        if path.is_symlink() and len(path.parts) == 2:  # /bin -> usr/bin
            lines.append(f"ln -s {shlex.quote(os.readlink(path))} {target}")
            continue
        lines.append(f"mkdir -p {target}" if path.is_dir() else f"touch {target}")
        lines.append(f"mount --bind {source} {target}")
        lines.append(f"mount -o remount,bind,ro,nosuid {target}")
    return "\n".join(lines)


def in_namespaces(
    command: list[str], limits: Limits, shared: Path, files: Path, root: Path, user: int | None
) -> list[str]:
    """Return the command that runs ``command`` in a sandbox.

    ``shared`` is a folder that both sides can write, for the sockets; ``files`` are copied to the
    working directory; ``root`` is an empty folder; ``user`` is who the command becomes, which only
    root can choose.
    """
    quoted = shlex.quote(str(shared))
    mounts = f'{_mounts()}\nmkdir -p "$root"{quoted}\nmount --bind {quoted} "$root"{quoted}'
    script = _SCRIPT.format(mounts=mounts, disk=limits.disk, folder=FOLDER)
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts"]
    drop = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]
    if user is None:
        unshare.append("--map-root-user")
    else:
        drop += [f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    inside = [*drop, *limits.prlimit(), *command]
    return [*unshare, "sh", "-c", script, "sandbox", str(root), str(files), *inside]


def unprivileged_user() -> int | None:
    """Return the user that a kernel started by root becomes: nobody's, and its own."""
    return 40_000 + os.getpid() % 20_000 if os.geteuid() == 0 else None


@functools.cache
def unavailable() -> str:
    """Return why there is no sandbox here, in one line; nothing if there is one."""
    if sys.platform != "linux":
        return f"a sandbox needs Linux, and this is {sys.platform}"
    for tool in ("unshare", "mount", "pivot_root", "setpriv", "prlimit"):
        if shutil.which(tool) is None:
            return f"a sandbox needs the command {tool} (Debian: apt install util-linux mount)"
    with tempfile.TemporaryDirectory(prefix="grade") as folder:
        shared, files, root = (Path(folder, name) for name in ("shared", "files", "root"))
        for path in (shared, files, root):
            path.mkdir()
        os.chmod(folder, 0o711)
        command = in_namespaces(
            [sys.executable, "-c", ""], Limits(), shared, files, root, unprivileged_user()
        )
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"this machine does not allow one ({last})"
    return ""
