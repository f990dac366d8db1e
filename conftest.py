"""Settings of the whole test command: what its processes share, and which file starts first."""

import os
import sys

import pytest

# Test workers run side by side: share the cores among them, in notebook kernels too. More threads
# than cores wait for each other, and make a chapter several times slower.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

# Kernels, graders and servers are hundreds of Python processes. They share PyTorch's bytecode:
# where it must not be written, each of them would compile all of it again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Longest first, so that both workers of two cores finish together; about so many seconds.
# Whatever takes less than ten, and is not named here, follows in the order of its name.
SECONDS = {
    "tests/test_class.py": 190,
    "tests/test_exercises.py": 120,
    "tests/test_browser.py": 120,
    "chapters/03_dense_connections.ipynb": 110,
    "chapters/11_cost_and_vovnet.ipynb": 100,
    "chapters/09_feature_reuse.ipynb": 95,
    "chapters/08_training_and_generalisation.ipynb": 85,
    "chapters/02_residual_connections.ipynb": 80,
    "chapters/04_growth_rate.ipynb": 75,
    "chapters/06_transitions_and_compression.ipynb": 70,
    "chapters/01_plain_networks.ipynb": 60,
    "tests/test_triton.py": 60,
    "tests/test_hub.py": 55,
    "tests/test_pages_of_submissions.py": 50,
    "tests/test_mutants.py": 55,
    "chapters/": 50,
    "tests/test_as_built.py": 45,
    "tests/test_kernels.py": 35,
    "tests/test_export.py": 35,
    "tests/test_benchmarks.py": 45,
    "tests/test_project.py": 20,
    "tests/test_model.py": 15,
    "tests/test_address.py": 15,
    "tests/test_efficient.py": 15,
    "tests/test_collect.py": 10,
    "tests/test_osa.py": 10,
    "tests/test_package.py": 10,
    "solutions/": 5,
}


def seconds(item: pytest.Item) -> int:
    return next((s for name, s in SECONDS.items() if item.nodeid.startswith(name)), 0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first; workers take file after file in this order."""
    items.sort(key=seconds, reverse=True)
    for item in items:
        if seconds(item) >= 50 or item.path.suffix == ".ipynb":
            item.add_marker("slow")
