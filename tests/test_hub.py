"""The class's JupyterHub, started on localhost: a lecturer and a student meet in the exchange.

The two accounts exist only in namespaces of this test. It needs Linux and root; elsewhere it is
skipped, and the run's last lines say so.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest
import requests
from helpers import ROOT, free_ports

from safe_grading import sandbox

NAME, COURSE_ID = "01-plain", "densenet-from-scratch"
ACCOUNTS = {"lecturer": 12_001, "student": 12_002}
PASSWORD = "a-password-for-tests"

NO_ROOT = "only root can make accounts" if sys.platform == "linux" and os.geteuid() else ""
WHY_NOT = sandbox.unavailable() or NO_ROOT
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"no JupyterHub test: {WHY_NOT}")

OVERRIDES = """
load_subconfig({config!r})
c.JupyterHub.authenticator_class = "dummy"
c.DummyAuthenticator.password = {password!r}
c.JupyterHub.hub_port = {hub}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api}"
c.JupyterHub.db_url = "sqlite://"
c.JupyterHub.cookie_secret_file = {secret!r}
c.JupyterHub.pid_file = {pid!r}
c.Spawner.start_timeout = c.Spawner.http_timeout = {patience}
"""
PATIENCE = 900  # seconds; nothing here takes a tenth of it on an idle machine of two cores
STARTING = (424, 502, 503, 504)  # what a server answers, or the proxy before it, while it starts


def reachable_python(place: Path) -> list[str]:
    """Shell lines that let every account reach this Python, wherever it is installed.

    Where a folder above it is closed to others (root's home), an empty one stands in for that.
    """
    folders = sorted({path.resolve() for path in sandbox.python_folders()})
    closed: dict[Path, list[Path]] = {}
    for folder in folders:
        above = next((p for p in reversed(folder.parents) if not p.stat().st_mode & 0o001), None)
        if above is not None and not any(folder.is_relative_to(f) for f in closed.get(above, [])):
            closed.setdefault(above, []).append(folder)
    lines = []
    for number, (above, inside) in enumerate(closed.items()):
        keep = place / f"keep{number}"
        for index, folder in enumerate(inside):
            kept = shlex.quote(f"{keep}/{index}")
            lines += [f"mkdir -p {kept}", f"mount --bind {shlex.quote(str(folder))} {kept}"]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(above))}")
        for index, folder in enumerate(inside):
            target = shlex.quote(str(folder))
            lines += [f"mkdir -p {target}", f"mount --bind {keep}/{index} {target}"]
    return lines


def when_ready(what: str, ask, starting=STARTING, alive=lambda: True):
    """Ask again until the answer is not that of a server which is still starting.

    ``ask`` sends a request that may be sent twice. Whatever else is answered is returned.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            reply = ask()
            if reply.status_code not in starting:
                return reply
            last = f"{reply.status_code}: {reply.text[:300]}"
        except requests.ConnectionError as error:
            last = str(error)
        assert alive(), f"{what} ended: {last}"
        assert time.monotonic() < deadline, f"{what} is not ready after {PATIENCE} s: {last}"
        time.sleep(0.25)


class Account:
    """What one person does in the browser, by the same addresses."""

    def __init__(self, address: str, name: str):
        self.address, self.name = address, name
        browser = requests.Session()
        url = f"{address}/hub/login"
        assert when_ready("the login", lambda: browser.get(url, timeout=PATIENCE)).ok
        form = {"username": name, "password": PASSWORD, "_xsrf": browser.cookies["_xsrf"]}
        assert browser.post(f"{url}?next=/hub/home", data=form, timeout=PATIENCE).ok
        login = {"auth": {"username": name, "password": PASSWORD}}
        url = f"{address}/hub/api/users/{name}/tokens"
        reply = when_ready("the hub", lambda: requests.post(url, json=login, timeout=PATIENCE))
        assert reply.status_code in (200, 201), reply.text
        self.headers = {"Authorization": f"token {reply.json()['token']}"}

    def start_server(self, *pages: str) -> None:
        """Start the person's server if it does not run, and wait until it answers for itself.

        The hub calls a server ready when its port is open, before its extensions answer; each of
        ``pages`` is asked for until it is there.
        """
        url = f"{self.address}/hub/api/users/{self.name}"
        reply = requests.post(f"{url}/server", headers=self.headers, timeout=PATIENCE)
        running = reply.status_code == 400 and "already running" in reply.text
        assert running or reply.status_code in (201, 202), reply.text
        deadline = time.monotonic() + PATIENCE
        while True:
            user = requests.get(url, headers=self.headers, timeout=PATIENCE).json()
            if user["servers"].get("", {}).get("ready"):
                break
            assert time.monotonic() < deadline, f"no server for {self.name}: {user}"
            time.sleep(0.25)
        for page in ("api/status", *pages):
            self.get(page)

    def get(self, path: str, **parameters: str):
        url = f"{self.address}/user/{self.name}/{path}"
        options = {"params": parameters, "headers": self.headers, "timeout": PATIENCE}
        reply = when_ready(f"{self.name}'s {path}", lambda: requests.get(url, **options))
        assert reply.ok, reply.text
        return reply.json()

    def post(self, path: str, **data: str):
        reply = requests.post(
            f"{self.address}/user/{self.name}/{path}",
            data=data,
            headers=self.headers,
            timeout=PATIENCE,
        )
        assert reply.ok, f"{reply.status_code}: {reply.text}"
        answer = reply.json()
        assert answer.get("success", True), "\n".join(map(str, answer.values()))
        return answer


@pytest.fixture(scope="module")
def place():
    """A folder that every account can reach, with their homes in it."""
    place = Path(tempfile.mkdtemp(prefix="hub"))
    place.chmod(0o755)
    for name, user in ACCOUNTS.items():
        home = place / "home" / name
        home.mkdir(parents=True)
        home.chmod(0o700)
        os.chown(home, user, user)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def hub(place) -> str:
    """The address of a JupyterHub that runs with the configuration in deploy/."""
    shutil.copytree(ROOT / "deploy", place / "deploy")
    course = place / "home/lecturer/course"
    ignore = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
    shutil.copytree(ROOT / "tools", course / "tools", ignore=ignore)
    shutil.copytree(ROOT / f"solutions/{NAME}", course / f"solutions/{NAME}", ignore=ignore)
    shutil.copy(ROOT / "nbgrader_config.py", course)
    for path in [course, *course.rglob("*")]:
        os.chown(path, ACCOUNTS["lecturer"], ACCOUNTS["lecturer"])
    exchange = place / "exchange"
    exchange.mkdir()
    exchange.chmod(0o1777)

    public, hub_port, api = free_ports(3)
    address = f"http://127.0.0.1:{public}"
    (place / "hub_config.py").write_text(
        OVERRIDES.format(
            config=str(place / "deploy/jupyterhub_config.py"),
            password=PASSWORD,
            hub=hub_port,
            api=api,
            secret=str(place / "secret"),
            pid=str(place / "proxy.pid"),
            patience=PATIENCE,
        )
    )
    lines = ["set -eu", "mount --make-rprivate /", *reachable_python(place)]
    for file, entry in (
        ("passwd", "{name}:x:{user}:{user}::{home}:/bin/sh"),
        ("group", "{name}:x:{user}:"),
    ):
        text = Path("/etc", file).read_text().rstrip("\n") + "\n"
        for name, user in ACCOUNTS.items():
            text += entry.format(name=name, user=user, home=place / "home" / name) + "\n"
        (place / file).write_text(text)
        lines.append(f"mount --bind {place}/{file} /etc/{file}")
    jupyterhub = Path(sys.executable).with_name("jupyterhub")
    lines.append(f"exec {jupyterhub} -f {place}/hub_config.py")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")},
        "BIND_URL": address,
        "EXCHANGE": str(exchange),
        "LECTURERS": "lecturer",
    }
    log = (place / "hub.log").open("w")
    namespaces = "unshare --mount --pid --fork --kill-child --mount-proc".split()
    process = subprocess.Popen(
        [*namespaces, "sh", "-c", "\n".join(lines)],
        cwd=place,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        reply = when_ready(
            "the hub",
            lambda: requests.get(f"{address}/hub/api/", timeout=PATIENCE),
            starting=(*STARTING, 404),  # the proxy runs, and does not know the hub yet
            alive=lambda: process.poll() is None,
        )
        assert reply.ok, (place / "hub.log").read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_from_release_to_feedback_through_the_exchange(hub, place):
    lecturer, student = Account(hub, "lecturer"), Account(hub, "student")
    lecturer.start_server("formgrader/api/assignments")
    student.start_server("assignments?course_id=" + COURSE_ID)
    there = {"course_id": COURSE_ID, "assignment_id": NAME}

    lecturer.post(f"formgrader/api/assignment/{NAME}/assign")
    lecturer.post(f"formgrader/api/assignment/{NAME}/release")
    offered = student.get("assignments", course_id=COURSE_ID)["value"]
    assert [(one["assignment_id"], one["status"]) for one in offered] == [(NAME, "released")]

    student.post("assignments/fetch", **there)
    mine = place / f"home/student/{NAME}/{NAME}.ipynb"
    assert mine.read_bytes() == (ROOT / f"exercises/{NAME}/{NAME}.ipynb").read_bytes()
    notebook = nbformat.read(mine, as_version=4)
    solved = nbformat.read(ROOT / f"solutions/{NAME}/{NAME}.ipynb", as_version=4)
    for cell, answer in zip(notebook.cells, solved.cells, strict=True):
        if answer.metadata.get("nbgrader", {}).get("solution"):
            lines = answer.source.splitlines()
            cell.source = "\n".join(line for line in lines if "SOLUTION" not in line)
    # A proxy that is left alone gives up on a request after 20 s.
    notebook.cells.append(nbformat.v4.new_code_cell("import time\ntime.sleep(22)"))
    nbformat.write(notebook, mine)
    student.post("assignments/submit", **there)

    # Handed in, it is out of reach of everyone but the lecturer.
    inbound = place / f"exchange/{COURSE_ID}/inbound"
    assert inbound.stat().st_uid == ACCOUNTS["lecturer"]
    assert not inbound.stat().st_mode & 0o004
    assert not (place / "home/lecturer").stat().st_mode & 0o007

    lecturer.post(f"formgrader/api/assignment/{NAME}/collect")
    lecturer.post(f"formgrader/api/submission/{NAME}/student/autograde")
    [submission] = lecturer.get(f"formgrader/api/submissions/{NAME}")
    assert (submission["student"], submission["code_score"]) == ("student", 8)
    assert submission["needs_manual_grade"]

    lecturer.post(f"formgrader/api/assignment/{NAME}/generate_feedback")
    lecturer.post(f"formgrader/api/assignment/{NAME}/release_feedback")
    student.post("assignments/fetch_feedback", **there)
    pages = list((place / f"home/student/{NAME}/feedback").rglob("*.html"))
    assert len(pages) == 1 and "Score: 8.0 / 10.0" in pages[0].read_text()


def test_a_student_has_no_course_to_grade(hub, place):
    lecturer, student = Account(hub, "lecturer"), Account(hub, "student")
    lecturer.start_server("formgrader/api/assignments")
    url = f"{hub}/user/lecturer/formgrader/api/assignments"
    reply = requests.get(url, headers=student.headers, timeout=PATIENCE)
    assert reply.status_code in (403, 404), reply.text
    assert NAME not in reply.text
