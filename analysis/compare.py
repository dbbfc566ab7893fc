"""Which form predicts better: AIC and BIC, hold-out against two baselines, rolling origin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.gls import GlsFit, fit_gls
from analysis.law import Law
from analysis.rows import SAME, Rows
from analysis.solve import fit_law

FACTORS = (3, 10, 30, 100)  # of compute between the fitted and the predicted rows
BASELINES = {
    "largest": "loss of the largest fitted size at that horizon",
    "log-linear": "log L linear in log N at that horizon",
}


@dataclass(frozen=True)
class Criteria:
    """AIC and BIC of a law: likelihood of log-loss residuals at its least-squares fit.

    k counts the free parameters and the variances; rows that share a trunk are correlated as the
    random-trunk model says. BIC takes the rows as its sample size.
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
        """Mean error of a method; nan where it predicts nothing."""
        return mean_error(self.predictions[method], self.rows.L)

    @property
    def baselines(self) -> dict[str, float]:
        """Mean error of every baseline that predicts all rows."""
        return {k: self.error(k) for k in BASELINES if k in self.predictions}


@dataclass(frozen=True)
class Origin:
    """One step of the rolling-origin test: fitted to C <= C_max/factor, the rest predicted.

    errors: method -> mean |predicted / measured - 1| over the predicted rows.
    """

    factor: int
    n_fitted: int
    n_predicted: int
    errors: Mapping[str, float]


def mean_error(predicted: np.ndarray, measured: np.ndarray) -> float:
    """Mean of |predicted / measured - 1|."""
    return float(np.mean(np.abs(predicted / measured - 1)))


def criteria(gls: GlsFit) -> Criteria:
    """AIC and BIC (Akaike 1974; Schwarz 1978) by the Gaussian likelihood of the trunk model."""
    n = len(gls.residuals)
    several = len(gls.trunks.count) < n
    k = int(gls.free.sum()) + (2 if several else 1)
    # An exact law has no residual scale: the floor keeps the numbers finite and comparable.
    variance = max(gls.rss / n, 1e-24)
    deviance = n * (np.log(2 * np.pi * variance) + 1)
    deviance += float(np.log1p(gls.trunks.count * gls.rho2).sum())
    return Criteria(float(deviance + 2 * k), float(deviance + np.log(n) * k), k)


def point(law: Law, rows: Rows, fixed: Mapping[str, float], estimator: str) -> np.ndarray:
    """Values of the law by one estimator."""
    X = rows.variables(law.variables)
    fit = fit_law(law, X, rows.L, fixed=fixed)
    if estimator == "huber":
        return fit.theta
    return fit_gls(law, X, rows.L, rows.trunk, fit.rivals, fixed).theta


def holdout(predicted: Mapping[str, np.ndarray], train: Rows, test: Rows) -> Holdout | None:
    """Held-out rows beside what laws `predicted` for them and both baselines; None without rows."""
    if not len(test):
        return None
    predictions = dict(predicted)
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


def origins(rows: Rows, least: int) -> list[tuple[int, np.ndarray]]:
    """(factor, rows to fit) of the steps that leave `least` rows of 3 sizes to fit."""
    steps = []
    for factor in FACTORS:
        inside = rows.C.max() / factor >= rows.C
        if inside.sum() >= least and not inside.all():
            part = rows.take(inside)
            if int(part.size.max()) >= 2:
                steps.append((factor, inside))
    return steps


def rolling(
    laws: Sequence[Law], rows: Rows, fixed: Mapping[str, Mapping[str, float]], estimator: str,
    least: int,
) -> tuple[Origin, ...]:  # fmt: skip
    """Fit to the cheap rows, predict the dear ones, at four distances in compute."""
    table = []
    for factor, inside in origins(rows, least):
        train, test = rows.take(inside), rows.take(~inside)
        errors = {}
        for law in laws:
            theta = point(law, train, fixed[law.name], estimator)
            L = law.loss(theta, *test.variables(law.variables))
            errors[law.name] = mean_error(L, test.L)
        table.append(Origin(factor, len(train), len(test), errors))
    return tuple(table)


def best_predictor(table: Sequence[Origin]) -> tuple[str, float] | None:
    """The method with the lowest mean error over the steps, and that error."""
    if not table:
        return None
    methods = set(table[0].errors).intersection(*(t.errors for t in table))
    means = {m: float(np.mean([t.errors[m] for t in table])) for m in sorted(methods)}
    name = min(means, key=lambda m: means[m])
    return name, means[name]
