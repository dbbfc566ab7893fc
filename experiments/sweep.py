"""The command of a sweep: plan, run, status, collect, logs.

`python -m experiments.sweep CONFIG` means `run CONFIG`. Exit codes: 0 all well, 1 a run failed or
diverged or the disk filled, 2 bad input, 130 interrupted.
"""

import argparse
import json
import shlex
import signal
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from experiments import config as configs
from experiments import export, manifest, store, tables
from experiments.config import ConfigError, SweepConfig
from experiments.plan import expand, warnings
from experiments.spec import TrunkSpec
from minigpt import data

VERBS = ("plan", "run", "status", "collect", "logs")


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
        if args.verb == "plan":
            return _plan(args.config, args.overrides, args.json, console)
        if args.verb == "run":
            return _run(args.config, args.overrides, args.retry_failed, console)
        if args.verb == "collect":
            return _collect(args.dir, args.json)
        if args.verb == "logs":
            return _logs(args.dir, args.run)
        return _status(args.dir, args.run, args.json, console)
    except (ConfigError, data.DataError, store.StoreError) as error:
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
        else:
            told = "write the planned runs as JSON, for analysis.design"
            sub.add_argument("--json", type=Path, metavar="FILE", help=told)
    for verb, told in (
        ("status", "state of every run"),
        ("collect", "write results.parquet and curves.parquet"),
        ("logs", "print the trunks' logs"),
    ):
        sub = verbs.add_parser(verb, help=told)
        sub.add_argument("dir", type=Path, help="a sweep's folder, such as runs/quick")
        if verb != "collect":
            sub.add_argument("run", nargs="*", help="run or trunk ids (default: all)")
        if verb != "logs":
            sub.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _prepare(
    path: Path, overrides: list[str]
) -> tuple[SweepConfig, data.CorpusInfo, list[TrunkSpec]]:
    """Everything that can be wrong with a sweep is found here, before compute is spent."""
    config = configs.load(path, overrides)
    runs_dir = Path(config.runs_dir)
    try:
        corpus = data.prepare(config.data, runs_dir / "data", leave_out=runs_dir).info
        trunks = expand(config, corpus)
        manifest.check(config, corpus)
    except (ConfigError, data.DataError) as error:
        raise ConfigError(f"{path}: {error}") from None
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"{path}: runs_dir = {config.runs_dir!r}: {error}; choose a folder you can write to"
        ) from None
    return config, corpus, trunks


def _plan(path: Path, overrides: list[str], file: Path | None, console: Console) -> int:
    config, corpus, trunks = _prepare(path, overrides)
    missing = export.write(config, trunks, file) if file else 0
    tables.print_table(tables.plan_rows(config.folder, trunks), console)
    print(tables.cost_line(config.folder, trunks))
    print(tables.corpus_line(corpus))
    for line in warnings(config, trunks):
        print(f"warning: {line}")
    after = ["experiments.sweep", "run", str(path), *overrides]
    if file:
        print(f"{file}: {sum(len(trunk.runs) for trunk in trunks)} runs, {missing} still to train")
        after = ["analysis.design", str(file)]
    print("next: " + shlex.join(["python", "-m", *after]))
    return 0


def _run(path: Path, overrides: list[str], retry_failed: bool, console: Console) -> int:
    config, corpus, trunks = _prepare(path, overrides)
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    with store.locked(folder) as free:
        if not free:
            raise ConfigError(
                f"{folder}: another run of this sweep is going on; wait for it, or use name=NEW"
            )
        for line in warnings(config, trunks):
            print(f"warning: {line}", file=sys.stderr)
        print(tables.corpus_line(corpus))
        manifest.write(config, corpus, trunks)
        for trunk in trunks:
            store.write_spec(folder, trunk)
        runs = [(trunk, run) for trunk in trunks for run in trunk.runs]
        states = {run.run_id: store.run_state(folder, trunk, run).state for trunk, run in runs}
        skipped = store.SETTLED if retry_failed else {*store.SETTLED, "failed"}
        todo = [t for t in trunks if any(states[run.run_id] not in skipped for run in t.runs)]
        finished = {run_id for run_id, state in states.items() if state in store.SETTLED}
        print(
            f"{folder}: {len(states)} runs, {len(finished)} finished before, "
            f"{len(todo)} trunks to train"
        )
        began = time.monotonic()
        stopped, failed = _train(todo, finished, config, console) if todo else (False, {})
        summary = store.collect(folder)
    print(f"{summary}; {(time.monotonic() - began) / 60:.1f} minutes")
    if stopped:
        print("interrupted: the same command again goes on from the checkpoints")
        return 130
    for row in tables.status_rows(folder, []):
        if row["state"] in ("failed", "diverged"):
            told = f"{row['state']}: d_model = {row['d_model']}, D = {row['tokens']:,}"
            print(f"{told}: {row['reason']}", file=sys.stderr)
    for trunk_id, reason in failed.items():  # on a full disk the folder may not know
        print(f"failed: trunk {trunk_id}: {reason}", file=sys.stderr)
    if "failed" in summary.by_status:
        print("failed runs are trained again with --retry-failed", file=sys.stderr)
    print(f"next: python -m analysis.report {folder}")
    return int(bool(failed) or bool({"failed", "diverged"} & summary.by_status.keys()))


def _train(
    todo: list[TrunkSpec], finished: set[str], config: SweepConfig, console: Console
) -> tuple[bool, dict[str, str]]:
    """Train until done or interrupted; return whether it was, and why which trunk failed."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    failed: dict[str, str] = {}
    cache = Path(config.runs_dir, "data")
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        from experiments.launch import run_all  # imports torch: plan and status must not
        from experiments.progress import Progress

        with (
            closing(run_all(todo, config.folder, cache, config.launch)) as events,
            Progress(todo, finished, console) as progress,
        ):
            try:
                for event in events:
                    progress.update(event)
                    if event.kind == "failed":
                        failed[event.trunk_id] = event.reason or ""
            except KeyboardInterrupt:
                print("stopping: the workers save their checkpoints", flush=True)
                raise
    except KeyboardInterrupt:
        return True, failed
    finally:
        signal.signal(signal.SIGTERM, before)
    return False, failed


def _collect(folder: Path, as_json: bool) -> int:
    summary = store.collect(folder)
    print(json.dumps(asdict(summary), default=str) if as_json else summary)
    return 0


def _status(folder: Path, wanted: list[str], as_json: bool, console: Console) -> int:
    store.planned(folder)
    rows = tables.status_rows(folder, wanted)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        tables.print_table(rows, console)
    return 0


def _logs(folder: Path, wanted: list[str]) -> int:
    store.planned(folder)
    for trunk_id in dict.fromkeys(row["trunk_id"] for row in tables.status_rows(folder, wanted)):
        path = store.trunk_folder(folder, trunk_id) / "log.txt"
        for line in path.read_text().splitlines() if path.exists() else []:
            print(f"{trunk_id}  {line}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
