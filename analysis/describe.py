"""The result in plain sentences and plain text: what the fit command and the report print."""

import math

import numpy as np

from analysis.compare import BASELINES
from analysis.laws import SumLaw
from analysis.load import reason_counts
from analysis.result import Allocation, Analysis, LawResult
from analysis.solve import SINGULAR
from analysis.uncertainty import WIDE_A, Interval

NBSP = "\u00a0"  # keeps a number and its unit on one line
GREEK = {"alpha": "α", "beta": "β"}


def number(x: float | None) -> str:
    """Four significant digits, enough to read and few enough to be the same everywhere."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{x:#.4g}".rstrip(".")


def amount(x: float | None) -> str:
    """A count in engineering letters: 64.1k, 3M, 1.4B."""
    if x is None or not math.isfinite(x):
        return "–"
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= x < 1e15:
            return f"{x / size:.3g}{letter}"
    return f"{x:.3g}"


def compute(x: float) -> str:
    """FLOPs with two digits: 7.1e10."""
    return f"{x:.1e}".replace("e+", "e")


def percent(x: float | None) -> str:
    """A fraction as per cent with two decimals (one above 10 %)."""
    if x is None or not math.isfinite(x):
        return "–"
    return f"{100 * x:.1f}{NBSP}%" if abs(x) >= 0.1 else f"{100 * x:.2f}{NBSP}%"


def level(analysis: Analysis) -> str:
    return f"{100 * analysis.level:g}{NBSP}%"


def probability(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def span(interval: Interval, show=number) -> str:
    """An interval in words: `1.2 to 1.4`, `at most 1.9`, or why there is none."""
    if interval.low is not None and interval.high is not None:
        if interval.note == "fixed by the user":
            return "fixed"
        return f"{show(interval.low)} to {show(interval.high)}"
    if interval.high is not None:
        return f"at most {show(interval.high)}"
    if interval.low is not None:
        return f"at least {show(interval.low)}"
    return "not identified"


def formula(law: SumLaw, result: LawResult) -> str:
    """The law with its numbers in place; a letter stays where the number is not identified."""
    p, parts = result.fit.parameters, []

    def shown(name: str) -> str:
        return number(p[name]) if why_not(result, name) is None else GREEK.get(name, name)

    for term in law.terms:
        text = shown(term.coefficient)
        if term.exponent:
            text += f"·{term.variable}^-{shown(term.exponent)}"
        parts.append(text)
    return "L(N, D) = " + " + ".join(parts)


def why_not(result: LawResult, name: str) -> str | None:
    """The reason why a parameter is not identified, None where it is."""
    interval = result.intervals[name]
    if interval.low is not None or interval.high is not None:
        return None
    note = interval.note or "the interval is open at both ends"
    prefix = "not identified by this design: "
    return note if note.startswith(prefix) else prefix + note


def headline(analysis: Analysis) -> list[str]:
    """What to know first; before all else, that the seed noise rejects the law where it does."""
    result = analysis.chosen
    test, fit = result.lack_of_fit, result.fit
    first = []
    if test and test.rejected:
        first.append(
            f"The {result.name} law is rejected at this noise: its residuals (RMS "
            f"{percent(test.rms)}) exceed the seed noise ({percent(test.sigma)}); lack of fit "
            f"F({test.df[0]}, {test.df[1]}) = {test.F:.3g}, {probability(test.p)}. "
            f"Read it as an approximation good to about {percent(test.rms)}."
        )
    structural = dict.fromkeys(result.design.problems.values())
    if structural:
        named = [GREEK.get(k, k) for k in result.intervals if k in result.design.problems]
        first.append(f"{', '.join(named)}: {next(iter(structural))}.")
    if test and test.weak:
        first.append(
            f"Residual RMS of the {result.name} law is {percent(test.rms)}, seed noise "
            f"{percent(test.sigma)}, but only {test.df[1]} repeated "
            f"{'trunk' if test.df[1] == 1 else 'trunks'} stand behind that noise: too few to test "
            "the law."
        )
    elif test and not test.rejected:
        first.append(
            f"The {result.name} law fits these runs within their seed noise: residual RMS "
            f"{percent(test.rms)}, seed noise {percent(test.sigma)}; lack of fit "
            f"F({test.df[0]}, {test.df[1]}) = {test.F:.3g}, {probability(test.p)}."
        )
    elif not test:
        first.append(
            f"Residual RMS of the {result.name} law is {percent(fit.rms)}; whether that is misfit "
            "or noise is unknown, because no run was repeated with another seed."
        )
    if not structural:
        first.append(allocation_sentence(analysis))
    held = holdout_sentence(analysis)
    return first + ([held] if held else [])


def allocation_sentence(analysis: Analysis) -> str:
    """How the compute-optimal size grows, with its interval, or why that cannot be said."""
    result, interval = analysis.chosen, analysis.chosen.intervals["a"]
    if not interval.closed:
        return f"The allocation exponent a: {why_not(result, 'a') or half_open(interval)}."
    if interval.width > WIDE_A:
        return (
            f"The allocation exponent a is not identified by this design: its "
            f"{level(analysis)} interval, {span(interval)}, is wider than {WIDE_A}; "
            "train over a wider range of sizes or add seeds at the smallest ones."
        )
    return (
        f"The compute-optimal size grows about as C^{number(result.a)} "
        f"({level(analysis)} interval {span(interval)})."
    )


def half_open(interval: Interval) -> str:
    return f"{span(interval)} ({interval.note})"


def holdout_sentence(analysis: Analysis) -> str | None:
    held, result = analysis.holdout, analysis.chosen
    if held is None:
        return None
    reach = held.rows.N.max() / analysis.study.train.N.max()
    others = ", ".join(
        f"{percent(held.error(k))} for {v}" for k, v in BASELINES.items() if k in held.predictions
    )
    runs = f"{len(held.rows)} held-out run{'s' if len(held.rows) > 1 else ''}"
    return (
        f"On {runs}, up to {reach:.2g} times the largest fitted size, the law's mean error is "
        f"{percent(result.holdout_error)}, against {others}."
    )


def next_steps(analysis: Analysis) -> list[str]:
    """What to run next, from the diagnosis; the most useful first."""
    result, train = analysis.chosen, analysis.study.train
    design, noise, steps = result.design, analysis.noise, []
    if design.spread < 0.1 and design.sizes > 1 and design.horizons > 1:
        steps.append(
            "Break the tie between N and D: train each size at four or more horizons, D/N from "
            "about 5 to 80; as branches of one trunk the shorter horizons cost little more than "
            "their cooldowns."
        )
    if design.sizes < 5:
        steps.append(
            f"Add sizes: {design.sizes} now, 5 or more over at least one decade of N are needed "
            "before an exponent of N can be trusted."
        )
    elif design.decades_n < 1.5:
        steps.append(
            f"Widen the range of sizes: it spans {design.decades_n:.2g} decades of N. Range beats "
            "seeds: 2.5 instead of 1.5 decades halve every interval on the N side."
        )
    if design.horizons < 3:
        steps.append("Add horizons: three or more distinct token budgets, best as branches.")
    if noise.max_seeds < 3 or noise.df_trunks < 3:
        cheap = ", ".join(
            amount(float(np.median(train.N[train.size == k]))) for k in range(min(design.sizes, 3))
        )
        steps.append(
            f"Repeat the cheapest sizes (N = {cheap}) with 3 seeds: about 3 % more compute, and it "
            "is the only way to tell misfit from noise."
        )
    test = result.lack_of_fit
    if test and test.rejected:
        steps.append(
            "Look at the residual figure for a pattern: one size off the line points at its "
            "learning rate or at a shape that breaks the ladder (depth, head size); a bend over N "
            "or D points at the form of the law. Refit without that size before training more."
        )
    if "E" in result.fit.at_limit:
        steps.append(
            "E vanishes in the fit: the runs are too far from the floor to see it. Train longer "
            "horizons and larger sizes, or fix it with --fix E=VALUE where the entropy is known."
        )
    held = analysis.holdout
    if held is None:
        steps.append(
            "Hold out the runs of one size at least 1.6 times the largest fitted one "
            "(`holdout` in the grid): only a prediction of unseen runs tests the law."
        )
    elif result.holdout_error is not None:
        best = min(held.error(k) for k in BASELINES if k in held.predictions)
        if result.holdout_error > best:
            steps.append(
                "A baseline predicts the held-out runs better than the law: do not extrapolate "
                "further than the hold-out before sizes in between are trained."
            )
    if not steps:
        far = analysis.optimal[-1]
        if far.N is not None and far.D is not None and far.L is not None:
            steps.append(
                f"Test the law where it matters: train N = {amount(far.N)} on D = {amount(far.D)} "
                f"tokens ({compute(far.flops)} FLOPs); it predicts {number(far.L)} nats/token "
                f"({span(far.L_interval)} from noise alone)."
            )
    return steps


def allocation_cells(row: Allocation) -> tuple[str, str, str, str]:
    """C, N*, D*, L* of one budget as text."""
    if row.N is None or row.D is None:
        loss = "–" if row.L is None else f"{number(row.L)} ({span(row.L_interval)})"
        return compute(row.flops), "not identified", "not identified", loss
    return (
        compute(row.flops),
        f"{amount(row.N)} ({span(row.N_interval, amount)})",
        f"{amount(row.D)} ({span(row.D_interval, amount)})",
        f"{number(row.L)} ({span(row.L_interval)})",
    )


def text_report(analysis: Analysis) -> str:
    """The whole result as plain text, at most 100 columns wide."""
    study, result = analysis.study, analysis.chosen
    design, lines = result.design, []
    held = f", {int(study.holdout.sum())} held out" if study.holdout.any() else ""
    lines.append(
        f"{study.name}: {len(study.train)} rows fitted ({design.trunks} trunks, {design.sizes} "
        f"sizes, {design.horizons} horizons){held}, {len(study.excluded)} left out"
    )
    lines += _wrap(f"N {study.units['N']}, D {study.units['D']}, C {study.units['C']}, "
                   f"L {study.units['L']}")  # fmt: skip
    lines += [line for note in study.notes for line in _wrap(note)]
    lines += ["", *[line for s in headline(analysis) for line in _wrap(s)]]
    lines += [f"trust: {result.trust}", *(f"  - {r}" for r in _wrapped(result.trust_reasons))]
    lines += ["", *law_block(analysis, result)]
    lines += ["", "forms compared (lower is better; AIC and BIC: Gaussian noise on log loss)"]
    lines.append(
        f"  {'law':<12}{'AIC':>10}{'BIC':>10}{'RMS':>10}{'hold-out':>11}   Huber objective"
    )
    for r in analysis.results:
        lines.append(
            f"  {r.name:<12}{r.criteria.aic:>10.1f}{r.criteria.bic:>10.1f}"
            f"{percent(r.fit.rms):>10}{percent(r.holdout_error):>11}   {r.fit.objective:.4e}"
        )
    lines += _wrap(f"  selected: {analysis.selected} ({analysis.selected_by})", "    ")
    if analysis.holdout is not None:
        lines += ["", "held-out runs, mean error"]
        for name in analysis.holdout.predictions:
            label = BASELINES.get(name, f"{name} law")
            lines.append(f"  {label:<52}{percent(analysis.holdout.error(name)):>9}")
        lines += [f"  ({note})" for note in analysis.holdout.notes]
    lines += ["", f"compute-optimal allocation ({level(analysis)} intervals, noise only)"]
    lines.append(f"  FLOPs per token: {analysis.flops.label}")
    lines.append(f"  {'C (FLOPs)':<11}{'N*':<26}{'D*':<26}L* (nats/token)")
    for row in analysis.optimal:
        c, n, d, loss = allocation_cells(row)
        mark = " *" if row.extrapolated else ""
        lines.append(f"  {c + mark:<11}{n:<26}{d:<26}{loss}")
    lines += [line for note in _notes(analysis) for line in _wrap("  " + note)]
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
    fit, lines = result.fit, [f"{result.name}: {result.fit.law.formula}   (Huber on log loss)"]
    lines.append(f"  {'':<8}{'value':>12}   {level(analysis)} interval (trunk bootstrap)")
    reasons: dict[str, list[str]] = {}
    for name, interval in result.intervals.items():
        value = result.a if name == "a" else fit.parameters[name]
        why = why_not(result, name)
        shown = number(value) if why is None else "–"
        lines.append(f"  {name:<8}{shown:>12}   {span(interval)}")
        if why or interval.note not in (None, "fixed by the user"):
            reasons.setdefault(why or str(interval.note), []).append(name)
    for why, names in reasons.items():
        lines += _wrap(f"  {', '.join(names)}: {why}", "    ")
    lines += _wrap("  " + fit.status, "    ")
    c = fit.certificate
    lines.append(
        f"  scaled gradient {'< 1e-8' if c.gradient < 1e-8 else f'{c.gradient:.0e}'}, "
        f"Hessian condition {'above 1e12' if c.condition > SINGULAR else f'{c.condition:.0e}'}, "
        f"objective {fit.objective:.4g}"
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
    lines, lead = [], text[: len(text) - len(text.lstrip())]
    current = lead
    for word in text.split(" "):
        if not word:
            continue
        if current.strip() and len(current) + len(word) + 1 > width:
            lines.append(current)
            current = indent or lead
        current += ("" if not current.strip() and current in (lead, indent) else " ") + word
    return [*lines, current]
