"""The shards of a sweep's text, in the tokens of the tokenizer that the sweep keeps."""

from pathlib import Path

from experiments import store
from minigpt import data
from minigpt.config import DataConfig
from minigpt.tokenizer import TokenizerError, from_file


def open_shards(
    sweep: Path, config: DataConfig, tokenizer_sha256: str | None, cache: Path | None = None
) -> data.Corpus:
    """The corpus of a trunk's `config` and tokenizer, as its text is now: it may have changed.

    The cache is the folder `data` beside the sweep's where no other is given. Raises DataError for
    a text, or a tokenizer, that is no longer there.
    """
    stored = None
    if tokenizer_sha256 is not None:
        try:
            stored = from_file(store.tokenizer_file(sweep, tokenizer_sha256))
        except TokenizerError as error:
            raise data.DataError(f"{error}; {sweep} was started with it: put it back") from None
    cache = sweep.parent / "data" if cache is None else cache
    return data.prepare(config, cache, cache.parent, stored)
