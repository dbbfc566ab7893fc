"""The command: plan, run, status, collect, logs.

`python -m experiments.sweep CONFIG` means `run CONFIG`.
"""

import argparse
import json
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments import config as configs
from experiments import store
from experiments.config import ConfigError, SweepConfig
from experiments.plan import expand, warnings
from experiments.spec import TrunkSpec
from minigpt import data

VERBS = ("plan", "run", "status", "collect", "logs")
UNLOCKED = ("grid", "launch", "runs_dir")  # what a later call on a started folder may change


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit code (DESIGN: 0 well, 1 a run failed, 2 bad input, 130 interrupted)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        shipped = "\n  ".join(sorted(str(p) for p in Path("configs").glob("*.toml")))
        _parser().print_usage(sys.stderr)
        print(f"shipped configs:\n  {shipped}", file=sys.stderr)
        return 2
    if argv[0] not in VERBS and not argv[0].startswith("-"):
        argv = ["run", *argv]
    args = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        if args.verb in ("plan", "run"):
            config = configs.load(args.config, args.overrides)
            corpus = data.prepare(config.data, Path(config.runs_dir, "data")).info
            trunks = expand(config, corpus)
            if args.verb == "plan":
                return _plan(config, corpus, trunks, console)
            return _run(config, corpus, trunks, args.retry_failed, console)
        if args.verb == "collect":
            return _report_collect(store.collect(args.dir), args.json)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="{" + ",".join(VERBS) + "}")
    for verb, told in (
        ("plan", "show what would be trained"),
        ("run", "train what is missing, then collect"),
    ):
        sub = verbs.add_parser(verb, help=told)
        sub.add_argument("config", type=Path)
        sub.add_argument(
            "overrides", nargs="*", metavar="KEY=VALUE", help="such as grid.seeds=[0,1]"
        )
        if verb == "run":
            sub.add_argument("--retry-failed", action="store_true", help="train failed runs again")
    for verb, told in (
        ("status", "state of every run"),
        ("collect", "write results.parquet and curves.parquet"),
        ("logs", "print the runs' logs"),
    ):
        sub = verbs.add_parser(verb, help=told)
        sub.add_argument("dir", type=Path, help="a sweep's folder, such as runs/quick")
        if verb != "collect":
            sub.add_argument("run", nargs="*", help="run or trunk ids (default: all)")
        if verb != "logs":
            sub.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _plan(
    config: SweepConfig, corpus: data.CorpusInfo, trunks: list[TrunkSpec], console: Console
) -> int:
    _check_started(config, corpus)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "run",
        "preset",
        "d_model",
        "layers",
        "seed",
        "arm",
        "N",
        "D",
        "D/N",
        "C (FLOP)",
        "steps",
        "state",
    ):
        table.add_column(
            name, justify="left" if name in ("run", "preset", "arm", "state") else "right"
        )
    left = 0.0
    for trunk in trunks:
        states = {r.run_id: store.run_state(config.folder, trunk, r).state for r in trunk.runs}
        left += trunk.cost(
            tuple(r for r in trunk.runs if states[r.run_id] not in ("ok", "diverged"))
        )
        for run in trunk.runs:
            table.add_row(
                run.run_id,
                trunk.model.preset,
                str(trunk.model.d_model),
                str(trunk.model.n_layers),
                str(trunk.train.seed),
                trunk.arm + (" (held out)" if run.holdout else ""),
                f"{trunk.n_total:,}",
                f"{run.tokens:,}",
                f"{run.tokens / trunk.n_total:.1f}",
                f"{trunk.flops(run):.3g}",
                f"{run.stop:,}",
                states[run.run_id],
            )
    console.print(table)
    n_runs = sum(len(trunk.runs) for trunk in trunks)
    alone = sum(trunk.flops(run) for trunk in trunks for run in trunk.runs)
    shared = sum(trunk.cost() for trunk in trunks)
    print(
        f"{n_runs} runs on {len(trunks)} trunks; {shared:.3g} FLOP, {alone / shared:.2f}x less than "
        f"each run alone; {left:.3g} FLOP still to train{_seconds(config.folder, left)}"
    )
    print(_corpus_line(corpus))
    for line in warnings(trunks):
        print(f"warning: {line}")
    print(f"next: python -m experiments.sweep run {sys.argv[2] if len(sys.argv) > 2 else 'CONFIG'}")
    return 0


