"""Heads: patterns against an independent reference, scores of heads whose work is known."""

import math

import numpy as np
import pytest
import torch
from handmade import LETTERS, induction_model
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from minigpt import heads
from minigpt.config import ModelConfig
from minigpt.copying import copying_scores
from minigpt.model import MiniGPT

PRESETS = ["gpt", "vaswani"]


def small(preset: str, seed: int = 0, **changes) -> MiniGPT:
    shape = {"d_model": 24, "n_layers": 2, "n_heads": 3, "vocab_size": 60, "seq_len": 50}
    return MiniGPT(ModelConfig.model_validate({"preset": preset} | shape | changes), seed=seed)


def shaken(model: MiniGPT, seed: int = 0) -> MiniGPT:
    """The model with no parameter at a special value: what starts at zero or one does not stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


def by_head(scores, metric: str) -> dict[tuple[int, int], float]:
    return {(s.layer, s.head): s.value for s in scores if s.metric == metric}


# Patterns


@pytest.mark.parametrize("preset", PRESETS)
def test_patterns_rebuild_what_attention_writes(preset, float64, monkeypatch):
    """From the patterns and the values, the input of each output projection; and torch's kernel."""
    model = shaken(small(preset))
    tokens_BT = torch.randint(60, (3, 17), generator=torch.Generator().manual_seed(1))
    written, kernel, attention = [], [], F.scaled_dot_product_attention
    for module in heads.attentions(model):
        module.out.register_forward_pre_hook(lambda _, inputs: written.append(inputs[0]))

    def kept(q, k, v, mask, is_causal):
        eye_BHTT = torch.eye(q.shape[2]).expand(*q.shape[:2], -1, -1)
        kernel.append(attention(q, k, eye_BHTT, is_causal=True))  # of one-hot values: the pattern
        kernel.append(v)
        return attention(q, k, v, mask, is_causal=is_causal)

    A_LBHTT = heads.attention_patterns(model, tokens_BT)
    written.clear()
    monkeypatch.setattr(F, "scaled_dot_product_attention", kept)
    model(tokens_BT)
    assert A_LBHTT.shape == (2, 3, 3, 17, 17)
    assert (A_LBHTT.triu(1) == 0).all()
    torch.testing.assert_close(A_LBHTT.sum(dim=-1), torch.ones(2, 3, 3, 17))
    for layer, A_BHTT in enumerate(A_LBHTT):
        own_BHTT, v_BHTK = kernel[2 * layer : 2 * layer + 2]
        torch.testing.assert_close(A_BHTT, own_BHTT, rtol=0, atol=1e-10)
        rebuilt_BTD = (A_BHTT @ v_BHTK).transpose(1, 2).flatten(2)
        torch.testing.assert_close(rebuilt_BTD, written[layer], rtol=0, atol=1e-10)


@pytest.mark.parametrize("preset", PRESETS)
def test_looking_leaves_the_model_as_it_was(preset):
    model = shaken(small(preset))
    tokens_BT = heads.repeated(range(60), 10, 2, seed=0)
    before = model(tokens_BT)
    heads.attention_patterns(model, tokens_BT)
    assert torch.equal(model(tokens_BT), before)
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(IndexError):
        heads.attention_patterns(model, torch.full((1, 4), 99))
    assert not any(module._forward_pre_hooks for module in model.modules())


# Sequences and null values


@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 2**31))
def test_repeated_sequences(length, letters, seed):
    alphabet = list(range(100, 100 + 2 * letters, 2))
    tokens_BT = heads.repeated(alphabet, length, 3, seed)
    assert tokens_BT.shape == (3, 2 * length)
    assert torch.equal(tokens_BT[:, :length], tokens_BT[:, length:])
    assert set(tokens_BT.flatten().tolist()) <= set(alphabet)
    if letters >= length:
        assert all(len(set(row)) == length for row in tokens_BT.tolist())
    assert torch.equal(tokens_BT, heads.repeated(alphabet, length, 3, seed))
    assert letters < 5 or not torch.equal(tokens_BT, heads.repeated(alphabet, 40, 3, seed + 1))


