"""What the numbers hang on: refits without each size or horizon, other objectives and
conventions, and the leverage of every row."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.compare import mean_error, point
from analysis.conventions import conventions, with_convention
from analysis.flops import FlopsPerToken
from analysis.gls import GlsFit
from analysis.law import Law
from analysis.load import Study
from analysis.rows import Rows, groups
from analysis.solve import fit_law
from analysis.targets import Evaluator, Target

DELTAS = (1e-4, 1e-2, 1e4)  # the last: so large that the objective is a sum of squares
POWER = 0.3  # of compute, as a row weight
SAME_BUDGET = 0.1  # in log C: budgets of an isoFLOP grid are rounded to whole steps
MOST_LEVELS = 12  # a scatter of more sizes than this is not a ladder: the table would say nothing


@dataclass(frozen=True)
class Refit:
    """The law fitted in another way; `a` is d log N*/d log C at the middle of the compute."""

    kind: str  # "fit", "N", "D", "C", "delta", "weights", "convention"
    what: str
    n_rows: int
    parameters: dict[str, float]
    a: float
    loss_10x: float | None  # at the optimum of ten times the largest compute
    holdout_error: float | None


@dataclass(frozen=True)
class Leverage:
    """Per fitted row: hat value, and by how many standard errors log L* at 10x moves without it."""

    hat: np.ndarray
    shift: np.ndarray


def sensitivity(
    study: Study, law: Law, theta: np.ndarray, fixed: Mapping[str, float], estimator: str,
    flops: FlopsPerToken,
) -> tuple[Refit, ...]:  # fmt: skip
    """Refits; the first entry is the fit itself. Parts too small to fit are skipped."""
    train, test = study.train, study.test
    X = train.variables(law.variables)
    free = len(law.parameters) - len(fixed)
    table: list[Refit] = []

    def add(kind: str, what: str, theta: np.ndarray, rows: Rows = train) -> None:
        table.append(_refit(kind, what, law, theta, rows, test, flops, train))

    add("fit", "all rows", theta)
    parts = [("N", train.size, train.N), ("D", train.horizon, train.D)]
    if train.horizon.max() >= MOST_LEVELS:  # an isoFLOP grid has a D of its own in every row
        parts.append(("C", groups(np.log(train.C), SAME_BUDGET), train.C))
    for kind, level, value in parts:
        if level.max() >= MOST_LEVELS:
            continue
        for k in range(int(level.max()) + 1):
            part = train.take(level != k)
            if len(part) > free:
                what = f"{float(np.median(value[level == k])):.6g}"
                add(kind, what, point(law, part, fixed, estimator), part)
    for delta in DELTAS:
        what = "least squares" if delta > 1 else f"Huber {delta:g}"
        add("delta", what, fit_law(law, X, train.L, fixed=fixed, delta=delta).theta)
    other = "huber" if estimator != "huber" else "gls-reml"
    what = "Huber 0.001" if other == "huber" else "gls-reml"
    add("delta", what, point(law, train, fixed, other))
    weights = (train.C / train.C.max()) ** POWER
    again = fit_law(law, X, train.L, fixed=fixed, weights=weights / weights.mean()).theta
    add("weights", f"rows by C^{POWER}, Huber", again)
    for n, c in conventions(study):
        rows = with_convention(study, n, c)
        again = point(law, rows, fixed, estimator)
        own = FlopsPerToken.from_rows(rows.N, rows.D, rows.C, c)
        table.append(_refit("convention", f"{n}, {c}", law, again, rows, None, own, rows))
    return tuple(table)


def _refit(
    kind: str, what: str, law: Law, theta: np.ndarray, rows: Rows, test: Rows | None,
    flops: FlopsPerToken, at: Rows,
) -> Refit:  # fmt: skip
    """`at`: the rows whose compute says where a and the loss at ten times the compute are read."""
    error = None
    if test is not None and len(test):
        predicted = law.loss(theta, *test.variables(law.variables))
        error = mean_error(predicted, test.L)
    middle = float(np.exp(np.log(at.C).mean()))
    C = np.array([middle / 1.1, middle * 1.1, 10 * at.C.max()])
    best = law.optimal(theta, C, flops)
    a = float(np.log(best.N[1] / best.N[0]) / np.log(1.21))
    far = float(best.L[2])
    return Refit(
        kind, what, len(rows), law.named(theta), a, far if np.isfinite(far) else None, error
    )


def leverage(gls: GlsFit, flops: FlopsPerToken, C: float) -> Leverage:
    """Hat values, and the shift of log L*(C) in standard errors when a row is left out.

    One-step deletion (Cook & Weisberg 1982) in the random-trunk model, rho² held: with W the
    inverse covariance and P = W - W X (X'WX)^-1 X'W, the fit moves by (X'WX)^-1 X'W e_i (P r)_i /
    P_ii; the hat value is 1 - P_ii / W_ii.
    """
    trunks = gls.trunks
    columns = trunks.solve(np.column_stack([gls.X, gls.residuals]), gls.rho2)
    X, r, own = columns[:, :-1], columns[:, -1], 1 - trunks.shrink(gls.rho2)[trunks.codes]
    cov = gls.covariance / gls.row_sd**2
    hat = np.clip(np.einsum("np,pq,nq->n", X, cov, X) / own, 0.0, 1 - 1e-9)
    target = Evaluator(gls.problem, flops, [Target("L", "optimal-loss", (C,))])
    gradient = target.at(gls.phi)[1][0, gls.free]
    se = float(np.sqrt(max(gradient @ gls.covariance @ gradient, 1e-300)))
    # Residuals are predicted minus measured: leaving a row out moves the fit away from it.
    return Leverage(hat, (X @ cov @ gradient) * r / (own * (1 - hat)) / se)
