"""The tables and cards of the report: result in, cells of text out."""

from collections import Counter

import numpy as np
from markupsafe import Markup

from analysis.describe import APPROACHES, allocation_cells, level, refit_name, why_not
from analysis.drawing import loss_label
from analysis.optima import REASONS
from analysis.plots import REFITS
from analysis.remarks import letter, marked
from analysis.result import Analysis
from analysis.rowtables import Table, best_bold, signed
from analysis.uncertainty import WIDE_A
from analysis.words import amount, compute, number, percent, span


def cards(analysis: Analysis) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the summary at the top."""
    result, study, design = analysis.chosen, analysis.study, analysis.chosen.design
    a = result.intervals["a"]
    unidentified = why_not(result, "a") is not None or a.width > WIDE_A
    noise = f"seed noise {percent(analysis.noise.sigma)}"
    held = f", {len(study.test)} held out" if len(study.test) else ""
    outside = analysis.holdout
    error, remark = "–", "no held-out runs"
    if outside:
        error = percent(result.holdout_error)
        remark = f"best baseline {percent(min(outside.baselines.values()))}"
    return [
        ("trust", result.trust, result.trust_reasons[0]),
        (
            "allocation exponent a",
            "not identified" if unidentified else number(result.a),
            f"{span(a)}, {level(analysis)} interval" if a.closed else "by this design, see below",
        ),
        _far_card(analysis),
        (
            "residual RMS",
            percent(result.estimate.rms),
            noise if analysis.noise.df_rows else "seed noise unknown: no repeats",
        ),
        ("hold-out error", error, remark),
        (
            "runs fitted",
            str(len(study.train)),
            f"{design.trunks} trunks, {design.sizes} sizes, {design.horizons} horizons{held}",
        ),
    ]


def _far_card(analysis: Analysis) -> tuple[str, str, str]:
    """The loss at the largest budget: the default prediction's, else the law's own."""
    if analysis.default and analysis.default.forecasts:
        far = analysis.default.forecasts[-1]
        text = f"{span(far.misfit)}, {level(analysis)} interval with misfit"
        return f"loss at C = {compute(far.flops)}", number(far.L), text
    last = analysis.optimal[-1]
    text = "by this design, see below"
    if last.L is not None:
        text = f"{span(last.L_interval)}, {level(analysis)} interval from noise"
    value = "not identified" if last.L is None else number(last.L)
    return f"loss at C = {compute(last.flops)}", value, text


def parameters(analysis: Analysis) -> Table:
    """Values, the estimator's interval, its degrees of freedom, and the other methods' beside."""
    result, body = analysis.chosen, []
    others, trunks = list(result.other_intervals), result.estimate.estimator == "gls-reml"
    for name, interval in result.intervals.items():
        value = result.a if name == "a" else result.parameters[name]
        known = why_not(result, name) is None
        label = letter(name)
        if name == "a" and {"alpha", "beta"} <= set(result.parameters):
            label += " = β/(α+β)"
        df = (f"{result.df[name]:.1f}" if known and name in result.df else "–",) if trunks else ()
        beside = (span(result.other_intervals[m][name]) for m in others)
        body.append((label, number(value) if known else "–", span(interval), *df, *beside))
    own = f"{level(analysis)} interval ({result.estimate.method})"
    head = ("parameter", "value", own, *(["df"] if trunks else []), *others)
    return Table(head, tuple(body))


def forecasts(analysis: Analysis) -> Table | None:
    """The default prediction at every budget, beside the headline's law and the fit alone."""
    if analysis.default is None:
        return None
    found = analysis.default.forecasts
    return Table(
        ("compute C", "N", "D", "loss", "interval, noise", "interval, with misfit",
         f"{analysis.selected} law", "without prior"),
        tuple(
            (compute(f.flops) + (" †" if f.extrapolated else ""), amount(f.N), amount(f.D),
             Markup("<b>{}</b>").format(number(f.L)), span(f.noise), span(f.misfit),
             number(f.selected), number(f.plain))
            for f in found
        ),
    )  # fmt: skip


