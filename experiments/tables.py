"""What `plan` and `status` show: tables of runs, and the corpus in one line."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import jobs, store
from experiments.axes import Doublings
from experiments.config import SweepConfig
from experiments.corpora import Corpora
from experiments.grid import largest_horizon
from experiments.jobs import Jobs
from experiments.spec import TrunkSpec
from minigpt.corpus import CorpusInfo, EvalInfo

LEFT = {"run", "run_id", "trunk_id", "preset", "arm", "state", "job", "log", "reason", "array"}


def print_table(rows: list[dict], console: Console) -> None:
    """Print rows of plain values; None as nothing, floats with four decimals."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0] if rows else ():
        table.add_column(name, justify="left" if name in LEFT else "right")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    console.print(table)


def plan_rows(sweep: Path, trunks: list[TrunkSpec], known: Jobs) -> list[dict]:
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
            "state": jobs.run_state(sweep, trunk, run, known).state,
        }
        for trunk in trunks
        for run in trunk.runs
    ]


def corpus_lines(config: SweepConfig, corpora: Corpora) -> str:
    """The corpus, its split, how much of held-out text stands in training too, tokens, D_max."""
    corpus = corpora.first
    documents = "" if corpus.documents is None else f"{corpus.documents:,} documents, "
    told = f"data: {corpus.origin}, {documents}"
    told += "" if corpora.tokenizers else f"{_counts(corpus)}, "
    if corpus.overlap is None:
        told += f"of a vocabulary of {corpus.vocab_size:,}, split by the user"
    else:
        told += (
            f"split by {corpus.split_unit} hash; "
            f"{corpus.overlap:.1%} of held-out 3-line windows also stand in training"
        )
    told += _skipped(config, corpus)
    for info in corpora.by_vocabulary.values():
        told += _tokenizer_line(config, info)
        told += "".join(_eval_line(config, each) for each in info.evals)
    if isinstance(config.grid.tokens, Doublings) and config.grid.sizes:
        largest, epoch = largest_horizon(config, corpora)
        epochs = config.data.max_epochs
        times = "" if epochs == 1 else f"{epochs:g} epochs of "
        told += (
            f"\nD_max = {largest:,} tokens, the largest power of two within {times}{epoch:,} "
            "training tokens in whole windows"
        )
    return told


def _counts(corpus: CorpusInfo) -> str:
    return f"{corpus.train_tokens:,} training and {corpus.val_tokens:,} held-out tokens"


def _tokenizer_line(config: SweepConfig, corpus: CorpusInfo) -> str:
    """The corpus in the tokens of one vocabulary; nothing where they are bytes."""
    if corpus.tokenizer_sha256 is None:
        return ""
    told = f"\ntokenizer: {config.data.tokenizer}, {corpus.vocab_size:,} ids "
    told += f"({corpus.tokenizer_sha256[:12]}): {_counts(corpus)}, "
    if corpus.train_bytes is None:
        return told + "which lose text, so that there are no bits per byte"
    return told + f"{corpus.train_bytes / corpus.train_tokens:.2f} bytes of text a token"


def _eval_line(config: SweepConfig, info: EvalInfo) -> str:
    told = f"\nheld out too: {info.name}, {info.tokens:,} tokens"
    if info.overlap is not None:
        told += f"; {info.overlap:.1%} of its 3-line windows also stand in training"
    return told + _skipped(config, info)


def _skipped(config: SweepConfig, info: CorpusInfo | EvalInfo) -> str:
    """What of a text was left out, because it is none."""
    told = ""
    if info.skipped:
        told += (
            f"; skipped {len(info.skipped)} files that are not UTF-8 text "
            f"({info.skipped[0]}{', ...' if len(info.skipped) > 1 else ''})"
        )
    if info.null_rows:
        told += f"; skipped {info.null_rows:,} records whose {config.data.column} is null"
    return told


def status_rows(sweep: Path, wanted: list[str], known: Jobs) -> list[dict]:
    """One row per run of the folder (or per wanted run or trunk id); `log` is relative to it.

    Raises StoreError for an id that is not there.
    """
    rows = []
    for trunk in store.trunks(sweep):
        folder = store.trunk_folder(sweep, trunk.trunk_id)
        status, job = store.read_status(folder), known.of_trunk.get(trunk.trunk_id)
        for run in trunk.runs:
            if wanted and run.run_id not in wanted and trunk.trunk_id not in wanted:
                continue
            state = jobs.run_state(sweep, trunk, run, known)
            result = state.result or {}
            here = status if status.get("run_id") == run.run_id else {}
            log = job.log() if job and job.id else (folder / "log.txt").relative_to(sweep)
            rows.append(
                {
                    "run_id": run.run_id,
                    "trunk_id": trunk.trunk_id,
                    "d_model": trunk.model.d_model,
                    "seed": trunk.train.seed,
                    "tokens": run.tokens,
                    "state": state.state,
                    "job": job.id if job else None,
                    "step": run.stop if state.state == "ok" else here.get("step"),
                    "steps": run.stop,
                    "val_loss": result.get("val_loss"),
                    "train_loss": result.get("train_loss", here.get("train_loss")),
                    "seconds": result.get("seconds", here.get("seconds")),
                    "log": str(log),
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


def short_rows(rows: list[dict]) -> list[dict]:
    """The rows of `status_rows` for people: progress in one cell, the loss that there is."""
    short = []
    for row in rows:
        loss = row["train_loss"] if row["val_loss"] is None else row["val_loss"]
        step = "" if row["step"] is None else f"{row['step']:,}/"
        kept = {k: row[k] for k in ("run_id", "trunk_id", "d_model", "seed", "tokens", "state")}
        if any(each["job"] for each in rows):
            kept["job"] = row["job"]
        kept |= {"step": f"{step}{row['steps']:,}", "loss": loss, "elapsed": _clock(row["seconds"])}
        short.append(kept | {"log": row["log"], "reason": row["reason"]})
    return short


def _clock(seconds: float | None) -> str | None:
    """Hours, minutes and seconds."""
    if seconds is None:
        return None
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