@pytest.mark.parametrize("P", [8, 25, 50])
def test_uniform_attention_scores_the_null_values(P):
    """Zero queries look at everything alike; ln 2 / P is what the literature says of P = 50."""
    model = shaken(small("vaswani", seq_len=2 * P))
    with torch.no_grad():
        for attention in heads.attentions(model):
            attention.qkv.weight[:24] = 0
            attention.qkv.bias[:24] = 0
    nulls = heads.null_values(P)
    tokens_BT = heads.repeated(range(60), P, 4, seed=0)
    for score in heads.repeated_scores(model, tokens_BT):
        if score.metric in nulls:
            assert score.null_value == nulls[score.metric]
            assert score.value == pytest.approx(score.null_value, abs=1e-6)
            assert score.low == pytest.approx(score.high, abs=1e-6)
    assert nulls["induction"] == pytest.approx(math.log(2) / P, rel=0.5 / P)
    (one, *_) = heads.prefix_matching_scores(model, tokens_BT)
    assert one.value == pytest.approx(one.null_value, abs=1e-6)
    assert one.null_value == pytest.approx(nulls["induction"])


@pytest.mark.parametrize("preset", PRESETS)
def test_prefix_matching_is_induction_where_no_token_stands_twice(preset):
    model, tokens_BT = shaken(small(preset)), heads.repeated(range(60), 25, 40, seed=3)
    induction = by_head(heads.repeated_scores(model, tokens_BT), "induction")
    matching = by_head(heads.prefix_matching_scores(model, tokens_BT), "prefix_matching")
    assert matching == pytest.approx(induction, abs=1e-6)
    assert heads.prefix_matching_scores(model, torch.arange(30)[None]) == []


def test_prefix_matching_on_any_text():
    """Against the definition, token by token, on a text in which tokens come often."""
    model = shaken(small("gpt"))
    tokens_BT = torch.randint(6, (5, 30), generator=torch.Generator().manual_seed(2))
    tokens_BT[4] = torch.arange(30)  # in which nothing comes back
    A_LBHTT = heads.attention_patterns(model, tokens_BT)
    scores = heads.prefix_matching_scores(model, tokens_BT)
    for score in scores:
        per_text, nulls = [], []
        for b, x in enumerate(tokens_BT[:4].tolist()):
            matches = {q: [k for k in range(1, q) if x[k - 1] == x[q]] for q in range(30)}
            A = A_LBHTT[score.layer, b, score.head]
            found = [sum(A[q, k].item() for k in ks) for q, ks in matches.items() if ks]
            per_text.append(sum(found) / len(found))
            null = [len(ks) / (q + 1) for q, ks in matches.items() if ks]
            nulls.append(sum(null) / len(null))
        assert score.value == pytest.approx(sum(per_text) / 4, rel=1e-5)
        assert score.null_value == pytest.approx(sum(nulls) / 4, rel=1e-5)
    assert len(scores) == 6


@pytest.fixture(scope="module")
def untrained():
    """Scores of untrained models, by preset, metric and layer: the mean over heads, per seed."""
    found, tokens_BT = {}, heads.repeated(range(60), 25, 32, seed=0)
    for preset in PRESETS:
        for seed in range(24):
            scores = heads.repeated_scores(small(preset, seed), tokens_BT)
            for metric in heads.null_values(25):
                values = by_head(scores, metric)
                for layer in (0, 1):
                    mean = sum(values[layer, head] for head in range(3)) / 3
                    found.setdefault((preset, metric, layer), []).append(mean)
    return {key: torch.tensor(values) for key, values in found.items()}


@pytest.mark.parametrize("metric", ["previous_token", "duplicate_token", "induction"])
@pytest.mark.parametrize(("preset", "layer"), [("gpt", 0), ("gpt", 1), ("vaswani", 1)])
def test_an_untrained_model_scores_its_null_value(untrained, preset, layer, metric):
    """Within four standard errors over the seeds, which are a small part of it."""
    values, null = untrained[preset, metric, layer], heads.null_values(25)[metric]
    error = values.std().item() / len(values) ** 0.5
    assert abs(values.mean().item() - null) < 4 * error
    assert error < null / 20


def test_sharp_attention_to_random_tokens_scores_more_than_uniform_attention(untrained):
    """The first layer of an untrained `vaswani`, which reads embeddings × √d_model.

    A head that looks at one kind of token finds it once where it has come once, and in two places
    where it has come twice: 1/P at most goes to the token after the previous copy, which has not
    come again.
    """
    mean = untrained["vaswani", "induction", 0].mean().item()
    assert heads.null_values(25)["induction"] < mean < 1 / 25


# Heads whose work is known


