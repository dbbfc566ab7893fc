"""What the training of a trunk says of itself, wherever it runs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a trunk's training says of itself: `kind` is progress, finished or failed."""

    kind: str
    trunk_id: str
    run_id: str | None = None
    step: int | None = None
    tokens_per_second: float | None = None
    train_loss: float | None = None
    result: dict | None = None
    reason: str | None = None
