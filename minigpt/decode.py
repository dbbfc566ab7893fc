"""From a model to the tokens that go on from prompts: greedy, or drawn at a temperature.

Shapes: B rows (one text each), T tokens, V vocabulary.
"""

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from minigpt.kvcache import KVCache
from minigpt.model import MiniGPT

Stop = Literal["end", "length", "context"]  # end of text; tokens asked for; the model's context


class DecodeError(ValueError):
    """A setting, a prompt or a model that nothing can be decoded with."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen from the logits; raises DecodeError for what is no choice.

    Temperature 0 takes the most probable token, 1 draws from the model's own distribution. `top_k`
    keeps that many most probable tokens (Fan et al. 2018, §5.2); `top_p` the fewest most probable
    ones whose probabilities sum to it at least (Holtzman et al. 2020, §3.1), of what `top_k` left.
    Both are cut at the temperature. `seed` is of a generator that every prompt has for itself.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise DecodeError(
                f"temperature = {self.temperature} is not a number of at least 0; 0 takes the most "
                "probable token, 1 draws from the model's own distribution"
            )
        if self.top_k is not None and self.top_k < 1:
            raise DecodeError(
                f"top_k = {self.top_k} leaves no token to draw; give at least 1, or leave it out"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise DecodeError(
                f"top_p = {self.top_p} is outside (0, 1]; 0.9 keeps the most probable tokens that "
                "make up nine tenths, 1 keeps all"
            )
        for name in ("top_k", "top_p"):
            if self.temperature == 0 and getattr(self, name) is not None:
                raise DecodeError(
                    f"{name} = {getattr(self, name)} has no effect at temperature 0, where nothing "
                    "is drawn; set the temperature to 1, or leave it out"
                )
        if not 0 <= self.seed < 2**63:
            raise DecodeError(f"seed = {self.seed} is outside 0 to 2^63 - 1; give such a number")


@dataclass(frozen=True)
class Token:
    """The next token of the prompt number `prompt`; `stop` says why it is the last one."""

    prompt: int
    id: int
    stop: Stop | None


def continuations(
    model: MiniGPT,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    end: int | None,
    sampling: Sampling,
) -> Generator[Token]:
    """The tokens that go on from each prompt, at most `tokens`, as they are found.

    Prompts are one batch and leave each other alone: each has the tokens that it has by itself, as
    far as rounding leaves the choice. A text ends with the token `end`, or when the context is
    full: a model reads at most `seq_len` tokens, and there is one more after the last of them.
    Raises DecodeError, before the first token, for a prompt that is empty or too long.
    """
    check(model, prompts, tokens)
    return _continuations(model, prompts, tokens, end, sampling)


def _continuations(
    model: MiniGPT,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    end: int | None,
    sampling: Sampling,
) -> Generator[Token]:
    reader, rows = Reader(model, prompts, tokens), list(range(len(prompts)))
    draws = [torch.Generator().manual_seed(sampling.seed) for _ in prompts]
    for length in itertools.count(1):
        chosen = choose(reader.logits_BV, sampling, [draws[row] for row in rows])
        left = []
        for place, (row, token) in enumerate(zip(rows, chosen, strict=True)):
            stop = stops(model, len(prompts[row]), length, tokens)
            stop = "end" if token == end else stop
            yield Token(row, token, stop)
            if stop is None:
                left.append(place)
        if not left:
            return
        rows = [rows[place] for place in left]
        reader.read(left, [chosen[place] for place in left])


def drawn(
    model: MiniGPT, prompt: Sequence[int], *, texts: int, tokens: int, sampling: Sampling
) -> list[list[int]]:
    """So many texts of `tokens` tokens after one prompt, each drawn by itself, whatever it draws.

    The generator of text i is seeded with `sampling.seed` + i. Raises DecodeError for a prompt that
    is empty, or too long with what is to come.
    """
    check(model, [prompt], tokens)
    if len(prompt) + tokens > model.config.seq_len + 1:
        raise DecodeError(
            f"{tokens} tokens after a prompt of {len(prompt)} are more than the model's context of "
            f"{model.config.seq_len} holds; ask for fewer"
        )
    draws = [torch.Generator().manual_seed(sampling.seed + i) for i in range(texts)]
    reader, rows = Reader(model, [prompt] * texts, tokens), list(range(texts))
    found: list[list[int]] = [[] for _ in rows]
    while True:
        for text, token in zip(found, choose(reader.logits_BV, sampling, draws), strict=True):
            text.append(token)
        if len(found[0]) == tokens:
            return found
        reader.read(rows, [text[-1] for text in found])


def check(model: MiniGPT, prompts: Sequence[Sequence[int]], tokens: int) -> None:
    """Raise DecodeError for prompts that the model cannot go on from."""
    if tokens < 1:
        raise DecodeError(f"tokens = {tokens} asks for no text; give at least 1")
    context = model.config.seq_len
    for number, prompt in enumerate(prompts, 1):
        which = "the prompt" if len(prompts) == 1 else f"prompt {number} of {len(prompts)}"
        if not prompt:
            raise DecodeError(
                f"{which} is empty, and a model needs a token to go on from; give at least one"
            )
        if len(prompt) > context:
            raise DecodeError(
                f"{which} has {len(prompt)} tokens, more than the {context} of the model's "
                f"context; leave out {len(prompt) - context}, or train with a larger seq_len"
            )


def stops(model: MiniGPT, prompt: int, length: int, tokens: int) -> Stop | None:
    """Why a text of `prompt` and `length` more tokens ends, whatever its last token is."""
    if length == tokens:
        return "length"
    return "context" if prompt + length > model.config.seq_len else None


def choose(logits_BV: Tensor, sampling: Sampling, draws: Sequence[torch.Generator]) -> list[int]:
    """The next token of every row, drawn by the row's own generator; of equals the first."""
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1).tolist()
    p_BV = probabilities(logits_BV, sampling).cpu()
    rows = zip(p_BV, draws, strict=True)
    return [int(torch.multinomial(p_V, 1, generator=draw)) for p_V, draw in rows]


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """The distribution p_BV (float64) that a temperature above 0 draws from."""
    # By logits and not by probabilities, which rounding can make equal at a high temperature.
    ranked_BV, id_BV = logits_BV.double().sort(dim=-1, descending=True, stable=True)
    p_BV = ((ranked_BV - ranked_BV[:, :1]) / sampling.temperature).softmax(dim=-1)
    if sampling.top_k is not None:
        p_BV[:, sampling.top_k :] = 0
        p_BV /= p_BV.sum(dim=-1, keepdim=True)
    if sampling.top_p is not None and sampling.top_p < 1:  # 1 keeps all, whatever the rounding
        more_probable_BV = p_BV.cumsum(dim=-1) - p_BV
        p_BV[more_probable_BV >= sampling.top_p] = 0
        p_BV /= p_BV.sum(dim=-1, keepdim=True)
    return torch.zeros_like(p_BV).scatter(-1, id_BV, p_BV)


