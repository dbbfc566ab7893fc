"""More held-out sets: text or shards of the user's that measure a model beside its corpus's own.

Text is tokenised by the corpus's tokenizer. Its pieces are in the order of their hashes, as those
of the corpus's held-out part: any first part of them is a random sample. No torch.
"""

import json
from dataclasses import replace
from pathlib import Path

from minigpt import cache as caches
from minigpt import text
from minigpt.config import DataConfig
from minigpt.corpus import FORMAT, Corpus, EvalInfo
from minigpt.paths import DataError
from minigpt.shards import mapped
from minigpt.split import overlap, split
from minigpt.textshards import read, tokenised
from minigpt.tokens import checked, open_side


def with_evals(config: DataConfig, corpus: Corpus, cache: Path, leave_out: Path | None) -> Corpus:
    """The corpus with the eval sets of `config`.

    Raises DataError for a set that is missing, unreadable or empty.
    """
    found = {}
    for name in config.evals:
        of = _of_tokens if config.source == "tokens" else _of_text
        found[name] = of(config, name, corpus, cache, leave_out)
    infos = tuple(info for info, _ in found.values())
    corpus = replace(corpus, info=replace(corpus.info, evals=infos))
    return replace(corpus, evals={name: each for name, (_, each) in found.items()})


def _of_text(
    config: DataConfig, name: str, corpus: Corpus, cache: Path, leave_out: Path | None
) -> tuple[EvalInfo, Corpus]:
    key, tokenizer = f"data.evals.{name}", corpus.tokenizer
    assert tokenizer is not None  # of text
    paths, named = text.eval_files(config, name, leave_out)
    info = corpus.info
    beside = (info.content_sha256, config.val_fraction, tokenizer.sha256)  # overlap; tokens
    stats = (caches.stats(paths), sorted(map(str, named)), config.column)
    known = (FORMAT, "eval", *beside, *stats)
    seen = caches.seen(cache, known)
    if seen is None:
        documents, skipped, null_rows = text.read(paths, named, config.column, key)
        if not documents:
            raise DataError(
                f"{key} = {config.evals[name]!r}: no text in it; give files that hold plain UTF-8 "
                "text"
            )
        units = split(documents, 1.0).val
        made = tokenised(tokenizer, units)
        sha256 = caches.sha256(made.tokens.tobytes())
        folder = caches.folder(cache, repr((FORMAT, "eval", *beside, sha256)))
        if not (folder / "meta.json").exists():
            training = split(read(config, *text.files(config, leave_out))[0], config.val_fraction)
            measured = {
                "sha256": sha256,
                "tokens": len(made.tokens),
                "exact": made.exact,
                "overlap": overlap(training.train, units),
            }
            caches.publish(folder, {"val": [made.tokens]}, measured)
        seen = {"shards": folder.name, "skipped": skipped, "null_rows": null_rows}
        caches.keep(cache, known, seen)
    folder = cache / seen["shards"]
    measured = json.loads((folder / "meta.json").read_text())
    found = {"skipped": tuple(seen["skipped"]), "null_rows": seen["null_rows"]}
    mine = EvalInfo(name=name, **measured, **found)
    return mine, replace(corpus, val=mapped(folder / "val.bin"), exact=mine.exact)


def _of_tokens(
    config: DataConfig, name: str, corpus: Corpus, cache: Path, leave_out: Path | None
) -> tuple[EvalInfo, Corpus]:
    shards = open_side(config.evals[name], f"data.evals.{name}", leave_out)
    sha256 = checked(config, shards)
    mine = EvalInfo(
        name=name, sha256=sha256, tokens=sum(map(len, shards.values())), exact=False, overlap=None
    )
    if len(shards) == 1:
        return mine, replace(corpus, val=next(iter(shards.values())))
    folder = caches.folder(cache, repr((FORMAT, "eval", sha256)))
    caches.publish(folder, {"val": shards.values()}, {"sha256": sha256})
    return mine, replace(corpus, val=mapped(folder / "val.bin"))
