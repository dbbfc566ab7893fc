"""What one model is trained on and how, and the folder that it is trained in.

A folder holds one model: `config.json` is written first and says which; `model.pt` is its weights,
`result.json` how training ended, `latest.pt` and `trunk-*.pt` where it can go on from.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path

from minigpt.config import DataConfig, ModelConfig, TrainConfig
from minigpt.event import Result
from minigpt.frozen import Frozen, Positive, differences

CONFIG, RESULT, SHARDS = "config.json", "result.json", "data"
WEIGHTS, SAMPLE = "model.pt", "sample.txt"
MAY_CHANGE = (
    "tokens",  # more of them go on from where the trunk was left
    "train.eval_every_tokens",  # looking at losses changes no weight
    *("data.path", "data.eval_tokens", "data.curve_eval_tokens"),  # the text's hashes are compared
)


class FolderError(ValueError):
    """A folder in which this model cannot be trained."""


class Recipe(Frozen):
    """One model: its shape, its text by the hashes of its tokens, its optimisation, its tokens."""

    model: ModelConfig
    data: DataConfig
    data_sha256: str
    val_sha256: str
    train: TrainConfig
    tokens: Positive


def check(folder: Path) -> None:
    """Raise FolderError for a place that holds something else than a model of ours, or nothing."""
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"{folder}: is a file; give a folder with --out")
    others = {path.name for path in folder.iterdir()} - {SHARDS} if folder.is_dir() else set()
    if others and CONFIG not in others:
        raise FolderError(
            f"{folder}: holds {len(others)} files that are of no model of ours, such as "
            f"{min(others)}; give a new folder with --out"
        )


def enter(folder: Path, recipe: Recipe) -> None:
    """Make the folder that of the model of `recipe`, which it may be already.

    Raises FolderError, naming what differs, if it is that of another.
    """
    path, now = folder / CONFIG, json.loads(recipe.model_dump_json())
    if path.exists():
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise FolderError(f"{path}: damaged ({error}); give a new folder with --out") from None
        changed = [
            f"{key} = {_shown(key, there)} there, {_shown(key, here)} now"
            for key, there, here in differences("", before, now)
            if key not in MAY_CHANGE
        ]
        if changed:
            raise FolderError(
                f"{folder}: holds a model of another config: {'; '.join(changed)}. Give this one a "
                "folder of its own with --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, now)


def ended(folder: Path, recipe: Recipe) -> Result | None:
    """How the training of `recipe` ended; None if it has not yet."""
    path = folder / RESULT
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    return Result(**values["result"]) if values["tokens"] == recipe.tokens else None


def end(folder: Path, recipe: Recipe, result: Result) -> None:
    """Take down how the training of `recipe` ended."""
    _write(folder / RESULT, {"tokens": recipe.tokens, "result": asdict(result)})


def _shown(key: str, value: object) -> str:
    return str(value)[:12] if key.endswith("sha256") else json.dumps(value)


def _write(path: Path, values: object) -> None:
    """The whole file or none."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(part, path)
