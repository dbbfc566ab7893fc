"""The learning-rate factor of a step, pure, and where the horizons of a trunk branch off.

A trunk follows a rate that does not depend on any horizon; the branch of a horizon D leaves it
after (1 − c)·D tokens and cools down over the last c·D (warm-up, stable, decay: Hu et al. 2024,
arXiv 2404.06395; constant rate and cooldown: Hägele et al. 2024, arXiv 2405.18392). So one trunk
serves every horizon.
"""

import math
from dataclasses import dataclass

from minigpt.config import ScheduleConfig, steps_of


@dataclass(frozen=True, kw_only=True)
class Horizon:
    """One budget of a trunk, in optimiser steps: the branch is steps `start` to `stop`."""

    start: int
    stop: int


def horizon(schedule: ScheduleConfig, tokens: int, batch_tokens: int) -> Horizon:
    """Place the horizon of `tokens` tokens; a cosine run is all branch, its trunk has no steps."""
    stop = steps_of(tokens, batch_tokens)
    if schedule.kind == "cosine":
        return Horizon(start=0, stop=stop)
    return Horizon(start=stop - max(1, round(schedule.cooldown_fraction * stop)), stop=stop)


def trunk_factor(schedule: ScheduleConfig, step: int, batch_tokens: int) -> float:
    """Rate factor in (0, 1] of trunk step `step` (0-based), warm-up included."""
    warmup = schedule.warmup_tokens // batch_tokens
    factor = min(1.0, (step + 1) / (warmup + 1))
    if schedule.trunk == "power" and schedule.power_tokens is not None:
        tokens = (step + 1) * batch_tokens
        factor *= min(1.0, (schedule.power_tokens / tokens) ** schedule.power)
    return factor


def branch_factor(schedule: ScheduleConfig, step: int, at: Horizon, batch_tokens: int) -> float:
    """Rate factor of step `step` (0-based) on the branch of the horizon `at`.

    WSD: the trunk's factor times 1 − √x or 1 − x, x the share of the cooldown done (Hägele et al.
    2024, eq. 1 for 1 − √x). Cosine: from the peak to `final_fraction` over the whole run.
    """
    x = (step - at.start) / (at.stop - at.start)
    factor = trunk_factor(schedule, step, batch_tokens)
    if schedule.kind == "cosine":
        low = schedule.final_fraction
        return factor * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * x)))
    return factor * (1 - math.sqrt(x) if schedule.cooldown == "1-sqrt" else 1 - x)
