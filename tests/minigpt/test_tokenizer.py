"""Tokenizers: what comes back exactly, what a WordPiece loses, what is refused."""

import json
import random
import re

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from minigpt import tokenizer
from minigpt.tokenizer import BYTES, Tokenizer, TokenizerError, from_json
from minigpt.vocabulary import train

END = "<|endoftext|>"
ODD = [
    END,
    "<|endof",
    "\0",
    "\r\n",
    "\r",
    "\t  ",
    "😀",
    "👩‍👩‍👧",
    "e\u0301",
    "é",
    "漢字",
    "\u2028",
    " ",
    "'s",
]
anything = st.lists(st.text() | st.sampled_from(ODD)).map("".join)
letters = st.text(alphabet="abcdefgh.,_()' \t\r\n")


def texts() -> list[bytes]:
    rng = random.Random(3)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(1, 6))) for _ in range(200)]
    lines = ("{}({}),\t'{}'._{}\n" * 8).format
    return [lines(*rng.choices(words, k=32)).encode() for _ in range(30)]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train("bpe", 400, texts())


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return train("wordpiece", 200, texts())


def edited(code: Tokenizer, **changes: object) -> str:
    """The tokenizer as JSON, with other values of its keys."""
    return json.dumps(json.loads(code.to_json()) | changes)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_every_text_comes_back_exactly(kind: str, bpe: Tokenizer) -> None:
    code = {"bytes": BYTES, "bpe": from_json(bpe.to_json())}[kind]

    @given(anything)
    @settings(deadline=None)
    def check(text: str) -> None:
        ids = code.encode(text.encode())
        assert code.decode(ids) == text.encode()
        assert b"".join(code.pieces[each] for each in ids) == text.encode()  # as it is streamed
        assert code.end_of_text not in ids
        assert all(0 <= each < code.vocab_size for each in ids)
        (together,) = code.encode_all([text.encode()])
        assert together.tolist() == ids
        assert code.unknown(text.encode()) == ()

    check()


@given(st.binary())
def test_bytes_take_what_is_no_text(raw: bytes) -> None:
    assert BYTES.encode(raw) == list(raw)
    assert BYTES.decode([*BYTES.encode(raw), BYTES.end_of_text]) == raw


