"""An interval, its open ends, and why they are open."""

from dataclasses import dataclass

import numpy as np

OPEN = 0.05  # an end where more of the resamples than this stand at a limit is open


@dataclass(frozen=True)
class Interval:
    """Interval ends; None is an open end, `note` says why."""

    low: float | None
    high: float | None
    note: str | None = None

    @property
    def closed(self) -> bool:
        return self.low is not None and self.high is not None

    @property
    def width(self) -> float:
        if self.low is None or self.high is None:
            return float("inf")
        return self.high - self.low


def percentile(
    values: np.ndarray, level: float, at_low: float = 0.0, at_high: float = 0.0, what: str = ""
) -> Interval:
    """Central percentile interval; an end is open where too many resamples stand at its limit."""
    tail = (1 - level) / 2
    low, high = (float(v) for v in np.quantile(values, [tail, 1 - tail]))
    note = None
    if at_low > OPEN and at_high > OPEN:
        note = (
            f"no bounds: {min(max(at_low, at_high), 1):.0%} of the resamples are at a limit{what}"
        )
    elif at_low > OPEN:
        note = f"no lower bound: {at_low:.0%} of the resamples are at the lower limit{what}"
    elif at_high > OPEN:
        note = f"no upper bound: {at_high:.0%} of the resamples are at the upper limit{what}"
    # Where nearly all resamples stand at one limit, the other end is that limit, not a finding.
    open_low, open_high = at_low > OPEN or at_high > 1 - tail, at_high > OPEN or at_low > 1 - tail
    return Interval(
        None if open_low or not np.isfinite(low) else low,
        None if open_high or not np.isfinite(high) else high,
        note,
    )
