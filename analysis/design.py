"""What to run: `python -m analysis.design PLAN.json`, or SOURCE --flops BUDGET --target-flops C.

With a plan (`experiments.sweep plan CONFIG --json FILE`) or a table without losses: the standard
errors that the grid can reach, and what more would buy. With the results of a sweep and a budget:
the next runs that cut the error of a prediction most, as a config that `experiments.sweep run`
takes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.columns import Columns
from analysis.expected import assumed, report
from analysis.fit import exit_code
from analysis.fitsjson import write_whole
from analysis.gridfile import extended, grid_runs
from analysis.information import Noise
from analysis.load import load
from analysis.nextruns import advise, describe
from analysis.planned import planned
from analysis.read import DataError
from analysis.targets import Target
from analysis.words import counted


def main(argv: Sequence[str] | None = None) -> int:
    """Print the judgement or the choice; exit code 0, 2 for bad input."""
    args = _parser().parse_args(argv)
    columns = Columns(args.n, args.d, args.loss, args.compute, args.trunk)
    try:
        noise = _noise(args.noise)
        misfit = None if args.misfit is None else _share("--misfit", args.misfit)
        if args.flops is None and args.target_flops is None:
            if args.out:
                raise ValueError(f"--out {args.out}: belongs to --flops and --target-flops")
            plan = planned(Path(args.source), columns)
            assume = assumed(plan, args.assume, noise, misfit)
            lines = report(plan, assume, _level(args.level))
        else:
            lines = _next(args, columns, noise, misfit)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    print("\n".join(lines))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.design",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SOURCE", help="plan file, sweep folder, parquet, or CSV")
    add("--flops", type=float, metavar="BUDGET", help="FLOPs to spend on further runs")
    add("--target-flops", type=float, metavar="C", help="compute of the loss to predict")
    told = "what to predict: the loss at the optimum of C (default), or the exponent a"
    add("--target", choices=("loss", "a"), default="loss", help=told)
    add("--out", type=Path, metavar="FILE", help="write the extended config here, not to stdout")
    told = "law and noise before a sweep: the selected fit of an earlier one"
    add("--assume", type=Path, metavar="FITS.JSON", help=told)
    told = "sd of log loss in %%: of a trunk and of a row in it, such as 0.2,0.1"
    add("--noise", metavar="TRUNK,ROW", help=told)
    told = "sd in %% by which the form may be wrong; 0 trusts it (default: from the rows, about 1)"
    add("--misfit", type=float, metavar="SD", help=told)
    add("--level", type=float, default=0.9, help="level of intervals (0.9)")
    for name, what in (
        ("n", "parameters N"), ("d", "training tokens D"), ("loss", "loss, nats/token"),
        ("compute", "training FLOPs C"), ("trunk", "label of rows that share a training run"),
    ):  # fmt: skip
        add(f"--{name}", metavar="COL", help=f"column of {what}")
    return parser


def _noise(text: str | None) -> Noise | None:
    if text is None:
        return None
    parts = text.split(",")
    try:
        trunk, row = (float(part) for part in parts)
    except ValueError:
        raise ValueError(f"--noise {text}: give two numbers in %, such as 0.2,0.1") from None
    if row <= 0:
        raise ValueError(f"--noise {text}: the noise of a row is positive, such as 0.2,0.1")
    return Noise(_share("--noise", trunk), _share("--noise", row))


def _share(option: str, percent: float) -> float:
    if not 0 <= percent <= 100:
        raise ValueError(f"{option} {percent:g}: a standard deviation in % is between 0 and 100")
    return percent / 100


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"--level {level:g}: give a level between 0 and 1, such as 0.9")
    return level


def _next(
    args: argparse.Namespace, columns: Columns, noise: Noise | None, misfit: float | None
) -> list[str]:
    for name, value in (("--flops", args.flops), ("--target-flops", args.target_flops)):
        if value is None or not 0 < value < np.inf:
            had = "is missing" if value is None else f"is {value:g}"
            raise ValueError(
                f"{name} {had}: give both --flops BUDGET and --target-flops C as positive numbers "
                "(neither: the source is judged as a plan)"
            )
    if args.assume:
        raise ValueError(
            f"--assume {args.assume}: belongs to a plan; results have a law of their own"
        )
    if args.source.endswith(".json"):
        raise DataError(
            f"{args.source}: a plan has no losses to choose further runs by; run the sweep, then "
            "give its folder (without --flops the plan is judged)"
        )
    study = load(args.source, columns)
    C = args.target_flops
    target = Target("a", "a") if args.target == "a" else Target("loss", "optimal-loss", (C,))
    advice = advise(study, args.flops, target, C, noise, misfit)
    lines = describe(advice, args.flops, C)
    if not advice.state.bought:
        return lines
    settings = (study.config or {}).get("config", study.config or {})
    grid = settings.get("grid") or {}
    if not grid.get("sizes") and not grid.get("runs"):
        if args.out:
            raise DataError(
                f"--out {args.out}: {args.source} has no config of a sweep (sweep.json) to extend; "
                "leave --out away, train the runs of the table and append them to the file"
            )
        return [*lines, "", "next: train these runs, append them to the table, fit again"]
    runs = grid_runs(advice, settings)
    title = (
        f"{settings['name']} with {counted(len(runs), 'further run')}: "
        f"python -m analysis.design {args.source} --flops {args.flops:g} --target-flops {C:g}"
    )
    text = extended(settings, runs, title)
    if args.out is None:
        return [*lines, "", text + "# save as FILE.toml; python -m experiments.sweep run FILE.toml"]
    try:
        write_whole(args.out, text)
    except OSError as error:
        raise DataError(
            f"--out {args.out}: {error.strerror}; name a file in a folder that you can write to"
        ) from error
    return [*lines, "", f"next: python -m experiments.sweep run {args.out}"]


if __name__ == "__main__":
    sys.exit(main())
