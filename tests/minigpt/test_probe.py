"""Windows and their queries: whole keys, what lies between, any tokenizer, which text is what."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from minigpt import relations, vocabulary
from minigpt.probe import Probe, documents, probe
from minigpt.tokenizer import BYTES, Tokenizer

LIBRARY = Path(sysconfig.get_path("stdlib"))
TEXTS = [(LIBRARY / name).read_bytes() for name in ("heapq.py", "bisect.py", "queue.py", "cmd.py")]


@pytest.fixture(scope="module", params=["bytes", "bpe", "wordpiece"])
def tokens(request: pytest.FixtureRequest) -> Tokenizer:
    return BYTES if request.param == "bytes" else vocabulary.train(request.param, 500, TEXTS)


def queries(found: Probe, name: str) -> list[tuple[int, int, int, int]]:
    columns = found.queries[name]
    rows = zip(columns.window_Q, columns.query_Q, columns.first_Q, columns.last_Q, strict=True)
    return [tuple(map(int, row)) for row in rows]


def test_a_query_needs_its_whole_key_and_a_token_between() -> None:
    text = b"f(a, [b]); ab = g(); ab\n"
    whole = probe([text], BYTES, seq_len=24, seed=0)
    assert whole.tokens_WT.tolist() == [list(text)]
    assert queries(whole, "bracket") == [(0, 7, 5, 5), (0, 8, 1, 1)]  # not that of g()
    assert queries(whole, "previous_use") == [(0, 22, 11, 12)]
    # In windows of 12 and of 6 bytes:
    halves = probe([text], BYTES, seq_len=12, seed=0)
    assert queries(halves, "bracket") == [(0, 7, 5, 5), (0, 8, 1, 1)]
    assert len(halves.queries["previous_use"].query_Q) == 0
    assert queries(probe([text], BYTES, seq_len=6, seed=0), "bracket") == []


def test_windows_do_not_overlap_and_stand_in_their_document() -> None:
    found = probe(TEXTS, BYTES, seq_len=100, seed=3, tokens=2_400)
    assert found.tokens_WT.shape == (24, 100)
    assert np.bincount(found.document_W).tolist() == [6, 6, 6, 6]
    assert found.documents == 4
    seen = set()
    for window_T in found.tokens_WT:
        raw = bytes(window_T.tolist())
        places = [(i, text.find(raw)) for i, text in enumerate(TEXTS) if raw in text]
        assert places
        assert not any(
            abs(place - other) < 100 for i, place in places for d, other in seen if i == d
        )
        seen |= set(places[:1])
    same = probe(TEXTS, BYTES, seq_len=100, seed=3, tokens=2_400)
    assert (same.tokens_WT == found.tokens_WT).all()
    assert (
        probe(TEXTS, BYTES, seq_len=100, seed=4, tokens=2_400).tokens_WT != found.tokens_WT
    ).any()


def test_a_short_document_is_filled_up() -> None:
    found = probe([b"x = [1, 2]"], BYTES, seq_len=16, seed=0)
    assert found.tokens_WT.tolist() == [[*b"x = [1, 2]", *[256] * 6]]
    assert queries(found, "bracket") == [(0, 9, 4, 4)]


def test_tokens_hold_what_they_are_asked_about(tokens: Tokenizer) -> None:
    found = probe(TEXTS, tokens, seq_len=200, seed=0, tokens=16_000)
    assert found.documents == 4
    assert set(found.queries) == set(relations.SOURCE)
    for name in relations.SOURCE:
        rows = queries(found, name)
        assert len(rows) > 5
        assert len({row[:2] for row in rows}) == len(rows)  # one query of a token
        for window, query, first, last in rows:
            assert 0 <= first <= last < query - 1 < 199
            piece_T = [tokens.pieces[id] for id in found.tokens_WT[window]]
            key = b"".join(piece_T[first : last + 1])
            if name == "bracket":
                pairs = zip(b")]}", b"([{", strict=True)
                assert any(a in piece_T[query] and b in key for a, b in pairs)
            elif name == "definition":
                assert b"def" in key or b"class" in key


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_tokens_are_asked_what_the_text_says(kind: str) -> None:
    """All pairs that fit are there: of one window that holds a whole document, byte by byte."""
    text = TEXTS[0][-3000:]
    text = text[text.index(b"\ndef") :]
    pieces = BYTES if kind == "bytes" else vocabulary.train("bpe", 500, TEXTS)
    ids = pieces.encode(text)
    token = [i for i, id in enumerate(ids) for _ in pieces.pieces[id]]  # of each byte
    found = probe([text], pieces, seq_len=len(ids), seed=0)
    for name, pairs in relations.of_source(text).items():
        expected = {}
        for query, start, stop in pairs:  # the last one of a token counts
            key = [token[byte] for byte in range(start, stop)]
            expected[token[query]] = (0, token[query], min(key), max(key))
        apart = [row for row in expected.values() if row[3] < row[1] - 1]
        assert len(apart) > 5
        assert queries(found, name) == apart


def test_what_is_source_and_what_is_prose() -> None:
    source, prose = b"x = [1, 2, 3]\n" * 9, b"# A head\n\nSome words here, not code.\n" * 4
    both = probe([source, prose], BYTES, seq_len=200, seed=0)
    assert set(both.queries) == {*relations.SOURCE, *relations.PROSE}
    assert both.documents == 2
    # Where most is source, what is refused is broken source and not prose.
    mostly = probe([source, source + b"y = 1", prose], BYTES, seq_len=200, seed=0)
    assert set(mostly.queries) == set(relations.SOURCE)
    assert mostly.documents == 2


def test_text_that_tokens_do_not_give_back_is_refused() -> None:
    pieces = vocabulary.train("wordpiece", 500, TEXTS)
    found = probe([TEXTS[0], b"x = '\xe2\x82\xac'; y = [x, x]\n"], pieces, seq_len=32, seed=0)
    assert found.documents == 1


def test_no_text_is_an_empty_probe() -> None:
    found = probe([], BYTES, seq_len=16, seed=0)
    assert (found.tokens_WT.shape, found.documents, found.queries) == ((0, 16), 0, {})


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_documents_of_a_shard(kind: str) -> None:
    pieces = BYTES if kind == "bytes" else vocabulary.train("bpe", 500, TEXTS)
    texts = [b"a\n", "é = '<|endoftext|>'".encode(), b"x"]
    shard_N = np.array([id for text in texts for id in [*pieces.encode(text), pieces.end_of_text]])
    assert documents(shard_N, pieces) == texts


def test_of_wordpiece_there_are_no_documents() -> None:
    pieces = vocabulary.train("wordpiece", 500, TEXTS)
    assert documents(np.array(pieces.encode(b"x = 1\ny = 2")), pieces) == []
