"""What a plan costs: FLOPs, time, device-hours, price, and on Slurm the jobs and their limits."""

import math
from collections.abc import Collection

from experiments import estimate, pack
from experiments.config import SweepConfig
from experiments.estimate import Rate
from experiments.pack import JobArray
from experiments.spec import TrunkSpec


def flops_line(trunks: list[TrunkSpec], settled: Collection[str]) -> str:
    """Runs, FLOPs, what branching saves, what is left to train."""
    runs = [(trunk, run) for trunk in trunks for run in trunk.runs]
    alone = sum(trunk.flops(run) for trunk, run in runs)
    shared = sum(trunk.cost() for trunk in trunks)
    left = sum(trunk.cost(done=settled) for trunk in trunks)
    return (
        f"{len(runs)} runs on {len(trunks)} trunks: {shared:.3g} FLOP, "
        f"{alone / shared:.2f} times less than each run alone; {left:.3g} FLOP still to train"
    )


def beside_lines(
    config: SweepConfig, trunks: list[TrunkSpec], settled: Collection[str]
) -> list[str]:
    """Which models are trained side by side, for every pack; nothing where none are."""
    launch = config.launch
    members = launch.members_on(int(launch.device != "cpu")) if launch.ranks == 1 else 1
    if launch.device == "auto" and launch.members == "auto":
        return []  # the machine where it runs decides
    left = [trunk for trunk in trunks if trunk.steps(settled)]
    slots = launch.slots if isinstance(launch.slots, int) else 1
    rates = estimate.rates(config, trunks)
    lines = []
    for members_of in pack.packs(left, members, slots) if members != 1 else []:
        shape = members_of[0]
        if pack.beside(shape.model, members) == 1:
            continue
        runs = sum(run.run_id not in settled for trunk in members_of for run in trunk.runs)
        rate = rates.get(estimate.shape(shape, launch))
        measured = rate.members if rate else None
        most = min(runs, members or measured or runs)
        told = f"side by side: d_model {shape.model.d_model}, {len(members_of)} trunks, then "
        told += f"{runs} branches, at most {most} at a time"
        if members is None and measured is None:
            told += " (or what the GPU's memory holds: `plan --measure`)"
        lines.append(told)
    return lines


def time_line(config: SweepConfig, trunks: list[TrunkSpec], settled: Collection[str]) -> str | None:
    """Device-hours that are left on this machine, and the longest trunk; None if all is trained."""
    rates = estimate.rates(config, trunks)
    left = [trunk for trunk in trunks if trunk.steps(settled)]
    if not left:
        return None
    if unknown := _unknown(left, rates, config):
        return unknown
    each = [_seconds(trunk, settled, rates, config) for trunk in left]
    launch = config.launch
    per_trunk = launch.ranks * (launch.threads_per_slot if launch.device == "cpu" else 1)
    unit = {"cpu": "core", "cuda": "GPU", "auto": "core- or GPU"}[launch.device]
    told = f"about {sum(each) * per_trunk / 60:.1f} {unit}-minutes, "
    if config.launch.slots != "auto":
        wall = pack.makespan(sorted(each, reverse=True), config.launch.slots)
        told += f"{_clock(wall)} in {config.launch.slots} slots, "
    told += f"the longest trunk {_clock(max(each))}"
    return told + _price(config, sum(each) * per_trunk / 3600)


