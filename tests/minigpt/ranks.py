"""What test_group.py runs, as one process or as every rank of several: `ranks.py STRATEGY FOLDER`.

The folder holds plan.json: a DataConfig and the cache of its shards. Every rank answers in
<rank>.json.
"""

import json
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import torch

from minigpt import checkpoint, data
from minigpt.config import DataConfig, LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.event import Progress
from minigpt.group import SINGLE, Group, join
from minigpt.loop import train
from minigpt.model import MiniGPT
from minigpt.schedule import horizon
from minigpt.state import Job

SEQ_LEN, SEQUENCES = 16, 6  # three sequences for each of two ranks
BATCH = SEQUENCES * SEQ_LEN
SCHEDULE = ScheduleConfig(warmup_tokens=5 * BATCH)
LONG, SHORT = (horizon(SCHEDULE, steps * BATCH, BATCH) for steps in (100, 30))
SIZES = {"d_model": 8, "n_layers": 2, "n_heads": 2, "d_ff": 20, "vocab_size": 257}
MODELS = {
    preset: ModelConfig.model_validate({**SIZES, "preset": preset, "seq_len": SEQ_LEN})
    for preset in ("gpt", "vaswani")
}
TIMES = ("seconds", "cpu_seconds", "eval_seconds")


def rates(hidden: float, embedding: float) -> LearningRates:
    return LearningRates(hidden=hidden, embedding=embedding, head=hidden, vector=hidden)


def job_in(
    folder: Path, plan: dict, group: Group = SINGLE, preset: str = "gpt", **changes: object
) -> Job:
    """A small job in a new or old folder; `changes` are of its TrainConfig."""
    folder.mkdir(parents=True, exist_ok=True)
    config = DataConfig.model_validate(plan["data"])
    training = {
        "lr": rates(0.01, 0.02),
        "schedule": SCHEDULE,
        "batch_tokens": BATCH,
        "weight_decay": 0.01,
        "grad_clip": 0.5,  # below the first norms: it acts
        "eval_every_tokens": 15 * BATCH,
    }
    return Job(
        model=MODELS[preset],
        data=config,
        train=TrainConfig.model_validate(training | changes),
        corpus=data.prepare(config, Path(plan["cache"])),
        folder=folder,
        checkpoint_seconds=1e9,
        group=group,
    )


def events_of(job: Job, at=LONG, stop: int | None = None) -> list[dict]:
    """Train to `at`, or close after the sign of life of step `stop`: events, without their times.

    Tokens of the final weights are in weights.pt.
    """
    found, events = [], train(job, at, job.folder / "weights.pt")
    for event in events:
        values = {key: value for key, value in asdict(event).items() if key not in TIMES}
        found.append({"kind": type(event).__name__, **values})
        if isinstance(event, Progress) and event.step == stop:
            events.close()
    return found


def trained(folder: Path, plan: dict, group: Group) -> dict:
    """Events of runs: uninterrupted, taken over from one process, in half precision, diverged.

    With dropout: uninterrupted and interrupted.
    """
    found = {}
    for preset in MODELS:
        found[preset] = events_of(job_in(folder / preset, plan, group, preset))
        taken_over = job_in(folder / f"{preset}-begun", plan, group, preset)
        found[f"{preset}-begun"] = events_of(taken_over, stop=85)
    for name, stop in (("dropout", None), ("dropout-closed", 17)):
        model = MODELS["gpt"].model_copy(update={"dropout": 0.1})
        job = replace(job_in(folder / name, plan, group), model=model)
        found[name] = events_of(job, SHORT, stop=stop)
        found[name] = events_of(job, SHORT) if stop else found[name]
    half = job_in(folder / "half", plan, group, dtype="bfloat16")
    found["half"] = events_of(half, SHORT)
    found["diverged"] = events_of(job_in(folder / "wild", plan, group, lr=rates(1e3, 1e3)))
    return found


def step_saved_by_the_clock(folder: Path, plan: dict, group: Group) -> int:
    """Of latest.pt after 25 steps, where rank 1 alone thinks that it is always time."""
    seconds = 0.0 if group.rank == 1 else 1e9
    job = replace(job_in(folder / "clock", plan, group), checkpoint_seconds=seconds)
    events = train(job, SHORT, job.folder / "weights.pt")
    assert any(isinstance(event, Progress) and event.step == 25 for event in events)
    step = checkpoint.load(job.folder / "latest.pt")["step"]
    group.agree(25, "step")  # closing writes: not before both have read
    events.close()
    return step


def error_of(folder: Path, plan: dict, group: Group, case: str) -> str | None:
    """What an error on one rank, or a difference between them, raises on this one."""
    job = job_in(folder / "damaged", plan, group)
    if group.rank == 0:
        (job.folder / "latest.pt").write_bytes(b"no checkpoint")
    try:
        if case == "damaged checkpoint":
            next(train(job, LONG, job.folder / "weights.pt"))
        elif case == "different values":
            group.agree(7, "number")
            group.agree(group.rank, "number")
        elif case == "one fails":
            with group.together():
                if group.rank == 1:
                    raise OSError("disk full")
        else:
            with group.together():
                return "no error"
    except (OSError, ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def sharding(folder: Path, group: Group) -> dict:
    """How much of a model is on this rank, and what becomes of it in gather and scatter."""
    model = MiniGPT(MODELS["gpt"], seed=0)
    wrapped = group.wrap(model, "cpu")
    full = {**MiniGPT(MODELS["gpt"], seed=5).state_dict(), "step": 3, "loss": torch.tensor(2.0)}
    spread = group.scatter(full if group.rank == 0 else None, model.state_dict(), "cpu")
    found = {
        "wrapped": type(wrapped).__name__,
        "plain": [spread.pop("step"), spread.pop("loss").item()],
    }
    model.load_state_dict(spread)
    kept = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    found["here"] = sum(part.numel() for part in kept)
    whole = group.gather({"nested": {"model": model.state_dict()}})["nested"]["model"]
    found["gathered"] = sum(value is not None for value in whole.values())
    if group.rank == 0:
        checkpoint.save(folder / "gathered.pt", whole)
    return found


def main() -> None:
    """Answer as this rank."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    strategy, folder = sys.argv[1], Path(sys.argv[2])
    plan = json.loads((folder / "plan.json").read_text())
    with join("cpu", strategy) as (group, device):
        rank, cases = group.rank, ("none", "one fails", "different values", "damaged checkpoint")
        found = {
            "place": [device, rank, group.size],
            "rows": list(range(6))[group.rows(6)],
            "any": [group.any(False), group.any(rank == 0), group.any(rank == 1), group.any(True)],
            "sum": group.sum(torch.tensor([1.0, float(rank)])).tolist(),
            "mean": group.mean(torch.tensor(float(rank))).item(),
            "broadcast": group.broadcast({"of": rank}),
            "errors": {case: error_of(folder, plan, group, case) for case in cases},
            "sharding": sharding(folder, group),
            "trained": trained(folder, plan, group),
            "saved": step_saved_by_the_clock(folder, plan, group),
        }
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
