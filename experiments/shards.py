"""The shards of a sweep's text, in the tokens of the tokenizer that the sweep keeps."""

import functools
from pathlib import Path

from experiments import store
from minigpt import data
from minigpt.config import DataConfig
from minigpt.tokenizer import TokenizerError, from_file


def open_shards(sweep: Path, config: DataConfig, tokenizer_sha256: str | None) -> data.Corpus:
    """The corpus of a trunk's `config` and tokenizer, as its text is now: it may have changed.

    They lie in the folder `data` beside the sweep's. Raises DataError for a text, or a tokenizer,
    that is no longer there.
    """
    stored = None
    if tokenizer_sha256 is not None:
        try:
            stored = from_file(store.tokenizer_file(sweep, tokenizer_sha256))
        except TokenizerError as error:
            raise data.DataError(f"{error}; {sweep} was started with it: put it back") from None
    return data.prepare(config, sweep.parent / "data", sweep.parent, stored)


@functools.lru_cache(maxsize=2)
def unchanged(
    sweep: Path, config: DataConfig, tokenizer_sha256: str | None, hashes: tuple
) -> data.Corpus:
    """The corpus of these hashes, one for all trunks of a process, so that a GPU holds it once.

    `hashes` are of the training and the held-out tokens, then name and hash of each eval set in
    order. Raises DataError as `open_shards`, and where the text has others now.
    """
    corpus = open_shards(sweep, config, tokenizer_sha256)
    info = corpus.info
    evals = sorted((each.name, each.sha256) for each in info.evals)
    if (info.data_sha256, info.val_sha256, *evals) != hashes:
        raise data.DataError(
            f"the text of source '{config.source}' has changed since this sweep was planned; "
            "start a new sweep with name=NEW"
        )
    return corpus
