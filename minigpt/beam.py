"""Beam search: the continuations of a prompt that a model finds most probable, or nearly so.

Shapes: B hypotheses, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from minigpt.decode import DecodeError, Reader, Stop, check, stops
from minigpt.model import MiniGPT


@dataclass(frozen=True, kw_only=True)
class Beam:
    """How many hypotheses are followed at once, and how much their length counts.

    The score of a hypothesis Y is log P(Y) / ((5 + |Y|) / 6)^α with α the `length_penalty` (Wu et
    al. 2016, GNMT, eq. 14, without its coverage); |Y| counts the end of the text. At α = 0 it is
    log P(Y), which favours short texts. Raises DecodeError for what is no beam.
    """

    width: int
    length_penalty: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise DecodeError(
                f"beam = {self.width} follows no hypothesis; give a width of at least 1, which is "
                "greedy"
            )
        if not 0 <= self.length_penalty < math.inf:
            raise DecodeError(
                f"length_penalty = {self.length_penalty} is not a number of at least 0; 0 compares "
                "log-probabilities as they are, 0.6 to 0.7 favours longer texts"
            )

    def score(self, log_p: float, length: int) -> float:
        """Of a hypothesis of `length` tokens, in nats where the length does not count."""
        return log_p * ((5 + length) / 6) ** -self.length_penalty


@dataclass(frozen=True)
class Hypothesis:
    """A continuation that came to its end: log P(tokens | prompt) in nats, and its score."""

    tokens: tuple[int, ...]
    log_p: float
    score: float
    stop: Stop


def search(
    model: MiniGPT, prompt: Sequence[int], *, tokens: int, end: int | None, beam: Beam
) -> list[Hypothesis]:
    """The best `beam.width` continuations that were found, best first.

    Of all ways to go on by one token from the hypotheses at hand, the `width` most probable are
    taken. Those that end the text are kept aside, the others go on, until none of them can come to
    a better score than all that are kept. A text ends as in `minigpt.decode.continuations`. Raises
    DecodeError for a prompt that is empty or too long.
    """
    check(model, [prompt], tokens)
    last = min(tokens, model.config.seq_len - len(prompt) + 1)
    reader = Reader(model, [prompt], tokens)
    live: list[tuple[int, ...]] = [()]
    log_p_B = reader.logits_BV.new_zeros(1).double()
    ended: list[Hypothesis] = []
    for length in range(1, last + 1):
        log_p_BV = log_p_B[:, None] + reader.logits_BV.double().log_softmax(dim=-1)
        ranked, place = log_p_BV.flatten().sort(descending=True, stable=True)
        taken = place[: beam.width]
        parents, ids = (taken // log_p_BV.shape[1]).tolist(), (taken % log_p_BV.shape[1]).tolist()
        grown = [(*live[parent], token) for parent, token in zip(parents, ids, strict=True)]
        stop = stops(model, len(prompt), length, tokens)
        going = []
        for i, log_p in enumerate(ranked[: beam.width].tolist()):
            if (why := "end" if ids[i] == end else stop) is None:
                going.append(i)
            else:
                ended.append(Hypothesis(grown[i], log_p, beam.score(log_p, length), why))
        ended = sorted(ended, key=lambda hypothesis: -hypothesis.score)[: beam.width]
        if not going:
            break
        log_p_B, live = ranked[going], [grown[i] for i in going]
        # Probabilities only fall from here, and no length counts more than the last one.
        within_reach = beam.score(log_p_B[0].item(), last)
        if len(ended) == beam.width and ended[-1].score >= within_reach:
            break
        reader.read([parents[i] for i in going], [ids[i] for i in going])
    return ended
