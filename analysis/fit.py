"""Fit every law to a study, compare, judge, and print: `python -m analysis.fit SOURCE`."""

import argparse
import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis import compare, uncertainty
from analysis.describe import text_report
from analysis.laws import LAWS, FlopsPerToken, SumLaw, law_named
from analysis.load import Columns, Rows, Study, load
from analysis.read import DataError
from analysis.result import Allocation, Analysis, LawResult, to_json
from analysis.solve import Fit, fit_law
from analysis.trust import judge
from analysis.uncertainty import WIDE_A, Interval, SeedNoise

SUPPORT = 10  # AIC above the best form's at which a form counts as unsupported


def analyse(
    study: Study,
    *,
    law: str | None = None,
    fixed: Mapping[str, float] | None = None,
    level: float = 0.9,
    resamples: int | None = None,
) -> Analysis:
    """Fit all laws to the rows that are not held out; `law` overrides the selection.

    `fixed` values apply to every law that has the parameter. ValueError for an unknown law or
    parameter, or a level outside (0, 1).
    """
    resamples = resamples or uncertainty.RESAMPLES
    if not 0 < level < 1:
        raise ValueError(f"--level {level}: a confidence level lies between 0 and 1, e.g. 0.9")
    fixed = dict(fixed or {})
    wanted = law_named(law) if law else None
    known = dict.fromkeys(p for x in ([wanted] if wanted else LAWS) for p in x.parameters)
    for name in fixed:
        if name not in known:
            raise ValueError(f"--fix {name}: no such parameter; choose from {', '.join(known)}")
    train, test = study.train, study.test
    noise = uncertainty.seed_noise(train)
    fits = {
        x.name: fit_law(x, train.N, train.D, train.L, fixed=_of(x, fixed)) for x in LAWS
    }  # fmt: skip
    held = compare.holdout(fits, train, test)
    results = tuple(
        _law_result(fits[x.name], train, held, noise, _of(x, fixed), level, resamples) for x in LAWS
    )
    selected, why = _select(results, wanted)
    chosen = next(r for r in results if r.name == selected)
    flops = FlopsPerToken()
    if study.is_sweep and study.flops_known:
        rows, label = study.rows, f"from the runs, {study.units['C']}"
        flops = FlopsPerToken.from_rows(rows.N, rows.D, rows.C, label)
    return Analysis(
        study=study,
        level=level,
        noise=noise,
        results=results,
        selected=selected,
        selected_by=why,
        flops=flops,
        optimal=_allocations(chosen, train, flops, level),
        holdout=held,
        holdout_intervals=_prediction_intervals(chosen, test, level),
        sensitivity=compare.sensitivity(
            chosen.fit.law, train, test, _of(chosen.fit.law, fixed), chosen.fit
        ),
    )


def _of(law: SumLaw, fixed: Mapping[str, float]) -> dict[str, float]:
    return {k: v for k, v in fixed.items() if k in law.parameters}


def _law_result(
    fit: Fit, train: Rows, held: compare.Holdout | None, noise: SeedNoise,
    fixed: Mapping[str, float], level: float, resamples: int,
) -> LawResult:  # fmt: skip
    design = uncertainty.diagnose(train, fit.law, fixed)
    draws = uncertainty.bootstrap(fit, train, resamples)
    intervals = uncertainty.parameter_intervals(draws, design, fixed, level)
    test = uncertainty.lack_of_fit(fit, train, noise)
    error = held.error(fit.law.name) if held else None
    baselines = [held.error(k) for k in compare.BASELINES if k in held.predictions] if held else []
    stalled = float(np.mean(draws.refits.gradient > 1e-4))
    trust, reasons = judge(
        fit, design, intervals, noise, test, error, min(baselines, default=None), stalled
    )
    criteria = compare.criteria(fit.law, train, fixed)
    return LawResult(fit, draws, design, intervals, criteria, error, test, trust, reasons)


def _select(results: Sequence[LawResult], wanted: SumLaw | None) -> tuple[str, str]:
    """The law of the headline: the user's, else the best on held-out rows, else the lowest AIC.

    Held-out rows are often one trunk, so their error alone is one draw: it decides only among the
    forms that the fitted rows support (AIC within 10 of the lowest; Burnham & Anderson 2002).
    """
    if wanted:
        return wanted.name, "asked for by --law"
    if results[0].design.problems.get("a"):
        return results[0].name, "the default form: this design cannot tell forms apart"
    lowest = min(results, key=lambda r: r.criteria.aic)
    if any(r.holdout_error is None for r in results):
        return lowest.name, "lowest AIC, no held-out rows"
    by_error = sorted(results, key=lambda r: r.holdout_error or 0.0)
    if by_error[0].criteria.aic - lowest.criteria.aic <= SUPPORT:
        return by_error[0].name, "lowest hold-out error"
    best = next(r for r in by_error if r.criteria.aic - lowest.criteria.aic <= SUPPORT)
    return best.name, (
        f"lowest hold-out error among forms within {SUPPORT} AIC of the best; "
        f"{by_error[0].name} has a lower one but fits the other rows worse by "
        f"{by_error[0].criteria.aic - lowest.criteria.aic:.0f} AIC"
    )


