"""From a study to its result: every law fitted, one selected, judged, and set beside its rivals."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from analysis import bootstrap, compare
from analysis.allocate import allocations, beside
from analysis.flops import FlopsPerToken
from analysis.forecast import default, default_fit, far_interval
from analysis.gls import GlsFit, fit_gls
from analysis.identify import diagnose
from analysis.interval import Interval
from analysis.law import Law
from analysis.laws import DATA_CONSTRAINED, LAWS, law_named
from analysis.load import MIN_ROWS, Study
from analysis.noise import SeedNoise, lack_of_fit, seed_noise
from analysis.repetition import by_passes, reuse_notes
from analysis.result import Analysis, LawResult
from analysis.rows import Rows
from analysis.sensitivity import leverage, sensitivity
from analysis.solve import Fit, fit_law
from analysis.targets import Target
from analysis.trust import judge
from analysis.uncertainty import (
    ESTIMATORS,
    MAX_CLUSTERS,
    Estimate,
    disagreement,
    parameter_intervals,
    parameter_targets,
)

SUPPORT = 10  # AIC above the best form's at which a form counts as unsupported
FEWER = 5  # laws that are not the headline have this many times fewer resamples


def analyse(
    study: Study,
    *,
    law: str | None = None,
    fixed: Mapping[str, float] | None = None,
    estimator: str | None = None,
    level: float = 0.9,
    resamples: int | None = None,
) -> Analysis:
    """Fit all laws to the rows that are not held out; `law` overrides the selection.

    `fixed` values apply to every law that has the parameter. ValueError for an unknown law,
    parameter or estimator, or a level outside (0, 1).
    """
    resamples = resamples or bootstrap.RESAMPLES
    if not 0 < level < 1:
        raise ValueError(f"--level {level}: a confidence level lies between 0 and 1, e.g. 0.9")
    if estimator not in (None, *ESTIMATORS):
        raise ValueError(f"--estimator {estimator}: choose from {', '.join(ESTIMATORS)}")
    wanted = law_named(law) if law else None
    laws = _laws(study, wanted)
    fixed = dict(fixed or {})
    known = dict.fromkeys(p for x in ([wanted] if wanted else laws) for p in x.parameters)
    for name in fixed:
        if name not in known:
            raise ValueError(f"--fix {name}: no such parameter; choose from {', '.join(known)}")
    held = {x.name: {k: v for k, v in fixed.items() if k in x.parameters} for x in laws}

    train, test = study.train, study.test
    noise, flops = seed_noise(train), _flops(study)
    fits, trunks = {}, {}
    for x in laws:
        X = train.variables(x.variables)
        fits[x.name] = fit_law(x, X, train.L, fixed=held[x.name])
        trunks[x.name] = fit_gls(x, X, train.L, train.trunk, fits[x.name].rivals, held[x.name])
    several = len(np.unique(train.trunk)) < len(train)
    by = estimator or ("gls-reml" if several else "huber")
    theta = {n: (fits if by == "huber" else trunks)[n].theta for n in fits}
    outside = compare.holdout(
        {x.name: x.loss(theta[x.name], *test.variables(x.variables)) for x in laws}, train, test
    )
    criteria = {name: compare.criteria(gls) for name, gls in trunks.items()}
    design = diagnose(train, laws[0], fixed)
    selected, why = _select(laws, criteria, outside, bool(design.problems.get("a")), wanted)
    population = default_fit(study, train, fixed)
    far = far_interval(population, train, flops, level)
    results = []
    for x in laws:
        count = resamples if x.name == selected else max(resamples // FEWER, 100)
        if x.name != selected and (by != "huber" or len(train) * resamples > bootstrap.WORK):
            count = 0
        estimate = _estimate(fits[x.name], trunks[x.name], train, by, held[x.name], count)
        results.append(
            _law_result(
                fits[x.name], estimate, criteria[x.name], train, outside, noise, flops, level, far
            )
        )
    chosen = next(r for r in results if r.name == selected)
    law_of, at = chosen.law, held[selected]
    optimal = allocations(chosen, train, flops, level)
    top = 10 * float(train.C.max())
    return Analysis(
        study=study,
        level=level,
        noise=noise,
        results=tuple(results),
        selected=selected,
        selected_by=why,
        flops=flops,
        optimal=optimal,
        default=default(study, population, chosen, [row.flops for row in optimal], flops, level),
        holdout=outside,
        holdout_intervals=_prediction_intervals(chosen, test, flops, level),
        rolling=_rolling(study, laws, held, by, fixed),
        approaches=beside(chosen, train, noise, flops, level),
        sensitivity=sensitivity(study, law_of, chosen.theta, at, by, flops),
        leverage=leverage(trunks[selected], flops, top),
    )


def _laws(study: Study, wanted: Law | None) -> tuple[Law, ...]:
    """All laws that the rows can carry, the one asked for among them."""
    rows = len(study.train)
    laws = tuple(x for x in LAWS if len(x.parameters) < rows)
    U = study.train.U
    if U is not None and bool((study.train.D > U * (1 + 1e-9)).any()):
        laws = (*laws, DATA_CONSTRAINED)
    return laws if wanted is None or wanted in laws else (*laws, wanted)


def _rolling(
    study: Study, laws: Sequence[Law], held: Mapping[str, Mapping[str, float]], estimator: str,
    fixed: Mapping[str, float],
) -> tuple[compare.Origin, ...]:  # fmt: skip
    """The rolling-origin table of all laws, and of the default prediction."""
    table = []
    for origin in compare.rolling(laws, study.rows, held, estimator, MIN_ROWS):
        inside = study.rows.C * origin.factor <= study.rows.C.max()
        part, rest = study.rows.take(inside), study.rows.take(~inside)
        fit = default_fit(study, part, fixed)
        errors = dict(origin.errors)
        if fit is not None:
            L = fit.predict(rest.N, rest.D, np.log(rest.C), 0.9)[0]
            errors["default"] = compare.mean_error(L, rest.L)
        table.append(replace(origin, errors=errors))
    return tuple(table)


def _flops(study: Study) -> FlopsPerToken:
    if study.is_sweep and study.flops_known:
        rows, label = study.rows, f"from the runs, {study.units['C']}"
        return FlopsPerToken.from_rows(rows.N, rows.D, rows.C, label)
    return FlopsPerToken()


def _estimate(
    fit: Fit, gls: GlsFit, train: Rows, estimator: str, fixed: Mapping[str, float], resamples: int
) -> Estimate:
    design = diagnose(train, fit.law, fixed)
    draws = bootstrap.bootstrap(fit, train, resamples) if resamples else None
    chosen = fit if estimator == "huber" else gls
    return Estimate(fit.law, estimator, chosen.theta, chosen.residuals, fixed, design, gls, draws)


def _law_result(
    fit: Fit, estimate: Estimate, criteria: compare.Criteria, train: Rows,
    held: compare.Holdout | None, noise: SeedNoise, flops: FlopsPerToken, level: float,
    far: Interval | None,
) -> LawResult:  # fmt: skip
    law = fit.law
    intervals = parameter_intervals(estimate, flops, level)
    if law is DATA_CONSTRAINED:
        X = train.variables(law.variables)
        notes = reuse_notes(fit, by_passes(fit, X, train.L), intervals)
        intervals |= {name: Interval(None, None, note) for name, note in notes.items()}
    others = {"reml-profile-t", "trunk-bootstrap", "cr2"} - {estimate.method}
    if len(estimate.gls.trunks.count) > MAX_CLUSTERS:
        others -= {"cr2"}
    if estimate.draws is None:
        others -= {"trunk-bootstrap"}
    if estimate.estimator == "huber":  # every row its own trunk: the model has nothing to add
        others -= {"reml-profile-t"}
    beside = {m: parameter_intervals(estimate, flops, level, m) for m in sorted(others)}
    targets = parameter_targets(law)
    df = dict(zip((t.name for t in targets), estimate.df(targets, flops), strict=True))
    test = lack_of_fit(estimate.residuals, fit.n_free, train, noise)
    error = held.error(law.name) if held else None
    baseline = min(held.baselines.values()) if held else None
    apart = disagreement(fit, estimate)
    trust, reasons = judge(fit, estimate, intervals, df, apart, noise, test, error, baseline, far)
    return LawResult(
        fit, estimate, intervals, beside, df, apart, criteria, error, test, trust, reasons
    )


def _select(
    laws: Sequence[Law], criteria: Mapping[str, compare.Criteria], held: compare.Holdout | None,
    blind: bool, wanted: Law | None,
) -> tuple[str, str]:  # fmt: skip
    """The law of the headline: the user's; the default form while the rows support it; or the best.

    Held-out rows are often one trunk, so their error alone is one draw: it decides only among the
    forms that the fitted rows support (AIC within 10 of the lowest; Burnham & Anderson 2002).
    """
    if wanted:
        return wanted.name, "asked for by --law"
    default = laws[0].name
    if blind:
        return default, "the default form: this design cannot tell forms apart"
    lowest = min(criteria, key=lambda n: criteria[n].aic)
    gap = criteria[default].aic - criteria[lowest].aic
    if gap <= SUPPORT:
        return default, f"the default form; no form fits better by more than {SUPPORT} AIC"
    supported = [n for n, c in criteria.items() if c.aic - criteria[lowest].aic <= SUPPORT]
    beaten = f"{default} fits worse than {lowest} by {gap:.0f} AIC"
    if held is None or len(supported) == 1:
        return lowest, f"lowest AIC; {beaten}"
    best = min(supported, key=held.error)
    return best, f"lowest hold-out error among forms within {SUPPORT} AIC of the best; {beaten}"


def _prediction_intervals(
    result: LawResult, test: Rows, flops: FlopsPerToken, level: float
) -> tuple[Interval, ...]:
    """Interval of the law's own value at each held-out row (noise of the fitted runs only)."""
    points = zip(*test.variables(result.law.variables), strict=True)
    targets = [Target("L", "loss", tuple(map(float, at))) for at in points]
    return tuple(result.estimate.intervals(targets, flops, level)) if targets else ()
