"""Suite `sweep` on a GPU: a whole sweep against what else one would do with its runs.

That is the plain loop, one run after another, each from scratch; and a process for every run, as
many at once as is best, with the whole step as one CUDA graph, compiled or not. They are timed over
some steps of every size and scaled to all runs; none is charged for evaluations, the plain loop not
for its start either.
"""

import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from experiments import store, tables
from experiments.config import ConfigError
from experiments.contest import Contestant, at_once, contestants
from experiments.figures import Findings, Row
from experiments.prepare import prepare
from experiments.spec import TrunkSpec
from experiments.stepsuite import Say
from experiments.trial import Trial
from experiments.worker import TrialError

PLAIN = "the plain loop, run after run"
GRAPHS = "a process per run with a CUDA graph, several at once"
COMPILED = "a process per run, compiled"
STEPS = 200  # of each size, of each way
AT_ONCE = (2, 4, 8)  # processes
SWEEP_SECONDS = 270.0  # a longer sweep is stopped, and scaled by the FLOPs that are done


def gpu_sweep_suite(config: Path, device: str, say: Say) -> Findings:
    """The sweep of `config` on this machine's GPUs (`device` "cuda") against both other ways.

    Raises ConfigError for a config that is missing or cannot be trained, and where training fails.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        chosen = [f"runs_dir={scratch}", "name=sweep", f"launch.device={device}"]
        made, corpus, trunks = prepare(config, chosen)  # tokenises, which no side pays for
        seconds, share = _sweep(config, chosen, Path(scratch, "sweep"), trunks)
        say(f"{share:.0%} of the FLOPs of one sweep: {seconds:.0f} s")
    sizes: dict[tuple[str, int], list[TrunkSpec]] = {}
    for trunk in trunks:
        key = (trunk.model.model_dump_json(), trunk.train.batch_tokens)
        sizes.setdefault(key, []).append(trunk)
    others = _other_ways(list(sizes.values()), device, say)
    tokens = sum(run.tokens for trunk in trunks for run in trunk.runs)
    whole = seconds / share
    ways = {**others, "a sweep": whole}
    rows = [
        Row(
            suite="sweep",
            variant=f"{config.stem}: {name}",
            tokens_per_second=tokens / each,
            ratio_to_reference=others[PLAIN] / each,
        )
        for name, each in ways.items()
    ]
    told = f"{config.stem}: one sweep {whole:.0f} s"
    told += "" if share == 1 else f" (scaled from {share:.0%} of its FLOPs)"
    told += "".join(
        f"; {name} {each:.0f} s, {each / whole:.2f} times" for name, each in others.items()
    )
    return Findings(rows=rows, remarks=[*tables.corpus_lines(made, corpus).splitlines(), told])


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
        finally:
            if process.poll() is None:  # this process was told to end: so is the sweep
                process.send_signal(signal.SIGINT)
    whole = sum(trunk.cost() for trunk in trunks)
    share = 1 - sum(_left(folder, trunk) for trunk in trunks) / whole
    if share <= 0 or process.returncode not in (0, 130):
        last = (told.strip() or "it got nowhere").splitlines()[-1]
        raise ConfigError(f"{config}: its sweep ended with code {process.returncode}: {last}")
    return seconds, share


def _left(sweep: Path, trunk: TrunkSpec) -> float:
    """FLOPs that `trunk` still takes, from its last branch point and with unfinished runs whole."""
    points = store.trunk_folder(sweep, trunk.trunk_id).glob("trunk-*.pt")
    reached = max((int(path.stem.removeprefix("trunk-")) for path in points), default=0)
    missing = [r for r in trunk.runs if store.run_state(sweep, trunk, r).result is None]
    on_trunk = max([0, *(run.start - reached for run in missing)])
    steps = on_trunk + sum(run.stop - run.start for run in missing)
    return trunk.cost() * steps / trunk.steps()


def _other_ways(sizes: list[list[TrunkSpec]], device: str, say: Say) -> dict[str, float]:
    """Seconds of all runs, by the name of the way."""
    found: dict[str, float] = {PLAIN: 0.0, GRAPHS: 0.0, COMPILED: 0.0}
    began = time.monotonic()
    start: float | None = None  # of a process until its first steps, several at once
    with contestants([False] + [True] * max(AT_ONCE)) as (plain, *workers):
        for same in sizes:
            first, runs = same[0], sum(len(trunk.runs) for trunk in same)
            steps = sum(run.stop for trunk in same for run in trunk.runs)
            graph = Trial(
                engine="stack",
                model=first.model,
                batch_tokens=first.train.batch_tokens,
                device=device,
                dtype=first.train.dtype,
            )
            workers[0].prepare(graph)
            start = time.monotonic() - began if start is None else start
            best, count = _best(workers, graph)
            plain.prepare(replace(graph, engine="reference"))
            slow = plain.run(STEPS).wall
            compiling = workers[0].prepare(replace(graph, compiled=device.startswith("cuda")))
            fast = workers[0].run(STEPS).wall
            found[PLAIN] += slow * steps
            found[GRAPHS] += best * steps + start * runs / count
            # Compiling is the CPU's work, so that as many as there are do it at once.
            found[COMPILED] += fast * steps + (start + compiling) * runs / max(AT_ONCE)
            say(
                f"d_model = {first.model.d_model}: a step of the plain loop {1e3 * slow:.2f} ms, "
                f"of a graph {1e3 * best:.2f} ms with {count} processes, of a compiled one "
                f"{1e3 * fast:.2f} ms; start {start:.1f} s, compiling {compiling:.1f} s"
            )
    return found


def _best(workers: list[Contestant], graph: Trial) -> tuple[float, int]:
    """Seconds for each step with as many processes at once as is best, the first one ready."""
    best, ready = (workers[0].run(STEPS).wall, 1), 1
    for count in AT_ONCE:
        try:
            while ready < count:
                workers[ready].prepare(graph)
                ready += 1
            each = 1 / at_once(workers[:count], STEPS)
        except TrialError:  # for want of memory, mostly
            break
        if each > best[0]:
            break
        best = (each, count)
    return best
