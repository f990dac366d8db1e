"""Settings of the whole test command."""

import os

# Test workers run side by side: share the cores among them, in notebook kernels too.
workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
