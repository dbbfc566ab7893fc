"""The state of a training run, and where it lies on disk.

`trunk-<step>.pt` is saved where a horizon branches off, `latest.pt` by the clock and when training
is closed. A run starts from the nearest of them, so a killed run, a longer horizon and a shorter
one are the same case. Branches that are trained side by side have a `latest-<stop>.pt` each.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from minigpt import checkpoint, optim
from minigpt.config import DataConfig, ModelConfig, TrainConfig
from minigpt.data import Corpus
from minigpt.group import SINGLE, Group
from minigpt.model import MiniGPT
from minigpt.schedule import Horizon

RECENT_STEPS = 50  # a run's train_loss is the mean over its last steps


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained, on what, where, by how many; `device` is this rank's.

    A step's batch goes through the model in `passes` parts, for want of memory. With `compiled` a
    model on a GPU is compiled, which takes a minute.
    """

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    corpus: Corpus
    folder: Path
    device: str = "cpu"
    checkpoint_seconds: float = 60.0
    group: Group = SINGLE
    passes: int = 1
    compiled: bool = False


@dataclass
class State:
    """What training changes: weights and moments on the device, and what its losses were."""

    model: MiniGPT
    wrapped: nn.Module  # the model whose backward pass averages over the ranks
    optimizer: torch.optim.Optimizer
    recent: Tensor  # losses of the last steps, in a ring, on the CPU
    loss_sum: float = 0.0  # since the last evaluation
    loss_count: int = 0
    worst: float = 0.0  # since the last look: a model can blow up and go quiet between two
    step: int = 0
    branch: int | None = None  # the stop of the horizon whose branch this is; None on the trunk
    from_step: int = 0
    began: float = 0.0  # clocks, set back by what earlier processes spent on this run
    cpu_began: float = 0.0


def note(state: State, losses: Sequence[float]) -> None:
    """Take note of the losses of the last steps, now that they were looked at."""
    for step, loss in enumerate(losses, state.step - len(losses)):
        state.recent[step % RECENT_STEPS] = loss
        state.loss_sum += loss
        if math.isnan(loss) or loss > state.worst:
            state.worst = loss
    state.loss_count += len(losses)


def fresh(job: Job) -> State:
    """The state before the first step."""
    model = MiniGPT(job.model, seed=job.train.seed)
    return State(
        model,
        job.group.wrap(model, job.device),
        optim.optimizer(model, job.train),
        recent=torch.zeros(RECENT_STEPS),
        began=time.monotonic(),
        cpu_began=time.process_time(),
    )


def resume(job: Job, at: Horizon) -> State:
    """The state nearest to `at`: `latest.pt` if on the way, a branch point, or the start.

    Only rank 0 reads files: what it finds is every rank's.
    """
    state, group = fresh(job), job.group
    with group.together():
        found = _nearest(job, at) if group.rank == 0 else None
    parameters = [p for part in state.optimizer.param_groups for p in part["params"]]
    like = {"model": state.model.state_dict(), "optimizer": {"state": dict(enumerate(parameters))}}
    best = group.scatter(found, like, job.device)
    if best is not None:
        state.model.load_state_dict(best["model"])
        state.optimizer.load_state_dict(best["optimizer"])
        state.recent, state.worst = best["recent"].cpu(), float(best["worst"])
        state.loss_sum, state.loss_count = float(best["loss_sum"]), best["loss_count"]
        state.step, state.branch = best["step"], best["branch"]
        state.from_step = state.step
        if best["on_way_to"] == at.stop:  # the same run, in an earlier process
            state.from_step = best["from_step"]
            state.began -= best["seconds"]
            state.cpu_began -= best["cpu_seconds"]
    return state


def _nearest(job: Job, at: Horizon) -> dict | None:
    # What is scattered may be too large for one device.
    device = job.device if job.group.size == 1 else "cpu"
    found = [
        path
        for path in job.folder.glob("trunk-*.pt")
        if int(path.stem.removeprefix("trunk-")) <= at.start
    ]
    best = checkpoint.load(max(found), device) if found else None
    for latest in (job.folder / "latest.pt", job.folder / f"latest-{at.stop:08d}.pt"):
        if not latest.exists():
            continue
        values = checkpoint.load(latest, device)
        on_the_way = values["branch"] == at.stop or (
            values["branch"] is None and values["step"] <= at.start
        )
        if on_the_way and (best is None or values["step"] >= best["step"]):
            best = values
    return best


def save(job: Job, state: State, at: Horizon, name: str) -> None:
    """Write the whole state to the file `name`, on its way to the horizon `at`.

    The file is the same for any number of ranks and either strategy.
    """
    job.group.agree(state.step, "step")  # shards of two steps would make a file of neither
    write(
        job.group,
        job.folder / name,
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
            **spent(state),
        },
    )


def write(group: Group, path: Path, values: dict[str, object]) -> None:
    """Write `values` to `path` from rank 0, sharded tensors whole; every rank must call it."""
    whole = group.gather(values)
    with group.together():
        if group.rank == 0:
            checkpoint.save(path, whole)


def spent(state: State) -> dict:
    """Where this run's own part began, and the time that went into it in all processes."""
    return {
        "from_step": state.from_step,
        "seconds": time.monotonic() - state.began,
        "cpu_seconds": time.process_time() - state.cpu_began,
    }
