"""fits.json, schema fits/1: full precision, open ends null with their reason, never NaN."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from analysis.interval import Interval
from analysis.result import Allocation, Analysis, Beside, Default, Forecast, LawResult
from analysis.solve import DELTA

SCHEMA = "fits/1"


def write_json(path: Path, value: Any) -> None:
    """Write what `finite` leaves of a value as JSON, whole or not at all."""
    text = json.dumps(finite(value), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(path, text + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that nobody ever reads half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def to_json(analysis: Analysis) -> dict[str, Any]:
    """The fits.json of the data contract."""
    study = analysis.study
    forecasts = {f.flops: f for f in analysis.default.forecasts} if analysis.default else {}
    return finite(
        {
            "schema": SCHEMA,
            "source": study.source,
            "units": study.units,
            "notes": list(study.notes),
            "excluded": list(study.excluded),
            "flagged": list(study.flagged),
            "noise": asdict(analysis.noise),
            "fits": [_law(analysis, r) for r in analysis.results],
            "selected": analysis.selected,
            "selected_by": analysis.selected_by,
            "flops": analysis.flops.label,
            "optimal": [_allocation(a, forecasts.get(a.flops)) for a in analysis.optimal],
            "default": _default(analysis.default),
            "rolling": [asdict(o) for o in analysis.rolling],
            "approaches": [_approach(b) for b in analysis.approaches],
            "sensitivity": [asdict(r) for r in analysis.sensitivity],
            "leverage": None
            if analysis.leverage is None
            else [
                {"row": row, "hat": float(h), "shift_in_se": float(s)}
                for row, h, s in zip(
                    study.used["row"][~study.holdout], analysis.leverage.hat,
                    analysis.leverage.shift, strict=True,
                )
            ],
        }
    )  # fmt: skip


def _law(analysis: Analysis, result: LawResult) -> dict[str, Any]:
    fit, estimate, test = result.fit, result.estimate, result.lack_of_fit
    certificate, gls = fit.certificate, estimate.gls
    several = len(gls.trunks.count) < len(gls.residuals)
    return {
        "law": result.name,
        "formula": result.law.formula,
        "estimator": estimate.estimator,
        "parameters": result.parameters,
        "fixed": dict(estimate.fixed),
        "a": result.a,
        "level": analysis.level,
        "interval_method": estimate.method,
        "intervals": _ends(result.intervals),
        "interval_notes": {k: i.note for k, i in result.intervals.items() if i.note},
        "other_intervals": {m: _ends(found) for m, found in result.other_intervals.items()},
        "df": {
            "trunks": result.design.df_size, "seed_noise": analysis.noise.df_trunks, **result.df
        },
        "variance": {
            "trunk_sd": gls.trunk_sd if several else None,
            "row_sd": gls.row_sd,
            "trunks": len(gls.trunks.count),
        },
        "other_estimate": {
            "estimator": "huber" if estimate.estimator == "gls-reml" else "gls-reml",
            "parameters": result.law.named(
                fit.theta if estimate.estimator == "gls-reml" else gls.theta
            ),
            "apart_in_se": result.apart,
        },
        "objective": fit.objective if estimate.estimator == "huber" else gls.rss,
        "huber_objective": fit.objective,
        "huber_delta": DELTA,
        "residual_rms": estimate.rms,
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
        "holdout": _holdout(analysis, result),
        "status": fit.status,
        "trust": result.trust,
        "trust_reason": "; ".join(result.trust_reasons),
    }  # fmt: skip


def _ends(intervals: dict[str, Interval]) -> dict[str, list[float | None]]:
    return {k: [i.low, i.high] for k, i in intervals.items()}


def _holdout(analysis: Analysis, result: LawResult) -> dict[str, Any] | None:
    held = analysis.holdout
    if held is None:
        return None
    return {
        "n_rows": len(held.rows),
        "error": result.holdout_error,
        "baselines": held.baselines,
    }


def _allocation(row: Allocation, forecast: Forecast | None) -> dict[str, Any]:
    misfit = forecast.misfit if forecast else Interval(None, None, "no default prediction")
    notes = {
        "params_interval": row.note or row.N_interval.note,
        "tokens_interval": row.note or row.D_interval.note,
        "loss_interval_noise": row.note if row.L is None else row.L_interval.note,
        "loss_interval_misfit": misfit.note,
    }
    return {
        "flops": row.flops,
        "params": row.N,
        "tokens": row.D,
        "loss": row.L,
        "loss_default": forecast.L if forecast else None,
        "params_interval": [row.N_interval.low, row.N_interval.high],
        "tokens_interval": [row.D_interval.low, row.D_interval.high],
        "loss_interval_noise": [row.L_interval.low, row.L_interval.high],
        "loss_interval_misfit": [misfit.low, misfit.high],
        "extrapolated": row.extrapolated,
        "interval_notes": {k: v for k, v in notes.items() if v},
    }


def _default(default: Default | None) -> dict[str, Any] | None:
    if default is None:
        return None
    return {
        "law": "gamma",
        "parameters": default.parameters,
        "prior": default.prior,
        "why": default.why,
        "shift_in_se": default.shift,
        "conflict_p": default.conflict,
        "holdout_error": default.holdout_error,
        "forecasts": [
            {"flops": f.flops, "params": f.N, "tokens": f.D, "loss": f.L}
            | {"loss_interval_noise": [f.noise.low, f.noise.high]}
            | {"loss_interval_misfit": [f.misfit.low, f.misfit.high]}
            | {"loss_without_prior": f.plain, "loss_selected_law": f.selected}
            for f in default.forecasts
        ],
    }


def _approach(beside: Beside) -> dict[str, Any]:
    found, bias = beside.approach, beside.bias
    fitted = {
        name: None
        if law is None
        else {"exponent": law.exponent, "log_coefficient": law.intercept}
        | {"interval": list(law.interval) if law.interval else [None, None]}
        for name, law in (("params", found.params), ("tokens", found.tokens))
    }
    return {
        "method": found.method,
        "curves_are": found.kind,
        "a": found.a,
        **fitted,
        "level": found.level,
        "reason": found.reason,
        "notes": list(found.notes),
        "curves": [
            {"flops": c.C, "params": c.N, "tokens": c.D, "loss": c.L, "sd_log_params": c.sd}
            | {"interval": list(c.interval) if c.interval else [None, None], "reason": c.reason}
            for c in found.curves
        ],
        "bias_under_the_fitted_law": None
        if bias is None
        else {"a": bias.a, "params_factor": [list(f) for f in bias.factor]},
    }


def finite(value: Any) -> Any:
    """The value with every NaN and infinity as null, and numpy scalars as Python's."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
