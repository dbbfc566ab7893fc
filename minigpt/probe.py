"""Windows of held-out documents, with what each of their tokens stands in relation to.

A probe is made once for a tokenizer and a context; then every model is asked the same. No torch.

Relations (`minigpt.relations`) are of whole documents and of bytes. The query is the token that
holds the query's byte, the key all tokens that hold any byte of the key. A query counts where its
whole key lies in its window, and at least one token lies between them: of the token right before it
a head that always looks there knows all. Of several queries in one token the last counts.

Shapes: W windows, T tokens of a window, Q queries of a relation, N tokens of a document.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minigpt import relations
from minigpt.relations import Pair
from minigpt.syntax import RefusedError
from minigpt.tokenizer import Tokenizer, TokenizerError

TOKENS = 131_072  # of all windows


@dataclass(frozen=True)
class Queries:
    """Of one relation: token `query` of a window, whose key is its tokens `first` to `last`."""

    window_Q: np.ndarray
    query_Q: np.ndarray
    first_Q: np.ndarray
    last_Q: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Windows of `documents` documents, those shorter than a window filled with end of text.

    `document_W` numbers the documents from 0, in random order. Left out is what is no Python source
    among such, and text that the tokenizer cannot give back.
    """

    tokens_WT: np.ndarray
    document_W: np.ndarray
    queries: dict[str, Queries]
    documents: int


def probe(
    texts: Sequence[bytes], tokenizer: Tokenizer, *, seq_len: int, seed: int, tokens: int = TOKENS
) -> Probe:
    """A probe of about `tokens` tokens, in windows from as many documents as there are.

    What Python parses is source text; the rest is prose, unless it is less than half of the bytes:
    then it is left out.
    """
    rng, windows = np.random.Generator(np.random.PCG64(seed)), -(-tokens // seq_len)
    chosen = [texts[i] for i in rng.permutation(len(texts))[:windows]]
    each = -(-windows // max(1, len(chosen)))  # of a document that has so many
    ids, of, parts, number = [], [], {}, 0
    for text, pairs in zip(chosen, _pairs(chosen), strict=True):
        aligned = None if pairs is None else _align(text, tokenizer)
        if pairs is None or aligned is None:
            continue
        places = {name: _places(relation, aligned) for name, relation in pairs.items()}
        for start in _starts(len(aligned.ids), seq_len, each, rng):
            for name, place_3Q in places.items():
                parts.setdefault(name, []).append(_cut(place_3Q, start, seq_len, len(ids)))
            window = aligned.ids[start : start + seq_len]
            ids.append(window + [tokenizer.end_of_text] * (seq_len - len(window)))
            of.append(number)
        number += 1
    return Probe(
        tokens_WT=np.array(ids, np.int64).reshape(-1, seq_len),
        document_W=np.array(of, np.int64),
        queries={
            name: Queries(*np.concatenate(part, axis=1)) for name, part in sorted(parts.items())
        },
        documents=number,
    )


def documents(shard_N: np.ndarray, tokenizer: Tokenizer) -> list[bytes]:
    """The texts of a shard of tokens, each ended by end of text.

    None of WordPiece's, which forgets where lines end.
    """
    if tokenizer.kind == "wordpiece":
        return []
    ends = np.flatnonzero(shard_N == tokenizer.end_of_text)
    parts = np.split(shard_N, ends)  # the end of one text begins the next part
    return [text for part_N in parts if (text := tokenizer.decode(part_N.tolist()))]


def _pairs(texts: Sequence[bytes]) -> list[dict[str, list[Pair]] | None]:
    """The relations of each text, None where it is refused."""
    found: list[dict[str, list[Pair]] | None] = []
    for text in texts:
        try:
            found.append(relations.of_source(text))
        except RefusedError:
            found.append(None)
    source = sum(len(text) for text, pairs in zip(texts, found, strict=True) if pairs is not None)
    if source > sum(map(len, texts)) / 2:
        return found
    return [
        relations.of_prose(text) if pairs is None else pairs
        for text, pairs in zip(texts, found, strict=True)
    ]


class _Aligned(NamedTuple):
    """Tokens of a text, and the bytes of it from start to stop that each stands for."""

    ids: list[int]
    start_N: np.ndarray
    stop_N: np.ndarray


def _align(text: bytes, tokenizer: Tokenizer) -> _Aligned | None:
    """None for a text that the tokens do not give back, but for white space between them."""
    try:
        ids = tokenizer.encode(text)
    except TokenizerError:
        return None
    starts, at = [], 0
    for id in ids:
        piece = tokenizer.pieces[id]
        if not text.startswith(piece, at):  # WordPiece forgets which blanks there were
            piece = piece.lstrip(b" ")
            while text[at : at + 1].isspace():
                at += 1
            if not text.startswith(piece, at):
                return None
        starts.append((at, at + len(piece)))
        at += len(piece)
    start_N, stop_N = np.array(starts, np.int64).reshape(-1, 2).T
    return _Aligned(ids, start_N, stop_N)


def _places(pairs: Sequence[Pair], aligned: _Aligned) -> np.ndarray:
    """Query, first and last token of the key, one column for each query token."""
    byte_Q, start_Q, stop_Q = np.array(pairs, np.int64).reshape(-1, 3).T
    query_Q = np.searchsorted(aligned.stop_N, byte_Q, side="right")
    first_Q = np.searchsorted(aligned.stop_N, start_Q, side="right")
    last_Q = np.searchsorted(aligned.start_N, stop_Q, side="left") - 1
    last_of_token_Q = np.append(query_Q[1:] != query_Q[:-1], True)[: len(query_Q)]
    apart_Q = last_of_token_Q & (last_Q < query_Q - 1)
    return np.stack([query_Q, first_Q, last_Q])[:, apart_Q]


def _starts(length: int, seq_len: int, count: int, rng: np.random.Generator) -> list[int]:
    """Where at most `count` windows begin that do not overlap."""
    whole = max(1, length // seq_len)
    slack = max(0, length - whole * seq_len)
    window = np.sort(rng.permutation(whole)[:count])
    return (int(rng.integers(slack + 1)) + window * seq_len).tolist()


def _cut(place_3Q: np.ndarray, start: int, seq_len: int, window: int) -> np.ndarray:
    """The queries in a window from token `start` on, with the window's number and places in it."""
    query_Q, first_Q, _ = place_3Q
    inside_3Q = place_3Q[:, (first_Q >= start) & (query_Q < start + seq_len)] - start
    return np.concatenate([np.full((1, inside_3Q.shape[1]), window), inside_3Q])