def test_pieces_are_what_the_library_decodes(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    text = b"".join(texts()) + " é漢 ".encode()
    for code, known in ((bpe, text), (wordpiece, b"".join(texts()))):
        ids = code.encode(known)
        theirs = tokenizers.Tokenizer.from_str(code.to_json()).decode(ids)
        assert code.decode(ids).decode().removeprefix(" ") == theirs
        assert len(set(ids)) > 100
        assert any(len(code.pieces[each]) > 3 for each in ids)


@given(text=letters)
@settings(deadline=None)
def test_wordpiece_loses_white_space_and_nothing_else_of_a_known_alphabet(
    text: str, wordpiece: Tokenizer
) -> None:
    words = re.findall(r"[a-h]+|[.,_()']", text)
    ids = wordpiece.encode(text.encode())
    assert wordpiece.decode(ids).decode() == "".join(f" {word}" for word in words)
    assert wordpiece.encode(wordpiece.decode(ids)) == ids
    assert wordpiece.unknown(text.encode()) == ()
    (together,) = wordpiece.encode_all([text.encode()])
    assert together.tolist() == ids


def test_wordpiece_knows_no_word_of_an_unknown_character(wordpiece: Tokenizer) -> None:
    text = f"abc aéb {'a' * 101} {'a' * 100} Ab é漢".encode()
    known = wordpiece.decode(wordpiece.encode(text)).decode()
    assert known == f" abc [UNK] [UNK] {'a' * 100} [UNK] [UNK] [UNK]"
    assert wordpiece.unknown(text) == ("é", "a" * 101, "A", "漢")


def test_an_end_in_a_text_is_text(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    text = f"a{END}b {END}".encode()
    for code in (BYTES, bpe, wordpiece, from_json(bpe.to_json()), from_json(wordpiece.to_json())):
        assert code.end_of_text not in code.encode(text)
        assert code.pieces[code.end_of_text] == b""
    # It had been the end, had the library been asked without a word.
    theirs = tokenizers.Tokenizer.from_str(bpe.to_json()).encode(text.decode()).ids
    assert bpe.end_of_text in theirs


def test_it_comes_back_from_its_json(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    for code in (BYTES, bpe, wordpiece):
        again = from_json(code.to_json())
        assert (again.kind, again.vocab_size, again.end_of_text) == (
            code.kind,
            code.vocab_size,
            code.end_of_text,
        )
        assert (again.sha256, again.pieces) == (code.sha256, code.pieces)
    assert BYTES.sha256 is None
    laid_out = json.dumps(json.loads(bpe.to_json()), indent=2)
    assert from_json(laid_out).sha256 == bpe.sha256  # of what it says, not of how
    assert train("bpe", 400, texts()).sha256 == bpe.sha256
    assert train("bpe", 399, texts()).sha256 != bpe.sha256


def test_settings_of_a_file_that_would_cut_or_add_are_not_used(bpe: Tokenizer) -> None:
    cut = {"max_length": 4, "stride": 0, "direction": "Right", "strategy": "LongestFirst"}
    begin = {"SpecialToken": {"id": END, "type_id": 0}}
    begins = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END: {"id": END, "ids": [bpe.end_of_text], "tokens": [END]}},
    }
    code = from_json(edited(bpe, truncation=cut, post_processor=begins))
    text = b"abcabc fed" * 9
    assert code.encode(text) == bpe.encode(text)
    assert [each.tolist() for each in code.encode_all([text])] == [bpe.encode(text)]


def test_added_tokens_stand_for_themselves(bpe: Tokenizer) -> None:
    engine = tokenizers.Tokenizer.from_str(bpe.to_json())
    engine.add_tokens(["<é>"])
    code = from_json(engine.to_str())
    assert code.vocab_size == bpe.vocab_size + 1
    assert code.pieces[-1] == "<é>".encode()
    assert code.decode(code.encode("ab<é>c".encode())) == "ab<é>c".encode()


@pytest.mark.parametrize(
    ("kind", "size", "told"),
    [
        ("bpe", 256, "vocab_size = 256 is outside 257, 256 bytes and end of text, to 65,536"),
        ("bpe", 65_537, "vocab_size = 65,537 is outside 257"),
        ("wordpiece", 65_537, "vocab_size = 65,537 is outside 16 to 65,536"),
        ("bpe", 60_000, r"bytes of training text give a bpe tokenizer of [\d,]+ ids; use that"),
        ("wordpiece", 60_000, r"give a wordpiece tokenizer of [\d,]+ ids; use that many or fewer"),
    ],
)
def test_sizes_that_cannot_be_are_refused(kind: tokenizer.Kind, size: int, told: str) -> None:
    with pytest.raises(TokenizerError, match=told):
        train(kind, size, texts())


def test_a_small_text_gives_the_number_that_the_message_names() -> None:
    few = [b"hello world hello world"]
    with pytest.raises(TokenizerError, match=r"tokenizer of \d+ ids") as refused:
        train("bpe", 5_000, few)
    reached = int(re.search(r"of (\d+) ids", str(refused.value))[1])  # type: ignore[index]
    assert 257 < reached < 300
    assert train("bpe", reached, few).vocab_size == reached


def test_text_that_is_not_utf8_is_for_bytes(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    for code in (bpe, wordpiece):
        for call in (
            code.encode,
            code.unknown,
            lambda raw, code=code: list(code.encode_all([raw])),
        ):
            if call == bpe.unknown:
                continue  # knows all that is text
            with pytest.raises(TokenizerError, match=r"byte 2 \(0xff\) is not UTF-8"):
                call(b"ab\xff")


def test_files_that_are_no_tokenizers_of_ours(bpe: Tokenizer, wordpiece: Tokenizer) -> None:
    values, model = json.loads(bpe.to_json()), json.loads(bpe.to_json())["model"]
    words = tokenizers.Tokenizer(models.WordLevel({END: 0, "a": 1}, unk_token="a"))
    of_characters = tokenizers.Tokenizer(models.BPE({END: 0, "a": 1}, []))
    large = tokenizers.Tokenizer.from_str(bpe.to_json())
    large.add_tokens([f"<{i}>" for i in range(65_536)])
    no_end = {k: v for k, v in model["vocab"].items() if k != END}
    no_byte = model | {"vocab": {k: v for k, v in model["vocab"].items() if k != "é"}}
    by_words = json.loads(wordpiece.to_json()) | {"pre_tokenizer": {"type": "WhitespaceSplit"}}
    no_unknown = json.loads(wordpiece.to_json())
    no_unknown["model"]["vocab"] = {"a": 0, END: 1}
    no_unknown["added_tokens"] = []
    for text, told in (
        ("no tokenizer", "not a tokenizer of the `tokenizers` library"),
        ("{}", "not a tokenizer of the `tokenizers` library"),
        (words.to_str(), "its model is WordLevel; give byte-level BPE or WordPiece"),
        (of_characters.to_str(), "its model is BPE of characters; give byte-level BPE"),
        (large.to_str(), "its 65,936 ids are more than the 65,536 of uint16 shards"),
        (
            json.dumps(values | {"added_tokens": [], "model": model | {"vocab": no_end}}),
            "no <|endoftext|>, which ends every document",
        ),
        (json.dumps(values | {"model": no_byte}), "lacks 1 of the 256 bytes, the first as 'é'"),
        (json.dumps(by_words), "reads the text <|endoftext|> as the end of a document"),
        (json.dumps(no_unknown), "lacks its own [UNK]"),
    ):
        with pytest.raises(TokenizerError, match=re.escape(told)):
            from_json(text)


def test_the_alphabet_of_bytes_is_that_of_the_library(bpe: Tokenizer) -> None:
    single = {piece for piece in bpe.pieces if len(piece) == 1}
    assert single == {bytes([byte]) for byte in range(256)}
    names = json.loads(bpe.to_json())["model"]["vocab"]
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= names.keys()


def test_tokens_are_uint16_in_batches_of_any_size(
    bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "BATCH_BYTES", 500)
    found = list(bpe.encode_all(iter(texts())))
    assert all(each.dtype == np.dtype("<u2") for each in found)
    assert [each.tolist() for each in found] == [bpe.encode(text) for text in texts()]
