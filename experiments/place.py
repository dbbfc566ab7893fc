"""Where a trunk is trained."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Place:
    """The sweep's folder, that of the token shards, the device, and how often to save."""

    sweep: Path
    cache: Path
    device: str
    checkpoint_seconds: float
