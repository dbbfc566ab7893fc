"""Sweep folders with a known law: the same files that a real sweep leaves, without training."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.load import REQUIRED
from analysis.read import CURVES_SCHEMA, RESULTS_SCHEMA
from analysis.rows import Rows

TRUTH = {"E": 1.3, "A": 35.0, "B": 130.0, "alpha": 0.36, "beta": 0.4}
SIZES = (24e3, 40e3, 70e3, 120e3, 240e3, 400e3)
HORIZONS = (0.5e6, 0.75e6, 1.2e6, 2e6, 4e6)
HOLDOUT = 700e3


def truth_loss(N, D, truth=TRUTH):
    """Loss of the known law; without E where the truth has none."""
    t = {"E": 0.0, **truth}
    return t["E"] + t["A"] * np.asarray(N) ** -t["alpha"] + t["B"] * np.asarray(D) ** -t["beta"]


@dataclass(frozen=True)
class Plan:
    """What the synthetic sweep trained; noise in log units."""

    sizes: tuple[float, ...] = SIZES
    horizons: tuple[float, ...] = HORIZONS  # tokens; times N where `ratios`
    ratios: bool = False
    cheap: int = 3  # how many of the smallest sizes have `repeats` seeds
    repeats: int = 3
    holdout: tuple[float, ...] = (HOLDOUT,)
    trunk_noise: float = 0.001
    row_noise: float = 0.0005
    bend: float = 0.0  # misfit: extra log loss that bends over log N
    seed: int = 0
    truth: dict[str, float] = field(default_factory=lambda: dict(TRUTH))


def results_frame(plan: Plan) -> pd.DataFrame:
    """Rows of results.parquet for a plan, deterministic in `plan.seed`."""
    rng = np.random.default_rng(plan.seed)
    rows = []
    middle = np.log(np.mean(plan.sizes))
    for i, n in enumerate((*plan.sizes, *plan.holdout)):
        held = i >= len(plan.sizes)
        for seed in range(plan.repeats if i < plan.cheap else 1):
            trunk = f"t{i}s{seed}"
            u = rng.normal() * plan.trunk_noise
            for h, horizon in enumerate(plan.horizons):
                d = horizon * n if plan.ratios else horizon
                z = np.log(truth_loss(n, d, plan.truth)) + u + rng.normal() * plan.row_noise
                z += plan.bend * (np.log(n) - middle) ** 2
                rows.append(
                    {
                        "run_id": f"{trunk}h{h}",
                        "trunk_id": trunk,
                        "horizon_index": h,
                        "sweep": "synthetic",
                        "arm": "main",
                        "seed": seed,
                        "status": "ok",
                        "reason": None,
                        "holdout": held,
                        "preset": "gpt",
                        "n_total": int(n),
                        "n_non_embedding": int(n * 0.8),
                        "tokens": int(d),
                        "steps": 800 + 200 * h,
                        "epochs": d / 1e8,
                        "flops_exact": 6.0 * d * (0.9 * n + 2000),
                        "val_loss": float(np.exp(z)),
                        "val_loss_se": 0.0008,
                        "train_loss": float(np.exp(z)) - 0.02,
                        "seconds": d / 4e4,
                        "cpu_seconds": d / 4e4,
                        "device": "cpu",
                        "dtype": "float32",
                        "torch": "2.13.0",
                        "git_commit": "0123abc",
                        "git_dirty": False,
                        "data_sha256": "d" * 64,
                        "val_sha256": "e" * 64,
                        "source": "stdlib",
                        "started": "2026-01-01T00:00:00",
                        "finished": "2026-01-01T00:10:00",
                    }
                )
    return pd.DataFrame(rows)


def rows_of(plan: Plan) -> Rows:
    """The rows of a plan that a law is fitted to, as the analysis holds them."""
    frame = results_frame(plan)
    frame = frame[~frame["holdout"]]
    names = ("n_total", "tokens", "flops_exact", "val_loss")
    return Rows(*(frame[c].to_numpy(float) for c in names), pd.factorize(frame["trunk_id"])[0])


def curves_frame(results: pd.DataFrame) -> pd.DataFrame:
    """Evaluations on each trunk (no run id) and at the end of each cooldown."""
    rows = []
    for trunk, part in results.groupby("trunk_id"):
        n, last = part["n_total"].iloc[0], part["tokens"].max()
        common = {"trunk_id": trunk, "lr": 0.01, "val_loss_se": 0.001, "seconds": 1.0}
        for d in np.geomspace(last / 16, last, 12):
            loss = 1.03 * float(truth_loss(n, d))
            rows.append(
                {**common, "run_id": None, "horizon_index": None, "step": int(d / 1000)}
                | {"tokens": int(d), "flops_exact": 6.0 * n * d}
                | {"train_loss": loss, "val_loss": loss}
            )
        for row in part.to_dict("records"):
            for share in (0.8, 0.9, 1.0):
                loss = row["val_loss"] * (1 + 0.15 * (1 - share))
                d = row["tokens"] * share
                rows.append(
                    {**common, "run_id": row["run_id"], "horizon_index": row["horizon_index"]}
                    | {"step": int(d / 1000), "tokens": int(d), "flops_exact": 6.0 * n * d}
                    | {"train_loss": loss, "val_loss": loss}
                )
    return pd.DataFrame(rows).astype({"horizon_index": "Int64"})


def write_parquet(
    frame: pd.DataFrame,
    path: Path,
    schema: str,
    more: dict[str, str] | None = None,
    units: Mapping[str, str] = REQUIRED,
) -> None:
    """`frame` as one of a sweep's files; `more` is said of the file beside its schema."""
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(
        {"schema": schema, **(more or {})}
    )
    fields = [f.with_metadata({"unit": units.get(f.name, ""), "doc": f.name}) for f in table.schema]
    pq.write_table(table.cast(pa.schema(fields, metadata=table.schema.metadata)), path)


def write_sweep(folder: Path, plan: Plan | None = None, frame: pd.DataFrame | None = None) -> Path:
    """A finished sweep folder; `frame` replaces the rows of the plan."""
    folder.mkdir(parents=True, exist_ok=True)
    frame = results_frame(plan or Plan()) if frame is None else frame
    write_parquet(frame, folder / "results.parquet", RESULTS_SCHEMA)
    write_parquet(curves_frame(frame), folder / "curves.parquet", CURVES_SCHEMA)
    config = {"name": folder.name, "data": {"source": "stdlib"}, "grid": {"seeds": [0, 1, 2]}}
    (folder / "sweep.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
