"""sweep.json: what a sweep's folder was started with, and what may change afterwards."""

import json
from dataclasses import asdict

from experiments import store
from experiments.config import ConfigError, SweepConfig, parse
from experiments.corpora import Corpora
from experiments.spec import TrunkSpec
from minigpt.frozen import differences
from minigpt.tokenizer import Tokenizer, TokenizerError, from_file

UNLOCKED = ("grid", "launch", "runs_dir")  # what a later call on a started folder may change


def write(config: SweepConfig, corpora: Corpora, trunks: list[TrunkSpec]) -> None:
    """Record the resolved config, the corpus and the planned runs in the sweep's folder.

    With its tokenizers, so that nothing that may happen to the cache changes a started sweep.
    """
    values: dict = {
        "config": json.loads(config.model_dump_json()),
        "corpus": asdict(corpora.first),
        "runs": [run.run_id for trunk in trunks for run in trunk.runs],
    }
    for sha256, text in corpora.tokenizers.items():
        path = store.tokenizer_file(config.folder, sha256)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            store.write_atomic(path, text)
    if config.data.trains_tokenizer:
        sizes = corpora.by_vocabulary.items()
        mine = {_name(config, size): info.tokenizer_sha256 for size, info in sizes}
        values["tokenizers"] = _before(config).get("tokenizers", {}) | mine
    store.write_atomic(config.folder / "sweep.json", json.dumps(values, indent=1))


def tokenizer(config: SweepConfig, vocab_size: int | None) -> Tokenizer | None:
    """The tokenizer that the sweep was started with for models of `vocab_size`, if it was.

    Raises ConfigError where its file is gone.
    """
    sha256 = _before(config).get("tokenizers", {}).get(_name(config, vocab_size))
    if sha256 is None:
        return None
    try:
        return from_file(store.tokenizer_file(config.folder, sha256))
    except TokenizerError as error:
        raise ConfigError(
            f"{error}: {config.folder} was started with it; put it back, or use name=NEW"
        ) from None


def _name(config: SweepConfig, vocab_size: int | None) -> str:
    return f"{config.data.tokenizer}-{vocab_size}"


def _before(config: SweepConfig) -> dict:
    """What sweep.json says, nothing if there is none."""
    path = config.folder / "sweep.json"
    return json.loads(path.read_text()) if path.exists() else {}


def check(config: SweepConfig, corpora: Corpora) -> None:
    """A started folder keeps its recipe: only the grid may grow and [launch] change."""
    before = _before(config)
    if not before:
        return
    # Read as a config, so that keys of which its version knew nothing have what they stand for.
    where = str(config.folder / "sweep.json")
    recipe = json.loads(parse(before["config"], where).model_dump_json())
    now = json.loads(config.model_dump_json())
    corpus, there = corpora.first, before["corpus"]
    changed = [
        f"{key} = {old!r} there, {new!r} now"
        for section in now
        if section not in UNLOCKED
        for key, old, new in differences(section, recipe.get(section), now[section])
    ]
    if not changed and there["content_sha256"] != corpus.content_sha256:
        told = f", there that of {there['origin']}," if there["origin"] != corpus.origin else ""
        changed = [
            f"the text of data.source = '{config.data.source}' ({corpus.origin}){told} is not the "
            "same"
        ]
    if not changed and there.get("tokenizer_sha256") != corpus.tokenizer_sha256:
        changed = [f"data.tokenizer = {config.data.tokenizer!r} is another tokenizer"]
    if not changed:
        hashes = {each["name"]: each["sha256"] for each in there.get("evals", ())}
        changed = [
            f"the text of data.evals.{each.name} is not the same"
            for each in corpus.evals
            if hashes[each.name] != each.sha256
        ]
    if changed:
        raise ConfigError(
            f"{config.folder} was started with another config: {'; '.join(changed)}. A started "
            "sweep may only extend its grid or change [launch]; give the new one its own folder "
            "with name=NEW"
        )
