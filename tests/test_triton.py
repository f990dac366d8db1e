"""The kernels in Triton, tried without a GPU: by Triton's interpreter, and by its compiler."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.version import Version

FOLDER = Path(__file__).parent
triton = pytest.mark.skipif(not find_spec("triton"), reason="no Triton: PyTorch brings it on Linux")


def interpreter_is_too_old() -> bool:
    """A loop up to a number that is an argument fails: NumPy 2.4 makes no int of an array of 1."""
    numpy_is_new = Version(version("numpy")) >= Version("2.4")
    return (
        bool(find_spec("triton")) and numpy_is_new and Version(version("triton")) < Version("3.9")
    )


def run(*command: str, **settings: str) -> str:
    """Run Python in a process of its own, and return what it prints."""
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Halves, so that a failure shows soon what it is about.
@triton
@pytest.mark.slow
@pytest.mark.skipif(interpreter_is_too_old(), reason="Triton's interpreter needs NumPy before 2.4")
@pytest.mark.parametrize("which", ["kernel or pixel", "not kernel and not pixel"])
def test_in_the_interpreter(which):
    """All that ``triton_checks.py`` asks for."""
    checks = str(FOLDER / "triton_checks.py")
    options = ("-o", "addopts=", "-q", "-p", "no:cacheprovider", "-k", which)
    assert " passed" in run("-m", "pytest", *options, checks, TRITON_INTERPRET="1")


@triton
@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    """The interpreter is Python and forgives what the compiler does not."""
    settings = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    printed = run(str(FOLDER / "triton_compile.py"), **settings)
    assert "all kernels" in printed
