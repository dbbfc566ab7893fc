"""Suite `pack`: several models of one shape by one step, against one after another.

And what else fills a machine: on a CPU, processes instead of threads.
"""

import itertools
import statistics
from dataclasses import replace

from experiments.contest import at_once, contestants, take_turns
from experiments.figures import Findings, Row
from experiments.stepsuite import Say
from experiments.trial import Trial, our_engine, vaswani
from experiments.worker import MemoryShort, TrialError

# (model, tokens of each member's batch)
CPU_SHAPES = (
    (vaswani(64, 2, 2, 256, 4096), 1024),
    (vaswani(128, 4, 4, 256, 4096), 1024),
    (vaswani(256, 6, 4, 256, 4096), 512),
)
CUDA_SHAPES = (
    (vaswani(64, 2, 2, 256, 4096), 4096),
    (vaswani(256, 6, 4, 256, 4096), 4096),
)
MEMBERS = {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8, 16)}
ROUNDS = 5
ROUND_SECONDS = {"cpu": 0.2, "cuda": 0.2}  # of one model
MOST_STEPS = 200
THREADS, THREAD_ROUNDS = 2, 9  # of the one process that is compared with so many
SMALL, SMALL_BATCH, SMALL_MEMBERS, SMALL_STEPS = vaswani(32, 2, 2, 64, 257), 1024, 4, 300


def pack_suite(device: str, say: Say) -> Findings:
    """Stacks of every size, their losses, and on a CPU threads against processes."""
    cuda = device.startswith("cuda")
    found = Findings()
    for model, batch_tokens in CUDA_SHAPES if cuda else CPU_SHAPES:
        alone = Trial(
            engine=our_engine(device),
            model=model,
            batch_tokens=batch_tokens,
            device=device,
            dtype="bfloat16" if cuda else "float32",
            compiled=cuda,  # as what is trained for long
        )
        found.extend(_stacks(alone, say))
        if not cuda:
            found.extend(_processes(alone, say))
    found.remarks.append(_agreement(device))
    return found


def _stacks(alone: Trial, say: Say) -> Findings:
    """M members by one step; the ratio is to M single steps, one after another."""
    found, kind = Findings(), "cuda" if alone.device.startswith("cuda") else "cpu"
    told = f"{alone.batch_tokens} tokens each"
    with contestants([True, True]) as (single, stack):
        single.prepare(alone)
        for members in MEMBERS[kind]:
            several = replace(alone, engine="stack", members=members)
            try:
                stack.prepare(several)
                outcomes, _ = take_turns(
                    {"single": (single, alone), "stack": (stack, several)},
                    ROUNDS,
                    ROUND_SECONDS[kind],
                    MOST_STEPS,
                )
                report = stack.report()
            except TrialError as error:  # for want of memory, mostly
                found.remarks.append(f"d_model = {alone.model.d_model}, {members} members: {error}")
                found.failed |= not isinstance(error, MemoryShort)
                break
            row = found.add("pack", f"stack, {told}", outcomes["stack"], report, outcomes["single"])
            told_speed = f"{row.tokens_per_second:,.0f} tokens/s, {row.ratio_to_reference:.2f}"
            say(f"d_model = {row.d_model}, {members} members: {told_speed}")
    return found


def _processes(alone: Trial, say: Say) -> Findings:
    """One process with THREADS threads against so many with one each; times on the wall.

    The best of THREAD_ROUNDS: threads that wait for one another suffer more from what else runs.
    """
    found = Findings()
    each = [THREADS] + [1] * THREADS
    with contestants([True] * len(each), each) as (threaded, *singles):
        for worker in (threaded, *singles):
            worker.prepare(alone)
        steps = max(1, round(ROUND_SECONDS["cpu"] / threaded.run(2).wall))
        turns = [
            (at_once([threaded], steps), at_once(singles, steps)) for _ in range(THREAD_ROUNDS)
        ]
    one, many = (
        statistics.median(rates) * alone.batch_tokens for rates in zip(*turns, strict=True)
    )
    ratio = many / one
    for variant, speed, members, own in (
        (f"1 process x {THREADS} threads", one, 1, 1.0),
        (f"{THREADS} processes x 1 thread", many, THREADS, ratio),
    ):
        row = Row(
            suite="pack",
            variant=f"{variant}, {alone.batch_tokens} tokens each",
            d_model=alone.model.d_model,
            n_layers=alone.model.n_layers,
            members=members,
            tokens_per_second=speed,
            ratio_to_reference=own,
        )
        found.rows.append(row)
    say(f"d_model = {alone.model.d_model}, processes instead of threads: {ratio:.2f}")
    return found


def _agreement(device: str) -> str:
    """Held-out losses of members stacked and alone, and how far apart two seeds are."""
    alone = Trial(engine=our_engine(device), model=SMALL, batch_tokens=SMALL_BATCH, device=device)
    with contestants([True]) as (worker,):
        worker.prepare(replace(alone, engine="stack", members=SMALL_MEMBERS))
        worker.run(SMALL_STEPS)
        stacked, single = worker.held_out(), []
        for seed in range(SMALL_MEMBERS):
            worker.prepare(replace(alone, seed=seed))
            worker.run(SMALL_STEPS)
            single += worker.held_out()
    largest = max(abs(a - b) for a, b in zip(stacked, single, strict=True))
    seeds = statistics.median(abs(a - b) for a, b in itertools.combinations(single, 2))
    return (
        f"{SMALL_MEMBERS} members of d_model = {SMALL.d_model} after {SMALL_STEPS} steps: held-out "
        f"loss {statistics.mean(single):.3f}, stacked and alone at most {largest:.1e} apart, two "
        f"seeds {seeds:.1e} (median)"
    )
