"""Checkpoints: one file, written whole or not at all, tensors and plain values only."""

import os
from pathlib import Path

import torch

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint file that this version cannot read."""


def save(path: Path, values: dict[str, object]) -> None:
    """Write `values` (tensors, numbers, strings, nested dicts and lists) to `path` atomically."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        torch.save({"format": FORMAT, **values}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def load(path: Path, device: str = "cpu") -> dict:
    """Read what `save` wrote; no code in the file is ever run."""
    values = torch.load(path, map_location=device, weights_only=True)
    if values.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {values.get('format')!r}, this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    return values
