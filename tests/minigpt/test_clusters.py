"""Shares over documents: coverage, what they reduce to, and a choice that does not flatter."""

import numpy as np
import pytest
from scipy import stats

from minigpt import clusters


def draws(rng: np.random.Generator, studies: int, n_C: np.ndarray, p: float, rho: float):
    """hits_XC of documents with their own rates, Beta of mean p and intraclass correlation rho."""
    a = p * (1 / rho - 1)
    p_XC = rng.beta(a, a * (1 / p - 1), size=(studies, len(n_C)))
    return rng.binomial(n_C, p_XC).astype(float)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_intervals_cover_where_documents_differ(p: float) -> None:
    rng = np.random.default_rng(0)
    n_C = rng.integers(1, 30, size=50)
    hits_XC = draws(rng, 4_000, n_C, p, rho=0.15)
    _, low_X, high_X = clusters.share(hits_XC, n_C)
    assert 0.84 < np.mean((low_X < p) & (p < high_X)) < 0.94  # 0.86 and 0.89
    # Taken as independent the same queries cover far less.
    n = n_C.sum()
    value_X = hits_XC.sum(axis=1) / n
    half_X = 1.645 * np.sqrt(value_X * (1 - value_X) / n)
    assert np.mean(abs(value_X - p) < half_X) < 0.75


def test_differences_cover() -> None:
    rng = np.random.default_rng(1)
    n_C = rng.integers(1, 20, size=50)
    a_XC, b_XC = (draws(rng, 2_000, n_C, p, rho=0.1) for p in (0.4, 0.3))
    found = [clusters.difference(a_C, b_C, n_C) for a_C, b_C in zip(a_XC, b_XC, strict=True)]
    assert 0.86 < np.mean([low < 0.1 < high for _, low, high in found]) < 0.94


def test_a_query_of_each_document_is_wilsons_interval() -> None:
    hits_C = (np.arange(500) % 10 == 0).astype(float)
    value, low, high = clusters.share(hits_C, np.ones(500, int))
    wilson = stats.binomtest(50, 500).proportion_ci(clusters.LEVEL, method="wilson")
    assert (value, low, high) == pytest.approx((0.1, wilson.low, wilson.high), rel=3e-3)


def test_more_of_the_same_in_a_document_tells_nothing() -> None:
    hits_C = (np.arange(40) % 3 == 0).astype(float)
    once = clusters.share(hits_C, np.ones(40, int))
    again = clusters.share(hits_C * 7, np.full(40, 7))
    np.testing.assert_allclose(again, once, rtol=1e-12)


def test_the_variance_is_that_of_documents_drawn_again() -> None:
    rng = np.random.default_rng(2)
    n_C = rng.integers(1, 20, size=200)
    hits_C = draws(rng, 1, n_C, 0.3, rho=0.2)[0]
    found = clusters.difference(hits_C, np.zeros(200), n_C)
    again = rng.integers(200, size=(4_000, 200))
    deviation = (hits_C[again].sum(axis=1) / n_C[again].sum(axis=1)).std()
    half = stats.t.ppf((1 + clusters.LEVEL) / 2, 199) * deviation
    assert found.high - found.value == pytest.approx(half, rel=0.06)


def test_agreement_of_all_is_no_certainty() -> None:
    _, low, high = clusters.share(np.zeros(20), np.full(20, 5))
    t2 = stats.t.ppf((1 + clusters.LEVEL) / 2, 19) ** 2
    assert (low, high) == pytest.approx((0, t2 / (20 + t2)))
    _, low, high = clusters.share(np.full(20, 5.0), np.full(20, 5))
    assert (low, high) == pytest.approx((20 / (20 + t2), 1))


def test_one_document_has_no_interval() -> None:
    value, low, high = clusters.share(np.array([2.0, 0.0]), np.array([4, 0]))
    assert value == 0.5
    assert np.isnan([low, high]).all()
    assert np.isnan(clusters.difference(np.ones(1), np.zeros(1), np.ones(1, int)).low)


def test_the_choice_is_made_on_other_documents() -> None:
    # Head 1 answers only in even documents, which choose for the odd ones.
    hits_XC = np.array([[1, 1, 1, 1], [4, 0, 4, 0], [0, 3, 0, 3]], float)
    assert clusters.best(hits_XC).tolist() == [0, 0, 0, 0]
    # Of heads that guess, the best so chosen guesses too; the best of all seems to know.
    rng = np.random.default_rng(3)
    n_C = np.full(60, 5)
    shares = []
    for _ in range(200):
        noise_XC = rng.binomial(n_C, 0.5, size=(50, 60)).astype(float)
        assert noise_XC.sum(axis=1).max() / n_C.sum() > 0.53
        shares.append(clusters.best(noise_XC).sum() / n_C.sum())
    assert np.mean(shares) == pytest.approx(0.5, abs=0.01)