def _seconds(folder: Path, flops: float) -> str:
    """Core-minutes that `flops` will take, by the rate of the runs this folder already has."""
    seconds = trained = 0.0
    for trunk in store.trunks(folder):
        results = {r: store.run_state(folder, trunk, r).result for r in trunk.runs}
        done = tuple(r for r, result in results.items() if result and result.get("cpu_seconds"))
        trained += trunk.cost(done)
        seconds += sum(
            result["cpu_seconds"]
            for result in results.values()
            if result and result.get("cpu_seconds")
        )
    if not trained:
        return " (its time is known once a first run has finished)"
    return f", about {flops * seconds / trained / 60:.1f} core-minutes at this sweep's rate so far"


def _corpus_line(corpus: data.CorpusInfo) -> str:
    told = (
        f"data: {corpus.origin}, {corpus.documents:,} documents, {corpus.train_tokens:,} training and "
        f"{corpus.val_tokens:,} held-out tokens, split by {corpus.split_unit} hash; "
        f"{corpus.overlap:.1%} of held-out 3-line windows also stand in training"
    )
    if corpus.skipped:
        told += f"; skipped {len(corpus.skipped)} files that are not UTF-8 text ({corpus.skipped[0]}, ...)"
    return told


def _check_started(config: SweepConfig, corpus: data.CorpusInfo) -> None:
    """A started folder keeps its recipe: only the grid may grow and [launch] change."""
    path = config.folder / "sweep.json"
    if not path.exists():
        return
    before = json.loads(path.read_text())
    now = json.loads(config.model_dump_json())
    changed = [
        f"{key} = {old!r} there, {new!r} now"
        for section in now
        if section not in UNLOCKED
        for key, old, new in _differences(section, before["config"].get(section), now[section])
    ]
    if not changed and before["corpus"]["content_sha256"] != corpus.content_sha256:
        changed = [
            f"the text of data.source = '{config.data.source}' ({corpus.origin}) is not the same"
        ]
    if changed:
        raise ConfigError(
            f"{config.folder} was started with another config: {'; '.join(changed)}. A started sweep may only extend "
            "its grid or change [launch]; give the new one its own folder with name=NEW"
        )


def _differences(key: str, old: object, new: object) -> list[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for name in sorted(set(old) | set(new))
            for found in _differences(f"{key}.{name}", old.get(name), new.get(name))
        ]
    return [] if old == new else [(key, old, new)]


def _run(
    config: SweepConfig,
    corpus: data.CorpusInfo,
    trunks: list[TrunkSpec],
    retry_failed: bool,
    console: Console,
) -> int:
    _check_started(config, corpus)
    folder = config.folder
    folder.mkdir(parents=True, exist_ok=True)
    with store.locked(folder) as free:
        if not free:
            raise ConfigError(
                f"{folder}: another run of this sweep is going on; wait for it, or use name=NEW"
            )
        return _run_locked(config, corpus, trunks, retry_failed, console)


def _run_locked(
    config: SweepConfig,
    corpus: data.CorpusInfo,
    trunks: list[TrunkSpec],
    retry_failed: bool,
    console: Console,
) -> int:
    folder = config.folder
    for line in warnings(trunks):
        print(f"warning: {line}", file=sys.stderr)
    plan = {
        "config": json.loads(config.model_dump_json()),
        "corpus": json.loads(json.dumps(corpus.__dict__)),
        "runs": [run.run_id for trunk in trunks for run in trunk.runs],
    }
    store.write_atomic(folder / "sweep.json", json.dumps(plan, indent=1))
    states = {
        run.run_id: store.run_state(folder, trunk, run).state
        for trunk in trunks
        for run in trunk.runs
    }
    settled = {"ok", "diverged"} if retry_failed else {"ok", "diverged", "failed"}
    for trunk in trunks:
        # Labels such as holdout may have changed, and a finished trunk is not written by training.
        place = store.trunk_folder(folder, trunk.trunk_id)
        place.mkdir(parents=True, exist_ok=True)
        store.write_atomic(place / "spec.json", trunk.model_dump_json(indent=1))
    todo = [t for t in trunks if any(states[r.run_id] not in settled for r in t.runs)]
    print(_corpus_line(corpus))
    finished = {run_id for run_id, state in states.items() if state in ("ok", "diverged")}
    print(
        f"{len(states)} runs, {len(finished)} finished before, {len(todo)} trunks to train in {folder}"
    )
    interrupted = False
    failed: dict[str, str] = {}
    began = time.monotonic()
    if todo:
        interrupted, failed = _train(todo, finished, config, console)
    summary = store.collect(folder)
    return _close(config, summary, interrupted, failed, time.monotonic() - began)


