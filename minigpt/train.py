"""Training: one trunk to one of its horizons, on one screen.

`train` is a generator: it yields what happens and the caller writes it down. Everything a later
call needs lies in the folder: `trunk-<step>.pt` where a horizon branched off, and `latest.pt`,
saved by the clock and when the generator is closed. A call starts from the nearest of them, so a
killed run, a longer horizon and a shorter one are the same case. On one CPU thread the losses do
not depend on where it started, to the last bit.
"""

import math
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt import checkpoint, data, optim
from minigpt.config import DataConfig, ModelConfig, TrainConfig
from minigpt.data import Corpus
from minigpt.model import MiniGPT, cross_entropy
from minigpt.schedule import Horizon, branch_factor, trunk_factor

REPORT_STEPS = 10  # the loss is looked at this often; also the resolution of divergence
EXPLODED = 3.0  # times ln V: a loss that no working model has after its first steps
EVAL_BATCH_TOKENS = 2_048


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A sign of life: the step reached and its loss in nats per token, None before the first."""

    step: int
    train_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One point of a training curve; `branch` is False on the trunk, where the rate is not
    annealed.

    Losses in nats per token: `train_loss` the mean since the last point, `val_loss` over the first
    `curve_eval_tokens` held-out tokens with its standard error over sequences.
    """

    step: int
    branch: bool
    lr: float
    train_loss: float
    val_loss: float
    val_loss_se: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The end of a horizon: `ok` with its final losses, or `diverged` with the reason."""

    status: str
    reason: str | None
    on_trunk: bool
    train_loss: float | None = None
    val_loss: float | None = None
    val_loss_se: float | None = None
    val_bpb: float | None = None
    eval_tokens: int | None = None
    eval_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, where."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    corpus: Corpus
    folder: Path
    device: str = "cpu"
    checkpoint_seconds: float = 60.0


@dataclass
class _State:
    model: MiniGPT
    optimizer: torch.optim.Optimizer
    loss_sum: Tensor  # training losses since the last evaluation
    worst: Tensor  # the largest since the last look; a model can blow up and go quiet between two
    loss_count: int = 0
    step: int = 0
    branch: int | None = None  # the stop of the horizon whose branch this is; None on the trunk


def train(job: Job, at: Horizon, weights: Path) -> Generator[Progress | Evaluation | Result]:
    """Train to the horizon `at` from the nearest checkpoint; save its final weights to `weights`.

    Yields Progress (first of all with the step it starts from) and Evaluation as they come, and one
    Result at the end. Closing the generator early saves `latest.pt` first.
    """
    state, config = _resume(job, at), job.train
    batch_size = config.batch_tokens // job.model.seq_len
    eval_steps = max(1, config.eval_every_tokens // config.batch_tokens)
    began = saved = time.monotonic()
    try:
        yield Progress(step=state.step, train_loss=None)
        while state.step < at.stop:
            if state.step == at.start and state.branch is None:
                if at.start:
                    _save(state, job.folder / f"trunk-{at.start:08d}.pt")
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
            )
            with _autocast(job):
                logits_BTV = state.model(_tensor(inputs, job))
            loss = cross_entropy(logits_BTV, _tensor(targets, job))
            loss.backward()
            optim.clip(state.model, config.grad_clip)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.loss_sum += loss.detach()
            state.worst = torch.maximum(state.worst, loss.detach())
            state.loss_count += 1

            if state.step % REPORT_STEPS == 0 or state.step == at.stop:
                worst = state.worst.item()
                if not worst <= EXPLODED * math.log(job.model.vocab_size):
                    yield _diverged(state, worst, job.model.vocab_size)
                    return
                state.worst = torch.zeros_like(state.worst)
            # Before the sign of life: closed there, this step's point would never be taken.
            if state.step % eval_steps == 0 and state.step < at.stop:
                yield _evaluation(job, state, factor, began)
            if state.step % REPORT_STEPS == 0 or state.step == at.stop:
                yield Progress(step=state.step, train_loss=loss.item())
            if time.monotonic() - saved > job.checkpoint_seconds:
                _save(state, job.folder / "latest.pt")
                saved = time.monotonic()
    except GeneratorExit:
        _save(state, job.folder / "latest.pt")
        raise
    yield _finish(job, state, weights)


def evaluate(model: MiniGPT, job: Job, tokens: int) -> tuple[float, float, float, int]:
    """Loss on the first `tokens` held-out tokens: mean, standard error (nats per token), bits per
    byte, tokens.

    The standard error is over sequences. Bits per byte divides by the bytes of text among the
    targets: an end-of-text token costs bits but is no byte.
    """
    seq_len = model.config.seq_len
    count, per_batch = tokens // seq_len, max(1, EVAL_BATCH_TOKENS // seq_len)
    losses, n_bytes = [], 0
    model.eval()
    with torch.inference_mode():
        for start in range(0, count, per_batch):
            inputs, targets = data.held_out(
                job.corpus, tokens=tokens, seq_len=seq_len, start=start, batch_size=per_batch
            )
            with _autocast(job):
                logits_BTV = model(_tensor(inputs, job))
            flat = F.cross_entropy(
                logits_BTV.float().flatten(0, 1), _tensor(targets, job).flatten(), reduction="none"
            )
            losses.append(flat.view(targets.shape).double().mean(dim=1))
            n_bytes += int((targets < data.END_OF_TEXT).sum())
    model.train()
    loss_B = torch.cat(losses)
    mean = loss_B.mean().item()
    se = loss_B.std().item() / math.sqrt(count) if count > 1 else math.nan
    n_tokens = count * seq_len
    return mean, se, mean * n_tokens / (math.log(2) * n_bytes), n_tokens


def _resume(job: Job, at: Horizon) -> _State:
    """The state nearest to `at`: `latest.pt` if on the way, a branch point, or the start."""
    model = MiniGPT(job.model, seed=job.train.seed).to(job.device)
    zero = torch.zeros((), device=job.device)
    state = _State(model, optim.optimizer(model, job.train), zero.clone(), zero.clone())
    found = [
        path
        for path in job.folder.glob("trunk-*.pt")
        if int(path.stem.removeprefix("trunk-")) <= at.start
    ]
    best = checkpoint.load(max(found), job.device) if found else None
    latest = job.folder / "latest.pt"
    if latest.exists():
        values = checkpoint.load(latest, job.device)
        on_the_way = values["branch"] == at.stop or (
            values["branch"] is None and values["step"] <= at.start
        )
        if on_the_way and (best is None or values["step"] >= best["step"]):
            best = values
    if best is not None:
        state.model.load_state_dict(best["model"])
        state.optimizer.load_state_dict(best["optimizer"])
        state.loss_sum, state.loss_count = best["loss_sum"], best["loss_count"]
        state.worst = best["worst"]
        state.step, state.branch = best["step"], best["branch"]
    return state


def _save(state: _State, path: Path) -> None:
    checkpoint.save(
        path,
        {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "loss_sum": state.loss_sum,
            "loss_count": state.loss_count,
            "worst": state.worst,
            "step": state.step,
            "branch": state.branch,
        },
    )


def _evaluation(job: Job, state: _State, factor: float, began: float) -> Evaluation:
    val_loss, se, _, _ = evaluate(state.model, job, job.data.curve_eval_tokens)
    train_loss = _mean_train_loss(state)
    return Evaluation(
        step=state.step,
        branch=state.branch is not None,
        lr=job.train.lr.hidden * factor,
        train_loss=train_loss,
        val_loss=val_loss,
        val_loss_se=se,
        seconds=time.monotonic() - began,
    )


def _mean_train_loss(state: _State) -> float:
    mean = state.loss_sum.item() / max(1, state.loss_count)
    state.loss_sum, state.loss_count = torch.zeros_like(state.loss_sum), 0
    return mean


def _finish(job: Job, state: _State, weights: Path) -> Result:
    # Weights before the evaluation: a run that cannot be evaluated is still worth having.
    checkpoint.save(
        weights, {"config": job.model.model_dump_json(), "model": state.model.state_dict()}
    )
    began = time.monotonic()
    val_loss, se, bpb, tokens = evaluate(state.model, job, job.data.eval_tokens)
    if not math.isfinite(val_loss):
        reason = f"held-out loss {val_loss} after the last step"
        return Result(status="diverged", reason=reason, on_trunk=False)
    return Result(
        status="ok",
        reason=None,
        on_trunk=False,
        train_loss=_mean_train_loss(state),
        val_loss=val_loss,
        val_loss_se=se,
        val_bpb=bpb,
        eval_tokens=tokens,
        eval_seconds=time.monotonic() - began,
    )


def _diverged(state: _State, loss: float, vocab_size: int) -> Result:
    limit = EXPLODED * math.log(vocab_size)
    reason = (
        f"training loss {loss:.4g} by step {state.step} (limit {EXPLODED:g} ln V = {limit:.2f})"
    )
    return Result(status="diverged", reason=reason, on_trunk=state.branch is None)


def _autocast(job: Job) -> AbstractContextManager:
    if job.train.dtype == "float32":
        return nullcontext()
    return torch.autocast(job.device.split(":")[0], dtype=torch.bfloat16)


def _tensor(array, job: Job) -> Tensor:
    return torch.from_numpy(array).to(job.device)
