"""The whole result as plain text: what the fit command prints."""

import textwrap

from analysis.certificate import SINGULAR
from analysis.compare import BASELINES
from analysis.describe import (
    APPROACHES,
    allocation_cells,
    headline,
    level,
    next_steps,
    open_ends,
    why_not,
)
from analysis.load import reason_counts
from analysis.result import Analysis, Default, LawResult
from analysis.trust import APART
from analysis.words import GREEK, NBSP, compute, counted, number, percent, span


def text_report(analysis: Analysis) -> str:
    """The whole result as plain text, at most 100 columns wide."""
    study, result = analysis.study, analysis.chosen
    design, lines = result.design, []
    held = f", {int(study.holdout.sum())} held out" if study.holdout.any() else ""
    lines.append(
        f"{study.name}: {counted(len(study.train), 'row')} fitted "
        f"({counted(design.trunks, 'trunk')}, {counted(design.sizes, 'size')}, "
        f"{counted(design.horizons, 'horizon')}){held}, {len(study.excluded)} left out"
    )
    lines += _wrap(f"N {study.units['N']}, D {study.units['D']}, C {study.units['C']}, "
                   f"L {study.units['L']}")  # fmt: skip
    lines += [line for note in study.notes for line in _wrap(note)]
    lines += ["", *[line for s in headline(analysis) for line in _wrap(s)]]
    lines += [f"trust: {result.trust}", *(f"  - {r}" for r in _wrapped(result.trust_reasons))]
    lines += ["", *law_block(analysis, result)]
    lines += ["", "forms compared (lower is better; AIC and BIC: Gaussian noise on log loss)"]
    lines.append(
        f"  {'law':<17}{'AIC':>10}{'BIC':>10}{'RMS':>10}{'hold-out':>11}{'trust':>9}"
        "   Huber objective"
    )
    for r in analysis.results:
        lines.append(
            f"  {r.name:<17}{r.criteria.aic:>10.1f}{r.criteria.bic:>10.1f}"
            f"{percent(r.estimate.rms):>10}{percent(r.holdout_error):>11}{r.trust:>9}"
            f"   {r.fit.objective:.4e}"
        )
    lines += _wrap(f"  selected: {analysis.selected} ({analysis.selected_by})", "    ")
    if analysis.rolling:
        lines += ["", *rolling_block(analysis)]
    if analysis.holdout is not None:
        lines += ["", "held-out runs, mean error"]
        for name in analysis.holdout.predictions:
            label = BASELINES.get(name, f"{name} law")
            lines.append(f"  {label:<52}{percent(analysis.holdout.error(name)):>9}")
        lines += [f"  ({note})" for note in analysis.holdout.notes]
    if analysis.approaches:
        lines += ["", *approach_block(analysis)]
    lines += ["", f"compute-optimal allocation ({level(analysis)} intervals, noise only)"]
    lines.append(f"  FLOPs per token: {analysis.flops.label}")
    lines.append(f"  {'C (FLOPs)':<11}{'N*':<26}{'D*':<26}L* (nats/token)")
    for row in analysis.optimal:
        c, n, d, loss = allocation_cells(row)
        mark = " *" if row.extrapolated else ""
        lines.append(f"  {c + mark:<11}{n:<26}{d:<26}{loss}")
    lines += [line for note in _notes(analysis) for line in _wrap("  " + note)]
    if analysis.default is not None:
        lines += ["", *default_block(analysis, analysis.default)]
    if study.excluded:
        lines += ["", "left out"]
        for reason, count in reason_counts(study.excluded).items():
            lines.append(f"  {count:>4}  {reason}")
    if study.flagged:
        flags: dict[str, int] = {}
        for f in study.flagged:
            flags[f["flag"]] = flags.get(f["flag"], 0) + 1
        lines.append("flagged: " + ", ".join(f"{n} {name}" for name, n in flags.items()))
    lines += ["", "what to run next"]
    lines += [line for step in next_steps(analysis) for line in _wrap("  - " + step, "    ")]
    lines.append(f"  report: python -m analysis.report {study.source}")
    return "\n".join(line.rstrip() for line in lines).replace(NBSP, " ") + "\n"


