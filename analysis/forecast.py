"""The default prediction of a study: which reason turns its prior off, and its forecasts."""

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.compare import mean_error
from analysis.flops import FlopsPerToken
from analysis.interval import Interval
from analysis.laws import GAMMA
from analysis.load import Study
from analysis.population import PopulationFit, fit_population
from analysis.result import Default, Forecast, LawResult
from analysis.rows import Rows
from analysis.surface import LEAST_ROWS

BYTES = 260  # a vocabulary of bytes and a few marks


def default_fit(study: Study, rows: Rows, fixed: Mapping[str, float]) -> PopulationFit | None:
    """The γ law with its prior on `rows`; None where there are too few of them.

    The prior is of web text in nats per subword token: off for other units and known entropies.
    """
    if len(rows) < LEAST_ROWS:
        return None
    held = {k: v for k, v in fixed.items() if k in GAMMA.parameters}
    off = ""
    if study.loss_unit != "nats/token":
        off = f"the loss is not known to be in nats/token ({study.units['L']})"
    elif "vocab_size" in study.used and study.used["vocab_size"].max() <= BYTES:
        off = "its tokens are bytes, and the prior was learned from subword tokens"
    elif "E" in held:
        off = "the entropy E is fixed, so the source is known better than the prior"
    X = rows.variables(("N", "D"))
    return fit_population(X, rows.C, rows.L, trunk=rows.trunk, off=off, fixed=held)


def forecasts(
    fit: PopulationFit, chosen: LawResult | None, C: Sequence[float], flops: FlopsPerToken,
    top: float, level: float,
) -> tuple[Forecast, ...]:  # fmt: skip
    """The prediction at the compute-optimal N, D of every budget, by the γ law itself."""
    budgets = np.array(C, float)
    best = GAMMA.optimal(fit.theta, budgets, flops)
    plain = fit.plain or fit
    without = GAMMA.optimal(plain.theta, budgets, flops)
    L, noise, misfit = fit.predict(best.N, best.D, np.log(budgets), level)
    own: list[float | None] = [None] * len(budgets)
    if chosen is not None and "a" not in chosen.design.problems:
        own = [float(v) for v in chosen.law.optimal(chosen.theta, budgets, flops).L]
    return tuple(
        Forecast(
            float(budgets[i]), float(best.N[i]), float(best.D[i]), float(L[i]), noise[i],
            misfit[i], float(without.L[i]), own[i], bool(budgets[i] > top * 1.01),
        )
        for i in range(len(budgets))
    )  # fmt: skip


def default(
    study: Study, fit: PopulationFit | None, chosen: LawResult, C: Sequence[float],
    flops: FlopsPerToken, level: float,
) -> Default | None:  # fmt: skip
    """The default prediction as the reports show it; None without a fit or an identified design."""
    if fit is None or "a" in chosen.design.problems:
        return None
    train, test = study.train, study.test
    error = None
    if len(test):
        L = fit.predict(test.N, test.D, np.log(test.C), level)[0]
        error = mean_error(L, test.L)
    return Default(
        GAMMA.named(fit.theta), fit.prior is not None, fit.why, dict(fit.shift), fit.conflict,
        forecasts(fit, chosen, C, flops, float(train.C.max()), level), error,
    )  # fmt: skip


def far_interval(
    fit: PopulationFit | None, rows: Rows, flops: FlopsPerToken, level: float
) -> Interval | None:
    """Misfit-aware interval of the loss at the optimum of ten times the largest compute."""
    if fit is None:
        return None
    top = float(rows.C.max())
    return forecasts(fit, None, [10 * top], flops, top, level)[0].misfit
