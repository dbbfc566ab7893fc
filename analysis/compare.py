"""Which form predicts better: AIC and BIC, hold-out against two baselines, partial refits."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.laws import SumLaw
from analysis.load import SAME, Rows
from analysis.solve import Fit, fit_law

LEAST_SQUARES = 1e4  # a Huber delta in log units so large that the objective is a sum of squares


@dataclass(frozen=True)
class Criteria:
    """AIC and BIC of a law: Gaussian likelihood of log-loss residuals, at its least-squares fit.

    k counts the free parameters and the noise scale. Rows are taken as independent, which rows of
    one trunk are not: read differences, not values.
    """

    aic: float
    bic: float
    k: int


@dataclass(frozen=True)
class Holdout:
    """Held-out rows, predicted by laws and baselines that never saw them (arrays over rows).

    predictions: method -> predicted loss; notes: where a baseline had to use another horizon.
    """

    rows: Rows
    predictions: Mapping[str, np.ndarray]
    notes: tuple[str, ...]

    def error(self, method: str) -> float:
        """Mean of |predicted / measured - 1|; nan where the method predicts nothing."""
        return float(np.mean(np.abs(self.predictions[method] / self.rows.L - 1)))


@dataclass(frozen=True)
class Refit:
    """The law fitted without one size or one horizon."""

    without: str  # "N", "D", or "all rows" for the fit itself
    value: float | None
    n_rows: int
    parameters: dict[str, float]
    a: float
    holdout_error: float | None


BASELINES = {
    "largest": "loss of the largest fitted size at that horizon",
    "log-linear": "log L linear in log N at that horizon",
}


def criteria(law: SumLaw, rows: Rows, fixed: Mapping[str, float]) -> Criteria:
    """AIC and BIC of the law's least-squares fit to log losses (Akaike 1974; Schwarz 1978)."""
    fit = fit_law(law, rows.N, rows.D, rows.L, fixed=fixed, delta=LEAST_SQUARES)
    n, k = len(rows), fit.n_free + 1
    # An exact law has no residual scale: the floor keeps the numbers finite and comparable.
    variance = max(float(np.mean(fit.residuals**2)), 1e-24)
    deviance = n * (np.log(2 * np.pi * variance) + 1)
    return Criteria(float(deviance + 2 * k), float(deviance + np.log(n) * k), k)


def holdout(fits: Mapping[str, Fit], train: Rows, test: Rows) -> Holdout | None:
    """Predict the held-out rows with every law and with both baselines; None without such rows."""
    if not len(test):
        return None
    predictions = {name: f.law.loss(f.theta, test.N, test.D) for name, f in fits.items()}
    largest = np.empty(len(test))
    linear = np.full(len(test), np.nan)
    far: set[str] = set()
    size, top = train.size, int(train.size.max())
    for i, d in enumerate(test.D):
        nearest = [_at_horizon(train, size == s, d) for s in range(top + 1)]
        x = np.array([np.log(n) for n, _, _ in nearest])
        z = np.array([z for _, z, _ in nearest])
        largest[i] = np.exp(z[-1])
        if len(x) > 1:
            slope, level = np.polyfit(x, z, 1)
            linear[i] = np.exp(level + slope * np.log(test.N[i]))
        far |= {f"{d:.3g}" for _, _, gap in nearest if gap > SAME}
    notes = ()
    if far:
        notes = (
            "no fitted row at D = " + ", ".join(sorted(far)) + ": the baselines use the nearest "
            "horizon of each size",
        )
    predictions["largest"] = largest
    if np.isfinite(linear).all():
        predictions["log-linear"] = linear
    return Holdout(test, predictions, notes)


def _at_horizon(train: Rows, mask: np.ndarray, d: float) -> tuple[float, float, float]:
    """N, mean log L over the rows of one size at its horizon nearest to d, and the gap in log D."""
    gap = np.abs(np.log(train.D[mask] / d))
    near = gap <= gap.min() + SAME
    z = np.log(train.L[mask][near])
    return float(train.N[mask][0]), float(z.mean()), float(gap.min())


def sensitivity(
    law: SumLaw, train: Rows, test: Rows, fixed: Mapping[str, float], fit: Fit
) -> tuple[Refit, ...]:
    """The law refitted without each size and without each horizon; the first entry has all rows.

    Groups whose loss would leave fewer rows than free parameters + 1 are skipped.
    """
    groups: list[tuple[str, float | None, np.ndarray]] = [
        ("all rows", None, np.ones(len(train), bool))
    ]
    for kind, level, value in (("N", train.size, train.N), ("D", train.horizon, train.D)):
        if level.max() > 11:  # a scatter of sizes, not a ladder: the table would say nothing
            continue
        groups += [
            (kind, float(np.median(value[level == k])), level != k)
            for k in range(int(level.max()) + 1)
        ]
    table = []
    for without, value, keep in groups:
        part = train.take(keep)
        if len(part) < fit.n_free + 1:
            continue
        again = fit if keep.all() else fit_law(law, part.N, part.D, part.L, fixed=fixed)
        error = None
        if len(test):
            predicted = law.loss(again.theta, test.N, test.D)
            error = float(np.mean(np.abs(predicted / test.L - 1)))
        a = float(law.allocation_exponent(again.theta))
        table.append(Refit(without, value, len(part), again.parameters, a, error))
    return tuple(table)
