"""How long runs take, from measured tokens/s: of this sweep's runs, or of a micro-benchmark.

The micro-benchmark (`plan --measure`) trains each shape for some steps where runs will execute, and
is kept in <runs_dir>/speed.json, by place and shape.
"""

import hashlib
import json
import platform
import statistics
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from experiments import store
from experiments.config import SweepConfig
from experiments.resources import LaunchSection
from experiments.spec import TrunkSpec

START_SECONDS = 10.0  # of a process until its first step: python, torch, the data
EVAL_RATIO = 3.0  # a training token takes three passes of the model, a held-out one takes one


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Tokens per second in training and in evaluation."""

    train: float
    evaluation: float


def rates(config: SweepConfig, trunks: list[TrunkSpec]) -> dict[str, Rate]:
    """Rate of every shape (see `shape`) that a finished run or the micro-benchmark has timed."""
    found = _benchmarked(config)
    timed: dict[str, list[dict]] = {}
    for trunk in trunks:
        for run in trunk.runs:
            result = store.run_state(config.folder, trunk, run).result or {}
            same = result.get("world_size") == config.launch.resources(trunk.n_total).ranks
            if result.get("tokens_per_second") and same:
                timed.setdefault(shape(trunk, config.launch), []).append(result)
    return found | {key: _rate(results) for key, results in timed.items()}


def seconds(trunk: TrunkSpec, finished: Collection[str], rate: Rate) -> float:
    """Time that the runs of `trunk` whose ids are not in `finished` still take, evaluations too."""
    steps, train = trunk.steps(finished), trunk.train
    points = steps * train.batch_tokens // train.eval_every_tokens
    missing = sum(run.run_id not in finished for run in trunk.runs)
    held_out = points * trunk.data.curve_eval_tokens + missing * trunk.data.eval_tokens
    return steps * train.batch_tokens / rate.train + held_out / rate.evaluation


def shape(trunk: TrunkSpec, launch: LaunchSection) -> str:
    """Hash of all that the speed of a trunk's training depends on, but the machine."""
    asked = launch.resources(trunk.n_total)
    values = [trunk.model.model_dump(), trunk.train.batch_tokens, trunk.train.dtype]
    values += [trunk.train.optimizer, asked.ranks, asked.strategy]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def place(launch: LaunchSection, n_total: int) -> str:
    """Where a model of that size is trained, as far as the plan knows: the key of its rates."""
    threads = f"{launch.threads_per_slot} threads"
    if launch.executor != "slurm":
        return f"{platform.node()}, {launch.device}, {threads}"
    flags = launch.resources(n_total).flags()
    kept = ("partition", "constraint", "nodes", "gpus-per-node", "cpus-per-task")
    return "slurm, " + ", ".join(f"{k}={flags[k]}" for k in kept if k in flags) + f", {threads}"


def remember(config: SweepConfig, measured: list[tuple[str, str, Rate]]) -> None:
    """Keep benchmarked rates, each with its place and shape."""
    path = _cache(config)
    table = json.loads(path.read_text()) if path.exists() else {}
    for where, key, rate in measured:
        table.setdefault(where, {})[key] = {"train": rate.train, "evaluation": rate.evaluation}
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_atomic(path, json.dumps(table, indent=1))


def _benchmarked(config: SweepConfig) -> dict[str, Rate]:
    path = _cache(config)
    table = json.loads(path.read_text()) if path.exists() else {}
    sizes = [0, *(tier.n_total for tier in config.launch.slurm.tiers)]
    places = {place(config.launch, n_total) for n_total in sizes}
    return {k: Rate(**v) for where in places for k, v in table.get(where, {}).items()}


def _rate(results: list[dict]) -> Rate:
    train = statistics.median(r["tokens_per_second"] for r in results)
    timed = [r["eval_tokens"] / r["eval_seconds"] for r in results if r.get("eval_seconds")]
    return Rate(train=train, evaluation=statistics.median(timed) if timed else EVAL_RATIO * train)


def _cache(config: SweepConfig) -> Path:
    return Path(config.runs_dir, "speed.json")
