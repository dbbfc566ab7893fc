"""Tokens from a model: the cache, the choice of the next token, how texts end, beams."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from minigpt import decode
from minigpt.beam import Beam, search
from minigpt.config import ModelConfig
from minigpt.decode import DecodeError, Sampling, choose, continuations, probabilities
from minigpt.kvcache import KVCache
from minigpt.model import MiniGPT

PRESETS = [("gpt", "rotary"), ("vaswani", "learned"), ("vaswani", "sinusoidal")]
both = pytest.mark.parametrize(("preset", "positions"), PRESETS)
GREEDY = Sampling()


pytestmark = pytest.mark.usefixtures("float64")


def perturbed(preset="gpt", positions="rotary", seed=0, spread=0.3, **changes) -> MiniGPT:
    """A model that prefers some tokens."""
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 31, "seq_len": 24}
    values = shape | {"preset": preset, "positions": positions} | changes
    model = MiniGPT(ModelConfig.model_validate(values), seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += spread * torch.randn(p.shape, generator=draw)
    return model


@torch.no_grad()
def log_p(model: MiniGPT, text: list[int]) -> torch.Tensor:
    """Of every next token after `text`, without a cache."""
    return model(torch.tensor([text]))[0, -1].log_softmax(dim=-1)


def texts(model, prompts, sampling=GREEDY, tokens=10, end=None) -> list[list[int]]:
    """The tokens after each prompt, as the stream has them."""
    found = [[] for _ in prompts]
    for token in continuations(model, prompts, tokens=tokens, end=end, sampling=sampling):
        found[token.prompt].append(token.id)
    return found


# The cache


@settings(max_examples=25)
@given(data=st.data())
def test_cached_logits_are_those_of_the_whole_text(data):
    """Whatever the parts in which it is read."""
    preset, positions = data.draw(st.sampled_from(PRESETS))
    n_heads, B = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    model = perturbed(
        preset,
        positions,
        seed=data.draw(st.integers(0, 100)),
        n_heads=n_heads,
        d_model=n_heads * 2 * data.draw(st.integers(1, 4)),
        n_layers=data.draw(st.integers(1, 3)),
    )
    parts = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    tokens_BT = torch.randint(31, (B, sum(parts)), generator=torch.Generator().manual_seed(1))
    cache = KVCache(model.config, B, sum(parts), like=model.embedding.weight)
    with torch.no_grad():
        cached = [model(part_BT, cache=cache) for part_BT in tokens_BT.split(parts, dim=1)]
        whole_BTV = model(tokens_BT)
    torch.testing.assert_close(torch.cat(cached, dim=1), whole_BTV, rtol=0, atol=1e-10)


@both
def test_greedy_text_is_that_of_a_model_without_a_cache(preset, positions):
    """To the end of the context, of which the last token is read too."""
    for seed in range(5):
        model = perturbed(preset, positions, seed=seed)
        text = [3, 1, 4]
        while len(text) < 25:
            text.append(int(log_p(model, text).argmax()))
        assert texts(model, [[3, 1, 4]], tokens=100) == [text[3:]]


@settings(max_examples=12)
@given(
    prompts=st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=5),
    preset=st.sampled_from(PRESETS),
    temperature=st.sampled_from([0.0, 1.0, 3.0]),
    seed=st.integers(0, 2**63 - 1),
)
def test_prompts_of_a_batch_leave_each_other_alone(prompts, preset, temperature, seed):
    """Of different lengths, and though some texts end before others."""
    model = perturbed(*preset)
    sampling = Sampling(temperature=temperature, seed=seed)
    together = texts(model, prompts, sampling, tokens=14, end=5)
    assert together == [texts(model, [p], sampling, tokens=14, end=5)[0] for p in prompts]


# The next token

logits = st.lists(st.floats(-30, 30), min_size=1, max_size=12).map(lambda x: torch.tensor([x]))
temperatures = st.floats(0.01, 1e20)


def drawn(logits_BV: torch.Tensor, seed: int = 0, **how) -> int:
    draws = [torch.Generator().manual_seed(seed)]
    return choose(logits_BV, Sampling(**how), draws)[0]


@given(logits, temperatures, st.integers(0, 1000))
def test_one_most_probable_token_is_greedy(logits_BV, temperature, seed):
    greedy = drawn(logits_BV)
    assert logits_BV[0, greedy] == logits_BV.max()
    assert drawn(logits_BV, seed, temperature=temperature, top_k=1) == greedy
    assert drawn(logits_BV, seed, temperature=temperature, top_p=1e-300) == greedy


@given(logits, st.floats(0.1, 10), st.integers(1, 15), st.floats(1e-6, 1))
def test_cuts_keep_the_first_of_the_ranking_and_their_ratios(logits_BV, temperature, top_k, top_p):
    scores = logits_BV[0].tolist()
    ranking = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    whole_V = (logits_BV[0] / temperature).softmax(dim=-1)
    for how in ({"top_k": top_k}, {"top_p": top_p}, {"top_k": top_k, "top_p": top_p}):
        p_V = probabilities(logits_BV, Sampling(temperature=temperature, **how))[0]
        kept = int((p_V > 0).sum())
        first = ranking[:kept]
        assert (p_V[first] > 0).all()
        torch.testing.assert_close(p_V[first], whole_V[first] / whole_V[first].sum())
        left = ranking[: how.get("top_k", len(ranking))]
        if "top_p" in how:
            share = [
                (whole_V[left[:n]].sum() / whole_V[left].sum()).item() for n in (kept, kept - 1)
            ]
            assert share[1] - 1e-9 <= top_p <= share[0] + 1e-9  # the fewest that make it up
        else:
            assert first == left


@given(logits, st.floats(0.1, 10))
def test_cuts_that_cut_nothing(logits_BV, temperature):
    whole = probabilities(logits_BV, Sampling(temperature=temperature))
    torch.testing.assert_close(whole, (logits_BV / temperature).softmax(dim=-1))
    for how in ({"top_k": 12}, {"top_p": 1.0}):
        p_BV = probabilities(logits_BV, Sampling(temperature=temperature, **how))
        torch.testing.assert_close(p_BV, whole)


def assert_drawn_from(p_V: torch.Tensor, found: list[int]) -> None:
    """Pearson's test, which one correct sample in a million fails."""
    count_V = torch.tensor(found).bincount(minlength=len(p_V))
    assert (count_V[p_V == 0] == 0).all()
    expected_V = p_V * len(found)
    possible = p_V > 0
    statistic = ((count_V - expected_V)[possible] ** 2 / expected_V[possible]).sum().item()
    assert statistic < chi2.isf(1e-6, int(possible.sum()) - 1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (4, None), (None, 0.8), (4, 0.8)])
