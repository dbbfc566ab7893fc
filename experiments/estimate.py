"""How long runs take, from measured tokens/s: of this sweep's runs, or of a micro-benchmark.

The micro-benchmark (`plan --measure`) trains each shape for some steps where runs will execute, and
is kept in <runs_dir>/speed.json, by place and shape.
"""

import hashlib
import json
import platform
import statistics
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments import store
from experiments.config import ConfigError, SweepConfig
from experiments.resources import LaunchSection
from experiments.spec import TrunkSpec

START_SECONDS = 10.0  # of a process until its first step: python, torch, the data
EVAL_RATIO = 3.0  # a training token takes three passes of the model, a held-out one takes one


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Tokens per second in training and in evaluation, of all models side by side together."""

    train: float
    evaluation: float
    members: int = 1


def rates(config: SweepConfig, trunks: list[TrunkSpec]) -> dict[str, Rate]:
    """Rate of every shape (see `shape`) that a finished run or the micro-benchmark has timed."""
    found = _benchmarked(config)
    timed: dict[str, list[Rate]] = {}
    for trunk in trunks:
        for run in trunk.runs:
            result = store.run_state(config.folder, trunk, run).result or {}
            if result.get("tokens_per_second") and _alike(result, config.launch, trunk):
                timed.setdefault(shape(trunk, config.launch), []).append(_rate(result, trunk))
    for key, measured in timed.items():
        found[key] = Rate(
            train=statistics.median(rate.train for rate in measured),
            evaluation=statistics.median(rate.evaluation for rate in measured),
            members=round(statistics.median(rate.members for rate in measured)),
        )
    return found


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
    threads = f"{launch.threads_per_slot} threads, {launch.members} members"
    if launch.executor != "slurm":
        return f"{platform.node()}, {launch.device}, {threads}"
    flags = launch.resources(n_total).flags()
    kept = ("partition", "constraint", "nodes", "gpus-per-node", "cpus-per-task")
    return "slurm, " + ", ".join(f"{k}={flags[k]}" for k in kept if k in flags) + f", {threads}"


def remember(config: SweepConfig, measured: list[tuple[str, str, Rate]]) -> None:
    """Keep benchmarked rates, each with its place and shape."""
    path, table = _cache(config), _table(config)
    for where, key, rate in measured:
        table.setdefault(where, {})[key] = asdict(rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_atomic(path, json.dumps(table, indent=1))


def _alike(result: dict, launch: LaunchSection, trunk: TrunkSpec) -> bool:
    """Whether a run was trained by as many ranks and on the kind of device that one would be."""
    asked = launch.resources(trunk.n_total)
    on_gpu = result["peak_memory_bytes"] is not None
    if launch.executor == "slurm":
        kind = bool(asked.gpus and launch.device != "cpu")
    else:
        kind = {"cpu": False, "cuda": True, "auto": on_gpu}[launch.device]
    return result["world_size"] == asked.ranks and on_gpu == kind


def _rate(result: dict, trunk: TrunkSpec) -> Rate:
    """Rates of one run: its tokens/s count the time of the curve's evaluations as training.

    The others beside it trained as many tokens in the same time.
    """
    per_second, seconds = result["tokens_per_second"], result["seconds"]
    members = result.get("members", 1)
    final = result.get("eval_seconds") or 0.0
    evaluation = result["eval_tokens"] / final if final else EVAL_RATIO * per_second
    tokens = per_second * (seconds - final)
    held_out = tokens // trunk.train.eval_every_tokens * trunk.data.curve_eval_tokens
    training = seconds - final - held_out * members / evaluation
    return Rate(train=tokens * members / training, evaluation=evaluation, members=members)


def _benchmarked(config: SweepConfig) -> dict[str, Rate]:
    table = _table(config)
    sizes = [0, *(tier.n_total for tier in config.launch.slurm.tiers)]
    places = {place(config.launch, n_total) for n_total in sizes}
    return {k: Rate(**v) for where in places for k, v in table.get(where, {}).items()}


def _table(config: SweepConfig) -> dict:
    path = _cache(config)
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise ConfigError(f"{path}: damaged ({error}); delete it and measure again") from None


def _cache(config: SweepConfig) -> Path:
    return Path(config.runs_dir, "speed.json")
