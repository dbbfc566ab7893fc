"""Settings of the whole suite: one thread per test process, so that two of them share two cores."""

import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A busy machine is no failure: no test asserts a time.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: at the end, one worker would be busy with it alone."""
    items.sort(key=lambda item: item.name != "test_commands_of_the_readme_run")
