"""Structure scores: patterns whose answers are known, and a reference that looks at each query."""

import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from minigpt import probe as probes
from minigpt import structure
from minigpt.config import ModelConfig
from minigpt.heads import attention_patterns
from minigpt.model import MiniGPT
from minigpt.probe import Probe
from minigpt.tokenizer import BYTES

LIBRARY = Path(sysconfig.get_path("stdlib"))
NAMES = ("heapq", "bisect", "queue", "cmd", "sched", "shlex", "copy", "glob", "stat", "types")
T = 96


@pytest.fixture(scope="module")
def probe() -> Probe:
    texts = [(LIBRARY / f"{name}.py").read_bytes() for name in NAMES]
    return probes.probe(texts, BYTES, seq_len=T, seed=0, tokens=60 * T)


def look(probe: Probe, name: str, where: str) -> torch.Tensor:
    """A_LBHTT of a head that looks at the first or last token of each key, elsewhere at token 0."""
    A_LBHTT = torch.zeros(1, len(probe.tokens_WT), 1, T, T)
    A_LBHTT[..., 0] = 0.25
    queries = probe.queries[name]
    A_LBHTT[0, queries.window_Q, 0, queries.query_Q, getattr(queries, where)] = 0.75
    return A_LBHTT


def uniform() -> torch.Tensor:
    return torch.ones(T, T).tril() / torch.arange(1, T + 1)[:, None]


def values(A_LBHTT: torch.Tensor, probe: Probe) -> dict[str, structure.Score]:
    found = structure.scores(structure.hits(A_LBHTT, probe), probe)
    return {score.metric.removeprefix("structure_"): score for score in found}


def test_a_head_that_looks_at_the_key_scores_one(probe: Probe) -> None:
    for name in probe.queries:
        for where in "first_Q", "last_Q":
            score = values(look(probe, name, where), probe)[name]
            assert score.value == 1
            assert score.high == pytest.approx(1)
            assert score.baseline < 0.7


def test_a_head_that_looks_beside_it_scores_zero(probe: Probe) -> None:
    for name in probe.queries:
        A_LBHTT = look(probe, name, "last_Q").roll(1, dims=-1)  # a token after the key
        score = values(A_LBHTT, probe)[name]
        assert score.value == 0
        assert score.low == pytest.approx(0)


def test_uniform_attention_scores_its_null_value(probe: Probe) -> None:
    A_LBHTT = uniform().expand(1, len(probe.tokens_WT), 1, T, T)
    for score in values(A_LBHTT, probe).values():
        assert score.value == pytest.approx(score.null_value)
    # And attention that looks anywhere does within its interval, in about 90 % of heads.
    rng = torch.Generator().manual_seed(0)
    A_LBHTT = torch.rand(1, len(probe.tokens_WT), 50, T, T, generator=rng) * uniform()
    scores = structure.scores(structure.hits(A_LBHTT, probe), probe)
    within = [score.low < score.null_value < score.high for score in scores]
    assert np.mean(within) > 0.8


@pytest.mark.parametrize("offset", [2, 5, 30])
def test_a_fixed_offset_scores_the_baseline_of_it(probe: Probe, offset: int) -> None:
    A_TT = uniform()
    A_TT[offset:] += torch.eye(T)[:-offset]
    A_LBHTT = A_TT.expand(1, len(probe.tokens_WT), 1, T, T)
    for name, hits_LHC in structure.hits(A_LBHTT, probe).items():
        fixed_OC = structure.fixed_offsets(probe, name)
        far_Q = probe.queries[name].query_Q >= offset
        if far_Q.all():  # nearer to the start there is nothing at that distance
            np.testing.assert_array_equal(hits_LHC[0, 0], fixed_OC[offset])
        assert fixed_OC[offset].sum() <= hits_LHC.sum() + 1e-9
        assert (fixed_OC.sum(axis=0) >= 0).all()
        assert fixed_OC[:2].sum() == 0  # a token lies between
        assert fixed_OC.sum() == sum(probe.queries[name].last_Q - probe.queries[name].first_Q + 1)


