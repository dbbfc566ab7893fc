"""Suite `sweep` on a CPU: a whole sweep against `experiments.run` once for every point of its grid.

Each point is trained from scratch in a process of its own, one after another, with torch's own
number of threads. Some points of each size are timed; the others follow from their tokens.
"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments import store
from experiments.config import ConfigError
from experiments.figures import Findings, Row
from experiments.prepare import prepare
from experiments.spec import RunSpec, TrunkSpec
from experiments.stepsuite import Say

POINTS = 3  # of each size, the shortest of one seed
# Of the quick sweep: a small, a middle and a larger size, with all horizons.
SAMPLE = (
    "grid.seeds=[0]",
    "grid.sizes=[{d_model=32},{d_model=64},{d_model=96}]",
    "grid.holdout=[]",
)


@dataclass(frozen=True, kw_only=True)
class _Point:
    """A run of the grid, trained by itself: seconds, its loss, and its loss in the sweep."""

    tokens: int
    seconds: float
    loss: float
    in_sweep: float


def sweep_suite(config: Path, say: Say, whole: bool) -> Findings:
    """The sweep of `config`, or unless `whole` the sizes of SAMPLE, against its points.

    Raises ConfigError for a config that cannot be trained, and where training fails.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        here = Path(scratch)
        chosen = [f"runs_dir={scratch}", "name=sweep", "launch.device=cpu"]
        chosen += [] if whole else SAMPLE
        _, _, trunks = prepare(config, chosen)  # tokenises the text, which neither side pays for
        runs = [(trunk, run) for trunk in trunks for run in trunk.runs]
        seconds = timed("experiments.sweep", "run", str(config), *chosen)
        say(f"{len(runs)} runs in one sweep: {seconds:.0f} s")
        sizes: dict[str, list[TrunkSpec]] = {}
        for trunk in trunks:
            sizes.setdefault(trunk.model.model_dump_json(), []).append(trunk)
        total, points = 0.0, []
        for same in sizes.values():
            own = [_point(here, same[0], run) for run in same[0].runs[:POINTS]]
            every = [run.tokens for trunk in same for run in trunk.runs]
            estimated = _estimate(own, every)
            total, points = total + estimated, points + own
            told = f"d_model = {same[0].model.d_model}: points of " + ", ".join(
                f"{p.seconds:.1f}" for p in own
            )
            say(f"{told} s; all {len(every)} would take {estimated:.0f} s")
        cheapest, first = min(runs, key=lambda pair: pair[0].flops(pair[1]))
        exact = _point(here, cheapest, first, "--threads", "1")
    return _findings(config.stem, [run.tokens for _, run in runs], seconds, total, points, exact)


def timed(module: str, *words: str) -> float:
    """Seconds of `python -m module words`, its start included.

    Raises ConfigError with its last words where it fails.
    """
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise ConfigError(f"{module} {' '.join(words)}: exit code {done.returncode}: {last}")
    return time.monotonic() - began


def _point(scratch: Path, trunk: TrunkSpec, run: RunSpec, *words: str) -> _Point:
    """Train `run` by itself, as the only horizon of its trunk."""
    sweep = scratch / f"alone-{run.run_id}{''.join(words)}"
    store.write_spec(sweep, trunk.model_copy(update={"runs": (run,)}))
    folder = store.trunk_folder(sweep, trunk.trunk_id)
    seconds = timed("experiments.run", str(folder), *words)
    in_sweep = store.trunk_folder(scratch / "sweep", trunk.trunk_id)
    loss, other = (
        json.loads((where / f"{run.run_id}.json").read_text())["val_loss"]
        for where in (folder, in_sweep)
    )
    return _Point(tokens=run.tokens, seconds=seconds, loss=loss, in_sweep=other)


def _estimate(points: list[_Point], every: list[int]) -> float:
    """Seconds of runs of `every` number of tokens: a start-up, and a time for each token."""
    tokens, seconds = ([float(getattr(p, key)) for p in points] for key in ("tokens", "seconds"))
    slope, start = np.polyfit(tokens, seconds, 1) if len(points) > 1 else (0.0, 0.0)
    if slope <= 0 or start < 0:  # noise, or a single point: all of the time goes with the tokens
        slope, start = sum(seconds) / sum(tokens), 0.0
    return float(sum(start + slope * each for each in every))


def _findings(
    name: str,
    tokens: list[int],
    seconds: float,
    alone: float,
    points: list[_Point],
    exact: _Point,
) -> Findings:
    apart = max(abs(p.loss - p.in_sweep) for p in points)
    same = "the same" if exact.loss == exact.in_sweep else "not the same"
    variants = (("a process per run, in turn", alone, 1.0), ("a sweep", seconds, alone / seconds))
    return Findings(
        rows=[
            Row(
                suite="sweep",
                variant=f"{name}: {variant}",
                tokens_per_second=sum(tokens) / spent,
                ratio_to_reference=ratio,
            )
            for variant, spent, ratio in variants
        ],
        remarks=[
            f"{name}: {len(tokens)} runs in {seconds:.0f} s by one sweep; one after another from "
            f"scratch about {alone:.0f} s, from {len(points)} of them",
            f"held-out losses of those in the sweep and alone: at most {apart:.1e} apart; on one "
            f"thread {same} to the last bit",
        ],
    )