class Reader:
    """A model that has read B texts: `logits_BV` of what comes next in each."""

    def __init__(self, model: MiniGPT, texts: Sequence[Sequence[int]], more: int) -> None:
        """Read `texts`, with room for `more` tokens after them, as far as the context reaches."""
        self.model, weight = model, model.embedding.weight
        lengths = [len(text) for text in texts]
        room = min(model.config.seq_len, max(lengths) + more)
        self.cache = KVCache(model.config, len(texts), room, like=weight)
        padded = [[*text, *[0] * (max(lengths) - len(text))] for text in texts]
        logits_BTV = self._logits(padded)
        self.cache.lengths_B = torch.tensor(lengths, device=weight.device)
        self.logits_BV = logits_BTV[range(len(texts)), self.cache.lengths_B - 1]

    def read(self, rows: list[int], tokens: list[int]) -> None:
        """Go on with these rows, each with its next token."""
        if rows != list(range(len(self.logits_BV))):
            self.cache.keep(rows)
        self.logits_BV = self._logits([[token] for token in tokens])[:, 0]

    @torch.no_grad()
    def _logits(self, tokens: list[list[int]]) -> Tensor:
        tokens_BT = torch.tensor(tokens, device=self.model.embedding.weight.device)
        logits_BTV = self.model(tokens_BT, cache=self.cache)
        if not logits_BTV.isfinite().all():
            raise DecodeError(
                "the model's logits are not finite numbers: its training diverged; take another "
                "run's weights"
            )
        return logits_BTV
