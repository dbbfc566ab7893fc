"""The command of a sweep: plan, run, status, collect, logs, cancel.

`python -m experiments.sweep CONFIG` means `run CONFIG`. Exit codes: 0 all well, 1 a run failed or
diverged or the disk filled, 2 bad input, 130 interrupted.
"""

import argparse
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from experiments import costs, execute, export, jobs, manage, pack, slurm, store, tables
from experiments.config import ConfigError
from experiments.measure import measure
from experiments.plan import warnings
from experiments.prepare import prepare
from experiments.slurm import SlurmError
from minigpt import data

VERBS = ("plan", "run", "status", "collect", "logs", "cancel")
USUAL_ARRAY_SIZE = 1001  # Slurm's default


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        shipped = "\n  ".join(sorted(str(p) for p in Path("configs").glob("*.toml")))
        _parser().print_usage(sys.stderr)
        print(f"shipped configs:\n  {shipped}", file=sys.stderr)
        return 2
    if argv[0] not in VERBS and not argv[0].startswith("-"):
        argv = ["run", *argv]
    args = _parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False)
    try:
        match args.verb:
            case "plan":
                return _plan(args, console)
            case "run":
                return _run(args, console)
            case "collect":
                return manage.collect(args.dir, args.json)
            case "logs":
                return manage.logs(args.dir, args.run, args.follow)
            case "cancel":
                return manage.cancel(args.dir, args.run)
            case _:
                return manage.status(args.dir, args.run, args.json, console)
    except (ConfigError, data.DataError, store.StoreError, SlurmError) as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parse(argv: list[str]) -> argparse.Namespace:
    """Arguments, with overrides before and after options alike."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (any(word.startswith("-") for word in rest) or not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{" + ",".join(VERBS) + "}")
    for verb, told in (
        ("plan", "show what would be trained"),
        ("run", "train what is missing, then collect"),
    ):
        sub = verbs.add_parser(verb, help=told)
        sub.add_argument("config", type=Path, help="a TOML file, such as configs/quick.toml")
        sub.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as grid.seeds=[0,1]")
        if verb == "run":
            sub.add_argument("--retry-failed", action="store_true", help="train failed runs again")
            sub.add_argument("--wait", action="store_true", help="on Slurm: follow the jobs")
            told = "at most K slots, or Slurm jobs, at once"
            sub.add_argument("--max-parallel", type=_positive, metavar="K", help=told)
        else:
            told = "time shapes that have no tokens/s yet, once, where runs will execute"
            sub.add_argument("--measure", action="store_true", help=told)
            told = "write the planned runs as JSON, for analysis.design"
            sub.add_argument("--json", type=Path, metavar="FILE", help=told)
    for verb, told in (
        ("status", "state of every run"),
        ("collect", "write results.parquet and curves.parquet"),
        ("logs", "print the logs of trunks and jobs"),
        ("cancel", "end Slurm jobs; what was trained is kept"),
    ):
        sub = verbs.add_parser(verb, help=told)
        sub.add_argument("dir", type=Path, help="a sweep's folder, such as runs/quick")
        if verb != "collect":
            sub.add_argument("run", nargs="*", help="run or trunk ids (default: all)")
        if verb == "logs":
            sub.add_argument("-f", "--follow", action="store_true", help="until the runs end")
        elif verb != "cancel":
            sub.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of at least 1")
    return int(text)


def _plan(args: argparse.Namespace, console: Console) -> int:
    path, file = args.config, args.json
    config, corpora, trunks = prepare(path, args.overrides)
    folder, launch = config.folder, config.launch
    if args.measure:
        print(f"measured {measure(config, trunks)} shapes")
    missing = export.write(config, trunks, file) if file else 0
    known = manage.look(folder)
    todo = jobs.todo(folder, trunks, known, retry_failed=False)
    tables.print_table(tables.plan_rows(folder, trunks, known), console)
    print(costs.flops_line(trunks, todo.settled))
    for line in costs.beside_lines(config, trunks, todo.settled):
        print(line)
    if launch.executor != "slurm":
        line = costs.time_line(config, trunks, todo.settled)
        print(line or "time: nothing is left to train")
    elif todo.trunks:
        size = USUAL_ARRAY_SIZE
        with suppress(SlurmError):  # a plan may be made where there is no cluster
            size = slurm.max_array_size()
        parallel = launch.slurm.array_parallelism
        arrays = pack.arrays(todo.trunks, todo.settled, launch, parallel, size)
        tables.print_table(costs.array_rows(config, arrays, trunks, todo.settled), console)
        for line in costs.array_lines(config, arrays, trunks, todo.settled):
            print(line)
    print(tables.corpus_lines(config, corpora))
    for line in warnings(config, trunks):
        print(f"warning: {line}")
    after = ["experiments.sweep", "run", str(path), *args.overrides]
    if file:
        print(f"{file}: {sum(len(trunk.runs) for trunk in trunks)} runs, {missing} still to train")
        after = ["analysis.design", str(file)]
    print("next: " + shlex.join(["python", "-m", *after]))
    return 0


def _run(args: argparse.Namespace, console: Console) -> int:
    config, corpora, trunks = prepare(args.config, args.overrides)
    return execute.run(
        config,
        corpora,
        trunks,
        retry_failed=args.retry_failed,
        wait=args.wait,
        at_most=args.max_parallel,
        console=console,
    )


if __name__ == "__main__":
    raise SystemExit(main())
