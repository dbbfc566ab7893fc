"""The result in plain sentences: what the fit command and the report say first."""

import re

import numpy as np

from analysis.compare import BASELINES, best_predictor
from analysis.identify import COLLINEAR
from analysis.result import Allocation, Analysis, LawResult
from analysis.sensitivity import Refit
from analysis.uncertainty import FIXED, WIDE_A
from analysis.words import (
    GREEK,
    NBSP,
    amount,
    compute,
    counted,
    number,
    percent,
    probability,
    span,
)

APPROACHES = {
    "approach-1": "1 envelope",
    "approach-2-parabola": "2 parabola",
    "approach-2-akima": "2 Akima",
}

LETTER = re.compile(r"(?<![\w])(E|A|B|P|[αβγ])(?![\w(])")


def level(analysis: Analysis) -> str:
    return f"{100 * analysis.level:g}{NBSP}%"


def formula(result: LawResult) -> str:
    """The law with its numbers in place; a letter stays where the number is not identified."""
    names = {GREEK.get(n, n): n for n in result.law.parameters}

    def shown(match: re.Match[str]) -> str:
        name = names.get(match[1])
        if name is None or why_not(result, name) is not None:
            return match[1]
        return number(result.parameters[name])

    left, right = result.law.formula.split(" = ", 1)
    return f"{left} = {LETTER.sub(shown, right)}"


def why_not(result: LawResult, name: str) -> str | None:
    """The reason why a parameter is not identified, None where it is."""
    interval = result.intervals[name]
    if interval.low is not None or interval.high is not None:
        return None
    note = interval.note or "the interval is open at both ends"
    prefix = "not identified by this design: "
    return note if note.startswith(prefix) else prefix + note


def open_ends(result: LawResult) -> dict[str, list[str]]:
    """Every reason why an interval is open, or doubtful, with the parameters it concerns."""
    found: dict[str, list[str]] = {}
    for name, interval in result.intervals.items():
        why = why_not(result, name)
        if why or interval.note not in (None, FIXED):
            found.setdefault(why or str(interval.note), []).append(name)
    return found


def headline(analysis: Analysis) -> list[str]:
    """What to know first; before all else, that the seed noise rejects the law where it does."""
    result = analysis.chosen
    test, first, verdict = result.lack_of_fit, [], ""
    if test:
        F = f"F({test.df[0]}, {test.df[1]}) = {test.F:.3g}"
        verdict = f"lack of fit {F}, {probability(test.p)}."
    if test and test.rejected:
        first.append(
            f"The {result.name} law is rejected at this noise: its residuals (RMS "
            f"{percent(test.rms)}) exceed the seed noise ({percent(test.sigma)}); {verdict} "
            f"Read it as an approximation good to about {percent(test.rms)}."
        )
    structural = dict.fromkeys(result.design.problems.values())
    if structural:
        named = [GREEK.get(k, k) for k in result.intervals if k in result.design.problems]
        first.append(f"{', '.join(named)}: {next(iter(structural))}.")
    if test and test.weak:
        first.append(
            f"Residual RMS of the {result.name} law is {percent(test.rms)}, seed noise "
            f"{percent(test.sigma)}, but only {counted(test.df[1], 'repeated trunk')} stand behind "
            "that noise: too few to test the law."
        )
    elif test and not test.rejected:
        first.append(
            f"The {result.name} law fits these runs within their seed noise: residual RMS "
            f"{percent(test.rms)}, seed noise {percent(test.sigma)}; {verdict}"
        )
    elif not test:
        first.append(
            f"Residual RMS of the {result.name} law is {percent(result.estimate.rms)}; whether "
            "that is misfit or noise is unknown, because no run was repeated with another seed."
        )
    if not structural:
        first.append(allocation_sentence(analysis))
    more = (holdout_sentence(analysis), rolling_sentence(analysis))
    return first + [sentence for sentence in more if sentence]


def allocation_sentence(analysis: Analysis) -> str:
    """How the compute-optimal size grows, with its interval, or why that cannot be said."""
    result, interval = analysis.chosen, analysis.chosen.intervals["a"]
    if not interval.closed:
        why = why_not(result, "a") or f"{span(interval)} ({interval.note})"
        return f"The allocation exponent a: {why}."
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


def holdout_sentence(analysis: Analysis) -> str | None:
    held, result = analysis.holdout, analysis.chosen
    if held is None:
        return None
    reach = held.rows.N.max() / analysis.study.train.N.max()
    others = ", ".join(f"{percent(e)} for {BASELINES[k]}" for k, e in held.baselines.items())
    runs = counted(len(held.rows), "held-out run")
    return (
        f"On {runs}, up to {reach:.2g} times the largest fitted size, the law's mean error is "
        f"{percent(result.holdout_error)}, against {others}."
    )


def rolling_sentence(analysis: Analysis) -> str | None:
    """Which form predicts dearer runs best from cheaper ones, on these data."""
    best = best_predictor(analysis.rolling)
    if best is None:
        return None
    name, error = best
    own = float(np.mean([o.errors[analysis.selected] for o in analysis.rolling]))
    steps = ", ".join(f"{o.factor}" for o in analysis.rolling)
    text = f"Fitted to runs of {steps} times less compute, "
    name = {"default": "the default prediction"}.get(name, name)
    if name == analysis.selected:
        return f"{text}{name} predicts the rest best of all forms (mean error {percent(error)})."
    return (
        f"{text}{name} predicts the rest best (mean error {percent(error)}), {analysis.selected} "
        f"with {percent(own)}."
    )


def next_steps(analysis: Analysis) -> list[str]:
    """What to run next, from the diagnosis; the most useful first."""
    result, train = analysis.chosen, analysis.study.train
    design, noise, steps = result.design, analysis.noise, []
    if design.spread < COLLINEAR and design.sizes > 1 and design.horizons > 1:
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
    elif result.holdout_error is not None and result.holdout_error > min(held.baselines.values()):
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


def refit_name(refit: Refit) -> str:
    """What was changed, in words: `without N = 64k`."""
    if refit.kind in ("N", "D", "C"):
        show = compute if refit.kind == "C" else amount
        return f"without {refit.kind} = {show(float(refit.what))}"
    return refit.what


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
