"""What a trained model writes: a sample, and how many of its lines are lines of Python."""

from minigpt import lines
from minigpt.data import Corpus
from minigpt.decode import DecodeError, Sampling, drawn
from minigpt.generate import encoded, generated
from minigpt.lines import Share
from minigpt.model import MiniGPT
from minigpt.tokenizer import Tokenizer

TEMPERATURE = 0.8
# Texts at a time, until there are so many lines, at most so often.
ROWS, LINES, BATCHES = 32, 300, 20
HELD_OUT_ROWS = 1_000


def default_prompt(corpus: Corpus, tokenizer: Tokenizer, seq_len: int, python: bool) -> bytes:
    """What a sample goes on from where nothing is said, if the model can take it.

    `def ` in Python, else the first word of held-out text.
    """
    text = tokenizer.decode(corpus.val[:4_096].tolist()).decode(errors="ignore")
    words = [f"{word} ".encode() for word in ["def"] * python + text.split()]
    fits = (w for w in words if not tokenizer.unknown(w) and len(tokenizer.encode(w)) <= seq_len)
    return next(fits, b" ")


def check(tokenizer: Tokenizer, prompt: bytes, seq_len: int) -> None:
    """Raise DecodeError for a prompt that no model of this context can go on from."""
    length = len(encoded(tokenizer, prompt, "--prompt"))
    if not 0 < length <= seq_len:
        raise DecodeError(
            f"--prompt has {length} tokens; give 1 to {seq_len}, the model's context (--seq-len)"
        )


def text(model: MiniGPT, tokenizer: Tokenizer, prompt: bytes, seed: int) -> bytes:
    """The prompt and what goes on from it, to the end of the text or of the model's context."""
    how = Sampling(temperature=TEMPERATURE, seed=seed)
    found = generated(model, tokenizer, [prompt], model.config.seq_len, how)
    return prompt + tokenizer.decode(token.id for token in found)


def has_lines(tokenizer: Tokenizer) -> bool:
    """Whether its tokens know where a line ends: WordPiece forgets it."""
    return tokenizer.decode(tokenizer.encode(b"\n")) == b"\n"


def python_lines(
    model: MiniGPT, tokenizer: Tokenizer, corpus: Corpus, seed: int
) -> tuple[Share | None, Share | None, Share | None]:
    """Shares of lines that `tokenize` accepts: the model's, unigram ones, held-out ones.

    The model's are whole lines of texts drawn after the end of a line, and unigram ones have their
    lengths.
    """
    T, newline, texts = model.config.seq_len, tokenizer.encode(b"\n"), []
    for batch in range(BATCHES):
        sampling = Sampling(temperature=TEMPERATURE, seed=seed + batch * ROWS)
        rows = drawn(model, newline, texts=ROWS, tokens=T + 1 - len(newline), sampling=sampling)
        texts += [lines.whole(_lined(tokenizer, row)) for row in rows]
        if sum(map(len, texts)) >= LINES:
            break
    starts = range(0, min(HELD_OUT_ROWS * T, len(corpus.val) - T + 1), T)
    held_out = [_lined(tokenizer, corpus.val[at : at + T].tolist()) for at in starts]
    return (
        lines.share(texts),
        lines.share(lines.unigram(texts, corpus.train, tokenizer.pieces, seed)),
        lines.share([lines.whole(found.partition(b"\n")[2]) for found in held_out]),
    )


def _lined(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    """The text of tokens, with the end of a document as that of a line."""
    end = tokenizer.end_of_text
    return b"".join(b"\n" if i == end else tokenizer.pieces[i] for i in ids)
