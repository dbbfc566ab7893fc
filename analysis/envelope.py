"""Approach 1 (Hoffmann et al. 2022): the envelope of the sizes' loss curves over compute."""

import numpy as np

from analysis.curves import Noise, SizeCurves
from analysis.optima import Approach, Curve, regress
from analysis.rows import Rows

GRID = 200  # budgets at which the envelope is read
COVER = 3  # sizes that must reach a budget: the lower of two is always at an edge


def envelope(rows: Rows, noise: Noise | None = None) -> Approach:
    """Approach 1: the size of least loss at each of GRID budgets, regressed on compute.

    rows: final losses of a ladder, or every evaluation of training curves (Hoffmann et al. 2022,
    section 3.1). A budget counts where COVER sizes reach it and neither the smallest nor the
    largest of them wins. N* steps from size to size, so neighbouring budgets are no independent
    optima: they weigh the same. ValueError on bad rows.
    """
    sizes = SizeCurves.of(rows)
    cells, reach = sizes.cells, sizes.reach
    C = np.geomspace(reach.min(), reach.max(), GRID)
    log_d, first = sizes.at(C, np.stack([np.log(cells.D), cells.log_l]))
    log_n = np.array([np.log(cells.N[path]).mean() for path in sizes.paths])
    covered = np.isfinite(first)
    low = covered.argmax(1)
    high = covered.shape[1] - 1 - covered[:, ::-1].argmax(1)
    enough = covered.sum(1) >= COVER
    budget = np.arange(GRID)

    def find(log_l: np.ndarray) -> np.ndarray:
        L = np.where(covered, sizes.at(C, log_l), np.inf)
        win = L.argmin(2)
        least = np.take_along_axis(L, win[..., None], 2)[..., 0]
        inner = enough & (win > low) & (win < high)
        return np.where(inner, np.stack([log_n[win], log_d[budget, win], least]), np.nan)

    inner = np.isfinite(find(cells.log_l[None])[0, 0])
    reasons = np.where(inner, "", np.where(enough, "edge-minimum", "too-few"))
    curves = [Curve(float(c), (), str(r) or None) for c, r in zip(C, reasons, strict=True)]
    draft = Approach("approach-1", "interpolated", tuple(curves), sizes.single)
    return regress(draft, find, cells, noise, width=GRID * len(sizes.paths))
