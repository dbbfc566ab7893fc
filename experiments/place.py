"""Where a trunk is trained."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Place:
    """The sweep's folder, that of the token shards, the device, and how often to save.

    `members` models of one shape are trained side by side; None: as many as the GPU's memory holds.
    So many packs of them, its `lanes`, are in training at once.
    """

    sweep: Path
    cache: Path
    device: str
    checkpoint_seconds: float
    members: int | None = 1
    lanes: int = 1