def approaches(analysis: Analysis) -> Table:
    """Exponent of N* over C by approaches 3, 1 and 2, and the bias of 1 and 2 under the law."""
    result = analysis.chosen
    own = number(result.a) if why_not(result, "a") is None else "–"
    body: list[tuple[str, ...]] = [
        (f"3 {result.name}", own, span(result.intervals["a"]), "", "", "")
    ]
    for beside in analysis.approaches:
        found, bias = beside.approach, beside.bias
        label = APPROACHES[found.method]
        counted = f"{len(found.used)} of {len(found.curves)}"
        if found.params is None:
            body.append((label, "–", "none", "", "", counted))
            continue
        ends = found.params.interval
        text = f"{number(ends[0])} to {number(ends[1])}" if ends else "no interval"
        told = ("", "")
        if bias is not None and bias.a is not None and why_not(result, "a") is None:
            told = (number(bias.true_a), signed(bias.a, 3))
        body.append((label, number(found.a), text, *told, counted))
    head = (
        "approach",
        "a",
        f"{level(analysis)} interval",
        "law, same curves",
        "bias",
        "curves used",
    )
    return Table(head, tuple(body))


def refusals(analysis: Analysis) -> Table | None:
    """Curves without an optimum, by approach and reason."""
    body = []
    for found in (b.approach for b in analysis.approaches):
        refused = Counter(c.reason for c in found.curves if c.reason)
        for reason, count in refused.most_common():
            C = [c.C for c in found.curves if c.reason == reason]
            at = ", ".join(map(compute, C))
            if len(C) > 4:
                at = f"{compute(min(C))} to {compute(max(C))}"
            label, text = APPROACHES[found.method], REASONS.get(str(reason), str(reason))
            body.append((label, str(reason), f"{count} of {len(found.curves)}", at, text))
    return Table(("approach", "reason", "curves", "at C", "meaning"), tuple(body)) if body else None


def forms(analysis: Analysis) -> Table:
    """Every law side by side."""
    return Table(
        ("law", "form", "AIC", "BIC", "residual RMS", "hold-out error", "trust"),
        tuple(
            (
                r.name + (" (selected)" if r.name == analysis.selected else ""),
                marked(r.law.formula),
                f"{r.criteria.aic:.1f}",
                f"{r.criteria.bic:.1f}",
                percent(r.estimate.rms),
                percent(r.holdout_error),
                r.trust,
            )
            for r in analysis.results
        ),
    )


def rolling(analysis: Analysis) -> Table | None:
    """Mean error on the rows beyond C_max/k of every form, the least of each row bold."""
    if not analysis.rolling:
        return None
    names, body = [r.name for r in analysis.results], []
    for o in analysis.rolling:
        errors = [o.errors.get(name, np.nan) for name in names]
        cells = best_bold([percent(e) for e in errors], errors)
        body.append((str(o.factor), str(o.n_fitted), str(o.n_predicted), *cells))
    return Table(("k", "fitted", "predicted", *names), tuple(body))


def sensitivity(analysis: Analysis) -> list[tuple[str, Table]]:
    """(title, refits) by what was changed: exponents, E, slope a, loss at ten times the compute."""
    result = analysis.chosen
    names = [n for n in ("E", "alpha", "beta", "gamma") if n in result.parameters]
    shown = {n for n in (*names, "a") if why_not(result, n) is None}
    head = ("refit", "rows", *(letter(n) for n in names), "a", "loss at 10×", "hold-out error")
    rows = [
        (r.kind, (marked(refit_name(r)), str(r.n_rows),
                  *(number(r.parameters[n]) if n in shown else "–" for n in names),
                  number(r.a) if "a" in shown else "–", number(r.loss_10x),
                  percent(r.holdout_error)))
        for r in analysis.sensitivity
    ]  # fmt: skip
    groups = [(("fit",), "the fit itself"), *((kinds, title) for kinds, title, _ in REFITS)]
    tables = [(t, Table(head, tuple(c for kind, c in rows if kind in k))) for k, t in groups]
    return [(title, table) for title, table in tables if table.body]


def optimal(analysis: Analysis) -> Table:
    """Compute-optimal allocation by the headline's law."""
    return Table(
        ("compute C (FLOPs)", "size N*", "tokens D*", loss_label(analysis, "loss L*")),
        tuple(
            (cells[0] + (" †" if row.extrapolated else ""), *cells[1:])
            for row in analysis.optimal
            for cells in [allocation_cells(row)]
        ),
    )
