"""Settings of the whole test command: what its processes share, and which file starts first."""

import os
import sys

# Test workers run side by side: share the cores among them, in notebook kernels too. More threads
# than cores wait for each other, and make a chapter several times slower.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

# Kernels, graders and servers are hundreds of Python processes. They share PyTorch's bytecode:
# where it must not be written, each of them would compile all of it again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
