"""Training: one model to one of its horizons, or several side by side, on one screen.

`train` is a generator: it yields what happens and the caller writes it down. On one CPU thread the
losses of a model by itself do not depend on where it started (see `minigpt.state`), to the last
bit. With several ranks (see `minigpt.group`) each trains its part of every batch; losses are means
over all of them. Models side by side (see `minigpt.stack`) have the losses each would have alone,
but for rounding.
"""

import time
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minigpt.config import sequences_per_rank
from minigpt.event import Event, Progress
from minigpt.member import Member, Training
from minigpt.schedule import Horizon
from minigpt.stack import Stack
from minigpt.state import Job, resume
from minigpt.step import Single

REPORT_STEPS = 10  # the losses are looked at this often; also the resolution of divergence


def train(job: Job, at: Horizon, weights: Path) -> Generator[Event]:
    """Train one model to the horizon `at`; yields a Progress after every step (see `train_all`)."""
    member = Member(job=job, at=at, weights=weights, marks=(at.start,))
    events = train_all([member])
    try:
        for _, event in events:
            yield event
    finally:
        events.close()


def train_all(members: Sequence[Member]) -> Generator[tuple[int, Event]]:
    """Train `members`, of one shape, side by side, each from its nearest checkpoint.

    Yields, with the member's index, a Progress at the start and after steps, Evaluations, and one
    Result at its end. Closing the generator early saves every member's latest checkpoint first.
    Every rank of a group yields the same events, their times apart; all must be closed after the
    same one. Raises ValueError where the ranks do not divide a step's sequences.
    """
    first = members[0].job
    sequences_per_rank(first.train.batch_tokens, first.model.seq_len, first.group.size)
    group, checkpoint_seconds = first.group, first.checkpoint_seconds
    trainings = [Training(i, each, resume(each.job, each.at)) for i, each in enumerate(members)]
    engine: Single | Stack | None = None
    saved = time.monotonic()
    unseen: list[Tensor] = []  # losses_M on the device: to look at them is to wait for it

    def look(judge: bool) -> None:
        seen = torch.stack(unseen).T.tolist() if unseen else [[]] * len(trainings)
        unseen.clear()
        for training, losses in zip(trainings, seen, strict=True):
            training.look(losses, judge)

    def save() -> None:
        look(judge=False)  # not now: where a model is found to diverge must not depend on clocks
        for training in trainings:
            training.save(training.member.latest)

    try:
        for training in trainings:
            yield training.index, Progress(step=training.state.step, train_loss=None)
        while trainings:
            if any(training.marked for training in trainings):
                look(judge=False)  # what is saved holds the losses of all its steps
            for training in trainings:
                training.branch_off()
            over = [training for training in trainings if training.over]
            for training in over:
                if (result := training.finish()) is not None:
                    yield training.index, result
                trainings.remove(training)
            if over:
                engine = None  # gives up its memory before the next one takes its own
                continue
            engine = engine or _engine(trainings)
            factors = [training.factor() for training in trainings]
            unseen.append(engine.step(factors))
            for training in trainings:
                training.state.step += 1
            leader = trainings[0].state
            looked = leader.step % REPORT_STEPS == 0
            if looked or any(t.due or t.over for t in trainings):
                look(judge=True)
            for training, factor in zip(trainings, factors, strict=True):
                if training.exploded:
                    continue
                # Before the sign of life: closed there, this step's point would never be taken.
                if training.due:
                    yield training.index, training.evaluation(factor)
                if looked or training.state is leader:
                    yield (
                        training.index,
                        Progress(step=training.state.step, train_loss=training.last),
                    )
            # Clocks differ, so that ranks have to agree: not at every step, it takes time.
            agreed = group.size == 1 or leader.step % REPORT_STEPS == 0
            if agreed and group.any(time.monotonic() - saved > checkpoint_seconds):
                save()
                saved = time.monotonic()
    except GeneratorExit:
        save()
        raise


def _engine(trainings: list[Training]) -> Single | Stack:
    """What trains them: a stack on a GPU, also of one model, for its graph.

    Ranks have none yet, nor models with dropout.
    """
    jobs = [training.member.job for training in trainings]
    states = [training.state for training in trainings]
    graph = jobs[0].device.startswith("cuda") and not jobs[0].model.dropout
    if (len(jobs) == 1 and not graph) or jobs[0].group.size > 1:
        return Single(jobs[0], states[0])
    return Stack(jobs, states)
