"""Suite `sweep` on a GPU: a whole sweep against what else one would do with its runs.

That is the plain loop, one run after another, each from scratch; and a process for every run, as
many at once as is best, with the whole step as one CUDA graph. Both are timed over some steps of
every size and scaled to all runs; neither is charged for evaluations, the plain loop not for its
start either.
"""

import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from experiments import store
from experiments.config import ConfigError
from experiments.contest import Contestant, MemoryShort, contestants
from experiments.figures import Findings, Row
from experiments.prepare import prepare
from experiments.spec import TrunkSpec
from experiments.stepsuite import Say
from experiments.trial import Trial

STEPS = 200  # of each size, of each way
AT_ONCE = (2, 4, 8)  # processes
SWEEP_SECONDS = 270.0  # a longer sweep is stopped, and scaled by the FLOPs of its finished runs


@dataclass(frozen=True, kw_only=True)
class _Spent:
    """Seconds that all runs of a sweep take in another way."""

    reference: float
    processes: float


def gpu_sweep_suite(config: Path, device: str, say: Say) -> Findings:
    """The sweep of `config` on this machine's GPUs (`device` "cuda") against both other ways.

    Raises ConfigError for a config that is missing or cannot be trained, and where training fails.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        chosen = [f"runs_dir={scratch}", "name=sweep", f"launch.device={device}"]
        _, _, trunks = prepare(config, chosen)  # tokenises the text, which no side pays for
        seconds, share = _sweep(config, chosen, Path(scratch, "sweep"), trunks)
        say(f"{share:.0%} of the FLOPs of one sweep: {seconds:.0f} s")
    sizes: dict[tuple[str, int], list[TrunkSpec]] = {}
    for trunk in trunks:
        key = (trunk.model.model_dump_json(), trunk.train.batch_tokens)
        sizes.setdefault(key, []).append(trunk)
    spent = [_other_ways(same, device, say) for same in sizes.values()]
    reference = sum(each.reference for each in spent)
    processes = sum(each.processes for each in spent)
    tokens = sum(run.tokens for trunk in trunks for run in trunk.runs)
    whole = seconds / share
    ways = (
        ("plain loop, run after run", reference),
        ("a process per run, several at once", processes),
        ("a sweep", whole),
    )
    rows = [
        Row(
            suite="sweep",
            variant=f"{config.stem}: {name}",
            tokens_per_second=tokens / each,
            ratio_to_reference=reference / each,
        )
        for name, each in ways
    ]
    told = f"{config.stem}: one sweep {whole:.0f} s"
    told += "" if share == 1 else f" (scaled from {share:.0%} of its FLOPs)"
    remark = (
        f"{told}, the plain loop run after run {reference:.0f} s, a process per run with a CUDA "
        f"graph {processes:.0f} s: {processes / whole:.2f} times the sweep's"
    )
    return Findings(rows=rows, remarks=[remark])


def _sweep(
    config: Path, chosen: list[str], folder: Path, trunks: list[TrunkSpec]
) -> tuple[float, float]:
    """Seconds of the sweep, its start included, and the share of its FLOPs that they were for."""
    words = [sys.executable, "-m", "experiments.sweep", "run", str(config), *chosen]
    began = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            told = process.communicate(timeout=SWEEP_SECONDS)[1].decode()
            seconds = time.monotonic() - began
        except subprocess.TimeoutExpired:
            seconds = time.monotonic() - began
            process.send_signal(signal.SIGINT)
            told = process.communicate()[1].decode()
        except BaseException:
            process.send_signal(signal.SIGINT)
            raise
    finished = {
        run.run_id
        for trunk in trunks
        for run in trunk.runs
        if store.run_state(folder, trunk, run).result is not None
    }
    whole = sum(trunk.cost() for trunk in trunks)
    share = 1 - sum(trunk.cost(done=finished) for trunk in trunks) / whole
    if share <= 0 or process.returncode not in (0, 130):
        last = (told.strip() or "no run has finished").splitlines()[-1]
        raise ConfigError(f"{config}: its sweep ended with code {process.returncode}: {last}")
    return seconds, share


def _other_ways(same: list[TrunkSpec], device: str, say: Say) -> _Spent:
    """Seconds of all runs of one size, by both other ways."""
    first, runs = same[0], sum(len(trunk.runs) for trunk in same)
    steps = sum(run.stop for trunk in same for run in trunk.runs)
    plain = Trial(
        engine="reference",
        model=first.model,
        batch_tokens=first.train.batch_tokens,
        device=device,
    )
    graph = Trial(
        engine="stack",
        model=first.model,
        batch_tokens=first.train.batch_tokens,
        device=device,
        dtype=first.train.dtype,
    )
    with contestants([False]) as (worker,):
        worker.prepare(plain)
        slow = worker.run(STEPS).wall
    began = time.monotonic()
    with contestants([True] * max(AT_ONCE)) as workers:
        workers[0].prepare(graph)
        start = time.monotonic() - began  # of a process until its first steps
        best, at_once = workers[0].run(STEPS).wall, 1
        prepared = [workers[0]]
        for count in AT_ONCE:
            try:
                while len(prepared) < count:
                    workers[len(prepared)].prepare(graph)
                    prepared.append(workers[len(prepared)])
                each = _seconds(prepared)
            except MemoryShort:
                break
            best, at_once = min((best, at_once), (each, count))
    say(
        f"d_model = {first.model.d_model}: a step of the plain loop {1e3 * slow:.2f} ms, of a "
        f"graph {1e3 * best:.2f} ms with {at_once} processes; a start {start:.1f} s"
    )
    return _Spent(reference=slow * steps, processes=best * steps + start * runs / at_once)


def _seconds(workers: list[Contestant]) -> float:
    """For each step, with all workers at theirs."""
    for worker in workers:
        worker.begin(STEPS)
    return 1 / sum(1 / worker.end().wall for worker in workers)
