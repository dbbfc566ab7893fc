"""The whole default analysis on simulated studies whose truth need not be the law it fits.

Truths: the default form, the γ law, a product term, Kaplan with a constant. The interval with
misfit is asked for the loss at the optimum of ten times the largest compute; trust is what the
report would say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.analyse import analyse
from analysis.coverage import LEVEL, RATIOS, Design, simulate
from analysis.flops import FlopsPerToken
from analysis.law import Law
from analysis.laws import CHINCHILLA, GAMMA, KAPLAN_E, PRODUCT
from analysis.load import Study
from analysis.population import fit_population
from analysis.rows import Rows

E, A, B, ALPHA, BETA = 1.8172, 477.8, 2143.4, 0.3473, 0.3672
TRUTHS: Mapping[str, tuple[Law, tuple[float, ...]]] = {
    "chinchilla": (CHINCHILLA, (E, A, B, ALPHA, BETA)),
    "gamma 0.5": (GAMMA, (E, A**2, B**2, ALPHA, BETA, 0.5)),
    "product": (PRODUCT, (E, A, B, 5e4, ALPHA, BETA)),
    "kaplan-e": (KAPLAN_E, (E, A ** (1 / BETA), B ** (1 / BETA), ALPHA, BETA)),
}
# A design that earns trust: two decades of N, repeats at the cheap end, D/N over a factor of 32.
GOOD = Design("7 sizes, 3 seeds at the 3 cheapest", (3, 3, 3, 1, 1, 1, 1), 2.0, (*RATIOS, 160.0))
CLOSE = 0.01  # trust is high: the prediction is within this share of the truth


@dataclass(frozen=True)
class Outcome:
    """One cell: coverage of the interval with misfit at 10x, its median half width, and bias."""

    truth: str
    trunk_sd: float
    design: str
    studies: int
    coverage: float
    half_width: float
    bias: float
    prior_on: float


def cell(truth: str, design: Design, trunk_sd: float, studies: int, seed: int) -> Outcome:
    """The default prediction alone, many times."""
    law, theta = TRUTHS[truth][0], np.array(TRUTHS[truth][1])
    rows, flops = design.rows(), FlopsPerToken()
    C = np.array([10 * float(rows.C.max())])
    rng = np.random.default_rng(seed)
    held, width, error, on = 0, [], [], 0
    for _ in range(studies):
        study = simulate(law, theta, rows, trunk_sd, rng)
        fit = fit_population((study.N, study.D), study.C, study.L, trunk=study.trunk)
        best = GAMMA.optimal(fit.theta, C, flops)
        L, _, misfit = fit.predict(best.N, best.D, np.log(C), LEVEL)
        known = float(law.loss(theta, best.N, best.D)[0])
        low, high = misfit[0].low or 0.0, misfit[0].high or np.inf
        held += low <= known <= high
        width.append(0.5 * np.log(high / low))
        error.append(float(np.log(L[0] / known)))
        on += fit.prior is not None
    return Outcome(
        truth, trunk_sd, design.name, studies, held / studies, float(np.median(width)),
        float(np.mean(error)), on / studies,
    )  # fmt: skip


def trusted(
    truth: str, design: Design, trunk_sd: float, studies: int, seed: int
) -> list[tuple[str, float]]:
    """(trust of the report, |error| of the prediction at 10x) of whole analyses.

    The largest size is held out, as a sweep would.
    """
    law, theta = TRUTHS[truth][0], np.array(TRUTHS[truth][1])
    rows = design.rows()
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(studies):
        study = as_study(simulate(law, theta, rows, trunk_sd, rng))
        analysis = analyse(study, resamples=100)
        assert analysis.default is not None
        last = analysis.default.forecasts[-1]
        known = law.loss(theta, np.array([last.N]), np.array([last.D]))[0]
        found.append((analysis.chosen.trust, float(abs(last.L / known - 1))))
    return found


def as_study(rows: Rows) -> Study:
    """Simulated rows as a checked study, the largest size held out."""
    used = pd.DataFrame({"row": [f"row {i + 1}" for i in range(len(rows))]})
    for letter in "NDCL":
        used[letter] = getattr(rows, letter)
    held = rows.size == rows.size.max()
    letters = {"N": "N", "D": "D", "C": "C", "L": "L", "U": ""}
    return Study(
        name="simulated", source="simulated", is_sweep=False, table=used, used=used, rows=rows,
        holdout=held, excluded=(), flagged=(), columns=letters, loss_unit="nats/token",
        units=letters, notes=(), flops_known=True,
    )  # fmt: skip
