"""Fit every law to a study, compare, judge, and print: `python -m analysis.fit SOURCE`."""

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.analyse import analyse
from analysis.columns import Columns
from analysis.fitsjson import to_json, write_json
from analysis.laws import LAWS, OTHERS
from analysis.load import Study, load
from analysis.read import DataError
from analysis.result import Analysis
from analysis.textreport import text_report
from analysis.uncertainty import ESTIMATORS


def add_source_arguments(parser: argparse.ArgumentParser, flops: str = "--flops") -> None:
    """SOURCE and the options that all commands read; `flops` names the option of C's column."""
    parser.add_argument("source", metavar="SOURCE", help="sweep folder, parquet, or CSV")
    for name, what in (
        ("n", "parameters N"), ("d", "training tokens D"), ("loss", "loss, nats/token"),
        ("trunk", "label of rows that share a training run"),
        ("unique", "unique tokens U, where data repeats"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", metavar="COL", help=f"column of {what}")
    parser.add_argument(
        flops,
        metavar="COL",
        dest="flops_column",
        help="column of training FLOPs C (default 6ND in a foreign table)",
    )
    names = [law.name for law in (*LAWS, *OTHERS)]
    parser.add_argument("--law", choices=names, help="law of the headline")
    parser.add_argument(
        "--fix",
        metavar="P=VALUE",
        action="append",
        default=[],
        help="hold a parameter, e.g. E=1.69",
    )
    parser.add_argument(
        "--estimator",
        choices=ESTIMATORS,
        help="default: gls-reml where training runs have several rows, else huber",
    )
    parser.add_argument("--level", type=float, default=0.9, help="level of intervals (0.9)")


def load_arguments(args: argparse.Namespace) -> tuple[Study, dict[str, float]]:
    """The study and the fixed parameters that the command line names; DataError or ValueError."""
    columns = Columns(args.n, args.d, args.loss, args.flops_column, args.trunk, args.unique)
    fixed = {}
    for item in args.fix:
        name, _, value = item.partition("=")
        try:
            fixed[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"--fix {item}: not NAME=NUMBER, for example --fix E=1.69") from None
    return load(args.source, columns), fixed


def analyse_arguments(args: argparse.Namespace) -> Analysis:
    """Load and analyse what the command line names; DataError or ValueError for bad input."""
    study, fixed = load_arguments(args)
    return analyse(study, law=args.law, fixed=fixed, estimator=args.estimator, level=args.level)


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
            write_json(args.json, to_json(analysis))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    print(text_report(analysis), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
