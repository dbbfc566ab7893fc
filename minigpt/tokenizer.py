"""Text to tokens and back: bytes, byte-level BPE, WordPiece. No torch.

Bytes: ids 0 to 255, and 256 for end of text. BPE (Sennrich et al. 2016, arXiv 1508.07909) merges
the bytes of a text (Radford et al. 2019, §2.2), so that every UTF-8 text is its tokens exactly.
WordPiece (Schuster & Nakajima 2012) merges characters inside words and forgets all else: how much
and what kind of white space stood between words, whether any stood beside punctuation or a Chinese
character, and words with a character that is not in its alphabet or of more than 100 characters,
which become [UNK].
Both through the `tokenizers` library, which trains the same BPE from the same text every time and
a slightly different WordPiece: a trained one is kept as a file and never made twice.

`<|endoftext|>` follows every document. Where a text itself says so, it is text like any other.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from minigpt.shards import VOCABULARY_LIMIT

Kind = Literal["bytes", "bpe", "wordpiece"]
END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "[UNK]"
CONTINUES = "##"  # marks a WordPiece that goes on with the word before it
LEAST_VOCABULARY = {"bpe": 257, "wordpiece": 16}  # bytes and end of text; a few letters
LARGEST_ALPHABET = 1_000  # characters that a WordPiece learns, each at the start of words and in it
BATCH_BYTES = 2**22  # of text that is encoded at a time


class TokenizerError(ValueError):
    """A tokenizer that cannot be had, or a text that it cannot take."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """What turns text into ids below `vocab_size` and back.

    `pieces` are the bytes that each id stands for: none for `end_of_text`, and for the first piece
    of a word of WordPiece with the blank before it. `sha256` is the hash of the tokenizer, None for
    bytes.
    """

    kind: Kind
    vocab_size: int
    end_of_text: int
    pieces: tuple[bytes, ...] = field(repr=False)
    sha256: str | None = None
    _json: str = field(default="bytes", repr=False)
    _engine: tokenizers.Tokenizer | None = field(default=None, repr=False)

    def encode(self, text: bytes) -> list[int]:
        """The tokens of a text, without an end.

        Raises TokenizerError for text that is not UTF-8, which only bytes can take.
        """
        if self._engine is None:
            return list(text)
        return self._engine.encode(_characters(text), add_special_tokens=False).ids

    def encode_all(self, texts: Iterable[bytes]) -> Iterator[np.ndarray]:
        """The tokens of each text as uint16, several texts at a time on all cores."""
        if self._engine is None:
            yield from (np.frombuffer(text, np.uint8).astype("<u2") for text in texts)
            return
        for batch in _batches(texts):
            found = self._engine.encode_batch_fast(
                [_characters(text) for text in batch], add_special_tokens=False
            )
            yield from (np.array(each.ids, "<u2") for each in found)

    def decode(self, ids: Iterable[int]) -> bytes:
        """The text of tokens: their pieces, one after the other."""
        return b"".join(self.pieces[each] for each in ids)

    def unknown(self, text: bytes) -> tuple[str, ...]:
        """What of `text` would become [UNK]: characters, or words where no character is at fault.

        Raises TokenizerError for text that is not UTF-8.
        """
        if self.kind != "wordpiece" or self._engine is None:
            return ()
        characters, engine, found = _characters(text), self._engine, []
        unknown = engine.token_to_id(json.loads(self._json)["model"]["unk_token"])

        def read(part: str) -> tokenizers.Encoding:
            return engine.encode(part, add_special_tokens=False)

        whole = read(characters)
        for token, (start, stop) in zip(whole.ids, whole.offsets, strict=True):
            if token == unknown:
                word = characters[start:stop]
                found += [c for c in word if unknown in read(c).ids] or [word]
        return tuple(dict.fromkeys(found))

    def to_json(self) -> str:
        """The tokenizer as text: "bytes", or the JSON of the `tokenizers` library."""
        return self._json


BYTES = Tokenizer("bytes", 257, 256, (*(bytes([byte]) for byte in range(256)), b""))


def from_json(text: str) -> Tokenizer:
    """The tokenizer that `to_json` made, or that of a file of the `tokenizers` library.

    Raises TokenizerError for one that is no byte-level BPE or WordPiece, has no <|endoftext|> or
    more ids than uint16 shards.
    """
    if text == BYTES.to_json():
        return BYTES
    try:
        engine = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001  # what the library raises has no type of its own
        raise TokenizerError(
            f"not a tokenizer of the `tokenizers` library ({error}); give its tokenizer.json"
        ) from None
    values = json.loads(text)
    vocabulary = engine.get_vocab()
    kind, size = _kind(values, vocabulary), max(vocabulary.values(), default=0) + 1
    if size > VOCABULARY_LIMIT:
        raise TokenizerError(
            f"its {size:,} ids are more than the {VOCABULARY_LIMIT:,} of uint16 shards; use a "
            "smaller vocabulary"
        )
    if END_OF_TEXT not in vocabulary:
        raise TokenizerError(
            f"its vocabulary has no {END_OF_TEXT}, which ends every document; add it as a special "
            "token"
        )
    end = vocabulary[END_OF_TEXT]
    engine.encode_special_tokens = True  # a text that says <|endoftext|> has not ended
    engine.no_truncation()
    engine.no_padding()
    if end in engine.encode(f"a{END_OF_TEXT} {END_OF_TEXT}", add_special_tokens=False).ids:
        raise TokenizerError(
            f"it reads the text {END_OF_TEXT} as the end of a document, even inside of one; make "
            'it a special token ("special": true)'
        )
    added = engine.get_added_tokens_decoder()  # stand there as they are, and not as bytes' letters
    pieces = [b""] * size
    for name, id in vocabulary.items():
        plain = kind == "bpe" and id in added
        pieces[id] = name.encode() if plain else _piece(kind, name, values)
    pieces[end] = b""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    sha256 = hashlib.sha256(canonical.encode()).hexdigest()
    return Tokenizer(kind, size, end, tuple(pieces), sha256, text, engine)


def train(kind: Kind, vocab_size: int, texts: Sequence[bytes]) -> Tokenizer:
    """A new tokenizer of `vocab_size` ids, made of `texts`.

    Raises TokenizerError where they are too few for that many, or the number is out of range.
    """
    check_size(kind, vocab_size)
    engine, trainer = (_bpe if kind == "bpe" else _wordpiece)(vocab_size)
    engine.train_from_iterator(map(_characters, texts), trainer, length=len(texts))
    if engine.get_vocab_size() != vocab_size:
        raise TokenizerError(
            f"vocab_size = {vocab_size:,}: {sum(map(len, texts)):,} bytes of training text give a "
            f"{kind} tokenizer of {engine.get_vocab_size():,} ids; use that many or fewer, or give "
            "more text"
        )
    return from_json(engine.to_str())


def check_size(kind: Kind, vocab_size: int) -> None:
    """Raise TokenizerError for a number of ids that a tokenizer of `kind` cannot have."""
    least = LEAST_VOCABULARY[kind]
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


def _kind(values: dict, vocabulary: dict[str, int]) -> Kind:
    """Which of our kinds a tokenizer is, by its JSON."""
    model, cutter = values["model"]["type"], values["pre_tokenizer"] or {}
    steps = cutter.get("pretokenizers", [cutter])
    if model == "BPE" and any(step.get("type") == "ByteLevel" for step in steps):
        missing = [c for c in _alphabet() if c not in vocabulary]
        if missing:
            raise TokenizerError(
                f"its vocabulary lacks {len(missing)} of the 256 bytes, the first as "
                f"{missing[0]!r}; train it with the whole byte-level alphabet"
            )
        return "bpe"
    if model == "WordPiece":
        if values["model"]["unk_token"] not in vocabulary:
            raise TokenizerError(
                f"its vocabulary lacks its own {values['model']['unk_token']}; add it"
            )
        return "wordpiece"
    raise TokenizerError(
        f"its model is {model}{' of characters' if model == 'BPE' else ''}; give byte-level BPE or "
        "WordPiece"
    )


def _piece(kind: Kind, name: str, values: dict) -> bytes:
    """The bytes that a token of the model's vocabulary stands for."""
    if kind == "bpe":
        alphabet = _alphabet()
        whole = all(c in alphabet for c in name)
        return bytes(alphabet[c] for c in name) if whole else name.encode()
    prefix = values["model"]["continuing_subword_prefix"]
    inside = name.startswith(prefix) and name != prefix
    return name.removeprefix(prefix).encode() if inside else b" " + name.encode()


@functools.cache
def _alphabet() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for (GPT-2's bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + i): byte for i, byte in enumerate(others)
    }


def _characters(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"byte {error.start} (0x{text[error.start]:02x}) is not UTF-8 ({error.reason}), and "
            "only a tokenizer of bytes takes what is no text"
        ) from None


def _batches(texts: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
