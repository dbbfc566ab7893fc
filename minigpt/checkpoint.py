"""Checkpoints: one file, written whole or not at all, tensors and plain values only."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint file that this version cannot read."""


class DamagedError(CheckpointError):
    """A file that is no whole checkpoint of ours."""


def save(path: Path, values: dict[str, object]) -> None:
    """Write `values` (tensors, numbers, strings, nested dicts and lists) to `path` atomically."""
    buffer = io.BytesIO()  # written by one plain write, so that a full disk says so
    torch.save({"format": FORMAT, **_own(values)}, buffer)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path, device: str = "cpu") -> dict:
    """Read what `save` wrote; no code in the file is ever run.

    Raises DamagedError for a damaged file, CheckpointError for another format.
    """
    try:
        values = torch.load(path, map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):  # not the file's fault
        raise
    except Exception as error:
        # Nor is an error of the disk; but where a file was cut short, torch seeks before its start.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise DamagedError(
            f"{path}: damaged, or no checkpoint of ours ({type(error).__name__}); delete it"
        ) from error
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path}: checkpoint format {found!r}, this version reads {FORMAT}; "
            "use the version that wrote it"
        )
    return values


def _own(values: Any) -> Any:
    """Nested dicts and lists with copies of tensors that are parts of larger ones.

    Of those, torch would write the whole.
    """
    if isinstance(values, dict):
        return {key: _own(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(_own(value) for value in values)
    if isinstance(values, Tensor) and values.untyped_storage().nbytes() > values.nbytes:
        return values.clone()
    return values
