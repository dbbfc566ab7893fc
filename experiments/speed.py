"""The micro-benchmark of `plan --measure`: tokens/s of each shape, in training and in evaluation.

`python -m experiments.speed FILE` reads shapes (a JSON list: a trunk's spec, and how many runs have
its shape), trains each for a moment on random tokens where it is run, by itself, side by side with
others or as one rank of several, and prints one JSON line for each.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter

from experiments import capacity, pack
from experiments.spec import TrunkSpec
from minigpt.config import Frozen, Strategy
from minigpt.data import Corpus
from minigpt.evaluate import BATCH_TOKENS, evaluate
from minigpt.event import Progress
from minigpt.group import Group, join
from minigpt.loop import train
from minigpt.model import MiniGPT
from minigpt.process import settle
from minigpt.schedule import Horizon
from minigpt.stack import Stack
from minigpt.state import Job, fresh

WARM_STEPS, MIN_STEPS, SECONDS = 3, 5, 1.0
EVAL_BATCHES = 4
NEVER = 10**12


class Shape(Frozen):
    """A trunk, and how many runs of the sweep have its shape."""

    trunk: TrunkSpec
    runs: int


def measure(shape: Shape, device: str, group: Group, members: int | None) -> dict:
    """Tokens per second in training and in evaluation, medians over steps; the same on all ranks.

    Of `members` models side by side together (None: as many as a GPU's memory holds), but no more
    than there are runs. The first steps, which allocate and compile, do not count.
    """
    trunk = shape.trunk
    batch, model = trunk.train.batch_tokens, trunk.model
    rng = np.random.default_rng(0)
    size = max(2 * batch, EVAL_BATCHES * BATCH_TOKENS * group.size) + 2 * model.seq_len
    shard = rng.integers(0, model.vocab_size, size).astype("<u2")
    corpus = Corpus(None, shard, shard)  # type: ignore[arg-type]  # nothing reads its facts here
    with tempfile.TemporaryDirectory() as folder:
        job = Job(
            model=model,
            data=trunk.data,
            train=trunk.train.model_copy(update={"eval_every_tokens": NEVER}),
            corpus=corpus,
            folder=Path(folder),
            device=device,
            checkpoint_seconds=NEVER,
            group=group,
        )
        beside = pack.beside(model, members) if group.size == 1 else 1
        beside = capacity.members(job, 1, shape.runs)[0] if beside is None else beside
        beside = min(beside, shape.runs)
        evaluation = _evaluation(trunk, corpus, device, group)
        if beside > 1:
            training = _beside(job, beside)
            return {"train": training, "evaluation": evaluation, "members": beside}
        times = []
        at = Horizon(start=NEVER, stop=NEVER)
        with closing(train(job, at, Path(folder, "weights.pt"))) as events:
            for event in events:
                assert isinstance(event, Progress)
                if device.startswith("cuda"):
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter())
                enough = len(times) > WARM_STEPS + MIN_STEPS and times[-1] - times[0] > SECONDS
                if group.any(enough):
                    break
    steps = np.diff(times[WARM_STEPS:])
    training = batch / statistics.median(steps)
    return {"train": training, "evaluation": evaluation, "members": 1}


def _beside(job: Job, members: int) -> float:
    """Tokens per second of so many models trained as one."""
    states = [fresh(job) for _ in range(members)]
    stack, times = Stack([job] * members, states), []
    while len(times) < MIN_STEPS or sum(times) < SECONDS:
        began = time.perf_counter()
        losses = [stack.step([1.0] * members) for _ in range(WARM_STEPS)]
        losses[-1].tolist()  # waits for the device
        times.append((time.perf_counter() - began) / WARM_STEPS)
    return members * job.train.batch_tokens / statistics.median(times[1:])


def _evaluation(trunk: TrunkSpec, corpus: Corpus, device: str, group: Group) -> float:
    model = MiniGPT(trunk.model)
    group.wrap(model, device)
    tokens = EVAL_BATCHES * BATCH_TOKENS * group.size
    times = []
    for _ in range(3):
        began = time.perf_counter()
        evaluate(model, corpus, tokens, device, trunk.train.dtype, group)
        times.append(time.perf_counter() - began)
    return tokens / min(times[1:])


def main(argv: list[str] | None = None) -> int:
    """Measure the trunks of a file."""
    parser = argparse.ArgumentParser(prog="python -m experiments.speed", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--strategy", default="ddp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--members", default="auto")
    parser.add_argument("--srun-ranks", type=int, default=1, help="tasks that srun starts together")
    args = parser.parse_args(argv)
    shapes = TypeAdapter(list[Shape]).validate_json(args.file.read_text())
    settle(args.threads)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.srun_ranks > 1:
        from submitit.helpers import TorchDistributedEnvironment

        os.environ["SUBMITIT_EXECUTOR"] = "slurm"  # by which submitit knows where it is
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    strategy: Strategy = args.strategy
    with join(device, strategy) as (group, own):
        auto = None if own.startswith("cuda") else 1
        members = auto if args.members == "auto" else int(args.members)
        for shape in shapes:
            found = measure(shape, own, group, members)
            if group.rank == 0:
                print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
