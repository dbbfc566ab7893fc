"""Settings of the whole suite: one thread per test process, so that two of them share two cores."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A busy machine is no failure: no test asserts a time.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
