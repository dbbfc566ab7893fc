"""What the training of a trunk says of itself, wherever it runs."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a trunk's training says of itself: `kind` is progress, finished or failed.

    Of trunks in other processes there is also `overview`: no trunk's, `reason` says how many wait.
    """

    kind: str
    trunk_id: str = ""
    run_id: str | None = None
    step: int | None = None
    tokens_per_second: float | None = None
    train_loss: float | None = None
    result: dict | None = None
    reason: str | None = None