@pytest.mark.parametrize("preset", ["gpt", "vaswani"])
def test_a_model_is_measured_as_query_by_query(probe: Probe, preset: str) -> None:
    config = ModelConfig(
        preset=preset, vocab_size=257, d_model=24, n_layers=2, n_heads=3, seq_len=T
    )  # fmt: skip
    model = MiniGPT(config, seed=1).eval()
    measured = structure.measure(model, probe)
    A_LBHTT = attention_patterns(model, torch.from_numpy(probe.tokens_WT))
    for name, queries in probe.queries.items():
        expected_LHC = np.zeros((2, 3, probe.documents))
        for window, query, first, last in zip(
            queries.window_Q, queries.query_Q, queries.first_Q, queries.last_Q, strict=True
        ):
            A_LHT = A_LBHTT[:, window, :, query, : query + 1].numpy()
            most_LHT = np.equal(A_LHT, A_LHT.max(axis=-1, keepdims=True))
            answered_LH = most_LHT[..., first : last + 1].sum(axis=-1) / most_LHT.sum(axis=-1)
            expected_LHC[..., probe.document_W[window]] += answered_LH
        np.testing.assert_allclose(measured[name], expected_LHC, rtol=1e-12)
    scores = structure.scores(measured, probe)
    assert [(s.layer, s.head) for s in scores[:6]] == [(i, j) for i in (0, 1) for j in (0, 1, 2)]
    for score in scores:
        name = score.metric.removeprefix("structure_")
        answered = measured[name][score.layer, score.head].sum()
        assert score.value == pytest.approx(answered / len(probe.queries[name].query_Q))


def emerges(of_model: dict[str, structure.Score], relation: str) -> bool:
    """Whether the best head is above both controls beyond the interval."""
    return all(of_model[f"over_{what}_{relation}"].low > 0 for what in ("offset", "untrained"))


def verdicts(measured, untrained, probe: Probe) -> dict[str, structure.Score]:
    return {score.metric: score for score in structure.of_model(measured, untrained, probe)}


def test_verdicts_are_of_what_was_not_used_to_choose(probe: Probe) -> None:
    """A head that knows, beside heads that do not; and an untrained model of the same shape."""
    rng = torch.Generator().manual_seed(1)
    W = len(probe.tokens_WT)
    noise_LBHTT = torch.rand(2, W, 4, T, T, generator=rng) * uniform()
    untrained = structure.hits(noise_LBHTT, probe)
    knows_LBHTT = noise_LBHTT.clone()
    knows_LBHTT[1, :, 3] = look(probe, "bracket", "first_Q")[0, :, 0]
    found = verdicts(structure.hits(knows_LBHTT, probe), untrained, probe)
    bracket, over = found["structure_bracket"], found["over_offset_bracket"]
    assert bracket.value == 1
    assert (bracket.layer, bracket.head) == (None, None)
    assert emerges(found, "bracket")
    assert over.value == pytest.approx(bracket.value - bracket.baseline)
    assert not emerges(found, "previous_use")
    # Noise is not better than noise, however many heads there are to choose from.
    noise = verdicts(untrained, untrained, probe)
    for name in probe.queries:
        assert not emerges(noise, name)
        over = noise[f"over_untrained_{name}"]
        assert (over.value, over.low, over.high) == (0, 0, 0)


def test_heads_of_fixed_offsets_are_the_baseline(probe: Probe) -> None:
    """However many: chosen on the same documents, they are the same offsets."""
    fixed = {name: structure.fixed_offsets(probe, name)[None] for name in probe.queries}
    found = verdicts(fixed, fixed, probe)
    for name in probe.queries:
        over, share = found[f"over_offset_{name}"], found[f"structure_{name}"]
        assert (over.value, over.low, over.high) == (0, 0, 0)
        assert share.value == share.baseline
        assert not emerges(found, name)
