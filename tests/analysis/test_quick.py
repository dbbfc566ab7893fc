"""A finished quick sweep, stored: what `make quickstart` finds is what the docs say it finds."""

from pathlib import Path

import numpy as np
import pytest

from analysis.fit import analyse
from analysis.load import load
from analysis.result import Analysis

QUICK = Path(__file__).parents[1] / "data" / "quick"


@pytest.fixture(scope="module")
def quick() -> Analysis:
    return analyse(load(QUICK), resamples=2000)


def test_design(quick: Analysis) -> None:
    train, test = quick.study.train, quick.study.test
    assert len(train) >= 20
    assert len(set(train.N)) >= 5
    assert max(train.N) / min(train.N) >= 10**0.7
    assert len(set(train.D)) >= 4
    assert len(test) >= 4
    assert min(test.N) >= 1.6 * max(train.N)
    assert (quick.study.table["steps"] >= 500).all()
    assert quick.noise.max_seeds >= 3


def test_law_and_prediction(quick: Analysis) -> None:
    chinchilla = quick.chosen
    assert chinchilla.name == "chinchilla"
    assert chinchilla.fit.certified
    assert chinchilla.fit.rms <= 0.01
    assert chinchilla.fit.rms <= 3 * quick.noise.sigma
    assert chinchilla.holdout_error is not None
    assert chinchilla.holdout_error <= 0.008
    assert quick.holdout is not None
    for baseline in ("largest", "log-linear"):
        assert chinchilla.holdout_error < quick.holdout.error(baseline)
    assert all(interval.closed for interval in chinchilla.intervals.values())


@pytest.mark.parametrize("estimator", ["huber", "gls-reml"])
def test_the_docs_give_these_figures(quick: Analysis, estimator: str) -> None:
    docs = (Path(__file__).parents[2] / "docs" / "quick.md").read_text()
    found = quick
    if estimator != quick.chosen.estimate.estimator:
        found = analyse(quick.study, estimator=estimator, resamples=2000)
    for name, symbol in (("alpha", "α (90 % interval)"), ("beta", "β"), ("E", "E, nats per token")):
        interval, value = found.chosen.intervals[name], found.chosen.parameters[name]
        assert f"| {symbol} | {value:.3f} ({interval.low:.3f} to {interval.high:.3f}) |" in docs
    assert f"| hold-out error of the law | {100 * found.chosen.holdout_error:.2f} % |" in docs
    if estimator == "huber":
        assert f"| residual RMS | {100 * found.chosen.estimate.rms:.2f} % |" in docs


def test_the_default_prediction_is_no_worse_than_the_plain_law(quick: Analysis) -> None:
    assert quick.default is not None
    assert not quick.default.prior
    assert "bytes" in quick.default.why
    train, test = quick.study.train, quick.study.test
    fit = next(r for r in quick.results if r.name == "chinchilla").fit
    plain = np.mean(np.abs(fit.law.loss(fit.theta, test.N, test.D) / test.L - 1))
    assert len(train) == len(fit.residuals)
    assert quick.default.holdout_error <= plain