def array_rows(
    config: SweepConfig, arrays: list[JobArray], trunks: list[TrunkSpec], settled: Collection[str]
) -> list[dict]:
    """One row per job array, with its longest job and device-hours where rates are known."""
    rates = estimate.rates(config, trunks)
    rows = []
    for array in arrays:
        asked = array.asked
        jobs = [_job_seconds(job, settled, rates, config) for job in array.jobs]
        times = [t for t in jobs if t is not None]
        known = len(times) == len(jobs)
        rows.append(
            {
                "jobs": len(array.jobs),
                "at once": array.parallel,
                "runs": sum(r.run_id not in settled for j in array.jobs for t in j for r in t.runs),
                "nodes": asked.nodes,
                "ranks": asked.ranks,
                "GPUs/node": asked.gpus_per_node,
                "CPUs/task": asked.cpus_per_task,
                "mem_gb": None if asked.mem_gb is None else f"{asked.mem_gb:g}",
                "limit": _clock(asked.time_min * 60),
                "longest job": _clock(max(times)) if known else None,
                "device-hours": f"{sum(times) * asked.devices / 3600:.3g}" if known else None,
                **({"after": f"array {array.after + 1}"} if array.after is not None else {}),
            }
        )
    return rows


def array_lines(
    config: SweepConfig, arrays: list[JobArray], trunks: list[TrunkSpec], settled: Collection[str]
) -> list[str]:
    """The arrays' sbatch flags, then total time, device-hours, the price, and limits exceeded."""
    found = []
    for array in arrays:
        words = " ".join(array.asked.words())
        found.append(f"sbatch {words} --array=0-{len(array.jobs) - 1}%{array.parallel}")
    found = list(dict.fromkeys(found))
    rates = estimate.rates(config, trunks)
    left = [trunk for array in arrays for job in array.jobs for trunk in job]
    if unknown := _unknown(left, rates, config):
        return [*found, unknown]
    hours, walls, limits = 0.0, [], []
    for array in arrays:
        times = [_job_seconds(job, settled, rates, config) or 0.0 for job in array.jobs]
        hours += sum(times) * array.asked.devices / 3600
        before = 0.0 if array.after is None else walls[array.after]
        walls.append(before + pack.makespan(sorted(times, reverse=True), array.parallel))
        usable = array.asked.time_min * 60 - config.launch.slurm.signal_seconds
        if max(times) > usable:
            parts = math.ceil(max(times) / usable)
            limits.append(
                f"warning: the longest job takes about {parts} time limits of "
                f"{array.asked.time_min} minutes, launch.slurm.max_requeues = "
                f"{config.launch.slurm.max_requeues}"
            )
    told = f"about {hours:.3g} device-hours; {_clock(max(walls))} from start to end if every job "
    told += f"starts at once, {sum(array.parallel for array in arrays)} at a time"
    return [*found, told + _price(config, hours), *dict.fromkeys(limits)]


def _job_seconds(
    job: pack.Job, settled: Collection[str], rates: dict[str, Rate], config: SweepConfig
) -> float | None:
    """Time of one job: its trunks in its slots; None where a shape's rate is not known."""
    launch = config.launch
    if _unknown(list(job), rates, config):
        return None
    asked = launch.resources(job[0].n_total)
    slots = launch.slot_count(asked.gpus, asked.cpus_per_task)
    each = [_seconds(trunk, settled, rates, config) for trunk in job]
    return estimate.START_SECONDS + pack.makespan(each, 1 if asked.ranks > 1 else slots)


def _seconds(
    trunk: TrunkSpec, settled: Collection[str], rates: dict[str, Rate], config: SweepConfig
) -> float:
    return estimate.seconds(trunk, settled, rates[estimate.shape(trunk, config.launch)])


def _unknown(trunks: list[TrunkSpec], rates: dict[str, Rate], config: SweepConfig) -> str | None:
    shapes = {estimate.shape(trunk, config.launch) for trunk in trunks} - rates.keys()
    if not shapes:
        return None
    own_job = ", in a job of its own" if config.launch.executor == "slurm" else ""
    return (
        f"time: not known yet for {len(shapes)} shapes; `plan --measure` times them once "
        f"(a few seconds each{own_job})"
    )


def _price(config: SweepConfig, device_hours: float) -> str:
    price = config.launch.price_per_device_hour
    if price is None:
        return ""
    return f"; {device_hours * price:.2f} at {price:g} per device-hour"


def _clock(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds below an hour."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    return f"{whole // 60}:{whole % 60:02d} min"
