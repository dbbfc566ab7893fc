"""The state of a training run, and where it lies on disk.

`trunk-<step>.pt` is saved where a horizon branches off, `latest.pt` by the clock and when training
is closed. A run starts from the nearest of them, so a killed run, a longer horizon and a shorter
one are the same case.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minigpt import checkpoint, optim
from minigpt.config import DataConfig, ModelConfig, TrainConfig
from minigpt.data import Corpus
from minigpt.model import MiniGPT
from minigpt.schedule import Horizon

RECENT_STEPS = 50  # a run's train_loss is the mean over its last steps


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
class State:
    """What training changes, on the device; nothing here is looked at between two reports."""

    model: MiniGPT
    optimizer: torch.optim.Optimizer
    recent: Tensor  # losses of the last steps, in a ring
    loss_sum: Tensor  # since the last evaluation
    worst: Tensor  # since the last look: a model can blow up and go quiet between two
    loss_count: int = 0
    step: int = 0
    branch: int | None = None  # the stop of the horizon whose branch this is; None on the trunk
    from_step: int = 0
    began: float = 0.0  # clocks, set back by what earlier processes spent on this run
    cpu_began: float = 0.0


def note(state: State, loss: Tensor) -> None:
    """Count one step and its loss, without looking at the loss."""
    state.recent[state.step % RECENT_STEPS] = loss
    state.loss_sum += loss
    state.worst = torch.maximum(state.worst, loss)
    state.loss_count += 1
    state.step += 1


def resume(job: Job, at: Horizon) -> State:
    """The state nearest to `at`: `latest.pt` if on the way, a branch point, or the start."""
    model = MiniGPT(job.model, seed=job.train.seed).to(job.device)
    state = State(
        model,
        optim.optimizer(model, job.train),
        recent=torch.zeros(RECENT_STEPS, device=job.device),
        loss_sum=torch.zeros((), device=job.device),
        worst=torch.zeros((), device=job.device),
        began=time.monotonic(),
        cpu_began=time.process_time(),
    )
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
        state.recent, state.worst = best["recent"], best["worst"]
        state.loss_sum, state.loss_count = best["loss_sum"], best["loss_count"]
        state.step, state.branch = best["step"], best["branch"]
        state.from_step = state.step
        if best["on_way_to"] == at.stop:  # the same run, in an earlier process
            state.from_step = best["from_step"]
            state.began -= best["seconds"]
            state.cpu_began -= best["cpu_seconds"]
    return state


def save(state: State, at: Horizon, path: Path) -> None:
    """Write the whole state to `path`, on its way to the horizon `at`."""
    checkpoint.save(
        path,
        {
            "model": state.model.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "recent": state.recent,
            "worst": state.worst,
            "loss_sum": state.loss_sum,
            "loss_count": state.loss_count,
            "step": state.step,
            "branch": state.branch,
            "on_way_to": at.stop,
            "from_step": state.from_step,
            "seconds": time.monotonic() - state.began,
            "cpu_seconds": time.process_time() - state.cpu_began,
        },
    )


def spent(state: State) -> dict:
    """Where this run's own part began, and the time that went into it in all processes."""
    return {
        "from_step": state.from_step,
        "seconds": time.monotonic() - state.began,
        "cpu_seconds": time.process_time() - state.cpu_began,
    }