def _train(
    todo: list[TrunkSpec], finished: set[str], config: SweepConfig, console: Console
) -> tuple[bool, dict[str, str]]:
    """Train until done or interrupted; return whether it was, and the reasons of what failed."""
    from experiments.launch import run_all  # imports torch: plan and status must not
    from experiments.progress import Progress

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    failed: dict[str, str] = {}
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with (
            closing(
                run_all(todo, config.folder, Path(config.runs_dir, "data"), config.launch)
            ) as events,
            Progress(todo, finished, console) as progress,
        ):
            for event in events:
                progress.update(event)
                if event.kind == "failed":
                    failed[event.trunk_id] = event.reason or ""
    except KeyboardInterrupt:
        return True, failed
    finally:
        signal.signal(signal.SIGTERM, before)
    return False, failed


def _close(
    config: SweepConfig,
    summary: store.CollectSummary,
    interrupted: bool,
    failed: dict[str, str],
    seconds: float,
) -> int:
    told = ", ".join(f"{n} {status}" for status, n in sorted(summary.by_status.items()))
    print(f"{summary.path}: {summary.rows} rows ({told}); {seconds / 60:.1f} minutes")
    if interrupted:
        print("interrupted; the same command again goes on from the checkpoints")
        return 130
    for trunk_id, reason in failed.items():
        print(f"failed: {trunk_id}: {reason}", file=sys.stderr)
    bad = failed or any(status in summary.by_status for status in ("failed", "diverged"))
    print(f"next: python -m analysis.report {config.folder}")
    return 1 if bad else 0


def _report_collect(summary: store.CollectSummary, as_json: bool) -> int:
    if as_json:
        print(
            json.dumps(
                {"rows": summary.rows, "by_status": summary.by_status, "path": str(summary.path)}
            )
        )
    else:
        told = ", ".join(f"{n} {status}" for status, n in sorted(summary.by_status.items()))
        print(f"{summary.path}: {summary.rows} rows ({told or 'no run has finished yet'})")
    return 0


def _status(folder: Path, wanted: list[str], as_json: bool, console: Console) -> int:
    store.read_plan(folder)
    rows = []
    for trunk in store.trunks(folder):
        status = store.read_status(store.trunk_folder(folder, trunk.trunk_id))
        for run in trunk.runs:
            if wanted and run.run_id not in wanted and trunk.trunk_id not in wanted:
                continue
            state = store.run_state(folder, trunk, run)
            result = state.result or {}
            here = status if status.get("run_id") == run.run_id else {}
            rows.append(
                {
                    "run_id": run.run_id,
                    "trunk_id": trunk.trunk_id,
                    "d_model": trunk.model.d_model,
                    "seed": trunk.train.seed,
                    "tokens": run.tokens,
                    "state": state.state,
                    "step": run.stop if result.get("status") == "ok" else here.get("step"),
                    "steps": run.stop,
                    "val_loss": result.get("val_loss"),
                    "train_loss": result.get("train_loss", here.get("train_loss")),
                    "seconds": result.get("seconds"),
                    "reason": state.reason,
                }
            )
    missing = set(wanted) - {row["run_id"] for row in rows} - {row["trunk_id"] for row in rows}
    if missing:
        raise store.StoreError(
            f"{folder}: no run or trunk {', '.join(sorted(missing))}; `status {folder}` lists them"
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(
            name, justify="left" if name in ("run_id", "trunk_id", "state", "reason") else "right"
        )
    for row in rows:
        table.add_row(
            *(
                "" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v)
                for v in row.values()
            )
        )
    console.print(table)
    return 0


def _logs(folder: Path, wanted: list[str]) -> int:
    store.read_plan(folder)
    for trunk in store.trunks(folder):
        if (
            wanted
            and trunk.trunk_id not in wanted
            and not any(r.run_id in wanted for r in trunk.runs)
        ):
            continue
        path = store.trunk_folder(folder, trunk.trunk_id) / "log.txt"
        for line in path.read_text().splitlines() if path.exists() else []:
            print(f"{trunk.trunk_id}  {line}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
