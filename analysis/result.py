"""The frozen result of an analysis, and its JSON form (schema fits/1)."""

import math
from dataclasses import dataclass
from typing import Any

from analysis.compare import Criteria, Holdout, Refit
from analysis.laws import FlopsPerToken
from analysis.load import Study
from analysis.solve import DELTA, Fit
from analysis.uncertainty import (
    METHOD,
    Design,
    Draws,
    Interval,
    LackOfFit,
    SeedNoise,
    variance_components,
)

SCHEMA = "fits/1"


@dataclass(frozen=True)
class LawResult:
    """One law, fitted: values, intervals, criteria, and whether to believe it."""

    fit: Fit
    draws: Draws
    design: Design
    intervals: dict[str, Interval]
    criteria: Criteria
    holdout_error: float | None
    lack_of_fit: LackOfFit | None
    trust: str
    trust_reasons: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.fit.law.name

    @property
    def a(self) -> float:
        return float(self.fit.law.allocation_exponent(self.fit.theta))

    @property
    def identified(self) -> bool:
        """Whether a and every parameter that is not fixed have at least one closed end."""
        return all(i.low is not None or i.high is not None for i in self.intervals.values())


@dataclass(frozen=True)
class Allocation:
    """Compute-optimal N*, D*, L* at one compute budget; None where `note` refuses a number."""

    flops: float
    N: float | None
    D: float | None
    L: float | None
    N_interval: Interval
    D_interval: Interval
    L_interval: Interval
    extrapolated: bool
    note: str | None


@dataclass(frozen=True)
class Analysis:
    """Everything the reports print, computed once."""

    study: Study
    level: float
    noise: SeedNoise
    results: tuple[LawResult, ...]
    selected: str
    selected_by: str
    flops: FlopsPerToken
    optimal: tuple[Allocation, ...]
    holdout: Holdout | None
    holdout_intervals: tuple[Interval, ...]
    sensitivity: tuple[Refit, ...]

    @property
    def chosen(self) -> LawResult:
        """The law that the headline speaks of."""
        return next(r for r in self.results if r.name == self.selected)


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The fits.json of the data contract: full precision, open ends null, never NaN or Infinity."""
    study = analysis.study
    return _finite(
        {
            "schema": SCHEMA,
            "source": study.source,
            "units": study.units,
            "notes": list(study.notes),
            "excluded": list(study.excluded),
            "flagged": list(study.flagged),
            "noise": {
                "sigma": analysis.noise.sigma,
                "df_rows": analysis.noise.df_rows,
                "df_trunks": analysis.noise.df_trunks,
                "max_seeds": analysis.noise.max_seeds,
            },
            "fits": [_law_json(analysis, r) for r in analysis.results],
            "selected": analysis.selected,
            "selected_by": analysis.selected_by,
            "flops": analysis.flops.label,
            "optimal": [_allocation_json(a) for a in analysis.optimal],
        }
    )


def _law_json(analysis: Analysis, result: LawResult) -> dict[str, Any]:
    fit, test = result.fit, result.lack_of_fit
    certificate = fit.certificate
    return {
        "law": result.name,
        "formula": fit.law.formula,
        "estimator": "huber",
        "parameters": fit.parameters,
        "fixed": dict(fit.fixed),
        "a": result.a,
        "level": analysis.level,
        "interval_method": METHOD,
        "intervals": {k: [i.low, i.high] for k, i in result.intervals.items()},
        "interval_notes": {k: i.note for k, i in result.intervals.items() if i.note},
        "other_intervals": {},
        "df": {"trunks": result.design.df_size, "seed_noise": analysis.noise.df_trunks},
        "variance": variance_components(fit, analysis.study.train),
        "objective": fit.objective,
        "huber_objective": fit.objective,
        "huber_delta": DELTA,
        "residual_rms": fit.rms,
        "lack_of_fit": None
        if test is None
        else {"F": test.F, "df": list(test.df), "p": test.p, "rejected": test.rejected},
        "certificate": {
            "gradient": certificate.gradient,
            "decrement": certificate.decrement,
            "optima": certificate.optima,
            "condition": certificate.condition,
        },
        "n_rows": len(fit.residuals),
        "n_trunks": result.design.trunks,
        "aic": result.criteria.aic,
        "bic": result.criteria.bic,
        "holdout": _holdout_json(analysis, result),
        "status": fit.status,
        "trust": result.trust,
        "trust_reason": "; ".join(result.trust_reasons),
    }


def _holdout_json(analysis: Analysis, result: LawResult) -> dict[str, Any] | None:
    held = analysis.holdout
    if held is None:
        return None
    return {
        "n_rows": len(held.rows),
        "error": result.holdout_error,
        "baselines": {k: held.error(k) for k in ("largest", "log-linear") if k in held.predictions},
    }


def _allocation_json(row: Allocation) -> dict[str, Any]:
    notes = {
        "params_interval": row.note or row.N_interval.note,
        "tokens_interval": row.note or row.D_interval.note,
        "loss_interval_noise": row.note if row.L is None else row.L_interval.note,
        "loss_interval_misfit": "not estimated: the interval covers noise under the given law",
    }
    return {
        "flops": row.flops,
        "params": row.N,
        "tokens": row.D,
        "loss": row.L,
        "params_interval": [row.N_interval.low, row.N_interval.high],
        "tokens_interval": [row.D_interval.low, row.D_interval.high],
        "loss_interval_noise": [row.L_interval.low, row.L_interval.high],
        "loss_interval_misfit": [None, None],
        "extrapolated": row.extrapolated,
        "interval_notes": {k: v for k, v in notes.items() if v},
    }


def _finite(value: Any) -> Any:
    """The value with every NaN and infinity as null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
