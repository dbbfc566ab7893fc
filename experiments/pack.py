"""Trunks into packs for a worker at its place, and into jobs and job arrays for Slurm: pure.

The trunks of a pack have one shape, so that they can be trained side by side.

The jobs of an array share their resources, and their costs are as alike as can be. Arrays are no
longer than the cluster allows, and together run no more jobs at once than asked for.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from experiments.resources import LaunchSection, Resources
from experiments.spec import TrunkSpec
from minigpt.config import ModelConfig

Pack = tuple[TrunkSpec, ...]
Job = tuple[TrunkSpec, ...]  # trained one after another, or in the job's slots


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where trunks are trained: the sweep's folder, the device, how often to save.

    `members` models of one shape are trained side by side; None: as many as the GPU's memory holds.
    So many packs of them, its `lanes`, are in training at once.
    """

    sweep: Path
    device: str
    checkpoint_seconds: float
    members: int | None = 1
    lanes: int = 1


@dataclass(frozen=True, kw_only=True)
class JobArray:
    """Jobs to submit as one: at most `parallel` at once, after the array at index `after`."""

    asked: Resources
    jobs: tuple[Job, ...]
    parallel: int
    after: int | None = None


def arrays(
    trunks: list[TrunkSpec],
    finished: Collection[str],
    launch: LaunchSection,
    parallel: int,
    max_array_size: int,
) -> list[JobArray]:
    """Pack `trunks` into arrays; `finished` are the ids of runs that need no training.

    Jobs are dealt out in turn to arrays of equal resources, so that they end at about one time.
    Where there are more arrays than may run jobs at once, each of `parallel` lanes is a chain.
    """
    groups: dict[str, tuple[Resources, list[TrunkSpec]]] = {}
    for trunk in trunks:
        asked = launch.resources(trunk.n_total)
        groups.setdefault(asked.model_dump_json(), (asked, []))[1].append(trunk)
    parts: list[tuple[Resources, list[Job]]] = []
    for asked, members in groups.values():
        jobs = _jobs(members, finished, asked.runs_per_job)
        n = -(-len(jobs) // max_array_size)
        parts += [(asked, jobs[i::n]) for i in range(n)]
    lanes = min(len(parts), parallel)
    shares = _shares([len(jobs) for _, jobs in parts[:lanes]], parallel)
    return [
        JobArray(
            asked=asked,
            jobs=tuple(jobs),
            parallel=shares[i % lanes],
            after=i - lanes if i >= lanes else None,
        )
        for i, (asked, jobs) in enumerate(parts)
    ]


def packs(trunks: list[TrunkSpec], members: int | None, workers: int) -> list[Pack]:
    """Group trunks of one shape, each group cut until every worker has one; costliest first.

    A trunk whose models are trained one at a time (`members` 1) is a pack of its own.
    """
    if members == 1:
        return [(trunk,) for trunk in trunks]
    groups: dict[str, list[TrunkSpec]] = {}
    for trunk in trunks:
        alone = beside(trunk.model, members) == 1
        groups.setdefault(trunk.trunk_id if alone else _shape(trunk), []).append(trunk)
    found = list(groups.values())
    while len(found) < workers:
        largest = max(found, key=lambda group: (len(group) > 1, _cost(group)), default=[])
        if len(largest) < 2:
            break
        found.remove(largest)
        found += [largest[::2], largest[1::2]]
    return [tuple(group) for group in sorted(found, key=_cost, reverse=True)]


def beside(model: ModelConfig, members: int | None) -> int | None:
    """How many such models may be trained side by side: `members`, or 1 for those with dropout.

    What dropout drops depends on a model's own seed and step alone, and a stack draws nothing.
    """
    return 1 if model.dropout else members


def _shape(trunk: TrunkSpec) -> str:
    """All that trunks trained side by side have in common: not their seeds, rates or horizons."""
    common = trunk.train.model_dump_json(exclude={"seed", "lr", "schedule"})
    data = (trunk.data.model_dump_json(), trunk.data_sha256, trunk.val_sha256)
    return repr((trunk.model.model_dump_json(), common, *data))


def _cost(trunks: list[TrunkSpec]) -> float:
    return sum(trunk.cost() for trunk in trunks)


def makespan(seconds: list[float], workers: int) -> float:
    """Time until the last of tasks ends that `workers` take one after another, in this order."""
    free_at = [0.0] * max(1, workers)
    for each in seconds:
        first = min(range(len(free_at)), key=free_at.__getitem__)
        free_at[first] += each
    return max(free_at)


def _jobs(trunks: list[TrunkSpec], finished: Collection[str], runs_per_job: int) -> list[Job]:
    """Neighbours in cost together, until a job holds `runs_per_job` runs to train."""
    ordered = sorted(trunks, key=lambda t: (-t.cost(done=finished), t.trunk_id))
    jobs: list[list[TrunkSpec]] = []
    held = runs_per_job
    for trunk in ordered:
        if held >= runs_per_job:
            jobs.append([])
            held = 0
        jobs[-1].append(trunk)
        held += sum(run.run_id not in finished for run in trunk.runs)
    return [tuple(job) for job in jobs]


def _shares(sizes: list[int], total: int) -> list[int]:
    """Split `total` over arrays of `sizes` jobs: what a short one cannot use goes to the others."""
    shares, left = [0] * len(sizes), total
    for rank, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[i] = max(1, min(sizes[i], left // (len(sizes) - rank)))
        left -= shares[i]
    return shares
