"""The process of a trial: sets it up, trains it for a round at a time, tells what was measured.

One of ours keeps freed memory (`minigpt.process`), as a sweep's does; one of the reference leaves
torch and the allocator as they are, but for its number of threads on a CPU.
"""

import gc
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

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


def work(connection: Connection, keeps: bool, threads: int) -> None:
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
            gc.collect()
            torch.cuda.empty_cache()  # the other processes of a contest may need it
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


class _Counting(TorchDispatchMode):
    """Counts the ATen operations that are dispatched while it is entered, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        # A view returns an alias of its input that nothing was written into: it does no work.
        aliases = [r.alias_info for r in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


def dispatched(step: Callable[[], object]) -> int:
    """Non-view ATen operations of one call of `step`, backward pass and optimiser included.

    The replay of a CUDA graph is none: its operations were dispatched when it was recorded.
    """
    with _Counting() as counting:
        step()
    return counting.count
