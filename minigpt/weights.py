"""A run's final weights: read with what belongs to them, and exported for other programs."""

import os
from pathlib import Path

import safetensors.torch
from pydantic import ValidationError

from minigpt import checkpoint
from minigpt.checkpoint import CheckpointError, DamagedError
from minigpt.config import ModelConfig
from minigpt.model import MiniGPT
from minigpt.tokenizer import BYTES, Tokenizer, TokenizerError, from_json

SUFFIX = ".safetensors"


class ExportError(ValueError):
    """A place where no weights can be written."""


def load(path: Path) -> tuple[MiniGPT, Tokenizer | None]:
    """The model of a run's final weights, `runs/<sweep>/trunks/<trunk>/<run_id>.pt`, in eval mode.

    With the tokenizer of what it was trained on: None where that were ready-made tokens, of which
    nobody knows. Raises CheckpointError for a file that holds no model of this version.
    """
    rule = "give the final weights of a run, runs/<sweep>/trunks/<trunk>/<run_id>.pt"
    if not path.is_file():
        raise CheckpointError(f"{path}: {'not a' if path.exists() else 'no such'} file; {rule}")
    try:
        values = checkpoint.load(path)
    except DamagedError as error:
        kind = type(error.__cause__).__name__
        raise CheckpointError(
            f"{path}: damaged, or no checkpoint of ours ({kind}); {rule}"
        ) from None
    if "config" not in values:
        raise CheckpointError(
            f"{path}: holds no config, as the states in which training goes on do (latest.pt, "
            f"trunk-*.pt); {rule}"
        )
    try:
        config = ModelConfig.model_validate_json(values["config"])
        model = MiniGPT(config)
        model.load_state_dict(values["model"])
        # Weights of the first sweeps say nothing of a tokenizer: all of them had bytes, or tokens.
        stored = values.get("tokenizer", "bytes" if config.vocab_size == BYTES.vocab_size else None)
        tokenizer = None if stored is None else from_json(stored)
    except (ValidationError, RuntimeError, KeyError, TypeError, TokenizerError) as error:
        told = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise CheckpointError(
            f"{path}: not a model of this version ({told}); use the version that wrote it"
        ) from None
    return model.eval(), tokenizer


def export(model: MiniGPT, path: Path) -> None:
    """Write the weights as safetensors, with the ModelConfig as JSON in the metadata's `config`.

    The file appears whole or not at all, in the place of one that is there. Raises ExportError for
    a path that cannot be one.
    """
    if path.suffix != SUFFIX:
        raise ExportError(f"{path}: weights are exported as {SUFFIX}; give a name that ends in it")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise ExportError(f"{path}: {what}; give a file in a folder that exists")
    metadata = {"format": "pt", "config": model.config.model_dump_json()}
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(safetensors.torch.save(model.state_dict(), metadata))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