def _allocations(
    result: LawResult, train: Rows, flops: FlopsPerToken, level: float
) -> tuple[Allocation, ...]:
    """N*, D*, L* from the smallest measured compute to ten times the largest.

    Refused where a is not identified by the design, where an interval spans more than a factor of
    10, and beyond the measured compute where a's interval is open or wider than 0.2.
    """
    low, high = float(train.C.min()), float(train.C.max())
    budgets = [float(f"{c:.2g}") for c in (*np.geomspace(low, high, 4), 3 * high, 10 * high)]
    C = np.array(list(dict.fromkeys(budgets)))
    best = result.fit.law.optimal(result.fit.theta, C, flops)
    rows = []
    ends = uncertainty.optimum_intervals(result.draws, C, flops, level)
    nothing = Interval(None, None)
    for i, (n, d, loss) in enumerate(ends):
        beyond = bool(C[i] > high * 1.01)
        note = result.design.problems.get("a")
        structural = note is not None
        if note is None and beyond and result.intervals["a"].width > WIDE_A:
            note = (
                "N* and D* beyond the measured compute are not identified by this design: the "
                f"interval of a is open or wider than {WIDE_A}; widen the range of sizes"
            )
        elif note is None and not (n.closed and d.closed and _factor(n) < 10 and _factor(d) < 10):
            note = (
                "N* and D* are not identified by this design where their interval is open or "
                "spans more than a factor of 10; widen the range of sizes and horizons"
            )
        refused = note is not None
        rows.append(
            Allocation(
                flops=float(C[i]),
                N=None if refused else float(best.N[i]),
                D=None if refused else float(best.D[i]),
                L=None if structural else float(best.L[i]),
                N_interval=nothing if refused else n,
                D_interval=nothing if refused else d,
                L_interval=nothing if structural else loss,
                extrapolated=beyond,
                note=note,
            )
        )
    return tuple(rows)


def _factor(interval: Interval) -> float:
    return (interval.high or np.inf) / (interval.low or np.nan)


def _prediction_intervals(result: LawResult, test: Rows, level: float) -> tuple[Interval, ...]:
    """Interval of the law's own value at each held-out row (noise of the fitted runs only)."""
    if not len(test):
        return ()
    L = result.fit.law.loss(result.draws.theta, test.N, test.D)
    return tuple(uncertainty.interval(column, level) for column in L.T)


def write_json(path: Path, analysis: Analysis) -> None:
    """Write fits.json whole or not at all."""
    text = json.dumps(to_json(analysis), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(path, text + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that nobody ever reads half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """SOURCE and the options that both commands read."""
    parser.add_argument("source", metavar="SOURCE", help="sweep folder, parquet, or CSV")
    for name, what in (
        ("n", "parameters N"), ("d", "training tokens D"), ("loss", "loss, nats/token"),
        ("flops", "training FLOPs C (default 6ND in a foreign table)"),
        ("trunk", "label of rows that share a training run"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", metavar="COL", help=f"column of {what}")
    parser.add_argument("--law", choices=[x.name for x in LAWS], help="law of the headline")
    parser.add_argument(
        "--fix",
        metavar="P=VALUE",
        action="append",
        default=[],
        help="hold a parameter, e.g. E=1.69",
    )
    parser.add_argument("--estimator", choices=["huber"], default="huber")
    parser.add_argument("--level", type=float, default=0.9, help="level of intervals (0.9)")


def analyse_arguments(args: argparse.Namespace) -> Analysis:
    """Load and analyse what the command line names; DataError or ValueError for bad input."""
    columns = Columns(args.n, args.d, args.loss, args.flops, args.trunk)
    fixed = {}
    for item in args.fix:
        name, _, value = item.partition("=")
        try:
            fixed[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"--fix {item}: not NAME=NUMBER, for example --fix E=1.69") from None
    study = load(args.source, columns)
    return analyse(study, law=args.law, fixed=fixed, level=args.level)


def exit_code(error: Exception) -> int:
    """The error's own, 1 where the disk is full, else 2: what the user named cannot be used."""
    if isinstance(error, DataError):
        return error.exit_code
    return 1 if isinstance(error, OSError) and error.errno == errno.ENOSPC else 2


def main(argv: Sequence[str] | None = None) -> int:
    """Print the fit; exit code 0, 2 for bad input, 1 where every run ended without a loss."""
    parser = argparse.ArgumentParser(prog="python -m analysis.fit", description=__doc__)
    add_source_arguments(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result as JSON too")
    args = parser.parse_args(argv)
    try:
        analysis = analyse_arguments(args)
        if args.json:
            write_json(args.json, analysis)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    print(text_report(analysis), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
