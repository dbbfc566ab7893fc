"""Settings of the whole suite: one thread per test process, so that two of them share two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
