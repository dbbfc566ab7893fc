"""Whether a study identifies what repetition is worth (R_D) and what excess parameters are (R_N).

An interval of R_D holds given the form of the law. On published runs (Muennighoff et al. 2023) it
is narrow, and yet runs of few and of many passes ask for values that lie far apart. So the law is
also fitted to the runs of fewest passes, and the values are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.interval import Interval
from analysis.reuse import WIDEST, reuse_note
from analysis.solve import Fit, fit_law

SHARES = (0.5, 0.75)  # of the rows, those of fewest passes, that are fitted on their own


@dataclass(frozen=True)
class Part:
    """The law fitted to the rows of at most `passes` over the data."""

    passes: float
    rows: int
    fit: Fit


def by_passes(fit: Fit, X: Sequence[np.ndarray], L: np.ndarray) -> tuple[Part, ...]:
    """The same law and fixed values on the half and three quarters of rows of fewest passes.

    X: N, D, U as `fit` had them. Parts that hold every row, no repetition, or fewer than two rows
    per free parameter are left out.
    """
    N, D, U = (np.asarray(v, float) for v in X)
    passes = np.fmax(D / U, 1.0)
    parts = []
    for most in np.unique(np.quantile(passes, SHARES)):
        use = passes <= most * (1 + 1e-9)
        if most <= 1.0 or use.all() or use.sum() < 2 * fit.n_free:
            continue
        part = fit_law(fit.law, (N[use], D[use], U[use]), L[use], fixed=fit.fixed, delta=fit.delta)
        parts.append(Part(float(most), int(use.sum()), part))
    return tuple(parts)


def reuse_notes(
    fit: Fit, parts: Sequence[Part], intervals: Mapping[str, Interval]
) -> dict[str, str]:
    """Why R_D and R_N must not be quoted; a parameter that may be, or is fixed, has no entry."""
    notes = {}
    for name in ("R_D", "R_N"):
        if name in fit.fixed:
            continue
        interval = intervals[name]
        note = reuse_note(name, interval.low, interval.high)
        found = [fit.parameters[name], *(p.fit.parameters[name] for p in parts)]
        if not note and max(found) > WIDEST * min(found):
            worst = max(parts, key=lambda p: abs(np.log(p.fit.parameters[name] / found[0])))
            note = (
                f"{name} is not identified: {found[0]:.3g} on all rows, "
                f"{worst.fit.parameters[name]:.3g} on the {worst.rows} of at most "
                f"{worst.passes:.3g} passes; the form of the law decides it, not the data"
            )
        if note:
            notes[name] = note
    return notes
