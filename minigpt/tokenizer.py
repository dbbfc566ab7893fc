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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers

from minigpt.shards import VOCABULARY_LIMIT

Kind = Literal["bytes", "bpe", "wordpiece"]
END_OF_TEXT = "<|endoftext|>"
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
        return self._engine.encode(characters(text), add_special_tokens=False).ids

    def encode_all(self, texts: Iterable[bytes]) -> Iterator[np.ndarray]:
        """The tokens of each text as uint16, several texts at a time on all cores."""
        if self._engine is None:
            yield from (np.frombuffer(text, np.uint8).astype("<u2") for text in texts)
            return
        for batch in _batches(texts):
            found = self._engine.encode_batch_fast(
                [characters(text) for text in batch], add_special_tokens=False
            )
            yield from (np.array(each.ids, "<u2") for each in found)

    def decode(self, ids: Iterable[int]) -> bytes:
        """The text of tokens: their pieces, one after the other.

        Ids that a model of a larger vocabulary has beyond `vocab_size` stand for nothing.
        """
        return b"".join(self.pieces[each] for each in ids if each < self.vocab_size)

    @functools.cached_property
    def lengths_V(self) -> np.ndarray:
        """How many bytes each id stands for."""
        return np.array([len(piece) for piece in self.pieces])

    def unknown(self, text: bytes) -> tuple[str, ...]:
        """What of `text` would become [UNK]: characters, or words where no character is at fault.

        Raises TokenizerError for text that is not UTF-8.
        """
        if self.kind != "wordpiece" or self._engine is None:
            return ()
        told, engine, found = characters(text), self._engine, []
        unknown = engine.token_to_id(json.loads(self._json)["model"]["unk_token"])

        def read(part: str) -> tokenizers.Encoding:
            return engine.encode(part, add_special_tokens=False)

        whole = read(told)
        for token, (start, stop) in zip(whole.ids, whole.offsets, strict=True):
            if token == unknown:
                word = told[start:stop]
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


def from_file(path: Path) -> Tokenizer:
    """The tokenizer of a file; raises TokenizerError for one that cannot be read or used."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except OSError as error:
        raise TokenizerError(
            f"{path}: cannot be read ({error.strerror}); give a tokenizer.json"
        ) from None
    try:
        return from_json(text)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from None


def characters(text: bytes) -> str:
    """The text as characters; raises TokenizerError for what is not UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise TokenizerError(
            f"byte {error.start} (0x{text[error.start]:02x}) is not UTF-8 ({error.reason}), and "
            "only a tokenizer of bytes takes what is no text"
        ) from None


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
