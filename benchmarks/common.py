"""What benchmarks share: what they ran on, and how they write down what they found."""

import datetime
import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """Return the processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.machine())


def about(packages: list[str], devices: list[str]) -> dict[str, Any]:
    """Return when, how and on what a benchmark runs, and with which versions of these packages."""
    command = ["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return {
        "command": shlex.join(command),
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if "cuda" in devices else None,
        "python": platform.python_version(),
        "versions": {"torch": torch.__version__} | {name: version(name) for name in packages},
    }


def origin(run: dict[str, Any]) -> str:
    """Return in a sentence what ``about`` found."""
    machine = f"{run['processor']}, {run['threads']} of {run['cores']} cores"
    machine += f", {run['gpu']}" if run["gpu"] else ""
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return f"`{run['command']}`, {run['date']}: {machine}; Python {run['python']}, {versions}."


def within_rounds(seconds: dict[str, list[float]], peer: str) -> dict[str, float]:
    """Return the medians of the ratios to a peer: in a round all saw the same moment."""
    return {
        name: median(a / b for a, b in zip(values, seconds[peer], strict=True))
        for name, values in seconds.items()
    }


def save(name: str, found: dict[str, Any], page: str, picture: bytes, folder: Path) -> None:
    """Write what was found: NAME.json for programs, NAME.md for readers, with NAME.png in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (folder / f"{name}.md").write_text(page)
    (folder / f"{name}.png").write_bytes(picture)
    print(f"written: {name}.json, {name}.md and {name}.png in {folder}")