def law_block(analysis: Analysis, result: LawResult) -> list[str]:
    """Values with intervals, and the certificate, of one law."""
    fit, estimate = result.fit, result.estimate
    names = {"gls-reml": "random-trunk model, REML", "huber": "Huber on log loss"}
    lines = [f"{result.name}: {result.law.formula}   ({names[estimate.estimator]})"]
    others = list(result.other_intervals)
    heads = "".join(f"{name:<23}" for name in (estimate.method, *others))
    lines.append(f"  {level(analysis) + ' intervals':<23}{heads}".rstrip())
    for name, interval in result.intervals.items():
        value = result.a if name == "a" else result.parameters[name]
        shown = number(value) if why_not(result, name) is None else "–"
        cells = [span(interval), *(span(result.other_intervals[m][name]) for m in others)]
        lines.append(f"  {name:<8}{shown:>12}   " + "".join(f"{c:<23}" for c in cells))
    for why, which in open_ends(result).items():
        lines += _wrap(f"  {', '.join(which)}: {why}", "    ")
    gls = estimate.gls
    if estimate.estimator == "gls-reml":
        df = ", ".join(f"{k} {result.df[k]:.1f}" for k in ("alpha", "beta", "a") if k in result.df)
        lines.append(
            f"  noise: trunks {percent(gls.trunk_sd)}, rows {percent(gls.row_sd)} of the loss; "
            f"df {df}"
        )
    apart = {k: v for k, v in result.apart.items() if v > APART}
    if apart:
        told = ", ".join(f"{k} by {v:.1f}" for k, v in apart.items())
        lines += _wrap(f"  Huber and GLS estimates differ, in standard errors: {told}", "    ")
    lines += _wrap(f"  Huber optimum: {fit.status}", "    ")
    c = fit.certificate
    lines.append(
        f"  scaled gradient {'< 1e-8' if c.gradient < 1e-8 else f'{c.gradient:.0e}'}, "
        f"Hessian condition {'above 1e12' if c.condition > SINGULAR else f'{c.condition:.0e}'}, "
        f"objective {fit.objective:.4g}"
    )
    return lines


def rolling_block(analysis: Analysis) -> list[str]:
    """Mean error of every form on the rows beyond C_max/k, fitted below it."""
    names = [r.name for r in analysis.results]
    if any("default" in o.errors for o in analysis.rolling):
        names.append("default")
    wide = [max(len(n) + 2, 10) for n in names]
    lines = ["cheap runs predict dear ones: mean error of each form, fitted below C_max/k"]
    lines.append(
        f"  {'k':<5}{'fitted':>7}{'predicted':>10}"
        + "".join(f"{n:>{w}}" for n, w in zip(names, wide, strict=True))
    )
    for o in analysis.rolling:
        cells = "".join(
            f"{percent(o.errors.get(n)):>{w}}" for n, w in zip(names, wide, strict=True)
        )
        lines.append(f"  {o.factor:<5}{o.n_fitted:>7}{o.n_predicted:>10}{cells}")
    return lines


def approach_block(analysis: Analysis) -> list[str]:
    """Approaches 1 and 2 beside the law: exponent of N* over C, and their bias if the law holds."""
    lines = [f"three approaches: exponent of N* over C ({level(analysis)} intervals, noise only)"]
    result = analysis.chosen
    own = why_not(result, "a")
    lines.append(
        f"  {'3 ' + result.name:<24}{number(result.a) if own is None else '–':>8}   "
        f"{span(result.intervals['a'])}"
    )
    for beside in analysis.approaches:
        found = beside.approach
        label = APPROACHES[found.method]
        if found.a is None or found.params is None:
            first, *more = _wrap(str(found.reason), width=60)
            lines += [f"  {label:<24}{'–':>8}   {first}", *(" " * 37 + line for line in more)]
            continue
        ends = found.params.interval
        text = f"{number(ends[0])} to {number(ends[1])}" if ends else "no interval"
        if beside.bias is not None and beside.bias.a is not None:
            text += f"   bias {beside.bias.a:+.3f} if the law holds"
        refused = len(found.curves) - len(found.used)
        if refused:
            text += f"   {refused} of {len(found.curves)} curves refused"
        lines.append(f"  {label:<24}{number(found.a):>8}   {text}")
    return lines


def default_block(analysis: Analysis, default: Default) -> list[str]:
    """The default prediction beside the headline law's, and what the prior did."""
    shown = level(analysis)
    lines = [f"default prediction: γ law, {default.why}"]
    if default.prior:
        moved = ", ".join(f"{GREEK.get(k, k)} {v:+.1f}" for k, v in default.shift.items())
        lines += _wrap(
            f"  the prior moved {moved} standard errors; prior against data p = "
            f"{default.conflict:.2g}",
            "    ",
        )
    lines.append(
        f"  {'C (FLOPs)':<11}{'L':<8}{shown + ' noise':<18}{shown + ' with misfit':<19}"
        f"{'no prior':<10}{analysis.selected}"
    )
    for f in default.forecasts:
        lines.append(
            f"  {compute(f.flops) + (' *' if f.extrapolated else ''):<11}{number(f.L):<8}"
            f"{span(f.noise):<18}{span(f.misfit):<19}{number(f.plain):<10}{number(f.selected)}"
        )
    return lines


def _notes(analysis: Analysis) -> list[str]:
    notes = []
    if any(row.extrapolated for row in analysis.optimal):
        notes.append("* beyond the measured compute: holds only if the law goes on")
    return notes + list(dict.fromkeys(row.note for row in analysis.optimal if row.note))


def _wrapped(texts: tuple[str, ...]) -> list[str]:
    return ["\n    ".join(_wrap(t, width=94)) for t in texts]


def _wrap(text: str, indent: str = "", width: int = 98) -> list[str]:
    """Lines of at most `width`; all but the first begin with `indent`, or as the text does."""
    lead = text[: len(text) - len(text.lstrip())]
    return textwrap.wrap(
        text, width, subsequent_indent=indent or lead, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
