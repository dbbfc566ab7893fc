"""The same runs under other conventions of N and C, for the sensitivity table."""

from itertools import product

import numpy as np

from analysis.columns import numbers
from analysis.load import Study
from analysis.rows import Rows

N_COLUMNS = ("n_total", "n_non_embedding", "n_matmul")
C_COLUMNS = ("flops_exact", "flops_6n", "flops_matmul")
KAPLAN = ("n_non_embedding", "6ND")  # Kaplan et al. 2020, section 2.1: C = 6ND without embeddings


def conventions(study: Study) -> tuple[tuple[str, str], ...]:
    """Pairs (column of N, column of C or "6ND") that the fitted rows have, the study's own first.

    Only the own pair where one of N, D, C follows from the others.
    """
    own = (study.columns["N"], study.columns["C"])
    if "C/6" in own[0] + study.columns["D"]:
        return (own,)
    pairs = (own, *product(N_COLUMNS, C_COLUMNS), KAPLAN)
    return tuple(p for p in dict.fromkeys(pairs) if all(_known(study, name) for name in p))


def with_convention(study: Study, n: str, c: str) -> Rows:
    """The fitted rows with N from column `n` and C from column `c`; "6ND": C = 6ND with that N."""
    rows = study.rows
    N = _values(study, n)
    C = 6 * N * rows.D if c == "6ND" else _values(study, c)
    return Rows(N, rows.D, C, rows.L, rows.trunk, rows.U).take(~study.holdout)


def _known(study: Study, name: str) -> bool:
    if name in (*study.columns.values(), "6ND"):
        return True
    if name not in study.used:
        return False
    values = _values(study, name)[~study.holdout]
    return bool(np.all(np.isfinite(values) & (values > 0)))


def _values(study: Study, name: str) -> np.ndarray:
    """A column of the used rows, the study's own from its arrays."""
    for letter in "NC":
        if study.columns[letter] == name:
            return getattr(study.rows, letter)
    return numbers(study.used[name])
