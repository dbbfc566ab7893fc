"""Training: one trunk to one of its horizons, on one screen.

`train` is a generator: it yields what happens and the caller writes it down. On one CPU thread the
losses do not depend on where it started (see `minigpt.state`), to the last bit. With several ranks
(see `minigpt.group`) each trains its part of every batch; losses are means over all of them.
"""

import math
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import torch

from minigpt import data, optim
from minigpt.config import sequences_per_rank
from minigpt.evaluate import evaluate, logits
from minigpt.model import cross_entropy
from minigpt.schedule import Horizon, branch_factor, trunk_factor
from minigpt.state import RECENT_STEPS, Job, State, note, resume, save, spent, write

REPORT_STEPS = 10  # the loss is looked at this often; also the resolution of divergence
EXPLODED = 3.0  # times ln V: a loss that no working model has after its first steps


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A sign of life after every step: the step reached and the last loss that was looked at."""

    step: int
    train_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One point of a training curve; `branch` is False on the trunk, where no rate is annealed.

    Losses in nats per token: `train_loss` the mean since the last point, `val_loss` over the first
    `curve_eval_tokens` held-out tokens with its standard error over sequences. `seconds` is the
    wall time of the run so far.
    """

    step: int
    branch: bool
    lr: float
    train_loss: float
    val_loss: float
    val_loss_se: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of a horizon: `ok` with its final losses, or `diverged` with the reason.

    `from_step` is where this run's own part began: `seconds` (wall) and `cpu_seconds` (process)
    cover that part, evaluations and earlier processes of the same run included.
    """

    status: str
    reason: str | None
    on_trunk: bool
    from_step: int
    seconds: float
    cpu_seconds: float
    train_loss: float | None = None
    val_loss: float | None = None
    val_loss_se: float | None = None
    val_bpb: float | None = None
    eval_tokens: int | None = None
    eval_seconds: float | None = None


def train(job: Job, at: Horizon, weights: Path) -> Generator[Progress | Evaluation | Result]:
    """Train to the horizon `at` from the nearest checkpoint; save its final weights to `weights`.

    Yields a Progress at the start and after every step, Evaluations, and one Result at the end.
    Closing the generator early saves `latest.pt` first. Every rank of `job.group` yields the same
    events, their times apart; all must be closed after the same one. Raises ValueError where the
    ranks do not divide a step's sequences.
    """
    config, group = job.train, job.group
    batch_size = group.size * sequences_per_rank(config.batch_tokens, job.model.seq_len, group.size)
    state = resume(job, at)
    eval_steps = max(1, config.eval_every_tokens // config.batch_tokens)
    saved, last = time.monotonic(), None

    def exploded(loss: float) -> bool:
        return not loss <= EXPLODED * math.log(job.model.vocab_size)  # nan is not

    try:
        yield Progress(step=state.step, train_loss=None)
        while state.step < at.stop:
            if state.step == at.start and state.branch is None:
                if at.start:
                    save(job, state, at, f"trunk-{at.start:08d}.pt")
                state.branch = at.stop
            factor = (
                trunk_factor(config.schedule, state.step, config.batch_tokens)
                if state.branch is None
                else branch_factor(config.schedule, state.step, at, config.batch_tokens)
            )
            optim.set_rates(state.optimizer, config.lr, factor)
            inputs, targets = data.batch(
                job.corpus,
                seed=config.seed,
                step=state.step,
                batch_size=batch_size,
                seq_len=job.model.seq_len,
                rows=group.rows(batch_size),
            )
            logits_BTV = logits(state.wrapped, inputs, job.device, config.dtype)
            loss = cross_entropy(logits_BTV, torch.from_numpy(targets).to(job.device))
            loss.backward()
            optim.clip(state.model, config.grad_clip)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            loss = group.mean(loss.detach())
            note(state, loss)

            due = state.step % eval_steps == 0 and state.step < at.stop
            if due or state.step % REPORT_STEPS == 0 or state.step == at.stop:
                last = loss.item()
                if exploded(state.worst.item()):
                    break
                state.worst = torch.zeros_like(state.worst)
            if due:  # before the sign of life: closed there, this step's point would never be taken
                yield _evaluation(job, state, factor)
            yield Progress(step=state.step, train_loss=last)
            # Clocks differ, so that ranks have to agree: not at every step, it takes time.
            agreed = group.size == 1 or state.step % REPORT_STEPS == 0
            if agreed and group.any(time.monotonic() - saved > job.checkpoint_seconds):
                save(job, state, at, "latest.pt")
                saved = time.monotonic()
        if exploded(worst := state.worst.item()):  # also where an earlier process saw it last
            yield _diverged(state, worst, job.model.vocab_size)
            return
    except GeneratorExit:
        save(job, state, at, "latest.pt")
        raise
    yield _finish(job, state, weights)


def _evaluate(job: Job, state: State, tokens: int) -> tuple[float, float | None, float, int]:
    return evaluate(state.model, job.corpus, tokens, job.device, job.train.dtype, job.group)


def _evaluation(job: Job, state: State, factor: float) -> Evaluation:
    val_loss, se, _, _ = _evaluate(job, state, job.data.curve_eval_tokens)
    train_loss = state.loss_sum.item() / state.loss_count
    state.loss_sum, state.loss_count = torch.zeros_like(state.loss_sum), 0
    return Evaluation(
        step=state.step,
        branch=state.branch is not None,
        lr=job.train.lr.hidden * factor,
        train_loss=train_loss,
        val_loss=val_loss,
        val_loss_se=se,
        seconds=time.monotonic() - state.began,
    )


def _finish(job: Job, state: State, weights: Path) -> Result:
    # Weights before the evaluation: a run that cannot be evaluated is still worth having.
    values = {"config": job.model.model_dump_json(), "model": state.model.state_dict()}
    write(job.group, weights, values)
    began = time.monotonic()
    val_loss, se, bpb, tokens = _evaluate(job, state, job.data.eval_tokens)
    if not math.isfinite(val_loss):
        reason = f"held-out loss {val_loss} after the last step"
        return Result(status="diverged", reason=reason, on_trunk=False, **spent(state))
    return Result(
        status="ok",
        reason=None,
        on_trunk=False,
        **spent(state),
        train_loss=state.recent[: min(state.step, RECENT_STEPS)].mean().item(),
        val_loss=val_loss,
        val_loss_se=se,
        val_bpb=bpb,
        eval_tokens=tokens,
        eval_seconds=time.monotonic() - began,
    )


def _diverged(state: State, loss: float, vocab_size: int) -> Result:
    limit = EXPLODED * math.log(vocab_size)
    reason = (
        f"training loss {loss:.4g} by step {state.step} (limit {EXPLODED:g} ln V = {limit:.2f})"
    )
    on_trunk = state.branch is None
    return Result(status="diverged", reason=reason, on_trunk=on_trunk, **spent(state))
