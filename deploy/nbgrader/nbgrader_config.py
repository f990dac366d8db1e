"""nbgrader's settings for everyone on the class's JupyterHub (see ../jupyterhub_config.py)."""

import os
from pathlib import Path

c = get_config()  # noqa: F821  nbgrader provides it

if course := os.environ.get("NBGRADER_COURSE"):  # a lecturer
    load_subconfig(str(Path(course, "nbgrader_config.py")))  # noqa: F821
    c.CourseDirectory.root = course

c.CourseDirectory.course_id = "densenet-from-scratch"
c.Exchange.root = os.environ["NBGRADER_EXCHANGE"]
