"""A JupyterHub for a class on one Linux server, with nbgrader's exchange.

    sudo mkdir -p -m 1777 /srv/nbgrader/exchange
    sudo .venv/bin/jupyterhub -f deploy/jupyterhub_config.py

Everyone logs in with an account of the server and works in its home folder as its own user, so file
permissions keep students out of each other's work. LECTURERS (names, separated by commas) also get
the Formgrader, for their own copy of the course, the folder COURSE in their home.
README.md says more; everything can be set from the environment or changed here.
"""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821  JupyterHub provides it

HERE = Path(__file__).resolve().parent
EXCHANGE = os.environ.get("EXCHANGE", "/srv/nbgrader/exchange")
LECTURERS = set(os.environ.get("LECTURERS", "lecturer").split(","))
COURSE = os.environ.get("COURSE", "course")

# Put a web server that speaks HTTPS before it; until then only this machine reaches it.
c.JupyterHub.bind_url = os.environ.get("BIND_URL", "http://127.0.0.1:8000")
# Grading a submission in the Formgrader is one request; the proxy would give up on it after 20 s.
PATIENCE = str(3600 * 1000)  # milliseconds
PROXY = str(Path(sys.executable).with_name("configurable-http-proxy"))
c.ConfigurableHTTPProxy.command = [PROXY, "--proxy-timeout", PATIENCE]

c.JupyterHub.authenticator_class = "pam"
c.Authenticator.allow_all = True  # whoever has an account of this server
c.Authenticator.admin_users = LECTURERS

c.JupyterHub.spawner_class = "jupyterhub.spawner.LocalProcessSpawner"
c.Spawner.cmd = [str(Path(sys.executable).with_name("jupyterhub-singleuser"))]
c.Spawner.default_url = "/lab"
c.Spawner.environment = {
    "JUPYTER_CONFIG_PATH": str(HERE / "nbgrader"),
    "NBGRADER_EXCHANGE": EXCHANGE,
    "OMP_NUM_THREADS": "2",  # students share the cores
}


def before_spawn(spawner) -> None:
    """Tell nbgrader where a lecturer's copy of the course is."""
    if spawner.user.name in LECTURERS:
        course = Path(f"~{spawner.user.name}").expanduser() / COURSE
        spawner.environment["NBGRADER_COURSE"] = str(course)


c.Spawner.pre_spawn_hook = before_spawn
