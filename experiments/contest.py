"""Trials in processes of their own that take turns, so that a busy machine is the same for all."""

import multiprocessing
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from experiments.trial import Trial
from experiments.worker import MemoryShort, Report, Round, TrialError, work


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
        self._say("run", steps)

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
        self._say(*words)
        return self._answer()

    def _say(self, *words: object) -> None:
        with suppress(OSError):  # of a process that is gone the answer tells
            self.connection.send(words)

    def _answer(self) -> Any:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
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
            process = context.Process(target=work, args=(theirs, keeps, count), daemon=True)
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


def at_once(workers: Sequence[Contestant], steps: int) -> float:
    """Steps per second on the wall, of all prepared workers together, at work at once."""
    for worker in workers:
        worker.begin(steps)
    rate, failed = 0.0, None
    for worker in workers:  # every answer is heard, so that all can be asked anew
        try:
            rate += 1 / worker.end().wall
        except TrialError as error:
            failed = error
    if failed is not None:
        raise failed
    return rate
