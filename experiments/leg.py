"""Legs: what of a trunk is trained in one go, by itself or beside others of the same shape.

One trunk by itself is trained run after run, each from the last branch point. Side by side, trunks
come first, each as far as its longest run needs it; then all branches, which are many.
"""

import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, field

import torch

from experiments.peaks import vendor_peak
from experiments.record import Record, now
from experiments.spec import Event, RunSpec
from minigpt.counts import flops_per_token
from minigpt.event import Evaluation, Progress, Result
from minigpt.event import Event as Told
from minigpt.member import Member
from minigpt.schedule import Horizon
from minigpt.state import Job

PROGRESS_SECONDS = 0.25


@dataclass
class Hand:
    """A trunk in hand: what trains it, where it is written down, which runs are still missing."""

    job: Job
    record: Record
    missing: list[RunSpec]
    diverged: Result | None = None  # on the trunk: every run that leaves it later has too
    failed: bool = False


@dataclass
class Leg:
    """The way to `run`'s end, or with `alone` to where it leaves the trunk, saving `marks`."""

    hand: Hand
    run: RunSpec
    marks: tuple[int, ...]
    alone: bool = False
    members: int = 1  # of its stage
    first: int | None = None
    began: float = field(default_factory=time.monotonic)
    started: str = field(default_factory=now)
    told: float = 0.0

    @property
    def steps(self) -> int:
        """Steps of its part, as if the trunk had been trained before."""
        return self.run.start if self.alone else self.run.stop - self.run.start

    def member(self) -> Member:
        """What is trained."""
        job, run = self.hand.job, self.run
        return Member(
            job=job,
            at=Horizon(start=run.start, stop=run.start if self.alone else run.stop),
            weights=job.folder / f"{run.run_id}.pt",
            marks=self.marks,
            latest="latest.pt" if self.alone or self.members == 1 else f"latest-{run.stop:08d}.pt",
        )

    def hear(self, event: Told) -> Generator[Event]:
        """Write down what its training tells, and pass on what is news."""
        record, run, batch = self.hand.record, self.run, self.hand.job.train.batch_tokens
        if isinstance(event, Evaluation):
            record.point(event, run)
        elif isinstance(event, Progress):
            if self.first is None:
                self.first = event.step
                beside = f", beside {self.members - 1} others" if self.members > 1 else ""
                stop = run.start if self.alone else run.stop
                name = "trunk" if self.alone else f"{run.run_id} D={run.tokens}"
                if record.group.rank == 0:
                    record.log(f"{name} from step {event.step} of {stop}{beside}")
            elif (clock := time.monotonic()) - self.told > PROGRESS_SECONDS:
                self.told = clock
                record.progress(run.run_id, event.step, event.train_loss)
                yield Event(
                    kind="progress",
                    trunk_id=record.trunk.trunk_id,
                    run_id=run.run_id,
                    step=event.step,
                    train_loss=event.train_loss,
                    tokens_per_second=(event.step - self.first) * batch / (clock - self.began),
                )
        elif self.alone:  # only what goes wrong is told of a trunk
            self.hand.diverged = event
        else:
            yield from self._ended(event)

    def skip(self, result: Result) -> Generator[Event]:
        """The end of a run whose trunk ended with `result` before it came to its branch."""
        values = {"status": result.status, "reason": result.reason}
        yield from self._write({**values, "started": self.started})

    def _ended(self, result: Result) -> Generator[Event]:
        job, values = self.hand.job, asdict(result)
        if values["evals"] is None:
            del values["evals"]  # where the config has none, the run says nothing of them
        if values.pop("on_trunk"):
            self.hand.diverged = result
        cuda = job.device.startswith("cuda")
        peak = vendor_peak(torch.cuda.get_device_name(job.device)) if cuda else None
        steps = values.pop("step") - values.pop("from_step")
        training = result.seconds - (result.eval_seconds or 0.0)
        speed = steps * job.train.batch_tokens / training if result.status == "ok" else 0.0
        # The table of peaks is of bfloat16. Models side by side share the device.
        known = speed and peak and job.train.dtype == "bfloat16"
        values |= {
            "tokens_per_second": speed or None,
            "mfu": speed * flops_per_token(job.model).exact / peak if known and peak else None,
            "peak_memory_bytes": torch.cuda.max_memory_allocated(job.device) if cuda else None,
            "members": self.members,
            "micro_batch": -(-job.train.batch_tokens // job.passes),
            "started": self.started,
        }
        (job.folder / f"latest-{self.run.stop:08d}.pt").unlink(missing_ok=True)
        yield from self._write(values)

    def _write(self, values: dict) -> Generator[Event]:
        hand, run = self.hand, self.run
        whole = hand.record.result(run, values)
        hand.missing.remove(run)
        trunk_id = hand.record.trunk.trunk_id
        yield Event(kind="finished", trunk_id=trunk_id, run_id=run.run_id, result=whole)


def stages(hands: list[Hand], members: int) -> list[list[Leg]]:
    """What to train in which order; the legs of a stage side by side, at most `members` of them."""
    hands = [hand for hand in hands if not hand.failed and hand.missing]
    alone = len(hands) == 1 and len(hands[0].missing) == 1
    if members == 1 or alone:
        return [[Leg(hand, run, marks=(run.start,))] for hand in hands for run in hand.missing]
    trunks = [leg for hand in hands if (leg := _trunk(hand)) is not None]
    branches = [Leg(hand, run, marks=(run.start,)) for hand in hands for run in hand.missing]
    found = []
    for legs in (trunks, branches):  # those of alike length together: a stage lasts as its longest
        ordered = sorted(legs, key=lambda leg: -leg.steps)
        found += [ordered[i : i + members] for i in range(0, len(ordered), members)]
    return [_together(legs) for legs in found]


def again(legs: list[Leg]) -> list[Leg]:
    """The legs of a stage, to be tried once more."""
    return _together([Leg(leg.hand, leg.run, leg.marks, leg.alone) for leg in legs])


def halves(legs: list[Leg]) -> list[list[Leg]]:
    """The legs of a stage as those of two, to be tried again; one leg as itself."""
    half = len(legs) // 2
    return [again(part) for part in (legs[:half], legs[half:]) if part]


def _together(legs: list[Leg]) -> list[Leg]:
    for leg in legs:
        leg.members = len(legs)
    return legs


def _trunk(hand: Hand) -> Leg | None:
    """The trunk as far as missing runs need it; None if their branch points are all there."""
    starts = sorted({run.start for run in hand.missing} - {0})
    folder = hand.job.folder
    if all((folder / f"trunk-{start:08d}.pt").exists() for start in starts):
        return None
    return Leg(hand, hand.missing[-1], marks=tuple(starts), alone=True)
