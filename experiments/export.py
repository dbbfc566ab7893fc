"""The plan as a JSON file: what `analysis.design` needs to judge a grid before it is trained.

`{"schema", "sweep", "config", "runs": [{...}, ...]}`: `config` is the resolved config as in
sweep.json; without its nulls it is a valid config again. The keys of a run are columns of
results.parquet, in the same units, and its `status`.
"""

import json
from pathlib import Path

from experiments import store
from experiments.config import ConfigError, SweepConfig
from experiments.rows import result_row
from experiments.spec import TrunkSpec

PLAN_SCHEMA = "plan/1"
STATUS = {"ok": "done", "diverged": "diverged"}  # in any other state a run is missing
KEYS = (
    *("run_id", "trunk_id", "horizon_index", "branch", "arm", "seed", "holdout"),
    *("preset", "d_model", "n_layers", "n_heads", "d_head", "d_ff", "vocab_size", "seq_len"),
    *("n_total", "n_non_embedding", "n_matmul"),
    *("tokens", "steps", "batch_tokens", "cooldown_tokens", "lr", "lr_multiplier"),
    *("flops_exact", "flops_matmul", "flops_6n"),
)


def write(config: SweepConfig, trunks: list[TrunkSpec], file: Path) -> int:
    """Write the planned runs to `file`, whole or not at all; return how many are not done.

    `status` is done (it has a loss), diverged (finished without one) or missing. Raises
    ConfigError for a file that cannot be written.
    """
    runs = [
        {key: row[key] for key in KEYS} | {"status": row["status"]}
        for trunk in trunks
        for row in _rows(config.folder, trunk)
    ]
    plan = {
        "schema": PLAN_SCHEMA,
        "sweep": config.name,
        "config": json.loads(config.model_dump_json()),
        "runs": runs,
    }
    if file.is_dir():
        raise ConfigError(f"--json {file}: is a folder; name a file in it")
    try:
        store.write_atomic(file, json.dumps(plan, indent=1, allow_nan=False))
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(
            f"--json {file}: {error.strerror}; name a file in a folder that you can write to"
        ) from None
    return sum(run["status"] == "missing" for run in runs)


def _rows(folder: Path, trunk: TrunkSpec) -> list[dict]:
    """Rows of results.parquet as far as the spec says them, with the status of a plan."""
    rows = []
    for i, run in enumerate(trunk.runs):
        status = STATUS.get(store.run_state(folder, trunk, run).state, "missing")
        rows.append(result_row(trunk, run, i, status, None, {}))
    return rows
