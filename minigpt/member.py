"""One model among those that are trained side by side: where its training ends, and how it goes."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.data import Corpus
from minigpt.evaluate import evaluate
from minigpt.event import Evaluation, Result
from minigpt.schedule import Horizon, branch_factor, trunk_factor
from minigpt.state import RECENT_STEPS, Job, State, note, save, spent, write

EXPLODED = 3.0  # times ln V: a loss that no working model has after its first steps


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model and where its training ends: the horizon `at`, whose weights go to `weights`.

    A horizon whose branch has no steps is the trunk alone: it ends without a result. `marks` are
    the steps of the trunk that are saved as branch points; `latest` is the checkpoint by the clock.
    """

    job: Job
    at: Horizon
    weights: Path
    marks: tuple[int, ...]
    latest: str = "latest.pt"


class Training:
    """A member on its way, at `state`."""

    def __init__(self, index: int, member: Member, state: State) -> None:
        self.index, self.member, self.state = index, member, state
        self.last: float | None = None  # the last loss that was looked at
        self.exploded = False

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.exploded or self.state.step >= self.member.at.stop

    @property
    def due(self) -> bool:
        """Whether the step just trained is a point of the curve; a horizon's end is not."""
        config, at = self.member.job.train, self.member.at
        every = max(1, config.eval_every_tokens // config.batch_tokens)
        ended = self.state.step >= at.stop > at.start
        return self.state.step % every == 0 and not ended

    @property
    def marked(self) -> bool:
        """Whether it stands at a branch point of its trunk."""
        on_trunk = self.state.branch is None and self.state.step > 0
        return on_trunk and self.state.step in self.member.marks

    def branch_off(self) -> None:
        """Save a branch point that the trunk has come to; leave the trunk at the horizon's own."""
        state, at = self.state, self.member.at
        if self.marked:
            self.save(f"trunk-{state.step:08d}.pt")
        if state.branch is None and at.start == state.step < at.stop:
            state.branch = at.stop

    def factor(self) -> float:
        """The rate factor of the next step."""
        state, config = self.state, self.member.job.train
        if state.branch is None:
            return trunk_factor(config.schedule, state.step, config.batch_tokens)
        return branch_factor(config.schedule, state.step, self.member.at, config.batch_tokens)

    def look(self, losses: Sequence[float], judge: bool) -> None:
        """Take note of the last steps' losses; with `judge`, of what they mean."""
        note(self.state, losses)
        if judge:
            self.last = losses[-1] if losses else self.last
            self.exploded = self._exploded()
            self.state.worst = self.state.worst if self.exploded else 0.0

    def save(self, name: str) -> None:
        """Write the whole state to the file `name` of the trunk's folder."""
        save(self.member.job, self.state, self.member.at, name)

    def evaluation(self, factor: float) -> Evaluation:
        """The point of the curve after a step at `factor`."""
        job, state = self.member.job, self.state
        val_loss, se, _, _ = self._evaluate(job.data.curve_eval_tokens)
        train_loss = state.loss_sum / state.loss_count
        state.loss_sum, state.loss_count = 0.0, 0
        return Evaluation(
            step=state.step,
            branch=state.branch is not None,
            lr=job.train.lr.hidden * factor,
            train_loss=train_loss,
            val_loss=val_loss,
            val_loss_se=se,
            seconds=time.monotonic() - state.began,
        )

    def finish(self) -> Result | None:
        """How it ended: None for a trunk alone that is well."""
        job, state = self.member.job, self.state
        if self._exploded():  # also where an earlier process saw it last
            return self._result("diverged", self._reason())
        if self.member.at.start == self.member.at.stop:
            return None
        # Weights before the evaluation: a run that cannot be evaluated is still worth having.
        tokenizer = job.corpus.tokenizer
        values = {
            "config": job.model.model_dump_json(),
            "model": state.model.state_dict(),
            "tokenizer": tokenizer.to_json() if tokenizer else None,
        }
        write(job.group, self.member.weights, values)
        began = time.monotonic()
        val_loss, se, bpb, tokens = self._evaluate(job.data.eval_tokens)
        evals = {name: self._eval(corpus) for name, corpus in job.corpus.evals.items()}
        if not math.isfinite(val_loss):
            return self._result("diverged", f"held-out loss {val_loss} after the last step")
        return self._result(
            "ok",
            None,
            train_loss=state.recent[: min(state.step, RECENT_STEPS)].mean().item(),
            val_loss=val_loss,
            val_loss_se=se,
            val_bpb=bpb,
            eval_tokens=tokens,
            eval_seconds=time.monotonic() - began,
            evals=evals or None,
        )

    def _eval(self, corpus: Corpus) -> dict:
        """The final losses on another held-out set, as far as eval_tokens."""
        tokens = min(self.member.job.data.eval_tokens, len(corpus.val) - 1)
        loss, se, bpb, tokens = self._evaluate(tokens, corpus)
        return {"loss": loss, "loss_se": se, "bpb": bpb, "eval_tokens": tokens}

    def _result(self, status: str, reason: str | None, **losses: Any) -> Result:
        return Result(
            status=status,
            reason=reason,
            on_trunk=self.state.branch is None,
            step=self.state.step,
            **spent(self.state),
            **losses,
        )

    def _evaluate(
        self, tokens: int, corpus: Corpus | None = None
    ) -> tuple[float, float | None, float | None, int]:
        job, model = self.member.job, self.state.model
        return evaluate(model, corpus or job.corpus, tokens, job.device, job.train.dtype, job.group)

    def _limit(self) -> float:
        return EXPLODED * math.log(self.member.job.model.vocab_size)

    def _exploded(self) -> bool:
        return not self.state.worst <= self._limit()  # nan is not

    def _reason(self) -> str:
        return (
            f"training loss {self.state.worst:.4g} by step {self.state.step} "
            f"(limit {EXPLODED:g} ln V = {self._limit():.2f})"
        )
