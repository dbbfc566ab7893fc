"""sweep.json: what a sweep's folder was started with, and what may change afterwards."""

import json
from dataclasses import asdict

from experiments import store
from experiments.config import ConfigError, SweepConfig
from experiments.spec import TrunkSpec
from minigpt.data import CorpusInfo

UNLOCKED = ("grid", "launch", "runs_dir")  # what a later call on a started folder may change


def write(config: SweepConfig, corpus: CorpusInfo, trunks: list[TrunkSpec]) -> None:
    """Record the resolved config, the corpus and the planned runs in the sweep's folder."""
    values = {
        "config": json.loads(config.model_dump_json()),
        "corpus": asdict(corpus),
        "runs": [run.run_id for trunk in trunks for run in trunk.runs],
    }
    store.write_atomic(config.folder / "sweep.json", json.dumps(values, indent=1))


def check(config: SweepConfig, corpus: CorpusInfo) -> None:
    """A started folder keeps its recipe: only the grid may grow and [launch] change."""
    path = config.folder / "sweep.json"
    if not path.exists():
        return
    before = json.loads(path.read_text())
    now = json.loads(config.model_dump_json())
    changed = [
        f"{key} = {old!r} there, {new!r} now"
        for section in now
        if section not in UNLOCKED
        for key, old, new in _differences(section, before["config"].get(section), now[section])
    ]
    if not changed and before["corpus"]["content_sha256"] != corpus.content_sha256:
        origin = before["corpus"]["origin"]
        there = f", there that of {origin}," if origin != corpus.origin else ""
        changed = [
            f"the text of data.source = '{config.data.source}' ({corpus.origin}){there} is not the "
            "same"
        ]
    if changed:
        raise ConfigError(
            f"{config.folder} was started with another config: {'; '.join(changed)}. A started "
            "sweep may only extend "
            "its grid or change [launch]; give the new one its own folder with name=NEW"
        )


def _differences(key: str, old: object, new: object) -> list[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            found
            for name in sorted(set(old) | set(new))
            for found in _differences(f"{key}.{name}", old.get(name), new.get(name))
        ]
    return [] if old == new else [(key, old, new)]
