"""Settings of the whole test command."""

import os

# Test workers run side by side: share the cores among them, in notebook kernels too. More threads
# than cores wait for each other, and make a chapter several times slower.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