def test_a_hand_built_induction_head_scores_one():
    P, model = 32, induction_model()
    scores = heads.repeated_scores(model, heads.repeated(range(LETTERS), P, 32, seed=0))
    induction, previous = by_head(scores, "induction"), by_head(scores, "previous_token")
    nulls = heads.null_values(P)
    assert induction[1, 0] == pytest.approx(1, abs=1e-3)
    assert previous[0, 0] == pytest.approx(1, abs=1e-3)
    for idle in ((0, 1), (1, 1)):  # zero queries
        assert induction[idle] == pytest.approx(nulls["induction"], abs=1e-6)
        assert previous[idle] == pytest.approx(nulls["previous_token"], abs=1e-6)
    assert by_head(scores, "duplicate_token")[1, 0] < 1e-3
    assert by_head(copying_scores(model), "copying")[1, 0] == pytest.approx(1)
    assert scores[-1].metric == "repeat_loss_drop"
    assert scores[-1].value > math.log(LETTERS)  # sure of itself, and wrong in the first copy


@pytest.mark.parametrize("preset", PRESETS)
def test_copying_has_the_eigenvalues_of_the_whole_circuit(preset, float64):
    """Of the V×V matrix, written out with every norm as a matrix."""
    model = shaken(small(preset))
    centre_DD = torch.eye(24) - (preset == "vaswani") / 24
    norms = [centre_DD @ norm.weight.diag() for b in model.blocks for norm in (b.norm1, b.norm2)]
    if preset == "gpt":
        before, after = [norms[0], norms[2]], [model.final_norm.weight.diag()] * 2
    else:
        before = [torch.eye(24), norms[0] @ norms[1]]
        after = [norms[0] @ norms[1] @ norms[2] @ norms[3], norms[2] @ norms[3]]
    for score in copying_scores(model):
        attention = heads.attentions(model)[score.layer]
        own = slice(8 * score.head, 8 * score.head + 8)
        v_DK, o_KD = attention.qkv.weight[48:][own].T, attention.out.weight[:, own].T
        U_DV = after[score.layer] @ model.head.weight.T
        circuit_VV = model.embedding.weight @ before[score.layer] @ v_DK @ o_KD @ U_DV
        found_V = torch.linalg.eigvals(circuit_VV - circuit_VV.mean(dim=1, keepdim=True))
        expected = (found_V.real.sum() / found_V.abs().sum()).item()
        assert score.value == pytest.approx(expected, abs=1e-9)
        assert (score.low, score.high, score.null_value) == (None, None, 0.0)


def test_an_untrained_gpt_copies_nothing():
    """Its outputs are zero: the score is not defined."""
    assert [score.value for score in copying_scores(small("gpt"))] == [None] * 6
    values = [s.value for seed in range(20) for s in copying_scores(small("vaswani", seed))]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / len(values) ** 0.5
    assert abs(mean) < 4 * error


# Losses


@pytest.mark.parametrize(
    ("T", "early", "late"),
    [
        (9, [1], [8]),
        (40, [2, 3, 4, 5], [36, 37, 38, 39]),
        (500, [*range(25, 75)], [*range(450, 500)]),
        (501, [50], [500]),
        (700, [50], [500]),
    ],
)
def test_in_context_score_is_the_difference_of_two_places(T, early, late):
    model = shaken(small("gpt", seq_len=700))
    tokens_BT = torch.randint(60, (5, T), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p_BTV = model(tokens_BT).log_softmax(dim=-1)
    nll_BT = -log_p_BTV[:, :-1].gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)
    early_B, late_B = (nll_BT[:, np.array(at) - 1].mean(dim=1) for at in (early, late))
    difference_B = late_B - early_B
    score = heads.in_context_score(model, tokens_BT)
    assert score.value == pytest.approx(difference_B.mean().item(), rel=1e-4)
    half = 2.1318 * difference_B.std().item() / 5**0.5  # t of 4 degrees of freedom, 95 %
    assert score.high - score.value == pytest.approx(half, rel=1e-3)
    assert score.value - score.low == pytest.approx(half, rel=1e-3)


def test_repeat_loss_drop_is_of_the_same_tokens_in_both_copies():
    model = shaken(small("gpt"))
    tokens_BT = heads.repeated(range(60), 20, 90, seed=0)  # more than one batch
    with torch.no_grad():
        log_p_BTV = model(tokens_BT).log_softmax(dim=-1)
    nll_BT = -log_p_BTV[:, :-1].gather(-1, tokens_BT[:, 1:, None]).squeeze(-1)
    first, second = nll_BT[:, :19], nll_BT[:, 20:]
    expected = (first - second).mean().item()
    assert heads.repeat_loss_drop(model, tokens_BT).value == pytest.approx(expected, abs=1e-5)
    one = heads.repeat_loss_drop(model, tokens_BT[:1])
    assert (one.low, one.high) == (None, None)
    assert heads.repeat_loss_drop(small("gpt"), tokens_BT).value == pytest.approx(0, abs=1e-6)
