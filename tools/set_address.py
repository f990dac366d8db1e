"""Say where the course lives, in every place that says it.

    uv run python tools/set_address.py https://example.org/me/densenet-from-scratch
    uv run python tools/set_address.py --none   # back to a placeholder: nothing is fetched from it
    uv run python tools/set_address.py          # write everything again from pyproject.toml

The address of the git repository stands in pyproject.toml, under ``[project.urls]``. From there
this writes the first code cell of every notebook, and what README.md says at its mark. A host that
ends with ``.invalid`` is a placeholder (RFC 2606 keeps that name free for ever), and the notebooks
then say how to bring the course along instead of fetching it.
"""

import argparse
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
PLACEHOLDER = "https://repository.invalid/densenet-from-scratch"
ADDRESS = re.compile(r'^(Repository = ")([^"]*)(".*)$', re.M)  # in pyproject.toml
MARK = "<!-- where the course lives, by tools/set_address.py -->\n"  # in README.md, twice
SCHEMES = ("https", "http", "ssh", "git", "file")

BRING_IT = """\
# Where the course is installed, this does nothing. Elsewhere it says how to bring it along.
import importlib.util

if importlib.util.find_spec("densenet_from_scratch") is None:
    print("The course is not installed here: upload or clone your copy of its folder, and run")
    print('%pip install "FOLDER[notebooks]"  with the path of that folder in place of FOLDER.')
"""
FETCH_IT = """\
# Where the course is installed, this does nothing. Elsewhere, as on Colab, it fetches the course.
import importlib.util
import os
import subprocess
import sys

if importlib.util.find_spec("densenet_from_scratch") is None:
    {assignment}
    print("Fetching the course, which may take some minutes.", flush=True)
    os.environ["GIT_TERMINAL_PROMPT"] = "0"  # nobody could answer
    course = f"densenet-from-scratch[notebooks] @ git+{{address}}"
    pip = [sys.executable, "-m", "pip", "install", course]
    if subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True).returncode:
        print(f"It could not be fetched from {{address}}. Are there a network, git and pip?")
        print('Or upload your copy of its folder and run  %pip install "FOLDER[notebooks]"')
    else:
        print("It is installed. Should the next cell not find it, restart the kernel.")
"""


def is_placeholder(address: str) -> bool:
    """Whether nothing can live at ``address``."""
    return (urlsplit(address).hostname or "").endswith(".invalid")


def install_cell(address: str) -> str:
    """Return the source of the first code cell of every notebook, as ruff would format it."""
    if is_placeholder(address):
        return BRING_IT.rstrip("\n")
    assignment = f'address = "{address}"'
    if len(assignment) > 96 and len(address) <= 90:  # one line is too long, and three help
        assignment = f'address = (\n        "{address}"\n    )'
    return FETCH_IT.format(assignment=assignment).rstrip("\n")


def readme_lines(address: str) -> str:
    """Return what README.md says about the address: nothing about a placeholder."""
    if is_placeholder(address):
        return ""
    lines = [f"The course lives at <{address}>, and `git clone {address}` gets you a copy.", ""]
    if urlsplit(address).hostname == "github.com":
        name = urlsplit(address).path.strip("/").removesuffix(".git")
        tests = f"https://github.com/{name}/actions/workflows/test.yml"
        colab = "https://colab.research.google.com"
        first = f"{colab}/github/{name}/blob/main/chapters/00_start_here.ipynb"
        lines[:0] = [
            f"[![Tests]({tests}/badge.svg)]({tests})",
            f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({first})",
            "",
        ]
    return "\n".join(lines) + "\n"


def with_install_cell(text: str, address: str) -> str:
    """Return a notebook's text with another first code cell; nothing else in it changes."""
    notebook = json.loads(text)
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    if 'find_spec("densenet_from_scratch") is None' not in "".join(first["source"]):
        raise ValueError("the first code cell is not the one that looks for the course")
    first["source"] = install_cell(address).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def address_of(root: Path) -> str:
    """Return the address in pyproject.toml."""
    [(_, address, _)] = ADDRESS.findall((root / "pyproject.toml").read_text(encoding="utf8"))
    return address


def check_address(address: str) -> str:
    """Return ``address`` if git can fetch from such a one and a cell can hold it."""
    parts = urlsplit(address)
    complete = parts.scheme in SCHEMES and (parts.netloc or parts.scheme == "file") and parts.path
    if not complete or re.search(r"[\s\"'\\{}<>#]", address):
        raise argparse.ArgumentTypeError(
            f"must be the address of a git repository such as {PLACEHOLDER}, but is {address!r}"
        )
    return address.rstrip("/")


def set_address(root: Path, address: str) -> list[Path]:
    """Write ``address`` everywhere; return the files that changed."""
    notebooks = [root.glob(f"{folder}/**/*.ipynb") for folder in ("chapters", "solutions")]
    notebooks.append(root.glob("exercises/*/*.ipynb"))
    paths = sorted(path for found in notebooks for path in found if ".ipynb_" not in str(path))
    new = {}
    for path in [root / "pyproject.toml", root / "README.md", *paths]:  # first all, then write
        text = path.read_text(encoding="utf8")
        try:
            if path.name == "pyproject.toml":
                changed, times = ADDRESS.subn(lambda m: m[1] + address + m[3], text)
                if times != 1:
                    raise ValueError('needs one line that begins with Repository = "')
            elif path.name == "README.md":
                before, _, after = text.split(MARK)
                changed = before + MARK + readme_lines(address) + MARK + after
            else:
                changed = with_install_cell(text, address)
        except ValueError as error:
            raise SystemExit(f"{path.relative_to(root)}: {error}. Nothing was changed.") from None
        if changed != text:
            new[path] = changed
    for path, text in new.items():
        path.write_text(text, encoding="utf8", newline="\n")
    return list(new)


def main() -> None:
    """Set the address that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("address", nargs="?", type=check_address, help="of the git repository")
    where.add_argument("--none", action="store_true", help="go back to the placeholder")
    given = parser.parse_args()
    address = PLACEHOLDER if given.none else given.address or address_of(ROOT)
    changed = set_address(ROOT, address)
    print(f"{address}: {len(changed)} files changed")


if __name__ == "__main__":
    main()
