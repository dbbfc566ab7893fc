"""Shares of queries that lie in documents, with intervals that know that they do.

What one document asks resembles itself, so a document is the unit: C documents, n_C queries of
each, hits_C of which were answered, any axes X before it (heads, offsets).
"""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

LEVEL = 0.90  # of every interval


class Interval(NamedTuple):
    """A value with its interval; NaN where fewer than two documents ask."""

    value: float
    low: float
    high: float


def share(hits_XC: np.ndarray, n_C: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """hits/n with the ends of Wilson's interval at the effective number of queries.

    That is the number of independent queries that would vary as much as the documents do (Kish
    1965, §8.2), at most all of them; Student's t of as many documents as ask, less one (Franco et
    al. 2019, J. Survey Stat. Methodol. 7, 334, "Wilson"). Where all queries agree, documents cannot
    be seen to vary, and each counts as one query.
    """
    n, C = n_C.sum(), np.count_nonzero(n_C)
    value_X = hits_XC.sum(axis=-1) / n
    independent_X = value_X * (1 - value_X) / n
    varies_X = independent_X > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio_X = independent_X / _variance(hits_XC, n_C)
    effective_X = np.where(varies_X, np.minimum(n, n * ratio_X), C)
    t2_X = stdtrit(C - 1, (1 + LEVEL) / 2) ** 2 / effective_X
    centre_X = (value_X + t2_X / 2) / (1 + t2_X)
    half_X = np.sqrt(t2_X * value_X * (1 - value_X) + t2_X**2 / 4) / (1 + t2_X)
    return value_X, centre_X - half_X, centre_X + half_X


def difference(hits_C: np.ndarray, others_C: np.ndarray, n_C: np.ndarray) -> Interval:
    """(hits - others)/n of two that were asked the same, by the variance between documents."""
    apart_C = hits_C - others_C
    half = stdtrit(np.count_nonzero(n_C) - 1, (1 + LEVEL) / 2) * _variance(apart_C, n_C) ** 0.5
    value = float(apart_C.sum() / n_C.sum())
    return Interval(value, value - float(half), value + float(half))


def _variance(hits_XC: np.ndarray, n_C: np.ndarray) -> np.ndarray:
    """Of hits/n, a ratio of sums over documents (Cochran 1977, eq. 6.9; documents are many)."""
    n, C = n_C.sum(), np.count_nonzero(n_C)
    residual_XC = hits_XC - (hits_XC.sum(axis=-1) / n)[..., None] * n_C
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.square(residual_XC).sum(axis=-1) / n**2 * (C / (np.float64(C) - 1))


def best(hits_XC: np.ndarray) -> np.ndarray:
    """hits_C of the best of X, which for documents of even number may be another than for odd.

    Chosen on the other half of the documents each time, so that the choice does not flatter it.
    """
    even_C = np.arange(hits_XC.shape[-1]) % 2 == 0
    of_even_C, of_odd_C = (
        hits_XC[hits_XC[:, other_C].sum(axis=-1).argmax()] for other_C in (~even_C, even_C)
    )
    return np.where(even_C, of_even_C, of_odd_C)
