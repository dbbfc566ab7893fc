"""How many models of one shape a GPU holds side by side, measured on it."""

import gc

import torch

from minigpt.stack import Stack
from minigpt.state import Job, fresh

USABLE = 0.8  # of the memory that is free: evaluations and fragments take the rest


def members(job: Job, lanes: int, wanted: int) -> tuple[int, str]:
    """At most `wanted` models shaped as `job`'s, in one of a GPU's lanes; and why.

    Measured by a step of one model and a step of two.
    """
    if wanted == 1:
        return 1, "one model by itself"
    free = torch.cuda.mem_get_info(job.device)[0] * USABLE / lanes
    one, two = memory(job, 1), memory(job, 2)
    if two is None or one is None or two > free:
        return 1, f"one model at a time: {_gb(one)} of {_gb(free)}"
    each = max(1, two - one)
    fit = min(wanted, 1 + int((free - one) // each))
    return fit, f"up to {fit} models side by side: {_gb(each)} each, of {_gb(free)}"


def memory(job: Job, models: int) -> float | None:
    """Bytes that a step of so many models takes on the job's GPU; None if they do not fit."""
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(job.device)
    torch.cuda.reset_peak_memory_stats(job.device)
    try:
        stack = Stack([job] * models, [fresh(job) for _ in range(models)])
        stack.step([1.0] * models).tolist()
        return torch.cuda.max_memory_reserved(job.device) - before
    except torch.OutOfMemoryError:
        return None
    finally:
        stack = None


def _gb(size: float | None) -> str:
    return "more than there is" if size is None else f"{size / 1e9:.1f} GB"
