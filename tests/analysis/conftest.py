"""Finished synthetic sweeps, written once for all tests of the analysis."""

import pytest
from synthetic import Plan, write_sweep

from analysis import bootstrap
from analysis.analyse import analyse
from analysis.load import load

FULL_RESAMPLES = bootstrap.RESAMPLES


@pytest.fixture(scope="session", autouse=True)
def _few_resamples():
    """Few resamples for speed; the golden texts ask for all of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "RESAMPLES", 300)
        yield


@pytest.fixture
def all_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", FULL_RESAMPLES)


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """Six sizes, five horizons, three seeds at the three cheapest, one held-out size."""
    return write_sweep(tmp_path_factory.mktemp("runs") / "good")


@pytest.fixture(scope="session")
def analysed(good):
    """What all of the analysis finds in `good`."""
    return analyse(load(good))


@pytest.fixture(scope="session")
def ray(tmp_path_factory):
    """Every run at 20 tokens per parameter: alpha and beta cannot be told apart."""
    plan = Plan(horizons=(20,), ratios=True, repeats=1, holdout=())
    return write_sweep(tmp_path_factory.mktemp("runs") / "ray", plan)


@pytest.fixture(scope="session")
def bent(tmp_path_factory):
    """A truth that bends away from the law by far more than the seed noise."""
    return write_sweep(tmp_path_factory.mktemp("runs") / "bent", Plan(bend=0.03))
