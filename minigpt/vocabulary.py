"""A vocabulary learned from text: a new tokenizer of byte-level BPE or WordPiece. No torch."""

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from minigpt.shards import VOCABULARY_LIMIT
from minigpt.tokenizer import END_OF_TEXT, Kind, Tokenizer, TokenizerError, characters, from_json

UNKNOWN = "[UNK]"
CONTINUES = "##"  # marks a WordPiece that goes on with the word before it
LEAST = {"bpe": 257, "wordpiece": 16}  # ids: 256 bytes and end of text; a few letters
LARGEST_ALPHABET = 1_000  # characters that a WordPiece learns, each at the start of words and in it


def train(kind: Kind, vocab_size: int, texts: Sequence[bytes]) -> Tokenizer:
    """A new tokenizer of `vocab_size` ids, made of `texts`.

    Raises TokenizerError where they are too few for that many, or the number is out of range.
    """
    check_size(kind, vocab_size)
    engine, trainer = (_bpe if kind == "bpe" else _wordpiece)(vocab_size)
    engine.train_from_iterator(map(characters, texts), trainer, length=len(texts))
    if engine.get_vocab_size() != vocab_size:
        raise TokenizerError(
            f"vocab_size = {vocab_size:,}: {sum(map(len, texts)):,} bytes of training text give a "
            f"{kind} tokenizer of {engine.get_vocab_size():,} ids; use that many or fewer, or give "
            "more text"
        )
    return from_json(engine.to_str())


def check_size(kind: str, vocab_size: int) -> None:
    """Raise TokenizerError for a number of ids that a tokenizer of `kind` cannot have."""
    least = LEAST[kind]
    if not least <= vocab_size <= VOCABULARY_LIMIT:
        why = ", 256 bytes and end of text," if kind == "bpe" else ""
        raise TokenizerError(
            f"vocab_size = {vocab_size:,} is outside {least}{why} to {VOCABULARY_LIMIT:,}, the ids "
            f"of uint16 shards; choose a number between for a {kind} tokenizer"
        )


def _bpe(vocab_size: int) -> tuple[tokenizers.Tokenizer, trainers.Trainer]:
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    return engine, trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )


def _wordpiece(vocab_size: int) -> tuple[tokenizers.Tokenizer, trainers.Trainer]:
    engine = tokenizers.Tokenizer(models.WordPiece(unk_token=UNKNOWN))
    # Every Chinese character is a word; nothing else is normalised, capitals least of all.
    engine.normalizer = normalizers.BertNormalizer(
        clean_text=False, handle_chinese_chars=True, strip_accents=False, lowercase=False
    )
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.decoder = decoders.WordPiece(prefix=CONTINUES, cleanup=False)
    return engine, trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, UNKNOWN],
        # Each is an id at the start of a word and one inside it: a third is left for longer pieces.
        limit_alphabet=min(LARGEST_ALPHABET, vocab_size // 3),
        continuing_subword_prefix=CONTINUES,
        show_progress=False,
    )