def test_frequencies_are_the_softmax_of_what_is_left(temperature, top_k, top_p):
    logits_BV = torch.tensor([[0.3, 1.9, -1.2, 0.8, 1.1, 0.0]]).expand(4_000, -1)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    draw = torch.Generator().manual_seed(0)
    found = choose(logits_BV, sampling, [draw] * len(logits_BV))
    p_V = (logits_BV[0] / temperature).softmax(dim=-1)
    ranking = p_V.argsort(descending=True)[:top_k]
    if top_p is not None:
        share = p_V[ranking] / p_V[ranking].sum()
        ranking = ranking[: int((share.cumsum(0) < top_p).sum()) + 1]
    kept_V = torch.zeros(6).scatter(0, ranking, p_V[ranking])
    assert_drawn_from(kept_V / kept_V.sum(), found)


def test_frequencies_over_seeds_are_the_models_own():
    """Of the first token, and of the second after the most frequent first one."""
    model = perturbed(n_layers=1, vocab_size=5, seed=2)
    p_V = (log_p(model, [1]) / 1.5).softmax(dim=-1)
    found = [texts(model, [[1]], Sampling(temperature=1.5, seed=s), 2)[0] for s in range(300)]
    assert_drawn_from(p_V, [first for first, _ in found])
    usual = int(p_V.argmax())
    next_V = (log_p(model, [1, usual]) / 1.5).softmax(dim=-1)
    assert_drawn_from(next_V, [second for first, second in found if first == usual])


