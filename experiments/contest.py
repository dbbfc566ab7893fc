"""Trials in processes of their own that take turns, so that a busy machine is the same for all.

A worker of ours keeps freed memory (`minigpt.process`), as a sweep's does; one of the reference
leaves torch and the allocator as they are, but for its number of threads on a CPU.
"""

import gc
import multiprocessing
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch

from experiments.opcount import dispatched
from experiments.peaks import matmul_peak
from experiments.trial import Loop, Trial
from minigpt.process import settle

WARM_STEPS = 3  # which allocate, choose kernels, and record a graph


class TrialError(RuntimeError):
    """A trial's process failed; its own traceback is on standard error."""


class MemoryShort(TrialError):
    """A trial does not fit into the device's memory."""


@dataclass(frozen=True)
class Round:
    """Some steps in a row: seconds of each on the wall and of the process, and their losses."""

    wall: float
    cpu: float
    losses: list[float]


@dataclass(frozen=True)
class Report:
    """What a trial tells of itself: operations of a step, peak memory, speed of a large product."""

    ops_per_step: int
    peak_memory_bytes: int
    matmul_flops: float


@dataclass
class Outcome:
    """All rounds of a trial."""

    trial: Trial
    rounds: list[Round] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of one step, median over rounds: process time on a CPU, the wall's on a GPU."""
        cuda = self.trial.device.startswith("cuda")
        return statistics.median(r.wall if cuda else r.cpu for r in self.rounds)

    @property
    def tokens_per_second(self) -> float:
        """All members together."""
        return self.trial.tokens / self.seconds

    @property
    def losses(self) -> list[float]:
        """Of every step, mean over members."""
        return [loss for r in self.rounds for loss in r.losses]


class Contestant:
    """A worker process, seen from outside: one trial at a time.

    Every method may raise MemoryShort or TrialError; after MemoryShort it can be prepared anew.
    """

    def __init__(self, process: SpawnProcess, connection: Connection) -> None:
        self.process, self.connection = process, connection

    def prepare(self, trial: Trial) -> float:
        """Set `trial` up and warm it; seconds that this took."""
        return self._ask("prepare", trial)

    def run(self, steps: int) -> Round:
        """Train so many steps."""
        self.begin(steps)
        return self.end()

    def begin(self, steps: int) -> None:
        """Start training so many steps; `end` waits for them."""
        self.connection.send(("run", steps))

    def end(self) -> Round:
        """The steps that were begun."""
        return self._answer()

    def report(self) -> Report:
        """Its figures beside speed; trains a step."""
        return self._ask("report")

    def held_out(self) -> list[float]:
        """Held-out loss of each member."""
        return self._ask("held_out")

    def _ask(self, *words: object) -> Any:
        self.connection.send(words)
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            raise TrialError(f"a trial's process ended, code {self.process.exitcode}") from None
        if isinstance(answer, MemoryShort):
            raise answer
        return answer


@contextmanager
def contestants(kept: list[bool], threads: list[int] | None = None) -> Iterator[list[Contestant]]:
    """A worker process for each of `kept`: whether it keeps freed memory, as ours do.

    `threads`: CPU threads of each (default: one each).
    """
    context = multiprocessing.get_context("spawn")
    found = []
    try:
        for keeps, count in zip(kept, threads or [1] * len(kept), strict=True):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, keeps, count), daemon=True)
            process.start()
            theirs.close()
            found.append(Contestant(process, ours))
        yield found
    finally:
        for each in found:
            each.connection.close()
        for each in found:
            each.process.join(timeout=10)
            each.process.kill()


def take_turns(
    ready: Mapping[str, tuple[Contestant, Trial]], rounds: int, seconds: float, most: int
) -> tuple[dict[str, Outcome], int]:
    """Rounds of each prepared contestant in turn, and the steps of a round, the same for all.

    A round of the first takes about `seconds`, and at most `most` steps.
    """
    first, trial = next(iter(ready.values()))
    probe = Outcome(trial, [first.run(1)])
    for contestant, _ in list(ready.values())[1:]:
        contestant.run(1)  # the loss curves stay at the same steps
    steps = min(most, max(1, round(seconds / probe.seconds)))
    found = {name: Outcome(trial) for name, (_, trial) in ready.items()}
    for _ in range(rounds):
        for name, (contestant, _) in ready.items():
            found[name].rounds.append(contestant.run(steps))
    return found, steps


def _work(connection: Connection, keeps: bool, threads: int) -> None:
    """A worker's life: answer until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    if keeps:
        settle(threads)
    else:
        torch.set_num_threads(threads)
    loop: Loop | None = None
    while True:
        try:
            verb, *words = connection.recv()
        except EOFError:
            return
        try:
            if verb == "prepare":
                loop = None
                gc.collect()
                loop, answer = _prepare(*words)
            else:
                assert loop is not None, "prepare comes first"
                answer = {"run": _run, "report": _report, "held_out": Loop.held_out}[verb](
                    loop, *words
                )
        except torch.OutOfMemoryError as error:
            loop = None
            answer = MemoryShort(str(error).partition("\n")[0])
        connection.send(answer)


def _prepare(trial: Trial) -> tuple[Loop, float]:
    began = time.monotonic()
    if trial.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(trial.device)
    loop = Loop(trial)
    loop.run(WARM_STEPS)
    _wait(trial.device)
    return loop, time.monotonic() - began


def _run(loop: Loop, steps: int) -> Round:
    device = loop.trial.device
    _wait(device)
    wall, cpu = time.perf_counter(), time.process_time()
    losses = loop.run(steps)
    _wait(device)
    return Round((time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps, losses)


def _report(loop: Loop) -> Report:
    trial = loop.trial
    cuda = trial.device.startswith("cuda")
    memory = torch.cuda.max_memory_allocated(trial.device) if cuda else _peak_resident_bytes()
    half = trial.dtype == "bfloat16" or cuda
    peak = matmul_peak(trial.device, torch.bfloat16 if half else torch.float32)
    return Report(dispatched(loop.step), memory, peak)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _peak_resident_bytes() -> int:
    """Of this process. On Linux not ru_maxrss, which starts from what the parent had."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
