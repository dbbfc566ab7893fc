"""What `plan` and `status` show: tables of runs, the corpus in one line, the cost that is left."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import store
from experiments.spec import TrunkSpec
from minigpt.data import CorpusInfo

WORDS = {"run", "run_id", "trunk_id", "preset", "arm", "state", "reason"}  # left-aligned columns


def print_table(rows: list[dict], console: Console) -> None:
    """Print rows of plain values; None as nothing, floats with four decimals."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if name in WORDS else "right")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console.print(table)


def plan_rows(sweep: Path, trunks: list[TrunkSpec]) -> list[dict]:
    """One row per planned run, with its state in the folder `sweep`."""
    return [
        {
            "run": run.run_id,
            "preset": trunk.model.preset,
            "d_model": trunk.model.d_model,
            "layers": trunk.model.n_layers,
            "seed": trunk.train.seed,
            "arm": trunk.arm + (" (held out)" if run.holdout else ""),
            "N": f"{trunk.n_total:,}",
            "D": f"{run.tokens:,}",
            "D/N": f"{run.tokens / trunk.n_total:.1f}",
            "C (FLOP)": f"{trunk.flops(run):.3g}",
            "steps": f"{run.stop:,}",
            "state": store.run_state(sweep, trunk, run).state,
        }
        for trunk in trunks
        for run in trunk.runs
    ]


def cost_line(sweep: Path, trunks: list[TrunkSpec]) -> str:
    """Runs, FLOPs, what branching saves, what is left to train and how long that takes."""
    runs = [(trunk, run) for trunk in trunks for run in trunk.runs]
    alone = sum(trunk.flops(run) for trunk, run in runs)
    shared = sum(trunk.cost() for trunk in trunks)
    settled = {
        run.run_id
        for trunk, run in runs
        if store.run_state(sweep, trunk, run).state in store.SETTLED
    }
    left = sum(trunk.cost(done=settled) for trunk in trunks)
    return (
        f"{len(runs)} runs on {len(trunks)} trunks: {shared:.3g} FLOP, "
        f"{alone / shared:.2f} times less than each run alone; "
        f"{left:.3g} FLOP still to train{_core_minutes(sweep, left)}"
    )


def corpus_line(corpus: CorpusInfo) -> str:
    """The corpus, its split, and how much of the held-out text stands in training too."""
    told = (
        f"data: {corpus.origin}, {corpus.documents:,} documents, "
        f"{corpus.train_tokens:,} training and {corpus.val_tokens:,} held-out tokens, "
        f"split by {corpus.split_unit} hash; "
        f"{corpus.overlap:.1%} of held-out 3-line windows also stand in training"
    )
    if corpus.skipped:
        told += (
            f"; skipped {len(corpus.skipped)} files that are not UTF-8 text "
            f"({corpus.skipped[0]}{', ...' if len(corpus.skipped) > 1 else ''})"
        )
    return told


def status_rows(sweep: Path, wanted: list[str]) -> list[dict]:
    """One row per run of the folder (or per wanted run or trunk id).

    Raises StoreError for an id that is not there.
    """
    rows = []
    for trunk in store.trunks(sweep):
        status = store.read_status(store.trunk_folder(sweep, trunk.trunk_id))
        for run in trunk.runs:
            if wanted and run.run_id not in wanted and trunk.trunk_id not in wanted:
                continue
            state = store.run_state(sweep, trunk, run)
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
                    "step": run.stop if state.state == "ok" else here.get("step"),
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
            f"{sweep}: no run or trunk {', '.join(sorted(missing))}; "
            f"`python -m experiments.sweep status {sweep}` lists them"
        )
    return rows


def _core_minutes(sweep: Path, flops: float) -> str:
    """The time of `flops` by the rate of the runs this folder already has."""
    seconds = trained = 0.0
    for trunk in store.trunks(sweep):
        results = {run: store.run_state(sweep, trunk, run).result or {} for run in trunk.runs}
        timed = {run: r["cpu_seconds"] for run, r in results.items() if r.get("cpu_seconds")}
        trained += trunk.cost(done={run.run_id for run in trunk.runs if run not in timed})
        seconds += sum(timed.values())
    if not flops:
        return ""
    if not trained:
        return " (its time is known once a first run has finished)"
    return f", about {flops * seconds / trained / 60:.1f} core-minutes at this sweep's rate so far"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
