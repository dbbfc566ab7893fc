"""`plan --measure`: time the shapes that have no rate yet, once, where their runs will execute."""

import json
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from experiments import estimate
from experiments.config import ConfigError, SweepConfig
from experiments.estimate import Rate
from experiments.resources import LaunchSection, Resources
from experiments.spec import TrunkSpec

MEASURE_MINUTES = 10
WAIT_SECONDS = 900.0  # in a cluster's queue included


def measure(config: SweepConfig, trunks: list[TrunkSpec]) -> int:
    """Measure and remember a rate for every shape that has none; return how many that were.

    Raises ConfigError with what the benchmark, or Slurm, said.
    """
    launch, runs = config.launch, Counter[str]()
    known = estimate.rates(config, trunks)
    groups: dict[str, tuple[Resources, dict[str, TrunkSpec]]] = {}
    for trunk in trunks:
        key = estimate.shape(trunk, launch)
        runs[key] += len(trunk.runs)
        if key not in known:
            asked = launch.resources(trunk.n_total)
            groups.setdefault(asked.model_dump_json(), (asked, {}))[1].setdefault(key, trunk)
    for asked, shapes in groups.values():
        most = [runs[key] for key in shapes]
        found = _run(list(shapes.values()), most, asked, config)
        where = estimate.place(launch, next(iter(shapes.values())).n_total)
        estimate.remember(config, [(where, k, r) for k, r in zip(shapes, found, strict=True)])
    return sum(len(shapes) for _, shapes in groups.values())


def _run(
    trunks: list[TrunkSpec], most: list[int], asked: Resources, config: SweepConfig
) -> list[Rate]:
    folder = Path(config.runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    # In runs_dir, because a node of a cluster has to see it.
    with tempfile.TemporaryDirectory(prefix=".speed-", dir=folder) as scratch:
        file = Path(scratch, "trunks.json")
        shapes = [
            {"trunk": trunk.model_dump(mode="json"), "runs": count}
            for trunk, count in zip(trunks, most, strict=True)
        ]
        file.write_text(json.dumps(shapes))
        words = _words(config.launch, asked, file)
        try:
            told = subprocess.run(words, capture_output=True, text=True, timeout=WAIT_SECONDS)
        except FileNotFoundError:
            raise ConfigError(
                f"--measure: no {words[0]} on this machine; run on a login node, or use "
                "launch.executor=local"
            ) from None
        except subprocess.TimeoutExpired:
            raise ConfigError(
                f"--measure: no answer within {WAIT_SECONDS / 60:.0f} minutes (is the cluster "
                "busy?); plan without it, or try again later"
            ) from None
    if told.returncode:
        lines = told.stderr.strip().splitlines() or ["it said nothing"]
        raise ConfigError(f"--measure: {words[0]}: {lines[-1]}")
    rows = [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]
    return [Rate(**row) for row in rows]


def _words(launch: LaunchSection, asked: Resources, file: Path) -> list[str]:
    own = ["-m", "experiments.speed", str(file), f"--device={launch.device}"]
    own += [f"--strategy={asked.strategy}", f"--threads={launch.threads_per_slot}"]
    own += [f"--members={launch.members}"]
    if launch.executor == "slurm":
        given = asked.model_copy(update={"time_min": MEASURE_MINUTES}).words()
        call = shlex.join([sys.executable, *own, f"--srun-ranks={asked.ranks}"])
        script = "\n".join([*launch.slurm.setup, f"exec {call}"])
        return ["srun", "--job-name=speed", *given, "bash", "-c", script]
    if asked.ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone"]
        return [sys.executable, *torchrun, f"--nproc-per-node={asked.ranks}", *own]
    return [sys.executable, *own]
