"""Pin the course to the versions installed here, in constraints.txt and pyproject.toml.

To move to newer versions: empty the list ``constraint-dependencies`` in pyproject.toml, then

    uv sync --upgrade && uv run --no-sync python tools/pin_versions.py && uv run pytest

Only names and versions are written, no addresses. What PyTorch brings for one kind of machine (CUDA
libraries, Triton) is left to PyTorch, which asks for exact versions itself.
"""

import importlib.metadata
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_TO_OTHERS = re.compile(r"(nvidia|cuda)-|triton$|pip$|setuptools$|uv$|densenet-from-scratch")


def installed() -> list[str]:
    """Return ``name==version`` of every package in this environment that the course pins."""
    pins = set()
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if not LEFT_TO_OTHERS.match(name):
            pins.add(f"{name}=={distribution.version.split('+')[0]}")
    return sorted(pins)


def main() -> None:
    """Write the pins where pip, conda and uv look for them."""
    pins = installed()
    (ROOT / "constraints.txt").write_text("\n".join(pins) + "\n")
    project = ROOT / "pyproject.toml"
    block = "constraint-dependencies = [\n" + "".join(f'    "{pin}",\n' for pin in pins) + "]"
    text = re.sub(r"constraint-dependencies = \[.*?\]", block, project.read_text(), flags=re.S)
    project.write_text(text)
    print(f"pinned {len(pins)} packages")


if __name__ == "__main__":
    main()