def test_seeds_reproduce_and_differ():
    model, how = perturbed(), {"temperature": 2.0}
    one, again, other = (
        texts(model, [[1, 2]], Sampling(seed=seed, **how), 20) for seed in (7, 7, 8)
    )
    assert one == again != other


def test_texts_drawn_apart_are_those_of_seeds_of_their_own():
    model, how = perturbed(), Sampling(temperature=1.0, seed=5)
    found = decode.drawn(model, [3, 1], texts=4, tokens=9, sampling=how)
    for i, own in enumerate(found):
        alone = Sampling(temperature=1.0, seed=5 + i)
        assert own == texts(model, [[3, 1]], alone, tokens=9)[0]
    assert len(set(map(tuple, found))) == 4
    assert len(decode.drawn(model, [3, 1], texts=1, tokens=23, sampling=how)[0]) == 23
    with pytest.raises(DecodeError, match="more than the model's context of 24 holds"):
        decode.drawn(model, [3, 1], texts=1, tokens=24, sampling=how)


def test_the_global_generator_has_no_part_in_it():
    model, sampling = perturbed(), Sampling(temperature=2.0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = texts(model, [[1, 2]], sampling)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert texts(model, [[1, 2]], sampling) == one


# Where texts end


@settings(max_examples=15)
@given(st.integers(0, 30), st.sampled_from([0.0, 2.0]), st.integers(0, 100))
def test_end_of_text_is_the_last_token(end, temperature, seed):
    model, sampling = perturbed(), Sampling(temperature=temperature, seed=seed)
    (endless,) = texts(model, [[1, 2]], sampling, tokens=20)
    (found,) = texts(model, [[1, 2]], sampling, tokens=20, end=end)
    assert found == endless[: endless.index(end) + 1 if end in endless else 20]


@pytest.mark.parametrize(
    ("prompt", "tokens", "expected"),
    [
        (4, 7, (7, "length")),
        (4, 21, (21, "length")),
        (4, 22, (21, "context")),
        (24, 5, (1, "context")),
    ],
)
def test_texts_end_by_length_or_with_the_context(prompt, tokens, expected):
    model, found = perturbed(), []
    for token in continuations(model, [[3] * prompt], tokens=tokens, end=None, sampling=GREEDY):
        assert not found or found[-1].stop is None
        found.append(token)
    assert (len(found), found[-1].stop) == expected
    best = search(model, [3] * prompt, tokens=tokens, end=None, beam=Beam(width=2))[0]
    assert (len(best.tokens), best.stop) == expected


@pytest.mark.parametrize("prompts", [[[]], [[1], []], [[1] * 25]])
def test_prompts_that_are_none_are_refused_before_the_first_token(prompts):
    with pytest.raises(DecodeError, match=r"give at least one|leave out 1"):
        continuations(perturbed(), prompts, tokens=1, end=None, sampling=GREEDY)


def test_a_model_without_numbers_is_refused():
    model = perturbed()
    with torch.no_grad():
        model.head.weight[3, 3] = torch.nan
    for how in (GREEDY, Sampling(temperature=1.0)):
        with pytest.raises(DecodeError, match="diverged"):
            texts(model, [[1]], how)


# Beams


def enumerated(model, prompt, tokens, end, beam) -> list[tuple[tuple[int, ...], float, float]]:
    """All continuations with log-probability and score, best first, without search and cache."""
    V = model.config.vocab_size
    all_NT = torch.tensor(list(itertools.product(range(V), repeat=tokens)))
    prompts_NT = torch.tensor(prompt).expand(len(all_NT), -1)
    with torch.no_grad():
        logits_NTV = model(torch.cat((prompts_NT, all_NT[:, :-1]), dim=1))[:, len(prompt) - 1 :]
    log_p_NT = logits_NTV.log_softmax(dim=-1).gather(2, all_NT[..., None])[..., 0]
    found = {}
    for text, log_ps in zip(all_NT.tolist(), log_p_NT.tolist(), strict=True):
        length = text.index(end) + 1 if end in text else tokens
        total = sum(log_ps[:length])
        norm = (5 + length) ** beam.length_penalty / 6**beam.length_penalty
        found[tuple(text[:length])] = (total, total / norm)
    return sorted(((text, *scores) for text, scores in found.items()), key=lambda x: -x[2])


@settings(max_examples=60)
@given(
    tokens=st.integers(1, 4),
    V=st.integers(2, 4),
    end=st.sampled_from([None, 0, 1]),
    length_penalty=st.sampled_from([0.0, 0.6, 1.0, 3.0]),
    seed=st.integers(0, 1000),
    preset=st.sampled_from(PRESETS),
)
def test_wide_enough_a_beam_is_enumeration(tokens, V, end, length_penalty, seed, preset):
    """Width V^(n−1): the whole ranking that it keeps, scores and probabilities."""
    model = perturbed(*preset, vocab_size=V, seed=seed, spread=0.6)
    beam = Beam(width=V ** (tokens - 1), length_penalty=length_penalty)
    found = search(model, [1, 0], tokens=tokens, end=end, beam=beam)
    expected = enumerated(model, [1, 0], tokens, end, beam)[: beam.width]
    assert [h.tokens for h in found] == [text for text, _, _ in expected]
    for hypothesis, (_, total, score) in zip(found, expected, strict=True):
        assert hypothesis.log_p == pytest.approx(total, abs=1e-10)
        assert hypothesis.score == pytest.approx(score, abs=1e-10)
        assert hypothesis.stop == ("end" if hypothesis.tokens[-1] == end else "length")


@settings(max_examples=15)
@given(st.sampled_from(PRESETS), st.integers(0, 100), st.integers(0, 30), st.floats(0, 2))
def test_a_beam_of_one_is_greedy(preset, seed, end, length_penalty):
    model, beam = perturbed(*preset, seed=seed), Beam(width=1, length_penalty=length_penalty)
    (best,) = search(model, [1, 2], tokens=15, end=end, beam=beam)
    assert [list(best.tokens)] == texts(model, [[1, 2]], tokens=15, end=end)


@settings(max_examples=10)
@given(st.integers(2, 6), st.integers(0, 100), st.sampled_from([None, 4]), st.floats(0, 2))
def test_hypotheses_are_apart_ranked_and_as_probable_as_told(width, seed, end, length_penalty):
    model, beam = perturbed(seed=seed), Beam(width=width, length_penalty=length_penalty)
    found = search(model, [1, 2], tokens=6, end=end, beam=beam)
    assert len({h.tokens for h in found}) == len(found) <= width
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
    for hypothesis in found:
        text, total = [1, 2], 0.0
        for token in hypothesis.tokens:
            total += log_p(model, text)[token].item()
            text.append(token)
        assert hypothesis.log_p == pytest.approx(total, abs=1e-10)
        assert end not in hypothesis.tokens[:-1]


def test_a_finished_hypothesis_is_kept_while_others_go_on():
    """Token 0 ends a text with p = 0.4; what goes on is 0.6 at once, and at most 0.3 after that."""
    model = perturbed("vaswani", "learned", vocab_size=3, n_layers=1)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.head.bias.copy_(torch.tensor([0.4, 0.5, 0.1]).log())
    found = search(model, [1], tokens=3, end=0, beam=Beam(width=2))
    assert [h.tokens for h in found] == [(0,), (1, 0)]
    assert found[0].log_p == pytest.approx(torch.tensor(0.4).log().item())
    longer = search(model, [1], tokens=3, end=0, beam=Beam(width=2, length_penalty=9.0))
    assert {len(h.tokens) for h in longer} == {3}
